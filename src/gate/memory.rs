//! The gate in this process's memory: the embedded default. Its record is the store; it is rebuilt from it at start.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{Counts, Full, Gate, GateAway, Lease, Order, Verdict};
use crate::clock::UnixMs;
use crate::ids::CallId;
use crate::policy::{Binding, Bound, Mode, Rate};

/// How many lengths of ended calls are remembered a limit, to guess when a place comes free.
const LENGTHS_MAX: usize = 64;
/// Rates that have drained are forgotten when there are more than this.
const RATES_MAX: usize = 10_000;

/// One mutex around plain maps. No decision awaits, so it is held for microseconds.
#[derive(Debug, Default)]
pub struct MemoryGate {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    holders: HashMap<CallId, Holder>,
    sets: BTreeMap<String, Set>,
    /// Theoretical arrival times (GCRA), in microseconds.
    rates: HashMap<String, i64>,
    lengths: HashMap<Arc<str>, VecDeque<i64>>,
}

#[derive(Debug)]
struct Holder {
    bindings: Vec<Binding>,
    places: u32,
    since_ms: UnixMs,
    overrun: bool,
}

#[derive(Debug, Default)]
struct Set {
    holders: HashMap<CallId, Held>,
    /// What the holders have together: changed with them and nowhere else, so that no admission has to count them.
    places: u64,
    /// Refusals since a place was last freed: each is told a later one, so that not all come back at once.
    refused: usize,
}

/// What one holder has of one limit.
#[derive(Debug, Clone, Copy)]
struct Held {
    places: u32,
    since_ms: UnixMs,
}

impl Set {
    fn places(&self) -> u32 {
        u32::try_from(self.places).unwrap_or(u32::MAX)
    }

    fn insert(&mut self, call: CallId, held: Held) {
        let before = self.holders.insert(call, held);
        self.places = self.places + u64::from(held.places) - before.map_or(0, |held| u64::from(held.places));
    }

    fn remove(&mut self, call: &CallId) {
        if let Some(held) = self.holders.remove(call) {
            self.places -= u64::from(held.places);
        }
    }
}

impl MemoryGate {
    /// An empty gate.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change below is made in one go after its checks, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Gate for MemoryGate {
    async fn admit(&self, order: Order) -> Result<Verdict, GateAway> {
        let mut state = self.state();
        if let Some(held) = state.holders.get(&order.call) {
            return Ok(Verdict::Admitted(Lease { places: held.places, call: order.call }, None));
        }
        let full = state.first_full(&order);
        let places = match order.mode {
            Mode::Enforce => state.free(&order.bindings).min(order.places.wanted).max(order.places.at_least),
            Mode::Observe => order.places.wanted,
        };
        let lease = Lease { call: order.call.clone(), places };
        match (full, order.mode) {
            (Some(full), Mode::Enforce) => Ok(Verdict::Refused(full)),
            (full, _) => {
                for binding in &order.bindings {
                    if let Bound::Rate(rate) = binding.bound {
                        state.take_token(&binding.key, rate, order.at_ms);
                    }
                }
                state.hold(order.call, order.bindings, places, order.at_ms, false);
                Ok(Verdict::Admitted(lease, full))
            }
        }
    }

    async fn lease(&self, call: &CallId) -> Result<Option<Lease>, GateAway> {
        Ok(self.state().holders.get(call).map(|held| Lease { call: call.clone(), places: held.places }))
    }

    async fn release(&self, call: &CallId, ended_at: Option<UnixMs>) -> Result<bool, GateAway> {
        Ok(self.state().let_go(call, ended_at).is_some())
    }

    async fn adopt(
        &self,
        call: &CallId,
        bindings: Vec<Binding>,
        places: u32,
        since_ms: UnixMs,
        overrun: bool,
    ) -> Result<Lease, GateAway> {
        let mut state = self.state();
        state.let_go(call, None);
        state.hold(call.clone(), bindings, places, since_ms, overrun);
        Ok(Lease { call: call.clone(), places })
    }

    async fn rebind(&self, calls: Vec<(CallId, Vec<Binding>)>) -> Result<(), GateAway> {
        let mut state = self.state();
        for (call, bindings) in calls {
            if let Some(held) = state.let_go(&call, None) {
                state.hold(call, bindings, held.places, held.since_ms, held.overrun);
            }
        }
        Ok(())
    }

    async fn replay_rates(&self, sent: Vec<(UnixMs, Vec<Binding>)>) -> Result<(), GateAway> {
        let mut state = self.state();
        for (at_ms, bindings) in sent {
            for binding in bindings {
                if let Bound::Rate(rate) = binding.bound {
                    state.take_token(&binding.key, rate, at_ms);
                }
            }
        }
        Ok(())
    }

    async fn counts(&self) -> Result<Counts, GateAway> {
        let state = self.state();
        let sum = |n: u32, holder: &Holder| n.saturating_add(holder.places);
        Ok(Counts {
            calls: state.holders.values().fold(0, sum),
            overruns: state.holders.values().filter(|h| h.overrun).fold(0, sum),
            by_key: state.sets.iter().map(|(key, set)| (key.clone(), set.places())).collect(),
        })
    }
}

impl State {
    fn first_full(&mut self, order: &Order) -> Option<Full> {
        for binding in &order.bindings {
            let (current, free_in_ms) = match binding.bound {
                Bound::Concurrent(allowed) => {
                    let held = self.held(&binding.key);
                    let lacking = held.saturating_add(order.places.at_least).saturating_sub(allowed);
                    if lacking == 0 {
                        continue;
                    }
                    (held, self.expected_free_ms(binding, lacking, order.at_ms))
                }
                Bound::Rate(rate) => match self.token_in_ms(&binding.key, rate, order.at_ms) {
                    0 => continue,
                    wait_ms => (0, Some(wait_ms)),
                },
            };
            return Some(Full {
                limit: binding.limit.clone(),
                scope: binding.scope,
                bound: binding.bound,
                current,
                free_in_ms,
            });
        }
        None
    }

    fn held(&self, key: &str) -> u32 {
        self.sets.get(key).map_or(0, Set::places)
    }

    /// Places that are free in all concurrent limits together.
    fn free(&self, bindings: &[Binding]) -> u32 {
        let free = bindings.iter().filter_map(|binding| match binding.bound {
            Bound::Concurrent(allowed) => Some(allowed.saturating_sub(self.held(&binding.key))),
            Bound::Rate(_) => None,
        });
        free.min().unwrap_or(u32::MAX)
    }

    fn hold(&mut self, call: CallId, bindings: Vec<Binding>, places: u32, since_ms: UnixMs, overrun: bool) {
        for binding in bindings.iter().filter(|b| matches!(b.bound, Bound::Concurrent(_))) {
            let set = self.sets.entry(binding.key.clone()).or_default();
            set.insert(call.clone(), Held { places, since_ms });
        }
        self.holders.insert(call, Holder { bindings, places, since_ms, overrun });
    }

    /// Takes a call out of every set; with a time, its length is remembered.
    fn let_go(&mut self, call: &CallId, at_ms: Option<UnixMs>) -> Option<Holder> {
        let held = self.holders.remove(call)?;
        for binding in &held.bindings {
            if let Some(set) = self.sets.get_mut(&binding.key) {
                set.remove(call);
                set.refused = 0;
                if set.holders.is_empty() {
                    self.sets.remove(&binding.key);
                }
            }
            // How long a batch took says nothing of how long a call does.
            if let Some(at_ms) = at_ms.filter(|_| held.places == 1) {
                let lengths = self.lengths.entry(binding.limit.clone()).or_default();
                lengths.push_back(at_ms.saturating_sub(held.since_ms));
                if lengths.len() > LENGTHS_MAX {
                    lengths.pop_front();
                }
            }
        }
        Some(held)
    }

    /// When so many holders are expected to have ended as places are lacking, if calls of this limit have a known median
    /// length. Each further refusal is told the holder after. Nobody knows when a batch ends.
    fn expected_free_ms(&mut self, binding: &Binding, lacking: u32, at_ms: UnixMs) -> Option<i64> {
        let mut lengths: Vec<i64> = self.lengths.get(&binding.limit)?.iter().copied().collect();
        lengths.sort_unstable();
        let median = *lengths.get(lengths.len() / 2)?;
        let set = self.sets.get_mut(&binding.key)?;
        let calls = set.holders.values().filter(|held| held.places == 1);
        let mut left: Vec<i64> = calls.map(|held| median - (at_ms - held.since_ms)).collect();
        left.sort_unstable();
        let first = usize::try_from(lacking).ok()?.saturating_sub(1);
        if first >= left.len() {
            return None;
        }
        let chosen = left.get(first.saturating_add(set.refused).min(left.len() - 1))?;
        set.refused += 1;
        Some((*chosen).max(1_000))
    }

    /// Milliseconds until a token is there; 0 is now.
    fn token_in_ms(&self, key: &str, rate: Rate, at_ms: UnixMs) -> i64 {
        let interval_us = interval_us(rate);
        let now_us = at_ms.saturating_mul(1000);
        let arrival_us = self.arrival_us(key, rate, now_us);
        let tolerance_us = interval_us.saturating_mul(i64::from(rate.burst) - 1);
        let wait_us = arrival_us - tolerance_us - now_us;
        if wait_us <= 0 { 0 } else { (wait_us + 999) / 1000 }
    }

    fn take_token(&mut self, key: &str, rate: Rate, at_ms: UnixMs) {
        let now_us = at_ms.saturating_mul(1000);
        let arrival_us = self.arrival_us(key, rate, now_us).max(now_us) + interval_us(rate);
        if self.rates.len() >= RATES_MAX {
            self.rates.retain(|_, arrival| *arrival > now_us);
        }
        self.rates.insert(key.to_owned(), arrival_us);
    }

    /// The theoretical arrival time. One that a clock that jumped back left in the far future is cut to a full window.
    fn arrival_us(&self, key: &str, rate: Rate, now_us: i64) -> i64 {
        let latest = now_us.saturating_add(interval_us(rate).saturating_mul(i64::from(rate.burst.max(rate.count)) + 1));
        self.rates.get(key).copied().unwrap_or(now_us).min(latest)
    }
}

fn interval_us(rate: Rate) -> i64 {
    (rate.window_ms.saturating_mul(1000) / i64::from(rate.count.max(1))).max(1)
}

#[cfg(test)]
mod tests {
    use super::super::Places;
    use super::*;
    use crate::policy::Scope;

    fn concurrent(key: &str, allowed: u32) -> Binding {
        Binding { limit: key.into(), scope: Scope::Named, key: key.to_owned(), bound: Bound::Concurrent(allowed) }
    }

    fn rate(key: &str, count: u32, window_ms: i64) -> Binding {
        let bound = Bound::Rate(Rate { count, window_ms, burst: count });
        Binding { limit: key.into(), scope: Scope::Account, key: key.to_owned(), bound }
    }

    async fn ask(gate: &MemoryGate, bindings: &[Binding], mode: Mode, at_ms: UnixMs) -> (CallId, Verdict) {
        let call = CallId::new();
        let order = Order { call: call.clone(), bindings: bindings.to_vec(), places: Places::ONE, mode, at_ms };
        let verdict = gate.admit(order).await.unwrap();
        (call, verdict)
    }

    #[tokio::test]
    async fn a_refusal_leaves_no_trace_in_any_limit() {
        let gate = MemoryGate::new();
        let bindings = [concurrent("acme", 3), rate("cps", 10, 1000), concurrent("global", 1)];
        let (first, verdict) = ask(&gate, &bindings, Mode::Enforce, 0).await;
        assert!(matches!(verdict, Verdict::Admitted(_, None)));
        let before = gate.counts().await.unwrap();
        for _ in 0..20 {
            let (_, verdict) = ask(&gate, &bindings, Mode::Enforce, 0).await;
            let Verdict::Refused(full) = verdict else { panic!("{verdict:?}") };
            assert_eq!((full.limit.as_ref(), full.current), ("global", 1));
        }
        assert_eq!(gate.counts().await.unwrap(), before);
        assert!(gate.release(&first, Some(5)).await.unwrap());
        let (_, verdict) = ask(&gate, &bindings, Mode::Enforce, 5).await;
        assert!(matches!(verdict, Verdict::Admitted(..)), "20 refusals burnt no token: {verdict:?}");
    }

    #[tokio::test]
    async fn releases_and_admissions_are_idempotent() {
        let gate = MemoryGate::new();
        let bindings = vec![concurrent("g", 1)];
        let order = Order { call: CallId::new(), bindings, places: Places::ONE, mode: Mode::Enforce, at_ms: 0 };
        for _ in 0..2 {
            assert!(matches!(gate.admit(order.clone()).await.unwrap(), Verdict::Admitted(_, None)));
        }
        assert_eq!(gate.counts().await.unwrap().calls, 1);
        assert!(gate.lease(&order.call).await.unwrap().is_some());
        assert!(gate.release(&order.call, Some(1)).await.unwrap());
        assert!(gate.lease(&order.call).await.unwrap().is_none(), "asking admits nobody");
        assert!(!gate.release(&order.call, Some(1)).await.unwrap());
        assert_eq!(gate.counts().await.unwrap(), Counts::default());
    }

    #[tokio::test]
    async fn rates_allow_their_burst_and_then_their_pace() {
        let gate = MemoryGate::new();
        let bindings = [rate("cps", 2, 1000)];
        let mut admitted_at = Vec::new();
        for at_ms in (0..=3000).step_by(100) {
            if let (_, Verdict::Admitted(..)) = ask(&gate, &bindings, Mode::Enforce, at_ms).await {
                admitted_at.push(at_ms);
            }
        }
        assert_eq!(admitted_at, [0, 100, 500, 1000, 1500, 2000, 2500, 3000]);
        let (_, verdict) = ask(&gate, &bindings, Mode::Enforce, 3000).await;
        let Verdict::Refused(full) = verdict else { panic!("{verdict:?}") };
        assert_eq!(full.free_in_ms, Some(500));
    }

    #[tokio::test]
    async fn a_clock_that_jumps_back_does_not_close_a_rate_for_long() {
        let gate = MemoryGate::new();
        let bindings = [rate("cps", 1, 1000)];
        let _ = ask(&gate, &bindings, Mode::Enforce, 1_000_000_000).await;
        let (_, verdict) = ask(&gate, &bindings, Mode::Enforce, 0).await;
        let Verdict::Refused(full) = verdict else { panic!("{verdict:?}") };
        assert!(full.free_in_ms.unwrap() <= 2000, "{full:?}");
    }

    #[tokio::test]
    async fn observing_counts_and_says_what_it_would_refuse() {
        let gate = MemoryGate::new();
        let bindings = [concurrent("g", 1)];
        let _ = ask(&gate, &bindings, Mode::Observe, 0).await;
        let (_, verdict) = ask(&gate, &bindings, Mode::Observe, 0).await;
        let Verdict::Admitted(_, Some(full)) = verdict else { panic!("{verdict:?}") };
        assert_eq!((full.limit.as_ref(), full.current), ("g", 1));
        assert_eq!(gate.counts().await.unwrap().calls, 2);
    }

    #[tokio::test]
    async fn an_overrun_blocks_admissions() {
        let gate = MemoryGate::new();
        let call = CallId::new();
        let _ = gate.adopt(&call, vec![concurrent("g", 1)], 1, 0, true).await.unwrap();
        assert!(matches!(ask(&gate, &[concurrent("g", 1)], Mode::Enforce, 0).await.1, Verdict::Refused(_)));
        assert_eq!(gate.counts().await.unwrap().overruns, 1);
    }

    #[tokio::test]
    async fn the_wait_is_learnt_from_calls_and_spread() {
        let gate = MemoryGate::new();
        let bindings = [concurrent("g", 2)];
        let (a, _) = ask(&gate, &bindings, Mode::Enforce, 0).await;
        let (_, Verdict::Refused(full)) = ask(&gate, &[concurrent("g", 1)], Mode::Enforce, 0).await else { panic!() };
        assert_eq!(full.free_in_ms, None, "nothing was learnt yet");
        gate.release(&a, Some(60_000)).await.unwrap();
        let _ = ask(&gate, &bindings, Mode::Enforce, 100_000).await;
        let _ = ask(&gate, &bindings, Mode::Enforce, 120_000).await;
        let mut told = Vec::new();
        for _ in 0..3 {
            if let (_, Verdict::Refused(full)) = ask(&gate, &bindings, Mode::Enforce, 130_000).await {
                told.push(full.free_in_ms.unwrap());
            }
        }
        assert_eq!(told, [30_000, 50_000, 50_000]);
    }

    async fn batch(gate: &MemoryGate, bindings: &[Binding], places: Places, mode: Mode) -> (CallId, Verdict) {
        let call = CallId::new();
        let order = Order { call: call.clone(), bindings: bindings.to_vec(), places, mode, at_ms: 0 };
        let verdict = gate.admit(order).await.unwrap();
        (call, verdict)
    }

    #[tokio::test]
    async fn a_batch_is_granted_what_is_free_in_every_limit_and_gives_all_of_it_back() {
        let gate = MemoryGate::new();
        let bindings = [concurrent("acme", 4), concurrent("global", 10), rate("cps", 1, 1000)];
        let (_, held) = ask(&gate, &bindings[..1], Mode::Enforce, 0).await;
        assert!(matches!(held, Verdict::Admitted(..)));
        let (call, Verdict::Admitted(lease, None)) = batch(&gate, &bindings, Places::up_to(7), Mode::Enforce).await
        else {
            panic!()
        };
        assert_eq!(lease.places(), 3, "acme has 3 left");
        assert_eq!(gate.lease(&call).await.unwrap().unwrap().places(), 3);
        let counts = gate.counts().await.unwrap();
        assert_eq!((counts.calls, counts.by_key["acme"], counts.by_key["global"]), (4, 4, 3));
        let (_, full) = ask(&gate, &bindings[..1], Mode::Enforce, 0).await;
        assert!(matches!(full, Verdict::Refused(Full { current: 4, .. })), "{full:?}");
        let (_, full) = batch(&gate, &bindings[1..], Places::ONE, Mode::Enforce).await;
        assert!(matches!(full, Verdict::Refused(Full { free_in_ms: Some(1000), .. })), "one token a request: {full:?}");
        assert!(gate.release(&call, Some(99)).await.unwrap());
        assert_eq!(gate.counts().await.unwrap().calls, 1);
    }

    #[tokio::test]
    async fn who_takes_no_less_gets_all_or_nothing() {
        let gate = MemoryGate::new();
        let _ = ask(&gate, &[concurrent("g", 3)], Mode::Enforce, 0).await;
        let (_, refused) = batch(&gate, &[concurrent("g", 3)], Places::exactly(3), Mode::Enforce).await;
        assert!(matches!(refused, Verdict::Refused(Full { current: 1, .. })), "{refused:?}");
        assert_eq!(gate.counts().await.unwrap().calls, 1, "without a trace");
        let (_, two) = batch(&gate, &[concurrent("g", 3)], Places::exactly(2), Mode::Enforce).await;
        assert!(matches!(&two, Verdict::Admitted(lease, None) if lease.places() == 2), "{two:?}");
    }

    #[tokio::test]
    async fn observing_grants_a_batch_all_that_it_wants() {
        let gate = MemoryGate::new();
        let (_, verdict) = batch(&gate, &[concurrent("g", 3)], Places::up_to(5), Mode::Observe).await;
        assert!(matches!(&verdict, Verdict::Admitted(lease, None) if lease.places() == 5), "{verdict:?}");
        assert_eq!(gate.counts().await.unwrap().calls, 5);
    }

    #[tokio::test]
    async fn nobody_is_told_to_wait_for_the_end_of_a_batch() {
        let gate = MemoryGate::new();
        let bindings = [concurrent("g", 2)];
        let (a, _) = ask(&gate, &bindings, Mode::Enforce, 0).await;
        gate.release(&a, Some(60_000)).await.unwrap();
        let (call, _) = batch(&gate, &bindings, Places::up_to(2), Mode::Enforce).await;
        let (_, Verdict::Refused(full)) = ask(&gate, &bindings, Mode::Enforce, 0).await else { panic!() };
        assert_eq!(full.free_in_ms, None);
        gate.release(&call, Some(9_000_000)).await.unwrap();
        let _ = ask(&gate, &bindings, Mode::Enforce, 0).await;
        let _ = ask(&gate, &bindings, Mode::Enforce, 0).await;
        let (_, Verdict::Refused(full)) = ask(&gate, &bindings, Mode::Enforce, 0).await else { panic!() };
        assert_eq!(full.free_in_ms, Some(60_000), "its length was not learnt from");
    }

    #[tokio::test]
    async fn rebinding_moves_open_calls_to_new_limits() {
        let gate = MemoryGate::new();
        let (call, _) = ask(&gate, &[concurrent("old", 5)], Mode::Enforce, 0).await;
        gate.rebind(vec![(call, vec![concurrent("new", 1)])]).await.unwrap();
        assert!(matches!(ask(&gate, &[concurrent("new", 1)], Mode::Enforce, 0).await.1, Verdict::Refused(_)));
        assert!(!gate.counts().await.unwrap().by_key.contains_key("old"));
    }
}
