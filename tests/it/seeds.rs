//! What clients of the systems send that ringfence replaces, as their public code has it.

use serde_json::json;

use crate::outbound::{all_free, once, order};
use crate::support::hooks::{EVENTS, elevenlabs, now_secs, seed_event};
use crate::support::socket::{said, setup};
use crate::support::stage::{Setup, Stage};
use ringfence::call::{EndProof, Origin, Phase};
use ringfence_simulator::sign;

/// What is said in a call that nobody knows, under an id that no provider knows: it is on record, and given up at its deadline.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_only_talked_about_holds_no_slot_for_long() {
    let mut setup = setup("", "", "[deadlines]\nlive_secs = 1");
    setup.replace.clear();
    let stage = Stage::start(setup).await;
    let spoken = json!({"call_sid": "EL_9_1760000000", "speaker": "agent", "message": "Hello."});
    let answer = said(&stage, &spoken).await;
    assert_eq!((answer.status, &answer.json()["sequence_number"]), (201, &json!(1)), "{answer:?}");
    assert_eq!(stage.held().await, 0, "an app's word proves no call");
    let listed = stage.ask("/api/calls").await;
    assert_eq!(listed["calls"][0]["origin"], "unconfirmed", "{listed}");
    once(&stage, "EL_9_1760000000", "it is given up", |r| r.proof == Some(EndProof::Deadline)).await;
    // What it was told stays.
    let more = said(&stage, &spoken).await;
    assert_eq!((more.status, stage.held().await), (201, 0), "{more:?}");
    stage.finish().await;
}

/// What is said in a call that nobody knows takes no place; its provider's word does, whoever has it first.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_only_talked_about_counts_once_its_provider_confirms_it() {
    let setup = Setup { root: "concurrent = 1".to_owned(), ..setup("", "", "") };
    let stage = Stage::start(setup).await;
    let say = async |conversation: &str| {
        let spoken = json!({"conversation_id": conversation, "speaker": "agent", "message": "Hello."});
        assert_eq!(said(&stage, &spoken).await.status, 201);
    };
    say("conv_heard").await;
    say("conv_heard").await;
    assert_eq!(stage.held().await, 0);
    let started = seed_event("conversation.started", "conv_heard", "inbound");
    assert_eq!(elevenlabs(&stage, &started).await.status, 200);
    let record = once(&stage, "conv_heard", "it counts", |r| r.origin == Origin::Foreign).await;
    assert_eq!((stage.held().await, record.phase), (1, Phase::Live));
    assert_eq!(stage.dial(None, "+15550002001").await.status, 503, "the only place is taken");
    let ended = seed_event("conversation.ended", "conv_heard", "inbound");
    assert_eq!(elevenlabs(&stage, &ended).await.status, 200);
    assert_eq!(stage.held().await, 0);
    // An order of ours that is talked about holds the one place that it has.
    let answer = stage.dial(None, "+15550002001").await;
    assert_eq!(answer.status, 200);
    say(answer.json()["conversation_id"].as_str().unwrap()).await;
    assert_eq!(stage.held().await, 1);
    stage.finish().await;
}

/// The sweep finds it at its provider.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_was_placed_past_ringfence_and_is_talked_about_is_confirmed_by_the_sweep() {
    let stage = Stage::start(Setup::default()).await;
    let key = stage.control.settings().el_api_key;
    let headers = [("content-type", "application/json"), ("xi-api-key", key.as_str())];
    let url = stage.provider("/v1/convai/twilio/outbound-call");
    let past = stage.send("POST", &url, &headers, order("+15550002001").to_string()).await;
    let conversation = past.json()["conversation_id"].as_str().unwrap().to_owned();
    let spoken = json!({"conversation_id": conversation, "speaker": "agent", "message": "Hello."});
    assert_eq!(said(&stage, &spoken).await.status, 201);
    // Its carrier's sweep may meet it before ElevenLabs' confirms it: either way it counts once.
    stage.wait("it counts", async || stage.held().await == 1).await;
    let lists = stage.control.counts().list_requests;
    stage.wait("a few sweeps", async || stage.control.counts().list_requests > lists + 12).await;
    assert_eq!(stage.held().await, 1);
    stage.control.end_call(&conversation);
    all_free(&stage).await;
    once(&stage, &conversation, "it is over", |r| r.phase == Phase::Ended).await;
    stage.finish().await;
}

/// Where the first of them takes its events, and at a path of the operator's own.
#[tokio::test(flavor = "multi_thread")]
async fn events_come_to_the_paths_that_their_clients_have() {
    let tables = "[inbound]\nelevenlabs_paths = [\"/hooks/el\"]".to_owned();
    let stage = Stage::start(Setup { tables, ..Setup::default() }).await;
    let secret = stage.control.settings().el_webhook_secret;
    for (n, path) in [EVENTS, "/api/elevenlabs/webhook", "/api/elevenlabs/post-call", "/hooks/el"].iter().enumerate() {
        let event = seed_event("conversation.started", &format!("conv_{n}"), "inbound").to_string();
        let signature = sign::elevenlabs(&secret, now_secs(), event.as_bytes());
        let headers = [("elevenlabs-signature", signature.as_str())];
        let answer = stage.send("POST", &stage.webhooks(path), &headers, event.clone()).await;
        assert_eq!((answer.status, answer.json()), (200, json!({"received": true})), "{path}");
        assert_eq!(stage.send("POST", &stage.webhooks(path), &[], event).await.status, 401, "{path}: unsigned");
        assert!(stage.record(&format!("conv_{n}")).await.is_some(), "{path}");
    }
    stage.finish().await;
}
