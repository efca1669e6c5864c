//! Operators' actions apart from calls, which are recorded before they are carried out: a business's data, the audit log.

use http::StatusCode;
use serde_json::{Value, json};
use tracing::{info, warn};

use super::auth::Requester;
use super::{Admin, Answer, Problem, limit_of, ok};
use crate::clock::rfc3339;
use crate::ids::BusinessId;
use crate::store::{AuditRecord, InboxEvent, OutboxDelivery};

/// The longest stored reason, in characters.
const REASON_CHARS_MAX: usize = 500;

/// A reason as it is stored.
pub(super) fn stored_reason(reason: &str) -> String {
    reason.replace('\0', "\u{FFFD}").chars().take(REASON_CHARS_MAX).collect()
}

/// An action for the audit log.
pub(super) struct Act<'a> {
    what: &'static str,
    target: &'a str,
    reason: Option<&'a str>,
    before: Value,
    after: Value,
}

impl<'a> Act<'a> {
    pub(super) fn new(what: &'static str, target: &'a str) -> Self {
        Self { what, target, reason: None, before: Value::Null, after: Value::Null }
    }

    pub(super) fn because(self, reason: Option<&'a str>) -> Self {
        Self { reason, ..self }
    }

    /// Adds the state before and after; null if there is none.
    pub(super) fn changes(self, before: Value, after: Value) -> Self {
        Self { before, after, ..self }
    }
}

impl Admin {
    /// Records an action in the audit log, before it is carried out.
    pub(super) async fn audit(&self, who: &Requester, act: Act<'_>) -> Result<(), Problem> {
        let shown = |value: Value| (!value.is_null()).then(|| value.to_string());
        let record = AuditRecord {
            reason: act.reason.map(stored_reason),
            before: shown(act.before),
            after: shown(act.after),
            ..AuditRecord::new(self.calls.lifecycle.clock.now_ms(), &who.name, &who.from, act.what, act.target)
        };
        info!(
            by = record.who,
            from = record.from,
            what = act.what,
            target = act.target,
            reason = act.reason,
            "operator action"
        );
        Ok(self.calls.lifecycle.store.audit(record).await?)
    }

    /// Records an action that must not depend on the store, once: if that fails, the log has it.
    pub(super) async fn audit_or_log(&self, who: &Requester, act: Act<'_>) {
        let (what, target) = (act.what, act.target);
        if let Err(Problem::Store(error)) = self.audit(who, act).await {
            warn!(what, target, by = who.name, %error, "failed to write an operator action to the audit log; this log alone has it");
        }
    }

    pub(super) async fn audit_list(&self, query: &str) -> Answer {
        let list = self.calls.lifecycle.store.latest_audit(limit_of(query)).await?;
        let shown = list.iter().map(|one| {
            let json =
                |text: &Option<String>| text.as_deref().and_then(|text| serde_json::from_str::<Value>(text).ok());
            json!({"id": one.id, "at": rfc3339(one.at), "who": one.who, "from": one.from, "what": one.what,
                "target": one.target, "reason": one.reason, "before": json(&one.before), "after": json(&one.after)})
        });
        ok(&json!({"audit": shown.collect::<Vec<Value>>()}))
    }

    /// Deletes a business's data. It is completed even if the client disconnects.
    pub(super) async fn purge(&self, business: &BusinessId, reason: Option<&str>, who: &Requester) -> Answer {
        self.audit(who, Act::new("purge", business.as_str()).because(reason)).await?;
        let (store, id) = (self.calls.lifecycle.store.clone(), business.clone());
        let purged = self.calls.tasks.spawn(async move { store.purge_business(id.as_str()).await }).await;
        match purged {
            Ok(purged) => {
                let purged = purged?;
                let before = json!({"calls": purged.calls, "events": purged.events, "deliveries": purged.deliveries, "refusals": purged.rejections, "runs": purged.runs, "schedules": purged.schedules});
                let after = json!({"calls": 0, "events": 0, "deliveries": 0, "refusals": 0, "open": purged.open});
                let act = Act::new("purged", business.as_str()).because(reason).changes(before, after);
                self.audit_or_log(who, act).await;
                ok(&serde_json::to_value(purged).unwrap_or_default())
            }
            Err(error) => Err(Problem::Is(StatusCode::INTERNAL_SERVER_ERROR, "FAILED", error.to_string())),
        }
    }
}

pub(super) fn event(e: &InboxEvent) -> Value {
    json!({
        "id": e.id, "account": e.account, "webhook": e.webhook, "event": e.event, "receivedAt": rfc3339(e.received_at),
        "path": e.path, "bodyKept": e.has_body, "spool": e.spool, "callId": e.call, "outcome": e.outcome, "tries": e.tries,
        "nextTryAt": e.due_at.filter(|_| e.outcome.is_none()).map(rfc3339), "parkedAt": e.parked_at.map(rfc3339),
        "error": e.error,
    })
}

pub(super) fn delivery(d: &OutboxDelivery) -> Value {
    let state = match (d.done_at, d.due_at) {
        (Some(_), _) => "done",
        (None, Some(_)) => "pending",
        (None, None) => "given_up",
    };
    json!({
        "id": d.id, "eventId": d.event_id, "account": d.account, "receivedAt": d.received_at.map(rfc3339), "callId": d.call, "url": d.url, "own": d.own, "route": d.route, "state": state,
        "attempts": d.attempts, "nextTryAt": d.due_at.map(rfc3339), "doneAt": d.done_at.map(rfc3339),
        "lastError": d.last_error,
    })
}
