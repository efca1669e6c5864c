//! The memory gate: a place taken and given back, refusals, counts, with few and with very many calls in it.
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on has nothing to measure")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion};
use futures_util::FutureExt;
use ringfence::admission::limiter::Gate;
use ringfence::admission::limiter::memory::MemoryGate;
use ringfence::ids::CallId;
use ringfence::policy::decision::{AdmissionRequest, Decision, RetryAfterEstimator, Slots};
use ringfence::policy::{Binding, Bound, Mode, Scope};

/// The businesses that share the holders.
const BUSINESSES: usize = 300;
const ROOM: u32 = 1_000_000;

fn binding(limit: &str, scope: Scope, key: String, allowed: u32) -> Binding {
    Binding { limit: limit.into(), scope, key, bound: Bound::Concurrent(allowed) }
}

/// A call of a business, bound by its own limit, the account's and the platform's.
fn order(business: usize, platform: u32) -> AdmissionRequest {
    let bindings = vec![
        binding("plan.PRO", Scope::Business, format!("plan.PRO:business_{business}"), ROOM),
        binding("account.elevenlabs", Scope::Account, "account.elevenlabs".to_owned(), ROOM),
        binding("global", Scope::Global, "global".to_owned(), platform),
    ];
    AdmissionRequest { call: CallId::new(), bindings, slots: Slots::ONE, mode: Mode::Enforce, at_ms: 1_000 }
}

/// The memory gate never waits, so its futures are done when they are first asked.
fn done<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().unwrap()
}

fn gate_with(holders: usize) -> MemoryGate {
    let gate = MemoryGate::new();
    for n in 0..holders {
        assert!(matches!(done(gate.admit(0, &order(n % BUSINESSES, ROOM))).unwrap(), Decision::Admitted { .. }));
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
                assert!(matches!(done(gate.admit(0, &order)).unwrap(), Decision::Admitted { .. }));
                assert!(done(gate.release(0, &order.call)).unwrap());
            });
        });
        group.bench_function(BenchmarkId::new("refuse", holders), |b| {
            b.iter(|| assert!(matches!(done(gate.admit(0, &order(7, full))).unwrap(), Decision::Rejected(_))));
        });
        group.bench_function(BenchmarkId::new("counts", holders), |b| {
            b.iter(|| black_box(done(gate.counts(0)).unwrap()))
        });
    }
    // Once lengths of calls are known, a refusal also says when a place is expected.
    for holders in [10, 1_000, 50_000] {
        let gate = gate_with(holders);
        let waits = RetryAfterEstimator::default();
        waits.freed(&order(7, ROOM).bindings, Some(60_000));
        let full = u32::try_from(holders).unwrap();
        group.bench_function(BenchmarkId::new("refuse, with the expected wait", holders), |b| {
            b.iter(|| {
                let order = order(7, full);
                match done(gate.admit(0, &order)).unwrap() {
                    Decision::Rejected(short) => {
                        let full = waits.limit_exceeded(&order.bindings, &short, order.at_ms).unwrap();
                        assert!(full.free_in_ms.is_some());
                    }
                    Decision::Admitted { .. } => unreachable!("the platform is full"),
                }
            });
        });
    }
    group.finish();
    criterion.final_summary();
}
