//! Live calls without a record: ours under an unknown id, or placed outside ringfence, and counted from now on.

use std::collections::HashSet;

use futures_util::FutureExt as _;
use tracing::{debug, warn};

use super::not_found::may_be_call_of;
use super::{Sweeper, UNBOUND_MS, VOICE_WEBHOOK_MS, log};
use crate::call::{Direction, Event, Origin, Phase, Source};
use crate::calls::AskError;
use crate::calls::arrival::Arrival;
use crate::calls::provider_client::lookup::{ListedCall, LookedUp};
use crate::failpoint;
use crate::ids::{Alias, CallId};
use crate::provider::description::OWN_ID_KIND;
use crate::store::{CallRecord, Change};

impl Sweeper {
    /// Handles live calls without a record by this account's id: ours under another id, or foreign. They are counted at once, but
    /// not while a create of ours waits for the id that would distinguish them. `mine` is read again for that: a create may have
    /// been recorded, and its call made, between reading the store and the list.
    ///
    /// In a process's first sweep each waiting create accounts for one of the calls that it may have made; the others are
    /// counted.
    pub(super) async fn handle_untracked_calls(&mut self, mine: &[CallRecord], kind: &str, unknown: &[&ListedCall]) {
        if unknown.is_empty() {
            self.not_phone_calls.clear();
            return self.untracked.clear();
        }
        let now_ms = self.calls.lifecycle.clock.now_ms();
        let (newest, first) = (self.read_open_calls().await, self.first);
        let is_sure = newest.is_ok();
        let newest = newest.ok();
        let mine = newest.as_deref().unwrap_or(mine);
        let lacks_its_id = |call: &&CallRecord| {
            call.alias(kind).is_none()
                && !self.is_known_batch(call)
                && (call.phase == Phase::Reserved || call.unsettled || call.phase_at + UNBOUND_MS > now_ms)
        };
        let mut waiting: Vec<&CallRecord> = mine.iter().filter(lacks_its_id).collect();
        // A leg that the carrier lists may belong to a batch: its other account decides, at its own interval.
        let may_be_member =
            mine.iter().any(|call| call.attributes.account != self.account.name && self.is_known_batch(call));
        let before = std::mem::take(&mut self.untracked);
        for one in unknown {
            let id = one.alias.id.clone();
            if self.not_phone_calls.contains(&id) {
                continue;
            }
            let since_ms = before.get(&id).copied();
            let early = may_be_member && since_ms.is_some_and(|since| since + UNBOUND_MS > now_ms);
            // Its voice webhook decides about it, and may be in progress: counted here, it could no longer be rejected by a
            // reply.
            let rings = one.direction == Direction::Inbound
                && matches!(one.event, Some(Event::Reached(Phase::Queued | Phase::Ringing)))
                && since_ms.unwrap_or(now_ms) + VOICE_WEBHOOK_MS > now_ms;
            if rings {
                self.untracked.insert(id, since_ms.unwrap_or(now_ms));
                continue;
            }
            let is_accounted_for = if first {
                let create = waiting.iter().position(|call| may_be_call_of(call, one));
                let is_accounted_for = (create.is_some() || may_be_member) && !self.is_ours(&one.alias).await;
                // One create accounts for one call.
                if let Some(place) = create.filter(|_| is_accounted_for) {
                    waiting.swap_remove(place);
                }
                is_accounted_for
            } else {
                let doubtful = !waiting.is_empty() || may_be_member || !is_sure;
                (since_ms.is_none() && doubtful) || ((!waiting.is_empty() || early) && !self.is_ours(&one.alias).await)
            };
            if is_accounted_for {
                self.untracked.insert(id, since_ms.unwrap_or(now_ms));
                continue;
            }
            if let Err(error) = self.handle_untracked(one, since_ms.unwrap_or(now_ms)).boxed().await {
                debug!(%error, "failed to read a listed call");
                self.untracked.insert(id, since_ms.unwrap_or(now_ms));
            }
        }
        // Ids of ended web sessions are not kept.
        let live: HashSet<&str> = unknown.iter().map(|one| one.alias.id.as_str()).collect();
        self.not_phone_calls.retain(|id| live.contains(id.as_str()));
    }

    /// Whether the provider's record has our id, or one that a call of ours is known by (its carrier's).
    async fn is_ours(&self, alias: &Alias) -> bool {
        let Ok(LookedUp::Found(found)) = self.calls.provider.look_up_alias(&self.account, alias).await else {
            return false;
        };
        found.aliases.iter().any(|a| a.kind == OWN_ID_KIND)
            || self.batch_of(&found).await.is_some()
            || matches!(self.calls.lifecycle.store.resolve(&found.aliases).await, Ok(Some(_)))
    }

    async fn handle_untracked(&mut self, one: &ListedCall, since_ms: i64) -> std::result::Result<(), AskError> {
        let store = &self.calls.lifecycle.store;
        match store.resolve(std::slice::from_ref(&one.alias)).await {
            Ok(None) => {}
            Ok(Some(call)) => {
                // Ended a moment ago, or known at the other account; the list lags. A call that was given up is up.
                if let Some(event @ Event::Reached(_)) = one.event {
                    let change = Change { event: Some(event), ..self.calls.lifecycle.change(&call, Source::Poll) };
                    log(self.calls.lifecycle.apply(change).await);
                }
                return Ok(());
            }
            Err(_) => return Ok(()),
        }
        let found = match self.calls.provider.look_up_alias(&self.account, &one.alias).await {
            Ok(LookedUp::Found(found)) => found,
            // The list and the record disagree: for a while one of them may lag.
            Ok(LookedUp::Absent) if since_ms + UNBOUND_MS > self.calls.lifecycle.clock.now_ms() => {
                return Err(AskError::Status(404));
            }
            Ok(LookedUp::Absent) => return Ok(()),
            // It is listed as live: an unreadable record must not keep it from being counted.
            Err(error @ AskError::Unreadable(_)) => {
                warn!(account = %self.account.name, %error, "failed to look up a listed call");
                self.adopt(one, one.attributes.clone(), vec![one.alias.clone()], Phase::Live).boxed().await;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let listed_live = Event::Reached(Phase::Live);
        let Event::Reached(phase) = found.event.or(one.event).unwrap_or(listed_live) else { return Ok(()) };
        if let Some(batch) = self.batch_of(&found).await {
            return self.meet_member(one, &batch, found, since_ms);
        }
        if !found.phone {
            self.not_phone_calls.insert(one.alias.id.clone());
            return Ok(());
        }
        let (own, mut aliases): (Vec<Alias>, Vec<Alias>) =
            found.aliases.into_iter().partition(|a| a.kind == OWN_ID_KIND);
        aliases.push(one.alias.clone());
        let known = match own.first().and_then(|a| CallId::parse(&a.id)) {
            Some(call) => Some(call),
            None => match store.resolve(&aliases).await {
                Ok(known) => known,
                Err(_) => return Ok(()),
            },
        };
        if let Some(call) = known {
            let change = Change {
                event: Some(Event::Reached(phase)),
                bind: aliases.clone(),
                unsettled: Some(false),
                ..self.calls.lifecycle.change(&call, Source::Poll)
            };
            match self.calls.lifecycle.apply(change).await {
                Ok(Some(_)) => return Ok(()),
                // The id of another ringfence installation, or of a deleted record.
                Ok(None) => {}
                // It is ours, whatever the store answers; the next sweep handles it again.
                failed @ Err(_) => {
                    log(failed);
                    return Ok(());
                }
            }
        }
        failpoint::hit("sweep.meeting").await;
        self.adopt(one, found.attributes, aliases, phase).boxed().await;
        Ok(())
    }

    /// Counts an external call in the account that it uses.
    async fn adopt(
        &mut self,
        one: &ListedCall,
        attributes: crate::provider::description::MessageAttributes,
        aliases: Vec<Alias>,
        phase: Phase,
    ) {
        let arrival = Arrival {
            account: self.account.clone(),
            operation: "sweep".to_owned(),
            direction: one.direction,
            attributes,
            aliases,
            phase,
            rejectable: false,
            origin: Origin::Foreign,
            by: None,
        };
        if one.direction == Direction::Inbound {
            // It was answered without an admission: over a limit it is hung up.
            return log(self.calls.inbound.arrive(arrival).boxed().await);
        }
        match self.calls.inbound.count_foreign(arrival).boxed().await {
            Ok(Some(_)) => self.did.adopted += 1,
            Ok(None) => {}
            Err(error) => warn!(%error, "failed to record an external call"),
        }
    }
}
