//! Bulk runs through whatever happens to the processes and servers that dial them: nobody is called twice, nobody is forgotten, no limit
//! is exceeded, by the count of the provider.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request};
use ringfence::failpoint;
use ringfence::net::fetch_local;
use ringfence_simulator::{CallView, Millis, SimSettings};
use serde_json::{Value, json};
use tokio::task::block_in_place;

use crate::chaos::{DATABASE, REDIS};
use crate::runs::{called, check_once, elevenlabs, leads, sim, twilio, with};
use crate::support::child::{Scene, signal};
use crate::support::fleet::{self, Fleet, Store};
use crate::support::postgres::{self, Server};
use crate::support::redis::{self, Redis};
use crate::support::rng::Rng;
use crate::support::stage::{PATIENCE, unreliable};

async fn ask_at(fleet: &Fleet, n: usize, method: &str, path: &str, body: impl Into<Bytes>) -> Option<Value> {
    let mut request = Request::new(body.into());
    *request.method_mut() = method.parse::<Method>().unwrap();
    *request.uri_mut() = path.parse().unwrap();
    let socket = fleet.replicas[n].folder.join("ringfence-admin.sock");
    let answer = fetch_local(&socket, request, 64 << 20, Duration::from_secs(10)).await.ok()?;
    serde_json::from_slice(answer.body()).ok()
}

/// The port of a server, and a database of it.
fn database_of(server: &Server) -> (u16, String) {
    (server.port, server.database_over_tcp().rsplit('/').next().unwrap().to_owned())
}

async fn set_three(postgres: (u16, String), redis: Store, sim: SimSettings, limits: (u32, u32, u32)) -> Fleet {
    let tables = if redis.is_none() { DATABASE } else { REDIS }.to_owned();
    let setup = fleet::Setup {
        replicas: 3,
        sim,
        postgres,
        redis,
        tables,
        limits: (limits.0, limits.1, vec![("1".to_owned(), limits.2)]),
        reconcile: "sweep_ms = 150\nlist_lag_ms = 300\nnot_found_confirm_secs = 2",
    };
    Fleet::set(setup, &mut Rng::new("runs")).await
}

async fn three(postgres: (u16, String), redis: Store, sim: SimSettings, limits: (u32, u32, u32)) -> Fleet {
    let fleet = set_three(postgres, redis, sim, limits).await;
    fleet.start().await;
    fleet
}

/// Makes a run that has a key, at this replica; where that does not answer in time, at another.
async fn made_at(fleet: &Fleet, n: usize, run: &Value) -> String {
    let started = Instant::now();
    for n in n.. {
        let made = ask_at(fleet, n % 3, "POST", "/api/runs", run.to_string()).await;
        if let Some(id) = made.as_ref().and_then(|made| made["runId"].as_str()) {
            return id.to_owned();
        }
        println!("no run was made at replica {} after {:?}: {made:?}", n % 3, started.elapsed());
        assert!(started.elapsed() < 2 * PATIENCE, "{}", fleet.replicas[n % 3].last_lines());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    unreachable!("there is always another")
}

/// Asks whichever replica answers.
async fn run_at(fleet: &Fleet, id: &str) -> Value {
    for n in [0, 1, 2].into_iter().cycle().take(30) {
        if let Some(run) =
            ask_at(fleet, n, "GET", &format!("/api/runs/{id}"), "").await.filter(|run| !run["counts"].is_null())
        {
            return run;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("nobody answers")
}

async fn done_at(fleet: &Fleet, id: &str, patience: Duration) -> Value {
    let started = Instant::now();
    loop {
        let run = run_at(fleet, id).await;
        if run["state"] == "done" {
            return run;
        }
        let logs = || fleet.replicas.iter().map(fleet::Replica::last_lines).collect::<Vec<_>>().join("\n");
        assert!(started.elapsed() < patience, "{run}\n{}", logs());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// What is dialled by three replicas in trouble.
struct Dialled {
    /// The leads of each run.
    runs: &'static [usize],
    /// Beside each trouble a direct call is tried.
    direct: bool,
}

/// The leads of the `n`th run. No two runs have one.
fn leads_of(n: usize, leads: usize) -> Vec<Value> {
    (0..leads).map(|i| json!({"number": format!("+1555{n}10{:04}", i + 10), "name": format!("Lead {i}")})).collect()
}

/// Starts runs of business 1 and goes on with `trouble` until hardly a lead is left; then everything is looked at.
async fn dialled_through(fleet: Fleet, what: Dialled, mut trouble: impl AsyncFnMut(&Fleet, &mut Rng)) {
    let mut rng = Rng::new("trouble of a run");
    let mut ids = vec![];
    for (n, leads) in what.runs.iter().enumerate() {
        let leads = leads_of(n, *leads);
        let run =
            with(twilio(), json!({"idempotency_key": format!("run {n}"), "breaker": {"failures": 0}, "leads": leads}));
        ids.push(made_at(&fleet, n, &run).await);
    }
    let all: usize = what.runs.iter().sum();
    let queued = async || {
        let mut queued = 0;
        for id in &ids {
            queued += run_at(&fleet, id).await["counts"]["queued"].as_u64().unwrap();
        }
        queued
    };
    let (mut direct, mut accepted, mut troubles, started) = (vec![], 0, 0, Instant::now());
    while troubles < 2 || queued().await > all as u64 / 10 {
        if what.direct {
            let to = format!("+15558100{:03}0", direct.len());
            let answer = fleet.talk(rng.below(3) as usize, "1", &to, Some(&to), PATIENCE / 10).await;
            accepted += usize::from(answer.is_some_and(|answer| answer.status < 300));
            direct.push(to);
        }
        trouble(&fleet, &mut rng).await;
        troubles += 1;
        assert!(started.elapsed() < 5 * PATIENCE, "{} leads are queued still", queued().await);
    }
    for (id, leads) in ids.iter().zip(what.runs) {
        let done = done_at(&fleet, id, Duration::from_secs(120)).await;
        assert_eq!(done["counts"]["completed"], *leads, "{done}");
    }
    let (calls, direct): (Vec<CallView>, Vec<CallView>) =
        fleet.control.calls().into_iter().partition(|call| !direct.contains(&call.to));
    check_once(&calls, all);
    let direct = called(&direct);
    assert!(direct.len() >= accepted && direct.values().all(|times| *times == 1), "{accepted} accepted: {direct:?}");
    let counts = fleet.control.counts();
    assert!(counts.tw_live_max <= 3, "{counts:?}");
    let logs: String = fleet.replicas.iter().map(fleet::Replica::log).collect();
    // A slot that is kept for the next direct call is not the run's.
    let at_max = if what.direct { "Business 1 at max (" } else { "Business 1 at max (3/3), waiting..." };
    for line in ["public_host", "run created", "call of a lead started", at_max, "call of a lead ended"] {
        assert!(logs.contains(line), "{line}");
    }
    println!("{all} leads, {troubles} troubles, {accepted} of {} direct calls accepted", direct.len());
    fleet.end_all();
    fleet.stop().await;
    fleet.done().await;
}

/// The same over a Redis, in trouble of every kind.
async fn dialled_through_all(what: Dialled) {
    if postgres::is_missing() || redis::is_missing() {
        return;
    }
    let server = block_in_place(Server::start);
    let (database, server) = (database_of(&server), Mutex::new(server));
    let redis = Store::Plain(Mutex::new(block_in_place(Redis::with_aof)));
    let fleet = three(database, redis, sim(250), (10, 10, 3)).await;
    dialled_through(fleet, what, async |fleet: &Fleet, rng: &mut Rng| {
        let pause = Duration::from_millis(100 + rng.below(1_500));
        match rng.below(4) {
            0 => kill_one(fleet, rng).await,
            1 => {
                let how = ["INT", "QUIT"][rng.below(2) as usize];
                block_in_place(|| server.lock().unwrap().stop(how));
                tokio::time::sleep(pause / 3).await;
                block_in_place(|| server.lock().unwrap().start_again());
            }
            _ => {
                let Store::Plain(redis) = &fleet.redis else { panic!("there is no Redis") };
                block_in_place(|| redis.lock().unwrap().kill());
                tokio::time::sleep(pause).await;
                block_in_place(|| redis.lock().unwrap().start_again());
            }
        }
        tokio::time::sleep(Duration::from_millis(300 + rng.below(1_200))).await;
    })
    .await;
}

async fn kill_one(fleet: &Fleet, rng: &mut Rng) {
    tokio::time::sleep(Duration::from_millis(300 + rng.below(900))).await;
    let victim = &fleet.replicas[rng.below(3) as usize];
    victim.kill();
    tokio::time::sleep(Duration::from_millis(100 + rng.below(900))).await;
    let started = Instant::now();
    // Where the database went away under its start it is started again, as whoever supervises it does.
    while !victim.start("").await {
        assert!(started.elapsed() < 2 * PATIENCE, "{}", victim.last_lines());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Test 1 over three replicas, whose Redis and Postgres restart and which are killed: each of 20 leads is called once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn test_1_single_business_twenty_leads_on_three_replicas() {
    dialled_through_all(Dialled { runs: &[20], direct: false }).await;
}

/// Test 2 over them: two runs of a business never have more than 3 calls at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn test_2_never_more_than_three_at_once_on_three_replicas() {
    dialled_through_all(Dialled { runs: &[25, 10], direct: false }).await;
}

/// Test 3 over them: nor do its runs and its direct calls together.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn test_3_mixed_direct_and_bulk_calls_on_three_replicas() {
    dialled_through_all(Dialled { runs: &[30], direct: true }).await;
}

/// Test 5 over three replicas that are killed: without a public host the run fails at once, wherever it is made, and nobody is called.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn test_5_missing_host_fails_at_once_on_three_replicas() {
    if postgres::is_missing() {
        return;
    }
    let server = block_in_place(Server::start);
    let fleet = set_three(database_of(&server), Store::None, sim(250), (10, 10, 3)).await;
    for replica in fleet.replicas.iter() {
        let path = replica.folder.join("ringfence.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let without: Vec<&str> = text.lines().filter(|line| !line.starts_with("public_url")).collect();
        std::fs::write(path, without.join("\n")).unwrap();
    }
    fleet.start().await;
    let mut rng = Rng::new("no host");
    for n in 0..3 {
        let run = with(twilio(), json!({"leads": leads_of(n, 20)}));
        let made = ask_at(&fleet, n, "POST", "/api/runs", run.to_string()).await.unwrap();
        assert_eq!(
            (&made["state"], &made["reason"]),
            (&json!("failed"), &json!("No public host configured")),
            "{made}"
        );
        kill_one(&fleet, &mut rng).await;
        let run = run_at(&fleet, made["runId"].as_str().unwrap()).await;
        assert_eq!(run["state"], "failed", "{run}");
    }
    assert!(fleet.control.calls().is_empty(), "nobody is called");
    fleet.stop().await;
    fleet.done().await;
}

/// Test 4: several workers over one queue, killed at random moments: nobody is called twice, nobody is forgotten, and there are never more
/// than 3 at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn test_4_several_workers_that_are_killed() {
    if postgres::is_missing() {
        return;
    }
    let server = block_in_place(Server::start);
    let fleet = three(database_of(&server), Store::None, sim(250), (10, 10, 3)).await;
    dialled_through(fleet, Dialled { runs: &[100], direct: false }, kill_one).await;
}

/// The same, and the servers that they share are restarted meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn test_4_several_workers_whose_redis_and_postgres_restart() {
    dialled_through_all(Dialled { runs: &[100], direct: false }).await;
}

/// The most calls at once to these numbers.
fn most_at_once(calls: &[CallView], numbers: &BTreeSet<String>) -> usize {
    let mine: Vec<&CallView> = calls.iter().filter(|call| numbers.contains(&call.to)).collect();
    let up_at = |at| mine.iter().filter(|c| c.created_ms <= at && c.ended_ms.is_none_or(|end| end > at)).count();
    mine.iter().map(|call| up_at(call.created_ms)).max().unwrap_or(0)
}

/// The same over SQLite: one process, killed at any moment, beside direct calls and with webhooks that get lost.
#[tokio::test(flavor = "multi_thread")]
async fn test_4_one_process_over_sqlite_that_is_killed_at_any_moment() {
    let mut rng = Rng::new("kills of a run");
    let sim = unreliable(&mut rng, Millis::between(20, 400));
    let mut scene = Scene::set(sim, "front", "", "[businesses.1]\nmax_calls = 2").await;
    let list = leads(60);
    let numbers: BTreeSet<String> = list.iter().map(|lead| lead["number"].as_str().unwrap().to_owned()).collect();
    let kind = if rng.below(2) == 0 { twilio() } else { elevenlabs() };
    let run = with(kind, json!({"idempotency_key": "once", "breaker": {"failures": 0}, "leads": list})).to_string();
    let (mut kills, mut id) = (0, None);
    let called = |scene: &Scene| scene.control.calls().iter().filter(|call| numbers.contains(&call.to)).count();
    while kills < 5 || called(&scene) < 50 {
        scene.start_well().await;
        if id.is_none() {
            let made = scene.ask("admin", "POST", "/api/runs", &[], run.clone()).await.unwrap().json();
            id = Some(made["runId"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned());
        }
        let moment = Duration::from_millis(rng.below(1_500));
        let killer = async {
            tokio::time::sleep(moment).await;
            signal(scene.pid(), "KILL");
        };
        let direct = async {
            while scene.dial().await.is_some() {
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        };
        tokio::join!(killer, direct);
        scene.kill();
        kills += 1;
    }
    scene.start_well().await;
    let path = format!("/api/runs/{}", id.unwrap());
    let show = async || scene.ask("admin", "GET", &path, &[], "").await.unwrap().json();
    let started = Instant::now();
    while show().await["state"] != "done" {
        assert!(started.elapsed() < 4 * PATIENCE, "{}\n{}", show().await, scene.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(show().await["counts"]["completed"], 60);
    let calls = scene.control.calls();
    let mine: Vec<CallView> = calls.iter().filter(|call| numbers.contains(&call.to)).cloned().collect();
    check_once(&mine, 60);
    assert!(most_at_once(&calls, &numbers) <= 2, "{kills} kills");
    println!("{kills} kills");
    scene.finish().await;
}

/// The process dies at every point of a job's way, at its first pass and later: the next one dials the rest, and nobody twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_death_on_the_way_of_a_job_costs_nothing() {
    let points = failpoint::ALL.iter().filter(|point| point.starts_with("run."));
    for (point, pass) in points.flat_map(|point| [(point, 1), (point, 3)]) {
        for run in [twilio(), elevenlabs()] {
            let mut scene = Scene::set(sim(100), "front", "", "[businesses.1]\nmax_calls = 2").await;
            scene.start(&format!("{point}=abort:{pass}")).await;
            let run = with(run, json!({"idempotency_key": "once", "leads": leads(8)})).to_string();
            let made = scene.ask("admin", "POST", "/api/runs", &[], run.clone()).await;
            let died = scene.died(PATIENCE).await;
            assert!(died.is_some(), "nobody came to {point}: {made:?}\n{}", scene.log());
            scene.start_well().await;
            let again = scene.ask("admin", "POST", "/api/runs", &[], run).await.unwrap();
            let id = again.json()["runId"].as_str().unwrap_or_else(|| panic!("{again:?}")).to_owned();
            let show = async || scene.ask("admin", "GET", &format!("/api/runs/{id}"), &[], "").await.unwrap().json();
            scene.wait("the run is done", async || show().await["state"] == "done").await;
            let done = show().await;
            check_once(&scene.control.calls(), 8);
            assert_eq!(done["counts"]["completed"], 8, "{point}, pass {pass}: {done}");
            assert!(scene.control.counts().both_live_max <= 2);
            scene.finish().await;
        }
    }
}

/// A process that is too slow to send in time dials nobody, and blames neither the provider nor a lead: the run goes on, and is done once
/// the machine has time again.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_too_slow_pauses_no_run() {
    let mut scene = Scene::set(sim(100), "front", "send_within_secs = 1", "[businesses.1]\nmax_calls = 4").await;
    scene.start("run.recorded=sleep:1500").await;
    let run = with(twilio(), json!({"breaker": {"window": 4, "failures": 2}, "leads": leads(4)})).to_string();
    let made = scene.ask("admin", "POST", "/api/runs", &[], run).await.unwrap().json();
    let path = format!("/api/runs/{}", made["runId"].as_str().unwrap_or_else(|| panic!("{made}")));
    let late = || scene.log().matches("process paused past the send deadline").count();
    scene.wait("more jobs are late than the breaker takes", async || late() >= 5).await;
    let run = scene.ask("admin", "GET", &path, &[], "").await.unwrap().json();
    assert_eq!((&run["state"], &run["counts"]["failed"]), (&json!("running"), &json!(0)), "{run}");
    assert!(scene.control.calls().is_empty());
    // Some of its calls are on record and not settled yet: these are not held against the provider either.
    scene.kill();
    scene.start_well().await;
    let show = async || scene.ask("admin", "GET", &path, &[], "").await.unwrap().json();
    scene.wait("the run is done", async || show().await["state"] == "done").await;
    assert_eq!(show().await["counts"]["completed"], 4);
    check_once(&scene.control.calls(), 4);
    scene.finish().await;
}

/// Many slots, filled by three processes: never more than there are, nobody twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fifty_slots_are_shared_by_three_processes() {
    if postgres::is_missing() {
        return;
    }
    let server = block_in_place(Server::start);
    let fleet = three(database_of(&server), Store::None, sim(500), (50, 50, 50)).await;
    let run = with(twilio(), json!({"leads": leads(350)}));
    let made = ask_at(&fleet, 0, "POST", "/api/runs", run.to_string()).await.unwrap();
    done_at(&fleet, made["runId"].as_str().unwrap(), Duration::from_secs(120)).await;
    check_once(&fleet.control.calls(), 350);
    assert!(fleet.control.counts().tw_live_max <= 50);
    fleet.stop().await;
    fleet.done().await;
}
