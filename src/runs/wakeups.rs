//! Wake-ups of the dialler of a replica: the ends of calls, a change of a run, and the time of its next full round.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::calls::notify::{Hub, News, NewsFrom, Notification};
use crate::ids::CallId;
use crate::store::Store;

/// The time after the end of a call at another replica after which a full round checks whether that one has handed its slot over.
const HAND_OVER_GRACE: Duration = Duration::from_millis(50);

/// The least time between two full rounds that other replicas have caused: each reads all that is due. The first comes at once, what is
/// told meanwhile makes one more.
const REMOTE_ROUND_INTERVAL: Duration = Duration::from_millis(150);

/// The least time between two notifications of other replicas: each is a commit that waits for all others that notify.
const NOTIFY_INTERVAL: Duration = Duration::from_millis(20);

/// The extent of a round of the dialler.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Round {
    /// Everything.
    Full,
    /// The slots of these calls, which ended here.
    HandOver(Vec<CallId>),
}

/// The dialler's reaction to the end of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnEnd {
    /// Nothing: there is nothing to dial.
    Ignore,
    /// A full round: no other dialler shares the limits, so all free slots are its own.
    FullRound,
    /// The dialler dials the slots of calls that ended here; other replicas dial those of theirs.
    HandOver,
}

/// Wakes the dialler of this replica.
pub(super) struct Wakeups {
    ends: Receiver<Notification>,
    wake: Arc<Notify>,
    dial_wakeup: Arc<Notify>,
    full_round_at: Instant,
    /// Whether the full round comes so early because of other replicas alone.
    is_for_others: bool,
    /// The time of the last such round.
    last_for_others: Option<Instant>,
}

impl Wakeups {
    pub(super) fn new(hub: &Hub, wake: Arc<Notify>) -> Self {
        let (ends, dial_wakeup) = (hub.subscribe(), hub.dial_wakeup.clone());
        Self { ends, wake, dial_wakeup, full_round_at: Instant::now(), is_for_others: false, last_for_others: None }
    }

    /// Sets the time of the next full round to after this pause. Slots that are handed over meanwhile do not change it.
    pub(super) fn set_pause(&mut self, round: &Round, pause: Duration) {
        let next_at = Instant::now() + pause;
        if *round == Round::Full || next_at < self.full_round_at {
            (self.full_round_at, self.is_for_others) = (next_at, false);
        }
    }

    /// Brings the next full round forward, since other replicas have freed slots or changed a run: to when they have had their time.
    fn hasten_full_round(&mut self) {
        let soon = Instant::now() + HAND_OVER_GRACE;
        let at = self.last_for_others.map_or(soon, |last| soon.max(last + REMOTE_ROUND_INTERVAL));
        if at < self.full_round_at {
            (self.full_round_at, self.is_for_others) = (at, true);
        }
    }

    /// Waits for the next round. Dropping it loses nothing.
    pub(super) async fn next(&mut self, on_end: OnEnd) -> Round {
        loop {
            tokio::select! {
                biased;
                () = self.wake.notified() => return Round::Full,
                () = sleep_until(self.full_round_at) => {
                    if self.is_for_others {
                        self.last_for_others = Some(Instant::now());
                    }
                    return Round::Full;
                }
                () = self.dial_wakeup.notified() => self.hasten_full_round(),
                ends = next_ends(&mut self.ends) => {
                    if ends.elsewhere || ends.missed {
                        self.hasten_full_round();
                    }
                    match on_end {
                        OnEnd::FullRound if !ends.here.is_empty() => return Round::Full,
                        OnEnd::HandOver if !ends.here.is_empty() => return Round::HandOver(ends.here),
                        _ => {}
                    }
                }
            }
        }
    }
}

/// Ended calls received from the hub.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ends {
    /// Calls that ended here: this replica hands their slots on.
    here: Vec<CallId>,
    /// Whether calls ended at other replicas, which hand their slots on, unless they do not dial.
    elsewhere: bool,
    /// Whether notifications were dropped.
    missed: bool,
}

impl Ends {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }

    fn note(&mut self, notification: Notification) {
        match (notification.news, notification.from) {
            (News::Ended, NewsFrom::Here) => self.here.push(notification.call),
            (News::Ended, NewsFrom::Replica) => self.elsewhere = true,
            _ => {}
        }
    }
}

/// Waits until a call ends; all that is known by then. Dropping it loses nothing.
async fn next_ends(notifications: &mut Receiver<Notification>) -> Ends {
    let mut ends = Ends::default();
    while ends.is_none() {
        match notifications.recv().await {
            Ok(notification) => ends.note(notification),
            Err(RecvError::Lagged(_)) => ends.missed = true,
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
    loop {
        match notifications.try_recv() {
            Ok(notification) => ends.note(notification),
            Err(TryRecvError::Lagged(_)) => ends.missed = true,
            Err(TryRecvError::Empty | TryRecvError::Closed) => return ends,
        }
    }
}

/// Notifies the diallers of other replicas of what ended here, and of runs that changed here; at most once in [`NOTIFY_INTERVAL`].
/// `has_waiting_work`: whether ends matter to anybody.
pub(super) async fn notify_others(
    hub: Hub,
    changed: Arc<Notify>,
    has_waiting_work: Arc<AtomicBool>,
    store: Arc<dyn Store>,
    stop: CancellationToken,
) {
    let mut notifications = hub.subscribe();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = changed.notified() => {}
            ends = next_ends(&mut notifications) => {
                if (ends.here.is_empty() && !ends.missed) || !has_waiting_work.load(Ordering::Relaxed) {
                    continue;
                }
            }
        }
        if let Err(error) = store.wake_remote_diallers().await {
            debug!(%error, "failed to notify the diallers of other replicas; they look by themselves");
        }
        tokio::time::sleep(NOTIFY_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[tokio::test]
    async fn ends_alone_are_heard_and_those_that_meet_at_once() {
        let (hub, calls) = (Hub::default(), [CallId::new(), CallId::new(), CallId::new()]);
        let mut notifications = hub.subscribe();
        hub.changed(&calls[0]);
        hub.ended(&calls[1]);
        hub.notify(&calls[0]);
        hub.ended(&calls[2]);
        hub.ended_at_replica(&calls[0]);
        let heard = next_ends(&mut notifications).await;
        assert_eq!(heard, Ends { here: calls[1..].to_vec(), elsewhere: true, missed: false });
        hub.notify(&calls[0]);
        assert!(
            tokio::time::timeout(std::time::Duration::from_millis(20), next_ends(&mut notifications)).await.is_err()
        );
        hub.ended(&calls[0]);
        assert_eq!(next_ends(&mut notifications).await.here, [calls[0].clone()]);
        (0..9_000).for_each(|_| hub.ended(&calls[0]));
        assert!(next_ends(&mut notifications).await.missed);
    }

    #[tokio::test(start_paused = true)]
    async fn slots_are_handed_on_at_once_and_everything_is_looked_at_in_its_time() {
        let (hub, wake, call) = (Hub::default(), Arc::<Notify>::default(), CallId::new());
        let mut wakeups = Wakeups::new(&hub, wake.clone());
        assert_eq!(wakeups.next(OnEnd::HandOver).await, Round::Full, "at first");
        wakeups.set_pause(&Round::Full, Duration::from_secs(3600));
        hub.ended(&call);
        let handed_on = wakeups.next(OnEnd::HandOver).await;
        assert_eq!(handed_on, Round::HandOver(vec![call.clone()]));
        wakeups.set_pause(&handed_on, Duration::from_secs(7200));
        hub.ended(&call);
        assert_eq!(wakeups.next(OnEnd::FullRound).await, Round::Full);
        hub.ended_at_replica(&call);
        let (began, next) = (Instant::now(), wakeups.next(OnEnd::HandOver).await);
        assert_eq!((next, began.elapsed().as_millis() / 100), (Round::Full, 0), "it is looked after the other");
        wakeups.set_pause(&Round::Full, Duration::from_secs(3600));
        tokio::time::sleep(REMOTE_ROUND_INTERVAL).await;
        hub.dial_wakeup.notify_one();
        let (began, next) = (Instant::now(), wakeups.next(OnEnd::HandOver).await);
        assert_eq!((next, began.elapsed().as_millis() / 100), (Round::Full, 0), "another replica has rung");
        wakeups.set_pause(&Round::Full, Duration::from_secs(3600));
        hub.ended(&call);
        let (began, next) = (Instant::now(), wakeups.next(OnEnd::Ignore).await);
        assert_eq!((next, began.elapsed().as_secs() > 3_500), (Round::Full, true), "there is nothing to hand on");
        wake.notify_one();
        wakeups.set_pause(&Round::Full, Duration::from_secs(3600));
        assert_eq!(wakeups.next(OnEnd::Ignore).await, Round::Full, "somebody changed a run");
    }

    /// However much others say, they cause a full round at once, and then one in a while; what was said last is looked after too.
    #[tokio::test(start_paused = true)]
    async fn others_cause_no_more_full_rounds_than_are_of_use() {
        let (hub, wake, call) = (Hub::default(), Arc::<Notify>::default(), CallId::new());
        let mut wakeups = Wakeups::new(&hub, wake.clone());
        assert_eq!(wakeups.next(OnEnd::HandOver).await, Round::Full, "at first");
        wakeups.set_pause(&Round::Full, Duration::from_secs(3600));
        let (began, hub) = (Instant::now(), Arc::new(hub));
        let listening = tokio::spawn({
            let (hub, call) = (hub.clone(), call.clone());
            async move {
                for _ in 0..200 {
                    hub.ended_at_replica(&call);
                    hub.dial_wakeup.notify_one();
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        });
        let mut rounds = vec![];
        while began.elapsed() < Duration::from_secs(60) {
            assert_eq!(wakeups.next(OnEnd::HandOver).await, Round::Full);
            rounds.push(began.elapsed().as_millis());
            wakeups.set_pause(&Round::Full, Duration::from_secs(60));
        }
        listening.await.unwrap();
        assert_eq!(rounds.pop().map(|last| last / 1000), Some(61), "then it is quiet");
        assert!(rounds[0] < 60, "the first comes at once: {rounds:?}");
        assert!(rounds.windows(2).all(|two| two[1] - two[0] >= 150), "{rounds:?}");
        assert!((7..=8).contains(&rounds.len()), "{rounds:?}");
        assert!(rounds.last().unwrap() >= &995, "the last words are looked after: {rounds:?}");
        // What is done here is not slowed down by it.
        hub.dial_wakeup.notify_one();
        assert_eq!(wakeups.next(OnEnd::HandOver).await, Round::Full);
        wakeups.set_pause(&Round::Full, Duration::from_secs(3600));
        hub.dial_wakeup.notify_one();
        wake.notify_one();
        let (began, next) = (Instant::now(), wakeups.next(OnEnd::HandOver).await);
        assert_eq!((next, began.elapsed().as_millis()), (Round::Full, 0));
        wakeups.set_pause(&Round::Full, Duration::from_millis(20));
        let (began, next) = (Instant::now(), wakeups.next(OnEnd::HandOver).await);
        assert_eq!((next, began.elapsed().as_millis() / 10), (Round::Full, 2), "its own round keeps its time");
    }
}
