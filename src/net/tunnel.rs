//! WebSocket tunnels: the handshake is relayed, and only an upstream's 101 takes the connection out of HTTP.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderValue, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use pingora::protocols::http::ServerSession;
use tokio::io::AsyncWriteExt;

use super::body::Outgoing;
use super::exchange::{Exchange, response_head};
use super::redirect::Mount;
use super::relay::{RelayError, Relayed};
use super::stream::stream_answer;
use super::upstream::{Upstream, UpstreamError};

/// How long the other direction may go on once one has ended. WebSocket peers close both (RFC 6455 §7.1.1); this is for
/// those that do not.
const HALF_CLOSED: Duration = Duration::from_secs(30);

/// How long an upstream may take to answer a handshake.
const HANDSHAKE: Duration = Duration::from_secs(120);

/// Relays an upgrade. Returns when the tunnel is over, or when the upstream's refusal was passed on.
pub(super) async fn relay_upgrade(
    exchange: &mut Exchange,
    upstream: &Upstream,
    mut request: Request<()>,
    mount: Option<&Mount>,
) -> Result<Relayed, RelayError> {
    if exchange.tunnels_full() {
        return Err(RelayError::TooManyTunnels);
    }
    // Hop-by-hop, so taken off with the rest; this hop asks anew, and for nothing else.
    let websocket = HeaderValue::from_static("websocket");
    let upgrade = HeaderValue::from_static("Upgrade");
    request.headers_mut().insert(header::UPGRADE, websocket.clone());
    request.headers_mut().insert(header::CONNECTION, upgrade.clone());
    let request = request.map(|()| Outgoing::whole(Bytes::new()));

    // The client is not watched meanwhile: what it sends early belongs to the tunnel.
    let limit = upstream.answer_timeout().min(HANDSHAKE);
    let mut response =
        tokio::time::timeout(limit, upstream.relay(request)).await.map_err(|_| UpstreamError::Timeout(limit))??;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return stream_answer(exchange, response, mount).await;
    }
    let Ok(upgraded) = hyper::upgrade::on(&mut response).await else {
        return Err(RelayError::Broken(UpstreamError::Broken("no upgrade after the 101".to_owned())));
    };
    let mut head =
        response_head(response.into_parts().0, None).map_err(|error| RelayError::BadTarget(error.to_string()))?;
    let framed =
        head.insert_header(header::UPGRADE, websocket).and_then(|()| head.insert_header(header::CONNECTION, upgrade));
    framed.map_err(|error| RelayError::BadTarget(error.to_string()))?;

    let (mut session, sight, _open) = exchange.become_tunnel().ok_or(RelayError::AlreadyAnswered)?;
    let cut = |response_bytes| Relayed { status: StatusCode::SWITCHING_PROTOCOLS, response_bytes, complete: false };
    if let Err(error) = session.write_response_header(Box::new(head)).await {
        tracing::debug!(%error, "the client did not take its 101");
        return Ok(cut(0));
    }
    // Bytes that came with the handshake are in the session, not in the stream below it.
    let early = session.read_request_body().now_or_never();
    let ServerSession::H1(session) = session else {
        return Ok(cut(0));
    };
    let mut client = session.into_inner();
    let mut upstream = TokioIo::new(upgraded);
    if let Some(Ok(Some(early))) = early
        && upstream.write_all(&early).await.is_err()
    {
        return Ok(cut(0));
    }
    let half_closed = async {
        sight.half_closed().await;
        tokio::time::sleep(HALF_CLOSED).await;
    };
    // Not a select loop of reads and writes: that dead-locks when both sides write before they read.
    tokio::select! {
        copied = tokio::io::copy_bidirectional(&mut client, &mut upstream) => match copied {
            Ok((_, response_bytes)) => Ok(Relayed { status: StatusCode::SWITCHING_PROTOCOLS, response_bytes, complete: true }),
            Err(error) => {
                tracing::debug!(%error, "a tunnel broke");
                Ok(cut(0))
            }
        },
        () = half_closed => Ok(cut(0)),
    }
}
