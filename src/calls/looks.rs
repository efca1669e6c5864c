//! Accounts whose live calls somebody wants compared with ours at once: a provider said that its limit is met where ours is not.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::ids::AccountName;

/// See the module. Cloning is cheap.
#[derive(Debug, Clone, Default)]
pub struct Looks {
    wanted: Arc<Mutex<BTreeSet<AccountName>>>,
    asked: Arc<Notify>,
}

impl Looks {
    fn wanted(&self) -> MutexGuard<'_, BTreeSet<AccountName>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody wants this account looked at.
    pub fn want(&self, account: &AccountName) {
        self.wanted().insert(account.clone());
        self.asked.notify_waiters();
    }

    /// Whether somebody does; from then on it is taken care of.
    pub fn take(&self, account: &AccountName) -> bool {
        self.wanted().remove(account)
    }

    /// Done when somebody wants an account looked at, from the moment that it is enabled.
    pub fn asked(&self) -> Notified<'_> {
        self.asked.notified()
    }
}
