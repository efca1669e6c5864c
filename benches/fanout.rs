//! How fast what is said in calls reaches those who follow them, and what a socket costs: ringfence beside `fanout/server.mjs`, a Node
//! server with `ws`. One load generator for both, a new process of each for every measurement, in turn. Every socket has to get
//! every number of its call once and in order; else the run fails.
//!
//! `bash benches/fanout/run.sh`; it raises the limit on open files.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench that cannot go on has nothing to measure")]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::Request;
use ringfence::net::{Upstream, UpstreamSettings};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// (calls, sockets in all): each socket follows one call.
const SHAPES: [(usize, usize); 4] = [(1, 1_000), (100, 1_000), (1, 10_000), (100, 10_000)];
const ROUNDS: usize = 3;

/// At a pace: messages a second that are delivered, utterances a second at most, and how long.
const PACED_MESSAGES: usize = 10_000;
const PACED_UTTERANCES_MAX: usize = 200;
const PACED: Duration = Duration::from_secs(6);

/// At full load: how long, utterances that are posted at once, and messages under way at most. A window that a call's followers fill
/// alone has a few utterances.
const FULL: Duration = Duration::from_secs(5);
const POSTERS: usize = 32;
const WINDOW: usize = 4_000;
const WINDOW_UTTERANCES: usize = 4;

/// Sockets that connect at once.
const CONNECTING: usize = 64;
/// Until the memory of a process is what it stays.
const SETTLE: Duration = Duration::from_secs(2);
/// How long anything may take before the run fails.
const PATIENCE: Duration = Duration::from_secs(60);
const SECRET: &str = "the secret that the app signs its tokens with";
/// What is said is as long as a sentence is.
const SENTENCE: &str = "Your order has left our warehouse this morning, and it will be with you tomorrow.";

/// Latencies, by steps of 50 µs up to 20 s.
const STEP_US: u64 = 50;
const STEPS: usize = 400_000;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Ringfence,
    Node,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Kind::Ringfence => "ringfence",
            Kind::Node => "Node with ws",
        }
    }
}

const CONFIG: &str = r#"
concurrent = 1000
[listen]
api = "127.0.0.1:0"
webhooks = "127.0.0.1:0"
admin = "127.0.0.1:0"
client = "127.0.0.1:0"
[accounts.elevenlabs]
upstream = "http://127.0.0.1:1"
[client]
token_secret = "{secret}"
sockets_per_token = 10000
[log]
filter = "warn"
"#;

/// A server in a folder of its own. It ends, and the folder goes, when this is dropped.
struct Server {
    child: Child,
    folder: PathBuf,
    webhooks: String,
    client: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Server {
    fn start(kind: Kind) -> Self {
        let folder = std::env::temp_dir().join(format!("ringfence-fanout-{}", ringfence::ids::CallId::new()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("ringfence.toml"), CONFIG.replace("{secret}", SECRET)).unwrap();
        let mut command = match kind {
            Kind::Ringfence => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
                command.args(["serve", "--config", "ringfence.toml", "--ready-json"]);
                command
            }
            Kind::Node => {
                let mut command = Command::new("node");
                command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/fanout/server.mjs"));
                command
            }
        };
        let mut child = command.current_dir(&folder).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        let place = |listener: &str| ready[listener].as_str().unwrap().to_owned();
        Self { child, folder, webhooks: place("webhooks"), client: place("client") }
    }

    /// CPU time so far, user and kernel, in microseconds. The kernel counts in hundredths of a second.
    fn cpu_us(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = fields[11..=12].iter().map(|field| field.parse::<u64>().unwrap()).sum();
        ticks * 10_000
    }

    fn rss_kib(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

/// What all sockets have got.
struct Tally {
    started: Instant,
    delivered: AtomicU64,
    /// A socket was closed, or got a number that is not the next.
    wrong: AtomicU64,
    closing: AtomicBool,
    steps: Vec<AtomicU32>,
}

impl Tally {
    fn new() -> Self {
        let steps = std::iter::repeat_with(AtomicU32::default).take(STEPS).collect();
        Self {
            started: Instant::now(),
            delivered: AtomicU64::default(),
            wrong: AtomicU64::default(),
            closing: AtomicBool::default(),
            steps,
        }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap()
    }

    fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    fn forget_latencies(&self) {
        self.steps.iter().for_each(|step| step.store(0, Ordering::Relaxed));
    }

    /// The latency that this part of the messages does not exceed, in milliseconds.
    fn percentile_ms(&self, part: f64) -> f64 {
        let counts: Vec<u64> = self.steps.iter().map(|step| step.load(Ordering::Relaxed).into()).collect();
        let wanted = (counts.iter().sum::<u64>() as f64 * part).ceil() as u64;
        let mut before = 0;
        let reaches = |count: &u64| {
            before += count;
            before >= wanted
        };
        let step = counts.iter().position(reaches).unwrap();
        (step as u64 + 1) as f64 * STEP_US as f64 / 1000.0
    }

    /// Waits until so many were delivered.
    async fn reaches(&self, wanted: u64) {
        let since = Instant::now();
        while self.delivered() < wanted {
            self.check();
            assert!(since.elapsed() < PATIENCE, "{} of {wanted} messages came", self.delivered());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.check();
        assert!(self.delivered() == wanted, "more came than was said");
    }

    fn check(&self) {
        let wrong = self.wrong.load(Ordering::Relaxed);
        assert!(wrong == 0, "{wrong} sockets were closed, or lack a number");
    }
}

/// The text after a key of a message, up to a character. Reading all of the JSON would be load of the generator's own.
fn after<'a>(text: &'a str, key: &str, end: char) -> Option<&'a str> {
    let (_, rest) = text.split_once(key)?;
    rest.split(end).next()
}

/// Reads one socket to its end.
async fn follow(mut socket: WebSocketStream<TcpStream>, tally: Arc<Tally>) {
    // One was said before.
    let mut last = 1;
    while let Some(Ok(message)) = socket.next().await {
        let Message::Text(text) = message else { continue };
        let number: Option<u64> = after(&text, "\"sequence_number\":", ',').and_then(|n| n.parse().ok());
        let said_at: Option<u64> = after(&text, "\"message_text\":\"", ' ').and_then(|us| us.parse().ok());
        let (Some(number), Some(said_at)) = (number, said_at) else { break };
        if number != last + 1 {
            break;
        }
        last = number;
        let step = (tally.now_us() - said_at) / STEP_US;
        tally.steps[usize::try_from(step).unwrap().min(STEPS - 1)].fetch_add(1, Ordering::Relaxed);
        tally.delivered.fetch_add(1, Ordering::Relaxed);
    }
    if !tally.closing.load(Ordering::Relaxed) {
        tally.wrong.fetch_add(1, Ordering::Relaxed);
    }
}

async fn connect(client: String, token: String, call: usize, tally: Arc<Tally>) -> impl Future<Output = ()> + Send {
    let tcp = TcpStream::connect(&client).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let url = format!("ws://{client}/ws/calls/transcriptions?token={token}");
    let config = WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(1024);
    let request = url.into_client_request().unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async_with_config(request, tcp, Some(config)).await.unwrap();
    socket.send(Message::text(json!({"subscribe": conversation(call)}).to_string())).await.unwrap();
    let told = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap().into_text().unwrap();
    assert!(told.contains("subscription_confirmed"), "{told}");
    follow(socket, tally)
}

fn conversation(call: usize) -> String {
    format!("conv_{call}")
}

/// Posts what somebody says, as whoever has the conversation does.
#[derive(Clone)]
struct Sayer {
    http: Upstream,
    url: String,
    tally: Arc<Tally>,
}

impl Sayer {
    async fn say(&self, call: usize) {
        let text = format!("{} {SENTENCE}", self.tally.now_us());
        let body = json!({"conversation_id": conversation(call), "speaker": "agent", "message": text,
            "timestamp": "2026-01-02T03:04:05.678Z"});
        let mut request = Request::new(Bytes::from(body.to_string()));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = self.url.parse().unwrap();
        request.headers_mut().insert("content-type", "application/json".parse().unwrap());
        let answer = self.http.fetch(request, 1 << 20, PATIENCE).await.unwrap();
        assert!(answer.status() == 201, "{answer:?}");
    }
}

/// What one measurement found.
#[derive(Clone, Copy)]
struct Found {
    socket_kib: f64,
    p50_ms: f64,
    p99_ms: f64,
    per_second: f64,
    cpu_us: f64,
}

async fn measure(kind: Kind, calls: usize, sockets: usize) -> Found {
    let server = Server::start(kind);
    let tally = Arc::new(Tally::new());
    let url = format!("http://{}/webhooks/elevenlabs/transcription", server.webhooks);
    let http = Upstream::new(UpstreamSettings::default()).unwrap();
    let sayer = Sayer { http, url, tally: tally.clone() };
    // A call can be followed once somebody has spoken.
    for call in 0..calls {
        sayer.say(call).await;
    }
    tokio::time::sleep(SETTLE).await;
    let rest = server.rss_kib();
    let claims = json!({"sub": "bench", "exp": 4_102_444_800_u64, "businesses": ["*"]});
    let token = ringfence::jws::sign(SECRET.as_bytes(), &claims).unwrap();
    let (mut connecting, mut following) = (JoinSet::new(), JoinSet::new());
    for n in 0..sockets {
        if connecting.len() >= CONNECTING {
            following.spawn(connecting.join_next().await.unwrap().unwrap());
        }
        connecting.spawn(connect(server.client.clone(), token.clone(), n % calls, tally.clone()));
    }
    while let Some(follow) = connecting.join_next().await {
        following.spawn(follow.unwrap());
    }
    tokio::time::sleep(SETTLE).await;
    let socket_kib = (server.rss_kib().saturating_sub(rest)) as f64 / sockets as f64;

    let per_call = sockets / calls;
    let mut said = 0;
    let pace = (PACED_MESSAGES / per_call).clamp(1, PACED_UTTERANCES_MAX);
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / u32::try_from(pace).unwrap());
    let (mut saying, since) = (JoinSet::new(), Instant::now());
    while since.elapsed() < PACED {
        ticks.tick().await;
        let sayer = sayer.clone();
        saying.spawn(async move { sayer.say(said % calls).await });
        said += 1;
    }
    saying.join_all().await;
    tally.reaches((said * per_call) as u64).await;
    let (p50_ms, p99_ms) = (tally.percentile_ms(0.5), tally.percentile_ms(0.99));
    tally.forget_latencies();

    let window = (WINDOW_UTTERANCES * per_call).max(WINDOW) as u64;
    let (before, cpu_before, since) = (tally.delivered(), server.cpu_us(), Instant::now());
    let (promised, next) = (Arc::new(AtomicU64::new(before)), Arc::new(AtomicU64::new(0)));
    let mut posters = JoinSet::new();
    for _ in 0..POSTERS {
        let (sayer, promised, next) = (sayer.clone(), promised.clone(), next.clone());
        posters.spawn(async move {
            while since.elapsed() < FULL {
                let more = promised.load(Ordering::Relaxed) + per_call as u64;
                let fits = more <= sayer.tally.delivered() + window;
                let is_mine = fits
                    && promised
                        .compare_exchange(more - per_call as u64, more, Ordering::Relaxed, Ordering::Relaxed)
                        .is_ok();
                if is_mine {
                    let n = next.fetch_add(1, Ordering::Relaxed) as usize;
                    sayer.say(n % calls).await;
                } else {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        });
    }
    posters.join_all().await;
    tally.reaches(promised.load(Ordering::Relaxed)).await;
    let (took, cpu) = (since.elapsed(), server.cpu_us() - cpu_before);
    let messages = (tally.delivered() - before) as f64;
    tally.closing.store(true, Ordering::Relaxed);
    drop(server);
    following.join_all().await;
    Found { socket_kib, p50_ms, p99_ms, per_second: messages / took.as_secs_f64(), cpu_us: cpu as f64 / messages }
}

/// The median of one figure over the rounds.
fn median(rounds: &[Found], figure: impl Fn(&Found) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(figure).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn machine() -> String {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("CPU", |(_, n)| n);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = load.split_whitespace().next().unwrap_or_default();
    format!("{cpu}, {cores} cores, Linux {}, load average {load} before the run", kernel.trim())
}

#[tokio::main]
async fn main() {
    ringfence::net::install_crypto_provider();
    let rounds = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(ROUNDS);
    println!("{}, {}; {rounds} rounds\n", jiff::Zoned::now().date(), machine());
    let mut found: Vec<Vec<Found>> = vec![vec![]; SHAPES.len() * 2];
    for round in 1..=rounds {
        for (shape, (calls, sockets)) in SHAPES.into_iter().enumerate() {
            for (nth, kind) in [Kind::Ringfence, Kind::Node].into_iter().enumerate() {
                let one = measure(kind, calls, sockets).await;
                eprintln!(
                    "round {round}: {sockets} sockets, {calls} calls, {}: {:.0}/s, {:.1} µs, p50 {:.1} ms, p99 {:.1} ms, {:.1} KiB",
                    kind.name(),
                    one.per_second,
                    one.cpu_us,
                    one.p50_ms,
                    one.p99_ms,
                    one.socket_kib
                );
                found[shape * 2 + nth].push(one);
            }
        }
    }
    println!("| sockets | calls | | messages/s | CPU µs a message | p50 ms | p99 ms | KiB a socket |");
    println!("|--:|--:|---|--:|--:|--:|--:|--:|");
    for (shape, (calls, sockets)) in SHAPES.into_iter().enumerate() {
        for (nth, kind) in [Kind::Ringfence, Kind::Node].into_iter().enumerate() {
            let of = |figure: fn(&Found) -> f64| median(&found[shape * 2 + nth], figure);
            println!(
                "| {sockets} | {calls} | {} | {:.0} | {:.1} | {:.1} | {:.1} | {:.1} |",
                kind.name(),
                of(|one| one.per_second),
                of(|one| one.cpu_us),
                of(|one| one.p50_ms),
                of(|one| one.p99_ms),
                of(|one| one.socket_kib)
            );
        }
    }
    println!("\nratios, ringfence to Node with ws:");
    for (shape, (calls, sockets)) in SHAPES.into_iter().enumerate() {
        let ratio =
            |figure: fn(&Found) -> f64| median(&found[shape * 2], figure) / median(&found[shape * 2 + 1], figure);
        println!(
            "{sockets} sockets, {calls} calls: messages/s {:.2}, CPU {:.2}, p99 {:.2}, memory {:.2}",
            ratio(|one| one.per_second),
            ratio(|one| one.cpu_us),
            ratio(|one| one.p99_ms),
            ratio(|one| one.socket_kib)
        );
    }
}
