//! Early rejections: requests that two HTTP implementations could read differently, or that no listener
//! serves.

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode, header};

use super::grammar::is_host;
use super::headers::list;
use super::settings::EdgeSettings;

/// An answer given before a handler sees the request; the connection closes after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) why: &'static str,
}

impl Refusal {
    pub(super) const MALFORMED: Refusal = Refusal { status: 400, why: "malformed request" };
    pub(super) const TARGET: Refusal = Refusal { status: 400, why: "illegal request target" };
    pub(super) const NO_HOST: Refusal = Refusal { status: 400, why: "missing Host" };
    pub(super) const HOST: Refusal = Refusal { status: 400, why: "malformed Host" };
    pub(super) const LENGTHS: Refusal = Refusal { status: 400, why: "several Content-Length" };
    pub(super) const LENGTH_AND_CODING: Refusal =
        Refusal { status: 400, why: "Transfer-Encoding and Content-Length together" };
    pub(super) const HEAD_TIMEOUT: Refusal = Refusal { status: 408, why: "the request head took too long" };
    /// RFC 9110 §10.1.1.
    pub(super) const EXPECTATION: Refusal = Refusal { status: 417, why: "unknown expectation" };
    pub(super) const HEAD_TOO_LARGE: Refusal = Refusal { status: 431, why: "request header fields too large" };
    /// No tunnels to arbitrary hosts, and no echo of credentials (RFC 9110 §9.3.6 and §9.3.8).
    pub(super) const METHOD: Refusal = Refusal { status: 501, why: "method not implemented" };
    pub(super) const CODING: Refusal = Refusal { status: 501, why: "transfer coding not implemented" };
    pub(super) const BUSY: Refusal = Refusal { status: 503, why: "too many requests in flight" };

    /// The response.
    pub(super) fn answer(self) -> Response<Bytes> {
        let mut answer = Response::new(Bytes::from(format!("{}\n", self.why)));
        *answer.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::BAD_REQUEST);
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        if self == Refusal::BUSY {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        answer
    }

    /// The response in HTTP/1 bytes, for requests that never reach the parser.
    pub(super) fn bytes(self) -> Vec<u8> {
        let (head, body) = self.answer().into_parts();
        let mut bytes = format!("HTTP/1.1 {}\r\n", head.status).into_bytes();
        for (name, value) in &head.headers {
            bytes.extend_from_slice(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        }
        bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }
}

/// Checks a request of HTTP/2, whose framing is not in its head.
pub(super) fn validate(head: &Parts, settings: &EdgeSettings) -> Result<(), Refusal> {
    if head.headers.len() > settings.max_headers {
        return Err(Refusal::HEAD_TOO_LARGE);
    }
    if matches!(head.method, Method::CONNECT | Method::TRACE) {
        return Err(Refusal::METHOD);
    }
    let is_star = head.method == Method::OPTIONS && head.uri.path() == "*";
    let target = head.uri.path_and_query().map_or("", |target| target.as_str());
    let is_legal = |byte: &u8| (0x21..=0x7e).contains(byte) && !b"\"<>\\#".contains(byte);
    if !is_star && (!target.starts_with('/') || !target.as_bytes().iter().all(is_legal)) {
        return Err(Refusal::TARGET);
    }
    let mut hosts = head.headers.get_all(header::HOST).into_iter();
    let authority = head.uri.authority().map(|authority| authority.as_str().as_bytes());
    let host = hosts.next().map(HeaderValue::as_bytes);
    // RFC 9113 §8.3.1: both must name the same host.
    let differ = matches!((host, authority), (Some(host), Some(authority)) if !host.eq_ignore_ascii_case(authority));
    if hosts.next().is_some() || differ || !authority.or(host).is_none_or(is_host) {
        return Err(Refusal::HOST);
    }
    if list(&head.headers, header::EXPECT).any(|element| !element.eq_ignore_ascii_case("100-continue")) {
        return Err(Refusal::EXPECTATION);
    }
    Ok(())
}
