//! Transitions of the limiter: start, fail-over, return, rebuild, new limits. Each increments the epoch in one transaction that
//! recounts the open calls; and the comparison of leases with records that repairs what no transition caught.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt as _;
use tracing::{info, warn};

use super::AdmissionController;
use super::state::GateOp;
use crate::admission::limiter::GateError;
use crate::call::Phase;
use crate::failpoint;
use crate::ids::CallId;
use crate::metrics::Repair;
use crate::policy::Policy;
use crate::policy::decision::{GateMode, LeaseRow};
use crate::store::{Result, StoreError};

/// A lease without a record, or a record without a lease, counts as a difference only after this time, in milliseconds: the lease
/// is written first, and its process may have been suspended in between.
pub(super) const GRACE_MS: i64 = 15_000;
/// The pause after another replica made the transition first.
const MOVED_BY_ANOTHER: Duration = Duration::from_millis(5);

/// The result of comparing leases with call records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Compared {
    /// Leases and open records that agree.
    pub agree: usize,
    /// Leases of ended calls: released.
    pub ended: usize,
    /// Leases without a record: released by rebuilding the limiter.
    pub orphans: usize,
    /// Open records without a lease: counted again.
    pub uncounted: usize,
}

impl Compared {
    /// Whether no difference was found.
    pub fn is_clean(&self) -> bool {
        self.ended + self.orphans + self.uncounted == 0
    }
}

impl AdmissionController {
    /// Starts: counts the open calls by this process's policy. Returns their number.
    pub async fn start(&self) -> Result<usize> {
        let home = self.0.settings.home;
        let to = if self.is_away() { GateMode::Database } else { home };
        let policy = self.0.policy.load_full();
        loop {
            self.set_initial_epoch(self.0.store.gate_state().await?);
            if let Some(open) = self.bump_epoch(to, &policy).boxed().await? {
                return Ok(open);
            }
            tokio::time::sleep(MOVED_BY_ANOTHER).await;
        }
    }

    /// Adopts the first epoch: nothing was decided before.
    fn set_initial_epoch(&self, now: crate::policy::decision::GateState) {
        self.0.state.send_replace(now);
    }

    fn is_away(&self) -> bool {
        self.0.gate.as_ref().is_some_and(|gate| gate.away().is_some())
    }

    /// Swaps the policy: every open call is counted under the new limits before they decide. `publish` makes whatever belongs to
    /// the policy visible before the first decision by it.
    pub async fn swap(&self, policy: Arc<Policy>, publish: impl FnOnce()) -> Result<()> {
        let _alone = self.0.policy_lock.write().await;
        let _one = self.0.moving.lock().await;
        loop {
            if self.bump_epoch(self.state().mode, &policy).boxed().await?.is_some() {
                break;
            }
            tokio::time::sleep(MOVED_BY_ANOTHER).await;
        }
        self.0.policy.store(policy);
        publish();
        Ok(())
    }

    /// Makes a transition, unless another replica has.
    pub(super) async fn move_to(&self, to: GateMode) -> Result<Option<usize>> {
        // In a shared store the epoch invalidates what is in progress; an admission that waits for this transition must not block
        // it.
        let _alone = match self.is_shared() {
            true => None,
            false => Some(self.0.policy_lock.write().await),
        };
        let _one = self.0.moving.lock().await;
        let policy = self.0.policy.load_full();
        self.bump_epoch(to, &policy).boxed().await
    }

    /// Increments the epoch. `None`: it had changed, and the new state is adopted.
    async fn bump_epoch(&self, to: GateMode, policy: &Arc<Policy>) -> Result<Option<usize>> {
        let from = self.state().epoch;
        let min_epoch = self.0.min_epoch.load(Ordering::Relaxed);
        let advanced = self.0.store.bump_epoch(from, min_epoch, to, policy.clone(), self.0.clock.now_ms()).await?;
        let Some(advanced) = advanced else {
            self.adopt_epoch(self.0.store.gate_state().await?);
            return Ok(None);
        };
        failpoint::hit("gate.advanced").await;
        self.0.metrics.gate_moved(to);
        let open = advanced.held.len();
        let gate = self.gate_of(to).cloned();
        if let Some(gate) = &gate {
            let filled = gate.rebuild(advanced.state.epoch, &advanced.held, &advanced.rates).await;
            failpoint::hit("gate.rebuilt").await;
            match filled {
                Ok(()) => self.0.needs_rebuild.store(false, Ordering::Relaxed),
                Err(error) => {
                    self.0.needs_rebuild.store(true, Ordering::Relaxed);
                    if let GateError::Epoch(later) = error {
                        // The database was restored to an older state than the limiter's.
                        self.0.min_epoch.store(later + 1, Ordering::Relaxed);
                    }
                    warn!(%error, epoch = advanced.state.epoch, "failed to rebuild the limiter; retrying");
                }
            }
        }
        self.adopt_epoch(advanced.state);
        if gate.is_some() && self.is_shared() {
            self.release_ended(&advanced.held).boxed().await?;
        }
        info!(epoch = advanced.state.epoch, mode = to.as_str(), open, "epoch increased; open calls recounted");
        Ok(Some(open))
    }

    /// Releases what ended between the count and the rebuild: those releases went to an epoch that is over.
    async fn release_ended(&self, held: &[LeaseRow]) -> Result<()> {
        let open: HashSet<CallId> = self.0.store.leases().await?.into_iter().map(|one| one.call).collect();
        for one in held.iter().filter(|one| !open.contains(&one.call)) {
            self.send_op(GateOp::Release(one.call.clone())).boxed().await;
        }
        Ok(())
    }

    /// Compares leases with call records, and repairs differences: reads the record of each before it releases anything.
    pub async fn compare(&self) -> Result<Compared> {
        let state = self.state();
        let Some(gate) = self.gate_of(state.mode) else {
            // In the database an open row is the lease.
            let agree = self.0.store.leases().await?.len();
            return Ok(Compared { agree, ..Compared::default() });
        };
        // Leases are read first: a call that ends between the two reads counts as ended, not as uncounted.
        let held = match gate.held(state.epoch).await {
            Ok(held) => held,
            Err(error) => {
                // A limiter that lost its data while nothing was decided is rebuilt now, not at the next decision.
                if matches!(error, GateError::Unfilled(_)) {
                    self.request_rebuild(state);
                }
                return Err(StoreError::Failed(error.to_string()));
            }
        };
        failpoint::hit("gate.comparing").await;
        let mut open: HashMap<CallId, LeaseRow> =
            self.0.store.leases().await?.into_iter().map(|one| (one.call.clone(), one)).collect();
        let old = |one: &LeaseRow| one.since_ms + GRACE_MS < self.0.clock.now_ms();
        let mut found = Compared::default();
        for one in &held {
            if open.remove(&one.call).is_some() {
                found.agree += 1;
                continue;
            }
            match self.0.store.call(&one.call).await? {
                Some(record) if record.phase == Phase::Ended => {
                    found.ended += 1;
                    self.send_op(GateOp::Release(one.call.clone())).boxed().await;
                }
                Some(_) => found.agree += 1,
                None if old(one) => found.orphans += 1,
                None => {}
            }
        }
        for one in open.into_values().filter(old) {
            found.uncounted += 1;
            self.send_op(GateOp::Adopt(state.epoch, one.clone())).boxed().await;
            // It may have ended since its record was read.
            if self.lease(&one.call).boxed().await?.is_none() {
                self.send_op(GateOp::Release(one.call)).boxed().await;
            }
        }
        if found.orphans > 0 {
            // This invalidates an admission that was never recorded, however late its process resumes.
            self.move_to(state.mode).boxed().await?;
        }
        if !found.is_clean() {
            warn!(
                ended = found.ended,
                orphans = found.orphans,
                uncounted = found.uncounted,
                "lease mismatches repaired"
            );
        }
        for (what, leases) in
            [(Repair::Ended, found.ended), (Repair::Orphan, found.orphans), (Repair::Uncounted, found.uncounted)]
        {
            self.0.metrics.gate_repaired(what, leases);
        }
        Ok(found)
    }
}
