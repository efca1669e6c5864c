//! Requests that belong to an open call and use its slot: a conversation for a call that its carrier brought, or the retry of a
//! batch.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard};

use super::request::CreateRequest;
use crate::calls::context::Context;
use crate::ids::CallId;
use crate::store::CallRecord;
use crate::sync::lock;

/// Open calls that a request is joining. Cloning is cheap.
#[derive(Debug, Clone, Default)]
pub(in crate::calls) struct Joins(Arc<Mutex<HashSet<CallId>>>);

/// A call that one request is joining. Until this is dropped no other request may join it, and a batch is not ended.
#[derive(Debug)]
pub(super) struct Joining {
    record: CallRecord,
    joins: Joins,
}

impl Joining {
    /// The call.
    pub(super) fn record(&self) -> &CallRecord {
        &self.record
    }
}

impl Drop for Joining {
    fn drop(&mut self) {
        self.joins.lock().remove(&self.record.id);
    }
}

impl Joins {
    fn lock(&self) -> MutexGuard<'_, HashSet<CallId>> {
        lock(&self.0)
    }

    /// Whether a request is joining this open call: the call must not be ended meanwhile.
    pub(in crate::calls) fn contains(&self, call: &CallId) -> bool {
        self.lock().contains(call)
    }

    /// Joins this call, unless another request is joining it.
    pub(super) fn join(&self, record: CallRecord) -> Option<Joining> {
        let is_new = self.lock().insert(record.id.clone());
        is_new.then(|| Joining { record, joins: self.clone() })
    }

    /// Joins the one open call of the same business and numbers that lacks the ids which the response will bring; else the one
    /// that its carrier brought, whatever it was connected to before.
    pub(super) async fn join_open(&self, context: &Context, request: &CreateRequest) -> Option<Joining> {
        let open = context.lifecycle.store.open_calls().await.ok()?;
        let kind = request.account.provider.lookup.as_ref().map(|lookup| lookup.needs.as_str())?;
        let attributes = &request.attributes;
        let fitting = open.into_iter().filter(|call| {
            call.attributes.business == attributes.business
                && call.attributes.direction == attributes.direction
                && call.attributes.own_number == attributes.own_number
                && call.attributes.other_number == attributes.other_number
                && !call.over_limit
                && call.counts()
        });
        let (with, without): (Vec<_>, Vec<_>) = fitting.partition(|call| call.alias(kind).is_some());
        // A call that its carrier brought, and that is connected to one conversation after the other, is one call.
        let again = with.into_iter().filter(|call| context.holder_of(call).is_some());
        let mut fitting: Vec<_> = if without.is_empty() { again.collect() } else { without };
        let mut joining = self.lock();
        fitting.retain(|call| !joining.contains(&call.id));
        let [_] = &fitting[..] else { return None };
        let record = fitting.pop()?;
        joining.insert(record.id.clone());
        drop(joining);
        Some(Joining { record, joins: self.clone() })
    }
}
