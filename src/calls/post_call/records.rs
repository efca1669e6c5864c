//! Post-call records: what a provider reports after a call's end, by its webhook, or fetched where the webhook did not arrive.

use std::sync::Arc;

use futures_util::FutureExt as _;
use tracing::{info, warn};

use super::fetches::{FetchResult, Fetches};
use crate::call::{Event, Phase, Source};
use crate::calls::context::Context;
use crate::calls::provider_client::lookup::LookedUpRecord;
use crate::calls::provider_client::{AskError, ProviderClient};
use crate::clock::{UnixMs, as_ms, rfc3339};
use crate::ids::{BusinessId, CallId};
use crate::metrics::RecordSource;
use crate::policy::{Privacies, Privacy};
use crate::provider::account::Account;
use crate::provider::description::{Completeness, PostCall};
use crate::store::{CallRecord, Change, Cursor, NewUtterance, PutOutcome, PutPostCall, Result, record_kept, text_kept};

/// Pauses between fetches of one record, in seconds. After the last one the record counts as complete.
pub const RETRY_DELAYS_SECS: [i64; 8] = [30, 60, 120, 300, 600, 1800, 3600, 3600];
/// Calls that ended longer ago than this, while no process ran, are not fetched at the start, in milliseconds.
const LOOK_BACK_MS: i64 = 24 * 3_600_000;
/// The time after its own time stamp within which a change may be recorded, in milliseconds.
const LATE_MS: i64 = 60_000;
/// Ended calls that are searched in one step.
const SEARCHED_PER_STEP: u32 = 500;
/// Records that are fetched in one step.
const ASKED_AT_ONCE: u32 = 20;
/// Ended calls that are redacted in one write, and writes in one step.
const REDACTED_PER_WRITE: u32 = 100;
const WRITES_PER_STEP: u32 = 50;

/// Progress of the search for calls without a record.
#[derive(Debug, Default)]
pub struct Searched {
    /// All calls that ended before have a record, or one is scheduled.
    until_ms: Option<UnixMs>,
}

/// Progress of redaction.
#[derive(Debug, Default)]
pub struct Redacted {
    /// The privacy settings that it was done by.
    by: Privacies,
    /// All calls that ended before are redacted.
    until: Cursor,
}

/// Post-call records: see the module. `fetches` outlives a reload.
pub struct PostCallRecords {
    pub(super) context: Arc<Context>,
    provider: Arc<ProviderClient>,
    pub(super) fetches: Fetches,
}

impl PostCallRecords {
    pub(in crate::calls) fn new(context: Arc<Context>, provider: Arc<ProviderClient>, fetches: Fetches) -> Self {
        Self { context, provider, fetches }
    }

    /// The account that a call's record is fetched from: the first that knows the call by an id.
    fn record_account<'a>(&'a self, record: &CallRecord) -> Option<&'a Account> {
        let tells = |account: &Account| {
            let lookup = account.provider.lookup.as_ref().filter(|lookup| lookup.record.is_some());
            lookup.is_some_and(|lookup| record.alias(&lookup.needs).is_some())
        };
        self.context.accounts_of(record).into_iter().map(|account| &**account).find(|account| tells(account))
    }

    /// Stores what an account's webhook reported of an ended call. If its record has to be fetched from another account, that
    /// account's record wins.
    ///
    /// # Errors
    /// The store failed.
    pub async fn store_reported(
        &self,
        record: &CallRecord,
        by: &Account,
        found: PostCall,
        complete: Completeness,
    ) -> Result<()> {
        if self.record_account(record).is_some_and(|account| account.name != by.name) {
            return Ok(());
        }
        let wait_ms = as_ms(self.context.settings.record_fetch_after);
        let due_at = self.context.lifecycle.clock.now_ms().saturating_add(wait_ms);
        let put = self.put_record(record, by, found, complete, Source::Webhook, Some(due_at)).await?;
        if put == PutOutcome::Complete {
            self.context.lifecycle.metrics.record(&by.name, RecordSource::Webhook);
        }
        Ok(())
    }

    async fn put_record(
        &self,
        record: &CallRecord,
        account: &Account,
        found: PostCall,
        complete: Completeness,
        by: Source,
        due_at: Option<UnixMs>,
    ) -> Result<PutOutcome> {
        let keep = self.context.policy.privacies().of(&record.attributes.business);
        // After the last fetch, what was found is all that comes.
        let is_complete = complete == Completeness::Complete || due_at.is_none();
        if is_complete && keep == Privacy::Keep {
            self.fill_transcript(record, account, &found).boxed().await?;
        }
        let put = PutPostCall {
            call: record.id.clone(),
            found: record_kept(keep, found),
            complete: is_complete,
            by: by.as_str(),
            at_ms: self.context.lifecycle.clock.now_ms(),
            due_at,
            notice: self.context.lifecycle.notice,
        };
        let put = self.context.lifecycle.store.put_post_call(put).await?;
        if put != PutOutcome::NoCall {
            self.context.lifecycle.hub.notify(&record.id);
        }
        Ok(put)
    }

    /// Stores the transcript turn by turn, unless it was reported while the call was up. Idempotent.
    async fn fill_transcript(&self, record: &CallRecord, account: &Account, found: &PostCall) -> Result<()> {
        let (store, id) = (&self.context.lifecycle.store, &record.id);
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
            // The cast saturates.
            let after_ms = turn.secs.map_or(0, |secs| (secs * 1000.0) as i64);
            let said = NewUtterance {
                event_id: format!("{id}:turn:{n}"),
                speaker: turn.speaker,
                text: turn.text,
                said_at: rfc3339(began_at.saturating_add(after_ms)),
                source_sequence: None,
                source: None,
                at_ms: self.context.lifecycle.clock.now_ms(),
            };
            store.add_utterance(id, said).await?;
        }
        Ok(())
    }

    /// Fetches a call's record and stores it. Of a call that is open for us it also applies the end, if the provider reports one;
    /// while the provider says that the call is up, nothing changes.
    pub(super) async fn ask_record(&self, record: &CallRecord, by: Source, due_at: Option<UnixMs>) -> FetchResult {
        let Some(account) = self.record_account(record) else { return FetchResult::CannotQuery };
        let (found, complete, event) = match self.provider.look_up_record(account, record).await {
            Ok(LookedUpRecord::Found { record, complete, event }) => (record, complete, event),
            Ok(LookedUpRecord::Absent) => return FetchResult::Absent,
            Err(AskError::CannotQuery(..)) => return FetchResult::CannotQuery,
            Err(AskError::Limited { retry_after_secs }) => {
                let code = account.provider.refusal.provider_429_code.clone();
                return FetchResult::Limited { code, retry_after_secs };
            }
            Err(error) => return FetchResult::Failed(error.to_string()),
        };
        if record.phase != Phase::Ended {
            if !matches!(event, Some(Event::Ended(..))) {
                return FetchResult::StillUp;
            }
            // The end of a conversation is not the end of a call that its carrier still has.
            let by = Some(self.context.voucher(std::slice::from_ref(&account.name), None));
            let change = Change { event, by, ..self.context.lifecycle.change(&record.id, Source::Poll) };
            match self.context.lifecycle.apply(change).boxed().await {
                Err(error) => return FetchResult::Store(error),
                Ok(Some(applied)) if applied.ended_leg_only => return FetchResult::StillUp,
                Ok(_) => {}
            }
        }
        match self.put_record(record, account, *found, complete, by, due_at).await {
            Ok(put) => {
                if put == PutOutcome::Complete {
                    self.context.lifecycle.metrics.record(&account.name, RecordSource::Asked);
                    info!(call = %record.id, account = %account.name, %by, "post-call record fetched");
                }
                FetchResult::Kept
            }
            Err(error) => FetchResult::Store(error),
        }
    }

    /// Schedules calls whose record is missing [`CallSettings::record_fetch_after`](crate::calls::CallSettings::record_fetch_after) after their end,
    /// and fetches those that are due, some at a time, each a few times. Meant for one process at a time; two do no harm.
    ///
    /// # Errors
    /// The store failed.
    pub async fn seek_records(&self, searched: &mut Searched) -> Result<()> {
        let store = &self.context.lifecycle.store;
        let now_ms = self.context.lifecycle.clock.now_ms();
        let wait_ms = as_ms(self.context.settings.record_fetch_after);
        let until_ms = now_ms.saturating_sub(wait_ms);
        let from_ms = searched.until_ms.unwrap_or(until_ms - LOOK_BACK_MS);
        let missing = store.unrecorded(from_ms - LATE_MS, until_ms, SEARCHED_PER_STEP).await?;
        let is_step = missing.len() >= SEARCHED_PER_STEP as usize;
        let last_ms = missing.last().map_or(until_ms, |(_, ended_at)| *ended_at);
        if !missing.is_empty() {
            store.expect_post_calls(missing.into_iter().map(|(call, _)| call).collect(), now_ms).await?;
        }
        searched.until_ms = Some(if is_step { last_ms } else { until_ms });
        for (call, tries) in store.due_post_calls(now_ms, ASKED_AT_ONCE).await? {
            let Some(record) = store.call(&call).await? else {
                store.record_failed_fetch(&call, "its call was deleted", None).await?;
                continue;
            };
            let again = RETRY_DELAYS_SECS.get(tries as usize).map(|secs| now_ms + secs * 1000);
            let (why, again) = match Box::pin(self.ask_record(&record, Source::Poll, again)).await {
                FetchResult::Kept => continue,
                // A record that cannot be written must not block the others.
                FetchResult::Store(error) if store.ping().await.is_ok() => (error.to_string(), again),
                FetchResult::Store(error) => return Err(error),
                FetchResult::CannotQuery => ("no account can fetch it".to_owned(), None),
                FetchResult::Absent => ("the provider has no record of it".to_owned(), again),
                FetchResult::Failed(why) => (why, again),
                FetchResult::Limited { .. } => ("the provider limits requests".to_owned(), again),
                FetchResult::StillUp => ("the call is up".to_owned(), again),
            };
            if again.is_none() {
                self.context.lifecycle.metrics.record(&record.attributes.account, RecordSource::Missing);
                warn!(%call, why, "post-call record missing");
            }
            store.record_failed_fetch(&call, &why, again).await?;
        }
        Ok(())
    }

    /// Redacts transcripts that must not be kept, [`CallSettings::record_fetch_after`](crate::calls::CallSettings::record_fetch_after) after their
    /// call's end; until then clients that follow the call can read them. Transcripts stored under an earlier, laxer setting are
    /// redacted too: after a start and after each such change all ended calls are scanned once, in steps. Meant for one process
    /// at a time; two do no harm.
    ///
    /// # Errors
    /// The store failed.
    pub async fn redact(&self, redacted: &mut Redacted) -> Result<()> {
        let privacies = self.context.policy.privacies();
        if privacies.of_all() == Some(Privacy::Keep) {
            *redacted = Redacted::default();
            return Ok(());
        }
        if redacted.by != *privacies {
            *redacted = Redacted { by: privacies.clone(), until: Cursor::default() };
        }
        let until_ms = self.over_before_ms();
        let store = &self.context.lifecycle.store;
        // Recently ended calls are scanned again: their ends may be recorded late.
        let mut after = redacted.until.clone();
        for _ in 0..WRITES_PER_STEP {
            let page = store.ended_calls(&after, until_ms, REDACTED_PER_WRITE).await?;
            for keep in [Privacy::Hash, Privacy::None] {
                let kept = |business: &str| match BusinessId::parse(business) {
                    Ok(business) => redacted.by.of(&business),
                    Err(_) => redacted.by.strictest(),
                };
                let of = page.iter().filter(|call| kept(&call.business) == keep);
                let calls: Vec<String> = of.map(|call| call.id.clone()).collect();
                if !calls.is_empty() {
                    store.redact(&calls, keep).await?;
                }
            }
            let Some(last) = page.last() else { break };
            after = (last.ended_at, last.id.clone());
            redacted.until = after.clone().min((until_ms - LATE_MS, String::new()));
            if page.len() < REDACTED_PER_WRITE as usize {
                break;
            }
        }
        Ok(())
    }

    /// Calls that ended before this time are final: redaction applies to their transcripts.
    pub(super) fn over_before_ms(&self) -> UnixMs {
        let wait_ms = as_ms(self.context.settings.record_fetch_after);
        self.context.lifecycle.clock.now_ms().saturating_sub(wait_ms)
    }

    /// The part that may be kept of an utterance received after its call's end.
    ///
    /// # Errors
    /// The store failed.
    pub async fn text_kept_now(&self, call: &CallId, text: &str) -> Result<String> {
        let privacies = self.context.policy.privacies();
        let is_over = |record: &CallRecord| record.ended_at.is_some_and(|at| at <= self.over_before_ms());
        let keep = match privacies.of_all() {
            Some(Privacy::Keep) => Privacy::Keep,
            _ => match self.context.lifecycle.store.call(call).await? {
                Some(record) if is_over(&record) => privacies.of(&record.attributes.business),
                _ => Privacy::Keep,
            },
        };
        Ok(text_kept(keep, text))
    }

    /// Whether bodies that contain a call's transcript are deleted once they are not needed. For an unknown call: whether they
    /// are for any call.
    ///
    /// # Errors
    /// The store failed.
    pub async fn forgets_bodies(&self, call: Option<&CallId>) -> Result<bool> {
        let privacies = self.context.policy.privacies();
        let keep = match (privacies.of_all(), call) {
            (Some(same), _) => same,
            (None, None) => privacies.strictest(),
            (None, Some(call)) => match self.context.lifecycle.store.call(call).await? {
                Some(record) => privacies.of(&record.attributes.business),
                None => privacies.strictest(),
            },
        };
        Ok(keep != Privacy::Keep)
    }
}
