//! A call that a provider brings: admitted like any other, or met with what the business chose for "full".

use std::collections::BTreeSet;
use std::hash::{Hash as _, Hasher as _};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use serde_json::Value;
use tokio::sync::OnceCell;
use tracing::{info, warn};

use super::Calls;
use super::lookup::LookedUp;
use crate::admission::{AdmissionRequest, Slots};
use crate::call::{Direction, EndProof, Event, Origin, Outcome, Phase};
use crate::capacity::{Admission, AdmissionError};
use crate::failpoint;
use crate::ids::{Alias, BusinessId, CallId, RefusalId, mask_number};
use crate::policy::{Facts, RequestAttributes, WhenFull};
use crate::provider::account::Account;
use crate::provider::description::{CallFacts, OWN_ID_KIND};
use crate::provider::render::fill_json;
use crate::provider::select::{Document, Message};
use crate::store::{CallRecord, Change, Contradiction, InsertOutcome, Result, StoreError, Voucher};

/// A hang-up that came to nothing is tried again after so long: longer than one checks its end.
const HANG_UP_AGAIN: Duration = Duration::from_secs(10);
/// A voice webhook is repeated at most so long after its first delivery (facts B4.3: 5 times 15 s).
const REPEATED_WITHIN: Duration = Duration::from_secs(120);

/// Front mode's answer to a call, asked for once.
pub(super) struct Fronted {
    begun: Instant,
    twiml: Arc<OnceCell<String>>,
}

/// A call as its provider announces it.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// The account that it came through.
    pub account: Arc<Account>,
    /// The webhook, or `sweep`.
    pub operation: String,
    /// Which side placed it.
    pub direction: Direction,
    /// What policy selects by.
    pub facts: CallFacts,
    /// Its ids.
    pub aliases: Vec<Alias>,
    /// Where it stands.
    pub phase: Phase,
    /// The provider takes its answer from our reply, so the call can be refused before it is answered.
    pub refusable: bool,
    /// Who brought it to our knowledge.
    pub origin: Origin,
    /// Who vouches for it; none: its provider, which was asked.
    pub by: Option<Voucher>,
}

/// What an arriving call meets.
#[derive(Debug, Clone)]
pub enum Arrived {
    /// It has a slot, from now on or already.
    Admitted(CallId),
    /// There is none. Where it could not be refused, it is being hung up.
    Refused(CallId, WhenFull),
    /// It is not one of those that vouch for it. Nothing was done.
    Contradicted(Contradiction),
}

impl Calls {
    /// Admits an inbound call, or says what it meets instead. A call that is known by one of its ids keeps its slot, however
    /// many webhooks speak of it.
    pub async fn arrive(&self, arrival: Arrival) -> Result<Arrived> {
        // Two webhooks of one new call at the same moment: the second would find the limit taken by the first, and refuse it.
        let _alone = self.alone(&arrival.aliases).boxed().await;
        let store = &self.lifecycle.store;
        if let Some(known) = store.resolve(&arrival.aliases).await? {
            return self.known(&known, &arrival).boxed().await;
        }
        if let Some(order) = self.order_of(&arrival).boxed().await? {
            return self.known(&order, &arrival).boxed().await;
        }
        if let Some(what) = self.doubt(&arrival).await {
            return Ok(Arrived::Contradicted(what));
        }
        let deciding = self.lifecycle.capacity.deciding().await;
        let policy = self.lifecycle.policy.load_full();
        let facts = self.facts_of(&arrival);
        let call = CallId::new();
        let at_ms = self.lifecycle.clock.now_ms();
        let bindings = policy.bindings(&facts);
        let ask = AdmissionRequest { call: call.clone(), bindings, slots: Slots::ONE, mode: policy.mode(), at_ms };
        let mut record = self.lifecycle.new_call(&call, facts.clone(), arrival.origin, arrival.phase);
        record.aliases = arrival.aliases.clone();
        let full = match self.lifecycle.admit(ask, record.clone()).boxed().await {
            Ok(Admission::Admitted(_, would_refuse, _)) => {
                drop(deciding);
                failpoint::hit("inbound.opened").await;
                self.lifecycle.metrics.admitted(facts.account.as_str(), facts.direction.as_str(), &facts.plan);
                info!(
                    %call,
                    business = %facts.business,
                    plan = facts.plan,
                    account = %facts.account,
                    from = facts.other_number.as_deref().map(mask_number),
                    would_refuse = would_refuse.as_ref().map(|f| f.limit.as_ref()),
                    "inbound admitted"
                );
                if let Some(full) = would_refuse {
                    self.lifecycle.metrics.would_refuse(&full.limit);
                    let what = self.full_refusal(&facts, &full, RefusalId::new()).await;
                    self.keep_refusal(&facts, &what, "capacity_inbound", true);
                }
                return Ok(Arrived::Admitted(call));
            }
            Ok(Admission::Known(other)) => {
                drop(deciding);
                return self.known(&other, &arrival).boxed().await;
            }
            Ok(Admission::Refused(full)) => full,
            Err(AdmissionError::Store(error)) => return Err(error),
            Err(AdmissionError::Gate(why)) => {
                warn!(why, "inbound call refused: the gate does not answer");
                return Err(StoreError::Failed(why));
            }
        };
        drop(deciding);
        // It exists until it has been refused or hung up, so it is counted, apart from the admitted ones.
        record.over_limit = true;
        failpoint::hit("inbound.full").await;
        if let InsertOutcome::Known(other) = self.lifecycle.adopt(record).await? {
            // Another webhook of the same call came first: nothing is refused.
            return self.known(&other, &arrival).boxed().await;
        }
        failpoint::hit("inbound.adopted").await;
        let what = self.full_refusal(&facts, &full, RefusalId::new()).await;
        self.lifecycle.metrics.refused("capacity_inbound", "inbound");
        self.keep_refusal(&facts, &what, "capacity_inbound", false);
        info!(
            %call,
            refusal = %what.id,
            business = %facts.business,
            plan = facts.plan,
            account = %facts.account,
            limit = %full.limit,
            from = facts.other_number.as_deref().map(mask_number),
            "inbound refused"
        );
        let when_full = policy.when_full(&facts.business).clone();
        if arrival.refusable {
            // Our reply to this webhook ends it.
            self.end(&call, Outcome::Capacity, EndProof::Webhook, "webhook").await;
            failpoint::hit("inbound.refused").await;
        } else {
            self.hang_up_later(&call);
        }
        Ok(Arrived::Refused(call, when_full))
    }

    /// A call that is known only by what is said in it. If its provider says so it exists, and is counted, whatever is full; if an
    /// app does, it counts once somebody confirms it.
    pub async fn adopt_from_transcript(&self, arrival: Arrival) -> Result<CallId> {
        let _alone = self.alone(&arrival.aliases).boxed().await;
        if let Some(known) = self.lifecycle.store.resolve(&arrival.aliases).await? {
            return Ok(known);
        }
        if let Some(order) = self.order_of(&arrival).boxed().await? {
            self.known(&order, &arrival).boxed().await?;
            return Ok(order);
        }
        let id = CallId::new();
        let facts = self.facts_of(&arrival);
        let mut call = self.lifecycle.new_call(&id, facts.clone(), arrival.origin, arrival.phase);
        call.aliases = arrival.aliases;
        call.polled = true;
        let is_confirmed = call.origin != Origin::Unconfirmed;
        let opened = match is_confirmed {
            true => self.lifecycle.adopt(call).boxed().await?,
            false => self.lifecycle.note_unconfirmed(call).boxed().await?,
        };
        match opened {
            InsertOutcome::New(_) => {
                info!(call = %id, business = %facts.business, account = %facts.account, counts = is_confirmed, "transcript received for an unknown call; recorded as unconfirmed");
                Ok(id)
            }
            InsertOutcome::Known(call) => Ok(call),
            InsertOutcome::Outdated(_) => Err(StoreError::Failed("the gate is being moved".to_owned())),
        }
    }

    /// RetryAfterEstimator until no other arrival of a call with one of these ids is under way. The locks are taken in one order, so that two
    /// arrivals never wait for each other.
    async fn alone(&self, aliases: &[Alias]) -> Vec<tokio::sync::MutexGuard<'_, ()>> {
        let place = |alias: &Alias| {
            let mut hasher = std::hash::DefaultHasher::new();
            alias.hash(&mut hasher);
            usize::try_from(hasher.finish() % self.arriving.len() as u64).unwrap_or_default()
        };
        let slots: BTreeSet<usize> = aliases.iter().map(place).collect();
        let mut held = Vec::with_capacity(slots.len());
        for place in slots {
            held.push(self.arriving[place].lock().await);
        }
        held
    }

    /// The order of ours whose call this is, though its answer has not come yet: an event may overtake it, and not every event
    /// says which side placed the call. The provider is asked only while such an order is under way, and never for a call that
    /// waits for our reply.
    async fn order_of(&self, arrival: &Arrival) -> Result<Option<CallId>> {
        let account = &arrival.account;
        let Some(lookup) = account.provider.lookup.as_ref().filter(|_| !arrival.refusable) else { return Ok(None) };
        let Some(alias) = arrival.aliases.iter().find(|a| a.kind == lookup.needs) else { return Ok(None) };
        let orders = self.lifecycle.store.unanswered_orders(&account.name, &lookup.needs).await?;
        if orders.iter().all(|order| self.group_of(order).is_some()) {
            return Ok(None);
        }
        let Ok(LookedUp::Found(found)) = self.look_up_alias(account, alias).boxed().await else { return Ok(None) };
        let own = found.aliases.iter().find(|a| a.kind == OWN_ID_KIND).and_then(|a| CallId::parse(&a.id));
        let Some(own) = own else { return Ok(None) };
        Ok(self.lifecycle.store.call(&own).await?.map(|call| call.id))
    }

    /// Ends a call over capacity in the background, unless that was begun a moment ago.
    pub fn hang_up_later(&self, call: &CallId) {
        {
            let mut begun = self.hanging_up.lock().unwrap_or_else(PoisonError::into_inner);
            begun.retain(|_, at| at.elapsed() < HANG_UP_AGAIN);
            if begun.contains_key(call) {
                return;
            }
            begun.insert(call.clone(), Instant::now());
        }
        let (this, call) = (self.clone(), call.clone());
        self.tasks.spawn(async move {
            match this.lifecycle.store.call(&call).await {
                Ok(Some(record)) if record.phase != Phase::Ended && this.has_means(&record) => {
                    this.hang_up(&record, Outcome::Capacity).await;
                }
                Ok(_) => {}
                Err(error) => warn!(%call, %error, "failed to read an over-limit call; the sweep retries"),
            }
        });
    }

    fn has_means(&self, record: &CallRecord) -> bool {
        self.accounts_of(record).iter().any(|account| !account.terminate.is_empty())
    }

    async fn known(&self, call: &CallId, arrival: &Arrival) -> Result<Arrived> {
        let change = Change {
            event: Some(Event::Reached(arrival.phase)),
            bind: arrival.aliases.clone(),
            by: arrival.by.clone(),
            ..self.lifecycle.change(call, "webhook")
        };
        let applied = self.lifecycle.apply(change).await?;
        if let Some(what) = applied.as_ref().and_then(|applied| applied.contradiction) {
            return Ok(Arrived::Contradicted(what));
        }
        // A call that is over holds no slot: whoever answered it now would talk uncounted.
        let refused = applied.filter(|a| a.record.phase == Phase::Ended || a.record.over_limit);
        Ok(match refused {
            Some(applied) if arrival.refusable => {
                let when_full = self.lifecycle.policy.load().when_full(&applied.record.facts.business).clone();
                Arrived::Refused(call.clone(), when_full)
            }
            _ => Arrived::Admitted(call.clone()),
        })
    }

    /// The facts of an arriving call. A call that a carrier brings uses the capacity of the account whose agents answer it.
    pub fn facts_of(&self, arrival: &Arrival) -> Facts {
        let policy = &self.policy;
        let agent_account = self.agent_account(&arrival.account.name);
        let (account, carrier) = match agent_account {
            Some(user) => (user, Some(arrival.account.name.clone())),
            None => {
                let carried = arrival.aliases.iter().any(|a| a.kind == "call_sid");
                (&arrival.account, arrival.account.carrier.clone().filter(|_| carried))
            }
        };
        let marks = RequestAttributes {
            agent: arrival.facts.agent.as_deref(),
            number: arrival.facts.own_number.as_deref(),
            account: Some(account.name.as_str()),
            ..RequestAttributes::default()
        };
        // A stranger's call still has to be counted somewhere: where nobody is known, everybody's limits bind it.
        let found = policy.identify(&marks);
        let business = if found.stranger.is_some() { BusinessId::default_business() } else { found.business };
        Facts {
            plan: policy.plan_of(&business),
            business,
            account: account.name.clone(),
            provider: account.provider.name.clone(),
            carrier,
            direction: arrival.direction,
            operation: arrival.operation.clone(),
            agent: arrival.facts.agent.clone(),
            own_number: arrival.facts.own_number.clone(),
            other_number: arrival.facts.other_number.clone(),
        }
    }

    /// Front mode: the TwiML that connects an admitted call to its agent, asked of the agent's provider. `Err` is a sentence
    /// for the log; the call has been ended. Asked again for the same call, it gives the same conversation: a second one would
    /// never be joined, and its end would pass for the call's.
    pub async fn front(&self, call: &CallId, agent: &str) -> std::result::Result<String, String> {
        let twiml = {
            let mut fronted = self.fronted.lock().unwrap_or_else(PoisonError::into_inner);
            fronted.retain(|_, one| one.begun.elapsed() < REPEATED_WITHIN);
            let fresh = || Fronted { begun: Instant::now(), twiml: Arc::default() };
            fronted.entry(call.clone()).or_insert_with(fresh).twiml.clone()
        };
        let asked = twiml.get_or_try_init(async || {
            let record = match self.lifecycle.store.call(call).await {
                Ok(Some(record)) => record,
                Ok(None) => return Err("its record is gone".to_owned()),
                Err(error) => return Err(error.to_string()),
            };
            if record.phase == Phase::Ended {
                return Err("it is over; its slot is free".to_owned());
            }
            self.register(&record, agent).boxed().await
        });
        match asked.await {
            Ok(twiml) => Ok(twiml.clone()),
            Err(why) => {
                self.end(call, Outcome::Failed, EndProof::Provider, "answer").await;
                Err(why)
            }
        }
    }

    async fn register(&self, record: &CallRecord, agent: &str) -> std::result::Result<String, String> {
        let account = self.account(&record.facts.account).ok_or("its account is gone")?;
        let front = account.provider.front.as_ref().ok_or("its provider connects no calls")?;
        let body = fill_json(&front.body, &|name| match name {
            "agent" => agent.into(),
            name => super::of_record(record, name).map_or(Value::Null, |v| v.into_owned().into()),
        });
        let request = Some(("application/json", body.to_string().into()));
        let response = self.ask(account, http::Method::POST, &front.path, request).await.map_err(|e| e.to_string())?;
        let status = response.status().as_u16();
        if let Some(limit) = account.provider.limits.iter().find(|l| l.status == status && l.when.is_empty()) {
            let class = limit.class.as_str();
            self.lifecycle.metrics.provider_limit(&account.provider.name, account.name.as_str(), class);
        }
        if !response.status().is_success() {
            return Err(format!("{} answered {}", account.provider.name, response.status().as_u16()));
        }
        let document = Document::decode(Some("text/xml"), response.body());
        let message = Message { body: &document, query: &[], path: &Default::default(), headers: response.headers() };
        let Document::Xml(twiml) = &document else { return Err("the answer is no TwiML".to_owned()) };
        let bind = front.ids.read(&message);
        if bind.is_empty() {
            warn!(call = %record.id, "TwiML names no conversation; the call is tracked by its carrier only");
        }
        failpoint::hit("inbound.fronted").await;
        let change = Change { bind, ..self.lifecycle.change(&record.id, "answer") };
        self.lifecycle.apply(change).await.map_err(|e| e.to_string())?;
        Ok(twiml.clone())
    }
}
