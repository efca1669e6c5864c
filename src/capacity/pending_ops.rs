//! GateOp the gate has yet to be told: it was away, or is being filled.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{Capacity, lock};
use crate::admission::{GateMode, LeaseRow};
use crate::call::Phase;
use crate::gate::GateError;
use crate::ids::CallId;
use futures_util::FutureExt as _;

/// So much is remembered. GateOp is forgotten the comparison with the record finds.
const UNDONE_MAX: usize = 10_000;
/// While the database decides nobody has to be told of an end, except that Redis may have been filled a moment ago with what
/// was open before it. How long a replica may not know that the gate has moved.
const EPOCH_PROPAGATION: Duration = Duration::from_secs(10);

/// A word to the gate. Said twice it means the same.
#[derive(Debug, Clone)]
pub(super) enum GateOp {
    /// The call has ended, or was never put on record.
    Release(CallId),
    /// Its admission under this epoch got no answer.
    Forbid(i64, CallId),
    /// It was put on record under this epoch and has to be counted.
    Adopt(i64, LeaseRow),
}

impl GateOp {
    /// Whether a move has done it since: what was asked under an epoch that is over comes to nothing, and what was on record is
    /// counted, perhaps by other limits.
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
    /// Ends while the database decided.
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

    /// The gate has moved. The database needs to be told nothing: it reads the record.
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
    pub(super) fn undone(&self, what: GateOp) {
        lock(&self.0.undone).push(what);
        self.0.wake.notify_one();
    }

    /// Tells the gate, now or when it is there.
    pub(super) async fn send_op(&self, what: GateOp) {
        let state = self.state();
        if state.mode == GateMode::Database {
            if let GateOp::Release(call) = what {
                lock(&self.0.undone).ended(call);
            }
            return;
        }
        if self.try_send(&what).boxed().await.is_err() {
            self.undone(what);
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

    /// Says what waits, in its order, until the gate does not listen. Returns whether anything is left.
    pub(super) async fn flush_pending(&self) -> bool {
        loop {
            let Some(what) = lock(&self.0.undone).waiting.pop_front() else { return false };
            if self.try_send(&what).boxed().await.is_err() {
                lock(&self.0.undone).waiting.push_front(what);
                return true;
            }
            // It waited, and may have ended meanwhile: its end may have been told before.
            if let GateOp::Adopt(_, held) = what
                && let Ok(Some(record)) = self.0.store.call(&held.call).await
                && record.phase == Phase::Ended
            {
                self.send_op(GateOp::Release(held.call)).await;
            }
        }
    }
}
