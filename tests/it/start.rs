//! What is counted before anything is served: calls that live at the providers already, whoever placed them.

use ringfence::call::Origin;
use ringfence_simulator::{Fault, FaultKind, Operation, Provider};

use crate::outbound::{all_free, id, once, order, talk};
use crate::support::stage::{Setup, Stage};

/// A call placed past ringfence.
async fn place_outside_ringfence(stage: &Stage, to: &str) -> String {
    let key = stage.control.settings().el_api_key;
    let headers = [("content-type", "application/json"), ("xi-api-key", key.as_str())];
    let url = stage.provider("/v1/convai/twilio/outbound-call");
    let answer = stage.send("POST", &url, &headers, order(to).to_string()).await;
    id(&answer, "conversation_id")
}

fn five() -> Setup {
    Setup { elevenlabs: "concurrent = 5".to_owned(), ..Setup::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_live_before_the_start_are_counted_before_the_first_create() {
    let mut stage = Stage::start(five()).await;
    stage.stop_app().await;
    let mut live = Vec::new();
    for n in 0..5 {
        live.push(place_outside_ringfence(&stage, &format!("+155500020{n:02}")).await);
    }
    stage.start_app().await;
    let refused = stage.dial(None, "+15550002099").await;
    assert_eq!((refused.status, &refused.json()["limitName"]), (503, &"account.elevenlabs".into()));
    assert_eq!((stage.held().await, stage.control.counts().el_live_max), (5, 5));
    for call in &live {
        // Its carrier may have met it first, by another id.
        once(&stage, call, "it is known by its id", |r| r.origin == Origin::Foreign).await;
    }
    stage.control.end_call(&live[0]);
    stage.wait("its slot is free", async || stage.held().await == 4).await;
    assert_eq!(stage.dial(None, "+15550002098").await.status, 200);
    for call in stage.control.calls().into_iter().filter(|c| c.live) {
        stage.control.end_call(&call.conversation_id.unwrap());
    }
    all_free(&stage).await;
    stage.finish().await;
}

/// The record is lost with its disk: the calls are not.
#[tokio::test(flavor = "multi_thread")]
async fn calls_whose_record_was_lost_are_counted_before_the_first_create() {
    let mut stage = Stage::start(five()).await;
    for n in 0..5 {
        assert_eq!(stage.dial(None, &format!("+155500020{n:02}")).await.status, 200);
    }
    let record = stage.ask("/status").await["store"]["path"].as_str().unwrap().to_owned();
    stage.stop_app().await;
    for gone in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{record}{gone}"));
    }
    stage.start_app().await;
    assert_eq!((stage.app().rebuilt, stage.held().await), (0, 5));
    assert_eq!(stage.dial(None, "+15550002099").await.status, 503);
    assert_eq!(stage.control.counts().el_live_max, 5);
    for call in stage.control.calls() {
        stage.control.end_call(&call.conversation_id.unwrap());
    }
    all_free(&stage).await;
    stage.finish().await;
}

/// An order without an answer is one of the strangers, or none: what is counted is never less than what lives.
#[tokio::test(flavor = "multi_thread")]
async fn orders_that_wait_for_their_ids_are_not_counted_twice_at_the_start() {
    let mut stage = Stage::start(five()).await;
    stage.control.set_webhook_loss(1.0);
    for provider in [Provider::ElevenLabs, Provider::Twilio] {
        stage.control.fault(Fault { ms: 60_000, ..Fault::next(provider, FaultKind::Slow, 1) });
    }
    // Their apps give up; the exchanges die with the process.
    let (dialled, talked) = (stage.dial(None, "+15550002001"), talk(&stage, "+15550002002", &[]));
    tokio::select! {
        answered = async { tokio::join!(dialled, talked) } => panic!("{answered:?}"),
        () = stage.wait("the providers have both", async || {
            let counts = stage.control.counts();
            counts.creates_el == 1 && counts.creates_tw == 1
        }) => {}
    }
    stage.stop_app().await;
    stage.control.clear_faults(None);
    let past = place_outside_ringfence(&stage, "+15550002003").await;
    stage.start_app().await;
    assert_eq!((stage.app().rebuilt, stage.held().await), (2, 3), "two of ours, one foreign");
    assert_eq!(stage.record(&past).await.unwrap().origin, Origin::Foreign);
    for call in stage.control.calls() {
        let sid = call.call_sid.unwrap();
        let found = once(&stage, &sid, "it is known by its id", |r| !r.unsettled).await;
        assert_eq!(found.origin == Origin::Create, call.conversation_id.as_deref() != Some(past.as_str()));
        stage.control.end_call(&sid);
    }
    all_free(&stage).await;
    assert_eq!(
        stage.app().calls().lifecycle.store.latest_calls(10).await.unwrap().len(),
        3,
        "three calls, three records"
    );
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_does_not_answer_keeps_nobody_from_starting() {
    let mut stage = Stage::start(Setup { timeouts: "provider_query_secs = 1".to_owned(), ..five() }).await;
    stage.stop_app().await;
    let past = place_outside_ringfence(&stage, "+15550002001").await;
    let silent =
        Fault { on: Operation::Any, n: None, ms: 60_000, ..Fault::next(Provider::ElevenLabs, FaultKind::Slow, 1) };
    stage.control.fault(silent);
    stage.start_app().await;
    assert_eq!(stage.ask("/ready").await["status"], "ready");
    let status = stage.ask("/status").await;
    let account = status["accounts"].as_array().unwrap().iter().find(|a| a["name"] == "elevenlabs").unwrap();
    assert!(account["sweepError"].as_str().unwrap().contains("no answer within"), "{account:#}");
    stage.control.clear_faults(None);
    once(&stage, &past, "the sweeps meet it", |r| r.origin == Origin::Foreign).await;
    stage.control.end_call(&past);
    all_free(&stage).await;
    stage.finish().await;
}
