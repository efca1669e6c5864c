//! The decision over a request by the limiter that decides at present, and the call record that makes it durable.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;

use super::adopt::lease_of;
use super::limiter::{Gate, GateError};
use super::state::GateOp;
use super::{Admission, AdmissionController, AdmissionError, Lease, PolicyGuard};
use crate::failpoint;
use crate::metrics::Degraded;
use crate::policy::OnOutage;
use crate::policy::decision::{AdmissionRequest, Decision, GateMode, GateState, LimitExceeded, Shortfall, keys};
use crate::store::runs::JOB_KIND;
use crate::store::{AdmitOutcome, InsertOutcome, NewCall};

/// The time for which a request waits while the limiter is being rebuilt.
const REBUILD_WAIT_MAX: Duration = Duration::from_secs(1);
/// The interval at which it retries meanwhile.
const REBUILD_POLL_INTERVAL: Duration = Duration::from_millis(25);

/// The result of one attempt of an admission.
enum Attempt {
    Done(Admission),
    /// The epoch has changed: retry.
    Retry,
    /// The limiter is being rebuilt: wait.
    Wait(String),
}

impl AdmissionController {
    /// Decides about a request and writes its call record. `call.slots` and `call.keys` are filled in here.
    pub async fn admit(
        &self,
        _policy_guard: &PolicyGuard,
        mut request: AdmissionRequest,
        mut call: NewCall,
    ) -> std::result::Result<Admission, AdmissionError> {
        call.keys = keys(&request.bindings);
        let business = call.attributes.business.clone();
        let is_bulk = call.aliases.iter().any(|alias| alias.kind == JOB_KIND);
        self.apply_lower_limits(&mut request.bindings);
        let until = Instant::now() + REBUILD_WAIT_MAX;
        loop {
            let state = self.state();
            let decided = match (self.gate_of(state.mode), state.mode) {
                (Some(gate), _) => self.decide_in_limiter(gate, &request, call.clone(), state).boxed().await?,
                (None, GateMode::Database) => self.decide_in_store(&request, call.clone(), state).boxed().await?,
                (None, mode) => {
                    self.0.wake.notify_one();
                    let why = format!("limiter {} is not configured at this replica", mode.as_str());
                    Attempt::Wait(why)
                }
            };
            let why = match decided {
                Attempt::Done(admission) => {
                    match &admission {
                        Admission::Rejected(full) if !is_bulk => {
                            self.0.turned_away.rejected(
                                &request.bindings,
                                &full.limit,
                                &business,
                                (Instant::now(), request.at_ms),
                            );
                        }
                        Admission::Admitted { .. } if !is_bulk => self.0.turned_away.admitted(&request.bindings),
                        _ => {}
                    }
                    return Ok(admission);
                }
                Attempt::Retry if self.state() != state => continue,
                Attempt::Retry => format!("the database is at an earlier epoch than {}", state.epoch),
                Attempt::Wait(why) => why,
            };
            if Instant::now() >= until {
                return Err(AdmissionError::Gate(why));
            }
            let mut moves = self.0.state.subscribe();
            if *moves.borrow_and_update() == state {
                let _ = tokio::time::timeout(REBUILD_POLL_INTERVAL, moves.changed()).await;
            }
        }
    }

    /// Decides by the limiter, and records the call under its epoch.
    async fn decide_in_limiter(
        &self,
        gate: &Arc<dyn Gate>,
        request: &AdmissionRequest,
        mut call: NewCall,
        state: GateState,
    ) -> std::result::Result<Attempt, AdmissionError> {
        let (slots, would_reject) = match gate.admit(state.epoch, request).await {
            Ok(Decision::Rejected(short)) => {
                return Ok(Attempt::Done(Admission::Rejected(self.limit_exceeded(request, &short)?)));
            }
            Ok(Decision::Admitted { slots, would_reject }) => (slots, would_reject),
            Err(GateError::Away(why)) => {
                self.defer_op(GateOp::Forbid(state.epoch, request.call.clone()));
                return self.in_outage(request, call, state, why).boxed().await;
            }
            Err(error) => return self.on_unfilled(state, &error).boxed().await,
        };
        failpoint::hit("gate.admitted").await;
        call.slots = slots;
        let claim = self.is_shared().then_some(state.epoch);
        match self.0.store.insert_call(call, claim).await {
            Ok(InsertOutcome::New(early)) => {
                let lease = Lease::new(request.call.clone(), slots);
                let would_reject = would_reject.map(|short| self.limit_exceeded(request, &short)).transpose()?;
                Ok(Attempt::Done(Admission::Admitted { lease, would_reject, early }))
            }
            Ok(InsertOutcome::Known(known)) => {
                self.release_by_id(&request.call).boxed().await;
                Ok(Attempt::Done(Admission::Known(known)))
            }
            Ok(InsertOutcome::Outdated(now)) => {
                // Its lease belonged to an epoch that is over.
                self.adopt_epoch(now);
                Ok(Attempt::Retry)
            }
            Err(error) => {
                self.release_by_id(&request.call).boxed().await;
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
            match self.0.policy.load().on_outage(&call.attributes) {
                OnOutage::Database => self.0.metrics.degraded(Degraded::Database),
                _ => return self.in_outage(request, call, state, "Redis is unavailable".to_owned()).boxed().await,
            }
        }
        match self.0.store.admit(call, request.clone(), state.epoch).await? {
            AdmitOutcome::New { slots, would_reject, early } => {
                let lease = Lease::new(request.call.clone(), slots);
                let would_reject = would_reject.map(|short| self.limit_exceeded(request, &short)).transpose()?;
                Ok(Attempt::Done(Admission::Admitted { lease, would_reject, early }))
            }
            AdmitOutcome::Known(known) => Ok(Attempt::Done(Admission::Known(known))),
            AdmitOutcome::Rejected(short) => {
                Ok(Attempt::Done(Admission::Rejected(self.limit_exceeded(request, &short)?)))
            }
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
        let choice = self.0.policy.load().on_outage(&call.attributes);
        if choice != OnOutage::Open {
            self.0.metrics.degraded(Degraded::Closed);
            return Err(AdmissionError::Gate(why));
        }
        self.0.metrics.degraded(Degraded::Open);
        let slots = request.slots.wanted;
        call.slots = slots;
        let held = lease_of(&call);
        match self.0.store.insert_call(call, Some(state.epoch)).await? {
            InsertOutcome::New(early) => {
                // Queued after the operation that revokes its admission.
                self.defer_op(GateOp::Adopt(state.epoch, held));
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
    async fn on_unfilled(&self, state: GateState, error: &GateError) -> std::result::Result<Attempt, AdmissionError> {
        if self.is_shared() {
            let now = self.0.store.gate_state().await?;
            if now.epoch > state.epoch {
                self.adopt_epoch(now);
                return Ok(Attempt::Retry);
            }
        }
        self.request_rebuild(state);
        Ok(Attempt::Wait(error.to_string()))
    }

    /// Has the limiter rebuilt, unless its epoch is over.
    pub(super) fn request_rebuild(&self, state: GateState) {
        if self.state() == state {
            self.0.needs_rebuild.store(true, Ordering::Relaxed);
            self.0.wake.notify_one();
        }
    }

    fn limit_exceeded(
        &self,
        request: &AdmissionRequest,
        short: &Shortfall,
    ) -> std::result::Result<LimitExceeded, AdmissionError> {
        let full = self.0.waits.limit_exceeded(&request.bindings, short, request.at_ms);
        full.ok_or_else(|| AdmissionError::Gate("the limiter named a limit that is not in the request".to_owned()))
    }
}
