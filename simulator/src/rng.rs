//! A small generator of pseudo-random numbers (SplitMix64), so that a seed repeats a run.

use crate::settings::Millis;
use std::time::Duration;

/// A year: settings come over the network, and clocks overflow.
pub(crate) const LONGEST_MS: u64 = 365 * 24 * 3600 * 1000;

/// The source of everything that is drawn.
#[derive(Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// True with probability `p`.
    pub(crate) fn hits(&mut self, p: f64) -> bool {
        // 53 bits are what an f64 holds.
        p > 0.0 && ((self.next() >> 11) as f64 / (1u64 << 53) as f64) < p
    }

    pub(crate) fn ms(&mut self, span: Millis) -> u64 {
        let width = span.max.saturating_sub(span.min).saturating_add(1);
        span.min.saturating_add(self.next() % width.max(1)).min(LONGEST_MS)
    }

    pub(crate) fn span(&mut self, span: Millis) -> Duration {
        Duration::from_millis(self.ms(span))
    }

    /// A Twilio SID: two letters, 32 hex digits.
    pub(crate) fn sid(&mut self, prefix: &str) -> String {
        format!("{prefix}{:016x}{:016x}", self.next(), self.next())
    }

    /// An ElevenLabs id: a word, an underscore, 26 lower-case letters and digits.
    pub(crate) fn id(&mut self, prefix: &str) -> String {
        const LETTERS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
        let drawn: String = (0..26).map(|_| char::from(LETTERS[(self.next() >> 59) as usize])).collect();
        format!("{prefix}_{drawn}")
    }

    /// A UUID of version 4.
    pub(crate) fn uuid(&mut self) -> String {
        let (a, b) = (self.next(), self.next());
        format!(
            "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
            a >> 32,
            (a >> 16) & 0xffff,
            a & 0xfff,
            0x8000 | ((b >> 48) & 0x3fff),
            b & 0xffff_ffff_ffff
        )
    }
}
