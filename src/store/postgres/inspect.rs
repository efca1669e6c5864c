//! Inspects a server and its store without changing them: at the start, and for `ringfence check --live`.

use sqlx::{ConnectOptions as _, Connection as _, PgConnection, Row as _};

use super::super::OwnershipMode;
use super::migrate;
use super::ownership::{ProcessId, living_holder};
use super::settings::{Pooler, PostgresSettings};
use super::sql::{Sql, code, explain, is_outside};
use super::transaction::{Db, Sessions};
use crate::clock::Clock;

/// A server's properties.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// The server's version.
    pub version: String,
    /// Whether the server is behind a pooler: every transaction may run in another session.
    pub pooled: bool,
    /// `synchronous_commit` for our role in our database.
    pub synchronous_commit: String,
    /// `fsync`.
    pub fsync: String,
    /// The seconds by which its clock is ahead of ours.
    pub ahead_secs: i64,
}

impl Server {
    /// The reason why acknowledged writes may be lost, if they may.
    pub fn unsafe_because(&self) -> Option<String> {
        (self.synchronous_commit == "off").then(|| {
            "has synchronous_commit = off: a call that was admitted could be forgotten in a crash of the server. \
             Set it for this role: ALTER ROLE … SET synchronous_commit = on"
                .to_owned()
        })
    }
}

/// The reason why a server cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// The server is unavailable: waiting may help.
    Away(String),
    /// An operator has to act.
    Unusable(String),
}

/// The state of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected {
    /// The server.
    pub server: Server,
    /// Migrations that are missing.
    pub missing: Vec<i64>,
    /// The recorded owner, live or not.
    pub holder: Option<String>,
}

/// Inspects a server.
///
/// # Errors
/// It does not answer, or cannot be used; sentences for an operator, without a password.
pub async fn server(settings: &PostgresSettings) -> Result<Server, Unfit> {
    let looked = tokio::time::timeout(settings.statement_timeout, read_server(settings)).await;
    let shown = settings.shown();
    match looked {
        Ok(Ok((server, false))) => Ok(server),
        Ok(Ok((_, true))) => Err(Unfit::Away(format!("{shown} is a standby: it takes no writes"))),
        Ok(Err(error)) => {
            let code = code(&error);
            // A wrong password, a missing database, a missing file in the URL: waiting does not help.
            let ours =
                code.starts_with("28") || code.starts_with("3D") || matches!(error, sqlx::Error::Configuration(_));
            let why = explain(&error, &shown);
            Err(if ours || !is_outside(&error) {
                Unfit::Unusable(format!("cannot be used: {why}"))
            } else {
                Unfit::Away(why)
            })
        }
        Err(_) => {
            Err(Unfit::Away(format!("{shown} does not answer within {} s", settings.statement_timeout.as_secs_f64())))
        }
    }
}

async fn read_server(settings: &PostgresSettings) -> Result<(Server, bool), sqlx::Error> {
    let mut c = settings.options()?.statement_cache_capacity(0).connect().await?;
    let asked = sqlx::raw_sql(
        "SELECT current_setting('server_version') AS version, current_setting('synchronous_commit') AS synchronous_commit,
             current_setting('fsync') AS fsync, pg_is_in_recovery() AS standby,
             extract(epoch FROM clock_timestamp())::bigint AS now_secs",
    );
    let row = asked.fetch_one(&mut c).await?;
    let ahead_secs = row.try_get::<i64, _>("now_secs")? - Clock::system().now_ms() / 1000;
    let pooled = match settings.pooler {
        Pooler::Detect => is_pooled(settings).await?,
        Pooler::Transaction => true,
        Pooler::None => false,
    };
    let server = Server {
        version: row.try_get("version")?,
        pooled,
        synchronous_commit: row.try_get("synchronous_commit")?,
        fsync: row.try_get("fsync")?,
        ahead_secs,
    };
    let standby = row.try_get("standby")?;
    let _ = c.close().await;
    Ok((server, standby))
}

/// Inspects a store.
///
/// # Errors
/// What would make a start fail, or wait: sentences for an operator.
pub async fn inspect(settings: &PostgresSettings) -> Result<Inspected, String> {
    let server = server(settings).await.map_err(|unfit| match unfit {
        Unfit::Away(why) => why,
        Unfit::Unusable(why) => format!("{} {why}", settings.shown()),
    })?;
    let shown = settings.shown();
    if let Some(why) = server.unsafe_because() {
        return Err(format!("{shown} {why}"));
    }
    let db = Db::new(settings, Sessions::Pooled).map_err(|e| explain(&e, &shown))?;
    let missing = migrate::missing(&db).await.map_err(|why| format!("{shown} {why}"))?;
    let holder = living_holder(&db, &ProcessId::new(OwnershipMode::Exclusive)).await.map_err(|e| e.to_string())?;
    db.close().await;
    Ok(Inspected { server, missing, holder: holder.map(|seen| seen.who()) })
}

async fn session(c: &mut PgConnection) -> Sql<i32> {
    sqlx::raw_sql("SELECT pg_backend_pid() AS pid").fetch_one(c).await?.try_get("pid")
}

/// Whether two connections shared a session, or one connection used two: only a pooler does that.
async fn is_pooled(settings: &PostgresSettings) -> Sql<bool> {
    let options = settings.options()?.statement_cache_capacity(0);
    let (mut one, mut other) = (options.connect().await?, options.connect().await?);
    let mut pooled = false;
    for _ in 0..3 {
        let first = session(&mut one).await?;
        sqlx::raw_sql("BEGIN").execute(&mut other).await?;
        let second = session(&mut other).await?;
        let third = session(&mut one).await?;
        sqlx::raw_sql("ROLLBACK").execute(&mut other).await?;
        pooled |= first == second || first != third;
    }
    let _ = tokio::join!(one.close(), other.close());
    Ok(pooled)
}
