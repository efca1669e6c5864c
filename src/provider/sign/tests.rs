//! Vectors. Those of ElevenLabs and Twilio follow their documentation (elevenlabs.io/docs/agents-platform/workflows/post-call-webhooks;
//! twilio.com/docs/usage/webhooks/webhooks-security); the others were made, and accepted, by the providers' own packages:
//! plivo 4.63.0 (`get_signature_v3`, `validate_v3_signature`), retell-sdk 6.2.13 (`webhook_auth`), standardwebhooks' README, telnyx
//! 4.189.0 (`webhooks.unwrap`), vonage-jwt 1.1.5, twilio 9.13.0 (SignalWire cXML) and signalwire 2.1.1 (`RequestValidator`). LiveKit's
//! is PyJWT's, with the claims of its documentation's page on webhooks; Bland's and Vapi's are plain HMAC, as theirs say.

use base64::Engine as _;
use ring::hmac;

use super::read::tests::written;
use super::*;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const URL: &str = "https://calls.example.test/hooks/twilio/status?biz=acme";
const NOW: i64 = 1_760_000_000;

fn preset(name: &str) -> Signature {
    Signature::preset(name).unwrap()
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn headers(list: &[(&str, &str)]) -> HeaderMap {
    list.iter().map(|(k, v)| (HeaderName::try_from(*k).unwrap(), HeaderValue::try_from(*v).unwrap())).collect()
}

fn keys(secrets: &[&str]) -> Keys {
    Keys { secrets: secrets.iter().map(|s| Secret::new(s)).collect(), ..Keys::default() }
}

fn named(names: &[(&str, &str)]) -> Keys {
    Keys { named: names.iter().map(|(n, s)| ((*n).to_owned(), Secret::new(s))).collect(), ..Keys::default() }
}

/// A POST of a body at a URL.
struct Post<'a> {
    signature: Signature,
    keys: Keys,
    url: &'a str,
    form: Option<Vec<(String, String)>>,
}

impl<'a> Post<'a> {
    fn of(name: &str, keys: Keys) -> Self {
        Self { signature: preset(name), keys, url: URL, form: None }
    }

    fn check(&self, shown: &[(&str, &str)], body: &[u8], now_secs: i64) -> Result<Verification, SignatureError> {
        self.by("POST", shown, body, now_secs)
    }

    fn by(
        &self,
        method: &str,
        shown: &[(&str, &str)],
        body: &[u8],
        now_secs: i64,
    ) -> Result<Verification, SignatureError> {
        let headers = headers(shown);
        let request = Request { method, url: self.url, headers: &headers, body, form: self.form.as_deref() };
        let checked = self.signature.verify(&self.keys, &request, now_secs);
        // Whatever is told by the head alone is so.
        let by_head = self.signature.validate_head(&self.keys, &headers, now_secs);
        assert!(by_head.is_ok() || checked.is_err(), "{by_head:?}, but {checked:?}");
        checked
    }
}

#[test]
fn the_head_alone_tells_what_no_body_could_mend() {
    let validate =
        |name: &str, keys: Keys, shown: &[(&str, &str)]| preset(name).validate_head(&keys, &headers(shown), NOW);
    let tag = "0".repeat(64);
    let of = |age_secs: i64, tag: &str| format!("t={},v0={tag}", NOW - age_secs);
    let elevenlabs = |value: &str| validate("elevenlabs", keys(&["s"]), &[("elevenlabs-signature", value)]);
    assert_eq!(elevenlabs(&of(10, &tag)), Ok(()));
    let stale = |age_secs| Err(SignatureError::Stale { age_secs, at_most_secs: 1800 });
    assert_eq!((elevenlabs(&of(1801, &tag)), elevenlabs(&of(-1801, &tag))), (stale(1801), stale(-1801)));
    let malformed = Err(SignatureError::Malformed("ElevenLabs-Signature".to_owned()));
    for value in ["", "t=1", "v0=00", &of(0, "xyz"), &format!("t=now,v0={tag}")] {
        assert_eq!(elevenlabs(value), malformed, "{value:?}");
    }
    assert_eq!(elevenlabs(&of(0, "00")), Err(SignatureError::Mismatch), "too short to be one");
    let missing = |name: &str| Err(SignatureError::Missing(name.to_owned()));
    assert_eq!(validate("elevenlabs", keys(&["s"]), &[]), missing("ElevenLabs-Signature"));
    assert_eq!(validate("twilio", keys(&["s"]), &[]), missing("X-Twilio-Signature"));
    assert_eq!(validate("twilio", keys(&["s"]), &[("x-twilio-signature", "acEvkn2qe36vcFhFs0pGnMysDT8=")]), Ok(()));
    assert_eq!(validate("twilio", keys(&[]), &[]), Err(SignatureError::NoSecret));
    let tokens = || Keys { tokens: vec![Secret::new("word")], ..Keys::default() };
    assert_eq!(validate("vapi_secret", tokens(), &[("x-vapi-secret", "word")]), Ok(()));
    assert_eq!(validate("vapi_secret", tokens(), &[("x-vapi-secret", "other")]), Err(SignatureError::Mismatch));
    assert_eq!(validate("none", keys(&["s"]), &[]), Ok(()));
}

const VALID: Result<Verification, SignatureError> = Ok(Verification::Valid);
const MISMATCH: Result<Verification, SignatureError> = Err(SignatureError::Mismatch);

fn stale(age_secs: i64, at_most_secs: i64) -> Result<Verification, SignatureError> {
    Err(SignatureError::Stale { age_secs, at_most_secs })
}

// === Twilio ===

fn status_form() -> Vec<(String, String)> {
    pairs(&[
        ("CallSid", "CA00000000000000000000000000000001"),
        ("CallStatus", "completed"),
        ("CallDuration", "42"),
        ("From", "+15550001111"),
        ("To", "+15550002222"),
        ("SequenceNumber", "3"),
    ])
}

fn twilio(url: &str, form: Option<Vec<(String, String)>>) -> Post<'_> {
    let keys = Keys { named: named(&[("webhooks_sharedkey_1", TOKEN)]).named, ..keys(&["an older token", TOKEN]) };
    Post { url, form, ..Post::of("twilio", keys) }
}

#[test]
fn twilio_vectors_pass() {
    let one = |url, form: Option<_>, body: &[u8], signature: &str| {
        twilio(url, form).check(&[("x-twilio-signature", signature)], body, NOW)
    };
    let form = || Some(status_form());
    assert_eq!(one(URL, form(), b"", "acEvkn2qe36vcFhFs0pGnMysDT8="), VALID);
    let repeated = || Some(pairs(&[("A", "2"), ("A", "1"), ("A", "2"), ("B", "x")]));
    assert_eq!(one(URL, repeated(), b"", "/07keIlqIYrQacYI65JR5Ecybn8="), VALID);
    // Signed with `:443`, received without, and the other way round.
    let with_port = URL.replace("example.test", "example.test:443");
    assert_eq!(one(URL, form(), b"", "JzTe4PCREktiRe0AF2r2u/MfpIM="), VALID);
    assert_eq!(one(&with_port, form(), b"", "acEvkn2qe36vcFhFs0pGnMysDT8="), VALID);
    let other_port = URL.replace("example.test", "example.test:8443");
    assert_eq!(one(&other_port, form(), b"", "acEvkn2qe36vcFhFs0pGnMysDT8="), VALID, "as Twilio's SDKs have it");
    // A body that is no form is bound by its hash.
    let json = "https://calls.example.test/hooks/twilio/json?bodySHA256=015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862";
    assert_eq!(one(json, None, b"{\"a\":1}", "1vWL1lKYMF7tnK2MV1z+fp4iXQ4="), VALID);
    assert_eq!(one(json, None, b"{\"a\":2}", "1vWL1lKYMF7tnK2MV1z+fp4iXQ4="), MISMATCH);
    assert_eq!(one(json, None, b"", "1vWL1lKYMF7tnK2MV1z+fp4iXQ4="), MISMATCH, "its body was taken away");
}

#[test]
fn twilios_newer_mode_names_a_key() {
    let post = |signature: &str, settings: &str| {
        let shown = [("x-twilio-signature", signature), ("x-twilio-webhooks-signature-settings", settings)];
        twilio(URL, Some(status_form())).check(&shown, b"", NOW)
    };
    let good = "hItbEAwSdxGYEkNb9cxAfcpdLCbumoJZQfjkEVyjB2M=";
    let malformed = Err(SignatureError::Malformed("X-Twilio-Webhooks-Signature-Settings".to_owned()));
    assert_eq!(post(good, "key=webhooks_sharedkey_1,algorithm=HMAC_SHA256"), VALID);
    assert_eq!(post(good, "key=webhooks_sharedkey_1,algorithm=MD5"), malformed);
    assert_eq!(post(good, "algorithm=HMAC_SHA256"), malformed);
    assert_eq!(post("acEvkn2qe36vcFhFs0pGnMysDT8=", "key=webhooks_sharedkey_1,algorithm=HMAC_SHA256"), MISMATCH);
    assert_eq!(post("AAAA", "key=of_nobody,algorithm=HMAC_SHA256"), MISMATCH, "not NoSecret, which may be let in");
}

#[test]
fn forged_twilio_requests_fail() {
    let mut form = status_form();
    form[1].1 = "busy".to_owned();
    let shown = [("x-twilio-signature", "acEvkn2qe36vcFhFs0pGnMysDT8=")];
    assert_eq!(twilio(URL, Some(form)).check(&shown, b"", NOW), MISMATCH);
    let post = twilio(URL, Some(status_form()));
    let bad = post.check(&[("x-twilio-signature", "not base64!")], b"", NOW);
    assert_eq!(bad, Err(SignatureError::Malformed("X-Twilio-Signature".to_owned())));
    assert_eq!(post.check(&[], b"", NOW), Err(SignatureError::Missing("X-Twilio-Signature".to_owned())));
    assert_eq!(Post { keys: Keys::default(), ..post }.check(&shown, b"", NOW), Err(SignatureError::NoSecret));
}

/// A forwarded request is signed by the key that fits, in the mode in which it came.
#[test]
fn signatures_over_the_url_are_made_anew() {
    let signature = preset("twilio");
    let form = status_form();
    let both = [
        ("x-twilio-signature", "hItbEAwSdxGYEkNb9cxAfcpdLCbumoJZQfjkEVyjB2M="),
        ("x-twilio-webhooks-signature-settings", "key=webhooks_sharedkey_1,algorithm=HMAC_SHA256"),
    ];
    let post = twilio(URL, None);
    let anew = |shown: &[(&str, &str)], came_to: &str, url: &str| {
        let headers = headers(shown);
        let received = Request { method: "POST", url: came_to, headers: &headers, body: b"", form: Some(&form) };
        signature
            .resign(&post.keys, &received, &Request { url, ..received })
            .pop()
            .map(|(_, v)| v.to_str().unwrap().to_owned())
    };
    let classic = [("x-twilio-signature", "JzTe4PCREktiRe0AF2r2u/MfpIM=")];
    // Signed with the port, and passed on to a URL with a fragment.
    assert_eq!(anew(&classic, URL, &format!("{URL}#rc=3&rp=ct,rt,5xx")).unwrap(), "acEvkn2qe36vcFhFs0pGnMysDT8=");
    assert_eq!(anew(&both, URL, URL).unwrap(), both[0].1);
    assert_eq!(anew(&[], URL, URL), None, "what came unsigned goes on unsigned");
    for other in ["elevenlabs", "retell", "telnyx", "vonage", "livekit", "bland", "openai", "vapi", "token", "none"] {
        assert!(!preset(other).is_over_url(), "{other}");
    }
    for bound in ["twilio", "signalwire_cxml", "signalwire_swml", "plivo"] {
        assert!(preset(bound).is_over_url(), "{bound}");
    }
}

// === the others ===

#[test]
fn elevenlabs_vector_passes_within_its_tolerance() {
    let post = Post::of("elevenlabs", keys(&["older", "wsec_example_secret"]));
    let body =
        br#"{"type":"post_call_transcription","event_timestamp":1760000000,"data":{"conversation_id":"conv_abc"}}"#;
    let header = "t=1760000000,v0=0cddfb9c064860eb1aa71aaa428695c99675b23a1f8b72de07e5864d1a5bc386";
    let at = |now| post.check(&[("elevenlabs-signature", header)], body, now);
    assert_eq!((at(NOW), at(NOW + 1800), at(NOW - 1800)), (VALID, VALID, VALID));
    assert_eq!(at(NOW + 1801), stale(1801, 1800));
    assert_eq!(at(NOW - 1801), stale(-1801, 1800), "a stamp of the future is not better than an old one");
    assert_eq!(post.check(&[("elevenlabs-signature", header)], b"{}", NOW), MISMATCH);
    for bad in ["", "t=1", "v0=00", "t=x,v0=00", "t=+1760000000,v0=00", "t=1760000000,v0=zz"] {
        let malformed = Err(SignatureError::Malformed("ElevenLabs-Signature".to_owned()));
        assert_eq!(post.check(&[("elevenlabs-signature", bad)], body, NOW), malformed, "{bad:?}");
    }
}

#[test]
fn plivo_vectors_pass_and_are_made_anew() {
    let hangup = "https://calls.example.test/plivo/hangup";
    let form = || pairs(&[("CallUUID", "c1"), ("From", "+15550001111")]);
    let more = [form(), pairs(&[("Event", "Hangup"), ("B", "2"), ("B", "1")])].concat();
    let table = [
        ("POST", hangup.to_owned(), Some(more), "fw7Hm/EUchcnjzaIjal4axV8PvaCKoLOHxh1A8hR9v0="),
        ("POST", format!("{hangup}?z=1&a=b%20c&a=a"), Some(form()), "2JnhwxFaWniSZnuujCXgx+n9P+xlwqsq6M9xCPuFphk="),
        ("POST", format!("{hangup}?z=1&a=b%20c"), None, "WlUTH34EI5ZMWNthR2TCtYDePbweP0Onn+6+BizWSaU="),
        (
            "GET",
            "https://calls.example.test/plivo/answer?To=%2B1&CallUUID=c1".to_owned(),
            None,
            "v9TcAdiQRDSAfzGZhomCezz7A7ibAVrK+8Qob8x3EOs=",
        ),
        (
            "GET",
            "https://calls.example.test/plivo/answer".to_owned(),
            None,
            "iyLDhtdi5YKfWvu2h61tx4dueHOy0kEAzYfo4o18KYs=",
        ),
    ];
    for (method, url, form, signature) in table {
        let post = Post { url: &url, form, ..Post::of("plivo", keys(&["older", TOKEN])) };
        let nonce = ("x-plivo-signature-v3-nonce", "12345");
        let several = format!("AAAA,{signature}");
        assert_eq!(post.by(method, &[("x-plivo-signature-v3", &several), nonce], b"", NOW), VALID, "{method} {url}");
        assert_eq!(post.by(method, &[("x-plivo-signature-ma-v3", signature), nonce], b"", NOW), VALID);
        assert_eq!(
            post.by(method, &[("x-plivo-signature-v3", signature), ("x-plivo-signature-v3-nonce", "12346")], b"", NOW),
            MISMATCH
        );
        assert_eq!(
            post.by(method, &[("x-plivo-signature-v3", signature)], b"", NOW),
            Err(SignatureError::Missing("X-Plivo-Signature-V3-Nonce".to_owned()))
        );
        // For the same URL it comes out as it was.
        let shown = headers(&[("x-plivo-signature-v3", &several), nonce]);
        let received = Request { method, url: &url, headers: &shown, body: b"", form: post.form.as_deref() };
        let anew = post.signature.resign(&post.keys, &received, &received);
        assert_eq!(
            anew,
            [(HeaderName::from_static("x-plivo-signature-v3"), HeaderValue::try_from(signature).unwrap())]
        );
        let other = Request { url: "https://app.example.test/x", ..received };
        assert_ne!(post.signature.resign(&post.keys, &received, &other), anew);
    }
    let json = Post { url: hangup, ..Post::of("plivo", keys(&[TOKEN])) };
    let shown = [
        ("x-plivo-signature-v3", "iyLDhtdi5YKfWvu2h61tx4dueHOy0kEAzYfo4o18KYs="),
        ("x-plivo-signature-v3-nonce", "12345"),
    ];
    assert_eq!(
        Post { url: "https://calls.example.test/plivo/answer", ..json }.check(&shown, b"{}", NOW),
        MISMATCH,
        "a body that nothing covers"
    );
}

#[test]
fn signalwire_vectors_pass_and_are_made_anew() {
    let form = pairs(&[("CallSid", "c1"), ("CallStatus", "completed")]);
    let cxml = Post {
        url: "https://calls.example.test/cxml",
        form: Some(form),
        ..Post::of("signalwire_cxml", keys(&["PSK_key"]))
    };
    for header in ["x-signalwire-signature", "x-twilio-signature"] {
        assert_eq!(cxml.check(&[(header, "OYnqaohvazkI5gNVsEjKm0Eo+5c=")], b"", NOW), VALID);
    }
    let body = br#"{"call":{"call_id":"c1"}}"#;
    let swml = Post { url: "https://calls.example.test/swml", ..Post::of("signalwire_swml", keys(&["PSK_key"])) };
    let sha1 = ("x-signalwire-signature", "8861cb7794f9efd5122801ad351d6a56be8f758a");
    let sha256 = ("x-signalwire-sha256-signature", "ec4dec5cae9c05e87917bd776863fbc6b59e3a79faea6725a9c97f5814ff1848");
    assert_eq!(swml.check(&[sha1], body, NOW), VALID);
    assert_eq!(swml.check(&[sha256], body, NOW), VALID);
    assert_eq!(swml.check(&[(sha1.0, "49771680d0a7c7ce12f244e27973611573b6a8d6")], body, NOW), VALID, "with its port");
    assert_eq!(swml.check(&[sha1], b"{}", NOW), MISMATCH);
    assert_eq!(swml.check(&[(sha256.0, sha1.1)], body, NOW), MISMATCH, "each header has its algorithm");
    let shown = headers(&[sha1, sha256]);
    let received = Request { method: "POST", url: swml.url, headers: &shown, body, form: None };
    let anew = swml.signature.resign(&swml.keys, &received, &received);
    let anew: Vec<(&str, &str)> = anew.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
    assert_eq!(anew, [sha1, sha256]);
}

#[test]
fn retell_vector_passes_and_digits_cannot_be_moved() {
    let post = Post::of("retell", keys(&["key_retell"]));
    let body = br#"{"event":"call_ended","call":{"call_id":"c1"}}"#;
    let digest = "a828bbdefa1b51fce33305bc279afe73411353175b26145be4ad4f623efef54a";
    let at = |stamp: &str, body: &[u8], now| {
        post.check(&[("x-retell-signature", &format!("v={stamp},d={digest}"))], body, now)
    };
    assert_eq!((at("1760000000000", body, NOW), at("1760000000000", body, NOW - 300)), (VALID, VALID));
    assert_eq!(at("1760000000000", body, NOW + 301), stale(301, 300));
    assert_eq!(at("1760000000001", body, NOW), MISMATCH);
    // Body and stamp have nothing between them: what moves from one to the other is another time.
    let moved = [&body[..], b"1"].concat();
    assert!(matches!(at("760000000000", &moved, NOW), Err(SignatureError::Stale { .. })));
}

#[test]
fn standard_webhooks_vector_passes() {
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let body = br#"{"test": 2432232314}"#;
    let (id, at) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330);
    let good = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    assert_eq!(sign_standard(&standard_key(&Secret::new(secret)).unwrap(), id, at, body), good);
    for name in ["openai", "standard_webhooks"] {
        let post = Post::of(name, keys(&["whsec_short", secret]));
        let check = |id: &str, signature: &str, now| {
            let stamp = at.to_string();
            post.check(
                &[("webhook-id", id), ("webhook-timestamp", &stamp), ("webhook-signature", signature)],
                body,
                now,
            )
        };
        assert_eq!(check(id, good, at), VALID);
        assert_eq!(check(id, &format!("v1a,AAAA v1,AAAA {good}"), at + 300), VALID, "several, while a key is rotated");
        assert_eq!(check(id, good, at - 301), stale(-301, 300));
        assert_eq!(check("msg_other", good, at), MISMATCH);
        assert_eq!(
            check(id, &good.replace("v1,", "v2,"), at),
            Err(SignatureError::Malformed("webhook-signature".to_owned()))
        );
    }
    for bad in ["MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_short", "whsec_c2hvcnQ=", "whsec_!!"] {
        assert!(
            standard_key(&Secret::new(bad)).is_err() && preset("openai").check_secret(&Secret::new(bad)).is_err(),
            "{bad}"
        );
    }
}

#[test]
fn bland_and_vapi_vectors_pass() {
    let bland = Post::of("bland", keys(&["bland secret"]));
    let good = [("x-webhook-signature", "3ce8b273fbdc2da03101d314f13e8839b65824e741fb411648b4e144e82fdc76")];
    assert_eq!(bland.check(&good, br#"{"call_id":"c1"}"#, NOW), VALID);
    assert_eq!(bland.check(&good, br#"{"call_id":"c2"}"#, NOW), MISMATCH);
    let vapi = Post::of("vapi", keys(&["vapi secret"]));
    let shown = |stamp| {
        [("x-signature", "0b0b9043f08bb5da259f3bf193345840c79256a3e440275312a4241e46c3f020"), ("x-timestamp", stamp)]
    };
    assert_eq!(vapi.check(&shown("1760000000000"), br#"{"message":{}}"#, NOW + 300), VALID);
    assert_eq!(vapi.check(&shown("1760000000000"), br#"{"message":{}}"#, NOW + 301), stale(301, 300));
    assert_eq!(vapi.check(&shown("1760000000"), br#"{"message":{}}"#, NOW), MISMATCH);
}

#[test]
fn telnyx_vector_passes() {
    let public = "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=";
    let good = "YSYkOMFbO8OvfgVKWkphswtZJcCYlQqqct1arB5lYi1rgWJiRIwftciu0Re4DezuJYmUAYODumdA8o5xMqbcDg==";
    let body = br#"{"data":{"event_type":"call.hangup","id":"e1"}}"#;
    let older = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let post = Post::of("telnyx", keys(&[older, public]));
    let at = |signature: &str, stamp: &str, body: &[u8], now| {
        post.check(&[("telnyx-signature-ed25519", signature), ("telnyx-timestamp", stamp)], body, now)
    };
    assert_eq!(at(good, "1760000000", body, NOW + 300), VALID);
    assert_eq!(at(good, "1760000000", body, NOW + 301), stale(301, 300));
    assert_eq!(at(good, "1760000001", body, NOW), MISMATCH);
    assert_eq!(at(good, "1760000000", b"{}", NOW), MISMATCH);
    assert_eq!(at("AAAA", "1760000000", body, NOW), MISMATCH);
    for (bad, why) in [("not base64!", "it is not base64"), ("AAAA", "32 bytes"), (TOKEN, "32 bytes")] {
        assert!(preset("telnyx").check_secret(&Secret::new(bad)).unwrap_err().contains(why), "{bad}");
    }
}

// === tokens ===

const VONAGE: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpYXQiOjE3NjAwMDAwMDAsImp0aSI6ImoxIiwiaXNzIjoiVm9uYWdlIiwicGF5bG9hZF9oYXNoIjoiMGI1YmM5NjhkZjMxYTA0OTZmZjZiY2Q1ZTcyYzViOTU3YzAyZjE4YTE5ZjVkOTA0ZmE1YTg3NTg3NmZiYjdkYSIsImFwaV9rZXkiOiJhMWIyYzNkNCIsImFwcGxpY2F0aW9uX2lkIjoiYXBwMSJ9.c4bBrxLzE8k-DAW1iOezA_iiuexepvp3G5BiaqEj29A";
const VONAGE_SECRET: &str = "a vonage signature secret of 32 b";
const VONAGE_BODY: &[u8] = br#"{"status":"completed","uuid":"u1"}"#;
const LIVEKIT: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJBUElrZXkxIiwibmJmIjoxNzYwMDAwMDAwLCJleHAiOjE3NjAwMDAzMDAsInNoYTI1NiI6IkREczFaVnh6Q1J5RFc4L1hraHZwdFZQNTdlK3hVb3VrWjVxb01RL2dMcEk9In0.lQAM_GTjFPCkjTnGxs9hIDVVYF8XuJBqK0MExdg4Qa4";
const LIVEKIT_SECRET: &str = "a livekit api secret of 32 bytes!";
const LIVEKIT_BODY: &[u8] = br#"{"event":"participant_left","id":"EV_1"}"#;

fn claim(name: &str) -> Result<Verification, SignatureError> {
    Err(SignatureError::Claim(name.to_owned()))
}

#[test]
fn vonage_vector_passes() {
    let bearer = format!("Bearer {VONAGE}");
    let check = |keys: Keys, shown: &str, body: &[u8], now| {
        Post::of("vonage", keys).check(&[("authorization", shown)], body, now)
    };
    let by_name = || named(&[("ffff0000", "another"), ("a1b2c3d4", VONAGE_SECRET)]);
    assert_eq!(check(by_name(), &bearer, VONAGE_BODY, NOW + 300), VALID);
    assert_eq!(check(keys(&["older", VONAGE_SECRET]), &bearer, VONAGE_BODY, NOW), VALID);
    assert_eq!(check(by_name(), &bearer, VONAGE_BODY, NOW + 301), stale(301, 300));
    assert_eq!(check(by_name(), &bearer, VONAGE_BODY, NOW - 301), stale(-301, 300));
    assert_eq!(check(by_name(), &bearer, b"{}", NOW), claim("payload_hash"));
    assert_eq!(check(by_name(), &bearer, b"", NOW), claim("payload_hash"));
    assert_eq!(
        check(named(&[("ffff0000", VONAGE_SECRET)]), &bearer, VONAGE_BODY, NOW),
        claim("api_key"),
        "the right key under another's name"
    );
    assert_eq!(check(keys(&["another"]), &bearer, VONAGE_BODY, NOW), MISMATCH);
    assert_eq!(
        check(keys(&[VONAGE_SECRET]), VONAGE, VONAGE_BODY, NOW),
        Err(SignatureError::Malformed("Authorization".to_owned()))
    );
    assert_eq!(check(Keys::default(), &bearer, VONAGE_BODY, NOW), Err(SignatureError::NoSecret));
}

#[test]
fn livekit_vector_passes() {
    let check =
        |keys: Keys, body: &[u8], now| Post::of("livekit", keys).check(&[("authorization", LIVEKIT)], body, now);
    let by_name = || named(&[("APIkey1", LIVEKIT_SECRET)]);
    for now in [NOW - 60, NOW, NOW + 360] {
        assert_eq!(check(by_name(), LIVEKIT_BODY, now), VALID, "{now}");
    }
    assert_eq!(check(by_name(), LIVEKIT_BODY, NOW + 361), stale(61, 60), "after exp");
    assert_eq!(check(by_name(), LIVEKIT_BODY, NOW - 61), stale(-61, 60), "before nbf");
    assert_eq!(check(by_name(), b"{}", NOW), claim("sha256"));
    assert_eq!(check(keys(&[LIVEKIT_SECRET]), LIVEKIT_BODY, NOW), VALID);
}

fn token(key: &str, header: &str, claims: &str) -> String {
    let url_safe = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let message = format!("{}.{}", url_safe.encode(header), url_safe.encode(claims));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()), message.as_bytes());
    format!("{message}.{}", url_safe.encode(tag))
}

#[test]
fn tokens_of_another_algorithm_issuer_or_age_are_refused() {
    let hash = sha256_hex(VONAGE_BODY);
    let claims = |iss: &str, more: &str| format!(r#"{{"iss":"{iss}","payload_hash":"{hash}"{more}}}"#);
    let good = claims("Vonage", &format!(r#","iat":{NOW}.5"#));
    let check = |header: &str, claims: &str, body: &[u8]| {
        let shown = format!("bearer {}", token(VONAGE_SECRET, header, claims));
        Post::of("vonage", keys(&[VONAGE_SECRET])).check(&[("authorization", &shown)], body, NOW)
    };
    assert_eq!(
        check(r#"{"alg":"HS256"}"#, &good, VONAGE_BODY),
        VALID,
        "a fraction of a second, and Bearer in any case"
    );
    for alg in ["RS256", "HS512", "ES256"] {
        assert_eq!(
            check(&format!(r#"{{"alg":"{alg}"}}"#), &good, VONAGE_BODY),
            Err(SignatureError::Algorithm),
            "{alg}"
        );
    }
    for header in [r#"{"alg":"none"}"#, r#"{"alg":"nOnE"}"#, "{}", "x"] {
        assert!(check(header, &good, VONAGE_BODY).is_err(), "{header}");
        let unsigned = token("", header, &good).rsplit_once('.').unwrap().0.to_owned();
        let shown = format!("Bearer {unsigned}.");
        assert!(
            Post::of("vonage", keys(&[VONAGE_SECRET])).check(&[("authorization", &shown)], VONAGE_BODY, NOW).is_err()
        );
    }
    let hs = r#"{"alg":"HS256"}"#;
    assert_eq!(check(hs, &claims("Mallory", &format!(r#","iat":{NOW}"#)), VONAGE_BODY), claim("iss"));
    assert_eq!(check(hs, &claims("Vonage", ""), VONAGE_BODY), claim("iat"));
    assert_eq!(check(hs, &claims("Vonage", r#","iat":"now""#), VONAGE_BODY), claim("iat"));
    assert_eq!(check(hs, &claims("Vonage", &format!(r#","iat":{NOW},"exp":1"#)), VONAGE_BODY), stale(0, 300));
    // Where there is no body, there may be no hash of one; a hash that is there must fit.
    let bare = format!(r#"{{"iss":"Vonage","iat":{NOW}}}"#);
    assert_eq!((check(hs, &bare, b""), check(hs, &bare, b"{}")), (VALID, claim("payload_hash")));
    let null = format!(r#"{{"iss":"Vonage","iat":{NOW},"payload_hash":null}}"#);
    assert_eq!(check(hs, &null, b""), claim("payload_hash"));
}

// === shared secrets, modes ===

#[test]
fn shared_secrets_are_shown_in_a_header() {
    let check = |name: &str, tokens: &[&str], header: &str, shown: &str| {
        let tokens = tokens.iter().map(|t| Secret::new(t)).collect();
        Post::of(name, Keys { tokens, ..keys(&["a key of signatures"]) }).check(&[(header, shown)], b"", NOW)
    };
    assert_eq!(check("token", &["older", "x"], "x-ringfence-token", "x"), VALID);
    assert_eq!(check("token", &["x"], "authorization", "Bearer x"), VALID);
    assert_eq!(
        check("token", &["x"], "authorization", "x"),
        Err(SignatureError::Missing("X-Ringfence-Token".to_owned()))
    );
    assert_eq!(check("token", &["x"], "x-ringfence-token", "xy"), MISMATCH);
    assert_eq!(check("token", &["x"], "x-ringfence-token", "a key of signatures"), MISMATCH);
    assert_eq!(check("token", &[], "x-ringfence-token", "x"), Err(SignatureError::NoSecret));
    assert_eq!(check("vapi_secret", &["x"], "x-vapi-secret", "x"), VALID);
    assert_eq!(check("deepgram", &["x"], "dg-token", "x"), VALID);
    assert_eq!(check("basic", &["user:pass"], "authorization", "Basic dXNlcjpwYXNz"), VALID);
    assert_eq!(check("basic", &["user:pass"], "authorization", "Basic dXNlcjpwYXNy"), MISMATCH);
    assert_eq!(check("basic", &["user:pass"], "authorization", "Basic user:pass"), MISMATCH);
}

#[test]
fn a_mode_says_whether_a_signature_has_to_be_there() {
    let mode = |mode: &str| Post {
        signature: written(&format!("signature = {{ preset = \"bland\", mode = {mode:?} }}")).unwrap(),
        ..Post::of("bland", keys(&["bland secret"]))
    };
    let wrong = [("x-webhook-signature", "00")];
    assert_eq!(mode("require").check(&[], b"", NOW), Err(SignatureError::Missing("X-Webhook-Signature".to_owned())));
    assert_eq!(mode("if_present").check(&[], b"", NOW), Ok(Verification::Unsigned));
    assert_eq!(mode("if_present").check(&wrong, b"", NOW), MISMATCH);
    assert_eq!(mode("off").check(&wrong, b"", NOW), Ok(Verification::Unsigned));
    assert_eq!(Post::of("none", Keys::default()).check(&[], b"", NOW), Ok(Verification::Unsigned));
}

#[test]
fn a_scheme_can_be_written_out_or_changed() {
    let text = "signature = { scheme = \"hmac\", algorithm = \"sha512\", key = \"base64\", message = \"{method} {url} {body}\", signature = { header = \"X-Mine\", prefix = \"sha512=\" } }";
    let signature = written(text).unwrap();
    assert!(signature.is_over_url() && signature.check_secret(&Secret::new("!")).is_err());
    let key = hmac::Key::new(hmac::HMAC_SHA512, b"key");
    let tag = hex::encode(hmac::sign(&key, format!("POST {URL} {{}}").as_bytes()));
    let post = Post { signature, ..Post::of("none", keys(&["a2V5"])) };
    assert_eq!(post.check(&[("x-mine", &format!("sha512={tag}"))], b"{}", NOW), VALID);
    assert_eq!(post.check(&[("x-mine", &tag)], b"{}", NOW), Err(SignatureError::Malformed("X-Mine".to_owned())));
    let shorter = written("signature = { preset = \"elevenlabs\", tolerance_secs = 60 }").unwrap();
    assert_ne!(shorter, preset("elevenlabs"));
    assert_eq!(written("signature = \"telnyx\"").unwrap(), preset("telnyx"));
}

// === signatures with a stamp, of another day ===

#[test]
fn what_is_delivered_late_is_signed_anew_for_the_present_time() {
    let el =
        br#"{"type":"post_call_transcription","event_timestamp":1760000000,"data":{"conversation_id":"conv_abc"}}"#;
    let standard = "v1a,AAAA v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    let bearer = format!("Bearer {VONAGE}");
    let later = NOW + 86_400;
    let elevenlabs = "t=1760000000,v0=00,v0=0cddfb9c064860eb1aa71aaa428695c99675b23a1f8b72de07e5864d1a5bc386";
    let retell = "v=1760000000000,d=a828bbdefa1b51fce33305bc279afe73411353175b26145be4ad4f623efef54a";
    let whsec = keys(&["whsec_short", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]);
    type Case<'a> = (&'a str, Keys, &'a [u8], Vec<(&'a str, &'a str)>);
    let table: [Case<'_>; 6] = [
        ("elevenlabs", keys(&["newer", "wsec_example_secret"]), el, vec![("elevenlabs-signature", elevenlabs)]),
        (
            "retell",
            keys(&["key_retell"]),
            br#"{"event":"call_ended","call":{"call_id":"c1"}}"#,
            vec![("x-retell-signature", retell)],
        ),
        (
            "vapi",
            keys(&["vapi secret"]),
            br#"{"message":{}}"#,
            vec![
                ("x-signature", "0b0b9043f08bb5da259f3bf193345840c79256a3e440275312a4241e46c3f020"),
                ("x-timestamp", "1760000000000"),
            ],
        ),
        (
            "standard_webhooks",
            whsec,
            br#"{"test": 2432232314}"#,
            vec![
                ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
                ("webhook-timestamp", "1614265330"),
                ("webhook-signature", standard),
            ],
        ),
        ("vonage", named(&[("a1b2c3d4", VONAGE_SECRET)]), VONAGE_BODY, vec![("authorization", &bearer)]),
        ("livekit", named(&[("APIkey1", LIVEKIT_SECRET)]), LIVEKIT_BODY, vec![("authorization", LIVEKIT)]),
    ];
    for (name, keys, body, shown) in table {
        let received = headers(&shown);
        let anew = |keys: &Keys, now: i64, body: &[u8]| {
            let signature = preset(name);
            let mut renewal = signature.renewal(keys, &received, now)?;
            body.chunks(7).for_each(|piece| renewal.update(piece));
            Some(renewal.finish())
        };
        let mut forwarded = received.clone();
        for (header, value) in anew(&keys, later, body).unwrap() {
            forwarded.insert(header, value);
        }
        let check = |headers: &HeaderMap, now| {
            preset(name).verify(&keys, &Request { method: "POST", url: URL, headers, body, form: None }, now)
        };
        assert!(matches!(check(&received, later), Err(SignatureError::Stale { .. })), "{name}: it was too old");
        assert_eq!(check(&forwarded, later), VALID, "{name}");
        for (header, value) in &shown {
            let kept = forwarded.get(format!("x-ringfence-original-{header}"));
            assert!(kept.is_none() == (forwarded[*header] == *value), "{name}: what changed is kept");
            assert!(kept.is_none_or(|kept| kept == value), "{name}");
        }
        // Sent at once it stays; what nobody vouches for is never signed.
        let stamp = if name == "standard_webhooks" { 1_614_265_330 } else { NOW };
        assert!(anew(&keys, stamp + 30, body).is_none() && anew(&keys, stamp + 31, body).is_some(), "{name}");
        let by_another = anew(&super::tests::keys(&["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSx"]), later, body);
        assert!(by_another.is_none_or(|anew| anew.is_empty()), "{name}: another key");
        if !shown[0].0.starts_with("auth") {
            assert!(anew(&keys, later, b"{}").unwrap().is_empty(), "{name}: another body");
        }
    }
    let telnyx = headers(&[("telnyx-signature-ed25519", "AAAA"), ("telnyx-timestamp", "1760000000")]);
    assert!(preset("telnyx").renewal(&keys(&[]), &telnyx, later).is_none(), "only Telnyx has its key");
}
