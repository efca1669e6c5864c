//! Filters for lists of calls, refusals and webhooks, applied before their limit.

use super::Cursor;
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
    /// Only refusals with this code.
    pub code: Option<String>,
    /// Only from this time on.
    pub from_ms: Option<UnixMs>,
    /// Only before this time.
    pub before_ms: Option<UnixMs>,
    /// Only after this position of the list: a time and an id.
    pub after: Option<Cursor>,
}

impl ListFilter {
    /// The phases as in the database; first: match all phases.
    pub(super) fn phase_words(&self) -> (bool, Vec<String>) {
        let words = self.phases.iter().flatten().map(|phase| phase.as_str().to_owned());
        (self.phases.is_none(), words.collect())
    }
}

/// Narrows a list of webhooks and deliveries; what is not said narrows nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Of this account alone.
    pub account: Option<String>,
    /// Of this event alone, as its description names it.
    pub event: Option<String>,
    /// Of this call alone.
    pub call: Option<String>,
    /// Of calls of this business alone.
    pub business: Option<String>,
    /// Start of the period in which they came, inclusive.
    pub from_ms: Option<UnixMs>,
    /// End of the period in which they came, exclusive.
    pub before_ms: Option<UnixMs>,
    /// Webhooks that come after this one in the list, by its time and id.
    pub after: Option<Cursor>,
}

/// Before every place of a list that has the latest first.
pub(super) fn from_the_top(after: Option<Cursor>) -> Cursor {
    after.unwrap_or((UnixMs::MAX, String::new()))
}
