//! The breaker and the pauses of each running run, as seen by this replica.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::warn;

use super::decide::Recent;
use super::spec::Breaker;
use crate::calls::Calls;
use crate::clock::UnixMs;
use crate::store::runs::{RunChange, RunState};

/// See the module.
#[derive(Default)]
pub(super) struct Feedback(Mutex<HashMap<String, OfRun>>);

#[derive(Default)]
struct OfRun {
    recent: Recent,
    /// No job is dialled before: the provider is full, or a rate limit has no token.
    held_until: UnixMs,
    /// A rate limit was full: one job is tried at a time.
    is_paced: bool,
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

    /// The time before which no job of a run is dialled.
    pub(super) fn held_until(&self, run: &str) -> UnixMs {
        self.runs().get(run).map_or(0, |run| run.held_until)
    }

    /// Whether a run is dialled one job at a time.
    pub(super) fn is_paced(&self, run: &str) -> bool {
        self.runs().get(run).is_some_and(|run| run.is_paced)
    }

    /// Records the end of a call, and pauses the run if its breaker trips. `why` is the cause of the last failure.
    pub(super) async fn record(&self, calls: &Calls, run: &str, failed: bool, why: &str, breaker: &Breaker) {
        let failures = self.runs().entry(run.to_owned()).or_default().recent.note(failed, breaker);
        let Some(failures) = failures else { return };
        let now_ms = calls.lifecycle.clock.now_ms();
        let reason = format!("{failures} of the last {} calls failed; {why}", breaker.window);
        let change = RunChange {
            reason: Some(reason.clone()),
            resume_at: breaker.resume_after_secs.map(|secs| now_ms + i64::from(secs) * 1000),
            ..RunChange::of(run, &[RunState::Running], RunState::Paused, now_ms)
        };
        match calls.lifecycle.store.move_run(change, calls.lifecycle.tell).await {
            Ok(true) => {
                calls.lifecycle.metrics.run_breaker();
                warn!(run, reason, "run paused by its breaker");
            }
            Ok(false) => {}
            Err(error) => warn!(run, %error, "failed to pause run"),
        }
    }
}
