//! The outcome of a relay: an answer, or why there is none.

use http::StatusCode;

use super::upstream::UpstreamError;

/// An answered relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relayed {
    /// The upstream's status; 101 after a tunnel.
    pub status: StatusCode,
    /// Bytes of body sent to the client.
    pub response_bytes: u64,
    /// Whether the answer (or the tunnel) ended regularly.
    pub complete: bool,
}

/// The reason why a relay has no answer. Nothing was written to the client; the caller answers.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RelayError {
    /// The upstream has certainly not received the request: 502.
    #[error(transparent)]
    NotSent(UpstreamError),
    /// The upstream broke the connection or did not answer in time: 502, or 504 for [`UpstreamError::Timeout`].
    #[error(transparent)]
    Broken(UpstreamError),
    /// The client paused too long within its body: 400, because clients retry after 408, and the upstream has a part already.
    #[error("the request body took too long")]
    BodyTooSlow,
    /// The client's body is truncated or malformed: 400.
    #[error("the request body is broken")]
    BodyBroken,
    /// The client went away.
    #[error("the client went away")]
    ClientGone,
    /// The answer redirects to this host, which belongs to the upstream and is not behind this proxy. It was not passed on.
    #[error("the redirect to {0} would bypass ringfence")]
    LeadsPast(String),
    /// The maximum number of WebSocket tunnels is open: 503.
    #[error("too many open tunnels")]
    TooManyTunnels,
    /// Address and path are not a valid request target: 400 or 500, depending on whose they are.
    #[error("cannot be relayed: {0}")]
    BadTarget(String),
    /// The exchange was answered before.
    #[error("already answered")]
    AlreadyAnswered,
}

impl RelayError {
    /// Whether the client caused it: 400.
    pub fn is_clients(&self) -> bool {
        matches!(
            self,
            RelayError::BodyTooSlow | RelayError::BodyBroken | RelayError::ClientGone | RelayError::BadTarget(_)
        )
    }
}

impl From<UpstreamError> for RelayError {
    fn from(error: UpstreamError) -> Self {
        if error.not_sent() { RelayError::NotSent(error) } else { RelayError::Broken(error) }
    }
}
