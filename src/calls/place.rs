//! One order, from admission to its settlement: admit → record → send → read → apply → answer.
//!
//! An app that hangs up changes nothing: the order goes on ([`finish`]), the call is counted, its ids are learnt. The app is
//! answered at its time-out; the exchange reads on.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::header::{ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use http::{HeaderValue, Request, Response};
use tokio::time::Instant;
use tracing::{info, warn};

use super::again::Earlier;
use super::many::{self, Many};
use super::observe::WOULD_REFUSE;
use super::refuse::{hung_up, redirected};
use super::repost::{Arrived, Asker, Client, Fingerprint, NOTICED_WITHIN, OrderRef, key};
use super::vouch::subaccount_alias;
use super::{ANSWER_BYTES_MAX, Calls};
use crate::admission::{AdmissionRequest, Gated, Lease, Slots};
use crate::call::{EndProof, Event, Origin, Outcome as End, Phase};
use crate::capacity::{Admission, AdmissionError};
use crate::clock::since_boot;
use crate::failpoint;
use crate::ids::{Alias, CallId};
use crate::lifecycle::finish;
use crate::net::headers::strip_hop_by_hop;
use crate::net::{Outcome, retry_after_secs};
use crate::policy::{Facts, Ignored};
use crate::provider::account::{Account, join};
use crate::provider::description::{LimitClass, Operation};
use crate::provider::json::put;
use crate::provider::render::{Target, render};
use crate::provider::select::{Document, Message};
use crate::reply::{Code, Manner, Refusal, refusal};
use crate::store::{AppCallback, CallRecord, Change, CreateAnswer};

/// A request that would create a call.
#[derive(Debug)]
pub struct CreateOrder {
    /// Whose capacity it uses.
    pub account: Arc<Account>,
    /// Which operation of the provider it is.
    pub operation: Operation,
    /// What policy selects by.
    pub facts: Facts,
    /// The request as it will be sent: upstream URI, the app's headers. The body is the app's.
    pub request: Request<Bytes>,
    /// The body, decoded.
    pub body: Document,
    /// The order for many calls that the path names, where it is made once more.
    pub again: Option<Alias>,
    /// The subaccount that it is made in, by its path.
    pub subaccount: Option<String>,
    /// The client sleeps on `Retry-After` inside the app's request.
    pub sdk_sleeps: bool,
    /// What of it named a business and was not read.
    pub ignored: Option<Ignored>,
    /// What would have refused it, beside its limits, where nothing is refused.
    pub would: OnceLock<Refusal>,
}

impl CreateOrder {
    pub(super) fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.facts, &self.request)
    }
}

/// What a provider's answer, or the want of one, says about an order.
enum Settled {
    /// There is a call.
    Created,
    /// There is none.
    NotCreated,
    /// Nobody knows yet.
    Unknown,
}

/// A create as the provider gets it.
struct Prepared {
    request: Request<Bytes>,
    /// The app's own status callback, where ours stands in its place.
    callback: Option<AppCallback>,
    /// The provider will tell of the call; else it is asked from the start.
    events_will_come: bool,
}

/// A call that one order is joining; no other may, until this is dropped.
struct Joining {
    record: CallRecord,
    of: Arc<Mutex<HashSet<CallId>>>,
}

impl Drop for Joining {
    fn drop(&mut self) {
        self.of.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.record.id);
    }
}

impl Calls {
    /// Slots a call. Dropping the future drops only the answer: the order goes on. Whoever holds the client's connection tells
    /// the [`Asker`] whether the answer got there.
    pub fn place(&self, order: CreateOrder) -> (Asker, impl Future<Output = Response<Bytes>> + Send + 'static) {
        let asker = self.reposts.asker(order.fingerprint());
        let (this, shape, client) = (self.clone(), order.account.provider.clone(), asker.client());
        let manner_max = order.sdk_sleeps.then_some(self.settings.sdk_retry_after_max_secs);
        let work = async move { this.run(Arc::new(order), client).await };
        let work = finish(self.tasks.track_future(work));
        let answer = async move {
            match work.await {
                Ok(response) => response,
                Err(error) => {
                    warn!(%error, "create request failed: task panicked");
                    let lost = Refusal::new(Code::OutcomeUnknown, "ringfence failed while placing the call");
                    refusal(&lost, Manner { shape: &shape.refusal, retry_after_max_secs: manner_max })
                }
            }
        };
        (asker, answer)
    }

    async fn run(&self, order: Arc<CreateOrder>, client: Client) -> Response<Bytes> {
        let mut response = self.run_to_answer(&order, client).boxed().await;
        self.mark(&order, &mut response);
        response
    }

    async fn run_to_answer(&self, order: &Arc<CreateOrder>, client: Client) -> Response<Bytes> {
        if let Err(bad) = self.check_callbacks(order) {
            self.lifecycle.metrics.callback_refused("create", bad.reason);
            let message = format!("Not dialled: the callback URL is not one that is called: {bad}.");
            let what = Refusal::new(Code::InvalidRequest, message);
            if !self.observes() {
                return self.refuse(order, what).await;
            }
            // Its provider calls it.
            let _ = order.would.set(what);
        }
        let mut key = match key(&order.facts, order.request.headers()) {
            Ok(key) => key,
            Err(why) if self.observes() => {
                let _ = order.would.set(Refusal::new(Code::InvalidRequest, why));
                None
            }
            Err(why) => return self.refuse(order, Refusal::new(Code::InvalidRequest, why)).await,
        };
        let until = Instant::now() + self.settings.create_timeout;
        let mut second_look = false;
        loop {
            let earlier = match key.as_ref() {
                Some(key) => self.by_key(order, &client, key).boxed().await,
                None => Ok(None),
            };
            if client.has_left() {
                return self.refuse(order, hung_up()).await;
            }
            let earlier = match earlier {
                Ok(Some(earlier)) => earlier,
                Ok(None) => match self.reposts.arrive(&client, second_look) {
                    Arrived::Beside => {
                        tokio::time::sleep(NOTICED_WITHIN).await;
                        second_look = true;
                        continue;
                    }
                    Arrived::Again(earlier) => {
                        if !self.is_still_owned(&order.fingerprint(), &earlier).boxed().await {
                            earlier.not_created();
                            continue;
                        }
                        self.tell_if_undelivered(&client, &earlier);
                        Earlier { call: None, order: Some(earlier) }
                    }
                    Arrived::New(mine) => {
                        self.tell_if_undelivered(&client, &mine);
                        let in_hand = mine.in_hand();
                        match self.find_on_other_replicas(&order.fingerprint(), &client, &mine).boxed().await {
                            Ok(came) if came || !client.has_left() => {
                                in_hand.done();
                                if !came {
                                    match self.run_new(order, mine, key.clone()).boxed().await {
                                        Some(response) => return response,
                                        // An order with the same key got in first.
                                        None => continue,
                                    }
                                }
                                Earlier { call: None, order: Some(mine) }
                            }
                            Ok(_) => return self.refuse(order, hung_up()).await,
                            Err(what) if self.only_marks(&what) => {
                                in_hand.done();
                                return self.send_uncounted(order, Some(mine), what).await;
                            }
                            Err(what) => return self.refuse(order, what).await,
                        }
                    }
                },
                Err(what) if what.code == Code::KeyReused && self.only_marks(&what) => {
                    // As if it had none: an order of its own.
                    let _ = order.would.set(what);
                    key = None;
                    continue;
                }
                Err(what) if self.only_marks(&what) => return self.send_uncounted(order, None, what).await,
                Err(what) => return self.refuse(order, what).await,
            };
            if let Some(response) = self.join_earlier(order, &earlier, &client, until).boxed().await {
                return response;
            }
        }
    }

    /// An order that is none of those before it. `None`: its key belongs to another that was put on record meanwhile.
    async fn run_new(&self, order: &Arc<CreateOrder>, mine: OrderRef, key: Option<Alias>) -> Option<Response<Bytes>> {
        let (kept, in_hand) = (mine.clone(), mine.in_hand());
        let response = self.admit_and_send(order, mine, key).boxed().await;
        if response.is_err() {
            kept.not_created();
        }
        in_hand.done();
        match response {
            Ok(response) => Some(response),
            Err(Some(what)) => Some(self.refuse(order, what).await),
            Err(None) => None,
        }
    }

    /// The app may speak of the call by an id of its own from now on. It is none to know an order by: another create may have it too.
    async fn bind_own_ids(&self, order: &CreateOrder, call: &CallId) {
        let none = BTreeMap::new();
        let message = Message { body: &order.body, query: &[], path: &none, headers: order.request.headers() };
        let bind = order.operation.own_ids.read(&message);
        if bind.is_empty() {
            return;
        }
        let change = Change { bind, ..self.lifecycle.change(call, "order") };
        if let Err(error) = self.lifecycle.apply(change).await {
            warn!(%call, %error, "failed to record the app's own id of a call");
        }
    }

    /// An error is an order that was not sent: with what the app is told, or without, where its key is another's.
    async fn admit_and_send(
        &self,
        order: &Arc<CreateOrder>,
        mine: OrderRef,
        key: Option<Alias>,
    ) -> Result<Response<Bytes>, Option<Refusal>> {
        if order.operation.join
            && let Some(joined) = self.joinable(order).boxed().await
        {
            // A call that ended since it was read holds no lease, and must not get one: nobody would ever give it back.
            if let Ok(Some(lease)) = self.lifecycle.capacity.lease(&joined.record.id).await {
                return self.run_joined(lease, joined, order, mine).boxed().await.map_err(Some);
            }
        }
        let many = match self.how_many(order).boxed().await {
            Ok(Many::Admit(ask)) => ask,
            // Nobody can say how many calls it makes; it counts as one until they are seen.
            Err(what) if self.observes() && what.code != Code::StoreUnavailable => {
                let _ = order.would.set(what);
                many::Ask { slots: Slots::ONE, aliases: vec![] }
            }
            Err(what) if self.only_marks(&what) => return Ok(self.send_uncounted(order, Some(mine), what).await),
            Err(what) => return Err(Some(what)),
            Ok(Many::Held(record)) => return Box::pin(self.run_held(*record, order, mine)).await.map_err(Some),
        };
        let call = CallId::new();
        let wanted = many.slots.wanted;
        let mut prepared = self.prepare(order, &call, (wanted, wanted)).map_err(|m| Some(not_dialled(m)))?;
        let deciding = self.lifecycle.capacity.deciding().await;
        let policy = self.lifecycle.policy.load_full();
        if !policy.has_account(&order.facts.account) {
            let message =
                format!("Not dialled: account {} has just been taken out of the config.", order.facts.account);
            return Err(Some(Refusal::new(Code::InitiationFailed, message)));
        }
        let at_ms = self.lifecycle.clock.now_ms();
        let send_by = since_boot() + self.settings.send_within;
        let bindings = policy.bindings(&order.facts);
        let ask = AdmissionRequest { call: call.clone(), bindings, slots: many.slots, mode: policy.mode(), at_ms };
        let mut record = self.lifecycle.new_call(&call, order.facts.clone(), Origin::Order, Phase::Reserved);
        record.callback = prepared.callback.take();
        record.polled = !prepared.events_will_come;
        record.fingerprint = Some(order.fingerprint().as_str().to_owned());
        record.aliases = many.aliases;
        record.aliases.extend(key);
        record.aliases.extend(order.subaccount.as_ref().and_then(|id| subaccount_alias(id, call.as_str())));
        let (lease, would_refuse) = match self.lifecycle.admit(ask, record).boxed().await {
            Ok(Admission::Admitted(lease, would_refuse, _)) => (lease, would_refuse),
            Ok(Admission::Known(_)) => return Err(None),
            Ok(Admission::Refused(full)) => return Err(Some(self.refused_full(order, &full).boxed().await)),
            Err(unadmitted) => {
                let what = match unadmitted {
                    AdmissionError::Gate(why) => {
                        // What it is, and where, is for operators.
                        warn!(account = %order.account.name, why, "failed to admit a create: the gate cannot decide");
                        let message = "Limits cannot be checked just now, so nothing was dialled.";
                        Refusal::new(Code::GateUnavailable, message)
                    }
                    AdmissionError::Store(_) => {
                        let message = "The call record could not be written, so nothing was dialled.";
                        Refusal::new(Code::StoreUnavailable, message)
                    }
                };
                drop(deciding);
                return match self.only_marks(&what) {
                    true => Ok(self.send_uncounted(order, Some(mine), what).boxed().await),
                    false => Err(Some(what)),
                };
            }
        };
        mine.opened(&call);
        drop(deciding);
        failpoint::hit("create.recorded").await;
        let slots = (lease.slots(), wanted);
        if slots.0 < wanted {
            match self.prepare(order, &call, slots) {
                Ok(cut) => prepared = cut,
                Err(message) => {
                    self.end(&call, End::NotCreated, EndProof::Provider, "order").await;
                    return Err(Some(not_dialled(message)));
                }
            }
        }
        self.note_admitted(order, &call, slots, would_refuse.as_ref()).await;
        if let Some(what) = order.would.get() {
            self.note_would_refuse(order, what);
        }
        if self.replica().is_some() && mine.is_abandoned_by_client() {
            // It may have come again at a replica that looked for this one before it was on record, and that dials for it.
            self.end(&call, End::NotCreated, EndProof::Provider, "order").await;
            return Err(Some(hung_up()));
        }
        self.bind_own_ids(order, &call).await;
        if since_boot() > send_by {
            failpoint::hit("create.stale").await;
            self.end(&call, End::NotCreated, EndProof::Deadline, "order").await;
            failpoint::hit("create.stale.ended").await;
            let message = "Not dialled: the process was paused past the send deadline.";
            return Err(Some(Refusal::new(Code::StoreUnavailable, message)));
        }
        let mut response = self.exchange(lease, Gated::new(prepared.request), order, None, mine, send_by).boxed().await;
        if slots.0 < slots.1
            && response.status().is_success()
            && let Ok(granted) = HeaderValue::try_from(format!("{}/{}", slots.0, slots.1))
        {
            response.headers_mut().insert("x-ringfence-slots", granted);
        }
        if let Some(full) = would_refuse
            && let Ok(limit) = HeaderValue::try_from(full.limit.as_ref())
        {
            response.headers_mut().insert(WOULD_REFUSE, limit);
        }
        Ok(response)
    }

    /// Sends, and settles by the answer, whenever it comes. The app is answered at its time-out.
    async fn exchange(
        &self,
        lease: Lease,
        request: Gated<Request<Bytes>>,
        order: &Arc<CreateOrder>,
        joined: Option<Joining>,
        mine: OrderRef,
        send_by: Duration,
    ) -> Response<Bytes> {
        let (call, account) = (lease.call().clone(), order.account.clone());
        let sdk_sleeps = order.sdk_sleeps;
        let (this, order, told) = (self.clone(), order.clone(), mine.clone());
        let in_hand = mine.in_hand();
        let settling = async move {
            failpoint::hit("create.sending").await;
            let started = Instant::now();
            let (lease, outcome) = this.send(request, lease, send_by).await;
            this.lifecycle.metrics.upstream_seconds(order.account.name.as_str(), started.elapsed().as_secs_f64());
            failpoint::hit("create.answered").await;
            let (settled, response) =
                this.settle(lease.call(), outcome, &order, joined.as_ref().map(|j| &j.record)).boxed().await;
            match settled {
                Settled::Created => mine.created(&response),
                Settled::NotCreated => mine.not_created(),
                Settled::Unknown => {
                    mine.unknown();
                    mine.mark_reported_unknown();
                }
            }
            in_hand.done();
            // Only now may another request join the call, whenever the app was answered.
            drop(joined);
            response
        };
        let mut settling = finish(self.tasks.track_future(settling));
        match tokio::time::timeout(self.settings.create_timeout, &mut settling).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                warn!(%call, %error, "upstream exchange failed: task panicked");
                self.unknown_answer(&account, sdk_sleeps, &call, "ringfence failed while placing the call")
            }
            Err(_) => {
                // It reads on by itself.
                drop(settling);
                told.mark_reported_unknown();
                self.mark_unknown(&call).await;
                let secs = self.settings.create_timeout.as_secs();
                let why = format!("{} did not answer within {secs} s", account.provider.name);
                self.unknown_answer(&account, sdk_sleeps, &call, &why)
            }
        }
    }

    /// The only way in which a create goes out: once.
    pub(super) async fn send(
        &self,
        request: Gated<Request<Bytes>>,
        lease: Lease,
        send_by: Duration,
    ) -> (Lease, Outcome) {
        let outcome = self.upstream.create(request.open(&lease), ANSWER_BYTES_MAX, send_by).await;
        (lease, outcome)
    }

    async fn settle(
        &self,
        call: &CallId,
        outcome: Outcome,
        order: &CreateOrder,
        joined: Option<&CallRecord>,
    ) -> (Settled, Response<Bytes>) {
        let provider = &order.account.provider;
        let answer = match outcome {
            Outcome::Answered(answer) => answer,
            Outcome::NotSent(error) => {
                failpoint::hit("create.not_sent").await;
                if joined.is_none() {
                    self.end(call, End::NotCreated, EndProof::Provider, "answer").await;
                }
                failpoint::hit("create.not_sent.ended").await;
                let message = format!("Not dialled: {} cannot be reached: {error}", provider.name);
                let refused = self.refuse(order, Refusal::new(Code::InitiationFailed, message)).await;
                return (Settled::NotCreated, refused);
            }
            Outcome::Unknown(error) => {
                self.mark_unknown(call).await;
                let why = format!("the answer of {} was lost: {error}", provider.name);
                return (Settled::Unknown, self.unknown_answer(&order.account, order.sdk_sleeps, call, &why));
            }
        };
        let status = answer.status().as_u16();
        let content_type = answer.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let body = Document::decode(content_type, answer.body());
        let message = Message { body: &body, query: &[], path: &Default::default(), headers: answer.headers() };
        let success = &order.operation.success;
        if success.status.contains(&status) && (success.unless.is_empty() || !success.unless.holds(&message)) {
            let ids = order.operation.ids.read(&message);
            let state = order.operation.phase.read(&message, EndProof::Provider);
            let kept = self.recorded(order, &pass_on(answer.clone()));
            self.created(call, ids, state, kept, order).boxed().await;
        } else if let Some(limit) =
            provider.limits.iter().find(|l| l.status == status && (l.when.is_empty() || l.when.holds(&message)))
        {
            failpoint::hit("create.limit").await;
            if joined.is_none() {
                self.end(call, End::NotCreated, EndProof::Provider, "answer").await;
            }
            failpoint::hit("create.limit.ended").await;
            if self.observes() {
                let provider = &provider.name;
                let class = limit.class.as_str();
                self.lifecycle.metrics.provider_limit(provider, order.account.name.as_str(), class);
                let message = format!("{provider} says that its limit of the kind {class} is full.");
                if limit.class == LimitClass::Concurrency {
                    self.looks.want(&order.account.name);
                }
                let what = Refusal::new(Code::ProviderLimit, message);
                self.note_would_refuse(order, &what);
                let _ = order.would.set(what);
                return (Settled::NotCreated, pass_on(answer));
            }
            let wait_secs =
                retry_after_secs(answer.headers(), self.lifecycle.clock.now_ms()).unwrap_or(limit.wait_secs);
            return (Settled::NotCreated, self.refuse_by_provider(order, limit.class, wait_secs).boxed().await);
        } else if matches!(status, 307 | 308) {
            // The order is to be sent elsewhere (RFC 9110 §15.4.8), so it was not carried out here.
            if joined.is_none() {
                self.end(call, End::NotCreated, EndProof::Provider, "answer").await;
            }
            return (Settled::NotCreated, self.refuse(order, redirected(order, call, &answer)).await);
        } else if status >= 500 || (300..400).contains(&status) {
            // The other redirects may answer an order that was carried out (RFC 9110 §15.4.4).
            self.mark_unknown(call).await;
            let why = format!("{} answered {status}", provider.name);
            return (Settled::Unknown, self.unknown_answer(&order.account, order.sdk_sleeps, call, &why));
        } else if answer.status().is_success() && !success.status.contains(&status) {
            // A success of a kind that nobody described is not a refusal: there may be a call.
            self.lifecycle.metrics.outcome_unknown(order.account.name.as_str());
            warn!(%call, status, "unknown provider response to a create; slot held until the provider is queried");
            let kept = self.recorded(order, &pass_on(answer.clone()));
            let change = Change { unsettled: Some(true), answer: kept, ..self.lifecycle.change(call, "order") };
            self.lifecycle.apply_with_retry(change).await;
        } else {
            if joined.is_none() {
                failpoint::hit("create.rejected").await;
                self.end(call, End::NotCreated, EndProof::Provider, "answer").await;
                failpoint::hit("create.rejected.ended").await;
            }
            return (Settled::NotCreated, pass_on(answer));
        }
        (Settled::Created, pass_on(answer))
    }

    /// The provider has the call.
    async fn created(
        &self,
        call: &CallId,
        ids: Vec<Alias>,
        state: Option<Event>,
        answer: Option<CreateAnswer>,
        order: &CreateOrder,
    ) {
        // Success without an id that a look-up takes: the call can only be found by searching. Some answers never have one.
        let carrier = order.facts.carrier.as_ref().and_then(|name| self.account(name));
        let looks_up = |kind: &str| {
            order.account.provider.looks_up(kind) || carrier.is_some_and(|carrier| carrier.provider.looks_up(kind))
        };
        let unsettled = !ids.iter().any(|id| looks_up(&id.kind));
        if unsettled && order.operation.ids.kinds().any(looks_up) {
            self.lifecycle.metrics.outcome_unknown(order.account.name.as_str());
        }
        let change = Change {
            event: Some(state.unwrap_or(Event::Reached(Phase::Dialing))),
            bind: ids,
            unsettled: Some(unsettled),
            answer,
            ..self.lifecycle.change(call, "answer")
        };
        failpoint::hit("create.unbound").await;
        // Without its ids no webhook and no sweep would find it before its deadline.
        self.lifecycle.apply_with_retry(change).await;
        failpoint::hit("create.bound").await;
    }

    /// `slots`: how many were granted, of how many that were wanted.
    fn prepare(&self, order: &CreateOrder, call: &CallId, slots: (u32, u32)) -> Result<Prepared, String> {
        let mut request = Request::new(order.request.body().clone());
        *request.method_mut() = order.request.method().clone();
        *request.uri_mut() = order.request.uri().clone();
        *request.headers_mut() = order.request.headers().clone();
        request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let (mut callback, mut events_will_come) = (None, false);
        match &order.body {
            Document::Json(_) if !order.operation.inject.is_empty() || slots.0 < slots.1 => {
                // Every byte of the app's stays as it is, whatever a parser would make of it.
                let mut body = order.request.body().clone();
                let cut = order.operation.slots.as_ref().and_then(|rule| rule.cut.as_deref());
                if let Some(at) = cut.filter(|_| slots.0 < slots.1) {
                    let free = || format!("Not dialled: {at} cannot be set to {}, which is what is free.", slots.0);
                    body = put(&body, at, &slots.0.into()).ok_or_else(free)?.into();
                }
                for one in &order.operation.inject {
                    let value = render(&one.value, Target::Plain, |n| (n == "call_id").then(|| call.as_str().into()));
                    match put(&body, &one.at, &value.map_err(|e| e.to_string())?.into()) {
                        Some(with) => body = with.into(),
                        // The app has something else there; its body wins, the call is found by other means.
                        None => warn!(%call, at = one.at, "failed to add the call id to a create request"),
                    }
                }
                *request.body_mut() = body;
            }
            Document::Form(pairs) => {
                if let Some((body, app)) = self.take_over_callback(order, call, pairs) {
                    *request.body_mut() = body.into();
                    callback = app;
                    events_will_come = true;
                }
            }
            _ => {}
        }
        // The body is here, whole: nobody has to be asked to go on, and its length is our own.
        for gone in [CONTENT_LENGTH, EXPECT] {
            request.headers_mut().remove(gone);
        }
        Ok(Prepared { request, callback, events_will_come })
    }

    /// The form with our callback in place of the app's.
    fn take_over_callback(
        &self,
        order: &CreateOrder,
        call: &CallId,
        pairs: &[(String, String)],
    ) -> Option<(String, Option<AppCallback>)> {
        let rule = self.callback_rule(order)?;
        if self.check_callbacks(order).is_err() {
            return None;
        }
        let public_url = self.settings.app.public_url.as_ref()?;
        let template = order.account.provider.webhooks.iter().find_map(|w| w.callback.as_ref())?;
        let path = render(template, Target::Url, |n| (n == "call_id").then(|| call.as_str().into())).ok()?;
        let field = |name: &str| pairs.iter().filter(|(k, _)| k == name).map(|(_, v)| v.clone()).collect::<Vec<_>>();
        let app = field(&rule.field).pop().filter(|url| !url.is_empty()).map(|url| AppCallback {
            url,
            method: field(&rule.method_field).pop().unwrap_or_else(|| "POST".to_owned()),
            events: field(&rule.events_field),
        });
        let ours = [&rule.field, &rule.method_field, &rule.events_field];
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.extend_pairs(pairs.iter().filter(|(k, _)| !ours.contains(&k)));
        form.append_pair(&rule.field, &join(public_url, &path));
        form.append_pair(&rule.method_field, "POST");
        form.extend_pairs(rule.events.iter().map(|event| (&rule.events_field, event)));
        Some((form.finish(), app))
    }

    // === joining ===

    /// The one open call of the same business and numbers that lacks the ids which the answer brings; else the one that its carrier
    /// brought, whatever it was connected to before. It is kept for this
    /// order until [`Calls::run`] has settled.
    async fn joinable(&self, order: &CreateOrder) -> Option<Joining> {
        let open = self.lifecycle.store.open_calls().await.ok()?;
        let (facts, kind) = (&order.facts, order.account.provider.lookup.as_ref().map(|l| l.needs.as_str())?);
        let fitting = open.into_iter().filter(|call| {
            call.facts.business == facts.business
                && call.facts.direction == facts.direction
                && call.facts.own_number == facts.own_number
                && call.facts.other_number == facts.other_number
                && !call.over_limit
                && call.counts()
        });
        let (with, without): (Vec<_>, Vec<_>) = fitting.partition(|call| call.alias(kind).is_some());
        let mut joining = self.joining.lock().unwrap_or_else(PoisonError::into_inner);
        // A call that its carrier brought, and that is connected to one conversation after the other, is one call.
        let again = with.into_iter().filter(|call| self.holder_of(call).is_some());
        let mut fitting: Vec<_> = if without.is_empty() { again.collect() } else { without };
        fitting.retain(|call| !joining.contains(&call.id));
        let [_] = &fitting[..] else { return None };
        let only = fitting.pop()?;
        joining.insert(only.id.clone());
        Some(Joining { record: only, of: self.joining.clone() })
    }

    /// The request belongs to a call that holds its slot already.
    async fn run_joined(
        &self,
        lease: Lease,
        joined: Joining,
        order: &Arc<CreateOrder>,
        mine: OrderRef,
    ) -> Result<Response<Bytes>, Refusal> {
        let call = joined.record.id.clone();
        let prepared = self
            .prepare(order, &call, (lease.slots(), lease.slots()))
            .map_err(|message| Refusal::new(Code::InvalidRequest, message))?;
        info!(%call, operation = order.operation.name, "create joined an open call");
        failpoint::hit("create.joined").await;
        mine.opened(&call);
        let send_by = since_boot() + self.settings.send_within;
        Ok(self.exchange(lease, Gated::new(prepared.request), order, Some(joined), mine, send_by).boxed().await)
    }

    /// The request makes the calls of an open order for many, which holds its slots already.
    async fn run_held(
        &self,
        record: CallRecord,
        order: &Arc<CreateOrder>,
        mine: OrderRef,
    ) -> Result<Response<Bytes>, Refusal> {
        let over = || Refusal::new(Code::InitiationFailed, "Not dialled: the batch has just ended; try again.");
        let joining = {
            let mut joining = self.joining.lock().unwrap_or_else(PoisonError::into_inner);
            // Two repetitions at once: the second one's drop must not let go of the first.
            joining.insert(record.id.clone()).then(|| Joining { record, of: self.joining.clone() })
        };
        let joining = joining.ok_or_else(over)?;
        match self.lifecycle.capacity.lease(&joining.record.id).await {
            Ok(Some(lease)) => self.run_joined(lease, joining, order, mine).boxed().await,
            _ => Err(over()),
        }
    }

    /// The outcome is unknown, and the order's client is told so.
    async fn mark_unknown(&self, call: &CallId) {
        failpoint::hit("create.unknown").await;
        let change =
            Change { unsettled: Some(true), untold_by: self.replica(), ..self.lifecycle.change(call, "order") };
        self.lifecycle.apply_with_retry(change).await;
        failpoint::hit("create.unknown.recorded").await;
    }

    /// Ends a call. What cannot be recorded now is recorded when the store is back; until then the slot is held.
    pub(super) async fn end(&self, call: &CallId, outcome: End, proof: EndProof, seen_by: &'static str) {
        let event = Some(Event::Ended(outcome, proof));
        self.lifecycle.apply_with_retry(Change { event, ..self.lifecycle.change(call, seen_by) }).await;
    }
}

fn not_dialled(message: String) -> Refusal {
    Refusal::new(Code::InvalidRequest, message)
}

/// The provider's answer as the app gets it.
pub(super) fn pass_on(mut answer: Response<Bytes>) -> Response<Bytes> {
    strip_hop_by_hop(answer.headers_mut());
    answer.headers_mut().remove(CONTENT_LENGTH);
    answer
}

/// How long a create may be sent after its admission.
pub const SEND_WITHIN: Duration = Duration::from_secs(10);
