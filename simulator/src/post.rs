//! The way out: webhooks and questions, in plain HTTP.

use crate::webhooks::Attempt;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::time::Duration;

/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Name look-up and TCP together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The time for which an unused connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The client.
pub(crate) struct Post(Client<HttpConnector, Full<Bytes>>);

impl Post {
    pub(crate) fn new() -> Post {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let mut builder = Client::builder(TokioExecutor::new());
        Post(builder.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE_TIMEOUT).build(connector))
    }

    /// One attempt: the answer, or what became of it.
    pub(crate) async fn send(&self, request: Request<Bytes>, timeout: Duration) -> Result<Response<Bytes>, Attempt> {
        if request.uri().authority().is_none() {
            return Err(Attempt::NotConnected);
        }
        let exchange = async {
            let sent = self.0.request(request.map(Full::new)).await;
            let sent = sent.map_err(|e| if e.is_connect() { Attempt::NotConnected } else { Attempt::NotAnswered })?;
            let (head, body) = sent.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|_| Attempt::NotAnswered)?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        tokio::time::timeout(timeout, exchange).await.unwrap_or(Err(Attempt::NotAnswered))
    }
}
