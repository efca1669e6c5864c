//! The listeners' addresses and limits. They are bound first: what is wrong with them shows before anything else is touched.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tracing::warn;

use super::error::StartError;
use super::listener_tls::ListenerTls;
use super::probes::{self, Probes};
use crate::config::{AdminSocket, Config, ListenerName};
use crate::net::{Edge, EdgeSettings, LocalSocket, ReloadingTls, RunningEdge, descriptors};
use crate::{admin, transcripts, webhooks};

/// A listener with fewer connections than this is logged.
const FEW_CONNECTIONS: usize = 500;

/// Bytes of all bodies in memory, each 64 KiB at most: `listen.client`.
const SMALL_BODIES_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Memory for bodies on `listen.admin`: a peer may use three quarters of it, which the largest list of businesses fits.
const OPERATORS_BODIES_BYTES_MAX: usize = admin::BUSINESSES_BYTES_MAX * 3 / 2;

/// Bound listeners that do not serve yet.
pub(super) struct Listeners {
    /// api, webhooks, admin, client.
    pub(super) edges: [Edge; 4],
    /// The path of the Unix socket for operators.
    pub(super) admin_socket: Option<PathBuf>,
    /// Health checks, which are answered from now on.
    pub(super) probes: Option<(RunningEdge, Arc<Probes>)>,
}

impl Listeners {
    /// Binds all of them.
    pub(super) async fn bind(config: &Config, tls: &ListenerTls) -> Result<Self, StartError> {
        let open_files = descriptors::raise_open_files();
        let shares = descriptors::shares(open_files);
        let settings = |connections_max: usize, share: usize| {
            let max_connections = connections_max.min(share);
            if share < FEW_CONNECTIONS {
                warn!(open_files, max_connections, "open file limit is low: listeners take fewer connections");
            }
            EdgeSettings {
                trusted_peers: config.listen.trusted_peers.clone(),
                max_connections,
                max_connections_of_peer: config.listen.connections_per_peer.unwrap_or(max_connections.div_ceil(2)),
                ..EdgeSettings::default()
            }
        };
        let for_apps = settings(EdgeSettings::default().max_connections, shares.public);
        let with_audio = EdgeSettings {
            max_body_bytes: webhooks::BODIES_BYTES_MAX,
            max_large_body_bytes: webhooks::LARGE_BODIES_BYTES_MAX,
            max_large_body_bytes_of_peer: webhooks::BODY_BYTES_MAX,
            ..for_apps.clone()
        };
        let with_sockets = EdgeSettings {
            max_tunnels: transcripts::SOCKETS_MAX,
            max_body_bytes: SMALL_BODIES_BYTES_MAX,
            ..settings(transcripts::SOCKETS_MAX + 1000, shares.public)
        };
        let for_operators = EdgeSettings {
            max_body_bytes: OPERATORS_BODIES_BYTES_MAX,
            ..settings(EdgeSettings::default().max_connections, shares.admin)
        };
        let listen = &config.listen;
        let public = if listen.is_public { "public" } else { "webhooks" };
        let api = bind("api", listen.api, for_apps, tls.tls_of(ListenerName::Api)).await?.on_cores();
        let webhooks = bind(public, listen.webhooks, with_audio, tls.tls_of(ListenerName::Webhooks)).await?.on_cores();
        let client = bind("client", listen.client, with_sockets, tls.tls_of(ListenerName::Client)).await?.on_cores();
        let admin = bind("admin", listen.admin, for_operators, tls.tls_of(ListenerName::Admin)).await?;
        let (admin, admin_socket) = with_socket(admin, &listen.admin_socket)?;
        let probes = match listen.probes {
            Some(address) => {
                let handler = Arc::new(Probes::default());
                Some((bind("probes", address, probes::settings(), None).await?.spawn(handler.clone()), handler))
            }
            None => None,
        };
        Ok(Self { edges: [api, webhooks, admin, client], admin_socket, probes })
    }

    /// Returns the listeners' addresses.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        let probes = self.probes.iter().map(|(running, _)| running.local_addr());
        self.edges.iter().map(Edge::local_addr).chain(probes).collect()
    }
}

async fn bind(
    name: &str,
    address: SocketAddr,
    settings: EdgeSettings,
    tls: Option<ReloadingTls>,
) -> Result<Edge, StartError> {
    Edge::bind(address, settings, tls).await.map_err(|error| {
        let taken = error.kind() == std::io::ErrorKind::AddrInUse;
        let owner = taken.then(|| crate::net::port_owner(address)).flatten();
        let why = owner.map_or_else(|| error.to_string(), |owner| format!("{owner} listens there"));
        let hint = format!("choose another with --listen-{name} :0 or [listen] {name}");
        StartError(format!("cannot listen on {address} (listen.{name}): {why}; {hint}"))
    })
}

/// Adds the Unix socket to the admin listener; returns its path. A default socket that cannot be created is omitted: another
/// process has it, or the store beside it will report the cause.
fn with_socket(admin: Edge, socket: &AdminSocket) -> Result<(Edge, Option<PathBuf>), StartError> {
    let path = socket.path.display();
    match LocalSocket::bind(&socket.path) {
        Ok(local) => Ok((admin.with_local(local), Some(socket.path.clone()))),
        Err(error) if !socket.is_named => {
            warn!(socket = %path, %error, "failed to listen on the admin socket; listen.admin_socket names another");
            Ok((admin, None))
        }
        Err(error) => {
            Err(StartError(format!("failed to listen on {path} (listen.admin_socket): {error}; name another path")))
        }
    }
}
