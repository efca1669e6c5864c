//! Terms and outcome of a job of a bulk run.

use tokio::sync::oneshot;

use crate::ids::{Alias, CallId};
use crate::policy::Binding;
use crate::policy::decision::LimitExceeded;

/// Terms of a job.
pub struct JobTerms {
    /// The alias of this attempt.
    pub alias: Alias,
    /// Slots that each concurrency limit keeps free of bulk calls.
    pub reserve: u32,
    /// The run's own limits.
    pub bindings: Vec<Binding>,
    /// Receives the call as soon as it is admitted and recorded.
    pub admitted: oneshot::Sender<CallId>,
}

/// The outcome of a job.
#[derive(Debug)]
pub enum JobPlaced {
    /// The provider has the call, or its outcome is unknown: the call's end settles the job.
    Called(CallId),
    /// This attempt was made before, by any process: the call's end settles the job.
    Known(CallId),
    /// A limit is full. It left no trace.
    LimitExceeded(LimitExceeded),
    /// The provider's own limit is full.
    ProviderLimit {
        /// Seconds to wait.
        wait_secs: u32,
    },
    /// It was not sent.
    NotSent(String),
    /// Its provider rejected it, or it cannot be sent as it is.
    Rejected(String),
    /// No limiter can decide at present.
    Away(String),
}
