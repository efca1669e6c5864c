//! Queries and writes of the dialler: claims of jobs, their settlement, and the changes of a run that come of it.

use std::collections::HashSet;

use super::super::AppNotice;
use super::super::app_events;
use super::super::driver::{Driver, Sql, Value, binds};
use super::super::row::Row;
use super::super::rows::call_id;
use super::super::runs::{
    CallResults, Claim, DueRun, EndedJob, Job, JobSettlement, JobState, LostClaims, Run, RunChange, RunState,
};
use super::bindings::resolve;
use super::messages::add_app_events;
use crate::call::Outcome;
use crate::clock::UnixMs;
use crate::ids::CallId;

/// Jobs that one write changes or deletes, so that other writes get their turn.
pub(super) const JOBS_PER_WRITE: u32 = 1_000;
/// Rows of a statement with VALUES: Postgres allows 65,535 parameters.
pub(super) const ROWS_PER_STATEMENT: usize = 500;

pub(super) fn run(row: &Row) -> Sql<Run> {
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

pub(super) fn job(row: &Row) -> Sql<Job> {
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

pub(super) fn due(row: &Row) -> Sql<DueRun> {
    Ok(DueRun {
        run: run(row)?,
        open: row.count("open_jobs")?,
        next_due: row.optional_number("next_due")?,
        has_waiting: row.optional_number("waits_until")?.is_some(),
        held_until: row.number("held_until")?,
    })
}

pub(super) fn ended(row: &Row) -> Sql<EndedJob> {
    let outcome = row.word("call_outcome")?;
    let (run_state, proof) = (row.word("run_state")?, row.word("proof")?);
    Ok(EndedJob {
        job: job(row)?,
        run_state,
        outcome,
        proof,
        ended_at: row.number("ended_at")?,
        exchange_over: row.flag("exchange_over")?,
        answered_by: row.optional_word("answered_by")?,
        is_recorded: row.optional_number("recorded_at")?.is_some(),
        awaits_fetch: row.optional_number("fetch_at")?.is_some() && row.optional_number("fetch_tries")? == Some(0),
    })
}

/// Runs a statement that changes runs, and notifies the app with the time, if it wants that. Returns their ids.
pub(super) async fn change_runs(
    c: &mut dyn Driver,
    sql: &'static str,
    binds: &[Value<'_>],
    notify_at: Option<UnixMs>,
) -> Sql<Vec<String>> {
    let moved = c.fetch(sql, binds).await?.iter().map(run).collect::<Sql<Vec<_>>>()?;
    if let Some(at_ms) = notify_at {
        let shown = moved.iter().filter(|run| !matches!(run.state, RunState::Loading | RunState::Ready));
        add_app_events(c, &shown.map(|run| app_events::run(run, at_ms)).collect::<Vec<_>>()).await?;
    }
    Ok(moved.into_iter().map(|run| run.id).collect())
}

pub(super) async fn change_run(c: &mut dyn Driver, change: &RunChange, notice: AppNotice) -> Sql<bool> {
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
    Ok(!change_runs(c, sql, &binds, notice.at(change.now_ms)).await?.is_empty())
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
pub(super) async fn claim(c: &mut dyn Driver, claim: &Claim) -> Sql<Vec<Job>> {
    let mut limit = claim.limit;
    if claim.open_max < u32::MAX {
        let locked = c.fetch("SELECT 1 FROM runs WHERE id = $1 FOR UPDATE", &binds![&claim.run]).await?;
        if locked.is_empty() {
            return Ok(vec![]);
        }
        let sql = "SELECT count(*) AS n FROM run_jobs /*+ INDEXED BY run_jobs_open */ WHERE run_id = $1
             AND state IN ('dialing', 'calling') AND waits_until IS NULL";
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

pub(super) async fn settle(c: &mut dyn Driver, settlements: &[JobSettlement], now_ms: UnixMs) -> Sql<u64> {
    let row = |one: &'_ JobSettlement| {
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
    let (told, quiet): (Vec<&JobSettlement>, Vec<&JobSettlement>) =
        settlements.iter().partition(|one| one.notice == AppNotice::Send);
    let mut settled = 0;
    for some in quiet.chunks(ROWS_PER_STATEMENT) {
        settled += c.execute_all(SETTLE, some.iter().map(|one| row(one)).collect()).await?;
    }
    // One by one: only who has settled a job tells of it.
    for one in told {
        let is_settled = c.execute_all(SETTLE, vec![row(one)]).await?;
        settled += is_settled;
        if is_settled > 0 {
            add_job_done_event(c, one, now_ms).await?;
        }
    }
    let is_completed = |one: &&JobSettlement| one.state == JobState::Done && one.outcome == Some(Outcome::Completed);
    let completed = settlements.iter().filter(is_completed).filter_map(|one| one.new_call.as_ref());
    let completed: Vec<String> = completed.map(ToString::to_string).collect();
    // The call record may have been written since the jobs were read. Both writers lock the job before they look for what the other wrote.
    if !completed.is_empty() {
        c.execute(MACHINE_ANSWERED, &binds![completed, now_ms]).await?;
    }
    let waiting = settlements.iter().filter(|one| one.waits_until.is_some()).filter_map(|one| one.new_call.as_ref());
    let waiting: Vec<String> = waiting.map(ToString::to_string).collect();
    if !waiting.is_empty() {
        c.execute(END_WAIT, &binds![waiting]).await?;
    }
    Ok(settled)
}

/// Tells the app of a job that ended without a call.
async fn add_job_done_event(c: &mut dyn Driver, settled: &JobSettlement, now_ms: UnixMs) -> Sql<()> {
    let its_run = c.fetch("SELECT * FROM runs WHERE id = $1", &binds![&settled.run]).await?;
    let sql = "SELECT * FROM run_jobs WHERE run_id = $1 AND seq = $2 AND state = 'done' AND call_id IS NULL";
    let its_job = c.fetch(sql, &binds![&settled.run, settled.seq]).await?;
    let (Some(its_run), Some(its_job)) = (its_run.first(), its_job.first()) else { return Ok(()) };
    add_app_events(c, &[app_events::job_done(&run(its_run)?, &job(its_job)?, now_ms)]).await
}

/// Completed jobs whose call was answered by a machine: a late call record corrects their outcome, and nobody is called again.
pub(in crate::store) const MACHINE_ANSWERED: &str = "UPDATE run_jobs SET outcome = 'voicemail', changed_at = $2
     WHERE call_id = ANY($1) AND state = 'done' AND outcome = 'completed'
     AND EXISTS (SELECT 1 FROM call_records p WHERE p.call_id = run_jobs.call_id AND p.answered_by = 'machine')";

/// Ends the wait of jobs whose call record says who answered, or that nothing more will be reported.
pub(in crate::store) const END_WAIT: &str = "UPDATE run_jobs SET waits_until = 0
     WHERE call_id = ANY($1) AND waits_until IS NOT NULL AND EXISTS (SELECT 1 FROM call_records p
         WHERE p.call_id = run_jobs.call_id AND (p.answered_by IS NOT NULL OR p.recorded_at IS NOT NULL))";

/// Applies a call record to the job of its call: the job waits no longer, and its outcome is corrected if a machine answered.
pub(super) async fn apply_call_record(c: &mut dyn Driver, call: &CallId, now_ms: UnixMs) -> Sql<()> {
    let call = vec![call.to_string()];
    if c.fetch("SELECT seq FROM run_jobs WHERE call_id = ANY($1) FOR UPDATE", &binds![call.clone()]).await?.is_empty() {
        return Ok(());
    }
    c.execute(MACHINE_ANSWERED, &binds![call.clone(), now_ms]).await?;
    c.execute(END_WAIT, &binds![call]).await.map(drop)
}

/// Jobs that are still in one of these calls, locked in the order of [`SETTLE`].
pub(in crate::store) const ENDING: &str = "SELECT call_id FROM run_jobs WHERE call_id = ANY($1) AND state = 'calling'
     ORDER BY run_id, seq FOR UPDATE";

pub(super) async fn end(c: &mut dyn Driver, settlements: &[JobSettlement], now_ms: UnixMs) -> Sql<HashSet<CallId>> {
    let calls: Vec<String> = settlements.iter().filter_map(|one| one.call.as_ref()).map(ToString::to_string).collect();
    let rows = c.fetch(ENDING, &binds![calls]).await?;
    let open = rows.iter().map(|row| call_id(row.str("call_id")?)).collect::<Sql<HashSet<_>>>()?;
    let is_open = |one: &&JobSettlement| one.call.as_ref().is_some_and(|call| open.contains(call));
    let settlements: Vec<JobSettlement> = settlements.iter().filter(is_open).cloned().collect();
    settle(c, &settlements, now_ms).await?;
    Ok(open)
}

pub(super) async fn record_results(
    c: &mut dyn Driver,
    results: &CallResults,
    notice: AppNotice,
) -> Sql<Option<String>> {
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
    Ok(change_run(c, &change, notice).await?.then_some(reason))
}

pub(super) async fn postpone(c: &mut dyn Driver, run: &str, later: &[(i64, UnixMs)]) -> Sql<u64> {
    let mut put_off = 0;
    for some in later.chunks(ROWS_PER_STATEMENT) {
        let sql = "UPDATE run_jobs SET due_at = greatest(run_jobs.due_at, one.column3) FROM (VALUES {rows}) AS one
             WHERE run_jobs.run_id = one.column1 AND run_jobs.seq = one.column2
             AND run_jobs.dial_lock_token IS NULL AND run_jobs.settled_at IS NULL";
        let rows = some.iter().map(|(seq, due_at)| Vec::from(binds![run, *seq, *due_at]));
        put_off += c.execute_all(sql, rows.collect()).await?;
    }
    Ok(put_off)
}

pub(super) const LOST_CLAIMS: &str = "SELECT d.*, (SELECT r.state FROM runs r WHERE r.id = d.run_id) AS run_state
     FROM run_jobs d WHERE d.state IN ('dialing', 'calling') AND d.state = 'dialing' AND d.waits_until IS NULL
     AND d.changed_at < $2 AND (d.replica <> ALL($1) OR (d.replica = $4 AND d.dial_lock_token <> ALL($5)))
     LIMIT $3 FOR UPDATE OF d SKIP LOCKED";

pub(super) async fn recover(c: &mut dyn Driver, lost: &LostClaims, now_ms: UnixMs) -> Sql<u64> {
    let binds = binds![lost.live.as_slice(), lost.before, JOBS_PER_WRITE, &lost.replica, lost.tokens.as_slice()];
    let rows = c.fetch(LOST_CLAIMS, &binds).await?;
    let mut settlements = Vec::with_capacity(rows.len());
    for row in &rows {
        let job = job(row)?;
        let canceled = row.optional_str("run_state")?.is_none_or(|state| state == RunState::Canceled.as_str());
        let found = resolve(c, &[job.alias()]).await?;
        let same = JobSettlement::of(&job);
        settlements.push(match (found, canceled) {
            (Some(call), _) => JobSettlement { state: JobState::Calling, new_call: Some(call), ..same },
            (None, true) => JobSettlement { state: JobState::Done, outcome: Some(Outcome::Canceled), ..same },
            (None, false) => JobSettlement { state: JobState::Queued, due_at: now_ms, ..same },
        });
    }
    settle(c, &settlements, now_ms).await
}

/// With the indexes to use: SQLite would read all jobs of a run by its key.
pub(super) const DUE: &str = "SELECT r.*, (SELECT count(*) FROM run_jobs j /*+ INDEXED BY run_jobs_open */ WHERE j.run_id = r.id
             AND j.state IN ('dialing', 'calling') AND j.waits_until IS NULL) AS open_jobs,
         (SELECT j.due_at FROM run_jobs j WHERE j.run_id = r.id AND j.state = 'queued' ORDER BY j.due_at LIMIT 1) AS next_due,
         (SELECT j.waits_until FROM run_jobs j /*+ INDEXED BY run_jobs_waiting */ WHERE j.run_id = r.id
             AND j.waits_until IS NOT NULL LIMIT 1) AS waits_until
     FROM runs r WHERE r.finished_at IS NULL AND r.state = 'running' ORDER BY r.created_at, r.id";

/// A call that was purged counts as one whose outcome its provider no longer knows; one whose job waits for the word who answered has ended
/// as completed, and nothing more will be reported of it.
macro_rules! ended {
    ($which:literal) => {
        concat!(
            "SELECT d.*, coalesce(c.outcome, CASE WHEN d.waits_until IS NULL THEN 'failed' ELSE 'completed' END) AS call_outcome,
                 coalesce(c.proof, CASE WHEN d.waits_until IS NULL THEN 'deadline' ELSE 'provider' END) AS proof,
                 coalesce(c.ended_at, d.changed_at) AS ended_at, coalesce(c.exchange_over, false) AS exchange_over,
                 r.state AS run_state, p.answered_by,
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
pub(super) const ENDED: &str = concat!(
    ended!("d.state IN ('dialing', 'calling') AND d.waits_until IS NULL"),
    " UNION ALL ",
    ended!("d.waits_until <= $3"),
    " LIMIT $2"
);
pub(super) const ENDED_OF: &str =
    concat!(ended!("d.call_id = ANY($5) AND coalesce(d.waits_until, 0) <= $3"), " LIMIT $2");

/// Running runs without open jobs. Asked as in [`DUE`], in the order of an index: `EXISTS` may walk through all that is done.
macro_rules! finished {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            " state = 'running' AND finished_at IS NULL
     AND (SELECT j.due_at FROM run_jobs j WHERE j.run_id = runs.id AND j.state = 'queued' ORDER BY j.due_at LIMIT 1) IS NULL
     AND (SELECT count(*) FROM run_jobs j /*+ INDEXED BY run_jobs_open */ WHERE j.run_id = runs.id
         AND j.state IN ('dialing', 'calling') AND j.waits_until IS NULL) = 0
     AND (SELECT j.waits_until FROM run_jobs j /*+ INDEXED BY run_jobs_waiting */ WHERE j.run_id = runs.id
         AND j.waits_until IS NOT NULL LIMIT 1) IS NULL",
            $after
        )
    };
}

pub(super) const FINISHED: &str = finished!("SELECT id FROM runs WHERE", " ORDER BY id FOR UPDATE");
pub(super) const FINISH: &str = finished!(
    "UPDATE runs SET state = 'done', finished_at = $1, updated_at = $1, reason = NULL WHERE id = ANY($2) AND",
    " RETURNING *"
);

/// Ends runs that have nothing left to do. Their rows are locked first, and their jobs are looked at again: whoever queued some of them
/// again meanwhile had locked the run too.
pub(super) async fn finish(c: &mut dyn Driver, now_ms: UnixMs, notify_at: Option<UnixMs>) -> Sql<Vec<String>> {
    let rows = c.fetch(FINISHED, &[]).await?;
    let ids = rows.iter().map(|row| row.text("id")).collect::<Sql<Vec<_>>>()?;
    match ids.is_empty() {
        true => Ok(vec![]),
        false => change_runs(c, FINISH, &binds![now_ms, ids], notify_at).await,
    }
}

pub(super) const RESUME: &str =
    "UPDATE runs SET state = 'running', reason = NULL, resume_at = NULL, updated_at = $1, recent = ''
     WHERE finished_at IS NULL AND state = 'paused' AND resume_at <= $1 RETURNING *";
