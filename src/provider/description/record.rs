//! Post-call records: what a provider reports after the end of a call, in a webhook or a look-up.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::select::{Message, Predicate, Selector};
use super::AnsweredByWord;
use crate::call::AnsweredBy;
use crate::clock::UnixMs;

/// The maximum text or JSON of a record that is kept, in bytes. Our choice, equal to that of inbox bodies.
pub const PART_BYTES_MAX: usize = 1024 * 1024;

/// The maximum duration of a call, in seconds: a week. Our choice; longer ones are ignored.
const DURATION_SECS_MAX: i64 = 7 * 24 * 3600;

/// The record of a call after its end. Every field is optional.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct PostCall {
    /// The summary.
    pub transcript_summary: Option<String>,
    /// The duration in seconds.
    pub call_duration_seconds: Option<i64>,
    /// The cost, without a sign.
    pub cost: Option<f64>,
    /// The currency; `None`: the provider's credits.
    pub cost_unit: Option<String>,
    /// The cost in money, where `cost` is in credits; in the currency of the account's subscription.
    pub cost_fiat: Option<f64>,
    /// Whether the call reached its goal, as the provider judges.
    pub call_successful: Option<bool>,
    /// The party that answered.
    pub answered_by: Option<AnsweredBy>,
    /// The provider's analysis.
    pub analysis_data: Option<Value>,
    /// Anything else that the provider reports.
    pub metadata_json: Option<Value>,
    /// The end of the call, in milliseconds since 1970.
    #[serde(serialize_with = "as_rfc3339")]
    pub call_end_time: Option<UnixMs>,
    /// The transcript.
    pub transcript_json: Option<Value>,
}

fn as_rfc3339<S: serde::Serializer>(at: &Option<UnixMs>, s: S) -> Result<S::Ok, S::Error> {
    at.map(crate::clock::rfc3339).serialize(s)
}

/// The places of the parts of a record in a message.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostCallRules {
    /// The summary.
    transcript_summary: Option<Selector>,
    /// The duration in seconds.
    call_duration_seconds: Option<Selector>,
    /// The cost. A sign is dropped.
    cost: Option<Selector>,
    /// The currency of `cost`. Without it, `cost` is in the provider's credits.
    cost_unit: Option<Selector>,
    /// The cost in money, beside `cost` in credits.
    cost_fiat: Option<Selector>,
    /// Whether the call reached its goal, as the provider judges.
    call_successful: Option<Judgement>,
    /// The party that answered.
    answered_by: Option<AnsweredByWord>,
    /// The analysis, as JSON.
    analysis_data: Option<Selector>,
    /// Anything else that is worth keeping, as JSON.
    metadata_json: Option<Selector>,
    /// The time at which the call ended.
    call_end_time: Option<TimeRule>,
    /// The transcript, as JSON.
    transcript_json: Option<Selector>,
    /// The condition under which the record is complete. Until then the provider is asked again.
    #[serde(default)]
    complete: Predicate,
}

/// A word that means yes or no; unknown words mean neither.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Judgement {
    /// The provider's word.
    from: Selector,
    /// Words that mean yes.
    yes: Vec<String>,
    /// Words that mean no.
    no: Vec<String>,
}

/// The end of a call: a selector, or a table.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum TimeRule {
    /// The end itself.
    At(Selector),
    /// A time, and a number of seconds to add to it.
    After { after: Selector, secs: Selector },
}

/// The completeness of a post-call record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completeness {
    /// All that its provider will report.
    Complete,
    /// A part: the rest is still to come.
    Partial,
}

impl PostCallRules {
    /// Reads a record, and whether it is complete. Malformed or overlong parts are left out.
    pub fn read(&self, message: &Message<'_>) -> (PostCall, Completeness) {
        let text = |selector: &Option<Selector>| {
            let text = selector.as_ref()?.text(message)?;
            // Postgres cannot store NUL.
            (!text.is_empty() && text.len() <= PART_BYTES_MAX).then(|| text.replace('\0', "\u{FFFD}"))
        };
        let json = |selector: &Option<Selector>| {
            let value = selector.as_ref()?.json(message.body)?;
            (value.to_string().len() <= PART_BYTES_MAX).then(|| value.clone())
        };
        let seconds = |selector: &Selector| duration_secs(&selector.text(message)?);
        // Some providers write charges as negative amounts.
        let amount = |selector: &Option<Selector>| {
            text(selector).and_then(|t| t.parse::<f64>().ok()).filter(|c| c.is_finite()).map(f64::abs)
        };
        let found = PostCall {
            transcript_summary: text(&self.transcript_summary),
            call_duration_seconds: self.call_duration_seconds.as_ref().and_then(seconds),
            cost: amount(&self.cost),
            cost_unit: text(&self.cost_unit),
            cost_fiat: amount(&self.cost_fiat),
            call_successful: self.call_successful.as_ref().and_then(|judgement| {
                let word = judgement.from.text(message)?;
                let among = |words: &[String]| words.iter().any(|one| *one == word);
                if among(&judgement.yes) { Some(true) } else { among(&judgement.no).then_some(false) }
            }),
            answered_by: self.answered_by.as_ref().and_then(|word| word.read(message)),
            analysis_data: json(&self.analysis_data),
            metadata_json: json(&self.metadata_json),
            call_end_time: self.call_end_time.as_ref().and_then(|rule| match rule {
                TimeRule::At(at) => time_ms(&at.text(message)?),
                TimeRule::After { after, secs } => {
                    time_ms(&after.text(message)?)?.checked_add(seconds(secs)?.checked_mul(1000)?)
                }
            }),
            transcript_json: json(&self.transcript_json),
        };
        let is_complete = self.complete.holds(message);
        (found, if is_complete { Completeness::Complete } else { Completeness::Partial })
    }
}

fn duration_secs(text: &str) -> Option<i64> {
    let secs = text.parse::<f64>().ok().filter(|secs| (0.0..=DURATION_SECS_MAX as f64).contains(secs))?;
    // Within bounds that it fits.
    Some(secs.round() as i64)
}

/// RFC 3339, RFC 2822, or seconds since 1970.
fn time_ms(text: &str) -> Option<UnixMs> {
    if let Ok(secs) = text.parse::<i64>() {
        // Only times that can be displayed.
        return jiff::Timestamp::from_second(secs).ok().filter(|_| secs > 0).map(|at| at.as_millisecond());
    }
    if let Ok(time) = jiff::fmt::rfc2822::parse(text) {
        return Some(time.timestamp().as_millisecond());
    }
    text.parse::<jiff::Timestamp>().ok().map(|at| at.as_millisecond())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use http::HeaderMap;
    use serde_json::json;

    use super::*;
    use crate::provider::Registry;
    use crate::provider::select::Document;

    fn read(rules: &PostCallRules, body: Document) -> (PostCall, Completeness) {
        let (path, headers) = (BTreeMap::new(), HeaderMap::new());
        rules.read(&Message { body: &body, query: &[], path: &path, headers: &headers })
    }

    fn conversation() -> Value {
        json!({
            "conversation_id": "conv_1", "status": "done",
            "transcript": [{"role": "agent", "message": "Hello", "time_in_call_secs": 0}],
            "metadata": {"start_time_unix_secs": 1_760_000_000, "accepted_time_unix_secs": 1_760_000_010,
                "call_duration_secs": 42, "cost": 420, "cost_fiat": 0.084, "phone_call": {"call_sid": "CA1"}},
            "analysis": {"call_successful": "success", "transcript_summary": "They said hello."},
        })
    }

    #[test]
    fn elevenlabs_tells_the_same_in_a_webhook_and_when_it_is_asked() {
        let registry = Registry::new(&[]).unwrap();
        let provider = registry.get("elevenlabs").unwrap();
        let events = provider.webhooks.iter().find(|w| w.name == "events").unwrap();
        let posted = events.events.iter().find(|e| e.name == "post_call_transcription").unwrap();
        let asked = provider.lookup.as_ref().unwrap().record.as_ref().unwrap();
        let body = json!({"type": "post_call_transcription", "data": conversation()});
        let (told, complete) = read(posted.record.as_ref().unwrap(), Document::Json(body));
        assert_eq!(complete, Completeness::Complete);
        assert_eq!(told.transcript_summary.as_deref(), Some("They said hello."));
        assert_eq!((told.call_duration_seconds, told.cost, told.cost_fiat), (Some(42), Some(420.0), Some(0.084)));
        assert_eq!(told.call_end_time, Some(1_760_000_052_000));
        assert_eq!(told.metadata_json, Some(conversation()["metadata"].clone()));
        assert_eq!(told.transcript_json, Some(conversation()["transcript"].clone()));
        assert_eq!(read(asked, Document::Json(conversation())), (told.clone(), Completeness::Complete));
        let mut processing = conversation();
        processing["status"] = json!("processing");
        processing["analysis"] = Value::Null;
        let (part, complete) = read(asked, Document::Json(processing));
        assert_eq!(complete, Completeness::Partial, "its analysis is still to come");
        assert_eq!((part.transcript_summary, part.analysis_data), (None, None));
    }

    #[test]
    fn what_is_no_number_no_time_or_no_judgement_is_left_out() {
        let registry = Registry::new(&[]).unwrap();
        let asked = registry.get("elevenlabs").unwrap().lookup.as_ref().unwrap().record.as_ref().unwrap();
        let odd = json!({"status": "done", "metadata": {"call_duration_secs": -5, "cost": "NaN",
            "start_time_unix_secs": "soon"}, "analysis": {"call_successful": "unknown", "transcript_summary": 7}});
        let (told, complete) = read(asked, Document::Json(odd));
        assert_eq!(complete, Completeness::Complete);
        assert_eq!((told.call_duration_seconds, told.cost), (None, None));
        assert_eq!((told.call_successful, told.call_end_time), (None, None));
        let long = json!({"status": "done", "analysis": {"transcript_summary": "x".repeat(PART_BYTES_MAX + 1)}});
        let (told, _) = read(asked, Document::Json(long));
        assert_eq!((told.transcript_summary, told.analysis_data), (None, None), "too long to be kept");
        let (told, complete) = read(asked, Document::Empty);
        assert_eq!((told, complete), (PostCall::default(), Completeness::Partial));
    }

    #[test]
    fn twilio_tells_the_length_at_once_and_the_price_when_it_is_asked() {
        let registry = Registry::new(&[]).unwrap();
        let provider = registry.get("twilio").unwrap();
        let status = provider.webhooks.iter().find(|w| w.name == "status").unwrap();
        let form =
            [("CallStatus", "completed"), ("CallDuration", "42"), ("Timestamp", "Thu, 09 Oct 2025 08:54:12 +0000")];
        let pairs = form.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec();
        let (told, complete) = read(status.events[0].record.as_ref().unwrap(), Document::Form(pairs));
        assert_eq!((told.call_duration_seconds, told.call_end_time), (Some(42), Some(1_760_000_052_000)));
        assert_eq!((complete, told.cost), (Completeness::Partial, None));
        let asked = provider.lookup.as_ref().unwrap().record.as_ref().unwrap();
        let mut call = json!({"sid": "CA1", "status": "completed", "duration": "42", "price": null, "price_unit": "USD",
            "end_time": "Thu, 09 Oct 2025 08:54:12 +0000"});
        assert_eq!(read(asked, Document::Json(call.clone())).1, Completeness::Partial, "not billed yet");
        call["price"] = json!("-0.0085");
        let (told, complete) = read(asked, Document::Json(call));
        assert_eq!(complete, Completeness::Complete);
        assert_eq!((told.cost, told.cost_unit.as_deref()), (Some(0.0085), Some("USD")));
        assert_eq!((told.call_duration_seconds, told.call_end_time), (Some(42), Some(1_760_000_052_000)));
    }
}
