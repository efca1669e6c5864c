//! Log lines as OTLP log records, within the trace that they were written in.
//!
//! A record has the fields of the line except paths, URLs and bodies. Numbers are masked when a line is written, and again here. Lines
//! about the export are not exported: each batch would cause more of them.

use std::fmt;
use std::future::Future;
use std::time::SystemTime;

use opentelemetry::logs::{AnyValue, LogRecord as _, Logger as _, Severity};
use opentelemetry_sdk::logs::{SdkLogRecord, SdkLogger};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::ids::mask_numbers_in;

/// Fields of log lines that records omit, as spans do: they contain client input.
const LEFT_OUT: [&str; 3] = ["path", "url", "body"];
/// Targets excluded from export.
const SENDERS: [&str; 2] = ["ringfence::telemetry::traces", "opentelemetry"];

tokio::task_local! {
    /// Set in tasks that export.
    static EXPORTING: ();
}

/// Runs an export; its log lines do not become records.
pub(super) fn exporting<F: Future>(sending: F) -> impl Future<Output = F::Output> {
    EXPORTING.scope((), sending)
}

/// Whether a line is about the export.
fn is_of_sending(target: &str) -> bool {
    SENDERS.iter().any(|sender| target.starts_with(sender)) || EXPORTING.try_with(|()| ()).is_ok()
}

/// Layer for the log lines of a process.
pub(super) struct Lines(SdkLogger);

impl Lines {
    pub(super) fn new(logger: SdkLogger) -> Self {
        Self(logger)
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, line: &Event<'_>, _: Context<'_, S>) {
        let metadata = line.metadata();
        if is_of_sending(metadata.target()) {
            return;
        }
        let mut record = self.0.create_log_record();
        record.set_timestamp(SystemTime::now());
        record.set_target(metadata.target());
        let (number, word) = severity(*metadata.level());
        record.set_severity_number(number);
        record.set_severity_text(word);
        line.record(&mut Fields(&mut record));
        // The logger adds the current span.
        self.0.emit(record);
    }
}

fn severity(level: Level) -> (Severity, &'static str) {
    match level {
        Level::ERROR => (Severity::Error, "ERROR"),
        Level::WARN => (Severity::Warn, "WARN"),
        Level::INFO => (Severity::Info, "INFO"),
        Level::DEBUG => (Severity::Debug, "DEBUG"),
        Level::TRACE => (Severity::Trace, "TRACE"),
    }
}

/// Writes a line's fields into its record: the message as its body.
struct Fields<'r>(&'r mut SdkLogRecord);

impl Fields<'_> {
    fn put(&mut self, field: &Field, value: AnyValue) {
        match field.name() {
            "message" => self.0.set_body(value),
            // The log crate's own fields are source locations in a dependency.
            name if LEFT_OUT.contains(&name) || name.starts_with("log.") => {}
            name => self.0.add_attribute(name, value),
        }
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, mask_numbers_in(&format!("{value:?}")).into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, mask_numbers_in(value).into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        let number = i64::try_from(value).map(AnyValue::from);
        self.put(field, number.unwrap_or_else(|_| value.to_string().into()));
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
}
