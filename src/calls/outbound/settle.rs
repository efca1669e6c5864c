//! Settles a sent create by the provider's response: the call exists, it does not, or the outcome is unknown.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::{Response, Uri};
use tracing::warn;

use super::admit::{Sent, SentFor};
use super::dedupe::in_flight::SendOutcome;
use super::dedupe::replay::to_record;
use super::request::CreateRequest;
use crate::call::{EndProof, Event, Outcome, Phase, Source};
use crate::calls::context::Context;
use crate::calls::rejection::Rejections;
use crate::calls::rejection::RequestKind;
use crate::failpoint;
use crate::ids::{Alias, CallId};
use crate::net::headers::strip_hop_by_hop;
use crate::net::{SendResult, retry_after_secs};
use crate::provider::description::LimitAnswer;
use crate::provider::select::{Document, Message};
use crate::reply::{Rejection, RejectionCode};
use crate::store::{Change, CreateAnswer};

/// A settled create.
pub(super) struct Settled {
    /// Whether there is a call.
    pub(super) outcome: SendOutcome,
    /// The reason why there is none, unless the response is the provider's own.
    pub(super) rejection: Option<Rejection>,
    /// The app's response.
    pub(super) response: Response<Bytes>,
}

impl Settled {
    fn new(outcome: SendOutcome, response: Response<Bytes>) -> Self {
        Self { outcome, rejection: None, response }
    }
}

/// The state of the exchange with the provider when its outcome is recorded as unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExchangeState {
    /// The response may still come, and the provider may still carry the create out.
    Open,
    /// No response will come.
    Over,
}

impl ExchangeState {
    /// The source of the news that the outcome is unknown.
    fn source(self) -> Source {
        match self {
            Self::Open => Source::Create,
            Self::Over => Source::Answer,
        }
    }
}

/// Settles a sent create by the response.
pub(super) struct Settlement {
    context: Arc<Context>,
    rejections: Arc<Rejections>,
}

impl Settlement {
    pub(super) fn new(context: Arc<Context>, rejections: Arc<Rejections>) -> Self {
        Self { context, rejections }
    }

    /// Settles a call by the outcome of its request, and builds the app's response.
    pub(super) async fn settle(&self, sent: Sent, request: &CreateRequest) -> Settled {
        let Sent { call, sent_for, result, claim, joining, took: _ } = sent;
        if sent_for == SentFor::Uncounted {
            self.context.sweep_requests.request(&request.account.name);
        }
        let settled = match result {
            SendResult::Answered(answer) if sent_for == SentFor::Uncounted => {
                // There is no record that the answer could settle.
                Settled::new(SendOutcome::Unknown, pass_on(answer))
            }
            SendResult::Answered(answer) => self.answered(&call, answer, request, sent_for).boxed().await,
            SendResult::NotSent(error) => {
                failpoint::hit("create.not_sent").await;
                self.not_created(&call, sent_for).await;
                failpoint::hit("create.not_sent.ended").await;
                let message = format!("Not dialled: {} cannot be reached: {error}", request.account.provider.name);
                self.rejected(Rejection::new(RejectionCode::InitiationFailed, message), request)
            }
            SendResult::Unknown(error) => {
                let why = format!("the answer of {} was lost: {error}", request.account.provider.name);
                let answer = self.unknown(&call, sent_for, request, &why, ExchangeState::Over).await;
                Settled::new(SendOutcome::Unknown, answer)
            }
        };
        if let Some(claim) = claim {
            claim.settle(settled.outcome, &settled.response);
        }
        // Released only now: another request may join the call from here on, even if the app was answered before.
        drop(joining);
        settled
    }

    /// There is no call, and the response is ringfence's.
    fn rejected(&self, rejection: Rejection, request: &CreateRequest) -> Settled {
        let response = self.rejections.respond(rejection.clone(), &request.rejected());
        Settled { rejection: Some(rejection), ..Settled::new(SendOutcome::NotCreated, response) }
    }

    async fn answered(
        &self,
        call: &CallId,
        answer: Response<Bytes>,
        request: &CreateRequest,
        sent_for: SentFor,
    ) -> Settled {
        let provider = &request.account.provider;
        let status = answer.status().as_u16();
        let content_type = answer.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let body = Document::decode(content_type, answer.body());
        let message = Message::new(&body, answer.headers());
        let success = &request.operation.success;
        if success.status.contains(&status) && (success.unless.is_empty() || !success.unless.holds(&message)) {
            let ids = request.operation.ids.read(&message);
            let state = request.operation.phase.read(&message, EndProof::Provider);
            let answer = pass_on(answer);
            let kept = to_record(&self.context, request, &answer);
            self.created(call, ids, state, kept, request).boxed().await;
            return Settled::new(SendOutcome::Created, answer);
        }
        let limit =
            provider.limits.iter().find(|l| l.status == status && (l.when.is_empty() || l.when.holds(&message)));
        if let Some(limit) = limit {
            failpoint::hit("create.limit").await;
            self.not_created(call, sent_for).await;
            failpoint::hit("create.limit.ended").await;
            return self.limited(answer, limit, request);
        }
        if matches!(status, 307 | 308) {
            // The redirect asks to repeat the request elsewhere (RFC 9110 §15.4.8), so it was not carried out here.
            self.not_created(call, sent_for).await;
            return self.rejected(redirected(request, call, &answer), request);
        }
        if status >= 500 || (300..400).contains(&status) {
            // The other redirects may answer a request that was carried out (RFC 9110 §15.4.4).
            let why = format!("{} answered {status}", provider.name);
            let answer = self.unknown(call, sent_for, request, &why, ExchangeState::Over).await;
            return Settled::new(SendOutcome::Unknown, answer);
        }
        if answer.status().is_success() && !success.status.contains(&status) {
            // A success status that the description does not list is no rejection: there may be a call.
            self.context.lifecycle.metrics.outcome_unknown(&request.account.name);
            warn!(%call, status, "create response has a status unknown to the provider's description; slot held until the call is looked up");
            let answer = pass_on(answer);
            let kept = to_record(&self.context, request, &answer);
            let lifecycle = &self.context.lifecycle;
            let event = (sent_for == SentFor::OwnCall).then_some(Event::Reached(Phase::Dialing));
            let change = Change {
                event,
                unsettled: Some(true),
                exchange_over: sent_for == SentFor::OwnCall,
                answer: kept,
                ..lifecycle.change(call, Source::Create)
            };
            lifecycle.apply_with_retry(change).await;
            return Settled::new(SendOutcome::Created, answer);
        }
        failpoint::hit("create.rejected").await;
        self.not_created(call, sent_for).await;
        failpoint::hit("create.rejected.ended").await;
        Settled::new(SendOutcome::NotCreated, pass_on(answer))
    }

    /// Records that the provider has the call.
    async fn created(
        &self,
        call: &CallId,
        ids: Vec<Alias>,
        state: Option<Event>,
        answer: Option<CreateAnswer>,
        request: &CreateRequest,
    ) {
        let lifecycle = &self.context.lifecycle;
        // Without an id that a look-up accepts, the call can only be found by searching. Some responses never have one.
        let carrier = request.attributes.carrier.as_ref().and_then(|name| self.context.account(name));
        let looks_up = |kind: &str| {
            request.account.provider.looks_up(kind) || carrier.is_some_and(|carrier| carrier.provider.looks_up(kind))
        };
        let unsettled = !ids.iter().any(|id| looks_up(&id.kind));
        if unsettled && request.operation.ids.kinds().any(looks_up) {
            lifecycle.metrics.outcome_unknown(&request.account.name);
        }
        let change = Change {
            event: Some(state.unwrap_or(Event::Reached(Phase::Dialing))),
            bind: ids,
            unsettled: Some(unsettled),
            answer,
            ..lifecycle.change(call, Source::Answer)
        };
        failpoint::hit("create.unbound").await;
        // Without its ids no webhook or sweep would find the call before its deadline.
        lifecycle.apply_with_retry(change).await;
        failpoint::hit("create.bound").await;
    }

    /// Records that the request made no call: releases the slot that it took, if it took one.
    async fn not_created(&self, call: &CallId, sent_for: SentFor) {
        let lifecycle = &self.context.lifecycle;
        match sent_for {
            SentFor::OwnCall => {
                lifecycle.end_with_retry(call, Outcome::NotCreated, EndProof::Provider, Source::Answer).await;
            }
            // The call is as it was before, and no longer waits for this response.
            SentFor::JoinedCall => lifecycle.apply_with_retry(lifecycle.change(call, Source::Answer)).await,
            SentFor::Uncounted => {}
        }
    }

    /// Handles the provider's own limit. In observe mode its response is passed on to the app.
    fn limited(&self, answer: Response<Bytes>, limit: &LimitAnswer, request: &CreateRequest) -> Settled {
        let now_ms = self.context.lifecycle.clock.now_ms();
        let wait_secs = retry_after_secs(answer.headers(), now_ms).unwrap_or(limit.wait_secs);
        let rejection = self.rejections.of_provider_limit(&request.account, limit.class, wait_secs);
        if !self.context.observes() || request.kind == RequestKind::Job {
            return self.rejected(rejection, request);
        }
        self.rejections.observed(&rejection, &request.rejected());
        let _ = request.would_reject.set(rejection);
        Settled::new(SendOutcome::NotCreated, pass_on(answer))
    }

    /// Records that the outcome is unknown, and answers the client.
    pub(super) async fn unknown(
        &self,
        call: &CallId,
        sent_for: SentFor,
        request: &CreateRequest,
        why: &str,
        exchange: ExchangeState,
    ) -> Response<Bytes> {
        if sent_for != SentFor::Uncounted {
            failpoint::hit("create.unknown").await;
            let lifecycle = &self.context.lifecycle;
            // A job has no client that could send it again.
            let reported_unknown_by = self.context.replica().filter(|_| request.kind != RequestKind::Job);
            let change = Change {
                unsettled: Some(true),
                exchange_over: exchange == ExchangeState::Over && sent_for == SentFor::OwnCall,
                reported_unknown_by,
                ..lifecycle.change(call, exchange.source())
            };
            lifecycle.apply_with_retry(change).await;
            failpoint::hit("create.unknown.recorded").await;
        }
        match sent_for {
            SentFor::OwnCall | SentFor::JoinedCall => self.rejections.outcome_unknown(&request.rejected(), call, why),
            SentFor::Uncounted => {
                self.context.sweep_requests.request(&request.account.name);
                self.rejections.uncounted_outcome_unknown(&request.rejected(), why)
            }
        }
    }
}

/// The provider's response as the app receives it.
pub(super) fn pass_on(mut answer: Response<Bytes>) -> Response<Bytes> {
    strip_hop_by_hop(answer.headers_mut());
    answer.headers_mut().remove(CONTENT_LENGTH);
    answer
}

/// The rejection for a redirect which means that the request was not carried out.
fn redirected(request: &CreateRequest, call: &CallId, answer: &Response<Bytes>) -> Rejection {
    let (account, status) = (&request.account, answer.status().as_u16());
    let location = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let leads_to = location.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_owned));
    warn!(%call, account = %account.name, status, leads_to, "create redirected");
    let message = format!(
        "Not dialled: {} redirects creates, and ringfence follows no redirect; set the account's `upstream` to where it leads.",
        account.provider.name
    );
    Rejection::new(RejectionCode::UpstreamRedirects, message)
}
