//! Create requests known to this process: those in progress, and those whose response may not have reached the app.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::fingerprint::Fingerprint;
use super::state::{IdempotencyState, state};
use crate::clock::UnixMs;
use crate::ids::CallId;
use crate::store::CallRecord;
use crate::sync::lock;

/// The response to a call created this shortly before a restart counts as not delivered, in milliseconds.
pub(super) const UNCONFIRMED_WINDOW_MS: i64 = 60_000;

/// The time for which an undelivered response is kept for a retry of its request: SDKs give up within two minutes, job queues retry within
/// ten.
const RESPONSE_KEPT_FOR: Duration = Duration::from_secs(600);
/// The time for which a request waits to see whether the client of an equal one in progress has disconnected. A retrying client has closed
/// its first connection, which may be noticed a moment after the retry arrives on another.
pub(super) const NOTICED_WITHIN: Duration = Duration::from_millis(100);
/// Requests that are remembered. Beyond that, those without a waiting client are dropped first.
const REQUESTS_MAX: usize = 50_000;
/// The largest response that is kept, in bytes; a larger one is rebuilt from the call record.
pub(super) const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// All responses that are kept in memory, in bytes. Others are read from the call record.
const ANSWERS_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The state of a client that waits for its response.
#[derive(Debug, Default)]
pub(in crate::calls) struct ClientState {
    left: OnceLock<Instant>,
    /// A response was written to it.
    response_written: AtomicBool,
    /// Whether the client has received its response.
    response_received: AtomicBool,
    changed: Notify,
}

impl ClientState {
    /// Whether the client has disconnected, or has its response.
    pub(in crate::calls) fn has_left(&self) -> bool {
        self.left.get().is_some()
    }

    /// Waits until it disconnects without its response (`true`), or has received it (`false`).
    pub(super) async fn disconnects(&self) -> bool {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.has_disconnected() {
                return true;
            }
            if self.response_received.load(Ordering::Relaxed) {
                return false;
            }
            changed.await;
        }
    }

    pub(super) fn has_disconnected(&self) -> bool {
        self.has_left() && !self.response_written.load(Ordering::Relaxed)
    }
}

/// The connection's side of a request's client. Dropping it means that the client disconnected without its response.
#[derive(Debug)]
pub struct ClientHandle {
    requests: InFlightRequests,
    fingerprint: Fingerprint,
    client: Arc<ClientState>,
}

impl ClientHandle {
    /// The request's side of the client.
    pub(in crate::calls) fn client(&self) -> Arc<ClientState> {
        self.client.clone()
    }

    /// Reports that the client disconnected.
    pub fn gone(&self) {
        let _ = self.client.left.set(Instant::now());
        self.client.changed.notify_waiters();
    }

    /// Reports that the response was written to the client. If it had a known outcome, the request is finished for this module,
    /// unless it turns out that the client never read it.
    pub fn delivered(self) -> DeliveryGuard {
        self.client.response_written.store(true, Ordering::Relaxed);
        let mut all = self.requests.lock();
        for one in all.by_fingerprint.get_mut(&self.fingerprint).into_iter().flatten() {
            if Arc::ptr_eq(&one.client, &self.client) && !one.reported_unknown {
                one.delivered = true;
            }
        }
        drop(all);
        // No client waits on this connection any more.
        self.gone();
        DeliveryGuard(self)
    }
}

/// A client that was written a response which it has not acknowledged yet. Dropping the guard means that it received the
/// response.
#[derive(Debug)]
pub struct DeliveryGuard(ClientHandle);

impl DeliveryGuard {
    /// Reports that its connection was reset: it disconnected before the response arrived.
    pub fn lost(self) {
        let handle = &self.0;
        handle.client.response_written.store(false, Ordering::Relaxed);
        handle.client.changed.notify_waiters();
        let mut all = handle.requests.lock();
        for one in all.by_fingerprint.get_mut(&handle.fingerprint).into_iter().flatten() {
            one.delivered &= !Arc::ptr_eq(&one.client, &handle.client);
        }
    }
}

impl Drop for DeliveryGuard {
    fn drop(&mut self) {
        let handle = &self.0;
        handle.client.response_received.store(true, Ordering::Relaxed);
        handle.client.changed.notify_waiters();
        let is_mine = |request: &InFlight| Arc::ptr_eq(&request.client, &handle.client);
        handle.requests.lock().remove_if(&handle.fingerprint, |request| is_mine(request) && request.delivered);
    }
}

impl Drop for ClientHandle {
    fn drop(&mut self) {
        self.gone();
    }
}

/// The progress of a request.
#[derive(Debug, Clone)]
pub(in crate::calls) enum Progress {
    /// In progress.
    UnderWay,
    /// The provider's response was lost; the call record will show the outcome.
    Unknown,
    /// The request made a call; with the provider's response, where it is kept.
    Created(Option<Arc<Kept>>),
}

/// A provider's response, and its share of [`ANSWERS_BYTES_MAX`].
#[derive(Debug)]
pub(in crate::calls) struct Kept {
    pub(super) answer: Response<Bytes>,
    _room: OwnedSemaphorePermit,
}

/// The size of a response, in bytes.
pub(super) fn size(answer: &Response<Bytes>) -> usize {
    let head: usize = answer.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    head + answer.body().len()
}

#[derive(Debug)]
struct InFlight {
    id: u64,
    client: Arc<ClientState>,
    call: Option<CallId>,
    progress: Progress,
    /// The client was told that the outcome is unknown: the real outcome is undelivered.
    reported_unknown: bool,
    /// Whether the response was written; its client has not acknowledged it.
    delivered: bool,
}

/// One tracked request.
#[derive(Debug, Clone)]
pub(in crate::calls) struct InFlightRef {
    requests: InFlightRequests,
    fingerprint: Fingerprint,
    id: u64,
}

impl InFlightRef {
    fn change(&self, change: impl FnOnce(&mut InFlight)) {
        let mut all = self.requests.lock();
        if let Some(request) = all.get(&self.fingerprint, self.id) {
            change(request);
        }
    }

    /// Whether this client waits for it, or was the last to do so.
    pub(super) fn is_of(&self, client: &Arc<ClientState>) -> bool {
        let mut all = self.requests.lock();
        all.get(&self.fingerprint, self.id).is_some_and(|request| Arc::ptr_eq(&request.client, client))
    }

    /// Whether the request's client disconnected, and no other has taken its place.
    pub(in crate::calls) fn is_abandoned_by_client(&self) -> bool {
        let mut all = self.requests.lock();
        all.get(&self.fingerprint, self.id).is_some_and(|request| request.client.has_left())
    }

    /// Notes that the request made a call.
    fn created(&self, answer: &Response<Bytes>) {
        let kept = self.requests.keep(answer).map(Arc::new);
        self.change(|request| request.progress = Progress::Created(kept));
    }

    /// The provider's response was lost.
    fn unknown(&self) {
        self.change(|request| request.progress = Progress::Unknown);
    }

    /// Marks the outcome as reported unknown to its client.
    pub(in crate::calls) fn mark_reported_unknown(&self) {
        self.change(|request| request.reported_unknown = true);
    }

    /// Notes that the request made no call: a retry is a new request.
    pub(super) fn not_created(&self) {
        self.requests.lock().remove_if(&self.fingerprint, |request| request.id == self.id);
    }

    /// The task that had to settle it failed. If it was recorded it may have been sent; otherwise it was not.
    fn abandoned(&self) {
        let mut all = self.requests.lock();
        all.remove_if(&self.fingerprint, |request| request.id == self.id && request.call.is_none());
        if let Some(request) = all.get(&self.fingerprint, self.id)
            && matches!(request.progress, Progress::UnderWay)
        {
            (request.progress, request.reported_unknown) = (Progress::Unknown, true);
        }
    }

    /// Returns the request's call, once recorded, and its progress. `None`: the request is finished.
    pub(super) fn look(&self) -> Option<(Option<CallId>, Progress)> {
        let mut all = self.requests.lock();
        all.get(&self.fingerprint, self.id).map(|request| (request.call.clone(), request.progress.clone()))
    }
}

/// The outcome of sending a create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::calls) enum SendOutcome {
    /// The create made a call.
    Created,
    /// The create made no call.
    NotCreated,
    /// The outcome is unknown.
    Unknown,
}

/// The right to admit and send a new request, and the duty to settle it. Dropped unsettled, by a rejection or a panic, it settles
/// itself: duplicates must not wait for ever.
#[must_use]
pub(in crate::calls) struct Claim {
    request: InFlightRef,
    is_settled: bool,
}

impl Claim {
    /// The tracked request.
    pub(in crate::calls) fn request(&self) -> &InFlightRef {
        &self.request
    }

    /// Notes that the request's call is recorded.
    pub(in crate::calls) fn recorded(&self, call: &CallId) {
        self.request.change(|request| request.call = Some(call.clone()));
    }

    /// Settles it with this outcome.
    pub(in crate::calls) fn settle(mut self, outcome: SendOutcome, answer: &Response<Bytes>) {
        self.is_settled = true;
        match outcome {
            SendOutcome::Created => self.request.created(answer),
            SendOutcome::NotCreated => self.request.not_created(),
            SendOutcome::Unknown => {
                self.request.unknown();
                self.request.mark_reported_unknown();
            }
        }
    }

    /// Notes that the request made no call: a retry is a new request.
    pub(in crate::calls) fn not_created(mut self) {
        self.is_settled = true;
        self.request.not_created();
    }

    /// Merges it into an earlier request of another replica, with its call and progress.
    pub(super) fn merge_into(mut self, call: &CallId, progress: Progress) -> InFlightRef {
        self.is_settled = true;
        self.request.change(|request| (request.call, request.progress) = (Some(call.clone()), progress));
        self.request.clone()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.is_settled {
            self.request.abandoned();
        }
    }
}

/// The relation of a request to earlier ones.
pub(super) enum Lookup {
    /// A new request.
    New(Claim),
    /// A duplicate of this one.
    Duplicate(InFlightRef),
    /// An equal one is in progress, and its client may have disconnected unnoticed: look again after [`NOTICED_WITHIN`].
    Concurrent,
}

/// The number of the look-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// The first.
    First,
    /// After [`NOTICED_WITHIN`].
    Second,
}

#[derive(Debug, Default)]
struct Table {
    by_fingerprint: HashMap<Fingerprint, Vec<InFlight>>,
    len: usize,
}

impl Table {
    fn get(&mut self, fingerprint: &Fingerprint, id: u64) -> Option<&mut InFlight> {
        self.by_fingerprint.get_mut(fingerprint)?.iter_mut().find(|request| request.id == id)
    }

    fn add(&mut self, fingerprint: Fingerprint, request: InFlight) {
        if self.len >= REQUESTS_MAX {
            self.forget(request.id);
        }
        self.by_fingerprint.entry(fingerprint).or_default().push(request);
        self.len += 1;
    }

    fn remove_if(&mut self, fingerprint: &Fingerprint, gone: impl Fn(&InFlight) -> bool) {
        let Some(all) = self.by_fingerprint.get_mut(fingerprint) else { return };
        let before = all.len();
        all.retain(|request| !gone(request));
        self.len -= before - all.len();
        if all.is_empty() {
            self.by_fingerprint.remove(fingerprint);
        }
    }

    /// Removes what can no longer be retried. If that is not enough, removes requests without a waiting client: those that made
    /// calls first, then the older half of those with an unknown outcome, then all.
    fn forget(&mut self, newest: u64) {
        let half = newest.saturating_sub(REQUESTS_MAX as u64 / 2);
        self.keep(|request| !request.is_stale());
        let made = |request: &InFlight| matches!(request.progress, Progress::Created(_));
        let all: [&dyn Fn(&InFlight) -> bool; 3] = [&made, &|request| request.id < half, &|_| true];
        for goes in all {
            if self.len >= REQUESTS_MAX {
                self.keep(|request| !request.client.has_left() || !goes(request));
            }
        }
    }

    fn keep(&mut self, keep: impl Fn(&InFlight) -> bool) {
        for all in self.by_fingerprint.values_mut() {
            all.retain(&keep);
        }
        self.by_fingerprint.retain(|_, all| !all.is_empty());
        self.len = self.by_fingerprint.values().map(Vec::len).sum();
    }
}

impl InFlight {
    fn may_be_retried(&self) -> bool {
        !self.delivered && !self.is_stale()
    }

    /// Whether the response was kept too long without a retry.
    fn is_stale(&self) -> bool {
        matches!(self.progress, Progress::Created(_))
            && self.client.left.get().is_some_and(|at| at.elapsed() > RESPONSE_KEPT_FOR)
    }
}

/// All requests that may be retried. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct InFlightRequests {
    table: Arc<Mutex<Table>>,
    ids: Arc<AtomicU64>,
    /// Room for kept responses, in bytes.
    room: Arc<Semaphore>,
}

impl Default for InFlightRequests {
    fn default() -> Self {
        Self { table: Arc::default(), ids: Arc::default(), room: Arc::new(Semaphore::new(ANSWERS_BYTES_MAX)) }
    }
}

impl InFlightRequests {
    /// Keeps a response, if there is room for it.
    fn keep(&self, answer: &Response<Bytes>) -> Option<Kept> {
        let bytes = size(answer);
        if bytes > ANSWER_BYTES_MAX {
            return None;
        }
        let take = || self.room.clone().try_acquire_many_owned(u32::try_from(bytes).unwrap_or(u32::MAX)).ok();
        let room = take().or_else(|| {
            self.lock().keep(|request| !request.is_stale());
            take()
        })?;
        Some(Kept { answer: answer.clone(), _room: room })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Every change is one push, removal or assignment: a panic elsewhere leaves no partial change.
        lock(&self.table)
    }

    /// Creates the client of an incoming request.
    pub(in crate::calls) fn client(&self, fingerprint: &Fingerprint) -> ClientHandle {
        ClientHandle { requests: self.clone(), fingerprint: fingerprint.clone(), client: Arc::default() }
    }

    /// Looks up whether this client's request is a duplicate. If it is, the client takes the earlier client's place.
    ///
    /// The second look-up considers only clients that disconnected since the first: an equal request that was answered meanwhile
    /// was sent in parallel.
    pub(super) fn find(&self, fingerprint: &Fingerprint, client: &Arc<ClientState>, look: Look) -> Lookup {
        let mut all = self.lock();
        let same = all.by_fingerprint.get_mut(fingerprint).map(Vec::as_mut_slice).unwrap_or_default();
        // Each client takes one abandoned request; one with an unknown outcome answers all duplicates.
        let earlier = if look == Look::Second {
            same.iter().position(|request| request.client.has_disconnected() && request.may_be_retried())
        } else {
            let left = same.iter().position(|request| request.client.has_left() && request.may_be_retried());
            left.or_else(|| same.iter().position(|request| matches!(request.progress, Progress::Unknown)))
        };
        if let Some(request) = earlier.and_then(|at| same.get_mut(at)) {
            if request.client.has_left() {
                (request.client, request.reported_unknown) = (client.clone(), false);
            }
            return Lookup::Duplicate(self.refer(fingerprint, request.id));
        }
        if look == Look::First && same.iter().any(|request| !request.is_stale()) {
            return Lookup::Concurrent;
        }
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let client = client.clone();
        let request = InFlight {
            id,
            client,
            call: None,
            progress: Progress::UnderWay,
            reported_unknown: false,
            delivered: false,
        };
        all.add(fingerprint.clone(), request);
        Lookup::New(Claim { request: self.refer(fingerprint, id), is_settled: false })
    }

    /// The request that made a call, if it is still tracked.
    pub(super) fn of_call(
        &self,
        fingerprint: &Fingerprint,
        client: &Arc<ClientState>,
        call: &CallId,
    ) -> Option<InFlightRef> {
        let mut all = self.lock();
        let same = all.by_fingerprint.get_mut(fingerprint)?;
        let request = same.iter_mut().find(|request| request.call.as_ref() == Some(call))?;
        if request.client.has_left() {
            (request.client, request.reported_unknown) = (client.clone(), false);
        }
        Some(self.refer(fingerprint, request.id))
    }

    fn refer(&self, fingerprint: &Fingerprint, id: u64) -> InFlightRef {
        InFlightRef { requests: self.clone(), fingerprint: fingerprint.clone(), id }
    }

    /// Restores the requests of the previous process that may be retried: those of open calls, and the latest ones.
    pub fn restore<'a>(&self, calls: impl IntoIterator<Item = &'a CallRecord>, now_ms: UnixMs) {
        let mut all = self.lock();
        let mut seen = HashSet::new();
        for call in calls {
            let Some(fingerprint) = &call.fingerprint else { continue };
            let over = state(call, now_ms) == IdempotencyState::Over;
            let progress = if over || !seen.insert(&call.id) {
                continue;
            } else if call.unsettled {
                Progress::Unknown
            } else if call.admitted_at + UNCONFIRMED_WINDOW_MS >= now_ms {
                Progress::Created(None)
            } else {
                continue;
            };
            let client = ClientState::default();
            let _ = client.left.set(Instant::now());
            let request = InFlight {
                id: self.ids.fetch_add(1, Ordering::Relaxed),
                client: Arc::new(client),
                call: Some(call.id.clone()),
                progress,
                reported_unknown: false,
                delivered: false,
            };
            all.add(Fingerprint(fingerprint.clone()), request);
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.lock().len
    }
}

#[cfg(test)]
mod tests;
