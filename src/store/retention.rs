//! What is kept, and for how long: what is forgotten in time, and what becomes of what was said.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::Result;
use crate::clock::UnixMs;
use crate::ids::BusinessId;
use crate::policy::Privacy;
use crate::provider::description::PostCall;
use crate::provider::sign::sha256_hex;

/// What is older than this is forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RetentionCutoffs {
    /// What ended, or came, before.
    pub before_ms: UnixMs,
    /// The same for what belongs to a business that has an age of its own.
    pub of_business: BTreeMap<BusinessId, UnixMs>,
    /// News that no call claimed and that came before.
    pub early_before_ms: UnixMs,
    /// Providers' answers to creates that came before.
    pub answers_before_ms: UnixMs,
}

impl RetentionCutoffs {
    /// One age for all.
    pub fn of_all(before_ms: UnixMs, early_before_ms: UnixMs) -> Self {
        Self { before_ms, of_business: BTreeMap::new(), early_before_ms, answers_before_ms: before_ms }
    }

    /// The rows that each age is for: those of a business, and at last those of all others.
    pub(super) fn each(&self) -> Vec<(UnixMs, RetentionScope)> {
        let own = self.of_business.iter().map(|(business, before)| (*before, RetentionScope::Of(business.to_string())));
        let named = self.of_business.keys().map(ToString::to_string).collect();
        own.chain([(self.before_ms, RetentionScope::NotOf(named))]).collect()
    }
}

/// RetentionScope rows are looked for.
#[derive(Debug, Clone)]
pub(super) enum RetentionScope {
    /// Those of this business.
    Of(String),
    /// Those of all but these.
    NotOf(Vec<String>),
}

/// A place in a list that is read on from there: by time, and by id where times are equal.
pub type Cursor = (UnixMs, String);

/// A call that is over. Its ids are as they stand: one that cannot be read keeps no other from its turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedCall {
    /// The call.
    pub id: String,
    /// RetentionScope.
    pub business: String,
    /// When it ended.
    pub ended_at: UnixMs,
}

/// The part of a [`super::Store`] that forgets. All goes little by little: other writes get their turn.
#[async_trait]
pub trait Retention {
    /// Forgets what is older than its age: ended calls with their ids, records, transcripts, settled webhooks and finished
    /// deliveries; settled webhooks and finished deliveries of no call that is on record; refusals, runs that are over, the audit; numbers that were
    /// taken off a do-not-call list; news that no call
    /// claimed; and providers' answers to creates. Of a webhook whose body is in a spool an empty row stays for a while, which tells the spool that the file must go.
    /// Returns how many rows went: of calls, webhooks, deliveries, refusals, acts, news and answers.
    async fn purge(&self, ages: &RetentionCutoffs) -> Result<u64>;

    /// Calls that ended after a place in their list and until a time, the first `limit` of them.
    async fn ended_calls(&self, after: &Cursor, until_ms: UnixMs, limit: u32) -> Result<Vec<EndedCall>>;

    /// Takes what is not to be kept of what was said off ended calls: out of their utterances and records, and with the bodies of
    /// their webhooks that are settled and delivered; and the answers to their creates. Done again it changes nothing. Returns how many utterances and records changed.
    async fn redact(&self, calls: &[String], keep: Privacy) -> Result<u64>;
}

const DIGEST: &str = "sha256:";

/// What is kept of a text.
pub fn text_kept(keep: Privacy, text: &str) -> String {
    match keep {
        Privacy::Keep => text.to_owned(),
        Privacy::Hash if is_digest(text) => text.to_owned(),
        Privacy::Hash => format!("{DIGEST}{}", sha256_hex(text.as_bytes())),
        Privacy::None => String::new(),
    }
}

/// What is kept of a record.
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

/// It was redacted before.
fn is_digest(text: &str) -> bool {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.strip_prefix(DIGEST).is_some_and(|rest| rest.len() == 64 && rest.bytes().all(hex))
}

/// A row that may be past its age: where it stands, and whether it is kept all the same.
pub(super) struct Old {
    pub(super) place: Cursor,
    pub(super) kept: bool,
}

/// A page of a list, read: what of it is forgotten, and from where the list goes on; nowhere after the last page.
pub(super) fn page(rows: Vec<Old>, limit: u32) -> (Vec<String>, Option<Cursor>) {
    let next = rows.last().map(|row| row.place.clone()).filter(|_| rows.len() >= limit as usize);
    (rows.into_iter().filter(|row| !row.kept).map(|row| row.place.1).collect(), next)
}

/// The parts of a record that say what was said.
pub(super) struct SaidParts {
    pub(super) call: String,
    pub(super) summary: Option<String>,
    pub(super) analysis: Option<String>,
    pub(super) transcript: Option<String>,
}

impl SaidParts {
    /// What is kept of them; `None`: they are as they should be.
    pub(super) fn kept(&self, keep: Privacy) -> Option<Self> {
        // What is no JSON is a text like any other.
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
