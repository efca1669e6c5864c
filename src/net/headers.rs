//! Headers at a hop: hop-by-hop fields and `X-Forwarded-*`. Pure.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::str::FromStr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// RFC 7239; never written, and not trusted from unknown peers.
const FORWARDED: HeaderName = header::FORWARDED;

/// Headers that belong to one connection even when `Connection` does not name them (RFC 9110 §7.6.1, and `HTTP2-Settings`
/// of the withdrawn h2c upgrade, RFC 9113 §3.1).
static HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
];

/// Removes the fields that concern only the connection of a message: the fixed list of RFC 9110 §7.6.1 and those that
/// `Connection` names. All other fields keep their values and their order; lines of one field become adjacent.
///
/// `Host`, `Content-Length` and the like cannot be smuggled away by naming them in `Connection`: framing and routing fields
/// are never dropped on a sender's word (the attack is old: <https://nathandavison.com/blog/abusing-http-hop-by-hop-request-headers>).
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let hop = HopByHop::from_headers(headers);
    drop_fields(headers, |name| hop.has(name));
}

/// The fields of a message that concern only the connection it came over.
pub(super) struct HopByHop(Vec<HeaderName>);

impl HopByHop {
    pub(super) fn from_headers(headers: &HeaderMap) -> Self {
        let named = list(headers, header::CONNECTION)
            // The usual elements of `Connection` are in the fixed list anyway.
            .filter(|name| !["keep-alive", "te", "upgrade"].iter().any(|one| one.eq_ignore_ascii_case(name)))
            .filter_map(|name| HeaderName::from_str(name).ok())
            .filter(|name| {
                !matches!(*name, header::HOST | header::CONTENT_LENGTH | header::AUTHORIZATION | header::CONTENT_TYPE)
            });
        HopByHop(named.collect())
    }

    pub(super) fn has(&self, name: &HeaderName) -> bool {
        HOP_BY_HOP.contains(name) || self.0.contains(name)
    }
}

/// Removes fields and keeps the order of the others, which removing them one by one from the map would not.
pub(super) fn drop_fields(headers: &mut HeaderMap, is_dropped: impl Fn(&HeaderName) -> bool) {
    if headers.keys().any(&is_dropped) {
        *headers = without(headers, is_dropped);
    }
}

/// The other fields, in their order.
pub(super) fn without(headers: &HeaderMap, is_dropped: impl Fn(&HeaderName) -> bool) -> HeaderMap {
    let mut kept = HeaderMap::with_capacity(headers.len());
    let mut last: Option<(&HeaderName, bool)> = None;
    for (name, value) in headers {
        // Lines of one field are adjacent.
        let is_dropped = match last {
            Some((before, is_dropped)) if std::ptr::eq(before, name) => is_dropped,
            _ => is_dropped(name),
        };
        last = Some((name, is_dropped));
        if !is_dropped {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
}

/// Whether there is one `Content-Length`, with this value.
pub(super) fn says_length(headers: &HeaderMap, length: u64) -> bool {
    let mut said = headers.get_all(header::CONTENT_LENGTH).iter();
    let first = said.next().and_then(|said| said.to_str().ok()?.parse().ok());
    first == Some(length) && said.next().is_none()
}

/// Joins several `Cookie` fields: HTTP/2 may split them, HTTP/1.1 may not (RFC 9113 §8.2.3, RFC 6265 §5.4).
pub fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1
        && let Ok(whole) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, whole);
    }
}

/// The elements of a comma-separated list field, of all its lines, trimmed; lines that are not text are skipped.
pub fn list(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|element| !element.is_empty())
}

/// Whether a list field has an element, ignoring case.
pub fn has(headers: &HeaderMap, name: HeaderName, element: &str) -> bool {
    list(headers, name).any(|found| found.eq_ignore_ascii_case(element))
}

/// The hop a request came over, for [`forwarded`].
#[derive(Debug, Clone, Copy)]
pub struct Hop<'a> {
    /// The peer of the connection, if known.
    pub peer: Option<IpAddr>,
    /// Whether the connection uses TLS.
    pub tls: bool,
    /// `Host` or `:authority`, as sent.
    pub host: Option<&'a str>,
    /// Whether the peer is one of [`TrustedPeers`], so that its `X-Forwarded-*` fields are kept and continued.
    pub trusted: bool,
}

/// Writes `X-Forwarded-For`, `-Proto` and `-Host`. From a trusted peer the chain is continued (`For` is appended, `Proto`
/// and `Host` of the first hop stay); from anyone else every `X-Forwarded-*` field, and `Forwarded`, goes, and what was seen here stands instead.
pub fn forwarded(headers: &mut HeaderMap, hop: Hop<'_>) {
    let mut chain = String::new();
    if hop.trusted {
        list(headers, FORWARDED_FOR).for_each(|earlier| chain.extend([earlier, ", "]));
        drop_fields(headers, |name| *name == FORWARDED_FOR);
    } else {
        drop_fields(headers, |name| name.as_str().starts_with("x-forwarded-") || *name == FORWARDED);
    }
    if let Some(peer) = hop.peer {
        let _ = write!(chain, "{}", peer.to_canonical());
    }
    chain.truncate(chain.trim_end_matches(", ").len());
    headers.reserve(3);
    if let Ok(value) = HeaderValue::try_from(chain)
        && !value.is_empty()
    {
        headers.insert(FORWARDED_FOR, value);
    }
    if !headers.contains_key(FORWARDED_PROTO) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(if hop.tls { "https" } else { "http" }));
    }
    if let Some(Ok(host)) = hop.host.map(HeaderValue::from_str)
        && !headers.contains_key(FORWARDED_HOST)
    {
        headers.insert(FORWARDED_HOST, host);
    }
}

/// The client's address, as far as it is known: the peer, or the one that a trusted peer forwards, which is the last of
/// `X-Forwarded-For` that is not itself trusted. A malformed element counts as the peer. `None`: all are trusted.
pub fn client_address(headers: &HeaderMap, peer: IpAddr, trusted: &TrustedPeers) -> Option<IpAddr> {
    if !trusted.contain(peer) {
        return Some(peer);
    }
    // As bytes: invalid text from the client must not hide what the proxy appended.
    let lines: Vec<&[u8]> = headers.get_all(FORWARDED_FOR).iter().map(HeaderValue::as_bytes).collect();
    for hop in lines.into_iter().rev().flat_map(|line| line.rsplit(|byte| *byte == b',')) {
        let hop = str::from_utf8(hop).unwrap_or("?").trim();
        if hop.is_empty() {
            continue;
        }
        let bare = hop.trim_start_matches('[').trim_end_matches(']');
        let with_port = || hop.parse().ok().map(|address: std::net::SocketAddr| address.ip());
        match bare.parse().ok().or_else(with_port) {
            Some(hop) if trusted.contain(hop) => {}
            Some(hop) => return Some(hop),
            None => return Some(peer),
        }
    }
    None
}

/// Peers whose `X-Forwarded-*` headers are trusted: addresses and CIDR blocks. None by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedPeers(Vec<(IpAddr, u32)>);

impl TrustedPeers {
    /// Whether an address is one of them. `::ffff:a.b.c.d` counts as IPv4.
    pub fn contain(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.0.iter().any(|&(block, bits)| match (block, peer) {
            (IpAddr::V4(block), IpAddr::V4(peer)) => (block.to_bits() ^ peer.to_bits()).leading_zeros() >= bits,
            (IpAddr::V6(block), IpAddr::V6(peer)) => (block.to_bits() ^ peer.to_bits()).leading_zeros() >= bits,
            _ => false,
        })
    }
}

/// An entry of [`TrustedPeers`] is neither an address nor a CIDR block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address or a block such as 10.0.0.0/8")]
pub struct PeerError(pub String);

impl TrustedPeers {
    /// Parses addresses and CIDR blocks, such as `10.0.0.0/8`.
    ///
    /// # Errors
    /// The first entry that is neither.
    pub fn parse<S: AsRef<str>>(entries: &[S]) -> Result<Self, PeerError> {
        let parse = |entry: &str| -> Option<(IpAddr, u32)> {
            let (address, bits) = match entry.split_once('/') {
                Some((address, bits)) => (address.parse::<IpAddr>().ok()?, Some(bits.parse::<u32>().ok()?)),
                None => (entry.parse::<IpAddr>().ok()?, None),
            };
            let all = if address.is_ipv4() { 32 } else { 128 };
            let bits = bits.unwrap_or(all);
            (bits <= all).then_some((address, bits))
        };
        entries
            .iter()
            .map(|entry| parse(entry.as_ref().trim()).ok_or_else(|| PeerError(entry.as_ref().to_owned())))
            .collect::<Result<_, _>>()
            .map(TrustedPeers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| (HeaderName::from_str(name).unwrap(), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    #[test]
    fn rfc9110_7_6_1_named_and_fixed_hop_by_hop_fields_go_and_the_rest_stays() {
        let mut headers = map(&[
            ("connection", "close, X-Secret ,x-other,host, content-length"),
            ("host", "a"),
            ("x-secret", "1"),
            ("x-other", "2"),
            ("te", "trailers"),
            ("keep-alive", "timeout=5"),
            ("proxy-authorization", "Basic x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAA"),
            ("content-length", "3"),
        ]);
        headers.append("set-cookie", HeaderValue::from_static("b=2"));
        headers.append("set-cookie", HeaderValue::from_static("a=1"));
        strip_hop_by_hop(&mut headers);
        let left: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(left, [("host", "a"), ("content-length", "3"), ("set-cookie", "b=2"), ("set-cookie", "a=1")]);
    }

    #[test]
    fn rfc9113_8_2_3_split_cookies_are_joined() {
        let mut headers = map(&[("cookie", "a=1"), ("x", "y")]);
        headers.append("cookie", HeaderValue::from_static("b=2"));
        headers.append("cookie", HeaderValue::from_static("c=3; d=4"));
        join_cookies(&mut headers);
        assert_eq!(headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2; c=3; d=4"]);
    }

    #[test]
    fn forwarded_headers_of_strangers_are_replaced_and_of_trusted_peers_continued() {
        let sent = [
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil"),
            ("forwarded", "for=1.1.1.1"),
        ];
        let hop = Hop { peer: Some("10.0.0.9".parse().unwrap()), tls: false, host: Some("api.local"), trusted: false };
        let mut headers = map(&sent);
        forwarded(&mut headers, hop);
        assert_eq!(
            headers,
            map(&[("x-forwarded-for", "10.0.0.9"), ("x-forwarded-proto", "http"), ("x-forwarded-host", "api.local")])
        );
        let mut headers = map(&sent);
        forwarded(&mut headers, Hop { trusted: true, ..hop });
        assert_eq!(headers["x-forwarded-for"], "1.1.1.1, 10.0.0.9");
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["x-forwarded-host"], "evil");
    }

    #[test]
    fn whoever_a_trusted_peer_forwards_is_the_client() {
        let trusted = TrustedPeers::parse(&["10.0.0.0/8"]).unwrap();
        let client = |chain: &str, peer: &str| {
            let headers = map(&[("x-forwarded-for", chain)]);
            client_address(&headers, peer.parse().unwrap(), &trusted).map(|address| address.to_string())
        };
        assert_eq!(client("9.9.9.9", "8.8.8.8").as_deref(), Some("8.8.8.8"), "a stranger's word");
        assert_eq!(client("1.1.1.1, 9.9.9.9, 10.0.0.2", "10.0.0.1").as_deref(), Some("9.9.9.9"));
        assert_eq!(client("10.0.0.2", "10.0.0.1"), None);
        assert_eq!(client("unknown", "10.0.0.1").as_deref(), Some("10.0.0.1"), "one with all that cannot be read");
        for spelled in ["9.9.9.9:4711", "1.1.1.1,9.9.9.9 ", "[2001:db8::9]:1, 9.9.9.9", "9.9.9.9, 10.0.0.2:80"] {
            assert_eq!(client(spelled, "10.0.0.1").as_deref(), Some("9.9.9.9"), "{spelled}");
        }
        let mut odd = HeaderMap::new();
        odd.insert("x-forwarded-for", HeaderValue::from_bytes(b"\xff, 9.9.9.9").unwrap());
        let found = client_address(&odd, "10.0.0.1".parse().unwrap(), &trusted);
        assert_eq!(found, "9.9.9.9".parse().ok(), "what a client wrote in front hides nothing");
    }

    #[test]
    fn trusted_peers_are_addresses_and_blocks() {
        let peers = TrustedPeers::parse(&["10.0.0.0/8", "::1", "192.168.1.7"]).unwrap();
        for (peer, trusted) in
            [("10.200.1.1", true), ("11.0.0.1", false), ("::1", true), ("::2", false), ("::ffff:192.168.1.7", true)]
        {
            assert_eq!(peers.contain(peer.parse().unwrap()), trusted, "{peer}");
        }
        assert!(TrustedPeers::parse(&["0.0.0.0/0"]).unwrap().contain("8.8.8.8".parse().unwrap()));
        for wrong in ["10.0.0.0/33", "host", "", "10.0.0.0/"] {
            assert_eq!(TrustedPeers::parse(&[wrong]), Err(PeerError(wrong.to_owned())));
        }
    }
}
