//! Migrations of the embedded store. The files are built in.

use std::collections::BTreeSet;

use sqlx::migrate::{Migrate as _, MigrateError, Migrator};
use sqlx::sqlite::SqlitePool;

/// Where sqlx notes what is applied.
const TABLE: &str = "_sqlx_migrations";

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// One migration and whether it is applied.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Status {
    /// Its number.
    pub version: i64,
    /// Its name.
    pub name: String,
    /// Whether the database has it.
    pub applied: bool,
}

/// Brings the schema up to date.
pub async fn up(pool: &SqlitePool) -> Result<(), String> {
    refuse_newer(pool).await?;
    MIGRATIONS.run(pool).await.map_err(|e| format!("cannot be migrated: {}", explain(&e)))
}

/// Takes back the latest migration, or all that are newer than `to`.
pub async fn down(pool: &SqlitePool, to: Option<i64>) -> Result<(), String> {
    refuse_newer(pool).await?;
    let applied = applied(pool).await?;
    let target = to.unwrap_or_else(|| applied.iter().rev().nth(1).copied().unwrap_or(0));
    MIGRATIONS.undo(pool, target).await.map_err(|e| format!("cannot be migrated down: {}", explain(&e)))
}

/// Every migration that this version knows.
pub async fn status(pool: &SqlitePool) -> Result<Vec<Status>, String> {
    let applied = applied(pool).await?;
    let known = MIGRATIONS.iter().filter(|m| m.migration_type.is_up_migration());
    Ok(known
        .map(|m| Status { version: m.version, name: m.description.to_string(), applied: applied.contains(&m.version) })
        .collect())
}

/// Refuses a schema that this version does not know.
pub async fn check(pool: &SqlitePool) -> Result<(), String> {
    refuse_newer(pool).await?;
    let missing: Vec<String> =
        status(pool).await?.into_iter().filter(|s| !s.applied).map(|s| s.version.to_string()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!(
        "lacks migration {}: run `ringfence migrate up`, or set store.migrate_on_start = true",
        missing.join(", ")
    ))
}

/// Migrations that are missing, without a write. Refuses a schema of a newer version.
pub(super) async fn missing(pool: &SqlitePool) -> Result<Vec<i64>, String> {
    let read = |e: sqlx::Error| format!("cannot be used: {}", super::explain(&e));
    let noted = sqlx::query_scalar::<_, String>("SELECT name FROM sqlite_master WHERE type = 'table' AND name = $1");
    let applied = match noted.bind(TABLE).fetch_optional(pool).await.map_err(read)? {
        Some(_) => applied(pool).await?,
        None => BTreeSet::new(),
    };
    refuse_newer_than(&applied)?;
    let known = MIGRATIONS.iter().filter(|m| m.migration_type.is_up_migration()).map(|m| m.version);
    Ok(known.filter(|version| !applied.contains(version)).collect())
}

async fn refuse_newer(pool: &SqlitePool) -> Result<(), String> {
    refuse_newer_than(&applied(pool).await?)
}

fn refuse_newer_than(applied: &BTreeSet<i64>) -> Result<(), String> {
    let newest = MIGRATIONS.iter().map(|m| m.version).max().unwrap_or(0);
    match applied.last() {
        Some(version) if *version > newest => Err(format!(
            "has migration {version}, of a newer ringfence; this one knows up to {newest}: run the newer one, or its `ringfence migrate down --to {newest}` first"
        )),
        _ => Ok(()),
    }
}

async fn applied(pool: &SqlitePool) -> Result<BTreeSet<i64>, String> {
    let error = |why: String| format!("cannot be used: {why}");
    let mut connection = pool.acquire().await.map_err(|e| error(super::explain(&e)))?;
    connection.ensure_migrations_table(TABLE).await.map_err(|e| error(explain(&e)))?;
    let applied = connection.list_applied_migrations(TABLE).await.map_err(|e| error(explain(&e)))?;
    Ok(applied.into_iter().map(|m| m.version).collect())
}

fn explain(error: &MigrateError) -> String {
    match error {
        MigrateError::Execute(cause) | MigrateError::ExecuteMigration(cause, _) => super::explain(cause),
        other => other.to_string(),
    }
}
