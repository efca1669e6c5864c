//! Filters for lists of calls and refusals, applied before their limit.

use crate::call::Phase;
use crate::clock::UnixMs;

/// The filter of a list; fields that are not set do not filter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListFilter {
    /// Only of these businesses.
    pub businesses: Option<Vec<String>>,
    /// Only of this account; for calls also as their carrier.
    pub account: Option<String>,
    /// Only calls in these phases.
    pub phases: Option<Vec<Phase>>,
    /// Only from this time on.
    pub from_ms: Option<UnixMs>,
    /// Only before this time.
    pub before_ms: Option<UnixMs>,
}

impl ListFilter {
    /// The phases as in the database; first: match all phases.
    pub(super) fn phase_words(&self) -> (bool, Vec<String>) {
        let words = self.phases.iter().flatten().map(|phase| phase.as_str().to_owned());
        (self.phases.is_none(), words.collect())
    }
}
