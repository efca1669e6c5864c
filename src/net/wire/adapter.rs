//! The `AsyncRead` and `AsyncWrite` of a connection for hyper.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::BytesMut;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Stage, State, Wire, keep};
use crate::net::transport::Transport;

/// hyper's side of a [`Wire`].
#[derive(Debug)]
pub(in crate::net) struct WireIo(pub(in crate::net) Arc<Wire>);

impl AsyncRead for WireIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let wire = &self.get_mut().0;
        let mut state = wire.state();
        // The end of a chunked body is in `validated` when the stage is already the next head: it must not be held back.
        if state.is_write_blocked && state.validated.is_empty() && matches!(state.stage, Stage::Head | Stage::Length(0))
        {
            // A malformed next request must not end the connection before the last answer was sent.
            keep(&mut state.reader, cx);
            return Poll::Pending;
        }
        let read = state.poll_read(cx, buf, &wire.settings);
        if read.is_pending() {
            keep(&mut state.reader, cx);
            state.is_watched = false;
        } else {
            state.reader = None;
        }
        read
    }
}

impl WireIo {
    fn write<T>(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        write: impl FnOnce(&mut State, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let wire = &self.get_mut().0;
        let mut state = wire.state();
        let written = match state.poll_interim(cx) {
            Poll::Ready(Ok(())) => write(&mut state, cx),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        };
        // Interim answers come while hyper has nothing to write, and so does the end of a connection.
        keep(&mut state.writer, cx);
        let was_blocked = std::mem::replace(&mut state.is_write_blocked, written.is_pending());
        if was_blocked && !state.is_write_blocked {
            // Nobody else is registered for a read that was held back.
            state.reader.take().into_iter().for_each(Waker::wake);
        }
        state.stall.bounded(cx, written)
    }
}

impl AsyncWrite for WireIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, |state, cx| state.transport()?.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, |state, cx| state.transport()?.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.0.state().transport.as_ref().is_some_and(Transport::is_write_vectored)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write(cx, |state, cx| {
            ready!(state.transport()?.poll_flush(cx))?;
            if let Some(delivery) = state.flushed.take() {
                let _ = delivery.send(());
            }
            Poll::Ready(Ok(()))
        })
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write(cx, |state, cx| match state.refusal {
            // Something else is still to be written.
            Some(_) => Poll::Ready(Ok(())),
            None => state.transport()?.poll_shutdown(cx),
        })
    }
}

/// The transport of an upgraded request, with the client's early bytes.
pub(in crate::net) fn upgraded(upgraded: Upgraded) -> Option<(Transport, BytesMut)> {
    let parts = upgraded.downcast::<TokioIo<WireIo>>().ok()?;
    let (transport, ahead) = parts.io.into_inner().0.take()?;
    let mut early = BytesMut::from(parts.read_buf.as_ref());
    early.extend_from_slice(&ahead);
    Some((transport, early))
}
