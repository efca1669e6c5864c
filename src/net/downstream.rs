//! Reading a request's body and writing its answer at the same time.
//!
//! A pingora session is one `&mut`: a future that reads and one that writes cannot both hold it. But its reads, and on
//! HTTP/1 its "proxy task" writes, lose nothing when their future is dropped while pending. So neither is held: each poll
//! makes the future, polls it once and drops it again. The lock is never contended (both halves live in one task) and never
//! held across an await. HTTP/2 writes do not have that property, but there the writing half can be taken out of the session.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use pingora::http::ResponseHeader;
use pingora::protocols::http::{HttpTask, ServerSession, v2};

/// A session whose two directions can be driven by two futures of one task.
pub(super) struct Downstream<'a>(Mutex<&'a mut ServerSession>);

/// The answer's way to the client, after its head was written.
pub(super) enum Writer {
    Http1,
    Http2 { stream: SendStream<Bytes>, stall: Duration },
}

impl<'a> Downstream<'a> {
    pub(super) fn new(session: &'a mut ServerSession) -> Self {
        Downstream(Mutex::new(session))
    }

    fn session(&self) -> MutexGuard<'_, &'a mut ServerSession> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next piece of the request's body; `None` at its end.
    pub(super) async fn read(&self) -> pingora::Result<Option<Bytes>> {
        poll_fn(|cx| pin!(self.session().read_request_body()).poll(cx)).await
    }

    /// Waits until the client goes away; what is left of the body is dropped.
    pub(super) async fn gone(&self) {
        let mut body_done = false;
        loop {
            match poll_fn(|cx| pin!(self.session().read_body_or_idle(body_done)).poll(cx)).await {
                Ok(Some(_)) => {}
                Ok(None) => body_done = true,
                Err(_) => return,
            }
        }
    }

    /// Writes the head of the answer. With `end` there is no body.
    pub(super) async fn head(&self, head: ResponseHeader, end: bool, stall: Duration) -> pingora::Result<Writer> {
        let mut head = Some(Box::new(head));
        {
            let mut session = self.session();
            if let ServerSession::H2(session) = &mut **session {
                if let Some(head) = head.take() {
                    session.write_response_header(head, end)?;
                }
                if let Some(stream) = session.take_response_body_writer() {
                    return Ok(Writer::Http2 { stream, stall });
                }
                return pingora::Error::e_explain(pingora::ErrorType::WriteError, "the answer was begun before");
            }
            if let Some(head) = head.take() {
                session.send_downstream_proxy_task(HttpTask::Header(head, end));
            }
        }
        self.write_tasks().await?;
        Ok(Writer::Http1)
    }

    /// Writes a piece of the answer's body.
    pub(super) async fn chunk(&self, writer: &mut Writer, chunk: Bytes) -> pingora::Result<()> {
        if chunk.is_empty() {
            return Ok(());
        }
        match writer {
            Writer::Http1 => {
                self.session().send_downstream_proxy_task(HttpTask::Body(Some(chunk), false));
                self.write_tasks().await
            }
            Writer::Http2 { stream, stall } => v2::write_body(stream, chunk, false, Some(*stall)).await,
        }
    }

    /// Ends the answer properly.
    pub(super) async fn end(&self, writer: Writer) -> pingora::Result<()> {
        match writer {
            Writer::Http1 => {
                self.session().send_downstream_proxy_task(HttpTask::Done);
                self.write_tasks().await
            }
            Writer::Http2 { mut stream, .. } => v2::write_body(&mut stream, Bytes::new(), true, None).await,
        }
    }

    async fn write_tasks(&self) -> pingora::Result<()> {
        let write = |cx: &mut Context<'_>| -> Poll<pingora::Result<bool>> {
            pin!(self.session().write_downstream_proxy_tasks()).poll(cx)
        };
        poll_fn(write).await.map(drop)
    }
}
