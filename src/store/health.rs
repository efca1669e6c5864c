//! How writing goes: what a log line, `/ready` and a metric say of it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tracing::{error, info};

use super::StoreError;

/// How writing goes.
#[derive(Debug, Default)]
pub(super) struct Health {
    failing: AtomicBool,
    failed: AtomicU64,
}

impl Health {
    /// The last write met a cause outside of it: a full disk, a server that is away.
    pub(super) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// Writes that failed for such a cause, or panicked, since the start.
    pub(super) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Writes that failed or panicked, whatever the cause.
    pub(super) fn count(&self, failed: u64) {
        self.failed.fetch_add(failed, Ordering::Relaxed);
    }

    /// Notes how a write went: the cause outside of it, if one kept it from being written. Says so when that changes.
    pub(super) fn note(&self, outside: Option<&StoreError>) {
        if outside.is_some() == self.failing.swap(outside.is_some(), Ordering::Relaxed) {
            return;
        }
        match outside {
            Some(error) => error!(%error, "failed to write to the database; calls are refused until it recovers"),
            None => info!("database writes work again"),
        }
    }
}
