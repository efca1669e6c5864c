//! Traces: one span tree for a create, a webhook and its delivery, sent to a collector by OTLP; W3C trace context in and out; and a
//! collector that is away is nobody's trouble.

use std::collections::HashMap;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use prost::Message as _;
use tokio::io::AsyncReadExt as _;

use crate::support::child::Scene;
use crate::support::stage::{Behind, Setup};

/// A trace of the app's: `00-<trace>-<span>-01`.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

fn traceparent() -> String {
    format!("00-{TRACE}-{SPAN}-01")
}

/// A finished span.
#[derive(Debug, Clone)]
struct Span {
    name: String,
    trace: String,
    id: String,
    parent: String,
    attributes: HashMap<String, String>,
    service: String,
}

fn texts(pairs: Vec<KeyValue>) -> HashMap<String, String> {
    let text = |pair: KeyValue| {
        let value = match pair.value?.value? {
            Any::StringValue(text) => text,
            Any::IntValue(number) => number.to_string(),
            Any::BoolValue(flag) => flag.to_string(),
            other => format!("{other:?}"),
        };
        Some((pair.key, value))
    };
    pairs.into_iter().filter_map(text).collect()
}

/// What a collector was sent.
fn spans(collector: &Behind) -> Vec<Span> {
    let mut all = vec![];
    for got in collector.got() {
        assert_eq!((got.method.as_str(), got.path_and_query.as_str()), ("POST", "/v1/traces"));
        assert_eq!(got.headers["content-type"], "application/x-protobuf");
        let request = ExportTraceServiceRequest::decode(got.body).expect("OTLP");
        for of_resource in request.resource_spans {
            let resource = texts(of_resource.resource.map(|resource| resource.attributes).unwrap_or_default());
            for span in of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                all.push(Span {
                    name: span.name,
                    trace: hex::encode(span.trace_id),
                    id: hex::encode(span.span_id),
                    parent: hex::encode(span.parent_span_id),
                    attributes: texts(span.attributes),
                    service: resource["service.name"].clone(),
                });
            }
        }
    }
    all
}

/// The names of a span's children, sorted.
fn below(all: &[Span], parent: &Span) -> Vec<String> {
    let mut names: Vec<_> = all.iter().filter(|span| span.parent == parent.id).map(|span| span.name.clone()).collect();
    names.sort();
    names
}

fn table(collector: &str) -> String {
    format!("[telemetry.otlp]\nendpoint = \"{collector}\"\n")
}

/// `00-<trace>-<span>-<flags>`.
fn context(headers: &http::HeaderMap) -> (String, String) {
    let text = headers["traceparent"].to_str().unwrap();
    let parts: Vec<&str> = text.split('-').collect();
    assert!(matches!(parts[..], ["00", _, _, "01"]), "{text}");
    (parts[1].to_owned(), parts[2].to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_a_webhook_and_its_delivery_are_span_trees() {
    let collector = Behind::start().await;
    let mut scene = Scene::set(Setup::default().sim, "app", "", &table(&collector.url())).await;
    scene.start_well().await;
    let (answer, to) = scene.talk().await;
    assert_eq!(answer.unwrap().status, 201);
    let caller = scene.call_in().expect("a call comes in").from;
    scene.wait("the app answers the caller", async || !scene.app.at("/webhooks/twilio/voice").is_empty()).await;
    scene.quiet().await;
    let status = "/webhooks/twilio/status";
    scene.wait("the app is told of an end", async || !scene.app.at(status).is_empty()).await;
    let (app, log) = (scene.app.got(), scene.log());
    let settings = scene.control.settings();
    let voice = app.iter().find(|got| got.path_and_query.starts_with("/webhooks/twilio/voice")).unwrap();
    let told = app.iter().find(|got| got.path_and_query.starts_with(status)).unwrap();
    let ((trace_of_voice, asked), (trace_of_told, sent)) = (context(&voice.headers), context(&told.headers));
    // A root ends after its steps, and spans are sent in the order of their ends.
    let complete = |all: &[Span]| {
        let is_root = |trace: &str| all.iter().any(|span| span.name == "webhook" && span.trace == trace);
        let has = |name: &str| all.iter().any(|span| span.name == name);
        has("create") && is_root(&trace_of_voice) && is_root(&trace_of_told) && all.iter().any(|span| span.id == sent)
    };
    scene.wait("the collector has the trees", async || complete(&spans(&collector))).await;
    let all = spans(&collector);
    assert!(all.iter().all(|span| span.service == "ringfence"), "{all:#?}");

    let creates: Vec<_> = all.iter().filter(|span| span.name == "create").collect();
    let [create] = creates[..] else { panic!("{all:#?}") };
    assert_eq!(create.parent, "");
    assert_eq!(below(&all, create), ["admit", "deduplicate", "destination", "parse", "send", "settle"]);
    for (name, value) in [
        ("ringfence.account", "twilio"),
        ("ringfence.business", "default"),
        ("ringfence.operation", "calls"),
        ("http.response.status_code", "201"),
    ] {
        assert_eq!(create.attributes.get(name).map(String::as_str), Some(value), "{name}: {create:#?}");
    }
    assert!(create.attributes["ringfence.call"].starts_with("c_"), "{create:#?}");
    assert!(create.attributes["ringfence.to"].contains('•'), "{create:#?}");
    assert!(!log.contains("ringfence_trace") && !log.contains("otel."), "spans are not the log's: {log}");

    // The metrics lead to the trace, for those who ask for a format that has exemplars.
    let accept = [("accept", "application/openmetrics-text; version=1.0.0")];
    let metrics = scene.ask("admin", "GET", "/metrics", &accept, "").await.unwrap();
    assert_eq!(metrics.headers["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let metrics = String::from_utf8(metrics.body.to_vec()).unwrap();
    for histogram in
        ["ringfence_upstream_create_duration_seconds_bucket", "ringfence_create_added_duration_seconds_bucket"]
    {
        let exemplar = format!("# {{trace_id=\"{}\"}}", create.trace);
        assert!(metrics.lines().any(|l| l.starts_with(histogram) && l.contains(&exemplar)), "{histogram}: {metrics}");
    }

    // A voice webhook: the app is asked within its tree.
    let of_voice = |name: &str| all.iter().find(|span| span.trace == trace_of_voice && span.name == name).cloned();
    let root = of_voice("webhook").unwrap();
    assert_eq!(root.attributes["ringfence.webhook"], "voice");
    assert_eq!(of_voice("ask the app").unwrap().id, asked);
    assert_eq!(below(&all, &root), ["apply", "authenticate", "parse", "persist", "reply"]);

    // A notification: the delivery goes on with its webhook's trace.
    let delivery = all.iter().find(|span| span.id == sent).unwrap();
    assert_eq!((&delivery.name, &delivery.trace), (&"delivery".to_owned(), &trace_of_told));
    let root = all.iter().find(|span| span.trace == trace_of_told && span.name == "webhook").unwrap();
    assert_eq!(delivery.attributes["ringfence.event_id"], root.attributes["ringfence.event_id"]);
    let settle = all.iter().find(|span| span.id == delivery.parent).unwrap();
    assert_eq!((settle.name.as_str(), settle.parent.as_str()), ("settle", root.id.as_str()));

    // Nothing secret, and no whole number.
    let secrets = [settings.el_api_key, settings.auth_token, settings.el_webhook_secret];
    for span in &all {
        for value in span.attributes.values() {
            let has = |secret: &str| value.contains(secret.trim_start_matches('+'));
            assert!(!secrets.iter().any(|s| has(s)) && !has(&to) && !has(&caller), "{span:#?}");
        }
    }
    scene.finish().await;
}

/// An account whose provider is the app's own stand-in, which refuses every create.
async fn refusing() -> (Behind, String) {
    let provider = Behind::replying(Box::new(|got| {
        let status = if got.method == "POST" { 422 } else { 200 };
        let mut response = http::Response::new(Bytes::from_static(b"{\"conversations\":[]}"));
        *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
        response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
        response
    }))
    .await;
    let account = format!(
        "[accounts.echo]\nprovider = \"elevenlabs\"\nupstream = \"{}\"\napi_key = \"key-of-the-echo\"\nconcurrent = 2\n\
         webhook_secrets = [\"secret-of-the-echo\"]\n",
        provider.url()
    );
    (provider, account)
}

const CREATE: &str = "/v1/convai/twilio/outbound-call";

/// A create at the account that refuses it, within the app's trace.
async fn create(scene: &Scene) -> u16 {
    let shown = traceparent();
    let headers = [
        ("content-type", "application/json"),
        ("xi-api-key", "key-of-the-echo"),
        ("traceparent", shown.as_str()),
        ("tracestate", "app=1"),
    ];
    let body = scene.elevenlabs_body("+15551230001");
    scene.ask("api", "POST", &format!("/echo{CREATE}"), &headers, body).await.unwrap().status
}

#[tokio::test(flavor = "multi_thread")]
async fn the_apps_trace_goes_on_through_ringfence_to_the_provider() {
    let collector = Behind::start().await;
    let (provider, account) = refusing().await;
    let mut scene = Scene::set(Setup::default().sim, "app", "", &(account + &table(&collector.url()))).await;
    scene.start_well().await;
    assert_eq!(create(&scene).await, 422);
    let sent = provider.at(CREATE).remove(0);
    let (trace, span) = context(&sent.headers);
    assert_eq!((trace.as_str(), sent.headers["tracestate"].to_str().unwrap()), (TRACE, "app=1"));
    assert_ne!(span, SPAN, "it names its own span");
    scene.wait("the tree", async || spans(&collector).iter().any(|span| span.name == "create")).await;
    let all = spans(&collector);
    let root = all.iter().find(|one| one.name == "create").unwrap();
    assert_eq!((root.trace.as_str(), root.parent.as_str()), (TRACE, SPAN));
    let send = all.iter().find(|one| one.name == "send").unwrap();
    assert_eq!((send.id.as_str(), send.parent.as_str()), (span.as_str(), root.id.as_str()));
    assert_eq!(root.attributes["http.response.status_code"], "422");
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_trace_context_passes_as_it_came() {
    let (provider, account) = refusing().await;
    let mut scene = Scene::set(Setup::default().sim, "app", "", &account).await;
    scene.start_well().await;
    assert_eq!(create(&scene).await, 422);
    let sent = provider.at(CREATE).remove(0);
    assert_eq!(sent.headers["traceparent"], traceparent().as_str());
    scene.call_in().expect("a call comes in");
    scene.wait("the app is asked", async || !scene.app.got().is_empty()).await;
    assert!(scene.app.got().iter().all(|got| !got.headers.contains_key("traceparent")), "{:?}", scene.app.got());
    scene.finish().await;
}

/// One that takes connections and never answers, and one that is not there.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_stuck_or_away_stops_nothing() {
    let stuck = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stuck_at = format!("http://{}", stuck.local_addr().unwrap());
    let (taken, mut takes) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut held = vec![];
        while let Ok((mut wire, _)) = stuck.accept().await {
            let taken = taken.clone();
            held.push(tokio::spawn(async move {
                let mut bytes = [0; 4096];
                while let Ok(1..) = wire.read(&mut bytes).await {
                    let _ = taken.send(());
                }
            }));
        }
    });
    let away_at = format!("http://127.0.0.1:{}", ringfence::net::spare_port());
    for (collector, is_stuck) in [(stuck_at, true), (away_at, false)] {
        let mut scene = Scene::set(Setup::default().sim, "app", "", &table(&collector)).await;
        scene.start_well().await;
        let place = async |scene: &Scene| {
            let (answer, _) = scene.talk().await;
            assert_eq!(answer.expect("an answer").status, 201, "{}", scene.log());
            scene.quiet().await;
        };
        place(&scene).await;
        if is_stuck {
            takes.recv().await.expect("a batch is on its way");
        } else {
            scene.wait("the log says so", async || scene.log().contains("failed to send traces")).await;
        }
        for _ in 0..3 {
            place(&scene).await;
        }
        // It drains, ends, and lost nothing, though its spans cannot be sent.
        scene.finish().await;
    }
}
