//! Queries and actions of operators: the inbox and its deliveries, parked webhooks, data of a business, and the audit log.

use async_trait::async_trait;
use serde::Serialize;

use super::{Bypass, Cursor, DeliveryRoute, EventFilter, NewEvent, Result};
use crate::clock::UnixMs;
use crate::ids::CallId;
use crate::words::words;

/// A filter of the inbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inbox {
    /// All.
    All,
    /// Not applied yet.
    Unsettled,
    /// Not applied yet, or parked.
    Open,
    /// Applied, or known to change nothing.
    Settled,
    /// Not retried any more.
    Parked,
}

/// A filter of the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outbox {
    /// Not delivered yet.
    Pending,
    /// Not retried any more.
    GivenUp,
}

/// The events that can be replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replayable {
    /// Parked webhooks, and events with a delivery that was given up.
    Failed,
    /// Parked webhooks.
    Parked,
    /// Events with a delivery that was given up: webhooks, and ringfence's own events.
    GivenUp,
    /// Settled webhooks whose body is stored.
    Settled,
}

/// A webhook of the inbox, without its headers and body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InboxEvent {
    /// The webhook's id.
    pub id: String,
    /// The account that it came from.
    pub account: String,
    /// The webhook's name in the description.
    pub webhook: String,
    /// The event's name in the description.
    pub event: String,
    /// The time at which it was received.
    pub received_at: UnixMs,
    /// The webhook's path, without the query.
    pub path: String,
    /// Whether its body is stored.
    pub has_body: bool,
    /// The spool that has its body.
    pub spool: Option<String>,
    /// The webhook's call.
    pub call: Option<String>,
    /// The webhook's outcome.
    pub outcome: Option<String>,
    /// Attempts to apply it again.
    pub tries: u32,
    /// The time at which it is retried.
    pub due_at: Option<UnixMs>,
    /// Since when it is parked.
    pub parked_at: Option<UnixMs>,
    /// The reason why the webhook is parked.
    pub park_reason: Option<ParkReason>,
    /// The reason why it could not be applied.
    pub error: Option<String>,
}

words!(
    /// The reason why a webhook is parked, or a delivery is given up.
    ParkReason {
        /// The attempts failed.
        Failed = "failed",
        /// The body is in the spool of a process that is gone. Work on it is resumed when that process returns.
        SpoolUnreachable = "spool_unreachable",
    }
);

/// A delivery of the outbox, without its headers and body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OutboxDelivery {
    /// The delivery's id.
    pub id: String,
    /// The delivery's webhook; of one of ringfence's own events, that event's id.
    pub event_id: String,
    /// The account that its webhook came from; none for an event of our own.
    pub account: Option<String>,
    /// The time at which its webhook came; of an event of our own, the time of its id.
    pub received_at: Option<UnixMs>,
    /// The call that it speaks of.
    pub call: Option<String>,
    /// The delivery's URL, without the query; empty for ringfence's own events.
    pub url: String,
    /// Whether it is one of ringfence's own events.
    pub own: bool,
    /// The delivery's route.
    pub route: DeliveryRoute,
    /// Attempts so far.
    pub attempts: u32,
    /// The time at which it is attempted next.
    pub due_at: Option<UnixMs>,
    /// The time at which the app accepted it.
    pub done_at: Option<UnixMs>,
    /// The reason why the last attempt failed.
    pub last_error: Option<String>,
    /// The reason why the delivery was given up.
    pub park_reason: Option<ParkReason>,
}

/// An entry of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditRecord {
    /// A fresh id.
    pub id: String,
    /// The time at which it happened.
    pub at: UnixMs,
    /// The operator: the subject of the token, or `local`.
    pub who: String,
    /// The origin: an address, the Unix socket and its user, or this process.
    pub from: String,
    /// The action: `put business`, `delete business`, `reload`, `hangup`, `release`, `fetch`, `replay`, `purge`, `reconcile`,
    /// `put do-not-call`, `delete do-not-call`, `create run`, `load run`, `pause run`, `resume run`, `cancel run`, `retry run`.
    pub what: String,
    /// The call, business, event, run or list.
    pub target: String,
    /// The given reason, if any.
    pub reason: Option<String>,
    /// The state before, as JSON, if known.
    pub before: Option<String>,
    /// The state after, as JSON.
    pub after: Option<String>,
}

impl AuditRecord {
    /// An entry with a fresh id.
    pub fn new(at: UnixMs, who: &str, from: &str, what: &str, target: &str) -> Self {
        // Postgres allows no NUL in a text.
        let kept = |text: &str| text.replace('\0', "\u{FFFD}");
        Self {
            id: format!("au_{}", ulid::Ulid::new().to_string().to_lowercase()),
            at,
            who: kept(who),
            from: from.to_owned(),
            what: what.to_owned(),
            target: kept(target),
            reason: None,
            before: None,
            after: None,
        }
    }
}

/// The deleted data of a business.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Purged {
    /// Calls, with their ids, records and transcripts.
    pub calls: u64,
    /// Webhooks of these calls.
    pub events: u64,
    /// Deliveries of these calls and webhooks.
    pub deliveries: u64,
    /// Rejections.
    #[serde(rename = "refusals")]
    pub rejections: u64,
    /// Finished runs, with their leads.
    pub runs: u64,
    /// Schedules.
    pub schedules: u64,
    /// Open calls, which are kept.
    pub open: Vec<CallId>,
}

/// The part of a [`super::Store`] that is for operators.
#[async_trait]
pub trait OperatorStore: Send + Sync {
    /// The latest webhooks that a filter lets through, the latest first.
    async fn inbox(&self, which: Inbox, filter: &EventFilter, limit: u32) -> Result<Vec<InboxEvent>>;

    /// The number of parked webhooks.
    async fn parked(&self) -> Result<u64>;

    /// A webhook.
    async fn inbox_event(&self, id: &str) -> Result<Option<InboxEvent>>;

    /// A webhook as received.
    async fn stored_event(&self, id: &str) -> Result<Option<NewEvent>>;

    /// The latest deliveries that a filter lets through, the latest first.
    async fn outbox(&self, which: Outbox, filter: &EventFilter, limit: u32) -> Result<Vec<OutboxDelivery>>;

    /// Times and ids of what can be replayed and a filter lets through: the oldest first, after the filter's place.
    async fn replayable(&self, which: Replayable, filter: &EventFilter, limit: u32) -> Result<Vec<Cursor>>;

    /// The number of those in all.
    async fn count_replayable(&self, which: Replayable, filter: &EventFilter) -> Result<u64>;

    /// The deliveries of a webhook, or of one of ringfence's own events.
    async fn deliveries_of(&self, event_id: &str) -> Result<Vec<OutboxDelivery>>;

    /// Counts an attempt to apply a webhook; returns the number, including this one.
    async fn count_try(&self, event_id: &str) -> Result<u32>;

    /// Records why a webhook could not be applied. Without a time for the next attempt it is parked.
    async fn record_failed_try(&self, event_id: &str, why: &str, due_at: Option<UnixMs>, now_ms: UnixMs) -> Result<()>;

    /// Resets a webhook to unapplied, whatever its attempts. `false`: there is none with a body.
    async fn reopen(&self, event_id: &str) -> Result<bool>;

    /// Makes every delivery of a webhook due again, under its id, whatever its result was. Returns their number.
    async fn redeliver(&self, event_id: &str, at_ms: UnixMs) -> Result<u64>;

    /// Deletes the body of an applied webhook, and those of its finished deliveries.
    async fn delete_body(&self, event_id: &str) -> Result<()>;

    /// Records that the body of a repeated webhook is in this spool, if it was not applied yet.
    async fn set_spool(&self, event_id: &str, spool: &str) -> Result<()>;

    /// Removes the reference to a body in this spool, if it is no longer needed: it is applied, waits for no call, and was
    /// delivered. `true`: the file is not needed.
    async fn clear_spool(&self, event_id: &str, spool: &str) -> Result<bool>;

    /// Parks webhooks and gives up deliveries that were due before a time and whose body is in another spool, whose process is
    /// gone. Returns their number.
    async fn park_unreachable(&self, before_ms: UnixMs, spool: &str, why: &str, now_ms: UnixMs) -> Result<u64>;

    /// Records what an operator is about to do.
    async fn audit(&self, record: AuditRecord) -> Result<()>;

    /// Switches the bypass on, or off.
    async fn set_bypass(&self, bypass: Option<Bypass>) -> Result<()>;

    /// The bypass that was last switched on and not off, over or not.
    async fn bypass(&self) -> Result<Option<Bypass>>;

    /// The latest of what operators did.
    async fn latest_audit(&self, limit: u32) -> Result<Vec<AuditRecord>>;

    /// Deletes the data of a business: ended calls with their ids, records, webhooks and deliveries; rejections; finished runs,
    /// and schedules. Of a webhook with a spooled body an empty row stays, so that the spool deletes the file. Works in small
    /// steps, so that other writes get their turn; may be repeated after a failure.
    async fn purge_business(&self, business: &str) -> Result<Purged>;
}
