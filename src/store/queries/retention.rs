//! Retention: deletion by age, and redaction of transcripts.

use async_trait::async_trait;
use futures_util::FutureExt as _;

use super::super::app_events::EVENT;
use super::super::driver::{Backend, Driver, Sql, binds};
use super::super::retention::{Old, RetentionScope, SaidParts, page, text_kept};
use super::super::row::Row;
use super::super::rows::ended_call;
use super::super::runs::{Businesses, Runs as _};
use super::super::{Cursor, EndedCall, Purged, Result, Retention, RetentionCutoffs};
use super::run_in_batches;
use crate::clock::UnixMs;
use crate::policy::Privacy;

/// Rows that one write deletes or changes, so that other writes get their turn.
pub(super) const PURGE_BATCH: u32 = 500;

/// The data of ended calls that is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Forget {
    /// All but undelivered notifications and unsettled webhooks.
    Content,
    /// All.
    Everything,
}

/// Deletes ended calls with their data.
pub(super) async fn forget_calls(c: &mut dyn Driver, ids: &[String], what: Forget) -> Sql<Purged> {
    // The lock serialises with utterances of these calls: they are deleted too, or come too late.
    c.lock_calls(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    let [mut deliveries, mut spooled, mut events, mut calls] = [0; 4];
    for (gone, sql) in [
        (
            &mut deliveries,
            "DELETE FROM deliveries WHERE ($2 OR due_at IS NULL) AND (call_id = ANY($1) OR event_id IN
                 (SELECT id FROM webhook_events WHERE call_id = ANY($1)))",
        ),
        // A row with a spooled body stays, so that the file is deleted.
        (
            &mut spooled,
            "UPDATE webhook_events SET spool = NULL, call_id = NULL, dedupe_key = NULL, path = '', headers = '[]',
                 waits_kind = NULL, waits_id = NULL, outcome = coalesce(outcome, 'purged')
             WHERE spool IS NOT NULL AND ($2 OR ((outcome IS NOT NULL OR parked_at IS NOT NULL)
                 AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.event_id = webhook_events.id)))
             AND (call_id = ANY($1)
                 OR (waits_kind, waits_id) IN (SELECT kind, id FROM call_aliases WHERE call_id = ANY($1)))",
        ),
        (
            &mut events,
            "DELETE FROM webhook_events WHERE ($2 OR ((outcome IS NOT NULL OR parked_at IS NOT NULL) AND spool IS NULL))
             AND (call_id = ANY($1)
                 OR (waits_kind, waits_id) IN (SELECT kind, id FROM call_aliases WHERE call_id = ANY($1)))",
        ),
    ] {
        *gone = c.execute(sql, &binds![ids, what == Forget::Everything]).await?;
    }
    for sql in [
        "DELETE FROM call_records WHERE call_id = ANY($1)",
        "DELETE FROM create_answers WHERE call_id = ANY($1)",
        "DELETE FROM utterances WHERE call_id = ANY($1)",
        "DELETE FROM transcripts WHERE call_id = ANY($1)",
        "DELETE FROM call_aliases WHERE call_id = ANY($1)",
        "DELETE FROM calls WHERE id = ANY($1)",
    ] {
        calls = c.execute(sql, &binds![ids]).await?;
    }
    Ok(Purged { calls, events: events + spooled, deliveries, ..Purged::default() })
}

/// Lists of rows that may be expired, read in pages so that rows that are kept longer are skipped in small steps: from the
/// position $2, $3 on, before $1, at most $4.
#[derive(Debug, Clone, Copy)]
enum List {
    Calls,
    Refusals,
    /// Webhooks of recorded calls are deleted with them: their business is that of the call. A row that names a file is kept
    /// until the file was delivered.
    Events,
    /// Deliveries, by id: no index has their time. The delivery of a rejection is deleted with that; $5 is the prefix of ids of
    /// ringfence's own events.
    Deliveries,
}

impl List {
    /// $5 are businesses: those to select, or to skip.
    fn sql(self, whose: &RetentionScope) -> &'static str {
        match (self, whose) {
            (Self::Calls, RetentionScope::Of(_)) => {
                "SELECT id, ended_at AS at, false AS kept FROM calls WHERE phase = 'ended' AND ended_at < $1
                 AND ended_at >= $2 AND (ended_at, id) > ($2, $3) AND business = ANY($5) ORDER BY ended_at, id LIMIT $4"
            }
            (Self::Calls, RetentionScope::NotOf(_)) => {
                "SELECT id, ended_at AS at, business = ANY($5) AS kept FROM calls /*+ INDEXED BY calls_ended */
                 WHERE phase = 'ended' AND ended_at < $1 AND ended_at >= $2 AND (ended_at, id) > ($2, $3)
                 ORDER BY ended_at, id LIMIT $4"
            }
            (Self::Refusals, RetentionScope::Of(_)) => {
                "SELECT id, at, false AS kept FROM refusals WHERE at < $1 AND at >= $2 AND (at, id) > ($2, $3)
                 AND business = ANY($5) ORDER BY at, id LIMIT $4"
            }
            (Self::Refusals, RetentionScope::NotOf(_)) => {
                "SELECT id, at, business = ANY($5) AS kept FROM refusals WHERE at < $1 AND at >= $2
                 AND (at, id) > ($2, $3) ORDER BY at, id LIMIT $4"
            }
            (Self::Events, _) => {
                "SELECT id, received_at AS at, (outcome IS NULL AND parked_at IS NULL)
                     OR EXISTS (SELECT 1 FROM calls WHERE calls.id = webhook_events.call_id)
                     OR (spool IS NOT NULL AND EXISTS (SELECT 1 FROM deliveries d
                         WHERE d.event_id = webhook_events.id AND d.due_at IS NOT NULL)) AS kept
                 FROM webhook_events WHERE received_at < $1 AND received_at >= $2 AND (received_at, id) > ($2, $3)
                 ORDER BY received_at, id LIMIT $4"
            }
            (Self::Deliveries, _) => {
                "SELECT d.id, $2 AS at, d.due_at IS NOT NULL OR coalesce(e.received_at, d.noted_at, 0) >= $1
                     OR EXISTS (SELECT 1 FROM calls WHERE calls.id = coalesce(d.call_id, e.call_id))
                     OR (d.own AND EXISTS (SELECT 1 FROM refusals r WHERE r.id = substr(d.event_id, length($5) + 1))) AS kept
                 FROM deliveries d LEFT JOIN webhook_events e ON e.id = d.event_id WHERE d.id > $3 ORDER BY d.id LIMIT $4"
            }
        }
    }

    async fn forget(self, c: &mut dyn Driver, ids: &[String]) -> Sql<u64> {
        let sql = match self {
            Self::Calls => {
                let gone = forget_calls(c, ids, Forget::Content).await?;
                return Ok(gone.calls + gone.events + gone.deliveries);
            }
            Self::Refusals => {
                // Their deliveries to the app.
                let told: Vec<String> = ids.iter().map(|id| format!("{EVENT}{id}")).collect();
                let sql = "DELETE FROM deliveries WHERE due_at IS NULL AND event_id = ANY($1)";
                c.execute(sql, &binds![told]).await?;
                "DELETE FROM refusals WHERE id = ANY($1)"
            }
            Self::Events => {
                "DELETE FROM webhook_events WHERE id = ANY($1) AND (outcome IS NOT NULL OR parked_at IS NOT NULL)"
            }
            Self::Deliveries => "DELETE FROM deliveries WHERE id = ANY($1) AND due_at IS NULL",
        };
        c.execute(sql, &binds![ids]).await
    }

    /// Deletes the expired rows of a list.
    async fn purge(self, store: &impl Backend, before: UnixMs, whose: &RetentionScope) -> Result<u64> {
        let old = |row: &Row| Ok(Old { place: (row.number("at")?, row.text("id")?), kept: row.flag("kept")? });
        let named = match whose {
            RetentionScope::Of(business) => vec![business.clone()],
            RetentionScope::NotOf(businesses) => businesses.clone(),
        };
        let (mut gone, mut after) = (0, Some(Cursor::default()));
        while let Some(from) = after {
            let mut binds = binds![before, from.0, from.1, PURGE_BATCH].to_vec();
            match self {
                Self::Calls | Self::Refusals => binds.extend(binds![named.clone()]),
                Self::Deliveries => binds.extend(binds![EVENT]),
                Self::Events => {}
            }
            let (ids, next) = page(store.select(self.sql(whose), binds, old).await?, PURGE_BATCH);
            if !ids.is_empty() {
                gone += store.write(ids, move |c, ids| self.forget(c, ids).boxed()).await?;
            }
            after = next;
        }
        Ok(gone)
    }
}

/// Runs that are checked in one purge.
const RUNS_PER_PURGE: u32 = 10_000;

/// Deletes expired runs, and those whose loading was abandoned.
async fn purge_runs(store: &impl Backend, ages: &RetentionCutoffs) -> Result<u64> {
    let own = ages.of_business.iter().map(|(id, before)| (*before, Businesses::Only(vec![id.to_string()])));
    let others = (ages.before_ms, Businesses::AllBut(ages.of_business.keys().map(ToString::to_string).collect()));
    let mut gone = 0;
    for (before, of) in own.chain([others]) {
        for run in store.old_runs(before, of, RUNS_PER_PURGE).await? {
            gone += store.delete_run(&run).await?;
        }
    }
    Ok(gone)
}

/// Redacts some utterances; returns how many there were.
async fn redact_utterances(c: &mut dyn Driver, calls: &[String], keep: Privacy) -> Sql<u64> {
    let sql = match keep {
        Privacy::Keep => return Ok(0),
        Privacy::Hash => {
            "SELECT id, message FROM utterances WHERE call_id = ANY($1) AND NOT redacted LIMIT $2 FOR UPDATE"
        }
        Privacy::None => {
            "SELECT id, message FROM utterances WHERE call_id = ANY($1) AND message <> '' LIMIT $2 FOR UPDATE"
        }
    };
    let mut rows = Vec::new();
    for row in c.fetch(sql, &binds![calls, PURGE_BATCH]).await? {
        rows.push(Vec::from(binds![row.number("id")?, text_kept(keep, row.str("message")?)]));
    }
    let sql = "UPDATE utterances SET message = one.column2, redacted = true FROM (VALUES {rows}) AS one
         WHERE utterances.id = one.column1";
    c.execute_all(sql, rows).await
}

async fn redact_records(c: &mut dyn Driver, calls: &[String], keep: Privacy) -> Sql<u64> {
    let sql =
        "SELECT call_id, transcript_summary, analysis_data, transcript_json FROM call_records WHERE call_id = ANY($1)
         AND (transcript_summary IS NOT NULL OR analysis_data IS NOT NULL OR transcript_json IS NOT NULL) FOR UPDATE";
    let parts = |row: &Row| {
        Ok(SaidParts {
            call: row.text("call_id")?,
            summary: row.optional_text("transcript_summary")?,
            analysis: row.optional_text("analysis_data")?,
            transcript: row.optional_text("transcript_json")?,
        })
    };
    let found = c.fetch(sql, &binds![calls]).await?.iter().map(parts).collect::<Sql<Vec<_>>>()?;
    let mut changed = 0;
    for kept in found.iter().filter_map(|parts| parts.kept(keep)) {
        let sql = "UPDATE call_records SET transcript_summary = $2, analysis_data = $3, transcript_json = $4 WHERE call_id = $1";
        changed += c.execute(sql, &binds![kept.call, kept.summary, kept.analysis, kept.transcript]).await?;
    }
    for sql in [
        "UPDATE webhook_events SET body = NULL WHERE call_id = ANY($1) AND body IS NOT NULL
         AND outcome IS NOT NULL AND waits_id IS NULL",
        "UPDATE deliveries SET body = NULL WHERE call_id = ANY($1) AND body IS NOT NULL AND done_at IS NOT NULL",
        "DELETE FROM create_answers WHERE call_id = ANY($1)",
    ] {
        c.execute(sql, &binds![calls]).await?;
    }
    Ok(changed)
}

#[async_trait]
impl<B: Backend> Retention for B {
    async fn purge(&self, ages: &RetentionCutoffs) -> Result<u64> {
        let early = "DELETE FROM call_aliases WHERE (kind, id) IN
             (SELECT kind, id FROM call_aliases WHERE call_id IS NULL AND seen_at < $1 LIMIT $2)";
        let answers = "DELETE FROM create_answers WHERE (call_id, fingerprint) IN
             (SELECT call_id, fingerprint FROM create_answers WHERE at < $1 LIMIT $2)";
        let audit = "DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE at < $1 LIMIT $2)";
        let unlisted = "DELETE FROM do_not_call WHERE (list, number) IN
             (SELECT list, number FROM do_not_call WHERE NOT listed AND changed_at < $1 LIMIT $2)";
        let purge = |sql, before: UnixMs| run_in_batches(self, sql, binds![before, PURGE_BATCH].into(), PURGE_BATCH);
        let mut gone = purge(early, ages.early_before_ms).await?;
        gone += purge(unlisted, ages.before_ms).await?;
        gone += purge(answers, ages.answers_before_ms).await?;
        for list in [List::Calls, List::Refusals] {
            for (before, whose) in ages.each() {
                gone += list.purge(self, before, &whose).await?;
            }
        }
        gone += purge(audit, ages.before_ms).await?;
        gone += purge_runs(self, ages).await?;
        for list in [List::Events, List::Deliveries] {
            gone += list.purge(self, ages.before_ms, &RetentionScope::NotOf(vec![])).await?;
        }
        Ok(gone)
    }

    async fn ended_calls(&self, after: &Cursor, until_ms: UnixMs, limit: u32) -> Result<Vec<EndedCall>> {
        let sql = "SELECT id, business, ended_at FROM calls /*+ INDEXED BY calls_ended */ WHERE phase = 'ended' AND ended_at <= $1
             AND ended_at >= $2 AND (ended_at, id) > ($2, $3) ORDER BY ended_at, id LIMIT $4";
        self.select(sql, binds![until_ms, after.0, after.1.clone(), limit].into(), ended_call).await
    }

    async fn redact(&self, calls: &[String], keep: Privacy) -> Result<u64> {
        if keep == Privacy::Keep {
            return Ok(0);
        }
        let ids = calls.to_vec();
        let mut changed = self.write(ids, move |c, ids| redact_records(c, ids, keep).boxed()).await?;
        loop {
            let some = self.write(calls.to_vec(), move |c, ids| redact_utterances(c, ids, keep).boxed()).await?;
            changed += some;
            if some < PURGE_BATCH.into() {
                return Ok(changed);
            }
        }
    }
}
