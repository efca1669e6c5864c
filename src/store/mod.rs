//! Durable state: calls and their ids, the inbox of webhooks, the outbox to the app, rejections, businesses, bulk runs,
//! do-not-call lists.
//!
//! # The contract, which every back end keeps
//!
//! * A write that returned `Ok` is durable.
//! * [`Store::apply`] is one transaction: it reads the call, asks [`crate::call::next`], binds ids and writes. Two events of one call
//!   never interleave.
//! * News of an unknown call is stored under its ids. Whichever comes second, the news or the call, finds the other.
//! * [`Store::receive`] stores each event once, by its deduplication key.
//! * An open call's row is its lease: it has the limit keys that the call is counted under. An admission by a limiter counts only
//!   once it is recorded here, under the epoch that the pool has at that moment ([`GateState`]).

mod app_events;
mod bypass;
#[cfg(test)]
mod conformance;
mod decide;
mod do_not_call;
mod driver;
mod health;
mod journal;
mod listing;
mod membership;
pub mod migrations;
mod operator;
pub mod postgres;
mod queries;
mod records;
mod retention;
mod row;
mod rows;
pub mod runs;
pub mod schedules;
mod spool;
pub mod sqlite;
mod transcripts;
mod usage;
mod voucher;

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::admission::{AdmissionRequest, GateMode, GateState, LeaseRow, RateLog, Shortfall};
use crate::call::{EndProof, Event, Origin, Outcome, Phase, Source, Step};
use crate::clock::UnixMs;
use crate::ids::{AccountName, Alias, CallId, RefusalId};
use crate::policy::{Business, Facts, Policy};
pub use bypass::Bypass;
pub use do_not_call::{DoNotCallLists, EVERYBODY, ListChange, ListChanges, ListedNumber, NUMBERS_AT_ONCE};
pub use journal::Journal;
pub use listing::ListFilter;
pub use membership::{BEAT_EVERY_MS, Fleet, LIVE_MS, Living, OwnershipMode, Replica};
pub use operator::{AuditRecord, Desk, Inbox, InboxEvent, Outbox, OutboxDelivery, Purged};
pub use records::{HookAsked, HookCame, Put, PutPostCall, Records, StoredPostCall};
pub use retention::{Cursor, EndedCall, Retention, RetentionCutoffs, record_kept, text_kept};
pub use runs::Runs;
pub use schedules::Schedules;
pub use spool::{Spool, SpoolError, Spooled};
pub use transcripts::{
    IngestOutcome, NewUtterance, RECORDED, Ring, Transcripts, Utterance, UtteranceIngest, UtterancePosition,
    UtteranceRef, tells_more,
};
pub use voucher::{Contradiction, Voucher};

/// The alias kind of an app's own idempotency key. Unlike other ids it may move to another call, if its request provably made
/// none.
pub const KEY_KIND: &str = "idempotency_key";

/// An error of the store. Its texts name what to look at and contain no caller's data.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Nothing was written.
    #[error("the store failed: {0}")]
    Failed(String),
    /// It is unknown whether it was written: the connection was lost in the commit, or the file after it.
    #[error("the store may or may not have written: {0}")]
    Unknown(String),
    /// A row cannot be read: written by another version, or damaged.
    #[error("a record of the store cannot be read: {0}")]
    Damaged(String),
}

/// Equal requests that are considered for deduplication: an app that sends more of them within an hour wants a call for each.
pub const ORDERS_MAX: u32 = 200;

/// How long a claimed delivery is reserved, in milliseconds: longer than sending it may take. If its process dies, it is due
/// again afterwards.
pub const TAKEN_MS: i64 = 30_000;

/// A result of the store.
pub type Result<T> = std::result::Result<T, StoreError>;

/// The app's own status callback, which ringfence's own replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppCallback {
    /// Its URL, including the fragment.
    pub url: String,
    /// GET or POST.
    pub method: String,
    /// The requested events; empty: the provider's default, the end alone.
    pub events: Vec<String>,
}

/// A call record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CallRecord {
    /// Its id, also that of its lease.
    pub id: CallId,
    /// The attributes that policy selects by.
    #[serde(flatten)]
    pub facts: Facts,
    /// How ringfence learnt of it.
    pub origin: Origin,
    /// Its phase.
    pub phase: Phase,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Why it counts as over.
    pub proof: Option<EndProof>,
    /// It exists although it was rejected or had ended for us.
    pub over_limit: bool,
    /// The outcome of its create is unknown.
    pub unsettled: bool,
    /// No events will arrive for it: it is polled from its start.
    pub polled: bool,
    /// The slots that it holds: 1, or a batch's concurrent calls.
    pub slots: u32,
    /// When it was admitted.
    pub admitted_at: UnixMs,
    /// When it entered its phase.
    pub phase_at: UnixMs,
    /// When it is due for a look-up.
    pub deadline_at: Option<UnixMs>,
    /// When it was answered.
    pub answered_at: Option<UnixMs>,
    /// When it ended.
    pub ended_at: Option<UnixMs>,
    /// The last news of it.
    pub seen_at: UnixMs,
    /// The source of the last news.
    pub seen_by: Source,
    /// When a look-up first did not find it.
    pub absent_at: Option<UnixMs>,
    /// The app's own status callback.
    pub callback: Option<AppCallback>,
    /// The fingerprint of its create request.
    #[serde(skip)]
    pub fingerprint: Option<String>,
    /// The replica that recorded it; or the one that owns its request since a duplicate arrived there.
    pub replica: Option<String>,
    /// Its external ids.
    pub aliases: Vec<Alias>,
}

impl CallRecord {
    /// Whether it counts against its limits: all calls that are known to exist do.
    pub fn counts(&self) -> bool {
        self.origin != Origin::Unconfirmed
    }

    /// Its id of a kind.
    pub fn alias(&self, kind: &str) -> Option<&str> {
        self.aliases.iter().find(|a| a.kind == kind).map(|a| a.id.as_str())
    }

    /// All its ids of a kind: a call may be connected to several conversations in turn.
    pub fn ids_of<'r>(&'r self, kind: &'r str) -> impl Iterator<Item = &'r str> {
        self.aliases.iter().filter(move |a| a.kind == kind).map(|a| a.id.as_str())
    }
}

/// A call to be recorded.
#[derive(Debug, Clone)]
pub struct NewCall {
    /// Its id.
    pub id: CallId,
    /// The attributes that policy selects by.
    pub facts: Facts,
    /// How ringfence learnt of it.
    pub origin: Origin,
    /// Its phase.
    pub phase: Phase,
    /// It exists although a limit is full.
    pub over_limit: bool,
    /// No events will arrive for it: it is polled from its start.
    pub polled: bool,
    /// The slots that it holds.
    pub slots: u32,
    /// Now.
    pub at_ms: UnixMs,
    /// When it is due for a look-up.
    pub deadline_at: UnixMs,
    /// The app's own status callback.
    pub callback: Option<AppCallback>,
    /// The fingerprint of its create request.
    pub fingerprint: Option<String>,
    /// The limit keys that it is counted under (see [`crate::admission::keys`]): they make its open row a lease.
    pub keys: Vec<String>,
    /// The replica that records it.
    pub replica: Option<String>,
    /// Sends the app an event.
    pub tell: bool,
    /// Ids that are known already. If one of them belongs to another call, nothing is written. An id of ringfence's own kind
    /// names the first record of the same call, which was given up: its ids move to this one.
    pub aliases: Vec<Alias>,
}

/// The outcome of recording a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InsertOutcome {
    /// It is recorded. News that arrived before it is returned, to be applied.
    New(Option<Event>),
    /// One of its ids belongs to this call: it is the same call.
    Known(CallId),
    /// The pool's epoch is not the one of its admission; nothing was written.
    Outdated(GateState),
}

/// The outcome of an admission by the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdmitOutcome {
    /// It is recorded.
    New {
        /// Slots that were granted.
        slots: u32,
        /// In observe mode: what would have rejected it.
        would: Option<Shortfall>,
        /// News that waited under its ids, to be applied.
        news: Option<Event>,
    },
    /// One of its ids belongs to this call: it is the same call.
    Known(CallId),
    /// A limit was short. Nothing was written.
    Refused(Shortfall),
    /// The store does not decide, or not under that epoch any more. Nothing was written.
    Outdated(GateState),
}

/// The outcome of counting an unconfirmed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirmed {
    /// It counts now.
    Now,
    /// It counted before, has ended, or is not recorded.
    Before,
    /// The pool's epoch is not the given one; nothing was written.
    Outdated(GateState),
}

/// The result of incrementing the epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochBump {
    /// The new state.
    pub state: GateState,
    /// Every open call, counted by the given policy.
    pub held: Vec<LeaseRow>,
    /// The logs of rates, by key.
    pub rates: Vec<(String, RateLog)>,
}

/// A recorded create request, as deduplication at another replica sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderRecord {
    /// Its call.
    pub id: CallId,
    /// Its call's phase.
    pub phase: Phase,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Its outcome is unknown.
    pub unsettled: bool,
    /// Its client disconnected before the response.
    pub undelivered: bool,
    /// The replica that owns it.
    pub replica: Option<String>,
    /// When it was admitted.
    pub admitted_at: UnixMs,
    /// When it entered its phase.
    pub phase_at: UnixMs,
    /// When it ended.
    pub ended_at: Option<UnixMs>,
    /// Milliseconds since its replica's last heartbeat, by the store's clock. `None`: the replica deregistered, or is long gone.
    pub silent_ms: Option<i64>,
}

/// A provider's response to a create, kept for duplicates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateAnswer {
    /// The fingerprint of its create request.
    pub fingerprint: String,
    /// Its status.
    pub status: u16,
    /// Its headers, each byte of a value as a Latin-1 character.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
}

/// A change of one call.
#[derive(Debug, Clone)]
pub struct Change {
    /// The call.
    pub call: CallId,
    /// What happened, if anything.
    pub event: Option<Event>,
    /// Ids learnt.
    pub bind: Vec<Alias>,
    /// The voucher; `None`: ringfence itself queried the provider.
    pub by: Option<Voucher>,
    /// The source of the news.
    pub seen_by: Source,
    /// Now.
    pub at_ms: UnixMs,
    /// The time until the next look-up, for each phase that the call may enter.
    pub deadlines: crate::call::Deadlines,
    /// Marks the create's outcome as unknown, or as known again.
    pub unsettled: Option<bool>,
    /// The replica that answers the request's client with "unknown", where several share the store. The real outcome is
    /// undelivered by that: until it is delivered, the request may be retried. No effect if another replica owns the request by
    /// now.
    pub untold_by: Option<String>,
    /// Marks the call as one that exists although it was rejected or had ended for us.
    pub over_limit: Option<bool>,
    /// Records that a look-up did not find it (`true`) or found it again.
    pub absent: Option<bool>,
    /// The provider's response to the create, if it is kept.
    pub answer: Option<CreateAnswer>,
    /// Sends the app an event.
    pub tell: bool,
}

impl Change {
    /// An empty change.
    pub fn of(call: &CallId, seen_by: Source, at_ms: UnixMs, deadlines: &crate::call::Deadlines) -> Self {
        Self {
            call: call.clone(),
            event: None,
            bind: vec![],
            by: None,
            seen_by,
            at_ms,
            deadlines: deadlines.clone(),
            unsettled: None,
            untold_by: None,
            over_limit: None,
            absent: None,
            answer: None,
            tell: false,
        }
    }
}

/// The outcome of a change.
#[derive(Debug, Clone)]
pub struct ApplyOutcome {
    /// The step, including news that waited under the ids.
    pub step: Step,
    /// The record after it.
    pub record: CallRecord,
    /// Ids that belong to another call: two records of one call, or a forged id.
    pub conflicts: Vec<(Alias, CallId)>,
    /// Why it was not applied: it is not about this call.
    pub contradiction: Option<Contradiction>,
    /// It reported the end of a leg: the carrier still has the call, and has to be queried.
    pub ended_a_part: bool,
}

/// A webhook as received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewEvent {
    /// A fresh id.
    pub id: String,
    /// The account that it came from.
    pub account: String,
    /// The webhook's name in the description.
    pub webhook: String,
    /// The event's name in the description.
    pub event: String,
    /// Two deliveries with one key are one event.
    pub dedupe_key: Option<String>,
    /// When it was received.
    pub received_at: UnixMs,
    /// Its method.
    pub method: String,
    /// Its path and query.
    pub path: String,
    /// Its headers, credentials left out.
    pub headers: Vec<(String, String)>,
    /// Its body; `None` if it is too large for the database.
    #[serde(skip)]
    pub body: Option<Vec<u8>>,
    /// The spool that has its body.
    pub spool: Option<String>,
}

/// The bodies that a process can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// Those in its spool, by the spool's name.
    pub spool: String,
    /// And those in the database.
    pub record: bool,
}

/// Webhooks to be applied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Readable ones.
    pub events: Vec<NewEvent>,
    /// Unreadable ones, with the reason.
    pub damaged: Vec<(String, String)>,
    /// The position of the last of both; `None`: there are none.
    pub last: Option<Cursor>,
}

/// The outcome of storing a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReceiveOutcome {
    /// It is new.
    New,
    /// It was stored before; with its outcome, if it was applied.
    Before {
        /// The id under which it was stored.
        id: String,
        /// Its outcome.
        outcome: Option<String>,
    },
}

/// How a delivery is routed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// To the app's configured address.
    #[default]
    App,
    /// To a URL that an app chose, over the network.
    Callback,
    /// To such a URL of the app itself: it goes to the app's configured address.
    Forwarded,
}

impl Route {
    /// The word in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::App => "app",
            Self::Callback => "callback",
            Self::Forwarded => "forwarded",
        }
    }
}

impl std::str::FromStr for Route {
    type Err = crate::call::UnknownWord;

    fn from_str(word: &str) -> std::result::Result<Self, Self::Err> {
        let all = [Self::App, Self::Callback, Self::Forwarded];
        all.into_iter().find(|one| one.as_str() == word).ok_or_else(|| crate::call::UnknownWord(word.to_owned()))
    }
}

/// A notification for the app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// A fresh id; the app sees it in `X-Ringfence-Delivery`.
    pub id: String,
    /// The webhook that it came from.
    pub event_id: String,
    /// Its call: deliveries of one call are sent in order, as long as none fails.
    pub call: Option<String>,
    /// Its route.
    pub route: Route,
    /// Its URL; of a callback, as the app wrote it.
    pub url: String,
    /// Its method.
    pub method: String,
    /// Its headers.
    pub headers: Vec<(String, String)>,
    /// Its body; empty if a spool has it.
    pub body: Vec<u8>,
    /// The spool that has its body.
    pub spool: Option<String>,
    /// Attempts so far.
    pub attempts: u32,
}

impl Delivery {
    /// Whether it is one of ringfence's own events: its URL and signature are set when it is sent.
    pub fn is_own(&self) -> bool {
        self.url.is_empty()
    }
}

/// A recorded rejection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefusalRecord {
    /// Its id.
    pub id: RefusalId,
    /// When it happened.
    pub at: UnixMs,
    /// The business.
    pub business: String,
    /// The account.
    pub account: String,
    /// The direction.
    pub direction: String,
    /// The code of the response.
    pub code: String,
    /// The limit.
    pub limit_name: Option<String>,
    /// Slots of it that were held.
    pub current: Option<u32>,
    /// Slots that it allows.
    pub limit: Option<u32>,
    /// It would have been rejected: the mode was observe.
    pub observed: bool,
    /// Attempts of the request: an SDK's attempts are one rejection.
    pub attempts: u32,
    /// Sends the app an event.
    #[serde(skip)]
    pub tell: bool,
}

/// See the module's contract.
#[async_trait]
pub trait Store:
    Records + Desk + DoNotCallLists + Transcripts + Retention + Runs + Schedules + Send + Sync + 'static
{
    /// Puts a call on record that a gate has admitted, or that exists anyway. With an epoch it is written only while the pool's
    /// is that one; without, this process alone admits.
    async fn open(&self, call: NewCall, epoch: Option<i64>) -> Result<InsertOutcome>;

    /// Decides about a call and records it, in one transaction, if the pool's mode is `database` and its epoch this one. Its
    /// slots and keys are those that are granted, whatever `call` has. Known ids take precedence over full limits. For a call
    /// that is open already it returns `New`, with its slots; for one that has ended, `Known`.
    async fn admit(&self, call: NewCall, order: AdmissionRequest, epoch: i64) -> Result<AdmitOutcome>;

    /// Counts a call of [`Origin::Unconfirmed`] from now on, under these keys: its origin becomes [`Origin::Foreign`]. With an
    /// epoch only while the pool has that one.
    async fn confirm(&self, call: &CallId, keys: Vec<String>, epoch: Option<i64>) -> Result<Confirmed>;

    /// The state under which admissions are recorded.
    async fn gate_state(&self) -> Result<GateState>;

    /// The identity of this database, for limiters outside it.
    async fn identity(&self) -> Result<String>;

    /// Increments the pool's epoch, to at least `min_epoch`, sets its mode, and recounts every open call by a policy: all in one
    /// transaction, after which nothing is recorded under the old epoch. `None`: the pool was not at that epoch any more.
    async fn bump_epoch(
        &self,
        from: i64,
        min_epoch: i64,
        to: GateMode,
        policy: Arc<Policy>,
        now_ms: UnixMs,
    ) -> Result<Option<EpochBump>>;

    /// The leases of all open calls that count.
    async fn leases(&self) -> Result<Vec<LeaseRow>>;

    /// Requests with a fingerprint that were admitted since, oldest first; at most the latest [`ORDERS_MAX`].
    async fn find_orders(&self, fingerprint: &str, since_ms: UnixMs) -> Result<Vec<OrderRecord>>;

    /// Takes ownership of a request that was found in this state. For a dead replica's request the outcome becomes unknown,
    /// unless a response is recorded. `false`: another replica was faster.
    async fn take_order(&self, order: &OrderRecord, me: &str, is_dead: bool) -> Result<bool>;

    /// Records that a request's client disconnected before the response, if this replica still owns it.
    async fn undelivered(&self, call: &CallId, me: &str) -> Result<()>;

    /// Changes a call. `None`: no such call.
    async fn apply(&self, change: Change) -> Result<Option<ApplyOutcome>>;

    /// Stores news of an unknown call under its ids, with its voucher; or returns the call that has an id.
    async fn keep_early(
        &self,
        aliases: Vec<Alias>,
        event: Event,
        by: Option<Voucher>,
        at_ms: UnixMs,
    ) -> Result<Option<CallId>>;

    /// The call that has one of these ids.
    async fn resolve(&self, aliases: &[Alias]) -> Result<Option<CallId>>;

    /// The response to a call's create request, if it is kept.
    async fn create_answer(&self, call: &CallId, fingerprint: &str) -> Result<Option<CreateAnswer>>;

    /// A call.
    async fn call(&self, id: &CallId) -> Result<Option<CallRecord>>;

    /// All open calls.
    async fn open_calls(&self) -> Result<Vec<CallRecord>>;

    /// Open outbound calls of an account without an id of a kind: their response is outstanding.
    async fn unanswered_orders(&self, account: &AccountName, kind: &str) -> Result<Vec<CallRecord>>;

    /// The latest calls, ended ones included. One that cannot be read is left out.
    async fn latest_calls(&self, limit: u32) -> Result<Vec<CallRecord>> {
        self.list_calls(&ListFilter::default(), limit).await
    }

    /// The latest calls that a filter lets through, the latest first.
    async fn list_calls(&self, filter: &ListFilter, limit: u32) -> Result<Vec<CallRecord>>;

    /// Calls that were up at a time, the oldest first; those that began more than a day before are not looked for.
    async fn calls_at(&self, at_ms: UnixMs, limit: u32) -> Result<Vec<CallRecord>>;

    /// Times and attributes of calls admitted since: the logs of rates are rebuilt from them.
    async fn admitted_since(&self, since_ms: UnixMs) -> Result<Vec<(UnixMs, Facts)>>;

    /// Stores a webhook in the inbox.
    async fn receive(&self, event: NewEvent) -> Result<ReceiveOutcome>;

    /// Records the outcome of a webhook, and the deliveries to the app, in one transaction. Only the first time: `false` if an
    /// outcome was recorded before (two deliveries of one event met), and then nothing is written.
    async fn settle(
        &self,
        event_id: &str,
        call: Option<&CallId>,
        outcome: &str,
        delivery: Option<Delivery>,
        at_ms: UnixMs,
    ) -> Result<bool>;

    /// Unsettled webhooks that were received before a time, or are to be retried by then; oldest first, after a position, at most
    /// `limit`. Without parked ones.
    async fn unsettled_events(&self, before_ms: UnixMs, reach: &Reach, after: &Cursor, limit: u32) -> Result<Waiting>;

    /// Claims due deliveries, in order: they are reserved for [`TAKEN_MS`] by the store's clock, and the next one of a call is
    /// not claimed before this one was attempted; in `strict` order, and for ringfence's own events, not before it is done or
    /// given up. Counts no attempt. Of spooled ones, only those in this spool. An unreadable one is given up.
    async fn take_deliveries(&self, at_ms: UnixMs, limit: u32, spool: &str, strict: bool) -> Result<Vec<Delivery>>;

    /// Records the result of a claimed delivery: done, due again, or given up (`None`). A done one stays done.
    async fn delivered(
        &self,
        id: &str,
        at_ms: UnixMs,
        result: std::result::Result<(), (String, Option<UnixMs>)>,
    ) -> Result<()>;

    /// Records rejections. For a recorded one, adds its attempts.
    async fn refused(&self, refusals: Vec<RefusalRecord>) -> Result<()>;

    /// The latest refusals.
    async fn latest_refusals(&self, limit: u32) -> Result<Vec<RefusalRecord>> {
        self.list_refusals(&ListFilter::default(), limit).await
    }

    /// The latest refusals that a filter lets through, the latest first.
    async fn list_refusals(&self, filter: &ListFilter, limit: u32) -> Result<Vec<RefusalRecord>>;

    /// A refusal.
    async fn refusal(&self, id: &RefusalId) -> Result<Option<RefusalRecord>>;

    /// Businesses created by the API.
    async fn businesses(&self) -> Result<Vec<Business>>;

    /// Creates or replaces a business. `true` if it is new.
    async fn put_business(&self, business: &Business, at_ms: UnixMs) -> Result<bool>;

    /// Creates or replaces businesses, all or none. Returns how many are new.
    async fn put_businesses(&self, businesses: Vec<Business>, at_ms: UnixMs) -> Result<usize>;

    /// Deletes a business. `true` if it existed.
    async fn delete_business(&self, id: &str) -> Result<bool>;

    /// Records a replica's heartbeat, and returns the live ones.
    async fn heartbeat(&self, me: &Replica) -> Result<Fleet>;

    /// Deregisters a replica that stops.
    async fn deregister(&self, id: &str) -> Result<()>;

    /// Checks whether it can write: by the last writes, or, if they failed, by a write.
    async fn ping(&self) -> Result<()>;

    /// Writes that failed since the start.
    fn failed_writes(&self) -> u64;

    /// Finishes queued writes, and closes the files.
    async fn close(&self);
}
