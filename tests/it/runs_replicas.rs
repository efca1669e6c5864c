//! Bulk runs of two replicas over one Postgres without a Redis: what one frees the other dials, and a breaker is of the run.

use std::time::{Duration, Instant};

use bytes::Bytes;
use ringfence_simulator::Millis;
use serde_json::{Value, json};

use crate::runs::{act, leads, start, twilio, until_state, with};
use crate::support::postgres as server;
use crate::support::stage::{Behind, Setup, Stage};

/// Two replicas before the same providers: the tables of the second are added to what they share.
async fn two(talk_ms: u64, business: &str, second: &str) -> (Stage, Stage) {
    let url = tokio::task::spawn_blocking(|| server::shared().database()).await.unwrap();
    let tables = format!("[businesses.1]\n{business}\n[store]\nurl = \"{url}\"\n[gate]\nbackend = \"database\"\n");
    let setup = |more: &str| {
        let mut setup = Setup { tables: format!("{tables}{more}"), ..Setup::default() };
        setup.sim.talk_ms = Millis::exactly(talk_ms);
        setup
    };
    let one = Stage::start(setup("")).await;
    let beside = Some((one.simulator_url(), one.control.clone()));
    let other = Stage::start(Setup { beside, ..setup(second) }).await;
    (one, other)
}

async fn release(stage: &Stage, call: &str) {
    let body = json!({"force": true, "reason": "test"}).to_string();
    let answer = stage.send("POST", &stage.admin(&format!("/api/calls/{call}/release")), &[], body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// A slot that is freed at a replica that does not dial, and a run that is resumed there, are taken up by the one that does.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_freed_at_one_replica_is_dialled_by_another() {
    if server::is_missing() {
        return;
    }
    let (dials, frees) = two(600_000, "max_calls = 1", "[runs]\ndials = false\n").await;
    let id = start(&dials, with(twilio(), json!({"breaker": {"failures": 0}})), leads(30)).await;
    let live = async |n: usize| {
        dials.wait("the next one is called", async || dials.control.calls().len() == n).await;
        let calling = async || {
            let calls = frees.ask("/api/calls?phase=live").await;
            calls["calls"][0]["callId"].as_str().map(str::to_owned)
        };
        frees.wait("it is live", async || calling().await.is_some()).await;
        calling().await.unwrap()
    };
    let (mut took, mut last) = (vec![], live(1).await);
    for n in 1..=12 {
        let freed = Instant::now();
        release(&frees, &last).await;
        while dials.control.calls().len() == n {
            assert!(freed.elapsed() < Duration::from_secs(30), "nobody takes the slot");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        took.push(freed.elapsed());
        last = live(n + 1).await;
    }
    took.sort();
    println!("a slot that was freed elsewhere is taken after {:?}; the slowest {:?}", took[6], took[11]);
    // The same of a run that is resumed there.
    assert_eq!(act(&frees, &id, "pause", json!({})).await.status, 200);
    release(&frees, &last).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(dials.control.calls().len(), 13, "it is paused");
    let resumed = Instant::now();
    assert_eq!(act(&frees, &id, "resume", json!({})).await.json()["state"], "running");
    dials.wait("it goes on", async || dials.control.calls().len() == 14).await;
    println!("a run that was resumed elsewhere goes on after {:?}", resumed.elapsed());
    act(&frees, &id, "cancel", json!({})).await;
    frees.finish().await;
    dials.finish().await;
}

/// Two replicas pause a run after as many failures as one would.
#[tokio::test(flavor = "multi_thread")]
async fn a_breaker_counts_the_calls_of_both_replicas() {
    if server::is_missing() {
        return;
    }
    let (one, other) = two(50, "max_calls = 4", "").await;
    // Numbers that end in 0003 cannot be reached.
    let list: Vec<Value> = (0..80).map(|i| json!({"number": format!("+15551{i:02}0003"), "name": "x"})).collect();
    let run = with(twilio(), json!({"breaker": {"window": 40, "failures": 20}}));
    let id = start(&one, run, list).await;
    let paused = until_state(&other, &id, "paused").await;
    assert!(paused["reason"].as_str().unwrap().starts_with("20 of the last 40 calls failed"), "{paused}");
    let made = one.control.calls().len();
    println!("{made} calls until the run was paused, at most {} at once", one.control.counts().tw_live_max);
    assert!(one.control.counts().tw_live_max <= 4, "of both replicas together");
    // Those that were up at that moment, and slots that were freed before the last results were written. Two that count by themselves make
    // nearly twice as many.
    assert!((20..=30).contains(&made), "{made:?}");
    act(&one, &id, "cancel", json!({})).await;
    // The first has the providers.
    other.finish().await;
    one.finish().await;
}

/// A lead that ends without a call is told to the app as the end of a call is: signed, once.
#[tokio::test(flavor = "multi_thread")]
async fn an_app_is_told_of_a_lead_that_is_not_called() {
    let app = Behind::replying(Box::new(|_| http::Response::new(Bytes::new()))).await;
    let secret = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let tables = format!(
        "[app]\nevents_url = \"{}/told\"\nevents_secret = \"{secret}\"\n[destinations]\nonly_numbers = [\"+15551000010\"]",
        app.url()
    );
    let mut setup = Setup { tables, ..Setup::default() };
    setup.sim.talk_ms = Millis::exactly(50);
    let stage = Stage::start(setup).await;
    let id = start(&stage, twilio(), leads(2)).await;
    let done = until_state(&stage, &id, "done").await;
    assert_eq!((&done["counts"]["completed"], &done["counts"]["failed"]), (&1.into(), &1.into()), "{done}");
    let told =
        || -> Vec<Value> { app.at("/told").iter().map(|got| serde_json::from_slice(&got.body).unwrap()).collect() };
    // Each is delivered by itself, in any order.
    let has_told = |what: &str| told().iter().any(|one| one["type"] == what);
    stage.wait("the app is told", async || has_told("run.done") && has_told("run.job_done")).await;
    let jobs: Vec<Value> = told().into_iter().filter(|one| one["type"] == "run.job_done").collect();
    let data = &jobs[0]["data"];
    assert_eq!((jobs.len(), &data["runId"], &data["lead"]), (1, &json!(id), &2.into()), "{jobs:?}");
    assert!(data["error"].as_str().unwrap().starts_with("DO_NOT_CALL_BLOCKED"), "{data}");
    assert!(app.at("/told").iter().all(|got| got.headers.contains_key("webhook-signature")));
    let ended = || told().into_iter().filter(|one| one["type"] == "call.ended").count();
    stage.wait("the other has its call", async || ended() == 1).await;
    stage.finish().await;
}
