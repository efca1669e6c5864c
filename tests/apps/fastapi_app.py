"""FastAPI, with Twilio's validator as a dependency."""

import os

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from twilio.request_validator import RequestValidator
from twilio.twiml.messaging_response import MessagingResponse
from twilio.twiml.voice_response import Connect, VoiceResponse

app = FastAPI()


async def twilio_request(request: Request):
    form = await request.form()
    validator = RequestValidator(os.environ["TWILIO_AUTH_TOKEN"])
    if not validator.validate(str(request.url), dict(form), request.headers.get("X-Twilio-Signature", "")):
        raise HTTPException(status_code=403, detail="Error in Twilio Signature")
    return form


@app.api_route("/webhooks/twilio/voice", methods=["GET", "POST"], dependencies=[Depends(twilio_request)])
async def voice(request: Request):
    response, connect = VoiceResponse(), Connect()
    connect.stream(url=f"wss://{request.url.hostname}/media")
    response.append(connect)
    return Response(str(response), media_type="text/xml")


@app.post("/webhooks/twilio/status", dependencies=[Depends(twilio_request)], status_code=204)
async def status():
    return None


@app.post("/sms")
async def sms(request: Request, form=Depends(twilio_request)):
    response = MessagingResponse()
    response.message(f"You said {form['Body']} at {request.base_url}")
    return Response(str(response), media_type="text/xml")
