//! The simulation's own controls: over HTTP under `/_sim/`, and in process.

use crate::call::CallView;
use crate::counts::Counts;
use crate::engine::Engine;
use crate::fault::{Fault, Provider};
use crate::inbound::Inbound;
use crate::settings::SimSettings;
use crate::wire::{Ask, Reply};
use crate::world::World;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The controls of a running simulation. Clones control the same one.
#[derive(Clone)]
pub struct Control {
    engine: Arc<Engine>,
}

impl Control {
    pub(crate) fn new(engine: Arc<Engine>) -> Control {
        Control { engine }
    }

    /// The counts of the providers.
    pub fn counts(&self) -> Counts {
        self.engine.look(|world| world.counts.clone())
    }

    /// Every call so far, oldest first.
    pub fn calls(&self) -> Vec<CallView> {
        self.engine.look(|world| world.calls.values().map(crate::call::Call::view).collect())
    }

    /// One call by Twilio SID or conversation id.
    pub fn call(&self, id: &str) -> Option<CallView> {
        self.engine.look(|world| world.calls.get(&find(world, id)?).map(crate::call::Call::view))
    }

    /// The settings now.
    pub fn settings(&self) -> SimSettings {
        self.engine.look(|world| world.settings.clone())
    }

    /// Changes settings while the simulation runs (`listen` has no effect any more).
    pub fn configure(&self, change: impl FnOnce(&mut SimSettings)) {
        self.engine.with(|world, _| change(&mut world.settings));
    }

    /// Changes the part of the webhooks that is never sent.
    pub fn set_webhook_loss(&self, part: f64) {
        self.configure(|settings| settings.webhook_loss = part);
    }

    /// Sets a fault.
    pub fn fault(&self, fault: Fault) {
        self.engine.with(|world, _| world.faults.set(fault));
    }

    /// Clears the faults of a provider, or all.
    pub fn clear_faults(&self, provider: Option<Provider>) {
        self.engine.with(|world, _| world.faults.clear(provider));
    }

    /// Somebody calls in.
    pub fn inbound(&self, inbound: &Inbound) -> Option<CallView> {
        self.engine.with(|world, now| {
            let n = world.arrive(inbound, now);
            world.calls.get(&n).map(crate::call::Call::view)
        })
    }

    /// The other side hangs up. False if there is no such call or it is over.
    pub fn end_call(&self, id: &str) -> bool {
        self.engine.with(|world, now| find(world, id).is_some_and(|n| world.hang_up(n, "control", now)))
    }

    /// Forgets calls, counts and faults without a word to anybody; settings stay.
    pub fn reset(&self) {
        self.engine.with(|world, _| world.reset());
    }

    /// Waits until no call is live and no webhook is on its way; false if that took longer.
    pub async fn wait_idle(&self, longest: Duration) -> bool {
        self.wait(longest, || self.engine.idle()).await
    }

    /// Waits until the counts are as wanted; false if that took longer.
    pub async fn wait_counts(&self, longest: Duration, wanted: impl Fn(&Counts) -> bool) -> bool {
        self.wait(longest, || self.engine.look(|world| wanted(&world.counts))).await
    }

    /// Waits until a call is as wanted; false if that took longer.
    pub async fn wait_call(&self, longest: Duration, id: &str, wanted: impl Fn(&CallView) -> bool) -> bool {
        self.wait(longest, || self.call(id).is_some_and(|call| wanted(&call))).await
    }

    async fn wait(&self, longest: Duration, wanted: impl Fn() -> bool) -> bool {
        let deadline = Instant::now() + longest;
        loop {
            if wanted() {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn find(world: &World, id: &str) -> Option<u64> {
    world.by_sid(id).or_else(|| world.by_talk(id))
}

fn wrong(message: &str) -> Reply {
    Reply::json(400, &json!({"error": message}))
}

fn body<T: for<'de> Deserialize<'de>>(ask: &Ask<'_>) -> Result<T, Reply> {
    serde_json::from_slice(ask.body).map_err(|error| wrong(&error.to_string()))
}

/// Answers a request under `/_sim/`.
pub(crate) fn respond(engine: &Arc<Engine>, ask: &Ask<'_>) -> Reply {
    let control = Control::new(Arc::clone(engine));
    let answer = match (ask.method, ask.path) {
        ("GET", "/_sim/state") => Ok(state(&control, ask.param("all").is_some())),
        ("POST", "/_sim/fault") => set_fault(&control, ask),
        ("POST", "/_sim/inbound") => body::<Inbound>(ask).map(|inbound| json!(control.inbound(&inbound))),
        ("POST", "/_sim/end") => end(&control, ask),
        ("POST", "/_sim/config") => configure(&control, ask),
        ("POST", "/_sim/reset") => {
            control.reset();
            Ok(json!({}))
        }
        _ => Err(Reply::json(404, &json!({"error": "not found"}))),
    };
    answer.map_or_else(|reply| reply, |value| Reply::json(200, &value))
}

fn state(control: &Control, all: bool) -> Value {
    let calls: Vec<CallView> = control.calls().into_iter().filter(|call| all || call.live || call.arriving).collect();
    let faults = control.engine.look(|world| json!(world.faults.list()));
    json!({"counts": control.counts(), "calls": calls, "faults": faults, "idle": control.engine.idle()})
}

fn set_fault(control: &Control, ask: &Ask<'_>) -> Result<Value, Reply> {
    let given: Value = body(ask)?;
    if given.get("kind").and_then(Value::as_str) == Some("none") {
        let provider = match given.get("provider") {
            Some(name) => Some(serde_json::from_value(name.clone()).map_err(|error| wrong(&error.to_string()))?),
            None => None,
        };
        control.clear_faults(provider);
    } else {
        control.fault(serde_json::from_value(given).map_err(|error| wrong(&error.to_string()))?);
    }
    Ok(control.engine.look(|world| json!({"faults": world.faults.list()})))
}

fn end(control: &Control, ask: &Ask<'_>) -> Result<Value, Reply> {
    let given: Value = body(ask)?;
    let id = given.get("id").and_then(Value::as_str).ok_or_else(|| wrong("id is missing"))?;
    match control.call(id) {
        Some(_) => Ok(json!({"ended": control.end_call(id)})),
        None => Err(Reply::json(404, &json!({"error": "no such call"}))),
    }
}

fn configure(control: &Control, ask: &Ask<'_>) -> Result<Value, Reply> {
    let patch: Value = body(ask)?;
    let settings = control.settings().patched(&patch).map_err(|error| wrong(&error))?;
    control.configure(|old| *old = settings.clone());
    let mut shown = serde_json::to_value(settings).unwrap_or_default();
    if let Some(members) = shown.as_object_mut() {
        members.retain(|name, _| {
            !matches!(name.as_str(), "auth_token" | "el_api_key" | "el_webhook_secret" | "subaccounts")
        });
    }
    Ok(shown)
}
