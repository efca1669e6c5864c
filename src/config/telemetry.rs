//! `[telemetry]`: where traces, log lines and error reports go.

use http::Uri;

use super::table::Table;
use super::values::url;
use crate::telemetry::reports::ErrorReporting;
use crate::telemetry::traces::TraceExport;

/// A kind of data that is sent to a collector apart from other kinds: its path there
/// (<https://opentelemetry.io/docs/specs/otlp/#otlphttp-request>), and the variable that names its address alone
/// (<https://opentelemetry.io/docs/specs/otel/protocol/exporter/>).
struct Signal {
    path: &'static str,
    variable: &'static str,
}

const TRACES: Signal = Signal { path: "/v1/traces", variable: "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" };
const LOGS: Signal = Signal { path: "/v1/logs", variable: "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT" };
/// The variable for everything of every program that sends OTLP.
const VARIABLE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Reads `[telemetry]`.
pub(super) fn read(root: &Table<'_>) -> (Option<TraceExport>, Option<ErrorReporting>) {
    let telemetry = root.table("telemetry");
    let read = (otlp(&telemetry), sentry(&telemetry));
    telemetry.finish();
    read
}

fn sentry(telemetry: &Table<'_>) -> Option<ErrorReporting> {
    let sentry = telemetry.table("sentry");
    let (dsn, environment) = (sentry.secret("dsn"), sentry.text("environment"));
    let settings = dsn.and_then(|dsn| {
        let settings = ErrorReporting::new(dsn, environment);
        let wrong =
            |why| sentry.report().error("E003", sentry.span("dsn"), format!("`telemetry.sentry.dsn` {why}"), "");
        settings.map_err(wrong).ok()
    });
    sentry.finish();
    settings
}

/// Without `endpoint`, OpenTelemetry's own variables count.
fn otlp(telemetry: &Table<'_>) -> Option<TraceExport> {
    let otlp = telemetry.table("otlp");
    let wants_logs = otlp.flag("logs").unwrap_or(false);
    let written = otlp.parsed("endpoint", collector);
    let is_written = otlp.has("endpoint");
    let endpoint = |signal: &Signal| match is_written {
        true => written.as_ref().and_then(|base| with_path(base, signal)),
        false => named(&otlp, signal),
    };
    let traces = endpoint(&TRACES);
    let logs = if wants_logs { endpoint(&LOGS) } else { None };
    let is_named = is_written || [LOGS.variable, VARIABLE].iter().any(|name| otlp.read_variable(name).is_some());
    if wants_logs && !is_named {
        let title = "`telemetry.otlp.logs` is set, and no collector is named";
        let help = format!("set telemetry.otlp.endpoint, or {VARIABLE}");
        otlp.report().error("E004", otlp.span("logs"), title, &help);
    }
    otlp.finish();
    (traces.is_some() || logs.is_some()).then_some(TraceExport { traces, logs })
}

/// The address that a variable names.
fn named(otlp: &Table<'_>, signal: &Signal) -> Option<Uri> {
    let asked = [signal.variable, VARIABLE].map(|name| otlp.read_variable(name).map(|value| (name, value)));
    let (name, value) = asked.into_iter().flatten().next()?;
    match collector(value.trim()) {
        Ok(url) if name == VARIABLE => with_path(&url, signal),
        Ok(url) => Some(url),
        Err(why) => {
            otlp.report().error("E003", None, format!("environment variable {name} {why}"), "");
            None
        }
    }
}

/// A collector's address. What would be lost of it is a mistake: a path is put behind it, and credentials are not sent.
fn collector(text: &str) -> Result<Uri, String> {
    let uri = url(text)?;
    let has_credentials = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    if uri.query().is_some() || has_credentials {
        return Err("must have no query and no credentials: put a key into OTEL_EXPORTER_OTLP_HEADERS".to_owned());
    }
    Ok(uri)
}

/// The address of a signal at a collector; one that has a signal's path already is that collector's.
fn with_path(base: &Uri, signal: &Signal) -> Option<Uri> {
    let text = base.to_string();
    let text = text.trim_end_matches('/');
    let base = [TRACES.path, LOGS.path].iter().find_map(|path| text.strip_suffix(path)).unwrap_or(text);
    format!("{base}{}", signal.path).parse().ok()
}
