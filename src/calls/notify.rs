//! Notifications that a call has changed. A subscriber reads the store from its last position, so a lost, repeated or remote
//! notification does no harm. A local utterance is sent with the notification, so that the store rarely has to be read.

mod pubsub;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{Notify, broadcast};

use crate::call::Speaker;
use crate::ids::CallId;
use crate::store::Utterance;
use crate::sync::lock;
pub use pubsub::carry;

/// The maximum lag of a slow subscriber. Beyond it the subscriber gets an error, and checks everything it follows.
const BEHIND_MAX: usize = 4096;

/// The longest text in a notification, in bytes; longer ones are read from the store.
const TOLD_BYTES_MAX: usize = 4096;

/// Calls with an interim utterance that are kept. Beyond that, older ones are dropped: final utterances follow soon.
const PARTIALS_MAX: usize = 4096;

/// The place where something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewsFrom {
    /// In this process.
    Here,
    /// At another replica.
    Replica,
}

/// A call has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// The call.
    pub call: CallId,
    /// The change.
    pub news: News,
    /// The place where it happened.
    pub from: NewsFrom,
}

/// A change of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// A part of the call's record was stored: an utterance, an id, a post-call record.
    Record,
    /// The call ended: its end is stored, and its slots are free.
    Ended,
    /// This utterance was stored.
    Said(Arc<Utterance>),
    /// An interim utterance ([`Hub::partial_since`]).
    Partial,
}

/// An interim utterance. It is not stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partial {
    /// The speaker.
    pub speaker: Speaker,
    /// The text so far.
    pub text: Arc<str>,
    /// The provider's number of it.
    pub source_sequence: Option<i64>,
}

/// The newest interim utterance of a call, with its number since the start.
type Newest = (u64, Partial);

/// Notifies subscribers of this process, and of other replicas, that a call has changed. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Hub {
    notifications: broadcast::Sender<Notification>,
    partials: Arc<Mutex<(u64, HashMap<CallId, Newest>)>>,
    /// Rung by another replica where something may be dialled: slots are free, or a run has due jobs. The dialler hears it.
    pub dial_wakeup: Arc<Notify>,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            notifications: broadcast::Sender::new(BEHIND_MAX),
            partials: Arc::default(),
            dial_wakeup: Arc::default(),
        }
    }
}

impl Hub {
    /// Notifies that something of a call was stored: an utterance, a post-call record.
    pub fn notify(&self, call: &CallId) {
        self.clear_partial(call);
        self.send(call, News::Record);
    }

    /// Notifies that a call ended and its slots are free.
    pub fn ended(&self, call: &CallId) {
        self.clear_partial(call);
        self.send(call, News::Ended);
    }

    /// Notifies of a stored utterance, and sends it along.
    pub fn publish(&self, call: &CallId, said: Utterance) {
        self.clear_partial(call);
        let is_short = said.text.len() <= TOLD_BYTES_MAX;
        self.send(call, if is_short { News::Said(Arc::new(said)) } else { News::Record });
    }

    /// Notifies that the call itself changed; an interim utterance stays valid.
    pub fn changed(&self, call: &CallId) {
        self.send(call, News::Record);
    }

    /// Drops the interim utterance: it was stored, or never will be.
    fn clear_partial(&self, call: &CallId) {
        self.partials().1.remove(call);
    }

    /// Notifies that something of a call was stored at another replica, which has no interim utterance of it.
    pub fn stored_at_replica(&self, call: &CallId) {
        self.clear_partial(call);
        self.changed_at_replica(call);
    }

    /// Notifies that a call changed at another replica; an interim utterance stays valid.
    pub fn changed_at_replica(&self, call: &CallId) {
        self.pass_on(call, News::Record, NewsFrom::Replica);
    }

    /// Passes on that a call ended at another replica.
    pub fn ended_at_replica(&self, call: &CallId) {
        self.clear_partial(call);
        self.pass_on(call, News::Ended, NewsFrom::Replica);
    }

    fn send(&self, call: &CallId, news: News) {
        self.pass_on(call, news, NewsFrom::Here);
    }

    fn pass_on(&self, call: &CallId, news: News, from: NewsFrom) {
        // There may be no subscribers.
        let _ = self.notifications.send(Notification { call: call.clone(), news, from });
    }

    fn partials(&self) -> MutexGuard<'_, (u64, HashMap<CallId, Newest>)> {
        // No code panics while it is held.
        lock(&self.partials)
    }

    /// Sets the interim utterance of a call, in place of the previous one; a late one is ignored.
    pub fn set_partial(&self, call: &CallId, partial: Partial) {
        self.take_partial(call, partial, NewsFrom::Here);
    }

    /// Takes a partial utterance from another replica.
    pub fn set_partial_from_replica(&self, call: &CallId, partial: Partial) {
        self.take_partial(call, partial, NewsFrom::Replica);
    }

    fn take_partial(&self, call: &CallId, partial: Partial, from: NewsFrom) {
        {
            let (count, newest) = &mut *self.partials();
            let before = newest.get(call).filter(|(_, before)| before.speaker == partial.speaker);
            if before.is_some_and(|(_, before)| partial.source_sequence < before.source_sequence) {
                return;
            }
            if newest.len() >= PARTIALS_MAX && !newest.contains_key(call) {
                newest.clear();
            }
            *count += 1;
            newest.insert(call.clone(), (*count, partial));
        }
        self.pass_on(call, News::Partial, from);
    }

    /// The interim utterance of a call, if it is newer than `after`, and its number since the start.
    pub fn partial_since(&self, call: &CallId, after: u64) -> Option<(u64, Partial)> {
        self.partials().1.get(call).filter(|(number, _)| *number > after).cloned()
    }

    /// Subscribes to notifications.
    pub fn subscribe(&self) -> broadcast::Receiver<Notification> {
        self.notifications.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_notification_reaches_whoever_listens_and_needs_nobody() {
        let (hub, call) = (Hub::default(), CallId::new());
        hub.notify(&call);
        let mut listening = hub.subscribe();
        hub.notify(&call);
        assert_eq!(listening.recv().await, Ok(Notification { call, news: News::Record, from: NewsFrom::Here }));
        assert!(listening.try_recv().is_err());
    }

    #[tokio::test]
    async fn what_is_said_is_told_with_the_notification_unless_it_is_long() {
        let (hub, call) = (Hub::default(), CallId::new());
        let mut listening = hub.subscribe();
        let said = |text: String| Utterance {
            id: 7,
            sequence: 3,
            event_id: "ev_1".to_owned(),
            speaker: Speaker::Agent,
            text,
            said_at: "2026-01-02T03:04:05Z".to_owned(),
            source_sequence: None,
            source: None,
        };
        hub.publish(&call, said("good morning".to_owned()));
        hub.publish(&call, said("x".repeat(TOLD_BYTES_MAX + 1)));
        let told = News::Said(Arc::new(said("good morning".to_owned())));
        assert_eq!(listening.recv().await, Ok(Notification { call: call.clone(), news: told, from: NewsFrom::Here }));
        assert_eq!(listening.recv().await, Ok(Notification { call, news: News::Record, from: NewsFrom::Here }));
    }

    #[tokio::test]
    async fn what_is_half_said_is_the_newest_alone_until_it_is_said() {
        let (hub, call) = (Hub::default(), CallId::new());
        let partial = |text: &str, n| Partial { speaker: Speaker::User, text: text.into(), source_sequence: Some(n) };
        let mut listening = hub.subscribe();
        hub.set_partial(&call, partial("good", 2));
        hub.set_partial(&call, partial("good mor", 4));
        hub.set_partial(&call, partial("goo", 3));
        let (number, newest) = hub.partial_since(&call, 0).unwrap();
        assert_eq!(newest, partial("good mor", 4));
        assert_eq!((hub.partial_since(&call, number), hub.partial_since(&CallId::new(), 0)), (None, None));
        hub.changed(&call);
        assert_eq!(hub.partial_since(&call, 0), Some((number, newest)), "somebody goes on speaking");
        hub.notify(&call);
        assert_eq!(hub.partial_since(&call, 0), None);
        for news in [News::Partial, News::Partial, News::Record, News::Record] {
            assert_eq!(listening.recv().await, Ok(Notification { call: call.clone(), news, from: NewsFrom::Here }));
        }
    }
}
