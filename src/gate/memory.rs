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
    since_ms: UnixMs,
    overrun: bool,
}

#[derive(Debug, Default)]
struct Set {
    since: HashMap<CallId, UnixMs>,
    /// Refusals since a place was last freed: each is told a later one, so that not all come back at once.
    refused: usize,
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
        let lease = Lease { call: order.call.clone() };
        if state.holders.contains_key(&order.call) {
            return Ok(Verdict::Admitted(lease, None));
        }
        let full = state.first_full(&order);
        match (full, order.mode) {
            (Some(full), Mode::Enforce) => Ok(Verdict::Refused(full)),
            (full, _) => {
                for binding in &order.bindings {
                    if let Bound::Rate(rate) = binding.bound {
                        state.take_token(&binding.key, rate, order.at_ms);
                    }
                }
                state.hold(order.call, order.bindings, order.at_ms, false);
                Ok(Verdict::Admitted(lease, full))
            }
        }
    }

    async fn lease(&self, call: &CallId) -> Result<Option<Lease>, GateAway> {
        Ok(self.state().holders.contains_key(call).then(|| Lease { call: call.clone() }))
    }

    async fn release(&self, call: &CallId, ended_at: Option<UnixMs>) -> Result<bool, GateAway> {
        Ok(self.state().let_go(call, ended_at).is_some())
    }

    async fn adopt(
        &self,
        call: &CallId,
        bindings: Vec<Binding>,
        since_ms: UnixMs,
        overrun: bool,
    ) -> Result<Lease, GateAway> {
        let mut state = self.state();
        state.let_go(call, None);
        state.hold(call.clone(), bindings, since_ms, overrun);
        Ok(Lease { call: call.clone() })
    }

    async fn rebind(&self, calls: Vec<(CallId, Vec<Binding>)>) -> Result<(), GateAway> {
        let mut state = self.state();
        for (call, bindings) in calls {
            if let Some(held) = state.let_go(&call, None) {
                state.hold(call, bindings, held.since_ms, held.overrun);
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
        Ok(Counts {
            calls: count(state.holders.len()),
            overruns: count(state.holders.values().filter(|h| h.overrun).count()),
            by_key: state.sets.iter().map(|(key, set)| (key.clone(), count(set.since.len()))).collect(),
        })
    }
}

impl State {
    fn first_full(&mut self, order: &Order) -> Option<Full> {
        for binding in &order.bindings {
            let (current, free_in_ms) = match binding.bound {
                Bound::Concurrent(allowed) => {
                    let held = self.sets.get(&binding.key).map_or(0, |set| count(set.since.len()));
                    if held < allowed {
                        continue;
                    }
                    (held, self.expected_free_ms(binding, order.at_ms))
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

    fn hold(&mut self, call: CallId, bindings: Vec<Binding>, since_ms: UnixMs, overrun: bool) {
        for binding in bindings.iter().filter(|b| matches!(b.bound, Bound::Concurrent(_))) {
            self.sets.entry(binding.key.clone()).or_default().since.insert(call.clone(), since_ms);
        }
        self.holders.insert(call, Holder { bindings, since_ms, overrun });
    }

    /// Takes a call out of every set; with a time, its length is remembered.
    fn let_go(&mut self, call: &CallId, at_ms: Option<UnixMs>) -> Option<Holder> {
        let held = self.holders.remove(call)?;
        for binding in &held.bindings {
            if let Some(set) = self.sets.get_mut(&binding.key) {
                set.since.remove(call);
                set.refused = 0;
                if set.since.is_empty() {
                    self.sets.remove(&binding.key);
                }
            }
            if let Some(at_ms) = at_ms {
                let lengths = self.lengths.entry(binding.limit.clone()).or_default();
                lengths.push_back(at_ms.saturating_sub(held.since_ms));
                if lengths.len() > LENGTHS_MAX {
                    lengths.pop_front();
                }
            }
        }
        Some(held)
    }

    /// When the next holder is expected to end, if calls of this limit have a known median length. Each further refusal is
    /// told the holder after.
    fn expected_free_ms(&mut self, binding: &Binding, at_ms: UnixMs) -> Option<i64> {
        let mut lengths: Vec<i64> = self.lengths.get(&binding.limit)?.iter().copied().collect();
        lengths.sort_unstable();
        let median = *lengths.get(lengths.len() / 2)?;
        let set = self.sets.get_mut(&binding.key)?;
        let mut left: Vec<i64> = set.since.values().map(|since| median - (at_ms - since)).collect();
        left.sort_unstable();
        let chosen = left.get(set.refused.min(left.len().saturating_sub(1)))?;
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

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
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
        let order = Order { call: call.clone(), bindings: bindings.to_vec(), mode, at_ms };
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
        let order = Order { call: CallId::new(), bindings: vec![concurrent("g", 1)], mode: Mode::Enforce, at_ms: 0 };
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
        let _ = gate.adopt(&call, vec![concurrent("g", 1)], 0, true).await.unwrap();
        assert!(matches!(ask(&gate, &[concurrent("g", 1)], Mode::Enforce, 0).await.1, Verdict::Refused(_)));
        assert_eq!(gate.counts().await.unwrap().overruns, 1);
    }

    #[tokio::test]
    async fn the_wait_is_learnt_from_calls_and_spread() {
        let gate = MemoryGate::new();
        let bindings = [concurrent("g", 2)];
        let (a, _) = ask(&gate, &bindings, Mode::Enforce, 0).await;
        let Verdict::Refused(full) = gate
            .admit(Order { call: CallId::new(), bindings: vec![concurrent("g", 1)], mode: Mode::Enforce, at_ms: 0 })
            .await
            .unwrap()
        else {
            panic!()
        };
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

    #[tokio::test]
    async fn rebinding_moves_open_calls_to_new_limits() {
        let gate = MemoryGate::new();
        let (call, _) = ask(&gate, &[concurrent("old", 5)], Mode::Enforce, 0).await;
        gate.rebind(vec![(call, vec![concurrent("new", 1)])]).await.unwrap();
        assert!(matches!(ask(&gate, &[concurrent("new", 1)], Mode::Enforce, 0).await.1, Verdict::Refused(_)));
        assert!(!gate.counts().await.unwrap().by_key.contains_key("old"));
    }
}
