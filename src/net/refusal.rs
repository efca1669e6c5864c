//! What is not let in: requests whose meaning two HTTP implementations could disagree about, and such as nobody here serves.
//!
//! pingora's parser refuses by itself: several `Host` fields, a `Host` that differs from an absolute target, user names in
//! either, bad or differing lengths, `Transfer-Encoding` on HTTP/1.0 and one that does not end in `chunked`. The rest is here.

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderValue, Method, Version, header};
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;

use super::edge::EdgeSettings;
use super::headers::list;

/// An answer given before any handler saw the request; the connection closes after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) why: &'static str,
}

impl Refusal {
    pub(super) const MALFORMED: Refusal = Refusal { status: 400, why: "malformed request" };
    pub(super) const TARGET: Refusal = Refusal { status: 400, why: "illegal request target" };
    pub(super) const HEAD_TIMEOUT: Refusal = Refusal { status: 408, why: "the request head took too long" };
    pub(super) const HEAD_TOO_LARGE: Refusal = Refusal { status: 431, why: "request header fields too large" };
    pub(super) const BUSY: Refusal = Refusal { status: 503, why: "too many requests in flight" };
}

/// pingora parses at most this many header fields and then fails without saying so (`MAX_HEADERS` in its v1/common.rs).
pub(super) const PINGORA_MAX_HEADERS: usize = 256;

/// Judges a request whose head was read.
pub(super) fn judge(session: &ServerSession, settings: &EdgeSettings) -> Option<Refusal> {
    let head = session.req_header();
    if head.headers.len() > settings.max_headers {
        return Some(Refusal::HEAD_TOO_LARGE);
    }
    let refused = |status, why| Some(Refusal { status, why });
    if !session.is_http2() {
        let raw = session.to_h1_raw();
        if raw.len() > settings.max_header_bytes {
            return Some(Refusal::HEAD_TOO_LARGE);
        }
        if let Some(refusal) = judge_http1(head, &raw) {
            return Some(refusal);
        }
        // http's parser drops a fragment without a word, so the line itself is asked.
        if raw.split(|&byte| byte == b'\n').find(|line| line.len() > 1).is_some_and(|line| line.contains(&b'#')) {
            return Some(Refusal::TARGET);
        }
    }
    if matches!(head.method, Method::CONNECT | Method::TRACE) {
        // RFC 9110 §9.3.6 and §9.3.8: no tunnels to anywhere, and no echo of credentials.
        return refused(501, "method not implemented");
    }
    if !target_is_legal(head) {
        return Some(Refusal::TARGET);
    }
    if list(&head.headers, header::EXPECT).any(|element| !element.eq_ignore_ascii_case("100-continue")) {
        return refused(417, "unknown expectation"); // RFC 9110 §10.1.1
    }
    None
}

fn judge_http1(head: &RequestHeader, raw: &Bytes) -> Option<Refusal> {
    let refused = |status, why| Some(Refusal { status, why });
    // RFC 9112 §3.2. HTTP/1.0 had no Host.
    let host = head.headers.get(header::HOST);
    if host.is_none() && head.version >= Version::HTTP_11 {
        return refused(400, "missing Host");
    }
    if host.is_some_and(|host| Authority::try_from(host.as_bytes()).is_err()) {
        return refused(400, "malformed Host");
    }
    // RFC 9112 §6.3 allows to take equal ones for one. A list, or a sign, is what two readers could read differently.
    let mut lengths = head.headers.get_all(header::CONTENT_LENGTH).into_iter();
    let is_length = |length: &HeaderValue| !length.is_empty() && length.as_bytes().iter().all(u8::is_ascii_digit);
    if lengths.next().is_some_and(|length| !is_length(length)) || lengths.next().is_some() {
        return refused(400, "several Content-Length");
    }
    if head.headers.contains_key(header::TRANSFER_ENCODING) {
        // RFC 9112 §6.1 allows to go on by ignoring the length, and pingora did (it removed it); but a sender of both is
        // an attack or a bug, and refusing is the same paragraph's other choice.
        if raw.split(|&byte| byte == b'\n').any(is_content_length) {
            return refused(400, "Transfer-Encoding and Content-Length together");
        }
        // pingora undoes `chunked` only; a body inside another coding would lose its label on the way.
        let mut codings = list(&head.headers, header::TRANSFER_ENCODING);
        if !codings.next().is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) || codings.next().is_some() {
            return refused(501, "transfer coding not implemented");
        }
    }
    None
}

fn is_content_length(line: &[u8]) -> bool {
    const NAME: &[u8] = b"content-length";
    line.get(..NAME.len()).is_some_and(|name| name.eq_ignore_ascii_case(NAME))
        && matches!(line.get(NAME.len()), Some(b':' | b' ' | b'\t'))
}

/// RFC 9112 §3.2: origin form, absolute form, or `*` of OPTIONS; of legal bytes, so that the target sent on is the target
/// that was judged. `{`, `}`, `|`, `^` and `` ` `` are let through in queries because browsers send them (WHATWG URL,
/// query percent-encode set).
fn target_is_legal(head: &RequestHeader) -> bool {
    let raw = head.raw_path();
    if raw == b"*" {
        return head.method == Method::OPTIONS;
    }
    if raw.iter().any(|byte| !(0x21..=0x7e).contains(byte) || b"\"<>\\#".contains(byte)) {
        return false;
    }
    let Some(parsed) = head.uri.path_and_query() else {
        return false;
    };
    if raw.starts_with(b"/") {
        // If http's parser had to change anything, two readers would see two targets.
        return parsed.as_str().as_bytes() == raw;
    }
    let scheme_end = raw.windows(3).position(|three| three == b"://");
    scheme_end
        .and_then(|end| raw.get(..end))
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"http") || scheme.eq_ignore_ascii_case(b"https"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_legal_or_refused() {
        let legal = |method: &str, target: &str| {
            // Some pingora refuses by itself.
            RequestHeader::build("GET", target.as_bytes(), None).is_ok_and(|mut head| {
                head.set_method(method.parse().unwrap());
                target_is_legal(&head)
            })
        };
        for target in ["/", "/a?b=c&d=%20", "/a?q={x|y}", "//double", "http://host/p?q", "https://host", "/a[0]?f[x]=1"]
        {
            assert!(legal("GET", target), "{target}");
        }
        for target in ["/a b", "/a<b>", "/ü", "ftp://host/", "host:80", "*", "/a\\b", "/\"", "a/b"] {
            assert!(!legal("GET", target), "{target}");
        }
        assert!(legal("OPTIONS", "*"));
    }

    #[test]
    fn content_length_lines_are_recognised() {
        for line in [&b"Content-Length: 3"[..], b"content-length:3", b"CONTENT-LENGTH : 3"] {
            assert!(is_content_length(line));
        }
        for line in [&b"X-Content-Length: 3"[..], b"Content-Length-X: 3", b"Content"] {
            assert!(!is_content_length(line));
        }
    }
}
