//! Facts on their way into the store that a heartbeat must not overtake: the other replicas take a heartbeat for the word that
//! everything before it is recorded.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;

use super::Capacity;
use crate::sync::lock;

#[derive(Debug, Default)]
pub(super) struct Recordings {
    open: Mutex<Open>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    numbers: BTreeSet<u64>,
}

/// A fact that is being recorded: while it lives, no heartbeat is sent that speaks for a later time. Dropped once the fact is in the
/// store.
#[must_use = "heartbeats overtake the fact when it is dropped"]
#[derive(Debug)]
pub struct Recording {
    of: Arc<Recordings>,
    number: u64,
}

impl Drop for Recording {
    fn drop(&mut self) {
        lock(&self.of.open).numbers.remove(&self.number);
        self.of.changed.notify_waiters();
    }
}

impl Recordings {
    fn begin(self: &Arc<Self>) -> Recording {
        let mut open = lock(&self.open);
        let number = open.next;
        open.next += 1;
        open.numbers.insert(number);
        Recording { of: self.clone(), number }
    }

    /// Waits until everything that has begun by now is recorded. `false`: it is not within this time.
    pub(super) async fn are_done(&self, within: Duration) -> bool {
        let until = lock(&self.open).next;
        let done = async {
            loop {
                let mut changed = std::pin::pin!(self.changed.notified());
                changed.as_mut().enable();
                if lock(&self.open).numbers.first().is_none_or(|oldest| *oldest >= until) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(within, done).await.is_ok()
    }
}

impl Capacity {
    /// Begins to record a fact that other replicas must know before they hear from this one again.
    pub fn recording(&self) -> Recording {
        self.0.recordings.begin()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_waits_for_what_began_before_it_and_not_for_later_facts() {
        let recordings = Arc::new(Recordings::default());
        let within = Duration::from_secs(1);
        assert!(recordings.are_done(within).await);
        let (first, second) = (recordings.begin(), recordings.begin());
        assert!(!recordings.are_done(within).await);
        let waits = tokio::spawn({
            let recordings = recordings.clone();
            async move { recordings.are_done(within).await }
        });
        tokio::task::yield_now().await;
        let later = recordings.begin();
        drop(second);
        drop(first);
        assert!(waits.await.unwrap());
        drop(later);
        assert!(recordings.are_done(within).await);
    }
}
