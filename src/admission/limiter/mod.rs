//! The limiter: admits or rejects a call over all limits that bind it, in one atomic step.
//!
//! # The contract, which every back end keeps
//!
//! * A lease is a holder (the call's id) in the sets of all concurrency limits that bind the call. There are no counters.
//! * A call holds one slot in each set. A batch is one holder with several: it is granted as many as are free in all sets, at
//!   most those it wants, or is rejected if that is less than it needs.
//! * [`Gate::admit`] takes a slot in every set and a token of every rate, or nothing of any: a rejection leaves no trace. It is
//!   idempotent by call id.
//! * A lease ends by [`Gate::release`] only: not by time, and not by dropping a value. Its caller has first committed the end of
//!   the call record.
//! * A token of a rate is not returned: the request was sent.
//! * [`Gate::adopt`] is the only operation that may exceed a limit. It is for calls that exist already.
//! * In observe mode the decision has what would have rejected the call, and admits it.
//! * Every operation names an epoch. A limiter that was not filled for it ([`Gate::rebuild`]) decides nothing.
//!
//! A rejection is final. An admission counts once the call is recorded under the same epoch: see [`crate::admission`].

pub mod memory;
pub mod redis;

use std::time::Instant;

use async_trait::async_trait;

use crate::ids::CallId;
use crate::policy::decision::{AdmissionRequest, Counts, Decision, LeaseRow, RateLog};
use crate::provider::secret::Secret;

/// The limiter did not decide. The memory limiter fails only for an epoch that is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// No answer. Unless it was known to be unavailable before, the operation may have happened, or may still happen.
    #[error("the limiter does not answer: {0}")]
    Away(String),
    /// The limiter is filled for this other epoch. Nothing was done.
    #[error("the limiter is at epoch {0}")]
    Epoch(i64),
    /// The limiter was never filled for the epoch, or has lost data. Nothing was done.
    #[error("the limiter needs a rebuild: {0}")]
    Unfilled(String),
}

/// A result of a limiter.
pub type Result<T> = std::result::Result<T, GateError>;

/// Called with each message of a [`Channel`].
pub type OnMessage = Box<dyn FnMut(&str) + Send>;

/// A channel between replicas that share a limiter, at-most-once. Nothing relies on it: the store has what a message missed.
#[async_trait]
pub trait Channel: Send + Sync + 'static {
    /// Publishes messages to all subscribers, including this process.
    async fn publish(&self, words: &[String]) -> Result<()>;

    /// Subscribes. Returns the reason why the subscription ended; also after 10 s without a message.
    async fn subscribe(&self, on_message: OnMessage) -> GateError;
}

/// A limiter; the contract is the module's.
#[async_trait]
pub trait Gate: Send + Sync + 'static {
    /// Admits or rejects a call, as [`decide`](crate::policy::decision::decide) does, by the limiter's clock, and takes what it
    /// grants. A call that holds a lease already is admitted with its slots; one that was [forbidden](Self::forbid) is not decided.
    ///
    /// # Errors
    /// After [`GateError::Away`] a lease may have been taken nevertheless. All other functions may be repeated after an error.
    async fn admit(&self, epoch: i64, request: &AdmissionRequest) -> Result<Decision>;

    /// Counts a call that exists already, over limits if necessary, in place of what it held.
    async fn adopt(&self, epoch: i64, held: &LeaseRow) -> Result<()>;

    /// Releases the slots of a call whose end is recorded. `true` if it held any.
    async fn release(&self, epoch: i64, call: &CallId) -> Result<bool>;

    /// Releases what a call may hold whose admission got no answer, and rejects that admission for a while, should it still arrive.
    async fn forbid(&self, epoch: i64, call: &CallId) -> Result<()>;

    /// Starts a new epoch with these leases and rate logs, and nothing else.
    async fn rebuild(&self, epoch: i64, held: &[LeaseRow], rates: &[(String, RateLog)]) -> Result<()>;

    /// Held slots; where there are very many limits, not from one moment.
    async fn counts(&self, epoch: i64) -> Result<Counts>;

    /// All leases, in no order, to be compared with the call records. One that begins or ends meanwhile may be missing.
    async fn held(&self, epoch: i64) -> Result<Vec<LeaseRow>>;

    /// Uses the user and the password of this URL for new connections.
    fn renew_credential(&self, _url: &Secret) {}

    /// Since when it is unavailable, and why; `None` while it is available.
    fn away(&self) -> Option<(Instant, String)> {
        None
    }
}
