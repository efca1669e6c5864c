//! Ownership of the database among processes.

use super::*;

#[tokio::test]
async fn a_second_process_is_refused_and_told_who_has_it() {
    let Some(fence) = fresh().await else { return };
    let store = fence.store().await;
    let error = fence.refused().await;
    assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
    let error = migrate::down(&fence.settings, None).await.unwrap_err();
    assert!(error.contains("stop it first"), "{error}");
    let found = inspect::inspect(&fence.settings).await.unwrap();
    assert!(found.missing.is_empty() && found.holder.unwrap().contains("ringfence, process"));
    store.close().await;
    assert_eq!(inspect::inspect(&fence.settings).await.unwrap().holder, None);
    // No waiting: it was given up.
    fence.store().await;
}

#[tokio::test]
async fn the_record_of_a_process_that_died_here_is_taken_at_once_and_of_one_elsewhere_in_time() {
    let Some(fence) = fresh().await else { return };
    fence.store().await.close().await;
    // A process of this machine, in this namespace, that is no more.
    let me = ownership::ProcessId::new(OwnershipMode::Exclusive);
    let mut gone = std::process::Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    let place = me.place().rsplit_once(' ').unwrap().0.to_owned();
    fence.execute(&format!("UPDATE holders SET beat_at = 1, process = {}, place = '{place} 1'", gone.id())).await;
    fence.store().await.close().await;
    fence.execute("UPDATE holders SET beat_at = 1, host = 'web-1', place = 'another boot 7 1'").await;
    let told = Mutex::new(Vec::new());
    let store = PostgresStore::open(&fence.settings, Migrate::Run, OwnershipMode::Exclusive, |why| {
        told.lock().unwrap().push(why.to_owned())
    })
    .await
    .unwrap();
    let told = told.into_inner().unwrap();
    assert!(told.len() == 1 && told[0].contains("on web-1"), "{told:?}");
    assert_eq!(store.insert_call(new_call(&[]), None).await.unwrap(), InsertOutcome::New(None));
}

#[tokio::test]
async fn a_record_is_one_processs_alone_or_shared_by_several() {
    let Some(fence) = fresh().await else { return };
    let refused = async |sharing| {
        let Err(error) = PostgresStore::open(&fence.settings, Migrate::Run, sharing, |_| {}).await else {
            panic!("it opened")
        };
        error.to_string()
    };
    let alone = fence.store().await;
    let error = refused(OwnershipMode::Shared).await;
    assert!(error.contains("has the database exclusively"), "{error}");
    // It dies, and does not know it.
    alone.beating.lock().await.take().unwrap().abort();
    let mut gone = std::process::Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    let place = ownership::ProcessId::new(OwnershipMode::Exclusive).place().rsplit_once(' ').unwrap().0.to_owned();
    fence.execute(&format!("UPDATE holders SET process = {}, place = '{place} 1'", gone.id())).await;
    let one = fence.open_shared().await;
    let late = alone.insert_call(new_call(&[]), None).await.unwrap_err();
    assert!(matches!(&late, StoreError::Failed(why) if why.contains("taken")), "{late}");
    let two = fence.open_shared().await;
    for store in [&one, &two] {
        assert_eq!(
            store.insert_call(new_call(&[]), None).await.unwrap(),
            InsertOutcome::New(None),
            "joining locks nobody out"
        );
    }
    let error = refused(OwnershipMode::Exclusive).await;
    assert!(error.contains("and other replicas") && error.contains("needs the database exclusively"), "{error}");
    // Who leaves leaves it to the others; the last gives it up.
    let [a, b] = ["a", "b"].map(|id| Replica { id: id.to_owned(), ..Replica::new() });
    one.heartbeat(&a, None).await.unwrap();
    two.heartbeat(&b, None).await.unwrap();
    one.deregister(&a.id).await.unwrap();
    one.close().await;
    two.insert_call(new_call(&[]), None).await.unwrap();
    assert_eq!(fence.number("SELECT count(*) FROM holders WHERE beat_at IS NULL").await, 0);
    assert!(migrate::down(&fence.settings, None).await.unwrap_err().contains("stop it first"));
    two.deregister(&b.id).await.unwrap();
    two.close().await;
    let again = fence.store().await;
    assert_eq!(again.open_calls().await.unwrap().len(), 3);
}

#[tokio::test]
async fn replicas_that_were_silent_are_locked_out_by_who_has_the_record_alone() {
    let Some(fence) = fresh().await else { return };
    let asleep =
        PostgresStore::open(&fence.settings, Migrate::Run, OwnershipMode::Shared, |why| panic!("{why}")).await.unwrap();
    asleep.beating.lock().await.take().unwrap().abort();
    let waited = Instant::now();
    let alone = PostgresStore::open(&fence.settings, Migrate::Run, OwnershipMode::Exclusive, |_| {}).await.unwrap();
    assert!(waited.elapsed() >= OWNER_TIMEOUT, "a replica cannot be seen to be dead");
    assert!(
        asleep.insert_call(new_call(&[]), None).await.is_err()
            && asleep.heartbeat(&Replica::new(), None).await.is_err()
    );
    alone.insert_call(new_call(&[]), None).await.unwrap();
    alone.close().await;
    let next = fence.open_shared().await;
    assert!(asleep.ping().await.is_err(), "it has to start again");
    assert_eq!(next.open_calls().await.unwrap().len(), 1);
}

#[tokio::test]
async fn who_lost_the_record_writes_nothing_any_more_and_what_was_under_way_is_seen() {
    let Some(fence) = fresh().await else { return };
    let store = Arc::new(fence.store().await);
    let call = new_call(&[]);
    // In the middle of a write when the other takes over: either the other sees it, or it fails.
    let slow = {
        let (db, call) = (store.db.clone(), call.clone());
        tokio::spawn(async move {
            db.write(move |c| {
                let call = call.clone();
                Box::pin(async move {
                    sqlx::query("SELECT pg_sleep(1)").execute(&mut *c).await?;
                    Ok(calls::insert(&mut Pg(c), &call).await?)
                })
            })
            .await
        })
    };
    while fence.number("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(1)%' AND datname = current_database()").await == 0 {
        tokio::task::yield_now().await;
    }
    let mut taken = store.db.begin_unbound().await.unwrap();
    let seen = ownership::read_owner(&mut taken).await.unwrap();
    // A beat may come in between; then it is looked at again, as the start does.
    let mut generation =
        ownership::take(&mut taken, &ownership::ProcessId::new(OwnershipMode::Exclusive), seen.as_ref()).await.unwrap();
    while generation.is_none() {
        let seen = ownership::read_owner(&mut taken).await.unwrap();
        generation = ownership::take(&mut taken, &ownership::ProcessId::new(OwnershipMode::Exclusive), seen.as_ref())
            .await
            .unwrap();
    }
    let open: Vec<String> = sqlx::query_scalar("SELECT id FROM calls").fetch_all(&mut *taken).await.unwrap();
    assert_eq!(open, [call.id.as_str()], "it was waited for");
    taken.commit().await.unwrap();
    assert_eq!(slow.await.unwrap().unwrap(), InsertOutcome::New(None));
    let late = store.insert_call(new_call(&[]), None).await.unwrap_err();
    assert!(matches!(&late, StoreError::Failed(why) if why.contains("taken")), "{late}");
    let ends = Change { event: Some(conformance::END), ..conformance::change(&call.id, conformance::END) };
    assert!(store.apply(ends).await.is_err() && store.ping().await.is_err());
    assert_eq!(fence.number("SELECT count(*) FROM calls").await, 1);
    assert_eq!(fence.number("SELECT count(*) FROM calls WHERE phase = 'ended'").await, 0);
    // Nor does it give up what is another's.
    store.close().await;
    assert_eq!(fence.number("SELECT count(*) FROM holders WHERE beat_at IS NULL").await, 0);
}
