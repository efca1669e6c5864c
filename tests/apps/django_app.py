"""Django in one file, with the decorator of Twilio's guide "Secure your Django project by validating incoming Twilio requests"."""

import os
from functools import wraps

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, HttpResponseForbidden
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from twilio.request_validator import RequestValidator
from twilio.twiml.messaging_response import MessagingResponse
from twilio.twiml.voice_response import Connect, VoiceResponse

behind_proxy = {}
if os.environ.get("SSL_HEADER"):
    behind_proxy["SECURE_PROXY_SSL_HEADER"] = ("HTTP_X_FORWARDED_PROTO", "https")
if os.environ.get("FORWARDED_HOST"):
    behind_proxy["USE_X_FORWARDED_HOST"] = True
settings.configure(
    ROOT_URLCONF=__name__,
    SECRET_KEY="only for tests",
    ALLOWED_HOSTS=["hooks.example.test"],
    **behind_proxy,
)


def validate_twilio_request(f):
    @wraps(f)
    def decorated_function(request, *args, **kwargs):
        validator = RequestValidator(os.environ["TWILIO_AUTH_TOKEN"])
        url, signature = request.build_absolute_uri(), request.META.get("HTTP_X_TWILIO_SIGNATURE", "")
        if validator.validate(url, request.POST, signature):
            return f(request, *args, **kwargs)
        return HttpResponseForbidden()

    return decorated_function


@csrf_exempt
@validate_twilio_request
def voice(request):
    response, connect = VoiceResponse(), Connect()
    connect.stream(url=f"wss://{request.get_host()}/media")
    response.append(connect)
    return HttpResponse(str(response), content_type="text/xml")


@csrf_exempt
@validate_twilio_request
def status(request):
    return HttpResponse(status=204)


@csrf_exempt
@validate_twilio_request
def sms(request):
    response = MessagingResponse()
    response.message(f"You said {request.POST['Body']} at {request.scheme}://{request.get_host()}")
    return HttpResponse(str(response), content_type="text/xml")


urlpatterns = [
    path("webhooks/twilio/voice", voice),
    path("webhooks/twilio/status", status),
    path("sms", sms),
]
application = get_wsgi_application()

if __name__ == "__main__":
    from wsgiref.simple_server import make_server

    make_server("127.0.0.1", int(os.environ["PORT"]), application).serve_forever()
