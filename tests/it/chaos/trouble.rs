//! What goes wrong, and how.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use ringfence_simulator::{Fault, FaultKind, Provider};
use tokio::task::block_in_place;

use super::{Chaos, REST, ms};
use crate::support::faults::Weather;
use crate::support::fleet::{Replica, Store};
use crate::support::redis::{Group, Redis};
use crate::support::rng::Rng;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    ReplicaKilled,
    ReplicaStopped,
    ReplicaFrozen,
    CutFromPostgres,
    PostgresSilent,
    PostgresHalfOpen,
    PostgresMute,
    CutFromProvider,
    ProviderMute,
    CutFromRedis,
    RedisSilent,
    RedisMute,
    RedisSlow,
    PostgresRestarted,
    PostgresCrashed,
    PostgresSlow,
    RedisFrozen,
    RedisKilled,
    RedisStopped,
    RedisSetBack,
    RedisWiped,
    RedisEvicts,
    RedisHandsOver,
    RedisPromotesLagging,
}

/// To one replica.
const OF_REPLICAS: [Kind; 13] = [
    Kind::ReplicaKilled,
    Kind::ReplicaStopped,
    Kind::ReplicaFrozen,
    Kind::CutFromPostgres,
    Kind::PostgresSilent,
    Kind::PostgresHalfOpen,
    Kind::PostgresMute,
    Kind::CutFromProvider,
    Kind::ProviderMute,
    Kind::CutFromRedis,
    Kind::RedisSilent,
    Kind::RedisMute,
    Kind::RedisSlow,
];
/// To what all of them share.
const OF_SERVERS: [Kind; 3] = [Kind::PostgresRestarted, Kind::PostgresCrashed, Kind::PostgresSlow];
const OF_A_REDIS: [Kind; 6] =
    [Kind::RedisFrozen, Kind::RedisKilled, Kind::RedisStopped, Kind::RedisSetBack, Kind::RedisWiped, Kind::RedisEvicts];
const OF_A_GROUP: [Kind; 5] =
    [Kind::RedisFrozen, Kind::RedisWiped, Kind::RedisEvicts, Kind::RedisHandsOver, Kind::RedisPromotesLagging];

/// Kinds in an order that chance made: all of them are drawn before one is drawn again.
struct Deck {
    all: Vec<Kind>,
    left: Vec<Kind>,
}

impl Deck {
    fn new(all: Vec<Kind>) -> Self {
        Self { all, left: vec![] }
    }

    fn draw(&mut self, rng: &mut Rng) -> Kind {
        if self.left.is_empty() {
            self.left.clone_from(&self.all);
        }
        let n = rng.below(self.left.len() as u64) as usize;
        self.left.swap_remove(n)
    }
}
impl Chaos {
    /// At one replica after the other.
    pub(super) async fn trouble_replicas(&self, mut rng: Rng) {
        let fits = |kind: &Kind| {
            let of_redis = matches!(kind, Kind::CutFromRedis | Kind::RedisSilent | Kind::RedisMute | Kind::RedisSlow);
            !of_redis || !self.fleet.redis.is_none()
        };
        let mut deck = Deck::new(OF_REPLICAS.into_iter().filter(fits).collect());
        while self.going_on() {
            tokio::time::sleep(ms(&mut rng, 500, 2_500)).await;
            let n = rng.below(self.fleet.replicas.len() as u64) as usize;
            let kind = deck.draw(&mut rng);
            self.trouble_replica(kind, n, &mut rng).await;
        }
    }

    async fn trouble_replica(&self, kind: Kind, n: usize, rng: &mut Rng) {
        let replica = &self.fleet.replicas[n];
        let time = ms(rng, 300, 3_000);
        self.note(kind, format!("replica {n} for {time:?}"));
        let _hands = replica.hands.lock().await;
        match kind {
            Kind::ReplicaKilled => {
                replica.kill();
                tokio::time::sleep(time / 3).await;
                self.start(n).await;
            }
            Kind::ReplicaStopped => {
                replica.stop().await;
                self.start(n).await;
            }
            Kind::ReplicaFrozen => {
                // Beyond `send_within_secs`, which is 2, mostly.
                replica.signal("STOP");
                tokio::time::sleep(time + Duration::from_millis(1_500)).await;
                replica.signal("CONT");
            }
            Kind::CutFromPostgres => replica.postgres.set_for(Weather::Cut, time).await,
            Kind::PostgresSilent => replica.postgres.set_for(Weather::BlackHole, time).await,
            Kind::PostgresHalfOpen => replica.postgres.set_for(Weather::HalfOpen, time).await,
            Kind::PostgresMute => replica.postgres.set_for(Weather::NoAnswers, time / 3).await,
            Kind::CutFromProvider => replica.provider.set_for(Weather::Cut, time / 2).await,
            Kind::ProviderMute => replica.provider.set_for(Weather::NoAnswers, time / 3).await,
            Kind::CutFromRedis => redis_of(replica, Weather::Cut, time).await,
            Kind::RedisSilent => redis_of(replica, Weather::BlackHole, time).await,
            Kind::RedisMute => redis_of(replica, Weather::NoAnswers, time / 3).await,
            Kind::RedisSlow => redis_of(replica, Weather::Delay(ms(rng, 5, 120)), time).await,
            other => panic!("{other:?} is of no replica"),
        }
    }

    /// Starts it, and again where the database went away under its start, as whoever supervises it does.
    pub(super) async fn start(&self, n: usize) {
        let (replica, started) = (&self.fleet.replicas[n], Instant::now());
        while !replica.start("").await {
            self.tally.lock().unwrap().failed_starts += 1;
            assert!(started.elapsed() < REST, "replica {n} does not start:\n{}", replica.last_lines());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// At the servers that all share.
    pub(super) async fn trouble_servers(&self, mut rng: Rng) {
        let of_redis: &[Kind] = match &self.fleet.redis {
            Store::None => &[],
            Store::Plain(_) => &OF_A_REDIS,
            Store::Sentinel(_) => &OF_A_GROUP,
        };
        let mut deck = Deck::new(OF_SERVERS.iter().chain(of_redis).copied().collect());
        while self.going_on() {
            tokio::time::sleep(ms(&mut rng, 1_500, 4_000)).await;
            let kind = deck.draw(&mut rng);
            let time = ms(&mut rng, 200, 2_500);
            self.note(kind, format!("for {time:?}"));
            let _hands = self.server_hands.lock().await;
            match kind {
                Kind::PostgresRestarted | Kind::PostgresCrashed => {
                    let how = if kind == Kind::PostgresCrashed { "QUIT" } else { "INT" };
                    block_in_place(|| self.postgres.lock().unwrap().stop(how));
                    tokio::time::sleep(time / 3).await;
                    block_in_place(|| self.postgres.lock().unwrap().start_again());
                }
                Kind::PostgresSlow => {
                    let slow = Weather::Delay(ms(&mut rng, 20, 300));
                    self.fleet.replicas.iter().for_each(|r| r.postgres.set(slow));
                    tokio::time::sleep(time).await;
                    self.fleet.replicas.iter().for_each(|r| r.postgres.set(Weather::Pass));
                }
                of_redis => match &self.fleet.redis {
                    Store::Plain(server) => self.trouble_redis(of_redis, server, time).await,
                    Store::Sentinel(group) => self.trouble_group(of_redis, group, time).await,
                    Store::None => panic!("there is no Redis"),
                },
            }
        }
    }

    async fn trouble_redis(&self, kind: Kind, server: &Mutex<Redis>, time: Duration) {
        let with = |act: &mut dyn FnMut(&mut Redis)| block_in_place(|| act(&mut server.lock().unwrap()));
        match kind {
            Kind::RedisFrozen => with(&mut |r| r.freeze()),
            Kind::RedisKilled => with(&mut |r| r.kill()),
            Kind::RedisStopped => with(&mut |r| r.stop()),
            Kind::RedisSetBack => with(&mut |r| r.keep_a_copy()),
            Kind::RedisWiped => with(&mut |r| r.wipe()),
            Kind::RedisEvicts => with(&mut |r| r.evict()),
            other => panic!("{other:?} is of no Redis"),
        }
        tokio::time::sleep(time).await;
        match kind {
            Kind::RedisFrozen => with(&mut |r| r.thaw()),
            Kind::RedisKilled | Kind::RedisStopped => with(&mut |r| r.start_again()),
            Kind::RedisSetBack => with(&mut |r| {
                r.kill();
                r.start_over_the_copy();
            }),
            Kind::RedisEvicts => with(&mut |r| r.has_room()),
            _ => {}
        }
    }

    async fn trouble_group(&self, kind: Kind, group: &Mutex<Group>, time: Duration) {
        let with = |act: &mut dyn FnMut(&mut Group)| block_in_place(|| act(&mut group.lock().unwrap()));
        let wait = async |what: &str, so: &dyn Fn(&Group) -> bool| {
            let started = Instant::now();
            while !block_in_place(|| so(&group.lock().unwrap())) {
                assert!(started.elapsed() < REST, "{what}: {}", group.lock().unwrap().sentinels[0].log());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        match kind {
            Kind::RedisFrozen => {
                // Long enough for the Sentinels, sometimes.
                let frozen = block_in_place(|| {
                    let group = group.lock().unwrap();
                    let master = group.master();
                    group.servers[master].freeze();
                    master
                });
                tokio::time::sleep(time).await;
                with(&mut |g| g.servers[frozen].thaw());
            }
            Kind::RedisWiped => with(&mut |g| g.servers[g.master()].wipe()),
            Kind::RedisEvicts => {
                let master = block_in_place(|| group.lock().unwrap().master());
                with(&mut |g| g.servers[master].evict());
                tokio::time::sleep(time).await;
                with(&mut |g| g.servers[master].has_room());
            }
            Kind::RedisHandsOver => with(&mut |g| g.hand_over()),
            Kind::RedisPromotesLagging => {
                with(&mut |g| g.freeze_replicas());
                tokio::time::sleep(time / 2).await;
                let mut dead = 0;
                with(&mut |g| dead = g.promote_frozen());
                wait("a replica is promoted", &|g| g.settled(dead)).await;
                tokio::time::sleep(time).await;
                with(&mut |g| g.servers[dead].start_again());
            }
            other => panic!("{other:?} is of no group"),
        }
        wait("all follow one master", &Group::whole).await;
    }

    /// The providers' answers and webhooks go wrong.
    pub(super) async fn weather(&self, mut rng: Rng) {
        let kinds = [
            FaultKind::Drop,
            FaultKind::AcceptThenDrop,
            FaultKind::ServerError,
            FaultKind::ServerErrorAfterCreate,
            FaultKind::Slow,
            FaultKind::TooManyConcurrent,
        ];
        let control = &self.fleet.control;
        while self.going_on() {
            let kind = kinds[rng.below(kinds.len() as u64) as usize];
            let provider = [Provider::ElevenLabs, Provider::Twilio][rng.below(2) as usize];
            let late = if kind == FaultKind::Slow { rng.below(3_500) } else { 0 };
            control.fault(Fault { ms: late, ..Fault::next(provider, kind, 1) });
            let mut part = || [0.0, 0.1, 0.3, 0.6][rng.below(4) as usize];
            let (loss, double, reorder) = (part(), part(), part());
            control.configure(|s| (s.webhook_loss, s.webhook_double, s.webhook_reorder) = (loss, double, reorder));
            tokio::time::sleep(ms(&mut rng, 500, 2_500)).await;
        }
    }
}

/// A replica's way to its Redis.
async fn redis_of(replica: &Replica, weather: Weather, time: Duration) {
    let all = || replica.redis.iter().chain(&replica.sentinels);
    all().for_each(|relay| relay.set(weather));
    tokio::time::sleep(time).await;
    all().for_each(|relay| relay.set(Weather::Pass));
}
