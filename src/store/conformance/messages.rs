//! Webhooks and deliveries.

use super::*;
use crate::store::{DeliveryResult, EventOutcome};

/// Returns the bodies that a process without a spool can read.
pub(in crate::store) fn in_record() -> Reach {
    Reach { spool: String::new(), database: true }
}

pub(in crate::store) fn event_and_delivery(n: usize, call: Option<&CallId>) -> (NewEvent, Delivery) {
    let event = NewEvent {
        id: format!("ev_{n:03}"),
        account: "twilio".to_owned(),
        webhook: "status".to_owned(),
        event: "call_status".to_owned(),
        dedupe_key: None,
        received_at: 1,
        method: "POST".to_owned(),
        path: "/twilio/status".to_owned(),
        headers: vec![],
        body: None,
        spool: None,
    };
    let delivery = Delivery {
        // Ids say nothing of the order: clocks of replicas differ.
        id: format!("dl_{:03}", 999 - n),
        event_id: event.id.clone(),
        call: call.map(ToString::to_string),
        route: DeliveryRoute::Forwarded,
        url: "http://app.test/x".to_owned(),
        method: "POST".to_owned(),
        headers: vec![("a".to_owned(), "b".to_owned())],
        body: b"CallSid=CA1".to_vec(),
        spool: None,
        attempts: 0,
    };
    (event, delivery)
}

pub(in crate::store) async fn to_deliver(
    store: &Arc<dyn Store>,
    n: usize,
    call: Option<&CallId>,
    at_ms: UnixMs,
) -> Delivery {
    let (event, delivery) = event_and_delivery(n, call);
    store.receive(event).await.unwrap();
    assert!(
        store.settle(&delivery.event_id, call, EventOutcome::Applied, Some(delivery.clone()), at_ms).await.unwrap()
    );
    delivery
}

pub(in crate::store) async fn an_event_that_two_settle_is_settled_once(fresh: &impl Fresh) {
    let (a, b) = (fresh.open_shared().await, fresh.open_shared().await);
    for n in 0..20 {
        let (event, delivery) = event_and_delivery(n, None);
        a.receive(event).await.unwrap();
        let again = Delivery { id: format!("again_{n}"), ..delivery.clone() };
        let (first, second) = tokio::join!(
            a.settle(&delivery.event_id, None, EventOutcome::Applied, Some(delivery.clone()), 1),
            b.settle(&delivery.event_id, None, EventOutcome::Applied, Some(again), 1),
        );
        assert!(first.unwrap() ^ second.unwrap());
    }
    assert_eq!(fresh.number("SELECT count(*) FROM deliveries").await, 20);
}

pub(in crate::store) async fn a_delivery_is_one_senders_and_comes_back_if_that_dies(fresh: &impl Fresh) {
    let (a, b) = (fresh.open_shared().await, fresh.open_shared().await);
    for n in 0..60 {
        to_deliver(&a, n, None, 1).await;
    }
    let mut taken = vec![];
    for _ in 0..20 {
        let (one, two) = tokio::join!(
            a.take_deliveries(1, 2, "", DeliveryOrder::FailedStepAside),
            b.take_deliveries(1, 3, "", DeliveryOrder::FailedStepAside)
        );
        for delivery in one.unwrap().into_iter().chain(two.unwrap()) {
            assert_eq!(delivery.attempts, 0);
            taken.push(delivery.id);
        }
    }
    taken.sort();
    let all = taken.len();
    taken.dedup();
    assert_eq!((all, taken.len()), (60, 60), "none was taken twice, none was left");
    // One was done, one is to be tried again, one was given up; of the rest nobody heard again.
    a.record_delivery_result(&taken[0], 2, DeliveryResult::Done).await.unwrap();
    a.record_delivery_result(&taken[1], 2, DeliveryResult::Retry { why: "refused".to_owned(), at: 50 }).await.unwrap();
    b.record_delivery_result(&taken[2], 2, DeliveryResult::GivenUp { why: "refused".to_owned() }).await.unwrap();
    assert_eq!(b.take_deliveries(49, 100, "", DeliveryOrder::FailedStepAside).await.unwrap(), []);
    fresh.execute("UPDATE deliveries SET taken_until = taken_until - 30000").await;
    let back = b.take_deliveries(49, 100, "", DeliveryOrder::FailedStepAside).await.unwrap();
    assert_eq!((back.len(), back.iter().any(|d| taken[..3].contains(&d.id))), (57, false));
    let again = a.take_deliveries(50, 100, "", DeliveryOrder::FailedStepAside).await.unwrap();
    assert_eq!(again.iter().map(|d| (&d.id, d.attempts)).collect::<Vec<_>>(), [(&taken[1], 1)]);
    // A sender that was stopped reports late what another has done since.
    b.record_delivery_result(&back[0].id, 60, DeliveryResult::Done).await.unwrap();
    a.record_delivery_result(&back[0].id, 61, DeliveryResult::Retry { why: "too late".to_owned(), at: 62 })
        .await
        .unwrap();
    assert_eq!(a.take_deliveries(99, 100, "", DeliveryOrder::FailedStepAside).await.unwrap(), []);
    // A process that has the record alone knows that nobody sends any more.
    a.close().await;
    b.close().await;
    let alone = fresh.open().await;
    assert_eq!(alone.take_deliveries(99, 100, "", DeliveryOrder::FailedStepAside).await.unwrap().len(), 57);
}

pub(in crate::store) async fn deliveries_of_a_call_go_in_order_and_others_do_not_wait(fresh: &impl Fresh) {
    let strict = DeliveryOrder::Strict;
    let (a, b) = (fresh.open_shared().await, fresh.open_shared().await);
    let (call, other) = (CallId::new(), CallId::new());
    // The later ones are due earlier.
    let first = to_deliver(&a, 0, Some(&call), 20).await;
    let second = to_deliver(&b, 1, Some(&call), 10).await;
    let third = to_deliver(&a, 2, Some(&call), 10).await;
    let of_other = to_deliver(&a, 3, Some(&other), 15).await;
    let free = to_deliver(&a, 4, None, 16).await;
    assert_eq!(b.take_deliveries(14, 10, "", strict).await.unwrap(), [], "the first is not due yet");
    assert_eq!(b.take_deliveries(20, 10, "", strict).await.unwrap(), [of_other.clone(), free.clone(), first.clone()]);
    assert_eq!(a.take_deliveries(20, 10, "", strict).await.unwrap(), []);
    b.record_delivery_result(&first.id, 21, DeliveryResult::Retry { why: "refused".to_owned(), at: 50 }).await.unwrap();
    assert_eq!(a.take_deliveries(49, 10, "", strict).await.unwrap(), [], "the second waits for the first's next try");
    assert_eq!(a.take_deliveries(50, 10, "", strict).await.unwrap()[0].id, first.id);
    a.record_delivery_result(&first.id, 51, DeliveryResult::GivenUp { why: "refused".to_owned() }).await.unwrap();
    assert_eq!(
        a.take_deliveries(51, 10, "", strict).await.unwrap(),
        std::slice::from_ref(&second),
        "the first is given up"
    );
    a.record_delivery_result(&second.id, 52, DeliveryResult::Done).await.unwrap();
    assert_eq!(b.take_deliveries(52, 10, "", strict).await.unwrap(), [third]);
}

pub(in crate::store) async fn a_delivery_that_failed_holds_nothing_back(fresh: &impl Fresh) {
    let store = fresh.open_shared().await;
    let call = CallId::new();
    let first = to_deliver(&store, 0, Some(&call), 10).await;
    let second = to_deliver(&store, 1, Some(&call), 10).await;
    let third = to_deliver(&store, 2, Some(&call), 10).await;
    assert_eq!(
        store.take_deliveries(10, 10, "", DeliveryOrder::FailedStepAside).await.unwrap(),
        std::slice::from_ref(&first)
    );
    assert_eq!(
        store.take_deliveries(10, 10, "", DeliveryOrder::FailedStepAside).await.unwrap(),
        [],
        "the first is under way"
    );
    store
        .record_delivery_result(&first.id, 11, DeliveryResult::Retry { why: "refused".to_owned(), at: 50 })
        .await
        .unwrap();
    assert_eq!(
        store.take_deliveries(11, 10, "", DeliveryOrder::FailedStepAside).await.unwrap(),
        std::slice::from_ref(&second)
    );
    assert_eq!(
        store.take_deliveries(11, 10, "", DeliveryOrder::FailedStepAside).await.unwrap(),
        [],
        "the third waits for the second, in order"
    );
    store.record_delivery_result(&second.id, 12, DeliveryResult::Done).await.unwrap();
    // The first is tried again by itself, beside the third.
    let ids: Vec<String> = store
        .take_deliveries(50, 10, "", DeliveryOrder::FailedStepAside)
        .await
        .unwrap()
        .into_iter()
        .map(|d| d.id)
        .collect();
    assert_eq!(ids, [third.id.clone(), first.id.clone()]);
}

/// Returns the voucher for news of calls of these accounts.
pub(in crate::store) fn voucher(accounts: &[&str], subaccount: Option<&str>) -> Voucher {
    Voucher {
        accounts: accounts.iter().map(|name| AccountName::parse(name).unwrap()).collect(),
        providers: vec!["twilio".to_owned()],
        subaccount: subaccount.map(str::to_owned),
        kinds: vec!["call_sid".to_owned()],
        ..Voucher::default()
    }
}

pub(in crate::store) async fn news_is_applied_to_calls_of_those_alone_who_vouch_for_it(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let call = new_call(&[("call_sid", "CA1")]);
    store.insert_call(call.clone(), None).await.unwrap();
    let says = |by: Voucher, sid: &str| Change {
        bind: vec![Alias::new("call_sid", sid).unwrap()],
        by: Some(by),
        ..change(&call.id, END)
    };
    for (by, sid, why) in [
        (voucher(&["other"], None), "CA1", Contradiction::OtherAccount),
        (voucher(&["twilio"], Some("AC2")), "CA1", Contradiction::OtherSubaccount),
        (voucher(&["twilio"], None), "CA2", Contradiction::OtherCall),
    ] {
        let applied = store.apply(says(by, sid)).await.unwrap().unwrap();
        assert_eq!((applied.contradiction, applied.step), (Some(why), Step::Ignore));
        let record = store.call(&call.id).await.unwrap().unwrap();
        assert_eq!((record.phase, record.aliases.len()), (Phase::Reserved, 1), "nothing is bound, either");
    }
    // What somebody else said before the call was known is not said of it; what its own account said is.
    let early = |id: &str| vec![Alias::new("call_sid", id).unwrap()];
    store.keep_early(early("CA3"), END, Some(voucher(&["other"], None)), 1).await.unwrap();
    store.keep_early(early("CA4"), END, Some(voucher(&["other"], None)), 1).await.unwrap();
    store.keep_early(early("CA4"), END, Some(voucher(&["twilio"], None)), 2).await.unwrap();
    assert_eq!(store.insert_call(new_call(&[("call_sid", "CA3")]), None).await.unwrap(), InsertOutcome::New(None));
    assert_eq!(store.insert_call(new_call(&[("call_sid", "CA4")]), None).await.unwrap(), InsertOutcome::New(Some(END)));
    let applied = store.apply(says(voucher(&["other", "twilio"], None), "CA1")).await.unwrap().unwrap();
    assert_eq!((applied.contradiction, applied.step), (None, Step::End(Outcome::Completed, EndProof::Webhook)));
}
