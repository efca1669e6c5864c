//! Postpones due jobs outside their calling hours, page by page, without claiming them one by one.

use serde_json::{Map, Value};

use super::spec::Spec;
use super::{MayDial, may_dial};
use crate::calls::Calls;
use crate::clock::UnixMs;
use crate::store::Result;
use crate::store::runs::Job;

/// Jobs per page.
const JOBS_PER_PAGE: u32 = 1_000;
/// Pages per call, so that other runs get their turn.
const PAGES_PER_CALL: usize = 20;

/// Postpones due jobs of a run that may not be called now, in order, until most jobs of a page may be called.
///
/// # Errors
/// The store failed.
pub(super) async fn postpone_closed(calls: &Calls, spec: &Spec, run: &str, now_ms: UnixMs) -> Result<()> {
    let store = &calls.lifecycle.store;
    for _ in 0..PAGES_PER_CALL {
        let due = store.due_jobs(run, now_ms, JOBS_PER_PAGE).await?;
        let later: Vec<(i64, UnixMs)> =
            due.iter().filter_map(|job| Some((job.seq, closed_until(calls, spec, job, now_ms)?))).collect();
        let (seen, put_off) = (due.len(), later.len());
        if put_off > 0 {
            store.postpone_jobs(run, later).await?;
        }
        if seen < JOBS_PER_PAGE as usize || put_off < seen - put_off {
            break;
        }
        tokio::task::yield_now().await;
    }
    Ok(())
}

fn closed_until(calls: &Calls, spec: &Spec, job: &Job, now_ms: UnixMs) -> Option<UnixMs> {
    let lead = serde_json::from_str::<Map<String, Value>>(&job.lead).unwrap_or_default();
    match may_dial(&calls.destinations, spec, &job.number, &lead, now_ms) {
        MayDial::NotBefore(at) => Some(at),
        MayDial::Now | MayDial::Never { .. } => None,
    }
}
