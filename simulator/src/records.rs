//! ElevenLabs' records: conversations read, listed, counted and deleted.

use crate::batch::membership;
use crate::call::{Call, Outcome, Phase, is_voicemail};
use crate::elevenlabs::{error, not_found};
use crate::wire::{Ask, Reply};
use crate::world::World;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

/// Answers what does not create.
pub(crate) fn respond(world: &mut World, ask: &Ask<'_>, rest: &[&str], now: Instant) -> Reply {
    match (ask.method, rest) {
        ("GET", ["convai", "conversations"]) => list(world, ask),
        ("GET", ["convai", "conversations", id]) => get(world, id),
        ("DELETE", ["convai", "conversations", id]) => delete(world, id, now),
        ("GET", ["convai", "analytics", "live-count"]) => live_count(world, ask),
        ("GET", ["convai", "conversation", "get-signed-url" | "get_signed_url"]) => signed_url(world, ask),
        ("GET", ["convai", "conversation", "token"]) => match ask.param("agent_id") {
            Some(_) => Reply::json(200, &json!({"token": world.ids.id("token")})),
            None => missing_query("agent_id"),
        },
        ("GET", ["convai", "agents"]) => agents(world, ask),
        ("GET", ["convai", "agents", id]) if agent_ids(world).any(|one| one == *id) => {
            Reply::json(200, &agent(world, id))
        }
        ("GET", ["convai", "settings"]) => Reply::json(
            200,
            &json!({
                "webhooks": {
                    "post_call_webhook_id": world.settings.el_webhook_in_use, "events": world.settings.el_webhook_events,
                    "transcript_format": "json",
                },
                "conversation_initiation_client_data_webhook": null,
            }),
        ),
        ("GET", ["convai", "v2", "phone-numbers"]) => phone_numbers(),
        ("GET", ["workspace", "webhooks"]) => Reply::json(200, &json!({"webhooks": webhooks(world)})),
        ("GET", ["user"]) => Reply::json(
            200,
            &json!({"user_id": "user_simulated", "subscription": {"tier": "creator", "status": "active"}}),
        ),
        ("GET", ["user", "subscription"]) => Reply::json(200, &json!({"tier": "creator", "status": "active"})),
        _ => not_found(),
    }
}

/// The agent that lists name.
const AGENT: &str = "agent_simulated";

fn agent_ids(world: &World) -> impl Iterator<Item = String> + use<> {
    (0..world.settings.el_agents).map(|n| if n == 0 { AGENT.to_owned() } else { format!("{AGENT}_{n}") })
}

/// A page of agents; the cursor is the number of those before it.
fn agents(world: &World, ask: &Ask<'_>) -> Reply {
    let number = |name: &str| ask.param(name).and_then(|text| text.parse::<usize>().ok());
    let (from, size) = (number("cursor").unwrap_or(0), number("page_size").unwrap_or(30).clamp(1, 100));
    let page: Vec<Value> =
        agent_ids(world).skip(from).take(size).map(|id| json!({"agent_id": id, "name": agent_name(&id)})).collect();
    let next = from + page.len();
    let has_more = next < world.settings.el_agents;
    let cursor = has_more.then(|| next.to_string());
    Reply::json(200, &json!({"agents": page, "has_more": has_more, "next_cursor": cursor}))
}

fn agent_name(id: &str) -> String {
    format!("Simulated agent{}", id.trim_start_matches(AGENT).replace('_', " "))
}

/// The numbers that ElevenLabs knows: one that an agent answers, and one that none does.
fn phone_numbers() -> Reply {
    let number = |id: &str, number: &str, agent: Value| {
        json!({
            "phone_number_id": id, "phone_number": number, "label": id, "provider": "twilio", "supports_inbound": true,
            "supports_outbound": true, "assigned_agent": agent,
        })
    };
    let assigned = json!({"agent_id": AGENT, "agent_name": agent_name(AGENT)});
    let all = [number("phnum_1", "+15550001111", assigned), number("phnum_2", "+15550001112", Value::Null)];
    Reply::json(200, &json!({"phone_numbers": all, "next_cursor": null, "has_more": false}))
}

/// An agent as it is unless somebody changes it: it may burst.
fn agent(world: &World, id: &str) -> Value {
    let overrides =
        world.settings.el_agent_webhook.as_ref().map(|id| json!({"webhooks": {"post_call_webhook_id": id}}));
    json!({
        "agent_id": id, "name": agent_name(id),
        "conversation_config": {"conversation": {"max_duration_seconds": 600}},
        "platform_settings": {
            "call_limits": {"agent_concurrency_limit": -1, "daily_limit": 100_000, "bursting_enabled": true},
            "queueing_config": {"enabled": false},
            "workspace_overrides": overrides,
        },
    })
}

/// The workspace's webhooks: the one that events go to.
fn webhooks(world: &World) -> Vec<Value> {
    let settings = &world.settings;
    let one = settings.el_events_url.as_ref().map(|url| {
        json!({
            "name": "simulated", "webhook_id": "webhook_simulated", "webhook_url": url, "is_disabled": false,
            "is_auto_disabled": settings.el_hook_disabled, "created_at_unix": 1_760_000_000, "auth_type": "hmac",
            "usage": [], "events": [], "most_recent_failure_error_code": settings.el_hook_failure,
            "most_recent_failure_timestamp": settings.el_hook_failure.map(|_| 1_760_000_000),
        })
    });
    one.into_iter().collect()
}

fn missing_query(name: &str) -> Reply {
    Reply::json(422, &json!({"detail": [{"loc": ["query", name], "msg": "Field required", "type": "missing"}]}))
}

fn unknown(id: &str) -> Reply {
    let message = format!("Conversation with id {id} was not found.");
    error(404, "not_found", "conversation_not_found", "not_found", &message)
}

fn get(world: &mut World, id: &str) -> Reply {
    world.counts.get_requests += 1;
    let found = world.by_talk(id).and_then(|n| world.calls.get(&n));
    match found.filter(|call| call.talk.as_ref().is_some_and(|talk| !talk.deleted)) {
        Some(call) => Reply::json(200, &conversation(call)),
        None => unknown(id),
    }
}

fn delete(world: &mut World, id: &str, now: Instant) -> Reply {
    let Some(n) = world.by_talk(id) else {
        return unknown(id);
    };
    match world.calls.get_mut(&n).and_then(|call| call.talk.as_mut()) {
        Some(talk) if !talk.deleted => talk.deleted = true,
        _ => return unknown(id),
    }
    world.counts.deletes += 1;
    if world.settings.delete_hangs_up {
        world.hang_up(n, "delete", now);
    }
    Reply::json(200, &json!({}))
}

fn live_count(world: &mut World, ask: &Ask<'_>) -> Reply {
    world.counts.count_requests += 1;
    let agents: Vec<String> = ask
        .params()
        .into_iter()
        .filter(|(name, _)| name == "agent_id" || name == "agent_ids")
        .map(|(_, v)| v)
        .collect();
    let wanted = |call: &&Call| {
        call.live() && call.talk.as_ref().is_some_and(|talk| agents.is_empty() || agents.contains(&talk.agent))
    };
    let count = world.calls.values().filter(wanted).count();
    Reply::json(200, &json!({"count": count}))
}

fn signed_url(world: &mut World, ask: &Ask<'_>) -> Reply {
    let Some(agent) = ask.param("agent_id") else {
        return missing_query("agent_id");
    };
    let host = ask.header("host").unwrap_or("api.elevenlabs.io");
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("agent_id", &agent);
    if ask.param("include_conversation_id").as_deref() == Some("true") {
        query.append_pair("conversation_id", &world.ids.id("conv"));
    }
    query.append_pair("conversation_signature", &world.ids.id("cvtkn"));
    let url = format!("wss://{host}/v1/convai/conversation?{}", query.finish());
    Reply::json(200, &json!({"signed_url": url}))
}

/// The filter of a list request.
struct Wanted {
    agent: Option<String>,
    user: Option<String>,
    source: Option<String>,
    after: Option<i64>,
    before: Option<i64>,
    excluded: Vec<String>,
    numbers: Vec<String>,
    variables: Vec<(String, String)>,
}

impl Wanted {
    fn of(ask: &Ask<'_>) -> Wanted {
        let params = ask.params();
        let one = |name: &str| params.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let all = |name: &str| -> Vec<String> {
            params.iter().filter(|(key, _)| key == name).map(|(_, value)| value.clone()).collect()
        };
        let variables = all("dynamic_variable_params")
            .iter()
            .filter_map(|param| {
                let (name, rest) = param.split_once(':')?;
                let (operator, value) = rest.split_once(':')?;
                (operator == "eq").then(|| (name.to_owned(), value.to_owned()))
            })
            .collect();
        Wanted {
            agent: one("agent_id"),
            user: one("user_id"),
            source: one("conversation_initiation_source"),
            after: one("call_start_after_unix").and_then(|at| at.parse().ok()),
            before: one("call_start_before_unix").and_then(|at| at.parse().ok()),
            excluded: all("exclude_statuses"),
            numbers: all("phone_number_ids"),
            variables,
        }
    }

    fn fits(&self, call: &Call) -> bool {
        let Some(talk) = call.talk.as_ref().filter(|talk| !talk.deleted) else {
            return false;
        };
        let is = |wanted: &Option<String>, value: Option<&str>| wanted.is_none() || wanted.as_deref() == value;
        let started = call.created.as_second();
        let variable = |name: &str, value: &str| match talk.data.get("dynamic_variables").and_then(|v| v.get(name)) {
            Some(Value::String(text)) => text == value,
            Some(other) => serde_json::to_string(other).is_ok_and(|text| text == value),
            None => false,
        };
        is(&self.agent, Some(&talk.agent))
            && is(&self.user, talk.data.get("user_id").and_then(Value::as_str))
            && is(&self.source, Some(talk.carrier.source()))
            && self.after.is_none_or(|at| started >= at)
            && self.before.is_none_or(|at| started <= at)
            && !self.excluded.iter().any(|status| status == call.talk_status())
            && (self.numbers.is_empty() || talk.phone_number.as_ref().is_some_and(|id| self.numbers.contains(id)))
            && self.variables.iter().all(|(name, value)| variable(name, value))
    }
}

fn list(world: &mut World, ask: &Ask<'_>) -> Reply {
    world.counts.list_requests += 1;
    let wanted = Wanted::of(ask);
    let size = ask.param("page_size").and_then(|size| size.parse::<usize>().ok()).unwrap_or(30).clamp(1, 100);
    // The cursor is the number of the last call shown; newest come first.
    let below =
        ask.param("cursor").and_then(|cursor| cursor.strip_prefix("c")?.parse::<u64>().ok()).unwrap_or(u64::MAX);
    let mut fitting = world.calls.range(..below).rev().filter(|(_, call)| wanted.fits(call));
    let page: Vec<(&u64, &Call)> = fitting.by_ref().take(size).collect();
    let has_more = fitting.next().is_some();
    let next = page.last().filter(|_| has_more).map(|(n, _)| format!("c{n}"));
    let rows: Vec<Value> = page.iter().map(|(_, call)| row(call)).collect();
    Reply::json(200, &json!({"conversations": rows, "next_cursor": next, "has_more": has_more}))
}

/// A row of the list: no call SID, as at ElevenLabs.
fn row(call: &Call) -> Value {
    let Some(talk) = &call.talk else {
        return Value::Null;
    };
    json!({
        "agent_id": talk.agent,
        "conversation_id": talk.id,
        "status": call.talk_status(),
        "direction": if talk.inbound { "inbound" } else { "outbound" },
        "start_time_unix_secs": call.created.as_second(),
        "call_duration_secs": call.talked_secs(),
        "termination_reason": termination(call),
        "conversation_initiation_source": talk.carrier.source(),
    })
}

fn termination(call: &Call) -> &'static str {
    match (call.phase, call.outcome, call.cause) {
        (Phase::Over, Some(Outcome::Completed), "time") => "Call ended by remote party",
        (Phase::Over, Some(Outcome::Completed), _) => "Call ended by request",
        (Phase::Over, Some(Outcome::Busy), _) => "Line busy",
        (Phase::Over, Some(Outcome::NoAnswer), _) => "No answer",
        (Phase::Over, _, _) => "Call failed",
        _ => "",
    }
}

/// A conversation as GET and the post-call webhook show it.
pub(crate) fn conversation(call: &Call) -> Value {
    let Some(talk) = &call.talk else {
        return Value::Null;
    };
    let (agent_number, external) = if talk.inbound { (&call.to, &call.from) } else { (&call.from, &call.to) };
    let status = call.talk_status();
    let (result, error) = match call.outcome {
        Some(Outcome::Busy) => (Some("busy"), Some("line_busy")),
        Some(Outcome::NoAnswer) => (Some("no_answer"), Some("no_answer")),
        Some(Outcome::Failed | Outcome::Canceled) => (Some("failed"), Some("call_initialization_error")),
        _ => (
            call.answered.map(|_| if is_voicemail(&call.to) && !talk.inbound { "voicemail" } else { "answered" }),
            None,
        ),
    };
    let phone = talk.carrier.phone_type().map(|kind| {
        let mut phone = json!({
            "type": kind,
            "direction": if talk.inbound { "inbound" } else { "outbound" },
            "phone_number_id": talk.phone_number,
            "agent_number": agent_number,
            "external_number": external,
            "call_result": result,
        });
        match (&call.leg, &talk.carrier_id) {
            (Some(leg), _) => {
                phone["stream_sid"] = json!(leg.stream_sid);
                phone["call_sid"] = json!(leg.sid);
            }
            (None, Some(id)) if kind == "sip_trunking" => phone["call_id"] = json!(id),
            (None, id) => phone["call_sid"] = json!(id),
        }
        phone
    });
    let secs = call.talked_secs();
    let done = status == "done";
    let mut data = talk.data.clone();
    let user = data.get("user_id").cloned().unwrap_or(Value::Null);
    if data.get("dynamic_variables").is_none() {
        data["dynamic_variables"] = json!({});
    }
    let metadata = json!({
        "start_time_unix_secs": call.created.as_second(),
        "accepted_time_unix_secs": call.answered.map(Timestamp::as_second),
        "call_duration_secs": secs,
        "cost": if done { secs.saturating_mul(10) } else { 0 },
        "charging": {"tier": "creator", "is_burst": false},
        "termination_reason": termination(call),
        "error": error.map(|reason| json!({"code": 1011, "reason": reason})),
        "warnings": [],
        "timezone": null,
        "conversation_initiation_source": talk.carrier.source(),
        "batch_call": talk.batch.as_ref().map(membership),
        "phone_call": phone,
    });
    let analysis = done.then(|| {
        json!({
            "evaluation_criteria_results": {},
            "data_collection_results": {},
            "call_successful": "success",
            "transcript_summary": "The agent greeted the caller and the caller said goodbye.",
        })
    });
    json!({
        "agent_id": talk.agent,
        "agent_name": "Simulated agent",
        "conversation_id": talk.id,
        "status": status,
        "user_id": user,
        "branch_id": null,
        "version_id": null,
        "environment": "production",
        "transcript": transcript(call, secs),
        "metadata": metadata,
        "analysis": analysis,
        "conversation_initiation_client_data": data,
        "has_audio": done,
        "has_user_audio": done,
        "has_response_audio": done,
    })
}

fn transcript(call: &Call, secs: i64) -> Value {
    if call.answered.is_none() {
        return json!([]);
    }
    let turn = |role: &str, message: &str, at: i64| {
        json!({"role": role, "message": message, "tool_calls": [], "tool_results": [], "feedback": null,
            "time_in_call_secs": at, "conversation_turn_metrics": null})
    };
    let mut turns = vec![turn("agent", "Hello, how can I help you?", 0)];
    if call.ended.is_some() {
        turns.push(turn("user", "Thank you, goodbye.", secs));
    }
    Value::Array(turns)
}
