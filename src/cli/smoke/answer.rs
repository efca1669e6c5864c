//! The outcome of a create, from its answer. Pure.

use bytes::Bytes;
use http::Response;
use http::header::CONTENT_TYPE;
use serde_json::Value;

use crate::ids::Alias;
use crate::provider::description::Operation;
use crate::provider::select::{Document, Message};

/// Outcome of a create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// The provider accepted the call; these are its ids.
    Placed(Vec<Alias>),
    /// ringfence refused it.
    Refused {
        /// The refusal's id.
        id: String,
        /// The refusal's code.
        code: String,
        /// The refusal's message.
        message: String,
        /// There may be a call.
        may_be_placed: bool,
    },
    /// The provider rejected it, with this message.
    Rejected(String),
    /// Unknown whether there is a call: the answer is not in the description, or not the provider's.
    Unclear(String),
}

impl Answer {
    /// Reads an answer by the operation's description.
    pub(super) fn read(operation: &Operation, answer: &Response<Bytes>) -> Self {
        let content_type = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let body = Document::decode(content_type, answer.body());
        if let Some(id) = answer.headers().get("x-ringfence-refusal").and_then(|value| value.to_str().ok()) {
            let text = |name: &str| of_refusal(&body, name).and_then(Value::as_str).unwrap_or_default().to_owned();
            let may_be_placed = of_refusal(&body, "called") != Some(&Value::Bool(false));
            return Self::Refused { id: id.to_owned(), code: text("error"), message: text("message"), may_be_placed };
        }
        let message = Message::new(&body, answer.headers());
        let (success, status) = (&operation.success, answer.status().as_u16());
        let is_listed = success.status.contains(&status);
        if is_listed && (success.unless.is_empty() || !success.unless.holds(&message)) {
            return Self::Placed(operation.ids.read(&message));
        }
        let words = String::from_utf8_lossy(answer.body()).into_owned();
        if is_listed || answer.status().is_client_error() { Self::Rejected(words) } else { Self::Unclear(words) }
    }
}

/// A field of a refusal: every provider's shape has it at the top, or below `details`.
fn of_refusal<'b>(body: &'b Document, name: &str) -> Option<&'b Value> {
    let Document::Json(body) = body else { return None };
    body.get(name).or_else(|| body.get("details")?.get(name))
}

/// The fix for a provider's rejection.
pub(super) fn fix_of_rejection(status: u16) -> &'static str {
    match status {
        401 | 403 => "the account's key may not place calls: ringfence doctor checks it",
        402 => "payment required: check the account's balance",
        404 => "the provider does not know the agent or the number: compare --agent and --from with its console",
        _ => "the provider's message names the wrong field: set it with --agent, --from, --field NAME=VALUE",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::Registry;

    fn read(provider: &str, operation: &str, status: u16, refusal: Option<&str>, body: &str) -> Answer {
        let registry = Registry::new(&[]).unwrap();
        let description = registry.get(provider).unwrap();
        let operation = description.operations.iter().find(|one| one.name == operation).unwrap();
        let mut answer = Response::new(Bytes::from(body.to_owned()));
        *answer.status_mut() = status.try_into().unwrap();
        answer.headers_mut().insert(CONTENT_TYPE, "application/json".parse().unwrap());
        if let Some(id) = refusal {
            answer.headers_mut().insert("x-ringfence-refusal", id.parse().unwrap());
        }
        Answer::read(operation, &answer)
    }

    #[test]
    fn a_call_a_refusal_and_a_rejection_are_told_apart() {
        let of_elevenlabs = |status, id, body: &str| read("elevenlabs", "twilio_outbound_call", status, id, body);
        let placed = of_elevenlabs(200, None, r#"{"success": true, "conversation_id": "conv_1", "callSid": "CA1"}"#);
        let Answer::Placed(ids) = placed else { panic!("{placed:?}") };
        assert_eq!(ids.iter().map(|id| id.id.as_str()).collect::<Vec<_>>(), ["CA1", "conv_1"]);
        assert!(matches!(of_elevenlabs(200, None, r#"{"success": false}"#), Answer::Rejected(_)));
        assert!(
            matches!(of_elevenlabs(422, None, r#"{"detail": []}"#), Answer::Rejected(why) if why.contains("detail"))
        );
        for status in [202, 302, 502, 504] {
            assert!(matches!(of_elevenlabs(status, None, "{}"), Answer::Unclear(_)), "{status}");
        }
        let refused = |code: &str, may_be_placed| Answer::Refused {
            id: "rf_1".to_owned(),
            code: code.to_owned(),
            message: "m".to_owned(),
            may_be_placed,
        };
        let of_limit = r#"{"error": "X", "message": "m", "called": false}"#;
        assert_eq!(of_elevenlabs(503, Some("rf_1"), of_limit), refused("X", false));
        let of_twilio = r#"{"code": 20503, "message": "m", "details": {"error": "Y", "called": "unknown"}}"#;
        assert_eq!(read("twilio", "calls", 504, Some("rf_1"), of_twilio), refused("Y", true));
    }
}
