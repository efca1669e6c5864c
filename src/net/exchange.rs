//! One HTTP request being answered at the edge.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::ServerSession;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::body::Gathered;
use super::crowd::PeerKey;
use super::edge::{EdgeSettings, Shared};
use super::headers::{Hop, client_address, forwarded, has, strip_hop_by_hop};
use super::io::Sight;
use super::local::Peer;
use super::room::Taken;

/// One HTTP request being answered at the edge (HTTP/1.1 or HTTP/2).
///
/// The head is there from the start. The body is read with [`read_body`](Self::read_body) or streamed by
/// [`relay`](super::relay()); the answer is given once, by [`respond`](Self::respond) or a relay.
pub struct Exchange {
    state: State,
    peer: Peer,
    tls: bool,
    sight: Arc<Sight>,
    shared: Arc<Shared>,
    /// Counts the request as in flight until it is answered or becomes a tunnel.
    in_flight: Option<TaskTrackerToken>,
    body: Option<Bytes>,
    /// What the body takes of the room that all bodies share.
    body_room: Option<Taken>,
    progress: Arc<Progress>,
}

enum State {
    Open(Box<ServerSession>),
    /// The connection has become a tunnel; its request is kept for those who still ask.
    Tunnelled(Box<RequestHeader>),
}

/// How far an exchange got. Set before the step and not after it, so that it stays true when a future is dropped half-way;
/// shared, because a relay's two directions are two futures.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Some of the body was taken.
    pub(super) body_begun: Flag,
    /// Where the body ends is not known any more, so nothing after it can be read.
    pub(super) body_lost: Flag,
    /// An answer was begun.
    pub(super) answered: Flag,
    /// The answer begun is not whole: only the connection's (or the stream's) end can tell the client.
    pub(super) torn: Flag,
}

/// A bool seen by two futures of one task.
#[derive(Debug, Default)]
pub(super) struct Flag(AtomicBool);

impl Flag {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a body could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Longer than the caller's limit: a 413.
    #[error("the body is longer than {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// Other requests' bodies take all the room there is, or this peer's all that is for one: a 503, to be sent again.
    #[error("too many bodies at once")]
    NoRoom,
    /// Not complete within the edge's body deadline: a 408.
    #[error("the body took too long")]
    Timeout,
    /// Cut short, or framed wrongly: a 400, if anybody is still there.
    #[error("the body is broken")]
    Broken,
}

impl Exchange {
    pub(super) fn new(session: ServerSession, peer: Peer, tls: bool, sight: Arc<Sight>, shared: Arc<Shared>) -> Self {
        let in_flight = Some(shared.in_flight.token());
        let state = State::Open(Box::new(session));
        Exchange { state, peer, tls, sight, shared, in_flight, body: None, body_room: None, progress: Arc::default() }
    }

    fn head(&self) -> &RequestHeader {
        match &self.state {
            State::Open(session) => session.req_header(),
            State::Tunnelled(head) => head,
        }
    }

    /// The method.
    pub fn method(&self) -> &Method {
        &self.head().method
    }

    /// The path only, as sent: nothing is decoded.
    pub fn path(&self) -> &str {
        let target = self.path_and_query();
        target.split_once('?').map_or(target, |(path, _)| path)
    }

    /// What follows the first `?`, as sent.
    pub fn query(&self) -> Option<&str> {
        self.path_and_query().split_once('?').map(|(_, query)| query)
    }

    /// Path and query exactly as sent, which is what signatures are over (an absolute-form target's scheme and authority
    /// are left off). Targets with bytes that pingora would have escaped were refused before.
    pub fn path_and_query(&self) -> &str {
        let head = self.head();
        match std::str::from_utf8(head.raw_path()) {
            Ok(raw) if raw.starts_with('/') || raw == "*" => raw,
            _ => head.uri.path_and_query().map_or("/", |target| target.as_str()),
        }
    }

    /// `Host` or `:authority`, with the port if one was sent.
    pub fn host(&self) -> Option<&str> {
        let head = self.head();
        let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        host.or_else(|| head.uri.authority().map(|authority| authority.as_str()))
    }

    /// All header fields, hop-by-hop ones included.
    pub fn headers(&self) -> &HeaderMap {
        &self.head().headers
    }

    /// Takes header fields off the request, as if they had not come.
    pub fn drop_headers(&mut self, unwanted: impl Fn(&HeaderName) -> bool) {
        let names: Vec<HeaderName> = self.headers().keys().filter(|name| unwanted(name)).cloned().collect();
        if let State::Open(session) = &mut self.state {
            for name in names {
                session.req_header_mut().remove_header(&name);
            }
        }
    }

    /// The fields as they go on: of `X-Forwarded-*` what was seen here, and what a trusted peer says of earlier hops.
    pub fn arrived(&self) -> HeaderMap {
        let mut headers = self.headers().clone();
        forwarded(&mut headers, self.hop());
        headers
    }

    /// The first value of a field, if it is UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head().headers.get(name).and_then(|value| std::str::from_utf8(value.as_bytes()).ok())
    }

    /// Who is at the other end of the connection; not necessarily who asks (see [`TrustedPeers`](super::TrustedPeers)).
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// A real upgrade to WebSocket (RFC 6455 §4.1): HTTP/1.1 GET without a body, `Upgrade: websocket`, `Connection: upgrade`.
    pub fn is_upgrade(&self) -> bool {
        let head = self.head();
        head.version == Version::HTTP_11
            && head.method == Method::GET
            && has(&head.headers, header::UPGRADE, "websocket")
            && has(&head.headers, header::CONNECTION, "upgrade")
            && !head.headers.contains_key(header::TRANSFER_ENCODING)
            && head.headers.get(header::CONTENT_LENGTH).is_none_or(|length| length == "0")
    }

    /// The whole body: at most `limit` bytes, within the edge's `body_timeout`. Sends `100 Continue` if that is asked for.
    /// Called again it returns the same bytes.
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
            // An earlier reading was given up half-way: what is left must not pass for the whole.
            return Err(BodyError::Broken);
        }
        self.progress.body_begun.set();
        self.send_continue().await;
        let deadline = self.shared.settings.body_timeout;
        let trusted = &self.shared.settings.trusted_peers;
        let client = self.peer.addr().and_then(|peer| client_address(self.headers(), peer.ip(), trusted));
        let room = self.body_room.insert(self.shared.body_room.body(client.map(PeerKey::of)));
        let State::Open(session) = &mut self.state else {
            return Err(BodyError::Broken);
        };
        let read = async {
            let mut body = Gathered::default();
            while let Some(chunk) = session.read_request_body().await.map_err(|_| BodyError::Broken)? {
                if body.len() + chunk.len() > limit {
                    return Err(BodyError::TooLarge { limit });
                }
                room.grow(chunk.len()).await.map_err(|_| BodyError::NoRoom)?;
                body.push(chunk).map_err(|_| BodyError::NoRoom)?;
            }
            body.whole().map_err(|_| BodyError::NoRoom)
        };
        let read = tokio::time::timeout(deadline, read).await;
        match read.unwrap_or(Err(BodyError::Timeout)) {
            Ok(body) => {
                self.body = Some(body.clone());
                Ok(body)
            }
            Err(error) => {
                // pingora calls a broken body done, and would go on to read its rest as the next request.
                self.progress.body_lost.set();
                self.body_room = None;
                session.set_keepalive(None);
                Err(error)
            }
        }
    }

    /// Answers. Sets `Content-Length`; drops hop-by-hop fields. If the body was not read to its end the connection closes
    /// afterwards (RFC 9112 §9.3). Failing to write is logged at debug, never returned: the client is gone. A second answer
    /// is ignored.
    pub async fn respond(&mut self, response: http::Response<Bytes>) {
        if self.is_answered() {
            return tracing::debug!("a second answer was given to one request");
        }
        self.progress.answered.set();
        self.progress.torn.set();
        let closing = self.shared.draining() || self.progress.body_lost.is_set();
        let bodiless = self.head().method == Method::HEAD || matches!(response.status().as_u16(), 204 | 304);
        let State::Open(session) = &mut self.state else {
            return;
        };
        if closing {
            session.set_keepalive(None);
        }
        let (head, body) = response.into_parts();
        let written = async {
            let head = response_head(head, Some(body.len() as u64))?;
            session.write_response_header(Box::new(head)).await?;
            let body = if bodiless { Bytes::new() } else { body };
            session.write_response_body(body, true).await
        };
        match written.await {
            Ok(()) => self.progress.torn.clear(),
            Err(error) => tracing::debug!(peer = %self.peer, %error, "cannot write an answer"),
        }
        self.in_flight = None;
    }

    /// Whether an answer was given, or at least begun.
    pub fn is_answered(&self) -> bool {
        self.progress.answered.is_set()
    }

    /// Whether a whole answer was handed to the connection, which is the most that can be known of its arrival.
    pub fn is_delivered(&self) -> bool {
        self.is_answered() && !self.progress.torn.is_set()
    }

    /// Has this done if the connection turns out to have been reset with nothing heard from the client since this answer: it had
    /// gone without reading it. HTTP/1 only; elsewhere, and once something else is heard, it is dropped.
    pub fn if_reset(&self, then: impl FnOnce() + Send + 'static) {
        if matches!(&self.state, State::Open(session) if session.req_header().version != Version::HTTP_2) {
            self.sight.if_reset(Box::new(then));
        }
    }

    /// Waits until the client goes away. For waiters that should not wait for nobody; never a reason to abandon a create.
    /// A client that closes its sending half counts as gone. What arrives of an unread body meanwhile is dropped, so read
    /// the body first. May be cancelled.
    pub async fn client_gone(&mut self) {
        let State::Open(session) = &mut self.state else {
            return;
        };
        let mut body_done = false;
        loop {
            match session.read_body_or_idle(body_done).await {
                Ok(Some(_)) => {}
                Ok(None) => body_done = true,
                Err(_) => return,
            }
        }
    }

    /// Whether the client has gone already, as far as can be seen without waiting.
    pub async fn is_client_gone(&mut self) -> bool {
        tokio::select! {
            biased;
            () = self.client_gone() => true,
            () = std::future::ready(()) => false,
        }
    }

    // What relays need.

    pub(super) fn settings(&self) -> &EdgeSettings {
        &self.shared.settings
    }

    pub(super) fn hop(&self) -> Hop<'_> {
        let peer = self.peer.addr().map(|addr| addr.ip());
        let trusted = peer.is_some_and(|peer| self.settings().trusted_peers.contain(peer));
        Hop { peer, tls: self.tls, host: self.host(), trusted }
    }

    pub(super) fn version(&self) -> Version {
        self.head().version
    }

    /// The body, if it was read whole already.
    pub(super) fn body_read(&self) -> Option<Bytes> {
        self.body.clone()
    }

    /// `Content-Length`; pingora has refused requests whose lengths differ.
    pub(super) fn declared_length(&self) -> Option<u64> {
        self.header("content-length")?.split(',').next()?.trim().parse().ok()
    }

    /// The request has no body, or nothing of it is left.
    pub(super) fn body_is_done(&mut self) -> bool {
        match &mut self.state {
            State::Open(session) => session.is_body_done(),
            State::Tunnelled(_) => true,
        }
    }

    /// `100 Continue`, if the client waits for it (RFC 9110 §10.1.1) and the body is going to be read.
    pub(super) async fn send_continue(&mut self) {
        let asked =
            self.head().version == Version::HTTP_11 && has(&self.head().headers, header::EXPECT, "100-continue");
        let State::Open(session) = &mut self.state else {
            return;
        };
        if !asked || session.is_body_done() {
            return;
        }
        // pingora takes the interim answer for an early final one and gives the connection up; what it held before stands.
        let keepalive = session.get_keepalive();
        if let Err(error) = session.write_continue_response().await {
            tracing::debug!(peer = %self.peer, %error, "cannot write 100 Continue");
        }
        session.set_keepalive(keepalive);
    }

    /// The session, to stream through; `None` once it is a tunnel.
    pub(super) fn session(&mut self) -> Option<&mut ServerSession> {
        let draining = self.shared.draining();
        match &mut self.state {
            State::Open(session) => {
                if draining {
                    session.set_keepalive(None);
                }
                Some(session)
            }
            State::Tunnelled(_) => None,
        }
    }

    pub(super) fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// The connection closes after this answer.
    pub(super) fn close_after(&mut self) {
        match &mut self.state {
            // An answer half written cannot be followed by anything.
            State::Open(session) => {
                session.set_keepalive(None);
                if self.progress.answered.is_set() {
                    self.progress.torn.set();
                }
            }
            State::Tunnelled(_) => {}
        }
    }

    /// Takes the connection out of HTTP: the session, and the count it is kept under from now on.
    /// `None` if it was taken before.
    pub(super) fn become_tunnel(&mut self) -> Option<(ServerSession, Arc<Sight>, TaskTrackerToken)> {
        let State::Open(session) = &self.state else {
            return None;
        };
        let head = Box::new(session.req_header().clone());
        let token = self.shared.tunnels.token();
        self.in_flight = None;
        self.progress.answered.set();
        match std::mem::replace(&mut self.state, State::Tunnelled(head)) {
            State::Open(session) => Some((*session, self.sight.clone(), token)),
            State::Tunnelled(_) => None,
        }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(super) fn tunnels_full(&self) -> bool {
        self.shared.tunnels.len() >= self.shared.settings.max_tunnels
    }

    /// Ends the exchange; what is left of the connection is for its loop.
    pub(super) async fn over(self) -> Over {
        let State::Open(mut session) = self.state else {
            return Over::Closed;
        };
        if self.progress.torn.is_set() {
            // HTTP/1: closed without the last chunk; HTTP/2: the stream is reset. Either way the client sees the cut.
            session.shutdown().await;
            return Over::Closed;
        }
        // A body nobody read would be taken for the next request (RFC 9112 §9.3); pingora said `Connection: close`.
        if self.progress.body_lost.is_set() || !session.is_body_done() {
            return Over::Unread(session);
        }
        Over::InOrder(session)
    }
}

/// How an exchange left its connection.
pub(super) enum Over {
    /// Gone, or a tunnel that is over.
    Closed,
    /// Answered, with bytes of the body still to come.
    Unread(Box<ServerSession>),
    /// Answered, and at the end of the request.
    InOrder(Box<ServerSession>),
}

/// A head for pingora: no hop-by-hop fields, framed for `length` bytes if that is known. 1xx and 204 have no length
/// (RFC 9110 §8.6); for 304 (and HEAD, where the caller passes it) it is the length of what was not sent.
pub(super) fn response_head(mut parts: http::response::Parts, length: Option<u64>) -> pingora::Result<ResponseHeader> {
    strip_hop_by_hop(&mut parts.headers);
    parts.version = Version::HTTP_11;
    if parts.status.is_informational() || parts.status == http::StatusCode::NO_CONTENT {
        parts.headers.remove(header::CONTENT_LENGTH);
    } else if let Some(length) = length
        && parts.status != http::StatusCode::NOT_MODIFIED
    {
        parts.headers.insert(header::CONTENT_LENGTH, length.into());
    }
    Ok(ResponseHeader::from(parts))
}
