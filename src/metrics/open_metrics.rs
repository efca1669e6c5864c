//! The OpenMetrics 1.0 text format (<https://prometheus.io/docs/specs/om/open_metrics_spec/>), for scrapers that ask for it: it has
//! exemplars. The prometheus crate writes only the older format.

use std::fmt::Write as _;

use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};

use super::exemplars::TracedHistogram;

/// The media type of the format.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Writes all families, and the exemplars of the histograms in `traced`.
pub(super) fn encode(families: &[MetricFamily], traced: &[&TracedHistogram]) -> String {
    let mut out = String::new();
    for family in families {
        let (name, kind) = (family.name(), family.get_field_type());
        // The name of a counter's family is without the suffix of its samples.
        let (declared, kind_name) = match (kind, name.strip_suffix("_total")) {
            (MetricType::COUNTER, Some(base)) => (base, "counter"),
            (MetricType::GAUGE, _) => (name, "gauge"),
            (MetricType::HISTOGRAM, _) => (name, "histogram"),
            _ => (name, "unknown"),
        };
        // Writing into a string cannot fail.
        let _ = writeln!(out, "# TYPE {declared} {kind_name}\n# HELP {declared} {}", escaped(family.help()));
        let traced = traced.iter().find(|traced| traced.name == name);
        for metric in family.get_metric() {
            if kind == MetricType::HISTOGRAM {
                histogram(&mut out, name, metric, traced.copied());
                continue;
            }
            let value = if kind == MetricType::COUNTER {
                metric.get_counter().get_value()
            } else {
                metric.get_gauge().get_value()
            };
            let _ = writeln!(out, "{name}{} {value}", labels(metric.get_label(), None));
        }
    }
    out.push_str("# EOF\n");
    out
}

fn histogram(out: &mut String, name: &str, metric: &Metric, traced: Option<&TracedHistogram>) {
    let histogram = metric.get_histogram();
    let label = metric.get_label().first().map_or("", LabelPair::value);
    let bounded = histogram.get_bucket().iter().map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()));
    let last = (f64::INFINITY, histogram.get_sample_count());
    for (at, (bound, count)) in bounded.filter(|(bound, _)| bound.is_finite()).chain([last]).enumerate() {
        let bound = if bound.is_finite() { format!("{bound:?}") } else { "+Inf".to_owned() };
        let _ = write!(out, "{name}_bucket{} {count}", labels(metric.get_label(), Some(&bound)));
        if let Some((value, exemplar)) = traced.and_then(|traced| traced.exemplar(label, at)) {
            let (secs, millis) = (exemplar.at_ms.div_euclid(1_000), exemplar.at_ms.rem_euclid(1_000));
            let _ = write!(out, " # {{trace_id=\"{}\"}} {value} {secs}.{millis:03}", escaped(&exemplar.trace_id));
        }
        out.push('\n');
    }
    let labels = labels(metric.get_label(), None);
    let _ = writeln!(out, "{name}_count{labels} {}", histogram.get_sample_count());
    let _ = writeln!(out, "{name}_sum{labels} {}", histogram.get_sample_sum());
}

/// `{name="value",…}`; nothing without labels.
fn labels(labels: &[LabelPair], bound: Option<&str>) -> String {
    let mut all: Vec<String> =
        labels.iter().map(|label| format!("{}=\"{}\"", label.name(), escaped(label.value()))).collect();
    all.extend(bound.map(|bound| format!("le=\"{bound}\"")));
    if all.is_empty() { String::new() } else { format!("{{{}}}", all.join(",")) }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"")
}
