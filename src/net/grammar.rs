//! Bytes that a head may contain, and where (RFC 9110, RFC 9112).

use http::uri::Authority;

/// Whether it is a host with or without port, and without user (RFC 9110 §4.2.4). Commas, which RFC 3986 allows, are ambiguous.
pub(super) fn is_host(text: &[u8]) -> bool {
    let name = text.iter().take_while(|byte| is(**byte, PLAIN_HOST)).count();
    let is_port = |port: &str| port.is_empty() || port.parse::<u16>().is_ok() && !port.starts_with('+');
    match text.get(name..) {
        Some([]) if name > 0 => return true,
        Some([b':', port @ ..]) if name > 0 => return str::from_utf8(port).is_ok_and(is_port),
        _ if text.contains(&b',') => return false,
        _ => {}
    }
    let Ok(authority) = Authority::try_from(text) else { return false };
    let port = authority.as_str().strip_prefix(authority.host()).unwrap_or("@");
    !authority.host().is_empty() && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

/// `tchar` of RFC 9110 §5.6.2.
pub(super) fn is_token(byte: u8) -> bool {
    is(byte, TOKEN)
}

/// Whether a field value or quoted text may contain the byte (RFC 9110 §5.5, §5.6.4): no control characters but the tab.
pub(super) fn is_text(byte: u8) -> bool {
    is(byte, TEXT)
}

pub(super) const TOKEN: u8 = 1;

pub(super) const TEXT: u8 = 2;

/// A byte allowed in a request's first line.
pub(super) const LINE: u8 = 4;

/// A byte allowed in a target.
pub(super) const TARGET: u8 = 8;

/// A byte of the common hosts: names and IPv4 addresses.
pub(super) const PLAIN_HOST: u8 = 16;

/// The contexts in which each byte is allowed: one table look-up per byte of a head.
static KINDS: [u8; 256] = kinds();

/// Whether a byte is allowed in a context.
pub(super) fn is(byte: u8, kind: u8) -> bool {
    KINDS.get(usize::from(byte)).is_some_and(|kinds| kinds & kind != 0)
}

/// Whether all bytes are allowed in a context. Branch-free within the loop.
pub(super) fn all(bytes: &[u8], kind: u8) -> bool {
    bytes.iter().fold(kind, |kind, byte| kind & KINDS.get(usize::from(*byte)).copied().unwrap_or_default()) != 0
}

const fn kinds() -> [u8; 256] {
    let mut kinds = [0; 256];
    let mut at = 0;
    while at < 256 {
        let byte = at as u8;
        let alphanumeric = byte.is_ascii_alphanumeric();
        if alphanumeric || matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~') {
            kinds[at] |= TOKEN;
        }
        if byte == b'\t' || (byte >= b' ' && byte != 0x7f) {
            kinds[at] |= TEXT;
        }
        if matches!(byte, b' '..=b'~') {
            kinds[at] |= LINE;
        }
        // `{`, `}`, `|`, `^` and `` ` `` are allowed because browsers send them in queries (WHATWG URL, query percent-encode set).
        if !matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'#') {
            kinds[at] |= TARGET;
        }
        if alphanumeric || matches!(byte, b'-' | b'.' | b'_') {
            kinds[at] |= PLAIN_HOST;
        }
        at += 1;
    }
    kinds
}
