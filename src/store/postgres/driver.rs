//! A connection to the server, for the queries.

use futures_util::FutureExt as _;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, PgConnection, Postgres};

use super::super::driver::{Driver, Fault, Value, Work};
use super::super::row::Row;
use super::sql::prepared;
use super::sql::{Sql, query};
use super::transaction::ADVISORY_LOCK_KEY;
use crate::ids::Alias;

/// The most rows of parameters whose statement is cached: its text depends on their number.
const KEPT_ROWS: usize = 4;

/// A Postgres connection, as the queries see it.
pub(super) struct Pg<'p>(pub(super) &'p mut PgConnection);

impl From<Fault> for sqlx::Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Postgres(error) => error,
            Fault::Unwritable(error) => Self::Encode(error.into()),
            other => Self::Decode(other.to_string().into()),
        }
    }
}

fn bound<'q>(
    query: Query<'q, Postgres, PgArguments>,
    binds: impl IntoIterator<Item = &'q Value<'q>>,
) -> Query<'q, Postgres, PgArguments> {
    binds.into_iter().fold(query, |query, value| match value {
        Value::Flag(flag) => query.bind(*flag),
        Value::Number(number) => query.bind(*number),
        Value::Float(number) => query.bind(*number),
        Value::Text(text) => query.bind(text.as_deref()),
        Value::Bytes(bytes) => query.bind(bytes.as_deref()),
        Value::Texts(texts) => query.bind(&texts[..]),
    })
}

/// `($1, $2), ($3, $4)`.
fn places(rows: usize, columns: usize) -> String {
    let row = |row: usize| {
        let columns: Vec<String> = (1..=columns).map(|column| format!("${}", row * columns + column)).collect();
        format!("({})", columns.join(", "))
    };
    (0..rows).map(row).collect::<Vec<_>>().join(", ")
}

/// Locks these ids until the transaction ends, in a fixed order, before any row is locked.
pub(super) async fn lock_ids(c: &mut PgConnection, aliases: &[Alias]) -> Sql<()> {
    if aliases.is_empty() {
        return Ok(());
    }
    let mut keys: Vec<String> = aliases.iter().map(|alias| format!("{}:{}", alias.kind, alias.id)).collect();
    keys.sort();
    query("SELECT count(pg_advisory_xact_lock(k)) FROM (SELECT DISTINCT hashtextextended(id, 0) AS k FROM unnest($1::text[]) AS id ORDER BY k) AS keys")
        .bind(keys)
        .execute(c)
        .await
        .map(drop)
}

impl Driver for Pg<'_> {
    fn fetch<'c>(&'c mut self, sql: &'static str, binds: &'c [Value<'c>]) -> Work<'c, Vec<Row>> {
        async move {
            let rows = bound(query(sql), binds).fetch_all(&mut *self.0).await?;
            Ok(rows.into_iter().map(Row::Postgres).collect())
        }
        .boxed()
    }

    fn execute<'c>(&'c mut self, sql: &'static str, binds: &'c [Value<'c>]) -> Work<'c, u64> {
        async move { Ok(bound(query(sql), binds).execute(&mut *self.0).await?.rows_affected()) }.boxed()
    }

    fn execute_all<'c>(&'c mut self, sql: &'static str, rows: Vec<Vec<Value<'c>>>) -> Work<'c, u64> {
        async move {
            let Some(columns) = rows.first().map(Vec::len) else { return Ok(0) };
            let sql = sql.replace("{rows}", &places(rows.len(), columns));
            let query = sqlx::query(AssertSqlSafe(sql)).persistent(prepared() && rows.len() <= KEPT_ROWS);
            Ok(bound(query, rows.iter().flatten()).execute(&mut *self.0).await?.rows_affected())
        }
        .boxed()
    }

    fn script<'c>(&'c mut self, sql: &'c str) -> Work<'c, ()> {
        async move { Ok(sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *self.0).await.map(drop)?) }.boxed()
    }

    fn may_wait(&self) -> bool {
        true
    }

    fn lock_ids<'c>(&'c mut self, aliases: &'c [Alias]) -> Work<'c, ()> {
        async move { Ok(lock_ids(self.0, aliases).await?) }.boxed()
    }

    fn lock_calls<'c>(&'c mut self, calls: &'c [&'c str]) -> Work<'c, ()> {
        async move {
            let lock = query("SELECT 1 FROM calls WHERE id = ANY($1) ORDER BY id FOR UPDATE").bind(calls);
            Ok(lock.execute(&mut *self.0).await.map(drop)?)
        }
        .boxed()
    }

    fn queue_transition(&mut self) -> Work<'_, ()> {
        async move {
            let queue = AssertSqlSafe(format!("SELECT pg_advisory_xact_lock({ADVISORY_LOCK_KEY})"));
            Ok(sqlx::raw_sql(queue).execute(&mut *self.0).await.map(drop)?)
        }
        .boxed()
    }
}
