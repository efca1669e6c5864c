"""What the providers' own packages sign is taken, what was changed is not, and what the app gets holds for their validators.

Telnyx's package is a whole API around one call of PyNaCl, which stands here for it; SignalWire's wants another Twilio
package than the one under test, so its SWML signature is written down here after its `RequestValidator`.
"""

import base64
import hashlib
import hmac
import json
import time
import urllib.error
import urllib.request
from datetime import datetime, timezone
from urllib.parse import parse_qs, urlencode

import jwt
from livekit.api import AccessToken, TokenVerifier, WebhookReceiver
from nacl.signing import SigningKey
from plivo.utils.signature_v3 import construct_post_url, get_signature_v3, validate_v3_signature
from retell.lib.webhook_auth import symmetric as retell_signer
from retell.lib.webhook_auth import verify as retell_verify
from standardwebhooks import Webhook
from twilio.request_validator import RequestValidator
from vonage_jwt import verify_signature as vonage_verify

from support import Fenced

SECRET = "a secret of 32 bytes for the test"
WHSEC = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
TELNYX = SigningKey(bytes(range(32)))
SUBACCOUNT = "AC0000000000000000000000000000000a"
PRESETS = ["livekit", "openai", "plivo", "retell", "signalwire_cxml", "signalwire_swml", "telnyx", "vonage"]

PROVIDER = """
name = "mine"
mount = "/mine"
upstream = "https://api.example.test"
longest_call_secs = 3600
[credentials]
header = "authorization"
value = "Bearer none"
[refusal]
provider_429_code = "PROVIDER_429"
unknown_status = 504
content_type = "application/json"
words = {}
body = { message = "{message}" }
"""


class Signatures(Fenced):
    def config(self, webhooks):
        """A provider file of the operator's own: a webhook for each preset."""
        hooks = [
            f'[[webhook]]\nname = "{name}"\npaths = ["/hooks/{name}"]\nsignature = "{name}"\n'
            f'answer = {{ status = 200 }}\n[[webhook.event]]\nname = "{name}"\n'
            for name in PRESETS
        ]
        (self.folder / "providers").mkdir(exist_ok=True)
        (self.folder / "providers/mine.toml").write_text(PROVIDER + "\n".join(hooks))
        public = base64.b64encode(bytes(TELNYX.verify_key)).decode()
        account = f"""
[accounts.mine]
webhook_secrets = ["{WHSEC}", "{public}", "{SECRET}"]
shared_keys = {{ APIkey1 = "{SECRET}" }}
"""
        return 'providers_dir = "providers"\n' + super().config(webhooks) + account

    def url(self, path):
        return f"http://{self.fence.ready['webhooks']}{path}"

    def post(self, path, headers, body):
        request = urllib.request.Request(self.url(path), data=body.encode(), headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    def taken(self, path, headers, body, other, status=200):
        """Only as it was signed; then what the app got: URL, headers, body."""
        self.assertEqual(self.post(path, headers, other), 401, "another body")
        self.assertEqual(self.post(path, {"content-type": headers["content-type"]}, body), 401, "unsigned")
        self.assertEqual(self.post(path, headers, body), status)
        got = self.app.next()
        self.assertEqual(got[2], body)
        return got

    def taken_json(self, name, headers, body):
        headers = {"content-type": "application/json", **headers}
        return self.taken(f"/hooks/{name}", headers, body, body.replace("ended", "endeD"))

    def test_retell(self):
        body = json.dumps({"event": "call_ended", "call": {"call_id": "c1"}})
        signature = retell_signer["sign"](body, SECRET)
        _, headers, got = self.taken_json("retell", {"X-Retell-Signature": signature}, body)
        self.assertTrue(retell_verify(got, SECRET, headers["x-retell-signature"]))
        old = retell_signer["sign"](body, SECRET, int(time.time() * 1000) - 301_000)
        self.assertEqual(self.post("/hooks/retell", {"X-Retell-Signature": old}, body), 401, "301 s old")

    def test_standard_webhooks(self):
        body = json.dumps({"type": "realtime.call.ended", "data": {"call_id": "c1"}})
        now = datetime.now(tz=timezone.utc)
        shown = {
            "webhook-id": "wh_1",
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": "v1a,AAAA " + Webhook(WHSEC).sign("wh_1", now, body),
        }
        _, headers, got = self.taken_json("openai", shown, body)
        self.assertEqual(Webhook(WHSEC).verify(got, dict(headers)), json.loads(body))

    def test_telnyx(self):
        body, now = json.dumps({"data": {"event_type": "call.ended"}}), str(int(time.time()))
        signature = base64.b64encode(TELNYX.sign(f"{now}|{body}".encode()).signature).decode()
        shown = {"Telnyx-Signature-Ed25519": signature, "Telnyx-Timestamp": now}
        _, headers, got = self.taken_json("telnyx", shown, body)
        message = f"{headers['telnyx-timestamp']}|{got}".encode()
        TELNYX.verify_key.verify(message, base64.b64decode(headers["telnyx-signature-ed25519"]))

    def test_vonage(self):
        body = json.dumps({"status": "ended", "uuid": "u1"})
        digest = hashlib.sha256(body.encode()).hexdigest()
        claims = {"iss": "Vonage", "iat": int(time.time()), "jti": "j1", "payload_hash": digest, "api_key": "APIkey1"}
        token = jwt.encode(claims, SECRET, algorithm="HS256")
        _, headers, _ = self.taken_json("vonage", {"Authorization": f"Bearer {token}"}, body)
        self.assertTrue(vonage_verify(headers["authorization"].removeprefix("Bearer "), SECRET))
        for forged in [
            jwt.encode(claims, None, algorithm="none"),
            jwt.encode(claims, SECRET * 2, algorithm="HS512"),
            jwt.encode({**claims, "iss": "Mallory"}, SECRET, algorithm="HS256"),
        ]:
            self.assertEqual(self.post("/hooks/vonage", {"Authorization": f"Bearer {forged}"}, body), 401)

    def test_livekit(self):
        body = json.dumps({"event": "participant_left", "id": "EV_ended"})
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        token = AccessToken("APIkey1", SECRET).with_sha256(digest).to_jwt()
        _, headers, got = self.taken_json("livekit", {"Authorization": token}, body)
        receiver = WebhookReceiver(TokenVerifier("APIkey1", SECRET))
        self.assertEqual(receiver.receive(got, headers["authorization"]).id, "EV_ended")
        other = AccessToken("APIkey2", SECRET).with_sha256(digest).to_jwt()
        self.assertEqual(self.post("/hooks/livekit", {"Authorization": other}, body), 200, "webhook_secrets has it too")

    def test_plivo(self):
        params = {"CallUUID": "c1", "From": "+15550001111", "CallStatus": "completed"}
        body, path = urlencode(params), "/hooks/plivo?business=acme&a=b%20c"
        base = construct_post_url(self.url(path), params).decode()
        signature = get_signature_v3(SECRET.encode(), base, b"12345").decode()
        headers = {
            "content-type": "application/x-www-form-urlencoded",
            "X-Plivo-Signature-V3": signature,
            "X-Plivo-Signature-V3-Nonce": "12345",
        }
        # The app sees the URL that Plivo called.
        url, got, _ = self.taken(path, headers, body, body.replace("c1", "c2"))
        nonce, anew = got["x-plivo-signature-v3-nonce"], got["x-plivo-signature-v3"]
        self.assertTrue(validate_v3_signature("POST", url, nonce, SECRET, anew, params))

    def test_signalwire_cxml(self):
        params, validator = {"CallSid": "c1", "CallStatus": "completed"}, RequestValidator(SECRET)
        body, path = urlencode(params), "/hooks/signalwire_cxml?business=acme"
        headers = {
            "content-type": "application/x-www-form-urlencoded",
            "X-SignalWire-Signature": validator.compute_signature(self.url(path), params),
        }
        url, got, _ = self.taken(path, headers, body, body.replace("c1", "c2"))
        self.assertTrue(validator.validate(url, params, got["x-signalwire-signature"]))

    def test_signalwire_swml(self):
        def sign(url, body, algorithm):
            return hmac.new(SECRET.encode(), (url + body).encode(), algorithm).hexdigest()

        body, path = json.dumps({"call": {"call_id": "c1", "call_state": "ended"}}), "/hooks/signalwire_swml"
        shown = {
            "X-SignalWire-Signature": sign(self.url(path), body, "sha1"),
            "X-SignalWire-SHA256-Signature": sign(self.url(path), body, "sha256"),
        }
        url, got, _ = self.taken_json("signalwire_swml", shown, body)
        self.assertEqual(got["x-signalwire-signature"], sign(url, body, "sha1"))
        self.assertEqual(got["x-signalwire-sha256-signature"], sign(url, body, "sha256"))

    def test_a_subaccount_of_twilio(self):
        self.simulate("config", subaccounts={SUBACCOUNT: {"auth_token": "its own token"}})
        validator = RequestValidator("its own token")
        params = {"CallSid": "CA1", "AccountSid": SUBACCOUNT, "CallStatus": "completed", "Direction": "inbound"}
        body, path = urlencode(params), "/webhooks/twilio/status"
        headers = {
            "content-type": "application/x-www-form-urlencoded",
            "X-Twilio-Signature": validator.compute_signature(self.url(path), params),
        }
        url, got, text = self.taken(path, headers, body, body.replace("completed", "busy"), 204)
        form = {name: values[0] for name, values in parse_qs(text).items()}
        self.assertTrue(validator.validate(url, form, got["x-twilio-signature"]))
