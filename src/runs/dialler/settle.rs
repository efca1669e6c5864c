//! Settles jobs whose calls are over, and takes back those that no replica has any more.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::super::decide::{FETCH_MS, is_failure, settlement};
use super::super::spec::{Spec, reports_who_answered};
use super::{Dialler, SETTLED_MAX};
use crate::calls::Calls;
use crate::clock::{UnixMs, as_ms};
use crate::ids::CallId;
use crate::store::Result;
use crate::store::runs::{JobState, LostClaims, RunState};

/// The interval between searches for lost claims.
const RECOVERY_INTERVAL: Duration = Duration::from_secs(2);

/// The age, in milliseconds, before which a claim is not lost: the heartbeat of its replica may not have been seen yet.
const CLAIM_AGE_MIN_MS: i64 = 5_000;

/// The time, in milliseconds, for which only the replica that placed a call that was never created settles its job, with the reason.
const UNMADE_CALL_WAIT_MS: i64 = 10_000;

/// Runs that are remembered as unreadable; then all are read, and logged, once more.
const UNREADABLE_MAX: usize = 1_000;

impl Dialler {
    /// Settles jobs whose calls are over, of all or of these; how many.
    pub(super) async fn settle(&mut self, calls: &Calls, of: Option<Vec<CallId>>, now_ms: UnixMs) -> Result<u32> {
        let store = &calls.lifecycle.store;
        let except = self.unreadable.iter().cloned().collect();
        let ended = store.ended_jobs(of, except, now_ms - UNMADE_CALL_WAIT_MS, now_ms, SETTLED_MAX).await?;
        if ended.is_empty() {
            return Ok(0);
        }
        let (mut specs, mut judged) = (BTreeMap::<String, Spec>::new(), vec![]);
        for one in &ended {
            let id = &one.job.run;
            if !specs.contains_key(id) && !self.unreadable.contains(id) {
                let Some(spec) = self.spec(calls, id).await? else { continue };
                specs.insert(id.clone(), spec);
            }
            let Some(spec) = specs.get(id) else { continue };
            judged.push((one, settlement(one, spec, one.run_state, answered_by_wait_ms(calls, spec), now_ms)));
        }
        let settled = store.end_jobs(judged.iter().map(|(_, settle)| settle.clone()).collect(), now_ms).await?;
        // By run: whether each call failed, and why the last one did.
        let mut results = BTreeMap::<&str, (Vec<bool>, String)>::new();
        // Another replica may have settled some of them.
        for (one, settle) in judged.iter().filter(|(one, _)| one.job.call.as_ref().is_some_and(|c| settled.contains(c)))
        {
            let (run, lead) = (one.job.run.as_str(), one.job.seq);
            if settle.waits_until.is_some() {
                debug!(run, lead, "call of a lead ended; not known yet who answered");
                continue;
            }
            let outcome = settle.outcome.unwrap_or(one.outcome);
            info!(run, lead, %outcome, again = settle.state == JobState::Queued, "call of a lead ended");
            calls.lifecycle.metrics.run_call(outcome);
            if one.run_state == RunState::Running
                && let Some(is_failed) = is_failure(one)
            {
                let (failed, why) = results.entry(run).or_default();
                failed.push(is_failed);
                if is_failed {
                    *why = format!("the last call ended as {}", one.outcome);
                }
            }
        }
        for (run, (failed, why)) in results {
            if let Some(spec) = specs.get(run) {
                self.feedback.record(calls, run, failed, &why, &spec.breaker).await;
            }
        }
        Ok(u32::try_from(settled.len()).unwrap_or(SETTLED_MAX))
    }

    /// Returns the specification of a run. `None`: the run was forgotten, or cannot be read.
    async fn spec(&mut self, calls: &Calls, run: &str) -> Result<Option<Spec>> {
        if let Some(plan) = self.plans.get(run) {
            return Ok(Some(plan.spec.clone()));
        }
        let Some(run) = calls.lifecycle.store.run_of(run).await? else { return Ok(None) };
        let spec = serde_json::from_str(&run.spec);
        if self.unreadable.len() >= UNREADABLE_MAX {
            self.unreadable.clear();
        }
        if let Err(error) = &spec
            && self.unreadable.insert(run.id.clone())
        {
            warn!(run = run.id, %error, "failed to read the spec of a run; its ended calls are left to replicas of another version");
        }
        Ok(spec.ok())
    }

    /// Takes back lost claims, of dead replicas and of its own, and resumes runs whose breaker has had its time.
    pub(super) async fn recover(&mut self, calls: &Calls, now_ms: UnixMs) -> Result<()> {
        if self.recovered.is_some_and(|at| at.elapsed() < RECOVERY_INTERVAL) {
            return Ok(());
        }
        self.recovered = Some(Instant::now());
        let (store, admission) = (&calls.lifecycle.store, &calls.lifecycle.admission);
        let mut live = if admission.is_shared() { admission.role().live } else { vec![] };
        if admission.is_shared() && live.is_empty() {
            // Nobody has been heard yet.
            return Ok(());
        }
        live.push(admission.replica().to_owned());
        // A process that has the store alone knows that whoever claimed before it is gone.
        let before = if admission.is_shared() { now_ms - CLAIM_AGE_MIN_MS } else { UnixMs::MAX };
        let (replica, tokens) = (admission.replica().to_owned(), self.claims.held());
        let recovered = store.recover_jobs(LostClaims { live, replica, tokens, before }, now_ms).await?;
        if recovered > 0 {
            info!(jobs = recovered, "lost claims recovered");
        }
        for run in store.resume_runs(now_ms, calls.lifecycle.notice).await? {
            info!(run, "run resumed");
        }
        Ok(())
    }
}

/// The time after the end of a run's call in which its provider may report who answered, in milliseconds: until its post-call
/// record can have been fetched once, if that does not have to stand in line. `None`: it does not report it.
fn answered_by_wait_ms(calls: &Calls, spec: &Spec) -> Option<i64> {
    let account = calls.account(&spec.account)?;
    let operation = account.provider.operations.iter().find(|one| one.name == spec.operation)?;
    let wait_ms = as_ms(calls.settings.record_fetch_after);
    reports_who_answered(spec, operation).then(|| wait_ms.saturating_add(FETCH_MS))
}
