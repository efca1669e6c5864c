//! Builds all parts from a [`Config`], owns all tasks; starts, reloads and drains. The only module that knows all others.

mod config_watcher;
mod listener_tls;
mod probes;
mod reload;
pub mod service_manager;
mod startup_gate;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::sync::watch::{self, Receiver};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::admin::auth::Access;
use crate::admin::reload::{ReloadTrigger, Reloaded, Running as _};
use crate::admin::{self, Admin, Board};
use crate::admission::limiter::memory::MemoryGate;
use crate::admission::limiter::redis::RedisGate;
use crate::admission::limiter::{Channel, Gate};
use crate::admission::{Capacity, LivePolicy, Role};
use crate::calls::Calls;
use crate::calls::lifecycle::Lifecycle;
use crate::calls::notify::{self, Hub};
use crate::calls::post_call::webhook_health::watch_hooks;
use crate::calls::reconcile::{self, SweepStatuses};
use crate::clock::Clock;
use crate::config::{AdminSocket, Config, ListenerName};
use crate::failpoint;
use crate::metrics::Metrics;
use crate::net::{Edge, EdgeSettings, LocalSocket, ReloadingTls, RunningEdge, descriptors, install_crypto_provider};
use crate::policy::Policy;
use crate::policy::decision::GateMode;
use crate::runs::recurring::keeper;
use crate::runs::{Runs, dialler};
use crate::store::postgres::PostgresStore;
use crate::store::sqlite::SqliteStore;
use crate::store::{self, Journal, OwnershipMode, Replica, RetentionCutoffs, Spool, Store, StoreError};
use crate::token::Keys;
use crate::transcripts::{self, Client, Feed, RemoteChanges, Sockets};
use crate::webhooks::{self, Webhooks, deliver};
use listener_tls::ListenerTls;
use probes::Probes;
pub use reload::{ConfigSource, SetLogFilter};
use reload::{Listener, Live};
use startup_gate::Doors;

/// The pause between two attempts to reach the database during the start.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// How long a start waits for Redis.
const REDIS_WITHIN: Duration = Duration::from_secs(3);
/// How long WebSockets may take to close.
const SOCKETS_WITHIN: Duration = Duration::from_secs(2);
/// How often expired data is deleted.
const PURGE_EVERY: Duration = Duration::from_secs(3600);
/// How long news of unknown calls is kept, in milliseconds: many times the longest create.
const EARLY_KEPT_MS: i64 = 24 * 3_600_000;
/// How long a provider's response to a create is kept for retries, in milliseconds: as long as Stripe keeps responses to
/// idempotency keys (<https://docs.stripe.com/api/idempotent_requests>).
const ANSWER_KEPT_MS: i64 = 24 * 3_600_000;

/// Why the program cannot start. A sentence for an operator.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(String);

fn start_error(error: impl std::fmt::Display) -> StartError {
    StartError(error.to_string())
}

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
    stop: CancellationToken,
    draining: CancellationToken,
    tasks: TaskTracker,
    live: Arc<Live>,
    /// Open calls that were found in the store.
    pub rebuilt: usize,
}

/// A listener with fewer connections than this is logged.
const FEW_CONNECTIONS: usize = 500;

/// Bytes of all bodies in memory, each 64 KiB at most: `listen.client`.
const SMALL_BODIES_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The same for `listen.admin`: a peer may use three quarters of it, which the largest list of businesses fits.
const OPERATORS_BODIES_BYTES_MAX: usize = admin::BUSINESSES_BYTES_MAX * 3 / 2;

async fn bind(
    name: &str,
    address: SocketAddr,
    settings: EdgeSettings,
    tls: Option<ReloadingTls>,
) -> Result<Edge, StartError> {
    Edge::bind(address, settings, tls).await.map_err(|error| {
        let taken = error.kind() == std::io::ErrorKind::AddrInUse;
        let owner = taken.then(|| crate::net::port_owner(address)).flatten();
        let why = owner.map_or_else(|| error.to_string(), |owner| format!("{owner} listens there"));
        let hint = format!("choose another with --listen-{name} :0 or [listen] {name}");
        StartError(format!("cannot listen on {address} (listen.{name}): {why}; {hint}"))
    })
}

/// Access rules of `listen.admin`.
fn access(config: &Config, socket: Option<PathBuf>) -> Access {
    let keys = Keys::of_secrets(config.token_secrets.clone());
    Access { keys, metrics_token: config.metrics_token, cron_secret: config.cron_secret.clone(), socket }
}

/// Adds the Unix socket to the admin listener; returns its path. A default socket that cannot be created is omitted: another
/// process has it, or the store beside it will report the cause.
fn with_socket(admin: Edge, socket: &AdminSocket) -> Result<(Edge, Option<PathBuf>), StartError> {
    let path = socket.path.display();
    match LocalSocket::bind(&socket.path) {
        Ok(local) => Ok((admin.with_local(local), Some(socket.path.clone()))),
        Err(error) if !socket.is_named => {
            warn!(socket = %path, %error, "failed to listen on the admin socket; listen.admin_socket names another");
            Ok((admin, None))
        }
        Err(error) => {
            Err(StartError(format!("failed to listen on {path} (listen.admin_socket): {error}; name another path")))
        }
    }
}

impl App {
    /// Binds the listeners, opens the store, rebuilds the limiter, and serves. There is no file to reload.
    pub async fn start(config: Config, clock: Clock) -> Result<Self, StartError> {
        Self::start_from(config, clock, None).await
    }

    /// The same; `written` is the source of the config, which is read again when it changes or [`App::reload`] is called.
    pub async fn start_from(config: Config, clock: Clock, written: Option<ConfigSource>) -> Result<Self, StartError> {
        // Boxed: it is large, and awaited in tests and commands that are large themselves.
        Box::pin(Self::start_now(config, clock, written)).await
    }

    async fn start_now(config: Config, clock: Clock, written: Option<ConfigSource>) -> Result<Self, StartError> {
        install_crypto_provider();
        let open_files = descriptors::raise_open_files();
        let shares = descriptors::shares(open_files);
        let listener = |connections_max: usize, share: usize| {
            let max_connections = connections_max.min(share);
            if share < FEW_CONNECTIONS {
                warn!(open_files, max_connections, "open file limit is low: listeners take fewer connections");
            }
            EdgeSettings {
                trusted_peers: config.listen.trusted_peers.clone(),
                max_connections,
                max_connections_of_peer: config.listen.connections_per_peer.unwrap_or(max_connections.div_ceil(2)),
                ..EdgeSettings::default()
            }
        };
        let edge = listener(EdgeSettings::default().max_connections, shares.public);
        let tls = ListenerTls::load(config.listen.tls.as_ref()).map_err(start_error)?;
        let api = bind("api", config.listen.api, edge.clone(), tls.of(ListenerName::Api)).await?.on_cores();
        let with_audio = EdgeSettings {
            max_body_bytes: webhooks::BODIES_BYTES_MAX,
            max_large_body_bytes: webhooks::LARGE_BODIES_BYTES_MAX,
            max_large_body_bytes_of_peer: webhooks::BODY_BYTES_MAX,
            ..edge.clone()
        };
        let name = if config.listen.is_public { "public" } else { "webhooks" };
        let webhooks = bind(name, config.listen.webhooks, with_audio, tls.of(ListenerName::Webhooks)).await?.on_cores();
        let with_sockets = EdgeSettings {
            max_tunnels: transcripts::SOCKETS_MAX,
            max_body_bytes: SMALL_BODIES_BYTES_MAX,
            ..listener(transcripts::SOCKETS_MAX + 1000, shares.public)
        };
        let client = bind("client", config.listen.client, with_sockets, tls.of(ListenerName::Client)).await?.on_cores();
        let for_operators = EdgeSettings {
            max_body_bytes: OPERATORS_BODIES_BYTES_MAX,
            ..listener(EdgeSettings::default().max_connections, shares.admin)
        };
        let admin = bind("admin", config.listen.admin, for_operators, tls.of(ListenerName::Admin)).await?;
        let (admin, admin_socket) = with_socket(admin, &config.listen.admin_socket)?;

        let probes = match config.listen.probes {
            Some(address) => {
                let handler = Arc::new(Probes::default());
                Some((bind("probes", address, probes::settings(), None).await?.spawn(handler.clone()), handler))
            }
            None => None,
        };

        let mut own: Vec<SocketAddr> = [&api, &webhooks, &admin, &client].map(Edge::local_addr).into();
        own.extend(probes.as_ref().map(|(running, _)| running.local_addr()));
        let operators = (access(&config, admin_socket.clone()), clock.clone());
        let doors = Doors::new([api, webhooks, admin, client], operators);
        let store = open_store(&config, &doors).await?;
        let patient = StartupRetry { doors: &doors, is_remote: config.store.postgres.is_some() };
        let businesses = patient.ask(|| store.businesses()).await?;
        let policy = Policy::new(config.policy.clone(), &businesses);
        let metrics = Metrics::new().map_err(start_error)?;
        let upstream = reload::upstream(&config, &own);
        let database = patient.ask(|| store.identity()).await?;
        let (gate, channel) = open_gate(&config, database).await?;
        let live_policy: LivePolicy = Arc::new(ArcSwap::from_pointee(policy));
        let capacity = Capacity::new(
            store.clone(),
            gate,
            config.gate.clone(),
            live_policy.clone(),
            clock.clone(),
            metrics.clone(),
            Replica::new(),
        );
        let lifecycle = Lifecycle {
            store: store.clone(),
            capacity: capacity.clone(),
            policy: live_policy,
            metrics: metrics.clone(),
            clock,
            deadlines: config.deadlines.clone(),
            opened: Arc::new(Notify::new()),
            hub: Hub::default(),
            tell: config.calls.events.is_some(),
        };
        let calls =
            Calls::new(lifecycle, config.accounts.clone(), upstream.map_err(start_error)?, config.calls.clone());
        patient.ask(|| capacity.heartbeat()).await?;
        // No call is placed before the do-not-call lists are known.
        patient.ask(|| calls.destinations.refresh_do_not_call()).await?;
        let rebuilt = patient.ask(|| reconcile::rebuild(&calls)).await?;
        let wake = Arc::new(Notify::new());
        let spool = Spool::new(&config.spool_dir);
        let journal = Journal::new(&config.spool_dir.join("journal"));
        let inbox = Webhooks::new(calls.clone(), config.webhooks.clone(), wake.clone(), spool.clone(), journal.clone());
        let replayed = patient.ask(|| inbox.replay()).await?;
        info!(
            version = env!("CARGO_PKG_VERSION"),
            mode = calls.lifecycle.policy.load().mode().as_str(),
            calls = admin::bounds(&calls.lifecycle.policy.load()),
            store = %config.store.shown(),
            retention_days = config.store.retention_days,
            rebuilt,
            replayed,
            "{}",
            config.strict.because()
        );

        let (stop, draining, tasks) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
        let feed = Feed::new(
            store.clone(),
            calls.lifecycle.hub.clone(),
            calls.lifecycle.clock.clone(),
            config.client.user_label.clone(),
        );
        let others = match (&channel, config.gate.home) {
            (Some(channel), _) => {
                tasks.spawn(notify::carry(calls.lifecycle.hub.clone(), channel.clone(), stop.clone()));
                RemoteChanges::LookedFor
            }
            (None, GateMode::Memory) => RemoteChanges::None,
            (None, _) => RemoteChanges::Heard,
        };
        tasks.spawn(feed.clone().run(others, stop.clone()));
        let client = Client {
            calls: calls.clone(),
            lifecycle: calls.lifecycle.clone(),
            settings: Arc::new(config.client.clone()),
            feed,
            sockets: Sockets::default(),
            draining: draining.clone(),
        };
        let access = access(&config, admin_socket.clone());
        let console = |program| Admin {
            calls: calls.clone(),
            runs: Runs::new(config.runs.clone()),
            sightings: SweepStatuses::default(),
            newest_access: watch::Sender::new(access.clone()),
            access,
            draining: draining.clone(),
            store_path: config.store.shown(),
            store_backend: config.store.backend(),
            journal: journal.clone(),
            program,
            board: Board::default(),
        };
        let live = Live::new(config.clone(), inbox, client, console, written, (tasks.clone(), stop.clone()), own);
        let mut sweepers = live.sweepers();
        // Nothing is served yet: calls that are live at providers are counted before any is admitted.
        reconcile::initial_sweep(&mut sweepers, config.calls.ask_timeout).await;
        live.sweep(sweepers);
        tasks.spawn(follow_businesses(capacity.roles(), live.clone(), stop.clone()));
        tasks.spawn(follow_do_not_call(capacity.roles(), live.clone(), stop.clone()));
        tasks.spawn(capacity.clone().keep(stop.clone()));
        let (newest, leads) = (live.clone(), move || capacity.role().leads);
        tasks.spawn(webhooks::replay_loop(move || newest.webhooks(), leads, stop.clone()));
        let newest = live.clone();
        tasks.spawn(deliver::run(move || newest.calls(), spool, wake, stop.clone()));
        let newest = live.clone();
        tasks.spawn(webhooks::journal_loop(move || newest.webhooks(), stop.clone()));
        let (newest, role) = (live.clone(), calls.lifecycle.capacity.clone());
        tasks.spawn(webhooks::spool_loop(move || newest.webhooks(), move || role.role().leads, stop.clone()));
        let (newest, role) = (live.clone(), calls.lifecycle.capacity.clone());
        tasks.spawn(webhooks::records_loop(move || newest.webhooks(), move || role.role().leads, stop.clone()));
        let (newest, role) = (live.clone(), calls.lifecycle.capacity.clone());
        tasks.spawn(watch_hooks(move || newest.calls().post_call, move || role.role().leads, stop.clone()));
        let newest = live.clone();
        tasks.spawn(dialler::run(move || (newest.calls(), newest.runs()), draining.clone()));
        let (newest, role) = (live.clone(), calls.lifecycle.capacity.clone());
        tasks.spawn(keeper::run(move || (newest.calls(), newest.runs()), move || role.role().leads, draining.clone()));
        let newest = live.clone();
        tasks.spawn(admin::follow_use(move || newest.console(), draining.clone()));
        tasks.spawn(purge(live.clone(), stop.clone()));
        tasks.spawn(config_watcher::run(live.clone(), stop.clone()));
        tls.show_expiries(&metrics);
        tasks.spawn(tls.follow(metrics, stop.clone()));
        let listeners = [Listener::Api, Listener::Webhooks, Listener::Admin, Listener::Client];
        let [api, webhooks, admin, client] = doors.open(listeners.map(|of| of(live.clone())))?;
        let probes = probes.map(|(running, handler)| {
            handler.started(live.clone());
            running
        });
        Ok(Self { api, webhooks, admin, admin_socket, client, probes, calls, stop, draining, tasks, live, rebuilt })
    }

    /// Reads the config again and applies it as a whole, or keeps the old one and returns why.
    pub async fn reload(&self, by: ReloadTrigger) -> Reloaded {
        self.live.clone().reload(by).await
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
        self.draining.cancel();
        let grace = self.live.config().drain;
        info!(grace_secs = grace.as_secs(), in_flight = self.api.in_flight(), "draining");
        failpoint::hit("drain.begun").await;
        // WebSocket clients get a close frame to reconnect; they do not delay the drain for long.
        let (api, webhooks, _) = tokio::join!(
            self.api.drain(grace),
            self.webhooks.drain(grace),
            self.client.drain(grace.min(SOCKETS_WITHIN))
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
            warn!("creates still unanswered at exit; their calls are looked up after the next start");
        }
        failpoint::hit("drain.settled").await;
        self.stop.cancel();
        self.tasks.close();
        let _ = tokio::time::timeout(Duration::from_secs(5), self.tasks.wait()).await;
        self.admin.drain(Duration::from_secs(1)).await;
        if let Some(probes) = self.probes {
            probes.drain(Duration::from_secs(1)).await;
        }
        self.calls.lifecycle.capacity.deregister().await;
        self.calls.lifecycle.store.close().await;
        info!("stopped");
    }
}

/// Queries the store during the start. An unavailable server is waited for; a broken file is not.
struct StartupRetry<'a> {
    doors: &'a Doors,
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
                    warn!(%error, "waiting for the store");
                    self.doors.wait(&error.to_string());
                    tokio::time::sleep(ASK_AGAIN).await;
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
            let until = tokio::time::Instant::now() + REDIS_WITHIN;
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
async fn open_store(config: &Config, doors: &Doors) -> Result<Arc<dyn Store>, StartError> {
    let (settings, migrate) = (&config.store, config.store.migrate_on_start);
    let sharing = if config.gate.home == GateMode::Memory { OwnershipMode::Exclusive } else { OwnershipMode::Shared };
    Ok(match &settings.postgres {
        Some(server) => {
            let store = PostgresStore::open(server, migrate, sharing, |why| doors.wait(why)).await;
            Arc::new(store.map_err(start_error)?)
        }
        None => Arc::new(SqliteStore::open(&settings.path, migrate, sharing).await.map_err(start_error)?),
    })
}

/// Applies businesses that were changed at another replica.
async fn follow_businesses(mut roles: Receiver<Role>, live: Arc<Live>, stop: CancellationToken) {
    let mut taken_up = roles.borrow_and_update().businesses_version.clone();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = roles.changed() => if changed.is_err() { return },
        }
        let version = roles.borrow_and_update().businesses_version.clone();
        if version == taken_up {
            continue;
        }
        match live.clone().refresh_businesses().await {
            Ok(()) => taken_up = version,
            Err(error) => warn!(%error, "failed to apply changed businesses; retried with the next change"),
        }
    }
}

/// Refreshes do-not-call lists that were changed at another replica, and retries failed reads.
async fn follow_do_not_call(mut roles: Receiver<Role>, live: Arc<Live>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = roles.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(ASK_AGAIN) => {}
        }
        let calls = live.calls();
        let change = roles.borrow_and_update().do_not_call_change;
        if !calls.destinations.knows_do_not_call(change)
            && let Err(error) = calls.destinations.refresh_do_not_call().await
        {
            warn!(%error, "failed to read the do-not-call lists; numbers that may be listed are rejected until they load");
        }
    }
}

async fn purge(live: Arc<Live>, stop: CancellationToken) {
    let calls = live.calls();
    loop {
        let now_ms = calls.lifecycle.clock.now_ms();
        let before = |days: u32| now_ms - i64::from(days) * 24 * 3_600_000;
        let policy = calls.lifecycle.policy.load_full();
        let ages = RetentionCutoffs {
            before_ms: before(live.config().store.retention_days),
            of_business: policy.own_retention_days().map(|(id, days)| (id.clone(), before(days))).collect(),
            early_before_ms: now_ms - EARLY_KEPT_MS,
            answers_before_ms: now_ms - ANSWER_KEPT_MS,
        };
        match calls.lifecycle.store.purge(&ages).await {
            Ok(0) => {}
            Ok(rows) => info!(rows, "expired data deleted"),
            Err(error) => warn!(%error, "failed to delete expired data"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PURGE_EVERY) => {}
        }
    }
}
