//! The gate proposes: it admits a call or refuses it, over all limits that bind it, in one atomic step.
//!
//! # The contract, which every back end keeps
//!
//! * A lease is a holder id (the call's) in the sets of all concurrent limits that bind the call. There are no counters.
//! * A call holds one place in each set. An order for many calls (a batch) is one holder with several: it is granted as many as
//!   are free in all of them, at most those it wants, or refused if that is less than it takes.
//! * [`Gate::admit`] takes a place in every set and a token of every rate, or nothing of any: a refusal leaves no trace.
//!   It is idempotent by call id.
//! * A lease ends by [`Gate::release`] and by nothing else, above all not by time and not by dropping a value. Whoever calls
//!   it has first committed the end of the call's record.
//! * A token of a rate is not given back: the request was sent.
//! * [`Gate::adopt`] is the only operation that may go over a limit. It is for calls that exist anyway.
//! * In observe mode the decision says what would have been refused, and the call is admitted.
//! * Everything is asked under an epoch. A gate that was not filled for it ([`Gate::rebuild`]) decides nothing.
//!
//! A gate's no is final. Its yes counts once the call is on record under the same epoch: see [`crate::capacity`].

pub mod memory;
pub mod redis;

use std::time::Instant;

use async_trait::async_trait;

use crate::admission::{AdmissionRequest, Counts, Decision, LeaseRow, RateLog};
use crate::ids::CallId;

/// The gate did not decide. Never of the memory gate, but for an epoch that is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// No answer. Unless it was known to be away before, what was asked may have happened, or may happen yet.
    #[error("the gate does not answer: {0}")]
    Away(String),
    /// It is filled for this epoch instead. Nothing was done.
    #[error("the gate is at epoch {0}")]
    Epoch(i64),
    /// It was never filled for the epoch, or has lost some of it. Nothing was done.
    #[error("the gate has to be filled anew: {0}")]
    Unfilled(String),
}

/// What a gate answers.
pub type Result<T> = std::result::Result<T, GateError>;

/// Told of each word that is said on a [`Channel`].
pub type Hear = Box<dyn FnMut(&str) + Send>;

/// Where replicas that share a gate tell each other of what is new, at most once. Nothing relies on it; whoever missed something
/// finds it on record.
#[async_trait]
pub trait Channel: Send + Sync + 'static {
    /// Says words to everybody who listens, this process as well.
    async fn say(&self, words: &[String]) -> Result<()>;

    /// Hears what anybody says from now on. Returns why it hears nothing any more; also if nothing was said for 10 s.
    async fn listen(&self, hear: Hear) -> GateError;
}

/// See the module's contract.
#[async_trait]
pub trait Gate: Send + Sync + 'static {
    /// Admits a call or refuses it.
    async fn admit(&self, epoch: i64, order: &AdmissionRequest) -> Result<Decision>;

    /// Counts a call that exists anyway, over limits if need be, in place of whatever it held.
    async fn adopt(&self, epoch: i64, held: &LeaseRow) -> Result<()>;

    /// Frees the slots of a call whose end is on record. `true` if it held any.
    async fn release(&self, epoch: i64, call: &CallId) -> Result<bool>;

    /// Frees what a call may hold whose admission got no answer, and refuses it if it comes to be decided yet.
    async fn forbid(&self, epoch: i64, call: &CallId) -> Result<()>;

    /// Takes up a new epoch: these leases and what these rates have let through, and nothing else.
    async fn rebuild(&self, epoch: i64, held: &[LeaseRow], rates: &[(String, RateLog)]) -> Result<()>;

    /// How much is held.
    async fn counts(&self, epoch: i64) -> Result<Counts>;

    /// What is held by whom, in no order: to be compared with the record.
    async fn held(&self, epoch: i64) -> Result<Vec<LeaseRow>>;

    /// Since when it is away, and why; `None` while it answers.
    fn away(&self) -> Option<(Instant, String)> {
        None
    }
}
