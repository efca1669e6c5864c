//! The next step of a schedule, and the schedule's state afterwards. Pure.

use super::cron::{Cron, Due, Missed};
use crate::clock::UnixMs;
use crate::store::schedules::{Schedule, ScheduleState};

/// A firing that is late by no more than this, in milliseconds, is no missed one.
pub const LATE_MS: i64 = 10 * 60_000;
/// Pauses between tries of a firing whose leads cannot be had, in seconds; the last one for all that follow.
const BACKOFF_SECS: [i64; 5] = [5, 15, 60, 300, 900];

/// The next step of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing before this time; none: nothing ever again.
    Wait(Option<UnixMs>),
    /// Make the run of this firing.
    Fire(UnixMs),
    /// Leave out what was missed up to this time.
    LeaveOut(UnixMs),
    /// Give the firing up that is tried again: the next one has come.
    GiveUp(UnixMs),
}

/// Decides the next step of a schedule now.
pub fn step(schedule: &Schedule, cron: &Cron, missed: Missed, now_ms: UnixMs) -> Step {
    if schedule.state == ScheduleState::Paused {
        return Step::Wait(None);
    }
    if let Some(at) = schedule.failing_at {
        return match (cron.next_firing(at), schedule.next_at) {
            (Some(next), _) if next <= now_ms => Step::GiveUp(at),
            (_, Some(again)) if again > now_ms => Step::Wait(Some(again)),
            _ => Step::Fire(at),
        };
    }
    match cron.due(schedule.done_at, now_ms, LATE_MS, missed) {
        Due::NotBefore(at) => Step::Wait(Some(at)),
        Due::Fire(at) => Step::Fire(at),
        Due::LeaveOut(until) => Step::LeaveOut(until),
        Due::Never => Step::Wait(None),
    }
}

/// A schedule that is done with all firings up to a time.
pub fn done(schedule: &Schedule, cron: &Cron, until: UnixMs, now_ms: UnixMs) -> Schedule {
    Schedule {
        done_at: until.max(schedule.done_at),
        next_at: cron.next_firing(until.max(schedule.done_at)),
        failing_at: None,
        tries: 0,
        error: None,
        updated_at: now_ms,
        ..schedule.clone()
    }
}

/// A schedule whose firing failed: it is tried again until the next one comes.
pub fn failed(schedule: &Schedule, cron: &Cron, at: UnixMs, why: String, now_ms: UnixMs) -> Schedule {
    let tries = if schedule.failing_at == Some(at) { schedule.tries + 1 } else { 1 };
    let pause = BACKOFF_SECS[(tries as usize - 1).min(BACKOFF_SECS.len() - 1)];
    let again = now_ms + pause * 1_000;
    Schedule {
        next_at: Some(cron.next_firing(at).map_or(again, |next| again.min(next.max(now_ms)))),
        failing_at: Some(at),
        tries,
        error: Some(why),
        updated_at: now_ms,
        ..schedule.clone()
    }
}

/// A schedule that is resumed: what came while it was paused is left out.
pub fn resumed(schedule: &Schedule, cron: &Cron, now_ms: UnixMs) -> Schedule {
    Schedule { state: ScheduleState::Active, ..done(schedule, cron, now_ms, now_ms) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::destinations::Zone;

    const MINUTE: i64 = 60_000;
    const HOUR: i64 = 60 * MINUTE;

    fn hourly() -> Cron {
        Cron::parse("0 * * * *", Zone::parse("UTC").unwrap()).unwrap()
    }

    fn schedule() -> Schedule {
        Schedule {
            id: "s".to_owned(),
            business: "acme".to_owned(),
            name: "hourly".to_owned(),
            spec: "{}".to_owned(),
            state: ScheduleState::Active,
            done_at: 5 * MINUTE,
            next_at: Some(HOUR),
            failing_at: None,
            tries: 0,
            error: None,
            fired_at: None,
            run: None,
            note: None,
            created_at: 0,
            updated_at: 0,
            version: 0,
        }
    }

    #[test]
    fn a_firing_is_made_once_and_the_next_one_is_waited_for() {
        let (cron, new) = (hourly(), schedule());
        assert_eq!(step(&new, &cron, Missed::Skip, HOUR - 1), Step::Wait(Some(HOUR)));
        assert_eq!(step(&new, &cron, Missed::Skip, HOUR + 3), Step::Fire(HOUR));
        let after = done(&new, &cron, HOUR, HOUR + 3);
        assert_eq!((after.done_at, after.next_at), (HOUR, Some(2 * HOUR)));
        assert_eq!(step(&after, &cron, Missed::Skip, HOUR + 4), Step::Wait(Some(2 * HOUR)));
        let paused = Schedule { state: ScheduleState::Paused, ..new };
        assert_eq!(step(&paused, &cron, Missed::RunOnce, 9 * HOUR), Step::Wait(None));
        let back = resumed(&paused, &cron, 9 * HOUR + MINUTE);
        assert_eq!(step(&back, &cron, Missed::RunOnce, 9 * HOUR + MINUTE), Step::Wait(Some(10 * HOUR)));
    }

    #[test]
    fn what_was_missed_is_left_out_or_made_up_for_once() {
        let (cron, new, now) = (hourly(), schedule(), 5 * HOUR + LATE_MS + 1);
        assert_eq!(step(&new, &cron, Missed::Skip, now), Step::LeaveOut(5 * HOUR));
        assert_eq!(done(&new, &cron, 5 * HOUR, now).next_at, Some(6 * HOUR));
        assert_eq!(step(&new, &cron, Missed::Skip, 5 * HOUR + LATE_MS), Step::Fire(5 * HOUR), "it is only late");
        assert_eq!(step(&new, &cron, Missed::RunOnce, now), Step::Fire(5 * HOUR));
    }

    #[test]
    fn a_firing_that_fails_is_tried_again_until_the_next_one() {
        let (cron, mut now) = (hourly(), HOUR + 1_000);
        let mut one = failed(&schedule(), &cron, HOUR, "away".to_owned(), now);
        let mut pauses = vec![];
        while one.next_at.unwrap() < 2 * HOUR {
            let again = one.next_at.unwrap();
            pauses.push((again - now) / 1_000);
            assert_eq!(step(&one, &cron, Missed::Skip, again - 1), Step::Wait(Some(again)));
            assert_eq!(step(&one, &cron, Missed::Skip, again), Step::Fire(HOUR), "however late it is by now");
            now = again;
            one = failed(&one, &cron, HOUR, "away".to_owned(), now);
        }
        assert_eq!(pauses, [5, 15, 60, 300, 900, 900, 900]);
        assert_eq!((one.tries, one.next_at, one.done_at), (8, Some(2 * HOUR), 5 * MINUTE));
        assert_eq!(step(&one, &cron, Missed::Skip, 2 * HOUR), Step::GiveUp(HOUR));
        let after = done(&one, &cron, HOUR, 2 * HOUR);
        assert_eq!((after.failing_at, after.tries, after.error.clone()), (None, 0, None));
        assert_eq!(step(&after, &cron, Missed::Skip, 2 * HOUR), Step::Fire(2 * HOUR));
    }
}
