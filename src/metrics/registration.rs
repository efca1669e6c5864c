//! Registration: the name, the labels and the help text of every metric.

use std::cell::RefCell;
use std::sync::{Arc, Mutex};

use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::busiest::Busiest;
use super::by_business::BusinessMetrics;
use super::exemplars::TracedHistogram;
use super::requests::RequestCounters;
use super::{
    BUSINESS_LABELS, CallMetrics, CheckMetrics, ClientMetrics, ConfigMetrics, GateMetrics, Inner, Metrics, RunMetrics,
    WebhookMetrics,
};

/// Histogram buckets of provider latency, in seconds.
const PROVIDER_SECONDS: [f64; 18] =
    [0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0];
/// Histogram buckets of ringfence's own latency, in seconds: from a decision in memory to a database that hangs.
const OWN_SECONDS: [f64; 15] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// A malformed metric, or two of one name: a mistake in this file, caught by its test.
#[derive(Debug, thiserror::Error)]
#[error("metrics: {0}")]
pub struct MetricError(#[from] prometheus::Error);

/// The description of a metric, whether it has a value yet or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricDescription {
    /// The name.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// The label names.
    pub labels: Vec<String>,
    /// The help text.
    pub help: String,
}

/// Registers metrics and keeps their descriptions.
struct Registrar<'a> {
    registry: &'a Registry,
    descriptions: RefCell<Vec<MetricDescription>>,
}

impl Registrar<'_> {
    fn add<C: prometheus::core::Collector + Clone + 'static>(
        &self,
        kind: &'static str,
        made: prometheus::Result<C>,
    ) -> Result<C, MetricError> {
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
    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, MetricError> {
        self.add("counter", IntCounter::new(name, help))
    }
    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, MetricError> {
        self.add("counter", IntCounterVec::new(Opts::new(name, help), labels))
    }
    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, MetricError> {
        self.add("gauge", IntGauge::new(name, help))
    }
    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, MetricError> {
        self.add("gauge", IntGaugeVec::new(Opts::new(name, help), labels))
    }
    fn traced_seconds(
        &self,
        name: &'static str,
        help: &str,
        label: &str,
        bounds: &'static [f64],
    ) -> Result<TracedHistogram, MetricError> {
        let options = HistogramOpts::new(name, help).buckets(bounds.to_vec());
        Ok(TracedHistogram::new(name, self.add("histogram", HistogramVec::new(options, &[label]))?, bounds))
    }
}

impl Metrics {
    /// A fresh registry with every metric in it.
    pub fn new() -> Result<Self, MetricError> {
        let registry = Registry::new();
        let m = Registrar { registry: &registry, descriptions: RefCell::default() };
        let inner = Inner {
            rendering: Mutex::default(),
            calls: CallMetrics::register(&m)?,
            of_business: BusinessMetrics::register(&m)?,
            hooks: WebhookMetrics::register(&m)?,
            checks: CheckMetrics::register(&m)?,
            runs: RunMetrics::register(&m)?,
            config: ConfigMetrics::register(&m)?,
            gate: GateMetrics::register(&m)?,
            clients: ClientMetrics::register(&m)?,
            descriptions: m.descriptions.take(),
            registry: registry.clone(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }
}

impl CallMetrics {
    fn register(m: &Registrar<'_>) -> Result<Self, MetricError> {
        Ok(Self {
            active_calls: m.gauge("platform_global_active_calls", "Calls that hold a slot.")?,
            rejected: m.counters(
                "concurrent_rejected_total",
                "Rejections, by reason and plan.",
                &["reason", "plan"],
            )?,
            provider_429: m.counter("elevenlabs_429_total", "Creates that ElevenLabs answered with 429.")?,
            sessions: m.gauge("active_call_sessions_count", "Open call records.")?,
            subscriptions: m.gauge("subscription_active_calls_sum", "Slots in use, summed over businesses.")?,
            admitted: m.counters(
                "ringfence_calls_admitted_total",
                "Calls admitted.",
                &["account", "direction", "plan"],
            )?,
            would_reject: m.counters(
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
            limit_current: m.gauges("ringfence_limit_in_use", "Slots in use of each limit with a single count.", &["limit"])?,
            limit_max: m.gauges(
                "ringfence_limit_max",
                "Bound of each limit with a single count, by this replica's config.",
                &["limit"],
            )?,
            requests: RequestCounters::new(m.counters(
                "ringfence_requests_total",
                "Requests answered, by listener, kind and class of status.",
                &["listener", "kind", "status"],
            )?),
            upstream_seconds: m.traced_seconds(
                "ringfence_upstream_create_duration_seconds",
                "Seconds until a provider answered a create.",
                "account",
                &PROVIDER_SECONDS,
            )?,
            added_seconds: m.traced_seconds(
                "ringfence_create_added_duration_seconds",
                "Seconds that ringfence itself adds to a create: before it is sent and after its answer (sent), or until a limit rejects it (rejected).",
                "outcome",
                &OWN_SECONDS,
            )?,
        })
    }
}

impl BusinessMetrics {
    fn register(m: &Registrar<'_>) -> Result<Self, MetricError> {
        Ok(Self {
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
            })
    }
}

impl WebhookMetrics {
    fn register(m: &Registrar<'_>) -> Result<Self, MetricError> {
        Ok(Self {
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
                &["account", "source"],
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
        })
    }
}

impl CheckMetrics {
    fn register(m: &Registrar<'_>) -> Result<Self, MetricError> {
        Ok(Self {
            callbacks_rejected: m.counters(
                "ringfence_callbacks_refused_total",
                "Callback URLs of apps that were not called: rejected at the create, or given up at the delivery; private, own or unusable.",
                &["at", "reason"],
            )?,
            destinations_rejected: m.counters(
                "ringfence_destinations_refused_total",
                "Creates with a blocked destination, by rule; in observe mode those that would have been rejected.",
                &["rule"],
            )?,
            do_not_call: m.gauges(
                "ringfence_do_not_call_numbers",
                "Numbers on do-not-call lists, by source: file, table.",
                &["source"],
            )?,
            do_not_call_readable: m.gauge(
                "ringfence_do_not_call_readable",
                "1 while the do-not-call lists of the table are current.",
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
        })
    }
}

impl RunMetrics {
    fn register(m: &Registrar<'_>) -> Result<Self, MetricError> {
        Ok(Self {
            runs_running: m.gauge("ringfence_runs_running", "Bulk runs that are running.")?,
            run_calls: m.counters(
                "ringfence_run_calls_total",
                "Ended calls of bulk runs, each at the replica that settled its lead.",
                &["outcome"],
            )?,
            run_dials: m.counters(
                "ringfence_run_dials_total",
                "Attempts of this replica to dial jobs of bulk runs: called, known (the attempt was made before), full (a limit is; the job waits), provider_limit, not_sent, rejected, away, held (no lead of the run can be called at present).",
                &["result"],
            )?,
            run_breakers: m.counter("ringfence_run_breaker_trips_total", "Bulk runs paused because their calls failed.")?,
            schedule_firings: m.counters(
                "ringfence_schedule_firings_total",
                "Firings of schedules: fired (a run was created), no_leads, failed (each attempt), given_up (superseded by the next firing), missed (no process was running).",
                &["result"],
            )?,
            schedules_failing: m.gauge(
                "ringfence_schedules_failing",
                "Active schedules whose firing is being retried because their leads are unavailable; 0 on replicas that do not lead.",
            )?,
        })
    }
}

impl ConfigMetrics {
    fn register(m: &Registrar<'_>) -> Result<Self, MetricError> {
        Ok(Self {
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
                "1: the config read last is in force. 0: it was rejected, and an older one is.",
            )?,
            config_info: m.gauges(
                "ringfence_config_info",
                "The config in force, by the start of its hash.",
                &["hash"],
            )?,
            policy_info: m.gauges(
                "ringfence_policy_info",
                "The limits in force, by the start of their hash.",
                &["hash"],
            )?,
            policies_differ: m.gauge(
                "ringfence_policies_differ",
                "1: replicas run different policies; the lower number of each limit applies.",
            )?,
        })
    }
}

impl GateMetrics {
    fn register(m: &Registrar<'_>) -> Result<Self, MetricError> {
        Ok(Self {
            bypass_active: m.gauge(
                "ringfence_bypass_active",
                "1: limits reject nothing, because of an operator's temporary bypass. Alert on 1.",
            )?,
            bypassed: m.counters(
                "ringfence_bypassed_total",
                "Creates and inbound calls that were let through only because of the bypass, by limit or code.",
                &["limit"],
            )?,
            gate_epoch: m
                .gauge("ringfence_gate_epoch", "Fencing number of the limiter's state; each transition adds one.")?,
            gate_mode: m.gauges(
                "ringfence_gate_mode",
                "1 for the back end that decides: memory, redis or database.",
                &["mode"],
            )?,
            gate_fallback: m
                .gauge("ringfence_gate_fallback_active", "1 while another back end than gate.backend decides.")?,
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
            gate_repairs: m.counters(
                "ringfence_gate_repairs_total",
                "Leases that differed from the call records and were repaired: ended, orphan, uncounted.",
                &["what"],
            )?,
        })
    }
}

impl ClientMetrics {
    fn register(m: &Registrar<'_>) -> Result<Self, MetricError> {
        Ok(Self {
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
        })
    }
}
