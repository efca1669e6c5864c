//! Duties of every back end concerning do-not-call lists.

use super::*;
use crate::store::do_not_call::{EVERYBODY, ListChange, ListedNumber};

fn change(list: &str, number: u64, listed: bool) -> ListChange {
    ListChange { list: list.to_owned(), number, listed }
}

async fn numbers(store: &Arc<dyn Store>, list: &str) -> Vec<u64> {
    store.do_not_call(list, 0, 99).await.unwrap().iter().map(|one| one.number).collect()
}

pub(in crate::store) async fn a_number_is_put_on_a_list_and_taken_off(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let reason = Some("asked".to_owned());
    assert_eq!(store.put_do_not_call(EVERYBODY, vec![30, 10], reason.clone(), 1).await.unwrap(), 2);
    assert_eq!(store.put_do_not_call("acme", vec![10, 999_999_999_999_999], None, 2).await.unwrap(), 2);
    assert_eq!(store.put_do_not_call(EVERYBODY, vec![10, 20], None, 3).await.unwrap(), 1, "one was there");
    assert_eq!(store.put_do_not_call(EVERYBODY, vec![], None, 3).await.unwrap(), 0);
    assert_eq!(
        (numbers(&store, EVERYBODY).await, numbers(&store, "acme").await),
        (vec![30, 10, 20], vec![10, 999_999_999_999_999])
    );
    assert!(numbers(&store, "nobody").await.is_empty());
    let ten = store.do_not_call_number(EVERYBODY, 10).await.unwrap().unwrap();
    assert_eq!((ten.number, ten.reason.clone(), ten.at), (10, reason, 1), "the first time stands");
    // Page by page, from the last one seen on.
    let first = store.do_not_call(EVERYBODY, 0, 2).await.unwrap();
    let rest = store.do_not_call(EVERYBODY, first[1].change, 2).await.unwrap();
    assert_eq!((first[1].clone(), rest.len(), rest[0].number), (ten, 1, 20));

    assert_eq!(store.delete_do_not_call(EVERYBODY, vec![10, 11], 4).await.unwrap(), 1);
    assert_eq!(store.delete_do_not_call(EVERYBODY, vec![10], 4).await.unwrap(), 0);
    assert_eq!(store.do_not_call_number(EVERYBODY, 10).await.unwrap(), None);
    assert_eq!((numbers(&store, EVERYBODY).await, numbers(&store, "acme").await.len()), (vec![30, 20], 2));
    assert_eq!(store.put_do_not_call(EVERYBODY, vec![10], None, 5).await.unwrap(), 1, "it is put anew");
    let again = store.do_not_call_number(EVERYBODY, 10).await.unwrap().unwrap();
    assert!(matches!(again, ListedNumber { reason: None, at: 5, .. }), "{again:?}");
    // What was taken off is forgotten in time, what is listed is not.
    store.delete_do_not_call("acme", vec![10], 6).await.unwrap();
    let rows = "SELECT count(*) FROM do_not_call";
    assert_eq!(fresh.number(rows).await, 5);
    store.purge(&RetentionCutoffs::of_all(6, 6)).await.unwrap();
    assert_eq!(fresh.number(rows).await, 5, "too early");
    store.purge(&RetentionCutoffs::of_all(7, 7)).await.unwrap();
    assert_eq!((fresh.number(rows).await, numbers(&store, EVERYBODY).await), (4, vec![30, 20, 10]));
}

pub(in crate::store) async fn changes_of_lists_are_read_from_where_one_stands(fresh: &impl Fresh) {
    let (a, b) = (fresh.open_shared().await, fresh.open_shared().await);
    let me = Replica::new();
    assert_eq!(b.heartbeat(&me, None).await.unwrap().do_not_call_change, 0);
    assert_eq!(b.do_not_call_changes(0, 9).await.unwrap(), ListChanges::default());
    a.put_do_not_call(EVERYBODY, vec![1, 2, 3], None, 9).await.unwrap();
    a.put_do_not_call("acme", vec![1], None, 8).await.unwrap();
    let first = b.do_not_call_changes(0, 2).await.unwrap();
    assert_eq!(first.changes, [change("", 1, true), change("", 2, true)]);
    assert!(first.more && first.until == 2, "{first:?}");
    let rest = b.do_not_call_changes(first.until, 9).await.unwrap();
    assert_eq!(rest.changes, [change("", 3, true), change("acme", 1, true)]);
    assert!(!rest.more && rest.until == b.heartbeat(&me, None).await.unwrap().do_not_call_change);
    a.delete_do_not_call(EVERYBODY, vec![2], 10).await.unwrap();
    assert_ne!(b.heartbeat(&me, None).await.unwrap().do_not_call_change, rest.until);
    let last = b.do_not_call_changes(rest.until, 9).await.unwrap();
    assert_eq!(last.changes, [change("", 2, false)]);
    // Who comes new reads everything there is, the gone ones too.
    let all = b.do_not_call_changes(0, 9).await.unwrap();
    assert_eq!((all.changes.len(), all.until), (4, last.until));
}

/// A reader that follows writers never passes over a change: a later one is not to be seen before an earlier one.
pub(in crate::store) async fn no_change_of_a_list_is_passed_over(fresh: &impl Fresh) {
    const WRITERS: u64 = 6;
    const EACH: u64 = 20;
    let (store, reader) = (fresh.open_shared().await, fresh.open_shared().await);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        writers.spawn(async move {
            for n in 0..EACH {
                let number = 100 + writer * EACH + n;
                store.put_do_not_call(EVERYBODY, vec![number, number + 10_000], None, 1).await.unwrap();
                store.delete_do_not_call(EVERYBODY, vec![number], 2).await.unwrap();
            }
        });
    }
    let (mut after, mut seen) = (0, std::collections::BTreeSet::new());
    let mut done = false;
    loop {
        let page = reader.do_not_call_changes(after, 7).await.unwrap();
        for one in page.changes {
            if one.listed {
                seen.insert(one.number)
            } else {
                seen.remove(&one.number)
            };
        }
        after = page.until;
        if done && !page.more {
            break;
        }
        // What was written before it was seen that all is written is in the next page.
        done = done || writers.is_empty() || (writers.try_join_next().is_some() && writers.is_empty());
        tokio::task::yield_now().await;
    }
    let wanted: std::collections::BTreeSet<u64> = (0..WRITERS * EACH).map(|n| 10_100 + n).collect();
    assert_eq!(seen, wanted);
}
