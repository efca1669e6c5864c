//! The state of an earlier request's call.

use crate::call::{Outcome, Phase};
use crate::clock::UnixMs;
use crate::store::CallRecord;

/// The time after its call has ended within which a request may still be retried, in milliseconds. A retry comes within seconds; an app that
/// redials a busy number after twenty seconds wants a second call.
const AFTER_END_MS: i64 = 10_000;

/// The state of an earlier request's call, as far as it matters to a duplicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IdempotencyState {
    /// The existence of a call is unknown.
    Unknown,
    /// There is a call, or was until a moment ago.
    Called,
    /// There never was one, or it has ended: the duplicate is a new request.
    Over,
}

/// The state of a recorded call.
pub(super) fn state(call: &CallRecord, now_ms: UnixMs) -> IdempotencyState {
    state_of(call.phase, call.outcome, call.ended_at, call.unsettled, now_ms)
}

/// The state, from the fields that decide it.
pub(super) fn state_of(
    phase: Phase,
    outcome: Option<Outcome>,
    ended_at: Option<UnixMs>,
    unsettled: bool,
    now_ms: UnixMs,
) -> IdempotencyState {
    match (phase, outcome, ended_at) {
        (Phase::Ended, Some(Outcome::NotCreated), _) => IdempotencyState::Over,
        (Phase::Ended, _, Some(at)) if at + AFTER_END_MS < now_ms => IdempotencyState::Over,
        (Phase::Ended, ..) => IdempotencyState::Called,
        (Phase::Reserved, ..) => IdempotencyState::Unknown,
        _ if unsettled => IdempotencyState::Unknown,
        _ => IdempotencyState::Called,
    }
}
