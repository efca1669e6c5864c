//! Which processes are over the record, and what one says to another of an order. Writes run on the writer's thread.

use rusqlite::{Connection, Row, params};
use sqlx::sqlite::SqlitePool;

use super::super::fleet::{FORGOTTEN_MS, LIVE_MS};
use super::super::rows::{Sql, order};
use super::super::{Fleet, Living, ORDERS_MAX, OrderRecord, Replica};
use super::writer::Written;
use crate::clock::UnixMs;
use crate::ids::CallId;

/// The store's time: what processes over one file have in common.
pub(super) fn now_ms(c: &Connection) -> Written<UnixMs> {
    c.prepare_cached("SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER)")?.query_row([], |row| row.get(0))
}

/// Says that this one lives, forgets who is long gone, and tells who lives.
pub(super) fn beat(c: &Connection, me: &Replica) -> Written<Fleet> {
    let now = now_ms(c)?;
    c.prepare_cached("DELETE FROM replicas WHERE id <> ?1 AND beat_at < ?2")?
        .execute(params![me.id, now - FORGOTTEN_MS])?;
    c.prepare_cached(
        "INSERT INTO replicas (id, host, process, version, started_at, beat_at, state) VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6)
         ON CONFLICT (id) DO UPDATE SET beat_at = excluded.beat_at, state = excluded.state",
    )?
    .execute(params![me.id, me.host, me.process, me.version, now, me.state])?;
    let living = |row: &Row<'_>| {
        Ok(Living {
            replica: Replica {
                id: row.get(0)?,
                host: row.get(1)?,
                process: row.get(2)?,
                version: row.get(3)?,
                state: row.get(4)?,
            },
            started_at: row.get(5)?,
            beat_at: row.get(6)?,
        })
    };
    let mut live = c.prepare_cached(
        "SELECT id, host, process, version, state, started_at, beat_at FROM replicas WHERE beat_at > ?1",
    )?;
    let live = live.query_map([now - LIVE_MS], living)?.collect::<Written<_>>()?;
    let businesses = c
        .prepare_cached("SELECT count(*) || '.' || coalesce(sum(updated_at), 0) FROM businesses")?
        .query_row([], |row| row.get(0))?;
    Ok(Fleet::new(me, live, businesses))
}

pub(super) fn leave(c: &Connection, id: &str) -> Written<()> {
    c.prepare_cached("DELETE FROM replicas WHERE id = ?1")?.execute([id]).map(drop)
}

pub(super) async fn find_orders(
    pool: &SqlitePool,
    fingerprint: &str,
    since_ms: UnixMs,
) -> super::Result<Vec<OrderRecord>> {
    let rows = sqlx::query(
        "SELECT c.id, c.phase, c.outcome, c.unsettled, c.undelivered, c.replica, c.admitted_at, c.phase_at, c.ended_at,
             CAST(unixepoch('subsec') * 1000 AS INTEGER) - r.beat_at AS silent_ms
         FROM calls c LEFT JOIN replicas r ON r.id = c.replica
         WHERE c.fingerprint = $1 AND c.admitted_at >= $2 ORDER BY c.admitted_at DESC, c.id DESC LIMIT $3",
    )
    .bind(fingerprint)
    .bind(since_ms)
    .bind(ORDERS_MAX)
    .fetch_all(pool)
    .await?;
    rows.iter().rev().map(order).collect::<Sql<_>>().map_err(Into::into)
}

pub(super) fn take_order(c: &Connection, order: &OrderRecord, me: &str, is_dead: bool) -> Written<bool> {
    let mut take = c.prepare_cached(
        "UPDATE calls SET replica = ?2, undelivered = 0, unsettled = unsettled OR (?5 AND phase = 'reserved')
         WHERE id = ?1 AND replica IS ?3 AND undelivered = ?4",
    )?;
    Ok(take.execute(params![order.id.as_str(), me, order.replica, order.undelivered, is_dead])? == 1)
}

pub(super) fn undelivered(c: &Connection, call: &CallId, me: &str) -> Written<()> {
    c.prepare_cached("UPDATE calls SET undelivered = 1 WHERE id = ?1 AND replica = ?2")?
        .execute([call.as_str(), me])
        .map(drop)
}
