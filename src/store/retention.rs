//! Retention and privacy: deletion by age, and redaction of transcripts.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::Result;
use crate::clock::UnixMs;
use crate::ids::BusinessId;
use crate::policy::Privacy;
use crate::provider::description::PostCall;
use crate::provider::sign::sha256_hex;

/// Cut-off times; older data is deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RetentionCutoffs {
    /// For ended calls and received webhooks, in milliseconds since 1970.
    pub before_ms: UnixMs,
    /// The cutoffs of businesses with their own retention.
    pub of_business: BTreeMap<BusinessId, UnixMs>,
    /// For news of calls that never became known.
    pub early_before_ms: UnixMs,
    /// For providers' responses to creates.
    pub answers_before_ms: UnixMs,
}

impl RetentionCutoffs {
    /// One cut-off for all businesses.
    pub fn of_all(before_ms: UnixMs, early_before_ms: UnixMs) -> Self {
        Self { before_ms, of_business: BTreeMap::new(), early_before_ms, answers_before_ms: before_ms }
    }

    /// Each cut-off with the rows it applies to: those of a business, and finally those of all others.
    pub(super) fn each(&self) -> Vec<(UnixMs, RetentionScope)> {
        let own = self.of_business.iter().map(|(business, before)| (*before, RetentionScope::Of(business.to_string())));
        let named = self.of_business.keys().map(ToString::to_string).collect();
        own.chain([(self.before_ms, RetentionScope::NotOf(named))]).collect()
    }
}

/// The businesses whose rows are selected.
#[derive(Debug, Clone)]
pub(super) enum RetentionScope {
    /// This business.
    Of(String),
    /// All but these.
    NotOf(Vec<String>),
}

/// A position in a list that is read in pages: by time, and by id for equal times.
pub type Cursor = (UnixMs, String);

/// An ended call. Its ids are unparsed: an invalid one must not block the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedCall {
    /// The call.
    pub id: String,
    /// The business.
    pub business: String,
    /// The time at which it ended.
    pub ended_at: UnixMs,
}

/// The part of a [`super::Store`] that deletes. It works in small steps, so that other writes get their turn.
#[async_trait]
pub trait Retention {
    /// Deletes expired data: ended calls with their ids, records, transcripts, settled webhooks and finished deliveries; settled
    /// webhooks and finished deliveries without a recorded call; rejections, finished runs, the audit log; numbers that were
    /// removed from a do-not-call list; news of calls that never became known; and providers' responses to creates. Of a webhook
    /// with a spooled body an empty row stays for a while, so that the spool deletes the file. Returns the number of deleted
    /// calls, webhooks, deliveries, rejections, audit entries, news and responses.
    async fn purge(&self, ages: &RetentionCutoffs) -> Result<u64>;

    /// Calls that ended after a position and until a time, at most `limit`.
    async fn ended_calls(&self, after: &Cursor, until_ms: UnixMs, limit: u32) -> Result<Vec<EndedCall>>;

    /// Redacts transcripts of ended calls: in utterances and records, with the bodies of settled and delivered webhooks, and the
    /// responses to their creates. Idempotent. Returns the number of changed utterances and records.
    async fn redact(&self, calls: &[String], keep: Privacy) -> Result<u64>;
}

const DIGEST: &str = "sha256:";

/// The part of a text that is kept.
pub fn text_kept(keep: Privacy, text: &str) -> String {
    match keep {
        Privacy::Keep => text.to_owned(),
        Privacy::Hash if is_digest(text) => text.to_owned(),
        Privacy::Hash => format!("{DIGEST}{}", sha256_hex(text.as_bytes())),
        Privacy::None => String::new(),
    }
}

/// The part of a record that is kept.
pub fn record_kept(keep: Privacy, found: PostCall) -> PostCall {
    let of_json = |value: Value| match value["digest"].as_str().is_some_and(is_digest) {
        true => value,
        false => json!({"digest": text_kept(Privacy::Hash, &value.to_string())}),
    };
    match keep {
        Privacy::Keep => found,
        Privacy::Hash => PostCall {
            transcript_summary: found.transcript_summary.map(|text| text_kept(keep, &text)),
            analysis_data: found.analysis_data.map(of_json),
            transcript_json: found.transcript_json.map(of_json),
            ..found
        },
        Privacy::None => PostCall { transcript_summary: None, analysis_data: None, transcript_json: None, ..found },
    }
}

/// Whether it was redacted before.
fn is_digest(text: &str) -> bool {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.strip_prefix(DIGEST).is_some_and(|rest| rest.len() == 64 && rest.bytes().all(hex))
}

/// A row that may be expired: its position, and whether it is kept.
pub(super) struct Old {
    pub(super) place: Cursor,
    pub(super) kept: bool,
}

/// The expired rows of a page, and the position of the next page; none after the last.
pub(super) fn page(rows: Vec<Old>, limit: u32) -> (Vec<String>, Option<Cursor>) {
    let next = rows.last().map(|row| row.place.clone()).filter(|_| rows.len() >= limit as usize);
    (rows.into_iter().filter(|row| !row.kept).map(|row| row.place.1).collect(), next)
}

/// The parts of a record with the transcript.
pub(super) struct SaidParts {
    pub(super) call: String,
    pub(super) summary: Option<String>,
    pub(super) analysis: Option<String>,
    pub(super) transcript: Option<String>,
}

impl SaidParts {
    /// The redacted parts; `None`: no change.
    pub(super) fn kept(&self, keep: Privacy) -> Option<Self> {
        // A value that is not JSON is treated as text.
        let value = |text: &Option<String>| {
            text.as_ref().map(|text| serde_json::from_str(text).unwrap_or_else(|_| Value::from(text.as_str())))
        };
        let found = PostCall {
            transcript_summary: self.summary.clone(),
            analysis_data: value(&self.analysis),
            transcript_json: value(&self.transcript),
            ..PostCall::default()
        };
        let kept = record_kept(keep, found.clone());
        let text = |value: Option<Value>| value.map(|value| value.to_string());
        (kept != found).then(|| Self {
            call: self.call.clone(),
            summary: kept.transcript_summary,
            analysis: text(kept.analysis_data),
            transcript: text(kept.transcript_json),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_is_kept_hashed_or_left_out() {
        let found = PostCall {
            transcript_summary: Some("They said hello.".to_owned()),
            analysis_data: Some(json!({"transcript_summary": "They said hello."})),
            transcript_json: Some(json!([{"message": "Hello"}])),
            metadata_json: Some(json!({"cost": 1})),
            cost: Some(1.0),
            ..PostCall::default()
        };
        assert_eq!(record_kept(Privacy::Keep, found.clone()), found);
        let hashed = record_kept(Privacy::Hash, found.clone());
        let text = serde_json::to_string(&hashed).unwrap();
        assert!(!text.contains("ello") && text.contains("sha256:"), "{text}");
        assert_eq!(record_kept(Privacy::Hash, found.clone()), hashed, "the same text has the same digest");
        assert_eq!(record_kept(Privacy::Hash, hashed.clone()), hashed, "a digest is not hashed again");
        assert_eq!((&hashed.metadata_json, hashed.cost), (&found.metadata_json, found.cost));
        let none = record_kept(Privacy::None, found.clone());
        assert_eq!(record_kept(Privacy::None, hashed), none, "nor kept where nothing is");
        assert_eq!((none.transcript_summary, none.analysis_data, none.transcript_json), (None, None, None));
        assert_eq!((none.metadata_json, none.cost), (found.metadata_json, found.cost));
    }
}
