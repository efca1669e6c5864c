//! The head of an HTTP/1 request, checked strictly against RFC 9112 before a parser sees it. Pure.
//!
//! Parsers are lenient in different ways: bare LF, repeated equal lengths, a length beside chunks, a fragment. A proxy before or a
//! server behind may read the same bytes differently. So what two parsers could read differently is rejected here.

use http::Version;
use memchr::{memchr, memchr_iter, memchr2};

use super::grammar::{LINE, TARGET, TEXT, TOKEN, all, is_host};
use super::refusal::Refusal;
use super::settings::EdgeSettings;

/// The framing of a request's body (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// A number of bytes; 0 without any header.
    Length(u64),
    /// In the chunked coding.
    Chunked,
}

/// The end of a head that starts with these bytes, of which `scanned` were searched before.
pub(super) fn end(bytes: &[u8], scanned: usize) -> Option<usize> {
    let begin = blank_lines(bytes);
    // The line end may be split between two reads.
    let from = scanned.saturating_sub(2).max(begin);
    memchr_iter(b'\n', bytes.get(from..)?).map(|at| from + at).find_map(|at| match bytes.get(at + 1..)? {
        [b'\n', ..] => Some(at + 2),
        [b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    })
}

/// The bytes of empty lines before a request, which are skipped (RFC 9112 §2.2).
pub(super) fn blank_lines(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count()
}

/// Checks a complete head.
///
/// # Errors
/// The answer for a rejected request.
pub(super) fn validate(head: &[u8], settings: &EdgeSettings) -> Result<Framing, Refusal> {
    let mut lines = Lines(head);
    let mut first = lines.next_line()?;
    while first.is_empty() && !lines.0.is_empty() {
        first = lines.next_line()?;
    }
    let (authority, version) = request_line(first)?;
    let mut fields = Fields::default();
    let mut count = 0;
    loop {
        let line = lines.next_line()?;
        if line.is_empty() {
            break;
        }
        count += 1;
        if count > settings.max_headers {
            return Err(Refusal::HEAD_TOO_LARGE);
        }
        fields.take(line)?;
    }
    fields.framing(authority, version)
}

/// The lines of a head. Each must end in CRLF and contain no other CR.
struct Lines<'a>(&'a [u8]);

impl<'a> Lines<'a> {
    fn next_line(&mut self) -> Result<&'a [u8], Refusal> {
        let end = memchr2(b'\r', b'\n', self.0).ok_or(Refusal::MALFORMED)?;
        let (line, rest) = self.0.split_at(end);
        self.0 = rest.strip_prefix(b"\r\n").ok_or(Refusal::MALFORMED)?;
        Ok(line)
    }
}

/// Parses `method SP request-target SP version` (RFC 9112 §3). Returns the authority of an absolute target, and the version.
fn request_line(line: &[u8]) -> Result<(Option<&[u8]>, Version), Refusal> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Refusal::TARGET);
    };
    if !all(line, LINE) || target.is_empty() {
        return Err(Refusal::TARGET);
    }
    if method.is_empty() || !all(method, TOKEN) {
        return Err(Refusal::MALFORMED);
    }
    let version = match version {
        b"HTTP/1.1" => Version::HTTP_11,
        b"HTTP/1.0" => Version::HTTP_10,
        _ => return Err(Refusal::MALFORMED),
    };
    if matches!(method, b"CONNECT" | b"TRACE") {
        return Err(Refusal::METHOD);
    }
    if !all(target, TARGET) {
        return Err(Refusal::TARGET);
    }
    match target {
        [b'/', ..] => Ok((None, version)),
        b"*" if method == b"OPTIONS" => Ok((None, version)),
        _ => Ok((Some(authority(target)?), version)),
    }
}

/// The authority of a target in absolute form (RFC 9112 §3.2.2).
fn authority(target: &[u8]) -> Result<&[u8], Refusal> {
    let scheme = [&b"http://"[..], b"https://"]
        .into_iter()
        .find(|scheme| target.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme)));
    let rest = scheme.and_then(|scheme| target.get(scheme.len()..)).ok_or(Refusal::TARGET)?;
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    Ok(rest.get(..end).unwrap_or_default())
}

/// The relevant fields of a head.
#[derive(Default)]
struct Fields<'a> {
    host: Option<&'a [u8]>,
    length: Option<&'a [u8]>,
    lengths: usize,
    codings: Codings,
}

/// The elements of `Transfer-Encoding`.
#[derive(Default)]
struct Codings {
    is_said: bool,
    count: usize,
    ends_in_chunked: bool,
}

impl<'a> Fields<'a> {
    fn take(&mut self, line: &'a [u8]) -> Result<(), Refusal> {
        let colon = memchr(b':', line).ok_or(Refusal::MALFORMED)?;
        let (name, value) = (line.get(..colon).unwrap_or_default(), line.get(colon + 1..).unwrap_or_default());
        // Whitespace before the colon, and folded lines, are not tokens (RFC 9112 §5.1, §5.2).
        if name.is_empty() || !all(name, TOKEN) || !all(value, TEXT) {
            return Err(Refusal::MALFORMED);
        }
        let value = value.trim_ascii();
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                // RFC 9112 §3.2.
                let is_second = self.host.replace(value).is_some();
                return if is_second || !is_host(value) { Err(Refusal::HOST) } else { Ok(()) };
            }
            6 if name.eq_ignore_ascii_case(b"expect") => {
                let is_known = |element: &[u8]| element.eq_ignore_ascii_case(b"100-continue");
                return if elements(value).all(is_known) { Ok(()) } else { Err(Refusal::EXPECTATION) };
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                self.lengths += 1;
                self.length = Some(value);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                self.codings.is_said = true;
                for coding in elements(value) {
                    self.codings.count += 1;
                    self.codings.ends_in_chunked = coding.eq_ignore_ascii_case(b"chunked");
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn framing(&self, authority: Option<&[u8]>, version: Version) -> Result<Framing, Refusal> {
        match (self.host, authority) {
            // HTTP/1.0 had no Host.
            (None, _) if version == Version::HTTP_11 => return Err(Refusal::NO_HOST),
            (_, Some(authority)) if !is_host(authority) => return Err(Refusal::HOST),
            (Some(host), Some(authority)) if !host.eq_ignore_ascii_case(authority) => return Err(Refusal::HOST),
            _ => {}
        }
        // RFC 9112 §6.3 allows merging equal values. A list, or a sign, could be read differently by two parsers.
        let length = self.length.map(|text| number(text).ok_or(Refusal::LENGTHS)).transpose()?;
        if self.lengths > 1 {
            return Err(Refusal::LENGTHS);
        }
        if !self.codings.is_said {
            return Ok(Framing::Length(length.unwrap_or_default()));
        }
        // RFC 9112 §6.1 allows ignoring the length; but a sender of both is attacking or broken, and rejecting is the same
        // paragraph's other option.
        if length.is_some() {
            return Err(Refusal::LENGTH_AND_CODING);
        }
        if version != Version::HTTP_11 || !self.codings.ends_in_chunked {
            return Err(Refusal::MALFORMED);
        }
        // A body in another coding would lose its label when forwarded.
        if self.codings.count > 1 {
            return Err(Refusal::CODING);
        }
        Ok(Framing::Chunked)
    }
}

fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // hyper uses the two highest values as markers.
    std::str::from_utf8(text).ok()?.parse().ok().filter(|length| *length < u64::MAX - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framing(head: &str) -> Result<Framing, u16> {
        assert_eq!(end(head.as_bytes(), 0), Some(head.len()), "{head:?}");
        validate(head.as_bytes(), &EdgeSettings::default()).map_err(|refusal| refusal.status)
    }

    fn with(target: &str, fields: &str) -> Result<Framing, u16> {
        framing(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n"))
    }

    #[test]
    fn rfc9112_2_a_head_ends_with_its_first_empty_line_however_it_comes() {
        let head = b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nrest";
        for cut in 0..=head.len() {
            let found = end(&head[..cut], 0);
            assert_eq!(found, (cut >= head.len() - 4).then_some(head.len() - 4), "{cut}");
            assert_eq!(end(head, cut.min(head.len() - 5)), Some(head.len() - 4), "{cut}");
        }
        assert_eq!(end(b"GET / HTTP/1.1\n\n", 0), Some(16), "and is refused");
        assert_eq!(end(b"\r\n\r\n\r\n", 0), None);
    }

    #[test]
    fn rfc9112_3_targets_are_legal_or_refused() {
        for target in ["/", "/a?b=c&d=%20", "/a?q={x|y}", "//double", "http://a/p?q", "HTTP://A", "/a[0]?f[x]=1"] {
            assert_eq!(with(target, ""), Ok(Framing::Length(0)), "{target}");
        }
        for target in ["/a b", "/a<b>", "/ü", "ftp://a/", "a:80", "*", "/a\\b", "/\"", "a/b", "", "/a#b", "http://"] {
            assert_eq!(with(target, ""), Err(400), "{target}");
        }
        assert_eq!(framing("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"), Ok(Framing::Length(0)));
        for method in ["CONNECT", "TRACE"] {
            assert_eq!(framing(&format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n")), Err(501));
        }
        for line in [
            "GET /",
            "GET / HTTP/1.2",
            "GET / HTTP/2.0",
            "GET / http/1.1",
            " GET / HTTP/1.1",
            "G\tT / HTTP/1.1",
            "G(T / HTTP/1.1",
        ] {
            assert_eq!(framing(&format!("{line}\r\nHost: a\r\n\r\n")), Err(400), "{line:?}");
        }
    }

    #[test]
    fn rfc9112_3_2_there_is_one_host_and_it_is_one() {
        assert_eq!(framing("GET / HTTP/1.1\r\n\r\n"), Err(400));
        assert_eq!(framing("GET / HTTP/1.0\r\n\r\n"), Ok(Framing::Length(0)));
        for host in ["a", "a:1", "a:", "[::1]:80", "10.0.0.1", "A.b-c_d"] {
            assert_eq!(framing(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")), Ok(Framing::Length(0)), "{host}");
        }
        for host in ["", "a b", "u@a", "a:x", "a:+1", "a:99999", "a/b", "a,b", ":80"] {
            assert_eq!(framing(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")), Err(400), "{host}");
        }
        assert_eq!(with("/", "Host: a\r\n"), Err(400));
        assert_eq!(with("http://b/", ""), Err(400));
        assert_eq!(with("http://u@a/", ""), Err(400));
    }

    #[test]
    fn rfc9112_5_fields_are_names_colons_and_text() {
        assert_eq!(with("/", "X:\r\nY: \tü\t \r\n"), Ok(Framing::Length(0)));
        for field in [
            "X : 1\r\n",
            " X: 1\r\n",
            "X\r\n",
            ": 1\r\n",
            "X: a\0\r\n",
            "X: a\x07\r\n",
            "X: 1\r\n folded\r\n",
            "X: 1\n",
            "X: 1\rY: 2\r\n",
            "X(: 1\r\n",
        ] {
            assert_eq!(with("/", field), Err(400), "{field:?}");
        }
        assert_eq!(with("/", &"X: 1\r\n".repeat(99)), Ok(Framing::Length(0)));
        assert_eq!(with("/", &"X: 1\r\n".repeat(100)), Err(431));
        assert_eq!(with("/", "Expect: 100-Continue\r\n"), Ok(Framing::Length(0)));
        assert_eq!(with("/", "Expect: 100-continue, tea\r\n"), Err(417));
    }

    #[test]
    fn rfc9112_6_a_body_is_framed_in_one_way() {
        assert_eq!(with("/", "content-length: 12\r\n"), Ok(Framing::Length(12)));
        assert_eq!(with("/", "TRANSFER-ENCODING: Chunked\r\n"), Ok(Framing::Chunked));
        for fields in [
            "Content-Length: 3\r\nContent-Length: 3\r\n",
            "Content-Length: 3, 3\r\n",
            "Content-Length: +3\r\n",
            "Content-Length:\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Content-Length: 18446744073709551615\r\n",
            "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
            "Transfer-Encoding: gzip\r\n",
            "Transfer-Encoding: chunked, gzip\r\n",
            "Transfer-Encoding:\r\n",
        ] {
            assert_eq!(with("/", fields), Err(400), "{fields:?}");
        }
        for fields in
            ["Transfer-Encoding: gzip, chunked\r\n", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"]
        {
            assert_eq!(with("/", fields), Err(501), "{fields:?}");
        }
        assert_eq!(framing("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), Err(400));
    }
}
