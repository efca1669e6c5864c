//! Calls in the format of the replaced systems: lists, one call, one with its transcript (docs/compatibility.md). Fields that only their own
//! database knew are null.

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::{Client, ClientError, PAGE_MAX, message, number_parameter, presented_token, query_pairs};
use crate::clock::rfc3339;
use crate::metrics::ClientRequest;
use crate::net::Exchange;
use crate::provider::description::APP_ID_KIND;
use crate::provider::path::percent_decode;
use crate::reply::json_answer;
use crate::store::{CallRecord, ListFilter, StoredPostCall, Utterance};
use crate::token::Principal;

/// The default page size of a list.
const LISTED: i64 = 100;
/// Maximum utterances of a call that is returned whole: more than a call of its longest duration has.
const TRANSCRIPT_MAX: usize = 20_000;

/// The calls that are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CallScope {
    All,
    /// Calls that are in progress.
    Active,
}

impl Client {
    /// The answer at `/calls` and below it, except for the transcript; `None`: nothing is served at this path.
    pub(super) async fn legacy_calls(
        &self,
        exchange: &Exchange,
        segments: &[&str],
    ) -> Option<(ClientRequest, Response<Bytes>)> {
        if exchange.method() != Method::GET || segments.first() != Some(&"calls") {
            return None;
        }
        let (kind, answer) = match &segments[1..] {
            [] => (ClientRequest::Calls, self.list(exchange, CallScope::All).await),
            ["active"] => (ClientRequest::Calls, self.list(exchange, CallScope::Active).await),
            [id] if !id.is_empty() => (ClientRequest::Call, self.call(exchange, &percent_decode(id)).await),
            [id, "full"] => (ClientRequest::Call, self.call_with_transcript(exchange, &percent_decode(id)).await),
            _ => return None,
        };
        Some((kind, answer.map_or_else(ClientError::answer, |shown| json_answer(StatusCode::OK, &shown))))
    }

    /// Returns the sender of a request.
    pub(super) fn authenticate_request(&self, exchange: &Exchange) -> Result<Principal, ClientError> {
        let presented = presented_token(exchange).map_err(ClientError::Denied)?;
        self.authenticate(&presented.token).map_err(|error| ClientError::Denied(error.to_string()))
    }

    async fn list(&self, exchange: &Exchange, listed: CallScope) -> Result<Value, ClientError> {
        let principal = self.authenticate_request(exchange)?;
        let limit = number_parameter(exchange, "limit")?.unwrap_or(LISTED);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX).clamp(1, PAGE_MAX as usize);
        let wanted = query_pairs(exchange).find(|(key, _)| key == "status").map(|(_, status)| status.into_owned());
        let driver = query_pairs(exchange).find(|(key, _)| key == "driver_id").map(|(_, driver)| driver.into_owned());
        let seen = ListFilter { businesses: principal.businesses.clone(), ..ListFilter::default() };
        let all = self.lifecycle.store.list_calls(&seen, PAGE_MAX * 10).await?;
        let is_wanted = |call: &&CallRecord| {
            let status = message::status(call);
            (listed == CallScope::All || status == "in_progress")
                && wanted.as_deref().is_none_or(|wanted| wanted == status)
                && driver.as_deref().is_none_or(|driver| driver_id(call) == Some(driver))
        };
        let mut list = Vec::new();
        for call in all.iter().filter(is_wanted).take(limit) {
            let post_call = self.lifecycle.store.post_call(&call.id).await?;
            list.push(call_json(call, post_call.as_ref()));
        }
        Ok(list.into())
    }

    async fn call(&self, exchange: &Exchange, id: &str) -> Result<Value, ClientError> {
        Ok(self.found_call(exchange, id).await?.1)
    }

    async fn call_with_transcript(&self, exchange: &Exchange, id: &str) -> Result<Value, ClientError> {
        let (call, mut shown) = self.found_call(exchange, id).await?;
        let (utterances, is_cut) = self.all_utterances(&call).await?;
        let spoken = self.spoken(&utterances);
        shown["transcript_count"] = spoken.len().into();
        if is_cut {
            shown["transcript_truncated"] = true.into();
        }
        shown["transcript"] = spoken.into();
        Ok(shown)
    }

    async fn found_call(&self, exchange: &Exchange, id: &str) -> Result<(CallRecord, Value), ClientError> {
        let principal = self.authenticate_request(exchange)?;
        let call = self.find(id, &principal).await?.ok_or(ClientError::NotFound)?;
        let post_call = self.lifecycle.store.post_call(&call.id).await?;
        let shown = call_json(&call, post_call.as_ref());
        Ok((call, shown))
    }

    /// The utterances of a call, as a bare list.
    pub(super) async fn utterance_list(&self, call: &CallRecord, limit: u32) -> Result<Vec<Value>, ClientError> {
        Ok(self.spoken(&self.lifecycle.store.utterances(&call.id, 0, limit).await?))
    }

    /// All utterances of a call, and whether there are more than [`TRANSCRIPT_MAX`].
    async fn all_utterances(&self, call: &CallRecord) -> Result<(Vec<Utterance>, bool), ClientError> {
        let mut all: Vec<Utterance> = vec![];
        loop {
            let after = all.last().map_or(0, |last| last.sequence);
            let page = self.lifecycle.store.utterances(&call.id, after, PAGE_MAX).await?;
            let is_last = page.len() < PAGE_MAX as usize;
            all.extend(page);
            if is_last || all.len() > TRANSCRIPT_MAX {
                let is_cut = all.len() > TRANSCRIPT_MAX;
                all.truncate(TRANSCRIPT_MAX);
                return Ok((all, is_cut));
            }
        }
    }

    fn spoken(&self, utterances: &[Utterance]) -> Vec<Value> {
        let label = &self.settings.user_label;
        let spoken = message::in_spoken_order(utterances).into_iter().map(|one| {
            json!({
                "role": message::speaker_type(one.speaker, label),
                "text": one.text,
                "timestamp": one.said_at,
                "sequence_number": one.sequence,
            })
        });
        spoken.collect()
    }
}

/// The driver in the app's own id, `EL_{driver}_{unix time}`.
fn driver_id(call: &CallRecord) -> Option<&str> {
    let (driver, at) = call.alias(APP_ID_KIND)?.strip_prefix("EL_")?.rsplit_once('_')?;
    let is_time = !at.is_empty() && at.bytes().all(|byte| byte.is_ascii_digit());
    (is_time && !driver.is_empty()).then_some(driver)
}

fn call_json(call: &CallRecord, post_call: Option<&StoredPostCall>) -> Value {
    let post_call = post_call.map(|post_call| &post_call.found);
    let talked =
        post_call.and_then(|post_call| post_call.call_duration_seconds).or_else(|| message::duration_secs(call));
    json!({
        "call_sid": message::call_sid(call),
        "conversation_id": call.alias("conversation_id"),
        "driver_id": driver_id(call),
        "trip_id": null,
        "status": message::status(call),
        "call_start_time": rfc3339(call.admitted_at),
        "call_end_time": call.ended_at.map(rfc3339),
        "duration_seconds": talked,
        "transcript_summary": post_call.and_then(|post_call| post_call.transcript_summary.as_deref()),
        "call_duration_seconds": talked,
        "cost": post_call.and_then(|post_call| post_call.cost),
        "call_successful": post_call.and_then(|post_call| post_call.call_successful),
        "created_at": rfc3339(call.admitted_at),
        "updated_at": rfc3339(call.ended_at.or(call.answered_at).unwrap_or(call.admitted_at)),
        "retry_count": 0,
        "max_retries": 0,
        "retry_status": null,
        "next_retry_at": null,
        "parent_call_sid": null,
        "driver_name": null,
        "phone_number": call.attributes.other_number.as_deref().map(crate::ids::mask_number),
    })
}
