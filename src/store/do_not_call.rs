//! Do-not-call lists: a global one, and one for each business that has its own.

use async_trait::async_trait;

use super::Result;
use crate::clock::UnixMs;

/// The global list.
pub const EVERYBODY: &str = "";
/// Numbers that one write adds or removes at most, so that other writes get their turn.
pub const NUMBERS_AT_ONCE: usize = 1_000;

/// A number of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedNumber {
    /// The digits of its E.164 form.
    pub number: u64,
    /// The reason that was given for it.
    pub reason: Option<String>,
    /// The time at which it was added.
    pub at: UnixMs,
    /// The number's position in the list: the number of the change that added it.
    pub change: i64,
}

/// A change of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListChange {
    /// The business whose list it is; empty for [`EVERYBODY`].
    pub list: String,
    /// The digits of the number's E.164 form.
    pub number: u64,
    /// Whether it was added or removed.
    pub listed: bool,
}

/// Changes after a given one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListChanges {
    /// In order; for a number that changed twice only the last change.
    pub changes: Vec<ListChange>,
    /// The number of the last change that is included.
    pub until: i64,
    /// There may be more after it.
    pub more: bool,
}

/// The part of a [`super::Store`] that stores do-not-call lists.
#[async_trait]
pub trait DoNotCallLists: Send + Sync {
    /// Adds numbers to a list; at most [`NUMBERS_AT_ONCE`], all different. Returns how many are new. Present ones stay unchanged.
    async fn put_do_not_call(
        &self,
        list: &str,
        numbers: Vec<u64>,
        reason: Option<String>,
        at_ms: UnixMs,
    ) -> Result<u64>;

    /// Removes numbers from a list; at most [`NUMBERS_AT_ONCE`]. Returns how many were in it.
    async fn delete_do_not_call(&self, list: &str, numbers: Vec<u64>, at_ms: UnixMs) -> Result<u64>;

    /// Numbers of a list that were added after a change, in that order.
    async fn do_not_call(&self, list: &str, after_change: i64, limit: u32) -> Result<Vec<ListedNumber>>;

    /// A number of a list.
    async fn do_not_call_number(&self, list: &str, number: u64) -> Result<Option<ListedNumber>>;

    /// Changes of all lists after a given one, at most `limit`.
    async fn do_not_call_changes(&self, after_change: i64, limit: u32) -> Result<ListChanges>;
}
