//! Every metric: name, labels, meaning. The only caller of the prometheus crate.
//!
//! The five names without a prefix are those of the systems that ringfence replaces (contract §1); their alerts keep working.

use std::cell::RefCell;
use std::sync::Arc;

use prometheus::{
    Encoder as _, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// Upper bounds of latency buckets, in seconds: from a loopback answer to a provider's slowest create.
const SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// Handles to every metric. Cloning is cheap.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
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
    requests: IntCounterVec,
    upstream_seconds: HistogramVec,
    webhooks: IntCounterVec,
    unreadable: IntCounterVec,
    unfenced: IntCounterVec,
    unread_calls: IntGaugeVec,
    journaled: IntGauge,
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
    gate_moves: IntCounterVec,
    gate_degraded: IntCounterVec,
    gate_compared: IntCounterVec,
    client_sockets: IntGauge,
    client_messages: IntCounterVec,
    client_slow_closes: IntCounter,
}

/// Two registrations of one name, or a malformed one: a mistake in this file, caught by its test.
#[derive(Debug, thiserror::Error)]
#[error("metrics: {0}")]
pub struct BadMetric(#[from] prometheus::Error);

/// What a metric is, whether it has a value yet or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricDescription {
    /// Its name.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// The names of its labels.
    pub labels: Vec<String>,
    /// What it says.
    pub help: String,
}

struct Maker<'a> {
    registry: &'a Registry,
    descriptions: RefCell<Vec<MetricDescription>>,
}

impl Maker<'_> {
    fn add<C: prometheus::core::Collector + Clone + 'static>(
        &self,
        kind: &'static str,
        made: prometheus::Result<C>,
    ) -> Result<C, BadMetric> {
        let collector = made?;
        self.registry.register(Box::new(collector.clone()))?;
        self.descriptions.borrow_mut().extend(collector.desc().into_iter().map(|of| MetricDescription {
            name: of.fq_name.clone(),
            kind,
            labels: of.variable_labels.clone(),
            help: of.help.clone(),
        }));
        Ok(collector)
    }
    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, BadMetric> {
        self.add("counter", IntCounter::new(name, help))
    }
    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, BadMetric> {
        self.add("counter", IntCounterVec::new(Opts::new(name, help), labels))
    }
    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, BadMetric> {
        self.add("gauge", IntGauge::new(name, help))
    }
    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, BadMetric> {
        self.add("gauge", IntGaugeVec::new(Opts::new(name, help), labels))
    }
    fn seconds(&self, name: &str, help: &str, labels: &[&str]) -> Result<HistogramVec, BadMetric> {
        self.add("histogram", HistogramVec::new(HistogramOpts::new(name, help).buckets(SECONDS.to_vec()), labels))
    }
}

/// What is true at the moment of a scrape.
#[derive(Debug, Clone, Default)]
pub struct Gauges {
    /// Calls that hold a slot, over-limit calls left out.
    pub active: u32,
    /// Calls that exist although they were refused or ended for us.
    pub over_limit: u32,
    /// Records that are not over.
    pub sessions: Option<u32>,
    /// Calls of businesses, summed over businesses.
    pub of_businesses: Option<u32>,
    /// Holders by the name of the limit, where it is counted per nothing.
    pub limits: Vec<(String, u32)>,
    /// Writes to the record that failed since the start.
    pub store_failures: u64,
    /// Live calls as providers said of late, by account.
    pub provider_live: Vec<(String, u32)>,
}

impl Metrics {
    /// A fresh registry with every metric in it.
    pub fn new() -> Result<Self, BadMetric> {
        let registry = Registry::new();
        let m = Maker { registry: &registry, descriptions: RefCell::default() };
        let inner = Inner {
            active_calls: m.gauge("platform_global_active_calls", "Calls that hold a slot.")?,
            rejected: m.counters(
                "concurrent_rejected_total",
                "Rejections, by reason and plan.",
                &["reason", "plan"],
            )?,
            elevenlabs_429: m.counter("elevenlabs_429_total", "Creates that ElevenLabs answered with 429.")?,
            sessions: m.gauge("active_call_sessions_count", "Open call records.")?,
            subscriptions: m.gauge("subscription_active_calls_sum", "Slots in use, summed over businesses.")?,
            admitted: m.counters(
                "ringfence_calls_admitted_total",
                "Calls admitted.",
                &["account", "direction", "plan"],
            )?,
            would_refuse: m.counters(
                "ringfence_shadow_refusals_total",
                "Calls that enforce mode would have refused; the mode was observe.",
                &["limit"],
            )?,
            ended: m.counters(
                "ringfence_calls_ended_total",
                "Calls ended, by outcome and by what proved it.",
                &["outcome", "proof"],
            )?,
            provider_limit: m.counters(
                "ringfence_provider_limit_total",
                "Creates that a provider rejected because a limit of its own was full.",
                &["account", "class"],
            )?,
            unknown: m.counters(
                "ringfence_create_outcome_unknown_total",
                "Creates whose answer was lost; their slot is held until reconciled.",
                &["account"],
            )?,
            reposts: m.counters(
                "ringfence_deduplicated_requests_total",
                "Duplicate creates that got the original's answer and were not sent again.",
                &["account"],
            )?,
            over_limit: m.gauge(
                "ringfence_over_limit_calls",
                "Over-limit calls: they exist although they were rejected or ended, and block admissions.",
            )?,
            limit_current: m.gauges("ringfence_limit_in_use", "Slots in use, of each limit that is counted per nothing.", &["limit"])?,
            requests: m.counters(
                "ringfence_requests_total",
                "Requests answered, by listener, kind and class of status.",
                &["listener", "kind", "status"],
            )?,
            upstream_seconds: m.seconds(
                "ringfence_upstream_create_duration_seconds",
                "Seconds until a provider answered a create.",
                &["account"],
            )?,
            webhooks: m.counters(
                "ringfence_webhooks_total",
                "Webhooks, by outcome.",
                &["account", "event", "outcome"],
            )?,
            unreadable: m.counters(
                "ringfence_unreadable_total",
                "Messages that could not be read, or not strictly: webhooks, creates, answers.",
                &["account", "source", "flaw"],
            )?,
            unfenced: m.counters(
                "ringfence_unmatched_creates_total",
                "Calls placed by a request that no operation of the provider's file matches.",
                &["account"],
            )?,
            unread_calls: m.gauges(
                "ringfence_unreadable_calls",
                "Open calls whose state could not be read for reconcile.unreadable_alarm_secs. Alert on 1.",
                &["account"],
            )?,
            journaled: m.gauge(
                "ringfence_webhooks_journaled",
                "Webhooks that wait in the journal until the database is back.",
            )?,
            deliveries: m.counters("ringfence_deliveries_total", "Deliveries to the app, by result.", &["result"])?,
            records: m.counters(
                "ringfence_post_call_records_total",
                "Post-call records, by source: webhook, asked (fetched), or missing.",
                &["account", "came"],
            )?,
            hook_missed: m.gauges(
                "ringfence_webhook_missed_calls",
                "Latest answered calls in a row for which a watched webhook did not come. Alert on 5.",
                &["account", "webhook"],
            )?,
            hook_last: m.gauges(
                "ringfence_webhook_last_timestamp_seconds",
                "When a watched webhook last came, within a week.",
                &["account", "webhook"],
            )?,
            sweeps: m.counters(
                "ringfence_sweeps_total",
                "Polls of an account for its live calls, by result.",
                &["account", "result"],
            )?,
            provider_live: m.gauges(
                "ringfence_provider_live_calls",
                "Live calls as the provider counts them.",
                &["account"],
            )?,
            alias_conflicts: m
                .counter("ringfence_alias_conflicts_total", "Ids that two calls claimed. Should stay 0.")?,
            callbacks_refused: m.counters(
                "ringfence_callbacks_refused_total",
                "Callback URLs of apps that were not called: rejected at the create, or given up at the delivery; private, own or unusable.",
                &["at", "reason"],
            )?,
            destinations_refused: m.counters(
                "ringfence_destinations_refused_total",
                "Creates whose destination may not be called, by rule; in observe mode those that would have been refused.",
                &["rule"],
            )?,
            do_not_call: m.gauges(
                "ringfence_do_not_call_numbers",
                "Numbers on do-not-call lists, by where they stand: file, table.",
                &["source"],
            )?,
            do_not_call_readable: m.gauge(
                "ringfence_do_not_call_readable",
                "1 while the do-not-call lists of the table are known as they are.",
            )?,
            certificate_reloads: m.counters(
                "ringfence_certificate_reloads_total",
                "Reloads of a changed certificate, by result.",
                &["result"],
            )?,
            runs_running: m.gauge("ringfence_runs_running", "Bulk runs that are running.")?,
            run_calls: m.counters(
                "ringfence_run_calls_total",
                "Calls of bulk runs that are over, as this replica saw them end.",
                &["outcome"],
            )?,
            run_dials: m.counters(
                "ringfence_run_dials_total",
                "Jobs of bulk runs that were to be dialled here: called, known (its try was made before), full (a limit was; it waits), provider_limit, not_sent, rejected, away.",
                &["result"],
            )?,
            run_breakers: m.counter("ringfence_run_breaker_trips_total", "Bulk runs paused since their calls failed.")?,
            schedule_firings: m.counters(
                "ringfence_schedule_firings_total",
                "Firings of schedules: fired (a run was made), no_leads, failed (once for each try), given_up (the next firing came first), missed (nobody was there).",
                &["result"],
            )?,
            schedules_failing: m.gauge(
                "ringfence_schedules_failing",
                "Active schedules whose firing is tried again, as their leads cannot be had; 0 where another replica leads.",
            )?,
            store_failures: m.counter(
                "ringfence_store_failed_writes_total",
                "Failed writes to the database: full disk, missing file.",
            )?,
            config_reloads: m.counters(
                "ringfence_config_reloads_total",
                "Reloads of the config: loaded, unchanged, or kept because the new one cannot be used.",
                &["result"],
            )?,
            config_reload_ok: m.gauge(
                "ringfence_config_last_reload_successful",
                "1: the config that was read last is in force. 0: it cannot be used, and an older one is.",
            )?,
            config_info: m.gauges(
                "ringfence_config_info",
                "The config in force, by the start of its hash.",
                &["hash"],
            )?,
            policy_info: m.gauges(
                "ringfence_policy_info",
                "The limits in force as they were written, by the start of their hash.",
                &["hash"],
            )?,
            policies_differ: m.gauge(
                "ringfence_policies_differ",
                "1: replicas run different policies; of each limit the lower number holds.",
            )?,
            bypass_active: m.gauge(
                "ringfence_bypass_active",
                "1: limits refuse nothing, because an operator said so for a while. Alert on 1.",
            )?,
            bypassed: m.counters(
                "ringfence_bypassed_total",
                "Creates and inbound calls that were let through only because of the bypass, by limit or code.",
                &["limit"],
            )?,
            gate_epoch: m.gauge("ringfence_gate_epoch", "Fencing number of the limiter's state; each transition adds one.")?,
            gate_mode: m.gauges("ringfence_gate_mode", "1 for the back end that decides: memory, redis or database.", &["mode"])?,
            gate_moves: m.counters(
                "ringfence_gate_transitions_total",
                "Transitions of the limiter that this replica made, by target.",
                &["mode"],
            )?,
            gate_degraded: m.counters(
                "ringfence_gate_degraded_total",
                "Decisions while Redis was away: by the database, open without a check, or closed.",
                &["decided"],
            )?,
            gate_compared: m.counters(
                "ringfence_gate_repairs_total",
                "Leases that differed from the call records and were repaired: ended, orphan, uncounted.",
                &["what"],
            )?,
            client_sockets: m.gauge("ringfence_client_sockets", "Open WebSockets of listen.client.")?,
            client_messages: m.counters(
                "ringfence_client_messages_total",
                "Messages sent on WebSockets of listen.client, by type.",
                &["type"],
            )?,
            client_slow_closes: m.counter(
                "ringfence_slow_client_disconnects_total",
                "WebSockets that were closed because their client read nothing for too long.",
            )?,
            descriptions: m.descriptions.take(),
            registry: registry.clone(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What there is, in the order of its registration.
    pub fn descriptions(&self) -> &[MetricDescription] {
        &self.inner.descriptions
    }

    /// An order came again, and was not dialled again.
    pub fn repost(&self, account: &str) {
        self.inner.reposts.with_label_values(&[account]).inc();
    }

    /// A call was refused. `reason` is the contract's label, not the code of the answer.
    pub fn refused(&self, reason: &str, plan: &str) {
        self.inner.rejected.with_label_values(&[reason, plan]).inc();
    }

    /// Refusals so far by (reason, plan).
    pub fn refusals(&self) -> Vec<(String, String, u64)> {
        let mut all = Vec::new();
        for family in prometheus::core::Collector::collect(&self.inner.rejected) {
            for metric in family.get_metric() {
                let label = |name: &str| {
                    metric.get_label().iter().find(|l| l.name() == name).map_or("", |l| l.value()).to_owned()
                };
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an integer counter")]
                all.push((label("reason"), label("plan"), metric.get_counter().get_value() as u64));
            }
        }
        all
    }

    /// Creates that ElevenLabs answered with 429.
    pub fn elevenlabs_429_count(&self) -> u64 {
        self.inner.elevenlabs_429.get()
    }

    /// A call was admitted.
    pub fn admitted(&self, account: &str, direction: &str, plan: &str) {
        self.inner.admitted.with_label_values(&[account, direction, plan]).inc();
    }

    /// A call would have been refused.
    pub fn would_refuse(&self, limit: &str) {
        self.inner.would_refuse.with_label_values(&[limit]).inc();
    }

    /// A call ended.
    pub fn ended(&self, outcome: &str, proof: &str) {
        self.inner.ended.with_label_values(&[outcome, proof]).inc();
    }

    /// A provider said that a limit of its own is full.
    pub fn provider_limit(&self, provider: &str, account: &str, class: &str) {
        if provider == "elevenlabs" {
            self.inner.elevenlabs_429.inc();
        }
        self.inner.provider_limit.with_label_values(&[account, class]).inc();
    }

    /// A create's answer was lost.
    pub fn outcome_unknown(&self, account: &str) {
        self.inner.unknown.with_label_values(&[account]).inc();
    }

    /// An address that an app chose is not called.
    pub fn callback_refused(&self, at: &str, reason: &str) {
        self.inner.callbacks_refused.with_label_values(&[at, reason]).inc();
    }

    /// A request was answered.
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

    /// A provider answered a create.
    pub fn upstream_seconds(&self, account: &str, seconds: f64) {
        self.inner.upstream_seconds.with_label_values(&[account]).observe(seconds);
    }

    /// A webhook came.
    pub fn webhook(&self, account: &str, event: &str, outcome: &str) {
        self.inner.webhooks.with_label_values(&[account, event, outcome]).inc();
    }

    /// A message that is not read as its sender may have meant it: what it was, and why.
    pub fn unreadable(&self, account: &str, source: &str, flaw: &str) {
        self.inner.unreadable.with_label_values(&[account, source, flaw]).inc();
    }

    /// A request that no operation knows has made a call.
    pub fn unfenced(&self, account: &str) {
        self.inner.unfenced.with_label_values(&[account]).inc();
    }

    /// Open calls of whose state nothing could be read for long.
    pub fn unread_calls(&self, account: &str, calls: usize) {
        self.inner.unread_calls.with_label_values(&[account]).set(i64::try_from(calls).unwrap_or(i64::MAX));
    }

    /// So many webhooks wait in the journal.
    pub fn journaled(&self, waiting: u64) {
        self.inner.journaled.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }

    /// The app was told, or not.
    pub fn delivery(&self, result: &str) {
        self.inner.deliveries.with_label_values(&[result]).inc();
    }

    /// A post-call record came, or never will.
    pub fn record(&self, account: &str, came: &str) {
        self.inner.records.with_label_values(&[account, came]).inc();
    }

    /// How a watched webhook comes: for how many of the latest calls in a row it did not, and when it did last.
    pub fn hook(&self, account: &str, webhook: &str, missed: u32, last_secs: Option<i64>) {
        let labels = [account, webhook];
        self.inner.hook_missed.with_label_values(&labels).set(missed.into());
        if let Some(secs) = last_secs {
            self.inner.hook_last.with_label_values(&labels).set(secs);
        }
    }

    /// A watched webhook's account is no longer in the config.
    pub fn hook_gone(&self, account: &str, webhook: &str) {
        for gauge in [&self.inner.hook_missed, &self.inner.hook_last] {
            // One that was never shown cannot be taken away.
            let _ = gauge.remove_label_values(&[account, webhook]);
        }
    }

    /// An account was asked for its live calls.
    pub fn sweep(&self, account: &str, result: &str) {
        self.inner.sweeps.with_label_values(&[account, result]).inc();
    }

    /// Two calls laid claim to one id.
    pub fn alias_conflict(&self) {
        self.inner.alias_conflicts.inc();
    }

    /// The destination of a create may not be called.
    pub fn destination_refused(&self, rule: &str) {
        self.inner.destinations_refused.with_label_values(&[rule]).inc();
    }

    /// How many numbers stand on do-not-call lists: in the file, and in the table. `None`: the table cannot be read.
    pub fn do_not_call(&self, in_file: Option<u64>, in_table: u64) {
        let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.inner.do_not_call_readable.set(in_file.is_some().into());
        if let Some(in_file) = in_file {
            self.inner.do_not_call.with_label_values(&["file"]).set(count(in_file));
        }
        self.inner.do_not_call.with_label_values(&["table"]).set(count(in_table));
    }

    /// Bulk runs that are running.
    pub fn runs_running(&self, runs: usize) {
        self.inner.runs_running.set(i64::try_from(runs).unwrap_or(i64::MAX));
    }

    /// A call of a bulk run is over.
    pub fn run_call(&self, outcome: &str) {
        self.inner.run_calls.with_label_values(&[outcome]).inc();
    }

    /// A job of a bulk run was to be dialled.
    pub fn run_dial(&self, result: &str) {
        self.inner.run_dials.with_label_values(&[result]).inc();
    }

    /// A bulk run was paused for its failures.
    pub fn run_breaker(&self) {
        self.inner.run_breakers.inc();
    }

    /// A firing of a schedule was made, or was not.
    pub fn schedule_firing(&self, result: &str) {
        self.inner.schedule_firings.with_label_values(&[result]).inc();
    }

    /// Schedules whose firing is tried again.
    pub fn schedules_failing(&self, schedules: u64) {
        self.inner.schedules_failing.set(i64::try_from(schedules).unwrap_or(i64::MAX));
    }

    /// A changed certificate was read, or could not be.
    pub fn certificate_reload(&self, result: &str) {
        self.inner.certificate_reloads.with_label_values(&[result]).inc();
    }

    /// An account was taken out.
    pub fn provider_gone(&self, account: &str) {
        let _ = self.inner.unread_calls.remove_label_values(&[account]);
    }

    /// The config was read again.
    pub fn config_reload(&self, result: &str, ok: bool) {
        self.inner.config_reloads.with_label_values(&[result]).inc();
        self.inner.config_reload_ok.set(ok.into());
    }

    /// Another config, or another policy made of it, is in force.
    pub fn config_in_force(&self, hash: Option<&str>, policy: &str, is_first: bool) {
        if is_first {
            // The config of the start is one that can be used.
            self.inner.config_reload_ok.set(1);
        }
        self.inner.config_info.reset();
        self.inner.config_info.with_label_values(&[hash.unwrap_or_default()]).set(1);
        self.inner.policy_info.reset();
        self.inner.policy_info.with_label_values(&[policy]).set(1);
    }

    /// Whether replicas run on different policies.
    pub fn policies_differ(&self, differ: bool) {
        self.inner.policies_differ.set(differ.into());
    }

    /// Whether limits are bypassed.
    pub fn bypass_active(&self, active: bool) {
        self.inner.bypass_active.set(active.into());
    }

    /// A create or an inbound call was let through because of the bypass.
    pub fn bypassed(&self, limit: &str) {
        self.inner.bypassed.with_label_values(&[limit]).inc();
    }

    /// Where the gate is.
    pub fn gate_state(&self, epoch: i64, mode: &str) {
        self.inner.gate_epoch.set(epoch);
        self.inner.gate_mode.reset();
        self.inner.gate_mode.with_label_values(&[mode]).set(1);
    }

    /// This replica moved the gate.
    pub fn gate_moved(&self, to: &str) {
        self.inner.gate_moves.with_label_values(&[to]).inc();
    }

    /// A decision while Redis was away.
    pub fn degraded(&self, decided: &str) {
        self.inner.gate_degraded.with_label_values(&[decided]).inc();
    }

    /// A comparison found differences.
    pub fn gate_compared(&self, ended: usize, orphans: usize, uncounted: usize) {
        for (what, n) in [("ended", ended), ("orphan", orphans), ("uncounted", uncounted)] {
            self.inner.gate_compared.with_label_values(&[what]).inc_by(n as u64);
        }
    }

    /// WebSockets were opened, or closed.
    pub fn client_sockets(&self, more: i64) {
        self.inner.client_sockets.add(more);
    }

    /// Messages of a type were sent on a WebSocket.
    pub fn client_messages(&self, kind: &str, count: u64) {
        self.inner.client_messages.with_label_values(&[kind]).inc_by(count);
    }

    /// A WebSocket was closed since its client was too slow.
    pub fn client_slow_close(&self) {
        self.inner.client_slow_closes.inc();
    }

    /// The text exposition (Prometheus format 0.0.4).
    pub fn render(&self, gauges: &Gauges) -> String {
        let m = &self.inner;
        m.active_calls.set(gauges.active.into());
        m.over_limit.set(gauges.over_limit.into());
        // What cannot be read is what was read last.
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
        m.provider_live.reset();
        for (account, live) in &gauges.provider_live {
            m.provider_live.with_label_values(&[account.as_str()]).set((*live).into());
        }
        let mut out = Vec::new();
        // Writing into memory fails for no registered metric.
        let _ = TextEncoder::new().encode(&m.registry.gather(), &mut out);
        String::from_utf8(out).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_the_contract_are_there_exactly() {
        let metrics = Metrics::new().unwrap();
        metrics.refused("BUSINESS_LIMIT", "PAYG");
        metrics.provider_limit("elevenlabs", "main", "concurrency");
        let gauges = Gauges { active: 3, sessions: Some(4), of_businesses: Some(3), ..Gauges::default() };
        let text = metrics.render(&gauges);
        for line in [
            "platform_global_active_calls 3",
            "concurrent_rejected_total{plan=\"PAYG\",reason=\"BUSINESS_LIMIT\"} 1",
            "elevenlabs_429_total 1",
            "active_call_sessions_count 4",
            "subscription_active_calls_sum 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\nnot in\n{text}");
        }
        assert_eq!(metrics.refusals(), [("BUSINESS_LIMIT".to_owned(), "PAYG".to_owned(), 1)]);
    }
}
