//! The limiter in this process's memory: the default. It is rebuilt from the store at start.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;

use super::{Gate, GateError, Result};
use crate::clock::UnixMs;
use crate::ids::CallId;
use crate::policy::decision::{
    AdmissionRequest, Counts, Decision, LeaseRow, LimitUsage, OLDEST_MAX, RateLog, decide, keys,
};
use crate::sync::lock;

/// Expired rates are dropped when there are more than this.
const RATES_MAX: usize = 10_000;

/// The limiter in memory. One mutex around plain maps: no decision awaits, so it is held for microseconds.
#[derive(Debug, Default)]
pub struct MemoryGate {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    epoch: i64,
    holders: HashMap<CallId, LeaseRow>,
    over_limit: u64,
    slots: u64,
    sets: BTreeMap<String, Set>,
    rates: HashMap<String, RateLog>,
}

#[derive(Debug, Default)]
struct Set {
    /// Slots by holder, oldest first.
    holders: BTreeMap<(UnixMs, CallId), u32>,
    /// Sum of the holders' slots, kept so that no admission has to count them.
    slots: u64,
}

impl LimitUsage for State {
    fn held(&self, key: &str) -> u32 {
        self.sets.get(key).map_or(0, |set| u32::try_from(set.slots).unwrap_or(u32::MAX))
    }

    fn rate_log(&self, key: &str) -> Option<&RateLog> {
        self.rates.get(key)
    }

    fn oldest(&self, key: &str) -> Vec<UnixMs> {
        let Some(set) = self.sets.get(key) else { return vec![] };
        let singles = set.holders.iter().filter(|(_, slots)| **slots == 1);
        singles.map(|((since_ms, _), _)| *since_ms).take(OLDEST_MAX).collect()
    }
}

impl MemoryGate {
    /// An empty limiter, at epoch 0.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self, epoch: i64) -> Result<MutexGuard<'_, State>> {
        // Every change below is made after all checks, so a panic elsewhere leaves no partial change.
        let state = lock(&self.state);
        if state.epoch == epoch { Ok(state) } else { Err(GateError::Epoch(state.epoch)) }
    }
}

#[async_trait]
impl Gate for MemoryGate {
    async fn admit(&self, epoch: i64, request: &AdmissionRequest) -> Result<Decision> {
        let mut state = self.state(epoch)?;
        if let Some(held) = state.holders.get(&request.call) {
            return Ok(Decision::Admitted { slots: held.slots, would_reject: None });
        }
        let (decision, taken) = decide(request, &*state, request.at_ms);
        if let Decision::Admitted { slots, .. } = decision {
            state.take(taken, request.at_ms);
            state.hold(LeaseRow {
                call: request.call.clone(),
                keys: keys(&request.bindings),
                slots,
                since_ms: request.at_ms,
                over_limit: false,
            });
        }
        Ok(decision)
    }

    async fn adopt(&self, epoch: i64, held: &LeaseRow) -> Result<()> {
        self.state(epoch)?.hold(held.clone());
        Ok(())
    }

    async fn release(&self, epoch: i64, call: &CallId) -> Result<bool> {
        Ok(self.state(epoch)?.remove_lease(call))
    }

    async fn forbid(&self, epoch: i64, call: &CallId) -> Result<()> {
        // Every admission got its answer: nothing can arrive late.
        self.release(epoch, call).await.map(drop)
    }

    async fn rebuild(&self, epoch: i64, held: &[LeaseRow], rates: &[(String, RateLog)]) -> Result<()> {
        let mut anew = State { epoch, rates: rates.iter().cloned().collect(), ..State::default() };
        for one in held {
            anew.hold(one.clone());
        }
        let mut state = lock(&self.state);
        if epoch < state.epoch {
            return Err(GateError::Epoch(state.epoch));
        }
        *state = anew;
        Ok(())
    }

    async fn counts(&self, epoch: i64) -> Result<Counts> {
        let state = self.state(epoch)?;
        let count = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Counts {
            calls: count(state.slots),
            over_limit: count(state.over_limit),
            by_key: state.sets.iter().map(|(key, set)| (key.clone(), count(set.slots))).collect(),
        })
    }

    async fn held(&self, epoch: i64) -> Result<Vec<LeaseRow>> {
        Ok(self.state(epoch)?.holders.values().cloned().collect())
    }
}

impl State {
    fn hold(&mut self, held: LeaseRow) {
        self.remove_lease(&held.call);
        let slots = u64::from(held.slots);
        for key in &held.keys {
            let set = self.sets.entry(key.clone()).or_default();
            let before = set.holders.insert((held.since_ms, held.call.clone()), held.slots);
            // A limit that binds a call twice counts it once.
            set.slots += slots - before.map_or(0, u64::from);
        }
        self.slots += slots;
        self.over_limit += if held.over_limit { slots } else { 0 };
        self.holders.insert(held.call.clone(), held);
    }

    /// Takes a call out of every set.
    fn remove_lease(&mut self, call: &CallId) -> bool {
        let Some(held) = self.holders.remove(call) else { return false };
        let place = (held.since_ms, held.call);
        for key in &held.keys {
            if let Some(set) = self.sets.get_mut(key) {
                set.slots -= set.holders.remove(&place).map_or(0, u64::from);
                if set.holders.is_empty() {
                    self.sets.remove(key);
                }
            }
        }
        self.slots -= u64::from(held.slots);
        self.over_limit -= if held.over_limit { u64::from(held.slots) } else { 0 };
        true
    }

    fn take(&mut self, taken: Vec<(String, RateLog)>, now_ms: UnixMs) {
        if self.rates.len() >= RATES_MAX {
            self.rates.retain(|_, log| !log.is_expired(now_ms));
        }
        self.rates.extend(taken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::decision::{Shortfall, Slots};
    use crate::policy::{Binding, Bound, Mode, Rate, Scope};

    fn concurrent(key: &str, allowed: u32) -> Binding {
        Binding { limit: key.into(), scope: Scope::Named, key: key.to_owned(), bound: Bound::Concurrent(allowed) }
    }

    fn rate(key: &str, count: u32, window_ms: i64) -> Binding {
        let bound = Bound::Rate(Rate { count, window_ms });
        Binding { limit: key.into(), scope: Scope::Account, key: key.to_owned(), bound }
    }

    async fn batch(
        gate: &MemoryGate,
        bindings: &[Binding],
        slots: Slots,
        mode: Mode,
        at_ms: UnixMs,
    ) -> (CallId, Decision) {
        let call = CallId::new();
        let request = AdmissionRequest { call: call.clone(), bindings: bindings.to_vec(), slots, mode, at_ms };
        let decision = gate.admit(0, &request).await.unwrap();
        (call, decision)
    }

    async fn ask(gate: &MemoryGate, bindings: &[Binding], at_ms: UnixMs) -> (CallId, Decision) {
        batch(gate, bindings, Slots::ONE, Mode::Enforce, at_ms).await
    }

    fn short(decision: Decision) -> Shortfall {
        match decision {
            Decision::Rejected(short) => short,
            admitted => panic!("{admitted:?}"),
        }
    }

    const ONE: Decision = Decision::Admitted { slots: 1, would_reject: None };

    #[tokio::test]
    async fn a_refusal_leaves_no_trace_in_any_limit() {
        let gate = MemoryGate::new();
        let bindings = [concurrent("acme", 3), rate("cps", 10, 1000), concurrent("global", 1)];
        let (first, decision) = ask(&gate, &bindings, 0).await;
        assert_eq!(decision, ONE);
        let before = gate.counts(0).await.unwrap();
        for _ in 0..20 {
            let short = short(ask(&gate, &bindings, 0).await.1);
            assert_eq!((short.binding, short.current, short.lacking), (2, 1, 1));
        }
        assert_eq!(gate.counts(0).await.unwrap(), before);
        assert!(gate.release(0, &first).await.unwrap());
        assert_eq!(ask(&gate, &bindings, 5).await.1, ONE, "20 refusals burnt no token");
    }

    #[tokio::test]
    async fn releases_and_admissions_are_idempotent() {
        let gate = MemoryGate::new();
        let bindings = vec![concurrent("g", 2)];
        let call = CallId::new();
        let request =
            AdmissionRequest { call: call.clone(), bindings, slots: Slots::ONE, mode: Mode::Enforce, at_ms: 0 };
        for _ in 0..3 {
            assert_eq!(gate.admit(0, &request).await.unwrap(), ONE);
        }
        assert_eq!(gate.counts(0).await.unwrap().calls, 1);
        assert!(gate.release(0, &call).await.unwrap());
        assert!(!gate.release(0, &call).await.unwrap());
        assert_eq!(gate.counts(0).await.unwrap(), Counts::default());
    }

    #[tokio::test]
    async fn observing_counts_and_says_what_it_would_refuse() {
        let gate = MemoryGate::new();
        let bindings = [concurrent("g", 1)];
        for would in [false, true] {
            let (_, decision) = batch(&gate, &bindings, Slots::up_to(5), Mode::Observe, 0).await;
            let Decision::Admitted { slots: 5, would_reject: said } = decision else { panic!("{decision:?}") };
            assert_eq!(said.is_some(), would);
        }
        assert_eq!(gate.counts(0).await.unwrap().calls, 10);
    }

    #[tokio::test]
    async fn an_overrun_blocks_admissions() {
        let gate = MemoryGate::new();
        let held =
            LeaseRow { call: CallId::new(), keys: vec!["g".to_owned()], slots: 1, since_ms: 0, over_limit: true };
        gate.adopt(0, &held).await.unwrap();
        assert_eq!(short(ask(&gate, &[concurrent("g", 1)], 0).await.1).current, 1);
        assert_eq!(gate.counts(0).await.unwrap().over_limit, 1);
        gate.adopt(0, &LeaseRow { over_limit: false, ..held }).await.unwrap();
        assert_eq!((gate.counts(0).await.unwrap().calls, gate.counts(0).await.unwrap().over_limit), (1, 0));
    }

    #[tokio::test]
    async fn a_batch_is_granted_what_is_free_in_every_limit_and_gives_all_of_it_back() {
        let gate = MemoryGate::new();
        let bindings = [concurrent("acme", 4), concurrent("global", 10), rate("cps", 1, 1000)];
        assert_eq!(ask(&gate, &bindings[..1], 0).await.1, ONE);
        let (call, granted) = batch(&gate, &bindings, Slots::up_to(7), Mode::Enforce, 0).await;
        assert_eq!(granted, Decision::Admitted { slots: 3, would_reject: None }, "acme has 3 left");
        let counts = gate.counts(0).await.unwrap();
        assert_eq!((counts.calls, counts.by_key["acme"], counts.by_key["global"]), (4, 4, 3));
        assert_eq!(short(ask(&gate, &bindings[..1], 0).await.1).current, 4);
        let (_, full) = batch(&gate, &bindings[1..], Slots::ONE, Mode::Enforce, 0).await;
        assert_eq!(short(full).token_in_ms, Some(1051), "one a request");
        assert!(gate.release(0, &call).await.unwrap());
        assert_eq!(gate.counts(0).await.unwrap().calls, 1);
    }

    #[tokio::test]
    async fn who_takes_no_less_gets_all_or_nothing() {
        let gate = MemoryGate::new();
        assert_eq!(ask(&gate, &[concurrent("g", 3)], 0).await.1, ONE);
        let (_, refused) = batch(&gate, &[concurrent("g", 3)], Slots::exactly(3), Mode::Enforce, 0).await;
        assert_eq!(short(refused).lacking, 1);
        assert_eq!(gate.counts(0).await.unwrap().calls, 1, "without a trace");
        let (_, two) = batch(&gate, &[concurrent("g", 3)], Slots::exactly(2), Mode::Enforce, 0).await;
        assert_eq!(two, Decision::Admitted { slots: 2, would_reject: None });
    }

    #[tokio::test]
    async fn the_oldest_single_holders_are_told_and_no_batch() {
        let gate = MemoryGate::new();
        let bindings = [concurrent("g", 4)];
        for at_ms in [30, 10] {
            assert_eq!(ask(&gate, &bindings, at_ms).await.1, ONE);
        }
        let (_, two) = batch(&gate, &bindings, Slots::up_to(2), Mode::Enforce, 5).await;
        assert_eq!(two, Decision::Admitted { slots: 2, would_reject: None });
        assert_eq!(short(ask(&gate, &bindings, 50).await.1).oldest, [10, 30]);
    }

    #[tokio::test]
    async fn a_new_epoch_is_what_it_was_filled_with_and_the_old_one_is_over() {
        let gate = MemoryGate::new();
        let limited = [concurrent("g", 5), rate("cps", 1, 1000)];
        let _ = ask(&gate, &limited, 0).await;
        let held =
            LeaseRow { call: CallId::new(), keys: vec!["new".to_owned()], slots: 2, since_ms: 1, over_limit: false };
        let log = RateLog::default().with_one(Rate { count: 1, window_ms: 1000 }, 8_500);
        gate.rebuild(1, std::slice::from_ref(&held), &[("cps".to_owned(), log)]).await.unwrap();
        assert_eq!(gate.held(1).await.unwrap(), [held]);
        let request = |bindings: &[Binding]| AdmissionRequest {
            call: CallId::new(),
            bindings: bindings.to_vec(),
            slots: Slots::ONE,
            mode: Mode::Enforce,
            at_ms: 8_900,
        };
        assert_eq!(gate.admit(0, &request(&limited)).await, Err(GateError::Epoch(1)));
        assert_eq!(gate.rebuild(0, &[], &[]).await, Err(GateError::Epoch(1)));
        assert_eq!(short(gate.admit(1, &request(&limited)).await.unwrap()).token_in_ms, Some(651));
        assert_eq!(short(gate.admit(1, &request(&[concurrent("new", 2)])).await.unwrap()).current, 2);
    }
}
