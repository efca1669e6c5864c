//! WebSocket tunnels: relays the handshake; only an upstream's 101 takes the connection out of HTTP.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use super::body::Outgoing;
use super::exchange::Exchange;
use super::redirect::Mount;
use super::relayed::{RelayError, Relayed};
use super::reply::response_head;
use super::stall::Stall;
use super::stream::stream_answer;
use super::transport::Transport;
use super::upstream::{Upstream, UpstreamError};
use super::wire;

/// The time for which the other direction may continue after one has ended. WebSocket peers close both (RFC 6455 §7.1.1); the limit is for
/// those that do not.
const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(30);

/// The maximum duration of an upstream's handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(120);

/// Relays an upgrade. Returns when the tunnel has ended, or when the upstream's rejection was passed on.
pub(super) async fn relay_upgrade(
    exchange: &mut Exchange,
    upstream: &Upstream,
    mut request: Request<()>,
    mount: Option<&Mount<'_>>,
) -> Result<Relayed, RelayError> {
    if exchange.tunnels_full() {
        return Err(RelayError::TooManyTunnels);
    }
    // Hop-by-hop, so they were removed; this hop requests the upgrade anew, and nothing else.
    let websocket = HeaderValue::from_static("websocket");
    let upgrade = HeaderValue::from_static("Upgrade");
    request.headers_mut().insert(header::UPGRADE, websocket);
    request.headers_mut().insert(header::CONNECTION, upgrade);
    let mut request = Some(request.map(|()| Outgoing::complete(Bytes::new())));

    // Early bytes of the client are kept for the tunnel.
    let limit = upstream.answer_timeout().min(HANDSHAKE_TIMEOUT);
    let mut response = tokio::select! {
        biased;
        answered = tokio::time::timeout(limit, upstream.relay(&mut request)) => {
            answered.map_err(|_| UpstreamError::Timeout(limit))??
        }
        () = exchange.gone() => return Err(RelayError::ClientGone),
    };
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return stream_answer(exchange, response, mount).await;
    }
    let Ok(upgraded) = hyper::upgrade::on(&mut response).await else {
        return Err(RelayError::Broken(UpstreamError::Broken("no upgrade after the 101".to_owned())));
    };
    let (mut head, _) = response.into_parts();
    response_head(&mut head, None);
    let (upgrade, open) = exchange.become_tunnel(head).ok_or(RelayError::AlreadyAnswered)?;
    let cut = |response_bytes| Relayed { status: StatusCode::SWITCHING_PROTOCOLS, response_bytes, complete: false };
    let client = match upgrade.await {
        Ok(upgraded) => wire::upgraded(upgraded),
        Err(error) => {
            tracing::debug!(%error, "failed to write the 101 response");
            None
        }
    };
    let Some((client, early)) = client else { return Ok(cut(0)) };
    let mut upstream = TokioIo::new(upgraded);
    if !early.is_empty() && upstream.write_all(&early).await.is_err() {
        return Ok(cut(0));
    }
    let stall = Stall::new(exchange.settings().write_timeout);
    // A task of its own: a frame wakes only the copying, not the connection around it.
    let tunnel = async move {
        let _open = open;
        copy(client, upstream, stall).await
    };
    let copied = AbortOnDropHandle::new(tokio::spawn(tunnel)).await;
    let complete = |response_bytes| Relayed { complete: true, ..cut(response_bytes) };
    match copied {
        Ok(copied) => Ok(copied.map_or(cut(0), complete)),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Ok(cut(0)),
    }
}

/// Copies in both directions until both have ended; returns the bytes sent to the client.
async fn copy(client: Transport, mut upstream: TokioIo<Upgraded>, stall: Stall) -> Option<u64> {
    let half_closed = Notify::new();
    let mut client = Client { io: client, half_closed: &half_closed, stall };
    let too_long = async {
        half_closed.notified().await;
        tokio::time::sleep(HALF_CLOSED_TIMEOUT).await;
    };
    // Not a select loop of reads and writes, which dead-locks when both sides write before they read.
    tokio::select! {
        biased;
        copied = tokio::io::copy_bidirectional(&mut client, &mut upstream) => match copied {
            Ok((_, response_bytes)) => Some(response_bytes),
            Err(error) => {
                tracing::debug!(%error, "tunnel closed with an error");
                None
            }
        },
        () = too_long => None,
    }
}

/// The client's end of a tunnel: closed when the client reads nothing for too long, and told when one direction has ended.
struct Client<'a> {
    io: Transport,
    half_closed: &'a Notify,
    stall: Stall,
}

impl AsyncRead for Client<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        if read.is_ready() && buf.filled().len() == before && buf.remaining() > 0 {
            this.half_closed.notify_one();
        }
        read
    }
}

impl AsyncWrite for Client<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let write = Pin::new(&mut this.io).poll_write(cx, buf);
        this.stall.bounded(cx, write)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flush = Pin::new(&mut this.io).poll_flush(cx);
        this.stall.bounded(cx, flush)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.half_closed.notify_one();
        let shutdown = Pin::new(&mut this.io).poll_shutdown(cx);
        this.stall.bounded(cx, shutdown)
    }
}
