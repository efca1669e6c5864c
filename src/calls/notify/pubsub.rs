//! Notifications between replicas, with interim utterances, over the channel of a shared limiter. A lost notification is made up
//! for by polling the store; a lost interim utterance is followed by its final one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use ulid::Ulid;

use super::{Hub, News, NewsFrom, Notification, Partial};
use crate::admission::limiter::Channel;
use crate::call::Speaker;
use crate::ids::CallId;

/// The longest pause between messages: a longer silence means that the channel is broken.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(3);
/// Calls per round trip.
const CALLS_PER_PUBLISH: usize = 256;
/// The pause before resubscribing.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// A message on the channel.
#[derive(Debug, Serialize, Deserialize)]
struct Message {
    /// The sending process.
    from: String,
    /// The changed call; `None`: a keep-alive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    call: Option<String>,
    /// The call's interim utterance; `None`: something was stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    partial: Option<Interim>,
    /// Whether the call has no interim utterance.
    #[serde(default)]
    is_quiet: bool,
    /// Whether the call has ended.
    #[serde(default)]
    is_over: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Interim {
    is_agent: bool,
    text: String,
    source_sequence: Option<i64>,
}

impl Interim {
    fn of(partial: Partial) -> Self {
        Self {
            is_agent: partial.speaker == Speaker::Agent,
            text: partial.text.to_string(),
            source_sequence: partial.source_sequence,
        }
    }
}

impl Message {
    /// A message of this process about no call.
    fn keep_alive(from: &str) -> Self {
        Self { from: from.to_owned(), call: None, partial: None, is_quiet: false, is_over: false }
    }

    fn text(&self) -> Option<String> {
        serde_json::to_string(self).ok()
    }
}

/// Exchanges notifications with other replicas, until `stop`.
pub fn carry(hub: Hub, channel: Arc<dyn Channel>, stop: CancellationToken) -> impl Future<Output = ()> + Send {
    // Subscribed now, not only once the future runs.
    let (notifications, me) = (hub.subscribe(), Ulid::new().to_string());
    async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = publish_all(&hub, notifications, &*channel, &me) => {}
            () = subscribe(&hub, &*channel, &me) => {}
        }
    }
}

/// Publishes; ends with the hub.
async fn publish_all(hub: &Hub, mut notifications: broadcast::Receiver<Notification>, channel: &dyn Channel, me: &str) {
    loop {
        let mut words = vec![];
        match tokio::time::timeout(KEEP_ALIVE_INTERVAL, notifications.recv()).await {
            Ok(Err(RecvError::Closed)) => return,
            // The store has what was missed.
            Ok(Err(RecvError::Lagged(_))) => continue,
            Err(_) => words.extend(Message::keep_alive(me).text()),
            Ok(Ok(notification)) => {
                // By call: whether there is nothing but a partial, and whether it has ended.
                let mut pending = BTreeMap::new();
                let mut next = Some(notification);
                while let Some(notification) = next.take() {
                    if notification.from == NewsFrom::Here {
                        let (is_partial, is_over) = pending.entry(notification.call).or_insert((true, false));
                        *is_partial &= notification.news == News::Partial;
                        *is_over |= notification.news == News::Ended;
                    }
                    if pending.len() < CALLS_PER_PUBLISH {
                        next = notifications.try_recv().ok();
                    }
                }
                for (call, (is_partial, is_over)) in pending {
                    // A partial that is final by now is not sent: its final utterance has its own notification.
                    let half = hub.partial_since(&call, 0).map(|(_, partial)| partial);
                    let is_quiet = half.is_none();
                    let partial = half.filter(|_| is_partial);
                    if partial.is_some() || !is_partial {
                        words.extend(
                            Message {
                                call: Some(call.to_string()),
                                partial: partial.map(Interim::of),
                                is_quiet,
                                is_over,
                                ..Message::keep_alive(me)
                            }
                            .text(),
                        );
                    }
                }
            }
        }
        if !words.is_empty()
            && let Err(error) = channel.publish(&words).await
        {
            debug!(%error, "failed to publish to other replicas; they poll instead");
        }
    }
}

/// Subscribes; never ends.
async fn subscribe(hub: &Hub, channel: &dyn Channel, me: &str) {
    let mut is_lost = false;
    loop {
        let (hub, me, began) = (hub.clone(), me.to_owned(), Instant::now());
        let mut is_first = true;
        let error = channel
            .subscribe(Box::new(move |word| {
                if std::mem::take(&mut is_first) {
                    info!("subscribed to other replicas");
                }
                receive(&hub, &me, word);
            }))
            .await;
        // Logged once, not at every attempt.
        if !is_lost || began.elapsed() > 2 * KEEP_ALIVE_INTERVAL {
            warn!(%error, "not subscribed to other replicas; polling instead");
        }
        is_lost = true;
        tokio::time::sleep(RETRY_DELAY).await;
    }
}

fn receive(hub: &Hub, me: &str, word: &str) {
    let Ok(word) = serde_json::from_str::<Message>(word) else {
        return debug!("ignoring a message of an unknown format version");
    };
    let Some(call) = word.call.as_deref().and_then(CallId::parse).filter(|_| word.from != me) else { return };
    match word.partial {
        None if word.is_over => hub.ended_at_replica(&call),
        None if word.is_quiet => hub.stored_at_replica(&call),
        None => hub.changed_at_replica(&call),
        Some(half) => {
            let speaker = if half.is_agent { Speaker::Agent } else { Speaker::User };
            let partial = Partial { speaker, text: half.text.into(), source_sequence: half.source_sequence };
            hub.set_partial_from_replica(&call, partial);
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::admission::limiter::{GateError, OnMessage};

    /// A channel within this process.
    struct PubSub(broadcast::Sender<String>);

    #[async_trait]
    impl Channel for PubSub {
        async fn publish(&self, words: &[String]) -> crate::admission::limiter::Result<()> {
            for word in words {
                let _ = self.0.send(word.clone());
            }
            Ok(())
        }

        async fn subscribe(&self, mut on_message: OnMessage) -> GateError {
            let mut words = self.0.subscribe();
            while let Ok(word) = words.recv().await {
                on_message(&word);
            }
            GateError::Away("it is quiet".to_owned())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn notifications_and_what_is_half_said_reach_the_others_once_and_do_not_come_back() {
        let air: Arc<dyn Channel> = Arc::new(PubSub(broadcast::Sender::new(1000)));
        let (a, b, stop) = (Hub::default(), Hub::default(), CancellationToken::new());
        let (mut at_a, mut at_b) = (a.subscribe(), b.subscribe());
        for hub in [&a, &b] {
            tokio::spawn(carry(hub.clone(), air.clone(), stop.clone()));
        }
        // They listen by now.
        tokio::time::sleep(KEEP_ALIVE_INTERVAL * 2).await;
        let (call, other) = (CallId::new(), CallId::new());
        let partial = |text: &str| Partial { speaker: Speaker::Agent, text: text.into(), source_sequence: Some(4) };
        a.notify(&call);
        a.set_partial(&other, partial("good mor"));
        b.notify(&other);
        tokio::time::sleep(KEEP_ALIVE_INTERVAL * 5).await;
        let shown = |notifications: &mut broadcast::Receiver<Notification>| {
            let all = std::iter::from_fn(|| notifications.try_recv().ok());
            let mut all: Vec<String> = all.map(|one| format!("{:?} {} {:?}", one.from, one.call, one.news)).collect();
            all.sort();
            all
        };
        let expected = |ours: &[(&CallId, News)], others: &[(&CallId, News)]| {
            let show = |from: NewsFrom| move |(call, news): &(&CallId, News)| format!("{from:?} {call} {news:?}");
            let mut all: Vec<String> =
                ours.iter().map(show(NewsFrom::Here)).chain(others.iter().map(show(NewsFrom::Replica))).collect();
            all.sort();
            all
        };
        let (of_a, of_b) = ([(&call, News::Record), (&other, News::Partial)], [(&other, News::Record)]);
        assert_eq!(shown(&mut at_a), expected(&of_a, &of_b));
        assert_eq!(shown(&mut at_b), expected(&of_b, &of_a));
        assert_eq!(b.partial_since(&other, 0).map(|(_, partial)| partial), Some(partial("good mor")));
        // A final utterance removes the partial one everywhere.
        a.notify(&other);
        tokio::time::sleep(KEEP_ALIVE_INTERVAL).await;
        assert_eq!(b.partial_since(&other, 0), None);
        stop.cancel();
    }

    #[test]
    fn words_of_others_are_read_with_care() {
        let hub = Hub::default();
        let mut notifications = hub.subscribe();
        let call = CallId::new();
        let own = format!(r#"{{"from":"me","call":"{call}"}}"#);
        for word in ["", "{}", "[]", r#"{"from":"x"}"#, r#"{"from":"x","call":"../c"}"#, &own] {
            receive(&hub, "me", word);
        }
        assert!(notifications.try_recv().is_err());
        receive(&hub, "me", &format!(r#"{{"from":"x","call":"{call}","more":1}}"#));
        assert_eq!(notifications.try_recv(), Ok(Notification { call, news: News::Record, from: NewsFrom::Replica }));
    }
}
