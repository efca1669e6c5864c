//! A random number generator whose runs can be repeated, and the time that long tests take.

use std::time::Duration;

/// A random number generator that needs no crate: the seed is printed, so that a run can be repeated.
pub struct Rng(u64);

impl Rng {
    /// From `RINGFENCE_SEED`, else from the clock.
    pub fn new(what: &str) -> Self {
        let given = std::env::var("RINGFENCE_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| jiff::Timestamp::now().as_microsecond().unsigned_abs());
        eprintln!("{what}: RINGFENCE_SEED={seed}");
        Self(seed)
    }

    /// Another, for a task of its own.
    pub fn fork(&mut self) -> Self {
        Self(self.below(u64::MAX))
    }

    /// 0 to `n` - 1 (SplitMix64).
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// The time for which a test that could go on for ever goes on: `RINGFENCE_CHAOS_SECS`, else what CI has time for.
pub fn chaos(secs: u64) -> Duration {
    let given = std::env::var("RINGFENCE_CHAOS_SECS").ok().and_then(|secs| secs.parse().ok());
    Duration::from_secs(given.unwrap_or(secs))
}
