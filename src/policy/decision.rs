//! The admission request and its outcome; and the decision itself, which every limiter makes alike. Pure.
//!
//! [`decide`] is the decision of the Rust back ends over the usage that they read; the Redis script implements the same, and one
//! reference model keeps them equal. A decision does not use names: it reports which of the request's limits was short
//! ([`Shortfall`]), and [`RetryAfterEstimator`] turns that into the answer for the caller ([`LimitExceeded`]).

mod rate;
mod retry_after;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::clock::UnixMs;
use crate::ids::CallId;
use crate::policy::{Binding, Bound, CallAttributes, Mode, Policy, Scope};
use crate::words::words;
pub use rate::RateLog;
pub use retry_after::RetryAfterEstimator;

/// The number of oldest holders that a shortfall includes: a wait is estimated from them.
pub const OLDEST_MAX: usize = 16;

/// The concurrent calls that a request may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slots {
    /// The most that it can use; at least 1.
    pub wanted: u32,
    /// The least that it can use: from 1 to `wanted`.
    pub at_least: u32,
}

impl Slots {
    /// One call.
    pub const ONE: Self = Self::exactly(1);

    /// All of them or none.
    pub const fn exactly(n: u32) -> Self {
        Self { wanted: n, at_least: n }
    }

    /// As many as are free, at least one.
    pub const fn up_to(n: u32) -> Self {
        Self { wanted: n, at_least: 1 }
    }
}

/// A request for admission.
#[derive(Debug, Clone)]
pub struct AdmissionRequest {
    /// The call.
    pub call: CallId,
    /// The limits that bind it, the most specific first.
    pub bindings: Vec<Binding>,
    /// The request's concurrent calls.
    pub slots: Slots,
    /// Whether full limits reject. In observe mode all wanted slots are granted.
    pub mode: Mode,
    /// Now, by this process's clock, in milliseconds since 1970. Limiters that several processes share use their server's clock
    /// instead.
    pub at_ms: UnixMs,
}

/// A lease: one holder in the set of each of its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRow {
    /// The call that holds it.
    pub call: CallId,
    /// The limit keys that it is counted under, see [`keys`].
    pub keys: Vec<String>,
    /// Slots that it holds under each.
    pub slots: u32,
    /// Since when, in milliseconds since 1970.
    pub since_ms: UnixMs,
    /// The call exists although it was rejected or had ended for us.
    pub over_limit: bool,
}

/// The limit keys of a call: one for each concurrency limit.
pub fn keys(bindings: &[Binding]) -> Vec<String> {
    let concurrent = bindings.iter().filter(|b| matches!(b.bound, Bound::Concurrent(_)));
    concurrent.map(|b| b.key.clone()).collect()
}

/// The first limit of a request that had too few free slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortfall {
    /// The limit's index among the request's bindings.
    pub binding: usize,
    /// Slots that are held; 0 for rates.
    pub current: u32,
    /// Slots that are missing; 0 for rates.
    pub lacking: u32,
    /// For a rate: milliseconds until it has a token.
    pub token_in_ms: Option<i64>,
    /// Since when its oldest single-slot holders hold it, oldest first; at most [`OLDEST_MAX`].
    pub oldest: Vec<UnixMs>,
}

/// A limiter's decision. For a call that holds a lease already it is `Admitted` with that lease's slots and without `would_reject`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Decision {
    /// Admitted.
    Admitted {
        /// Slots that were granted in each limit.
        slots: u32,
        /// In observe mode: what would have rejected it.
        would_reject: Option<Shortfall>,
    },
    /// Rejected, without a trace.
    Rejected(Shortfall),
}

/// Usage of limits, as far as a decision needs it. Queried only for keys of the request's bindings.
pub trait LimitUsage {
    /// Slots that are held under a key.
    fn held(&self, key: &str) -> u32;
    /// The log of a rate's key, if it has one.
    fn rate_log(&self, key: &str) -> Option<&RateLog>;
    /// See [`Shortfall::oldest`]. Queried only for a limit that is short.
    fn oldest(&self, key: &str) -> Vec<UnixMs>;
}

/// Decides a request at a time. The caller writes the result: the slots of an admitted request under [`keys`], and the returned
/// logs of its rates.
pub fn decide(
    request: &AdmissionRequest,
    usage: &impl LimitUsage,
    now_ms: UnixMs,
) -> (Decision, Vec<(String, RateLog)>) {
    let short = first_short(request, usage, now_ms);
    let (slots, would_reject) = match (short, request.mode) {
        (Some(short), Mode::Enforce) => return (Decision::Rejected(short), vec![]),
        (would_reject, Mode::Observe) => (request.slots.wanted, would_reject),
        (None, Mode::Enforce) => {
            let free = request.bindings.iter().filter_map(|binding| match binding.bound {
                Bound::Concurrent(allowed) => Some(allowed.saturating_sub(usage.held(&binding.key))),
                Bound::Rate(_) => None,
            });
            let free = free.min().unwrap_or(u32::MAX);
            (free.min(request.slots.wanted).max(request.slots.at_least), None)
        }
    };
    let mut taken = BTreeMap::<&str, RateLog>::new();
    for binding in &request.bindings {
        if let Bound::Rate(rate) = binding.bound {
            let before = taken.get(binding.key.as_str()).or_else(|| usage.rate_log(&binding.key));
            let after =
                before.map_or_else(|| RateLog::default().with_one(rate, now_ms), |log| log.with_one(rate, now_ms));
            taken.insert(&binding.key, after);
        }
    }
    let taken = taken.into_iter().map(|(key, log)| (key.to_owned(), log)).collect();
    (Decision::Admitted { slots, would_reject }, taken)
}

fn first_short(request: &AdmissionRequest, usage: &impl LimitUsage, now_ms: UnixMs) -> Option<Shortfall> {
    request.bindings.iter().enumerate().find_map(|(binding, limit)| match limit.bound {
        Bound::Concurrent(allowed) => {
            let current = usage.held(&limit.key);
            let lacking = current.saturating_add(request.slots.at_least).saturating_sub(allowed);
            let short = || Shortfall { binding, current, lacking, token_in_ms: None, oldest: usage.oldest(&limit.key) };
            (lacking > 0).then(short)
        }
        Bound::Rate(rate) => {
            let wait_ms = usage.rate_log(&limit.key).map_or(0, |log| log.wait_ms(rate, now_ms));
            let short = Shortfall { binding, current: 0, lacking: 0, token_in_ms: Some(wait_ms), oldest: vec![] };
            (wait_ms > 0).then_some(short)
        }
    })
}

/// Rebuilds the logs of rates from these creates, earliest first.
pub fn rate_logs(policy: &Policy, sent: &[(UnixMs, CallAttributes)]) -> Vec<(String, RateLog)> {
    let mut logs = BTreeMap::<String, RateLog>::new();
    for (at_ms, attributes) in sent {
        for binding in policy.bindings(attributes) {
            if let Bound::Rate(rate) = binding.bound {
                let log = logs.entry(binding.key).or_default();
                *log = log.with_one(rate, *at_ms);
            }
        }
    }
    logs.into_iter().collect()
}

words!(
    /// The back end that decides.
    GateMode {
        /// One process's memory.
        Memory = "memory",
        /// The store's database.
        Database = "database",
        /// Redis.
        Redis = "redis",
    }
);

/// The state under which admissions are recorded: one row in the database, so that all replicas agree on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct GateState {
    /// Incremented by every transition: an admission under an earlier epoch that is not recorded yet never will be.
    pub epoch: i64,
    /// The back end that decides.
    pub mode: GateMode,
}

/// The first full limit, as reported to a caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitExceeded {
    /// The limit's name.
    pub limit: Arc<str>,
    /// The limit's scope.
    pub scope: Scope,
    /// The limit's bound.
    pub bound: Bound,
    /// Slots that are held; 0 for rates.
    pub current: u32,
    /// Milliseconds until enough slots are expected to be free, estimated from lengths of calls, or exact for rates. `None`:
    /// unknown.
    pub free_in_ms: Option<i64>,
}

/// Held slots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Held slots: one per call, several per batch.
    pub calls: u32,
    /// Of those, by over-limit calls.
    pub over_limit: u32,
    /// Slots by limit key.
    pub by_key: BTreeMap<String, u32>,
}

impl Counts {
    /// Counts these leases.
    pub fn of<'h>(held: impl IntoIterator<Item = &'h LeaseRow>) -> Self {
        let mut counts = Self::default();
        for one in held {
            counts.calls = counts.calls.saturating_add(one.slots);
            if one.over_limit {
                counts.over_limit = counts.over_limit.saturating_add(one.slots);
            }
            for key in &one.keys {
                let slots = counts.by_key.entry(key.clone()).or_default();
                *slots = slots.saturating_add(one.slots);
            }
        }
        counts
    }
}
