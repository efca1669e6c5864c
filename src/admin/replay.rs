//! The inbox of webhooks and the outbox to the app: listed, and replayed one by one or all that a filter lets through.

use serde_json::{Value, json};

use super::auth::Requester;
use super::listing::{cursor_of, page, query_value, secs_as_ms};
use super::operator::{Act, delivery, event};
use super::{Admin, Answer, LIST_MAX, Problem, bad, limit_of, not_found, ok};
use crate::clock::UnixMs;
use crate::store::{EventFilter, Inbox, Outbox, OutboxDelivery, Replayable};

/// The maximum of events that one request replays: it answers within seconds, and its client goes on.
const REPLAYS_MAX: u32 = 100;
/// Failures of a replay that are told one by one.
const ERRORS_MAX: usize = 20;

/// Returns the filter that a query sets on the inbox and the outbox.
fn filter_of(query: &str, now_ms: UnixMs) -> Result<EventFilter, Problem> {
    Ok(EventFilter {
        account: query_value(query, "account"),
        event: query_value(query, "event"),
        call: query_value(query, "call"),
        business: query_value(query, "business"),
        from_ms: secs_as_ms(query, "since_secs")?.map(|ms| now_ms - ms),
        before_ms: secs_as_ms(query, "older_secs")?.map(|ms| now_ms - ms),
        after: cursor_of(query)?,
    })
}

fn replayable(query: &str) -> Result<Replayable, Problem> {
    match query_value(query, "state").as_deref() {
        None | Some("failed") => Ok(Replayable::Failed),
        Some("parked") => Ok(Replayable::Parked),
        Some("given_up") => Ok(Replayable::GivenUp),
        Some("settled") => Ok(Replayable::Settled),
        Some(_) => Err(bad("state is one of failed, parked, given_up, settled")),
    }
}

impl Admin {
    /// The inbox, and deliveries that are pending or were given up.
    pub(super) async fn inbox_list(&self, query: &str) -> Answer {
        let which = match query_value(query, "state").as_deref() {
            None | Some("all") => Inbox::All,
            Some("unsettled") => Inbox::Unsettled,
            Some("open") => Inbox::Open,
            Some("settled") => Inbox::Settled,
            Some("parked") => Inbox::Parked,
            Some(_) => return Err(bad("state is one of all, unsettled, open, settled, parked")),
        };
        let filter = filter_of(query, self.calls.lifecycle.clock.now_ms())?;
        let (store, limit) = (&self.calls.lifecycle.store, limit_of(query));
        let cut = limit as usize;
        let events = store.inbox(which, &filter, limit + 1).await?;
        let (events, next) = page(events, cut, |one| (one.received_at, one.id.as_str()));
        let pending = store.outbox(Outbox::Pending, &filter, limit + 1).await?;
        let given_up = store.outbox(Outbox::GivenUp, &filter, limit + 1).await?;
        let shown = |list: &[OutboxDelivery]| list.iter().take(cut).map(delivery).collect::<Vec<Value>>();
        ok(&json!({
            "events": events.iter().map(event).collect::<Vec<_>>(), "next": next,
            "pending": shown(&pending), "morePending": pending.len() > cut,
            "givenUp": shown(&given_up), "moreGivenUp": given_up.len() > cut,
        }))
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

    pub(super) async fn inbox_replay(&self, id: &str, reason: Option<&str>, who: &Requester) -> Answer {
        ok(&self.replayed(id, reason, who).await?)
    }

    async fn replayed(&self, id: &str, reason: Option<&str>, who: &Requester) -> Result<Value, Problem> {
        self.audit(who, Act::new("replay", id).because(reason)).await?;
        let replayed = self.program()?.replay_event(id).await?;
        let replayed = replayed.ok_or_else(|| not_found("no event of this id is on record"))?;
        Ok(json!({"event": replayed.event.as_ref().map(event), "deliveries": replayed.deliveries}))
    }

    /// Lists the replayable events that a filter lets through, the oldest first.
    pub(super) async fn list_replayable(&self, query: &str) -> Answer {
        let (matching, ids, next) = self.find_replayable(query, LIST_MAX).await?;
        ok(&json!({"matching": matching, "ids": ids, "next": next}))
    }

    async fn find_replayable(&self, query: &str, limit: u32) -> Result<(u64, Vec<String>, Option<String>), Problem> {
        let (which, mut filter) = (replayable(query)?, filter_of(query, self.calls.lifecycle.clock.now_ms())?);
        if let Some((at, _)) = &filter.after {
            // The window moves on from page to page; what it held at first is not left out.
            filter.from_ms = filter.from_ms.map(|from| from.min(*at));
        }
        let store = &self.calls.lifecycle.store;
        let matching = store.count_replayable(which, &filter).await?;
        let found = store.replayable(which, &filter, limit + 1).await?;
        let (found, next) = page(found, limit as usize, |(at, id)| (*at, id.as_str()));
        Ok((matching, found.into_iter().map(|(_, id)| id).collect(), next))
    }

    /// Replays it, so many at once.
    pub(super) async fn replay_matching(&self, query: &str, reason: Option<&str>, who: &Requester) -> Answer {
        let (matching, ids, next) = self.find_replayable(query, REPLAYS_MAX).await?;
        let (mut done, mut failed, mut errors) = (0_u32, 0_u32, vec![]);
        for id in &ids {
            let message = match self.replayed(id, reason, who).await {
                Ok(replayed) => failure(&replayed["event"]),
                // Whatever comes after it would fail, too.
                Err(Problem::Store(error)) if done == 0 => return Err(error.into()),
                Err(problem) => Some(problem.message()),
            };
            match message {
                None => done += 1,
                Some(message) => {
                    failed += 1;
                    if errors.len() < ERRORS_MAX {
                        errors.push(json!({"id": id, "message": message}));
                    }
                }
            }
        }
        ok(&json!({"matching": matching, "replayed": done, "failed": failed, "errors": errors, "next": next}))
    }
}

/// The reason why a replayed webhook is not applied, if it is not.
fn failure(event: &Value) -> Option<String> {
    let is_open = event.is_object() && event["outcome"].is_null();
    match event["error"].as_str() {
        Some(error) if is_open => Some(error.to_owned()),
        None if is_open && !event["parkedAt"].is_null() => Some("its body is no longer stored".to_owned()),
        _ => None,
    }
}
