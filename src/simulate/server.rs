//! The thin part that has sockets: requests in by `net`'s edge, webhooks out by its client.

use super::control::Control;
use super::door::Door;
use super::engine::{Engine, Post};
use super::settings::SimSettings;
use super::webhooks::Attempt;
use super::wire::Ask;
use crate::net::edge::{Edge, EdgeSettings, Handler, RunningEdge};
use crate::net::exchange::Exchange;
use crate::net::upstream::{Upstream, UpstreamError, UpstreamSettings};
use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Longest request body: batches of ten thousand recipients fit.
const BODY: usize = 8 * 1024 * 1024;
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
        let engine = Engine::start(settings, Arc::new(Sender(upstream)));
        let door = Arc::new(Door::default());
        let handler = Server { engine: Arc::clone(&engine), door: Arc::clone(&door) };
        let inside = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let edge = Edge::bind(inside, EdgeSettings::default(), None).await?.spawn(Arc::new(handler));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
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
}

#[async_trait]
impl Handler for Server {
    async fn handle(&self, exchange: &mut Exchange) {
        let Ok(body) = exchange.read_body(BODY).await else {
            return answer(exchange, 413, "text/plain", None, Bytes::new()).await;
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
            && let Some(peer) = exchange.peer()
        {
            self.door.slam(peer);
        }
        answer(exchange, reply.status, reply.content, reply.retry_after, reply.body).await;
    }
}

async fn answer(exchange: &mut Exchange, status: u16, content: &str, retry_after: Option<u64>, body: Bytes) {
    let mut response = Response::builder().status(status);
    if !content.is_empty() {
        response = response.header("content-type", content);
    }
    if let Some(secs) = retry_after {
        response = response.header("retry-after", secs);
    }
    if let Ok(response) = response.body(body) {
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
