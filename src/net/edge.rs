//! The HTTP server: bind, accept within limits, drain.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection;
use super::connection_slots::{ConnectionSlot, ConnectionSlots, LOG_INTERVAL, PeerKey};
use super::cores;
use super::exchange::Exchange;
use super::local::{LocalSocket, Peer, SocketFile};
use super::room::{BodyMemory, Sizes};
use super::settings::EdgeSettings;
use super::tls::ReloadingTls;

/// Answers requests. One value serves every connection of an [`Edge`].
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Answers one request with [`Exchange::respond`] or a relay.
    ///
    /// Returning without an answer makes it a 500. A panic makes it a 500 and closes the connection. The future is dropped
    /// only when a drain's grace is over: work that must outlive the client belongs in a task of its own.
    async fn handle(&self, exchange: &mut Exchange);
}

/// A bound listener that does not accept yet.
pub struct Edge {
    listener: TcpListener,
    addr: SocketAddr,
    settings: EdgeSettings,
    tls: Option<ReloadingTls>,
    local: Option<LocalSocket>,
    on_cores: bool,
}

impl Edge {
    /// Binds; port 0 is a free one. With `tls` all connections must use it (HTTP/2 by ALPN), without it none may.
    ///
    /// # Errors
    /// The operating system's error, at once: a busy port is not waited for.
    pub async fn bind(addr: SocketAddr, settings: EdgeSettings, tls: Option<ReloadingTls>) -> io::Result<Edge> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        Ok(Edge { listener, addr, settings, tls, local: None, on_cores: false })
    }

    /// Also accepts on a Unix socket, without TLS.
    pub fn with_local(self, local: LocalSocket) -> Edge {
        Edge { local: Some(local), ..self }
    }

    /// Serves each connection on one of the process's cores, if they were started: see [`cores::start`].
    pub fn on_cores(self) -> Edge {
        Edge { on_cores: true, ..self }
    }

    /// The bound address, with the actual port.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Accepts and serves on the caller's tokio runtime until [`RunningEdge::drain`] or the end of that runtime.
    pub fn spawn(self, handler: Arc<dyn Handler>) -> RunningEdge {
        let (stop, _) = watch::channel(false);
        let settings = &self.settings;
        let (small, large) = (settings.max_body_bytes, settings.max_large_body_bytes);
        let of_peer = Sizes { small: small / 4 * 3, large: settings.max_large_body_bytes_of_peer };
        let shared = Arc::new(Shared {
            tls: self.tls,
            handler,
            body_room: BodyMemory::new(Sizes { small, large }, of_peer),
            connection_slots: ConnectionSlots::new(
                self.addr,
                settings.max_connections,
                settings.max_connections_of_peer,
            ),
            settings: Arc::new(self.settings),
            connections: TaskTracker::new(),
            in_flight: TaskTracker::new(),
            tunnels: TaskTracker::new(),
            stop,
            draining: AtomicBool::new(false),
            cut: CancellationToken::new(),
            on_cores: self.on_cores,
        });
        tokio::spawn(accept(self.listener, shared.clone()));
        let local = self.local.map(|socket| {
            let file = socket.file();
            tokio::spawn(accept_local(socket, shared.clone()));
            file
        });
        RunningEdge { addr: self.addr, shared, local }
    }
}

/// The state shared by all connections of a listener.
pub(super) struct Shared {
    pub(super) settings: Arc<EdgeSettings>,
    pub(super) tls: Option<ReloadingTls>,
    pub(super) handler: Arc<dyn Handler>,
    pub(super) body_room: Arc<BodyMemory>,
    connection_slots: Arc<ConnectionSlots>,
    pub(super) connections: TaskTracker,
    pub(super) in_flight: TaskTracker,
    pub(super) tunnels: TaskTracker,
    /// True while draining: nothing is accepted, and idle connections close.
    pub(super) stop: watch::Sender<bool>,
    /// Whether the listener drains; for checks on every request.
    draining: AtomicBool,
    /// Cancelled at the end of the grace period.
    pub(super) cut: CancellationToken,
    on_cores: bool,
}

impl Shared {
    pub(super) fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut stop = shared.stop.subscribe();
    let (mut failed, mut said_at) = (0, None);
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, peer)) => {
                // A connection that moves to a core leaves the accepting runtime and is only polled there.
                let core = shared.on_cores.then(cores::next).flatten();
                let Some(tcp) = tcp.into_std().ok() else { continue };
                let serve = |slot| {
                    let shared = shared.clone();
                    async move {
                        match TcpStream::from_std(tcp) {
                            Ok(tcp) => connection::serve(tcp, peer, shared, slot).await,
                            Err(error) => tracing::warn!(%error, "failed to move a connection to its core"),
                        }
                    }
                };
                serve_in_slot(&shared, Peer::Net(peer), core, serve);
            }
            Err(error) => {
                // Usually "too many open files": wait for some to close instead of spinning, as hyper and nginx do.
                failed += 1;
                if said_at.is_none_or(|at: Instant| at.elapsed() >= LOG_INTERVAL) {
                    tracing::warn!(%error, failed, "failed to accept connections");
                    (failed, said_at) = (0, Some(Instant::now()));
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn accept_local(socket: LocalSocket, shared: Arc<Shared>) {
    let mut stop = shared.stop.subscribe();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                serve_in_slot(&shared, peer, None, |slot| connection::serve_local(stream, peer, shared.clone(), slot));
            }
            Err(error) => {
                tracing::warn!(%error, "failed to accept a connection on the Unix socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn serve_in_slot<F>(
    shared: &Arc<Shared>,
    peer: Peer,
    core: Option<&Handle>,
    serve: impl FnOnce(Arc<ConnectionSlot>) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    // Trusted proxies and the operators' own socket have no per-peer limit.
    let bounded = peer.addr().map(|addr| addr.ip()).filter(|ip| !shared.settings.trusted_peers.contain(*ip));
    // Closed without an answer: at this point memory matters more.
    let Some(slot) = shared.connection_slots.reserve(bounded.map(PeerKey::of)) else { return };
    let served = serve(slot);
    match core {
        Some(core) => drop(shared.connections.spawn_on(served, core)),
        None => drop(shared.connections.spawn(served)),
    }
}

/// A running listener. Dropping this handle does not stop it.
pub struct RunningEdge {
    addr: SocketAddr,
    shared: Arc<Shared>,
    local: Option<Arc<SocketFile>>,
}

/// Numbers of requests and tunnels that a drain had to cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Requests not answered within the grace period.
    pub in_flight_cut: usize,
    /// Tunnels still open.
    pub tunnels_cut: usize,
}

impl RunningEdge {
    /// The bound address, with the actual port.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Requests in progress, without tunnels.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.len()
    }

    /// Open connections, tunnels included.
    pub fn connections(&self) -> usize {
        self.shared.connections.len()
    }

    /// Open WebSocket tunnels.
    pub fn tunnels(&self) -> usize {
        self.shared.tunnels.len()
    }

    /// Stops accepting at once, closes idle connections, finishes requests in progress, and after `grace` cuts off the rest,
    /// including tunnels. Returns as soon as nothing is left.
    pub async fn drain(&self, grace: Duration) -> Drained {
        let shared = &self.shared;
        shared.draining.store(true, Ordering::Relaxed);
        shared.stop.send_replace(true);
        if let Some(file) = &self.local {
            file.remove();
        }
        let trackers = [&shared.in_flight, &shared.tunnels, &shared.connections];
        let all = async {
            for tracker in trackers {
                tracker.close();
                tracker.wait().await;
            }
        };
        if tokio::time::timeout(grace, all).await.is_ok() {
            return Drained { in_flight_cut: 0, tunnels_cut: 0 };
        }
        let cut = Drained { in_flight_cut: self.in_flight(), tunnels_cut: self.tunnels() };
        shared.cut.cancel();
        for tracker in trackers {
            tracker.close();
            tracker.wait().await;
        }
        cut
    }
}
