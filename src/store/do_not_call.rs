//! Do-not-call lists: one for everybody, and one for each business that has its own.

use async_trait::async_trait;

use super::Result;
use crate::clock::UnixMs;

/// The list that holds for everybody.
pub const EVERYBODY: &str = "";
/// Numbers that one write puts or takes off at most: others get their turn in between.
pub const NUMBERS_AT_ONCE: usize = 1_000;

/// A number of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedNumber {
    /// The digits of its E.164 form.
    pub number: u64,
    /// Why it is there, as whoever put it said.
    pub reason: Option<String>,
    /// When it was put.
    pub at: UnixMs,
    /// Its place in the list: the number of the change that put it.
    pub change: i64,
}

/// A change of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListChange {
    /// The business whose list it is; [`EVERYBODY`]'s is empty.
    pub list: String,
    /// The digits of the number's E.164 form.
    pub number: u64,
    /// It is in the list from now on; or it is not any more.
    pub listed: bool,
}

/// What changed since a change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListChanges {
    /// In their order; of a number that changed twice the last change alone.
    pub changes: Vec<ListChange>,
    /// The change up to which all are among them.
    pub until: i64,
    /// There may be more after it.
    pub more: bool,
}

/// The part of a [`super::Store`] that keeps do-not-call lists.
#[async_trait]
pub trait DoNotCallLists: Send + Sync {
    /// Puts numbers into a list; at most [`NUMBERS_AT_ONCE`], none of them twice. How many were not in it. One that is there stays as it is.
    async fn put_do_not_call(
        &self,
        list: &str,
        numbers: Vec<u64>,
        reason: Option<String>,
        at_ms: UnixMs,
    ) -> Result<u64>;

    /// Takes numbers off a list; at most [`NUMBERS_AT_ONCE`]. How many were in it.
    async fn delete_do_not_call(&self, list: &str, numbers: Vec<u64>, at_ms: UnixMs) -> Result<u64>;

    /// Numbers of a list that were put after a change, in that order.
    async fn do_not_call(&self, list: &str, after_change: i64, limit: u32) -> Result<Vec<ListedNumber>>;

    /// A number of a list.
    async fn do_not_call_number(&self, list: &str, number: u64) -> Result<Option<ListedNumber>>;

    /// What changed in all lists after a change, at most `limit` of it.
    async fn do_not_call_changes(&self, after_change: i64, limit: u32) -> Result<ListChanges>;
}
