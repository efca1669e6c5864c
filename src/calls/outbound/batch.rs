//! Batches and campaigns: one request makes many calls that ringfence cannot see one by one. It holds as many slots as it may
//! have concurrent calls, and tells the provider to stay within them.

use tracing::warn;

use super::not_sent::NotSent;
use super::request::CreateRequest;
use crate::call::Phase;
use crate::calls::context::Context;
use crate::calls::lifecycle::own_id;
use crate::calls::provider_client::ProviderClient;
use crate::calls::provider_client::lookup::LookedUpBatch;
use crate::ids::Alias;
use crate::policy::decision::Slots;
use crate::reply::{Rejection, RejectionCode};
use crate::store::CallRecord;

/// The slots that a request asks for.
pub(super) struct SlotRequest {
    /// The number of slots.
    pub(super) slots: Slots,
    /// The ids that its record has from the start.
    pub(super) aliases: Vec<Alias>,
}

impl SlotRequest {
    fn new(slots: Slots) -> Self {
        Self { slots, aliases: vec![] }
    }
}

/// The source of the slots of a request.
pub(super) enum Sizing {
    /// Slots of its own.
    Admit(SlotRequest),
    /// No slots: it belongs to this open batch, which holds them.
    Held(Box<CallRecord>),
}

/// The number of slots that a request needs: one for a call, the number in its body for a batch, the earlier number for a retried
/// batch.
///
/// # Errors
/// The number is unknown. In observe mode the request counts as one call until its calls are seen.
pub(super) async fn size(
    context: &Context,
    provider: &ProviderClient,
    request: &CreateRequest,
) -> Result<Sizing, NotSent> {
    match requested(context, provider, request).await {
        Err(NotSent::Rejected(rejection)) if context.observes() => {
            let _ = request.would_reject.set(rejection);
            Ok(Sizing::Admit(SlotRequest::new(Slots::ONE)))
        }
        sizing => sizing,
    }
}

async fn requested(context: &Context, provider: &ProviderClient, request: &CreateRequest) -> Result<Sizing, NotSent> {
    if let Some(id) = &request.batch {
        return Box::pin(retried(context, provider, request, id)).await;
    }
    let Some(rule) = &request.operation.slots else { return Ok(Sizing::Admit(SlotRequest::new(Slots::ONE))) };
    let Some(wanted) = rule.wanted(&request.message()) else {
        let message = "Not dialled: the request names no recipients, or no concurrency.";
        return Err(Rejection::new(RejectionCode::InvalidRequest, message).into());
    };
    let slots = if rule.cut.is_some() { Slots::up_to(wanted) } else { Slots::exactly(wanted) };
    Ok(Sizing::Admit(SlotRequest::new(slots)))
}

/// The slots of a retried batch. The provider still has the concurrency of its first request, so it gets that many slots or none.
async fn retried(
    context: &Context,
    provider: &ProviderClient,
    request: &CreateRequest,
    id: &Alias,
) -> Result<Sizing, NotSent> {
    let unavailable = |error: &dyn std::fmt::Display| {
        warn!(%error, "failed to read the record of a batch that is retried");
        NotSent::store_unreadable()
    };
    let store = &context.lifecycle.store;
    let known = store.resolve(std::slice::from_ref(id)).await.map_err(|e| unavailable(&e))?;
    if let Some(call) = known
        && let Some(record) = store.call(&call).await.map_err(|e| unavailable(&e))?
    {
        if record.phase != Phase::Ended {
            return Ok(Sizing::Held(Box::new(record)));
        }
        // This is the second record of the same batch: the ids move to it.
        let first = own_id(&record.id);
        return Ok(Sizing::Admit(SlotRequest { slots: Slots::exactly(record.slots), aliases: vec![first] }));
    }
    let unknown = |why: String| {
        let message = format!("Not dialled: the concurrency of the batch is unknown: {why}.");
        Rejection::new(RejectionCode::BatchSizeUnknown, message)
    };
    let group = request.account.provider.groups.iter().find(|g| g.needs == id.kind);
    let group = group.ok_or_else(|| unknown("its provider has no look-up for it".to_owned()))?;
    match provider.look_up_batch(&request.account, group, id).await {
        Ok(LookedUpBatch::Found { slots: Some(n), .. }) => {
            Ok(Sizing::Admit(SlotRequest { slots: Slots::exactly(n), aliases: vec![id.clone()] }))
        }
        Ok(LookedUpBatch::Found { slots: None, .. }) => Err(unknown("it is missing in its record".to_owned()).into()),
        Ok(LookedUpBatch::Absent) => {
            Err(unknown(format!("{} has no record of it", request.account.provider.name)).into())
        }
        Err(error) => Err(unknown(error.to_string()).into()),
    }
}
