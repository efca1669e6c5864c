//! Outbound calls that go wrong: what providers answer, answers that are lost or late, apps that hang up, restarts.

use ringfence::call::{EndProof, Outcome, Phase};
use ringfence_simulator::{Fault, FaultKind, Millis, Provider, SimSettings};
use serde_json::{Value, json};

use crate::outbound::{EXCHANGE_MS, TALK, account_at, all_free, blind, elevenlabs, id, once, order, talk};
use crate::support::hooks::{VOICE, call_form, twilio};
use crate::support::net::Wire;
use crate::support::stage::{Answer, Behind, Setup, Stage};

/// The next create at a provider goes wrong.
fn next(stage: &Stage, provider: Provider, kind: FaultKind) {
    stage.control.fault(Fault::next(provider, kind, 1));
}

async fn slow(stage: &Stage, provider: Provider, ms: u64) {
    stage.control.fault(Fault { ms, ..Fault::next(provider, FaultKind::Slow, 1) });
}

/// The one record.
async fn only(stage: &Stage) -> ringfence::store::CallRecord {
    let mut all = stage.app().calls().lifecycle.store.latest_calls(10).await.unwrap();
    assert_eq!(all.len(), 1, "{all:#?}");
    all.remove(0)
}

/// Waits until both accounts were swept a few times.
async fn several_sweeps(stage: &Stage) {
    let before = stage.control.counts().list_requests;
    stage.wait("a few sweeps", async || stage.control.counts().list_requests > before + 12).await;
}

async fn dial_either(stage: &Stage, provider: Provider, to: &str) -> Answer {
    match provider {
        Provider::ElevenLabs => stage.dial(None, to).await,
        Provider::Twilio => talk(stage, to, &[]).await,
    }
}

const BOTH: [Provider; 2] = [Provider::ElevenLabs, Provider::Twilio];

// === answers that say no ===

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_the_provider_become_503_in_its_own_words_and_free_the_slot() {
    let stage = Stage::start(Setup::default()).await;
    let cases = [
        (Provider::ElevenLabs, FaultKind::TooManyConcurrent, "60", json!("too_many_concurrent_requests")),
        (Provider::ElevenLabs, FaultKind::SystemBusy, "5", json!("service_unavailable")),
        (Provider::ElevenLabs, FaultKind::RateLimited, "60", json!("rate_limit_exceeded")),
        (Provider::Twilio, FaultKind::RateLimited, "1", json!(20429)),
    ];
    for (provider, kind, wait, word) in &cases {
        next(&stage, *provider, *kind);
        let answer = dial_either(&stage, *provider, "+15550002001").await;
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some(*wait)), "{kind:?}");
        let body = answer.json();
        let (error, shown) = match provider {
            Provider::ElevenLabs => ("ELEVENLABS_429_RATE_LIMIT", &body["detail"]["status"]),
            Provider::Twilio => ("PROVIDER_429", &body["code"]),
        };
        assert_eq!((&body["error"], shown, &body["called"]), (&json!(error), word, &json!(false)), "{kind:?}");
        assert_eq!(stage.held().await, 0);
    }
    let ends = stage.app().calls().lifecycle.store.latest_calls(10).await.unwrap();
    let not_created = (Some(Outcome::NotCreated), Some(EndProof::Provider));
    assert!(ends.len() == 4 && ends.iter().all(|r| (r.outcome, r.proof) == not_created), "{ends:#?}");
    let metrics = stage.ask("/api/concurrent-metrics").await;
    assert_eq!((&metrics["elevenlabs429Count"], &metrics["totalRejections"]), (&json!(3), &json!(4)));
    assert_eq!(metrics["rejectionsByReason"], json!({"ELEVENLABS_429_RATE_LIMIT": 3, "PROVIDER_429": 1}));
    // The provider's own wish comes first; a sleeping SDK gets one second, the body what is so.
    for (headers, shown) in [(&[][..], "17"), (&[("x-fern-sdk-name", "elevenlabs")][..], "1")] {
        let mut fault = Fault::next(Provider::ElevenLabs, FaultKind::TooManyConcurrent, 1);
        fault.retry_after = Some(17);
        stage.control.fault(fault);
        let path = "/elevenlabs/v1/convai/twilio/outbound-call";
        let answer = elevenlabs(&stage, path, headers, &order("+15550002001")).await;
        assert_eq!((answer.header("retry-after"), &answer.json()["retryAfter"]), (Some(shown), &json!(17)));
    }
    stage.finish().await;
}

/// The word that tells what is full stands in `status`, in `code`, or in both.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_provider_is_no_full_limit_wherever_it_says_so() {
    let bodies = [
        (json!({"detail": {"code": "system_busy", "message": "busy"}}), "5"),
        (json!({"detail": {"status": "system_busy"}}), "5"),
        (json!({"detail": {"type": "rate_limit_error", "code": "system_busy", "status": null}}), "5"),
        (json!({"detail": {"code": "concurrent_limit_exceeded"}}), "60"),
    ];
    for (body, wait) in bodies {
        let shown = body.to_string();
        let answer = shown.clone();
        let provider = Behind::replying(Box::new(move |_| {
            let response = http::Response::builder().status(429).header("content-type", "application/json");
            response.body(answer.clone().into()).unwrap()
        }))
        .await;
        let tables = account_at("busy", "elevenlabs", &provider.url());
        let stage = Stage::start(Setup { tables, ..Setup::default() }).await;
        let answer = elevenlabs(&stage, "/busy/v1/convai/twilio/outbound-call", &[], &order("+15550002001")).await;
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some(wait)), "{shown}");
        stage.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_the_provider_pass_unchanged_and_free_the_slot() {
    let stage = Stage::start(Setup::default()).await;
    let cases = [
        (Provider::ElevenLabs, FaultKind::PaymentRequired, 402, "/detail/code", json!("insufficient_credits")),
        (Provider::ElevenLabs, FaultKind::QuotaExceeded, 401, "/detail/code", json!("quota_exceeded")),
        (Provider::ElevenLabs, FaultKind::Invalid, 422, "/detail/0/type", json!("missing")),
        (Provider::ElevenLabs, FaultKind::SuccessFalse, 200, "/success", json!(false)),
        (Provider::Twilio, FaultKind::QuotaExceeded, 401, "/code", json!(20003)),
        (Provider::Twilio, FaultKind::Invalid, 400, "/code", json!(21211)),
    ];
    for (provider, kind, status, at, value) in &cases {
        next(&stage, *provider, *kind);
        let answer = dial_either(&stage, *provider, "+15550002001").await;
        assert_eq!((answer.status, answer.json().pointer(at)), (*status, Some(value)), "{kind:?}");
        assert!(answer.header("x-ringfence-refusal").is_none() && answer.json().get("called").is_none());
        assert_eq!(stage.held().await, 0, "{kind:?}");
    }
    assert_eq!(stage.ask("/api/concurrent-metrics").await["totalRejections"], 0, "these are not refusals of ours");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_cannot_be_reached_has_dialled_nothing() {
    let closed = std::net::SocketAddr::from(([127, 0, 0, 1], ringfence::net::spare_port()));
    let tables = account_at("dead", "elevenlabs", &format!("http://{closed}"));
    let stage = Stage::start(Setup { tables, ..Setup::default() }).await;
    let answer = elevenlabs(&stage, "/dead/v1/convai/twilio/outbound-call", &[], &order("+15550002001")).await;
    assert_eq!((answer.status, &answer.json()["error"]), (503, &json!("CALL_INITIATION_FAILED")));
    assert_eq!((&answer.json()["called"], stage.held().await), (&json!(false), 0));
    let record = only(&stage).await;
    assert_eq!((record.outcome, record.proof), (Some(Outcome::NotCreated), Some(EndProof::Provider)));
    let passed = stage.send("GET", &stage.api("/dead/v1/models"), &[], "").await;
    assert_eq!((passed.status, &passed.json()["error"]), (502, &json!("UPSTREAM_UNREACHABLE")));
    stage.finish().await;
}

// === answers that are lost ===

fn assert_unknown(answer: &Answer, provider: Provider) {
    let status = if provider == Provider::ElevenLabs { 424 } else { 504 };
    assert_eq!((answer.status, answer.header("retry-after")), (status, None), "{answer:?}");
    let body = answer.json();
    assert_eq!((&body["error"], &body["called"]), (&json!("CALL_OUTCOME_UNKNOWN"), &json!("unknown")));
}

/// The call exists: found by the variable or by its numbers, it is bound, counted, and ends as any other.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_answer_was_lost_is_found_and_counted_to_its_end() {
    for provider in BOTH {
        for kind in [FaultKind::ServerErrorAfterCreate, FaultKind::AcceptThenDrop] {
            let stage = Stage::start(Setup::default()).await;
            // Callbacks would tell: the look-up must do without.
            stage.control.set_webhook_loss(1.0);
            next(&stage, provider, kind);
            assert_unknown(&dial_either(&stage, provider, "+15550002001").await, provider);
            assert_eq!(stage.held().await, 1, "{provider:?} {kind:?}: the slot is held");
            let (sim, ours) = (stage.control.calls().remove(0), only(&stage).await);
            let found = once(&stage, ours.id.as_str(), "it is found", |r| !r.unsettled && !r.aliases.is_empty()).await;
            match provider {
                Provider::ElevenLabs => assert_eq!(found.alias("conversation_id"), sim.conversation_id.as_deref()),
                Provider::Twilio => assert_eq!(found.alias("call_sid"), sim.call_sid.as_deref()),
            }
            assert_eq!(stage.held().await, 1);
            // The carrier lists it, too, and no order is young any more: it must not be met as a stranger.
            once(&stage, ours.id.as_str(), "its carrier's id is learnt", |r| r.alias("call_sid").is_some()).await;
            stage.clock.advance_ms(40_000);
            several_sweeps(&stage).await;
            assert_eq!((stage.held().await, only(&stage).await.phase), (1, Phase::Live), "it is counted once");
            stage.control.end_call(&sim.call_sid.unwrap());
            let ended = once(&stage, ours.id.as_str(), "it ends", |r| r.phase == Phase::Ended).await;
            assert_eq!((ended.outcome, ended.proof), (Some(Outcome::Completed), Some(EndProof::Provider)));
            assert_eq!(stage.control.calls().len(), 1, "nothing was dialled twice");
            stage.finish().await;
        }
    }
}

/// Two orders to one number at once, both answers lost: each finds a call of its own.
#[tokio::test(flavor = "multi_thread")]
async fn lost_answers_to_one_number_find_different_calls() {
    let stage = Stage::start(Setup::default()).await;
    stage.control.set_webhook_loss(1.0);
    stage.control.fault(Fault::next(Provider::Twilio, FaultKind::ServerErrorAfterCreate, 2));
    let lost = tokio::join!(talk(&stage, "+15550002001", &[]), talk(&stage, "+15550002001", &[]));
    for answer in [lost.0, lost.1] {
        assert_unknown(&answer, Provider::Twilio);
    }
    stage
        .wait("both are bound", async || {
            let open = stage.app().calls().lifecycle.store.open_calls().await.unwrap();
            open.len() == 2 && open.iter().all(|r| r.alias("call_sid").is_some())
        })
        .await;
    for call in stage.control.calls() {
        stage.control.end_call(&call.call_sid.unwrap());
    }
    all_free(&stage).await;
    stage.finish().await;
}

/// Nothing was created: seen absent twice, the slot is free.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_create_that_made_nothing_is_freed_after_two_lookups() {
    for provider in BOTH {
        let stage = Stage::start(Setup::default()).await;
        next(&stage, provider, FaultKind::ServerError);
        assert_unknown(&dial_either(&stage, provider, "+15550002001").await, provider);
        let record = only(&stage).await;
        assert!(record.unsettled && stage.held().await == 1);
        let absent = once(&stage, record.id.as_str(), "it is not found", |r| r.absent_at.is_some()).await;
        assert_eq!(stage.held().await, 1, "once is no proof");
        let ended = once(&stage, record.id.as_str(), "it is given up", |r| r.phase == Phase::Ended).await;
        assert_eq!((ended.outcome, ended.proof), (Some(Outcome::NotCreated), Some(EndProof::Deadline)));
        let apart_ms = ended.ended_at.unwrap() - absent.absent_at.unwrap();
        assert!(apart_ms >= 1_000, "{apart_ms} ms between the look-ups");
        assert!(stage.control.calls().is_empty());
        // An end is on record a moment before its slot is free.
        all_free(&stage).await;
        stage.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn success_without_ids_keeps_the_slot_until_the_call_is_found() {
    let stage = Stage::start(Setup::default()).await;
    stage.control.set_webhook_loss(1.0);
    blind(&stage.control);
    next(&stage, Provider::ElevenLabs, FaultKind::NullIds);
    let answer = stage.dial(None, "+15550002001").await;
    assert_eq!((answer.status, &answer.json()["conversation_id"]), (200, &Value::Null), "the answer is the provider's");
    let record = only(&stage).await;
    assert!(record.unsettled && record.aliases.is_empty() && record.phase == Phase::Dialing);
    assert_eq!(stage.held().await, 1);
    stage.control.clear_faults(None);
    let found = once(&stage, record.id.as_str(), "it is found", |r| !r.unsettled).await;
    let sim = stage.control.calls().remove(0);
    assert_eq!(found.alias("conversation_id"), sim.conversation_id.as_deref());
    stage.control.end_call(&sim.call_sid.unwrap());
    all_free(&stage).await;
    stage.finish().await;
}

// === answers that are late ===

#[tokio::test(flavor = "multi_thread")]
async fn the_app_is_answered_at_its_timeout_and_the_late_answer_still_binds_the_ids() {
    let stage = Stage::start(Setup { timeouts: "create_secs = 1".to_owned(), ..Setup::default() }).await;
    blind(&stage.control);
    stage.control.set_webhook_loss(1.0);
    for (provider, kind) in [(Provider::ElevenLabs, "conversation_id"), (Provider::Twilio, "call_sid")] {
        slow(&stage, provider, 6_000).await;
        let started = std::time::Instant::now();
        assert_unknown(&dial_either(&stage, provider, "+15550002001").await, provider);
        assert!(started.elapsed().as_millis() < 5_000, "{:?}", started.elapsed());
        let mut records = stage.app().calls().lifecycle.store.latest_calls(10).await.unwrap();
        let record = records.remove(0);
        assert!(record.unsettled && record.aliases.is_empty(), "{record:#?}");
        let bound = once(&stage, record.id.as_str(), "the late answer binds", |r| r.alias(kind).is_some()).await;
        assert!(!bound.unsettled && bound.seen_by.as_str() == "answer");
    }
    assert_eq!(stage.held().await, 2);
    stage.control.clear_faults(None);
    stage.finish().await;
}

/// An inbound call waits for its conversation. The app's request for one is answered at the time-out while the provider's answer is
/// still on its way: until then the call belongs to that request, and another one for the same numbers is a call of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_joined_by_one_request_alone_until_the_late_answer_has_come() {
    let app = Behind::replying(Box::new(|_| {
        let response = http::Response::builder().header("content-type", "text/xml");
        response.body("<Response><Pause length=\"60\"/></Response>".into()).unwrap()
    }))
    .await;
    let setup = Setup { timeouts: "create_secs = 1".to_owned(), app: Some(app.url()), ..Setup::default() };
    let stage = Stage::start(setup).await;
    blind(&stage.control);
    let answer = twilio(&stage, VOICE, &call_form("CA1", "inbound", "ringing")).await;
    assert_eq!((answer.status, stage.held().await), (200, 1));
    let join = async |agent: &str| {
        let body = json!({"agent_id": agent, "from_number": "+15550003301", "to_number": "+15550001101"});
        elevenlabs(&stage, "/elevenlabs/v1/convai/twilio/register-call", &[], &body).await
    };
    slow(&stage, Provider::ElevenLabs, 3_000).await;
    assert_unknown(&join("agent_acme").await, Provider::ElevenLabs);
    assert_eq!(stage.held().await, 1, "it joined the caller's call");
    let second = join("agent_other").await;
    assert_eq!((second.status, stage.held().await), (200, 2), "{second:?}");
    let first = once(&stage, &stage.record("CA1").await.unwrap().id.to_string(), "the late answer binds", |r| {
        r.alias("conversation_id").is_some()
    })
    .await;
    assert_eq!(first.aliases.iter().filter(|a| a.kind == "conversation_id").count(), 1, "{first:#?}");
    stage.control.clear_faults(None);
    stage.finish().await;
}

/// While ElevenLabs has not answered, its carrier lists the call already: it is ours, not a stranger.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_its_carrier_lists_before_the_creates_answer_is_counted_once() {
    let stage = Stage::start(Setup::default()).await;
    slow(&stage, Provider::ElevenLabs, 1_500).await;
    let answer = stage.dial(None, "+15550002001").await;
    assert_eq!(answer.status, 200);
    several_sweeps(&stage).await;
    assert_eq!(stage.held().await, 1);
    assert_eq!(only(&stage).await.alias("call_sid"), answer.json()["callSid"].as_str());
    stage.control.end_call(&id(&answer, "conversation_id"));
    all_free(&stage).await;
    stage.finish().await;
}

/// As long as the exchange is open the provider may carry the create out: that look-ups find nothing proves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_its_provider_holds_is_not_given_up() {
    let sim = SimSettings { tw_list_lag_ms: 600_000, ..Setup::default().sim };
    let timeouts = "create_secs = 1\ncreate_read_secs = 4".to_owned();
    let setup = Setup { sim, timeouts, root: "concurrent = 1".to_owned(), ..Setup::default() };
    let stage = Stage::start(setup).await;
    stage.control.set_webhook_loss(1.0);
    // Twice as long as two look-ups need to prove that a call does not exist.
    slow(&stage, Provider::Twilio, 3_500).await;
    assert_unknown(&talk(&stage, "+15550002001", &[]).await, Provider::Twilio);
    let first = only(&stage).await;
    let bound = once(&stage, first.id.as_str(), "its ids are learnt", |r| r.alias("call_sid").is_some()).await;
    assert!(!bound.over_limit && bound.phase != Phase::Ended && !bound.exchange_over, "{bound:#?}");
    assert_eq!((only(&stage).await.id, stage.held().await), (first.id, 1));
    stage.control.end_call(bound.alias("call_sid").unwrap());
    all_free(&stage).await;
    // The exchange is given up without an answer: from then on look-ups prove that there is no call.
    slow(&stage, Provider::Twilio, 600_000).await;
    assert_unknown(&talk(&stage, "+15550002002", &[]).await, Provider::Twilio);
    let second = stage.app().calls().lifecycle.store.open_calls().await.unwrap().remove(0);
    let over = once(&stage, second.id.as_str(), "the exchange is over", |r| r.exchange_over).await;
    assert_eq!((over.phase, over.absent_at), (Phase::Reserved, None), "{over:#?}");
    let ended = once(&stage, second.id.as_str(), "it is given up", |r| r.phase == Phase::Ended).await;
    assert_eq!((ended.outcome, ended.proof), (Some(Outcome::NotCreated), Some(EndProof::Deadline)));
    stage.finish().await;
}

/// The provider's list lags, so the order is given up; then its answer comes after all: an over-limit call, counted to its end.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_after_the_order_was_given_up_counts_as_an_overrun() {
    let sim = SimSettings { tw_list_lag_ms: 600_000, ..Setup::default().sim };
    let setup =
        Setup { sim, timeouts: "create_secs = 1".to_owned(), root: "concurrent = 1".to_owned(), ..Setup::default() };
    let stage = Stage::start(setup).await;
    stage.control.set_webhook_loss(1.0);
    slow(&stage, Provider::Twilio, 5_000).await;
    assert_unknown(&talk(&stage, "+15550002001", &[]).await, Provider::Twilio);
    let first = only(&stage).await;
    stage.clock.advance_ms(EXCHANGE_MS);
    let ended = once(&stage, first.id.as_str(), "it is given up", |r| r.phase == Phase::Ended).await;
    assert_eq!((ended.proof, stage.held().await), (Some(EndProof::Deadline), 0));
    stage.wait("the late answer makes it count again", async || stage.held().await == 1).await;
    let sid = stage.control.calls().remove(0).call_sid.unwrap();
    let again = once(&stage, &sid, "it is known by its id", |r| r.id != first.id).await;
    assert!(again.over_limit && again.phase != Phase::Ended, "{again:#?}");
    let metrics = stage.ask("/metrics").await;
    assert!(metrics.as_str().unwrap().contains("\nringfence_over_limit_calls 1\n"), "shown apart");
    assert_eq!(stage.ask("/api/concurrent-metrics").await["activeCalls"], 0);
    assert_eq!(talk(&stage, "+15550002002", &[]).await.status, 503, "it blocks admissions");
    stage.control.end_call(&sid);
    all_free(&stage).await;
    stage.finish().await;
}

/// The end overtakes the create's answer: it ends the call once and for all.
#[tokio::test(flavor = "multi_thread")]
async fn an_end_before_the_creates_answer_frees_the_slot_for_good() {
    for (provider, to, outcome) in [
        (Provider::Twilio, "+15550002001", Outcome::Completed),
        (Provider::ElevenLabs, "+15550002001", Outcome::Completed),
        // Its failure event names the conversation alone, which nobody knows before the answer.
        (Provider::ElevenLabs, "+15550000001", Outcome::Busy),
    ] {
        let sim = SimSettings { talk_ms: Millis::exactly(50), ..Setup::default().sim };
        let stage = Stage::start(Setup { sim, ..Setup::default() }).await;
        blind(&stage.control);
        slow(&stage, provider, 1_000).await;
        let answer = dial_either(&stage, provider, to).await;
        assert!(matches!(answer.status, 200 | 201), "{answer:?}");
        let sid = if provider == Provider::Twilio { id(&answer, "sid") } else { id(&answer, "conversation_id") };
        let record = once(&stage, &sid, "it is over", |r| r.phase == Phase::Ended).await;
        assert_eq!((record.outcome, record.proof), (Some(outcome), Some(EndProof::Webhook)), "{provider:?} {to}");
        assert_eq!(only(&stage).await.id, record.id, "one call, one record");
        assert_eq!(stage.held().await, 0);
        stage.control.clear_faults(None);
        stage.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_hangs_up_leaves_a_call_that_is_counted_and_known() {
    let stage = Stage::start(Setup::default()).await;
    blind(&stage.control);
    stage.control.set_webhook_loss(1.0);
    slow(&stage, Provider::ElevenLabs, 600).await;
    let (body, key) = (order("+15550002001").to_string(), stage.control.settings().el_api_key);
    let mut app = Wire::connect(stage.app().api()).await;
    let head = format!(
        "POST /elevenlabs/v1/convai/twilio/outbound-call HTTP/1.1\r\nHost: a\r\nxi-api-key: {key}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    app.send(head + &body).await;
    stage.wait("the provider has it", async || stage.control.counts().creates_el == 1).await;
    drop(app);
    let record = only(&stage).await;
    let bound = once(&stage, record.id.as_str(), "its ids are learnt", |r| r.alias("conversation_id").is_some()).await;
    assert_eq!((bound.phase, bound.seen_by.as_str(), stage.held().await), (Phase::Dialing, "answer", 1));
    stage.control.clear_faults(None);
    stage.control.end_call(bound.alias("conversation_id").unwrap());
    all_free(&stage).await;
    stage.finish().await;
}

// === operators ===

#[tokio::test(flavor = "multi_thread")]
async fn operators_hang_up_calls_and_release_slots() {
    let stage = Stage::start(Setup::default()).await;
    let post = async |call: &str, act: &str, body: &str| {
        stage.send("POST", &stage.admin(&format!("/api/calls/{call}/{act}")), &[], body.to_owned()).await
    };
    for provider in BOTH {
        let answer = dial_either(&stage, provider, "+15550002001").await;
        let name = if provider == Provider::Twilio { "sid" } else { "conversation_id" };
        let call = id(&answer, name);
        once(&stage, &call, "it is live", |r| r.phase == Phase::Live).await;
        let hung = post(&call, "hangup", "").await;
        assert_eq!((hung.status, &hung.json()["result"]), (200, &json!("over")), "{hung:?}");
        let sim = stage.control.call(&call).unwrap();
        assert_eq!((sim.live, sim.ended_by), (false, Some("twilio")), "it is over at the provider");
        all_free(&stage).await;
        assert_eq!(post(&call, "hangup", "").await.json()["result"], "over", "twice is once");
    }
    let sid = id(&talk(&stage, "+15550002001", &[]).await, "sid");
    for body in ["", "{}", r#"{"force":true}"#, r#"{"force":true,"reason":" "}"#] {
        assert_eq!(post(&sid, "release", body).await.status, 400, "{body}");
    }
    assert_eq!(stage.held().await, 1);
    assert_eq!(post(&sid, "release", r#"{"force":true,"reason":"a test"}"#).await.status, 200);
    let released = stage.record(&sid).await.unwrap();
    assert_eq!((released.proof, stage.held().await), (Some(EndProof::Operator), 0));
    several_sweeps(&stage).await;
    assert_eq!(stage.held().await, 0, "what an operator freed stays free, though the call goes on");
    assert_eq!(post("c_nobody", "hangup", "").await.status, 404);
    stage.finish().await;
}

// === restarts ===

/// An exchange under way is finished within the drain's grace: its app gets the answer, its call is on record.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_finishes_the_creates_that_are_under_way() {
    let mut stage = Stage::start(Setup::default()).await;
    slow(&stage, Provider::ElevenLabs, 800).await;
    let (body, key) = (order("+15550002001").to_string(), stage.control.settings().el_api_key);
    let mut app = Wire::connect(stage.app().api()).await;
    // In two chunks, as clients that stream their bodies send them.
    let (one, two) = body.split_at(20);
    app.send(format!(
        "POST /elevenlabs/v1/convai/twilio/outbound-call HTTP/1.1\r\nHost: a\r\nxi-api-key: {key}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{one}\r\n{:x}\r\n{two}\r\n0\r\n\r\n",
        one.len(), two.len()
    ))
    .await;
    stage.wait("the provider has it", async || stage.control.counts().creates_el == 1).await;
    stage.stop_app().await;
    let answer = app.message().await.expect("an answer");
    let answered: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((answer.status(), &answered["success"]), (200, &json!(true)));
    stage.start_app().await;
    let record = stage.record(answered["conversation_id"].as_str().unwrap()).await.unwrap();
    assert_eq!((record.unsettled, stage.held().await), (false, 1));
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_every_call_and_settles_what_ended_meanwhile() {
    let mut stage = Stage::start(Setup { root: "concurrent = 4".to_owned(), ..Setup::default() }).await;
    let mut ids = vec![id(&stage.dial(None, "+15550002001").await, "conversation_id")];
    ids.push(id(&stage.dial(None, "+15550002002").await, "conversation_id"));
    ids.push(id(&talk(&stage, "+15550002003", &[]).await, "sid"));
    blind(&stage.control);
    stage.control.set_webhook_loss(1.0);
    next(&stage, Provider::ElevenLabs, FaultKind::AcceptThenDrop);
    assert_unknown(&stage.dial(None, "+15550002004").await, Provider::ElevenLabs);
    stage.stop_app().await;
    stage.control.end_call(&ids[1]);
    stage.start_app().await;
    assert_eq!((stage.app().rebuilt, stage.held().await), (4, 4));
    let full = stage.dial(None, "+15550002005").await;
    assert_eq!((full.status, &full.json()["currentActive"]), (503, &json!(4)), "the limit holds at once");
    stage.control.clear_faults(None);
    let ended = once(&stage, &ids[1], "the end is noticed", |r| r.phase == Phase::Ended).await;
    assert_eq!(ended.proof, Some(EndProof::Provider));
    stage
        .wait("the lost create is found", async || {
            stage.app().calls().lifecycle.store.open_calls().await.unwrap().iter().all(|r| !r.unsettled)
        })
        .await;
    assert_eq!((stage.held().await, stage.control.counts().both_live_now), (3, 3));
    assert_eq!(talk(&stage, "+15550002006", &[("Twiml", TALK)]).await.status, 201, "one slot is free again");
    for call in stage.control.calls().into_iter().filter(|c| c.live) {
        stage.control.end_call(&call.call_sid.unwrap());
    }
    all_free(&stage).await;
    stage.finish().await;
}

/// The drain's grace is too short for an exchange; the next process asks about its order at once, not at a deadline.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_whose_exchange_died_with_the_process_is_looked_up_after_the_start() {
    let mut stage = Stage::start(Setup::default()).await;
    stage.control.set_webhook_loss(1.0);
    blind(&stage.control);
    slow(&stage, Provider::ElevenLabs, 60_000).await;
    let (body, key) = (order("+15550002001").to_string(), stage.control.settings().el_api_key);
    let mut app = Wire::connect(stage.app().api()).await;
    app.send(format!(
        "POST /elevenlabs/v1/convai/twilio/outbound-call HTTP/1.1\r\nHost: a\r\nxi-api-key: {key}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ))
    .await;
    stage.wait("the provider has it", async || stage.control.counts().creates_el == 1).await;
    stage.stop_app().await;
    stage.control.clear_faults(None);
    stage.start_app().await;
    let record = only(&stage).await;
    assert_eq!(stage.held().await, 1);
    let found = once(&stage, record.id.as_str(), "it is found", |r| r.alias("conversation_id").is_some()).await;
    assert!(!found.unsettled);
    stage.control.end_call(found.alias("conversation_id").unwrap());
    all_free(&stage).await;
    stage.finish().await;
}

/// Sweeps share the app's rate at the provider: one that says 429 is asked less and less, until it answers again.
#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_says_429_to_sweeps_is_left_alone_for_longer_each_time() {
    let stage = Stage::start(Setup::default()).await;
    let answer = stage.dial(None, "+15550002001").await;
    for provider in BOTH {
        let on = ringfence_simulator::Operation::List;
        stage.control.fault(Fault { on, n: None, ..Fault::next(provider, FaultKind::RateLimited, 1) });
    }
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let metrics = stage.ask("/metrics").await;
    let failed = metrics
        .as_str()
        .unwrap()
        .lines()
        .filter(|l| l.starts_with("ringfence_sweeps_total") && l.contains("result=\"failed\""));
    let asked: u64 = failed.map(|l| l.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
    // Every 100 ms, they would be 60.
    assert!((2..=16).contains(&asked), "{asked} sweeps");
    stage.control.set_webhook_loss(1.0);
    stage.control.end_call(&id(&answer, "conversation_id"));
    stage.control.clear_faults(None);
    all_free(&stage).await;
    stage.finish().await;
}
