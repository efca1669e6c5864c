//! What is forgotten in time, and what becomes of what was said.

use async_trait::async_trait;
use rusqlite::{Connection, Row, params};
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::super::retention::{Old, SaidParts, Whose, page, text_kept};
use super::super::rows::Sql;
use super::super::told::EVENT;
use super::super::{Ages, EndedCall, Place, Purged, Result, Retention};
use super::SqliteStore;
use super::calls_write::to_json;
use super::writer::Written;
use crate::clock::UnixMs;
use crate::policy::Privacy;

/// Rows that one write forgets or changes: others get their turn in between.
pub(super) const ROWS: u32 = 500;

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
    gone("DELETE FROM create_answers WHERE call_id IN (SELECT value FROM json_each(?1))")?;
    gone("DELETE FROM utterances WHERE call_id IN (SELECT value FROM json_each(?1))")?;
    gone("DELETE FROM transcripts WHERE call_id IN (SELECT value FROM json_each(?1))")?;
    gone("DELETE FROM call_aliases WHERE call_id IN (SELECT value FROM json_each(?1))")?;
    let calls = gone("DELETE FROM calls WHERE id IN (SELECT value FROM json_each(?1))")?;
    Ok(Purged { calls, events, deliveries, ..Purged::default() })
}

/// A list of rows that may be past their age, read page by page, so that what is kept longer is passed over in small steps: from the
/// place $2, $3 on, before $1. Readers look for them, which may take a while; the writer deletes by id.
struct List {
    /// Those of a business, $4.
    of: &'static str,
    /// Those of all; kept are those of the businesses in $4, as JSON, and what is needed otherwise.
    all: &'static str,
    /// Deletes those in ?1, as JSON.
    forget: fn(&Connection, &str) -> Written<u64>,
}

const CALLS: List = List {
    of: "SELECT id, ended_at AS at, 0 AS kept FROM calls WHERE phase = 'ended' AND ended_at < $1 AND ended_at >= $2
         AND (ended_at, id) > ($2, $3) AND business = $4 ORDER BY ended_at, id LIMIT $5",
    all: "SELECT id, ended_at AS at, business IN (SELECT value FROM json_each($4)) AS kept
         FROM calls INDEXED BY calls_ended WHERE phase = 'ended' AND ended_at < $1 AND ended_at >= $2
         AND (ended_at, id) > ($2, $3) ORDER BY ended_at, id LIMIT $5",
    forget: |c, ids| {
        let gone = forget_calls(c, ids, false)?;
        Ok(gone.calls + gone.events + gone.deliveries)
    },
};
const REFUSALS: List = List {
    of: "SELECT id, at, 0 AS kept FROM refusals WHERE at < $1 AND at >= $2 AND (at, id) > ($2, $3) AND business = $4
         ORDER BY at, id LIMIT $5",
    all: "SELECT id, at, business IN (SELECT value FROM json_each($4)) AS kept FROM refusals
         WHERE at < $1 AND at >= $2 AND (at, id) > ($2, $3) ORDER BY at, id LIMIT $5",
    forget: |c, ids| {
        // What the app was told of them.
        c.prepare_cached(
            "DELETE FROM deliveries WHERE due_at IS NULL AND event_id IN (SELECT ?2 || value FROM json_each(?1))",
        )?
        .execute([ids, EVENT])?;
        delete(c, "DELETE FROM refusals WHERE id IN (SELECT value FROM json_each(?1))", ids)
    },
};
/// Those of calls on record go with them: they have no business but that of their call. A row that names a file is needed until the
/// app has that.
const EVENTS: List = List {
    of: "",
    all: "SELECT id, received_at AS at, (outcome IS NULL AND parked_at IS NULL)
             OR EXISTS (SELECT 1 FROM calls WHERE calls.id = webhook_events.call_id)
             OR (spool IS NOT NULL AND EXISTS
                 (SELECT 1 FROM deliveries d WHERE d.event_id = webhook_events.id AND d.due_at IS NOT NULL)) AS kept
         FROM webhook_events WHERE received_at < $1 AND received_at >= $2 AND (received_at, id) > ($2, $3)
         AND $4 IS NOT NULL ORDER BY received_at, id LIMIT $5",
    forget: |c, ids| {
        let sql = "DELETE FROM webhook_events WHERE id IN (SELECT value FROM json_each(?1))
             AND (outcome IS NOT NULL OR parked_at IS NOT NULL)";
        delete(c, sql, ids)
    },
};
/// The same by their ids alone: they have no time that an index knows. What the app was told of a refusal goes with that; $6 is what
/// the ids of our own events begin with.
const DELIVERIES: List = List {
    of: "",
    all: "SELECT d.id, 0 AS at, d.due_at IS NOT NULL OR coalesce(e.received_at, d.noted_at, 0) >= $1
             OR EXISTS (SELECT 1 FROM calls WHERE calls.id = coalesce(d.call_id, e.call_id))
             OR (d.own AND EXISTS (SELECT 1 FROM refusals r WHERE r.id = substr(d.event_id, length($6) + 1))) AS kept
         FROM deliveries d LEFT JOIN webhook_events e ON e.id = d.event_id
         WHERE d.id > $3 AND $2 = 0 AND $4 IS NOT NULL ORDER BY d.id LIMIT $5",
    forget: |c, ids| {
        let sql = "DELETE FROM deliveries WHERE id IN (SELECT value FROM json_each(?1)) AND due_at IS NULL";
        delete(c, sql, ids)
    },
};

fn delete(c: &Connection, sql: &str, ids: &str) -> Written<u64> {
    Ok(c.prepare_cached(sql)?.execute([ids])? as u64)
}

impl SqliteStore {
    /// Forgets what of a list is past its age.
    async fn purge_list(&self, list: &List, before: UnixMs, whose: &Whose) -> Result<u64> {
        let (sql, whose) = match whose {
            Whose::Of(business) => (list.of, business.clone()),
            Whose::NotOf(businesses) => (list.all, ids_json(businesses).map_err(no_json)?),
        };
        let (mut gone, mut after, forget) = (0, Some(Place::default()), list.forget);
        while let Some(from) = after {
            let rows = sqlx::query(sql).bind(before).bind(from.0).bind(&from.1).bind(&whose).bind(ROWS);
            let rows = if sql.contains("$6") { rows.bind(EVENT) } else { rows };
            let old = |row: &SqliteRow| {
                Ok(Old { place: (row.try_get("at")?, row.try_get("id")?), kept: row.try_get("kept")? })
            };
            let rows = rows.fetch_all(&self.readers).await?.iter().map(old).collect::<Sql<Vec<_>>>()?;
            let (ids, next) = page(rows, ROWS);
            if !ids.is_empty() {
                gone += self.writer.run(move |c| forget(c, &ids_json(&ids)?)).await?;
            }
            after = next;
        }
        Ok(gone)
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

fn no_json(error: rusqlite::Error) -> super::StoreError {
    super::StoreError::Failed(error.to_string())
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
        "DELETE FROM create_answers WHERE call_id IN (SELECT value FROM json_each(?1))",
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
        let answers = "DELETE FROM create_answers WHERE (call_id, fingerprint) IN
             (SELECT call_id, fingerprint FROM create_answers WHERE at < ?1 LIMIT ?2)";
        let audit = "DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE at < ?1 LIMIT ?2)";
        let mut gone = self.purge_some(early, ages.early_before_ms).await?;
        gone += self.purge_some(answers, ages.answers_before_ms).await?;
        for list in [&CALLS, &REFUSALS] {
            for (before, whose) in ages.each() {
                gone += self.purge_list(list, before, &whose).await?;
            }
        }
        gone += self.purge_some(audit, ages.before_ms).await?;
        for list in [&EVENTS, &DELIVERIES] {
            gone += self.purge_list(list, ages.before_ms, &Whose::NotOf(vec![])).await?;
        }
        Ok(gone)
    }

    async fn ended_calls(&self, after: &Place, until_ms: UnixMs, limit: u32) -> Result<Vec<EndedCall>> {
        let rows = sqlx::query(
            "SELECT id, business, ended_at FROM calls INDEXED BY calls_ended WHERE phase = 'ended' AND ended_at <= $1
             AND ended_at >= $2 AND (ended_at, id) > ($2, $3) ORDER BY ended_at, id LIMIT $4",
        );
        let rows = rows.bind(until_ms).bind(after.0).bind(&after.1).bind(limit).fetch_all(&self.readers).await?;
        let ended = |row: &SqliteRow| {
            Ok(EndedCall {
                id: row.try_get("id")?,
                business: row.try_get("business")?,
                ended_at: row.try_get("ended_at")?,
            })
        };
        rows.iter().map(ended).collect::<Sql<_>>().map_err(Into::into)
    }

    async fn redact(&self, calls: &[String], keep: Privacy) -> Result<u64> {
        if keep == Privacy::Keep {
            return Ok(0);
        }
        let ids = ids_json(calls).map_err(no_json)?;
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
