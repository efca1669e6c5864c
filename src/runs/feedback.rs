//! The pauses of each running run, as seen by this replica; and its breaker, which counts the calls of all replicas.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::warn;

use super::spec::Breaker;
use crate::calls::Calls;
use crate::clock::UnixMs;
use crate::store::runs::CallResults;

/// See the module.
#[derive(Default)]
pub(super) struct Feedback(Mutex<HashMap<String, OfRun>>);

#[derive(Default)]
struct OfRun {
    /// No job is dialled before: the provider is full, or a rate limit has no token.
    held_until: UnixMs,
    /// A rate limit was full: one job is tried at a time.
    is_paced: bool,
    /// What has been logged of its numbers.
    logged: HashSet<String>,
}

impl Feedback {
    fn runs(&self) -> MutexGuard<'_, HashMap<String, OfRun>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Dials one job of a run at a time, from a time on.
    pub(super) fn pace(&self, run: &str, from: UnixMs) {
        let mut runs = self.runs();
        let run = runs.entry(run.to_owned()).or_default();
        (run.held_until, run.is_paced) = (run.held_until.max(from), true);
    }

    /// Whether this has not been logged of a run.
    pub(super) fn is_news(&self, run: &str, what: &str) -> bool {
        self.runs().entry(run.to_owned()).or_default().logged.insert(what.to_owned())
    }

    /// The account of a run was set up anew: what is wrong with its numbers is logged again.
    pub(super) fn forget_news(&self, run: &str) {
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
        self.runs().get(run).is_some_and(|run| run.is_paced)
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
        match calls.lifecycle.store.record_results(results, calls.lifecycle.tell).await {
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
            warn!(account, %error, "failed to tell other replicas of a full provider");
        }
    }
}
