//! Migrations of the embedded store. The files are built in.

use sqlx::migrate::{Migrate as _, MigrateError, Migrator};
use sqlx::sqlite::SqlitePool;
use sqlx::{AssertSqlSafe, SqliteConnection};

use super::super::migrations::{self, Applied, Status, TABLE};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// Brings the schema up to date.
pub async fn up(pool: &SqlitePool) -> Result<(), String> {
    let cannot = |why: String| format!("cannot be migrated: {why}");
    // All of the way in one transaction that writes from its beginning: of several processes that start at once one goes first.
    let mut all = pool.begin_with("BEGIN IMMEDIATE").await.map_err(|e| cannot(super::explain(&e)))?;
    let applied = applied_in(&mut all).await?;
    migrations::refuse_newer(&MIGRATIONS, &applied)?;
    for one in MIGRATIONS.iter().filter(|m| m.migration_type.is_up_migration() && !applied.contains_key(&m.version)) {
        all.apply(TABLE, one).await.map_err(|e| cannot(explain(&e)))?;
    }
    all.commit().await.map_err(|e| cannot(super::explain(&e)))
}

/// Takes back the latest migration, or all that are newer than `to`.
pub async fn down(pool: &SqlitePool, to: Option<i64>) -> Result<(), String> {
    let cannot = |why: String| format!("cannot be migrated down: {why}");
    let mut all = pool.begin_with("BEGIN IMMEDIATE").await.map_err(|e| cannot(super::explain(&e)))?;
    let applied = applied_in(&mut all).await?;
    migrations::refuse_unknown(&MIGRATIONS, &applied)?;
    let target = migrations::target(&applied, to);
    let is_back = |version: i64| version > target && applied.contains_key(&version);
    let back = MIGRATIONS.iter().filter(|m| m.migration_type.is_down_migration() && is_back(m.version));
    let mut back: Vec<_> = back.collect();
    back.sort_by_key(|m| std::cmp::Reverse(m.version));
    for one in back {
        all.revert(TABLE, one).await.map_err(|e| cannot(explain(&e)))?;
    }
    all.commit().await.map_err(|e| cannot(super::explain(&e)))
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
        None => Applied::new(),
    };
    migrations::refuse_newer(&MIGRATIONS, &applied)?;
    Ok(migrations::missing(&MIGRATIONS, &applied))
}

async fn applied(pool: &SqlitePool) -> Result<Applied, String> {
    let mut connection = pool.acquire().await.map_err(|e| format!("cannot be used: {}", super::explain(&e)))?;
    applied_in(&mut connection).await
}

async fn applied_in(connection: &mut SqliteConnection) -> Result<Applied, String> {
    let error = |why: String| format!("cannot be used: {why}");
    connection.ensure_migrations_table(TABLE).await.map_err(|e| error(explain(&e)))?;
    let rows = sqlx::query_as::<_, (i64, String)>(AssertSqlSafe(format!("SELECT version, description FROM {TABLE}")));
    let rows = rows.fetch_all(connection).await.map_err(|e| error(super::explain(&e)))?;
    Ok(rows.into_iter().collect())
}

fn explain(error: &MigrateError) -> String {
    match error {
        MigrateError::Execute(cause) | MigrateError::ExecuteMigration(cause, _) => super::explain(cause),
        other => other.to_string(),
    }
}
