//! Usage of limits by open calls and rates, for a decision or a transition. Pure: every back end reads the rows, decides here,
//! and writes the result.

use std::collections::HashMap;

use crate::clock::UnixMs;
use crate::ids::CallId;
use crate::policy::decision::{LeaseRow, LimitUsage, OLDEST_MAX, RateLog, keys};
use crate::policy::{CallAttributes, Policy};

/// The pool whose limits are decided together.
pub(super) const POOL: &str = "default";

/// The longest period from which rates are rebuilt, in milliseconds.
const REPLAY_MAX_MS: i64 = 24 * 3_600_000;

/// Usage that was read for a decision, and grants of the same transaction since.
#[derive(Debug, Default)]
pub(super) struct CountedUsage {
    pub(super) now_ms: UnixMs,
    pub(super) held: HashMap<String, u32>,
    pub(super) rates: HashMap<String, RateLog>,
    /// Start times of single-slot grants since: the youngest of their limits.
    pub(super) singles: HashMap<String, Vec<UnixMs>>,
}

impl CountedUsage {
    /// Adds a grant.
    pub(super) fn grant(&mut self, keys: &[String], slots: u32, taken: &[(String, RateLog)]) {
        for key in keys {
            let held = self.held.entry(key.clone()).or_default();
            *held = held.saturating_add(slots);
            if slots == 1 {
                self.singles.entry(key.clone()).or_default().push(self.now_ms);
            }
        }
        self.rates.extend(taken.iter().cloned());
    }
}

impl LimitUsage for CountedUsage {
    fn held(&self, key: &str) -> u32 {
        self.held.get(key).copied().unwrap_or(0)
    }

    fn rate_log(&self, key: &str) -> Option<&RateLog> {
        self.rates.get(key)
    }

    /// The entries in the database are read later, only for short limits, and precede these.
    fn oldest(&self, key: &str) -> Vec<UnixMs> {
        let singles = self.singles.get(key).map_or(&[][..], Vec::as_slice);
        singles.iter().take(OLDEST_MAX).copied().collect()
    }
}

/// An open call, as a transition reads it.
#[derive(Debug)]
pub(super) struct OpenRow {
    pub(super) call: CallId,
    pub(super) attributes: CallAttributes,
    pub(super) slots: u32,
    pub(super) since_ms: UnixMs,
    pub(super) over_limit: bool,
    pub(super) keys: Option<Vec<String>>,
}

/// Counts every open call anew. The flag marks changed keys.
pub(super) fn recount(policy: &Policy, open: Vec<OpenRow>) -> Vec<(LeaseRow, bool)> {
    let count = |row: OpenRow| {
        let keys = keys(&policy.bindings(&row.attributes));
        let changed = row.keys.as_ref() != Some(&keys);
        (
            LeaseRow { call: row.call, keys, slots: row.slots, since_ms: row.since_ms, over_limit: row.over_limit },
            changed,
        )
    };
    open.into_iter().map(count).collect()
}

/// The start of the period from which rates are rebuilt; `None` without rates.
pub(super) fn replay_since(policy: &Policy, now_ms: UnixMs) -> Option<UnixMs> {
    let window_ms = policy.longest_rate_ms().min(REPLAY_MAX_MS);
    (window_ms > 0).then(|| now_ms.saturating_sub(window_ms))
}
