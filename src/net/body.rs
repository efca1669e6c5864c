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

use super::exchange::Progress;
use crate::clock::since_boot;

/// What is read of a file at once.
const FILE_PIECE: usize = 64 * 1024;

/// The body of a request to an upstream.
#[derive(Debug)]
pub(super) enum Outgoing {
    /// Known whole.
    Whole(Full<Bytes>),
    /// Known whole, and worth nothing after a time.
    Due(Full<Bytes>, SendBy),
    /// Arriving while it is sent.
    FromClient(FromClient),
    /// Read from a file while it is sent.
    File(Box<OfFile>),
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

    /// A client's body as it comes; and what is left of it when it is not sent on any more, until which the last is kept.
    pub(super) fn from_client(
        incoming: Incoming,
        progress: Arc<Progress>,
    ) -> (Self, oneshot::Receiver<Left>, oneshot::Sender<Never>) {
        let (over, left) = oneshot::channel();
        let (go_on, stop) = oneshot::channel();
        (Outgoing::FromClient(FromClient { incoming: Some(incoming), progress, over: Some(over), stop }), left, go_on)
    }

    /// The first `length` bytes of a file. One that is shorter breaks the request.
    pub(super) fn file(file: tokio::fs::File, length: u64) -> Self {
        let stream = ReaderStream::with_capacity(file.take(length), FILE_PIECE);
        Outgoing::File(Box::new(OfFile { stream, left: length }))
    }
}

/// A file that is read while it is sent.
#[derive(Debug)]
pub(super) struct OfFile {
    stream: ReaderStream<Take<tokio::fs::File>>,
    left: u64,
}

/// A client's body on its way to an upstream, as it comes: hyper reads of it what the upstream takes.
#[derive(Debug)]
pub(super) struct FromClient {
    incoming: Option<Incoming>,
    progress: Arc<Progress>,
    over: Option<oneshot::Sender<Left>>,
    /// Closed when the rest will not come, or nobody is there any more who would tell: what is cut must not look complete.
    stop: oneshot::Receiver<Never>,
}

/// Nothing of it exists.
#[derive(Debug)]
pub(super) enum Never {}

/// What is left of a client's body that nobody sends on any more.
#[derive(Debug)]
pub(super) enum Left {
    /// Nothing: it was sent whole.
    Nothing,
    /// It is cut short, or framed wrongly.
    Broken,
    /// This; the upstream did not want it.
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
                // Trailers are the last: hyper asks for nothing behind them.
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
            Outgoing::Due(_, by) if by.has_passed() => Poll::Ready(Some(Err(CutShort))),
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

/// Bytes of a body that lie in one piece of memory while it grows; more of them are put together at its end. So a body that grows is
/// not copied, and not twice in memory, each time that its piece is full.
const PIECE: usize = 64 * 1024;
/// Bytes that bodies leave to others where the process may not have more (`ulimit -v`): whether they are there is asked before a body's
/// first piece, and once for each further MiB of it.
const SPARE: usize = 16 * 1024 * 1024;
const ASK_EACH: usize = 1024 * 1024;

/// A body that is gathered whole.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// A chunk that is the whole body so far: it is not copied.
    only: Option<Bytes>,
    pieces: Vec<Vec<u8>>,
    len: usize,
    /// Its length when the memory was asked about.
    asked_at: Option<usize>,
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
                    if self.asked_at.is_none_or(|at| self.len - at >= ASK_EACH) {
                        self.asked_at = Some(self.len);
                        ask_for_spare()?;
                    }
                    piece.try_reserve(part.len())?;
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
        ask_for_spare()?;
        whole.try_reserve(self.len)?;
        for piece in self.pieces {
            whole.extend_from_slice(&piece);
        }
        Ok(whole.into())
    }
}

/// Whether some memory is left for the rest of the program, which ends when it gets none.
fn ask_for_spare() -> Result<(), TryReserveError> {
    let mut spare = Vec::<u8>::new();
    spare.try_reserve_exact(SPARE)?;
    // Or the compiler sees that nobody uses it, and does not ask.
    std::hint::black_box(&mut spare);
    Ok(())
}

/// Why an answer could not be read whole.
pub(super) enum Unread {
    TooLarge,
    Broken(String),
}

/// Reads an answer's body whole, at most `limit` bytes of it.
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
