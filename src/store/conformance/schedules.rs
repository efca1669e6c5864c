//! Recurring runs.

use super::*;
use crate::store::schedules::{CreateScheduleOutcome, Schedule, ScheduleState};

fn schedule(id: &str, business: &str, name: &str, next_at: Option<i64>) -> Schedule {
    Schedule {
        id: id.to_owned(),
        business: business.to_owned(),
        name: name.to_owned(),
        spec: "{}".to_owned(),
        state: ScheduleState::Active,
        done_at: 5,
        next_at,
        failing_at: None,
        tries: 0,
        error: None,
        fired_at: None,
        run: None,
        note: None,
        created_at: 5,
        updated_at: 5,
        version: 0,
    }
}

fn ids(found: &[Schedule]) -> Vec<&str> {
    found.iter().map(|one| one.id.as_str()).collect()
}

pub(in crate::store) async fn a_schedule_is_made_once_for_a_name_and_found_when_it_is_due(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let first = schedule("s1", "acme", "daily", Some(10));
    assert_eq!(store.create_schedule(&first).await.unwrap(), CreateScheduleOutcome::New);
    let again = store.create_schedule(&schedule("s2", "acme", "daily", Some(10))).await.unwrap();
    assert_eq!(again, CreateScheduleOutcome::Known(Box::new(first.clone())));
    for other in [schedule("s3", "beta", "daily", Some(8)), schedule("s4", "acme", "never", None)] {
        assert_eq!(store.create_schedule(&other).await.unwrap(), CreateScheduleOutcome::New);
    }
    assert_eq!(store.due_schedules(7, 9).await.unwrap(), []);
    assert_eq!(ids(&store.due_schedules(10, 9).await.unwrap()), ["s3", "s1"]);
    assert_eq!(ids(&store.due_schedules(10, 1).await.unwrap()), ["s3"]);
    assert_eq!(ids(&store.schedules(None, 9).await.unwrap()), ["s1", "s4", "s3"]);
    assert_eq!(ids(&store.schedules(Some(vec!["beta".to_owned()]), 9).await.unwrap()), ["s3"]);
    assert_eq!(store.schedule("s1").await.unwrap(), Some(first));
    assert_eq!(store.schedule("s2").await.unwrap(), None);
}

pub(in crate::store) async fn a_schedule_is_changed_by_who_has_read_it_as_it_is(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let first = schedule("s1", "acme", "daily", Some(10));
    store.create_schedule(&first).await.unwrap();
    let failing = Schedule {
        failing_at: Some(10),
        tries: 1,
        error: Some("away".to_owned()),
        next_at: Some(12),
        updated_at: 11,
        ..first.clone()
    };
    assert!(store.change_schedule(&failing).await.unwrap());
    assert!(!store.change_schedule(&failing).await.unwrap(), "somebody has changed it since");
    assert_eq!(store.schedule("s1").await.unwrap(), Some(Schedule { version: 1, ..failing.clone() }));
    assert_eq!(store.failing_schedules().await.unwrap(), 1);
    let fired = Schedule {
        version: 1,
        failing_at: None,
        tries: 0,
        error: None,
        done_at: 10,
        next_at: Some(20),
        fired_at: Some(10),
        run: Some("run_1".to_owned()),
        note: Some("none left out".to_owned()),
        ..failing
    };
    assert!(store.change_schedule(&fired).await.unwrap());
    assert_eq!(store.failing_schedules().await.unwrap(), 0);
    let paused = Schedule { version: 2, state: ScheduleState::Paused, ..fired };
    assert!(store.change_schedule(&paused).await.unwrap());
    assert_eq!(store.due_schedules(99, 9).await.unwrap(), [], "it is paused");
    assert_eq!(store.purge_business("beta").await.unwrap().schedules, 0);
    assert_eq!(store.purge_business("acme").await.unwrap().schedules, 1);
    assert!(!store.delete_schedule("s1").await.unwrap(), "it is gone");
    store.create_schedule(&first).await.unwrap();
    assert!(store.delete_schedule("s1").await.unwrap());
    assert_eq!(store.schedules(None, 9).await.unwrap(), []);
}
