//! A relay of TCP connections in which the network goes wrong on demand. One stands between one process and one server, so that a
//! single replica can be cut off from a single thing.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The treatment of what goes through. Connections that lost bytes are reset when the weather changes: a network loses
/// connections, no pieces of streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// It goes through.
    Pass,
    /// Every connection is reset, new ones at once.
    Cut,
    /// Connections are taken, and what is sent is swallowed, both ways. The server sees connections that say nothing.
    BlackHole,
    /// Every piece goes through so much later.
    Delay(Duration),
    /// Requests go through, answers are swallowed: a COMMIT is made, and nobody hears of it.
    NoAnswers,
    /// The server sees its connections reset, the clients see nothing: what they send is swallowed.
    HalfOpen,
}

impl Weather {
    fn loses(self, way: Way) -> bool {
        match self {
            Weather::BlackHole | Weather::HalfOpen => true,
            Weather::NoAnswers => way == Way::Back,
            Weather::Pass | Weather::Cut | Weather::Delay(_) => false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    There,
    Back,
}

/// Bytes of an answer that are written otherwise, of the same length: an address that a Sentinel tells.
pub type Rewrite = (Vec<u8>, Vec<u8>);

struct Shared {
    to: SocketAddr,
    rewrites: Mutex<Vec<Rewrite>>,
    accepted: AtomicU64,
}

/// A TCP relay that can disturb what it passes on. It ends when it is dropped.
pub struct Relay {
    addr: SocketAddr,
    weather: watch::Sender<Weather>,
    shared: Arc<Shared>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Relay {
    /// A relay to a server, on a port of its own.
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (weather, seen) = watch::channel(Weather::Pass);
        let shared = Arc::new(Shared { to: server, rewrites: Mutex::default(), accepted: AtomicU64::default() });
        let accepting = tokio::spawn(accept(listener, seen, shared.clone()));
        Self { addr, weather, shared, accepting }
    }

    /// The same to a port of this machine.
    pub async fn to_port(port: u16) -> Self {
        Self::to(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn port(&self) -> u16 {
        self.addr.port()
    }

    /// Changes the weather, also of connections that are open.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// The weather for a time, then fair again.
    pub async fn set_for(&self, weather: Weather, time: Duration) {
        self.set(weather);
        tokio::time::sleep(time).await;
        self.set(Weather::Pass);
    }

    /// Replaces texts in answers from now on.
    pub fn rewrite(&self, rewrites: Vec<Rewrite>) {
        assert!(rewrites.iter().all(|(from, to)| from.len() == to.len() && !from.is_empty()));
        *self.shared.rewrites.lock().unwrap() = rewrites;
    }

    /// The number of connections that came in.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
        self.set(Weather::Cut);
    }
}

async fn accept(listener: TcpListener, weather: watch::Receiver<Weather>, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                shared.accepted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(connection(client, weather.clone(), shared.clone()));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

async fn connection(client: TcpStream, mut weather: watch::Receiver<Weather>, shared: Arc<Shared>) {
    let _ = client.set_nodelay(true);
    let now = *weather.borrow_and_update();
    match now {
        Weather::Cut => return reset(&client),
        // There is no server behind it: whatever comes next, this connection is lost.
        Weather::BlackHole | Weather::HalfOpen => {
            let mut client = client;
            let mut buffer = [0; 4096];
            loop {
                tokio::select! {
                    _ = weather.changed() => return reset(&client),
                    read = client.read(&mut buffer) => match read {
                        Ok(n) if n > 0 => {}
                        // It has given up; nobody tells it anything.
                        _ => return,
                    }
                }
            }
        }
        Weather::Pass | Weather::Delay(_) | Weather::NoAnswers => {}
    }
    let Ok(server) = TcpStream::connect(shared.to).await else { return reset(&client) };
    let _ = server.set_nodelay(true);
    let ends = Ends { weather: weather.clone(), shared, over: CancellationToken::new() };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let there = ends.clone().pump(Way::There, from_client, to_server);
    let back = ends.clone().pump(Way::Back, from_server, to_client);
    let ((from_client, to_server), (from_server, to_client)) = tokio::join!(there, back);
    if !ends.over.is_cancelled() {
        // It ended in order.
        return;
    }
    let (Ok(mut client), Ok(server)) = (from_client.reunite(to_client), from_server.reunite(to_server)) else { return };
    reset(&server);
    drop(server);
    swallow(&mut client, weather).await;
    reset(&client);
}

/// While half of a connection is open, what its client sends goes nowhere.
async fn swallow(client: &mut TcpStream, mut weather: watch::Receiver<Weather>) {
    let mut buffer = [0; 4096];
    while *weather.borrow_and_update() == Weather::HalfOpen {
        tokio::select! {
            _ = weather.changed() => {}
            read = client.read(&mut buffer) => if !matches!(read, Ok(1..)) {
                return;
            }
        }
    }
}

/// The state that the two directions of a connection share.
#[derive(Clone)]
struct Ends {
    weather: watch::Receiver<Weather>,
    shared: Arc<Shared>,
    /// One direction has come to grief, and so has the other.
    over: CancellationToken,
}

impl Ends {
    /// Carries one direction, until it ends or comes to grief.
    async fn pump(
        mut self,
        way: Way,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
    ) -> (OwnedReadHalf, OwnedWriteHalf) {
        let mut buffer = vec![0; 16 * 1024];
        let mut lossy = false;
        loop {
            let now = *self.weather.borrow_and_update();
            if matches!(now, Weather::Cut | Weather::HalfOpen) || (lossy && !now.loses(way)) {
                break;
            }
            let read = tokio::select! {
                _ = self.weather.changed() => continue,
                () = self.over.cancelled() => break,
                read = from.read(&mut buffer) => read,
            };
            let Ok(n) = read else { break };
            let now = *self.weather.borrow_and_update();
            if now.loses(way) {
                lossy = true;
                if n > 0 {
                    continue;
                }
                // The one end has gone; the other is not told before the weather changes.
                tokio::select! {
                    _ = self.weather.changed() => {}
                    () = self.over.cancelled() => {}
                }
                break;
            }
            if let Weather::Delay(time) = now {
                tokio::select! {
                    () = tokio::time::sleep(time) => {}
                    _ = self.weather.changed() => {}
                    () = self.over.cancelled() => break,
                }
                if self.weather.borrow().loses(way) || *self.weather.borrow() == Weather::Cut {
                    break;
                }
            }
            if n == 0 {
                let _ = to.shutdown().await;
                return (from, to);
            }
            if way == Way::Back {
                self.rewrite(&mut buffer[..n]);
            }
            if to.write_all(&buffer[..n]).await.is_err() {
                break;
            }
        }
        self.over.cancel();
        (from, to)
    }

    fn rewrite(&self, bytes: &mut [u8]) {
        for (from, to) in self.shared.rewrites.lock().unwrap().iter() {
            let mut at = 0;
            while let Some(found) = bytes[at..].windows(from.len()).position(|window| window == from) {
                bytes[at + found..at + found + from.len()].copy_from_slice(to);
                at += found + from.len();
            }
        }
    }
}
