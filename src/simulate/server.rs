//! The thin part that has sockets: requests in by `net`'s edge, webhooks out by its client.

use super::control::Control;
use super::door::Door;
use super::elevenlabs;
use super::engine::{Engine, Post};
use super::monitor;
use super::settings::SimSettings;
use super::webhooks::Attempt;
use super::wire::{Ask, Reply};
use crate::net::edge::{Edge, EdgeSettings, Handler, RunningEdge};
use crate::net::exchange::Exchange;
use crate::net::relay::{HostRule, RelayTarget, relay};
use crate::net::upstream::{Upstream, UpstreamError, UpstreamSettings};
use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response, Uri};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Longest request body: batches of ten thousand recipients fit.
const BODY: usize = 16 * 1024 * 1024;
/// Longest answer to a webhook that is read.
const ANSWER: usize = 1024 * 1024;

/// Two simulated providers on one address.
pub struct Simulator {
    engine: Arc<Engine>,
    edge: RunningEdge,
    addr: SocketAddr,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Simulator {
    /// Listens and begins.
    ///
    /// # Errors
    /// If the address cannot be listened on.
    pub async fn start(settings: SimSettings) -> io::Result<Simulator> {
        let upstream = Upstream::new(UpstreamSettings::default()).map_err(io::Error::other)?;
        let listener = TcpListener::bind(settings.listen).await?;
        let addr = listener.local_addr()?;
        let inside = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let sockets = TcpListener::bind(inside).await?;
        let monitors = format!("http://{}", sockets.local_addr()?).parse().map_err(io::Error::other)?;
        let edge = Edge::bind(inside, EdgeSettings::default(), None).await?;
        let engine = Engine::start(settings, Arc::new(Sender(upstream.clone())));
        let door = Arc::new(Door::default());
        let handler = Server { engine: Arc::clone(&engine), door: Arc::clone(&door), upstream, monitors };
        let edge = edge.spawn(Arc::new(handler));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(monitor::run(sockets, Arc::clone(&engine), tasks.clone(), stop.clone()));
        tasks.spawn(door.run(listener, edge.local_addr(), tasks.clone(), stop.clone()));
        Ok(Simulator { engine, edge, addr, tasks, stop })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What to use as a provider's base URL.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The controls.
    pub fn control(&self) -> Control {
        Control::new(Arc::clone(&self.engine))
    }

    /// Ends it; webhooks on their way are dropped.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.engine.stop().await;
        self.edge.drain(Duration::ZERO).await;
        self.tasks.wait().await;
    }
}

struct Server {
    engine: Arc<Engine>,
    door: Arc<Door>,
    upstream: Upstream,
    /// Where monitor sockets end.
    monitors: Uri,
}

impl Server {
    /// Why a WebSocket is not let in; None is let in.
    fn refuse_socket(&self, exchange: &Exchange) -> Option<Reply> {
        let key = self.engine.look(|world| world.settings.el_api_key.clone());
        if exchange.header("xi-api-key") != Some(key.as_str()) {
            return Some(elevenlabs::bad_key());
        }
        let known = monitor::conversation_of(exchange.path()).is_some_and(|id| monitor::talking(&self.engine, id));
        (!known).then(elevenlabs::not_found)
    }

    async fn socket(&self, exchange: &mut Exchange) {
        if let Some(refused) = self.refuse_socket(exchange) {
            return answer(exchange, refused).await;
        }
        let target = RelayTarget {
            base: self.monitors.clone(),
            path_and_query: exchange.path_and_query().to_owned(),
            set_headers: Vec::new(),
            remove_headers: Vec::new(),
            mount: None,
            host: HostRule::Upstream,
        };
        if let Err(error) = relay(exchange, &self.upstream, target).await {
            tracing::debug!(%error, "simulated monitor socket was not opened");
        }
    }
}

#[async_trait]
impl Handler for Server {
    async fn handle(&self, exchange: &mut Exchange) {
        if exchange.is_upgrade() {
            return self.socket(exchange).await;
        }
        let Ok(body) = exchange.read_body(BODY).await else {
            return answer(exchange, Reply::empty(413)).await;
        };
        let reply = {
            let ask = Ask {
                method: exchange.method().as_str(),
                path: exchange.path(),
                query: exchange.query().unwrap_or_default(),
                headers: exchange.headers(),
                body: &body,
            };
            self.engine.handle(&ask).await
        };
        if reply.drop
            && let Some(peer) = exchange.peer().addr()
        {
            self.door.slam(peer);
            // Not a byte of an answer until the connection is gone.
            _ = tokio::time::timeout(Duration::from_secs(1), exchange.client_gone()).await;
        }
        answer(exchange, reply).await;
    }
}

async fn answer(exchange: &mut Exchange, reply: Reply) {
    let mut response = Response::builder().status(reply.status);
    if !reply.content.is_empty() {
        response = response.header("content-type", reply.content);
    }
    if let Some(secs) = reply.retry_after {
        response = response.header("retry-after", secs);
    }
    if let Ok(response) = response.body(reply.body) {
        exchange.respond(response).await;
    }
}

/// Sends webhooks with ringfence's client.
struct Sender(Upstream);

#[async_trait]
impl Post for Sender {
    async fn post(&self, request: Request<Bytes>, timeout: Duration) -> Result<Response<Bytes>, Attempt> {
        self.0.fetch(request, ANSWER, timeout).await.map_err(|error| match error {
            UpstreamError::Connect(_) | UpstreamError::Invalid(_) => Attempt::NotConnected,
            _ => Attempt::NotAnswered,
        })
    }
}
