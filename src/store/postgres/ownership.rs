//! Ownership of the database. The memory limiter needs one owner; processes that share the database are one owner, of one
//! generation, and each sends heartbeats for all. The owner sends one every [`OWNER_HEARTBEAT_INTERVAL`]; another process takes over only after
//! [`OWNER_TIMEOUT`] without one, by an update that is conditional on what it saw. No two clocks are compared, and an outage of
//! the server makes no process look dead. The old owner may only be suspended, so every write is bound to a generation
//! (`transaction.rs`).

use std::fs;
use std::time::{Duration, Instant};

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};

use super::super::membership::{LIVE_MS, host};
use super::sql::Sql;
use super::transaction::Db;
use crate::store::{OwnershipMode, StoreError};

/// The interval of heartbeats.
pub(super) const OWNER_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(2);
/// The silence of an owner after which another process takes over.
pub(super) const OWNER_TIMEOUT: Duration = Duration::from_secs(10);
/// The interval between checks of the owner while this process waits for the database.
pub(super) const WATCH_EVERY: Duration = Duration::from_millis(500);
/// The place of shared owners: none, as no process can see one of them dead.
const SHARED: &str = "shared by replicas";
/// The database's time in milliseconds.
const NOW: &str = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint";

/// An owner, as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnerRow {
    generation: i64,
    process: i64,
    host: String,
    place: String,
    since: i64,
    beat_at: Option<i64>,
}

impl OwnerRow {
    /// Whether several processes share it.
    pub(super) fn is_shared(&self) -> bool {
        self.place == SHARED
    }

    /// Whether it is shared, and this process wants to share it.
    pub(super) fn is_joined_by(&self, me: &ProcessId) -> bool {
        self.is_shared() && me.sharing == OwnershipMode::Shared
    }

    /// `ringfence, process 12 on web-1, since 2026-01-01T00:00:00Z`.
    pub(super) fn who(&self) -> String {
        let since = jiff::Timestamp::from_millisecond(self.since).unwrap_or_default();
        let since = since.strftime("%Y-%m-%dT%H:%M:%SZ");
        format!("ringfence, process {} on {}, since {since}", self.process, self.host)
    }

    /// Whether it gave up ownership, or is dead by this machine's process table.
    pub(super) fn is_over(&self, me: &ProcessId) -> bool {
        if self.beat_at.is_none() {
            return true;
        }
        let same_place =
            self.place.rsplit_once(' ').map(|(place, _)| place) == me.place.rsplit_once(' ').map(|(p, _)| p);
        // Another process may have its id by now: then its start time differs.
        same_place && Some(self.place.as_str()) != place(self.process).as_deref()
    }
}

/// This process.
#[derive(Debug, Clone)]
pub(super) struct ProcessId {
    process: i64,
    host: String,
    place: String,
    sharing: OwnershipMode,
}

impl ProcessId {
    pub(super) fn new(sharing: OwnershipMode) -> Self {
        let process = i64::from(std::process::id());
        Self { process, host: host(), place: place(process).unwrap_or_default(), sharing }
    }

    pub(super) fn sharing(&self) -> OwnershipMode {
        self.sharing
    }

    /// The text in the owner's row; older versions show the host, too.
    fn shown_host(&self) -> String {
        match self.sharing {
            OwnershipMode::Exclusive => self.host.clone(),
            OwnershipMode::Shared => format!("{} and other replicas", self.host),
        }
    }

    fn held_place(&self) -> &str {
        match self.sharing {
            OwnershipMode::Exclusive => &self.place,
            OwnershipMode::Shared => SHARED,
        }
    }
}

#[cfg(test)]
impl ProcessId {
    pub(super) fn place(&self) -> &str {
        &self.place
    }
}

/// Boot, process namespace and start time of a process; `None` if there is no such process, or no `/proc`.
fn place(process: i64) -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name, in parentheses, may contain spaces; the start time is field 22, the 20th after it. A zombie writes nothing.
    let mut behind = stat.rsplit_once(") ")?.1.split(' ');
    if behind.next()? == "Z" {
        return None;
    }
    Some(format!("{} {} {}", boot.trim(), namespace.display(), behind.nth(18)?))
}

fn seen(row: &PgRow) -> Sql<OwnerRow> {
    Ok(OwnerRow {
        generation: row.try_get("generation")?,
        process: row.try_get("process")?,
        host: row.try_get("host")?,
        place: row.try_get("place")?,
        since: row.try_get("since")?,
        beat_at: row.try_get("beat_at")?,
    })
}

/// Reads the owner.
pub(super) async fn read_owner(c: &mut PgConnection) -> Sql<Option<OwnerRow>> {
    let row = sqlx::query("SELECT * FROM holders WHERE gate = 'memory'").persistent(false).fetch_optional(c).await?;
    row.as_ref().map(seen).transpose()
}

/// Takes ownership from the owner that was seen, or from none; or joins those who share it. Returns the generation, if nothing
/// has changed since.
pub(super) async fn take(c: &mut PgConnection, me: &ProcessId, from: Option<&OwnerRow>) -> Sql<Option<i64>> {
    let joins = me.sharing == OwnershipMode::Shared && from.is_some_and(OwnerRow::is_shared);
    let sql = match from {
        None => {
            format!(
                "INSERT INTO holders (gate, generation, process, host, place, since, beat_at)
                 VALUES ('memory', 1, $1, $2, $3, {NOW}, {NOW}) ON CONFLICT DO NOTHING RETURNING generation"
            )
        }
        // Other sharers send heartbeats meanwhile; a takeover changes the generation.
        Some(_) if joins => {
            format!(
                "UPDATE holders SET process = $1, host = $2, place = $3, beat_at = {NOW}
                 WHERE gate = 'memory' AND generation = $4 RETURNING generation"
            )
        }
        Some(_) => {
            format!(
                "UPDATE holders SET generation = generation + 1, process = $1, host = $2, place = $3, since = {NOW}, beat_at = {NOW}
                 WHERE gate = 'memory' AND generation = $4 AND beat_at IS NOT DISTINCT FROM $5 RETURNING generation"
            )
        }
    };
    let mut query = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(false);
    query = query.bind(me.process).bind(me.shown_host()).bind(me.held_place());
    if let Some(from) = from {
        query = query.bind(from.generation);
        query = if joins { query } else { query.bind(from.beat_at) };
    }
    query.fetch_optional(c).await?.map(|row| row.try_get("generation")).transpose()
}

/// Runs in a write, which is bound to the generation. For shared ownership the last sender is named.
pub(super) async fn heartbeat(c: &mut PgConnection, me: ProcessId) -> Sql<()> {
    let sql = format!("UPDATE holders SET beat_at = {NOW}, process = $1, host = $2 WHERE gate = 'memory'");
    let query = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(false);
    query.bind(me.process).bind(me.shown_host()).execute(c).await.map(drop)
}

/// Runs in a write, which is bound to the generation. With shared ownership only the last process gives up: if others sent
/// heartbeats since, or are known to live, it stays theirs.
pub(super) async fn give_up(c: &mut PgConnection, me: ProcessId) -> Sql<()> {
    let sql = match me.sharing {
        OwnershipMode::Exclusive => "UPDATE holders SET beat_at = NULL WHERE gate = 'memory'".to_owned(),
        OwnershipMode::Shared => format!(
            "UPDATE holders SET beat_at = NULL WHERE gate = 'memory' AND process = {} AND host = $1
             AND NOT EXISTS (SELECT 1 FROM replicas WHERE beat_at > {NOW} - {LIVE_MS})",
            me.process
        ),
    };
    let query = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(false);
    match me.sharing {
        OwnershipMode::Exclusive => query.execute(c).await,
        OwnershipMode::Shared => query.bind(me.shown_host()).execute(c).await,
    }
    .map(drop)
}

/// The owner, if it is alive.
pub(super) async fn living_holder(db: &Db, me: &ProcessId) -> Result<Option<OwnerRow>, StoreError> {
    let seen: Option<OwnerRow> = db
        .read(|c| {
            Box::pin(async move {
                let there = sqlx::query("SELECT to_regclass('holders')::text AS name").persistent(false);
                match there.fetch_one(&mut *c).await?.try_get::<Option<String>, _>("name")? {
                    Some(_) => read_owner(c).await,
                    None => Ok(None),
                }
            })
        })
        .await?;
    Ok(seen.filter(|seen| !seen.is_over(me)))
}

/// Fails while a live process owns the database.
pub(super) async fn refuse_while_held(db: &Db) -> std::result::Result<(), String> {
    let me = ProcessId::new(OwnershipMode::Exclusive);
    let Some(first) = living_holder(db, &me).await.map_err(|e| e.to_string())? else { return Ok(()) };
    let watching = Instant::now();
    while watching.elapsed() < OWNER_TIMEOUT {
        tokio::time::sleep(WATCH_EVERY).await;
        match living_holder(db, &me).await.map_err(|e| e.to_string())? {
            None => return Ok(()),
            Some(now) if now != first => return Err(format!("is in use by {}: stop it first", now.who())),
            Some(_) => {}
        }
    }
    Ok(())
}
