//! The create requests that this process knows: those under way, and those whose answer may not have reached the app.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::fingerprint::Fingerprint;
use super::state::{IdempotencyState, state};
use crate::clock::UnixMs;
use crate::ids::CallId;
use crate::store::CallRecord;

/// Calls created so shortly before a restart may have been answered to nobody.
pub(super) const UNCONFIRMED_WINDOW_MS: i64 = 60_000;

/// How long an answer that nobody took waits for its request to come again: SDKs give up within two minutes, workers retry
/// within ten.
const KEPT: Duration = Duration::from_secs(600);
/// How long a request waits to see whether an equal one under way has lost its client: the client of a repeat has closed its
/// first connection, which may be noticed a moment after the repeat has come on another.
pub(super) const NOTICED_WITHIN: Duration = Duration::from_millis(100);
/// Requests that are remembered. Those beyond are forgotten, those that nobody waits for first.
const REQUESTS_MAX: usize = 50_000;
/// The largest answer that is kept, in bytes; a larger one is made anew from the record.
pub(super) const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// All answers that are kept in memory, in bytes. What has no room is read from the record.
const ANSWERS_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Whether a client still waits for its answer.
#[derive(Debug, Default)]
pub(in crate::calls) struct ClientState {
    left: OnceLock<Instant>,
    /// It was written an answer.
    told: AtomicBool,
    /// It has its answer.
    heard: AtomicBool,
    changed: Notify,
}

impl ClientState {
    /// It has gone, or has its answer.
    pub(in crate::calls) fn has_left(&self) -> bool {
        self.left.get().is_some()
    }

    /// Waits until it has gone without its answer, or has it (`false`).
    pub(super) async fn hangs_up(&self) -> bool {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.has_hung_up() {
                return true;
            }
            if self.heard.load(Ordering::Relaxed) {
                return false;
            }
            changed.await;
        }
    }

    fn has_hung_up(&self) -> bool {
        self.has_left() && !self.told.load(Ordering::Relaxed)
    }
}

/// The client of a request, as its connection sees it. Dropping it says that the client has gone without its answer.
#[derive(Debug)]
pub struct ClientHandle {
    requests: InFlightRequests,
    fingerprint: Fingerprint,
    client: Arc<ClientState>,
}

impl ClientHandle {
    /// The client, as its request sees it.
    pub(in crate::calls) fn client(&self) -> Arc<ClientState> {
        self.client.clone()
    }

    /// The client has gone.
    pub fn gone(&self) {
        let _ = self.client.left.set(Instant::now());
        self.client.changed.notify_waiters();
    }

    /// The answer was written to the client. If it said what became of the request, the request is over for this module, unless it
    /// turns out that the client never read it.
    pub fn delivered(self) -> DeliveryGuard {
        self.client.told.store(true, Ordering::Relaxed);
        let mut all = self.requests.lock();
        for one in all.by_fingerprint.get_mut(&self.fingerprint).into_iter().flatten() {
            one.delivered = Arc::ptr_eq(&one.client, &self.client) && !one.told_unknown || one.delivered;
        }
        drop(all);
        // Nobody waits on this connection any more.
        self.gone();
        DeliveryGuard(self)
    }
}

/// A client that was written an answer, and of which nothing has been heard since. Dropping it says that it has it.
#[derive(Debug)]
pub struct DeliveryGuard(ClientHandle);

impl DeliveryGuard {
    /// Its connection was reset: it had gone before the answer came.
    pub fn lost(self) {
        let handle = &self.0;
        handle.client.told.store(false, Ordering::Relaxed);
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
        handle.client.heard.store(true, Ordering::Relaxed);
        handle.client.changed.notify_waiters();
        let is_mine = |o: &InFlight| Arc::ptr_eq(&o.client, &handle.client);
        handle.requests.lock().remove_if(&handle.fingerprint, |o| is_mine(o) && o.delivered);
    }
}

impl Drop for ClientHandle {
    fn drop(&mut self) {
        self.gone();
    }
}

/// What is known of a request's outcome.
#[derive(Debug, Clone)]
pub(in crate::calls) enum Progress {
    /// It is under way.
    UnderWay,
    /// Its answer was lost; its record will tell.
    Unknown,
    /// There is a call; with the provider's answer, where it is kept.
    Created(Option<Arc<Kept>>),
}

/// A provider's answer, and its part of [`ANSWERS_BYTES_MAX`].
#[derive(Debug)]
pub(in crate::calls) struct Kept {
    pub(super) answer: Response<Bytes>,
    _room: OwnedSemaphorePermit,
}

/// What an answer takes, in bytes.
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
    /// The client was told that the outcome is unknown: what it waits for has not been delivered.
    told_unknown: bool,
    /// Its answer was written, and nothing has been heard of its client since.
    delivered: bool,
}

/// One request under this module's care.
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

    /// Whether it is this client that waits for it, or has gone from it last.
    pub(super) fn is_of(&self, client: &Arc<ClientState>) -> bool {
        let mut all = self.requests.lock();
        all.get(&self.fingerprint, self.id).is_some_and(|o| Arc::ptr_eq(&o.client, client))
    }

    /// Its client has gone, and none has come in its place.
    pub(in crate::calls) fn is_abandoned_by_client(&self) -> bool {
        let mut all = self.requests.lock();
        all.get(&self.fingerprint, self.id).is_some_and(|o| o.client.has_left())
    }

    /// There is a call.
    fn created(&self, answer: &Response<Bytes>) {
        let kept = self.requests.keep(answer).map(Arc::new);
        self.change(|o| o.progress = Progress::Created(kept));
    }

    /// Its answer was lost.
    fn unknown(&self) {
        self.change(|o| o.progress = Progress::Unknown);
    }

    /// Its client is told that the outcome is unknown.
    pub(in crate::calls) fn mark_reported_unknown(&self) {
        self.change(|o| o.told_unknown = true);
    }

    /// It made no call: who sends it again starts anew.
    pub(super) fn not_created(&self) {
        self.requests.lock().remove_if(&self.fingerprint, |o| o.id == self.id);
    }

    /// Whoever was to settle it came to grief. What is on record may have been sent; what is not was not.
    fn abandoned(&self) {
        let mut all = self.requests.lock();
        all.remove_if(&self.fingerprint, |o| o.id == self.id && o.call.is_none());
        if let Some(request) = all.get(&self.fingerprint, self.id)
            && matches!(request.progress, Progress::UnderWay)
        {
            (request.progress, request.told_unknown) = (Progress::Unknown, true);
        }
    }

    /// Its call, once it is on record, and what is known. `None`: it is over.
    pub(super) fn look(&self) -> Option<(Option<CallId>, Progress)> {
        let mut all = self.requests.lock();
        all.get(&self.fingerprint, self.id).map(|o| (o.call.clone(), o.progress.clone()))
    }
}

/// What a provider's answer, or the want of one, says about a create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::calls) enum SendOutcome {
    /// There is a call.
    Created,
    /// There is none.
    NotCreated,
    /// Nobody knows yet.
    Unknown,
}

/// The right to admit and send a new request, and the duty to settle it: dropped before that, as with a rejection or by a panic, it
/// must not stay under way for ever. Who sends it again would wait for nobody.
#[must_use]
pub(in crate::calls) struct Claim {
    request: InFlightRef,
    is_settled: bool,
}

impl Claim {
    /// The request itself.
    pub(in crate::calls) fn request(&self) -> &InFlightRef {
        &self.request
    }

    /// It is on record as this call.
    pub(in crate::calls) fn recorded(&self, call: &CallId) {
        self.request.change(|o| o.call = Some(call.clone()));
    }

    /// It was settled, with this outcome.
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

    /// It made no call: who sends it again starts anew.
    pub(in crate::calls) fn not_created(mut self) {
        self.is_settled = true;
        self.request.not_created();
    }

    /// It came to another replica before, is this call, and has come so far.
    pub(super) fn become_earlier(mut self, call: &CallId, progress: Progress) -> InFlightRef {
        self.is_settled = true;
        self.request.change(|o| (o.call, o.progress) = (Some(call.clone()), progress));
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

/// What a request is to those before it.
pub(super) enum Lookup {
    /// It is one of its own.
    New(Claim),
    /// It is this earlier one, sent again.
    Duplicate(InFlightRef),
    /// An equal one is under way, whose client may have gone unnoticed: look again in [`NOTICED_WITHIN`].
    Concurrent,
}

/// Which look at the requests before it this is.
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
        self.by_fingerprint.get_mut(fingerprint)?.iter_mut().find(|o| o.id == id)
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
        all.retain(|o| !gone(o));
        self.len -= before - all.len();
        if all.is_empty() {
            self.by_fingerprint.remove(fingerprint);
        }
    }

    /// Forgets what nobody can come again for; if that is not enough, what nobody waits for: calls that were made first, then
    /// the older half of those whose outcome is not known, then all.
    fn forget(&mut self, newest: u64) {
        let half = newest.saturating_sub(REQUESTS_MAX as u64 / 2);
        self.keep(|o| !o.is_stale());
        let made = |o: &InFlight| matches!(o.progress, Progress::Created(_));
        let all: [&dyn Fn(&InFlight) -> bool; 3] = [&made, &|o| o.id < half, &|_| true];
        for goes in all {
            if self.len >= REQUESTS_MAX {
                self.keep(|o| !o.client.has_left() || !goes(o));
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
    fn may_come_again(&self) -> bool {
        !self.delivered && !self.is_stale()
    }

    /// Its answer waited too long for somebody to come again.
    fn is_stale(&self) -> bool {
        matches!(self.progress, Progress::Created(_)) && self.client.left.get().is_some_and(|at| at.elapsed() > KEPT)
    }
}

/// Every request that may come again. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct InFlightRequests {
    table: Arc<Mutex<Table>>,
    ids: Arc<AtomicU64>,
    /// Room for answers that are kept, in bytes.
    room: Arc<Semaphore>,
}

impl Default for InFlightRequests {
    fn default() -> Self {
        Self { table: Arc::default(), ids: Arc::default(), room: Arc::new(Semaphore::new(ANSWERS_BYTES_MAX)) }
    }
}

impl InFlightRequests {
    /// Keeps an answer, if there is room for it.
    fn keep(&self, answer: &Response<Bytes>) -> Option<Kept> {
        let bytes = size(answer);
        if bytes > ANSWER_BYTES_MAX {
            return None;
        }
        let take = || self.room.clone().try_acquire_many_owned(u32::try_from(bytes).unwrap_or(u32::MAX)).ok();
        let room = take().or_else(|| {
            self.lock().keep(|o| !o.is_stale());
            take()
        })?;
        Some(Kept { answer: answer.clone(), _room: room })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Every change is one push, one removal or one assignment: a panic elsewhere leaves nothing half done.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client of a request that came in.
    pub(in crate::calls) fn client(&self, fingerprint: &Fingerprint) -> ClientHandle {
        ClientHandle { requests: self.clone(), fingerprint: fingerprint.clone(), client: Arc::default() }
    }

    /// Whether the request that this client sends is an earlier one. If so, the client waits in the earlier one's place.
    ///
    /// The second look sees only clients that have hung up since: an equal request that was told its outcome meanwhile, known or
    /// not, was sent beside this one.
    pub(super) fn find(&self, fingerprint: &Fingerprint, client: &Arc<ClientState>, look: Look) -> Lookup {
        let mut all = self.lock();
        let same = all.by_fingerprint.get_mut(fingerprint).map(Vec::as_mut_slice).unwrap_or_default();
        // Each client takes a request that nobody waits for; one that is unknown answers all who ask.
        let earlier = if look == Look::Second {
            same.iter().position(|o| o.client.has_hung_up() && o.may_come_again())
        } else {
            let left = same.iter().position(|o| o.client.has_left() && o.may_come_again());
            left.or_else(|| same.iter().position(|o| matches!(o.progress, Progress::Unknown)))
        };
        if let Some(request) = earlier.and_then(|at| same.get_mut(at)) {
            if request.client.has_left() {
                (request.client, request.told_unknown) = (client.clone(), false);
            }
            return Lookup::Duplicate(self.refer(fingerprint, request.id));
        }
        if look == Look::First && same.iter().any(|o| !o.is_stale()) {
            return Lookup::Concurrent;
        }
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let client = client.clone();
        let request =
            InFlight { id, client, call: None, progress: Progress::UnderWay, told_unknown: false, delivered: false };
        all.add(fingerprint.clone(), request);
        Lookup::New(Claim { request: self.refer(fingerprint, id), is_settled: false })
    }

    /// The request of a call, if it is still under this module's care.
    pub(super) fn of_call(
        &self,
        fingerprint: &Fingerprint,
        client: &Arc<ClientState>,
        call: &CallId,
    ) -> Option<InFlightRef> {
        let mut all = self.lock();
        let same = all.by_fingerprint.get_mut(fingerprint)?;
        let request = same.iter_mut().find(|o| o.call.as_ref() == Some(call))?;
        if request.client.has_left() {
            (request.client, request.told_unknown) = (client.clone(), false);
        }
        Some(self.refer(fingerprint, request.id))
    }

    fn refer(&self, fingerprint: &Fingerprint, id: u64) -> InFlightRef {
        InFlightRef { requests: self.clone(), fingerprint: fingerprint.clone(), id }
    }

    /// Takes over the requests of the last process that may come again: those of open calls, and of the latest.
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
                told_unknown: false,
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
