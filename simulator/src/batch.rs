//! ElevenLabs' batch calling and outbound campaigns, in their simplest form: recipients are called as room allows.

use crate::call::{Call, Carrier, Outcome, Phase};
use crate::elevenlabs::{missing, not_found, place, required, text};
use crate::wire::{Ask, Reply};
use crate::world::World;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::VecDeque;
use tokio::time::Instant;

/// One batch, or the calls of one campaign.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    body: Value,
    created: i64,
    /// Recipients not called yet.
    waiting: VecDeque<(String, Value)>,
    /// Recipients called, with the number of their call.
    called: Vec<(String, Value, u64)>,
    total: usize,
    limit: Option<usize>,
    cancelled: bool,
    retries: u32,
    /// It belongs to a campaign, which may be paused.
    campaign: Option<bool>,
}

impl Batch {
    fn of(world: &mut World, body: Value, campaign: bool) -> Result<Batch, Reply> {
        let Some(list) = body.get("recipients").and_then(Value::as_array) else {
            return Err(missing(&["recipients"]));
        };
        let waiting: VecDeque<(String, Value)> = list
            .iter()
            .map(|recipient| match text(recipient, "id") {
                "" => (world.ids.id("rcpt"), recipient.clone()),
                id => (id.to_owned(), recipient.clone()),
            })
            .collect();
        Ok(Batch {
            created: Timestamp::now().as_second(),
            total: waiting.len(),
            waiting,
            called: Vec::new(),
            limit: body.get("target_concurrency_limit").and_then(Value::as_u64).map(|limit| limit as usize),
            cancelled: false,
            retries: 0,
            campaign: campaign.then_some(false),
            body,
        })
    }

    fn agent(&self) -> &str {
        text(&self.body, "agent_id")
    }

    fn over(&self, world: &World) -> usize {
        self.called.iter().filter(|(_, _, n)| world.calls.get(n).is_none_or(|c| c.phase == Phase::Over)).count()
    }
}

/// Answers requests under `/v1/convai/batch-calling`.
pub(crate) fn respond(world: &mut World, ask: &Ask<'_>, rest: &[&str], now: Instant) -> Reply {
    match (ask.method, rest) {
        ("POST", ["submit"]) => match required(ask, &["call_name", "agent_id", "recipients"]) {
            Ok(body) => match submit(world, body, "btcal", now) {
                Ok(id) => show(world, &id),
                Err(reply) => reply,
            },
            Err(reply) => reply,
        },
        ("GET", ["workspace"]) => {
            let all = listed(world, ask, false, shown);
            Reply::json(200, &json!({"batch_calls": all, "next_doc": null, "has_more": false}))
        }
        ("GET", [id]) => match known(world, id, false) {
            Some(batch) => {
                let mut whole = shown(world, id, batch);
                whole["recipients"] = recipients(world, batch);
                Reply::json(200, &whole)
            }
            None => not_found(),
        },
        ("POST", [id, "cancel"]) => {
            if let Some(batch) = world.batches.get_mut(*id) {
                batch.waiting.clear();
                batch.cancelled = true;
            }
            show(world, id)
        }
        ("POST", [id, "retry"]) => {
            retry(world, id);
            world.pump_batches(now);
            show(world, id)
        }
        ("DELETE", [id]) => match world.batches.remove(*id) {
            Some(_) => Reply::empty(204),
            None => not_found(),
        },
        _ => not_found(),
    }
}

/// Answers requests under `/v1/convai/outbound-campaigns/campaigns`.
pub(crate) fn campaigns(world: &mut World, ask: &Ask<'_>, rest: &[&str], now: Instant) -> Reply {
    match (ask.method, rest) {
        ("POST", ["submit"]) => {
            let body = match required(ask, &["call_name", "agent_id", "recipients", "channel_config"]) {
                Ok(body) => body,
                Err(reply) => return reply,
            };
            let key = body.get("idempotency_key").filter(|key| key.is_string());
            let earlier = world.batches.iter().find(|(_, b)| key.is_some() && b.body.get("idempotency_key") == key);
            let (id, created) = match earlier.map(|(id, _)| id.clone()) {
                Some(id) => (id, false),
                None => match submit(world, body, "camp", now) {
                    Ok(id) => (id, true),
                    Err(reply) => return reply,
                },
            };
            let status = if created { 201 } else { 200 };
            let campaign = world.batches.get(&id).map(|batch| campaign(world, &id, batch));
            Reply::json(status, &json!({"campaign": campaign, "created": created, "within_calling_window": true}))
        }
        ("GET", []) => {
            let all = listed(world, ask, true, campaign);
            Reply::json(200, &json!({"campaigns": all, "next_cursor": null, "has_more": false}))
        }
        ("GET", [id]) => show(world, id),
        ("POST", [id, act @ ("pause" | "resume" | "stop")]) => {
            if let Some(batch) = world.batches.get_mut(*id) {
                batch.campaign = Some(*act == "pause");
                if *act == "stop" {
                    batch.waiting.clear();
                    batch.cancelled = true;
                }
            }
            world.pump_batches(now);
            show(world, id)
        }
        _ => not_found(),
    }
}

fn submit(world: &mut World, body: Value, prefix: &str, now: Instant) -> Result<String, Reply> {
    let batch = Batch::of(world, body, prefix == "camp")?;
    let id = world.ids.id(prefix);
    world.batches.insert(id.clone(), batch);
    world.pump_batches(now);
    Ok(id)
}

/// Those who were not reached are called again.
fn retry(world: &mut World, id: &str) {
    let Some(batch) = world.batches.get(id) else { return };
    let reached = |n: &u64| world.calls.get(n).is_some_and(|c| c.live() || c.outcome == Some(Outcome::Completed));
    let (kept, again): (Vec<_>, Vec<_>) = batch.called.iter().cloned().partition(|(_, _, n)| reached(n));
    if let Some(batch) = world.batches.get_mut(id) {
        batch.called = kept;
        batch.waiting.extend(again.into_iter().map(|(id, given, _)| (id, given)));
        (batch.cancelled, batch.retries) = (false, batch.retries + 1);
    }
}

impl World {
    /// Calls as many waiting recipients as there is room for.
    pub(crate) fn pump_batches(&mut self, now: Instant) {
        let ids: Vec<String> = self.batches.keys().cloned().collect();
        for id in ids {
            while let Some((recipient, given, order, carrier)) = self.next_recipient(&id) {
                let n = place(self, &order, carrier, Some((id.clone(), recipient.clone())), now);
                if let Some(batch) = self.batches.get_mut(&id) {
                    batch.called.push((recipient, given, n));
                }
            }
        }
    }

    fn next_recipient(&mut self, id: &str) -> Option<(String, Value, Value, Carrier)> {
        if self.el_full() {
            return None;
        }
        let batch = self.batches.get(id).filter(|batch| batch.campaign != Some(true))?;
        let running = batch.called.iter().filter(|(_, _, n)| self.calls.get(n).is_some_and(Call::live)).count();
        if batch.limit.is_some_and(|limit| running >= limit) {
            return None;
        }
        let batch = self.batches.get_mut(id)?;
        let (recipient, given) = batch.waiting.pop_front()?;
        let channel = batch.body.get("channel_config").unwrap_or(&batch.body);
        let whatsapp = channel.get("whatsapp_params").unwrap_or(channel).get("whatsapp_phone_number_id");
        let mut order = json!({
            "agent_id": batch.body.get("agent_id"),
            "agent_phone_number_id": channel.get("agent_phone_number_id"),
            "to_number": given.get("phone_number"),
            "whatsapp_phone_number_id": whatsapp,
            "whatsapp_user_id": given.get("whatsapp_user_id"),
            "telephony_call_config": batch.body.get("telephony_call_config"),
        });
        if let Some(data) = given.get("conversation_initiation_client_data") {
            order["conversation_initiation_client_data"] = data.clone();
        }
        let carrier = if whatsapp.is_some() { Carrier::Whatsapp } else { Carrier::Twilio };
        Some((recipient, given, order, carrier))
    }
}

fn known<'w>(world: &'w World, id: &str, campaign: bool) -> Option<&'w Batch> {
    world.batches.get(id).filter(|batch| batch.campaign.is_some() == campaign)
}

/// A batch or a campaign, whichever has the id.
fn show(world: &World, id: &str) -> Reply {
    match world.batches.get(id) {
        Some(batch) if batch.campaign.is_some() => Reply::json(200, &campaign(world, id, batch)),
        Some(batch) => Reply::json(200, &shown(world, id, batch)),
        None => not_found(),
    }
}

fn listed(world: &World, ask: &Ask<'_>, campaigns: bool, shown: fn(&World, &str, &Batch) -> Value) -> Vec<Value> {
    let agent = ask.param("agent_id");
    let fits = |batch: &&Batch| {
        batch.campaign.is_some() == campaigns && agent.as_deref().is_none_or(|agent| batch.agent() == agent)
    };
    let all = world.batches.iter().filter(|(_, batch)| fits(batch));
    all.map(|(id, batch)| shown(world, id, batch)).collect()
}

fn shown(world: &World, id: &str, batch: &Batch) -> Value {
    let over = batch.over(world);
    let status = match () {
        () if batch.cancelled => "cancelled",
        () if over >= batch.total => "completed",
        () if batch.called.is_empty() => "pending",
        () => "in_progress",
    };
    let scheduled = batch.body.get("scheduled_time_unix").cloned();
    json!({
        "id": id,
        "name": batch.body.get("call_name"),
        "agent_id": batch.body.get("agent_id"),
        "agent_name": "Simulated agent",
        "created_at_unix": batch.created,
        "last_updated_at_unix": batch.created,
        "scheduled_time_unix": scheduled.unwrap_or_else(|| json!(batch.created)),
        "total_calls_dispatched": batch.called.len(),
        "total_calls_scheduled": batch.total,
        "total_calls_finished": over,
        "target_concurrency_limit": batch.limit,
        "retry_count": batch.retries,
        "status": status,
    })
}

fn campaign(world: &World, id: &str, batch: &Batch) -> Value {
    let over = batch.over(world);
    let status = match () {
        () if batch.cancelled && over < batch.called.len() => "stopping",
        () if batch.cancelled => "stopped",
        () if over >= batch.total => "completed",
        () if batch.campaign == Some(true) => "paused",
        () => "active",
    };
    json!({
        "campaign_id": id,
        "call_name": batch.body.get("call_name"),
        "agent_id": batch.body.get("agent_id"),
        "agent_name": "Simulated agent",
        "channel_config": batch.body.get("channel_config"),
        "created_at_unix": batch.created,
        "updated_at_unix": batch.created,
        "scheduled_time_unix": batch.body.get("scheduled_time_unix"),
        "target_concurrency_limit": batch.limit,
        "counts": {"leads": batch.total, "terminal_leads": over, "open_attention": 0},
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

/// `metadata.batch_call` of a conversation that one of them made.
pub(crate) fn membership((batch, recipient): &(String, String)) -> Value {
    let campaign = batch.starts_with("camp").then(|| json!({"campaign_id": batch, "campaign_lead_id": recipient}));
    let batch = if campaign.is_some() { format!("btcal_of_{batch}") } else { batch.clone() };
    json!({"batch_call_id": batch, "batch_call_recipient_id": recipient, "campaign": campaign})
}
