//! Webhooks that come while the record is away: kept beside it, answered, and on record when it is back.

use std::path::PathBuf;

use ringfence_simulator::sign;
use serde_json::{Value, json};

use crate::support::child::Scene;
use crate::support::hooks::{EVENTS, now_secs};
use crate::support::socket::HEARD;
use crate::support::spooled;
use crate::support::stage::Answer;

/// The record, and where it is while it is away.
fn places(scene: &Scene) -> (PathBuf, PathBuf) {
    (scene.folder().join("ringfence.db"), scene.folder().join("aside"))
}

fn ended(conversation: &str) -> Value {
    json!({"type": "post_call_transcription", "event_timestamp": now_secs(), "data": {
        "agent_id": "agent_acme", "conversation_id": conversation, "status": "done", "transcript": [],
        "metadata": {"start_time_unix_secs": now_secs() - 9, "call_duration_secs": 9, "cost": 12}}})
}

/// Writes a text of its config otherwise.
fn rewrite(scene: &Scene, old: &str, new: &str) {
    let config = scene.folder().join("ringfence.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(text.contains(old), "{text}");
    std::fs::write(&config, text.replacen(old, new, 1)).unwrap();
}

async fn post(scene: &Scene, body: &Value) -> Answer {
    let body = body.to_string();
    let signature = sign::elevenlabs(&scene.control.settings().el_webhook_secret, now_secs(), body.as_bytes());
    let headers = [("content-type", "application/json"), ("elevenlabs-signature", signature.as_str())];
    scene.ask("webhooks", "POST", EVENTS, &headers, body).await.expect("an answer")
}

async fn journaled(scene: &Scene) -> u64 {
    scene.status().await["store"]["journaled"].as_u64().unwrap()
}

fn told(scene: &Scene, body: &Value) -> usize {
    scene.app.at(EVENTS).iter().filter(|got| got.body == body.to_string()).count()
}

/// It is known to nobody but the journal when the process dies; it is applied once, and the app is told once, by the next.
#[tokio::test(flavor = "multi_thread")]
async fn what_came_while_the_record_was_away_is_applied_and_delivered_once() {
    for killed in [false, true] {
        let mut scene = Scene::usual().await;
        scene.start_well().await;
        scene.control.set_webhook_loss(1.0);
        let answer = scene.dial().await.unwrap();
        let conversation = answer.json()["conversation_id"].as_str().unwrap().to_owned();
        let (file, aside) = places(&scene);
        std::fs::rename(&file, &aside).unwrap();
        let end = ended(&conversation);
        let audio = json!({"type": "post_call_audio", "event_timestamp": 2, "data":
            {"agent_id": "agent_acme", "conversation_id": conversation, "full_audio": "QUJD".repeat(400_000)}});
        // The second time it comes it is the same.
        for body in [&end, &end, &audio] {
            assert_eq!(post(&scene, body).await.status, 200);
        }
        assert_eq!(journaled(&scene).await, 3);
        assert!(told(&scene, &end) == 0 && scene.held().await == 1, "nothing of it is applied before it is on record");
        let metrics = scene.ask("admin", "GET", "/metrics", &[], "").await.unwrap();
        assert!(String::from_utf8_lossy(&metrics.body).contains("ringfence_webhooks_journaled 3"));
        if killed {
            scene.kill();
        }
        std::fs::rename(&aside, &file).unwrap();
        if killed {
            scene.start_well().await;
        }
        scene.wait("all is on record", async || journaled(&scene).await == 0).await;
        scene.wait("the call is over", async || scene.held().await == 0).await;
        scene.wait("the app is told", async || told(&scene, &end) == 1 && told(&scene, &audio) == 1).await;
        let events = scene.ask("admin", "GET", "/api/events", &[], "").await.unwrap().json();
        let events = events["events"].as_array().unwrap();
        assert_eq!(events.len(), 2, "{events:?}");
        assert!(events.iter().all(|event| event["outcome"].is_string()), "{events:?}");
        let folder = scene.folder().join("ringfence.db-spool");
        scene.wait("no file is left", async || spooled(&folder).is_empty()).await;
        assert!(spooled(&folder.join("journal")).is_empty());
        assert_eq!((told(&scene, &end), told(&scene, &audio)), (1, 1));
        scene.finish().await;
    }
}

/// What was said is answered with where it stands on record: without the record there is no answer, and it is sent again.
#[tokio::test(flavor = "multi_thread")]
async fn what_needs_the_record_for_its_answer_is_refused() {
    let mut scene = Scene::usual().await;
    rewrite(&scene, "webhook_secrets = [", "webhook_tokens = [\"token\"]\nwebhook_secrets = [");
    scene.start_well().await;
    let said = json!({"conversation_id": "conv_1", "speaker": "user", "message": "Good morning", "timestamp": "2026-01-02T03:04:05.678Z"});
    let (file, aside) = places(&scene);
    std::fs::rename(&file, &aside).unwrap();
    let headers = [("content-type", "application/json"), ("x-ringfence-token", "token")];
    let say = async || scene.ask("webhooks", "POST", HEARD, &headers, said.to_string()).await.expect("an answer");
    let refused = say().await;
    assert_eq!((refused.status, refused.json()["error"].as_str()), (503, Some("STORE_UNAVAILABLE")));
    assert_eq!(journaled(&scene).await, 0);
    std::fs::rename(&aside, &file).unwrap();
    scene.wait("it is taken", async || say().await.status == 201).await;
    scene.finish().await;
}

/// Beyond its size nothing is answered for.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_journal_refuses() {
    let mut scene = Scene::usual().await;
    rewrite(&scene, "[inbound]\n", "[inbox]\nspool_max_mb = 1\n[inbound]\n");
    scene.start_well().await;
    let (file, aside) = places(&scene);
    std::fs::rename(&file, &aside).unwrap();
    let with = |conversation: &str| {
        let mut event = ended(conversation);
        event["data"]["analysis"] = json!({"transcript_summary": "x".repeat(400 << 10)});
        event
    };
    let mut statuses = vec![];
    for n in 0..4 {
        statuses.push(post(&scene, &with(&format!("conv_{n}"))).await.status);
    }
    assert_eq!(statuses, [200, 200, 503, 503]);
    assert_eq!(journaled(&scene).await, 2);
    std::fs::rename(&aside, &file).unwrap();
    scene.wait("both are on record", async || journaled(&scene).await == 0).await;
    assert_eq!(post(&scene, &with("conv_2")).await.status, 200);
    scene.finish().await;
}
