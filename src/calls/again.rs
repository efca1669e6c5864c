//! An order that is sent again: the answer of the first, once that is settled.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode};
use serde_json::Value;
use tokio::time::Instant;
use tracing::{info, warn};

use super::place::CreateOrder;
use super::refuse::hung_up;
use super::repost::{Client, DUPLICATE_HEADER, Known, OrderRef, Standing, standing};
use super::{Calls, of_record};
use crate::call::Outcome as End;
use crate::ids::{Alias, CallId};
use crate::provider::render::fill_json;
use crate::reply::{Code, Manner, Refusal, json_answer, refusal};
use crate::store::{CallRecord, Change, StoreError};

/// An order that was sent before.
pub(super) struct Earlier {
    /// Its call, where its key named it.
    pub(super) call: Option<CallId>,
    /// The order itself, while its answer is not delivered.
    pub(super) order: Option<OrderRef>,
}

impl Calls {
    /// The order that has this key already. An error: it was another order.
    pub(super) async fn by_key(
        &self,
        order: &CreateOrder,
        client: &Client,
        key: &Alias,
    ) -> Result<Option<Earlier>, Refusal> {
        let away = |error: StoreError| {
            warn!(%error, "an idempotency key cannot be looked up");
            Refusal::new(Code::StoreUnavailable, "The record could not be read, so nothing was dialled.")
        };
        let store = &self.lifecycle.store;
        let Some(call) = store.resolve(std::slice::from_ref(key)).await.map_err(away)? else { return Ok(None) };
        let Some(record) = store.call(&call).await.map_err(away)? else { return Ok(None) };
        if record.outcome == Some(End::NotCreated) {
            return Ok(None);
        }
        if record.fingerprint.as_deref() != Some(order.fingerprint().as_str()) {
            let message = "Not dialled: this Idempotency-Key was used for another order. Use a new key for a new call.";
            return Err(Refusal::new(Code::KeyReused, message));
        }
        let order = self.reposts.of_call(client, &call);
        Ok(Some(Earlier { call: Some(call), order }))
    }

    /// Waits for the settlement of an earlier order, and gives its answer. `None`: it made no call, or its call is over; the
    /// order is a new one.
    pub(super) async fn join_earlier(
        &self,
        order: &CreateOrder,
        earlier: &Earlier,
        client: &Client,
        until: Instant,
    ) -> Option<Response<Bytes>> {
        let mut pause = Duration::from_millis(20);
        let mut its_call = earlier.call.clone();
        loop {
            let looked = earlier.order.as_ref().and_then(OrderRef::look);
            let (call, known) = match looked {
                Some((call, known)) => {
                    its_call = call.clone();
                    (call, known)
                }
                // It made no call; or another client, who sent it again too, has its answer by now: the record tells.
                None => (Some(its_call.clone()?), Known::Unknown),
            };
            if let Some(call) = &call
                && !matches!(known, Known::UnderWay)
                && let Ok(Some(record)) = self.lifecycle.newest_record(call).await
            {
                let (keyed, no_call) = (earlier.call.is_some(), record.outcome == Some(End::NotCreated));
                match (standing(&record, self.lifecycle.clock.now_ms()), known) {
                    // A key names its order for as long as that is on record.
                    (Standing::Over, known) if keyed && !no_call => {
                        return Some(self.answer_again(order, &record, known));
                    }
                    (Standing::Over, _) => {
                        if let Some(one) = &earlier.order {
                            one.not_created();
                        }
                        return None;
                    }
                    (Standing::Called, known) | (_, known @ Known::Created(_)) => {
                        return Some(self.answer_again(order, &record, known));
                    }
                    (Standing::Unknown, _) => {}
                }
            }
            if client.has_left() {
                // Nobody is to be told, and the order's body would be kept all the while.
                let shape = &order.account.provider.refusal;
                return Some(refusal(&hung_up(), Manner { shape, retry_after_max_secs: None }));
            }
            if Instant::now() >= until {
                if let Some(one) = &earlier.order {
                    one.told_unknown();
                }
                if let (Some(call), Some(me)) = (&call, self.replica()) {
                    let change = Change { untold_by: Some(me), ..self.lifecycle.change(call, "order") };
                    self.lifecycle.apply_surely(change).await;
                }
                let why = "an equal order was sent before, and its outcome is still unknown";
                let call = call.unwrap_or_else(CallId::new);
                let mut response = self.unknown_answer(&order.account, order.sdk_sleeps, &call, why);
                name_duplicate(&mut response, &call);
                return Some(response);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    /// The answer of an earlier order: the provider's own where it is kept, else one made from the record.
    pub(super) fn answer_again(&self, order: &CreateOrder, record: &CallRecord, known: Known) -> Response<Bytes> {
        let kept = match known {
            Known::Created(kept) => kept.map(|kept| kept.answer.clone()),
            Known::UnderWay | Known::Unknown => None,
        };
        let mut response = kept.or_else(|| made_answer(order, record)).unwrap_or_else(|| {
            let message = format!(
                "This order was sent before and made a call [{}]; its answer is not kept. Nothing was dialled again.",
                record.id
            );
            let what = Refusal::new(Code::AlreadyPlaced, message);
            refusal(&what, Manner { shape: &order.account.provider.refusal, retry_after_max_secs: None })
        });
        name_duplicate(&mut response, &record.id);
        self.lifecycle.metrics.repost(order.account.name.as_str());
        info!(call = %record.id, business = %order.facts.business, "an order came again; it was not dialled again");
        response
    }
}

/// An answer made from the record, in the shape that the provider's own had. `None`: its description has no such shape.
fn made_answer(order: &CreateOrder, record: &CallRecord) -> Option<Response<Bytes>> {
    let shape = order.operation.answer.as_ref()?;
    let value = |name: &str| {
        let own = order.account.value(name).or_else(|| of_record(record, name));
        own.map_or(Value::Null, |text| Value::String(text.into_owned()))
    };
    Some(json_answer(StatusCode::from_u16(shape.status).ok()?, &fill_json(shape.body.as_ref()?, &value)))
}

fn name_duplicate(response: &mut Response<Bytes>, earlier: &CallId) {
    if let Ok(id) = HeaderValue::try_from(earlier.as_str()) {
        response.headers_mut().insert(DUPLICATE_HEADER, id);
    }
}
