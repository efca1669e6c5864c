//! What is kept of calls after their end, from the webhook or asked for; what the app is told by events of ringfence's own.

use base64::Engine as _;
use ringfence::simulate::{Millis, SimSettings, sign};
use serde_json::{Value, json};

use crate::support::hooks::now_secs;
use crate::support::stage::{Answer, Behind, Setup, Stage};

const POST_CALL: &str = "/webhooks/elevenlabs/post-call";
const TO: &str = "+15550002222";
const EVENTS_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Calls in these tests end at the providers when they are told to; nobody else finds out.
fn setup(tables: &str) -> Setup {
    Setup { tables: tables.to_owned(), ..Setup::default() }
}

/// Nothing comes of itself: neither webhooks nor look-ups of live calls.
fn by_hand(tables: &str) -> Setup {
    let replace = vec![("sweep_ms = 100".to_owned(), "sweep_ms = 60000".to_owned())];
    Setup { sim: SimSettings { webhook_loss: 1.0, ..Setup::default().sim }, replace, ..setup(tables) }
}

/// A post-call payload as ElevenLabs documents it.
fn payload(conversation: &str) -> Value {
    json!({"type": "post_call_transcription", "event_timestamp": now_secs(), "data": {
        "agent_id": "agent_acme", "conversation_id": conversation, "status": "done",
        "transcript": [{"role": "agent", "message": "Hello", "time_in_call_secs": 0}],
        "metadata": {"start_time_unix_secs": 1_760_000_000, "call_duration_secs": 42, "cost": 420,
            "phone_call": {"call_result": "answered", "direction": "outbound"}},
        "analysis": {"call_successful": "success", "transcript_summary": "They said hello.",
            "evaluation_criteria_results": {}, "data_collection_results": {}},
    }})
}

async fn post_raw(stage: &Stage, body: &str) -> Answer {
    let signature = sign::elevenlabs(&stage.control.settings().el_webhook_secret, now_secs(), body.as_bytes());
    let headers = [("content-type", "application/json"), ("elevenlabs-signature", signature.as_str())];
    stage.send("POST", &stage.webhooks(POST_CALL), &headers, body.to_owned()).await
}

async fn post(stage: &Stage, body: &Value) -> Answer {
    post_raw(stage, &body.to_string()).await
}

/// A call that is up; its conversation id.
async fn dialled(stage: &Stage) -> String {
    let answer = stage.dial(None, TO).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["conversation_id"].as_str().unwrap().to_owned()
}

async fn shown(stage: &Stage, id: &str) -> Value {
    stage.ask(&format!("/api/calls/{id}")).await
}

async fn fetch(stage: &Stage, id: &str) -> Answer {
    stage.send("POST", &stage.admin(&format!("/conversations/{id}/fetch")), &[], "").await
}

// === seed 002, 4.1 to 4.3 and 4.12 ===

#[tokio::test(flavor = "multi_thread")]
async fn t4_1_post_call_webhooks_are_answered_200_and_end_their_call() {
    let stage = Stage::start(by_hand("")).await;
    let conversation = dialled(&stage).await;
    for _ in 0..2 {
        let answer = post(&stage, &payload(&conversation)).await;
        assert_eq!((answer.status, answer.json()), (200, json!({"received": true})));
    }
    let call = shown(&stage, &conversation).await;
    assert_eq!(
        (&call["phase"], &call["outcome"], &call["proof"]),
        (&json!("ended"), &json!("completed"), &json!("webhook"))
    );
    assert_eq!((stage.held().await, &call["record"]["complete"]), (0, &json!(true)));
    let metrics = stage.ask("/metrics").await;
    let counted = r#"ringfence_post_call_records_total{account="elevenlabs",came="webhook"} 1"#;
    assert!(metrics.as_str().unwrap().contains(counted), "once, however often it comes");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t4_2_what_a_post_call_webhook_tells_is_stored() {
    let stage = Stage::start(by_hand("")).await;
    let conversation = dialled(&stage).await;
    assert_eq!(shown(&stage, &conversation).await["record"], Value::Null);
    let body = payload(&conversation);
    assert_eq!(post(&stage, &body).await.status, 200);
    let record = shown(&stage, &conversation).await["record"].clone();
    assert_eq!(record["transcript_summary"], "They said hello.");
    assert_eq!((&record["call_duration_seconds"], &record["cost"]), (&json!(42), &json!(420.0)));
    assert_eq!(record["call_successful"], true);
    assert_eq!(
        (&record["analysis_data"], &record["metadata_json"]),
        (&body["data"]["analysis"], &body["data"]["metadata"])
    );
    assert_eq!(record["transcript_json"], body["data"]["transcript"]);
    assert_eq!(record["call_end_time"], "2025-10-09T08:54:02Z");
    assert_eq!(record["recorded_by"], "webhook");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t4_3_invalid_payloads_unknown_conversations_and_bad_signatures_are_told_apart() {
    let stage = Stage::start(by_hand("")).await;
    let (mut no_type, mut no_id) = (payload("conv_x"), payload("conv_x"));
    no_type.as_object_mut().unwrap().remove("type");
    no_id["data"].as_object_mut().unwrap().remove("conversation_id");
    let not_data = json!({"type": "post_call_transcription", "event_timestamp": 1, "data": "conv_x"});
    for invalid in ["", "{", "[]", "null", "{}", &no_type.to_string(), &no_id.to_string(), &not_data.to_string()] {
        let answer = post_raw(&stage, invalid).await;
        assert_eq!((answer.status, &answer.json()["error"]), (400, &json!("INVALID_PAYLOAD")), "{invalid}");
    }
    let unknown = post(&stage, &payload("conv_nobody_knows")).await;
    assert_eq!((unknown.status, &unknown.json()["error"]), (404, &json!("CALL_NOT_FOUND")));
    let (url, body) = (stage.webhooks(POST_CALL), payload("conv_x").to_string());
    let headers = [("content-type", "application/json"), ("elevenlabs-signature", "t=1,v0=00")];
    assert_eq!(stage.send("POST", &url, &headers, body).await.status, 401);
    // A workspace's webhook brings other things too.
    let other = json!({"type": "voice_library_removal_notice", "event_timestamp": 1, "data": {}});
    assert_eq!(post(&stage, &other).await.status, 200);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t4_12_a_post_call_webhook_needs_nobody_who_listens() {
    let stage = Stage::start(by_hand("")).await;
    let conversation = dialled(&stage).await;
    let mut bells = stage.app().calls().lifecycle.hub.listen();
    assert_eq!(post(&stage, &payload(&conversation)).await.status, 200);
    assert_eq!(shown(&stage, &conversation).await["record"]["complete"], true);
    // Who listens hears of the end, and of the record.
    let call = shown(&stage, &conversation).await["callId"].clone();
    for _ in 0..2 {
        assert_eq!(json!(bells.try_recv().unwrap()), call);
    }
    stage.finish().await;
}

// === before its call is known ===

#[tokio::test(flavor = "multi_thread")]
async fn a_post_call_webhook_of_an_unknown_conversation_is_applied_when_its_call_is_known() {
    let stage = Stage::start(by_hand("[records]\nunknown_status = 503\nwait_secs = 86400")).await;
    // A call that ringfence did not place: its conversation is known at the provider alone.
    let key = stage.control.settings().el_api_key;
    let body = json!({"agent_id": "agent_acme", "agent_phone_number_id": "phnum_1", "to_number": TO}).to_string();
    let headers = [("content-type", "application/json"), ("xi-api-key", key.as_str())];
    let url = stage.provider("/v1/convai/twilio/outbound-call");
    let placed = stage.send("POST", &url, &headers, body).await.json();
    let conversation = placed["conversation_id"].as_str().unwrap();
    assert_eq!(post(&stage, &payload(conversation)).await.status, 503, "as it is configured");
    // The order's answer comes late, and binds the id.
    let answer = stage.dial(None, "+15550002233").await.json();
    let own = answer["conversation_id"].as_str().unwrap();
    let call = stage.app().calls().lifecycle.store.resolve(&[alias(own)]).await.unwrap().unwrap();
    let lifecycle = &stage.app().calls().lifecycle;
    let bind = ringfence::store::Change { bind: vec![alias(conversation)], ..lifecycle.change(&call, "answer") };
    lifecycle.apply(bind).await.unwrap();
    stage
        .wait("the record is taken out of the inbox", async || {
            shown(&stage, conversation).await["record"]["complete"] == true
        })
        .await;
    // Sent again it is known.
    assert_eq!(post(&stage, &payload(conversation)).await.status, 200);
    stage.finish().await;
}

fn alias(conversation: &str) -> ringfence::ids::Alias {
    ringfence::ids::Alias::new("conversation_id", conversation).unwrap()
}

// === missing records ===

#[tokio::test(flavor = "multi_thread")]
async fn a_record_whose_webhook_is_lost_is_asked_for_until_the_provider_has_told_all() {
    let sim = SimSettings { webhook_loss: 1.0, analysis_ms: Millis::exactly(4_000), ..Setup::default().sim };
    let stage = Stage::start(Setup { sim, ..setup("[records]\nwait_secs = 1") }).await;
    let conversation = dialled(&stage).await;
    stage.wait("it is up", async || shown(&stage, &conversation).await["phase"] == "live").await;
    stage.control.end_call(&conversation);
    let record = async || shown(&stage, &conversation).await["record"].clone();
    stage.wait("it was asked for, and is not complete", async || record().await["complete"] == false).await;
    stage.wait("it is asked again", async || record().await["asked_again_at"].is_string()).await;
    let analysed = async || {
        let key = stage.control.settings().el_api_key;
        let url = stage.provider(&format!("/v1/convai/conversations/{conversation}"));
        stage.send("GET", &url, &[("xi-api-key", key.as_str())], "").await.json()["status"] == "done"
    };
    stage.wait("the provider has analysed it", analysed).await;
    stage.clock.advance_ms(31_000);
    stage.wait("the record is complete", async || record().await["complete"] == true).await;
    let record = record().await;
    assert!(record["transcript_summary"].is_string() && record["asked_again_at"].is_null(), "{record}");
    assert_eq!((&record["recorded_by"], &record["call_successful"]), (&json!("poll"), &json!(true)));
    let metrics = stage.ask("/metrics").await;
    assert!(metrics.as_str().unwrap().contains(r#"records_total{account="elevenlabs",came="asked"} 1"#));
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twilio_tells_the_length_and_is_asked_for_the_price() {
    let stage = Stage::start(setup("[records]\nwait_secs = 1")).await;
    let answer = stage.dial_twilio(None, TO, &[]).await;
    let sid = answer.json()["sid"].as_str().unwrap().to_owned();
    stage.wait("it is up", async || shown(&stage, &sid).await["phase"] == "live").await;
    stage.control.end_call(&sid);
    stage.wait("the price is known", async || shown(&stage, &sid).await["record"]["cost"].is_number()).await;
    let record = shown(&stage, &sid).await["record"].clone();
    assert_eq!(
        (&record["cost"], &record["cost_unit"], &record["complete"]),
        (&json!(0.0085), &json!("USD"), &json!(true))
    );
    assert!(record["call_duration_seconds"].is_u64() && record["call_end_time"].is_string(), "{record}");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_is_fetched_on_demand() {
    let stage = Stage::start(by_hand("[records]\nwait_secs = 86400")).await;
    let conversation = dialled(&stage).await;
    stage.control.end_call(&conversation);
    stage
        .wait("it is fetched", async || {
            let answer = fetch(&stage, &conversation).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            answer.json()["record"]["complete"] == true
        })
        .await;
    let fetched = fetch(&stage, &conversation).await.json();
    assert_eq!(fetched["conversation_id"], conversation.as_str());
    assert_eq!(shown(&stage, &conversation).await["record"], fetched["record"]);
    for unknown in ["conv_nobody_knows", "%00", ""] {
        assert_eq!(fetch(&stage, unknown).await.status, 404, "{unknown:?}");
    }
    use ringfence::simulate::{Fault, FaultKind, Provider};
    stage.control.fault(Fault {
        n: None,
        on: ringfence::simulate::Operation::Get,
        ..Fault::next(Provider::ElevenLabs, FaultKind::ServerError, 9)
    });
    let failed = fetch(&stage, &conversation).await;
    assert_eq!((failed.status, &failed.json()["error"]), (502, &json!("PROVIDER_FAILED")));
    assert_eq!(shown(&stage, &conversation).await["record"], fetched["record"], "it is kept");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_is_not_kept_where_that_is_configured() {
    for mode in ["none", "hash"] {
        let stage = Stage::start(by_hand(&format!("[privacy]\ntranscripts = \"{mode}\""))).await;
        let conversation = dialled(&stage).await;
        assert_eq!(post(&stage, &payload(&conversation)).await.status, 200);
        let record = shown(&stage, &conversation).await["record"].clone();
        assert!(!record.to_string().to_lowercase().contains("hello"), "{mode}: {record}");
        for part in ["transcript_summary", "analysis_data", "transcript_json"] {
            assert_eq!(record[part].to_string().contains("sha256:"), mode == "hash", "{part}: {record}");
        }
        assert_eq!((&record["call_duration_seconds"], &record["complete"]), (&json!(42), &json!(true)));
        stage.finish().await;
    }
}

// === events of our own ===

/// Checks a signature as the specification's libraries do.
fn is_signed(got: &crate::support::stage::Got) -> bool {
    let header = |name: &str| got.headers.get(name).unwrap().to_str().unwrap().to_owned();
    let key = base64::engine::general_purpose::STANDARD.decode(EVENTS_SECRET.strip_prefix("whsec_").unwrap()).unwrap();
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key);
    let message = [format!("{}.{}.", header("webhook-id"), header("webhook-timestamp")).as_bytes(), &got.body].concat();
    let signature = header("webhook-signature");
    let signature = base64::engine::general_purpose::STANDARD.decode(signature.strip_prefix("v1,").unwrap()).unwrap();
    ring::hmac::verify(&key, &message, &signature).is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_app_is_told_of_calls_in_one_shape_signed_and_in_order() {
    let failed = std::sync::atomic::AtomicBool::new(false);
    let app = Behind::replying(Box::new(move |got| {
        let mut answer = http::Response::new(bytes::Bytes::new());
        // The first try of the first event fails.
        if got.path_and_query == "/told" && !failed.swap(true, std::sync::atomic::Ordering::SeqCst) {
            *answer.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
        }
        answer
    }))
    .await;
    let events = format!("[app]\nevents_url = \"{}/told\"\nevents_secret = \"{EVENTS_SECRET}\"", app.url());
    let stage = Stage::start(Setup { root: "concurrent = 1".to_owned(), ..by_hand(&events) }).await;
    let conversation = dialled(&stage).await;
    assert_eq!(stage.dial(None, "+15550002233").await.status, 503);
    assert_eq!(post(&stage, &payload(&conversation)).await.status, 200);
    let told = || app.at("/told").iter().map(|got| serde_json::from_slice(&got.body).unwrap()).collect::<Vec<Value>>();
    let kinds = || told().iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    stage.wait("the app is told of all", async || kinds().iter().any(|kind| kind == "call.recorded")).await;
    assert!(app.at("/told").iter().all(is_signed));
    let of_call: Vec<String> = kinds().into_iter().filter(|kind| kind != "call.refused").collect();
    let expected = ["call.admitted", "call.admitted", "call.ended", "call.recorded"];
    let first_is_refused = of_call.len() == 3;
    assert_eq!(of_call, expected[usize::from(first_is_refused)..], "in order, the first twice if its first try failed");
    let ids: std::collections::BTreeSet<String> =
        app.at("/told").iter().map(|got| got.headers["webhook-id"].to_str().unwrap().to_owned()).collect();
    assert_eq!(ids.len(), 4, "a second try has the id of the first");
    let call = shown(&stage, &conversation).await;
    for event in told().iter().filter(|event| event["type"] != "call.refused") {
        assert_eq!((&event["data"]["callId"], &event["data"]["businessId"]), (&call["callId"], &json!("default")));
    }
    let last = told().last().unwrap().clone();
    assert_eq!(last["data"]["record"]["transcript_summary"], "They said hello.");
    assert_eq!(last["data"]["ids"]["conversation_id"], conversation.as_str());
    let refused = told().into_iter().find(|event| event["type"] == "call.refused").unwrap();
    assert_eq!(refused["data"]["reason"], "GLOBAL_CAPACITY_EXCEEDED");
    stage.finish().await;
}
