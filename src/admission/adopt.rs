//! Calls that exist already: they count from now on, over limits if necessary.

use futures_util::FutureExt as _;

use super::state::GateOp;
use super::{AdmissionController, PolicyGuard};
use crate::call::Phase;
use crate::failpoint;
use crate::ids::CallId;
use crate::policy::decision::{LeaseRow, keys};
use crate::store::{CallRecord, ConfirmOutcome, InsertOutcome, NewCall, Result};

/// The lease of a recorded call.
pub(super) fn lease_of(call: &NewCall) -> LeaseRow {
    LeaseRow {
        call: call.id.clone(),
        keys: call.keys.clone(),
        slots: call.slots,
        since_ms: call.at_ms,
        over_limit: call.over_limit,
    }
}

impl AdmissionController {
    /// Counts a call that exists already, over limits if necessary, and records it.
    pub async fn adopt(&self, _policy_guard: &PolicyGuard, mut call: NewCall) -> Result<InsertOutcome> {
        call.keys = keys(&self.0.policy.load().bindings(&call.attributes));
        let held = lease_of(&call);
        if !self.is_shared() {
            self.send_op(GateOp::Adopt(self.state().epoch, held)).boxed().await;
            failpoint::hit("call.adopted").await;
            let id = call.id.clone();
            let opened = self.0.store.insert_call(call, None).await;
            if !matches!(opened, Ok(InsertOutcome::New(_))) {
                self.release_by_id(&id).boxed().await;
            }
            return opened;
        }
        loop {
            let state = self.state();
            match self.0.store.insert_call(call.clone(), Some(state.epoch)).await? {
                InsertOutcome::New(news) => {
                    failpoint::hit("call.adopted").await;
                    let id = call.id.clone();
                    self.send_op(GateOp::Adopt(state.epoch, held)).boxed().await;
                    self.release_if_ended(&id).boxed().await;
                    return Ok(InsertOutcome::New(news));
                }
                InsertOutcome::Outdated(now) => self.adopt_epoch(now),
                known => return Ok(known),
            }
        }
    }

    /// Releases an adopted call that has ended meanwhile: its release may have come first.
    async fn release_if_ended(&self, call: &CallId) {
        if let Ok(Some(now)) = self.0.store.call(call).await
            && now.phase == Phase::Ended
        {
            self.release_by_id(call).boxed().await;
        }
    }

    /// Counts an unconfirmed call from now on, over limits if necessary. `false`: it counts already, or has ended.
    pub async fn confirm(&self, _policy_guard: &PolicyGuard, record: &CallRecord) -> Result<bool> {
        let keys = keys(&self.0.policy.load().bindings(&record.attributes));
        loop {
            let state = self.state();
            let epoch = self.is_shared().then_some(state.epoch);
            match self.0.store.confirm(&record.id, keys.clone(), epoch).await? {
                ConfirmOutcome::Now => {
                    let held = LeaseRow {
                        call: record.id.clone(),
                        keys,
                        slots: record.slots,
                        since_ms: record.admitted_at,
                        over_limit: record.over_limit,
                    };
                    self.send_op(GateOp::Adopt(state.epoch, held)).boxed().await;
                    self.release_if_ended(&record.id).boxed().await;
                    return Ok(true);
                }
                ConfirmOutcome::Before => return Ok(false),
                ConfirmOutcome::Outdated(now) => self.adopt_epoch(now),
            }
        }
    }
}
