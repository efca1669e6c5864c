//! The clock, as a handle. Deadlines, rates and records read the time here only, so that tests can step it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// Milliseconds since 1970-01-01 UTC.
pub type UnixMs = i64;

/// A duration in whole milliseconds, at most `i64::MAX`.
pub fn as_ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// The system clock plus an offset that only tests move.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    offset_ms: Arc<AtomicI64>,
    /// The offset alone is the time: the clock is stopped.
    is_stopped: bool,
}

impl Clock {
    /// The system clock.
    pub fn system() -> Self {
        Self::default()
    }

    /// A stopped clock, for tests.
    pub fn stopped_at(now_ms: UnixMs) -> Self {
        Self { offset_ms: Arc::new(AtomicI64::new(now_ms)), is_stopped: true }
    }

    /// Now. A system clock before 1970 reads as 1970.
    pub fn now_ms(&self) -> UnixMs {
        let offset_ms = self.offset_ms.load(Ordering::Relaxed);
        if self.is_stopped {
            return offset_ms;
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        as_ms(since).saturating_add(offset_ms)
    }

    /// Moves this clock and every clone of it. For tests.
    pub fn advance_ms(&self, by_ms: i64) {
        self.offset_ms.fetch_add(by_ms, Ordering::Relaxed);
    }
}

/// Time since boot. It includes suspended time and cannot be set.
pub fn since_boot() -> Duration {
    #[cfg(target_os = "linux")]
    const ALWAYS: ClockId = ClockId::CLOCK_BOOTTIME;
    #[cfg(not(target_os = "linux"))]
    const ALWAYS: ClockId = ClockId::CLOCK_MONOTONIC;
    clock_gettime(ALWAYS).map(Duration::from).unwrap_or_default()
}

/// Milliseconds of a coarse monotonic clock: the cheapest, for repeated use within a request.
pub fn ticks_ms() -> u64 {
    #[cfg(target_os = "linux")]
    const COARSE: ClockId = ClockId::CLOCK_MONOTONIC_COARSE;
    #[cfg(not(target_os = "linux"))]
    const COARSE: ClockId = ClockId::CLOCK_MONOTONIC;
    let ticks = clock_gettime(COARSE).map(Duration::from).unwrap_or_default();
    u64::try_from(ticks.as_millis()).unwrap_or(u64::MAX)
}

/// A time as RFC 3339 in UTC, as the JSON answers show it.
pub fn rfc3339(at_ms: UnixMs) -> String {
    jiff::Timestamp::from_millisecond(at_ms).map(|t| t.to_string()).unwrap_or_default()
}
