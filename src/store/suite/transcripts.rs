//! What every back end has to do with what was said.

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
    store.open(call.clone(), None).await.unwrap();
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
                    let (first, again) = tokio::join!(store.say(call, one.clone()), store.say(call, one));
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
        let first = store.say(&call, said("ev_1", "hello")).await.unwrap().unwrap();
        let second = store.say(&call, said("ev_2", "hello")).await.unwrap().unwrap();
        assert_eq!((first.sequence, second.sequence), (1, 2));
        assert_ne!(first.id, second.id);
        assert_eq!(store.say(&call, said("ev_1", "hello")).await.unwrap(), Some(first));
        store.close().await;
        call
    };
    let store = fresh.open().await;
    assert_eq!(store.say(&call, said("ev_2", "hello")).await.unwrap().unwrap().sequence, 2);
    assert_eq!(store.say(&call, said("ev_3", "hello")).await.unwrap().unwrap().sequence, 3);
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
        store.say(&call, one).await.unwrap();
    }
    store.say(&other, NewUtterance { speaker: Speaker::Agent, ..said("ev_other", "elsewhere") }).await.unwrap();
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
    store.purge(&Ages::of_all(10_000, 0)).await.unwrap();
    assert_eq!(store.call(&call).await.unwrap(), None);
    assert_eq!((store.utterances(&call, 0, 10).await.unwrap(), store.last_sequence(&call).await.unwrap()), (vec![], 0));
    assert_eq!(store.utterances(&other, 0, 10).await.unwrap().len(), 1);
    assert_eq!(store.say(&call, said("ev_late", "too late")).await.unwrap(), None, "nothing is left behind");
}

pub(in crate::store) async fn what_changed_in_calls_is_seen_without_reading_them(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let (call, silent) = (call_of(&store).await, call_of(&store).await);
    let unknown = CallId::new();
    store.say(&call, said("ev_1", "hello")).await.unwrap();
    let mut found = store.standings(&[call.clone(), silent.clone(), unknown]).await.unwrap();
    found.sort_by_key(|standing| -standing.last_sequence);
    let standing = |call: &CallId, last_sequence| Standing {
        call: call.clone(),
        last_sequence,
        seen_at: 1000,
        ended: false,
        recorded_at: None,
    };
    assert_eq!(found, [standing(&call, 1), standing(&silent, 0)]);
    store.apply(change(&silent, END)).await.unwrap();
    let ended = Standing { seen_at: 2000, ended: true, ..standing(&silent, 0) };
    assert_eq!(store.standings(std::slice::from_ref(&silent)).await.unwrap(), std::slice::from_ref(&ended));
    let put = PutPostCall {
        call: silent.clone(),
        found: Default::default(),
        complete: true,
        by: "webhook",
        at_ms: 3000,
        due_at: None,
        tell: false,
    };
    store.put_post_call(put).await.unwrap();
    assert_eq!(store.standings(&[silent]).await.unwrap(), [Standing { recorded_at: Some(3000), ..ended }]);
    assert_eq!(store.standings(&[]).await.unwrap(), []);
}

pub(in crate::store) async fn what_is_not_to_be_kept_is_redacted_after_its_call(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let (over, open) = (call_of(&store).await, call_of(&store).await);
    for call in [&over, &open] {
        for n in 1..=3 {
            store.say(call, said(&format!("{call}-{n}"), &format!("secret {n}"))).await.unwrap();
        }
    }
    store.apply(change(&over, END)).await.unwrap();
    let texts = async |call: &CallId| {
        store.utterances(call, 0, 10).await.unwrap().into_iter().map(|u| u.text).collect::<Vec<_>>()
    };
    let ended_at = store.call(&over).await.unwrap().unwrap().ended_at.unwrap();
    let start = Place::default();
    assert_eq!(store.ended_calls(&start, ended_at - 1, 9).await.unwrap(), [], "it is not time yet");
    let ended = store.ended_calls(&start, ended_at, 9).await.unwrap();
    assert_eq!(
        ended,
        [EndedCall { id: over.to_string(), business: new_call(&[]).facts.business.to_string(), ended_at }]
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
    assert_eq!(store.purge_business(new_call(&[]).facts.business.as_str()).await.unwrap().calls, 1);
    assert_eq!((texts(&over).await.len(), texts(&open).await.len()), (0, 3), "it goes with its business");
}
