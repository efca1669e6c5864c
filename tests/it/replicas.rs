//! Two real processes over one record: what one of them did, the other knows of.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ringfence_simulator::{Fault, FaultKind, Inbound, Millis, Provider, SimSettings, Via};
use serde_json::Value;
use tokio::task::block_in_place;

use crate::chaos::DATABASE;
use crate::support::child::OWN_NUMBER;
use crate::support::faults::Weather;
use crate::support::fleet::{self, Fleet, Store};
use crate::support::postgres::{self, Server};
use crate::support::rng::Rng;
use crate::support::stage::{PATIENCE, Setup};

const DUPLICATE: &str = "x-ringfence-duplicate-of";

async fn two(server: &Server) -> Fleet {
    let fleet = set(server, Setup::default().sim, 5).await;
    fleet.start().await;
    fleet
}

async fn set(server: &Server, sim: SimSettings, elevenlabs: u32) -> Fleet {
    let setup = fleet::Setup {
        replicas: 2,
        sim,
        postgres: (server.port, server.database_over_tcp().rsplit('/').next().unwrap().to_owned()),
        redis: Store::None,
        tables: format!("{DATABASE}\n[businesses.callers]\nmax_calls = 1"),
        limits: (elevenlabs, 5, vec![("alpha".to_owned(), 3)]),
        reconcile: "sweep_ms = 150\nlist_lag_ms = 300",
    };
    Fleet::set(setup, &mut Rng::new("two processes")).await
}

async fn until_phase(fleet: &Fleet, phase: &str) {
    let started = Instant::now();
    loop {
        let of_all: Vec<String> = sqlx::query_scalar("SELECT phase FROM calls").fetch_all(&fleet.record).await.unwrap();
        if of_all.iter().all(|of_one| of_one == phase) && !of_all.is_empty() {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{of_all:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until the first replica has sent a heartbeat.
async fn heartbeat(fleet: &Fleet) {
    let sql = "SELECT beat_at FROM replicas ORDER BY id LIMIT 1";
    let read = async || sqlx::query_scalar::<_, i64>(sql).fetch_one(&fleet.record).await.unwrap();
    let (before, started) = (read().await, Instant::now());
    while read().await == before {
        assert!(started.elapsed() < PATIENCE, "it sends no heartbeat");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Its app was told that the outcome is unknown. Whatever has been found out since, by whom, an order that comes again is that one,
/// wherever it comes, until somebody has told it so.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_of_unknown_outcome_comes_again_elsewhere_after_it_was_settled() {
    if postgres::is_missing() {
        return;
    }
    let server = block_in_place(Server::start);
    for provider in [Provider::ElevenLabs, Provider::Twilio] {
        for ends in [false, true] {
            let fleet = two(&server).await;
            fleet.control.fault(Fault::next(provider, FaultKind::AcceptThenDrop, 1));
            let order = async |n: usize| match provider {
                Provider::ElevenLabs => fleet.dial(n, "alpha", "+15550002001", None, PATIENCE).await.unwrap(),
                Provider::Twilio => fleet.talk(n, "alpha", "+15550002001", None, PATIENCE).await.unwrap(),
            };
            let first = order(0).await;
            assert!(matches!(first.status, 424 | 504), "{first:?}");
            if ends {
                fleet.end_all();
            }
            until_phase(&fleet, if ends { "ended" } else { "live" }).await;
            let again = order(1).await;
            assert!(again.header(DUPLICATE).is_some(), "{provider:?}, over: {ends}: {again:?}");
            assert_eq!(fleet.control.calls().len(), 1, "{provider:?}, over: {ends}");
            // Now its app knows: an equal order is another call.
            let other = order(0).await;
            assert!(other.header(DUPLICATE).is_none() && other.status < 300, "{other:?}");
            assert_eq!(fleet.control.calls().len(), 2);
            fleet.end_all();
            fleet.stop().await;
            fleet.done().await;
        }
    }
}

/// Its app was told that the outcome is unknown, and sends the order again twice at once: both are that order.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_of_unknown_outcome_that_comes_again_twice_at_once_is_one_call() {
    if postgres::is_missing() {
        return;
    }
    let server = block_in_place(Server::start);
    let fleet = two(&server).await;
    for n in 0..10 {
        let to = format!("+1555000300{n}");
        fleet.control.fault(Fault::next(Provider::ElevenLabs, FaultKind::AcceptThenDrop, 1));
        let order = async || fleet.dial(0, "alpha", &to, None, PATIENCE).await.unwrap();
        let first = order().await;
        assert_eq!(first.status, 424, "{first:?}");
        let again = tokio::join!(order(), order());
        for one in [&again.0, &again.1] {
            assert!(one.header(DUPLICATE).is_some(), "{one:?}");
        }
        assert_eq!(fleet.control.calls().len(), n + 1);
        fleet.end_all();
        until_phase(&fleet, "ended").await;
    }
    fleet.stop().await;
    fleet.done().await;
}

/// A replica tells its app that the outcome is unknown and cannot record that it did. The order comes again elsewhere as soon as
/// the database is back: whether that replica was heard or not, nobody dials again.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_comes_again_elsewhere_before_its_replica_could_record_what_it_said() {
    if postgres::is_missing() {
        return;
    }
    let server = block_in_place(Server::start);
    let fleet = two(&server).await;
    for (n, ends) in [false, true].into_iter().enumerate() {
        let to = format!("+1555000400{n}");
        fleet.control.fault(Fault { ms: 8_000, ..Fault::next(Provider::ElevenLabs, FaultKind::Slow, 1) });
        // Its next heartbeat comes just before it answers, and is the last that the database gets of it.
        heartbeat(&fleet).await;
        let first = fleet.dial(0, "alpha", &to, None, PATIENCE);
        let trouble = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if ends {
                fleet.end_all();
            }
            heartbeat(&fleet).await;
            fleet.replicas[0].postgres.set(Weather::BlackHole);
        };
        let (first, ()) = tokio::join!(first, trouble);
        assert!(matches!(first.as_ref().unwrap().status, 424 | 504), "{first:?}");
        fleet.replicas[0].postgres.set(Weather::Pass);
        let again = fleet.dial(1, "alpha", &to, None, PATIENCE).await.unwrap();
        assert!(again.header(DUPLICATE).is_some(), "over: {ends}: {again:?}");
        assert_eq!(fleet.control.calls().len(), n + 1, "over: {ends}");
        fleet.end_all();
        until_phase(&fleet, "ended").await;
    }
    fleet.stop().await;
    fleet.done().await;
}

/// The `/status` of both, once they are as wanted.
async fn statuses(fleet: &Fleet, what: &str, wanted: impl Fn(&Value) -> bool) -> [Value; 2] {
    let started = Instant::now();
    loop {
        let both = [fleet.status(0).await.unwrap(), fleet.status(1).await.unwrap()];
        if both.iter().all(&wanted) {
            return both;
        }
        assert!(started.elapsed() < PATIENCE, "it does not happen: {what}\n{both:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// One was reloaded and the other was not: any of them says so, and of each limit the lower one holds. What a provider says of its live
/// calls any of them shows, whoever asked.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_on_different_policies_say_so_and_hold_the_lower_limit() {
    if postgres::is_missing() {
        return;
    }
    let server = block_in_place(Server::start);
    let fleet = two(&server).await;
    let dial = async |to: &str| fleet.dial(0, "alpha", to, None, PATIENCE).await.unwrap();
    let policies = |status: &Value| {
        let all = status["replicas"].as_array().unwrap().iter();
        all.map(|one| (one["policy"].as_str().map(str::to_owned), one["policySince"].is_string()))
            .collect::<BTreeSet<_>>()
    };
    let agree = |status: &Value| {
        status["policiesDiffer"] == false
            && status["replicas"].as_array().unwrap().len() == 2
            && policies(status).len() == 1
    };
    let differ = |status: &Value| status["policiesDiffer"] == true && policies(status).len() == 2;
    statuses(&fleet, "they know of each other", agree).await;
    let file = fleet.replicas[1].folder.join("ringfence.toml");
    let written = std::fs::read_to_string(&file).unwrap();
    let lower = written.replacen("max_calls = 3", "max_calls = 1", 1);
    assert_ne!(written, lower);
    std::fs::write(&file, lower).unwrap();
    fleet.replicas[1].signal("HUP");
    let [one, _] = statuses(&fleet, "they say that they differ", differ).await;
    let leads: Vec<_> = one["replicas"].as_array().unwrap().iter().map(|one| one["leads"] == true).collect();
    assert_eq!(leads, [true, false]);
    for (replica, leads) in fleet.replicas.iter().zip([true, false]) {
        let metrics = replica.url("admin", "/metrics").unwrap();
        let metrics = fleet.send("GET", &metrics, &[], "", PATIENCE).await.unwrap();
        let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
        assert!(metrics.contains("\nringfence_policies_differ 1\n"), "{metrics}");
        assert_eq!(metrics.contains("\nplatform_global_active_calls "), leads, "the leader alone: {metrics}");
    }
    assert!(fleet.replicas[0].log().contains("replicas have different policies"));
    assert_eq!(dial("+15550002001").await.status, 200);
    let refused = dial("+15550002002").await;
    assert_eq!((refused.status, refused.header("x-ringfence-limit")), (503, Some("business.alpha")), "{refused:?}");
    assert_eq!(refused.json()["limit"], 1);
    // The same policy again: what it allows counts.
    std::fs::write(&file, &written).unwrap();
    fleet.replicas[1].signal("HUP");
    statuses(&fleet, "they agree again", agree).await;
    assert_eq!(dial("+15550002002").await.status, 200);
    let sees_both = |status: &Value| {
        let account = status["accounts"].as_array().unwrap().iter().find(|a| a["name"] == "elevenlabs").unwrap();
        account["providerLive"] == 2 && account["sweptAt"].is_string()
    };
    statuses(&fleet, "both show what the provider says", sees_both).await;
    fleet.end_all();
    fleet.stop().await;
    fleet.done().await;
}

/// A caller is over capacity and talks already. Whoever acknowledged that has put the hang-up on record first: it dies before it hangs
/// up, and the other does, whichever of the two leads.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_caller_is_hung_up_by_another_replica_if_the_first_dies() {
    if postgres::is_missing() {
        return;
    }
    let server = block_in_place(Server::start);
    for (dies, lives) in [(1, 0), (0, 1)] {
        let fleet = set(&server, SimSettings { el_seed_events: true, ..Setup::default().sim }, 1).await;
        for n in [0, 1] {
            let fail = if n == dies { "hangup.sending=abort" } else { "" };
            assert!(fleet.replicas[n].start(fail).await, "{}", fleet.replicas[n].last_lines());
        }
        assert_eq!(fleet.dial(lives, "alpha", "+15550002001", None, PATIENCE).await.unwrap().status, 200);
        // From now on webhooks come to the one that dies.
        fleet.replicas[lives].up.store(false, Ordering::Relaxed);
        let caller = Inbound {
            to: "+15550001101".to_owned(),
            from: "+15550003301".to_owned(),
            via: Via::Native,
            agent_id: Some("agent_alpha".to_owned()),
        };
        // Where the other finds the caller at the provider before the webhook is there, it refuses that one, and another calls.
        let started = Instant::now();
        let sid = 'dead: loop {
            let sid = fleet.control.inbound(&caller).unwrap().call_sid.unwrap();
            while fleet.control.call(&sid).unwrap().outcome.is_none() {
                if fleet.replicas[dies].dead().is_some() {
                    break 'dead sid;
                }
                assert!(started.elapsed() < PATIENCE, "it does not die:\n{}", fleet.replicas[dies].last_lines());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let died = Instant::now();
        fleet.replicas[lives].up.store(true, Ordering::Relaxed);
        assert!(fleet.control.wait_call(PATIENCE, &sid, |call| call.outcome.is_some()).await);
        let took = died.elapsed();
        eprintln!(
            "a refused caller is hung up {} ms after its replica's death (the other leads: {})",
            took.as_millis(),
            lives == 0
        );
        assert!(took < Duration::from_secs(30), "{took:?}");
        fleet.replicas[dies].kill();
        fleet.end_all();
        fleet.stop().await;
        fleet.done().await;
    }
}

/// Whichever replica is asked, all of them let calls through, and refuse again when it is off.
#[tokio::test(flavor = "multi_thread")]
async fn a_bypass_holds_at_every_replica() {
    if postgres::is_missing() {
        return;
    }
    let server = block_in_place(Server::start);
    let fleet = two(&server).await;
    let dial = async |to: &str| fleet.dial(1, "alpha", to, None, PATIENCE).await.unwrap().status;
    for to in ["+15550002001", "+15550002002", "+15550002003"] {
        assert_eq!(dial(to).await, 200);
    }
    assert_eq!(dial("+15550002004").await, 503, "the limit of alpha is three");
    let config = fleet.replicas[0].folder.join("ringfence.toml").display().to_string();
    let bypass = async |args: &[&str]| {
        let mut all = vec!["bypass", "-c", &config];
        all.extend(args);
        let (code, out, err) = block_in_place(|| crate::cli::run(&all));
        assert_eq!(code, Some(0), "{out}{err}");
    };
    bypass(&["on", "--for", "1h", "--reason", "test"]).await;
    statuses(&fleet, "both know of it", |status| status["bypass"]["reason"] == "test").await;
    assert_eq!(dial("+15550002005").await, 200);
    bypass(&["off"]).await;
    statuses(&fleet, "both know of its end", |status| status["bypass"].is_null()).await;
    assert_eq!(dial("+15550002006").await, 503);
    fleet.end_all();
    fleet.stop().await;
    fleet.done().await;
}

/// Every replica is replaced, one after the other, by what a rollout does: it gets no new requests, SIGTERM, and the next one starts.
/// Meanwhile apps place calls and providers post webhooks: no create is refused by ringfence, each call is placed once, and the record
/// has the end of every call, from a webhook or the provider.
#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_under_load_refuses_nothing_and_loses_no_webhook() {
    if postgres::is_missing() {
        return;
    }
    const APPS: usize = 4;
    /// Calls that are placed before a replica is replaced, and after it.
    const CALLS: usize = 12;
    let server = block_in_place(Server::start);
    let sim = SimSettings { talk_ms: Millis::between(100, 800), ..Setup::default().sim };
    let setup = fleet::Setup {
        replicas: 3,
        sim,
        postgres: (server.port, server.database_over_tcp().rsplit('/').next().unwrap().to_owned()),
        redis: Store::None,
        tables: DATABASE.to_owned(),
        limits: (500, 500, vec![("alpha".to_owned(), 500), ("callers".to_owned(), 500)]),
        reconcile: "sweep_ms = 150\nlist_lag_ms = 300",
    };
    let fleet = Fleet::set(setup, &mut Rng::new("a rollout")).await;
    for replica in fleet.replicas.iter() {
        // A machine with much else to do is slow, and that is not what is asked here.
        let file = replica.folder.join("ringfence.toml");
        let mut text = std::fs::read_to_string(&file).unwrap();
        for (short, long) in [
            ("create_secs = 2", "create_secs = 60"),
            ("create_read_secs = 5", "create_read_secs = 60"),
            ("send_within_secs = 2", "send_within_secs = 60"),
            ("drain_secs = 2", "drain_secs = 60"),
            ("provider_query_secs = 2", "provider_query_secs = 20"),
            ("reserved_secs = 5", "reserved_secs = 90"),
            ("statement_timeout_ms = 2000", "statement_timeout_ms = 60000"),
        ] {
            assert!(text.contains(short), "{short}");
            text = text.replace(short, long);
        }
        std::fs::write(&file, text).unwrap();
    }
    fleet.start().await;
    let (placed, rolling) = (AtomicUsize::new(0), AtomicBool::new(true));
    let (placed, rolling) = (&placed, &rolling);
    let app = async |app: usize| {
        let mut turn = app;
        for n in 0.. {
            if !rolling.load(Ordering::Relaxed) {
                break;
            }
            let (to, key) = (format!("+1555{app}{n:05}7"), format!("order-{app}-{n}"));
            // Whom the app's balancer has; a connection that breaks is tried again at another, with the same key.
            loop {
                turn += 1;
                let at = turn % fleet.replicas.len();
                if !fleet.replicas[at].up.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    continue;
                }
                let answer = match app % 2 {
                    0 => fleet.dial(at, "alpha", &to, Some(&key), PATIENCE).await,
                    _ => fleet.talk(at, "alpha", &to, Some(&key), PATIENCE).await,
                };
                match answer {
                    None => {}
                    Some(answer) if answer.status < 300 => break,
                    Some(answer) => panic!("refused at {at}: {answer:?}\n{}", fleet.replicas[at].last_lines()),
                }
            }
            placed.fetch_add(1, Ordering::Relaxed);
            let (to, from) = (OWN_NUMBER.to_owned(), format!("+1556{app}{n:05}7"));
            fleet.control.inbound(&Inbound { to, from, via: Via::Twilio, agent_id: None });
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    };
    let more = async || {
        let (before, started) = (placed.load(Ordering::Relaxed), Instant::now());
        while placed.load(Ordering::Relaxed) < before + CALLS {
            assert!(started.elapsed() < 2 * PATIENCE, "no calls are placed");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let rollout = async {
        more().await;
        for replica in fleet.replicas.iter() {
            replica.stop().await;
            more().await;
            assert!(replica.start("").await, "{}", replica.last_lines());
            more().await;
        }
        rolling.store(false, Ordering::Relaxed);
    };
    tokio::join!(rollout, futures_util::future::join_all((0..APPS).map(app)));
    let started = Instant::now();
    // Whoever hangs up before the webhook is sent was never known.
    while fleet.control.calls().iter().any(|call| call.arriving) {
        assert!(started.elapsed() < PATIENCE, "callers wait for an answer");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    loop {
        fleet.end_all();
        let sql = "SELECT count(*) FROM calls WHERE phase <> 'ended'";
        let open: i64 = sqlx::query_scalar(sql).fetch_one(&fleet.record).await.unwrap();
        let sql = "SELECT count(*) FROM webhook_events WHERE outcome IS NULL";
        let waiting: i64 = sqlx::query_scalar(sql).fetch_one(&fleet.record).await.unwrap();
        if open == 0 && waiting == 0 && fleet.control.calls().iter().all(|call| !call.live && !call.arriving) {
            break;
        }
        assert!(started.elapsed() < 2 * PATIENCE, "{open} calls are open, {waiting} webhooks wait");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Each order dialled once; every call is on record.
    let calls = fleet.control.calls();
    let outbound = calls.iter().filter(|call| !call.inbound);
    let numbers: BTreeSet<_> = outbound.clone().map(|call| call.to.clone()).collect();
    assert_eq!((numbers.len(), outbound.count()), (placed.load(Ordering::Relaxed), numbers.len()));
    for call in &calls {
        let ids: Vec<String> = call.call_sid.iter().chain(&call.conversation_id).cloned().collect();
        let sql = "SELECT count(*) FROM call_aliases WHERE call_id IS NOT NULL AND id = ANY($1)";
        let known: i64 = sqlx::query_scalar(sql).bind(&ids).fetch_one(&fleet.record).await.unwrap();
        assert!(known > 0, "nobody knows {ids:?}\n{}", fleet.traces(&ids));
    }
    // What was acknowledged is in the inbox.
    let acknowledged = fleet.acknowledged.lock().unwrap().clone();
    assert!(!acknowledged.is_empty());
    for webhook in acknowledged.iter().filter(|webhook| !webhook.body.is_empty()) {
        let sql = "SELECT count(*) FROM webhook_events WHERE body = $1";
        let kept: i64 = sqlx::query_scalar(sql).bind(&webhook.body[..]).fetch_one(&fleet.record).await.unwrap();
        assert!(kept > 0, "a webhook is lost that replica {} acknowledged: {webhook:?}", webhook.by);
    }
    fleet.stop().await;
    fleet.done().await;
}
