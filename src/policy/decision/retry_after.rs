//! Estimates when a full limit will have room, from the lengths of recently ended calls.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{LimitExceeded, Shortfall};
use crate::clock::UnixMs;
use crate::policy::{Binding, Bound};
use crate::sync::lock;

/// Remembered lengths of ended calls per limit.
const LENGTHS_MAX: usize = 64;
/// Limit keys whose rejections are counted; beyond that, all counts are dropped.
const REJECTED_MAX: usize = 10_000;

/// Estimates of when a full limit will have room. Local to the process: no decision depends on them.
#[derive(Debug, Default)]
pub struct RetryAfterEstimator(Mutex<Learnt>);

#[derive(Debug, Default)]
struct Learnt {
    lengths: HashMap<Arc<str>, VecDeque<i64>>,
    /// Rejections since a slot was last released: each gets a later estimate, so that clients do not all retry at once.
    rejected: HashMap<String, usize>,
}

impl RetryAfterEstimator {
    fn learnt(&self) -> MutexGuard<'_, Learnt> {
        // Only estimates: a panic elsewhere leaves nothing inconsistent.
        lock(&self.0)
    }

    /// Learns from released slots. `length_ms` is the length of the call that held one; a batch has none, since its length says
    /// nothing about the length of a call.
    pub fn freed(&self, bindings: &[Binding], length_ms: Option<i64>) {
        let mut learnt = self.learnt();
        for binding in bindings {
            learnt.rejected.remove(&binding.key);
            if let Some(length_ms) = length_ms {
                let lengths = learnt.lengths.entry(binding.limit.clone()).or_default();
                lengths.push_back(length_ms);
                if lengths.len() > LENGTHS_MAX {
                    lengths.pop_front();
                }
            }
        }
    }

    /// The rejection for a shortfall. `None`: the decision was made over other bindings.
    pub fn limit_exceeded(&self, bindings: &[Binding], short: &Shortfall, now_ms: UnixMs) -> Option<LimitExceeded> {
        let binding = bindings.get(short.binding)?;
        let free_in_ms = match binding.bound {
            Bound::Rate(_) => short.token_in_ms,
            Bound::Concurrent(_) => self.learnt().next_estimate_ms(binding, short, now_ms),
        };
        let (limit, scope, bound) = (binding.limit.clone(), binding.scope, binding.bound);
        Some(LimitExceeded { limit, scope, bound, current: short.current, free_in_ms })
    }
}

impl Learnt {
    /// Estimates when enough holders will have ended, if calls of this limit have a known median length, and counts the rejection: each
    /// further one gets the next holder. The end of a batch cannot be estimated.
    fn next_estimate_ms(&mut self, binding: &Binding, short: &Shortfall, now_ms: UnixMs) -> Option<i64> {
        let mut lengths: Vec<i64> = self.lengths.get(&binding.limit)?.iter().copied().collect();
        lengths.sort_unstable();
        let median = *lengths.get(lengths.len() / 2)?;
        let first = usize::try_from(short.lacking).ok()?.saturating_sub(1);
        let last = short.oldest.len().checked_sub(1).filter(|last| first <= *last)?;
        if self.rejected.len() >= REJECTED_MAX {
            self.rejected.clear();
        }
        let rejected = self.rejected.entry(binding.key.clone()).or_default();
        let since = short.oldest.get(first.saturating_add(*rejected).min(last))?;
        *rejected += 1;
        Some((median - (now_ms - since)).max(1_000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Scope;

    fn limit() -> Binding {
        Binding { limit: "g".into(), scope: Scope::Named, key: "g|".to_owned(), bound: Bound::Concurrent(2) }
    }

    fn short(lacking: u32, oldest: &[UnixMs]) -> Shortfall {
        Shortfall { binding: 0, current: 2, lacking, token_in_ms: None, oldest: oldest.to_vec() }
    }

    #[test]
    fn the_wait_is_learnt_from_calls_and_spread() {
        let (waits, bindings) = (RetryAfterEstimator::default(), [limit()]);
        let told = |lacking, oldest: &[UnixMs]| {
            waits.limit_exceeded(&bindings, &short(lacking, oldest), 130_000).unwrap().free_in_ms
        };
        assert_eq!(told(1, &[100_000, 120_000]), None, "nothing was learnt yet");
        waits.freed(&bindings, Some(60_000));
        assert_eq!([told(1, &[100_000, 120_000]), told(1, &[100_000, 120_000])], [Some(30_000), Some(50_000)]);
        assert_eq!(told(1, &[100_000, 120_000]), Some(50_000), "no later than the last");
        waits.freed(&bindings, None);
        assert_eq!(told(1, &[100_000, 120_000]), Some(30_000), "a place came free: from the start");
        assert_eq!(told(2, &[100_000]), None, "nobody knows when a batch ends");
        assert_eq!(told(1, &[10_000]), Some(1_000), "longer than most: soon");
    }
}
