//! The reason why a create was rejected, or would be: the limits that apply, the calls that hold their slots, the decision, and advice.

mod meaning;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::auth::Requester;
use super::listing::{query_value, refusal};
use super::{Admin, Answer, Problem, bad, call_json, not_found, ok};
use crate::call::{Direction, Phase};
use crate::clock::{UnixMs, rfc3339};
use crate::ids::{AccountName, BusinessId, mask_number};
use crate::policy::decision::LimitExceeded;
use crate::policy::{Binding, Bound, CallAttributes, DEMO_BUSINESS, Mode, Policy, RequestAttributes, Scope};
use crate::provider::account::Account;
use crate::reply::RejectionCode;
use crate::store::{CallRecord, RejectionRecord};
use meaning::{Meaning, meaning};

/// Maximum holders of a limit that are listed; of further ones, their number.
const HOLDERS_MAX: usize = 20;
/// Maximum calls that are searched for past holders of a slot.
const CALLS_MAX: u32 = 10_000;

/// The current state, read once.
struct Now {
    at_ms: UnixMs,
    policy: std::sync::Arc<Policy>,
    open: Vec<CallRecord>,
    by_key: BTreeMap<String, u32>,
    /// Calls admitted within the longest window of a rate.
    recent: Vec<(UnixMs, CallAttributes)>,
}

/// A limit that applies, and its usage.
struct BindingUsage {
    binding: Binding,
    used: u32,
    allows: u32,
}

impl BindingUsage {
    fn is_full(&self) -> bool {
        self.used >= self.allows
    }
}

impl Now {
    fn holds(&self, call: &CallRecord, key: &str) -> bool {
        call.counts() && !call.over_limit && self.policy.bindings(&call.attributes).iter().any(|b| b.key == key)
    }

    fn usage(&self, binding: Binding) -> BindingUsage {
        let (used, allows) = match binding.bound {
            Bound::Concurrent(n) => (self.by_key.get(&binding.key).copied().unwrap_or(0), n),
            Bound::Rate(rate) => {
                let counts = |(at, attributes): &&(UnixMs, CallAttributes)| {
                    at.saturating_add(rate.held_ms()) > self.at_ms
                        && self.policy.bindings(attributes).iter().any(|one| one.key == binding.key)
                };
                (u32::try_from(self.recent.iter().filter(counts).count()).unwrap_or(u32::MAX), rate.count)
            }
        };
        BindingUsage { binding, used, allows }
    }

    /// The config key or request that sets a limit, and its bound.
    fn written(&self, binding: &Binding) -> (String, String) {
        let is_rate = matches!(binding.bound, Bound::Rate(_));
        let all = self.policy.in_force();
        let found = all.iter().find(|one| *one.name == *binding.limit && one.allows.contains("at once") != is_rate);
        match found {
            Some(found) => (found.from.clone(), found.allows.clone()),
            None => (format!("max_calls of {}", binding.limit.trim_start_matches("business.")), String::new()),
        }
    }

    fn usage_json(&self, usage: &BindingUsage, who: &Requester) -> Value {
        let binding = &usage.binding;
        let (from, allows) = self.written(binding);
        let holding: Vec<&CallRecord> = match binding.bound {
            Bound::Concurrent(_) => self.open.iter().filter(|call| self.holds(call, &binding.key)).collect(),
            Bound::Rate(_) => vec![],
        };
        let mine: Vec<&&CallRecord> =
            holding.iter().filter(|call| who.sees(call.attributes.business.as_str())).collect();
        let holders: Vec<Value> = mine.iter().take(HOLDERS_MAX).map(|call| holder(call, self.at_ms)).collect();
        json!({
            "name": binding.limit, "kind": if matches!(binding.bound, Bound::Rate(_)) { "rate" } else { "concurrent" },
            "scope": scope_word(binding.scope), "allows": allows, "from": from, "used": usage.used, "limit": usage.allows,
            "full": usage.is_full(), "holders": holders, "moreHolders": holding.len().saturating_sub(mine.len().min(HOLDERS_MAX)),
        })
    }
}

fn scope_word(scope: Scope) -> &'static str {
    match scope {
        Scope::Business => "business",
        Scope::Named => "limit",
        Scope::Account => "account",
        Scope::Global => "global",
    }
}

fn holder(call: &CallRecord, at_ms: UnixMs) -> Value {
    json!({
        "callId": call.id, "businessId": call.attributes.business, "account": call.attributes.account, "phase": call.phase,
        "direction": call.attributes.direction, "slots": call.slots, "origin": call.origin, "unsettled": call.unsettled,
        "ageSecs": ((at_ms - call.admitted_at) / 1000).max(0), "silentSecs": ((at_ms - call.seen_at) / 1000).max(0),
        "otherNumber": call.attributes.other_number.as_deref().map(mask_number),
    })
}

/// A create that might be sent.
struct WouldBe {
    attributes: CallAttributes,
    /// The reason why its business is unknown, if unknown ones are rejected.
    unknown_business: Option<String>,
    /// The reason why its destination is blocked.
    blocked: Option<String>,
}

/// A decision, with advice.
struct Decision {
    /// `admitted`, `refused`, or `admitted and marked`.
    outcome: &'static str,
    code: Option<RejectionCode>,
    limit: Option<String>,
    because: String,
    advice: Vec<String>,
}

impl Decision {
    fn to_json(&self) -> Value {
        json!({
            "outcome": self.outcome, "code": self.code.and_then(RejectionCode::fixed_str), "limit": self.limit, "because": self.because, "advice": self.advice,
        })
    }
}

/// Treatment of a create that should be rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Enforcement {
    /// The create is rejected.
    On,
    /// The create is sent: the mode is observe.
    Observe,
    /// The create is sent: limits are bypassed.
    Bypassed,
}

/// The decision about a create now.
fn decide(now: &Now, create: &WouldBe, usages: &[BindingUsage], enforcement: Enforcement) -> Decision {
    let outcome = match enforcement {
        Enforcement::On => "refused",
        Enforcement::Observe | Enforcement::Bypassed => "admitted and marked",
    };
    let refused = |code, limit, because: String, advice| Decision { outcome, code: Some(code), limit, because, advice };
    let business = &create.attributes.business;
    let mut decision = if let Some(why) = &create.unknown_business {
        let advice = vec![
            format!(
                "register it: `ringfence businesses import`, PUT /api/businesses/{business}, or [[businesses]] in the config"
            ),
            "or accept unknown businesses on a plan: businesses.unknown = \"PLAN\"".to_owned(),
        ];
        refused(RejectionCode::UnknownBusiness, None, format!("unknown business: {why}"), advice)
    } else if let Some(why) = &create.blocked {
        let advice = vec!["look at [destinations], and at the lists: GET /api/do-not-call".to_owned()];
        refused(RejectionCode::DoNotCall, None, why.clone(), advice)
    } else if let Some(full) = usages.iter().find(|one| one.is_full()) {
        let exceeded = LimitExceeded {
            limit: full.binding.limit.clone(),
            scope: full.binding.scope,
            bound: full.binding.bound,
            current: full.used,
            free_in_ms: None,
        };
        let code = RejectionCode::of_full(&exceeded);
        let what = if code == RejectionCode::RateExceeded { "creates in its window" } else { "calls in use" };
        let because = format!("limit {} is full: {} of {} {what}", full.binding.limit, full.used, full.allows);
        refused(code, Some(full.binding.limit.to_string()), because, advice(now, full))
    } else {
        let because = match usages.iter().min_by_key(|one| one.allows.saturating_sub(one.used)) {
            Some(next) => {
                let free = next.allows.saturating_sub(next.used);
                format!("no limit is full; the nearest is {} with {free} of {} free", next.binding.limit, next.allows)
            }
            None => "no limit applies".to_owned(),
        };
        return Decision { outcome: "admitted", code: None, limit: None, because, advice: vec![] };
    };
    match enforcement {
        Enforcement::On => {}
        Enforcement::Observe => decision.because.push_str(" (mode is observe: it is sent, and marked)"),
        Enforcement::Bypassed => decision.because.push_str(" (limits are bypassed: it is sent, and marked)"),
    }
    decision
}

/// The advice for a full limit.
fn advice(now: &Now, full: &BindingUsage) -> Vec<String> {
    let binding = &full.binding;
    let (from, _) = now.written(binding);
    let mut advice = Vec::new();
    if let Bound::Rate(rate) = binding.bound {
        advice.push(format!("wait: a create counts for {} s", rate.window_ms as f64 / 1000.0));
    } else {
        let holding: Vec<&CallRecord> = now.open.iter().filter(|call| now.holds(call, &binding.key)).collect();
        let oldest = holding.iter().min_by_key(|call| call.admitted_at);
        if let Some(oldest) = oldest {
            let age = (now.at_ms - oldest.admitted_at).max(0) / 1000;
            let id = &oldest.id;
            advice.push(format!(
                "wait for a call to end; the oldest has been up for {age} s (ringfence calls show {id})"
            ));
        }
        let doubtful = holding.iter().filter(|call| call.unsettled || call.phase == Phase::Reserved).count();
        if doubtful > 0 {
            advice.push(format!("{doubtful} holders unconfirmed: ringfence reconcile"));
        }
    }
    advice.push(match binding.scope {
        Scope::Account => {
            format!("if more was bought at the provider, raise {from}; external calls count too (ringfence status)")
        }
        _ if from == "built in: demo business" => format!("to allow more, set businesses.{DEMO_BUSINESS}.max_calls"),
        _ if from == "built in" => {
            format!("to allow more, set {}.concurrent", binding.limit.replacen("plan.", "plans.", 1))
        }
        _ => format!("to allow more, raise {from}"),
    });
    advice
}

impl Admin {
    /// `?id=` of a refusal or a call; or `?business=&account=&to=&direction=&agent=&number=` of a create that might be sent.
    pub(super) async fn explain(&self, query: &str, who: &Requester) -> Answer {
        let store = &self.calls.lifecycle.store;
        let at_ms = self.calls.lifecycle.clock.now_ms();
        let policy = self.calls.lifecycle.policy.load_full();
        let counts = self.calls.lifecycle.admission.counts().await;
        let counts = counts.map_err(|error| {
            Problem::Is(http::StatusCode::SERVICE_UNAVAILABLE, "GATE_REBUILDING", error.to_string())
        })?;
        let recent = match policy.longest_rate_ms() {
            0 => vec![],
            window_ms => store.admitted_since(at_ms - window_ms).await?,
        };
        let now = Now { at_ms, open: store.open_calls().await?, by_key: counts.by_key, recent, policy };
        match query_value(query, "id") {
            Some(id) if id.starts_with("rf_") => {
                let record = self.find_refusal(&id, who).await?;
                self.explain_refusal(&now, &record, who).await
            }
            Some(id) => {
                let record = self.find(&id, who).await?;
                self.explain_call(&now, &record, who)
            }
            None => {
                let create = self.would_be(&now, query, who)?;
                ok(&self.explained(&now, "create", &create, who))
            }
        }
    }

    fn explained(&self, now: &Now, about: &str, create: &WouldBe, who: &Requester) -> Value {
        let admission = &self.calls.lifecycle.admission;
        let attributes = &create.attributes;
        let usages: Vec<BindingUsage> =
            admission.bindings(attributes).into_iter().map(|binding| now.usage(binding)).collect();
        let enforcement = match (admission.mode(), admission.bypass()) {
            (Mode::Enforce, _) => Enforcement::On,
            (Mode::Observe, None) => Enforcement::Observe,
            (Mode::Observe, Some(_)) => Enforcement::Bypassed,
        };
        let decision = decide(now, create, &usages, enforcement);
        json!({
            "about": about, "now": rfc3339(now.at_ms), "mode": now.policy.mode().as_str(), "bypass": self.bypass_json(),
            "create": {
                "businessId": attributes.business, "plan": attributes.plan, "account": attributes.account, "carrier": attributes.carrier,
                "direction": attributes.direction, "to": attributes.other_number.as_deref().map(mask_number), "agent": attributes.agent,
                "known": now.policy.business(&attributes.business).is_some(),
            },
            "limits": usages.iter().map(|one| now.usage_json(one, who)).collect::<Vec<_>>(),
            "decision": decision.to_json(),
        })
    }

    /// The named account, or the only one that places calls.
    fn account_asked(&self, name: Option<&str>) -> Result<&Account, Problem> {
        if let Some(name) = name {
            let found = AccountName::parse(name).ok().and_then(|name| self.calls.accounts.get(&name));
            return found.map(|account| &**account).ok_or_else(|| not_found("unknown account"));
        }
        let all: Vec<_> = self.calls.accounts.values().filter(|one| !one.provider.operations.is_empty()).collect();
        match all.as_slice() {
            [one] => Ok(one),
            _ => {
                let names: Vec<&str> = all.iter().map(|account| account.name.as_str()).collect();
                Err(bad(format!("account is needed: {}", names.join(", "))))
            }
        }
    }

    fn would_be(&self, now: &Now, query: &str, who: &Requester) -> Result<WouldBe, Problem> {
        let business = query_value(query, "business").ok_or_else(|| bad("id or business is needed"))?;
        let business = BusinessId::parse(&business).map_err(|error| bad(error.to_string()))?;
        if !who.sees(business.as_str()) {
            return Err(not_found("no such business"));
        }
        let account = self.account_asked(query_value(query, "account").as_deref())?;
        let direction = match query_value(query, "direction").as_deref() {
            None | Some("outbound") => Direction::Outbound,
            Some("inbound") => Direction::Inbound,
            Some(_) => return Err(bad("direction must be outbound or inbound")),
        };
        let attributes = attributes(now, business, account, direction);
        let attributes = CallAttributes {
            agent: query_value(query, "agent"),
            own_number: query_value(query, "number"),
            other_number: query_value(query, "to"),
            ..attributes
        };
        let marks = RequestAttributes {
            header: Some(attributes.business.as_str()),
            path: Some(attributes.business.as_str()),
            agent: attributes.agent.as_deref(),
            number: attributes.own_number.as_deref(),
            account: Some(account.name.as_str()),
            api_key_sha256: None,
        };
        let is_known = now.policy.business(&attributes.business).is_some();
        let identified = (!is_known).then(|| now.policy.identify(&marks));
        let unknown_business =
            identified.and_then(|found| found.unknown_business).map(|unknown_business| unknown_business.0);
        let blocked = attributes.other_number.as_deref().filter(|_| direction == Direction::Outbound).and_then(|to| {
            let judged = self.calls.destinations.may_call(&attributes.business, to, None, None);
            judged.err().map(|why| format!("{} {why}", mask_number(to)))
        });
        Ok(WouldBe { attributes, unknown_business, blocked })
    }

    async fn explain_refusal(&self, now: &Now, record: &RejectionRecord, who: &Requester) -> Answer {
        let Meaning { means, fix } = meaning(&record.code);
        let mut answer = json!({"about": "refusal", "now": rfc3339(now.at_ms)});
        let business = BusinessId::parse(&record.business).ok();
        let account = self.account_asked(Some(&record.account)).ok();
        if let (Some(business), Some(account)) = (business, account) {
            let create = WouldBe {
                attributes: attributes(now, business, account, record.direction),
                unknown_business: None,
                blocked: None,
            };
            answer = self.explained(now, "refusal", &create, who);
        }
        answer["refusal"] = refusal(record);
        answer["refusal"]["means"] = means.into();
        answer["refusal"]["fix"] = fix.into();
        if let Some(limit) = record.limit_name.as_deref() {
            let then = self.calls.lifecycle.store.calls_at(record.at, CALLS_MAX).await?;
            let held = |call: &&CallRecord| {
                !call.over_limit
                    && now.policy.bindings(&call.attributes).iter().any(|binding| {
                        *binding.limit == *limit
                            && (binding.scope != Scope::Business
                                || call.attributes.business.as_str() == record.business)
                    })
            };
            let held: Vec<&CallRecord> = then.iter().filter(held).collect();
            let mine = held.iter().filter(|call| who.sees(call.attributes.business.as_str())).take(HOLDERS_MAX);
            let mine: Vec<Value> = mine.map(|call| holder(call, record.at)).collect();
            answer["moreHeldThen"] = (held.len() - mine.len()).into();
            answer["heldThen"] = mine.into();
        }
        ok(&answer)
    }

    fn explain_call(&self, now: &Now, record: &CallRecord, who: &Requester) -> Answer {
        let create = WouldBe { attributes: record.attributes.clone(), unknown_business: None, blocked: None };
        let mut answer = self.explained(now, "call", &create, who);
        answer["call"] = call_json(record);
        let age = |at: UnixMs| (now.at_ms - at).max(0) / 1000;
        let holds = record.phase != Phase::Ended && record.counts();
        let state = match (record.phase, record.unsettled) {
            (Phase::Ended, _) => {
                let proof = record.proof.map_or("none", |proof| proof.as_str());
                format!("ended (proof: {proof}); holds no slot")
            }
            (_, true) => "unknown whether it was dialled; its slot is held until reconciled".to_owned(),
            (phase, false) => {
                let (by, secs) = (record.seen_by.as_str(), age(record.seen_at));
                format!("{}, last seen {secs} s ago ({by})", phase.as_str())
            }
        };
        answer["call"]["explained"] = state.into();
        answer["call"]["holds"] = holds.into();
        ok(&answer)
    }
}

/// The attributes of a create of a business at an account, without further details.
fn attributes(now: &Now, business: BusinessId, account: &Account, direction: Direction) -> CallAttributes {
    let operations = &account.provider.operations;
    let operation = operations.iter().find(|one| one.direction == direction).or(operations.first());
    CallAttributes {
        plan: now.policy.plan_of(&business),
        business,
        account: account.name.clone(),
        provider: account.provider.name.clone(),
        carrier: account.carrier.clone().filter(|_| operation.is_some_and(|one| one.carried)),
        direction,
        operation: operation.map(|one| one.name.clone()).unwrap_or_default(),
        agent: None,
        own_number: None,
        other_number: None,
    }
}
