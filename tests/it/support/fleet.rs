//! Several real processes over one record and one pair of simulated providers. A relay stands between each of them and each thing
//! that it needs; webhooks come to whichever process chance picks, as behind a load balancer.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request};
use ringfence::ids::CallId;
use ringfence::net::{Edge, EdgeSettings, Exchange, Handler, RunningEdge, Upstream, UpstreamSettings};
use ringfence_simulator::{Control, SimSettings, Simulator};
use serde_json::{Value, json};

use super::child::{OWN_NUMBER, Serve, signal};
use super::faults::{Relay, Rewrite};
use super::redis::{Group, Redis};
use super::rng::Rng;
use super::stage::{Answer, Behind, PATIENCE};

/// The prefix of numbers that are called outside ringfence.
pub const FOREIGN: &str = "+15559";

/// The Redis of a fleet.
pub enum Store {
    None,
    Plain(Mutex<Redis>),
    Sentinel(Mutex<Group>),
}

impl Store {
    pub fn is_none(&self) -> bool {
        matches!(self, Store::None)
    }
}

/// The settings of a fleet.
pub struct Setup {
    pub replicas: usize,
    pub sim: SimSettings,
    /// A TCP port of Postgres, and a database of it.
    pub postgres: (u16, String),
    pub redis: Store,
    /// More tables of the config; `{redis}` stands for the URL of its Redis.
    pub tables: String,
    /// Calls at once: at ElevenLabs, in all, of each business.
    pub limits: (u32, u32, Vec<(String, u32)>),
    /// The keys of `[reconcile]`.
    pub reconcile: &'static str,
}

/// One of the processes, whether it runs or not.
pub struct Replica {
    pub folder: PathBuf,
    pub postgres: Relay,
    pub provider: Relay,
    /// To each server of its Redis.
    pub redis: Vec<Relay>,
    /// To each Sentinel.
    pub sentinels: Vec<Relay>,
    serve: Mutex<Option<Serve>>,
    /// Its addresses: `api`, `webhooks`, `admin`.
    places: Mutex<HashMap<&'static str, String>>,
    /// The balancer sends it webhooks.
    pub up: AtomicBool,
    /// One fault at a time stops or kills it.
    pub hands: tokio::sync::Mutex<()>,
}

impl Replica {
    pub fn url(&self, listener: &str, path: &str) -> Option<String> {
        Some(format!("{}{path}", self.places.lock().unwrap().get(listener)?))
    }

    /// Starts it. `false`: it died before it was ready.
    pub async fn start(&self, fail: &str) -> bool {
        let serve = Serve::start(&self.folder, &[], fail).await;
        let ready = serve.is_ready();
        if ready {
            let mut places = self.places.lock().unwrap();
            for listener in ["api", "webhooks", "admin"] {
                places.insert(listener, serve.at(listener, ""));
            }
        }
        *self.serve.lock().unwrap() = Some(serve);
        self.up.store(ready, Ordering::Relaxed);
        ready
    }

    /// `kill -9`, also of one that stands still.
    pub fn kill(&self) {
        self.up.store(false, Ordering::Relaxed);
        drop(self.serve.lock().unwrap().take());
    }

    pub fn signal(&self, name: &str) {
        if let Some(serve) = &*self.serve.lock().unwrap() {
            signal(serve.pid(), name);
        }
    }

    /// Its exit status, if it has died.
    pub fn dead(&self) -> Option<std::process::ExitStatus> {
        self.serve.lock().unwrap().as_mut()?.dead()
    }

    /// SIGTERM, and waits until it has gone.
    pub async fn stop(&self) {
        self.up.store(false, Ordering::Relaxed);
        self.signal("TERM");
        let started = tokio::time::Instant::now();
        while self.dead().is_none() && self.serve.lock().unwrap().is_some() {
            if started.elapsed() > PATIENCE {
                panic!("it does not stop:\n{}", self.last_lines());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.kill();
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    pub fn last_lines(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

/// A webhook that was acknowledged.
#[derive(Debug, Clone)]
pub struct Acknowledged {
    pub by: usize,
    pub path: String,
    pub body: Bytes,
}

/// Before the webhook listeners: each request goes to a process that chance picks.
struct Balancer {
    replicas: Arc<Vec<Replica>>,
    http: Upstream,
    rng: Mutex<Rng>,
    acknowledged: Arc<Mutex<Vec<Acknowledged>>>,
    /// The number of webhooks that each one was sent.
    pub sent: Arc<Vec<AtomicU64>>,
}

impl Balancer {
    async fn pass(&self, exchange: &mut Exchange) -> Option<http::Response<Bytes>> {
        let body = exchange.read_body(8 << 20).await.ok()?;
        // One that cannot be reached is passed over, as a balancer does; one that says nothing has lost the request.
        for _ in 0..4 {
            let up: Vec<usize> =
                (0..self.replicas.len()).filter(|n| self.replicas[*n].up.load(Ordering::Relaxed)).collect();
            if up.is_empty() {
                break;
            }
            let n = up[self.rng.lock().unwrap().below(up.len() as u64) as usize];
            let url = self.replicas[n].url("webhooks", exchange.path_and_query())?;
            let mut request = Request::new(body.clone());
            *request.method_mut() = exchange.method().clone();
            *request.uri_mut() = url.parse().ok()?;
            let hop = ["connection", "content-length", "transfer-encoding", "host", "keep-alive"];
            for (name, value) in exchange.headers().iter().filter(|(name, _)| !hop.contains(&name.as_str())) {
                request.headers_mut().append(name.clone(), value.clone());
            }
            self.sent[n].fetch_add(1, Ordering::Relaxed);
            match self.http.fetch(request, 1 << 20, Duration::from_secs(14)).await {
                Ok(answer) => {
                    if answer.status().is_success() {
                        let path = exchange.path().to_owned();
                        self.acknowledged.lock().unwrap().push(Acknowledged { by: n, path, body });
                    }
                    return Some(answer);
                }
                Err(error) if error.not_sent() => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(_) => break,
            }
        }
        None
    }
}

#[async_trait]
impl Handler for Balancer {
    async fn handle(&self, exchange: &mut Exchange) {
        let answer = self.pass(exchange).await;
        let answer = answer.unwrap_or_else(|| super::net::text(502, "nobody answers"));
        let (mut parts, body) = answer.into_parts();
        for name in ["connection", "content-length", "transfer-encoding"] {
            parts.headers.remove(name);
        }
        exchange.respond(http::Response::from_parts(parts, body)).await;
    }
}

/// The app behind: it talks to callers.
fn app(got: &super::stage::Got) -> http::Response<Bytes> {
    let voice = got.path_and_query.ends_with("/voice");
    let body = if voice { Bytes::from(crate::outbound::TALK) } else { Bytes::new() };
    let mut response = http::Response::new(body);
    response.headers_mut().insert("content-type", HeaderValue::from_static("text/xml"));
    response
}

/// Several `ringfence` processes with their Redis and database, and the simulated providers.
pub struct Fleet {
    pub control: Control,
    pub replicas: Arc<Vec<Replica>>,
    pub redis: Store,
    pub acknowledged: Arc<Mutex<Vec<Acknowledged>>>,
    /// Webhooks that each process was sent.
    pub sent: Arc<Vec<AtomicU64>>,
    pub record: sqlx::postgres::PgPool,
    folder: PathBuf,
    http: Upstream,
    simulator: Option<Simulator>,
    balancer: Option<RunningEdge>,
    _app: Behind,
    keep: bool,
}

impl Fleet {
    /// Everything, but no process runs yet.
    pub async fn set(setup: Setup, rng: &mut Rng) -> Self {
        super::panics::end_the_run();
        ringfence::net::install_crypto_provider();
        let folder = std::env::temp_dir().join(format!("ringfence-fleet-{}", CallId::new()));
        let simulator = Simulator::start(setup.sim.clone()).await.unwrap();
        let (control, behind) = (simulator.control(), Behind::replying(Box::new(app)).await);
        let (port, database) = &setup.postgres;
        let mut replicas = Vec::new();
        for n in 0..setup.replicas {
            let (redis, sentinels) = relays(&setup.redis).await;
            let replica = Replica {
                folder: folder.join(format!("replica-{n}")),
                postgres: Relay::to_port(*port).await,
                provider: Relay::to(simulator.addr()).await,
                redis,
                sentinels,
                serve: Mutex::default(),
                places: Mutex::default(),
                up: AtomicBool::new(false),
                hands: tokio::sync::Mutex::default(),
            };
            std::fs::create_dir_all(&replica.folder).unwrap();
            replicas.push(replica);
        }
        let replicas = Arc::new(replicas);
        let acknowledged = Arc::<Mutex<Vec<Acknowledged>>>::default();
        let sent = Arc::new((0..setup.replicas).map(|_| AtomicU64::default()).collect::<Vec<_>>());
        let http = Upstream::new(UpstreamSettings::default()).unwrap();
        let balancer = Balancer {
            replicas: replicas.clone(),
            http: http.clone(),
            rng: Mutex::new(rng.fork()),
            acknowledged: acknowledged.clone(),
            sent: sent.clone(),
        };
        let here = SocketAddr::from(([127, 0, 0, 1], 0));
        let balancer = Edge::bind(here, EdgeSettings::default(), None).await.unwrap().spawn(Arc::new(balancer));
        let public = format!("http://{}", balancer.local_addr());
        for replica in replicas.iter() {
            let text = config(&setup, &control, replica, &public, &behind.url(), database);
            std::fs::write(replica.folder.join("ringfence.toml"), text).unwrap();
        }
        control.configure(|s| {
            s.el_events_url = Some(format!("{public}/api/webhooks/elevenlabs"));
            s.number_voice_url = Some(format!("{public}/webhooks/twilio/voice"));
            s.number_status_url = Some(format!("{public}/webhooks/twilio/status"));
        });
        let straight = sqlx::postgres::PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(*port)
            .username("postgres")
            .database(database)
            .options([("search_path", "ringfence")]);
        let record = sqlx::postgres::PgPoolOptions::new()
            .max_connections(2)
            .acquire_timeout(Duration::from_secs(3))
            .connect_lazy_with(straight);
        Self {
            control,
            replicas,
            redis: setup.redis,
            acknowledged,
            sent,
            record,
            folder,
            http,
            simulator: Some(simulator),
            balancer: Some(balancer),
            _app: behind,
            keep: true,
        }
    }

    /// Starts every process that does not run.
    pub async fn start(&self) {
        for replica in self.replicas.iter().filter(|r| !r.up.load(Ordering::Relaxed)) {
            assert!(replica.start("").await, "it does not start:\n{}", replica.last_lines());
        }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A request; `None` if it got no answer in time.
    pub async fn send(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
        patience: Duration,
    ) -> Option<Answer> {
        let mut request = Request::new(body.into());
        *request.method_mut() = method.parse().unwrap();
        *request.uri_mut() = url.parse().unwrap();
        for (name, value) in headers {
            request.headers_mut().append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let (parts, body) = self.http.fetch(request, 8 << 20, patience).await.ok()?.into_parts();
        Some(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
    }

    /// `/status` of one process.
    pub async fn status(&self, n: usize) -> Option<Value> {
        let url = self.replicas[n].url("admin", "/status")?;
        let answer = self.send("GET", &url, &[], "", Duration::from_secs(5)).await?;
        serde_json::from_slice(&answer.body).ok()
    }

    /// A create at ElevenLabs by one of the processes.
    pub async fn dial(
        &self,
        n: usize,
        business: &str,
        to: &str,
        key: Option<&str>,
        patience: Duration,
    ) -> Option<Answer> {
        let agent = format!("agent_{business}");
        let body = json!({"agent_id": agent, "agent_phone_number_id": "phnum_1", "to_number": to}).to_string();
        let api_key = self.control.settings().el_api_key;
        let mut headers =
            vec![("content-type", "application/json"), ("xi-api-key", &*api_key), ("x-business-id", business)];
        headers.extend(key.map(|key| ("idempotency-key", key)));
        let url = self.replicas[n].url("api", "/elevenlabs/v1/convai/twilio/outbound-call")?;
        self.send("POST", &url, &headers, body, patience).await
    }

    /// A create at Twilio.
    pub async fn talk(
        &self,
        n: usize,
        business: &str,
        to: &str,
        key: Option<&str>,
        patience: Duration,
    ) -> Option<Answer> {
        use base64::Engine as _;
        let pairs = [("To", to), ("From", "+15550001111"), ("Twiml", crate::outbound::TALK)];
        let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
        let s = self.control.settings();
        let pair = format!("{}:{}", s.account_sid, s.auth_token);
        let authorization = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair));
        let mut headers = vec![
            ("content-type", "application/x-www-form-urlencoded"),
            ("authorization", &*authorization),
            ("x-business-id", business),
        ];
        headers.extend(key.map(|key| ("idempotency-key", key)));
        let url = self.replicas[n].url("api", &format!("/twilio/2010-04-01/Accounts/{}/Calls.json", s.account_sid))?;
        self.send("POST", &url, &headers, form, patience).await
    }

    /// Places a call outside ringfence.
    pub async fn place_outside_ringfence(&self, to: &str) -> Option<Answer> {
        let key = self.control.settings().el_api_key;
        let url = format!("{}/v1/convai/twilio/outbound-call", self.simulator.as_ref()?.base_url());
        let body = json!({"agent_id": "agent_gamma", "agent_phone_number_id": "phnum_1", "to_number": to}).to_string();
        let headers = [("content-type", "application/json"), ("xi-api-key", &*key)];
        self.send("POST", &url, &headers, body, Duration::from_secs(5)).await
    }

    pub fn end_all(&self) {
        for call in self.control.calls().into_iter().filter(|c| c.live || c.arriving) {
            self.control.end_call(call.call_sid.as_ref().or(call.conversation_id.as_ref()).unwrap());
        }
    }

    /// The lines of the logs about these ids, by process: the last lines.
    pub fn traces(&self, ids: &[String]) -> String {
        let mut said = String::new();
        for (n, replica) in self.replicas.iter().enumerate() {
            let log = replica.log();
            let lines: Vec<&str> =
                log.lines().filter(|line| ids.iter().any(|id| !id.is_empty() && line.contains(id))).collect();
            said += &format!("  replica {n}: {} lines\n", lines.len());
            for line in &lines[lines.len().saturating_sub(12)..] {
                said += &format!("    {line}\n");
            }
        }
        said
    }

    /// Ends every process by SIGTERM.
    pub async fn stop(&self) {
        futures_util::future::join_all(self.replicas.iter().map(Replica::stop)).await;
    }

    /// Nothing was wrong: no logs are kept.
    pub async fn done(mut self) {
        self.keep = false;
        for replica in self.replicas.iter() {
            replica.kill();
        }
        self.record.close().await;
        if let Some(balancer) = self.balancer.take() {
            balancer.drain(Duration::ZERO).await;
        }
        if let Some(simulator) = self.simulator.take() {
            simulator.stop().await;
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for replica in self.replicas.iter() {
            replica.kill();
        }
        if self.keep {
            eprintln!("the logs are in {}", self.folder.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

/// Relays to the servers and the Sentinels of a Redis. What a Sentinel says of addresses leads to the relays.
async fn relays(redis: &Store) -> (Vec<Relay>, Vec<Relay>) {
    let (servers, sentinels) = match redis {
        Store::None => (vec![], vec![]),
        Store::Plain(server) => (vec![server.lock().unwrap().port], vec![]),
        Store::Sentinel(group) => {
            let group = group.lock().unwrap();
            let ports = |all: &[Redis]| all.iter().map(|one| one.port).collect::<Vec<_>>();
            (ports(&group.servers), ports(&group.sentinels))
        }
    };
    let mut to_servers = Vec::new();
    for port in &servers {
        to_servers.push(Relay::to_port(*port).await);
    }
    let told = |port: u16| format!("\r\n{port}\r\n").into_bytes();
    let rewrites: Vec<Rewrite> =
        servers.iter().zip(&to_servers).map(|(port, relay)| (told(*port), told(relay.port()))).collect();
    let mut to_sentinels = Vec::new();
    for port in sentinels {
        let relay = Relay::to_port(port).await;
        relay.rewrite(rewrites.clone());
        to_sentinels.push(relay);
    }
    (to_servers, to_sentinels)
}

fn config(setup: &Setup, control: &Control, replica: &Replica, public: &str, app: &str, database: &str) -> String {
    let s = control.settings();
    let (el_max, all_max, businesses) = &setup.limits;
    let businesses: String = businesses
        .iter()
        .map(|(name, max)| format!("[businesses.{name}]\nmax_calls = {max}\nagent_ids = [\"agent_{name}\"]\n"))
        .collect();
    let redis = match &setup.redis {
        Store::None => String::new(),
        Store::Plain(server) => server.lock().unwrap().url_at(replica.redis[0].port()),
        Store::Sentinel(_) => Group::url_at(&replica.sentinels.iter().map(Relay::port).collect::<Vec<_>>()),
    };
    format!(
        r#"
public_url = "{public}"
concurrent = {all_max}
[listen]
api = "127.0.0.1:0"
webhooks = "127.0.0.1:0"
admin = "127.0.0.1:0"
client = "127.0.0.1:0"
[log]
filter = "info,ringfence=debug"
[timeouts]
create_secs = 2
create_read_secs = 5
send_within_secs = 2
drain_secs = 2
provider_query_secs = 2
[deadlines]
reserved_secs = 5
[reconcile]
{reconcile}
[inbound]
mode = "front"
[inbound.agents]
"{OWN_NUMBER}" = "agent_callers"
[app]
allowed_callbacks = ["127.0.0.0/8"]
forward_url = "{app}"
[accounts.elevenlabs]
upstream = "http://{upstream}"
api_key = "{key}"
webhook_secrets = ["{secret}"]
concurrent = {el_max}
[accounts.twilio]
upstream = "http://{upstream}"
account_sid = "{sid}"
auth_token = "{token}"
[store]
url = "postgres://postgres@127.0.0.1:{postgres}/{database}"
pool_max = 10
statement_timeout_ms = 2000
{businesses}
phone_numbers = ["{OWN_NUMBER}"]
{tables}
"#,
        reconcile = setup.reconcile,
        upstream = replica.provider.addr(),
        key = s.el_api_key,
        secret = s.el_webhook_secret,
        sid = s.account_sid,
        token = s.auth_token,
        postgres = replica.postgres.port(),
        tables = setup.tables.replace("{redis}", &redis),
    )
}
