//! Utterances of a live call in webhooks, and turns of a post-call transcript.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::super::json;
use super::super::select::{Document, Message, Predicate, Selector};
use crate::call::Speaker;

/// The maximum utterance, in bytes. Our choice: an hour of talk in one piece.
pub const TEXT_BYTES_MAX: usize = 64 * 1024;
/// The maximum time stamp, in bytes.
const TIME_BYTES_MAX: usize = 64;

/// The maximum id of a counter, in bytes.
const SOURCE_BYTES_MAX: usize = 128;

/// The places of the parts of an utterance in a message.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UtteranceRules {
    /// The speaker.
    pub speaker: SpeakerWord,
    /// The text.
    pub text: Selector,
    /// The member to read, if the text is itself a JSON object.
    pub text_member: Option<String>,
    /// The time in ISO 8601. Default: when the webhook arrived.
    pub said_at: Option<Selector>,
    /// The provider's sequence number, where messages may arrive out of order.
    pub order: Option<Selector>,
    /// The counter of `order`: the numbers start again with each. Without it, utterances keep their order of arrival.
    pub order_in: Option<Selector>,
    /// The condition under which the utterance may still change: it is shown, but not kept.
    pub partial: Option<Predicate>,
}

/// The speaker: a word in the message, and its meaning.
#[derive(Debug, Clone)]
pub struct SpeakerWord {
    from: Selector,
    map: BTreeMap<String, Speaker>,
}

impl<'de> Deserialize<'de> for SpeakerWord {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        /// The table form of [`SpeakerWord`].
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Written {
            /// The provider's word.
            from: Selector,
            /// The provider's words, each with its meaning.
            map: BTreeMap<String, Speaker>,
        }
        let Written { from, map } = Written::deserialize(d)?;
        if map.is_empty() {
            return Err(serde::de::Error::custom("no word is mapped to a speaker"));
        }
        Ok(Self { from, map })
    }
}

/// An utterance as received, not yet numbered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UtteranceDraft {
    /// The speaker.
    pub speaker: Speaker,
    /// The text.
    pub text: String,
    /// The time, as its sender wrote it.
    pub said_at: Option<String>,
    /// The provider's sequence number.
    pub order: Option<i64>,
    /// The counter of that number.
    pub order_in: Option<String>,
    /// Whether it may still change.
    pub is_partial: bool,
}

impl UtteranceRules {
    /// Reads an utterance.
    ///
    /// # Errors
    /// A required value is missing or malformed; a sentence for the sender.
    pub fn read(&self, message: &Message<'_>) -> Result<UtteranceDraft, String> {
        let word = self.speaker.from.text(message);
        let speaker = word.and_then(|word| self.speaker.map.get(word.as_ref()).copied()).ok_or_else(|| {
            let known: Vec<&str> = self.speaker.map.keys().map(String::as_str).collect();
            format!("The speaker is missing: {}.", known.join(" or "))
        })?;
        let text = self.text.text(message).ok_or("The text is missing.")?;
        let text = match &self.text_member {
            None => text.into_owned(),
            Some(member) => {
                let inner = json::read(text.as_bytes()).ok_or("The text is not JSON.")?.value;
                inner.get(member).and_then(Value::as_str).ok_or("The text is missing.")?.to_owned()
            }
        };
        if text.trim().is_empty() {
            return Err("The text is empty.".to_owned());
        }
        if text.len() > TEXT_BYTES_MAX {
            return Err(format!("The text has more than {TEXT_BYTES_MAX} bytes."));
        }
        let said_at = match &self.said_at {
            None => None,
            Some(selector) => match selector.text(message) {
                None => None,
                Some(time) if is_time(&time) => Some(time.into_owned()),
                Some(_) => return Err("The time is not ISO 8601.".to_owned()),
            },
        };
        let order = self.order.as_ref().and_then(|s| s.text(message)?.parse().ok());
        let order_in = self.order_in.as_ref().and_then(|s| s.text(message));
        let order_in = order_in.filter(|id| id.len() <= SOURCE_BYTES_MAX).map(|id| id.replace('\0', "\u{FFFD}"));
        let is_partial = self.partial.as_ref().is_some_and(|p| p.holds(message));
        // Postgres cannot store NUL.
        Ok(UtteranceDraft { speaker, text: text.replace('\0', "\u{FFFD}"), said_at, order, order_in, is_partial })
    }
}

/// The places of the parts of a turn in a post-call transcript.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TurnRules {
    /// The speaker.
    speaker: SpeakerWord,
    /// The text.
    text: Selector,
    /// Seconds since the start of the call.
    secs: Option<Selector>,
}

/// One turn of an ended call.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// The speaker.
    pub speaker: Speaker,
    /// The text.
    pub text: String,
    /// Seconds since the start of the call.
    pub secs: Option<f64>,
}

impl TurnRules {
    /// Reads the turns of a list, in order. Turns without text or known speaker, such as those of tools, are left out.
    pub fn read(&self, list: &Value) -> Vec<Turn> {
        let turns = list.as_array().map(Vec::as_slice).unwrap_or_default().iter();
        turns.filter_map(|turn| self.read_one(turn)).collect()
    }

    fn read_one(&self, turn: &Value) -> Option<Turn> {
        let (body, headers) = (Document::Json(turn.clone()), http::HeaderMap::new());
        let message = Message::new(&body, &headers);
        let speaker = *self.speaker.map.get(self.speaker.from.text(&message)?.as_ref())?;
        let text = self.text.text(&message).filter(|t| !t.trim().is_empty() && t.len() <= TEXT_BYTES_MAX)?;
        let secs = self.secs.as_ref().and_then(|secs| secs.text(&message)?.parse::<f64>().ok());
        Some(Turn {
            speaker,
            text: text.replace('\0', "\u{FFFD}"),
            secs: secs.filter(|secs| (0.0..=f64::from(u32::MAX)).contains(secs)),
        })
    }
}

/// Whether the text is ISO 8601, with or without an offset.
fn is_time(text: &str) -> bool {
    text.len() <= TIME_BYTES_MAX
        && (text.parse::<jiff::Timestamp>().is_ok() || text.parse::<jiff::civil::DateTime>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(rules: &str, body: &Document) -> Result<UtteranceDraft, String> {
        let rules: UtteranceRules = toml::from_str(rules).unwrap();
        rules.read(&Message { body, query: &[], path: &BTreeMap::new(), headers: &http::HeaderMap::new() })
    }

    const JSON: &str = r#"
        speaker = { from = "body.speaker", map = { agent = "agent", user = "user" } }
        text    = "body.message"
        said_at = "body.timestamp""#;

    #[test]
    fn an_utterance_is_read_or_refused_with_a_reason() {
        let of = |body: Value| heard(JSON, &Document::Json(body));
        let good = serde_json::json!({"speaker": "user", "message": "a\u{0}b", "timestamp": "2025-11-05T10:00:00.5"});
        let wanted = UtteranceDraft {
            speaker: Speaker::User,
            text: "a\u{FFFD}b".to_owned(),
            said_at: Some("2025-11-05T10:00:00.5".to_owned()),
            order: None,
            order_in: None,
            is_partial: false,
        };
        assert_eq!(of(good.clone()), Ok(wanted));
        for time in ["2025-11-05T10:00:00Z", "2025-11-05T10:00:00+02:00", "2025-11-05 10:00:00"] {
            let mut one = good.clone();
            one["timestamp"] = time.into();
            assert!(of(one).is_ok(), "{time}");
        }
        // Systems of before ringfence send none.
        let mut without = good.clone();
        without.as_object_mut().unwrap().remove("timestamp");
        assert_eq!(of(without).unwrap().said_at, None);
        for (key, value) in [
            ("speaker", Value::Null),
            ("speaker", "robot".into()),
            ("message", Value::Null),
            ("message", " ".into()),
            ("message", "x".repeat(TEXT_BYTES_MAX + 1).into()),
            ("timestamp", "yesterday".into()),
        ] {
            let mut one = good.clone();
            one[key] = value;
            assert!(of(one).is_err(), "{key}");
        }
    }

    #[test]
    fn text_within_json_within_a_form_is_found() {
        let rules = r#"
            speaker     = { from = "body.Track", map = { inbound_track = "user" } }
            text        = "body.Data"
            text_member = "transcript"
            order       = "body.SequenceId"
            partial     = { "body.Final" = "false" }"#;
        let form = |is_final: &str, data: &str| {
            let pairs = [("Track", "inbound_track"), ("Data", data), ("Final", is_final), ("SequenceId", "7")];
            Document::Form(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
        };
        let heard_of = |is_final, data| heard(rules, &form(is_final, data));
        let found = heard_of("true", r#"{"transcript":"hello","confidence":0.9}"#).unwrap();
        assert_eq!((found.text.as_str(), found.order, found.is_partial), ("hello", Some(7), false));
        assert!(heard_of("false", r#"{"transcript":"hel"}"#).unwrap().is_partial);
        assert!(heard_of("true", "hello").is_err() && heard_of("true", "{}").is_err());
    }

    #[test]
    fn turns_of_a_record_are_read_and_those_of_tools_left_out() {
        let registry = crate::provider::Registry::new(&[]).unwrap();
        let rules = registry.get("elevenlabs").unwrap().turns.clone().unwrap();
        let list = serde_json::json!([
            {"role": "agent", "message": "Hello.", "time_in_call_secs": 0},
            {"role": "agent", "message": null, "tool_calls": [{}], "time_in_call_secs": 1},
            {"role": "user", "message": "Hi.", "time_in_call_secs": 2},
        ]);
        let turns = rules.read(&list);
        let said: Vec<_> = turns.iter().map(|turn| (turn.speaker, turn.text.as_str(), turn.secs)).collect();
        assert_eq!(said, [(Speaker::Agent, "Hello.", Some(0.0)), (Speaker::User, "Hi.", Some(2.0))]);
        assert_eq!(rules.read(&Value::Null), []);
    }
}
