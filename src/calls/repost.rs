//! Orders that are sent again: an SDK repeats what it got no answer to, and must not dial twice by it.
//!
//! An order that comes again is the earlier one if it shows the same idempotency key, or if it is equal to it in business,
//! operation, destination and body, and the app cannot know what became of the earlier one: its outcome is unknown, or its
//! answer was never delivered (the client had gone). It then waits for the earlier order's settlement, and gets its answer; it
//! dials only if the earlier one was proven not to have made a call. Equal orders in parallel, or after a delivered answer,
//! are distinct calls.
//!
//! What is known of an order's client is known to this process alone; what others have to know of it stands in the record, where
//! several share that (`elsewhere`). After a restart, orders whose outcome is unknown and
//! those answered within [`UNCONFIRMED_WINDOW_MS`] before it count as not delivered.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use ring::digest::{Context, SHA256};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::call::{Outcome, Phase};
use crate::clock::UnixMs;
use crate::ids::{Alias, CallId, RefusalId};
use crate::policy::Facts;
use crate::store::{CallRecord, KEY_KIND};

/// The header of an app's own key (draft-ietf-httpapi-idempotency-key-header).
pub const KEY_HEADER: &str = "idempotency-key";
/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 255;
/// The header that names the earlier order's call.
pub const DUPLICATE_HEADER: &str = "x-ringfence-duplicate-of";

/// How long an answer that nobody took waits for its order to come again: SDKs give up within two minutes, workers retry
/// within ten.
const KEPT: Duration = Duration::from_secs(600);
/// How long after its call has ended an order may still come again. A repeat comes within seconds; who dials a busy number
/// again after twenty means a second call.
const AFTER_END_MS: i64 = 10_000;
/// Calls created so shortly before a restart may have been answered to nobody.
pub const UNCONFIRMED_WINDOW_MS: i64 = 60_000;
/// How long an order waits to see whether an equal one under way has lost its client: the client of a repeat has closed its
/// first connection, which may be noticed a moment after the repeat has come on another.
pub(super) const NOTICED_WITHIN: Duration = Duration::from_millis(100);
/// Orders that are remembered. Those beyond are forgotten, those that nobody waits for first.
const ORDERS_MAX: usize = 50_000;
/// The largest answer that is kept, in bytes; a larger one is made anew from the record.
pub(super) const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// All answers that are kept in memory, in bytes. What has no room is read from the record.
const ANSWERS_BYTES_MAX: usize = 16 * 1024 * 1024;
/// An SDK that sleeps on `Retry-After` comes again no sooner than this; what comes sooner was sent beside it.
const SDK_SLEEPS: Duration = Duration::from_millis(300);
/// It comes again within this at most, however long it is told to wait.
const SDK_GIVES_UP: Duration = Duration::from_secs(90);
/// What it may take beyond the wait that it is told: jitter (a tenth of the wait in ElevenLabs' SDKs), the way, another connection.
const SDK_DELAY: Duration = Duration::from_secs(2);
/// It tries so often in all (facts A1: two retries).
const SDK_TRIES: u32 = 3;

/// What makes two orders equal: a hash of account, operation, business, method, path, query and body.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// Of an order as the app sent it.
    pub fn of(facts: &Facts, request: &Request<Bytes>) -> Self {
        let uri = request.uri();
        let parts = [
            facts.account.as_str().as_bytes(),
            facts.operation.as_bytes(),
            facts.business.as_str().as_bytes(),
            request.method().as_str().as_bytes(),
            uri.path_and_query().map_or(&b""[..], |p| p.as_str().as_bytes()),
            request.body(),
        ];
        Self(hash(&parts))
    }

    /// As it stands in the record.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The alias of an app's idempotency key. Keys of different accounts and businesses are different.
///
/// # Errors
/// A sentence, if the header is there and cannot be a key.
pub fn key(facts: &Facts, headers: &HeaderMap) -> Result<Option<Alias>, String> {
    let Some(value) = headers.get(KEY_HEADER) else { return Ok(None) };
    let value = value.as_bytes();
    if value.is_empty() || value.len() > KEY_BYTES_MAX {
        return Err(format!("Idempotency-Key must have 1 to {KEY_BYTES_MAX} bytes"));
    }
    let id = hash(&[facts.account.as_str().as_bytes(), facts.business.as_str().as_bytes(), value]);
    Ok(Some(Alias { kind: KEY_KIND.to_owned(), id }))
}

/// A hash over parts, each with its length before it: no two lists of parts run together.
fn hash(parts: &[&[u8]]) -> String {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    hex::encode(context.finish())
}

/// Whether a client still waits for its answer.
#[derive(Debug, Default)]
struct Presence {
    left: OnceLock<Instant>,
    /// It was written an answer.
    told: AtomicBool,
    /// It has its answer.
    heard: AtomicBool,
    changed: Notify,
}

impl Presence {
    fn has_left(&self) -> bool {
        self.left.get().is_some()
    }

    fn has_hung_up(&self) -> bool {
        self.has_left() && !self.told.load(Ordering::Relaxed)
    }
}

/// The client of an order, as the order sees it.
#[derive(Debug, Clone)]
pub(super) struct Client {
    reposts: Reposts,
    fingerprint: Fingerprint,
    presence: Arc<Presence>,
}

impl Client {
    /// It has gone, or has its answer.
    pub(super) fn has_left(&self) -> bool {
        self.presence.has_left()
    }

    /// RetryAfterEstimator until it has gone without its answer, or has it (`false`).
    pub(super) async fn hangs_up(&self) -> bool {
        loop {
            let mut changed = std::pin::pin!(self.presence.changed.notified());
            changed.as_mut().enable();
            if self.presence.has_hung_up() {
                return true;
            }
            if self.presence.heard.load(Ordering::Relaxed) {
                return false;
            }
            changed.await;
        }
    }
}

/// The client of an order, as its connection sees it. Dropping it says that the client has gone without its answer.
#[derive(Debug)]
pub struct Asker(Client);

impl Asker {
    pub(super) fn client(&self) -> Client {
        self.0.clone()
    }

    /// The client has gone.
    pub fn gone(&self) {
        let _ = self.0.presence.left.set(Instant::now());
        self.0.presence.changed.notify_waiters();
    }

    /// The answer was written to the client. If it said what became of the order, the order is over for this module, unless it
    /// turns out that the client never read it.
    pub fn delivered(self) -> Unheard {
        let client = self.client();
        client.presence.told.store(true, Ordering::Relaxed);
        let mut orders = client.reposts.orders();
        for order in orders.by_fingerprint.get_mut(&client.fingerprint).into_iter().flatten() {
            order.delivered = Arc::ptr_eq(&order.asker, &client.presence) && !order.told_unknown || order.delivered;
        }
        drop(orders);
        Unheard(client)
    }
}

/// A client that was written an answer, and of which nothing has been heard since. Dropping it says that it has it.
#[derive(Debug)]
pub struct Unheard(Client);

impl Unheard {
    /// Its connection was reset: it had gone before the answer came.
    pub fn lost(self) {
        let client = &self.0;
        client.presence.told.store(false, Ordering::Relaxed);
        client.presence.changed.notify_waiters();
        let mut orders = client.reposts.orders();
        for order in orders.by_fingerprint.get_mut(&client.fingerprint).into_iter().flatten() {
            order.delivered &= !Arc::ptr_eq(&order.asker, &client.presence);
        }
    }
}

impl Drop for Unheard {
    fn drop(&mut self) {
        let client = &self.0;
        client.presence.heard.store(true, Ordering::Relaxed);
        client.presence.changed.notify_waiters();
        let is_mine = |o: &Order| Arc::ptr_eq(&o.asker, &client.presence);
        client.reposts.orders().remove_if(&client.fingerprint, |o| is_mine(o) && o.delivered);
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.gone();
    }
}

/// What is known of an order's outcome.
#[derive(Debug, Clone)]
pub(super) enum Known {
    /// It is under way.
    UnderWay,
    /// Its answer was lost; its record will tell.
    Unknown,
    /// There is a call; with the provider's answer, where it is kept.
    Created(Option<Arc<Kept>>),
}

/// A provider's answer, and its part of [`ANSWERS_BYTES_MAX`].
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) answer: Response<Bytes>,
    _room: OwnedSemaphorePermit,
}

/// What an answer takes, in bytes.
pub(super) fn size(answer: &Response<Bytes>) -> usize {
    let head: usize = answer.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    head + answer.body().len()
}

#[derive(Debug)]
struct Order {
    id: u64,
    asker: Arc<Presence>,
    call: Option<CallId>,
    known: Known,
    /// The client was told that the outcome is unknown: what it waits for has not been delivered.
    told_unknown: bool,
    /// Its answer was written, and nothing has been heard of its client since.
    delivered: bool,
}

/// One order under this module's eyes.
#[derive(Debug, Clone)]
pub(super) struct OrderRef {
    reposts: Reposts,
    fingerprint: Fingerprint,
    id: u64,
}

impl OrderRef {
    fn change(&self, change: impl FnOnce(&mut Order)) {
        let mut orders = self.reposts.orders();
        if let Some(order) = orders.get(&self.fingerprint, self.id) {
            change(order);
        }
    }

    /// It is on record as this call.
    pub(super) fn opened(&self, call: &CallId) {
        self.change(|o| o.call = Some(call.clone()));
    }

    /// It came to another process before, and is this call.
    pub(super) fn is_earlier(&self, call: &CallId, unknown: bool) {
        let known = if unknown { Known::Unknown } else { Known::Created(None) };
        self.change(|o| (o.call, o.known) = (Some(call.clone()), known));
    }

    /// Whether it is this client that waits for it, or has gone from it last.
    pub(super) fn is_of(&self, client: &Client) -> bool {
        let mut orders = self.reposts.orders();
        orders.get(&self.fingerprint, self.id).is_some_and(|o| Arc::ptr_eq(&o.asker, &client.presence))
    }

    /// Its client has gone, and none has come in its place.
    pub(super) fn is_abandoned_by_client(&self) -> bool {
        let mut orders = self.reposts.orders();
        orders.get(&self.fingerprint, self.id).is_some_and(|o| o.asker.has_left())
    }

    /// There is a call.
    pub(super) fn created(&self, answer: &Response<Bytes>) {
        let kept = self.reposts.keep(answer).map(Arc::new);
        self.change(|o| o.known = Known::Created(kept));
    }

    /// Its answer was lost.
    pub(super) fn unknown(&self) {
        self.change(|o| o.known = Known::Unknown);
    }

    /// Its client is told that the outcome is unknown.
    pub(super) fn mark_reported_unknown(&self) {
        self.change(|o| o.told_unknown = true);
    }

    /// It made no call: who sends it again starts anew.
    pub(super) fn not_created(&self) {
        self.reposts.orders().remove_if(&self.fingerprint, |o| o.id == self.id);
    }

    /// From now on somebody settles it: see [`InHand`].
    pub(super) fn in_hand(&self) -> InHand {
        InHand(Some(self.clone()))
    }

    /// Whoever was to settle it came to grief. What is on record may have been sent; what is not was not.
    fn abandoned(&self) {
        let mut orders = self.reposts.orders();
        orders.remove_if(&self.fingerprint, |o| o.id == self.id && o.call.is_none());
        if let Some(order) = orders.get(&self.fingerprint, self.id)
            && matches!(order.known, Known::UnderWay)
        {
            (order.known, order.told_unknown) = (Known::Unknown, true);
        }
    }

    /// Its call, once it is on record, and what is known. `None`: it is over.
    pub(super) fn look(&self) -> Option<(Option<CallId>, Known)> {
        let mut orders = self.reposts.orders();
        orders.get(&self.fingerprint, self.id).map(|o| (o.call.clone(), o.known.clone()))
    }
}

/// An order that is being settled. Dropped before that is done, as by a panic, it must not stay under way for ever: who sends it
/// again would wait for nobody.
pub(super) struct InHand(Option<OrderRef>);

impl InHand {
    /// It is settled, or in other hands.
    pub(super) fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        if let Some(order) = &self.0 {
            order.abandoned();
        }
    }
}

/// An order that came in.
pub(super) enum Arrived {
    /// It is one of its own.
    New(OrderRef),
    /// It is this earlier one, sent again.
    Again(OrderRef),
    /// An equal one is under way, whose client may have gone unnoticed: look again in [`NOTICED_WITHIN`].
    Beside,
}

/// A refusal that an SDK may come back from.
#[derive(Debug)]
struct Refused {
    id: RefusalId,
    at: Instant,
    tries: u32,
}

#[derive(Debug, Default)]
struct Orders {
    by_fingerprint: HashMap<Fingerprint, Vec<Order>>,
    len: usize,
    refused: HashMap<Fingerprint, Refused>,
}

impl Orders {
    fn get(&mut self, fingerprint: &Fingerprint, id: u64) -> Option<&mut Order> {
        self.by_fingerprint.get_mut(fingerprint)?.iter_mut().find(|o| o.id == id)
    }

    fn add(&mut self, fingerprint: Fingerprint, order: Order) {
        if self.len >= ORDERS_MAX {
            self.forget(order.id);
        }
        self.by_fingerprint.entry(fingerprint).or_default().push(order);
        self.len += 1;
    }

    fn remove_if(&mut self, fingerprint: &Fingerprint, gone: impl Fn(&Order) -> bool) {
        let Some(orders) = self.by_fingerprint.get_mut(fingerprint) else { return };
        let before = orders.len();
        orders.retain(|o| !gone(o));
        self.len -= before - orders.len();
        if orders.is_empty() {
            self.by_fingerprint.remove(fingerprint);
        }
    }

    /// Forgets what nobody can come again for; if that is not enough, what nobody waits for: calls that were made first, then
    /// the older half of those whose outcome is not known, then all.
    fn forget(&mut self, newest: u64) {
        let half = newest.saturating_sub(ORDERS_MAX as u64 / 2);
        self.keep(|o| !o.is_stale());
        let made = |o: &Order| matches!(o.known, Known::Created(_));
        let all: [&dyn Fn(&Order) -> bool; 3] = [&made, &|o| o.id < half, &|_| true];
        for goes in all {
            if self.len >= ORDERS_MAX {
                self.keep(|o| !o.asker.has_left() || !goes(o));
            }
        }
    }

    fn keep(&mut self, keep: impl Fn(&Order) -> bool) {
        for orders in self.by_fingerprint.values_mut() {
            orders.retain(&keep);
        }
        self.by_fingerprint.retain(|_, orders| !orders.is_empty());
        self.len = self.by_fingerprint.values().map(Vec::len).sum();
    }
}

impl Order {
    fn may_come_again(&self) -> bool {
        !self.delivered && !self.is_stale()
    }

    /// Its answer waited too long for somebody to come again.
    fn is_stale(&self) -> bool {
        matches!(self.known, Known::Created(_)) && self.asker.left.get().is_some_and(|at| at.elapsed() > KEPT)
    }
}

/// Every order that may come again. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Reposts {
    orders: Arc<Mutex<Orders>>,
    ids: Arc<AtomicU64>,
    /// Room for answers that are kept, in bytes.
    room: Arc<Semaphore>,
}

impl Default for Reposts {
    fn default() -> Self {
        Self { orders: Arc::default(), ids: Arc::default(), room: Arc::new(Semaphore::new(ANSWERS_BYTES_MAX)) }
    }
}

impl Reposts {
    /// Keeps an answer, if there is room for it.
    fn keep(&self, answer: &Response<Bytes>) -> Option<Kept> {
        let bytes = size(answer);
        if bytes > ANSWER_BYTES_MAX {
            return None;
        }
        let take = || self.room.clone().try_acquire_many_owned(u32::try_from(bytes).unwrap_or(u32::MAX)).ok();
        let room = take().or_else(|| {
            self.orders().keep(|o| !o.is_stale());
            take()
        })?;
        Some(Kept { answer: answer.clone(), _room: room })
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        // Every change is one push, one removal or one assignment: a panic elsewhere leaves nothing half done.
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client of an order that came in.
    pub(super) fn asker(&self, fingerprint: Fingerprint) -> Asker {
        Asker(Client { reposts: self.clone(), fingerprint, presence: Arc::default() })
    }

    /// Whether the order that this client sends is an earlier one. If so, the client waits in the earlier one's place.
    ///
    /// The second look sees only clients that have hung up since: an equal order that was told its outcome meanwhile, known or
    /// not, was sent beside this one.
    pub(super) fn arrive(&self, client: &Client, second_look: bool) -> Arrived {
        let mut orders = self.orders();
        let same = orders.by_fingerprint.get_mut(&client.fingerprint).map(Vec::as_mut_slice).unwrap_or_default();
        // Each client takes an order that nobody waits for; one that is unknown answers all who ask.
        let earlier = if second_look {
            same.iter().position(|o| o.asker.has_hung_up() && o.may_come_again())
        } else {
            let left = same.iter().position(|o| o.asker.has_left() && o.may_come_again());
            left.or_else(|| same.iter().position(|o| matches!(o.known, Known::Unknown)))
        };
        if let Some(order) = earlier.and_then(|at| same.get_mut(at)) {
            if order.asker.has_left() {
                (order.asker, order.told_unknown) = (client.presence.clone(), false);
            }
            return Arrived::Again(self.refer(client, order.id));
        }
        if !second_look && same.iter().any(|o| !o.is_stale()) {
            return Arrived::Beside;
        }
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let asker = client.presence.clone();
        let order = Order { id, asker, call: None, known: Known::UnderWay, told_unknown: false, delivered: false };
        orders.add(client.fingerprint.clone(), order);
        Arrived::New(self.refer(client, id))
    }

    /// The order of a call, if it is still under this module's eyes.
    pub(super) fn of_call(&self, client: &Client, call: &CallId) -> Option<OrderRef> {
        let mut orders = self.orders();
        let same = orders.by_fingerprint.get_mut(&client.fingerprint)?;
        let order = same.iter_mut().find(|o| o.call.as_ref() == Some(call))?;
        if order.asker.has_left() {
            (order.asker, order.told_unknown) = (client.presence.clone(), false);
        }
        Some(self.refer(client, order.id))
    }

    fn refer(&self, client: &Client, id: u64) -> OrderRef {
        OrderRef { reposts: self.clone(), fingerprint: client.fingerprint.clone(), id }
    }

    /// Takes over the orders of the last process that may come again: those of open calls, and of the latest.
    pub fn restore<'a>(&self, calls: impl IntoIterator<Item = &'a CallRecord>, now_ms: UnixMs) {
        let mut orders = self.orders();
        let mut seen = HashSet::new();
        for call in calls {
            let Some(fingerprint) = &call.fingerprint else { continue };
            let over = standing(call, now_ms) == Standing::Over;
            let known = if over || !seen.insert(&call.id) {
                continue;
            } else if call.unsettled {
                Known::Unknown
            } else if call.admitted_at + UNCONFIRMED_WINDOW_MS >= now_ms {
                Known::Created(None)
            } else {
                continue;
            };
            let presence = Presence::default();
            let _ = presence.left.set(Instant::now());
            let order = Order {
                id: self.ids.fetch_add(1, Ordering::Relaxed),
                asker: Arc::new(presence),
                call: Some(call.id.clone()),
                known,
                told_unknown: false,
                delivered: false,
            };
            orders.add(Fingerprint(fingerprint.clone()), order);
        }
    }

    /// The id under which an SDK's order was refused a moment ago, if this is its next try: its tries are one refusal. `told`: the
    /// longest wait that it is told. What comes later is another order.
    pub(super) fn refused_before(&self, fingerprint: &Fingerprint, told: Duration) -> Option<RefusalId> {
        let mut orders = self.orders();
        let refused = orders.refused.get_mut(fingerprint)?;
        let since = refused.at.elapsed();
        if since < SDK_SLEEPS || since > (told * 6 / 5 + SDK_DELAY).min(SDK_GIVES_UP) || refused.tries >= SDK_TRIES {
            return None;
        }
        (refused.tries, refused.at) = (refused.tries + 1, Instant::now());
        Some(refused.id.clone())
    }

    /// An SDK that will come back was refused.
    pub(super) fn refused(&self, fingerprint: &Fingerprint, id: &RefusalId) {
        let mut orders = self.orders();
        if orders.refused.len() >= ORDERS_MAX {
            orders.refused.retain(|_, r| r.at.elapsed() < SDK_GIVES_UP);
        }
        if orders.refused.len() < ORDERS_MAX {
            let refused = Refused { id: id.clone(), at: Instant::now(), tries: 1 };
            orders.refused.insert(fingerprint.clone(), refused);
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.orders().len
    }
}

/// Where an earlier order's call stands for those who sent the order again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nobody knows yet whether there is a call.
    Unknown,
    /// There is one, or was until a moment ago.
    Called,
    /// There never was one, or it is over: the order is a new one.
    Over,
}

/// Reads it off the record.
pub(super) fn standing(call: &CallRecord, now_ms: UnixMs) -> Standing {
    standing_of(call.phase, call.outcome, call.ended_at, call.unsettled, now_ms)
}

/// The same of what a record says of it.
pub(super) fn standing_of(
    phase: Phase,
    outcome: Option<Outcome>,
    ended_at: Option<UnixMs>,
    unsettled: bool,
    now_ms: UnixMs,
) -> Standing {
    match (phase, outcome, ended_at) {
        (Phase::Ended, Some(Outcome::NotCreated), _) => Standing::Over,
        (Phase::Ended, _, Some(at)) if at + AFTER_END_MS < now_ms => Standing::Over,
        (Phase::Ended, ..) => Standing::Called,
        (Phase::Reserved, ..) => Standing::Unknown,
        _ if unsettled => Standing::Unknown,
        _ => Standing::Called,
    }
}

#[cfg(test)]
mod tests;
