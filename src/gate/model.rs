//! The reference model of the gate: plain lists, no cleverness. Random commands run against it and against a back end, and every
//! answer must be the same.

use proptest::prelude::*;

use super::Gate;
use super::memory::MemoryGate;
use crate::admission::{Decision, Held, Order, Places, keys};
use crate::clock::UnixMs;
use crate::ids::CallId;
use crate::policy::{Binding, Bound, Mode, Rate, Scope};

#[derive(Debug, Clone)]
enum Command {
    /// Ask for admission of so many calls at once under these of the limits, by position.
    Admit(Vec<usize>, Places, Mode),
    /// The same order again, as a client that repeats itself.
    AdmitAgain(usize),
    /// The nth call ends (perhaps for the second time).
    Release(usize),
    /// A call that exists anyway is counted.
    Adopt(Vec<usize>, u32),
    /// Time passes.
    Wait(u16),
    /// Every open call comes under other limits, and the rates start anew.
    Rebind(Vec<usize>),
}

fn limits() -> Vec<Binding> {
    let limit = |name: &str, bound| Binding { limit: name.into(), scope: Scope::Named, key: name.to_owned(), bound };
    vec![
        limit("one", Bound::Concurrent(1)),
        limit("three", Bound::Concurrent(3)),
        limit("none", Bound::Concurrent(0)),
        limit("wide", Bound::Concurrent(20)),
        limit("fast", Bound::Rate(Rate { count: 5, window_ms: 1000, burst: 5 })),
        limit("slow", Bound::Rate(Rate { count: 1, window_ms: 700, burst: 1 })),
    ]
}

fn of(positions: &[usize]) -> Vec<Binding> {
    let all = limits();
    let mut chosen: Vec<usize> = positions.to_vec();
    chosen.sort_unstable();
    chosen.dedup();
    chosen.into_iter().filter_map(|i| all.get(i).cloned()).collect()
}

/// What is held is a list; what was taken of a rate is the list of when.
#[derive(Default)]
struct Model {
    held: Vec<(CallId, Vec<Binding>, u32)>,
    taken: Vec<(String, UnixMs)>,
}

impl Model {
    fn full<'b>(&self, bindings: &'b [Binding], at_least: u32, now: UnixMs) -> Option<&'b Binding> {
        bindings.iter().find(|b| match b.bound {
            Bound::Concurrent(n) => self.places(&b.key) + at_least > n,
            Bound::Rate(rate) => {
                let interval_us = rate.window_ms * 1000 / i64::from(rate.count);
                // What observe mode let through beyond the rate is owed, but never more than a burst and one.
                let owed =
                    |arrival_us: i64, at: UnixMs| arrival_us.min(at * 1000 + interval_us * (i64::from(rate.burst) + 1));
                let mut arrival_us = 0;
                for (_, at) in self.taken.iter().filter(|(key, _)| *key == b.key) {
                    arrival_us = owed(arrival_us, *at).max(at * 1000) + interval_us;
                }
                let arrival_us = owed(arrival_us, now);
                arrival_us - interval_us * (i64::from(rate.burst) - 1) > now * 1000
            }
        })
    }

    fn places(&self, key: &str) -> u32 {
        let holds = |bindings: &[Binding]| bindings.iter().any(|b| b.key == key);
        self.held.iter().filter(|(_, bindings, _)| holds(bindings)).map(|(.., places)| places).sum()
    }

    /// One place after the other, while all limits have one more.
    fn granted(&self, bindings: &[Binding], places: Places, mode: Mode) -> u32 {
        let has_room = |n: u32| {
            bindings.iter().all(|b| match b.bound {
                Bound::Concurrent(allowed) => self.places(&b.key) + n <= allowed,
                Bound::Rate(_) => true,
            })
        };
        (1..=places.wanted).take_while(|n| mode == Mode::Observe || has_room(*n)).last().unwrap_or(0)
    }

    fn hold(&mut self, call: CallId, bindings: Vec<Binding>, places: u32, token_at: Option<UnixMs>) {
        for binding in bindings.iter().filter(|b| matches!(b.bound, Bound::Rate(_))) {
            self.taken.extend(token_at.map(|at| (binding.key.clone(), at)));
        }
        self.held.push((call, bindings, places));
    }

    fn release(&mut self, call: &CallId) -> bool {
        let before = self.held.len();
        self.held.retain(|(held, ..)| held != call);
        self.held.len() < before
    }
}

fn commands() -> impl Strategy<Value = Vec<Command>> {
    let chosen = || prop::collection::vec(0..6_usize, 0..4);
    let mode = prop_oneof![4 => Just(Mode::Enforce), 1 => Just(Mode::Observe)];
    let places = prop_oneof![
        4 => Just(Places::ONE),
        1 => (1..6_u32).prop_map(Places::up_to),
        1 => (1..4_u32).prop_map(Places::exactly),
    ];
    let one = prop_oneof![
        6 => (chosen(), places, mode).prop_map(|(limits, places, mode)| Command::Admit(limits, places, mode)),
        1 => (0..40_usize).prop_map(Command::AdmitAgain),
        4 => (0..40_usize).prop_map(Command::Release),
        1 => (chosen(), 1..4_u32).prop_map(|(limits, places)| Command::Adopt(limits, places)),
        3 => (0..900_u16).prop_map(Command::Wait),
        1 => chosen().prop_map(Command::Rebind),
    ];
    prop::collection::vec(one, 1..60)
}

async fn agree(gate: &dyn Gate, script: Vec<Command>) {
    let (mut model, mut calls, mut now) = (Model::default(), Vec::<(CallId, Vec<Binding>)>::new(), 1_000_000);
    let mut epoch = 0;
    for (step, command) in script.into_iter().enumerate() {
        match command {
            Command::Admit(positions, places, mode) => {
                let (call, bindings) = (CallId::new(), of(&positions));
                let wanted = model.full(&bindings, places.at_least, now).map(|b| b.limit.clone());
                let order = Order { call: call.clone(), bindings: bindings.clone(), places, mode, at_ms: now };
                let limit = |short: usize| bindings[short].limit.clone();
                match (gate.admit(epoch, &order).await.unwrap(), mode) {
                    (Decision::Refused(short), Mode::Enforce) => {
                        assert_eq!(Some(limit(short.binding)), wanted, "step {step}");
                    }
                    (Decision::Admitted { places: granted, would }, mode) => {
                        assert_eq!(would.map(|short| limit(short.binding)), wanted, "step {step}");
                        assert!(mode == Mode::Observe || wanted.is_none(), "step {step}");
                        assert_eq!(granted, model.granted(&bindings, places, mode), "step {step}");
                        model.hold(call.clone(), bindings.clone(), granted, Some(now));
                        calls.push((call, bindings));
                    }
                    (decision, mode) => panic!("step {step}: {decision:?} in {mode:?}"),
                }
            }
            Command::AdmitAgain(n) => {
                let Some((call, bindings)) = calls.get(n).cloned() else { continue };
                // A call that has ended would be a new one to the gate; the lifecycle never asks for it.
                if let Some((.., held)) = model.held.iter().find(|(held, ..)| *held == call) {
                    let order = Order { call, bindings, places: Places::up_to(9), mode: Mode::Enforce, at_ms: now };
                    let again = gate.admit(epoch, &order).await.unwrap();
                    assert_eq!(again, Decision::Admitted { places: *held, would: None }, "step {step}");
                }
            }
            Command::Release(n) => {
                let Some((call, _)) = calls.get(n) else { continue };
                let held = model.release(call);
                assert_eq!(gate.release(epoch, call).await.unwrap(), held, "step {step}");
            }
            Command::Adopt(positions, places) => {
                let (call, bindings) = (CallId::new(), of(&positions));
                let held = Held { call: call.clone(), keys: keys(&bindings), places, since_ms: now, overrun: true };
                gate.adopt(epoch, &held).await.unwrap();
                model.hold(call.clone(), bindings.clone(), places, None);
                calls.push((call, bindings));
            }
            Command::Wait(ms) => now += i64::from(ms),
            Command::Rebind(positions) => {
                let bindings = of(&positions);
                epoch += 1;
                let moved = |(call, _, places): &(CallId, Vec<Binding>, u32)| Held {
                    call: call.clone(),
                    keys: keys(&bindings),
                    places: *places,
                    since_ms: now,
                    overrun: false,
                };
                let held: Vec<Held> = model.held.iter().map(moved).collect();
                gate.rebuild(epoch, &held, &[]).await.unwrap();
                model.taken.clear();
                model.held.iter_mut().for_each(|(_, held, _)| held.clone_from(&bindings));
            }
        }
        let counts = gate.counts(epoch).await.unwrap();
        assert_eq!(counts.calls, model.held.iter().map(|(.., places)| places).sum::<u32>(), "step {step}");
        for limit in limits().iter().filter(|b| matches!(b.bound, Bound::Concurrent(_))) {
            let held = counts.by_key.get(&limit.key).copied().unwrap_or(0);
            assert_eq!(held, model.places(&limit.key), "step {step}: {}", limit.key);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Thousands of sequences, equal decisions step by step; a failure shrinks to the shortest one.
    #[test]
    fn the_memory_gate_agrees_with_the_model(script in commands()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(agree(&MemoryGate::new(), script));
    }
}
