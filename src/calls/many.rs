//! Orders for many calls: batches, campaigns. One request makes calls that nobody sees one by one, so it holds as many slots
//! as it may have calls at once, and the provider is told to keep to them.

use std::collections::{BTreeMap, HashMap};
use std::sync::PoisonError;

use tracing::warn;

use super::Calls;
use super::lookup::LookedUpGroup;
use super::place::CreateOrder;
use crate::admission::Slots;
use crate::call::Phase;
use crate::ids::{AccountName, Alias, CallId};
use crate::provider::description::Group;
use crate::provider::select::Message;
use crate::reply::{Code, Refusal};
use crate::store::CallRecord;

/// Live calls of orders for many: by the account that lists them, by their id there.
pub(super) type Members = BTreeMap<AccountName, HashMap<String, Member>>;

/// A live call that takes no slot of its own: the order that made it holds its place.
pub(super) struct Member {
    /// The order's record.
    order: CallId,
    /// Its other ids; by its carrier's it is known there.
    also: Vec<Alias>,
}

/// What an order asks the gate for.
pub(super) struct Ask {
    /// How many slots.
    pub slots: Slots,
    /// The ids that its record has from the start.
    pub aliases: Vec<Alias>,
}

/// What to do with an order.
pub(super) enum Many {
    /// Admit it.
    Admit(Ask),
    /// It belongs to this open order for many calls, which holds its slots already.
    Held(Box<CallRecord>),
}

impl Calls {
    /// The kind of order for many calls that a record is of; `None` for a single call.
    pub fn group_of(&self, record: &CallRecord) -> Option<&Group> {
        let provider = &self.accounts.get(&record.facts.account)?.provider;
        let by_id = provider.groups.iter().find(|g| record.alias(&g.needs).is_some());
        by_id.or_else(|| provider.group_of(&record.facts.operation))
    }

    /// How many slots an order needs: one for a call, what its body says for many, what the first time took for a repetition.
    pub(super) async fn how_many(&self, order: &CreateOrder) -> Result<Many, Refusal> {
        if let Some(id) = &order.again {
            return Box::pin(self.again(order, id)).await;
        }
        let Some(rule) = &order.operation.slots else {
            return Ok(Many::Admit(Ask { slots: Slots::ONE, aliases: vec![] }));
        };
        let none = BTreeMap::new();
        let message = Message { body: &order.body, query: &[], path: &none, headers: order.request.headers() };
        let Some(wanted) = rule.wanted(&message) else {
            let message = "Not dialled: the request does not say whom to call, or how many at once.";
            return Err(Refusal::new(Code::InvalidRequest, message));
        };
        let slots = if rule.cut.is_some() { Slots::up_to(wanted) } else { Slots::exactly(wanted) };
        Ok(Many::Admit(Ask { slots, aliases: vec![] }))
    }

    /// An order for many calls that is made once more. What its first request was told about calls at once stands, so it
    /// gets that many slots or none.
    async fn again(&self, order: &CreateOrder, id: &Alias) -> Result<Many, Refusal> {
        let away = |error: &dyn std::fmt::Display| {
            warn!(%error, "failed to read the record of a repeated batch");
            Refusal::new(Code::StoreUnavailable, "The database could not be read, so nothing was dialled.")
        };
        let store = &self.lifecycle.store;
        let known = store.resolve(std::slice::from_ref(id)).await.map_err(|e| away(&e))?;
        if let Some(call) = known
            && let Some(record) = store.call(&call).await.map_err(|e| away(&e))?
        {
            if record.phase != Phase::Ended {
                return Ok(Many::Held(Box::new(record)));
            }
            // The second record of the same order: its ids go over to it.
            let first = Alias { kind: crate::provider::description::OWN_ID_KIND.to_owned(), id: record.id.to_string() };
            return Ok(Many::Admit(Ask { slots: Slots::exactly(record.slots), aliases: vec![first] }));
        }
        let unknown = |why: String| {
            let message = format!("Not dialled: it is not known how many calls at once this makes: {why}.");
            Refusal::new(Code::InitiationFailed, message)
        };
        let group = order.account.provider.groups.iter().find(|g| g.needs == id.kind);
        let group = group.ok_or_else(|| unknown("its provider has no look-up for it".to_owned()))?;
        match self.look_up_group(&order.account, group, id).await {
            Ok(LookedUpGroup::Found { slots: Some(n), .. }) => {
                Ok(Many::Admit(Ask { slots: Slots::exactly(n), aliases: vec![id.clone()] }))
            }
            Ok(LookedUpGroup::Found { slots: None, .. }) => Err(unknown("its record does not say so".to_owned())),
            Ok(LookedUpGroup::Absent) => Err(unknown(format!("{} has no record of it", order.account.provider.name))),
            Err(error) => Err(unknown(error.to_string())),
        }
    }

    /// Whether a request is joining this open call just now: it must not be ended meanwhile.
    pub fn is_joined(&self, call: &CallId) -> bool {
        self.joining.lock().unwrap_or_else(PoisonError::into_inner).contains(call)
    }

    // === members ===

    /// Notes that a live call, known at an account by this id, is one of an open order for many.
    pub fn note_member(&self, account: &AccountName, id: &str, order: &CallId, also: Vec<Alias>) {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.entry(account.clone()).or_default().insert(id.to_owned(), Member { order: order.clone(), also });
    }

    /// Whether a live call is one of an open order for many, by any account's id.
    pub fn is_member(&self, account: &AccountName, alias: &Alias) -> bool {
        let members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        let here = members.get(account).is_some_and(|m| m.contains_key(&alias.id));
        here || members.values().flat_map(HashMap::values).any(|m| m.also.contains(alias))
    }

    /// Forgets members of an account that are over, and those whose order is: they are met as strangers again.
    pub fn keep_members(&self, account: &AccountName, keep: impl Fn(&str, &CallId) -> bool) {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(here) = members.get_mut(account) {
            here.retain(|id, member| keep(id, &member.order));
        }
    }

    /// How many live calls of open orders an account lists: of one order, or of all.
    pub fn members_of(&self, account: &AccountName, order: Option<&CallId>) -> usize {
        let members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        let here = members.get(account).into_iter().flat_map(HashMap::values);
        here.filter(|member| order.is_none_or(|order| member.order == *order)).count()
    }
}
