//! Bodies of upstream requests, and bounded reading of upstream answers.

use std::collections::TryReserveError;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::mpsc;

use crate::clock::since_boot;

/// Chunks that may wait between the client and the upstream. With pingora's reads of at most 64 KiB this bounds what one
/// streamed request holds in memory to about a quarter of a MiB.
const CHUNKS_AHEAD: usize = 4;

/// The body of a request to an upstream.
#[derive(Debug)]
pub(super) enum Outgoing {
    /// Known whole.
    Whole(Full<Bytes>),
    /// Known whole, and worth nothing after a time.
    Due(Full<Bytes>, SendBy),
    /// Arriving while it is sent.
    Stream(Streamed),
}

/// Until when a body may be handed to its connection, by [`since_boot`]. It is asked as late as can be: when the bytes are taken.
#[derive(Debug, Clone)]
pub(super) struct SendBy {
    at: Duration,
    missed: Arc<AtomicBool>,
}

impl SendBy {
    pub(super) fn new(at: Duration) -> Self {
        Self { at, missed: Arc::default() }
    }

    /// It was too late: not a byte of the body was handed over.
    pub(super) fn is_missed(&self) -> bool {
        self.missed.load(Ordering::Relaxed)
    }

    pub(super) fn has_passed(&self) -> bool {
        let passed = since_boot() > self.at;
        if passed {
            self.missed.store(true, Ordering::Relaxed);
        }
        passed
    }
}

impl Outgoing {
    pub(super) fn whole(bytes: Bytes) -> Self {
        Outgoing::Whole(Full::new(bytes))
    }

    pub(super) fn due(bytes: Bytes, by: SendBy) -> Self {
        Outgoing::Due(Full::new(bytes), by)
    }

    /// A body of `length` bytes (or of unknown length) and the end to feed it by.
    pub(super) fn stream(length: Option<u64>) -> (Feed, Self) {
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        (Feed(sender), Outgoing::Stream(Streamed { receiver, length, left: length, ended: false }))
    }
}

enum Piece {
    Chunk(Bytes),
    End,
}

/// Feeds a streamed body. Dropping it before [`Feed::end`] breaks the upstream request: a body whose client went away must
/// not look like a complete one.
pub(super) struct Feed(mpsc::Sender<Piece>);

impl Feed {
    /// Hands a chunk over, waiting for room. False when nobody reads the body any more.
    pub(super) async fn chunk(&self, chunk: Bytes) -> bool {
        self.0.send(Piece::Chunk(chunk)).await.is_ok()
    }

    /// The body is complete.
    pub(super) async fn end(self) {
        let _ = self.0.send(Piece::End).await;
    }
}

/// The receiving end of a [`Feed`].
#[derive(Debug)]
pub(super) struct Streamed {
    receiver: mpsc::Receiver<Piece>,
    length: Option<u64>,
    left: Option<u64>,
    ended: bool,
}

impl std::fmt::Debug for Piece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Piece::Chunk(chunk) => write!(f, "Chunk({} bytes)", chunk.len()),
            Piece::End => f.write_str("End"),
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
            Outgoing::Due(_, by) if by.has_passed() => Poll::Ready(Some(Err(CutShort))),
            Outgoing::Due(full, _) => Pin::new(full).poll_frame(cx).map_err(|never| match never {}),
            Outgoing::Stream(stream) if stream.ended => Poll::Ready(None),
            Outgoing::Stream(stream) => Poll::Ready(match ready!(stream.receiver.poll_recv(cx)) {
                Some(Piece::Chunk(chunk)) => {
                    stream.left = stream.left.map(|left| left.saturating_sub(chunk.len() as u64));
                    Some(Ok(Frame::data(chunk)))
                }
                Some(Piece::End) => {
                    stream.ended = true;
                    None
                }
                None => {
                    stream.ended = true;
                    Some(Err(CutShort))
                }
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Outgoing::Whole(full) | Outgoing::Due(full, _) => full.is_end_stream(),
            Outgoing::Stream(stream) => stream.ended || stream.length == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Outgoing::Whole(full) | Outgoing::Due(full, _) => full.size_hint(),
            Outgoing::Stream(stream) => stream.left.map(SizeHint::with_exact).unwrap_or_default(),
        }
    }
}

/// Bytes of a body that lie in one piece of memory while it grows; more of them are put together at its end. So a body that grows is
/// not copied, and not twice in memory, each time that its piece is full.
const PIECE: usize = 4 * 1024 * 1024;
/// Bytes that bodies leave to others where the process may not have more (`ulimit -v`).
const SPARE: usize = 16 * 1024 * 1024;

/// A body that is gathered whole.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// A chunk that is the whole body so far: it is not copied.
    only: Option<Bytes>,
    pieces: Vec<Vec<u8>>,
    len: usize,
}

impl Gathered {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds a chunk. An error: the machine has no memory for it, and the process lives on.
    pub(super) fn push(&mut self, chunk: Bytes) -> Result<(), TryReserveError> {
        self.len += chunk.len();
        if self.len == chunk.len() {
            self.only = Some(chunk);
            return Ok(());
        }
        for part in self.only.take().into_iter().chain([chunk]) {
            if self.pieces.last().is_none_or(|piece| piece.len() + part.len() > PIECE) {
                self.pieces.push(Vec::new());
            }
            if let Some(piece) = self.pieces.last_mut() {
                if piece.capacity() - piece.len() < part.len() {
                    reserve(piece, part.len())?;
                }
                piece.extend_from_slice(&part);
            }
        }
        Ok(())
    }

    /// All of it. Each piece is given back as soon as it is copied. An error as with [`Gathered::push`].
    pub(super) fn whole(mut self) -> Result<Bytes, TryReserveError> {
        if let Some(only) = self.only {
            return Ok(only);
        }
        if self.pieces.len() <= 1 {
            return Ok(self.pieces.pop().unwrap_or_default().into());
        }
        let mut whole = Vec::new();
        reserve(&mut whole, self.len)?;
        for piece in self.pieces {
            whole.extend_from_slice(&piece);
        }
        Ok(whole.into())
    }
}

/// Takes memory for a body only where there is some left for the rest of the program, which ends when it gets none.
fn reserve(buffer: &mut Vec<u8>, more: usize) -> Result<(), TryReserveError> {
    let mut spare = Vec::<u8>::new();
    spare.try_reserve_exact(SPARE)?;
    // Or the compiler sees that nobody uses it, and does not ask.
    std::hint::black_box(&mut spare);
    drop(spare);
    buffer.try_reserve(more)
}

/// Why an answer could not be read whole.
pub(super) enum Unread {
    TooLarge,
    Broken(String),
}

/// Reads an answer's body whole, at most `limit` bytes of it.
pub(super) async fn collect(body: Incoming, limit: usize) -> Result<Bytes, Unread> {
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
        assert!(Gathered::default().whole().unwrap().is_empty());
        for chunks in [1, 2, 3, 200] {
            let (mut body, mut all) = (Gathered::default(), Vec::new());
            for nth in 0..chunks {
                let chunk = vec![nth as u8; 64 * 1024 - nth];
                all.extend_from_slice(&chunk);
                body.push(chunk.into()).unwrap();
                assert_eq!(body.len(), all.len());
            }
            assert_eq!(body.whole().unwrap(), all, "{chunks}");
        }
    }
}
