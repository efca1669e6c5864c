//! Chaos: several real processes, one record, one Redis, many apps, and everything that goes wrong between them, drawn at random.
//! The simulated providers judge: they count what is live, and remember whom each order dialled.
//!
//! `RINGFENCE_CHAOS_SECS` lets it go on for longer than CI has time for, `RINGFENCE_SEED` repeats the draws of a run.

mod bulk;
mod check;
mod trouble;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ringfence_simulator::{Inbound, Millis, SimSettings, Via};
use sqlx::Row as _;
use tokio::task::block_in_place;

use crate::support::child::OWN_NUMBER;
use crate::support::fleet::{self, Fleet, Store};
use crate::support::postgres::{self, Server};
use crate::support::redis::{self, Group, Redis};
use crate::support::rng::{Rng, chaos};
use crate::support::stage::{Answer, PATIENCE, Setup};
use trouble::Kind;

/// Calls at once that the config allows: at ElevenLabs, and in all.
const EL_MAX: u32 = 5;
const ALL_MAX: u32 = 7;
/// Businesses with their own limits. The last one is called, by visitors; the one before it has bulk runs.
const BUSINESSES: [(&str, u32); 5] = [("alpha", 2), ("beta", 3), ("gamma", 7), (bulk::RUNNER, 3), ("callers", 2)];
/// Apps at once.
const APPS: usize = 10;
/// How long an app sends an order again: no call that it made can be over for so long that it might be meant anew.
const INSISTS: Duration = Duration::from_secs(7);
/// How long everything may take to come to rest.
const REST: Duration = Duration::from_secs(90);
/// One order, as its app saw it.
#[derive(Debug)]
struct AdmissionRequest {
    to: String,
    business: usize,
    at_twilio: bool,
    key: Option<String>,
    /// When, at which replica, and the status of its answer.
    tries: Vec<(i64, usize, Option<u16>)>,
}

#[derive(Default)]
struct Tally {
    answers: BTreeMap<String, u64>,
    faults: BTreeMap<Kind, u32>,
    failed_starts: u32,
    /// Milliseconds in each mode of the gate.
    modes: BTreeMap<String, u64>,
    epochs: Option<(i64, i64)>,
}

struct Chaos {
    fleet: Fleet,
    postgres: Mutex<Server>,
    /// Servers are worked on one at a time.
    server_hands: tokio::sync::Mutex<()>,
    orders: Mutex<Vec<AdmissionRequest>>,
    runs: Mutex<Vec<bulk::BulkRun>>,
    numbers: AtomicU32,
    alive: AtomicBool,
    tally: Mutex<Tally>,
    /// What went wrong when, by the wall clock.
    diary: Mutex<Vec<(i64, String)>>,
}

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

fn ms(rng: &mut Rng, from: u64, to: u64) -> Duration {
    Duration::from_millis(from + rng.below(to - from))
}

impl Chaos {
    fn going_on(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }

    fn note(&self, kind: Kind, what: String) {
        *self.tally.lock().unwrap().faults.entry(kind).or_default() += 1;
        self.diary.lock().unwrap().push((now_ms(), format!("{kind:?} {what}")));
    }

    fn number(&self, digit: char) -> String {
        format!("+1555{digit}{:06}7", self.numbers.fetch_add(1, Ordering::Relaxed))
    }

    // === apps ===

    async fn app(&self, mut rng: Rng) {
        while self.going_on() {
            match rng.below(100) {
                0..84 => self.order(&mut rng).await,
                84..96 => {
                    let (to, from) = (OWN_NUMBER.to_owned(), self.number('8'));
                    self.fleet.control.inbound(&Inbound { to, from, via: Via::Twilio, agent_id: None });
                }
                _ => drop(self.fleet.place_outside_ringfence(&self.number('9')).await),
            }
            tokio::time::sleep(ms(&mut rng, 10, 60)).await;
        }
    }

    /// One order, sent until it is told what became of it.
    async fn order(&self, rng: &mut Rng) {
        let business = rng.below(3) as usize;
        let to = self.number(char::from(b'1' + business as u8));
        let at_twilio = rng.below(3) == 0;
        let key = (rng.below(2) == 0).then(|| format!("key-{to}"));
        let started = Instant::now();
        let mut order = AdmissionRequest { to, business, at_twilio, key, tries: vec![] };
        loop {
            let replica = rng.below(self.fleet.replicas.len() as u64) as usize;
            // Some apps give up at once, most wait longer than a create may take.
            let patience = if rng.below(8) == 0 { ms(rng, 5, 120) } else { ms(rng, 2_500, 4_000) };
            let answer = self.try_order(&order, replica, patience).await;
            let status = answer.as_ref().map(|a| a.status);
            order.tries.push((now_ms(), replica, status));
            self.count(answer.as_ref());
            let again = match status {
                None | Some(424) => true,
                Some(503) => rng.below(4) == 0,
                Some(_) => false,
            };
            if !again || started.elapsed() > INSISTS {
                break;
            }
            tokio::time::sleep(ms(rng, 20, 400)).await;
        }
        self.orders.lock().unwrap().push(order);
    }

    async fn try_order(&self, order: &AdmissionRequest, replica: usize, patience: Duration) -> Option<Answer> {
        let (business, key) = (BUSINESSES[order.business].0, order.key.as_deref());
        match order.at_twilio {
            true => self.fleet.talk(replica, business, &order.to, key, patience).await,
            false => self.fleet.dial(replica, business, &order.to, key, patience).await,
        }
    }

    fn count(&self, answer: Option<&Answer>) {
        let name = match answer {
            None => "no answer".to_owned(),
            Some(answer) => {
                let body = serde_json::from_slice::<serde_json::Value>(&answer.body).unwrap_or_default();
                let code = body["error"].as_str().or(body["detail"]["code"].as_str()).unwrap_or_default();
                format!("{} {code}", answer.status).trim().to_owned()
            }
        };
        *self.tally.lock().unwrap().answers.entry(name).or_default() += 1;
    }

    /// Reads epoch and mode, past everything that goes wrong on the way.
    async fn watch(&self) {
        let mut last = (Instant::now(), None::<String>);
        while self.going_on() {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let sql = "SELECT epoch, mode FROM gate_state WHERE pool = 'default'";
            let Ok(Some(row)) = sqlx::query(sql).fetch_optional(&self.fleet.record).await else { continue };
            let (epoch, mode): (i64, String) = (row.get(0), row.get(1));
            let mut tally = self.tally.lock().unwrap();
            let first = tally.epochs.map_or(epoch, |(first, _)| first);
            tally.epochs = Some((first, epoch));
            if let Some(before) = last.1.take() {
                *tally.modes.entry(before).or_default() += last.0.elapsed().as_millis() as u64;
            }
            last = (Instant::now(), Some(mode));
        }
    }
}

/// A run: `secs` where the environment says nothing else.
async fn run(what: &str, replicas: usize, redis: Store, tables: &str, secs: u64) {
    let mut rng = Rng::new(what);
    let server = block_in_place(Server::start);
    let database = server.database_over_tcp().rsplit('/').next().unwrap().to_owned();
    let sim = SimSettings {
        talk_ms: Millis::between(50, 600),
        analysis_ms: Millis::between(10, 100),
        tw_list_lag_ms: 100,
        seed: rng.below(1 << 32),
        ..Setup::default().sim
    };
    let setup = fleet::Setup {
        replicas,
        sim,
        postgres: (server.port, database),
        redis,
        tables: tables.to_owned(),
        limits: (EL_MAX, ALL_MAX, BUSINESSES.map(|(name, max)| (name.to_owned(), max)).to_vec()),
        reconcile: "sweep_ms = 150
list_lag_ms = 300
not_found_confirm_secs = 2",
    };
    let chaos = Chaos {
        fleet: Fleet::set(setup, &mut rng).await,
        postgres: Mutex::new(server),
        server_hands: tokio::sync::Mutex::default(),
        orders: Mutex::default(),
        runs: Mutex::default(),
        numbers: AtomicU32::new(1),
        alive: AtomicBool::new(true),
        tally: Mutex::default(),
        diary: Mutex::default(),
    };
    chaos.carry_out(what, secs, rng).await;
    chaos.fleet.done().await;
}

impl Chaos {
    async fn carry_out(&self, what: &str, secs: u64, mut rng: Rng) {
        self.fleet.start().await;
        let (started, time) = (Instant::now(), chaos(secs));
        let apps: Vec<_> = (0..APPS).map(|_| self.app(rng.fork())).collect();
        let end = async {
            tokio::time::sleep(time).await;
            self.alive.store(false, Ordering::Relaxed);
        };
        let trouble = (self.trouble_replicas(rng.fork()), self.trouble_servers(rng.fork()), self.weather(rng.fork()));
        let apps = futures_util::future::join_all(apps);
        tokio::join!(end, trouble.0, trouble.1, trouble.2, self.watch(), self.bulk(rng.fork()), apps);
        let took = started.elapsed();
        self.fleet.start().await;
        let quiet = Instant::now();
        let mut wrong = self.rest().await;
        let quiet = quiet.elapsed();
        self.fleet.stop().await;
        let mut figures = String::new();
        // Webhooks that were put on record and could not be applied were not acknowledged; the next start applies them.
        let waiting = self.number_of(Self::UNSETTLED).await;
        let _ = writeln!(figures, "{waiting} webhooks waited for the next start");
        if waiting > 0 {
            self.start(0).await;
            let started = Instant::now();
            while self.number_of(Self::UNSETTLED).await > 0 && started.elapsed() < PATIENCE {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            self.fleet.stop().await;
        }
        wrong.extend(self.check(&mut figures).await);
        {
            let (tally, counts) = (self.tally.lock().unwrap(), self.fleet.control.counts());
            let orders = self.orders.lock().unwrap();
            let tries: usize = orders.iter().map(|o| o.tries.len()).sum();
            eprintln!(
                "{what}: {:.0} s, at rest after {:.1} s; {} orders in {tries} tries, {} dialled, {} callers\n\
             answers {:?}\nfaults {:?}, starts that failed {}\nepochs {:?}, milliseconds in each mode {:?}\n{figures}",
                took.as_secs_f64(),
                quiet.as_secs_f64(),
                orders.len(),
                counts.creates_el + counts.creates_tw,
                counts.inbound,
                tally.answers,
                tally.faults,
                tally.failed_starts,
                tally.epochs,
                tally.modes,
            );
        }
        assert!(
            wrong.is_empty(),
            "{} things are wrong:\n{}\nlogs: {}",
            wrong.len(),
            wrong.join("\n"),
            self.fleet.folder().display()
        );
    }
}

/// Two runs beside each other would measure each other.
pub static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_process_over_postgres_stays_exact_whatever_goes_wrong() {
    if postgres::is_missing() {
        return;
    }
    let _alone = ALONE.lock().await;
    run("chaos, memory over Postgres", 1, Store::None, "", 25).await;
}

pub const DATABASE: &str = "[gate]\nbackend = \"database\"";
pub const REDIS: &str = "[gate]\nbackend = \"redis\"\nredis_url = \"{redis}\"\ntimeout_ms = 100\nfallback_after_ms = 800\nreturn_after_ms = 1500\naudit_interval_secs = 5";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn three_processes_with_the_database_as_their_gate_stay_exact_whatever_goes_wrong() {
    if postgres::is_missing() {
        return;
    }
    let _alone = ALONE.lock().await;
    run("chaos, three processes, database", 3, Store::None, DATABASE, 25).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn three_processes_with_a_redis_stay_exact_whatever_goes_wrong() {
    if postgres::is_missing() || redis::is_missing() {
        return;
    }
    let _alone = ALONE.lock().await;
    let redis = Store::Plain(Mutex::new(block_in_place(Redis::with_aof)));
    run("chaos, three processes, redis", 3, redis, REDIS, 25).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn three_processes_with_sentinels_stay_exact_whatever_goes_wrong() {
    if postgres::is_missing() || redis::is_missing() {
        return;
    }
    let _alone = ALONE.lock().await;
    let redis = Store::Sentinel(Mutex::new(block_in_place(Group::start)));
    run("chaos, three processes, Sentinel", 3, redis, REDIS, 25).await;
}
