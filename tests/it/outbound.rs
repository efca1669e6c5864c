//! Outbound calls that go well: what is recorded, what the provider gets, how requests are routed, what passes untouched.

use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use ringfence::call::{EndProof, Origin, Outcome, Phase};
use ringfence::store::CallRecord;
use ringfence_simulator::{Control, Fault, FaultKind, Millis, Operation, Provider, SimSettings};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::support::net::{Wire, bounded, pattern, server};
use crate::support::stage::{Answer, Behind, PATIENCE, Setup, Stage};

/// TwiML that keeps a call up until somebody ends it.
pub const TALK: &str = "<Response><Say>Hello.</Say></Response>";

/// Longer than a create and its exchange with the provider may take, by the defaults of the config, in milliseconds.
pub const EXCHANGE_MS: i64 = 311_000;

/// The app's credentials at Twilio.
pub fn basic(control: &Control) -> String {
    use base64::Engine as _;
    let s = control.settings();
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", s.account_sid, s.auth_token)))
}

/// A form posted below Twilio's account, from one number of ours to another.
pub async fn twilio(stage: &Stage, path: &str, business: Option<&str>, to: &str, more: &[(&str, &str)]) -> Answer {
    let mut pairs = vec![("To", to), ("From", "+15550001111")];
    pairs.extend(more);
    let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
    let authorization = basic(&stage.control);
    let mut headers =
        vec![("content-type", "application/x-www-form-urlencoded"), ("authorization", authorization.as_str())];
    headers.extend(business.map(|b| ("x-business-id", b)));
    let sid = stage.control.settings().account_sid;
    stage.send("POST", &stage.api(&format!("/twilio/2010-04-01/Accounts/{sid}/{path}")), &headers, form).await
}

/// A Twilio call that stays up.
pub async fn talk(stage: &Stage, to: &str, more: &[(&str, &str)]) -> Answer {
    let more: Vec<_> = [("Twiml", TALK)].into_iter().chain(more.iter().copied()).collect();
    twilio(stage, "Calls.json", None, to, &more).await
}

/// From now on the provider cannot be asked for calls: what is learnt comes from its webhooks and answers.
pub fn blind(control: &Control) {
    for provider in [Provider::ElevenLabs, Provider::Twilio] {
        for on in [Operation::Get, Operation::List] {
            control.fault(Fault { provider, kind: FaultKind::ServerError, n: None, ms: 0, retry_after: None, on });
        }
    }
}

/// The record that has this id, once it is as wanted.
pub async fn once(stage: &Stage, id: &str, what: &str, wanted: impl Fn(&CallRecord) -> bool) -> CallRecord {
    stage.wait(what, async || stage.record(id).await.is_some_and(|r| wanted(&r))).await;
    stage.record(id).await.unwrap()
}

/// Waits until no slot is held.
pub async fn all_free(stage: &Stage) {
    stage.wait("every slot is free", async || stage.held().await == 0).await;
}

/// An id in a JSON answer.
pub fn id(answer: &Answer, name: &str) -> String {
    answer.json()[name].as_str().unwrap_or_else(|| panic!("no {name} in {answer:?}")).to_owned()
}

fn el_headers(stage: &Stage) -> Vec<(&'static str, String)> {
    vec![("content-type", "application/json".to_owned()), ("xi-api-key", stage.control.settings().el_api_key)]
}

/// A POST to ElevenLabs' API with the app's key.
pub async fn elevenlabs(stage: &Stage, path: &str, more: &[(&str, &str)], body: &Value) -> Answer {
    let own = el_headers(stage);
    let headers: Vec<_> = own.iter().map(|(k, v)| (*k, v.as_str())).chain(more.iter().copied()).collect();
    stage.send("POST", &stage.api(path), &headers, body.to_string()).await
}

/// A create's body at ElevenLabs.
pub fn order(to: &str) -> Value {
    json!({"agent_id": "agent_acme", "agent_phone_number_id": "phnum_1", "to_number": to})
}

// === what is recorded ===

#[tokio::test(flavor = "multi_thread")]
async fn an_elevenlabs_call_is_recorded_from_its_create_to_its_webhook() {
    let stage =
        Stage::start(Setup { tables: "[businesses.acme]\nplan = \"PRO\"".to_owned(), ..Setup::default() }).await;
    let answer = stage.dial(Some("acme"), "+15550002001").await;
    assert_eq!(answer.status, 200);
    let conversation = id(&answer, "conversation_id");
    let record = stage.record(&conversation).await.unwrap();
    assert_eq!((record.attributes.business.as_str(), record.attributes.plan.as_str()), ("acme", "PRO"));
    assert_eq!((record.attributes.account.as_str(), record.attributes.provider.as_str()), ("elevenlabs", "elevenlabs"));
    assert_eq!(record.attributes.carrier.as_ref().map(|c| c.as_str()), Some("twilio"), "Twilio carries it");
    assert_eq!(
        (record.attributes.operation.as_str(), record.attributes.direction.as_str()),
        ("twilio_outbound_call", "outbound")
    );
    assert_eq!(
        (record.attributes.agent.as_deref(), record.attributes.own_number.as_deref()),
        (Some("agent_acme"), Some("phnum_1"))
    );
    assert_eq!(record.attributes.other_number.as_deref(), Some("+15550002001"));
    assert_eq!(record.alias("call_sid"), answer.json()["callSid"].as_str());
    assert!(
        record.phase >= Phase::Dialing && record.origin == Origin::Create && !record.unsettled && !record.over_limit
    );
    let live = once(&stage, &conversation, "the sweep sees it live", |r| r.phase == Phase::Live).await;
    assert!(live.answered_at.is_some() && live.proof.is_none() && stage.held().await == 1);

    blind(&stage.control);
    stage.control.end_call(&conversation);
    let ended = once(&stage, &conversation, "it ends", |r| r.phase == Phase::Ended).await;
    assert_eq!((ended.outcome, ended.proof), (Some(Outcome::Completed), Some(EndProof::Webhook)));
    assert!(ended.ended_at >= ended.answered_at);
    stage.wait("its slot is free", async || stage.held().await == 0).await;
    stage.control.clear_faults(None);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sip_trunk_call_ends_by_the_providers_record_if_its_webhook_is_lost() {
    let stage = Stage::start(Setup::default()).await;
    stage.control.set_webhook_loss(1.0);
    let answer = elevenlabs(&stage, "/elevenlabs/v1/convai/sip-trunk/outbound-call", &[], &order("+15550002001")).await;
    assert_eq!(answer.status, 200);
    let record = stage.record(&id(&answer, "conversation_id")).await.unwrap();
    assert_eq!(record.alias("sip_call_id"), answer.json()["sip_call_id"].as_str());
    assert_eq!(
        (record.attributes.operation.as_str(), record.attributes.carrier.as_ref()),
        ("sip_trunk_outbound_call", None)
    );
    once(&stage, record.id.as_str(), "the sweep sees it live", |r| r.phase == Phase::Live).await;
    stage.control.end_call(&id(&answer, "conversation_id"));
    let ended = once(&stage, record.id.as_str(), "it ends", |r| r.phase == Phase::Ended).await;
    assert_eq!((ended.outcome, ended.proof), (Some(Outcome::Completed), Some(EndProof::Provider)));
    stage.finish().await;
}

/// Busy, silent and unreachable numbers (the simulator's 0001, 0002 and 0003).
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_nobody_answers_end_with_the_providers_word() {
    let stage = Stage::start(Setup::default()).await;
    for (to, outcome) in
        [("+15550000001", Outcome::Busy), ("+15550000002", Outcome::NoAnswer), ("+15550000003", Outcome::Failed)]
    {
        let el = stage.dial(None, to).await;
        let tw = talk(&stage, to, &[]).await;
        for call in [id(&el, "conversation_id"), id(&tw, "sid")] {
            let ended = once(&stage, &call, "it ends", |r| r.phase == Phase::Ended).await;
            // ElevenLabs' own record says no more than "failed": a sweep may come before the webhook.
            let fits = ended.outcome == Some(outcome)
                || (ended.attributes.provider == "elevenlabs" && ended.proof == Some(EndProof::Provider));
            assert!(fits, "{to}: {ended:?}");
        }
    }
    all_free(&stage).await;
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_twilio_call_goes_through_its_phases_by_callbacks() {
    let sim = SimSettings { dial_ms: Millis::exactly(400), ring_ms: Millis::exactly(400), ..Setup::default().sim };
    let stage = Stage::start(Setup { sim, ..Setup::default() }).await;
    blind(&stage.control);
    let room = "Conferences/daily/Participants.json";
    for (path, operation, sid) in [("Calls.json", "calls", "sid"), (room, "participants", "call_sid")] {
        let answer = twilio(&stage, path, None, "+15550002001", &[("Twiml", TALK)]).await;
        assert_eq!(answer.status, 201);
        let sid = id(&answer, sid);
        let record = stage.record(&sid).await.unwrap();
        assert_eq!((record.attributes.operation.as_str(), record.attributes.account.as_str()), (operation, "twilio"));
        assert_eq!(
            (record.attributes.own_number.as_deref(), record.attributes.carrier.as_ref()),
            (Some("+15550001111"), None)
        );
        for phase in [Phase::Dialing, Phase::Ringing, Phase::Live] {
            let seen = once(&stage, &sid, "the next phase comes", |r| r.phase >= phase).await;
            assert_eq!(seen.phase, phase, "{path}");
        }
        stage.control.end_call(&sid);
        let ended = once(&stage, &sid, "it ends", |r| r.phase == Phase::Ended).await;
        assert_eq!((ended.outcome, ended.proof), (Some(Outcome::Completed), Some(EndProof::Webhook)), "{path}");
    }
    assert_eq!(stage.held().await, 0);
    stage.control.clear_faults(None);
    stage.finish().await;
}

// === what the provider gets ===

/// An account whose provider writes down what it gets, without credentials: it is never asked.
pub fn account_at(name: &str, provider: &str, url: &str) -> String {
    format!("[accounts.{name}]\nprovider = \"{provider}\"\nupstream = \"{url}\"\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_reaches_the_provider_as_the_app_sent_it_with_the_calls_id_in_it() {
    let calls = AtomicU32::new(0);
    let provider = Behind::replying(Box::new(move |_| {
        let n = calls.fetch_add(1, Ordering::Relaxed);
        let body = json!({"success": true, "conversation_id": format!("conv_mirror_{n}"), "callSid": null});
        http::Response::builder().header("x-of-provider", "kept").body(body.to_string().into()).unwrap()
    }))
    .await;
    // The prefix of the upstream's own path is kept, the mount's is not.
    let tables = account_at("mirror", "elevenlabs", &format!("{}/base", provider.url()));
    let tables = format!("{tables}[businesses.acme]\nplan = \"PRO\"\n[businesses.birch]\nplan = \"PAYG\"");
    let stage = Stage::start(Setup { tables, ..Setup::default() }).await;
    let sent = json!({"zeta": 1, "to_number": "+15550002001", "agent_id": "agent_acme", "agent_phone_number_id": "phnum_1",
        "conversation_initiation_client_data": {"dynamic_variables": {"name": "Zoë \u{1F600}", "n": 7}, "user_id": "u1"}, "alpha": [1.5, null]});
    let path = "/v1/convai/twilio/outbound-call";
    let headers = [("x-business-id", "acme"), ("x-of-app", "kept"), ("user-agent", "elevenlabs/2.78.0")];
    let answer = elevenlabs(&stage, &format!("/mirror{path}?trace=1"), &headers, &sent).await;
    assert_eq!((answer.status, answer.header("x-of-provider")), (200, Some("kept")));
    assert_eq!(answer.json()["conversation_id"], "conv_mirror_0");

    let got = provider.got().pop().unwrap();
    assert_eq!((got.method.as_str(), got.path_and_query.as_str()), ("POST", &*format!("/base{path}?trace=1")));
    assert!(!got.headers.contains_key("x-business-id"), "{:?}", got.headers);
    assert!(got.headers["x-of-app"] == "kept" && got.headers["user-agent"] == "elevenlabs/2.78.0");
    assert_eq!(got.headers["xi-api-key"], stage.control.settings().el_api_key.as_str());
    assert_eq!(got.headers["host"], provider.url().trim_start_matches("http://"));
    let record = stage.record("conv_mirror_0").await.unwrap();
    let mut wanted = sent.clone();
    wanted["conversation_initiation_client_data"]["dynamic_variables"]["ringfence_call"] = record.id.as_str().into();
    assert_eq!(String::from_utf8_lossy(&got.body), wanted.to_string(), "order and values are the app's");

    // The business in the path is taken off, too; a body without client data gets it.
    let answer = elevenlabs(&stage, &format!("/b/birch/mirror{path}"), &[], &order("+15550002002")).await;
    assert_eq!(answer.status, 200);
    let got = provider.got().pop().unwrap();
    assert_eq!(got.path_and_query, format!("/base{path}"));
    let body: Value = serde_json::from_slice(&got.body).unwrap();
    let own = body["conversation_initiation_client_data"]["dynamic_variables"]["ringfence_call"].as_str().unwrap();
    assert_eq!(stage.record(own).await.unwrap().attributes.business.as_str(), "birch");
    stage.finish().await;
}

// === routing ===

#[tokio::test(flavor = "multi_thread")]
async fn requests_find_their_account_by_mount_by_host_and_below_a_business() {
    let tables = "[businesses.acme]\nplan = \"PRO\"\n[businesses.birch]\nplan = \"PRO\"".to_owned();
    let stage = Stage::start(Setup { tables, ..Setup::default() }).await;
    let path = "/v1/convai/twilio/outbound-call";
    let by_host = [("host", "api.elevenlabs.io"), ("x-business-id", "acme")];
    let below = format!("/b/birch/elevenlabs{path}");
    for (path, headers, business) in [(path, &by_host[..], "acme"), (&below, &[], "birch")] {
        let answer = elevenlabs(&stage, path, headers, &order("+15550002001")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let record = stage.record(&id(&answer, "conversation_id")).await.unwrap();
        assert_eq!(record.attributes.business.as_str(), business);
    }
    let sid = stage.control.settings().account_sid;
    let authorization = basic(&stage.control);
    let headers = [("authorization", authorization.as_str()), ("host", "api.twilio.com")];
    let listed = stage.send("GET", &stage.api(&format!("/2010-04-01/Accounts/{sid}/Calls.json")), &headers, "").await;
    assert_eq!((listed.status, listed.json()["calls"].as_array().map(Vec::len)), (200, Some(2)));

    let unknown = stage.send("POST", &stage.api("/nowhere/v1/x"), &[], "").await;
    assert_eq!((unknown.status, unknown.json()["error"].as_str()), (404, Some("UNKNOWN_ROUTE")));
    assert_eq!(unknown.header("content-type"), Some("application/json"));
    stage.finish().await;
}

/// Other ways to write a create's path are creates too.
#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_of_a_create_goes_around_the_gate() {
    let provider = Behind::replying(Box::new(|got| {
        let xml = format!(
            "<TwilioResponse><Call><Sid>CA{}</Sid><Status>queued</Status></Call></TwilioResponse>",
            got.path_and_query.len()
        );
        http::Response::builder().status(201).header("content-type", "application/xml").body(xml.into()).unwrap()
    }))
    .await;
    let tables = account_at("twin", "twilio", &provider.url()) + &account_at("eleven", "elevenlabs", &provider.url());
    let setup = Setup { root: "concurrent = 1".to_owned(), tables, ..Setup::default() };
    let stage = Stage::start(setup).await;
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let dial =
        async |path: &str| stage.send("POST", &stage.api(path), &form, "To=%2B15550002001&From=%2B15550001111").await;
    let plain = dial("/twin/2010-04-01/Accounts/AC1/Calls").await;
    assert_eq!((plain.status, stage.held().await), (201, 1));
    let sid = format!("CA{}", "/2010-04-01/Accounts/AC1/Calls".len());
    let record = stage.record(&sid).await.unwrap();
    assert_eq!((record.phase, record.attributes.operation.as_str(), record.polled), (Phase::Queued, "calls", false));
    for path in [
        "/twin/2010-04-01/Accounts/AC1/Calls.json/",
        "/twin/2010-04-01/Accounts/AC1/C%61lls.json",
        "/twin/2010-04-01/Accounts/AC1/Conferences/a%2Fb/Participants.json",
        "/twin/2010-04-01/Accounts/AC1/Conferences/room/Participants",
        "/eleven/v1/convai/twilio/outbound%2Dcall",
        "/eleven/v1/convai/sip-trunk/outbound-call/",
    ] {
        assert_eq!(dial(path).await.status, 503, "{path}");
    }
    assert_eq!(provider.got().len(), 1);
    stage.finish().await;
}

// === what passes ===

#[tokio::test(flavor = "multi_thread")]
async fn what_creates_nothing_passes_untouched_both_ways() {
    let provider = Behind::replying(Box::new(|got| {
        http::Response::builder().status(207).header("x-of-provider", "kept").body(got.body.clone()).unwrap()
    }))
    .await;
    let stage =
        Stage::start(Setup { tables: account_at("mirror", "elevenlabs", &provider.url()), ..Setup::default() }).await;
    let large = Bytes::from(pattern(6 << 20));
    let url = stage.api("/mirror/v1/speech-to-text?model=a%20b&x=");
    let headers = [("content-type", "application/octet-stream"), ("x-business-id", "acme"), ("x-of-app", "kept")];
    let answer = stage.send("POST", &url, &headers, large.clone()).await;
    assert_eq!((answer.status, answer.header("x-of-provider")), (207, Some("kept")));
    assert!(answer.body == large, "{} bytes came back", answer.body.len());
    let got = provider.got().pop().unwrap();
    assert_eq!(got.path_and_query, "/v1/speech-to-text?model=a%20b&x=");
    assert!(got.body == large && got.headers["x-of-app"] == "kept" && !got.headers.contains_key("x-business-id"));

    // A create of more than a megabyte is none.
    let answer =
        elevenlabs(&stage, "/elevenlabs/v1/convai/twilio/outbound-call", &[], &json!("x".repeat(2 << 20))).await;
    assert_eq!((answer.status, answer.json()["error"].as_str()), (413, Some("BODY_TOO_LARGE")));
    assert_eq!((stage.control.counts().creates_el, stage.held().await), (0, 0));
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_sent_events_come_as_they_are_sent() {
    bounded(Box::pin(async {
        let provider = server(|mut wire| async move {
            let Some(head) = wire.head().await else { return };
            assert!(head.starts_with("GET /v1/stream?x=1 "), "{head}");
            wire.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            wire.send("9\r\ndata: 1\n\n\r\n").await;
            // The second goes out only once the app has the first and is gone.
            wire.until_closed().await;
        })
        .await;
        let tables = account_at("mirror", "elevenlabs", &format!("http://{provider}"));
        let stage = Stage::start(Setup { tables, ..Setup::default() }).await;
        let mut app = Wire::connect(stage.app().api()).await;
        app.send("GET /mirror/v1/stream?x=1 HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n").await;
        let head = app.head().await.unwrap().to_lowercase();
        assert!(head.contains(" 200 ") && head.contains("text/event-stream"), "{head}");
        assert_eq!(app.chunk().await.unwrap(), b"data: 1\n\n");
        drop(app);
        stage.finish().await;
    }))
    .await;
}

/// The monitor socket of ElevenLabs, through the mount: what it commands happens.
#[tokio::test(flavor = "multi_thread")]
async fn websockets_pass_through_the_mount() {
    let stage = Stage::start(Setup::default()).await;
    let conversation = id(&stage.dial(None, "+15550002001").await, "conversation_id");
    once(&stage, &conversation, "it is live", |r| r.phase == Phase::Live).await;
    let url = stage.api(&format!("/elevenlabs/v1/convai/conversations/{conversation}/monitor"));
    let mut request = url.replacen("http", "ws", 1).into_client_request().unwrap();
    request.headers_mut().insert("xi-api-key", stage.control.settings().el_api_key.parse().unwrap());
    let (mut socket, _) = tokio_tungstenite::connect_async(request).await.unwrap();
    let first = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
    assert!(first.to_text().unwrap().contains("agent_response"), "{first:?}");
    socket.send(Frame::text(r#"{"command_type":"end_call"}"#)).await.unwrap();
    assert!(stage.control.wait_call(PATIENCE, &conversation, |c| c.ended_by == Some("monitor")).await);
    all_free(&stage).await;
    drop(socket);
    stage.finish().await;
}
