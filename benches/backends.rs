//! The gate's back ends as the product uses them: a call admitted and put on record, and its end. Decisions a second, how long each
//! takes, and round trips to each server, counted on the wire by a relay. Real servers, which flush what they commit.
//!
//! `cargo bench --bench backends`; `-- SECONDS` for a run of another length.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench that cannot go on has nothing to measure")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use ringfence::admission::limiter::Gate;
use ringfence::admission::limiter::memory::MemoryGate;
use ringfence::admission::limiter::redis::{RedisGate, RedisSettings};
use ringfence::admission::{Admission, AdmissionController, AdmissionSettings};
use ringfence::call::{Deadlines, Direction, EndProof, Event, Origin, Outcome, Phase, Source};
use ringfence::clock::Clock;
use ringfence::ids::{AccountName, BusinessId, CallId};
use ringfence::metrics::Metrics;
use ringfence::policy::decision::{AdmissionRequest, GateMode, Slots};
use ringfence::policy::{CallAttributes, Policy};
use ringfence::provider::secret::Secret;
use ringfence::store::postgres::{PostgresSettings, PostgresStore};
use ringfence::store::sqlite::SqliteStore;
use ringfence::store::{Change, Migrate, NewCall, OwnershipMode, Replica, Store};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

mod support;

const BUSINESSES: usize = 300;

/// Carries connections to a server, and counts how often a client speaks after the server did.
struct Counter {
    port: u16,
    trips: Arc<AtomicU64>,
}

impl Counter {
    async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, trips) = (listener.local_addr().unwrap().port(), Arc::<AtomicU64>::default());
        let counted = trips.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                    (client.into_split(), server.into_split());
                let (asked, counted) = (Arc::new(AtomicBool::new(false)), counted.clone());
                let answered = asked.clone();
                tokio::spawn(async move {
                    let mut buffer = vec![0; 64 * 1024];
                    while let Ok(n @ 1..) = from_client.read(&mut buffer).await {
                        if !asked.swap(true, Ordering::SeqCst) {
                            counted.fetch_add(1, Ordering::SeqCst);
                        }
                        let _ = to_server.write_all(&buffer[..n]).await;
                    }
                });
                tokio::spawn(async move {
                    let mut buffer = vec![0; 64 * 1024];
                    while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
                        answered.store(false, Ordering::SeqCst);
                        let _ = to_client.write_all(&buffer[..n]).await;
                    }
                });
            }
        });
        Self { port, trips }
    }
}

/// 300 businesses; each call is bound by its business's limit, the account's and the platform's.
fn policy() -> Policy {
    let mut text = String::from("concurrent = 100000\n[accounts.elevenlabs]\nconcurrent = 100000\n");
    for n in 0..BUSINESSES {
        text.push_str(&format!("[businesses.business_{n}]\nplan = \"PRO\"\nmax_calls = 1000\n"));
    }
    let config = ringfence::config::load(&text, std::path::Path::new("."), &|_| None).config.unwrap();
    Policy::new(config.policy, &[])
}

struct Bench {
    store: Arc<dyn Store>,
    admission: AdmissionController,
    policy: Arc<ArcSwap<Policy>>,
}

impl Bench {
    async fn new(store: Arc<dyn Store>, gate: Option<Arc<dyn Gate>>, home: GateMode) -> Self {
        let policy = Arc::new(ArcSwap::from_pointee(policy()));
        // No comparison falls into a run.
        let settings =
            AdmissionSettings { home, audit_interval: Duration::from_secs(3600), ..AdmissionSettings::default() };
        let (clock, metrics) = (Clock::system(), Metrics::new().unwrap());
        let admission =
            AdmissionController::new(store.clone(), gate, settings, policy.clone(), clock, metrics, Replica::new());
        admission.start().await.unwrap();
        Self { store, admission, policy }
    }

    async fn admit(&self, n: usize) -> CallId {
        let (call, at_ms) = (CallId::new(), Clock::system().now_ms());
        let attributes = CallAttributes {
            business: BusinessId::parse(&format!("business_{}", n % BUSINESSES)).unwrap(),
            plan: "PRO".to_owned(),
            account: AccountName::parse("elevenlabs").unwrap(),
            provider: "elevenlabs".to_owned(),
            carrier: None,
            direction: Direction::Outbound,
            operation: "twilio_outbound_call".to_owned(),
            agent: Some("agent_1".to_owned()),
            own_number: Some("phnum_1".to_owned()),
            other_number: Some("+15550002222".to_owned()),
        };
        let policy = self.policy.load();
        let bindings = policy.bindings(&attributes);
        assert_eq!(bindings.len(), 3);
        let order = AdmissionRequest { call: call.clone(), bindings, slots: Slots::ONE, mode: policy.mode(), at_ms };
        let record = NewCall {
            id: call.clone(),
            attributes,
            origin: Origin::Create,
            phase: Phase::Reserved,
            over_limit: false,
            polled: true,
            slots: 1,
            fingerprint: None,
            keys: vec![],
            replica: Some(self.admission.replica().to_owned()),
            notice: ringfence::store::AppNotice::Omit,
            at_ms,
            deadline_at: at_ms + 90_000,
            callback: None,
            aliases: vec![],
        };
        let policy_guard = self.admission.hold_policy().await;
        assert!(matches!(
            self.admission.admit(&policy_guard, order, record).await.unwrap(),
            Admission::Admitted { .. }
        ));
        call
    }

    async fn end(&self, call: &CallId) {
        let ended = Event::Ended(Outcome::Completed, EndProof::Webhook);
        let change = Change {
            event: Some(ended),
            ..Change::of(call, Source::Webhook, Clock::system().now_ms(), &Deadlines::default())
        };
        let applied = self.store.apply(change).await.unwrap().unwrap();
        self.admission.release(&applied.record).await;
    }

    async fn run(self, what: &str, counters: &[(&str, &Counter)], run: Duration) {
        let this = Arc::new(self);
        // Connections are made and statements prepared before anything is counted.
        for n in 0..100 {
            let call = this.admit(n).await;
            this.end(&call).await;
        }
        let trips = || counters.iter().map(|(_, counter)| counter.trips.load(Ordering::SeqCst)).collect::<Vec<_>>();
        let (before, mut calls) = (trips(), Vec::new());
        for n in 0..200 {
            calls.push(this.admit(n).await);
        }
        let between = trips();
        for call in &calls {
            this.end(call).await;
        }
        let after = trips();
        for (n, (name, _)) in counters.iter().enumerate() {
            let each = |from: &[u64], to: &[u64]| (to[n] - from[n]) as f64 / 200.0;
            println!(
                "{what}: round trips to {name}: {:.2} an admission, {:.2} an end",
                each(&before, &between),
                each(&between, &after)
            );
        }
        for clients in [1, 8, 32] {
            let until = Instant::now() + run;
            let mut tasks = tokio::task::JoinSet::new();
            for client in 0..clients {
                let this = this.clone();
                tasks.spawn(async move {
                    let mut took = Vec::new();
                    for n in (client..).step_by(7) {
                        if Instant::now() >= until {
                            break;
                        }
                        let started = Instant::now();
                        let call = this.admit(n).await;
                        took.push(started.elapsed().as_micros());
                        this.end(&call).await;
                    }
                    took
                });
            }
            let mut took: Vec<u128> = tasks.join_all().await.into_iter().flatten().collect();
            took.sort_unstable();
            let at = |part: usize| took[took.len() * part / 100] as f64 / 1_000.0;
            println!(
                "{what}, {clients:2} at once: {:6.0} calls/s admitted and ended; an admission p50 {:.2} ms, p99 {:.2} ms",
                took.len() as f64 / run.as_secs_f64(),
                at(50),
                at(99)
            );
        }
    }
}

async fn sqlite(folder: &std::path::Path, name: &str) -> Arc<dyn Store> {
    Arc::new(SqliteStore::open(&folder.join(name), Migrate::Run, OwnershipMode::Exclusive).await.unwrap())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let seconds = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(3);
    let run = Duration::from_secs(seconds);
    ringfence::net::install_crypto_provider();
    // Beside the build, not in memory: a commit has to reach a disk.
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("backends-{}", CallId::new()));
    std::fs::create_dir_all(&folder).unwrap();
    let server = support::postgres::Server::start_as(true);
    let redis = support::redis::Redis::plain();
    let (pg, rd) = (Counter::to(server.port).await, Counter::to(redis.port).await);
    let postgres = async || {
        let url = server.database_over_tcp().replace(&format!(":{}/", server.port), &format!(":{}/", pg.port));
        let settings = PostgresSettings::new(Secret::new(&url)).unwrap();
        let store = PostgresStore::open(&settings, Migrate::Run, OwnershipMode::Shared, |_| {}).await.unwrap();
        Arc::new(store) as Arc<dyn Store>
    };
    let memory = || -> Option<Arc<dyn Gate>> { Some(Arc::new(MemoryGate::new())) };
    Bench::new(sqlite(&folder, "memory.db").await, memory(), GateMode::Memory)
        .await
        .run("memory, SQLite", &[], run)
        .await;
    Bench::new(sqlite(&folder, "database.db").await, None, GateMode::Database)
        .await
        .run("database, SQLite", &[], run)
        .await;
    let counted = [("Postgres", &pg)];
    Bench::new(postgres().await, memory(), GateMode::Memory).await.run("memory, Postgres", &counted, run).await;
    Bench::new(postgres().await, None, GateMode::Database).await.run("database, Postgres", &counted, run).await;
    let gate = Arc::new(RedisGate::new(RedisSettings::new(Secret::new(&redis.url_at(rd.port))).unwrap()).unwrap());
    let until = Instant::now() + Duration::from_secs(5);
    while gate.away().is_some() {
        assert!(Instant::now() < until, "Redis is not reached");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let counted = [("Postgres", &pg), ("Redis", &rd)];
    Bench::new(postgres().await, Some(gate), GateMode::Redis).await.run("redis, Postgres", &counted, run).await;
    let _ = std::fs::remove_dir_all(&folder);
}
