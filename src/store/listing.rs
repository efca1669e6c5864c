//! What lists of calls, refusals and webhooks are narrowed to, before they are cut to their length.

use super::Cursor;
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
    /// Refusals with this code alone.
    pub code: Option<String>,
    /// That began, or came, at this time or later.
    pub from_ms: Option<UnixMs>,
    /// That began, or came, before this time.
    pub before_ms: Option<UnixMs>,
    /// That come after this one in the list, by its time and id.
    pub after: Option<Cursor>,
}

impl ListFilter {
    /// Of the phases, as the database has them; whether all will do comes first.
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
    /// That came at this time or later.
    pub from_ms: Option<UnixMs>,
    /// That came before this time.
    pub before_ms: Option<UnixMs>,
    /// Webhooks that come after this one in the list, by its time and id.
    pub after: Option<Cursor>,
}

/// Before every place of a list that has the latest first.
pub(super) fn from_the_top(after: Option<Cursor>) -> Cursor {
    after.unwrap_or((UnixMs::MAX, String::new()))
}
