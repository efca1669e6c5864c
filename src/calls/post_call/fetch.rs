//! Post-call records fetched on demand: `POST /conversations/{id}/fetch`. Concurrent requests for one record share one request to
//! the provider, so that clients cannot use up its rate limit.

use std::sync::Arc;

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{Response, StatusCode};
use serde_json::json;
use tracing::warn;

use super::fetches::{FetchResult, FetchTicket};
use super::records::{PostCallRecords, RETRY_DELAYS_SECS};
use super::shown::{Numbers, shown};
use crate::call::Source;
use crate::calls::lifecycle::run_to_completion;
use crate::ids::Alias;
use crate::reply::{json_answer, problem};
use crate::store::{CallRecord, StoreError};

/// `Retry-After` when too many fetches are in progress, in seconds.
const RETRY_SOON_SECS: u32 = 1;
/// `Retry-After` when the provider limits us without naming a time, in seconds.
const LIMITED_SECS: u32 = 60;

impl PostCallRecords {
    /// Answers `POST /conversations/{conversation_id}/fetch`: fetches what a lost webhook would have brought. `sees` says whether
    /// the caller may see a business. A client that disconnects changes nothing. For a call that is still up nothing is stored,
    /// and no retry of ours is used. The provider is queried once within a few seconds for one conversation, by all callers
    /// together.
    pub async fn fetch_conversation(
        self: &Arc<Self>,
        id: &str,
        sees: impl Fn(&str) -> bool + Send,
        numbers: Numbers,
    ) -> Response<Bytes> {
        let unknown = || problem(StatusCode::NOT_FOUND, "CALL_NOT_FOUND", "No call of this conversation is on record.");
        let Some(alias) = Alias::new("conversation_id", id) else { return unknown() };
        let record = match self.context.lifecycle.store.resolve(&[alias]).await {
            Ok(Some(call)) => self.context.lifecycle.store.call(&call).await,
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        match record {
            Ok(Some(record)) if sees(record.attributes.business.as_str()) => self.fetched(id, record, numbers).await,
            Ok(_) => unknown(),
            Err(error) => failed(&error),
        }
    }

    async fn fetched(self: &Arc<Self>, id: &str, record: CallRecord, numbers: Numbers) -> Response<Bytes> {
        let call = record.id.clone();
        let mut came = match self.fetches.turn(&call, self.context.lifecycle.clock.now_ms()) {
            FetchTicket::Wait(came) => came,
            FetchTicket::Later => {
                let message = "Too many conversations are being fetched; try again.";
                return later("TOO_MANY_FETCHES", message, RETRY_SOON_SECS);
            }
            FetchTicket::Ask(send, came) => {
                let this = self.clone();
                drop(run_to_completion(async move {
                    let again = this.context.lifecycle.clock.now_ms() + RETRY_DELAYS_SECS[0] * 1000;
                    let asked = Box::pin(this.ask_record(&record, Source::Operator, Some(again))).await;
                    send.send_replace(Some(asked));
                }));
                came
            }
        };
        let Some(asked) = came.wait_for(Option::is_some).await.ok().and_then(|asked| asked.clone()) else {
            return problem(StatusCode::INTERNAL_SERVER_ERROR, "FAILED", "The fetch was interrupted.");
        };
        let provider = |why: &str| problem(StatusCode::BAD_GATEWAY, "PROVIDER_FAILED", why);
        match asked {
            FetchResult::Kept => match self.context.lifecycle.store.post_call(&call).await {
                Ok(kept) => json_answer(
                    StatusCode::OK,
                    &json!({"conversation_id": id, "callId": call, "record": kept.as_ref().map(|kept| shown(kept, numbers))}),
                ),
                Err(error) => failed(&error),
            },
            FetchResult::StillUp => {
                let message = "The call is still up at its provider: its record comes after its end.";
                json_answer(
                    StatusCode::CONFLICT,
                    &json!({"error": "CALL_IN_PROGRESS", "message": message, "conversation_id": id, "callId": call}),
                )
            }
            FetchResult::Absent => {
                problem(StatusCode::NOT_FOUND, "CALL_NOT_FOUND", "The provider has no record of this conversation.")
            }
            FetchResult::CannotQuery => provider("The account of this call has no credentials in the config."),
            FetchResult::Limited { code, retry_after_secs } => {
                let message = "The provider limits requests; try again.";
                later(&code, message, retry_after_secs.unwrap_or(LIMITED_SECS).max(1))
            }
            FetchResult::Failed(why) => provider(&why),
            FetchResult::Store(error) => failed(&error),
        }
    }
}

fn failed(error: &StoreError) -> Response<Bytes> {
    warn!(%error, "failed to fetch a conversation");
    problem(StatusCode::SERVICE_UNAVAILABLE, "STORE_UNAVAILABLE", "The database does not answer; try again.")
}

fn later(code: &str, message: &str, secs: u32) -> Response<Bytes> {
    let body = json!({"error": code, "message": message, "retryAfter": secs});
    let mut answer = json_answer(StatusCode::SERVICE_UNAVAILABLE, &body);
    answer.headers_mut().insert(RETRY_AFTER, secs.into());
    answer
}
