//! What is forgotten in time, and what becomes of what was said.

use async_trait::async_trait;
use rusqlite::{Connection, Row, params};
use sqlx::Row as _;

use super::super::retention::{SaidParts, Whose, text_kept};
use super::super::rows::{Sql, call_id, damaged};
use super::super::{Ages, EndedCall, Place, Purged, Result, Retention};
use super::SqliteStore;
use super::calls_write::to_json;
use super::writer::Written;
use crate::clock::UnixMs;
use crate::ids::{BusinessId, CallId};
use crate::policy::Privacy;

/// Rows that one write forgets or changes: others get their turn in between.
pub(super) const ROWS: u32 = 500;
/// Deliveries that one read finds.
const DELIVERIES: u32 = 10_000;

/// The ids of calls as JSON.
pub(super) fn ids_json<T: AsRef<str>>(ids: &[T]) -> Written<String> {
    to_json(&ids.iter().map(AsRef::as_ref).collect::<Vec<_>>())
}

/// Forgets calls that are over, with all that they left behind; `wholly`, or but for what the app still waits for and what nobody
/// settled.
pub(super) fn forget_calls(c: &Connection, ids: &str, wholly: bool) -> Written<Purged> {
    let gone = |sql: &str| -> Written<u64> { Ok(c.prepare_cached(sql)?.execute([ids])? as u64) };
    let gone_if = |sql: &str| -> Written<u64> { Ok(c.prepare_cached(sql)?.execute(params![ids, wholly])? as u64) };
    let deliveries = gone_if(
        "DELETE FROM deliveries WHERE (?2 OR due_at IS NULL) AND (call_id IN (SELECT value FROM json_each(?1)) OR event_id IN
             (SELECT id FROM webhook_events WHERE call_id IN (SELECT value FROM json_each(?1))))",
    )?;
    // Of a body in a spool a row stays that tells so.
    let spooled = gone_if(
        "UPDATE webhook_events SET spool = NULL, call_id = NULL, dedupe_key = NULL, path = '', headers = '[]',
             waits_kind = NULL, waits_id = NULL, outcome = coalesce(outcome, 'purged')
         WHERE spool IS NOT NULL AND (?2 OR ((outcome IS NOT NULL OR parked_at IS NOT NULL)
             AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.event_id = webhook_events.id)))
         AND (call_id IN (SELECT value FROM json_each(?1)) OR (waits_kind, waits_id) IN
             (SELECT kind, id FROM call_aliases WHERE call_id IN (SELECT value FROM json_each(?1))))",
    )?;
    let events = gone_if(
        "DELETE FROM webhook_events WHERE (?2 OR ((outcome IS NOT NULL OR parked_at IS NOT NULL) AND spool IS NULL))
         AND (call_id IN (SELECT value FROM json_each(?1)) OR (waits_kind, waits_id) IN
             (SELECT kind, id FROM call_aliases WHERE call_id IN (SELECT value FROM json_each(?1))))",
    )? + spooled;
    gone("DELETE FROM call_records WHERE call_id IN (SELECT value FROM json_each(?1))")?;
    gone("DELETE FROM utterances WHERE call_id IN (SELECT value FROM json_each(?1))")?;
    gone("DELETE FROM transcripts WHERE call_id IN (SELECT value FROM json_each(?1))")?;
    gone("DELETE FROM call_aliases WHERE call_id IN (SELECT value FROM json_each(?1))")?;
    let calls = gone("DELETE FROM calls WHERE id IN (SELECT value FROM json_each(?1))")?;
    Ok(Purged { calls, events, deliveries, ..Purged::default() })
}

/// A list of rows that have an age. Readers look for what is past it, which may take a while; the writer deletes by id.
struct List {
    /// From $2, $3 on, before $1, at most $5; $4 is the business.
    of: &'static str,
    /// The same, $4 being the businesses that are left out, as JSON.
    not_of: &'static str,
}

const CALLS: List = List {
    of: "SELECT id, ended_at AS at FROM calls WHERE phase = 'ended' AND ended_at < $1 AND ended_at >= $2
         AND (ended_at, id) > ($2, $3) AND business = $4 ORDER BY ended_at, id LIMIT $5",
    not_of: "SELECT id, ended_at AS at FROM calls INDEXED BY calls_ended WHERE phase = 'ended' AND ended_at < $1
         AND ended_at >= $2 AND (ended_at, id) > ($2, $3) AND business NOT IN (SELECT value FROM json_each($4))
         ORDER BY ended_at, id LIMIT $5",
};
const REFUSALS: List = List {
    of: "SELECT id, at FROM refusals WHERE at < $1 AND at >= $2 AND (at, id) > ($2, $3) AND business = $4
         ORDER BY at, id LIMIT $5",
    not_of: "SELECT id, at FROM refusals WHERE at < $1 AND at >= $2 AND (at, id) > ($2, $3)
         AND business NOT IN (SELECT value FROM json_each($4)) ORDER BY at, id LIMIT $5",
};
/// Those of calls go with them. They have no business but that of their call.
const EVENTS: &str = "SELECT id, received_at AS at FROM webhook_events WHERE received_at < $1 AND received_at >= $2
     AND (received_at, id) > ($2, $3) AND (outcome IS NOT NULL OR parked_at IS NOT NULL)
     AND NOT EXISTS (SELECT 1 FROM calls WHERE calls.id = webhook_events.call_id)
     AND (spool IS NULL OR NOT EXISTS
         (SELECT 1 FROM deliveries d WHERE d.event_id = webhook_events.id AND d.due_at IS NOT NULL)) ORDER BY received_at, id LIMIT $4";
const DELIVERED: &str = "SELECT d.id FROM deliveries d LEFT JOIN webhook_events e ON e.id = d.event_id
     WHERE d.due_at IS NULL AND coalesce(e.received_at, d.noted_at, 0) < $1
     AND NOT EXISTS (SELECT 1 FROM calls WHERE calls.id = coalesce(d.call_id, e.call_id)) LIMIT $2";

impl SqliteStore {
    async fn old(&self, list: &List, whose: &Whose, before: UnixMs, after: &Place) -> Result<Vec<Place>> {
        let (sql, whose) = match whose {
            Whose::Of(business) => (list.of, business.clone()),
            Whose::NotOf(businesses) => (list.not_of, ids_json(businesses).map_err(to_json_failed)?),
        };
        let rows = sqlx::query(sql).bind(before).bind(after.0).bind(&after.1).bind(whose).bind(ROWS);
        places(&rows.fetch_all(&self.readers).await?)
    }

    /// Forgets what a list has, page by page.
    async fn purge_list<F>(&self, list: &List, ages: &Ages, forget: F) -> Result<u64>
    where
        F: Fn(&Connection, &str) -> Written<u64> + Copy + Send + 'static,
    {
        let mut gone = 0;
        for (before, whose) in ages.each() {
            let mut after = Place::default();
            loop {
                let some = self.old(list, &whose, before, &after).await?;
                let is_last = some.len() < ROWS as usize;
                let Some(last) = some.last().cloned() else { break };
                after = last;
                let ids: Vec<String> = some.into_iter().map(|(_, id)| id).collect();
                gone += self.writer.run(move |c| forget(c, &ids_json(&ids)?)).await?;
                if is_last {
                    break;
                }
            }
        }
        Ok(gone)
    }

    async fn purge_events(&self, before: UnixMs) -> Result<u64> {
        let (mut gone, mut after) = (0, Place::default());
        loop {
            let rows = sqlx::query(EVENTS).bind(before).bind(after.0).bind(&after.1).bind(ROWS);
            let some = places(&rows.fetch_all(&self.readers).await?)?;
            let is_last = some.len() < ROWS as usize;
            let Some(last) = some.last().cloned() else { return Ok(gone) };
            after = last;
            let ids: Vec<String> = some.into_iter().map(|(_, id)| id).collect();
            gone += self
                .delete(
                    "DELETE FROM webhook_events WHERE id = ?1 AND (outcome IS NOT NULL OR parked_at IS NOT NULL)",
                    ids,
                )
                .await?;
            if is_last {
                return Ok(gone);
            }
        }
    }

    async fn purge_deliveries(&self, before: UnixMs) -> Result<u64> {
        let mut gone = 0;
        loop {
            let ids = sqlx::query_scalar(DELIVERED).bind(before).bind(DELIVERIES);
            let ids: Vec<String> = ids.fetch_all(&self.readers).await?;
            let found = ids.len();
            for some in ids.chunks(ROWS as usize) {
                gone += self.delete("DELETE FROM deliveries WHERE id = ?1 AND due_at IS NULL", some.to_vec()).await?;
            }
            if found < DELIVERIES as usize {
                return Ok(gone);
            }
        }
    }

    async fn delete(&self, sql: &'static str, ids: Vec<String>) -> Result<u64> {
        let delete = move |c: &Connection| {
            let mut delete = c.prepare_cached(sql)?;
            ids.iter().try_fold(0, |gone, id| Ok(gone + delete.execute([id])? as u64))
        };
        self.writer.run(delete).await
    }

    /// Deletes what a statement finds before a time, some at a time.
    async fn purge_some(&self, sql: &'static str, before: UnixMs) -> Result<u64> {
        let mut gone = 0;
        loop {
            let rows = self.writer.run(move |c| c.prepare_cached(sql)?.execute(params![before, ROWS])).await?;
            gone += rows as u64;
            if rows < ROWS as usize {
                return Ok(gone);
            }
        }
    }
}

fn to_json_failed(error: rusqlite::Error) -> super::StoreError {
    super::StoreError::Failed(error.to_string())
}

fn places(rows: &[sqlx::sqlite::SqliteRow]) -> Result<Vec<Place>> {
    rows.iter().map(|row| Ok((row.try_get("at")?, row.try_get("id")?))).collect::<Sql<_>>().map_err(Into::into)
}

/// Redacts some utterances; returns how many there were.
fn redact_utterances(c: &Connection, ids: &str, keep: Privacy) -> Written<u64> {
    let sql = match keep {
        Privacy::Keep => return Ok(0),
        Privacy::Hash => {
            "SELECT id, message FROM utterances WHERE call_id IN (SELECT value FROM json_each(?1)) AND redacted = 0 LIMIT ?2"
        }
        Privacy::None => {
            "SELECT id, message FROM utterances WHERE call_id IN (SELECT value FROM json_each(?1)) AND message <> '' LIMIT ?2"
        }
    };
    let row = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?));
    let rows = c.prepare_cached(sql)?.query_map(params![ids, ROWS], row)?.collect::<Written<Vec<_>>>()?;
    let mut update = c.prepare_cached("UPDATE utterances SET message = ?2, redacted = 1 WHERE id = ?1")?;
    for (id, text) in &rows {
        update.execute(params![id, text_kept(keep, text)])?;
    }
    Ok(rows.len() as u64)
}

fn redact_records(c: &Connection, ids: &str, keep: Privacy) -> Written<u64> {
    let row = |row: &Row<'_>| {
        Ok(SaidParts { call: row.get(0)?, summary: row.get(1)?, analysis: row.get(2)?, transcript: row.get(3)? })
    };
    let mut find = c.prepare_cached(
        "SELECT call_id, transcript_summary, analysis_data, transcript_json FROM call_records
         WHERE call_id IN (SELECT value FROM json_each(?1))
         AND (transcript_summary IS NOT NULL OR analysis_data IS NOT NULL OR transcript_json IS NOT NULL)",
    )?;
    let found = find.query_map([ids], row)?.collect::<Written<Vec<_>>>()?;
    let mut update = c.prepare_cached(
        "UPDATE call_records SET transcript_summary = ?2, analysis_data = ?3, transcript_json = ?4 WHERE call_id = ?1",
    )?;
    let mut changed = 0;
    for kept in found.iter().filter_map(|parts| parts.kept(keep)) {
        changed += update.execute(params![kept.call, kept.summary, kept.analysis, kept.transcript])? as u64;
    }
    for sql in [
        "UPDATE webhook_events SET body = NULL WHERE call_id IN (SELECT value FROM json_each(?1)) AND body IS NOT NULL
         AND outcome IS NOT NULL AND waits_id IS NULL",
        "UPDATE deliveries SET body = NULL WHERE call_id IN (SELECT value FROM json_each(?1)) AND body IS NOT NULL
         AND done_at IS NOT NULL",
    ] {
        c.prepare_cached(sql)?.execute([ids])?;
    }
    Ok(changed)
}

#[async_trait]
impl Retention for SqliteStore {
    async fn purge(&self, ages: &Ages) -> Result<u64> {
        let early = "DELETE FROM call_aliases WHERE (kind, id) IN
             (SELECT kind, id FROM call_aliases WHERE call_id IS NULL AND seen_at < ?1 LIMIT ?2)";
        let audit = "DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE at < ?1 LIMIT ?2)";
        let mut gone = self.purge_some(early, ages.early_before_ms).await?;
        let forget = |c: &Connection, ids: &str| {
            let gone = forget_calls(c, ids, false)?;
            Ok(gone.calls + gone.events + gone.deliveries)
        };
        gone += self.purge_list(&CALLS, ages, forget).await?;
        let refusals = |c: &Connection, ids: &str| {
            let sql = "DELETE FROM refusals WHERE id IN (SELECT value FROM json_each(?1))";
            Ok(c.prepare_cached(sql)?.execute([ids])? as u64)
        };
        gone += self.purge_list(&REFUSALS, ages, refusals).await?;
        gone += self.purge_events(ages.before_ms).await?;
        gone += self.purge_some(audit, ages.before_ms).await?;
        Ok(gone + self.purge_deliveries(ages.before_ms).await?)
    }

    async fn ended_calls(&self, after: &Place, until_ms: UnixMs, limit: u32) -> Result<Vec<EndedCall>> {
        let rows = sqlx::query(
            "SELECT id, business, ended_at FROM calls INDEXED BY calls_ended WHERE phase = 'ended' AND ended_at <= $1
             AND ended_at >= $2 AND (ended_at, id) > ($2, $3) ORDER BY ended_at, id LIMIT $4",
        );
        let rows = rows.bind(until_ms).bind(after.0).bind(&after.1).bind(limit).fetch_all(&self.readers).await?;
        let ended = |row: &sqlx::sqlite::SqliteRow| {
            Ok(EndedCall {
                id: call_id(row.try_get("id")?)?,
                business: BusinessId::parse(row.try_get("business")?).map_err(damaged)?,
                ended_at: row.try_get("ended_at")?,
            })
        };
        rows.iter().map(ended).collect::<Sql<_>>().map_err(Into::into)
    }

    async fn redact(&self, calls: &[CallId], keep: Privacy) -> Result<u64> {
        if keep == Privacy::Keep {
            return Ok(0);
        }
        let ids = ids_json(&calls.iter().map(CallId::as_str).collect::<Vec<_>>()).map_err(to_json_failed)?;
        let records = ids.clone();
        let mut changed = self.writer.run(move |c| redact_records(c, &records, keep)).await?;
        loop {
            let ids = ids.clone();
            let some = self.writer.run(move |c| redact_utterances(c, &ids, keep)).await?;
            changed += some;
            if some < ROWS.into() {
                return Ok(changed);
            }
        }
    }
}
