//! Inbound calls that nobody asks ringfence about: counted, and over capacity hung up by the account's means, checked.

use std::time::{Duration, Instant};

use ringfence::call::{EndProof, Outcome, Phase};
use ringfence_simulator::{CallView, Fault, FaultKind, Inbound, Millis, Operation, Provider, SimSettings, Via};

use crate::support::hooks::{elevenlabs, seed_event};
use crate::support::stage::{PATIENCE, Setup, Stage};

/// A stage with room for one call, and that call, outbound.
async fn full_stage(setup: Setup) -> (Stage, String) {
    let stage = Stage::start(Setup { root: "concurrent = 1".to_owned(), ..setup }).await;
    let placed = stage.dial(None, "+15550002010").await;
    assert_eq!(placed.status, 200, "{placed:?}");
    let sid = placed.json()["callSid"].as_str().unwrap().to_owned();
    (stage, sid)
}

fn native(stage: &Stage) -> CallView {
    let inbound = Inbound {
        to: "+15550001101".to_owned(),
        from: "+15550003301".to_owned(),
        via: Via::Native,
        agent_id: Some("agent_acme".to_owned()),
    };
    stage.control.inbound(&inbound).unwrap()
}

fn seed_events() -> SimSettings {
    SimSettings { el_seed_events: true, ..Setup::default().sim }
}

async fn is_over(stage: &Stage, call: &CallView) -> CallView {
    let sid = call.call_sid.as_deref().unwrap();
    assert!(stage.control.wait_call(PATIENCE, sid, |c| c.outcome.is_some()).await, "{:?}", stage.control.call(sid));
    stage.control.call(sid).unwrap()
}

/// The record of a call that was refused and is over: nothing of it is left.
async fn is_terminated(stage: &Stage, call: &CallView) {
    let id = call.conversation_id.as_deref().unwrap();
    stage
        .wait("its record reads capacity", async || {
            stage.record(id).await.is_some_and(|r| r.phase == Phase::Ended && r.outcome == Some(Outcome::Capacity))
        })
        .await;
    stage.wait("only the admitted call holds a slot", async || stage.held().await == 1).await;
}

async fn over_limit(stage: &Stage) -> u32 {
    stage.app().calls().lifecycle.admission.counts().await.unwrap().over_limit
}

/// The first means in the list that the call has what it needs for, and no other.
#[tokio::test(flavor = "multi_thread")]
async fn native_calls_over_capacity_are_hung_up_by_the_means_in_order() {
    let monitor = "terminate = [\"monitor\", \"twilio\"]";
    let delete = "terminate = [\"elevenlabs_delete\"]";
    for (elevenlabs, twilio, ended_by) in
        [("", "", "twilio"), (monitor, "", "monitor"), (delete, "terminate = []", "delete")]
    {
        let sim = SimSettings { delete_hangs_up: true, ..seed_events() };
        let (stage, _) =
            full_stage(Setup { sim, elevenlabs: elevenlabs.to_owned(), twilio: twilio.to_owned(), ..Setup::default() })
                .await;
        let call = native(&stage);
        assert_eq!(is_over(&stage, &call).await.ended_by, Some(ended_by));
        is_terminated(&stage, &call).await;
        let counts = stage.control.counts();
        assert_eq!(counts.deletes, u64::from(ended_by == "delete"), "{ended_by}");
        let metrics = stage.ask("/api/concurrent-metrics").await;
        assert_eq!(metrics["rejectionsByReason"]["capacity_inbound"], 1, "{ended_by}");
        stage.finish().await;
    }
}

/// The initiation webhook comes while the caller still hears ringing: no conversation to monitor yet, so the carrier ends it.
#[tokio::test(flavor = "multi_thread")]
async fn native_calls_are_met_at_their_initiation_webhook() {
    let sim = SimSettings { ring_ms: Millis::exactly(3_000), ..seed_events() };
    let setup = Setup { sim, elevenlabs: "terminate = [\"monitor\", \"twilio\"]".to_owned(), ..Setup::default() };
    // The simulator sends no token: this webhook is let in without one.
    let replace = vec![("webhook_tokens = [\"token-of-the-initiation-webhook\"]".to_owned(), String::new())];
    let (stage, placed) = full_stage(Setup { public: false, replace, ..setup }).await;
    let (initiation, events) =
        (stage.webhooks("/webhooks/elevenlabs/conversation-initiation"), stage.webhooks("/webhooks/elevenlabs"));
    stage.control.configure(|s| {
        s.el_initiation_url = Some(initiation);
        s.el_events_url = Some(events);
    });
    let refused = native(&stage);
    let seen = is_over(&stage, &refused).await;
    assert_eq!((seen.ended_by, seen.outcome), (Some("twilio"), Some(ringfence_simulator::Outcome::Canceled)));
    assert!(!seen.billed, "it was never answered");
    stage
        .wait("its record reads capacity", async || {
            stage.record(seen.call_sid.as_deref().unwrap()).await.is_some_and(|r| r.outcome == Some(Outcome::Capacity))
        })
        .await;
    stage.control.end_call(&placed);
    stage.wait("the slot is free", async || stage.held().await == 0).await;
    // With room: admitted at the initiation webhook, and conversation.started is the same call.
    let admitted = native(&stage);
    stage.wait("it is admitted", async || stage.held().await == 1).await;
    assert!(stage.control.wait_call(PATIENCE, admitted.call_sid.as_deref().unwrap(), |c| c.answered).await);
    stage
        .wait("both of its ids are known", async || {
            stage.record(admitted.conversation_id.as_deref().unwrap()).await.is_some_and(|r| r.phase == Phase::Live)
        })
        .await;
    assert_eq!(stage.held().await, 1);
    stage.control.end_call(admitted.call_sid.as_deref().unwrap());
    stage.wait("the slot is free again", async || stage.held().await == 0).await;
    stage.finish().await;
}

/// A DELETE that destroys the record but does not hang up: the 404 that follows is no proof, whether or not the carrier can be
/// asked.
#[tokio::test(flavor = "multi_thread")]
async fn native_calls_whose_record_was_deleted_still_count() {
    for carrier_can_be_asked in [true, false] {
        let setup = Setup {
            sim: seed_events(),
            elevenlabs: "terminate = [\"elevenlabs_delete\"]".to_owned(),
            twilio: "terminate = []".to_owned(),
            ..Setup::default()
        };
        let token = format!("auth_token = \"{}\"", setup.sim.auth_token);
        let replace = if carrier_can_be_asked { vec![] } else { vec![(token, String::new())] };
        let (stage, placed) = full_stage(Setup { replace, ..setup }).await;
        let call = native(&stage);
        stage.wait("its record is deleted", async || stage.control.counts().deletes == 1).await;
        let from = Instant::now();
        // Longer than two look-ups that find nothing take to count as an end.
        while from.elapsed() < Duration::from_millis(3_000) {
            assert_eq!(over_limit(&stage).await, 1, "the call talks on and is counted");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(stage.control.call(call.call_sid.as_deref().unwrap()).unwrap().live);
        stage.control.end_call(&placed);
        stage.wait("the placed call is over", async || stage.held().await == 1).await;
        assert_eq!(stage.dial(None, "+15550002011").await.status, 503, "the over-limit call blocks admissions");
        stage.control.end_call(call.call_sid.as_deref().unwrap());
        if !carrier_can_be_asked {
            // Nobody can be asked and the simulator's webhook of a deleted conversation is only the seeds'.
            stage.wait("the webhook of its end frees it", async || stage.held().await == 0).await;
            let record = stage.record(call.conversation_id.as_deref().unwrap()).await.unwrap();
            assert_eq!((record.outcome, record.proof), (Some(Outcome::Capacity), Some(EndProof::Webhook)));
        }
        stage.wait("nothing is held", async || stage.held().await == 0).await;
        stage.finish().await;
    }
}

/// No means at all: the call is shown as an over-limit call and blocks admissions until its end.
#[tokio::test(flavor = "multi_thread")]
async fn native_calls_that_cannot_be_ended_are_shown_and_block() {
    let none = "terminate = []".to_owned();
    let setup = Setup { sim: seed_events(), elevenlabs: none.clone(), twilio: none, ..Setup::default() };
    let (stage, placed) = full_stage(setup).await;
    let call = native(&stage);
    stage
        .wait("it is shown", async || {
            stage.ask("/metrics").await.as_str().unwrap().lines().any(|l| l == "ringfence_over_limit_calls 1")
        })
        .await;
    assert_eq!(stage.ask("/api/concurrent-metrics").await["activeCalls"], 1, "an over-limit call is shown apart");
    stage.control.end_call(&placed);
    stage.wait("the placed call is over", async || stage.held().await == 1).await;
    let refused = stage.dial(None, "+15550002011").await;
    assert_eq!((refused.status, &refused.json()["error"]), (503, &"GLOBAL_CAPACITY_EXCEEDED".into()));
    let sid = call.call_sid.as_deref().unwrap();
    assert_eq!((stage.control.call(sid).unwrap().live, stage.control.counts().hangups), (true, 0));
    stage.control.end_call(sid);
    stage.wait("nothing is held", async || stage.held().await == 0).await;
    assert_eq!(stage.dial(None, "+15550002012").await.status, 200);
    stage.finish().await;
}

/// A hang-up that fails by both accounts' means is tried again.
#[tokio::test(flavor = "multi_thread")]
async fn native_calls_are_hung_up_at_the_second_try() {
    let (stage, _) = full_stage(Setup { sim: seed_events(), ..Setup::default() }).await;
    let fault = Fault::next(Provider::Twilio, FaultKind::ServerError, 2);
    stage.control.fault(Fault { on: Operation::End, ..fault });
    let call = native(&stage);
    assert_eq!(is_over(&stage, &call).await.ended_by, Some("twilio"));
    is_terminated(&stage, &call).await;
    stage.finish().await;
}

/// ... also when the process died between.
#[tokio::test(flavor = "multi_thread")]
async fn native_calls_over_capacity_are_hung_up_after_a_restart() {
    let (mut stage, _) = full_stage(Setup { sim: seed_events(), ..Setup::default() }).await;
    let fault = Fault::next(Provider::Twilio, FaultKind::ServerError, 2);
    stage.control.fault(Fault { on: Operation::End, ..fault });
    let call = native(&stage);
    stage.wait("it is an over-limit call", async || over_limit(&stage).await == 1).await;
    stage.stop_app().await;
    stage.start_app().await;
    assert_eq!(is_over(&stage, &call).await.ended_by, Some("twilio"));
    is_terminated(&stage, &call).await;
    stage.finish().await;
}

/// No webhook tells of these: the sweep counts them, and ends the one that is too many.
#[tokio::test(flavor = "multi_thread")]
async fn native_calls_without_webhooks_are_found_by_the_sweep() {
    let stage = Stage::start(Setup { public: false, root: "concurrent = 2".to_owned(), ..Setup::default() }).await;
    let calls = [native(&stage), native(&stage)];
    stage.wait("both are counted", async || stage.held().await == 2).await;
    for call in &calls {
        stage
            .wait("both of its ids are one call", async || {
                let by = [&call.call_sid, &call.conversation_id];
                let mut records = Vec::new();
                for id in by {
                    records.push(stage.record(id.as_deref().unwrap()).await.map(|r| r.id));
                }
                records[0].is_some() && records[0] == records[1]
            })
            .await;
    }
    assert_eq!(stage.dial(None, "+15550002010").await.status, 503);
    let third = native(&stage);
    assert_eq!(is_over(&stage, &third).await.ended_by, Some("twilio"));
    stage.wait("two are left", async || stage.held().await == 2 && over_limit(&stage).await == 0).await;
    for call in &calls {
        assert!(stage.control.call(call.call_sid.as_deref().unwrap()).unwrap().live);
        stage.control.end_call(call.call_sid.as_deref().unwrap());
    }
    stage.wait("nothing is held", async || stage.held().await == 0).await;
    stage.finish().await;
}

/// A web session takes no slot.
#[tokio::test(flavor = "multi_thread")]
async fn inbound_web_sessions_take_no_slot() {
    let stage = Stage::start(Setup::default()).await;
    let mut event = seed_event("conversation.started", "conv_web", "inbound");
    event["metadata"] = serde_json::json!({"channel": "web"});
    assert_eq!(elevenlabs(&stage, &event).await.status, 200);
    assert_eq!(stage.held().await, 0);
    stage.finish().await;
}

/// An operator's two verbs: hang up (proven at the provider) and release (the slot only).
#[tokio::test(flavor = "multi_thread")]
async fn inbound_calls_are_hung_up_and_released_by_every_id() {
    let stage = Stage::start(Setup { sim: seed_events(), ..Setup::default() }).await;
    let act = async |id: &str, act: &str, body: &str| {
        let url = stage.admin(&format!("/api/calls/{id}/{act}"));
        stage.send("POST", &url, &[("content-type", "application/json")], body.to_owned()).await
    };
    for which in 0..3 {
        let call = native(&stage);
        let conversation = call.conversation_id.clone().unwrap();
        stage
            .wait("it is live", async || stage.record(&conversation).await.is_some_and(|r| r.phase == Phase::Live))
            .await;
        let own = stage.record(&conversation).await.unwrap().id.to_string();
        let id = [own, call.call_sid.clone().unwrap(), conversation.clone()][which].clone();
        if which == 2 {
            for body in ["", "{}", "{\"force\":true}", "{\"force\":true,\"reason\":\" \"}", "{\"reason\":\"x\"}"] {
                assert_eq!(act(&id, "release", body).await.status, 400, "{body}");
            }
            assert_eq!(stage.held().await, 1);
            let released = act(&id, "release", "{\"force\":true,\"reason\":\"test\"}").await;
            assert_eq!((released.status, &released.json()["result"]), (200, &"released".into()));
            assert!(stage.control.call(&conversation).unwrap().live, "the call goes on");
            assert_eq!(stage.record(&conversation).await.unwrap().proof, Some(EndProof::Operator));
            assert_eq!(stage.held().await, 0);
            stage.control.end_call(&conversation);
        } else {
            let hung = act(&id, "hangup", "").await;
            assert_eq!(hung.status, 200, "{hung:?}");
            assert_eq!(hung.json()["result"], "over");
            assert_eq!(stage.control.call(&conversation).unwrap().ended_by, Some("twilio"));
            assert_eq!(stage.held().await, 0);
            assert_eq!(act(&id, "hangup", "").await.json()["result"], "over", "again: nothing to do");
        }
    }
    for id in ["CA404", "conv_404", "call_01JD3Q8K2V0000000000000000"] {
        for verb in ["hangup", "release"] {
            assert_eq!(act(id, verb, "{\"force\":true,\"reason\":\"x\"}").await.status, 404);
        }
    }
    stage.finish().await;
}

/// An event that overtakes the create's answer, and does not say which side placed the call: it is our own call, neither a
/// second slot nor one to hang up.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_overtakes_the_creates_answer_is_of_our_own_call() {
    let stage =
        std::sync::Arc::new(Stage::start(Setup { root: "concurrent = 1".to_owned(), ..Setup::default() }).await);
    let mut slow = Fault::next(Provider::ElevenLabs, FaultKind::Slow, 1);
    slow.ms = 1_500;
    stage.control.fault(slow);
    let dialling = tokio::spawn({
        let stage = stage.clone();
        async move { stage.dial(None, "+15550002010").await }
    });
    let conversation = async || stage.control.calls().iter().find_map(|c| c.conversation_id.clone());
    stage.wait("the provider has the call", async || conversation().await.is_some()).await;
    let conversation = conversation().await.unwrap();
    let mut started = seed_event("conversation.started", &conversation, "");
    started["metadata"]["phone_call"] = serde_json::json!({"external_number": "+15550002010"});
    let overtook = !dialling.is_finished();
    assert_eq!(elevenlabs(&stage, &started).await.status, 200);
    assert_eq!((stage.held().await, over_limit(&stage).await), (1, 0));
    assert_eq!(dialling.await.unwrap().status, 200);
    let record = stage.record(&conversation).await.unwrap();
    assert_eq!((record.phase, record.attributes.direction.as_str()), (Phase::Live, "outbound"));
    assert!(overtook, "the simulator answered before the event: the test showed nothing");
    assert_eq!(stage.ask("/api/concurrent-metrics").await["totalRejections"], 0);
    std::sync::Arc::into_inner(stage).expect("every task is done").finish().await;
}
