//! Terms and outcome of a job of a bulk run.

use http::StatusCode;
use tokio::sync::oneshot;

use crate::clock::UnixMs;
use crate::ids::{Alias, CallId};
use crate::net::{SendResult, retry_after_secs};
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
    /// The provider has the call: its end settles the job.
    Called(CallId),
    /// The outcome is unknown: the provider may have the call, whose end settles the job.
    Unknown {
        /// The call.
        call: CallId,
        /// The provider answered that it is unavailable, whoever is called.
        unavailable: Option<Unavailable>,
    },
    /// This attempt was made before, by any process: the call's end settles the job.
    Known(CallId),
    /// A limit is full. It left no trace.
    LimitExceeded(LimitExceeded),
    /// The provider's own limit is full.
    ProviderLimit {
        /// Seconds to wait.
        wait_secs: u32,
    },
    /// The job was not sent, or the provider takes no call of the account: its credentials are wrong, or it is not paid for.
    NotSent(String),
    /// This process was paused past the send deadline, so it was not sent: neither the provider's fault nor the lead's.
    Late,
    /// The job was rejected by its provider, or cannot be sent as it is.
    Rejected(String),
    /// No limiter can decide at present.
    Away(String),
}

/// The provider answered 503.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unavailable {
    /// Seconds to wait, if it says so.
    pub wait_secs: Option<u32>,
}

impl Unavailable {
    /// Returns the unavailability that the outcome of a request reports, if any.
    pub(super) fn of(result: &SendResult, now_ms: UnixMs) -> Option<Self> {
        match result {
            SendResult::Answered(answer) if answer.status() == StatusCode::SERVICE_UNAVAILABLE => {
                Some(Self { wait_secs: retry_after_secs(answer.headers(), now_ms) })
            }
            _ => None,
        }
    }
}

/// Whether an answer without a call is about the account, whoever is called: its credentials, or that it is not paid for.
pub(super) fn is_of_account(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::PAYMENT_REQUIRED)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Response;

    use super::*;

    #[test]
    fn an_unavailable_provider_says_how_long() {
        let answered = |status, header: Option<&str>| {
            let mut answer = Response::builder().status(status);
            if let Some(secs) = header {
                answer = answer.header("retry-after", secs);
            }
            Unavailable::of(&SendResult::Answered(answer.body(Bytes::new()).unwrap()), 0)
        };
        assert_eq!(answered(503, Some("7")), Some(Unavailable { wait_secs: Some(7) }));
        assert_eq!(answered(503, None), Some(Unavailable { wait_secs: None }));
        assert_eq!(answered(500, Some("7")), None, "it may be about this call alone");
    }
}
