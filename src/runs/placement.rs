//! Places the call of one claimed job, and settles the job.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::FutureExt as _;
use serde_json::{Map, Value};
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use super::feedback::Feedback;
use super::plan::{BuildError, Plan};
use super::{MayDial, Runs, may_dial};
use crate::call::Outcome;
use crate::calls::Calls;
use crate::calls::outbound::CreateRequest;
use crate::calls::outbound::job::{JobPlaced, JobTerms, Unavailable};
use crate::clock::UnixMs;
use crate::ids::CallId;
use crate::metrics::RunDial;
use crate::policy::decision::LimitExceeded;
use crate::policy::{Binding, Bound, CallAttributes, Scope};
use crate::provider::description::OWN_ID_KIND;
use crate::store::runs::{Job, JobSettlement, JobState};
use crate::store::{AppNotice, Store};
use crate::sync::lock;

/// The pause before a job is settled again, after an error of the store.
const STORE_RETRY_DELAY: Duration = Duration::from_secs(1);
/// The pauses, in milliseconds, of a run while no limiter can decide, and of a job whose provider is unreachable.
const NO_LIMITER_PAUSE_MS: i64 = 1_000;
const LATE_PAUSE_MS: i64 = 1_000;
const UNREACHABLE_PAUSE_MS: i64 = 5_000;
/// The longest hold of an account for an answer 503, in milliseconds: it may be about one lead, whatever the answer says.
const UNAVAILABLE_PAUSE_MS_MAX: i64 = 300_000;

/// The last tries of a job whose calls are looked at before it is dialled again.
const TRIES_SEEN_MAX: u32 = 8;

/// Numbers of a pool that one placement asks a slot for, and that it looks at, those included that are known to be full.
const NUMBERS_TRIED_MAX: usize = 16;
const NUMBERS_SEEN_MAX: usize = 64;

/// The limits that jobs of a run have found full in one round: the others do not ask for the same numbers.
#[derive(Debug, Default)]
pub(super) struct FullLimits(Mutex<Found>);

#[derive(Debug, Default)]
struct Found {
    keys: BTreeSet<String>,
    last: Option<LimitExceeded>,
}

impl FullLimits {
    fn found(&self) -> MutexGuard<'_, Found> {
        lock(&self.0)
    }

    /// A limit is full under these keys.
    fn add(&self, keys: BTreeSet<String>, full: &LimitExceeded) {
        let mut found = self.found();
        found.keys.extend(keys);
        found.last = Some(full.clone());
    }

    /// Whether a call with these keys would meet one of them.
    fn has_any(&self, keys: &BTreeSet<String>) -> bool {
        !self.found().keys.is_disjoint(keys)
    }

    /// The one that was found last.
    fn last(&self) -> Option<LimitExceeded> {
        self.found().last.clone()
    }
}

/// The result of admission.
pub(super) enum PlacementResult {
    /// The call has a slot.
    Admitted,
    /// A limit is full.
    LimitExceeded(LimitExceeded),
    /// The number may not be called yet.
    Postponed,
    /// No lead of the run can be called at present, for this reason. The job is queued again.
    Held(String),
    /// The job failed, or waits for something other than a slot.
    PassedOver,
}

/// A placement of jobs of one run.
pub(super) struct Placement {
    pub(super) calls: Calls,
    pub(super) runs: Runs,
    pub(super) feedback: Arc<Feedback>,
    pub(super) plan: Arc<Plan>,
    /// Slots that each concurrency limit keeps free of the call.
    pub(super) reserve: u32,
    /// The limits that jobs of this round found full.
    pub(super) full: Arc<FullLimits>,
}

impl Placement {
    /// The call of one of the job's last tries that was given up, and was up after all: its second record. Only a job whose last
    /// calls were of unknown outcome can have one.
    async fn call_given_up(&self, job: &Job) -> crate::store::Result<Option<CallId>> {
        let store = &self.calls.lifecycle.store;
        let last = (job.tries.saturating_sub(TRIES_SEEN_MAX)..job.tries).rev();
        for tries in last.take_while(|_| job.unknown_tries > 0) {
            let Some(call) = store.resolve(&[Job { tries, ..job.clone() }.alias()]).await? else { continue };
            if store.call(&call).await?.is_some_and(|record| record.alias(OWN_ID_KIND).is_some()) {
                return Ok(Some(call));
            }
        }
        Ok(None)
    }

    /// Places the call of a job. `admission` receives the result of admission, before the provider answers; closed without one, the job was
    /// passed over.
    pub(super) async fn place(self, job: Job, admission: oneshot::Sender<PlacementResult>) {
        match self.call_given_up(&job).await {
            Ok(None) => {}
            Ok(Some(call)) => return self.settle(calling(&job, &call)).await,
            Err(error) => {
                warn!(run = job.run, seq = job.seq, %error, "failed to read the last call of a job; trying again");
                let due_at = self.calls.lifecycle.clock.now_ms() + UNREACHABLE_PAUSE_MS;
                return self.settle(JobSettlement { due_at, ..queued(&job) }).await;
            }
        }
        let lead = serde_json::from_str::<Map<String, Value>>(&job.lead).unwrap_or_default();
        let now_ms = self.calls.lifecycle.clock.now_ms();
        match may_dial(&self.calls.destinations, &self.plan.spec, &job.number, &lead, now_ms) {
            MayDial::Now => {}
            MayDial::NotBefore(at) => {
                self.settle(JobSettlement { due_at: at, ..queued(&job) }).await;
                let _ = admission.send(PlacementResult::Postponed);
                return;
            }
            MayDial::Never { code, why, is_rule } => {
                let why = format!("{code}: {why}");
                self.settle(failed(&job, why.clone())).await;
                if is_rule {
                    self.record_failure(&job.run, &why).await;
                }
                return;
            }
        }
        // The numbers of the pool, each once: first the job's own.
        let turn = u64::try_from(job.seq).unwrap_or(0) + u64::from(job.tries);
        let numbers = (turn..).take(self.plan.spec.own_numbers.len().max(1));
        let mut turns = numbers.filter(|turn| self.may_use_number(&job.run, *turn)).take(NUMBERS_SEEN_MAX);
        let (mut admission, mut tried) = (admission, 0);
        let (placed, job, admission) = loop {
            let request = match self.create_request(&job, &lead, &mut turns) {
                Ok(request) => request.filter(|_| tried < NUMBERS_TRIED_MAX),
                Err(BuildError::Lead(why)) => {
                    self.settle(failed(&job, why.clone())).await;
                    return self.record_failure(&job.run, &why).await;
                }
                Err(BuildError::Number(why) | BuildError::Run(why)) => return self.hold(&job, admission, why).await,
            };
            let Some(request) = request else {
                match self.full.last() {
                    Some(full) => break (JobPlaced::LimitExceeded(full), job, Some(admission)),
                    None => {
                        let why = "no number of the pool may be used".to_owned();
                        return self.hold(&job, admission, why).await;
                    }
                }
            };
            tried += 1;
            let (placed, bound) = self.try_number(&job, request.clone(), admission).await;
            admission = match bound {
                Ok(call) => break (placed, Job { call: Some(call), ..job }, None),
                Err(admission) => admission,
            };
            let JobPlaced::LimitExceeded(full) = &placed else { break (placed, job, Some(admission)) };
            let keys = self.keys_of(&request.attributes, Some(&full.limit));
            if keys.is_empty() {
                // A limit of the run itself binds every number.
                break (placed, job, Some(admission));
            }
            self.full.add(keys, full);
        };
        let result = self.record(&job, &placed).await;
        self.calls.lifecycle.metrics.run_dial(result);
        let wakes = !matches!(placed, JobPlaced::Called(_) | JobPlaced::Unknown { .. } | JobPlaced::LimitExceeded(_));
        if let Some(admission) = admission {
            let _ = admission.send(match placed {
                JobPlaced::LimitExceeded(full) => PlacementResult::LimitExceeded(full),
                _ => PlacementResult::PassedOver,
            });
        }
        if wakes {
            self.runs.wake.notify_one();
        }
    }

    /// Whether the pool's number of a turn may be used. Logs once that it may not.
    fn may_use_number(&self, run: &str, turn: u64) -> bool {
        let Some(why) = self.plan.number_denied(&self.calls, turn) else { return true };
        if self.feedback.add_fault(run, &why) {
            warn!(run, why, "number of the run's pool skipped");
        }
        false
    }

    /// The create of a job with the first of these numbers that is under no limit known to be full, if there is one.
    ///
    /// # Errors
    /// There is none, whatever the number.
    fn create_request(
        &self,
        job: &Job,
        lead: &Map<String, Value>,
        turns: &mut impl Iterator<Item = u64>,
    ) -> Result<Option<Arc<CreateRequest>>, BuildError> {
        for turn in turns {
            match self.plan.create_request(&self.calls, &job.run, turn, &job.number, lead) {
                Ok(request) if self.full.has_any(&self.keys_of(&request.attributes, None)) => {}
                Ok(request) => return Ok(Some(Arc::new(request))),
                Err(BuildError::Number(why)) => debug!(run = job.run, why, "number of the run's pool skipped"),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Queues a job again because no lead of its run can be called at present.
    async fn hold(&self, job: &Job, admission: oneshot::Sender<PlacementResult>, why: String) {
        self.settle(queued(job)).await;
        self.calls.lifecycle.metrics.run_dial(RunDial::Held);
        let _ = admission.send(PlacementResult::Held(why));
    }

    /// Places the call of a job by this request. `Err`: it was not admitted.
    async fn try_number(
        &self,
        job: &Job,
        request: Arc<CreateRequest>,
        admission: oneshot::Sender<PlacementResult>,
    ) -> (JobPlaced, Result<CallId, oneshot::Sender<PlacementResult>>) {
        let (admitted, is_admitted) = oneshot::channel();
        let terms =
            JobTerms { alias: job.alias(), reserve: self.reserve, bindings: self.own_limits(&job.run), admitted };
        let bind = async {
            let Ok(call) = is_admitted.await else { return Err(admission) };
            let _ = admission.send(PlacementResult::Admitted);
            info!(run = job.run, lead = job.seq, %call, "call of a lead started");
            self.settle(calling(job, &call)).await;
            Ok(call)
        };
        tokio::join!(self.calls.outbound.place_job(request, terms).boxed(), bind)
    }

    /// The keys of the limits that bind a call; with `limit`, of this one alone.
    fn keys_of(&self, attributes: &CallAttributes, limit: Option<&str>) -> BTreeSet<String> {
        let bindings = self.calls.lifecycle.policy.load().bindings(attributes);
        let of_limit = bindings.into_iter().filter(|one| limit.is_none_or(|limit| *one.limit == *limit));
        of_limit.map(|one| one.key).collect()
    }

    /// The run's own limits.
    fn own_limits(&self, run: &str) -> Vec<Binding> {
        let rate = self.plan.rate.map(|rate| Binding {
            limit: "run.rate".into(),
            scope: Scope::Named,
            key: format!("run.rate|{run}"),
            bound: Bound::Rate(rate),
        });
        rate.into_iter().collect()
    }

    /// Settles a job. Returns the result for metrics.
    async fn record(&self, job: &Job, placed: &JobPlaced) -> RunDial {
        let now_ms = self.calls.lifecycle.clock.now_ms();
        match placed {
            JobPlaced::Called(_) => RunDial::Called,
            JobPlaced::Unknown { call, unavailable } => {
                if let Some(Unavailable { wait_secs }) = unavailable {
                    let wait_ms = wait_secs.map_or(UNREACHABLE_PAUSE_MS, |secs| i64::from(secs) * 1000);
                    self.hold_account(job, now_ms + wait_ms.min(UNAVAILABLE_PAUSE_MS_MAX)).await;
                }
                // Counted before it is looked up: this lead may be the cause, and nobody knows by then.
                self.settle(JobSettlement { unknown_tries: job.unknown_tries + 1, ..calling(job, call) }).await;
                RunDial::Called
            }
            JobPlaced::Known(call) => {
                self.settle(calling(job, call)).await;
                RunDial::Known
            }
            JobPlaced::LimitExceeded(full) => {
                // A rate limit has a next time; a free slot is notified.
                if let Bound::Rate(_) = full.bound {
                    self.feedback.pace(&job.run, now_ms + full.free_in_ms.unwrap_or(1).max(1));
                }
                self.settle(queued(job)).await;
                RunDial::Full
            }
            JobPlaced::Away(why) => {
                debug!(run = job.run, why, "failed to admit a job: the limiter cannot decide");
                self.feedback.hold(&job.run, now_ms + NO_LIMITER_PAUSE_MS);
                self.settle(queued(job)).await;
                RunDial::Away
            }
            JobPlaced::ProviderLimit { wait_secs } => {
                self.hold_account(job, now_ms + i64::from(*wait_secs) * 1000).await;
                // It keeps its place in the queue.
                self.settle(JobSettlement { tries: job.tries + 1, ..queued(job) }).await;
                RunDial::ProviderLimit
            }
            JobPlaced::Late => {
                // The breaker is for the provider's faults. A machine that is too busy is asked for less.
                self.feedback.hold(&job.run, now_ms + LATE_PAUSE_MS);
                self.settle(JobSettlement { tries: job.tries + 1, ..queued(job) }).await;
                RunDial::NotSent
            }
            JobPlaced::NotSent(why) => {
                let due_at = now_ms + UNREACHABLE_PAUSE_MS;
                if self.plan.spec.breaker.failures == 0 {
                    // No breaker would keep it from trying all its leads.
                    self.feedback.hold(&job.run, due_at);
                }
                self.settle(JobSettlement { tries: job.tries + 1, due_at, ..queued(job) }).await;
                self.record_failure(&job.run, why).await;
                RunDial::NotSent
            }
            JobPlaced::Rejected(why) => {
                let (attempts, tries) = (job.attempts + 1, job.tries + 1);
                self.settle(JobSettlement { attempts, tries, ..failed(job, why.clone()) }).await;
                self.record_failure(&job.run, why).await;
                RunDial::Rejected
            }
        }
    }

    /// Dials nobody at the account before this time: its provider is full or unavailable.
    async fn hold_account(&self, job: &Job, until: UnixMs) {
        // In whole seconds: of many answers at a time, the first one writes the hold.
        let until = (until / 1000 + 1) * 1000;
        self.feedback.hold_account(&self.calls, &job.run, self.plan.account.name.as_str(), until).await;
    }

    async fn record_failure(&self, run: &str, why: &str) {
        self.feedback.record(&self.calls, run, vec![true], why, &self.plan.spec.breaker).await;
    }

    /// Writes a settlement, and repeats it until the store accepts it: no other replica settles the jobs of a live one. The app is told
    /// of a job that is done without a call.
    async fn settle(&self, settlement: JobSettlement) {
        let is_without_call = settlement.state == JobState::Done && settlement.new_call.is_none();
        let notice = if is_without_call { self.calls.lifecycle.notice } else { AppNotice::Omit };
        let settlement = JobSettlement { notice, ..settlement };
        let store: &Arc<dyn Store> = &self.calls.lifecycle.store;
        loop {
            let now_ms = self.calls.lifecycle.clock.now_ms();
            match store.settle_jobs(vec![settlement.clone()], now_ms).await {
                Ok(_) => return,
                Err(error) => {
                    warn!(run = settlement.run, job = settlement.seq, %error, "failed to record job; retrying");
                    tokio::time::sleep(STORE_RETRY_DELAY).await;
                }
            }
        }
    }
}

fn queued(job: &Job) -> JobSettlement {
    JobSettlement { state: JobState::Queued, new_call: None, ..JobSettlement::of(job) }
}

fn calling(job: &Job, call: &CallId) -> JobSettlement {
    JobSettlement { state: JobState::Calling, new_call: Some(call.clone()), ..JobSettlement::of(job) }
}

fn failed(job: &Job, why: String) -> JobSettlement {
    JobSettlement { state: JobState::Done, outcome: Some(Outcome::Failed), error: Some(why), ..JobSettlement::of(job) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_job_found_full_the_others_do_not_ask_for() {
        let full = FullLimits::default();
        let keys = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<BTreeSet<_>>();
        let exceeded = |limit: &str| LimitExceeded {
            limit: limit.into(),
            scope: Scope::Named,
            bound: Bound::Concurrent(1),
            current: 1,
            free_in_ms: None,
        };
        assert!(!full.has_any(&keys(&["line|1", "account|a"])) && full.last().is_none());
        full.add(keys(&["line|1"]), &exceeded("line"));
        assert!(full.has_any(&keys(&["line|1", "account|a"])));
        assert!(!full.has_any(&keys(&["line|2", "account|a"])), "another number");
        full.add(keys(&["account|a"]), &exceeded("account"));
        assert!(full.has_any(&keys(&["line|2", "account|a"])));
        assert_eq!(full.last().unwrap().limit.as_ref(), "account");
    }
}
