//! ringfence's own events for the app, of one shape for all providers; composed in the transaction that writes the fact. Pure.

use serde_json::{Value, json};
use ulid::Ulid;

use super::runs::{Job, Run};
use super::{AppNotice, CallRecord, NewCall, RejectionRecord};
use crate::call::{Origin, Outcome, Phase, Step};
use crate::clock::{UnixMs, rfc3339};
use crate::ids::{Alias, CallId};
use crate::policy::CallAttributes;
use crate::provider::description::PostCall;

/// An event for the outbox.
#[derive(Debug)]
pub(super) struct AppEvent {
    /// The event's id, and that of its delivery. The app recognises repetitions by it.
    pub(super) id: String,
    /// The event's call.
    pub(super) call: Option<String>,
    /// The time at which it happened.
    pub(super) at_ms: UnixMs,
    /// The JSON.
    pub(super) body: String,
}

/// The prefix of ids of ringfence's own events.
pub(super) const EVENT: &str = "evt_";

fn event(kind: &str, call: Option<&CallId>, at_ms: UnixMs, data: &Value) -> AppEvent {
    let id = format!("{EVENT}{}", Ulid::new().to_string().to_lowercase());
    let body = json!({"type": kind, "timestamp": rfc3339(at_ms), "data": data}).to_string();
    AppEvent { id, call: call.map(ToString::to_string), at_ms, body }
}

/// The fields of every event of a call.
fn of_call(call: &CallId, attributes: &CallAttributes, aliases: &[Alias], slots: u32, started_at: UnixMs) -> Value {
    let ids: serde_json::Map<String, Value> =
        aliases.iter().filter(|a| a.kind != super::KEY_KIND).map(|a| (a.kind.clone(), a.id.clone().into())).collect();
    json!({
        "callId": call, "businessId": attributes.business, "plan": attributes.plan, "provider": attributes.provider,
        "account": attributes.account, "carrier": attributes.carrier, "direction": attributes.direction, "operation": attributes.operation,
        "agent": attributes.agent, "ownNumber": attributes.own_number, "otherNumber": attributes.other_number, "slots": slots,
        "ids": ids, "startedAt": rfc3339(started_at),
    })
}

fn of_record(record: &CallRecord) -> Value {
    let mut data = of_call(&record.id, &record.attributes, &record.aliases, record.slots, record.admitted_at);
    data["origin"] = json!(record.origin);
    data["overLimit"] = json!(record.over_limit);
    data["answeredAt"] = json!(record.answered_at.map(rfc3339));
    data["endedAt"] = json!(record.ended_at.map(rfc3339));
    data["outcome"] = json!(record.outcome);
    data["proof"] = json!(record.proof);
    data
}

/// The events of a recorded call: its admission, and that it is live if it is. A call that counts over a limit was not admitted,
/// nor one that does not count yet.
pub(super) fn opened(call: &NewCall, slots: u32, admitted_at: UnixMs) -> Vec<AppEvent> {
    if call.notice == AppNotice::Omit {
        return vec![];
    }
    let mut data = of_call(&call.id, &call.attributes, &call.aliases, slots, admitted_at);
    data["origin"] = json!(call.origin);
    data["overLimit"] = json!(call.over_limit);
    let is_live = call.phase == Phase::Live;
    data["answeredAt"] = json!(is_live.then(|| rfc3339(call.at_ms)));
    let is_admitted = !call.over_limit && call.origin != Origin::Unconfirmed;
    let kinds = [("call.admitted", is_admitted), ("call.live", is_live)];
    kinds.iter().filter(|(_, so)| *so).map(|(kind, _)| event(kind, Some(&call.id), call.at_ms, &data)).collect()
}

/// The event of a step of a call.
pub(super) fn stepped(record: &CallRecord, step: Step, at_ms: UnixMs) -> Option<AppEvent> {
    let kind = match step {
        Step::Move(Phase::Live) => "call.live",
        Step::End(..) => "call.ended",
        _ => return None,
    };
    Some(event(kind, Some(&record.id), at_ms, &of_record(record)))
}

/// The event of a rejection; none in observe mode.
pub(super) fn rejected(rejection: &RejectionRecord) -> Option<AppEvent> {
    if rejection.notice == AppNotice::Omit || rejection.observed {
        return None;
    }
    let data = json!({
        "refusalId": rejection.id, "businessId": rejection.business, "account": rejection.account,
        "direction": rejection.direction, "reason": rejection.code, "limitName": rejection.limit_name,
        "current": rejection.current, "limit": rejection.limit,
    });
    let one = event("call.refused", None, rejection.at, &data);
    // Named by the rejection's id, so that it is found with it.
    Some(AppEvent { id: format!("{EVENT}{}", rejection.id), ..one })
}

/// The event of a step of a bulk run: `run.running`, `run.paused`, `run.done`, …
pub(super) fn run(run: &Run, at_ms: UnixMs) -> AppEvent {
    let data = json!({
        "runId": run.id, "businessId": run.business, "account": run.account, "name": run.name, "state": run.state,
        "reason": run.reason, "leads": run.total, "createdAt": rfc3339(run.created_at),
        "finishedAt": run.finished_at.map(rfc3339),
    });
    event(&format!("run.{}", run.state.as_str()), None, at_ms, &data)
}

/// The event of a job that ended without a call.
pub(super) fn job_done(run: &Run, job: &Job, at_ms: UnixMs) -> AppEvent {
    let data = json!({
        "runId": run.id, "businessId": run.business, "account": run.account, "name": run.name, "lead": job.seq,
        "outcome": job.outcome, "attempts": job.attempts, "error": job.error,
    });
    event("run.job_done", None, at_ms, &data)
}

/// The event of a complete post-call record.
pub(super) fn recorded(record: &CallRecord, found: &PostCall, at_ms: UnixMs) -> AppEvent {
    let mut data = of_record(record);
    data["record"] = json!(found);
    event("call.recorded", Some(&record.id), at_ms, &data)
}

/// Outcomes without a post-call record: nothing was called, or nothing was answered.
pub(super) const WITHOUT_RECORD: [&str; 2] = [Outcome::NotCreated.as_str(), Outcome::Capacity.as_str()];
