//! `[telemetry]`: where traces and error reports go.

use http::Uri;

use super::table::Table;
use super::url;
use crate::{reports, traces};

/// The path of traces at a collector (<https://opentelemetry.io/docs/specs/otlp/#otlphttp-request>).
const TRACES_PATH: &str = "/v1/traces";
/// The variables of every program that sends OTLP, of traces alone and of everything
/// (<https://opentelemetry.io/docs/specs/otel/protocol/exporter/>).
const VARIABLES: [(&str, bool); 2] =
    [("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", true), ("OTEL_EXPORTER_OTLP_ENDPOINT", false)];

/// Reads `[telemetry]`.
pub(super) fn read(root: &Table<'_>) -> (Option<traces::Settings>, Option<reports::Settings>) {
    let telemetry = root.table("telemetry");
    let read = (otlp(&telemetry), sentry(&telemetry));
    telemetry.finish();
    read
}

fn sentry(telemetry: &Table<'_>) -> Option<reports::Settings> {
    let sentry = telemetry.table("sentry");
    let (dsn, environment) = (sentry.secret("dsn"), sentry.text("environment"));
    let settings = dsn.and_then(|dsn| {
        let settings = reports::Settings::new(dsn, environment);
        let wrong =
            |why| sentry.report().error("E003", sentry.span("dsn"), format!("`telemetry.sentry.dsn` {why}"), "");
        settings.map_err(wrong).ok()
    });
    sentry.finish();
    settings
}

/// Without `endpoint`, OpenTelemetry's own variables count.
fn otlp(telemetry: &Table<'_>) -> Option<traces::Settings> {
    let otlp = telemetry.table("otlp");
    let asked = VARIABLES.map(|(name, is_whole)| otlp.variable(name).map(|value| (name, value, is_whole)));
    let written = otlp.parsed("endpoint", collector);
    let endpoint = if otlp.has("endpoint") {
        written.map(|base| (base, false))
    } else {
        asked.into_iter().flatten().next().and_then(|(name, value, is_whole)| match collector(value.trim()) {
            Ok(url) => Some((url, is_whole)),
            Err(why) => {
                otlp.report().error("E003", None, format!("environment variable {name} {why}"), "");
                None
            }
        })
    };
    otlp.finish();
    let (base, is_whole) = endpoint?;
    let endpoint = if is_whole { Some(base) } else { with_path(&base) };
    Some(traces::Settings { endpoint: endpoint? })
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

/// The address of traces at a collector; one that has their path already stays.
fn with_path(base: &Uri) -> Option<Uri> {
    let text = base.to_string();
    let text = text.trim_end_matches('/');
    if text.ends_with(TRACES_PATH) { text.parse().ok() } else { format!("{text}{TRACES_PATH}").parse().ok() }
}
