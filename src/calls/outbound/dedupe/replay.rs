//! The response to a duplicate: that of the first request, once it is settled.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use serde_json::Value;
use tokio::time::Instant;
use tracing::{info, warn};

use super::in_flight::{ANSWER_BYTES_MAX, ClientState, InFlightRef, Progress, size};
use super::state::{IdempotencyState, state};
use crate::call::{Outcome, Source};
use crate::calls::context::Context;
use crate::calls::outbound::request::CreateRequest;
use crate::calls::provider_client::of_record;
use crate::calls::rejection::RequestKind;
use crate::calls::rejection::{Rejections, client_disconnected};
use crate::ids::CallId;
use crate::policy::Privacy;
use crate::provider::render::fill_json;
use crate::reply::{Rejection, RejectionCode, json_answer};
use crate::store::{CallRecord, Change, CreateAnswer};

/// Response header: the earlier request's call.
const DUPLICATE_HEADER: &str = "x-ringfence-duplicate-of";

/// The earlier request of a duplicate.
pub(super) struct Duplicate {
    /// The earlier request's call, where the idempotency key identified it.
    pub(super) call: Option<CallId>,
    /// The tracked request, while its response is not delivered.
    pub(super) request: Option<InFlightRef>,
}

/// The outcome of a replay.
pub(super) enum Replayed {
    /// The response to the first request.
    Answer(Response<Bytes>),
    /// The first made no call, or its call has ended: the duplicate is a new request.
    NoCall,
}

/// Answers a duplicate request with the first one's response.
pub(super) struct Replay {
    context: Arc<Context>,
    rejections: Arc<Rejections>,
}

impl Replay {
    pub(super) fn new(context: Arc<Context>, rejections: Arc<Rejections>) -> Self {
        Self { context, rejections }
    }

    /// Waits until the earlier request is settled, until `until` at most, and returns its response.
    ///
    /// # Errors
    /// The client disconnected.
    pub(super) async fn answer(
        &self,
        request: &CreateRequest,
        duplicate: &Duplicate,
        client: &ClientState,
        until: Instant,
    ) -> Result<Replayed, Rejection> {
        let lifecycle = &self.context.lifecycle;
        let mut pause = Duration::from_millis(20);
        let mut its_call = duplicate.call.clone();
        loop {
            let looked = duplicate.request.as_ref().and_then(InFlightRef::look);
            let (call, progress) = match looked {
                Some((call, progress)) => {
                    its_call = call.clone();
                    (call, progress)
                }
                // It made no call, or another duplicate has received its response: the store has the answer.
                None => match &its_call {
                    Some(call) => (Some(call.clone()), Progress::Unknown),
                    None => return Ok(Replayed::NoCall),
                },
            };
            if let Some(call) = &call
                && !matches!(progress, Progress::UnderWay)
                && let Ok(Some(record)) = lifecycle.newest_record(call).await
            {
                let (keyed, no_call) = (duplicate.call.is_some(), record.outcome == Some(Outcome::NotCreated));
                match (state(&record, lifecycle.clock.now_ms()), progress) {
                    // An idempotency key identifies its request as long as its record exists.
                    (IdempotencyState::Over, progress) if keyed && !no_call => {
                        return Ok(Replayed::Answer(self.of_call(request, call, &record, progress).boxed().await));
                    }
                    (IdempotencyState::Over, _) => {
                        if let Some(one) = &duplicate.request {
                            one.not_created();
                        }
                        return Ok(Replayed::NoCall);
                    }
                    (IdempotencyState::Called, progress) | (_, progress @ Progress::Created(_)) => {
                        return Ok(Replayed::Answer(self.of_call(request, call, &record, progress).boxed().await));
                    }
                    (IdempotencyState::Unknown, _) => {}
                }
            }
            if client.has_left() {
                // No client waits, and the request's body would be held meanwhile.
                return Err(client_disconnected());
            }
            if Instant::now() >= until {
                if let Some(one) = &duplicate.request {
                    one.mark_reported_unknown();
                }
                if let (Some(call), Some(me)) = (&call, self.context.replica()) {
                    let change = Change { reported_unknown_by: Some(me), ..lifecycle.change(call, Source::Create) };
                    lifecycle.apply_with_retry(change).await;
                }
                let why = "an equal request was sent before, and its outcome is still unknown";
                let call = call.unwrap_or_else(CallId::new);
                let mut response = self.rejections.outcome_unknown(&request.rejected(), &call, why);
                name_duplicate(&mut response, &call);
                return Ok(Replayed::Answer(response));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    /// The response of an earlier request, which made this call: the provider's own where it is kept in memory or in the store,
    /// else one built from the call record.
    async fn of_call(
        &self,
        request: &CreateRequest,
        call: &CallId,
        record: &CallRecord,
        progress: Progress,
    ) -> Response<Bytes> {
        let kept = match progress {
            Progress::Created(Some(kept)) => Some(kept.answer.clone()),
            Progress::Created(None) | Progress::UnderWay | Progress::Unknown => {
                self.kept_answer(request, call).boxed().await
            }
        };
        let mut response = kept.or_else(|| made_answer(request, record)).unwrap_or_else(|| {
            let message = format!(
                "This request was sent before and made a call [{}]; its response is not kept. Nothing was dialled again.",
                record.id
            );
            self.rejections.respond(Rejection::new(RejectionCode::AlreadyPlaced, message), &request.rejected())
        });
        name_duplicate(&mut response, &record.id);
        self.context.lifecycle.metrics.duplicate_create(&request.account.name);
        info!(call = %record.id, business = %request.attributes.business, "duplicate request; no second call was placed");
        response
    }

    async fn kept_answer(&self, request: &CreateRequest, call: &CallId) -> Option<Response<Bytes>> {
        match self.context.lifecycle.store.create_answer(call, request.fingerprint().as_str()).await {
            Ok(kept) => kept.and_then(restored),
            Err(error) => {
                warn!(%call, %error, "failed to read the answer to a create");
                None
            }
        }
    }
}

/// A recorded response.
fn restored(kept: CreateAnswer) -> Option<Response<Bytes>> {
    let mut answer = Response::new(Bytes::from(kept.body));
    *answer.status_mut() = StatusCode::from_u16(kept.status).ok()?;
    for (name, value) in &kept.headers {
        let bytes: Vec<u8> = value.chars().map(|c| u8::try_from(c).unwrap_or(b'?')).collect();
        answer.headers_mut().append(HeaderName::try_from(name).ok()?, HeaderValue::from_bytes(&bytes).ok()?);
    }
    Some(answer)
}

/// A response built from the call record, in the shape of the provider's own. `None`: its description has no such shape.
fn made_answer(request: &CreateRequest, record: &CallRecord) -> Option<Response<Bytes>> {
    let shape = request.operation.answer.as_ref()?;
    let value = |name: &str| {
        let own = request.account.value(name).or_else(|| of_record(record, name));
        own.map_or(Value::Null, |text| Value::String(text.into_owned()))
    };
    Some(json_answer(StatusCode::from_u16(shape.status).ok()?, &fill_json(shape.body.as_ref()?, &value)))
}

fn name_duplicate(response: &mut Response<Bytes>, earlier: &CallId) {
    if let Ok(id) = HeaderValue::try_from(earlier.as_str()) {
        response.headers_mut().insert(DUPLICATE_HEADER, id);
    }
}

/// A provider's response as it is recorded; `None` where the privacy of its business forbids it, or if it is too long.
pub(in crate::calls::outbound) fn to_record(
    context: &Context,
    request: &CreateRequest,
    answer: &Response<Bytes>,
) -> Option<CreateAnswer> {
    let is_kept = context.policy.privacies().of(&request.attributes.business) == Privacy::Keep;
    if request.kind == RequestKind::Job || !is_kept || size(answer) > ANSWER_BYTES_MAX {
        return None;
    }
    let value = |value: &HeaderValue| value.as_bytes().iter().map(|byte| char::from(*byte)).collect();
    Some(CreateAnswer {
        fingerprint: request.fingerprint().as_str().to_owned(),
        status: answer.status().as_u16(),
        headers: answer.headers().iter().map(|(name, v)| (name.as_str().to_owned(), value(v))).collect(),
        body: answer.body().to_vec(),
    })
}
