//! Several processes over one database.

use super::*;

pub(in crate::store) async fn many_that_share_start_at_once_over_nothing_and_over_an_old_schema(fresh: &impl Fresh) {
    // There is one migration as yet: with it the rows go back, too.
    for _ in 0..2 {
        let stores = futures_util::future::join_all((0..4).map(|_| fresh.open_shared())).await;
        let calls = futures_util::future::join_all(stores.iter().map(async |store| {
            let mut calls = vec![];
            for _ in 0..25 {
                let call = new_call(&[]);
                store.insert_call(call.clone(), None).await.unwrap();
                store.apply(change(&call.id, Event::Reached(Phase::Live))).await.unwrap().unwrap();
                calls.push(call.id);
            }
            calls
        }))
        .await;
        for store in &stores {
            assert_eq!(store.open_calls().await.unwrap().len(), 100);
            assert!(store.call(&calls[3][24]).await.unwrap().is_some(), "each sees what the others wrote");
            store.ping().await.unwrap();
        }
        for store in &stores {
            store.close().await;
        }
        drop(stores);
        fresh.one_migration_back().await;
    }
}

pub(in crate::store) async fn replicas_know_who_lives_and_who_leads(fresh: &impl Fresh) {
    let (a, b) = (fresh.open_shared().await, fresh.open_shared().await);
    let [one, two] = ["01a", "01b"].map(|id| Replica { id: id.to_owned(), ..Replica::new() });
    assert!(a.heartbeat(&one, None).await.unwrap().leads(), "alone it leads");
    let fleet = b.heartbeat(&two, None).await.unwrap();
    assert_eq!(fleet.live.iter().map(|l| &l.replica).collect::<Vec<_>>(), [&one, &two]);
    assert!(!fleet.leads() && a.heartbeat(&one, None).await.unwrap().leads());
    // What one says of itself the others read, as of its last beat.
    for says in [Some("{\"n\":1}"), Some("{\"n\":2}"), None] {
        let state = says.map(str::to_owned);
        a.heartbeat(&Replica { state: state.clone(), ..one.clone() }, None).await.unwrap();
        assert_eq!(b.heartbeat(&two, None).await.unwrap().live[0].replica.state, state);
    }
    // Silent: the other leads. It comes back, and leads again.
    fresh.execute(&format!("UPDATE replicas SET beat_at = beat_at - 6100 WHERE id = '{}'", one.id)).await;
    let fleet = b.heartbeat(&two, None).await.unwrap();
    assert!(fleet.leads() && fleet.live.len() == 1);
    let started = fleet.live[0].started_at;
    let back = a.heartbeat(&one, None).await.unwrap();
    assert!(back.leads() && back.live[1].started_at == started && back.live[1].beat_at >= started, "{back:?}");
    // A heartbeat may speak for an earlier moment, but for none before the last one's.
    fresh.execute("UPDATE replicas SET beat_at = beat_at - 2000").await;
    let now_ms = a.now_ms().await.unwrap();
    for earlier in [700, 900] {
        let fleet = a.heartbeat(&one, Some(now_ms - earlier)).await.unwrap();
        assert_eq!(fleet.live[0].beat_at, now_ms - 700);
    }
    // Silent for longer than anybody remembers, both at once.
    fresh.execute("UPDATE replicas SET beat_at = beat_at - 3600100").await;
    let (first, second) = tokio::join!(a.heartbeat(&one, None), b.heartbeat(&two, None));
    assert_eq!(first.unwrap().me, one.id);
    second.unwrap();
    assert_eq!(b.heartbeat(&two, None).await.unwrap().live.len(), 2);
    a.deregister(&one.id).await.unwrap();
    assert!(b.heartbeat(&two, None).await.unwrap().leads());
    assert_eq!(fresh.number("SELECT count(*) FROM replicas").await, 1);
}

pub(in crate::store) async fn a_change_of_businesses_is_noticed_elsewhere(fresh: &impl Fresh) {
    let (a, b) = (fresh.open_shared().await, fresh.open_shared().await);
    let me = Replica::new();
    let [acme, other] = ["acme", "other"].map(|id| Business::named(BusinessId::parse(id).unwrap()));
    let mut seen = vec![b.heartbeat(&me, None).await.unwrap().businesses_version];
    // Clocks of replicas differ: a later change may seem to be older, or of the same moment.
    for (business, at_ms) in [(Some(&acme), 50), (Some(&acme), 50), (Some(&acme), 40), (Some(&other), 10), (None, 0)] {
        match business {
            Some(business) => drop(a.put_business(business, at_ms).await.unwrap()),
            None => drop(a.delete_business("acme").await.unwrap()),
        }
        let version = b.heartbeat(&me, None).await.unwrap().businesses_version;
        assert!(!seen.contains(&version), "{version} after {seen:?}");
        assert_eq!(b.heartbeat(&me, None).await.unwrap().businesses_version, version, "nothing has changed since");
        seen.push(version);
    }
}

pub(in crate::store) async fn an_order_is_found_at_another_replica_and_taken_by_one(fresh: &impl Fresh) {
    let (a, b) = (fresh.open_shared().await, fresh.open_shared().await);
    let [one, two] = ["01a", "01b"].map(|id| Replica { id: id.to_owned(), ..Replica::new() });
    a.heartbeat(&one, None).await.unwrap();
    b.heartbeat(&two, None).await.unwrap();
    let print = |call: NewCall| NewCall { fingerprint: Some("print".to_owned()), ..call };
    let first = NewCall { replica: Some(one.id.clone()), ..print(new_call(&[])) };
    let second = NewCall { at_ms: 2000, ..print(new_call(&[])) };
    for call in [&second, &first, &new_call(&[])] {
        a.insert_call(call.clone(), None).await.unwrap();
    }
    let find = async || b.find_in_flight("print", 1000).await.unwrap();
    let found = find().await;
    assert_eq!(found.iter().map(|o| &o.id).collect::<Vec<_>>(), [&first.id, &second.id], "the oldest first");
    assert!(found[0].silent_ms.is_some_and(|ms| ms < 60_000) && found[0].replica.as_ref() == Some(&one.id));
    assert_eq!((found[1].silent_ms, found[1].replica.as_deref(), found[1].phase), (None, None, Phase::Reserved));
    assert_eq!(b.find_in_flight("print", 1001).await.unwrap(), found[1..]);
    a.mark_undelivered(&first.id, &two.id).await.unwrap();
    assert!(!find().await[0].undelivered, "only who answers for it says so");
    a.mark_undelivered(&first.id, &one.id).await.unwrap();
    assert!(!b.take_in_flight(&found[0], &two.id, Owner::Live).await.unwrap(), "it was seen otherwise");
    let found = find().await;
    assert!(found[0].undelivered);
    // Both take it, and of a dead one's.
    for (row, owner) in [(&found[0], Owner::Live), (&found[1], Owner::Dead)] {
        let (at_a, at_b) = tokio::join!(a.take_in_flight(row, "01c", owner), b.take_in_flight(row, &two.id, owner));
        assert!(at_a.unwrap() ^ at_b.unwrap());
    }
    let taken = find().await;
    assert_eq!(taken.iter().map(|o| (o.undelivered, o.unsettled)).collect::<Vec<_>>(), [(false, false), (false, true)]);
    let now_ms = a.now_ms().await.unwrap();
    assert_eq!((found[0].waited_for_since, found[1].waited_for_since), (1000, 2000));
    assert!(
        taken.iter().all(|o| (0..60_000).contains(&(now_ms - o.waited_for_since))),
        "their new clients wait from now on"
    );
    a.mark_undelivered(&first.id, &one.id).await.unwrap();
    assert!(!find().await[0].undelivered, "it answers for it no more");
    // Who tells a client that the outcome is unknown has not delivered what it waits for, whatever is found out later.
    let taker = taken[1].replica.clone();
    let told = |by: Option<String>| Change {
        reported_unknown_by: by,
        unsettled: Some(true),
        ..Change::of(&second.id, Source::Create, 3000, &Deadlines::default())
    };
    a.apply(told(Some(one.id.clone()))).await.unwrap();
    assert!(!find().await[1].undelivered, "another answers for it");
    b.apply(told(taker)).await.unwrap();
    a.apply(change(&second.id, Event::Reached(Phase::Live))).await.unwrap();
    assert_eq!((find().await[1].undelivered, find().await[1].unsettled), (true, false));
    assert_eq!(a.find_in_flight("another", 0).await.unwrap(), []);
}
