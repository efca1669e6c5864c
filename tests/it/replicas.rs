//! Two real processes over one record: what one of them did, the other knows of.

use std::time::{Duration, Instant};

use ringfence::simulate::{Fault, FaultKind, Provider};
use tokio::task::block_in_place;

use crate::chaos::DATABASE;
use crate::support::chance::Dice;
use crate::support::fleet::{self, Fleet, Store};
use crate::support::postgres::{self, Server};
use crate::support::stage::{PATIENCE, Setup};

const DUPLICATE: &str = "x-ringfence-duplicate-of";

async fn two(server: &Server) -> Fleet {
    let setup = fleet::Setup {
        replicas: 2,
        sim: Setup::default().sim,
        postgres: (server.port, server.database_over_tcp().rsplit('/').next().unwrap().to_owned()),
        redis: Store::None,
        tables: format!("{DATABASE}\n[businesses.callers]\nmax_calls = 1"),
        limits: (5, 5, vec![("alpha".to_owned(), 3)]),
        reconcile: "sweep_ms = 150\ngrace_ms = 300",
    };
    let fleet = Fleet::set(setup, &mut Dice::new("two processes")).await;
    fleet.start().await;
    fleet
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
