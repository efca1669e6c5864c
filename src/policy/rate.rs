//! Rates: creates per interval.

/// The maximum number of slices of a window, for rates with more creates than that.
const SLICES: i64 = 256;
/// The maximum time that a create counts beyond its window, in milliseconds.
const JITTER_MAX_MS: i64 = 100;
/// The fraction of its window that a create counts beyond it, up to [`JITTER_MAX_MS`].
const JITTER_PART: i64 = 20;

/// A number of creates in any window of the given length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Creates per window; at least 1.
    pub count: u32,
    /// The window's length in milliseconds; at least 1.
    pub window_ms: i64,
}

impl Rate {
    /// Parses `5/s`, `150/5s`, `60/min`, `1000/h`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let hint = || format!("{text:?} is not a rate: write it as \"5/s\", \"150/5s\", \"60/min\" or \"1000/h\"");
        let (count, window) = text.split_once('/').ok_or_else(hint)?;
        let count: u32 = count.trim().parse().map_err(|_| hint())?;
        let window = window.trim();
        let digits = window.len() - window.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let units: i64 = if digits == 0 { 1 } else { window[..digits].parse().map_err(|_| hint())? };
        let unit_ms = match &window[digits..] {
            "ms" => 1,
            "s" | "sec" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            _ => return Err(hint()),
        };
        let window_ms = units.checked_mul(unit_ms).filter(|ms| *ms > 0).ok_or_else(hint)?;
        if count == 0 {
            return Err(format!("{text:?} allows nothing: a rate is at least 1"));
        }
        Ok(Self { count, window_ms })
    }

    /// The time for which a create counts, in milliseconds: the window, a rounding allowance, and an allowance for network jitter, because the
    /// provider counts when a create arrives and two creates do not take equally long.
    pub fn held_ms(self) -> i64 {
        self.window_ms.saturating_add(1 + JITTER_MAX_MS.min(self.window_ms / JITTER_PART))
    }

    /// The length of a slice, in milliseconds. Creates within one slice may be counted together, at its end.
    pub fn slice_ms(self) -> i64 {
        if i64::from(self.count) <= SLICES { 1 } else { (self.window_ms / SLICES).max(1) }
    }

    /// The same average rate with a burst of `burst` (at least 1). A burst above the count stretches the window, so that one
    /// window may hold that many; one below it spreads them out: `60/min` with a burst of 1 allows one per second.
    #[must_use]
    pub fn with_burst(self, burst: u32) -> Self {
        let (count, burst) = (i64::from(self.count.max(1)), burst.max(1));
        let window_ms = match i64::from(burst) {
            more if more >= count => self.window_ms.saturating_mul(more).saturating_add(count - 1) / count,
            // As many bursts per window as fit without exceeding the count.
            fewer => (self.window_ms + count / fewer - 1) / (count / fewer),
        };
        Self { count: burst, window_ms }
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let units = [(3_600_000, "h"), (60_000, "min"), (1_000, "s"), (1, "ms")];
        let (unit_ms, unit) = units.into_iter().find(|(ms, _)| self.window_ms % ms == 0).unwrap_or((1, "ms"));
        match self.window_ms / unit_ms {
            1 => write!(f, "{}/{unit}", self.count),
            n => write!(f, "{}/{n}{unit}", self.count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_changes_how_many_at_once_and_not_how_many_in_the_long_run() {
        let with = |text: &str, burst| Rate::parse(text).unwrap().with_burst(burst);
        assert_eq!(with("5/s", 5), Rate { count: 5, window_ms: 1000 });
        assert_eq!(with("5/s", 10), Rate { count: 10, window_ms: 2000 });
        assert_eq!(with("60/min", 1), Rate { count: 1, window_ms: 1000 });
        // Three bursts of 2 in a second would be 6 of 5.
        assert_eq!(with("5/s", 2), Rate { count: 2, window_ms: 500 });
        assert_eq!(with("3/s", 4), Rate { count: 4, window_ms: 1334 });
        assert_eq!(with("3/s", 2), Rate { count: 2, window_ms: 1000 });
    }

    #[test]
    fn rates_are_shown_as_they_are_written() {
        for text in ["5/s", "150/5s", "60/min", "1000/h", "7/333ms", "2/90s"] {
            assert_eq!(Rate::parse(text).unwrap().to_string(), text);
        }
    }
}
