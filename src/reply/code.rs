//! The codes of rejections: their names, statuses, default waits, and what observe mode does instead.

use http::StatusCode;

use crate::policy::decision::LimitExceeded;
use crate::policy::{Bound, Scope};
use crate::provider::description::RejectionShape;

/// The code of a rejection or failure: those of the replaced systems (docs/compatibility.md), and those that ringfence adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectionCode {
    /// The limit of the platform, or of the bought capacity, is full.
    GlobalCapacityExceeded,
    /// The business's own limit is full.
    BusinessLimitExceeded,
    /// One of the operator's named limits is full.
    LimitExceeded,
    /// Too many creates per interval.
    RateExceeded,
    /// The limit is 0.
    PlanNotAllowed,
    /// The business is unknown.
    UnknownBusiness,
    /// The provider answered 429.
    ProviderLimit,
    /// The provider could not be reached.
    InitiationFailed,
    /// The create's account was removed from the config.
    AccountRemoved,
    /// The batch that the request retries has just ended.
    BatchEnded,
    /// The number of concurrent calls of the batch that the request retries is unknown.
    BatchSizeUnknown,
    /// The process paused between admission and send.
    ProcessPaused,
    /// There is no memory for the request's body.
    Overloaded,
    /// The create may have made a call.
    OutcomeUnknown,
    /// The create was sent before, and made a call.
    AlreadyPlaced,
    /// The idempotency key belongs to another create.
    KeyReused,
    /// The destination is not a telephone number that can be called.
    InvalidDestination,
    /// The destination must not be called: a do-not-call list, or the operator's rules.
    DoNotCall,
    /// The client disconnected before its create was admitted.
    ClientDisconnected,
    /// The call record could not be written, so nothing was sent.
    StoreUnavailable,
    /// The limiter does not answer, so nothing was sent.
    GateUnavailable,
    /// The request's body is too large to be a create.
    BodyTooLarge,
    /// The request is malformed.
    InvalidRequest,
    /// The request's body is compressed, so it cannot be read.
    EncodedBody,
    /// The request names one account and uses the credentials of another.
    AccountMismatch,
    /// The provider cannot be reached (request without a call).
    UpstreamUnreachable,
    /// The provider received the request, which creates no call, and did not answer it.
    UpstreamSilent,
    /// The provider's answer redirects to one of its other hosts.
    UpstreamRedirects,
}

/// The action of observe mode where enforce mode answers with a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObserveAction {
    /// The create is sent and marked: counter, log, record, and a header on the response. A create whose body cannot be read passes
    /// through, and its response has no such header.
    Sent,
    /// The provider's own answer is passed on unchanged, and marked.
    PassedOn,
    /// The answer is the same in both modes: nothing can be sent, or something was.
    Answered,
}

impl ObserveAction {
    /// The text in the docs.
    pub const fn as_str(self) -> &'static str {
        match self {
            ObserveAction::Sent => "sent and marked",
            ObserveAction::PassedOn => "the provider's own answer, marked",
            ObserveAction::Answered => "the same answer",
        }
    }
}

/// Whether a request answered with a code has made a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// The request has made no call.
    NotCalled,
    /// The request may have made a call.
    Unknown,
    /// The request made a call when it was sent the first time.
    Called,
}

/// The provider's error format that fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Concurrency,
    Rate,
    Denied,
    Invalid,
    Unavailable,
}

impl Kind {
    pub(super) const fn key(self) -> &'static str {
        match self {
            Kind::Concurrency => "concurrency",
            Kind::Rate => "rate",
            Kind::Denied => "denied",
            Kind::Invalid => "invalid",
            Kind::Unavailable => "unavailable",
        }
    }
}

impl RejectionCode {
    /// All codes.
    pub const ALL: [Self; 28] = [
        RejectionCode::GlobalCapacityExceeded,
        RejectionCode::BusinessLimitExceeded,
        RejectionCode::LimitExceeded,
        RejectionCode::RateExceeded,
        RejectionCode::PlanNotAllowed,
        RejectionCode::UnknownBusiness,
        RejectionCode::ProviderLimit,
        RejectionCode::InitiationFailed,
        RejectionCode::AccountRemoved,
        RejectionCode::BatchEnded,
        RejectionCode::BatchSizeUnknown,
        RejectionCode::ProcessPaused,
        RejectionCode::Overloaded,
        RejectionCode::OutcomeUnknown,
        RejectionCode::AlreadyPlaced,
        RejectionCode::KeyReused,
        RejectionCode::InvalidDestination,
        RejectionCode::DoNotCall,
        RejectionCode::ClientDisconnected,
        RejectionCode::StoreUnavailable,
        RejectionCode::GateUnavailable,
        RejectionCode::BodyTooLarge,
        RejectionCode::InvalidRequest,
        RejectionCode::EncodedBody,
        RejectionCode::AccountMismatch,
        RejectionCode::UpstreamUnreachable,
        RejectionCode::UpstreamSilent,
        RejectionCode::UpstreamRedirects,
    ];

    /// Returns the action of observe mode instead: only what cannot be sent at all is rejected.
    pub const fn observed(self) -> ObserveAction {
        match self {
            // Limits, and rules about the business or the destination.
            RejectionCode::GlobalCapacityExceeded
            | RejectionCode::BusinessLimitExceeded
            | RejectionCode::LimitExceeded
            | RejectionCode::RateExceeded
            | RejectionCode::PlanNotAllowed
            | RejectionCode::UnknownBusiness
            | RejectionCode::InvalidDestination
            | RejectionCode::DoNotCall
            | RejectionCode::KeyReused => ObserveAction::Sent,
            // The batch counts as one call until its calls are seen.
            RejectionCode::BatchSizeUnknown => ObserveAction::Sent,
            // We cannot count it, or not parse it; the provider accepts it all the same.
            RejectionCode::StoreUnavailable | RejectionCode::GateUnavailable | RejectionCode::EncodedBody => {
                ObserveAction::Sent
            }
            // The provider's rejection, not ours.
            RejectionCode::ProviderLimit => ObserveAction::PassedOn,
            // The provider cannot be reached, or not unambiguously, or the request is incomplete.
            RejectionCode::InitiationFailed
            | RejectionCode::AccountRemoved
            | RejectionCode::BatchEnded
            | RejectionCode::Overloaded
            | RejectionCode::UpstreamUnreachable
            | RejectionCode::AccountMismatch
            | RejectionCode::BodyTooLarge
            | RejectionCode::InvalidRequest => ObserveAction::Answered,
            // Nobody waits for the call any more, or it may have been retried elsewhere.
            RejectionCode::ClientDisconnected | RejectionCode::ProcessPaused => ObserveAction::Answered,
            // The create was sent; the code says what came of it.
            RejectionCode::OutcomeUnknown
            | RejectionCode::AlreadyPlaced
            | RejectionCode::UpstreamSilent
            | RejectionCode::UpstreamRedirects => ObserveAction::Answered,
        }
    }

    /// The code for a full limit.
    pub fn of_full(full: &LimitExceeded) -> Self {
        match (full.bound, full.scope) {
            (Bound::Rate(_), _) => RejectionCode::RateExceeded,
            (Bound::Concurrent(0), Scope::Business) => RejectionCode::PlanNotAllowed,
            (_, Scope::Business) => RejectionCode::BusinessLimitExceeded,
            (_, Scope::Named) => RejectionCode::LimitExceeded,
            (_, Scope::Account | Scope::Global) => RejectionCode::GlobalCapacityExceeded,
        }
    }

    /// The code in the body's `error` field.
    pub fn as_str(self, shape: &RejectionShape) -> &str {
        self.fixed_str().unwrap_or(&shape.provider_429_code)
    }

    /// The same; `None` for that of a provider's own limit, which the provider's description has.
    pub const fn fixed_str(self) -> Option<&'static str> {
        Some(match self {
            RejectionCode::GlobalCapacityExceeded => "GLOBAL_CAPACITY_EXCEEDED",
            RejectionCode::BusinessLimitExceeded => "BUSINESS_CONCURRENT_LIMIT_EXCEEDED",
            RejectionCode::LimitExceeded => "CONCURRENT_LIMIT_EXCEEDED",
            RejectionCode::RateExceeded => "REQUEST_RATE_EXCEEDED",
            RejectionCode::PlanNotAllowed => "PLAN_NOT_ALLOWED",
            RejectionCode::UnknownBusiness => "UNKNOWN_BUSINESS",
            RejectionCode::ProviderLimit => return None,
            RejectionCode::InitiationFailed => "CALL_INITIATION_FAILED",
            RejectionCode::AccountRemoved => "ACCOUNT_REMOVED",
            RejectionCode::BatchEnded => "BATCH_ENDED",
            RejectionCode::BatchSizeUnknown => "BATCH_SIZE_UNKNOWN",
            RejectionCode::ProcessPaused => "PROCESS_PAUSED",
            RejectionCode::Overloaded => "OVERLOADED",
            RejectionCode::OutcomeUnknown => "CALL_OUTCOME_UNKNOWN",
            RejectionCode::AlreadyPlaced => "CALL_ALREADY_PLACED",
            RejectionCode::KeyReused => "IDEMPOTENCY_KEY_REUSED",
            RejectionCode::InvalidDestination => "INVALID_DESTINATION_PHONE",
            RejectionCode::DoNotCall => "DO_NOT_CALL_BLOCKED",
            RejectionCode::ClientDisconnected => "CLIENT_HUNG_UP",
            RejectionCode::StoreUnavailable => "CALL_STORE_UNAVAILABLE",
            RejectionCode::GateUnavailable => "GATE_REBUILDING",
            RejectionCode::BodyTooLarge => "BODY_TOO_LARGE",
            RejectionCode::InvalidRequest => "INVALID_REQUEST",
            RejectionCode::EncodedBody => "UNSUPPORTED_CONTENT_ENCODING",
            RejectionCode::AccountMismatch => "ACCOUNT_MISMATCH",
            RejectionCode::UpstreamUnreachable => "UPSTREAM_UNREACHABLE",
            RejectionCode::UpstreamSilent => "UPSTREAM_OUTCOME_UNKNOWN",
            RejectionCode::UpstreamRedirects => "UPSTREAM_REDIRECTS",
        })
    }

    /// The code with this text, as [`RejectionCode::fixed_str`] has it.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.fixed_str() == Some(text))
    }

    /// The label `reason` of `concurrent_rejected_total`.
    pub fn metric_reason(self, shape: &RejectionShape) -> &str {
        match self {
            RejectionCode::BusinessLimitExceeded => "BUSINESS_LIMIT",
            other => other.as_str(shape),
        }
    }

    /// The status of the response.
    pub fn status(self, shape: &RejectionShape) -> StatusCode {
        match self {
            RejectionCode::PlanNotAllowed | RejectionCode::UnknownBusiness => StatusCode::FORBIDDEN,
            // Statuses that no SDK of the provider retries automatically.
            RejectionCode::OutcomeUnknown
            | RejectionCode::AlreadyPlaced
            | RejectionCode::UpstreamSilent
            | RejectionCode::UpstreamRedirects => {
                StatusCode::from_u16(shape.unknown_status).unwrap_or(StatusCode::GATEWAY_TIMEOUT)
            }
            RejectionCode::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            RejectionCode::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            RejectionCode::InvalidRequest | RejectionCode::ClientDisconnected | RejectionCode::AccountMismatch => {
                StatusCode::BAD_REQUEST
            }
            RejectionCode::EncodedBody => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            RejectionCode::UpstreamUnreachable => StatusCode::BAD_GATEWAY,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    pub(super) fn kind(self) -> Kind {
        match self {
            RejectionCode::GlobalCapacityExceeded
            | RejectionCode::BusinessLimitExceeded
            | RejectionCode::LimitExceeded
            | RejectionCode::ProviderLimit => Kind::Concurrency,
            RejectionCode::RateExceeded => Kind::Rate,
            RejectionCode::PlanNotAllowed | RejectionCode::UnknownBusiness | RejectionCode::DoNotCall => Kind::Denied,
            RejectionCode::BodyTooLarge
            | RejectionCode::InvalidRequest
            | RejectionCode::EncodedBody
            | RejectionCode::AccountMismatch
            | RejectionCode::KeyReused
            | RejectionCode::InvalidDestination
            | RejectionCode::ClientDisconnected => Kind::Invalid,
            RejectionCode::InitiationFailed
            | RejectionCode::AccountRemoved
            | RejectionCode::BatchEnded
            | RejectionCode::BatchSizeUnknown
            | RejectionCode::ProcessPaused
            | RejectionCode::Overloaded
            | RejectionCode::OutcomeUnknown
            | RejectionCode::AlreadyPlaced
            | RejectionCode::StoreUnavailable
            | RejectionCode::GateUnavailable
            | RejectionCode::UpstreamUnreachable
            | RejectionCode::UpstreamSilent
            | RejectionCode::UpstreamRedirects => Kind::Unavailable,
        }
    }

    /// Whether the request has made a call.
    pub const fn disposition(self) -> Disposition {
        match self {
            RejectionCode::OutcomeUnknown => Disposition::Unknown,
            RejectionCode::AlreadyPlaced => Disposition::Called,
            _ => Disposition::NotCalled,
        }
    }

    /// Whether a create that it answers counts as rejected. Some say that a call was made, or may have been; others answer only
    /// requests of which it is not known that they are creates.
    pub const fn counts_as_rejected(self) -> bool {
        let is_of_no_create = matches!(self, RejectionCode::AccountMismatch | RejectionCode::UpstreamSilent);
        matches!(self.disposition(), Disposition::NotCalled) && !is_of_no_create
    }

    /// Whether its message ends with the rejection's id, which `GET /api/refusals` accepts.
    pub const fn names_its_id(self) -> bool {
        matches!(
            self,
            RejectionCode::GlobalCapacityExceeded
                | RejectionCode::BusinessLimitExceeded
                | RejectionCode::LimitExceeded
                | RejectionCode::RateExceeded
                | RejectionCode::PlanNotAllowed
                | RejectionCode::ProviderLimit
                | RejectionCode::InvalidDestination
                | RejectionCode::DoNotCall
        )
    }

    /// The default `Retry-After` in seconds where nothing better is known; `None`: no such header.
    pub const fn default_wait_secs(self) -> Option<u32> {
        match self {
            RejectionCode::GlobalCapacityExceeded | RejectionCode::ProviderLimit => Some(60),
            RejectionCode::BusinessLimitExceeded | RejectionCode::LimitExceeded => Some(30),
            RejectionCode::RateExceeded | RejectionCode::GateUnavailable => Some(1),
            RejectionCode::StoreUnavailable
            | RejectionCode::InitiationFailed
            | RejectionCode::AccountRemoved
            | RejectionCode::BatchEnded
            | RejectionCode::BatchSizeUnknown
            | RejectionCode::ProcessPaused
            | RejectionCode::Overloaded => Some(5),
            _ => None,
        }
    }
}
