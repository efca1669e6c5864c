//! Idle connections to upstreams, each on the core that opened it.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use http::Uri;
use http::uri::{Authority, Scheme};
use hyper::client::conn::http1::SendRequest;
use pingora_pool::{ConnectionMeta, ConnectionPool};

use super::body::Outgoing;
use super::cores;
use crate::clock::since_boot;

/// The purpose of a connection. Connections are not shared between lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Lane {
    /// All other requests.
    General,
    /// Creates: their idle connections are closed early, so that a provider's close seldom coincides with a create.
    Creates,
    /// Requests to addresses that tenants choose.
    Callbacks,
}

/// The destination of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PoolKey {
    lane: Lane,
    is_https: bool,
    authority: Authority,
}

impl PoolKey {
    /// `None`: not an absolute http(s) URL.
    pub(super) fn of(lane: Lane, uri: &Uri) -> Option<Self> {
        let is_https = match uri.scheme()? {
            scheme if *scheme == Scheme::HTTP => false,
            scheme if *scheme == Scheme::HTTPS => true,
            _ => return None,
        };
        Some(PoolKey { lane, is_https, authority: uri.authority()?.clone() })
    }
}

/// A connection. Dropping it closes it.
#[derive(Debug)]
pub(super) struct PooledConnection {
    pub(super) sender: SendRequest<Outgoing>,
    to: PoolKey,
    core: usize,
    meta: ConnectionMeta,
    /// The time at which it became idle, in milliseconds of [`since_boot`]; [`IN_USE`] otherwise.
    idle_since_ms: Arc<AtomicU64>,
}

const IN_USE: u64 = u64::MAX;

fn now_ms() -> u64 {
    u64::try_from(since_boot().as_millis()).unwrap_or(IN_USE)
}

/// The pool of idle connections.
pub(super) struct Pool {
    of_cores: Vec<ConnectionPool<PooledConnection>>,
    hasher: RandomState,
    last_id: AtomicI32,
    idle: Duration,
    idle_of_creates: Duration,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl Pool {
    /// At most `max_idle` connections are kept per core; the least recently used is closed for a further one.
    pub(super) fn new(max_idle: usize, idle: Duration, idle_of_creates: Duration) -> Arc<Self> {
        let of_cores = (0..=cores::count()).map(|_| ConnectionPool::new(max_idle)).collect();
        Arc::new(Pool { of_cores, hasher: RandomState::new(), last_id: AtomicI32::new(0), idle, idle_of_creates })
    }

    fn idle_of(&self, lane: Lane) -> Duration {
        if lane == Lane::Creates { self.idle_of_creates } else { self.idle }
    }

    fn key(&self, to: &PoolKey) -> u64 {
        // In one call: an authority hashes itself byte by byte.
        self.hasher.hash_one((to.lane, to.is_https, to.authority.as_str()))
    }

    /// Takes an idle connection of this core.
    pub(super) fn take(&self, to: &PoolKey) -> Option<PooledConnection> {
        let pool = self.of_cores.get(cores::current())?;
        let key = self.key(to);
        loop {
            let connection = pool.get(&key)?;
            let waited = now_ms().saturating_sub(connection.idle_since_ms.swap(IN_USE, Ordering::Relaxed));
            // The pool is keyed by the hash alone, which two destinations may share.
            let is_it = connection.to == *to && Duration::from_millis(waited) < self.idle_of(to.lane);
            if is_it && connection.sender.is_ready() {
                return Some(connection);
            }
        }
    }

    /// Returns a connection whose last answer was read completely.
    pub(super) fn return_to_pool(self: &Arc<Self>, mut connection: PooledConnection) {
        if connection.sender.is_ready() {
            return self.keep(connection);
        }
        if connection.sender.is_closed() {
            return;
        }
        // The connection's task has not finished yet.
        let pool = self.clone();
        tokio::spawn(async move {
            let ready = std::future::poll_fn(|cx| connection.sender.poll_ready(cx));
            if let Ok(Ok(())) = tokio::time::timeout(Duration::from_secs(1), ready).await {
                pool.keep(connection);
            }
        });
    }

    fn keep(&self, connection: PooledConnection) {
        let Some(pool) = self.of_cores.get(connection.core) else { return };
        connection.idle_since_ms.store(now_ms(), Ordering::Relaxed);
        let meta = connection.meta.clone();
        // The outcome is observed elsewhere: see `Pool::drive`.
        let _ = pool.put(&meta, connection);
    }

    /// Wraps a new connection, and starts the task that drives it until it is closed, or idle for too long.
    pub(super) fn connection(
        self: &Arc<Self>,
        to: &PoolKey,
        sender: SendRequest<Outgoing>,
        driven: impl Future<Output = hyper::Result<()>> + Send + 'static,
    ) -> PooledConnection {
        let (core, idle) = (cores::current(), self.idle_of(to.lane));
        let meta = ConnectionMeta::new(self.key(to), self.last_id.fetch_add(1, Ordering::Relaxed));
        let idle_since_ms = Arc::new(AtomicU64::new(IN_USE));
        let connection =
            PooledConnection { sender, to: to.clone(), core, meta: meta.clone(), idle_since_ms: idle_since_ms.clone() };
        let pool = Arc::downgrade(self);
        // Boxed, so that the pinned future is not stored twice.
        let mut driven = Box::pin(driven);
        tokio::spawn(async move {
            let mut left = idle;
            let is_closed = loop {
                tokio::select! {
                    biased;
                    _ = &mut driven => break true,
                    () = tokio::time::sleep(left) => {}
                }
                let waited = Duration::from_millis(now_ms().saturating_sub(idle_since_ms.load(Ordering::Relaxed)));
                match idle.checked_sub(waited) {
                    Some(more) if !more.is_zero() => left = more,
                    _ => break false,
                }
            };
            if let Some(pool) = pool.upgrade()
                && let Some(pool) = pool.of_cores.get(core)
                && idle_since_ms.load(Ordering::Relaxed) != IN_USE
            {
                pool.pop_closed(&meta);
            }
            if !is_closed {
                // Its sender was dropped, or taken for a last request.
                let _ = driven.await;
            }
        });
        connection
    }
}
