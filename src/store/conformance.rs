//! Duties of every back end, run on each: `behaves_as_a_store!` in its tests.
//!
//! A back end gives a [`Fresh`]: an empty store, a way to open it again, and a way past the trait to its tables.

mod do_not_call;
mod gate;
mod messages;
mod operator;
mod records;
mod replicas;
mod retention;
pub(super) mod runs;
mod schedules;
mod transcripts;

use crate::store::{DeliveryResult, EventOutcome};
use std::sync::Arc;

use super::*;
use crate::call::{Deadlines, Direction, EndProof, Origin, Outcome, Phase, Source, Step};
use crate::ids::{AccountName, BusinessId};
use crate::policy::decision::Shortfall;
pub(super) use do_not_call::*;
pub(super) use gate::*;
pub(super) use messages::*;
pub(super) use operator::*;
pub(super) use records::*;
pub(super) use replicas::*;
pub(super) use retention::*;
pub(super) use runs::*;
pub(super) use schedules::*;
pub(super) use transcripts::*;

/// A store of a test's own, which goes when the test ends.
#[async_trait]
pub(super) trait Fresh {
    /// The store. After [`Store::close`] it is opened again.
    async fn open(&self) -> Arc<dyn Store>;
    /// Opens the store as one of several processes.
    async fn open_shared(&self) -> Arc<dyn Store>;
    /// Runs SQL past the store, in its schema.
    async fn execute(&self, sql: &str);
    /// Takes the latest migration back, while no store is open.
    async fn one_migration_back(&self);
    /// The one number that a query gives.
    async fn number(&self, sql: &str) -> i64;
}

/// One test for each behaviour, over what `$fresh` makes; it says itself why, where it makes nothing.
macro_rules! behaves_as_a_store {
    ($fresh:path) => {
        crate::store::conformance::behaves_as_a_store!(
            $fresh,
            a_call_is_opened_moved_and_ended_once,
            an_end_is_of_the_state_that_was_read,
            what_was_not_found_counts_anew_once_the_exchange_is_over,
            an_end_that_comes_before_its_start_ends_the_start,
            one_call_seen_by_two_webhooks_is_one_call,
            an_id_of_another_call_is_a_conflict_and_stays_where_it_is,
            a_webhook_is_taken_once,
            news_is_applied_to_calls_of_those_alone_who_vouch_for_it,
            what_is_past_its_retention_goes_little_by_little,
            writes_that_meet_share_a_commit_and_one_that_fails_stands_alone,
            what_was_written_is_there_after_a_restart,
            what_meets_at_one_call_is_applied_one_after_the_other,
            one_of_many_that_claim_an_id_gets_it,
            news_and_its_call_find_each_other_however_they_meet,
            a_key_is_free_again_when_its_order_made_no_call,
            records_come_back_as_they_were_written,
            the_latest_come_first,
            the_writer_and_the_readers_read_the_same_record,
            many_that_share_start_at_once_over_nothing_and_over_an_old_schema,
            replicas_know_who_lives_and_who_leads,
            a_change_of_businesses_is_noticed_elsewhere,
            a_number_is_put_on_a_list_and_taken_off,
            changes_of_lists_are_read_from_where_one_stands,
            no_change_of_a_list_is_passed_over,
            an_event_that_two_settle_is_settled_once,
            a_delivery_is_one_senders_and_comes_back_if_that_dies,
            deliveries_of_a_call_go_in_order_and_others_do_not_wait,
            a_delivery_that_failed_holds_nothing_back,
            a_call_is_put_on_record_under_the_pools_epoch_alone,
            a_call_counts_from_when_it_is_confirmed,
            an_answer_to_a_create_is_kept_for_a_while,
            the_database_decides_in_its_own_mode_and_epoch,
            a_full_limit_refuses_until_a_call_has_ended,
            an_order_for_many_gets_what_is_free_and_holds_it,
            a_rate_gives_out_its_tokens_whoever_asks,
            what_is_known_comes_before_a_full_limit,
            a_move_counts_every_open_call_by_the_new_policy,
            of_many_at_once_as_many_are_admitted_as_there_are_places,
            moves_under_load_lose_no_call_and_let_none_in_over_a_limit,
            an_order_is_found_at_another_replica_and_taken_by_one,
            a_record_is_put_together_of_what_is_told,
            a_record_is_completed_once_whoever_tells_of_it,
            calls_without_a_record_are_found_and_expected_once,
            a_webhook_waits_for_its_call,
            the_app_is_told_in_the_transaction_of_the_fact,
            own_events_do_not_wait_for_webhooks,
            a_webhook_that_cannot_be_applied_is_parked_and_opened_again,
            lists_are_narrowed_before_they_are_cut,
            webhooks_are_narrowed_and_what_can_be_replayed_is_counted,
            a_bypass_is_known_to_all_until_it_is_off,
            what_was_delivered_or_given_up_is_delivered_again_under_its_id,
            a_business_is_purged_and_its_open_calls_stay,
            a_body_in_a_spool_is_its_replicas_alone,
            what_is_in_the_spool_of_a_replica_that_is_gone_is_parked_and_seen,
            a_purge_tells_spools_which_files_must_go,
            a_damaged_row_keeps_no_other_from_its_turn,
            who_did_what_is_kept_and_forgotten_in_time,
            what_many_say_at_once_is_numbered_without_gaps,
            an_utterance_that_comes_again_keeps_its_number,
            what_is_said_is_taken_numbered_and_settled_in_one_step,
            what_is_taken_in_one_step_twice_and_at_once_has_one_number,
            calls_of_a_business_and_orders_without_an_answer_are_found,
            a_transcript_is_read_from_where_it_was_and_goes_with_its_call,
            what_changed_in_calls_is_seen_without_reading_them,
            what_is_not_to_be_kept_is_redacted_after_its_call,
            each_business_is_forgotten_at_its_own_age,
            what_the_app_still_waits_for_outlives_its_call,
            less_is_kept_of_what_was_kept_before,
            unsettled_webhooks_are_read_page_by_page,
            a_webhook_that_stays_away_is_noticed,
            a_run_is_made_once_for_a_key_and_loaded_by_one,
            runs_that_were_batches_are_found,
            a_job_is_claimed_by_one_of_many,
            a_long_queue_is_claimed_batch_by_batch,
            a_run_has_no_more_open_jobs_than_its_bound,
            a_job_is_settled_with_its_call_and_once,
            a_job_waits_for_the_word_who_answered,
            an_app_is_told_of_a_job_that_ends_without_a_call,
            a_breaker_and_a_hold_are_of_the_run_and_not_of_a_replica,
            claims_of_the_dead_come_back_after_their_calls_were_looked_for,
            a_job_whose_call_was_purged_is_settled_and_a_run_that_goes_on_is_not_forgotten,
            an_app_is_told_of_a_run_that_fails_at_once,
            a_run_is_done_with_its_last_job_and_forgotten_in_time,
            what_may_not_be_called_yet_is_put_off_unless_somebody_has_it,
            a_schedule_is_made_once_for_a_name_and_found_when_it_is_due,
            a_schedule_is_changed_by_who_has_read_it_as_it_is
        );
    };
    ($fresh:path, $($behaviour:ident),+) => {
        $(
            #[tokio::test]
            async fn $behaviour() {
                let Some(fresh) = $fresh().await else { return };
                crate::store::conformance::$behaviour(&fresh).await;
            }
        )+
    };
}
pub(super) use behaves_as_a_store;

pub(super) fn new_call(aliases: &[(&str, &str)]) -> NewCall {
    NewCall {
        id: CallId::new(),
        attributes: CallAttributes {
            business: BusinessId::default_business(),
            plan: "default".to_owned(),
            account: AccountName::parse("twilio").unwrap(),
            provider: "twilio".to_owned(),
            carrier: None,
            direction: Direction::Outbound,
            operation: "calls".to_owned(),
            agent: None,
            own_number: Some("+15550001111".to_owned()),
            other_number: Some("+15550002222".to_owned()),
        },
        origin: Origin::Create,
        phase: Phase::Reserved,
        over_limit: false,
        polled: false,
        slots: 1,
        at_ms: 1000,
        deadline_at: 91_000,
        callback: None,
        fingerprint: None,
        keys: vec![],
        replica: None,
        notice: AppNotice::Omit,
        aliases: aliases.iter().filter_map(|(k, i)| Alias::new(k, i)).collect(),
    }
}

pub(super) fn change(call: &CallId, event: Event) -> Change {
    Change { event: Some(event), ..Change::of(call, Source::Webhook, 2000, &Deadlines::default()) }
}

pub(super) const END: Event = Event::Ended(Outcome::Completed, EndProof::Webhook);

pub(super) async fn a_call_is_opened_moved_and_ended_once(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let call = new_call(&[]);
    assert_eq!(store.insert_call(call.clone(), None).await.unwrap(), InsertOutcome::New(None));
    let bind = vec![Alias::new("call_sid", "CA1").unwrap()];
    let created = Change { bind: bind.clone(), ..change(&call.id, Event::Reached(Phase::Dialing)) };
    let applied = store.apply(created).await.unwrap().unwrap();
    assert_eq!((applied.step, applied.record.phase), (Step::Move(Phase::Dialing), Phase::Dialing));
    assert_eq!(store.resolve(&bind).await.unwrap(), Some(call.id.clone()));
    assert_eq!(store.open_calls().await.unwrap().len(), 1);

    let ended = store.apply(change(&call.id, END)).await.unwrap().unwrap();
    assert_eq!(ended.step, Step::End(Outcome::Completed, EndProof::Webhook));
    let again =
        store.apply(change(&call.id, Event::Ended(Outcome::Failed, EndProof::Provider))).await.unwrap().unwrap();
    assert_eq!(again.step, Step::Ignore);
    assert_eq!(again.record.outcome, Some(Outcome::Completed), "the first proof stays");
    // The same change once more, whose first answer may have been lost; and another one.
    let ended_at = ended.record.ended_at.unwrap();
    for (at_ms, step) in [(ended_at, ended.step), (ended_at + 1, Step::Ignore)] {
        let repeated = Change { at_ms, ..change(&call.id, END) };
        let applied = store.apply(repeated.clone()).await.unwrap().unwrap();
        assert_eq!(applied.step, Step::Ignore);
        assert_eq!(applied.if_written_before(&repeated).step, step);
    }
    assert_eq!(store.open_calls().await.unwrap(), []);
    assert_eq!(store.latest_calls(10).await.unwrap()[0].aliases, bind);
}

/// An end that was decided by what was read before another change is none.
pub(super) async fn an_end_is_of_the_state_that_was_read(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let call = new_call(&[]);
    store.insert_call(call.clone(), None).await.unwrap();
    let read = store.call(&call.id).await.unwrap().unwrap().seen_at;
    store.apply(Change::of(&call.id, Source::Create, 3000, &Deadlines::default())).await.unwrap();
    let ended = |if_seen_at| Change { if_seen_at: Some(if_seen_at), ..change(&call.id, END) };
    let outdated = store.apply(ended(read)).await.unwrap().unwrap();
    assert_eq!((outdated.step, outdated.record.phase), (Step::Ignore, call.phase));
    assert_eq!((outdated.record.seen_at, outdated.record.seen_by), (3000, Source::Create), "it is no news either");
    let current = store.apply(ended(3000)).await.unwrap().unwrap();
    assert_eq!(current.step, Step::End(Outcome::Completed, EndProof::Webhook));
}

pub(super) async fn what_was_not_found_counts_anew_once_the_exchange_is_over(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let call = new_call(&[]);
    store.insert_call(call.clone(), None).await.unwrap();
    let of = |at_ms| Change::of(&call.id, Source::Poll, at_ms, &Deadlines::default());
    let over = |at_ms| Change { exchange_over: true, ..of(at_ms) };
    let absent = |at_ms| Change { absent: Some(true), ..of(at_ms) };
    let changes = [
        (absent(3000), false, Some(3000)),
        (over(4000), true, None),
        (absent(5000), true, Some(5000)),
        (over(6000), true, Some(5000)),
        (of(7000), true, Some(5000)),
    ];
    for (change, exchange_over, absent_at) in changes {
        let applied = store.apply(change).await.unwrap().unwrap().record;
        assert_eq!((applied.exchange_over, applied.absent_at), (exchange_over, absent_at));
        assert_eq!(store.call(&call.id).await.unwrap(), Some(applied));
    }
}

pub(super) async fn an_end_that_comes_before_its_start_ends_the_start(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let sid = || vec![Alias::new("call_sid", "CA1").unwrap()];
    assert_eq!(store.keep_early(sid(), END, None, 1).await.unwrap(), None);
    assert_eq!(store.keep_early(sid(), Event::Reached(Phase::Live), None, 2).await.unwrap(), None);
    let call = new_call(&[]);
    store.insert_call(call.clone(), None).await.unwrap();
    let created = Change { bind: sid(), ..change(&call.id, Event::Reached(Phase::Dialing)) };
    assert_eq!(store.apply(created).await.unwrap().unwrap().step, Step::End(Outcome::Completed, EndProof::Webhook));
    assert_eq!(store.keep_early(sid(), END, None, 3).await.unwrap(), Some(call.id), "from here on it is known");
}

pub(super) async fn one_call_seen_by_two_webhooks_is_one_call(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let first = new_call(&[("call_sid", "CA1")]);
    let second = new_call(&[("conversation_id", "conv_1"), ("call_sid", "CA1")]);
    assert_eq!(store.insert_call(first.clone(), None).await.unwrap(), InsertOutcome::New(None));
    assert_eq!(store.insert_call(second, None).await.unwrap(), InsertOutcome::Known(first.id));
    assert_eq!(store.open_calls().await.unwrap().len(), 1);
}

pub(super) async fn an_id_of_another_call_is_a_conflict_and_stays_where_it_is(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let (first, second) = (new_call(&[("call_sid", "CA1")]), new_call(&[]));
    store.insert_call(first.clone(), None).await.unwrap();
    store.insert_call(second.clone(), None).await.unwrap();
    let sid = Alias::new("call_sid", "CA1").unwrap();
    let stolen = Change { bind: vec![sid.clone()], ..change(&second.id, Event::Reached(Phase::Live)) };
    let applied = store.apply(stolen).await.unwrap().unwrap();
    assert_eq!(applied.conflicts, [(sid.clone(), first.id.clone())]);
    assert_eq!(applied.record.aliases, []);
    assert_eq!(store.resolve(&[sid]).await.unwrap(), Some(first.id));
}

pub(super) async fn a_webhook_is_taken_once(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let event = |id: &str| NewEvent {
        id: id.to_owned(),
        account: "twilio".to_owned(),
        webhook: "status".to_owned(),
        event: "call_status".to_owned(),
        dedupe_key: Some("twilio|status|CA1|completed|3".to_owned()),
        received_at: 1,
        method: "POST".to_owned(),
        path: "/twilio/status".to_owned(),
        headers: vec![],
        body: Some(b"CallSid=CA1".to_vec()),
        spool: None,
    };
    assert_eq!(store.receive(event("a")).await.unwrap(), ReceiveOutcome::New);
    let before = |outcome: Option<EventOutcome>| ReceiveOutcome::Before { id: "a".to_owned(), outcome };
    assert_eq!(store.receive(event("b")).await.unwrap(), before(None));
    // Written once more, because it was not known whether it had been: there is nothing else to know it by.
    let bare = NewEvent { dedupe_key: None, received_at: 9, ..event("c") };
    let same = ReceiveOutcome::Before { id: "c".to_owned(), outcome: None };
    assert_eq!(store.receive(bare.clone()).await.unwrap(), ReceiveOutcome::New);
    assert_eq!(store.receive(bare).await.unwrap(), same);
    assert_eq!(store.unsettled_events(0, &in_record(), &Cursor::default(), 99).await.unwrap().events, []);
    assert_eq!(store.unsettled_events(1, &in_record(), &Cursor::default(), 99).await.unwrap().events, [event("a")]);
    let delivery = Delivery {
        id: "d1".to_owned(),
        event_id: "a".to_owned(),
        call: None,
        route: DeliveryRoute::Callback,
        url: "http://app.test/x".to_owned(),
        method: "POST".to_owned(),
        headers: vec![],
        body: b"CallSid=CA1".to_vec(),
        spool: None,
        attempts: 0,
    };
    store.settle("a", None, EventOutcome::Applied, Some(delivery.clone()), 5).await.unwrap();
    let again = Delivery { id: "d2".to_owned(), ..delivery.clone() };
    store.settle("a", None, EventOutcome::Applied, Some(again), 5).await.unwrap();
    assert_eq!(store.receive(event("c")).await.unwrap(), before(Some(EventOutcome::Applied)));
    assert_eq!(store.take_deliveries(4, 10, "", DeliveryOrder::FailedStepAside).await.unwrap(), []);
    assert_eq!(store.take_deliveries(5, 10, "", DeliveryOrder::FailedStepAside).await.unwrap(), [delivery]);
    store.record_delivery_result("d1", 6, DeliveryResult::Retry { why: "refused".to_owned(), at: 50 }).await.unwrap();
    assert_eq!(store.take_deliveries(49, 10, "", DeliveryOrder::FailedStepAside).await.unwrap(), []);
    assert_eq!(store.take_deliveries(50, 10, "", DeliveryOrder::FailedStepAside).await.unwrap()[0].attempts, 1);
    assert_eq!(
        store.purge(&RetentionCutoffs::of_all(1000, 1000)).await.unwrap(),
        1,
        "the event goes, what the app waits for stays"
    );
    store.record_delivery_result("d1", 51, DeliveryResult::GivenUp { why: "refused".to_owned() }).await.unwrap();
    assert_eq!(store.take_deliveries(99, 10, "", DeliveryOrder::FailedStepAside).await.unwrap(), []);
    assert_eq!(
        store.purge(&RetentionCutoffs::of_all(1000, 1000)).await.unwrap(),
        1,
        "what was given up is not kept for ever"
    );
}

pub(super) async fn what_is_past_its_retention_goes_little_by_little(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let kept = new_call(&[("call_sid", "CA_kept")]);
    store.insert_call(kept.clone(), None).await.unwrap();
    let sql = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1234)";
    let like =
        "business, plan, account, provider, direction, operation, origin, admitted_at, phase_at, seen_at, seen_by";
    for insert in [
        format!(
            "{sql} INSERT INTO calls (id, phase, ended_at, {like}) SELECT 'c' || i, 'ended', i, {like} FROM calls, n"
        ),
        format!(
            "{sql} INSERT INTO call_aliases (kind, id, call_id, seen_at) SELECT 'call_sid', CAST(i AS TEXT), 'c' || i, 1 FROM n"
        ),
        format!(
            "{sql} INSERT INTO refusals (id, at, business, account, direction, code) SELECT CAST(i AS TEXT), i, 'b', 'a', 'outbound', 'x' FROM n"
        ),
    ] {
        fresh.execute(&insert).await;
    }
    assert_eq!(store.purge(&RetentionCutoffs::of_all(1_234, 0)).await.unwrap(), 2 * 1_233);
    for (left, table) in [(2, "calls"), (2, "call_aliases"), (1, "refusals")] {
        let rows = fresh.number(&format!("SELECT count(*) FROM {table}")).await;
        assert_eq!(rows, left, "{table}: what is open, and what ended just now");
    }
}

pub(super) async fn writes_that_meet_share_a_commit_and_one_that_fails_stands_alone(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let twice = new_call(&[]);
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..200 {
        let store = store.clone();
        // Every tenth has the same primary key: all but one of those fail.
        let call = if i % 10 == 0 { twice.clone() } else { new_call(&[]) };
        tasks.spawn(async move { store.insert_call(call, None).await.is_ok() });
    }
    let kept = tasks.join_all().await.into_iter().filter(|ok| *ok).count();
    assert_eq!(kept, 181);
    assert_eq!(store.open_calls().await.unwrap().len(), 181);
}

pub(super) async fn what_was_written_is_there_after_a_restart(fresh: &impl Fresh) {
    let call = new_call(&[("call_sid", "CA1")]);
    {
        let store = fresh.open().await;
        store.insert_call(call.clone(), None).await.unwrap();
        store.put_business(&Business::named(BusinessId::parse("acme").unwrap()), 1).await.unwrap();
        store.close().await;
    }
    let store = fresh.open().await;
    assert_eq!(store.open_calls().await.unwrap()[0].id, call.id);
    assert_eq!(store.businesses().await.unwrap().len(), 1);
}

pub(super) async fn what_meets_at_one_call_is_applied_one_after_the_other(fresh: &impl Fresh) {
    let store = fresh.open().await;
    for round in 0..10 {
        let call = new_call(&[]);
        store.insert_call(call.clone(), None).await.unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..12 {
            let (store, id) = (store.clone(), call.id.clone());
            let bind = vec![Alias::new("call_sid", &format!("CA{round}_{}", n % 3)).unwrap()];
            let event = if n % 2 == 0 { END } else { Event::Reached(Phase::Live) };
            tasks.spawn(async move { store.apply(Change { bind, ..change(&id, event) }).await.unwrap().unwrap().step });
        }
        let steps = tasks.join_all().await;
        assert_eq!(steps.iter().filter(|step| matches!(step, Step::End(..))).count(), 1, "{steps:?}");
        let record = store.call(&call.id).await.unwrap().unwrap();
        assert_eq!((record.phase, record.aliases.len()), (Phase::Ended, 3));
    }
}

pub(super) async fn one_of_many_that_claim_an_id_gets_it(fresh: &impl Fresh) {
    let store = fresh.open().await;
    for round in 0..10 {
        let (a, b) = (format!("CA{round}"), format!("conv_{round}"));
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..8 {
            let store = store.clone();
            // In either order: nobody may wait for one who waits.
            let mut ids = [("call_sid", a.as_str()), ("conversation_id", b.as_str())];
            if n % 2 == 0 {
                ids.reverse();
            }
            let call = new_call(&ids);
            tasks.spawn(async move { (call.id.clone(), store.insert_call(call, None).await.unwrap()) });
        }
        let opened = tasks.join_all().await;
        let new: Vec<&CallId> =
            opened.iter().filter(|(_, o)| *o == InsertOutcome::New(None)).map(|(id, _)| id).collect();
        assert_eq!(new.len(), 1, "{opened:?}");
        assert!(opened.iter().all(|(id, o)| id == new[0] || *o == InsertOutcome::Known(new[0].clone())), "{opened:?}");
    }
    assert_eq!(store.open_calls().await.unwrap().len(), 10);
}

pub(super) async fn news_and_its_call_find_each_other_however_they_meet(fresh: &impl Fresh) {
    let store = fresh.open().await;
    for round in 0..20 {
        let call = new_call(&[]);
        store.insert_call(call.clone(), None).await.unwrap();
        let sid = vec![Alias::new("call_sid", &format!("CA{round}")).unwrap()];
        let bind = Change { bind: sid.clone(), ..change(&call.id, Event::Reached(Phase::Dialing)) };
        let rings = Event::Reached(Phase::Ringing);
        let (bound, ends, rings) = tokio::join!(
            store.apply(bind),
            store.keep_early(sid.clone(), END, None, 1),
            store.keep_early(sid.clone(), rings, None, 1)
        );
        let ended = matches!(bound.unwrap().unwrap().step, Step::End(..));
        let known = ends.unwrap();
        assert_eq!(ended, known.is_none(), "kept for the call, or told whose it is: never neither");
        assert!(known.is_none_or(|known| known == call.id));
        rings.unwrap();
    }
}

pub(super) async fn a_key_is_free_again_when_its_order_made_no_call(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let [first, second, third] = [(); 3].map(|()| new_call(&[(KEY_KIND, "k")]));
    store.insert_call(first.clone(), None).await.unwrap();
    assert_eq!(store.insert_call(second.clone(), None).await.unwrap(), InsertOutcome::Known(first.id.clone()));
    let none = Event::Ended(Outcome::NotCreated, EndProof::Provider);
    store.apply(change(&first.id, none)).await.unwrap();
    assert_eq!(store.insert_call(second.clone(), None).await.unwrap(), InsertOutcome::New(None));
    store.apply(change(&second.id, END)).await.unwrap();
    assert_eq!(store.insert_call(third, None).await.unwrap(), InsertOutcome::Known(second.id));
}

pub(super) async fn records_come_back_as_they_were_written(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let events = vec!["completed".to_owned()];
    let callback = AppCallback { url: "http://app.test/x#rc=2".to_owned(), method: "POST".to_owned(), events };
    let mut call = new_call(&[("call_sid", "CA_é_1"), ("call_sid", "CAa"), ("conversation_id", "b")]);
    call.attributes.carrier = Some(AccountName::parse("twilio").unwrap());
    call.attributes.agent = Some("agent 'x\" — ü".to_owned());
    (call.over_limit, call.polled, call.slots) = (true, true, 4_000_000_000);
    (call.callback, call.fingerprint) = (Some(callback.clone()), Some("f".to_owned()));
    call.replica = Some("web-1".to_owned());
    store.insert_call(call.clone(), None).await.unwrap();
    let record = store.call(&call.id).await.unwrap().unwrap();
    assert_eq!(record.attributes, call.attributes);
    assert_eq!((record.over_limit, record.polled, record.unsettled, record.slots), (true, true, false, 4_000_000_000));
    assert_eq!((record.callback, record.fingerprint.as_deref()), (Some(callback), Some("f")));
    assert_eq!(record.replica, call.replica);
    assert_eq!((record.admitted_at, record.deadline_at, record.phase), (1000, Some(91_000), Phase::Reserved));
    let mut sorted = call.aliases.clone();
    sorted.sort();
    assert_eq!(record.aliases, sorted, "as bytes compare");
    // An over-limit call is no admission: no rate counts it.
    assert_eq!(store.admitted_since(0).await.unwrap(), []);
    let counted = new_call(&[]);
    store.insert_call(counted.clone(), None).await.unwrap();
    assert_eq!(store.admitted_since(1000).await.unwrap(), [(1000, counted.attributes)]);
    assert_eq!(store.admitted_since(1001).await.unwrap(), []);
}

pub(super) async fn the_latest_come_first(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let mut ids = Vec::new();
    for at_ms in 0..5 {
        let call = NewCall { at_ms, ..new_call(&[("call_sid", &format!("CA{at_ms}"))]) };
        store.insert_call(call.clone(), None).await.unwrap();
        ids.insert(0, call.id);
    }
    let latest: Vec<CallId> = store.latest_calls(3).await.unwrap().into_iter().map(|c| c.id).collect();
    assert_eq!(latest, ids[..3]);
    let rejection = RejectionRecord {
        id: RejectionId::new(),
        at: 1,
        business: "b".to_owned(),
        account: "a".to_owned(),
        direction: Direction::Outbound,
        code: "X".to_owned(),
        limit_name: Some("plan.PRO".to_owned()),
        current: Some(3),
        limit: Some(3),
        observed: false,
        attempts: 1,
        notice: AppNotice::Omit,
    };
    let other = RejectionRecord { id: RejectionId::new(), at: 2, limit_name: None, ..rejection.clone() };
    store.record_rejections(vec![]).await.unwrap();
    store.record_rejections(vec![rejection.clone()]).await.unwrap();
    store.record_rejections(vec![rejection.clone(), other.clone(), rejection.clone()]).await.unwrap();
    assert_eq!(store.latest_rejections(9).await.unwrap(), [other, RejectionRecord { attempts: 3, ..rejection }]);
    let acme = Business::named(BusinessId::parse("acme").unwrap());
    assert!(store.put_business(&acme, 1).await.unwrap());
    assert!(!store.put_business(&acme, 2).await.unwrap());
    let many = ["acme", "birch", "cedar"].map(|id| Business::named(BusinessId::parse(id).unwrap()));
    assert_eq!(store.put_businesses(many.to_vec(), 3).await.unwrap(), 2, "one of them was there");
    assert_eq!(store.businesses().await.unwrap().len(), 3);
    assert_eq!(store.put_businesses(vec![], 4).await.unwrap(), 0);
    assert!(store.delete_business("acme").await.unwrap());
    assert!(!store.delete_business("acme").await.unwrap());
}

/// The writer and the readers each have a way of reading a record.
pub(super) async fn the_writer_and_the_readers_read_the_same_record(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let mut call = new_call(&[("call_sid", "CA1"), (KEY_KIND, "key")]);
    call.attributes.carrier = Some(AccountName::parse("carrier").unwrap());
    call.attributes.agent = Some("agent_1".to_owned());
    (call.phase, call.over_limit, call.polled, call.slots) = (Phase::Live, true, true, 7);
    call.fingerprint = Some("fingerprint".to_owned());
    call.replica = Some("web-1".to_owned());
    call.callback =
        Some(AppCallback { url: "http://app.test/x".to_owned(), method: "POST".to_owned(), events: vec![] });
    store.insert_call(call.clone(), None).await.unwrap();
    let bind = vec![Alias::new("conversation_id", "conv_1").unwrap()];
    let unclear = Change {
        bind,
        unsettled: Some(true),
        absent: Some(true),
        ..Change::of(&call.id, Source::Poll, 3000, &Deadlines::default())
    };
    let ended = change(&call.id, END);
    for change in [unclear, ended] {
        let applied = store.apply(change).await.unwrap().unwrap().record;
        assert_eq!(store.call(&call.id).await.unwrap(), Some(applied.clone()));
        assert_eq!((applied.attributes, applied.callback), (call.attributes.clone(), call.callback.clone()));
        assert_eq!((applied.slots, applied.fingerprint), (7, call.fingerprint.clone()));
    }
}

// === several processes ===
