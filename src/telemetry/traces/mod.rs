//! Traces: a span tree for each create, webhook and delivery, exported by OTLP (`export`); and log lines, exported likewise
//! (`lines`).
//!
//! The phases of `calls/outbound` and `webhooks/receive` are the steps of a tree. The `traceparent` of a request
//! (<https://www.w3.org/TR/trace-context/>) is continued, or linked if the sender is not authenticated yet. Requests to providers and
//! to the app have ours. Without a collector there are no spans, and these headers pass unchanged.
//!
//! No attribute has a secret, a whole telephone number, a path or a body.

mod export;
mod lines;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{Span, field, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::ids::mask_number;
use crate::metrics::Exemplar;
use crate::net::SendResult;
use crate::policy::CallAttributes;
pub use export::{Exporter, Layers, TelemetryLayer, TraceExport, start};

/// The target of trace spans only: logs exclude it, and the exporter includes only it.
pub const TARGET: &str = "ringfence_trace";

/// The headers of a trace context. The state of another parent must not be sent with ours (§3.3).
pub const TRACE_HEADERS: [HeaderName; 2] =
    [HeaderName::from_static("traceparent"), HeaderName::from_static("tracestate")];

/// The tree of a create.
pub fn create(account: &str, headers: &HeaderMap) -> Span {
    let span = info_span!(
        target: TARGET, "create", otel.name = field::Empty, otel.kind = "server", otel.status_code = field::Empty, ringfence.account = account,
        ringfence.business = field::Empty, ringfence.plan = field::Empty, ringfence.operation = field::Empty,
        ringfence.to = field::Empty, ringfence.call = field::Empty, ringfence.code = field::Empty,
        http.response.status_code = field::Empty,
    );
    follow(span, headers)
}

/// The tree of a job of a bulk run.
pub fn job(account: &str) -> Span {
    info_span!(
        target: TARGET, "job", otel.kind = "internal", otel.status_code = field::Empty, ringfence.account = account,
        ringfence.business = field::Empty, ringfence.plan = field::Empty, ringfence.operation = field::Empty,
        ringfence.to = field::Empty, ringfence.call = field::Empty,
    )
}

/// The tree of a webhook. It is linked to the trace of the headers, not part of it: the request is not authenticated yet, so it
/// decides neither the trace nor its sampling.
pub fn webhook(account: &str, webhook: &str, headers: &HeaderMap) -> Span {
    let span = info_span!(
        target: TARGET, "webhook", otel.kind = "server", otel.status_code = field::Empty, ringfence.account = account,
        ringfence.webhook = webhook, ringfence.event = field::Empty, ringfence.event_id = field::Empty,
        ringfence.call = field::Empty, ringfence.outcome = field::Empty, http.response.status_code = field::Empty,
    );
    if let Some(sent) = extract(&span, headers) {
        span.add_link(sent.span().span_context().clone());
    }
    span
}

/// The tree of an attempt to deliver a webhook to the app. It continues the webhook's trace, from the stored headers.
pub fn delivery(event_id: &str, attempt: u32, headers: &HeaderMap) -> Span {
    let span = info_span!(
        target: TARGET, "delivery", otel.kind = "client", otel.status_code = field::Empty, ringfence.event_id = event_id,
        ringfence.attempt = attempt, error.type = field::Empty, http.response.status_code = field::Empty,
    );
    follow(span, headers)
}

/// A step of the current tree.
pub fn step(name: &'static str) -> Span {
    info_span!(target: TARGET, "step", otel.name = name)
}

/// A step of the current tree that waits for a response.
pub fn request(name: &'static str) -> Span {
    info_span!(
        target: TARGET, "request", otel.name = name, otel.kind = "client", otel.status_code = field::Empty,
        error.type = field::Empty, http.response.status_code = field::Empty,
    )
}

/// Writes a text into a field of the current tree's root.
pub fn record_field(name: &'static str, value: &str) {
    Span::current().record(name, value);
}

/// Writes a create's attributes into the current tree's root.
pub fn record_attributes(attributes: &CallAttributes) {
    let span = Span::current();
    if span.is_disabled() {
        return;
    }
    span.record("ringfence.business", attributes.business.as_str());
    span.record("ringfence.plan", attributes.plan.as_str());
    span.record("ringfence.operation", attributes.operation.as_str());
    if let Some(to) = &attributes.other_number {
        span.record("ringfence.to", field::display(mask_number(to)));
    }
}

/// Writes a status into a span; one of 500 and more is an error.
pub fn record_status(span: &Span, status: u16) {
    span.record("http.response.status_code", status);
    if status >= 500 {
        span.record("otel.status_code", "ERROR");
    }
}

/// Writes the outcome of a sent create into its span.
pub fn record_result(span: &Span, outcome: &SendResult) {
    let why = match outcome {
        SendResult::Answered(answer) => return record_status(span, answer.status().as_u16()),
        SendResult::NotSent(_) => "not_sent",
        SendResult::Unknown(_) => "unknown",
    };
    record_failure(span, why);
}

/// Marks a span as failed without an answer.
pub fn record_failure(span: &Span, why: &'static str) {
    span.record("otel.status_code", "ERROR");
    span.record("error.type", why);
}

/// Replaces the trace context in the headers of a request by a span's. Without a collector they are unchanged.
pub fn set_trace_headers(span: &Span, headers: &mut HeaderMap) {
    let ours = trace_headers(span);
    if !ours.is_empty() {
        TRACE_HEADERS.iter().for_each(|name| drop(headers.remove(name)));
    }
    headers.extend(ours);
}

/// A span's context as headers; none without a collector.
pub fn trace_headers(span: &Span) -> Vec<(HeaderName, HeaderValue)> {
    if span.is_disabled() {
        return vec![];
    }
    let mut headers = HeaderMap::new();
    TraceContextPropagator::new().inject_context(&span.context(), &mut HeaderInjector(&mut headers));
    headers
        .into_iter()
        .filter_map(|(name, value)| Some((name?, value)))
        .filter(|(_, value)| !value.is_empty())
        .collect()
}

/// A span's trace as the exemplar of an observation. None without a collector, or if the trace is not sampled.
pub fn exemplar(span: &Span, at_ms: i64) -> Option<Exemplar> {
    if span.is_disabled() {
        return None;
    }
    let context = span.context();
    let span = context.span();
    let of = span.span_context();
    of.is_sampled().then(|| Exemplar { trace_id: of.trace_id().to_string(), at_ms })
}

/// Continues the trace of the headers in a new tree.
fn follow(span: Span, headers: &HeaderMap) -> Span {
    if let Some(parent) = extract(&span, headers) {
        // It fails only without an exporter, or if the span has been entered.
        let _ = span.set_parent(parent);
    }
    span
}

/// The trace of the headers; none without a collector.
fn extract(span: &Span, headers: &HeaderMap) -> Option<Context> {
    let is_of_use = !span.is_disabled() && headers.contains_key("traceparent");
    is_of_use.then(|| TraceContextPropagator::new().extract(&HeaderExtractor(headers)))
}
