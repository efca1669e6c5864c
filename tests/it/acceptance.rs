//! The acceptance tests of the systems that ringfence replaces, by their letters, and the oracle.

use std::sync::Arc;

use ringfence_simulator::{Fault, FaultKind, Inbound, Millis, Provider, SimSettings, Via};

use crate::support::child::Scene;
use crate::support::stage::{Setup, Stage};

/// A: 10 calls at once, cap 5 → exactly 5 succeed, 5 get 503 with Retry-After.
#[tokio::test(flavor = "multi_thread")]
async fn acceptance_a_ten_calls_at_once_cap_five() {
    let stage = Arc::new(Stage::start(Setup { root: "concurrent = 5".to_owned(), ..Setup::default() }).await);
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..10 {
        let stage = stage.clone();
        tasks.spawn(async move { stage.dial(None, &format!("+155500020{i:02}")).await });
    }
    let answers = tasks.join_all().await;
    let placed = answers.iter().filter(|a| a.status == 200).count();
    let refused: Vec<_> = answers.iter().filter(|a| a.status == 503).collect();
    assert_eq!((placed, refused.len()), (5, 5));
    for answer in refused {
        assert_eq!(answer.header("retry-after"), Some("60"));
        let body = answer.json();
        assert_eq!(body["error"], "GLOBAL_CAPACITY_EXCEEDED");
        assert_eq!((&body["globalCurrent"], &body["globalLimit"]), (&5.into(), &5.into()));
        assert_eq!(body["called"], false);
    }
    let counts = stage.control.counts();
    assert_eq!((counts.creates_el, counts.el_live_max), (5, 5));
    let metrics = stage.ask("/api/concurrent-metrics").await;
    assert_eq!((&metrics["activeCalls"], &metrics["totalRejections"]), (&5.into(), &5.into()));
    Arc::into_inner(stage).expect("every task is done").finish().await;
}

/// B: inbound with 5 of 5 in use → terminated, no sixth active call, session `terminated_capacity`, metric up, count unmoved.
#[tokio::test(flavor = "multi_thread")]
async fn acceptance_b_inbound_over_capacity_is_terminated() {
    let sim = SimSettings { el_seed_events: true, ..Setup::default().sim };
    let stage = Stage::start(Setup { sim, root: "concurrent = 5".to_owned(), ..Setup::default() }).await;
    for i in 0..5 {
        assert_eq!(stage.dial(None, &format!("+155500020{i:02}")).await.status, 200);
    }
    let call = Inbound {
        to: "+15550001101".to_owned(),
        from: "+15550003301".to_owned(),
        via: Via::Native,
        agent_id: Some("agent_acme".to_owned()),
    };
    let native = stage.control.inbound(&call).unwrap();
    let conversation = native.conversation_id.unwrap();
    stage
        .wait("the call is hung up at the provider", async || {
            stage.control.call(&conversation).is_some_and(|c| !c.live && c.outcome.is_some())
        })
        .await;
    stage
        .wait("its session reads terminated_capacity", async || {
            let calls = stage.ask("/api/calls?all=1").await;
            calls["calls"]
                .as_array()
                .unwrap()
                .iter()
                .any(|c| c["ids"]["conversation_id"] == conversation.as_str() && c["status"] == "terminated_capacity")
        })
        .await;
    let metrics = stage.ask("/api/concurrent-metrics").await;
    assert_eq!(metrics["activeCalls"], 5);
    assert_eq!(metrics["rejectionsByReason"]["capacity_inbound"], 1);
    let text = stage.ask("/api/concurrent-metrics/prometheus").await;
    let text = text.as_str().unwrap();
    assert!(text.contains("concurrent_rejected_total{plan=\"inbound\",reason=\"capacity_inbound\"} 1"), "{text}");
    assert!(text.contains("\nplatform_global_active_calls 5\n"), "{text}");
    stage.finish().await;
}

/// C: provider 429 → 503, slot released, `elevenlabs_429_total` up.
#[tokio::test(flavor = "multi_thread")]
async fn acceptance_c_provider_429_becomes_503_and_the_slot_is_free() {
    let stage = Stage::start(Setup::default()).await;
    let mut fault = Fault::next(Provider::ElevenLabs, FaultKind::TooManyConcurrent, 1);
    fault.retry_after = Some(17);
    stage.control.fault(fault);
    let answer = stage.dial(None, "+15550002001").await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("17")));
    assert_eq!(answer.json()["error"], "ELEVENLABS_429_RATE_LIMIT");
    assert_eq!(stage.held().await, 0);
    let metrics = stage.ask("/api/concurrent-metrics").await;
    assert_eq!((&metrics["elevenlabs429Count"], &metrics["activeCalls"]), (&1.into(), &0.into()));
    assert!(stage.ask("/metrics").await.as_str().unwrap().contains("\nelevenlabs_429_total 1\n"));
    stage.finish().await;
}

/// D: `kill -9` with calls up, restart, wait for clean-up → every counter back to 0, no leak.
#[tokio::test(flavor = "multi_thread")]
async fn acceptance_d_kill_9_with_calls_up_leaks_nothing() {
    let mut scene = Scene::usual().await;
    scene.start_well().await;
    for _ in 0..2 {
        assert_eq!(scene.dial().await.unwrap().status, 200);
        assert_eq!(scene.talk().await.0.unwrap().status, 201);
    }
    scene.kill();
    // Two end while nobody is there to hear of it, two later.
    for call in scene.live().into_iter().take(2) {
        scene.control.end_call(&call.call_sid.unwrap());
    }
    scene.start_well().await;
    assert!(scene.held().await >= 2, "calls that go on are counted from the start");
    scene.wait("what ended meanwhile is noticed", async || scene.held().await == 2).await;
    for call in scene.live() {
        scene.control.end_call(&call.call_sid.unwrap());
    }
    scene.wait("every slot is free", async || scene.held().await == 0).await;
    let text = scene.ask("admin", "GET", "/metrics", &[], "").await.unwrap();
    let text = String::from_utf8(text.body.to_vec()).unwrap();
    for zero in [
        "platform_global_active_calls 0",
        "active_call_sessions_count 0",
        "subscription_active_calls_sum 0",
        "ringfence_over_limit_calls 0",
    ] {
        assert!(text.lines().any(|line| line == zero), "{zero} is not in\n{text}");
    }
    let metrics = scene.ask("admin", "GET", "/api/concurrent-metrics", &[], "").await.unwrap().json();
    assert_eq!((&metrics["activeCalls"], &metrics["globalStatus"]["active"]), (&0.into(), &0.into()));
    scene.finish().await;
}

/// The oracle: whatever is raced and whatever is lost, the provider never sees more calls than a limit, and nothing is held
/// once everything is quiet.
#[tokio::test(flavor = "multi_thread")]
async fn the_provider_never_sees_more_calls_than_a_limit() {
    let sim = SimSettings {
        talk_ms: Millis::between(50, 300),
        webhook_loss: 0.3,
        webhook_double: 0.2,
        webhook_reorder: 0.2,
        ..Setup::default().sim
    };
    let setup =
        Setup { sim, elevenlabs: "concurrent = 7".to_owned(), root: "concurrent = 9".to_owned(), ..Setup::default() };
    let stage = Arc::new(Stage::start(setup).await);
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..200 {
        let stage = stage.clone();
        clients.spawn(async move {
            let mut placed = 0;
            for n in 0..12 {
                let to = format!("+1555{client:03}{n:04}");
                let status = match client % 3 {
                    0 => stage.dial_twilio(None, &to, &[]).await.status,
                    _ => stage.dial(None, &to).await.status,
                };
                match status {
                    200 | 201 => placed += 1,
                    503 => {}
                    other => panic!("{other}"),
                }
                tokio::time::sleep(std::time::Duration::from_millis(60)).await;
            }
            placed
        });
    }
    let placed: u64 = clients.join_all().await.into_iter().sum();
    let counts = stage.control.counts();
    assert!(placed >= 9, "{placed} placed");
    assert!(counts.el_live_max <= 7, "ElevenLabs saw {} of 7", counts.el_live_max);
    assert!(counts.both_live_max <= 9, "the platform saw {} of 9", counts.both_live_max);
    assert_eq!(counts.creates_el + counts.creates_tw, placed, "each order was dialled once");
    stage.wait("every slot is free once it is quiet", async || stage.held().await == 0).await;
    eprintln!(
        "oracle: {placed} calls placed by 200 clients, at most {} of 7 and {} of 9 at once",
        counts.el_live_max, counts.both_live_max
    );
    Arc::into_inner(stage).expect("every task is done").finish().await;
}
