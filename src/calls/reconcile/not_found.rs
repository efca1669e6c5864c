//! Our calls that are missing from a provider's list, that are due, or whose outcome is unknown: each is looked up.

use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt as _;
use tracing::{debug, info, warn};

use super::{Sweeper, Unread, log};
use crate::call::{EndProof, Event, Origin, Outcome, Phase, Source, Step};
use crate::calls::AskError;
use crate::calls::provider_client::lookup::{CREATED_BEFORE_MS, FoundCall, ListedCall, LookedUp};
use crate::clock::{UnixMs, as_ms, rfc3339};
use crate::failpoint;
use crate::provider::account::Account;
use crate::store::{ApplyOutcome, CallRecord, Change, Result};

/// Calls that are looked up in one sweep while the list of live calls cannot be read.
const ASKED_WITHOUT_LIST: usize = 32;

/// The longest call of an account that was removed from the config, in seconds: the most that Twilio allows
/// (<https://www.twilio.com/docs/voice/api/call-resource>, `TimeLimit`).
const LONGEST_CALL_SECS: u64 = 24 * 60 * 60;

/// The outcome of looking up one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AskResult {
    /// The record was read, or there is none.
    Read,
    /// The provider's answer cannot be parsed.
    Unread,
    /// The provider did not answer, or returned an error.
    Failed,
}

impl Sweeper {
    /// Handles a call of ours that the list lacks: its own record decides.
    ///
    /// Where that record cannot be read, the list decides, if the provider's count equals the `listed` calls.
    pub(super) async fn handle_unlisted(&mut self, call: &CallRecord, listed: usize) {
        if !self.is_askable_by_age(call) {
            return;
        }
        if self.ask_about(call).boxed().await == AskResult::Unread
            && let Ok(counted) = self.calls.provider.count_live(&self.account).await
            && counted.is_some_and(|counted| counted == listed)
        {
            self.handle_not_found(call).boxed().await;
        }
    }

    /// Without a list: looks up some of the calls that were seen longest ago.
    pub(super) async fn ask_without_list(&mut self, mut calls: Vec<&CallRecord>) {
        calls.retain(|call| self.is_askable_by_age(call));
        calls.sort_by_key(|call| call.seen_at);
        for call in calls.into_iter().take(ASKED_WITHOUT_LIST) {
            self.ask_about(call).boxed().await;
        }
    }

    fn is_askable_by_age(&self, call: &CallRecord) -> bool {
        call.phase_at + as_ms(self.calls.settings.list_lag) <= self.calls.lifecycle.clock.now_ms()
    }

    /// Looks up one call and applies its record.
    pub(super) async fn ask_about(&mut self, call: &CallRecord) -> AskResult {
        match self.calls.provider.look_up(call).await {
            Ok(LookedUp::Found(found)) => {
                failpoint::hit("sweep.asked").await;
                self.unread.remove(&call.id);
                self.apply_found(call, found).boxed().await;
                AskResult::Read
            }
            Ok(LookedUp::Absent) => {
                self.unread.remove(&call.id);
                self.handle_not_found(call).boxed().await;
                AskResult::Read
            }
            Err(error) => {
                self.cannot_read(call, &error);
                if matches!(error, AskError::Unreadable(_)) { AskResult::Unread } else { AskResult::Failed }
            }
        }
    }

    /// Notes that a call's state could not be read. If that lasts, an operator has to know.
    pub(super) fn cannot_read(&mut self, call: &CallRecord, error: &AskError) {
        if matches!(error, AskError::CannotQuery(..) | AskError::Missing(_)) {
            return debug!(call = %call.id, %error, "failed to look up a call");
        }
        let now_ms = self.calls.lifecycle.clock.now_ms();
        let unread = self.unread.entry(call.id.clone()).or_insert_with(|| Unread::new(now_ms));
        unread.why = error.to_string();
        debug!(call = %call.id, %error, "failed to read the state of a call");
        let alarm_ms = as_ms(self.calls.settings.unreadable_alarm);
        if unread.since_ms + alarm_ms <= now_ms && !std::mem::replace(&mut unread.is_alarming, true) {
            let account = self.account.name.as_str();
            let since = rfc3339(unread.since_ms);
            warn!(call = %call.id, account, since, %error, "state of a call unreadable for too long; its slot is held: `ringfence calls release` frees it");
        }
    }

    async fn apply_found(&mut self, call: &CallRecord, found: FoundCall) {
        self.not_found_since.remove(&call.id);
        let change = found.change(call.phase, self.calls.lifecycle.change(&call.id, Source::Poll));
        let change = Change { unsettled: Some(false), ..change };
        self.note_end(self.calls.lifecycle.apply(change).await);
    }

    fn note_end(&mut self, applied: Result<Option<ApplyOutcome>>) {
        if let Ok(Some(ApplyOutcome { step: Step::End(..), .. })) = &applied {
            self.did.ended += 1;
        }
        log(applied);
    }

    /// Handles a provider's "no such call". Twice, far enough apart, it proves the end.
    pub(super) async fn handle_not_found(&mut self, call: &CallRecord) {
        let now_ms = self.calls.lifecycle.clock.now_ms();
        let apart_ms = as_ms(self.calls.settings.not_found_confirm);
        let due = call.deadline_at.is_some_and(|at| at <= now_ms);
        if call.phase_at + as_ms(self.calls.settings.list_lag) > now_ms {
            // Too young: the provider's records may lag.
            return;
        }
        if self.may_be_carried_out(call, now_ms) || self.calls.is_joined(&call.id) {
            return;
        }
        if call.absent_at.is_none() {
            self.not_found_since.remove(&call.id);
        }
        let since = self.not_found_since.entry(call.id.clone()).or_insert_with(Instant::now).elapsed();
        let is_confirmed = |first: UnixMs| first + apart_ms <= now_ms && since >= self.calls.settings.not_found_confirm;
        match call.absent_at {
            Some(first) if is_confirmed(first) && (due || self.absence_proves(call)) => {
                self.end_by_deadline(call, self.outcome_of_absent(call)).await;
            }
            Some(_) => {}
            None => {
                let change = Change { absent: Some(true), ..self.calls.lifecycle.change(&call.id, Source::Poll) };
                log(self.calls.lifecycle.apply(change).await);
                failpoint::hit("sweep.absent").await;
            }
        }
    }

    /// Whether the provider may still carry the create out: the exchange may still be open. An earlier owner of the store is gone,
    /// and its exchanges with it; a replica that is silent may only have lost the store.
    fn may_be_carried_out(&self, call: &CallRecord, now_ms: UnixMs) -> bool {
        let settings = &self.calls.settings;
        let admission = &self.calls.lifecycle.admission;
        call.phase == Phase::Reserved
            && call.origin == Origin::Create
            && !call.exchange_over
            && now_ms < call.admitted_at + settings.exchange_ms()
            && (admission.is_shared() || !admission.is_orphaned(call))
    }

    /// The outcome of a call that its provider does not have. A create that succeeded made a call, unless its operation may make
    /// none: the responses of those have no id that a look-up accepts.
    fn outcome_of_absent(&self, call: &CallRecord) -> Outcome {
        let always_calls = || {
            let provider = self.calls.account(&call.attributes.account).map(|account| &account.provider);
            let operation = provider.and_then(|provider| provider.operation(&call.attributes.operation));
            let looks_up = |kind| self.calls.accounts_of(call).iter().any(|account| account.provider.looks_up(kind));
            operation.is_some_and(|operation| operation.ids.kinds().any(looks_up))
        };
        if call.phase == Phase::Reserved || (call.unsettled && !always_calls()) {
            Outcome::NotCreated
        } else {
            Outcome::Failed
        }
    }

    /// Whether "no such call" proves anything before the deadline: an account that ends calls by deleting their record may have
    /// deleted the record of a call that continues.
    fn absence_proves(&self, call: &CallRecord) -> bool {
        let deletes = |a: &Account| {
            a.hang_up_methods.iter().any(|m| a.provider.hang_up_methods.get(m).is_some_and(|t| t.deletes_record))
        };
        let askable = self.askable(call);
        askable.is_empty() || askable.into_iter().any(|a| !deletes(a))
    }

    /// The accounts that can look the call up by an id that it has there.
    pub(super) fn askable(&self, call: &CallRecord) -> Vec<&Arc<Account>> {
        let knows = |a: &Account| a.provider.lookup.as_ref().is_some_and(|l| call.alias(&l.needs).is_some());
        self.calls.accounts_of(call).into_iter().filter(|a| a.can_ask() && knows(a)).collect()
    }

    /// Marks a create as unsettled if its replica died between its record and its response. Returns whether it did.
    async fn mark_if_orphaned(&self, call: &CallRecord) -> bool {
        let is_reserved = call.phase == Phase::Reserved && call.origin == Origin::Create && !call.unsettled;
        if !is_reserved || !self.calls.lifecycle.admission.is_orphaned(call) {
            return false;
        }
        let change = Change { unsettled: Some(true), ..self.calls.lifecycle.change(&call.id, Source::Create) };
        log(self.calls.lifecycle.apply(change).await);
        true
    }

    /// Looks up a call that is past its deadline, or whose create is unknown; where it cannot be looked up it ends at its
    /// deadline.
    pub(super) async fn reconcile_if_due(&mut self, call: &CallRecord) {
        let now_ms = self.calls.lifecycle.clock.now_ms();
        let due = call.deadline_at.is_some_and(|at| at <= now_ms);
        // A lost response is looked up at once: the app may be waiting. That the provider's lists lag does not matter, as two
        // look-ups far apart are needed to prove that there is no call.
        if !due && !call.unsettled && call.absent_at.is_none() && !self.mark_if_orphaned(call).boxed().await {
            return;
        }
        if !self.askable(call).is_empty() {
            let outlived = due && call.slots == 1 && call.admitted_at + self.longest_call_ms(call) <= now_ms;
            let asked = self.ask_about(call).boxed().await;
            if due && !call.counts() && asked != AskResult::Read {
                info!(call = %call.id, "unconfirmed call not found at any provider; closed");
                self.end_by_deadline(call, Outcome::Failed).await;
            } else if asked == AskResult::Unread && outlived {
                warn!(call = %call.id, "state of a call unreadable and past the provider's longest call; slot released");
                self.end_by_deadline(call, Outcome::Failed).await;
            }
        } else if call.origin == Origin::Create && self.search(call).boxed().await {
            // Found, noted as absent, or to be retried.
        } else if due && matches!(call.origin, Origin::Foreign | Origin::Unconfirmed) && call.polled {
            info!(call = %call.id, "unconfirmed call cannot be looked up; closed");
            self.end_by_deadline(call, Outcome::Failed).await;
        } else if due && call.slots == 1 && call.admitted_at + self.longest_call_ms(call) <= now_ms {
            info!(call = %call.id, "call cannot be looked up and is past the provider's longest call; slot released");
            self.end_by_deadline(call, Outcome::Failed).await;
        }
    }

    /// Ends a call for which no provider has proof, unless there was news of it since it was read.
    async fn end_by_deadline(&mut self, call: &CallRecord, outcome: Outcome) {
        let change = Change {
            event: Some(Event::Ended(outcome, EndProof::Deadline)),
            if_seen_at: Some(call.seen_at),
            ..self.calls.lifecycle.change(&call.id, Source::Poll)
        };
        self.note_end(self.calls.lifecycle.apply(change).await);
    }

    /// The longest that the call can last, in milliseconds.
    fn longest_call_ms(&self, call: &CallRecord) -> i64 {
        let account = self.calls.account(&call.attributes.account);
        let secs = account.map_or(LONGEST_CALL_SECS, |account| account.provider.longest_call_secs);
        i64::try_from(secs).unwrap_or(i64::MAX / 1000).saturating_mul(1000)
    }

    /// Searches the provider for the call of a lost response. `false`: it can never be searched for.
    pub(super) async fn search(&mut self, call: &CallRecord) -> bool {
        let Some(account) = self.calls.account(&call.attributes.account) else { return false };
        let found = match self.calls.provider.find(account, call).await {
            Ok(found) => found,
            Err(AskError::CannotQuery(..) | AskError::Missing(_)) => return false,
            Err(error) => {
                self.cannot_read(call, &error);
                return true;
            }
        };
        self.unread.remove(&call.id);
        for one in found {
            match self.calls.lifecycle.store.resolve(std::slice::from_ref(&one.alias)).await {
                Ok(Some(known)) if known != call.id => continue,
                Ok(_) => {}
                failed @ Err(_) => {
                    log(failed);
                    return true;
                }
            }
            info!(call = %call.id, "call of a lost create response found at the provider");
            self.did.found += 1;
            let change = Change {
                event: one.event,
                bind: vec![one.alias],
                absent: Some(false),
                unsettled: Some(false),
                ..self.calls.lifecycle.change(&call.id, Source::Poll)
            };
            failpoint::hit("sweep.found").await;
            let applied = self.calls.lifecycle.apply(change).await;
            failpoint::hit("sweep.bound").await;
            match applied {
                // Its record has its other ids, by which it is known elsewhere.
                Ok(Some(applied)) if applied.record.phase != Phase::Ended => {
                    self.ask_about(&applied.record).boxed().await;
                }
                applied => log(applied),
            }
            return true;
        }
        self.handle_not_found(call).boxed().await;
        true
    }
}

/// Whether a listed call may be the one that a create made.
pub(super) fn may_be_call_of(create: &CallRecord, one: &ListedCall) -> bool {
    let (to, seen) = (&create.attributes.other_number, &one.attributes.other_number);
    let elsewhere = to.is_some() && seen.is_some() && to != seen;
    let older = one.created_at.is_some_and(|at| at + CREATED_BEFORE_MS < create.admitted_at);
    create.attributes.direction == one.direction && !elsewhere && !older
}
