//! Views and actions of operators.

use super::retention::rejection;
use super::*;
use crate::store::{DeliveryResult, EventOutcome};

fn of_account(account: &str) -> EventFilter {
    EventFilter { account: Some(account.to_owned()), ..EventFilter::default() }
}

pub(in crate::store) async fn a_webhook_that_cannot_be_applied_is_parked_and_opened_again(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let (mut event, delivery) = event_and_delivery(1, None);
    event.body = Some(b"CallSid=CA1".to_vec());
    event.path = "/twilio/status?token=secret".to_owned();
    store.receive(event.clone()).await.unwrap();
    let one = async || store.inbox_event(&event.id).await.unwrap().unwrap();
    assert_eq!((one().await.tries, one().await.path.as_str(), one().await.has_body), (0, "/twilio/status", true));
    assert_eq!(store.count_try(&event.id).await.unwrap(), 1);
    store.record_failed_try(&event.id, "no", Some(500), 100).await.unwrap();
    assert_eq!(store.unsettled_events(499, &in_record(), &Cursor::default(), 99).await.unwrap().events, [], "not yet");
    assert_eq!(
        store.unsettled_events(500, &in_record(), &Cursor::default(), 99).await.unwrap().events,
        [event.clone()]
    );
    assert_eq!(store.count_try(&event.id).await.unwrap(), 2);
    store.record_failed_try(&event.id, "never", None, 600).await.unwrap();
    assert_eq!(store.unsettled_events(i64::MAX, &in_record(), &Cursor::default(), 99).await.unwrap().events, []);
    let parked = store.inbox(Inbox::Parked, &EventFilter::default(), 9).await.unwrap();
    assert_eq!(parked, [one().await]);
    assert_eq!(store.inbox(Inbox::Parked, &of_account(&event.account), 9).await.unwrap(), parked);
    for which in [Inbox::All, Inbox::Unsettled, Inbox::Parked] {
        assert_eq!(store.inbox(which, &of_account("another"), 9).await.unwrap(), []);
    }
    assert_eq!((parked[0].parked_at, parked[0].error.as_deref()), (Some(600), Some("never")));
    assert_eq!(parked[0].park_reason, Some(ParkReason::Failed));
    assert_eq!(store.parked().await.unwrap(), 1);
    assert_eq!(store.inbox(Inbox::Unsettled, &EventFilter::default(), 9).await.unwrap(), []);
    assert!(store.reopen(&event.id).await.unwrap());
    assert_eq!(store.inbox(Inbox::Unsettled, &EventFilter::default(), 9).await.unwrap(), [one().await]);
    assert_eq!(store.parked().await.unwrap(), 0);
    assert_eq!(store.stored_event(&event.id).await.unwrap(), Some(event.clone()));
    // Parked, and then applied since its provider sent it again.
    store.record_failed_try(&event.id, "never", None, 600).await.unwrap();
    assert!(store.settle(&event.id, None, EventOutcome::Applied, Some(delivery.clone()), 700).await.unwrap());
    assert_eq!((one().await.parked_at, one().await.error), (None, None));
    // ApplyOutcome once more it tells nobody a second time by itself.
    assert!(store.reopen(&event.id).await.unwrap());
    let other = Delivery { id: "another".to_owned(), ..delivery.clone() };
    assert!(store.settle(&event.id, None, EventOutcome::Applied, Some(other), 700).await.unwrap());
    let told = store.deliveries_of(&event.id).await.unwrap();
    assert_eq!((told.len(), told[0].id.as_str(), told[0].due_at), (1, delivery.id.as_str(), Some(700)));
    assert!(!store.reopen("nobody").await.unwrap());
    assert!(store.count_try("nobody").await.is_err());
}

pub(in crate::store) async fn what_was_delivered_or_given_up_is_delivered_again_under_its_id(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let first = to_deliver(&store, 1, None, 1).await;
    let second = to_deliver(&store, 2, None, 1).await;
    assert_eq!(store.take_deliveries(1, 9, "", DeliveryOrder::FailedStepAside).await.unwrap().len(), 2);
    store.record_delivery_result(&first.id, 2, DeliveryResult::Done).await.unwrap();
    store.record_delivery_result(&second.id, 2, DeliveryResult::GivenUp { why: "no".to_owned() }).await.unwrap();
    assert_eq!(store.outbox(Outbox::Pending, &EventFilter::default(), 9).await.unwrap(), []);
    let given_up = store.outbox(Outbox::GivenUp, &EventFilter::default(), 9).await.unwrap();
    assert_eq!((given_up.len(), given_up[0].id.as_str(), given_up[0].attempts), (1, second.id.as_str(), 1));
    assert_eq!(
        store.outbox(Outbox::GivenUp, &of_account(given_up[0].account.as_deref().unwrap()), 9).await.unwrap(),
        given_up
    );
    assert_eq!(store.outbox(Outbox::GivenUp, &of_account("another"), 9).await.unwrap(), []);
    assert_eq!((given_up[0].last_error.as_deref(), given_up[0].park_reason), (Some("no"), Some(ParkReason::Failed)));
    for delivery in [&first, &second] {
        assert_eq!(store.redeliver(&delivery.event_id, 3).await.unwrap(), 1);
    }
    assert_eq!(store.redeliver("nobody", 3).await.unwrap(), 0);
    let mut again = store.take_deliveries(3, 9, "", DeliveryOrder::FailedStepAside).await.unwrap();
    again.sort_by(|a, b| a.event_id.cmp(&b.event_id));
    assert_eq!(again, [first.clone(), second], "as they were");
    store.record_delivery_result(&first.id, 4, DeliveryResult::Done).await.unwrap();
    store.delete_body(&first.event_id).await.unwrap();
    assert_eq!(store.redeliver(&first.event_id, 5).await.unwrap(), 0, "what was said is gone");
    assert_eq!(fresh.number("SELECT count(*) FROM deliveries WHERE body IS NULL").await, 1);
}

pub(in crate::store) async fn a_business_is_purged_and_its_open_calls_stay(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let of = |business: &str, aliases: &[(&str, &str)]| {
        let mut call = new_call(aliases);
        call.attributes.business = BusinessId::parse(business).unwrap();
        call.notice = AppNotice::Send;
        call
    };
    let (gone, up) = (of("acme", &[("call_sid", "CA1")]), of("acme", &[("call_sid", "CA2")]));
    let other = of("other", &[("call_sid", "CA3")]);
    for call in [&gone, &up, &other] {
        store.insert_call(call.clone(), None).await.unwrap();
    }
    for (n, call) in [&gone, &other].into_iter().enumerate() {
        store.apply(change(&call.id, END)).await.unwrap();
        store.expect_post_calls(vec![call.id.clone()], 1).await.unwrap();
        to_deliver(&store, n, Some(&call.id), 1).await;
    }
    let rejection = |business: &str| RejectionRecord { at: 1, ..rejection(business, AppNotice::Omit) };
    store.record_rejections(vec![rejection("acme"), rejection("other")]).await.unwrap();
    let purged = store.purge_business("acme").await.unwrap();
    // Its webhook's delivery, and the event of our own that told of its admission.
    let expected =
        Purged { calls: 1, events: 1, deliveries: 2, rejections: 1, runs: 0, schedules: 0, open: vec![up.id.clone()] };
    assert_eq!(purged, expected);
    assert_eq!(store.call(&gone.id).await.unwrap(), None);
    assert_eq!(store.resolve(&gone.aliases).await.unwrap(), None);
    assert!(store.call(&up.id).await.unwrap().is_some() && store.call(&other.id).await.unwrap().is_some());
    for (table, left) in [("call_records", 1), ("webhook_events", 1), ("deliveries", 3), ("refusals", 1)] {
        assert_eq!(fresh.number(&format!("SELECT count(*) FROM {table}")).await, left, "{table}");
    }
    let again = store.purge_business("acme").await.unwrap();
    assert_eq!(again, Purged { open: vec![up.id], ..Purged::default() });
}

pub(in crate::store) async fn who_did_what_is_kept_and_forgotten_in_time(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let record = |at: UnixMs, reason: Option<&str>| AuditRecord {
        id: format!("au_{at}"),
        at,
        who: "ops".to_owned(),
        from: "203.0.113.9:4711".to_owned(),
        what: "release".to_owned(),
        target: "c_1".to_owned(),
        reason: reason.map(str::to_owned),
        before: reason.map(|_| r#"{"phase":"live"}"#.to_owned()),
        after: reason.map(|_| r#"{"phase":"ended"}"#.to_owned()),
    };
    for one in [record(1, None), record(2, Some("it hung"))] {
        store.audit(one).await.unwrap();
    }
    assert_eq!(store.latest_audit(9).await.unwrap(), [record(2, Some("it hung")), record(1, None)]);
    assert_eq!(store.purge(&RetentionCutoffs::of_all(2, 0)).await.unwrap(), 1);
    assert_eq!(store.latest_audit(9).await.unwrap(), [record(2, Some("it hung"))]);
}

pub(in crate::store) async fn a_body_in_a_spool_is_its_replicas_alone(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let (event, delivery) = event_and_delivery(1, None);
    let event = NewEvent { spool: Some("mine".to_owned()), ..event };
    let delivery = Delivery { spool: event.spool.clone(), body: vec![], ..delivery };
    store.receive(event.clone()).await.unwrap();
    let reach = |spool: &str| Reach { spool: spool.to_owned(), database: true };
    assert_eq!(store.unsettled_events(1, &reach("other"), &Cursor::default(), 99).await.unwrap().events, []);
    let own = Reach { database: false, ..reach("mine") };
    assert_eq!(
        store.unsettled_events(1, &own, &Cursor::default(), 99).await.unwrap().events,
        std::slice::from_ref(&event)
    );
    // It came again at another replica.
    store.set_spool(&event.id, "other").await.unwrap();
    assert_eq!(store.unsettled_events(1, &own, &Cursor::default(), 99).await.unwrap().events, []);
    assert!(store.clear_spool(&event.id, "mine").await.unwrap(), "the first file is nobody's");
    store.set_spool(&event.id, "mine").await.unwrap();
    assert!(!store.clear_spool(&event.id, "mine").await.unwrap(), "it is not applied yet");
    assert!(store.settle(&event.id, None, EventOutcome::Deferred, Some(delivery.clone()), 5).await.unwrap());
    store.set_spool(&event.id, "other").await.unwrap();
    assert!(!store.clear_spool(&event.id, "mine").await.unwrap(), "its delivery needs the file");
    assert_eq!(store.take_deliveries(5, 9, "other", DeliveryOrder::FailedStepAside).await.unwrap(), []);
    assert_eq!(
        store.take_deliveries(5, 9, "mine", DeliveryOrder::FailedStepAside).await.unwrap(),
        std::slice::from_ref(&delivery)
    );
    let alias = Alias { kind: "call_sid".to_owned(), id: "CA1".to_owned() };
    store.defer_until_known(&event.id, &alias).await.unwrap();
    store.record_delivery_result(&delivery.id, 6, DeliveryResult::Done).await.unwrap();
    assert!(!store.clear_spool(&event.id, "mine").await.unwrap(), "it waits for its call");
    store.mark_matched(&event.id, None, EventOutcome::Unusable).await.unwrap();
    assert_eq!(store.inbox_event(&event.id).await.unwrap().unwrap().spool.as_deref(), Some("mine"));
    assert_eq!(store.redeliver(&event.id, 7).await.unwrap(), 1, "as long as the file is there");
    assert!(!store.clear_spool(&event.id, "mine").await.unwrap(), "the app does not have it");
    store.record_delivery_result(&delivery.id, 8, DeliveryResult::Done).await.unwrap();
    assert!(store.clear_spool(&event.id, "mine").await.unwrap());
    assert!(store.clear_spool(&event.id, "mine").await.unwrap(), "and still");
    assert_eq!(store.redeliver(&event.id, 9).await.unwrap(), 0, "an empty body is not sent in its place");
    assert!(!store.reopen(&event.id).await.unwrap());
    assert!(!store.clear_spool("ev_of_another_record", "mine").await.unwrap());
}

pub(in crate::store) async fn what_is_in_the_spool_of_a_replica_that_is_gone_is_parked_and_seen(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let spooled = |n: usize, spool: &str| {
        let (event, delivery) = event_and_delivery(n, None);
        let spool = Some(spool.to_owned());
        (NewEvent { spool: spool.clone(), ..event }, Delivery { spool, body: vec![], ..delivery })
    };
    let (unsettled, pending, mine) = (spooled(1, "gone"), spooled(2, "gone"), spooled(3, "mine"));
    for (event, _) in [&unsettled, &pending, &mine] {
        store.receive(event.clone()).await.unwrap();
    }
    for (event, delivery) in [&pending, &mine] {
        assert!(store.settle(&event.id, None, EventOutcome::Applied, Some(delivery.clone()), 5).await.unwrap());
    }
    assert_eq!(store.park_unreachable(1, "mine", "gone", 100).await.unwrap(), 0, "not yet");
    assert_eq!(store.park_unreachable(50, "mine", "gone", 100).await.unwrap(), 2);
    let parked = store.inbox(Inbox::Parked, &EventFilter::default(), 9).await.unwrap();
    assert_eq!((parked.len(), parked[0].id.as_str()), (1, unsettled.0.id.as_str()));
    assert_eq!((parked[0].error.as_deref(), parked[0].has_body), (Some("gone"), true));
    assert_eq!(parked[0].park_reason, Some(ParkReason::SpoolUnreachable));
    let given_up = store.outbox(Outbox::GivenUp, &EventFilter::default(), 9).await.unwrap();
    assert_eq!((given_up.len(), given_up[0].last_error.as_deref()), (1, Some("gone")));
    assert_eq!(given_up[0].park_reason, Some(ParkReason::SpoolUnreachable));
    assert_eq!(store.take_deliveries(200, 9, "mine", DeliveryOrder::FailedStepAside).await.unwrap(), [mine.1]);
    // It comes back.
    assert!(store.reopen(&unsettled.0.id).await.unwrap());
    assert_eq!(store.redeliver(&pending.0.id, 200).await.unwrap(), 1);
    assert_eq!(store.deliveries_of(&pending.0.id).await.unwrap()[0].park_reason, None);
    let reach = Reach { spool: "gone".to_owned(), database: false };
    assert_eq!(store.unsettled_events(200, &reach, &Cursor::default(), 99).await.unwrap().events, [unsettled.0]);
    assert_eq!(store.take_deliveries(200, 9, "gone", DeliveryOrder::FailedStepAside).await.unwrap(), [pending.1]);
}

pub(in crate::store) async fn a_purge_tells_spools_which_files_must_go(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let call = new_call(&[("call_sid", "CA1")]);
    store.insert_call(call.clone(), None).await.unwrap();
    store.apply(change(&call.id, END)).await.unwrap();
    let (event, delivery) = event_and_delivery(1, Some(&call.id));
    let event = NewEvent { spool: Some("mine".to_owned()), dedupe_key: Some("CA1".to_owned()), ..event };
    let delivery = Delivery { spool: event.spool.clone(), body: vec![], ..delivery };
    store.receive(event.clone()).await.unwrap();
    store.settle(&event.id, Some(&call.id), EventOutcome::Applied, Some(delivery), 1).await.unwrap();
    let purged = store.purge_business(call.attributes.business.as_str()).await.unwrap();
    assert_eq!((purged.calls, purged.events, purged.deliveries), (1, 1, 1));
    assert!(store.clear_spool(&event.id, "mine").await.unwrap());
    let left = store.stored_event(&event.id).await.unwrap().unwrap();
    assert_eq!((left.path.as_str(), left.headers, left.dedupe_key, left.spool), ("", vec![], None, None));
    assert_eq!(
        store.unsettled_events(i64::MAX, &in_record(), &Cursor::default(), 99).await.unwrap(),
        UnsettledEvents::default()
    );
    assert_eq!(store.purge(&RetentionCutoffs::of_all(1000, 0)).await.unwrap(), 1, "what is left of it goes in time");
}

pub(in crate::store) async fn a_damaged_row_keeps_no_other_from_its_turn(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let mut all = vec![];
    for n in 1..=3 {
        let (event, delivery) = event_and_delivery(n, None);
        store.receive(event.clone()).await.unwrap();
        all.push((event, delivery));
    }
    let alias = Alias { kind: "call_sid".to_owned(), id: "CA9".to_owned() };
    let ids: Vec<&str> = all.iter().map(|(event, _)| event.id.as_str()).collect();
    fresh.execute("UPDATE webhook_events SET headers = 'no JSON' WHERE id = 'ev_002'").await;
    let waiting = store.unsettled_events(1, &in_record(), &Cursor::default(), 99).await.unwrap();
    assert_eq!(waiting.events, [all[0].0.clone(), all[2].0.clone()]);
    assert_eq!((waiting.damaged.len(), waiting.damaged[0].0.as_str()), (1, ids[1]));
    for (event, delivery) in &all {
        store.settle(&event.id, None, EventOutcome::Deferred, Some(delivery.clone()), 5).await.unwrap();
        store.defer_until_known(&event.id, &alias).await.unwrap();
    }
    fresh.execute("UPDATE deliveries SET headers = '7' WHERE event_id = 'ev_001'").await;
    assert_eq!(
        store.take_deliveries(5, 9, "", DeliveryOrder::FailedStepAside).await.unwrap(),
        [all[1].1.clone(), all[2].1.clone()]
    );
    let given_up = store.outbox(Outbox::GivenUp, &EventFilter::default(), 9).await.unwrap();
    assert_eq!((given_up.len(), given_up[0].event_id.as_str()), (1, ids[0]));
    assert!(given_up[0].last_error.is_some());
    // Calls: the damaged one is over, and keeps nobody from starting.
    let (good, bad) = (new_call(&[("call_sid", "CA9")]), new_call(&[]));
    for call in [&good, &bad] {
        store.insert_call(call.clone(), None).await.unwrap();
        store.apply(change(&call.id, END)).await.unwrap();
    }
    let found = store.found_events(0, 9, &in_record()).await.unwrap();
    assert_eq!((found.events.len(), found.damaged.len()), (2, 1));
    fresh.execute(&format!("UPDATE calls SET direction = 'sideways' WHERE id = '{}'", bad.id)).await;
    let latest: Vec<CallId> = store.latest_calls(9).await.unwrap().into_iter().map(|call| call.id).collect();
    assert_eq!(latest, std::slice::from_ref(&good.id));
    assert_eq!(store.admitted_since(0).await.unwrap(), [(good.at_ms, good.attributes)]);
}

pub(in crate::store) async fn unsettled_webhooks_are_read_page_by_page(fresh: &impl Fresh) {
    const ALL: i64 = 3_000;
    let store = fresh.open().await;
    // Many came in the same millisecond; whole pages cannot be read; some are settled, parked or not due yet.
    let sql = format!("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ALL})");
    let insert = format!(
        "{sql} INSERT INTO webhook_events (id, account, webhook, event, received_at, method, path, headers, body, outcome, parked_at, due_at)
         SELECT 'ev_' || (100000 + i), 'a', 'w', 'e', i / 100, 'POST', '/', CASE WHEN i <= 200 THEN 'no JSON' ELSE '[]' END, NULL,
             CASE WHEN i % 10 = 0 THEN 'applied' END, CASE WHEN i % 10 = 1 THEN 1 END, CASE WHEN i % 10 = 2 THEN 9999 END FROM n"
    );
    fresh.execute(&insert).await;
    let (mut after, mut ids, mut damaged, mut pages) = (Cursor::default(), vec![], 0, 0);
    loop {
        let page = store.unsettled_events(1_000, &in_record(), &after, 64).await.unwrap();
        assert!(page.events.len() + page.damaged.len() <= 64);
        damaged += page.damaged.len();
        ids.extend(page.damaged.into_iter().map(|(id, _)| id).chain(page.events.into_iter().map(|event| event.id)));
        pages += 1;
        let Some(last) = page.last else { break };
        after = last;
    }
    let wanted = (1..=ALL).filter(|i| i % 10 > 2).map(|i| format!("ev_{}", 100_000 + i));
    assert_eq!((ids, damaged, pages), (wanted.collect::<Vec<_>>(), 140, 2_100 / 64 + 2));
}

pub(in crate::store) async fn lists_are_narrowed_before_they_are_cut(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let call = |n: i64, business: &str, account: &str| {
        let mut call = NewCall { at_ms: n, ..new_call(&[("call_sid", &format!("CA{n}"))]) };
        call.attributes.business = BusinessId::parse(business).unwrap();
        call.attributes.account = AccountName::parse(account).unwrap();
        call
    };
    // The ones that are wanted are older than a hundred others.
    let quiet = call(1, "quiet", "e");
    let mut carried = call(2, "quiet", "f");
    carried.attributes.carrier = Some(AccountName::parse("t").unwrap());
    store.insert_call(quiet.clone(), None).await.unwrap();
    store.insert_call(carried.clone(), None).await.unwrap();
    for n in 10..110 {
        store.insert_call(call(n, "loud", "e"), None).await.unwrap();
    }
    let found = async |filter: ListFilter| {
        let found = store.list_calls(&filter, 3).await.unwrap();
        found.into_iter().map(|call| call.id).collect::<Vec<CallId>>()
    };
    let of = |businesses: &[&str]| Some(businesses.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>());
    let quietly = ListFilter { businesses: of(&["quiet", "nobody"]), ..ListFilter::default() };
    assert_eq!(found(quietly.clone()).await, [carried.id.clone(), quiet.id.clone()]);
    assert_eq!(found(ListFilter { businesses: of(&[]), ..ListFilter::default() }).await, []);
    let account = |name: &str| ListFilter { account: Some(name.to_owned()), ..ListFilter::default() };
    assert_eq!(found(account("f")).await, [carried.id.clone()]);
    assert_eq!(found(account("t")).await, [carried.id.clone()], "its carrier's calls are an account's own");
    let early = ListFilter { from_ms: Some(2), before_ms: Some(10), ..ListFilter::default() };
    assert_eq!(found(early).await, [carried.id.clone()]);
    let phases = |phase| ListFilter { phases: Some(vec![phase]), ..quietly.clone() };
    assert_eq!(found(phases(quiet.phase)).await.len(), 2);
    assert_eq!(found(phases(Phase::Ended)).await, []);
    assert_eq!(found(ListFilter::default()).await.len(), 3);

    let now: Vec<CallId> = store.calls_at(2, 9).await.unwrap().into_iter().map(|call| call.id).collect();
    let (quiet_id, carried_id) = (quiet.id, carried.id);
    assert_eq!(now, [quiet_id.clone(), carried_id.clone()], "those that were up then, the oldest first");
    assert_eq!(store.calls_at(0, 9).await.unwrap(), []);

    let mut wanted = rejection("quiet", AppNotice::Omit);
    wanted.at = 1;
    let loud: Vec<RejectionRecord> = (0..100).map(|_| rejection("loud", AppNotice::Omit)).collect();
    store.record_rejections(vec![wanted.clone()]).await.unwrap();
    store.record_rejections(loud).await.unwrap();
    let rejections = async |filter: ListFilter| store.list_rejections(&filter, 3).await.unwrap();
    assert_eq!(rejections(quietly).await, [wanted.clone()]);
    assert_eq!(rejections(ListFilter { before_ms: Some(2), ..account("a") }).await, [wanted.clone()]);
    assert_eq!(rejections(account("b")).await, []);
    let code = |code: &str| ListFilter { code: Some(code.to_owned()), ..ListFilter::default() };
    assert_eq!(rejections(code(&wanted.code)).await.len(), 3);
    assert_eq!(rejections(code("NO_SUCH_CODE")).await, []);
    // Page by page, each comes once.
    let (mut after, mut seen) = (None, vec![]);
    loop {
        let page = rejections(ListFilter { after: after.take(), ..ListFilter::default() }).await;
        let Some(last) = page.last() else { break };
        after = Some((last.at, last.id.to_string()));
        seen.extend(page.into_iter().map(|one| one.id));
    }
    assert_eq!((seen.len(), seen.last()), (101, Some(&wanted.id)));
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 101);
    let next = ListFilter { after: Some((10, String::new())), ..ListFilter::default() };
    assert_eq!(found(next).await, [carried_id, quiet_id]);
    assert_eq!(store.rejection(&wanted.id).await.unwrap(), Some(wanted));
    assert_eq!(store.rejection(&RejectionId::new()).await.unwrap(), None);
}

pub(in crate::store) async fn webhooks_are_narrowed_and_what_can_be_replayed_is_counted(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let mut call = new_call(&[("call_sid", "CA1")]);
    call.attributes.business = BusinessId::parse("quiet").unwrap();
    store.insert_call(call.clone(), None).await.unwrap();
    // Five came: two were parked, two are settled (the body of one is gone), one waits.
    for n in 1..=5 {
        let (mut event, delivery) = event_and_delivery(n, Some(&call.id));
        (event.body, event.received_at) = (Some(b"x".to_vec()), i64::try_from(n).unwrap());
        store.receive(event.clone()).await.unwrap();
        match n {
            1 | 2 => store.record_failed_try(&event.id, "never", None, 9).await.unwrap(),
            3 | 4 => {
                let delivery = (n == 4).then_some(delivery);
                assert!(store.settle(&event.id, Some(&call.id), EventOutcome::Applied, delivery, 9).await.unwrap());
            }
            _ => {}
        }
        if n == 3 {
            store.delete_body(&event.id).await.unwrap();
        }
    }
    let all = EventFilter::default();
    let ids = async |which, filter: &EventFilter| {
        store.inbox(which, filter, 9).await.unwrap().into_iter().map(|one| one.received_at).collect::<Vec<_>>()
    };
    assert_eq!(ids(Inbox::All, &all).await, [5, 4, 3, 2, 1]);
    assert_eq!(ids(Inbox::Settled, &all).await, [4, 3]);
    assert_eq!(ids(Inbox::Parked, &EventFilter { from_ms: Some(2), ..all.clone() }).await, [2]);
    let of = |business: &str| EventFilter { business: Some(business.to_owned()), ..EventFilter::default() };
    assert_eq!(ids(Inbox::All, &of("quiet")).await, [4, 3]);
    assert_eq!(ids(Inbox::All, &of("other")).await, [0_i64; 0]);
    let page = store.inbox(Inbox::All, &all, 2).await.unwrap();
    let after = page.last().map(|one| (one.received_at, one.id.clone()));
    assert_eq!(ids(Inbox::All, &EventFilter { after, ..all.clone() }).await, [3, 2, 1]);
    let named = |account: &str| EventFilter { account: Some(account.to_owned()), ..EventFilter::default() };
    assert_eq!(ids(Inbox::All, &named("nobody's")).await, [0_i64; 0]);
    // The delivery of one is given up, and one of our own.
    assert_eq!(store.take_deliveries(9, 9, "", DeliveryOrder::FailedStepAside).await.unwrap().len(), 1);
    let pending = store.outbox(Outbox::Pending, &of("quiet"), 9).await.unwrap();
    assert_eq!(pending.len(), 1);
    store.record_delivery_result(&pending[0].id, 9, DeliveryResult::GivenUp { why: "no".to_owned() }).await.unwrap();
    assert_eq!(store.outbox(Outbox::GivenUp, &of("quiet"), 9).await.unwrap().len(), 1);
    assert_eq!(store.outbox(Outbox::GivenUp, &of("other"), 9).await.unwrap(), []);
    let matching = async |which, filter: &EventFilter| {
        let found = store.replayable(which, filter, 9).await.unwrap();
        assert_eq!(store.count_replayable(which, filter).await.unwrap(), found.len() as u64);
        found.into_iter().map(|(at, _)| at).collect::<Vec<_>>()
    };
    assert_eq!(matching(Replayable::Parked, &all).await, [1, 2]);
    assert_eq!(matching(Replayable::GivenUp, &all).await, [4]);
    assert_eq!(matching(Replayable::Failed, &all).await, [1, 2, 4], "the oldest first");
    assert_eq!(matching(Replayable::Settled, &all).await, [4], "without a body nothing can be applied again");
    assert_eq!(matching(Replayable::Failed, &of("quiet")).await, [4]);
    assert_eq!(matching(Replayable::Failed, &EventFilter { before_ms: Some(2), ..all.clone() }).await, [1]);
    let first = store.replayable(Replayable::Failed, &all, 1).await.unwrap().pop();
    let rest = EventFilter { after: first, ..all };
    assert_eq!(store.replayable(Replayable::Failed, &rest, 9).await.unwrap().len(), 2);
}

pub(in crate::store) async fn a_bypass_is_known_to_all_until_it_is_off(fresh: &impl Fresh) {
    let (a, b) = (fresh.open_shared().await, fresh.open_shared().await);
    let me = Replica::new();
    assert_eq!((b.bypass().await.unwrap(), b.heartbeat(&me, None).await.unwrap().bypass), (None, None));
    let first = Bypass { since_ms: 1, until_ms: 9, who: "ops \"x\"".to_owned(), reason: "a, b\nc".to_owned() };
    let second = Bypass { until_ms: 20, ..first.clone() };
    for bypass in [first, second] {
        a.set_bypass(Some(bypass.clone())).await.unwrap();
        assert_eq!(b.bypass().await.unwrap().as_ref(), Some(&bypass));
        assert_eq!(b.heartbeat(&me, None).await.unwrap().bypass, Some(bypass), "the latest counts");
    }
    b.set_bypass(None).await.unwrap();
    b.set_bypass(None).await.unwrap();
    assert_eq!((a.bypass().await.unwrap(), a.heartbeat(&me, None).await.unwrap().bypass), (None, None));
}
