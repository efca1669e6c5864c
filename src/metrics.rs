//! All metrics: name, labels, meaning. The only caller of the prometheus crate.
//!
//! The five unprefixed names are those of the systems that ringfence replaces, so that their alerts keep working.

mod busiest;
mod by_business;
mod exemplars;
mod labels;
mod open_metrics;
mod registration;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus::{Encoder as _, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder};

use crate::call::{Direction, EndProof, Outcome};
use crate::ids::AccountName;
use crate::policy::Facts;
use crate::policy::decision::GateMode;
use crate::provider::account::Account;
use crate::provider::description::LimitClass;
use crate::provider::select::Flaw;
use crate::sync::lock;
use crate::words::NamedEnum;
use by_business::BusinessMetrics;
pub use exemplars::Exemplar;
use exemplars::TracedHistogram;
use labels::COUNTED_429;
pub use labels::*;
pub use registration::{BadMetric, MetricDescription};

/// Businesses with a label of their own, unless the config sets another number.
pub const BUSINESS_LABELS: u32 = 20;

/// The value of `plan` on rejections of creates of unknown businesses.
pub const PLAN_UNKNOWN: &str = "unknown";
/// The value of `plan` on rejections of inbound calls.
pub const PLAN_INBOUND: &str = "inbound";
const PLANS_OF_NO_BUSINESS: [&str; 2] = [PLAN_UNKNOWN, PLAN_INBOUND];
/// The value of `event` of webhooks whose sender is unknown.
const UNVERIFIED: &str = "unverified";

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
    provider_429: IntCounter,
    sessions: IntGauge,
    subscriptions: IntGauge,
    admitted: IntCounterVec,
    would_reject: IntCounterVec,
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
    callbacks_rejected: IntCounterVec,
    destinations_rejected: IntCounterVec,
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
    gate_repairs: IntCounterVec,
    client_sockets: IntGauge,
    client_messages: IntCounterVec,
    client_slow_closes: IntCounter,
}

/// The label values that may occur and that only the config knows, so that every counter exists at 0 before its first event: `rate()` and `increase()` ignore the
/// first value of a new series.
#[derive(Debug, Clone, Default)]
pub struct Expected<'a> {
    /// All accounts.
    pub accounts: Vec<&'a AccountName>,
    /// The accounts that are polled for their live calls.
    pub asked: Vec<&'a AccountName>,
    /// All plans.
    pub plans: Vec<&'a str>,
    /// All rejection reasons.
    pub reasons: Vec<&'a str>,
    /// Maximum businesses with a label of their own.
    pub business_labels: u32,
}

/// A rejected call, as it is counted.
#[derive(Debug, Clone, Copy)]
pub struct RejectedCall<'a> {
    /// The contract's label, not the code of the response.
    pub reason: &'a str,
    /// The plan, or `unknown` or `inbound`.
    pub plan: &'a str,
    /// The business.
    pub business: &'a str,
}

/// Creates the series of all values of a counter's only label.
fn zero_all<W: NamedEnum>(counter: &IntCounterVec) {
    W::ALL.iter().for_each(|value| drop(counter.with_label_values(&[value.name()])));
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
    pub fn repost(&self, account: &AccountName) {
        self.inner.reposts.with_label_values(&[account.as_str()]).inc();
    }

    /// Creates every counter at 0.
    pub fn expect(&self, may: &Expected<'_>) {
        let m = &self.inner;
        let zero = |counter: &IntCounterVec, labels: &[&str]| drop(counter.with_label_values(labels));
        for account in may.accounts.iter().map(|name| name.as_str()) {
            for counter in [&m.reposts, &m.unknown, &m.unfenced] {
                zero(counter, &[account]);
            }
            m.upstream_seconds.expect(account);
            LimitClass::ALL.iter().for_each(|class| zero(&m.provider_limit, &[account, class.as_str()]));
            RecordSource::ALL.iter().for_each(|source| zero(&m.records, &[account, source.as_str()]));
            Unverified::ALL.iter().for_each(|why| zero(&m.webhooks, &[account, UNVERIFIED, why.as_str()]));
            for plan in &may.plans {
                Direction::ALL.iter().for_each(|direction| zero(&m.admitted, &[account, direction.as_str(), plan]));
            }
        }
        for account in &may.asked {
            SweepResult::ALL.iter().for_each(|result| zero(&m.sweeps, &[account.as_str(), result.as_str()]));
        }
        for plan in may.plans.iter().chain(&PLANS_OF_NO_BUSINESS) {
            may.reasons.iter().for_each(|reason| zero(&m.rejected, &[reason, plan]));
        }
        zero_all::<Delivered>(&m.deliveries);
        zero_all::<Degraded>(&m.gate_degraded);
        zero_all::<Firing>(&m.schedule_firings);
        zero_all::<Repair>(&m.gate_repairs);
        zero_all::<CertificateReload>(&m.certificate_reloads);
        zero_all::<ReloadOutcome>(&m.config_reloads);
        for status in ["2xx", "4xx", "5xx"] {
            for served in [
                Served::Api(ApiRequest::Create),
                Served::Api(ApiRequest::Relay),
                Served::Webhooks(WebhookRequest::Webhook),
                Served::Webhooks(WebhookRequest::Passed),
            ] {
                let [listener, kind] = served.labels();
                zero(&m.requests, &[listener, kind, status]);
            }
        }
        CreateOutcome::ALL.iter().for_each(|outcome| m.added_seconds.expect(outcome.as_str()));
        m.of_business.expect(may.business_labels as usize);
    }

    /// Counts a rejected call.
    pub fn rejected(&self, call: RejectedCall<'_>) {
        self.inner.rejected.with_label_values(&[call.reason, call.plan]).inc();
        self.inner.of_business.rejected(call.business);
    }

    /// Rejections so far by (reason, plan).
    pub fn rejections(&self) -> Vec<(String, String, u64)> {
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

    /// Creates that the provider of the replaced systems answered with 429.
    pub fn provider_429_count(&self) -> u64 {
        self.inner.provider_429.get()
    }

    /// Counts an admitted call.
    pub fn admitted(&self, call: &Facts) {
        let labels = [call.account.as_str(), call.direction.as_str(), &call.plan];
        self.inner.admitted.with_label_values(&labels).inc();
        self.inner.of_business.admitted(call.business.as_str());
    }

    /// Counts a call that enforce mode would have rejected.
    pub fn would_reject(&self, limit: &str) {
        self.inner.would_reject.with_label_values(&[limit]).inc();
    }

    /// Counts an ended call.
    pub fn ended(&self, outcome: Outcome, proof: EndProof) {
        self.inner.ended.with_label_values(&[outcome.as_str(), proof.as_str()]).inc();
    }

    /// Counts a rejection by a provider whose own limit was full.
    pub fn provider_limit(&self, account: &Account, class: LimitClass) {
        if account.provider.name == COUNTED_429 {
            self.inner.provider_429.inc();
        }
        self.inner.provider_limit.with_label_values(&[account.name.as_str(), class.as_str()]).inc();
    }

    /// Counts a create whose answer was lost.
    pub fn outcome_unknown(&self, account: &AccountName) {
        self.inner.unknown.with_label_values(&[account.as_str()]).inc();
    }

    /// Counts a callback URL of an app that was not called.
    pub fn callback_rejected(&self, at: CallbackUse, reason: impl NamedEnum) {
        self.inner.callbacks_rejected.with_label_values(&[at.as_str(), reason.name()]).inc();
    }

    /// Counts an answered request.
    pub fn request(&self, served: Served, status: u16) {
        let [listener, kind] = served.labels();
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
    pub fn upstream_seconds(&self, account: &AccountName, took: Duration, exemplar: Option<Exemplar>) {
        self.inner.upstream_seconds.observe(account.as_str(), took.as_secs_f64(), exemplar);
    }

    /// Observes ringfence's own time for a create that was sent.
    pub fn added_to_sent(&self, own: Duration, exemplar: Option<Exemplar>) {
        self.inner.added_seconds.observe(CreateOutcome::Sent.as_str(), own.as_secs_f64(), exemplar);
    }

    /// Observes ringfence's own time for a create that a limit rejected.
    pub fn added_to_rejected(&self, own: Duration, exemplar: Option<Exemplar>) {
        self.inner.added_seconds.observe(CreateOutcome::Rejected.as_str(), own.as_secs_f64(), exemplar);
    }

    /// Counts a received webhook; `outcome` is of the store, or [`NotApplied`].
    pub fn webhook(&self, account: &AccountName, event: &str, outcome: impl NamedEnum) {
        self.inner.webhooks.with_label_values(&[account.as_str(), event, outcome.name()]).inc();
    }

    /// Counts a webhook whose sender is unknown.
    pub fn webhook_unverified(&self, account: &AccountName, why: Unverified) {
        self.inner.webhooks.with_label_values(&[account.as_str(), UNVERIFIED, why.as_str()]).inc();
    }

    /// Counts a message that could not be read, or not strictly.
    pub fn unreadable(&self, account: &AccountName, message: MessageKind, flaw: Flaw) {
        self.inner.unreadable.with_label_values(&[account.as_str(), message.as_str(), flaw.as_str()]).inc();
    }

    /// Counts a look-up whose answer has a state that the provider's description does not know.
    pub fn unknown_state(&self, account: &AccountName) {
        let labels = [account.as_str(), MessageKind::Lookup.as_str(), "unknown_state"];
        self.inner.unreadable.with_label_values(&labels).inc();
    }

    /// Counts a call made by a request that no operation matches.
    pub fn unfenced(&self, account: &AccountName) {
        self.inner.unfenced.with_label_values(&[account.as_str()]).inc();
    }

    /// Sets the number of open calls whose state could not be read for long.
    pub fn unread_calls(&self, account: &AccountName, calls: usize) {
        self.inner.unread_calls.with_label_values(&[account.as_str()]).set(i64::try_from(calls).unwrap_or(i64::MAX));
    }

    /// Sets the number of webhooks in the journal.
    pub fn journaled(&self, waiting: u64) {
        self.inner.journaled.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }

    /// Counts an attempt to deliver a webhook to the app.
    pub fn delivery(&self, result: Delivered) {
        self.inner.deliveries.with_label_values(&[result.as_str()]).inc();
    }

    /// Counts a post-call record by its source, or as given up.
    pub fn record(&self, account: &AccountName, source: RecordSource) {
        self.inner.records.with_label_values(&[account.as_str(), source.as_str()]).inc();
    }

    /// Sets how many of the latest calls in a row lacked a watched webhook, and when it last came.
    pub fn hook(&self, account: &AccountName, webhook: &str, missed: u32, last_secs: Option<i64>) {
        let labels = [account.as_str(), webhook];
        self.inner.hook_missed.with_label_values(&labels).set(missed.into());
        if let Some(secs) = last_secs {
            self.inner.hook_last.with_label_values(&labels).set(secs);
        }
    }

    /// Removes a watched webhook whose account is no longer in the config.
    pub fn hook_gone(&self, account: &AccountName, webhook: &str) {
        for gauge in [&self.inner.hook_missed, &self.inner.hook_last] {
            // Fails for a series that does not exist.
            let _ = gauge.remove_label_values(&[account.as_str(), webhook]);
        }
    }

    /// Counts a poll of an account for its live calls.
    pub fn sweep(&self, account: &AccountName, result: SweepResult) {
        self.inner.sweeps.with_label_values(&[account.as_str(), result.as_str()]).inc();
    }

    /// Counts an id that two calls claimed.
    pub fn alias_conflict(&self) {
        self.inner.alias_conflicts.inc();
    }

    /// Counts a create whose destination is blocked.
    pub fn destination_rejected(&self, rule: &str) {
        self.inner.destinations_rejected.with_label_values(&[rule]).inc();
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
    pub fn run_call(&self, outcome: Outcome) {
        self.inner.run_calls.with_label_values(&[outcome.as_str()]).inc();
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
    pub fn schedule_firing(&self, result: Firing) {
        self.inner.schedule_firings.with_label_values(&[result.as_str()]).inc();
    }

    /// Sets the number of schedules whose firing is being retried.
    pub fn schedules_failing(&self, schedules: u64) {
        self.inner.schedules_failing.set(i64::try_from(schedules).unwrap_or(i64::MAX));
    }

    /// Counts a reload of a changed certificate.
    pub fn certificate_reload(&self, result: CertificateReload) {
        self.inner.certificate_reloads.with_label_values(&[result.as_str()]).inc();
    }

    /// Sets the expiry of a certificate, in seconds since 1970.
    pub fn certificate_expires(&self, certificate: &str, at_secs: i64) {
        self.inner.certificate_expiry.with_label_values(&[certificate]).set(at_secs);
    }

    /// Removes the series of an account that is no longer in the config.
    pub fn provider_gone(&self, account: &AccountName) {
        let _ = self.inner.unread_calls.remove_label_values(&[account.as_str()]);
        for result in SweepResult::ALL {
            let _ = self.inner.sweeps.remove_label_values(&[account.as_str(), result.as_str()]);
        }
    }

    /// Counts a reload of the config.
    pub fn config_reload(&self, outcome: ReloadOutcome) {
        self.inner.config_reloads.with_label_values(&[outcome.as_str()]).inc();
        self.inner.config_reload_ok.set(outcome.is_ok().into());
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
    pub fn gate_state(&self, epoch: i64, mode: GateMode, is_fallback: bool) {
        self.inner.gate_fallback.set(is_fallback.into());
        self.inner.gate_epoch.set(epoch);
        self.inner.gate_mode.reset();
        self.inner.gate_mode.with_label_values(&[mode.as_str()]).set(1);
    }

    /// Counts a transition of the limiter made by this replica.
    pub fn gate_moved(&self, to: GateMode) {
        self.inner.gate_moves.with_label_values(&[to.as_str()]).inc();
    }

    /// Counts a decision while Redis was away.
    pub fn degraded(&self, decided: Degraded) {
        self.inner.gate_degraded.with_label_values(&[decided.as_str()]).inc();
    }

    /// Counts leases that differed from the call records and were repaired.
    pub fn gate_repaired(&self, what: Repair, leases: usize) {
        self.inner.gate_repairs.with_label_values(&[what.as_str()]).inc_by(leases as u64);
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
