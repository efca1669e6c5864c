//! The running generation of the configuration, and its replacement: as a whole, or not at all.
//!
//! A request uses the current [`Generation`] to its end, so it never sees a partial reload. Only the limits are always the
//! newest: a call that is decided after a swap is decided by the new limits, whichever generation its request began with.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use futures_util::future::BoxFuture;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::tasks::Tasks;
use crate::admin::Admin;
use crate::admin::auth::Access;
use crate::admin::reload::{ConfigStatus, Reconciled, ReloadTrigger, Reloaded, Running};
use crate::calls::Calls;
use crate::calls::reconcile::{SweepReport, Sweeper};
use crate::calls::rejection::CAPACITY_INBOUND;
use crate::clock::UnixMs;
use crate::config::diagnostics::{self, Diagnostic, Report, Severity};
use crate::config::{Config, ConfigPath, Inputs, needs_restart, new_credentials};
use crate::ids::AccountName;
use crate::metrics::{ExpectedLabels, ReloadOutcome};
use crate::net::{Upstream, UpstreamError, UpstreamSettings};
use crate::policy::{Business, Policy, PolicySettings};
use crate::proxy::Proxy;
use crate::reply::RejectionCode;
use crate::runs::Runs;
use crate::store::{AuditRecord, StoreError};
use crate::sync::lock;
use crate::token::Keys;
use crate::transcripts::Client;
use crate::webhooks::{Replayed, Webhooks};

/// Changes the filter of the log.
pub type SetLogFilter = Box<dyn Fn(&str) + Send + Sync>;

/// The source of the config.
pub struct ConfigSource {
    /// The file.
    pub file: ConfigPath,
    /// The contents of the file and of those that it names.
    pub inputs: Inputs,
    /// Applies a new log filter.
    pub set_log_filter: SetLogFilter,
}

/// One running config. Immutable.
pub(super) struct Generation {
    config: Arc<Config>,
    /// See [`ConfigPath::hash`]; `None` without a file.
    hash: Option<String>,
    number: u64,
    loaded_at: UnixMs,
    pub(super) proxy: Proxy,
    pub(super) webhooks: Webhooks,
    admin: Admin,
    client: Client,
}

/// The state of the files.
#[derive(Default)]
struct ReloadState {
    /// The contents in force.
    in_force: Inputs,
    /// The contents of the last attempt, successful or not.
    last: Inputs,
    /// Time and reason of the last failed attempt.
    failed: Option<(UnixMs, String)>,
}

/// The running generation, and what the next one needs.
pub(super) struct Generations {
    now: ArcSwap<Generation>,
    /// Newest generation, for loops that outlive generations.
    newest: watch::Sender<Calls>,
    /// Serialises swaps: each is made from the current generation.
    swapping: tokio::sync::Mutex<()>,
    source: Option<ConfigSource>,
    state: Mutex<ReloadState>,
    /// Stops each account's sweeper.
    sweepers: Mutex<BTreeMap<AccountName, CancellationToken>>,
    tasks: Tasks,
    /// Our listeners' addresses.
    own: Vec<SocketAddr>,
}

/// Builds the HTTP client of a config; `own` are our listeners' addresses.
pub(super) fn upstream(config: &Config, own: &[SocketAddr]) -> Result<Upstream, UpstreamError> {
    Upstream::new(UpstreamSettings {
        callbacks: config.callbacks.with_own(own),
        create_timeout: config.create_read_timeout,
        answer_timeout: config.pass_through,
        extra_ca: config.extra_ca.clone(),
        ..UpstreamSettings::default()
    })
}

/// Puts what may be counted from now on into the metrics, before its first event.
fn create_series(calls: &Calls, config: &Config) {
    let accounts = || calls.accounts.values();
    let codes = RejectionCode::ALL.into_iter().filter(|code| code.counts_as_rejected());
    let mut reasons: BTreeSet<&str> =
        codes.flat_map(|code| accounts().map(move |account| code.metric_reason(&account.provider.refusal))).collect();
    reasons.insert(CAPACITY_INBOUND);
    calls.lifecycle.metrics.create_series(&ExpectedLabels {
        accounts: accounts().map(|account| &account.name).collect(),
        polled: accounts().filter(|account| account.can_ask()).map(|account| &account.name).collect(),
        plans: calls.policy.settings().plans.keys().map(String::as_str).collect(),
        reasons: reasons.into_iter().collect(),
        business_labels: config.metrics_businesses,
    });
}

impl Generations {
    /// Builds the first generation. `Admin` has a weak reference to its owner.
    pub(super) fn new(
        config: Config,
        webhooks: Webhooks,
        client: Client,
        make_admin: impl FnOnce(Weak<dyn Running>) -> Admin,
        source: Option<ConfigSource>,
        tasks: Tasks,
        own: Vec<SocketAddr>,
    ) -> Arc<Self> {
        let inputs = source.as_ref().map(|w| w.inputs.clone()).unwrap_or_default();
        Arc::new_cyclic(|generations: &Weak<Self>| {
            let admin = make_admin(generations.clone());
            let calls = admin.calls.clone();
            let hash = source.as_ref().and_then(|w| w.file.hash(&w.inputs));
            calls.lifecycle.metrics.config_started(hash.as_deref(), calls.policy.hash());
            create_series(&calls, &config);
            let loaded_at = calls.lifecycle.clock.now_ms();
            let proxy = Proxy::new(Arc::new(calls.clone()), admin.runs.batch_calling());
            let config = Arc::new(config);
            Self {
                now: ArcSwap::from_pointee(Generation {
                    config,
                    hash,
                    number: 1,
                    loaded_at,
                    proxy,
                    webhooks,
                    admin,
                    client,
                }),
                newest: watch::Sender::new(calls),
                swapping: tokio::sync::Mutex::default(),
                source,
                state: Mutex::new(ReloadState { in_force: inputs.clone(), last: inputs, failed: None }),
                sweepers: Mutex::default(),
                tasks,
                own,
            }
        })
    }

    /// The running generation.
    pub(super) fn generation(&self) -> Arc<Generation> {
        self.now.load_full()
    }

    /// The handler of live transcripts of the running generation.
    pub(super) fn client(&self) -> Client {
        self.now.load().client.clone()
    }

    /// The config in force.
    pub(super) fn config(&self) -> Arc<Config> {
        self.now.load().config.clone()
    }

    /// The calls layer of the running generation.
    pub(super) fn calls(&self) -> Calls {
        self.newest.borrow().clone()
    }

    /// The runs of the running generation.
    pub(super) fn runs(&self) -> Runs {
        self.now.load().admin.runs.clone()
    }

    /// The webhook handler of the running generation.
    pub(super) fn webhooks(&self) -> Webhooks {
        self.now.load().webhooks.clone()
    }

    /// The file and the contents of the last attempt, if there is a file and it is watched.
    pub(super) fn watched(&self) -> Option<(ConfigPath, Inputs)> {
        let source = self.source.as_ref().filter(|_| self.now.load().config.watch)?;
        Some((source.file.clone(), lock(&self.state).last.clone()))
    }

    /// New sweepers for accounts that have none.
    pub(super) fn sweepers(&self) -> Vec<Sweeper> {
        let (calls, sweep_statuses) = (self.calls(), self.now.load().admin.sweep_statuses.clone());
        let running = lock(&self.sweepers);
        let idle = calls.accounts.values().filter(|account| !running.contains_key(&account.name));
        idle.map(|account| Sweeper::new(self.newest.subscribe(), account.clone(), sweep_statuses.clone())).collect()
    }

    /// Starts new sweepers, and stops those of removed accounts.
    pub(super) fn sweep(&self, new: Vec<Sweeper>) {
        let calls = self.calls();
        let mut sweepers = lock(&self.sweepers);
        sweepers.retain(|name, stop| {
            let stays = calls.accounts.contains_key(name);
            if !stays {
                stop.cancel();
            }
            stays
        });
        for sweeper in new {
            let stop = self.tasks.stop.child_token();
            sweepers.insert(sweeper.account().clone(), stop.clone());
            self.tasks.all.spawn(sweeper.run(stop));
        }
    }

    /// Applies a generation: open calls count against its limits before these decide.
    async fn swap(&self, calls: Calls, policy: Arc<Policy>, next: Generation) -> Result<(), StoreError> {
        let lifecycle = calls.lifecycle.clone();
        let (hash, of_policy) = (next.hash.clone(), policy.hash().to_owned());
        lifecycle
            .admission
            .swap(policy, || {
                lifecycle.metrics.config_in_force(hash.as_deref(), &of_policy);
                self.now.store(Arc::new(next));
                self.newest.send_replace(calls);
            })
            .await?;
        // Other replicas learn of it at once: the lower value of each limit applies.
        if let Err(error) = lifecycle.admission.heartbeat().await {
            warn!(%error, "failed to send new limits to other replicas; they get them with the next heartbeat");
        }
        Ok(())
    }

    async fn load(&self, config: Arc<Config>, hash: Option<String>, businesses: &[Business]) -> Result<(), String> {
        let old = self.now.load_full();
        let before = &old.admin.calls;
        let same =
            config.create_read_timeout == old.config.create_read_timeout && config.callbacks == old.config.callbacks;
        let upstream = match same {
            true => before.upstream.clone(),
            false => upstream(&config, &self.own).map_err(|error| error.to_string())?,
        };
        let policy = Arc::new(Policy::new(config.policy.clone(), businesses));
        let calls = before.next(
            policy.clone(),
            config.accounts.clone(),
            upstream,
            config.calls.clone(),
            config.deadlines.clone(),
        );
        let runs = Runs { settings: config.runs.clone(), ..old.admin.runs.clone() };
        let next = Generation {
            number: old.number + 1,
            loaded_at: calls.lifecycle.clock.now_ms(),
            proxy: Proxy::new(Arc::new(calls.clone()), runs.batch_calling()),
            webhooks: old.webhooks.next(calls.clone(), config.webhooks.clone()),
            client: Client {
                calls: calls.clone(),
                lifecycle: calls.lifecycle.clone(),
                settings: Arc::new(config.client.clone()),
                ..old.client.clone()
            },
            admin: Admin {
                calls: calls.clone(),
                runs,
                access: access(&config, old.admin.access.socket.clone()),
                ..old.admin.clone()
            },
            hash,
            config,
        };
        let (client, admin) = (next.client.clone(), next.admin.clone());
        create_series(&calls, &next.config);
        // Before the swap, which asks the database: the server may take the old password no more.
        let renew = |config: &Config| {
            let (store, redis) = (config.store.postgres.as_ref(), config.redis.as_ref());
            client.lifecycle.admission.renew_credentials(store.map(|one| one.url()), redis.map(|one| one.url()));
        };
        renew(&next.config);
        if let Err(error) = Box::pin(self.swap(calls, policy, next)).await {
            renew(&old.config);
            return Err(error.to_string());
        }
        admin.newest_access.send_replace(admin.access);
        client.publish_settings();
        client.calls.destinations.show_do_not_call();
        self.sweep(self.sweepers());
        Ok(())
    }

    async fn try_file(&self, source: &ConfigSource) -> Reloaded {
        let file = source.file.clone();
        let shown = file.path().display().to_string();
        let outcome =
            |outcome, reason: Option<String>| Reloaded { outcome, diagnostics: vec![], drawn: String::new(), reason };
        let before = lock(&self.state).last.clone();
        let asked = file.clone();
        let mut read =
            match tokio::task::spawn_blocking(move || (asked.read().map(Box::new), asked.inputs_now(&before))).await {
                Ok((Ok(read), _)) => read,
                Ok((Err(error), inputs)) => {
                    lock(&self.state).last = inputs;
                    let report = Report::default();
                    report.error("E011", None, format!("cannot read the config {shown}: {error}"), "");
                    return rejected(report.finish(), &shown, "");
                }
                Err(error) => {
                    return outcome(ReloadOutcome::Failed, Some(format!("the config could not be read: {error}")));
                }
            };
        let unchanged = {
            let mut state = lock(&self.state);
            state.last = read.inputs.clone();
            state.in_force == read.inputs
        };
        if unchanged {
            return outcome(ReloadOutcome::Unchanged, None);
        }
        let mut diagnostics = std::mem::take(&mut read.loaded.diagnostics);
        let Some(config) = read.loaded.config.take().map(Arc::new) else {
            return rejected(diagnostics, &shown, &read.text);
        };
        let businesses = match self.calls().lifecycle.store.businesses().await {
            Ok(businesses) => businesses,
            Err(error) => return outcome(ReloadOutcome::Failed, Some(error.to_string())),
        };
        let mut against = needs_restart(&self.now.load().config, &config, &read.text);
        against.extend(not_fitting(&config.policy, &businesses));
        if !against.is_empty() {
            against.extend(diagnostics);
            return rejected(against, &shown, &read.text);
        }
        let renewed = new_credentials(&self.now.load().config, &config, &read.text);
        let filter = config.log.filter.clone();
        if let Err(error) = Box::pin(self.load(config, source.file.hash(&read.inputs), &businesses)).await {
            return outcome(ReloadOutcome::Failed, Some(error));
        }
        (source.set_log_filter)(&filter);
        for one in &renewed {
            warn!(code = one.code, title = one.title, "config reloaded with a warning");
        }
        diagnostics.extend(renewed);
        lock(&self.state).in_force = read.inputs.clone();
        let drawn = diagnostics::render(&diagnostics, &shown, &read.text);
        Reloaded { outcome: ReloadOutcome::Loaded, diagnostics, drawn, reason: None }
    }

    async fn reload_now(&self, by: &ReloadTrigger) -> Reloaded {
        let _one_at_a_time = self.swapping.lock().await;
        let before = self.config_status();
        let reloaded = match &self.source {
            Some(source) => self.try_file(source).await,
            None => Reloaded {
                outcome: ReloadOutcome::Failed,
                diagnostics: vec![],
                drawn: String::new(),
                reason: Some("this program was not started from a config file".to_owned()),
            },
        };
        let calls = self.calls();
        calls.lifecycle.metrics.config_reload(reloaded.outcome);
        {
            let mut state = lock(&self.state);
            state.failed = reloaded.reason.clone().map(|reason| (calls.lifecycle.clock.now_ms(), reason));
            if reloaded.outcome == ReloadOutcome::Failed {
                // Not the file's fault: treated as unread, and retried.
                state.last = state.in_force.clone();
            }
        }
        let now = self.config_status();
        let by_whom = by;
        let by = by_whom.who.as_str();
        match (reloaded.outcome, &reloaded.reason) {
            (ReloadOutcome::Loaded, _) => {
                self.note_reload(by_whom, &before, &now).await;
                info!(by, policy = now.hash.as_deref(), generation = now.generation, "config reloaded")
            }
            (_, None) => info!(by, policy = now.hash.as_deref(), "config unchanged"),
            (_, Some(reason)) => {
                warn!(by, policy = now.hash.as_deref(), reason, "config not reloaded; the old one stays in force");
            }
        }
        reloaded
    }

    /// Records a reload in the audit log. It is in force already: if the store takes no writes, the log has it.
    async fn note_reload(&self, by: &ReloadTrigger, before: &ConfigStatus, after: &ConfigStatus) {
        let shown = |of: &ConfigStatus| Some(json!({"policy": of.hash}).to_string());
        let lifecycle = self.calls().lifecycle.clone();
        let record = AuditRecord {
            before: shown(before),
            after: shown(after),
            ..AuditRecord::new(lifecycle.clock.now_ms(), &by.who, &by.from, "reload", "config")
        };
        if let Err(error) = lifecycle.store.audit(record).await {
            warn!(by = by.who, %error, "failed to record the reload in the audit log");
        }
    }

    async fn refresh_businesses_now(&self) -> Result<(), StoreError> {
        let _one_at_a_time = self.swapping.lock().await;
        let old = self.now.load_full();
        let businesses = old.admin.calls.lifecycle.store.businesses().await?;
        let policy = Arc::new(Policy::new(old.config.policy.clone(), &businesses));
        let calls = old.admin.calls.with_policy(policy.clone());
        let next = Generation {
            config: old.config.clone(),
            hash: old.hash.clone(),
            number: old.number + 1,
            loaded_at: old.loaded_at,
            proxy: Proxy::new(Arc::new(calls.clone()), old.admin.runs.batch_calling()),
            webhooks: old.webhooks.next(calls.clone(), old.config.webhooks.clone()),
            client: Client { calls: calls.clone(), lifecycle: calls.lifecycle.clone(), ..old.client.clone() },
            admin: Admin { calls: calls.clone(), ..old.admin.clone() },
        };
        Box::pin(self.swap(calls, policy, next)).await
    }
}

#[async_trait]
impl Running for Generations {
    // In separate tasks: a swap is completed even if its caller is dropped.

    async fn reload(self: Arc<Self>, by: ReloadTrigger) -> Reloaded {
        let this = self.clone();
        self.tasks.all.spawn(async move { this.reload_now(&by).await }).await.unwrap_or_else(|error| Reloaded {
            outcome: ReloadOutcome::Failed,
            diagnostics: vec![],
            drawn: String::new(),
            reason: Some(format!("the reload did not finish: {error}")),
        })
    }

    async fn refresh_businesses(self: Arc<Self>) -> Result<(), StoreError> {
        let this = self.clone();
        match self.tasks.all.spawn(async move { this.refresh_businesses_now().await }).await {
            Ok(result) => result,
            Err(error) => Err(StoreError::Unknown(format!("the swap did not finish: {error}"))),
        }
    }

    async fn reconcile(self: Arc<Self>) -> Reconciled {
        let (calls, sweep_statuses) = (self.calls(), self.now.load().admin.sweep_statuses.clone());
        let each: Vec<BoxFuture<'static, SweepReport>> = calls
            .accounts
            .values()
            .map(|account| Sweeper::new(self.newest.subscribe(), account.clone(), sweep_statuses.clone()).look())
            .collect();
        let looks = futures_util::future::join_all(each);
        let compare = calls.lifecycle.admission.clone();
        // In a separate task, as above.
        let done = self.tasks.all.spawn(async move { (looks.await, compare.compare().await) }).await;
        match done {
            Ok((accounts, Ok(gate))) => Reconciled { accounts, gate: Some(gate), gate_error: None },
            Ok((accounts, Err(error))) => Reconciled { accounts, gate: None, gate_error: Some(error.to_string()) },
            Err(error) => Reconciled { accounts: vec![], gate: None, gate_error: Some(error.to_string()) },
        }
    }

    async fn replay_event(self: Arc<Self>, id: &str) -> Result<Option<Replayed>, StoreError> {
        let (inbox, id) = (self.webhooks(), id.to_owned());
        match self.tasks.all.spawn(async move { inbox.replay_asked(&id).await }).await {
            Ok(result) => result,
            Err(error) => Err(StoreError::Unknown(format!("the replay did not finish: {error}"))),
        }
    }

    fn admin(&self) -> Admin {
        self.now.load().admin.clone()
    }

    fn config_status(&self) -> ConfigStatus {
        let now = self.now.load();
        ConfigStatus {
            hash: now.hash.clone(),
            generation: now.number,
            loaded_at: now.loaded_at,
            last_failed: lock(&self.state).failed.clone(),
        }
    }
}

/// The result for an invalid config.
fn rejected(diagnostics: Vec<Diagnostic>, shown: &str, text: &str) -> Reloaded {
    let errors = diagnostics.iter().filter(|d| d.severity == Severity::Error);
    let each: Vec<String> = errors
        .map(|d| match &d.span {
            Some(span) => {
                let line = 1 + text.bytes().take(span.start).filter(|byte| *byte == b'\n').count();
                format!("{} {} ({shown}:{line})", d.code, d.title)
            }
            None => format!("{} {}", d.code, d.title),
        })
        .collect();
    let drawn = diagnostics::render(&diagnostics, shown, text);
    Reloaded { outcome: ReloadOutcome::Kept, diagnostics, drawn, reason: Some(each.join("; ")) }
}

/// Businesses created by the API survive a reload; a config in which one of them would lose its limit is rejected.
fn not_fitting(settings: &PolicySettings, put: &[Business]) -> Vec<Diagnostic> {
    let report = Report::default();
    for business in put {
        let Some(name) = &business.plan else { continue };
        let id = &business.id;
        let help = "keep the plan, or put the business on another one first";
        match settings.plans.get(name) {
            None => {
                let title = format!("business {id}, put over HTTP, is on plan {name:?}, which no longer exists");
                report.error("E061", None, title, help);
            }
            Some(plan) if plan.concurrent.is_none() && business.max_calls.is_none() => {
                let title = format!("business {id}, put over HTTP, has no max_calls, and plan {name:?} gives it none");
                report.error("E061", None, title, help);
            }
            Some(_) => {}
        }
    }
    report.finish()
}

/// Access rules of `listen.admin`.
pub(super) fn access(config: &Config, socket: Option<PathBuf>) -> Access {
    let keys = Keys::of_secrets(config.token_secrets.clone());
    Access { keys, metrics_token: config.metrics_token, cron_secret: config.cron_secret.clone(), socket }
}
