//! The bypass: while it lasts limits refuse nothing, at every replica that shares the record. Everything is counted and recorded as
//! in observe mode. It ends at its time, whoever is up then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwapOption;
use tracing::{info, warn};

use super::Capacity;
use crate::policy::Mode;
use crate::store::{Bypass, Result};

/// What this process knows of it.
#[derive(Debug, Default)]
pub(super) struct BypassState {
    latest: ArcSwapOption<Bypass>,
    /// The store could not be told of the latest yet, so the other replicas do not know it.
    is_unshared: AtomicBool,
    /// It was in force when the supervisor last looked.
    was_on: AtomicBool,
}

impl Capacity {
    /// The bypass, while it is in force.
    pub fn bypass(&self) -> Option<Arc<Bypass>> {
        let now_ms = self.0.clock.now_ms();
        self.0.bypass.latest.load_full().filter(|bypass| now_ms < bypass.until_ms)
    }

    /// Whether every replica knows of it, or of its end.
    pub fn bypass_is_shared(&self) -> bool {
        !self.0.bypass.is_unshared.load(Ordering::Relaxed)
    }

    /// Whether full limits refuse just now: as the policy says, unless they are bypassed.
    pub fn mode(&self) -> Mode {
        if self.bypass().is_some() { Mode::Observe } else { self.0.policy.load().mode() }
    }

    /// Switches the bypass on, or off. It is in force here at once, and at the others with their next heartbeat.
    ///
    /// # Errors
    /// The store could not be told: this process alone knows of it, and tells the store when it is back.
    pub async fn set_bypass(&self, bypass: Option<Bypass>) -> Result<()> {
        let state = &self.0.bypass;
        state.is_unshared.store(true, Ordering::Relaxed);
        state.latest.store(bypass.clone().map(Arc::new));
        self.note_bypass();
        self.0.store.set_bypass(bypass).await?;
        state.is_unshared.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Takes up what the store says; first tells it what it does not know yet.
    pub(super) async fn apply_stored_bypass(&self, stored: Option<Bypass>) {
        let state = &self.0.bypass;
        if state.is_unshared.load(Ordering::Relaxed) {
            let latest = state.latest.load_full().map(|bypass| (*bypass).clone());
            if self.0.store.set_bypass(latest).await.is_ok() {
                state.is_unshared.store(false, Ordering::Relaxed);
            }
        } else {
            state.latest.store(stored.map(Arc::new));
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
                warn!(by = bypass.who, reason = bypass.reason, until, "bypass on: limits refuse nothing");
            }
            (true, None) => info!("bypass over: limits refuse again as the policy says"),
            _ => {}
        }
    }
}
