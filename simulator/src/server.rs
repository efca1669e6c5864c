//! The way in: requests and monitor sockets, on hyper's HTTP/1 server.

use crate::control::Control;
use crate::engine::Engine;
use crate::monitor;
use crate::settings::SimSettings;
use crate::wire::{Ask, Reply};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Longest request body: batches of ten thousand recipients fit.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The time for which a connection may wait for its next request (nginx's `keepalive_timeout`).
const KEEPALIVE: Duration = Duration::from_secs(75);

/// Two simulated providers on one address.
///
/// They run as tasks of the runtime that [`Simulator::start`] was called on, and end with it, or with [`Simulator::stop`].
pub struct Simulator {
    server: Server,
    addr: SocketAddr,
}

impl Simulator {
    /// Listens and begins.
    ///
    /// # Errors
    /// If the address cannot be listened on.
    pub async fn start(settings: SimSettings) -> io::Result<Simulator> {
        let listener = TcpListener::bind(settings.listen).await?;
        let addr = listener.local_addr()?;
        let server =
            Server { engine: Engine::start(settings), tasks: TaskTracker::new(), stop: CancellationToken::new() };
        server.tasks.spawn(server.clone().accept(listener));
        Ok(Simulator { server, addr })
    }

    /// The address at which it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The base URL of a provider.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The controls.
    pub fn control(&self) -> Control {
        Control::new(Arc::clone(&self.server.engine))
    }

    /// Ends it: open connections are reset, webhooks on their way are dropped.
    pub async fn stop(self) {
        self.server.stop.cancel();
        self.server.tasks.close();
        self.server.engine.stop().await;
        self.server.tasks.wait().await;
    }
}

/// The state that all connections share.
#[derive(Clone)]
struct Server {
    engine: Arc<Engine>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Server {
    async fn accept(self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    self.tasks.spawn(self.clone().serve(stream));
                }
                // Mostly "too many open files": wait for some to close.
                Err(error) => {
                    tracing::warn!(%error, "failed to accept connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Serves one connection until it closes or is reset.
    async fn serve(self, stream: TcpStream) {
        _ = stream.set_nodelay(true);
        let reset = self.stop.child_token();
        let service = service_fn(|request| {
            let (server, reset) = (self.clone(), reset.clone());
            async move { Ok::<_, Infallible>(server.answer(request, &reset).await) }
        });
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(KEEPALIVE)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        tokio::select! {
            biased;
            () = reset.cancelled() => {
                if let Some(parts) = connection.into_parts() {
                    // Closing it is then a reset, not an orderly end.
                    _ = parts.io.into_inner().set_zero_linger();
                }
            }
            served = &mut connection => {
                if let Err(error) = served {
                    tracing::debug!(%error, "connection broke");
                }
            }
        }
    }

    async fn answer(&self, mut request: Request<Incoming>, reset: &CancellationToken) -> Response<Full<Bytes>> {
        if monitor::is_socket(&request) {
            let opened = monitor::open(&self.engine, &mut request);
            return opened.map_or_else(response, |(answer, socket)| {
                let stop = self.stop.clone();
                self.tasks.spawn(async move { _ = stop.run_until_cancelled(socket).await });
                answer
            });
        }
        let (head, body) = request.into_parts();
        if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
            return response(Reply::empty(413));
        }
        let Ok(body) = Limited::new(body, BODY_BYTES_MAX).collect().await else {
            return response(Reply::empty(413));
        };
        let ask = Ask {
            method: head.method.as_str(),
            path: head.uri.path(),
            query: head.uri.query().unwrap_or_default(),
            headers: &head.headers,
            body: &body.to_bytes(),
        };
        let reply = self.engine.handle(&ask).await;
        if reply.drop {
            reset.cancel();
            // Not a byte of an answer: the connection goes first, and this with it.
            std::future::pending::<()>().await;
        }
        response(reply)
    }
}

fn response(reply: Reply) -> Response<Full<Bytes>> {
    let mut response = Response::builder().status(reply.status);
    if !reply.content.is_empty() {
        response = response.header(CONTENT_TYPE, reply.content);
    }
    if let Some(secs) = reply.retry_after {
        response = response.header(RETRY_AFTER, secs);
    }
    // A status that is none is the only thing that could be wrong, and the providers' are constants.
    response.body(Full::new(reply.body)).unwrap_or_default()
}
