//! What survives a restart: calls and their ids, the inbox of webhooks, the outbox to the app, refusals, businesses, bulk runs, do-not-call
//! lists.
//!
//! # The contract, which every back end keeps
//!
//! * A write that returned `Ok` is durable.
//! * [`Store::apply`] is one transaction: it reads the call, asks [`crate::call::next`], binds ids and writes. Two events of one call
//!   never interleave.
//! * News of a call that nobody knows yet is kept under its ids. Whoever comes second, the news or the call, finds the other.
//! * [`Store::receive`] takes each event once, by its dedupe key.
//! * An open call's row is its lease: it names the counts that the call is in. What gates propose counts only once it stands here,
//!   under the epoch that the pool has at that moment ([`GateState`]).

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

/// The alias kind of an app's own idempotency key. Unlike other ids it may pass to another call: when the order that showed it
/// was proven not to have made one.
pub const KEY_KIND: &str = "idempotency_key";

/// The store failed. The texts name what to look at and hold nothing of a caller.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Nothing was written.
    #[error("the store failed: {0}")]
    Failed(String),
    /// It is not known whether it was written: the connection went away in the commit, or the file after it.
    #[error("the store may or may not have written: {0}")]
    Unknown(String),
    /// A record cannot be read: written by another version, or damaged.
    #[error("a record of the store cannot be read: {0}")]
    Damaged(String),
}

/// Equal orders that are looked at: an app that sends more of them within an hour means a call each.
pub const ORDERS_MAX: u32 = 200;

/// How long a delivery that was taken is nobody else's, in milliseconds: longer than it may take to send it. Who died with it never
/// reports, and then it is due again.
pub const TAKEN_MS: i64 = 30_000;

/// A result of the store.
pub type Result<T> = std::result::Result<T, StoreError>;

/// The app's own status callback, remembered while ringfence stands in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppCallback {
    /// Where the app wants it, fragment included.
    pub url: String,
    /// GET or POST.
    pub method: String,
    /// The events it asked for; empty: the provider's default, the end alone.
    pub events: Vec<String>,
}

/// A call's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CallRecord {
    /// Its id, also its lease's.
    pub id: CallId,
    /// What policy selects by.
    #[serde(flatten)]
    pub facts: Facts,
    /// Who brought it to our knowledge.
    pub origin: Origin,
    /// Where it stands.
    pub phase: Phase,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Why it counts as over.
    pub proof: Option<EndProof>,
    /// It exists although it was refused or ended for us.
    pub over_limit: bool,
    /// The outcome of its create is unknown.
    pub unsettled: bool,
    /// No event will tell of it: it is asked for from its start.
    pub polled: bool,
    /// How many places it holds: 1, or as many calls as a batch may have at once.
    pub slots: u32,
    /// When it was admitted.
    pub admitted_at: UnixMs,
    /// When it came to its phase.
    pub phase_at: UnixMs,
    /// When it is due for a look-up.
    pub deadline_at: Option<UnixMs>,
    /// When it was answered.
    pub answered_at: Option<UnixMs>,
    /// When it ended.
    pub ended_at: Option<UnixMs>,
    /// The last news of it.
    pub seen_at: UnixMs,
    /// Where the last news came from: its origin, or `answer`, `webhook`, `transcript`, `poll`, `operator`.
    pub seen_by: Source,
    /// When a look-up first found nothing.
    pub absent_at: Option<UnixMs>,
    /// The app's own status callback.
    pub callback: Option<AppCallback>,
    /// What makes an order equal to the one that made this call.
    #[serde(skip)]
    pub fingerprint: Option<String>,
    /// The replica that put it on record; or the one that answers for its order since, which came there again.
    pub replica: Option<String>,
    /// Its ids outside.
    pub aliases: Vec<Alias>,
}

impl CallRecord {
    /// Whether it is in the counts of its limits: all are that exist for sure.
    pub fn counts(&self) -> bool {
        self.origin != Origin::Unconfirmed
    }

    /// Its id of a kind.
    pub fn alias(&self, kind: &str) -> Option<&str> {
        self.aliases.iter().find(|a| a.kind == kind).map(|a| a.id.as_str())
    }

    /// All its ids of a kind: a call may be connected to one conversation after another.
    pub fn ids_of<'r>(&'r self, kind: &'r str) -> impl Iterator<Item = &'r str> {
        self.aliases.iter().filter(move |a| a.kind == kind).map(|a| a.id.as_str())
    }
}

/// A call to be put on record.
#[derive(Debug, Clone)]
pub struct NewCall {
    /// Its id.
    pub id: CallId,
    /// What policy selects by.
    pub facts: Facts,
    /// Who brought it.
    pub origin: Origin,
    /// Where it stands.
    pub phase: Phase,
    /// It exists although a limit is full.
    pub over_limit: bool,
    /// No event will tell of it: it is asked for from its start.
    pub polled: bool,
    /// How many places it holds.
    pub slots: u32,
    /// Now.
    pub at_ms: UnixMs,
    /// When it is due for a look-up.
    pub deadline_at: UnixMs,
    /// The app's own status callback.
    pub callback: Option<AppCallback>,
    /// What makes an order equal to the one that makes this call.
    pub fingerprint: Option<String>,
    /// The counts that it is in (see [`crate::admission::keys`]): with these its open row is its lease.
    pub keys: Vec<String>,
    /// The replica that puts it on record.
    pub replica: Option<String>,
    /// The app is told by an event of our own.
    pub tell: bool,
    /// Ids that are known already. Where one of them belongs to another call, nothing is written. An id of our own kind names the
    /// first record of the same call, which was given up: its ids become this one's.
    pub aliases: Vec<Alias>,
}

/// What became of a call to be put on record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InsertOutcome {
    /// It is on record. News that came before it is given to be applied.
    New(Option<Event>),
    /// One of its ids belongs to this call: it is the same call.
    Known(CallId),
    /// The pool's epoch is not the one that it was admitted under; nothing was written.
    Outdated(GateState),
}

/// What became of a call that the store itself decided about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdmitOutcome {
    /// It is on record, with so many slots. News that came before it is given to be applied.
    New {
        /// Slots that were granted.
        slots: u32,
        /// In observe mode: what would have refused it.
        would: Option<Shortfall>,
        /// News that waited under its ids.
        news: Option<Event>,
    },
    /// One of its ids belongs to this call: it is the same call.
    Known(CallId),
    /// Some limit was short. Nothing was written.
    Refused(Shortfall),
    /// The store does not decide, or no longer under that epoch. Nothing was written.
    Outdated(GateState),
}

/// What became of a call that is to be counted from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirmed {
    /// It counts.
    Now,
    /// It did before, or is over, or is not on record.
    Before,
    /// The pool's epoch is not the given one; nothing was written.
    Outdated(GateState),
}

/// What a move of the gate read, in the transaction that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochBump {
    /// Where the gate is now.
    pub state: GateState,
    /// Every open call, counted by the policy that was given.
    pub held: Vec<LeaseRow>,
    /// What the rates have let through, by key.
    pub rates: Vec<(String, RateLog)>,
}

/// What a record says of an order to another replica, where an equal one came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderRecord {
    /// Its call.
    pub id: CallId,
    /// Where that stands.
    pub phase: Phase,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Its outcome is unknown.
    pub unsettled: bool,
    /// Its client had gone before it was answered.
    pub undelivered: bool,
    /// The replica that answers for it.
    pub replica: Option<String>,
    /// When it was admitted.
    pub admitted_at: UnixMs,
    /// When it came to its phase.
    pub phase_at: UnixMs,
    /// When it ended.
    pub ended_at: Option<UnixMs>,
    /// For how many milliseconds its replica was not heard, by the store's clock. `None`: it has left, or is long gone.
    pub silent_ms: Option<i64>,
}

/// A provider's answer to a create, for whoever sends the order again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateAnswer {
    /// What makes an order equal to the one that was answered.
    pub fingerprint: String,
    /// Its status.
    pub status: u16,
    /// Its headers, each byte of a value as the character of that number.
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
    /// Who vouches for it; none: ringfence itself, which asked.
    pub by: Option<Voucher>,
    /// Where the news came from.
    pub seen_by: Source,
    /// Now.
    pub at_ms: UnixMs,
    /// The time until the next look-up, for each phase that the call may come to.
    pub deadlines: crate::call::Deadlines,
    /// RequestAttributes the create's outcome as unknown or known again.
    pub unsettled: Option<bool>,
    /// The replica that tells the order's client that its outcome is unknown, where several share the record. What the client
    /// waits for is not delivered by that: until somebody delivers it, the order may come again. Without effect if another
    /// replica answers for the order by now.
    pub untold_by: Option<String>,
    /// RequestAttributes the call as one that exists although it was refused or ended for us.
    pub over_limit: Option<bool>,
    /// Notes that a look-up found nothing (`true`) or found it again.
    pub absent: Option<bool>,
    /// The provider's answer to the create, where it is kept.
    pub answer: Option<CreateAnswer>,
    /// The app is told by an event of our own.
    pub tell: bool,
}

impl Change {
    /// A change that says nothing yet.
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

/// What a change did.
#[derive(Debug, Clone)]
pub struct ApplyOutcome {
    /// The step taken; news that waited under the ids included.
    pub step: Step,
    /// The record after it.
    pub record: CallRecord,
    /// Ids that belong to another call already: two records of one call, or a forged id.
    pub conflicts: Vec<(Alias, CallId)>,
    /// It was not applied: it is not about this call.
    pub contradiction: Option<Contradiction>,
    /// It told of an end that is not the call's: its carrier still has it, and is to be asked.
    pub ended_a_part: bool,
}

/// A webhook, as it came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewEvent {
    /// A fresh id.
    pub id: String,
    /// The account that it came from.
    pub account: String,
    /// The webhook of the description.
    pub webhook: String,
    /// The event of the description.
    pub event: String,
    /// Two deliveries with one key are one event.
    pub dedupe_key: Option<String>,
    /// When it came.
    pub received_at: UnixMs,
    /// Its method.
    pub method: String,
    /// Its path and query.
    pub path: String,
    /// Its headers, credentials left out.
    pub headers: Vec<(String, String)>,
    /// Its body; `None` for bodies too large for the record.
    #[serde(skip)]
    pub body: Option<Vec<u8>>,
    /// The spool that has its body.
    pub spool: Option<String>,
}

/// RetentionScope bodies a process can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// Those in its spool, by the spool's name.
    pub spool: String,
    /// And those in the record.
    pub record: bool,
}

/// Webhooks that are to be applied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Those that can be read.
    pub events: Vec<NewEvent>,
    /// Those that cannot, with why.
    pub damaged: Vec<(String, String)>,
    /// The place of the last of both; none: there is none of either.
    pub last: Option<Cursor>,
}

/// What became of a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReceiveOutcome {
    /// It is new.
    New,
    /// It was taken before; with its outcome, if it was applied.
    Before {
        /// The id under which it was taken.
        id: String,
        /// What came of it.
        outcome: Option<String>,
    },
}

/// How a delivery goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// To where the operator's config says.
    #[default]
    App,
    /// To an address that an app chose, over the network.
    Callback,
    /// To such an address that is the app's own: it goes to where the operator's config says that the app is.
    Forwarded,
}

impl Route {
    /// The word on record.
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

/// Something the app has to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// A fresh id; the app sees it in `X-Ringfence-Delivery`.
    pub id: String,
    /// The webhook that it came from.
    pub event_id: String,
    /// The call that it speaks of: its deliveries go one after the other, as long as none fails.
    pub call: Option<String>,
    /// How it goes.
    pub route: Route,
    /// Where; of a callback, as the app wrote it.
    pub url: String,
    /// How.
    pub method: String,
    /// With which headers.
    pub headers: Vec<(String, String)>,
    /// With which body; empty if a spool has it.
    pub body: Vec<u8>,
    /// The spool that has its body.
    pub spool: Option<String>,
    /// How often it was tried.
    pub attempts: u32,
}

impl Delivery {
    /// It is an event of our own: it goes to where the config has it now, signed when it is sent.
    pub fn is_own(&self) -> bool {
        self.url.is_empty()
    }
}

/// A refusal, for the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefusalRecord {
    /// Its id.
    pub id: RefusalId,
    /// When.
    pub at: UnixMs,
    /// RetentionScope call.
    pub business: String,
    /// Which account.
    pub account: String,
    /// Which direction.
    pub direction: String,
    /// The code of the answer.
    pub code: String,
    /// The limit.
    pub limit_name: Option<String>,
    /// How many held it.
    pub current: Option<u32>,
    /// What it allows.
    pub limit: Option<u32>,
    /// It would have been refused; the mode was observe.
    pub observed: bool,
    /// How often the order was sent: the tries of an SDK are one refusal.
    pub attempts: u32,
    /// The app is told by an event of our own.
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

    /// Decides about a call and puts it on record, in one transaction, if the pool's mode is `database` and its epoch this one.
    /// Its slots are what is granted and its keys the order's, whatever `call` says. Known ids come before full limits. Of a call
    /// that is open already it is `New`, with its slots; of one that has ended, `Known`.
    async fn admit(&self, call: NewCall, order: AdmissionRequest, epoch: i64) -> Result<AdmitOutcome>;

    /// Counts a call of [`Origin::Unconfirmed`] from now on, in these counts: its origin becomes [`Origin::Foreign`]. With an epoch only
    /// while the pool's is that one.
    async fn confirm(&self, call: &CallId, keys: Vec<String>, epoch: Option<i64>) -> Result<Confirmed>;

    /// Under what admissions are put on record.
    async fn gate_state(&self) -> Result<GateState>;

    /// What tells this record from every other, for whoever counts for it elsewhere.
    async fn identity(&self) -> Result<String>;

    /// Moves the pool from an epoch to the next, in a mode, and counts every open call anew by a policy: all in one transaction,
    /// after which nothing is put on record under the old epoch. `None`: it was not at that epoch any more.
    async fn bump_epoch(
        &self,
        from: i64,
        to: GateMode,
        policy: Arc<Policy>,
        now_ms: UnixMs,
    ) -> Result<Option<EpochBump>>;

    /// Every open call that counts as the lease that it is.
    async fn leases(&self) -> Result<Vec<LeaseRow>>;

    /// Orders with a fingerprint that were admitted since, the oldest first; at most [`ORDERS_MAX`], the latest.
    async fn find_orders(&self, fingerprint: &str, since_ms: UnixMs) -> Result<Vec<OrderRecord>>;

    /// Takes an order over that was found so: from now on this replica answers for it. Of a dead replica's it is not known whether
    /// it was sent, if no answer is on record. `false`: another was quicker.
    async fn take_order(&self, order: &OrderRecord, me: &str, is_dead: bool) -> Result<bool>;

    /// Notes that an order's client had gone before it was answered, if this replica still answers for it.
    async fn undelivered(&self, call: &CallId, me: &str) -> Result<()>;

    /// Changes a call. `None`: there is no such call.
    async fn apply(&self, change: Change) -> Result<Option<ApplyOutcome>>;

    /// Keeps news of a call that nobody knows, under its ids, with who vouches for it; or says whose ids they are.
    async fn keep_early(
        &self,
        aliases: Vec<Alias>,
        event: Event,
        by: Option<Voucher>,
        at_ms: UnixMs,
    ) -> Result<Option<CallId>>;

    /// The call that has one of these ids.
    async fn resolve(&self, aliases: &[Alias]) -> Result<Option<CallId>>;

    /// The answer to an order of a call, if it is kept.
    async fn create_answer(&self, call: &CallId, fingerprint: &str) -> Result<Option<CreateAnswer>>;

    /// A call.
    async fn call(&self, id: &CallId) -> Result<Option<CallRecord>>;

    /// Every call that is not over.
    async fn open_calls(&self) -> Result<Vec<CallRecord>>;

    /// Outbound orders of an account that are open and have no id of a kind: the answer to them has not come.
    async fn unanswered_orders(&self, account: &AccountName, kind: &str) -> Result<Vec<CallRecord>>;

    /// The latest calls, ended ones included. One that cannot be read is left out.
    async fn latest_calls(&self, limit: u32) -> Result<Vec<CallRecord>> {
        self.list_calls(&ListFilter::default(), limit).await
    }

    /// The latest calls that a filter lets through, the latest first.
    async fn list_calls(&self, filter: &ListFilter, limit: u32) -> Result<Vec<CallRecord>>;

    /// Calls that were up at a time, the oldest first; those that began more than a day before are not looked for.
    async fn calls_at(&self, at_ms: UnixMs, limit: u32) -> Result<Vec<CallRecord>>;

    /// When calls were admitted since, with their facts: what rates are replayed from.
    async fn admitted_since(&self, since_ms: UnixMs) -> Result<Vec<(UnixMs, Facts)>>;

    /// Takes a webhook into the inbox.
    async fn receive(&self, event: NewEvent) -> Result<ReceiveOutcome>;

    /// Notes what came of a webhook, and what the app has to be told of it, in one transaction. Only the first time: `false`
    /// if that was noted before (two deliveries of one event met), and then nothing is written.
    async fn settle(
        &self,
        event_id: &str,
        call: Option<&CallId>,
        outcome: &str,
        delivery: Option<Delivery>,
        at_ms: UnixMs,
    ) -> Result<bool>;

    /// Webhooks that came before a time, or are to be tried again by then, and whose application did not come to its end; the
    /// oldest first, those after a place, at most `limit`. Not those that are parked.
    async fn unsettled_events(&self, before_ms: UnixMs, reach: &Reach, after: &Cursor, limit: u32) -> Result<Waiting>;

    /// Takes deliveries that are due, in order: nobody else gets them for [`TAKEN_MS`] by the store's clock, and the next of a
    /// call not before this one was tried; in `strict` order, and of events of our own, not before it is done or given up. Counts no attempt. Of those whose body is in a spool, only this one's. One
    /// that cannot be read is given up.
    async fn take_deliveries(&self, at_ms: UnixMs, limit: u32, spool: &str, strict: bool) -> Result<Vec<Delivery>>;

    /// Notes the result of a delivery that was taken: done, or due again, or given up (`None`). One that is done stays done.
    async fn delivered(
        &self,
        id: &str,
        at_ms: UnixMs,
        result: std::result::Result<(), (String, Option<UnixMs>)>,
    ) -> Result<()>;

    /// Notes refusals. Of one that is on record, only its attempts, which are added.
    async fn refused(&self, refusals: Vec<RefusalRecord>) -> Result<()>;

    /// The latest refusals.
    async fn latest_refusals(&self, limit: u32) -> Result<Vec<RefusalRecord>> {
        self.list_refusals(&ListFilter::default(), limit).await
    }

    /// The latest refusals that a filter lets through, the latest first.
    async fn list_refusals(&self, filter: &ListFilter, limit: u32) -> Result<Vec<RefusalRecord>>;

    /// A refusal.
    async fn refusal(&self, id: &RefusalId) -> Result<Option<RefusalRecord>>;

    /// Businesses that were put.
    async fn businesses(&self) -> Result<Vec<Business>>;

    /// Puts a business. `true` if it is new.
    async fn put_business(&self, business: &Business, at_ms: UnixMs) -> Result<bool>;

    /// Puts businesses, all or none. How many are new.
    async fn put_businesses(&self, businesses: Vec<Business>, at_ms: UnixMs) -> Result<usize>;

    /// Forgets a business. `true` if it was there.
    async fn delete_business(&self, id: &str) -> Result<bool>;

    /// Says that a replica lives, and tells which others do. Who was silent for long just beats again.
    async fn heartbeat(&self, me: &Replica) -> Result<Fleet>;

    /// Takes a replica out: it stops.
    async fn deregister(&self, id: &str) -> Result<()>;

    /// Whether it can write, as far as the last writes tell; while they failed, by writing.
    async fn ping(&self) -> Result<()>;

    /// Writes that failed since the start.
    fn failed_writes(&self) -> u64;

    /// Finishes what was handed over, and lets go of the files.
    async fn close(&self);
}
