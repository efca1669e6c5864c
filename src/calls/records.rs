//! Post-call records: what a provider tells of a call after its end, taken from its webhook, or asked for where that did not come.

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Response, StatusCode};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::lookup::LookedUpRecord;
use super::{AskError, Calls};
use crate::clock::{UnixMs, rfc3339};
use crate::ids::Alias;
use crate::lifecycle::finish;
use crate::provider::account::Account;
use crate::provider::description::PostCall;
use crate::provider::secret::Secret;
use crate::provider::sign::sha256_hex;
use crate::reply::{json_answer, problem};
use crate::store::{CallRecord, NewUtterance, Put, PutPostCall, Redact, Result, StoredPostCall};

/// Pauses between questions for one record, in seconds. After the last, what is there is all there will be.
pub const AGAIN_SECS: [i64; 8] = [30, 60, 120, 300, 600, 1800, 3600, 3600];
/// Calls of a process that did not run for longer than this are not asked about when it starts.
const LOOK_BACK_MS: i64 = 24 * 3_600_000;
/// A change may be on record so long after the time that it bears.
const LATE_MS: i64 = 60_000;
/// Ended calls that are looked through in one step.
const STEP: u32 = 500;
/// Records that are asked for in one step.
const ASKED_AT_ONCE: u32 = 20;

/// What is kept of what was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transcripts {
    /// All.
    #[default]
    Keep,
    /// Digests, by which two texts can be compared.
    Hash,
    /// Nothing.
    None,
}

/// Where events of our own go.
#[derive(Debug, Clone)]
pub struct OwnEvents {
    /// The app's URL.
    pub url: http::Uri,
    /// What they are signed with (see [`crate::provider::sign::sign_standard`]).
    pub secret: Secret,
}

impl Transcripts {
    /// What becomes of what was said once its call is over.
    fn redaction(self) -> Option<Redact> {
        match self {
            Self::Keep => None,
            Self::Hash => Some(|text| format!("sha256:{}", sha256_hex(text.as_bytes()))),
            Self::None => Some(|_| String::new()),
        }
    }

    /// What may be kept of a record.
    fn kept(self, found: PostCall) -> PostCall {
        let digest = |text: &str| format!("sha256:{}", sha256_hex(text.as_bytes()));
        let of_json = |value: Value| json!({"digest": digest(&value.to_string())});
        match self {
            Self::Keep => found,
            Self::Hash => PostCall {
                transcript_summary: found.transcript_summary.as_deref().map(digest),
                analysis_data: found.analysis_data.map(of_json),
                transcript_json: found.transcript_json.map(of_json),
                ..found
            },
            Self::None => PostCall { transcript_summary: None, analysis_data: None, transcript_json: None, ..found },
        }
    }
}

/// How far the search for calls without a record has come.
#[derive(Debug, Default)]
pub struct Searched {
    /// Of those that ended until then all have a record, or one is expected.
    until_ms: Option<UnixMs>,
}

impl Calls {
    /// The account that a call's record is asked of: the first that knows it by an id that it has.
    fn record_account<'a>(&'a self, record: &CallRecord) -> Option<&'a Account> {
        let tells = |account: &Account| {
            let lookup = account.provider.lookup.as_ref().filter(|lookup| lookup.record.is_some());
            lookup.is_some_and(|lookup| record.alias(&lookup.needs).is_some())
        };
        self.accounts_of(record).into_iter().map(|account| &**account).find(|account| tells(account))
    }

    /// Takes up what an account's webhook told of a call that is over. Where another account is to be asked for its record, that
    /// one's word counts.
    ///
    /// # Errors
    /// The store failed.
    pub async fn told(&self, record: &CallRecord, by: &Account, found: PostCall, complete: bool) -> Result<()> {
        if self.record_account(record).is_some_and(|account| account.name != by.name) {
            return Ok(());
        }
        let wait_ms = i64::try_from(self.settings.record_wait.as_millis()).unwrap_or(i64::MAX);
        let due_at = self.lifecycle.clock.now_ms().saturating_add(wait_ms);
        let put = self.put_record(record, by, found, complete, "webhook", Some(due_at)).await?;
        if put == Put::Complete {
            self.lifecycle.metrics.record(by.name.as_str(), "webhook");
        }
        Ok(())
    }

    async fn put_record(
        &self,
        record: &CallRecord,
        account: &Account,
        found: PostCall,
        complete: bool,
        by: &'static str,
        due_at: Option<UnixMs>,
    ) -> Result<Put> {
        if complete && self.settings.transcripts == Transcripts::Keep {
            self.fill_transcript(record, account, &found).boxed().await?;
        }
        let put = PutPostCall {
            call: record.id.clone(),
            found: self.settings.transcripts.kept(found),
            complete,
            by,
            at_ms: self.lifecycle.clock.now_ms(),
            due_at,
            tell: self.lifecycle.tell,
        };
        let put = self.lifecycle.store.put_post_call(put).await?;
        if put != Put::NoCall {
            self.lifecycle.hub.ring(&record.id);
        }
        Ok(put)
    }

    /// Puts what was said on record turn by turn, if nobody told it while the call was up. Done again it changes nothing.
    async fn fill_transcript(&self, record: &CallRecord, account: &Account, found: &PostCall) -> Result<()> {
        let (store, id) = (&self.lifecycle.store, &record.id);
        let (Some(rules), Some(list)) = (&account.provider.turns, &found.transcript_json) else { return Ok(()) };
        let first = format!("{id}:turn:1");
        let has = store.utterances(id, 0, 1).await?;
        if has.iter().any(|one| one.event_id != first) {
            return Ok(());
        }
        let length_ms = found.call_duration_seconds.map(|secs| secs.saturating_mul(1000));
        let began_at = found.call_end_time.zip(length_ms).map(|(end, length)| end.saturating_sub(length));
        let began_at = began_at.or(record.answered_at).unwrap_or(record.admitted_at);
        for (n, turn) in (1..).zip(rules.read(list)) {
            // Within bounds that it fits.
            let after_ms = turn.secs.map_or(0, |secs| (secs * 1000.0) as i64);
            let said = NewUtterance {
                event_id: format!("{id}:turn:{n}"),
                speaker: turn.speaker,
                text: turn.text,
                said_at: rfc3339(began_at.saturating_add(after_ms)),
                source_sequence: None,
                at_ms: self.lifecycle.clock.now_ms(),
            };
            store.say(id, said).await?;
        }
        Ok(())
    }

    /// Asks for a call's record and takes it up.
    async fn ask_record(&self, record: &CallRecord, by: &'static str, due_at: Option<UnixMs>) -> Asked {
        let Some(account) = self.record_account(record) else { return Asked::NoWay };
        match self.look_up_record(account, record).await {
            Ok(LookedUpRecord::Found(found, complete)) => {
                match self.put_record(record, account, *found, complete, by, due_at).await {
                    Ok(put) => {
                        if put == Put::Complete {
                            self.lifecycle.metrics.record(account.name.as_str(), "asked");
                            info!(call = %record.id, account = %account.name, by, "a call's record was fetched");
                        }
                        Asked::Kept
                    }
                    Err(error) => Asked::Store(error),
                }
            }
            Ok(LookedUpRecord::Absent) => Asked::Absent,
            Err(AskError::NoWay(..)) => Asked::NoWay,
            Err(error) => Asked::Failed(error.to_string()),
        }
    }

    /// Looks for calls whose record is missing [`super::Settings::record_wait`] after their end, and asks for those that are due:
    /// some at a time, each a few times. For one process at a time; that two do it harms nothing.
    ///
    /// # Errors
    /// The store failed.
    pub async fn seek_records(&self, searched: &mut Searched) -> Result<()> {
        let store = &self.lifecycle.store;
        let now_ms = self.lifecycle.clock.now_ms();
        let wait_ms = i64::try_from(self.settings.record_wait.as_millis()).unwrap_or(i64::MAX);
        let until_ms = now_ms.saturating_sub(wait_ms);
        let from_ms = searched.until_ms.unwrap_or(until_ms - LOOK_BACK_MS);
        let missing = store.unrecorded(from_ms - LATE_MS, until_ms, STEP).await?;
        let is_step = missing.len() >= STEP as usize;
        let last_ms = missing.last().map_or(until_ms, |(_, ended_at)| *ended_at);
        if !missing.is_empty() {
            store.expect_post_calls(missing.into_iter().map(|(call, _)| call).collect(), now_ms).await?;
        }
        searched.until_ms = Some(if is_step { last_ms } else { until_ms });
        for (call, tries) in store.due_post_calls(now_ms, ASKED_AT_ONCE).await? {
            let Some(record) = store.call(&call).await? else {
                store.missed_post_call(&call, "its call is forgotten", None).await?;
                continue;
            };
            let again = AGAIN_SECS.get(tries as usize).map(|secs| now_ms + secs * 1000);
            let (why, again) = match Box::pin(self.ask_record(&record, "poll", again)).await {
                Asked::Kept => continue,
                // One that cannot be written must not keep the others from their turn.
                Asked::Store(error) if store.ping().await.is_ok() => (error.to_string(), again),
                Asked::Store(error) => return Err(error),
                Asked::NoWay => ("nobody can be asked for it".to_owned(), None),
                Asked::Absent => ("the provider has no record of it".to_owned(), again),
                Asked::Failed(why) => (why, again),
            };
            if again.is_none() {
                self.lifecycle.metrics.record(record.facts.account.as_str(), "missing");
                warn!(%call, why, "a call's record is missing");
            }
            store.missed_post_call(&call, &why, again).await?;
        }
        Ok(())
    }

    /// Where what was said is not to be kept, takes it off the record [`super::Settings::record_wait`] after its call's end: until
    /// then who follows the call can read it.
    ///
    /// # Errors
    /// The store failed.
    pub async fn redact(&self) -> Result<()> {
        let Some(redact) = self.settings.transcripts.redaction() else { return Ok(()) };
        let wait_ms = i64::try_from(self.settings.record_wait.as_millis()).unwrap_or(i64::MAX);
        let until_ms = self.lifecycle.clock.now_ms().saturating_sub(wait_ms);
        while self.lifecycle.store.redact(until_ms, redact).await? > 0 {}
        Ok(())
    }

    /// The answer to `POST /conversations/{conversation_id}/fetch`: fetches what a lost webhook would have brought. `sees` says
    /// whether the caller may see a business. A client that goes away changes nothing.
    pub async fn fetch_conversation(&self, id: &str, sees: impl Fn(&str) -> bool + Send) -> Response<Bytes> {
        let unknown = || problem(StatusCode::NOT_FOUND, "CALL_NOT_FOUND", "No call of this conversation is on record.");
        let failed = |error: crate::store::StoreError| {
            warn!(%error, "a conversation could not be fetched");
            problem(StatusCode::SERVICE_UNAVAILABLE, "STORE_UNAVAILABLE", "The record does not answer; try again.")
        };
        let Some(alias) = Alias::new("conversation_id", id) else { return unknown() };
        let record = match self.lifecycle.store.resolve(&[alias]).await {
            Ok(Some(call)) => self.lifecycle.store.call(&call).await,
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        let record = match record {
            Ok(Some(record)) if sees(record.facts.business.as_str()) => record,
            Ok(_) => return unknown(),
            Err(error) => return failed(error),
        };
        let (this, call) = (self.clone(), record.id.clone());
        let asked = finish(async move {
            let again = this.lifecycle.clock.now_ms() + AGAIN_SECS[0] * 1000;
            this.ask_record(&record, "operator", Some(again)).await
        });
        let provider = |why: &str| problem(StatusCode::BAD_GATEWAY, "PROVIDER_FAILED", why);
        match Box::pin(asked).await {
            Ok(Asked::Kept) => match self.lifecycle.store.post_call(&call).await {
                Ok(kept) => json_answer(
                    StatusCode::OK,
                    &json!({"conversation_id": id, "callId": call, "record": kept.as_ref().map(shown)}),
                ),
                Err(error) => failed(error),
            },
            Ok(Asked::Absent) => {
                problem(StatusCode::NOT_FOUND, "CALL_NOT_FOUND", "The provider has no record of this conversation.")
            }
            Ok(Asked::NoWay) => {
                provider("The account of this call cannot be asked: it has no credentials in the config.")
            }
            Ok(Asked::Failed(why)) => provider(&why),
            Ok(Asked::Store(error)) => failed(error),
            Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, "FAILED", &error.to_string()),
        }
    }
}

/// What came of a question.
enum Asked {
    Kept,
    Absent,
    NoWay,
    Failed(String),
    Store(crate::store::StoreError),
}

/// A record as its reader sees it.
pub fn shown(kept: &StoredPostCall) -> Value {
    let mut shown = serde_json::to_value(&kept.found).unwrap_or_default();
    let times = [("recorded_at", kept.recorded_at), ("asked_again_at", kept.due_at)];
    for (name, at) in times {
        shown[name] = json!(at.map(crate::clock::rfc3339));
    }
    shown["complete"] = json!(kept.recorded_at.is_some());
    shown["recorded_by"] = json!(kept.recorded_by);
    shown["last_error"] = json!(kept.last_error);
    shown
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
        assert_eq!(Transcripts::Keep.kept(found.clone()), found);
        let hashed = Transcripts::Hash.kept(found.clone());
        let text = serde_json::to_string(&hashed).unwrap();
        assert!(!text.contains("ello") && text.contains("sha256:"), "{text}");
        assert_eq!(Transcripts::Hash.kept(found.clone()), hashed, "the same text has the same digest");
        assert_eq!((&hashed.metadata_json, hashed.cost), (&found.metadata_json, found.cost));
        let none = Transcripts::None.kept(found.clone());
        assert_eq!((none.transcript_summary, none.analysis_data, none.transcript_json), (None, None, None));
        assert_eq!((none.metadata_json, none.cost), (found.metadata_json, found.cost));
    }
}
