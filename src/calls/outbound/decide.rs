//! The decision over a new call: all limits that bind it, and its call record, or neither.

use std::time::Duration;

use futures_util::FutureExt as _;

use super::job::JobTerms;
use super::prepare::{Prepared, SlotGrant, prepare};
use super::request::CreateRequest;
use crate::admission::{Admission, AdmissionError, Lease};
use crate::call::{Origin, Phase};
use crate::calls::context::Context;
use crate::calls::vouch::subaccount_alias;
use crate::clock::since_boot;
use crate::ids::{Alias, CallId};
use crate::policy::decision::{AdmissionRequest, LimitExceeded, Slots};
use crate::policy::{Binding, Bound, Mode};
use crate::reply::Rejection;

/// Terms that a call is admitted on, beyond the limits of its business.
pub(super) struct Terms {
    pub(super) slots: Slots,
    /// `None`: the mode in force at the decision.
    pub(super) mode: Option<Mode>,
    /// Slots that each concurrency limit keeps free of it.
    pub(super) reserve: u32,
    /// Further limits.
    pub(super) bindings: Vec<Binding>,
    /// The ids that its record has from the start.
    pub(super) aliases: Vec<Alias>,
    /// The fingerprint that duplicates of the request are recognised by.
    pub(super) fingerprint: Option<String>,
}

impl Terms {
    /// Returns the terms of a job of a bulk run.
    pub(super) fn of_job(job: &mut JobTerms) -> Self {
        Self {
            slots: Slots::ONE,
            // Runs are limited in observe mode too: that mode observes apps, and a run is ringfence's own traffic.
            mode: Some(Mode::Enforce),
            reserve: job.reserve,
            bindings: std::mem::take(&mut job.bindings),
            aliases: vec![job.alias.clone()],
            fingerprint: None,
        }
    }
}

/// The outcome of a decision.
pub(super) enum Decided {
    /// The call is admitted and recorded.
    New(Box<DecidedCall>),
    /// One of its ids belongs to this call: it is the same call.
    Known(CallId),
}

/// A call that is admitted and recorded.
pub(super) struct DecidedCall {
    pub(super) lease: Lease,
    pub(super) prepared: Prepared,
    /// The send deadline, see [`since_boot`].
    pub(super) send_by: Duration,
    /// The limit that would have rejected it, in observe mode.
    pub(super) would_reject: Option<LimitExceeded>,
}

/// The reason why a call was not admitted. There is no trace of it.
pub(super) enum DecideError {
    /// The call's request cannot be sent.
    Rejected(Rejection),
    /// The call's account is no longer in the config.
    AccountRemoved,
    /// A limit is full.
    LimitExceeded(LimitExceeded),
    /// The call's admission cannot be decided.
    Undecided(AdmissionError),
}

/// Admits a new call, and writes its record.
///
/// # Errors
/// It was not admitted, and holds no slot.
pub(super) async fn decide(context: &Context, request: &CreateRequest, terms: Terms) -> Result<Decided, DecideError> {
    let lifecycle = &context.lifecycle;
    let call = CallId::new();
    let slots = SlotGrant::all(terms.slots.wanted);
    let mut prepared = prepare(context, request, &call, slots).map_err(DecideError::Rejected)?;
    let policy_guard = lifecycle.admission.hold_policy().await;
    let policy = lifecycle.policy.load_full();
    if !policy.has_account(&request.attributes.account) {
        return Err(DecideError::AccountRemoved);
    }
    let mut bindings = policy.bindings(&request.attributes);
    keep_free(&mut bindings, terms.reserve);
    bindings.extend(terms.bindings);
    let mode = terms.mode.unwrap_or_else(|| lifecycle.admission.mode());
    let at_ms = lifecycle.clock.now_ms();
    let send_by = since_boot() + context.settings.send_within;
    let ask = AdmissionRequest { call: call.clone(), bindings, slots: terms.slots, mode, at_ms };
    let mut record = lifecycle.new_call(&call, request.attributes.clone(), Origin::Create, Phase::Reserved);
    record.callback = prepared.callback.take();
    record.polled = !prepared.events_will_come;
    record.fingerprint = terms.fingerprint;
    record.aliases = terms.aliases;
    record.aliases.extend(request.subaccount.as_ref().and_then(|id| subaccount_alias(id, call.as_str())));
    match lifecycle.admit(policy_guard, ask, record).boxed().await {
        Ok(Admission::Admitted { lease, would_reject, .. }) => {
            Ok(Decided::New(Box::new(DecidedCall { lease, prepared, send_by, would_reject })))
        }
        Ok(Admission::Known(known)) => Ok(Decided::Known(known)),
        Ok(Admission::Rejected(full)) => Err(DecideError::LimitExceeded(full)),
        Err(error) => Err(DecideError::Undecided(error)),
    }
}

/// Keeps slots of each concurrency limit free of a call.
fn keep_free(bindings: &mut [Binding], slots: u32) {
    for binding in bindings {
        if let Bound::Concurrent(n) = &mut binding.bound {
            *n = n.saturating_sub(slots);
        }
    }
}
