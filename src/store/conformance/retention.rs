//! The time for which what businesses left behind is kept, and what of it.

use crate::store::{DeliveryResult, EventOutcome};
use serde_json::json;

use super::*;
use crate::call::Direction;
use crate::policy::Privacy;
use crate::provider::description::PostCall;

fn of(business: &str) -> NewCall {
    let call = new_call(&[("call_sid", &format!("CA_{business}"))]);
    NewCall { attributes: CallAttributes { business: BusinessId::parse(business).unwrap(), ..call.attributes }, ..call }
}

/// A call that ended at 2000, with everything that one leaves behind: its webhook is number `n`, and so is a rejection of 2000.
async fn left_behind(store: &Arc<dyn Store>, business: &str, n: usize) -> (NewCall, NewEvent, Delivery) {
    let call = of(business);
    store.insert_call(call.clone(), None).await.unwrap();
    let said = NewUtterance {
        event_id: format!("ev_{business}"),
        speaker: crate::call::Speaker::User,
        text: "My number is 7.".to_owned(),
        said_at: String::new(),
        source_sequence: None,
        source: None,
        at_ms: 1_500,
    };
    store.add_utterance(&call.id, said).await.unwrap();
    store.apply(change(&call.id, END)).await.unwrap();
    let found = PostCall {
        transcript_summary: Some("Number 7.".to_owned()),
        analysis_data: Some(json!({"number": 7})),
        transcript_json: Some(json!([{"message": "7"}])),
        metadata_json: Some(json!({"kept": true})),
        ..PostCall::default()
    };
    let put = PutPostCall {
        call: call.id.clone(),
        found,
        complete: true,
        by: "webhook",
        at_ms: 2_000,
        due_at: None,
        notice: AppNotice::Omit,
    };
    store.put_post_call(put).await.unwrap();
    let (event, delivery) = event_and_delivery(n, Some(&call.id));
    let event = NewEvent { body: Some(b"7".to_vec()), received_at: 2_000, ..event };
    store.receive(event.clone()).await.unwrap();
    store.settle(&event.id, Some(&call.id), EventOutcome::Applied, Some(delivery.clone()), 2_000).await.unwrap();
    store.record_rejections(vec![rejection(business, AppNotice::Omit)]).await.unwrap();
    (call, event, delivery)
}

/// Of 2000; with `tell`, the app is told of it.
pub(super) fn rejection(business: &str, notice: AppNotice) -> RejectionRecord {
    RejectionRecord {
        id: RejectionId::new(),
        at: 2_000,
        business: business.to_owned(),
        account: "a".to_owned(),
        direction: Direction::Outbound,
        code: "X".to_owned(),
        limit_name: None,
        current: None,
        limit: None,
        observed: false,
        attempts: 1,
        notice,
    }
}

const TABLES: [&str; 8] =
    ["calls", "call_aliases", "call_records", "utterances", "transcripts", "webhook_events", "deliveries", "refusals"];

pub(in crate::store) async fn each_business_is_forgotten_at_its_own_age(fresh: &impl Fresh) {
    let store = fresh.open().await;
    for (n, business) in ["short", "usual", "long"].into_iter().enumerate() {
        left_behind(&store, business, n + 1).await;
        store.record_rejections(vec![rejection(business, AppNotice::Send)]).await.unwrap();
    }
    let taken = store.take_deliveries(2_000, 99, "", DeliveryOrder::FailedStepAside).await.unwrap();
    assert_eq!(taken.len(), 6);
    for delivery in taken {
        store.record_delivery_result(&delivery.id, 2_000, DeliveryResult::Done).await.unwrap();
    }
    let rows = async |table: &str| fresh.number(&format!("SELECT count(*) FROM {table}")).await;
    let ages = |usual: UnixMs, short: UnixMs, long: UnixMs| RetentionCutoffs {
        before_ms: usual,
        of_business: [("short", short), ("long", long)].map(|(id, at)| (BusinessId::parse(id).unwrap(), at)).into(),
        early_before_ms: 0,
        answers_before_ms: 0,
    };
    assert_eq!(store.purge(&ages(2_000, 2_000, 2_000)).await.unwrap(), 0, "nothing is that old");
    for (ages, left) in [(ages(0, 2_001, 0), 2), (ages(2_001, 2_001, 0), 1), (ages(5_000, 5_000, 2_001), 0)] {
        assert_eq!(store.purge(&ages).await.unwrap(), 5, "a call, its webhook, its delivery, two refusals");
        for table in TABLES {
            let each = if ["deliveries", "refusals"].contains(&table) { 2 } else { 1 };
            assert_eq!(rows(table).await, left * each, "{table}");
        }
    }
}

pub(in crate::store) async fn what_the_app_still_waits_for_outlives_its_call(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let (call, event, delivery) = left_behind(&store, "acme", 1).await;
    let (_, spooled, pending) = {
        let (event, delivery) = event_and_delivery(2, Some(&call.id));
        let spool = Some("mine".to_owned());
        let delivery = Delivery { spool: spool.clone(), body: vec![], ..delivery };
        let event = NewEvent { spool, received_at: 2_000, ..event };
        store.receive(event.clone()).await.unwrap();
        store.settle(&event.id, Some(&call.id), EventOutcome::Applied, Some(delivery.clone()), 2_000).await.unwrap();
        ((), event, delivery)
    };
    let old = RetentionCutoffs::of_all(2_001, 0);
    store.purge(&old).await.unwrap();
    assert_eq!(store.call(&call.id).await.unwrap(), None);
    assert_eq!(store.inbox_event(&event.id).await.unwrap(), None);
    assert!(!store.clear_spool(&spooled.id, "mine").await.unwrap(), "the app does not have it");
    assert_eq!(
        store.take_deliveries(2_000, 9, "mine", DeliveryOrder::FailedStepAside).await.unwrap(),
        std::slice::from_ref(&delivery)
    );
    store.record_delivery_result(&delivery.id, 2_000, DeliveryResult::Done).await.unwrap();
    assert_eq!(
        store.take_deliveries(2_000, 9, "mine", DeliveryOrder::FailedStepAside).await.unwrap(),
        std::slice::from_ref(&pending)
    );
    store.record_delivery_result(&pending.id, 2_000, DeliveryResult::Done).await.unwrap();
    assert!(store.clear_spool(&spooled.id, "mine").await.unwrap());
    store.purge(&old).await.unwrap();
    for table in ["webhook_events", "deliveries"] {
        assert_eq!(fresh.number(&format!("SELECT count(*) FROM {table}")).await, 0, "{table}");
    }
}

pub(in crate::store) async fn less_is_kept_of_what_was_kept_before(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let (call, event, delivery) = left_behind(&store, "acme", 1).await;
    let bodies = async || {
        fresh.number("SELECT (SELECT count(*) FROM webhook_events WHERE body IS NOT NULL) * 10 + (SELECT count(*) FROM deliveries WHERE body IS NOT NULL)").await
    };
    let calls = &[call.id.to_string()];
    assert_eq!(store.redact(calls, Privacy::Hash).await.unwrap(), 2, "a record and an utterance");
    let hashed = store.post_call(&call.id).await.unwrap().unwrap();
    assert!(hashed.found.transcript_summary.as_deref().unwrap().starts_with("sha256:"));
    let parts = [&hashed.found.analysis_data, &hashed.found.transcript_json];
    assert!(parts.iter().all(|part| part.as_ref().unwrap()["digest"].as_str().unwrap().starts_with("sha256:")));
    assert_eq!(bodies().await, 1, "what the app still waits for stays");
    store.record_delivery_result(&delivery.id, 2_000, DeliveryResult::Done).await.unwrap();
    assert_eq!(store.redact(calls, Privacy::Hash).await.unwrap(), 0, "a digest is not hashed again");
    assert_eq!(bodies().await, 0);
    assert_eq!(store.redact(calls, Privacy::None).await.unwrap(), 2);
    assert_eq!(store.redact(calls, Privacy::None).await.unwrap(), 0);
    let left = store.post_call(&call.id).await.unwrap().unwrap().found;
    assert_eq!((left.transcript_summary, left.analysis_data, left.transcript_json), (None, None, None));
    assert_eq!(left.metadata_json, Some(json!({"kept": true})));
    assert!(store.inbox_event(&event.id).await.unwrap().is_some_and(|event| !event.has_body));
}

pub(in crate::store) async fn an_answer_to_a_create_is_kept_for_a_while(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let answer = |fingerprint: &str, body: &[u8]| CreateAnswer {
        fingerprint: fingerprint.to_owned(),
        status: 201,
        headers: vec![
            ("content-type".to_owned(), "application/json".to_owned()),
            ("x".to_owned(), "\u{ff}".to_owned()),
        ],
        body: body.to_vec(),
    };
    let calls = [new_call(&[]), new_call(&[])];
    let answered = async |n: usize, answer: &CreateAnswer, at_ms: UnixMs| {
        let event = Some(Event::Reached(Phase::Dialing));
        let change = Change { event, answer: Some(answer.clone()), at_ms, ..change(&calls[n].id, END) };
        store.apply(change).await.unwrap().unwrap();
    };
    let kept = async |n: usize, fingerprint: &str| store.create_answer(&calls[n].id, fingerprint).await.unwrap();
    for call in &calls {
        store.insert_call(call.clone(), None).await.unwrap();
    }
    let (first, again, other) = (answer("a", b"1"), answer("a", b"\0\xff"), answer("b", b""));
    answered(0, &first, 1_000).await;
    assert_eq!((kept(0, "a").await, kept(0, "b").await, kept(1, "a").await), (Some(first), None, None));
    answered(0, &again, 2_000).await;
    answered(0, &other, 3_000).await;
    answered(1, &other, 3_000).await;
    assert_eq!(
        (kept(0, "a").await, kept(0, "b").await),
        (Some(again), Some(other.clone())),
        "the last one of an order"
    );
    // It goes after its own time, with its call, and where less is kept.
    let ages = RetentionCutoffs { answers_before_ms: 2_001, ..RetentionCutoffs::default() };
    assert_eq!(store.purge(&ages).await.unwrap(), 1);
    assert_eq!((kept(0, "a").await, kept(0, "b").await.is_some()), (None, true));
    for call in &calls {
        store.apply(change(&call.id, END)).await.unwrap();
    }
    store.redact(&[calls[0].id.to_string()], Privacy::Hash).await.unwrap();
    assert_eq!((kept(0, "b").await, kept(1, "b").await), (None, Some(other)));
    store.purge(&RetentionCutoffs { before_ms: i64::MAX, ..RetentionCutoffs::default() }).await.unwrap();
    assert_eq!(fresh.number("SELECT count(*) FROM create_answers").await, 0);
}
