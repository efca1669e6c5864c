//! Post-call records, webhooks that wait for their call, and events of our own on their way into the outbox.

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension as _, params};
use sqlx::Row as _;

use super::super::records::LATEST;
use super::super::rows::{Sql, call_id, post_call, waiting};
use super::super::told::{self, Told, WITHOUT_RECORD};
use super::super::{HookAsked, HookCame, Put, PutPostCall, Reach, Records, Result, StoredPostCall, Waiting};
use super::SqliteStore;
use super::calls_write::{self, to_json};
use super::retention::ids_json;
use super::writer::Written;
use crate::call::Outcome;
use crate::clock::UnixMs;
use crate::ids::{Alias, CallId};

/// Puts events of our own into the outbox, in the transaction of what they tell of.
pub(super) fn tell(c: &Connection, all: impl IntoIterator<Item = Told>) -> Written<()> {
    for told in all {
        c.prepare_cached(
            "INSERT INTO deliveries (id, event_id, url, method, headers, body, due_at, call_id, own, noted_at)
             VALUES (?1, ?1, '', 'POST', '[]', ?2, ?3, ?4, 1, ?3)",
        )?
        .execute(params![told.id, told.body.as_bytes(), told.at_ms, told.call])?;
    }
    Ok(())
}

fn put(c: &Connection, put: &PutPostCall) -> Written<Put> {
    let before = c
        .prepare_cached("SELECT recorded_at FROM call_records WHERE call_id = ?1")?
        .query_row([put.call.as_str()], |row| row.get::<_, Option<UnixMs>>(0))
        .optional()?;
    let was_complete = before.flatten().is_some();
    let found = &put.found;
    let json = |value: &Option<serde_json::Value>| value.as_ref().map(to_json).transpose();
    let written = c
        .prepare_cached(
            "INSERT INTO call_records (call_id, transcript_summary, call_duration_seconds, cost, cost_unit, call_successful,
                 analysis_data, metadata_json, call_end_time, transcript_json, recorded_at, recorded_by, due_at, cost_fiat)
             SELECT id, ?2, ?3, ?4, ?5, ?6, ?7, ?8, coalesce(?9, ended_at), ?10, ?11, ?12, ?13, ?14 FROM calls WHERE id = ?1
             ON CONFLICT (call_id) DO UPDATE SET
                 transcript_summary = coalesce(excluded.transcript_summary, call_records.transcript_summary),
                 call_duration_seconds = coalesce(excluded.call_duration_seconds, call_records.call_duration_seconds),
                 cost = coalesce(excluded.cost, call_records.cost),
                 cost_unit = coalesce(excluded.cost_unit, call_records.cost_unit),
                 cost_fiat = coalesce(excluded.cost_fiat, call_records.cost_fiat),
                 call_successful = coalesce(excluded.call_successful, call_records.call_successful),
                 analysis_data = coalesce(excluded.analysis_data, call_records.analysis_data),
                 metadata_json = coalesce(excluded.metadata_json, call_records.metadata_json),
                 call_end_time = coalesce(?9, call_records.call_end_time, excluded.call_end_time),
                 transcript_json = coalesce(excluded.transcript_json, call_records.transcript_json),
                 recorded_at = coalesce(call_records.recorded_at, excluded.recorded_at),
                 recorded_by = excluded.recorded_by,
                 tries = call_records.tries + (excluded.recorded_at IS NULL AND excluded.recorded_by = 'poll'),
                 due_at = CASE WHEN call_records.recorded_at IS NULL THEN excluded.due_at END,
                 last_error = NULL",
        )?
        .execute(params![
            put.call.as_str(),
            found.transcript_summary,
            found.call_duration_seconds,
            found.cost,
            found.cost_unit,
            found.call_successful,
            json(&found.analysis_data)?,
            json(&found.metadata_json)?,
            found.call_end_time,
            json(&found.transcript_json)?,
            put.complete.then_some(put.at_ms),
            put.by,
            put.due_at.filter(|_| !put.complete),
            found.cost_fiat,
        ])?;
    match (written, put.complete && !was_complete) {
        (0, _) => Ok(Put::NoCall),
        (_, false) => Ok(Put::Kept),
        (_, true) => {
            if put.tell
                && let Some(record) = calls_write::one(c, &put.call)?
            {
                tell(c, [told::recorded(&record, found, put.at_ms)])?;
            }
            Ok(Put::Complete)
        }
    }
}

#[async_trait]
impl Records for SqliteStore {
    async fn put_post_call(&self, post_call: PutPostCall) -> Result<Put> {
        self.writer.run(move |c| put(c, &post_call)).await
    }

    async fn post_call(&self, call: &CallId) -> Result<Option<StoredPostCall>> {
        let row = sqlx::query("SELECT * FROM call_records WHERE call_id = $1");
        let row = row.bind(call.as_str()).fetch_optional(&self.readers).await?;
        row.as_ref().map(post_call).transpose().map_err(Into::into)
    }

    async fn unrecorded(&self, after_ms: UnixMs, until_ms: UnixMs, limit: u32) -> Result<Vec<(CallId, UnixMs)>> {
        let rows = sqlx::query(
            "SELECT c.id, c.ended_at FROM calls c LEFT JOIN call_records r ON r.call_id = c.id
             WHERE c.phase = 'ended' AND c.ended_at > $1 AND c.ended_at <= $2 AND r.call_id IS NULL
             AND c.outcome NOT IN ($3, $4) ORDER BY c.ended_at, c.id LIMIT $5",
        );
        let rows = rows.bind(after_ms).bind(until_ms).bind(WITHOUT_RECORD[0]).bind(WITHOUT_RECORD[1]).bind(limit);
        let rows = rows.fetch_all(&self.readers).await?;
        let ended = rows.iter().map(|row| Ok((call_id(row.try_get("id")?)?, row.try_get("ended_at")?)));
        ended.collect::<Sql<_>>().map_err(Into::into)
    }

    async fn expect_post_calls(&self, calls: Vec<CallId>, due_at: UnixMs) -> Result<()> {
        let insert = "INSERT INTO call_records (call_id, due_at) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
        self.writer
            .run(move |c| {
                let mut insert = c.prepare_cached(insert)?;
                calls.iter().try_for_each(|call| insert.execute(params![call.as_str(), due_at]).map(drop))
            })
            .await
    }

    async fn due_post_calls(&self, now_ms: UnixMs, limit: u32) -> Result<Vec<(CallId, u32)>> {
        let rows = sqlx::query("SELECT call_id, tries FROM call_records WHERE due_at <= $1 ORDER BY due_at LIMIT $2");
        let rows = rows.bind(now_ms).bind(limit).fetch_all(&self.readers).await?;
        let due = rows.iter().map(|row| Ok((call_id(row.try_get("call_id")?)?, row.try_get("tries")?)));
        due.collect::<Sql<_>>().map_err(Into::into)
    }

    async fn missed_post_call(&self, call: &CallId, why: &str, due_at: Option<UnixMs>) -> Result<()> {
        let (call, why) = (call.clone(), why.to_owned());
        let sql = "UPDATE call_records SET tries = tries + 1, last_error = ?2, due_at = ?3
             WHERE call_id = ?1 AND recorded_at IS NULL";
        self.writer.run(move |c| c.prepare_cached(sql)?.execute(params![call.as_str(), why, due_at]).map(drop)).await
    }

    async fn hook_came(&self, asked: HookAsked) -> Result<HookCame> {
        let events = ids_json(&asked.events).map_err(|error| super::StoreError::Failed(error.to_string()))?;
        let came = sqlx::query_scalar(
            "SELECT (SELECT max(e.received_at) FROM webhook_events e WHERE e.call_id = c.id AND e.account = $3
                 AND e.event IN (SELECT value FROM json_each($4)))
             FROM (SELECT id, account, outcome, ended_at FROM calls INDEXED BY calls_ended WHERE phase = 'ended'
                 AND ended_at >= $1 AND ended_at <= $2 ORDER BY ended_at DESC LIMIT $7) c
             WHERE c.account = $3 AND c.outcome = $5 ORDER BY c.ended_at DESC LIMIT $6",
        );
        let came = came.bind(asked.since_ms).bind(asked.until_ms).bind(&asked.account).bind(&events);
        let came = came.bind(Outcome::Completed.as_str()).bind(asked.calls).bind(LATEST);
        let came: Vec<Option<UnixMs>> = came.fetch_all(&self.readers).await?;
        Ok(HookCame::new(&came))
    }

    async fn wait_for(&self, event_id: &str, alias: &Alias) -> Result<()> {
        let (event, alias) = (event_id.to_owned(), alias.clone());
        let sql = "UPDATE webhook_events SET waits_kind = ?2, waits_id = ?3 WHERE id = ?1";
        self.writer.run(move |c| c.prepare_cached(sql)?.execute(params![event, alias.kind, alias.id]).map(drop)).await
    }

    async fn found_events(&self, since_ms: UnixMs, limit: u32, reach: &Reach) -> Result<Waiting> {
        let rows = sqlx::query(
            "SELECT e.* FROM webhook_events e INDEXED BY webhook_events_waiting JOIN call_aliases a ON a.kind = e.waits_kind AND a.id = e.waits_id
             WHERE e.waits_id IS NOT NULL AND e.outcome IS NOT NULL AND e.received_at >= $1 AND a.call_id IS NOT NULL
             AND (e.spool = $3 OR (e.spool IS NULL AND $4)) ORDER BY e.received_at, e.id LIMIT $2",
        );
        let rows = rows.bind(since_ms).bind(limit).bind(&reach.spool).bind(reach.record);
        waiting(&rows.fetch_all(&self.readers).await?).map_err(Into::into)
    }

    async fn stop_waiting(&self, before_ms: UnixMs, forget: bool) -> Result<()> {
        let sql =
            "UPDATE webhook_events SET waits_kind = NULL, waits_id = NULL, body = CASE WHEN ?2 THEN NULL ELSE body END
             WHERE waits_id IS NOT NULL AND received_at < ?1";
        self.writer.run(move |c| c.prepare_cached(sql)?.execute(params![before_ms, forget]).map(drop)).await
    }

    async fn event_found(&self, event_id: &str, call: Option<&CallId>, outcome: &str) -> Result<()> {
        let (event, call, outcome) = (event_id.to_owned(), call.cloned(), outcome.to_owned());
        let sql = "UPDATE webhook_events SET waits_kind = NULL, waits_id = NULL, outcome = ?2,
             call_id = coalesce(?3, call_id) WHERE id = ?1";
        self.writer
            .run(move |c| {
                c.prepare_cached(sql)?.execute(params![event, outcome, call.as_ref().map(CallId::as_str)]).map(drop)
            })
            .await
    }
}
