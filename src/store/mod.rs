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
mod app_notice;
mod apply_change;
mod bypass;
mod change;
#[cfg(test)]
mod conformance;
mod do_not_call;
mod driver;
mod health;
mod journal;
mod listing;
mod membership;
mod message;
pub mod migrations;
mod operator;
pub mod postgres;
mod queries;
mod record;
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

use crate::call::Event;
use crate::clock::UnixMs;
use crate::ids::{AccountName, Alias, CallId, RejectionId};
use crate::policy::decision::{AdmissionRequest, GateMode, GateState, LeaseRow};
use crate::policy::{Business, CallAttributes, Policy};
use crate::provider::secret::Secret;
pub use app_notice::AppNotice;
pub use bypass::Bypass;
pub use change::{ApplyOutcome, Change};
pub use do_not_call::{DoNotCallLists, EVERYBODY, ListChange, ListChanges, ListedNumber, NUMBERS_AT_ONCE};
pub use journal::Journal;
pub use listing::{EventFilter, ListFilter};
pub use membership::{HEARTBEAT_INTERVAL_MS, LIVE_MS, LiveReplica, Membership, OwnershipMode, Replica};
pub use message::{
    Delivery, DeliveryOrder, DeliveryResult, DeliveryRoute, EventOutcome, NewEvent, Reach, ReceiveOutcome,
    RejectionRecord, UnsettledEvents,
};
pub use migrations::Migrate;
pub use operator::{
    AuditRecord, Inbox, InboxEvent, OperatorStore, Outbox, OutboxDelivery, ParkReason, Purged, Replayable,
};
pub use record::{
    AdmitOutcome, AppCallback, CallRecord, ConfirmOutcome, CreateAnswer, EpochBump, InFlightRow, InsertOutcome,
    NewCall, Owner,
};
pub use records::{ExpiredBody, PutOutcome, PutPostCall, Records, StoredPostCall, WebhookHealth, WebhookHealthQuery};
pub use retention::{Cursor, EndedCall, Retention, RetentionCutoffs, record_kept, text_kept};
pub use runs::Runs;
pub use schedules::Schedules;
pub use spool::{Spool, SpoolError, Spooled};
pub use transcripts::{
    IngestOutcome, NewUtterance, OnSignal, ReplicaSignal, Transcripts, Utterance, UtteranceIngest, UtterancePosition,
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
    /// The outcome of the write is unknown: the connection was lost in the commit, or the file after it.
    #[error("the store may or may not have written: {0}")]
    Unknown(String),
    /// A row cannot be read: written by another version, or damaged.
    #[error("a record of the store cannot be read: {0}")]
    Damaged(String),
}

/// Equal requests that are considered for deduplication: an app that sends more of them within an hour wants a call for each.
pub const IN_FLIGHT_MAX: u32 = 200;

/// The time for which a claimed delivery is reserved, in milliseconds: longer than sending it may take. If its process dies, it is due
/// again afterwards.
pub const TAKEN_MS: i64 = 30_000;

/// A result of the store.
pub type Result<T> = std::result::Result<T, StoreError>;

/// The durable state of ringfence; the contract is the module's.
#[async_trait]
pub trait Store:
    Records + OperatorStore + DoNotCallLists + Transcripts + Retention + Runs + Schedules + Send + Sync + 'static
{
    /// Puts a call on record that a gate has admitted, or that exists anyway. With an epoch it is written only while the pool's
    /// is that one; without, this process alone admits.
    async fn insert_call(&self, call: NewCall, epoch: Option<i64>) -> Result<InsertOutcome>;

    /// Decides about a call and records it, in one transaction, if the pool's mode is `database` and its epoch this one. Its
    /// slots and keys are those that are granted, whatever `call` has. Known ids take precedence over full limits. For a call
    /// that is open already it returns `New`, with its slots; for one that has ended, `Known`.
    async fn admit(&self, call: NewCall, request: AdmissionRequest, epoch: i64) -> Result<AdmitOutcome>;

    /// Counts a call of [`Origin::Unconfirmed`](crate::call::Origin::Unconfirmed) from now on, under these keys: its origin becomes
    /// [`Origin::Foreign`](crate::call::Origin::Foreign). With an epoch only while the pool has that one.
    async fn confirm(&self, call: &CallId, keys: Vec<String>, epoch: Option<i64>) -> Result<ConfirmOutcome>;

    /// Uses the user and the password of this URL for new connections, where there is a server.
    fn renew_credential(&self, url: &Secret);

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

    /// Requests with a fingerprint that were admitted since, oldest first; at most the latest [`IN_FLIGHT_MAX`].
    async fn find_in_flight(&self, fingerprint: &str, since_ms: UnixMs) -> Result<Vec<InFlightRow>>;

    /// Takes ownership of a request that was found in this state. For a dead replica's request the outcome becomes unknown,
    /// unless a response is recorded. `false`: another replica was faster.
    async fn take_in_flight(&self, row: &InFlightRow, me: &str, owner: Owner) -> Result<bool>;

    /// Records that a request's client disconnected before the response, if this replica still owns it.
    async fn mark_undelivered(&self, call: &CallId, me: &str) -> Result<()>;

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
    async fn unanswered_creates(&self, account: &AccountName, kind: &str) -> Result<Vec<CallRecord>>;

    /// The latest calls, ended ones included. One that cannot be read is left out.
    async fn latest_calls(&self, limit: u32) -> Result<Vec<CallRecord>> {
        self.list_calls(&ListFilter::default(), limit).await
    }

    /// The latest calls that a filter lets through, the latest first.
    async fn list_calls(&self, filter: &ListFilter, limit: u32) -> Result<Vec<CallRecord>>;

    /// Calls that were up at a time, the oldest first; those that began more than a day before are not looked for.
    async fn calls_at(&self, at_ms: UnixMs, limit: u32) -> Result<Vec<CallRecord>>;

    /// Times and attributes of calls admitted since: the logs of rates are rebuilt from them.
    async fn admitted_since(&self, since_ms: UnixMs) -> Result<Vec<(UnixMs, CallAttributes)>>;

    /// Stores a webhook in the inbox.
    async fn receive(&self, event: NewEvent) -> Result<ReceiveOutcome>;

    /// Records the outcome of a webhook, and the deliveries to the app, in one transaction. Only the first time: `false` if an
    /// outcome was recorded before (two deliveries of one event met), and then nothing is written.
    async fn settle(
        &self,
        event_id: &str,
        call: Option<&CallId>,
        outcome: EventOutcome,
        delivery: Option<Delivery>,
        at_ms: UnixMs,
    ) -> Result<bool>;

    /// Unsettled webhooks that were received before a time, or are to be retried by then; oldest first, after a position, at most
    /// `limit`. Without parked ones.
    async fn unsettled_events(
        &self,
        before_ms: UnixMs,
        reach: &Reach,
        after: &Cursor,
        limit: u32,
    ) -> Result<UnsettledEvents>;

    /// Claims due deliveries, in order: they are reserved for [`TAKEN_MS`] by the store's clock, and the next one of a call is
    /// not claimed before this one was attempted; in strict order, and for ringfence's own events, not before it is done or
    /// given up. Counts no attempt. Of spooled ones, only those in this spool. An unreadable one is given up.
    async fn take_deliveries(
        &self,
        at_ms: UnixMs,
        limit: u32,
        spool: &str,
        order: DeliveryOrder,
    ) -> Result<Vec<Delivery>>;

    /// Records the result of a claimed delivery. A done one stays done.
    async fn record_delivery_result(&self, id: &str, at_ms: UnixMs, result: DeliveryResult) -> Result<()>;

    /// Records rejections. For a recorded one, adds its attempts.
    async fn record_rejections(&self, rejections: Vec<RejectionRecord>) -> Result<()>;

    /// The latest rejections.
    async fn latest_rejections(&self, limit: u32) -> Result<Vec<RejectionRecord>> {
        self.list_rejections(&ListFilter::default(), limit).await
    }

    /// The latest rejections that a filter lets through, the latest first.
    async fn list_rejections(&self, filter: &ListFilter, limit: u32) -> Result<Vec<RejectionRecord>>;

    /// A rejection.
    async fn rejection(&self, id: &RejectionId) -> Result<Option<RejectionRecord>>;

    /// Businesses created by the API.
    async fn businesses(&self) -> Result<Vec<Business>>;

    /// Creates or replaces a business. `true` if it is new.
    async fn put_business(&self, business: &Business, at_ms: UnixMs) -> Result<bool>;

    /// Creates or replaces businesses, all or none. Returns how many are new.
    async fn put_businesses(&self, businesses: Vec<Business>, at_ms: UnixMs) -> Result<usize>;

    /// Deletes a business. `true` if it existed.
    async fn delete_business(&self, id: &str) -> Result<bool>;

    /// The time by the store's clock.
    async fn now_ms(&self) -> Result<UnixMs>;

    /// Records a replica's heartbeat as of this time by the store's clock, or of now, and returns the live ones.
    async fn heartbeat(&self, me: &Replica, as_of: Option<UnixMs>) -> Result<Membership>;

    /// Deregisters a replica that stops.
    async fn deregister(&self, id: &str) -> Result<()>;

    /// Checks whether it can write: by the last writes, or, if they failed, by a write.
    async fn ping(&self) -> Result<()>;

    /// Writes that failed since the start.
    fn failed_writes(&self) -> u64;

    /// Finishes queued writes, and closes the files.
    async fn close(&self);
}
