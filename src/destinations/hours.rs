//! Hours of the week, and when they next begin in all zones in which a number may lie.

use std::fmt;

use jiff::civil::{Date, DateTime, Weekday};
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};
use jiff::{Timestamp, ToSpan as _};
use serde::{Deserialize, Serialize};

use super::zones::{Zone, zones_of};

/// Minutes of a day.
const DAY_MINUTES: u16 = 24 * 60;
/// The days that are searched for a time at which all zones agree. Weeks only differ by clock changes.
const LOOK_AHEAD_DAYS: i64 = 15;
/// Maximum lines of one list.
const LINES_MAX: usize = 64;

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// The text is not a list of hours. The message is fit for an operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a list of hours; write days and hours, as in \"mon-fri 09:00-20:00\" or \"daily 21:00-08:00\"")]
pub struct HoursError(String);

/// A span of minutes on some days; past midnight if the end is not after the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    /// The days on which it starts, one bit each; Monday is the lowest.
    days: u8,
    from: u16,
    /// `DAY_MINUTES` is the end of the day.
    to: u16,
}

impl Span {
    fn begins_on(self, day: Weekday) -> bool {
        self.days & (1 << day.to_monday_zero_offset()) != 0
    }

    fn is_over_midnight(self) -> bool {
        self.to <= self.from
    }

    fn contains(self, day: Weekday, minute: u16) -> bool {
        if !self.is_over_midnight() {
            return self.begins_on(day) && (self.from..self.to).contains(&minute);
        }
        (self.begins_on(day) && minute >= self.from) || (self.begins_on(day.previous()) && minute < self.to)
    }
}

/// Hours of the week: a list of `days from-to`, as in `mon-fri 09:00-20:00`, `sat,sun 10:00-14:00` or `daily 21:00-08:00`. The end is
/// exclusive; one that is not after the start is on the next day; `24:00` is the end of the day.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Hours {
    written: Vec<String>,
    spans: Vec<Span>,
}

impl fmt::Debug for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.written.fmt(f)
    }
}

impl TryFrom<Vec<String>> for Hours {
    type Error = HoursError;

    fn try_from(written: Vec<String>) -> Result<Self, HoursError> {
        let bad = || HoursError(format!("a list of {} lines", written.len()));
        if written.len() > LINES_MAX {
            return Err(bad());
        }
        let spans = written.iter().map(|line| span(line).ok_or_else(|| HoursError(line.clone())));
        Ok(Self { spans: spans.collect::<Result<_, _>>()?, written })
    }
}

impl From<Hours> for Vec<String> {
    fn from(hours: Hours) -> Self {
        hours.written
    }
}

fn span(line: &str) -> Option<Span> {
    let line = line.trim().to_ascii_lowercase();
    let (days, hours) = line.split_once(char::is_whitespace)?;
    let (from, to) = hours.trim().split_once('-')?;
    let span = Span { days: days_of(days)?, from: minute(from)?, to: minute(to)? };
    // Equal start and end are ambiguous: nothing, or a whole day.
    (span.from < DAY_MINUTES && span.from != span.to).then_some(span)
}

fn days_of(text: &str) -> Option<u8> {
    let day = |name: &str| DAYS.iter().position(|day| *day == name);
    if matches!(text, "daily" | "always") {
        return Some(0b111_1111);
    }
    text.split(',').try_fold(0, |days, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (day(first)?, day(last)?);
        // `sat-mon` wraps around the end of the week.
        let count = (last + 7 - first) % 7;
        Some((0..=count).fold(days, |days, n| days | 1 << ((first + n) % 7)))
    })
}

fn minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.trim().split_once(':')?;
    let read = |text: &str, digits: std::ops::RangeInclusive<usize>| {
        let fits = digits.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        fits.then(|| text.parse::<u16>().ok()).flatten()
    };
    let (hour, minute) = (read(hour, 1..=2)?, read(minute, 2..=2)?);
    let all = hour * 60 + minute;
    (minute < 60 && all <= DAY_MINUTES).then_some(all)
}

impl Hours {
    /// Whether they contain a time of day.
    fn contains(&self, at: DateTime) -> bool {
        let minute = u16::from(at.hour().unsigned_abs()) * 60 + u16::from(at.minute().unsigned_abs());
        self.spans.iter().any(|span| span.contains(at.weekday(), minute))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// The starts and ends of all spans on a date.
    fn edges(&self, date: Date) -> impl Iterator<Item = DateTime> + '_ {
        let at = move |minute: u16| {
            let day = if minute == DAY_MINUTES { date.tomorrow().ok()? } else { date };
            let minute = minute % DAY_MINUTES;
            let hour = i8::try_from(minute / 60).ok()?;
            Some(day.at(hour, i8::try_from(minute % 60).ok()?, 0, 0))
        };
        self.spans.iter().flat_map(move |span| {
            let ends_on = if span.is_over_midnight() { date.weekday().previous() } else { date.weekday() };
            let from = span.begins_on(date.weekday()).then(|| at(span.from)).flatten();
            let to = span.begins_on(ends_on).then(|| at(span.to)).flatten();
            from.into_iter().chain(to)
        })
    }
}

/// The time at which a number may be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// Now.
    Now,
    /// Not before this time, in milliseconds since 1970-01-01 UTC, which is the first allowed one.
    NotBefore(i64),
    /// Never: its zone is unknown, or its zones are never all within the hours.
    Never,
}

/// The hours in which a number may be called, by its local time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Windows<'a> {
    /// The allowed hours; `None`: any time.
    pub open: Option<&'a Hours>,
    /// The forbidden hours.
    pub quiet: &'a [&'a Hours],
}

/// The time at which a number, in E.164 without its plus, may be called: it is allowed in all zones in which it may lie. A zone known from
/// elsewhere, as from a lead's own field, overrides those of the number.
///
/// A time of day that the clock skips is not waited for: a span that begins in the gap begins at its end. When an hour comes twice,
/// both are judged by the time that the clock shows.
pub fn next_allowed(now_ms: i64, digits: &str, windows: Windows<'_>, known: Option<&Zone>) -> Allowed {
    next_in(now_ms, known.map_or_else(|| zones_of(digits), std::slice::from_ref), windows)
}

fn next_in(now_ms: i64, zones: &[Zone], windows: Windows<'_>) -> Allowed {
    if windows.open.is_none() && windows.quiet.iter().all(|hours| hours.is_empty()) {
        return Allowed::Now;
    }
    let (Ok(now), false) = (Timestamp::from_millisecond(now_ms), zones.is_empty()) else { return Allowed::Never };
    let Ok(until) = now.checked_add((LOOK_AHEAD_DAYS * 24).hours()) else { return Allowed::Never };
    let mut at = now;
    // The latest of the zones' next times is the earliest one that can suit all; each iteration advances, or ends.
    while at <= until {
        let next = zones.iter().try_fold(at, |latest, zone| Some(latest.max(windows.next(zone.rules(), at)?)));
        match next {
            None => return Allowed::Never,
            Some(next) if next == at => {
                return if at == now { Allowed::Now } else { Allowed::NotBefore(at.as_millisecond()) };
            }
            Some(next) => at = next,
        }
    }
    Allowed::Never
}

impl Windows<'_> {
    fn allow(&self, at: DateTime) -> bool {
        self.open.is_none_or(|open| open.contains(at)) && !self.quiet.iter().any(|quiet| quiet.contains(at))
    }

    /// The first allowed time at or after `at` in one zone.
    fn next(&self, zone: &TimeZone, at: Timestamp) -> Option<Timestamp> {
        let civil = zone.to_datetime(at);
        if self.allow(civil) {
            return Some(at);
        }
        // A clock change may land on an allowed time.
        let changed = zone.following(at).next().map(|change| change.timestamp());
        let changed = changed.filter(|change| self.allow(zone.to_datetime(*change)));
        // If the clock goes back past midnight, a start or end of the day before may still come.
        let mut date = civil.date().yesterday().ok()?;
        let mut first: Option<Timestamp> = None;
        for _ in 0..=9 {
            let hours = self.open.into_iter().chain(self.quiet.iter().copied());
            let edges = hours.flat_map(|hours| hours.edges(date)).filter(|edge| self.allow(*edge));
            let later = edges.flat_map(|edge| instants(zone, edge)).flatten().filter(|edge| *edge > at).min();
            if first.is_some() {
                return [first, later, changed].into_iter().flatten().min();
            }
            first = later;
            date = date.tomorrow().ok()?;
        }
        [first, changed].into_iter().flatten().min()
    }
}

/// The times at which a zone's clock shows a time: one or two, or the end of the gap that skips it.
fn instants(zone: &TimeZone, civil: DateTime) -> [Option<Timestamp>; 2] {
    let at = |offset: Offset| offset.to_timestamp(civil).ok();
    match zone.to_ambiguous_timestamp(civil).offset() {
        AmbiguousOffset::Unambiguous { offset } => [at(offset), None],
        AmbiguousOffset::Fold { before, after } => [at(before), at(after)],
        // By the offset after the gap, the time is before the end of the gap.
        AmbiguousOffset::Gap { after, .. } => {
            let end = at(after).and_then(|before| zone.following(before).next());
            [end.map(|end| end.timestamp()), None]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(lines: &[&str]) -> Hours {
        Hours::try_from(lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    fn ms(at: &str) -> i64 {
        at.parse::<Timestamp>().unwrap().as_millisecond()
    }

    fn zones(names: &[&str]) -> Vec<Zone> {
        names.iter().map(|name| Zone::parse(name).unwrap()).collect()
    }

    /// `now`, `never`, or when.
    fn next(at: &str, names: &[&str], open: &[&str], quiet: &[&str]) -> String {
        let (open, quiet) = (hours(open), hours(quiet));
        let open = (!open.is_empty()).then_some(&open);
        match next_in(ms(at), &zones(names), Windows { open, quiet: &[&quiet] }) {
            Allowed::Now => "now".to_owned(),
            Allowed::Never => "never".to_owned(),
            Allowed::NotBefore(at) => Timestamp::from_millisecond(at).unwrap().to_string(),
        }
    }

    const WORK: &[&str] = &["mon-fri 09:00-20:00", "sat 10:00-14:00"];

    #[test]
    fn a_window_opens_by_the_destinations_clock() {
        let istanbul = &["Europe/Istanbul"];
        // 2026-11-27 is a Friday; Istanbul is at +03:00 all year.
        for (at, then) in [
            ("2026-11-27T05:59:59Z", "2026-11-27T06:00:00Z"),
            ("2026-11-27T06:00:00Z", "now"),
            ("2026-11-27T16:59:59Z", "now"),
            ("2026-11-27T17:00:00Z", "2026-11-28T07:00:00Z"),
            ("2026-11-28T11:00:00Z", "2026-11-30T06:00:00Z"),
            ("2026-11-29T12:00:00Z", "2026-11-30T06:00:00Z"),
        ] {
            assert_eq!(next(at, istanbul, WORK, &[]), then, "{at}");
        }
    }

    #[test]
    fn quiet_hours_over_midnight_end_in_the_morning() {
        let quiet = &["daily 21:00-08:00", "sun 00:00-24:00"];
        let berlin = &["Europe/Berlin"];
        for (at, then) in [
            ("2026-11-27T19:59:00Z", "now"),
            ("2026-11-27T20:00:00Z", "2026-11-28T07:00:00Z"),
            ("2026-11-28T03:00:00Z", "2026-11-28T07:00:00Z"),
            ("2026-11-28T20:00:00Z", "2026-11-30T07:00:00Z"),
            ("2026-11-30T06:59:59Z", "2026-11-30T07:00:00Z"),
        ] {
            assert_eq!(next(at, berlin, &[], quiet), then, "{at}");
        }
        assert_eq!(next("2026-11-27T20:00:00Z", berlin, WORK, quiet), "2026-11-28T09:00:00Z", "both hold");
    }

    #[test]
    fn all_zones_must_be_inside() {
        let coasts = &["America/New_York", "America/Los_Angeles"];
        // 9 to 20 at both: 12:00 to 20:00 in New York.
        for (at, then) in [
            ("2026-11-27T14:30:00Z", "2026-11-27T17:00:00Z"),
            ("2026-11-27T17:00:00Z", "now"),
            ("2026-11-28T00:59:59Z", "now"),
            ("2026-11-28T01:00:00Z", "2026-11-30T17:00:00Z"),
        ] {
            assert_eq!(next(at, coasts, &["mon-fri 09:00-20:00"], &[]), then, "{at}");
        }
        let apart = &["Europe/London", "Pacific/Auckland"];
        assert_eq!(next("2026-11-27T12:00:00Z", apart, &["daily 09:00-12:00"], &[]), "never");
        assert_eq!(next("2026-11-27T12:00:00Z", &[], &["daily 09:00-12:00"], &[]), "never", "nobody knows where");
        assert_eq!(next("2026-11-27T12:00:00Z", &[], &[], &[]), "now", "nothing is asked");
    }

    #[test]
    fn gaps_and_repeats_of_the_clock() {
        let berlin = &["Europe/Berlin"];
        // 2026-03-29: 02:00 to 03:00 is left out, at 01:00Z.
        assert_eq!(next("2026-03-29T00:30:00Z", berlin, &["daily 02:30-06:00"], &[]), "2026-03-29T01:00:00Z");
        assert_eq!(next("2026-03-29T00:30:00Z", berlin, &["daily 02:10-02:50"], &[]), "2026-03-30T00:10:00Z");
        // 2026-10-25: 02:00 to 03:00 comes twice, from 00:00Z and from 01:00Z.
        for (at, then) in [
            ("2026-10-24T23:00:00Z", "2026-10-25T00:30:00Z"),
            ("2026-10-25T00:45:00Z", "now"),
            ("2026-10-25T01:45:00Z", "now"),
            ("2026-10-25T02:00:00Z", "2026-10-26T01:30:00Z"),
        ] {
            assert_eq!(next(at, berlin, &["daily 02:30-03:00"], &[]), then, "{at}");
        }
    }

    #[test]
    fn the_first_moment_is_found_as_by_trying_every_minute() {
        let open = hours(&["mon-fri 08:15-19:45", "sat-sun 00:10-02:25", "sat 22:00-02:00", "sun 02:40-03:20"]);
        let quiet = hours(&["daily 12:00-13:00", "wed-thu 17:00-09:30", "sun 01:30-02:10"]);
        let windows = Windows { open: Some(&open), quiet: &[&quiet] };
        // Weeks in which clocks are changed, there or elsewhere; at Lord Howe by half an hour.
        let lists = [
            ("2026-11-22T00:07:00Z", zones(&["Asia/Kathmandu", "Asia/Kolkata", "Asia/Dhaka"])),
            ("2026-03-07T00:07:00Z", zones(&["America/New_York", "America/St_Johns"])),
            ("2026-10-31T00:07:00Z", zones(&["America/New_York", "America/St_Johns", "America/Havana"])),
            ("2026-03-28T00:07:00Z", zones(&["Europe/Berlin"])),
            ("2026-10-24T00:07:00Z", zones(&["Europe/Berlin"])),
            ("2026-04-04T00:07:00Z", zones(&["Australia/Lord_Howe"])),
            ("2026-10-03T00:07:00Z", zones(&["Australia/Lord_Howe"])),
        ];
        let allowed = |zones: &[Zone], at: i64| {
            let at = Timestamp::from_millisecond(at).unwrap();
            zones.iter().all(|zone| windows.allow(zone.rules().to_datetime(at)))
        };
        for (from, zones) in &lists {
            for quarter in 0..3 * 24 * 4 {
                let now = ms(from) + quarter * 900_000;
                let by_minutes = (0..15 * 24 * 60).map(|minute| now + minute * 60_000).find(|at| allowed(zones, *at));
                let found = match next_in(now, zones, windows) {
                    Allowed::Now => Some(now),
                    Allowed::NotBefore(at) => Some(at),
                    Allowed::Never => None,
                };
                assert_eq!(found, by_minutes, "{zones:?} {now}");
            }
        }
    }

    #[test]
    fn a_zone_that_is_known_wins_over_the_numbers() {
        let open = hours(&["daily 09:00-20:00"]);
        let windows = Windows { open: Some(&open), quiet: &[] };
        let (now, berlin) = (ms("2026-11-27T07:00:00Z"), Zone::parse("Europe/Berlin").unwrap());
        assert_eq!(next_allowed(now, "905321234567", windows, None), Allowed::Now);
        assert_eq!(
            next_allowed(now, "905321234567", windows, Some(&berlin)),
            Allowed::NotBefore(ms("2026-11-27T08:00:00Z"))
        );
        assert_eq!(next_allowed(now, "88213000000", windows, None), Allowed::Never, "nobody knows where it is");
        assert_eq!(next_allowed(now, "88213000000", Windows::default(), None), Allowed::Now, "and nobody asks");
    }

    #[test]
    fn hours_are_read_as_people_write_them() {
        for good in [
            "mon 9:00-17:30",
            "MON-FRI 09:00-17:00",
            "sat-mon 22:00-06:00",
            "daily 00:00-24:00",
            "mon,wed,fri 9:00 - 10:00",
        ] {
            let list = vec![good.to_owned()];
            assert_eq!(Vec::<String>::from(Hours::try_from(list.clone()).unwrap()), list);
        }
        for bad in [
            "",
            "09:00-17:00",
            "mon",
            "mon 9-17",
            "mon 09:00-25:00",
            "mon 09:60-10:00",
            "xyz 09:00-10:00",
            "mon 9:00-9:00",
            "mon 24:00-08:00",
            "mon 09:00",
            "mon +9:00-10:00",
        ] {
            assert!(Hours::try_from(vec![bad.to_owned()]).is_err(), "{bad:?}");
        }
    }
}
