//! What is kept of calls after their end, from the webhook or asked for; what the app is told by events of ringfence's own.

use std::sync::Arc;

use base64::Engine as _;
use ringfence_simulator::{Millis, SimSettings, sign};
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
        "metadata": {"start_time_unix_secs": 1_760_000_000, "call_duration_secs": 42, "cost": 420, "cost_fiat": 0.084,
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

/// Whoever looks at a call sees no whole number, unless their token says so.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_of_records_are_masked_unless_the_token_says_whole() {
    let secret = "a secret of some length, for tests alone";
    let stage = Stage::start(by_hand(&format!("[admin]\ntoken_secret = \"{secret}\"\n"))).await;
    let conversation = dialled(&stage).await;
    stage.control.end_call(&conversation);
    let mut told = payload(&conversation);
    told["data"]["metadata"]["phone_call"]["external_number"] = "+15550007777".into();
    told["data"]["metadata"]["phone_call"]["agent_number"] = "15550008888".into();
    assert_eq!(post(&stage, &told).await.status, 200);
    stage.wait("the record is there", async || shown(&stage, &conversation).await["record"]["complete"] == true).await;
    let as_scope = async |scope: &str| {
        let claims = json!({"sub": "ops", "businesses": "*", "exp": now_secs() + 60, "scope": scope});
        let token = format!("Bearer {}", ringfence::jws::sign(secret.as_bytes(), &claims).unwrap());
        let url = stage.admin(&format!("/api/calls/{conversation}"));
        let answer = stage.send("GET", &url, &[("authorization", &token)], "").await;
        String::from_utf8_lossy(&answer.body).into_owned()
    };
    let masked = [shown(&stage, &conversation).await.to_string(), as_scope("read").await];
    for text in masked {
        assert!(!text.contains("0007777") && !text.contains("0008888") && text.contains("+155••••••77"), "{text}");
    }
    let whole = as_scope("read numbers").await;
    assert!(whole.contains("+15550007777") && whole.contains("15550008888"), "{whole}");
    stage.finish().await;
}

async fn fetch(stage: &Stage, id: &str) -> Answer {
    stage.send("POST", &stage.admin(&format!("/conversations/{id}/fetch")), &[], "").await
}

// === post-call webhooks (docs/post-call-records.md) ===

#[tokio::test(flavor = "multi_thread")]
async fn post_call_webhooks_are_answered_200_and_end_their_call() {
    let stage = Stage::start(by_hand("")).await;
    let conversation = dialled(&stage).await;
    for _ in 0..2 {
        let answer = post(&stage, &payload(&conversation)).await;
        // As ringfence answers everywhere, and as the systems before it did here.
        let sid = answer.json()["call_sid"].clone();
        assert!(sid.as_str().is_some_and(|sid| sid.starts_with("CA")), "{answer:?}");
        let told = json!({"received": true, "status": "success", "message": "Post-call data stored",
            "conversation_id": conversation, "call_sid": sid, "call_status": "completed"});
        assert_eq!((answer.status, answer.json()), (200, told));
    }
    let call = shown(&stage, &conversation).await;
    assert_eq!(
        (&call["phase"], &call["outcome"], &call["proof"]),
        (&json!("ended"), &json!("completed"), &json!("webhook"))
    );
    assert_eq!((stage.held().await, &call["record"]["complete"]), (0, &json!(true)));
    let metrics = stage.ask("/metrics").await;
    let counted = r#"ringfence_post_call_records_total{account="elevenlabs",source="webhook"} 1"#;
    assert!(metrics.as_str().unwrap().contains(counted), "once, however often it comes");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_post_call_webhook_tells_is_stored() {
    let stage = Stage::start(by_hand("")).await;
    let conversation = dialled(&stage).await;
    assert_eq!(shown(&stage, &conversation).await["record"], Value::Null);
    let body = payload(&conversation);
    assert_eq!(post(&stage, &body).await.status, 200);
    let record = shown(&stage, &conversation).await["record"].clone();
    assert_eq!(record["transcript_summary"], "They said hello.");
    assert_eq!((&record["call_duration_seconds"], &record["cost"]), (&json!(42), &json!(420.0)));
    assert_eq!((&record["call_successful"], &record["cost_fiat"]), (&json!(true), &json!(0.084)));
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
async fn invalid_payloads_unknown_conversations_and_bad_signatures_are_told_apart() {
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
    let told = (&unknown.json()["status"], &unknown.json()["details"], unknown.json()["message"].is_string());
    assert_eq!(told, (&json!("error"), &json!("CALL_NOT_FOUND"), true), "{unknown:?}");
    let unsigned = stage.send("POST", &stage.webhooks(POST_CALL), &[], payload("conv_9").to_string()).await;
    assert_eq!((unsigned.status, &unsigned.json()["status"]), (401, &json!("error")), "{unsigned:?}");
    let (url, body) = (stage.webhooks(POST_CALL), payload("conv_x").to_string());
    let headers = [("content-type", "application/json"), ("elevenlabs-signature", "t=1,v0=00")];
    assert_eq!(stage.send("POST", &url, &headers, body).await.status, 401);
    // A workspace's webhook brings other things too.
    let other = json!({"type": "voice_library_removal_notice", "event_timestamp": 1, "data": {}});
    assert_eq!(post(&stage, &other).await.status, 200);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_call_webhook_needs_nobody_who_listens() {
    let stage = Stage::start(by_hand("")).await;
    let conversation = dialled(&stage).await;
    let mut bells = stage.app().calls().lifecycle.hub.subscribe();
    assert_eq!(post(&stage, &payload(&conversation)).await.status, 200);
    assert_eq!(shown(&stage, &conversation).await["record"]["complete"], true);
    // Who listens hears of its ids, of the end, and of the record.
    let call = shown(&stage, &conversation).await["callId"].clone();
    for _ in 0..3 {
        assert_eq!(json!(bells.try_recv().unwrap().call), call);
    }
    stage.finish().await;
}

// === before its call is known ===

#[tokio::test(flavor = "multi_thread")]
async fn a_post_call_webhook_of_an_unknown_conversation_is_applied_when_its_call_is_known() {
    let stage = Stage::start(by_hand("[records]\nunknown_status = 503\nwait_secs = 86400")).await;
    // No sweep finds it: a call that its provider lists is counted at first sight.
    let conversation = "conv_known_later";
    assert_eq!(post(&stage, &payload(conversation)).await.status, 503, "as it is configured");
    // The order's answer comes late, and binds the id.
    let answer = stage.dial(None, "+15550002233").await.json();
    let own = answer["conversation_id"].as_str().unwrap();
    let call = stage.app().calls().lifecycle.store.resolve(&[alias(own)]).await.unwrap().unwrap();
    let lifecycle = &stage.app().calls().lifecycle;
    let bind = ringfence::store::Change {
        bind: vec![alias(conversation)],
        ..lifecycle.change(&call, ringfence::call::Source::Answer)
    };
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
    assert!(metrics.as_str().unwrap().contains(r#"records_total{account="elevenlabs",source="asked"} 1"#));
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twilio_tells_the_length_and_is_asked_for_the_price() {
    let stage = Stage::start(setup("[records]\nwait_secs = 1")).await;
    let answer = stage.dial_twilio(None, TO, &[]).await;
    let sid = answer.json()["sid"].as_str().unwrap().to_owned();
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
    use ringfence_simulator::{Fault, FaultKind, Provider};
    stage.clock.advance_ms(6_000);
    stage.control.fault(Fault {
        n: None,
        on: ringfence_simulator::Operation::Get,
        ..Fault::next(Provider::ElevenLabs, FaultKind::ServerError, 9)
    });
    let failed = fetch(&stage, &conversation).await;
    assert_eq!((failed.status, &failed.json()["error"]), (502, &json!("PROVIDER_FAILED")));
    assert_eq!(shown(&stage, &conversation).await["record"], fetched["record"], "it is kept");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_up_is_not_fetched_and_uses_up_no_try() {
    let stage = Stage::start(by_hand("[records]\nwait_secs = 86400")).await;
    let conversation = dialled(&stage).await;
    let answer = fetch(&stage, &conversation).await;
    assert_eq!((answer.status, &answer.json()["error"]), (409, &json!("CALL_IN_PROGRESS")), "{answer:?}");
    assert_eq!(answer.json()["conversation_id"], conversation.as_str());
    let call = shown(&stage, &conversation).await;
    assert_eq!((&call["record"], call["phase"] == "ended"), (&Value::Null, false), "nothing is kept");
    stage.control.end_call(&conversation);
    stage.clock.advance_ms(6_000);
    let answer = fetch(&stage, &conversation).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let call = shown(&stage, &conversation).await;
    let ended = (json!("ended"), json!("provider"));
    assert_eq!((call["phase"].clone(), call["proof"].clone()), ended, "as the lost webhook would have said");
    let store = stage.app().calls().lifecycle.store.clone();
    let id = store.resolve(&[alias(&conversation)]).await.unwrap().unwrap();
    assert_eq!(store.post_call(&id).await.unwrap().unwrap().tries, 0);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_conversation_is_asked_for_once_in_a_moment_and_a_limit_of_the_provider_is_passed_on() {
    use ringfence_simulator::{Fault, FaultKind, Operation, Provider};
    let stage = Stage::start(by_hand("[records]\nwait_secs = 86400")).await;
    let conversation = dialled(&stage).await;
    stage.control.end_call(&conversation);
    // Whoever asks while the first one is answered badly gets the same.
    let fault = Fault {
        retry_after: Some(7),
        on: Operation::Get,
        ..Fault::next(Provider::ElevenLabs, FaultKind::RateLimited, 1)
    };
    stage.control.fault(fault);
    let all = futures_util::future::join_all((0..8).map(|_| fetch(&stage, &conversation))).await;
    for answer in &all {
        assert_eq!((answer.status, &answer.json()["error"]), (503, &json!("ELEVENLABS_429_RATE_LIMIT")), "{answer:?}");
        assert_eq!((answer.header("retry-after"), &answer.json()["retryAfter"]), (Some("7"), &json!(7)));
    }
    assert_eq!(fetch(&stage, &conversation).await.status, 503, "it was asked a moment ago");
    stage.clock.advance_ms(6_000);
    assert_eq!(fetch(&stage, &conversation).await.status, 200);
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

#[tokio::test(flavor = "multi_thread")]
async fn a_post_call_webhook_that_comes_no_longer_is_noticed_before_its_provider_switches_it_off() {
    let stage = Stage::start(by_hand("[records]\nwait_secs = 1")).await;
    let hook = async || {
        let status = stage.ask("/status").await;
        let accounts = status["accounts"].as_array().unwrap();
        let hooks = &accounts.iter().find(|account| account["name"] == "elevenlabs").unwrap()["hooks"];
        assert_eq!((hooks.as_array().unwrap().len(), &hooks[0]["webhook"]), (1, &json!("events")), "{status}");
        hooks[0].clone()
    };
    assert_eq!((&hook().await["missedInARow"], &hook().await["late"]), (&json!(0), &json!(false)));
    let told = async || {
        let conversation = dialled(&stage).await;
        assert_eq!(post(&stage, &payload(&conversation)).await.status, 200);
        stage.clock.advance_ms(2_000);
    };
    told().await;
    let last_came_at = hook().await["lastCameAt"].clone();
    assert!(last_came_at.is_string(), "{last_came_at}");
    let key = stage.control.settings().el_api_key;
    for n in 1..=5 {
        let conversation = dialled(&stage).await;
        let answered = async || {
            let url = stage.provider(&format!("/v1/convai/conversations/{conversation}"));
            let headers = [("xi-api-key", key.as_str())];
            stage.send("GET", &url, &headers, "").await.json()["status"] == "in-progress"
        };
        stage.wait("it is answered", answered).await;
        stage.control.end_call(&conversation);
        assert_eq!(fetch(&stage, &conversation).await.status, 200);
        stage.clock.advance_ms(2_000);
        let hook = hook().await;
        assert_eq!((&hook["missedInARow"], &hook["late"]), (&json!(n), &json!(n == 5)), "{hook}");
        assert_eq!(hook["lastCameAt"], last_came_at);
    }
    let metric = async |wanted: &str| stage.ask("/metrics").await.as_str().unwrap().contains(wanted);
    let missed = r#"ringfence_webhook_missed_calls{account="elevenlabs",webhook="events"}"#;
    stage.wait("it is shown", async || metric(&format!("{missed} 5")).await).await;
    told().await;
    let hook = hook().await;
    assert_eq!((&hook["missedInARow"], &hook["late"]), (&json!(0), &json!(false)), "{hook}");
    assert_ne!(hook["lastCameAt"], last_came_at);
    stage.wait("it is shown", async || metric(&format!("{missed} 0")).await).await;
    stage.finish().await;
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
        // The first try of the call's first event fails.
        let is_first = got.body.windows(13).any(|word| word == b"call.admitted");
        if is_first && !failed.swap(true, std::sync::atomic::Ordering::SeqCst) {
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
    assert_eq!(of_call, ["call.admitted", "call.admitted", "call.ended", "call.recorded"], "in order, the first twice");
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

// === operators ===

fn cli(stage: &Stage, words: &[&str]) -> (bool, String) {
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_ringfence"))
        .args(words)
        .arg("--admin")
        .arg(stage.app().admin_socket().unwrap())
        .output()
        .unwrap();
    (out.status.success(), String::from_utf8(out.stdout).unwrap() + &String::from_utf8(out.stderr).unwrap())
}

/// Runs SQL past the program.
async fn execute(stage: &Stage, sql: &'static str) {
    match stage.postgres() {
        Some(url) => {
            let pool = sqlx::postgres::PgPool::connect(url).await.unwrap();
            let mut transaction = pool.begin_with("BEGIN; SET LOCAL search_path TO ringfence").await.unwrap();
            sqlx::query(sql).execute(&mut *transaction).await.unwrap();
            transaction.commit().await.unwrap();
        }
        None => {
            let status = stage.ask("/status").await;
            let record = rusqlite::Connection::open(status["store"]["path"].as_str().unwrap()).unwrap();
            record.busy_timeout(std::time::Duration::from_secs(5)).unwrap();
            record.execute(sql, []).unwrap();
        }
    }
}

/// Whose conversation it is cannot be read. Its webhook is taken, since it is on record, tried at each start, and does not keep the
/// program from starting; at last it is parked. Mended, it is applied when an operator says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_can_never_be_applied_is_parked_and_replayed_by_an_operator() {
    let app = Behind::start().await;
    let mut stage = Stage::start(Setup { app: Some(app.url()), ..by_hand("") }).await;
    let conversation = dialled(&stage).await;
    stage.control.end_call(&conversation);
    execute(&stage, "UPDATE call_aliases SET call_id = 'x' || call_id WHERE kind = 'conversation_id'").await;
    assert_eq!(post(&stage, &payload(&conversation)).await.status, 200);
    stage.wait("it is tried", async || stage.ask("/api/events").await["events"][0]["tries"] == 1).await;
    for tries in 2..=ringfence::webhooks::REPLAY_AGAIN_SECS.len() + 1 {
        stage.stop_app().await;
        stage.start_app().await;
        let listed = stage.ask("/api/events").await;
        assert_eq!(listed["events"][0]["tries"], tries, "{listed}");
    }
    let parked = stage.ask("/api/events?state=parked").await["events"][0].clone();
    assert!(parked["parkedAt"].is_string() && parked["error"].as_str().unwrap().contains("cannot be read"), "{parked}");
    let id = parked["id"].as_str().unwrap();
    assert!(cli(&stage, &["events", "list", "--state", "parked"]).1.contains("parked"));
    assert!(app.at(POST_CALL).is_empty(), "the app is told when it is applied");
    stage.stop_app().await;
    stage.start_app().await;
    assert_eq!(stage.ask("/api/events?state=parked").await["events"][0]["tries"], parked["tries"], "it rests");
    execute(&stage, "UPDATE call_aliases SET call_id = substr(call_id, 2) WHERE kind = 'conversation_id'").await;
    let (done, text) = cli(&stage, &["events", "replay", id]);
    assert!(done && text.contains(&format!("{id}: applied; its delivery is repeated.")), "{text}");
    assert_eq!(shown(&stage, &conversation).await["record"]["complete"], true);
    stage.wait("the app is told", async || app.at(POST_CALL).len() == 1).await;
    // The app lost it: it gets the same again, under the same id.
    let (done, text) = cli(&stage, &["events", "replay", id]);
    assert!(done, "{text}");
    stage.wait("the app is told again", async || app.at(POST_CALL).len() == 2).await;
    let ids: Vec<_> = app.at(POST_CALL).iter().map(|got| got.headers["x-ringfence-delivery"].clone()).collect();
    assert_eq!(ids[0], ids[1]);
    let event = stage.ask(&format!("/api/events/{id}")).await;
    assert_eq!((&event["outcome"], &event["parkedAt"]), (&json!("applied"), &Value::Null));
    assert_eq!(event["deliveries"].as_array().unwrap().len(), 1);
    let (found, text) = cli(&stage, &["events", "show", "ev_nobody"]);
    assert!(!found && text.contains("no event of this id"), "{text}");
    let audit = stage.ask("/api/audit").await;
    assert_eq!((&audit["audit"][0]["what"], &audit["audit"][0]["target"]), (&json!("replay"), &json!(id)));
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_that_is_given_up_is_replayed() {
    let up = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_up = up.clone();
    let app = Behind::replying(Box::new(move |_| {
        let mut answer = http::Response::new(bytes::Bytes::new());
        if !is_up.load(std::sync::atomic::Ordering::SeqCst) {
            *answer.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
        }
        answer
    }))
    .await;
    let stage = Stage::start(Setup { app: Some(app.url()), ..by_hand("") }).await;
    let conversation = dialled(&stage).await;
    assert_eq!(
        post(&stage, &payload(&conversation)).await.status,
        200,
        "an app that is down is no provider's business"
    );
    for tries in 1..=ringfence::webhooks::deliver::BACKOFF_SECS.len() + 1 {
        let tried = async || {
            let list = stage.ask("/api/events").await;
            let all = [&list["pending"], &list["givenUp"]].map(|some| some.as_array().unwrap().clone()).concat();
            all.first().is_some_and(|delivery| delivery["attempts"] == tries)
        };
        stage.wait("it is tried", tried).await;
        stage.clock.advance_ms(3 * 3_600_000);
    }
    let given_up = stage.ask("/api/events").await["givenUp"][0].clone();
    assert_eq!((&given_up["state"], &given_up["lastError"]), (&json!("given_up"), &json!("the app answered 500")));
    let (_, text) = cli(&stage, &["events", "list"]);
    assert!(text.contains("given up") && text.contains("the app answered 500"), "{text}");
    up.store(true, std::sync::atomic::Ordering::SeqCst);
    assert!(cli(&stage, &["events", "replay", given_up["eventId"].as_str().unwrap()]).0);
    stage.wait("it is there", async || stage.ask("/api/events").await["givenUp"] == json!([])).await;
    let bodies: std::collections::BTreeSet<_> = app.at(POST_CALL).iter().map(|got| got.body.clone()).collect();
    assert_eq!(bodies.len(), 1, "the same bytes each time");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_business_is_purged_by_an_operator_and_that_is_on_record() {
    let stage = Stage::start(by_hand("[businesses]\nunknown = \"PRO\"\nidentify_by = [\"header\"]")).await;
    let dial = async |business: &str, to: &str| {
        let answer = stage.dial(Some(business), to).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["conversation_id"].as_str().unwrap().to_owned()
    };
    let (ended, up, other) =
        (dial("acme", TO).await, dial("acme", "+15550002233").await, dial("other", "+15550002244").await);
    for conversation in [&ended, &other] {
        assert_eq!(post(&stage, &payload(conversation)).await.status, 200);
    }
    let (done, text) = cli(&stage, &["purge", "--business", "acme", "--reason", "they left"]);
    assert!(
        done && text
            .contains("acme: 1 calls, 1 webhooks, 0 deliveries, 0 refusals, 0 runs and 0 schedules are deleted."),
        "{text}"
    );
    let up_id = shown(&stage, &up).await["callId"].as_str().unwrap().to_owned();
    assert!(text.contains(&format!("These calls are open and stay: {up_id}.")), "{text}");
    let gone = stage.send("GET", &stage.admin(&format!("/api/calls/{ended}")), &[], "").await;
    assert_eq!(gone.status, 404);
    assert_eq!(shown(&stage, &other).await["record"]["complete"], true);
    assert_eq!(stage.send("POST", &stage.admin(&format!("/api/calls/{up}/hangup")), &[], "").await.status, 200);
    let release = json!({"force": true, "reason": "it hung"}).to_string();
    let url = stage.admin(&format!("/api/calls/{up}/release"));
    assert_eq!(stage.send("POST", &url, &[], release).await.status, 200);
    let audit = stage.ask("/api/audit").await["audit"].clone();
    let acts: Vec<_> = audit
        .as_array()
        .unwrap()
        .iter()
        .map(|a| (a["what"].clone(), a["target"].clone(), a["reason"].clone()))
        .collect();
    let expected = [
        ("release", up_id.as_str(), json!("it hung")),
        ("hung up", &up_id, Value::Null),
        ("hangup", &up_id, Value::Null),
        ("purged", "acme", json!("they left")),
        ("purge", "acme", json!("they left")),
    ];
    assert_eq!(acts, expected.map(|(what, target, reason)| (json!(what), json!(target), reason)));
    stage.finish().await;
}

/// What was said stays nowhere: neither in the record nor in the inbox nor in the outbox.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_what_was_said_are_forgotten_where_nothing_is_to_be_kept() {
    let app = Behind::start().await;
    let stage = Stage::start(Setup { app: Some(app.url()), ..by_hand("[privacy]\ntranscripts = \"none\"") }).await;
    let conversation = dialled(&stage).await;
    assert_eq!(post(&stage, &payload(&conversation)).await.status, 200);
    stage.wait("the app has it", async || app.at(POST_CALL).len() == 1).await;
    assert!(app.at(POST_CALL)[0].body.windows(5).any(|word| word == b"hello"), "the app gets it whole");
    stage.wait("no body is kept", async || payload_bytes(&stage).await.is_none()).await;
    let id = stage.ask("/api/events").await["events"][0]["id"].as_str().unwrap().to_owned();
    let event = async || stage.ask(&format!("/api/events/{id}")).await;
    stage.wait("that is on record", async || event().await["deliveries"][0]["state"] == "done").await;
    assert_eq!(event().await["bodyKept"], false);
    stage.finish().await;
}

/// A body that is still in the inbox or in the outbox.
async fn payload_bytes(stage: &Stage) -> Option<bytes::Bytes> {
    let store = &stage.app().calls().lifecycle.store;
    let events = stage.ask("/api/events").await["events"].clone();
    for event in events.as_array().unwrap() {
        let stored = store.stored_event(event["id"].as_str().unwrap()).await.unwrap().unwrap();
        if let Some(body) = stored.body {
            return Some(body.into());
        }
    }
    None
}

// === crashes ===

/// The process dies between receipt, application, acknowledgement and delivery: the next one applies the webhook once, and the app
/// is told at least once, always under the same ids.
async fn survives(point: &'static str) {
    use crate::support::child::Scene;
    use std::time::Duration;

    let mut scene = Scene::usual().await;
    let config = scene.folder().join("ringfence.toml");
    let url = scene.app.url();
    let events = format!("[app]\nevents_url = \"{url}/told\"\nevents_secret = \"{EVENTS_SECRET}\"");
    std::fs::write(&config, std::fs::read_to_string(&config).unwrap().replace("[app]", &events)).unwrap();
    scene.start_well().await;
    scene.control.set_webhook_loss(1.0);
    let conversation = scene.dial().await.unwrap().json()["conversation_id"].as_str().unwrap().to_owned();
    scene.wait("the app is told of it", async || !scene.app.at("/told").is_empty()).await;
    scene.kill();
    assert!(scene.start(&format!("{point}=abort")).await, "{}", scene.log());
    let body = payload(&conversation).to_string();
    let post = async |scene: &Scene| {
        let signature = sign::elevenlabs(&scene.control.settings().el_webhook_secret, now_secs(), body.as_bytes());
        let headers = [("content-type", "application/json"), ("elevenlabs-signature", signature.as_str())];
        scene.ask("webhooks", "POST", POST_CALL, &headers, body.clone()).await.map(|answer| answer.status)
    };
    let acknowledged = post(&scene).await;
    assert!(acknowledged.is_none_or(|status| status == 200), "{acknowledged:?}");
    assert!(scene.died(Duration::from_secs(10)).await.is_some(), "{point}: {}", scene.log());
    scene.start_well().await;
    if acknowledged.is_none() {
        // Its provider sends again what was not acknowledged.
        assert_eq!(post(&scene).await, Some(200));
    }
    let record = async || {
        let call = scene.ask("admin", "GET", &format!("/api/calls/{conversation}"), &[], "").await.unwrap().json();
        call["record"].clone()
    };
    scene.wait("the record is there", async || record().await["complete"] == true).await;
    assert_eq!(record().await["recorded_by"], "webhook");
    let recorded = || {
        let told = scene.app.at("/told").into_iter();
        told.filter(|got| got.body.windows(15).any(|word| word == b"\"call.recorded\"")).collect::<Vec<_>>()
    };
    scene.wait("the app has both", async || !scene.app.at(POST_CALL).is_empty() && !recorded().is_empty()).await;
    let ids = |all: Vec<crate::support::stage::Got>, name: &str| {
        all.iter().map(|got| got.headers[name].to_str().unwrap().to_owned()).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(ids(scene.app.at(POST_CALL), "x-ringfence-delivery").len(), 1, "{point}");
    assert_eq!(ids(recorded(), "webhook-id").len(), 1, "{point}: recorded once");
    assert!(scene.app.at(POST_CALL).iter().all(|got| got.body == body.as_bytes()));
    let events = scene.ask("admin", "GET", "/api/events", &[], "").await.unwrap().json();
    assert_eq!(events["events"].as_array().unwrap().len(), 1, "{point}: {events}");
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_between_receipt_and_acknowledgement_of_a_record_costs_nothing() {
    tokio::join!(
        survives("webhook.read"),
        survives("webhook.received"),
        survives("webhook.applied"),
        survives("webhook.settled")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_after_acknowledgement_or_during_delivery_of_a_record_costs_nothing() {
    tokio::join!(survives("webhook.answered"), survives("delivery.sent"), survives("delivery.noted"));
}

// === what each business wants kept ===

const TWO_BUSINESSES: &str = "[records]\nwait_secs = 1\n[businesses.acme]\nmax_calls = 5\ntranscripts = \"none\"\n\
    retention_days = 2\n[businesses.umbrella]\nmax_calls = 5\n";

async fn dialled_for(stage: &Stage, business: &str) -> String {
    let answer = stage.dial(Some(business), TO).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["conversation_id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_business_says_what_is_kept_of_its_calls_and_what_was_kept_before_goes() {
    let stage = Stage::start(by_hand(TWO_BUSINESSES)).await;
    let (none, all) = (dialled_for(&stage, "acme").await, dialled_for(&stage, "umbrella").await);
    for conversation in [&none, &all] {
        assert_eq!(post(&stage, &payload(conversation)).await.status, 200);
    }
    let summary = async |id: &str| shown(&stage, id).await["record"]["transcript_summary"].clone();
    assert_eq!((summary(&none).await, summary(&all).await), (Value::Null, json!("They said hello.")));
    let body = |transcripts: &str| json!({"max_calls": 5, "transcripts": transcripts}).to_string();
    let put = async |body: String| {
        let headers = [("content-type", "application/json")];
        stage.send("PUT", &stage.admin("/api/businesses/umbrella"), &headers, body).await
    };
    stage.clock.advance_ms(2_000);
    assert_eq!(put(body("hash")).await.status, 201);
    stage.wait("it is hashed", async || summary(&all).await.as_str().unwrap().starts_with("sha256:")).await;
    let hashed = summary(&all).await;
    assert_eq!(put(body("none")).await.status, 200);
    stage.wait("it is gone", async || summary(&all).await == Value::Null).await;
    let record = shown(&stage, &all).await["record"].clone();
    assert_eq!((&record["transcript_json"], &record["analysis_data"]), (&Value::Null, &Value::Null));
    assert_eq!((&record["call_duration_seconds"], &record["complete"]), (&json!(42), &json!(true)));
    let events = stage.ask("/api/events").await;
    let bodies = events["events"].as_array().unwrap().iter().filter(|event| event["has_body"] == true).count();
    assert_eq!(bodies, 0, "{hashed}: {events}");
    for (wrong, status) in
        [(r#"{"transcripts":"some"}"#, 400), (r#"{"retention_days":0}"#, 422), (r#"{"retention_days":3651}"#, 422)]
    {
        assert_eq!(put(wrong.to_owned()).await.status, status, "{wrong}");
    }
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_business_says_how_long_its_calls_are_kept() {
    const DAY_MS: i64 = 24 * 3_600_000;
    let mut stage = Stage::start(by_hand(TWO_BUSINESSES)).await;
    let (short, usual) = (dialled_for(&stage, "acme").await, dialled_for(&stage, "umbrella").await);
    for conversation in [&short, &usual] {
        stage.control.end_call(conversation);
        assert_eq!(post(&stage, &payload(conversation)).await.status, 200);
    }
    let known = async |stage: &Stage, id: &str| stage.record(id).await.is_some();
    for (days, short_stays, usual_stays) in [(1, true, true), (2, false, true), (28, false, false)] {
        stage.clock.advance_ms(days * DAY_MS);
        // It is looked at each start, and every hour.
        stage.stop_app().await;
        stage.start_app().await;
        for (id, stays) in [(&short, short_stays), (&usual, usual_stays)] {
            stage.wait("its age is looked at", async || known(&stage, id).await == stays).await;
        }
    }
    assert_eq!(stage.ask("/api/events").await["events"], json!([]), "with their webhooks");
    stage.finish().await;
}

/// Ids are the provider's own: whatever they are made of, a call is found by its id.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_found_by_ids_of_any_characters() {
    let stage =
        Stage::start(by_hand("[client]\ntoken_secret = \"the secret that the app signs its tokens with\"")).await;
    let token = crate::support::socket::token();
    for id in ["conv:1", "conv+1", "a/b/c", "c29tZQ==", "a:b+c/d=e", "sip:+1555@example.com;x=1", "100%"] {
        let event = crate::support::hooks::seed_event("conversation.started", id, "inbound");
        assert_eq!(crate::support::hooks::elevenlabs(&stage, &event).await.status, 200, "{id}");
        let encoded: String = form_urlencoded::byte_serialize(id.as_bytes()).collect();
        let raw = id.replace('%', "%25").replace(';', "%3B");
        for path in [&encoded, &raw] {
            let call = shown(&stage, path).await;
            assert_eq!(call["ids"]["conversation_id"], id, "{path}");
        }
        let url = stage.client(&format!("/calls/{encoded}?token={token}"));
        let call = stage.send("GET", &url, &[], "").await;
        assert_eq!((call.status, &call.json()["conversation_id"]), (200, &json!(id)), "{call:?}");
    }
    stage.finish().await;
}

/// A WhatsApp call has no telephone call in its metadata: its result stands with WhatsApp's.
#[tokio::test(flavor = "multi_thread")]
async fn the_result_of_a_whatsapp_call_is_its_outcome() {
    let stage = Stage::start(by_hand("")).await;
    let results = [("no_answer", "no_answer"), ("busy", "busy"), ("answered", "completed"), ("failed", "failed")];
    for (result, outcome) in results {
        let conversation = dialled(&stage).await;
        let mut body = payload(&conversation);
        body["data"]["metadata"]["phone_call"] = Value::Null;
        body["data"]["metadata"]["whatsapp"] =
            json!({"direction": "outbound", "whatsapp_user_id": "u", "call_result": result});
        assert_eq!(post(&stage, &body).await.status, 200);
        assert_eq!(shown(&stage, &conversation).await["outcome"], outcome, "{result}");
    }
    stage.finish().await;
}

/// Its sender is told that it cannot be used, as the systems before ringfence did. Its bytes are kept, counted, and go to the app.
#[tokio::test(flavor = "multi_thread")]
async fn a_post_call_webhook_that_cannot_be_read_is_400_and_kept() {
    let app = Behind::start().await;
    let stage = Stage::start(Setup { app: Some(app.url()), ..by_hand("") }).await;
    let conversation = dialled(&stage).await;
    let bodies = [
        format!("{{\"type\":\"post_call_transcription\",\"data\":{{\"conversation_id\":\"{conversation}\""),
        "<html>".to_owned(),
        "[".repeat(5_000),
    ];
    for body in &bodies {
        // The same bytes again are the same event.
        for _ in 0..2 {
            let answer = post_raw(&stage, body).await;
            assert_eq!((answer.status, &answer.json()["error"]), (400, &json!("INVALID_PAYLOAD")), "{answer:?}");
        }
    }
    let kept = crate::support::hooks::inbox(&stage).await;
    let of = |what: &str| kept.iter().filter(|(_, outcome, _)| outcome.as_deref() == Some(what)).count();
    assert_eq!((of("unreadable"), of("ignored"), kept.len()), (2, 1, bodies.len()), "{kept:?}");
    stage
        .wait("the app has them", async || {
            bodies.iter().all(|body| app.at(POST_CALL).iter().any(|got| got.body == *body))
        })
        .await;
    let metrics = stage.ask("/metrics").await;
    let counted = "ringfence_unreadable_total{account=\"elevenlabs\",flaw=\"unreadable\",source=\"webhook\"} 4";
    assert!(metrics.as_str().unwrap().contains(counted), "{metrics}");
    assert_eq!(stage.held().await, 1, "nothing was said of a call");
    stage.finish().await;
}
