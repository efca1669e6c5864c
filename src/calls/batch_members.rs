//! Live calls that open batches made. They take no slot of their own: the batch holds their slots.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ids::{AccountName, Alias, CallId};

/// By the account that lists them, by their id there.
type Members = BTreeMap<AccountName, HashMap<String, Member>>;

struct Member {
    /// The batch's record.
    batch: CallId,
    /// Its other ids; by its carrier's it is known there.
    also: Vec<Alias>,
}

/// See the module. Cloning is cheap.
#[derive(Clone, Default)]
pub struct BatchMembers(Arc<Mutex<Members>>);

impl BatchMembers {
    fn lock(&self) -> MutexGuard<'_, Members> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a live call, known at an account by this id, is one of an open batch.
    pub fn note(&self, account: &AccountName, id: &str, batch: &CallId, also: Vec<Alias>) {
        let mut members = self.lock();
        members.entry(account.clone()).or_default().insert(id.to_owned(), Member { batch: batch.clone(), also });
    }

    /// Whether a live call is one of an open batch, by any account's id.
    pub fn contains(&self, account: &AccountName, alias: &Alias) -> bool {
        let members = self.lock();
        let here = members.get(account).is_some_and(|m| m.contains_key(&alias.id));
        here || members.values().flat_map(HashMap::values).any(|m| m.also.contains(alias))
    }

    /// Forgets members of an account that are over, and those whose batch is: they are untracked again.
    pub fn retain(&self, account: &AccountName, keep: impl Fn(&str, &CallId) -> bool) {
        let mut members = self.lock();
        if let Some(here) = members.get_mut(account) {
            here.retain(|id, member| keep(id, &member.batch));
        }
    }

    /// How many live calls of open batches an account lists: of one batch, or of all.
    pub fn count(&self, account: &AccountName, batch: Option<&CallId>) -> usize {
        let members = self.lock();
        let here = members.get(account).into_iter().flat_map(HashMap::values);
        here.filter(|member| batch.is_none_or(|batch| member.batch == *batch)).count()
    }
}
