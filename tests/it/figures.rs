//! Figures of the whole program, printed: from a hang-up to a slot that can be used again, and the start over many open calls.
//! Nothing is asserted of time. `RINGFENCE_FIGURES` makes the samples larger; in a release build they are what benches/README.md says.

use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ringfence::ids::CallId;
use ringfence_simulator::{Millis, SimSettings, Simulator};

use crate::chaos::{ALONE, DATABASE, REDIS};
use crate::support::child::Serve;
use crate::support::fleet::{self, Fleet, Store};
use crate::support::postgres::{self, Server};
use crate::support::redis::{self, Redis};
use crate::support::rng::Rng;
use crate::support::stage::{PATIENCE, Setup};

fn large() -> bool {
    std::env::var_os("RINGFENCE_FIGURES").is_some()
}

/// Open calls that a start finds.
fn open() -> usize {
    if large() { 50_000 } else { 5_000 }
}

fn build() -> &'static str {
    if cfg!(debug_assertions) { "debug build" } else { "release build" }
}

/// The value that this part of them does not exceed.
fn percentile(sorted: &[i64], part: f64) -> i64 {
    sorted[((sorted.len() as f64 * part).ceil() as usize).clamp(1, sorted.len()) - 1]
}

// === from a hang-up to a slot ===

/// How an end is heard of.
#[derive(Clone, Copy, PartialEq)]
enum By {
    /// Twilio's status callback, which comes at once.
    Callback,
    /// ElevenLabs' post-call webhook, which comes after its analysis: here a second.
    PostCall,
    /// ElevenLabs' list of calls: no webhook comes.
    Sweep,
}

/// Several businesses with one call each. A call of each ends, and another is ordered until it is taken; the simulated provider
/// says when the one ended and when the other began.
async fn hang_ups(what: &str, replicas: usize, redis: Store, tables: &str, by: By) {
    let by_sweep = by == By::Sweep;
    let (lanes, rounds) = match (by_sweep, large()) {
        (false, false) => (4, 5),
        (false, true) => (4, 75),
        (true, false) => (12, 1),
        (true, true) => (20, 15),
    };
    let mut rng = Rng::new(what);
    let server = tokio::task::block_in_place(Server::start);
    let database = server.database_over_tcp().rsplit('/').next().unwrap().to_owned();
    let sim = SimSettings {
        webhook_loss: if by_sweep { 1.0 } else { 0.0 },
        analysis_ms: Millis::exactly(1_000),
        ..Setup::default().sim
    };
    let businesses = (0..lanes).map(|n| (format!("lane{n}"), 1)).collect();
    let setup = fleet::Setup {
        replicas,
        sim,
        postgres: (server.port, database),
        redis,
        tables: format!("{tables}\n[businesses.callers]\nmax_calls = 1"),
        limits: (1_000, 1_000, businesses),
        // As they are by default.
        reconcile: "",
    };
    let fleet = Fleet::set(setup, &mut rng).await;
    fleet.start().await;
    let lane = async |n: usize, mut rng: Rng| {
        let business = format!("lane{n}");
        let (mut up, mut freed, mut orders) = (None::<String>, vec![], 0);
        for round in 0..=rounds {
            let started = Instant::now();
            let now = loop {
                assert!(started.elapsed() < 3 * PATIENCE, "{business}: its slot does not come back");
                orders += 1;
                let to = format!("+1555{n:02}{:05}7", orders % 100_000);
                let replica = rng.below(replicas as u64) as usize;
                let answer = match by {
                    By::Callback => fleet.talk(replica, &business, &to, None, PATIENCE).await,
                    By::PostCall | By::Sweep => fleet.dial(replica, &business, &to, None, PATIENCE).await,
                };
                match answer {
                    Some(answer) if answer.status == 200 || answer.status == 201 => {
                        let body = answer.json();
                        let id = body["sid"].as_str().or(body["conversation_id"].as_str());
                        break id.unwrap().to_owned();
                    }
                    Some(answer) if answer.status == 503 => {
                        tokio::time::sleep(Duration::from_millis(if by_sweep { 40 } else { 8 })).await;
                    }
                    other => panic!("{other:?}"),
                }
            };
            let view = fleet.control.call(&now).unwrap();
            if let Some(before) = up.replace(now.clone()) {
                freed.push(view.created_ms - fleet.control.call(&before).unwrap().ended_ms.unwrap());
            }
            // Calls that are younger than the sweep's grace are not missed by it, and earlier events of a call go before its end.
            let lives = if by_sweep { 3_200 + rng.below(2_000) } else { 400 + rng.below(300) };
            tokio::time::sleep(Duration::from_millis(lives)).await;
            if round < rounds {
                assert!(fleet.control.end_call(&now));
            }
        }
        freed
    };
    let each = futures_util::future::join_all((0..lanes).map(|n| lane(n, rng.fork()))).await;
    let mut freed: Vec<i64> = each.into_iter().flatten().collect();
    freed.sort_unstable();
    assert_eq!(freed.len(), lanes * rounds, "every slot came back");
    eprintln!(
        "{what} ({}): hang-up to reusable slot of {} calls: p50 {} ms, p99 {} ms, longest {} ms",
        build(),
        freed.len(),
        percentile(&freed, 0.5),
        percentile(&freed, 0.99),
        freed[freed.len() - 1]
    );
    // Nothing else is held.
    fleet.control.set_webhook_loss(0.0);
    fleet.end_all();
    let started = Instant::now();
    for n in 0..replicas {
        while fleet.status(n).await.is_none_or(|status| status["gate"]["calls"] != 0) {
            assert!(started.elapsed() < 3 * PATIENCE, "slots leak: {:?}", fleet.status(n).await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    fleet.stop().await;
    fleet.done().await;
}

/// All ways, or in a small run those that the limiter has a part in: several processes hear of an end by a webhook to one of them.
async fn each_way(what: &str, replicas: usize, redis: impl Fn() -> Store, tables: &str) {
    let ways = [
        (By::Callback, "Twilio's status callback"),
        (By::PostCall, "ElevenLabs' post-call webhook after 1 s of analysis"),
        (By::Sweep, "sweep alone"),
    ];
    for (by, how) in ways.into_iter().filter(|(by, _)| large() || replicas == 1 || *by == By::Callback) {
        hang_ups(&format!("{what}, {how}"), replicas, redis(), tables, by).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_slot_comes_back_after_a_hang_up() {
    if postgres::is_missing() {
        return;
    }
    let _alone = ALONE.lock().await;
    each_way("one process, memory", 1, || Store::None, "").await;
    each_way("two processes, database", 2, || Store::None, DATABASE).await;
    if !redis::is_missing() {
        let redis = || Store::Plain(Mutex::new(tokio::task::block_in_place(Redis::plain)));
        each_way("two processes, redis", 2, redis, REDIS).await;
    }
}

// === calls placed past ringfence ===

/// How long a call is not counted that ringfence did not place: with an account that has no open call, and with one that has.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_call_placed_past_ringfence_is_counted() {
    if postgres::is_missing() {
        return;
    }
    let _alone = ALONE.lock().await;
    let mut rng = Rng::new("placed past");
    let server = tokio::task::block_in_place(Server::start);
    let setup = fleet::Setup {
        replicas: 1,
        sim: SimSettings { webhook_loss: 1.0, ..Setup::default().sim },
        postgres: (server.port, server.database_over_tcp().rsplit('/').next().unwrap().to_owned()),
        redis: Store::None,
        tables: "[businesses.callers]\nmax_calls = 1".to_owned(),
        limits: (1_000, 1_000, vec![("alpha".to_owned(), 100)]),
        // As they are by default.
        reconcile: "",
    };
    let fleet = Fleet::set(setup, &mut rng).await;
    fleet.start().await;
    let held = async || fleet.status(0).await.map_or(0, |status| status["gate"]["calls"].as_u64().unwrap());
    let until = async |calls: u64| {
        let started = Instant::now();
        while held().await != calls {
            assert!(started.elapsed() < 5 * PATIENCE, "{} calls are counted, and not {calls}", held().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        i64::try_from(started.elapsed().as_millis()).unwrap()
    };
    let samples = if large() { 15 } else { 2 };
    for is_idle in [true, false] {
        let own = u64::from(!is_idle);
        if !is_idle {
            assert_eq!(fleet.dial(0, "alpha", "+15550002001", None, PATIENCE).await.unwrap().status, 200);
        }
        let mut took = Vec::new();
        for n in 0..samples {
            until(own).await;
            // At any moment between two sweeps.
            tokio::time::sleep(Duration::from_millis(rng.below(5_000))).await;
            let placed = fleet.place_outside_ringfence(&format!("+1555000{n:02}07")).await.unwrap();
            took.push(until(own + 1).await);
            assert!(fleet.control.end_call(placed.json()["conversation_id"].as_str().unwrap()));
        }
        took.sort_unstable();
        eprintln!(
            "placed past ringfence, {} ({}): counted after p50 {} ms, longest {} ms of {samples}",
            if is_idle { "no open call" } else { "beside an open call" },
            build(),
            percentile(&took, 0.5),
            took[took.len() - 1]
        );
    }
    fleet.end_all();
    until(0).await;
    fleet.stop().await;
    fleet.done().await;
}

// === the start over many open calls ===

/// Where the calls are on record.
enum Record {
    Sqlite,
    Postgres { url: String, _server: Server },
}

/// Makes many open calls of the one that is on record.
async fn copy_the_call(record: &Record, folder: &Path) {
    let ids: Vec<String> = (1..open()).map(|_| CallId::new().to_string()).collect();
    match record {
        Record::Postgres { url, .. } => {
            let options: sqlx::postgres::PgConnectOptions = url.parse().unwrap();
            let pool = sqlx::postgres::PgPool::connect_with(options.options([("search_path", "ringfence")])).await;
            let pool = pool.unwrap();
            for sql in [
                "INSERT INTO calls SELECT copy.* FROM (SELECT * FROM calls) c, unnest($1::text[]) AS fresh(id),
                 LATERAL jsonb_populate_record(NULL::calls, to_jsonb(c) || jsonb_build_object('id', fresh.id)) AS copy",
                "INSERT INTO call_aliases (kind, id, call_id, seen_at)
                 SELECT kind, kind || fresh.id, fresh.id, seen_at FROM (SELECT * FROM call_aliases) a, unnest($1::text[]) AS fresh(id)",
            ] {
                sqlx::query(sql).bind(&ids).execute(&pool).await.unwrap();
            }
            pool.close().await;
        }
        Record::Sqlite => {
            let mut record = rusqlite::Connection::open(folder.join("ringfence.db")).unwrap();
            let transaction = record.transaction().unwrap();
            transaction
                .execute_batch(
                    "CREATE TEMP TABLE one AS SELECT * FROM calls; CREATE TEMP TABLE its AS SELECT * FROM call_aliases",
                )
                .unwrap();
            for id in &ids {
                for sql in [
                    "UPDATE one SET id = ?1",
                    "INSERT INTO calls SELECT * FROM one WHERE id = ?1",
                    "INSERT INTO call_aliases (kind, id, call_id, seen_at) SELECT kind, kind || ?1, ?1, seen_at FROM its",
                ] {
                    transaction.prepare_cached(sql).unwrap().execute([id]).unwrap();
                }
            }
            transaction.commit().unwrap();
        }
    }
}

async fn start_over_many(what: &str, record: Record, tables: &str) {
    ringfence::net::install_crypto_provider();
    let folder = std::env::temp_dir().join(format!("ringfence-many-{}", CallId::new()));
    std::fs::create_dir_all(&folder).unwrap();
    let simulator = Simulator::start(Setup::default().sim).await.unwrap();
    let store = match &record {
        Record::Sqlite => String::new(),
        Record::Postgres { url, .. } => format!("[store]\nurl = \"{url}\"\n"),
    };
    // Without a key, nobody is asked about calls that no provider knows.
    let text = format!(
        "concurrent = 60000\n[listen]\napi = \"127.0.0.1:0\"\nwebhooks = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\nclient = \"127.0.0.1:0\"\n\
         [deadlines]\nlive_secs = 86400\nringing_secs = 86400\ndialing_secs = 86400\nqueued_secs = 86400\n\
         [accounts.elevenlabs]\nupstream = \"{}\"\nconcurrent = 55000\n{store}{tables}\n",
        simulator.base_url()
    );
    std::fs::write(folder.join("ringfence.toml"), text).unwrap();
    let http = ringfence::net::Upstream::new(ringfence::net::UpstreamSettings::default()).unwrap();
    let ask = async |method: &str, url: String, body: String| {
        let mut request = http::Request::new(bytes::Bytes::from(body));
        *request.method_mut() = method.parse().unwrap();
        *request.uri_mut() = url.parse().unwrap();
        let headers = request.headers_mut();
        headers.insert("content-type", "application/json".parse().unwrap());
        headers.insert("xi-api-key", SimSettings::default().el_api_key.parse().unwrap());
        let answer = http.fetch(request, 8 << 20, PATIENCE).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(answer.body()).unwrap_or_default();
        (answer.status().as_u16(), body)
    };
    // Equal orders on both sides of a restart would be one.
    let dial = async |serve: &Serve, to: &str| {
        let body = format!(r#"{{"agent_id": "agent_1", "agent_phone_number_id": "phnum_1", "to_number": "{to}"}}"#);
        ask("POST", serve.at("api", "/elevenlabs/v1/convai/twilio/outbound-call"), body).await
    };
    let stop = async |mut serve: Serve| {
        crate::support::child::signal(serve.pid(), "TERM");
        let started = Instant::now();
        while serve.dead().is_none() {
            assert!(started.elapsed() < 2 * PATIENCE, "it does not stop");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let serve = Serve::start(&folder, &[], "").await;
    assert!(serve.is_ready(), "{}", std::fs::read_to_string(folder.join("log")).unwrap());
    assert_eq!(dial(&serve, "+15550002227").await.0, 200);
    stop(serve).await;
    copy_the_call(&record, &folder).await;

    let started = Instant::now();
    let serve = Serve::start(&folder, &[], "").await;
    assert!(serve.is_ready(), "{}", std::fs::read_to_string(folder.join("log")).unwrap());
    assert_eq!(ask("GET", serve.at("admin", "/ready"), String::new()).await.0, 200);
    let took = started.elapsed();
    eprintln!("{what} ({}): {} open calls, ready after {:.2} s", build(), open(), took.as_secs_f64());
    let held = async || ask("GET", serve.at("admin", "/status"), String::new()).await.1["gate"]["calls"].clone();
    assert_eq!(held().await, open(), "all of them are held");
    assert_eq!(dial(&serve, "+15550002237").await.0, 200);
    // What is shown may be a moment old.
    let since = Instant::now();
    while held().await != open() + 1 {
        assert!(since.elapsed() < PATIENCE, "the new call is not counted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop(serve).await;
    simulator.stop().await;
    let _ = std::fs::remove_dir_all(&folder);
}

fn over_postgres() -> Record {
    let server = tokio::task::block_in_place(Server::start);
    let url = server.database_over_tcp();
    Record::Postgres { url, _server: server }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_finds_every_open_call() {
    let _alone = ALONE.lock().await;
    start_over_many("memory over SQLite", Record::Sqlite, "").await;
    if postgres::is_missing() {
        return;
    }
    start_over_many("memory over Postgres", over_postgres(), "").await;
    start_over_many("database, Postgres", over_postgres(), DATABASE).await;
    if redis::is_missing() {
        return;
    }
    let server = tokio::task::block_in_place(Redis::plain);
    start_over_many("redis over Postgres", over_postgres(), &REDIS.replace("{redis}", &server.url())).await;
}
