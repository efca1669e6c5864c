//! Through: a request streamed to an upstream and its answer streamed back, both at once.

use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

use super::body::{Feed, Outgoing};
use super::downstream::Downstream;
use super::exchange::{Exchange, response_head};
use super::headers::{forwarded, strip_hop_by_hop};
use super::tunnel;
use super::upstream::{Upstream, UpstreamError};

/// Where a request goes, and what is changed on the way.
#[derive(Debug, Clone)]
pub struct RelayTarget {
    /// `scheme://authority[/base/path]`; a base path is put before `path_and_query`.
    pub base: Uri,
    /// Path and query, as they should be on the wire; begins with `/`.
    pub path_and_query: String,
    /// Fields that replace any of their name; applied last.
    pub set_headers: Vec<(HeaderName, HeaderValue)>,
    /// Fields that are not passed on.
    pub remove_headers: Vec<HeaderName>,
    /// Which `Host` the upstream sees.
    pub host: HostRule,
}

/// Which `Host` the upstream sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostRule {
    /// The authority of the base address: what a provider's API expects.
    Upstream,
    /// What the client sent: for an application that builds links or checks signatures by it.
    Preserve,
}

/// A relay that answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relayed {
    /// The upstream's status; 101 after a tunnel.
    pub status: StatusCode,
    /// Body bytes sent to the client.
    pub response_bytes: u64,
    /// The answer (or the tunnel) came to its own end: neither side broke it off.
    pub complete: bool,
}

/// Why a relay has not answered. Nothing was written to the client: the caller answers.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RelayError {
    /// Proven: the upstream has not seen the request. A 502.
    #[error(transparent)]
    NotSent(UpstreamError),
    /// The upstream broke off or did not answer in time. A 502, or a 504 for [`UpstreamError::Timeout`].
    #[error(transparent)]
    Broken(UpstreamError),
    /// The client paused too long within its body. A 408.
    #[error("the request body took too long")]
    BodyTooSlow,
    /// The client's body is cut short or framed wrongly. A 400.
    #[error("the request body is broken")]
    BodyBroken,
    /// The client went away; there is nobody to answer.
    #[error("the client went away")]
    ClientGone,
    /// As many WebSocket tunnels are open as may be. A 503.
    #[error("too many open tunnels")]
    TooManyTunnels,
    /// Address and path do not make a request target. A 400 or a 500, by whose they are.
    #[error("cannot be relayed: {0}")]
    BadTarget(String),
    /// The exchange was answered before.
    #[error("already answered")]
    AlreadyAnswered,
}

impl From<UpstreamError> for RelayError {
    fn from(error: UpstreamError) -> Self {
        if error.not_sent() { RelayError::NotSent(error) } else { RelayError::Broken(error) }
    }
}

/// Streams a request through, untouched but for hop-by-hop and `X-Forwarded-*` fields and what `target` says: any size both
/// ways, events not delayed, both directions moving at once, WebSocket upgrades spliced (the call then lasts as long as the
/// tunnel). A client that goes away takes the upstream request with it.
///
/// If the body was read with [`Exchange::read_body`] before, it is sent whole.
///
/// # Errors
/// [`RelayError`], only while nothing was answered.
pub async fn relay(exchange: &mut Exchange, upstream: &Upstream, target: RelayTarget) -> Result<Relayed, RelayError> {
    if exchange.is_answered() {
        return Err(RelayError::AlreadyAnswered);
    }
    if exchange.is_upgrade() {
        let head = outgoing_head(exchange, &target)?;
        return tunnel::relay_upgrade(exchange, upstream, head).await;
    }
    if let Some(body) = exchange.body_read() {
        return relay_with_body(exchange, upstream, target, body).await;
    }
    let head = outgoing_head(exchange, &target)?;
    if exchange.body_is_done() {
        return stream(exchange, upstream, head.map(|()| Outgoing::whole(Bytes::new())), None).await;
    }
    let (feed, body) = Outgoing::stream(exchange.declared_length());
    exchange.send_continue().await;
    stream(exchange, upstream, head.map(|()| body), Some(feed)).await
}

/// As [`relay`], with a body that was read (and perhaps changed) before. Never upgrades.
///
/// # Errors
/// As [`relay`].
pub async fn relay_with_body(
    exchange: &mut Exchange,
    upstream: &Upstream,
    target: RelayTarget,
    body: Bytes,
) -> Result<Relayed, RelayError> {
    if exchange.is_answered() {
        return Err(RelayError::AlreadyAnswered);
    }
    let head = outgoing_head(exchange, &target)?;
    stream(exchange, upstream, head.map(|()| Outgoing::whole(body)), None).await
}

/// The request as the upstream shall see it, without a body and without framing (the body brings its own).
fn outgoing_head(exchange: &Exchange, target: &RelayTarget) -> Result<Request<()>, RelayError> {
    let uri = join(&target.base, &target.path_and_query)?;
    let mut headers = exchange.headers().clone();
    strip_hop_by_hop(&mut headers);
    for name in [header::HOST, header::CONTENT_LENGTH, header::EXPECT] {
        headers.remove(name);
    }
    forwarded(&mut headers, exchange.hop());
    let host = match target.host {
        HostRule::Upstream => None,
        HostRule::Preserve => exchange.host(),
    };
    // hyper adds the address's own authority when there is none.
    if let Some(Ok(host)) = host.map(HeaderValue::from_str) {
        headers.insert(header::HOST, host);
    }
    for name in &target.remove_headers {
        headers.remove(name);
    }
    for (name, value) in &target.set_headers {
        headers.insert(name, value.clone());
    }
    let mut request = Request::new(());
    *request.method_mut() = exchange.method().clone();
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Ok(request)
}

fn join(base: &Uri, path_and_query: &str) -> Result<Uri, RelayError> {
    let prefix = base.path().trim_end_matches('/');
    let target = PathAndQuery::try_from(format!("{prefix}{path_and_query}"));
    let mut parts = base.clone().into_parts();
    match target {
        Ok(target) if path_and_query.starts_with('/') => parts.path_and_query = Some(target),
        _ => {
            return Err(RelayError::BadTarget(format!("{path_and_query:?} is not a path")));
        }
    }
    Uri::from_parts(parts).map_err(|error| RelayError::BadTarget(format!("{base}: {error}")))
}

/// How the client's side of a relay ended.
enum ClientSide {
    TooSlow,
    Broken,
    Gone,
    UpstreamStalled,
    NoAnswer,
}

async fn stream(
    exchange: &mut Exchange,
    upstream: &Upstream,
    request: Request<Outgoing>,
    feed: Option<Feed>,
) -> Result<Relayed, RelayError> {
    let limits = Limits { pause: exchange.settings().body_timeout, answer: upstream.answer_timeout() };
    let stall = exchange.settings().write_timeout;
    let (version, method) = (exchange.version(), exchange.method().clone());
    let progress = Progress::default();
    let streamed = async {
        let downstream = Downstream::new(exchange.session().ok_or(RelayError::AlreadyAnswered)?);
        // Completes only with the reason why the client's side is over.
        let mut client = pin!(client_side(&downstream, feed, limits, &progress));
        let response = tokio::select! {
            biased;
            response = upstream.relay(request) => response?,
            side = &mut client => return Err(match side {
                ClientSide::TooSlow => RelayError::BodyTooSlow,
                ClientSide::Broken => RelayError::BodyBroken,
                ClientSide::Gone => RelayError::ClientGone,
                ClientSide::UpstreamStalled | ClientSide::NoAnswer => RelayError::Broken(UpstreamError::Timeout(limits.answer)),
            }),
        };
        progress.answered.store(true, Ordering::Relaxed);
        let status = response.status();
        Ok((status, answer(&downstream, response, version, &method, stall, client).await))
    };
    let streamed = streamed.await;
    if progress.body_lost.load(Ordering::Relaxed) {
        exchange.lose_body();
    }
    let (status, (sent, cut)) = streamed?;
    Ok(settle(exchange, status, sent, cut))
}

/// Passes on an answer whose request had no body, while watching the client.
pub(super) async fn stream_answer(
    exchange: &mut Exchange,
    response: Response<Incoming>,
) -> Result<Relayed, RelayError> {
    let stall = exchange.settings().write_timeout;
    let (version, method) = (exchange.version(), exchange.method().clone());
    let status = response.status();
    let (sent, cut) = {
        let downstream = Downstream::new(exchange.session().ok_or(RelayError::AlreadyAnswered)?);
        let client = pin!(async {
            downstream.gone().await;
            ClientSide::Gone
        });
        answer(&downstream, response, version, &method, stall, client).await
    };
    Ok(settle(exchange, status, sent, cut))
}

/// Writes the answer until it, or the client, is at its end. Returns the body bytes sent, and why it was cut if it was.
async fn answer(
    downstream: &Downstream<'_>,
    response: Response<Incoming>,
    version: Version,
    method: &Method,
    stall: Duration,
    mut client: Pin<&mut impl Future<Output = ClientSide>>,
) -> (u64, Option<String>) {
    let mut sent = 0;
    let cut = {
        let mut answer = pin!(answer_side(downstream, response, version, method, stall, &mut sent));
        let mut client_over = false;
        loop {
            tokio::select! {
                biased;
                done = &mut answer => break done.err(),
                side = &mut client, if !client_over => match side {
                    ClientSide::Gone => break Some("the client went away".to_owned()),
                    // The upstream answered without waiting for the body's end, so a body that stays away harms nobody.
                    _ => client_over = true,
                }
            }
        }
    };
    (sent, cut)
}

fn settle(exchange: &mut Exchange, status: StatusCode, response_bytes: u64, cut: Option<String>) -> Relayed {
    exchange.mark_answered();
    if let Some(why) = &cut {
        tracing::debug!(why, %status, "a relayed answer was cut");
        exchange.mark_torn();
    }
    Relayed { status, response_bytes, complete: cut.is_none() }
}

/// What the two sides of a relay, which are two futures of one task, tell each other.
#[derive(Default)]
struct Progress {
    answered: AtomicBool,
    body_lost: AtomicBool,
}

#[derive(Clone, Copy)]
struct Limits {
    /// The longest pause within a client's body.
    pause: Duration,
    /// The longest wait for an upstream: to take a piece of the body, or to begin its answer.
    answer: Duration,
}

/// Passes the body on, then watches the client. When the upstream stops reading, the rest is read and dropped, or a client
/// that writes all before it reads would never come to the answer.
async fn client_side(
    downstream: &Downstream<'_>,
    mut feed: Option<Feed>,
    limits: Limits,
    progress: &Progress,
) -> ClientSide {
    let mut discarding = false;
    while feed.is_some() || discarding {
        let chunk = match tokio::time::timeout(limits.pause, downstream.read()).await {
            Err(_) => return ClientSide::TooSlow,
            Ok(Err(_)) => {
                progress.body_lost.store(true, Ordering::Relaxed);
                return ClientSide::Broken;
            }
            Ok(Ok(chunk)) => chunk,
        };
        match (chunk, feed.take()) {
            (None, None) => discarding = false,
            (None, Some(feed)) => match tokio::time::timeout(limits.answer, feed.end()).await {
                Ok(()) => discarding = false,
                Err(_) => return ClientSide::UpstreamStalled,
            },
            (Some(_), None) => {}
            (Some(chunk), Some(open)) => match tokio::time::timeout(limits.answer, open.chunk(chunk)).await {
                Ok(true) => feed = Some(open),
                Ok(false) => discarding = true,
                Err(_) => return ClientSide::UpstreamStalled,
            },
        }
    }
    if tokio::time::timeout(limits.answer, downstream.gone()).await.is_err() {
        if !progress.answered.load(Ordering::Relaxed) {
            return ClientSide::NoAnswer;
        }
        downstream.gone().await;
    }
    ClientSide::Gone
}

/// Writes the upstream's answer. The error says who broke it off.
async fn answer_side(
    downstream: &Downstream<'_>,
    response: Response<Incoming>,
    version: Version,
    method: &Method,
    stall: Duration,
    sent: &mut u64,
) -> Result<(), String> {
    let (parts, mut body) = response.into_parts();
    let bodiless = method == Method::HEAD || matches!(parts.status.as_u16(), 204 | 304);
    let ended = bodiless || body.is_end_stream();
    // What HEAD and 304 say about a body they do not have is the upstream's to say.
    let length = if bodiless { None } else { body.size_hint().exact() };
    let mut head = response_head(parts, length).map_err(|error| error.to_string())?;
    if length.is_none() && !bodiless && version == Version::HTTP_11 {
        // Of unknown length: chunked for HTTP/1.1, until the connection's end for HTTP/1.0, by itself on HTTP/2.
        head.insert_header(header::TRANSFER_ENCODING, "chunked").map_err(|error| error.to_string())?;
    }
    let client = |error: Box<pingora::Error>| format!("the client: {error}");
    let mut writer = downstream.head(head, ended, stall).await.map_err(client)?;
    if ended {
        return Ok(());
    }
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("the upstream: {error}"))?;
        // Trailers end here: HTTP/1 clients would not get them from pingora either.
        if let Ok(chunk) = frame.into_data() {
            let length = chunk.len() as u64;
            downstream.chunk(&mut writer, chunk).await.map_err(client)?;
            *sent += length;
        }
    }
    downstream.end(writer).await.map_err(client)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_put_behind_the_base() {
        for (base, path, whole) in [
            ("https://api.example", "/v1/x?y=%20", "https://api.example/v1/x?y=%20"),
            ("https://api.example/", "/v1", "https://api.example/v1"),
            ("http://api.example:81/base/", "/v1", "http://api.example:81/base/v1"),
        ] {
            assert_eq!(join(&Uri::from_static(base), path).unwrap().to_string(), whole);
        }
        assert!(join(&Uri::from_static("http://a"), "@evil/").is_err());
    }
}
