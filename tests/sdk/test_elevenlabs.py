"""The official `elevenlabs` package, pointed at ringfence with `base_url`."""

import time

from elevenlabs.core.api_error import ApiError

from support import Fenced

CALL = {"agent_id": "agent_1", "agent_phone_number_id": "phnum_1", "to_number": "+15550002222"}
ONCE = {"max_retries": 0}


class Calls(Fenced):
    def test_outbound_call(self):
        answer = self.elevenlabs().conversational_ai.twilio.outbound_call(**CALL, request_options=ONCE)
        self.assertTrue(answer.success)
        self.assertTrue(answer.conversation_id.startswith("conv_"), answer)
        self.assertTrue(answer.call_sid.startswith("CA"), answer)
        self.assertEqual(self.counts()["creates_el"], 1)

    def test_sip_trunk_outbound_call(self):
        answer = self.elevenlabs().conversational_ai.sip_trunk.outbound_call(**CALL, request_options=ONCE)
        self.assertTrue(answer.success)
        self.assertTrue(answer.sip_call_id, answer)

    def test_register_call_answers_twiml(self):
        twiml = self.elevenlabs().conversational_ai.twilio.register_call(
            agent_id="agent_1",
            from_number="+15550002222",
            to_number="+15550009999",
            direction="inbound",
            request_options=ONCE,
        )
        self.assertIn("<Response>", twiml)
        self.assertIn('name="conversation_id"', twiml)

    def test_reads_pass_through(self):
        client = self.elevenlabs()
        placed = client.conversational_ai.twilio.outbound_call(**CALL, request_options=ONCE)
        listed = client.conversational_ai.conversations.list(request_options=ONCE)
        self.assertEqual([one.conversation_id for one in listed.conversations], [placed.conversation_id])
        got = client.conversational_ai.conversations.get(placed.conversation_id, request_options=ONCE)
        self.assertEqual(got.agent_id, "agent_1")


class Batches(Fenced):
    """Batches that are dialled as bulk runs."""

    tables = '[batch]\nelevenlabs = "run"'

    def test_a_batch_from_its_submission_to_its_retry(self):
        batches = self.elevenlabs().conversational_ai.batch_calls
        made = batches.create(
            call_name="Monday",
            agent_id="agent_1",
            agent_phone_number_id="phnum_1",
            recipients=[{"phone_number": f"+1555000220{n}", "id": f"r{n}"} for n in range(3)],
            target_concurrency_limit=1,
            request_options=ONCE,
        )
        self.assertTrue(made.id.startswith("run_"), made)
        self.assertEqual((made.name, made.total_calls_scheduled, made.retry_count), ("Monday", 3, 0))
        self.assertEqual((made.target_concurrency_limit, made.phone_provider), (1, "twilio"))

        def statuses():
            return [one.status for one in batches.get(made.id, request_options=ONCE).recipients]

        # That a call was answered is found by polling, some seconds later.
        self.eventually(statuses, ["in_progress", "pending", "pending"], 30)
        listed = batches.list(request_options=ONCE)
        self.assertEqual([one.id for one in listed.batch_calls], [made.id])
        self.assertFalse(listed.has_more)
        self.assertEqual(batches.cancel(made.id, request_options=ONCE).status, "cancelled")
        self.assertEqual(statuses(), ["in_progress", "cancelled", "cancelled"])
        retried = batches.retry(made.id, request_options=ONCE)
        self.assertEqual((retried.status, retried.retry_count), ("in_progress", 1))
        self.assertEqual(statuses(), ["in_progress", "pending", "pending"])
        first = batches.get(made.id, request_options=ONCE).recipients[0]
        self.simulate("end", id=first.conversation_id)
        self.eventually(lambda: statuses()[:2], ["completed", "in_progress"], 30)

    def test_a_number_that_cannot_be_called(self):
        with self.assertRaises(ApiError) as raised:
            self.elevenlabs().conversational_ai.batch_calls.create(
                call_name="Monday",
                agent_id="agent_1",
                agent_phone_number_id="phnum_1",
                recipients=[{"phone_number": "nobody"}],
                request_options=ONCE,
            )
        self.assertEqual(raised.exception.status_code, 422)
        self.assertEqual(raised.exception.body["detail"][0]["loc"], ["body", "recipients", 0, "phone_number"])


class Full(Fenced):
    calls_bought = 1

    def refused(self, **options):
        """Fills the account, then asks for one call more."""
        client = self.elevenlabs()
        client.conversational_ai.twilio.outbound_call(**CALL, request_options=ONCE)
        begun = time.monotonic()
        with self.assertRaises(ApiError) as raised:
            client.conversational_ai.twilio.outbound_call(**CALL, **options)
        self.took = time.monotonic() - begun
        self.assertEqual(self.counts()["creates_el"], 1, "the refused call reached the provider")
        return raised.exception

    def test_refusal_is_the_sdks_own_error(self):
        error = self.refused(request_options=ONCE)
        self.assertLess(self.took, 2)
        self.assertEqual(error.status_code, 503)
        self.assertEqual(error.body["detail"]["code"], "concurrent_limit_exceeded")
        self.assertEqual(error.body["detail"]["type"], "rate_limit_error")
        self.assertIs(error.body["called"], False)
        self.assertEqual((error.body["currentActive"], error.body["limit"]), (1, 1))
        self.assertGreaterEqual(error.body["retryAfter"], 1)
        self.assertEqual(error.headers["retry-after"], "1")
        self.assertEqual(error.headers["x-ringfence-refusal"], error.body["refusalId"])

    def test_refusal_does_not_hang_the_sdk(self):
        # Its two repetitions sleep on Retry-After; the honest wait is told in the body alone.
        error = self.refused()
        self.assertEqual(error.status_code, 503)
        self.assertLess(self.took, 6)

    def test_a_hang_up_makes_room(self):
        client = self.elevenlabs()
        first = client.conversational_ai.twilio.outbound_call(**CALL, request_options=ONCE)
        self.simulate("end", id=first.conversation_id)

        def again():
            try:
                return client.conversational_ai.twilio.outbound_call(**CALL, request_options=ONCE).success
            except ApiError:
                return False

        self.eventually(again, True)


class ErrorsOfTheProvider(Fenced):
    def failed(self, kind):
        self.simulate("fault", provider="elevenlabs", kind=kind, n=1)
        with self.assertRaises(ApiError) as raised:
            self.elevenlabs().conversational_ai.twilio.outbound_call(**CALL, request_options=ONCE)
        return raised.exception

    def test_its_429_arrives_as_503(self):
        error = self.failed("429_concurrency")
        self.assertEqual(error.status_code, 503)
        self.assertEqual(error.body["error"], "ELEVENLABS_429_RATE_LIMIT")
        self.assertEqual(error.body["detail"]["code"], "concurrent_limit_exceeded")
        self.assertIs(error.body["called"], False)

    def test_422_passes(self):
        error = self.failed("422")
        self.assertEqual(error.status_code, 422)
        self.assertEqual(error.body["detail"][0]["loc"], ["body", "agent_id"])

    def test_a_wrong_key_is_the_providers_to_refuse(self):
        with self.assertRaises(ApiError) as raised:
            self.elevenlabs("sk_wrong").conversational_ai.twilio.outbound_call(**CALL, request_options=ONCE)
        error = raised.exception
        self.assertEqual((error.status_code, error.body["detail"]["code"]), (401, "invalid_api_key"))


class Webhooks(Fenced):
    def test_the_post_call_webhook_verifies_in_the_app(self):
        client = self.elevenlabs()
        placed = client.conversational_ai.twilio.outbound_call(**CALL, request_options=ONCE)
        self.eventually(lambda: client.conversational_ai.conversations.get(placed.conversation_id).status, "in-progress")
        self.simulate("end", id=placed.conversation_id)
        url, headers, body = self.app.next()
        # The app sees its public address, whichever way the request took.
        self.assertEqual(url, f"http://{self.fence.ready['webhooks']}/webhooks/elevenlabs/post-call")
        event = client.webhooks.construct_event(
            rawBody=body, sig_header=headers["elevenlabs-signature"], secret=self.keys["el_webhook_secret"]
        )
        self.assertEqual(event["type"], "post_call_transcription")
        self.assertEqual(event["data"]["conversation_id"], placed.conversation_id)
