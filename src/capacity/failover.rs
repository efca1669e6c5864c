//! Moves of the gate: at the start, when it falls back or returns, when it has to be filled anew, when limits change. Each is one
//! epoch more, in one transaction that counts the open calls; and the comparison that finds what no move has caught.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt as _;
use tracing::{info, warn};

use super::{Capacity, pending_ops};
use crate::admission::{GateMode, LeaseRow};
use crate::call::Phase;
use crate::failpoint;
use crate::ids::CallId;
use crate::policy::Policy;
use crate::store::{Result, StoreError};

/// A lease without a record, or a record without a lease, is looked at only after so long: the one is written before the other,
/// and a process may have been held up in between.
pub(super) const GRACE_MS: i64 = 15_000;
/// The pause after a move that another replica made first.
const MOVED_BY_ANOTHER: Duration = Duration::from_millis(5);

/// GateOp a comparison of leases with the record found, and what was done about it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Compared {
    /// Leases and open records that agree.
    pub agree: usize,
    /// Leases of calls that have ended: given back.
    pub ended: usize,
    /// Leases that never got a record: freed by filling the gate anew.
    pub orphans: usize,
    /// Open records without a lease: counted again.
    pub uncounted: usize,
}

impl Compared {
    /// Whether there was anything to do.
    pub fn is_clean(&self) -> bool {
        self.ended + self.orphans + self.uncounted == 0
    }
}

impl Capacity {
    /// Takes the gate up at the start: the open calls are counted by the policy of this process. Returns how many there are.
    pub async fn start(&self) -> Result<usize> {
        let home = self.0.settings.home;
        let to = if self.is_away() { GateMode::Database } else { home };
        let policy = self.0.policy.load_full();
        loop {
            self.adopt_epoch_as(self.0.store.gate_state().await?);
            if let Some(open) = self.bump_epoch(to, &policy).boxed().await? {
                return Ok(open);
            }
            tokio::time::sleep(MOVED_BY_ANOTHER).await;
        }
    }

    /// Before the start nothing was decided under any epoch.
    fn adopt_epoch_as(&self, now: crate::admission::GateState) {
        self.0.state.send_replace(now);
    }

    fn is_away(&self) -> bool {
        self.0.gate.as_ref().is_some_and(|gate| gate.away().is_some())
    }

    /// Swaps the policy: every open call counts against the new limits before they decide anything. `publish` brings whatever
    /// goes with it, before the first call is decided by it.
    pub async fn swap(&self, policy: Arc<Policy>, publish: impl FnOnce()) -> Result<()> {
        let _alone = self.0.deciding.write().await;
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

    /// Moves the gate, unless another replica has.
    pub(super) async fn move_to(&self, to: GateMode) -> Result<Option<usize>> {
        // Where replicas share the record the epoch outdates what is under way; whoever waits for this move must not keep it.
        let _alone = match self.is_shared() {
            true => None,
            false => Some(self.0.deciding.write().await),
        };
        let _one = self.0.moving.lock().await;
        let policy = self.0.policy.load_full();
        self.bump_epoch(to, &policy).boxed().await
    }

    /// One epoch more. `None`: the gate was at another by then, which is taken up.
    async fn bump_epoch(&self, to: GateMode, policy: &Arc<Policy>) -> Result<Option<usize>> {
        let from = self.state().epoch;
        let advanced = self.0.store.bump_epoch(from, to, policy.clone(), self.0.clock.now_ms()).await?;
        let Some(advanced) = advanced else {
            self.adopt_epoch(self.0.store.gate_state().await?);
            return Ok(None);
        };
        failpoint::hit("gate.advanced").await;
        self.0.metrics.gate_moved(to.as_str());
        let open = advanced.held.len();
        let gate = self.gate_of(to).cloned();
        if let Some(gate) = &gate {
            let filled = gate.rebuild(advanced.state.epoch, &advanced.held, &advanced.rates).await;
            failpoint::hit("gate.rebuilt").await;
            match filled {
                Ok(()) => self.0.unfilled.store(false, Ordering::Relaxed),
                Err(error) => {
                    self.0.unfilled.store(true, Ordering::Relaxed);
                    warn!(%error, epoch = advanced.state.epoch, "failed to rebuild the gate; retrying");
                }
            }
        }
        self.adopt_epoch(advanced.state);
        if gate.is_some() && self.is_shared() {
            self.release_ended(&advanced.held).boxed().await?;
        }
        info!(epoch = advanced.state.epoch, mode = to.as_str(), open, "gate rebuilt from open calls");
        Ok(Some(open))
    }

    /// Gives back what ended between the count and the filling: whoever ended it told an epoch that is over.
    async fn release_ended(&self, held: &[LeaseRow]) -> Result<()> {
        let open: HashSet<CallId> = self.0.store.leases().await?.into_iter().map(|one| one.call).collect();
        for one in held.iter().filter(|one| !open.contains(&one.call)) {
            self.send_op(pending_ops::GateOp::Release(one.call.clone())).boxed().await;
        }
        Ok(())
    }

    /// Compares what is held with what is on record, and mends what differs: asks the record of each before it frees anything.
    pub async fn compare(&self) -> Result<Compared> {
        let state = self.state();
        let Some(gate) = self.gate_of(state.mode) else {
            // In the database an open row is the lease.
            let agree = self.0.store.leases().await?.len();
            return Ok(Compared { agree, ..Compared::default() });
        };
        // In this order: what ends between the two is found ended, not uncounted.
        let held = gate.held(state.epoch).await.map_err(|error| StoreError::Failed(error.to_string()))?;
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
                    self.send_op(pending_ops::GateOp::Release(one.call.clone())).boxed().await;
                }
                Some(_) => found.agree += 1,
                None if old(one) => found.orphans += 1,
                None => {}
            }
        }
        for one in open.into_values().filter(old) {
            found.uncounted += 1;
            self.send_op(pending_ops::GateOp::Adopt(state.epoch, one.clone())).boxed().await;
            // It may have ended since the record was read.
            if self.lease(&one.call).boxed().await?.is_none() {
                self.send_op(pending_ops::GateOp::Release(one.call)).boxed().await;
            }
        }
        if found.orphans > 0 {
            // Whoever was admitted and never came to its record is outdated by this, however late it wakes.
            self.move_to(state.mode).boxed().await?;
        }
        if !found.is_clean() {
            warn!(
                ended = found.ended,
                orphans = found.orphans,
                uncounted = found.uncounted,
                "leases differed from the record; mended"
            );
        }
        self.0.metrics.gate_compared(found.ended, found.orphans, found.uncounted);
        Ok(found)
    }
}
