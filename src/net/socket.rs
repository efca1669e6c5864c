//! WebSockets that end here (RFC 6455), made from an exchange.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{HeaderValue, Response, StatusCode, header};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::exchange::Exchange;
use super::headers::has;
use super::reply::response_head;
use super::transport::Transport;
use super::wire;

/// Bytes per read; most messages are shorter. Small, because there are many idle sockets.
const READ_BYTES: usize = 512;
/// The maximum message, in bytes.
const MESSAGE_BYTES_MAX: usize = 16 * 1024;
/// Bytes that are buffered before they are written without a flush.
const WRITE_BYTES: usize = 8 * 1024;

/// A WebSocket with a client. It counts among the tunnels of its listener until dropped.
pub type WebSocket = WebSocketStream<Io>;

/// The byte stream below a [`WebSocket`].
#[derive(Debug)]
pub struct Io {
    stream: Transport,
    _open: TaskTrackerToken,
}

/// The reason why a WebSocket was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SocketError {
    /// None was requested, or not according to RFC 6455: 426.
    #[error("a WebSocket is served here, by version 13 of its protocol")]
    NotAsked,
    /// The maximum number is open: 503.
    #[error("too many sockets are open")]
    TooMany,
    /// The client has gone.
    #[error("the client has gone")]
    Gone,
}

impl Exchange {
    /// Accepts the upgrade to a WebSocket, with the chosen subprotocol.
    ///
    /// # Errors
    /// [`SocketError`]; except for [`SocketError::Gone`] the exchange can still be answered.
    pub async fn accept_socket(&mut self, protocol: Option<&'static str>) -> Result<WebSocket, SocketError> {
        let is_version = has(self.headers(), header::SEC_WEBSOCKET_VERSION, "13");
        let key = self.header("sec-websocket-key").map(|key| derive_accept_key(key.as_bytes()));
        let Some(accept) = key.filter(|_| self.is_upgrade() && is_version) else { return Err(SocketError::NotAsked) };
        if self.tunnels_full() {
            return Err(SocketError::TooMany);
        }
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let (mut head, ()) = response.into_parts();
        response_head(&mut head, None);
        let accept = HeaderValue::try_from(accept).map_err(|_| SocketError::NotAsked)?;
        head.headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        if let Some(protocol) = protocol {
            head.headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
        }
        let (upgrade, open) = self.become_tunnel(head).ok_or(SocketError::Gone)?;
        let upgraded = upgrade.await.map_err(|_| SocketError::Gone)?;
        let (stream, early) = wire::upgraded(upgraded).ok_or(SocketError::Gone)?;
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BYTES)
            .write_buffer_size(WRITE_BYTES)
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let io = Io { stream, _open: open };
        Ok(WebSocketStream::from_partially_read(io, early.to_vec(), Role::Server, Some(config)).await)
    }

    /// Serves a socket in a task of its own, so that the handler can return and HTTP's memory is freed. It counts among
    /// the connections of this listener, and is cut off with them.
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
