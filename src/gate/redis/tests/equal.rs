//! The script decides as `admission::decide` does over plain maps, in every case.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::admission::{OLDEST_MAX, Standing, decide, keys};

#[derive(Debug, Clone)]
enum Step {
    /// Ask for admission under these of the limits, by position.
    Admit(Vec<usize>, Places, Mode),
    /// The same order again, as a client that repeats itself.
    Again(usize),
    /// The nth call ends (perhaps for the second time).
    Release(usize),
    /// A call that exists anyway is counted.
    Adopt(Vec<usize>, u32, bool, u16),
    /// Time passes, or jumps back.
    Wait(i64),
}

fn limits() -> Vec<Binding> {
    let burst = |key: &str, count, window_ms, burst| Binding {
        bound: Bound::Rate(Rate { count, window_ms, burst }),
        ..rate(key, count, window_ms)
    };
    vec![
        concurrent("k", 1),
        concurrent("k|", 3),
        concurrent("k|1", 0),
        concurrent("k%7C1|0", 20),
        burst("k", 5, 1000, 5),
        burst("slow|", 1, 700, 1),
        burst("slow|", 7, 333, 2),
        burst("", 3, 3_600_000, 40),
    ]
}

fn of(positions: &[usize]) -> Vec<Binding> {
    let all = limits();
    let mut seen = std::collections::BTreeSet::new();
    positions.iter().filter(|i| seen.insert(**i)).filter_map(|i| all.get(*i).cloned()).collect()
}

#[derive(Default)]
struct Model {
    held: BTreeMap<String, Held>,
    arrivals: BTreeMap<String, i64>,
}

impl Model {
    fn under(&self, key: &str) -> impl Iterator<Item = &Held> {
        self.held.values().filter(move |held| held.keys.iter().any(|k| k == key))
    }
    fn hold(&mut self, held: Held) {
        self.held.insert(held.call.to_string(), held);
    }
}

impl Standing for Model {
    fn held(&self, key: &str) -> u32 {
        self.under(key).map(|held| held.places).sum()
    }
    fn arrival_us(&self, key: &str) -> Option<i64> {
        self.arrivals.get(key).copied()
    }
    fn oldest(&self, key: &str) -> Vec<UnixMs> {
        let mut since: Vec<_> = self.under(key).filter(|held| held.places == 1).map(|held| held.since_ms).collect();
        since.sort_unstable();
        since.truncate(OLDEST_MAX);
        since
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let limits = || proptest::collection::vec(0..limits().len(), 0..5);
    let places = prop_oneof![
        3 => Just(Places::ONE),
        1 => (1..6_u32).prop_map(Places::exactly),
        1 => (1..30_u32).prop_map(Places::up_to),
    ];
    let mode = prop_oneof![4 => Just(Mode::Enforce), 1 => Just(Mode::Observe)];
    let step = prop_oneof![
        8 => (limits(), places, mode).prop_map(|(of, places, mode)| Step::Admit(of, places, mode)),
        1 => any::<usize>().prop_map(Step::Again),
        4 => any::<usize>().prop_map(Step::Release),
        1 => (limits(), 1..4_u32, any::<bool>(), any::<u16>()).prop_map(|(l, p, o, s)| Step::Adopt(l, p, o, s)),
        2 => (0..900_i64).prop_map(Step::Wait),
        1 => (-5_000_000..5_000_000_i64).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 1..40)
}

async fn run(gate: &RedisGate, epoch: i64, steps: Vec<Step>) {
    gate.rebuild(epoch, &[], &[]).await.unwrap();
    let mut model = Model::default();
    let mut orders: Vec<Order> = Vec::new();
    for step in steps {
        match step {
            Step::Admit(positions, places, mode) => {
                let order = Order { places, mode, ..order(&of(&positions)) };
                let (said, now_ms) = gate.decided(epoch, &order).await.unwrap();
                let (expected, taken) = decide(&order, &model, now_ms);
                assert_eq!(said, expected, "{order:?}");
                if let Decision::Admitted { places, .. } = said {
                    let keys = keys(&order.bindings);
                    model.hold(Held { call: order.call.clone(), keys, places, since_ms: now_ms, overrun: false });
                    model.arrivals.extend(taken);
                }
                orders.push(order);
            }
            Step::Again(n) if !orders.is_empty() => {
                let order = &orders[n % orders.len()];
                if let Some(held) = model.held.get(order.call.as_str()) {
                    assert_eq!(gate.admit(epoch, order).await, admitted(held.places));
                }
            }
            Step::Release(n) if !orders.is_empty() => {
                let call = &orders[n % orders.len()].call;
                assert_eq!(gate.release(epoch, call).await, Ok(model.held.remove(call.as_str()).is_some()));
            }
            Step::Adopt(positions, places, overrun, since) => {
                let keys = keys(&of(&positions));
                let held = Held { call: CallId::new(), keys, places, since_ms: since.into(), overrun };
                gate.adopt(epoch, &held).await.unwrap();
                model.hold(held);
            }
            Step::Wait(ms) => {
                gate.shared.offset_ms.fetch_add(ms, Ordering::Relaxed);
            }
            Step::Again(_) | Step::Release(_) => {}
        }
    }
    assert_eq!(gate.counts(epoch).await, Ok(Counts::of(model.held.values())));
    assert_eq!(leases(gate, epoch).await, model.held.into_values().collect::<Vec<_>>());
}

#[test]
fn the_script_decides_as_rust_does() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (_server, gate) = runtime.block_on(fresh());
    let epoch = std::sync::atomic::AtomicI64::new(1);
    let config = ProptestConfig { cases: 300, max_shrink_iters: 200, failure_persistence: None, ..Default::default() };
    proptest!(config, |(steps in steps())| {
        runtime.block_on(run(&gate, epoch.fetch_add(1, Ordering::Relaxed) + 1, steps));
    });
}
