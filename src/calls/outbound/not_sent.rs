//! Why a create was not sent.

use crate::admission::LimitExceeded;
use crate::reply::Rejection;

/// What a step before the send ends with where nothing is to be sent.
pub(super) enum NotSent {
    /// It is rejected.
    Rejected(Rejection),
    /// A limit is full.
    LimitExceeded(LimitExceeded),
    /// Nobody can say just now whether there is room for it, or whether it was sent before. In observe mode it is sent all the same,
    /// and counted in no limit.
    Undecided(Rejection),
}

impl From<Rejection> for NotSent {
    fn from(rejection: Rejection) -> Self {
        NotSent::Rejected(rejection)
    }
}
