//! ElevenLabs' side of the API: creates. What is read is in `records`.

use crate::batch;
use crate::call::{Call, Carrier, Leg, Phase};
use crate::fault::{Fault, FaultKind, Operation, Provider};
use crate::records;
use crate::rng::LONGEST_MS;
use crate::wire::{Ask, Reply};
use crate::world::{Step, World};
use serde_json::{Value, json};
use tokio::time::Instant;

pub(crate) use crate::records::conversation;

/// Answers a request to api.elevenlabs.io.
pub(crate) fn respond(world: &mut World, ask: &Ask<'_>, now: Instant) -> Reply {
    if ask.header("xi-api-key") != Some(world.settings.el_api_key.as_str()) {
        return bad_key();
    }
    let operation = operation(ask);
    let fault = world.faults.take(Provider::ElevenLabs, operation);
    if let Some(refused) = fault.as_ref().and_then(refusal) {
        world.counts.refused_429 += u64::from(refused.status == 429);
        return refused;
    }
    let mut reply = route(world, ask, now);
    reply.wait_ms = world.rng.ms(world.settings.api_ms);
    if let Some(fault) = fault {
        reply = disturb(reply, &fault);
    }
    reply
}

fn operation(ask: &Ask<'_>) -> Operation {
    match (ask.method, ask.path.trim_end_matches('/')) {
        ("POST", _) => Operation::Create,
        ("DELETE", _) => Operation::End,
        (_, "/v1/convai/conversations" | "/v1/convai/analytics/live-count") => Operation::List,
        _ => Operation::Get,
    }
}

fn route(world: &mut World, ask: &Ask<'_>, now: Instant) -> Reply {
    let segments = ask.segments();
    let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
    let Some(("v1", rest)) = parts.split_first().map(|(first, rest)| (*first, rest)) else {
        return not_found();
    };
    match (ask.method, rest) {
        ("POST", ["convai", "twilio", "outbound-call"]) => outbound(world, ask, Carrier::Twilio, now),
        ("POST", ["convai", "sip-trunk", "outbound-call"]) => outbound(world, ask, Carrier::Sip, now),
        ("POST", ["convai", "exotel", "outbound-call"]) => outbound(world, ask, Carrier::Exotel, now),
        ("POST", ["convai", "whatsapp", "outbound-call"]) => outbound(world, ask, Carrier::Whatsapp, now),
        ("POST", ["convai", "twilio", "register-call"]) => register(world, ask, now),
        ("GET", ["convai", "phone-numbers", id]) => phone_number(id),
        (_, ["convai", "batch-calling", rest @ ..]) => batch::respond(world, ask, rest, now),
        (_, ["convai", "outbound-campaigns", "campaigns", rest @ ..]) => batch::campaigns(world, ask, rest, now),
        (_, ["convai", "conversations" | "conversation" | "analytics" | "agents" | "settings" | "v2", ..])
        | ("GET", ["user" | "workspace", ..]) => records::respond(world, ask, rest, now),
        _ => not_found(),
    }
}

/// A number as far as it matters to who calls from it: all are Twilio's, but those whose id says otherwise.
fn phone_number(id: &str) -> Reply {
    let provider = match id {
        _ if id.starts_with("phnum_sip") => "sip_trunk",
        _ if id.starts_with("phnum_exotel") => "exotel",
        _ => "twilio",
    };
    Reply::json(200, &json!({"phone_number_id": id, "phone_number": "+15550001111", "label": id, "provider": provider}))
}

/// The general shape of an error, the older members included.
pub(crate) fn error(status: u16, kind: &str, code: &str, legacy: &str, message: &str) -> Reply {
    Reply::json(status, &json!({"detail": {"type": kind, "code": code, "status": legacy, "message": message}}))
}

/// No key, or a wrong one.
pub(crate) fn bad_key() -> Reply {
    error(401, "authentication_error", "invalid_api_key", "invalid_api_key", "Invalid API key")
}

/// The answer for a path that does not exist.
pub(crate) fn not_found() -> Reply {
    Reply::json(404, &json!({"detail": "Not Found"}))
}

/// The plan's limit is reached.
pub(crate) fn too_many(world: &mut World) -> Reply {
    world.counts.refused_429 += 1;
    too_many_concurrent()
}

fn too_many_concurrent() -> Reply {
    error(
        429,
        "rate_limit_error",
        "rate_limit_exceeded",
        "too_many_concurrent_requests",
        "Too many concurrent requests. Your current subscription is at its maximum of concurrent calls.",
    )
}

/// The answer of a fault that keeps the request from its purpose.
fn refusal(fault: &Fault) -> Option<Reply> {
    let mut reply = match fault.kind {
        FaultKind::TooManyConcurrent => too_many_concurrent(),
        FaultKind::SystemBusy => error(
            429,
            "rate_limit_error",
            "rate_limit_exceeded",
            "system_busy",
            "Our services are experiencing heavy traffic.",
        ),
        FaultKind::RateLimited => {
            error(429, "rate_limit_error", "rate_limit_exceeded", "rate_limit_exceeded", "Rate limit exceeded.")
        }
        FaultKind::ServerError => {
            error(500, "internal_error", "internal_server_error", "internal_server_error", "Internal server error.")
        }
        FaultKind::Drop => Reply { drop: true, ..Reply::empty(500) },
        FaultKind::PaymentRequired => {
            error(402, "payment_required", "insufficient_credits", "insufficient_credits", "Insufficient credits.")
        }
        FaultKind::QuotaExceeded => {
            error(401, "invalid_request", "quota_exceeded", "quota_exceeded", "This request exceeds your quota.")
        }
        FaultKind::Invalid => missing(&["agent_id"]),
        FaultKind::SuccessFalse => Reply::json(
            200,
            &json!({"success": false, "message": "The call could not be started.", "conversation_id": null, "callSid": null}),
        ),
        _ => return None,
    };
    reply.wait_ms = fault.ms;
    reply.retry_after = fault.retry_after.filter(|_| reply.status == 429);
    Some(reply)
}

/// Applies a fault to the answer of a request that was carried out.
pub(crate) fn disturb(mut reply: Reply, fault: &Fault) -> Reply {
    match fault.kind {
        FaultKind::AcceptThenDrop => reply.drop = true,
        FaultKind::ServerErrorAfterCreate => {
            let wait_ms = reply.wait_ms;
            reply = error(
                500,
                "internal_error",
                "internal_server_error",
                "internal_server_error",
                "Internal server error.",
            );
            reply.wait_ms = wait_ms;
        }
        FaultKind::NullIds => {
            if let Ok(mut body) = serde_json::from_slice::<Value>(&reply.body) {
                for name in ["conversation_id", "callSid", "sip_call_id"] {
                    if body.get(name).is_some() {
                        body[name] = Value::Null;
                    }
                }
                reply.body = body.to_string().into();
            }
        }
        _ => {}
    }
    reply.wait_ms = reply.wait_ms.saturating_add(fault.ms);
    reply
}

/// 422 for fields that are required and missing.
pub(crate) fn missing(names: &[&str]) -> Reply {
    let detail: Vec<Value> =
        names.iter().map(|name| json!({"loc": ["body", name], "msg": "Field required", "type": "missing"})).collect();
    Reply::json(422, &json!({"detail": detail}))
}

/// The body as an object with these strings in it, or the 422 that says what is missing.
pub(crate) fn required(ask: &Ask<'_>, names: &[&str]) -> Result<Value, Reply> {
    let Some(body) = ask.json().filter(Value::is_object) else {
        let detail = json!([{"loc": ["body"], "msg": "JSON decode error", "type": "json_invalid"}]);
        return Err(Reply::json(422, &json!({"detail": detail})));
    };
    let absent: Vec<&str> = names.iter().filter(|name| body.get(**name).is_none_or(Value::is_null)).copied().collect();
    if absent.is_empty() { Ok(body) } else { Err(missing(&absent)) }
}

/// A member as a string, empty if it is none.
pub(crate) fn text<'a>(body: &'a Value, name: &str) -> &'a str {
    body.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn client_data(body: &Value) -> Value {
    match body.get("conversation_initiation_client_data") {
        Some(data) if data.is_object() => data.clone(),
        _ => json!({"dynamic_variables": {}}),
    }
}

fn outbound(world: &mut World, ask: &Ask<'_>, carrier: Carrier, now: Instant) -> Reply {
    let names: &[&str] = if carrier == Carrier::Whatsapp {
        &[
            "whatsapp_phone_number_id",
            "whatsapp_user_id",
            "whatsapp_call_permission_request_template_name",
            "whatsapp_call_permission_request_template_language_code",
            "agent_id",
        ]
    } else {
        &["agent_id", "agent_phone_number_id", "to_number"]
    };
    let body = match required(ask, names) {
        Ok(body) => body,
        Err(reply) => return reply,
    };
    if world.el_full() {
        return too_many(world);
    }
    let n = place(world, &body, carrier, None, now);
    let Some((call, talk)) = world.calls.get(&n).and_then(|call| Some((call, call.talk.as_ref()?))) else {
        return not_found();
    };
    let mut reply = json!({"success": true, "message": "Success", "conversation_id": talk.id});
    match carrier {
        Carrier::Twilio => reply["callSid"] = json!(sid(call)),
        Carrier::Exotel => reply["callSid"] = json!(talk.carrier_id),
        Carrier::Sip => reply["sip_call_id"] = json!(talk.carrier_id),
        Carrier::Whatsapp => {}
    }
    Reply::json(200, &reply)
}

fn sid(call: &Call) -> Option<&str> {
    call.leg.as_ref().map(|leg| leg.sid.as_str())
}

/// Starts one outbound call with an agent; the caller has made sure that there is room.
pub(crate) fn place(
    world: &mut World,
    body: &Value,
    carrier: Carrier,
    batch: Option<(String, String)>,
    now: Instant,
) -> u64 {
    let (number, to) = match carrier {
        Carrier::Whatsapp => (text(body, "whatsapp_phone_number_id"), text(body, "whatsapp_user_id")),
        _ => (text(body, "agent_phone_number_id"), text(body, "to_number")),
    };
    let mut talk = world.new_talk(text(body, "agent_id"), carrier, false, client_data(body));
    talk.phone_number = Some(number.to_owned());
    talk.batch = batch;
    talk.carrier_id = match carrier {
        Carrier::Sip => Some(world.ids.uuid()),
        Carrier::Exotel => Some(world.ids.sid("")),
        Carrier::Twilio | Carrier::Whatsapp => None,
    };
    let leg = (carrier == Carrier::Twilio).then(|| Leg::new(world.ids.sid("CA"), "outbound-api"));
    let over_limit = leg.is_some() && world.tw_full();
    // The number behind the id is not said in the request; all simulated agents call from this one.
    let n = world.admit_as(over_limit, "+15550009999", to, Phase::Queued, leg, Some(talk));
    if let Some(call) = world.calls.get_mut(&n) {
        let ring = body.pointer("/telephony_call_config/ringing_timeout_secs").and_then(Value::as_u64);
        call.ring_limit_ms = Some(ring.unwrap_or(60).saturating_mul(1000));
    }
    world.counts.creates_el += 1;
    world.plan(n, now, Step::Dial);
    n
}

fn register(world: &mut World, ask: &Ask<'_>, now: Instant) -> Reply {
    let body = match required(ask, &["agent_id", "from_number", "to_number"]) {
        Ok(body) => body,
        Err(reply) => return reply,
    };
    if world.el_full() {
        return too_many(world);
    }
    let inbound = text(&body, "direction") != "outbound";
    let talk = world.new_talk(text(&body, "agent_id"), Carrier::Twilio, inbound, client_data(&body));
    let id = talk.id.clone();
    let n = world.admit(text(&body, "from_number"), text(&body, "to_number"), Phase::Registered, None, Some(talk));
    world.counts.registers += 1;
    let patience = std::time::Duration::from_millis(world.settings.register_ms.min(LONGEST_MS));
    world.plan(n, now + patience, Step::Expire);
    let twiml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Response><Connect>\
         <Stream url=\"wss://api.elevenlabs.io/v1/convai/conversation/twilio\">\
         <Parameter name=\"conversation_id\" value=\"{id}\" /></Stream></Connect></Response>"
    );
    Reply::text(200, "text/html; charset=utf-8", twiml)
}
