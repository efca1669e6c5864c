//! Runs and schedules of the operator's page. Counting a run's leads may take long, so it is done within a share of each reading, the
//! longest uncounted first; what is over is counted once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::Admin;
use crate::clock::UnixMs;
use crate::store::runs::{Run, RunCounts};

/// Runs and schedules that are shown: the latest.
const LATEST_MAX: u32 = 100;
/// For how long runs are counted in one reading.
const COUNTING_MAX: Duration = Duration::from_millis(200);

/// The latest counts of runs.
#[derive(Default)]
pub(super) struct RunBoard(BTreeMap<String, CountedRun>);

struct CountedRun {
    counts: RunCounts,
    at: Instant,
    /// Nothing changes any more, unless the run itself does, whose last change this is.
    is_final: bool,
    of_ms: UnixMs,
}

/// The businesses that a viewer may see; `None`: all, and shared data.
pub(super) type Rights = Option<BTreeSet<String>>;

/// The lists of one reading, as its viewers get them; null: the database does not answer.
pub(super) type Lists = BTreeMap<Rights, (Value, Value)>;

impl RunBoard {
    /// Reads the latest runs and schedules of each of these rights.
    pub(super) async fn read(&mut self, admin: &Admin, views: &[Rights]) -> Lists {
        let store = &admin.calls.lifecycle.store;
        let mut found = Vec::new();
        for rights in views {
            let businesses: Option<Vec<String>> = rights.as_ref().map(|own| own.iter().cloned().collect());
            let runs = store.latest_runs(businesses.clone(), LATEST_MAX).await.ok();
            let schedules = store.schedules(businesses, LATEST_MAX).await.ok();
            found.push((rights, runs, schedules));
        }
        let runs: Vec<&Run> = found.iter().filter_map(|(_, runs, _)| runs.as_ref()).flatten().collect();
        self.count(admin, &runs).await;
        let now_ms = admin.calls.lifecycle.clock.now_ms();
        let shown = |run: &Run| {
            let counts = self.0.get(&run.id).map(|counted| counted.counts);
            lean(super::runs::run_json_at(run, counts, now_ms))
        };
        let lists = found.into_iter().map(|(rights, runs, schedules)| {
            let runs = runs.map_or(Value::Null, |runs| runs.iter().map(shown).collect());
            let schedules = schedules
                .map_or(Value::Null, |all| all.iter().map(|one| lean(super::schedules::schedule_json(one))).collect());
            (rights.clone(), (runs, schedules))
        });
        lists.collect()
    }

    async fn count(&mut self, admin: &Admin, runs: &[&Run]) {
        let shown: BTreeMap<&str, &Run> = runs.iter().map(|run| (run.id.as_str(), *run)).collect();
        // What the database does not list just now is counted anew.
        self.0.retain(|id, _| shown.contains_key(id.as_str()));
        let mut due: Vec<&&Run> = shown.values().filter(|run| !self.is_final(run)).collect();
        due.sort_by_key(|run| self.0.get(&run.id).map(|counted| counted.at));
        let began = Instant::now();
        for run in due {
            if began.elapsed() > COUNTING_MAX {
                break;
            }
            let Ok(counts) = admin.calls.lifecycle.store.run_counts(&run.id).await else { continue };
            let is_final = run.state.is_finished() && counts.queued + counts.dialing + counts.calling == 0;
            let counted = CountedRun { counts, at: Instant::now(), is_final, of_ms: run.updated_at };
            self.0.insert(run.id.clone(), counted);
        }
    }

    fn is_final(&self, run: &Run) -> bool {
        self.0.get(&run.id).is_some_and(|counted| counted.is_final && counted.of_ms == run.updated_at)
    }
}

/// An object without its empty fields.
pub(super) fn lean(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields.into_iter().filter(|(_, value)| !value.is_null()).collect::<Map<_, _>>().into(),
        other => other,
    }
}
