//! Bulk runs and their jobs.
//!
//! A job is claimed by one statement, which takes only queued jobs without a call or a lock token. The call of a claimed job is recorded
//! with an alias of kind [`JOB_KIND`] that names the job's next try, and an alias belongs to one call. So the claim of a dead replica is
//! settled by that alias, and no try of a job is dialled twice.

mod types;

use std::collections::HashSet;

use async_trait::async_trait;

use super::{AppNotice, Result};
use crate::call::Outcome;
use crate::clock::UnixMs;
use crate::ids::CallId;
pub use types::*;

/// The bulk runs of a [`super::Store`].
#[async_trait]
pub trait Runs: Send + Sync {
    /// Creates a run, unless its business has one with its key. `notice`: with or without an event for the app, if it has failed at once.
    async fn create_run(&self, run: &Run, notice: AppNotice) -> Result<CreateRunOutcome>;

    /// Begins a load of a run, or takes one over, if the last load had the token `before`. `false`: another load was first, or the run
    /// is loaded.
    async fn take_load(&self, load: TakeLoad) -> Result<bool>;

    /// Adds jobs to a run under the token of its load. `false`: the load was taken over.
    async fn add_jobs(&self, run: &str, load: &str, jobs: Vec<NewJob>) -> Result<bool>;

    /// Changes the state of a run that is in one of the given states. `notice`: with or without an event for the app. `false`: it is in another state.
    async fn move_run(&self, change: RunChange, notice: AppNotice) -> Result<bool>;

    /// Deletes the jobs of a run, batch by batch. Their calls stay.
    async fn delete_jobs(&self, run: &str) -> Result<u64>;

    /// Resumes paused runs whose automatic resume is due. Returns their ids.
    async fn resume_runs(&self, now_ms: UnixMs, notice: AppNotice) -> Result<Vec<String>>;

    /// Deletes a run and its jobs, batch by batch. Its calls stay, and so does a run that is running or paused.
    async fn delete_run(&self, run: &str) -> Result<u64>;

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
    async fn settle_jobs(&self, settlements: Vec<JobSettlement>, now_ms: UnixMs) -> Result<u64>;

    /// Settles jobs that are in a call. Returns the calls of those that still had them: of several replicas one settles a job.
    async fn end_jobs(&self, settlements: Vec<JobSettlement>, now_ms: UnixMs) -> Result<HashSet<CallId>>;

    /// Records the results of calls of a running run, of all replicas, and pauses it if its breaker trips. Returns the reason of the
    /// pause. Afterwards, and after every other change of its state, it counts anew. `notice`: with or without an event for the app.
    async fn record_results(&self, results: CallResults, notice: AppNotice) -> Result<Option<String>>;

    /// Records why a running run is not dialled at present; `None`: it is.
    async fn explain_run(&self, run: &str, why: Option<&str>) -> Result<()>;

    /// Holds all running runs of an account until a time, at all replicas. A longer hold stays.
    async fn hold_runs(&self, account: &str, until: UnixMs) -> Result<()>;

    /// Jobs whose call has ended; with `calls`, only of these. A call that was never created counts only if it ended before
    /// `not_created_before`: until then the replica that placed it settles the job, with the reason. A job that waits to learn who
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
    async fn finish_runs(&self, now_ms: UnixMs, notice: AppNotice) -> Result<Vec<String>>;

    /// Cancels the queued jobs of a run. Returns how many.
    async fn cancel_jobs(&self, run: &str, now_ms: UnixMs) -> Result<u64>;

    /// Requeues jobs with these outcomes. Returns how many.
    async fn retry_jobs(&self, run: &str, outcomes: Vec<Outcome>, now_ms: UnixMs) -> Result<u64>;

    /// Results of the jobs after a position.
    async fn job_results(&self, run: &str, after: i64, limit: u32) -> Result<Vec<JobResult>>;

    /// The ids of runs that finished before a time, or whose load was abandoned before it.
    async fn old_runs(&self, before: UnixMs, of: Businesses, limit: u32) -> Result<Vec<String>>;
}
