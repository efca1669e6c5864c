//! Operations that wait for the limiter: it was unavailable, or is being rebuilt.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Capacity;
use crate::admission::limiter::GateError;
use crate::call::Phase;
use crate::ids::CallId;
use crate::policy::decision::{GateMode, LeaseRow};
use crate::sync::lock;
use futures_util::FutureExt as _;

/// Operations that are queued. The comparison with the call records finds those that were dropped.
const UNDONE_MAX: usize = 10_000;
/// How long a replica may not have noticed a new epoch. While the database decides releases need not be sent, unless Redis was
/// filled a moment ago with calls that were open before.
const EPOCH_PROPAGATION: Duration = Duration::from_secs(10);

/// An operation on the limiter. Idempotent.
#[derive(Debug, Clone)]
pub(super) enum GateOp {
    /// The call has ended, or was never recorded.
    Release(CallId),
    /// Its admission under this epoch got no answer.
    Forbid(i64, CallId),
    /// It was recorded under this epoch and has to be counted.
    Adopt(i64, LeaseRow),
}

impl GateOp {
    /// Whether a transition has made it unnecessary: an admission under an epoch that is over has no effect, and recorded calls
    /// were recounted, perhaps under other limits.
    fn is_over(&self, epoch: i64) -> bool {
        match self {
            GateOp::Release(_) => false,
            GateOp::Forbid(under, _) | GateOp::Adopt(under, _) => *under < epoch,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct PendingOps {
    waiting: VecDeque<GateOp>,
    /// Calls that ended while the database decided.
    lately: VecDeque<(Instant, CallId)>,
}

impl PendingOps {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    fn push(&mut self, what: GateOp) {
        if self.waiting.len() >= UNDONE_MAX {
            self.waiting.pop_front();
        }
        self.waiting.push_back(what);
    }

    fn ended(&mut self, call: CallId) {
        while self.lately.len() >= UNDONE_MAX
            || self.lately.front().is_some_and(|(at, _)| at.elapsed() > EPOCH_PROPAGATION)
        {
            self.lately.pop_front();
        }
        self.lately.push_back((Instant::now(), call));
    }

    /// Handles a transition. The database needs no operations: it reads the call records.
    pub(super) fn moved(&mut self, to: GateMode) {
        if to == GateMode::Database {
            self.waiting.clear();
            return;
        }
        for (_, call) in std::mem::take(&mut self.lately) {
            self.push(GateOp::Release(call));
        }
    }
}

impl Capacity {
    pub(super) fn defer_op(&self, what: GateOp) {
        lock(&self.0.pending_ops).push(what);
        self.0.wake.notify_one();
    }

    /// Sends an operation, now or when the limiter is available.
    pub(super) async fn send_op(&self, what: GateOp) {
        let state = self.state();
        if state.mode == GateMode::Database {
            if let GateOp::Release(call) = what {
                lock(&self.0.pending_ops).ended(call);
            }
            return;
        }
        if self.try_send(&what).boxed().await.is_err() {
            self.defer_op(what);
        }
    }

    async fn try_send(&self, what: &GateOp) -> Result<(), GateError> {
        let state = self.state();
        let Some(gate) = self.gate_of(state.mode).filter(|_| !what.is_over(state.epoch)) else { return Ok(()) };
        match what {
            GateOp::Release(call) => gate.release(state.epoch, call).await.map(drop),
            GateOp::Forbid(_, call) => gate.forbid(state.epoch, call).await,
            GateOp::Adopt(_, held) => gate.adopt(state.epoch, held).await,
        }
    }

    /// Sends queued operations in order, until one fails. Returns whether any is left.
    pub(super) async fn flush_pending(&self) -> bool {
        loop {
            let Some(what) = lock(&self.0.pending_ops).waiting.pop_front() else { return false };
            if self.try_send(&what).boxed().await.is_err() {
                lock(&self.0.pending_ops).waiting.push_front(what);
                return true;
            }
            // The call may have ended meanwhile, and its release may have been sent first.
            if let GateOp::Adopt(_, held) = what
                && let Ok(Some(record)) = self.0.store.call(&held.call).await
                && record.phase == Phase::Ended
            {
                self.send_op(GateOp::Release(held.call)).await;
            }
        }
    }
}
