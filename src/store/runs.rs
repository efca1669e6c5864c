//! Bulk runs and their jobs.
//!
//! A job is claimed by one statement, which takes only queued jobs without a call or a lock token. The call of a claimed job is recorded
//! with an alias of kind [`JOB_KIND`] that names the job's next try, and an alias belongs to one call. So the claim of a dead replica is
//! settled by that alias, and no try of a job is dialled twice.

use std::collections::{BTreeMap, HashSet, VecDeque};

use async_trait::async_trait;
use serde::Serialize;

use super::Result;
use crate::call::{AnsweredBy, EndProof, Outcome};
use crate::clock::UnixMs;
use crate::ids::{Alias, CallId};
use crate::words::words;

/// The prefix of the idempotency keys of runs that were submitted as batches.
pub const BATCH_KEY: &str = "batch:";

/// The alias kind that binds a call to the try of a job.
pub const JOB_KIND: &str = "run_job";

words!(
    /// The state of a run.
    RunState {
        /// Its leads are being loaded.
        Loading = "loading",
        /// It has no leads yet.
        Ready = "ready",
        /// Due jobs are dialled.
        Running = "running",
        /// No job is dialled until it is resumed.
        Paused = "paused",
        /// All jobs are done.
        Done = "done",
        /// Canceled by an operator or the app.
        Canceled = "canceled",
        /// It cannot be dialled.
        Failed = "failed",
    }
);

impl RunState {
    /// Whether the state is final, unless it is retried by hand.
    pub const fn is_finished(self) -> bool {
        matches!(self, Self::Done | Self::Canceled | Self::Failed)
    }
}

words!(
    /// The state of a job.
    JobState {
        /// Waiting for its due time and a slot.
        Queued = "queued",
        /// Claimed by a replica.
        Dialing = "dialing",
        /// Its call has not ended, as far as is known.
        Calling = "calling",
        /// Ended, with a final outcome.
        Done = "done",
    }
);

/// A run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The id.
    pub id: String,
    /// The business whose limits bind its calls.
    pub business: String,
    /// The account that places its calls.
    pub account: String,
    /// The display name.
    pub name: Option<String>,
    /// The idempotency key: a second create with it returns this run.
    pub key: Option<String>,
    /// The digest of its leads.
    pub digest: String,
    /// The state.
    pub state: RunState,
    /// The specification, as JSON.
    pub spec: String,
    /// The number of leads.
    pub total: i64,
    /// The start time: no job is dialled before.
    pub start_at: UnixMs,
    /// The creation time.
    pub created_at: UnixMs,
    /// The time of the last change.
    pub updated_at: UnixMs,
    /// The time at which it became done, canceled or failed.
    pub finished_at: Option<UnixMs>,
    /// The time of the automatic resume.
    pub resume_at: Option<UnixMs>,
    /// The reason of a pause or failure, or why a running run is not dialled at present.
    pub reason: Option<String>,
    /// The number of retries by hand.
    pub retries: i64,
    /// The replica that loads its leads.
    pub replica: Option<String>,
    /// The token of that load. Each load has a fresh one, so that none writes or deletes rows of another load.
    pub load: Option<String>,
}

/// A job to be inserted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    /// The position in the list, from 1.
    pub seq: i64,
    /// The number to call, in E.164 form.
    pub number: String,
    /// The lead, a JSON object.
    pub lead: String,
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// The run.
    pub run: String,
    /// The position in the list.
    pub seq: i64,
    /// The number to call, in E.164 form.
    pub number: String,
    /// The lead, a JSON object.
    pub lead: String,
    /// The state.
    pub state: JobState,
    /// The outcome of its last call.
    pub outcome: Option<Outcome>,
    /// The number of calls that the provider accepted.
    pub attempts: u32,
    /// The number of calls recorded for it, which names the next one.
    pub tries: u32,
    /// The latest of these, without a made call between them, of which it was unknown whether they were made, for a reason that may be
    /// the lead's.
    pub unknown_tries: u32,
    /// The due time: it is not dialled before.
    pub due_at: UnixMs,
    /// The lock token of its claim.
    pub token: Option<String>,
    /// The current or last call.
    pub call: Option<CallId>,
    /// The error of a failed job.
    pub error: Option<String>,
    /// The time at which it was done.
    pub settled_at: Option<UnixMs>,
}

impl Job {
    /// The alias of its next call.
    pub fn alias(&self) -> Alias {
        Alias { kind: JOB_KIND.to_owned(), id: format!("{}-{}-{}", self.run, self.seq, self.tries) }
    }
}

/// A job that was changed lately.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedJob {
    /// The position in the list.
    pub seq: i64,
    /// The state.
    pub state: JobState,
    /// The outcome of its last call.
    pub outcome: Option<Outcome>,
    /// The number of calls that the provider accepted.
    pub attempts: u32,
    /// The current or last call.
    pub call: Option<CallId>,
    /// The error of a failed job.
    pub error: Option<String>,
}

/// A running run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueRun {
    /// The run.
    pub run: Run,
    /// The number of jobs claimed or in a call, at all replicas, without those whose call has ended.
    pub open: u32,
    /// The earliest due time of a queued job. `None`: no job is queued.
    pub next_due: Option<UnixMs>,
    /// A job whose call has ended waits for the word who answered.
    pub has_waiting: bool,
    /// Its provider is full, as any replica was told: no job is dialled before.
    pub held_until: UnixMs,
}

/// A job whose call has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedJob {
    /// The job.
    pub job: Job,
    /// The state of its run.
    pub run_state: RunState,
    /// The outcome of the call.
    pub outcome: Outcome,
    /// The proof of its end.
    pub proof: EndProof,
    /// The time of its end.
    pub ended_at: UnixMs,
    /// Who answered, if its post-call record says so.
    pub answered_by: Option<AnsweredBy>,
    /// Its post-call record is complete: nothing more will be reported.
    pub is_recorded: bool,
    /// Its post-call record is to be fetched, and has not been asked for yet.
    pub awaits_fetch: bool,
}

/// The settlement of a job that is claimed or in a call. Written only if the job still has that claim or call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settle {
    /// The run.
    pub run: String,
    /// The position in the list.
    pub seq: i64,
    /// Its present call, or
    pub call: Option<CallId>,
    /// the lock token of its claim.
    pub token: Option<String>,
    /// The new call.
    pub new_call: Option<CallId>,
    /// The new state.
    pub state: JobState,
    /// The outcome of its call.
    pub outcome: Option<Outcome>,
    /// The number of calls that the provider accepted.
    pub attempts: u32,
    /// The number of calls recorded for it.
    pub tries: u32,
    /// The number of the latest ones whose outcome was unknown.
    pub unknown_tries: u32,
    /// The new due time.
    pub due_at: UnixMs,
    /// The error of a failed job.
    pub error: Option<String>,
    /// Its call has ended, and until this time it waits for the word who answered.
    pub waits_until: Option<UnixMs>,
    /// It is done without a call: sends the app an event, as the end of a call does.
    pub tell: bool,
}

impl Settle {
    /// No change.
    pub fn of(job: &Job) -> Self {
        Self {
            run: job.run.clone(),
            seq: job.seq,
            call: job.call.clone(),
            token: job.token.clone(),
            new_call: job.call.clone(),
            state: job.state,
            outcome: job.outcome,
            attempts: job.attempts,
            tries: job.tries,
            unknown_tries: job.unknown_tries,
            due_at: job.due_at,
            error: job.error.clone(),
            waits_until: None,
            tell: false,
        }
    }
}

/// The result of a job, for export.
#[derive(Debug, Clone, PartialEq)]
pub struct JobResult {
    /// The job.
    pub job: Job,
    /// Aliases of its call, by kind.
    pub ids: BTreeMap<String, String>,
    /// The time at which its call was admitted.
    pub started_at: Option<UnixMs>,
    /// The time at which its call was answered.
    pub answered_at: Option<UnixMs>,
    /// The time at which its call ended.
    pub ended_at: Option<UnixMs>,
    /// The duration in seconds, as reported by the provider.
    pub duration_secs: Option<i64>,
    /// The cost, as reported by the provider.
    pub cost: Option<f64>,
    /// The unit of the cost.
    pub cost_unit: Option<String>,
}

/// The jobs of a run by state and outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunCounts {
    /// The earliest due time of a queued job.
    #[serde(skip)]
    pub next_due: Option<UnixMs>,
    /// Queued.
    pub queued: u64,
    /// Claimed.
    pub dialing: u64,
    /// In a call, or waiting for the word who answered it.
    pub calling: u64,
    /// Answered, as far as is known by a person.
    pub completed: u64,
    /// Answered by a voicemail or another machine.
    pub voicemail: u64,
    /// Busy.
    pub busy: u64,
    /// Not answered.
    pub no_answer: u64,
    /// Failed.
    pub failed: u64,
    /// Canceled.
    pub canceled: u64,
}

impl RunCounts {
    /// The number of jobs with a final outcome.
    pub fn done(&self) -> u64 {
        self.completed + self.voicemail + self.busy + self.no_answer + self.failed + self.canceled
    }
}

/// The result of creating a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunMade {
    /// Created.
    New,
    /// This run has its idempotency key.
    Known(Box<Run>),
}

/// The bulk runs of a [`super::Store`].
#[async_trait]
pub trait Runs: Send + Sync {
    /// Creates a run, unless its business has one with its key. `tell`: with an event for the app, if it has failed at once.
    async fn create_run(&self, run: &Run, tell: bool) -> Result<RunMade>;

    /// Begins a load of a run, or takes one over, if the last load had the token `before`. `false`: another load was first, or the run
    /// is loaded.
    async fn take_load(&self, load: TakeLoad) -> Result<bool>;

    /// Adds jobs to a run under the token of its load. `false`: the load was taken over.
    async fn add_jobs(&self, run: &str, load: &str, jobs: Vec<NewJob>) -> Result<bool>;

    /// Changes the state of a run that is in one of the given states. `tell`: with an event for the app. `false`: it is in another state.
    async fn move_run(&self, change: RunChange, tell: bool) -> Result<bool>;

    /// Deletes the jobs of a run, batch by batch. Their calls stay.
    async fn forget_jobs(&self, run: &str) -> Result<u64>;

    /// Resumes paused runs whose automatic resume is due. Returns their ids.
    async fn resume_runs(&self, now_ms: UnixMs, tell: bool) -> Result<Vec<String>>;

    /// Deletes a run and its jobs, batch by batch. Its calls stay, and so does a run that is running or paused.
    async fn forget_run(&self, run: &str) -> Result<u64>;

    /// A run.
    async fn run_of(&self, id: &str) -> Result<Option<Run>>;

    /// The latest runs; with `businesses`, only theirs.
    async fn latest_runs(&self, businesses: Option<Vec<String>>, limit: u32) -> Result<Vec<Run>>;

    /// Runs of an account that were submitted as batches, the latest first; with `before`, only older ones than that run.
    async fn batch_runs(&self, account: &str, before: Option<String>, limit: u32) -> Result<Vec<Run>>;

    /// The latest run of a business whose idempotency key is `key`, or `key` and a colon and more.
    async fn latest_keyed_run(&self, business: &str, key: &str) -> Result<Option<Run>>;

    /// The jobs of a run by state and outcome.
    async fn run_counts(&self, run: &str) -> Result<RunCounts>;

    /// The jobs of a run that were claimed or settled last, the latest first. Jobs canceled or requeued in bulk are not among them.
    async fn changed_jobs(&self, run: &str, limit: u32) -> Result<Vec<ChangedJob>>;

    /// The running runs, the oldest first.
    async fn due_runs(&self) -> Result<Vec<DueRun>>;

    /// Claims due jobs of a run, in order, by one statement, which takes only queued jobs without a call or a lock token.
    async fn claim_jobs(&self, claim: Claim) -> Result<Vec<Job>>;

    /// The due jobs of a run, in the order in which they would be claimed.
    async fn due_jobs(&self, run: &str, now_ms: UnixMs, limit: u32) -> Result<Vec<Job>>;

    /// Postpones queued jobs: positions with their earliest due times. Returns how many.
    async fn postpone_jobs(&self, run: &str, later: Vec<(i64, UnixMs)>) -> Result<u64>;

    /// Settles jobs. Returns how many still had their claim or call.
    async fn settle_jobs(&self, settles: Vec<Settle>, now_ms: UnixMs) -> Result<u64>;

    /// Settles jobs that are in a call. Returns the calls of those that still had them: of several replicas one settles a job.
    async fn end_jobs(&self, settles: Vec<Settle>, now_ms: UnixMs) -> Result<HashSet<CallId>>;

    /// Records the results of calls of a running run, of all replicas, and pauses it if its breaker trips. Returns the reason of the
    /// pause. Afterwards, and after every other change of its state, it counts anew. `tell`: with an event for the app.
    async fn record_results(&self, results: CallResults, tell: bool) -> Result<Option<String>>;

    /// Records why a running run is not dialled at present; `None`: it is.
    async fn explain_run(&self, run: &str, why: Option<&str>) -> Result<()>;

    /// Holds all running runs of an account until a time, at all replicas. A longer hold stays.
    async fn hold_runs(&self, account: &str, until: UnixMs) -> Result<()>;

    /// Jobs whose call has ended; with `calls`, only of these. A call that was never created counts only if it ended before
    /// `not_created_before`: until then the replica that placed it settles the job, with the reason. A job that waits for the word who
    /// answered counts once that is known, its call's record is complete, or its time is over at `now_ms`. `except`: none of these runs,
    /// which would fill the list if nobody here can settle them.
    async fn ended_jobs(
        &self,
        calls: Option<Vec<CallId>>,
        except: Vec<String>,
        not_created_before: UnixMs,
        now_ms: UnixMs,
        limit: u32,
    ) -> Result<Vec<EndedJob>>;

    /// Settles lost claims: a job whose call is on record is `calling`, others are queued again, or canceled with their run. Returns how
    /// many.
    async fn recover_jobs(&self, lost: LostClaims, now_ms: UnixMs) -> Result<u64>;

    /// Completes running runs without open jobs. Returns their ids.
    async fn finish_runs(&self, now_ms: UnixMs, tell: bool) -> Result<Vec<String>>;

    /// Cancels the queued jobs of a run. Returns how many.
    async fn cancel_jobs(&self, run: &str, now_ms: UnixMs) -> Result<u64>;

    /// Requeues jobs with these outcomes. Returns how many.
    async fn retry_jobs(&self, run: &str, outcomes: Vec<Outcome>, now_ms: UnixMs) -> Result<u64>;

    /// Results of the jobs after a position.
    async fn job_results(&self, run: &str, after: i64, limit: u32) -> Result<Vec<JobResult>>;

    /// The ids of runs that finished before a time, or whose load was abandoned before it. `of_these`: of these businesses; else of
    /// all others.
    async fn old_runs(
        &self,
        before: UnixMs,
        of_these: bool,
        businesses: Vec<String>,
        limit: u32,
    ) -> Result<Vec<String>>;
}

/// Results of calls of a run, for its breaker.
#[derive(Debug, Clone)]
pub struct CallResults {
    /// The run.
    pub run: String,
    /// In the order of their ends: whether the call failed.
    pub failed: Vec<bool>,
    /// The breaker looks at so many of the latest calls,
    pub window: u32,
    /// and trips if so many of them failed; 0: never.
    pub failures: u32,
    /// The cause of the last failure.
    pub why: String,
    /// The time of the automatic resume.
    pub resume_at: Option<UnixMs>,
    /// The present time.
    pub now_ms: UnixMs,
}

impl CallResults {
    /// The latest calls after these, and the number of failures if the breaker trips. `before`: the latest calls before, 1 for one that
    /// failed, else 0. A success trips nothing.
    pub(super) fn after(&self, before: &str) -> (String, Option<usize>) {
        let mut recent: VecDeque<char> = before.chars().collect();
        for failed in &self.failed {
            recent.push_back(if *failed { FAILED } else { '0' });
            while recent.len() > self.window as usize {
                recent.pop_front();
            }
            let failures = recent.iter().filter(|one| **one == FAILED).count();
            if *failed && self.failures > 0 && failures >= self.failures as usize {
                return (String::new(), Some(failures));
            }
        }
        (recent.into_iter().collect(), None)
    }
}

/// A failed call among the latest of a run.
pub(super) const FAILED: char = '1';

/// Selects claims that no replica works on.
#[derive(Debug, Clone)]
pub struct LostClaims {
    /// The live replicas. Claims of others are lost.
    pub live: Vec<String>,
    /// This replica,
    pub replica: String,
    /// and the tokens of the claims that it works on. Its other claims are lost: the answer of their commit did not arrive.
    pub tokens: Vec<String>,
    /// Only claims before this time.
    pub before: UnixMs,
}

/// A claim.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The run.
    pub run: String,
    /// The maximum number of jobs.
    pub limit: u32,
    /// The maximum number of open jobs of the run, including those open now.
    pub open_max: u32,
    /// The lock token: fresh.
    pub token: String,
    /// The claiming replica.
    pub replica: String,
    /// The present time.
    pub now_ms: UnixMs,
}

/// Parameters of [`Runs::take_load`].
#[derive(Debug, Clone)]
pub struct TakeLoad {
    /// The run.
    pub run: String,
    /// The token of the last load, if there was one.
    pub before: Option<String>,
    /// The token of the new load: fresh.
    pub load: String,
    /// The loading replica.
    pub replica: String,
    /// The present time.
    pub now_ms: UnixMs,
}

/// A change of a run's state.
#[derive(Debug, Clone)]
pub struct RunChange {
    /// The run.
    pub run: String,
    /// The states in which it applies.
    pub from: Vec<RunState>,
    /// The new state.
    pub to: RunState,
    /// The reason.
    pub reason: Option<String>,
    /// The time of the automatic resume.
    pub resume_at: Option<UnixMs>,
    /// At the end of a load: the number of leads and their digest.
    pub loaded: Option<(i64, String)>,
    /// Only if this is the token of its load.
    pub load: Option<String>,
    /// It counts as a retry by hand.
    pub is_retry: bool,
    /// The present time.
    pub now_ms: UnixMs,
}

impl RunChange {
    /// A change without a reason.
    pub fn of(run: &str, from: &[RunState], to: RunState, now_ms: UnixMs) -> Self {
        let run = run.to_owned();
        let from = from.to_vec();
        Self { run, from, to, reason: None, resume_at: None, loaded: None, load: None, is_retry: false, now_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_breaker_looks_at_the_last_calls_alone() {
        let of = |failed: &[bool], failures| CallResults {
            run: "run_1".to_owned(),
            failed: failed.to_vec(),
            window: 4,
            failures,
            why: String::new(),
            resume_at: None,
            now_ms: 0,
        };
        let (recent, tripped) = of(&[true, false, true, false, false, true], 3).after("");
        assert_eq!((recent.as_str(), tripped), ("1001", None));
        let (recent, tripped) = of(&[true], 3).after(&recent);
        assert_eq!((recent.as_str(), tripped), ("0011", None));
        assert_eq!(of(&[false], 2).after(&recent).1, None, "a success does not trip it");
        assert_eq!(of(&[true], 3).after(&recent), (String::new(), Some(3)), "it begins anew");
        assert_eq!(of(&[true; 9], 0).after(""), ("1111".to_owned(), None), "it is off");
    }
}
