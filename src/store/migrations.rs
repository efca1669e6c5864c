//! Migrations, common to all back ends: which are known, which are applied, which schema is rejected.
//!
//! A migration whose name begins with `expand` only adds: tables, nullable columns, indices. A version that does not know it
//! works beside versions that do, so versions N and N-1 run side by side, and N is rolled back without touching the schema. A
//! migration that removes something or changes its meaning has another name, and comes one version later.

use std::collections::BTreeMap;

use sqlx::migrate::Migrator;

use super::driver::{Driver, Fault, Sql, binds};
use super::row::Row;

/// Applied migrations by number.
pub(super) type AppliedMigrations = BTreeMap<i64, Applied>;

/// An applied migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Applied {
    /// The migration's name.
    pub(super) name: String,
    /// The checksum of the script that was run.
    pub(super) checksum: Vec<u8>,
}

/// The prefix of migrations that only add.
const EXPAND: &str = "expand";

/// Treatment of a missing or older schema when the store is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Migrate {
    /// The schema is migrated.
    Run,
    /// The schema is rejected.
    Reject,
}

/// The reason why a migration failed.
pub(super) enum Unfit {
    Fault(Fault),
    /// A sentence for an operator.
    Refused(String),
}

impl From<Fault> for Unfit {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Unfit {
    pub(super) fn said(self, explain: impl FnOnce(&Fault) -> String) -> String {
        match self {
            Self::Fault(fault) => explain(&fault),
            Self::Refused(why) => why,
        }
    }
}

/// Reads the applied migrations, without a write.
pub(super) async fn applied(c: &mut dyn Driver) -> Sql<AppliedMigrations> {
    let noted = "SELECT 1 FROM pg_tables WHERE schemaname = 'ringfence' AND tablename = $1";
    if c.fetch(noted, &binds!["_sqlx_migrations"]).await?.is_empty() {
        return Ok(AppliedMigrations::new());
    }
    let rows = c.fetch("SELECT version, description, checksum FROM _sqlx_migrations", &[]).await?;
    let one = |row: &Row| {
        Ok((
            row.number("version")?,
            Applied {
                name: row.text("description")?,
                checksum: row.optional_bytes("checksum").ok().flatten().unwrap_or_default(),
            },
        ))
    };
    rows.iter().map(one).collect()
}

/// Applies missing migrations, in the given transaction. The bookkeeping is that of sqlx's own migrator.
pub(super) async fn up(c: &mut dyn Driver, known: &Migrator) -> Result<(), Unfit> {
    let table = "CREATE TABLE IF NOT EXISTS _sqlx_migrations (version BIGINT PRIMARY KEY, description TEXT NOT NULL,
             installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, success BOOLEAN NOT NULL, checksum BYTEA NOT NULL,
             execution_time BIGINT NOT NULL)";
    c.script(table).await?;
    let applied = applied(c).await?;
    refuse_foreign(known, &applied).map_err(Unfit::Refused)?;
    for one in known.iter().filter(|m| m.migration_type.is_up_migration() && !applied.contains_key(&m.version)) {
        c.script(one.sql.as_str()).await?;
        let note = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES ($1, $2, true, $3, 0)";
        c.execute(note, &binds![one.version, &*one.description, &*one.checksum]).await?;
    }
    Ok(())
}

/// Reverts the latest migration, or all that are newer than `to`, in the given transaction.
pub(super) async fn down(c: &mut dyn Driver, known: &Migrator, to: Option<i64>) -> Result<(), Unfit> {
    let applied = applied(c).await?;
    refuse_unknown(known, &applied).map_err(Unfit::Refused)?;
    refuse_other(known, &applied).map_err(Unfit::Refused)?;
    let target = to.unwrap_or_else(|| applied.keys().rev().nth(1).copied().unwrap_or(0));
    let is_back = |version: i64| version > target && applied.contains_key(&version);
    let back = known.iter().filter(|m| m.migration_type.is_down_migration() && is_back(m.version));
    let mut back: Vec<_> = back.collect();
    back.sort_by_key(|m| std::cmp::Reverse(m.version));
    for one in back {
        c.script(one.sql.as_str()).await?;
        c.execute("DELETE FROM _sqlx_migrations WHERE version = $1", &binds![one.version]).await?;
    }
    Ok(())
}

/// One migration and whether it is applied.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Status {
    /// The migration's number.
    pub version: i64,
    /// The migration's name.
    pub name: String,
    /// Whether the database has it.
    pub applied: bool,
    /// Whether the one that the database has was another script by the same number: the schema is not the one of this version.
    pub differs: bool,
}

/// Every migration that this version knows.
pub(super) fn status(known: &Migrator, applied: &AppliedMigrations) -> Vec<Status> {
    let ups = known.iter().filter(|m| m.migration_type.is_up_migration());
    ups.map(|m| Status {
        version: m.version,
        name: m.description.to_string(),
        applied: applied.contains_key(&m.version),
        differs: applied.get(&m.version).is_some_and(|one| one.checksum != *m.checksum),
    })
    .collect()
}

/// Migrations that are missing.
pub(super) fn missing(known: &Migrator, applied: &AppliedMigrations) -> Vec<i64> {
    status(known, applied).into_iter().filter(|s| !s.applied).map(|s| s.version).collect()
}

/// Rejects a schema that this version does not know.
pub(super) fn check(known: &Migrator, applied: &AppliedMigrations) -> Result<(), String> {
    refuse_foreign(known, applied)?;
    let missing: Vec<String> = missing(known, applied).iter().map(i64::to_string).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!(
        "lacks migration {}: run `ringfence migrate up`, or set store.migrate_on_start = true",
        missing.join(", ")
    ))
}

/// Rejects a schema that this version cannot use: of a newer version, or made by other scripts.
pub(super) fn refuse_foreign(known: &Migrator, applied: &AppliedMigrations) -> Result<(), String> {
    refuse_newer(known, applied)?;
    refuse_other(known, applied)
}

/// Rejects a schema that was made by another script than the one of the same number that this version has.
fn refuse_other(known: &Migrator, applied: &AppliedMigrations) -> Result<(), String> {
    match status(known, applied).into_iter().find(|one| one.differs) {
        Some(one) => Err(format!(
            "was made by another build of ringfence: its migration {} is not the one of this version, so its tables may differ. Run the build that made it, restore a backup of this one, or use a new, empty store",
            one.version
        )),
        None => Ok(()),
    }
}

/// Rejects a schema of a newer version, unless its new migrations only add.
fn refuse_newer(known: &Migrator, applied: &AppliedMigrations) -> Result<(), String> {
    match newer(known, applied).find(|(_, one)| !one.name.starts_with(EXPAND)) {
        Some((version, _)) => Err(is_newer(known, version)),
        None => Ok(()),
    }
}

/// Rejects a schema of a newer version: this version cannot revert it.
pub(super) fn refuse_unknown(known: &Migrator, applied: &AppliedMigrations) -> Result<(), String> {
    newer(known, applied).last().map_or(Ok(()), |(version, _)| Err(is_newer(known, version)))
}

fn newest(known: &Migrator) -> i64 {
    known.iter().map(|m| m.version).max().unwrap_or(0)
}

fn newer<'a>(known: &Migrator, applied: &'a AppliedMigrations) -> impl Iterator<Item = (i64, &'a Applied)> {
    applied.range(newest(known) + 1..).map(|(version, one)| (*version, one))
}

fn is_newer(known: &Migrator, version: i64) -> String {
    let newest = newest(known);
    format!(
        "has migration {version}, of a newer ringfence; this one supports up to {newest}: run the newer one, or its `ringfence migrate down --to {newest}` first"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scripts of the same number that are not the same make another schema.
    #[test]
    fn a_schema_of_other_scripts_is_told_from_ours() {
        let known = sqlx::migrate!("migrations/sqlite");
        let ups = known.iter().filter(|m| m.migration_type.is_up_migration());
        let ours: AppliedMigrations = ups
            .map(|m| (m.version, Applied { name: m.description.to_string(), checksum: m.checksum.to_vec() }))
            .collect();
        assert_eq!(check(&known, &ours), Ok(()));
        let mut other = ours.clone();
        other.get_mut(&1).unwrap().checksum[0] ^= 1;
        for refused in [check(&known, &other), refuse_foreign(&known, &other), refuse_other(&known, &other)] {
            assert!(refused.unwrap_err().contains("migration 1 is not the one of this version"));
        }
        assert!(status(&known, &other)[0].differs && !status(&known, &ours)[0].differs);
        assert_eq!(check(&known, &AppliedMigrations::new()).unwrap_err().split(':').next(), Some("lacks migration 1"));
    }

    #[test]
    fn what_is_called_an_expansion_only_adds() {
        for known in [sqlx::migrate!("migrations/sqlite"), sqlx::migrate!("migrations/postgres")] {
            let ups = known.iter().filter(|m| m.migration_type.is_up_migration() && m.description.starts_with(EXPAND));
            for up in ups {
                let sql = up.sql.as_str().to_uppercase();
                for word in
                    ["DROP ", "RENAME ", "DELETE FROM", "UPDATE ", "TRUNCATE ", "ALTER COLUMN", "CREATE TRIGGER"]
                {
                    assert!(!sql.replace("ON UPDATE ", "").contains(word), "{}: {word}", up.description);
                }
            }
        }
    }
}
