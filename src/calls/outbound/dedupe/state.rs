//! Where the call of an earlier request stands.

use crate::call::{Outcome, Phase};
use crate::clock::UnixMs;
use crate::store::CallRecord;

/// How long after its call has ended a request may still be retried. A retry comes within seconds; who dials a busy number
/// again after twenty means a second call.
const AFTER_END_MS: i64 = 10_000;

/// Where the call of an earlier request stands for who sends the request again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IdempotencyState {
    /// Nobody knows yet whether there is a call.
    Unknown,
    /// There is one, or was until a moment ago.
    Called,
    /// There never was one, or it is over: the request is a new one.
    Over,
}

/// Reads it off a call's record.
pub(super) fn state(call: &CallRecord, now_ms: UnixMs) -> IdempotencyState {
    state_of(call.phase, call.outcome, call.ended_at, call.unsettled, now_ms)
}

/// The same, of the parts of a record that tell it.
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
