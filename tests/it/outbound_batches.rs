//! Requests that make calls in other ways than one by one: batches, campaigns, Studio flows; and the smaller channels.

use std::collections::HashSet;
use std::time::Duration;

use ringfence::call::{EndProof, Origin, Outcome, Phase};
use ringfence::ids::{AccountName, Alias};
use ringfence::store::CallRecord;
use ringfence_simulator::{Fault, FaultKind, Millis, Provider, SimSettings};
use serde_json::{Value, json};

use crate::outbound::{TALK, all_free, basic, elevenlabs, id, once, order, talk};
use crate::support::stage::{Answer, Behind, Setup, Stage, grown};

const SUBMIT: &str = "/elevenlabs/v1/convai/batch-calling/submit";
const CAMPAIGNS: &str = "/elevenlabs/v1/convai/outbound-campaigns/campaigns";

async fn limited(concurrent: u32) -> Stage {
    Stage::start(Setup { root: format!("concurrent = {concurrent}"), ..Setup::default() }).await
}

fn recipients(numbers: impl IntoIterator<Item = u32>) -> Value {
    numbers.into_iter().map(|n| json!({"phone_number": format!("+1555{n:07}")})).collect()
}

/// A batch of calls that stay up.
fn batch(size: u32) -> Value {
    json!({"call_name": "a batch", "agent_id": "agent_acme", "agent_phone_number_id": "phnum_1",
        "recipients": recipients(2000..2000 + size)})
}

async fn submit(stage: &Stage, body: &Value) -> Answer {
    let answer = elevenlabs(stage, SUBMIT, &[], body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer
}

async fn post(stage: &Stage, path: &str) -> Answer {
    elevenlabs(stage, &format!("/elevenlabs/v1/convai/{path}"), &[], &Value::Null).await
}

/// Past ringfence, as a dashboard does it.
async fn directly(stage: &Stage, path: &str, body: &Value) -> Answer {
    let key = stage.control.settings().el_api_key;
    let headers = [("content-type", "application/json"), ("xi-api-key", key.as_str())];
    stage.send("POST", &stage.provider(&format!("/v1/convai/{path}")), &headers, body.to_string()).await
}

async fn records(stage: &Stage) -> Vec<CallRecord> {
    stage.app().calls().lifecycle.store.latest_calls(1000).await.unwrap()
}

/// Several sweeps of both accounts, in which members are judged and would be adopted.
async fn several_sweeps(stage: &Stage) {
    let before = stage.control.counts().list_requests;
    stage.wait("a few sweeps", async || stage.control.counts().list_requests > before + 30).await;
}

async fn talking(stage: &Stage, n: usize) -> Vec<String> {
    let live = || stage.control.calls().into_iter().filter(|c| c.live && c.answered);
    stage.wait("they talk", async || live().count() == n).await;
    live().filter_map(|c| c.conversation_id).collect()
}

/// As an app that tries again.
async fn until_admitted(send: impl AsyncFn() -> Answer) {
    let mut answer = send().await;
    while answer.status == 503 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        answer = send().await;
    }
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Everybody hangs up, again and again, until no place is held.
async fn hang_up_all(stage: &Stage) {
    stage
        .wait("every place is free", async || {
            for call in stage.control.calls().into_iter().filter(|c| c.live && c.answered) {
                stage.control.end_call(&call.conversation_id.or(call.call_sid).unwrap());
            }
            stage.held().await == 0
        })
        .await;
}

// === batches ===

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_cut_to_the_free_places_and_its_calls_are_counted_once() {
    let stage = limited(4).await;
    assert_eq!(talk(&stage, "+15550003000", &[("Twiml", TALK)]).await.status, 201);
    let answer = submit(&stage, &batch(8)).await;
    assert_eq!(answer.header("x-ringfence-slots"), Some("3/8"));
    assert_eq!(answer.json()["target_concurrency_limit"], 3, "what the provider was told");
    let record = stage.record(&id(&answer, "id")).await.unwrap();
    assert_eq!((record.slots, record.phase, record.unsettled), (3, Phase::Live, false));
    assert_eq!(
        (record.attributes.operation.as_str(), record.attributes.agent.as_deref()),
        ("batch_submit", Some("agent_acme"))
    );
    assert_eq!((record.alias("batch_id"), record.aliases.len()), (Some(id(&answer, "id").as_str()), 1));

    talking(&stage, 4).await;
    several_sweeps(&stage).await;
    assert_eq!((stage.held().await, records(&stage).await.len()), (4, 2), "its calls take no slots of their own");
    // Its carrier lists them too, by ids that it learns from the other account.
    let (carrier, known) = (AccountName::parse("twilio").unwrap(), stage.app().calls());
    let legs = stage.control.calls().into_iter().filter(|c| c.live && c.conversation_id.is_some());
    let legs: Vec<Alias> = legs.filter_map(|c| Alias::new("call_sid", &c.call_sid?)).collect();
    assert_eq!(legs.iter().filter(|leg| known.batch_members.contains(&carrier, leg)).count(), 3, "{legs:?}");
    let refused = stage.dial(None, "+15550003001").await;
    assert_eq!((refused.status, &refused.json()["currentActive"]), (503, &json!(4)));
    let refused = elevenlabs(&stage, SUBMIT, &[], &batch(2)).await;
    assert_eq!(refused.status, 503, "no place at all");
    let status = stage.ask("/status").await;
    assert_eq!((&status["gate"]["calls"], &status["accounts"][0]["inUse"]), (&json!(4), &json!(3)));

    hang_up_all(&stage).await;
    let ended = stage.record(record.id.as_str()).await.unwrap();
    assert_eq!((ended.outcome, ended.proof), (Some(Outcome::Completed), Some(EndProof::Provider)));
    let counts = stage.control.counts();
    assert_eq!(counts.creates_el, 8, "everybody was called");
    assert!(
        !legs.iter().any(|leg| stage.app().calls().batch_members.contains(&carrier, leg)),
        "who is over is forgotten"
    );
    assert!(counts.both_live_max <= 4, "{counts:?}");
    assert!(records(&stage).await.iter().all(|r| r.origin == Origin::Create), "nobody was taken for a stranger");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_fits_is_sent_as_it_came() {
    let stage = limited(9).await;
    for (body, slots) in [
        (batch(3), 3),
        (
            {
                let mut body = batch(8);
                body["target_concurrency_limit"] = json!(2);
                body
            },
            2,
        ),
    ] {
        let answer = submit(&stage, &body).await;
        assert_eq!(answer.header("x-ringfence-slots"), None);
        assert_eq!(answer.json()["target_concurrency_limit"], body["target_concurrency_limit"]);
        assert_eq!(stage.record(&id(&answer, "id")).await.unwrap().slots, slots);
    }
    assert_eq!(stage.held().await, 5);
    hang_up_all(&stage).await;
    for body in [json!({"call_name": "b", "agent_id": "a"}), json!("not an object")] {
        assert_eq!(elevenlabs(&stage, SUBMIT, &[], &body).await.status, 400, "{body} does not say how many");
    }
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_batch_keeps_its_places_until_nobody_talks() {
    let stage = limited(2).await;
    let batch_id = id(&submit(&stage, &batch(5)).await, "id");
    let talks = talking(&stage, 2).await;
    assert_eq!(post(&stage, &format!("batch-calling/{batch_id}/cancel")).await.json()["status"], "cancelled");
    several_sweeps(&stage).await;
    assert_eq!(stage.held().await, 2);
    stage.control.end_call(&talks[0]);
    several_sweeps(&stage).await;
    assert_eq!(stage.held().await, 2, "one still talks");
    stage.control.end_call(&talks[1]);
    all_free(&stage).await;
    let ended = stage.record(&batch_id).await.unwrap();
    assert_eq!((ended.outcome, ended.proof), (Some(Outcome::Canceled), Some(EndProof::Provider)));
    assert_eq!(stage.control.counts().creates_el, 2);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_in_the_middle_of_a_batch_keeps_its_places() {
    let mut stage = limited(2).await;
    let batch_id = id(&submit(&stage, &batch(3)).await, "id");
    talking(&stage, 2).await;
    several_sweeps(&stage).await;
    stage.stop_app().await;
    stage.start_app().await;
    assert_eq!((stage.app().rebuilt, stage.held().await), (1, 2));
    assert_eq!(stage.dial(None, "+15550003001").await.status, 503);
    several_sweeps(&stage).await;
    assert_eq!((stage.held().await, records(&stage).await.len()), (2, 1), "its calls are known again");
    hang_up_all(&stage).await;
    assert_eq!(stage.record(&batch_id).await.unwrap().proof, Some(EndProof::Provider));
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn observing_counts_a_batch_and_leaves_it_alone() {
    let setup = Setup { root: "mode = \"observe\"\nconcurrent = 1".to_owned(), ..Setup::default() };
    let stage = Stage::start(setup).await;
    let answer = submit(&stage, &batch(3)).await;
    assert_eq!(answer.json()["target_concurrency_limit"], Value::Null);
    assert_eq!((answer.header("x-ringfence-slots"), answer.header("x-ringfence-would-refuse")), (None, None));
    assert_eq!(stage.held().await, 3);
    let answer = submit(&stage, &batch(2)).await;
    assert_eq!(answer.header("x-ringfence-would-refuse"), Some("global"));
    assert_eq!(stage.held().await, 5);
    hang_up_all(&stage).await;
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_may_be_long_and_not_endless() {
    let stage = limited(1).await;
    let mut body = batch(2);
    body["recipients"][0]["conversation_initiation_client_data"] =
        json!({"dynamic_variables": {"x": "x".repeat(2 << 20)}});
    assert_eq!(submit(&stage, &body).await.header("x-ringfence-slots"), Some("1/2"));
    hang_up_all(&stage).await;
    let answer = elevenlabs(&stage, SUBMIT, &[], &json!("x".repeat(17 << 20))).await;
    assert_eq!((answer.status, answer.json()["error"].as_str()), (413, Some("BODY_TOO_LARGE")));
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_of_a_batchs_calls_go_to_the_app_and_change_nothing() {
    let app = Behind::start().await;
    let setup = Setup { root: "concurrent = 2".to_owned(), app: Some(app.url()), ..Setup::default() };
    let stage = Stage::start(setup).await;
    // One is busy, the others talk.
    let mut body = batch(2);
    body["recipients"] = recipients([1, 2001, 2002]);
    let batch_id = id(&submit(&stage, &body).await, "id");
    let talks = talking(&stage, 2).await;
    stage.control.end_call(&talks[0]);
    let told = || app.at("/api/webhooks/elevenlabs").len();
    stage.wait("the app has both events", async || told() == 2).await;
    several_sweeps(&stage).await;
    assert_eq!((stage.held().await, records(&stage).await.len()), (2, 1));
    stage.control.end_call(&talks[1]);
    all_free(&stage).await;
    stage.wait("and the last", async || told() == 3).await;
    assert_eq!(stage.record(&batch_id).await.unwrap().proof, Some(EndProof::Provider));
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submit_whose_answer_was_lost_is_found() {
    let stage = limited(2).await;
    stage.control.fault(Fault::next(Provider::ElevenLabs, FaultKind::AcceptThenDrop, 1));
    let answer = elevenlabs(&stage, SUBMIT, &[], &batch(4)).await;
    assert_eq!((answer.status, answer.json()["error"].as_str()), (424, Some("CALL_OUTCOME_UNKNOWN")));
    assert_eq!(stage.held().await, 2);
    let ours = records(&stage).await.remove(0);
    let found = once(&stage, ours.id.as_str(), "it is found", |r| r.alias("batch_id").is_some()).await;
    assert!(!found.unsettled && found.phase == Phase::Live);
    talking(&stage, 2).await;
    several_sweeps(&stage).await;
    assert_eq!((stage.held().await, records(&stage).await.len()), (2, 1));
    hang_up_all(&stage).await;
    stage.control.fault(Fault::next(Provider::ElevenLabs, FaultKind::ServerError, 1));
    assert_eq!(elevenlabs(&stage, SUBMIT, &[], &batch(3)).await.status, 424);
    let ours = records(&stage).await.remove(0);
    let ended = once(&stage, ours.id.as_str(), "it is given up", |r| r.phase == Phase::Ended).await;
    assert_eq!((ended.outcome, ended.proof), (Some(Outcome::NotCreated), Some(EndProof::Deadline)));
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_the_provider_refuses_gives_its_places_back() {
    let stage = limited(2).await;
    stage.control.fault(Fault::next(Provider::ElevenLabs, FaultKind::TooManyConcurrent, 1));
    assert_eq!(elevenlabs(&stage, SUBMIT, &[], &batch(4)).await.status, 503);
    stage.control.fault(Fault::next(Provider::ElevenLabs, FaultKind::Invalid, 1));
    assert_eq!(elevenlabs(&stage, SUBMIT, &[], &batch(4)).await.status, 422);
    assert_eq!(stage.held().await, 0);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_a_whatsapp_batch_are_its_own_though_they_look_like_text() {
    let stage = limited(2).await;
    let body = json!({"call_name": "b", "agent_id": "agent_acme",
        "whatsapp_params": {"whatsapp_phone_number_id": "w1", "whatsapp_call_permission_request_template_name": "t",
            "whatsapp_call_permission_request_template_language_code": "en"},
        "recipients": [{"whatsapp_user_id": "u1"}, {"whatsapp_user_id": "u2"}, {"whatsapp_user_id": "u3"}]});
    let answer = submit(&stage, &body).await;
    assert_eq!(answer.header("x-ringfence-slots"), Some("2/3"));
    let record = stage.record(&id(&answer, "id")).await.unwrap();
    assert_eq!((record.attributes.own_number.as_deref(), record.attributes.carrier), (Some("w1"), None));
    let talks = talking(&stage, 2).await;
    assert_eq!(post(&stage, &format!("batch-calling/{}/cancel", id(&answer, "id"))).await.status, 200);
    several_sweeps(&stage).await;
    assert_eq!(stage.held().await, 2);
    for conversation in talks {
        stage.control.end_call(&conversation);
    }
    all_free(&stage).await;
    stage.finish().await;
}

/// Its slots are gone, its calls are not: they are counted like any that ringfence did not place.
#[tokio::test(flavor = "multi_thread")]
async fn calls_of_a_batch_that_an_operator_released_are_counted_one_by_one() {
    let stage = limited(2).await;
    let batch_id = id(&submit(&stage, &batch(2)).await, "id");
    talking(&stage, 2).await;
    several_sweeps(&stage).await;
    let release = stage.admin(&format!("/api/calls/{batch_id}/release"));
    assert_eq!(stage.send("POST", &release, &[], r#"{"force":true,"reason":"a test"}"#).await.status, 200);
    let foreign = async || {
        let all = records(&stage).await;
        all.into_iter().filter(|r| r.origin == Origin::Foreign && r.slots == 1).count()
    };
    // A call is in the gate a moment before it is on record.
    stage.wait("both are counted, and on record", async || stage.held().await == 2 && foreign().await == 2).await;
    hang_up_all(&stage).await;
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_whose_record_was_deleted_keeps_its_places_while_it_talks() {
    let stage = limited(1).await;
    let batch_id = id(&submit(&stage, &batch(1)).await, "id");
    let talks = talking(&stage, 1).await;
    several_sweeps(&stage).await;
    let key = stage.control.settings().el_api_key;
    let url = stage.api(&format!("/elevenlabs/v1/convai/batch-calling/{batch_id}"));
    assert_eq!(stage.send("DELETE", &url, &[("xi-api-key", &key)], "").await.status, 204);
    let listed = stage.control.counts().list_requests;
    stage.wait("it was asked for long enough", async || stage.control.counts().list_requests > listed + 100).await;
    assert_eq!((stage.held().await, stage.record(&batch_id).await.unwrap().absent_at), (1, None));
    stage.control.end_call(&talks[0]);
    all_free(&stage).await;
    assert_eq!(stage.record(&batch_id).await.unwrap().proof, Some(EndProof::Deadline), "\"no such batch\", twice");
    stage.finish().await;
}

/// Batches and calls that come and go, each as it likes: the provider never sees more at once than was allowed.
#[tokio::test(flavor = "multi_thread")]
async fn batches_and_calls_together_stay_inside_the_limit() {
    let sim = SimSettings { talk_ms: Millis::between(50, 400), ..Setup::default().sim };
    let stage = Stage::start(Setup { sim, root: "concurrent = 6".to_owned(), ..Setup::default() }).await;
    let submit = async |size| until_admitted(async || elevenlabs(&stage, SUBMIT, &[], &batch(size)).await).await;
    let calls = async {
        for turn in 0..15 {
            until_admitted(async || stage.dial(None, &format!("+1555001{turn:04}")).await).await;
        }
    };
    tokio::join!(submit(9), submit(4), submit(7), calls);
    all_free(&stage).await;
    let counts = stage.control.counts();
    assert_eq!(counts.creates_el, 9 + 4 + 7 + 15, "everybody was called, once");
    assert!(counts.both_live_max <= 6 && counts.el_live_max <= 6, "{counts:?}");
    assert!(records(&stage).await.iter().all(|r| r.origin == Origin::Create), "nobody was taken for a stranger");
    stage.finish().await;
}

// === once more ===

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_of_an_open_batch_uses_the_places_it_has() {
    let stage = limited(2).await;
    let mut body = batch(2);
    body["recipients"] = recipients([1, 2001]);
    let batch_id = id(&submit(&stage, &body).await, "id");
    let busy = || stage.control.calls().iter().filter(|c| c.outcome.is_some()).count();
    stage.wait("the busy one is over", async || busy() == 1).await;
    let answer = post(&stage, &format!("batch-calling/{batch_id}/retry")).await;
    assert_eq!((answer.status, &answer.json()["retry_count"]), (200, &json!(1)));
    stage.wait("it was called again", async || busy() == 2).await;
    assert_eq!((stage.held().await, records(&stage).await.len()), (2, 1));
    hang_up_all(&stage).await;
    stage.finish().await;
}

/// The app is answered at its time-out; the batch is not over while the answer to its retry is still on its way.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_with_a_late_retry_under_way_is_not_ended() {
    let stage = Stage::start(Setup {
        root: "concurrent = 2".to_owned(),
        timeouts: "create_secs = 1".to_owned(),
        ..Setup::default()
    })
    .await;
    let batch_id = id(&submit(&stage, &batch(2)).await, "id");
    let call = stage.record(&batch_id).await.unwrap().id;
    stage.control.fault(Fault { ms: 3_000, ..Fault::next(Provider::ElevenLabs, FaultKind::Slow, 1) });
    let answer = post(&stage, &format!("batch-calling/{batch_id}/retry")).await;
    assert_eq!(answer.json()["error"], "CALL_OUTCOME_UNKNOWN", "{answer:?}");
    assert!(stage.app().calls().is_joined(&call), "its retry is under way");
    stage.wait("the late answer has come", async || !stage.app().calls().is_joined(&call)).await;
    hang_up_all(&stage).await;
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_of_an_ended_batch_needs_as_many_places_as_before() {
    let stage = limited(2).await;
    let mut body = batch(2);
    body["recipients"] = recipients([1, 10_001, 20_001]);
    let answer = submit(&stage, &body).await;
    let batch_id = id(&answer, "id");
    assert_eq!(answer.header("x-ringfence-slots"), Some("2/3"));
    all_free(&stage).await;
    let first = stage.record(&batch_id).await.unwrap();
    let path = format!("batch-calling/{batch_id}/retry");

    let sid = id(&talk(&stage, "+15550003000", &[("Twiml", TALK)]).await, "sid");
    assert_eq!(post(&stage, &path).await.status, 503, "one place is too few: nobody can cut it any more");
    assert_eq!((stage.held().await, stage.control.counts().creates_el), (1, 3));
    stage.control.end_call(&sid);
    all_free(&stage).await;
    assert_eq!(post(&stage, &path).await.status, 200);
    let second = stage.record(&batch_id).await.unwrap();
    assert!(second.id != first.id && second.slots == 2 && second.attributes.operation == "batch_retry", "{second:#?}");
    all_free(&stage).await;
    assert!(stage.control.counts().both_live_max <= 2);
    let ended = stage.record(&batch_id).await.unwrap();
    assert_eq!((ended.id, ended.proof), (second.id, Some(EndProof::Provider)));
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_a_batch_that_was_placed_past_us_are_counted_one_by_one() {
    let stage = limited(5).await;
    let mut body = batch(3);
    body["target_concurrency_limit"] = json!(2);
    let batch_id = id(&directly(&stage, "batch-calling/submit", &body).await, "id");
    stage.wait("both are counted", async || stage.held().await == 2).await;
    assert!(records(&stage).await.iter().all(|r| r.origin == Origin::Foreign && r.slots == 1));
    // Its record says how many calls at once it makes.
    assert_eq!(post(&stage, &format!("batch-calling/{batch_id}/retry")).await.status, 200);
    let ours = stage.record(&batch_id).await.unwrap();
    assert_eq!((ours.origin, ours.slots, stage.held().await), (Origin::Create, 2, 4));
    assert_eq!(post(&stage, "batch-calling/btcal_nobody/retry").await.status, 503);
    hang_up_all(&stage).await;
    stage.finish().await;
}

// === campaigns ===

#[tokio::test(flavor = "multi_thread")]
async fn a_campaign_holds_its_places_from_its_submission_to_its_stop() {
    let stage = limited(2).await;
    let campaign = json!({"call_name": "c", "agent_id": "agent_acme", "idempotency_key": "k",
        "channel_config": {"channel": "phone", "agent_phone_number_id": "phnum_1"}, "recipients": recipients(2000..2005)});
    let submit = async || elevenlabs(&stage, &format!("{CAMPAIGNS}/submit"), &[], &campaign).await;
    let answer = submit().await;
    assert_eq!((answer.status, answer.header("x-ringfence-slots")), (201, Some("2/5")));
    let campaign_id = answer.json()["campaign"]["campaign_id"].as_str().unwrap().to_owned();
    assert_eq!(answer.json()["campaign"]["target_concurrency_limit"], 2);
    let talks = talking(&stage, 2).await;
    several_sweeps(&stage).await;
    assert_eq!((stage.held().await, records(&stage).await.len()), (2, 1), "its calls are its own");
    assert_eq!(submit().await.status, 503, "it is full");

    let act = async |what: &str| post(&stage, &format!("outbound-campaigns/campaigns/{campaign_id}/{what}")).await;
    assert_eq!(act("pause").await.json()["status"], "paused");
    stage.control.end_call(&talks[0]);
    several_sweeps(&stage).await;
    assert_eq!(stage.held().await, 2, "it may go on at any time");
    assert_eq!(act("resume").await.json()["status"], "active");
    talking(&stage, 2).await;
    assert_eq!((stage.held().await, records(&stage).await.len()), (2, 1));
    assert_eq!(act("stop").await.json()["status"], "stopping");
    several_sweeps(&stage).await;
    assert_eq!(stage.held().await, 2, "its calls go on");
    hang_up_all(&stage).await;
    let ended = stage.record(&campaign_id).await.unwrap();
    assert_eq!((ended.outcome, ended.proof), (Some(Outcome::Canceled), Some(EndProof::Provider)));

    // The same request again is the same campaign: nothing is made, nothing is held.
    let again = submit().await;
    assert_eq!((again.status, &again.json()["created"], stage.held().await), (200, &json!(false), 0));
    assert!(stage.control.counts().both_live_max <= 2);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_campaign_of_messages_is_none_of_our_business() {
    let stage = limited(0).await;
    let mut body = json!({"call_name": "c", "agent_id": "a", "recipients": [],
        "channel_config": {"channel": "whatsapp", "whatsapp_phone_number_id": "w", "mode_config": {"mode": "message"}}});
    let path = format!("{CAMPAIGNS}/submit");
    assert_eq!(elevenlabs(&stage, &path, &[], &body).await.status, 201);
    body["channel_config"]["mode_config"]["mode"] = json!("voice");
    body["recipients"] = json!([{"whatsapp_user_id": "u"}]);
    assert_eq!(elevenlabs(&stage, &path, &[], &body).await.status, 503, "calls are");
    stage.finish().await;
}

// === Studio ===

async fn execute(stage: &Stage, version: &str, to: &str) -> Answer {
    let form = form_urlencoded::Serializer::new(String::new())
        .extend_pairs([("To", to), ("From", "+15550001111"), ("Parameters", "{}")])
        .finish();
    let authorization = basic(&stage.control);
    let headers = [("content-type", "application/x-www-form-urlencoded"), ("authorization", authorization.as_str())];
    let what = if version == "v2" { "Executions" } else { "Engagements" };
    stage.send("POST", &stage.api(&format!("/twilio/{version}/Flows/FW1/{what}")), &headers, form).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_call_of_a_studio_flow_is_found_by_its_numbers() {
    let stage = limited(2).await;
    let mut found = HashSet::new();
    for version in ["v2", "v1"] {
        let answer = execute(&stage, version, "+15550002001").await;
        assert_eq!((answer.status, &answer.json()["status"]), (201, &json!("active")));
        let record = stage.record(&id(&answer, "sid")).await.unwrap();
        assert_eq!(
            (record.attributes.operation.as_str(), record.attributes.agent.as_deref()),
            ("studio_execution", Some("FW1"))
        );
        assert!(record.alias("execution_sid").is_some());
        let bound = once(&stage, record.id.as_str(), "it is found", |r| r.alias("call_sid").is_some()).await;
        assert!(!bound.unsettled);
        found.extend(bound.alias("call_sid").map(str::to_owned));
    }
    assert_eq!((found.len(), stage.held().await), (2, 2), "each has a call of its own");
    assert_eq!(execute(&stage, "v2", "+15550002001").await.status, 503);
    several_sweeps(&stage).await;
    assert_eq!((stage.held().await, records(&stage).await.len()), (2, 2));
    let metrics = stage.ask("/metrics").await;
    assert_eq!(grown(&metrics, "ringfence_create_outcome_unknown_total"), None, "nothing went wrong");
    for sid in found {
        stage.control.end_call(&sid);
    }
    all_free(&stage).await;
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_studio_flow_that_makes_no_call_gives_its_slot_back() {
    let sim = SimSettings { studio_calls: false, ..Setup::default().sim };
    let stage = Stage::start(Setup { sim, ..Setup::default() }).await;
    let record = execute(&stage, "v2", "+15550002001").await;
    let record = stage.record(&id(&record, "sid")).await.unwrap();
    assert_eq!(stage.held().await, 1);
    let ended = once(&stage, record.id.as_str(), "it is given up", |r| r.phase == Phase::Ended).await;
    assert_eq!((ended.outcome, ended.proof), (Some(Outcome::NotCreated), Some(EndProof::Deadline)));
    stage.finish().await;
}

// === Exotel, WhatsApp ===

#[tokio::test(flavor = "multi_thread")]
async fn exotel_and_whatsapp_calls_are_fenced() {
    let stage = limited(1).await;
    stage.control.set_webhook_loss(1.0);
    let whatsapp = json!({"agent_id": "agent_acme", "whatsapp_phone_number_id": "w1", "whatsapp_user_id": "u1",
        "whatsapp_call_permission_request_template_name": "t",
        "whatsapp_call_permission_request_template_language_code": "en"});
    for (channel, body, own) in [("exotel", order("+15550002001"), "phnum_1"), ("whatsapp", whatsapp, "w1")] {
        let path = format!("/elevenlabs/v1/convai/{channel}/outbound-call");
        let answer = elevenlabs(&stage, &path, &[], &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let conversation = id(&answer, "conversation_id");
        let record = stage.record(&conversation).await.unwrap();
        assert_eq!(record.attributes.own_number.as_deref(), Some(own));
        assert_eq!(record.attributes.operation, format!("{channel}_outbound_call"));
        assert_eq!((record.unsettled, record.alias("call_sid")), (false, answer.json()["callSid"].as_str()));
        assert_eq!(elevenlabs(&stage, &path, &[], &body).await.status, 503);
        once(&stage, &conversation, "it is seen live", |r| r.phase == Phase::Live).await;
        stage.control.end_call(&conversation);
        let ended = once(&stage, &conversation, "it ends", |r| r.phase == Phase::Ended).await;
        assert_eq!((ended.outcome, ended.proof), (Some(Outcome::Completed), Some(EndProof::Provider)));
    }
    stage.finish().await;
}
