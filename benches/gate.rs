//! The memory gate: a place taken and given back, refusals, counts, with few and with very many calls in it.
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on has nothing to measure")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion};
use futures_util::FutureExt;
use ringfence::gate::memory::MemoryGate;
use ringfence::gate::{Gate, Order, Places, Verdict};
use ringfence::ids::CallId;
use ringfence::policy::{Binding, Bound, Mode, Scope};

/// The businesses that share the holders.
const BUSINESSES: usize = 300;
const ROOM: u32 = 1_000_000;

fn binding(limit: &str, scope: Scope, key: String, allowed: u32) -> Binding {
    Binding { limit: limit.into(), scope, key, bound: Bound::Concurrent(allowed) }
}

/// A call of a business, bound by its own limit, the account's and the platform's.
fn order(business: usize, platform: u32) -> Order {
    let bindings = vec![
        binding("plan.PRO", Scope::Business, format!("plan.PRO:business_{business}"), ROOM),
        binding("account.elevenlabs", Scope::Account, "account.elevenlabs".to_owned(), ROOM),
        binding("global", Scope::Global, "global".to_owned(), platform),
    ];
    Order { call: CallId::new(), bindings, places: Places::ONE, mode: Mode::Enforce, at_ms: 1_000 }
}

/// The memory gate never waits, so its futures are done when they are first asked.
fn done<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().unwrap()
}

fn gate_with(holders: usize) -> MemoryGate {
    let gate = MemoryGate::new();
    for n in 0..holders {
        assert!(matches!(done(gate.admit(order(n % BUSINESSES, ROOM))).unwrap(), Verdict::Admitted(..)));
    }
    gate
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("gate");
    for holders in [10, 1_000, 50_000] {
        let gate = gate_with(holders);
        let full = u32::try_from(holders).unwrap();
        group.bench_function(BenchmarkId::new("admit and release", holders), |b| {
            b.iter(|| {
                let order = order(7, ROOM);
                let call = order.call.clone();
                assert!(matches!(done(gate.admit(order)).unwrap(), Verdict::Admitted(..)));
                assert!(done(gate.release(&call, None)).unwrap());
            });
        });
        group.bench_function(BenchmarkId::new("refuse", holders), |b| {
            b.iter(|| assert!(matches!(done(gate.admit(order(7, full))).unwrap(), Verdict::Refused(_))));
        });
        group.bench_function(BenchmarkId::new("counts", holders), |b| {
            b.iter(|| black_box(done(gate.counts()).unwrap()))
        });
    }
    // Once lengths of calls are known, a refusal also says when a place is expected.
    for holders in [10, 1_000, 50_000] {
        let gate = gate_with(holders);
        let ended = order(7, ROOM);
        let _ = done(gate.admit(ended.clone())).unwrap();
        assert!(done(gate.release(&ended.call, Some(60_000))).unwrap());
        let full = u32::try_from(holders).unwrap();
        group.bench_function(BenchmarkId::new("refuse, with the expected wait", holders), |b| {
            b.iter(|| match done(gate.admit(order(7, full))).unwrap() {
                Verdict::Refused(full) => assert!(full.free_in_ms.is_some()),
                Verdict::Admitted(..) => unreachable!("the platform is full"),
            });
        });
    }
    group.finish();
    criterion.final_summary();
}
