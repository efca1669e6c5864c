//! Queries and actions of operators.

use async_trait::async_trait;
use futures_util::FutureExt as _;

use super::super::app_events::EVENT;
use super::super::driver::{Backend, Driver, Sql, Value, binds};
use super::super::listing::from_the_top;
use super::super::rows::{audit_record, bypass, call_id, event, inbox_event, outbox_delivery};
use super::super::runs::Runs as _;
use super::super::{
    AuditRecord, Bypass, Cursor, EventFilter, Inbox, InboxEvent, NewEvent, OperatorStore, Outbox, OutboxDelivery,
    ParkReason, Purged, Replayable, Result,
};
use super::first;
use super::retention::{Forget, PURGE_BATCH, forget_calls};
use crate::clock::UnixMs;

macro_rules! inbox {
    ($($rest:literal),+) => {
        concat!(
            "SELECT id, account, webhook, event, received_at, path, (body IS NOT NULL OR spool IS NOT NULL) AS has_body, spool,
                 call_id, outcome, tries, due_at, parked_at, park_reason, error FROM webhook_events ",
            $($rest),+
        )
    };
}

macro_rules! outbox {
    ($($rest:literal),+) => {
        concat!(
            "SELECT id, event_id, call_id, url, own, route, attempts, due_at, done_at, last_error, park_reason,
                 (SELECT account FROM webhook_events e WHERE e.id = deliveries.event_id) AS account,
                 coalesce((SELECT received_at FROM webhook_events e WHERE e.id = deliveries.event_id), noted_at) AS received_at
             FROM deliveries ",
            $($rest),+
        )
    };
}

/// A page of the inbox, the latest first; of these rows.
macro_rules! inbox_page {
    ($rows:literal) => {
        inbox!(
            $rows,
            " AND ($2 = '' OR account = $2) AND ($3 = '' OR event = $3) AND ($4 = '' OR call_id = $4)
             AND ($5 = '' OR EXISTS (SELECT 1 FROM calls c WHERE c.id = webhook_events.call_id AND c.business = $5))
             AND received_at >= $6 AND received_at < $7 AND (received_at, id) < ($8, $9)
             ORDER BY received_at DESC, id DESC LIMIT $1"
        )
    };
}

/// The latest deliveries, of these rows.
macro_rules! outbox_page {
    ($rows:literal) => {
        outbox!(
            $rows,
            " AND ($2 = '' OR EXISTS (SELECT 1 FROM webhook_events e WHERE e.id = deliveries.event_id AND e.account = $2))
             AND ($3 = '' OR EXISTS (SELECT 1 FROM webhook_events e WHERE e.id = deliveries.event_id AND e.event = $3))
             AND ($4 = '' OR call_id = $4)
             AND ($5 = '' OR EXISTS (SELECT 1 FROM calls c WHERE c.id = deliveries.call_id AND c.business = $5))
             AND coalesce((SELECT received_at FROM webhook_events e WHERE e.id = deliveries.event_id), noted_at, 0) >= $6
             AND coalesce((SELECT received_at FROM webhook_events e WHERE e.id = deliveries.event_id), noted_at, 0) < $7
             ORDER BY seq DESC LIMIT $1"
        )
    };
}

/// Selects the replayable events, as `found`: of webhooks that are parked ($1), settled ($2) or have a delivery that was given up
/// ($3).
macro_rules! replayable {
    ($columns:literal, $rest:literal) => {
        concat!(
            "SELECT ",
            $columns,
            " FROM (
                SELECT e.received_at AS at, e.id AS id FROM webhook_events e
                WHERE (($1 AND e.parked_at IS NOT NULL)
                    OR ($2 AND e.outcome IS NOT NULL AND (e.body IS NOT NULL OR e.spool IS NOT NULL))
                    OR ($3 AND EXISTS (SELECT 1 FROM deliveries d
                        WHERE d.event_id = e.id AND d.done_at IS NULL AND d.due_at IS NULL)))
                AND ($4 = '' OR e.account = $4) AND ($5 = '' OR e.event = $5) AND ($6 = '' OR e.call_id = $6)
                AND ($7 = '' OR EXISTS (SELECT 1 FROM calls c WHERE c.id = e.call_id AND c.business = $7))
                UNION
                SELECT coalesce(d.noted_at, 0) AS at, d.event_id AS id FROM deliveries d
                WHERE $3 AND d.own AND d.done_at IS NULL AND d.due_at IS NULL AND $4 = '' AND $5 = ''
                AND ($6 = '' OR d.call_id = $6)
                AND ($7 = '' OR EXISTS (SELECT 1 FROM calls c WHERE c.id = d.call_id AND c.business = $7))
             ) found WHERE at >= $8 AND at < $9 ",
            $rest
        )
    };
}

/// Returns the arguments of [`replayable`].
fn replay_binds(which: Replayable, filter: &EventFilter) -> Vec<Value<'static>> {
    let f = filter.clone();
    let parked = matches!(which, Replayable::Failed | Replayable::Parked);
    let given_up = matches!(which, Replayable::Failed | Replayable::GivenUp);
    let (from, before) = (f.from_ms.unwrap_or(UnixMs::MIN), f.before_ms.unwrap_or(UnixMs::MAX));
    let (account, event) = (f.account.unwrap_or_default(), f.event.unwrap_or_default());
    let (call, business) = (f.call.unwrap_or_default(), f.business.unwrap_or_default());
    binds![parked, which == Replayable::Settled, given_up, account, event, call, business, from, before].into()
}

/// Returns the arguments of [`outbox_page`], and of [`inbox_page`] but for the place.
fn page_binds(filter: &EventFilter, limit: u32) -> Vec<Value<'static>> {
    let f = filter.clone();
    let (from, before) = (f.from_ms.unwrap_or(UnixMs::MIN), f.before_ms.unwrap_or(UnixMs::MAX));
    let (account, event) = (f.account.unwrap_or_default(), f.event.unwrap_or_default());
    let (call, business) = (f.call.unwrap_or_default(), f.business.unwrap_or_default());
    binds![limit, account, event, call, business, from, before].into()
}

/// Whether a spooled file is no longer needed.
async fn clear_spool(c: &mut dyn Driver, event_id: &str, spool: &str) -> Sql<bool> {
    let gone = "UPDATE webhook_events SET spool = NULL WHERE id = $1 AND spool = $2 AND outcome IS NOT NULL AND waits_id IS NULL
         AND NOT EXISTS (SELECT 1 FROM deliveries WHERE event_id = $1 AND done_at IS NULL)";
    if c.execute(gone, &binds![event_id, spool]).await? > 0 {
        c.execute("UPDATE deliveries SET spool = NULL WHERE event_id = $1", &binds![event_id]).await?;
    }
    // The webhook may be in another replica's spool by now, while its delivery is in this one.
    let unneeded = "SELECT 1 FROM webhook_events WHERE id = $1 AND spool IS DISTINCT FROM $2
         AND NOT EXISTS (SELECT 1 FROM deliveries WHERE event_id = $1 AND spool = $2 AND done_at IS NULL)";
    Ok(!c.fetch(unneeded, &binds![event_id, spool]).await?.is_empty())
}

async fn park_unreachable(c: &mut dyn Driver, before_ms: UnixMs, spool: &str, why: &str, now_ms: UnixMs) -> Sql<u64> {
    let reason = ParkReason::SpoolUnreachable.as_str();
    let deliveries = "UPDATE deliveries SET due_at = NULL, taken_until = NULL, last_error = $3, park_reason = $4
         WHERE spool IS NOT NULL AND spool <> $2 AND done_at IS NULL AND due_at < $1";
    let deliveries = c.execute(deliveries, &binds![before_ms, spool, why, reason]).await?;
    let events = "UPDATE webhook_events SET parked_at = $5, due_at = NULL, error = $3, park_reason = $4
         WHERE spool IS NOT NULL AND spool <> $2 AND outcome IS NULL AND parked_at IS NULL
         AND coalesce(due_at, received_at) < $1";
    Ok(deliveries + c.execute(events, &binds![before_ms, spool, why, reason, now_ms]).await?)
}

async fn purge_rejections(c: &mut dyn Driver, business: &str) -> Sql<u64> {
    let told = "DELETE FROM deliveries WHERE event_id IN
         (SELECT $3 || id FROM refusals WHERE business = $1 ORDER BY id LIMIT $2)";
    c.execute(told, &binds![business, PURGE_BATCH, EVENT]).await?;
    let gone = "DELETE FROM refusals WHERE id IN (SELECT id FROM refusals WHERE business = $1 ORDER BY id LIMIT $2)";
    c.execute(gone, &binds![business, PURGE_BATCH]).await
}

#[async_trait]
impl<B: Backend> OperatorStore for B {
    async fn inbox(&self, which: Inbox, filter: &EventFilter, limit: u32) -> Result<Vec<InboxEvent>> {
        let sql = match which {
            Inbox::All => inbox_page!("WHERE 1 = 1"),
            Inbox::Unsettled => {
                inbox_page!("/*+ INDEXED BY webhook_events_unsettled */ WHERE outcome IS NULL AND parked_at IS NULL")
            }
            Inbox::Open => inbox_page!("WHERE outcome IS NULL"),
            Inbox::Settled => inbox_page!("WHERE outcome IS NOT NULL"),
            Inbox::Parked => inbox_page!("/*+ INDEXED BY webhook_events_parked */ WHERE parked_at IS NOT NULL"),
        };
        let mut binds = page_binds(filter, limit);
        let (at, id) = from_the_top(filter.after.clone());
        binds.extend(binds![at, id]);
        self.select(sql, binds, inbox_event).await
    }

    async fn parked(&self) -> Result<u64> {
        let sql = "SELECT count(*) AS parked FROM webhook_events WHERE parked_at IS NOT NULL";
        let counted = self.select(sql, vec![], |row| row.number("parked")).await?;
        Ok(counted.first().and_then(|n| u64::try_from(*n).ok()).unwrap_or_default())
    }

    async fn inbox_event(&self, id: &str) -> Result<Option<InboxEvent>> {
        Ok(self.select(inbox!("WHERE id = $1"), binds![id.to_owned()].into(), inbox_event).await?.pop())
    }

    async fn stored_event(&self, id: &str) -> Result<Option<NewEvent>> {
        let sql = "SELECT * FROM webhook_events WHERE id = $1";
        Ok(self.select(sql, binds![id.to_owned()].into(), event).await?.pop())
    }

    async fn outbox(&self, which: Outbox, filter: &EventFilter, limit: u32) -> Result<Vec<OutboxDelivery>> {
        let sql = match which {
            Outbox::Pending => outbox_page!("WHERE done_at IS NULL AND due_at IS NOT NULL"),
            Outbox::GivenUp => outbox_page!("WHERE done_at IS NULL AND due_at IS NULL"),
        };
        self.select(sql, page_binds(filter, limit), outbox_delivery).await
    }

    async fn replayable(&self, which: Replayable, filter: &EventFilter, limit: u32) -> Result<Vec<Cursor>> {
        let sql = replayable!("at, id", "AND (at, id) > ($10, $11) ORDER BY at, id LIMIT $12");
        let mut binds = replay_binds(which, filter);
        let (at, id) = filter.after.clone().unwrap_or((UnixMs::MIN, String::new()));
        binds.extend(binds![at, id, limit]);
        self.select(sql, binds, |row| Ok((row.number("at")?, row.text("id")?))).await
    }

    async fn count_replayable(&self, which: Replayable, filter: &EventFilter) -> Result<u64> {
        let sql = replayable!("count(*) AS n", "");
        let counted = self.select(sql, replay_binds(which, filter), |row| row.number("n")).await?;
        Ok(counted.first().map_or(0, |n| n.unsigned_abs()))
    }

    async fn deliveries_of(&self, event_id: &str) -> Result<Vec<OutboxDelivery>> {
        let sql = outbox!("WHERE event_id = $1 ORDER BY seq");
        self.select(sql, binds![event_id.to_owned()].into(), outbox_delivery).await
    }

    async fn count_try(&self, event_id: &str) -> Result<u32> {
        let sql = "UPDATE webhook_events SET tries = tries + 1 WHERE id = $1 RETURNING tries";
        let binds = binds![event_id.to_owned()];
        self.write(binds, move |c, binds| async move { first(c.fetch(sql, binds).await?)?.count("tries") }.boxed())
            .await
    }

    async fn record_failed_try(&self, event_id: &str, why: &str, due_at: Option<UnixMs>, now_ms: UnixMs) -> Result<()> {
        let sql = "UPDATE webhook_events SET error = $2, due_at = $3, parked_at = $4, park_reason = $5
             WHERE id = $1 AND outcome IS NULL";
        let parked_at = due_at.is_none().then_some(now_ms);
        let reason = parked_at.map(|_| ParkReason::Failed.as_str());
        self.run(sql, binds![event_id.to_owned(), why.to_owned(), due_at, parked_at, reason].into()).await.map(drop)
    }

    async fn reopen(&self, event_id: &str) -> Result<bool> {
        let sql = "UPDATE webhook_events SET outcome = NULL, tries = 0, due_at = NULL, parked_at = NULL, park_reason = NULL, error = NULL
             WHERE id = $1 AND (body IS NOT NULL OR spool IS NOT NULL)";
        Ok(self.run(sql, binds![event_id.to_owned()].into()).await? > 0)
    }

    async fn redeliver(&self, event_id: &str, at_ms: UnixMs) -> Result<u64> {
        let sql =
            "UPDATE deliveries SET done_at = NULL, due_at = $2, attempts = 0, taken_until = NULL, last_error = NULL, park_reason = NULL
             WHERE event_id = $1 AND (body IS NOT NULL OR spool IS NOT NULL)";
        self.run(sql, binds![event_id.to_owned(), at_ms].into()).await
    }

    async fn delete_body(&self, event_id: &str) -> Result<()> {
        let event = "UPDATE webhook_events SET body = NULL WHERE id = $1 AND outcome IS NOT NULL AND waits_id IS NULL";
        let deliveries = "UPDATE deliveries SET body = NULL WHERE event_id = $1 AND done_at IS NOT NULL";
        let binds = binds![event_id.to_owned()];
        let forget = self.write(binds, move |c, binds| {
            async move {
                c.execute(event, binds).await?;
                c.execute(deliveries, binds).await.map(drop)
            }
            .boxed()
        });
        forget.await
    }

    async fn set_spool(&self, event_id: &str, spool: &str) -> Result<()> {
        let sql = "UPDATE webhook_events SET spool = $2 WHERE id = $1 AND outcome IS NULL";
        self.run(sql, binds![event_id.to_owned(), spool.to_owned()].into()).await.map(drop)
    }

    async fn clear_spool(&self, event_id: &str, spool: &str) -> Result<bool> {
        let of = (event_id.to_owned(), spool.to_owned());
        self.write(of, |c, (event, spool)| clear_spool(c, event, spool).boxed()).await
    }

    async fn park_unreachable(&self, before_ms: UnixMs, spool: &str, why: &str, now_ms: UnixMs) -> Result<u64> {
        let of = (spool.to_owned(), why.to_owned());
        self.write(of, move |c, (spool, why)| park_unreachable(c, before_ms, spool, why, now_ms).boxed()).await
    }

    async fn audit(&self, r: AuditRecord) -> Result<()> {
        let sql = "INSERT INTO audit (id, at, who, what, target, reason, came_from, before_json, after_json)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
        let binds = binds![r.id, r.at, r.who, r.what, r.target, r.reason, r.from, r.before, r.after];
        self.run(sql, binds.into()).await.map(drop)
    }

    async fn set_bypass(&self, bypass: Option<Bypass>) -> Result<()> {
        let Some(bypass) = bypass else {
            return self.run("DELETE FROM bypass WHERE pool = 'default'", vec![]).await.map(drop);
        };
        let sql = "INSERT INTO bypass (pool, since_ms, until_ms, who, reason) VALUES ('default', $1, $2, $3, $4)
             ON CONFLICT (pool) DO UPDATE SET since_ms = excluded.since_ms, until_ms = excluded.until_ms,
                 who = excluded.who, reason = excluded.reason";
        let binds = binds![bypass.since_ms, bypass.until_ms, bypass.who, bypass.reason];
        self.run(sql, binds.into()).await.map(drop)
    }

    async fn bypass(&self) -> Result<Option<Bypass>> {
        Ok(self.select("SELECT * FROM bypass WHERE pool = 'default'", vec![], bypass).await?.pop())
    }

    async fn latest_audit(&self, limit: u32) -> Result<Vec<AuditRecord>> {
        self.select("SELECT * FROM audit ORDER BY at DESC, id DESC LIMIT $1", binds![limit].into(), audit_record).await
    }

    async fn purge_business(&self, business: &str) -> Result<Purged> {
        let (of, mut all) = (business.to_owned(), Purged::default());
        loop {
            let sql = "SELECT id FROM calls WHERE business = $1 AND phase = 'ended' LIMIT $2";
            let some = self.select(sql, binds![of.clone(), PURGE_BATCH].into(), |row| row.text("id")).await?;
            if some.is_empty() {
                break;
            }
            let gone = self.write(some, |c, ids| forget_calls(c, ids, Forget::Everything).boxed()).await?;
            all.calls += gone.calls;
            all.events += gone.events;
            all.deliveries += gone.deliveries;
        }
        loop {
            let rows = self.write(of.clone(), |c, business| purge_rejections(c, business).boxed()).await?;
            all.rejections += rows;
            if rows < PURGE_BATCH.into() {
                break;
            }
        }
        let runs = "SELECT id FROM runs WHERE business = $1 AND finished_at IS NOT NULL";
        for run in self.select(runs, binds![of.clone()].into(), |row| row.text("id")).await? {
            self.delete_run(&run).await?;
            all.runs += 1;
        }
        let schedules = "DELETE FROM schedules WHERE business = $1";
        all.schedules = self.run(schedules, binds![of.clone()].into()).await?;
        let open = "SELECT id FROM calls WHERE business = $1 AND phase <> 'ended' ORDER BY admitted_at, id";
        all.open = self.select(open, binds![of].into(), |row| call_id(row.str("id")?)).await?;
        Ok(all)
    }
}
