//! Fires schedules that are due, and retries firings that failed.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::super::Runs;
use super::decide::{Step, done, failed, step};
use super::firing::{Fired, FiringError, fire};
use super::spec::Recurring;
use crate::calls::Calls;
use crate::clock::{UnixMs, rfc3339};
use crate::failpoint;
use crate::metrics::Firing;
use crate::store::Result;
use crate::store::schedules::Schedule;

/// The interval at which due schedules are read.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Schedules that are read at once, and that fire at once.
const SCHEDULES_PER_POLL: u32 = 200;
const FIRINGS_AT_ONCE: usize = 8;
/// Attempts to write a change, each over another one that came first.
const WRITE_TRIES_MAX: usize = 5;

/// Fires schedules until stopped, where this replica leads. `newest` is the running generation.
pub async fn run(newest: impl Fn() -> (Calls, Runs) + Send, leads: impl Fn() -> bool + Send, stop: CancellationToken) {
    let (mut firing, mut busy) = (JoinSet::new(), HashMap::<Id, String>::new());
    loop {
        let (calls, runs) = newest();
        let due = match leads() {
            true => read_due(&calls).boxed().await.unwrap_or_else(|error| {
                debug!(%error, "failed to read due schedules");
                vec![]
            }),
            false => {
                calls.lifecycle.metrics.schedules_failing(0);
                vec![]
            }
        };
        for schedule in due {
            if firing.len() < FIRINGS_AT_ONCE && !busy.values().any(|id| *id == schedule.id) {
                let (calls, runs, id) = (calls.clone(), runs.clone(), schedule.id.clone());
                let one = async move { advance_or_log(&calls, &runs, schedule).boxed().await };
                busy.insert(firing.spawn(one).id(), id);
            }
        }
        let pause = tokio::time::sleep(POLL_INTERVAL);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = &mut pause => break,
                Some(ended) = firing.join_next_with_id() => {
                    busy.remove(&ended.map_or_else(|error| error.id(), |(id, ())| id));
                }
            }
        }
    }
}

async fn read_due(calls: &Calls) -> Result<Vec<Schedule>> {
    let (store, now_ms) = (&calls.lifecycle.store, calls.lifecycle.clock.now_ms());
    let due = store.due_schedules(now_ms, SCHEDULES_PER_POLL).await?;
    calls.lifecycle.metrics.schedules_failing(store.failing_schedules().await?);
    Ok(due)
}

async fn advance_or_log(calls: &Calls, runs: &Runs, schedule: Schedule) {
    if let Err(error) = advance(calls, runs, &schedule).await {
        warn!(schedule = schedule.id, %error, "failed to advance a schedule, since the store failed; retrying");
    }
}

/// Takes the next step of a schedule.
async fn advance(calls: &Calls, runs: &Runs, schedule: &Schedule) -> Result<()> {
    let (store, metrics) = (&calls.lifecycle.store, &calls.lifecycle.metrics);
    let now_ms = calls.lifecycle.clock.now_ms();
    let read = serde_json::from_str::<Recurring>(&schedule.spec).map_err(|error| error.to_string());
    let (spec, cron) = match read.and_then(|spec| spec.cron().map(|cron| (spec, cron))) {
        Ok(read) => read,
        Err(why) => {
            error!(schedule = schedule.id, why, "failed to read schedule");
            let unreadable = Schedule { next_at: None, error: Some(why), updated_at: now_ms, ..schedule.clone() };
            return store.change_schedule(&unreadable).await.map(drop);
        }
    };
    let after = match step(schedule, &cron, spec.missed, now_ms) {
        Step::Wait(next_at) => Schedule { next_at, ..schedule.clone() },
        Step::LeaveOut(until) => {
            metrics.schedule_firing(Firing::Missed);
            warn!(schedule = schedule.id, until = rfc3339(until), "missed firings skipped");
            let note = Some(format!("what should have fired up to {} was missed", rfc3339(until)));
            Schedule { note, ..done(schedule, &cron, until, now_ms) }
        }
        Step::GiveUp(at) => {
            let why = schedule.error.clone().unwrap_or_default();
            metrics.schedule_firing(Firing::GivenUp);
            error!(schedule = schedule.id, firing = rfc3339(at), why, "firing given up");
            let note = Some(format!("the firing of {} was given up: {why}", rfc3339(at)));
            Schedule { note, ..done(schedule, &cron, at, now_ms) }
        }
        Step::Fire(at) => match fire(calls, runs, schedule, &spec, at).await {
            Ok(fired) => {
                failpoint::hit("schedule.fired").await;
                metrics.schedule_firing(result_of(&fired));
                with_firing(done(schedule, &cron, at, now_ms), at, &fired)
            }
            Err(FiringError::Busy) => return Ok(()),
            Err(FiringError::Store(error)) => return Err(error),
            Err(FiringError::Failed(why)) => {
                metrics.schedule_firing(Firing::Failed);
                warn!(schedule = schedule.id, firing = rfc3339(at), why, "failed to fire schedule; retrying");
                failed(schedule, &cron, at, why, calls.lifecycle.clock.now_ms())
            }
        },
    };
    if !store.change_schedule(&after).await? {
        debug!(schedule = schedule.id, "schedule changed concurrently; retrying");
    }
    Ok(())
}

fn result_of(fired: &Fired) -> Firing {
    if fired.run.is_some() { Firing::Fired } else { Firing::NoLeads }
}

fn with_firing(schedule: Schedule, at: UnixMs, fired: &Fired) -> Schedule {
    let run = fired.run.as_ref().map(|run| run.id.clone());
    Schedule { fired_at: Some(at), run, note: fired.note.clone(), ..schedule }
}

/// Fires a schedule now, whatever its times are: they stay as they are.
///
/// # Errors
/// [`FiringError`].
pub async fn fire_now(calls: &Calls, runs: &Runs, schedule: &Schedule) -> std::result::Result<Fired, FiringError> {
    let now_ms = calls.lifecycle.clock.now_ms();
    let spec = serde_json::from_str::<Recurring>(&schedule.spec).map_err(|e| FiringError::Failed(e.to_string()))?;
    let fired = fire(calls, runs, schedule, &spec, now_ms).await?;
    calls.lifecycle.metrics.schedule_firing(result_of(&fired));
    let store = &calls.lifecycle.store;
    for _ in 0..WRITE_TRIES_MAX {
        let Some(as_it_is) = store.schedule(&schedule.id).await? else { break };
        let after = with_firing(Schedule { updated_at: now_ms, ..as_it_is }, now_ms, &fired);
        if store.change_schedule(&after).await? {
            break;
        }
    }
    info!(schedule = schedule.id, run = fired.run.as_ref().map(|run| run.id.as_str()), "schedule fired by an operator");
    Ok(fired)
}
