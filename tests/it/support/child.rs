//! The real binary as a child that may die at any moment, against simulated providers in this process: they live on, and what
//! they count is the truth.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request};
use ringfence::ids::CallId;
use ringfence::net::{Upstream, UpstreamSettings, fetch_local};
use ringfence_simulator::{CallView, Control, Inbound, SimSettings, Simulator, Via};
use serde_json::{Value, json};
use sqlx::Row as _;
use tokio::io::AsyncWriteExt as _;

use super::net::Wire;
use super::stage::{Answer, Behind, Got, PATIENCE, Setup};

/// Calls at once that the config allows: at ElevenLabs, and in all.
pub const EL_MAX: u32 = 3;
pub const ALL_MAX: u32 = 4;
/// The number that front mode answers.
pub const OWN_NUMBER: &str = "+15550001101";

/// A running `ringfence serve`. It is killed when dropped, stopped or not.
pub struct Serve {
    child: Child,
    ready: Value,
}

impl Drop for Serve {
    fn drop(&mut self) {
        // SIGKILL ends a stopped process too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Serve {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status, if it has died.
    pub fn dead(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Starts the program in a folder with its config, and waits until it is ready or dead. `wrapper` is put before its name.
    pub async fn start(folder: &Path, wrapper: &[String], fail: &str) -> Self {
        let mut words = wrapper.to_vec();
        words.push(env!("CARGO_BIN_EXE_ringfence").to_owned());
        let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("log")).unwrap();
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .args(["serve", "--config", "ringfence.toml", "--ready-json"])
            .current_dir(folder)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("RINGFENCE_FAIL", fail)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let mut serve = Serve { child, ready: Value::Null };
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            line
        });
        let line = tokio::time::timeout(3 * PATIENCE, line).await.expect("it does not become ready").unwrap();
        if !line.is_empty() {
            serve.ready = serde_json::from_str(&line).unwrap();
        }
        serve
    }

    /// It said that it is ready.
    pub fn is_ready(&self) -> bool {
        !self.ready.is_null()
    }

    pub fn at(&self, listener: &str, path: &str) -> String {
        format!("http://{}{path}", self.ready[listener].as_str().unwrap())
    }
}

/// One database, one pair of providers, one app; and the process that owns the database.
pub struct Scene {
    pub control: Control,
    /// The app behind.
    pub app: Behind,
    serve: Option<Serve>,
    simulator: Option<Simulator>,
    folder: PathBuf,
    /// The words before the program's name: a shell that sets limits.
    pub wrapper: Vec<String>,
    http: Upstream,
    numbers: AtomicU32,
    /// Creates without an answer, with the time of their first attempt.
    pending: Mutex<VecDeque<(String, Instant)>>,
    /// The number called by each create, with the status of the answer, if one came.
    creates: Mutex<Vec<(String, Option<u16>)>>,
}

/// The database.
enum Record {
    Sqlite(PathBuf),
    Postgres(sqlx::postgres::PgPool),
}

impl Record {
    async fn number(&self, sql: &'static str, binds: &[String]) -> i64 {
        match self {
            Record::Sqlite(file) => {
                let record = rusqlite::Connection::open(file).unwrap();
                let binds = rusqlite::params_from_iter(binds);
                record.query_row(&sql.replace('$', "?"), binds, |row| row.get(0)).unwrap()
            }
            Record::Postgres(pool) => {
                let mut transaction = pool.begin_with("BEGIN; SET LOCAL search_path TO ringfence").await.unwrap();
                let query = binds.iter().fold(sqlx::query(sql), |query, bind| query.bind(bind));
                query.fetch_one(&mut *transaction).await.unwrap().get(0)
            }
        }
    }
}

/// The app behind: it talks to callers.
fn answer(got: &Got) -> http::Response<Bytes> {
    let voice = got.path_and_query.ends_with("/voice");
    let body = if voice { Bytes::from(crate::outbound::TALK) } else { Bytes::new() };
    let mut response = http::Response::new(body);
    response.headers_mut().insert("content-type", HeaderValue::from_static("text/xml"));
    response
}

pub fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap().success());
}

impl Scene {
    /// Providers and an app, and a config; nothing runs yet.
    /// `inbound` is the mode of the numbers: `app` or `front`.
    pub async fn set(sim: SimSettings, inbound: &str, timeouts: &str, tables: &str) -> Self {
        ringfence::net::install_crypto_provider();
        let folder = std::env::temp_dir().join(format!("ringfence-crash-{}", CallId::new()));
        std::fs::create_dir_all(&folder).unwrap();
        let simulator = Simulator::start(sim).await.unwrap();
        let (control, app) = (simulator.control(), Behind::replying(Box::new(answer)).await);
        let port = ringfence::net::spare_port();
        let (url, s) = (simulator.base_url(), control.settings());
        let text = format!(
            r#"
public_url = "http://127.0.0.1:{port}"
concurrent = {ALL_MAX}
[listen]
api = "127.0.0.1:0"
webhooks = "127.0.0.1:{port}"
admin = "127.0.0.1:0"
client = "127.0.0.1:0"
[timeouts]
drain_secs = 2
provider_query_secs = 5
{timeouts}
[reconcile]
sweep_ms = 100
list_lag_ms = 200
not_found_confirm_secs = 1
[inbound]
mode = "{inbound}"
[inbound.agents]
"{OWN_NUMBER}" = "agent_acme"
[app]
allowed_callbacks = ["127.0.0.0/8"]
forward_url = "{app}"
[accounts.elevenlabs]
upstream = "{url}"
api_key = "{key}"
webhook_secrets = ["{secret}"]
concurrent = {EL_MAX}
[accounts.twilio]
upstream = "{url}"
account_sid = "{sid}"
auth_token = "{token}"
{tables}
"#,
            app = app.url(),
            key = s.el_api_key,
            secret = s.el_webhook_secret,
            sid = s.account_sid,
            token = s.auth_token,
        );
        std::fs::write(folder.join("ringfence.toml"), text).unwrap();
        let webhooks = format!("http://127.0.0.1:{port}");
        control.configure(|s| {
            s.el_events_url = Some(format!("{webhooks}/api/webhooks/elevenlabs"));
            s.number_voice_url = Some(format!("{webhooks}/webhooks/twilio/voice"));
            s.number_status_url = Some(format!("{webhooks}/webhooks/twilio/status"));
        });
        let http = Upstream::new(UpstreamSettings::default()).unwrap();
        Self {
            control,
            app,
            serve: None,
            simulator: Some(simulator),
            folder,
            wrapper: vec![],
            http,
            numbers: AtomicU32::new(1),
            pending: Mutex::default(),
            creates: Mutex::default(),
        }
    }

    /// The settings of the simulated providers that most scenes want: calls stay up until somebody ends them.
    pub async fn usual() -> Self {
        Self::set(Setup::default().sim, "front", "", "").await
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts the program over the scene's record, with failpoints. `false`: it died before it was ready.
    pub async fn start(&mut self, fail: &str) -> bool {
        assert!(self.serve.is_none(), "one is running");
        self.serve = Some(Serve::start(&self.folder, &self.wrapper, fail).await);
        self.serve().is_ready()
    }

    /// Starts it as it should run.
    pub async fn start_well(&mut self) {
        assert!(self.start("").await, "it does not start: {}", self.log());
    }

    pub fn serve(&mut self) -> &mut Serve {
        self.serve.as_mut().expect("it runs")
    }

    pub fn pid(&self) -> u32 {
        self.serve.as_ref().expect("it runs").pid()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        drop(self.serve.take());
    }

    /// Waits until it has died by itself.
    pub async fn died(&mut self, within: Duration) -> Option<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.serve().dead() {
                self.serve = None;
                return Some(status);
            }
            if started.elapsed() > within {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// SIGTERM: it drains and exits 0.
    pub async fn stop(&mut self) {
        signal(self.serve().pid(), "TERM");
        let status = self.died(PATIENCE).await.unwrap_or_else(|| panic!("it does not stop: {}", self.log()));
        assert_eq!((status.code(), status.signal()), (Some(0), None), "{}", self.log());
    }

    /// A request; `None` if it got no answer.
    pub async fn send(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Option<Answer> {
        let mut request = Request::new(body.into());
        *request.method_mut() = method.parse::<Method>().unwrap();
        *request.uri_mut() = url.parse().unwrap();
        for (name, value) in headers {
            request.headers_mut().append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let (parts, body) = self.http.fetch(request, 8 << 20, PATIENCE).await.ok()?.into_parts();
        Some(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
    }

    /// A request to one of the child's listeners.
    pub async fn ask(
        &self,
        listener: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Option<Answer> {
        let serve = self.serve.as_ref()?;
        if listener == "admin" {
            // As an operator of this machine.
            let mut request = Request::builder().method(method).uri(path);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let socket = self.folder.join(serve.ready["adminSocket"].as_str()?);
            let answer = fetch_local(&socket, request.body(body.into()).unwrap(), 8 << 20, PATIENCE).await;
            return answer.ok().map(Answer::of);
        }
        self.send(method, &serve.at(listener, path), headers, body).await
    }

    pub async fn status(&self) -> Value {
        self.ask("admin", "GET", "/status", &[], "").await.expect("an answer").json()
    }

    /// Leases that are held, over_limit included.
    pub async fn held(&self) -> u64 {
        self.status().await["gate"]["calls"].as_u64().unwrap()
    }

    /// A number that nobody was called at yet.
    pub fn number(&self) -> String {
        format!("+1555{:06}7", self.numbers.fetch_add(1, Ordering::Relaxed))
    }

    /// The number of creates so far.
    pub fn create_count(&self) -> usize {
        self.creates.lock().unwrap().len()
    }

    fn note(&self, to: &str, answer: Option<&Answer>) {
        let mut creates = self.creates.lock().unwrap();
        // Sent again, it is the same create.
        creates.retain(|(earlier, _)| earlier != to);
        creates.push((to.to_owned(), answer.map(|a| a.status)));
    }

    pub fn elevenlabs_body(&self, to: &str) -> String {
        json!({"agent_id": "agent_acme", "agent_phone_number_id": "phnum_1", "to_number": to}).to_string()
    }

    async fn elevenlabs_at(&self, mount: &str, operation: &str, body: String) -> Option<Answer> {
        let key = self.control.settings().el_api_key;
        let headers = [("content-type", "application/json"), ("xi-api-key", key.as_str())];
        self.ask("api", "POST", &format!("/{mount}/v1/convai/twilio/{operation}"), &headers, body).await
    }

    /// A create at ElevenLabs, to a new number.
    pub async fn dial(&self) -> Option<Answer> {
        self.dial_at("elevenlabs").await
    }

    /// The same, to this number.
    pub async fn dial_to(&self, to: &str) -> Option<Answer> {
        let answer = self.elevenlabs_at("elevenlabs", "outbound-call", self.elevenlabs_body(to)).await;
        self.note(to, answer.as_ref());
        answer
    }

    /// The same at an account.
    pub async fn dial_at(&self, mount: &str) -> Option<Answer> {
        let to = self.number();
        let answer = self.elevenlabs_at(mount, "outbound-call", self.elevenlabs_body(&to)).await;
        self.note(&to, answer.as_ref());
        answer
    }

    /// Asks ElevenLabs for TwiML for a call that we placed.
    pub async fn register(&self, from: &str, to: &str) -> Option<Answer> {
        let body = json!({"agent_id": "agent_acme", "from_number": from, "to_number": to, "direction": "outbound"});
        self.elevenlabs_at("elevenlabs", "register-call", body.to_string()).await
    }

    fn basic(&self) -> String {
        use base64::Engine as _;
        let s = self.control.settings();
        format!(
            "Basic {}",
            base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", s.account_sid, s.auth_token))
        )
    }

    /// A create at Twilio, to a new number: its answer, and the number.
    pub async fn talk(&self) -> (Option<Answer>, String) {
        let to = self.number();
        let pairs = [("To", to.as_str()), ("From", "+15550001111"), ("Twiml", crate::outbound::TALK)];
        let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
        let authorization = self.basic();
        let headers =
            [("content-type", "application/x-www-form-urlencoded"), ("authorization", authorization.as_str())];
        let path = format!("/twilio/2010-04-01/Accounts/{}/Calls.json", self.control.settings().account_sid);
        let answer = self.ask("api", "POST", &path, &headers, form).await;
        self.note(&to, answer.as_ref());
        (answer, to)
    }

    /// A create at ElevenLabs, of an app that hangs up after a time.
    pub async fn dial_and_hang_up(&self, after: Duration) {
        let to = self.number();
        self.note(&to, None);
        if let Some(_app) = self.send_create(&to).await {
            tokio::time::sleep(after).await;
        }
    }

    /// One try of a client that sends each create until it has an answer, through restarts, for so long that no call
    /// it made can be over for good. It waits for an answer this long.
    pub async fn insist(&self, patience: Duration) {
        let pending = self.pending.lock().unwrap().pop_front();
        let (to, since) = pending.unwrap_or_else(|| (self.number(), Instant::now()));
        let status = self.dial_for(&to, patience).await;
        if status.is_some_and(|status| status != 424) || since.elapsed() > Duration::from_secs(7) {
            self.creates.lock().unwrap().push((to, status));
        } else {
            self.pending.lock().unwrap().push_back((to, since));
        }
    }

    /// Gives up on what was never answered.
    pub fn give_up(&self) {
        let left = std::mem::take(&mut *self.pending.lock().unwrap());
        self.creates.lock().unwrap().extend(left.into_iter().map(|(to, _)| (to, None)));
    }

    /// The status of a create at ElevenLabs, if something came in time.
    async fn dial_for(&self, to: &str, patience: Duration) -> Option<u16> {
        let mut app = Wire::new(self.send_create(to).await?);
        tokio::time::timeout(patience, app.readable()).await.ok()?;
        app.head().await?.split(' ').nth(1)?.parse().ok()
    }

    async fn send_create(&self, to: &str) -> Option<tokio::net::TcpStream> {
        let (key, body) = (self.control.settings().el_api_key, self.elevenlabs_body(to));
        let head = format!(
            "POST /elevenlabs/v1/convai/twilio/outbound-call HTTP/1.1\r\nHost: a\r\nxi-api-key: {key}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let api = self.serve.as_ref()?.ready["api"].as_str()?.to_owned();
        let mut app = tokio::net::TcpStream::connect(api).await.ok()?;
        app.write_all((head + &body).as_bytes()).await.ok()?;
        Some(app)
    }

    /// Places a call outside ringfence.
    pub async fn place_outside_ringfence(&self) -> Answer {
        let key = self.control.settings().el_api_key;
        let url = format!("{}/v1/convai/twilio/outbound-call", self.simulator.as_ref().unwrap().base_url());
        let headers = [("content-type", "application/json"), ("xi-api-key", key.as_str())];
        self.send("POST", &url, &headers, self.elevenlabs_body(&self.number())).await.unwrap()
    }

    /// Somebody calls the number that front mode answers.
    pub fn call_in(&self) -> Option<CallView> {
        let (to, from) = (OWN_NUMBER.to_owned(), self.number());
        self.control.inbound(&Inbound { to, from, via: Via::Twilio, agent_id: None })
    }

    /// Telephone calls that are up at the providers.
    pub fn live(&self) -> Vec<CallView> {
        self.control.calls().into_iter().filter(|c| c.live && c.call_sid.is_some()).collect()
    }

    pub fn end_all(&self) {
        for call in self.control.calls().into_iter().filter(|c| c.live || c.arriving) {
            self.control.end_call(call.call_sid.as_ref().or(call.conversation_id.as_ref()).unwrap());
        }
    }

    /// Waits until something is so.
    pub async fn wait(&self, what: &str, mut so: impl AsyncFnMut() -> bool) {
        let started = Instant::now();
        while !so().await {
            assert!(started.elapsed() < PATIENCE, "it does not happen: {what}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Everything ends; then every slot is free, and no create is unsettled.
    pub async fn quiet(&self) {
        self.control.clear_faults(None);
        self.control.set_webhook_loss(0.0);
        let started = Instant::now();
        loop {
            self.end_all();
            let status = self.status().await;
            let open: u64 = status["accounts"].as_array().unwrap().iter().filter_map(|a| a["inUse"].as_u64()).sum();
            if status["gate"]["calls"] == 0 && open == 0 && status["store"]["journaled"] == 0 {
                return;
            }
            assert!(started.elapsed() < 2 * PATIENCE, "slots leak: {status:#}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Asserts what must hold whatever happened, by the counts of the providers and the database. The program is stopped.
    pub async fn check(&self) {
        let counts = self.control.counts();
        // A conversation that is registered for a caller who hangs up first is no call; the simulator counts it for a while.
        let of_elevenlabs = counts.registers > 0 || counts.el_live_max <= EL_MAX;
        assert!(of_elevenlabs, "ElevenLabs saw {} of {EL_MAX}\n{}", counts.el_live_max, self.log());
        assert!(counts.both_live_max <= ALL_MAX, "{} of {ALL_MAX} at once\n{}", counts.both_live_max, self.log());
        let record = self.record().await;
        for (what, sql) in [
            // What an app only talks of holds nothing, and is given up in its own time.
            (
                "calls that are not over",
                "SELECT count(*) FROM calls WHERE phase <> 'ended' AND origin <> 'unconfirmed'",
            ),
            (
                "ends without a proof",
                "SELECT count(*) FROM calls WHERE origin <> 'unconfirmed' AND (outcome IS NULL OR proof IS NULL OR ended_at IS NULL)",
            ),
            ("webhooks that were not applied", "SELECT count(*) FROM webhook_events WHERE outcome IS NULL"),
            (
                "webhooks of which the app is told twice",
                "SELECT count(*) FROM (SELECT 1 FROM deliveries GROUP BY event_id HAVING count(*) > 1) AS twice",
            ),
        ] {
            assert_eq!(record.number(sql, &[]).await, 0, "{what}\n{}", self.log());
        }
        let creates = self.creates.lock().unwrap().clone();
        let mut dialled = HashMap::<String, Vec<CallView>>::new();
        for call in self.control.calls() {
            dialled.entry(call.to.clone()).or_default().push(call);
        }
        for (to, status) in creates {
            let made = dialled.remove(&to).unwrap_or_default();
            assert!(made.len() <= 1, "{to} was dialled {} times\n{}", made.len(), self.log());
            assert!(!matches!(status, Some(200 | 201)) || made.len() == 1, "{to} was not dialled");
            assert!(status != Some(503) || made.is_empty(), "{to} was refused, and dialled\n{}", self.log());
            for call in made {
                let ids = [call.call_sid.clone(), call.conversation_id.clone()];
                let sql = "SELECT count(*) FROM call_aliases WHERE call_id IS NOT NULL AND id IN ($1, $2)";
                let ids = [ids[0].clone().unwrap_or_default(), ids[1].clone().unwrap_or_default()];
                let known = record.number(sql, &ids).await;
                assert!(known > 0, "nobody knows {ids:?} to {to}\n{}", self.log());
            }
        }
    }

    /// The database, read without the program.
    async fn record(&self) -> Record {
        let config = std::fs::read_to_string(self.folder.join("ringfence.toml")).unwrap();
        match config.lines().find_map(|line| line.strip_prefix("url = \"")?.strip_suffix('"')) {
            Some(url) => Record::Postgres(sqlx::postgres::PgPool::connect(url).await.unwrap()),
            None => Record::Sqlite(self.database()),
        }
    }

    pub fn database(&self) -> PathBuf {
        let places = ["ringfence.db", "disk/ringfence.db"].map(|name| self.folder.join(name));
        places.into_iter().find(|place| place.exists()).expect("a record")
    }

    /// Ends everything, stops it, checks it.
    pub async fn finish(mut self) {
        self.quiet().await;
        // What was acknowledged a moment ago may still be in the inbox; the next process would apply it.
        let (record, started) = (self.record().await, Instant::now());
        let waiting = "SELECT count(*) FROM webhook_events WHERE outcome IS NULL";
        while record.number(waiting, &[]).await > 0 && started.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        drop(record);
        self.stop().await;
        self.check().await;
        if let Some(simulator) = self.simulator.take() {
            simulator.stop().await;
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
