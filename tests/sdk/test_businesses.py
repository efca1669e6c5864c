"""One client for many businesses: the classes that docs/sdks.md shows, and the header per request of ElevenLabs' SDKs."""

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from elevenlabs.core.api_error import ApiError
from twilio.base.exceptions import TwilioRestException
from twilio.http.async_http_client import AsyncTwilioHttpClient
from twilio.rest import Client

from support import Fenced, documented

CALL = {"from_": "+15550001111", "to": "+15550002222", "twiml": '<Response><Pause length="60"/></Response>'}
ELEVENLABS_CALL = {"agent_id": "agent_1", "agent_phone_number_id": "phnum_1", "to_number": "+15550002222"}
EACH = 8
FITS = {"acme": 3, "birch": 5}


class Businesses(Fenced):
    """Two businesses ask for eight calls each, all at once and through one client: each gets what is its own."""

    tables = """
[businesses]
unknown = "reject"
[businesses.acme]
max_calls = 3
[businesses.birch]
max_calls = 5
"""

    def orders(self):
        return ["acme", "birch"] * EACH

    def assert_fenced(self, answers):
        """`answers`: of each order its business, and its call or the limit that refused it."""
        for business, fits in FITS.items():
            mine = [answer for name, answer in answers if name == business]
            self.assertEqual(len(mine), EACH)
            placed = {answer for answer in mine if answer.startswith(("CA", "conv_"))}
            self.assertEqual(len(placed), fits, mine)
            self.assertEqual(mine.count(f"business.{business}"), EACH - fits, mine)
            # What the SDK was told and what ringfence has on record are the same calls.
            records = [call["ids"] for call in self.calls() if call["businessId"] == business]
            self.assertEqual(len(records), fits)
            self.assertLessEqual(placed, {identifier for ids in records for identifier in ids.values()})
        self.assertEqual(len(self.calls()), sum(FITS.values()))


    def as_shown(self, code):
        """Code of the docs for the addresses of this test. Its call rings on: its voice URL is nobody's."""
        self.simulate("config", ring_ms=[60_000, 60_000])
        return code.replace("http://127.0.0.1:8080", self.api).replace("https://app.example.com", self.app.url)


class PythonTwilio(Businesses):
    def setUp(self):
        super().setUp()
        self.code, self.use = documented("python")
        self.shown = {"Client": Client, "account_sid": self.keys["account_sid"], "auth_token": self.keys["auth_token"]}
        exec(self.code, self.shown)

    def client(self):
        http_client = self.shown["Ringfence"](f"{self.api}/twilio", timeout=10)
        return Client(self.keys["account_sid"], self.keys["auth_token"], http_client=http_client)

    def test_the_documented_lines(self):
        exec(self.as_shown(self.use), self.shown)
        self.assertEqual([call["businessId"] for call in self.calls()], ["acme"])

    def test_many_threads(self):
        client, business = self.client(), self.shown["business"]
        together = Barrier(2 * EACH)

        def order(name):
            with business(name):
                together.wait()
                try:
                    return name, client.calls.create(**CALL).sid
                except TwilioRestException as error:
                    return name, error.details["limitName"]

        with ThreadPoolExecutor(2 * EACH) as pool:
            self.assert_fenced(list(pool.map(order, self.orders())))

    def test_many_tasks(self):
        async def order(client, name):
            with self.shown["business"](name):
                # All are inside before the first one asks.
                await asyncio.sleep(0)
                try:
                    return name, (await client.calls.create_async(**CALL)).sid
                except TwilioRestException as error:
                    return name, error.details["limitName"]

        async def orders():
            # The other base that the docs speak of.
            code = self.code.replace("http.http_client", "http.async_http_client")
            exec(re.sub(r"\bTwilioHttpClient", "AsyncTwilioHttpClient", code), self.shown)
            self.assertTrue(issubclass(self.shown["Ringfence"], AsyncTwilioHttpClient))
            async with self.shown["Ringfence"](f"{self.api}/twilio") as http_client:
                client = Client(self.keys["account_sid"], self.keys["auth_token"], http_client=http_client)
                return await asyncio.gather(*(order(client, name) for name in self.orders()))

        self.assert_fenced(asyncio.run(orders()))

    def test_threads_of_tasks(self):
        client = self.client()

        async def order(name):
            with self.shown["business"](name):
                await asyncio.sleep(0)
                try:
                    return name, (await asyncio.to_thread(client.calls.create, **CALL)).sid
                except TwilioRestException as error:
                    return name, error.details["limitName"]

        async def orders():
            return await asyncio.gather(*(order(name) for name in self.orders()))

        self.assert_fenced(asyncio.run(orders()))

    def test_nobody_is_somebody_else(self):
        client = self.client()
        with self.shown["business"]("acme"):
            client.calls.create(**CALL)
        with self.assertRaises(TwilioRestException) as raised:
            client.calls.create(**CALL)
        self.assertEqual((raised.exception.status, raised.exception.details["error"]), (403, "UNKNOWN_BUSINESS"))

    def test_lists_edges_and_other_hosts(self):
        http_client = self.shown["Ringfence"](f"{self.api}/twilio/")
        client = Client(
            self.keys["account_sid"], self.keys["auth_token"], http_client=http_client, region="ie1", edge="dublin"
        )
        with self.shown["business"]("birch"):
            made = [client.calls.create(**CALL).sid for _ in range(3)]
        self.assertEqual([call.sid for call in client.calls.list(page_size=2)], made[::-1])
        self.assertTrue(http_client._test_only_last_request.url.startswith(f"{self.api}/twilio/2010-04-01/"))


class NodeTwilio(Businesses):
    def test_the_documented_lines(self):
        code, use = documented("js")
        self.assertIsNone(self.node(code + self.as_shown(use)))
        self.assertEqual([call["businessId"] for call in self.calls()], ["acme"])

    def test_many_promises(self):
        answers = self.node(
            documented("js")[0]
            + """
            const client = twilio(accountSid, authToken, { httpClient: new Ringfence(`${api}/twilio/`) });
            const order = { from: "+15550001111", to: "+15550002222", twiml: '<Response><Pause length="60"/></Response>' };
            return Promise.all(Array.from({ length: 16 }, (_, n) => (n % 2 ? "birch" : "acme")).map((name) =>
              business.run(name, () => client.calls.create(order))
                .then((call) => [name, call.sid], (error) => [name, error.details.limitName])));
            """
        )
        self.assert_fenced(answers)

    def test_nobody_is_somebody_else_and_edges_are_taken_out(self):
        answers = self.node(
            documented("js")[0]
            + """
            const httpClient = new Ringfence(`${api}/twilio`);
            const client = twilio(accountSid, authToken, { httpClient, region: "ie1", edge: "dublin" });
            const order = { from: "+15550001111", to: "+15550002222", twiml: '<Response><Pause length="60"/></Response>' };
            const call = await business.run("acme", () => client.calls.create(order));
            const listed = await client.calls.list({ pageSize: 1 });
            const refused = await client.calls.create(order).catch((error) => [error.status, error.details.error]);
            return [listed.map((one) => one.sid === call.sid), refused];
            """
        )
        self.assertEqual(answers, [[True], [403, "UNKNOWN_BUSINESS"]])


class ElevenLabs(Businesses):
    def test_python_many_threads(self):
        client = self.elevenlabs()
        together = Barrier(2 * EACH)

        def order(name):
            together.wait()
            try:
                options = {"max_retries": 0, "additional_headers": {"X-Business-Id": name}}
                create = client.conversational_ai.twilio.outbound_call
                return name, create(**ELEVENLABS_CALL, request_options=options).conversation_id
            except ApiError as error:
                return name, error.body["limitName"]

        with ThreadPoolExecutor(2 * EACH) as pool:
            self.assert_fenced(list(pool.map(order, self.orders())))

    def test_node_many_promises(self):
        answers = self.node(
            """
            const { ElevenLabsClient } = require("@elevenlabs/elevenlabs-js");
            const client = new ElevenLabsClient({ baseUrl: `${api}/elevenlabs`, apiKey });
            const order = { agentId: "agent_1", agentPhoneNumberId: "phnum_1", toNumber: "+15550002222" };
            return Promise.all(Array.from({ length: 16 }, (_, n) => (n % 2 ? "birch" : "acme")).map((name) =>
              client.conversationalAi.twilio
                .outboundCall(order, { maxRetries: 0, headers: { "X-Business-Id": name } })
                .then((call) => [name, call.conversationId], (error) => [name, error.body.limitName])));
            """
        )
        self.assert_fenced(answers)
