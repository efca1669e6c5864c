//! Inbound calls: admitted like any other call, or handled as the business configured for a full limit.

use std::collections::BTreeSet;
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use futures_util::FutureExt as _;
use tracing::{info, warn};

use super::arrival::{Arrival, ArrivalOutcome};
use super::context::Context;
use super::front_cache::FrontCache;
use super::provider_client::ProviderClient;
use super::provider_client::lookup::LookedUp;
use super::rejection::Rejections;
use crate::admission::{Admission, AdmissionError};
use crate::call::{EndProof, Event, Origin, Outcome, Phase, Source};
use crate::failpoint;
use crate::ids::{AccountName, Alias, BusinessId, CallId, mask_number};
use crate::policy::decision::{AdmissionRequest, Slots};
use crate::policy::{CallAttributes, RequestAttributes};
use crate::provider::description::OWN_ID_KIND;
use crate::store::{Change, Contradiction, InsertOutcome, Result, StoreError};

/// Number of locks that the ids of arriving calls share. Two calls that share a lock wait one store write for each other.
const ARRIVAL_LOCKS: usize = 64;

/// State of inbound calls that outlives a reload.
#[derive(Clone)]
pub(super) struct InboundState {
    /// Serialises arrivals of one call: each of its ids maps to one of these locks.
    arriving: Arc<[tokio::sync::Mutex<()>; ARRIVAL_LOCKS]>,
    pub(super) fronts: FrontCache,
}

impl Default for InboundState {
    fn default() -> Self {
        let arriving = Arc::new([const { tokio::sync::Mutex::const_new(()) }; ARRIVAL_LOCKS]);
        Self { arriving, fronts: FrontCache::default() }
    }
}

/// Inbound calls, and external calls.
pub struct Inbound {
    pub(super) context: Arc<Context>,
    pub(super) provider: Arc<ProviderClient>,
    rejections: Arc<Rejections>,
    pub(super) state: InboundState,
}

impl Inbound {
    pub(super) fn new(
        context: Arc<Context>,
        provider: Arc<ProviderClient>,
        rejections: Arc<Rejections>,
        state: InboundState,
    ) -> Self {
        Self { context, provider, rejections, state }
    }

    /// Admits an inbound call, or returns how it is rejected. A call that is known by one of its ids keeps its slot, however many
    /// webhooks report it.
    ///
    /// # Errors
    /// Whether it may stay is not known: no limiter can decide, or the store failed.
    pub async fn arrive(&self, arrival: Arrival) -> std::result::Result<ArrivalOutcome, AdmissionError> {
        // Two webhooks of one new call may arrive at the same moment: the second would find the limit filled by the first, and
        // reject the call.
        let _alone = self.alone(&arrival.aliases).boxed().await;
        let store = &self.context.lifecycle.store;
        if let Some(known) = store.resolve(&arrival.aliases).await? {
            return Ok(self.known(&known, &arrival).boxed().await?);
        }
        if let Some(create) = self.create_of(&arrival).boxed().await? {
            return Ok(self.known(&create, &arrival).boxed().await?);
        }
        if let Some(what) = self.verify_with_provider(&arrival).await {
            return Ok(ArrivalOutcome::Contradicted(what));
        }
        let policy_guard = self.context.lifecycle.admission.hold_policy().await;
        let policy = self.context.lifecycle.policy.load_full();
        let attributes = self.attributes_of(&arrival);
        let call = CallId::new();
        let at_ms = self.context.lifecycle.clock.now_ms();
        let bindings = policy.bindings(&attributes);
        let mode = self.context.lifecycle.admission.mode();
        let ask = AdmissionRequest { call: call.clone(), bindings, slots: Slots::ONE, mode, at_ms };
        let mut record = self.context.lifecycle.new_call(&call, attributes.clone(), arrival.origin, arrival.phase);
        record.aliases = arrival.aliases.clone();
        let full = match self.context.lifecycle.admit(policy_guard, ask, record.clone()).boxed().await? {
            Admission::Admitted { would_reject, .. } => {
                failpoint::hit("inbound.opened").await;
                self.context.lifecycle.metrics.admitted(&attributes);
                info!(
                    %call,
                    business = %attributes.business,
                    plan = attributes.plan,
                    account = %attributes.account,
                    from = attributes.other_number.as_deref().map(mask_number),
                    would_refuse = would_reject.as_ref().map(|f| f.limit.as_ref()),
                    "inbound admitted"
                );
                if let Some(full) = would_reject {
                    self.rejections.observed_full_limit(&arrival.account, &attributes, &full).await;
                }
                return Ok(ArrivalOutcome::Admitted(call));
            }
            Admission::Known(other) => return Ok(self.known(&other, &arrival).boxed().await?),
            Admission::Rejected(full) => full,
        };
        // The call exists until it is rejected or hung up, so it is counted, apart from admitted calls.
        record.over_limit = true;
        failpoint::hit("inbound.full").await;
        if let InsertOutcome::Known(other) = self.context.lifecycle.adopt(record).await? {
            // Another webhook of the same call was first: the call is not rejected.
            return Ok(self.known(&other, &arrival).boxed().await?);
        }
        failpoint::hit("inbound.adopted").await;
        self.rejections.inbound(&call, &attributes, &full).await;
        let when_full = policy.when_full(&attributes.business).clone();
        if arrival.rejectable {
            // Our reply to this webhook ends it.
            self.context.lifecycle.end_with_retry(&call, Outcome::Capacity, EndProof::Webhook, Source::Webhook).await;
            failpoint::hit("inbound.refused").await;
        } else {
            self.provider.hang_up_later(&call);
        }
        Ok(ArrivalOutcome::Rejected(call, when_full))
    }

    /// Records a call that is known only from its transcript. If its provider sent that, the call exists and is counted even over
    /// a limit; if an app did, it counts once it is confirmed.
    pub async fn adopt_from_transcript(&self, arrival: Arrival) -> Result<CallId> {
        let _alone = self.alone(&arrival.aliases).boxed().await;
        if let Some(known) = self.context.lifecycle.store.resolve(&arrival.aliases).await? {
            return Ok(known);
        }
        if let Some(create) = self.create_of(&arrival).boxed().await? {
            self.known(&create, &arrival).boxed().await?;
            return Ok(create);
        }
        let id = CallId::new();
        let attributes = self.attributes_of(&arrival);
        let mut call = self.context.lifecycle.new_call(&id, attributes.clone(), arrival.origin, arrival.phase);
        call.aliases = arrival.aliases;
        call.polled = true;
        let is_confirmed = call.origin != Origin::Unconfirmed;
        let opened = match is_confirmed {
            true => self.context.lifecycle.adopt(call).boxed().await?,
            false => self.context.lifecycle.note_unconfirmed(call).boxed().await?,
        };
        match opened {
            InsertOutcome::New(_) => {
                info!(call = %id, business = %attributes.business, account = %attributes.account, counts = is_confirmed, "transcript received for an unknown call; the call is recorded");
                Ok(id)
            }
            InsertOutcome::Known(call) => Ok(call),
            InsertOutcome::Outdated(_) => Err(StoreError::Failed("limiter transition in progress".to_owned())),
        }
    }

    /// Waits until no other arrival of a call with one of these ids is in progress. The locks are acquired in a fixed order,
    /// which prevents deadlock.
    async fn alone(&self, aliases: &[Alias]) -> Vec<tokio::sync::MutexGuard<'_, ()>> {
        let place = |alias: &Alias| {
            let mut hasher = std::hash::DefaultHasher::new();
            alias.hash(&mut hasher);
            usize::try_from(hasher.finish() % self.state.arriving.len() as u64).unwrap_or_default()
        };
        let slots: BTreeSet<usize> = aliases.iter().map(place).collect();
        let mut held = Vec::with_capacity(slots.len());
        for place in slots {
            held.push(self.state.arriving[place].lock().await);
        }
        held
    }

    /// The create of ours that this call belongs to, where its response is still outstanding: an event may overtake the response,
    /// and not every event has the direction. The provider is queried only while such a create is outstanding, and never for a
    /// call that waits for our reply.
    async fn create_of(&self, arrival: &Arrival) -> Result<Option<CallId>> {
        let account = &arrival.account;
        let Some(lookup) = account.provider.lookup.as_ref().filter(|_| !arrival.rejectable) else { return Ok(None) };
        let Some(alias) = arrival.aliases.iter().find(|a| a.kind == lookup.needs) else { return Ok(None) };
        let creates = self.context.lifecycle.store.unanswered_creates(&account.name, &lookup.needs).await?;
        if creates.iter().all(|create| self.context.group_of(create).is_some()) {
            return Ok(None);
        }
        let Ok(LookedUp::Found(found)) = self.provider.look_up_alias(account, alias).boxed().await else {
            return Ok(None);
        };
        let own = found.aliases.iter().find(|a| a.kind == OWN_ID_KIND).and_then(|a| CallId::parse(&a.id));
        let Some(own) = own else { return Ok(None) };
        Ok(self.context.lifecycle.store.call(&own).await?.map(|call| call.id))
    }

    async fn known(&self, call: &CallId, arrival: &Arrival) -> Result<ArrivalOutcome> {
        let change = Change {
            event: Some(Event::Reached(arrival.phase)),
            bind: arrival.aliases.clone(),
            by: arrival.by.clone(),
            ..self.context.lifecycle.change(call, Source::Webhook)
        };
        let applied = self.context.lifecycle.apply(change).await?;
        if let Some(what) = applied.as_ref().and_then(|applied| applied.contradiction) {
            return Ok(ArrivalOutcome::Contradicted(what));
        }
        // A call that has ended holds no slot: answering it now would leave it uncounted.
        let refused = applied.filter(|a| a.record.phase == Phase::Ended || a.record.over_limit);
        Ok(match refused {
            Some(applied) if arrival.rejectable => {
                let when_full =
                    self.context.lifecycle.policy.load().when_full(&applied.record.attributes.business).clone();
                ArrivalOutcome::Rejected(call.clone(), when_full)
            }
            _ => ArrivalOutcome::Admitted(call.clone()),
        })
    }

    /// The attributes of an arriving call for policy. A carrier's call uses the capacity of the account whose agents answer it.
    pub fn attributes_of(&self, arrival: &Arrival) -> CallAttributes {
        let policy = &self.context.policy;
        let agent_account = self.context.agent_account(&arrival.account.name);
        let (account, carrier) = match agent_account {
            Some(user) => (user, Some(arrival.account.name.clone())),
            None => {
                let carries = |carrier: &AccountName| {
                    let carrier = self.context.account(carrier);
                    carrier.is_some_and(|one| arrival.aliases.iter().any(|alias| one.provider.looks_up(&alias.kind)))
                };
                (&arrival.account, arrival.account.carrier.clone().filter(carries))
            }
        };
        let attributes = RequestAttributes {
            agent: arrival.attributes.agent.as_deref(),
            number: arrival.attributes.own_number.as_deref(),
            account: Some(account.name.as_str()),
            ..RequestAttributes::default()
        };
        // A call of an unknown business has to be counted too: the limits for all businesses apply to it.
        let found = policy.identify(&attributes);
        let business = if found.unknown_business.is_some() { BusinessId::default_business() } else { found.business };
        CallAttributes {
            plan: policy.plan_of(&business),
            business,
            account: account.name.clone(),
            provider: account.provider.name.clone(),
            carrier,
            direction: arrival.direction,
            operation: arrival.operation.clone(),
            agent: arrival.attributes.agent.clone(),
            own_number: arrival.attributes.own_number.clone(),
            other_number: arrival.attributes.other_number.clone(),
        }
    }

    /// Checks a subaccount's announcement with its provider: the call exists, is not over, and has the stated numbers. A
    /// subaccount can sign anything. If the provider cannot be queried, the call counts, and the next sweep checks it.
    async fn verify_with_provider(&self, arrival: &Arrival) -> Option<Contradiction> {
        let subaccount = arrival.by.as_ref()?.subaccount.as_deref()?;
        let lookup = arrival.account.provider.lookup.as_ref()?;
        let alias = arrival.aliases.iter().find(|alias| alias.kind == lookup.needs)?;
        match Box::pin(self.provider.look_up_alias_of(&arrival.account, alias, Some(subaccount))).await {
            Ok(LookedUp::Found(found)) => {
                let other = |a: &Option<String>, b: &Option<String>| a.is_some() && b.is_some() && a != b;
                let lacks = |a: &Option<String>, b: &Option<String>| a.is_some() && b.is_none();
                let differs = found.is_part
                    || matches!(found.event, Some(Event::Ended(..)))
                    || found.direction.is_some_and(|direction| direction != arrival.direction)
                    || lacks(&found.attributes.own_number, &arrival.attributes.own_number)
                    || other(&found.attributes.own_number, &arrival.attributes.own_number)
                    || other(&found.attributes.other_number, &arrival.attributes.other_number);
                differs.then_some(Contradiction::OtherSubaccount)
            }
            Ok(LookedUp::Absent) => Some(Contradiction::OtherSubaccount),
            Err(error) => {
                warn!(account = %arrival.account.name, subaccount, %error, "failed to look up a subaccount's call; it counts");
                None
            }
        }
    }
}
