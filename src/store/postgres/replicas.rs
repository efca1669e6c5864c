//! Which processes are over the record, and what one says to another of an order.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};

use super::super::fleet::{FORGOTTEN_MS, LIVE_MS};
use super::super::rows::{damaged, order};
use super::super::{Fleet, Living, ORDERS_MAX, OrderRecord, Replica};
use super::{Sql, query};
use crate::clock::UnixMs;
use crate::ids::CallId;

/// One statement: says that this one lives, forgets who is long gone, and tells who lives.
pub(super) async fn beat(c: &mut PgConnection, me: Replica) -> Sql<Fleet> {
    let rows = query(
        "WITH now AS (SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS at),
         gone AS (DELETE FROM replicas USING now WHERE id <> $1 AND beat_at < now.at - $6),
         mine AS (INSERT INTO replicas (id, host, process, version, started_at, beat_at, state)
             SELECT $1, $2, $3, $4, at, at, $7 FROM now
             ON CONFLICT (id) DO UPDATE SET beat_at = excluded.beat_at, state = excluded.state RETURNING *),
         live AS (SELECT * FROM mine UNION ALL
             SELECT r.* FROM replicas r, now WHERE r.id <> $1 AND r.beat_at > now.at - $5)
         SELECT live.*, (SELECT count(*) || '.' || coalesce(sum(updated_at), 0) FROM businesses) AS businesses FROM live",
    )
    .bind(&me.id)
    .bind(&me.host)
    .bind(i64::from(me.process))
    .bind(&me.version)
    .bind(LIVE_MS)
    .bind(FORGOTTEN_MS)
    .bind(&me.state)
    .fetch_all(c)
    .await?;
    let businesses = rows.first().map(|row| row.try_get("businesses")).transpose()?.unwrap_or_default();
    Ok(Fleet::new(&me, rows.iter().map(living).collect::<Sql<_>>()?, businesses))
}

fn living(row: &PgRow) -> Sql<Living> {
    Ok(Living {
        replica: Replica {
            id: row.try_get("id")?,
            host: row.try_get("host")?,
            process: row.try_get::<i64, _>("process")?.try_into().map_err(damaged)?,
            version: row.try_get("version")?,
            state: row.try_get("state")?,
        },
        started_at: row.try_get("started_at")?,
        beat_at: row.try_get("beat_at")?,
    })
}

pub(super) async fn leave(c: &mut PgConnection, id: String) -> Sql<()> {
    query("DELETE FROM replicas WHERE id = $1").bind(id).execute(c).await.map(drop)
}

pub(super) async fn find_orders(c: &mut PgConnection, fingerprint: String, since_ms: UnixMs) -> Sql<Vec<OrderRecord>> {
    let rows = query(
        "SELECT c.id, c.phase, c.outcome, c.unsettled, c.undelivered, c.replica, c.admitted_at, c.phase_at, c.ended_at,
             (extract(epoch FROM clock_timestamp()) * 1000)::bigint - r.beat_at AS silent_ms
         FROM calls c LEFT JOIN replicas r ON r.id = c.replica
         WHERE c.fingerprint = $1 AND c.admitted_at >= $2 ORDER BY c.admitted_at DESC, c.id DESC LIMIT $3",
    )
    .bind(fingerprint)
    .bind(since_ms)
    .bind(i64::from(ORDERS_MAX))
    .fetch_all(c)
    .await?;
    rows.iter().rev().map(order).collect()
}

pub(super) async fn take_order(c: &mut PgConnection, order: OrderRecord, me: String, is_dead: bool) -> Sql<bool> {
    let taken = query(
        "UPDATE calls SET replica = $2, undelivered = false, unsettled = unsettled OR ($5 AND phase = 'reserved')
         WHERE id = $1 AND replica IS NOT DISTINCT FROM $3 AND undelivered = $4",
    );
    let taken = taken.bind(order.id.as_str()).bind(me).bind(order.replica).bind(order.undelivered).bind(is_dead);
    Ok(taken.execute(c).await?.rows_affected() == 1)
}

pub(super) async fn undelivered(c: &mut PgConnection, call: CallId, me: String) -> Sql<()> {
    let noted = query("UPDATE calls SET undelivered = true WHERE id = $1 AND replica = $2");
    noted.bind(call.as_str()).bind(me).execute(c).await.map(drop)
}
