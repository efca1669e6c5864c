//! The request rate of each address.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::net::PeerKey;
use crate::policy::Rate;
use crate::sync::lock;

/// The maximum number of counted addresses, to bound memory. Further ones are not limited.
const ADDRESSES_MAX: usize = 20_000;

/// The time at which the bucket of each address is empty (a leaky bucket as a time).
#[derive(Debug, Default)]
pub(super) struct AddressRates(Mutex<HashMap<PeerKey, Instant>>);

impl AddressRates {
    /// Admits one request of an address, or returns the wait until the next.
    pub(super) fn take(&self, from: PeerKey, rate: Rate, now: Instant) -> Result<(), Duration> {
        let window = Duration::from_millis(u64::try_from(rate.window_ms).unwrap_or(1));
        let each = window / rate.count.max(1);
        let mut done_at = lock(&self.0);
        if done_at.len() >= ADDRESSES_MAX && !done_at.contains_key(&from) {
            done_at.retain(|_, at| *at > now);
            if done_at.len() >= ADDRESSES_MAX {
                return Ok(());
            }
        }
        let at = done_at.entry(from).or_insert(now);
        let next = (*at).max(now) + each;
        match next.saturating_duration_since(now + window) {
            Duration::ZERO => {
                *at = next;
                Ok(())
            }
            wait => Err(wait),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_rate_and_no_more() {
        let (address_rates, start) = (AddressRates::default(), Instant::now());
        let rate = Rate::parse("5/s").unwrap();
        let key = |last: u8| PeerKey::of([192, 0, 2, last].into());
        let take = |from: u8, ms: u64| address_rates.take(key(from), rate, start + Duration::from_millis(ms));
        assert!((0..5).all(|_| take(1, 0).is_ok()), "a window's worth at once");
        assert_eq!(take(1, 0), Err(Duration::from_millis(200)));
        assert!(take(2, 0).is_ok(), "another address has its own");
        assert!(take(1, 200).is_ok());
        assert!(take(1, 200).is_err());
        assert_eq!((0..10).filter(|_| take(1, 5_000).is_ok()).count(), 5, "what was not used is not saved up");
    }

    #[test]
    fn addresses_take_a_bounded_room() {
        let (address_rates, start) = (AddressRates::default(), Instant::now());
        let rate = Rate::parse("1/min").unwrap();
        let take =
            |n: u32, at: Instant| address_rates.take(PeerKey::of(std::net::Ipv4Addr::from_bits(n).into()), rate, at);
        for n in 0..ADDRESSES_MAX as u32 + 100 {
            assert!(take(n, start).is_ok());
        }
        assert_eq!(address_rates.0.lock().unwrap().len(), ADDRESSES_MAX);
        assert!(take(3, start).is_err(), "who is known is limited all the same");
        assert!(take(u32::MAX, start + Duration::from_secs(120)).is_ok());
        assert_eq!(address_rates.0.lock().unwrap().len(), 1, "those that wait for nothing make room");
    }
}
