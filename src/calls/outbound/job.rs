//! On what terms a job of a bulk run is placed, and what becomes of it.

use tokio::sync::oneshot;

use crate::admission::LimitExceeded;
use crate::ids::{Alias, CallId};
use crate::policy::{Binding, Bound};

/// On what terms a job is placed.
pub struct JobTerms {
    /// The name of this try.
    pub alias: Alias,
    /// Slots that each limit of concurrent calls keeps free of bulk calls.
    pub reserve: u32,
    /// Limits of the run's own.
    pub bindings: Vec<Binding>,
    /// Told of the call as soon as it is admitted and on record.
    pub admitted: oneshot::Sender<CallId>,
}

/// What became of a job.
#[derive(Debug)]
pub enum JobPlaced {
    /// Its provider has it, or nobody knows whether it has: its call's end settles it.
    Called(CallId),
    /// This try was made before, by whomever: its call's end settles it.
    Known(CallId),
    /// A limit is full. Without a trace.
    LimitExceeded(LimitExceeded),
    /// Its provider takes no more calls just now.
    ProviderLimit {
        /// Seconds to wait.
        wait_secs: u32,
    },
    /// It was not sent.
    NotSent(String),
    /// Its provider rejected it.
    Rejected(String),
    /// Nobody can admit just now.
    Away(String),
}

/// Keeps slots free of bulk calls.
pub fn reserve(bindings: &mut [Binding], slots: u32) {
    for binding in bindings {
        if let Bound::Concurrent(n) = &mut binding.bound {
            *n = n.saturating_sub(slots);
        }
    }
}
