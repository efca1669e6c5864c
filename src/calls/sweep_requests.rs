//! Accounts to be swept without delay, such as when a provider's limit is full and ours is not.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::ids::AccountName;
use crate::sync::lock;

/// Requests for an early sweep of an account. Cloning is cheap.
#[derive(Debug, Clone, Default)]
pub struct SweepRequests {
    accounts: Arc<Mutex<BTreeSet<AccountName>>>,
    notify: Arc<Notify>,
}

impl SweepRequests {
    fn accounts(&self) -> MutexGuard<'_, BTreeSet<AccountName>> {
        lock(&self.accounts)
    }

    /// Requests a sweep of this account.
    pub fn request(&self, account: &AccountName) {
        self.accounts().insert(account.clone());
        self.notify.notify_waiters();
    }

    /// Whether a sweep of this account was requested. Clears the request.
    pub fn take(&self, account: &AccountName) -> bool {
        self.accounts().remove(account)
    }

    /// Completes at the next request, from the moment that it is enabled.
    pub fn requested(&self) -> Notified<'_> {
        self.notify.notified()
    }
}
