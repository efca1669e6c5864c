//! Responses to webhooks.

use bytes::Bytes;
use http::header::{HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Response, StatusCode};
use serde_json::Value;

use crate::net::BodyError;
use crate::provider::description::Webhook;
use crate::provider::render::fill_json;
use crate::reply::{json_answer, problem, respond};
use crate::store::UtteranceRef;

/// The response when a body could not be read; one without room may be sent again.
pub(super) fn body_missing(error: BodyError) -> Response<Bytes> {
    let status = match error {
        BodyError::NoRoom => StatusCode::SERVICE_UNAVAILABLE,
        BodyError::TooLarge { .. } | BodyError::Timeout | BodyError::Broken => StatusCode::BAD_REQUEST,
    };
    let mut answer = problem(status, "BODY_INCOMPLETE", &error.to_string());
    if error == BodyError::NoRoom {
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
    }
    answer
}

/// The response for a call of another account.
pub(super) fn not_yours() -> Response<Bytes> {
    let message = "The account that signed the request does not own this call.";
    problem(StatusCode::FORBIDDEN, "CALL_NOT_YOURS", message)
}

/// The response that makes the provider send the webhook again.
pub(super) fn not_recorded() -> Response<Bytes> {
    let message = "The event could not be recorded; send it again.";
    problem(StatusCode::SERVICE_UNAVAILABLE, "STORE_UNAVAILABLE", message)
}

/// The response in a webhook's description, with the position of its utterance.
pub(super) fn fixed_answer(webhook: &Webhook, said: Option<UtteranceRef>) -> Response<Bytes> {
    let Some(answer) = &webhook.answer else { return respond(StatusCode::NO_CONTENT, HeaderMap::new(), Bytes::new()) };
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    match &answer.body {
        Some(body) => {
            let number = |name: &str| match (name, said) {
                ("transcription_id", Some(said)) => said.id.into(),
                ("sequence_number", Some(said)) => said.sequence.into(),
                _ => Value::Null,
            };
            json_answer(status, &fill_json(body, &number))
        }
        None => respond(status, HeaderMap::new(), Bytes::new()),
    }
}
