//! What is new in the calls that somebody here follows: read once from the record, however many follow.
//!
//! A bell says that there is something; how far each follower is, it knows itself. So a bell that was lost, rung twice or rung at
//! another replica changes nothing, and neither does a process that dies: whoever comes again says how far it was. What a bell
//! tells is taken if it is the next of its call; else the record is read.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::broadcast::error::RecvError;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::message;
use crate::call::Phase;
use crate::clock::Clock;
use crate::ids::CallId;
use crate::notify::{self, Hub};
use crate::store::{CallRecord, Result, Store, StoredPostCall, Utterance, UtterancePosition};

/// Utterances of a followed call that are kept ready to be sent. Older ones are read from the record.
const KEPT_MAX: usize = 64;
/// Utterances that are read at once.
pub(super) const READ_MAX: u32 = 256;
/// How often it is looked for what other replicas have written, and for new calls of followed businesses.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// A call that ended so lately is still told of to who follows its business.
const JUST_ENDED_MS: i64 = 60_000;
/// Calls, the latest, among which those are looked for.
pub(super) const LATEST_MAX: u32 = 500;
/// How long after other replicas could not be heard it is tried again.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);

/// Other processes that write to the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// There are none.
    None,
    /// What they write is heard from the record's server where that can be, and looked for.
    Heard,
    /// Somebody else passes their bells on; what they write is looked for as well.
    LookedFor,
}

/// See the module. Cloning is cheap.
#[derive(Clone)]
pub struct Feed(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    hub: Hub,
    clock: Clock,
    user_label: String,
    channels: Mutex<HashMap<CallId, Weak<Channel>>>,
    /// Who follows whole businesses, by the number of the connection.
    businesses: Mutex<HashMap<u64, Businesses>>,
}

/// Businesses that a connection follows.
struct Businesses {
    followed: HashSet<String>,
    wake: Arc<Wake>,
}

/// What wakes a connection: calls that have something new for it. As many at most as it follows.
#[derive(Default)]
pub(super) struct Wake {
    due: Mutex<HashSet<CallId>>,
    /// Calls of businesses that it follows.
    found: Mutex<HashSet<CallId>>,
    rung: Notify,
}

/// A call that somebody follows.
pub(super) struct Channel {
    call: CallId,
    /// Bells after which the record is to be read.
    bells: AtomicU64,
    /// What bells told and nobody has looked at yet.
    said: Mutex<Vec<Arc<Utterance>>>,
    followers: Mutex<HashMap<u64, Arc<Wake>>>,
    kept: tokio::sync::Mutex<Kept>,
    standing: Mutex<Option<UtterancePosition>>,
}

/// The newest of a call.
#[derive(Default)]
struct Kept {
    /// The bell up to which it was read.
    bell: u64,
    /// Something is missing: it is to be read whatever bells say.
    is_behind: bool,
    record: Option<Arc<CallRecord>>,
    told: Option<Arc<StoredPostCall>>,
    last: i64,
    newest: VecDeque<(i64, Utf8Bytes)>,
}

/// What there is to send.
pub(super) struct News {
    /// The call as it is.
    pub record: Arc<CallRecord>,
    /// What its provider told of it, once it is over.
    pub told: Option<Arc<StoredPostCall>>,
    /// The number of its last utterance.
    pub last: i64,
    /// Utterances after the number that was asked for, in order; not all, if there are more than [`READ_MAX`].
    pub messages: Vec<(i64, Utf8Bytes)>,
}

/// Keeps a connection among the followers of a call.
pub(super) struct Following {
    pub channel: Arc<Channel>,
    feed: Feed,
    connection: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while one is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Following {
    fn drop(&mut self) {
        // In the order of `follow`, so that nobody begins to follow a channel that goes.
        let mut channels = lock(&self.feed.0.channels);
        let mut followers = lock(&self.channel.followers);
        followers.remove(&self.connection);
        if followers.is_empty() {
            channels.remove(&self.channel.call);
        }
    }
}

impl Wake {
    fn wake(&self, call: &CallId) {
        lock(&self.due).insert(call.clone());
        self.rung.notify_one();
    }

    fn find(&self, call: &CallId) {
        lock(&self.found).insert(call.clone());
        self.rung.notify_one();
    }

    /// Waits until some call has something new. May be cancelled.
    pub(super) async fn rung(&self) {
        self.rung.notified().await;
    }

    /// The calls that have something new, and those that were found.
    pub(super) fn take(&self) -> (HashSet<CallId>, HashSet<CallId>) {
        (std::mem::take(&mut *lock(&self.due)), std::mem::take(&mut *lock(&self.found)))
    }
}

impl Channel {
    fn ring(&self) {
        self.tell(&notify::News::Record);
    }

    fn tell(&self, news: &notify::News) {
        match news {
            notify::News::Record | notify::News::Ended => drop(self.bells.fetch_add(1, Ordering::Release)),
            notify::News::Said(said) => {
                let mut all = lock(&self.said);
                // Nobody takes them: they are read when somebody looks.
                if all.len() >= KEPT_MAX {
                    all.clear();
                    self.bells.fetch_add(1, Ordering::Release);
                } else {
                    all.push(said.clone());
                }
            }
            notify::News::Partial => {}
        }
        for wake in lock(&self.followers).values() {
            wake.wake(&self.call);
        }
    }
}

impl Feed {
    /// A feed of this record and these bells.
    pub fn new(store: Arc<dyn Store>, hub: Hub, clock: Clock, user_label: String) -> Self {
        Self(Arc::new(Inner {
            store,
            hub,
            clock,
            user_label,
            channels: Mutex::default(),
            businesses: Mutex::default(),
        }))
    }

    /// How people are called.
    pub(super) fn user_label(&self) -> &str {
        &self.0.user_label
    }

    /// Passes bells on until stopped.
    pub fn run(self, others: Others, stop: CancellationToken) -> impl Future<Output = ()> + Send {
        // Heard from now on, not only once it runs.
        let mut bells = self.0.hub.listen();
        let heard = self.clone().hear_others(others);
        async move {
            let mut heard = std::pin::pin!(heard);
            let mut looks = tokio::time::interval(POLL_INTERVAL);
            looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = &mut heard => {}
                    bell = bells.recv() => match bell {
                        Ok(bell) => {
                            let channel = lock(&self.0.channels).get(&bell.call).and_then(Weak::upgrade);
                            if let Some(channel) = channel {
                                channel.tell(&bell.news);
                            }
                        }
                        Err(RecvError::Lagged(_)) => self.followed().iter().for_each(|channel| channel.ring()),
                        Err(RecvError::Closed) => return,
                    },
                    _ = looks.tick() => {
                        if others != Others::None {
                            self.look_at_calls().await;
                        }
                        self.look_at_businesses().await;
                    }
                }
            }
        }
    }

    /// Rings for what other replicas say that they have written, where that can be heard. Never ends.
    async fn hear_others(self, others: Others) {
        if others == Others::Heard {
            loop {
                let hub = self.0.hub.clone();
                self.0.store.listen(Box::new(move |call| hub.ring_of_another(call, false))).await;
                tokio::time::sleep(LISTEN_AGAIN).await;
            }
        }
        std::future::pending().await
    }

    fn followed(&self) -> Vec<Arc<Channel>> {
        lock(&self.0.channels).values().filter_map(Weak::upgrade).collect()
    }

    /// Rings for what another replica has written.
    async fn look_at_calls(&self) {
        let followed = self.followed();
        if followed.is_empty() {
            return;
        }
        let calls: Vec<CallId> = followed.iter().map(|channel| channel.call.clone()).collect();
        let standings = match self.0.store.standings(&calls).await {
            Ok(standings) => standings,
            Err(error) => return debug!(%error, "failed to read changes of other replicas"),
        };
        let mut by_call: HashMap<CallId, UtterancePosition> =
            standings.into_iter().map(|s| (s.call.clone(), s)).collect();
        for channel in followed {
            let now = by_call.remove(&channel.call);
            let is_new = {
                let mut seen = lock(&channel.standing);
                // The first look may come after the change.
                let is_new = *seen != now;
                *seen = now;
                is_new
            };
            if is_new {
                channel.ring();
            }
        }
    }

    /// Tells who follows a business of its calls. One may begin and end between two looks, or while who follows is away.
    async fn look_at_businesses(&self) {
        let followed: BTreeSet<String> =
            lock(&self.0.businesses).values().flat_map(|one| one.followed.iter().cloned()).collect();
        if followed.is_empty() {
            return;
        }
        let (followed, since_ms) = (Vec::from_iter(followed), self.0.clock.now_ms() - JUST_ENDED_MS);
        let calls = match self.0.store.calls_of(&followed, since_ms, LATEST_MAX).await {
            Ok(calls) => calls,
            Err(error) => return debug!(%error, "failed to read calls of followed businesses"),
        };
        for one in lock(&self.0.businesses).values() {
            for (_, call) in calls.iter().filter(|(business, _)| one.followed.contains(business)) {
                one.wake.find(call);
            }
        }
    }

    /// Follows these businesses from now on, and no others.
    pub(super) fn follow_businesses(&self, connection: u64, businesses: &HashSet<String>, wake: &Arc<Wake>) {
        let mut all = lock(&self.0.businesses);
        if businesses.is_empty() {
            all.remove(&connection);
        } else {
            all.insert(connection, Businesses { followed: businesses.clone(), wake: wake.clone() });
        }
    }

    /// Follows a call from now on.
    pub(super) fn follow(&self, call: &CallId, connection: u64, wake: &Arc<Wake>) -> Following {
        let fresh = || {
            Arc::new(Channel {
                call: call.clone(),
                // Not read yet.
                bells: AtomicU64::new(1),
                said: Mutex::default(),
                followers: Mutex::default(),
                kept: tokio::sync::Mutex::default(),
                standing: Mutex::default(),
            })
        };
        let mut channels = lock(&self.0.channels);
        let channel = match channels.entry(call.clone()) {
            Entry::Occupied(mut there) => there.get().upgrade().unwrap_or_else(|| {
                let channel = fresh();
                there.insert(Arc::downgrade(&channel));
                channel
            }),
            Entry::Vacant(place) => {
                let channel = fresh();
                place.insert(Arc::downgrade(&channel));
                channel
            }
        };
        lock(&channel.followers).insert(connection, wake.clone());
        drop(channels);
        Following { channel, feed: self.clone(), connection }
    }

    /// What there is after a number. `None`: the call is not on record any more.
    pub(super) async fn news(&self, channel: &Channel, after: i64) -> Result<Option<News>> {
        let (record, told, last, messages) = {
            let mut kept = channel.kept.lock().await;
            self.refresh(channel, &mut kept).await?;
            let Some(record) = kept.record.clone() else { return Ok(None) };
            let has_all = kept.newest.front().is_some_and(|(first, _)| *first <= after.saturating_add(1));
            let messages = (after >= kept.last || has_all).then(|| {
                let after = kept.newest.iter().filter(|(number, _)| *number > after);
                after.cloned().collect::<Vec<_>>()
            });
            (record, kept.told.clone(), kept.last, messages)
        };
        let messages = match messages {
            Some(messages) => messages,
            None => {
                let older = self.0.store.utterances(&channel.call, after, READ_MAX).await?;
                older.iter().map(|utterance| self.rendered(&record, utterance)).collect()
            }
        };
        Ok(Some(News { record, told, last, messages }))
    }

    /// The same, whatever bells have rung: somebody knows more than was read.
    pub(super) async fn newest(&self, channel: &Channel, after: i64) -> Result<Option<News>> {
        channel.bells.fetch_add(1, Ordering::Release);
        self.news(channel, after).await
    }

    /// Takes what bells told, and reads what else came since the last. One follower does it for all.
    async fn refresh(&self, channel: &Channel, kept: &mut Kept) -> Result<()> {
        let bell = channel.bells.load(Ordering::Acquire);
        let said = std::mem::take(&mut *lock(&channel.said));
        kept.is_behind |= kept.bell != bell || !self.takes(kept, said);
        if !kept.is_behind {
            return Ok(());
        }
        let store = &self.0.store;
        let was_read = kept.record.is_some();
        let Some(record) = store.call(&channel.call).await?.map(Arc::new) else {
            kept.record = None;
            return Ok(());
        };
        // Before what was said: a record that is whole comes after the last of that.
        if record.phase == Phase::Ended {
            kept.told = store.post_call(&channel.call).await?.map(Arc::new);
        }
        if !was_read {
            kept.last = store.last_sequence(&channel.call).await?;
        }
        loop {
            let new = store.utterances(&channel.call, kept.last, READ_MAX).await?;
            for utterance in &new {
                self.keep(kept, &record, utterance);
            }
            if new.len() < READ_MAX as usize {
                break;
            }
        }
        // Only now: what failed half-way is read again.
        (kept.record, kept.bell, kept.is_behind) = (Some(record), bell, false);
        Ok(())
    }

    /// Keeps what bells told. `false`: something between it and what is kept was not told.
    fn takes(&self, kept: &mut Kept, mut said: Vec<Arc<Utterance>>) -> bool {
        said.sort_by_key(|utterance| utterance.sequence);
        for utterance in said {
            let Some(record) = kept.record.clone().filter(|_| utterance.sequence <= kept.last + 1) else {
                return false;
            };
            if utterance.sequence > kept.last {
                self.keep(kept, &record, &utterance);
            }
        }
        true
    }

    fn keep(&self, kept: &mut Kept, record: &CallRecord, utterance: &Utterance) {
        if kept.newest.len() >= KEPT_MAX {
            kept.newest.pop_front();
        }
        kept.newest.push_back(self.rendered(record, utterance));
        kept.last = utterance.sequence;
    }

    fn rendered(&self, record: &CallRecord, utterance: &Utterance) -> (i64, Utf8Bytes) {
        let message = message::transcription(record, utterance, &self.0.user_label);
        (utterance.sequence, message.to_string().into())
    }
}
