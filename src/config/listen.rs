//! `[listen]` and `[webhooks]`: addresses, TLS, and access.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::store::StoreSettings;
use super::table::{Table, closest};
use crate::net::TrustedPeers;
use crate::net::local::PATH_BYTES_MAX as SOCKET_PATH_BYTES_MAX;
use crate::policy::Rate;
use crate::provider::Registry;

/// The variable in which a platform names the port for requests.
const PORT: &str = "PORT";

/// A listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListenerName {
    /// For apps.
    Api,
    /// For providers.
    Webhooks,
    /// For operators.
    Admin,
    /// For clients of live transcripts.
    Client,
}

impl ListenerName {
    /// All listeners.
    pub const ALL: [Self; 4] = [Self::Api, Self::Webhooks, Self::Admin, Self::Client];
    /// The listeners with TLS by default.
    const USUALLY_TLS: [Self; 3] = [Self::Api, Self::Webhooks, Self::Client];
    /// The listeners that require client certificates by default: providers and browsers have none.
    const USUALLY_CLIENT_CERTIFICATES: [Self; 2] = [Self::Api, Self::Admin];

    /// The key in `[listen]`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Webhooks => "webhooks",
            Self::Admin => "admin",
            Self::Client => "client",
        }
    }
}

/// The addresses of the listeners.
#[derive(Debug, Clone)]
pub struct Listen {
    /// For apps.
    pub api: SocketAddr,
    /// For providers.
    pub webhooks: SocketAddr,
    /// Whether `webhooks` also serves the paths of `client`, as the only public listener.
    pub is_public: bool,
    /// For operators.
    pub admin: SocketAddr,
    /// For operators with this machine's user: a Unix socket.
    pub admin_socket: AdminSocket,
    /// For clients of live transcripts.
    pub client: SocketAddr,
    /// For health checks alone, without TLS: an orchestrator's probes where the other listeners want a client's certificate.
    pub probes: Option<SocketAddr>,
    /// TLS, if any listener uses it.
    pub tls: Option<TlsSettings>,
    /// The peers whose `X-Forwarded-*` headers are trusted.
    pub trusted_peers: TrustedPeers,
    /// Maximum connections per peer on each listener. Default: half of the listener's maximum.
    pub connections_per_peer: Option<usize>,
}

/// The Unix socket of `listen.admin`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminSocket {
    /// The path.
    pub path: PathBuf,
    /// Whether the config names it, so that a failure to bind it is an error. The default one is skipped if another process has it.
    pub is_named: bool,
}

/// TLS of the listeners: one certificate for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// The certificate chain, PEM.
    pub cert: PathBuf,
    /// The private key, PEM.
    pub key: PathBuf,
    /// The listeners with TLS.
    pub listeners: BTreeSet<ListenerName>,
    /// The authorities of client certificates, PEM, and the listeners that require one.
    pub clients: Option<(PathBuf, BTreeSet<ListenerName>)>,
}

/// Reads `[listen]`.
pub(super) fn read(root: &Table<'_>, folder: &Path, store: &StoreSettings) -> Option<Listen> {
    let table = root.table("listen");
    let port = table.read_variable(PORT);
    let parse = |text: &str| {
        let full = match (text.strip_suffix(":$PORT"), &port) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (Some(_), None) => return Err(format!("{text:?} needs the variable {PORT}, which is not set")),
            (None, _) => text.to_owned(),
        };
        let full = if full.starts_with(':') { format!("127.0.0.1{full}") } else { full };
        full.parse::<SocketAddr>()
            .map_err(|_| format!("{full:?} is not an address: write 127.0.0.1:8080 or [::1]:8080, or 0.0.0.0:$PORT"))
    };
    let address = |key: &str, default: &str| {
        if table.has(key) {
            table.parsed(key, parse)
        } else {
            table.text(key).or(Some(default.to_owned())).and_then(|t| parse(&t).ok())
        }
    };
    let is_public = table.has("public");
    if is_public && table.has("webhooks") {
        let title = "listen.public is set beside listen.webhooks";
        let help = "listen.public replaces it: webhooks and the paths of listen.client on one port";
        root.report().error("E004", table.span("public"), title, help);
    }
    let public = if is_public { table.parsed("public", parse) } else { table.text("public").and(None) };
    let webhooks = address("webhooks", "127.0.0.1:8081");
    let webhooks = if is_public { public } else { webhooks };
    let api = address("api", "127.0.0.1:8080");
    let (admin, client) = (address("admin", "127.0.0.1:9900"), address("client", "127.0.0.1:8082"));
    let probes = table.parsed("probes", parse);
    let admin_socket = admin_socket(&table, folder, store);
    let tls = tls(&table, folder);
    let peers = table.texts("trusted_peers").unwrap_or_default();
    let trusted_peers = TrustedPeers::parse(&peers).unwrap_or_else(|error| {
        root.report().error("E003", table.span("trusted_peers"), format!("`listen.trusted_peers`: {error}"), "");
        TrustedPeers::default()
    });
    let connections_per_peer = table.count("connections_per_peer", 1..=1_000_000).map(|count| count as usize);
    table.finish();
    let of_webhooks = if is_public { "public" } else { "webhooks" };
    let all = [("api", api), (of_webhooks, webhooks), ("admin", admin), ("client", client), ("probes", probes)];
    for (n, (name, address)) in all.iter().enumerate() {
        // Port 0 is a new free port each time.
        let same = |other: &&(&str, Option<SocketAddr>)| other.1 == *address && address.is_some_and(|a| a.port() != 0);
        if let (Some((first, _)), Some(address)) = (all[..n].iter().find(same), address) {
            let title = format!("listen.{first} and listen.{name} are both {address}");
            root.report().error("E043", table.span(name), title, "each listener needs an address of its own");
        }
    }
    let (api, webhooks, admin, client) = (api?, webhooks?, admin?, client?);
    Some(Listen {
        api,
        webhooks,
        is_public,
        admin,
        admin_socket,
        client,
        probes,
        tls,
        trusted_peers,
        connections_per_peer,
    })
}

fn admin_socket(table: &Table<'_>, folder: &Path, store: &StoreSettings) -> AdminSocket {
    let named = table.text("admin_socket").map(|path| folder.join(path));
    let socket = AdminSocket { is_named: named.is_some(), path: named.unwrap_or_else(|| store.default_socket(folder)) };
    let length = socket.path.as_os_str().len();
    if length > SOCKET_PATH_BYTES_MAX {
        let title = format!(
            "the path of `listen.admin_socket` has {length} bytes; a Unix socket's can have {SOCKET_PATH_BYTES_MAX}"
        );
        let help = format!(
            "name a shorter one: listen.admin_socket = \"/run/ringfence/admin.sock\"; it is {}",
            socket.path.display()
        );
        table.report().error("E003", table.span("admin_socket"), title, &help);
    }
    socket
}

fn tls(table: &Table<'_>, folder: &Path) -> Option<TlsSettings> {
    let (cert, key) = (table.text("tls_cert"), table.text("tls_key"));
    let ca = table.text("tls_client_ca");
    let (spoken, shown) = (listeners(table, "tls_listeners"), listeners(table, "tls_client_listeners"));
    let (cert, key) = match (cert, key) {
        (Some(cert), Some(key)) => (folder.join(cert), folder.join(key)),
        (None, None) => {
            for key in ["tls_listeners", "tls_client_ca", "tls_client_listeners"] {
                if table.has(key) {
                    let title = format!("listen.{key} is set, but there is no listen.tls_cert");
                    table.report().error("E004", table.span(key), title, "also set tls_cert and tls_key");
                }
            }
            return None;
        }
        (Some(_), None) | (None, Some(_)) => {
            let title = "listen.tls_cert and listen.tls_key belong together";
            table.report().error("E004", table.span("tls_cert").or(table.span("tls_key")), title, "");
            return None;
        }
    };
    let listeners = spoken.unwrap_or_else(|| ListenerName::USUALLY_TLS.into());
    if ca.is_none() && shown.is_some() {
        let title = "listen.tls_client_listeners is set, but there is no listen.tls_client_ca";
        table.report().error("E004", table.span("tls_client_listeners"), title, "");
    }
    let clients = ca.map(|ca| {
        let usual =
            || ListenerName::USUALLY_CLIENT_CERTIFICATES.into_iter().filter(|one| listeners.contains(one)).collect();
        let demanding: BTreeSet<ListenerName> = shown.unwrap_or_else(usual);
        let plain = demanding.iter().find(|one| !listeners.contains(one));
        if let Some(plain) = plain {
            let title = format!("listen.tls_client_listeners includes {}, which does not use TLS", plain.as_str());
            table.report().error("E004", table.span("tls_client_listeners"), title, "also name it in tls_listeners");
        }
        if demanding.is_empty() {
            let title = "listen.tls_client_ca is set, but no listener requires client certificates";
            table.report().error("E004", table.span("tls_client_ca"), title, "name listeners in tls_client_listeners");
        }
        (folder.join(ca), demanding)
    });
    Some(TlsSettings { cert, key, listeners, clients })
}

fn listeners(table: &Table<'_>, key: &str) -> Option<BTreeSet<ListenerName>> {
    let words = table.texts(key)?;
    let known: Vec<&str> = ListenerName::ALL.iter().map(|one| one.as_str()).collect();
    let found = words.iter().filter_map(|word| {
        let found = ListenerName::ALL.into_iter().find(|one| one.as_str() == word);
        if found.is_none() {
            let title = format!("`listen.{key}` has {word:?}, but only {}", known.join(", "));
            let help = closest(word, &known).map(|word| format!("did you mean \"{word}\"?")).unwrap_or_default();
            table.report().error("E005", table.span(key), title, &help);
        }
        found
    });
    Some(found.collect())
}

/// Reads `[webhooks]`: the allowed sources, and the rate per address.
pub(super) fn webhooks(root: &Table<'_>, registry: Option<&Registry>) -> (Option<TrustedPeers>, Option<Rate>) {
    let table = root.table("webhooks");
    let allow_from = table.texts("allow_from").and_then(|named| {
        let mut addresses = Vec::new();
        for name in named {
            match registry.and_then(|registry| registry.all().find(|provider| provider.name == name)) {
                Some(provider) if provider.webhook_addresses.is_empty() => {
                    let title =
                        format!("`webhooks.allow_from` names {name}, which publishes no addresses for its webhooks");
                    let help =
                        "its webhooks are recognised by their signature: remove allow_from, or list addresses yourself";
                    table.report().error("E003", table.span("allow_from"), title, help);
                }
                Some(provider) => addresses.extend(provider.webhook_addresses.iter().cloned()),
                None => addresses.push(name),
            }
        }
        TrustedPeers::parse(&addresses)
            .map_err(|error| {
                let help = "addresses, blocks as in \"10.0.0.0/8\", and names of providers";
                table.report().error("E003", table.span("allow_from"), format!("`webhooks.allow_from`: {error}"), help);
            })
            .ok()
    });
    let rate = table.parsed("rate_per_address", Rate::parse);
    table.finish();
    (allow_from, rate)
}
