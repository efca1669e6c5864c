//! Bulk runs.

use std::collections::{BTreeMap, HashSet};

use async_trait::async_trait;
use futures_util::FutureExt as _;

use super::super::driver::{Backend, Driver, Owned, Sql, Value, binds, damaged};
use super::super::row::Row;
use super::super::rows::call_id;
use super::super::runs::{
    CallResults, ChangedJob, Claim, DueRun, EndedJob, FAILED, Job, JobResult, JobState, LostClaims, NewJob, Run,
    RunChange, RunCounts, RunMade, RunState, Runs, Settle, TakeLoad,
};
use super::super::{Result, app_events};
use super::bindings::resolve;
use super::messages::tell;
use crate::call::Outcome;
use crate::clock::UnixMs;
use crate::ids::CallId;

/// Jobs that one write changes or deletes, so that other writes get their turn.
const SOME: u32 = 1_000;
/// Leads per INSERT: Postgres allows 65,535 parameters.
const INSERTED: usize = 500;

fn run(row: &Row) -> Sql<Run> {
    Ok(Run {
        id: row.text("id")?,
        business: row.text("business")?,
        account: row.text("account")?,
        name: row.optional_text("name")?,
        key: row.optional_text("idempotency_key")?,
        digest: row.text("digest")?,
        state: row.word("state")?,
        spec: row.text("spec")?,
        total: row.number("total")?,
        start_at: row.number("start_at")?,
        created_at: row.number("created_at")?,
        updated_at: row.number("updated_at")?,
        finished_at: row.optional_number("finished_at")?,
        resume_at: row.optional_number("resume_at")?,
        reason: row.optional_text("reason")?,
        retries: row.number("retries")?,
        replica: row.optional_text("replica")?,
        load: row.optional_text("load_token")?,
    })
}

fn job(row: &Row) -> Sql<Job> {
    Ok(Job {
        run: row.text("run_id")?,
        seq: row.number("seq")?,
        number: row.text("number")?,
        lead: row.text("lead")?,
        state: row.word("state")?,
        outcome: row.optional_word("outcome")?,
        attempts: row.count("attempts")?,
        tries: row.count("tries")?,
        unknown_tries: row.count("unknown_tries")?,
        due_at: row.number("due_at")?,
        token: row.optional_text("dial_lock_token")?,
        call: row.optional_str("call_id")?.map(call_id).transpose()?,
        error: row.optional_text("error")?,
        settled_at: row.optional_number("settled_at")?,
    })
}

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

fn due(row: &Row) -> Sql<DueRun> {
    Ok(DueRun {
        run: run(row)?,
        open: row.count("open_jobs")?,
        next_due: row.optional_number("next_due")?,
        has_waiting: row.optional_number("waits_until")?.is_some(),
        held_until: row.number("held_until")?,
    })
}

fn ended(row: &Row) -> Sql<EndedJob> {
    let outcome = row.word("call_outcome")?;
    let (run_state, proof) = (row.word("run_state")?, row.word("proof")?);
    Ok(EndedJob {
        job: job(row)?,
        run_state,
        outcome,
        proof,
        ended_at: row.number("ended_at")?,
        answered_by: row.optional_word("answered_by")?,
        is_recorded: row.optional_number("recorded_at")?.is_some(),
        awaits_fetch: row.optional_number("fetch_at")?.is_some() && row.optional_number("fetch_tries")? == Some(0),
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

async fn create(c: &mut dyn Driver, new: &Run, tells: bool) -> Sql<RunMade> {
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
        if tells && new.state == RunState::Failed {
            tell(c, &[app_events::run(new, new.created_at)]).await?;
        }
        return Ok(RunMade::New);
    }
    let sql = "SELECT * FROM runs WHERE business = $1 AND idempotency_key = $2";
    let known = c.fetch(sql, &binds![&new.business, &new.key]).await?;
    let known = known.first().ok_or_else(|| damaged("a run of this id is there, with another key"))?;
    Ok(RunMade::Known(Box::new(run(known)?)))
}

async fn add(c: &mut dyn Driver, run: &str, load: &str, jobs: &[NewJob]) -> Sql<bool> {
    let sql = "SELECT 1 FROM runs WHERE id = $1 AND state = 'loading' AND load_token = $2 FOR UPDATE";
    if c.fetch(sql, &binds![run, load]).await?.is_empty() {
        return Ok(false);
    }
    for some in jobs.chunks(INSERTED) {
        // Jobs of a run that is being loaded are not claimed: only running ones are.
        let sql = "INSERT INTO run_jobs (run_id, seq, number, lead, due_at) VALUES {rows}";
        let rows = some.iter().map(|job| Vec::from(binds![run, job.seq, &job.number, &job.lead, 0_i64]));
        c.execute_all(sql, rows.collect()).await?;
    }
    c.execute("UPDATE runs SET total = total + $2 WHERE id = $1", &binds![run, jobs.len() as i64]).await?;
    Ok(true)
}

/// Runs a statement that changes runs, and notifies the app with the time, if it wants that. Returns their ids.
async fn stepped(
    c: &mut dyn Driver,
    sql: &'static str,
    binds: &[Value<'_>],
    tell_at: Option<UnixMs>,
) -> Sql<Vec<String>> {
    let moved = c.fetch(sql, binds).await?.iter().map(run).collect::<Sql<Vec<_>>>()?;
    if let Some(at_ms) = tell_at {
        let shown = moved.iter().filter(|run| !matches!(run.state, RunState::Loading | RunState::Ready));
        tell(c, &shown.map(|run| app_events::run(run, at_ms)).collect::<Vec<_>>()).await?;
    }
    Ok(moved.into_iter().map(|run| run.id).collect())
}

async fn step(c: &mut dyn Driver, change: &RunChange, tell: bool) -> Sql<bool> {
    let from: Vec<String> = change.from.iter().map(|state| state.as_str().to_owned()).collect();
    let finished = change.to.is_finished().then_some(change.now_ms);
    let (total, digest) =
        change.loaded.as_ref().map_or((None, None), |(total, digest)| (Some(*total), Some(digest.as_str())));
    let sql = "UPDATE runs SET state = $3, reason = $4, resume_at = $5, updated_at = $6, finished_at = $7,
             total = coalesce($8, total), digest = coalesce($9, digest), retries = retries + $10, recent = ''
         WHERE id = $1 AND state = ANY($2) AND ($11 OR load_token = $12) RETURNING *";
    let binds = binds![
        &change.run,
        from,
        change.to.as_str(),
        &change.reason,
        change.resume_at,
        change.now_ms,
        finished,
        total,
        digest,
        i64::from(change.is_retry),
        change.load.is_none(),
        &change.load,
    ];
    Ok(!stepped(c, sql, &binds, tell.then_some(change.now_ms)).await?.is_empty())
}

/// The positions are an array, and their state is not asked for again: Postgres may read the whole queue otherwise, as long as it has no
/// statistics of a list that was just loaded. The rows are locked.
pub(in crate::store) const CLAIM: &str = "WITH due AS (
         SELECT d.seq FROM run_jobs d WHERE d.run_id = $1 AND d.state = 'queued' AND d.due_at <= $3
         AND d.call_id IS NULL AND d.dial_lock_token IS NULL
         AND EXISTS (SELECT 1 FROM runs WHERE id = $1 AND state = 'running')
         ORDER BY d.due_at, d.seq LIMIT $2 FOR UPDATE OF d SKIP LOCKED)
     UPDATE run_jobs SET state = 'dialing', dial_lock_token = $4, replica = $5, changed_at = $3
     WHERE run_id = $1 AND seq = ANY(ARRAY(SELECT seq FROM due)) AND call_id IS NULL AND dial_lock_token IS NULL RETURNING *";

/// Claims: where the run has a bound of its own, with the run locked, so that no two claims count its open jobs at once.
async fn claim(c: &mut dyn Driver, claim: &Claim) -> Sql<Vec<Job>> {
    let mut limit = claim.limit;
    if claim.open_max < u32::MAX {
        let locked = c.fetch("SELECT 1 FROM runs WHERE id = $1 FOR UPDATE", &binds![&claim.run]).await?;
        if locked.is_empty() {
            return Ok(vec![]);
        }
        let sql = "SELECT count(*) AS n FROM run_jobs WHERE run_id = $1 AND state IN ('dialing', 'calling')
             AND waits_until IS NULL";
        let open = super::first(c.fetch(sql, &binds![&claim.run]).await?)?.count("n")?;
        limit = limit.min(claim.open_max.saturating_sub(open));
    }
    if limit == 0 {
        return Ok(vec![]);
    }
    let binds = binds![&claim.run, limit, claim.now_ms, &claim.token, &claim.replica];
    let mut jobs = c.fetch(CLAIM, &binds).await?.iter().map(job).collect::<Sql<Vec<_>>>()?;
    jobs.sort_by_key(|job| (job.due_at, job.seq));
    Ok(jobs)
}

/// Jobs that still have the claim, or the call, that they are said to have. Nothing is queued again of a run that was canceled meanwhile.
/// Locked in one order: two replicas may settle the same ones.
pub(in crate::store) const SETTLE: &str = "WITH v (run_id, seq, state, outcome, attempts, tries, unknown_tries, due_at, error, settled_at, new_call, call, token, now_ms, waits_until) AS (VALUES {rows}),
         mine AS (SELECT d.run_id, d.seq, r.state AS run_state FROM run_jobs d JOIN v ON d.run_id = v.run_id AND d.seq = v.seq
             JOIN runs r ON r.id = d.run_id ORDER BY d.run_id, d.seq FOR UPDATE OF d FOR SHARE OF r)
     UPDATE run_jobs SET attempts = v.attempts, tries = v.tries, unknown_tries = v.unknown_tries, due_at = v.due_at, error = v.error, call_id = v.new_call,
         changed_at = v.now_ms, waits_until = v.waits_until,
         state = CASE WHEN v.state = 'queued' AND mine.run_state = 'canceled' THEN 'done' ELSE v.state END,
         outcome = CASE WHEN v.state = 'queued' AND mine.run_state = 'canceled' THEN 'canceled' ELSE v.outcome END,
         settled_at = CASE WHEN v.state = 'queued' AND mine.run_state = 'canceled' THEN v.now_ms ELSE v.settled_at END,
         dial_lock_token = CASE WHEN v.state IN ('dialing', 'calling') THEN run_jobs.dial_lock_token END
     FROM v JOIN mine ON mine.run_id = v.run_id AND mine.seq = v.seq
     WHERE run_jobs.run_id = mine.run_id AND run_jobs.seq = mine.seq AND run_jobs.state IN ('dialing', 'calling')
     AND (run_jobs.call_id = v.call OR (run_jobs.call_id IS NULL AND v.call IS NULL AND run_jobs.dial_lock_token = v.token))";

async fn settle(c: &mut dyn Driver, settles: &[Settle], now_ms: UnixMs) -> Sql<u64> {
    let row = |one: &'_ Settle| {
        Vec::from(binds![
            one.run.clone(),
            one.seq,
            one.state.as_str(),
            one.outcome.map(|o| o.as_str()),
            one.attempts,
            one.tries,
            one.unknown_tries,
            one.due_at,
            one.error.clone(),
            (one.state == JobState::Done).then_some(now_ms),
            one.new_call.as_ref().map(|call| call.as_str().to_owned()),
            one.call.as_ref().map(|call| call.as_str().to_owned()),
            one.token.clone(),
            now_ms,
            one.waits_until,
        ])
    };
    let (told, quiet): (Vec<&Settle>, Vec<&Settle>) = settles.iter().partition(|one| one.tell);
    let mut settled = 0;
    for some in quiet.chunks(INSERTED) {
        settled += c.execute_all(SETTLE, some.iter().map(|one| row(one)).collect()).await?;
    }
    // One by one: only who has settled a job tells of it.
    for one in told {
        let is_settled = c.execute_all(SETTLE, vec![row(one)]).await?;
        settled += is_settled;
        if is_settled > 0 {
            tell_of_job(c, one, now_ms).await?;
        }
    }
    let is_completed = |one: &&Settle| one.state == JobState::Done && one.outcome == Some(Outcome::Completed);
    let completed = settles.iter().filter(is_completed).filter_map(|one| one.new_call.as_ref());
    let completed: Vec<String> = completed.map(ToString::to_string).collect();
    // The word may have been written since the jobs were read. Both writers lock the job before they look for what the other wrote.
    if !completed.is_empty() {
        c.execute(MACHINE_ANSWERED, &binds![completed, now_ms]).await?;
    }
    let waiting = settles.iter().filter(|one| one.waits_until.is_some()).filter_map(|one| one.new_call.as_ref());
    let waiting: Vec<String> = waiting.map(ToString::to_string).collect();
    if !waiting.is_empty() {
        c.execute(WORD_CAME, &binds![waiting]).await?;
    }
    Ok(settled)
}

/// Tells the app of a job that ended without a call.
async fn tell_of_job(c: &mut dyn Driver, settled: &Settle, now_ms: UnixMs) -> Sql<()> {
    let its_run = c.fetch("SELECT * FROM runs WHERE id = $1", &binds![&settled.run]).await?;
    let sql = "SELECT * FROM run_jobs WHERE run_id = $1 AND seq = $2 AND state = 'done' AND call_id IS NULL";
    let its_job = c.fetch(sql, &binds![&settled.run, settled.seq]).await?;
    let (Some(its_run), Some(its_job)) = (its_run.first(), its_job.first()) else { return Ok(()) };
    tell(c, &[app_events::job_done(&run(its_run)?, &job(its_job)?, now_ms)]).await
}

/// Completed jobs whose call was answered by a machine: a word that comes after them corrects their outcome, and nobody is called again.
pub(in crate::store) const MACHINE_ANSWERED: &str = "UPDATE run_jobs SET outcome = 'voicemail', changed_at = $2
     WHERE call_id = ANY($1) AND state = 'done' AND outcome = 'completed'
     AND EXISTS (SELECT 1 FROM call_records p WHERE p.call_id = run_jobs.call_id AND p.answered_by = 'machine')";

/// Jobs that wait for a word about their call, which has come: who answered, or that nothing more will be reported.
pub(in crate::store) const WORD_CAME: &str = "UPDATE run_jobs SET waits_until = 0
     WHERE call_id = ANY($1) AND waits_until IS NOT NULL AND EXISTS (SELECT 1 FROM call_records p
         WHERE p.call_id = run_jobs.call_id AND (p.answered_by IS NOT NULL OR p.recorded_at IS NOT NULL))";

/// The job of a call hears what the call's record says: it waits no longer, and its outcome is corrected if a machine answered.
pub(super) async fn word_came(c: &mut dyn Driver, call: &CallId, now_ms: UnixMs) -> Sql<()> {
    let call = vec![call.to_string()];
    if c.fetch("SELECT seq FROM run_jobs WHERE call_id = ANY($1) FOR UPDATE", &binds![call.clone()]).await?.is_empty() {
        return Ok(());
    }
    c.execute(MACHINE_ANSWERED, &binds![call.clone(), now_ms]).await?;
    c.execute(WORD_CAME, &binds![call]).await.map(drop)
}

/// Jobs that are still in one of these calls, locked in the order of [`SETTLE`].
pub(in crate::store) const ENDING: &str = "SELECT call_id FROM run_jobs WHERE call_id = ANY($1) AND state = 'calling'
     ORDER BY run_id, seq FOR UPDATE";

async fn end(c: &mut dyn Driver, settles: &[Settle], now_ms: UnixMs) -> Sql<HashSet<CallId>> {
    let calls: Vec<String> = settles.iter().filter_map(|one| one.call.as_ref()).map(ToString::to_string).collect();
    let rows = c.fetch(ENDING, &binds![calls]).await?;
    let open = rows.iter().map(|row| call_id(row.str("call_id")?)).collect::<Sql<HashSet<_>>>()?;
    let is_open = |one: &&Settle| one.call.as_ref().is_some_and(|call| open.contains(call));
    let settles: Vec<Settle> = settles.iter().filter(is_open).cloned().collect();
    settle(c, &settles, now_ms).await?;
    Ok(open)
}

async fn record_results(c: &mut dyn Driver, results: &CallResults, tell: bool) -> Sql<Option<String>> {
    let locked = "SELECT recent FROM runs WHERE id = $1 AND state = 'running' FOR UPDATE";
    let Some(before) =
        c.fetch(locked, &binds![&results.run]).await?.first().map(|row| row.text("recent")).transpose()?
    else {
        return Ok(None);
    };
    let (after, tripped) = results.after(&before);
    let Some(failures) = tripped else {
        c.execute("UPDATE runs SET recent = $2 WHERE id = $1", &binds![&results.run, after]).await?;
        return Ok(None);
    };
    let reason = format!("{failures} of the last {} calls failed; {}", results.window, results.why);
    let change = RunChange {
        reason: Some(reason.clone()),
        resume_at: results.resume_at,
        ..RunChange::of(&results.run, &[RunState::Running], RunState::Paused, results.now_ms)
    };
    Ok(step(c, &change, tell).await?.then_some(reason))
}

async fn postpone(c: &mut dyn Driver, run: &str, later: &[(i64, UnixMs)]) -> Sql<u64> {
    let mut put_off = 0;
    for some in later.chunks(INSERTED) {
        let sql = "UPDATE run_jobs SET due_at = greatest(run_jobs.due_at, one.column3) FROM (VALUES {rows}) AS one
             WHERE run_jobs.run_id = one.column1 AND run_jobs.seq = one.column2
             AND run_jobs.dial_lock_token IS NULL AND run_jobs.settled_at IS NULL";
        let rows = some.iter().map(|(seq, due_at)| Vec::from(binds![run, *seq, *due_at]));
        put_off += c.execute_all(sql, rows.collect()).await?;
    }
    Ok(put_off)
}

const LOST_CLAIMS: &str = "SELECT d.*, (SELECT r.state FROM runs r WHERE r.id = d.run_id) AS run_state
     FROM run_jobs d WHERE d.state IN ('dialing', 'calling') AND d.state = 'dialing' AND d.waits_until IS NULL
     AND d.changed_at < $2 AND (d.replica <> ALL($1) OR (d.replica = $4 AND d.dial_lock_token <> ALL($5)))
     LIMIT $3 FOR UPDATE OF d SKIP LOCKED";

async fn recover(c: &mut dyn Driver, lost: &LostClaims, now_ms: UnixMs) -> Sql<u64> {
    let binds = binds![lost.live.as_slice(), lost.before, SOME, &lost.replica, lost.tokens.as_slice()];
    let rows = c.fetch(LOST_CLAIMS, &binds).await?;
    let mut settles = Vec::with_capacity(rows.len());
    for row in &rows {
        let job = job(row)?;
        let canceled = row.optional_str("run_state")?.is_none_or(|state| state == RunState::Canceled.as_str());
        let found = resolve(c, &[job.alias()]).await?;
        let same = Settle::of(&job);
        settles.push(match (found, canceled) {
            (Some(call), _) => Settle { state: JobState::Calling, new_call: Some(call), ..same },
            (None, true) => Settle { state: JobState::Done, outcome: Some(Outcome::Canceled), ..same },
            (None, false) => Settle { state: JobState::Queued, due_at: now_ms, ..same },
        });
    }
    settle(c, &settles, now_ms).await
}

/// In the order of an index, from its end.
const CHANGED: &str = "SELECT seq, state, outcome, attempts, call_id, error FROM run_jobs
     WHERE run_id = $1 AND changed_at IS NOT NULL ORDER BY changed_at DESC, seq DESC LIMIT $2";

const DUE: &str = "SELECT r.*, (SELECT count(*) FROM run_jobs j WHERE j.run_id = r.id AND j.state IN ('dialing', 'calling')
             AND j.waits_until IS NULL) AS open_jobs,
         (SELECT j.due_at FROM run_jobs j WHERE j.run_id = r.id AND j.state = 'queued' ORDER BY j.due_at LIMIT 1) AS next_due,
         (SELECT j.waits_until FROM run_jobs j WHERE j.run_id = r.id AND j.waits_until IS NOT NULL LIMIT 1) AS waits_until
     FROM runs r WHERE r.finished_at IS NULL AND r.state = 'running' ORDER BY r.created_at, r.id";

/// With [`BATCH_KEY`](crate::store::runs::BATCH_KEY) as the index has it.
const BATCHES: &str = "SELECT * FROM runs WHERE account = $1 AND substr(idempotency_key, 1, 6) = 'batch:' AND id < $2
     ORDER BY id DESC LIMIT $3";

const LATEST_KEYED: &str = "SELECT * FROM runs WHERE business = $1
     AND (idempotency_key = $2 OR (idempotency_key >= $3 AND idempotency_key < $4))
     ORDER BY id DESC LIMIT 1";

/// A call that was purged counts as one whose outcome its provider no longer knows; one whose job waits for the word who answered has ended
/// as completed, and nothing more will be reported of it.
macro_rules! ended {
    ($which:literal) => {
        concat!(
            "SELECT d.*, coalesce(c.outcome, CASE WHEN d.waits_until IS NULL THEN 'failed' ELSE 'completed' END) AS call_outcome,
                 coalesce(c.proof, CASE WHEN d.waits_until IS NULL THEN 'deadline' ELSE 'provider' END) AS proof,
                 coalesce(c.ended_at, d.changed_at) AS ended_at, r.state AS run_state, p.answered_by,
                 CASE WHEN c.id IS NULL THEN d.changed_at ELSE p.recorded_at END AS recorded_at,
                 p.due_at AS fetch_at, p.tries AS fetch_tries
             FROM run_jobs d JOIN runs r ON r.id = d.run_id LEFT JOIN calls c ON c.id = d.call_id
             LEFT JOIN call_records p ON p.call_id = d.call_id
             WHERE ",
            $which,
            " AND d.state = 'calling' AND d.run_id <> ALL($4)
             AND (c.id IS NULL OR (c.phase = 'ended' AND (c.outcome <> 'not_created' OR c.ended_at < $1)))"
        )
    };
}
/// As the indexes have them: those that wait are not read before their time.
const ENDED: &str = concat!(
    ended!("d.state IN ('dialing', 'calling') AND d.waits_until IS NULL"),
    " UNION ALL ",
    ended!("d.waits_until <= $3"),
    " LIMIT $2"
);
const ENDED_OF: &str = concat!(ended!("d.call_id = ANY($5) AND coalesce(d.waits_until, 0) <= $3"), " LIMIT $2");

/// Running runs without open jobs. Asked as in [`DUE`], in the order of an index: `EXISTS` may walk through all that is done.
macro_rules! finished {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            " state = 'running' AND finished_at IS NULL
     AND (SELECT j.due_at FROM run_jobs j WHERE j.run_id = runs.id AND j.state = 'queued' ORDER BY j.due_at LIMIT 1) IS NULL
     AND (SELECT count(*) FROM run_jobs j WHERE j.run_id = runs.id AND j.state IN ('dialing', 'calling')
         AND j.waits_until IS NULL) = 0
     AND (SELECT j.waits_until FROM run_jobs j WHERE j.run_id = runs.id AND j.waits_until IS NOT NULL LIMIT 1) IS NULL",
            $after
        )
    };
}
const FINISHED: &str = finished!("SELECT id FROM runs WHERE", " ORDER BY id FOR UPDATE");
const FINISH: &str = finished!(
    "UPDATE runs SET state = 'done', finished_at = $1, updated_at = $1, reason = NULL WHERE id = ANY($2) AND",
    " RETURNING *"
);

/// Ends runs that have nothing left to do. Their rows are locked first, and their jobs are looked at again: whoever queued some of them
/// again meanwhile had locked the run too.
async fn finish(c: &mut dyn Driver, now_ms: UnixMs, tell_at: Option<UnixMs>) -> Sql<Vec<String>> {
    let rows = c.fetch(FINISHED, &[]).await?;
    let ids = rows.iter().map(|row| row.text("id")).collect::<Sql<Vec<_>>>()?;
    match ids.is_empty() {
        true => Ok(vec![]),
        false => stepped(c, FINISH, &binds![now_ms, ids], tell_at).await,
    }
}

/// The outcome is cleared, so that no job is found twice.
const RETRY: &str =
    "UPDATE run_jobs SET state = 'queued', outcome = NULL, attempts = 0, unknown_tries = 0, call_id = NULL,
         error = NULL, settled_at = NULL, due_at = $3
     WHERE run_id = $2 AND seq = ANY(ARRAY(
         SELECT seq FROM run_jobs WHERE run_id = $2 AND state <> 'queued' AND state = 'done' AND outcome = ANY($4)
         LIMIT $1 FOR UPDATE))";

/// Queues some jobs of a run again. The run is locked first, so that nobody ends it who has not seen them; in the mode of [`SETTLE`], which
/// locks jobs before their run.
async fn retry(c: &mut dyn Driver, run: &str, outcomes: &[String], now_ms: UnixMs) -> Sql<u64> {
    c.fetch("SELECT 1 FROM runs WHERE id = $1 FOR SHARE", &binds![run]).await?;
    c.execute(RETRY, &binds![SOME, run, now_ms, outcomes]).await
}

const RESUME: &str = "UPDATE runs SET state = 'running', reason = NULL, resume_at = NULL, updated_at = $1, recent = ''
     WHERE finished_at IS NULL AND state = 'paused' AND resume_at <= $1 RETURNING *";

/// Runs a statement that changes at most `$1` rows until it changes fewer. The statement names its rows by their key alone, as an array,
/// like [`CLAIM`].
async fn little_by_little(store: &impl Backend, sql: &'static str, binds: Owned) -> Result<u64> {
    let mut all = 0;
    loop {
        let rows = store.run(sql, binds.clone()).await?;
        all += rows;
        if rows < SOME.into() {
            return Ok(all);
        }
    }
}

#[async_trait]
impl<B: Backend> Runs for B {
    async fn create_run(&self, run: &Run, tell: bool) -> Result<RunMade> {
        self.write(run.clone(), move |c, run| create(c, run, tell).boxed()).await
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

    async fn move_run(&self, change: RunChange, tell: bool) -> Result<bool> {
        self.write(change, move |c, change| step(c, change, tell).boxed()).await
    }

    async fn forget_jobs(&self, run: &str) -> Result<u64> {
        let jobs = "DELETE FROM run_jobs WHERE run_id = $2 AND seq = ANY(ARRAY(SELECT seq FROM run_jobs WHERE run_id = $2 ORDER BY seq LIMIT $1))";
        little_by_little(self, jobs, binds![SOME, run.to_owned()].into()).await
    }

    async fn resume_runs(&self, now_ms: UnixMs, tell: bool) -> Result<Vec<String>> {
        let binds: Owned = binds![now_ms].into();
        self.write(binds, move |c, binds| stepped(c, RESUME, binds, tell.then_some(now_ms)).boxed()).await
    }

    async fn forget_run(&self, run: &str) -> Result<u64> {
        // From here on nobody can load or retry it. It may have been retried before.
        let taken = "UPDATE runs SET state = 'loading', load_token = 'deleted', replica = NULL
             WHERE id = $1 AND state NOT IN ('running', 'paused')";
        if self.run(taken, binds![run.to_owned()].into()).await? == 0 {
            return Ok(0);
        }
        let gone = self.forget_jobs(run).await?;
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

    async fn settle_jobs(&self, settles: Vec<Settle>, now_ms: UnixMs) -> Result<u64> {
        if settles.is_empty() {
            return Ok(0);
        }
        self.write(settles, move |c, settles| settle(c, settles, now_ms).boxed()).await
    }

    async fn end_jobs(&self, settles: Vec<Settle>, now_ms: UnixMs) -> Result<HashSet<CallId>> {
        self.write(settles, move |c, settles| end(c, settles, now_ms).boxed()).await
    }

    async fn record_results(&self, results: CallResults, tell: bool) -> Result<Option<String>> {
        if !results.failed.contains(&true) {
            // Nearly always all is well, and nothing is written.
            let sql = "SELECT recent FROM runs WHERE id = $1 AND state = 'running'";
            let recent = self.select(sql, binds![results.run.clone()].into(), |row| row.text("recent")).await?;
            if !recent.iter().any(|recent| recent.contains(FAILED)) {
                return Ok(None);
            }
        }
        self.write(results, move |c, results| record_results(c, results, tell).boxed()).await
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

    async fn finish_runs(&self, now_ms: UnixMs, tell: bool) -> Result<Vec<String>> {
        self.write((), move |c, ()| finish(c, now_ms, tell.then_some(now_ms)).boxed()).await
    }

    async fn cancel_jobs(&self, run: &str, now_ms: UnixMs) -> Result<u64> {
        let sql =
            "UPDATE run_jobs SET state = 'done', outcome = 'canceled', settled_at = $3 WHERE run_id = $2 AND seq = ANY(ARRAY(
             SELECT seq FROM run_jobs WHERE run_id = $2 AND state = 'queued' LIMIT $1 FOR UPDATE))";
        little_by_little(self, sql, binds![SOME, run.to_owned(), now_ms].into()).await
    }

    async fn retry_jobs(&self, run: &str, outcomes: Vec<Outcome>, now_ms: UnixMs) -> Result<u64> {
        let outcomes: Vec<String> = outcomes.iter().map(|one| one.as_str().to_owned()).collect();
        let (args, mut all) = ((run.to_owned(), outcomes), 0);
        loop {
            let some =
                self.write(args.clone(), move |c, (run, outcomes)| retry(c, run, outcomes, now_ms).boxed()).await?;
            all += some;
            if some < SOME.into() {
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

    async fn old_runs(
        &self,
        before: UnixMs,
        of_these: bool,
        businesses: Vec<String>,
        limit: u32,
    ) -> Result<Vec<String>> {
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

/// What is asked at the start of a process, and with every look: by indexes alone, however many jobs wait.
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
    WORD_CAME,
];
