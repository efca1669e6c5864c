//! The reason why a create was not sent.

use crate::policy::decision::LimitExceeded;
use crate::reply::{Rejection, RejectionCode};

/// The error of a phase before the send.
pub(super) enum NotSent {
    /// The request is rejected.
    Rejected(Rejection),
    /// A limit is full.
    LimitExceeded(LimitExceeded),
    /// The admission cannot be decided at present: whether there is room for the request, or whether it is a duplicate. In
    /// observe mode the request is sent nevertheless, and counted in no limit.
    Undecided(Rejection),
}

impl NotSent {
    /// The database could not be read.
    pub(super) fn store_unreadable() -> Self {
        let message = "The database could not be read, so nothing was dialled.";
        Self::Undecided(Rejection::new(RejectionCode::StoreUnavailable, message))
    }
}

impl From<Rejection> for NotSent {
    fn from(rejection: Rejection) -> Self {
        NotSent::Rejected(rejection)
    }
}
