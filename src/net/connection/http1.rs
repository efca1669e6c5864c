//! HTTP/1 on a connection: deadlines for heads, one request after another, an orderly close.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Poll, Waker};
use std::time::Duration;

use futures_util::FutureExt as _;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{Answering, Begun, Connection, Evicted, LINGER_IDLE, closed, linger, stopped};
use crate::clock::ticks_ms;
use crate::net::exchange::Link;
use crate::net::refusal::Refusal;
use crate::net::reply::ReplyBody;
use crate::net::settings::EdgeSettings;
use crate::net::turns::Turns;
use crate::net::wire::{Phase, Wire, WireIo};
use crate::sync::lock;

/// hyper's minimum for its buffers, in bytes.
const HYPER_BUFFER_MIN: usize = 8192;
/// Room beside the longest head: with a short one, a body of 64 KiB is read at once.
const SMALL_BYTES: usize = 16 * 1024;

/// The time for which a connection is idle before it frees hyper's buffers, in milliseconds.
const BUFFER_IDLE_MS: u64 = 250;

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

impl Connection {
    pub(super) async fn serve_http1(self: &Arc<Self>, wire: Arc<Wire>) {
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
