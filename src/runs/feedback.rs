//! The pauses of each running run, as seen by this replica; and its breaker, which counts the calls of all replicas.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};

use tracing::warn;

use super::spec::Breaker;
use crate::calls::Calls;
use crate::clock::UnixMs;
use crate::store::runs::CallResults;
use crate::sync::lock;

/// Jobs of a run that are admitted one by one after a refusal by a rate limit.
const PACED_ADMISSIONS: u32 = 20;

/// The pauses and the breaker of each running run.
#[derive(Default)]
pub(super) struct Feedback(Mutex<HashMap<String, OfRun>>);

#[derive(Default)]
struct OfRun {
    /// No job is dialled before: the provider is full, or a rate limit has no token.
    held_until: UnixMs,
    /// A rate limit was full: one job is tried at a time, until so many more were admitted.
    paced: u32,
    /// Faults of the run's numbers that have been logged.
    logged: HashSet<String>,
}

impl Feedback {
    fn runs(&self) -> MutexGuard<'_, HashMap<String, OfRun>> {
        lock(&self.0)
    }

    /// Drops all other runs. A hold survives a pause, so that a resume does not shorten the provider's wait.
    pub(super) fn retain(&self, is_running: impl Fn(&str) -> bool, now_ms: UnixMs) {
        self.runs().retain(|run, of| {
            if is_running(run) {
                return true;
            }
            *of = OfRun { held_until: of.held_until, ..OfRun::default() };
            of.held_until > now_ms
        });
    }

    /// Dials no job of a run before a time. A longer hold stays.
    pub(super) fn hold(&self, run: &str, until: UnixMs) {
        let mut runs = self.runs();
        let run = runs.entry(run.to_owned()).or_default();
        run.held_until = run.held_until.max(until);
    }

    /// Dials one job of a run at a time, from a time on: a rate limit was full. After [`PACED_ADMISSIONS`] without another refusal it
    /// is dialled as before.
    pub(super) fn pace(&self, run: &str, from: UnixMs) {
        let mut runs = self.runs();
        let run = runs.entry(run.to_owned()).or_default();
        (run.held_until, run.paced) = (run.held_until.max(from), PACED_ADMISSIONS);
    }

    /// Records the jobs of a run that a round admitted without a rejection.
    pub(super) fn count_admitted(&self, run: &str, jobs: u32) {
        if let Some(run) = self.runs().get_mut(run) {
            run.paced = run.paced.saturating_sub(jobs);
        }
    }

    /// Notes a fault of a run that is to be logged. Returns whether it is a new one.
    pub(super) fn add_fault(&self, run: &str, what: &str) -> bool {
        self.runs().entry(run.to_owned()).or_default().logged.insert(what.to_owned())
    }

    /// Forgets the faults of a run, whose account was set up anew: they are logged again.
    pub(super) fn forget_faults(&self, run: &str) {
        if let Some(of) = self.runs().get_mut(run) {
            of.logged.clear();
        }
    }

    /// The time before which no job of a run is dialled.
    pub(super) fn held_until(&self, run: &str) -> UnixMs {
        self.runs().get(run).map_or(0, |run| run.held_until)
    }

    /// Whether a run is dialled one job at a time.
    pub(super) fn is_paced(&self, run: &str) -> bool {
        self.runs().get(run).is_some_and(|run| run.paced > 0)
    }

    /// Records the ends of calls in order, `true` for one that failed, and pauses the run if its breaker trips. `why` is the cause of the
    /// last failure.
    pub(super) async fn record(&self, calls: &Calls, run: &str, failed: Vec<bool>, why: &str, breaker: &Breaker) {
        if breaker.failures == 0 {
            return;
        }
        let now_ms = calls.lifecycle.clock.now_ms();
        let results = CallResults {
            run: run.to_owned(),
            failed,
            window: breaker.window,
            failures: breaker.failures,
            why: why.to_owned(),
            resume_at: breaker.resume_after_secs.map(|secs| now_ms + i64::from(secs) * 1000),
            now_ms,
        };
        match calls.lifecycle.store.record_results(results, calls.lifecycle.notice).await {
            Ok(Some(reason)) => {
                calls.lifecycle.metrics.run_breaker();
                warn!(run, reason, "run paused by its breaker");
            }
            Ok(None) => {}
            Err(error) => warn!(run, %error, "failed to record results of a run for its breaker"),
        }
    }

    /// Holds all runs of an account until a time, also at other replicas: its provider is full.
    pub(super) async fn hold_account(&self, calls: &Calls, run: &str, account: &str, until: UnixMs) {
        self.hold(run, until);
        if let Err(error) = calls.lifecycle.store.hold_runs(account, until).await {
            warn!(account, %error, "failed to hold the runs of an account at other replicas");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_dialled_one_by_one_until_it_has_gone_well_for_a_while() {
        let feedback = Feedback::default();
        let mut admitted = 0;
        let mut dial = || {
            feedback.count_admitted("run_1", 1);
            admitted += 1;
            (admitted, feedback.is_paced("run_1"))
        };
        assert_eq!(dial(), (1, false), "no limit was full");
        feedback.pace("run_1", 7);
        assert_eq!((feedback.held_until("run_1"), feedback.is_paced("run_1")), (7, true));
        assert!((0..19).all(|_| dial().1));
        feedback.pace("run_1", 5);
        assert!((0..19).all(|_| dial().1), "it counts anew");
        assert_eq!(dial(), (40, false));
        assert_eq!(feedback.held_until("run_1"), 7, "a longer hold stays");
        feedback.pace("run_1", 9);
        assert!(feedback.is_paced("run_1"));
        feedback.retain(|_| false, 8);
        assert_eq!(
            (feedback.held_until("run_1"), feedback.is_paced("run_1")),
            (9, false),
            "a pause forgets it, but no hold"
        );
    }
}
