//! The processes over one record, as each says of itself.

use serde::Serialize;
use ulid::Ulid;

use super::Bypass;
use crate::clock::UnixMs;

/// Whether the record is this process's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnershipMode {
    /// It has the memory gate: no other process may have the record.
    Exclusive,
    /// Its calls are admitted in the record or in Redis: others may do the same beside it.
    Shared,
}

impl OwnershipMode {
    /// Why a record that somebody else has cannot be had, and what mends it.
    pub(super) fn advice(self) -> &'static str {
        match self {
            Self::Exclusive => "The memory gate belongs to one process: stop that one",
            Self::Shared => "A process with the memory gate shares with nobody: stop that one",
        }
    }
}

/// A process over the record, as it says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Replica {
    /// Made at its start, so that ids sort by age.
    pub id: String,
    /// Its machine.
    pub host: String,
    /// Its number there.
    pub process: u32,
    /// Its ringfence.
    pub version: String,
    /// What else it says of itself, as JSON.
    #[serde(skip)]
    pub state: Option<String>,
}

impl Replica {
    /// This process, from now on.
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

/// This machine's name.
pub(super) fn host() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if host.trim().is_empty() { "an unknown host".to_owned() } else { host.trim().to_owned() }
}

/// A replica that was heard of lately.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Living {
    /// Who it is.
    #[serde(flatten)]
    pub replica: Replica,
    /// When it was first heard, by the store's clock.
    pub started_at: UnixMs,
    /// When it was last heard, by the store's clock.
    pub beat_at: UnixMs,
}

/// What a beat brings back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fleet {
    /// Who asked.
    pub me: String,
    /// Every replica that was heard within [`LIVE_MS`], the oldest first; this one among them.
    pub live: Vec<Living>,
    /// Another text after every change of a business, wherever it was made.
    pub businesses_version: String,
    /// The last change of a do-not-call list, wherever it was made.
    pub do_not_call_change: i64,
    /// The bypass that was last switched on and not off, over or not.
    pub bypass: Option<Bypass>,
}

impl Fleet {
    /// This replica leads: it is the oldest that lives. Two may think so for a moment; what a leader does must bear that.
    pub fn leads(&self) -> bool {
        self.live.first().is_some_and(|first| first.replica.id == self.me)
    }

    pub(super) fn new(me: &Replica, mut live: Vec<Living>) -> Self {
        live.sort_by(|a, b| a.replica.id.cmp(&b.replica.id));
        Self { me: me.id.clone(), live, businesses_version: String::new(), do_not_call_change: 0, bypass: None }
    }
}

/// How often a replica says that it lives, in milliseconds.
pub const BEAT_EVERY_MS: u64 = 2_000;
/// A replica that was not heard for so long counts as dead.
pub const LIVE_MS: i64 = 6_000;
/// One that was not heard for so long is forgotten.
pub(super) const FORGOTTEN_MS: i64 = 3_600_000;
