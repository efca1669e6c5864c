//! Processes that share a database.

use serde::Serialize;
use ulid::Ulid;

use super::Bypass;
use crate::clock::UnixMs;

/// Whether this process owns the database alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnershipMode {
    /// Exclusive: it has the memory limiter.
    Exclusive,
    /// Shared: its calls are admitted in the database or in Redis.
    Shared,
}

impl OwnershipMode {
    /// The advice when another process has the database.
    pub(super) fn advice(self) -> &'static str {
        match self {
            Self::Exclusive => "The memory limiter needs the database exclusively: stop the other process",
            Self::Shared => "A process with the memory limiter has the database exclusively: stop it",
        }
    }
}

/// A process that shares the database, as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Replica {
    /// Created at its start, so that ids sort by age.
    pub id: String,
    /// The replica's host.
    pub host: String,
    /// The replica's process id.
    pub process: u32,
    /// The replica's version.
    pub version: String,
    /// Further state, as JSON.
    #[serde(skip)]
    pub state: Option<String>,
}

impl Replica {
    /// Describes this process, with a new id.
    pub fn new() -> Self {
        Self {
            id: Ulid::new().to_string().to_lowercase(),
            host: host(),
            process: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: None,
        }
    }
}

impl Default for Replica {
    fn default() -> Self {
        Self::new()
    }
}

/// Returns this machine's name.
pub(super) fn host() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if host.trim().is_empty() { "an unknown host".to_owned() } else { host.trim().to_owned() }
}

/// A live replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LiveReplica {
    /// The replica's identity.
    #[serde(flatten)]
    pub replica: Replica,
    /// Time of the replica's first heartbeat, by the store's clock.
    pub started_at: UnixMs,
    /// Time of the replica's last heartbeat, by the store's clock.
    pub beat_at: UnixMs,
}

/// The result of a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Membership {
    /// The id of this replica.
    pub me: String,
    /// Every replica with a heartbeat within [`LIVE_MS`], oldest first; including this one.
    pub live: Vec<LiveReplica>,
    /// Changes with every change of a business, on any replica.
    pub businesses_version: String,
    /// The number of the last change of a do-not-call list, on any replica.
    pub do_not_call_change: i64,
    /// The bypass that was last switched on and not off, over or not.
    pub bypass: Option<Bypass>,
}

impl Membership {
    /// Whether this replica is the leader: the oldest live one. Two may think so for a moment; leaders' work must tolerate that.
    pub fn leads(&self) -> bool {
        self.live.first().is_some_and(|first| first.replica.id == self.me)
    }

    pub(super) fn new(me: &Replica, mut live: Vec<LiveReplica>) -> Self {
        live.sort_by(|a, b| a.replica.id.cmp(&b.replica.id));
        Self { me: me.id.clone(), live, businesses_version: String::new(), do_not_call_change: 0, bypass: None }
    }
}

/// The interval of heartbeats, in milliseconds.
pub const HEARTBEAT_INTERVAL_MS: u64 = 2_000;
/// A replica counts as dead after this time without a heartbeat.
pub const LIVE_MS: i64 = 6_000;
/// A replica is deleted after this time without a heartbeat.
pub(super) const FORGOTTEN_MS: i64 = 3_600_000;
