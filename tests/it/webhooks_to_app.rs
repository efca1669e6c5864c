//! What the app behind ringfence gets: notifications, durably and unchanged; everything else, passed through.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use ringfence::call::Outcome;
use ringfence_simulator::{Inbound, SimSettings, Via, sign};
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::support::hooks::{
    EVENTS, FORM, STATUS, VOICE, call_form, elevenlabs, encoded, inbox, now_secs, pairs, seed_event, twilio,
};
use crate::support::net::{Wire, server};
use crate::support::stage::{Behind, Setup, Stage};

const SMS: &str = "/my/own/sms";

fn quiet(app: &str) -> Setup {
    Setup {
        app: Some(app.to_owned()),
        replace: vec![("sweep_ms = 100".to_owned(), "sweep_ms = 60000".to_owned())],
        ..Setup::default()
    }
}

/// A stage whose app is called at one address and signs with another.
fn with_app_public_url(setup: Setup) -> Setup {
    let forward = format!("forward_url = \"{}\"", setup.app.as_ref().unwrap());
    let both = format!("{forward}\npublic_url = \"https://app.example.test/base\"");
    Setup { replace: [setup.replace, vec![(forward, both)]].concat(), ..setup }
}

/// The app fails at first: the same bytes come again, once they are taken they come no more, under one delivery id.
#[tokio::test(flavor = "multi_thread")]
async fn webhooks_to_app_are_delivered_until_it_takes_them() {
    let failures = Arc::new(AtomicU32::new(2));
    let left = failures.clone();
    let app = Behind::replying(Box::new(move |_| {
        let fails = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
        http::Response::builder().status(if fails { 503 } else { 200 }).body(Bytes::new()).unwrap()
    }))
    .await;
    let stage = Stage::start(with_app_public_url(quiet(&app.url()))).await;
    let form = call_form("CA1", "inbound", "completed");
    assert_eq!(twilio(&stage, STATUS, &form).await.status, 204, "the provider does not wait for the app");
    let event = seed_event("conversation.ended", "conv_1", "inbound");
    assert_eq!(elevenlabs(&stage, &event).await.json(), json!({"received": true}));
    stage.wait("both are taken", async || app.got().len() == 4).await;
    for (path, body) in [(STATUS, encoded(&form)), (EVENTS, event.to_string())] {
        let got = app.at(path);
        assert!(got.iter().all(|g| g.body == body && g.method == "POST"));
        assert!(got.iter().all(|g| g.headers["x-ringfence-delivery"] == got[0].headers["x-ringfence-delivery"]));
    }
    assert_ne!(app.at(STATUS)[0].headers["x-ringfence-delivery"], app.at(EVENTS)[0].headers["x-ringfence-delivery"]);
    let signature = sign::twilio(
        &stage.control.settings().auth_token,
        &format!("https://app.example.test/base{STATUS}"),
        &pairs(&form),
    );
    assert_eq!(app.at(STATUS)[0].headers["x-twilio-signature"], signature.as_str());
    stage
        .wait("the metrics say so", async || {
            let text = stage.ask("/metrics").await;
            text.as_str().unwrap().contains("ringfence_deliveries_total{result=\"done\"} 2")
        })
        .await;
    assert_eq!(app.got().len(), 4, "taken ones come no more");
    stage.finish().await;
}

/// The app is not there at all, and ringfence is restarted meanwhile: nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn webhooks_to_app_survive_a_restart_while_it_is_away() {
    let away = std::net::SocketAddr::from(([127, 0, 0, 1], ringfence::net::spare_port()));
    let mut stage = Stage::start(quiet(&format!("http://{away}"))).await;
    let event = seed_event("conversation.ended", "conv_1", "inbound");
    assert_eq!(elevenlabs(&stage, &event).await.status, 200);
    let passed = stage.send("GET", &stage.webhooks("/x"), &[], Bytes::new()).await;
    assert_eq!((passed.status, &passed.json()["error"]), (502, &"APP_UNREACHABLE".into()));
    let voice = twilio(&stage, VOICE, &call_form("CA1", "inbound", "ringing")).await;
    assert_eq!((voice.status, &voice.json()["error"]), (502, &"APP_UNREACHABLE".into()));
    assert_eq!(
        stage.held().await,
        1,
        "the provider's fallback may take the call; its status callback tells of the end"
    );
    twilio(&stage, STATUS, &call_form("CA1", "inbound", "failed")).await;
    assert_eq!(stage.held().await, 0);
    stage.stop_app().await;
    let app = Behind::at_address(away).await;
    stage.start_app().await;
    stage.wait("both are delivered", async || app.got().len() == 2).await;
    assert_eq!(app.at(EVENTS)[0].body, event.to_string());
    stage.finish().await;
}

/// An app that does not answer, fails or takes too long keeps no caller waiting: the caller meets what is configured, or the
/// provider is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_whose_app_is_down_meets_what_is_configured() {
    let away = std::net::SocketAddr::from(([127, 0, 0, 1], ringfence::net::spare_port()));
    let replying = |status: u16| {
        Behind::replying(Box::new(move |_| {
            let mut answer = http::Response::new(Bytes::from_static(b"<Response/>"));
            *answer.status_mut() = http::StatusCode::from_u16(status).unwrap();
            answer
        }))
    };
    let (fails, refuses, works) = (replying(503).await, replying(404).await, replying(200).await);
    // It takes the connection, and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_url = format!("http://{}", silent.local_addr().unwrap());
    let instead = "when_down = { say = \"Please call again later.\" }";
    for (app, more, expected) in [
        (format!("http://{away}"), "", (502, "APP_UNREACHABLE")),
        (format!("http://{away}"), instead, (200, "<Say language=\"en-US\">Please call again later.</Say><Hangup/>")),
        (fails.url(), "", (503, "<Response/>")),
        (fails.url(), instead, (200, "Please call again later.")),
        (fails.url(), "when_down = \"busy\"", (200, "<Reject reason=\"busy\"/>")),
        (refuses.url(), instead, (404, "<Response/>")),
        (works.url(), instead, (200, "<Response/>")),
        (silent_url.clone(), "", (504, "APP_TIMEOUT")),
        (silent_url, instead, (200, "Please call again later.")),
    ] {
        let mut setup = quiet(&app);
        setup.timeouts = "app_secs = 1".to_owned();
        setup.tables += &format!("\n[inbound]\n{more}\n");
        let stage = Stage::start(setup).await;
        let voice = twilio(&stage, VOICE, &call_form("CA1", "inbound", "ringing")).await;
        let body = String::from_utf8(voice.body.to_vec()).unwrap();
        assert!(voice.status == expected.0 && body.contains(expected.1), "{app} {more}: {} {body}", voice.status);
        assert_eq!(stage.held().await, 1, "its carrier tells of its end");
        twilio(&stage, STATUS, &call_form("CA1", "inbound", "completed")).await;
        assert_eq!(stage.held().await, 0);
        stage.finish().await;
    }
}

/// The provider's post-call webhooks end the call and reach the app as they were sent.
#[tokio::test(flavor = "multi_thread")]
async fn webhooks_to_app_after_a_call_are_unchanged() {
    let app = Behind::start().await;
    let sim = SimSettings { el_audio: true, ..Setup::default().sim };
    let stage = Stage::start(Setup { sim, app: Some(app.url()), ..Setup::default() }).await;
    let placed = stage.dial(None, "+15550002010").await.json();
    let conversation = placed["conversation_id"].as_str().unwrap();
    assert_eq!(stage.dial(None, "+15550000001").await.status, 200, "a line that is busy");
    stage.wait("the busy one is over", async || stage.held().await == 1).await;
    stage.wait("the other talks", async || stage.control.call(conversation).unwrap().answered).await;
    stage.control.end_call(conversation);
    stage.wait("nothing is held", async || stage.held().await == 0).await;
    stage.wait("three events came", async || app.at(EVENTS).len() == 3).await;
    let secret = stage.control.settings().el_webhook_secret;
    let mut kinds = Vec::new();
    for got in app.at(EVENTS) {
        let signature = got.headers["elevenlabs-signature"].to_str().unwrap();
        let stamp: i64 = signature.split(',').next().unwrap().trim_start_matches("t=").parse().unwrap();
        assert_eq!(signature, sign::elevenlabs(&secret, stamp, &got.body), "the app can check it");
        kinds
            .push(serde_json::from_slice::<serde_json::Value>(&got.body).unwrap()["type"].as_str().unwrap().to_owned());
    }
    kinds.sort();
    assert_eq!(kinds, ["call_initiation_failure", "post_call_audio", "post_call_transcription"]);
    assert_eq!(stage.record(conversation).await.unwrap().outcome, Some(Outcome::Completed));
    let events: Vec<String> = inbox(&stage).await.into_iter().map(|e| e.0).collect();
    for kind in &kinds {
        assert_eq!(events.iter().filter(|e| *e == kind).count(), 1, "{events:?}");
    }
    stage.finish().await;
}

/// 30 MB of audio, chunked: the call ends, the app gets every byte, the record keeps none of it.
#[tokio::test(flavor = "multi_thread")]
async fn webhooks_to_app_may_be_large() {
    let app = Behind::start().await;
    let stage = Stage::start(quiet(&app.url())).await;
    let mut started = seed_event("conversation.started", "conv_1", "inbound");
    started["event_timestamp"] = json!(1);
    assert_eq!(elevenlabs(&stage, &started).await.status, 200);
    assert_eq!(stage.held().await, 1);
    let body = json!({"type": "post_call_audio", "event_timestamp": 2,
        "data": {"agent_id": "agent_acme", "conversation_id": "conv_1", "full_audio": "QUJD".repeat(30 << 18)}})
    .to_string();
    let signature = sign::elevenlabs(&stage.control.settings().el_webhook_secret, now_secs(), body.as_bytes());
    for _ in 0..2 {
        let mut wire = Wire::connect(stage.app().webhooks()).await;
        wire.send(format!(
            "POST {EVENTS} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nElevenLabs-Signature: {signature}\r\nTransfer-Encoding: chunked\r\n\r\n"
        ))
        .await;
        for chunk in body.as_bytes().chunks(200_000) {
            wire.send([format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat()).await;
        }
        let answer = wire.ask("0\r\n\r\n").await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, "{\"received\":true}"));
        assert_eq!(stage.held().await, 0);
    }
    stage.wait("the app has it", async || app.got().iter().any(|g| g.body.len() == body.len())).await;
    let got: Vec<_> = app.at(EVENTS).into_iter().filter(|g| g.body.len() > 1000).collect();
    assert_eq!(got.len(), 1, "once");
    assert!(got[0].body == body, "byte for byte");
    assert_eq!(got[0].headers["elevenlabs-signature"], signature.as_str());
    stage.wait("no file is left", async || stage.spooled().is_empty()).await;
    stage.finish().await;
}

/// Paths that no description knows are the app's.
#[tokio::test(flavor = "multi_thread")]
async fn webhooks_to_app_at_unknown_paths_pass_through() {
    let app = Behind::replying(Box::new(|got| {
        let body = format!("{} {}", got.method, got.path_and_query);
        http::Response::builder().status(207).header("x-app", "yes").body(body.into()).unwrap()
    }))
    .await;
    let stage = Stage::start(with_app_public_url(quiet(&app.url()))).await;
    let answer = stage.send("PUT", &stage.webhooks("/a/b%20c?x=1&y=%2F"), &[("x-mine", "1")], "raw \u{1} body").await;
    assert_eq!((answer.status, answer.header("x-app")), (207, Some("yes")));
    assert_eq!(&answer.body[..], b"PUT /a/b%20c?x=1&y=%2F");
    assert_eq!(
        (&app.got()[0].body[..], &app.got()[0].headers["x-mine"]),
        (&b"raw \x01 body"[..], &"1".parse().unwrap())
    );
    // Genuine Twilio requests are signed anew, whichever account they are of; others keep what they came with.
    let sms = [("MessageSid", "SM1"), ("From", "+1"), ("To", "+2"), ("Body", "hi & bye"), ("NumMedia", "0")];
    assert_eq!(twilio(&stage, &format!("{SMS}?a=b"), &sms).await.status, 207);
    let token = stage.control.settings().auth_token;
    let expected = sign::twilio(&token, &format!("https://app.example.test/base{SMS}?a=b"), &pairs(&sms));
    assert_eq!(app.at(SMS)[0].headers["x-twilio-signature"], expected.as_str());
    assert_eq!(app.at(SMS)[0].body, encoded(&sms));
    let forged = [FORM, ("x-twilio-signature", "Zm9yZ2Vk")];
    assert_eq!(stage.send("POST", &stage.webhooks(SMS), &forged, encoded(&sms)).await.status, 207);
    assert_eq!(app.at(SMS)[1].headers["x-twilio-signature"], "Zm9yZ2Vk");
    let recording = stage.webhooks("/my/recordings?RecordingSid=RE1");
    let signature = sign::twilio(&token, &recording, &[]);
    stage.send("GET", &recording, &[("x-twilio-signature", &signature)], Bytes::new()).await;
    let expected = sign::twilio(&token, "https://app.example.test/base/my/recordings?RecordingSid=RE1", &[]);
    assert_eq!(app.at("/my/recordings")[0].headers["x-twilio-signature"], expected.as_str());
    let large = stage.send("POST", &stage.webhooks(SMS), &forged, vec![b'x'; 2 << 20]).await;
    assert_eq!(large.status, 413, "a signed request has to be read whole, so it has a bound");
    assert_eq!(stage.send("POST", &stage.webhooks("/up"), &[], vec![b'x'; 2 << 20]).await.status, 207);
    assert_eq!(stage.held().await, 0);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_to_app_without_an_app_are_not_found() {
    let stage = Stage::start(Setup::default()).await;
    let answer = stage.send("POST", &stage.webhooks(SMS), &[FORM], "a=b").await;
    assert_eq!((answer.status, &answer.json()["error"]), (404, &"UNKNOWN_ROUTE".into()));
    let voice = twilio(&stage, VOICE, &call_form("CA1", "inbound", "ringing")).await;
    assert_eq!((voice.status, &voice.json()["error"], stage.held().await), (502, &"NO_APP".into(), 0));
    stage.finish().await;
}

/// Media Streams: the handshake is signed in the form in which it was signed, and the socket is spliced.
#[tokio::test(flavor = "multi_thread")]
async fn webhooks_to_app_may_be_web_sockets() {
    let (seen, mut handshakes) = tokio::sync::mpsc::unbounded_channel();
    let app = server(move |wire: Wire| {
        let seen = seen.clone();
        async move {
            use futures_util::{SinkExt as _, StreamExt as _};
            use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
            #[expect(clippy::result_large_err, reason = "the type is tungstenite's")]
            let note = |request: &Request, response: Response| {
                let _ = seen.send((request.uri().to_string(), request.headers()["x-twilio-signature"].clone()));
                Ok(response)
            };
            let Ok(mut socket) = tokio_tungstenite::accept_hdr_async(wire.tcp, note).await else { return };
            while let Some(Ok(message)) = socket.next().await {
                if message.is_text() && socket.send(message).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    let stage = Stage::start(quiet(&format!("http://{app}"))).await;
    let token = stage.control.settings().auth_token;
    for scheme in ["ws", "http"] {
        use futures_util::{SinkExt as _, StreamExt as _};
        use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
        let at = format!("{}/media?x=1", stage.app().webhooks());
        let mut request = format!("ws://{at}").into_client_request().unwrap();
        let signature = sign::twilio(&token, &format!("{scheme}://{at}"), &[]);
        request.headers_mut().insert("x-twilio-signature", signature.parse().unwrap());
        let (mut socket, _) = tokio_tungstenite::connect_async(request).await.unwrap();
        socket.send(Message::text("{\"event\":\"start\"}")).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("{\"event\":\"start\"}"));
        let (uri, signature) = handshakes.recv().await.unwrap();
        assert_eq!(uri, "/media?x=1");
        assert_eq!(signature, sign::twilio(&token, &format!("{scheme}://{at}"), &[]).as_str(), "{scheme}");
        let _ = socket.close(None).await;
    }
    stage.finish().await;
}

/// The whole way: a simulated number whose voice URL is ringfence and whose app talks.
#[tokio::test(flavor = "multi_thread")]
async fn webhooks_to_app_of_one_inbound_call() {
    let app = Behind::replying(Box::new(|_| {
        http::Response::new(Bytes::from_static(b"<Response><Say>Hello</Say><Pause length=\"60\"/></Response>"))
    }))
    .await;
    let stage = Stage::start(Setup { app: Some(app.url()), ..Setup::default() }).await;
    let inbound =
        Inbound { to: "+15550001101".to_owned(), from: "+15550003301".to_owned(), via: Via::Twilio, agent_id: None };
    let sid = stage.control.inbound(&inbound).unwrap().call_sid.unwrap();
    stage.wait("it talks", async || stage.control.call(&sid).unwrap().answered).await;
    assert_eq!(stage.held().await, 1);
    stage.control.end_call(&sid);
    stage.wait("its slot is free", async || stage.held().await == 0).await;
    stage.wait("the app is told of the end", async || app.at(STATUS).len() == 1).await;
    let got = app.at(STATUS).pop().unwrap();
    assert_eq!(got.field("CallStatus").as_deref(), Some("completed"));
    assert_eq!(got.form().iter().filter(|(k, _)| k == "CallSid").count(), 1);
    stage.finish().await;
}

/// A call that was refused after it was answered: the app still gets the event that told of it.
#[tokio::test(flavor = "multi_thread")]
async fn the_app_is_told_of_calls_that_were_refused() {
    let app = Behind::start().await;
    let setup = Setup { root: "concurrent = 0".to_owned(), app: Some(app.url()), ..Setup::default() };
    let stage = Stage::start(setup).await;
    let started = seed_event("conversation.started", "conv_refused", "inbound");
    assert_eq!(elevenlabs(&stage, &started).await.status, 200);
    stage.wait("the app has the event", async || app.at(EVENTS).len() == 1).await;
    let ended = seed_event("conversation.ended", "conv_refused", "inbound");
    assert_eq!(elevenlabs(&stage, &ended).await.status, 200);
    stage.wait("nothing is held", async || stage.held().await == 0).await;
    stage.finish().await;
}

/// An app that refuses a voice webhook: the log says why that may be, it is counted, and its call holds its slot no longer than the
/// carrier has it.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_whom_the_app_refuses_holds_no_slot() {
    for status in [403_u16, 404] {
        let app = Behind::replying(Box::new(move |_| {
            http::Response::builder().status(status).body(Bytes::from_static(b"no")).unwrap()
        }))
        .await;
        let stage = Stage::start(quiet(&app.url())).await;
        // Nobody tells of the end: the number has no status callback, and the sweep is a minute away.
        stage.control.configure(|settings| settings.number_status_url = None);
        let inbound = Inbound {
            to: "+15550001101".to_owned(),
            from: "+15550003301".to_owned(),
            via: Via::Twilio,
            agent_id: None,
        };
        let sid = stage.control.inbound(&inbound).unwrap().call_sid.unwrap();
        stage.wait("the app was asked", async || app.at(VOICE).len() == 1).await;
        let begun = std::time::Instant::now();
        stage.wait("its slot is free", async || stage.held().await == 0).await;
        assert!(begun.elapsed() < std::time::Duration::from_secs(30), "{:?}", begun.elapsed());
        let record = stage.record(&sid).await.unwrap();
        assert!(record.outcome.is_some(), "{record:?}");
        let metrics = stage.ask("/metrics").await;
        let counted = "event=\"incoming_call\",outcome=\"app_refused\"} 1";
        assert!(metrics.as_str().unwrap().contains(counted), "{metrics}");
        stage.finish().await;
    }
}
