//! Writes of the inbox, the outbox, refusals and businesses. They run on the writer's thread.

use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::super::told;
use super::super::{Delivery, NewEvent, Received, RefusalRecord, TAKEN_MS};
use super::calls_write::{to_json, word};
use super::records;
use super::replicas::now_ms;
use super::writer::Written;
use crate::clock::UnixMs;
use crate::ids::CallId;
use crate::policy::Business;

pub(super) fn receive(c: &Connection, event: &NewEvent) -> Written<Received> {
    let inserted = c
        .prepare_cached(
            "INSERT INTO webhook_events (id, account, webhook, event, dedupe_key, received_at, method, path, headers, body,
                 spool)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) ON CONFLICT DO NOTHING",
        )?
        .execute(params![
            event.id,
            event.account,
            event.webhook,
            event.event,
            event.dedupe_key,
            event.received_at,
            event.method,
            event.path,
            to_json(&event.headers)?,
            event.body,
            event.spool,
        ])?;
    if inserted == 1 {
        return Ok(Received::New);
    }
    // By its id: one whose first write may have come through.
    c.prepare_cached(
        "SELECT id, outcome FROM webhook_events WHERE dedupe_key = ?1 OR id = ?2 ORDER BY id = ?2 LIMIT 1",
    )?
    .query_row(params![event.dedupe_key, event.id], |row| {
        Ok(Received::Before { id: row.get(0)?, outcome: row.get(1)? })
    })
}

pub(super) fn settle(
    c: &Connection,
    event_id: &str,
    call: Option<&CallId>,
    outcome: &str,
    delivery: Option<&Delivery>,
    at_ms: UnixMs,
) -> Written<bool> {
    let settled = c
        .prepare_cached(
            "UPDATE webhook_events SET outcome = ?2, call_id = coalesce(?3, call_id), parked_at = NULL, error = NULL
             WHERE id = ?1 AND outcome IS NULL",
        )?
        .execute(params![event_id, outcome, call.map(CallId::as_str)])?;
    if settled == 0 {
        return Ok(false);
    }
    let Some(delivery) = delivery else { return Ok(true) };
    // Of an event that is applied once more the app is told already.
    c.prepare_cached(
        "INSERT INTO deliveries (id, event_id, url, method, headers, body, attempts, due_at, call_id, noted_at, spool, route)
         SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?8, ?10, ?11 WHERE NOT EXISTS (SELECT 1 FROM deliveries WHERE event_id = ?2)",
    )?
    .execute(params![
        delivery.id,
        delivery.event_id,
        delivery.url,
        delivery.method,
        to_json(&delivery.headers)?,
        delivery.spool.is_none().then_some(&delivery.body),
        delivery.attempts,
        at_ms,
        call.map(CallId::as_str),
        delivery.spool,
        delivery.route.as_str(),
    ])?;
    Ok(true)
}

/// Others that look at once find what this one has taken.
pub(super) fn take(c: &Connection, at_ms: UnixMs, limit: u32, spool: &str, strict: bool) -> Written<Vec<Delivery>> {
    let now = now_ms(c)?;
    let mut take = c.prepare_cached(
        "UPDATE deliveries SET taken_until = ?4 WHERE rowid IN
             (SELECT d.rowid FROM deliveries d
              WHERE d.done_at IS NULL AND d.due_at IS NOT NULL AND d.due_at <= ?1
              AND (d.taken_until IS NULL OR d.taken_until <= ?3) AND (d.spool IS NULL OR d.spool = ?5)
              AND NOT EXISTS (SELECT 1 FROM deliveries e WHERE e.call_id = d.call_id AND e.own = d.own AND e.rowid < d.rowid
                  AND e.done_at IS NULL AND e.due_at IS NOT NULL AND (e.attempts = 0 OR ?6 OR d.own))
              ORDER BY d.due_at, d.rowid LIMIT ?2)
         RETURNING due_at, rowid, id, event_id, call_id, url, method, headers, body, attempts, spool, route",
    )?;
    let delivery = |row: &Row<'_>| {
        let headers: String = row.get(7)?;
        let delivery = Delivery {
            id: row.get(2)?,
            event_id: row.get(3)?,
            call: row.get(4)?,
            url: row.get(5)?,
            method: row.get(6)?,
            headers: vec![],
            body: row.get::<_, Option<Vec<u8>>>(8)?.unwrap_or_default(),
            attempts: row.get(9)?,
            spool: row.get(10)?,
            route: word(row, 11)?,
        };
        Ok((row.get::<_, UnixMs>(0)?, row.get::<_, i64>(1)?, headers, delivery))
    };
    let mut taken = take
        .query_map(params![at_ms, limit, now, now + TAKEN_MS, spool, strict], delivery)?
        .collect::<Written<Vec<_>>>()?;
    taken.sort_by_key(|(due_at, row, ..)| (*due_at, *row));
    let mut readable = Vec::with_capacity(taken.len());
    for (.., headers, delivery) in taken {
        match serde_json::from_str(&headers) {
            Ok(headers) => readable.push(Delivery { headers, ..delivery }),
            // One that cannot be read must not keep the others from their turn.
            Err(error) => give_up(c, &delivery.id, &error.to_string())?,
        }
    }
    Ok(readable)
}

fn give_up(c: &Connection, id: &str, why: &str) -> Written<()> {
    tracing::warn!(delivery = id, why, "a delivery cannot be read; it is given up");
    let sql = "UPDATE deliveries SET due_at = NULL, taken_until = NULL, last_error = ?2 WHERE id = ?1";
    c.prepare_cached(sql)?.execute(params![id, why]).map(drop)
}

/// Whoever took deliveries is gone.
pub(super) fn take_back(c: &Connection) -> Written<()> {
    let sql = "UPDATE deliveries SET taken_until = NULL WHERE done_at IS NULL AND due_at IS NOT NULL AND taken_until IS NOT NULL";
    c.prepare_cached(sql)?.execute([]).map(drop)
}

pub(super) fn delivered(
    c: &Connection,
    id: &str,
    at_ms: UnixMs,
    result: Result<(), (String, Option<UnixMs>)>,
) -> Written<()> {
    let (done_at, due_at, error) = match result {
        Ok(()) => (Some(at_ms), None, None),
        Err((error, due_at)) => (None, due_at, Some(error)),
    };
    c.prepare_cached(
        "UPDATE deliveries SET attempts = attempts + 1, done_at = ?2, due_at = ?3, last_error = ?4, taken_until = NULL
         WHERE id = ?1 AND done_at IS NULL",
    )?
    .execute(params![id, done_at, due_at, error])
    .map(drop)
}

pub(super) fn refused(c: &Connection, r: &RefusalRecord) -> Written<()> {
    if r.tell {
        let known = c.prepare_cached("SELECT 1 FROM refusals WHERE id = ?1")?.exists([r.id.as_str()])?;
        records::tell(c, told::refused(r).filter(|_| !known))?;
    }
    c.prepare_cached(
        "INSERT INTO refusals (id, at, business, account, direction, code, limit_name, current_calls, limit_calls, observed,
             attempts)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
         ON CONFLICT (id) DO UPDATE SET attempts = refusals.attempts + excluded.attempts",
    )?
    .execute(params![
        r.id.as_str(),
        r.at,
        r.business,
        r.account,
        r.direction,
        r.code,
        r.limit_name,
        r.current,
        r.limit,
        r.observed,
        r.attempts,
    ])
    .map(drop)
}

/// Every change has a time of its own, so that a replica can tell that there was one.
pub(super) fn put_business(c: &Connection, business: &Business, at_ms: UnixMs) -> Written<bool> {
    let known = c
        .prepare_cached("SELECT 1 FROM businesses WHERE id = ?1")?
        .query_row([business.id.as_str()], |_| Ok(()))
        .optional()?;
    c.prepare_cached(
        "INSERT INTO businesses (id, body, updated_at) VALUES (?1, ?2, ?3)
         ON CONFLICT (id) DO UPDATE SET body = excluded.body,
             updated_at = max(excluded.updated_at, businesses.updated_at + 1)",
    )?
    .execute(params![business.id.as_str(), to_json(business)?, at_ms])?;
    Ok(known.is_none())
}

pub(super) fn put_businesses(c: &Connection, businesses: &[Business], at_ms: UnixMs) -> Written<usize> {
    let mut new = 0;
    for business in businesses {
        new += usize::from(put_business(c, business, at_ms)?);
    }
    Ok(new)
}

pub(super) fn delete_business(c: &Connection, id: &str) -> Written<bool> {
    Ok(c.prepare_cached("DELETE FROM businesses WHERE id = ?1")?.execute([id])? > 0)
}
