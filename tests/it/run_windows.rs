//! Calling windows of runs: nobody is called outside of them, by the clock of whom it is.

use ringfence_simulator::{Millis, SimSettings};
use serde_json::{Value, json};

use crate::support::stage::{Answer, Setup, Stage};

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;

fn setup() -> Setup {
    let sim = SimSettings { talk_ms: Millis::exactly(50), ..Setup::default().sim };
    Setup { sim, tables: "[businesses.1]\nmax_calls = 3".to_owned(), ..Setup::default() }
}

fn run(windows: Value, more: Value, leads: Vec<Value>) -> Value {
    let mut run = json!({
        "business": "1", "account": "twilio", "operation": "calls", "request": {"Twiml": "<Response/>"},
        "own_numbers": ["+15550001111"], "windows": windows,
    });
    for (key, value) in more.as_object().unwrap() {
        run[key] = value.clone();
    }
    run["leads"] = leads.into();
    run
}

async fn make(stage: &Stage, run: Value) -> Answer {
    let headers = [("content-type", "application/json")];
    stage.send("POST", &stage.admin("/api/runs"), &headers, run.to_string()).await
}

async fn started(stage: &Stage, run: Value) -> String {
    let made = make(stage, run).await;
    assert_eq!(made.status, 201, "{made:?}");
    made.json()["runId"].as_str().unwrap().to_owned()
}

/// The hours around now on the clocks of UTC, as a window: from an hour ago until in two hours.
fn around_now(stage: &Stage) -> Value {
    let at = |hours: i64| {
        let at = jiff::Timestamp::from_millisecond(stage.clock.now_ms() + hours * HOUR).unwrap();
        at.strftime("%H:%M").to_string()
    };
    json!([format!("daily {}-{}", at(-1), at(2))])
}

fn called(stage: &Stage) -> Vec<String> {
    let mut called: Vec<String> = stage.control.calls().into_iter().map(|call| call.to).collect();
    called.sort();
    called
}

async fn show(stage: &Stage, id: &str) -> Value {
    stage.ask(&format!("/api/runs/{id}")).await
}

/// Milliseconds until the next lead is due.
async fn next_in(stage: &Stage, id: &str) -> i64 {
    let at: jiff::Timestamp = show(stage, id).await["nextDialAt"].as_str().unwrap().parse().unwrap();
    at.as_millisecond() - stage.clock.now_ms()
}

/// A lead's own zone wins over its number's, and each is called in the window there alone. To wait costs nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_calls_within_its_windows_alone() {
    let stage = Stage::start(setup()).await;
    let lead = |number: &str, zone: &str| json!({"number": number, "timezone": zone});
    let leads = vec![
        // In Etc/GMT-6 it is six hours later: the window is over there.
        lead("+15551000010", "Etc/GMT-6"),
        lead("+15551000011", "UTC"),
        // An empty cell of a CSV is none: it is Japan's clock then, nine hours later.
        lead("+819012340012", ""),
        lead("+819012340013", "UTC"),
    ];
    let id = started(&stage, run(around_now(&stage), json!({}), leads)).await;
    stage.wait("who may be called is called", async || show(&stage, &id).await["done"] == 2).await;
    assert_eq!(called(&stage), ["+15551000011", "+819012340013"]);
    let next = next_in(&stage, &id).await;
    // The next day's window in Japan opens first: in 24 h - 1 h - 9 h.
    assert!((14 * HOUR - 5 * MINUTE..=14 * HOUR).contains(&next), "{next}");
    stage.clock.advance_ms(next - MINUTE);
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    assert_eq!(called(&stage).len(), 2, "it is a minute too early");
    stage.clock.advance_ms(2 * MINUTE);
    stage.wait("Japan is called", async || show(&stage, &id).await["done"] == 3).await;
    let next = next_in(&stage, &id).await;
    stage.clock.advance_ms(next + MINUTE);
    stage.wait("all are called", async || show(&stage, &id).await["state"] == "done").await;
    assert_eq!(called(&stage).len(), 4, "each once");
    let results = stage.ask(&format!("/api/runs/{id}/results")).await;
    assert!(results["results"].as_array().unwrap().iter().all(|one| one["attempts"] == 1), "{results}");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_waits_for_the_window_too() {
    let stage = Stage::start(setup()).await;
    let retry = json!({"retry": {"busy": {"attempts": 2, "after_secs": 10_800}}});
    let busy = vec![json!({"number": "+15551000001", "timezone": "UTC"})];
    let id = started(&stage, run(around_now(&stage), retry, busy)).await;
    stage.wait("it was busy", async || show(&stage, &id).await["counts"]["queued"] == 1).await;
    stage.wait("it is called again later", async || !show(&stage, &id).await["nextDialAt"].is_null()).await;
    stage.clock.advance_ms(3 * HOUR + MINUTE);
    // It is due, and the window has closed an hour ago.
    stage.wait("it waits for tomorrow", async || !show(&stage, &id).await["nextDialAt"].is_null()).await;
    let next = next_in(&stage, &id).await;
    assert!((20 * HOUR - 5 * MINUTE..=20 * HOUR).contains(&next), "{next}");
    assert_eq!(called(&stage).len(), 1);
    stage.clock.advance_ms(next + MINUTE);
    stage.wait("it is called again", async || show(&stage, &id).await["state"] == "done").await;
    assert_eq!(called(&stage).len(), 2);
    stage.finish().await;
}

/// Thousands who may not be called yet stand before those who may.
#[tokio::test(flavor = "multi_thread")]
async fn who_may_be_called_is_not_behind_who_may_not() {
    let stage = Stage::start(setup()).await;
    let lead = |i: usize| {
        let zone = if i < 3_000 { "Etc/GMT-6" } else { "UTC" };
        json!({"number": format!("+1555100{:04}", i + 10), "timezone": zone})
    };
    let id = started(&stage, run(around_now(&stage), json!({}), (0..3_005).map(lead).collect())).await;
    stage.wait("those who may be called are called", async || show(&stage, &id).await["done"] == 5).await;
    stage.wait("all others are put off", async || !show(&stage, &id).await["nextDialAt"].is_null()).await;
    assert_eq!(called(&stage).len(), 5);
    let text = stage.ask("/metrics").await;
    assert!(!text.as_str().unwrap().contains("ringfence_run_dials_total{result=\"full\"} 3"), "{text}");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_or_a_zone_that_is_none_is_told() {
    let stage = Stage::start(setup()).await;
    let lead = || vec![json!({"number": "+15551000010"})];
    for (windows, part) in [
        (json!(["mon 9-17"]), "is not a list of hours"),
        (json!([]), "windows must have at least one"),
        (json!("daily 09:00-10:00"), "expected a sequence"),
    ] {
        let answer = make(&stage, run(windows.clone(), json!({}), lead())).await;
        let message = answer.json()["message"].as_str().unwrap_or_default().to_owned();
        assert!(answer.status == 400 && message.contains(part), "{windows}: {answer:?}");
    }
    let wrong = vec![json!({"number": "+15551000010"}), json!({"number": "+15551000011", "timezone": "Mars/Olympus"})];
    let answer = make(&stage, run(json!(["daily 00:00-24:00"]), json!({}), wrong)).await;
    let mistakes = answer.json()["mistakes"].to_string();
    assert!(answer.status == 422 && mistakes.contains("is not a time zone"), "{answer:?}");
    // Nobody knows what time it is there: it is not called, and the run says so.
    let satellite = vec![json!({"number": "+8821612345678"})];
    let id = started(&stage, run(json!(["daily 09:00-20:00"]), json!({}), satellite)).await;
    stage.wait("it is over", async || show(&stage, &id).await["state"] == "done").await;
    let results = stage.ask(&format!("/api/runs/{id}/results")).await.to_string();
    assert!(results.contains("time zone is unknown") && stage.control.calls().is_empty(), "{results}");
    stage.finish().await;
}
