//! Applies a change to a call record. Pure: every back end reads the record, applies the change here, and writes the result.

use super::{CallRecord, Change};
use crate::call::{Direction, Event, Outcome, Phase, Step, next, stronger};

/// Applies a change to a record, together with news that waited under the change's ids. Returns the step, and whether only a leg ended:
/// see [`super::ApplyOutcome::ended_leg_only`].
pub(super) fn apply_change(record: &mut CallRecord, change: &Change, news: Option<Event>) -> (Step, bool) {
    if change.if_seen_at.is_some_and(|at| at != record.seen_at) {
        return (Step::Ignore, false);
    }
    let ends = |event: Event| change.by.as_ref().is_some_and(|by| by.ends_leg_only(&record.attributes, event));
    let ended_leg_only = record.phase != Phase::Ended && change.event.is_some_and(ends);
    let event = match (change.event.filter(|_| !ended_leg_only), news) {
        (Some(a), Some(b)) => Some(stronger(a, b)),
        (a, b) => a.or(b),
    };
    let step = event.map_or(Step::Ignore, |event| next(record.phase, event));
    match step {
        Step::Move(phase) => {
            record.phase = phase;
            record.phase_at = change.at_ms;
            record.deadline_at = change.deadlines.of_ms(phase).map(|ms| change.at_ms + ms);
            if phase == Phase::Live {
                record.answered_at = Some(change.at_ms);
            }
        }
        Step::Renew => record.deadline_at = change.deadlines.of_ms(record.phase).map(|ms| change.at_ms + ms),
        Step::End(outcome, proof) => {
            // A rejected call ended because a limit was full, whatever its provider reports.
            let refused = record.over_limit && record.attributes.direction == Direction::Inbound;
            let outcome = if refused { Outcome::Capacity } else { outcome };
            record.phase = Phase::Ended;
            record.phase_at = change.at_ms;
            record.deadline_at = None;
            record.outcome = Some(outcome);
            record.proof = Some(proof);
            record.ended_at = Some(change.at_ms);
        }
        // Its carrier is queried at once.
        Step::Ignore if ended_leg_only => record.deadline_at = Some(change.at_ms),
        Step::Ignore => {}
    }
    // News, or a provider's ids, prove that the call exists: the outcome of its create is known.
    let proves_create = matches!(step, Step::Move(_) | Step::End(..)) || !change.bind.is_empty();
    record.unsettled = change.unsettled.unwrap_or(record.unsettled && !proves_create);
    record.over_limit = change.over_limit.unwrap_or(record.over_limit);
    record.absent_at = match change.absent {
        Some(true) => record.absent_at.or(Some(change.at_ms)),
        Some(false) => None,
        None if event.is_some() => None,
        None => record.absent_at,
    };
    if change.exchange_over && !record.exchange_over {
        // Until now that a look-up found nothing proved nothing.
        (record.exchange_over, record.absent_at) = (true, None);
    }
    if record.ended_at.is_none() || matches!(step, Step::End(..)) {
        record.seen_at = change.at_ms;
        record.seen_by = change.seen_by;
    }
    (step, ended_leg_only)
}
