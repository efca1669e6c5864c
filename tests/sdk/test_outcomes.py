"""Every way that a create can go, as an app sees it in each of the four SDKs, with the repetitions that they make by themselves.
Nothing is ever dialled twice."""

import socket
import struct
import threading

import httpx
import requests
from elevenlabs.client import ElevenLabs
from elevenlabs.core.api_error import ApiError
from twilio.base.exceptions import TwilioRestException
from twilio.rest import Client

from support import Fenced, free_port

TWIML = '<Response><Pause length="60"/></Response>'


def elevenlabs_python(test, mount):
    client = ElevenLabs(api_key=test.keys["el_api_key"], base_url=f"{test.api}/{mount}", timeout=10)
    try:
        answer = client.conversational_ai.twilio.outbound_call(
            agent_id="agent_1", agent_phone_number_id="phnum_1", to_number="+15550002222"
        )
    except ApiError as error:
        return {"status": error.status_code, "body": error.body}
    return {"success": answer.success, "ids": [answer.conversation_id, answer.call_sid]}


def elevenlabs_node(test, mount):
    answer = test.node(
        """
        const { ElevenLabsClient, ElevenLabsError } = require("@elevenlabs/elevenlabs-js");
        const client = new ElevenLabsClient({ baseUrl: `${api}/%s`, apiKey });
        try {
          return await client.conversationalAi.twilio.outboundCall(
            { agentId: "agent_1", agentPhoneNumberId: "phnum_1", toNumber: "+15550002223" });
        } catch (error) {
          if (!(error instanceof ElevenLabsError)) throw error;
          return { status: error.statusCode, body: error.body };
        }
        """
        % mount
    )
    if "success" in answer:
        return {"success": answer["success"], "ids": [answer.get("conversationId"), answer.get("callSid")]}
    return answer


def twilio_python(test, mount):
    client = Client(test.keys["account_sid"], test.keys["auth_token"])
    client.api.base_url = f"{test.api}/{mount}"
    try:
        return {"sid": client.calls.create(from_="+15550001111", to="+15550002222", twiml=TWIML).sid}
    except TwilioRestException as error:
        return {"status": error.status, "code": error.code, "body": error.details}


def twilio_node(test, mount):
    # `autoRetry` repeats a 429.
    return test.node(
        """
        const twilio = require("twilio");
        const twiml = '%s';
        const client = twilio(accountSid, authToken, { autoRetry: true });
        client.api.baseUrl = `${api}/%s`;
        try {
          const order = { from: "+15550001111", to: "+15550002223", twiml };
          return { sid: (await client.calls.create(order)).sid };
        } catch (error) {
          if (!(error instanceof twilio.RestException)) throw error;
          return { status: error.status, code: error.code, body: error.details };
        }
        """
        % (TWIML, mount)
    )


class Resetting:
    """A provider that reads a create and resets the connection. Everything else it closes on."""

    def __init__(self):
        self.creates = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as reader:
                if not reader.readline().startswith(b"POST "):
                    continue
                length = 0
                while line := reader.readline().strip():
                    name, _, value = line.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                self.creates += len(reader.read(length)) == length
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def stop(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()


class Outcomes(Fenced):
    create_secs = 1

    def setUp(self):
        self.resetting = Resetting()
        self.addCleanup(self.resetting.stop)
        super().setUp()

    @property
    def tables(self):
        accounts = [("closed", f"http://127.0.0.1:{free_port()}"), ("resetting", self.resetting.url)]
        of_twilio = f'account_sid = "{self.keys["account_sid"]}"'
        return f"[timeouts]\ncreate_secs = {self.create_secs}\n" + "".join(
            f'[accounts.{name}-{provider}]\nprovider = "{provider}"\nupstream = "{url}"\n{more}\n'
            for name, url in accounts
            for provider, more in [("elevenlabs", ""), ("twilio", of_twilio)]
        )

    def dialled(self):
        counts = self.counts()
        return counts["creates_el"] + counts["creates_tw"] + self.resetting.creates

    def each(self, provider, wanted, dialled, kind=None, mount=None, **fault):
        """A create by both SDKs of a provider, each to a number of its own (an equal order after one whose outcome is unknown
        is its repeat): what the app sees has what is `wanted`, the provider dialled so often."""
        sdks = {"elevenlabs": (elevenlabs_python, elevenlabs_node), "twilio": (twilio_python, twilio_node)}[provider]
        for sdk in sdks:
            with self.subTest(sdk=sdk.__name__):
                before = self.dialled()
                if kind:
                    self.simulate("fault", provider=provider, kind=kind, n=1, **fault)
                seen = sdk(self, mount or provider)
                body = seen.pop("body", None) or {}
                seen |= {name: body[name] for name in ("error", "called") if name in body}
                if isinstance(body.get("detail"), dict):
                    seen["code"] = body["detail"]["code"]
                self.assertEqual({name: seen.get(name) for name in wanted}, wanted, (seen, body))
                self.assertEqual(self.dialled() - before, dialled)
                yield seen


class OfElevenLabs(Outcomes):
    unknown = {"status": 424, "error": "CALL_OUTCOME_UNKNOWN", "called": "unknown"}

    def ways(self, *arguments, **named):
        return list(self.each("elevenlabs", *arguments, **named))

    def test_created(self):
        for seen in self.ways({"success": True}, dialled=1):
            self.assertRegex(" ".join(seen["ids"]), "^conv_.* CA")

    def test_success_false(self):
        self.ways({"success": False, "ids": [None, None]}, dialled=0, kind="success_false")
        self.assertEqual(self.calls(), [], "nothing was created, and no slot is held")

    def test_null_ids(self):
        self.ways({"success": True, "ids": [None, None]}, dialled=1, kind="null_ids")
        self.assertEqual(len(self.calls()), 2, "the calls exist, whatever their names")

    def test_refused_with_4xx(self):
        self.ways({"status": 401, "code": "quota_exceeded"}, dialled=0, kind="401")
        self.ways({"status": 402, "code": "insufficient_credits"}, dialled=0, kind="402")
        self.ways({"status": 422}, dialled=0, kind="422")
        self.assertEqual(self.calls(), [])

    def test_429_is_repeated_by_the_sdk_and_dialled_once(self):
        self.ways({"success": True}, dialled=1, kind="429_concurrency")
        self.assertEqual(len(self.calls()), 2)

    def test_connection_refused(self):
        wanted = {"status": 503, "error": "CALL_INITIATION_FAILED", "called": False}
        self.ways(wanted, dialled=0, mount="closed-elevenlabs")
        self.assertEqual(self.calls(), [])

    def test_reset_after_the_create_was_sent(self):
        self.ways(self.unknown, dialled=1, mount="resetting-elevenlabs")

    def test_an_answer_that_comes_too_late(self):
        self.ways(self.unknown, dialled=1, kind="slow", ms=2_000)
        self.eventually(lambda: ["conversation_id" in call["ids"] for call in self.calls()], [True, True])

    def test_an_answer_that_was_lost(self):
        self.ways(self.unknown, dialled=1, kind="accept_then_drop")

    def test_500_with_a_call(self):
        self.ways(self.unknown, dialled=1, kind="500_created")

    def test_500_without_a_call_looks_the_same(self):
        self.ways(self.unknown, dialled=0, kind="500")


class OfTwilio(Outcomes):
    unknown = {"status": 504, "code": 20503, "error": "CALL_OUTCOME_UNKNOWN", "called": "unknown"}

    def ways(self, *arguments, **named):
        return list(self.each("twilio", *arguments, **named))

    def test_created(self):
        for seen in self.ways({}, dialled=1):
            self.assertRegex(seen["sid"], "^CA")

    def test_refused_with_4xx(self):
        self.ways({"status": 400, "code": 21211}, dialled=0, kind="422")
        self.assertEqual(self.calls(), [])

    def test_429_is_not_repeated(self):
        wanted = {"status": 503, "code": 20429, "error": "PROVIDER_429", "called": False}
        self.ways(wanted, dialled=0, kind="429_rate")
        self.assertEqual(self.calls(), [])

    def test_connection_refused(self):
        wanted = {"status": 503, "error": "CALL_INITIATION_FAILED", "called": False}
        self.ways(wanted, dialled=0, mount="closed-twilio")
        self.assertEqual(self.calls(), [])

    def test_reset_after_the_create_was_sent(self):
        self.ways(self.unknown, dialled=1, mount="resetting-twilio")

    def test_an_answer_that_comes_too_late(self):
        self.ways(self.unknown, dialled=1, kind="slow", ms=2_000)
        self.eventually(lambda: ["call_sid" in call["ids"] for call in self.calls()], [True, True])

    def test_an_answer_that_was_lost(self):
        self.ways(self.unknown, dialled=1, kind="accept_then_drop")

    def test_500_with_a_call(self):
        self.ways(self.unknown, dialled=1, kind="500_created")

    def test_500_without_a_call_looks_the_same(self):
        self.ways(self.unknown, dialled=0, kind="500")


class Full(Outcomes):
    calls_bought = 1

    def test_elevenlabs(self):
        elevenlabs_python(self, "elevenlabs")
        wanted = {"status": 503, "error": "GLOBAL_CAPACITY_EXCEEDED", "code": "concurrent_limit_exceeded", "called": False}
        self.assertEqual(len(list(self.each("elevenlabs", wanted, dialled=0))), 2)

    def test_twilio(self):
        twilio_python(self, "twilio")
        wanted = {"status": 503, "error": "GLOBAL_CAPACITY_EXCEEDED", "code": 10004, "called": False}
        self.assertEqual(len(list(self.each("twilio", wanted, dialled=0))), 2)


class TheAppsOwnTimeOut(Outcomes):
    """An SDK that waits less than ringfence gives up and asks no second time; its call is counted."""

    create_secs = 20

    def one_slow_call(self, provider):
        self.simulate("fault", provider=provider, kind="slow", n=1, ms=3_000)

    def tearDown(self):
        self.eventually(lambda: [len(call["ids"]) > 0 for call in self.calls()], [True])
        self.assertEqual(self.dialled(), 1)

    def test_elevenlabs_python(self):
        self.one_slow_call("elevenlabs")
        client = ElevenLabs(api_key=self.keys["el_api_key"], base_url=f"{self.api}/elevenlabs", timeout=1)
        order = {"agent_id": "agent_1", "agent_phone_number_id": "phnum_1", "to_number": "+15550002222"}
        with self.assertRaises(httpx.ReadTimeout):
            client.conversational_ai.twilio.outbound_call(**order)

    def test_elevenlabs_node(self):
        self.one_slow_call("elevenlabs")
        answer = self.node(
            """
            const { ElevenLabsClient } = require("@elevenlabs/elevenlabs-js");
            const client = new ElevenLabsClient({ baseUrl: `${api}/elevenlabs`, apiKey, timeoutInSeconds: 1 });
            return await client.conversationalAi.twilio.outboundCall(
              { agentId: "agent_1", agentPhoneNumberId: "phnum_1", toNumber: "+15550002223" });
            """
        )
        # Node 20 says "timeout"; under Node 18 the SDK words it otherwise.
        self.assertEqual(answer["raised"]["name"], "ElevenLabsError")

    def test_twilio_python(self):
        self.one_slow_call("twilio")
        client = self.twilio()
        client.http_client.timeout = 1
        with self.assertRaises(requests.ReadTimeout):
            client.calls.create(from_="+15550001111", to="+15550002222", twiml=TWIML)

    def test_twilio_node(self):
        self.one_slow_call("twilio")
        answer = self.node(
            """
            const client = require("twilio")(accountSid, authToken, { timeout: 1000, autoRetry: true });
            client.api.baseUrl = `${api}/twilio`;
            return await client.calls.create({ from: "+15550001111", to: "+15550002222", twiml: '%s' });
            """
            % TWIML
        )
        self.assertEqual(answer["raised"]["code"], "ECONNABORTED")
