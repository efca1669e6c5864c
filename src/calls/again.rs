//! An order that is sent again: the answer of the first, once that is settled.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use serde_json::Value;
use tokio::time::Instant;
use tracing::{info, warn};

use super::place::CreateOrder;
use super::refuse::hung_up;
use super::repost::{ANSWER_BYTES_MAX, Client, DUPLICATE_HEADER, Known, OrderRef, Standing, size, standing};
use super::{Calls, of_record};
use crate::call::Outcome as End;
use crate::ids::{Alias, CallId};
use crate::policy::Privacy;
use crate::provider::render::fill_json;
use crate::reply::{Code, Manner, Refusal, json_answer, refusal};
use crate::store::{CallRecord, Change, CreateAnswer, StoreError};

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
            warn!(%error, "failed to look up an idempotency key");
            Refusal::new(Code::StoreUnavailable, "The database could not be read, so nothing was dialled.")
        };
        let store = &self.lifecycle.store;
        let Some(call) = store.resolve(std::slice::from_ref(key)).await.map_err(away)? else { return Ok(None) };
        let Some(record) = store.call(&call).await.map_err(away)? else { return Ok(None) };
        if record.outcome == Some(End::NotCreated) {
            return Ok(None);
        }
        if record.fingerprint.as_deref() != Some(order.fingerprint().as_str()) {
            let message =
                "Not dialled: this Idempotency-Key was used for another request. Use a new key for a new call.";
            return Err(Refusal::new(Code::KeyReused, message));
        }
        let order = self.reposts.of_call(client, &call);
        Ok(Some(Earlier { call: Some(call), order }))
    }

    /// RetryAfterEstimator for the settlement of an earlier order, and gives its answer. `None`: it made no call, or its call is over; the
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
                        return Some(self.answer_again(order, call, &record, known).boxed().await);
                    }
                    (Standing::Over, _) => {
                        if let Some(one) = &earlier.order {
                            one.not_created();
                        }
                        return None;
                    }
                    (Standing::Called, known) | (_, known @ Known::Created(_)) => {
                        return Some(self.answer_again(order, call, &record, known).boxed().await);
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
                    one.mark_reported_unknown();
                }
                if let (Some(call), Some(me)) = (&call, self.replica()) {
                    let change = Change { untold_by: Some(me), ..self.lifecycle.change(call, "order") };
                    self.lifecycle.apply_with_retry(change).await;
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

    /// The answer of an earlier order, which made this call: the provider's own where it is kept, in memory or in the record, else
    /// one made of what the record knows.
    async fn answer_again(
        &self,
        order: &CreateOrder,
        call: &CallId,
        record: &CallRecord,
        known: Known,
    ) -> Response<Bytes> {
        let kept = match known {
            Known::Created(Some(kept)) => Some(kept.answer.clone()),
            Known::Created(None) | Known::UnderWay | Known::Unknown => self.first_answer(order, call).boxed().await,
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
        info!(call = %record.id, business = %order.facts.business, "duplicate create request; not dialled again");
        response
    }
}

impl Calls {
    async fn first_answer(&self, order: &CreateOrder, call: &CallId) -> Option<Response<Bytes>> {
        match self.lifecycle.store.create_answer(call, order.fingerprint().as_str()).await {
            Ok(kept) => kept.and_then(restored),
            Err(error) => {
                warn!(%call, %error, "failed to read the answer to a create");
                None
            }
        }
    }

    /// A provider's answer as it goes on record; `None` where its business has less kept of its calls, or if it is too long.
    pub(super) fn recorded(&self, order: &CreateOrder, answer: &Response<Bytes>) -> Option<CreateAnswer> {
        let is_kept = self.policy.privacies().of(&order.facts.business) == Privacy::Keep;
        if !is_kept || size(answer) > ANSWER_BYTES_MAX {
            return None;
        }
        let value = |value: &HeaderValue| value.as_bytes().iter().map(|byte| char::from(*byte)).collect();
        Some(CreateAnswer {
            fingerprint: order.fingerprint().as_str().to_owned(),
            status: answer.status().as_u16(),
            headers: answer.headers().iter().map(|(name, v)| (name.as_str().to_owned(), value(v))).collect(),
            body: answer.body().to_vec(),
        })
    }
}

/// An answer as it went on record.
fn restored(kept: CreateAnswer) -> Option<Response<Bytes>> {
    let mut answer = Response::new(Bytes::from(kept.body));
    *answer.status_mut() = StatusCode::from_u16(kept.status).ok()?;
    for (name, value) in &kept.headers {
        let bytes: Vec<u8> = value.chars().map(|c| u8::try_from(c).unwrap_or(b'?')).collect();
        answer.headers_mut().append(HeaderName::try_from(name).ok()?, HeaderValue::from_bytes(&bytes).ok()?);
    }
    Some(answer)
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
