//! The reference model of admission: plain lists, no optimisation. Random commands run against it and against every limiter, and
//! after each of them both must agree: who was admitted, what rejected whom and for how long, what is recorded, which leases are
//! held.
//!
//! `RINGFENCE_MODEL_SEQUENCES` sets the number of sequences for each back end, `RINGFENCE_SEED` repeats a run. A failure shrinks
//! to the shortest failing sequence.

mod back_ends;
mod commands;
mod run;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::failover::{Compared, GRACE_MS};
use crate::call::{Event, Outcome, Phase, Step, next, stronger};
use crate::clock::UnixMs;
use crate::ids::CallId;
use crate::policy::decision::{
    AdmissionRequest, GateMode, LeaseRow, LimitExceeded, OLDEST_MAX, RetryAfterEstimator, Shortfall, keys,
};
use crate::policy::{Bound, CallAttributes, Mode, OnOutage, Policy, Rate};
pub(super) use back_ends::World;
pub(super) use commands::{limits, policy};
pub(super) use run::new_call;

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Admitted(u32, Option<LimitExceeded>, Option<Event>),
    Known(CallId),
    Refused(LimitExceeded),
    /// No limiter decides.
    Nobody,
}

/// An open recorded call.
#[derive(Debug, Clone)]
struct Open {
    attributes: CallAttributes,
    phase: Phase,
    held: LeaseRow,
}

/// A lease without an open record: the process that had to write the record or to release the lease died.
#[derive(Debug, Clone)]
struct Ghost {
    held: LeaseRow,
    /// Whether the lease's record has ended; if not, the lease never got one.
    is_ended: bool,
}

/// The owner of an id.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Owner {
    Call(CallId),
    /// News that waits for its call.
    News(Event),
}

/// The whole state.
struct Model {
    /// The configured limiter.
    home: GateMode,
    /// The limiter that decides.
    mode: GateMode,
    /// The limiter still has its data.
    is_filled: bool,
    now: UnixMs,
    /// Each replica's limits, and its estimator.
    replicas: Vec<(Arc<Policy>, RetryAfterEstimator)>,
    open: Vec<Open>,
    ghosts: Vec<Ghost>,
    /// Every recorded call that took tokens: when, and its attributes.
    sent: Vec<(UnixMs, CallAttributes)>,
    /// The tokens taken from rates, in order.
    tokens: Vec<(String, UnixMs, Rate)>,
    owners: BTreeMap<usize, Owner>,
}

impl Model {
    fn new(home: GateMode, now: UnixMs, policies: Vec<Arc<Policy>>) -> Self {
        Self {
            home,
            mode: home,
            is_filled: true,
            now,
            replicas: policies.into_iter().map(|policy| (policy, RetryAfterEstimator::default())).collect(),
            open: vec![],
            ghosts: vec![],
            sent: vec![],
            tokens: vec![],
            owners: BTreeMap::new(),
        }
    }

    /// Leases by the call records.
    fn leases(&self) -> Vec<LeaseRow> {
        self.open.iter().map(|open| open.held.clone()).collect()
    }

    /// Leases that take slots. The database counts only its records.
    fn holding(&self) -> Vec<LeaseRow> {
        let ghosts = self.ghosts.iter().filter(|_| self.mode != GateMode::Database).map(|ghost| ghost.held.clone());
        self.leases().into_iter().chain(ghosts).collect()
    }

    fn under(&self, key: &str) -> Vec<LeaseRow> {
        self.holding().into_iter().filter(|held| held.keys.iter().any(|one| one == key)).collect()
    }

    fn slots(&self, key: &str) -> u32 {
        self.under(key).iter().map(|held| held.slots).sum()
    }

    /// The first limit that is short.
    fn short(&self, request: &AdmissionRequest) -> Option<Shortfall> {
        request.bindings.iter().enumerate().find_map(|(binding, limit)| match limit.bound {
            Bound::Concurrent(allowed) => {
                let current = self.slots(&limit.key);
                let lacking = (current + request.slots.at_least).checked_sub(allowed).filter(|lacking| *lacking > 0)?;
                let singles = self.under(&limit.key).into_iter().filter(|held| held.slots == 1);
                let mut oldest: Vec<_> = singles.map(|held| held.since_ms).collect();
                oldest.sort_unstable();
                oldest.truncate(OLDEST_MAX);
                Some(Shortfall { binding, current, lacking, token_in_ms: None, oldest })
            }
            Bound::Rate(rate) => {
                let wait_ms = self.token_in_ms(&limit.key, rate);
                let short = Shortfall { binding, current: 0, lacking: 0, token_in_ms: Some(wait_ms), oldest: vec![] };
                (wait_ms > 0).then_some(short)
            }
        })
    }

    /// Milliseconds until one more create is allowed. A create counts for a little longer than the window, from the end of its
    /// slice; one further in the future than that came from a clock that jumped, and does not count. Of those that observe mode
    /// let through, the newest count.
    fn token_in_ms(&self, key: &str, rate: Rate) -> i64 {
        let counts =
            |at: UnixMs, rate: Rate, now: UnixMs| (at - now).abs() <= rate.held_ms() && at + rate.held_ms() > now;
        let mut kept = Vec::<UnixMs>::new();
        for (_, now, rate) in self.tokens.iter().filter(|(of, ..)| of == key) {
            kept.retain(|at| counts(*at, *rate, *now));
            kept.push((now + rate.slice_ms() - 1) / rate.slice_ms() * rate.slice_ms());
            kept.sort_unstable();
            // Those of one slice expire together.
            while kept.iter().filter(|at| **at > kept[0]).count() >= rate.count as usize {
                let oldest = kept[0];
                kept.retain(|at| *at > oldest);
            }
        }
        kept.retain(|at| counts(*at, rate, self.now));
        match kept.len().checked_sub(rate.count as usize) {
            Some(last) => kept[last] + rate.held_ms() - self.now,
            None => 0,
        }
    }

    /// One slot after the other, while all limits have a free one.
    fn granted(&self, request: &AdmissionRequest) -> u32 {
        let has_room = |n: u32| {
            request.bindings.iter().all(|limit| match limit.bound {
                Bound::Concurrent(allowed) => self.slots(&limit.key) + n <= allowed,
                Bound::Rate(_) => true,
            })
        };
        (1..=request.slots.wanted).take_while(|n| request.mode == Mode::Observe || has_room(*n)).last().unwrap_or(0)
    }

    /// A request, with one id perhaps, at a replica. Repeated, it does not return what would have rejected it.
    fn admit(
        &mut self,
        at: usize,
        request: &AdmissionRequest,
        attributes: &CallAttributes,
        alias: Option<usize>,
        is_again: bool,
    ) -> Answer {
        let owner = alias.and_then(|alias| self.owners.get(&alias).cloned());
        let known = match &owner {
            Some(Owner::Call(call)) => Some(call.clone()),
            _ => None,
        };
        let choice = match (self.home, self.mode) {
            (GateMode::Redis, GateMode::Database) => self.replicas[at].0.on_outage(attributes),
            _ => OnOutage::Database,
        };
        let (slots, would_reject) = match choice {
            OnOutage::Closed => return Answer::Nobody,
            OnOutage::Open => {
                if let Some(known) = known {
                    return Answer::Known(known);
                }
                (request.slots.wanted, None)
            }
            OnOutage::Database => {
                // In one transaction with the record the ids are checked first; a limiter knows no ids.
                if let (GateMode::Database, Some(known)) = (self.mode, &known) {
                    return Answer::Known(known.clone());
                }
                let short = self.short(request);
                if let (Mode::Enforce, Some(short)) = (request.mode, &short) {
                    return Answer::Refused(self.told(at, request, short));
                }
                let granted = self.granted(request);
                self.take_tokens(request);
                if let Some(known) = known {
                    return Answer::Known(known);
                }
                (granted, short.filter(|_| !is_again).map(|short| self.told(at, request, &short)))
            }
        };
        let news = match owner {
            Some(Owner::News(event)) => Some(event),
            _ => None,
        };
        self.open(request.call.clone(), attributes, keys(&request.bindings), slots, false, alias);
        self.sent.push((self.now, attributes.clone()));
        Answer::Admitted(slots, would_reject, news)
    }

    /// The limiter admitted it, and its process died before the record was written.
    fn orphan(&mut self, request: &AdmissionRequest) {
        if request.mode == Mode::Enforce && self.short(request).is_some() {
            return;
        }
        let (slots, keys) = (self.granted(request), keys(&request.bindings));
        self.take_tokens(request);
        let held = LeaseRow { call: request.call.clone(), keys, slots, since_ms: self.now, over_limit: false };
        self.ghosts.push(Ghost { held, is_ended: false });
    }

    fn told(&self, at: usize, request: &AdmissionRequest, short: &Shortfall) -> LimitExceeded {
        self.replicas[at].1.limit_exceeded(&request.bindings, short, self.now).unwrap()
    }

    fn take_tokens(&mut self, request: &AdmissionRequest) {
        for limit in &request.bindings {
            if let Bound::Rate(rate) = limit.bound {
                self.tokens.push((limit.key.clone(), self.now, rate));
            }
        }
    }

    fn open(
        &mut self,
        call: CallId,
        attributes: &CallAttributes,
        keys: Vec<String>,
        slots: u32,
        over_limit: bool,
        alias: Option<usize>,
    ) {
        self.owners.extend(alias.map(|alias| (alias, Owner::Call(call.clone()))));
        let held = LeaseRow { call, keys, slots, since_ms: self.now, over_limit };
        self.open.push(Open { attributes: attributes.clone(), phase: Phase::Reserved, held });
    }

    /// Applies an event to a call.
    fn apply(&mut self, at: usize, call: &CallId, event: Event, is_told: bool) -> Step {
        let Some(place) = self.open.iter().position(|open| open.held.call == *call) else { return Step::Ignore };
        let step = next(self.open[place].phase, event);
        match step {
            Step::Move(phase) => self.open[place].phase = phase,
            Step::End(outcome, _) => {
                let over = self.open.remove(place);
                if is_told {
                    self.freed(at, &over, outcome);
                } else if self.mode != GateMode::Database && self.is_filled {
                    self.ghosts.push(Ghost { held: over.held, is_ended: true });
                }
            }
            Step::Renew | Step::Ignore => {}
        }
        step
    }

    fn freed(&self, at: usize, over: &Open, outcome: Outcome) {
        let (policy, waits) = &self.replicas[at];
        let talked = !matches!(outcome, Outcome::NotCreated | Outcome::Capacity) && over.held.slots == 1;
        waits.freed(&policy.bindings(&over.attributes), talked.then(|| self.now - over.held.since_ms));
    }

    /// Binds an id to a call, with an event; news that waited under the id is applied. Returns the call that has the id already,
    /// if any.
    fn bind(&mut self, at: usize, call: &CallId, alias: usize, event: Event) -> (Step, Option<CallId>) {
        let (event, conflict) = match self.owners.get(&alias) {
            Some(Owner::Call(other)) if other != call => (event, Some(other.clone())),
            Some(Owner::News(news)) => (stronger(event, *news), None),
            _ => (event, None),
        };
        if conflict.is_none() {
            self.owners.insert(alias, Owner::Call(call.clone()));
        }
        (self.apply(at, call, event, true), conflict)
    }

    /// News for an id. Returns the call that has it, if any.
    fn news(&mut self, alias: usize, event: Event) -> Option<CallId> {
        match self.owners.get(&alias) {
            Some(Owner::Call(call)) => return Some(call.clone()),
            Some(Owner::News(before)) => self.owners.insert(alias, Owner::News(stronger(*before, event))),
            None => self.owners.insert(alias, Owner::News(event)),
        };
        None
    }

    /// A replica made a transition: all open calls are counted under its limits, and nothing else.
    fn moved(&mut self, by: usize, to: GateMode) {
        let policy = self.replicas[by].0.clone();
        (self.mode, self.is_filled) = (to, true);
        self.ghosts.clear();
        for open in &mut self.open {
            open.held.keys = keys(&policy.bindings(&open.attributes));
        }
        let mut sent = self.sent.clone();
        sent.sort_by_key(|(at, _)| *at);
        sent.retain(|(at, _)| *at >= self.now - policy.longest_rate_ms());
        self.tokens.clear();
        for (at, attributes) in sent {
            for limit in policy.bindings(&attributes) {
                if let Bound::Rate(rate) = limit.bound {
                    self.tokens.push((limit.key, at, rate));
                }
            }
        }
    }

    /// The differences that a comparison finds and repairs.
    fn compared(&mut self, by: usize) -> Compared {
        let mut found = Compared { agree: self.open.len(), ..Compared::default() };
        if self.mode == GateMode::Database {
            return found;
        }
        let is_old = |ghost: &Ghost| ghost.held.since_ms + GRACE_MS < self.now;
        found.ended = self.ghosts.iter().filter(|ghost| ghost.is_ended).count();
        found.orphans = self.ghosts.iter().filter(|ghost| !ghost.is_ended && is_old(ghost)).count();
        self.ghosts.retain(|ghost| !ghost.is_ended);
        if found.orphans > 0 {
            self.moved(by, self.mode);
        }
        found
    }
}
