//! Migrations of the embedded store. The files are built in. One command is one write transaction: of several processes that
//! start at once one goes first.

use std::path::Path;

use sqlx::migrate::Migrator;

use super::super::OwnershipMode;
use super::super::migrations::{self, AppliedMigrations, Status, Unfit};
use super::blocking::on_thread;
use super::driver::{Sqlite, at_once, explain};
use super::lock::FileLock;

pub(super) static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// Applies missing migrations.
///
/// # Errors
/// A sentence for an operator: the file cannot be used, its schema is of a newer version, or was made by other scripts.
pub async fn up(path: &Path) -> Result<(), String> {
    with(path, |c| up_in(c, &MIGRATIONS)).await
}

/// Reverts the latest migration, or all that are newer than `to`. Fails while a process has the file open.
///
/// # Errors
/// As [`up`].
pub async fn down(path: &Path, to: Option<i64>) -> Result<(), String> {
    let _alone = FileLock::hold(path, OwnershipMode::Exclusive).await.map_err(|e| format!("cannot be used: {e}"))?;
    with(path, move |c| down_in(c, &MIGRATIONS, to)).await
}

/// Every migration that this version knows.
///
/// # Errors
/// As [`up`].
pub async fn status(path: &Path) -> Result<Vec<Status>, String> {
    with(path, |c| Ok(migrations::status(&MIGRATIONS, &applied(c)?))).await
}

async fn with<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce(&mut Sqlite) -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let path = path.to_owned();
    let cannot = |why: String| format!("cannot be used: {why}");
    on_thread(move || work(&mut Sqlite::open_or_create(&path).map_err(|e| cannot(explain(&e)))?)).await
}

pub(super) fn up_in(c: &mut Sqlite, known: &Migrator) -> Result<(), String> {
    let done = c.between("BEGIN IMMEDIATE", |c| at_once(migrations::up(c, known)));
    done.map_err(|unfit: Unfit| unfit.said(|fault| format!("cannot be migrated: {}", explain(fault))))
}

pub(super) fn down_in(c: &mut Sqlite, known: &Migrator, to: Option<i64>) -> Result<(), String> {
    let done = c.between("BEGIN IMMEDIATE", |c| at_once(migrations::down(c, known, to)));
    done.map_err(|unfit: Unfit| unfit.said(|fault| format!("cannot be migrated down: {}", explain(fault))))
}

/// Rejects a schema that this version does not know.
pub(super) fn check(c: &mut Sqlite) -> Result<(), String> {
    migrations::check(&MIGRATIONS, &applied(c)?)
}

/// Missing migrations, without a write. Rejects a schema that this version cannot use.
pub(super) fn missing(c: &mut Sqlite) -> Result<Vec<i64>, String> {
    let applied = applied(c)?;
    migrations::refuse_foreign(&MIGRATIONS, &applied)?;
    Ok(migrations::missing(&MIGRATIONS, &applied))
}

fn applied(c: &mut Sqlite) -> Result<AppliedMigrations, String> {
    at_once(migrations::applied(c)).map_err(|e| format!("cannot be used: {}", explain(&e)))
}
