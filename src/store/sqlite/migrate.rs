//! Migrations of the embedded store. The files are built in.

use std::collections::BTreeSet;

use sqlx::migrate::{Migrate as _, MigrateError, Migrator};
use sqlx::sqlite::SqlitePool;

use super::super::migrations::{self, Status, TABLE};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// Brings the schema up to date.
pub async fn up(pool: &SqlitePool) -> Result<(), String> {
    migrations::refuse_newer(&MIGRATIONS, &applied(pool).await?)?;
    MIGRATIONS.run(pool).await.map_err(|e| format!("cannot be migrated: {}", explain(&e)))
}

/// Takes back the latest migration, or all that are newer than `to`.
pub async fn down(pool: &SqlitePool, to: Option<i64>) -> Result<(), String> {
    migrations::refuse_newer(&MIGRATIONS, &applied(pool).await?)?;
    let target = migrations::target(&applied(pool).await?, to);
    MIGRATIONS.undo(pool, target).await.map_err(|e| format!("cannot be migrated down: {}", explain(&e)))
}

/// Every migration that this version knows.
pub async fn status(pool: &SqlitePool) -> Result<Vec<Status>, String> {
    Ok(migrations::status(&MIGRATIONS, &applied(pool).await?))
}

/// Refuses a schema that this version does not know.
pub async fn check(pool: &SqlitePool) -> Result<(), String> {
    migrations::check(&MIGRATIONS, &applied(pool).await?)
}

/// Migrations that are missing, without a write. Refuses a schema of a newer version.
pub(super) async fn missing(pool: &SqlitePool) -> Result<Vec<i64>, String> {
    let read = |e: sqlx::Error| format!("cannot be used: {}", super::explain(&e));
    let noted = sqlx::query_scalar::<_, String>("SELECT name FROM sqlite_master WHERE type = 'table' AND name = $1");
    let applied = match noted.bind(TABLE).fetch_optional(pool).await.map_err(read)? {
        Some(_) => applied(pool).await?,
        None => BTreeSet::new(),
    };
    migrations::refuse_newer(&MIGRATIONS, &applied)?;
    Ok(migrations::missing(&MIGRATIONS, &applied))
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
