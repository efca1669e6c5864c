//! Callback URLs that tenants choose, and which of them ringfence may call. The author of such a URL may be anyone; without rules
//! it could make ringfence send requests into its operator's own network (server-side request forgery,
//! <https://owasp.org/Top10/A10_2021-Server-Side_Request_Forgery_%28SSRF%29/>).
//!
//! An address is checked twice: as written, before it is stored ([`CallbackRules::check_url`]), and as resolved, for
//! every connection (`CallbackRules::check_address`), which then goes to exactly the address that was checked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::Scheme;
use http::{HeaderName, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;
use url::{Host, Url};

use super::headers::TrustedPeers;
use crate::words::words;

/// Marks requests to URLs that tenants chose. ringfence's own listeners reject them: a second line of defence behind
/// `CallbackRules::check_address`.
pub const CALLBACK_MARK: HeaderName = HeaderName::from_static("x-ringfence-callback");

/// The timeout per address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

words!(
    /// The reason why a callback URL may not be called.
    CallbackErrorReason {
        /// The URL is malformed, or its method is not allowed.
        Unusable = "unusable",
        /// The URL leads into a private network.
        Private = "private",
        /// The URL leads to a listener of ringfence.
        Own = "own",
    }
);

/// A callback URL that may not be called. The message names the config key that would allow it, if there is one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CallbackError {
    /// The reason.
    pub reason: CallbackErrorReason,
    message: String,
}

impl CallbackError {
    /// A malformed URL, or a method that is not allowed.
    pub fn unusable(message: impl Into<String>) -> Self {
        Self { reason: CallbackErrorReason::Unusable, message: message.into() }
    }

    fn private(what: &str, kind: &str) -> Self {
        let message =
            format!("{what} is {kind}; if one of your apps runs there, name it in app.allowed_callbacks of the config");
        Self { reason: CallbackErrorReason::Private, message }
    }
}

/// An entry of `app.allowed_callbacks`: an exception for a private address.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Allowed {
    to: AllowedHost,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum AllowedHost {
    /// The name, wherever it resolves to.
    Name(String),
    /// All names below this one; begins with a dot.
    Below(String),
    /// The addresses.
    Block(TrustedPeers),
}

/// The rules for callback URLs. By default only public addresses are allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallbackRules {
    allowed: Vec<Allowed>,
    /// Our own listeners, which are never allowed.
    own: Vec<SocketAddr>,
}

impl CallbackRules {
    /// Parses the exceptions for private addresses: `app.internal`, `*.svc.cluster.local`, `10.0.0.7`,
    /// `10.0.0.0/8`, each with or without a port: `127.0.0.1:3000`, `[::1]:3000`.
    ///
    /// # Errors
    /// The first malformed entry.
    pub fn parse<S: AsRef<str>>(entries: &[S]) -> Result<Self, String> {
        let allowed = entries.iter().map(|entry| Allowed::parse(entry.as_ref().trim()));
        Ok(Self { allowed: allowed.collect::<Result<_, _>>()?, own: vec![] })
    }

    /// Returns these rules with our listeners' addresses.
    pub fn with_own(&self, own: &[SocketAddr]) -> Self {
        Self { own: own.to_vec(), ..self.clone() }
    }

    /// Whether every address is allowed.
    pub fn allow_everything(&self) -> bool {
        let all = |ip: IpAddr| {
            self.allowed
                .iter()
                .any(|one| matches!(&one.to, AllowedHost::Block(block) if one.port.is_none() && block.contain(ip)))
        };
        [
            Ipv4Addr::LOCALHOST,
            Ipv4Addr::new(169, 254, 169, 254),
            Ipv4Addr::new(10, 0, 0, 1),
            Ipv4Addr::new(192, 168, 0, 1),
        ]
        .into_iter()
        .all(|ip| all(ip.into()))
    }

    /// Checks a URL as written, without resolving its name.
    ///
    /// # Errors
    /// The reason why it may not be called.
    pub fn check_url(&self, text: &str) -> Result<(), CallbackError> {
        if text.chars().any(|c| c.is_whitespace() || c.is_control() || c == '\\') {
            return Err(CallbackError::unusable("it contains a character that no URL has"));
        }
        let parsed = Url::parse(text).map_err(|error| CallbackError::unusable(format!("it is not a URL: {error}")))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(CallbackError::unusable(format!("{}: is neither http nor https", parsed.scheme())));
        }
        // Both parsers must see the same host: one checks it, the other one's is called.
        let sent: Uri = without_fragment(text)
            .parse()
            .map_err(|_| CallbackError::unusable("it is not a URL that can be called"))?;
        let Some(port) = parsed.port_or_known_default().filter(|port| *port != 0) else {
            return Err(CallbackError::unusable("it has no port that can be called"));
        };
        if sent.host().is_none_or(str::is_empty) || sent.port_u16().is_some_and(|other| other != port) {
            return Err(CallbackError::unusable("its host cannot be read"));
        }
        match parsed.host() {
            Some(Host::Ipv4(ip)) => self.check_address(&ip.to_string(), SocketAddr::new(ip.into(), port)),
            Some(Host::Ipv6(ip)) => self.check_address(&ip.to_string(), SocketAddr::new(ip.into(), port)),
            Some(Host::Domain(name)) => {
                let name = plain_name(name);
                if !self.allows_name(&name, port) && is_local_name(&name) {
                    return Err(CallbackError::private(&name, "a name in a private network"));
                }
                Ok(())
            }
            None => Err(CallbackError::unusable("it has no host")),
        }
    }

    /// Checks a resolved address.
    ///
    /// # Errors
    /// The reason why it may not be called.
    fn check_address(&self, host: &str, to: SocketAddr) -> Result<(), CallbackError> {
        if self.is_own(to) {
            return Err(CallbackError {
                reason: CallbackErrorReason::Own,
                message: format!("{to} is an address at which ringfence listens"),
            });
        }
        let ip = to.ip();
        if self.allows_name(&plain_name(host), to.port()) {
            return Ok(());
        }
        let allows = |one: &Allowed| {
            one.port.is_none_or(|port| port == to.port())
                && matches!(&one.to, AllowedHost::Block(block) if block.contain(ip))
        };
        // The IPv4 address behind a translated one is checked too.
        let inner = match ip {
            IpAddr::V6(v6) => embedded(v6).map(IpAddr::V4),
            IpAddr::V4(_) => None,
        };
        if self.allowed.iter().any(allows) {
            return match inner {
                Some(inner) => self.check_address("", SocketAddr::new(inner, to.port())),
                None => Ok(()),
            };
        }
        match kind_of(ip) {
            Some(kind) => Err(CallbackError::private(&ip.to_string(), kind)),
            None => Ok(()),
        }
    }

    fn allows_name(&self, name: &str, port: u16) -> bool {
        !name.is_empty()
            && self.allowed.iter().filter(|one| one.port.is_none_or(|of| of == port)).any(|one| match &one.to {
                AllowedHost::Name(of) => of == name,
                AllowedHost::Below(of) => name.ends_with(of.as_str()),
                AllowedHost::Block(_) => false,
            })
    }

    fn is_own(&self, to: SocketAddr) -> bool {
        let ip = to.ip().to_canonical();
        self.own.iter().filter(|own| own.port() == to.port()).any(|own| {
            let at = own.ip().to_canonical();
            // The unspecified address reaches this machine, as loopback does.
            at == ip || (ip.is_unspecified() && at.is_loopback()) || (at.is_unspecified() && is_of_this_machine(ip))
        })
    }
}

impl Allowed {
    fn parse(entry: &str) -> Result<Self, String> {
        let bad =
            || format!("{entry:?} is not a name, address or block such as app.internal, 10.0.0.0/8 or 127.0.0.1:3000");
        let block = |text: &str| TrustedPeers::parse(&[text]).ok().map(AllowedHost::Block);
        if let Some(to) = block(entry) {
            return Ok(Self { to, port: None });
        }
        let (host, port) = match entry.rsplit_once(':') {
            Some((host, port)) if !entry.ends_with(']') => {
                (host, Some(port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(bad)?))
            }
            _ => (entry, None),
        };
        if let Some(inside) = host.strip_prefix('[') {
            let to = inside.strip_suffix(']').and_then(block).ok_or_else(bad)?;
            return Ok(Self { to, port });
        }
        if let Some(to) = block(host) {
            return Ok(Self { to, port });
        }
        let name = plain_name(host);
        let (name, below) = match name.strip_prefix("*.") {
            Some(rest) => (rest.to_owned(), true),
            None => (name, false),
        };
        let is_name = !name.is_empty()
            && !name.starts_with('.')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
        match (is_name, below) {
            (false, _) => Err(bad()),
            (true, true) => Ok(Self { to: AllowedHost::Below(format!(".{name}")), port }),
            (true, false) => Ok(Self { to: AllowedHost::Name(name), port }),
        }
    }
}

fn without_fragment(url: &str) -> &str {
    url.split('#').next().unwrap_or_default()
}

fn plain_name(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// Whether the public DNS lacks a name: <https://www.iana.org/assignments/special-use-domain-names>, `.internal`, and single
/// labels, which machines complete with their own domain.
fn is_local_name(name: &str) -> bool {
    const LOCAL: [&str; 6] = ["localhost", "local", "internal", "localdomain", "lan", "home.arpa"];
    !name.contains('.') || LOCAL.iter().any(|of| name.strip_suffix(of).is_some_and(|rest| rest.ends_with('.')))
}

fn is_of_this_machine(ip: IpAddr) -> bool {
    ip.is_unspecified() || ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

/// The kind of a non-public address; `None` for a public one. From IANA's registries of special-purpose addresses
/// (<https://www.iana.org/assignments/iana-ipv4-special-registry>, `…-ipv6-…`).
fn kind_of(ip: IpAddr) -> Option<&'static str> {
    const V4: [([u8; 4], u32, &str); 17] = [
        ([0, 0, 0, 0], 8, "an unspecified address"),
        ([10, 0, 0, 0], 8, "a private address"),
        ([100, 64, 0, 0], 10, "a carrier's private address"),
        ([127, 0, 0, 0], 8, "a loopback address"),
        ([169, 254, 0, 0], 16, "a link-local address"),
        ([172, 16, 0, 0], 12, "a private address"),
        ([192, 0, 0, 0], 24, "a reserved address"),
        ([192, 0, 2, 0], 24, "an address for documentation"),
        ([192, 31, 196, 0], 24, "a reserved address"),
        ([192, 52, 193, 0], 24, "a reserved address"),
        ([192, 88, 99, 0], 24, "a reserved address"),
        ([192, 168, 0, 0], 16, "a private address"),
        ([198, 18, 0, 0], 15, "an address for benchmarks"),
        ([198, 51, 100, 0], 24, "an address for documentation"),
        ([203, 0, 113, 0], 24, "an address for documentation"),
        ([224, 0, 0, 0], 4, "a multicast address"),
        // Includes the broadcast address.
        ([240, 0, 0, 0], 4, "a reserved address"),
    ];
    match ip {
        IpAddr::V4(ip) => {
            let within = |(block, bits, _): &&([u8; 4], u32, &str)| {
                (Ipv4Addr::from(*block).to_bits() ^ ip.to_bits()).leading_zeros() >= *bits
            };
            V4.iter().find(within).map(|(.., kind)| *kind)
        }
        IpAddr::V6(ip) => kind_of_v6(ip),
    }
}

fn kind_of_v6(ip: Ipv6Addr) -> Option<&'static str> {
    let parts = ip.segments();
    Some(match (parts[0], parts[1]) {
        _ if ip.is_loopback() => "a loopback address",
        _ if ip.is_unspecified() => "an unspecified address",
        _ if ip.to_ipv4_mapped().is_some() => "an IPv4 address in disguise",
        (0x0064, 0xff9b) => "a translator's address",
        (0xfc00..=0xfdff, _) => "a private address",
        (0xfe80..=0xfebf, _) => "a link-local address",
        (0xff00..=0xffff, _) => "a multicast address",
        (0x2002, _) => "a tunnel's address",
        (0x2001, 0x0000) => "a tunnel's address",
        (0x2001, 0x0db8) | (0x3fff, 0x0000..=0x0fff) => "an address for documentation",
        (0x2001, 0x0002) => "an address for benchmarks",
        (0x2001, 0x0001..=0x01ff) => "a reserved address",
        // Assigned global unicast (RFC 4291 §2.4, IANA).
        (0x2000..=0x3fff, _) => return None,
        _ => "a reserved address",
    })
}

/// The IPv4 address in a translated one: mapped, compatible, NAT64 (RFC 6052), 6to4, Teredo's client.
fn embedded(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let parts = ip.segments();
    let of = |high: u16, low: u16| Some(Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low)));
    match parts {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] if !ip.is_loopback() => of(high, low),
        [0x0064, 0xff9b, .., high, low] => of(high, low),
        [0x2002, high, low, ..] => of(high, low),
        [0x2001, 0, .., high, low] => of(!high, !low),
        _ => None,
    }
}

/// A connector that enforces the callback rules.
#[derive(Clone, Debug)]
pub(super) struct Guarded {
    rules: Arc<CallbackRules>,
}

impl Guarded {
    pub(super) fn new(rules: Arc<CallbackRules>) -> Self {
        Self { rules }
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Service<Uri> for Guarded {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let rules = self.rules.clone();
        Box::pin(async move { connect(&rules, &uri).await.map(TokioIo::new) })
    }
}

async fn connect(rules: &CallbackRules, uri: &Uri) -> Result<TcpStream, BoxError> {
    let host = uri.host().unwrap_or_default();
    let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let default = if uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 };
    let found = tokio::net::lookup_host((host, uri.port_u16().unwrap_or(default))).await?;
    // The address that is checked is the one that is connected to, so a name cannot resolve differently in between.
    let mut failed: BoxError = format!("{host} has no address").into();
    let (mut forbidden, mut tried) = (None, false);
    for address in found {
        if let Err(error) = rules.check_address(host, address) {
            forbidden = Some(error);
            continue;
        }
        tried = true;
        match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(error)) => failed = format!("{address}: {error}").into(),
            Err(_) => failed = format!("{address} does not answer within {CONNECT_TIMEOUT:?}").into(),
        }
    }
    // If any address was allowed, its error is the relevant one.
    Err(forbidden.filter(|_| !tried).map_or(failed, Into::into))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(rules: &CallbackRules, url: &str) -> Option<&'static str> {
        rules.check_url(url).err().map(|error| error.reason.as_str())
    }

    #[test]
    fn what_the_internet_does_not_know_is_refused_however_it_is_written() {
        let rules = CallbackRules::default();
        for private in [
            "http://127.0.0.1:9900/api/businesses/victim/purge",
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f000001/",
            "http://0177.0.0.1/",
            "http://0/",
            "http://0.0.0.0:9900/",
            "http://10.1.2.3/",
            "http://100.64.0.1/",
            "http://169.254.169.254/latest/meta-data/",
            "http://172.31.255.255/",
            "http://192.168.0.1/",
            "http://192.0.0.8/",
            "http://192.0.2.1/",
            "http://198.18.0.1/",
            "http://198.51.100.1/",
            "http://203.0.113.1/",
            "http://224.0.0.1/",
            "http://239.255.255.250/",
            "http://240.0.0.1/",
            "http://255.255.255.255/",
            "http://[::]/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[::ffff:7f00:1]/",
            "http://[::127.0.0.1]/",
            "http://[64:ff9b::7f00:1]/",
            "http://[64:ff9b::8.8.8.8]/",
            "http://[64:ff9b:1::1]/",
            "http://[2002:7f00:1::]/",
            "http://[2001:0:4136:e378:8000:63bf:80ff:fffe]/",
            "http://[2001:db8::1]/",
            "http://[3fff::1]/",
            "http://[2001:2::1]/",
            "http://[2001:20::1]/",
            "http://[fc00::1]/",
            "http://[fd00:ec2::254]/",
            "http://[fe80::1]/",
            "http://[fec0::1]/",
            "http://[ff02::1]/",
            "http://[100::1]/",
            "http://localhost:9900/",
            "http://LOCALHOST./",
            "http://a.localhost/",
            "http://app:3000/",
            "http://metadata.google.internal/",
            "http://printer.local/",
            "http://hooks.example.com@127.0.0.1/",
            "http://user:pass@10.0.0.1/",
            "http://①②⑦.⓪.⓪.①/",
        ] {
            assert!(refused(&rules, private).is_some(), "{private}");
        }
        for unusable in [
            "",
            "/relative",
            "//app.example.com/x",
            "ftp://app.example.com/",
            "gopher://app.example.com/",
            "file:///etc/passwd",
            "http://",
            "http:///x",
            "http://app.example.com:0/",
            "http://app.example.com:99999/",
            "http://app.example.com\\@127.0.0.1/",
            "http://app.example.com/\r\nHost: x",
            " http://app.example.com/",
        ] {
            assert_eq!(refused(&rules, unusable), Some("unusable"), "{unusable:?}");
        }
        for public in [
            "https://app.example.com/status?a=b#rc=3",
            "http://user:pass@app.example.com:8080/x",
            "https://8.8.8.8/",
            "https://172.32.0.1/",
            "https://100.128.0.1/",
            "https://[2606:4700::1111]/",
        ] {
            assert_eq!(rules.check_url(public), Ok(()), "{public}");
        }
    }

    #[test]
    fn what_is_allowed_is_named_by_name_address_block_and_port() {
        let rules = CallbackRules::parse(&[
            "127.0.0.1:3000",
            "10.0.0.0/8",
            "app",
            "*.svc.cluster.local:8080",
            "[::1]:3000",
            "[fd00::/8]",
        ]);
        let rules = rules.unwrap();
        for ok in [
            "http://127.0.0.1:3000/x",
            "http://10.200.0.1:1/",
            "http://app:9/",
            "http://a.b.svc.cluster.local:8080/",
            "http://[::1]:3000/",
            "http://[fd00::1]/",
        ] {
            assert_eq!(rules.check_url(ok), Ok(()), "{ok}");
        }
        for no in [
            "http://127.0.0.1:3001/",
            "http://127.0.0.2:3000/",
            "http://11.0.0.0.localhost/",
            "http://svc.cluster.local:8080/",
            "http://a.svc.cluster.local/",
            "http://[::1]/",
        ] {
            assert!(refused(&rules, no).is_some(), "{no}");
        }
        // A name that is allowed may resolve to any address, another only where the Internet leads.
        let at = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 9);
        assert_eq!(rules.check_address("app", at("192.168.0.1")), Ok(()));
        assert_eq!(
            rules.check_address("evil.example.com", at("192.168.0.1")).unwrap_err().reason,
            CallbackErrorReason::Private
        );
        // What a translator's address leads to is checked too.
        let translated = CallbackRules::parse(&["64:ff9b::/96"]).unwrap();
        assert_eq!(translated.check_address("x.example", at("64:ff9b::808:808")), Ok(()));
        assert!(translated.check_address("x.example", at("64:ff9b::7f00:1")).is_err());
        for bad in ["", "10.0.0.0/33", "http://app/", "*", "a b", "app:0", "app:port", "[app]:1", "*.", "10.0.0.1/8:x"]
        {
            assert!(CallbackRules::parse(&[bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn our_own_listeners_are_refused_whatever_is_allowed() {
        let rules = CallbackRules::parse(&["0.0.0.0/0", "::/0", "localhost"]).unwrap();
        assert!(rules.allow_everything() && !CallbackRules::parse(&["127.0.0.0/8"]).unwrap().allow_everything());
        let rules = rules.with_own(&["127.0.0.1:9900".parse().unwrap(), "0.0.0.0:8081".parse().unwrap()]);
        for own in [
            "http://127.0.0.1:9900/",
            "http://0.0.0.0:9900/",
            "http://127.0.0.6:8081/",
            "http://[::ffff:127.0.0.1]:9900/",
        ] {
            assert_eq!(refused(&rules, own), Some("own"), "{own}");
        }
        let to = "127.0.0.1:9900".parse().unwrap();
        assert_eq!(rules.check_address("localhost", to).unwrap_err().reason, CallbackErrorReason::Own);
        assert_eq!(rules.check_url("http://127.0.0.1:9901/"), Ok(()));
    }
}
