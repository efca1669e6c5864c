//! The memory for bodies that are read completely. Counted as bytes arrive, so that an announced length alone reserves nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::connection_slots::PeerKey;
use crate::sync::lock;

/// The unit of accounting, in bytes: a page, so that single bytes are not counted one by one.
const UNIT_BYTES: usize = 4096;
/// The part of a body that counts as small, in bytes.
const SMALL_BYTES_MAX: usize = 1024 * 1024;
/// The time for which a body waits for room; afterwards, or if too many wait, it is rejected with a request to retry.
const WAIT_MAX: Duration = Duration::from_secs(5);
const WAITING_MAX: usize = 64;
/// The time between two waiters that give up. Bodies that together hold all the room and wait for one another would otherwise all
/// give up at the same time; so one gives up first, and leaves its room to the others.
const GIVE_UP_INTERVAL: Duration = Duration::from_millis(40);

/// The memory for bodies of a listener.
#[derive(Debug)]
pub(super) struct BodyMemory {
    all: Sizes,
    of_peer: Sizes,
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct State {
    taken: Sizes,
    of_peer: HashMap<PeerKey, Sizes>,
    waiting: usize,
    /// The time at which a waiter last gave up.
    gave_up: Option<Instant>,
}

/// Bytes of small bodies, and of the parts of large ones beyond that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) small: usize,
    pub(super) large: usize,
}

impl Sizes {
    fn plus(self, other: Sizes) -> Sizes {
        Sizes { small: self.small + other.small, large: self.large + other.large }
    }

    fn less(self, other: Sizes) -> Sizes {
        Sizes { small: self.small.saturating_sub(other.small), large: self.large.saturating_sub(other.large) }
    }

    fn fits(self, within: Sizes) -> bool {
        self.small <= within.small && self.large <= within.large
    }
}

/// There is no room, even after waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoRoom;

/// The share of one body, released when dropped.
#[derive(Debug)]
pub(super) struct BodyShare {
    room: Arc<BodyMemory>,
    peer: Option<PeerKey>,
    bytes: Sizes,
    /// The part that has arrived.
    used: usize,
}

impl BodyMemory {
    /// Without `large` room of their own, large bodies count as small ones. `of_peer` is the maximum per peer.
    pub(super) fn new(all: Sizes, of_peer: Sizes) -> Arc<Self> {
        Arc::new(BodyMemory { all, of_peer, state: Mutex::default(), freed: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// An empty share for a body of this peer. Without a peer only the limit of all applies.
    pub(super) fn body(self: &Arc<Self>, peer: Option<PeerKey>) -> BodyShare {
        BodyShare { room: self.clone(), peer, bytes: Sizes::default(), used: 0 }
    }

    fn try_take(&self, peer: Option<PeerKey>, more: Sizes) -> bool {
        let mut state = self.state();
        let all = state.taken.plus(more);
        if !all.fits(self.all) {
            return false;
        }
        if let Some(peer) = peer {
            let of_peer = state.of_peer.get(&peer).copied().unwrap_or_default().plus(more);
            if !of_peer.fits(self.of_peer) {
                return false;
            }
            state.of_peer.insert(peer, of_peer);
        }
        state.taken = all;
        true
    }

    /// Lets a waiter give up, or says until when it waits on, because another one gave up just now.
    fn give_up(&self) -> Option<Instant> {
        let mut state = self.state();
        let now = Instant::now();
        let next = state.gave_up.map(|last| last + GIVE_UP_INTERVAL).filter(|next| *next > now);
        if next.is_none() {
            state.gave_up = Some(now);
        }
        next
    }
}

impl BodyShare {
    /// Grows the share; waits for room if there is none. Cancel-safe.
    pub(super) async fn grow(&mut self, bytes: usize) -> Result<(), NoRoom> {
        let has = self.bytes.small + self.bytes.large;
        self.used += bytes;
        if self.used <= has {
            return Ok(());
        }
        let bytes = (self.used - has).next_multiple_of(UNIT_BYTES);
        let more = match self.room.all.large > 0 && self.used > SMALL_BYTES_MAX {
            true => Sizes { small: 0, large: bytes },
            false => Sizes { small: bytes, large: 0 },
        };
        if !self.room.try_take(self.peer, more) {
            self.wait(more).await?;
        }
        self.bytes = self.bytes.plus(more);
        Ok(())
    }

    async fn wait(&self, more: Sizes) -> Result<(), NoRoom> {
        let _place = Waiter::begin(&self.room).ok_or(NoRoom)?;
        let mut until = Instant::now() + WAIT_MAX;
        loop {
            let mut freed = std::pin::pin!(self.room.freed.notified());
            // Registered before the attempt, so that a release in between is not missed.
            freed.as_mut().enable();
            if self.room.try_take(self.peer, more) {
                return Ok(());
            }
            if timeout_at(until, freed).await.is_err() {
                until = self.room.give_up().ok_or(NoRoom)?;
            }
        }
    }
}

impl Drop for BodyShare {
    fn drop(&mut self) {
        if self.bytes == Sizes::default() {
            return;
        }
        {
            let mut state = self.room.state();
            state.taken = state.taken.less(self.bytes);
            if let Some(peer) = self.peer {
                let left = state.of_peer.get(&peer).copied().unwrap_or_default().less(self.bytes);
                if left == Sizes::default() {
                    state.of_peer.remove(&peer);
                } else {
                    state.of_peer.insert(peer, left);
                }
            }
        }
        self.room.freed.notify_waiters();
    }
}

/// A counted waiter.
struct Waiter<'a>(&'a BodyMemory);

impl<'a> Waiter<'a> {
    fn begin(room: &'a BodyMemory) -> Option<Self> {
        let mut state = room.state();
        if state.waiting >= WAITING_MAX {
            return None;
        }
        state.waiting += 1;
        drop(state);
        Some(Waiter(room))
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.state().waiting -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    fn room() -> Arc<BodyMemory> {
        BodyMemory::new(Sizes { small: 4 * MIB, large: 12 * MIB }, Sizes { small: 2 * MIB, large: 8 * MIB })
    }

    fn peer(last: u8) -> Option<PeerKey> {
        Some(PeerKey::of([10, 0, 0, last].into()))
    }

    #[tokio::test(start_paused = true)]
    async fn large_bodies_leave_room_for_small_ones_and_one_peer_for_others() {
        let room = room();
        let mut large = room.body(peer(1));
        for _ in 0..9 {
            large.grow(MIB).await.unwrap();
        }
        assert_eq!(large.bytes, Sizes { small: MIB, large: 8 * MIB });
        let begun = Instant::now();
        assert_eq!(large.grow(1).await, Err(NoRoom), "the peer has its share");
        assert_eq!(begun.elapsed(), WAIT_MAX);
        let mut other = room.body(peer(2));
        for _ in 0..5 {
            other.grow(MIB).await.unwrap();
        }
        assert_eq!(other.grow(1).await, Err(NoRoom), "large ones are full");
        let mut small = room.body(peer(3));
        small.grow(MIB).await.unwrap();
        let mut trusted = room.body(None);
        trusted.grow(MIB).await.unwrap();
        assert_eq!(room.body(peer(4)).grow(1).await, Err(NoRoom), "small ones are full");
        drop((large, other, small, trusted));
        assert_eq!(room.state().taken, Sizes::default());
        assert!(room.state().of_peer.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_gets_what_becomes_free_and_few_may_wait() {
        let room = room();
        let mut first = room.body(None);
        for _ in 0..13 {
            first.grow(MIB).await.unwrap();
        }
        let waits = |bytes| {
            let room = room.clone();
            tokio::spawn(async move {
                let mut body = room.body(None);
                body.grow(bytes).await.map(|()| body)
            })
        };
        let large = waits(2 * MIB);
        tokio::time::sleep(WAIT_MAX / 2).await;
        assert_eq!(room.state().waiting, 1);
        let all: Vec<_> = (0..WAITING_MAX).map(|_| waits(2 * MIB)).collect();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(room.state().waiting, WAITING_MAX);
        assert!(all.last().unwrap().is_finished(), "one more than may wait is told at once");
        large.abort();
        drop(first);
        let got = futures_util::future::join_all(all).await;
        let held = got.into_iter().filter_map(|one| one.unwrap().ok()).count();
        assert!(held >= 6, "{held}");
        assert_eq!(room.state().waiting, 0, "who is given up does not wait on");
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_that_wait_for_one_another_give_up_one_by_one() {
        let room = BodyMemory::new(Sizes { small: 6 * MIB, large: 0 }, Sizes { small: 6 * MIB, large: 0 });
        // However far apart they arrive.
        for distance in [Duration::ZERO, GIVE_UP_INTERVAL, WAIT_MAX / 2] {
            let mut begun = Vec::new();
            for _ in 0..3 {
                let mut body = room.body(None);
                body.grow(2 * MIB).await.unwrap();
                begun.push(body);
            }
            let waits = begun.into_iter().zip(0..).map(|(mut body, before)| {
                tokio::spawn(async move {
                    tokio::time::sleep(distance * before).await;
                    body.grow(2 * MIB).await.map(|()| drop(body))
                })
            });
            let got = futures_util::future::join_all(waits.collect::<Vec<_>>()).await;
            assert_eq!(got.iter().filter(|one| matches!(one, Ok(Ok(())))).count(), 2, "{distance:?}: {got:?}");
        }
    }
}
