//! The log of a rate: the creates in its sliding window.
//!
//! `rate = "N/t"` means that no window of `t` holds more than N creates, wherever it begins. So a create counts for `t` after its
//! admission, and a little longer: creates do not take the same time to reach their provider, whose window it is.

use std::fmt;
use std::str::FromStr;

use crate::clock::UnixMs;
use crate::policy::Rate;

/// Creates by the time of their admission, oldest first. Its text is `HELD;AT:CREATES,AT:CREATES`, in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RateLog {
    /// The time for which the newest entry counts, in milliseconds.
    held_ms: i64,
    entries: Vec<(UnixMs, u32)>,
}

impl RateLog {
    /// The entries that count now. Entries further in the future than a window come from a clock that jumped back, and do not
    /// count.
    fn counting(&self, rate: Rate, now_ms: UnixMs) -> impl Iterator<Item = (UnixMs, u32)> + '_ {
        let held = rate.held_ms();
        let counts = move |at: UnixMs| at.saturating_add(held) > now_ms && at <= now_ms.saturating_add(held);
        self.entries.iter().copied().filter(move |(at, _)| counts(*at))
    }

    /// Milliseconds until one more create is allowed; 0: now.
    pub fn wait_ms(&self, rate: Rate, now_ms: UnixMs) -> i64 {
        let total: u64 = self.counting(rate, now_ms).map(|(_, n)| u64::from(n)).sum();
        let Some(mut too_many) = (total + 1).checked_sub(u64::from(rate.count)).filter(|n| *n > 0) else { return 0 };
        for (at, n) in self.counting(rate, now_ms) {
            too_many = too_many.saturating_sub(u64::from(n));
            if too_many == 0 {
                return at.saturating_add(rate.held_ms()) - now_ms;
            }
        }
        rate.held_ms()
    }

    /// The log after one more create. It drops entries that no longer count, and of those that observe mode let through all but
    /// the last window.
    #[must_use]
    pub fn with_one(&self, rate: Rate, now_ms: UnixMs) -> Self {
        let mut entries: Vec<_> = self.counting(rate, now_ms).collect();
        let slice = rate.slice_ms();
        let at = now_ms.div_euclid(slice).saturating_add(i64::from(now_ms.rem_euclid(slice) > 0)).saturating_mul(slice);
        match entries.binary_search_by_key(&at, |(at, _)| *at) {
            Ok(here) => entries[here].1 = entries[here].1.saturating_add(1),
            Err(here) => entries.insert(here, (at, 1)),
        }
        let mut total: u64 = entries.iter().map(|(_, n)| u64::from(*n)).sum();
        let old = entries.iter().take_while(|(_, n)| {
            let is_old = total - u64::from(*n) >= u64::from(rate.count);
            total -= if is_old { u64::from(*n) } else { 0 };
            is_old
        });
        let old = old.count();
        entries.drain(..old);
        Self { held_ms: rate.held_ms(), entries }
    }

    /// Whether no entry counts any more.
    pub fn is_expired(&self, now_ms: UnixMs) -> bool {
        self.entries.last().is_none_or(|(at, _)| at.saturating_add(self.held_ms) <= now_ms)
    }
}

impl fmt::Display for RateLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{};", self.held_ms)?;
        for (i, (at, n)) in self.entries.iter().enumerate() {
            write!(f, "{}{at}:{n}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl FromStr for RateLog {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a log of a rate");
        let (held, rest) = text.split_once(';').ok_or_else(bad)?;
        let entry = |one: &str| {
            let (at, n) = one.split_once(':')?;
            Some((at.parse().ok()?, n.parse().ok()?))
        };
        let entries = rest.split(',').filter(|one| !one.is_empty()).map(entry).collect::<Option<_>>();
        Ok(Self { held_ms: held.parse().map_err(|_| bad())?, entries: entries.ok_or_else(bad)? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Requests at these times; returns the log and the admitted ones.
    fn run(rate: Rate, asked: &[UnixMs], observe: bool) -> (RateLog, Vec<UnixMs>) {
        let (mut log, mut sent) = (RateLog::default(), Vec::new());
        for now in asked {
            let wait = log.wait_ms(rate, *now);
            assert!(wait >= 0 && wait <= rate.held_ms() + rate.slice_ms(), "{wait}");
            if wait == 0 || observe {
                log = log.with_one(rate, *now);
                sent.push(*now);
            }
            assert_eq!(log.to_string().parse(), Ok(log.clone()));
            assert!(log.entries.len() <= 600, "{}", log.entries.len());
        }
        (log, sent)
    }

    proptest! {
        /// The oracle: counts every window anew, wherever it begins.
        #[test]
        fn no_window_holds_more_than_the_rate(
            count in 1..400_u32,
            window_ms in prop_oneof![1..50_i64, 100..5_000_i64, Just(3_600_000)],
            steps in prop::collection::vec((0..40_i64, 1..60_usize), 1..60),
        ) {
            let (rate, mut now, mut asked) = (Rate { count, window_ms }, 1_000_000, vec![]);
            for (step, times) in steps {
                now += step * window_ms / 30;
                asked.extend(std::iter::repeat_n(now, times));
            }
            let (_, sent) = run(rate, &asked, false);
            for (first, from) in sent.iter().enumerate() {
                let within = sent[first..].iter().take_while(|at| **at < from + window_ms).count();
                prop_assert!(within <= count as usize, "{within} of {count} from {from}");
            }
            // And no create waits longer than needed: where fewer are in what counts, one more is admitted.
            for at in asked {
                let reach = rate.held_ms() + rate.slice_ms();
                let before = sent.iter().filter(|one| **one <= at && **one > at - reach).count();
                prop_assert!(before >= count as usize || sent.contains(&at), "{before} of {count} at {at}, not sent");
            }
        }

        /// The returned wait is exact, to the millisecond.
        #[test]
        fn the_wait_is_exact(count in 1..300_u32, window_ms in 1..10_000_i64, gaps in prop::collection::vec(0..90_i64, 1..400)) {
            let (rate, mut now) = (Rate { count, window_ms }, 5_000);
            let asked: Vec<_> = gaps.into_iter().map(|gap| { now += gap; now }).collect();
            for observe in [false, true] {
                let (log, _) = run(rate, &asked, observe);
                let wait = log.wait_ms(rate, now);
                prop_assert_eq!(log.wait_ms(rate, now + wait), 0);
                prop_assert!(wait == 0 || log.wait_ms(rate, now + wait - 1) == 1);
            }
        }
    }

    #[test]
    fn a_window_is_used_to_the_full_and_comes_back_at_once() {
        let rate = Rate { count: 5, window_ms: 1000 };
        let (log, sent) = run(rate, &[0; 9], false);
        assert_eq!((sent.len(), log.wait_ms(rate, 400)), (5, 651));
        assert_eq!(log.wait_ms(rate, 1051), 0);
        assert!(log.is_expired(1051) && !log.is_expired(1050));
    }

    #[test]
    fn what_is_further_ahead_than_a_window_came_from_a_clock_that_jumped() {
        let rate = Rate { count: 1, window_ms: 1000 };
        let (log, _) = run(rate, &[10_000_000], false);
        assert_eq!(log.wait_ms(rate, 0), 0);
        assert_eq!(log.wait_ms(rate, 9_999_500), 1551);
    }
}
