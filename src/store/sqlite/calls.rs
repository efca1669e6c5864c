//! Calls and their ids, read.

use sqlx::sqlite::SqlitePool;
use sqlx::{Row as _, SqliteConnection};

use super::super::CallRecord;
use super::super::rows::{Sql, alias, call_id, facts, readable, record};
use crate::clock::UnixMs;
use crate::ids::{AccountName, Alias, CallId};
use crate::policy::Facts;

pub(super) async fn one(c: &mut SqliteConnection, id: &CallId) -> Sql<Option<CallRecord>> {
    // One statement, and so one trip to SQLite's thread: a row an id, or one row without.
    let rows = sqlx::query(
        "SELECT c.*, a.kind AS alias_kind, a.id AS alias_id FROM calls c LEFT JOIN call_aliases a ON a.call_id = c.id
         WHERE c.id = $1 ORDER BY a.kind, a.id",
    )
    .bind(id.as_str())
    .fetch_all(&mut *c)
    .await?;
    let Some(first) = rows.first() else { return Ok(None) };
    let mut aliases = Vec::with_capacity(rows.len());
    for row in &rows {
        if let Some(kind) = row.try_get("alias_kind")? {
            aliases.push(Alias { kind, id: row.try_get("alias_id")? });
        }
    }
    record(first, aliases).map(Some)
}

pub(super) async fn resolve(pool: &SqlitePool, aliases: &[Alias]) -> super::Result<Option<CallId>> {
    let mut connection = pool.acquire().await?;
    for alias in aliases {
        let row: Option<Option<String>> =
            sqlx::query_scalar("SELECT call_id FROM call_aliases WHERE kind = $1 AND id = $2")
                .bind(&alias.kind)
                .bind(&alias.id)
                .fetch_optional(&mut *connection)
                .await?;
        if let Some(id) = row.flatten() {
            return Ok(Some(call_id(&id)?));
        }
    }
    Ok(None)
}

/// The index is named, here and in the gate: left to itself SQLite walks through every call there ever was, in their order, to
/// spare itself a sort.
pub(super) async fn open_calls(pool: &SqlitePool) -> super::Result<Vec<CallRecord>> {
    let calls =
        sqlx::query("SELECT * FROM calls INDEXED BY calls_open WHERE phase <> 'ended' ORDER BY admitted_at, id");
    let aliases = sqlx::query(
        "SELECT a.call_id, a.kind, a.id FROM calls c INDEXED BY calls_open JOIN call_aliases a ON c.id = a.call_id
         WHERE c.phase <> 'ended' ORDER BY a.kind, a.id",
    );
    together(pool, calls, aliases).await?.into_iter().collect::<Sql<_>>().map_err(Into::into)
}

pub(super) async fn latest(pool: &SqlitePool, limit: u32) -> super::Result<Vec<CallRecord>> {
    let calls = sqlx::query("SELECT * FROM calls ORDER BY admitted_at DESC, id DESC LIMIT $1").bind(limit);
    let aliases = sqlx::query(
        "SELECT call_id, kind, id FROM call_aliases
         WHERE call_id IN (SELECT id FROM calls ORDER BY admitted_at DESC, id DESC LIMIT $1) ORDER BY kind, id",
    )
    .bind(limit);
    together(pool, calls, aliases).await.map(readable)
}

/// The rows of open calls are looked at where they stand; only what is wanted is read.
pub(super) async fn unanswered_orders(
    pool: &SqlitePool,
    account: &AccountName,
    kind: &str,
) -> super::Result<Vec<CallRecord>> {
    let ids: Vec<String> = sqlx::query_scalar(
        "SELECT c.id FROM calls c INDEXED BY calls_open
         WHERE c.phase <> 'ended' AND c.account = $1 AND c.origin = 'order' AND c.direction = 'outbound'
         AND NOT EXISTS (SELECT 1 FROM call_aliases a WHERE a.call_id = c.id AND a.kind = $2)",
    )
    .bind(account.as_str())
    .bind(kind)
    .fetch_all(pool)
    .await?;
    let mut orders = Vec::with_capacity(ids.len());
    for id in &ids {
        orders.extend(one(&mut *pool.acquire().await?, &call_id(id)?).await?);
    }
    Ok(orders)
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;

/// Records and their ids, by two queries that see the same state.
async fn together(pool: &SqlitePool, calls: Query<'_>, aliases: Query<'_>) -> super::Result<Vec<Sql<CallRecord>>> {
    let mut transaction = pool.begin().await?;
    let calls = calls.fetch_all(&mut *transaction).await?;
    let mut of_call = std::collections::HashMap::<String, Vec<Alias>>::new();
    for row in aliases.fetch_all(&mut *transaction).await? {
        of_call.entry(row.try_get("call_id")?).or_default().push(alias(&row)?);
    }
    transaction.rollback().await?;
    let records = calls.iter().map(|row| {
        let id: String = row.try_get("id")?;
        record(row, of_call.remove(&id).unwrap_or_default())
    });
    Ok(records.collect())
}

pub(super) async fn admitted_since(pool: &SqlitePool, since_ms: UnixMs) -> super::Result<Vec<(UnixMs, Facts)>> {
    let rows = sqlx::query(
        "SELECT * FROM calls WHERE admitted_at >= $1 AND origin NOT IN ('foreign', 'unconfirmed') AND overrun = 0 ORDER BY admitted_at",
    )
    .bind(since_ms)
    .fetch_all(pool)
    .await?;
    Ok(readable(rows.iter().map(|row| Sql::Ok((row.try_get("admitted_at")?, facts(row)?)))))
}
