//! Migrations of the Postgres store, in its own schema. The files are built in. All of a way up or down is one transaction
//! under a lock of that transaction: several processes may begin at once, through any pooler.

use std::collections::BTreeSet;
use std::time::Duration;

use sqlx::migrate::{Migrate as _, MigrateError, Migrator};
use sqlx::{PgConnection, Postgres, Row as _, Transaction};

use super::super::migrations::{self, Status, TABLE};
use super::transact::SCHEMA;
use super::{Db, Settings, explain};

/// A migration may rewrite a table.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(3600);
/// The key of the lock: any number that nobody else takes.
const LOCK: i64 = 0x7269_6e67_6665_6e63;

fn known() -> Migrator {
    let mut migrations = sqlx::migrate!("migrations/postgres");
    // sqlx's own lock belongs to a session, which a pooler gives to others.
    migrations.set_locking(false);
    migrations
}

/// Brings the schema up to date.
///
/// # Errors
/// A sentence for an operator: the server is away, the schema is of a newer version, the role may not.
pub async fn up(settings: &Settings) -> Result<(), String> {
    up_all(&connect(settings)?).await
}

/// Takes back the latest migration, or all that are newer than `to`. Refuses while a process has the record.
///
/// # Errors
/// As [`up`].
pub async fn down(settings: &Settings, to: Option<i64>) -> Result<(), String> {
    let db = connect(settings)?;
    super::refuse_while_held(&db).await?;
    let mut transaction = begin(&db).await?;
    let applied = applied(&mut transaction).await?;
    migrations::refuse_newer(&known(), &applied)?;
    let target = migrations::target(&applied, to);
    let undone = known().undo(&mut *transaction, target).await;
    undone.map_err(|e| format!("cannot be migrated down: {}", why(&e)))?;
    commit(&db, transaction).await
}

/// Every migration that this version knows. Changes nothing.
///
/// # Errors
/// As [`up`].
pub async fn status(settings: &Settings) -> Result<Vec<Status>, String> {
    let db = connect(settings)?;
    let applied = read_applied(&db).await?;
    db.close().await;
    Ok(migrations::status(&known(), &applied))
}

/// Migrations that are missing, without a write. Refuses a schema of a newer version.
pub(super) async fn missing(db: &Db) -> Result<Vec<i64>, String> {
    let applied = read_applied(db).await?;
    migrations::refuse_newer(&known(), &applied)?;
    Ok(migrations::missing(&known(), &applied))
}

pub(super) async fn up_all(db: &Db) -> Result<(), String> {
    let mut transaction = begin(db).await?;
    up_in(&mut transaction).await?;
    commit(db, transaction).await
}

/// Refuses a schema that this version does not know.
pub(super) async fn check(db: &Db) -> Result<(), String> {
    migrations::check(&known(), &read_applied(db).await?)
}

async fn up_in(c: &mut PgConnection) -> Result<(), String> {
    let cannot = |e: sqlx::Error| format!("cannot be migrated: {e}");
    // Asked first: making one takes a right that an operator may have kept, having made it.
    let there = sqlx::query("SELECT 1 FROM pg_namespace WHERE nspname = $1").persistent(false).bind(SCHEMA);
    if there.fetch_optional(&mut *c).await.map_err(cannot)?.is_none() {
        let make = format!("CREATE SCHEMA {SCHEMA}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(make)).execute(&mut *c).await.map_err(cannot)?;
    }
    let applied = applied(c).await?;
    migrations::refuse_newer(&known(), &applied)?;
    known().run_direct(None, c, false).await.map_err(|e| format!("cannot be migrated: {}", why(&e)))
}

async fn applied(c: &mut PgConnection) -> Result<BTreeSet<i64>, String> {
    let error = |e: MigrateError| format!("cannot be used: {}", why(&e));
    c.ensure_migrations_table(TABLE).await.map_err(error)?;
    let applied = c.list_applied_migrations(TABLE).await.map_err(error)?;
    Ok(applied.into_iter().map(|m| m.version).collect())
}

async fn read_applied(db: &Db) -> Result<BTreeSet<i64>, String> {
    let read = db.read(|c| {
        Box::pin(async move {
            let there = sqlx::query("SELECT to_regclass($1)::text AS name").persistent(false);
            let there = there.bind(format!("{SCHEMA}.{TABLE}")).fetch_one(&mut *c).await?;
            if there.try_get::<Option<String>, _>("name")?.is_none() {
                return Ok(BTreeSet::new());
            }
            let sql = format!("SELECT version FROM {TABLE}");
            let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(false).fetch_all(&mut *c).await?;
            rows.iter().map(|row| row.try_get("version")).collect()
        })
    });
    read.await.map_err(|e| format!("cannot be used: {e}"))
}

fn connect(settings: &Settings) -> Result<Db, String> {
    Db::new(settings, false).map_err(|e| format!("cannot be used: {}", explain(&e, &settings.shown())))
}

async fn begin(db: &Db) -> Result<Transaction<'static, Postgres>, String> {
    let begin = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL search_path TO {SCHEMA}; \
         SET LOCAL statement_timeout = {}; SET LOCAL client_min_messages = warning; SELECT pg_advisory_xact_lock({LOCK})",
        STATEMENT_TIMEOUT.as_millis()
    );
    db.pool.begin_with(sqlx::AssertSqlSafe(begin)).await.map_err(|e| cannot(db, &e))
}

async fn commit(db: &Db, transaction: Transaction<'static, Postgres>) -> Result<(), String> {
    transaction.commit().await.map_err(|e| cannot(db, &e))
}

fn cannot(db: &Db, error: &sqlx::Error) -> String {
    format!("cannot be migrated: {}", explain(error, &db.shown))
}

fn why(error: &MigrateError) -> String {
    match error {
        MigrateError::Execute(cause) | MigrateError::ExecuteMigration(cause, _) => cause.to_string(),
        other => other.to_string(),
    }
}
