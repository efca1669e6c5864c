//! The life of a create, from top to bottom:
//!
//! | phase | what it makes | where |
//! |---|---|---|
//! | parse | a [`CreateRequest`] | `proxy/create.rs` |
//! | deduplicate | a claim to a new request, or the response of the earlier one | [`dedupe`] |
//! | admit | an `Admitted`: a lease and a call record, or neither (observe mode may send it uncounted) | `admit` |
//! | send | a `Sent`; only an `Admitted` can be sent, and once | `admit` |
//! | settle | the call's ids recorded, or its lease released, or the outcome unknown | `settle` |
//! | respond | the provider's response, or a rejection that is logged, counted and recorded | `rejection` |
//!
//! An app that hangs up changes nothing: the request is finished ([`run_to_completion`]), its call is counted, its ids are recorded. The app
//! is answered at its time-out; the exchange with the provider is read to its end.

mod admit;
mod batch;
mod callback;
mod decide;
pub mod dedupe;
pub mod job;
mod joining;
mod not_sent;
mod observe;
mod prepare;
mod request;
mod settle;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::Response;
use tokio::time::Instant;
use tracing::{Instrument as _, Span, warn};

use super::context::Context;
use super::destination::Destinations;
use super::provider_client::ProviderClient;
use super::rejection::Rejections;
use crate::calls::lifecycle::run_to_completion;
use crate::clock::UnixMs;
use crate::failpoint;
use crate::metrics::CallbackUse;
use crate::net::{SendResult, UpstreamError};
use crate::reply::{Rejection, RejectionCode};
use crate::store::CallRecord;
use crate::telemetry::traces;
use admit::{AdmitStep, Admitted, Admitter};
use dedupe::fingerprint::key;
use dedupe::in_flight::{ClientHandle, ClientState, InFlightRequests, SendOutcome};
use dedupe::{Claimed, Deduplication, Identity};
use job::{JobPlaced, JobTerms, Unavailable, is_of_account};
pub(super) use joining::Joins;
use not_sent::NotSent;
pub use request::CreateRequest;
use settle::{ExchangeState, Settlement};

/// State that outlives a reload.
#[derive(Clone, Default)]
pub(super) struct OutboundState {
    in_flight: InFlightRequests,
    pub(super) joins: Joins,
}

/// Places calls: the pipeline of a create.
pub struct Outbound {
    context: Arc<Context>,
    rejections: Arc<Rejections>,
    in_flight: InFlightRequests,
    dedupe: Deduplication,
    admitter: Admitter,
    settlement: Settlement,
    destinations: Arc<Destinations>,
}

impl Outbound {
    pub(super) fn new(
        context: Arc<Context>,
        provider: Arc<ProviderClient>,
        rejections: Arc<Rejections>,
        destinations: Arc<Destinations>,
        state: OutboundState,
    ) -> Self {
        let OutboundState { in_flight, joins } = state;
        Self {
            dedupe: Deduplication::new(context.clone(), rejections.clone(), in_flight.clone()),
            admitter: Admitter::new(context.clone(), provider, rejections.clone(), joins),
            settlement: Settlement::new(context.clone(), rejections.clone()),
            context,
            rejections,
            destinations,
            in_flight,
        }
    }

    /// Restores the requests of the previous process that may be retried.
    pub fn restore<'a>(&self, calls: impl IntoIterator<Item = &'a CallRecord>, now_ms: UnixMs) {
        self.in_flight.restore(calls, now_ms);
    }

    /// Places a call. Dropping the future drops only the response: the request is finished. The owner of the client's connection
    /// reports to the [`ClientHandle`] whether the response was delivered.
    pub fn place(
        self: &Arc<Self>,
        request: CreateRequest,
    ) -> (ClientHandle, impl Future<Output = Response<Bytes>> + Send + 'static) {
        let handle = self.in_flight.client(request.fingerprint());
        let (client, request) = (handle.client(), Arc::new(request));
        let (this, of) = (self.clone(), request.clone());
        let work = async move { this.respond(&of, &client).await }.in_current_span();
        let (this, work) = (self.clone(), run_to_completion(self.context.tasks.track_future(work)));
        let answer = async move {
            work.await.unwrap_or_else(|error| {
                warn!(%error, "failed to finish a create");
                let lost = Rejection::new(RejectionCode::OutcomeUnknown, "ringfence failed while placing the call");
                this.rejections.respond(lost, &request.rejected())
            })
        };
        (handle, answer)
    }

    /// The last phase: the response.
    async fn respond(self: &Arc<Self>, request: &Arc<CreateRequest>, client: &Arc<ClientState>) -> Response<Bytes> {
        let mut response = match self.run(request, client).boxed().await {
            Ok(response) => response,
            Err(NotSent::Undecided(rejection)) if self.rejections.only_marks(&rejection) => {
                self.send_uncounted(request, rejection).boxed().await
            }
            Err(NotSent::Rejected(rejection) | NotSent::Undecided(rejection)) => {
                self.rejections.respond(rejection, &request.rejected())
            }
            Err(NotSent::LimitExceeded(full)) => {
                let exemplar = traces::exemplar(&Span::current(), self.context.lifecycle.clock.now_ms());
                self.context.lifecycle.metrics.added_to_rejected(request.read_at.elapsed(), exemplar);
                let rejection = self.rejections.of_full_limit(&request.attributes, &full).boxed().await;
                self.rejections.respond(rejection, &request.rejected())
            }
        };
        observe::mark(request, &mut response);
        response
    }

    /// Deduplicate → admit → send → settle.
    ///
    /// Checks of a new request other than its limits belong between the claim and the admission: a duplicate gets the response of
    /// the first request, whatever has changed since.
    async fn run(
        self: &Arc<Self>,
        request: &Arc<CreateRequest>,
        client: &Arc<ClientState>,
    ) -> Result<Response<Bytes>, NotSent> {
        let mut identity = self.identify(request)?;
        let until = Instant::now() + self.context.settings.create_timeout;
        loop {
            let claim = match self
                .dedupe
                .claim(request, client, &mut identity, until)
                .boxed()
                .instrument(traces::step("deduplicate"))
                .await?
            {
                Claimed::Duplicate(answer) => return Ok(answer),
                Claimed::New(claim) => claim,
            };
            if let Some(rejection) =
                self.destinations.rejection(request).boxed().instrument(traces::step("destination")).await
            {
                return Err(rejection.into());
            }
            match self
                .admitter
                .admit(request, claim, identity.key.clone())
                .boxed()
                .instrument(traces::step("admit"))
                .await?
            {
                AdmitStep::Admitted(admitted) => return Ok(self.send_and_settle(*admitted, request).boxed().await),
                // It is now a duplicate of the faster request, or joins its call.
                AdmitStep::Overtaken => {}
            }
        }
    }

    /// Returns the identity by which duplicates of the request are recognised. Rejects what the provider would not notice.
    fn identify(&self, request: &CreateRequest) -> Result<Identity, NotSent> {
        let observes = self.context.observes();
        if let Err(bad) = callback::check_callbacks(&self.context, request) {
            self.context.lifecycle.metrics.callback_rejected(CallbackUse::Create, bad.reason);
            let message = format!("Not dialled: callback URL not allowed: {bad}.");
            let rejection = Rejection::new(RejectionCode::InvalidRequest, message);
            if !observes {
                return Err(rejection.into());
            }
            // The provider will call the URL itself.
            let _ = request.would_reject.set(rejection);
        }
        match key(&request.attributes, request.upstream.headers()) {
            Ok(key) => Ok(Identity::new(key)),
            Err(why) if observes => {
                let _ = request.would_reject.set(Rejection::new(RejectionCode::InvalidRequest, why));
                Ok(Identity::new(None))
            }
            Err(why) => Err(Rejection::new(RejectionCode::InvalidRequest, why).into()),
        }
    }

    /// Sends, and settles by the provider's response, whenever it comes. The app is answered at its time-out.
    async fn send_and_settle(self: &Arc<Self>, admitted: Admitted, request: &Arc<CreateRequest>) -> Response<Bytes> {
        let (call, sent_for, admission_headers) =
            (admitted.call().clone(), admitted.sent_for(), admitted.admission_headers());
        traces::record_field("ringfence.call", call.as_str());
        let in_flight = admitted.claim().map(|claim| claim.request().clone());
        let (this, of) = (self.clone(), request.clone());
        let settling = async move {
            let sent = admitted.send(&this.context, &of.account.name).await;
            let took = sent.took;
            let settled = this.settlement.settle(sent, &of).boxed().instrument(traces::step("settle")).await;
            let exemplar = traces::exemplar(&Span::current(), this.context.lifecycle.clock.now_ms());
            this.context.lifecycle.metrics.added_to_sent(of.read_at.elapsed().saturating_sub(took), exemplar);
            settled.response
        };
        let mut settling = run_to_completion(self.context.tasks.track_future(settling.in_current_span()));
        let create_timeout = self.context.settings.create_timeout;
        let mut response = match tokio::time::timeout(create_timeout, &mut settling).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                warn!(%call, %error, "failed to settle a create");
                let why = "ringfence failed while placing the call";
                self.settlement.unknown(&call, sent_for, request, why, ExchangeState::Over).await
            }
            Err(_) => {
                // The task continues detached.
                drop(settling);
                if let Some(in_flight) = in_flight {
                    in_flight.mark_reported_unknown();
                }
                let secs = create_timeout.as_secs();
                let why = format!("{} did not answer within {secs} s", request.account.provider.name);
                self.settlement.unknown(&call, sent_for, request, &why, ExchangeState::Open).await
            }
        };
        admission_headers.put_on(&mut response);
        response
    }

    /// In observe mode, sends a request that no limiter could count.
    async fn send_uncounted(self: &Arc<Self>, request: &Arc<CreateRequest>, rejection: Rejection) -> Response<Bytes> {
        let Some(admitted) = self.admitter.admit_uncounted(request) else {
            // Observe mode has just been switched off.
            return self.rejections.respond(rejection, &request.rejected());
        };
        self.rejections.observed(&rejection, &request.rejected());
        let _ = request.would_reject.set(rejection);
        self.send_and_settle(admitted, request).await
    }

    /// Places a job of a bulk run through the same phases. No client waits for its response, each attempt has its own alias, and
    /// a rejection is reported to the dialler alone: no rejection record, none of the app's metrics. It must be awaited to its
    /// end.
    pub async fn place_job(&self, request: Arc<CreateRequest>, terms: JobTerms) -> JobPlaced {
        let tree = traces::job(request.account.name.as_str());
        self.run_job(request, terms).instrument(tree).await
    }

    async fn run_job(&self, request: Arc<CreateRequest>, terms: JobTerms) -> JobPlaced {
        traces::record_attributes(&request.attributes);
        if let Err(bad) = callback::check_callbacks(&self.context, &request) {
            return JobPlaced::Rejected(format!("callback URL not allowed: {bad}"));
        }
        let admitted = match self.admitter.admit_job(&request, terms).boxed().instrument(traces::step("admit")).await {
            Ok(admitted) => admitted,
            Err(placed) => return placed,
        };
        let call = admitted.call().clone();
        traces::record_field("ringfence.call", call.as_str());
        failpoint::hit("run.sending").await;
        let sent = admitted.send(&self.context, &request.account.name).boxed().await;
        failpoint::hit("run.answered").await;
        let is_late = matches!(sent.result, SendResult::NotSent(UpstreamError::Late));
        let unavailable = Unavailable::of(&sent.result, self.context.lifecycle.clock.now_ms());
        let settled = self.settlement.settle(sent, &request).boxed().instrument(traces::step("settle")).await;
        match (settled.outcome, settled.rejection) {
            (SendOutcome::Created, _) => JobPlaced::Called(call),
            (SendOutcome::Unknown, _) => JobPlaced::Unknown { call, unavailable },
            (SendOutcome::NotCreated, Some(rejection)) if rejection.code == RejectionCode::ProviderLimit => {
                JobPlaced::ProviderLimit { wait_secs: rejection.wait_secs().unwrap_or(1) }
            }
            (SendOutcome::NotCreated, _) if is_late => JobPlaced::Late,
            (SendOutcome::NotCreated, Some(rejection)) => JobPlaced::NotSent(rejection.message),
            (SendOutcome::NotCreated, None) => {
                let status = settled.response.status();
                let why = format!("the provider answered {}", status.as_u16());
                if is_of_account(status) { JobPlaced::NotSent(why) } else { JobPlaced::Rejected(why) }
            }
        }
    }
}
