//! Responses at paths whose caller learns by the status what is wrong, in the shape of the older systems (docs/compatibility.md), beside
//! ringfence's own fields.

use bytes::Bytes;
use http::Response;
use http::header::CONTENT_LENGTH;
use serde_json::{Map, Value};

use super::context::Webhooks;
use crate::call::stream_status;
use crate::ids::Alias;
use crate::provider::description::APP_ID_KIND;

impl Webhooks {
    /// A success response with its call, if known.
    pub(super) async fn with_call(&self, answer: Response<Bytes>, aliases: &[Alias]) -> Response<Bytes> {
        let store = &self.calls.lifecycle.store;
        let call = match store.resolve(aliases).await {
            Ok(Some(call)) => store.call(&call).await.ok().flatten(),
            Ok(None) | Err(_) => None,
        };
        let Some(call) = call else { return answer };
        with_fields(answer, |fields| {
            let call_sid = call.alias(APP_ID_KIND).or_else(|| call.alias("call_sid"));
            fields.insert("conversation_id".to_owned(), call.alias("conversation_id").into());
            fields.insert("call_sid".to_owned(), call_sid.into());
            fields.insert("call_status".to_owned(), stream_status(call.phase, call.outcome).into());
        })
    }
}

/// A response with the fields that older clients read: `status`, `message`, and for an error `details`.
pub(super) fn shaped(answer: Response<Bytes>) -> Response<Bytes> {
    let is_success = answer.status().is_success();
    with_fields(answer, |fields| {
        fields.insert("status".to_owned(), if is_success { "success" } else { "error" }.into());
        if is_success {
            fields.entry("message").or_insert_with(|| "Post-call data stored".into());
        } else {
            let details = fields.get("error").cloned().unwrap_or_default();
            fields.insert("details".to_owned(), details);
        }
    })
}

/// Adds fields to a response that is a JSON object; leaves others unchanged.
fn with_fields(answer: Response<Bytes>, add: impl FnOnce(&mut Map<String, Value>)) -> Response<Bytes> {
    let Ok(Value::Object(mut fields)) = serde_json::from_slice(answer.body()) else { return answer };
    add(&mut fields);
    let (mut parts, _) = answer.into_parts();
    parts.headers.remove(CONTENT_LENGTH);
    Response::from_parts(parts, Value::Object(fields).to_string().into())
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;

    use super::*;
    use crate::reply::{json_answer, problem, respond};

    #[test]
    fn answers_say_what_clients_of_before_read() {
        let shown = |answer| serde_json::from_slice::<Value>(shaped(answer).body()).unwrap();
        let stored = shown(json_answer(StatusCode::OK, &json!({"received": true})));
        assert_eq!(stored, json!({"received": true, "status": "success", "message": "Post-call data stored"}));
        let unknown = shown(problem(StatusCode::NOT_FOUND, "CALL_NOT_FOUND", "No call."));
        let error =
            json!({"status": "error", "message": "No call.", "details": "CALL_NOT_FOUND", "error": "CALL_NOT_FOUND"});
        assert_eq!(unknown, error);
        let empty = respond(StatusCode::NO_CONTENT, Default::default(), Bytes::new());
        assert!(shaped(empty).body().is_empty());
    }
}
