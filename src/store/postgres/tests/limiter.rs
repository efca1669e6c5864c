//! The limiter in the database: moves of the epoch, and decisions.

use super::*;

/// Both parts in one: the process that dies, and the one that started it.
#[tokio::test]
async fn a_move_that_dies_half_way_was_none() {
    const URL: &str = "RINGFENCE_TEST_MOVES";
    let policy = conformance::policy(7, None);
    if let Ok(url) = std::env::var(URL) {
        let store = PostgresStore::open(&settings(&url), Migrate::Run, OwnershipMode::Exclusive, |_| {}).await.unwrap();
        let moved = store.bump_epoch(1, 0, GateMode::Database, policy, 1).await;
        panic!("it lives: {moved:?}");
    }
    let Some(fence) = fresh().await else { return };
    let store = fence.store().await;
    store.insert_call(new_call(&[]), Some(1)).await.unwrap();
    let before = store.leases().await.unwrap();
    store.close().await;
    let test = "postgres::tests::limiter::a_move_that_dies_half_way_was_none";
    conformance::dies_at("store.advancing", test, URL, &fence.url).await;
    let store = fence.store().await;
    assert_eq!(store.gate_state().await.unwrap(), GateState { epoch: 1, mode: GateMode::Memory });
    assert_eq!(store.leases().await.unwrap(), before);
    assert!(store.bump_epoch(1, 0, GateMode::Database, policy, 1).await.unwrap().is_some());
}

/// A writer's transaction that is held open, and says so.
async fn held_open(store: &Arc<PostgresStore>, call: &NewCall) -> (tokio::sync::oneshot::Sender<()>, Opening) {
    let (go, wait) = tokio::sync::oneshot::channel::<()>();
    let (here, there) = tokio::sync::oneshot::channel::<()>();
    let both = Arc::new(Mutex::new(Some((wait, here))));
    let (db, call) = (store.db.clone(), call.clone());
    let opening = tokio::spawn(async move {
        let opened = db.write_at(TransitionLock::Shared, move |c, _| {
            let (both, call) = (both.clone(), call.clone());
            Box::pin(async move {
                let opened = calls::insert(&mut Pg(c), &call).await?;
                let taken = both.lock().unwrap().take();
                if let Some((wait, here)) = taken {
                    here.send(()).unwrap();
                    wait.await.unwrap();
                }
                Ok(opened)
            })
        });
        opened.await.unwrap()
    });
    there.await.unwrap();
    (go, opening)
}

type Opening = tokio::task::JoinHandle<InsertOutcome>;

/// Sessions that wait for a lock.
const WAITING: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";

#[tokio::test]
async fn a_move_waits_for_who_wrote_before_it_and_counts_the_call() {
    let Some(fence) = fresh().await else { return };
    let store = Arc::new(fence.store().await);
    let call = new_call(&[]);
    let (go, opening) = held_open(&store, &call).await;
    let moving = tokio::spawn({
        let store = store.clone();
        async move { store.bump_epoch(1, 0, GateMode::Database, conformance::policy(7, None), 1).await.unwrap().unwrap() }
    });
    while fence.number(WAITING).await == 0 {
        tokio::task::yield_now().await;
    }
    // Nor does anybody overtake it.
    let late = tokio::spawn({
        let store = store.clone();
        async move { store.insert_call(new_call(&[]), Some(1)).await.unwrap() }
    });
    while fence.number(WAITING).await < 2 {
        tokio::task::yield_now().await;
    }
    go.send(()).unwrap();
    assert_eq!(opening.await.unwrap(), InsertOutcome::New(None));
    let moved = moving.await.unwrap();
    assert_eq!(moved.held.iter().map(|held| &held.call).collect::<Vec<_>>(), [&call.id]);
    assert_eq!(late.await.unwrap(), InsertOutcome::Outdated(moved.state));
}

#[tokio::test]
async fn who_comes_while_a_move_is_under_way_is_told_the_new_epoch() {
    let Some(fence) = fresh().await else { return };
    let store = Arc::new(fence.store().await);
    let mut moving = store.db.begin_unbound().await.unwrap();
    let (policy, c) = (conformance::policy(1, None), &mut Pg(&mut moving));
    let moved =
        crate::store::queries::gate::bump_epoch(c, 1, 0, GateMode::Database, &policy, Some(1)).await.unwrap().unwrap();
    assert_eq!(moved.held, []);
    let [opens, admits] = [new_call(&[]), new_call(&[])];
    let opening = tokio::spawn({
        let (store, call) = (store.clone(), opens.clone());
        async move { store.insert_call(call, Some(1)).await.unwrap() }
    });
    let admitting = tokio::spawn({
        let store = store.clone();
        let request = conformance::request(&admits, &conformance::policy(1, None));
        async move { store.admit(admits, request, 2).await.unwrap() }
    });
    while fence.number(WAITING).await < 2 {
        tokio::task::yield_now().await;
    }
    moving.commit().await.unwrap();
    assert_eq!(opening.await.unwrap(), InsertOutcome::Outdated(moved.state));
    assert_eq!(admitting.await.unwrap(), AdmitOutcome::New { slots: 1, would_reject: None, early: None });
    assert_eq!(store.call(&opens.id).await.unwrap(), None);
}

#[tokio::test]
async fn decisions_go_by_the_servers_clock() {
    let Some(fence) = fresh().await else { return };
    let mut settings = fence.settings.clone();
    settings.time_of = TimeOf::Server;
    let store =
        PostgresStore::open(&settings, Migrate::Run, OwnershipMode::Exclusive, |why| panic!("{why}")).await.unwrap();
    let rate = crate::policy::Rate::parse("1/h").unwrap();
    let policy = conformance::policy(9, Some(rate));
    store.bump_epoch(1, 0, GateMode::Database, policy.clone(), 1).await.unwrap().unwrap();
    let before = fence.number("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint").await;
    // A replica whose clock is years behind, and one that is years ahead.
    let ask = |at_ms| {
        let call = NewCall { at_ms, ..new_call(&[]) };
        let request = conformance::request(&call, &policy);
        store.admit(call, request, 2)
    };
    assert_eq!(ask(1000).await.unwrap(), AdmitOutcome::New { slots: 1, would_reject: None, early: None });
    let AdmitOutcome::Rejected(short) = ask(i64::MAX / 2000).await.unwrap() else { panic!("a second token") };
    assert!(short.token_in_ms.is_some_and(|ms| ms > 0 && ms <= 3_600_101), "{short:?}");
    let held = store.leases().await.unwrap();
    let after = fence.number("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint").await;
    assert!(held[0].since_ms >= before && held[0].since_ms <= after, "{held:?}");
    let moved = store.bump_epoch(2, 0, GateMode::Database, policy.clone(), 1).await.unwrap().unwrap();
    assert_eq!(moved.rates.len(), 1, "replayed by the same clock");
}

#[tokio::test]
async fn of_decisions_that_meet_one_that_fails_stands_alone_and_none_is_dropped() {
    let Some(fence) = fresh().await else { return };
    let store = Arc::new(fence.store().await);
    let policy = conformance::policy(100, None);
    store.bump_epoch(1, 0, GateMode::Database, policy.clone(), 1).await.unwrap().unwrap();
    // As long as somebody has the row, all but the first meet.
    let mut holding = store.db.begin_unbound().await.unwrap();
    sqlx::query("SELECT 1 FROM gate_state FOR UPDATE").execute(&mut *holding).await.unwrap();
    let ask = |call: NewCall| {
        let (store, request) = (store.clone(), conformance::request(&call, &policy));
        tokio::spawn(async move { store.admit(call, request, 2).await })
    };
    let first = ask(new_call(&[]));
    while fence.number(WAITING).await == 0 {
        tokio::task::yield_now().await;
    }
    let good: Vec<NewCall> = (0..20).map(|n| new_call(&[("call_sid", &format!("CA{n}"))])).collect();
    let mut asked: Vec<_> = good.iter().cloned().map(ask).collect();
    let mut bad = new_call(&[]);
    // Postgres has no place for it in a text.
    bad.attributes.agent = Some("\0".to_owned());
    let bad = ask(bad);
    let gone = new_call(&[]);
    let dropped = ask(gone.clone());
    // All are handed over; one of them does not wait for its answer.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    dropped.abort();
    holding.rollback().await.unwrap();
    let new = AdmitOutcome::New { slots: 1, would_reject: None, early: None };
    assert_eq!(first.await.unwrap().unwrap(), new);
    for asked in asked.drain(..) {
        assert_eq!(asked.await.unwrap().unwrap(), new);
    }
    let error = bad.await.unwrap().unwrap_err();
    assert!(matches!(error, StoreError::Failed(_)), "{error}");
    // Asked again: it is on record, whoever comes first.
    assert_eq!(ask(gone).await.unwrap().unwrap(), new);
    assert_eq!(store.leases().await.unwrap().len(), 22);
}

/// `cargo test --lib measures_decisions -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures, and asserts nothing of time"]
async fn measures_decisions() {
    let Some(fence) = fresh().await else { return };
    let store = fence.open().await;
    conformance::measure(&store, &fence).await;
}
