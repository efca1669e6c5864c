//! What operators see and do: the inbox and its deliveries, what is parked, what a business left behind, and who did what.

use async_trait::async_trait;
use serde::Serialize;

use super::{Bypass, NewEvent, Result, Route};
use crate::clock::UnixMs;
use crate::ids::CallId;

/// Which webhooks of the inbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inbox {
    /// All.
    All,
    /// Those that are not applied yet.
    Unsettled,
    /// Those that are not tried any more.
    Parked,
}

/// Which deliveries of the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outbox {
    /// Those that are still to be made.
    Pending,
    /// Those that are not tried any more.
    GivenUp,
}

/// A webhook of the inbox, without its headers and body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InboxEvent {
    /// Its id.
    pub id: String,
    /// The account that it came from.
    pub account: String,
    /// The webhook of the description.
    pub webhook: String,
    /// The event of the description.
    pub event: String,
    /// When it came.
    pub received_at: UnixMs,
    /// Its path, without the query.
    pub path: String,
    /// Its body is there.
    pub has_body: bool,
    /// The spool that has its body.
    pub spool: Option<String>,
    /// Its call.
    pub call: Option<String>,
    /// What came of it.
    pub outcome: Option<String>,
    /// How often it was applied again.
    pub tries: u32,
    /// When it is applied again.
    pub due_at: Option<UnixMs>,
    /// Since when it is not tried any more.
    pub parked_at: Option<UnixMs>,
    /// Why it could not be applied.
    pub error: Option<String>,
}

/// A delivery of the outbox, without its headers and body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OutboxDelivery {
    /// Its id.
    pub id: String,
    /// The webhook that it came from; of an event of our own, its id.
    pub event_id: String,
    /// The account that its webhook came from; none for an event of our own.
    pub account: Option<String>,
    /// When its webhook came; of an event of our own, when its id was made.
    pub received_at: Option<UnixMs>,
    /// The call that it speaks of.
    pub call: Option<String>,
    /// Where, without the query; empty: to where events of our own go.
    pub url: String,
    /// It is an event of our own.
    pub own: bool,
    /// How it goes.
    pub route: Route,
    /// How often it was tried.
    pub attempts: u32,
    /// When it is tried next.
    pub due_at: Option<UnixMs>,
    /// When the app took it.
    pub done_at: Option<UnixMs>,
    /// Why the last try failed.
    pub last_error: Option<String>,
}

/// Something that an operator did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditRecord {
    /// A fresh id.
    pub id: String,
    /// When.
    pub at: UnixMs,
    /// Who: the subject of the token, or `local`.
    pub who: String,
    /// Where they came from: an address, the Unix socket and its user, or this process.
    pub from: String,
    /// What: `put business`, `delete business`, `reload`, `hangup`, `release`, `fetch`, `replay`, `purge`, `reconcile`, `put do-not-call`, `delete do-not-call`, `create run`,
    /// `bypass on`, `bypass off`, `load run`, `pause run`, `resume run`, `cancel run`, `retry run`.
    pub what: String,
    /// Of which call, business, event or run; of whose list.
    pub target: String,
    /// Why, where that was asked.
    pub reason: Option<String>,
    /// What was there before, as JSON, where that is known.
    pub before: Option<String>,
    /// What is there after, as JSON.
    pub after: Option<String>,
}

impl AuditRecord {
    /// A record with a fresh id.
    pub fn new(at: UnixMs, who: &str, from: &str, what: &str, target: &str) -> Self {
        // Postgres keeps no NUL in a text.
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

/// What of a business was deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Purged {
    /// Calls, with their ids, records and transcripts.
    pub calls: u64,
    /// Webhooks of these calls.
    pub events: u64,
    /// Deliveries of these calls and webhooks.
    pub deliveries: u64,
    /// Refusals.
    pub refusals: u64,
    /// Runs that are over, with their leads.
    pub runs: u64,
    /// Schedules.
    pub schedules: u64,
    /// Calls that are up, which stay.
    pub open: Vec<CallId>,
}

/// The part of a [`super::Store`] that is for operators.
#[async_trait]
pub trait Desk: Send + Sync {
    /// The latest webhooks.
    async fn inbox(&self, which: Inbox, limit: u32) -> Result<Vec<InboxEvent>>;

    /// How many webhooks are parked.
    async fn parked(&self) -> Result<u64>;

    /// A webhook.
    async fn inbox_event(&self, id: &str) -> Result<Option<InboxEvent>>;

    /// A webhook as it came.
    async fn stored_event(&self, id: &str) -> Result<Option<NewEvent>>;

    /// The latest deliveries.
    async fn outbox(&self, which: Outbox, limit: u32) -> Result<Vec<OutboxDelivery>>;

    /// What the app is told of a webhook, or as an event of our own.
    async fn deliveries_of(&self, event_id: &str) -> Result<Vec<OutboxDelivery>>;

    /// Counts that a webhook is about to be applied again; how often it was, this time included.
    async fn begin_try(&self, event_id: &str) -> Result<u32>;

    /// Notes why a webhook could not be applied. Without a time for the next try it is parked.
    async fn failed_try(&self, event_id: &str, why: &str, due_at: Option<UnixMs>, now_ms: UnixMs) -> Result<()>;

    /// Makes a webhook as if it had not been applied, however often it was tried. `false`: there is none with a body.
    async fn reopen(&self, event_id: &str) -> Result<bool>;

    /// Makes every delivery of a webhook due once more, under its old id, whatever came of it. How many there are.
    async fn redeliver(&self, event_id: &str, at_ms: UnixMs) -> Result<u64>;

    /// Forgets a webhook's body, once it is applied, and those of its deliveries that are done.
    async fn forget_body(&self, event_id: &str) -> Result<()>;

    /// The body of a webhook that came again is in this spool now, if it was not applied yet.
    async fn set_spool(&self, event_id: &str, spool: &str) -> Result<()>;

    /// Forgets that a webhook's body is in this spool, if nobody needs it any more: it is applied, waits for no call, and the app has
    /// it. `true`: nobody needs the file there.
    async fn clear_spool(&self, event_id: &str, spool: &str) -> Result<bool>;

    /// Parks webhooks and gives deliveries up that were due before a time and whose body is in another spool than this: who has it
    /// is gone. How many there were.
    async fn park_unreachable(&self, before_ms: UnixMs, spool: &str, why: &str, now_ms: UnixMs) -> Result<u64>;

    /// Notes what an operator is about to do.
    async fn audit(&self, record: AuditRecord) -> Result<()>;

    /// Switches the bypass on, or off.
    async fn set_bypass(&self, bypass: Option<Bypass>) -> Result<()>;

    /// The bypass that was last switched on and not off, over or not.
    async fn bypass(&self) -> Result<Option<Bypass>>;

    /// The latest of what operators did.
    async fn latest_audit(&self, limit: u32) -> Result<Vec<AuditRecord>>;

    /// Deletes what a business left behind: ended calls with their ids, records, webhooks and deliveries; refusals; runs that are over, and schedules. Of a webhook
    /// whose body is in a spool an empty row stays, which tells the spool that the file must go. Little by little: other writes get their turn. Where it fails in between it can be done again.
    async fn purge_business(&self, business: &str) -> Result<Purged>;
}
