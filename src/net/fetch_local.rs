//! The client of a Unix socket.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::body::{Outgoing, Unread, collect};
use super::upstream::UpstreamError;

/// Sends a request over a Unix socket, and reads the answer within `timeout`, at most `answer_limit` bytes of body.
///
/// # Errors
/// [`UpstreamError`]; any status is an answer.
pub async fn fetch_local(
    socket: &Path,
    request: Request<Bytes>,
    answer_limit: usize,
    timeout: Duration,
) -> Result<Response<Bytes>, UpstreamError> {
    let exchange = async {
        let (head, body) = send_local(socket, request).await?.into_parts();
        match collect(body, answer_limit).await {
            Ok(body) => Ok(Response::from_parts(head, body)),
            Err(Unread::TooLarge) => Err(UpstreamError::TooLarge { limit: answer_limit }),
            Err(Unread::Broken(why)) => Err(UpstreamError::Broken(why)),
        }
    };
    tokio::time::timeout(timeout, exchange).await.unwrap_or(Err(UpstreamError::Timeout(timeout)))
}

/// Connects to a Unix socket and sends a request, its target reduced to path and query.
pub(super) async fn send_local(
    socket: &Path,
    mut request: Request<Bytes>,
) -> Result<Response<Incoming>, UpstreamError> {
    let broken = |error: hyper::Error| UpstreamError::Broken(error.to_string());
    if let Some(target) = request.uri().path_and_query().cloned() {
        *request.uri_mut() = target.into();
    }
    request.headers_mut().entry(header::HOST).or_insert(HeaderValue::from_static("localhost"));
    let stream = UnixStream::connect(socket).await.map_err(|error| UpstreamError::Connect(error.to_string()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    tokio::spawn(connection);
    sender.send_request(request.map(Outgoing::complete)).await.map_err(broken)
}
