//! All metrics: name, labels, meaning. The only caller of the prometheus crate.
//!
//! The five unprefixed names are those of the systems that ringfence replaces, so that their alerts keep working.

mod busiest;
mod by_business;
mod exemplars;
mod open_metrics;
mod registration;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::{Encoder as _, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder};

use by_business::BusinessMetrics;
pub use exemplars::Exemplar;
use exemplars::TracedHistogram;
pub use registration::{BadMetric, MetricDescription};

/// Businesses with a label of their own, unless the config sets another number.
pub const BUSINESS_LABELS: u32 = 20;

/// The values of `plan` on rejections of creates of unknown businesses, and of inbound calls.
const PLANS_OF_NO_BUSINESS: [&str; 2] = ["unknown", "inbound"];
/// The results of a poll of an account for its live calls.
const SWEEP_RESULTS: [&str; 2] = ["ok", "failed"];

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

/// Handles to every metric. Cloning is cheap.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    /// Held while the gauges are set and read.
    rendering: Mutex<()>,
    descriptions: Vec<MetricDescription>,
    active_calls: IntGauge,
    rejected: IntCounterVec,
    elevenlabs_429: IntCounter,
    sessions: IntGauge,
    subscriptions: IntGauge,
    admitted: IntCounterVec,
    would_refuse: IntCounterVec,
    ended: IntCounterVec,
    provider_limit: IntCounterVec,
    reposts: IntCounterVec,
    unknown: IntCounterVec,
    over_limit: IntGauge,
    limit_current: IntGaugeVec,
    limit_max: IntGaugeVec,
    requests: IntCounterVec,
    upstream_seconds: TracedHistogram,
    added_seconds: TracedHistogram,
    of_business: BusinessMetrics,
    webhooks: IntCounterVec,
    unreadable: IntCounterVec,
    unfenced: IntCounterVec,
    unread_calls: IntGaugeVec,
    journaled: IntGauge,
    parked: IntGauge,
    deliveries: IntCounterVec,
    records: IntCounterVec,
    hook_missed: IntGaugeVec,
    hook_last: IntGaugeVec,
    sweeps: IntCounterVec,
    provider_live: IntGaugeVec,
    alias_conflicts: IntCounter,
    callbacks_refused: IntCounterVec,
    destinations_refused: IntCounterVec,
    do_not_call: IntGaugeVec,
    do_not_call_readable: IntGauge,
    certificate_reloads: IntCounterVec,
    certificate_expiry: IntGaugeVec,
    runs_running: IntGauge,
    run_calls: IntCounterVec,
    run_dials: IntCounterVec,
    run_breakers: IntCounter,
    schedule_firings: IntCounterVec,
    schedules_failing: IntGauge,
    store_failures: IntCounter,
    config_reloads: IntCounterVec,
    config_reload_ok: IntGauge,
    config_info: IntGaugeVec,
    policy_info: IntGaugeVec,
    policies_differ: IntGauge,
    bypass_active: IntGauge,
    bypassed: IntCounterVec,
    gate_epoch: IntGauge,
    gate_mode: IntGaugeVec,
    gate_fallback: IntGauge,
    gate_moves: IntCounterVec,
    gate_degraded: IntCounterVec,
    gate_compared: IntCounterVec,
    client_sockets: IntGauge,
    client_messages: IntCounterVec,
    client_slow_closes: IntCounter,
}

/// The label values that may occur, so that every counter exists at 0 before its first event: `rate()` and `increase()` ignore the
/// first value of a new series.
#[derive(Debug, Clone, Default)]
pub struct Counted<'a> {
    /// All accounts.
    pub accounts: Vec<&'a str>,
    /// The accounts that are polled for their live calls.
    pub asked: Vec<&'a str>,
    /// All plans.
    pub plans: Vec<&'a str>,
    /// All rejection reasons.
    pub reasons: Vec<&'a str>,
    /// Maximum businesses with a label of their own.
    pub business_labels: u32,
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
    /// The descriptions, in the order of registration.
    pub fn descriptions(&self) -> &[MetricDescription] {
        &self.inner.descriptions
    }

    /// Counts a duplicate create that was not sent again.
    pub fn repost(&self, account: &str) {
        self.inner.reposts.with_label_values(&[account]).inc();
    }

    /// Creates every counter at 0.
    pub fn expect(&self, may: &Counted<'_>) {
        let m = &self.inner;
        let zero = |counter: &IntCounterVec, labels: &[&str]| drop(counter.with_label_values(labels));
        for &account in &may.accounts {
            for counter in [&m.reposts, &m.unknown, &m.unfenced] {
                zero(counter, &[account]);
            }
            m.upstream_seconds.expect(account);
            ["concurrency", "rate", "busy"].iter().for_each(|class| zero(&m.provider_limit, &[account, class]));
            ["webhook", "asked", "missing"].iter().for_each(|source| zero(&m.records, &[account, source]));
            zero(&m.webhooks, &[account, "unverified", "refused"]);
            for plan in &may.plans {
                ["outbound", "inbound"].iter().for_each(|direction| zero(&m.admitted, &[account, direction, plan]));
            }
        }
        for account in &may.asked {
            SWEEP_RESULTS.iter().for_each(|result| zero(&m.sweeps, &[account, result]));
        }
        for plan in may.plans.iter().chain(&PLANS_OF_NO_BUSINESS) {
            may.reasons.iter().for_each(|reason| zero(&m.rejected, &[reason, plan]));
        }
        for (counter, values) in [
            (&m.deliveries, &["done", "retry", "given_up"][..]),
            (&m.gate_degraded, &["database", "open", "closed"]),
            (&m.schedule_firings, &["fired", "no_leads", "failed", "given_up", "missed"]),
            (&m.gate_compared, &["ended", "orphan", "uncounted"]),
            (&m.certificate_reloads, &["ok", "failed"]),
            (&m.config_reloads, &["loaded", "unchanged", "kept", "failed"]),
        ] {
            values.iter().for_each(|value| zero(counter, &[value]));
        }
        for status in ["2xx", "4xx", "5xx"] {
            for (listener, kind) in
                [("api", "create"), ("api", "relay"), ("webhooks", "webhook"), ("webhooks", "passed")]
            {
                zero(&m.requests, &[listener, kind, status]);
            }
        }
        ["sent", "rejected"].iter().for_each(|outcome| m.added_seconds.expect(outcome));
        m.of_business.expect(may.business_labels as usize);
    }

    /// Counts a rejected call. `reason` is the contract's label, not the code of the response.
    pub fn refused(&self, reason: &str, plan: &str, business: &str) {
        self.inner.rejected.with_label_values(&[reason, plan]).inc();
        self.inner.of_business.rejected(business);
    }

    /// Rejections so far by (reason, plan).
    pub fn refusals(&self) -> Vec<(String, String, u64)> {
        let mut all = Vec::new();
        for family in prometheus::core::Collector::collect(&self.inner.rejected) {
            for metric in family.get_metric() {
                let label = |name: &str| {
                    metric.get_label().iter().find(|l| l.name() == name).map_or("", |l| l.value()).to_owned()
                };
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an integer counter")]
                let count = metric.get_counter().get_value() as u64;
                if count > 0 {
                    all.push((label("reason"), label("plan"), count));
                }
            }
        }
        all
    }

    /// Creates that ElevenLabs answered with 429.
    pub fn elevenlabs_429_count(&self) -> u64 {
        self.inner.elevenlabs_429.get()
    }

    /// Counts an admitted call.
    pub fn admitted(&self, account: &str, direction: &str, plan: &str, business: &str) {
        self.inner.admitted.with_label_values(&[account, direction, plan]).inc();
        self.inner.of_business.admitted(business);
    }

    /// Counts a call that enforce mode would have rejected.
    pub fn would_refuse(&self, limit: &str) {
        self.inner.would_refuse.with_label_values(&[limit]).inc();
    }

    /// Counts an ended call.
    pub fn ended(&self, outcome: &str, proof: &str) {
        self.inner.ended.with_label_values(&[outcome, proof]).inc();
    }

    /// Counts a rejection by a provider whose own limit was full.
    pub fn provider_limit(&self, provider: &str, account: &str, class: &str) {
        if provider == "elevenlabs" {
            self.inner.elevenlabs_429.inc();
        }
        self.inner.provider_limit.with_label_values(&[account, class]).inc();
    }

    /// Counts a create whose answer was lost.
    pub fn outcome_unknown(&self, account: &str) {
        self.inner.unknown.with_label_values(&[account]).inc();
    }

    /// Counts a callback URL of an app that was not called.
    pub fn callback_refused(&self, at: &str, reason: &str) {
        self.inner.callbacks_refused.with_label_values(&[at, reason]).inc();
    }

    /// Counts an answered request.
    pub fn request(&self, listener: &str, kind: &str, status: u16) {
        let class = match status {
            100..200 => "1xx",
            200..300 => "2xx",
            300..400 => "3xx",
            400..500 => "4xx",
            _ => "5xx",
        };
        self.inner.requests.with_label_values(&[listener, kind, class]).inc();
    }

    /// Observes how long a provider took to answer a create.
    pub fn upstream_seconds(&self, account: &str, took: Duration, exemplar: Option<Exemplar>) {
        self.inner.upstream_seconds.observe(account, took.as_secs_f64(), exemplar);
    }

    /// Observes ringfence's own time for a create that was sent.
    pub fn added_to_sent(&self, own: Duration, exemplar: Option<Exemplar>) {
        self.inner.added_seconds.observe("sent", own.as_secs_f64(), exemplar);
    }

    /// Observes ringfence's own time for a create that a limit rejected.
    pub fn added_to_rejected(&self, own: Duration, exemplar: Option<Exemplar>) {
        self.inner.added_seconds.observe("rejected", own.as_secs_f64(), exemplar);
    }

    /// Counts a received webhook.
    pub fn webhook(&self, account: &str, event: &str, outcome: &str) {
        self.inner.webhooks.with_label_values(&[account, event, outcome]).inc();
    }

    /// Counts a message that could not be read, or not strictly; `source` is its kind.
    pub fn unreadable(&self, account: &str, source: &str, flaw: &str) {
        self.inner.unreadable.with_label_values(&[account, source, flaw]).inc();
    }

    /// Counts a call made by a request that no operation matches.
    pub fn unfenced(&self, account: &str) {
        self.inner.unfenced.with_label_values(&[account]).inc();
    }

    /// Sets the number of open calls whose state could not be read for long.
    pub fn unread_calls(&self, account: &str, calls: usize) {
        self.inner.unread_calls.with_label_values(&[account]).set(i64::try_from(calls).unwrap_or(i64::MAX));
    }

    /// Sets the number of webhooks in the journal.
    pub fn journaled(&self, waiting: u64) {
        self.inner.journaled.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }

    /// Counts a delivery to the app.
    pub fn delivery(&self, result: &str) {
        self.inner.deliveries.with_label_values(&[result]).inc();
    }

    /// Counts a post-call record by its source, or as given up.
    pub fn record(&self, account: &str, source: &str) {
        self.inner.records.with_label_values(&[account, source]).inc();
    }

    /// Sets how many of the latest calls in a row lacked a watched webhook, and when it last came.
    pub fn hook(&self, account: &str, webhook: &str, missed: u32, last_secs: Option<i64>) {
        let labels = [account, webhook];
        self.inner.hook_missed.with_label_values(&labels).set(missed.into());
        if let Some(secs) = last_secs {
            self.inner.hook_last.with_label_values(&labels).set(secs);
        }
    }

    /// Removes a watched webhook whose account is no longer in the config.
    pub fn hook_gone(&self, account: &str, webhook: &str) {
        for gauge in [&self.inner.hook_missed, &self.inner.hook_last] {
            // Fails for a series that does not exist.
            let _ = gauge.remove_label_values(&[account, webhook]);
        }
    }

    /// Counts a poll of an account for its live calls.
    pub fn sweep(&self, account: &str, result: &str) {
        self.inner.sweeps.with_label_values(&[account, result]).inc();
    }

    /// Counts an id that two calls claimed.
    pub fn alias_conflict(&self) {
        self.inner.alias_conflicts.inc();
    }

    /// Counts a create whose destination is blocked.
    pub fn destination_refused(&self, rule: &str) {
        self.inner.destinations_refused.with_label_values(&[rule]).inc();
    }

    /// Sets the sizes of the do-not-call lists of the file and of the table. `None`: the table cannot be read.
    pub fn do_not_call(&self, in_file: Option<u64>, in_table: u64) {
        let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.inner.do_not_call_readable.set(in_file.is_some().into());
        if let Some(in_file) = in_file {
            self.inner.do_not_call.with_label_values(&["file"]).set(count(in_file));
        }
        self.inner.do_not_call.with_label_values(&["table"]).set(count(in_table));
    }

    /// Sets the number of running bulk runs.
    pub fn runs_running(&self, runs: usize) {
        self.inner.runs_running.set(i64::try_from(runs).unwrap_or(i64::MAX));
    }

    /// Counts an ended call of a bulk run.
    pub fn run_call(&self, outcome: &str) {
        self.inner.run_calls.with_label_values(&[outcome]).inc();
    }

    /// Counts an attempt to dial a job of a bulk run.
    pub fn run_dial(&self, result: &str) {
        self.inner.run_dials.with_label_values(&[result]).inc();
    }

    /// Counts a bulk run that was paused because its calls failed.
    pub fn run_breaker(&self) {
        self.inner.run_breakers.inc();
    }

    /// Counts a firing of a schedule, by result.
    pub fn schedule_firing(&self, result: &str) {
        self.inner.schedule_firings.with_label_values(&[result]).inc();
    }

    /// Sets the number of schedules whose firing is being retried.
    pub fn schedules_failing(&self, schedules: u64) {
        self.inner.schedules_failing.set(i64::try_from(schedules).unwrap_or(i64::MAX));
    }

    /// Counts a reload of a changed certificate.
    pub fn certificate_reload(&self, result: &str) {
        self.inner.certificate_reloads.with_label_values(&[result]).inc();
    }

    /// Sets the expiry of a certificate, in seconds since 1970.
    pub fn certificate_expires(&self, certificate: &str, at_secs: i64) {
        self.inner.certificate_expiry.with_label_values(&[certificate]).set(at_secs);
    }

    /// Removes the series of an account that is no longer in the config.
    pub fn provider_gone(&self, account: &str) {
        let _ = self.inner.unread_calls.remove_label_values(&[account]);
        for result in SWEEP_RESULTS {
            let _ = self.inner.sweeps.remove_label_values(&[account, result]);
        }
    }

    /// Counts a reload of the config.
    pub fn config_reload(&self, result: &str, ok: bool) {
        self.inner.config_reloads.with_label_values(&[result]).inc();
        self.inner.config_reload_ok.set(ok.into());
    }

    /// Sets the config and the policy in force.
    pub fn config_in_force(&self, hash: Option<&str>, policy: &str, is_first: bool) {
        if is_first {
            // The config at start is usable.
            self.inner.config_reload_ok.set(1);
        }
        self.inner.config_info.reset();
        self.inner.config_info.with_label_values(&[hash.unwrap_or_default()]).set(1);
        self.inner.policy_info.reset();
        self.inner.policy_info.with_label_values(&[policy]).set(1);
    }

    /// Sets whether replicas run different policies.
    pub fn policies_differ(&self, differ: bool) {
        self.inner.policies_differ.set(differ.into());
    }

    /// Sets whether limits are bypassed.
    pub fn bypass_active(&self, active: bool) {
        self.inner.bypass_active.set(active.into());
    }

    /// Counts a call that was let through because of the bypass.
    pub fn bypassed(&self, limit: &str) {
        self.inner.bypassed.with_label_values(&[limit]).inc();
    }

    /// Sets the limiter's epoch and back end, and whether it is a fallback.
    pub fn gate_state(&self, epoch: i64, mode: &str, is_fallback: bool) {
        self.inner.gate_fallback.set(is_fallback.into());
        self.inner.gate_epoch.set(epoch);
        self.inner.gate_mode.reset();
        self.inner.gate_mode.with_label_values(&[mode]).set(1);
    }

    /// Counts a transition of the limiter made by this replica.
    pub fn gate_moved(&self, to: &str) {
        self.inner.gate_moves.with_label_values(&[to]).inc();
    }

    /// Counts a decision while Redis was away.
    pub fn degraded(&self, decided: &str) {
        self.inner.gate_degraded.with_label_values(&[decided]).inc();
    }

    /// Counts differences between leases and call records that were repaired.
    pub fn gate_compared(&self, ended: usize, orphans: usize, uncounted: usize) {
        for (what, n) in [("ended", ended), ("orphan", orphans), ("uncounted", uncounted)] {
            self.inner.gate_compared.with_label_values(&[what]).inc_by(n as u64);
        }
    }

    /// Adds to the number of open WebSockets.
    pub fn client_sockets(&self, more: i64) {
        self.inner.client_sockets.add(more);
    }

    /// Counts messages sent on a WebSocket, by type.
    pub fn client_messages(&self, kind: &str, count: u64) {
        self.inner.client_messages.with_label_values(&[kind]).inc_by(count);
    }

    /// Counts a WebSocket that was closed because its client was too slow.
    pub fn client_slow_close(&self) {
        self.inner.client_slow_closes.inc();
    }

    /// Renders all metrics in a text format.
    pub fn render(&self, gauges: &Gauges, format: Format) -> String {
        let mut families = {
            // Two scrapes at a time would read each other's half-set gauges.
            let _rendering = self.inner.rendering.lock().unwrap_or_else(PoisonError::into_inner);
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
                open_metrics::encode(&families, &[&self.inner.upstream_seconds, &self.inner.added_seconds])
            }
        }
    }

    fn set(&self, gauges: &Gauges) {
        let m = &self.inner;
        m.active_calls.set(gauges.active.into());
        m.over_limit.set(gauges.over_limit.into());
        // Values that cannot be read keep their last value.
        if let (Some(sessions), Some(of_businesses)) = (gauges.sessions, gauges.of_businesses) {
            m.sessions.set(sessions.into());
            m.subscriptions.set(of_businesses.into());
        }
        m.store_failures.reset();
        m.store_failures.inc_by(gauges.store_failures);
        m.limit_current.reset();
        for (limit, calls) in &gauges.limits {
            m.limit_current.with_label_values(&[limit.as_str()]).set((*calls).into());
        }
        m.limit_max.reset();
        for (limit, calls) in &gauges.limits_max {
            m.limit_max.with_label_values(&[limit.as_str()]).set((*calls).into());
        }
        if let Some(parked) = gauges.parked {
            m.parked.set(i64::try_from(parked).unwrap_or(i64::MAX));
        }
        m.of_business.show(gauges.businesses.as_deref(), gauges.now_ms);
        m.provider_live.reset();
        for (account, live) in &gauges.provider_live {
            m.provider_live.with_label_values(&[account.as_str()]).set((*live).into());
        }
    }
}

#[cfg(test)]
mod tests;
