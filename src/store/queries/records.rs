//! Post-call records, and webhooks that wait for their call.

use super::super::EventOutcome;
use async_trait::async_trait;
use futures_util::FutureExt as _;

use super::super::app_events::{self, WITHOUT_RECORD};
use super::super::driver::{Backend, Driver, Sql, binds};
use super::super::records::LATEST;
use super::super::rows::{call_id, post_call, waiting};
use super::super::{
    AppNotice, ExpiredBody, PutOutcome, PutPostCall, Reach, Records, Result, StoredPostCall, UnsettledEvents,
    WebhookHealth, WebhookHealthQuery,
};
use super::messages::add_app_events;
use super::{calls, run_jobs, to_json};
use crate::call::Outcome;
use crate::clock::UnixMs;
use crate::ids::{Alias, CallId};

async fn put(c: &mut dyn Driver, put: &PutPostCall) -> Sql<PutOutcome> {
    // Of two concurrent reports of one call only one completes it.
    c.lock_calls(&[put.call.as_str()]).await?;
    let before = "SELECT 1 FROM call_records WHERE call_id = $1 AND recorded_at IS NOT NULL";
    let was_complete = !c.fetch(before, &binds![put.call.as_str()]).await?.is_empty();
    let found = &put.found;
    let json = |value: &Option<serde_json::Value>| value.as_ref().map(to_json).transpose();
    let written = c
        .execute(
            "INSERT INTO call_records (call_id, transcript_summary, call_duration_seconds, cost, cost_unit, call_successful,
                 analysis_data, metadata_json, call_end_time, transcript_json, recorded_at, recorded_by, due_at, cost_fiat, answered_by)
             SELECT id, $2, $3, $4, $5, $6, $7, $8, coalesce($9, ended_at), $10, $11, $12, $13, $14, $15 FROM calls WHERE id = $1
             ON CONFLICT (call_id) DO UPDATE SET
                 transcript_summary = coalesce(excluded.transcript_summary, call_records.transcript_summary),
                 call_duration_seconds = coalesce(excluded.call_duration_seconds, call_records.call_duration_seconds),
                 cost = coalesce(excluded.cost, call_records.cost),
                 cost_unit = coalesce(excluded.cost_unit, call_records.cost_unit),
                 cost_fiat = coalesce(excluded.cost_fiat, call_records.cost_fiat),
                 call_successful = coalesce(excluded.call_successful, call_records.call_successful),
                 answered_by = CASE WHEN excluded.answered_by = 'unknown' THEN coalesce(call_records.answered_by, 'unknown')
                     ELSE coalesce(excluded.answered_by, call_records.answered_by) END,
                 analysis_data = coalesce(excluded.analysis_data, call_records.analysis_data),
                 metadata_json = coalesce(excluded.metadata_json, call_records.metadata_json),
                 call_end_time = coalesce($9, call_records.call_end_time, excluded.call_end_time),
                 transcript_json = coalesce(excluded.transcript_json, call_records.transcript_json),
                 recorded_at = coalesce(call_records.recorded_at, excluded.recorded_at),
                 recorded_by = excluded.recorded_by,
                 tries = call_records.tries
                     + CASE WHEN excluded.recorded_at IS NULL AND excluded.recorded_by = 'poll' THEN 1 ELSE 0 END,
                 due_at = CASE WHEN call_records.recorded_at IS NULL THEN excluded.due_at END,
                 last_error = NULL",
            &binds![
                put.call.as_str(),
                &found.transcript_summary,
                found.call_duration_seconds,
                found.cost,
                &found.cost_unit,
                found.call_successful,
                json(&found.analysis_data)?,
                json(&found.metadata_json)?,
                found.call_end_time,
                json(&found.transcript_json)?,
                put.complete.then_some(put.at_ms),
                put.by,
                put.due_at.filter(|_| !put.complete),
                found.cost_fiat,
                found.answered_by.map(|by| by.as_str()),
            ],
        )
        .await?;
    if written > 0 && (put.complete || found.answered_by.is_some()) {
        run_jobs::apply_call_record(c, &put.call, put.at_ms).await?;
    }
    match (written, put.complete && !was_complete) {
        (0, _) => Ok(PutOutcome::NoCall),
        (_, false) => Ok(PutOutcome::Kept),
        (_, true) => {
            if put.notice == AppNotice::Send
                && let Some(record) = calls::find(c, &put.call).await?
            {
                add_app_events(c, &[app_events::recorded(&record, found, put.at_ms)]).await?;
            }
            Ok(PutOutcome::Complete)
        }
    }
}

async fn expect(c: &mut dyn Driver, calls: &[CallId], due_at: UnixMs) -> Sql<()> {
    let sql = "INSERT INTO call_records (call_id, due_at) VALUES {rows} ON CONFLICT DO NOTHING";
    let rows = calls.iter().map(|call| Vec::from(binds![call.as_str(), due_at]));
    c.execute_all(sql, rows.collect()).await.map(drop)
}

#[async_trait]
impl<B: Backend> Records for B {
    async fn put_post_call(&self, post_call: PutPostCall) -> Result<PutOutcome> {
        self.settle_doubt(&post_call.call).await?;
        self.write(post_call, |c, post_call| put(c, post_call).boxed()).await
    }

    async fn post_call(&self, call: &CallId) -> Result<Option<StoredPostCall>> {
        let sql = "SELECT * FROM call_records WHERE call_id = $1";
        Ok(self.select(sql, binds![call.to_string()].into(), post_call).await?.pop())
    }

    async fn unrecorded(&self, after_ms: UnixMs, until_ms: UnixMs, limit: u32) -> Result<Vec<(CallId, UnixMs)>> {
        let sql = "SELECT c.id, c.ended_at FROM calls c LEFT JOIN call_records r ON r.call_id = c.id
             WHERE c.phase = 'ended' AND c.ended_at > $1 AND c.ended_at <= $2 AND r.call_id IS NULL
             AND c.outcome <> ALL($3) ORDER BY c.ended_at, c.id LIMIT $4";
        let without = WITHOUT_RECORD.map(str::to_owned).to_vec();
        self.select(sql, binds![after_ms, until_ms, without, limit].into(), |row| {
            Ok((call_id(row.str("id")?)?, row.number("ended_at")?))
        })
        .await
    }

    async fn expect_post_calls(&self, calls: Vec<CallId>, due_at: UnixMs) -> Result<()> {
        self.write(calls, move |c, calls| expect(c, calls, due_at).boxed()).await
    }

    async fn due_post_calls(&self, now_ms: UnixMs, limit: u32) -> Result<Vec<(CallId, u32)>> {
        let sql = "SELECT call_id, tries FROM call_records WHERE due_at <= $1 ORDER BY due_at LIMIT $2";
        self.select(sql, binds![now_ms, limit].into(), |row| Ok((call_id(row.str("call_id")?)?, row.count("tries")?)))
            .await
    }

    async fn record_failed_fetch(&self, call: &CallId, why: &str, due_at: Option<UnixMs>) -> Result<()> {
        let sql = "UPDATE call_records SET tries = tries + 1, last_error = $2, due_at = $3
             WHERE call_id = $1 AND recorded_at IS NULL";
        self.run(sql, binds![call.to_string(), why.to_owned(), due_at].into()).await.map(drop)
    }

    async fn webhook_health(&self, asked: WebhookHealthQuery) -> Result<WebhookHealth> {
        let sql = "SELECT (SELECT max(e.received_at) FROM webhook_events e WHERE e.call_id = c.id AND e.account = $3
                 AND e.event = ANY($4)) AS came
             FROM (SELECT id, account, outcome, ended_at FROM calls /*+ INDEXED BY calls_ended */ WHERE phase = 'ended'
                 AND ended_at >= $1 AND ended_at <= $2 ORDER BY ended_at DESC LIMIT $7) c
             WHERE c.account = $3 AND c.outcome = $5 ORDER BY c.ended_at DESC LIMIT $6";
        let completed = Outcome::Completed.as_str();
        let asked = binds![asked.since_ms, asked.until_ms, asked.account, asked.events, completed, asked.calls, LATEST];
        Ok(WebhookHealth::new(&self.select(sql, asked.into(), |row| row.optional_number("came")).await?))
    }

    async fn defer_until_known(&self, event_id: &str, alias: &Alias) -> Result<()> {
        let sql = "UPDATE webhook_events SET waits_kind = $2, waits_id = $3 WHERE id = $1";
        self.run(sql, binds![event_id.to_owned(), alias.kind.clone(), alias.id.clone()].into()).await.map(drop)
    }

    async fn found_events(&self, since_ms: UnixMs, limit: u32, reach: &Reach) -> Result<UnsettledEvents> {
        let sql = "SELECT e.* FROM webhook_events e /*+ INDEXED BY webhook_events_waiting */
             JOIN call_aliases a ON a.kind = e.waits_kind AND a.id = e.waits_id
             WHERE e.waits_id IS NOT NULL AND e.outcome IS NOT NULL AND e.received_at >= $1 AND a.call_id IS NOT NULL
             AND (e.spool = $3 OR (e.spool IS NULL AND $4)) ORDER BY e.received_at, e.id LIMIT $2";
        let binds = binds![since_ms, limit, reach.spool.clone(), reach.database];
        self.read(binds, move |c, binds| async move { waiting(&c.fetch(sql, binds).await?) }.boxed()).await
    }

    async fn expire_deferred(&self, before_ms: UnixMs, body: ExpiredBody) -> Result<()> {
        let sql =
            "UPDATE webhook_events SET waits_kind = NULL, waits_id = NULL, body = CASE WHEN $2 THEN NULL ELSE body END
             WHERE waits_id IS NOT NULL AND received_at < $1";
        self.run(sql, binds![before_ms, body == ExpiredBody::Delete].into()).await.map(drop)
    }

    async fn mark_matched(&self, event_id: &str, call: Option<&CallId>, outcome: EventOutcome) -> Result<()> {
        let sql = "UPDATE webhook_events SET waits_kind = NULL, waits_id = NULL, outcome = $2, call_id = coalesce($3, call_id)
             WHERE id = $1";
        let call = call.map(ToString::to_string);
        self.run(sql, binds![event_id.to_owned(), outcome.as_str(), call].into()).await.map(drop)
    }
}
