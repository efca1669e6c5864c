//! What wakes the dialler of a replica: ends of calls, as the hub tells of them; whoever changes a run; and its time.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::time::{Instant, sleep_until};

use crate::ids::CallId;
use crate::notify::{Hub, News, Notification};

/// How long after the end of a call at another replica it is looked whether that one has handed its slot on.
const AFTER_ANOTHER: Duration = Duration::from_millis(50);

/// What a round of the dialler is about.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Round {
    /// Everything.
    Look,
    /// The slots of these calls, which ended here.
    HandOn(Vec<CallId>),
}

/// What a dialler hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hears {
    /// Its time, and whoever changes a run: there is nothing to dial.
    NoEnds,
    /// Ends; it shares the limits with nobody, so all that is free is its own.
    Alone,
    /// Ends; others hear those of theirs.
    AmongOthers,
}

/// See the module.
pub(super) struct Bells {
    ends: Receiver<Notification>,
    wake: Arc<Notify>,
    look_at: Instant,
}

impl Bells {
    pub(super) fn new(hub: &Hub, wake: Arc<Notify>) -> Self {
        Self { ends: hub.listen(), wake, look_at: Instant::now() }
    }

    /// After a round there is nothing to do for so long. However many slots are handed on, everything is looked at in its time.
    pub(super) fn rest(&mut self, round: &Round, pause: Duration) {
        let next_at = Instant::now() + pause;
        self.look_at = if *round == Round::Look { next_at } else { self.look_at.min(next_at) };
    }

    /// Waits for the next round. Dropping it loses nothing.
    pub(super) async fn next(&mut self, hears: Hears) -> Round {
        loop {
            tokio::select! {
                biased;
                () = self.wake.notified() => return Round::Look,
                () = sleep_until(self.look_at) => return Round::Look,
                ends = ends(&mut self.ends) => {
                    if ends.elsewhere || ends.missed {
                        self.look_at = self.look_at.min(Instant::now() + AFTER_ANOTHER);
                    }
                    match hears {
                        Hears::Alone if !ends.here.is_empty() => return Round::Look,
                        Hears::AmongOthers if !ends.here.is_empty() => return Round::HandOn(ends.here),
                        _ => {}
                    }
                }
            }
        }
    }
}

/// What was heard.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ends {
    /// Calls that ended here: who hears an end hands its slot on.
    here: Vec<CallId>,
    /// Some ended at other replicas, which hand their slots on, unless they do not dial.
    elsewhere: bool,
    /// More was said than was heard.
    missed: bool,
}

impl Ends {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }

    fn note(&mut self, bell: Notification) {
        match (bell.news, bell.is_ours) {
            (News::Ended, true) => self.here.push(bell.call),
            (News::Ended, false) => self.elsewhere = true,
            _ => {}
        }
    }
}

/// Waits until a call ends; all that is known by then. Dropping it loses nothing.
async fn ends(bells: &mut Receiver<Notification>) -> Ends {
    let mut ends = Ends::default();
    while ends.is_none() {
        match bells.recv().await {
            Ok(bell) => ends.note(bell),
            Err(RecvError::Lagged(_)) => ends.missed = true,
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
    loop {
        match bells.try_recv() {
            Ok(bell) => ends.note(bell),
            Err(TryRecvError::Lagged(_)) => ends.missed = true,
            Err(TryRecvError::Empty | TryRecvError::Closed) => return ends,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[tokio::test]
    async fn ends_alone_are_heard_and_those_that_meet_at_once() {
        let (hub, calls) = (Hub::default(), [CallId::new(), CallId::new(), CallId::new()]);
        let mut bells = hub.listen();
        hub.changed(&calls[0]);
        hub.ended(&calls[1]);
        hub.notify(&calls[0]);
        hub.ended(&calls[2]);
        hub.ended_at_replica(&calls[0]);
        let heard = ends(&mut bells).await;
        assert_eq!(heard, Ends { here: calls[1..].to_vec(), elsewhere: true, missed: false });
        hub.notify(&calls[0]);
        assert!(tokio::time::timeout(std::time::Duration::from_millis(20), ends(&mut bells)).await.is_err());
        hub.ended(&calls[0]);
        assert_eq!(ends(&mut bells).await.here, [calls[0].clone()]);
        (0..9_000).for_each(|_| hub.ended(&calls[0]));
        assert!(ends(&mut bells).await.missed);
    }

    #[tokio::test(start_paused = true)]
    async fn slots_are_handed_on_at_once_and_everything_is_looked_at_in_its_time() {
        let (hub, wake, call) = (Hub::default(), Arc::<Notify>::default(), CallId::new());
        let mut bells = Bells::new(&hub, wake.clone());
        assert_eq!(bells.next(Hears::AmongOthers).await, Round::Look, "at first");
        bells.rest(&Round::Look, Duration::from_secs(3600));
        hub.ended(&call);
        let handed_on = bells.next(Hears::AmongOthers).await;
        assert_eq!(handed_on, Round::HandOn(vec![call.clone()]));
        bells.rest(&handed_on, Duration::from_secs(7200));
        hub.ended(&call);
        assert_eq!(bells.next(Hears::Alone).await, Round::Look);
        hub.ended_at_replica(&call);
        let (began, next) = (Instant::now(), bells.next(Hears::AmongOthers).await);
        assert_eq!((next, began.elapsed().as_millis() / 100), (Round::Look, 0), "it is looked after the other");
        bells.rest(&Round::Look, Duration::from_secs(3600));
        hub.ended(&call);
        let (began, next) = (Instant::now(), bells.next(Hears::NoEnds).await);
        assert_eq!((next, began.elapsed().as_secs() > 3_500), (Round::Look, true), "there is nothing to hand on");
        wake.notify_one();
        bells.rest(&Round::Look, Duration::from_secs(3600));
        assert_eq!(bells.next(Hears::NoEnds).await, Round::Look, "somebody changed a run");
    }
}
