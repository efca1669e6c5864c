//! What lists of calls and refusals are narrowed to, before they are cut to their length.

use crate::call::Phase;
use crate::clock::UnixMs;

/// Narrows a list; what is not said narrows nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListFilter {
    /// Of these businesses alone.
    pub businesses: Option<Vec<String>>,
    /// Of this account alone; of a call also its carrier's.
    pub account: Option<String>,
    /// Calls in these phases alone.
    pub phases: Option<Vec<Phase>>,
    /// That began, or came, at this time or later.
    pub from_ms: Option<UnixMs>,
    /// That began, or came, before this time.
    pub before_ms: Option<UnixMs>,
}

impl ListFilter {
    /// Of the phases, as the database has them; whether all will do comes first.
    pub(super) fn phase_words(&self) -> (bool, Vec<String>) {
        let words = self.phases.iter().flatten().map(|phase| phase.as_str().to_owned());
        (self.phases.is_none(), words.collect())
    }
}
