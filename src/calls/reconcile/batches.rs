//! Batches: a batch holds its slots until its provider's record says that it makes no more calls and none of its calls is live.
//! Neither time nor one answer alone releases them.

use futures_util::FutureExt as _;
use tracing::{info, warn};

use super::{FULL_LIST_EVERY, SEEN_EVERY_MS, Sweeper, UNBOUND_MS, log};
use crate::call::{EndProof, Event, Outcome, Phase, Source};
use crate::calls::AskError;
use crate::calls::provider_client::lookup::{FoundCall, ListedCall, LookedUpBatch};
use crate::clock::as_ms;
use crate::ids::Alias;
use crate::provider::account::Account;
use crate::provider::description::Group;
use crate::store::{CallRecord, Change};

/// The number of extra look-ups of a batch after the last of its calls ended.
const LOOK_UPS_AFTER_LAST_CALL: u32 = 10;

impl Sweeper {
    /// Whether a record is of a batch with a provider's id. A batch without one may still turn out to own an untracked call.
    pub(super) fn is_known_batch(&self, call: &CallRecord) -> bool {
        self.calls.group_of(call).is_some_and(|group| call.alias(&group.needs).is_some())
    }

    /// The open batch of ours that made this call.
    pub(super) async fn batch_of(&self, found: &FoundCall) -> Option<CallRecord> {
        let store = &self.calls.lifecycle.store;
        let batch = store.resolve(&found.member_of).await.ok()??;
        let record = store.call(&batch).await.ok()??;
        (record.phase != Phase::Ended).then_some(record)
    }

    /// Handles a live call of our batch: it takes no slot of its own. Its carrier lists it too, so it stays untracked for a
    /// while, until its record has the carrier's id.
    pub(super) fn meet_member(
        &self,
        one: &ListedCall,
        batch: &CallRecord,
        found: FoundCall,
        since_ms: i64,
    ) -> Result<(), AskError> {
        let carrier = batch.attributes.carrier.as_ref().and_then(|name| self.calls.account(name));
        let known_there = |carrier: &Account| {
            let listed_as = carrier.provider.list.as_ref().map(|list| list.id.kind.as_str());
            found.aliases.iter().any(|a| Some(a.kind.as_str()) == listed_as)
        };
        let unbound = carrier.is_some_and(|carrier| !known_there(carrier));
        if unbound && since_ms + UNBOUND_MS > self.calls.lifecycle.clock.now_ms() {
            return Err(AskError::CannotQuery(
                self.account.name.clone(),
                "its carrier's id of the call is not known yet",
            ));
        }
        self.calls.batch_members.note(&self.account.name, &one.alias.id, &batch.id, found.aliases);
        Ok(())
    }

    /// Looks a batch up, every few sweeps and as soon as it may have ended. Where it cannot be looked up it holds its slots until
    /// an operator releases them: it may run for days, so its age proves nothing.
    pub(super) async fn settle_batch(&mut self, call: &CallRecord, group: &Group) {
        let now_ms = self.calls.lifecycle.clock.now_ms();
        let list_lag_ms = as_ms(self.calls.settings.list_lag);
        if !self.account.can_ask() {
            return;
        }
        let Some(id) = call.alias(&group.needs) else {
            let due = call.deadline_at.is_some_and(|at| at <= now_ms);
            if due || ((call.unsettled || call.absent_at.is_some()) && call.phase_at + list_lag_ms <= now_ms) {
                self.search(call).boxed().await;
            }
            return;
        };
        // The provider's record is of the state before the retry.
        let is_retried = call.seen_by == Source::Create && now_ms < call.seen_at + self.calls.settings.exchange_ms();
        if is_retried {
            self.over_since.remove(&call.id);
            return;
        }
        let live = self.calls.batch_members.count(&self.account.name, Some(&call.id));
        let has_just_ended = self.count_down_look_ups(call, live);
        let is_urgent = has_just_ended || self.over_since.contains_key(&call.id) || call.unsettled;
        if !is_urgent && !self.sweeps.is_multiple_of(FULL_LIST_EVERY) {
            return;
        }
        if u32::try_from(live).is_ok_and(|live| live > call.slots) {
            warn!(call = %call.id, live, slots = call.slots, "batch has more concurrent calls than its provider was told");
        }
        let id = Alias { kind: group.needs.clone(), id: id.to_owned() };
        match self.calls.provider.look_up_batch(&self.account, group, &id).await {
            Ok(LookedUpBatch::Found { event: Event::Ended(outcome, _), .. }) => {
                self.unread.remove(&call.id);
                let over_since = self.note_over(call, now_ms);
                if self.is_quiet_since(call, over_since) {
                    self.end_batch(call, outcome).await;
                }
            }
            Ok(LookedUpBatch::Found { event: event @ Event::Reached(_), .. }) => {
                self.unread.remove(&call.id);
                self.over_since.remove(&call.id);
                if call.unsettled || call.absent_at.is_some() || call.seen_at + SEEN_EVERY_MS <= now_ms {
                    let (absent, unsettled) = (Some(false), Some(false));
                    let event = Some(event);
                    let change =
                        Change { event, absent, unsettled, ..self.calls.lifecycle.change(&call.id, Source::Poll) };
                    log(self.calls.lifecycle.apply(change).await);
                }
            }
            Ok(LookedUpBatch::Absent) => {
                let over_since = self.note_over(call, now_ms);
                if self.is_quiet_since(call, over_since) {
                    self.handle_not_found(call).boxed().await;
                }
            }
            Err(error) => self.cannot_read(call, &error),
        }
    }

    /// Counts the look-ups after the last of its calls has ended. Returns whether this is one of them: they are few, because a
    /// campaign may pause until the next day.
    fn count_down_look_ups(&mut self, call: &CallRecord, live: usize) -> bool {
        if live > 0 {
            self.look_ups_left.insert(call.id.clone(), LOOK_UPS_AFTER_LAST_CALL);
            return false;
        }
        let Some(left) = self.look_ups_left.get_mut(&call.id).filter(|left| **left > 0) else { return false };
        *left -= 1;
        true
    }

    /// Notes that the provider says that it makes no more calls. Returns since when it says so.
    fn note_over(&mut self, call: &CallRecord, now_ms: i64) -> i64 {
        *self.over_since.entry(call.id.clone()).or_insert(now_ms)
    }

    /// Whether a list without any of its calls, and without an untracked one, was read since then. The list may lag, so it must be
    /// younger by `list_lag`.
    fn is_quiet_since(&self, call: &CallRecord, over_since: i64) -> bool {
        let list_lag_ms = as_ms(self.calls.settings.list_lag);
        let listed = self.account.provider.list.is_none() || self.listed_at >= over_since + list_lag_ms;
        listed && self.untracked.is_empty() && self.calls.batch_members.count(&self.account.name, Some(&call.id)) == 0
    }

    /// Releases the slots, unless the batch was retried since its record was read.
    async fn end_batch(&mut self, call: &CallRecord, outcome: Outcome) {
        let change = Change {
            event: Some(Event::Ended(outcome, EndProof::Provider)),
            if_seen_at: Some(call.seen_at),
            ..self.calls.lifecycle.change(&call.id, Source::Poll)
        };
        match self.calls.lifecycle.apply(change).await {
            Ok(Some(applied)) if applied.record.phase == Phase::Ended => {
                info!(call = %call.id, slots = call.slots, "batch ended");
            }
            applied => {
                self.over_since.remove(&call.id);
                log(applied);
            }
        }
    }
}
