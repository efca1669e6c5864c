//! News of the followed calls: read once from the database, however many connections follow.
//!
//! A notification says that a call has changed; each follower keeps its own position. So a notification that is lost, repeated or sent
//! by another replica is harmless, and so is a process that dies: a client that reconnects sends its position. The utterance that a
//! notification carries is used if it is the next one of its call; otherwise the database is read.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::message;
use super::runs::RunFeed;
use super::wake::Wake;
use crate::call::Phase;
use crate::calls::notify::{self, Hub};
use crate::clock::Clock;
use crate::ids::CallId;
use crate::store::{CallRecord, ReplicaSignal, Result, Store, StoredPostCall, Utterance, UtterancePosition};
use crate::sync::lock;

/// Utterances of a followed call that are cached. Older ones are read from the database.
const KEPT_MAX: usize = 64;
/// Utterances per read.
pub(super) const READ_MAX: u32 = 256;
/// The interval of polls for changes by other replicas, and for new calls of followed businesses.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The time for which an ended call is still announced to followers of its business, in milliseconds.
const JUST_ENDED_MS: i64 = 60_000;
/// The number of latest calls that are searched for those of followed businesses.
pub(super) const LATEST_MAX: u32 = 500;
/// The delay before a lost subscription to other replicas is retried.
const SUBSCRIBE_RETRY_DELAY: Duration = Duration::from_secs(5);

/// The way in which changes by other processes are learnt of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteChanges {
    /// There are no other processes.
    None,
    /// By the database server's notifications, if it supports them, and by polling.
    FromDatabase,
    /// By notifications that another component passes on, and by polling.
    FromChannel,
}

/// The feed; see the module. Cheap to clone.
#[derive(Clone)]
pub struct Feed(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    hub: Hub,
    clock: Clock,
    user_label: String,
    channels: Mutex<HashMap<CallId, Weak<CallChannel>>>,
    /// The followed businesses of each connection, by its number.
    businesses: Mutex<HashMap<u64, Businesses>>,
    runs: RunFeed,
}

/// The businesses that a connection follows.
struct Businesses {
    followed: HashSet<String>,
    wake: Arc<Wake>,
}

/// A followed call.
pub(super) struct CallChannel {
    call: CallId,
    /// Notifications after which the database must be read.
    notifications: AtomicU64,
    /// Utterances from notifications that no follower has read yet.
    said: Mutex<Vec<Arc<Utterance>>>,
    followers: Mutex<HashMap<u64, Arc<Wake>>>,
    kept: tokio::sync::Mutex<Kept>,
    position: Mutex<Option<UtterancePosition>>,
}

/// The cached news of a call.
#[derive(Default)]
struct Kept {
    /// The notification up to which it was read.
    read_up_to: u64,
    /// Whether something is missing, so that the next read goes to the database.
    is_behind: bool,
    record: Option<Arc<CallRecord>>,
    post_call: Option<Arc<StoredPostCall>>,
    last: i64,
    newest: VecDeque<(i64, Utf8Bytes)>,
}

/// News of a call for one follower.
pub(super) struct CallNews {
    /// The call record.
    pub record: Arc<CallRecord>,
    /// The post-call record, once the call has ended.
    pub post_call: Option<Arc<StoredPostCall>>,
    /// The number of the last utterance.
    pub last: i64,
    /// Utterances after the requested number, in order; at most [`READ_MAX`].
    pub messages: Vec<(i64, Utf8Bytes)>,
}

/// Keeps a connection among the followers of a call until dropped.
pub(super) struct Following {
    pub channel: Arc<CallChannel>,
    feed: Feed,
    connection: u64,
}

impl Drop for Following {
    fn drop(&mut self) {
        // The same lock order as `follow`, so that no follower can join a channel that is being removed.
        let mut channels = lock(&self.feed.0.channels);
        let mut followers = lock(&self.channel.followers);
        followers.remove(&self.connection);
        if followers.is_empty() {
            channels.remove(&self.channel.call);
        }
    }
}

impl CallChannel {
    fn mark_changed(&self) {
        self.apply_news(&notify::News::Record);
    }

    fn apply_news(&self, news: &notify::News) {
        match news {
            notify::News::Record | notify::News::Ended => drop(self.notifications.fetch_add(1, Ordering::Release)),
            notify::News::Said(said) => {
                let mut all = lock(&self.said);
                // Nobody reads them; the next reader goes to the database.
                if all.len() >= KEPT_MAX {
                    all.clear();
                    self.notifications.fetch_add(1, Ordering::Release);
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
    /// A feed of this store and these notifications.
    pub fn new(store: Arc<dyn Store>, hub: Hub, clock: Clock, user_label: String) -> Self {
        let runs = RunFeed::new(store.clone());
        Self(Arc::new(Inner {
            store,
            hub,
            clock,
            user_label,
            channels: Mutex::default(),
            businesses: Mutex::default(),
            runs,
        }))
    }

    /// Followed bulk runs.
    pub(super) fn runs(&self) -> &RunFeed {
        &self.0.runs
    }

    /// The label of human speakers.
    pub(super) fn user_label(&self) -> &str {
        &self.0.user_label
    }

    /// Passes notifications on until stopped.
    pub fn run(self, others: RemoteChanges, stop: CancellationToken) -> impl Future<Output = ()> + Send {
        // Subscribed now, not when the future is first polled.
        let mut notifications = self.0.hub.subscribe();
        let remote = self.clone().receive_remote(others);
        async move {
            let mut remote = std::pin::pin!(remote);
            let mut runs = std::pin::pin!(self.runs().clone().run());
            let mut polls = tokio::time::interval(POLL_INTERVAL);
            polls.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = &mut remote => {}
                    () = &mut runs => {}
                    notification = notifications.recv() => match notification {
                        Ok(notification) => {
                            let channel = lock(&self.0.channels).get(&notification.call).and_then(Weak::upgrade);
                            if let Some(channel) = channel {
                                channel.apply_news(&notification.news);
                            }
                        }
                        Err(RecvError::Lagged(_)) => self.followed().iter().for_each(|channel| channel.mark_changed()),
                        Err(RecvError::Closed) => return,
                    },
                    _ = polls.tick() => {
                        if others != RemoteChanges::None {
                            self.poll_calls().await;
                        }
                        self.poll_businesses().await;
                    }
                }
            }
        }
    }

    /// Passes on notifications of other replicas, where they can be received. Never ends.
    async fn receive_remote(self, others: RemoteChanges) {
        if others == RemoteChanges::FromDatabase {
            loop {
                let hub = self.0.hub.clone();
                self.0
                    .store
                    .listen(Box::new(move |signal| match signal {
                        ReplicaSignal::Call(call) => hub.changed_at_replica(call),
                        ReplicaSignal::Dial => hub.dial_wakeup.notify_one(),
                    }))
                    .await;
                tokio::time::sleep(SUBSCRIBE_RETRY_DELAY).await;
            }
        }
        std::future::pending().await
    }

    fn followed(&self) -> Vec<Arc<CallChannel>> {
        lock(&self.0.channels).values().filter_map(Weak::upgrade).collect()
    }

    /// Polls for calls that other replicas have changed.
    async fn poll_calls(&self) {
        let followed = self.followed();
        if followed.is_empty() {
            return;
        }
        let calls: Vec<CallId> = followed.iter().map(|channel| channel.call.clone()).collect();
        let positions = match self.0.store.positions(&calls).await {
            Ok(positions) => positions,
            Err(error) => return debug!(%error, "failed to read changes of other replicas"),
        };
        let mut by_call: HashMap<CallId, UtterancePosition> =
            positions.into_iter().map(|s| (s.call.clone(), s)).collect();
        for channel in followed {
            let now = by_call.remove(&channel.call);
            let is_new = {
                let mut seen = lock(&channel.position);
                // The first poll may come after the change.
                let is_new = *seen != now;
                *seen = now;
                is_new
            };
            if is_new {
                channel.mark_changed();
            }
        }
    }

    /// Announces new calls to followers of their business. A call may begin and end between two polls, or while a follower is away.
    async fn poll_businesses(&self) {
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
                one.wake.announce(call);
            }
        }
    }

    /// Sets the businesses that a connection follows.
    pub(super) fn follow_businesses(&self, connection: u64, businesses: &HashSet<String>, wake: &Arc<Wake>) {
        let mut all = lock(&self.0.businesses);
        if businesses.is_empty() {
            all.remove(&connection);
        } else {
            all.insert(connection, Businesses { followed: businesses.clone(), wake: wake.clone() });
        }
    }

    /// Adds a connection to the followers of a call.
    pub(super) fn follow(&self, call: &CallId, connection: u64, wake: &Arc<Wake>) -> Following {
        let fresh = || {
            Arc::new(CallChannel {
                call: call.clone(),
                // Forces a first read.
                notifications: AtomicU64::new(1),
                said: Mutex::default(),
                followers: Mutex::default(),
                kept: tokio::sync::Mutex::default(),
                position: Mutex::default(),
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

    /// The news after a number. `None`: the call no longer exists.
    pub(super) async fn news(&self, channel: &CallChannel, after: i64) -> Result<Option<CallNews>> {
        let (record, post_call, last, messages) = {
            let mut kept = channel.kept.lock().await;
            self.refresh(channel, &mut kept).await?;
            let Some(record) = kept.record.clone() else { return Ok(None) };
            let has_all = kept.newest.front().is_some_and(|(first, _)| *first <= after.saturating_add(1));
            let messages = (after >= kept.last || has_all).then(|| {
                let after = kept.newest.iter().filter(|(number, _)| *number > after);
                after.cloned().collect::<Vec<_>>()
            });
            (record, kept.post_call.clone(), kept.last, messages)
        };
        let messages = match messages {
            Some(messages) => messages,
            None => {
                let older = self.0.store.utterances(&channel.call, after, READ_MAX).await?;
                older.iter().map(|utterance| self.render(&record, utterance)).collect()
            }
        };
        Ok(Some(CallNews { record, post_call, last, messages }))
    }

    /// The news after a number, always read from the database: a client knows more than was read.
    pub(super) async fn news_from_store(&self, channel: &CallChannel, after: i64) -> Result<Option<CallNews>> {
        channel.notifications.fetch_add(1, Ordering::Release);
        self.news(channel, after).await
    }

    /// Applies the utterances of notifications, and reads the rest from the database. One follower does it for all.
    async fn refresh(&self, channel: &CallChannel, kept: &mut Kept) -> Result<()> {
        let changes = channel.notifications.load(Ordering::Acquire);
        let said = std::mem::take(&mut *lock(&channel.said));
        kept.is_behind |= kept.read_up_to != changes || !self.append(kept, said);
        if !kept.is_behind {
            return Ok(());
        }
        let store = &self.0.store;
        let was_read = kept.record.is_some();
        let Some(record) = store.call(&channel.call).await?.map(Arc::new) else {
            kept.record = None;
            return Ok(());
        };
        // Read before the utterances: a complete record comes after the last of them.
        if record.phase == Phase::Ended {
            kept.post_call = store.post_call(&channel.call).await?.map(Arc::new);
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
        // Last, so that a read that fails half-way is repeated.
        (kept.record, kept.read_up_to, kept.is_behind) = (Some(record), changes, false);
        Ok(())
    }

    /// Appends the utterances of notifications; `false` if one is missing in between.
    fn append(&self, kept: &mut Kept, mut said: Vec<Arc<Utterance>>) -> bool {
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
        kept.newest.push_back(self.render(record, utterance));
        kept.last = utterance.sequence;
    }

    fn render(&self, record: &CallRecord, utterance: &Utterance) -> (i64, Utf8Bytes) {
        let message = message::transcription(record, utterance, &self.0.user_label);
        (utterance.sequence, message.to_string().into())
    }
}
