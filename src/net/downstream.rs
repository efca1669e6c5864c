//! Reading a request's body and writing its answer at the same time.
//!
//! A pingora session is one `&mut`: a future that reads and one that writes cannot both hold it. But its reads, and on
//! HTTP/1 its "proxy task" writes, lose nothing when their future is dropped while pending. So neither is held: each poll
//! makes the future, polls it once and drops it again. The lock is never contended (both halves live in one task) and never
//! held across an await. HTTP/2 writes do not have that property, but there the writing half can be taken out of the session.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use http::HeaderMap;
use pingora::ErrorType::{WriteError, WriteTimedout};
use pingora::http::ResponseHeader;
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::{Error, OrErr};

use super::headers::strip_hop_by_hop;

/// A session whose two directions can be driven by two futures of one task.
pub(super) struct Downstream<'a> {
    halves: Mutex<Halves<'a>>,
    stall: Duration,
}

struct Halves<'a> {
    session: &'a mut ServerSession,
    /// HTTP/2: the answer's way to the client, after its head was written.
    stream: Option<SendStream<Bytes>>,
}

impl<'a> Downstream<'a> {
    /// `stall` is how long an HTTP/2 client may give no room for more of the answer.
    pub(super) fn new(session: &'a mut ServerSession, stall: Duration) -> Self {
        Downstream { halves: Mutex::new(Halves { session, stream: None }), stall }
    }

    fn halves(&self) -> MutexGuard<'_, Halves<'a>> {
        self.halves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next piece of the request's body; `None` at its end.
    pub(super) async fn read(&self) -> pingora::Result<Option<Bytes>> {
        poll_fn(|cx| pin!(self.halves().session.read_request_body()).poll(cx)).await
    }

    /// Waits until the client goes away; what is left of the body is dropped.
    pub(super) async fn gone(&self) {
        let mut body_done = false;
        loop {
            let next = poll_fn(|cx| {
                let mut halves = self.halves();
                body_done |= halves.session.is_body_done();
                match &mut halves.stream {
                    // Once the stream is taken out of the session, only the stream knows of a reset.
                    Some(stream) if body_done => stream.poll_reset(cx).map(|_| None),
                    _ => pin!(halves.session.read_body_or_idle(body_done)).poll(cx).map(Some),
                }
            });
            match next.await {
                Some(Ok(Some(_))) => {}
                Some(Ok(None)) => body_done = true,
                Some(Err(_)) | None => return,
            }
        }
    }

    /// Writes the head of the answer. With `end` there is no body.
    pub(super) async fn head(&self, head: ResponseHeader, end: bool) -> pingora::Result<()> {
        {
            let mut halves = self.halves();
            if let ServerSession::H2(session) = &mut *halves.session {
                session.write_response_header(Box::new(head), end)?;
                halves.stream = session.take_response_body_writer();
                return Ok(());
            }
            halves.session.send_downstream_proxy_task(HttpTask::Header(Box::new(head), end));
        }
        self.write_tasks().await
    }

    /// Writes a piece of the answer's body.
    pub(super) async fn chunk(&self, chunk: Bytes) -> pingora::Result<()> {
        if chunk.is_empty() {
            return Ok(());
        }
        let http2 = self.halves().stream.is_some();
        if !http2 {
            self.halves().session.send_downstream_proxy_task(HttpTask::Body(Some(chunk), false));
            return self.write_tasks().await;
        }
        let mut left = chunk;
        while !left.is_empty() {
            let room = poll_fn(|cx| match &mut self.halves().stream {
                Some(stream) => {
                    stream.reserve_capacity(left.len());
                    stream.poll_capacity(cx)
                }
                None => Poll::Ready(None),
            });
            let room = match tokio::time::timeout(self.stall, room).await {
                Ok(Some(room)) => room.or_err(WriteError, "waiting for room on an HTTP/2 stream")?,
                Ok(None) => return Error::e_explain(WriteError, "the HTTP/2 stream is over"),
                Err(_) => {
                    return Error::e_explain(WriteTimedout, "the client gave no room on its HTTP/2 stream");
                }
            };
            if let Some(stream) = &mut self.halves().stream {
                let piece = left.split_to(room.min(left.len()));
                stream.send_data(piece, false).or_err(WriteError, "writing to an HTTP/2 stream")?;
            }
        }
        Ok(())
    }

    /// Writes an interim answer; the final one follows. HTTP/1.1 only.
    pub(super) async fn interim(&self, head: ResponseHeader) -> pingora::Result<()> {
        // pingora takes it for an early final one and gives the connection up; what it held before stands.
        let keepalive = self.halves().session.get_keepalive();
        self.halves().session.send_downstream_proxy_task(HttpTask::Header(Box::new(head), false));
        let written = self.write_tasks().await;
        self.halves().session.set_keepalive(keepalive);
        written
    }

    /// Ends the answer properly. Trailers are for HTTP/2 clients: pingora does not write any for HTTP/1.
    pub(super) async fn end(&self, trailers: Option<HeaderMap>) -> pingora::Result<()> {
        {
            let mut halves = self.halves();
            if let (Some(stream), Some(mut trailers)) = (&mut halves.stream, trailers) {
                strip_hop_by_hop(&mut trailers);
                return stream.send_trailers(trailers).or_err(WriteError, "ending an HTTP/2 answer");
            }
            if let Some(stream) = &mut halves.stream {
                return stream.send_data(Bytes::new(), true).or_err(WriteError, "ending an HTTP/2 answer");
            }
            halves.session.send_downstream_proxy_task(HttpTask::Done);
        }
        self.write_tasks().await
    }

    async fn write_tasks(&self) -> pingora::Result<()> {
        poll_fn(|cx| pin!(self.halves().session.write_downstream_proxy_tasks()).poll(cx)).await.map(drop)
    }
}
