//! One connection of `/ws/calls/transcriptions`: its subscriptions, and what is sent to it.
//!
//! Nothing is queued for a slow client: its position is a number, and the next utterances are read once it has taken the last ones.

mod runs;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};
use tokio_tungstenite::tungstenite::{Bytes, Error, Utf8Bytes};
use tracing::{info, warn};

use super::client::{Client, ClientSettings, CountedSocket, FOLLOWED_MAX};
use super::feed::{CallNews, Following, LATEST_MAX};
use super::message::{self, Command, ErrorCode};
use super::runs::RunSubscription;
use super::wake::Wake;
use crate::call::Phase;
use crate::clock::{UnixMs, as_ms};
use crate::ids::CallId;
use crate::metrics::ClientMessage;
use crate::net::WebSocket;
use crate::store::{CallRecord, StoredPostCall};
use crate::token::Principal;

/// The time that a closing handshake may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The delay before the database is read again after an error, in milliseconds.
const READ_RETRY_DELAY_MS: i64 = 1000;

/// The reason why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CloseReason {
    /// The client closed it or disconnected.
    Left,
    /// The client sent invalid WebSocket data, or too much.
    Broken,
    /// The token has expired: 4401.
    Expired,
    /// The token is no longer valid after a config change: 4401.
    Revoked,
    /// The client read nothing for too long: 4008. It should reconnect and resume.
    Slow,
    /// The client sent nothing for too long: 4408.
    Idle,
    /// The process stops: 1012.
    Stopping,
}

impl CloseReason {
    fn frame(self) -> Option<CloseFrame> {
        let (code, reason) = match self {
            CloseReason::Left | CloseReason::Broken => return None,
            CloseReason::Expired => (4401, "the token has expired"),
            CloseReason::Revoked => (4401, "the token is no longer accepted"),
            CloseReason::Slow => (4008, "too slow: reconnect and resume"),
            CloseReason::Idle => (4408, "idle"),
            CloseReason::Stopping => (1012, "stopping: reconnect and resume"),
        };
        Some(CloseFrame { code: CloseCode::from(code), reason: Utf8Bytes::from_static(reason) })
    }
}

/// A subscription of a connection to a call.
struct CallSubscription {
    following: Following,
    /// The number of the last utterance sent.
    sent: i64,
    /// The version of the last partial utterance sent.
    partial_version: u64,
    /// Whether `call_status` was sent.
    is_over: bool,
    /// The time at which it is looked at without a notification: `call_completed` is due, or the database did not answer.
    check_at: Option<UnixMs>,
}

pub(super) struct Connection {
    client: Client,
    socket: WebSocket,
    /// The last token and its holder.
    token: String,
    principal: Principal,
    /// Settings that come in force.
    newest: watch::Receiver<Option<Arc<ClientSettings>>>,
    number: u64,
    wake: Arc<Wake>,
    calls: HashMap<CallId, CallSubscription>,
    runs: HashMap<String, RunSubscription>,
    businesses: HashSet<String>,
    /// Calls of followed businesses that were sent to their end.
    done: BTreeSet<CallId>,
    _counted: CountedSocket,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.client.feed.follow_businesses(self.number, &HashSet::new(), &self.wake);
        self.client.lifecycle.metrics.client_sockets(-1);
        info!(connection = self.number, "WebSocket connection disconnected");
    }
}

type OrClosed = Result<(), CloseReason>;

/// Limits the time of a send; a client that takes nothing is slow.
async fn send_within(slow: Duration, sent: impl Future<Output = Result<(), Error>>) -> OrClosed {
    match tokio::time::timeout(slow, sent).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(CloseReason::Left),
        Err(_) => Err(CloseReason::Slow),
    }
}

impl Connection {
    pub(super) fn new(
        client: Client,
        socket: WebSocket,
        (token, principal): (String, Principal),
        newest: watch::Receiver<Option<Arc<ClientSettings>>>,
        (number, counted): (u64, CountedSocket),
    ) -> Self {
        client.lifecycle.metrics.client_sockets(1);
        info!(connection = number, client = principal.name, "WebSocket connection established");
        Self {
            client,
            socket,
            token,
            principal,
            newest,
            number,
            wake: Arc::default(),
            calls: HashMap::new(),
            runs: HashMap::new(),
            businesses: HashSet::new(),
            done: BTreeSet::new(),
            _counted: counted,
        }
    }

    /// Serves the connection to its end.
    pub(super) async fn run(mut self) {
        let Err(over) = self.serve().await else { return };
        if over == CloseReason::Slow {
            self.client.lifecycle.metrics.client_slow_close();
        }
        if let Some(frame) = over.frame() {
            info!(connection = self.number, code = u16::from(frame.code), "WebSocket closed");
            let closing = async {
                self.socket.close(Some(frame)).await?;
                // Messages are ignored now; the client's close frame ends the stream.
                while self.socket.next().await.transpose()?.is_some() {}
                Ok::<(), Error>(())
            };
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, closing).await;
        }
    }

    async fn serve(&mut self) -> OrClosed {
        let idle = self.client.settings.idle;
        let wake = self.wake.clone();
        let mut newest = self.newest.clone();
        let mut draining = pin!(self.client.draining.clone().cancelled_owned());
        // One timer, only reset when it would fire too late; firing early is harmless.
        let mut alarm = pin!(tokio::time::sleep(idle / 2));
        let (mut quiet_since, mut pinged) = (Instant::now(), false);
        loop {
            let now_ms = self.client.lifecycle.clock.now_ms();
            let expires_in = self.principal.expires_at.saturating_mul(1000).saturating_sub(now_ms);
            if expires_in <= 0 {
                return Err(CloseReason::Expired);
            }
            let check_in = self.calls.values().filter_map(|call| call.check_at).min().map(|at| at - now_ms);
            let next_ms = check_in.map_or(expires_in, |ms| ms.min(expires_in));
            let next = Duration::from_millis(u64::try_from(next_ms).unwrap_or(0)).min(idle);
            // A pong has its own deadline, because the sends in between may have taken long.
            let listen_until = quiet_since + idle / 2;
            let due_at = listen_until.min(Instant::now() + next);
            if alarm.is_elapsed() || due_at < alarm.deadline() {
                alarm.as_mut().reset(due_at);
            }
            tokio::select! {
                () = &mut draining => return Err(CloseReason::Stopping),
                said = self.socket.next() => {
                    (quiet_since, pinged) = (Instant::now(), false);
                    match said {
                        Some(Ok(Message::Text(text))) => self.execute(&text).boxed().await?,
                        Some(Ok(Message::Binary(_))) => {
                            self.send_error(ErrorCode::InvalidMessageFormat, "Messages are JSON, as text").boxed().await?;
                        }
                        Some(Ok(Message::Close(_))) | None => return Err(CloseReason::Left),
                        Some(Ok(_)) => {}
                        Some(Err(_)) => return Err(CloseReason::Broken),
                    }
                }
                () = wake.notified() => self.send_news().boxed().await?,
                Ok(()) = newest.changed() => {
                    let Ok(principal) = self.client.authenticate(&self.token) else { return Err(CloseReason::Revoked) };
                    self.restrict_to(principal).boxed().await;
                }
                () = &mut alarm => {
                    if Instant::now() >= listen_until {
                        if pinged {
                            return Err(CloseReason::Idle);
                        }
                        (quiet_since, pinged) = (Instant::now(), true);
                        self.write(Message::Ping(Bytes::new())).boxed().await?;
                    }
                    self.send_due().boxed().await?;
                }
            }
        }
    }

    // === sending ===

    /// Sends a message.
    async fn write(&mut self, message: Message) -> OrClosed {
        self.queue(message).await?;
        self.flush().await
    }

    /// Queues a message for the next flush.
    async fn queue(&mut self, message: Message) -> OrClosed {
        send_within(self.client.settings.slow, self.socket.feed(message)).await
    }

    async fn flush(&mut self) -> OrClosed {
        send_within(self.client.settings.slow, self.socket.flush()).await
    }

    async fn send(&mut self, message: &Value) -> OrClosed {
        // Each message is built with one of these types.
        if let Some(kind) = message["type"].as_str().and_then(|kind| kind.parse::<ClientMessage>().ok()) {
            self.client.lifecycle.metrics.client_messages(kind, 1);
        }
        self.write(Message::text(message.to_string())).await
    }

    async fn send_error(&mut self, code: ErrorCode, text: &str) -> OrClosed {
        self.send(&message::error(code, text)).await
    }

    /// Sends the news of the calls that were notified, and of followed runs.
    async fn send_news(&mut self) -> OrClosed {
        self.send_run_news().await?;
        let (due, announced) = (self.wake.take_due(), self.wake.take_announced());
        for call in due {
            if self.calls.contains_key(&call) {
                self.deliver(&call).await?;
            }
        }
        for call in announced {
            if !self.calls.contains_key(&call) && !self.done.contains(&call) {
                self.follow_from_start(&call).await?;
            }
        }
        Ok(())
    }

    /// Sends a call's news: utterances, then the partial one, then its end.
    async fn deliver(&mut self, call: &CallId) -> OrClosed {
        let Some(followed) = self.calls.get(call) else { return Ok(()) };
        let channel = followed.following.channel.clone();
        let feed = self.client.feed.clone();
        loop {
            let Some(followed) = self.calls.get(call) else { return Ok(()) };
            let news = match feed.news(&channel, followed.sent).await {
                Ok(Some(news)) => news,
                Ok(None) => {
                    // Deleted after its retention.
                    self.calls.remove(call);
                    return Ok(());
                }
                Err(error) => {
                    warn!(%call, %error, "failed to read utterances; retrying");
                    self.retry_later(call);
                    return Ok(());
                }
            };
            let CallNews { record, post_call, last, messages } = news;
            let (count, reached) = (messages.len(), messages.last().map(|(number, _)| *number));
            // Flushed together. What is queued and not flushed is only lost with the connection.
            for (_, text) in messages {
                self.queue(Message::Text(text)).await?;
            }
            if let Some(reached) = reached {
                self.flush().await?;
                if let Some(followed) = self.calls.get_mut(call) {
                    followed.sent = reached;
                }
            }
            self.client.lifecycle.metrics.client_messages(ClientMessage::Transcription, count as u64);
            let is_behind = self.calls.get(call).is_some_and(|followed| followed.sent < last);
            if is_behind && count > 0 {
                continue;
            }
            return self.send_end(&record, post_call.as_deref()).await;
        }
    }

    /// Sends what follows after all utterances.
    async fn send_end(&mut self, record: &CallRecord, post_call: Option<&StoredPostCall>) -> OrClosed {
        let Some(followed) = self.calls.get_mut(&record.id) else { return Ok(()) };
        if record.phase != Phase::Ended {
            followed.check_at = None;
            if let Some((number, partial)) =
                self.client.lifecycle.hub.partial_since(&record.id, followed.partial_version)
            {
                followed.partial_version = number;
                let label = self.client.feed.user_label();
                let message = message::partial(record, &partial, label);
                self.send(&message).await?;
            }
            return Ok(());
        }
        if !followed.is_over {
            followed.is_over = true;
            self.send(&message::call_status(record)).await?;
        }
        let wait_ms = as_ms(self.client.settings.completion_wait);
        let complete_at = message::complete_at(record, post_call, wait_ms);
        let is_due = complete_at.is_none_or(|at| at <= self.client.lifecycle.clock.now_ms());
        if is_due {
            self.send(&message::call_completed(record, post_call)).await?;
            self.calls.remove(&record.id);
            self.mark_done(&record.id);
        } else if let Some(followed) = self.calls.get_mut(&record.id) {
            followed.check_at = complete_at;
        }
        Ok(())
    }

    /// Marks a call as sent to its end, so that it is not followed again with its business.
    fn mark_done(&mut self, call: &CallId) {
        self.done.insert(call.clone());
        // Ids are ordered by time; older calls are never announced again.
        while self.done.len() > 4 * LATEST_MAX as usize {
            self.done.pop_first();
        }
    }

    fn retry_later(&mut self, call: &CallId) {
        let at = self.client.lifecycle.clock.now_ms() + READ_RETRY_DELAY_MS;
        if let Some(followed) = self.calls.get_mut(call) {
            followed.check_at = Some(at);
        }
    }

    /// Checks the calls that are due.
    async fn send_due(&mut self) -> OrClosed {
        let now_ms = self.client.lifecycle.clock.now_ms();
        let due: Vec<CallId> = self
            .calls
            .iter()
            .filter(|(_, followed)| followed.check_at.is_some_and(|at| at <= now_ms))
            .map(|(call, _)| call.clone())
            .collect();
        for call in due {
            self.retry_later(&call);
            self.deliver(&call).await?;
        }
        Ok(())
    }

    // === messages of the client ===

    async fn execute(&mut self, text: &str) -> OrClosed {
        match message::parse_command(text) {
            Err((code, why)) => self.send_error(code, why).await,
            Ok(Command::Subscribe { identifier, after, epoch }) => {
                self.subscribe(&identifier, after, epoch.as_deref()).await
            }
            Ok(Command::Unsubscribe(identifier)) => self.unsubscribe(&identifier).await,
            Ok(Command::SubscribeRun(run)) => self.subscribe_run(&run).await,
            Ok(Command::UnsubscribeRun(run)) => self.unsubscribe_run(&run).await,
            Ok(Command::SubscribeBusiness(business)) => self.subscribe_business(business).await,
            Ok(Command::UnsubscribeBusiness(business)) => {
                self.businesses.remove(&business);
                self.client.feed.follow_businesses(self.number, &self.businesses, &self.wake);
                self.send(&json!({"type": ClientMessage::BusinessUnsubscribed, "business": business})).await
            }
            Ok(Command::Renew(token)) => self.renew(&token).await,
        }
    }

    async fn subscribe(&mut self, identifier: &str, after: Option<i64>, epoch: Option<&str>) -> OrClosed {
        let record = match self.client.find(identifier, &self.principal).await {
            Ok(Some(record)) => record,
            Ok(None) => {
                return self.send_error(ErrorCode::CallNotFound, &format!("No call is known as {identifier}")).await;
            }
            Err(error) => {
                warn!(%error, "failed to subscribe");
                return self.send_error(ErrorCode::SubscriptionFailed, "The database does not answer; try again").await;
            }
        };
        if self.calls.len() >= FOLLOWED_MAX && !self.calls.contains_key(&record.id) {
            let why = format!("A connection follows at most {FOLLOWED_MAX} calls");
            return self.send_error(ErrorCode::SubscriptionFailed, &why).await;
        }
        self.follow(identifier, &record.id, after, epoch).await
    }

    /// Follows a call after a number; without one, from the next utterance.
    async fn follow(&mut self, identifier: &str, call: &CallId, after: Option<i64>, epoch: Option<&str>) -> OrClosed {
        // Followed before it is read, so that no utterance is missed.
        let following = match self.calls.remove(call) {
            Some(followed) => followed,
            None => CallSubscription {
                following: self.client.feed.follow(call, self.number, &self.wake),
                sent: i64::MAX,
                partial_version: 0,
                is_over: false,
                check_at: None,
            },
        };
        let (feed, channel) = (&self.client.feed, &following.following.channel);
        let news = match feed.news(channel, i64::MAX).await {
            // The client has read more at another replica.
            Ok(Some(news)) if after.is_some_and(|n| n > news.last) => feed.news_from_store(channel, i64::MAX).await,
            news => news,
        };
        let news = match news {
            Ok(Some(news)) => news,
            Ok(None) => {
                return self.send_error(ErrorCode::CallNotFound, &format!("No call is known as {identifier}")).await;
            }
            Err(error) => {
                warn!(%error, "failed to subscribe");
                // An earlier subscription stays.
                if following.sent != i64::MAX {
                    let check_at = Some(self.client.lifecycle.clock.now_ms() + READ_RETRY_DELAY_MS);
                    self.calls.insert(call.clone(), CallSubscription { check_at, ..following });
                }
                return self.send_error(ErrorCode::SubscriptionFailed, "The database does not answer; try again").await;
            }
        };
        let resumes = after.is_some() || epoch.is_some();
        let is_other = after.is_some_and(|n| n > news.last) || epoch.is_some_and(|epoch| epoch != call.as_str());
        let sent = match after {
            _ if is_other => 0,
            Some(after) => after,
            // Subscribed again under another id: its position stays.
            None => following.sent.min(news.last),
        };
        self.calls.insert(call.clone(), CallSubscription { sent, ..following });
        self.send(&message::confirmed(identifier, &news.record, resumes.then_some(news.last))).await?;
        if is_other {
            self.send(&message::cannot_resume(identifier, &news.record, news.last)).await?;
        }
        self.deliver(call).await
    }

    async fn unsubscribe(&mut self, identifier: &str) -> OrClosed {
        match self.client.find(identifier, &self.principal).await {
            Ok(Some(record)) => {
                if self.calls.remove(&record.id).is_some() {
                    self.mark_done(&record.id);
                }
                self.send(&message::unsubscribed(identifier)).await
            }
            Ok(None) => self.send_error(ErrorCode::CallNotFound, &format!("No call is known as {identifier}")).await,
            Err(error) => {
                warn!(%error, "failed to unsubscribe");
                self.send_error(ErrorCode::SubscriptionFailed, "The database does not answer; try again").await
            }
        }
    }

    async fn subscribe_business(&mut self, business: String) -> OrClosed {
        // An invisible business is answered like one that does not exist.
        if !self.principal.sees(&business) {
            return self.send_error(ErrorCode::CallNotFound, &format!("No business is known as {business}")).await;
        }
        if self.businesses.len() >= FOLLOWED_MAX && !self.businesses.contains(&business) {
            return self.send_error(ErrorCode::SubscriptionFailed, "Too many businesses are followed").await;
        }
        self.send(&json!({"type": ClientMessage::BusinessSubscribed, "business": business})).await?;
        self.businesses.insert(business);
        self.client.feed.follow_businesses(self.number, &self.businesses, &self.wake);
        Ok(())
    }

    /// Follows a call of a followed business, from its beginning.
    async fn follow_from_start(&mut self, call: &CallId) -> OrClosed {
        if self.calls.len() >= FOLLOWED_MAX {
            return Ok(());
        }
        let Ok(Some(record)) = self.client.lifecycle.store.call(call).await else { return Ok(()) };
        let business = record.attributes.business.as_str();
        if !self.businesses.contains(business) || !self.principal.sees(business) {
            return Ok(());
        }
        let identifier =
            message::call_sid(&record).or(record.alias("conversation_id")).unwrap_or(call.as_str()).to_owned();
        self.follow(&identifier, call, Some(0), None).await
    }

    async fn renew(&mut self, token: &str) -> OrClosed {
        let principal = match self.client.authenticate(token) {
            Ok(principal) => principal,
            Err(error) => return self.send_error(ErrorCode::AuthenticationFailed, &error.to_string()).await,
        };
        self.restrict_to(principal).await;
        token.clone_into(&mut self.token);
        let expires_at = crate::clock::rfc3339(self.principal.expires_at.saturating_mul(1000));
        self.send(&json!({"type": ClientMessage::TokenRenewed, "expires_at": expires_at})).await
    }

    /// Restricts the connection to what this principal may see.
    async fn restrict_to(&mut self, principal: Principal) {
        if principal.businesses == self.principal.businesses {
            self.principal = principal;
            return;
        }
        let mut gone = vec![];
        for call in self.calls.keys() {
            match self.client.lifecycle.store.call(call).await {
                Ok(Some(record)) if principal.sees(record.attributes.business.as_str()) => {}
                // A call that cannot be read is not shown.
                _ => gone.push(call.clone()),
            }
        }
        for call in gone {
            self.calls.remove(&call);
        }
        self.runs.retain(|_, followed| principal.sees(&followed.business));
        self.businesses.retain(|business| principal.sees(business));
        self.client.feed.follow_businesses(self.number, &self.businesses, &self.wake);
        self.principal = principal;
    }
}
