//! One connection: handshake, deadlines for heads, one handler call per request, an orderly close.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::connection_slots::{ConnectionSlot, RequestGuard};
use super::edge::Shared;
use super::exchange::{ConnectionInfo, Exchange, Link};
use super::local::Peer;
use super::progress::Progress;
use super::refusal::{Refusal, validate};
use super::reply::{DeliverySignal, ReplyBody};
use super::settings::EdgeSettings;
use super::transport::Transport;
use super::turns::Turns;
use super::wire::{Phase, Wire, WireIo};
use crate::clock::ticks_ms;
use crate::sync::lock;

/// The HTTP/2 connection preface, RFC 9113 §3.4, in bytes.
const H2_PREFACE: u64 = 24;

/// hyper's minimum for its buffers, in bytes.
const HYPER_BUFFER_MIN: usize = 8192;
/// Room beside the longest head: with a short one, a body of 64 KiB is read at once.
const SMALL_BYTES: usize = 16 * 1024;

/// A closing connection reads on for this long; otherwise the reset that unread bytes cause could destroy the answer before the client
/// reads it (RFC 9112 §9.6). The values of nginx's `lingering_time` and `lingering_timeout`; shorter while draining.
const LINGER: Duration = Duration::from_secs(30);
const LINGER_IDLE: Duration = Duration::from_secs(5);
const LINGER_DRAINING: Duration = Duration::from_secs(1);

/// The time for which a connection is idle before it frees hyper's buffers, in milliseconds.
const BUFFER_IDLE_MS: u64 = 250;

/// Serves a connection to its end.
pub(super) async fn serve(tcp: TcpStream, peer: SocketAddr, shared: Arc<Shared>, slot: Arc<ConnectionSlot>) {
    let _ = tcp.set_nodelay(true);
    // Otherwise a peer that vanished would hold a tunnel for ever: four probes after a minute of silence.
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15)).with_retries(4);
    let _ = SockRef::from(&tcp).set_tcp_keepalive(&keepalive);
    let (transport, tls) = match shared.tls.as_ref().map(|tls| tls.acceptor()) {
        None => (Transport::Tcp(tcp), false),
        Some(acceptor) => {
            // Boxed, so that its memory is freed after the handshake.
            let handshake = Box::pin(tokio::time::timeout(shared.settings.header_timeout, acceptor.accept(tcp)));
            let shaken = tokio::select! {
                biased;
                () = closed(&shared, &slot) => return,
                shaken = handshake => shaken,
            };
            match shaken {
                Ok(Ok(io)) => (Transport::Tls(Box::new(io)), true),
                Ok(Err(error)) => return tracing::debug!(%peer, %error, "failed to complete a TLS handshake"),
                Err(_) => return tracing::debug!(%peer, error = "timed out", "failed to complete a TLS handshake"),
            }
        }
    };
    run(transport, ConnectionInfo { peer: Peer::Net(peer), tls }, shared, slot).await;
}

/// Serves a connection on the Unix socket to its end.
pub(super) async fn serve_local(stream: UnixStream, peer: Peer, shared: Arc<Shared>, slot: Arc<ConnectionSlot>) {
    run(Transport::Unix(stream), ConnectionInfo { peer, tls: false }, shared, slot).await;
}

async fn run(transport: Transport, info: ConnectionInfo, shared: Arc<Shared>, slot: Arc<ConnectionSlot>) {
    let is_http2 = match &transport {
        Transport::Tls(tls) => tls.get_ref().1.alpn_protocol() == Some(b"h2"),
        Transport::Tcp(_) | Transport::Unix(_) => false,
    };
    let wire = Wire::new(transport, is_http2, shared.settings.clone());
    let connection = Arc::new(Connection { shared, info, slot });
    if is_http2 {
        let served = Box::pin(connection.serve_http2(wire));
        tokio::select! {
            biased;
            () = closed(&connection.shared, &connection.slot) => {}
            () = served => {}
        }
    } else {
        connection.serve_http1(wire).await;
    }
}

/// Returns when a connection must end in any case: a drain's grace period is over, or it was evicted.
async fn closed(shared: &Shared, slot: &ConnectionSlot) {
    tokio::select! {
        () = shared.cut.cancelled() => {}
        () = slot.evicted() => {}
    }
}

/// A connection, shared by its requests.
pub(super) struct Connection {
    pub(super) shared: Arc<Shared>,
    pub(super) info: ConnectionInfo,
    slot: Arc<ConnectionSlot>,
}

/// The end of HTTP on a connection.
#[derive(Clone, Copy)]
enum Ended {
    /// hyper is finished with it.
    Hyper,
    /// The client exceeded a deadline.
    TimedOut(Phase),
    /// See [`closed`].
    Closed,
}

/// The connection was evicted just before the request came.
#[derive(Debug, thiserror::Error)]
#[error("the connection was evicted")]
struct Evicted;

/// The pending answer to a request, polled by hyper.
enum Answering {
    Now(Option<Box<Response<ReplyBody>>>),
    Later(oneshot::Receiver<Response<ReplyBody>>),
}

impl Future for Answering {
    type Output = Result<Response<ReplyBody>, Evicted>;

    fn poll(self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Answering::Now(answer) => Poll::Ready(answer.take().map(|answer| *answer).ok_or(Evicted)),
            Answering::Later(answer) => Pin::new(answer).poll(cx).map_err(|_| Evicted),
        }
    }
}

fn refused(refusal: Refusal, delivery: Option<DeliverySignal>) -> Answering {
    tracing::debug!(status = refusal.status, why = refusal.why, "request refused");
    let answer = refusal.answer().map(|body| ReplyBody::complete(body, Arc::<Progress>::default(), delivery));
    Answering::Now(Some(Box::new(answer)))
}

impl Connection {
    /// Makes an exchange of a request, or a rejection if there is no room for it.
    fn begin(self: &Arc<Self>, request: Request<Incoming>, link: Link) -> Result<(Begun, Answering), Answering> {
        if self.shared.in_flight.len() >= self.shared.settings.max_in_flight {
            let delivery = match link {
                Link::Http1(_) => None,
                Link::Http2(end) => DeliverySignal::of_stream(self.shared.settings.write_timeout, end),
            };
            return Err(refused(Refusal::BUSY, delivery));
        }
        let busy = self.slot.begin_request().ok_or(Answering::Now(None))?;
        let (reply, answer) = oneshot::channel();
        let exchange = Box::new(Exchange::new(request, reply, self.clone(), link));
        Ok((Begun { exchange, busy }, Answering::Later(answer)))
    }

    async fn serve_http1(self: &Arc<Self>, wire: Arc<Wire>) {
        let mut closing = pin!(closed(&self.shared, &self.slot));
        let refusal = match self.drive_http1(&wire, closing.as_mut()).await {
            Ended::Closed | Ended::TimedOut(Phase::Idle(_)) => return,
            Ended::TimedOut(_) => Some(Refusal::HEAD_TIMEOUT),
            Ended::Hyper => wire.refusal(),
        };
        tokio::select! {
            biased;
            () = closing => {}
            () = self.leave_http1(&wire, refusal) => {}
        }
    }

    /// Writes the early rejection, if there is one, and waits for the client to read it.
    async fn leave_http1(&self, wire: &Wire, refusal: Option<Refusal>) {
        let is_mid_body = wire.is_mid_body();
        let Some((mut transport, _)) = wire.take() else { return };
        if let Some(refusal) = refusal {
            tracing::debug!(peer = %self.info.peer, status = refusal.status, why = refusal.why, "request refused");
            let bytes = refusal.bytes();
            let written = tokio::time::timeout(self.shared.settings.write_timeout, transport.write_all(&bytes));
            if !matches!(written.await, Ok(Ok(()))) {
                return;
            }
        }
        if refusal.is_some() || is_mid_body {
            let discard = async {
                if transport.shutdown().await.is_err() {
                    return;
                }
                let mut buffer = vec![0; 16 * 1024];
                while let Ok(Ok(1..)) = tokio::time::timeout(LINGER_IDLE, transport.read(&mut buffer)).await {}
            };
            linger(&self.shared, discard).await;
        }
    }

    /// Serves until hyper is finished with the connection and the last handler has returned.
    ///
    /// Handlers run in this task, beside hyper, because hyper drops its service futures when a client goes away, and a handler must continue.
    async fn drive_http1(self: &Arc<Self>, wire: &Arc<Wire>, mut closing: Pin<&mut impl Future<Output = ()>>) -> Ended {
        let settings = &self.shared.settings;
        let turns = Turns::default();
        let [of_io, of_handler, of_stop, of_timer] = std::array::from_fn(|_| turns.turn());
        let requests = Arc::new(Requests::default());
        // The panic hook has logged it; the exchange has answered.
        let mut handling = pin!(AssertUnwindSafe(self.handle_all(&requests)).catch_unwind());
        let mut stop = self.shared.stop.subscribe();
        let mut stopping = pin!(stopped(&mut stop));
        let mut timer = pin!(tokio::time::sleep(settings.header_timeout));
        let mut timer_ms = ticks_ms() + ms(settings.header_timeout);
        // Only present during a request, because its buffers are too large for an idle connection.
        let mut hyper = None;
        let (mut is_stopping, mut is_shut, mut is_new, mut is_handled) = (false, false, true, false);
        let mut ended = None;
        let mut round = || {
            let stop = poll_fn(|cx| {
                is_stopping = is_stopping || stopping.as_mut().poll(cx).is_ready();
                closing.as_mut().poll(cx)
            });
            if of_stop.poll(pin!(stop)).is_ready() {
                return Poll::Ready(Ended::Closed);
            }
            if hyper.is_none() && ended.is_none() {
                match of_io.poll(pin!(poll_fn(|cx| wire.poll_begun(cx)))) {
                    Poll::Ready(true) => {
                        of_io.wake();
                        let service = Http1 {
                            connection: self.clone(),
                            wire: wire.clone(),
                            requests: requests.clone(),
                            handler: of_handler.waker(),
                        };
                        let io = TokioIo::new(WireIo(wire.clone()));
                        hyper = Some(Box::pin(http1(settings).serve_connection(io, service).with_upgrades()));
                    }
                    Poll::Ready(false) => ended = Some(Ended::Hyper),
                    Poll::Pending => {}
                }
            }
            if ended.is_none()
                && let Some(hyper) = &mut hyper
                && let Poll::Ready(result) = of_io.poll(hyper.as_mut())
            {
                if let Err(error) = result {
                    tracing::debug!(peer = %self.info.peer, %error, "connection ended");
                }
                ended = Some(Ended::Hyper);
            }
            if ended.is_some() {
                of_io.rest();
                if !requests.end() {
                    hyper = None;
                    wire.end();
                    of_handler.wake();
                }
            }
            is_handled = is_handled || of_handler.poll(handling.as_mut()).is_ready();
            if is_handled {
                of_handler.rest();
                if let Some(ended) = ended {
                    return Poll::Ready(ended);
                }
            }
            let phase = wire.phase();
            if is_stopping && !is_shut && !matches!(phase, Phase::Head(_)) {
                is_shut = true;
                match &mut hyper {
                    Some(hyper) => hyper.as_mut().graceful_shutdown(),
                    None => ended = ended.or(Some(Ended::Hyper)),
                }
                of_io.wake();
            }
            is_new &= phase != Phase::Busy || ended.is_some();
            let PhaseDeadlines { close_ms: due_ms, free_buffers_ms } = match ended {
                Some(_) => PhaseDeadlines::NONE,
                None => PhaseDeadlines::of(phase, settings, is_new, hyper.is_some()),
            };
            if of_timer.poll(timer.as_mut()).is_ready() {
                timer_ms = u64::MAX;
                let now = ticks_ms();
                if wire.handler_poll_ms() <= now {
                    wire.clear_handler_poll();
                    of_handler.wake();
                }
                if due_ms <= now {
                    ended = Some(Ended::TimedOut(phase));
                    of_io.wake();
                } else if free_buffers_ms <= now {
                    hyper = None;
                    of_io.wake();
                }
            }
            // The timer is kept from request to request: reset only when it has fired, or would fire too late.
            let next_ms = due_ms.min(free_buffers_ms).min(wire.handler_poll_ms());
            if next_ms < timer_ms {
                timer_ms = next_ms;
                let left = Duration::from_millis(next_ms.saturating_sub(ticks_ms()));
                timer.as_mut().reset(tokio::time::Instant::now() + left);
                of_timer.wake();
            }
            Poll::Pending
        };
        poll_fn(|cx| turns.poll(cx, &[&of_io, &of_handler, &of_stop, &of_timer], &mut round)).await
    }

    /// Passes the requests of an HTTP/1 connection to the handler, one after another.
    async fn handle_all(&self, requests: &Requests) {
        while let Some(Begun { mut exchange, busy }) = poll_fn(|_| requests.poll_next()).await {
            self.shared.handler.handle(&mut exchange).await;
            drop((exchange, busy));
        }
    }

    async fn serve_http2(self: &Arc<Self>, wire: Arc<Wire>) {
        let settings = self.shared.settings.clone();
        let streams = Streams::default();
        let mut builder = http2::Builder::new(streams.clone());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(settings.max_h2_streams)
            .max_header_list_size(u32::try_from(settings.max_header_bytes).unwrap_or(u32::MAX));
        let service = Http2 { connection: self.clone(), streams: streams.clone() };
        let mut hyper = pin!(builder.serve_connection(TokioIo::new(WireIo(wire.clone())), service));
        let mut stop = self.shared.stop.subscribe();
        let mut stopping = pin!(stopped(&mut stop));
        let (mut is_stopping, mut ends_at) = (false, None);
        let began = Instant::now();
        let mut timer = pin!(tokio::time::sleep(settings.header_timeout));
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(ended) = hyper.as_mut().poll(cx) {
                    if let Err(error) = ended {
                        tracing::debug!(peer = %self.info.peer, %error, "HTTP/2 connection ended");
                    }
                    return Poll::Ready(());
                }
                if !is_stopping && stopping.as_mut().poll(cx).is_ready() {
                    is_stopping = true;
                    hyper.as_mut().graceful_shutdown();
                    continue;
                }
                let due = match (ends_at, streams.idle_since()) {
                    (Some(at), _) => at,
                    (None, _) if wire.bytes_read() < H2_PREFACE => began + settings.header_timeout,
                    (None, Some(since)) => since.max(began) + settings.keepalive,
                    (None, None) => return Poll::Pending,
                };
                if timer.deadline().into_std() > due {
                    timer.as_mut().reset(due.into());
                }
                if timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                let now = Instant::now();
                if now < due {
                    timer.as_mut().reset(due.into());
                } else if ends_at.is_some() || wire.bytes_read() < H2_PREFACE {
                    return Poll::Ready(());
                } else {
                    // A client that does not close after being told to is cut off.
                    ends_at = Some(now + settings.write_timeout);
                    hyper.as_mut().graceful_shutdown();
                }
            }
        })
        .await;
    }
}

/// The times, in [`ticks_ms`], at which a connection is closed and its idle buffers are freed; `u64::MAX`: never.
struct PhaseDeadlines {
    close_ms: u64,
    free_buffers_ms: u64,
}

impl PhaseDeadlines {
    const NONE: Self = Self { close_ms: u64::MAX, free_buffers_ms: u64::MAX };

    /// A new connection may be idle only for the time of a head.
    fn of(phase: Phase, settings: &EdgeSettings, is_new: bool, has_buffers: bool) -> Self {
        match phase {
            Phase::Busy => Self::NONE,
            Phase::Head(since) => Self { close_ms: since + ms(settings.header_timeout), ..Self::NONE },
            Phase::Idle(since) => {
                let limit = if is_new { settings.header_timeout } else { settings.keepalive };
                let free_buffers_ms = if has_buffers { since + BUFFER_IDLE_MS } else { u64::MAX };
                Self { close_ms: since + ms(limit), free_buffers_ms }
            }
        }
    }
}

/// Reads and drops what still arrives, for a while, before a connection or a stream is closed.
async fn linger(shared: &Shared, discard: impl Future<Output = ()>) {
    let mut stop = shared.stop.subscribe();
    let draining = async {
        stopped(&mut stop).await;
        tokio::time::sleep(LINGER_DRAINING).await;
    };
    tokio::select! {
        () = discard => {}
        () = draining => {}
        () = tokio::time::sleep(LINGER) => {}
    }
}

async fn discard(mut body: Incoming) {
    while let Ok(Some(Ok(_))) = tokio::time::timeout(LINGER_IDLE, body.frame()).await {}
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// A request that is passed to the handler, and its mark in the slot of the connection.
struct Begun {
    exchange: Box<Exchange>,
    busy: RequestGuard,
}

/// The next request of an HTTP/1 connection, from hyper to the handler. hyper sends none before the last one was answered.
#[derive(Default)]
struct Requests(Mutex<RequestState>);

#[derive(Default)]
struct RequestState {
    next: Option<Begun>,
    has_ended: bool,
}

impl Requests {
    fn state(&self) -> MutexGuard<'_, RequestState> {
        lock(&self.0)
    }

    /// Marks the end of requests; returns whether it was marked before.
    fn end(&self) -> bool {
        std::mem::replace(&mut self.state().has_ended, true)
    }

    fn poll_next(&self) -> Poll<Option<Begun>> {
        match &mut *self.state() {
            RequestState { next: None, has_ended: false } => Poll::Pending,
            RequestState { next, .. } => Poll::Ready(next.take()),
        }
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 2)
}

fn http1(settings: &EdgeSettings) -> http1::Builder {
    let mut builder = http1::Builder::new();
    // A client that closes its sending half may still read; watchers of the client use the wire.
    builder.half_close(true).preserve_header_case(true);
    // Room for a head and a small body only: a client that sends faster than it is read has to wait.
    builder.max_buf_size(settings.max_header_bytes.max(HYPER_BUFFER_MIN) + SMALL_BYTES);
    if settings.max_headers > 100 {
        builder.max_headers(settings.max_headers);
    }
    builder
}

/// hyper's service of an HTTP/1 connection.
struct Http1 {
    connection: Arc<Connection>,
    wire: Arc<Wire>,
    requests: Arc<Requests>,
    handler: Waker,
}

impl Service<Request<Incoming>> for Http1 {
    type Response = Response<ReplyBody>;
    type Error = Evicted;
    type Future = Answering;

    fn call(&self, request: Request<Incoming>) -> Answering {
        match self.connection.begin(request, Link::Http1(self.wire.clone())) {
            Ok((begun, answering)) => {
                self.requests.state().next = Some(begun);
                self.handler.wake_by_ref();
                answering
            }
            Err(answer) => answer,
        }
    }
}

/// hyper's service of an HTTP/2 connection.
struct Http2 {
    connection: Arc<Connection>,
    streams: Streams,
}

impl Service<Request<Incoming>> for Http2 {
    type Response = Response<ReplyBody>;
    type Error = Evicted;
    type Future = Answering;

    fn call(&self, request: Request<Incoming>) -> Answering {
        let end = self.streams.begin();
        let (head, body) = request.into_parts();
        if let Err(refusal) = validate(&head, &self.connection.shared.settings) {
            let shared = self.connection.shared.clone();
            let stall = shared.settings.write_timeout;
            tokio::spawn(async move { linger(&shared, discard(body)).await });
            return refused(refusal, DeliverySignal::of_stream(stall, end));
        }
        let begun = self.connection.begin(Request::from_parts(head, body), Link::Http2(end));
        let (Begun { mut exchange, busy }, answering) = match begun {
            Ok(begun) => begun,
            Err(answer) => return answer,
        };
        // In a task of its own: hyper drops its service futures when a client goes away, and a handler must continue.
        let shared = self.connection.shared.clone();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = shared.cut.cancelled() => return,
                () = shared.handler.handle(&mut exchange) => {}
            }
            let unread = exchange.take_unread();
            drop((exchange, busy));
            if let Some(unread) = unread {
                linger(&shared, discard(unread)).await;
            }
        });
        answering
    }
}

/// The streams of an HTTP/2 connection. Each is a task that can be cancelled.
#[derive(Clone, Default)]
struct Streams(Arc<Mutex<Open>>);

struct Open {
    /// The token of the stream that hyper is about to spawn.
    end: Option<CancellationToken>,
    count: usize,
    idle_since: Instant,
}

impl Default for Open {
    fn default() -> Self {
        Open { end: None, count: 0, idle_since: Instant::now() }
    }
}

impl Streams {
    fn open(&self) -> std::sync::MutexGuard<'_, Open> {
        lock(&self.0)
    }

    /// Prepares a request's stream, which is spawned next.
    fn begin(&self) -> CancellationToken {
        let end = CancellationToken::new();
        self.open().end = Some(end.clone());
        end
    }

    fn idle_since(&self) -> Option<Instant> {
        let open = self.open();
        (open.count == 0).then_some(open.idle_since)
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        /// Counts down when the stream ends, in whatever way.
        struct OpenStream(Streams);
        impl Drop for OpenStream {
            fn drop(&mut self) {
                let mut open = self.0.open();
                open.count = open.count.saturating_sub(1);
                open.idle_since = Instant::now();
            }
        }
        let end = {
            let mut open = self.open();
            open.count += 1;
            open.end.take().unwrap_or_default()
        };
        let counted = OpenStream(self.clone());
        tokio::spawn(async move {
            let _counted = counted;
            tokio::select! {
                biased;
                () = end.cancelled() => {}
                () = stream => {}
            }
        });
    }
}
