//! Which process has the record: the memory gate belongs to one. Or which processes share it: they are one holder, of one
//! generation, and each says for all of them that it is heard. A process that joins them changes no generation. Who has it says so every [`BEAT_EVERY`]; who wants it watches, and
//! takes it over only if nothing was heard for [`OWNER_TIMEOUT`], by a change that is conditional on what was seen. No two clocks are
//! compared, and an outage of the server makes nobody look dead. That the old holder may only sleep is why every write is
//! bound to a generation (`transact.rs`).

use std::fs;
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};

use super::super::membership::{LIVE_MS, host};
use super::Sql;
use crate::store::OwnershipMode;

/// How often the holder is heard.
pub(super) const BEAT_EVERY: Duration = Duration::from_secs(2);
/// How long a holder must not have been heard before another takes the record over.
pub(super) const OWNER_TIMEOUT: Duration = Duration::from_secs(10);
/// Where a record is that several share: no place where anybody could see one of them dead.
const SHARED: &str = "shared by replicas";
/// The database's time in milliseconds.
const NOW: &str = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint";

/// A holder, as it was seen.
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
    /// Several processes share it.
    pub(super) fn is_shared(&self) -> bool {
        self.place == SHARED
    }

    /// It is shared, and so is what this process wants of it.
    pub(super) fn is_joined_by(&self, me: &ProcessId) -> bool {
        self.is_shared() && me.sharing == OwnershipMode::Shared
    }

    /// `ringfence, process 12 on web-1, since 2026-01-01T00:00:00Z`.
    pub(super) fn who(&self) -> String {
        let since = jiff::Timestamp::from_millisecond(self.since).unwrap_or_default();
        let since = since.strftime("%Y-%m-%dT%H:%M:%SZ");
        format!("ringfence, process {} on {}, since {since}", self.process, self.host)
    }

    /// It gave the record up, or died where we can see it.
    pub(super) fn is_over(&self, me: &ProcessId) -> bool {
        if self.beat_at.is_none() {
            return true;
        }
        let same_place =
            self.place.rsplit_once(' ').map(|(place, _)| place) == me.place.rsplit_once(' ').map(|(p, _)| p);
        // Another process may have its number by now: then it started at another time.
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

    /// As the holder's row says it; older versions show the host, too.
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
    // The name, in parentheses, may hold spaces; the start time is field 22, the 20th behind it. A zombie writes nothing.
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

/// Who has it.
pub(super) async fn look(c: &mut PgConnection) -> Sql<Option<OwnerRow>> {
    let row = sqlx::query("SELECT * FROM holders WHERE gate = 'memory'").persistent(false).fetch_optional(c).await?;
    row.as_ref().map(seen).transpose()
}

/// Takes it over from a holder that was seen so, or from nobody; or joins those who share it. The generation, if nothing has
/// changed since.
pub(super) async fn take(c: &mut PgConnection, me: &ProcessId, from: Option<&OwnerRow>) -> Sql<Option<i64>> {
    let joins = me.sharing == OwnershipMode::Shared && from.is_some_and(OwnerRow::is_shared);
    let sql = match from {
        None => {
            format!(
                "INSERT INTO holders (gate, generation, process, host, place, since, beat_at)
                 VALUES ('memory', 1, $1, $2, $3, {NOW}, {NOW}) ON CONFLICT DO NOTHING RETURNING generation"
            )
        }
        // Others beat all the while; and whoever takes the record over meanwhile changes the generation.
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

/// In a write, which is bound to the generation already. Of those who share it, the last that was heard is named.
pub(super) async fn heartbeat(c: &mut PgConnection, me: ProcessId) -> Sql<()> {
    let sql = format!("UPDATE holders SET beat_at = {NOW}, process = $1, host = $2 WHERE gate = 'memory'");
    let query = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(false);
    query.bind(me.process).bind(me.shown_host()).execute(c).await.map(drop)
}

/// In a write, which is bound to the generation already. Where several share it, only the last of them: if others were heard
/// since this one, or are known to live, it stays theirs.
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
