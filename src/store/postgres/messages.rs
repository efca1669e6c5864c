//! The inbox, the outbox, refusals and businesses.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Postgres, QueryBuilder, Row as _};

use super::super::rows::{headers, waiting};
use super::super::told;
use super::super::{Delivery, NewEvent, Place, Reach, Received, RefusalRecord, TAKEN_MS, Waiting};
use super::{query, records};
use crate::clock::UnixMs;
use crate::ids::{CallId, RefusalId};
use crate::policy::Business;

type Sql<T> = Result<T, sqlx::Error>;

fn damaged(what: impl std::fmt::Display) -> sqlx::Error {
    sqlx::Error::Decode(what.to_string().into())
}

/// A small number, which is kept as a wide one: Postgres has no other without a sign.
fn count(row: &PgRow, column: &str) -> Sql<u32> {
    row.try_get::<i64, _>(column)?.try_into().map_err(damaged)
}

fn optional_count(row: &PgRow, column: &str) -> Sql<Option<u32>> {
    row.try_get::<Option<i64>, _>(column)?.map(|n| n.try_into().map_err(damaged)).transpose()
}

fn headers_json(headers: &[(String, String)]) -> Sql<String> {
    serde_json::to_string(headers).map_err(|e| sqlx::Error::Encode(e.into()))
}

pub(super) async fn receive(c: &mut PgConnection, event: NewEvent) -> Sql<Received> {
    let done = query(
        "INSERT INTO webhook_events (id, account, webhook, event, dedupe_key, received_at, method, path, headers, body, spool)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT DO NOTHING",
    )
    .bind(&event.id)
    .bind(&event.account)
    .bind(&event.webhook)
    .bind(&event.event)
    .bind(&event.dedupe_key)
    .bind(event.received_at)
    .bind(&event.method)
    .bind(&event.path)
    .bind(headers_json(&event.headers)?)
    .bind(&event.body)
    .bind(&event.spool)
    .execute(&mut *c)
    .await?;
    if done.rows_affected() == 1 {
        return Ok(Received::New);
    }
    // By its id: one whose first write may have come through.
    let row = query("SELECT id, outcome FROM webhook_events WHERE dedupe_key = $1 OR id = $2 ORDER BY id = $2 LIMIT 1")
        .bind(&event.dedupe_key)
        .bind(&event.id)
        .fetch_one(c)
        .await?;
    Ok(Received::Before { id: row.try_get("id")?, outcome: row.try_get("outcome")? })
}

pub(super) async fn settle(
    c: &mut PgConnection,
    event_id: String,
    call: Option<CallId>,
    outcome: String,
    delivery: Option<Delivery>,
    at_ms: UnixMs,
) -> Sql<bool> {
    let settled = query(
        "UPDATE webhook_events SET outcome = $2, call_id = coalesce($3, call_id), parked_at = NULL, error = NULL
         WHERE id = $1 AND outcome IS NULL",
    )
    .bind(&event_id)
    .bind(outcome)
    .bind(call.as_ref().map(CallId::as_str))
    .execute(&mut *c)
    .await?;
    if settled.rows_affected() == 0 {
        return Ok(false);
    }
    let Some(delivery) = delivery else { return Ok(true) };
    // Of an event that is applied once more the app is told already.
    query(
        "INSERT INTO deliveries (id, event_id, url, method, headers, body, attempts, due_at, call_id, noted_at, spool, route)
         SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $8, $10, $11 WHERE NOT EXISTS (SELECT 1 FROM deliveries WHERE event_id = $2)",
    )
    .bind(&delivery.id)
    .bind(&delivery.event_id)
    .bind(&delivery.url)
    .bind(&delivery.method)
    .bind(headers_json(&delivery.headers)?)
    .bind(delivery.spool.is_none().then_some(&delivery.body))
    .bind(i64::from(delivery.attempts))
    .bind(at_ms)
    .bind(call.as_ref().map(CallId::as_str))
    .bind(&delivery.spool)
    .bind(delivery.route.as_str())
    .execute(c)
    .await?;
    Ok(true)
}

pub(super) async fn unsettled(
    c: &mut PgConnection,
    before_ms: UnixMs,
    reach: Reach,
    after: Place,
    limit: u32,
) -> Sql<Waiting> {
    let rows = query(
        "SELECT * FROM webhook_events WHERE outcome IS NULL AND parked_at IS NULL
         AND received_at >= $4 AND (received_at, id) > ($4, $5)
         AND coalesce(due_at, received_at) <= $1 AND (spool = $2 OR (spool IS NULL AND $3))
         ORDER BY received_at, id LIMIT $6",
    );
    let rows = rows.bind(before_ms).bind(reach.spool).bind(reach.record).bind(after.0).bind(after.1);
    waiting(&rows.bind(i64::from(limit)).fetch_all(c).await?)
}

/// One statement. Of those who look at once each gets others, as rows that are locked are passed over.
pub(super) async fn take(
    c: &mut PgConnection,
    at_ms: UnixMs,
    limit: u32,
    spool: String,
    strict: bool,
) -> Sql<Vec<Delivery>> {
    let rows = query(
        "WITH now AS (SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS at),
         due AS (SELECT d.id FROM deliveries d, now
             WHERE d.done_at IS NULL AND d.due_at IS NOT NULL AND d.due_at <= $1
             AND (d.taken_until IS NULL OR d.taken_until <= now.at) AND (d.spool IS NULL OR d.spool = $4)
             AND NOT EXISTS (SELECT 1 FROM deliveries e WHERE e.call_id = d.call_id AND e.own = d.own AND e.seq < d.seq
                 AND e.done_at IS NULL AND e.due_at IS NOT NULL AND (e.attempts = 0 OR $5 OR d.own))
             ORDER BY d.due_at, d.seq LIMIT $2 FOR UPDATE OF d SKIP LOCKED),
         taken AS (UPDATE deliveries d SET taken_until = now.at + $3 FROM due, now WHERE d.id = due.id RETURNING d.*)
         SELECT * FROM taken ORDER BY due_at, seq",
    )
    .bind(at_ms)
    .bind(i64::from(limit))
    .bind(TAKEN_MS)
    .bind(spool)
    .bind(strict)
    .fetch_all(&mut *c)
    .await?;
    let delivery = |row: &PgRow| -> Sql<Delivery> {
        Ok(Delivery {
            id: row.try_get("id")?,
            event_id: row.try_get("event_id")?,
            call: row.try_get("call_id")?,
            url: row.try_get("url")?,
            method: row.try_get("method")?,
            headers: headers(row)?,
            body: row.try_get::<Option<Vec<u8>>, _>("body")?.unwrap_or_default(),
            spool: row.try_get("spool")?,
            route: row.try_get::<&str, _>("route")?.parse().map_err(damaged)?,
            attempts: count(row, "attempts")?,
        })
    };
    let mut readable = Vec::with_capacity(rows.len());
    for row in &rows {
        match delivery(row) {
            Ok(delivery) => readable.push(delivery),
            // One that cannot be read must not keep the others from their turn.
            Err(error) => give_up(c, row.try_get("id")?, &error.to_string()).await?,
        }
    }
    Ok(readable)
}

async fn give_up(c: &mut PgConnection, id: &str, why: &str) -> Sql<()> {
    tracing::warn!(delivery = id, why, "a delivery cannot be read; it is given up");
    let sql = "UPDATE deliveries SET due_at = NULL, taken_until = NULL, last_error = $2 WHERE id = $1";
    query(sql).bind(id).bind(why).execute(c).await.map(drop)
}

/// Whoever took deliveries is gone.
pub(super) async fn take_back(c: &mut PgConnection) -> Sql<()> {
    let sql = "UPDATE deliveries SET taken_until = NULL WHERE done_at IS NULL AND due_at IS NOT NULL AND taken_until IS NOT NULL";
    query(sql).execute(c).await.map(drop)
}

pub(super) async fn delivered(
    c: &mut PgConnection,
    id: String,
    at_ms: UnixMs,
    result: Result<(), (String, Option<UnixMs>)>,
) -> Sql<()> {
    let (done_at, due_at, error) = match result {
        Ok(()) => (Some(at_ms), None, None),
        Err((error, due_at)) => (None, due_at, Some(error)),
    };
    query(
        "UPDATE deliveries SET attempts = attempts + 1, done_at = $2, due_at = $3, last_error = $4, taken_until = NULL
         WHERE id = $1 AND done_at IS NULL",
    )
    .bind(id)
    .bind(done_at)
    .bind(due_at)
    .bind(error)
    .execute(c)
    .await?;
    Ok(())
}

pub(super) async fn refused(c: &mut PgConnection, refusals: &[RefusalRecord]) -> Sql<()> {
    if refusals.iter().any(|refusal| refusal.tell) {
        let ids: Vec<&str> = refusals.iter().map(|refusal| refusal.id.as_str()).collect();
        let rows = query("SELECT id FROM refusals WHERE id = ANY($1)").bind(ids).fetch_all(&mut *c).await?;
        let mut known = rows.iter().map(|row| row.try_get("id")).collect::<Sql<BTreeSet<String>>>()?;
        let new = refusals.iter().filter(|refusal| known.insert(refusal.id.to_string()));
        let told: Vec<_> = new.filter_map(told::refused).collect();
        records::tell(c, &told).await?;
    }
    // One statement changes a row once.
    let mut attempts = BTreeMap::<&str, (&RefusalRecord, i64)>::new();
    for refusal in refusals {
        attempts.entry(refusal.id.as_str()).or_insert((refusal, 0)).1 += i64::from(refusal.attempts);
    }
    let mut insert = QueryBuilder::<Postgres>::new(
        "INSERT INTO refusals (id, at, business, account, direction, code, limit_name, current_calls, limit_calls, observed,
             attempts) ",
    );
    insert.push_values(attempts, |mut row, (id, (r, attempts))| {
        row.push_bind(id)
            .push_bind(r.at)
            .push_bind(&r.business)
            .push_bind(&r.account)
            .push_bind(&r.direction)
            .push_bind(&r.code)
            .push_bind(&r.limit_name)
            .push_bind(r.current.map(i64::from))
            .push_bind(r.limit.map(i64::from))
            .push_bind(r.observed)
            .push_bind(attempts);
    });
    insert.push(" ON CONFLICT (id) DO UPDATE SET attempts = refusals.attempts + excluded.attempts");
    // Its text is another with every number of rows: not worth keeping.
    insert.build().persistent(false).execute(c).await.map(drop)
}

pub(super) async fn latest_refusals(c: &mut PgConnection, limit: u32) -> Sql<Vec<RefusalRecord>> {
    let rows =
        query("SELECT * FROM refusals ORDER BY at DESC, id DESC LIMIT $1").bind(i64::from(limit)).fetch_all(c).await?;
    let refusal = |row: &PgRow| -> Sql<RefusalRecord> {
        let id: String = row.try_get("id")?;
        Ok(RefusalRecord {
            id: RefusalId::parse(&id).ok_or_else(|| damaged(format!("{id:?} is no refusal id")))?,
            at: row.try_get("at")?,
            business: row.try_get("business")?,
            account: row.try_get("account")?,
            direction: row.try_get("direction")?,
            code: row.try_get("code")?,
            limit_name: row.try_get("limit_name")?,
            current: optional_count(row, "current_calls")?,
            limit: optional_count(row, "limit_calls")?,
            observed: row.try_get("observed")?,
            attempts: count(row, "attempts")?,
            tell: false,
        })
    };
    rows.iter().map(refusal).collect()
}

pub(super) async fn businesses(c: &mut PgConnection) -> Sql<Vec<Business>> {
    let rows = query("SELECT body FROM businesses ORDER BY id").fetch_all(c).await?;
    let business = |row: &PgRow| -> Sql<Business> { serde_json::from_str(row.try_get("body")?).map_err(damaged) };
    rows.iter().map(business).collect()
}

/// Every change has a time of its own, so that a replica can tell that there was one.
pub(super) async fn put_business(c: &mut PgConnection, business: Business, at_ms: UnixMs) -> Sql<bool> {
    let body = serde_json::to_string(&business).map_err(|e| sqlx::Error::Encode(e.into()))?;
    let known =
        query("SELECT 1 FROM businesses WHERE id = $1").bind(business.id.as_str()).fetch_optional(&mut *c).await?;
    query(
        "INSERT INTO businesses (id, body, updated_at) VALUES ($1, $2, $3)
         ON CONFLICT (id) DO UPDATE SET body = excluded.body,
             updated_at = greatest(excluded.updated_at, businesses.updated_at + 1)",
    )
    .bind(business.id.as_str())
    .bind(body)
    .bind(at_ms)
    .execute(c)
    .await?;
    Ok(known.is_none())
}

/// Puts many in one statement. How many are new.
pub(super) async fn put_businesses(c: &mut PgConnection, businesses: Arc<Vec<Business>>, at_ms: UnixMs) -> Sql<usize> {
    let ids: Vec<&str> = businesses.iter().map(|business| business.id.as_str()).collect();
    let bodies = businesses.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>();
    let bodies = bodies.map_err(|e| sqlx::Error::Encode(e.into()))?;
    let known = query("SELECT 1 FROM businesses WHERE id = ANY($1)").bind(&ids).fetch_all(&mut *c).await?.len();
    query(
        "INSERT INTO businesses (id, body, updated_at) SELECT *, $3 FROM unnest($1::text[], $2::text[])
         ON CONFLICT (id) DO UPDATE SET body = excluded.body,
             updated_at = greatest(excluded.updated_at, businesses.updated_at + 1)",
    )
    .bind(&ids)
    .bind(&bodies)
    .bind(at_ms)
    .execute(c)
    .await?;
    Ok(ids.len().saturating_sub(known))
}

pub(super) async fn delete_business(c: &mut PgConnection, id: String) -> Sql<bool> {
    let done = query("DELETE FROM businesses WHERE id = $1").bind(id).execute(c).await?;
    Ok(done.rows_affected() > 0)
}
