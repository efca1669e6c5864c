//! What is asked of a gate and what it answers; and the decision itself, which every back end makes alike. Pure.
//!
//! [`decide`] is what a back end in Rust runs over what it has read; the script in Redis says the same in its own language, and
//! one reference model holds them equal. A decision knows no names of people: it says which of the order's limits was short
//! ([`Shortfall`]), and [`RetryAfterEstimator`] makes of it what a caller is told ([`LimitExceeded`]).

mod rate;
mod retry_after;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::clock::UnixMs;
use crate::ids::CallId;
use crate::policy::{Binding, Bound, Facts, Mode, Policy, Scope};
pub use rate::RateLog;
pub use retry_after::RetryAfterEstimator;

/// How many of the oldest holders of a full limit an answer names: what a wait is guessed from.
pub const OLDEST_MAX: usize = 16;

/// How many calls at once an order may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slots {
    /// As many as it has a use for; at least 1.
    pub wanted: u32,
    /// Fewer are of no use to it: from 1 to `wanted`.
    pub at_least: u32,
}

impl Slots {
    /// Of one call.
    pub const ONE: Self = Self::exactly(1);

    /// All of them or none.
    pub const fn exactly(n: u32) -> Self {
        Self { wanted: n, at_least: n }
    }

    /// As many as there are, but one.
    pub const fn up_to(n: u32) -> Self {
        Self { wanted: n, at_least: 1 }
    }
}

/// What asks for admission.
#[derive(Debug, Clone)]
pub struct AdmissionRequest {
    /// The call.
    pub call: CallId,
    /// The limits that bind it, the most particular first.
    pub bindings: Vec<Binding>,
    /// How many calls at once it is for.
    pub slots: Slots,
    /// Whether full limits refuse. In observe mode all that is wanted is granted.
    pub mode: Mode,
    /// Now, by this process's clock. Gates that several processes share go by their store's instead.
    pub at_ms: UnixMs,
}

/// A lease as it is counted: one holder in the set of each of its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRow {
    /// The call that holds it.
    pub call: CallId,
    /// The counts it is in, see [`keys`].
    pub keys: Vec<String>,
    /// Slots that it holds in each.
    pub slots: u32,
    /// Since when.
    pub since_ms: UnixMs,
    /// The call exists although it was refused or ended for us.
    pub over_limit: bool,
}

/// The counts that a call is in: one for each limit of calls at once.
pub fn keys(bindings: &[Binding]) -> Vec<String> {
    let concurrent = bindings.iter().filter(|b| matches!(b.bound, Bound::Concurrent(_)));
    concurrent.map(|b| b.key.clone()).collect()
}

/// The first limit of an order that had too little.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortfall {
    /// Its place among the order's bindings.
    pub binding: usize,
    /// Slots of it that are held; 0 for rates.
    pub current: u32,
    /// Slots that are lacking; 0 for rates.
    pub lacking: u32,
    /// Of a rate: milliseconds until it has a token.
    pub token_in_ms: Option<i64>,
    /// Since when its oldest holders of a single place hold it, oldest first; at most [`OLDEST_MAX`].
    pub oldest: Vec<UnixMs>,
}

/// What a gate decides. Of a call that holds a lease already it is `Admitted` with that lease's slots and without `would`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Decision {
    /// With so many slots. In observe mode with what would have refused it.
    Admitted {
        /// Slots that were granted in each limit.
        slots: u32,
        /// What would have refused it.
        would: Option<Shortfall>,
    },
    /// Without a trace.
    Refused(Shortfall),
}

/// What a limit has, as far as a decision needs it. Asked for keys of the order's bindings alone.
pub trait LimitUsage {
    /// Slots that are held under a key.
    fn held(&self, key: &str) -> u32;
    /// What a rate's key has let through, if anything.
    fn rate_log(&self, key: &str) -> Option<&RateLog>;
    /// See [`Shortfall::oldest`]. Asked only for a limit that is short.
    fn oldest(&self, key: &str) -> Vec<UnixMs>;
}

/// Decides an order at a time. What it takes, its caller writes: the slots of an admitted one under [`keys`], and the logs of
/// rates that come with it.
pub fn decide(
    order: &AdmissionRequest,
    standing: &impl LimitUsage,
    now_ms: UnixMs,
) -> (Decision, Vec<(String, RateLog)>) {
    let short = first_short(order, standing, now_ms);
    let slots = match (short, order.mode) {
        (Some(short), Mode::Enforce) => return (Decision::Refused(short), vec![]),
        (would, Mode::Observe) => (order.slots.wanted, would),
        (None, Mode::Enforce) => {
            let free = order.bindings.iter().filter_map(|binding| match binding.bound {
                Bound::Concurrent(allowed) => Some(allowed.saturating_sub(standing.held(&binding.key))),
                Bound::Rate(_) => None,
            });
            let free = free.min().unwrap_or(u32::MAX);
            (free.min(order.slots.wanted).max(order.slots.at_least), None)
        }
    };
    let mut taken = BTreeMap::<&str, RateLog>::new();
    for binding in &order.bindings {
        if let Bound::Rate(rate) = binding.bound {
            let before = taken.get(binding.key.as_str()).or_else(|| standing.rate_log(&binding.key));
            let after =
                before.map_or_else(|| RateLog::default().with_one(rate, now_ms), |log| log.with_one(rate, now_ms));
            taken.insert(&binding.key, after);
        }
    }
    let taken = taken.into_iter().map(|(key, log)| (key.to_owned(), log)).collect();
    (Decision::Admitted { slots: slots.0, would: slots.1 }, taken)
}

fn first_short(order: &AdmissionRequest, standing: &impl LimitUsage, now_ms: UnixMs) -> Option<Shortfall> {
    order.bindings.iter().enumerate().find_map(|(binding, limit)| match limit.bound {
        Bound::Concurrent(allowed) => {
            let current = standing.held(&limit.key);
            let lacking = current.saturating_add(order.slots.at_least).saturating_sub(allowed);
            let short =
                || Shortfall { binding, current, lacking, token_in_ms: None, oldest: standing.oldest(&limit.key) };
            (lacking > 0).then(short)
        }
        Bound::Rate(rate) => {
            let wait_ms = standing.rate_log(&limit.key).map_or(0, |log| log.wait_ms(rate, now_ms));
            let short = Shortfall { binding, current: 0, lacking: 0, token_in_ms: Some(wait_ms), oldest: vec![] };
            (wait_ms > 0).then_some(short)
        }
    })
}

/// What rates know after these creates, earliest first, where their state was lost.
pub fn rate_logs(policy: &Policy, sent: &[(UnixMs, Facts)]) -> Vec<(String, RateLog)> {
    let mut logs = BTreeMap::<String, RateLog>::new();
    for (at_ms, facts) in sent {
        for binding in policy.bindings(facts) {
            if let Bound::Rate(rate) = binding.bound {
                let log = logs.entry(binding.key).or_default();
                *log = log.with_one(rate, *at_ms);
            }
        }
    }
    logs.into_iter().collect()
}

/// Who decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GateMode {
    /// The gate in one process's memory.
    Memory,
    /// The record's database.
    Database,
    /// Redis.
    Redis,
}

impl GateMode {
    /// The word in database, config, metrics and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            GateMode::Memory => "memory",
            GateMode::Database => "database",
            GateMode::Redis => "redis",
        }
    }
}

impl std::str::FromStr for GateMode {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        [Self::Memory, Self::Database, Self::Redis]
            .into_iter()
            .find(|mode| mode.as_str() == word)
            .ok_or_else(|| format!("{word:?} is no mode of the gate"))
    }
}

/// Under what admissions are put on record just now: one row in the database, so that it is a fact and no replica's opinion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct GateState {
    /// One more with every move: what was admitted under an earlier one and is not on record yet never will be.
    pub epoch: i64,
    /// Who decides.
    pub mode: GateMode,
}

/// The first limit that had no place, as a caller is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitExceeded {
    /// Its name.
    pub limit: Arc<str>,
    /// Whose it is.
    pub scope: Scope,
    /// What it allows.
    pub bound: Bound,
    /// Slots of it that are held; 0 for rates.
    pub current: u32,
    /// When enough slots are expected, from the lengths of calls seen so far, or exactly for rates. `None`: nothing is known yet.
    pub free_in_ms: Option<i64>,
}

/// How much of what is held.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Slots that are held: one a call, several an order for many.
    pub calls: u32,
    /// Of those, by over-limit calls.
    pub over_limit: u32,
    /// Slots by limit key.
    pub by_key: BTreeMap<String, u32>,
}

impl Counts {
    /// Of these leases.
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
