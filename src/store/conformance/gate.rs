//! The database as arbiter: records under an epoch, its own decisions, moves.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::*;
use crate::policy::decision::{RateLog, Slots, keys};
use crate::policy::{Mode, OnOutage, OnUnknownBusiness, PolicySettings, Rate, WhenFull};

/// So many calls at once, and a rate.
pub(in crate::store) fn policy(concurrent: u32, rate: Option<Rate>) -> Arc<Policy> {
    let settings = PolicySettings {
        mode: Mode::Enforce,
        concurrent: Some(concurrent),
        rate,
        accounts: vec![],
        plans: BTreeMap::new(),
        limits: vec![],
        businesses: vec![],
        rules: None,
        unknown: OnUnknownBusiness::Reject,
        contradictions: Default::default(),
        demo: false,
        on_outage: OnOutage::default(),
        transcripts: Default::default(),
        destinations: Default::default(),
        when_full: WhenFull::Busy,
    };
    Arc::new(Policy::new(settings, &[]))
}

pub(in crate::store) fn request(call: &NewCall, policy: &Policy) -> AdmissionRequest {
    AdmissionRequest {
        call: call.id.clone(),
        bindings: policy.bindings(&call.attributes),
        slots: Slots::ONE,
        mode: Mode::Enforce,
        at_ms: call.at_ms,
    }
}

async fn admit(store: &Arc<dyn Store>, call: &NewCall, policy: &Policy, epoch: i64) -> AdmitOutcome {
    store.admit(call.clone(), request(call, policy), epoch).await.unwrap()
}

fn new(slots: u32) -> AdmitOutcome {
    AdmitOutcome::New { slots, would_reject: None, early: None }
}

/// A store that decides itself, at epoch 2.
async fn deciding(fresh: &impl Fresh, policy: &Arc<Policy>) -> Arc<dyn Store> {
    let store = fresh.open().await;
    store.bump_epoch(1, 0, GateMode::Database, policy.clone(), 0).await.unwrap().unwrap();
    store
}

fn state(epoch: i64, mode: GateMode) -> GateState {
    GateState { epoch, mode }
}

pub(in crate::store) async fn a_call_is_put_on_record_under_the_pools_epoch_alone(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let identity = store.identity().await.unwrap();
    assert_eq!(identity.len(), 16, "{identity}");
    assert_eq!(store.gate_state().await.unwrap(), state(1, GateMode::Memory));
    let [first, late, second, anyway] = [(); 4].map(|()| new_call(&[]));
    assert_eq!(store.insert_call(first.clone(), Some(1)).await.unwrap(), InsertOutcome::New(None));
    let moved = store.bump_epoch(1, 0, GateMode::Redis, policy(5, None), 2000).await.unwrap().unwrap();
    assert_eq!(moved.state, state(2, GateMode::Redis));
    assert_eq!(store.gate_state().await.unwrap(), moved.state);
    assert_eq!(store.insert_call(late.clone(), Some(1)).await.unwrap(), InsertOutcome::Outdated(moved.state));
    assert_eq!(store.call(&late.id).await.unwrap(), None, "nothing was written");
    assert_eq!(store.insert_call(late.clone(), Some(3)).await.unwrap(), InsertOutcome::Outdated(moved.state));
    assert_eq!(store.insert_call(second, Some(2)).await.unwrap(), InsertOutcome::New(None));
    assert_eq!(store.insert_call(anyway, None).await.unwrap(), InsertOutcome::New(None));
    assert_eq!(
        store.bump_epoch(1, 0, GateMode::Database, policy(5, None), 3000).await.unwrap(),
        None,
        "who comes late"
    );
    assert_eq!(store.gate_state().await.unwrap(), moved.state);
    assert_eq!(store.open_calls().await.unwrap().len(), 3);
    let moved = store.bump_epoch(2, 1, GateMode::Redis, policy(5, None), 3000).await.unwrap().unwrap();
    assert_eq!(moved.state, state(3, GateMode::Redis), "below the next one");
    let moved = store.bump_epoch(3, 41, GateMode::Redis, policy(5, None), 4000).await.unwrap().unwrap();
    assert_eq!(moved.state, state(41, GateMode::Redis), "above the next one");
    store.close().await;
    let again = fresh.open().await;
    assert_eq!(again.gate_state().await.unwrap(), moved.state, "a restart is no move");
    assert_eq!(again.identity().await.unwrap(), identity, "nor another record");
}

pub(in crate::store) async fn a_call_counts_from_when_it_is_confirmed(fresh: &impl Fresh) {
    let policy = policy(1, None);
    let store = deciding(fresh, &policy).await;
    let heard = NewCall { origin: Origin::Unconfirmed, phase: Phase::Live, ..new_call(&[("conversation_id", "c1")]) };
    let [confirmed, over] = [heard.clone(), NewCall { id: CallId::new(), aliases: vec![], ..heard }];
    for call in [&confirmed, &over] {
        assert_eq!(store.insert_call(call.clone(), None).await.unwrap(), InsertOutcome::New(None));
    }
    assert_eq!((store.leases().await.unwrap(), store.open_calls().await.unwrap().len()), (vec![], 2));
    let moved = store.bump_epoch(2, 0, GateMode::Database, policy.clone(), 2000).await.unwrap().unwrap();
    assert_eq!(moved.held, [], "a move counts it in no limit");
    let ordered = new_call(&[]);
    assert_eq!(admit(&store, &ordered, &policy, 3).await, new(1), "the only place is free");
    store.apply(change(&ordered.id, END)).await.unwrap();
    let keys = keys(&policy.bindings(&confirmed.attributes));
    let late = store.confirm(&confirmed.id, keys.clone(), Some(2)).await.unwrap();
    assert_eq!((late, store.leases().await.unwrap().len()), (ConfirmOutcome::Outdated(moved.state), 0));
    assert_eq!(store.confirm(&confirmed.id, keys.clone(), Some(3)).await.unwrap(), ConfirmOutcome::Now);
    assert_eq!(store.confirm(&confirmed.id, keys.clone(), None).await.unwrap(), ConfirmOutcome::Before);
    store.apply(change(&over.id, END)).await.unwrap();
    for call in [&over.id, &CallId::new()] {
        assert_eq!(store.confirm(call, keys.clone(), None).await.unwrap(), ConfirmOutcome::Before);
    }
    let held = store.leases().await.unwrap();
    assert_eq!(held.iter().map(|held| (&held.call, &held.keys)).collect::<Vec<_>>(), [(&confirmed.id, &keys)]);
    assert!(matches!(admit(&store, &new_call(&[]), &policy, 3).await, AdmitOutcome::Rejected(_)));
    assert_eq!(store.call(&confirmed.id).await.unwrap().unwrap().origin, Origin::Foreign);
}

pub(in crate::store) async fn the_database_decides_in_its_own_mode_and_epoch(fresh: &impl Fresh) {
    let (store, policy) = (fresh.open().await, policy(2, None));
    let call = new_call(&[]);
    assert_eq!(admit(&store, &call, &policy, 1).await, AdmitOutcome::Outdated(state(1, GateMode::Memory)));
    store.bump_epoch(1, 0, GateMode::Database, policy.clone(), 0).await.unwrap();
    assert_eq!(admit(&store, &call, &policy, 1).await, AdmitOutcome::Outdated(state(2, GateMode::Database)));
    assert_eq!(admit(&store, &call, &policy, 3).await, AdmitOutcome::Outdated(state(2, GateMode::Database)));
    assert_eq!(store.latest_calls(9).await.unwrap(), []);
    assert_eq!(admit(&store, &call, &policy, 2).await, new(1));
    let record = store.call(&call.id).await.unwrap().unwrap();
    assert_eq!((record.attributes, record.phase, record.admitted_at), (call.attributes.clone(), call.phase, 1000));
    assert_eq!((record.deadline_at, record.slots), (Some(91_000), 1));
    store.bump_epoch(2, 0, GateMode::Redis, policy.clone(), 0).await.unwrap();
    assert_eq!(admit(&store, &new_call(&[]), &policy, 2).await, AdmitOutcome::Outdated(state(3, GateMode::Redis)));
}

pub(in crate::store) async fn a_full_limit_refuses_until_a_call_has_ended(fresh: &impl Fresh) {
    let policy = policy(3, None);
    let store = deciding(fresh, &policy).await;
    let calls = [1000, 2000].map(|at_ms| NewCall { at_ms, ..new_call(&[]) });
    for call in &calls {
        assert_eq!(admit(&store, call, &policy, 2).await, new(1));
    }
    // What exists anyway is counted with the others.
    let keys = keys(&policy.bindings(&calls[0].attributes));
    let over_limit = NewCall { over_limit: true, at_ms: 1500, keys, ..new_call(&[]) };
    store.insert_call(over_limit.clone(), None).await.unwrap();
    let refused = NewCall { at_ms: 3000, ..new_call(&[("call_sid", "CA1")]) };
    let short = Shortfall { binding: 0, current: 3, lacking: 1, token_in_ms: None, oldest: vec![1000, 1500, 2000] };
    assert_eq!(admit(&store, &refused, &policy, 2).await, AdmitOutcome::Rejected(short.clone()));
    assert_eq!(store.resolve(&refused.aliases).await.unwrap(), None, "a refusal leaves no trace");
    assert_eq!(store.open_calls().await.unwrap().len(), 3);
    let observed = AdmissionRequest { mode: Mode::Observe, ..request(&refused, &policy) };
    let would = AdmitOutcome::New { slots: 1, would_reject: Some(short), early: None };
    assert_eq!(store.admit(refused.clone(), observed, 2).await.unwrap(), would);
    for call in [&over_limit, &refused] {
        store.apply(change(&call.id, END)).await.unwrap();
    }
    assert_eq!(admit(&store, &new_call(&[]), &policy, 2).await, new(1));
    let held = store.leases().await.unwrap();
    assert_eq!(held.iter().map(|held| held.slots).sum::<u32>(), 3);
}

pub(in crate::store) async fn an_order_for_many_gets_what_is_free_and_holds_it(fresh: &impl Fresh) {
    let policy = policy(10, None);
    let store = deciding(fresh, &policy).await;
    let many = |slots| {
        let call = new_call(&[]);
        let request = AdmissionRequest { slots, ..request(&call, &policy) };
        store.admit(call, request, 2)
    };
    assert_eq!(many(Slots::up_to(7)).await.unwrap(), new(7));
    let AdmitOutcome::Rejected(short) = many(Slots::exactly(4)).await.unwrap() else { panic!("4 of 3") };
    // When a batch ends is not known: it is none of the oldest.
    assert_eq!((short.current, short.lacking, short.oldest), (7, 1, vec![]));
    assert_eq!(many(Slots::up_to(7)).await.unwrap(), new(3));
    let slots: Vec<u32> = store.open_calls().await.unwrap().iter().map(|call| call.slots).collect();
    assert_eq!(slots.iter().sum::<u32>(), 10);
    assert_eq!(store.leases().await.unwrap().iter().map(|held| held.slots).sum::<u32>(), 10);
}

pub(in crate::store) async fn a_rate_gives_out_its_tokens_whoever_asks(fresh: &impl Fresh) {
    let rate = Rate { count: 2, window_ms: 10_000 };
    let policy = policy(100, Some(rate));
    let store = deciding(fresh, &policy).await;
    let at = |at_ms| NewCall { at_ms, ..new_call(&[]) };
    for at_ms in [1000, 1000] {
        assert_eq!(admit(&store, &at(at_ms), &policy, 2).await, new(1));
    }
    let AdmitOutcome::Rejected(short) = admit(&store, &at(1001), &policy, 2).await else { panic!("a third token") };
    assert_eq!(short.token_in_ms, Some(10_100));
    // What the rates have given out outlives a move, and a restart.
    let moved = store.bump_epoch(2, 0, GateMode::Database, policy.clone(), 1001).await.unwrap().unwrap();
    let [(_, log)] = &moved.rates[..] else { panic!("{:?}", moved.rates) };
    assert_eq!(*log, RateLog::default().with_one(rate, 1000).with_one(rate, 1000));
    store.close().await;
    let store = fresh.open().await;
    let AdmitOutcome::Rejected(short) = admit(&store, &at(11_100), &policy, 3).await else { panic!("a third token") };
    assert_eq!(short.token_in_ms, Some(1));
    assert_eq!(admit(&store, &at(11_101), &policy, 3).await, new(1));
    // Where nothing was sent within the window, the rates are full again; a call that exists anyway takes no token.
    let over_limit = NewCall { over_limit: true, at_ms: 100_000, ..new_call(&[]) };
    store.insert_call(over_limit, None).await.unwrap();
    let foreign = NewCall { origin: Origin::Foreign, at_ms: 100_000, ..new_call(&[]) };
    store.insert_call(foreign, None).await.unwrap();
    let moved = store.bump_epoch(3, 0, GateMode::Database, policy.clone(), 100_000).await.unwrap().unwrap();
    assert_eq!(moved.rates, []);
    assert_eq!(fresh.number("SELECT count(*) FROM gate_rates").await, 0);
    for _ in 0..2 {
        assert_eq!(admit(&store, &at(100_000), &policy, 4).await, new(1));
    }
}

pub(in crate::store) async fn what_is_known_comes_before_a_full_limit(fresh: &impl Fresh) {
    let policy = policy(1, None);
    let store = deciding(fresh, &policy).await;
    let sid = Alias::new("call_sid", "CA1").unwrap();
    store.keep_early(vec![sid.clone()], END, None, 1).await.unwrap();
    let first = new_call(&[("call_sid", "CA1"), (KEY_KIND, "k")]);
    let with_news = AdmitOutcome::New { slots: 1, would_reject: None, early: Some(END) };
    assert_eq!(admit(&store, &first, &policy, 2).await, with_news);
    // Asked again, after a time-out: it is on record.
    assert_eq!(admit(&store, &first, &policy, 2).await, new(1));
    let again = new_call(&[(KEY_KIND, "k")]);
    assert_eq!(admit(&store, &again, &policy, 2).await, AdmitOutcome::Known(first.id.clone()));
    assert!(matches!(admit(&store, &new_call(&[]), &policy, 2).await, AdmitOutcome::Rejected(_)));

    let none = Event::Ended(Outcome::NotCreated, EndProof::Provider);
    store.apply(change(&first.id, none)).await.unwrap();
    assert_eq!(admit(&store, &first, &policy, 2).await, AdmitOutcome::Known(first.id.clone()), "it is over");
    // Its key is free again: for who is admitted.
    let other = new_call(&[]);
    assert_eq!(admit(&store, &other, &policy, 2).await, new(1));
    assert!(matches!(admit(&store, &again, &policy, 2).await, AdmitOutcome::Rejected(_)));
    let key = [Alias::new(KEY_KIND, "k").unwrap()];
    assert_eq!(store.resolve(&key).await.unwrap(), Some(first.id.clone()));
    store.apply(change(&other.id, END)).await.unwrap();
    assert_eq!(admit(&store, &again, &policy, 2).await, new(1));
    assert_eq!(store.resolve(&key).await.unwrap(), Some(again.id.clone()));
    assert_eq!(store.resolve(&[sid]).await.unwrap(), Some(first.id));
    // The second record of a call has the ids of the first, and its client knows as little.
    fresh.execute(&format!("UPDATE calls SET undelivered = true WHERE id = '{}'", again.id)).await;
    store.apply(change(&again.id, END)).await.unwrap();
    let second = new_call(&[(crate::provider::description::OWN_ID_KIND, again.id.as_str())]);
    assert_eq!(admit(&store, &second, &policy, 2).await, new(1));
    assert_eq!(store.resolve(&key).await.unwrap(), Some(second.id.clone()));
    let undelivered = format!("SELECT count(*) FROM calls WHERE undelivered AND id = '{}'", second.id);
    assert_eq!(fresh.number(&undelivered).await, 1);
}

pub(in crate::store) async fn a_move_counts_every_open_call_by_the_new_policy(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let mut calls = Vec::new();
    for at_ms in 1..=4 {
        let call = NewCall { at_ms, keys: vec!["{an \"older\", key}".to_owned()], ..new_call(&[]) };
        store.insert_call(call.clone(), Some(1)).await.unwrap();
        calls.push(call);
    }
    store.apply(change(&calls[3].id, END)).await.unwrap();
    // As a version wrote it that knew of no keys.
    fresh.execute("UPDATE calls SET keys = NULL WHERE admitted_at = 2").await;
    let before: Vec<usize> = store.leases().await.unwrap().iter().map(|held| held.keys.len()).collect();
    assert_eq!(before, [1, 0, 1]);

    let policy = policy(3, None);
    let moved = store.bump_epoch(1, 0, GateMode::Database, policy.clone(), 10).await.unwrap().unwrap();
    let held: Vec<LeaseRow> = calls[..3]
        .iter()
        .map(|call| LeaseRow {
            call: call.id.clone(),
            keys: keys(&policy.bindings(&call.attributes)),
            slots: 1,
            since_ms: call.at_ms,
            over_limit: false,
        })
        .collect();
    assert_eq!(moved.held, held);
    assert_eq!(store.leases().await.unwrap(), held);
    assert!(matches!(
        admit(&store, &new_call(&[]), &policy, 2).await,
        AdmitOutcome::Rejected(Shortfall { current: 3, .. })
    ));
    // And again, where nothing is different.
    let moved = store.bump_epoch(2, 0, GateMode::Redis, policy, 10).await.unwrap().unwrap();
    assert_eq!((moved.held, moved.rates), (held, vec![]));
}

pub(in crate::store) async fn of_many_at_once_as_many_are_admitted_as_there_are_places(fresh: &impl Fresh) {
    let policy = policy(5, None);
    let store = deciding(fresh, &policy).await;
    for round in 1..=5 {
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..32 {
            let (store, policy) = (store.clone(), policy.clone());
            // Some come twice.
            let call = new_call(&[(KEY_KIND, &format!("{round} {}", n % 24))]);
            tasks.spawn(async move { (call.id.clone(), admit(&store, &call, &policy, 2).await) });
        }
        let decided = tasks.join_all().await;
        let admitted: Vec<&CallId> =
            decided.iter().filter(|(_, d)| matches!(d, AdmitOutcome::New { .. })).map(|(id, _)| id).collect();
        assert_eq!(admitted.len(), 5, "{decided:?}");
        for (id, decided) in &decided {
            match decided {
                AdmitOutcome::New { .. } => {}
                AdmitOutcome::Known(other) => assert!(admitted.contains(&other) && id != other),
                AdmitOutcome::Rejected(short) => assert_eq!((short.current, short.lacking), (5, 1)),
                AdmitOutcome::Outdated(state) => panic!("{state:?}"),
            }
        }
        assert_eq!(store.open_calls().await.unwrap().len(), 5);
        for id in admitted {
            store.apply(change(id, END)).await.unwrap();
        }
    }
}

pub(in crate::store) async fn moves_under_load_lose_no_call_and_let_none_in_over_a_limit(fresh: &impl Fresh) {
    const LIMIT: u32 = 4;
    let policy = policy(LIMIT, None);
    let store = deciding(fresh, &policy).await;
    let (over, admitted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (store, policy, over, admitted) = (store.clone(), policy.clone(), over.clone(), admitted.clone());
        tasks.spawn(async move {
            let mut epoch = 2;
            while !over.load(Ordering::Relaxed) {
                let call = new_call(&[]);
                match admit(&store, &call, &policy, epoch).await {
                    AdmitOutcome::New { .. } => {
                        admitted.fetch_add(1, Ordering::Relaxed);
                        let held = store.leases().await.unwrap();
                        assert!(held.iter().any(|held| held.call == call.id), "{held:?}");
                        assert!(held.len() as u32 <= LIMIT, "{held:?}");
                        store.apply(change(&call.id, END)).await.unwrap();
                    }
                    AdmitOutcome::Outdated(state) => epoch = state.epoch,
                    AdmitOutcome::Rejected(short) => assert!(short.current <= LIMIT),
                    AdmitOutcome::Known(known) => panic!("{known}"),
                }
            }
        });
    }
    for epoch in 2..22 {
        // Under every epoch somebody is admitted.
        let before = admitted.load(Ordering::Relaxed);
        while admitted.load(Ordering::Relaxed) == before {
            tokio::task::yield_now().await;
        }
        let moved = store.bump_epoch(epoch, 0, GateMode::Database, policy.clone(), 1000).await.unwrap().unwrap();
        assert_eq!(moved.state, state(epoch + 1, GateMode::Database));
        assert!(moved.held.len() as u32 <= LIMIT, "{moved:?}");
    }
    over.store(true, Ordering::Relaxed);
    tasks.join_all().await;
    assert_eq!(store.leases().await.unwrap(), []);
}

/// Runs a test of the store in a process of its own, with what it needs in a variable, and lets it die at a failpoint.
pub(in crate::store) async fn dies_at(point: &str, test: &str, name: &str, value: impl AsRef<std::ffi::OsStr>) {
    use std::os::unix::process::ExitStatusExt as _;
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "--nocapture", &format!("store::{test}")]);
    let died = child.env(name, value).env("RINGFENCE_FAIL", format!("{point}=abort")).output().await.unwrap();
    let said = String::from_utf8_lossy(&died.stderr);
    assert_eq!(died.status.signal(), Some(6), "{said}");
    assert!(said.contains(&format!("failpoint {point}: abort")), "{said}");
}

/// Prints how much is decided in a second, and how long a move takes.
pub(in crate::store) async fn measure(store: &Arc<dyn Store>, fresh: &impl Fresh) {
    let policy = policy(200, None);
    store.bump_epoch(1, 0, GateMode::Database, policy.clone(), 1).await.unwrap().unwrap();
    for clients in [1, 8, 32] {
        let until = std::time::Instant::now() + std::time::Duration::from_secs(3);
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..clients {
            let (store, policy) = (store.clone(), policy.clone());
            tasks.spawn(async move {
                let mut decided = 0;
                while std::time::Instant::now() < until {
                    let call = new_call(&[]);
                    assert!(matches!(admit(&store, &call, &policy, 2).await, AdmitOutcome::New { .. }));
                    store.apply(change(&call.id, END)).await.unwrap();
                    decided += 1;
                }
                decided
            });
        }
        let decided: u32 = tasks.join_all().await.into_iter().sum();
        println!("{clients} clients: {} admitted and ended a second", decided / 3);
    }
    let insert = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000)
         INSERT INTO calls (id, phase, business, plan, account, provider, direction, operation, origin, admitted_at, phase_at, seen_at, seen_by)
         SELECT 'c_01jd0000000000000000' || substr(CAST(1000000 + i AS TEXT), 2), 'live', 'b' || i % 1000, plan, account, provider, direction, operation, origin, i, i, i, seen_by
         FROM (SELECT * FROM calls LIMIT 1) AS c, n";
    fresh.execute(insert).await;
    for epoch in [2, 3] {
        let started = std::time::Instant::now();
        let moved = store.bump_epoch(epoch, 0, GateMode::Database, policy.clone(), 1).await.unwrap().unwrap();
        println!("a move over {} open calls: {:?}", moved.held.len(), started.elapsed());
    }
}
