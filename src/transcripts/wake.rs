//! Wakes a connection that has news to send.

use std::collections::HashSet;
use std::sync::Mutex;

use tokio::sync::Notify;

use crate::ids::CallId;
use crate::sync::lock;

/// Wakes a connection and holds the calls with news for it, at most as many as it follows.
#[derive(Default)]
pub(super) struct Wake {
    due: Mutex<HashSet<CallId>>,
    /// New calls of the businesses that it follows.
    announced: Mutex<HashSet<CallId>>,
    notified: Notify,
}

impl Wake {
    /// Wakes the connection: this call has news.
    pub(super) fn wake(&self, call: &CallId) {
        lock(&self.due).insert(call.clone());
        self.notified.notify_one();
    }

    /// Wakes the connection: this call is a new one of a business that it follows.
    pub(super) fn announce(&self, call: &CallId) {
        lock(&self.announced).insert(call.clone());
        self.notified.notify_one();
    }

    /// Wakes the connection: something that it follows has news.
    pub(super) fn notify(&self) {
        self.notified.notify_one();
    }

    /// Waits until something has news. Cancel-safe.
    pub(super) async fn notified(&self) {
        self.notified.notified().await;
    }

    /// Takes the calls with news.
    pub(super) fn take_due(&self) -> HashSet<CallId> {
        std::mem::take(&mut *lock(&self.due))
    }

    /// Takes the new calls of followed businesses.
    pub(super) fn take_announced(&self) -> HashSet<CallId> {
        std::mem::take(&mut *lock(&self.announced))
    }
}
