//! The run of a firing: made once, of the leads that a source has at that moment.

use futures_util::FutureExt as _;
use tokio::sync::mpsc;
use tracing::info;

use super::super::Runs;
use super::super::leads::LeadsIn;
use super::super::load::{LoadError, Loading};
use super::source::{Author, LeadSource, LeadsRequest};
use super::spec::{BadLeads, Recurring};
use crate::calls::Calls;
use crate::clock::UnixMs;
use crate::failpoint;
use crate::store::StoreError;
use crate::store::runs::{Run, RunState};
use crate::store::schedules::Schedule;

/// Batches of rows that wait for the store.
const BATCHES_WAITING: usize = 4;
/// Mistakes that are told.
const MISTAKES_IN_NOTE: usize = 5;

/// The result of a firing.
#[derive(Debug)]
pub struct Fired {
    /// The firing's run; none: there was no number to call.
    pub run: Option<Run>,
    /// Leads that were left out, in a sentence.
    pub note: Option<String>,
}

/// The reason why a firing made no run.
#[derive(Debug, thiserror::Error)]
pub enum FiringError {
    /// Another replica is taking its leads in.
    #[error("another replica takes the leads of this firing in")]
    Busy,
    /// The firing's leads cannot be obtained, or cannot be called.
    #[error("{0}")]
    Failed(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<LoadError> for FiringError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Store(error) => Self::Store(error),
            LoadError::Leads { count, mistakes } => {
                let first = mistakes.first().map_or(String::new(), |one| format!("; row {}: {}", one.line, one.error));
                Self::Failed(format!("{count} leads cannot be called{first}"))
            }
            other => Self::Failed(other.to_string()),
        }
    }
}

/// The idempotency key of a firing's run: no second run of the business has it.
pub fn key(schedule: &str, at_ms: UnixMs) -> String {
    format!("schedule:{schedule}:{at_ms}")
}

/// Makes the run of a firing, unless it is there.
///
/// # Errors
/// [`FiringError`]; nothing is left of the run then, and it may be tried again.
pub async fn fire(
    calls: &Calls,
    runs: &Runs,
    schedule: &Schedule,
    spec: &Recurring,
    at_ms: UnixMs,
) -> Result<Fired, FiringError> {
    let source = runs.settings.sources.get(&spec.source);
    let source = source.filter(|source| source.is_for(&spec.run.business, Author::Operator));
    let source = source.ok_or_else(|| {
        FiringError::Failed(format!("there is no source {} for its business in [[lead_sources]]", spec.source))
    })?;
    let mut loading = runs.begin(calls, spec.run_of(key(&schedule.id, at_ms)), LeadsIn::Create).boxed().await?;
    failpoint::hit("schedule.begun").await;
    let run = loading.run();
    if loading.is_known() && run.state == RunState::Loading {
        return Err(FiringError::Busy);
    }
    if loading.is_known() || !loading.wants_leads() {
        return Ok(Fired { run: Some(run.clone()), note: None });
    }
    if spec.bad_leads == BadLeads::Skip {
        loading.skip_invalid();
    }
    let asked = LeadsRequest {
        business: spec.run.business.to_string(),
        schedule: schedule.name.clone(),
        firing_at: at_ms,
        date: spec.date_of(at_ms),
    };
    if let Err(error) = load_leads(calls, source, &asked, &mut loading).boxed().await {
        loading.discard().await;
        return Err(error);
    }
    let note = note_of(&loading);
    if loading.is_empty() {
        loading.discard().await;
        info!(schedule = schedule.id, business = schedule.business, leads = 0, "schedule fired");
        return Ok(Fired { run: None, note });
    }
    let run = loading.finish().boxed().await?.run;
    info!(schedule = schedule.id, run = run.id, leads = run.total, "schedule fired");
    Ok(Fired { run: Some(run), note })
}

async fn load_leads(
    calls: &Calls,
    source: &LeadSource,
    asked: &LeadsRequest,
    loading: &mut Loading,
) -> Result<(), FiringError> {
    let (rows, mut read_rows) = mpsc::channel(BATCHES_WAITING);
    let take = async {
        while let Some(some) = read_rows.recv().await {
            if let Err(error) = loading.take(some).await {
                // Whoever reads is told so by that.
                read_rows.close();
                return Err(error);
            }
        }
        Ok(())
    };
    let (read, taken) = tokio::join!(source.read(calls, asked, rows), take);
    taken?;
    read.map_err(|why| FiringError::Failed(format!("source {}: {why}", source.name)))
}

fn note_of(loading: &Loading) -> Option<String> {
    let (left_out, mistakes) = (loading.left_out(), loading.mistakes());
    let first = mistakes.iter().take(MISTAKES_IN_NOTE).map(|one| format!("row {}: {}", one.line, one.error));
    let more = if mistakes.len() > MISTAKES_IN_NOTE { "; …" } else { "" };
    (left_out > 0).then(|| format!("{left_out} leads left out: {}{more}", first.collect::<Vec<_>>().join("; ")))
}
