//! What applying a webhook came to.

use crate::ids::CallId;
use crate::policy::WhenFull;
use crate::store::{ApplyOutcome, CallRecord, Contradiction, RECORDED, UtteranceRef};

/// In one word, as it stands in the inbox and in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disposition {
    /// It changed a call, or told what was known.
    Applied,
    /// Its call took a slot, or has one.
    Admitted,
    /// What was said in it is on record.
    Recorded,
    /// Nobody knows its call yet: it waits under its ids.
    Deferred,
    /// It tells nothing of a call.
    Ignored,
    /// Its call had no slot.
    CapacityInbound,
    /// It announces a call and names none.
    MissingId,
    /// It cannot be read.
    Unreadable,
    /// Its call is not on record any more.
    Forgotten,
    /// It was taken by a process that died, and whoever waited for the reply does no more.
    ReplyExpired,
    /// Its body is lost.
    BodyLost,
    /// What has waited for its call cannot be applied to it.
    Unusable,
    /// It is of a call that who signed it does not vouch for.
    Contradicted(Contradiction),
}

impl Disposition {
    /// The word.
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
    /// What the caller of a call without a slot meets.
    pub(super) refused: Option<WhenFull>,
    /// The call's record after it, where it was applied to one.
    pub(super) record: Option<Box<CallRecord>>,
    /// What was said, as it stands on record.
    pub(super) said: Option<UtteranceRef>,
}

impl WebhookOutcome {
    /// With nothing but this.
    pub(super) fn new(disposition: Disposition) -> Self {
        Self { call: None, disposition, refused: None, record: None, said: None }
    }

    /// Of a change of a call.
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

    /// Nobody knows its call yet.
    pub(super) fn is_deferred(&self) -> bool {
        self.disposition == Disposition::Deferred
    }

    /// It is of a call of another account.
    pub(super) fn is_contradicted(&self) -> bool {
        matches!(self.disposition, Disposition::Contradicted(what) if what.outcome() == Contradiction::OtherAccount.outcome())
    }
}
