//! One HTTP request being answered by the server.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri, Version, header};
use http_body_util::{BodyExt as _, Collected};
use hyper::body::{Body as _, Incoming};
use hyper::upgrade::OnUpgrade;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::body::Gathered;
use super::connection::Connection;
use super::connection_slots::PeerKey;
use super::edge::Shared;
use super::headers::{Hop, client_address, drop_fields, forwarded, has};
use super::local::Peer;
use super::progress::Progress;
use super::reply::{DeliverySignal, ReplyBody, response_head};
use super::room::BodyShare;
use super::settings::EdgeSettings;
use super::wire::Wire;

/// One HTTP request being answered by the server (HTTP/1.1 or HTTP/2).
///
/// The head is there from the start. The body is read with [`read_body`](Self::read_body) or streamed by
/// [`relay`](super::relay()); the answer is given once, by [`respond`](Self::respond) or a relay.
pub struct Exchange {
    head: Parts,
    /// The unread body; `None` once it is being streamed.
    incoming: Option<Incoming>,
    /// The channel for the answer; `None` once it was given.
    reply: Option<oneshot::Sender<Response<ReplyBody>>>,
    connection: Arc<Connection>,
    link: Link,
    /// Counts the request as in flight until it is answered or becomes a tunnel.
    in_flight: Option<TaskTrackerToken>,
    body: Option<Bytes>,
    /// The body's share of the memory for bodies.
    body_room: Option<BodyShare>,
    progress: Arc<Progress>,
}

/// Attributes of the connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConnectionInfo {
    pub(super) peer: Peer,
    pub(super) tls: bool,
}

/// A request's handle to its connection.
#[derive(Debug, Clone)]
pub(super) enum Link {
    /// HTTP/1: the whole connection.
    Http1(Arc<Wire>),
    /// HTTP/2: the stream, which ends when this is cancelled.
    Http2(CancellationToken),
}

/// The reason why a body could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Longer than the caller's limit: 413.
    #[error("the body is longer than {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// No memory for bodies is left, or none of this peer's share: 503, to be retried.
    #[error("too many bodies at once")]
    NoRoom,
    /// Not complete within the server's body timeout: 408.
    #[error("the body took too long")]
    Timeout,
    /// Truncated or malformed: 400, if the client is still there.
    #[error("the body is broken")]
    Broken,
}

impl Exchange {
    pub(super) fn new(
        request: http::Request<Incoming>,
        reply: oneshot::Sender<Response<ReplyBody>>,
        connection: Arc<Connection>,
        link: Link,
    ) -> Self {
        let in_flight = Some(connection.shared.in_flight.token());
        let (mut head, incoming) = request.into_parts();
        if let Some(uri) = with_path(&head.uri) {
            head.uri = uri;
        }
        let progress = Progress::default();
        if incoming.is_end_stream() {
            progress.body_done.set();
        }
        Exchange {
            head,
            incoming: Some(incoming),
            reply: Some(reply),
            connection,
            link,
            in_flight,
            body: None,
            body_room: None,
            progress: Arc::new(progress),
        }
    }

    /// The method.
    pub fn method(&self) -> &Method {
        &self.head.method
    }

    /// The path only, as sent: nothing is decoded.
    pub fn path(&self) -> &str {
        self.head.uri.path()
    }

    /// The query as sent, without `?`.
    pub fn query(&self) -> Option<&str> {
        self.head.uri.query()
    }

    /// Path and query of the target. The clone shares the request's memory.
    pub fn target(&self) -> PathAndQuery {
        self.head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"))
    }

    /// Path and query exactly as sent, which is what signatures cover (without scheme and authority of an absolute-form
    /// target). Targets that parsers read differently were rejected before.
    pub fn path_and_query(&self) -> &str {
        self.head.uri.path_and_query().map_or("/", |target| target.as_str())
    }

    /// `Host` or `:authority`, with the port if one was sent.
    pub fn host(&self) -> Option<&str> {
        let host = self.head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        host.or_else(|| self.head.uri.authority().map(|authority| authority.as_str()))
    }

    /// All header fields, including hop-by-hop ones.
    pub fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    /// Removes header fields from the request.
    pub fn drop_headers(&mut self, unwanted: impl Fn(&HeaderName) -> bool) {
        drop_fields(&mut self.head.headers, unwanted);
    }

    /// The fields to forward: `X-Forwarded-*` as seen here, continued from a trusted peer.
    pub fn forwarded_headers(&self) -> HeaderMap {
        let mut headers = self.headers().clone();
        forwarded(&mut headers, self.hop());
        headers
    }

    /// The first value of a field, if it is UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name).and_then(|value| std::str::from_utf8(value.as_bytes()).ok())
    }

    /// The peer of the connection; not necessarily the client (see [`TrustedPeers`](super::TrustedPeers)).
    pub fn peer(&self) -> Peer {
        self.connection.info.peer
    }

    /// The client: the peer, or the one that a trusted peer forwards. `None`: over the Unix socket, or only trusted peers.
    pub fn client_address(&self) -> Option<IpAddr> {
        let trusted = &self.connection.shared.settings.trusted_peers;
        self.peer().addr().and_then(|peer| client_address(self.headers(), peer.ip(), trusted))
    }

    /// Whether the connection speaks TLS.
    pub fn is_tls(&self) -> bool {
        self.connection.info.tls
    }

    /// Whether it is a WebSocket upgrade (RFC 6455 §4.1): HTTP/1.1 GET without a body, `Upgrade: websocket`, `Connection: upgrade`.
    pub fn is_upgrade(&self) -> bool {
        let head = &self.head;
        head.version == Version::HTTP_11
            && head.method == Method::GET
            && has(&head.headers, header::UPGRADE, "websocket")
            && has(&head.headers, header::CONNECTION, "upgrade")
            && !head.headers.contains_key(header::TRANSFER_ENCODING)
            && head.headers.get(header::CONTENT_LENGTH).is_none_or(|length| length == "0")
    }

    /// Reads the body: at most `limit` bytes, within the server's `body_timeout`. Sends `100 Continue` if requested.
    /// Later calls return the same bytes.
    ///
    /// # Errors
    /// [`BodyError`]; an answer may still be given, after which the connection closes.
    pub async fn read_body(&mut self, limit: usize) -> Result<Bytes, BodyError> {
        if let Some(body) = &self.body {
            return if body.len() > limit { Err(BodyError::TooLarge { limit }) } else { Ok(body.clone()) };
        }
        if self.declared_length().is_some_and(|length| length > limit as u64) {
            return Err(BodyError::TooLarge { limit });
        }
        if self.progress.body_begun.is_set() {
            // An earlier read was abandoned half-way: the rest must not look like the whole body.
            return Err(BodyError::Broken);
        }
        self.progress.body_begun.set();
        let deadline = self.connection.shared.settings.body_timeout;
        let client = self.client_address().map(PeerKey::of);
        let room = self.body_room.insert(self.connection.shared.body_room.body(client));
        let Some(incoming) = &mut self.incoming else {
            return Err(BodyError::Broken);
        };
        let read = async {
            let mut body = Gathered::default();
            while let Some(frame) = incoming.frame().await {
                let Ok(chunk) = frame.map_err(|_| BodyError::Broken)?.into_data() else { continue };
                if body.len() + chunk.len() > limit {
                    return Err(BodyError::TooLarge { limit });
                }
                room.grow(chunk.len()).await.map_err(|_| BodyError::NoRoom)?;
                body.push(chunk).map_err(|_| BodyError::NoRoom)?;
            }
            body.complete().map_err(|_| BodyError::NoRoom)
        };
        // A body that has arrived with the head needs no timer.
        let read = tokio::time::timeout(deadline, read).await;
        match read.unwrap_or(Err(BodyError::Timeout)) {
            Ok(body) => {
                self.progress.body_done.set();
                self.body = Some(body.clone());
                Ok(body)
            }
            Err(error) => {
                self.progress.body_lost.set();
                self.body_room = None;
                Err(error)
            }
        }
    }

    /// Reads the next piece of the body, for bodies that are not held in memory; `None` at its end. Each must arrive within `body_timeout`.
    ///
    /// # Errors
    /// [`BodyError`]; an answer may still be given, after which the connection closes.
    pub async fn next_piece(&mut self) -> Result<Option<Bytes>, BodyError> {
        self.progress.body_begun.set();
        let deadline = self.shared().settings.body_timeout;
        let Some(incoming) = &mut self.incoming else { return Err(BodyError::Broken) };
        loop {
            match tokio::time::timeout(deadline, incoming.frame()).await {
                Ok(None) => {
                    self.progress.body_done.set();
                    return Ok(None);
                }
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(piece) => return Ok(Some(piece)),
                    Err(_) => continue,
                },
                Ok(Some(Err(_))) => {
                    self.progress.body_lost.set();
                    return Err(BodyError::Broken);
                }
                Err(_) => {
                    self.progress.body_lost.set();
                    return Err(BodyError::Timeout);
                }
            }
        }
    }

    /// Answers. Sets `Content-Length`; drops hop-by-hop fields. If the body was not read completely, the connection closes
    /// afterwards (RFC 9112 §9.3). Failing to write is logged at debug, never returned: the client is gone. A second answer
    /// is ignored.
    pub async fn respond(&mut self, response: Response<Bytes>) {
        if self.is_answered() {
            return tracing::debug!("second answer to a request ignored");
        }
        let bodiless = self.head.method == Method::HEAD || matches!(response.status().as_u16(), 204 | 304);
        let (mut head, body) = response.into_parts();
        response_head(&mut head, Some(body.len() as u64));
        let body = if bodiless { Bytes::new() } else { body };
        let delivered =
            self.send_response(head, |delivery, progress| ReplyBody::complete(body, progress, Some(delivery)));
        if self.wait_delivered(delivered).await {
            self.progress.torn.clear();
        } else {
            tracing::debug!(peer = %self.peer(), "failed to write a response");
        }
        self.in_flight = None;
    }

    /// Answers with a streamed body, until the sender of the pieces is dropped or the client goes away.
    pub async fn respond_live(&mut self, response: Response<()>, pieces: mpsc::Receiver<Bytes>) {
        if self.is_answered() {
            return tracing::debug!("second answer to a request ignored");
        }
        let (mut head, ()) = response.into_parts();
        response_head(&mut head, None);
        let delivered = self.send_response(head, |delivery, progress| ReplyBody::live(pieces, progress, delivery));
        let wire = self.wire().cloned();
        let client_gone = async {
            match &wire {
                Some(wire) => wire.gone().await,
                // HTTP/2: the dropped answer reports it.
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            complete = self.wait_delivered(delivered) => if complete { self.progress.torn.clear() },
            () = client_gone => self.cut(),
        }
        self.in_flight = None;
    }

    /// Hands the answer to the connection; the receiver reports when it was written.
    pub(super) fn send_response(
        &mut self,
        mut head: http::response::Parts,
        reply: impl FnOnce(DeliverySignal, Arc<Progress>) -> ReplyBody,
    ) -> oneshot::Receiver<()> {
        self.progress.answered.set();
        self.progress.torn.set();
        self.progress.moved();
        let wire = self.wire().cloned();
        self.set_connection_header(&mut head);
        let (sender, delivered) = oneshot::channel();
        let reply = reply(DeliverySignal { sender, wire }, self.progress.clone());
        if let Some(to) = self.reply.take() {
            let _ = to.send(Response::from_parts(head, reply));
        }
        delivered
    }

    /// Decides whether an HTTP/1 connection persists (RFC 9112 §9.3). An unread body would be taken for the next request.
    fn set_connection_header(&self, head: &mut http::response::Parts) {
        if self.wire().is_none() {
            return drop_fields(&mut head.headers, |name| *name == header::CONNECTION);
        }
        let has_options = self.head.headers.contains_key(header::CONNECTION);
        let asked = |option| has_options && has(&self.head.headers, header::CONNECTION, option);
        let goes_on = if self.head.version == Version::HTTP_11 {
            !asked("close")
        } else {
            asked("keep-alive") && !asked("close") && head.headers.contains_key(header::CONTENT_LENGTH)
        };
        let goes_on = goes_on && !self.connection.shared.draining() && self.body_is_done();
        let option = HeaderValue::from_static(if goes_on { "keep-alive" } else { "close" });
        head.headers.insert(header::CONNECTION, option);
    }

    /// Waits until an answer was written. An HTTP/2 client that opens no window for it loses the stream.
    pub(super) async fn wait_delivered(&self, delivered: oneshot::Receiver<()>) -> bool {
        let Link::Http2(stream) = &self.link else { return delivered.await.is_ok() };
        let stall = self.connection.shared.settings.write_timeout;
        tokio::select! {
            biased;
            delivered = delivered => delivered.is_ok(),
            () = self.progress.stalled(None::<fn(u64)>, stall, || self.progress.is_clients_turn().then_some(stall)) => {
                stream.cancel();
                false
            }
        }
    }

    /// Whether an answer was started.
    pub fn is_answered(&self) -> bool {
        self.progress.answered.is_set()
    }

    /// Whether a complete answer was handed to the connection, which is the most that can be known of its delivery.
    pub fn is_delivered(&self) -> bool {
        self.is_answered() && !self.progress.torn.is_set()
    }

    /// Runs `then` if the connection turns out to have been reset with nothing received from the client since this answer: it was
    /// gone and did not read it. HTTP/1 only; otherwise, and once something is received, it is dropped.
    pub fn if_reset(&self, then: impl FnOnce() + Send + 'static) {
        if let Some(wire) = self.wire() {
            wire.if_reset(Box::new(then));
        }
    }

    /// Waits until the client goes away. For waits that make no sense without a client; never a reason to abandon a create.
    /// A client that closes its sending half counts as gone. Bytes of an unread body that arrive meanwhile are dropped, so read
    /// the body first. Cancel-safe.
    pub async fn client_gone(&mut self) {
        if !self.body_is_done()
            && let Some(incoming) = &mut self.incoming
        {
            self.progress.body_begun.set();
            while let Some(Ok(_)) = incoming.frame().await {}
            self.progress.body_done.set();
        }
        self.gone().await;
    }

    /// Returns whether the client is gone, as far as can be seen without waiting. Like [`client_gone`](Self::client_gone), it drops an
    /// unread body.
    pub async fn detect_client_gone(&mut self) -> bool {
        tokio::select! {
            biased;
            () = self.client_gone() => true,
            () = std::future::ready(()) => false,
        }
    }

    // For relays.

    /// Like [`client_gone`](Self::client_gone), once the body is finished.
    pub(super) async fn gone(&mut self) {
        match &self.link {
            Link::Http1(wire) => wire.gone().await,
            Link::Http2(stream) => tokio::select! {
                () = stream.cancelled() => {}
                () = async {
                    match &mut self.reply {
                        Some(reply) => reply.closed().await,
                        None => std::future::pending().await,
                    }
                } => {}
            },
        }
    }

    pub(super) fn settings(&self) -> &EdgeSettings {
        &self.connection.shared.settings
    }

    pub(super) fn hop(&self) -> Hop<'_> {
        let peer = self.peer().addr().map(|addr| addr.ip());
        let trusted = peer.is_some_and(|peer| self.settings().trusted_peers.contain(peer));
        Hop { peer, tls: self.connection.info.tls, host: self.host(), trusted }
    }

    pub(super) fn version(&self) -> Version {
        self.head.version
    }

    /// Returns what hyper keeps of a head beside its fields: the original case of their names.
    pub(super) fn extensions(&self) -> &http::Extensions {
        &self.head.extensions
    }

    /// Takes them out of the request; see [`extensions`](Self::extensions).
    pub(super) fn take_extensions(&mut self) -> http::Extensions {
        std::mem::take(&mut self.head.extensions)
    }

    /// The connection, if the request has it alone.
    pub(super) fn wire(&self) -> Option<&Arc<Wire>> {
        match &self.link {
            Link::Http1(wire) => Some(wire),
            Link::Http2(_) => None,
        }
    }

    /// Cuts off the answer, because it cannot be completed.
    pub(super) fn cut(&self) {
        match &self.link {
            Link::Http1(wire) => wire.kill(),
            Link::Http2(stream) => stream.cancel(),
        }
    }

    /// The body, if it was read completely.
    pub(super) fn whole_body(&self) -> Option<Bytes> {
        self.body.clone()
    }

    /// `Content-Length`; requests with contradicting lengths were rejected.
    pub(super) fn declared_length(&self) -> Option<u64> {
        self.head.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
    }

    /// Whether a body of known length has arrived completely with what hyper has read.
    pub(super) fn has_arrived(&self, at_most: usize) -> bool {
        let is_short = self.declared_length().is_some_and(|length| length <= at_most as u64);
        is_short && self.wire().is_some_and(|wire| !wire.is_mid_body())
    }

    /// Reads a body that [`has_arrived`](Self::has_arrived): only hyper's next poll is awaited.
    pub(super) async fn take_arrived(&mut self) -> Option<Bytes> {
        self.progress.body_begun.set();
        let body = self.incoming.take()?.collect().await.ok();
        match body {
            Some(_) => self.progress.body_done.set(),
            None => self.progress.body_lost.set(),
        }
        body.map(Collected::to_bytes)
    }

    /// Whether the request has no body, or it is finished.
    pub(super) fn body_is_done(&self) -> bool {
        self.progress.body_done.is_set() && !self.progress.body_lost.is_set()
    }

    /// Takes the unread body of an HTTP/2 request. The stream is not reset at once: clients should keep an answer that was complete
    /// before the reset (RFC 9113 §8.1), but curl before version 8 drops it.
    pub(super) fn take_unread(&mut self) -> Option<Incoming> {
        if self.wire().is_some() || self.body_is_done() { None } else { self.incoming.take() }
    }

    /// Takes the rest of the body, for streaming.
    pub(super) fn take_incoming(&mut self) -> Option<Incoming> {
        self.incoming.take()
    }

    pub(super) fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// Takes the connection out of HTTP: returns hyper's upgrade, and the token that counts it from now on.
    /// `None` if it was answered before.
    pub(super) fn become_tunnel(&mut self, mut head: http::response::Parts) -> Option<(OnUpgrade, TaskTrackerToken)> {
        let reply = self.reply.take()?;
        let upgrade = self.head.extensions.remove::<OnUpgrade>()?;
        let token = self.connection.shared.tunnels.token();
        self.in_flight = None;
        self.progress.answered.set();
        head.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        let body = ReplyBody::complete(Bytes::new(), self.progress.clone(), None);
        reply.send(Response::from_parts(head, body)).ok()?;
        Some((upgrade, token))
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.connection.shared
    }

    pub(super) fn tunnels_full(&self) -> bool {
        self.connection.shared.tunnels.len() >= self.connection.shared.settings.max_tunnels
    }
}

/// The same target with a path, if it has a query and none: `http://host?query` (RFC 9110 §4.2.3: an empty path is `/`).
fn with_path(uri: &Uri) -> Option<Uri> {
    let target = uri.path_and_query()?.as_str();
    if !target.starts_with('?') {
        return None;
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = PathAndQuery::try_from(format!("/{target}")).ok();
    Uri::from_parts(parts).ok()
}

impl Drop for Exchange {
    /// Makes sure that every request is answered.
    fn drop(&mut self) {
        let panicked = std::thread::panicking();
        if panicked {
            // The panic hook has logged message and place.
            tracing::error!(peer = %self.peer(), method = %self.method(), path = self.path(), "request handler panicked");
        }
        let Some(reply) = self.reply.take() else {
            // After a half-sent answer nothing can follow.
            if panicked || self.progress.torn.is_set() {
                self.cut();
            }
            return;
        };
        let body = Bytes::from_static(b"internal error\n");
        let mut answer = Response::new(());
        *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        let (mut head, ()) = answer.into_parts();
        response_head(&mut head, Some(body.len() as u64));
        if panicked {
            self.progress.body_lost.set();
        }
        self.set_connection_header(&mut head);
        let delivery = match &self.link {
            Link::Http1(_) => None,
            Link::Http2(end) => DeliverySignal::of_stream(self.connection.shared.settings.write_timeout, end.clone()),
        };
        let _ = reply.send(Response::from_parts(head, ReplyBody::complete(body, self.progress.clone(), delivery)));
    }
}
