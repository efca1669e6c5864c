//! Post-call records, webhooks that wait for their call, and events of our own on their way into the outbox.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::{PgConnection, Row as _};

use super::super::records::LATEST;
use super::super::rows::{Sql, call_id, damaged, post_call, waiting};
use super::super::told::{self, Told, WITHOUT_RECORD};
use super::super::{HookAsked, HookCame, Put, PutPostCall, Reach, Records, Result, StoredPostCall, Waiting};
use super::calls::{self, to_json};
use super::{PostgresStore, lock_call, query};
use crate::call::Outcome;
use crate::clock::UnixMs;
use crate::ids::{Alias, CallId};

/// Puts events of our own into the outbox, in the transaction of what they tell of: one statement, whatever their number.
pub(super) async fn tell(c: &mut PgConnection, all: &[Told]) -> Sql<()> {
    if all.is_empty() {
        return Ok(());
    }
    query(
        "INSERT INTO deliveries (id, event_id, url, method, headers, body, due_at, call_id, own, noted_at)
         SELECT t.id, t.id, '', 'POST', '[]', t.body, t.at, t.call_id, true, t.at
         FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bytea[]) AS t(id, call_id, at, body)",
    )
    .bind(all.iter().map(|told| told.id.as_str()).collect::<Vec<_>>())
    .bind(all.iter().map(|told| told.call.as_deref()).collect::<Vec<_>>())
    .bind(all.iter().map(|told| told.at_ms).collect::<Vec<_>>())
    .bind(all.iter().map(|told| told.body.as_bytes()).collect::<Vec<_>>())
    .execute(c)
    .await
    .map(drop)
}

async fn put(c: &mut PgConnection, put: Arc<PutPostCall>) -> Sql<Put> {
    // Two that tell of one call at once: only one of them completes it.
    lock_call(c, &put.call).await?;
    let before = query("SELECT 1 FROM call_records WHERE call_id = $1 AND recorded_at IS NOT NULL");
    let was_complete = before.bind(put.call.as_str()).fetch_optional(&mut *c).await?.is_some();
    let found = &put.found;
    let json = |value: &Option<serde_json::Value>| value.as_ref().map(to_json).transpose();
    let written = query(
        "INSERT INTO call_records (call_id, transcript_summary, call_duration_seconds, cost, cost_unit, call_successful,
             analysis_data, metadata_json, call_end_time, transcript_json, recorded_at, recorded_by, due_at, cost_fiat)
         SELECT id, $2, $3, $4, $5, $6, $7, $8, coalesce($9, ended_at), $10, $11, $12, $13, $14 FROM calls WHERE id = $1
         ON CONFLICT (call_id) DO UPDATE SET
             transcript_summary = coalesce(excluded.transcript_summary, call_records.transcript_summary),
             call_duration_seconds = coalesce(excluded.call_duration_seconds, call_records.call_duration_seconds),
             cost = coalesce(excluded.cost, call_records.cost),
             cost_unit = coalesce(excluded.cost_unit, call_records.cost_unit),
             cost_fiat = coalesce(excluded.cost_fiat, call_records.cost_fiat),
             call_successful = coalesce(excluded.call_successful, call_records.call_successful),
             analysis_data = coalesce(excluded.analysis_data, call_records.analysis_data),
             metadata_json = coalesce(excluded.metadata_json, call_records.metadata_json),
             call_end_time = coalesce($9, call_records.call_end_time, excluded.call_end_time),
             transcript_json = coalesce(excluded.transcript_json, call_records.transcript_json),
             recorded_at = coalesce(call_records.recorded_at, excluded.recorded_at),
             recorded_by = excluded.recorded_by,
             tries = call_records.tries + (excluded.recorded_at IS NULL AND excluded.recorded_by = 'poll')::int,
             due_at = CASE WHEN call_records.recorded_at IS NULL THEN excluded.due_at END,
             last_error = NULL",
    )
    .bind(put.call.as_str())
    .bind(&found.transcript_summary)
    .bind(found.call_duration_seconds)
    .bind(found.cost)
    .bind(&found.cost_unit)
    .bind(found.call_successful)
    .bind(json(&found.analysis_data)?)
    .bind(json(&found.metadata_json)?)
    .bind(found.call_end_time)
    .bind(json(&found.transcript_json)?)
    .bind(put.complete.then_some(put.at_ms))
    .bind(put.by)
    .bind(put.due_at.filter(|_| !put.complete))
    .bind(found.cost_fiat)
    .execute(&mut *c)
    .await?;
    match (written.rows_affected(), put.complete && !was_complete) {
        (0, _) => Ok(Put::NoCall),
        (_, false) => Ok(Put::Kept),
        (_, true) => {
            if put.tell
                && let Some(record) = calls::one(c, &put.call).await?
            {
                tell(c, &[told::recorded(&record, found, put.at_ms)]).await?;
            }
            Ok(Put::Complete)
        }
    }
}

async fn one(c: &mut PgConnection, call: CallId) -> Sql<Option<StoredPostCall>> {
    let row = query("SELECT * FROM call_records WHERE call_id = $1").bind(call.as_str()).fetch_optional(c).await?;
    row.as_ref().map(post_call).transpose()
}

async fn unrecorded(c: &mut PgConnection, after: UnixMs, until: UnixMs, limit: u32) -> Sql<Vec<(CallId, UnixMs)>> {
    let rows = query(
        "SELECT c.id, c.ended_at FROM calls c LEFT JOIN call_records r ON r.call_id = c.id
         WHERE c.phase = 'ended' AND c.ended_at > $1 AND c.ended_at <= $2 AND r.call_id IS NULL
         AND c.outcome <> ALL($3) ORDER BY c.ended_at, c.id LIMIT $4",
    );
    let rows = rows.bind(after).bind(until).bind(&WITHOUT_RECORD[..]).bind(i64::from(limit)).fetch_all(c).await?;
    rows.iter().map(|row| Ok((call_id(row.try_get("id")?)?, row.try_get("ended_at")?))).collect()
}

async fn expect(c: &mut PgConnection, calls: Arc<[CallId]>, due_at: UnixMs) -> Sql<()> {
    query(
        "INSERT INTO call_records (call_id, due_at) SELECT id, $2 FROM unnest($1::text[]) AS id ON CONFLICT DO NOTHING",
    )
    .bind(calls.iter().map(CallId::as_str).collect::<Vec<_>>())
    .bind(due_at)
    .execute(c)
    .await
    .map(drop)
}

async fn due(c: &mut PgConnection, now_ms: UnixMs, limit: u32) -> Sql<Vec<(CallId, u32)>> {
    let rows = query("SELECT call_id, tries FROM call_records WHERE due_at <= $1 ORDER BY due_at LIMIT $2");
    let rows = rows.bind(now_ms).bind(i64::from(limit)).fetch_all(c).await?;
    let one = |row: &sqlx::postgres::PgRow| {
        let tries: i64 = row.try_get("tries")?;
        Ok((call_id(row.try_get("call_id")?)?, tries.try_into().map_err(damaged)?))
    };
    rows.iter().map(one).collect()
}

async fn missed(c: &mut PgConnection, call: CallId, why: String, due_at: Option<UnixMs>) -> Sql<()> {
    query(
        "UPDATE call_records SET tries = tries + 1, last_error = $2, due_at = $3
         WHERE call_id = $1 AND recorded_at IS NULL",
    )
    .bind(call.as_str())
    .bind(why)
    .bind(due_at)
    .execute(c)
    .await
    .map(drop)
}

async fn hook_came(c: &mut PgConnection, asked: HookAsked) -> Sql<HookCame> {
    let came = query(
        "SELECT (SELECT max(e.received_at) FROM webhook_events e WHERE e.call_id = c.id AND e.account = $3
             AND e.event = ANY($4)) AS came
         FROM (SELECT id, account, outcome, ended_at FROM calls WHERE phase = 'ended'
             AND ended_at >= $1 AND ended_at <= $2 ORDER BY ended_at DESC LIMIT $7) c
         WHERE c.account = $3 AND c.outcome = $5 ORDER BY c.ended_at DESC LIMIT $6",
    );
    let came = came.bind(asked.since_ms).bind(asked.until_ms).bind(&asked.account).bind(&asked.events);
    let came = came.bind(Outcome::Completed.as_str()).bind(i64::from(asked.calls)).bind(i64::from(LATEST));
    let came = came.fetch_all(c).await?;
    let came = came.iter().map(|row| row.try_get("came")).collect::<Sql<Vec<Option<UnixMs>>>>()?;
    Ok(HookCame::new(&came))
}

async fn wait_for(c: &mut PgConnection, event_id: String, alias: Alias) -> Sql<()> {
    let sql = "UPDATE webhook_events SET waits_kind = $2, waits_id = $3 WHERE id = $1";
    query(sql).bind(event_id).bind(alias.kind).bind(alias.id).execute(c).await.map(drop)
}

async fn found_events(c: &mut PgConnection, since_ms: UnixMs, limit: u32, reach: Reach) -> Sql<Waiting> {
    let rows = query(
        "SELECT e.* FROM webhook_events e JOIN call_aliases a ON a.kind = e.waits_kind AND a.id = e.waits_id
         WHERE e.waits_id IS NOT NULL AND e.outcome IS NOT NULL AND e.received_at >= $1 AND a.call_id IS NOT NULL
         AND (e.spool = $3 OR (e.spool IS NULL AND $4)) ORDER BY e.received_at, e.id LIMIT $2",
    );
    let rows = rows.bind(since_ms).bind(i64::from(limit)).bind(reach.spool).bind(reach.record);
    waiting(&rows.fetch_all(c).await?)
}

async fn stop_waiting(c: &mut PgConnection, before_ms: UnixMs, forget: bool) -> Sql<()> {
    query(
        "UPDATE webhook_events SET waits_kind = NULL, waits_id = NULL, body = CASE WHEN $2 THEN NULL ELSE body END
         WHERE waits_id IS NOT NULL AND received_at < $1",
    )
    .bind(before_ms)
    .bind(forget)
    .execute(c)
    .await
    .map(drop)
}

async fn event_found(c: &mut PgConnection, event_id: String, call: Option<CallId>, outcome: String) -> Sql<()> {
    query(
        "UPDATE webhook_events SET waits_kind = NULL, waits_id = NULL, outcome = $2, call_id = coalesce($3, call_id)
         WHERE id = $1",
    )
    .bind(event_id)
    .bind(outcome)
    .bind(call.as_ref().map(CallId::as_str))
    .execute(c)
    .await
    .map(drop)
}

#[async_trait]
impl Records for PostgresStore {
    async fn put_post_call(&self, post_call: PutPostCall) -> Result<Put> {
        self.settle_doubt(&post_call.call).await?;
        let post_call = Arc::new(post_call);
        self.db.write(move |c| Box::pin(put(c, post_call.clone()))).await
    }

    async fn post_call(&self, call: &CallId) -> Result<Option<StoredPostCall>> {
        let call = call.clone();
        self.db.read(move |c| Box::pin(one(c, call.clone()))).await
    }

    async fn unrecorded(&self, after_ms: UnixMs, until_ms: UnixMs, limit: u32) -> Result<Vec<(CallId, UnixMs)>> {
        self.db.read(move |c| Box::pin(unrecorded(c, after_ms, until_ms, limit))).await
    }

    async fn expect_post_calls(&self, calls: Vec<CallId>, due_at: UnixMs) -> Result<()> {
        let calls: Arc<[CallId]> = calls.into();
        self.db.write(move |c| Box::pin(expect(c, calls.clone(), due_at))).await
    }

    async fn due_post_calls(&self, now_ms: UnixMs, limit: u32) -> Result<Vec<(CallId, u32)>> {
        self.db.read(move |c| Box::pin(due(c, now_ms, limit))).await
    }

    async fn missed_post_call(&self, call: &CallId, why: &str, due_at: Option<UnixMs>) -> Result<()> {
        let (call, why) = (call.clone(), why.to_owned());
        self.db.write(move |c| Box::pin(missed(c, call.clone(), why.clone(), due_at))).await
    }

    async fn hook_came(&self, asked: HookAsked) -> Result<HookCame> {
        self.db.read(move |c| Box::pin(hook_came(c, asked.clone()))).await
    }

    async fn wait_for(&self, event_id: &str, alias: &Alias) -> Result<()> {
        let (event, alias) = (event_id.to_owned(), alias.clone());
        self.db.write(move |c| Box::pin(wait_for(c, event.clone(), alias.clone()))).await
    }

    async fn found_events(&self, since_ms: UnixMs, limit: u32, reach: &Reach) -> Result<Waiting> {
        self.db.read(move |c| Box::pin(found_events(c, since_ms, limit, reach.clone()))).await
    }

    async fn stop_waiting(&self, before_ms: UnixMs, forget: bool) -> Result<()> {
        self.db.write(move |c| Box::pin(stop_waiting(c, before_ms, forget))).await
    }

    async fn event_found(&self, event_id: &str, call: Option<&CallId>, outcome: &str) -> Result<()> {
        let (event, call, outcome) = (event_id.to_owned(), call.cloned(), outcome.to_owned());
        self.db.write(move |c| Box::pin(event_found(c, event.clone(), call.clone(), outcome.clone()))).await
    }
}
