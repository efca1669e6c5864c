//! The life of one connection: handshake, heads within their deadlines, one handler call per request, an orderly end.
//!
//! pingora's own listener service is not used: it binds late and panics, waits 60 s for handshakes, bounds nothing and
//! cannot be drained. Its sessions are, one per request.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http::header::{CONTENT_TYPE, RETRY_AFTER, TRANSFER_ENCODING};
use pingora::ErrorType;
use pingora::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora::protocols::l4::stream::Stream as TcpIo;
use pingora::protocols::{ALPN, Stream, TcpKeepalive};
use pingora::server::ShutdownWatch;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::crowd::Seat;
use super::edge::Shared;
use super::exchange::{Exchange, Over};
use super::io::{Sight, Watched};
use super::local::Peer;
use super::refusal::{PINGORA_MAX_HEADERS, Refusal, judge};

/// The HTTP/2 connection preface, RFC 9113 §3.4, in bytes.
const H2_PREFACE: u64 = 24;

/// A closing connection goes on reading, or the reset that unread bytes cause could destroy the answer before the client
/// reads it (RFC 9112 §9.6). Numbers of nginx's `lingering_time` and `lingering_timeout`; while draining less.
const LINGER: Duration = Duration::from_secs(30);
const LINGER_IDLE: Duration = Duration::from_secs(5);
const LINGER_DRAINING: Duration = Duration::from_secs(1);

/// Serves a connection to its end.
pub(super) async fn serve(tcp: TcpStream, peer: SocketAddr, shared: Arc<Shared>, seat: Arc<Seat>) {
    let _ = tcp.set_nodelay(true);
    let mut tcp = TcpIo::from(tcp);
    // A peer that vanished without a word would hold a tunnel for ever: four probes from a minute of silence on.
    let _ = tcp.set_keepalive(&TcpKeepalive {
        idle: Duration::from_secs(60),
        interval: Duration::from_secs(15),
        count: 4,
        #[cfg(target_os = "linux")]
        user_timeout: Duration::ZERO,
    });
    let (io, tls): (Stream, bool) = match shared.tls.as_ref().map(|tls| tls.acceptor()) {
        None => (Box::new(tcp), false),
        Some(acceptor) => {
            match tokio::time::timeout(shared.settings.header_timeout, acceptor.tls_handshake(tcp)).await {
                Ok(Ok(io)) => (Box::new(io), true),
                Ok(Err(error)) => return tracing::debug!(%peer, %error, "TLS handshake failed"),
                Err(_) => return tracing::debug!(%peer, "TLS handshake took too long"),
            }
        }
    };
    run(io, Peer::Net(peer), tls, shared, seat).await;
}

/// Serves a connection on the Unix socket to its end.
pub(super) async fn serve_local(stream: UnixStream, peer: Peer, shared: Arc<Shared>, seat: Arc<Seat>) {
    run(Box::new(TcpIo::from(stream)), peer, false, shared, seat).await;
}

async fn run(io: Stream, peer: Peer, tls: bool, shared: Arc<Shared>, seat: Arc<Seat>) {
    let sight = Sight::new();
    let io: Stream = Box::new(Watched::new(io, sight.clone(), shared.settings.write_timeout));
    let connection = Arc::new(Connection { shared, peer, tls, sight, seat });
    match io.selected_alpn_proto() {
        Some(ALPN::H2) => connection.serve_http2(io).await,
        _ => connection.serve_http1(io).await,
    }
}

struct Connection {
    shared: Arc<Shared>,
    peer: Peer,
    tls: bool,
    sight: Arc<Sight>,
    seat: Arc<Seat>,
}

/// How waiting for a request's head ended.
enum Head {
    Read,
    Closed,
    Refused(Refusal),
}

impl Connection {
    async fn serve_http2(self: Arc<Self>, io: Stream) {
        let shutdown = self.shared.stop.subscribe();
        let no_preface = async {
            tokio::time::sleep(self.shared.settings.header_timeout).await;
            if self.sight.bytes_read() >= H2_PREFACE {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            _ = self.process_new(io, &shutdown) => {}
            () = no_preface => tracing::debug!(peer = %self.peer, "HTTP/2 preface took too long"),
        }
    }

    async fn serve_http1(&self, io: Stream) {
        let mut next = Some((io, None));
        let mut first = true;
        while let Some((io, already)) = next.take() {
            next = self.serve_one(io, already, first).await;
            first = false;
        }
    }

    /// Serves one HTTP/1 request; returns the stream, and what was read of the next request, if the connection goes on.
    async fn serve_one(
        &self,
        io: Stream,
        already: Option<BytesMut>,
        first: bool,
    ) -> Option<(Stream, Option<BytesMut>)> {
        let settings = &self.shared.settings;
        self.sight.expect_head(already.as_deref().unwrap_or_default(), settings.max_header_bytes);
        let mut session = ServerSession::new_http1(io);
        // pingora's timers are per read, so all deadlines are ours; `Some(0)` is its word for "no timer".
        session.set_keepalive(Some(0));
        session.set_read_timeout(None);
        // Without it a client's next request, sent early, would be taken for its going away.
        session.set_pipelining_enabled(true);
        if let Some(already) = already {
            session.set_pipelined_prefix(already);
        }
        match self.read_head(&mut session, first).await {
            Head::Closed => return None,
            Head::Refused(refusal) => {
                self.refuse(session, refusal).await;
                return None;
            }
            Head::Read => {}
        }
        if self.is_full() {
            self.refuse(session, Refusal::BUSY).await;
            return None;
        }
        // Idle until here, and again when it is answered.
        let busy = self.seat.busy()?;
        let answered = self.answer(session).await;
        drop(busy);
        let session = match answered {
            Over::Closed => return None,
            Over::Unread(session) => {
                self.linger(*session).await;
                return None;
            }
            Over::InOrder(session) => session,
        };
        // pingora decided whether the connection may go on (`Connection`, HTTP/1.0, faulty framing); it is never overruled:
        // setting a keep-alive here would re-open what it had closed for safety.
        match session.finish().await {
            Ok(Some(reusable)) => Some(reusable.into_parts()),
            Ok(None) => None,
            Err(error) => {
                tracing::debug!(peer = %self.peer, %error, "connection broke");
                None
            }
        }
    }

    /// Reads a request's head. An idle connection may wait `keepalive` for its first byte (a new one only as long as a head
    /// may take), and from then on the head has `header_timeout` in total, however its bytes are dealt out.
    async fn read_head(&self, session: &mut ServerSession, first: bool) -> Head {
        let settings = &self.shared.settings;
        let sight = &self.sight;
        let mut stop = self.shared.stop.subscribe();
        let deadline = async {
            if !first && tokio::time::timeout(settings.keepalive, sight.begun()).await.is_err() {
                return;
            }
            tokio::time::sleep(settings.header_timeout).await;
        };
        let idle_and_draining = async {
            let _ = stop.wait_for(|stop| *stop).await;
            if sight.has_begun() {
                std::future::pending::<()>().await;
            }
        };
        let read = tokio::select! {
            biased;
            read = session.read_request() => read,
            () = idle_and_draining => return Head::Closed,
            () = deadline => {
                return if sight.has_begun() { Head::Refused(Refusal::HEAD_TIMEOUT) } else { Head::Closed };
            }
        };
        let is_chunked = matches!(read, Ok(true)) && session.req_header().headers.contains_key(TRANSFER_ENCODING);
        let body = sight.head_done(is_chunked);
        match read {
            Ok(true) if sight.illegal_line_end() => Head::Refused(Refusal::MALFORMED),
            Ok(true) if sight.illegal_line() => Head::Refused(Refusal::TARGET),
            Ok(true) => match judge(session, settings) {
                Some(refusal) => Head::Refused(refusal),
                None if body.is_err() => Head::Refused(Refusal::MALFORMED),
                None => Head::Read,
            },
            Ok(false) => Head::Closed,
            Err(_) if sight.head_too_large() || sight.head_lines() > PINGORA_MAX_HEADERS => {
                Head::Refused(Refusal::HEAD_TOO_LARGE)
            }
            Err(error) if matches!(error.etype(), ErrorType::ConnectionClosed | ErrorType::ReadError) => Head::Closed,
            Err(error) => {
                tracing::debug!(peer = %self.peer, %error, "malformed request");
                Head::Refused(Refusal::MALFORMED)
            }
        }
    }

    /// As many requests are under way as may be.
    fn is_full(&self) -> bool {
        self.shared.in_flight.len() >= self.shared.settings.max_in_flight
    }

    /// Has a request answered.
    async fn answer(&self, session: ServerSession) -> Over {
        let shared = &self.shared;
        let mut exchange = Exchange::new(session, self.peer, self.tls, self.sight.clone(), shared.clone());
        let handled = tokio::select! {
            biased;
            () = shared.cut.cancelled() => return Over::Closed,
            handled = AssertUnwindSafe(shared.handler.handle(&mut exchange)).catch_unwind() => handled,
        };
        if handled.is_err() {
            // The panic hook has printed message and place already.
            tracing::error!(peer = %self.peer, method = %exchange.method(), path = exchange.path(), "a handler panicked");
            exchange.close_after();
        }
        if !exchange.is_answered() {
            let mut response = http::Response::new(Bytes::from_static(b"internal error\n"));
            *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
            response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
            exchange.respond(response).await;
        }
        exchange.over().await
    }

    /// Answers without a handler and closes.
    async fn refuse(&self, mut session: ServerSession, refusal: Refusal) {
        tracing::debug!(peer = %self.peer, status = refusal.status, why = refusal.why, "request refused");
        session.set_keepalive(None);
        let body = Bytes::from(format!("{}\n", refusal.why));
        let head = || -> pingora::Result<ResponseHeader> {
            let mut head = ResponseHeader::build(refusal.status, Some(4))?;
            head.insert_header(CONTENT_TYPE, "text/plain; charset=utf-8")?;
            if refusal == Refusal::BUSY {
                head.insert_header(RETRY_AFTER, "1")?;
            }
            head.set_content_length(body.len())?;
            Ok(head)
        };
        let written = match head() {
            Ok(head) => session.write_error_response(head, body.clone()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            return tracing::debug!(peer = %self.peer, %error, "cannot write a refusal");
        }
        self.linger(session).await;
    }

    /// Ends a connection, or an HTTP/2 stream, on which bytes may still be arriving.
    ///
    /// A stream is not reset at once either: clients should keep an answer that was complete before the reset (RFC 9113
    /// §8.1), but curl before version 8 forgets it.
    async fn linger(&self, session: ServerSession) {
        self.sight.look_away();
        let mut stop = self.shared.stop.subscribe();
        let draining = async {
            let _ = stop.wait_for(|stop| *stop).await;
            tokio::time::sleep(LINGER_DRAINING).await;
        };
        tokio::select! {
            () = discard(session) => {}
            () = draining => {}
            () = tokio::time::sleep(LINGER) => {}
        }
    }
}

/// Says that nothing more is coming, and reads until the other side says so or falls silent.
async fn discard(mut session: ServerSession) {
    if session.finish_body().await.is_err() {
        return;
    }
    let mut io = match session {
        ServerSession::H1(session) => session.into_inner(),
        mut other => {
            while let Ok(Ok(Some(_))) = tokio::time::timeout(LINGER_IDLE, other.read_request_body()).await {}
            return;
        }
    };
    if AsyncWriteExt::shutdown(&mut io).await.is_err() {
        return;
    }
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(Ok(1..)) = tokio::time::timeout(LINGER_IDLE, io.read(&mut buffer)).await {}
}

/// HTTP/2 only: pingora spawns one of these calls per stream.
#[async_trait]
impl HttpServerApp for Connection {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        _: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        // A client that opens no window for the body of its answer; the connection's own stalls are seen by `Watched`.
        session.set_write_timeout(Some(self.shared.settings.write_timeout));
        let busy = self.seat.busy()?;
        let refusal = judge(&session, &self.shared.settings);
        if let Some(refusal) = refusal.or_else(|| self.is_full().then_some(Refusal::BUSY)) {
            drop(busy);
            self.refuse(session, refusal).await;
            return None;
        }
        let answered = self.answer(session).await;
        drop(busy);
        match answered {
            Over::Closed => {}
            Over::Unread(session) => self.linger(*session).await,
            Over::InOrder(session) => {
                if let Err(error) = session.finish().await {
                    tracing::debug!(peer = %self.peer, %error, "HTTP/2 stream broke");
                }
            }
        }
        None
    }

    fn h2_options(&self) -> Option<H2Options> {
        let settings = &self.shared.settings;
        let mut options = default_h2_options();
        options.max_concurrent_streams(settings.max_h2_streams);
        options.max_header_list_size(u32::try_from(settings.max_header_bytes).unwrap_or(u32::MAX));
        Some(options)
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.shared.server_options)
    }
}
