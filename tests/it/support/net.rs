//! Sockets for tests: a client that writes what it is told, byte for byte; upstreams that misbehave on demand; edges on port 0.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ringfence::net::{
    Edge, EdgeSettings, Exchange, Handler, HostRule, RelayError, RelayTarget, ReloadingTls, RunningEdge, Upstream,
    UpstreamSettings, relay,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The deadline for sending a create of a test.
pub fn soon() -> Duration {
    ringfence::clock::since_boot() + Duration::from_secs(60)
}

/// No test may hang the runner. A machine with much else to do may be many times slower than an idle one.
pub async fn bounded<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(600), test).await.expect("the test took longer than 600 s")
}

pub type Handling<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// A handler from a function.
pub struct By<F>(pub F);

#[async_trait]
impl<F> Handler for By<F>
where
    F: for<'a> Fn(&'a mut Exchange) -> Handling<'a> + Send + Sync + 'static,
{
    async fn handle(&self, exchange: &mut Exchange) {
        (self.0)(exchange).await;
    }
}

pub async fn edge<F>(settings: EdgeSettings, handler: F) -> RunningEdge
where
    F: for<'a> Fn(&'a mut Exchange) -> Handling<'a> + Send + Sync + 'static,
{
    edge_with(settings, None, By(handler)).await
}

pub async fn edge_with(settings: EdgeSettings, tls: Option<ReloadingTls>, handler: impl Handler) -> RunningEdge {
    super::panics::end_the_run();
    let addr = SocketAddr::from(([127, 0, 0, 1], 0));
    Edge::bind(addr, settings, tls).await.expect("bind").spawn(Arc::new(handler))
}

pub fn text(status: u16, body: impl Into<Bytes>) -> http::Response<Bytes> {
    http::Response::builder().status(status).header("content-type", "text/plain").body(body.into()).expect("response")
}

/// Answers what it was asked: method, target, host, headers, then the body (at most 100 KB, else 413).
pub fn mirror(exchange: &mut Exchange) -> Handling<'_> {
    Box::pin(async move {
        let body = match exchange.read_body(100_000).await {
            Ok(body) => body,
            Err(ringfence::net::BodyError::TooLarge { .. }) => {
                return exchange.respond(text(413, "too large")).await;
            }
            Err(error) => return exchange.respond(text(400, error.to_string())).await,
        };
        let mut seen = format!("{} {}\nhost={:?}\n", exchange.method(), exchange.path_and_query(), exchange.host());
        for (name, value) in exchange.headers() {
            seen.push_str(&format!("{name}: {}\n", value.to_str().unwrap_or("?")));
        }
        seen.push('\n');
        seen.push_str(&String::from_utf8_lossy(&body));
        exchange.respond(text(200, seen)).await;
    })
}

/// Relays everything to one address; what fails becomes a 502, or a 400, whose body names the error.
pub struct RelayTo {
    pub base: http::Uri,
    pub upstream: Upstream,
    pub host: HostRule,
    pub done: tokio::sync::mpsc::UnboundedSender<Result<ringfence::net::Relayed, RelayError>>,
}

#[async_trait]
impl Handler for RelayTo {
    async fn handle(&self, exchange: &mut Exchange) {
        let path_and_query = exchange.path_and_query().to_owned();
        let target = RelayTarget {
            base: self.base.clone(),
            path_and_query: &path_and_query,
            set_headers: Vec::new(),
            remove_headers: [].as_slice().into(),
            host: self.host,
            mount: None,
        };
        let result = relay(exchange, &self.upstream, target).await;
        if let Err(error) = &result {
            let status = if error.is_clients() { 400 } else { 502 };
            exchange.respond(text(status, format!("{error:?}"))).await;
        }
        let _ = self.done.send(result);
    }
}

pub type Results = tokio::sync::mpsc::UnboundedReceiver<Result<ringfence::net::Relayed, RelayError>>;

/// An edge that relays to `upstream`, and the results of its relays.
pub async fn relay_edge(settings: EdgeSettings, upstream: SocketAddr) -> (RunningEdge, Results) {
    let (done, results) = tokio::sync::mpsc::unbounded_channel();
    let handler = RelayTo {
        base: format!("http://{upstream}").parse().expect("uri"),
        upstream: Upstream::new(UpstreamSettings::default()).expect("upstream"),
        host: HostRule::Upstream,
        done,
    };
    (edge_with(settings, None, handler).await, results)
}

/// A server whose connections are handled by `each`, for as long as the test's runtime lives.
pub async fn server<F, Fut>(each: F) -> SocketAddr
where
    F: Fn(Wire) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let addr = listener.local_addr().expect("addr");
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let _ = tcp.set_nodelay(true);
            tokio::spawn(each(Wire::new(tcp)));
        }
    });
    addr
}

/// One end of a connection, byte for byte.
pub struct Wire {
    pub tcp: TcpStream,
    /// Read but not consumed.
    pub buffer: Vec<u8>,
}

/// A message as it came.
#[derive(Debug)]
pub struct Message {
    /// First line and fields, as text.
    pub head: String,
    pub body: Vec<u8>,
}

impl Message {
    pub fn status(&self) -> u16 {
        self.head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or_else(|| panic!("no status in {:?}", self.head))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// All values of a field, in order.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .filter(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .collect()
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }
}

impl Wire {
    pub fn new(tcp: TcpStream) -> Self {
        Wire { tcp, buffer: Vec::new() }
    }

    pub async fn connect(addr: SocketAddr) -> Self {
        let tcp = TcpStream::connect(addr).await.expect("connect");
        tcp.set_nodelay(true).expect("nodelay");
        Wire::new(tcp)
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.tcp.write_all(bytes.as_ref()).await.expect("send");
    }

    /// Waits until something can be read: bytes, or the end.
    pub async fn readable(&self) {
        self.tcp.readable().await.expect("readable");
    }

    async fn more(&mut self) -> bool {
        let mut chunk = vec![0; 64 * 1024];
        match self.tcp.read(&mut chunk).await {
            Ok(0) | Err(_) => false,
            Ok(n) => {
                self.buffer.extend_from_slice(&chunk[..n]);
                true
            }
        }
    }

    /// The next head; `None` if the connection ends before it does.
    pub async fn head(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let rest = self.buffer.split_off(end + 4);
                let head = std::mem::replace(&mut self.buffer, rest);
                return Some(String::from_utf8_lossy(&head[..end]).into_owned());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    pub async fn exactly(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < length {
            if !self.more().await {
                return None;
            }
        }
        let rest = self.buffer.split_off(length);
        Some(std::mem::replace(&mut self.buffer, rest))
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let line = self.exactly(end + 2).await?;
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// A chunk of a chunked body; empty at its end, `None` if it is cut.
    pub async fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = usize::from_str_radix(self.line().await?.trim(), 16).ok()?;
        let mut chunk = self.exactly(size + 2).await?;
        chunk.truncate(size);
        Some(chunk)
    }

    /// The next message with its body as framed; `None` if it is cut.
    pub async fn message(&mut self) -> Option<Message> {
        let head = self.head().await?;
        let mut message = Message { head, body: Vec::new() };
        if message.field("transfer-encoding").is_some() {
            loop {
                let chunk = self.chunk().await?;
                if chunk.is_empty() {
                    return Some(message);
                }
                message.body.extend_from_slice(&chunk);
            }
        }
        if let Some(length) = message.field("content-length").map(|length| length.parse().expect("length")) {
            message.body = self.exactly(length).await?;
        }
        Some(message)
    }

    /// Sends and reads one answer.
    pub async fn ask(&mut self, request: impl AsRef<[u8]>) -> Message {
        self.send(request).await;
        self.message().await.expect("an answer")
    }

    /// Reads to the end of the connection; true if nothing else came.
    pub async fn is_closed(&mut self) -> bool {
        self.buffer.is_empty() && !self.more().await
    }

    /// Reads and drops whatever still comes, until the connection ends.
    pub async fn until_closed(&mut self) {
        while self.more().await {
            self.buffer.clear();
        }
    }

    /// True if the other side neither says anything nor closes for this long.
    pub async fn stays_silent(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.more()).await.is_err()
    }
}

/// One request on a connection of its own.
pub async fn ask(addr: SocketAddr, request: impl AsRef<[u8]>) -> Message {
    Wire::connect(addr).await.ask(request).await
}

/// Bytes that are not all alike, so that a piece lost or repeated shows.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 7 + at % 251) as u8).collect()
}

/// Waits until something holds, at most a minute.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never came true: {what}");
}
