"""The official `twilio` package, pointed at ringfence with `client.api.base_url`."""

from urllib.parse import parse_qs

from twilio.base.exceptions import TwilioRestException
from twilio.request_validator import RequestValidator

from support import Fenced

CALL = {"from_": "+15550001111", "to": "+15550002222", "twiml": '<Response><Pause length="60"/></Response>'}


class Calls(Fenced):
    def test_create_fetch_and_hang_up(self):
        client = self.twilio()
        call = client.calls.create(**CALL)
        self.assertTrue(call.sid.startswith("CA"), call)
        self.assertEqual(call.to, CALL["to"])
        self.eventually(lambda: client.calls(call.sid).fetch().status, "in-progress")
        self.assertEqual(client.calls(call.sid).update(status="completed").status, "completed")
        self.assertEqual(self.counts()["creates_tw"], 1)

    def test_create_answers_201(self):
        self.assertEqual(self.twilio().calls.create_with_http_info(**CALL).status_code, 201)

    def test_lists_are_paged_through_ringfence(self):
        client = self.twilio()
        made = [client.calls.create(**CALL).sid for _ in range(5)]
        self.assertEqual([call.sid for call in client.calls.list(page_size=2)], made[::-1])
        last = client.http_client._test_only_last_request.url
        self.assertTrue(last.startswith(f"{self.api}/twilio/"), last)

    def test_conference_participant(self):
        participant = self.twilio().conferences("room").participants.create(from_="+15550001111", to="+15550002222")
        self.assertTrue(participant.call_sid.startswith("CA"), participant)
        self.assertTrue(participant.conference_sid.startswith("CF"), participant)


class Full(Fenced):
    calls_bought = 1

    def refused(self, create):
        with self.assertRaises(TwilioRestException) as raised:
            create()
        error = raised.exception
        self.assertEqual((error.status, error.code), (503, 10004))
        self.assertIs(error.details["called"], False)
        self.assertGreaterEqual(error.details["retryAfter"], 1)
        self.assertEqual((error.details["currentActive"], error.details["limit"]), (1, 1))
        self.assertEqual(self.counts()["creates_tw"], 1, "the refused call reached the provider")

    def test_refusal_is_the_sdks_own_error(self):
        client = self.twilio()
        client.calls.create(**CALL)
        self.refused(lambda: client.calls.create(**CALL))

    def test_a_participant_is_a_call_too(self):
        client = self.twilio()
        client.calls.create(**CALL)
        self.refused(lambda: client.conferences("room").participants.create(from_="+15550001111", to="+15550002222"))

    def test_a_hang_up_makes_room(self):
        client = self.twilio()
        client.calls(client.calls.create(**CALL).sid).update(status="completed")

        def again():
            try:
                return client.calls.create(**CALL).sid[:2]
            except TwilioRestException:
                return None

        self.eventually(again, "CA")


class Webhooks(Fenced):
    def test_status_callbacks_verify_in_the_app(self):
        client = self.twilio()
        callback = f"{self.app.url}/twilio/status?business=acme"
        call = client.calls.create(
            **CALL,
            status_callback=callback,
            status_callback_event=["initiated", "ringing", "answered", "completed"],
        )
        self.eventually(lambda: client.calls(call.sid).fetch().status, "in-progress")
        client.calls(call.sid).update(status="completed")
        seen = {}
        for _ in range(4):
            url, headers, body = self.app.next()
            form = {name: values[0] for name, values in parse_qs(body, keep_blank_values=True).items()}
            self.assertEqual(url, callback)
            self.assertEqual(form["CallSid"], call.sid)
            valid = RequestValidator(self.keys["auth_token"]).validate(url, form, headers["x-twilio-signature"])
            self.assertTrue(valid, f"signature of {form['CallStatus']}")
            seen[form["SequenceNumber"]] = form["CallStatus"]
        # Callbacks may overtake one another, as Twilio's own do; the numbers keep their order.
        self.assertEqual([seen[n] for n in sorted(seen)], ["initiated", "ringing", "in-progress", "completed"])

    def test_only_the_events_that_the_app_asked_for(self):
        # ringfence itself needs them all; the app asked for the default, the end.
        client = self.twilio()
        call = client.calls.create(**CALL, status_callback=f"{self.app.url}/twilio/status")
        self.eventually(lambda: client.calls(call.sid).fetch().status, "in-progress")
        client.calls(call.sid).update(status="completed")
        _, _, body = self.app.next()
        self.assertEqual(parse_qs(body)["CallStatus"], ["completed"])
