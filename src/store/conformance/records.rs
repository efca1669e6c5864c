//! Post-call records, webhooks that wait for their call, events of our own.

use crate::store::{DeliveryResult, EventOutcome};
use serde_json::json;

use super::retention::rejection;
use super::*;
use crate::call::AnsweredBy;
use crate::provider::description::PostCall;

fn told(call: &CallId, complete: bool, found: PostCall) -> PutPostCall {
    PutPostCall {
        call: call.clone(),
        found,
        complete,
        by: "webhook",
        at_ms: 5_000,
        due_at: Some(9_000),
        notice: AppNotice::Send,
    }
}

fn whole() -> PostCall {
    PostCall {
        transcript_summary: Some("They said “hello”.".to_owned()),
        call_duration_seconds: Some(42),
        cost: Some(0.0085),
        cost_unit: Some("USD".to_owned()),
        cost_fiat: Some(0.084),
        call_successful: Some(true),
        answered_by: Some(AnsweredBy::Human),
        analysis_data: Some(json!({"call_successful": "success"})),
        metadata_json: Some(json!({"b": 1, "a": [null, "x"]})),
        call_end_time: Some(4_000),
        transcript_json: Some(json!([{"role": "agent"}])),
    }
}

/// Ended at 2000.
async fn ended(store: &Arc<dyn Store>, aliases: &[(&str, &str)]) -> CallId {
    let call = new_call(aliases);
    store.insert_call(call.clone(), None).await.unwrap();
    store.apply(change(&call.id, END)).await.unwrap();
    call.id
}

pub(in crate::store) async fn a_record_is_put_together_of_what_is_told(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let call = ended(&store, &[("call_sid", "CA1")]).await;
    assert_eq!(store.post_call(&call).await.unwrap(), None);
    let part = PostCall { call_duration_seconds: Some(7), cost: Some(1.5), ..PostCall::default() };
    assert_eq!(store.put_post_call(told(&call, false, part)).await.unwrap(), PutOutcome::Kept);
    let kept = store.post_call(&call).await.unwrap().unwrap();
    assert_eq!(
        (kept.found.call_duration_seconds, kept.found.call_end_time),
        (Some(7), Some(2_000)),
        "that of the call"
    );
    assert_eq!((kept.recorded_at, kept.due_at), (None, Some(9_000)), "there is more to come");
    assert_eq!(store.due_post_calls(8_999, 9).await.unwrap(), []);
    assert_eq!(store.due_post_calls(9_000, 9).await.unwrap(), [(call.clone(), 0)]);
    store.record_failed_fetch(&call, "it is away", Some(20_000)).await.unwrap();
    assert_eq!(store.due_post_calls(20_000, 9).await.unwrap(), [(call.clone(), 1)]);
    assert_eq!(store.put_post_call(told(&call, true, whole())).await.unwrap(), PutOutcome::Complete);
    let kept = store.post_call(&call).await.unwrap().unwrap();
    assert_eq!(kept.found, whole());
    assert_eq!((kept.recorded_at, kept.due_at, kept.last_error), (Some(5_000), None, None));
    // What comes again changes nothing but what it says, and nobody is told twice.
    let again = PostCall { cost: Some(2.0), ..PostCall::default() };
    assert_eq!(store.put_post_call(told(&call, true, again)).await.unwrap(), PutOutcome::Kept);
    let late = PostCall { call_end_time: Some(4_500), ..PostCall::default() };
    assert_eq!(store.put_post_call(told(&call, false, late)).await.unwrap(), PutOutcome::Kept);
    let kept = store.post_call(&call).await.unwrap().unwrap();
    assert_eq!(
        (kept.found.cost, kept.found.cost_fiat, kept.found.call_end_time),
        (Some(2.0), Some(0.084), Some(4_500))
    );
    assert_eq!(kept.found.transcript_summary, whole().transcript_summary);
    assert_eq!(fresh.number("SELECT count(*) FROM deliveries WHERE url = ''").await, 1);
    assert_eq!(store.put_post_call(told(&CallId::new(), true, whole())).await.unwrap(), PutOutcome::NoCall);
    store.purge(&RetentionCutoffs::of_all(i64::MAX, 0)).await.unwrap();
    assert_eq!(fresh.number("SELECT count(*) FROM call_records").await, 0, "it goes with its call");
}

pub(in crate::store) async fn a_record_is_completed_once_whoever_tells_of_it(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let call = ended(&store, &[]).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (store, put) = (store.clone(), told(&call, true, whole()));
        tasks.spawn(async move { store.put_post_call(put).await.unwrap() });
    }
    let put = tasks.join_all().await;
    assert_eq!(put.iter().filter(|one| **one == PutOutcome::Complete).count(), 1, "{put:?}");
    assert_eq!(fresh.number("SELECT count(*) FROM deliveries").await, 1);
}

pub(in crate::store) async fn calls_without_a_record_are_found_and_expected_once(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let (first, second) = (ended(&store, &[]).await, ended(&store, &[]).await);
    let never = new_call(&[]);
    store.insert_call(never.clone(), None).await.unwrap();
    store.apply(change(&never.id, Event::Ended(Outcome::NotCreated, EndProof::Provider))).await.unwrap();
    store.insert_call(new_call(&[]), None).await.unwrap();
    let missing = store.unrecorded(0, 2_000, 9).await.unwrap();
    let mut both = [(first.clone(), 2_000), (second.clone(), 2_000)];
    both.sort();
    assert_eq!(missing, both, "not one that made no call, nor one that is up");
    assert_eq!(store.unrecorded(0, 2_000, 1).await.unwrap().len(), 1);
    assert_eq!(store.unrecorded(2_000, 9_000, 9).await.unwrap(), []);
    store.put_post_call(told(&first, true, whole())).await.unwrap();
    assert_eq!(store.unrecorded(0, 2_000, 9).await.unwrap(), [(second.clone(), 2_000)]);
    store.expect_post_calls(vec![second.clone(), first.clone()], 3_000).await.unwrap();
    store.expect_post_calls(vec![second.clone()], 9_000).await.unwrap();
    assert_eq!(store.unrecorded(0, 2_000, 9).await.unwrap(), []);
    assert_eq!(store.due_post_calls(3_000, 9).await.unwrap(), [(second.clone(), 0)]);
    store.record_failed_fetch(&second, "nobody can be asked", None).await.unwrap();
    assert_eq!(store.due_post_calls(i64::MAX, 9).await.unwrap(), []);
    let kept = store.post_call(&second).await.unwrap().unwrap();
    assert_eq!(
        (kept.found, kept.tries, kept.last_error.as_deref()),
        (PostCall::default(), 1, Some("nobody can be asked"))
    );
}

pub(in crate::store) async fn a_webhook_waits_for_its_call(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let (event, _) = event_and_delivery(1, None);
    let alias = Alias::new("conversation_id", "conv_1").unwrap();
    store.receive(event.clone()).await.unwrap();
    store.defer_until_known(&event.id, &alias).await.unwrap();
    store.keep_early(vec![alias.clone()], END, None, 1).await.unwrap();
    store.settle(&event.id, None, EventOutcome::Deferred, None, 1).await.unwrap();
    assert_eq!(store.found_events(0, 9, &in_record()).await.unwrap().events, []);
    let call = new_call(&[("conversation_id", "conv_1")]);
    assert_eq!(store.insert_call(call.clone(), None).await.unwrap(), InsertOutcome::New(Some(END)));
    assert_eq!(store.found_events(2, 9, &in_record()).await.unwrap().events, [], "it came too long ago");
    assert_eq!(store.found_events(0, 9, &in_record()).await.unwrap().events, std::slice::from_ref(&event));
    store.mark_matched(&event.id, Some(&call.id), EventOutcome::Applied).await.unwrap();
    assert_eq!(store.found_events(0, 9, &in_record()).await.unwrap().events, []);
    for (body, left) in [(ExpiredBody::Keep, 1), (ExpiredBody::Delete, 0)] {
        let (mut other, _) = event_and_delivery(if body == ExpiredBody::Keep { 2 } else { 3 }, None);
        other.body = Some(b"{}".to_vec());
        store.receive(other.clone()).await.unwrap();
        store.defer_until_known(&other.id, &Alias::new("conversation_id", "conv_2").unwrap()).await.unwrap();
        store.expire_deferred(1, body).await.unwrap();
        let waiting = "SELECT count(*) FROM webhook_events WHERE waits_id IS NOT NULL";
        assert_eq!(fresh.number(waiting).await, 1, "it is not that old");
        store.expire_deferred(2, body).await.unwrap();
        assert_eq!(fresh.number(waiting).await, 0);
        let kept = format!("SELECT count(*) FROM webhook_events WHERE id = '{}' AND body IS NOT NULL", other.id);
        assert_eq!(fresh.number(&kept).await, left);
    }
    let of_call = format!("SELECT count(*) FROM webhook_events WHERE outcome = 'applied' AND call_id = '{}'", call.id);
    assert_eq!(fresh.number(&of_call).await, 1);
}

pub(in crate::store) async fn the_app_is_told_in_the_transaction_of_the_fact(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let wanted = |call: NewCall| NewCall { notice: AppNotice::Send, ..call };
    let call = wanted(new_call(&[("call_sid", "CA1"), (KEY_KIND, "secret of the app")]));
    store.insert_call(call.clone(), None).await.unwrap();
    assert_eq!(
        store.insert_call(call.clone(), None).await.unwrap(),
        InsertOutcome::Known(call.id.clone()),
        "told once"
    );
    let tell = |event| Change { notice: AppNotice::Send, ..change(&call.id, event) };
    for event in [Event::Reached(Phase::Ringing), Event::Reached(Phase::Live), Event::Reached(Phase::Live), END, END] {
        store.apply(tell(event)).await.unwrap();
    }
    store.put_post_call(told(&call.id, true, whole())).await.unwrap();
    // One that counts although no limit had room was not admitted; one that nobody wants to be told of is not told.
    let over_limit = NewCall { over_limit: true, ..wanted(new_call(&[])) };
    store.insert_call(over_limit, None).await.unwrap();
    store.insert_call(new_call(&[]), None).await.unwrap();
    let mut kinds = Vec::new();
    loop {
        let taken = store.take_deliveries(10_000, 9, "", DeliveryOrder::FailedStepAside).await.unwrap();
        assert!(taken.len() <= 1, "one after the other");
        let Some(delivery) = taken.first() else { break };
        assert!(delivery.route == DeliveryRoute::OwnEvent && delivery.call.as_deref() == Some(call.id.as_str()));
        let body: serde_json::Value = serde_json::from_slice(&delivery.body).unwrap();
        assert_eq!((&body["data"]["callId"], &body["data"]["ids"]), (&json!(call.id), &json!({"call_sid": "CA1"})));
        kinds.push(body["type"].as_str().unwrap().to_owned());
        store.record_delivery_result(&delivery.id, 10_000, DeliveryResult::Done).await.unwrap();
    }
    assert_eq!(kinds, ["call.admitted", "call.live", "call.ended", "call.recorded"]);
    let live = NewCall { phase: Phase::Live, ..wanted(new_call(&[])) };
    store.insert_call(live.clone(), None).await.unwrap();
    let of_live = format!("SELECT count(*) FROM deliveries WHERE call_id = '{}'", live.id);
    assert_eq!(fresh.number(&of_live).await, 2, "admitted, and live already");
    let rejection = RejectionRecord { at: 1, ..rejection("b", AppNotice::Send) };
    let observed = RejectionRecord { id: RejectionId::new(), observed: true, ..rejection.clone() };
    store.record_rejections(vec![rejection.clone(), observed, rejection.clone()]).await.unwrap();
    store.record_rejections(vec![rejection]).await.unwrap();
    let of_nobody = "SELECT count(*) FROM deliveries WHERE call_id IS NULL";
    assert_eq!(fresh.number(of_nobody).await, 1, "its tries are one refusal");
}

/// A webhook that waits for an app that is down keeps no event of our own waiting, nor the other way round.
pub(in crate::store) async fn own_events_do_not_wait_for_webhooks(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let call = NewCall { notice: AppNotice::Send, ..new_call(&[]) };
    store.insert_call(call.clone(), None).await.unwrap();
    to_deliver(&store, 1, Some(&call.id), 1_000).await;
    let taken = store.take_deliveries(1_000, 9, "", DeliveryOrder::FailedStepAside).await.unwrap();
    assert_eq!(taken.iter().filter(|delivery| delivery.route == DeliveryRoute::OwnEvent).count(), 1);
    assert_eq!(taken.len(), 2);
}

pub(in crate::store) async fn a_webhook_that_stays_away_is_noticed(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let asked = |until_ms| WebhookHealthQuery {
        account: "twilio".to_owned(),
        events: vec!["post_call".to_owned()],
        since_ms: 100,
        until_ms,
        calls: 3,
    };
    let seen = async |until_ms| {
        let came = store.webhook_health(asked(until_ms)).await.unwrap();
        (came.last_at, came.missed_in_a_row)
    };
    assert_eq!(seen(9_999).await, (None, 0), "there was no call that it could have come for");
    for n in 1..=6 {
        let call = new_call(&[]);
        store.insert_call(call.clone(), None).await.unwrap();
        let ended_at = n * 1_000;
        let event = match n {
            3 => Event::Ended(Outcome::Busy, EndProof::Webhook),
            _ => END,
        };
        store.apply(Change { at_ms: ended_at, ..change(&call.id, event) }).await.unwrap();
        // It comes for the second call; another webhook for the fourth.
        if let 2 | 4 = n {
            let (event, _) = event_and_delivery(usize::try_from(n).unwrap(), None);
            let kind = if n == 2 { "post_call" } else { "audio" }.to_owned();
            store.receive(NewEvent { received_at: ended_at + 1, event: kind, ..event.clone() }).await.unwrap();
            store.settle(&event.id, Some(&call.id), EventOutcome::Applied, None, ended_at).await.unwrap();
        }
    }
    assert_eq!(seen(1_500).await, (None, 1), "for the first it did not come");
    assert_eq!(seen(2_500).await, (Some(2_001), 0));
    assert_eq!(seen(3_500).await, (Some(2_001), 0), "of what nobody answered nothing is told");
    assert_eq!(seen(5_500).await, (Some(2_001), 2));
    assert_eq!(seen(9_999).await, (None, 3), "no more are looked at");
}
