//! Bulk runs: making and loading them, operators' moves and reads, and the trait over both halves. The dialler's are in `run_jobs.rs`.

use std::collections::{BTreeMap, HashSet};

use async_trait::async_trait;
use futures_util::FutureExt as _;

use super::super::driver::{Backend, Driver, Owned, Sql, binds, damaged};
use super::super::row::Row;
use super::super::rows::call_id;
use super::super::runs::{
    Businesses, CallResults, ChangedJob, Claim, CreateRunOutcome, DueRun, EndedJob, FAILED, Job, JobResult,
    JobSettlement, JobState, LostClaims, NewJob, Run, RunChange, RunCounts, RunState, Runs, TakeLoad,
};
use super::super::{AppNotice, Result, app_events};
use super::messages::add_app_events;
use super::run_in_batches;
#[cfg(test)]
use super::run_jobs::{CLAIM, END_WAIT, ENDING, FINISH, FINISHED, LOST_CLAIMS, MACHINE_ANSWERED};
use super::run_jobs::{
    DUE, ENDED, ENDED_OF, JOBS_PER_WRITE, RESUME, ROWS_PER_STATEMENT, change_run, change_runs, claim, due, end, ended,
    finish, job, postpone, record_results, recover, run, settle,
};
use crate::call::Outcome;
use crate::clock::UnixMs;
use crate::ids::CallId;

fn changed(row: &Row) -> Sql<ChangedJob> {
    Ok(ChangedJob {
        seq: row.number("seq")?,
        state: row.word("state")?,
        outcome: row.optional_word("outcome")?,
        attempts: row.count("attempts")?,
        call: row.optional_str("call_id")?.map(call_id).transpose()?,
        error: row.optional_text("error")?,
    })
}

fn result(row: &Row) -> Sql<JobResult> {
    let ids = row.json::<Vec<(String, String)>>("aliases")?.unwrap_or_default();
    Ok(JobResult {
        job: job(row)?,
        ids: ids.into_iter().collect::<BTreeMap<_, _>>(),
        started_at: row.optional_number("admitted_at")?,
        answered_at: row.optional_number("answered_at")?,
        ended_at: row.optional_number("ended_at")?,
        duration_secs: row.optional_number("call_duration_seconds")?,
        cost: row.optional_float("cost")?,
        cost_unit: row.optional_text("cost_unit")?,
    })
}

async fn create(c: &mut dyn Driver, new: &Run, notice: AppNotice) -> Sql<CreateRunOutcome> {
    let sql = "INSERT INTO runs (id, business, account, name, idempotency_key, digest, state, spec, total, start_at, created_at,
             updated_at, reason, replica, finished_at, load_token)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11, $12, $13, $14, $15) ON CONFLICT DO NOTHING";
    let binds = binds![
        &new.id,
        &new.business,
        &new.account,
        &new.name,
        &new.key,
        &new.digest,
        new.state.as_str(),
        &new.spec,
        new.total,
        new.start_at,
        new.created_at,
        &new.reason,
        &new.replica,
        new.finished_at,
        &new.load,
    ];
    if c.execute(sql, &binds).await? == 1 {
        if notice == AppNotice::Send && new.state == RunState::Failed {
            add_app_events(c, &[app_events::run(new, new.created_at)]).await?;
        }
        return Ok(CreateRunOutcome::New);
    }
    let sql = "SELECT * FROM runs WHERE business = $1 AND idempotency_key = $2";
    let known = c.fetch(sql, &binds![&new.business, &new.key]).await?;
    let known = known.first().ok_or_else(|| damaged("a run of this id is there, with another key"))?;
    Ok(CreateRunOutcome::Known(Box::new(run(known)?)))
}

async fn add(c: &mut dyn Driver, run: &str, load: &str, jobs: &[NewJob]) -> Sql<bool> {
    let sql = "SELECT 1 FROM runs WHERE id = $1 AND state = 'loading' AND load_token = $2 FOR UPDATE";
    if c.fetch(sql, &binds![run, load]).await?.is_empty() {
        return Ok(false);
    }
    for some in jobs.chunks(ROWS_PER_STATEMENT) {
        // Jobs of a run that is being loaded are not claimed: only running ones are.
        let sql = "INSERT INTO run_jobs (run_id, seq, number, lead, due_at) VALUES {rows}";
        let rows = some.iter().map(|job| Vec::from(binds![run, job.seq, &job.number, &job.lead, 0_i64]));
        c.execute_all(sql, rows.collect()).await?;
    }
    c.execute("UPDATE runs SET total = total + $2 WHERE id = $1", &binds![run, jobs.len() as i64]).await?;
    Ok(true)
}

/// In the order of an index, from its end.
const CHANGED: &str = "SELECT seq, state, outcome, attempts, call_id, error FROM run_jobs
     WHERE run_id = $1 AND changed_at IS NOT NULL ORDER BY changed_at DESC, seq DESC LIMIT $2";

/// With [`BATCH_KEY`](crate::store::runs::BATCH_KEY) as the index has it.
const BATCHES: &str = "SELECT * FROM runs WHERE account = $1 AND substr(idempotency_key, 1, 6) = 'batch:' AND id < $2
     ORDER BY id DESC LIMIT $3";

const LATEST_KEYED: &str = "SELECT * FROM runs WHERE business = $1
     AND (idempotency_key = $2 OR (idempotency_key >= $3 AND idempotency_key < $4))
     ORDER BY id DESC LIMIT 1";

/// The outcome is cleared, so that no job is found twice.
const RETRY: &str =
    "UPDATE run_jobs SET state = 'queued', outcome = NULL, attempts = 0, unknown_tries = 0, call_id = NULL,
         error = NULL, settled_at = NULL, due_at = $3
     WHERE run_id = $2 AND seq = ANY(ARRAY(
         SELECT seq FROM run_jobs WHERE run_id = $2 AND state <> 'queued' AND state = 'done' AND outcome = ANY($4)
         LIMIT $1 FOR UPDATE))";

/// Queues some jobs of a run again, unless it is canceled. The run is locked first, so that nobody ends it who has not seen them; in
/// the mode of [`SETTLE`](super::run_jobs::SETTLE), which locks jobs before their run.
async fn retry(c: &mut dyn Driver, run: &str, outcomes: &[String], now_ms: UnixMs) -> Sql<u64> {
    let run_row = c.fetch("SELECT 1 FROM runs WHERE id = $1 AND state <> 'canceled' FOR SHARE", &binds![run]).await?;
    if run_row.is_empty() {
        return Ok(0);
    }
    c.execute(RETRY, &binds![JOBS_PER_WRITE, run, now_ms, outcomes]).await
}

#[async_trait]
impl<B: Backend> Runs for B {
    async fn create_run(&self, run: &Run, notice: AppNotice) -> Result<CreateRunOutcome> {
        self.write(run.clone(), move |c, run| create(c, run, notice).boxed()).await
    }

    async fn take_load(&self, load: TakeLoad) -> Result<bool> {
        let sql = "UPDATE runs SET state = 'loading', load_token = $3, replica = $4, updated_at = $5, total = 0
             WHERE id = $1 AND state IN ('loading', 'ready') AND load_token IS NOT DISTINCT FROM $2";
        let binds = binds![load.run, load.before, load.load, load.replica, load.now_ms];
        Ok(self.run(sql, binds.into()).await? > 0)
    }

    async fn add_jobs(&self, run: &str, load: &str, jobs: Vec<NewJob>) -> Result<bool> {
        let args = (run.to_owned(), load.to_owned(), jobs);
        self.write(args, |c, (run, load, jobs)| add(c, run, load, jobs).boxed()).await
    }

    async fn move_run(&self, change: RunChange, notice: AppNotice) -> Result<bool> {
        self.write(change, move |c, change| change_run(c, change, notice).boxed()).await
    }

    async fn delete_jobs(&self, run: &str) -> Result<u64> {
        let jobs = "DELETE FROM run_jobs WHERE run_id = $2 AND seq = ANY(ARRAY(SELECT seq FROM run_jobs WHERE run_id = $2 ORDER BY seq LIMIT $1))";
        run_in_batches(self, jobs, binds![JOBS_PER_WRITE, run.to_owned()].into(), JOBS_PER_WRITE).await
    }

    async fn resume_runs(&self, now_ms: UnixMs, notice: AppNotice) -> Result<Vec<String>> {
        let binds: Owned = binds![now_ms].into();
        self.write(binds, move |c, binds| change_runs(c, RESUME, binds, notice.at(now_ms)).boxed()).await
    }

    async fn delete_run(&self, run: &str) -> Result<u64> {
        // From here on nobody can load or retry it. It may have been retried before.
        let taken = "UPDATE runs SET state = 'loading', load_token = 'deleted', replica = NULL
             WHERE id = $1 AND state NOT IN ('running', 'paused')";
        if self.run(taken, binds![run.to_owned()].into()).await? == 0 {
            return Ok(0);
        }
        let gone = self.delete_jobs(run).await?;
        Ok(gone + self.run("DELETE FROM runs WHERE id = $1", binds![run.to_owned()].into()).await?)
    }

    async fn run_of(&self, id: &str) -> Result<Option<Run>> {
        let found = self.select("SELECT * FROM runs WHERE id = $1", binds![id.to_owned()].into(), run).await;
        found.map(|mut found| found.pop())
    }

    async fn latest_runs(&self, businesses: Option<Vec<String>>, limit: u32) -> Result<Vec<Run>> {
        let sql = "SELECT * FROM runs WHERE ($2 OR business = ANY($3)) ORDER BY id DESC LIMIT $1";
        let all = businesses.is_none();
        self.select(sql, binds![limit, all, businesses.unwrap_or_default()].into(), run).await
    }

    async fn batch_runs(&self, account: &str, before: Option<String>, limit: u32) -> Result<Vec<Run>> {
        // No id comes after this.
        let before = before.unwrap_or_else(|| "~".to_owned());
        self.select(BATCHES, binds![account.to_owned(), before, limit].into(), run).await
    }

    async fn latest_keyed_run(&self, business: &str, key: &str) -> Result<Option<Run>> {
        // The semicolon comes after the colon.
        let (from, to) = (format!("{key}:"), format!("{key};"));
        let binds = binds![business.to_owned(), key.to_owned(), from, to];
        let found = self.select(LATEST_KEYED, binds.into(), run).await;
        found.map(|mut found| found.pop())
    }

    async fn run_counts(&self, run: &str) -> Result<RunCounts> {
        let rows = self.select(COUNTS, binds![run.to_owned()].into(), |row| {
            Ok((
                row.word::<JobState>("state")?,
                row.optional_word::<Outcome>("outcome")?,
                row.number("n")?.unsigned_abs(),
            ))
        });
        let next = "SELECT due_at FROM run_jobs WHERE run_id = $1 AND state = 'queued' ORDER BY due_at, seq LIMIT 1";
        let next = self.select(next, binds![run.to_owned()].into(), |row| row.number("due_at")).await?.pop();
        let mut counts = RunCounts { next_due: next, ..RunCounts::default() };
        for (state, outcome, n) in rows.await? {
            *match (state, outcome) {
                (JobState::Queued, _) => &mut counts.queued,
                (JobState::Dialing, _) => &mut counts.dialing,
                (JobState::Calling, _) => &mut counts.calling,
                (JobState::Done, Some(Outcome::Completed)) => &mut counts.completed,
                (JobState::Done, Some(Outcome::Voicemail)) => &mut counts.voicemail,
                (JobState::Done, Some(Outcome::Busy)) => &mut counts.busy,
                (JobState::Done, Some(Outcome::NoAnswer)) => &mut counts.no_answer,
                (JobState::Done, Some(Outcome::Canceled)) => &mut counts.canceled,
                (JobState::Done, _) => &mut counts.failed,
            } += n;
        }
        counts.queued = counts.queued.saturating_sub(counts.dialing + counts.calling + counts.done());
        Ok(counts)
    }

    async fn changed_jobs(&self, run: &str, limit: u32) -> Result<Vec<ChangedJob>> {
        self.select(CHANGED, binds![run.to_owned(), limit].into(), changed).await
    }

    async fn due_runs(&self) -> Result<Vec<DueRun>> {
        self.select(DUE, vec![], due).await
    }

    async fn claim_jobs(&self, of: Claim) -> Result<Vec<Job>> {
        self.write(of, |c, of| claim(c, of).boxed()).await
    }

    async fn due_jobs(&self, run: &str, now_ms: UnixMs, limit: u32) -> Result<Vec<Job>> {
        let sql = "SELECT * FROM run_jobs WHERE run_id = $1 AND state = 'queued' AND due_at <= $2
             AND call_id IS NULL AND dial_lock_token IS NULL ORDER BY due_at, seq LIMIT $3";
        self.select(sql, binds![run.to_owned(), now_ms, limit].into(), job).await
    }

    async fn postpone_jobs(&self, run: &str, later: Vec<(i64, UnixMs)>) -> Result<u64> {
        self.write((run.to_owned(), later), |c, (run, later)| postpone(c, run, later).boxed()).await
    }

    async fn settle_jobs(&self, settlements: Vec<JobSettlement>, now_ms: UnixMs) -> Result<u64> {
        if settlements.is_empty() {
            return Ok(0);
        }
        self.write(settlements, move |c, settlements| settle(c, settlements, now_ms).boxed()).await
    }

    async fn end_jobs(&self, settlements: Vec<JobSettlement>, now_ms: UnixMs) -> Result<HashSet<CallId>> {
        self.write(settlements, move |c, settlements| end(c, settlements, now_ms).boxed()).await
    }

    async fn record_results(&self, results: CallResults, notice: AppNotice) -> Result<Option<String>> {
        if !results.failed.contains(&true) {
            // Nearly always all is well, and nothing is written.
            let sql = "SELECT recent FROM runs WHERE id = $1 AND state = 'running'";
            let recent = self.select(sql, binds![results.run.clone()].into(), |row| row.text("recent")).await?;
            if !recent.iter().any(|recent| recent.contains(FAILED)) {
                return Ok(None);
            }
        }
        self.write(results, move |c, results| record_results(c, results, notice).boxed()).await
    }

    async fn explain_run(&self, run: &str, why: Option<&str>) -> Result<()> {
        let sql = "UPDATE runs SET reason = $2 WHERE id = $1 AND state = 'running' AND reason IS DISTINCT FROM $2";
        self.run(sql, binds![run.to_owned(), why.map(str::to_owned)].into()).await.map(drop)
    }

    async fn hold_runs(&self, account: &str, until: UnixMs) -> Result<()> {
        let sql = "UPDATE runs SET held_until = $2
             WHERE finished_at IS NULL AND state = 'running' AND account = $1 AND held_until < $2";
        self.run(sql, binds![account.to_owned(), until].into()).await.map(drop)
    }

    async fn ended_jobs(
        &self,
        calls: Option<Vec<CallId>>,
        except: Vec<String>,
        not_created_before: UnixMs,
        now_ms: UnixMs,
        limit: u32,
    ) -> Result<Vec<EndedJob>> {
        let Some(calls) = calls else {
            return self.select(ENDED, binds![not_created_before, limit, now_ms, except].into(), ended).await;
        };
        let calls: Vec<String> = calls.iter().map(|call| call.as_str().to_owned()).collect();
        self.select(ENDED_OF, binds![not_created_before, limit, now_ms, except, calls].into(), ended).await
    }

    async fn recover_jobs(&self, lost: LostClaims, now_ms: UnixMs) -> Result<u64> {
        self.write(lost, move |c, lost| recover(c, lost, now_ms).boxed()).await
    }

    async fn finish_runs(&self, now_ms: UnixMs, notice: AppNotice) -> Result<Vec<String>> {
        self.write((), move |c, ()| finish(c, now_ms, notice.at(now_ms)).boxed()).await
    }

    async fn cancel_jobs(&self, run: &str, now_ms: UnixMs) -> Result<u64> {
        let sql =
            "UPDATE run_jobs SET state = 'done', outcome = 'canceled', settled_at = $3 WHERE run_id = $2 AND seq = ANY(ARRAY(
             SELECT seq FROM run_jobs WHERE run_id = $2 AND state = 'queued' LIMIT $1 FOR UPDATE))";
        run_in_batches(self, sql, binds![JOBS_PER_WRITE, run.to_owned(), now_ms].into(), JOBS_PER_WRITE).await
    }

    async fn retry_jobs(&self, run: &str, outcomes: Vec<Outcome>, now_ms: UnixMs) -> Result<u64> {
        let outcomes: Vec<String> = outcomes.iter().map(|one| one.as_str().to_owned()).collect();
        let (args, mut all) = ((run.to_owned(), outcomes), 0);
        loop {
            let some =
                self.write(args.clone(), move |c, (run, outcomes)| retry(c, run, outcomes, now_ms).boxed()).await?;
            all += some;
            if some < JOBS_PER_WRITE.into() {
                return Ok(all);
            }
        }
    }

    async fn job_results(&self, run: &str, after: i64, limit: u32) -> Result<Vec<JobResult>> {
        let sql = "SELECT j.*, c.admitted_at, c.answered_at, c.ended_at, p.call_duration_seconds, p.cost, p.cost_unit,
                 (SELECT json_agg(json_build_array(kind, id))::text FROM call_aliases WHERE call_id = j.call_id) AS aliases
             FROM run_jobs j LEFT JOIN calls c ON c.id = j.call_id LEFT JOIN call_records p ON p.call_id = j.call_id
             WHERE j.run_id = $1 AND j.seq > $2 ORDER BY j.seq LIMIT $3";
        self.select(sql, binds![run.to_owned(), after, limit].into(), result).await
    }

    async fn old_runs(&self, before: UnixMs, of: Businesses, limit: u32) -> Result<Vec<String>> {
        let (of_these, businesses) = match of {
            Businesses::Only(businesses) => (true, businesses),
            Businesses::AllBut(businesses) => (false, businesses),
        };
        let sql = "SELECT id FROM runs WHERE finished_at < $1 AND (business = ANY($3)) = $4
             UNION ALL SELECT id FROM runs WHERE finished_at IS NULL AND state IN ('loading', 'ready') AND updated_at < $1
             AND (business = ANY($3)) = $4 LIMIT $2";
        self.select(sql, binds![before, limit, businesses, of_these].into(), |row| row.text("id")).await
    }
}

/// The queued ones are not counted: they are what is left of all.
const COUNTS: &str =
    "SELECT state, outcome, count(*) AS n FROM run_jobs WHERE run_id = $1 AND state <> 'queued' GROUP BY state, outcome
     UNION ALL SELECT 'queued', NULL, total FROM runs WHERE id = $1";

/// Queries made at the start of a process, and with every look: by indexes alone, however many jobs wait.
#[cfg(test)]
pub(in crate::store) const LOOKS: [&str; 15] = [
    BATCHES,
    CHANGED,
    CLAIM,
    COUNTS,
    DUE,
    ENDED,
    ENDED_OF,
    ENDING,
    FINISH,
    FINISHED,
    LATEST_KEYED,
    LOST_CLAIMS,
    MACHINE_ANSWERED,
    RESUME,
    END_WAIT,
];
