//! Recurring schedules: a cron expression in a time zone.

use std::fmt;

use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use serde::{Deserialize, Serialize};

use crate::destinations::Zone;

/// Treatment of firings that were missed while no process ran.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// Missed firings are skipped.
    #[default]
    Skip,
    /// The last one is made up for, once.
    RunOnce,
}

/// The next step of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Wait until this time, in milliseconds since 1970-01-01 UTC.
    NotBefore(i64),
    /// Fire for this time.
    Fire(i64),
    /// Skip all firings up to this time: they were missed.
    LeaveOut(i64),
    /// Stop: there are no more firings.
    Never,
}

/// A cron expression of five fields (minute, hour, day of the month, month, day of the week) in a time zone.
///
/// When the clock goes forward, a fixed time of day in the gap (`30 2 * * *`) fires at the end of the gap; an expression that repeats
/// within the day (`*/15 * * * *`, `0 1,2 * * *`) skips the gap. When an hour comes twice, a fixed time of day fires the first time
/// only, and one that repeats within the day fires both times.
#[derive(Clone)]
pub struct Cron {
    pattern: croner::Cron,
    zone: Zone,
}

impl fmt::Debug for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.pattern.as_str(), self.zone.name())
    }
}

impl Cron {
    /// Parses an expression.
    ///
    /// # Errors
    /// A sentence for an operator.
    pub fn parse(expression: &str, zone: Zone) -> Result<Self, String> {
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let pattern = parser.parse(expression.trim()).map_err(|error| {
            format!("{expression:?} is not a cron expression: {error}; write five fields, as in \"0 9 * * mon-fri\"")
        })?;
        let cron = Self { pattern, zone };
        // An expression without a firing within the library's horizon never fires.
        match cron.next_firing(0) {
            Some(_) => Ok(cron),
            None => Err(format!("{expression:?} never fires: there is no such day")),
        }
    }

    /// The time zone.
    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    /// The first firing after a time, both in milliseconds since 1970-01-01 UTC; `None` if there is none.
    pub fn next_firing(&self, after_ms: i64) -> Option<i64> {
        let after = self.at(after_ms)?;
        let next = self.pattern.find_next_occurrence(&after, false).ok()?;
        Some(next.timestamp().as_millisecond())
    }

    /// The last firing at or before a time.
    fn last_firing(&self, until_ms: i64) -> Option<i64> {
        let until = self.at(until_ms)?;
        let last = self.pattern.find_previous_occurrence(&until, true).ok()?;
        Some(last.timestamp().as_millisecond())
    }

    /// The next step, if all firings up to `done_ms` (at first the start of the schedule) were made or skipped. A firing that is late by
    /// at most `late_ms` does not count as missed.
    pub fn due(&self, done_ms: i64, now_ms: i64, late_ms: i64, missed: Missed) -> Due {
        let Some(first) = self.next_firing(done_ms) else { return Due::Never };
        if first > now_ms {
            return Due::NotBefore(first);
        }
        // Of several due firings only the last one.
        let last = self.last_firing(now_ms).unwrap_or(first).max(first);
        match missed {
            Missed::RunOnce => Due::Fire(last),
            Missed::Skip if now_ms.saturating_sub(last) <= late_ms => Due::Fire(last),
            Missed::Skip => Due::LeaveOut(last),
        }
    }

    fn at(&self, ms: i64) -> Option<Zoned> {
        let rules: &TimeZone = self.zone.rules();
        Timestamp::from_millisecond(ms).ok().map(|at| at.to_zoned(rules.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cron(expression: &str, zone: &str) -> Cron {
        Cron::parse(expression, Zone::parse(zone).unwrap()).unwrap()
    }

    fn ms(at: &str) -> i64 {
        at.parse::<Timestamp>().unwrap().as_millisecond()
    }

    fn firings(cron: &Cron, after: &str, count: usize) -> Vec<String> {
        let mut at = ms(after);
        let mut all = Vec::new();
        for _ in 0..count {
            at = cron.next_firing(at).unwrap();
            all.push(Timestamp::from_millisecond(at).unwrap().to_string());
        }
        all
    }

    #[test]
    fn a_daily_hour_is_the_zones_own() {
        let daily = cron("0 9 * * *", "Europe/Istanbul");
        assert_eq!(firings(&daily, "2026-11-28T05:59:59Z", 2), ["2026-11-28T06:00:00Z", "2026-11-29T06:00:00Z"]);
        // The same hour on the clock, another in UTC, over a change of the clock.
        let berlin = cron("0 9 * * *", "Europe/Berlin");
        assert_eq!(firings(&berlin, "2026-10-24T00:00:00Z", 2), ["2026-10-24T07:00:00Z", "2026-10-25T08:00:00Z"]);
    }

    #[test]
    fn a_fixed_time_in_a_gap_fires_at_its_end() {
        // 2026-03-29 in Berlin: from 02:00 (01:00Z) the clock goes to 03:00.
        let daily = cron("30 2 * * *", "Europe/Berlin");
        let fired = firings(&daily, "2026-03-28T00:00:00Z", 3);
        assert_eq!(fired, ["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]);
    }

    #[test]
    fn what_repeats_within_the_day_is_left_out_in_a_gap_and_repeated_in_a_repeat() {
        let often = cron("*/30 * * * *", "Europe/Berlin");
        let fired = firings(&often, "2026-03-29T00:30:00Z", 2);
        assert_eq!(fired, ["2026-03-29T01:00:00Z", "2026-03-29T01:30:00Z"]);
        // 2026-10-25: from 03:00 (01:00Z) back to 02:00.
        let fired = firings(&often, "2026-10-25T00:00:00Z", 3);
        assert_eq!(fired, ["2026-10-25T00:30:00Z", "2026-10-25T01:00:00Z", "2026-10-25T01:30:00Z"]);
    }

    #[test]
    fn a_fixed_time_that_comes_twice_fires_once() {
        let daily = cron("30 2 * * *", "Europe/Berlin");
        let fired = firings(&daily, "2026-10-24T12:00:00Z", 2);
        assert_eq!(fired, ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]);
    }

    #[test]
    fn missed_firings_are_left_out_or_made_up_for_once() {
        let daily = cron("0 9 * * *", "UTC");
        let (done, now) = (ms("2026-11-20T09:00:00Z"), ms("2026-11-28T10:00:00Z"));
        let (last, next) = (ms("2026-11-28T09:00:00Z"), ms("2026-11-29T09:00:00Z"));
        assert_eq!(daily.due(done, now, 60_000, Missed::Skip), Due::LeaveOut(last));
        assert_eq!(daily.due(last, now, 60_000, Missed::Skip), Due::NotBefore(next), "left out once");
        assert_eq!(daily.due(done, now, 60_000, Missed::RunOnce), Due::Fire(last));
        assert_eq!(daily.due(last, now, 60_000, Missed::RunOnce), Due::NotBefore(next), "not a second time");
        // A little late is not missed, and what is still to come waits.
        assert_eq!(daily.due(done, last + 60_000, 60_000, Missed::Skip), Due::Fire(last));
        assert_eq!(daily.due(done, last + 60_001, 60_000, Missed::Skip), Due::LeaveOut(last));
        assert_eq!(daily.due(last, last, 60_000, Missed::Skip), Due::NotBefore(next));
    }

    #[test]
    fn what_is_no_expression_is_told_so() {
        let utc = || Zone::parse("UTC").unwrap();
        for bad in ["", "* * * *", "0 0 9 * * *", "61 * * * *", "0 9 * * someday", "0 0 31 2 *", "@often"] {
            assert!(Cron::parse(bad, utc()).is_err(), "{bad}");
        }
        for good in ["0 9 * * mon-fri", "*/5 8-20 * * 1-5", "0 0 29 2 *", "@daily"] {
            assert!(Cron::parse(good, utc()).is_ok(), "{good}");
        }
    }
}
