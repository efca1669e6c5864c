//! The client of `listen.admin`, for all commands about a running sidecar.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, Subcommand};
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method, Request, StatusCode};
use serde_json::Value;

use super::outcome::{CONFIG, ConfigFile};
use crate::config::{self, AdminAddress, Config, ListenerName};
use crate::net::{Following, OwnListener, Upstream, UpstreamError, UpstreamSettings, fetch_local, follow_local};

/// The maximum answer, in bytes, and its timeout.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// The maximum error answer to a request for a stream, in bytes.
const WHY_BYTES_MAX: usize = 64 * 1024;

/// The options that locate a sidecar.
#[derive(Debug, Args)]
pub(super) struct AdminClient {
    #[command(flatten)]
    file: ConfigFile,
    /// The sidecar's listen.admin (an address or URL), or the path of its Unix socket [default: from the config]
    #[arg(long, env = "RINGFENCE_ADMIN_URL", value_name = "URL|SOCKET", global = true)]
    admin: Option<String>,
    /// A token for listen.admin; not needed over its Unix socket
    #[arg(long, env = "RINGFENCE_TOKEN", hide_env_values = true, value_name = "TOKEN", global = true)]
    token: Option<String>,
    /// A client certificate, if listen.admin requires one (listen.tls_client_ca), PEM
    #[arg(long, env = "RINGFENCE_ADMIN_CERT", value_name = "FILE", global = true, requires = "admin_key")]
    admin_cert: Option<PathBuf>,
    /// Key of the client certificate, PEM
    #[arg(long, env = "RINGFENCE_ADMIN_KEY", value_name = "FILE", global = true, requires = "admin_cert")]
    admin_key: Option<PathBuf>,
}

// Arguments of a command with subcommands about a running sidecar. Not a doc comment: clap would show it as help.
#[derive(Debug, Args)]
pub(super) struct AdminCommand<A: Subcommand> {
    #[command(flatten)]
    pub(super) admin: AdminClient,
    /// Print JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
    #[command(subcommand)]
    pub(super) act: A,
}

/// A path with the query parameters that have a value.
pub(super) fn query(path: &str, pairs: &[(&str, Option<&str>)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(pairs.iter().filter_map(|(name, value)| Some((name, (*value)?))));
    format!("{path}?{}", query.finish())
}

/// The address of a sidecar's `listen.admin`.
#[derive(Debug, PartialEq, Eq)]
enum AdminEndpoint {
    Url(String),
    Socket(PathBuf),
}

impl AdminEndpoint {
    /// Parses the value of `--admin`.
    fn named(text: &str) -> Self {
        if let Some(path) = text.strip_prefix("unix:") {
            return Self::Socket(path.trim_start_matches("//").into());
        }
        if text.contains("://") {
            return Self::Url(text.trim_end_matches('/').to_owned());
        }
        // An address has no slash before its first colon.
        match text.find('/') {
            Some(at) if at == 0 || text[..at].chars().all(|c| c == '.') || Path::new(text).exists() => {
                Self::Socket(text.into())
            }
            _ => Self::Url(format!("http://{}", text.trim_end_matches('/'))),
        }
    }

    /// The address in the config: the socket if there is one, and loopback for an unspecified address.
    fn configured(address: &AdminAddress) -> Self {
        if address.socket.exists() {
            return Self::Socket(address.socket.clone());
        }
        let tcp = reachable(address.tcp);
        let scheme = if address.tls_cert.is_some() { "https" } else { "http" };
        Self::Url(format!("{scheme}://{tcp}"))
    }
}

impl AdminEndpoint {
    fn silent(&self, error: &UpstreamError) -> anyhow::Error {
        let shown = match self {
            Self::Socket(socket) => socket.display().to_string(),
            Self::Url(url) => url.clone(),
        };
        anyhow::anyhow!(
            "no sidecar answers at {shown}: {error}\nName its config with --config FILE, or where it is with --admin URL"
        )
    }
}

impl AdminClient {
    /// The path of the config that names the sidecar.
    pub(super) fn config(&self) -> &Path {
        &self.file.config
    }

    /// Whether it was named apart from its config.
    pub(super) fn is_named(&self) -> bool {
        self.admin.is_some()
    }

    fn place(&self) -> anyhow::Result<AdminEndpoint> {
        match &self.admin {
            Some(named) => Ok(AdminEndpoint::named(named)),
            None => Ok(AdminEndpoint::configured(&self.configured()?)),
        }
    }

    /// A client that trusts the certificate of the config, and presents the given one.
    fn upstream(&self) -> anyhow::Result<Upstream> {
        let cert = match (self.configured(), &self.admin) {
            // Another machine's sidecar may have a certificate that others vouch for.
            (Ok(address), Some(_)) => address.tls_cert.filter(|path| std::fs::File::open(path).is_ok()),
            (Err(_), Some(_)) => None,
            (address, None) => address?.tls_cert,
        };
        self.client(cert, None)
    }

    /// A client for a listener of the sidecar: trusts its certificate, and presents the given one.
    pub(super) fn client(&self, cert: Option<PathBuf>, extra_ca: Option<PathBuf>) -> anyhow::Result<Upstream> {
        crate::net::install_crypto_provider();
        let own = OwnListener { cert, client: self.admin_cert.clone().zip(self.admin_key.clone()) };
        Ok(Upstream::new(UpstreamSettings { own: Some(own), extra_ca, ..UpstreamSettings::default() })?)
    }

    fn configured(&self) -> anyhow::Result<AdminAddress> {
        let path = &self.file.config;
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            // The sidecar may run without a config file.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && path == Path::new(CONFIG) => String::new(),
            Err(error) => anyhow::bail!("failed to read the config {}: {error}", path.display()),
        };
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        let address = config::admin_address(&text, folder, &|name| std::env::var(name).ok());
        address.ok_or_else(|| anyhow::anyhow!("listen.admin of {} cannot be read: ringfence check", path.display()))
    }

    /// Sends a request; returns status and answer. An error means that there is no answer.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> anyhow::Result<(StatusCode, Value)> {
        let body = body.map(|b| Bytes::from(b.to_string())).unwrap_or_default();
        let (status, _, answer) = self.exchange(method, path, "application/json", body).await?;
        Ok((status, serde_json::from_slice(&answer).unwrap_or_default()))
    }

    fn request(
        &self,
        place: &AdminEndpoint,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<Request<Bytes>> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        if let Some(token) = &self.token {
            request.headers_mut().insert(AUTHORIZATION, HeaderValue::try_from(format!("Bearer {token}"))?);
        }
        *request.uri_mut() = match place {
            AdminEndpoint::Socket(_) => path.parse()?,
            AdminEndpoint::Url(url) => format!("{url}{path}").parse()?,
        };
        Ok(request)
    }

    /// Sends a request with any body; returns the raw answer with its headers.
    pub(super) async fn exchange(
        &self,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: Bytes,
    ) -> anyhow::Result<(StatusCode, HeaderMap, Bytes)> {
        let place = self.place()?;
        let mut request = self.request(&place, method, path, body)?;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        let answer = match &place {
            AdminEndpoint::Socket(socket) => fetch_local(socket, request, ANSWER_BYTES_MAX, ANSWER_WITHIN).await,
            AdminEndpoint::Url(_) => self.upstream()?.fetch(request, ANSWER_BYTES_MAX, ANSWER_WITHIN).await,
        };
        let (head, answer) = answer.map_err(|error| place.silent(&error))?.into_parts();
        Ok((head.status, head.headers, answer))
    }

    /// Requests a streamed answer.
    pub(super) async fn follow(&self, path: &str) -> anyhow::Result<Following> {
        let place = self.place()?;
        let request = self.request(&place, Method::GET, path, Bytes::new())?;
        let answer = async {
            match &place {
                AdminEndpoint::Socket(socket) => Ok(follow_local(socket, request).await),
                AdminEndpoint::Url(_) => Ok(self.upstream()?.follow(request).await),
            }
        };
        let answer: anyhow::Result<_> = tokio::time::timeout(ANSWER_WITHIN, answer).await?;
        let (head, mut pieces) = answer?.map_err(|error| place.silent(&error))?.into_parts();
        if head.status.is_success() {
            return Ok(pieces);
        }
        let mut why = Vec::new();
        while let Ok(Ok(Some(piece))) = tokio::time::timeout(ANSWER_WITHIN, pieces.piece()).await
            && why.len() < WHY_BYTES_MAX
        {
            why.extend_from_slice(&piece);
        }
        Err(refused(head.status, &serde_json::from_slice(&why).unwrap_or_default()))
    }

    /// Sends a request; an unsuccessful answer is an error.
    pub(super) async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<Value> {
        let (status, answer) = self.send(method, path, body).await?;
        if !status.is_success() {
            return Err(refused(status, &answer));
        }
        Ok(answer)
    }
}

/// The address at which a listener of this machine is reached: loopback for an unspecified address.
pub(super) fn reachable(mut at: SocketAddr) -> SocketAddr {
    if at.ip().is_unspecified() {
        at.set_ip(if at.is_ipv4() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { IpAddr::V6(Ipv6Addr::LOCALHOST) });
    }
    at
}

/// A listener of the sidecar on this machine, by its config.
pub(super) struct OnListener {
    /// The listener's URL.
    pub(super) base: String,
    /// The certificate that it shows.
    pub(super) cert: Option<PathBuf>,
}

/// The URL of a listener of this machine. `option` gives its URL if it has no fixed port.
pub(super) fn on_listener(config: &Config, name: ListenerName, option: &str) -> Result<OnListener, String> {
    let at = reachable(match name {
        ListenerName::Api => config.listen.api,
        ListenerName::Webhooks => config.listen.webhooks,
        ListenerName::Admin => config.listen.admin,
        ListenerName::Client => config.listen.client,
    });
    if at.port() == 0 {
        return Err(format!("listen.{} has no fixed port: give its URL with {option}", name.as_str()));
    }
    let tls = config.listen.tls.as_ref().filter(|tls| tls.listeners.contains(&name));
    let scheme = if tls.is_some() { "https" } else { "http" };
    Ok(OnListener { base: format!("{scheme}://{at}"), cert: tls.map(|tls| tls.cert.clone()) })
}

/// The path of an item below another path, with its id escaped.
pub(super) fn path_of(below: &str, id: &str) -> String {
    let escaped: String = form_urlencoded::byte_serialize(id.as_bytes()).collect();
    format!("{below}/{escaped}")
}

/// The error for an unsuccessful answer.
pub(super) fn refused(status: StatusCode, answer: &Value) -> anyhow::Error {
    anyhow::anyhow!("{} ({status})", answer["message"].as_str().unwrap_or("no reason given"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_an_address_a_url_or_a_socket() {
        let url = |text: &str| AdminEndpoint::Url(text.to_owned());
        for (text, wanted) in [
            ("127.0.0.1:9900", url("http://127.0.0.1:9900")),
            ("localhost:9900/", url("http://localhost:9900")),
            ("[::1]:9900", url("http://[::1]:9900")),
            ("https://ops.example.com/ringfence/", url("https://ops.example.com/ringfence")),
            ("unix:///run/rf/admin.sock", AdminEndpoint::Socket("/run/rf/admin.sock".into())),
            ("unix:admin.sock", AdminEndpoint::Socket("admin.sock".into())),
            ("/run/rf/admin.sock", AdminEndpoint::Socket("/run/rf/admin.sock".into())),
            ("./admin.sock", AdminEndpoint::Socket("./admin.sock".into())),
        ] {
            assert_eq!(AdminEndpoint::named(text), wanted, "{text}");
        }
        let at = |tcp: &str, tls: Option<&str>| AdminAddress {
            tcp: tcp.parse().unwrap(),
            socket: "/nowhere/x".into(),
            tls_cert: tls.map(PathBuf::from),
        };
        let of = |tcp: &str| AdminEndpoint::configured(&at(tcp, None));
        assert_eq!(AdminEndpoint::configured(&at("0.0.0.0:9901", Some("cert.pem"))), url("https://127.0.0.1:9901"));
        assert_eq!(of("0.0.0.0:9901"), url("http://127.0.0.1:9901"));
        assert_eq!(of("[::]:9901"), url("http://[::1]:9901"));
        assert_eq!(of("10.0.0.5:9901"), url("http://10.0.0.5:9901"));
    }
}
