//! Bulk runs and their jobs: what is asked for, what is claimed, what came of it.
//!
//! A job is claimed by one statement that takes only what is queued, has no call and no lock token. What a claim is for is put on
//! record with the call itself: the call has the alias [`JOB_KIND`] of the job's next try, which no other call can have. So a claim
//! whose replica died is settled by that alias, and no try of a job is ever dialled twice, whoever claims it.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde::Serialize;

use super::Result;
use crate::call::{EndProof, Outcome, words};
use crate::clock::UnixMs;
use crate::ids::{Alias, CallId};

/// What the idempotency keys of runs begin with that were submitted as batches.
pub const BATCH_KEY: &str = "batch:";

/// The alias kind that binds a call to the try of a job.
pub const JOB_KIND: &str = "run_job";

words!(
    /// Where a run stands.
    RunState {
        /// Its leads are being taken in.
        Loading = "loading",
        /// It waits for its leads.
        Ready = "ready",
        /// Its jobs are dialled when they are due.
        Running = "running",
        /// Nothing of it is dialled until it is resumed.
        Paused = "paused",
        /// Every job is done.
        Done = "done",
        /// Somebody ended it.
        Canceled = "canceled",
        /// It cannot be dialled at all.
        Failed = "failed",
    }
);

impl RunState {
    /// Nothing of it is dialled any more.
    pub const fn is_finished(self) -> bool {
        matches!(self, Self::Done | Self::Canceled | Self::Failed)
    }
}

words!(
    /// Where a job stands.
    JobState {
        /// It waits for its time and a slot.
        Queued = "queued",
        /// A replica has claimed it.
        Dialing = "dialing",
        /// It has a call that is not over, as far as is known.
        Calling = "calling",
        /// Its outcome is final.
        Done = "done",
    }
);

/// A run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Its id.
    pub id: String,
    /// The business whose capacity it uses.
    pub business: String,
    /// At which account.
    pub account: String,
    /// What its maker calls it.
    pub name: Option<String>,
    /// The key that makes a second create the same run.
    pub key: Option<String>,
    /// The digest of what was asked for.
    pub digest: String,
    /// Where it stands.
    pub state: RunState,
    /// What it asks for, as JSON.
    pub spec: String,
    /// Leads.
    pub total: i64,
    /// It is not dialled before.
    pub start_at: UnixMs,
    /// When it was made.
    pub created_at: UnixMs,
    /// When it was changed last.
    pub updated_at: UnixMs,
    /// When it was over.
    pub finished_at: Option<UnixMs>,
    /// When it goes on by itself.
    pub resume_at: Option<UnixMs>,
    /// Why it is paused or failed.
    pub reason: Option<String>,
    /// How often its jobs were queued again by hand.
    pub retries: i64,
    /// The replica that takes its leads in.
    pub replica: Option<String>,
    /// The token of that load. Each load of a run has a fresh one, so that none writes or deletes what is another's.
    pub load: Option<String>,
}

/// A lead that is to be a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    /// Its place in the list, from 1.
    pub seq: i64,
    /// Whom it calls.
    pub number: String,
    /// The lead, a JSON object.
    pub lead: String,
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its run.
    pub run: String,
    /// Its place in the list.
    pub seq: i64,
    /// Whom it calls.
    pub number: String,
    /// The lead, a JSON object.
    pub lead: String,
    /// Where it stands.
    pub state: JobState,
    /// How its last call ended.
    pub outcome: Option<Outcome>,
    /// Calls that its provider took.
    pub attempts: u32,
    /// Calls that were put on record for it.
    pub tries: u32,
    /// It is not dialled before.
    pub due_at: UnixMs,
    /// The token of its claim.
    pub token: Option<String>,
    /// Its call.
    pub call: Option<CallId>,
    /// Why it failed.
    pub error: Option<String>,
    /// When its outcome was final.
    pub settled_at: Option<UnixMs>,
}

impl Job {
    /// The id by which the call of its next try is known.
    pub fn alias(&self) -> Alias {
        Alias { kind: JOB_KIND.to_owned(), id: format!("{}-{}-{}", self.run, self.seq, self.tries) }
    }
}

/// A job of which something was changed lately.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedJob {
    /// Its place in the list.
    pub seq: i64,
    /// Where it stands.
    pub state: JobState,
    /// How its last call ended.
    pub outcome: Option<Outcome>,
    /// Calls that its provider took.
    pub attempts: u32,
    /// Its call.
    pub call: Option<CallId>,
    /// Why it failed.
    pub error: Option<String>,
}

/// A run that may have something to dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueRun {
    /// It.
    pub run: Run,
    /// Its jobs that are claimed or in a call, at every replica.
    pub open: u32,
    /// When the first of its queued jobs is due; none: nothing is queued.
    pub next_due: Option<UnixMs>,
}

/// A job whose call is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedJob {
    /// It.
    pub job: Job,
    /// Where its run stands.
    pub run_state: RunState,
    /// How the call ended.
    pub outcome: Outcome,
    /// Why it counts as over.
    pub proof: EndProof,
    /// When.
    pub ended_at: UnixMs,
}

/// What becomes of a job that is claimed or in a call. Written only if it still has that claim, or that call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settle {
    /// Its run.
    pub run: String,
    /// Its place.
    pub seq: i64,
    /// The call that it has, or
    pub call: Option<CallId>,
    /// the token of its claim.
    pub token: Option<String>,
    /// Its call from now on.
    pub new_call: Option<CallId>,
    /// Where it goes.
    pub state: JobState,
    /// How its call ended.
    pub outcome: Option<Outcome>,
    /// Calls that its provider took.
    pub attempts: u32,
    /// Calls on record.
    pub tries: u32,
    /// When it is due again.
    pub due_at: UnixMs,
    /// Why it failed.
    pub error: Option<String>,
}

impl Settle {
    /// Leaves everything as it is.
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
            due_at: job.due_at,
            error: job.error.clone(),
        }
    }
}

/// A job as it is exported.
#[derive(Debug, Clone, PartialEq)]
pub struct JobResult {
    /// It.
    pub job: Job,
    /// Ids of its call outside, by kind.
    pub ids: BTreeMap<String, String>,
    /// When its call was admitted.
    pub started_at: Option<UnixMs>,
    /// When its call was answered.
    pub answered_at: Option<UnixMs>,
    /// When its call ended.
    pub ended_at: Option<UnixMs>,
    /// How long it was, in seconds, as its provider says.
    pub duration_secs: Option<i64>,
    /// What it cost, as its provider says.
    pub cost: Option<f64>,
    /// In which unit.
    pub cost_unit: Option<String>,
}

/// How many jobs of a run stand where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunCounts {
    /// When the first of those that wait is due.
    #[serde(skip)]
    pub next_due: Option<UnixMs>,
    /// Wait.
    pub queued: u64,
    /// Are claimed.
    pub dialing: u64,
    /// Are in a call.
    pub calling: u64,
    /// Were answered.
    pub completed: u64,
    /// Met a busy line.
    pub busy: u64,
    /// Were not answered.
    pub no_answer: u64,
    /// Failed.
    pub failed: u64,
    /// Were canceled.
    pub canceled: u64,
}

impl RunCounts {
    /// Those whose outcome is final.
    pub fn done(&self) -> u64 {
        self.completed + self.busy + self.no_answer + self.failed + self.canceled
    }
}

/// What became of a run that was to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunMade {
    /// It is new.
    New,
    /// Its key belongs to this one.
    Known(Box<Run>),
}

/// The part of a [`super::Store`] that keeps bulk runs.
#[async_trait]
pub trait Runs: Send + Sync {
    /// Makes a run, unless its business has used its key. Tells the app of one that has failed already, if it wants to know.
    async fn create_run(&self, run: &Run, tell: bool) -> Result<RunMade>;

    /// Begins a load, or takes one over: of a run that is loading or waits for its leads, and whose last load had the token `before`.
    /// `false`: somebody else was first.
    async fn take_load(&self, load: TakeLoad) -> Result<bool>;

    /// Adds leads to a run that is being loaded under this token. `false`: it is not, any more.
    async fn add_jobs(&self, run: &str, load: &str, jobs: Vec<NewJob>) -> Result<bool>;

    /// Moves a run that is in one of these states to another, and tells the app of it if that wants to know. `false`: it is in none
    /// of them.
    async fn move_run(&self, change: RunChange, tell: bool) -> Result<bool>;

    /// Forgets the jobs of a run, little by little. Their calls stay.
    async fn forget_jobs(&self, run: &str) -> Result<u64>;

    /// Resumes runs that a breaker paused, if their time has come. Their ids.
    async fn resume_runs(&self, now_ms: UnixMs, tell: bool) -> Result<Vec<String>>;

    /// Forgets a run and its jobs, little by little. Its calls stay. One that is dialled stays too.
    async fn forget_run(&self, run: &str) -> Result<u64>;

    /// A run.
    async fn run_of(&self, id: &str) -> Result<Option<Run>>;

    /// The latest runs; of these businesses, if any are named.
    async fn latest_runs(&self, businesses: Option<Vec<String>>, limit: u32) -> Result<Vec<Run>>;

    /// Runs of an account whose idempotency key begins with [`BATCH_KEY`], the latest first, before (older than) one of them.
    async fn batch_runs(&self, account: &str, before: Option<String>, limit: u32) -> Result<Vec<Run>>;

    /// The latest run of a business whose idempotency key is this one, or goes on after it with a colon.
    async fn latest_keyed_run(&self, business: &str, key: &str) -> Result<Option<Run>>;

    /// How many jobs of a run stand where.
    async fn run_counts(&self, run: &str) -> Result<RunCounts>;

    /// The jobs of a run that were claimed or settled last, the latest first. What is canceled or queued again all at once does
    /// not count as changed.
    async fn changed_jobs(&self, run: &str, limit: u32) -> Result<Vec<ChangedJob>>;

    /// Runs that are running, the oldest first.
    async fn due_runs(&self) -> Result<Vec<DueRun>>;

    /// Claims jobs of a run that are due, at most `limit`, in order, for a replica, under a fresh token: one statement, which takes
    /// only what is queued, has no call and no token.
    async fn claim_jobs(&self, claim: Claim) -> Result<Vec<Job>>;

    /// Jobs of a run that are due, in the order in which they are claimed. They are not claimed.
    async fn due_jobs(&self, run: &str, now_ms: UnixMs, limit: u32) -> Result<Vec<Job>>;

    /// Puts jobs off that are still queued: by their place, until when at least.
    async fn postpone_jobs(&self, run: &str, later: Vec<(i64, UnixMs)>) -> Result<u64>;

    /// Settles jobs. How many of them still were as they are said to have been.
    async fn settle_jobs(&self, settles: Vec<Settle>, now_ms: UnixMs) -> Result<u64>;

    /// Jobs in a call that is over, of all or of these calls alone; of those whose call was never made only if that was known before
    /// `not_created_before`: until then the replica that placed it says why.
    async fn ended_jobs(
        &self,
        calls: Option<Vec<CallId>>,
        not_created_before: UnixMs,
        limit: u32,
    ) -> Result<Vec<EndedJob>>;

    /// Settles lost claims: with the call that has the try's alias, or queued again (of a run that was canceled: done). How many.
    async fn recover_jobs(&self, lost: LostClaims, now_ms: UnixMs) -> Result<u64>;

    /// Runs that are running and have no job left to be done are done from now on. Their ids.
    async fn finish_runs(&self, now_ms: UnixMs, tell: bool) -> Result<Vec<String>>;

    /// Ends what is queued of a run that was canceled. How many jobs.
    async fn cancel_jobs(&self, run: &str, now_ms: UnixMs) -> Result<u64>;

    /// Queues jobs again that ended so. How many.
    async fn retry_jobs(&self, run: &str, outcomes: Vec<Outcome>, now_ms: UnixMs) -> Result<u64>;

    /// Jobs after a place in the list, with what is known of their calls.
    async fn job_results(&self, run: &str, after: i64, limit: u32) -> Result<Vec<JobResult>>;

    /// Runs that were finished before a time, or that nobody finished loading since before it; their ids. `of_these`: of these
    /// businesses, else of all others.
    async fn old_runs(
        &self,
        before: UnixMs,
        of_these: bool,
        businesses: Vec<String>,
        limit: u32,
    ) -> Result<Vec<String>>;
}

/// Claims that nobody works on.
#[derive(Debug, Clone)]
pub struct LostClaims {
    /// Replicas that live. A claim of any other is lost.
    pub live: Vec<String>,
    /// This replica,
    pub replica: String,
    /// and the tokens of its claims that it works on. Any other claim of its own is lost: its database did not answer when it claimed.
    pub tokens: Vec<String>,
    /// Only those from before this time.
    pub before: UnixMs,
}

/// A claim.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Of which run.
    pub run: String,
    /// At most so many.
    pub limit: u32,
    /// Jobs that the run may have open at once, those included that are open.
    pub open_max: u32,
    /// Fresh.
    pub token: String,
    /// Who claims.
    pub replica: String,
    /// Now.
    pub now_ms: UnixMs,
}

/// The begin of a load.
#[derive(Debug, Clone)]
pub struct TakeLoad {
    /// Of which run.
    pub run: String,
    /// The token of its last load, if it had one.
    pub before: Option<String>,
    /// Fresh.
    pub load: String,
    /// Who loads.
    pub replica: String,
    /// Now.
    pub now_ms: UnixMs,
}

/// A move of a run.
#[derive(Debug, Clone)]
pub struct RunChange {
    /// The run.
    pub run: String,
    /// It is in one of these states.
    pub from: Vec<RunState>,
    /// Where it goes.
    pub to: RunState,
    /// Why.
    pub reason: Option<String>,
    /// When it goes on by itself.
    pub resume_at: Option<UnixMs>,
    /// How many leads it has, where that is known now; and their digest.
    pub loaded: Option<(i64, String)>,
    /// It is being loaded under this token.
    pub load: Option<String>,
    /// Its jobs were queued again by hand.
    pub is_retry: bool,
    /// Now.
    pub now_ms: UnixMs,
}

impl RunChange {
    /// A move without a reason.
    pub fn of(run: &str, from: &[RunState], to: RunState, now_ms: UnixMs) -> Self {
        let run = run.to_owned();
        let from = from.to_vec();
        Self { run, from, to, reason: None, resume_at: None, loaded: None, load: None, is_retry: false, now_ms }
    }
}
