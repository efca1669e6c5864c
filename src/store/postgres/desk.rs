//! What operators see and do.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::{PgConnection, Row as _};

use super::super::rows::{Sql, audit_record, call_id, damaged, event, inbox_event, outbox_delivery};
use super::super::told::EVENT;
use super::super::{AuditRecord, Desk, Inbox, InboxEvent, NewEvent, Outbox, OutboxDelivery, Purged, Result};
use super::retention::{ROWS, forget_calls};
use super::{PostgresStore, query};
use crate::clock::UnixMs;
use crate::ids::CallId;

macro_rules! inbox {
    ($rest:literal) => {
        concat!(
            "SELECT id, account, webhook, event, received_at, path,
                 (body IS NOT NULL OR spool IS NOT NULL) AS has_body, spool, call_id, outcome, tries, due_at, parked_at, error FROM webhook_events ",
            $rest
        )
    };
}

macro_rules! outbox {
    ($rest:literal) => {
        concat!(
            "SELECT id, event_id, call_id, url, own, route, attempts, due_at, done_at, last_error FROM deliveries ",
            $rest
        )
    };
}

async fn list(c: &mut PgConnection, which: Inbox, limit: u32) -> Sql<Vec<InboxEvent>> {
    let sql = match which {
        Inbox::All => inbox!("ORDER BY received_at DESC, id DESC LIMIT $1"),
        Inbox::Unsettled => {
            inbox!("WHERE outcome IS NULL AND parked_at IS NULL ORDER BY received_at DESC, id DESC LIMIT $1")
        }
        Inbox::Parked => inbox!("WHERE parked_at IS NOT NULL ORDER BY received_at DESC, id DESC LIMIT $1"),
    };
    query(sql).bind(i64::from(limit)).fetch_all(c).await?.iter().map(inbox_event).collect()
}

async fn one(c: &mut PgConnection, id: String) -> Sql<Option<InboxEvent>> {
    let row = query(inbox!("WHERE id = $1")).bind(id).fetch_optional(c).await?;
    row.as_ref().map(inbox_event).transpose()
}

async fn stored(c: &mut PgConnection, id: String) -> Sql<Option<NewEvent>> {
    let row = query("SELECT * FROM webhook_events WHERE id = $1").bind(id).fetch_optional(c).await?;
    row.as_ref().map(event).transpose()
}

async fn deliveries(c: &mut PgConnection, which: Outbox, limit: u32) -> Sql<Vec<OutboxDelivery>> {
    let sql = match which {
        Outbox::Pending => outbox!("WHERE done_at IS NULL AND due_at IS NOT NULL ORDER BY seq DESC LIMIT $1"),
        Outbox::GivenUp => outbox!("WHERE done_at IS NULL AND due_at IS NULL ORDER BY seq DESC LIMIT $1"),
    };
    query(sql).bind(i64::from(limit)).fetch_all(c).await?.iter().map(outbox_delivery).collect()
}

async fn deliveries_of(c: &mut PgConnection, event_id: String) -> Sql<Vec<OutboxDelivery>> {
    let rows = query(outbox!("WHERE event_id = $1 ORDER BY seq")).bind(event_id).fetch_all(c).await?;
    rows.iter().map(outbox_delivery).collect()
}

async fn begin_try(c: &mut PgConnection, event_id: String) -> Sql<u32> {
    let row = query("UPDATE webhook_events SET tries = tries + 1 WHERE id = $1 RETURNING tries").bind(event_id);
    row.fetch_one(c).await?.try_get::<i64, _>("tries")?.try_into().map_err(damaged)
}

async fn failed_try(
    c: &mut PgConnection,
    event_id: String,
    why: String,
    due_at: Option<UnixMs>,
    now_ms: UnixMs,
) -> Sql<()> {
    query("UPDATE webhook_events SET error = $2, due_at = $3, parked_at = $4 WHERE id = $1 AND outcome IS NULL")
        .bind(event_id)
        .bind(why)
        .bind(due_at)
        .bind(due_at.is_none().then_some(now_ms))
        .execute(c)
        .await
        .map(drop)
}

async fn reopen(c: &mut PgConnection, event_id: String) -> Sql<bool> {
    let done = query(
        "UPDATE webhook_events SET outcome = NULL, tries = 0, due_at = NULL, parked_at = NULL, error = NULL
         WHERE id = $1 AND (body IS NOT NULL OR spool IS NOT NULL)",
    );
    Ok(done.bind(event_id).execute(c).await?.rows_affected() > 0)
}

async fn redeliver(c: &mut PgConnection, event_id: String, at_ms: UnixMs) -> Sql<u64> {
    let done = query(
        "UPDATE deliveries SET done_at = NULL, due_at = $2, attempts = 0, taken_until = NULL, last_error = NULL
         WHERE event_id = $1 AND (body IS NOT NULL OR spool IS NOT NULL)",
    );
    Ok(done.bind(event_id).bind(at_ms).execute(c).await?.rows_affected())
}

async fn forget_body(c: &mut PgConnection, event_id: String) -> Sql<()> {
    let event = "UPDATE webhook_events SET body = NULL WHERE id = $1 AND outcome IS NOT NULL AND waits_id IS NULL";
    query(event).bind(&event_id).execute(&mut *c).await?;
    let deliveries = "UPDATE deliveries SET body = NULL WHERE event_id = $1 AND done_at IS NOT NULL";
    query(deliveries).bind(&event_id).execute(c).await.map(drop)
}

async fn respool(c: &mut PgConnection, event_id: String, spool: String) -> Sql<()> {
    let sql = "UPDATE webhook_events SET spool = $2 WHERE id = $1 AND outcome IS NULL";
    query(sql).bind(event_id).bind(spool).execute(c).await.map(drop)
}

async fn unspool(c: &mut PgConnection, event_id: String, spool: String) -> Sql<bool> {
    let gone = query(
        "UPDATE webhook_events SET spool = NULL WHERE id = $1 AND spool = $2 AND outcome IS NOT NULL AND waits_id IS NULL
         AND NOT EXISTS (SELECT 1 FROM deliveries WHERE event_id = $1 AND done_at IS NULL)",
    );
    if gone.bind(&event_id).bind(&spool).execute(&mut *c).await?.rows_affected() > 0 {
        let sql = "UPDATE deliveries SET spool = NULL WHERE event_id = $1";
        query(sql).bind(&event_id).execute(&mut *c).await?;
    }
    let unneeded = query("SELECT 1 FROM webhook_events WHERE id = $1 AND spool IS DISTINCT FROM $2");
    Ok(unneeded.bind(event_id).bind(spool).fetch_optional(c).await?.is_some())
}

async fn strand(c: &mut PgConnection, before_ms: UnixMs, spool: String, why: String, now_ms: UnixMs) -> Sql<u64> {
    let deliveries = query(
        "UPDATE deliveries SET due_at = NULL, taken_until = NULL, last_error = $3
         WHERE spool IS NOT NULL AND spool <> $2 AND done_at IS NULL AND due_at < $1",
    );
    let deliveries = deliveries.bind(before_ms).bind(&spool).bind(&why).execute(&mut *c).await?.rows_affected();
    let events = query(
        "UPDATE webhook_events SET parked_at = $4, due_at = NULL, error = $3
         WHERE spool IS NOT NULL AND spool <> $2 AND outcome IS NULL AND parked_at IS NULL
         AND coalesce(due_at, received_at) < $1",
    );
    let events = events.bind(before_ms).bind(spool).bind(why).bind(now_ms).execute(c).await?.rows_affected();
    Ok(deliveries + events)
}

async fn audit(c: &mut PgConnection, record: AuditRecord) -> Sql<()> {
    let sql = "INSERT INTO audit (id, at, who, what, target, reason, came_from, before_json, after_json)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
    query(sql)
        .bind(record.id)
        .bind(record.at)
        .bind(record.who)
        .bind(record.what)
        .bind(record.target)
        .bind(record.reason)
        .bind(record.from)
        .bind(record.before)
        .bind(record.after)
        .execute(c)
        .await
        .map(drop)
}

async fn latest_audit(c: &mut PgConnection, limit: u32) -> Sql<Vec<AuditRecord>> {
    let rows = query("SELECT * FROM audit ORDER BY at DESC, id DESC LIMIT $1").bind(i64::from(limit));
    rows.fetch_all(c).await?.iter().map(audit_record).collect()
}

/// The next of a business's ended calls, with their ids, records, webhooks and deliveries.
async fn purge_calls(c: &mut PgConnection, business: Arc<str>) -> Sql<Purged> {
    let rows = query("SELECT id FROM calls WHERE business = $1 AND phase = 'ended' LIMIT $2");
    let rows = rows.bind(&*business).bind(i64::from(ROWS)).fetch_all(&mut *c).await?;
    let ids = rows.iter().map(|row| row.try_get("id")).collect::<Sql<Vec<String>>>()?;
    forget_calls(c, &ids, true).await
}

async fn purge_refusals(c: &mut PgConnection, business: Arc<str>) -> Sql<u64> {
    let told = query(
        "DELETE FROM deliveries WHERE event_id IN (SELECT $2 || id FROM refusals WHERE business = $1 ORDER BY id LIMIT $3)",
    );
    told.bind(&*business).bind(EVENT).bind(i64::from(ROWS)).execute(&mut *c).await?;
    let gone =
        query("DELETE FROM refusals WHERE id IN (SELECT id FROM refusals WHERE business = $1 ORDER BY id LIMIT $2)");
    Ok(gone.bind(&*business).bind(i64::from(ROWS)).execute(c).await?.rows_affected())
}

async fn open_of(c: &mut PgConnection, business: Arc<str>) -> Sql<Vec<CallId>> {
    let rows = query("SELECT id FROM calls WHERE business = $1 AND phase <> 'ended' ORDER BY admitted_at, id");
    rows.bind(&*business).fetch_all(c).await?.iter().map(|row| call_id(row.try_get("id")?)).collect()
}

#[async_trait]
impl Desk for PostgresStore {
    async fn inbox(&self, which: Inbox, limit: u32) -> Result<Vec<InboxEvent>> {
        self.db.read(move |c| Box::pin(list(c, which, limit))).await
    }

    async fn inbox_event(&self, id: &str) -> Result<Option<InboxEvent>> {
        let id = id.to_owned();
        self.db.read(move |c| Box::pin(one(c, id.clone()))).await
    }

    async fn stored_event(&self, id: &str) -> Result<Option<NewEvent>> {
        let id = id.to_owned();
        self.db.read(move |c| Box::pin(stored(c, id.clone()))).await
    }

    async fn outbox(&self, which: Outbox, limit: u32) -> Result<Vec<OutboxDelivery>> {
        self.db.read(move |c| Box::pin(deliveries(c, which, limit))).await
    }

    async fn deliveries_of(&self, event_id: &str) -> Result<Vec<OutboxDelivery>> {
        let event = event_id.to_owned();
        self.db.read(move |c| Box::pin(deliveries_of(c, event.clone()))).await
    }

    async fn begin_try(&self, event_id: &str) -> Result<u32> {
        let event = event_id.to_owned();
        self.db.write(move |c| Box::pin(begin_try(c, event.clone()))).await
    }

    async fn failed_try(&self, event_id: &str, why: &str, due_at: Option<UnixMs>, now_ms: UnixMs) -> Result<()> {
        let (event, why) = (event_id.to_owned(), why.to_owned());
        self.db.write(move |c| Box::pin(failed_try(c, event.clone(), why.clone(), due_at, now_ms))).await
    }

    async fn reopen(&self, event_id: &str) -> Result<bool> {
        let event = event_id.to_owned();
        self.db.write(move |c| Box::pin(reopen(c, event.clone()))).await
    }

    async fn redeliver(&self, event_id: &str, at_ms: UnixMs) -> Result<u64> {
        let event = event_id.to_owned();
        self.db.write(move |c| Box::pin(redeliver(c, event.clone(), at_ms))).await
    }

    async fn forget_body(&self, event_id: &str) -> Result<()> {
        let event = event_id.to_owned();
        self.db.write(move |c| Box::pin(forget_body(c, event.clone()))).await
    }

    async fn respool(&self, event_id: &str, spool: &str) -> Result<()> {
        let (event, spool) = (event_id.to_owned(), spool.to_owned());
        self.db.write(move |c| Box::pin(respool(c, event.clone(), spool.clone()))).await
    }

    async fn unspool(&self, event_id: &str, spool: &str) -> Result<bool> {
        let (event, spool) = (event_id.to_owned(), spool.to_owned());
        self.db.write(move |c| Box::pin(unspool(c, event.clone(), spool.clone()))).await
    }

    async fn strand(&self, before_ms: UnixMs, spool: &str, why: &str, now_ms: UnixMs) -> Result<u64> {
        let (spool, why) = (spool.to_owned(), why.to_owned());
        self.db.write(move |c| Box::pin(strand(c, before_ms, spool.clone(), why.clone(), now_ms))).await
    }

    async fn audit(&self, record: AuditRecord) -> Result<()> {
        self.db.write(move |c| Box::pin(audit(c, record.clone()))).await
    }

    async fn latest_audit(&self, limit: u32) -> Result<Vec<AuditRecord>> {
        self.db.read(move |c| Box::pin(latest_audit(c, limit))).await
    }

    async fn purge_business(&self, business: &str) -> Result<Purged> {
        let (business, mut all): (Arc<str>, _) = (business.into(), Purged::default());
        loop {
            let of = business.clone();
            let gone = self.db.write(move |c| Box::pin(purge_calls(c, of.clone()))).await?;
            all.calls += gone.calls;
            all.events += gone.events;
            all.deliveries += gone.deliveries;
            if gone.calls < ROWS.into() {
                break;
            }
        }
        loop {
            let of = business.clone();
            let rows = self.db.write(move |c| Box::pin(purge_refusals(c, of.clone()))).await?;
            all.refusals += rows;
            if rows < ROWS.into() {
                break;
            }
        }
        all.open = self.db.read(move |c| Box::pin(open_of(c, business.clone()))).await?;
        Ok(all)
    }
}
