//! What clients of the systems send that ringfence replaces, as their public code has it.

use serde_json::json;

use crate::support::hooks::{EVENTS, now_secs, seed_event};
use crate::support::socket::{said, setup};
use crate::support::stage::{Setup, Stage};
use ringfence::call::EndProof;
use ringfence::simulate::sign;

/// What is said in a call that nobody knows, under an id that no provider knows: it is on record, and given up at its deadline.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_only_talked_about_holds_no_slot_for_long() {
    let mut setup = setup("", "", "[deadlines]\nlive_secs = 1");
    setup.replace.clear();
    let stage = Stage::start(setup).await;
    let spoken = json!({"call_sid": "EL_9_1760000000", "speaker": "agent", "message": "Hello."});
    let answer = said(&stage, &spoken).await;
    assert_eq!((answer.status, &answer.json()["sequence_number"]), (201, &json!(1)), "{answer:?}");
    stage.wait("it is given up", async || stage.held().await == 0).await;
    let record = stage.record("EL_9_1760000000").await.unwrap();
    assert_eq!(record.proof, Some(EndProof::Deadline));
    // What it was told stays.
    let more = said(&stage, &spoken).await;
    assert_eq!((more.status, stage.held().await), (201, 0), "{more:?}");
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
