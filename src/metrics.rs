//! Every metric: name, labels, meaning. The only caller of the prometheus crate.
//!
//! The five names without a prefix are those of the systems that ringfence replaces (contract §1); their alerts keep working.

mod busiest;
mod by_business;

use std::cell::RefCell;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus::{
    Encoder as _, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use busiest::Busiest;
use by_business::BusinessMetrics;

/// Upper bounds of buckets, in seconds, of how long providers take: from one near by to the slowest create.
const PROVIDER_SECONDS: [f64; 18] =
    [0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0];
/// The same of what ringfence takes itself: from a decision in memory to a database that hangs.
const OWN_SECONDS: [f64; 15] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// Businesses that have a label of their own, unless the config says otherwise.
pub const BUSINESS_LABELS: u32 = 20;

/// The rejections of creates whose business is not known, and of inbound calls, by `plan`.
const PLANS_OF_NO_BUSINESS: [&str; 2] = ["unknown", "inbound"];
/// What comes of asking an account for its live calls.
const SWEEP_RESULTS: [&str; 2] = ["ok", "failed"];

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
    limit_max: IntGaugeVec,
    requests: IntCounterVec,
    upstream_seconds: HistogramVec,
    added_seconds: HistogramVec,
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

/// What may be counted, so that every counter is there, at 0, before its first event: what is counted from the first on is a rise,
/// and one that appears with it is none.
#[derive(Debug, Clone, Default)]
pub struct Counted<'a> {
    /// Every account.
    pub accounts: Vec<&'a str>,
    /// Those of them that are asked for their live calls.
    pub asked: Vec<&'a str>,
    /// Every plan.
    pub plans: Vec<&'a str>,
    /// Every reason of rejections.
    pub reasons: Vec<&'a str>,
    /// Businesses that have a label of their own, at most.
    pub business_labels: u32,
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
    fn seconds(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> Result<HistogramVec, BadMetric> {
        self.add("histogram", HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
    }
}

/// What is true at the moment of a scrape.
#[derive(Debug, Clone, Default)]
pub struct Gauges {
    /// The moment, in milliseconds since 1970.
    pub now_ms: i64,
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
    /// How many these limits allow.
    pub limits_max: Vec<(String, u32)>,
    /// Slots in use by business.
    pub businesses: Option<Vec<(String, u32)>>,
    /// Webhooks that are parked. `None`: the record cannot be read.
    pub parked: Option<u64>,
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
            limit_max: m.gauges(
                "ringfence_limit_max",
                "Slots that each limit allows that is counted per nothing, by this replica's config.",
                &["limit"],
            )?,
            requests: m.counters(
                "ringfence_requests_total",
                "Requests answered, by listener, kind and class of status.",
                &["listener", "kind", "status"],
            )?,
            upstream_seconds: m.seconds(
                "ringfence_upstream_create_duration_seconds",
                "Seconds until a provider answered a create.",
                &["account"],
                &PROVIDER_SECONDS,
            )?,
            added_seconds: m.seconds(
                "ringfence_create_added_duration_seconds",
                "Seconds that ringfence itself adds to a create: before it is sent and after its answer (sent), or until a limit rejects it (rejected).",
                &["outcome"],
                &OWN_SECONDS,
            )?,
            of_business: BusinessMetrics {
                busiest: Mutex::new(Busiest::new(BUSINESS_LABELS as usize)),
                admitted: m.counters(
                    "ringfence_business_admitted_total",
                    "Calls admitted, of the busiest businesses (admin.metrics_businesses); all others together are `other`.",
                    &["business"],
                )?,
                rejected: m.counters(
                    "ringfence_business_rejected_total",
                    "Rejections, of the busiest businesses; all others together are `other`.",
                    &["business"],
                )?,
                in_use: m.gauges(
                    "ringfence_business_in_use",
                    "Slots in use, of the businesses with most of them; all others together are `other`.",
                    &["business"],
                )?,
            },
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
            parked: m.gauge(
                "ringfence_webhooks_parked",
                "Webhooks that could not be applied and wait for an operator: ringfence events list --state parked.",
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
            certificate_expiry: m.gauges(
                "ringfence_certificate_expiry_timestamp_seconds",
                "When the certificate in use expires: of the listeners (server), and of the authority of their clients (client_ca).",
                &["certificate"],
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
            gate_fallback: m.gauge(
                "ringfence_gate_fallback_active",
                "1 while another back end decides than gate.backend names.",
            )?,
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

    /// Puts every counter there before its first event.
    pub fn expect(&self, may: &Counted<'_>) {
        let m = &self.inner;
        let zero = |counter: &IntCounterVec, labels: &[&str]| drop(counter.with_label_values(labels));
        for &account in &may.accounts {
            for counter in [&m.reposts, &m.unknown, &m.unfenced] {
                zero(counter, &[account]);
            }
            m.upstream_seconds.with_label_values(&[account]);
            ["concurrency", "rate", "busy"].iter().for_each(|class| zero(&m.provider_limit, &[account, class]));
            ["webhook", "asked", "missing"].iter().for_each(|came| zero(&m.records, &[account, came]));
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
        ["sent", "rejected"].iter().for_each(|outcome| drop(m.added_seconds.with_label_values(&[outcome])));
        m.of_business.expect(may.business_labels as usize);
    }

    /// A call was refused. `reason` is the contract's label, not the code of the answer.
    pub fn refused(&self, reason: &str, plan: &str, business: &str) {
        self.inner.rejected.with_label_values(&[reason, plan]).inc();
        self.inner.of_business.rejected(business);
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

    /// A call was admitted.
    pub fn admitted(&self, account: &str, direction: &str, plan: &str, business: &str) {
        self.inner.admitted.with_label_values(&[account, direction, plan]).inc();
        self.inner.of_business.admitted(business);
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

    /// A create was sent, and took so long here beside what its provider took.
    pub fn added_to_sent(&self, own: Duration) {
        self.inner.added_seconds.with_label_values(&["sent"]).observe(own.as_secs_f64());
    }

    /// A create was rejected by a limit after so long.
    pub fn added_to_rejected(&self, own: Duration) {
        self.inner.added_seconds.with_label_values(&["rejected"]).observe(own.as_secs_f64());
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

    /// When a certificate in use expires, in seconds since 1970.
    pub fn certificate_expires(&self, certificate: &str, at_secs: i64) {
        self.inner.certificate_expiry.with_label_values(&[certificate]).set(at_secs);
    }

    /// An account was taken out: nobody is to wait for what it does next.
    pub fn provider_gone(&self, account: &str) {
        let _ = self.inner.unread_calls.remove_label_values(&[account]);
        for result in SWEEP_RESULTS {
            let _ = self.inner.sweeps.remove_label_values(&[account, result]);
        }
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

    /// Where the gate is, and whether that is not where the config has it.
    pub fn gate_state(&self, epoch: i64, mode: &str, is_fallback: bool) {
        self.inner.gate_fallback.set(is_fallback.into());
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
        let mut out = Vec::new();
        // Writing into memory fails for no registered metric.
        let _ = TextEncoder::new().encode(&m.registry.gather(), &mut out);
        String::from_utf8(out).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
