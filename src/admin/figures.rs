//! Metrics: `/metrics`, and the paths of the systems that ringfence replaces.

use std::collections::BTreeMap;

use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value, json};

use super::auth::{AccessError, Requester, Scope};
use super::{Admin, Answer, call_json_for, not_found, ok};
use crate::call::Outcome;
use crate::clock::rfc3339;
use crate::metrics::{Format, Gauges};
use crate::policy::Policy;
use crate::reply::respond;
use crate::store::{CallRecord, ListFilter, StoreError};

/// The greatest age of a provider's count that is shown as a metric, in milliseconds: sweeps of an idle account are half a minute apart.
const PROVIDER_COUNT_AGE_MAX_MS: i64 = 120_000;

impl Admin {
    async fn gauges(&self) -> Result<(Gauges, Vec<CallRecord>), StoreError> {
        let mut open = self.calls.lifecycle.store.open_calls().await?;
        open.retain(CallRecord::counts);
        Ok((self.gauges_of(Some(&open)).await, open))
    }

    /// `None`: the database cannot be read.
    async fn gauges_of(&self, open: Option<&[CallRecord]>) -> Gauges {
        let counts = self.calls.lifecycle.admission.counts().await.unwrap_or_default();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let mut by_business = BTreeMap::<&str, u32>::new();
        for call in open.into_iter().flatten().filter(|c| !c.over_limit) {
            *by_business.entry(call.attributes.business.as_str()).or_default() += call.slots;
        }
        // Only limits without `per`: a label per business would be unbounded. Unused limits are included.
        let limits_max = self.calls.lifecycle.policy.load().single_count_bounds();
        let mut limits: BTreeMap<String, u32> = limits_max.iter().map(|(name, _)| (name.clone(), 0)).collect();
        limits.extend(counts.by_key.iter().filter_map(|(key, n)| Some((key.strip_suffix('|')?.to_owned(), *n))));
        Gauges {
            now_ms: self.calls.lifecycle.clock.now_ms(),
            follows: false,
            active: counts.calls.saturating_sub(counts.over_limit),
            over_limit: counts.over_limit,
            sessions: open.map(|open| count(open.len())),
            of_businesses: open.map(|_| by_business.values().sum()),
            limits: limits.into_iter().collect(),
            limits_max,
            businesses: open.map(|_| by_business.iter().map(|(id, slots)| ((*id).to_owned(), *slots)).collect()),
            parked: match open {
                Some(_) => self.calls.lifecycle.store.parked().await.ok(),
                None => None,
            },
            store_failures: self.calls.lifecycle.store.failed_writes(),
            provider_live: self
                .calls
                .accounts
                .keys()
                .filter_map(|name| self.recent_provider_count(name.as_str()))
                .collect(),
        }
    }

    /// A provider's recent count: an older one may be wrong by now.
    fn recent_provider_count(&self, account: &str) -> Option<(String, u32)> {
        let seen = self.calls.lifecycle.admission.last_sweep(account)?;
        let is_recent = seen.as_of_ms? + PROVIDER_COUNT_AGE_MAX_MS >= self.calls.lifecycle.clock.now_ms();
        seen.provider_live.filter(|_| is_recent).map(|live| (account.to_owned(), live))
    }

    /// `/metrics`.
    pub(super) async fn prometheus(&self, accept: &str) -> Answer {
        let follows = !self.calls.lifecycle.admission.role().leads;
        self.rendered(follows, accept).await
    }

    /// Metrics in text form at the path of earlier systems, whose clients ask any one replica: each shows all gauges.
    pub(super) async fn legacy_prometheus(&self, accept: &str) -> Answer {
        self.rendered(false, accept).await
    }

    async fn rendered(&self, follows: bool, accept: &str) -> Answer {
        // If the database cannot be read, the other metrics are returned nevertheless.
        let mut open = self.calls.lifecycle.store.open_calls().await.ok();
        open.iter_mut().for_each(|open| open.retain(CallRecord::counts));
        let gauges = Gauges { follows, ..self.gauges_of(open.as_deref()).await };
        let format = Format::accepted(accept);
        let text = self.calls.lifecycle.metrics.render(&gauges, format);
        let kind = HeaderValue::from_static(format.content_type());
        Ok(respond(StatusCode::OK, HeaderMap::from_iter([(CONTENT_TYPE, kind)]), text.into()))
    }

    /// The paths of the contract. `may` checks a scope: totals need access to all businesses, calls and their ids the scope
    /// `read`.
    pub(super) async fn concurrent_metrics(
        &self,
        rest: &[&str],
        query: Option<&str>,
        may: impl Fn(Scope) -> Result<Requester, AccessError>,
    ) -> Answer {
        match rest {
            ["events"] => self.events(&may(Scope::Read)?, query).await,
            [] | ["status"] => {
                let who = may(Scope::Metrics)?.require_all_businesses()?;
                let (gauges, open) = self.gauges().await?;
                let policy = self.calls.lifecycle.policy.load();
                let mut global = global_status(&policy, gauges.active, &open);
                if rest.is_empty() {
                    let metrics = &self.calls.lifecycle.metrics;
                    let (mut by_reason, mut by_plan, mut total) = (Map::new(), Map::new(), 0);
                    for (reason, plan, n) in metrics.rejections() {
                        total += n;
                        for (map, key) in [(&mut by_reason, reason), (&mut by_plan, plan)] {
                            let before = map.get(&key).and_then(Value::as_u64).unwrap_or(0);
                            map.insert(key, (before + n).into());
                        }
                    }
                    return ok(&json!({
                        "activeCalls": gauges.active, "totalRejections": total, "rejectionsByReason": by_reason,
                        "rejectionsByPlan": by_plan, "elevenlabs429Count": metrics.provider_429_count(), "globalStatus": global,
                        "timestamp": rfc3339(self.calls.lifecycle.clock.now_ms()),
                    }));
                }
                if who.scope >= Scope::Read {
                    global["calls"] = open.iter().map(|call| call_json_for(call, &who)).collect();
                    let now_ms = self.calls.lifecycle.clock.now_ms();
                    let active: Vec<Value> =
                        open.iter().filter(|call| !call.over_limit).map(|call| active_call(call, now_ms)).collect();
                    global["activeCallCount"] = active.len().into();
                    global["activeCalls"] = active.into();
                }
                ok(&global)
            }
            _ => {
                may(Scope::Metrics)?;
                Err(not_found("known: /api/concurrent-metrics, …/status, …/events, …/prometheus"))
            }
        }
    }

    /// The latest admissions, rejections and releases, newest first; with `?limit=N` the latest N, oldest first, as older clients
    /// expect.
    async fn events(&self, who: &Requester, query: Option<&str>) -> Answer {
        let limit = form_urlencoded::parse(query.unwrap_or_default().as_bytes())
            .find(|(key, _)| key == "limit")
            .and_then(|(_, limit)| limit.parse::<usize>().ok());
        let seen = ListFilter { businesses: who.businesses.clone(), ..ListFilter::default() };
        let calls = self.calls.lifecycle.store.list_calls(&seen, 100).await?;
        let refusals = self.calls.lifecycle.store.list_rejections(&seen, 100).await?;
        let mut events: Vec<(i64, Value)> = Vec::new();
        for call in &calls {
            let business = call.attributes.business.as_str();
            let base = |kind: &str, at: i64| json!({"type": kind, "at": rfc3339(at), "callId": call.id, "businessId": business, "plan": call.attributes.plan});
            if call.outcome != Some(Outcome::Capacity) {
                events.push((call.admitted_at, base("admitted", call.admitted_at)));
            }
            if let Some(at) = call.ended_at {
                let mut one = base("released", at);
                one["outcome"] = json!(call.outcome);
                one["proof"] = json!(call.proof);
                events.push((at, one));
            }
        }
        events.extend(refusals.iter().map(|r| {
            let kind = if r.observed { "would_refuse" } else { "refused" };
            (r.at, json!({"type": kind, "at": rfc3339(r.at), "refusalId": r.id, "businessId": r.business, "reason": r.code, "limitName": r.limit_name}))
        }));
        events.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        let latest = events.into_iter().take(limit.unwrap_or(100).clamp(1, 100)).map(|(_, event)| with_data(event));
        let mut events: Vec<Value> = latest.collect();
        if limit.is_some() {
            events.reverse();
        }
        ok(&json!({"events": events}))
    }
}

/// A call in the shape of older clients; its age in milliseconds.
fn active_call(call: &CallRecord, now_ms: i64) -> Value {
    json!({
        "callId": call.id, "plan": call.attributes.plan, "businessId": call.attributes.business,
        "acquiredAt": rfc3339(call.admitted_at), "age": (now_ms - call.admitted_at).max(0),
    })
}

/// An event in the shape of older clients: all but its kind and time under `data`.
fn with_data(mut event: Value) -> Value {
    let Some(fields) = event.as_object_mut() else { return event };
    let data: Map<String, Value> = fields
        .iter()
        .filter(|(key, _)| !matches!(key.as_str(), "type" | "at"))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    if let Some(at) = fields.get("at").cloned() {
        fields.insert("timestamp".to_owned(), at);
    }
    fields.insert("data".to_owned(), data.into());
    event
}

fn global_status(policy: &Policy, active: u32, open: &[CallRecord]) -> Value {
    let limit = policy.global_limit();
    let mut by_plan: BTreeMap<String, u32> =
        ["PAYG", "STARTER", "PRO", "ENTERPRISE"].iter().map(|p| ((*p).to_owned(), 0)).collect();
    for call in open.iter().filter(|c| !c.over_limit) {
        *by_plan.entry(call.attributes.plan.clone()).or_default() += call.slots;
    }
    let percent = if limit == 0 { 0 } else { (u64::from(active) * 100).div_ceil(u64::from(limit)) };
    json!({"active": active, "limit": limit, "available": limit.saturating_sub(active), "utilizationPercent": percent, "byPlan": by_plan})
}
