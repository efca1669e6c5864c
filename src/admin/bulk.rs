//! Creates or replaces many businesses in one request, all or none; validation of businesses.

use std::collections::{BTreeSet, HashMap};

use http::StatusCode;
use serde_json::{Map, Value, json};
use tracing::info;

use super::auth::Requester;
use super::operator::Act;
use super::{Admin, Answer, bad, ok};
use crate::ids::{BusinessId, number_key};
use crate::net::Exchange;
use crate::policy::{Business, DEFAULT_PLAN, Policy, RESERVE_MAX, RETENTION_DAYS};
use crate::reply::json_answer;

/// The largest accepted list, in bytes: 100,000 businesses with an agent and a number.
pub const LIST_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Invalid rows that a response lists; of further ones, their number.
pub(super) const BAD_ROWS_MAX: usize = 1000;
/// Businesses per audit entry: a row of the store stays small.
const AUDITED_AT_ONCE: usize = 500;

impl Admin {
    /// Handles `PUT` of `{"businesses": [{"id": …}, …]}`, or of the list alone. One invalid row rejects all.
    pub(super) async fn put_businesses(&self, exchange: &mut Exchange, who: &Requester) -> Answer {
        let body = exchange.read_body(LIST_BYTES_MAX).await.map_err(|e| bad(e.to_string()))?;
        let body: Value = serde_json::from_slice(&body).map_err(|e| bad(format!("no list of businesses: {e}")))?;
        let rows = match body {
            Value::Array(rows) => rows,
            Value::Object(mut fields) => match (fields.remove("businesses"), fields.keys().next()) {
                (Some(Value::Array(rows)), None) => rows,
                (_, Some(other)) if other != "businesses" => return Err(bad(format!("unknown field {other:?}"))),
                _ => return Err(bad("send {\"businesses\": [{\"id\": \"acme\"}, …]}")),
            },
            _ => return Err(bad("send {\"businesses\": [{\"id\": \"acme\"}, …]}")),
        };
        let (businesses, wrong) = read_rows(rows, &self.calls.lifecycle.policy.load());
        if !wrong.is_empty() {
            let message = format!("{} invalid rows; nothing stored", wrong.len());
            let rows: Vec<Value> = wrong.into_iter().take(BAD_ROWS_MAX).collect();
            let body = json!({"error": "INVALID_BUSINESSES", "message": message, "rows": rows});
            return Ok(json_answer(StatusCode::UNPROCESSABLE_ENTITY, &body));
        }
        let (count, at_ms) = (businesses.len(), self.calls.lifecycle.clock.now_ms());
        for some in businesses.chunks(AUDITED_AT_ONCE) {
            let (before, after): (Map<String, Value>, Map<String, Value>) = some
                .iter()
                .map(|one| {
                    let after = serde_json::to_value(one).unwrap_or_default();
                    ((one.id.to_string(), self.business_in_force(&one.id)), (one.id.to_string(), after))
                })
                .unzip();
            self.audit(who, Act::new("put businesses", "*").changes(before.into(), after.into())).await?;
        }
        let new = self.calls.lifecycle.store.put_businesses(businesses, at_ms).await?;
        self.program()?.refresh_businesses().await?;
        info!(by = who.name, count, new, "businesses updated");
        ok(&json!({"put": count, "new": new, "note": self.unknown_businesses_notice()}))
    }

    /// The consequence for unknown businesses, once any is known.
    pub(super) fn unknown_businesses_notice(&self) -> String {
        self.calls.lifecycle.policy.load().settings().unknown.consequence()
    }
}

/// Parses the rows of a list; returns the valid ones, and the errors of the others.
fn read_rows(rows: Vec<Value>, policy: &Policy) -> (Vec<Business>, Vec<Value>) {
    let (mut businesses, mut wrong) = (Vec::with_capacity(rows.len()), Vec::new());
    let (mut ids, mut owners) = (BTreeSet::new(), HashMap::<String, BusinessId>::new());
    let listed: BTreeSet<String> = rows.iter().filter_map(|row| Some(row.get("id")?.as_str()?.to_owned())).collect();
    for (row, value) in rows.into_iter().enumerate() {
        let id = value.get("id").cloned().unwrap_or_default();
        let mut say = |message: String| wrong.push(json!({"row": row + 1, "id": id, "message": message}));
        // Via a map: serde also accepts a struct as an array.
        let business = match serde_json::from_value::<Map<String, Value>>(value) {
            Ok(fields) if !fields.contains_key("id") => Err("id is missing".to_owned()),
            Ok(fields) => serde_json::from_value::<Business>(fields.into()).map_err(|error| error.to_string()),
            Err(_) => Err("not an object".to_owned()),
        };
        let business = match business {
            Ok(business) => business,
            Err(message) => {
                say(message);
                continue;
            }
        };
        // An owner that is in the list itself is replaced by it.
        let mut messages = invalid(&business, policy, |owner| listed.contains(owner.as_str()));
        if !ids.insert(business.id.clone()) {
            messages.push("another row has the same id".to_owned());
        }
        for key in keys_of(&business) {
            match owners.insert(key.clone(), business.id.clone()) {
                Some(other) if other != business.id => messages.push(format!("{key} also belongs to {other}")),
                _ => {}
            }
        }
        if messages.is_empty() { businesses.push(business) } else { say(messages.join("; ")) }
    }
    (businesses, wrong)
}

fn keys_of(business: &Business) -> impl Iterator<Item = String> + '_ {
    let numbers = business.phone_numbers.iter().map(|number| number_key(number).into_owned());
    business.agent_ids.iter().cloned().chain(numbers)
}

/// All errors of a business under a policy. `yields`: this owner gives up what it has.
pub(super) fn invalid(business: &Business, policy: &Policy, yields: impl Fn(&BusinessId) -> bool) -> Vec<String> {
    let mut wrong = Vec::new();
    let plans = &policy.settings().plans;
    if let Some(name) = &business.plan {
        match plans.get(name) {
            None if name == DEFAULT_PLAN => {}
            None => {
                let known: Vec<&str> = plans.keys().map(String::as_str).collect();
                wrong.push(format!("{name:?} is not a plan; known: {}", known.join(", ")));
            }
            Some(plan) if plan.concurrent.is_none() && business.max_calls.is_none() && name != DEFAULT_PLAN => {
                wrong.push(format!("max_calls is needed: plan {name} leaves the number to each business"));
            }
            Some(_) => {}
        }
    }
    if business.retention_days.is_some_and(|days| !RETENTION_DAYS.contains(&days)) {
        wrong.push(format!("retention_days is {} to {}", RETENTION_DAYS.start(), RETENTION_DAYS.end()));
    }
    if business.reserve_for_direct.is_some_and(|slots| slots > RESERVE_MAX) {
        wrong.push(format!("reserve_for_direct is at most {RESERVE_MAX}"));
    }
    let agents = business.agent_ids.iter().map(|agent| (agent, policy.owner_of_agent(agent)));
    let numbers = business.phone_numbers.iter().map(|number| (number, policy.owner_of_number(number)));
    for (key, owner) in agents.chain(numbers) {
        if let Some(owner) = owner.filter(|owner| **owner != business.id && !yields(owner)) {
            wrong.push(format!("{key} belongs to {owner}"));
        }
    }
    wrong
}
