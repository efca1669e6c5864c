//! Whether the app is notified.

use crate::clock::UnixMs;

/// Whether the app gets ringfence's own event about a fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppNotice {
    /// The app gets the event.
    Send,
    /// The app does not get the event: it wants none, or there is nothing to say.
    Omit,
}

impl AppNotice {
    /// The time of the event, if there is one.
    pub(super) fn at(self, at_ms: UnixMs) -> Option<UnixMs> {
        (self == AppNotice::Send).then_some(at_ms)
    }
}
