//! Which limiter decides at present, and under which epoch: this process's memory, Redis, or the database.
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

mod bypass;
mod failover;
mod lease;
pub mod limiter;
mod members;
#[cfg(test)]
mod model;
mod pending_ops;
#[cfg(test)]
mod races;
pub mod supervisor;
mod turned_away;

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use tokio::sync::{Notify, RwLock, watch};
use tracing::{info, warn};

use crate::admission::limiter::{Gate, GateError};
use crate::call::{Event, Outcome, Phase};
use crate::clock::Clock;
use crate::failpoint;
use crate::ids::CallId;
use crate::metrics::{Degraded, Metrics};
use crate::policy::decision::{
    AdmissionRequest, Counts, Decision, GateMode, GateState, LeaseRow, LimitExceeded, RetryAfterEstimator, Shortfall,
    keys,
};
use crate::policy::{Binding, Facts, Mode, OnOutage, Policy};
use crate::provider::secret::Secret;
use crate::store::runs::JOB_KIND;
use crate::store::{AdmitOutcome, CallRecord, Confirmed, InsertOutcome, NewCall, Replica, Result, Store, StoreError};
pub use failover::Compared;
pub use lease::Lease;
pub use members::{Member, Sighting};
use pending_ops::PendingOps;
pub use supervisor::Role;

/// The newest policy. A reload swaps it as a whole.
pub type LivePolicy = Arc<ArcSwap<Policy>>;

/// How long a request waits while the limiter is being rebuilt.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it retries meanwhile.
const ASK_AGAIN: Duration = Duration::from_millis(25);
/// How long counts of the database are cached: for display, not for decisions.
const COUNTS_KEPT: Duration = Duration::from_millis(250);

/// The configured limiter and its time-outs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The configured limiter.
    pub home: GateMode,
    /// How long Redis is unavailable before the database takes over.
    pub fallback_after: Duration,
    /// The least time that the database decides before Redis does again.
    pub return_after: Duration,
    /// How often leases are compared with the call records.
    pub compare_every: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            home: GateMode::Memory,
            fallback_after: Duration::from_secs(2),
            return_after: Duration::from_secs(30),
            compare_every: Duration::from_secs(60),
        }
    }
}

/// See the module. Cloning is cheap.
#[derive(Clone)]
pub struct Capacity(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    /// `None` where only the database decides.
    gate: Option<Arc<dyn Gate>>,
    settings: Settings,
    policy: LivePolicy,
    clock: Clock,
    metrics: Metrics,
    /// This process among those that share the store.
    replica: Replica,
    state: watch::Sender<GateState>,
    /// Held for reading from before a policy decides about a call until the call is recorded, for writing during a transition in
    /// this process: no call is decided by two policies. A reader must not lock it again before it has released it.
    deciding: RwLock<()>,
    /// Serialises transitions.
    moving: tokio::sync::Mutex<()>,
    waits: RetryAfterEstimator,
    pending_ops: Mutex<PendingOps>,
    counted: Mutex<Option<(Instant, Counts)>>,
    /// The limiter has lost data and has to be rebuilt.
    unfilled: AtomicBool,
    /// The minimum of the next epoch: the limiter has published the one before it.
    min_epoch: AtomicI64,
    /// Wakes the supervisor.
    wake: Notify,
    moved_at: Mutex<Instant>,
    role: watch::Sender<Role>,
    known: Mutex<members::Known>,
    bypass: bypass::BypassState,
    turned_away: turned_away::TurnedAway,
}

/// The outcome of an admission.
#[derive(Debug)]
#[must_use]
pub enum Admission {
    /// Admitted and recorded.
    Admitted {
        /// Its claim on the slots.
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
    #[error("{0}")]
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
    /// Why the limiter is unavailable, if it is.
    pub away: Option<String>,
    /// Releases and adoptions that wait until the limiter is available again.
    pub waiting: usize,
    /// This replica's id.
    pub replica: String,
    /// Live replicas.
    pub replicas: usize,
    /// This one is the leader.
    pub leads: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Capacity {
    /// Builds it. No decision is made before [`Capacity::start`].
    pub fn new(
        store: Arc<dyn Store>,
        gate: Option<Arc<dyn Gate>>,
        settings: Settings,
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
            deciding: RwLock::default(),
            moving: tokio::sync::Mutex::default(),
            waits: RetryAfterEstimator::default(),
            pending_ops: Mutex::default(),
            counted: Mutex::default(),
            unfilled: AtomicBool::new(false),
            min_epoch: AtomicI64::new(0),
            wake: Notify::new(),
            moved_at: Mutex::new(Instant::now()),
            role: watch::Sender::new(Role::default()),
            known: Mutex::default(),
            bypass: bypass::BypassState::default(),
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

    /// The same, with its changes.
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

    /// Blocks swaps of the policy until it is dropped: held from before a call is decided until it is recorded.
    pub async fn deciding(&self) -> tokio::sync::RwLockReadGuard<'_, ()> {
        self.0.deciding.read().await
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
                "gate recovered: the configured backend admits calls again"
            );
        } else {
            warn!(epoch = now.epoch, mode = now.mode.as_str(), "gate backend changed");
        }
    }

    /// Decides about a request and writes its call record. `call.slots` and `call.keys` are filled in here.
    ///
    /// The caller holds [`Capacity::deciding`].
    pub async fn admit(
        &self,
        mut request: AdmissionRequest,
        mut call: NewCall,
    ) -> std::result::Result<Admission, AdmissionError> {
        call.keys = keys(&request.bindings);
        let is_bulk = call.aliases.iter().any(|alias| alias.kind == JOB_KIND);
        self.lower(&mut request.bindings);
        let until = Instant::now() + PATIENCE;
        loop {
            let state = self.state();
            let decided = match (self.gate_of(state.mode), state.mode) {
                (Some(gate), _) => self.propose(gate, &request, call.clone(), state).boxed().await?,
                (None, GateMode::Database) => self.decide_in_store(&request, call.clone(), state).boxed().await?,
                (None, mode) => {
                    self.0.wake.notify_one();
                    let why = format!("limiter {} is not configured at this replica", mode.as_str());
                    Attempt::Wait(why)
                }
            };
            match decided {
                Attempt::Done(admission) => {
                    match &admission {
                        Admission::Rejected(full) if !is_bulk => {
                            self.0.turned_away.refused(&request.bindings, &full.limit, Instant::now());
                        }
                        Admission::Admitted { .. } if !is_bulk => self.0.turned_away.admitted(&request.bindings),
                        _ => {}
                    }
                    return Ok(admission);
                }
                Attempt::Retry => {}
                Attempt::Wait(why) => {
                    if Instant::now() >= until {
                        return Err(AdmissionError::Gate(why));
                    }
                    let mut moves = self.0.state.subscribe();
                    if *moves.borrow_and_update() == state {
                        let _ = tokio::time::timeout(ASK_AGAIN, moves.changed()).await;
                    }
                }
            }
        }
    }

    /// Whether a limit, by its key, has just turned a direct or inbound call away, which may come again.
    pub fn has_turned_away(&self, key: &str) -> bool {
        self.0.turned_away.waits_for(key, Instant::now())
    }

    async fn propose(
        &self,
        gate: &Arc<dyn Gate>,
        request: &AdmissionRequest,
        mut call: NewCall,
        state: GateState,
    ) -> std::result::Result<Attempt, AdmissionError> {
        let (slots, would_reject) = match gate.admit(state.epoch, request).await {
            Ok(Decision::Rejected(short)) => {
                return Ok(Attempt::Done(Admission::Rejected(self.full(request, &short)?)));
            }
            Ok(Decision::Admitted { slots, would_reject }) => (slots, would_reject),
            Err(GateError::Away(why)) => {
                self.defer_op(pending_ops::GateOp::Forbid(state.epoch, request.call.clone()));
                return self.in_outage(request, call, state, why).boxed().await;
            }
            Err(error) => return self.is_elsewhere(state, &error).boxed().await,
        };
        failpoint::hit("gate.admitted").await;
        call.slots = slots;
        let claim = self.is_shared().then_some(state.epoch);
        match self.0.store.open(call, claim).await {
            Ok(InsertOutcome::New(early)) => {
                let lease = Lease::new(request.call.clone(), slots);
                let would_reject = would_reject.map(|short| self.full(request, &short)).transpose()?;
                Ok(Attempt::Done(Admission::Admitted { lease, would_reject, early }))
            }
            Ok(InsertOutcome::Known(known)) => {
                self.give_back(&request.call).boxed().await;
                Ok(Attempt::Done(Admission::Known(known)))
            }
            Ok(InsertOutcome::Outdated(now)) => {
                // Its lease belonged to an epoch that is over.
                self.adopt_epoch(now);
                Ok(Attempt::Retry)
            }
            Err(error) => {
                self.give_back(&request.call).boxed().await;
                Err(error.into())
            }
        }
    }

    async fn decide_in_store(
        &self,
        request: &AdmissionRequest,
        call: NewCall,
        state: GateState,
    ) -> std::result::Result<Attempt, AdmissionError> {
        if self.0.settings.home != GateMode::Database {
            match self.0.policy.load().on_outage(&call.facts) {
                OnOutage::Database => self.0.metrics.degraded(Degraded::Database),
                _ => return self.in_outage(request, call, state, "Redis is unavailable".to_owned()).boxed().await,
            }
        }
        match self.0.store.admit(call, request.clone(), state.epoch).await? {
            AdmitOutcome::New { slots, would_reject, early } => {
                let lease = Lease::new(request.call.clone(), slots);
                let would_reject = would_reject.map(|short| self.full(request, &short)).transpose()?;
                Ok(Attempt::Done(Admission::Admitted { lease, would_reject, early }))
            }
            AdmitOutcome::Known(known) => Ok(Attempt::Done(Admission::Known(known))),
            AdmitOutcome::Rejected(short) => Ok(Attempt::Done(Admission::Rejected(self.full(request, &short)?))),
            AdmitOutcome::Outdated(now) => {
                self.adopt_epoch(now);
                Ok(Attempt::Retry)
            }
        }
    }

    /// Decides while Redis is unavailable and the database does not decide for this call, or not yet.
    async fn in_outage(
        &self,
        request: &AdmissionRequest,
        mut call: NewCall,
        state: GateState,
        why: String,
    ) -> std::result::Result<Attempt, AdmissionError> {
        let choice = self.0.policy.load().on_outage(&call.facts);
        if choice != OnOutage::Open {
            self.0.metrics.degraded(Degraded::Closed);
            return Err(AdmissionError::Gate(why));
        }
        self.0.metrics.degraded(Degraded::Open);
        let slots = request.slots.wanted;
        call.slots = slots;
        let held = lease_of(&call);
        match self.0.store.open(call, Some(state.epoch)).await? {
            InsertOutcome::New(early) => {
                // Queued after the operation that revokes its admission.
                self.defer_op(pending_ops::GateOp::Adopt(state.epoch, held));
                let lease = Lease::new(request.call.clone(), slots);
                Ok(Attempt::Done(Admission::Admitted { lease, would_reject: None, early }))
            }
            InsertOutcome::Known(known) => Ok(Attempt::Done(Admission::Known(known))),
            InsertOutcome::Outdated(now) => {
                self.adopt_epoch(now);
                Ok(Attempt::Retry)
            }
        }
    }

    /// The limiter is not filled for the epoch that this process has: either that epoch is over, or the limiter has yet to be
    /// rebuilt.
    async fn is_elsewhere(&self, state: GateState, error: &GateError) -> std::result::Result<Attempt, AdmissionError> {
        if self.is_shared() {
            let now = self.0.store.gate_state().await?;
            if now.epoch > state.epoch {
                self.adopt_epoch(now);
                return Ok(Attempt::Retry);
            }
        }
        self.note_unfilled(state);
        Ok(Attempt::Wait(error.to_string()))
    }

    /// Has the limiter rebuilt, unless its epoch is over.
    fn note_unfilled(&self, state: GateState) {
        if self.state() == state {
            self.0.unfilled.store(true, Ordering::Relaxed);
            self.0.wake.notify_one();
        }
    }

    /// Counts a call that exists already, over limits if necessary, and records it.
    ///
    /// The caller holds [`Capacity::deciding`].
    pub async fn adopt(&self, mut call: NewCall) -> Result<InsertOutcome> {
        call.keys = keys(&self.0.policy.load().bindings(&call.facts));
        let held = lease_of(&call);
        if !self.is_shared() {
            self.send_op(pending_ops::GateOp::Adopt(self.state().epoch, held)).boxed().await;
            failpoint::hit("call.adopted").await;
            let id = call.id.clone();
            let opened = self.0.store.open(call, None).await;
            if !matches!(opened, Ok(InsertOutcome::New(_))) {
                self.give_back(&id).boxed().await;
            }
            return opened;
        }
        loop {
            let state = self.state();
            match self.0.store.open(call.clone(), Some(state.epoch)).await? {
                InsertOutcome::New(news) => {
                    failpoint::hit("call.adopted").await;
                    self.send_op(pending_ops::GateOp::Adopt(state.epoch, held)).boxed().await;
                    return Ok(InsertOutcome::New(news));
                }
                InsertOutcome::Outdated(now) => self.adopt_epoch(now),
                known => return Ok(known),
            }
        }
    }

    /// Counts an unconfirmed call from now on, over limits if necessary. `false`: it counts already, or has ended.
    ///
    /// The caller holds [`Capacity::deciding`].
    pub async fn confirm(&self, record: &CallRecord) -> Result<bool> {
        let keys = keys(&self.0.policy.load().bindings(&record.facts));
        loop {
            let state = self.state();
            let epoch = self.is_shared().then_some(state.epoch);
            match self.0.store.confirm(&record.id, keys.clone(), epoch).await? {
                Confirmed::Now => {
                    let held = LeaseRow {
                        call: record.id.clone(),
                        keys,
                        slots: record.slots,
                        since_ms: record.admitted_at,
                        over_limit: record.over_limit,
                    };
                    self.send_op(pending_ops::GateOp::Adopt(state.epoch, held)).boxed().await;
                    // It may have ended meanwhile, and its release may have come first.
                    if let Ok(Some(now)) = self.0.store.call(&record.id).await
                        && now.phase == Phase::Ended
                    {
                        self.give_back(&record.id).boxed().await;
                    }
                    return Ok(true);
                }
                Confirmed::Before => return Ok(false),
                Confirmed::Outdated(now) => self.adopt_epoch(now),
            }
        }
    }

    /// Releases the slots of a call whose end is recorded, and learns from its length. While the limiter is unavailable the
    /// release waits.
    pub async fn release(&self, record: &CallRecord) {
        if !record.counts() {
            return;
        }
        let talked = record.outcome.is_some_and(|o| !matches!(o, Outcome::NotCreated | Outcome::Capacity));
        let length_ms = record.ended_at.filter(|_| talked && record.slots == 1).map(|at| at - record.admitted_at);
        self.0.waits.freed(&self.0.policy.load().bindings(&record.facts), length_ms);
        self.give_back(&record.id).boxed().await;
    }

    /// Releases what a call may hold that is not recorded, or has ended.
    pub async fn give_back(&self, call: &CallId) {
        self.send_op(pending_ops::GateOp::Release(call.clone())).boxed().await;
    }

    /// The lease of an open call.
    pub async fn lease(&self, call: &CallId) -> Result<Option<Lease>> {
        let open = self.0.store.call(call).await?.filter(|record| record.phase != Phase::Ended && record.counts());
        Ok(open.map(|record| Lease::new(record.id, record.slots)))
    }

    /// The limits that would bind a call now, with what they allow here: while policies differ, the lower number.
    pub fn bindings(&self, facts: &Facts) -> Vec<Binding> {
        let mut bindings = self.0.policy.load().bindings(facts);
        self.lower(&mut bindings);
        bindings
    }

    /// The permission to send a create that no limiter can count: in no limit and not recorded, only in observe mode.
    pub fn uncounted(&self, call: CallId) -> Option<Lease> {
        (self.mode() == Mode::Observe).then(|| Lease::new(call, 0))
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

    /// The same, counted now wherever the count is: uncached, for callers that reserve slots.
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
    pub fn standing(&self) -> GateStatus {
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

    fn full(
        &self,
        request: &AdmissionRequest,
        short: &Shortfall,
    ) -> std::result::Result<LimitExceeded, AdmissionError> {
        let full = self.0.waits.full(&request.bindings, short, request.at_ms);
        full.ok_or_else(|| AdmissionError::Gate("the gate answered for a limit that is not in the request".to_owned()))
    }
}

/// The lease of a recorded call.
fn lease_of(call: &NewCall) -> LeaseRow {
    LeaseRow {
        call: call.id.clone(),
        keys: call.keys.clone(),
        slots: call.slots,
        since_ms: call.at_ms,
        over_limit: call.over_limit,
    }
}

/// The result of one attempt of an admission.
enum Attempt {
    Done(Admission),
    /// The epoch has changed: retry.
    Retry,
    /// The limiter is being rebuilt: wait.
    Wait(String),
}
