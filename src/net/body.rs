//! Bodies of upstream requests, and bounded reading of upstream answers.

use std::collections::TryReserveError;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream as _;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::io::{AsyncReadExt as _, Take};
use tokio::sync::oneshot;
use tokio_util::io::ReaderStream;

use super::progress::Progress;
use crate::clock::since_boot;

/// Bytes per read of a file.
const FILE_PIECE: usize = 64 * 1024;

/// The body of a request to an upstream.
#[derive(Debug)]
pub(super) enum Outgoing {
    /// Complete in memory.
    Whole(Full<Bytes>),
    /// Complete in memory, and worthless after a deadline.
    Due(Full<Bytes>, Deadline),
    /// Arriving while it is sent.
    FromClient(FromClient),
    /// Read from a file while it is sent.
    File(Box<OfFile>),
}

/// The deadline, by [`since_boot`], for handing a body to its connection. Checked as late as possible: when the bytes are taken.
#[derive(Debug, Clone)]
pub(super) struct Deadline {
    at: Duration,
    missed: Arc<AtomicBool>,
}

impl Deadline {
    pub(super) fn new(at: Duration) -> Self {
        Self { at, missed: Arc::default() }
    }

    /// Whether the deadline was missed: not a byte of the body was handed over.
    pub(super) fn is_missed(&self) -> bool {
        self.missed.load(Ordering::Relaxed)
    }

    /// Returns whether the deadline has passed, and if so, marks it as missed. Call it only before a byte was handed over.
    pub(super) fn check(&self) -> bool {
        let passed = since_boot() > self.at;
        if passed {
            self.missed.store(true, Ordering::Relaxed);
        }
        passed
    }
}

impl Outgoing {
    pub(super) fn complete(bytes: Bytes) -> Self {
        Outgoing::Whole(Full::new(bytes))
    }

    pub(super) fn due(bytes: Bytes, by: Deadline) -> Self {
        Outgoing::Due(Full::new(bytes), by)
    }

    /// Streams a client's body. The receiver gets what is left of it once it is no longer sent.
    pub(super) fn from_client(
        incoming: Incoming,
        progress: Arc<Progress>,
    ) -> (Self, oneshot::Receiver<Left>, oneshot::Sender<Never>) {
        let (over, left) = oneshot::channel();
        let (go_on, stop) = oneshot::channel();
        (Outgoing::FromClient(FromClient { incoming: Some(incoming), progress, over: Some(over), stop }), left, go_on)
    }

    /// The first `length` bytes of a file. A shorter file breaks the request.
    pub(super) fn file(file: tokio::fs::File, length: u64) -> Self {
        let stream = ReaderStream::with_capacity(file.take(length), FILE_PIECE);
        Outgoing::File(Box::new(OfFile { stream, left: length }))
    }
}

/// The body of a request, read from a file.
#[derive(Debug)]
pub(super) struct OfFile {
    stream: ReaderStream<Take<tokio::fs::File>>,
    left: u64,
}

/// A client's body on its way to an upstream, unbuffered: hyper reads what the upstream takes.
#[derive(Debug)]
pub(super) struct FromClient {
    incoming: Option<Incoming>,
    progress: Arc<Progress>,
    over: Option<oneshot::Sender<Left>>,
    /// Closed when the rest will not come, or its owner is gone: a truncated body must not look complete.
    stop: oneshot::Receiver<Never>,
}

/// An uninhabited type.
#[derive(Debug)]
pub(super) enum Never {}

/// The rest of a client's body that is no longer sent.
#[derive(Debug)]
pub(super) enum Left {
    /// Nothing: it was sent completely.
    Nothing,
    /// The body ended early, or is malformed.
    Broken,
    /// The rest, which the upstream did not read.
    Rest(Incoming),
}

impl FromClient {
    fn over(&mut self, left: Left) {
        match &left {
            Left::Nothing => self.progress.body_done.set(),
            Left::Broken => self.progress.body_lost.set(),
            Left::Rest(_) => {}
        }
        self.progress.waits_for_client.clear();
        self.progress.moved();
        if let Some(over) = self.over.take() {
            let _ = over.send(left);
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CutShort>>> {
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        let Poll::Ready(frame) = Pin::new(incoming).poll_frame(cx) else {
            self.progress.waits_for_client.set();
            ready!(Pin::new(&mut self.stop).poll(cx)).ok();
            self.over(Left::Broken);
            return Poll::Ready(Some(Err(CutShort)));
        };
        self.progress.waits_for_client.clear();
        self.progress.moved();
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                // Trailers come last; hyper does not poll for anything after them.
                if frame.is_trailers() || self.incoming.as_ref().is_some_and(Body::is_end_stream) {
                    self.over(Left::Nothing);
                }
                Some(Ok(frame))
            }
            Some(Err(_)) => {
                self.over(Left::Broken);
                Some(Err(CutShort))
            }
            None => {
                self.over(Left::Nothing);
                None
            }
        })
    }
}

impl Drop for FromClient {
    fn drop(&mut self) {
        if self.over.is_some()
            && let Some(rest) = self.incoming.take()
        {
            self.over(Left::Rest(rest));
        }
    }
}

/// The client's body ended before it was complete.
#[derive(Debug, thiserror::Error)]
#[error("the request body was cut short")]
pub(super) struct CutShort;

impl Body for Outgoing {
    type Data = Bytes;
    type Error = CutShort;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CutShort>>> {
        match self.get_mut() {
            Outgoing::Whole(full) => Pin::new(full).poll_frame(cx).map_err(|never| match never {}),
            Outgoing::Due(_, by) if by.check() => Poll::Ready(Some(Err(CutShort))),
            Outgoing::Due(full, _) => Pin::new(full).poll_frame(cx).map_err(|never| match never {}),
            Outgoing::FromClient(body) => body.poll_frame(cx),
            Outgoing::File(file) => Poll::Ready(match ready!(Pin::new(&mut file.stream).poll_next(cx)) {
                Some(Ok(piece)) => {
                    file.left = file.left.saturating_sub(piece.len() as u64);
                    Some(Ok(Frame::data(piece)))
                }
                None if file.left == 0 => None,
                Some(Err(_)) | None => Some(Err(CutShort)),
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Outgoing::Whole(full) | Outgoing::Due(full, _) => full.is_end_stream(),
            Outgoing::FromClient(body) => body.incoming.as_ref().is_none_or(Body::is_end_stream),
            Outgoing::File(file) => file.left == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Outgoing::Whole(full) | Outgoing::Due(full, _) => full.size_hint(),
            Outgoing::FromClient(body) => body.incoming.as_ref().map(Body::size_hint).unwrap_or_default(),
            Outgoing::File(file) => SizeHint::with_exact(file.left),
        }
    }
}

/// The size of a piece of a growing body. Pieces are joined at the end, so that a growing body is neither copied nor held twice
/// each time it outgrows its buffer.
const PIECE_BYTES: usize = 64 * 1024;
/// Bytes that bodies leave to the rest of a process with limited memory (`ulimit -v`): probed before a body's
/// first piece, and once for each further MiB.
const RESERVE_BYTES: usize = 16 * 1024 * 1024;
const PROBE_INTERVAL_BYTES: usize = 1024 * 1024;

/// A body that is collected in memory.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// The only chunk so far, which is not copied.
    only: Option<Bytes>,
    pieces: Vec<Vec<u8>>,
    len: usize,
    /// The body's length at the last probe.
    probed_at: Option<usize>,
}

impl Gathered {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds a chunk. An error means that the machine is out of memory; the process continues.
    pub(super) fn push(&mut self, chunk: Bytes) -> Result<(), TryReserveError> {
        self.len += chunk.len();
        if self.len == chunk.len() {
            self.only = Some(chunk);
            return Ok(());
        }
        for part in self.only.take().into_iter().chain([chunk]) {
            if self.pieces.last().is_none_or(|piece| piece.len() + part.len() > PIECE_BYTES) {
                self.pieces.push(Vec::new());
            }
            if let Some(piece) = self.pieces.last_mut() {
                if piece.capacity() - piece.len() < part.len() {
                    if self.probed_at.is_none_or(|at| self.len - at >= PROBE_INTERVAL_BYTES) {
                        self.probed_at = Some(self.len);
                        ask_for_spare()?;
                    }
                    piece.try_reserve(part.len())?;
                }
                piece.extend_from_slice(&part);
            }
        }
        Ok(())
    }

    /// The complete body. Each piece is freed as soon as it is copied. Errors are those of [`Gathered::push`].
    pub(super) fn complete(mut self) -> Result<Bytes, TryReserveError> {
        if let Some(only) = self.only {
            return Ok(only);
        }
        if self.pieces.len() <= 1 {
            return Ok(self.pieces.pop().unwrap_or_default().into());
        }
        let mut complete = Vec::new();
        ask_for_spare()?;
        complete.try_reserve(self.len)?;
        for piece in self.pieces {
            complete.extend_from_slice(&piece);
        }
        Ok(complete.into())
    }
}

/// Probes for memory that the rest of the program needs; an allocation failure would abort it.
fn ask_for_spare() -> Result<(), TryReserveError> {
    let mut spare = Vec::<u8>::new();
    spare.try_reserve_exact(RESERVE_BYTES)?;
    // Keeps the compiler from removing the unused allocation.
    std::hint::black_box(&mut spare);
    Ok(())
}

/// The reason why an answer could not be read completely.
pub(super) enum Unread {
    TooLarge,
    Broken(String),
}

/// Reads an answer's body, at most `limit` bytes.
pub(super) async fn collect<B>(body: B, limit: usize) -> Result<Bytes, Unread>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Unread::TooLarge),
        Err(error) => Err(Unread::Broken(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gathered_is_what_came() {
        assert!(Gathered::default().complete().unwrap().is_empty());
        for chunks in [1, 2, 3, 200] {
            let (mut body, mut all) = (Gathered::default(), Vec::new());
            for nth in 0..chunks {
                let chunk = vec![nth as u8; 64 * 1024 - nth];
                all.extend_from_slice(&chunk);
                body.push(chunk.into()).unwrap();
                assert_eq!(body.len(), all.len());
            }
            assert_eq!(body.complete().unwrap(), all, "{chunks}");
        }
    }
}
