//! The only place that turns a rejection into a response. [`Rejections::respond`] logs, counts, records and writes it; the
//! response bytes cannot be obtained without it ([`NoteRejection`]).

use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use tracing::{info, warn};

use super::context::Context;
use super::rejection_log::RejectionLog;
use super::sdk_retries::SdkRetries;
use crate::call::Direction;
use crate::ids::{AccountName, CallId, mask_number};
use crate::metrics::{PLAN_INBOUND, PLAN_UNKNOWN, RejectedCall};
use crate::policy::decision::LimitExceeded;
use crate::policy::{Bound, CallAttributes};
use crate::provider::account::Account;
use crate::provider::description::LimitClass;
use crate::reply::{Disposition, FullLimit, NoteRejection, ObserveAction, Rejection, RejectionCode, ResponseStyle};
use crate::store::RejectionRecord;

/// The code of an inbound call that a full limit rejected, as clients of the replaced systems expect it.
pub const CAPACITY_INBOUND: &str = "capacity_inbound";

/// The kind of a rejected request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestKind {
    /// The request creates calls: its rejection is logged, counted and recorded.
    Create,
    /// The request is a job of a bulk run: its rejection is reported to the dialler only.
    Job,
    /// The request is not known to create calls: its rejection is only answered.
    Other,
}

/// The attributes of a request that its rejection is logged, counted and recorded with.
#[derive(Debug, Clone, Copy)]
pub struct RejectedRequest<'a> {
    /// The kind of request.
    pub kind: RequestKind,
    /// The account whose capacity it would have used.
    pub account: &'a Account,
    /// The business, or the unknown name that the request gave.
    pub business: &'a str,
    /// The plan of the business.
    pub plan: &'a str,
    /// The side that places the call.
    pub direction: Direction,
    /// The called number.
    pub to: Option<&'a str>,
    /// The client is an SDK that sleeps for `Retry-After` within the app's request.
    pub sdk_sleeps: bool,
    /// The key that all attempts of one request share: they count as one rejection.
    pub retry_key: Option<&'a str>,
}

impl<'a> RejectedRequest<'a> {
    /// A request that, as far as is known, creates no call: no business is told from it.
    pub fn other(account: &'a Account) -> Self {
        RejectedRequest {
            kind: RequestKind::Other,
            account,
            business: "unknown",
            plan: PLAN_UNKNOWN,
            direction: Direction::Outbound,
            to: None,
            sdk_sleeps: false,
            retry_key: None,
        }
    }
}

/// State that outlives a reload.
#[derive(Debug, Clone, Default)]
pub(super) struct RejectionState {
    log: RejectionLog,
    retries: SdkRetries,
}

/// Turns rejections into responses, and logs, counts and records them.
pub struct Rejections {
    context: Arc<Context>,
    state: RejectionState,
}

/// A rejection of one request that is about to be answered.
struct Noted<'a> {
    by: &'a Rejections,
    of: &'a RejectedRequest<'a>,
    is_retry: bool,
}

impl NoteRejection for Noted<'_> {
    fn note(&self, rejection: &Rejection) {
        let (of, context) = (self.of, &self.by.context);
        match (of.kind, rejection.code.disposition()) {
            (RequestKind::Create, Disposition::NotCalled) => {}
            (RequestKind::Create | RequestKind::Job, Disposition::Unknown) => {
                return context.lifecycle.metrics.outcome_unknown(&of.account.name);
            }
            (RequestKind::Create, Disposition::Called) | (RequestKind::Job | RequestKind::Other, _) => return,
        }
        let code = rejection.code.as_str(&of.account.provider.refusal);
        info!(
            refusal = %rejection.id,
            business = of.business,
            plan = of.plan,
            account = %of.account.name,
            code,
            limit = rejection.limit.as_ref().map(|limit| limit.name.as_str()),
            retry_after_secs = rejection.wait_secs(),
            to = of.to.map(mask_number),
            "request rejected"
        );
        if !self.is_retry {
            let reason = rejection.code.metric_reason(&of.account.provider.refusal);
            context.lifecycle.metrics.rejected(RejectedCall { reason, plan: of.plan, business: of.business });
        }
        self.by.record(of.business, &of.account.name, of.direction, rejection, code, Recorded::Rejected);
    }
}

/// The reason why a rejection is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recorded {
    /// The request was rejected.
    Rejected,
    /// Observe mode: it would have been rejected.
    Observed,
}

impl Rejections {
    pub(super) fn new(context: Arc<Context>, state: RejectionState) -> Self {
        Self { context, state }
    }

    /// The response to a rejected request, or to one with an unknown outcome.
    ///
    /// An SDK's attempts of one request are one rejection: they have one id, and are counted once.
    pub fn respond(&self, mut rejection: Rejection, of: &RejectedRequest<'_>) -> Response<Bytes> {
        let retry_after_max_secs = of.sdk_sleeps.then_some(self.context.settings.sdk_retry_after_max_secs);
        let retried = rejection.code.disposition() == Disposition::NotCalled
            && (rejection.wait_secs().is_some() || rejection.blocked_by.is_some());
        let key = of.retry_key.filter(|_| retried);
        let is_retry = match retry_after_max_secs.zip(key) {
            Some((retry_after_max_secs, key)) => {
                let (id, is_retry) = self.state.retries.id_of(key, retry_after_max_secs, rejection.id);
                rejection.id = id;
                is_retry
            }
            None => false,
        };
        if rejection.code.names_its_id() {
            rejection.message = format!("{} [{}]", rejection.message, rejection.id);
        }
        let style = ResponseStyle { shape: &of.account.provider.refusal, retry_after_max_secs };
        let code = rejection.code;
        let mut response = rejection.into_response(style, &Noted { by: self, of, is_retry });
        // For the trace of the request.
        response.extensions_mut().insert(code);
        response
    }

    /// The response to a create with an unknown outcome. Its slot is held.
    pub(super) fn outcome_unknown(&self, of: &RejectedRequest<'_>, call: &CallId, why: &str) -> Response<Bytes> {
        warn!(%call, why, "create outcome unknown; slot held until the call is looked up");
        let message = format!(
            "It is not known whether the call was dialled: {why}. Do not send it again; its slot is held until {} confirms the outcome. [{call}]",
            of.account.provider.name
        );
        self.respond(Rejection::new(RejectionCode::OutcomeUnknown, message), of)
    }

    /// The same, for a create that observe mode sent although it could not be counted.
    pub(super) fn uncounted_outcome_unknown(&self, of: &RejectedRequest<'_>, why: &str) -> Response<Bytes> {
        warn!(account = %of.account.name, why, "outcome of an uncounted create unknown; the next sweep counts its call");
        let message = format!(
            "It is not known whether the call was dialled: {why}. Do not send it again; it is not counted: the database is unavailable."
        );
        self.respond(Rejection::new(RejectionCode::OutcomeUnknown, message), of)
    }

    /// The rejection for a provider's own limit. A full concurrency limit means that our view is stale: the account is swept.
    pub(super) fn of_provider_limit(&self, account: &Account, class: LimitClass, wait_secs: u32) -> Rejection {
        let provider = &account.provider.name;
        self.context.lifecycle.metrics.provider_limit(account, class);
        if class == LimitClass::Concurrency {
            self.context.sweep_requests.request(&account.name);
        }
        let why = match class {
            LimitClass::Concurrency => "reports that the account's concurrent calls are used up",
            LimitClass::Rate => "reports that its rate limit is reached",
            LimitClass::Busy => "is overloaded",
        };
        let message = format!("Not dialled: {provider} {why}; try again in about {} s.", wait_secs.max(1));
        Rejection {
            retry_after_secs: Some(wait_secs),
            provider_class: Some(class),
            ..Rejection::new(RejectionCode::ProviderLimit, message)
        }
    }

    /// The rejection for a full limit.
    pub(super) async fn of_full_limit(&self, attributes: &CallAttributes, full: &LimitExceeded) -> Rejection {
        let lifecycle = &self.context.lifecycle;
        let counts = lifecycle.admission.counts().await.unwrap_or_default();
        let (used, all) = (counts.calls.saturating_sub(counts.over_limit), lifecycle.policy.load().global_limit());
        let retry_after_secs = full.free_in_ms.and_then(|ms| u32::try_from((ms + 999) / 1000).ok());
        let rejection = Rejection { retry_after_secs, ..Rejection::new(RejectionCode::of_full(full), String::new()) };
        let about = match (rejection.wait_secs(), full.free_in_ms) {
            (Some(secs), Some(_)) => format!("; one is expected to end in about {secs} s"),
            (Some(secs), None) => format!("; try again in about {secs} s"),
            (None, _) => String::new(),
        };
        let who = &attributes.business;
        let message = match full.bound {
            Bound::Rate(rate) => format!(
                "Not dialled: limit {} allows {} creates in {} s{about}.",
                full.limit,
                rate.count,
                rate.window_ms as f64 / 1000.0,
            ),
            Bound::Concurrent(0) => {
                format!("Not dialled: calls are not available to {who} (limit {} is 0).", full.limit)
            }
            Bound::Concurrent(n) => format!(
                "Not dialled: {who} has reached limit {} ({} of {n}){about}; platform: {used} of {all}.",
                full.limit, full.current
            ),
        };
        let bound = match full.bound {
            Bound::Concurrent(n) => n,
            Bound::Rate(rate) => rate.count,
        };
        let limit = FullLimit { name: full.limit.to_string(), in_use: full.current, bound };
        Rejection { message, limit: Some(limit), global: Some((used, all)), ..rejection }
    }

    /// Logs, counts and records an inbound call that a full limit rejected. Its caller gets no response of this kind.
    pub(super) async fn inbound(&self, call: &CallId, attributes: &CallAttributes, full: &LimitExceeded) {
        let rejection = self.of_full_limit(attributes, full).await;
        let business = attributes.business.as_str();
        let rejected = RejectedCall { reason: CAPACITY_INBOUND, plan: PLAN_INBOUND, business };
        self.context.lifecycle.metrics.rejected(rejected);
        info!(
            %call,
            refusal = %rejection.id,
            business = %attributes.business,
            plan = attributes.plan,
            account = %attributes.account,
            limit = %full.limit,
            from = attributes.other_number.as_deref().map(mask_number),
            "inbound call rejected"
        );
        self.record(
            business,
            &attributes.account,
            attributes.direction,
            &rejection,
            CAPACITY_INBOUND,
            Recorded::Rejected,
        );
    }

    // === observe mode ===

    /// Whether a rejection only marks its request.
    pub fn only_marks(&self, rejection: &Rejection) -> bool {
        self.context.observes() && rejection.code.observed() == ObserveAction::Sent
    }

    fn count_observed(&self, what: &str) {
        let lifecycle = &self.context.lifecycle;
        lifecycle.metrics.would_reject(what);
        if lifecycle.admission.bypass().is_some() {
            lifecycle.metrics.bypassed(what);
        }
    }

    /// Logs, counts and records what would have rejected a request that is sent.
    pub fn observed(&self, rejection: &Rejection, of: &RejectedRequest<'_>) {
        let code = rejection.code.as_str(&of.account.provider.refusal);
        self.count_observed(code);
        info!(refusal = %rejection.id, business = of.business, account = %of.account.name, code, why = rejection.message, "request would be rejected");
        self.record(of.business, &of.account.name, of.direction, rejection, code, Recorded::Observed);
    }

    /// Counts and records a full limit that was only observed: the call is admitted.
    pub(super) async fn observed_full_limit(
        &self,
        account: &Account,
        attributes: &CallAttributes,
        full: &LimitExceeded,
    ) {
        self.count_observed(&full.limit);
        let rejection = self.of_full_limit(attributes, full).await;
        let code = match attributes.direction {
            Direction::Inbound => CAPACITY_INBOUND,
            Direction::Outbound => rejection.code.as_str(&account.provider.refusal),
        };
        let business = attributes.business.as_str();
        self.record(business, &attributes.account, attributes.direction, &rejection, code, Recorded::Observed);
    }

    /// Records in the background: a rejection must not wait for a disk.
    fn record(
        &self,
        business: &str,
        account: &AccountName,
        direction: Direction,
        rejection: &Rejection,
        code: &str,
        why: Recorded,
    ) {
        let lifecycle = &self.context.lifecycle;
        let record = RejectionRecord {
            id: rejection.id.clone(),
            at: lifecycle.clock.now_ms(),
            business: business.to_owned(),
            account: account.to_string(),
            direction,
            code: code.to_owned(),
            limit_name: rejection.limit.as_ref().map(|limit| limit.name.clone()),
            current: rejection.limit.as_ref().map(|limit| limit.in_use),
            limit: rejection.limit.as_ref().map(|limit| limit.bound),
            observed: why == Recorded::Observed,
            attempts: 1,
            notice: lifecycle.notice,
        };
        self.state.log.record(record, &lifecycle.store, &self.context.tasks);
    }
}

/// The rejection for a client that disconnected before its request was admitted: it may be retrying on another connection
/// already.
pub fn client_disconnected() -> Rejection {
    Rejection::new(
        RejectionCode::ClientDisconnected,
        "Not dialled: the client disconnected before the request was admitted.",
    )
}
