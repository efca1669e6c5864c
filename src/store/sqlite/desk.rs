//! What operators see and do.

use async_trait::async_trait;
use rusqlite::params;
use sqlx::Row as _;

use super::super::rows::{Sql, audit_record, call_id, event, inbox_event, outbox_delivery};
use super::super::told::EVENT;
use super::super::{AuditRecord, Desk, Inbox, InboxEvent, NewEvent, Outbox, OutboxDelivery, Purged, Result};
use super::SqliteStore;
use super::retention::{ROWS, forget_calls, ids_json};
use crate::clock::UnixMs;
use crate::ids::CallId;

const INBOX: &str =
    "SELECT id, account, webhook, event, received_at, path,
     (body IS NOT NULL OR spool IS NOT NULL) AS has_body, spool, call_id, outcome, tries, due_at, parked_at, error FROM webhook_events";
const OUTBOX: &str =
    "SELECT id, event_id, call_id, url, own, route, attempts, due_at, done_at, last_error FROM deliveries";

#[async_trait]
impl Desk for SqliteStore {
    async fn inbox(&self, which: Inbox, limit: u32) -> Result<Vec<InboxEvent>> {
        let only = match which {
            Inbox::All => "",
            Inbox::Unsettled => "WHERE outcome IS NULL AND parked_at IS NULL",
            Inbox::Parked => "WHERE parked_at IS NOT NULL",
        };
        let sql = format!("{INBOX} {only} ORDER BY received_at DESC, id DESC LIMIT $1");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(limit).fetch_all(&self.readers).await?;
        rows.iter().map(inbox_event).collect::<Sql<_>>().map_err(Into::into)
    }

    async fn inbox_event(&self, id: &str) -> Result<Option<InboxEvent>> {
        let sql = format!("{INBOX} WHERE id = $1");
        let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id).fetch_optional(&self.readers).await?;
        row.as_ref().map(inbox_event).transpose().map_err(Into::into)
    }

    async fn stored_event(&self, id: &str) -> Result<Option<NewEvent>> {
        let row = sqlx::query("SELECT * FROM webhook_events WHERE id = $1").bind(id);
        row.fetch_optional(&self.readers).await?.as_ref().map(event).transpose().map_err(Into::into)
    }

    async fn outbox(&self, which: Outbox, limit: u32) -> Result<Vec<OutboxDelivery>> {
        let only = match which {
            Outbox::Pending => "done_at IS NULL AND due_at IS NOT NULL",
            Outbox::GivenUp => "done_at IS NULL AND due_at IS NULL",
        };
        let sql = format!("{OUTBOX} WHERE {only} ORDER BY rowid DESC LIMIT $1");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(limit).fetch_all(&self.readers).await?;
        rows.iter().map(outbox_delivery).collect::<Sql<_>>().map_err(Into::into)
    }

    async fn deliveries_of(&self, event_id: &str) -> Result<Vec<OutboxDelivery>> {
        let sql = format!("{OUTBOX} WHERE event_id = $1 ORDER BY rowid");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(event_id).fetch_all(&self.readers).await?;
        rows.iter().map(outbox_delivery).collect::<Sql<_>>().map_err(Into::into)
    }

    async fn begin_try(&self, event_id: &str) -> Result<u32> {
        let (event, sql) =
            (event_id.to_owned(), "UPDATE webhook_events SET tries = tries + 1 WHERE id = ?1 RETURNING tries");
        self.writer.run(move |c| c.prepare_cached(sql)?.query_row([event], |row| row.get(0))).await
    }

    async fn failed_try(&self, event_id: &str, why: &str, due_at: Option<UnixMs>, now_ms: UnixMs) -> Result<()> {
        let (event, why) = (event_id.to_owned(), why.to_owned());
        let sql = "UPDATE webhook_events SET error = ?2, due_at = ?3, parked_at = ?4 WHERE id = ?1 AND outcome IS NULL";
        let parked_at = due_at.is_none().then_some(now_ms);
        self.writer.run(move |c| c.prepare_cached(sql)?.execute(params![event, why, due_at, parked_at]).map(drop)).await
    }

    async fn reopen(&self, event_id: &str) -> Result<bool> {
        let event = event_id.to_owned();
        let sql = "UPDATE webhook_events SET outcome = NULL, tries = 0, due_at = NULL, parked_at = NULL, error = NULL
             WHERE id = ?1 AND (body IS NOT NULL OR spool IS NOT NULL)";
        self.writer.run(move |c| Ok(c.prepare_cached(sql)?.execute([event])? > 0)).await
    }

    async fn redeliver(&self, event_id: &str, at_ms: UnixMs) -> Result<u64> {
        let event = event_id.to_owned();
        let sql =
            "UPDATE deliveries SET done_at = NULL, due_at = ?2, attempts = 0, taken_until = NULL, last_error = NULL
             WHERE event_id = ?1 AND (body IS NOT NULL OR spool IS NOT NULL)";
        self.writer.run(move |c| Ok(c.prepare_cached(sql)?.execute(params![event, at_ms])? as u64)).await
    }

    async fn forget_body(&self, event_id: &str) -> Result<()> {
        let event = event_id.to_owned();
        self.writer
            .run(move |c| {
                c.prepare_cached(
                    "UPDATE webhook_events SET body = NULL WHERE id = ?1 AND outcome IS NOT NULL AND waits_id IS NULL",
                )?
                .execute([&event])?;
                c.prepare_cached("UPDATE deliveries SET body = NULL WHERE event_id = ?1 AND done_at IS NOT NULL")?
                    .execute([&event])
                    .map(drop)
            })
            .await
    }

    async fn respool(&self, event_id: &str, spool: &str) -> Result<()> {
        let (event, spool) = (event_id.to_owned(), spool.to_owned());
        let sql = "UPDATE webhook_events SET spool = ?2 WHERE id = ?1 AND outcome IS NULL";
        self.writer.run(move |c| c.prepare_cached(sql)?.execute(params![event, spool]).map(drop)).await
    }

    async fn unspool(&self, event_id: &str, spool: &str) -> Result<bool> {
        let (event, spool) = (event_id.to_owned(), spool.to_owned());
        self.writer
            .run(move |c| {
                let gone = c
                    .prepare_cached(
                        "UPDATE webhook_events SET spool = NULL WHERE id = ?1 AND spool = ?2 AND outcome IS NOT NULL
                         AND waits_id IS NULL
                         AND NOT EXISTS (SELECT 1 FROM deliveries WHERE event_id = ?1 AND done_at IS NULL)",
                    )?
                    .execute([&event, &spool])?;
                if gone > 0 {
                    c.prepare_cached("UPDATE deliveries SET spool = NULL WHERE event_id = ?1")?.execute([&event])?;
                }
                c.prepare_cached("SELECT 1 FROM webhook_events WHERE id = ?1 AND spool IS NOT ?2")?
                    .exists([event, spool])
            })
            .await
    }

    async fn strand(&self, before_ms: UnixMs, spool: &str, why: &str, now_ms: UnixMs) -> Result<u64> {
        let (spool, why) = (spool.to_owned(), why.to_owned());
        self.writer
            .run(move |c| {
                let deliveries = c
                    .prepare_cached(
                        "UPDATE deliveries SET due_at = NULL, taken_until = NULL, last_error = ?3
                         WHERE spool IS NOT NULL AND spool <> ?2 AND done_at IS NULL AND due_at < ?1",
                    )?
                    .execute(params![before_ms, spool, why])?;
                let events = c
                    .prepare_cached(
                        "UPDATE webhook_events SET parked_at = ?4, due_at = NULL, error = ?3
                         WHERE spool IS NOT NULL AND spool <> ?2 AND outcome IS NULL AND parked_at IS NULL
                         AND coalesce(due_at, received_at) < ?1",
                    )?
                    .execute(params![before_ms, spool, why, now_ms])?;
                Ok((deliveries + events) as u64)
            })
            .await
    }

    async fn audit(&self, r: AuditRecord) -> Result<()> {
        let sql = "INSERT INTO audit (id, at, who, what, target, reason, came_from, before_json, after_json)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
        self.writer
            .run(move |c| {
                let values = params![r.id, r.at, r.who, r.what, r.target, r.reason, r.from, r.before, r.after];
                c.prepare_cached(sql)?.execute(values).map(drop)
            })
            .await
    }

    async fn latest_audit(&self, limit: u32) -> Result<Vec<AuditRecord>> {
        let rows = sqlx::query("SELECT * FROM audit ORDER BY at DESC, id DESC LIMIT $1").bind(limit);
        let rows = rows.fetch_all(&self.readers).await?;
        rows.iter().map(audit_record).collect::<Sql<_>>().map_err(Into::into)
    }

    async fn purge_business(&self, business: &str) -> Result<Purged> {
        let mut all = Purged::default();
        loop {
            let some = sqlx::query_scalar("SELECT id FROM calls WHERE business = $1 AND phase = 'ended' LIMIT $2");
            let some: Vec<String> = some.bind(business).bind(ROWS).fetch_all(&self.readers).await?;
            if some.is_empty() {
                break;
            }
            let gone = self.writer.run(move |c| forget_calls(c, &ids_json(&some)?, true)).await?;
            all.calls += gone.calls;
            all.events += gone.events;
            all.deliveries += gone.deliveries;
        }
        loop {
            let business = business.to_owned();
            let told = "DELETE FROM deliveries WHERE event_id IN
                 (SELECT ?3 || id FROM refusals WHERE business = ?1 ORDER BY id LIMIT ?2)";
            let sql =
                "DELETE FROM refusals WHERE id IN (SELECT id FROM refusals WHERE business = ?1 ORDER BY id LIMIT ?2)";
            let rows = self.writer.run(move |c| {
                c.prepare_cached(told)?.execute(params![business, ROWS, EVENT])?;
                c.prepare_cached(sql)?.execute(params![business, ROWS])
            });
            let rows = rows.await?;
            all.refusals += rows as u64;
            if rows < ROWS as usize {
                break;
            }
        }
        let open =
            sqlx::query("SELECT id FROM calls WHERE business = $1 AND phase <> 'ended' ORDER BY admitted_at, id");
        let open = open.bind(business).fetch_all(&self.readers).await?;
        all.open = open.iter().map(|row| call_id(row.try_get("id")?)).collect::<Sql<Vec<CallId>>>()?;
        Ok(all)
    }
}
