//! The connection's byte stream with eyes: what pingora's sessions do not tell.
//!
//! pingora times each read, not the head of a request; it repairs request lines that RFC 9112 §3 wants refused; it takes lines
//! that end in LF alone, and chunks that RFC 9112 §7.1 does not know; it reads up to 1 MiB of headers; and it has no time limit
//! for writing a response head. All are visible from the stream, so they are watched here, below the session, without touching it.
//!
//! Writes are gathered here, too: pingora writes an answer's head and body apart and flushes at its end, and gives buffers only
//! to the connections of its own listener.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use pingora::protocols::l4::stream::DEFAULT_L4_WRITE_BUFFER_SIZE;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufWriter, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Sleep;

use super::chunks::{Chunks, Malformed};

const NOT_CHUNKED: &str = "the body is not in the chunked coding";

/// What was seen on a connection so far; shared between the stream and the loop that serves it.
#[derive(Debug)]
pub(super) struct Sight {
    head: Mutex<Head>,
    began: Notify,
    half_closed: Notify,
    bytes_read: AtomicU64,
    if_reset: Mutex<Option<Then>>,
}

/// Something to be done later, or dropped.
pub(super) struct Then(Box<dyn FnOnce() + Send>);

impl std::fmt::Debug for Then {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Then")
    }
}

/// The request being read, byte by byte.
#[derive(Debug, Default)]
struct Head {
    stage: Stage,
    bytes: usize,
    lines: usize,
    limit: usize,
    line: RequestLine,
    ends: LineEnds,
    /// What was read together with the head and stands behind it.
    behind: Vec<u8>,
}

/// What the next bytes are.
#[derive(Debug, Default)]
enum Stage {
    /// Not looked at.
    #[default]
    Whatever,
    Head,
    /// The head is at its end; how its body is framed was not said yet.
    Read,
    Chunks(Chunks),
    /// The body is not in the chunked coding: nothing of it is given to who would read it otherwise.
    Malformed,
}

/// Whether all lines of a head end in CRLF, and where the empty line is that ends it. RFC 9112 §2.2 allows a reader to take LF alone
/// for a line's end; who stands before it may not, and would find another head.
#[derive(Debug, Default)]
struct LineEnds {
    after_cr: bool,
    line_bytes: usize,
    illegal: bool,
}

impl LineEnds {
    /// Whether an empty line ends here.
    fn feed(&mut self, byte: u8) -> bool {
        let after_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
        if byte == b'\n' {
            self.illegal |= !after_cr;
            return std::mem::take(&mut self.line_bytes) == 0;
        }
        self.illegal |= after_cr;
        self.line_bytes += usize::from(byte != b'\r');
        false
    }
}

/// Whether the first line is `method SP request-target SP version` in visible ASCII (RFC 9112 §3).
#[derive(Debug, Default)]
struct RequestLine {
    begun: bool,
    ended: bool,
    after_cr: bool,
    spaces: usize,
    illegal: bool,
}

impl RequestLine {
    fn feed(&mut self, byte: u8) {
        if self.ended {
            return;
        }
        match byte {
            // RFC 9112 §2.2: empty lines before the request line are skipped.
            b'\r' | b'\n' if !self.begun => return,
            b'\n' => {
                self.ended = true;
                self.illegal |= self.spaces != 2;
            }
            b'\r' => self.illegal |= self.after_cr,
            b' ' => self.spaces += 1,
            0x21..=0x7e => {}
            _ => self.illegal = true,
        }
        self.illegal |= self.after_cr && byte != b'\n';
        self.after_cr = byte == b'\r';
        self.begun = true;
    }
}

impl Sight {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Sight {
            head: Mutex::new(Head::default()),
            began: Notify::new(),
            half_closed: Notify::new(),
            bytes_read: AtomicU64::new(0),
            if_reset: Mutex::default(),
        })
    }

    fn head(&self) -> MutexGuard<'_, Head> {
        // Nothing panics while it is held; a poisoned lock still guards plain counters.
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has something done if the next that is heard of the client is that it has reset the connection.
    pub(super) fn if_reset(&self, then: Box<dyn FnOnce() + Send>) {
        *self.if_reset.lock().unwrap_or_else(PoisonError::into_inner) = Some(Then(then));
    }

    /// Something was read: bytes, the end, or an error. `is_reset` tells whether the connection is no more.
    fn heard(&self, is_reset: impl FnOnce() -> bool) {
        let then = self.if_reset.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Then(then)) = then
            && is_reset()
        {
            then();
        }
    }

    /// A new request head is expected, of which `already` was read with the request before it (pipelining).
    /// More than `limit` bytes of it make the next read fail.
    pub(super) fn expect_head(&self, already: &[u8], limit: usize) {
        let mut head = self.head();
        *head = Head { stage: Stage::Head, limit, ..Head::default() };
        head.feed(already);
    }

    /// The head is complete. What follows is a body in the chunked coding, or is not looked at.
    ///
    /// # Errors
    /// What was read of the body already is not in that coding.
    pub(super) fn head_done(&self, is_chunked: bool) -> Result<(), Malformed> {
        let mut head = self.head();
        let behind = std::mem::take(&mut head.behind);
        head.stage = Stage::Whatever;
        if is_chunked {
            let mut chunks = Chunks::new();
            chunks.feed(&behind)?;
            head.stage = Stage::Chunks(chunks);
        }
        Ok(())
    }

    /// Nothing that follows is read for what it says.
    pub(super) fn look_away(&self) {
        self.head().stage = Stage::Whatever;
    }

    /// A byte of the expected head has arrived.
    pub(super) fn has_begun(&self) -> bool {
        self.head().bytes > 0
    }

    /// Waits for the first byte of the expected head.
    pub(super) async fn begun(&self) {
        while !self.has_begun() {
            self.began.notified().await;
        }
    }

    /// The request line broke RFC 9112 §3 (pingora would have escaped it and gone on).
    pub(super) fn illegal_line(&self) -> bool {
        self.head().line.illegal
    }

    /// A line of the head did not end in CRLF, or had a CR elsewhere.
    pub(super) fn illegal_line_end(&self) -> bool {
        self.head().ends.illegal
    }

    /// More than the limit was read without coming to the head's end; only then is reading ended.
    pub(super) fn head_too_large(&self) -> bool {
        let head = self.head();
        head.bytes > head.limit
    }

    /// Lines seen while reading the head.
    pub(super) fn head_lines(&self) -> usize {
        self.head().lines
    }

    /// All bytes read from the client since the connection began (after TLS).
    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// Waits until one direction of the connection has ended.
    pub(super) async fn half_closed(&self) {
        self.half_closed.notified().await;
    }
}

impl Head {
    fn feed(&mut self, bytes: &[u8]) {
        for (nth, &byte) in bytes.iter().enumerate() {
            self.bytes += 1;
            self.lines += usize::from(byte == b'\n');
            // RFC 9112 §2.2: empty lines before the request line are skipped.
            let is_over = self.ends.feed(byte) && self.line.ended;
            self.line.feed(byte);
            if is_over {
                self.stage = Stage::Read;
                self.behind = bytes.get(nth + 1..).unwrap_or_default().to_vec();
                return;
            }
        }
    }
}

/// A connection whose reads are seen by a [`Sight`] and whose writes may not stall for longer than a limit.
#[derive(Debug)]
pub(super) struct Watched {
    inner: BufWriter<Stream>,
    sight: Arc<Sight>,
    write_timeout: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Watched {
    pub(super) fn new(inner: Stream, sight: Arc<Sight>, write_timeout: Duration) -> Self {
        let inner = BufWriter::with_capacity(DEFAULT_L4_WRITE_BUFFER_SIZE, inner);
        Watched { inner, sight, write_timeout, stalled: None }
    }

    /// Passes a write's result on; a write that stays pending for the whole limit becomes `TimedOut`.
    fn bounded<T>(&mut self, cx: &mut Context<'_>, write: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if write.is_ready() {
            self.stalled = None;
            return write;
        }
        let limit = self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client did not read for too long")))
    }
}

/// The stream below, for a connection that speaks HTTP no more: nothing of it is looked at or gathered from here on.
///
/// # Errors
/// What was written before cannot be sent.
pub(super) async fn unwatched(mut stream: Stream) -> io::Result<Stream> {
    stream.flush().await?;
    if !stream.as_any().is::<Watched>() {
        return Ok(stream);
    }
    let watched = stream.into_any().downcast::<Watched>();
    watched.map(|watched| watched.inner.into_inner()).map_err(|_| io::ErrorKind::Unsupported.into())
}

/// Whether nothing of the connection is left. A client that had closed it answers what is written to it with a reset; read is then
/// the end that it sent before, and no error.
fn is_closed(stream: &Stream) -> bool {
    /// `TCP_CLOSE` of Linux's `net/tcp_states.h`.
    const TCP_CLOSE: u8 = 7;
    SocketDigest::from_raw_fd(stream.id()).tcp_info().is_some_and(|info| info.tcpi_state == TCP_CLOSE)
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        {
            let head = this.sight.head();
            let why = match &head.stage {
                Stage::Head if head.bytes > head.limit => Some("the request head is too large"),
                Stage::Malformed => Some(NOT_CHUNKED),
                _ => None,
            };
            if let Some(why) = why {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, why)));
            }
        }
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut this.inner).poll_read(cx, buf));
        let is_end = buf.filled().len() == before;
        this.sight.heard(|| match &read {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => true,
            _ => is_end && is_closed(this.inner.get_ref()),
        });
        read?;
        let bytes = buf.filled().get(before..).unwrap_or_default();
        if bytes.is_empty() {
            if buf.remaining() > 0 {
                this.sight.half_closed.notify_one();
            }
            return Poll::Ready(Ok(()));
        }
        this.sight.bytes_read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let mut head = this.sight.head();
        match &mut head.stage {
            Stage::Head => {
                head.feed(bytes);
                drop(head);
                this.sight.began.notify_one();
            }
            Stage::Chunks(chunks) => match chunks.feed(bytes) {
                Ok(()) if chunks.is_over() => head.stage = Stage::Whatever,
                Ok(()) => {}
                Err(Malformed) => {
                    head.stage = Stage::Malformed;
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, NOT_CHUNKED)));
                }
            },
            Stage::Whatever | Stage::Read | Stage::Malformed => {}
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let write = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.bounded(cx, write)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flush = Pin::new(&mut this.inner).poll_flush(cx);
        this.bounded(cx, flush)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.sight.half_closed.notify_one();
        let shutdown = Pin::new(&mut this.inner).poll_shutdown(cx);
        this.bounded(cx, shutdown)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let write = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.bounded(cx, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

// The rest of what pingora asks of a stream is the inner stream's business.

#[async_trait]
impl Shutdown for Watched {
    async fn shutdown(&mut self) {
        // What was written of an answer is for the client, also where the rest will never come.
        let _ = self.inner.flush().await;
        Shutdown::shutdown(&mut **self.inner.get_mut()).await;
    }
}

impl UniqueID for Watched {
    fn id(&self) -> UniqueIDType {
        self.inner.get_ref().id()
    }
}

impl Ssl for Watched {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.inner.get_ref().get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.inner.get_ref().selected_alpn_proto()
    }
}

impl GetTimingDigest for Watched {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.inner.get_ref().get_timing_digest()
    }
}

impl GetProxyDigest for Watched {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.inner.get_ref().get_proxy_digest()
    }
}

impl GetSocketDigest for Watched {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.get_ref().get_socket_digest()
    }
}

impl Peek for Watched {}

#[cfg(test)]
mod tests {
    use super::{Head, RequestLine, Stage};

    fn illegal(line: &str) -> bool {
        let mut check = RequestLine::default();
        line.bytes().for_each(|byte| check.feed(byte));
        assert!(check.ended, "{line:?}");
        check.illegal
    }

    #[test]
    fn request_lines_are_judged_as_rfc9112_3_writes_them() {
        for line in ["GET / HTTP/1.1\r\n", "\r\n\r\nGET /a?b=c HTTP/1.1\r\n", "OPTIONS * HTTP/1.1\r\n"] {
            assert!(!illegal(line), "{line:?}");
        }
        for line in [
            "GET /a b HTTP/1.1\r\n",
            "GET  / HTTP/1.1\r\n",
            "GET / HTTP/1.1 \r\n",
            "GET /\t HTTP/1.1\r\n",
            "GET /\r HTTP/1.1\r\n",
            "GET /ü HTTP/1.1\r\n",
            "GET /\r\n",
        ] {
            assert!(illegal(line), "{line:?}");
        }
    }

    #[test]
    fn heads_end_at_the_first_empty_line_and_only_crlf_ends_one() {
        let read = |bytes: &str| {
            let mut head = Head { stage: Stage::Head, ..Head::default() };
            head.feed(bytes.as_bytes());
            head
        };
        for (bytes, behind) in
            [("GET / HTTP/1.1\r\n\r\n", ""), ("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n0\r\n\r\n", "0\r\n\r\n")]
        {
            let head = read(bytes);
            assert!(matches!(head.stage, Stage::Read) && !head.ends.illegal, "{bytes:?}");
            assert_eq!(head.behind, behind.as_bytes());
            assert_eq!(head.bytes, bytes.len() - behind.len());
        }
        assert!(matches!(read("GET / HTTP/1.1\r\nHost: a\r\n\r").stage, Stage::Head));
        for bytes in [
            "GET / HTTP/1.1\n\n",
            "\nGET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\n",
            "GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\r\n\r\n",
        ] {
            assert!(read(bytes).ends.illegal, "{bytes:?}");
        }
    }
}
