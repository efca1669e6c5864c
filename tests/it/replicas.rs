//! Two real processes over one record: what one of them did, the other knows of.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ringfence_simulator::{Fault, FaultKind, Inbound, Provider, SimSettings, Via};
use serde_json::Value;
use tokio::task::block_in_place;

use crate::chaos::DATABASE;
use crate::support::chance::Dice;
use crate::support::fleet::{self, Fleet, Store};
use crate::support::postgres::{self, Server};
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
    Fleet::set(setup, &mut Dice::new("two processes")).await
}

async fn until_phase(fleet: &Fleet, phase: &str) {
    let started = Instant::now();
    loop {
        let of_all: Vec<String> = sqlx::query_scalar("SELECT phase FROM calls").fetch_all(&fleet.record).await.unwrap();
        if of_all == [phase] {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{of_all:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
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
    let metrics = fleet.replicas[0].url("admin", "/metrics").unwrap();
    let metrics = fleet.send("GET", &metrics, &[], "", PATIENCE).await.unwrap();
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    assert!(metrics.contains("\nringfence_policies_differ 1\n"), "{metrics}");
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
