//! Spans on their way to a collector: OTLP over HTTP, as protobuf (<https://opentelemetry.io/docs/specs/otlp/#otlphttp>).
//!
//! A finished span is put into a bounded queue, and is dropped where that is full; a thread of its own sends what is in it. A
//! collector that is slow or away delays nobody.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response, Uri};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{Key, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::runtime::Handle;
use tracing::{info, warn};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::{Layer, Registry};

use super::TARGET;
use crate::net::{Upstream, UpstreamError};

/// How long a collector may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long an exit waits for the last spans to be sent.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);
/// The part of a collector's answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// What ringfence is called unless `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES` says otherwise.
const SERVICE: &str = "ringfence";

/// Where spans go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The collector's address for traces, path included.
    pub endpoint: Uri,
}

/// What takes the spans of a process.
pub type SpanLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// The queue, and the thread that empties it.
pub struct Exporter(SdkTracerProvider);

/// Starts an exporter. Its layer takes spans once it is in the process's subscriber; `upstream` is what they are sent with, on
/// the runtime of whoever calls this.
///
/// # Errors
/// A variable of OpenTelemetry has a value that cannot be used.
pub fn start(settings: &Settings, upstream: Upstream) -> Result<(SpanLayer, Exporter), String> {
    let client = Client { upstream, runtime: Handle::current(), is_away: AtomicBool::new(false) };
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(settings.endpoint.to_string())
        .with_timeout(TIMEOUT)
        .build()
        .map_err(|error| error.to_string())?;
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource()).build();
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer(SERVICE))
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_filter(filter_fn(|metadata| metadata.is_span() && metadata.target() == TARGET));
    Ok((Box::new(layer), Exporter(provider)))
}

/// What the variables say of this process, with a name of the service if they give none.
fn resource() -> Resource {
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let named = Resource::builder().build().get(&Key::from_static_str("service.name"));
    let is_named = named.is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    let resource = Resource::builder().with_attribute(version);
    if is_named { resource.build() } else { resource.with_service_name(SERVICE).build() }
}

impl Exporter {
    /// Sends what is in the queue, and ends.
    pub async fn stop(self) {
        let stopping = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(FLUSH_WITHIN));
        // Nobody waits longer for a collector that is away.
        let _ = tokio::time::timeout(2 * FLUSH_WITHIN, stopping).await;
    }
}

/// Sends batches with ringfence's own client: its connections, its TLS, its certificates.
#[derive(Debug)]
struct Client {
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
        let sending = self.runtime.spawn(async move { upstream.fetch(request, ANSWER_BYTES_MAX, TIMEOUT).await });
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
        let was_away = self.is_away.swap(why.is_some(), Ordering::Relaxed);
        match why {
            Some(error) if !was_away => {
                warn!(error, "failed to send traces to the collector; they are dropped meanwhile")
            }
            None if was_away => info!("the collector takes traces again"),
            _ => {}
        }
    }
}
