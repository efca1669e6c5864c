//! The outcome of applying a webhook.

use crate::ids::CallId;
use crate::policy::WhenFull;
use crate::store::{ApplyOutcome, CallRecord, Contradiction, RECORDED, UtteranceRef};

/// The outcome in one word, as in the inbox and in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disposition {
    /// It changed a call, or reported what was known.
    Applied,
    /// Its call was given a slot, or has one.
    Admitted,
    /// Its utterance is stored.
    Recorded,
    /// Its call is unknown: it waits under its ids.
    Deferred,
    /// It has no news of a call.
    Ignored,
    /// No slot was free for its call.
    CapacityInbound,
    /// It announces a call without an id.
    MissingId,
    /// It cannot be parsed.
    Unreadable,
    /// Its call has been deleted from the store.
    Forgotten,
    /// The process that received it died, and its sender does not wait for the reply any more.
    ReplyExpired,
    /// Its body is lost.
    BodyLost,
    /// It waited for its call, and cannot be applied to it.
    Unusable,
    /// Its signer does not own the call.
    Contradicted(Contradiction),
}

impl Disposition {
    /// The word in the inbox and in metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Disposition::Applied => "applied",
            Disposition::Admitted => "admitted",
            Disposition::Recorded => RECORDED,
            Disposition::Deferred => "kept",
            Disposition::Ignored => "ignored",
            Disposition::CapacityInbound => "capacity_inbound",
            Disposition::MissingId => "missing_id",
            Disposition::Unreadable => "unreadable",
            Disposition::Forgotten => "forgotten",
            Disposition::ReplyExpired => "reply_expired",
            Disposition::BodyLost => "body_lost",
            Disposition::Unusable => "unusable",
            Disposition::Contradicted(what) => what.outcome(),
        }
    }
}

/// See the module.
pub(super) struct WebhookOutcome {
    pub(super) call: Option<CallId>,
    pub(super) disposition: Disposition,
    /// How a call without a slot is rejected.
    pub(super) refused: Option<WhenFull>,
    /// The call's record after it was applied, if it was.
    pub(super) record: Option<Box<CallRecord>>,
    /// The position of its utterance in the store.
    pub(super) said: Option<UtteranceRef>,
}

impl WebhookOutcome {
    /// An outcome without details.
    pub(super) fn new(disposition: Disposition) -> Self {
        Self { call: None, disposition, refused: None, record: None, said: None }
    }

    /// The outcome of a change of a call.
    pub(super) fn applied(applied: ApplyOutcome) -> Self {
        let record = applied.record;
        match applied.contradiction {
            Some(what) => Self::new(Disposition::Contradicted(what)),
            None => Self {
                call: Some(record.id.clone()),
                record: Some(Box::new(record)),
                ..Self::new(Disposition::Applied)
            },
        }
    }

    /// Whether its call is unknown.
    pub(super) fn is_deferred(&self) -> bool {
        self.disposition == Disposition::Deferred
    }

    /// Whether its signer does not own the call.
    pub(super) fn is_contradicted(&self) -> bool {
        matches!(self.disposition, Disposition::Contradicted(what) if what.outcome() == Contradiction::OtherAccount.outcome())
    }
}
