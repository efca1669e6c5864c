//! All metrics: name, labels, meaning. The only caller of the prometheus crate.
//!
//! The five unprefixed names are those of the systems that ringfence replaces, so that their alerts keep working.

mod busiest;
mod by_business;
mod exemplars;
mod expected;
mod labels;
mod open_metrics;
mod registration;
mod render;
mod requests;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use crate::call::{EndProof, Outcome};
use crate::destinations::BlockRule;
use crate::ids::AccountName;
use crate::policy::CallAttributes;
use crate::policy::decision::GateMode;
use crate::provider::account::Account;
use crate::provider::description::LimitClass;
use crate::provider::select::Flaw;
use crate::words::NamedEnum;
use by_business::BusinessMetrics;
pub use exemplars::Exemplar;
use exemplars::TracedHistogram;
pub use expected::ExpectedLabels;
use labels::COUNTED_429;
pub use labels::*;
pub use registration::{MetricDescription, MetricError};
pub use render::{Format, GLOBAL_GAUGES, Gauges};
use requests::RequestCounters;

/// Businesses with a label of their own, unless the config sets another number.
pub const BUSINESS_LABELS: u32 = 20;

/// The value of `plan` on rejections of creates of unknown businesses.
pub const PLAN_UNKNOWN: &str = "unknown";
/// The value of `plan` on rejections of inbound calls.
pub const PLAN_INBOUND: &str = "inbound";
/// The value of `event` of webhooks whose sender is unknown.
const UNVERIFIED: &str = "unverified";

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
    calls: CallMetrics,
    of_business: BusinessMetrics,
    hooks: WebhookMetrics,
    checks: CheckMetrics,
    runs: RunMetrics,
    config: ConfigMetrics,
    gate: GateMetrics,
    clients: ClientMetrics,
}

/// Calls and creates, and the requests of all listeners.
struct CallMetrics {
    active_calls: IntGauge,
    rejected: IntCounterVec,
    provider_429: IntCounter,
    sessions: IntGauge,
    subscriptions: IntGauge,
    admitted: IntCounterVec,
    would_reject: IntCounterVec,
    ended: IntCounterVec,
    provider_limit: IntCounterVec,
    unknown: IntCounterVec,
    reposts: IntCounterVec,
    over_limit: IntGauge,
    limit_current: IntGaugeVec,
    limit_max: IntGaugeVec,
    requests: RequestCounters,
    upstream_seconds: TracedHistogram,
    added_seconds: TracedHistogram,
}

/// Webhooks, deliveries, post-call records, and the polls that make up for lost webhooks.
struct WebhookMetrics {
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
}

/// Checks of URLs, numbers and certificates.
struct CheckMetrics {
    callbacks_rejected: IntCounterVec,
    destinations_rejected: IntCounterVec,
    do_not_call: IntGaugeVec,
    do_not_call_readable: IntGauge,
    certificate_reloads: IntCounterVec,
    certificate_expiry: IntGaugeVec,
}

/// Bulk runs and their schedules.
struct RunMetrics {
    runs_running: IntGauge,
    run_calls: IntCounterVec,
    run_dials: IntCounterVec,
    run_breakers: IntCounter,
    schedule_firings: IntCounterVec,
    schedules_failing: IntGauge,
}

/// The database, the config and the policy in force.
struct ConfigMetrics {
    store_failures: IntCounter,
    config_reloads: IntCounterVec,
    config_reload_ok: IntGauge,
    config_info: IntGaugeVec,
    policy_info: IntGaugeVec,
    policies_differ: IntGauge,
}

/// The limiter and its bypass.
struct GateMetrics {
    bypass_active: IntGauge,
    bypassed: IntCounterVec,
    gate_epoch: IntGauge,
    gate_mode: IntGaugeVec,
    gate_fallback: IntGauge,
    gate_moves: IntCounterVec,
    gate_degraded: IntCounterVec,
    gate_repairs: IntCounterVec,
}

/// Live transcripts.
struct ClientMetrics {
    client_sockets: IntGauge,
    client_messages: IntCounterVec,
    client_slow_closes: IntCounter,
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

impl Metrics {
    /// The descriptions, in the order of registration.
    pub fn descriptions(&self) -> &[MetricDescription] {
        &self.inner.descriptions
    }

    /// Counts a duplicate create that was not sent again.
    pub fn duplicate_create(&self, account: &AccountName) {
        self.inner.calls.reposts.with_label_values(&[account.as_str()]).inc();
    }

    /// Counts a rejected call.
    pub fn rejected(&self, call: RejectedCall<'_>) {
        self.inner.calls.rejected.with_label_values(&[call.reason, call.plan]).inc();
        self.inner.of_business.rejected(call.business);
    }

    /// Rejections so far by (reason, plan).
    pub fn rejections(&self) -> Vec<(String, String, u64)> {
        let mut all = Vec::new();
        for family in prometheus::core::Collector::collect(&self.inner.calls.rejected) {
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
        self.inner.calls.provider_429.get()
    }

    /// Counts an admitted call.
    pub fn admitted(&self, call: &CallAttributes) {
        let labels = [call.account.as_str(), call.direction.as_str(), &call.plan];
        self.inner.calls.admitted.with_label_values(&labels).inc();
        self.inner.of_business.admitted(call.business.as_str());
    }

    /// Counts a call that enforce mode would have rejected.
    pub fn would_reject(&self, limit: &str) {
        self.inner.calls.would_reject.with_label_values(&[limit]).inc();
    }

    /// Counts an ended call.
    pub fn ended(&self, outcome: Outcome, proof: EndProof) {
        self.inner.calls.ended.with_label_values(&[outcome.as_str(), proof.as_str()]).inc();
    }

    /// Counts a rejection by a provider whose own limit was full.
    pub fn provider_limit(&self, account: &Account, class: LimitClass) {
        if account.provider.name == COUNTED_429 {
            self.inner.calls.provider_429.inc();
        }
        self.inner.calls.provider_limit.with_label_values(&[account.name.as_str(), class.as_str()]).inc();
    }

    /// Counts a create whose answer was lost.
    pub fn outcome_unknown(&self, account: &AccountName) {
        self.inner.calls.unknown.with_label_values(&[account.as_str()]).inc();
    }

    /// Counts a callback URL of an app that was not called.
    pub fn callback_rejected(&self, at: CallbackUse, reason: impl NamedEnum) {
        self.inner.checks.callbacks_rejected.with_label_values(&[at.as_str(), reason.name()]).inc();
    }

    /// Counts an answered request.
    pub fn request(&self, served: Served, status: u16) {
        self.inner.calls.requests.of(served, status).inc();
    }

    /// Observes how long a provider took to answer a create.
    pub fn upstream_seconds(&self, account: &AccountName, took: Duration, exemplar: Option<Exemplar>) {
        self.inner.calls.upstream_seconds.observe(account.as_str(), took.as_secs_f64(), exemplar);
    }

    /// Observes ringfence's own time for a create that was sent.
    pub fn added_to_sent(&self, own: Duration, exemplar: Option<Exemplar>) {
        self.inner.calls.added_seconds.observe(CreateOutcome::Sent.as_str(), own.as_secs_f64(), exemplar);
    }

    /// Observes ringfence's own time for a create that a limit rejected.
    pub fn added_to_rejected(&self, own: Duration, exemplar: Option<Exemplar>) {
        self.inner.calls.added_seconds.observe(CreateOutcome::Rejected.as_str(), own.as_secs_f64(), exemplar);
    }

    /// Counts a received webhook; `outcome` is of the store, or [`NotApplied`].
    pub fn webhook(&self, account: &AccountName, event: &str, outcome: impl NamedEnum) {
        self.inner.hooks.webhooks.with_label_values(&[account.as_str(), event, outcome.name()]).inc();
    }

    /// Counts a webhook whose sender is unknown.
    pub fn webhook_unverified(&self, account: &AccountName, why: Unverified) {
        self.inner.hooks.webhooks.with_label_values(&[account.as_str(), UNVERIFIED, why.as_str()]).inc();
    }

    /// Counts a message that could not be read, or not strictly.
    pub fn unreadable(&self, account: &AccountName, message: MessageKind, flaw: Flaw) {
        self.inner.hooks.unreadable.with_label_values(&[account.as_str(), message.as_str(), flaw.as_str()]).inc();
    }

    /// Counts a look-up whose answer has a state that the provider's description does not know.
    pub fn unknown_state(&self, account: &AccountName) {
        let labels = [account.as_str(), MessageKind::Lookup.as_str(), "unknown_state"];
        self.inner.hooks.unreadable.with_label_values(&labels).inc();
    }

    /// Counts a call made by a request that no operation matches.
    pub fn unmatched_create(&self, account: &AccountName) {
        self.inner.hooks.unfenced.with_label_values(&[account.as_str()]).inc();
    }

    /// Sets the number of open calls whose state could not be read for long.
    pub fn unread_calls(&self, account: &AccountName, calls: usize) {
        self.inner
            .hooks
            .unread_calls
            .with_label_values(&[account.as_str()])
            .set(i64::try_from(calls).unwrap_or(i64::MAX));
    }

    /// Sets the number of webhooks in the journal.
    pub fn journaled(&self, waiting: u64) {
        self.inner.hooks.journaled.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }

    /// Counts an attempt to deliver a webhook to the app.
    pub fn delivery(&self, result: Delivered) {
        self.inner.hooks.deliveries.with_label_values(&[result.as_str()]).inc();
    }

    /// Counts a post-call record by its source, or as given up.
    pub fn record(&self, account: &AccountName, source: RecordSource) {
        self.inner.hooks.records.with_label_values(&[account.as_str(), source.as_str()]).inc();
    }

    /// Sets how many of the latest calls in a row lacked a watched webhook, and when it last came.
    pub fn watched_webhook(&self, account: &AccountName, webhook: &str, missed: u32, last_secs: Option<i64>) {
        let labels = [account.as_str(), webhook];
        self.inner.hooks.hook_missed.with_label_values(&labels).set(missed.into());
        if let Some(secs) = last_secs {
            self.inner.hooks.hook_last.with_label_values(&labels).set(secs);
        }
    }

    /// Removes a watched webhook whose account is no longer in the config.
    pub fn watched_webhook_gone(&self, account: &AccountName, webhook: &str) {
        for gauge in [&self.inner.hooks.hook_missed, &self.inner.hooks.hook_last] {
            // Fails for a series that does not exist.
            let _ = gauge.remove_label_values(&[account.as_str(), webhook]);
        }
    }

    /// Counts a poll of an account for its live calls.
    pub fn sweep(&self, account: &AccountName, result: SweepResult) {
        self.inner.hooks.sweeps.with_label_values(&[account.as_str(), result.as_str()]).inc();
    }

    /// Sets the hashes of the first config, which is usable.
    pub fn config_started(&self, hash: Option<&str>, policy: &str) {
        self.inner.config.config_reload_ok.set(1);
        self.config_in_force(hash, policy);
    }

    /// Counts an id that two calls claimed.
    pub fn alias_conflict(&self) {
        self.inner.hooks.alias_conflicts.inc();
    }

    /// Counts a create whose destination is blocked.
    pub fn destination_rejected(&self, rule: BlockRule) {
        self.inner.checks.destinations_rejected.with_label_values(&[rule.as_str()]).inc();
    }

    /// Sets the sizes of the do-not-call lists of the file and of the table.
    pub fn do_not_call(&self, in_file: u64, in_table: u64) {
        let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.inner.checks.do_not_call.with_label_values(&["file"]).set(count(in_file));
        self.inner.checks.do_not_call.with_label_values(&["table"]).set(count(in_table));
    }

    /// Sets whether the do-not-call lists of the table are current.
    pub fn do_not_call_readable(&self, readable: bool) {
        self.inner.checks.do_not_call_readable.set(readable.into());
    }

    /// Sets the number of running bulk runs.
    pub fn runs_running(&self, runs: usize) {
        self.inner.runs.runs_running.set(i64::try_from(runs).unwrap_or(i64::MAX));
    }

    /// Counts an ended call of a bulk run.
    pub fn run_call(&self, outcome: Outcome) {
        self.inner.runs.run_calls.with_label_values(&[outcome.as_str()]).inc();
    }

    /// Counts an attempt to dial a job of a bulk run.
    pub fn run_dial(&self, result: RunDial) {
        self.inner.runs.run_dials.with_label_values(&[result.as_str()]).inc();
    }

    /// Counts a bulk run that was paused because its calls failed.
    pub fn run_breaker(&self) {
        self.inner.runs.run_breakers.inc();
    }

    /// Counts a firing of a schedule, by result.
    pub fn schedule_firing(&self, result: Firing) {
        self.inner.runs.schedule_firings.with_label_values(&[result.as_str()]).inc();
    }

    /// Sets the number of schedules whose firing is being retried.
    pub fn schedules_failing(&self, schedules: u64) {
        self.inner.runs.schedules_failing.set(i64::try_from(schedules).unwrap_or(i64::MAX));
    }

    /// Counts a reload of a changed certificate.
    pub fn certificate_reload(&self, result: CertificateReload) {
        self.inner.checks.certificate_reloads.with_label_values(&[result.as_str()]).inc();
    }

    /// Sets the expiry of a certificate, in seconds since 1970.
    pub fn certificate_expires(&self, certificate: impl NamedEnum, at_secs: i64) {
        self.inner.checks.certificate_expiry.with_label_values(&[certificate.name()]).set(at_secs);
    }

    /// Removes the series of an account that is no longer in the config.
    pub fn account_gone(&self, account: &AccountName) {
        let _ = self.inner.hooks.unread_calls.remove_label_values(&[account.as_str()]);
        for result in SweepResult::ALL {
            let _ = self.inner.hooks.sweeps.remove_label_values(&[account.as_str(), result.as_str()]);
        }
    }

    /// Counts a reload of the config.
    pub fn config_reload(&self, outcome: ReloadOutcome) {
        self.inner.config.config_reloads.with_label_values(&[outcome.as_str()]).inc();
        self.inner.config.config_reload_ok.set(outcome.is_ok().into());
    }

    /// Sets the config and the policy in force.
    pub fn config_in_force(&self, hash: Option<&str>, policy: &str) {
        self.inner.config.config_info.reset();
        self.inner.config.config_info.with_label_values(&[hash.unwrap_or_default()]).set(1);
        self.inner.config.policy_info.reset();
        self.inner.config.policy_info.with_label_values(&[policy]).set(1);
    }

    /// Sets whether replicas run different policies.
    pub fn policies_differ(&self, differ: bool) {
        self.inner.config.policies_differ.set(differ.into());
    }

    /// Sets whether limits are bypassed.
    pub fn bypass_active(&self, active: bool) {
        self.inner.gate.bypass_active.set(active.into());
    }

    /// Counts a call that was let through because of the bypass.
    pub fn bypassed(&self, limit: &str) {
        self.inner.gate.bypassed.with_label_values(&[limit]).inc();
    }

    /// Sets the limiter's epoch and back end, and whether it is a fallback.
    pub fn gate_state(&self, epoch: i64, mode: GateMode, is_fallback: bool) {
        self.inner.gate.gate_fallback.set(is_fallback.into());
        self.inner.gate.gate_epoch.set(epoch);
        self.inner.gate.gate_mode.reset();
        self.inner.gate.gate_mode.with_label_values(&[mode.as_str()]).set(1);
    }

    /// Counts a transition of the limiter made by this replica.
    pub fn gate_moved(&self, to: GateMode) {
        self.inner.gate.gate_moves.with_label_values(&[to.as_str()]).inc();
    }

    /// Counts a decision while Redis was away.
    pub fn degraded(&self, decided: Degraded) {
        self.inner.gate.gate_degraded.with_label_values(&[decided.as_str()]).inc();
    }

    /// Counts leases that differed from the call records and were repaired.
    pub fn gate_repaired(&self, what: Repair, leases: usize) {
        self.inner.gate.gate_repairs.with_label_values(&[what.as_str()]).inc_by(leases as u64);
    }

    /// Adds to the number of open WebSockets.
    pub fn client_sockets(&self, more: i64) {
        self.inner.clients.client_sockets.add(more);
    }

    /// Counts messages sent on a WebSocket, by type.
    pub fn client_messages(&self, kind: ClientMessage, count: u64) {
        self.inner.clients.client_messages.with_label_values(&[kind.as_str()]).inc_by(count);
    }

    /// Counts a WebSocket that was closed because its client was too slow.
    pub fn client_slow_close(&self) {
        self.inner.clients.client_slow_closes.inc();
    }
}

#[cfg(test)]
mod tests;
