//! What `listen.webhooks` takes, refuses, remembers and applies; see `webhooks_to_app` for what the app gets.

use bytes::Bytes;
use ringfence::call::{Outcome, Phase};
use ringfence::provider::sign::sha256_hex;
use ringfence::store::NewEvent;
use ringfence_simulator::{SimSettings, sign};
use serde_json::{Value, json};

use crate::support::hooks::{
    EVENTS, FORM, STATUS, VOICE, call_form, elevenlabs, encoded, inbox, now_secs, pairs, seed_event, twilio,
};
use crate::support::net::Wire;
use crate::support::stage::{Behind, Setup, Stage};

const JSON: (&str, &str) = ("content-type", "application/json");
const INITIATION: &str = "/webhooks/elevenlabs/conversation-initiation";

/// Calls in these tests exist nowhere; the sweeps would find that out.
fn without_sweeps() -> Setup {
    Setup { replace: vec![("sweep_ms = 100".to_owned(), "sweep_ms = 60000".to_owned())], ..Setup::default() }
}

async fn raw_event(stage: &Stage, signature: Option<&str>, body: &str) -> (u16, Value) {
    let mut headers = vec![JSON];
    headers.extend(signature.map(|s| ("elevenlabs-signature", s)));
    let answer = stage.send("POST", &stage.webhooks(EVENTS), &headers, body.to_owned()).await;
    (answer.status, serde_json::from_slice(&answer.body).unwrap_or_default())
}

fn started(conversation: &str) -> String {
    seed_event("conversation.started", conversation, "inbound").to_string()
}

// === signatures ===

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_without_a_good_elevenlabs_signature_are_refused_and_leave_nothing() {
    let app = Behind::start().await;
    let stage = Stage::start(Setup { app: Some(app.url()), ..without_sweeps() }).await;
    let (secret, body) = (stage.control.settings().el_webhook_secret, started("conv_1"));
    let at = |age: i64| sign::elevenlabs(&secret, now_secs() - age, body.as_bytes());
    let tampered = sign::elevenlabs(&secret, now_secs(), b"{}");
    for bad in [
        None,
        Some(""),
        Some("t=1,v0=zz"),
        Some("v0=00"),
        Some(tampered.as_str()),
        Some(sign::elevenlabs("another", now_secs(), body.as_bytes()).as_str()),
        Some(at(31 * 60).as_str()),
        Some(at(0).replace("v0=", "v1=").as_str()),
    ] {
        let (status, answer) = raw_event(&stage, bad, &body).await;
        assert_eq!((status, &answer["error"]), (401, &"INVALID_SIGNATURE".into()), "{bad:?}");
    }
    assert_eq!((stage.held().await, inbox(&stage).await.len(), app.got().len()), (0, 0, 0));
    // The current secret, the one before it while it is rotated out, and a stamp that is old but not stale.
    let older = sign::elevenlabs("an older secret", now_secs(), started("conv_2").as_bytes());
    assert_eq!(raw_event(&stage, Some(&older), &started("conv_2")).await, (200, json!({"received": true})));
    assert_eq!(raw_event(&stage, Some(&at(29 * 60)), &body).await, (200, json!({"received": true})));
    assert_eq!((stage.held().await, inbox(&stage).await.len()), (2, 2));
    stage.finish().await;
}

fn hmac_sha256(key: &str, message: &str) -> String {
    use base64::Engine as _;
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key.as_bytes());
    base64::engine::general_purpose::STANDARD.encode(ring::hmac::sign(&key, message.as_bytes()))
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_of_twilio_are_verified_in_both_modes_for_the_public_url() {
    let setup = Setup {
        public: false,
        root: "public_url = \"https://hooks.example.test\"".to_owned(),
        twilio: "shared_keys = { webhooks_sharedkey_1 = \"a shared key\" }".to_owned(),
        ..without_sweeps()
    };
    let token = setup.sim.auth_token.clone();
    let app = Behind::start().await;
    let stage = Stage::start(Setup { app: Some(app.url()), ..setup }).await;
    let form = call_form("CA1", "inbound", "completed");
    let post = async |form: &[(&str, &str)], signature: &str, settings: Option<&str>| {
        let mut headers = vec![FORM, ("x-twilio-signature", signature)];
        headers.extend(settings.map(|s| ("x-twilio-webhooks-signature-settings", s)));
        stage.send("POST", &stage.webhooks(STATUS), &headers, encoded(form)).await.status
    };
    for (host, fits) in [
        ("https://hooks.example.test", true),
        ("https://hooks.example.test:443", true),
        ("https://hooks.example.test:8443", false),
        ("http://hooks.example.test", false),
        ("https://other.example.test", false),
    ] {
        let status = post(&form, &sign::twilio(&token, &format!("{host}{STATUS}"), &pairs(&form)), None).await;
        assert_eq!(status, if fits { 204 } else { 401 }, "{host}");
    }
    assert_eq!(
        post(&form, &sign::twilio("wrong", &format!("https://hooks.example.test{STATUS}"), &pairs(&form)), None).await,
        401
    );
    assert_eq!(stage.send("POST", &stage.webhooks(STATUS), &[FORM], encoded(&form)).await.status, 401, "unsigned");
    let form = [form, vec![("SequenceNumber", "9")]].concat();
    let mut sorted = form.clone();
    sorted.sort_unstable();
    let message = |url: &str| sorted.iter().fold(url.to_owned(), |m, (k, v)| m + k + v);
    let shared = hmac_sha256("a shared key", &message(&format!("https://hooks.example.test{STATUS}")));
    let settings = "key=webhooks_sharedkey_1,algorithm=HMAC_SHA256";
    assert_eq!(post(&form, &shared, Some("key=unknown,algorithm=HMAC_SHA256")).await, 401);
    assert_eq!(post(&form, &shared, Some("key=webhooks_sharedkey_1,algorithm=MD5")).await, 401);
    assert_eq!(post(&form, &shared, None).await, 401);
    assert_eq!(post(&form, &shared, Some(settings)).await, 204);
    // JSON is covered by its hash in the query, which the signature covers.
    let body = json!({"CallSid": "CA7", "CallStatus": "completed"}).to_string();
    let json_at = async |hash: &str, body: &str| {
        let path = format!("{STATUS}?bodySHA256={hash}");
        let signature = sign::twilio(&token, &format!("https://hooks.example.test{path}"), &[]);
        let headers = [JSON, ("x-twilio-signature", signature.as_str())];
        stage.send("POST", &stage.webhooks(&path), &headers, body.to_owned()).await.status
    };
    assert_eq!(json_at(&sha256_hex(body.as_bytes()), &body).await, 204);
    assert_eq!(json_at(&sha256_hex(b"another"), &body).await, 401);
    // What came in the newer mode goes on in the newer mode: the app checks it by the same header.
    let of_shared =
        || app.at(STATUS).into_iter().find(|g| g.headers.contains_key("x-twilio-webhooks-signature-settings"));
    stage.wait("the app has it", async || of_shared().is_some()).await;
    let expected = hmac_sha256("a shared key", &message(&format!("https://hooks.example.test{STATUS}")));
    assert_eq!(of_shared().unwrap().headers["x-twilio-signature"], expected.as_str());
    stage.finish().await;
}

/// Strict means: what cannot be checked is refused. Lenient takes it, but only where there is nothing to check with.
#[tokio::test(flavor = "multi_thread")]
async fn webhooks_that_cannot_be_checked_are_taken_only_on_a_laptop() {
    let no_secrets = |setup: &Setup| {
        let secrets = format!("webhook_secrets = [\"an older secret\", \"{}\"]", setup.sim.el_webhook_secret);
        let token = format!("auth_token = \"{}\"", setup.sim.auth_token);
        let tokens = "webhook_tokens = [\"token-of-the-initiation-webhook\"]".to_owned();
        let mut replace = without_sweeps().replace;
        replace.extend([secrets, token, tokens].map(|old| (old, String::new())));
        replace
    };
    for public in [true, false] {
        let setup = Setup { public, ..Setup::default() };
        let stage = Stage::start(Setup { replace: no_secrets(&setup), ..setup }).await;
        let expected = |taken: u16| if public { 401 } else { taken };
        assert_eq!(raw_event(&stage, None, &started("conv_1")).await.0, expected(200));
        let form = encoded(&call_form("CA9", "inbound", "busy"));
        assert_eq!(stage.send("POST", &stage.webhooks(STATUS), &[FORM], form).await.status, expected(204));
        let body = json!({"caller_id": "+1", "agent_id": "a", "called_number": "+2", "call_sid": "CA8"}).to_string();
        let initiation = stage.send("POST", &stage.webhooks(INITIATION), &[JSON], body).await;
        assert_eq!(initiation.status, expected(200));
        assert_eq!(stage.held().await, if public { 0 } else { 2 });
        stage.finish().await;
    }
    // Lenient, but with a secret: unsigned ones are refused all the same.
    let stage = Stage::start(Setup { public: false, ..without_sweeps() }).await;
    assert_eq!(raw_event(&stage, None, &started("conv_1")).await.0, 401);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_of_the_initiation_need_the_token_and_get_variables() {
    let stage = Stage::start(without_sweeps()).await;
    let body = json!({"caller_id": "+15550003301", "agent_id": "agent_acme", "called_number": "+15550001101", "call_sid": "CA8"});
    let post = async |headers: &[(&str, &str)]| {
        let mut all = vec![JSON];
        all.extend(headers);
        stage.send("POST", &stage.webhooks(INITIATION), &all, body.to_string()).await
    };
    for bad in [&[][..], &[("x-ringfence-token", "no")], &[("authorization", "Bearer no")]] {
        assert_eq!(post(bad).await.status, 401);
    }
    assert_eq!((stage.held().await, inbox(&stage).await.len()), (0, 0));
    for good in [
        ("x-ringfence-token", "token-of-the-initiation-webhook"),
        ("authorization", "Bearer token-of-the-initiation-webhook"),
    ] {
        let answer = post(&[good]).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.json(), json!({"type": "conversation_initiation_client_data", "dynamic_variables": {}}));
    }
    assert_eq!(stage.held().await, 1);
    stage.finish().await;
}

// === the inbox ===

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_that_come_twice_are_applied_and_delivered_once() {
    let app = Behind::start().await;
    let stage = std::sync::Arc::new(Stage::start(Setup { app: Some(app.url()), ..without_sweeps() }).await);
    let stamped = |kind: &str, id: &str| {
        let mut event = seed_event(kind, id, "inbound");
        event["event_timestamp"] = json!(1_760_000_000);
        event
    };
    // With a stamp and without one; at once and one after the other.
    let events = [stamped("conversation.started", "conv_1"), seed_event("conversation.started", "conv_2", "inbound")];
    for (i, event) in events.iter().enumerate() {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let (stage, event) = (stage.clone(), event.clone());
            tasks.spawn(async move { elevenlabs(&stage, &event).await });
        }
        for answer in tasks.join_all().await {
            assert_eq!((answer.status, answer.json()), (200, json!({"received": true})));
        }
        assert_eq!(elevenlabs(&stage, event).await.status, 200);
        assert_eq!((stage.held().await as usize, inbox(&stage).await.len()), (i + 1, i + 1));
    }
    let mut form = call_form("CA5", "inbound", "completed");
    form.push(("SequenceNumber", "0"));
    for _ in 0..3 {
        assert_eq!(twilio(&stage, STATUS, &form).await.status, 204);
    }
    let last = seed_event("conversation.ended", "conv_1", "inbound");
    assert_eq!(elevenlabs(&stage, &last).await.status, 200);
    stage.wait("the last is delivered", async || app.got().iter().any(|g| g.body == last.to_string())).await;
    assert_eq!((app.at(EVENTS).len(), app.at(STATUS).len()), (3, 1));
    std::sync::Arc::into_inner(stage).unwrap().finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_that_nobody_understands_are_kept_and_passed_on() {
    let app = Behind::start().await;
    let stage = Stage::start(Setup { app: Some(app.url()), ..without_sweeps() }).await;
    let odd = [
        json!({"type": "voice_removal_notice", "event_timestamp": 1, "data": {"conversation_id": "conv_1"}}),
        json!({"type": {"a": 1}, "conversation_id": ["x"], "metadata": 7}),
        json!({"type": "post_call_transcription"}),
        json!({"type": "conversation.ended", "conversation_id": null}),
        json!({"type": "conversation.started", "conversation_id": "\u{0}'; DROP TABLE calls;--", "metadata": {"phone_call": {}}}),
        json!([1, 2, 3]),
        json!({}),
    ];
    for event in &odd {
        let answer = elevenlabs(&stage, event).await;
        assert_eq!((answer.status, answer.json()), (200, json!({"received": true})), "{event}");
    }
    let kept = inbox(&stage).await;
    assert_eq!(kept.len(), odd.len());
    assert_eq!(kept[0], ("unknown".to_owned(), Some("ignored".to_owned()), false));
    assert!(kept.iter().all(|e| e.1.is_some()), "{kept:?}");
    stage.wait("the app has them all", async || app.at(EVENTS).len() == odd.len()).await;
    let secret = stage.control.settings().el_webhook_secret;
    let unreadable = ["{\"type\":", "not json at all", &"[".repeat(10_000)];
    for bad in unreadable {
        let signature = sign::elevenlabs(&secret, now_secs(), bad.as_bytes());
        let (status, answer) = raw_event(&stage, Some(&signature), bad).await;
        assert_eq!((status, answer), (200, json!({"received": true})), "{bad:.20}");
    }
    let kept = inbox(&stage).await;
    assert_eq!(kept.len(), odd.len() + unreadable.len(), "whoever signed it is not asked to send it again");
    assert_eq!(kept.iter().filter(|e| e.1.as_deref() == Some("unreadable")).count(), unreadable.len());
    stage
        .wait("the app has their bytes", async || {
            let got = app.at(EVENTS);
            unreadable.iter().all(|bad| got.iter().any(|one| one.body == *bad))
        })
        .await;
    let metrics = stage.ask("/metrics").await;
    assert!(
        metrics
            .as_str()
            .unwrap()
            .contains("ringfence_unreadable_total{account=\"elevenlabs\",flaw=\"unreadable\",source=\"webhook\"} 3")
    );
    stage.finish().await;
}

/// Rows that a dead process left without an outcome are applied and delivered at the next start.
#[tokio::test(flavor = "multi_thread")]
async fn webhooks_left_behind_are_replayed_at_start() {
    let app = Behind::start().await;
    let mut stage = Stage::start(Setup { app: Some(app.url()), ..without_sweeps() }).await;
    assert_eq!(elevenlabs(&stage, &seed_event("conversation.started", "conv_1", "inbound")).await.status, 200);
    stage.wait("the app knows of the start", async || app.got().len() == 1).await;
    let event = |id: &str, webhook: &str, path: &str, content_type: &str, body: Option<&str>| NewEvent {
        id: format!("ev_{id}"),
        account: if webhook == "events" { "elevenlabs" } else { "twilio" }.to_owned(),
        webhook: webhook.to_owned(),
        event: "x".to_owned(),
        dedupe_key: Some(id.to_owned()),
        received_at: now_secs() * 1000,
        method: "POST".to_owned(),
        path: path.to_owned(),
        headers: vec![
            ("content-type".to_owned(), content_type.to_owned()),
            ("elevenlabs-signature".to_owned(), "t=1,v0=kept".to_owned()),
        ],
        body: body.map(|b| b.as_bytes().to_vec()),
        spool: None,
    };
    let ended = seed_event("conversation.ended", "conv_1", "inbound").to_string();
    let voice = encoded(&call_form("CA1", "inbound", "ringing"));
    let store = stage.app().calls().lifecycle.store.clone();
    for row in [
        event("1", "events", EVENTS, "application/json", Some(&ended)),
        event("2", "events", EVENTS, "application/json", Some("no json")),
        event("3", "events", EVENTS, "application/json", None),
        event("4", "voice", VOICE, FORM.1, Some(&voice)),
        event("5", "gone", "/no/such/path", "application/json", Some("{}")),
    ] {
        store.receive(row).await.unwrap();
    }
    drop(store);
    stage.stop_app().await;
    stage.start_app().await;
    assert_eq!(stage.record("conv_1").await.unwrap().outcome, Some(Outcome::Completed));
    assert_eq!(stage.held().await, 0, "an inbound call whose caller is long gone takes no slot");
    let outcomes: Vec<_> = inbox(&stage).await.into_iter().filter_map(|e| e.1).collect();
    for outcome in ["applied", "unreadable", "body_lost", "reply_expired"] {
        assert!(outcomes.iter().any(|o| o == outcome), "{outcome}: {outcomes:?}");
    }
    assert_eq!(outcomes.len(), 6);
    stage.wait("the app has them", async || app.at(EVENTS).len() >= 3).await;
    let got = app.at(EVENTS);
    let of_end: Vec<_> = got.iter().filter(|g| g.body == ended).collect();
    assert_eq!(of_end.len(), 1);
    assert_eq!(of_end[0].headers["elevenlabs-signature"], "t=1,v0=kept");
    assert!(got.iter().all(|g| !g.body.is_empty()), "a body that is lost is not delivered as an empty one");
    stage.stop_app().await;
    stage.start_app().await;
    assert_eq!(app.at(EVENTS).len(), 3, "nothing is replayed twice");
    stage.finish().await;
}

// === order ===

/// Whatever comes first: never a leak, never a second slot.
#[tokio::test(flavor = "multi_thread")]
async fn webhooks_in_any_order_leave_nothing_behind() {
    let stage = Stage::start(without_sweeps()).await;
    let (s, e) = ("conversation.started", "conversation.ended");
    for (i, order) in
        [vec![s, e], vec![e, s], vec![e, e, s, s], vec![s, s, e, e], vec![s, e, s], vec![e, s, e, s]].iter().enumerate()
    {
        for (n, kind) in order.iter().enumerate() {
            let mut event = seed_event(kind, &format!("conv_{i}"), "inbound");
            event["event_timestamp"] = json!(n);
            assert_eq!(elevenlabs(&stage, &event).await.status, 200);
            assert!(stage.held().await <= 1);
        }
        assert_eq!(stage.held().await, 0, "{order:?}");
        assert_eq!(stage.record(&format!("conv_{i}")).await.unwrap().outcome, Some(Outcome::Completed), "{order:?}");
    }
    // Outbound: completed before in-progress, and before the answer that names the call.
    let placed = stage.dial(None, "+15550002010").await.json();
    let sid = placed["callSid"].as_str().unwrap();
    for status in ["completed", "in-progress", "ringing", "completed"] {
        assert_eq!(twilio(&stage, STATUS, &call_form(sid, "outbound-api", status)).await.status, 204);
        assert_eq!(stage.held().await, 0, "{status}");
    }
    stage.finish().await;
}

/// A status callback of an outbound call that nobody knows admits nothing, ends nothing, and waits.
#[tokio::test(flavor = "multi_thread")]
async fn webhooks_of_unknown_outbound_calls_are_kept() {
    let stage = Stage::start(without_sweeps()).await;
    assert_eq!(stage.dial(None, "+15550002010").await.status, 200);
    for status in ["initiated", "ringing", "in-progress", "completed"] {
        assert_eq!(twilio(&stage, STATUS, &call_form("CA77", "outbound-api", status)).await.status, 204);
    }
    let mut started = seed_event("conversation.started", "conv_77", "outbound");
    started["event_timestamp"] = json!(1);
    assert_eq!(elevenlabs(&stage, &started).await.status, 200);
    assert_eq!(stage.held().await, 1);
    assert_eq!(stage.ask("/api/calls?all=1").await["calls"].as_array().unwrap().len(), 1);
    let kept = inbox(&stage).await.into_iter().filter(|e| e.1.as_deref() == Some("deferred") && !e.2).count();
    assert_eq!(kept, 5);
    stage.finish().await;
}

/// The number's own status callback ends its call; by POST or by GET, as the number is set.
#[tokio::test(flavor = "multi_thread")]
async fn webhooks_of_a_numbers_status_end_its_call_by_post_and_get() {
    let app = Behind::start().await;
    let stage = Stage::start(Setup { app: Some(app.url()), ..without_sweeps() }).await;
    for (sid, get) in [("CA1", false), ("CA2", true)] {
        assert_eq!(twilio(&stage, VOICE, &call_form(sid, "inbound", "ringing")).await.status, 200);
        assert_eq!(stage.held().await, 1);
        let form = call_form(sid, "inbound", "completed");
        let status = if get {
            let url = stage.webhooks(&format!("{STATUS}?{}", encoded(&form)));
            let signature = sign::twilio(&stage.control.settings().auth_token, &url, &[]);
            stage.send("GET", &url, &[("x-twilio-signature", &signature)], Bytes::new()).await.status
        } else {
            twilio(&stage, STATUS, &form).await.status
        };
        assert_eq!((status, stage.held().await), (204, 0), "{sid}");
        assert_eq!(stage.record(sid).await.unwrap().phase, Phase::Ended);
    }
    stage.wait("the app has both", async || app.at(STATUS).len() == 2).await;
    stage.finish().await;
}

/// Bodies over 64 MiB are refused, by their announced length and while they come.
/// What no text or index of Postgres may hold neither fails a webhook nor stays in its way.
#[tokio::test(flavor = "multi_thread")]
async fn webhooks_with_strange_ids_are_taken_once() {
    let stage = Stage::start(Setup { sim: SimSettings::default(), ..without_sweeps() }).await;
    for id in ["conv_\u{0}1".to_owned(), "x".repeat(100_000)] {
        let event = seed_event("conversation.ended", &id, "inbound");
        for _ in 0..2 {
            assert_eq!(elevenlabs(&stage, &event).await.status, 200);
        }
    }
    let taken = inbox(&stage).await;
    assert!(taken.len() == 2 && taken.iter().all(|one| one.1.is_some()), "{taken:?}");
    assert_eq!(stage.ask("/status").await["store"]["journaled"], 0);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_over_64_mib_are_refused() {
    let stage = Stage::start(Setup { sim: SimSettings::default(), ..without_sweeps() }).await;
    let addr = stage.app().webhooks();
    let mut wire = Wire::connect(addr).await;
    // Without what could be a signature it would be refused by its head.
    let tag = "0".repeat(64);
    let head = format!("POST {EVENTS} HTTP/1.1\r\nHost: a\r\nElevenLabs-Signature: t={},v0={tag}\r\n", now_secs());
    let answer = wire.ask(format!("{head}Content-Length: {}\r\n\r\n", (64 << 20) + 1)).await;
    assert_eq!(answer.status(), 413);
    let wire = Wire::connect(addr).await;
    let (mut read, mut write) = wire.tcp.into_split();
    let sending = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt as _;
        let _ = write.write_all(format!("{head}Transfer-Encoding: chunked\r\n\r\n").as_bytes()).await;
        let chunk = [format!("{:x}\r\n", 1 << 20).into_bytes(), vec![b'x'; 1 << 20], b"\r\n".to_vec()].concat();
        for _ in 0..66 {
            if write.write_all(&chunk).await.is_err() {
                break;
            }
        }
        write
    });
    let mut start = [0; 12];
    tokio::io::AsyncReadExt::read_exact(&mut read, &mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 413");
    let _ = sending.await;
    assert_eq!(inbox(&stage).await.len(), 0);
    // The room is given back: an ordinary one goes through.
    assert_eq!(raw_event(&stage, None, "{}").await.0, 401);
    stage.finish().await;
}
