//! The limiter that decides at present (this process's memory, Redis, or the database), and its epoch.
//!
//! An admission by a limiter counts only once the call is recorded under the epoch that the database holds at that moment
//! ([`GateState`]). Each transition (fail-over, return, new limits) increments the epoch and recounts the open calls in the same
//! transaction (`failover`). So nothing that is late, lost or duplicated can leave a call uncounted: it arrives under an epoch
//! that is over.
//!
//! | mode | decides | an admission counts when |
//! |---|---|---|
//! | memory | this process, which owns its store | the call record is written |
//! | redis | one script call | the call record is written while the database still has this epoch |
//! | database | one transaction that locks the epoch, counts the open rows and writes the call record | it is committed |
//!
//! [`supervisor`] fails over, rebuilds Redis and returns to it.

mod adopt;
mod bypass;
mod decide;
mod failover;
mod lease;
pub mod limiter;
mod members;
#[cfg(test)]
mod model;
mod pending_ops;
#[cfg(test)]
mod races;
mod recording;
mod state;
pub mod supervisor;
mod turned_away;

use std::sync::atomic::{AtomicBool, AtomicI64};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use tokio::sync::{Notify, OwnedRwLockReadGuard, RwLock, watch};
use tracing::{info, warn};

use crate::admission::limiter::Gate;
use crate::call::{Event, Outcome, Phase};
use crate::clock::Clock;
use crate::ids::CallId;
use crate::metrics::Metrics;
use crate::policy::decision::{Counts, GateMode, GateState, LimitExceeded, RetryAfterEstimator};
use crate::policy::{Binding, CallAttributes, Mode, Policy};
use crate::provider::secret::Secret;
use crate::store::{CallRecord, Replica, Result, Store, StoreError};
use crate::sync::lock;
pub use failover::Compared;
pub use lease::{Lease, Permit, Uncounted};
pub use recording::Recording;
use state::{BypassState, GateOp, Peers, PendingOps};
pub use state::{LiveCountReport, Member};
pub use supervisor::Role;
pub use turned_away::KeptSlot;

/// The newest policy. A reload swaps it as a whole.
pub type LivePolicy = Arc<ArcSwap<Policy>>;

/// The time for which counts of the database are cached: for display, not for decisions.
const COUNTS_KEPT: Duration = Duration::from_millis(250);

/// The configured limiter and its time-outs.
#[derive(Debug, Clone)]
pub struct AdmissionSettings {
    /// The configured limiter.
    pub home: GateMode,
    /// The time for which Redis is unavailable before the database takes over.
    pub fallback_after: Duration,
    /// The least time that the database decides before Redis does again.
    pub return_after: Duration,
    /// The interval at which leases are compared with the call records.
    pub audit_interval: Duration,
}

impl Default for AdmissionSettings {
    fn default() -> Self {
        Self {
            home: GateMode::Memory,
            fallback_after: Duration::from_secs(2),
            return_after: Duration::from_secs(30),
            audit_interval: Duration::from_secs(60),
        }
    }
}

/// Admits calls: the limiter that decides at present, under its epoch. Cloning is cheap.
#[derive(Clone)]
pub struct AdmissionController(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    /// `None` where only the database decides.
    gate: Option<Arc<dyn Gate>>,
    settings: AdmissionSettings,
    policy: LivePolicy,
    clock: Clock,
    metrics: Metrics,
    /// This process among those that share the store.
    replica: Replica,
    state: watch::Sender<GateState>,
    /// Held for reading from before a policy decides about a call until the call is recorded, for writing during a transition in
    /// this process: no call is decided by two policies. It is fair: a reader that locks it again before it has released it waits
    /// for a writer that waits for the reader.
    policy_lock: Arc<RwLock<()>>,
    /// Serialises transitions.
    moving: tokio::sync::Mutex<()>,
    waits: RetryAfterEstimator,
    pending_ops: Mutex<PendingOps>,
    counted: Mutex<Option<(Instant, Counts)>>,
    /// The limiter has lost data and has to be rebuilt.
    needs_rebuild: AtomicBool,
    /// The minimum of the next epoch: the limiter has published the one before it.
    min_epoch: AtomicI64,
    /// Wakes the supervisor.
    wake: Notify,
    moved_at: Mutex<Instant>,
    role: watch::Sender<Role>,
    peers: Mutex<Peers>,
    bypass: BypassState,
    recordings: Arc<recording::Recordings>,
    turned_away: turned_away::TurnedAway,
}

/// While it lives, the policy does not change: taken from [`AdmissionController::hold_policy`] before a policy is read to decide about a call,
/// dropped when the call is recorded. It is owned, so that a decision keeps it which outlives the request that asked for it.
#[must_use = "the policy may change when it is dropped"]
#[derive(Debug)]
pub struct PolicyGuard(#[expect(dead_code, reason = "held, not read")] OwnedRwLockReadGuard<()>);

/// The outcome of an admission.
#[derive(Debug)]
#[must_use]
pub enum Admission {
    /// Admitted and recorded.
    Admitted {
        /// The call's claim on the slots.
        lease: Lease,
        /// In observe mode: what would have rejected it.
        would_reject: Option<LimitExceeded>,
        /// News that arrived before it.
        early: Option<Event>,
    },
    /// One of its ids belongs to this call: it is the same call.
    Known(CallId),
    /// Rejected, without a trace.
    Rejected(LimitExceeded),
}

/// No decision: nothing was admitted, though not because a limit was full.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AdmissionError {
    /// No limiter can decide at present.
    #[error("the limiter cannot decide: {0}")]
    Gate(String),
    /// The call record could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The limiter's status, for `/status` and metrics.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GateStatus {
    /// The configured limiter.
    pub backend: GateMode,
    /// The limiter that decides.
    pub mode: GateMode,
    /// The epoch.
    pub epoch: i64,
    /// The database decides instead of Redis, or no limiter can.
    pub degraded: bool,
    /// The reason why the limiter is unavailable, if it is.
    pub away: Option<String>,
    /// Releases and adoptions that wait until the limiter is available again.
    pub waiting: usize,
    /// This replica's id.
    pub replica: String,
    /// Live replicas.
    pub replicas: usize,
    /// Whether this replica is the leader.
    pub leads: bool,
}

impl AdmissionController {
    /// Builds it. No decision is made before [`AdmissionController::start`].
    pub fn new(
        store: Arc<dyn Store>,
        gate: Option<Arc<dyn Gate>>,
        settings: AdmissionSettings,
        policy: LivePolicy,
        clock: Clock,
        metrics: Metrics,
        replica: Replica,
    ) -> Self {
        let state = GateState { epoch: 0, mode: settings.home };
        Self(Arc::new(Inner {
            store,
            gate,
            settings,
            policy,
            clock,
            metrics,
            replica,
            state: watch::Sender::new(state),
            policy_lock: Arc::default(),
            moving: tokio::sync::Mutex::default(),
            waits: RetryAfterEstimator::default(),
            pending_ops: Mutex::default(),
            counted: Mutex::default(),
            needs_rebuild: AtomicBool::new(false),
            min_epoch: AtomicI64::new(0),
            wake: Notify::new(),
            moved_at: Mutex::new(Instant::now()),
            role: watch::Sender::new(Role::default()),
            peers: Mutex::default(),
            bypass: BypassState::default(),
            recordings: Arc::default(),
            turned_away: turned_away::TurnedAway::default(),
        }))
    }

    /// The id of this process among those that share the store.
    pub fn replica(&self) -> &str {
        &self.0.replica.id
    }

    /// Uses the users and the passwords of these URLs for new connections to the database and to Redis.
    pub fn renew_credentials(&self, store: Option<&Secret>, redis: Option<&Secret>) {
        if let Some(url) = store {
            self.0.store.renew_credential(url);
        }
        if let (Some(gate), Some(url)) = (&self.0.gate, redis) {
            gate.renew_credential(url);
        }
    }

    /// This replica's role.
    pub fn role(&self) -> Role {
        self.0.role.borrow().clone()
    }

    /// The role, with its changes.
    pub fn roles(&self) -> watch::Receiver<Role> {
        self.0.role.subscribe()
    }

    /// Whether a call was recorded by a replica that is dead, and is not this one.
    pub fn is_orphaned(&self, record: &CallRecord) -> bool {
        let role = self.0.role.borrow();
        if !self.is_shared() {
            // This process owns the store alone: any earlier owner is gone, however recent its heartbeat.
            return record.replica.as_deref() != Some(self.replica());
        }
        record.replica.as_ref().is_none_or(|replica| *replica != self.0.replica.id && !role.live.contains(replica))
    }

    /// Blocks swaps of the policy until it is dropped. Must not be called by the holder of another one.
    pub async fn hold_policy(&self) -> PolicyGuard {
        PolicyGuard(self.0.policy_lock.clone().read_owned().await)
    }

    /// Whether several processes share the store.
    pub fn is_shared(&self) -> bool {
        self.0.settings.home != GateMode::Memory
    }

    fn state(&self) -> GateState {
        *self.0.state.borrow()
    }

    /// The limiter of this mode, if it is one of this process's.
    fn gate_of(&self, mode: GateMode) -> Option<&Arc<dyn Gate>> {
        self.0.gate.as_ref().filter(|_| mode == self.0.settings.home && mode != GateMode::Database)
    }

    /// Switches to a later epoch. An earlier one is stale.
    fn adopt_epoch(&self, now: GateState) {
        let before = self.state();
        let is_new = self.0.state.send_if_modified(|state| {
            let newer = now.epoch > state.epoch;
            if newer {
                *state = now;
            }
            newer
        });
        if !is_new {
            return;
        }
        *lock(&self.0.moved_at) = Instant::now();
        self.0.metrics.gate_state(now.epoch, now.mode, now.mode != self.0.settings.home);
        lock(&self.0.pending_ops).moved(now.mode);
        self.0.wake.notify_one();
        if before.epoch == 0 || before.mode == now.mode {
            return;
        }
        if now.mode == self.0.settings.home {
            info!(
                epoch = now.epoch,
                mode = now.mode.as_str(),
                "limiter recovered: the configured back end admits calls again"
            );
        } else {
            warn!(epoch = now.epoch, mode = now.mode.as_str(), "limiter failed over to another back end");
        }
    }

    /// Whether a limit, by its key, has just turned a direct or inbound call away, which may come again.
    pub fn has_turned_away(&self, key: &str) -> bool {
        self.0.turned_away.waits_for(key, Instant::now())
    }

    /// The slots that bulk runs leave now for a direct or inbound call that was turned away, as far as this replica knows.
    pub fn kept_slots(&self) -> Vec<KeptSlot> {
        self.0.turned_away.kept(Instant::now())
    }

    /// Releases the slots of a call whose end is recorded, and learns from its length. While the limiter is unavailable the
    /// release waits.
    pub async fn release(&self, record: &CallRecord) {
        if !record.counts() {
            return;
        }
        let talked = record.outcome.is_some_and(|o| !matches!(o, Outcome::NotCreated | Outcome::Capacity));
        let length_ms = record.ended_at.filter(|_| talked && record.slots == 1).map(|at| at - record.admitted_at);
        self.0.waits.freed(&self.0.policy.load().bindings(&record.attributes), length_ms);
        self.release_by_id(&record.id).boxed().await;
    }

    /// Releases what a call may hold, by its id alone: it was never recorded, or has ended.
    pub async fn release_by_id(&self, call: &CallId) {
        self.send_op(GateOp::Release(call.clone())).boxed().await;
    }

    /// The lease of an open call.
    pub async fn lease(&self, call: &CallId) -> Result<Option<Lease>> {
        let open = self.0.store.call(call).await?.filter(|record| record.phase != Phase::Ended && record.counts());
        Ok(open.map(|record| Lease::new(record.id, record.slots)))
    }

    /// The limits that would bind a call now, with what they allow here: while policies differ, the lower number.
    pub fn bindings(&self, attributes: &CallAttributes) -> Vec<Binding> {
        let mut bindings = self.0.policy.load().bindings(attributes);
        self.apply_lower_limits(&mut bindings);
        bindings
    }

    /// The permission to send a create that no limiter can count: in no limit and not recorded. `None` in enforce mode.
    pub fn uncounted(&self) -> Option<Uncounted> {
        (self.mode() == Mode::Observe).then(|| Uncounted::new(CallId::new()))
    }

    /// Held slots.
    pub async fn counts(&self) -> std::result::Result<Counts, AdmissionError> {
        if self.gate_of(self.state().mode).is_none()
            && let Some((at, counts)) = lock(&self.0.counted).as_ref()
            && at.elapsed() < COUNTS_KEPT
        {
            return Ok(counts.clone());
        }
        self.fresh_counts().await
    }

    /// The counts, made now wherever they are: uncached, for callers that reserve slots.
    pub async fn fresh_counts(&self) -> std::result::Result<Counts, AdmissionError> {
        let state = self.state();
        if let Some(gate) = self.gate_of(state.mode) {
            return gate.counts(state.epoch).await.map_err(|error| AdmissionError::Gate(error.to_string()));
        }
        let counts = Counts::of(&self.0.store.leases().await?);
        *lock(&self.0.counted) = Some((Instant::now(), counts.clone()));
        Ok(counts)
    }

    /// The limiter's status.
    pub fn status(&self) -> GateStatus {
        let (state, role) = (self.state(), self.role());
        let away = self.0.gate.as_ref().and_then(|gate| gate.away()).map(|(_, why)| why);
        GateStatus {
            backend: self.0.settings.home,
            mode: state.mode,
            epoch: state.epoch,
            degraded: state.mode != self.0.settings.home || away.is_some(),
            away,
            waiting: lock(&self.0.pending_ops).len(),
            replica: self.0.replica.id.clone(),
            replicas: role.live.len().max(1),
            leads: role.leads,
        }
    }
}
