//! Leads from a database of the app's: one read-only query, row by row.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};
use tokio::sync::mpsc::Sender;

use super::PostgresSettings;
use super::sql::code;

/// Rows that are handed over at once.
const ROWS: usize = 500;

/// Asks a query with these parameters, which are texts, and hands its rows over as JSON objects: the columns are their fields. It runs in a
/// transaction that cannot write, and is canceled after `timeout`.
///
/// # Errors
/// A sentence for an operator. It holds no password.
pub async fn read(
    server: &PostgresSettings,
    query: &str,
    parameters: &[String],
    timeout: Duration,
    rows: &Sender<Vec<String>>,
) -> Result<(), String> {
    let shown = server.shown();
    let ask = async {
        let mut c = PgConnection::connect_with(&server.options()?).await?;
        let asked = ask(&mut c, query, parameters, timeout, rows).await;
        // Whatever it says to that: the rows have come, or have not.
        let _ = c.close().await;
        asked
    };
    match tokio::time::timeout(timeout, ask).await {
        Ok(asked) => asked.map_err(|error: sqlx::Error| explain(&error, &shown, timeout)),
        Err(_) => Err(format!("{shown} did not answer the query within {} s", timeout.as_secs())),
    }
}

async fn ask(
    c: &mut PgConnection,
    query: &str,
    parameters: &[String],
    timeout: Duration,
    rows: &Sender<Vec<String>>,
) -> Result<(), sqlx::Error> {
    let mut transaction = c.begin_with("BEGIN READ ONLY").await?;
    let cancel = format!("SET LOCAL statement_timeout = {}", timeout.as_millis());
    sqlx::raw_sql(AssertSqlSafe(cancel)).execute(&mut *transaction).await?;
    // As a part of ours it can be one SELECT and nothing else.
    let sql = format!("SELECT row_to_json(lead)::text FROM (\n{query}\n) AS lead");
    let asked = parameters.iter().fold(sqlx::query(AssertSqlSafe(sql)).persistent(false), |q, text| q.bind(text));
    let mut found = asked.fetch(&mut *transaction);
    let mut some = Vec::with_capacity(ROWS);
    while let Some(row) = found.try_next().await? {
        some.push(row.try_get::<String, _>(0)?);
        if some.len() >= ROWS && rows.send(std::mem::take(&mut some)).await.is_err() {
            // Nobody wants more of them.
            return Ok(());
        }
    }
    drop(found);
    let _ = rows.send(some).await;
    transaction.rollback().await
}

/// Values of the app are in no message of the server, only in its details.
fn explain(error: &sqlx::Error, shown: &str, timeout: Duration) -> String {
    match error {
        sqlx::Error::Io(cause) => format!("{shown} cannot be reached: {cause}"),
        sqlx::Error::Database(_) if code(error) == "57014" => {
            format!("{shown} did not answer the query within {} s", timeout.as_secs())
        }
        sqlx::Error::Database(_) if code(error) == "25006" => {
            "the query would write; a source of leads only reads".to_owned()
        }
        sqlx::Error::Database(cause) => format!("{shown} reports: {}", cause.message()),
        other => format!("{shown}: {other}"),
    }
}
