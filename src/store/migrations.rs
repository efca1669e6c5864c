//! What migrations of every back end have in common: which are known, which are applied, which schema is refused.

use std::collections::BTreeSet;

use sqlx::migrate::Migrator;

/// Where sqlx notes what is applied.
pub(super) const TABLE: &str = "_sqlx_migrations";

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

/// Every migration that this version knows.
pub(super) fn status(known: &Migrator, applied: &BTreeSet<i64>) -> Vec<Status> {
    let ups = known.iter().filter(|m| m.migration_type.is_up_migration());
    ups.map(|m| Status { version: m.version, name: m.description.to_string(), applied: applied.contains(&m.version) })
        .collect()
}

/// Migrations that are missing.
pub(super) fn missing(known: &Migrator, applied: &BTreeSet<i64>) -> Vec<i64> {
    status(known, applied).into_iter().filter(|s| !s.applied).map(|s| s.version).collect()
}

/// Refuses a schema that this version does not know.
pub(super) fn check(known: &Migrator, applied: &BTreeSet<i64>) -> Result<(), String> {
    refuse_newer(known, applied)?;
    let missing: Vec<String> = missing(known, applied).iter().map(i64::to_string).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!(
        "lacks migration {}: run `ringfence migrate up`, or set store.migrate_on_start = true",
        missing.join(", ")
    ))
}

/// Refuses a schema of a newer version.
pub(super) fn refuse_newer(known: &Migrator, applied: &BTreeSet<i64>) -> Result<(), String> {
    let newest = known.iter().map(|m| m.version).max().unwrap_or(0);
    match applied.last() {
        Some(version) if *version > newest => Err(format!(
            "has migration {version}, of a newer ringfence; this one knows up to {newest}: run the newer one, or its `ringfence migrate down --to {newest}` first"
        )),
        _ => Ok(()),
    }
}

/// Where a way down leads: to the version asked for, else one step.
pub(super) fn target(applied: &BTreeSet<i64>, to: Option<i64>) -> i64 {
    to.unwrap_or_else(|| applied.iter().rev().nth(1).copied().unwrap_or(0))
}
