//! The whole program in process, against simulated providers, on free ports.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use ringfence::app::{App, ConfigSource};
use ringfence::clock::Clock;
use ringfence::config;
use ringfence::ids::CallId;
use ringfence::net::{Edge, EdgeSettings, Exchange, Handler, RunningEdge, Upstream, UpstreamSettings, fetch_local};
use ringfence_simulator::{Control, Millis, SimSettings, Simulator};
use serde_json::{Value, json};

use super::rng::Rng;

/// The time that anything may take before a test calls it "does not happen".
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A line of a counter that is not zero: one whose labels are known stands there from the start.
pub fn grown<'a>(metrics: &'a Value, name: &str) -> Option<&'a str> {
    let is_it = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    metrics.as_str().unwrap().lines().find(|line| is_it(line) && !line.ends_with(" 0"))
}

/// The settings of a stage.
pub struct Setup {
    /// The simulated providers.
    pub sim: SimSettings,
    /// Those of another stage instead: their address, and their controls. Their webhooks go to that stage.
    pub beside: Option<(String, Control)>,
    /// TOML put before everything else: keys of the root.
    pub root: String,
    /// TOML put after everything else: more tables.
    pub tables: String,
    /// More keys of `[timeouts]`.
    pub timeouts: String,
    /// More keys of `[accounts.elevenlabs]`.
    pub elevenlabs: String,
    /// More keys of `[accounts.twilio]`.
    pub twilio: String,
    /// `public_url` is set, and the simulator's webhooks go to the sidecar.
    pub public: bool,
    /// `app.forward_url`.
    pub app: Option<String>,
    /// Entries of `app.allowed_callbacks`.
    pub callbacks: String,
    /// Texts of the config that are written otherwise, at the very end.
    pub replace: Vec<(String, String)>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            sim: SimSettings {
                dial_ms: Millis::exactly(10),
                ring_ms: Millis::exactly(10),
                talk_ms: Millis::exactly(600_000),
                analysis_ms: Millis::exactly(20),
                ..SimSettings::default()
            },
            beside: None,
            root: String::new(),
            tables: String::new(),
            timeouts: String::new(),
            elevenlabs: String::new(),
            twilio: String::new(),
            public: true,
            app: None,
            callbacks: "\"127.0.0.0/8\"".to_owned(),
            replace: vec![],
        }
    }
}

/// Providers of which every fifth webhook gets lost, comes twice or late.
pub fn unreliable(rng: &mut Rng, talk_ms: Millis) -> SimSettings {
    SimSettings {
        talk_ms,
        webhook_loss: 0.2,
        webhook_double: 0.2,
        webhook_reorder: 0.2,
        seed: rng.below(1 << 32),
        ..Setup::default().sim
    }
}

/// An answer, taken apart.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn of(response: http::Response<Bytes>) -> Self {
        let (parts, body) = response.into_parts();
        Self { status: parts.status.as_u16(), headers: parts.headers, body }
    }
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }
}

pub struct Stage {
    app: Option<App>,
    pub control: Control,
    simulator: Option<Simulator>,
    pub clock: Clock,
    folder: PathBuf,
    config: String,
    http: Upstream,
}

impl Stage {
    /// Starts everything. Sweeps come every 100 ms, calls are looked up from their first moment on.
    pub async fn start(setup: Setup) -> Self {
        super::panics::end_the_run();
        ringfence::net::install_crypto_provider();
        let folder = std::env::temp_dir().join(format!("ringfence-it-{}", CallId::new()));
        std::fs::create_dir_all(&folder).unwrap();
        let simulator = match setup.beside {
            Some(_) => None,
            None => Some(Simulator::start(setup.sim.clone()).await.unwrap()),
        };
        let own = simulator.as_ref().map(|simulator| (simulator.base_url(), simulator.control()));
        let (providers, control) = setup.beside.clone().or(own).unwrap();
        let clock = Clock::system();
        let store = if setup.tables.contains("[store]") { String::new() } else { test_store().await };
        let mut tries = 0;
        let (app, config) = loop {
            // The port has to be known before the sidecar binds it; whoever takes it meanwhile costs another try.
            let port = ringfence::net::spare_port();
            let text = format!("{}{store}", config_text(&setup, &providers, port));
            match start(&text, &folder, &clock).await {
                Ok(app) => break (app, text),
                Err(error) if tries < 5 => {
                    eprintln!("another port: {error}");
                    tries += 1;
                }
                Err(error) => panic!("{error}\n{text}"),
            }
        };
        if setup.public && simulator.is_some() {
            let url = format!("http://{}", app.webhooks());
            control.configure(|s| {
                s.el_events_url = Some(format!("{url}/api/webhooks/elevenlabs"));
                s.number_voice_url = Some(format!("{url}/webhooks/twilio/voice"));
                s.number_status_url = Some(format!("{url}/webhooks/twilio/status"));
            });
        }
        let http = Upstream::new(UpstreamSettings::default()).unwrap();
        Self { app: Some(app), control, simulator, clock, folder, config, http }
    }

    pub fn app(&self) -> &App {
        self.app.as_ref().expect("the app runs")
    }

    /// Stops the sidecar as SIGTERM does.
    pub async fn stop_app(&mut self) {
        if let Some(app) = self.app.take() {
            app.drain().await;
        }
    }

    /// Starts it again over the same record, on the same ports.
    pub async fn start_app(&mut self) {
        let started = Instant::now();
        loop {
            match start(&self.config, &self.folder, &self.clock).await {
                Ok(app) => {
                    self.app = Some(app);
                    return;
                }
                Err(error) if started.elapsed() < PATIENCE => {
                    eprintln!("again: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The bodies that are in the spool, by name.
    pub fn spooled(&self) -> Vec<String> {
        super::spooled(&self.folder.join("spool"))
    }

    /// Takes the bodies out of the spool, as somebody may who tidies up.
    pub fn remove_spooled(&self) {
        for name in self.spooled() {
            std::fs::remove_file(self.folder.join("spool").join(name)).unwrap();
        }
    }

    /// Writes a text of the config file otherwise.
    pub fn rewrite(&self, old: &str, new: &str) {
        let text = std::fs::read_to_string(self.folder.join(FILE)).unwrap();
        assert!(text.contains(old), "{old} is not in the config");
        std::fs::write(self.folder.join(FILE), text.replace(old, new)).unwrap();
    }

    /// Writes a text of the config otherwise, for the next start.
    pub fn edit(&mut self, old: &str, new: &str) {
        assert!(self.config.contains(old), "{old} is not in the config");
        self.config = self.config.replace(old, new);
    }

    /// The database, if it is Postgres.
    pub fn postgres(&self) -> Option<&str> {
        self.config.lines().find_map(|line| line.strip_prefix("url = \"")?.strip_suffix('"'))
    }

    /// The base URL of the simulated providers.
    pub fn simulator_url(&self) -> String {
        self.simulator.as_ref().expect("the simulator runs").base_url()
    }

    /// `POST /api/reload`.
    pub async fn reload(&self) -> Answer {
        self.send("POST", &self.admin("/api/reload"), &[], Bytes::new()).await
    }

    /// A request to any address; at `listen.admin` as an operator of this machine asks, over its Unix socket.
    pub async fn send(&self, method: &str, url: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        let mut request = Request::new(body.into());
        *request.method_mut() = method.parse::<Method>().unwrap();
        *request.uri_mut() = url.parse().unwrap();
        for (name, value) in headers {
            request.headers_mut().append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let admin = self.app.as_ref().filter(|app| url.starts_with(&format!("http://{}/", app.admin())));
        if let Some(socket) = admin.and_then(App::admin_socket) {
            return Answer::of(fetch_local(socket, request, 64 << 20, PATIENCE).await.unwrap());
        }
        self.over_tcp(request).await
    }

    /// A request over TCP, wherever it goes.
    pub async fn over_tcp(&self, request: Request<Bytes>) -> Answer {
        let (method, url) = (request.method().clone(), request.uri().clone());
        let response =
            self.http.fetch(request, 64 << 20, PATIENCE).await.unwrap_or_else(|e| panic!("{method} {url}: {e}"));
        Answer::of(response)
    }

    pub fn api(&self, path: &str) -> String {
        format!("http://{}{path}", self.app().api())
    }
    /// The simulated providers themselves.
    pub fn provider(&self, path: &str) -> String {
        format!("{}{path}", self.simulator.as_ref().expect("the providers run").base_url())
    }
    pub fn webhooks(&self, path: &str) -> String {
        format!("http://{}{path}", self.app().webhooks())
    }
    pub fn admin(&self, path: &str) -> String {
        format!("http://{}{path}", self.app().admin())
    }

    pub fn client(&self, path: &str) -> String {
        format!("http://{}{path}", self.app().client())
    }

    /// `POST …/twilio/outbound-call` at ElevenLabs, as an app does it.
    pub async fn dial(&self, business: Option<&str>, to: &str) -> Answer {
        let body = json!({"agent_id": "agent_acme", "agent_phone_number_id": "phnum_1", "to_number": to}).to_string();
        let key = self.control.settings().el_api_key;
        let mut headers = vec![("content-type", "application/json"), ("xi-api-key", key.as_str())];
        headers.extend(business.map(|b| ("x-business-id", b)));
        self.send("POST", &self.api("/elevenlabs/v1/convai/twilio/outbound-call"), &headers, body).await
    }

    /// `POST …/Calls.json` at Twilio, with more form fields.
    pub async fn dial_twilio(&self, business: Option<&str>, to: &str, more: &[(&str, &str)]) -> Answer {
        let s = self.control.settings();
        let mut pairs = vec![("To", to), ("From", "+15550001111"), ("Twiml", "<Response/>")];
        pairs.extend(more);
        let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
        use base64::Engine as _;
        let pair = base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", s.account_sid, s.auth_token));
        let authorization = format!("Basic {pair}");
        let mut headers =
            vec![("content-type", "application/x-www-form-urlencoded"), ("authorization", authorization.as_str())];
        headers.extend(business.map(|b| ("x-business-id", b)));
        let url = self.api(&format!("/twilio/2010-04-01/Accounts/{}/Calls.json", s.account_sid));
        self.send("POST", &url, &headers, form).await
    }

    /// A GET at `listen.admin`.
    pub async fn ask(&self, path: &str) -> Value {
        let answer = self.send("GET", &self.admin(path), &[], Bytes::new()).await;
        assert!(answer.status < 300, "{path}: {answer:?}");
        serde_json::from_slice(&answer.body)
            .unwrap_or(Value::String(String::from_utf8_lossy(&answer.body).into_owned()))
    }

    /// Slots that are held, over_limit included.
    pub async fn held(&self) -> u32 {
        self.app().calls().lifecycle.admission.counts().await.unwrap().calls
    }

    /// The newest record that has this id.
    pub async fn record(&self, id: &str) -> Option<ringfence::store::CallRecord> {
        let latest = self.app().calls().lifecycle.store.latest_calls(10_000).await.unwrap();
        latest.into_iter().find(|c| c.id.as_str() == id || c.aliases.iter().any(|a| a.id == id))
    }

    /// Waits until something is so.
    pub async fn wait(&self, what: &str, mut so: impl AsyncFnMut() -> bool) {
        let started = Instant::now();
        while !so().await {
            if started.elapsed() >= PATIENCE {
                panic!("it does not happen: {what}\n{}", self.what_is_open().await);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The open calls of the database and the limiter, for a test that failed.
    async fn what_is_open(&self) -> String {
        let lifecycle = &self.app().calls().lifecycle;
        format!("counts: {:?}\nopen: {:#?}", lifecycle.admission.counts().await, lifecycle.store.open_calls().await)
    }

    /// Invariant 4: no lease without a record that is open, no open record without a lease, and as many slots. And no two calls laid claim to one
    /// id.
    pub async fn check_invariants(&self) {
        let lifecycle = &self.app().calls().lifecycle;
        let mut last = (0, 0);
        for _ in 0..200 {
            let open = lifecycle.store.open_calls().await.unwrap();
            let open: u32 = open.iter().filter(|call| call.counts()).map(|call| call.slots).sum();
            last = (open, lifecycle.admission.counts().await.unwrap().calls);
            if last.0 == last.1 {
                break;
            }
            // A change between its commit and its release.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(last.0, last.1, "slots of open records and of leases");
        let metrics = self.ask("/metrics").await;
        let text = metrics.as_str().unwrap_or_default();
        assert!(text.contains("ringfence_alias_conflicts_total 0"), "two calls laid claim to one id");
    }

    /// Checks the invariants and stops everything.
    pub async fn finish(mut self) {
        self.check_invariants().await;
        self.stop_app().await;
        if let Some(simulator) = self.simulator.take() {
            simulator.stop().await;
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The database of the tests: `RINGFENCE_TEST_STORE=postgres` takes a database of the server that they share, else SQLite.
async fn test_store() -> String {
    if std::env::var("RINGFENCE_TEST_STORE").is_ok_and(|store| store == "postgres") {
        let url = tokio::task::spawn_blocking(|| super::postgres::shared().database()).await.unwrap();
        return format!("[store]\nurl = \"{url}\"\n");
    }
    String::new()
}

/// The config file's name.
const FILE: &str = "ringfence.toml";

async fn start(text: &str, folder: &std::path::Path, clock: &Clock) -> Result<App, ringfence::app::StartError> {
    std::fs::write(folder.join(FILE), text).unwrap();
    let file = config::ConfigPath::new(folder.join(FILE), vec![]);
    let read = file.read().unwrap();
    let shown = config::diagnostics::render(&read.loaded.diagnostics, "test", text);
    let config = read.loaded.config.unwrap_or_else(|| panic!("{shown}"));
    let written = ConfigSource { file, inputs: read.inputs, set_log_filter: Box::new(|_| {}) };
    Box::pin(App::start_from(config, clock.clone(), Some(written))).await
}

fn config_text(setup: &Setup, url: &str, webhooks_port: u16) -> String {
    let s = &setup.sim;
    let public =
        if setup.public { format!("public_url = \"http://127.0.0.1:{webhooks_port}\"") } else { String::new() };
    // Apps of tests live on loopback.
    let section = format!("[app]\nallowed_callbacks = [{}]", setup.callbacks);
    let app = setup.app.as_ref().map_or(String::new(), |url| format!("forward_url = \"{url}\""));
    let (app, tables) = match setup.tables.contains("[app]") {
        true => (String::new(), setup.tables.replace("[app]", &format!("{section}\n{app}"))),
        false => (format!("{section}\n{app}"), setup.tables.clone()),
    };
    let text = format!(
        r#"
{public}
{root}
[listen]
api = "127.0.0.1:0"
webhooks = "127.0.0.1:{webhooks_port}"
admin = "127.0.0.1:0"
client = "127.0.0.1:0"
[timeouts]
drain_secs = 3
{timeouts}
[reconcile]
sweep_ms = 100
list_lag_ms = 200
not_found_confirm_secs = 1
[inbox]
spool_dir = "spool"
[accounts.elevenlabs]
upstream = "{url}"
api_key = "{key}"
webhook_secrets = ["an older secret", "{secret}"]
webhook_tokens = ["token-of-the-initiation-webhook"]
{elevenlabs}
[accounts.twilio]
upstream = "{url}"
account_sid = "{sid}"
auth_token = "{token}"
{twilio}
{app}
{tables}
"#,
        root = setup.root,
        timeouts = setup.timeouts,
        key = s.el_api_key,
        secret = s.el_webhook_secret,
        elevenlabs = setup.elevenlabs,
        sid = s.account_sid,
        token = s.auth_token,
        twilio = setup.twilio,
    );
    setup.replace.iter().fold(text, |text, (old, new)| {
        assert!(text.contains(old), "{old} is not in the config");
        text.replace(old, new)
    })
}

/// A request that the app behind ringfence got.
#[derive(Debug, Clone)]
pub struct Got {
    pub method: String,
    pub path_and_query: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Got {
    pub fn form(&self) -> Vec<(String, String)> {
        form_urlencoded::parse(&self.body).into_owned().collect()
    }
    pub fn field(&self, name: &str) -> Option<String> {
        self.form().into_iter().find(|(k, _)| k == name).map(|(_, v)| v)
    }
}

type Reply = Box<dyn Fn(&Got) -> http::Response<Bytes> + Send + Sync>;

/// The app behind ringfence: keeps what it gets, answers as told.
pub struct Behind {
    edge: RunningEdge,
    got: Arc<std::sync::Mutex<Vec<Got>>>,
}

struct Keep {
    got: Arc<std::sync::Mutex<Vec<Got>>>,
    reply: Reply,
}

#[async_trait::async_trait]
impl Handler for Keep {
    async fn handle(&self, exchange: &mut Exchange) {
        // A request that is cut, as by a process that dies, is none.
        let Ok(body) = exchange.read_body(80 << 20).await else { return };
        let got = Got {
            method: exchange.method().to_string(),
            path_and_query: exchange.path_and_query().to_owned(),
            headers: exchange.headers().clone(),
            body,
        };
        let response = (self.reply)(&got);
        self.got.lock().unwrap().push(got);
        exchange.respond(response).await;
    }
}

impl Behind {
    /// Answers everything with 200.
    pub async fn start() -> Self {
        Self::replying(Box::new(|_| http::Response::new(Bytes::new()))).await
    }

    pub async fn replying(reply: Reply) -> Self {
        Self::bound("127.0.0.1:0".parse().unwrap(), reply).await
    }

    /// Answers everything with 200, at an address that was free a moment ago.
    pub async fn at_address(address: std::net::SocketAddr) -> Self {
        Self::bound(address, Box::new(|_| http::Response::new(Bytes::new()))).await
    }

    async fn bound(address: std::net::SocketAddr, reply: Reply) -> Self {
        let settings = EdgeSettings { max_body_bytes: 512 << 20, ..EdgeSettings::default() };
        let edge = Edge::bind(address, settings, None).await.unwrap();
        let got = Arc::new(std::sync::Mutex::new(Vec::new()));
        let edge = edge.spawn(Arc::new(Keep { got: got.clone(), reply }));
        Self { edge, got }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.edge.local_addr())
    }

    pub fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    /// The requests that came to a path.
    pub fn at(&self, path: &str) -> Vec<Got> {
        self.got().into_iter().filter(|g| g.path_and_query.split('?').next() == Some(path)).collect()
    }
}
