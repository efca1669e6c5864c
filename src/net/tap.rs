//! A copy of the start of an answer that is passed on, to be parsed afterwards without delaying it.

use std::fmt;
use std::io::Read as _;

use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::response::Parts;

/// Maximum bytes kept of an answer, before and after decoding. Our choice: answers that create a call are short.
pub const TAP_BYTES_MAX: usize = 64 * 1024;

/// The start of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tapped {
    /// The status.
    pub status: u16,
    /// The content type.
    pub content_type: Option<String>,
    /// The content coding, if any.
    pub coding: Option<String>,
    /// The first bytes of the body, as they were passed on.
    pub body: Vec<u8>,
}

impl Tapped {
    /// The decoded body. `None`: the coding is unknown, or the body is broken.
    pub fn plain(&self) -> Option<Vec<u8>> {
        let Some(coding) = &self.coding else { return Some(self.body.clone()) };
        let (mut out, raw, max) = (Vec::new(), self.body.as_slice(), TAP_BYTES_MAX as u64);
        match coding.as_str() {
            "gzip" | "x-gzip" => flate2::read::MultiGzDecoder::new(raw).take(max).read_to_end(&mut out).ok()?,
            "deflate" => flate2::read::ZlibDecoder::new(raw).take(max).read_to_end(&mut out).ok()?,
            "br" => brotli_decompressor::Decompressor::new(raw, 4096).take(max).read_to_end(&mut out).ok()?,
            _ => return None,
        };
        Some(out)
    }
}

/// Given to a relay, it calls back at the end of the answer, or when it was cut off. Only successful answers that may be
/// text are copied, not audio or event streams.
pub struct Tap {
    seen: Option<Tapped>,
    done: Option<Box<dyn FnOnce(Tapped) + Send>>,
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tap").field("seen", &self.seen).finish_non_exhaustive()
    }
}

impl Tap {
    /// A tap that calls `done`.
    pub fn new(done: impl FnOnce(Tapped) + Send + 'static) -> Self {
        Self { seen: None, done: Some(Box::new(done)) }
    }

    pub(super) fn head(&mut self, parts: &Parts) {
        let text = |name| parts.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_ascii_lowercase);
        let content_type = text(CONTENT_TYPE);
        let kind = content_type.as_deref().unwrap_or("json");
        if parts.status.is_success() && ["json", "xml", "csv"].iter().any(|word| kind.contains(word)) {
            let coding = text(CONTENT_ENCODING).filter(|coding| coding != "identity");
            self.seen = Some(Tapped { status: parts.status.as_u16(), content_type, coding, body: Vec::new() });
        }
    }

    pub(super) fn chunk(&mut self, chunk: &[u8]) {
        if let Some(seen) = &mut self.seen {
            let room = TAP_BYTES_MAX - seen.body.len();
            seen.body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if let (Some(seen), Some(done)) = (self.seen.take(), self.done.take()) {
            done(seen);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::{Arc, Mutex};

    use http::Response;

    use super::*;

    #[test]
    fn what_was_seen_is_told_once_and_is_bounded() {
        for (content_type, status, told) in [
            ("application/json", 201, true),
            ("text/event-stream", 200, false),
            ("audio/mpeg", 200, false),
            ("application/json", 422, false),
        ] {
            let seen = Arc::new(Mutex::new(Vec::new()));
            let into = seen.clone();
            let mut tap = Tap::new(move |tapped| into.lock().unwrap().push(tapped));
            let (parts, ()) =
                Response::builder().status(status).header("content-type", content_type).body(()).unwrap().into_parts();
            tap.head(&parts);
            for _ in 0..3 {
                tap.chunk(&[b' '; TAP_BYTES_MAX / 2]);
            }
            drop(tap);
            let seen = seen.lock().unwrap();
            assert_eq!(seen.len(), usize::from(told), "{content_type} {status}");
            assert!(seen.iter().all(|one| one.body.len() == TAP_BYTES_MAX));
        }
    }

    #[test]
    fn codings_are_undone() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"{\"sid\":\"CA1\"}").unwrap();
        let body = gzip.finish().unwrap();
        let tapped = |coding: &str| Tapped { coding: Some(coding.to_owned()), body: body.clone(), ..Tapped::default() };
        assert_eq!(tapped("gzip").plain().unwrap(), b"{\"sid\":\"CA1\"}");
        assert_eq!(tapped("br").plain(), None);
        assert_eq!(tapped("zstd").plain(), None);
    }
}
