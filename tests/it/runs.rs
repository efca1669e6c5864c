//! Bulk runs, with the simulated providers as judge: nobody is called twice, nobody is forgotten, no limit is exceeded. Tests 1 to 5 are
//! those of the system whose dialler ringfence replaces, by their numbers; `runs_killed.rs` has test 4, and all of them on three replicas.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, Request};
use ringfence::net::fetch_local;
use ringfence::provider::secret::Secret;
use ringfence::token::{Claims, mint};
use ringfence_simulator::{CallView, Fault, FaultKind, Millis, Provider, SimSettings};
use serde_json::{Value, json};

use crate::support::stage::{Answer, PATIENCE, Setup, Stage};

/// The limits of business 1: 3 calls at once.
const THREE: &str = "[businesses.1]\nmax_calls = 3\n[businesses.2]\nmax_calls = 3";

pub(crate) fn sim(talk_ms: u64) -> SimSettings {
    SimSettings { talk_ms: Millis::exactly(talk_ms), ..Setup::default().sim }
}

/// A Twilio run of business 1.
pub(crate) fn twilio() -> Value {
    json!({
        "business": "1", "account": "twilio", "operation": "calls",
        "request": {"Twiml": "<Response><Say>Hello {{lead.name}}</Say></Response>"}, "own_numbers": ["+15550001111"],
    })
}

/// An ElevenLabs run of business 1.
pub(crate) fn elevenlabs() -> Value {
    json!({
        "business": "1", "account": "elevenlabs", "operation": "twilio_outbound_call",
        "request": {
            "agent_id": "agent_acme", "agent_phone_number_id": "phnum_1",
            "conversation_initiation_client_data": {"dynamic_variables": {"name": "{{lead.name}}"}},
        },
    })
}

pub(crate) fn leads(n: usize) -> Vec<Value> {
    (0..n).map(|i| json!({"number": format!("+1555100{:04}", i + 10), "name": format!("Lead {i}")})).collect()
}

pub(crate) fn with(mut run: Value, more: Value) -> Value {
    for (key, value) in more.as_object().unwrap() {
        run[key] = value.clone();
    }
    run
}

/// Sends a run its long list of leads, for which a loaded machine may have more than the usual patience.
async fn load(stage: &Stage, id: &str, list: String) -> Answer {
    let mut request = Request::new(Bytes::from(list));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = format!("/api/runs/{id}/leads").parse().unwrap();
    request.headers_mut().insert("content-type", HeaderValue::from_static("application/x-ndjson"));
    let socket = stage.app().admin_socket().unwrap();
    Answer::of(fetch_local(socket, request, 64 << 20, 10 * PATIENCE).await.unwrap())
}

async fn post(stage: &Stage, path: &str, kind: &str, body: impl Into<Bytes>) -> Answer {
    stage.send("POST", &stage.admin(path), &[("content-type", kind)], body).await
}

/// Makes a run that has its leads in its body.
pub(crate) async fn make(stage: &Stage, run: Value, leads: Vec<Value>) -> Answer {
    let run = with(run, json!({"leads": leads}));
    post(stage, "/api/runs", "application/json", run.to_string()).await
}

pub(crate) async fn start(stage: &Stage, run: Value, leads: Vec<Value>) -> String {
    let made = make(stage, run, leads).await;
    assert_eq!(made.status, 201, "{made:?}");
    made.json()["runId"].as_str().unwrap().to_owned()
}

pub(crate) async fn act(stage: &Stage, id: &str, act: &str, body: Value) -> Answer {
    post(stage, &format!("/api/runs/{id}/{act}"), "application/json", body.to_string()).await
}

async fn show(stage: &Stage, id: &str) -> Value {
    stage.ask(&format!("/api/runs/{id}")).await
}

pub(crate) async fn until_state(stage: &Stage, id: &str, state: &str) -> Value {
    stage.wait(&format!("the run is {state}"), async || show(stage, id).await["state"] == state).await;
    show(stage, id).await
}

/// How often each number was called, by the provider's word.
pub(crate) fn called(calls: &[CallView]) -> BTreeMap<String, u32> {
    let mut called = BTreeMap::new();
    for call in calls.iter().filter(|call| !call.inbound) {
        *called.entry(call.to.clone()).or_default() += 1;
    }
    called
}

/// Nobody was called twice, nobody was forgotten.
pub(crate) fn check_once(calls: &[CallView], n: usize) {
    let called = called(calls);
    let twice: Vec<_> = called.iter().filter(|(_, times)| **times != 1).collect();
    assert_eq!((called.len(), twice.len()), (n, 0), "{twice:?}");
}

// === the tests of the system that is replaced ===

/// Test 1: single business, 20 leads, both providers.
#[tokio::test(flavor = "multi_thread")]
async fn test_1_single_business_twenty_leads() {
    for run in [twilio(), elevenlabs()] {
        let stage = Stage::start(Setup { sim: sim(120), tables: THREE.to_owned(), ..Setup::default() }).await;
        let id = start(&stage, run, leads(20)).await;
        let done = until_state(&stage, &id, "done").await;
        assert_eq!((&done["counts"]["completed"], &done["done"]), (&20.into(), &20.into()), "{done}");
        let calls = stage.control.calls();
        check_once(&calls, 20);
        let results = stage.ask(&format!("/api/runs/{id}/results")).await;
        let results = results["results"].as_array().unwrap();
        assert_eq!(results.len(), 20);
        for (n, one) in results.iter().enumerate() {
            assert_eq!(
                (&one["lead"], &one["outcome"], &one["attempts"]),
                (&(n + 1).into(), &"completed".into(), &1.into())
            );
            let sid = one["call_sid"].as_str().unwrap();
            let call = calls.iter().find(|call| call.call_sid.as_deref() == Some(sid)).unwrap();
            assert_eq!(call.to, format!("+1555100{:04}", n + 10), "the lead's own call");
            assert!(one["number"].as_str().unwrap().contains('•'), "masked: {one}");
        }
        // Runs leave no rejections, and their limits were met all the time.
        assert_eq!(stage.ask("/api/refusals").await["refusals"], json!([]));
        stage.finish().await;
    }
}

/// Test 2: never more than 3 at once.
#[tokio::test(flavor = "multi_thread")]
async fn test_2_never_more_than_three_at_once() {
    let stage = Stage::start(Setup { sim: sim(80), tables: THREE.to_owned(), ..Setup::default() }).await;
    let one = start(&stage, twilio(), leads(25)).await;
    let other = start(&stage, with(twilio(), json!({"duplicates": "keep"})), leads(10)).await;
    let mut most = 0;
    stage
        .wait("both are done", async || {
            most = most.max(stage.held().await);
            show(&stage, &one).await["state"] == "done" && show(&stage, &other).await["state"] == "done"
        })
        .await;
    let counts = stage.control.counts();
    assert_eq!((counts.tw_live_max, most), (3, 3), "it used what there is, and no more");
    assert_eq!(stage.control.calls().len(), 35);
    stage.finish().await;
}

/// Test 3: direct and bulk calls share the limit; and what is kept for direct ones, bulk calls do not take.
#[tokio::test(flavor = "multi_thread")]
async fn test_3_mixed_direct_and_bulk_calls() {
    let stage = Stage::start(Setup { tables: THREE.to_owned(), ..Setup::default() }).await;
    assert_eq!(stage.dial(Some("1"), "+15552000010").await.status, 200);
    let id = start(&stage, twilio(), leads(50)).await;
    stage.wait("the limit is met", async || stage.held().await == 3).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!((stage.held().await, &show(&stage, &id).await["counts"]["calling"]), (3, &2.into()));
    assert_eq!(stage.dial(Some("1"), "+15552000011").await.status, 503, "it is full for everybody");
    // The next free slot is left to the call that was turned away.
    let bulk = stage.control.calls().into_iter().find(|call| call.live && call.to != "+15552000010").unwrap();
    stage.control.end_call(bulk.call_sid.as_ref().unwrap());
    stage.wait("it is free", async || stage.held().await == 2).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(stage.dial(Some("1"), "+15552000011").await.status, 200, "it came again");
    assert_eq!((stage.held().await, &show(&stage, &id).await["counts"]["calling"]), (3, &1.into()));
    act(&stage, &id, "cancel", json!({})).await;
    for call in stage.control.calls() {
        stage.control.end_call(call.call_sid.as_ref().unwrap());
    }
    stage.wait("all is free", async || stage.held().await == 0).await;
    let reserved = start(&stage, with(twilio(), json!({"reserve_for_direct": 1})), leads(50)).await;
    stage.wait("bulk calls have what they may", async || stage.held().await == 2).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(stage.held().await, 2, "one is kept free");
    assert_eq!(stage.dial(Some("1"), "+15552000012").await.status, 200, "for direct calls");
    act(&stage, &reserved, "cancel", json!({})).await;
    stage.finish().await;
}

/// A business says how many slots its runs leave free: over what the config says for all, under what a run says for itself, and at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_business_keeps_slots_free_for_its_direct_calls() {
    let tables = "[businesses.1]\nmax_calls = 3\nreserve_for_direct = 1\n[businesses.2]\nmax_calls = 3\n\
                  [runs]\nreserve_for_direct = 2";
    let stage = Stage::start(Setup { tables: tables.to_owned(), ..Setup::default() }).await;
    let put = async |id: &str, business: Value| {
        let kind = [("content-type", "application/json")];
        stage.send("PUT", &stage.admin(&format!("/api/businesses/{id}")), &kind, business.to_string()).await
    };
    assert_eq!(put("3", json!({"max_calls": 3, "reserve_for_direct": 1})).await.status, 201);
    assert_eq!(put("4", json!({"reserve_for_direct": 1_000_001})).await.status, 422);
    assert_eq!(put("4", json!({"reserve_for_direct": -1})).await.status, 400);
    let numbers = |n: u32| -> Vec<Value> {
        (0..20).map(|i| json!({"number": format!("+1555{n}00{:04}", i + 10), "name": "x"})).collect()
    };
    let cases =
        [("1", json!({}), 2), ("2", json!({}), 1), ("3", json!({}), 2), ("3", json!({"reserve_for_direct": 0}), 3)];
    for (case, (business, run, slots)) in cases.into_iter().enumerate() {
        let what = format!("business {business} {run} has {slots} slots");
        let run = with(with(twilio(), run), json!({"business": business}));
        let id = start(&stage, run, numbers(slots)).await;
        stage.wait(&what, async || stage.held().await == slots).await;
        // Several rounds of the dialler.
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert_eq!(stage.held().await, slots, "{what}");
        for n in slots..3 {
            assert_eq!(stage.dial(Some(business), &format!("+15552{case}0{n}555")).await.status, 200, "{what}");
        }
        assert_eq!(stage.dial(Some(business), &format!("+15552{case}09999")).await.status, 503, "{what}");
        act(&stage, &id, "cancel", json!({})).await;
        stage
            .wait("all is free", async || {
                for call in stage.control.calls().into_iter().filter(|call| call.live) {
                    stage.control.end_call(call.call_sid.as_ref().unwrap());
                }
                stage.held().await == 0
            })
            .await;
    }
    // A change holds at once.
    let run = with(twilio(), json!({"business": "3"}));
    let id = start(&stage, run, numbers(2)).await;
    stage.wait("it has two", async || stage.held().await == 2).await;
    assert_eq!(put("3", json!({"max_calls": 3, "reserve_for_direct": 0})).await.status, 200);
    stage.wait("it has three", async || stage.held().await == 3).await;
    act(&stage, &id, "cancel", json!({})).await;
    stage.finish().await;
}

/// Slots that one business keeps free of its runs are not kept from the runs of another.
#[tokio::test(flavor = "multi_thread")]
async fn slots_that_one_business_keeps_free_go_to_the_runs_of_another() {
    let tables = "[businesses.1]\nmax_calls = 9\nreserve_for_direct = 2\n[businesses.2]\nmax_calls = 9";
    let root = "concurrent = 3\n".to_owned();
    let stage = Stage::start(Setup { root, tables: tables.to_owned(), ..Setup::default() }).await;
    let careful = start(&stage, twilio(), leads(20)).await;
    stage.wait("the first has its slot", async || stage.held().await == 1).await;
    let others: Vec<Value> = (0..20).map(|i| json!({"number": format!("+1666300{:04}", i), "name": "x"})).collect();
    let other = start(&stage, with(twilio(), json!({"business": "2"})), others).await;
    stage.wait("the other has the rest", async || stage.held().await == 3).await;
    assert_eq!(show(&stage, &careful).await["counts"]["calling"], 1);
    for id in [careful, other] {
        act(&stage, &id, "cancel", json!({})).await;
    }
    stage.finish().await;
}

/// Test 5: without a public host the run fails at once, and nobody is called.
#[tokio::test(flavor = "multi_thread")]
async fn test_5_missing_host_fails_at_once() {
    let stage = Stage::start(Setup { public: false, tables: THREE.to_owned(), ..Setup::default() }).await;
    let made = make(&stage, twilio(), leads(5)).await;
    let run = made.json();
    assert_eq!(
        (made.status, &run["state"], &run["reason"]),
        (201, &"failed".into(), &"No public host configured".into())
    );
    let reminder = with(
        elevenlabs(),
        json!({"request": {"agent_id": "a", "x": "{{public_url}}/api/v1/webhooks/outbound-reminder"}}),
    );
    assert_eq!(make(&stage, reminder, leads(5)).await.json()["state"], "failed");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(stage.control.calls().is_empty());
    // ElevenLabs needs no callback: ends are polled.
    let id = start(&stage, elevenlabs(), leads(1)).await;
    stage.wait("it is dialled", async || stage.control.calls().len() == 1).await;
    act(&stage, &id, "cancel", json!({})).await;
    stage.finish().await;
}

// === what else must hold ===

/// A run of 50,000 leads and one of 50 by another business over the same slots: the small one has every second of them until it is
/// done. Direct calls meet the slot that is kept for them, whatever the runs do.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_run_is_done_in_its_fair_time_and_direct_calls_meet_free_slots() {
    let tables = "[businesses.1]\nmax_calls = 9\n[businesses.2]\nmax_calls = 9\n[businesses.3]\nmax_calls = 9\n[runs]\nreserve_for_direct = 1";
    let setup =
        Setup { sim: sim(60), root: "concurrent = 5\n".to_owned(), tables: tables.to_owned(), ..Setup::default() };
    let stage = Stage::start(setup).await;
    let made = post(&stage, "/api/runs", "application/json", twilio().to_string()).await.json();
    let large = made["runId"].as_str().unwrap();
    let list: String = (0..50_000).map(|i| format!("{{\"number\":\"+1555{i:06}7\",\"name\":\"x\"}}\n")).collect();
    let loaded = load(&stage, large, list).await;
    assert_eq!((loaded.status, &loaded.json()["leads"]), (201, &50_000.into()));
    stage.wait("the large one has its slots", async || stage.control.counts().tw_live_max == 4).await;
    let others: Vec<Value> =
        (0..50).map(|i| json!({"number": format!("+1666300{:04}", i + 10), "name": "x"})).collect();
    let small = start(&stage, with(twilio(), json!({"business": "2"})), others).await;
    let mut direct = 0_u32;
    while show(&stage, &small).await["state"] != "done" {
        // Runs leave one free; the last direct call may have it still.
        stage.wait("the last direct call is over", async || stage.held().await <= 4).await;
        let answer = stage.dial(Some("3"), &format!("+1777{direct:06}7")).await;
        assert_eq!(answer.status, 200, "a direct call met no free slot: {answer:?}");
        direct += 1;
    }
    let calls = stage.control.calls();
    // From the first call of the small one to its last.
    let is_small = |call: &CallView| call.to.starts_with("+1666");
    let (first, last) = (calls.iter().position(is_small).unwrap(), calls.iter().rposition(is_small).unwrap());
    let of_large = calls[first..=last].iter().filter(|call| call.to.starts_with("+1555")).count();
    println!("beside 50 calls of the small run the large one made {of_large}, and {direct} direct ones were placed");
    assert!((15..=125).contains(&of_large), "{of_large} calls of the large run while 50 of the small one were made");
    assert!(direct > 0 && stage.control.counts().both_live_max <= 5);
    act(&stage, large, "cancel", json!({})).await;
    stage.wait("all is free", async || stage.held().await == 0).await;
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_taken_whole_or_every_mistake_is_told_by_its_line() {
    let stage = Stage::start(Setup { tables: THREE.to_owned(), ..Setup::default() }).await;
    let made = post(&stage, "/api/runs", "application/json", twilio().to_string()).await;
    assert_eq!((made.status, &made.json()["state"]), (201, &"ready".into()), "{made:?}");
    let id = made.json()["runId"].as_str().unwrap().to_owned();
    let path = format!("/api/runs/{id}/leads");
    let list = "number,name\n+15551000010,Anna\n12,Ben\n+15551000011,\n+1 555 100 0010,Cleo\n+15551000012,Dora,more\n";
    let wrong = post(&stage, &path, "text/csv", list).await;
    let told = wrong.json();
    assert_eq!((wrong.status, &told["error"], &told["count"]), (422, &"INVALID_LEADS".into(), &4.into()));
    let lines: Vec<u64> =
        told["mistakes"].as_array().unwrap().iter().map(|one| one["line"].as_u64().unwrap()).collect();
    assert_eq!(lines, [3, 4, 5, 6]);
    let texts = told["mistakes"].to_string();
    for part in ["E.164", "missing: name", "the same number as in line 2", "3 fields under 2 columns"] {
        assert!(texts.contains(part), "{part}: {texts}");
    }
    assert_eq!(show(&stage, &id).await["state"], "ready", "nothing was taken in");
    assert!(stage.control.calls().is_empty());
    let list = "number,name\n+15551000010,Anna\n+15551000011,\"Ben, \"\"B\"\"\"\n";
    let right = post(&stage, &path, "text/csv", list).await;
    assert_eq!((right.status, &right.json()["leads"]), (201, &2.into()), "{right:?}");
    assert_eq!(post(&stage, &path, "text/csv", list).await.status, 200, "the same list is the same run");
    assert_eq!(post(&stage, &path, "text/csv", "number,name\n+15551000010,X\n").await.status, 409);
    stage.wait("both are called", async || stage.control.calls().len() == 2).await;
    // What is no run, or none that can be dialled.
    for (more, part) in [
        (json!({"account": "nobody"}), "no account nobody"),
        (json!({"operation": "register_call"}), "operation must be one of"),
        (json!({"request": {"To": "+1"}}), "must not have To"),
        (json!({"request": {"Twiml": "{{leads.name}}"}}), "none of lead"),
        (json!({"retry": {"completed": {"attempts": 2, "after_secs": 1}}}), "retry has completed"),
        (json!({"retry": {"voicemail": {"attempts": 2, "after_secs": 1}}}), "MachineDetection"),
        (json!({"rate": "fast"}), "rate"),
        (json!({"colour": "red"}), "colour"),
    ] {
        let answer = make(&stage, with(twilio(), more.clone()), leads(1)).await;
        assert_eq!(answer.status, 400, "{more}: {answer:?}");
        assert!(answer.json()["message"].as_str().unwrap().contains(part), "{more}: {answer:?}");
    }
    assert_eq!(post(&stage, "/api/runs", "application/json", "[1, 2").await.status, 400);
    let listed = stage.ask("/api/runs").await;
    assert_eq!(listed["runs"].as_array().unwrap().len(), 1, "what was refused is not there: {listed}");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_made_once_for_its_key() {
    let stage = Stage::start(Setup { tables: THREE.to_owned(), ..Setup::default() }).await;
    let keyed = || with(elevenlabs(), json!({"idempotency_key": "monday", "concurrency": 2}));
    let first = make(&stage, keyed(), leads(5)).await;
    let again = make(&stage, keyed(), leads(5)).await;
    assert_eq!((first.status, again.status), (201, 200), "{again:?}");
    assert_eq!(first.json()["runId"], again.json()["runId"]);
    assert_eq!(make(&stage, keyed(), leads(4)).await.status, 409, "other leads");
    assert_eq!(make(&stage, with(keyed(), json!({"concurrency": 1})), leads(5)).await.status, 409, "another run");
    assert_eq!(make(&stage, with(keyed(), json!({"business": "2"})), leads(5)).await.status, 201, "another business");
    stage.wait("two of each are up", async || stage.control.counts().el_live_now == 4).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(stage.control.counts().el_live_max, 4, "each keeps to its own bound");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leads_are_called_again_by_their_outcome_and_results_are_exported() {
    let stage = Stage::start(Setup { sim: sim(50), tables: THREE.to_owned(), ..Setup::default() }).await;
    let list: Vec<Value> = ["+15551000001", "+15551000002", "+15551000003", "+15551000010"]
        .map(|number| json!({"number": number, "name": "=1+1"}))
        .into();
    let retry =
        json!({"retry": {"busy": {"attempts": 3, "after_secs": 0}, "no_answer": {"attempts": 2, "after_secs": 0}}});
    let id = start(&stage, with(twilio(), retry), list).await;
    let done = until_state(&stage, &id, "done").await;
    let counts = &done["counts"];
    let each = ["busy", "noAnswer", "failed", "completed"].map(|name| counts[name].as_u64().unwrap());
    assert_eq!(each, [1, 1, 1, 1], "{done}");
    let calls = called(&stage.control.calls());
    assert_eq!(calls.values().copied().collect::<Vec<_>>(), [3, 2, 1, 1], "{calls:?}");
    let get = async |path: &str| stage.send("GET", &stage.admin(path), &[], Bytes::new()).await;
    let csv = get(&format!("/api/runs/{id}/results?format=csv&limit=3")).await;
    assert_eq!((csv.header("content-type"), csv.header("x-next-after")), (Some("text/csv"), Some("3")));
    let text = String::from_utf8(csv.body.to_vec()).unwrap();
    assert!(text.starts_with("lead,number,state,outcome,attempts,call_id,call_sid,"), "{text}");
    assert_eq!(text.lines().count(), 4);
    assert!(text.lines().nth(1).unwrap().starts_with("1,+155••••••01,done,busy,3,c_"), "{text}");
    let rest = get(&format!("/api/runs/{id}/results?format=ndjson&after=3")).await;
    let rest = String::from_utf8(rest.body.to_vec()).unwrap();
    assert_eq!(rest.lines().count(), 1);
    assert_eq!(serde_json::from_str::<Value>(&rest).unwrap()["attempts"], 1);
    // Those that were not reached are called once more.
    let again = act(&stage, &id, "retry", json!({"outcomes": ["failed"]})).await;
    assert_eq!((again.status, &again.json()["jobs"]), (200, &1.into()), "{again:?}");
    until_state(&stage, &id, "done").await;
    assert_eq!(called(&stage.control.calls())["+15551000003"], 2);
    stage.finish().await;
}

/// Leads that a voicemail answered are called again as the run says, and for everybody else their calls are completed. ElevenLabs reports it
/// after the end of the call is known.
#[tokio::test(flavor = "multi_thread")]
async fn leads_that_a_voicemail_answered_are_called_again() {
    let listens = json!({"request": {"Twiml": "<Response/>", "MachineDetection": "Enable"}});
    for run in [with(twilio(), listens), elevenlabs()] {
        let stage = Stage::start(Setup { sim: sim(50), tables: THREE.to_owned(), ..Setup::default() }).await;
        // Numbers that end in 0004 are answered by a voicemail.
        let list = |prefix: &str| -> Vec<Value> {
            ["0004", "0010"].map(|end| json!({"number": format!("{prefix}{end}"), "name": "x"})).into()
        };
        let results = async |id: &str| stage.ask(&format!("/api/runs/{id}/results")).await["results"].clone();
        let counts = |run: &Value| ["completed", "voicemail"].map(|name| run["counts"][name].as_u64().unwrap());
        let retry = json!({"retry": {"voicemail": {"attempts": 2, "after_secs": 0}}});
        let id = start(&stage, with(run.clone(), retry), list("+1555100")).await;
        until_state(&stage, &id, "done").await;
        // Nothing waits for the word about a lead's last call.
        stage.wait("the last word has come", async || counts(&show(&stage, &id).await) == [1, 1]).await;
        let calls = called(&stage.control.calls());
        assert_eq!(calls.values().copied().collect::<Vec<_>>(), [2, 1], "{calls:?}");
        let all = results(&id).await;
        assert_eq!((&all[0]["outcome"], &all[0]["attempts"]), (&"voicemail".into(), &2.into()), "{all}");
        assert_eq!((&all[1]["outcome"], &all[1]["attempts"]), (&"completed".into(), &1.into()), "{all}");
        let call = all[0]["call_id"].as_str().unwrap();
        let shown = stage.ask(&format!("/api/calls/{call}")).await;
        assert_eq!((&shown["outcome"], &shown["status"]), (&"completed".into(), &"ended".into()), "{shown}");
        // By hand they are called again if that is said.
        assert_eq!(act(&stage, &id, "retry", json!({})).await.json()["jobs"], 0);
        let again = act(&stage, &id, "retry", json!({"outcomes": ["voicemail"]})).await;
        assert_eq!((again.status, &again.json()["jobs"]), (200, &1.into()), "{again:?}");
        until_state(&stage, &id, "done").await;
        assert_eq!(called(&stage.control.calls())["+15551000004"], 4);
        // A run that does not ask does not wait: the word corrects the outcome when it comes.
        let id = start(&stage, run, list("+1555200")).await;
        until_state(&stage, &id, "done").await;
        stage.wait("the word has come", async || counts(&show(&stage, &id).await) == [1, 1]).await;
        assert_eq!(called(&stage.control.calls())["+15552000004"], 1);
        stage.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_of_unknown_outcome_is_looked_up_and_not_dialled_again() {
    for (provider, run) in [(Provider::ElevenLabs, elevenlabs()), (Provider::Twilio, twilio())] {
        let stage = Stage::start(Setup { sim: sim(300), tables: THREE.to_owned(), ..Setup::default() }).await;
        stage.control.fault(Fault::next(provider, FaultKind::AcceptThenDrop, 2));
        let id = start(&stage, run, leads(6)).await;
        let done = until_state(&stage, &id, "done").await;
        check_once(&stage.control.calls(), 6);
        assert_eq!(done["counts"]["completed"], 6, "{provider:?}: {done}");
        stage.finish().await;
    }
}

/// Its call was given up, since nothing was found, and the lead was queued again; then the call turns out to be up.
#[tokio::test(flavor = "multi_thread")]
async fn a_lead_whose_call_was_given_up_and_is_up_is_not_dialled_again() {
    // It rings for longer than the end of a call that was not made is waited for.
    let sim = SimSettings { ring_ms: Millis::exactly(30_000), tw_list_lag_ms: 600_000, ..sim(600_000) };
    let stage = Stage::start(Setup { sim, tables: THREE.to_owned(), ..Setup::default() }).await;
    stage.control.set_webhook_loss(1.0);
    stage.control.fault(Fault::next(Provider::Twilio, FaultKind::AcceptThenDrop, 1));
    let id = start(&stage, twilio(), leads(1)).await;
    stage.wait("it is dialled", async || stage.control.counts().creates_tw == 1).await;
    assert_eq!(act(&stage, &id, "pause", json!({})).await.status, 200);
    stage.wait("it is given up", async || show(&stage, &id).await["counts"]["queued"] == 1).await;
    assert_eq!(stage.held().await, 0);
    stage.control.set_webhook_loss(0.0);
    stage.wait("its webhook says that it is up", async || stage.held().await == 1).await;
    assert_eq!(act(&stage, &id, "resume", json!({})).await.status, 200);
    stage.wait("it goes on with that call", async || show(&stage, &id).await["counts"]["calling"] == 1).await;
    let sid = stage.control.calls()[0].call_sid.clone().unwrap();
    stage.control.end_call(&sid);
    let done = until_state(&stage, &id, "done").await;
    check_once(&stage.control.calls(), 1);
    assert_eq!((stage.control.counts().creates_tw, &done["counts"]["completed"]), (1, &json!(1)), "{done}");
    stage.finish().await;
}

/// A run whose provider is full at first: each lead is called by one attempt, and no request of the app's was rejected.
pub(crate) async fn dial_at_a_full_provider(stage: &Stage) {
    let mut fault = Fault::next(Provider::ElevenLabs, FaultKind::TooManyConcurrent, 2);
    fault.retry_after = Some(1);
    stage.control.fault(fault);
    let id = start(stage, elevenlabs(), leads(4)).await;
    let done = until_state(stage, &id, "done").await;
    assert_eq!(done["counts"]["completed"], 4, "{done}");
    let results = stage.ask(&format!("/api/runs/{id}/results")).await;
    assert!(results["results"].as_array().unwrap().iter().all(|one| one["attempts"] == 1), "{results}");
    assert_eq!(stage.ask("/api/refusals").await["refusals"], json!([]), "nobody's request was rejected");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_provider_costs_no_attempt_and_a_breaker_pauses_a_run() {
    let stage = Stage::start(Setup { sim: sim(50), tables: THREE.to_owned(), ..Setup::default() }).await;
    dial_at_a_full_provider(&stage).await;
    // Numbers that end in 0003 cannot be reached.
    let list: Vec<Value> = (0..30).map(|i| json!({"number": format!("+15551{i:02}0003"), "name": "x"})).collect();
    let breaker = json!({"breaker": {"window": 6, "failures": 4}});
    let id = start(&stage, with(twilio(), breaker), list).await;
    let paused = until_state(&stage, &id, "paused").await;
    assert!(paused["reason"].as_str().unwrap().starts_with("4 of the last 6 calls failed"), "{paused}");
    assert!(paused["counts"]["queued"].as_u64().unwrap() >= 20, "{paused}");
    assert!(stage.ask("/metrics").await.as_str().unwrap().contains("ringfence_run_breaker_trips_total 1"));
    assert_eq!(act(&stage, &id, "pause", json!({})).await.status, 409);
    assert_eq!(act(&stage, &id, "resume", json!({})).await.json()["state"], "running");
    until_state(&stage, &id, "paused").await;
    let canceled = act(&stage, &id, "cancel", json!({"reason": "enough"})).await.json();
    assert_eq!((&canceled["state"], &canceled["counts"]["queued"]), (&"canceled".into(), &0.into()));
    let audit = stage.ask("/api/audit").await;
    let what: Vec<&str> = audit["audit"].as_array().unwrap().iter().filter_map(|one| one["what"].as_str()).collect();
    assert!(["create run", "resume run", "cancel run"].iter().all(|act| what.contains(act)), "{what:?}");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_keeps_its_pace_rotates_its_numbers_and_survives_a_restart() {
    let mut stage =
        Stage::start(Setup { sim: sim(50), root: "concurrent = 20\n".to_owned(), ..Setup::default() }).await;
    let pool = json!({"own_numbers": ["+15550001111", "+15550001112", "+15550001113"], "rate": "10/s"});
    let started = Instant::now();
    let id = start(&stage, with(twilio(), pool), leads(40)).await;
    stage.wait("some are called", async || stage.control.calls().len() >= 12).await;
    stage.stop_app().await;
    stage.start_app().await;
    until_state(&stage, &id, "done").await;
    // Ten at once, after the restart once more.
    assert!(started.elapsed() >= Duration::from_millis(1_700), "{:?} for 40 calls at 10/s", started.elapsed());
    let calls = stage.control.calls();
    check_once(&calls, 40);
    let mut from = BTreeMap::new();
    calls.iter().for_each(|call| *from.entry(call.from.clone()).or_insert(0) += 1);
    assert_eq!(from.len(), 3);
    assert!(from.values().all(|n| (13..=14).contains(n)), "{from:?}");
    stage.finish().await;
}

/// A call whose number is at its limit takes another number of the pool, without waiting; where all are, it waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_number_at_its_limit_is_passed_over_for_the_next_of_the_pool() {
    let limit = "[[limits]]\nname = \"line\"\nper = \"own_number\"\nconcurrent = 1";
    let tables = format!("{THREE}\n{limit}");
    let stage = Stage::start(Setup { root: "concurrent = 9\n".to_owned(), tables, ..Setup::default() }).await;
    let pool = |numbers: &[&str]| with(twilio(), json!({"own_numbers": numbers}));
    let from = || stage.control.calls().into_iter().filter(|call| call.live).map(|call| call.from).collect::<Vec<_>>();
    let first = start(&stage, pool(&["+15550001111"]), leads(1)).await;
    stage.wait("its number is taken", async || from().len() == 1).await;
    // The first lead's turn is the second number, which is taken, and so is the third.
    let more = json!([{"number": "+15553000010", "name": "a"}, {"number": "+15553000011", "name": "b"}]);
    let list = more.as_array().unwrap().clone();
    let second = start(&stage, pool(&["+15550001112", "+15550001111", "+15550001111"]), list).await;
    stage.wait("the free number is used", async || from().len() == 2).await;
    assert_eq!(from(), ["+15550001111", "+15550001112"]);
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(from().len(), 2, "there is no third number");
    stage.wait("the other lead waits", async || show(&stage, &second).await["counts"]["queued"] == 1).await;
    for call in stage.control.calls().into_iter().filter(|call| call.live) {
        stage.control.end_call(call.call_sid.as_ref().unwrap());
    }
    stage.wait("the last one is called", async || stage.control.calls().len() == 3).await;
    for id in [first, second] {
        act(&stage, &id, "cancel", json!({})).await;
    }
    stage.finish().await;
}

/// Many leads find all numbers of a long pool, each once, though they do not ask for what others found full.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_pool_is_used_to_its_last_number() {
    let limit = "[[limits]]\nname = \"line\"\nper = \"own_number\"\nconcurrent = 1";
    let tables = format!("[businesses.1]\nmax_calls = 90\n{limit}");
    let stage = Stage::start(Setup { root: "concurrent = 90\n".to_owned(), tables, ..Setup::default() }).await;
    let pool: Vec<String> = (0..30).map(|n| format!("+155500011{n:02}")).collect();
    let id = start(&stage, with(twilio(), json!({"own_numbers": pool})), leads(80)).await;
    stage.wait("all numbers are used", async || stage.control.counts().tw_live_now == 30).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    let calls = stage.control.calls();
    let from: BTreeSet<&str> = calls.iter().map(|call| call.from.as_str()).collect();
    assert_eq!((calls.len(), from.len()), (30, 30), "each of them once");
    let counts = async || show(&stage, &id).await["counts"].clone();
    stage.wait("the others wait", async || counts().await["queued"] == 50).await;
    // A number that is free again is found.
    stage.control.end_call(calls[7].call_sid.as_ref().unwrap());
    stage.wait("it is used again", async || stage.control.calls().len() == 31).await;
    assert_eq!(stage.control.calls()[30].from, calls[7].from);
    act(&stage, &id, "cancel", json!({})).await;
    stage.finish().await;
}

/// Who has a token of one business makes and sees its runs alone.
#[tokio::test(flavor = "multi_thread")]
async fn runs_are_of_their_business() {
    let secret = "a secret of thirty-two bytes, or more";
    let root = "concurrent = 5\n".to_owned();
    let tables = format!("{THREE}\n[admin]\ntoken_secret = \"{secret}\"");
    let stage = Stage::start(Setup { root, tables, ..Setup::default() }).await;
    let id = start(&stage, twilio(), leads(2)).await;
    let token = |scope: &str, business: &str| {
        let (sub, exp) = ("t".to_owned(), jiff::Timestamp::now().as_second() + 60);
        let claims = Claims { sub, exp, businesses: vec![business.to_owned()], scope: scope.to_owned() };
        mint(&Secret::new(secret), &claims).unwrap()
    };
    for (business, status) in [("1", 200), ("2", 404)] {
        let bearer = format!("Bearer {}", token("read", business));
        let headers = [("authorization", bearer.as_str())];
        for path in [format!("/api/runs/{id}"), format!("/api/runs/{id}/results")] {
            assert_eq!(stage.send("GET", &stage.admin(&path), &headers, "").await.status, status, "{business} {path}");
        }
        let listed = stage.send("GET", &stage.admin("/api/runs"), &headers, "").await.json();
        assert_eq!(listed["runs"].as_array().unwrap().len(), usize::from(status == 200));
        let cancel = stage.admin(&format!("/api/runs/{id}/cancel"));
        assert_eq!(stage.send("POST", &cancel, &headers, "{}").await.status, 403, "reading is not operating");
    }
    let bearer = format!("Bearer {}", token("operate", "2"));
    let headers = [("authorization", bearer.as_str())];
    let run = with(twilio(), json!({"leads": leads(1)})).to_string();
    assert_eq!(stage.send("POST", &stage.admin("/api/runs"), &headers, run).await.status, 404);
    assert_eq!(stage.send("POST", &stage.admin(&format!("/api/runs/{id}/cancel")), &headers, "{}").await.status, 404);
    stage.finish().await;
}

/// A list of 20,000 is taken in piece by piece, and can be canceled while its first calls are up.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_list_is_taken_in_and_canceled() {
    let stage = Stage::start(Setup { tables: THREE.to_owned(), ..Setup::default() }).await;
    let made = post(&stage, "/api/runs", "application/json", twilio().to_string()).await.json();
    let id = made["runId"].as_str().unwrap();
    let list: String = (0..20_000).map(|i| format!("{{\"number\":\"+1555{i:07}\",\"name\":\"Lead {i}\"}}\n")).collect();
    let started = Instant::now();
    let loaded = load(&stage, id, list).await;
    assert_eq!((loaded.status, &loaded.json()["leads"]), (201, &20_000.into()));
    println!("20,000 leads in {:?}", started.elapsed());
    stage.wait("three are called", async || stage.control.counts().tw_live_now == 3).await;
    let canceled = act(&stage, id, "cancel", json!({})).await.json();
    assert!((19_990..=19_997).contains(&canceled["jobs"].as_u64().unwrap()), "{canceled}");
    stage.finish().await;
}
