//! Panics and errors are reported to Sentry, scrubbed; a Sentry that is away is nobody's trouble.

use bytes::Bytes;
use serde_json::Value;

use crate::support::child::Scene;
use crate::support::stage::{Behind, Setup};

fn table(sink: &str) -> String {
    let host = sink.trim_start_matches("http://");
    format!("[telemetry.sentry]\ndsn = \"http://planted-key@{host}/7\"\nenvironment = \"test\"\n")
}

/// The events of an envelope: a line of head, then for each item a line of head and its body.
fn events(body: &Bytes) -> Vec<Value> {
    let text = std::str::from_utf8(body).unwrap();
    text.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|one| one.get("message").is_some() || one.get("exception").is_some())
        .collect()
}

fn reports(sink: &Behind) -> Vec<Value> {
    sink.at("/api/7/envelope/").iter().flat_map(|got| events(&got.body)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_and_an_error_are_reported_without_secrets_and_numbers() {
    let sink = Behind::start().await;
    let mut scene = Scene::set(Setup::default().sim, "app", "", &table(&sink.url())).await;
    // The task of a webhook dies once it is answered: nothing is left undone.
    assert!(scene.start("webhook.answered=panic").await, "{}", scene.log());
    let (answer, to) = scene.talk().await;
    assert_eq!(answer.unwrap().status, 201);
    let is_panic = |one: &Value| one["exception"]["values"][0]["type"] == "panic";
    let is_error = |one: &Value| one["message"] == "request handler panicked";
    let both = |all: &[Value]| all.iter().any(is_panic) && all.iter().any(is_error);
    scene
        .wait("the panic and the logged error are reported", async || {
            // Its end has a webhook, whichever webhooks came before.
            scene.end_all();
            both(&reports(&sink))
        })
        .await;
    let all = reports(&sink);
    let error = all.iter().find(|one| is_error(one)).unwrap();
    // An event is an error unless it says otherwise.
    assert_eq!((&error["level"], &error["extra"]), (&Value::Null, &serde_json::json!({"method": "POST"})));
    let panic = all.iter().find(|one| is_panic(one)).unwrap();
    assert_eq!(panic["exception"]["values"][0]["value"], "failpoint webhook.answered: panic");
    assert_eq!((&panic["level"], &panic["environment"]), (&"fatal".into(), &"test".into()));
    assert!(panic["culprit"].as_str().unwrap().starts_with("src/failpoint.rs:"), "{panic}");
    let settings = scene.control.settings();
    for got in sink.got() {
        assert!(got.headers["x-sentry-auth"].to_str().unwrap().contains("sentry_key=planted-key"), "{got:?}");
        let body = String::from_utf8_lossy(&got.body);
        for hidden in [&to[1..], &settings.el_api_key, &settings.auth_token, &settings.el_webhook_secret] {
            assert!(!body.contains(hidden), "{body}");
        }
    }
    assert!(!scene.log().contains("planted-key"), "{}", scene.log());
    // Calls go on.
    assert_eq!(scene.dial().await.unwrap().status, 200);
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_anybody_to_report_to_everything_goes_on() {
    let away = format!("http://127.0.0.1:{}", ringfence::net::spare_port());
    let mut scene = Scene::set(Setup::default().sim, "app", "", &table(&away)).await;
    assert!(scene.start("webhook.answered=panic").await, "{}", scene.log());
    assert_eq!(scene.talk().await.0.unwrap().status, 201);
    scene
        .wait("the log says so", async || {
            scene.end_all();
            scene.log().contains("failed to send an error report")
        })
        .await;
    assert_eq!(scene.dial().await.unwrap().status, 200);
    scene.finish().await;
}
