//! Contents of `/ready` and `/status`.

use std::collections::BTreeMap;

use http::StatusCode;
use serde_json::{Value, json};

use super::auth::Scope;
use super::{Admin, Answer, Problem, RECORD_AWAY, board, draining, ok, secured};
use crate::admission::Member;
use crate::clock::rfc3339;
use crate::ids::mask_number;
use crate::net::Exchange;
use crate::policy::{Limit, Per};
use crate::store::CallRecord;

/// Maximum kept slots in the status.
const KEPT_MAX: usize = 50;

impl Admin {
    /// Answers `/ready` on `listen.admin`, with the reason for operators.
    pub async fn answer_ready_to_operator(&self, exchange: &mut Exchange) {
        let now_secs = self.calls.lifecycle.clock.now_ms() / 1000;
        let may_read = self.access.authorize(exchange, Scope::Read, now_secs).is_ok();
        self.answer_readiness(exchange, may_read).await;
    }

    /// Answers `/ready` on any other listener, without a reason.
    pub async fn answer_ready(&self, exchange: &mut Exchange) {
        self.answer_readiness(exchange, false).await;
    }

    async fn answer_readiness(&self, exchange: &mut Exchange, may_read: bool) {
        let answer = self.ready(may_read).await.unwrap_or_else(Problem::into_response);
        exchange.respond(secured(exchange, answer)).await;
    }

    /// "Can serve": never a provider's health, never one dependency's.
    pub(super) async fn ready(&self, may_read: bool) -> Answer {
        if self.draining.is_cancelled() {
            return Err(draining());
        }
        if let Err(error) = self.calls.lifecycle.store.ping().await {
            // Addresses and system errors are not for unauthenticated clients.
            let message = if may_read { error.to_string() } else { RECORD_AWAY.to_owned() };
            return Err(Problem::Is(StatusCode::SERVICE_UNAVAILABLE, "STORE_UNAVAILABLE", message));
        }
        ok(&json!({"status": "ready"}))
    }

    /// The whole status. While the database cannot be read (`None`), its parts are null, and `store` has the reason.
    pub(super) async fn status_of(&self, open: Option<&[CallRecord]>) -> Result<Value, Problem> {
        let policy = self.calls.lifecycle.policy.load_full();
        let known = open.is_some();
        let open = open.unwrap_or_default();
        let admission = &self.calls.lifecycle.admission;
        let counts = admission.counts().await;
        // Else the limiter does not answer, and its figures say nothing.
        let is_counted = counts.is_ok();
        let counts = counts.unwrap_or_default();
        let sweep_statuses = self.sweep_statuses.lock().map(|s| s.clone()).unwrap_or_default();
        let mut hooks = BTreeMap::new();
        for account in self.calls.accounts.values() {
            if let Ok(seen) = self.calls.post_call.watched_webhooks(account).await {
                hooks.insert(&account.name, seen);
            }
        }
        let accounts: Vec<Value> = self
            .calls
            .accounts
            .values()
            .map(|account| {
                let limit =
                    policy.settings().accounts.iter().find(|a| a.name == account.name).and_then(|a| a.concurrent);
                let of = |call: &&CallRecord| {
                    call.attributes.account == account.name || call.attributes.carrier.as_ref() == Some(&account.name)
                };
                let mine: Vec<&CallRecord> = open.iter().filter(|call| call.counts()).filter(of).collect();
                let unread = sweep_statuses.get(account.name.as_str()).map(|seen| &seen.unread);
                let seen = self.calls.lifecycle.admission.last_sweep(account.name.as_str());
                let seen = seen.as_ref();
                json!({
                    "name": account.name, "provider": account.provider.name, "inUse": known.then(|| mine.iter().map(|c| c.slots).sum::<u32>()), "limit": limit,
                    "foreign": known.then(|| mine.iter().filter(|c| c.origin == crate::call::Origin::Foreign).map(|c| c.slots).sum::<u32>()),
                    "unsettled": known.then(|| mine.iter().filter(|c| c.unsettled).count()),
                    "overLimit": known.then(|| mine.iter().filter(|c| c.over_limit).count()),
                    "canBeAsked": account.can_ask(), "terminate": account.hang_up_methods,
                    "providerLive": seen.map(|s| s.provider_live), "sweptAt": seen.and_then(|s| s.as_of_ms).map(rfc3339),
                    "sweepTriedAt": seen.map(|s| rfc3339(s.tried_at_ms)),
                    "sweepError": seen.and_then(|s| s.error.clone()), "unread": unread, "hooks": hooks.get(&account.name),
                })
            })
            .collect();
        let written = self.calls.lifecycle.store.ping().await;
        let gate = admission.status();
        Ok(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "mode": policy.mode().as_str(), "bypass": self.bypass_json(),
            "limits": policy.in_force(), "unknownBusinesses": policy.settings().unknown.consequence(),
            "policy": self.program()?.config_status().to_json(),
            "policiesDiffer": self.calls.lifecycle.admission.policies_differ(),
            "replicas": self.calls.lifecycle.admission.members().iter().map(|one| self.replica_json(one)).collect::<Vec<_>>(),
            "draining": self.draining.is_cancelled(),
            "gate": {"standing": gate, "backend": gate.backend, "counted": is_counted, "calls": counts.calls, "over_limit": counts.over_limit, "byLimit": by_limit(&policy.settings().limits, &counts.by_key), "businesses": board::fullest(&policy, &counts.by_key), "kept": self.kept_slots()},
            "store": {"backend": self.store_backend, "path": self.store_path, "ok": written.is_ok(), "error": written.err().map(|e| e.to_string()), "journaled": self.journal.waiting()},
            "accounts": accounts,
        }))
    }

    /// The slots that calls of bulk runs leave for a call that was refused.
    fn kept_slots(&self) -> Vec<Value> {
        let kept = self.calls.lifecycle.admission.kept_slots();
        let shown = kept.into_iter().take(KEPT_MAX).map(|one| {
            let (refused_at, until) = (rfc3339(one.refused_at), rfc3339(one.kept_until));
            json!({"limit": one.limit, "business": one.business, "refusedAt": refused_at, "keptUntil": until})
        });
        shown.collect()
    }

    fn replica_json(&self, one: &Member) -> Value {
        let policy = one.policy.as_ref();
        json!({
            "id": one.replica.id, "host": one.replica.host, "process": one.replica.process, "version": one.replica.version,
            "self": one.replica.id == self.calls.lifecycle.admission.replica(), "leads": one.leads,
            "policy": policy.map(|(hash, _)| hash), "policySince": policy.map(|(_, since_ms)| rfc3339(*since_ms)),
            "startedAt": one.started_at.map(rfc3339), "heardAt": one.heard_at.map(rfc3339),
        })
    }
}

/// Held slots by limit. A limit may be counted per telephone number; those are masked.
fn by_limit(limits: &[Limit], by_key: &BTreeMap<String, u32>) -> BTreeMap<String, u32> {
    let per_number = |name: &str| {
        limits.iter().any(|l| l.name.as_ref() == name && matches!(l.per, Per::OwnNumber | Per::Destination))
    };
    let mut shown = BTreeMap::new();
    for (key, n) in by_key {
        let key = match key.split_once('|') {
            Some((limit, number)) if per_number(limit) => format!("{limit}|{}", mask_number(number)),
            _ => key.clone(),
        };
        *shown.entry(key).or_default() += n;
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_per_number_show_no_number() {
        let counts = [("global|", 3), ("business|acme", 2), ("night|+15550001101", 1), ("night|+15550002201", 1)];
        let night = Limit {
            name: "night".into(),
            scope: crate::policy::Scope::Named,
            selects: Default::default(),
            per: Per::Destination,
            bound: crate::policy::Bound::Concurrent(1),
            on_outage: None,
        };
        let shown = by_limit(&[night], &counts.into_iter().map(|(key, n)| (key.to_owned(), n)).collect());
        let wanted = [("business|acme", 2), ("global|", 3), ("night|+155••••••01", 2)];
        assert_eq!(shown, wanted.into_iter().map(|(key, n)| (key.to_owned(), n)).collect());
    }
}
