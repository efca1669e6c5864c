//! Every limiter over every store, each against the model.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::sync::Arc;

use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use tokio::runtime::Runtime;

use super::commands::{Command, commands};
use crate::admission::limiter::Gate;
use crate::admission::limiter::memory::MemoryGate;
use crate::admission::limiter::redis::tests::server::{Server, until};
use crate::admission::limiter::redis::{RedisGate, RedisSettings};
use crate::clock::UnixMs;
use crate::ids::CallId;
use crate::policy::decision::GateMode;
use crate::provider::secret::Secret;
use crate::store::postgres::{self, PostgresSettings, PostgresStore};
use crate::store::sqlite::SqliteStore;
use crate::store::{Migrate, OwnershipMode, Store};

/// Sequences for CI: over a local file, for one replica and for two, and with a server.
const OF_ONE: u32 = 1_500;
const OF_TWO: u32 = 800;
const WITH_A_SERVER: u32 = 150;
/// The time between two sequences: rates of the previous one have expired.
const BETWEEN_MS: UnixMs = 72 * 3_600_000;

/// A store, with each replica's connection.
pub(in crate::admission) struct World {
    pub home: GateMode,
    pub stores: Vec<Arc<dyn Store>>,
    pub redis: Option<Server>,
    /// Connections of earlier replicas, to be reused.
    gates: RefCell<Vec<Arc<dyn Gate>>>,
    now: Cell<UnixMs>,
    sequence: Cell<u32>,
    _folder: Option<Folder>,
}

/// A folder that is deleted with the test; in memory where possible.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let memory = PathBuf::from("/dev/shm");
        let under = if memory.is_dir() { memory } else { std::env::temp_dir() };
        Self(under.join(format!("ringfence-model-{}", CallId::new())))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl World {
    fn new(home: GateMode, stores: Vec<Arc<dyn Store>>, redis: Option<Server>, folder: Option<Folder>) -> Self {
        let (gates, now, sequence) = (RefCell::default(), Cell::new(1_790_000_000_000), Cell::default());
        Self { home, stores, redis, gates, now, sequence, _folder: folder }
    }

    async fn over_a_file(home: GateMode, redis: Option<Server>) -> Self {
        let folder = Folder::new();
        let mut stores: Vec<Arc<dyn Store>> = vec![];
        for _ in 0..replicas(home) {
            let store = SqliteStore::open(&folder.0.join("ringfence.db"), Migrate::Run, sharing(home)).await.unwrap();
            stores.push(Arc::new(store));
        }
        Self::new(home, stores, redis, Some(folder))
    }

    /// Two replicas, a Redis and a file.
    pub async fn of_redis() -> Self {
        Self::over_a_file(GateMode::Redis, Some(Server::start(&[]).await)).await
    }

    /// `None` where there is no Postgres.
    async fn over_postgres(home: GateMode, redis: Option<Server>) -> Option<Self> {
        let mut settings = PostgresSettings::new(Secret::new(&postgres::tests::database().await?)).unwrap();
        settings.time_of = postgres::TimeOf::Caller;
        let mut stores: Vec<Arc<dyn Store>> = vec![];
        for _ in 0..replicas(home) {
            let store =
                PostgresStore::open(&settings, Migrate::Run, sharing(home), |why| panic!("{why}")).await.unwrap();
            stores.push(Arc::new(store));
        }
        Some(Self::new(home, stores, redis, None))
    }

    /// Redis loses everything.
    pub async fn wipe(&self) {
        if let Some(server) = &self.redis {
            server.say::<()>(&["FLUSHALL"]).await;
        }
    }

    /// The start time of a sequence, and its number.
    pub fn begin(&self) -> (UnixMs, u32) {
        self.now.set(self.now.get() + BETWEEN_MS);
        self.sequence.set(self.sequence.get() + 1);
        (self.now.get(), self.sequence.get())
    }

    /// A new process's limiter.
    pub async fn gate(&self) -> Option<Arc<dyn Gate>> {
        let Some(server) = &self.redis else {
            return (self.home == GateMode::Memory).then(|| Arc::new(MemoryGate::new()) as Arc<dyn Gate>);
        };
        let left = self.gates.borrow_mut().pop();
        if let Some(gate) = left {
            return Some(gate);
        }
        let mut settings = RedisSettings::new(Secret::new(&server.url())).unwrap();
        // The machine is busy with other tests.
        settings.timeout = std::time::Duration::from_secs(10);
        settings.callers_clock = true;
        let gate = RedisGate::new(settings).unwrap();
        until("Redis is found", async || gate.health().up).await;
        Some(Arc::new(gate))
    }

    /// Keeps a replica's limiter at the end of a sequence, for its connection.
    pub fn keep(&self, gate: Option<Arc<dyn Gate>>) {
        self.gates.borrow_mut().extend(gate.filter(|_| self.redis.is_some()));
    }
}

/// The memory limiter belongs to one process.
fn replicas(home: GateMode) -> usize {
    if home == GateMode::Memory { 1 } else { 2 }
}

fn sharing(home: GateMode) -> OwnershipMode {
    if home == GateMode::Memory { OwnershipMode::Exclusive } else { OwnershipMode::Shared }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// Random sequences, each against the model. Of one that fails, the shortest that still does.
fn agrees(runtime: &Runtime, world: &World, sequences: u32) {
    let sequences = number("RINGFENCE_MODEL_SEQUENCES").unwrap_or(sequences);
    let seed: u64 = number("RINGFENCE_SEED").unwrap_or_else(|| jiff::Timestamp::now().as_microsecond().unsigned_abs());
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases: sequences, max_shrink_iters: 2_000, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let (steps, since) = (Cell::new(0), std::time::Instant::now());
    let ran = runner.run(&commands(), |sequence: Vec<Command>| {
        steps.set(steps.get() + sequence.len());
        runtime.block_on(super::run::run(world, sequence));
        Ok(())
    });
    if let Err(failed) = ran {
        panic!("RINGFENCE_SEED={seed} repeats this: {failed}");
    }
    println!("{sequences} sequences, {} commands, {:?} (RINGFENCE_SEED={seed})", steps.get(), since.elapsed());
}

fn over_a_file(home: GateMode) {
    let runtime = runtime();
    let world = runtime.block_on(async {
        let redis = if home == GateMode::Redis { Some(Server::start(&[]).await) } else { None };
        World::over_a_file(home, redis).await
    });
    let sequences = match home {
        GateMode::Memory => OF_ONE,
        GateMode::Database => OF_TWO,
        GateMode::Redis => WITH_A_SERVER,
    };
    agrees(&runtime, &world, sequences);
}

fn over_postgres(home: GateMode) {
    let runtime = runtime();
    let world = runtime.block_on(async {
        let redis = if home == GateMode::Redis { Some(Server::start(&[]).await) } else { None };
        World::over_postgres(home, redis).await
    });
    if let Some(world) = world {
        agrees(&runtime, &world, WITH_A_SERVER);
    }
}

#[test]
fn memory_over_sqlite_agrees_with_the_model() {
    over_a_file(GateMode::Memory);
}

#[test]
fn memory_over_postgres_agrees_with_the_model() {
    over_postgres(GateMode::Memory);
}

#[test]
fn sqlite_agrees_with_the_model() {
    over_a_file(GateMode::Database);
}

#[test]
fn postgres_agrees_with_the_model() {
    over_postgres(GateMode::Database);
}

#[test]
fn redis_over_sqlite_agrees_with_the_model() {
    over_a_file(GateMode::Redis);
}

#[test]
fn redis_over_postgres_agrees_with_the_model() {
    over_postgres(GateMode::Redis);
}
