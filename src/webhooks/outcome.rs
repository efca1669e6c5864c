//! The outcome of applying a webhook.

use crate::ids::CallId;
use crate::policy::WhenFull;
use crate::store::{ApplyOutcome, CallRecord, EventOutcome, UtteranceRef};

/// The outcome of applying a webhook.
pub(super) struct WebhookOutcome {
    pub(super) call: Option<CallId>,
    pub(super) outcome: EventOutcome,
    /// The way in which a call without a slot is rejected.
    pub(super) rejected: Option<WhenFull>,
    /// The call's record after it was applied, if it was.
    pub(super) record: Option<Box<CallRecord>>,
    /// The position of its utterance in the store.
    pub(super) said: Option<UtteranceRef>,
}

impl WebhookOutcome {
    /// An outcome without details.
    pub(super) fn new(outcome: EventOutcome) -> Self {
        Self { call: None, outcome, rejected: None, record: None, said: None }
    }

    /// The outcome of a change of a call.
    pub(super) fn applied(applied: ApplyOutcome) -> Self {
        let record = applied.record;
        match applied.contradiction {
            Some(what) => Self::new(what.outcome()),
            None => Self {
                call: Some(record.id.clone()),
                record: Some(Box::new(record)),
                ..Self::new(EventOutcome::Applied)
            },
        }
    }

    /// Whether its call is unknown.
    pub(super) fn is_deferred(&self) -> bool {
        self.outcome == EventOutcome::Deferred
    }

    /// Whether its signer does not own the call.
    pub(super) fn is_contradicted(&self) -> bool {
        self.outcome == EventOutcome::Contradicted
    }
}
