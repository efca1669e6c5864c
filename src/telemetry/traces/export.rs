//! Spans and log lines on their way to a collector: OTLP over HTTP, as protobuf (<https://opentelemetry.io/docs/specs/otlp/#otlphttp>).
//!
//! A finished span, or a line, is put into a bounded queue, and is dropped where that is full; a thread of each queue sends what is in
//! it. A slow or unreachable collector delays no request.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response, Uri};
use opentelemetry::logs::LoggerProvider as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{Key, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{LogExporter, Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::runtime::Handle;
use tracing::{info, warn};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::{Layer, Registry};

use super::TARGET;
use super::lines::{Lines, exporting};
use crate::net::{Upstream, UpstreamError};

/// The time that a collector may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The time that an exit waits for the last spans and lines to be sent.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);
/// The part of a collector's answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// The default of `OTEL_SERVICE_NAME`.
const SERVICE: &str = "ringfence";

/// The collector of spans and log lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceExport {
    /// The collector's address for traces, path included.
    pub traces: Option<Uri>,
    /// The collector's address for log lines; `None`: none are sent.
    pub logs: Option<Uri>,
}

/// A part of a process's subscriber.
pub type TelemetryLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Layers for the spans and the log lines of a process.
#[derive(Default)]
pub struct Layers {
    /// Takes spans, and no other.
    pub spans: Option<TelemetryLayer>,
    /// Takes log lines: those that the subscriber's filter gives it.
    pub lines: Option<TelemetryLayer>,
}

/// The queues, and the threads that empty them.
#[derive(Default)]
pub struct Exporter {
    spans: Option<SdkTracerProvider>,
    lines: Option<SdkLoggerProvider>,
}

/// Starts an exporter. Its layers take spans and lines once they are in the process's subscriber; `upstream` is what these are sent
/// with, on the runtime of the caller.
///
/// # Errors
/// A variable of OpenTelemetry has a value that cannot be used.
pub fn start(settings: &TraceExport, upstream: Upstream) -> Result<(Layers, Exporter), String> {
    let client =
        |what| Client { what, upstream: upstream.clone(), runtime: Handle::current(), is_away: AtomicBool::new(false) };
    let (mut layers, mut exporter) = (Layers::default(), Exporter::default());
    if let Some(endpoint) = &settings.traces {
        let provider = spans_to(endpoint, client("traces"))?;
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer(SERVICE))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(|metadata| metadata.is_span() && metadata.target() == TARGET));
        layers.spans = Some(Box::new(layer));
        exporter.spans = Some(provider);
    }
    if let Some(endpoint) = &settings.logs {
        let provider = lines_to(endpoint, client("logs"))?;
        layers.lines = Some(Box::new(Lines::new(provider.logger(SERVICE))));
        exporter.lines = Some(provider);
    }
    Ok((layers, exporter))
}

fn spans_to(endpoint: &Uri, client: Client) -> Result<SdkTracerProvider, String> {
    let exporter = over_http(SpanExporter::builder().with_http(), endpoint, client).build();
    let exporter = exporter.map_err(|error| error.to_string())?;
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource()).build())
}

fn lines_to(endpoint: &Uri, client: Client) -> Result<SdkLoggerProvider, String> {
    let exporter = over_http(LogExporter::builder().with_http(), endpoint, client).build();
    let exporter = exporter.map_err(|error| error.to_string())?;
    Ok(SdkLoggerProvider::builder().with_batch_exporter(exporter).with_resource(resource()).build())
}

fn over_http<B: WithExportConfig + WithHttpConfig>(builder: B, endpoint: &Uri, client: Client) -> B {
    builder
        .with_http_client(client)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(endpoint.to_string())
        .with_timeout(TIMEOUT)
}

/// The resource of this process from the variables, with a default service name.
fn resource() -> Resource {
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let named = Resource::builder().build().get(&Key::from_static_str("service.name"));
    let is_named = named.is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    let resource = Resource::builder().with_attribute(version);
    if is_named { resource.build() } else { resource.with_service_name(SERVICE).build() }
}

impl Exporter {
    /// Sends what is in the queues, and ends.
    pub async fn stop(self) {
        let spans =
            self.spans.map(|spans| tokio::task::spawn_blocking(move || spans.shutdown_with_timeout(FLUSH_WITHIN)));
        let lines =
            self.lines.map(|lines| tokio::task::spawn_blocking(move || lines.shutdown_with_timeout(FLUSH_WITHIN)));
        // Nobody waits longer for a collector that is away.
        let all = futures_util::future::join_all(spans.into_iter().chain(lines));
        let _ = tokio::time::timeout(2 * FLUSH_WITHIN, all).await;
    }
}

/// Sends batches with ringfence's own client: its connections, its TLS, its certificates.
#[derive(Debug)]
struct Client {
    /// The kind of data that the client sends, for its log lines.
    what: &'static str,
    upstream: Upstream,
    /// Batches come from a thread without one.
    runtime: Handle,
    /// The last batch was not taken: said once, and not for each.
    is_away: AtomicBool,
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let upstream = self.upstream.clone();
        let sending = exporting(async move { upstream.fetch(request, ANSWER_BYTES_MAX, TIMEOUT).await });
        let sending = self.runtime.spawn(sending);
        let answer = sending.await?;
        self.note(&answer);
        Ok(answer?)
    }
}

impl Client {
    fn note(&self, answer: &Result<Response<Bytes>, UpstreamError>) {
        let why = match answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("it answered {}", answer.status().as_u16())),
            Err(error) => Some(error.to_string()),
        };
        let (what, was_away) = (self.what, self.is_away.swap(why.is_some(), Ordering::Relaxed));
        match why {
            Some(error) if !was_away => {
                warn!(error, "failed to send {what} to the collector; they are dropped meanwhile")
            }
            None if was_away => info!("export of {what} resumed"),
            _ => {}
        }
    }
}
