//! A WebSocket that ends here (RFC 6455), out of an exchange.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use http::{HeaderValue, Response, StatusCode, header};
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::exchange::{Exchange, response_head};
use super::headers::has;
use super::io::unwatched;

/// Read at a time; most messages are shorter. Idle sockets are many, and each has this much.
const READ_BYTES: usize = 512;
/// The longest message that is taken, in bytes.
const MESSAGE_BYTES_MAX: usize = 16 * 1024;
/// Messages are gathered up to here before they are written without a flush.
const WRITE_BYTES: usize = 8 * 1024;

/// A WebSocket with a client. It is counted among the tunnels of its edge until it is dropped.
pub type WebSocket = WebSocketStream<Io>;

/// The bytes below a [`WebSocket`].
#[derive(Debug)]
pub struct Io {
    stream: Stream,
    _open: TaskTrackerToken,
}

/// Why there is no WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoSocket {
    /// It is not asked for, or in a way that RFC 6455 does not know: a 426.
    #[error("a WebSocket is served here, by version 13 of its protocol")]
    NotAsked,
    /// As many are open as may be: a 503.
    #[error("too many sockets are open")]
    TooMany,
    /// The client has gone.
    #[error("the client has gone")]
    Gone,
}

impl Exchange {
    /// Accepts the upgrade to a WebSocket, with the subprotocol that was chosen.
    ///
    /// # Errors
    /// [`NoSocket`]; but for [`NoSocket::Gone`] an answer may still be given.
    pub async fn accept_socket(&mut self, protocol: Option<&'static str>) -> Result<WebSocket, NoSocket> {
        let is_version = has(self.headers(), header::SEC_WEBSOCKET_VERSION, "13");
        let key = self.header("sec-websocket-key").map(|key| derive_accept_key(key.as_bytes()));
        let Some(accept) = key.filter(|_| self.is_upgrade() && is_version) else { return Err(NoSocket::NotAsked) };
        if self.tunnels_full() {
            return Err(NoSocket::TooMany);
        }
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let mut head = response_head(response.into_parts().0, None).map_err(|_| NoSocket::Gone)?;
        let framed = head
            .insert_header(header::UPGRADE, HeaderValue::from_static("websocket"))
            .and_then(|()| head.insert_header(header::CONNECTION, HeaderValue::from_static("Upgrade")))
            .and_then(|()| head.insert_header(header::SEC_WEBSOCKET_ACCEPT, accept))
            .and_then(|()| match protocol {
                Some(protocol) => head.insert_header(header::SEC_WEBSOCKET_PROTOCOL, protocol),
                None => Ok(()),
            });
        framed.map_err(|_| NoSocket::Gone)?;
        let (mut session, _, open) = self.become_tunnel().ok_or(NoSocket::Gone)?;
        session.write_response_header(Box::new(head)).await.map_err(|_| NoSocket::Gone)?;
        // Bytes that came with the handshake are in the session, not in the stream below it.
        let early = match session.read_request_body().now_or_never() {
            Some(Ok(Some(early))) => early.to_vec(),
            _ => vec![],
        };
        let ServerSession::H1(session) = session else { return Err(NoSocket::Gone) };
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BYTES)
            .write_buffer_size(WRITE_BYTES)
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let stream = unwatched(session.into_inner()).await.map_err(|_| NoSocket::Gone)?;
        let io = Io { stream, _open: open };
        Ok(WebSocketStream::from_partially_read(io, early, Role::Server, Some(config)).await)
    }

    /// Serves a socket in a task of its own, that the handler can return: what HTTP needed of memory is given back. It counts among
    /// the connections of this edge, and is cut with them.
    pub fn serve_socket(&self, work: impl Future<Output = ()> + Send + 'static) {
        let cut = self.shared().cut.clone();
        self.shared().connections.spawn(async move {
            tokio::select! {
                biased;
                () = cut.cancelled() => {}
                () = work => {}
            }
        });
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
