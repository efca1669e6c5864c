//! Facts being written to the store. A heartbeat asserts that everything before it is recorded, so none may speak for a time after
//! an open one began.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::sync::lock;

#[derive(Debug, Default)]
pub(super) struct Recordings {
    open: Mutex<Open>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    /// The time at which each began.
    begun: BTreeMap<u64, Instant>,
}

/// A fact that is being recorded: while it lives, heartbeats speak for the time before it began. Dropped once the fact is in the
/// store.
#[must_use = "heartbeats overtake the fact when it is dropped"]
#[derive(Debug)]
pub struct Recording {
    of: Arc<Recordings>,
    number: u64,
}

impl Drop for Recording {
    fn drop(&mut self) {
        lock(&self.of.open).begun.remove(&self.number);
        self.of.changed.notify_waiters();
    }
}

impl Recordings {
    pub(super) fn begin(self: &Arc<Self>) -> Recording {
        let mut open = lock(&self.open);
        let number = open.next;
        open.next += 1;
        open.begun.insert(number, Instant::now());
        Recording { of: self.clone(), number }
    }

    /// Waits until everything that has begun by now is recorded, but no longer than this.
    pub(super) async fn done(&self, within: Duration) {
        let until = lock(&self.open).next;
        let done = async {
            loop {
                let mut changed = std::pin::pin!(self.changed.notified());
                changed.as_mut().enable();
                if lock(&self.open).begun.keys().next().is_none_or(|oldest| *oldest >= until) {
                    return;
                }
                changed.await;
            }
        };
        let _ = tokio::time::timeout(within, done).await;
    }

    /// The age of the oldest fact that is not recorded yet; zero if there is none.
    pub(super) fn oldest(&self) -> Duration {
        let begun = lock(&self.open).begun.values().next().copied();
        begun.map_or(Duration::ZERO, |begun| begun.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_waits_for_what_began_before_it_and_not_for_later_facts() {
        let recordings = Arc::new(Recordings::default());
        let within = Duration::from_secs(1);
        async fn waited(recordings: Arc<Recordings>, within: Duration) -> Duration {
            let began = tokio::time::Instant::now();
            recordings.done(within).await;
            began.elapsed()
        }
        assert_eq!((waited(recordings.clone(), within).await, recordings.oldest()), (Duration::ZERO, Duration::ZERO));
        let (first, second) = (recordings.begin(), recordings.begin());
        assert!(waited(recordings.clone(), within).await >= within && recordings.oldest() > Duration::ZERO);
        let waits = tokio::spawn(waited(recordings.clone(), within));
        tokio::task::yield_now().await;
        let later = recordings.begin();
        drop(second);
        drop(first);
        assert!(waits.await.unwrap() < within);
        drop(later);
        assert_eq!(recordings.oldest(), Duration::ZERO);
    }
}
