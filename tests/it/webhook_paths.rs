//! Paths of `listen.webhooks`, however they are written: what is a webhook's is never passed on unseen.

use crate::support::hooks::{FORM, STATUS, VOICE, call_form, elevenlabs, encoded, now_secs, pairs, seed_event, twilio};
use crate::support::net::ask;
use crate::support::stage::{Behind, Setup, Stage};
use ringfence_simulator::sign;

fn full(app: &Behind) -> Setup {
    Setup {
        root: "concurrent = 1".to_owned(),
        app: Some(app.url()),
        replace: vec![("sweep_ms = 100".to_owned(), "sweep_ms = 60000".to_owned())],
        ..Setup::default()
    }
}

/// Spellings of a path that servers take for the same one.
fn spellings(path: &str) -> Vec<String> {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let (head, tail) = (parts[..parts.len() - 1].join("/"), parts[parts.len() - 1]);
    vec![
        format!("{path}/"),
        format!("/{path}"),
        format!("/{head}//{tail}"),
        format!("/{head}/./{tail}"),
        format!("/{head}/x/../{tail}"),
        format!("/../{head}/{tail}"),
        format!("{path};a=1"),
        format!("/{head};a=1/{tail}"),
        path.to_uppercase(),
        format!("/{head}/%{:02x}{}", tail.as_bytes()[0], &tail[1..]),
        format!("/{head}/%2e/{tail}"),
        format!("/{head}/x/%2E%2e/{tail}/"),
    ]
}

/// Spellings that only some servers take for it.
fn ambiguous(path: &str) -> Vec<String> {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let (head, tail) = (parts[..parts.len() - 1].join("/"), parts[parts.len() - 1]);
    vec![
        format!("/{head}%2f{tail}"),
        format!("/{head}%2F{tail}"),
        format!("/{head}%5c{tail}"),
        format!("/{head}%252f{tail}"),
        format!("/{head}/%25{:02x}{}", tail.as_bytes()[0], &tail[1..]),
        format!("{path}%2f"),
        format!("{path}%3fx"),
        format!("{path}%23"),
        format!("{path}%00"),
        format!("/x%2f..{path}"),
        format!("{path}."),
        format!("{path}%20"),
        format!("{path}%0d%0a"),
        format!("/{head}%09/{tail}"),
        format!("/../app{path}"),
        format!("/%2e%2e/app{path}"),
        format!("/{head}%252525252f{tail}"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsigned_webhook_never_reaches_the_app_by_its_spelling() {
    let app = Behind::start().await;
    let stage = Stage::start(full(&app)).await;
    let form = call_form("CA1", "inbound", "ringing");
    for path in [VOICE, STATUS, "/webhooks/elevenlabs/post-call"] {
        for spelling in spellings(path) {
            let answer = stage.send("POST", &stage.webhooks(&spelling), &[FORM], encoded(&form)).await;
            assert_eq!(answer.status, 401, "{spelling}: {answer:?}");
        }
        for spelling in ambiguous(path) {
            let answer = stage.send("POST", &stage.webhooks(&spelling), &[FORM], encoded(&form)).await;
            assert_eq!(answer.status, 400, "{spelling}: {answer:?}");
        }
    }
    assert!(app.got().is_empty() && stage.held().await == 0, "{:?}", app.got());
    stage.finish().await;
}

/// At 1 of 1 a signed inbound call is refused whatever its spelling, and an end is an end. The app gets the path as it came, signed for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_signed_webhook_is_applied_whatever_its_spelling() {
    let app = Behind::start().await;
    let stage = Stage::start(full(&app)).await;
    for (n, spelling) in spellings(VOICE).into_iter().enumerate() {
        let (first, second) = (format!("CA1{n:02}"), format!("CA2{n:02}"));
        assert_eq!(twilio(&stage, &spelling, &call_form(&first, "inbound", "ringing")).await.status, 200, "{spelling}");
        assert_eq!(stage.held().await, 1, "{spelling}");
        let got = app.got().pop().unwrap();
        assert_eq!(got.path_and_query, spelling);
        let refused = twilio(&stage, &spelling, &call_form(&second, "inbound", "ringing")).await;
        assert!(String::from_utf8_lossy(&refused.body).contains("Reject"), "{spelling}: {refused:?}");
        assert_eq!(app.got().iter().filter(|g| g.field("CallSid").as_deref() == Some(&second)).count(), 0);
        let end = &spellings(STATUS)[n];
        assert_eq!(twilio(&stage, end, &call_form(&first, "inbound", "completed")).await.status, 204, "{end}");
        assert_eq!(stage.held().await, 0, "{end}");
    }
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_is_no_way_around_a_webhook() {
    let app = Behind::start().await;
    let stage = Stage::start(full(&app)).await;
    for path in [VOICE.to_owned(), spellings(VOICE).remove(0), STATUS.to_owned()] {
        let request = format!(
            "GET {path}?CallSid=CA1&Direction=inbound&CallStatus=ringing HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        assert_eq!(ask(stage.app().webhooks(), request).await.status(), 400, "{path}");
    }
    assert!(app.got().is_empty());
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_of_ringfences_own_do_not_come_from_outside() {
    let app = Behind::start().await;
    let stage = Stage::start(full(&app)).await;
    let forged = [
        ("x-ringfence-delivery", "dl_forged"),
        ("X-Ringfence-Callback-Url", "https://x"),
        ("x-ringfence-anything", "1"),
    ];
    assert_eq!(stage.send("POST", &stage.webhooks("/own/path"), &forged, "x").await.status, 200);
    let form = call_form("CA1", "inbound", "ringing");
    let url = stage.webhooks(VOICE);
    let signature = sign::twilio(&stage.control.settings().auth_token, &url, &pairs(&form));
    let headers = [&[FORM, ("x-twilio-signature", signature.as_str())], &forged[..]].concat();
    assert_eq!(stage.send("POST", &url, &headers, encoded(&form)).await.status, 200);
    assert_eq!(twilio(&stage, STATUS, &call_form("CA1", "inbound", "completed")).await.status, 204);
    stage.wait("the app has all", async || app.got().len() == 3).await;
    for got in app.got() {
        let own: Vec<_> = got.headers.keys().filter(|name| name.as_str().starts_with("x-ringfence-")).collect();
        let expected = usize::from(got.path_and_query == STATUS);
        assert_eq!(own.len(), expected, "{}: {own:?}", got.path_and_query);
        assert!(got.headers.get("x-ringfence-delivery").is_none_or(|id| id != "dl_forged"));
    }
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_paths_that_are_named_pass_to_the_app() {
    let app = Behind::start().await;
    let tables = "[app]\nforward_paths = [\"/media/*\", \"/twiml\"]".to_owned();
    let stage = Stage::start(Setup { tables, ..full(&app) }).await;
    for (path, status) in [
        ("/media", 200),
        ("/media/a/b?c=d", 200),
        ("/twiml/", 200),
        ("/twiml/x", 404),
        ("/Media", 404),
        ("/admin", 404),
        ("/", 404),
        ("/media/../admin", 404),
        ("/media/%2e%2e/admin", 404),
        ("/media/..%2fadmin", 404),
        ("/media/%252e%252e/admin", 404),
    ] {
        assert_eq!(stage.send("POST", &stage.webhooks(path), &[], "x").await.status, status, "{path}");
    }
    assert_eq!(app.got().len(), 3);
    stage.finish().await;
}

/// Whatever the path: a genuine end is an end, and a call that rings in is not passed on without a word.
#[tokio::test(flavor = "multi_thread")]
async fn genuine_news_of_calls_is_seen_at_paths_of_the_app() {
    let app = Behind::start().await;
    let stage = Stage::start(Setup { root: String::new(), ..full(&app) }).await;
    let counted = async |event: &str| {
        let metrics = stage.ask("/metrics").await;
        let line = format!("event=\"{event}\",outcome=\"unlisted_path\"");
        metrics.as_str().unwrap().lines().any(|one| one.contains(&line))
    };
    assert_eq!(twilio(&stage, "/my/voice", &call_form("CA9", "inbound", "ringing")).await.status, 200);
    assert!(counted("incoming_call").await && app.at("/my/voice").len() == 1);
    assert_eq!(twilio(&stage, VOICE, &call_form("CA1", "inbound", "ringing")).await.status, 200);
    // Unsigned, and of a call that nobody knows: nothing.
    let end = call_form("CA1", "inbound", "completed");
    assert_eq!(stage.send("POST", &stage.webhooks("/my/status"), &[FORM], encoded(&end)).await.status, 200);
    assert_eq!(twilio(&stage, "/my/status", &call_form("CA2", "inbound", "completed")).await.status, 200);
    assert!(stage.held().await == 1 && !counted("call_status").await);
    assert_eq!(twilio(&stage, "/my/status", &end).await.status, 200);
    assert!(stage.held().await == 0 && counted("call_status").await && app.at("/my/status").len() == 3);
    // A signature that is not over the URL as well.
    let started = seed_event("conversation.started", "conv_1", "inbound");
    assert_eq!(elevenlabs(&stage, &started).await.status, 200);
    assert_eq!(stage.held().await, 1);
    let body = seed_event("conversation.ended", "conv_1", "inbound").to_string();
    let signature = sign::elevenlabs(&stage.control.settings().el_webhook_secret, now_secs(), body.as_bytes());
    let headers = [("content-type", "application/json"), ("elevenlabs-signature", signature.as_str())];
    assert_eq!(stage.send("POST", &stage.webhooks("/my/events"), &headers, body).await.status, 200);
    assert_eq!((stage.held().await, app.at("/my/events").len()), (0, 1));
    stage.finish().await;
}
