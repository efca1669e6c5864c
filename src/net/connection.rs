//! One connection: handshake, one handler call per request, an orderly close.

mod http1;
mod http2;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{oneshot, watch};

use super::connection_slots::{ConnectionSlot, RequestGuard};
use super::edge::Shared;
use super::exchange::{ConnectionInfo, Exchange, Link};
use super::local::Peer;
use super::progress::Progress;
use super::refusal::Refusal;
use super::reply::{DeliverySignal, ReplyBody};
use super::transport::Transport;
use super::wire::Wire;

/// A closing connection reads on for this long; otherwise the reset that unread bytes cause could destroy the answer before the client
/// reads it (RFC 9112 §9.6). The values of nginx's `lingering_time` and `lingering_timeout`; shorter while draining.
const LINGER: Duration = Duration::from_secs(30);
const LINGER_IDLE: Duration = Duration::from_secs(5);
const LINGER_DRAINING: Duration = Duration::from_secs(1);

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

async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// A request that is passed to the handler, and its mark in the slot of the connection.
struct Begun {
    exchange: Box<Exchange>,
    busy: RequestGuard,
}
