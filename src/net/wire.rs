//! A client's connection as seen from two sides: hyper, which reads requests from it and writes answers, and the server, which
//! needs to know more than hyper tells.
//!
//! Below hyper, each head is checked before it is passed on, a chunked body is checked against RFC 9112, and a write may not stall
//! for longer than a limit. Beside hyper, one can see whether the client is still there and when an answer was sent, and write interim
//! answers, which hyper's server cannot.

mod adapter;

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use memchr::memchr_iter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use super::chunks::Chunks;
use super::head::{self, Framing};
use super::refusal::Refusal;
use super::settings::EdgeSettings;
use super::stall::Stall;
use super::transport::Transport;
use crate::clock::ticks_ms;
use crate::sync::lock;

pub(super) use adapter::{WireIo, upgraded};

/// Maximum bytes read ahead of hyper while the client is watched. A client that sends more is not watched.
const AHEAD_BYTES_MAX: usize = 64 * 1024;
const CRLF: &[u8] = b"\r\n";
/// Bytes of a chunk's first line as passed to hyper: eight digits and CRLF.
const SIZE_LINE: usize = 10;
/// Lines of a head that are not fields: the first, and some empty ones before it.
const LINES_BESIDE_FIELDS: usize = 16;
/// Maximum interim answers per request; further ones are dropped.
const INTERIM_MAX: usize = 4;

/// The phase of a connection between two requests; times are of [`ticks_ms`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Idle since then.
    Idle(u64),
    /// A part of a head has arrived, its first byte then.
    Head(u64),
    /// A request is in progress.
    Busy,
}

/// The kind of the next bytes.
#[derive(Debug)]
enum Stage {
    Head,
    Length(u64),
    Chunks(Chunks),
    /// Not inspected: HTTP/2, which has its own framing.
    Opaque,
}

/// A callback that runs later, or is dropped.
type Then = Box<dyn FnOnce() + Send>;

/// A connection, shared by its two sides.
pub(super) struct Wire {
    state: Mutex<State>,
    settings: Arc<EdgeSettings>,
    /// The time at which the handler is polled in any case, by [`ticks_ms`].
    poll_handler_at_ms: AtomicU64,
}

struct State {
    /// `None` after an upgrade.
    transport: Option<Transport>,
    stage: Stage,
    phase: Phase,
    /// Checked, and not yet taken by hyper: a head, or the end of a chunked body.
    validated: BytesMut,
    /// Read, and not yet checked: an incomplete head, or early bytes.
    ahead: BytesMut,
    /// The part of `ahead` that was searched for a head's end.
    scanned: usize,
    refusal: Option<Refusal>,
    bytes_read: u64,
    killed: bool,
    has_ended: bool,
    /// hyper is finished with the connection.
    is_over: bool,
    /// hyper's waker, woken when the watcher has read bytes.
    reader: Option<Waker>,
    /// Whether the watcher has registered for reads after hyper.
    is_watched: bool,
    writer: Option<Waker>,
    is_write_blocked: bool,
    stall: Stall,
    interim: BytesMut,
    interims: usize,
    flushed: Option<oneshot::Sender<()>>,
    if_reset: Option<Then>,
    /// Whether the client has reset the connection.
    is_reset: bool,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").finish_non_exhaustive()
    }
}

impl Wire {
    pub(super) fn new(transport: Transport, is_http2: bool, settings: Arc<EdgeSettings>) -> Arc<Self> {
        let state = State {
            transport: Some(transport),
            stage: if is_http2 { Stage::Opaque } else { Stage::Head },
            phase: Phase::Idle(ticks_ms()),
            validated: BytesMut::new(),
            ahead: BytesMut::new(),
            scanned: 0,
            refusal: None,
            bytes_read: 0,
            killed: false,
            has_ended: false,
            is_over: false,
            reader: None,
            is_watched: false,
            writer: None,
            is_write_blocked: false,
            stall: Stall::new(settings.write_timeout),
            interim: BytesMut::new(),
            interims: 0,
            flushed: None,
            if_reset: None,
            is_reset: false,
        };
        Arc::new(Wire { state: Mutex::new(state), settings, poll_handler_at_ms: AtomicU64::new(u64::MAX) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while holding the lock.
        lock(&self.state)
    }

    pub(super) fn phase(&self) -> Phase {
        self.state().phase
    }

    /// Has the handler polled at that time, by [`ticks_ms`], unless something wakes it before.
    pub(super) fn poll_handler_at(&self, at_ms: u64) {
        self.poll_handler_at_ms.fetch_min(at_ms, Ordering::Relaxed);
    }

    /// The time of the next such poll; past ones are cleared.
    pub(super) fn handler_poll_ms(&self) -> u64 {
        self.poll_handler_at_ms.load(Ordering::Relaxed)
    }

    pub(super) fn clear_handler_poll(&self) {
        self.poll_handler_at_ms.store(u64::MAX, Ordering::Relaxed);
    }

    /// Waits for the first byte of a request, on a connection without hyper. `false`: the client ended it before.
    pub(super) fn poll_begun(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut state = self.state();
        let begun = state.poll_begun(cx);
        if begun.is_pending() {
            keep(&mut state.reader, cx);
            state.is_watched = false;
        }
        begun
    }

    /// The early rejection of the connection's last head, if any.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.state().refusal
    }

    /// All bytes read from the client since the connection began (after TLS).
    pub(super) fn bytes_read(&self) -> u64 {
        self.state().bytes_read
    }

    /// Whether bytes of a request's body are outstanding.
    pub(super) fn is_mid_body(&self) -> bool {
        match &self.state().stage {
            Stage::Head | Stage::Opaque => false,
            Stage::Length(left) => *left > 0,
            Stage::Chunks(chunks) => !chunks.is_over(),
        }
    }

    /// Ends the connection abruptly: hyper's next operation on it fails.
    pub(super) fn kill(&self) {
        let mut state = self.state();
        state.killed = true;
        let wakers = [state.reader.take(), state.writer.take()];
        drop(state);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// Marks hyper as finished with the connection: it will write no more.
    pub(super) fn end(&self) {
        let mut state = self.state();
        (state.flushed, state.is_over) = (None, true);
    }

    /// Takes the connection out of HTTP, with bytes that were read and not yet taken.
    pub(super) fn take(&self) -> Option<(Transport, BytesMut)> {
        let mut state = self.state();
        let transport = state.transport.take()?;
        Some((transport, std::mem::take(&mut state.ahead)))
    }

    /// Reports when everything that hyper has written so far was sent.
    pub(super) fn when_flushed(&self, delivery: oneshot::Sender<()>) {
        self.state().flushed = Some(delivery);
    }

    /// Runs `then` if the next event of the client is a reset.
    pub(super) fn if_reset(&self, then: Then) {
        let mut state = self.state();
        if !state.is_reset {
            state.if_reset = Some(then);
            return;
        }
        // hyper may have read the reset at the moment in which the answer was sent.
        drop(state);
        then();
    }

    /// Writes an interim answer before hyper's next bytes.
    pub(super) fn interim(&self, bytes: &[u8]) {
        let mut state = self.state();
        if state.interims < INTERIM_MAX {
            state.interims += 1;
            state.interim.extend_from_slice(bytes);
        }
        let writer = state.writer.take();
        drop(state);
        writer.into_iter().for_each(Waker::wake);
    }

    /// Waits until the client goes away. Bytes that it sends meanwhile are kept for hyper. Not while hyper reads a body.
    pub(super) async fn gone(&self) {
        /// Returns the read side to hyper when dropped.
        struct Watching<'a>(&'a Wire);
        impl Drop for Watching<'_> {
            fn drop(&mut self) {
                let mut state = self.0.state();
                if std::mem::take(&mut state.is_watched) {
                    let reader = state.reader.take();
                    drop(state);
                    reader.into_iter().for_each(Waker::wake);
                }
            }
        }
        let watching = Watching(self);
        std::future::poll_fn(|cx| watching.0.state().poll_gone(cx)).await;
    }
}

impl State {
    fn transport(&mut self) -> io::Result<Pin<&mut Transport>> {
        if self.killed {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        self.transport.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Reads from the connection itself, and records events of the client.
    fn poll_transport(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        let before = buf.filled().len();
        let read = ready!(self.transport()?.poll_read(cx, buf));
        let count = buf.filled().len() - before;
        let is_gone = || self.transport.as_ref().is_some_and(Transport::is_gone);
        self.is_reset |= match &read {
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
            Ok(()) => count == 0 && is_gone(),
        };
        if let Some(then) = self.if_reset.take().filter(|_| self.is_reset) {
            // Not while holding this lock.
            tokio::spawn(async move { then() });
        }
        read?;
        self.bytes_read += count as u64;
        self.has_ended |= count == 0;
        Poll::Ready(Ok(count))
    }

    fn poll_begun(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if self.ahead.is_empty() && !self.has_ended {
            let mut scratch = [0; 1024];
            let mut buf = ReadBuf::new(&mut scratch);
            // hyper will see the error itself.
            let _ = ready!(self.poll_transport(cx, &mut buf));
            self.ahead.extend_from_slice(buf.filled());
        }
        Poll::Ready(!(self.ahead.is_empty() && self.has_ended))
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [0; 1024];
        while self.ahead.len() < AHEAD_BYTES_MAX {
            if self.has_ended || self.is_over {
                return Poll::Ready(());
            }
            let mut buf = ReadBuf::new(&mut scratch);
            match self.poll_transport(cx, &mut buf) {
                Poll::Ready(Ok(count)) if count > 0 => {
                    self.ahead.extend_from_slice(buf.filled());
                    self.reader.take().into_iter().for_each(Waker::wake);
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        self.is_watched = true;
        Poll::Pending
    }

    /// Passes checked bytes to hyper, as far as it has room.
    fn hand_over(&mut self, buf: &mut ReadBuf<'_>) {
        let count = self.validated.len().min(buf.remaining());
        buf.put_slice(self.validated.get(..count).unwrap_or_default());
        self.validated.advance(count);
        if self.validated.is_empty() {
            // An idle connection keeps no buffer.
            self.validated = BytesMut::new();
        }
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
        settings: &EdgeSettings,
    ) -> Poll<io::Result<()>> {
        if !self.validated.is_empty() {
            self.hand_over(buf);
            return Poll::Ready(Ok(()));
        }
        match self.stage {
            Stage::Opaque => self.poll_transport(cx, buf).map_ok(drop),
            Stage::Head => self.poll_head(cx, buf, settings),
            Stage::Length(0) => {
                self.stage = Stage::Head;
                self.poll_head(cx, buf, settings)
            }
            Stage::Length(_) => self.poll_body(cx, buf),
            Stage::Chunks(_) => self.poll_chunks(cx, buf),
        }
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
        settings: &EdgeSettings,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        loop {
            if self.ahead.len() > self.scanned {
                if let Some(end) = head::end(&self.ahead, self.scanned) {
                    let (head, behind) = self.ahead.split_at(end);
                    let framing = validate(head, settings).and_then(|framing| match framing {
                        // The part of the body that has arrived is checked before it is answered.
                        Framing::Chunked if Chunks::new().decode(&mut behind.to_vec()).is_err() => {
                            Err(Refusal::MALFORMED)
                        }
                        framing => Ok(framing),
                    });
                    self.begin_body(framing)?;
                    self.validated = self.ahead.split_to(end);
                    self.scanned = 0;
                    if self.ahead.is_empty() {
                        self.ahead = BytesMut::new();
                    }
                    self.hand_over(buf);
                    return Poll::Ready(Ok(()));
                }
                self.scanned = self.ahead.len();
            }
            let lines = memchr_iter(b'\n', &self.ahead).count();
            if self.ahead.len() > settings.max_header_bytes || lines > settings.max_headers + LINES_BESIDE_FIELDS {
                return Poll::Ready(Err(self.refuse(Refusal::HEAD_TOO_LARGE)));
            }
            let Poll::Ready(count) = self.poll_transport(cx, buf)? else {
                let has_begun = self.ahead.len() > head::blank_lines(&self.ahead);
                self.phase = match (self.phase, has_begun) {
                    (Phase::Head(since), true) => Phase::Head(since),
                    (_, true) => Phase::Head(ticks_ms()),
                    (Phase::Idle(since), false) => Phase::Idle(since),
                    (_, false) => Phase::Idle(ticks_ms()),
                };
                return Poll::Pending;
            };
            if count == 0 {
                return Poll::Ready(Ok(()));
            }
            let read = buf.filled().get(before..).unwrap_or_default();
            // Usually a head arrives in one read, without following bytes.
            if self.ahead.is_empty()
                && let Some((head, behind)) = head::end(read, 0).and_then(|end| read.split_at_checked(end))
            {
                let framing = validate(head, settings);
                match framing {
                    Ok(Framing::Length(length)) if behind.len() as u64 <= length => {
                        self.begin_body(Ok(Framing::Length(length - behind.len() as u64)))?;
                        return Poll::Ready(Ok(()));
                    }
                    Err(_) => self.begin_body(framing)?,
                    Ok(_) => {}
                }
            }
            self.ahead.extend_from_slice(read);
            buf.set_filled(before);
        }
    }

    fn begin_body(&mut self, framing: Result<Framing, Refusal>) -> io::Result<()> {
        self.stage = match framing.map_err(|refusal| self.refuse(refusal))? {
            Framing::Length(length) => Stage::Length(length),
            Framing::Chunked => Stage::Chunks(Chunks::new()),
        };
        self.phase = Phase::Busy;
        self.interims = 0;
        Ok(())
    }

    fn refuse(&mut self, refusal: Refusal) -> io::Error {
        self.refusal = Some(refusal);
        self.phase = Phase::Busy;
        io::Error::new(io::ErrorKind::InvalidData, refusal.why)
    }

    fn poll_body(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(self.poll_ahead(cx, buf))?;
        let Stage::Length(left) = &mut self.stage else { return Poll::Ready(Ok(())) };
        let read = buf.filled().get(before..).unwrap_or_default();
        let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(read.len());
        *left -= taken as u64;
        if *left == 0 {
            self.stage = Stage::Head;
        }
        self.put_back(buf, before + taken);
        Poll::Ready(Ok(()))
    }

    /// Reads from the buffer of early bytes, or from the connection.
    fn poll_ahead(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        if self.ahead.is_empty() {
            return self.poll_transport(cx, buf);
        }
        let count = self.ahead.len().min(buf.remaining());
        buf.put_slice(self.ahead.get(..count).unwrap_or_default());
        self.ahead.advance(count);
        if self.ahead.is_empty() {
            self.ahead = BytesMut::new();
        }
        Poll::Ready(Ok(count))
    }

    /// Keeps the bytes after a request's end for the next one.
    fn put_back(&mut self, buf: &mut ReadBuf<'_>, end: usize) {
        let rest = buf.filled().get(end..).unwrap_or_default();
        if !rest.is_empty() {
            self.ahead = BytesMut::from([rest, &self.ahead].concat().as_slice());
            buf.set_filled(end);
        }
    }

    /// Passes a chunked body on in chunks of its own, one per read: a client that sends each byte as a chunk would
    /// cost far more than it sends.
    fn poll_chunks(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            // The size comes before the bytes, always with the same number of digits.
            let room = buf.initialize_unfilled();
            let Some((size, rest)) = room.split_at_mut_checked(SIZE_LINE).filter(|(_, rest)| rest.len() > CRLF.len())
            else {
                return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
            };
            let most = rest.len() - CRLF.len();
            let mut inner = ReadBuf::new(rest.get_mut(..most).unwrap_or_default());
            if ready!(self.poll_ahead(cx, &mut inner))? == 0 {
                return Poll::Ready(Ok(()));
            }
            let read = inner.filled().len();
            let Stage::Chunks(chunks) = &mut self.stage else { return Poll::Ready(Ok(())) };
            let Ok(decoded) = chunks.decode(inner.filled_mut()) else {
                let why = "the body is not in the chunked coding";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, why)));
            };
            if chunks.is_over() {
                self.validated = BytesMut::from(chunks.last().as_slice());
                let behind = rest.get(decoded.taken..read).unwrap_or_default();
                self.ahead = BytesMut::from([behind, &self.ahead].concat().as_slice());
                self.stage = Stage::Head;
            }
            if decoded.data > 0 {
                size.copy_from_slice(format!("{:08x}\r\n", decoded.data).as_bytes());
                rest.get_mut(decoded.data..decoded.data + CRLF.len()).unwrap_or_default().copy_from_slice(CRLF);
                buf.advance(SIZE_LINE + decoded.data + CRLF.len());
                return Poll::Ready(Ok(()));
            }
            if !self.validated.is_empty() {
                self.hand_over(buf);
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Writes the queued interim answers.
    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.interim.is_empty() {
            let interim = std::mem::take(&mut self.interim);
            let written = self.transport().map(|io| io.poll_write(cx, &interim));
            self.interim = interim;
            let count = ready!(written?)?;
            self.interim.advance(count);
        }
        Poll::Ready(Ok(()))
    }
}

fn validate(head: &[u8], settings: &EdgeSettings) -> Result<Framing, Refusal> {
    if head.len() > settings.max_header_bytes {
        return Err(Refusal::HEAD_TOO_LARGE);
    }
    head::validate(head, settings)
}

fn keep(waker: &mut Option<Waker>, cx: &Context<'_>) {
    if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *waker = Some(cx.waker().clone());
    }
}
