//! Bulk runs as a page follows them over the WebSocket: progress and jobs, whichever replica dials, to who may see the business alone.

use std::collections::BTreeMap;

use ringfence_simulator::Millis;
use serde_json::{Value, json};

use crate::runs::{leads, twilio, with};
use crate::support::hooks::now_secs;
use crate::support::postgres as server;
use crate::support::socket::{Socket, setup, token, token_of};
use crate::support::stage::{Setup, Stage};

const BUSINESSES: &str = "[businesses.1]\nmax_calls = 3\n[businesses.2]\nmax_calls = 3\n";

fn talks(talk_ms: u64, tables: &str) -> Setup {
    let mut setup = setup("", "", &format!("{BUSINESSES}{tables}"));
    setup.sim.talk_ms = Millis::exactly(talk_ms);
    setup
}

async fn post(stage: &Stage, path: &str, body: &Value) -> Value {
    let headers = [("content-type", "application/json")];
    let answer = stage.send("POST", &stage.admin(path), &headers, body.to_string()).await;
    assert!(matches!(answer.status, 200 | 201), "{answer:?}");
    answer.json()
}

/// A run that has no leads yet.
async fn make(stage: &Stage, run: Value) -> String {
    post(stage, "/api/runs", &run).await["runId"].as_str().unwrap().to_owned()
}

/// Its leads; from now on it is dialled.
async fn load(stage: &Stage, id: &str, n: usize) {
    post(stage, &format!("/api/runs/{id}/leads"), &json!(leads(n))).await;
}

async fn follow(socket: &mut Socket, id: &str) -> Value {
    let confirmed = socket.follow(&format!("run:{id}")).await;
    assert_eq!((&confirmed["run_id"], &confirmed["identifier"]), (&json!(id), &json!(format!("run:{id}"))));
    socket.hear_a("run_progress").await
}

/// Hears of a run until it is so; how each job was told to have ended, and how often.
async fn hear_until(socket: &mut Socket, state: &str) -> (Value, BTreeMap<i64, Vec<Value>>) {
    let mut ends = BTreeMap::<i64, Vec<Value>>::new();
    loop {
        let message = socket.hear().await;
        match message["type"].as_str().unwrap() {
            "run_job" if message["state"] == "done" => {
                ends.entry(message["lead"].as_i64().unwrap()).or_default().push(message)
            }
            "run_job" => assert!(["calling", "queued"].contains(&message["state"].as_str().unwrap()), "{message}"),
            "run_progress" if message["state"] == state => return (message, ends),
            kind => assert_eq!(kind, "run_progress", "{message}"),
        }
    }
}

/// Two replicas: one dials, the other has the socket.
async fn followed_at_another(store: &str) {
    let tables = format!("[store]\n{store}\n[gate]\nbackend = \"database\"\n");
    let dials = Stage::start(talks(1_200, &tables)).await;
    let shows = Stage::start(talks(1_200, &format!("{tables}[runs]\ndials = false\n"))).await;
    let id = make(&dials, twilio()).await;
    let mut socket = Socket::open(&shows, &token()).await;
    let progress = follow(&mut socket, &id).await;
    assert_eq!(
        (&progress["state"], &progress["business"], &progress["done"]),
        (&json!("ready"), &json!("1"), &json!(0))
    );
    load(&dials, &id, 8).await;
    let (done, ends) = hear_until(&mut socket, "done").await;
    assert_eq!(
        (&done["leads"], &done["done"], &done["counts"]["completed"]),
        (&json!(8), &json!(8), &json!(8)),
        "{done}"
    );
    assert_eq!(ends.keys().copied().collect::<Vec<_>>(), (1..=8).collect::<Vec<_>>(), "each lead");
    for end in ends.values().flatten() {
        assert_eq!((&end["outcome"], &end["attempts"], &end["error"]), (&json!("completed"), &json!(1), &json!(null)));
        // The call can be followed by that id.
        let call = end["call_id"].as_str().unwrap();
        assert!(shows.record(call).await.is_some(), "{end}");
        assert!(!end.to_string().contains("+1555"), "no number: {end}");
    }
    assert!(ends.values().all(|told| told.len() == 1), "once: {ends:?}");
    // Who comes later is told how it stands.
    let mut late = Socket::open(&dials, &token()).await;
    assert_eq!(follow(&mut late, &id).await["counts"]["completed"], 8);
    dials.finish().await;
    shows.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_followed_at_a_replica_that_does_not_dial_over_sqlite() {
    let folder = std::env::temp_dir().join(format!("ringfence-it-{}", ringfence::ids::CallId::new()));
    std::fs::create_dir_all(&folder).unwrap();
    Box::pin(followed_at_another(&format!("path = \"{}\"", folder.join("shared.db").display()))).await;
    let _ = std::fs::remove_dir_all(folder);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_followed_at_a_replica_that_does_not_dial_over_postgres() {
    if server::is_missing() {
        return;
    }
    let url = tokio::task::spawn_blocking(|| server::shared().database()).await.unwrap();
    Box::pin(followed_at_another(&format!("url = \"{url}\""))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_followed_by_who_may_see_its_business_alone() {
    let stage = Stage::start(talks(600_000, "")).await;
    let id = make(&stage, twilio()).await;
    let of = |businesses: Value| token_of(&json!({"exp": now_secs() + 600, "businesses": businesses}));
    // What may not be seen and what is not there look the same.
    let mut other = Socket::open(&stage, &of(json!(["2"]))).await;
    let mut answers = vec![];
    for id in [id.as_str(), "run_nowhere"] {
        for verb in ["subscribe", "unsubscribe"] {
            other.say(&json!({verb: format!("run:{id}")})).await;
            answers.push(other.hear_a("error").await.to_string().replace(id, "ID"));
        }
    }
    assert!(answers[0].contains("RUN_NOT_FOUND"), "{answers:?}");
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    let mut own = Socket::open(&stage, &of(json!(["1"]))).await;
    follow(&mut own, &id).await;
    // Twice is once.
    follow(&mut own, &id).await;
    let mut less = Socket::open(&stage, &of(json!(["1", "2"]))).await;
    follow(&mut less, &id).await;
    less.say(&json!({"token": of(json!(["2"]))})).await;
    less.hear_a("token_renewed").await;
    let mut gone = Socket::open(&stage, &token()).await;
    follow(&mut gone, &id).await;
    gone.say(&json!({"unsubscribe": format!("run:{id}")})).await;
    assert_eq!(gone.hear_a("unsubscribe_confirmed").await["identifier"], format!("run:{id}"));
    load(&stage, &id, 500).await;
    hear_until(&mut own, "running").await;
    // Most of a canceled run is canceled without a call: the counts say so.
    post(&stage, &format!("/api/runs/{id}/cancel"), &json!({})).await;
    loop {
        let (canceled, ends) = hear_until(&mut own, "canceled").await;
        assert!(ends.values().flatten().all(|end| end["outcome"] == "canceled"), "{ends:?}");
        if canceled["counts"]["queued"] == 0 {
            assert!(canceled["counts"]["canceled"].as_u64().unwrap() >= 497, "{canceled}");
            break;
        }
    }
    for mut silent in [less, gone, other] {
        silent.hears_nothing().await;
    }
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_follows_a_bounded_number_of_runs() {
    let stage = Stage::start(talks(600_000, "")).await;
    let mut socket = Socket::open(&stage, &token()).await;
    let mut first = None;
    for _ in 0..50 {
        let id = make(&stage, with(twilio(), json!({"name": "one of many"}))).await;
        assert_eq!(follow(&mut socket, &id).await["name"], "one of many");
        first.get_or_insert(id);
    }
    let (first, more) = (first.unwrap(), make(&stage, twilio()).await);
    socket.say(&json!({"subscribe": format!("run:{more}")})).await;
    assert_eq!(socket.hear_a("error").await["code"], "SUBSCRIPTION_FAILED");
    follow(&mut socket, &first).await;
    socket.say(&json!({"unsubscribe": format!("run:{first}")})).await;
    socket.hear_a("unsubscribe_confirmed").await;
    follow(&mut socket, &more).await;
    stage.finish().await;
}
