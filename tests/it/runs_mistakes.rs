//! Bulk runs where somebody made a mistake: nobody is called who should not be, no lead is lost, and the run goes on once it is mended.

use bytes::Bytes;
use ringfence_simulator::{CallView, Fault, FaultKind, Provider};
use serde_json::{Value, json};

use crate::runs::{
    act, check_once, dial_at_a_full_provider, elevenlabs, leads, make, sim, start, twilio, until_state, with,
};
use crate::support::stage::{Setup, Stage};

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_is_not_understood_calls_nobody() {
    let stage = Stage::start(Setup { sim: sim(50), ..Setup::default() }).await;
    // Numbers that end in 0001 are busy.
    let id = start(&stage, twilio(), vec![json!({"number": "+15551000001", "name": "x"})]).await;
    until_state(&stage, &id, "done").await;
    for body in [r#"{"outcomes":"busy"}"#, r#"{"outcome":["busy"]}"#, r#"{"outcomes":["bussy"]}"#, "[", "7"] {
        let url = stage.admin(&format!("/api/runs/{id}/retry"));
        let answer = stage.send("POST", &url, &[], Bytes::from(body)).await;
        assert_eq!((answer.status, &answer.json()["error"]), (400, &"INVALID_REQUEST".into()), "{body}: {answer:?}");
    }
    assert_eq!(until_state(&stage, &id, "done").await["counts"]["busy"], 1);
    assert_eq!(act(&stage, &id, "retry", Value::Null).await.json()["jobs"], 1);
    until_state(&stage, &id, "done").await;
    assert_eq!(stage.control.calls().len(), 2);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_uses_nothing_of_another_business_and_an_unknown_one_is_rejected() {
    let tables =
        "[businesses]\nunknown = \"reject\"\n[businesses.1]\nmax_calls = 3\n[businesses.2]\nagent_ids = [\"agent_b\"]"
            .to_owned();
    let stage = Stage::start(Setup { tables, ..Setup::default() }).await;
    let unknown = make(&stage, with(twilio(), json!({"business": "3"})), leads(2)).await;
    assert_eq!((unknown.status, &unknown.json()["message"]), (400, &"business 3 is not configured".into()));
    let run = with(elevenlabs(), json!({"request": {"agent_id": "agent_b", "agent_phone_number_id": "phnum_1"}}));
    let foreign = make(&stage, run, leads(2)).await;
    assert_eq!(foreign.status, 422, "{foreign:?}");
    assert_eq!(foreign.json()["mistakes"][0]["error"], "agent agent_b belongs to 2");
    assert!(stage.control.calls().is_empty());
    stage.finish().await;
}

/// A rule that forbids every number is more likely a mistake than a decision about each lead: the run waits for its operator.
#[tokio::test(flavor = "multi_thread")]
async fn a_rule_against_all_leads_pauses_the_run_and_a_retry_calls_them() {
    let tables = "[destinations]\nonly_numbers = [\"+15559999999\"]".to_owned();
    let stage = Stage::start(Setup { sim: sim(50), tables, ..Setup::default() }).await;
    let id = start(&stage, with(twilio(), json!({"breaker": {"window": 6, "failures": 4}})), leads(90)).await;
    let paused = until_state(&stage, &id, "paused").await;
    let (counts, reason) = (&paused["counts"], paused["reason"].as_str().unwrap());
    assert!(reason.contains("DO_NOT_CALL_BLOCKED"), "{reason}");
    assert!(counts["queued"].as_u64().unwrap() > 0 && counts["failed"].as_u64().unwrap() >= 4, "{paused}");
    stage.rewrite("only_numbers = [\"+15559999999\"]", "");
    assert_eq!(stage.reload().await.status, 200);
    assert_eq!(act(&stage, &id, "retry", json!({"outcomes": ["failed"]})).await.status, 200);
    let done = until_state(&stage, &id, "done").await;
    assert_eq!((&done["counts"]["completed"], stage.control.calls().len()), (&90.into(), 90), "{done}");
    stage.finish().await;
}

/// An account that a replica does not know yet, or that a reload took away by mistake, ends no run.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_account_is_away_waits_for_it() {
    let stage = Stage::start(Setup { sim: sim(50), ..Setup::default() }).await;
    let later = (jiff::Timestamp::now() + jiff::SignedDuration::from_secs(2)).to_string();
    let id = start(&stage, with(elevenlabs(), json!({"start_at": later})), leads(5)).await;
    let (known, renamed) = ("[accounts.elevenlabs]", "[accounts.elevenlabs_2]\nprovider = \"elevenlabs\"");
    stage.rewrite(known, renamed);
    assert_eq!(stage.reload().await.status, 200);
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(until_state(&stage, &id, "running").await["counts"]["queued"], 5);
    stage.rewrite(renamed, known);
    assert_eq!(stage.reload().await.status, 200);
    assert_eq!(until_state(&stage, &id, "done").await["counts"]["completed"], 5);
    stage.finish().await;
}

/// Starts a run of six leads a little later, and takes what its calls need away before. Nobody is called and no lead fails; its status says
/// why, until it is given back.
async fn held_until_mended(run: Value, tables: &str, texts: (&str, &str), why: &str, mended: &str) -> Vec<CallView> {
    let stage = Stage::start(Setup { sim: sim(50), tables: tables.to_owned(), ..Setup::default() }).await;
    let later = (jiff::Timestamp::now() + jiff::SignedDuration::from_secs(3)).to_string();
    let id = start(&stage, with(run, json!({"start_at": later, "breaker": {"failures": 0}})), leads(6)).await;
    assert_eq!(act(&stage, &id, "pause", json!({})).await.status, 200);
    let show = async || stage.ask(&format!("/api/runs/{id}")).await;
    stage.rewrite(texts.0, texts.1);
    assert_eq!(stage.reload().await.status, 200);
    assert_eq!(act(&stage, &id, "resume", json!({})).await.status, 200);
    stage.wait("it says why", async || show().await["reason"].as_str().is_some_and(|text| text.contains(why))).await;
    let held = show().await;
    assert_eq!((&held["state"], &held["counts"]["queued"]), (&"running".into(), &6.into()), "{held}");
    assert!(stage.control.calls().is_empty());
    stage.rewrite(texts.1, mended);
    assert_eq!(stage.reload().await.status, 200);
    let done = until_state(&stage, &id, "done").await;
    assert_eq!((&done["counts"]["completed"], &done["reason"]), (&6.into(), &Value::Null), "{done}");
    let results = stage.ask(&format!("/api/runs/{id}/results")).await;
    assert!(results["results"].as_array().unwrap().iter().all(|one| one["attempts"] == 1), "{results}");
    let calls = stage.control.calls();
    check_once(&calls, 6);
    stage.finish().await;
    calls
}

/// An account that has lost its credentials is no lead's fault.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_account_has_no_credentials_waits_for_them() {
    let key = format!("api_key = \"{}\"", Setup::default().sim.el_api_key);
    held_until_mended(elevenlabs(), "", (&key, "# no key"), "account elevenlabs: no value for {account.api_key}", &key)
        .await;
}

/// Nor is a number that was given to another business: another one of the pool is used, and without one the run waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_number_of_another_business_is_passed_over_and_without_one_the_run_waits() {
    let run = with(twilio(), json!({"own_numbers": ["+15550001111", "+1 555 000 1112"]}));
    let tables = "[businesses.1]\nmax_calls = 3\n[businesses.2]\nmax_calls = 3";
    let both = "[businesses.2]\nphone_numbers = [\"+15550001111\", \"+15550001112\"]";
    let one = "[businesses.2]\nphone_numbers = [\"+15550001111\"]";
    let calls = held_until_mended(run, tables, ("[businesses.2]", both), "its number belongs to 2", one).await;
    assert!(calls.iter().all(|call| call.from.ends_with("1112")), "{calls:?}");
}

/// An account that is refused, or not paid for, and a provider that fails use up no lead: each is called once it is mended, by one attempt.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_takes_no_calls_uses_up_no_lead() {
    let stage = Stage::start(Setup { sim: sim(50), ..Setup::default() }).await;
    for kind in [FaultKind::QuotaExceeded, FaultKind::PaymentRequired, FaultKind::ServerError] {
        let before = stage.control.calls().len();
        stage.control.fault(Fault::next(Provider::ElevenLabs, kind, 3));
        let run = with(elevenlabs(), json!({"breaker": {"failures": 0}}));
        let id = start(&stage, run, leads(4)).await;
        let done = until_state(&stage, &id, "done").await;
        assert_eq!((&done["counts"]["completed"], stage.control.calls().len() - before), (&4.into(), 4), "{done}");
        let results = stage.ask(&format!("/api/runs/{id}/results")).await;
        assert!(results["results"].as_array().unwrap().iter().all(|one| one["attempts"] == 1), "{kind:?}: {results}");
    }
    stage.finish().await;
}

/// A run that failed for want of a public host is made anew by the same create, once there is one.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_failed_at_once_does_not_keep_its_key() {
    let replace = vec![("public_url = ".to_owned(), "# public_url = ".to_owned())];
    let mut stage = Stage::start(Setup { sim: sim(50), replace, ..Setup::default() }).await;
    let run = with(twilio(), json!({"idempotency_key": "k"}));
    let failed = make(&stage, run.clone(), leads(2)).await;
    assert_eq!((failed.status, &failed.json()["state"]), (201, &"failed".into()));
    assert_eq!(act(&stage, failed.json()["runId"].as_str().unwrap(), "retry", json!({})).await.status, 409);
    stage.edit("# public_url = ", "public_url = ");
    stage.stop_app().await;
    stage.start_app().await;
    let id = start(&stage, run, leads(2)).await;
    assert_eq!(until_state(&stage, &id, "done").await["counts"]["completed"], 2);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_provider_costs_no_attempt_in_observe_mode() {
    let root = "mode = \"observe\"\n".to_owned();
    let stage = Stage::start(Setup { sim: sim(50), root, ..Setup::default() }).await;
    dial_at_a_full_provider(&stage).await;
    stage.finish().await;
}
