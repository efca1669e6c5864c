//! Bulk runs as the product dials them: how full slots are while work waits, how long a freed slot stays empty, how many jobs are
//! claimed a second, and how soon a process is ready that has 100,000 jobs before it. Real processes and servers, which flush what they commit.
//!
//! `cargo bench --bench runs`; `-- slots`, `-- claims`, `-- start` for a part. `RINGFENCE_BIN` names another program to measure.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a bench that cannot go on has nothing to measure"
)]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request};
use ringfence::ids::CallId;
use ringfence::net::{Upstream, UpstreamSettings, fetch_local, spare_port};
use ringfence::provider::secret::Secret;
use ringfence::store::postgres::{PostgresSettings, PostgresStore};
use ringfence::store::runs::{Claim, CreateRunOutcome, NewJob, Run, RunChange, RunState};
use ringfence::store::sqlite::SqliteStore;
use ringfence::store::{Migrate, OwnershipMode, Store};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

mod support;

/// Calls at once.
const SLOTS: usize = 50;
/// Leads of a run that is dialled: so many times the slots are filled.
const LEADS: usize = 12 * SLOTS;
/// Jobs that are queued at a start, and that are claimed.
const QUEUED: i64 = 100_000;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(180);

/// A program of ours that says in one line of JSON when it is ready. It is killed when dropped.
struct Process {
    child: Child,
    folder: PathBuf,
    ready: Value,
    took: Duration,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    fn start(folder: &Path, words: &[&str]) -> Self {
        let program = std::env::var("RINGFENCE_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_ringfence").to_owned());
        let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("log")).unwrap();
        let started = Instant::now();
        let mut command = Command::new(program);
        command.args(words).arg("--ready-json").current_dir(folder).env_clear();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let took = started.elapsed();
        let ready = serde_json::from_str(&line);
        let ready = ready.unwrap_or_else(|e| panic!("{e}: {line:?}, see {}", folder.join("log").display()));
        Self { child, folder: folder.to_owned(), ready, took }
    }

    fn serve(folder: &Path) -> Self {
        Self::start(folder, &["serve", "--config", "ringfence.toml"])
    }
}

/// Carries each connection to the next of several listeners, as a balancer of connections does. Its port is known before theirs.
async fn balancer(listener: TcpListener, behind: Arc<std::sync::Mutex<Vec<String>>>) {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    while let Ok((mut from, _)) = listener.accept().await {
        let all = behind.lock().unwrap().clone();
        let to = all[NEXT.fetch_add(1, Ordering::Relaxed) % all.len()].clone();
        tokio::spawn(async move {
            let mut to = TcpStream::connect(to).await.unwrap();
            let _ = (from.set_nodelay(true), to.set_nodelay(true));
            let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
        });
    }
}

async fn ask(process: &Process, method: Method, path: &str, body: String) -> Value {
    let mut request = Request::new(Bytes::from(body));
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().unwrap();
    let socket = process.folder.join(process.ready["adminSocket"].as_str().unwrap());
    let answer = fetch_local(&socket, request, 64 << 20, PATIENCE).await.unwrap();
    serde_json::from_slice(answer.body()).unwrap()
}

async fn at_simulator(simulator: &Process, method: Method, path: &str, body: Value) -> Value {
    let http = Upstream::new(UpstreamSettings::default()).unwrap();
    let mut request = Request::new(Bytes::from(body.to_string()));
    *request.method_mut() = method;
    *request.uri_mut() = format!("{}{path}", simulator.ready["url"].as_str().unwrap()).parse().unwrap();
    let answer = http.fetch(request, 64 << 20, PATIENCE).await.unwrap();
    serde_json::from_slice(answer.body()).unwrap()
}

fn config(simulator: &Value, public: &str, tables: &str) -> String {
    let text = |name: &str| simulator[name].as_str().unwrap().to_owned();
    format!(
        "public_url = \"{public}\"\nconcurrent = {SLOTS}\n[listen]\napi = \"127.0.0.1:0\"\nwebhooks = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n\
         client = \"127.0.0.1:0\"\n[accounts.twilio]\nupstream = \"{}\"\naccount_sid = \"{}\"\nauth_token = \"{}\"\n\
         [businesses.1]\nmax_calls = {SLOTS}\n{tables}\n",
        text("url"),
        text("account_sid"),
        text("auth_token")
    )
}

fn percent(sorted: &[i64], part: usize) -> i64 {
    sorted[(sorted.len() * part / 100).min(sorted.len() - 1)]
}

/// Dials a run and prints what the provider saw. **Utilisation** is the time that calls took of the time that slots were there: from
/// when all slots were full for the first time to the last dial, so as long as work waited. A call takes its slot from when the provider
/// has it until it is over. **Hang-up to next dial**: the n-th call beyond the slots' number began so long after the n-th end.
async fn slots(what: &str, replicas: usize, tables: &str, talk_ms: (u64, u64)) {
    let folder = folder();
    std::fs::create_dir_all(folder.join("simulator")).unwrap();
    let simulator = Process::start(&folder.join("simulator"), &["simulate", "--listen", "127.0.0.1:0"]);
    at_simulator(&simulator, Method::POST, "/_sim/config", json!({"talk_ms": [talk_ms.0, talk_ms.1]})).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let public = format!("http://{}", listener.local_addr().unwrap());
    let behind = Arc::<std::sync::Mutex<Vec<String>>>::default();
    let mut processes = vec![];
    for n in 0..replicas {
        let own = folder.join(format!("replica-{n}"));
        std::fs::create_dir_all(&own).unwrap();
        std::fs::write(own.join("ringfence.toml"), config(&simulator.ready, &public, tables)).unwrap();
        let process = Process::serve(&own);
        behind.lock().unwrap().push(process.ready["webhooks"].as_str().unwrap().to_owned());
        processes.push(process);
    }
    let balancer = tokio::spawn(balancer(listener, behind));
    let leads: Vec<Value> = (0..LEADS).map(|n| json!({"number": format!("+1555{n:06}7")})).collect();
    let run = json!({
        "business": "1", "account": "twilio", "operation": "calls", "request": {"Twiml": "<Response><Say>Hello</Say></Response>"},
        "own_numbers": ["+15550001111"], "leads": leads,
    });
    let made = ask(&processes[0], Method::POST, "/api/runs", run.to_string()).await;
    let path = format!("/api/runs/{}", made["runId"].as_str().unwrap_or_else(|| panic!("{made}")));
    let started = Instant::now();
    while ask(&processes[0], Method::GET, &path, String::new()).await["state"] != "done" {
        assert!(started.elapsed() < PATIENCE, "{}", folder.display());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let state = at_simulator(&simulator, Method::GET, "/_sim/state?all=1", json!(null)).await;
    let calls: Vec<(i64, i64)> = state["calls"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| (c["created_ms"].as_i64().unwrap(), c["ended_ms"].as_i64().unwrap()))
        .collect();
    assert_eq!(calls.len(), LEADS, "every lead is called once");
    let (mut starts, mut ends): (Vec<i64>, Vec<i64>) = calls.iter().copied().unzip();
    starts.sort_unstable();
    ends.sort_unstable();
    let (from, to) = (starts[SLOTS - 1], starts[LEADS - 1]);
    let busy: i64 = calls.iter().map(|(start, end)| (end.min(&to) - start.max(&from)).max(0)).sum();
    let mut gaps: Vec<i64> = starts[SLOTS..].iter().zip(&ends).map(|(start, end)| (start - end).max(0)).collect();
    gaps.sort_unstable();
    println!(
        "{what}: {:.2} % of {SLOTS} slots in use while work waited; hang-up to next dial {} ms p50, {} ms p99; at most {} at once",
        100.0 * busy as f64 / (SLOTS as i64 * (to - from)) as f64,
        percent(&gaps, 50),
        percent(&gaps, 99),
        state["counts"]["tw_live_max"]
    );
    balancer.abort();
    drop(processes);
    let _ = std::fs::remove_dir_all(&folder);
}

/// Beside the build, not in memory: a commit has to reach a disk.
fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("runs-{}", CallId::new()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Puts a run with [`QUEUED`] jobs on record.
async fn queue(store: &Arc<dyn Store>, spec: &Value, start_at: i64) {
    let run = Run {
        id: "run_1".to_owned(),
        business: "1".to_owned(),
        account: "twilio".to_owned(),
        name: None,
        key: None,
        digest: "d".to_owned(),
        state: RunState::Loading,
        spec: spec.to_string(),
        total: 0,
        start_at,
        created_at: 1,
        updated_at: 1,
        finished_at: None,
        resume_at: None,
        retries: 0,
        reason: None,
        replica: Some("bench".to_owned()),
        load: Some("bench".to_owned()),
    };
    assert_eq!(store.create_run(&run, ringfence::store::AppNotice::Omit).await.unwrap(), CreateRunOutcome::New);
    for from in (1..=QUEUED).step_by(5_000) {
        let lead = |seq| NewJob { seq, number: format!("+1555{seq:06}7"), lead: "{\"name\":\"Anna\"}".to_owned() };
        assert!(store.add_jobs("run_1", "bench", (from..from + 5_000).map(lead).collect()).await.unwrap());
    }
    let loaded = Some((QUEUED, "all".to_owned()));
    let change = RunChange { loaded, ..RunChange::of("run_1", &[RunState::Loading], RunState::Running, 5) };
    assert!(store.move_run(change, ringfence::store::AppNotice::Omit).await.unwrap());
}

/// Claims jobs, so many in a statement, by so many at once: jobs a second.
async fn claims(what: &str, store: &Arc<dyn Store>) {
    queue(store, &json!({}), 0).await;
    for (limit, claimers) in [(1, 1), (1, 8), (64, 1), (64, 3)] {
        let (started, mut tasks) = (Instant::now(), tokio::task::JoinSet::new());
        for n in 0..claimers {
            let store = store.clone();
            tasks.spawn(async move {
                let mut mine = 0;
                for round in 0.. {
                    if started.elapsed() > Duration::from_secs(2) {
                        break;
                    }
                    let (token, replica) = (format!("{limit}-{claimers}-{n}-{round}"), "bench".to_owned());
                    let claim =
                        Claim { run: "run_1".to_owned(), limit, open_max: u32::MAX, token, replica, now_ms: 10 };
                    match store.claim_jobs(claim).await.unwrap().len() {
                        0 => break,
                        claimed => mine += claimed,
                    }
                }
                mine
            });
        }
        let all: usize = tasks.join_all().await.into_iter().sum();
        println!(
            "{what}: {:.0} claims/s, {limit} in a statement, {claimers} at once",
            all as f64 / started.elapsed().as_secs_f64()
        );
    }
    store.close().await;
}

async fn sqlite(folder: &Path) -> Arc<dyn Store> {
    Arc::new(SqliteStore::open(&folder.join("ringfence.db"), Migrate::Run, OwnershipMode::Exclusive).await.unwrap())
}

async fn postgres(url: &str) -> Arc<dyn Store> {
    let settings = PostgresSettings::new(Secret::new(url)).unwrap();
    Arc::new(PostgresStore::open(&settings, Migrate::Run, OwnershipMode::Exclusive, |_| {}).await.unwrap())
}

/// From the start of a process to its readiness, over a run with [`QUEUED`] jobs that is due, and one without jobs.
async fn start(what: &str, empty: (PathBuf, String), full: (PathBuf, String)) {
    let simulator = Process::start(&empty.0, &["simulate", "--listen", "127.0.0.1:0"]);
    for (which, (folder, tables)) in [("no job", empty), ("100,000 queued jobs", full)] {
        let public = format!("http://127.0.0.1:{}", spare_port());
        std::fs::write(folder.join("ringfence.toml"), config(&simulator.ready, &public, &tables)).unwrap();
        let mut took: Vec<i64> = (0..5).map(|_| Process::serve(&folder).took.as_millis() as i64).collect();
        took.sort_unstable();
        println!("{what}, {which}: ready after {} ms ({} to {})", took[2], took[0], took[4]);
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let parts: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|one| one == part);
    ringfence::net::install_crypto_provider();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap();
    println!("load average {}", load.split(' ').next().unwrap());
    let server = support::postgres::Server::start_as(true);
    let database = || server.database_over_tcp();
    if wanted("slots") {
        let over = |url: String, gate: &str| format!("[store]\nurl = \"{url}\"\n[gate]\n{gate}");
        let redis = support::redis::Redis::plain();
        let by_redis = format!("backend = \"redis\"\nredis_url = \"{}\"", redis.url_at(redis.port));
        for (how, talk) in [("calls of 2 s", (2_000, 2_000)), ("calls of 1 to 3 s", (1_000, 3_000))] {
            slots(&format!("one process, SQLite, {how}"), 1, "", talk).await;
            slots(&format!("one process, Postgres, {how}"), 1, &over(database(), ""), talk).await;
            let tables = over(database(), "backend = \"database\"");
            slots(&format!("three processes, database, {how}"), 3, &tables, talk).await;
            slots(&format!("three processes, redis, {how}"), 3, &over(database(), &by_redis), talk).await;
        }
    }
    if wanted("claims") {
        let folder = folder();
        claims("SQLite", &sqlite(&folder).await).await;
        claims("Postgres", &postgres(&database()).await).await;
        let _ = std::fs::remove_dir_all(&folder);
    }
    if wanted("start") {
        let spec = json!({"business": "1", "account": "twilio", "operation": "calls", "request": {"Twiml": "<Response><Say>Hello</Say></Response>"}, "own_numbers": ["+15550001111"], "rate": "1/min"});
        let (empty, full) = (folder(), folder());
        let store = sqlite(&full).await;
        queue(&store, &spec, 0).await;
        store.close().await;
        drop(store);
        start("SQLite", (empty.clone(), String::new()), (full.clone(), String::new())).await;
        let (none, many) = (database(), database());
        let store = postgres(&many).await;
        queue(&store, &spec, 0).await;
        store.close().await;
        drop(store);
        let tables = |url: &str| format!("[store]\nurl = \"{url}\"");
        start("Postgres", (empty.clone(), tables(&none)), (full.clone(), tables(&many))).await;
        for folder in [empty, full] {
            let _ = std::fs::remove_dir_all(&folder);
        }
    }
}
