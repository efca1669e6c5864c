//! A run shown as a batch, in the provider's fields and words. Pure.

use serde_json::{Map, Value, json};

use super::super::spec::Spec;
use super::convert::BODY_DIGEST;
use crate::call::Outcome;
use crate::store::runs::{JobResult, JobState, Run, RunCounts, RunState};

fn submitted_fields(run: &Run) -> Map<String, Value> {
    serde_json::from_str::<Spec>(&run.spec).ok().and_then(|spec| spec.batch).unwrap_or_default()
}

/// The digest of the body that a run was submitted with.
pub(super) fn submitted_digest(run: &Run) -> String {
    submitted_fields(run).get(BODY_DIGEST).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The agent of a batch.
pub(super) fn agent(run: &Run) -> Option<String> {
    submitted_fields(run).get("agent_id")?.as_str().map(str::to_owned)
}

/// `BatchCallStatus`. It has no word for a paused batch.
fn status(run: &Run, counts: &RunCounts) -> &'static str {
    let is_begun = counts.dialing + counts.calling + counts.done() > 0;
    match run.state {
        RunState::Loading | RunState::Ready => "pending",
        RunState::Running | RunState::Paused if is_begun => "in_progress",
        RunState::Running | RunState::Paused => "pending",
        RunState::Done => "completed",
        RunState::Canceled => "cancelled",
        RunState::Failed => "failed",
    }
}

/// `BatchCallResponse`. The agent's name is not known here; its id stands in its place.
pub(super) fn batch(run: &Run, counts: &RunCounts) -> Value {
    let submitted = submitted_fields(run);
    let field = |name: &str| submitted.get(name).cloned().unwrap_or(Value::Null);
    json!({
        "id": run.id,
        "phone_number_id": field("phone_number_id"),
        "phone_provider": field("phone_provider"),
        "whatsapp_params": null,
        "name": run.name,
        "agent_id": field("agent_id"),
        "branch_id": field("branch_id"),
        "environment": field("environment"),
        "created_at_unix": run.created_at / 1000,
        "scheduled_time_unix": run.start_at / 1000,
        "timezone": field("timezone"),
        "total_calls_dispatched": counts.dialing + counts.calling + counts.done() - counts.canceled,
        "total_calls_scheduled": run.total,
        "total_calls_finished": counts.done() - counts.canceled,
        "last_updated_at_unix": run.updated_at / 1000,
        "status": status(run, counts),
        "retry_count": run.retries,
        "telephony_call_config": submitted.get("telephony_call_config").cloned().unwrap_or_else(|| json!({})),
        "target_concurrency_limit": field("target_concurrency_limit"),
        "agent_name": field("agent_id"),
        "branch_name": null,
    })
}

/// `BatchCallRecipientStatus`.
fn recipient_status(one: &JobResult) -> &'static str {
    match (one.job.state, one.job.outcome) {
        (JobState::Queued, _) => "pending",
        (JobState::Dialing, _) => "dispatched",
        (JobState::Calling, _) if one.answered_at.is_some() => "in_progress",
        (JobState::Calling, _) => "initiated",
        (JobState::Done, Some(Outcome::Completed)) => "completed",
        (JobState::Done, Some(Outcome::Voicemail)) => "voicemail",
        (JobState::Done, Some(Outcome::Canceled)) => "cancelled",
        (JobState::Done, _) => "failed",
    }
}

/// `OutboundCallRecipientResponseModel`.
pub(super) fn recipient(run: &Run, one: &JobResult) -> Value {
    let lead = serde_json::from_str::<Map<String, Value>>(&one.job.lead).unwrap_or_default();
    let id = lead.get("id").and_then(Value::as_str).filter(|id| !id.is_empty());
    let updated_at = one.ended_at.or(one.answered_at).or(one.started_at).unwrap_or(run.created_at);
    json!({
        "id": id.map_or_else(|| format!("{}-{}", run.id, one.job.seq), str::to_owned),
        "phone_number": one.job.number,
        "whatsapp_user_id": null,
        "status": recipient_status(one),
        "created_at_unix": run.created_at / 1000,
        "updated_at_unix": updated_at / 1000,
        "conversation_id": one.ids.get("conversation_id"),
        "conversation_initiation_client_data": lead.get("data"),
    })
}
