//! The inbox, the outbox, rejections and businesses.

use std::collections::{BTreeMap, BTreeSet};

use super::super::app_events::{self, AppEvent};
use super::super::driver::{Driver, Sql, binds};
use super::super::row::Row;
use super::super::rows::delivery;
use super::super::{
    AppNotice, Delivery, DeliveryOrder, EventOutcome, NewEvent, ParkReason, ReceiveOutcome, RejectionRecord, TAKEN_MS,
};
use super::{first, to_json};
use crate::clock::UnixMs;
use crate::policy::Business;

/// The columns of a new delivery of a webhook.
macro_rules! delivery_columns {
    () => {
        "id, event_id, url, method, headers, body, attempts, due_at, call_id, noted_at, spool, route"
    };
}
pub(in crate::store) use delivery_columns;

pub(in crate::store) async fn receive(c: &mut dyn Driver, event: &NewEvent) -> Sql<ReceiveOutcome> {
    let inserted = c
        .execute(
            "INSERT INTO webhook_events (id, account, webhook, event, dedupe_key, received_at, method, path, headers, body,
                 spool)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT DO NOTHING",
            &binds![
                &event.id,
                &event.account,
                &event.webhook,
                &event.event,
                &event.dedupe_key,
                event.received_at,
                &event.method,
                &event.path,
                to_json(&event.headers)?,
                event.body.as_deref(),
                &event.spool,
            ],
        )
        .await?;
    if inserted == 1 {
        return Ok(ReceiveOutcome::New);
    }
    // Also by its id: its first write may have succeeded.
    let sql = "SELECT id, outcome FROM webhook_events WHERE dedupe_key = $1 OR id = $2 ORDER BY id = $2 LIMIT 1";
    let row = first(c.fetch(sql, &binds![&event.dedupe_key, &event.id]).await?)?;
    Ok(ReceiveOutcome::Before { id: row.text("id")?, outcome: row.optional_str("outcome")?.map(settled_as) })
}

/// A stored outcome. One of a newer version was recorded as well, and that is what a repeated webhook needs to know.
pub(in crate::store) fn settled_as(word: &str) -> EventOutcome {
    word.parse().unwrap_or(EventOutcome::Applied)
}

pub(in crate::store) async fn settle(
    c: &mut dyn Driver,
    event_id: &str,
    call: Option<&str>,
    outcome: EventOutcome,
    delivery: Option<&Delivery>,
    at_ms: UnixMs,
) -> Sql<bool> {
    let sql = "UPDATE webhook_events SET outcome = $2, call_id = coalesce($3, call_id), parked_at = NULL, park_reason = NULL, error = NULL
         WHERE id = $1 AND outcome IS NULL";
    if c.execute(sql, &binds![event_id, outcome.as_str(), call]).await? == 0 {
        return Ok(false);
    }
    let Some(delivery) = delivery else { return Ok(true) };
    // A repeated event was delivered to the app already.
    c.execute(
        concat!(
            "INSERT INTO deliveries (",
            delivery_columns!(),
            ") SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $8, $10, $11
             WHERE NOT EXISTS (SELECT 1 FROM deliveries WHERE event_id = $2)"
        ),
        &binds![
            &delivery.id,
            &delivery.event_id,
            &delivery.url,
            &delivery.method,
            to_json(&delivery.headers)?,
            delivery.spool.is_none().then_some(&delivery.body[..]),
            delivery.attempts,
            at_ms,
            call,
            &delivery.spool,
            delivery.route.as_str(),
        ],
    )
    .await?;
    Ok(true)
}

/// Adds ringfence's own events to the outbox, in the transaction of their fact.
pub(in crate::store) async fn add_app_events(c: &mut dyn Driver, all: &[AppEvent]) -> Sql<()> {
    let sql = "INSERT INTO deliveries (id, event_id, url, method, headers, body, due_at, call_id, own, noted_at) VALUES {rows}";
    let rows = all.iter().map(|told| {
        let id = told.id.as_str();
        let body = told.body.as_bytes();
        Vec::from(binds![id, id, "", "POST", "[]", body, told.at_ms, &told.call, true, told.at_ms])
    });
    c.execute_all(sql, rows.collect()).await.map(drop)
}

/// Claims due deliveries. Concurrent claims get different ones: locked rows are skipped.
pub(super) async fn take(
    c: &mut dyn Driver,
    at_ms: UnixMs,
    limit: u32,
    spool: &str,
    order: DeliveryOrder,
) -> Sql<Vec<Delivery>> {
    let mut rows = c
        .fetch(
            "WITH due AS (SELECT d.seq FROM deliveries d
                 WHERE d.done_at IS NULL AND d.due_at IS NOT NULL AND d.due_at <= $1
                 AND (d.taken_until IS NULL OR d.taken_until <= (extract(epoch FROM clock_timestamp()) * 1000)::bigint)
                 AND (d.spool IS NULL OR d.spool = $4)
                 AND NOT EXISTS (SELECT 1 FROM deliveries e WHERE e.call_id = d.call_id AND e.own = d.own AND e.seq < d.seq
                     AND e.done_at IS NULL AND e.due_at IS NOT NULL AND (e.attempts = 0 OR $5 OR d.own))
                 ORDER BY d.due_at, d.seq LIMIT $2 FOR UPDATE OF d SKIP LOCKED)
             UPDATE deliveries SET taken_until = (extract(epoch FROM clock_timestamp()) * 1000)::bigint + $3
             WHERE seq IN (SELECT seq FROM due)
             RETURNING seq, id, event_id, url, method, headers, body, attempts, due_at, call_id, spool, own, route",
            &binds![at_ms, limit, TAKEN_MS, spool, order == DeliveryOrder::Strict],
        )
        .await?;
    let place = |row: &Row| Sql::Ok((row.number("due_at")?, row.number("seq")?));
    rows.sort_by_cached_key(|row| place(row).ok());
    let mut readable = Vec::with_capacity(rows.len());
    for row in &rows {
        match delivery(row) {
            Ok(delivery) => readable.push(delivery),
            // One that cannot be read must not block the others.
            Err(error) => give_up(c, row.str("id")?, &error.to_string()).await?,
        }
    }
    Ok(readable)
}

async fn give_up(c: &mut dyn Driver, id: &str, why: &str) -> Sql<()> {
    tracing::warn!(delivery = id, why, "failed to read a delivery; given up");
    let sql =
        "UPDATE deliveries SET due_at = NULL, taken_until = NULL, last_error = $2, park_reason = $3 WHERE id = $1";
    c.execute(sql, &binds![id, why, ParkReason::Failed.as_str()]).await.map(drop)
}

/// Releases claims of a process that is gone.
pub(in crate::store) const TAKE_BACK: &str = "UPDATE deliveries SET taken_until = NULL
     WHERE done_at IS NULL AND due_at IS NOT NULL AND taken_until IS NOT NULL";

pub(super) async fn record_rejections(c: &mut dyn Driver, rejections: &[RejectionRecord]) -> Sql<()> {
    if rejections.iter().any(|rejection| rejection.notice == AppNotice::Send) {
        let ids: Vec<String> = rejections.iter().map(|rejection| rejection.id.to_string()).collect();
        let rows = c.fetch("SELECT id FROM refusals WHERE id = ANY($1)", &binds![&ids]).await?;
        let mut known = rows.iter().map(|row| row.text("id")).collect::<Sql<BTreeSet<String>>>()?;
        let new = rejections.iter().filter(|rejection| known.insert(rejection.id.to_string()));
        let told: Vec<_> = new.filter_map(app_events::rejected).collect();
        add_app_events(c, &told).await?;
    }
    // One statement changes a row only once.
    let mut attempts = BTreeMap::<&str, (&RejectionRecord, i64)>::new();
    for rejection in rejections {
        attempts.entry(rejection.id.as_str()).or_insert((rejection, 0)).1 += i64::from(rejection.attempts);
    }
    let sql = "INSERT INTO refusals (id, at, business, account, direction, code, limit_name, current_calls, limit_calls, observed,
             attempts)
         VALUES {rows} ON CONFLICT (id) DO UPDATE SET attempts = refusals.attempts + excluded.attempts";
    let rows = attempts.into_iter().map(|(id, (r, attempts))| {
        Vec::from(binds![
            id,
            r.at,
            &r.business,
            &r.account,
            r.direction.as_str(),
            &r.code,
            &r.limit_name,
            r.current,
            r.limit,
            r.observed,
            attempts,
        ])
    });
    c.execute_all(sql, rows.collect()).await.map(drop)
}

/// Creates or replaces businesses; returns how many are new. Every change has a unique time, by which replicas notice it.
pub(super) async fn put_businesses(c: &mut dyn Driver, businesses: &[Business], at_ms: UnixMs) -> Sql<usize> {
    let ids: Vec<String> = businesses.iter().map(|business| business.id.to_string()).collect();
    let known = c.fetch("SELECT 1 FROM businesses WHERE id = ANY($1)", &binds![&ids]).await?.len();
    let sql = "INSERT INTO businesses (id, body, updated_at) VALUES {rows}
         ON CONFLICT (id) DO UPDATE SET body = excluded.body,
             updated_at = greatest(excluded.updated_at, businesses.updated_at + 1)";
    let mut rows = Vec::with_capacity(businesses.len());
    for business in businesses {
        rows.push(Vec::from(binds![business.id.as_str(), to_json(business)?, at_ms]));
    }
    c.execute_all(sql, rows).await?;
    Ok(ids.len().saturating_sub(known))
}
