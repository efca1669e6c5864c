//! HTTP/2 on a connection: a task for each stream, deadlines between them.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;
use std::time::Instant;

use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::sync::CancellationToken;

use super::{Answering, Begun, Connection, Evicted, LINGER_IDLE, linger, refused, stopped};
use crate::net::exchange::Link;
use crate::net::refusal::validate;
use crate::net::reply::{DeliverySignal, ReplyBody};
use crate::net::wire::{Wire, WireIo};
use crate::sync::lock;

/// The HTTP/2 connection preface, RFC 9113 §3.4, in bytes.
const H2_PREFACE: u64 = 24;

impl Connection {
    pub(super) async fn serve_http2(self: &Arc<Self>, wire: Arc<Wire>) {
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

async fn discard(mut body: Incoming) {
    while let Ok(Some(Ok(_))) = tokio::time::timeout(LINGER_IDLE, body.frame()).await {}
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
    fn open(&self) -> MutexGuard<'_, Open> {
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
