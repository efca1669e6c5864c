//! The bypass: while it lasts limits reject nothing, at every replica that shares the record. Everything is counted and recorded as
//! in observe mode. It ends at its time, whichever replicas are running.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tracing::{debug, info, warn};

use super::AdmissionController;
use crate::policy::Mode;
use crate::store::{Bypass, Result};
use crate::sync::lock;

impl AdmissionController {
    /// The bypass, while it is in force.
    pub fn bypass(&self) -> Option<Arc<Bypass>> {
        let now_ms = self.0.clock.now_ms();
        self.0.bypass.latest.load_full().filter(|bypass| now_ms < bypass.until_ms)
    }

    /// Whether every replica knows of it, or of its end.
    pub fn bypass_is_shared(&self) -> bool {
        self.0.bypass.stored_version().is_some()
    }

    /// Whether full limits reject just now: as the policy says, unless they are bypassed.
    pub fn mode(&self) -> Mode {
        if self.bypass().is_some() { Mode::Observe } else { self.0.policy.load().mode() }
    }

    /// Switches the bypass on, or off. It is in force here at once, and at the others with their next heartbeat.
    ///
    /// # Errors
    /// The bypass could not be stored: this process alone knows of it, and stores it when the store is back.
    pub async fn set_bypass(&self, bypass: Option<Bypass>) -> Result<()> {
        {
            let mut versions = lock(&self.0.bypass.versions);
            versions.latest += 1;
            self.0.bypass.latest.store(bypass.map(Arc::new));
        }
        self.note_bypass();
        self.store_bypass().await
    }

    /// Tells the store the latest, one after another, so that an older one never overtakes it.
    async fn store_bypass(&self) -> Result<()> {
        let state = &self.0.bypass;
        let _turn = state.storing.lock().await;
        let (version, latest) = {
            let versions = lock(&state.versions);
            (versions.latest, state.latest.load_full())
        };
        self.0.store.set_bypass(latest.map(|bypass| (*bypass).clone())).await?;
        lock(&state.versions).stored = version;
        Ok(())
    }

    /// Adopts the stored bypass, after storing a newer local one. `stored_version` is [`BypassState::stored_version`] of before the read: a
    /// read that began before the last switch does not know it, and is skipped.
    pub(super) async fn apply_stored_bypass(&self, stored: Option<Bypass>, stored_version: Option<u64>) {
        let state = &self.0.bypass;
        if state.stored_version().is_none() {
            if let Err(error) = self.store_bypass().await {
                debug!(%error, "failed to record the bypass");
            }
        } else {
            let versions = lock(&state.versions);
            if stored_version == Some(versions.latest) {
                state.latest.store(stored.map(Arc::new));
            }
        }
        self.note_bypass();
    }

    /// Shows its beginning and its end, however it came.
    pub(super) fn note_bypass(&self) {
        let now = self.bypass();
        self.0.metrics.bypass_active(now.is_some());
        match (self.0.bypass.was_on.swap(now.is_some(), Ordering::Relaxed), now) {
            (false, Some(bypass)) => {
                let until = crate::clock::rfc3339(bypass.until_ms);
                warn!(by = bypass.who, reason = bypass.reason, until, "bypass started: full limits reject nothing");
            }
            (true, None) => info!("bypass ended: full limits reject again"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use arc_swap::ArcSwap;

    use super::super::{AdmissionSettings, model};
    use super::*;
    use crate::clock::Clock;
    use crate::metrics::Metrics;
    use crate::policy::decision::GateMode;
    use crate::store::sqlite::SqliteStore;
    use crate::store::{Migrate, OwnershipMode, Replica};

    async fn capacity() -> AdmissionController {
        let folder = std::env::temp_dir().join(format!("ringfence-bypass-{}", crate::ids::CallId::new()));
        std::fs::create_dir_all(&folder).unwrap();
        let store =
            SqliteStore::open(&folder.join("ringfence.db"), Migrate::Run, OwnershipMode::Exclusive).await.unwrap();
        AdmissionController::new(
            Arc::new(store),
            None,
            AdmissionSettings { home: GateMode::Memory, ..AdmissionSettings::default() },
            Arc::new(ArcSwap::new(model::policy(1))),
            Clock::system(),
            Metrics::new().unwrap(),
            Replica::new(),
        )
    }

    fn an_hour() -> Bypass {
        let since_ms = Clock::system().now_ms();
        Bypass { since_ms, until_ms: since_ms + 3_600_000, who: "ops".to_owned(), reason: "test".to_owned() }
    }

    #[tokio::test]
    async fn a_read_that_began_before_a_switch_does_not_undo_it() {
        let capacity = capacity().await;
        let read = async || (capacity.0.bypass.stored_version(), capacity.0.store.bypass().await.unwrap());
        let (stored_version, stored) = read().await;
        capacity.set_bypass(Some(an_hour())).await.unwrap();
        capacity.apply_stored_bypass(stored, stored_version).await;
        assert!(capacity.bypass().is_some(), "switched on");

        let (stored_version, stored) = read().await;
        capacity.set_bypass(None).await.unwrap();
        capacity.apply_stored_bypass(stored, stored_version).await;
        assert!(capacity.bypass().is_none(), "switched off");

        // What another replica has written counts.
        capacity.0.store.set_bypass(Some(an_hour())).await.unwrap();
        let (stored_version, stored) = read().await;
        capacity.apply_stored_bypass(stored, stored_version).await;
        assert!(capacity.bypass().is_some());
    }

    #[tokio::test]
    async fn a_read_between_a_switch_and_its_record_does_not_undo_it() {
        let capacity = capacity().await;
        {
            // Switched, and the store does not know it yet.
            let mut versions = lock(&capacity.0.bypass.versions);
            versions.latest += 1;
            capacity.0.bypass.latest.store(Some(Arc::new(an_hour())));
        }
        let stored_version = capacity.0.bypass.stored_version();
        let stored = capacity.0.store.bypass().await.unwrap();
        assert!(!capacity.bypass_is_shared() && stored.is_none());
        capacity.store_bypass().await.unwrap();
        capacity.apply_stored_bypass(stored, stored_version).await;
        assert!(capacity.bypass().is_some());
        // And what the store does not know, the heartbeat tells.
        lock(&capacity.0.bypass.versions).latest += 1;
        capacity.heartbeat().await.unwrap();
        assert!(capacity.bypass_is_shared() && capacity.bypass().is_some());
    }
}
