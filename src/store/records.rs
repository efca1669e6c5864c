//! What a provider tells of a call after its end, and webhooks that wait for the call they tell of.

use async_trait::async_trait;
use serde::Serialize;

use super::{Reach, Result, Waiting};
use crate::clock::UnixMs;
use crate::ids::{Alias, CallId};
use crate::provider::description::PostCall;

/// A part of a call's record, or all of it.
#[derive(Debug, Clone)]
pub struct PutPostCall {
    /// The call.
    pub call: CallId,
    /// What was told. What is missing here stays as it was.
    pub found: PostCall,
    /// The provider has told all.
    pub complete: bool,
    /// Where it came from: `webhook`, `poll`, `operator`.
    pub by: &'static str,
    /// Now.
    pub at_ms: UnixMs,
    /// When the provider is asked for the rest, unless all is told. `None`: it is not.
    pub due_at: Option<UnixMs>,
    /// The app is told by an event of our own when all is told.
    pub tell: bool,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// There is no such call.
    NoCall,
    /// It is kept; there is more to come, or all was told before.
    Kept,
    /// With this all is told, for the first time.
    Complete,
}

/// A call's record as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StoredPostCall {
    /// What was told.
    #[serde(flatten)]
    pub found: PostCall,
    /// When all was told.
    pub recorded_at: Option<UnixMs>,
    /// Where the last of it came from.
    pub recorded_by: Option<String>,
    /// How often the provider was asked of our own accord without telling all.
    pub tries: u32,
    /// When it is asked again.
    pub due_at: Option<UnixMs>,
    /// Why the last try came to nothing.
    pub last_error: Option<String>,
}

/// Calls of all accounts that are passed over for those of one, at most.
pub(super) const LATEST: u32 = 2_000;

/// Which webhook is looked for, and at which calls.
#[derive(Debug, Clone)]
pub struct HookAsked {
    /// Its account.
    pub account: String,
    /// Its events that bring records, as the inbox calls them.
    pub events: Vec<String>,
    /// What came or ended before is not looked at.
    pub since_ms: UnixMs,
    /// Calls that ended later are not looked at.
    pub until_ms: UnixMs,
    /// The latest calls, so many of them.
    pub calls: u32,
}

/// How a webhook came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HookCame {
    /// When it came last, for one of these calls.
    pub last_at: Option<UnixMs>,
    /// For how many of the latest calls in a row it did not.
    pub missed_in_a_row: u32,
}

impl HookCame {
    /// `came` says of the latest calls, the last one first, when it came for them.
    pub(super) fn new(came: &[Option<UnixMs>]) -> Self {
        let missed = came.iter().take_while(|came| came.is_none()).count();
        Self {
            last_at: came.iter().flatten().max().copied(),
            missed_in_a_row: u32::try_from(missed).unwrap_or(u32::MAX),
        }
    }
}

/// The part of a [`super::Store`] that keeps post-call records.
#[async_trait]
pub trait Records: Send + Sync {
    /// Takes up what was told of a call. Without a time of its own a record's end is the call's.
    async fn put_post_call(&self, put: PutPostCall) -> Result<Put>;

    /// What is kept of a call.
    async fn post_call(&self, call: &CallId) -> Result<Option<StoredPostCall>>;

    /// Calls that ended after a time and until another, of which nothing was told and nothing is expected yet; with when they
    /// ended, the oldest first. Orders that made no call and calls that were refused have no record.
    async fn unrecorded(&self, after_ms: UnixMs, until_ms: UnixMs, limit: u32) -> Result<Vec<(CallId, UnixMs)>>;

    /// Expects records of these calls: their providers are asked from `due_at` on.
    async fn expect_post_calls(&self, calls: Vec<CallId>, due_at: UnixMs) -> Result<()>;

    /// Calls whose provider is to be asked by now, with how often it was; the longest due first.
    async fn due_post_calls(&self, now_ms: UnixMs, limit: u32) -> Result<Vec<(CallId, u32)>>;

    /// Notes that a provider could not be asked, and when it is asked again; `None`: no more.
    async fn missed_post_call(&self, call: &CallId, why: &str, due_at: Option<UnixMs>) -> Result<()>;

    /// How a webhook has come lately, and for which calls of its account that were answered and are over.
    async fn hook_came(&self, asked: HookAsked) -> Result<HookCame>;

    /// Lets a webhook wait for the call that has this id.
    async fn defer_until_known(&self, event_id: &str, alias: &Alias) -> Result<()>;

    /// Settled webhooks that came since a time and whose call is known by now.
    async fn found_events(&self, since_ms: UnixMs, limit: u32, reach: &Reach) -> Result<Waiting>;

    /// Lets webhooks that came before a time wait no longer; with `forget`, their bodies go too.
    async fn expire_deferred(&self, before_ms: UnixMs, forget: bool) -> Result<()>;

    /// Notes that a webhook that waited was applied to its call, or cannot be (`outcome` says so).
    async fn mark_matched(&self, event_id: &str, call: Option<&CallId>, outcome: &str) -> Result<()>;
}
