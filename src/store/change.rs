//! Changes of calls.

use super::AppNotice;
use super::record::{CallRecord, CreateAnswer};
use super::voucher::{Contradiction, Voucher};
use crate::call::{Event, Source, Step};
use crate::clock::UnixMs;
use crate::ids::{Alias, CallId};

/// A change of one call.
#[derive(Debug, Clone)]
pub struct Change {
    /// The call.
    pub call: CallId,
    /// The event, if one happened.
    pub event: Option<Event>,
    /// Changes the record only if the last news of the call is of this time (its `seen_at`). Not with ids.
    pub if_seen_at: Option<UnixMs>,
    /// Ids learnt.
    pub bind: Vec<Alias>,
    /// The voucher; `None`: ringfence itself queried the provider.
    pub by: Option<Voucher>,
    /// The source of the news.
    pub seen_by: Source,
    /// Now.
    pub at_ms: UnixMs,
    /// The time until the next look-up, for each phase that the call may enter.
    pub deadlines: crate::call::Deadlines,
    /// Marks the create's outcome as unknown, or as known again.
    pub unsettled: Option<bool>,
    /// Marks the exchange of the create as over.
    pub exchange_over: bool,
    /// The replica that answers the request's client with "unknown", where several share the store. The real outcome is
    /// undelivered by that: until it is delivered, the request may be retried. No effect if another replica owns the request by
    /// now.
    pub reported_unknown_by: Option<String>,
    /// Marks the call as one that exists although it was rejected or had ended for us.
    pub over_limit: Option<bool>,
    /// Records that a look-up did not find it (`true`) or found it again.
    pub absent: Option<bool>,
    /// The provider's response to the create, if it is kept.
    pub answer: Option<CreateAnswer>,
    /// Sends the app an event.
    pub notice: AppNotice,
}

impl Change {
    /// An empty change.
    pub fn of(call: &CallId, seen_by: Source, at_ms: UnixMs, deadlines: &crate::call::Deadlines) -> Self {
        Self {
            call: call.clone(),
            event: None,
            if_seen_at: None,
            bind: vec![],
            by: None,
            seen_by,
            at_ms,
            deadlines: deadlines.clone(),
            unsettled: None,
            exchange_over: false,
            reported_unknown_by: None,
            over_limit: None,
            absent: None,
            answer: None,
            notice: AppNotice::Omit,
        }
    }

    /// The contradiction for which it must not be applied to a call, if any.
    pub(super) fn contradiction(&self, record: &CallRecord) -> Option<Contradiction> {
        self.by.as_ref()?.contradicts(&record.attributes, &record.aliases, &self.bind)
    }
}

/// The outcome of a change.
#[derive(Debug, Clone)]
pub struct ApplyOutcome {
    /// The step, including news that waited under the ids.
    pub step: Step,
    /// The record after it.
    pub record: CallRecord,
    /// Ids that belong to another call: two records of one call, or a forged id.
    pub conflicts: Vec<(Alias, CallId)>,
    /// The reason why it was not applied: it is not about this call.
    pub contradiction: Option<Contradiction>,
    /// Whether the change reported the end of a leg: the carrier still has the call, and has to be queried.
    pub ended_leg_only: bool,
}

impl ApplyOutcome {
    /// The outcome of a contradicted change.
    pub(super) fn contradicted(record: CallRecord, what: Contradiction) -> Self {
        Self { step: Step::Ignore, record, conflicts: vec![], contradiction: Some(what), ended_leg_only: false }
    }

    /// The outcome of a change that was tried before. If that try ended the call (by its event, or by news that waited under its
    /// ids), and only its answer was lost, this is that end.
    #[must_use]
    pub fn if_written_before(mut self, change: &Change) -> Self {
        let record = &self.record;
        if let (Step::Ignore, Some(outcome), Some(proof)) = (&self.step, record.outcome, record.proof)
            && (record.ended_at, record.seen_by) == (Some(change.at_ms), change.seen_by)
        {
            self.step = Step::End(outcome, proof);
        }
        self
    }
}
