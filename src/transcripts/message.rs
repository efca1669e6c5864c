//! The messages of the socket, byte for byte those of the replaced systems, and their extensions. Pure.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::call::{Outcome, Phase, Speaker, stream_status};
use crate::calls::notify::Partial;
use crate::clock::{UnixMs, rfc3339};
use crate::metrics::ClientMessage;
use crate::provider::description::APP_ID_KIND;
use crate::store::{CallRecord, StoredPostCall, Utterance};

/// The prefix of an identifier of a bulk run.
const RUN: &str = "run:";

/// The code of an error message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// The call is unknown, or not visible to this client.
    CallNotFound,
    /// The bulk run is unknown, or not visible to this client.
    RunNotFound,
    /// The identifier is malformed.
    InvalidIdentifier,
    /// The token is invalid.
    AuthenticationFailed,
    /// The database does not answer, or the client follows too many.
    SubscriptionFailed,
    /// The message is not one that a client may send.
    InvalidMessageFormat,
}

impl ErrorCode {
    const fn as_str(self) -> &'static str {
        match self {
            ErrorCode::CallNotFound => "CALL_NOT_FOUND",
            ErrorCode::RunNotFound => "RUN_NOT_FOUND",
            ErrorCode::InvalidIdentifier => "INVALID_IDENTIFIER",
            ErrorCode::AuthenticationFailed => "AUTHENTICATION_FAILED",
            ErrorCode::SubscriptionFailed => "SUBSCRIPTION_FAILED",
            ErrorCode::InvalidMessageFormat => "INVALID_MESSAGE_FORMAT",
        }
    }
}

/// The name of a speaker in messages.
pub fn speaker_type(speaker: Speaker, user_label: &str) -> &str {
    match speaker {
        Speaker::Agent => speaker.as_str(),
        Speaker::User => user_label,
    }
}

/// The message `error`.
pub fn error(code: ErrorCode, message: &str) -> Value {
    json!({"type": ClientMessage::Error, "message": message, "code": code.as_str()})
}

/// The message `subscription_confirmed`. `resumed`: the client can resume, and gets the values for its next resumption.
pub fn confirmed(identifier: &str, call: &CallRecord, resumed: Option<i64>) -> Value {
    let mut message = json!({
        "type": ClientMessage::SubscriptionConfirmed,
        "identifier": identifier,
        "call_sid": call_sid(call),
        "conversation_id": call.alias("conversation_id"),
        "status": status(call),
        "message": format!("Subscribed to call {identifier}"),
    });
    if let Some(sequence) = resumed {
        message["epoch"] = call.id.as_str().into();
        message["sequence_number"] = sequence.into();
    }
    message
}

/// The message `cannot_resume`: the epoch or position is not that of this transcript, which restarts.
pub fn cannot_resume(identifier: &str, call: &CallRecord, last: i64) -> Value {
    json!({
        "type": ClientMessage::CannotResume,
        "identifier": identifier,
        "epoch": call.id,
        "sequence_number": last,
        "message": "Cannot resume: unknown epoch or position. The transcript restarts",
    })
}

/// The message `unsubscribe_confirmed`.
pub fn unsubscribed(identifier: &str) -> Value {
    json!({
        "type": ClientMessage::UnsubscribeConfirmed,
        "identifier": identifier,
        "message": format!("Unsubscribed from call {identifier}"),
    })
}

/// The message `subscription_confirmed` of a bulk run.
pub fn run_confirmed(run: &str) -> Value {
    json!({
        "type": ClientMessage::SubscriptionConfirmed,
        "identifier": format!("{RUN}{run}"),
        "run_id": run,
        "message": format!("Subscribed to run {run}"),
    })
}

/// The message `unsubscribe_confirmed` of a bulk run.
pub fn run_unsubscribed(run: &str) -> Value {
    json!({
        "type": ClientMessage::UnsubscribeConfirmed,
        "identifier": format!("{RUN}{run}"),
        "message": format!("Unsubscribed from run {run}"),
    })
}

/// The message `transcription`.
pub fn transcription(call: &CallRecord, utterance: &Utterance, user_label: &str) -> Value {
    let mut message = json!({
        "type": ClientMessage::Transcription,
        "conversation_id": call.alias("conversation_id"),
        "call_sid": call_sid(call),
        "transcription_id": utterance.id,
        "sequence_number": utterance.sequence,
        "speaker_type": speaker_type(utterance.speaker, user_label),
        "message_text": utterance.text,
        "timestamp": utterance.said_at,
    });
    if let Some(number) = utterance.source_sequence {
        message["source_sequence"] = number.into();
    }
    message
}

/// Utterances in the order in which they were spoken, as far as the provider's numbers tell: numbered ones are sorted among their
/// own positions; all others stay where they are.
pub fn in_spoken_order(utterances: &[Utterance]) -> Vec<&Utterance> {
    let mut counted = BTreeMap::<&str, Vec<usize>>::new();
    for (place, one) in utterances.iter().enumerate() {
        if let (Some(source), Some(_)) = (&one.source, one.source_sequence) {
            counted.entry(source).or_default().push(place);
        }
    }
    let mut order: Vec<&Utterance> = utterances.iter().collect();
    for slots in counted.into_values() {
        let mut spoken: Vec<&Utterance> = slots.iter().filter_map(|place| utterances.get(*place)).collect();
        spoken.sort_by_key(|one| (one.source_sequence, one.sequence));
        for (place, one) in slots.into_iter().zip(spoken) {
            order[place] = one;
        }
    }
    order
}

/// The message `partial`: an utterance that may still change.
pub fn partial(call: &CallRecord, partial: &Partial, user_label: &str) -> Value {
    json!({
        "type": ClientMessage::Partial,
        "conversation_id": call.alias("conversation_id"),
        "call_sid": call_sid(call),
        "speaker_type": speaker_type(partial.speaker, user_label),
        "message_text": &*partial.text,
        "source_sequence": partial.source_sequence,
    })
}

/// The message `call_status` of an ended call.
pub fn call_status(call: &CallRecord) -> Value {
    json!({
        "type": ClientMessage::CallStatus,
        "conversation_id": call.alias("conversation_id"),
        "call_sid": call_sid(call),
        "status": status(call),
        "call_end_time": call.ended_at.map(rfc3339),
    })
}

/// The message `call_completed`, with the post-call record, if there is one.
pub fn call_completed(call: &CallRecord, post_call: Option<&StoredPostCall>) -> Value {
    let post_call = post_call.map(|post_call| &post_call.found);
    let (call_sid, conversation_id) = (call_sid(call), call.alias("conversation_id"));
    json!({
        "type": ClientMessage::CallCompleted,
        "conversation_id": conversation_id,
        "call_sid": call_sid,
        "call_data": {
            "status": status(call),
            "call_sid": call_sid,
            "conversation_id": conversation_id,
            "call_start_time": rfc3339(call.admitted_at),
            "call_end_time": call.ended_at.map(rfc3339),
            "duration_seconds": post_call.and_then(|post_call| post_call.call_duration_seconds).or_else(|| duration_secs(call)),
            "transcript_summary": post_call.and_then(|post_call| post_call.transcript_summary.as_deref()),
            "cost": post_call.and_then(|post_call| post_call.cost),
            "call_successful": post_call.and_then(|post_call| post_call.call_successful),
            "analysis_data": post_call.and_then(|post_call| post_call.analysis_data.as_ref()),
            "metadata": post_call.and_then(|post_call| post_call.metadata_json.as_ref()),
        },
    })
}

/// The seconds from the answer of an ended call, or else from its admission, to its end.
pub fn duration_secs(call: &CallRecord) -> Option<i64> {
    call.ended_at.map(|ended| (ended - call.answered_at.unwrap_or(call.admitted_at)).max(0) / 1000)
}

/// The `call_sid` of a call: the app's own id if its create had one, because that is the one clients know.
pub fn call_sid(call: &CallRecord) -> Option<&str> {
    call.alias(APP_ID_KIND).or_else(|| call.alias("call_sid"))
}

/// The status of a call in these messages.
pub fn status(call: &CallRecord) -> &'static str {
    stream_status(call.phase, call.outcome)
}

/// The time at which `call_completed` is due; `None` while the call is open. It does not wait for a record where none will come: after an
/// unanswered call, or when the record is complete.
pub fn complete_at(call: &CallRecord, post_call: Option<&StoredPostCall>, completion_wait_ms: i64) -> Option<UnixMs> {
    let ended_at = call.ended_at.filter(|_| call.phase == Phase::Ended)?;
    let may_come = matches!(call.outcome, Some(Outcome::Completed | Outcome::Failed));
    let is_complete = post_call.is_some_and(|post_call| post_call.recorded_at.is_some());
    Some(if may_come && !is_complete { ended_at + completion_wait_ms } else { ended_at })
}

/// A message of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `{"subscribe": ID}`
    Subscribe {
        /// A call SID, a conversation id, or a ringfence call id.
        identifier: String,
        /// The last number received; `None`: only utterances from now on.
        after: Option<i64>,
        /// The epoch of the transcript to resume.
        epoch: Option<String>,
    },
    /// `{"unsubscribe": ID}`
    Unsubscribe(String),
    /// `{"subscribe": "run:ID"}`
    SubscribeRun(String),
    /// `{"unsubscribe": "run:ID"}`
    UnsubscribeRun(String),
    /// `{"subscribe_business": ID}`
    SubscribeBusiness(String),
    /// `{"unsubscribe_business": ID}`
    UnsubscribeBusiness(String),
    /// `{"token": JWT}`
    Renew(String),
}

/// Parses a client's message.
///
/// # Errors
/// The code and text of the `error` message.
pub fn parse_command(text: &str) -> Result<Command, (ErrorCode, &'static str)> {
    const WORDS: &str = "Send {\"subscribe\": \"ID\"} or {\"unsubscribe\": \"ID\"}";
    let malformed = (ErrorCode::InvalidMessageFormat, WORDS);
    let Ok(Value::Object(fields)) = serde_json::from_str::<Value>(text) else { return Err(malformed) };
    let (key, value) = ["subscribe", "unsubscribe", "subscribe_business", "unsubscribe_business", "token"]
        .iter()
        .find_map(|key| fields.get(*key).map(|value| (*key, value)))
        .ok_or(malformed)?;
    let id = value.as_str().map(str::trim).filter(|id| !id.is_empty());
    let Some(id) = id.map(str::to_owned) else {
        return Err((ErrorCode::InvalidIdentifier, "The identifier must be a non-empty string"));
    };
    if let Some(run) = id.strip_prefix(RUN) {
        match key {
            "subscribe" => return Ok(Command::SubscribeRun(run.to_owned())),
            "unsubscribe" => return Ok(Command::UnsubscribeRun(run.to_owned())),
            _ => {}
        }
    }
    Ok(match key {
        "subscribe" => Command::Subscribe { identifier: id, after: parse_after(&fields)?, epoch: parse_epoch(&fields) },
        "unsubscribe" => Command::Unsubscribe(id),
        "subscribe_business" => Command::SubscribeBusiness(id),
        "unsubscribe_business" => Command::UnsubscribeBusiness(id),
        _ => Command::Renew(id),
    })
}

fn parse_after(fields: &Map<String, Value>) -> Result<Option<i64>, (ErrorCode, &'static str)> {
    match fields.get("after") {
        None | Some(Value::Null) => Ok(None),
        Some(number) => match number.as_i64().filter(|n| *n >= 0) {
            Some(number) => Ok(Some(number)),
            None => Err((ErrorCode::InvalidMessageFormat, "after must be the last sequence_number received, or 0")),
        },
    }
}

fn parse_epoch(fields: &Map<String, Value>) -> Option<String> {
    fields.get("epoch").and_then(Value::as_str).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_may_say_is_read_and_all_else_is_told_apart() {
        let subscribe = |after, epoch: Option<&str>| Command::Subscribe {
            identifier: "CA1".to_owned(),
            after,
            epoch: epoch.map(str::to_owned),
        };
        assert_eq!(parse_command(r#"{"subscribe":"CA1"}"#), Ok(subscribe(None, None)));
        assert_eq!(
            parse_command(r#"{"subscribe":" CA1 ","after":7,"epoch":"c_1"}"#),
            Ok(subscribe(Some(7), Some("c_1")))
        );
        assert_eq!(parse_command(r#"{"unsubscribe":"CA1","x":1}"#), Ok(Command::Unsubscribe("CA1".to_owned())));
        assert_eq!(parse_command(r#"{"subscribe":"run:run_1"}"#), Ok(Command::SubscribeRun("run_1".to_owned())));
        assert_eq!(parse_command(r#"{"unsubscribe":"run:run_1"}"#), Ok(Command::UnsubscribeRun("run_1".to_owned())));
        let business = Ok(Command::SubscribeBusiness("run:a".to_owned()));
        assert_eq!(parse_command(r#"{"subscribe_business":"run:a"}"#), business);
        assert_eq!(parse_command(r#"{"subscribe_business":"a"}"#), Ok(Command::SubscribeBusiness("a".to_owned())));
        assert_eq!(parse_command(r#"{"token":"e.e.e"}"#), Ok(Command::Renew("e.e.e".to_owned())));
        for (text, code) in [
            ("", ErrorCode::InvalidMessageFormat),
            ("nonsense", ErrorCode::InvalidMessageFormat),
            ("[]", ErrorCode::InvalidMessageFormat),
            ("{}", ErrorCode::InvalidMessageFormat),
            (r#"{"subscribe":"CA1","after":-1}"#, ErrorCode::InvalidMessageFormat),
            (r#"{"subscribe":"CA1","after":"7"}"#, ErrorCode::InvalidMessageFormat),
            (r#"{"subscribe":""}"#, ErrorCode::InvalidIdentifier),
            (r#"{"subscribe":7}"#, ErrorCode::InvalidIdentifier),
            (r#"{"unsubscribe":null}"#, ErrorCode::InvalidIdentifier),
        ] {
            assert_eq!(parse_command(text).map_err(|(code, _)| code), Err(code), "{text}");
        }
    }
}
