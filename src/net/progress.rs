//! The progress of an exchange: flags, and the time of the last movement.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use crate::clock::ticks_ms;

/// The progress of an exchange. Flags are set before a step, not after it, so that they stay true when a future is dropped half-way;
/// shared with the bodies, which hyper polls.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Some of the body was read.
    pub(super) body_begun: Flag,
    /// The body was read completely.
    pub(super) body_done: Flag,
    /// The end of the body is unknown, so nothing after it can be read.
    pub(super) body_lost: Flag,
    /// The next piece of the body is awaited from the client, not taken by the upstream.
    pub(super) waits_for_client: Flag,
    /// An answer was started.
    pub(super) answered: Flag,
    /// The answer is incomplete: only the end of the connection (or stream) can tell the client.
    pub(super) torn: Flag,
    /// The next piece of the answer is awaited from the upstream, not taken by the client.
    waits_for_upstream: Flag,
    response_bytes: AtomicU64,
    /// The time of the last progress, by [`ticks_ms`].
    moved_ms: AtomicU64,
}

impl Progress {
    /// Records progress.
    pub(super) fn moved(&self) {
        self.moved_ms.store(ticks_ms(), Ordering::Relaxed);
    }

    /// Returns when there was no progress for as long as `limit` then says; checks at least every `tick`. `set_next_check` has the
    /// connection's timer poll the caller again at a time, by [`ticks_ms`]; without it, it uses a timer of its own.
    pub(super) async fn stalled(
        &self,
        set_next_check: Option<impl Fn(u64)>,
        tick: Duration,
        limit: impl Fn() -> Option<Duration>,
    ) {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        // The next check.
        let next = || {
            let now = ticks_ms();
            let left = match limit() {
                Some(limit) => ms(limit).saturating_sub(now.saturating_sub(self.moved_ms.load(Ordering::Relaxed))),
                None => u64::MAX,
            };
            (left > 0).then(|| (now, left.min(ms(tick)) + 1))
        };
        let Some(set_next_check) = set_next_check else {
            while let Some((_, left_ms)) = next() {
                tokio::time::sleep(Duration::from_millis(left_ms)).await;
            }
            return;
        };
        poll_fn(|_| match next() {
            Some((now, left_ms)) => {
                set_next_check(now + left_ms);
                Poll::Pending
            }
            None => Poll::Ready(()),
        })
        .await;
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.response_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.waits_for_upstream.clear();
        self.moved();
    }

    pub(super) fn waits_for_upstream(&self) {
        self.waits_for_upstream.set();
    }

    /// Whether the client has been sent a part of the answer and has to read it.
    pub(super) fn is_clients_turn(&self) -> bool {
        !self.waits_for_upstream.is_set()
    }

    pub(super) fn response_bytes(&self) -> u64 {
        self.response_bytes.load(Ordering::Relaxed)
    }
}

/// A boolean shared by several futures.
#[derive(Debug, Default)]
pub(super) struct Flag(AtomicBool);

impl Flag {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
