//! A scrape: the gauges are set, then all metrics are written in a text format.

use prometheus::{Encoder as _, TextEncoder};

use super::{Metrics, open_metrics};
use crate::sync::lock;

/// Gauges of what all replicas share. The leader alone shows them, so that their sum and their maximum over replicas are right.
pub const GLOBAL_GAUGES: [&str; 11] = [
    "platform_global_active_calls",
    "active_call_sessions_count",
    "subscription_active_calls_sum",
    "ringfence_limit_in_use",
    "ringfence_over_limit_calls",
    "ringfence_business_in_use",
    "ringfence_provider_live_calls",
    "ringfence_webhooks_parked",
    "ringfence_unreadable_calls",
    "ringfence_webhook_missed_calls",
    "ringfence_webhook_last_timestamp_seconds",
];

/// A text format of the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The Prometheus text format 0.0.4.
    Text,
    /// OpenMetrics 1.0, with exemplars.
    OpenMetrics,
}

impl Format {
    /// The format for a request with this `Accept` (RFC 9110 §12.5.1): OpenMetrics if it is asked for by name, and text is not preferred.
    pub fn accepted(accept: &str) -> Self {
        let quality = |media_type: &str| {
            let ranges = accept.split(',').map(|range| {
                let mut parts = range.split(';').map(str::trim);
                let name = parts.next().unwrap_or_default().to_ascii_lowercase();
                let quality = parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")));
                (name, quality.map_or(1.0, |q| q.parse::<f32>().unwrap_or(0.0)))
            });
            ranges.filter(|(name, _)| name == media_type).map(|(_, quality)| quality).fold(0.0, f32::max)
        };
        let open_metrics = quality("application/openmetrics-text");
        if open_metrics > 0.0 && open_metrics >= quality("text/plain") { Self::OpenMetrics } else { Self::Text }
    }

    /// The media type.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => open_metrics::CONTENT_TYPE,
        }
    }
}

/// The values of the gauges at a scrape.
#[derive(Debug, Clone, Default)]
pub struct Gauges {
    /// The time of the scrape, in milliseconds since 1970.
    pub now_ms: i64,
    /// Another replica leads, and shows [`GLOBAL_GAUGES`].
    pub follows: bool,
    /// Calls that hold a slot, without over-limit calls.
    pub active: u32,
    /// Over-limit calls.
    pub over_limit: u32,
    /// Open call records.
    pub sessions: Option<u32>,
    /// Slots in use, summed over businesses.
    pub of_businesses: Option<u32>,
    /// Slots in use by limit name, of limits with a single count.
    pub limits: Vec<(String, u32)>,
    /// The bounds of those limits.
    pub limits_max: Vec<(String, u32)>,
    /// Slots in use by business.
    pub businesses: Option<Vec<(String, u32)>>,
    /// Parked webhooks. `None`: the database cannot be read.
    pub parked: Option<u64>,
    /// Failed writes to the database since the start.
    pub store_failures: u64,
    /// Live calls as last reported by providers, by account.
    pub provider_live: Vec<(String, u32)>,
}

impl Metrics {
    /// Renders all metrics in a text format.
    pub fn render(&self, gauges: &Gauges, format: Format) -> String {
        let mut families = {
            // Two scrapes at a time would read each other's half-set gauges.
            let _rendering = lock(&self.inner.rendering);
            self.set(gauges);
            self.inner.registry.gather()
        };
        families.retain(|family| !(gauges.follows && GLOBAL_GAUGES.contains(&family.name())));
        match format {
            Format::Text => {
                let mut out = Vec::new();
                // Writing into memory cannot fail for registered metrics.
                let _ = TextEncoder::new().encode(&families, &mut out);
                String::from_utf8(out).unwrap_or_default()
            }
            Format::OpenMetrics => {
                open_metrics::encode(&families, &[&self.inner.calls.upstream_seconds, &self.inner.calls.added_seconds])
            }
        }
    }

    fn set(&self, gauges: &Gauges) {
        let m = &self.inner;
        m.calls.active_calls.set(gauges.active.into());
        m.calls.over_limit.set(gauges.over_limit.into());
        // Values that cannot be read keep their last value.
        if let (Some(sessions), Some(of_businesses)) = (gauges.sessions, gauges.of_businesses) {
            m.calls.sessions.set(sessions.into());
            m.calls.subscriptions.set(of_businesses.into());
        }
        m.config.store_failures.reset();
        m.config.store_failures.inc_by(gauges.store_failures);
        m.calls.limit_current.reset();
        for (limit, calls) in &gauges.limits {
            m.calls.limit_current.with_label_values(&[limit.as_str()]).set((*calls).into());
        }
        m.calls.limit_max.reset();
        for (limit, calls) in &gauges.limits_max {
            m.calls.limit_max.with_label_values(&[limit.as_str()]).set((*calls).into());
        }
        if let Some(parked) = gauges.parked {
            m.hooks.parked.set(i64::try_from(parked).unwrap_or(i64::MAX));
        }
        m.of_business.show(gauges.businesses.as_deref(), gauges.now_ms);
        m.hooks.provider_live.reset();
        for (account, live) in &gauges.provider_live {
            m.hooks.provider_live.with_label_values(&[account.as_str()]).set((*live).into());
        }
    }
}
