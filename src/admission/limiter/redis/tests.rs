//! The limiter on real servers: each method. Outages and topologies have their own files.

mod channel;
mod outages;
pub(crate) mod server;
mod topologies;

use super::*;
use crate::admission::limiter::{Channel, Gate as _};
use crate::net::spare_port;
use crate::policy::decision::{RateLog, Slots};
use crate::policy::{Binding, Rate, Scope};
use crate::provider::secret::Secret;
use server::{Server, until};

/// Settings whose decisions may be slow: the machine is busy with other tests.
fn settings(url: &str) -> RedisSettings {
    let mut settings = RedisSettings::new(Secret::new(url)).unwrap();
    settings.timeout = Duration::from_secs(2);
    settings
}

fn pool(url: &str, pool: &str) -> RedisSettings {
    let mut settings = settings(url);
    settings.pool = pool.to_owned();
    settings
}

async fn up(settings: RedisSettings) -> RedisGate {
    let gate = RedisGate::new(settings).unwrap();
    until_up(&gate).await;
    gate
}

async fn until_up(gate: &RedisGate) {
    until("the gate is up", async || gate.health().up).await;
}

/// A server of the test's own, and a gate that is filled with nothing for epoch 1.
async fn fresh() -> (Server, RedisGate) {
    let server = Server::start(&[]).await;
    let gate = up(settings(&server.url())).await;
    gate.rebuild(1, &[], &[]).await.unwrap();
    (server, gate)
}

fn concurrent(key: &str, allowed: u32) -> Binding {
    Binding { limit: key.into(), scope: Scope::Named, key: key.to_owned(), bound: Bound::Concurrent(allowed) }
}

fn rate(key: &str, count: u32, window_ms: i64) -> Binding {
    let bound = Bound::Rate(Rate { count, window_ms });
    Binding { limit: key.into(), scope: Scope::Account, key: key.to_owned(), bound }
}

fn request(bindings: &[Binding]) -> AdmissionRequest {
    let bindings = bindings.to_vec();
    AdmissionRequest { call: CallId::new(), bindings, slots: Slots::ONE, mode: Mode::Enforce, at_ms: 0 }
}

fn held(keys: &[&str], slots: u32, since_ms: i64) -> LeaseRow {
    let keys = keys.iter().map(|key| (*key).to_owned()).collect();
    LeaseRow { call: CallId::new(), keys, slots, since_ms, over_limit: false }
}

fn admitted(slots: u32) -> Result<Decision> {
    Ok(Decision::Admitted { slots, would_reject: None })
}

fn is_unfilled<T: std::fmt::Debug>(result: Result<T>) -> bool {
    matches!(result, Err(GateError::Unfilled(_)))
}

fn is_away<T: std::fmt::Debug>(result: Result<T>) -> bool {
    matches!(result, Err(GateError::Away(_)))
}

async fn leases(gate: &RedisGate, epoch: i64) -> Vec<LeaseRow> {
    let mut held = gate.held(epoch).await.unwrap();
    held.sort_by_cached_key(|held| held.call.to_string());
    held
}

#[tokio::test]
async fn a_call_takes_its_places_once_and_gives_them_back_once() {
    let (_server, gate) = fresh().await;
    let bindings = [concurrent("a|b", 2), concurrent("a", 1), rate("cps", 100, 1000)];
    let first = request(&bindings);
    for _ in 0..2 {
        assert_eq!(gate.admit(1, &first).await, admitted(1));
    }
    let Ok(Decision::Rejected(short)) = gate.admit(1, &request(&bindings)).await else { panic!() };
    let only = leases(&gate, 1).await.pop().unwrap();
    assert_eq!((short.binding, short.current, short.lacking), (1, 1, 1));
    assert_eq!(short.oldest, [only.since_ms]);
    assert_eq!((only.call, only.slots, only.over_limit), (first.call.clone(), 1, false));
    assert_eq!(only.keys, ["a|b", "a"]);
    let counts = gate.counts(1).await.unwrap();
    assert_eq!((counts.calls, counts.over_limit, counts.by_key["a|b"], counts.by_key["a"]), (1, 0, 1, 1));
    assert_eq!(gate.release(1, &first.call).await, Ok(true));
    assert_eq!(gate.release(1, &first.call).await, Ok(false));
    assert_eq!(gate.counts(1).await, Ok(Counts::default()));
    assert_eq!(gate.health().decisions, 3);
}

#[tokio::test]
async fn decisions_go_by_the_servers_clock() {
    let (server, gate) = fresh().await;
    let servers_ms = async || {
        let (secs, micros): (i64, i64) = server.say(&["TIME"]).await;
        secs * 1000 + micros / 1000
    };
    let before = servers_ms().await;
    // The caller's clock stands in 1970, and says nothing.
    assert_eq!(gate.admit(1, &request(&[concurrent("g", 9), rate("day", 1, 86_400_000)])).await, admitted(1));
    let since = leases(&gate, 1).await[0].since_ms;
    assert!((before..=servers_ms().await).contains(&since), "{since}");
    let Ok(Decision::Rejected(short)) = gate.admit(1, &request(&[rate("day", 1, 86_400_000)])).await else { panic!() };
    let token_at = servers_ms().await + short.token_in_ms.unwrap();
    assert!((since + 86_400_101..=servers_ms().await + 86_400_101).contains(&token_at), "{token_at}");
}

/// Creates that a clock far ahead has let through say nothing of today.
#[tokio::test]
async fn a_create_of_the_far_future_counts_no_more() {
    let (_server, gate) = fresh().await;
    let log = RateLog::default().with_one(Rate { count: 1, window_ms: 1000 }, i64::MAX / 4096);
    gate.rebuild(2, &[], &[("cps".to_owned(), log)]).await.unwrap();
    assert_eq!(gate.admit(2, &request(&[rate("cps", 1, 1000)])).await, admitted(1));
}

#[tokio::test]
async fn adopting_goes_over_limits_and_replaces() {
    let (_server, gate) = fresh().await;
    let mut call = held(&["g", "old"], 1, 5);
    gate.adopt(1, &call).await.unwrap();
    gate.adopt(1, &held(&["g"], 3, 7)).await.unwrap();
    call = LeaseRow { keys: vec!["g".to_owned(), "new".to_owned()], slots: 2, since_ms: 4, over_limit: true, ..call };
    gate.adopt(1, &call).await.unwrap();
    let counts = gate.counts(1).await.unwrap();
    assert_eq!((counts.calls, counts.over_limit), (5, 2));
    assert_eq!(counts.by_key, [("g".to_owned(), 5), ("new".to_owned(), 2)].into());
    assert!(leases(&gate, 1).await.contains(&call));
}

#[tokio::test]
async fn a_forbidden_call_is_not_admitted_late() {
    let (_server, gate) = fresh().await;
    let (taken, late) = (request(&[concurrent("g", 9)]), request(&[concurrent("g", 9)]));
    assert_eq!(gate.admit(1, &taken).await, admitted(1));
    for request in [&taken, &late] {
        gate.forbid(1, &request.call).await.unwrap();
        assert!(is_away(gate.admit(1, request).await));
    }
    assert_eq!(gate.counts(1).await, Ok(Counts::default()));
}

#[tokio::test]
async fn epochs_go_upward_and_take_the_one_before_with_them() {
    let (server, gate) = fresh().await;
    let one = request(&[concurrent("g", 9)]);
    assert_eq!(gate.admit(1, &one).await, admitted(1));
    assert!(is_unfilled(gate.admit(2, &one).await), "2 was not filled yet");
    let open = [held(&["g"], 1, 3), held(&["g", "x"], 2, 4)];
    let log = |at| RateLog::default().with_one(Rate { count: 1, window_ms: 1000 }, at);
    let now_ms = crate::clock::Clock::system().now_ms();
    let rates = [("cps".to_owned(), log(1)), ("c|ps".to_owned(), log(now_ms + 500))];
    gate.rebuild(2, &open, &rates).await.unwrap();
    assert_eq!(gate.admit(1, &one).await, Err(GateError::Epoch(2)));
    assert_eq!(gate.release(1, &one.call).await, Err(GateError::Epoch(2)));
    assert_eq!(gate.rebuild(1, &[], &[]).await, Err(GateError::Epoch(2)));
    assert_eq!(gate.counts(2).await, Ok(Counts::of(&open)));
    let Ok(Decision::Rejected(short)) = gate.admit(2, &request(&[rate("c|ps", 1, 1000)])).await else { panic!() };
    assert!(short.token_in_ms.is_some(), "{short:?}");
    // Filled once more for the same epoch, as by somebody whose answer was lost: what came since stays.
    assert_eq!(gate.admit(2, &one).await, admitted(1));
    gate.rebuild(2, &open, &[]).await.unwrap();
    assert_eq!(gate.counts(2).await.unwrap().calls, 4);
    let mut names: Vec<String> = server.say(&["KEYS", "*"]).await;
    names.retain(|name| !name.contains(":probe:"));
    names.sort();
    let own = "ringfence:1:{default}:";
    let expected = ["databases", "none:2:leases", "none:2:rates", "none:epoch"];
    assert_eq!(names, expected.map(|name| format!("{own}{name}")));
}

#[tokio::test]
async fn pools_know_nothing_of_each_other() {
    let (server, gate) = fresh().await;
    let other = up(pool(&server.url(), "other")).await;
    let bindings = [concurrent("g", 1)];
    assert_eq!(gate.admit(1, &request(&bindings)).await, admitted(1));
    assert!(is_unfilled(other.admit(1, &request(&bindings)).await));
    other.rebuild(1, &[], &[]).await.unwrap();
    assert_eq!(other.admit(1, &request(&bindings)).await, admitted(1));
    assert!(RedisGate::new(pool(&server.url(), "a}b")).is_err());
}

/// A record that was begun anew under a Redis that another one has used: epochs say nothing across databases.
#[tokio::test]
async fn a_new_database_finds_nothing_of_another_ones_and_clears_what_nobody_uses() {
    let (server, gate) = fresh().await;
    let of = |database: &str| {
        let mut named = settings(&server.url());
        named.database = database.to_owned();
        named
    };
    let bindings = [concurrent("g", 1)];
    assert_eq!(gate.admit(1, &request(&bindings)).await, admitted(1));
    gate.rebuild(7, &gate.held(1).await.unwrap(), &[]).await.unwrap();
    let listens = {
        let gate = Arc::new(up(of("living")).await);
        gate.rebuild(3, &[], &[]).await.unwrap();
        let heard = gate.clone();
        (gate, tokio::spawn(async move { heard.subscribe(Box::new(|_| {})).await }))
    };
    let channel = "ringfence:1:{default}:living:news";
    until("it listens", async || server.say::<(String, i64)>(&["PUBSUB", "NUMSUB", channel]).await.1 == 1).await;
    let anew = up(of("anew")).await;
    anew.rebuild(1, &[], &[]).await.unwrap();
    assert_eq!(anew.admit(1, &request(&bindings)).await, admitted(1), "the other's lease and epoch are the other's");
    let mut names: Vec<String> = server.say(&["KEYS", "*"]).await;
    names.retain(|name| !name.contains(":probe:"));
    assert!(!names.iter().any(|name| name.contains(":none:")), "{names:?}");
    assert_eq!(listens.0.counts(3).await.map(|counts| counts.calls), Ok(0), "one that somebody listens for stays");
    // Should its replicas come back, they fill it anew.
    assert!(is_unfilled(gate.counts(7).await));
    gate.rebuild(8, &[], &[]).await.unwrap();
    assert_eq!(gate.admit(8, &request(&bindings)).await, admitted(1));
    listens.1.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_through_several_gates_never_exceed_a_limit() {
    let (server, gate) = fresh().await;
    let gates = [Arc::new(gate), Arc::new(up(settings(&server.url())).await)];
    let mut asked = tokio::task::JoinSet::new();
    for i in 0..200 {
        let gate = Arc::clone(&gates[i % 2]);
        asked.spawn(async move {
            let request = request(&[concurrent("wide", 40), concurrent("g", 17)]);
            let said = gate.admit(1, &request).await.unwrap();
            // Every third gives its place back, as a call that ends.
            let ended = i % 3 == 0 && matches!(said, Decision::Admitted { .. });
            assert!(!ended || gate.release(1, &request.call).await.unwrap());
            let counts = gate.counts(1).await.unwrap();
            assert!(counts.calls <= 17 && counts.by_key.values().all(|slots| *slots == counts.calls), "{counts:?}");
            (request, said, ended)
        });
    }
    let asked = asked.join_all().await;
    let open = asked.iter().filter(|(_, said, ended)| !ended && matches!(said, Decision::Admitted { .. })).count();
    assert_eq!(gates[0].counts(1).await.unwrap().calls as usize, open);
    assert!(open > 0);
}

#[tokio::test]
async fn fifty_thousand_leases_are_filled_read_and_counted() {
    let (_server, gate) = fresh().await;
    let keys = |i: usize| vec!["global".to_owned(), format!("business:{}", i % 1200), format!("account:{}", i % 3)];
    let mut open: Vec<_> = (0..50_000)
        .map(|i| LeaseRow {
            call: CallId::new(),
            keys: keys(i),
            slots: 1,
            since_ms: 1_790_000_000_000,
            over_limit: i % 7 == 0,
        })
        .collect();
    let since = std::time::Instant::now();
    gate.rebuild(2, &open, &[]).await.unwrap();
    println!("50,000 leases with 3 limits each were filled and published in {:?}", since.elapsed());
    open.sort_by_cached_key(|held| held.call.to_string());
    assert_eq!(gate.counts(2).await, Ok(Counts::of(&open)));
    assert!(leases(&gate, 2).await == open);
    let since = std::time::Instant::now();
    for _ in 0..200 {
        let request = request(&[concurrent("business:7", 999), concurrent("global", 60_000), rate("cps", 9_999, 1000)]);
        assert_eq!(gate.admit(2, &request).await, admitted(1));
    }
    println!("a decision beside them took {:?}, of 200 in a row", since.elapsed() / 200);
}
