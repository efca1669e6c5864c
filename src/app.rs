//! Builds all parts from a [`Config`], owns all tasks; starts, reloads and drains. The only module that knows all others.

mod config_watcher;
mod error;
mod handlers;
mod listener_tls;
mod listeners;
mod loops;
mod probes;
mod reload;
pub mod service_manager;
mod startup_gate;
mod tasks;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::admin::auth::Access;
use crate::admin::reload::{ReloadTrigger, Reloaded, Running as _};
use crate::admin::{self, Admin, Board};
use crate::admission::limiter::memory::MemoryGate;
use crate::admission::limiter::redis::RedisGate;
use crate::admission::limiter::{Channel, Gate};
use crate::admission::{AdmissionController, LivePolicy};
use crate::calls::Calls;
use crate::calls::lifecycle::Lifecycle;
use crate::calls::notify::{self, Hub};
use crate::calls::reconcile::{self, SweepStatuses};
use crate::clock::Clock;
use crate::config::Config;
use crate::failpoint;
use crate::metrics::Metrics;
use crate::net::{RunningEdge, install_crypto_provider};
use crate::policy::Policy;
use crate::policy::decision::GateMode;
use crate::runs::Runs;
use crate::store::postgres::PostgresStore;
use crate::store::sqlite::SqliteStore;
use crate::store::{self, Journal, OwnershipMode, Replica, Spool, Store, StoreError};
use crate::transcripts::{Client, Feed, RemoteChanges, Sockets};
use crate::webhooks::Webhooks;
pub use error::StartError;
use error::start_error;
use handlers::Listener;
use listener_tls::ListenerTls;
use listeners::Listeners;
use loops::Loops;
pub use reload::{ConfigSource, SetLogFilter};
use reload::{Generations, access};
use startup_gate::StartupListeners;
use tasks::Tasks;

/// The pause between two attempts to reach the database during the start.
const STORE_RETRY_DELAY: Duration = Duration::from_millis(500);
/// The time for which a start waits for Redis.
const REDIS_START_TIMEOUT: Duration = Duration::from_secs(3);
/// The time that WebSockets may take to close.
const SOCKETS_CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The running program.
pub struct App {
    api: RunningEdge,
    webhooks: RunningEdge,
    admin: RunningEdge,
    admin_socket: Option<PathBuf>,
    client: RunningEdge,
    /// Health checks: answered until the process ends.
    probes: Option<RunningEdge>,
    calls: Calls,
    tasks: Tasks,
    generations: Arc<Generations>,
    /// Open calls that were found in the store.
    pub rebuilt: usize,
}

impl App {
    /// Binds the listeners, opens the store, rebuilds the limiter, and serves. There is no file to reload.
    pub async fn start(config: Config, clock: Clock) -> Result<Self, StartError> {
        Self::start_from(config, clock, None).await
    }

    /// Starts from a config with its source, which is read again when it changes or [`App::reload`] is called.
    pub async fn start_from(config: Config, clock: Clock, source: Option<ConfigSource>) -> Result<Self, StartError> {
        // Boxed: it is large, and awaited in tests and commands that are large themselves.
        Box::pin(Self::start_now(config, clock, source)).await
    }

    async fn start_now(config: Config, clock: Clock, source: Option<ConfigSource>) -> Result<Self, StartError> {
        install_crypto_provider();
        let tls = ListenerTls::load(config.listen.tls.as_ref()).map_err(start_error)?;
        let listeners = Listeners::bind(&config, &tls).await?;
        let (own, admin_socket, probes) = (listeners.addresses(), listeners.admin_socket, listeners.probes);
        let access = access(&config, admin_socket.clone());
        let startup = StartupListeners::new(listeners.edges, (access.clone(), clock.clone()));

        let state = OpenState::open(&config, clock, &own, &startup).await?;
        state.announce(&config);
        let (calls, rebuilt) = (state.calls.clone(), state.rebuilt);
        let (admission, metrics) = (calls.lifecycle.admission.clone(), calls.lifecycle.metrics.clone());

        let tasks = Tasks::default();
        let (spool, wake) = (state.spool.clone(), state.wake.clone());
        let generations = state.into_generations(config, source, access, own, &tasks);
        let mut sweepers = generations.sweepers();
        // Nothing is served yet: calls that are live at providers are counted before any is admitted.
        reconcile::initial_sweep(&mut sweepers, calls.settings.provider_query_timeout).await;
        generations.sweep(sweepers);
        Loops { generations: generations.clone(), admission, tasks: tasks.clone() }.spawn(spool, wake);
        tls.show_expiries(&metrics);
        tasks.all.spawn(tls.follow(metrics, tasks.stop.clone()));

        let handlers = [Listener::Api, Listener::Webhooks, Listener::Admin, Listener::Client];
        let [api, webhooks, admin, client] = startup.open(handlers.map(|of| of(generations.clone())))?;
        let probes = probes.map(|(running, handler)| {
            handler.started(generations.clone());
            running
        });
        Ok(Self { api, webhooks, admin, admin_socket, client, probes, calls, tasks, generations, rebuilt })
    }

    /// Reads the config again and applies it as a whole, or keeps the old one and returns why.
    pub async fn reload(&self, by: ReloadTrigger) -> Reloaded {
        self.generations.clone().reload(by).await
    }

    /// The address for apps.
    pub fn api(&self) -> SocketAddr {
        self.api.local_addr()
    }

    /// The address for providers.
    pub fn webhooks(&self) -> SocketAddr {
        self.webhooks.local_addr()
    }

    /// The address for operators.
    pub fn admin(&self) -> SocketAddr {
        self.admin.local_addr()
    }

    /// The Unix socket for operators' programs of this process's user.
    pub fn admin_socket(&self) -> Option<&Path> {
        self.admin_socket.as_deref()
    }

    /// The address for clients of live transcripts.
    pub fn client(&self) -> SocketAddr {
        self.client.local_addr()
    }

    /// The address for health checks alone, if there is one.
    pub fn probes(&self) -> Option<SocketAddr> {
        self.probes.as_ref().map(RunningEdge::local_addr)
    }

    /// The calls layer, for `demo` and tests: accounts and settings of the start, and the shared state.
    pub fn calls(&self) -> &Calls {
        &self.calls
    }

    /// Stops accepting, finishes requests in progress within the grace period, flushes queued writes, releases the store.
    pub async fn drain(self) {
        self.tasks.draining.cancel();
        let grace = self.generations.config().drain;
        info!(grace_secs = grace.as_secs(), in_flight = self.api.in_flight(), "draining");
        failpoint::hit("drain.begun").await;
        // WebSocket clients get a close frame to reconnect; they do not delay the drain for long.
        let (api, webhooks, _) = tokio::join!(
            self.api.drain(grace),
            self.webhooks.drain(grace),
            self.client.drain(grace.min(SOCKETS_CLOSE_TIMEOUT))
        );
        let cut = api.in_flight_cut + webhooks.in_flight_cut;
        let tunnels = api.tunnels_cut + webhooks.tunnels_cut;
        if cut + tunnels > 0 {
            warn!(requests = cut, tunnels, "drain timed out; remaining connections closed");
        }
        failpoint::hit("drain.answered").await;
        // Sent creates must be settled: their responses bind ids to calls.
        self.calls.tasks.close();
        if tokio::time::timeout(grace, self.calls.tasks.wait()).await.is_err() {
            warn!("creates or look-ups unfinished at exit; their calls are looked up after the next start");
        }
        failpoint::hit("drain.settled").await;
        self.tasks.stop.cancel();
        self.tasks.all.close();
        let _ = tokio::time::timeout(Duration::from_secs(5), self.tasks.all.wait()).await;
        self.admin.drain(Duration::from_secs(1)).await;
        if let Some(probes) = self.probes {
            probes.drain(Duration::from_secs(1)).await;
        }
        self.calls.lifecycle.admission.deregister().await;
        self.calls.lifecycle.store.close().await;
        info!("stopped");
    }
}

/// The state that is open once the store and the limiter are: what was there before is counted, and nothing new comes in yet.
struct OpenState {
    calls: Calls,
    inbox: Webhooks,
    /// Wakes the deliveries.
    wake: Arc<Notify>,
    spool: Spool,
    journal: Journal,
    /// Carries notifications between replicas.
    channel: Option<Arc<dyn Channel>>,
    /// Open calls that were found in the store.
    rebuilt: usize,
    /// Webhooks that were stored and not applied.
    replayed: usize,
}

impl OpenState {
    async fn open(
        config: &Config,
        clock: Clock,
        own: &[SocketAddr],
        startup: &StartupListeners,
    ) -> Result<Self, StartError> {
        let store = open_store(config, startup).await?;
        let retry = StartupRetry { startup, is_remote: config.store.postgres.is_some() };
        let businesses = retry.ask(|| store.businesses()).await?;
        let policy = Policy::new(config.policy.clone(), &businesses);
        let policy: LivePolicy = Arc::new(ArcSwap::from_pointee(policy));
        let metrics = Metrics::new().map_err(start_error)?;
        let upstream = reload::upstream(config, own).map_err(start_error)?;
        let database = retry.ask(|| store.identity()).await?;
        let (gate, channel) = open_gate(config, database).await?;
        let admission = AdmissionController::new(
            store.clone(),
            gate,
            config.gate.clone(),
            policy.clone(),
            clock.clone(),
            metrics.clone(),
            Replica::new(),
        );
        let lifecycle = Lifecycle {
            store,
            admission: admission.clone(),
            policy,
            metrics,
            clock,
            deadlines: config.deadlines.clone(),
            opened: Arc::new(Notify::new()),
            hub: Hub::default(),
            notice: config.calls.notice(),
        };
        let calls = Calls::new(lifecycle, config.accounts.clone(), upstream, config.calls.clone());
        retry.ask(|| admission.heartbeat()).await?;
        // No call is placed before the do-not-call lists are known.
        retry.ask(|| calls.destinations.refresh_do_not_call()).await?;
        let rebuilt = retry.ask(|| reconcile::rebuild(&calls)).await?;
        let wake = Arc::new(Notify::new());
        let spool = Spool::new(&config.spool_dir);
        let journal = Journal::new(&config.spool_dir.join("journal"));
        let inbox = Webhooks::new(calls.clone(), config.webhooks.clone(), wake.clone(), spool.clone(), journal.clone());
        let replayed = retry.ask(|| inbox.replay()).await?;
        Ok(Self { calls, inbox, wake, spool, journal, channel, rebuilt, replayed })
    }

    /// The first line of the log.
    fn announce(&self, config: &Config) {
        let policy = self.calls.lifecycle.policy.load();
        info!(
            version = env!("CARGO_PKG_VERSION"),
            mode = policy.mode().as_str(),
            calls = admin::bounds(&policy),
            store = %config.store.shown(),
            retention_days = config.store.retention_days,
            rebuilt = self.rebuilt,
            replayed = self.replayed,
            checks = config.strict.because(),
            "started"
        );
    }

    /// The first generation of the config over this state.
    fn into_generations(
        self,
        config: Config,
        source: Option<ConfigSource>,
        access: Access,
        own: Vec<SocketAddr>,
        tasks: &Tasks,
    ) -> Arc<Generations> {
        let calls = self.calls;
        let client = Client {
            calls: calls.clone(),
            lifecycle: calls.lifecycle.clone(),
            settings: Arc::new(config.client.clone()),
            feed: start_feed(&config, &calls.lifecycle, self.channel, tasks),
            sockets: Sockets::default(),
            draining: tasks.draining.clone(),
        };
        let make_admin = |program| Admin {
            calls,
            runs: Runs::new(config.runs.clone()),
            sweep_statuses: SweepStatuses::default(),
            newest_access: watch::Sender::new(access.clone()),
            access,
            draining: tasks.draining.clone(),
            store_path: config.store.shown(),
            store_backend: config.store.backend(),
            journal: self.journal,
            program,
            board: Board::default(),
        };
        Generations::new(config.clone(), self.inbox, client, make_admin, source, tasks.clone(), own)
    }
}

/// Starts the feed of live transcripts, and passes on what other replicas tell.
fn start_feed(config: &Config, lifecycle: &Lifecycle, channel: Option<Arc<dyn Channel>>, tasks: &Tasks) -> Feed {
    let (store, hub, clock) = (lifecycle.store.clone(), lifecycle.hub.clone(), lifecycle.clock.clone());
    let feed = Feed::new(store, hub.clone(), clock, config.client.user_label.clone());
    let others = match (channel, config.gate.home) {
        (Some(channel), _) => {
            tasks.all.spawn(notify::carry(hub, channel, tasks.stop.clone()));
            RemoteChanges::FromChannel
        }
        (None, GateMode::Memory) => RemoteChanges::None,
        (None, _) => RemoteChanges::FromDatabase,
    };
    tasks.all.spawn(feed.clone().run(others, tasks.stop.clone()));
    feed
}

/// Queries the store during the start. An unavailable server is waited for; a broken file is not.
struct StartupRetry<'a> {
    startup: &'a StartupListeners,
    is_remote: bool,
}

impl StartupRetry<'_> {
    async fn ask<T, F>(&self, ask: impl Fn() -> F) -> Result<T, StartError>
    where
        F: Future<Output = store::Result<T>>,
    {
        loop {
            match ask().await {
                Err(error @ (StoreError::Failed(_) | StoreError::Unknown(_))) if self.is_remote => {
                    warn!(%error, "failed to read the store at start; retrying");
                    self.startup.answer_unavailable(&error.to_string());
                    tokio::time::sleep(STORE_RETRY_DELAY).await;
                }
                done => return done.map_err(start_error),
            }
        }
    }
}

/// A limiter, and the channel of replicas that share it.
type GateAndChannel = (Option<Arc<dyn Gate>>, Option<Arc<dyn Channel>>);

/// Opens the limiter, unless it is the database. A Redis that would lose leases is rejected; an unavailable one is waited for a
/// moment, and then the database decides until it is back.
async fn open_gate(config: &Config, database: String) -> Result<GateAndChannel, StartError> {
    Ok(match (config.gate.home, &config.redis) {
        (GateMode::Memory, _) => (Some(Arc::new(MemoryGate::new())), None),
        (GateMode::Redis, Some(settings)) => {
            let mut named = settings.clone();
            named.database = database;
            let gate = RedisGate::new(named).map_err(start_error)?;
            let until = tokio::time::Instant::now() + REDIS_START_TIMEOUT;
            while gate.away().is_some() && tokio::time::Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            match gate.inspect().await {
                Ok(problems) if problems.is_empty() => {}
                Ok(problems) => {
                    let each: Vec<String> = problems.iter().map(ToString::to_string).collect();
                    return Err(StartError(format!(
                        "{} cannot be used as the limiter: {}",
                        settings.shown(),
                        each.join("; ")
                    )));
                }
                Err(error) => {
                    warn!(redis = %settings.shown(), %error, "Redis unavailable at start; the database admits calls until it is back")
                }
            }
            let gate = Arc::new(gate);
            (Some(gate.clone()), Some(gate))
        }
        _ => (None, None),
    })
}

/// Opens the store. While its server is unavailable, the listeners answer 503.
async fn open_store(config: &Config, startup: &StartupListeners) -> Result<Arc<dyn Store>, StartError> {
    let (settings, migrate) = (&config.store, config.store.migrate_on_start);
    let sharing = if config.gate.home == GateMode::Memory { OwnershipMode::Exclusive } else { OwnershipMode::Shared };
    Ok(match &settings.postgres {
        Some(server) => {
            let store = PostgresStore::open(server, migrate, sharing, |why| startup.answer_unavailable(why)).await;
            Arc::new(store.map_err(start_error)?)
        }
        None => Arc::new(SqliteStore::open(&settings.path, migrate, sharing).await.map_err(start_error)?),
    })
}
