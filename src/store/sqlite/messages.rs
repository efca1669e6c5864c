//! The inbox, the outbox, refusals and businesses, read.

use sqlx::Row as _;
use sqlx::sqlite::{SqlitePool, SqliteRow};

use super::super::rows::waiting;
use super::super::{Place, Reach, RefusalRecord, Waiting};
use crate::clock::UnixMs;
use crate::ids::RefusalId;
use crate::policy::Business;

type Sql<T> = Result<T, sqlx::Error>;

fn damaged(what: impl std::fmt::Display) -> sqlx::Error {
    sqlx::Error::Decode(what.to_string().into())
}

pub(super) async fn unsettled(
    pool: &SqlitePool,
    before_ms: UnixMs,
    reach: &Reach,
    after: &Place,
    limit: u32,
) -> super::Result<Waiting> {
    let rows = sqlx::query(
        "SELECT * FROM webhook_events WHERE outcome IS NULL AND parked_at IS NULL
         AND received_at >= $4 AND (received_at, id) > ($4, $5)
         AND coalesce(due_at, received_at) <= $1 AND (spool = $2 OR (spool IS NULL AND $3))
         ORDER BY received_at, id LIMIT $6",
    )
    .bind(before_ms)
    .bind(&reach.spool)
    .bind(reach.record)
    .bind(after.0)
    .bind(&after.1)
    .bind(limit)
    .fetch_all(pool)
    .await?;
    waiting(&rows).map_err(Into::into)
}

/// Whether any delivery may be due: asked before the writer is, which others wait for.
pub(super) async fn any_due(pool: &SqlitePool, at_ms: UnixMs, spool: &str) -> super::Result<bool> {
    let any = sqlx::query(
        "SELECT 1 FROM deliveries WHERE done_at IS NULL AND due_at IS NOT NULL AND due_at <= $1
         AND (spool IS NULL OR spool = $2) LIMIT 1",
    );
    Ok(any.bind(at_ms).bind(spool).fetch_optional(pool).await?.is_some())
}

pub(super) async fn latest_refusals(pool: &SqlitePool, limit: u32) -> super::Result<Vec<RefusalRecord>> {
    let rows =
        sqlx::query("SELECT * FROM refusals ORDER BY at DESC, id DESC LIMIT $1").bind(limit).fetch_all(pool).await?;
    let refusal = |row: &SqliteRow| -> Sql<RefusalRecord> {
        let id: String = row.try_get("id")?;
        Ok(RefusalRecord {
            id: RefusalId::parse(&id).ok_or_else(|| damaged(format!("{id:?} is no refusal id")))?,
            at: row.try_get("at")?,
            business: row.try_get("business")?,
            account: row.try_get("account")?,
            direction: row.try_get("direction")?,
            code: row.try_get("code")?,
            limit_name: row.try_get("limit_name")?,
            current: row.try_get("current_calls")?,
            limit: row.try_get("limit_calls")?,
            observed: row.try_get("observed")?,
            attempts: row.try_get("attempts")?,
            tell: false,
        })
    };
    rows.iter().map(refusal).collect::<Sql<_>>().map_err(Into::into)
}

pub(super) async fn businesses(pool: &SqlitePool) -> super::Result<Vec<Business>> {
    let rows = sqlx::query("SELECT body FROM businesses ORDER BY id").fetch_all(pool).await?;
    let business = |row: &SqliteRow| -> Sql<Business> { serde_json::from_str(row.try_get("body")?).map_err(damaged) };
    rows.iter().map(business).collect::<Sql<_>>().map_err(Into::into)
}
