//! Operators' actions on runs.

use super::Runs;
use crate::call::Outcome;
use crate::calls::Calls;
use crate::store::Result;
use crate::store::runs::{Run, RunChange, RunState};

const OPEN: [RunState; 3] = [RunState::Ready, RunState::Running, RunState::Paused];
const RETRIABLE: [RunState; 5] =
    [RunState::Running, RunState::Paused, RunState::Done, RunState::Canceled, RunState::Failed];

impl Runs {
    /// Cancels a run and its queued jobs; live calls continue. Returns the number of jobs, or `None` if the run is done or failed. May be
    /// repeated after an error.
    ///
    /// # Errors
    /// The store failed.
    pub async fn cancel(&self, calls: &Calls, run: &str) -> Result<Option<u64>> {
        let (store, now_ms) = (&calls.lifecycle.store, calls.lifecycle.clock.now_ms());
        let change = RunChange::of(run, &OPEN, RunState::Canceled, now_ms);
        if !store.move_run(change, calls.lifecycle.notice).await? {
            let is_canceled = store.run_of(run).await?.is_some_and(|run| run.state == RunState::Canceled);
            if !is_canceled {
                return Ok(None);
            }
        }
        store.cancel_jobs(run, now_ms).await.map(Some)
    }

    /// Requeues the jobs of a run with these outcomes, and resumes it. Returns the number of jobs, or `None` if its state does not allow
    /// it.
    ///
    /// # Errors
    /// The store failed.
    pub async fn retry(&self, calls: &Calls, run: &Run, outcomes: Vec<Outcome>) -> Result<Option<u64>> {
        if !RETRIABLE.contains(&run.state) || run.total == 0 {
            return Ok(None);
        }
        let (store, now_ms) = (&calls.lifecycle.store, calls.lifecycle.clock.now_ms());
        if run.state == RunState::Canceled {
            // The cancel may have been interrupted. Only jobs with these outcomes are to be dialled; a repeat finds it paused.
            let change = RunChange::of(&run.id, &[RunState::Canceled], RunState::Paused, now_ms);
            if store.move_run(change, crate::store::AppNotice::Omit).await? {
                store.cancel_jobs(&run.id, now_ms).await?;
            }
        }
        // A pause or cancel that comes meanwhile holds.
        let from = match run.state {
            RunState::Canceled => vec![RunState::Paused, RunState::Running, RunState::Done, RunState::Failed],
            state => vec![state, RunState::Running, RunState::Done, RunState::Failed],
        };
        let jobs = store.retry_jobs(&run.id, outcomes, now_ms).await?;
        let change = RunChange { is_retry: true, ..RunChange::of(&run.id, &from, RunState::Running, now_ms) };
        let is_moved = store.move_run(change, calls.lifecycle.notice).await?;
        self.changed();
        Ok(is_moved.then_some(jobs))
    }
}
