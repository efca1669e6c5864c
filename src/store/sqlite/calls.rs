//! Calls and their ids, read.

use serde::de::DeserializeOwned;
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{Row as _, SqliteConnection};

use super::super::CallRecord;
use crate::clock::UnixMs;
use crate::ids::{AccountName, Alias, BusinessId, CallId};
use crate::policy::Facts;

type Sql<T> = Result<T, sqlx::Error>;

fn damaged(what: impl std::fmt::Display) -> sqlx::Error {
    sqlx::Error::Decode(what.to_string().into())
}

fn word<T: std::str::FromStr<Err: std::fmt::Display>>(row: &SqliteRow, column: &str) -> Sql<T> {
    row.try_get::<String, _>(column)?.parse().map_err(damaged)
}

fn optional_word<T: std::str::FromStr<Err: std::fmt::Display>>(row: &SqliteRow, column: &str) -> Sql<Option<T>> {
    row.try_get::<Option<String>, _>(column)?.map(|w| w.parse().map_err(damaged)).transpose()
}

fn json<T: DeserializeOwned>(text: Option<String>) -> Sql<Option<T>> {
    text.map(|t| serde_json::from_str(&t).map_err(damaged)).transpose()
}

fn facts(row: &SqliteRow) -> Sql<Facts> {
    Ok(Facts {
        business: BusinessId::parse(row.try_get("business")?).map_err(damaged)?,
        plan: row.try_get("plan")?,
        account: AccountName::parse(row.try_get("account")?).map_err(damaged)?,
        provider: row.try_get("provider")?,
        carrier: row
            .try_get::<Option<String>, _>("carrier")?
            .map(|name| AccountName::parse(&name).map_err(damaged))
            .transpose()?,
        direction: word(row, "direction")?,
        operation: row.try_get("operation")?,
        agent: row.try_get("agent")?,
        own_number: row.try_get("own_number")?,
        other_number: row.try_get("other_number")?,
    })
}

fn call_id(text: &str) -> Sql<CallId> {
    CallId::parse(text).ok_or_else(|| damaged(format!("{text:?} is no call id")))
}

fn record(row: &SqliteRow, aliases: Vec<Alias>) -> Sql<CallRecord> {
    Ok(CallRecord {
        id: call_id(row.try_get("id")?)?,
        facts: facts(row)?,
        origin: word(row, "origin")?,
        phase: word(row, "phase")?,
        outcome: optional_word(row, "outcome")?,
        proof: optional_word(row, "proof")?,
        overrun: row.try_get("overrun")?,
        unsettled: row.try_get("unsettled")?,
        polled: row.try_get("polled")?,
        places: row.try_get("places")?,
        admitted_at: row.try_get("admitted_at")?,
        phase_at: row.try_get("phase_at")?,
        deadline_at: row.try_get("deadline_at")?,
        answered_at: row.try_get("answered_at")?,
        ended_at: row.try_get("ended_at")?,
        seen_at: row.try_get("seen_at")?,
        seen_by: row.try_get("seen_by")?,
        absent_at: row.try_get("absent_at")?,
        callback: json(row.try_get("callback")?)?,
        fingerprint: row.try_get("fingerprint")?,
        aliases,
    })
}

fn alias(row: &SqliteRow) -> Sql<Alias> {
    Ok(Alias { kind: row.try_get("kind")?, id: row.try_get("id")? })
}

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

pub(super) async fn open_calls(pool: &SqlitePool) -> super::Result<Vec<CallRecord>> {
    let calls = sqlx::query("SELECT * FROM calls WHERE phase <> 'ended' ORDER BY admitted_at, id");
    let aliases = sqlx::query(
        "SELECT a.call_id, a.kind, a.id FROM call_aliases a JOIN calls c ON c.id = a.call_id WHERE c.phase <> 'ended'
         ORDER BY a.kind, a.id",
    );
    together(pool, calls, aliases).await
}

pub(super) async fn latest(pool: &SqlitePool, limit: u32) -> super::Result<Vec<CallRecord>> {
    let calls = sqlx::query("SELECT * FROM calls ORDER BY admitted_at DESC, id DESC LIMIT $1").bind(limit);
    let aliases = sqlx::query(
        "SELECT call_id, kind, id FROM call_aliases
         WHERE call_id IN (SELECT id FROM calls ORDER BY admitted_at DESC, id DESC LIMIT $1) ORDER BY kind, id",
    )
    .bind(limit);
    together(pool, calls, aliases).await
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;

/// Records and their ids, by two queries that see the same state.
async fn together(pool: &SqlitePool, calls: Query<'_>, aliases: Query<'_>) -> super::Result<Vec<CallRecord>> {
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
    records.collect::<Sql<_>>().map_err(Into::into)
}

pub(super) async fn admitted_since(pool: &SqlitePool, since_ms: UnixMs) -> super::Result<Vec<(UnixMs, Facts)>> {
    let rows = sqlx::query(
        "SELECT * FROM calls WHERE admitted_at >= $1 AND origin <> 'foreign' AND overrun = 0 ORDER BY admitted_at",
    )
    .bind(since_ms)
    .fetch_all(pool)
    .await?;
    rows.iter().map(|row| Ok((row.try_get("admitted_at")?, facts(row)?))).collect::<Sql<_>>().map_err(Into::into)
}
