//! `[store]` and `[gate]`: the database, and the limiter.

use std::path::PathBuf;
use std::time::Duration;

use super::policy::ON_OUTAGE;
use super::table::Table;
use super::values::POSTGRES_SOCKET;
use crate::admission::AdmissionSettings;
use crate::admission::limiter::redis::RedisSettings;
use crate::policy::decision::GateMode;
use crate::policy::{OnOutage, RETENTION_DAYS};
use crate::store::Migrate;
use crate::store::postgres::{Pooler, PostgresSettings};

/// The database.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    /// The SQLite file, unless there is a Postgres server.
    pub path: PathBuf,
    /// The Postgres server.
    pub postgres: Option<PostgresSettings>,
    /// Treatment of a missing or older schema at start.
    pub migrate_on_start: Migrate,
    /// Ended calls, webhooks and rejections older than this are deleted, unless their business has its own retention.
    pub retention_days: u32,
}

impl StoreSettings {
    /// The kind of database: `postgres` or `sqlite`.
    pub fn backend(&self) -> &'static str {
        if self.postgres.is_some() { "postgres" } else { "sqlite" }
    }

    /// The default folder of large bodies: named after the database file and beside it; else in the working folder.
    pub(super) fn default_spool(&self) -> PathBuf {
        if self.postgres.is_some() {
            return PathBuf::from("ringfence-spool");
        }
        let mut path = self.path.clone().into_os_string();
        path.push("-spool");
        path.into()
    }

    /// The default path of the Unix socket of `listen.admin`: named after the database file and beside it; else beside the config.
    pub(super) fn default_socket(&self, folder: &std::path::Path) -> PathBuf {
        if self.postgres.is_some() {
            return folder.join(POSTGRES_SOCKET);
        }
        let mut path = self.path.clone().into_os_string();
        path.push("-admin.sock");
        path.into()
    }

    /// The database's path or URL, without a password.
    pub fn shown(&self) -> String {
        self.postgres.as_ref().map_or_else(|| self.path.display().to_string(), PostgresSettings::shown)
    }
}

pub(super) fn store(root: &Table<'_>, folder: &std::path::Path) -> StoreSettings {
    let table = root.table("store");
    let path = folder.join(table.text("path").unwrap_or_else(|| "ringfence.db".to_owned()));
    let url = table.secret("url");
    let (pool_max, statement_timeout_ms) =
        (table.count("pool_max", 2..=1000), table.number("statement_timeout_ms", 100..=60_000));
    let poolers = [("detect", Pooler::Detect), ("transaction", Pooler::Transaction), ("none", Pooler::None)];
    let pooler = table.word("pooler", &poolers);
    let postgres = url.and_then(|url| {
        let mut server = PostgresSettings::new(url)
            .map_err(|why| table.report().error("E003", table.span("url"), format!("`store.url` {why}"), ""))
            .ok()?;
        server.pool_max = pool_max.unwrap_or(server.pool_max);
        server.statement_timeout = statement_timeout_ms.map_or(server.statement_timeout, Duration::from_millis);
        server.pooler = pooler.unwrap_or(server.pooler);
        if let Some(why) = server.exposed() {
            let title = format!("the database could be read or forged in transit: `store.url`: {why}");
            let help = "add ?sslmode=verify-full, and sslrootcert=FILE where its certificate is your own";
            table.report().warning("W008", table.span("url"), title, help);
        }
        Some(server)
    });
    let settings = StoreSettings {
        path,
        postgres,
        migrate_on_start: match table.flag("migrate_on_start") {
            Some(false) => Migrate::Reject,
            Some(true) | None => Migrate::Run,
        },
        retention_days: table.count("retention_days", RETENTION_DAYS).unwrap_or(30),
    };
    table.finish();
    settings
}

pub(super) fn gate(root: &Table<'_>, folder: &std::path::Path) -> (AdmissionSettings, Option<RedisSettings>, OnOutage) {
    let table = root.table("gate");
    let default = AdmissionSettings::default();
    let modes = [GateMode::Memory, GateMode::Database, GateMode::Redis].map(|mode| (mode.as_str(), mode));
    let home = table.word("backend", &modes).unwrap_or(default.home);
    let ms = |key, range, default: Duration| table.number(key, range).map_or(default, Duration::from_millis);
    let settings = AdmissionSettings {
        home,
        fallback_after: ms("fallback_after_ms", 100..=600_000, default.fallback_after),
        return_after: ms("return_after_ms", 100..=3_600_000, default.return_after),
        audit_interval: table
            .number("audit_interval_secs", 1..=86_400)
            .map_or(default.audit_interval, Duration::from_secs),
    };
    let (url, ca_file) = (table.secret("redis_url"), table.text("redis_ca_file"));
    let (pool, timeout_ms) = (table.text("pool"), table.number("timeout_ms", 5..=5_000));
    let on_outage = table.word("on_outage", &ON_OUTAGE).unwrap_or_default();
    if home == GateMode::Redis && url.is_none() {
        let title = "gate.backend is \"redis\", but there is no gate.redis_url";
        let help = "write redis_url = { env = \"REDIS_URL\" }, as in redis://user:password@host:6379";
        root.report().error("E004", table.span("backend"), title, help);
    }
    let redis = url.filter(|_| home == GateMode::Redis).and_then(|url| {
        let mut server = RedisSettings::new(url)
            .map_err(|why| table.report().error("E003", table.span("redis_url"), format!("`gate.redis_url` {why}"), ""))
            .ok()?;
        server.ca_file = ca_file.map(|file| folder.join(file));
        server.pool = pool.unwrap_or(server.pool);
        server.timeout = timeout_ms.map_or(server.timeout, Duration::from_millis);
        if let Some(why) = server.exposed() {
            let title = format!("the limiter could be read or forged in transit: `gate.redis_url`: {why}");
            table.report().warning("W008", table.span("redis_url"), title, "use rediss://");
        }
        Some(server)
    });
    table.finish();
    (settings, redis, on_outage)
}
