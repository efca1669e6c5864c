//! Streamed answers, read piece by piece.

use std::path::Path;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;

use super::body::Outgoing;
use super::fetch_local::send_local;
use super::upstream::{Upstream, UpstreamError};

/// The body of a streamed answer.
pub struct Following(UnsyncBoxBody<Bytes, String>);

impl Following {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            match self.0.frame().await {
                None => return Ok(None),
                Some(Err(why)) => return Err(why),
                Some(Ok(frame)) => {
                    if let Ok(piece) = frame.into_data() {
                        return Ok(Some(piece));
                    }
                }
            }
        }
    }
}

impl Upstream {
    /// Sends a request and returns with the head of its answer.
    ///
    /// # Errors
    /// [`UpstreamError`]; any status is an answer.
    pub async fn follow(&self, request: Request<Bytes>) -> Result<Response<Following>, UpstreamError> {
        let answer = self.relay(&mut Some(request.map(Outgoing::complete))).await?;
        Ok(answer.map(|body| Following(body.map_err(|error| error.to_string()).boxed_unsync())))
    }
}

/// Follows a stream of events over a Unix socket.
///
/// # Errors
/// [`UpstreamError`]; any status is an answer.
pub async fn follow_local(socket: &Path, request: Request<Bytes>) -> Result<Response<Following>, UpstreamError> {
    let answer = send_local(socket, request).await?;
    Ok(answer.map(|body| Following(body.map_err(|error| error.to_string()).boxed_unsync())))
}
