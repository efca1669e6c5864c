//! ElevenLabs' batch calling, in its simplest form: recipients are called as room allows.

use super::call::{Call, Carrier, Phase};
use super::elevenlabs::{missing, not_found, place, required, text};
use super::wire::{Ask, Reply};
use super::world::World;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::VecDeque;
use tokio::time::Instant;

/// One batch.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    name: String,
    body: Value,
    created: i64,
    /// Recipients not called yet.
    waiting: VecDeque<(String, Value)>,
    /// Recipients called, with the number of their call.
    called: Vec<(String, Value, u64)>,
    total: usize,
    limit: Option<usize>,
    cancelled: bool,
}

/// Answers requests under `/v1/convai/batch-calling`.
pub(super) fn respond(world: &mut World, ask: &Ask<'_>, rest: &[&str], now: Instant) -> Reply {
    match (ask.method, rest) {
        ("POST", ["submit"]) => submit(world, ask, now),
        ("GET", ["workspace"]) => {
            let all: Vec<Value> = world.batches.iter().map(|(id, batch)| shown(world, id, batch)).collect();
            Reply::json(200, &json!({"batch_calls": all, "next_doc": null, "has_more": false}))
        }
        ("GET", [id]) => match world.batches.get(*id) {
            Some(batch) => {
                let mut whole = shown(world, id, batch);
                whole["recipients"] = recipients(world, batch);
                Reply::json(200, &whole)
            }
            None => not_found(),
        },
        ("POST", [id, "cancel"]) => {
            let Some(batch) = world.batches.get_mut(*id) else {
                return not_found();
            };
            batch.waiting.clear();
            batch.cancelled = true;
            let batch = batch.clone();
            Reply::json(200, &shown(world, id, &batch))
        }
        ("DELETE", [id]) => match world.batches.remove(*id) {
            Some(_) => Reply::empty(204),
            None => not_found(),
        },
        _ => not_found(),
    }
}

fn submit(world: &mut World, ask: &Ask<'_>, now: Instant) -> Reply {
    let body = match required(ask, &["call_name", "agent_id", "recipients"]) {
        Ok(body) => body,
        Err(reply) => return reply,
    };
    let Some(list) = body.get("recipients").and_then(Value::as_array) else {
        return missing(&["recipients"]);
    };
    let waiting: VecDeque<(String, Value)> = list
        .iter()
        .map(|recipient| match text(recipient, "id") {
            "" => (world.ids.id("rcpt"), recipient.clone()),
            id => (id.to_owned(), recipient.clone()),
        })
        .collect();
    let id = world.ids.id("btcal");
    let batch = Batch {
        name: text(&body, "call_name").to_owned(),
        created: Timestamp::now().as_second(),
        total: waiting.len(),
        waiting,
        called: Vec::new(),
        limit: body.get("target_concurrency_limit").and_then(Value::as_u64).map(|limit| limit as usize),
        cancelled: false,
        body,
    };
    world.batches.insert(id.clone(), batch);
    world.pump_batches(now);
    match world.batches.get(&id) {
        Some(batch) => Reply::json(200, &shown(world, &id, batch)),
        None => not_found(),
    }
}

impl World {
    /// Calls as many waiting recipients as there is room for.
    pub(super) fn pump_batches(&mut self, now: Instant) {
        let ids: Vec<String> = self.batches.keys().cloned().collect();
        for id in ids {
            while let Some((recipient, given, order)) = self.next_recipient(&id) {
                let n = place(self, &order, Carrier::Twilio, Some((id.clone(), recipient.clone())), now);
                if let Some(batch) = self.batches.get_mut(&id) {
                    batch.called.push((recipient, given, n));
                }
            }
        }
    }

    fn next_recipient(&mut self, id: &str) -> Option<(String, Value, Value)> {
        if self.el_full() {
            return None;
        }
        let batch = self.batches.get(id)?;
        let running = batch.called.iter().filter(|(_, _, n)| self.calls.get(n).is_some_and(Call::live)).count();
        if batch.limit.is_some_and(|limit| running >= limit) {
            return None;
        }
        let batch = self.batches.get_mut(id)?;
        let (recipient, given) = batch.waiting.pop_front()?;
        let mut order = json!({
            "agent_id": batch.body.get("agent_id"),
            "agent_phone_number_id": batch.body.get("agent_phone_number_id"),
            "to_number": given.get("phone_number"),
            "telephony_call_config": batch.body.get("telephony_call_config"),
        });
        if let Some(data) = given.get("conversation_initiation_client_data") {
            order["conversation_initiation_client_data"] = data.clone();
        }
        Some((recipient, given, order))
    }
}

fn shown(world: &World, id: &str, batch: &Batch) -> Value {
    let over =
        batch.called.iter().filter(|(_, _, n)| world.calls.get(n).is_none_or(|c| c.phase == Phase::Over)).count();
    let status = match () {
        () if batch.cancelled => "cancelled",
        () if over >= batch.total => "completed",
        () if batch.called.is_empty() => "pending",
        () => "in_progress",
    };
    json!({
        "id": id,
        "name": batch.name,
        "agent_id": batch.body.get("agent_id"),
        "created_at_unix": batch.created,
        "scheduled_time_unix": batch.body.get("scheduled_time_unix").cloned().unwrap_or_else(|| json!(batch.created)),
        "total_calls_dispatched": batch.called.len(),
        "total_calls_scheduled": batch.total,
        "total_calls_finished": over,
        "retry_count": 0,
        "status": status,
    })
}

fn recipients(world: &World, batch: &Batch) -> Value {
    let called = batch.called.iter().map(|(id, given, n)| {
        let call = world.calls.get(n);
        let status = match call.map(Call::talk_status) {
            Some("initiated") => "initiated",
            Some("in-progress") => "in_progress",
            Some("failed") => "failed",
            _ => "completed",
        };
        let conversation = call.and_then(|call| call.talk.as_ref()).map(|talk| talk.id.clone());
        json!({"id": id, "phone_number": given.get("phone_number"), "status": status, "conversation_id": conversation})
    });
    let waiting = batch.waiting.iter().map(|(id, given)| {
        json!({"id": id, "phone_number": given.get("phone_number"), "status": "pending", "conversation_id": null})
    });
    called.chain(waiting).collect()
}
