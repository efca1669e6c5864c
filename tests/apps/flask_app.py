"""Flask with the decorator of Twilio's guide "Secure your Flask app by validating incoming Twilio requests"; and ElevenLabs' webhook
as its guide has it."""

import os
from functools import wraps

from elevenlabs.client import ElevenLabs
from flask import Flask, Response, abort, jsonify, request
from twilio.request_validator import RequestValidator
from twilio.twiml.messaging_response import MessagingResponse
from twilio.twiml.voice_response import Connect, VoiceResponse
from werkzeug.middleware.proxy_fix import ProxyFix

app = Flask(__name__)
if os.environ.get("PROXY_FIX"):
    app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1, x_port=1)
elevenlabs = ElevenLabs(api_key="unused")


def validate_twilio_request(f):
    @wraps(f)
    def decorated_function(*args, **kwargs):
        validator = RequestValidator(os.environ["TWILIO_AUTH_TOKEN"])
        if validator.validate(request.url, request.form, request.headers.get("X-TWILIO-SIGNATURE", "")):
            return f(*args, **kwargs)
        return abort(403)

    return decorated_function


@app.route("/webhooks/twilio/voice", methods=["GET", "POST"])
@validate_twilio_request
def voice():
    response, connect = VoiceResponse(), Connect()
    connect.stream(url=f"wss://{request.host}/media")
    response.append(connect)
    return Response(str(response), mimetype="text/xml")


@app.route("/webhooks/twilio/status", methods=["POST"])
@validate_twilio_request
def status():
    return "", 204


@app.route("/sms", methods=["POST"])
@validate_twilio_request
def sms():
    response = MessagingResponse()
    response.message(f"You said {request.form['Body']} at {request.url_root}")
    return Response(str(response), mimetype="text/xml")


@app.route("/webhooks/elevenlabs/post-call", methods=["POST"])
def post_call():
    try:
        elevenlabs.webhooks.construct_event(
            rawBody=request.get_data(as_text=True),
            sig_header=request.headers.get("elevenlabs-signature"),
            secret=os.environ["ELEVENLABS_WEBHOOK_SECRET"],
        )
    except Exception as error:
        return jsonify({"error": str(error)}), 401
    return jsonify({"received": True})


if __name__ == "__main__":
    app.run(port=int(os.environ["PORT"]))
