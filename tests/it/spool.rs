//! Bodies that are too large for the record: on the disk before they are answered for, delivered from there, gone when they are.

use std::net::SocketAddr;

use ringfence_simulator::sign;
use serde_json::{Value, json};

use crate::support::child::Scene;
use crate::support::hooks::{EVENTS, elevenlabs, now_secs, seed_event};
use crate::support::spooled;
use crate::support::stage::{Behind, Setup, Stage};

/// An address where nobody listens, yet.
fn nobody() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], ringfence::net::spare_port()))
}

fn audio(conversation: &str, kib: usize) -> Value {
    json!({"type": "post_call_audio", "event_timestamp": 2,
        "data": {"agent_id": "agent_acme", "conversation_id": conversation, "full_audio": "QUJD".repeat(kib << 8)}})
}

fn to(app: SocketAddr, more: &str) -> Setup {
    Setup {
        app: Some(format!("http://{app}")),
        replace: vec![
            ("sweep_ms = 100".to_owned(), "sweep_ms = 60000".to_owned()),
            ("spool_dir = \"spool\"".to_owned(), format!("spool_dir = \"spool\"\n{more}")),
        ],
        ..Setup::default()
    }
}

async fn deliveries(stage: &Stage) -> Vec<Value> {
    let events = stage.ask("/api/events").await;
    let ids: Vec<String> =
        events["events"].as_array().unwrap().iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect();
    let mut all = vec![];
    for id in ids {
        all.extend(stage.ask(&format!("/api/events/{id}")).await["deliveries"].as_array().unwrap().clone());
    }
    all
}

/// `kill -9` after the acknowledgement, while the app is down.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_body_survives_a_kill_after_its_acknowledgement() {
    let address = nobody();
    let mut scene = Scene::usual().await;
    let config = scene.folder().join("ringfence.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace(&scene.app.url(), &format!("http://{address}"))).unwrap();
    scene.start_well().await;
    let body = audio("conv_1", 8 << 10).to_string();
    let signature = sign::elevenlabs(&scene.control.settings().el_webhook_secret, now_secs(), body.as_bytes());
    let headers = [("content-type", "application/json"), ("elevenlabs-signature", signature.as_str())];
    let answer = scene.ask("webhooks", "POST", EVENTS, &headers, body.clone()).await.expect("an answer");
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    let spool = scene.folder().join("ringfence.db-spool");
    let files = spooled(&spool);
    assert_eq!(files.len(), 1);
    assert!(std::fs::read(spool.join(&files[0])).unwrap() == body.as_bytes(), "byte for byte");
    scene.kill();
    let app = Behind::at_address(address).await;
    scene.start_well().await;
    scene.wait("the app has it", async || !app.at(EVENTS).is_empty()).await;
    assert!(app.at(EVENTS)[0].body == body, "byte for byte");
    assert_eq!(app.at(EVENTS)[0].headers["elevenlabs-signature"], signature.as_str());
    scene.wait("the file is gone", async || spooled(&spool).is_empty()).await;
    assert_eq!(app.at(EVENTS).len(), 1);
    scene.finish().await;
}

/// It dies on the way of the webhook, before and after it has answered, and while the app is told: what was answered for is
/// delivered, and no file stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_death_on_the_way_of_a_large_body_loses_nothing_that_was_acknowledged() {
    for point in ["webhook.received", "webhook.applied", "webhook.settled", "webhook.answered", "delivery.sent"] {
        let mut scene = Scene::usual().await;
        assert!(scene.start(&format!("{point}=abort:1")).await);
        let body = audio("conv_1", 2 << 10).to_string();
        let signature = sign::elevenlabs(&scene.control.settings().el_webhook_secret, now_secs(), body.as_bytes());
        let headers = [("content-type", "application/json"), ("elevenlabs-signature", signature.as_str())];
        let answer = scene.ask("webhooks", "POST", EVENTS, &headers, body.clone()).await;
        assert!(scene.died(crate::support::stage::PATIENCE).await.is_some(), "nobody came to {point}");
        scene.start_well().await;
        if answer.is_none_or(|answer| answer.status != 200) {
            // The provider sends it again.
            let answer = scene.ask("webhooks", "POST", EVENTS, &headers, body.clone()).await.expect("an answer");
            assert_eq!(answer.status, 200, "{point}");
        }
        scene.wait("the app has it", async || !scene.app.at(EVENTS).is_empty()).await;
        assert!(scene.app.at(EVENTS).iter().all(|got| got.body == body), "{point}");
        let spool = scene.folder().join("ringfence.db-spool");
        scene.wait("the file is gone", async || spooled(&spool).is_empty()).await;
        scene.finish().await;
    }
}

/// Beyond the quota nothing is taken, and nothing is left behind: the provider sends it again when there is room.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_beyond_the_quota_comes_again_when_there_is_room() {
    let address = nobody();
    let stage = Stage::start(to(address, "spool_max_mb = 4")).await;
    let (first, second) = (audio("conv_1", 3 << 10), audio("conv_2", 2 << 10));
    assert_eq!(elevenlabs(&stage, &first).await.status, 200);
    let refused = elevenlabs(&stage, &second).await;
    assert_eq!((refused.status, refused.json()["error"].as_str()), (503, Some("SPOOL_UNAVAILABLE")));
    assert_eq!(stage.spooled().len(), 1);
    assert_eq!(stage.ask("/api/events").await["events"].as_array().unwrap().len(), 1);
    let metrics = stage.ask("/metrics").await;
    let counted = "ringfence_webhooks_total{account=\"elevenlabs\",event=\"post_call_audio\",outcome=\"spool_full\"} 1";
    assert!(metrics.as_str().unwrap().contains(counted), "{metrics}");
    assert_eq!(elevenlabs(&stage, &seed_event("conversation.started", "conv_3", "inbound")).await.status, 200);
    let app = Behind::at_address(address).await;
    stage.wait("the first is there", async || stage.spooled().is_empty()).await;
    assert_eq!(elevenlabs(&stage, &second).await.status, 200);
    stage
        .wait("both are there", async || app.at(EVENTS).iter().filter(|got| got.body.len() > 1 << 20).count() == 2)
        .await;
    stage.wait("no file is left", async || stage.spooled().is_empty()).await;
    stage.finish().await;
}

/// A file that is gone is no empty body: the delivery is given up and says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_whose_file_is_gone_is_given_up_and_seen() {
    let address = nobody();
    let mut stage = Stage::start(to(address, "")).await;
    assert_eq!(elevenlabs(&stage, &audio("conv_1", 2 << 10)).await.status, 200);
    stage.wait("it was tried", async || deliveries(&stage).await.iter().any(|d| d["attempts"] != 0)).await;
    let event = stage.ask("/api/events").await["events"][0].clone();
    assert_eq!(event["bodyKept"], true);
    stage.stop_app().await;
    stage.remove_spooled();
    let app = Behind::at_address(address).await;
    stage.start_app().await;
    stage.wait("it is given up", async || deliveries(&stage).await.iter().all(|d| d["state"] == "given_up")).await;
    let why = deliveries(&stage).await[0]["lastError"].clone();
    assert_eq!(why, "its body is not in the spool any more");
    assert_eq!(app.got().len(), 0);
    stage.finish().await;
}
