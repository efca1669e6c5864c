//! The connections of a listener: limits for all and per peer, and eviction of idle ones.
//!
//! A full listener closes the connection that has been idle for longest to make room for a new one: idle ones are the cheapest
//! to reopen. A connection with a request in progress is never evicted.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::sync::lock;
use tokio::sync::Notify;

/// The interval of log lines about connections that were evicted or refused.
pub(super) const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The unit of the per-peer limit: an IPv4 address, or the first 64 bits of an IPv6 one, because one host usually has all of those.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerKey(IpAddr);

impl PeerKey {
    /// The key of an address.
    pub fn of(address: IpAddr) -> Self {
        PeerKey(match address.to_canonical() {
            IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
            v4 => v4,
        })
    }
}

/// The connections of a listener.
#[derive(Debug)]
pub(super) struct ConnectionSlots {
    listener: SocketAddr,
    max: usize,
    max_of_peer: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: usize,
    of_peer: HashMap<PeerKey, usize>,
    /// Idle connections, ordered by a counter of when they became idle.
    idle: BTreeMap<u64, Arc<SlotEntry>>,
    turn: u64,
    pressure: Pressure,
}

/// Evictions and refusals since the last log line.
#[derive(Debug, Default)]
struct Pressure {
    closed_idle: usize,
    refused: usize,
    said_at: Option<Instant>,
}

/// A connection as others see it.
#[derive(Debug)]
struct SlotEntry {
    /// `None`: the peer has no limit.
    peer: Option<PeerKey>,
    evicted: Notify,
}

/// The slot of a connection, held until it is dropped.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    connection_slots: Arc<ConnectionSlots>,
    entry: Arc<SlotEntry>,
    /// Locked only while a field is read or written.
    state: Mutex<SlotState>,
}

#[derive(Debug, Clone, Copy, Default)]
struct SlotState {
    idle_since: Option<u64>,
    /// Requests in progress.
    requests: usize,
}

/// A request in progress; while it exists, its connection is not idle.
#[derive(Debug)]
pub(super) struct RequestGuard(Arc<ConnectionSlot>);

impl ConnectionSlots {
    pub(super) fn new(listener: SocketAddr, max: usize, max_of_peer: usize) -> Arc<Self> {
        Arc::new(ConnectionSlots { listener, max, max_of_peer, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Reserves a slot for a new connection, evicting an idle one if necessary. `None`: all are busy.
    /// Without a peer only the limit of all applies.
    pub(super) fn reserve(self: &Arc<Self>, peer: Option<PeerKey>) -> Option<Arc<ConnectionSlot>> {
        let mut state = self.state();
        let of_peer = peer.map_or(0, |peer| state.of_peer.get(&peer).copied().unwrap_or_default());
        let found = if of_peer >= self.max_of_peer {
            state.close_oldest(|entry| entry.peer == peer)
        } else if state.open >= self.max {
            state.close_oldest(|_| true)
        } else {
            true
        };
        if !found {
            state.pressure.refused += 1;
        }
        state.log_pressure(self.listener, self.max, self.max_of_peer);
        if !found {
            return None;
        }
        state.open += 1;
        if let Some(peer) = peer {
            *state.of_peer.entry(peer).or_default() += 1;
        }
        let entry = Arc::new(SlotEntry { peer, evicted: Notify::new() });
        let slot = SlotState { idle_since: Some(state.mark_idle(entry.clone())), requests: 0 };
        Some(Arc::new(ConnectionSlot { connection_slots: self.clone(), entry, state: Mutex::new(slot) }))
    }
}

impl State {
    fn mark_idle(&mut self, entry: Arc<SlotEntry>) -> u64 {
        self.turn += 1;
        self.idle.insert(self.turn, entry);
        self.turn
    }

    fn release(&mut self, peer: Option<PeerKey>) {
        self.open = self.open.saturating_sub(1);
        let Some(peer) = peer else { return };
        let left = self.of_peer.get_mut(&peer).map_or(0, |count| {
            *count = count.saturating_sub(1);
            *count
        });
        if left == 0 {
            self.of_peer.remove(&peer);
        }
    }

    /// Evicts the connection that was idle for longest among those that `fits` accepts; its slot is free at once.
    fn close_oldest(&mut self, fits: impl Fn(&SlotEntry) -> bool) -> bool {
        let oldest = self.idle.iter().find(|(_, entry)| fits(entry)).map(|(since, _)| *since);
        let Some(entry) = oldest.and_then(|since| self.idle.remove(&since)) else { return false };
        self.release(entry.peer);
        self.pressure.closed_idle += 1;
        entry.evicted.notify_one();
        true
    }

    fn log_pressure(&mut self, listener: SocketAddr, connections_max: usize, of_peer_max: usize) {
        let pressure = &mut self.pressure;
        let (closed_idle, refused) = (pressure.closed_idle, pressure.refused);
        if closed_idle + refused == 0 || pressure.said_at.is_some_and(|at| at.elapsed() < LOG_INTERVAL) {
            return;
        }
        *pressure = Pressure { said_at: Some(Instant::now()), ..Pressure::default() };
        tracing::warn!(%listener, connections_max, of_peer_max, closed_idle, refused, "connection limit reached");
    }
}

impl ConnectionSlot {
    fn slot_state(&self) -> MutexGuard<'_, SlotState> {
        lock(&self.state)
    }

    /// Marks a request in progress. `None`: the connection was just evicted.
    pub(super) fn begin_request(self: &Arc<Self>) -> Option<RequestGuard> {
        let mut slot = self.slot_state();
        if slot.requests == 0 {
            let since = slot.idle_since.take()?;
            self.connection_slots.state().idle.remove(&since)?;
        }
        slot.requests += 1;
        drop(slot);
        Some(RequestGuard(self.clone()))
    }

    /// Waits until the connection is evicted.
    pub(super) async fn evicted(&self) {
        self.entry.evicted.notified().await;
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let mut slot = self.0.slot_state();
        slot.requests = slot.requests.saturating_sub(1);
        if slot.requests == 0 {
            slot.idle_since = Some(self.0.connection_slots.state().mark_idle(self.0.entry.clone()));
        }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let slot = *self.slot_state();
        let mut state = self.connection_slots.state();
        let is_idle = slot.idle_since.is_some_and(|since| state.idle.remove(&since).is_some());
        // Otherwise it was evicted, and its slot belongs to another.
        if is_idle || slot.requests > 0 {
            state.release(self.entry.peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection_slots(max: usize, of_peer: usize) -> Arc<ConnectionSlots> {
        ConnectionSlots::new(([127, 0, 0, 1], 1).into(), max, of_peer)
    }

    fn peer(last: u8) -> Option<PeerKey> {
        Some(PeerKey::of([10, 0, 0, last].into()))
    }

    async fn has_left(slot: &ConnectionSlot) -> bool {
        tokio::select! {
            biased;
            () = slot.evicted() => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test]
    async fn the_one_that_waits_for_longest_makes_room() {
        let connection_slots = connection_slots(2, 2);
        let (a, b) = (connection_slots.reserve(peer(1)).unwrap(), connection_slots.reserve(peer(2)).unwrap());
        // It has just been busy, so the other has waited for longer.
        drop(a.begin_request().unwrap());
        let c = connection_slots.reserve(peer(3)).unwrap();
        assert!(has_left(&b).await && !has_left(&a).await && !has_left(&c).await);
        assert!(b.begin_request().is_none(), "a request that came too late is not begun");
        drop(b);
        let (_a, _c) = (a.begin_request().unwrap(), c.begin_request().unwrap());
        assert!(connection_slots.reserve(peer(4)).is_none(), "nobody is closed in the middle of a request");
        assert_eq!(connection_slots.state().open, 2);
    }

    #[tokio::test]
    async fn a_peer_that_has_its_share_makes_room_for_itself_only() {
        let connection_slots = connection_slots(10, 2);
        let other = connection_slots.reserve(peer(1)).unwrap();
        let all: Vec<_> = (0..5).map(|_| connection_slots.reserve(peer(2)).unwrap()).collect();
        assert!(!has_left(&other).await);
        for (nth, slot) in all.iter().enumerate() {
            assert_eq!(has_left(slot).await, nth < 3, "{nth}");
        }
        assert_eq!(connection_slots.state().open, 3);
        let busy: Vec<_> = all.iter().filter_map(|slot| slot.begin_request()).collect();
        assert_eq!(busy.len(), 2);
        assert!(connection_slots.reserve(peer(2)).is_none());
        let trusted: Vec<_> = (0..7).map(|_| connection_slots.reserve(None).unwrap()).collect();
        drop(busy);
        drop((trusted, all, other));
        let state = connection_slots.state();
        assert_eq!((state.open, state.of_peer.len(), state.idle.len()), (0, 0, 0));
    }

    #[test]
    fn several_requests_on_one_connection_are_all_waited_for() {
        let connection_slots = connection_slots(1, 1);
        let slot = connection_slots.reserve(peer(1)).unwrap();
        let (first, second) = (slot.begin_request().unwrap(), slot.begin_request().unwrap());
        drop(first);
        assert!(connection_slots.reserve(peer(1)).is_none());
        drop(second);
        assert!(connection_slots.reserve(peer(1)).is_some());
    }

    #[test]
    fn an_ipv6_host_is_one_peer() {
        let of = |address: &str| PeerKey::of(address.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}
