//! Live calls that open batches made. They take no slot of their own: the batch holds their slots.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::ids::{AccountName, Alias, CallId};
use crate::sync::lock;

/// By the account that lists them, then by their id at it.
type Members = BTreeMap<AccountName, HashMap<String, Member>>;

struct Member {
    /// The batch's call record.
    batch: CallId,
    /// The call's other ids. Its carrier knows it by one of them.
    also: Vec<Alias>,
    /// Whether the last list lacked it.
    is_missing: bool,
}

/// Live calls that open batches made, by batch. Cloning is cheap.
#[derive(Clone, Default)]
pub struct BatchMembers(Arc<Mutex<Members>>);

impl BatchMembers {
    fn lock(&self) -> MutexGuard<'_, Members> {
        lock(&self.0)
    }

    /// Records that a live call, known to an account by this id, belongs to an open batch.
    pub fn note(&self, account: &AccountName, id: &str, batch: &CallId, also: Vec<Alias>) {
        let mut members = self.lock();
        let member = Member { batch: batch.clone(), also, is_missing: false };
        members.entry(account.clone()).or_default().insert(id.to_owned(), member);
    }

    /// Whether a live call belongs to an open batch, by an id at any account.
    pub fn contains(&self, account: &AccountName, alias: &Alias) -> bool {
        let members = self.lock();
        let here = members.get(account).is_some_and(|m| m.contains_key(&alias.id));
        here || members.values().flat_map(HashMap::values).any(|m| m.also.contains(alias))
    }

    /// Removes an account's members whose batch has ended; they count as untracked again.
    pub fn retain_of(&self, account: &AccountName, is_open: impl Fn(&CallId) -> bool) {
        let mut members = self.lock();
        if let Some(here) = members.get_mut(account) {
            here.retain(|_, member| is_open(&member.batch));
        }
    }

    /// Removes an account's members that have ended: those that two of its lists in turn lack, since one may be cut short.
    pub fn retain_listed(&self, account: &AccountName, is_listed: impl Fn(&str) -> bool) {
        let mut members = self.lock();
        if let Some(here) = members.get_mut(account) {
            here.retain(|id, member| {
                let was_missing = std::mem::replace(&mut member.is_missing, !is_listed(id));
                !(was_missing && member.is_missing)
            });
        }
    }

    /// Whether the last list of an account lacked one of its members.
    pub fn is_any_missing(&self, account: &AccountName) -> bool {
        self.lock().get(account).is_some_and(|here| here.values().any(|member| member.is_missing))
    }

    /// The number of live calls of open batches that an account lists: of one batch, or of all.
    pub fn count(&self, account: &AccountName, batch: Option<&CallId>) -> usize {
        let members = self.lock();
        let here = members.get(account).into_iter().flat_map(HashMap::values);
        here.filter(|member| batch.is_none_or(|batch| member.batch == *batch)).count()
    }
}
