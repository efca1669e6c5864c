//! Post-call records, and deferred webhooks.

use super::message::EventOutcome;
use async_trait::async_trait;
use serde::Serialize;

use super::{AppNotice, Reach, Result, UnsettledEvents};
use crate::clock::UnixMs;
use crate::ids::{Alias, CallId};
use crate::provider::description::PostCall;

/// A part of a post-call record, or all of it.
#[derive(Debug, Clone)]
pub struct PutPostCall {
    /// The call.
    pub call: CallId,
    /// The fields. Missing ones stay unchanged.
    pub found: PostCall,
    /// The record is complete.
    pub complete: bool,
    /// The record's source: `webhook`, `poll`, `operator`.
    pub by: &'static str,
    /// Now.
    pub at_ms: UnixMs,
    /// The time at which the rest is fetched, if it is incomplete. `None`: never.
    pub due_at: Option<UnixMs>,
    /// Sends the app an event when it is complete.
    pub notice: AppNotice,
}

/// The outcome of storing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// No such call.
    NoCall,
    /// Stored; still incomplete, or complete before.
    Kept,
    /// Complete, for the first time.
    Complete,
}

/// A stored post-call record.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StoredPostCall {
    /// The fields.
    #[serde(flatten)]
    pub found: PostCall,
    /// The time at which it was complete.
    pub recorded_at: Option<UnixMs>,
    /// The source of its last part.
    pub recorded_by: Option<String>,
    /// Unsuccessful fetches so far, without operators'.
    pub tries: u32,
    /// The time at which it is fetched again.
    pub due_at: Option<UnixMs>,
    /// The reason why the last fetch failed.
    pub last_error: Option<String>,
}

/// Calls of other accounts that are skipped to find those of one, at most.
pub(super) const LATEST: u32 = 2_000;

/// A query of a webhook's health.
#[derive(Debug, Clone)]
pub struct WebhookHealthQuery {
    /// The webhook's account.
    pub account: String,
    /// The webhook's events that bring records, as named in the inbox.
    pub events: Vec<String>,
    /// Earlier webhooks and calls are ignored.
    pub since_ms: UnixMs,
    /// Calls that ended later are ignored.
    pub until_ms: UnixMs,
    /// The number of latest calls.
    pub calls: u32,
}

/// The result of that query.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WebhookHealth {
    /// The time at which it last arrived for one of these calls.
    pub last_at: Option<UnixMs>,
    /// The number of latest calls in a row without it.
    pub missed_in_a_row: u32,
}

impl WebhookHealth {
    /// `came`: for the latest calls, last one first, when it arrived.
    pub(super) fn new(came: &[Option<UnixMs>]) -> Self {
        let missed = came.iter().take_while(|came| came.is_none()).count();
        Self {
            last_at: came.iter().flatten().max().copied(),
            missed_in_a_row: u32::try_from(missed).unwrap_or(u32::MAX),
        }
    }
}

/// Treatment of the body of a webhook whose call never came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpiredBody {
    /// The body is kept, as long as the webhook.
    Keep,
    /// The body is deleted.
    Delete,
}

/// The part of a [`super::Store`] that keeps post-call records.
#[async_trait]
pub trait Records: Send + Sync {
    /// Stores a part of a post-call record. Without a time of its own a record's end is the call's.
    async fn put_post_call(&self, put: PutPostCall) -> Result<PutOutcome>;

    /// The stored record of a call.
    async fn post_call(&self, call: &CallId) -> Result<Option<StoredPostCall>>;

    /// Calls that ended within a period, without a record and without a scheduled fetch; with the time of their end, oldest
    /// first. Rejected calls and creates that made no call have no record.
    async fn unrecorded(&self, after_ms: UnixMs, until_ms: UnixMs, limit: u32) -> Result<Vec<(CallId, UnixMs)>>;

    /// Schedules fetches of these calls' records from `due_at` on.
    async fn expect_post_calls(&self, calls: Vec<CallId>, due_at: UnixMs) -> Result<()>;

    /// Calls whose fetch is due, with its number of attempts; longest due first.
    async fn due_post_calls(&self, now_ms: UnixMs, limit: u32) -> Result<Vec<(CallId, u32)>>;

    /// Records a failed fetch, and the time of the next; `None`: no more.
    async fn record_failed_fetch(&self, call: &CallId, why: &str, due_at: Option<UnixMs>) -> Result<()>;

    /// The health of a webhook, by the answered and ended calls of its account.
    async fn webhook_health(&self, asked: WebhookHealthQuery) -> Result<WebhookHealth>;

    /// Defers a webhook until the call with this id is known.
    async fn defer_until_known(&self, event_id: &str, alias: &Alias) -> Result<()>;

    /// Deferred webhooks received since a time whose call is known by now.
    async fn found_events(&self, since_ms: UnixMs, limit: u32, reach: &Reach) -> Result<UnsettledEvents>;

    /// Closes deferred webhooks received before a time.
    async fn expire_deferred(&self, before_ms: UnixMs, body: ExpiredBody) -> Result<()>;

    /// Records that a deferred webhook was applied to its call, or cannot be (`outcome`).
    async fn mark_matched(&self, event_id: &str, call: Option<&CallId>, outcome: EventOutcome) -> Result<()>;
}
