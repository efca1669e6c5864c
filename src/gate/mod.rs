//! The gate: admits a call or refuses it, over all limits that bind it, in one atomic step.
//!
//! # The contract, which every back end keeps
//!
//! * A lease is a holder id (the call's) in the sets of all concurrent limits that bind the call. There are no counters.
//! * A call holds one place in each set. An order for many calls (a batch) is one holder with several: it is granted as many as
//!   are free in all of them, at most those it wants, or refused if that is less than it takes.
//! * [`Gate::admit`] takes a place in every set and a token of every rate, or nothing of any: a refusal leaves no trace.
//!   It is idempotent by call id.
//! * A lease ends by [`Gate::release`] and by nothing else, above all not by time and not by dropping a value. Whoever calls
//!   it has first committed the end of the call's record.
//! * A token of a rate is not given back: the request was sent.
//! * [`Gate::adopt`] is the only operation that may go over a limit. It is for calls that exist anyway.
//! * In observe mode the verdict says what would have been refused, and the call is adopted.

pub mod memory;
#[cfg(test)]
mod model;
pub mod redis;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;

use crate::clock::UnixMs;
use crate::ids::CallId;
use crate::policy::{Binding, Bound, Mode, Scope};

/// A call's place in the limits that bind it. Dropping it frees nothing: drop runs when a client hangs up, the call does not.
#[must_use = "a lease is held until its call has ended"]
#[derive(Debug)]
pub struct Lease {
    call: CallId,
    places: u32,
}

impl Lease {
    /// The call that holds it.
    pub fn call(&self) -> &CallId {
        &self.call
    }

    /// How many places it holds in each limit: 1, or what an order for many calls was granted.
    pub fn places(&self) -> u32 {
        self.places
    }
}

/// A request that creates a call. Only a lease opens it, so that sending one ungated does not type-check.
#[derive(Debug)]
pub struct Gated<R>(R);

impl<R> Gated<R> {
    /// Locks a request away.
    pub fn new(request: R) -> Self {
        Self(request)
    }

    /// Opens it.
    pub fn open(self, _lease: &Lease) -> R {
        self.0
    }
}

/// How many calls at once an order may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places {
    /// As many as it has a use for; at least 1.
    pub wanted: u32,
    /// Fewer are of no use to it: from 1 to `wanted`.
    pub at_least: u32,
}

impl Places {
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
pub struct Order {
    /// The call.
    pub call: CallId,
    /// The limits that bind it, the most particular first.
    pub bindings: Vec<Binding>,
    /// How many calls at once it is for.
    pub places: Places,
    /// Whether full limits refuse. In observe mode all that is wanted is granted.
    pub mode: Mode,
    /// Now.
    pub at_ms: UnixMs,
}

/// The first limit that had no place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Full {
    /// Its name.
    pub limit: Arc<str>,
    /// Whose it is.
    pub scope: Scope,
    /// What it allows.
    pub bound: Bound,
    /// Places of it that are held; 0 for rates.
    pub current: u32,
    /// When enough places are expected, from the lengths of calls seen so far, or exactly for rates. `None`: nothing is known yet.
    pub free_in_ms: Option<i64>,
}

/// The gate's answer.
#[derive(Debug)]
#[must_use]
pub enum Verdict {
    /// Admitted. In observe mode with what would have refused it.
    Admitted(Lease, Option<Full>),
    /// Refused, without a trace.
    Refused(Full),
}

/// How much of what is held.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Places that are held: one a call, several an order for many.
    pub calls: u32,
    /// Of those, by overruns.
    pub overruns: u32,
    /// Places by limit key.
    pub by_key: BTreeMap<String, u32>,
}

/// The gate is away. Never of the memory gate.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the gate does not answer: {0}")]
pub struct GateAway(pub String);

/// See the module's contract.
#[async_trait]
pub trait Gate: Send + Sync + 'static {
    /// Admits a call or refuses it.
    async fn admit(&self, order: Order) -> Result<Verdict, GateAway>;

    /// The lease that a call holds, for a further request of that call. `None`: it holds none, and gets none by asking.
    async fn lease(&self, call: &CallId) -> Result<Option<Lease>, GateAway>;

    /// Frees the places of a call whose end is on record. `true` if it held any. With the time of its end, its length is
    /// learnt from; `None`: it never was a call.
    async fn release(&self, call: &CallId, ended_at: Option<UnixMs>) -> Result<bool, GateAway>;

    /// Counts a call that exists anyway, over limits if need be. `overrun` marks one that was refused or ended for us.
    async fn adopt(
        &self,
        call: &CallId,
        bindings: Vec<Binding>,
        places: u32,
        since_ms: UnixMs,
        overrun: bool,
    ) -> Result<Lease, GateAway>;

    /// Replaces the bindings of calls that are open, all at once, before another policy decides anything.
    async fn rebind(&self, calls: Vec<(CallId, Vec<Binding>)>) -> Result<(), GateAway>;

    /// Takes the tokens of creates that were sent before a restart.
    async fn replay_rates(&self, sent: Vec<(UnixMs, Vec<Binding>)>) -> Result<(), GateAway>;

    /// How much is held.
    async fn counts(&self) -> Result<Counts, GateAway>;
}
