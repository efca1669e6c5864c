//! Runs commands against a back end and the model, and compares the two after each.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::back_ends::World;
use super::commands::{Command, Ending, How, attributes, policy};
use super::{Answer, Model};
use crate::admission::limiter::Gate;
use crate::admission::{Admission, AdmissionController, AdmissionError, AdmissionSettings};
use crate::call::{Deadlines, EndProof, Event, Origin, Outcome, Phase, Source, Step};
use crate::clock::{Clock, UnixMs};
use crate::ids::{Alias, CallId};
use crate::metrics::Metrics;
use crate::policy::decision::{AdmissionRequest, Counts, Decision, GateMode, LeaseRow, Slots, keys};
use crate::policy::{Bound, Mode, OnOutage};
use crate::store::{AdmitOutcome, Change, InsertOutcome, NewCall, Replica};

const END: Event = Event::Ended(Outcome::Completed, EndProof::Webhook);

struct Run<'w> {
    world: &'w World,
    model: Model,
    clock: Clock,
    metrics: Metrics,
    /// Each with its limiter.
    replicas: Vec<(AdmissionController, Option<Arc<dyn Gate>>)>,
    /// Every call that was ever recorded.
    calls: Vec<CallId>,
    sequence: u32,
}

/// Runs a sequence after the previous one.
pub(super) async fn run(world: &World, commands: Vec<Command>) {
    let (now, sequence) = world.begin();
    // A failed one leaves open calls.
    for left in world.stores[0].leases().await.unwrap() {
        let end = change(&left.call, now, Some(END));
        world.stores[0].apply(end).await.unwrap();
    }
    let policies = world.stores.iter().map(|_| policy(0)).collect();
    let mut run = Run {
        world,
        model: Model::new(world.home, now, policies),
        clock: Clock::stopped_at(now),
        metrics: Metrics::new().unwrap(),
        replicas: vec![],
        calls: vec![],
        sequence,
    };
    for at in 0..world.stores.len() {
        let replica = run.replica(at).await;
        run.replicas.push(replica);
    }
    for (step, command) in commands.into_iter().enumerate() {
        let said = format!("step {step}: {command:?}");
        let at = Box::pin(run.step(command, &said)).await;
        Box::pin(run.compare(at, &said)).await;
    }
    for open in run.model.leases() {
        Box::pin(run.end(0, &open.call, Ending::Told, "at the end")).await;
    }
    Box::pin(run.fill(0)).await;
    Box::pin(run.compare(0, "at the end")).await;
    for (_, gate) in run.replicas {
        world.keep(gate);
    }
}

fn change(call: &CallId, at_ms: UnixMs, event: Option<Event>) -> Change {
    Change { event, ..Change::of(call, Source::Webhook, at_ms, &Deadlines::default()) }
}

/// A new call.
pub(in crate::admission) fn new_call(call: &CallId, at_ms: UnixMs) -> NewCall {
    NewCall {
        id: call.clone(),
        attributes: attributes(0),
        origin: Origin::Create,
        phase: Phase::Reserved,
        over_limit: false,
        polled: false,
        slots: 1,
        at_ms,
        deadline_at: at_ms + 90_000,
        callback: None,
        fingerprint: None,
        keys: vec![],
        replica: None,
        notice: crate::store::AppNotice::Omit,
        aliases: vec![],
    }
}

fn sorted(mut held: Vec<LeaseRow>) -> Vec<LeaseRow> {
    held.sort_by(|a, b| a.call.cmp(&b.call));
    held
}

impl Run<'_> {
    /// A process that starts.
    async fn replica(&mut self, at: usize) -> (AdmissionController, Option<Arc<dyn Gate>>) {
        let gate = self.world.gate().await;
        let capacity = AdmissionController::new(
            self.world.stores[at].clone(),
            gate.clone(),
            AdmissionSettings { home: self.world.home, ..AdmissionSettings::default() },
            Arc::new(ArcSwap::new(self.model.replicas[at].0.clone())),
            self.clock.clone(),
            self.metrics.clone(),
            Replica::new(),
        );
        let open = capacity.start().await.unwrap();
        self.model.moved(at, self.world.home);
        assert_eq!(open, self.model.open.len());
        (capacity, gate)
    }

    fn capacity(&self, at: usize) -> AdmissionController {
        self.replicas[at].0.clone()
    }

    fn alias(&self, n: usize) -> Alias {
        Alias::new("call_sid", &format!("CA{}-{n}", self.sequence)).unwrap()
    }

    /// The call of a number; `None` before the first.
    fn call(&self, n: usize) -> Option<CallId> {
        let rest = n.checked_rem(self.calls.len())?;
        Some(self.calls[rest].clone())
    }

    /// Runs a command, and returns the replica that ran it.
    async fn step(&mut self, command: Command, said: &str) -> usize {
        let at = match command {
            Command::Admit { at, .. }
            | Command::Adopt { at, .. }
            | Command::Bind { at, .. }
            | Command::End { at, .. }
            | Command::EndOf { at, .. }
            | Command::Crash { at }
            | Command::Reload { at, .. }
            | Command::Move { at, .. }
            | Command::Compare { at } => at % self.replicas.len(),
            Command::Reach { .. } | Command::Jump { .. } | Command::Wipe => 0,
        };
        match command {
            Command::Admit { who, slots, mode, alias, how, .. } => {
                self.admit(at, who, (slots, mode), alias, how, said).await;
            }
            Command::Adopt { who, slots, over_limit, .. } => self.adopt(at, who, slots, over_limit, said).await,
            Command::Bind { call, alias, .. } => self.bind(at, call, alias, said).await,
            Command::Reach { call, phase } => self.reach(call, phase, said).await,
            Command::End { call, how, .. } => {
                if let Some(call) = self.call(call) {
                    self.end(at, &call, how, said).await;
                }
            }
            Command::EndOf { alias, .. } => {
                let known = self.world.stores[at].keep_early(vec![self.alias(alias)], END, None, self.model.now).await;
                let known = known.unwrap();
                assert_eq!(known, self.model.news(alias, END), "{said}");
                if let Some(call) = known {
                    self.end(at, &call, Ending::Told, said).await;
                }
            }
            Command::Crash { .. } => {
                self.model.replicas[at].1 = Default::default();
                let anew = self.replica(at).await;
                let (_, gate) = std::mem::replace(&mut self.replicas[at], anew);
                self.world.keep(gate);
            }
            Command::Jump { ms } => {
                self.clock.advance_ms(ms);
                self.model.now += ms;
            }
            Command::Wipe => self.wipe(said).await,
            Command::Reload { limits, .. } => {
                let policy = policy(limits);
                self.capacity(at).swap(policy.clone(), || {}).await.unwrap();
                self.model.replicas[at].0 = policy;
                self.model.moved(at, self.model.mode);
            }
            Command::Move { to_database, .. } => {
                let is_database = to_database && self.world.home == GateMode::Redis;
                self.go(at, if is_database { GateMode::Database } else { self.world.home }).await;
            }
            Command::Compare { .. } => {
                self.fill(at).await;
                self.learn(at).await;
                let found = self.capacity(at).compare().await.unwrap();
                assert_eq!(found, self.model.compared(at), "{said}");
            }
        }
        at
    }

    /// A replica makes a transition, after learning the current epoch if necessary.
    async fn go(&mut self, at: usize, to: GateMode) {
        let capacity = self.capacity(at);
        if capacity.move_to(to).await.unwrap().is_none() {
            capacity.move_to(to).await.unwrap().unwrap();
        }
        self.model.moved(at, to);
    }

    /// Rebuilds a limiter that lost its data, as the supervisor does.
    async fn fill(&mut self, at: usize) {
        if !self.model.is_filled {
            self.go(at, self.world.home).await;
        }
    }

    /// A replica learns the current epoch, as with every heartbeat.
    async fn learn(&self, at: usize) {
        if self.world.home != GateMode::Memory {
            let capacity = &self.replicas[at].0;
            capacity.adopt_epoch(self.world.stores[at].gate_state().await.unwrap());
        }
    }

    async fn admit(
        &mut self,
        at: usize,
        who: usize,
        (slots, mode): (Slots, Mode),
        alias: Option<usize>,
        how: How,
        said: &str,
    ) {
        self.fill(at).await;
        let is_and_was = [self.model.mode, self.capacity(at).state().mode];
        if self.world.home == GateMode::Redis && is_and_was.contains(&GateMode::Database) || how != How::Plain {
            // A replica that has not noticed a transition rejects by stale counts until it does.
            self.learn(at).await;
        }
        // Only the first answer has ids and news.
        let alias = alias.filter(|_| how == How::Plain);
        let (capacity, attributes, call) = (self.capacity(at), attributes(who), CallId::new());
        let bindings = self.model.replicas[at].0.bindings(&attributes);
        let request = AdmissionRequest { call: call.clone(), bindings, slots, mode, at_ms: self.model.now };
        let mut new = self.new_call(&call, who, alias);
        let mut is_again = how == How::Again;
        if how != How::Plain {
            let epoch = self.world.stores[at].gate_state().await.unwrap().epoch;
            match capacity.gate_of(self.model.mode) {
                Some(gate) => {
                    let _: Decision = gate.admit(epoch, &request).await.unwrap();
                }
                // There the answer and the record are one.
                None if how == How::Orphaned => return,
                None if self.world.home == GateMode::Redis => is_again = false,
                None => {
                    new.keys = keys(&request.bindings);
                    let _: AdmitOutcome =
                        self.world.stores[at].admit(new.clone(), request.clone(), epoch).await.unwrap();
                }
            }
        }
        if how == How::Orphaned {
            self.model.orphan(&request);
            return;
        }
        let expected = self.model.admit(at, &request, &attributes, alias, is_again);
        let policy_guard = capacity.hold_policy().await;
        let answer = match capacity.admit(&policy_guard, request.clone(), new).await {
            Ok(Admission::Admitted { lease, would_reject, early }) => {
                assert_eq!(*lease.call(), call, "{said}");
                Answer::Admitted(lease.slots(), would_reject, early)
            }
            Ok(Admission::Known(known)) => Answer::Known(known),
            Ok(Admission::Rejected(full)) => Answer::Refused(full),
            Err(AdmissionError::Gate(_)) => Answer::Nobody,
            Err(error) => panic!("{said}: {error}"),
        };
        drop(policy_guard);
        assert_eq!(answer, expected, "{said}");
        let Answer::Admitted(_, _, news) = answer else {
            let record = self.world.stores[at].call(&call).await.unwrap();
            assert_eq!(record, None, "{said}: no record without an admission");
            return;
        };
        self.calls.push(call.clone());
        if mode == Mode::Enforce && !self.is_open(at, who) {
            for limit in &request.bindings {
                if let Bound::Concurrent(allowed) = limit.bound {
                    let held = self.model.slots(&limit.key);
                    assert!(held <= allowed, "{said}: {held} under {}, which allows {allowed}", limit.key);
                }
            }
        }
        if let Some(event) = news {
            self.apply(at, &call, event, Ending::Told, said).await;
        }
    }

    /// Whether no limit is checked.
    fn is_open(&self, at: usize, who: usize) -> bool {
        let is_outage = self.world.home == GateMode::Redis && self.model.mode == GateMode::Database;
        is_outage && self.model.replicas[at].0.on_outage(&attributes(who)) == OnOutage::Open
    }

    fn new_call(&self, call: &CallId, who: usize, alias: Option<usize>) -> NewCall {
        let aliases = alias.map(|n| self.alias(n)).into_iter().collect();
        NewCall { attributes: attributes(who), aliases, ..new_call(call, self.model.now) }
    }

    async fn adopt(&mut self, at: usize, who: usize, slots: u32, over_limit: bool, said: &str) {
        let (capacity, call) = (self.capacity(at), CallId::new());
        let origin = if over_limit { Origin::Create } else { Origin::Foreign };
        let new = NewCall { origin, over_limit, slots, ..self.new_call(&call, who, None) };
        let policy_guard = capacity.hold_policy().await;
        assert_eq!(capacity.adopt(&policy_guard, new).await.unwrap(), InsertOutcome::New(None), "{said}");
        drop(policy_guard);
        let attributes = attributes(who);
        let keys = keys(&self.model.replicas[at].0.bindings(&attributes));
        self.model.open(call.clone(), &attributes, keys, slots, over_limit, None);
        self.calls.push(call);
    }

    async fn bind(&mut self, at: usize, call: usize, alias: usize, said: &str) {
        let Some(call) = self.call(call) else { return };
        let created = Event::Reached(Phase::Dialing);
        let bind = vec![self.alias(alias)];
        let change = Change { bind: bind.clone(), ..change(&call, self.model.now, Some(created)) };
        let applied = self.world.stores[at].apply(change).await.unwrap().unwrap();
        let (step, conflict) = self.model.bind(at, &call, alias, created);
        assert_eq!(applied.step, step, "{said}");
        let conflicts: Vec<_> = conflict.map(|other| (bind[0].clone(), other)).into_iter().collect();
        assert_eq!(applied.conflicts, conflicts, "{said}");
        if let Step::End(..) = step {
            self.capacity(at).release(&applied.record).await;
        }
    }

    async fn reach(&mut self, call: usize, phase: Phase, said: &str) {
        let Some(call) = self.call(call) else { return };
        let news = Event::Reached(phase);
        let applied = self.world.stores[0].apply(change(&call, self.model.now, Some(news))).await.unwrap().unwrap();
        assert_eq!(applied.step, self.model.apply(0, &call, news, true), "{said}");
    }

    async fn end(&mut self, at: usize, call: &CallId, how: Ending, said: &str) {
        self.apply(at, call, END, how, said).await;
    }

    async fn apply(&mut self, at: usize, call: &CallId, event: Event, how: Ending, said: &str) {
        let applied = self.world.stores[at].apply(change(call, self.model.now, Some(event))).await.unwrap().unwrap();
        assert_eq!(applied.step, self.model.apply(at, call, event, how != Ending::Untold), "{said}");
        if how == Ending::Untold || !matches!(applied.step, Step::End(..)) {
            return;
        }
        let capacity = self.capacity(at);
        capacity.release(&applied.record).await;
        if how == Ending::ToldTwice {
            capacity.release_by_id(call).await;
        }
    }

    async fn wipe(&mut self, said: &str) {
        self.world.wipe().await;
        if self.model.mode == GateMode::Redis {
            self.learn(0).await;
            let counts = self.capacity(0).counts().await;
            assert!(matches!(counts, Err(AdmissionError::Gate(_))), "{said}: {counts:?}");
            self.model.is_filled = false;
            // Nothing releases what is not held.
            self.model.ghosts.clear();
        }
    }

    /// Compares all visible state with the model.
    async fn compare(&mut self, at: usize, said: &str) {
        let leases = self.world.stores[at].leases().await.unwrap();
        assert_eq!(sorted(leases), sorted(self.model.leases()), "{said}: the record");
        if self.world.home == GateMode::Database {
            // The record is what is counted.
            return;
        }
        // As the keeper does.
        self.learn(at).await;
        let capacity = self.capacity(at);
        capacity.flush_pending().await;
        let (holding, state) = (self.model.holding(), capacity.state());
        assert_eq!(state.mode, self.model.mode, "{said}");
        if let Some(gate) = capacity.gate_of(state.mode).filter(|_| self.model.is_filled) {
            assert_eq!(capacity.counts().await.unwrap(), Counts::of(&holding), "{said}: counts");
            assert_eq!(sorted(gate.held(state.epoch).await.unwrap()), sorted(holding), "{said}: the gate");
        }
    }
}
