//! `[telemetry]`: where traces go.

use http::Uri;

use super::table::Table;
use super::url;
use crate::traces::Settings;

/// The path of traces at a collector (<https://opentelemetry.io/docs/specs/otlp/#otlphttp-request>).
const TRACES_PATH: &str = "/v1/traces";
/// The variables of every program that sends OTLP, of traces alone and of everything
/// (<https://opentelemetry.io/docs/specs/otel/protocol/exporter/>).
const VARIABLES: [(&str, bool); 2] =
    [("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", true), ("OTEL_EXPORTER_OTLP_ENDPOINT", false)];

/// Reads `[telemetry.otlp]`. Without `endpoint`, OpenTelemetry's own variables count.
pub(super) fn traces(root: &Table<'_>) -> Option<Settings> {
    let telemetry = root.table("telemetry");
    let otlp = telemetry.table("otlp");
    let asked = VARIABLES.map(|(name, is_whole)| otlp.variable(name).map(|value| (name, value, is_whole)));
    let written = otlp.parsed("endpoint", url);
    let endpoint = if otlp.has("endpoint") {
        written.map(|base| (base, false))
    } else {
        asked.into_iter().flatten().next().and_then(|(name, value, is_whole)| match url(value.trim()) {
            Ok(url) => Some((url, is_whole)),
            Err(why) => {
                otlp.report().error("E003", None, format!("environment variable {name} {why}"), "");
                None
            }
        })
    };
    otlp.finish();
    telemetry.finish();
    let (base, is_whole) = endpoint?;
    let endpoint = if is_whole { Some(base) } else { with_path(&base) };
    Some(Settings { endpoint: endpoint? })
}

/// The address of traces at a collector; one that has their path already stays.
fn with_path(base: &Uri) -> Option<Uri> {
    let text = base.to_string();
    let text = text.trim_end_matches('/');
    if text.ends_with(TRACES_PATH) { text.parse().ok() } else { format!("{text}{TRACES_PATH}").parse().ok() }
}
