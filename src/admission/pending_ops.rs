//! Operations that wait for the limiter: it was unavailable, or is being rebuilt.

use super::AdmissionController;
use super::state::GateOp;
use crate::admission::limiter::GateError;
use crate::call::Phase;
use crate::policy::decision::GateMode;
use crate::sync::lock;
use futures_util::FutureExt as _;

impl AdmissionController {
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
