//! Calls that are being hung up, so that no two hang-ups of one call overlap.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::ids::CallId;
use crate::sync::lock;

/// A failed hang-up is retried after this: longer than its checks take.
const HANG_UP_AGAIN: Duration = Duration::from_secs(10);

/// Hang-ups in progress, by call. Cloning is cheap.
#[derive(Debug, Clone, Default)]
pub(in crate::calls) struct RecentHangUps(Arc<Mutex<HashMap<CallId, Instant>>>);

impl RecentHangUps {
    /// Whether to start a hang-up of this call: none started a moment ago.
    pub(super) fn begin(&self, call: &CallId) -> bool {
        let mut begun = lock(&self.0);
        begun.retain(|_, at| at.elapsed() < HANG_UP_AGAIN);
        if begun.contains_key(call) {
            return false;
        }
        begun.insert(call.clone(), Instant::now());
        true
    }
}
