//! Log lines as OTLP log records: those that the log has, masked as there, within their traces; nothing of what sending writes; and
//! none at all unless they are asked for.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use prost::Message as _;

use crate::support::child::Scene;
use crate::support::stage::{Behind, Setup};

const LOGS: &str = "/v1/logs";

/// A log record.
#[derive(Debug, Clone)]
struct Record {
    target: String,
    severity: String,
    body: String,
    attributes: HashMap<String, String>,
    trace: String,
    span: String,
    service: String,
}

fn text(value: Option<AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        Some(Any::StringValue(text)) => text,
        Some(Any::IntValue(number)) => number.to_string(),
        Some(Any::BoolValue(flag)) => flag.to_string(),
        other => format!("{other:?}"),
    }
}

fn texts(pairs: Vec<KeyValue>) -> HashMap<String, String> {
    pairs.into_iter().map(|pair| (pair.key, text(pair.value))).collect()
}

/// The records that a collector was sent.
fn records(collector: &Behind) -> Vec<Record> {
    let mut all = vec![];
    for got in collector.at(LOGS) {
        assert_eq!(
            (got.method.as_str(), &got.headers["content-type"]),
            ("POST", &"application/x-protobuf".parse().unwrap())
        );
        let request = ExportLogsServiceRequest::decode(got.body).expect("OTLP");
        for of_resource in request.resource_logs {
            let resource = texts(of_resource.resource.map(|resource| resource.attributes).unwrap_or_default());
            for of_scope in of_resource.scope_logs {
                let target = of_scope.scope.map(|scope| scope.name).unwrap_or_default();
                for record in of_scope.log_records {
                    assert!(record.time_unix_nano > 0 && record.severity_number > 0, "{record:?}");
                    all.push(Record {
                        target: target.clone(),
                        severity: record.severity_text,
                        body: text(record.body),
                        attributes: texts(record.attributes),
                        trace: hex::encode(record.trace_id),
                        span: hex::encode(record.span_id),
                        service: resource["service.name"].clone(),
                    });
                }
            }
        }
    }
    all
}

/// The spans that a collector was sent: of each its name, its trace and its id.
fn spans(collector: &Behind) -> Vec<(String, String, String)> {
    let requests = collector.at("/v1/traces").into_iter();
    let requests = requests.map(|got| ExportTraceServiceRequest::decode(got.body).expect("OTLP"));
    let scopes = requests.flat_map(|request| request.resource_spans).flat_map(|one| one.scope_spans);
    let all = scopes.flat_map(|scope| scope.spans);
    all.map(|span| (span.name, hex::encode(span.trace_id), hex::encode(span.span_id))).collect()
}

fn table(collector: &str, more: &str) -> String {
    format!("[telemetry.otlp]\nendpoint = \"{collector}\"\n{more}")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lines_of_the_log_are_records_within_their_traces() {
    let collector = Behind::start().await;
    let mut scene = Scene::set(Setup::default().sim, "app", "", &table(&collector.url(), "logs = true\n")).await;
    scene.start_well().await;
    let (answer, to) = scene.talk().await;
    assert_eq!(answer.unwrap().status, 201);
    // A line with a path in it, and what a client put there.
    scene.ask("webhooks", "POST", "/webhooks/nobody?token=planted", &[], "planted").await.unwrap();
    scene.quiet().await;
    let is_there = |all: &[Record], body: &str| all.iter().any(|one| one.body == body);
    let has = |all: &[Record]| is_there(all, "admitted") && is_there(all, "call ended");
    scene.wait("the collector has the lines", async || has(&records(&collector))).await;
    scene
        .wait("the collector has the tree", async || spans(&collector).iter().any(|(name, ..)| name == "create"))
        .await;
    let (all, log, settings) = (records(&collector), scene.log(), scene.control.settings());

    let admitted: Vec<_> = all.iter().filter(|one| one.body == "admitted").collect();
    let [admitted] = admitted[..] else { panic!("{all:#?}") };
    assert_eq!((admitted.severity.as_str(), admitted.service.as_str()), ("INFO", "ringfence"));
    assert!(admitted.target.starts_with("ringfence::calls"), "{admitted:#?}");
    // The same text as in the log, numbers as there.
    let line = log.lines().find(|line| line.contains("admitted")).unwrap();
    for (name, value) in &admitted.attributes {
        assert!(line.contains(value.as_str()), "{name} is another one in {line}: {admitted:#?}");
    }
    assert!(admitted.attributes["to"].contains('•'), "{admitted:#?}");
    // Within its trace.
    let spans = spans(&collector);
    let (_, trace, _) = spans.iter().find(|(name, ..)| name == "create").unwrap();
    assert_eq!(&admitted.trace, trace);
    assert!(
        spans.iter().any(|(_, trace, id)| (trace, id) == (&admitted.trace, &admitted.span)),
        "{admitted:#?} {spans:#?}"
    );

    // Every line of the log since the collector is asked, and no other; nothing secret, no path, no whole number.
    let secrets = [settings.el_api_key, settings.auth_token, settings.el_webhook_secret, "planted".to_owned()];
    for record in &all {
        assert!(log.contains(record.body.as_str()), "{record:#?} is not in {log}");
        let texts = record.attributes.values().chain([&record.body]);
        let has = |text: &String, secret: &str| text.contains(secret.trim_start_matches('+'));
        assert!(!texts.into_iter().any(|text| secrets.iter().any(|s| has(text, s)) || has(text, &to)), "{record:#?}");
        assert!(
            !record.attributes.contains_key("path") && !record.target.starts_with("ringfence_trace"),
            "{record:#?}"
        );
    }
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_line_is_sent_unless_it_is_asked_for() {
    let collector = Behind::start().await;
    let mut scene = Scene::set(Setup::default().sim, "app", "", &table(&collector.url(), "")).await;
    scene.start_well().await;
    assert_eq!(scene.talk().await.0.unwrap().status, 201);
    scene.quiet().await;
    scene.wait("the collector has the tree", async || !spans(&collector).is_empty()).await;
    scene.finish().await;
    // What waits is sent before the end.
    assert!(collector.at(LOGS).is_empty(), "{:?}", collector.at(LOGS));
}

/// With a log that says everything, and a collector that takes nothing: what sending writes would be sent for ever.
#[tokio::test(flavor = "multi_thread")]
async fn what_sending_writes_is_not_sent() {
    let collector = Behind::replying(Box::new(|_| {
        let mut response = http::Response::new(Bytes::new());
        *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
        response
    }))
    .await;
    let more = "logs = true\n[log]\nfilter = \"debug\"\n";
    let mut scene = Scene::set(Setup::default().sim, "app", "", &table(&collector.url(), more)).await;
    scene.start_well().await;
    scene.wait("the log says so", async || scene.log().contains("failed to send logs to the collector")).await;
    assert_eq!(scene.talk().await.0.unwrap().status, 201);
    scene.quiet().await;
    // Some batches more.
    let before = collector.at(LOGS).len();
    tokio::time::timeout(Duration::from_secs(60), async {
        while collector.at(LOGS).len() < before + 2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("batches go on");
    let place = collector.url().trim_start_matches("http://").to_owned();
    // It takes nothing, and is sent all the same.
    let is_sent = || records(&collector).iter().any(|one| one.body == "admitted");
    scene.wait("the line of the call is sent", async || is_sent()).await;
    let all = records(&collector);
    for record in &all {
        assert!(
            !record.target.starts_with("ringfence::telemetry::traces") && !record.target.starts_with("opentelemetry"),
            "{record:#?}"
        );
        let texts = record.attributes.values().chain([&record.body]);
        assert!(!texts.into_iter().any(|text| text.contains(&place)), "{record:#?}");
    }
    assert_eq!(scene.log().matches("failed to send logs").count(), 1, "said once: {}", scene.log());
    scene.finish().await;
}
