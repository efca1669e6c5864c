//! Admission of a create: one decision over all limits that bind it, and its call record, or neither. Only this module makes an
//! [`Admitted`], and only an [`Admitted`] can be sent.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderValue, Request, Response};
use tokio::time::Instant;
use tracing::{Instrument as _, info, warn};

use super::batch::{self, Sizing, SlotRequest};
use super::decide::{DecideError, Decided, DecidedCall, Terms, decide};
use super::dedupe::in_flight::Claim;
use super::job::{JobPlaced, JobTerms};
use super::joining::{Joining, Joins};
use super::not_sent::NotSent;
use super::observe::WOULD_REFUSE;
use super::prepare::{SlotGrant, prepare};
use super::request::CreateRequest;
use crate::admission::{AdmissionError, Lease, Permit};
use crate::call::{EndProof, Outcome, Phase, Source};
use crate::calls::context::{ANSWER_BYTES_MAX, Context};
use crate::calls::provider_client::ProviderClient;
use crate::calls::rejection::{Rejections, client_disconnected};
use crate::clock::since_boot;
use crate::failpoint;
use crate::ids::{AccountName, Alias, CallId, mask_number};
use crate::net::SendResult;
use crate::policy::decision::LimitExceeded;
use crate::reply::{Rejection, RejectionCode};
use crate::store::Change;
use crate::telemetry::traces;

/// Response header: the concurrent calls that a batch was granted, and how many it asked for (`3/10`).
const SLOTS_HEADER: &str = "x-ringfence-slots";

/// The right to send one request once.
#[must_use]
pub(super) struct Admitted {
    permit: Permit,
    request: Request<Bytes>,
    /// The send deadline, see [`since_boot`].
    send_by: Duration,
    claim: Option<Claim>,
    joining: Option<Joining>,
    admission_headers: AdmissionHeaders,
}

/// Facts of the admission that the response reports.
#[derive(Debug, Clone)]
pub(super) struct AdmissionHeaders {
    slots: SlotGrant,
    would_reject: Option<Arc<str>>,
}

/// The call that a request was sent for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SentFor {
    /// The request's own call: it ends with the request.
    OwnCall,
    /// An open call that it joined, and that continues.
    JoinedCall,
    /// None that is on record: the next sweep counts it, if there is one.
    Uncounted,
}

/// A sent request with its outcome.
#[must_use]
pub(super) struct Sent {
    pub(super) call: CallId,
    pub(super) sent_for: SentFor,
    pub(super) result: SendResult,
    /// The time that its provider took.
    pub(super) took: Duration,
    /// None where it was sent uncounted.
    pub(super) claim: Option<Claim>,
    /// The open call that it joined, if it has no call of its own.
    pub(super) joining: Option<Joining>,
}

impl Admitted {
    /// The call.
    pub(super) fn call(&self) -> &CallId {
        self.permit.call()
    }

    /// Returns the call that this request is sent for.
    pub(super) fn sent_for(&self) -> SentFor {
        match (&self.permit, &self.joining) {
            (Permit::Uncounted(_), _) => SentFor::Uncounted,
            (Permit::Leased(_), Some(_)) => SentFor::JoinedCall,
            (Permit::Leased(_), None) => SentFor::OwnCall,
        }
    }

    /// The claim that duplicates of the request wait for.
    pub(super) fn claim(&self) -> Option<&Claim> {
        self.claim.as_ref()
    }

    /// Facts of the admission that the response reports.
    pub(super) fn admission_headers(&self) -> AdmissionHeaders {
        self.admission_headers.clone()
    }

    /// Sends the request. Nothing else sends a create, and each is sent once.
    pub(super) async fn send(mut self, context: &Context, account: &AccountName) -> Sent {
        failpoint::hit("create.sending").await;
        let sent_for = self.sent_for();
        let started = Instant::now();
        let span = traces::request("send");
        traces::set_trace_headers(&span, self.request.headers_mut());
        let sending = context.upstream.create(self.request, ANSWER_BYTES_MAX, self.send_by);
        let result = sending.instrument(span.clone()).await;
        traces::record_result(&span, &result);
        let took = started.elapsed();
        let exemplar = traces::exemplar(&span, context.lifecycle.clock.now_ms());
        context.lifecycle.metrics.upstream_seconds(account, took, exemplar);
        failpoint::hit("create.answered").await;
        Sent { call: self.permit.call().clone(), sent_for, result, took, claim: self.claim, joining: self.joining }
    }
}

impl AdmissionHeaders {
    /// Adds the headers to a response.
    pub(super) fn put_on(&self, response: &mut Response<Bytes>) {
        let slots = self.slots;
        if slots.is_cut()
            && response.status().is_success()
            && let Ok(granted) = HeaderValue::try_from(format!("{}/{}", slots.granted, slots.wanted))
        {
            response.headers_mut().insert(SLOTS_HEADER, granted);
        }
        if let Some(limit) = self.would_reject.as_ref().and_then(|limit| HeaderValue::try_from(limit.as_ref()).ok()) {
            response.headers_mut().insert(WOULD_REFUSE, limit);
        }
    }
}

/// The outcome of admitting a new request.
pub(super) enum AdmitStep {
    /// The request may be sent.
    Admitted(Box<Admitted>),
    /// Another request with one of its ids was recorded first: deduplication has to run again.
    Overtaken,
}

/// Admits creates: the only maker of an [`Admitted`].
pub(super) struct Admitter {
    context: Arc<Context>,
    provider: Arc<ProviderClient>,
    rejections: Arc<Rejections>,
    joins: Joins,
}

impl Admitter {
    pub(super) fn new(
        context: Arc<Context>,
        provider: Arc<ProviderClient>,
        rejections: Arc<Rejections>,
        joins: Joins,
    ) -> Self {
        Self { context, provider, rejections, joins }
    }

    /// Admits a new request, with this idempotency key, and writes its call record; or joins it to the open call that it belongs
    /// to.
    ///
    /// # Errors
    /// Nothing was sent, and no slot is held.
    pub(super) async fn admit(
        &self,
        request: &CreateRequest,
        claim: Claim,
        key: Option<Alias>,
    ) -> Result<AdmitStep, NotSent> {
        if request.operation.join
            && let Some(joining) = self.joins.join_open(&self.context, request).boxed().await
            // A call that has ended since it was read holds no lease, and must not get one: nothing would ever release it.
            && let Ok(Some(lease)) = self.context.lifecycle.admission.lease(&joining.record().id).await
        {
            return self.join(request, claim, joining, lease).await;
        }
        match batch::size(&self.context, &self.provider, request).boxed().await? {
            Sizing::Admit(slots) => self.admit_new(request, claim, key, slots).boxed().await,
            Sizing::Held(record) => {
                let ended = || {
                    let message = "Not dialled: the batch has just ended; try again.";
                    NotSent::Rejected(Rejection::new(RejectionCode::BatchEnded, message))
                };
                let joining = self.joins.join(*record).ok_or_else(ended)?;
                let call = joining.record().id.clone();
                // Another replica may be about to end the batch: it sees that the batch was retried since it was looked up.
                let retried = self.context.lifecycle.apply(self.context.lifecycle.change(&call, Source::Create)).await;
                match retried {
                    Ok(Some(retried)) if retried.record.phase != Phase::Ended => {}
                    Ok(_) => return Err(ended()),
                    Err(error) => return Err(not_sent(request, DecideError::Undecided(error.into()))),
                }
                match self.context.lifecycle.admission.lease(&call).await {
                    Ok(Some(lease)) => self.join(request, claim, joining, lease).await,
                    _ => Err(ended()),
                }
            }
        }
    }

    /// Joins the request to a call that holds its slot already.
    async fn join(
        &self,
        request: &CreateRequest,
        claim: Claim,
        joining: Joining,
        lease: Lease,
    ) -> Result<AdmitStep, NotSent> {
        let slots = SlotGrant::all(lease.slots());
        let prepared = prepare(&self.context, request, lease.call(), slots)?;
        info!(call = %lease.call(), operation = request.operation.name, "create joined an open call");
        failpoint::hit("create.joined").await;
        claim.recorded(lease.call());
        let admitted = Admitted {
            permit: Permit::Leased(lease),
            request: prepared.request,
            send_by: since_boot() + self.context.settings.send_within,
            claim: Some(claim),
            joining: Some(joining),
            admission_headers: AdmissionHeaders { slots, would_reject: None },
        };
        Ok(AdmitStep::Admitted(Box::new(admitted)))
    }

    async fn admit_new(
        &self,
        request: &CreateRequest,
        claim: Claim,
        key: Option<Alias>,
        asked: SlotRequest,
    ) -> Result<AdmitStep, NotSent> {
        let wanted = asked.slots.wanted;
        let terms = Terms {
            slots: asked.slots,
            mode: None,
            reserve: 0,
            bindings: vec![],
            aliases: asked.aliases.into_iter().chain(key).collect(),
            fingerprint: Some(request.fingerprint().as_str().to_owned()),
        };
        let decision = decide(&self.context, request, terms).await.map_err(|why| not_sent(request, why))?;
        let Decided::New(decided) = decision else { return Ok(AdmitStep::Overtaken) };
        let DecidedCall { lease, mut prepared, send_by, would_reject } = *decided;
        let call = lease.call().clone();
        claim.recorded(&call);
        failpoint::hit("create.recorded").await;
        let slots = SlotGrant { granted: lease.slots(), wanted };
        if slots.is_cut() {
            match prepare(&self.context, request, &call, slots) {
                Ok(cut) => prepared = cut,
                Err(rejection) => return self.take_back(claim, &call, EndProof::Provider, rejection).await,
            }
        }
        self.note_admitted(request, &call, slots, would_reject.as_ref()).await;
        if self.context.replica().is_some() && claim.request().is_abandoned_by_client() {
            // The client may have retried at a replica that looked for this request before it was recorded, and that now dials
            // for it.
            return self.take_back(claim, &call, EndProof::Provider, client_disconnected()).await;
        }
        self.bind_own_ids(request, &call).await;
        if since_boot() > send_by {
            failpoint::hit("create.stale").await;
            let message = "Not dialled: the process was paused past the send deadline.";
            let rejection = Rejection::new(RejectionCode::ProcessPaused, message);
            let taken_back = self.take_back(claim, &call, EndProof::Deadline, rejection).await;
            failpoint::hit("create.stale.ended").await;
            return taken_back;
        }
        let admission_headers = AdmissionHeaders { slots, would_reject: would_reject.map(|full| full.limit) };
        let (permit, request) = (Permit::Leased(lease), prepared.request);
        let admitted = Admitted { permit, request, send_by, claim: Some(claim), joining: None, admission_headers };
        Ok(AdmitStep::Admitted(Box::new(admitted)))
    }

    /// Admits a job of a bulk run, on its terms, and writes its call record.
    ///
    /// # Errors
    /// The job's outcome; nothing was sent, and no slot is held.
    pub(super) async fn admit_job(&self, request: &CreateRequest, mut job: JobTerms) -> Result<Admitted, JobPlaced> {
        let decision = decide(&self.context, request, Terms::of_job(&mut job)).await;
        let DecidedCall { lease, prepared, send_by, .. } = match decision.map_err(|why| job_not_placed(request, why))? {
            Decided::New(decided) => *decided,
            Decided::Known(call) => return Err(JobPlaced::Known(call)),
        };
        let (call, slots) = (lease.call().clone(), SlotGrant::all(lease.slots()));
        failpoint::hit("run.recorded").await;
        // The receiver may be gone; the call is placed nevertheless.
        let _ = job.admitted.send(call.clone());
        self.note_admitted(request, &call, slots, None).boxed().await;
        self.bind_own_ids(request, &call).boxed().await;
        if since_boot() > send_by {
            self.context.lifecycle.end_with_retry(&call, Outcome::NotCreated, EndProof::Deadline, Source::Create).await;
            warn!(%call, "process paused past the send deadline; a job was not sent");
            return Err(JobPlaced::Late);
        }
        let admission_headers = AdmissionHeaders { slots, would_reject: None };
        let permit = Permit::Leased(lease);
        Ok(Admitted { permit, request: prepared.request, send_by, claim: None, joining: None, admission_headers })
    }

    /// Ends a recorded call that will not be sent.
    async fn take_back(
        &self,
        claim: Claim,
        call: &CallId,
        proof: EndProof,
        rejection: Rejection,
    ) -> Result<AdmitStep, NotSent> {
        self.context.lifecycle.end_with_retry(call, Outcome::NotCreated, proof, Source::Create).await;
        claim.not_created();
        Err(rejection.into())
    }

    async fn note_admitted(
        &self,
        request: &CreateRequest,
        call: &CallId,
        slots: SlotGrant,
        would_reject: Option<&LimitExceeded>,
    ) {
        let attributes = &request.attributes;
        self.context.lifecycle.metrics.admitted(attributes);
        info!(
            %call,
            business = %attributes.business,
            plan = attributes.plan,
            account = %attributes.account,
            to = attributes.other_number.as_deref().map(mask_number),
            slots = (slots != SlotGrant::all(1)).then(|| format!("{} of {}", slots.granted, slots.wanted)),
            would_refuse = would_reject.map(|full| full.limit.as_ref()),
            "admitted"
        );
        if let Some(full) = would_reject {
            self.rejections.observed_full_limit(&request.account, attributes, full).await;
        }
        if let Some(rejection) = request.would_reject.get() {
            self.rejections.observed(rejection, &request.rejected());
        }
    }

    /// Records the app's own id of the call, which it may use from now on. It does not identify duplicates: another create may
    /// have the same one.
    async fn bind_own_ids(&self, request: &CreateRequest, call: &CallId) {
        let bind = request.operation.own_ids.read(&request.message());
        if bind.is_empty() {
            return;
        }
        let change = Change { bind, ..self.context.lifecycle.change(call, Source::Create) };
        if let Err(error) = self.context.lifecycle.apply(change).await {
            warn!(%call, %error, "failed to record the app's own id of a call");
        }
    }

    /// In observe mode, allows a request that no limiter could count: observing must not stop calls because a store is down. The
    /// next sweep counts the call. `None` in enforce mode.
    pub(super) fn admit_uncounted(&self, request: &CreateRequest) -> Option<Admitted> {
        let uncounted = self.context.lifecycle.admission.uncounted()?;
        Some(Admitted {
            permit: Permit::Uncounted(uncounted),
            request: request.to_send(),
            send_by: since_boot() + self.context.settings.send_within,
            claim: None,
            joining: None,
            admission_headers: AdmissionHeaders { slots: SlotGrant::all(0), would_reject: None },
        })
    }
}

/// The error of a create that was not admitted.
fn not_sent(request: &CreateRequest, why: DecideError) -> NotSent {
    let account = &request.attributes.account;
    match why {
        DecideError::Rejected(rejection) => rejection.into(),
        DecideError::LimitExceeded(full) => NotSent::LimitExceeded(full),
        DecideError::AccountRemoved => {
            let message = format!("Not dialled: account {account} was just removed from the config.");
            Rejection::new(RejectionCode::AccountRemoved, message).into()
        }
        DecideError::Undecided(AdmissionError::Gate(why)) => {
            // The cause is for operators, not for the client.
            warn!(%account, why, "failed to admit a create: the limiter cannot decide");
            let message = "Limits cannot be checked just now, so nothing was dialled.";
            NotSent::Undecided(Rejection::new(RejectionCode::GateUnavailable, message))
        }
        DecideError::Undecided(AdmissionError::Store(_)) => {
            let message = "The call record could not be written, so nothing was dialled.";
            NotSent::Undecided(Rejection::new(RejectionCode::StoreUnavailable, message))
        }
    }
}

/// The outcome of a job that was not admitted.
fn job_not_placed(request: &CreateRequest, why: DecideError) -> JobPlaced {
    match why {
        DecideError::Rejected(rejection) => JobPlaced::Rejected(rejection.message),
        DecideError::LimitExceeded(full) => JobPlaced::LimitExceeded(full),
        DecideError::AccountRemoved => {
            JobPlaced::Away(format!("account {} is no longer in the config", request.attributes.account))
        }
        DecideError::Undecided(error) => JobPlaced::Away(error.to_string()),
    }
}
