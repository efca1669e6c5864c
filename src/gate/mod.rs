//! The gate: admits a call or refuses it, over all limits that bind it, in one atomic step.
//!
//! # The contract, which every back end keeps
//!
//! * A lease is a holder id (the call's) in the sets of all concurrent limits that bind the call. There are no counters.
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
}

impl Lease {
    /// The call that holds it.
    pub fn call(&self) -> &CallId {
        &self.call
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

/// What asks for admission.
#[derive(Debug, Clone)]
pub struct Order {
    /// The call.
    pub call: CallId,
    /// The limits that bind it, the most particular first.
    pub bindings: Vec<Binding>,
    /// Whether full limits refuse.
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
    /// Calls that hold it; 0 for rates.
    pub current: u32,
    /// When a place is expected, from the lengths of calls seen so far, or exactly for rates. `None`: nothing is known yet.
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
    /// Calls that hold a lease.
    pub calls: u32,
    /// Of those, overruns.
    pub overruns: u32,
    /// Holders by limit key.
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
