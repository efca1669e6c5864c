//! Bulk runs.

use std::collections::BTreeSet;

use super::*;
use crate::call::AnsweredBy;
use crate::provider::description::PostCall;
use crate::store::runs::{
    CallResults, Claim, CreateRunOutcome, Job, JobSettlement, JobState, LostClaims, NewJob, Run, RunChange, RunCounts,
    RunState, TakeLoad,
};

fn run(id: &str, key: Option<&str>) -> Run {
    Run {
        id: id.to_owned(),
        business: "acme".to_owned(),
        account: "twilio".to_owned(),
        name: None,
        key: key.map(str::to_owned),
        digest: "d".to_owned(),
        state: RunState::Loading,
        spec: "{}".to_owned(),
        total: 0,
        start_at: 0,
        created_at: 1,
        updated_at: 1,
        finished_at: None,
        resume_at: None,
        retries: 0,
        reason: None,
        replica: Some("me".to_owned()),
        load: Some("first".to_owned()),
    }
}

fn leads(from: i64, n: i64) -> Vec<NewJob> {
    let lead = |seq| NewJob { seq, number: format!("+1555{seq:07}"), lead: format!("{{\"n\":{seq}}}") };
    (from..from + n).map(lead).collect()
}

fn change(from: RunState, to: RunState) -> RunChange {
    RunChange::of("run_1", &[from], to, 5)
}

/// A run with so many jobs, which is running.
pub(in crate::store) async fn running(store: &Arc<dyn Store>, n: i64) {
    assert_eq!(store.create_run(&run("run_1", None), AppNotice::Omit).await.unwrap(), CreateRunOutcome::New);
    assert!(store.add_jobs("run_1", "first", leads(1, n)).await.unwrap());
    assert_eq!(store.run_counts("run_1").await.unwrap().queued, n.unsigned_abs());
    let loaded = RunChange { loaded: Some((n, "all".to_owned())), ..change(RunState::Loading, RunState::Running) };
    assert!(store.move_run(loaded, AppNotice::Omit).await.unwrap());
}

fn claim_of(limit: u32, token: &str, replica: &str) -> Claim {
    let (run, token, replica) = ("run_1".to_owned(), token.to_owned(), replica.to_owned());
    Claim { run, limit, open_max: u32::MAX, token, replica, now_ms: 10 }
}

/// Puts the call of a job's try on record.
async fn placed(store: &Arc<dyn Store>, job: &Job) -> NewCall {
    let call = NewCall { aliases: vec![job.alias()], ..new_call(&[]) };
    assert!(matches!(store.insert_call(call.clone(), None).await.unwrap(), InsertOutcome::New(_)));
    call
}

fn calling(job: &Job, call: &CallId) -> JobSettlement {
    JobSettlement { state: JobState::Calling, new_call: Some(call.clone()), ..JobSettlement::of(job) }
}

pub(in crate::store) async fn a_run_is_made_once_for_a_key_and_loaded_by_one(fresh: &impl Fresh) {
    let store = fresh.open().await;
    assert_eq!(store.create_run(&run("run_1", Some("k")), AppNotice::Omit).await.unwrap(), CreateRunOutcome::New);
    let CreateRunOutcome::Known(known) = store.create_run(&run("run_2", Some("k")), AppNotice::Omit).await.unwrap()
    else {
        panic!("two")
    };
    assert_eq!(*known, run("run_1", Some("k")));
    let other = Run { business: "beta".to_owned(), ..run("run_3", Some("k")) };
    assert_eq!(store.create_run(&other, AppNotice::Omit).await.unwrap(), CreateRunOutcome::New, "of another business");
    assert!(!store.add_jobs("run_1", "another", leads(1, 1)).await.unwrap());
    assert!(store.add_jobs("run_1", "first", leads(1, 10)).await.unwrap());
    // Of two that take a load over one does, and what had it before writes and ends nothing any more.
    let take = |load: &str| TakeLoad {
        run: "run_1".to_owned(),
        before: Some("first".to_owned()),
        load: load.to_owned(),
        replica: "me".to_owned(),
        now_ms: 4,
    };
    assert!(store.take_load(take("second")).await.unwrap());
    assert!(!store.take_load(take("third")).await.unwrap(), "somebody was first");
    assert!(!store.add_jobs("run_1", "first", leads(11, 1)).await.unwrap());
    let late = |to| RunChange { load: Some("first".to_owned()), ..change(RunState::Loading, to) };
    assert!(!store.move_run(late(RunState::Running), AppNotice::Omit).await.unwrap());
    assert!(!store.move_run(late(RunState::Ready), AppNotice::Omit).await.unwrap());
    assert_eq!(store.delete_jobs("run_1").await.unwrap(), 10);
    assert!(store.add_jobs("run_1", "second", leads(1, 1_203)).await.unwrap());
    assert_eq!(store.due_runs().await.unwrap(), [], "it is not whole");
    assert_eq!(store.claim_jobs(claim_of(9, "t", "me")).await.unwrap(), [], "it is not whole");
    let whole = RunChange { loaded: Some((1_203, "all".to_owned())), ..change(RunState::Loading, RunState::Running) };
    let loaded = RunChange { load: Some("second".to_owned()), ..whole };
    assert!(store.move_run(loaded.clone(), AppNotice::Omit).await.unwrap());
    assert!(!store.move_run(loaded, AppNotice::Omit).await.unwrap(), "once");
    assert!(!store.add_jobs("run_1", "second", leads(2_000, 1)).await.unwrap());
    let due = store.due_runs().await.unwrap();
    assert_eq!((due.len(), due[0].open, due[0].next_due), (1, 0, Some(0)));
    assert_eq!((due[0].run.total, due[0].run.digest.as_str()), (1_203, "all"));
    assert_eq!(store.latest_runs(None, 9).await.unwrap().len(), 2);
    let of = |business: &str| Some(vec![business.to_owned()]);
    assert_eq!(store.latest_runs(of("beta"), 9).await.unwrap()[0].id, "run_3");
    assert_eq!(store.latest_runs(of("gamma"), 9).await.unwrap(), []);
    let again = RunChange { is_retry: true, ..change(RunState::Running, RunState::Running) };
    assert!(store.move_run(again, AppNotice::Omit).await.unwrap());
    assert_eq!(store.run_of("run_1").await.unwrap().unwrap().retries, 1);
    let page = store.job_results("run_1", 1_200, 2).await.unwrap();
    assert_eq!(page.iter().map(|one| one.job.seq).collect::<Vec<_>>(), [1_201, 1_202]);
}

pub(in crate::store) async fn runs_that_were_batches_are_found(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let keys = [
        ("run_1", "batch:a:0f"),
        ("run_2", "batch:a:0f:run_1"),
        ("run_3", "batch:a:0f1"),
        ("run_4", "Batch:a:0f:run_2"),
        ("run_5", "k"),
        ("run_6", "batch:a:0e"),
    ];
    for (id, key) in keys {
        assert_eq!(store.create_run(&run(id, Some(key)), AppNotice::Omit).await.unwrap(), CreateRunOutcome::New);
    }
    let of_beta = Run { business: "beta".to_owned(), ..run("run_7", Some("batch:a:0f:run_2")) };
    assert_eq!(store.create_run(&of_beta, AppNotice::Omit).await.unwrap(), CreateRunOutcome::New);
    let batches = async |account: &str, before: Option<&str>, limit| {
        let found = store.batch_runs(account, before.map(str::to_owned), limit).await.unwrap();
        found.into_iter().map(|run| run.id).collect::<Vec<_>>()
    };
    assert_eq!(batches("twilio", None, 3).await, ["run_7", "run_6", "run_3"], "the latest first");
    assert_eq!(batches("twilio", Some("run_3"), 9).await, ["run_2", "run_1"]);
    assert_eq!(batches("other", None, 9).await, Vec::<String>::new());
    let latest = async |business: &str, key: &str| {
        store.latest_keyed_run(business, key).await.unwrap().map(|run| run.id).unwrap_or_default()
    };
    assert_eq!(latest("acme", "batch:a:0f").await, "run_2");
    assert_eq!(latest("beta", "batch:a:0f").await, "run_7");
    assert_eq!(latest("acme", "batch:a:0").await, "");
}

pub(in crate::store) async fn a_job_is_claimed_by_one_of_many(fresh: &impl Fresh) {
    let store = fresh.open().await;
    running(&store, 200).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8 {
        let store = store.clone();
        tasks.spawn(async move {
            let mut mine = vec![];
            for round in 0.. {
                let token = format!("t{n}-{round}");
                let some = store.claim_jobs(claim_of(7, &token, "me")).await.unwrap();
                if some.is_empty() {
                    return mine;
                }
                assert!(some.iter().all(|job| job.token.as_deref() == Some(token.as_str())));
                mine.extend(some.into_iter().map(|job| job.seq));
            }
            mine
        });
    }
    let all: Vec<i64> = tasks.join_all().await.into_iter().flatten().collect();
    assert_eq!((all.len(), all.iter().collect::<BTreeSet<_>>().len()), (200, 200));
    assert_eq!(store.run_counts("run_1").await.unwrap(), RunCounts { dialing: 200, ..RunCounts::default() });
}

/// A long queue is claimed batch by batch, by several at once; the rate is printed.
pub(in crate::store) async fn a_long_queue_is_claimed_batch_by_batch(fresh: &impl Fresh) {
    const JOBS: usize = 10_000;
    let store = fresh.open().await;
    running(&store, JOBS as i64).await;
    let (started, mut tasks) = (std::time::Instant::now(), tokio::task::JoinSet::new());
    for n in 0..4 {
        let store = store.clone();
        tasks.spawn(async move {
            let mut mine = 0;
            for round in 0.. {
                match store.claim_jobs(claim_of(100, &format!("t{n}-{round}"), "me")).await.unwrap().len() {
                    0 => break,
                    claimed => mine += claimed,
                }
            }
            mine
        });
    }
    let claimed: usize = tasks.join_all().await.into_iter().sum();
    println!("{:.0} claims/s, 100 at a time, by 4 at once", JOBS as f64 / started.elapsed().as_secs_f64());
    assert_eq!(claimed, JOBS);
}

pub(in crate::store) async fn a_run_has_no_more_open_jobs_than_its_bound(fresh: &impl Fresh) {
    let store = fresh.open().await;
    running(&store, 50).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..6 {
        let store = store.clone();
        let claim = Claim { open_max: 5, ..claim_of(3, &format!("t{n}"), "me") };
        tasks.spawn(async move { store.claim_jobs(claim).await.unwrap() });
    }
    let all: Vec<Job> = tasks.join_all().await.into_iter().flatten().collect();
    assert_eq!(all.len(), 5);
    let back = JobSettlement { state: JobState::Queued, due_at: 20, ..JobSettlement::of(&all[0]) };
    assert_eq!(store.settle_jobs(vec![back.clone()], 10).await.unwrap(), 1);
    assert_eq!(store.settle_jobs(vec![back], 10).await.unwrap(), 0, "its claim is over");
    let again = Claim { open_max: 5, ..claim_of(3, "again", "me") };
    let again = store.claim_jobs(again).await.unwrap();
    assert_eq!(again.len(), 1);
    assert_ne!(again[0].seq, all[0].seq, "that one is not due yet");
}

pub(in crate::store) async fn a_job_is_settled_with_its_call_and_once(fresh: &impl Fresh) {
    let store = fresh.open().await;
    running(&store, 3).await;
    assert_eq!(store.changed_jobs("run_1", 9).await.unwrap(), [], "nobody has claimed one");
    let jobs = store.claim_jobs(claim_of(3, "t", "me")).await.unwrap();
    let changed = async |limit| {
        let changed = store.changed_jobs("run_1", limit).await.unwrap();
        changed.into_iter().map(|job| (job.seq, job.state, job.attempts)).collect::<Vec<_>>()
    };
    let claimed = |seq| (seq, JobState::Dialing, 0);
    assert_eq!(changed(9).await, [claimed(3), claimed(2), claimed(1)]);
    let call = placed(&store, &jobs[0]).await;
    assert_eq!(store.settle_jobs(vec![calling(&jobs[0], &call.id)], 10).await.unwrap(), 1);
    assert_eq!(store.ended_jobs(None, vec![], i64::MAX, 0, 9).await.unwrap(), [], "it is up");
    store.apply(super::change(&call.id, END)).await.unwrap();
    let ended = store.ended_jobs(None, vec![], i64::MAX, 0, 9).await.unwrap();
    assert_eq!((ended.len(), ended[0].outcome, ended[0].ended_at), (1, Outcome::Completed, 2_000));
    for calls in [None, Some(vec![call.id.clone()])] {
        let of = async |except: &str| {
            store.ended_jobs(calls.clone(), vec![except.to_owned()], i64::MAX, 0, 9).await.unwrap().len()
        };
        assert_eq!((of("run_1").await, of("run_2").await), (0, 1), "of every run but one");
    }
    let job = &ended[0].job;
    assert_eq!((job.seq, job.call.as_ref()), (1, Some(&call.id)));
    let done = JobSettlement {
        state: JobState::Done,
        outcome: Some(Outcome::Completed),
        attempts: 1,
        tries: 1,
        ..JobSettlement::of(job)
    };
    let done = JobSettlement { unknown_tries: 3, ..done };
    assert_eq!(store.settle_jobs(vec![done.clone(), done], 11).await.unwrap(), 1);
    assert_eq!(store.job_results("run_1", 0, 1).await.unwrap()[0].job.unknown_tries, 3);
    assert_eq!(changed(2).await, [(1, JobState::Done, 1), claimed(3)], "the latest change first");
    let last = store.changed_jobs("run_1", 1).await.unwrap().remove(0);
    assert_eq!((last.outcome, last.call.as_ref()), (Some(Outcome::Completed), Some(&call.id)));
    let other = placed(&store, &jobs[1]).await;
    store.settle_jobs(vec![calling(&jobs[1], &other.id)], 10).await.unwrap();
    let never =
        Change { event: Some(Event::Ended(Outcome::NotCreated, EndProof::Provider)), ..super::change(&other.id, END) };
    store.apply(never).await.unwrap();
    assert_eq!(store.ended_jobs(None, vec![], 2_000, 0, 9).await.unwrap(), [], "who placed it says why");
    assert_eq!(store.ended_jobs(None, vec![], 2_001, 0, 9).await.unwrap().len(), 1);
    let results = store.job_results("run_1", 0, 9).await.unwrap();
    assert_eq!((results[0].job.attempts, results[0].ended_at, results[2].ended_at), (1, Some(2_000), None));
    assert!(results[0].ids.contains_key(crate::store::runs::JOB_KIND));
    assert_eq!(store.finish_runs(12, AppNotice::Omit).await.unwrap(), Vec::<String>::new());
    assert_eq!(store.retry_jobs("run_1", vec![Outcome::Busy], 12).await.unwrap(), 0);
    assert_eq!(store.retry_jobs("run_1", vec![Outcome::Completed], 12).await.unwrap(), 1);
    let again = store.claim_jobs(Claim { now_ms: 12, ..claim_of(3, "t2", "me") }).await.unwrap();
    assert_eq!((again[0].seq, again[0].attempts, again[0].tries), (1, 0, 1), "its next call has another name");
    assert_eq!(again[0].unknown_tries, 0);
}

/// A job waits for the word who answered its call, and leaves its place meanwhile; a word that comes after all corrects the outcome.
pub(in crate::store) async fn a_job_waits_for_the_word_who_answered(fresh: &impl Fresh) {
    let store = fresh.open().await;
    running(&store, 3).await;
    let claim = |token: &str| Claim { open_max: 1, ..claim_of(3, token, "me") };
    let told = |call: &CallId, answered_by, complete| PutPostCall {
        call: call.clone(),
        found: PostCall { answered_by, ..PostCall::default() },
        complete,
        by: "webhook",
        at_ms: 3_000,
        due_at: None,
        notice: AppNotice::Omit,
    };
    let due = async |now_ms| store.ended_jobs(None, vec![], i64::MAX, now_ms, 9).await.unwrap();
    let mut ended = vec![];
    for n in 0..3_i64 {
        let job = store.claim_jobs(claim(&format!("t{n}"))).await.unwrap().remove(0);
        let call = placed(&store, &job).await;
        store.settle_jobs(vec![calling(&job, &call.id)], 10).await.unwrap();
        assert_eq!(store.claim_jobs(claim("more")).await.unwrap(), [], "its call is up");
        store.apply(super::change(&call.id, END)).await.unwrap();
        let one = due(2_000).await.remove(0);
        assert_eq!((one.job.seq, one.answered_by, one.is_recorded), (n + 1, None, false));
        if n == 2 {
            // The word comes between the read of the job and its wait.
            store.put_post_call(told(&call.id, Some(AnsweredBy::Machine), false)).await.unwrap();
        }
        let waits = JobSettlement { waits_until: Some(5_000 + n), ..JobSettlement::of(&one.job) };
        assert_eq!(store.settle_jobs(vec![waits], 11).await.unwrap(), 1);
        let run = store.due_runs().await.unwrap().remove(0);
        assert_eq!((run.open, run.has_waiting), (0, true), "its place is free");
        ended.push((call.id, one.job));
    }
    assert_eq!(due(4_999).await.len(), 1, "one has its word");
    assert_eq!(store.finish_runs(12, AppNotice::Omit).await.unwrap(), Vec::<String>::new(), "it is not done");
    assert_eq!(due(5_000).await.len(), 2, "the time of the first is over");
    store.put_post_call(told(&ended[1].0, None, true)).await.unwrap();
    assert!(!due(5_000).await.iter().any(|one| one.awaits_fetch), "none is to be fetched");
    store.expect_post_calls(vec![ended[0].0.clone()], 4_000).await.unwrap();
    let fetches = async || due(5_000).await.into_iter().find(|one| one.job.seq == 1).unwrap().awaits_fetch;
    assert!(fetches().await, "its record stands in line");
    store.record_failed_fetch(&ended[0].0, "there is none", Some(9_000)).await.unwrap();
    assert!(!fetches().await, "it was asked for");
    let mut known: Vec<_> =
        due(0).await.into_iter().map(|one| (one.job.seq, one.answered_by, one.is_recorded)).collect();
    known.sort();
    assert_eq!(known, [(2, None, true), (3, Some(AnsweredBy::Machine), false)]);
    // Whoever settles as completed what was answered by a machine meanwhile, or is told so later, is corrected.
    let completed = |job: &Job| JobSettlement {
        state: JobState::Done,
        outcome: Some(Outcome::Completed),
        ..JobSettlement::of(job)
    };
    store.settle_jobs(ended.iter().map(|(_, job)| completed(job)).collect(), 13).await.unwrap();
    assert!(!store.due_runs().await.unwrap()[0].has_waiting);
    let counts = async || store.run_counts("run_1").await.unwrap();
    assert_eq!(counts().await, RunCounts { completed: 2, voicemail: 1, ..RunCounts::default() });
    store.put_post_call(told(&ended[0].0, Some(AnsweredBy::Machine), true)).await.unwrap();
    assert_eq!(counts().await, RunCounts { completed: 1, voicemail: 2, ..RunCounts::default() });
    let latest = store.changed_jobs("run_1", 1).await.unwrap().remove(0);
    assert_eq!((latest.seq, latest.outcome), (1, Some(Outcome::Voicemail)));
    assert_eq!(store.retry_jobs("run_1", vec![Outcome::Voicemail], 14).await.unwrap(), 2);
}

/// A breaker counts the calls of all replicas, and each call once, whoever settles its job; a full provider holds its account's runs.
pub(in crate::store) async fn a_breaker_and_a_hold_are_of_the_run_and_not_of_a_replica(fresh: &impl Fresh) {
    let store = fresh.open().await;
    running(&store, 4).await;
    let results = |failed: &[bool]| CallResults {
        run: "run_1".to_owned(),
        failed: failed.to_vec(),
        window: 8,
        failures: 4,
        why: "it was busy".to_owned(),
        resume_at: Some(50),
        now_ms: 20,
    };
    assert_eq!(store.record_results(results(&[false]), AppNotice::Send).await.unwrap(), None);
    assert_eq!(store.record_results(results(&[true, false]), AppNotice::Send).await.unwrap(), None);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let (store, results) = (store.clone(), results(&[true]));
        tasks.spawn(async move { store.record_results(results, AppNotice::Send).await.unwrap() });
    }
    let tripped: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    assert_eq!(tripped, ["4 of the last 8 calls failed; it was busy"], "once, at the fourth");
    let paused = store.run_of("run_1").await.unwrap().unwrap();
    assert_eq!((paused.state, paused.resume_at), (RunState::Paused, Some(50)));
    assert_eq!(fresh.number("SELECT count(*) FROM deliveries").await, 1);
    store.resume_runs(50, AppNotice::Omit).await.unwrap();
    assert_eq!(store.record_results(results(&[true; 3]), AppNotice::Send).await.unwrap(), None, "it counts anew");
    // The same end of a call is settled by one of several.
    let job = store.claim_jobs(claim_of(1, "t", "me")).await.unwrap().remove(0);
    let call = placed(&store, &job).await;
    store.settle_jobs(vec![calling(&job, &call.id)], 10).await.unwrap();
    let job = Job { call: Some(call.id.clone()), ..job };
    let done = JobSettlement { state: JobState::Done, outcome: Some(Outcome::Busy), ..JobSettlement::of(&job) };
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (store, done) = (store.clone(), done.clone());
        tasks.spawn(async move { store.end_jobs(vec![done], 11).await.unwrap() });
    }
    let settled: Vec<CallId> = tasks.join_all().await.into_iter().flatten().collect();
    assert_eq!(settled, [call.id]);
    // So is what keeps it from being dialled, until it is paused or done.
    let reason = async || store.run_of("run_1").await.unwrap().unwrap().reason;
    for why in [Some("no account"), None, Some("its number")] {
        store.explain_run("run_1", why).await.unwrap();
        assert_eq!(reason().await.as_deref(), why);
    }
    assert!(store.move_run(change(RunState::Running, RunState::Paused), AppNotice::Omit).await.unwrap());
    store.explain_run("run_1", Some("no account")).await.unwrap();
    assert_eq!(reason().await, None, "it is paused");
    assert!(store.move_run(change(RunState::Paused, RunState::Running), AppNotice::Omit).await.unwrap());
    // A hold is seen by all, and is not shortened.
    for (account, until, held) in [("another", 90, 0), ("twilio", 70, 70), ("twilio", 60, 70), ("twilio", 80, 80)] {
        store.hold_runs(account, until).await.unwrap();
        assert_eq!(store.due_runs().await.unwrap()[0].held_until, held, "{account} until {until}");
    }
}

/// The app is told once of a job that ends without a call, in the transaction that ends it.
pub(in crate::store) async fn an_app_is_told_of_a_job_that_ends_without_a_call(fresh: &impl Fresh) {
    let store = fresh.open().await;
    running(&store, 2).await;
    let jobs = store.claim_jobs(claim_of(2, "t", "me")).await.unwrap();
    let ends = |job: &Job| {
        let error = Some("DO_NOT_CALL_BLOCKED: it is on a list".to_owned());
        JobSettlement {
            state: JobState::Done,
            outcome: Some(Outcome::Failed),
            error,
            notice: AppNotice::Send,
            ..JobSettlement::of(job)
        }
    };
    let both: Vec<JobSettlement> = jobs.iter().map(ends).collect();
    assert_eq!(store.settle_jobs(both[..1].to_vec(), 11).await.unwrap(), 1);
    assert_eq!(store.settle_jobs(both, 12).await.unwrap(), 1, "the first was settled before");
    let told = store.take_deliveries(20, 9, "", DeliveryOrder::FailedStepAside).await.unwrap();
    let told: Vec<serde_json::Value> = told.iter().map(|one| serde_json::from_slice(&one.body).unwrap()).collect();
    assert_eq!(told.iter().map(|one| one["data"]["lead"].as_i64()).collect::<Vec<_>>(), [Some(1), Some(2)]);
    let data = &told[0]["data"];
    assert_eq!((&told[0]["type"], &data["runId"]), (&"run.job_done".into(), &"run_1".into()));
    assert_eq!((&data["outcome"], &data["attempts"]), (&"failed".into(), &0.into()));
    assert_eq!(data["error"], "DO_NOT_CALL_BLOCKED: it is on a list");
}

pub(in crate::store) async fn claims_of_the_dead_come_back_after_their_calls_were_looked_for(fresh: &impl Fresh) {
    let store = fresh.open().await;
    running(&store, 5).await;
    let jobs = store.claim_jobs(claim_of(2, "t", "dead")).await.unwrap();
    store.claim_jobs(claim_of(2, "u", "me")).await.unwrap();
    // It died between the record of the call and that of the job.
    let call = placed(&store, &jobs[0]).await;
    let lost = |live: &[&str], tokens: &[&str], before| LostClaims {
        live: live.iter().map(|id| (*id).to_owned()).collect(),
        replica: "me".to_owned(),
        tokens: tokens.iter().map(|token| (*token).to_owned()).collect(),
        before,
    };
    assert_eq!(store.recover_jobs(lost(&["me"], &["u"], 10), 30).await.unwrap(), 0, "they are too young");
    assert_eq!(store.recover_jobs(lost(&["me"], &["u"], 11), 30).await.unwrap(), 2);
    let results = store.job_results("run_1", 0, 9).await.unwrap();
    assert_eq!((results[0].job.state, results[0].job.call.as_ref()), (JobState::Calling, Some(&call.id)));
    assert_eq!((results[1].job.state, results[1].job.due_at, &results[1].job.token), (JobState::Queued, 30, &None));
    assert_eq!(results[2].job.state, JobState::Dialing);
    // A claim of its own of which it knows nothing: the answer of its commit was lost.
    assert_eq!(store.claim_jobs(claim_of(1, "v", "me")).await.unwrap().len(), 1);
    assert_eq!(store.recover_jobs(lost(&["me"], &["u"], 11), 31).await.unwrap(), 1);
    let results = store.job_results("run_1", 0, 9).await.unwrap();
    assert_eq!((results[4].job.state, results[4].job.due_at), (JobState::Queued, 31));
    // Of a run that was canceled meanwhile nothing is queued again.
    assert!(store.move_run(change(RunState::Running, RunState::Canceled), AppNotice::Omit).await.unwrap());
    assert_eq!(store.cancel_jobs("run_1", 31).await.unwrap(), 2);
    assert_eq!(store.recover_jobs(lost(&[], &[], 11), 32).await.unwrap(), 2);
    let counts = store.run_counts("run_1").await.unwrap();
    assert_eq!(counts, RunCounts { calling: 1, canceled: 4, ..RunCounts::default() });
}

pub(in crate::store) async fn a_job_whose_call_was_purged_is_settled_and_a_run_that_goes_on_is_not_forgotten(
    fresh: &impl Fresh,
) {
    let store = fresh.open().await;
    running(&store, 2).await;
    let jobs = store.claim_jobs(claim_of(1, "t", "me")).await.unwrap();
    let call = placed(&store, &jobs[0]).await;
    store.settle_jobs(vec![calling(&jobs[0], &call.id)], 10).await.unwrap();
    assert_eq!(store.ended_jobs(None, vec![], 0, 0, 9).await.unwrap(), [], "it is up");
    let end = Change { event: Some(Event::Ended(Outcome::Busy, EndProof::Webhook)), ..super::change(&call.id, END) };
    store.apply(end).await.unwrap();
    assert_eq!(store.purge_business(call.attributes.business.as_str()).await.unwrap().calls, 1);
    let ended = store.ended_jobs(None, vec![], 0, 0, 9).await.unwrap();
    assert_eq!((ended.len(), ended[0].outcome, ended[0].proof), (1, Outcome::Failed, EndProof::Deadline));
    // One that waited for the word who answered was completed before.
    let waits = JobSettlement { waits_until: Some(50), ..JobSettlement::of(&ended[0].job) };
    assert_eq!(store.settle_jobs(vec![waits], 12).await.unwrap(), 1);
    assert_eq!(store.ended_jobs(None, vec![], 0, 49, 9).await.unwrap(), []);
    let ended = store.ended_jobs(None, vec![], 0, 50, 9).await.unwrap();
    assert_eq!((ended.len(), ended[0].outcome, ended[0].is_recorded), (1, Outcome::Completed, true));
    assert_ne!(ended[0].proof, EndProof::Deadline);
    store.delete_run("run_1").await.unwrap();
    assert_eq!(store.run_of("run_1").await.unwrap().unwrap().state, RunState::Running);
    assert_eq!(store.job_results("run_1", 0, 9).await.unwrap().len(), 2, "its jobs stay too");
}

pub(in crate::store) async fn an_app_is_told_of_a_run_that_fails_at_once(fresh: &impl Fresh) {
    let store = fresh.open().await;
    let failed = Run { state: RunState::Failed, finished_at: Some(1), load: None, ..run("run_1", None) };
    assert_eq!(store.create_run(&failed, AppNotice::Send).await.unwrap(), CreateRunOutcome::New);
    assert_eq!(store.create_run(&run("run_2", None), AppNotice::Send).await.unwrap(), CreateRunOutcome::New);
    let told = store.take_deliveries(22, 9, "", DeliveryOrder::FailedStepAside).await.unwrap();
    let body: serde_json::Value = serde_json::from_slice(&told[0].body).unwrap();
    assert_eq!((told.len(), &body["type"], &body["data"]["runId"]), (1, &"run.failed".into(), &"run_1".into()));
}

pub(in crate::store) async fn a_run_is_done_with_its_last_job_and_forgotten_in_time(fresh: &impl Fresh) {
    let store = fresh.open().await;
    running(&store, 1_500).await;
    assert!(store.move_run(change(RunState::Running, RunState::Paused), AppNotice::Omit).await.unwrap());
    assert_eq!(store.claim_jobs(claim_of(3, "t", "me")).await.unwrap(), [], "it is paused");
    assert_eq!(store.finish_runs(20, AppNotice::Omit).await.unwrap(), Vec::<String>::new());
    let resumable = RunChange { resume_at: Some(9), ..change(RunState::Paused, RunState::Paused) };
    assert!(store.move_run(resumable, AppNotice::Omit).await.unwrap());
    assert_eq!(store.resume_runs(8, AppNotice::Omit).await.unwrap(), Vec::<String>::new());
    assert_eq!(store.resume_runs(9, AppNotice::Omit).await.unwrap(), ["run_1"]);
    assert!(store.move_run(change(RunState::Running, RunState::Paused), AppNotice::Omit).await.unwrap());
    assert!(store.move_run(change(RunState::Paused, RunState::Running), AppNotice::Omit).await.unwrap());
    assert_eq!(store.cancel_jobs("run_1", 21).await.unwrap(), 1_500);
    assert_eq!(store.finish_runs(22, AppNotice::Send).await.unwrap(), ["run_1"]);
    let told = store.take_deliveries(22, 9, "", DeliveryOrder::FailedStepAside).await.unwrap();
    let body: serde_json::Value = serde_json::from_slice(&told[0].body).unwrap();
    assert_eq!((told.len(), &body["type"], &body["data"]["runId"]), (1, &"run.done".into(), &"run_1".into()));
    let over = store.run_of("run_1").await.unwrap().unwrap();
    assert_eq!((over.state, over.finished_at), (RunState::Done, Some(22)));
    // Nobody has finished loading this one.
    store.create_run(&run("run_2", None), AppNotice::Omit).await.unwrap();
    store.purge(&RetentionCutoffs::of_all(22, 0)).await.unwrap();
    assert_eq!(store.run_of("run_2").await.unwrap(), None);
    assert!(store.run_of("run_1").await.unwrap().is_some());
    let later = RetentionCutoffs {
        of_business: [(BusinessId::parse("acme").unwrap(), 22)].into(),
        ..RetentionCutoffs::of_all(23, 0)
    };
    store.purge(&later).await.unwrap();
    assert!(store.run_of("run_1").await.unwrap().is_some(), "its business keeps it longer");
    assert_eq!(store.purge(&RetentionCutoffs::of_all(23, 0)).await.unwrap(), 1_501);
    assert_eq!(fresh.number("SELECT count(*) FROM run_jobs").await, 0);
    running(&store, 2).await;
    assert_eq!(store.purge_business("acme").await.unwrap().runs, 0, "it is running");
    store.cancel_jobs("run_1", 21).await.unwrap();
    store.finish_runs(22, AppNotice::Omit).await.unwrap();
    assert_eq!(store.purge_business("acme").await.unwrap().runs, 1);
}

pub(in crate::store) async fn what_may_not_be_called_yet_is_put_off_unless_somebody_has_it(fresh: &impl Fresh) {
    let store = fresh.open().await;
    running(&store, 4).await;
    let claimed = store.claim_jobs(claim_of(1, "t", "me")).await.unwrap();
    let due = store.due_jobs("run_1", 10, 2).await.unwrap();
    assert_eq!(due.iter().map(|job| job.seq).collect::<Vec<_>>(), [2, 3], "what is claimed is not due");
    let later = vec![(claimed[0].seq, 50), (2, 50), (3, 40)];
    assert_eq!(store.postpone_jobs("run_1", later).await.unwrap(), 2);
    assert_eq!(store.postpone_jobs("run_1", vec![(2, 30)]).await.unwrap(), 1, "it is not brought forward");
    let left = store.due_jobs("run_1", 49, 9).await.unwrap();
    assert_eq!(left.iter().map(|job| (job.seq, job.due_at)).collect::<Vec<_>>(), [(4, 0), (3, 40)]);
    assert_eq!(store.run_counts("run_1").await.unwrap().next_due, Some(0));
    assert_eq!(store.postpone_jobs("run_1", vec![(4, 60)]).await.unwrap(), 1);
    assert_eq!(store.due_runs().await.unwrap()[0].next_due, Some(40));
    assert_eq!(store.claim_jobs(claim_of(9, "u", "me")).await.unwrap(), [], "nothing is due");
}
