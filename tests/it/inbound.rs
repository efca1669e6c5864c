//! Inbound calls that can be refused before answer: app and front mode, and what a caller meets when a limit is full.

use std::sync::Arc;

use bytes::Bytes;
use ringfence::call::Outcome;
use ringfence_simulator::{Fault, FaultKind, Inbound, Provider, SimSettings, Via};
use serde_json::{Value, json};

use crate::support::hooks::{VOICE, VoiceApp, call_form, elevenlabs, encoded, inbox, pairs, seed_event, twilio};
use crate::support::stage::{Behind, PATIENCE, Setup, Stage};

const FRONT: &str = "[inbound]\nmode = \"front\"\n[inbound.agents]\n\"+15550001101\" = \"agent_acme\"";

fn call(from: &str, via: Via) -> Inbound {
    Inbound {
        to: "+15550001101".to_owned(),
        from: from.to_owned(),
        via,
        agent_id: (via == Via::Native).then(|| "agent_acme".to_owned()),
    }
}

fn seed_events() -> SimSettings {
    SimSettings { el_seed_events: true, ..Setup::default().sim }
}

async fn metric(stage: &Stage, line: &str) -> bool {
    stage.ask("/metrics").await.as_str().unwrap().lines().any(|l| l == line)
}

async fn refusals(stage: &Stage) -> Value {
    stage.ask("/api/concurrent-metrics").await["rejectionsByReason"]["capacity_inbound"].clone()
}

/// The only open call, with all of its ids.
async fn the_call(stage: &Stage) -> Value {
    let calls = stage.ask("/api/calls").await;
    assert_eq!(calls["open"], 1, "{calls}");
    calls["calls"][0].clone()
}

// === app ===

/// Voice webhook → admitted → the app → register-call joins the same call; parallel calls of other numbers stay distinct.
#[tokio::test(flavor = "multi_thread")]
async fn app_mode_counts_each_call_once() {
    let app = VoiceApp::start().await;
    let stage = Stage::start(Setup {
        sim: seed_events(),
        root: "concurrent = 3".to_owned(),
        app: Some(app.url()),
        ..Setup::default()
    })
    .await;
    app.connect(&stage);
    let voice = stage.webhooks("/api/v1/webhooks/inbound-call");
    stage.control.configure(|s| s.number_voice_url = Some(voice));
    let sids: Vec<String> = (1..=3)
        .map(|i| stage.control.inbound(&call(&format!("+1555000330{i}"), Via::Twilio)).unwrap().call_sid.unwrap())
        .collect();
    for (i, sid) in sids.iter().enumerate() {
        assert!(
            stage.control.wait_call(PATIENCE, sid, |c| c.answered && c.conversation_id.is_some()).await,
            "call {i}"
        );
        let conversation = stage.control.call(sid).unwrap().conversation_id;
        let record = stage.record(sid).await.unwrap();
        assert_eq!(record.alias("conversation_id"), conversation.as_deref(), "call {i}");
        assert_eq!(record.attributes.other_number.as_deref(), Some(format!("+1555000330{}", i + 1).as_str()));
    }
    assert_eq!(stage.held().await, 3);
    let counts = stage.control.counts();
    assert_eq!((counts.registers, counts.both_live_now), (3, 3));
    let fourth = stage.control.inbound(&call("+15550003304", Via::Twilio)).unwrap().call_sid.unwrap();
    assert!(stage.control.wait_call(PATIENCE, &fourth, |c| c.outcome.is_some()).await);
    let fourth = stage.control.call(&fourth).unwrap();
    assert_eq!((fourth.ended_by, fourth.billed), (Some("reject"), false));
    for sid in &sids {
        assert!(stage.control.end_call(sid));
    }
    stage.wait("every slot is free", async || stage.held().await == 0).await;
    assert_eq!(stage.record(&sids[0]).await.unwrap().outcome, Some(Outcome::Completed));
    assert!(
        metric(
            &stage,
            "ringfence_calls_admitted_total{account=\"elevenlabs\",direction=\"inbound\",plan=\"default\"} 3"
        )
        .await
    );
    stage.finish().await;
}

/// The app's answer reaches the provider byte for byte; the webhook reaches the app unchanged, signed for the app's URL.
#[tokio::test(flavor = "multi_thread")]
async fn app_mode_relays_byte_for_byte() {
    const TWIML: &[u8] = b"<?xml version=\"1.0\"?>\r\n<Response>\xc3\xa9<!-- odd  bytes --><Pause/></Response>\n\n";
    let app = Behind::replying(Box::new(|_| {
        let response = http::Response::builder().header("content-type", "text/xml; charset=odd").header("x-app", "1");
        response.body(Bytes::from_static(TWIML)).unwrap()
    }))
    .await;
    let stage = Stage::start(Setup { app: Some(app.url()), ..Setup::default() }).await;
    for path in ["/api/v1/webhooks/inbound-call", VOICE, "/twilio/voice"] {
        let form = call_form("CA1", "inbound", "ringing");
        let answer = twilio(&stage, path, &form).await;
        assert_eq!((answer.status, &answer.body[..]), (200, TWIML));
        assert_eq!((answer.header("content-type"), answer.header("x-app")), (Some("text/xml; charset=odd"), Some("1")));
        let got = app.at(path).pop().unwrap();
        assert_eq!(got.body, encoded(&form));
        let expected = ringfence_simulator::sign::twilio(
            &stage.control.settings().auth_token,
            &stage.webhooks(path),
            &pairs(&form),
        );
        assert_eq!(got.headers["x-twilio-signature"], expected.as_str());
    }
    assert_eq!(stage.held().await, 1, "three webhooks of one call take one slot");
    let fetched = call_form("CA2", "outbound-api", "in-progress");
    let fetched = twilio(&stage, "/api/v1/webhooks/outbound-reminder", &fetched);
    assert_eq!(&fetched.await.body[..], TWIML);
    assert_eq!(stage.held().await, 1, "a fetch of TwiML for an outbound call takes none");
    stage.finish().await;
}

// === front ===

/// One call, one slot, however many webhooks speak of it, in whatever number.
#[tokio::test(flavor = "multi_thread")]
async fn front_mode_connects_and_counts_once() {
    let business = "[inbound]\nmode = \"front\"\n[businesses.acme]\nplan = \"PRO\"\nphone_numbers = [\"+15550001101\"]\nagent_ids = [\"agent_acme\"]";
    for (tables, plan) in [(FRONT, "default"), (business, "PRO")] {
        let setup = Setup { sim: seed_events(), tables: tables.to_owned(), ..Setup::default() };
        let stage = Stage::start(setup).await;
        let sid = stage.control.inbound(&call("+15550003301", Via::Twilio)).unwrap().call_sid.unwrap();
        assert!(stage.control.wait_call(PATIENCE, &sid, |c| c.conversation_id.is_some() && c.answered).await);
        let conversation = stage.control.call(&sid).unwrap().conversation_id.unwrap();
        assert_eq!(stage.control.call(&sid).unwrap().agent_id.as_deref(), Some("agent_acme"));
        // The voice webhook again (its answer was late): the same conversation, not a second one.
        let again = twilio(&stage, VOICE, &call_form(&sid, "inbound", "ringing")).await;
        assert!(String::from_utf8_lossy(&again.body).contains(&conversation), "{again:?}");
        assert_eq!(stage.control.counts().registers, 1);
        assert_eq!(elevenlabs(&stage, &seed_event("conversation.started", &conversation, "inbound")).await.status, 200);
        stage.wait("it is live", async || the_call(&stage).await["phase"] == "live").await;
        let seen = the_call(&stage).await;
        assert_eq!((&seen["plan"], &seen["status"]), (&plan.into(), &"active".into()));
        assert_eq!(seen["ids"], json!({"call_sid": sid, "conversation_id": conversation}));
        assert_eq!(stage.held().await, 1);
        assert!(stage.control.end_call(&sid));
        stage.wait("its slot is free", async || stage.held().await == 0).await;
        assert!(stage.control.wait_idle(PATIENCE).await);
        stage
            .wait("post_call is taken", async || inbox(&stage).await.iter().any(|e| e.0 == "post_call_transcription"))
            .await;
        let all = stage.ask("/api/calls?all=1").await;
        assert_eq!(all["calls"].as_array().unwrap().len(), 1, "{all}");
        assert_eq!(stage.record(&sid).await.unwrap().outcome, Some(Outcome::Completed));
        stage.finish().await;
    }
}

/// The provider refuses or fails register-call: the slot is free, the caller meets when_full, and does so again.
#[tokio::test(flavor = "multi_thread")]
async fn front_mode_without_an_agent_to_talk_to() {
    for kind in [FaultKind::TooManyConcurrent, FaultKind::AcceptThenDrop, FaultKind::ServerError] {
        let stage = Stage::start(Setup { tables: FRONT.to_owned(), ..Setup::default() }).await;
        stage.control.fault(Fault::next(Provider::ElevenLabs, kind, 1));
        let sid = stage.control.inbound(&call("+15550003301", Via::Twilio)).unwrap().call_sid.unwrap();
        assert!(stage.control.wait_call(PATIENCE, &sid, |c| c.outcome.is_some()).await);
        let seen = stage.control.call(&sid).unwrap();
        assert_eq!((seen.ended_by, seen.billed), (Some("reject"), false), "{kind:?}");
        stage.wait("the slot is free", async || stage.held().await == 0).await;
        let registers = stage.control.counts().registers;
        let again = twilio(&stage, VOICE, &call_form(&sid, "inbound", "ringing")).await;
        assert!(String::from_utf8_lossy(&again.body).contains("<Reject reason=\"busy\"/>"), "{kind:?} {again:?}");
        assert_eq!((stage.held().await, stage.control.counts().registers), (0, registers), "{kind:?}");
        stage.finish().await;
    }
    let nobody = "[inbound]\nmode = \"front\"".to_owned();
    let stage = Stage::start(Setup { tables: nobody, ..Setup::default() }).await;
    let answer = twilio(&stage, VOICE, &call_form("CA1", "inbound", "ringing")).await;
    assert!(String::from_utf8_lossy(&answer.body).contains("<Reject"), "no agent answers this number");
    assert_eq!(stage.held().await, 0);
    stage.finish().await;
}

// === full ===

const BUSINESSES: &str = r#"
[plans.SPOKEN]
concurrent = 0
when_full = { say = "All lines are busy & so on.", language = "en-GB" }
[businesses.plain]
max_calls = 0
phone_numbers = ["+15550001101"]
[businesses.spoken]
plan = "SPOKEN"
phone_numbers = ["+15550001102"]
[businesses.forwarded]
plan = "SPOKEN"
phone_numbers = ["+15550001103"]
when_full = { forward = "+15550007777" }
"#;

#[tokio::test(flavor = "multi_thread")]
async fn callers_meet_what_their_business_chose_for_full() {
    let app = Behind::start().await;
    let setup = Setup { tables: BUSINESSES.to_owned(), app: Some(app.url()), ..Setup::default() };
    let stage = Stage::start(setup).await;
    let cases = [
        ("+15550001101", "<Response><Reject reason=\"busy\"/></Response>", false),
        (
            "+15550001102",
            "<Response><Say language=\"en-GB\">All lines are busy &amp; so on.</Say><Hangup/></Response>",
            true,
        ),
        ("+15550001103", "<Response><Dial>+15550007777</Dial></Response>", true),
    ];
    for (i, (to, twiml, billed)) in cases.iter().enumerate() {
        let inbound = Inbound { to: (*to).to_owned(), ..call("+15550003301", Via::Twilio) };
        let sid = stage.control.inbound(&inbound).unwrap().call_sid.unwrap();
        assert!(stage.control.wait_call(PATIENCE, &sid, |c| !c.arriving).await);
        assert_eq!(stage.control.call(&sid).unwrap().billed, *billed, "{to}");
        let form = [
            ("CallSid", sid.as_str()),
            ("From", "+15550003301"),
            ("To", to),
            ("Direction", "inbound"),
            ("CallStatus", "ringing"),
        ];
        for _ in 0..2 {
            let again = twilio(&stage, VOICE, &form).await;
            let body = String::from_utf8_lossy(&again.body).into_owned();
            assert!(body.ends_with(twiml), "refused again, in the same way: {body}");
            assert!(again.header("content-type").is_some_and(|t| t.contains("xml")), "{again:?}");
        }
        let record = stage.record(&sid).await.unwrap();
        assert_eq!(record.outcome, Some(Outcome::Capacity), "{to}");
        stage.wait("it holds nothing", async || stage.held().await == 0).await;
        assert_eq!(refusals(&stage).await, i + 1, "a repeated webhook is no second refusal");
        stage.control.end_call(&sid);
    }
    assert_eq!(app.at(VOICE).len(), 0, "the app is not asked about refused calls");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn observe_mode_refuses_no_caller() {
    let setup = Setup {
        sim: seed_events(),
        root: "mode = \"observe\"\nconcurrent = 1".to_owned(),
        tables: FRONT.to_owned(),
        ..Setup::default()
    };
    let stage = Stage::start(setup).await;
    let mut sids = Vec::new();
    for (i, via) in [Via::Twilio, Via::Twilio, Via::Native].into_iter().enumerate() {
        let sid = stage.control.inbound(&call(&format!("+1555000330{i}"), via)).unwrap().call_sid.unwrap();
        assert!(stage.control.wait_call(PATIENCE, &sid, |c| c.answered).await, "{via:?}");
        stage.wait("it is counted", async || stage.held().await as usize == i + 1).await;
        sids.push(sid);
    }
    assert_eq!(stage.control.counts().hangups, 0);
    let would_refuse = "ringfence_shadow_refusals_total{limit=\"global\"} 2";
    stage.wait("two would have been refused", async || metric(&stage, would_refuse).await).await;
    assert_eq!(stage.ask("/api/concurrent-metrics").await["totalRejections"], 0);
    for sid in &sids {
        assert!(stage.control.call(sid).unwrap().live);
        stage.control.end_call(sid);
    }
    stage.wait("every slot is free", async || stage.held().await == 0).await;
    stage.finish().await;
}

/// Webhooks of one new call that arrive at the same moment: one slot, and nothing is refused.
#[tokio::test(flavor = "multi_thread")]
async fn webhooks_of_one_call_at_the_same_moment_take_one_slot() {
    let setup = Setup {
        root: "concurrent = 1".to_owned(),
        replace: vec![("sweep_ms = 100".to_owned(), "sweep_ms = 60000".to_owned())],
        ..Setup::default()
    };
    let stage = Arc::new(Stage::start(setup).await);
    for round in 0..10 {
        let conversation = format!("conv_round_{round}");
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..6 {
            let (stage, mut event) = (stage.clone(), seed_event("conversation.started", &conversation, "inbound"));
            event["event_timestamp"] = json!(n);
            tasks.spawn(async move { elevenlabs(&stage, &event).await.status });
        }
        assert!(tasks.join_all().await.into_iter().all(|status| status == 200));
        assert_eq!(stage.held().await, 1);
        assert!(elevenlabs(&stage, &seed_event("conversation.ended", &conversation, "inbound")).await.status == 200);
        assert_eq!(stage.held().await, 0);
    }
    assert_eq!(refusals(&stage).await, Value::Null);
    Arc::into_inner(stage).unwrap().finish().await;
}
