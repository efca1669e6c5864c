//! What operators see and do beside calls: the inbox and its deliveries, a business's data, who did what. What is done is noted
//! before: nothing is done that is not on record.

use http::StatusCode;
use serde_json::{Value, json};
use tracing::info;
use ulid::Ulid;

use super::auth::Caller;
use super::{Admin, Answer, Problem, bad, limit_of, not_found, ok};
use crate::clock::rfc3339;
use crate::ids::BusinessId;
use crate::store::{AuditRecord, Inbox, InboxEvent, Outbox, OutboxDelivery};

/// The longest reason that is kept, in characters.
const REASON_CHARS_MAX: usize = 500;

impl Admin {
    /// Notes what somebody is about to do.
    pub(super) async fn note(
        &self,
        who: &Caller,
        what: &str,
        target: &str,
        reason: Option<&str>,
    ) -> Result<(), Problem> {
        let record = AuditRecord {
            id: format!("au_{}", Ulid::new().to_string().to_lowercase()),
            at: self.calls.lifecycle.clock.now_ms(),
            who: who.name.clone(),
            what: what.to_owned(),
            target: target.to_owned(),
            reason: reason.map(|reason| reason.chars().take(REASON_CHARS_MAX).collect()),
        };
        info!(by = record.who, what, target, reason, "an operator acts");
        Ok(self.calls.lifecycle.store.audit(record).await?)
    }

    pub(super) async fn audit_list(&self, query: &str) -> Answer {
        let list = self.calls.lifecycle.store.latest_audit(limit_of(query)).await?;
        let shown = list.iter().map(|one| {
            json!({"id": one.id, "at": rfc3339(one.at), "who": one.who, "what": one.what, "target": one.target,
                "reason": one.reason})
        });
        ok(&json!({"audit": shown.collect::<Vec<Value>>()}))
    }

    /// The inbox, and deliveries that are still to be made or were given up.
    pub(super) async fn inbox_list(&self, query: &str) -> Answer {
        let state = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "state").map(|(_, value)| value);
        let which = match state.as_deref() {
            None | Some("" | "all") => Inbox::All,
            Some("unsettled") => Inbox::Unsettled,
            Some("parked") => Inbox::Parked,
            Some(_) => return Err(bad("state is one of all, unsettled, parked")),
        };
        let (store, limit) = (&self.calls.lifecycle.store, limit_of(query));
        let events: Vec<Value> = store.inbox(which, limit).await?.iter().map(event).collect();
        let pending: Vec<Value> = store.outbox(Outbox::Pending, limit).await?.iter().map(delivery).collect();
        let given_up: Vec<Value> = store.outbox(Outbox::GivenUp, limit).await?.iter().map(delivery).collect();
        ok(&json!({"events": events, "pending": pending, "givenUp": given_up}))
    }

    pub(super) async fn inbox_one(&self, id: &str) -> Answer {
        let store = &self.calls.lifecycle.store;
        let (found, deliveries) = (store.inbox_event(id).await?, store.deliveries_of(id).await?);
        if found.is_none() && deliveries.is_empty() {
            return Err(not_found("no event of this id is on record"));
        }
        let mut shown = found.as_ref().map_or_else(|| json!({"id": id, "own": true}), event);
        shown["deliveries"] = deliveries.iter().map(delivery).collect();
        ok(&shown)
    }

    pub(super) async fn inbox_replay(&self, id: &str, who: &Caller) -> Answer {
        self.note(who, "replay", id, None).await?;
        let replayed = self.program()?.replay_event(id).await?;
        let replayed = replayed.ok_or_else(|| not_found("no event of this id is on record"))?;
        ok(&json!({"event": replayed.event.as_ref().map(event), "deliveries": replayed.deliveries}))
    }

    /// Deletes what a business left behind. A client that goes away changes nothing: it is done to its end.
    pub(super) async fn purge(&self, business: &BusinessId, reason: Option<&str>, who: &Caller) -> Answer {
        self.note(who, "purge", business.as_str(), reason).await?;
        let (store, id) = (self.calls.lifecycle.store.clone(), business.clone());
        let purged = self.calls.tasks.spawn(async move { store.purge_business(id.as_str()).await }).await;
        match purged {
            Ok(purged) => ok(&serde_json::to_value(purged?).unwrap_or_default()),
            Err(error) => Err(Problem::Is(StatusCode::INTERNAL_SERVER_ERROR, "FAILED", error.to_string())),
        }
    }
}

fn event(e: &InboxEvent) -> Value {
    json!({
        "id": e.id, "account": e.account, "webhook": e.webhook, "event": e.event, "receivedAt": rfc3339(e.received_at),
        "path": e.path, "bodyKept": e.has_body, "spool": e.spool, "callId": e.call, "outcome": e.outcome, "tries": e.tries,
        "nextTryAt": e.due_at.filter(|_| e.outcome.is_none()).map(rfc3339), "parkedAt": e.parked_at.map(rfc3339),
        "error": e.error,
    })
}

fn delivery(d: &OutboxDelivery) -> Value {
    let state = match (d.done_at, d.due_at) {
        (Some(_), _) => "done",
        (None, Some(_)) => "pending",
        (None, None) => "given_up",
    };
    json!({
        "id": d.id, "eventId": d.event_id, "callId": d.call, "url": d.url, "own": d.own, "state": state,
        "attempts": d.attempts, "nextTryAt": d.due_at.map(rfc3339), "doneAt": d.done_at.map(rfc3339),
        "lastError": d.last_error,
    })
}
