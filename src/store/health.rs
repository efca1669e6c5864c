//! Health of writes, for the log, `/ready` and a metric.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tracing::{error, info};

use super::StoreError;

/// The health of the store's writes.
#[derive(Debug, Default)]
pub(super) struct Health {
    failing: AtomicBool,
    failed: AtomicU64,
}

impl Health {
    /// Whether the last write failed for an external cause: a full disk, an unavailable server.
    pub(super) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// Writes that failed for an external cause, or panicked, since the start.
    pub(super) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Counts writes that failed or panicked, for any cause.
    pub(super) fn count(&self, failed: u64) {
        self.failed.fetch_add(failed, Ordering::Relaxed);
    }

    /// Records the result of a write: the external cause, if it failed for one. Logs a change.
    pub(super) fn note(&self, outside: Option<&StoreError>) {
        if outside.is_some() == self.failing.swap(outside.is_some(), Ordering::Relaxed) {
            return;
        }
        match outside {
            Some(error) => error!(%error, "failed to write to the database; calls are rejected until it recovers"),
            None => info!("database writes work again"),
        }
    }
}
