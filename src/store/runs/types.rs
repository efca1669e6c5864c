//! Runs, jobs, and what is changed of them.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;

use crate::call::{AnsweredBy, EndProof, Outcome};
use crate::clock::UnixMs;
use crate::ids::{Alias, CallId};
use crate::store::AppNotice;
use crate::words::words;

/// The prefix of the idempotency keys of runs that were submitted as batches.
pub const BATCH_KEY: &str = "batch:";

/// The alias kind that binds a call to the try of a job.
pub const JOB_KIND: &str = "run_job";

words!(
    /// The state of a run.
    RunState {
        /// The run's leads are being loaded.
        Loading = "loading",
        /// The run has no leads yet.
        Ready = "ready",
        /// Due jobs are dialled.
        Running = "running",
        /// No job is dialled until it is resumed.
        Paused = "paused",
        /// All jobs are done.
        Done = "done",
        /// Canceled by an operator or the app.
        Canceled = "canceled",
        /// The run cannot be dialled.
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
        /// The job's call has not ended, as far as is known.
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
    /// A job whose call has ended waits to learn who answered.
    pub has_waiting: bool,
    /// The time until which the run's provider is full, as any replica was told: no job is dialled before.
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
    /// Whether the exchange of its create ended, and left the outcome unknown.
    pub exchange_over: bool,
    /// The party that answered, if the call's post-call record says so.
    pub answered_by: Option<AnsweredBy>,
    /// Whether the call's post-call record is complete: nothing more will be reported.
    pub is_recorded: bool,
    /// Whether the call's post-call record is to be fetched, and has not been asked for yet.
    pub awaits_fetch: bool,
}

/// The settlement of a job that is claimed or in a call. Written only if the job still has that claim or call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobSettlement {
    /// The run.
    pub run: String,
    /// The position in the list.
    pub seq: i64,
    /// The job's present call; `None`: the job is claimed.
    pub call: Option<CallId>,
    /// The lock token of the job's claim.
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
    /// The time until which the job, whose call has ended, waits to learn who answered.
    pub waits_until: Option<UnixMs>,
    /// Whether the app gets an event because the job is done without a call, as at the end of a call.
    pub notice: AppNotice,
}

impl JobSettlement {
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
            notice: AppNotice::Omit,
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
    /// In a call, or waiting to learn who answered it.
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
pub enum CreateRunOutcome {
    /// Created.
    New,
    /// The run that has this idempotency key already.
    Known(Box<Run>),
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
    pub(in crate::store) fn after(&self, before: &str) -> (String, Option<usize>) {
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
pub(in crate::store) const FAILED: char = '1';

/// Selects claims that no replica works on.
#[derive(Debug, Clone)]
pub struct LostClaims {
    /// The live replicas. Claims of others are lost.
    pub live: Vec<String>,
    /// This replica.
    pub replica: String,
    /// The tokens of the claims that this replica works on. Its other claims are lost: the answer of their commit did not arrive.
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

/// Parameters of [`super::Runs::take_load`].
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
    /// Whether the change counts as a retry by hand.
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

/// The businesses whose rows are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Businesses {
    /// The rows of these businesses.
    Only(Vec<String>),
    /// The rows of all businesses but these.
    AllBut(Vec<String>),
}
