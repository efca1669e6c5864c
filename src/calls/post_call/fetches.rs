//! Fetches in progress, and recent ones.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::watch;

use crate::clock::UnixMs;
use crate::ids::CallId;
use crate::store::StoreError;
use crate::sync::lock;

/// The time for which one response of the provider serves all callers, in milliseconds.
const FRESH_MS: i64 = 5_000;
/// Concurrent fetches, of all accounts.
const AT_ONCE: usize = 20;
/// Responses that are kept.
const KNOWN_MAX: usize = 1_000;
/// The outcome of a fetch.
#[derive(Debug, Clone)]
pub(in crate::calls) enum FetchResult {
    Kept,
    StillUp,
    Absent,
    CannotQuery,
    Limited { code: String, retry_after_secs: Option<u32> },
    Failed(String),
    Store(StoreError),
}

/// Fetches of post-call records, in progress and recent. Cloning is cheap.
#[derive(Debug, Clone, Default)]
pub(in crate::calls) struct Fetches(Arc<Mutex<HashMap<CallId, Fetch>>>);

#[derive(Debug)]
struct Fetch {
    since_ms: UnixMs,
    came: watch::Receiver<Option<FetchResult>>,
}

impl Fetch {
    /// The sender is gone without a result: its task panicked.
    fn is_under_way(&self) -> bool {
        self.came.borrow().is_none() && self.came.has_changed().is_ok()
    }
}

/// A caller's part in a fetch.
pub(super) enum FetchTicket {
    /// The caller fetches, and shares the result.
    Ask(watch::Sender<Option<FetchResult>>, watch::Receiver<Option<FetchResult>>),
    /// Another caller fetches, or did so recently.
    Wait(watch::Receiver<Option<FetchResult>>),
    /// Too many fetches are in progress.
    Later,
}

impl Fetches {
    fn known(&self) -> MutexGuard<'_, HashMap<CallId, Fetch>> {
        lock(&self.0)
    }

    pub(super) fn turn(&self, call: &CallId, now_ms: UnixMs) -> FetchTicket {
        let mut known = self.known();
        known.retain(|_, fetch| fetch.is_under_way() || (0..FRESH_MS).contains(&(now_ms - fetch.since_ms)));
        if let Some(fetch) = known.get(call) {
            return FetchTicket::Wait(fetch.came.clone());
        }
        if known.len() >= KNOWN_MAX || known.values().filter(|fetch| fetch.is_under_way()).count() >= AT_ONCE {
            return FetchTicket::Later;
        }
        let (send, came) = watch::channel(None);
        known.insert(call.clone(), Fetch { since_ms: now_ms, came: came.clone() });
        FetchTicket::Ask(send, came)
    }
}
