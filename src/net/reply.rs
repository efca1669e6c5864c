//! Answers as hyper bodies, complete or streamed from an upstream, and their outcome.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, Version, header};
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::headers::{HopByHop, drop_fields, says_length, strip_hop_by_hop};
use super::progress::Progress;
use super::tap::Tap;
use super::upstream::UpstreamBody;
use super::wire::Wire;

/// The piece size of a complete answer on HTTP/2: hyper waits for the client's window between two pieces.
const PIECE_BYTES: usize = 16 * 1024;

/// The body of an answer.
pub(super) struct ReplyBody {
    kind: Kind,
    /// Whether the end is hidden: hyper removes the length of an answer without a body, but 304 may have one (RFC 9110 §8.6).
    hides_end: bool,
    progress: Arc<Progress>,
    delivery: Option<DeliverySignal>,
}

enum Kind {
    Whole(Bytes),
    Streamed(Box<Streamed>),
    /// Pieces produced here, as they come.
    Live(mpsc::Receiver<Bytes>),
}

struct Streamed {
    body: UpstreamBody,
    tap: Option<Tap>,
    /// The reason why it is cut off here.
    why: Option<String>,
}

/// Reports that an answer was written completely; dropped otherwise.
pub(super) struct DeliverySignal {
    pub(super) sender: oneshot::Sender<()>,
    /// HTTP/1: the connection, which knows when the last byte was sent. HTTP/2: `None`; it is reported once h2 has taken all.
    pub(super) wire: Option<Arc<Wire>>,
}

impl DeliverySignal {
    /// For an HTTP/2 answer without a waiting client: a client that opens no window for it loses the stream.
    pub(super) fn of_stream(stall: Duration, end: CancellationToken) -> Option<Self> {
        let (sender, delivered) = oneshot::channel();
        let runtime = tokio::runtime::Handle::try_current().ok()?;
        runtime.spawn(async move {
            // Reported, or dropped with the stream.
            if tokio::time::timeout(stall, delivered).await.is_err() {
                end.cancel();
            }
        });
        Some(DeliverySignal { sender, wire: None })
    }
}

/// An answer that cannot be completed: only the end of the connection (or stream) can tell the client.
#[derive(Debug, thiserror::Error)]
#[error("the answer was cut: {0}")]
pub(super) struct Cut(String);

impl ReplyBody {
    pub(super) fn complete(bytes: Bytes, progress: Arc<Progress>, delivery: Option<DeliverySignal>) -> Self {
        ReplyBody { kind: Kind::Whole(bytes), hides_end: false, progress, delivery }
    }

    pub(super) fn streamed(
        body: UpstreamBody,
        tap: Option<Tap>,
        progress: Arc<Progress>,
        delivery: DeliverySignal,
    ) -> Self {
        ReplyBody {
            kind: Kind::Streamed(Box::new(Streamed { body, tap, why: None })),
            hides_end: false,
            progress,
            delivery: Some(delivery),
        }
    }

    pub(super) fn live(pieces: mpsc::Receiver<Bytes>, progress: Arc<Progress>, delivery: DeliverySignal) -> Self {
        ReplyBody { kind: Kind::Live(pieces), hides_end: false, progress, delivery: Some(delivery) }
    }

    /// No body, for an answer whose head describes a body that is not sent.
    pub(super) fn none(progress: Arc<Progress>, delivery: Option<DeliverySignal>) -> Self {
        ReplyBody { kind: Kind::Whole(Bytes::new()), hides_end: true, progress, delivery }
    }

    fn is_whole(&self) -> bool {
        match &self.kind {
            Kind::Whole(rest) => rest.is_empty(),
            Kind::Streamed(streamed) => streamed.why.is_none() && streamed.body.is_end_stream(),
            Kind::Live(pieces) => pieces.is_closed() && pieces.is_empty(),
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = self.get_mut();
        let of_http2 = this.delivery.as_ref().is_some_and(|delivery| delivery.wire.is_none());
        match &mut this.kind {
            Kind::Whole(rest) if rest.is_empty() => Poll::Ready(None),
            Kind::Whole(rest) => {
                let length = if of_http2 { rest.len().min(PIECE_BYTES) } else { rest.len() };
                this.progress.sent(length);
                Poll::Ready(Some(Ok(Frame::data(rest.split_to(length)))))
            }
            Kind::Live(pieces) => match pieces.poll_recv(cx) {
                Poll::Pending => {
                    this.progress.waits_for_upstream();
                    Poll::Pending
                }
                Poll::Ready(piece) => Poll::Ready(piece.map(|piece| {
                    this.progress.sent(piece.len());
                    Ok(Frame::data(piece))
                })),
            },
            Kind::Streamed(streamed) if streamed.why.is_some() => {
                Poll::Ready(Some(Err(Cut(streamed.why.clone().unwrap_or_default()))))
            }
            Kind::Streamed(streamed) => match Pin::new(&mut streamed.body).poll_frame(cx) {
                Poll::Pending => {
                    this.progress.waits_for_upstream();
                    Poll::Pending
                }
                Poll::Ready(Some(Err(error))) => {
                    // The bytes before the error are written first; hyper would drop them if it got the error at once.
                    streamed.why = Some(error.to_string());
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                Poll::Ready(Some(Ok(frame))) => {
                    if let Some(data) = frame.data_ref() {
                        if let Some(tap) = &mut streamed.tap {
                            tap.chunk(data);
                        }
                        this.progress.sent(data.len());
                    }
                    match frame.into_trailers() {
                        Ok(mut trailers) => {
                            strip_hop_by_hop(&mut trailers);
                            Poll::Ready(Some(Ok(Frame::trailers(trailers))))
                        }
                        Err(frame) => Poll::Ready(Some(Ok(frame))),
                    }
                }
                Poll::Ready(None) => Poll::Ready(None),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_whole() && !self.hides_end
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            _ if self.hides_end => SizeHint::default(),
            Kind::Whole(rest) => SizeHint::with_exact(rest.len() as u64),
            Kind::Streamed(streamed) => streamed.body.size_hint(),
            Kind::Live(_) => SizeHint::default(),
        }
    }
}

impl Drop for ReplyBody {
    fn drop(&mut self) {
        let is_whole = self.is_whole();
        let Some(delivery) = self.delivery.take().filter(|_| is_whole) else { return };
        match delivery.wire {
            Some(wire) => wire.when_flushed(delivery.sender),
            None => drop(delivery.sender.send(())),
        }
    }
}

/// Prepares the head for the client: removes hop-by-hop fields except `Connection`, which [`Exchange::send_response`](super::Exchange) sets or
/// removes; sets the framing for `length` bytes, if known. 1xx and 204 have no length (RFC 9110 §8.6); for 304 (and HEAD, where the
/// caller passes it) it is the length of what was not sent.
pub(super) fn response_head(parts: &mut http::response::Parts, length: Option<u64>) {
    let hop = HopByHop::from_headers(&parts.headers);
    drop_fields(&mut parts.headers, |name| hop.has(name) && *name != header::CONNECTION);
    parts.version = Version::HTTP_11;
    if parts.status.is_informational() || parts.status == StatusCode::NO_CONTENT {
        parts.headers.remove(header::CONTENT_LENGTH);
    } else if let Some(length) = length
        && parts.status != StatusCode::NOT_MODIFIED
        && !says_length(&parts.headers, length)
    {
        parts.headers.insert(header::CONTENT_LENGTH, length.into());
    }
}

/// An interim answer (RFC 9110 §15.2) as HTTP/1.1 bytes.
pub(super) fn interim(status: StatusCode, headers: &HeaderMap) -> Vec<u8> {
    let mut headers = headers.clone();
    strip_hop_by_hop(&mut headers);
    headers.remove(header::CONTENT_LENGTH);
    let reason = status.canonical_reason().unwrap_or("Interim");
    let mut bytes = format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).into_bytes();
    for (name, value) in &headers {
        bytes.extend_from_slice(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}
