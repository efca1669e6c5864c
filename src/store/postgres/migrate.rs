//! Migrations of the Postgres store, in its own schema. The files are built in. One command runs in one transaction under a
//! transaction lock: several processes may start at once, through any pooler.

use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, PgConnection, Postgres, Transaction};

use super::super::migrations::{self, AppliedMigrations, Status, Unfit};
use super::driver::Pg;
use super::ownership::refuse_while_held;
use super::settings::PostgresSettings;
use super::sql::explain;
use super::transaction::{Db, SCHEMA, Sessions};

/// A migration may rewrite a table.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(3600);
/// The key of the lock: an arbitrary number.
const LOCK: i64 = 0x7269_6e67_6665_6e63;

/// sqlx's own migrator is not used: its lock and prepared statements belong to a session, which a pooler may change.
fn known() -> Migrator {
    sqlx::migrate!("migrations/postgres")
}

/// Brings the schema up to date.
///
/// # Errors
/// A sentence for an operator: the server is unavailable, the schema is of a newer version, the role has no right.
pub async fn up(settings: &PostgresSettings) -> Result<(), String> {
    up_all(&connect(settings)?).await
}

/// Reverts the latest migration, or all that are newer than `to`. Fails while a process uses the database.
///
/// # Errors
/// As [`up`].
pub async fn down(settings: &PostgresSettings, to: Option<i64>) -> Result<(), String> {
    let db = connect(settings)?;
    refuse_while_held(&db).await?;
    let mut transaction = begin(&db).await?;
    let done = migrations::down(&mut Pg(&mut transaction), &known(), to).await;
    done.map_err(|unfit| unfit.said(|fault| format!("cannot be migrated down: {fault}")))?;
    commit(&db, transaction).await
}

/// Every migration that this version knows. Changes nothing.
///
/// # Errors
/// As [`up`].
pub async fn status(settings: &PostgresSettings) -> Result<Vec<Status>, String> {
    let db = connect(settings)?;
    let applied = read_applied(&db).await?;
    db.close().await;
    Ok(migrations::status(&known(), &applied))
}

/// Missing migrations, without a write. Rejects a schema that this version cannot use.
pub(super) async fn missing(db: &Db) -> Result<Vec<i64>, String> {
    let applied = read_applied(db).await?;
    migrations::refuse_foreign(&known(), &applied)?;
    Ok(migrations::missing(&known(), &applied))
}

pub(super) async fn up_all(db: &Db) -> Result<(), String> {
    let mut transaction = begin(db).await?;
    up_in(&mut transaction).await?;
    commit(db, transaction).await
}

/// Rejects a schema that this version does not know.
pub(super) async fn check(db: &Db) -> Result<(), String> {
    migrations::check(&known(), &read_applied(db).await?)
}

async fn up_in(c: &mut PgConnection) -> Result<(), String> {
    let cannot = |e: sqlx::Error| format!("cannot be migrated: {e}");
    // Checked first: creating one needs a right that an operator who created it may have withheld.
    let there = sqlx::query("SELECT 1 FROM pg_namespace WHERE nspname = $1").persistent(false).bind(SCHEMA);
    if there.fetch_optional(&mut *c).await.map_err(cannot)?.is_none() {
        let create = sqlx::raw_sql(AssertSqlSafe(format!("CREATE SCHEMA {SCHEMA}")));
        create.execute(&mut *c).await.map_err(cannot)?;
    }
    let done = migrations::up(&mut Pg(c), &known()).await;
    done.map_err(|unfit: Unfit| unfit.said(|fault| format!("cannot be migrated: {fault}")))
}

async fn read_applied(db: &Db) -> Result<AppliedMigrations, String> {
    db.read(|c| Box::pin(async move { Ok(migrations::applied(&mut Pg(c)).await?) }))
        .await
        .map_err(|e| format!("cannot be used: {e}"))
}

fn connect(settings: &PostgresSettings) -> Result<Db, String> {
    Db::new(settings, Sessions::Pooled).map_err(|e| format!("cannot be used: {}", explain(&e, &settings.shown())))
}

async fn begin(db: &Db) -> Result<Transaction<'static, Postgres>, String> {
    let begin = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL search_path TO {SCHEMA}; \
         SET LOCAL statement_timeout = {}; SET LOCAL client_min_messages = warning; SELECT pg_advisory_xact_lock({LOCK})",
        STATEMENT_TIMEOUT.as_millis()
    );
    db.pool.begin_with(AssertSqlSafe(begin)).await.map_err(|e| cannot(db, &e))
}

async fn commit(db: &Db, transaction: Transaction<'static, Postgres>) -> Result<(), String> {
    transaction.commit().await.map_err(|e| cannot(db, &e))
}

fn cannot(db: &Db, error: &sqlx::Error) -> String {
    format!("cannot be migrated: {}", explain(error, &db.shown))
}
