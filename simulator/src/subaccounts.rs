//! Twilio's subaccounts: what the parent's credentials open below their ids.

use crate::twilio::error;
use crate::wire::{Ask, Reply};
use crate::world::World;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;

/// A subaccount of the simulated Twilio account, by its sid in the settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Subaccount {
    /// Key of its webhooks' signatures.
    pub auth_token: String,
    /// Below whom it is; the simulated account unless given.
    pub owner: Option<String>,
    /// Its numbers, each with its voice webhook; its status callback is unset.
    pub numbers: BTreeMap<String, String>,
    /// Its calls: sid and Twilio's word for where each stands. They ring and talk for nobody.
    pub calls: BTreeMap<String, String>,
    /// The different fields in the records of some of them: fields by sid.
    pub details: BTreeMap<String, serde_json::Map<String, serde_json::Value>>,
}

/// The account and those below it, on a single page.
pub(crate) fn list(world: &World) -> Reply {
    let settings = &world.settings;
    let shown = |sid: &str, owner: &str| json!({"sid": sid, "friendly_name": sid, "status": "active", "owner_account_sid": owner});
    let own = std::iter::once(shown(&settings.account_sid, &settings.account_sid));
    let below = settings.subaccounts.iter().filter(|(_, one)| one.owner.is_none());
    let all: Vec<_> = own.chain(below.map(|(sid, _)| shown(sid, &settings.account_sid))).collect();
    Reply::json(200, &json!({"accounts": all, "page": 0, "next_page_uri": null}))
}

/// Answers a request below a subaccount's sid.
pub(crate) fn respond(world: &mut World, ask: &Ask<'_>, sid: &str, rest: &[&str]) -> Reply {
    let Some(subaccount) = world.settings.subaccounts.get(sid).cloned() else {
        world.counts.account_requests += u64::from(rest.is_empty());
        return error(404, 20404, &format!("The requested resource {} was not found", ask.path));
    };
    match (ask.method, rest) {
        ("GET", []) => {
            world.counts.account_requests += 1;
            let owner = subaccount.owner.as_ref().unwrap_or(&world.settings.account_sid);
            let body = json!({
                "sid": sid, "friendly_name": "Simulated subaccount", "status": "active", "type": "Full",
                "auth_token": subaccount.auth_token, "owner_account_sid": owner,
            });
            Reply::json(200, &body)
        }
        ("GET", ["IncomingPhoneNumbers.json"]) => {
            let shown = subaccount.numbers.iter().enumerate().map(|(n, (number, voice_url))| {
                json!({
                    "sid": format!("PN{:032x}", n + 0xb0), "account_sid": sid, "phone_number": number, "voice_url": voice_url,
                    "status_callback": "", "voice_fallback_url": "", "voice_application_sid": "", "trunk_sid": null,
                })
            });
            let numbers: Vec<_> = shown.collect();
            Reply::json(200, &json!({"incoming_phone_numbers": numbers, "page": 0, "next_page_uri": null}))
        }
        ("GET" | "POST", ["Calls", call]) if subaccount.calls.contains_key(call.trim_end_matches(".json")) => {
            let call = call.trim_end_matches(".json");
            let mut status = subaccount.calls[call].clone();
            if ask.method == "GET" {
                world.counts.get_requests += 1;
            } else if ask.form().get("Status") == Some("completed") {
                world.counts.hangups += u64::from(status != "completed");
                status = "completed".to_owned();
                if let Some(one) = world.settings.subaccounts.get_mut(sid) {
                    one.calls.insert(call.to_owned(), status.clone());
                }
            }
            let mut body = json!({
                "sid": call, "account_sid": sid, "parent_call_sid": null, "status": status,
                "from": "+15550003301", "to": "+15550001101", "direction": "inbound", "duration": null, "price": null,
                "end_time": null, "price_unit": "USD",
            });
            for (field, value) in subaccount.details.get(call).into_iter().flatten() {
                body[field] = value.clone();
            }
            Reply::json(200, &body)
        }
        _ => error(404, 20404, &format!("The requested resource {} was not found", ask.path)),
    }
}
