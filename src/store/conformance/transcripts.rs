//! Duties of every back end concerning utterances.

use std::collections::BTreeSet;

use super::*;
use crate::call::Speaker;
use crate::policy::Privacy;

fn said(event: &str, text: &str) -> NewUtterance {
    NewUtterance {
        event_id: event.to_owned(),
        speaker: Speaker::User,
        text: text.to_owned(),
        said_at: "2026-01-02T03:04:05Z".to_owned(),
        source_sequence: None,
        source: None,
        at_ms: 1000,
    }
}

async fn call_of(store: &Arc<dyn Store>) -> CallId {
    let call = new_call(&[]);
    store.insert_call(call.clone(), None).await.unwrap();
    call.id
}

pub(in crate::store) async fn what_many_say_at_once_is_numbered_without_gaps(fresh: &impl Fresh) {
    const SENDERS: i64 = 20;
    const EACH: i64 = 10;
    let store = fresh.open().await;
    let calls = [call_of(&store).await, call_of(&store).await];
    let mut tasks = tokio::task::JoinSet::new();
    for sender in 0..SENDERS {
        let (store, calls) = (store.clone(), calls.clone());
        tasks.spawn(async move {
            for n in 0..EACH {
                for call in &calls {
                    // Every one twice, at the same time.
                    let one = said(&format!("{call}-{sender}-{n}"), "hello");
                    let (first, again) =
                        tokio::join!(store.add_utterance(call, one.clone()), store.add_utterance(call, one));
                    assert_eq!(first.unwrap().unwrap(), again.unwrap().unwrap());
                }
            }
        });
    }
    tasks.join_all().await;
    for call in &calls {
        let all = store.utterances(call, 0, 10_000).await.unwrap();
        let numbers: Vec<i64> = all.iter().map(|u| u.sequence).collect();
        assert_eq!(numbers, (1..=SENDERS * EACH).collect::<Vec<_>>());
        assert_eq!(store.last_sequence(call).await.unwrap(), SENDERS * EACH);
    }
}

pub(in crate::store) async fn an_utterance_that_comes_again_keeps_its_number(fresh: &impl Fresh) {
    let call = {
        let store = fresh.open().await;
        let call = call_of(&store).await;
        let first = store.add_utterance(&call, said("ev_1", "hello")).await.unwrap().unwrap();
        let second = store.add_utterance(&call, said("ev_2", "hello")).await.unwrap().unwrap();
        assert_eq!((first.sequence, second.sequence), (1, 2));
        assert_ne!(first.id, second.id);
        assert_eq!(store.add_utterance(&call, said("ev_1", "hello")).await.unwrap(), Some(first));
        store.close().await;
        call
    };
    let store = fresh.open().await;
    assert_eq!(store.add_utterance(&call, said("ev_2", "hello")).await.unwrap().unwrap().sequence, 2);
    assert_eq!(store.add_utterance(&call, said("ev_3", "hello")).await.unwrap().unwrap().sequence, 3);
}

/// A webhook by which somebody says this in the call of these ids.
fn speech(event: &str, dedupe_key: &str, ids: &[(&str, &str)]) -> UtteranceIngest {
    let (mut row, mut delivery) = event_and_delivery(0, None);
    (row.id, row.dedupe_key, row.body) = (event.to_owned(), Some(dedupe_key.to_owned()), Some(b"{}".to_vec()));
    (delivery.id, delivery.event_id) = (format!("dl_{event}"), event.to_owned());
    UtteranceIngest {
        by: Voucher {
            accounts: vec![AccountName::parse("elevenlabs").unwrap(), AccountName::parse("twilio").unwrap()],
            ..Voucher::default()
        },
        event: row,
        aliases: ids.iter().filter_map(|(kind, id)| Alias::new(kind, id)).collect(),
        said: said(event, dedupe_key),
        delivery: Some(delivery),
    }
}

async fn live_call(store: &Arc<dyn Store>, ids: &[(&str, &str)]) -> CallId {
    let call = new_call(ids);
    store.insert_call(call.clone(), None).await.unwrap();
    store.apply(change(&call.id, Event::Reached(Phase::Live))).await.unwrap();
    call.id
}

pub(in crate::store) async fn what_is_said_is_taken_numbered_and_settled_in_one_step(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let conversation = ("conversation_id", "conv_1");
    let call = live_call(&store, &[conversation, ("call_sid", "CA1")]).await;
    let outcome = async |id: &str| store.inbox_event(id).await.unwrap().map(|event| (event.outcome, event.call));
    let whole = |took: IngestOutcome| match took {
        IngestOutcome::Whole(at, said) if at == call => said,
        other => panic!("{other:?}"),
    };
    let first = whole(store.ingest(speech("ev_1", "one", &[conversation])).await.unwrap());
    let untold = UtteranceIngest { delivery: None, ..speech("ev_2", "two", &[conversation]) };
    let second = whole(store.ingest(untold).await.unwrap());
    assert_eq!((first.sequence, second.sequence), (1, 2));
    assert_eq!(outcome("ev_1").await, Some((Some(EventOutcome::Recorded.to_string()), Some(call.to_string()))));
    let texts = |all: Vec<Utterance>| all.into_iter().map(|u| (u.event_id, u.text)).collect::<Vec<_>>();
    let stands = [("ev_1".to_owned(), "one".to_owned()), ("ev_2".to_owned(), "two".to_owned())];
    assert_eq!(texts(store.utterances(&call, 0, 10).await.unwrap()), stands);
    assert!(store.unsettled_events(i64::MAX, &in_record(), &Cursor::default(), 99).await.unwrap().events.is_empty());
    let due = store.take_deliveries(i64::MAX, 10, "", DeliveryOrder::FailedStepAside).await.unwrap();
    assert_eq!(
        due.iter().map(|one| (one.id.as_str(), one.call.as_deref())).collect::<Vec<_>>(),
        [("dl_ev_1", Some(call.as_str()))]
    );
    // Again, under another id.
    let again = store.ingest(speech("ev_1b", "one", &[conversation])).await.unwrap();
    assert_eq!((again, outcome("ev_1b").await), (IngestOutcome::Before(call.clone(), first), None));

    // What is not done in one step is taken, and waits.
    let dialled = new_call(&[("conversation_id", "conv_2")]);
    store.insert_call(dialled.clone(), None).await.unwrap();
    for (n, ids) in [
        &[("conversation_id", "conv_9")][..],
        &[("conversation_id", "conv_2")],
        // Another id of a call that is known.
        &[conversation, ("call_sid", "CA2")],
        &[],
    ]
    .into_iter()
    .enumerate()
    {
        let id = format!("ev_waits_{n}");
        assert_eq!(
            store.ingest(speech(&id, &id, ids)).await.unwrap(),
            IngestOutcome::Inbox(ReceiveOutcome::New),
            "{ids:?}"
        );
        assert_eq!(outcome(&id).await, Some((None, None)));
        let before = ReceiveOutcome::Before { id: id.clone(), outcome: None };
        assert_eq!(store.ingest(speech("ev_x", &id, ids)).await.unwrap(), IngestOutcome::Inbox(before), "{ids:?}");
    }
    assert_eq!(store.unsettled_events(i64::MAX, &in_record(), &Cursor::default(), 99).await.unwrap().events.len(), 4);
    assert_eq!((store.last_sequence(&call).await.unwrap(), store.last_sequence(&dialled.id).await.unwrap()), (2, 0));
    assert!(store.take_deliveries(i64::MAX, 10, "", DeliveryOrder::FailedStepAside).await.unwrap().is_empty());
}

pub(in crate::store) async fn what_is_taken_in_one_step_twice_and_at_once_has_one_number(fresh: &impl Fresh) {
    const SENDERS: i64 = 20;
    const EACH: i64 = 5;
    let (a, b) = (fresh.open_shared().await, fresh.open_shared().await);
    let calls = [live_call(&a, &[("call_sid", "CA0")]).await, live_call(&a, &[("call_sid", "CA1")]).await];
    let mut tasks = tokio::task::JoinSet::new();
    for sender in 0..SENDERS {
        let (a, b) = (a.clone(), b.clone());
        tasks.spawn(async move {
            for n in 0..EACH {
                for call in ["CA0", "CA1"] {
                    let key = format!("{call}-{sender}-{n}");
                    let of = |copy: &str| speech(&format!("{key}-{copy}"), &key, &[("call_sid", call)]);
                    let (first, second) = tokio::join!(a.ingest(of("a")), b.ingest(of("b")));
                    let (IngestOutcome::Whole(_, new), IngestOutcome::Before(_, old)) =
                        (match (first.unwrap(), second.unwrap()) {
                            (first @ IngestOutcome::Whole(..), second) => (first, second),
                            (first, second) => (second, first),
                        })
                    else {
                        panic!("not one of the two was first")
                    };
                    assert_eq!(new, old);
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    for call in &calls {
        let numbers: Vec<i64> = a.utterances(call, 0, 1000).await.unwrap().iter().map(|u| u.sequence).collect();
        assert_eq!(numbers, (1..=SENDERS * EACH).collect::<Vec<_>>());
    }
    assert_eq!(fresh.number("SELECT count(*) FROM deliveries").await, 2 * SENDERS * EACH);
}

pub(in crate::store) async fn a_transcript_is_read_from_where_it_was_and_goes_with_its_call(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let (call, other) = (call_of(&store).await, call_of(&store).await);
    assert_eq!((store.utterances(&call, 0, 10).await.unwrap(), store.last_sequence(&call).await.unwrap()), (vec![], 0));
    for n in 1..=5 {
        let one = NewUtterance {
            source_sequence: Some(n * 2),
            source: Some("GT1".to_owned()),
            ..said(&format!("ev_{n}"), &format!("line {n} ü\n\"\u{1F600}"))
        };
        store.add_utterance(&call, one).await.unwrap();
    }
    store
        .add_utterance(&other, NewUtterance { speaker: Speaker::Agent, ..said("ev_other", "elsewhere") })
        .await
        .unwrap();
    let some = store.utterances(&call, 2, 2).await.unwrap();
    assert_eq!(some.iter().map(|u| u.sequence).collect::<Vec<_>>(), [3, 4]);
    let wanted = Utterance {
        id: some[0].id,
        sequence: 3,
        event_id: "ev_3".to_owned(),
        speaker: Speaker::User,
        text: "line 3 ü\n\"\u{1F600}".to_owned(),
        said_at: "2026-01-02T03:04:05Z".to_owned(),
        source_sequence: Some(6),
        source: Some("GT1".to_owned()),
    };
    assert_eq!(some[0], wanted);
    assert_eq!(store.utterances(&other, 0, 10).await.unwrap()[0].speaker, Speaker::Agent);
    assert_eq!(store.utterances(&call, 5, 10).await.unwrap(), []);
    store.apply(change(&call, END)).await.unwrap();
    store.purge(&RetentionCutoffs::of_all(10_000, 0)).await.unwrap();
    assert_eq!(store.call(&call).await.unwrap(), None);
    assert_eq!((store.utterances(&call, 0, 10).await.unwrap(), store.last_sequence(&call).await.unwrap()), (vec![], 0));
    assert_eq!(store.utterances(&other, 0, 10).await.unwrap().len(), 1);
    assert_eq!(store.add_utterance(&call, said("ev_late", "too late")).await.unwrap(), None, "nothing is left behind");
}

pub(in crate::store) async fn what_changed_in_calls_is_seen_without_reading_them(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let (call, silent) = (call_of(&store).await, call_of(&store).await);
    let unknown = CallId::new();
    store.add_utterance(&call, said("ev_1", "hello")).await.unwrap();
    let mut found = store.positions(&[call.clone(), silent.clone(), unknown]).await.unwrap();
    found.sort_by_key(|position| -position.last_sequence);
    let position = |call: &CallId, last_sequence| UtterancePosition {
        call: call.clone(),
        last_sequence,
        seen_at: 1000,
        ended: false,
        recorded_at: None,
    };
    assert_eq!(found, [position(&call, 1), position(&silent, 0)]);
    store.apply(change(&silent, END)).await.unwrap();
    let ended = UtterancePosition { seen_at: 2000, ended: true, ..position(&silent, 0) };
    assert_eq!(store.positions(std::slice::from_ref(&silent)).await.unwrap(), std::slice::from_ref(&ended));
    let put = PutPostCall {
        call: silent.clone(),
        found: Default::default(),
        complete: true,
        by: "webhook",
        at_ms: 3000,
        due_at: None,
        notice: AppNotice::Omit,
    };
    store.put_post_call(put).await.unwrap();
    assert_eq!(store.positions(&[silent]).await.unwrap(), [UtterancePosition { recorded_at: Some(3000), ..ended }]);
    assert_eq!(store.positions(&[]).await.unwrap(), []);
}

pub(in crate::store) async fn what_is_not_to_be_kept_is_redacted_after_its_call(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let (over, open) = (call_of(&store).await, call_of(&store).await);
    for call in [&over, &open] {
        for n in 1..=3 {
            store.add_utterance(call, said(&format!("{call}-{n}"), &format!("secret {n}"))).await.unwrap();
        }
    }
    store.apply(change(&over, END)).await.unwrap();
    let texts = async |call: &CallId| {
        store.utterances(call, 0, 10).await.unwrap().into_iter().map(|u| u.text).collect::<Vec<_>>()
    };
    let ended_at = store.call(&over).await.unwrap().unwrap().ended_at.unwrap();
    let start = Cursor::default();
    assert_eq!(store.ended_calls(&start, ended_at - 1, 9).await.unwrap(), [], "it is not time yet");
    let ended = store.ended_calls(&start, ended_at, 9).await.unwrap();
    assert_eq!(
        ended,
        [EndedCall { id: over.to_string(), business: new_call(&[]).attributes.business.to_string(), ended_at }]
    );
    let after = (ended_at, over.to_string());
    assert_eq!(store.ended_calls(&after, i64::MAX, 9).await.unwrap(), [], "from there on");
    let calls = &[over.to_string()];
    assert_eq!(store.redact(calls, Privacy::Keep).await.unwrap(), 0);
    assert_eq!(store.redact(calls, Privacy::Hash).await.unwrap(), 3);
    assert_eq!(store.redact(calls, Privacy::Hash).await.unwrap(), 0, "once");
    let hashed = texts(&over).await;
    assert_eq!(hashed, ["secret 1", "secret 2", "secret 3"].map(|text| text_kept(Privacy::Hash, text)));
    assert_eq!(texts(&open).await, ["secret 1", "secret 2", "secret 3"]);
    assert_eq!(store.redact(calls, Privacy::None).await.unwrap(), 3, "less is kept than before");
    assert_eq!(store.redact(calls, Privacy::None).await.unwrap(), 0);
    assert_eq!(store.redact(calls, Privacy::Hash).await.unwrap(), 0, "what is gone is gone");
    assert_eq!(texts(&over).await, ["", "", ""]);
    assert_eq!(store.purge_business(new_call(&[]).attributes.business.as_str()).await.unwrap().calls, 1);
    assert_eq!((texts(&over).await.len(), texts(&open).await.len()), (0, 3), "it goes with its business");
}

pub(in crate::store) async fn calls_of_a_business_and_orders_without_an_answer_are_found(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let opened = async |business: &str, aliases: &[(&str, &str)], origin: Origin| {
        let mut call = new_call(aliases);
        (call.attributes.business, call.origin) = (BusinessId::parse(business).unwrap(), origin);
        store.insert_call(call.clone(), None).await.unwrap();
        call.id
    };
    let key = ("idempotency_key", "k1");
    let waits = opened("a", &[key], Origin::Create).await;
    let answered = opened("a", &[("call_sid", "CA1")], Origin::Create).await;
    let foreign = opened("b", &[], Origin::Foreign).await;
    let over = opened("b", &[("conversation_id", "conv_1")], Origin::Create).await;
    store.apply(change(&over, END)).await.unwrap();

    let ids = async |account: &str, kind: &str| {
        let account = AccountName::parse(account).unwrap();
        let orders = store.unanswered_creates(&account, kind).await.unwrap();
        orders.into_iter().map(|order| (order.id, order.aliases.len())).collect::<BTreeSet<_>>()
    };
    assert_eq!(ids("twilio", "call_sid").await, BTreeSet::from([(waits.clone(), 1)]));
    assert_eq!(ids("twilio", "conversation_id").await, BTreeSet::from([(waits.clone(), 1), (answered.clone(), 1)]));
    assert_eq!(ids("another", "call_sid").await, BTreeSet::new());

    let of = async |businesses: &[&str], since_ms: UnixMs, latest: u32| {
        let businesses: Vec<String> = businesses.iter().map(ToString::to_string).collect();
        let calls = store.calls_of(&businesses, since_ms, latest).await.unwrap();
        calls.into_iter().collect::<BTreeSet<_>>()
    };
    let all = |business: &str, calls: &[&CallId]| {
        calls.iter().map(|&call| (business.to_owned(), call.clone())).collect::<BTreeSet<_>>()
    };
    let ended_at = store.call(&over).await.unwrap().unwrap().ended_at.unwrap();
    assert_eq!(of(&["a"], 0, 10).await, all("a", &[&waits, &answered]));
    assert_eq!(of(&["b"], ended_at, 10).await, all("b", &[&foreign, &over]));
    assert_eq!(of(&["b"], ended_at + 1, 10).await, all("b", &[&foreign]));
    assert_eq!(of(&["b"], 0, 0).await, all("b", &[&foreign]), "among the latest alone");
    assert_eq!(of(&["a", "b", "c"], ended_at, 10).await.len(), 4);
    assert_eq!(of(&[], 0, 10).await, BTreeSet::new());
}
