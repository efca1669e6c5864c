//! Every refusal and failure as bytes: status, headers, and a body in the provider's own error shape, so that its SDK raises
//! its normal exception. The only place where an error of a call becomes an answer. Pure.

mod twiml;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, STRICT_TRANSPORT_SECURITY};
use http::{HeaderMap, Response, StatusCode};
use serde_json::{Map, Value, json};

use crate::admission::LimitExceeded;
use crate::ids::RefusalId;
use crate::policy::{Bound, Scope};
use crate::provider::description::{LimitClass, RefusalShape};
use crate::provider::render::fill_json;
pub use twiml::{twiml, when_full_twiml};

/// The largest `Retry-After` that an SDK which sleeps on it inside the app's request is told, unless configured.
pub const SDK_RETRY_AFTER_MAX_SECS: u32 = 1;

/// What went wrong. The words are the contract's (§1), and those that ringfence adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectionCode {
    /// The platform, or what was bought, is full.
    GlobalCapacityExceeded,
    /// The business's own limit is full.
    BusinessLimitExceeded,
    /// One of the operator's named limits is full.
    LimitExceeded,
    /// Too many creates in a time.
    RateExceeded,
    /// A limit of 0.
    PlanNotAllowed,
    /// Nobody knows the business.
    UnknownBusiness,
    /// The provider said 429.
    ProviderLimit,
    /// The provider could not be reached.
    InitiationFailed,
    /// The create's account was taken out of the config.
    AccountRemoved,
    /// The batch that is to be retried has just ended.
    BatchEnded,
    /// Nobody knows how many calls at once the batch makes that is to be retried.
    BatchSizeUnknown,
    /// This process stood still between admission and send.
    ProcessPaused,
    /// There is no memory for the request's body.
    Overloaded,
    /// The create may have made a call.
    OutcomeUnknown,
    /// The order was sent before, and has made a call.
    AlreadyPlaced,
    /// The idempotency key belongs to another order.
    KeyReused,
    /// The destination is no telephone number that can be called.
    InvalidDestination,
    /// The destination must not be called: a do-not-call list, or the operator's rules.
    DoNotCall,
    /// The client had gone before its order was admitted.
    ClientHungUp,
    /// The record could not be written, so nothing was sent.
    StoreUnavailable,
    /// The gate does not answer, so nothing was sent.
    GateUnavailable,
    /// The request's body is too large to be a create.
    BodyTooLarge,
    /// The request cannot be read.
    InvalidRequest,
    /// The request's body is compressed, so it cannot be read.
    EncodedBody,
    /// The request names two accounts.
    AccountMismatch,
    /// The provider cannot be reached, for a request that creates nothing.
    UpstreamUnreachable,
    /// The provider got the request, which creates no call, and did not answer it.
    UpstreamSilent,
    /// The provider's answer leads to one of its other hosts.
    UpstreamRedirects,
    /// Nothing is mounted here.
    UnknownRoute,
}

/// What observe mode does where enforce mode would give an answer of this code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observed {
    /// The create is sent, and marked: header, counter, log, record.
    Sent,
    /// The provider's own answer is passed on as it came, and marked.
    PassedOn,
    /// The answer is given in either mode: nothing can be sent, or something was.
    Answered,
}

impl Observed {
    /// The word in the docs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Observed::Sent => "sent and marked",
            Observed::PassedOn => "the provider's own answer, marked",
            Observed::Answered => "the same answer",
        }
    }
}

/// Whether a request that is answered with a code has made a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// It has not.
    NotCalled,
    /// Nobody knows.
    Unknown,
    /// It has, when it was sent before.
    Called,
}

/// Which of the provider's own words fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Concurrency,
    Rate,
    Denied,
    Invalid,
    Unavailable,
}

impl Kind {
    const fn key(self) -> &'static str {
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
    /// Every code.
    pub const ALL: [Self; 29] = [
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
        RejectionCode::ClientHungUp,
        RejectionCode::StoreUnavailable,
        RejectionCode::GateUnavailable,
        RejectionCode::BodyTooLarge,
        RejectionCode::InvalidRequest,
        RejectionCode::EncodedBody,
        RejectionCode::AccountMismatch,
        RejectionCode::UpstreamUnreachable,
        RejectionCode::UpstreamSilent,
        RejectionCode::UpstreamRedirects,
        RejectionCode::UnknownRoute,
    ];

    /// What observe mode does instead: only what cannot be sent at all is refused.
    pub const fn observed(self) -> Observed {
        match self {
            // Limits, and what is known of who asks.
            RejectionCode::GlobalCapacityExceeded
            | RejectionCode::BusinessLimitExceeded
            | RejectionCode::LimitExceeded
            | RejectionCode::RateExceeded
            | RejectionCode::PlanNotAllowed
            | RejectionCode::UnknownBusiness
            | RejectionCode::InvalidDestination
            | RejectionCode::DoNotCall
            | RejectionCode::KeyReused => Observed::Sent,
            // It counts as one call until its calls are seen.
            RejectionCode::BatchSizeUnknown => Observed::Sent,
            // Nobody can count it, or read it; the provider takes it all the same.
            RejectionCode::StoreUnavailable | RejectionCode::GateUnavailable | RejectionCode::EncodedBody => {
                Observed::Sent
            }
            // The provider's refusal, not ours.
            RejectionCode::ProviderLimit => Observed::PassedOn,
            // There is no way to the provider, none that is the only one, or no whole request.
            RejectionCode::InitiationFailed
            | RejectionCode::AccountRemoved
            | RejectionCode::BatchEnded
            | RejectionCode::Overloaded
            | RejectionCode::UpstreamUnreachable
            | RejectionCode::UnknownRoute
            | RejectionCode::AccountMismatch
            | RejectionCode::BodyTooLarge
            | RejectionCode::InvalidRequest => Observed::Answered,
            // Nobody waits for the call any more, or it may have come again elsewhere.
            RejectionCode::ClientHungUp | RejectionCode::ProcessPaused => Observed::Answered,
            // It was sent: these say what came of it.
            RejectionCode::OutcomeUnknown
            | RejectionCode::AlreadyPlaced
            | RejectionCode::UpstreamSilent
            | RejectionCode::UpstreamRedirects => Observed::Answered,
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

    /// The word in the body's `error`.
    pub fn as_str(self, shape: &RefusalShape) -> &str {
        match self {
            RejectionCode::GlobalCapacityExceeded => "GLOBAL_CAPACITY_EXCEEDED",
            RejectionCode::BusinessLimitExceeded => "BUSINESS_CONCURRENT_LIMIT_EXCEEDED",
            RejectionCode::LimitExceeded => "CONCURRENT_LIMIT_EXCEEDED",
            RejectionCode::RateExceeded => "REQUEST_RATE_EXCEEDED",
            RejectionCode::PlanNotAllowed => "PLAN_NOT_ALLOWED",
            RejectionCode::UnknownBusiness => "UNKNOWN_BUSINESS",
            RejectionCode::ProviderLimit => &shape.provider_429_code,
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
            RejectionCode::ClientHungUp => "CLIENT_HUNG_UP",
            RejectionCode::StoreUnavailable => "CALL_STORE_UNAVAILABLE",
            RejectionCode::GateUnavailable => "GATE_REBUILDING",
            RejectionCode::BodyTooLarge => "BODY_TOO_LARGE",
            RejectionCode::InvalidRequest => "INVALID_REQUEST",
            RejectionCode::EncodedBody => "UNSUPPORTED_CONTENT_ENCODING",
            RejectionCode::AccountMismatch => "ACCOUNT_MISMATCH",
            RejectionCode::UpstreamUnreachable => "UPSTREAM_UNREACHABLE",
            RejectionCode::UpstreamSilent => "UPSTREAM_OUTCOME_UNKNOWN",
            RejectionCode::UpstreamRedirects => "UPSTREAM_REDIRECTS",
            RejectionCode::UnknownRoute => "UNKNOWN_ROUTE",
        }
    }

    /// The label `reason` of `concurrent_rejected_total` (contract §1).
    pub fn metric_reason(self, shape: &RefusalShape) -> &str {
        match self {
            RejectionCode::BusinessLimitExceeded => "BUSINESS_LIMIT",
            other => other.as_str(shape),
        }
    }

    /// The status of the answer.
    pub fn status(self, shape: &RefusalShape) -> StatusCode {
        match self {
            RejectionCode::PlanNotAllowed | RejectionCode::UnknownBusiness => StatusCode::FORBIDDEN,
            // Statuses that no SDK of the provider's repeats by itself.
            RejectionCode::OutcomeUnknown
            | RejectionCode::AlreadyPlaced
            | RejectionCode::UpstreamSilent
            | RejectionCode::UpstreamRedirects => {
                StatusCode::from_u16(shape.unknown_status).unwrap_or(StatusCode::GATEWAY_TIMEOUT)
            }
            RejectionCode::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            RejectionCode::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            RejectionCode::InvalidRequest | RejectionCode::ClientHungUp | RejectionCode::AccountMismatch => {
                StatusCode::BAD_REQUEST
            }
            RejectionCode::EncodedBody => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            RejectionCode::UnknownRoute => StatusCode::NOT_FOUND,
            RejectionCode::UpstreamUnreachable => StatusCode::BAD_GATEWAY,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn kind(self) -> Kind {
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
            | RejectionCode::ClientHungUp
            | RejectionCode::UnknownRoute => Kind::Invalid,
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

    /// Whether its message ends with its id, by which `GET /api/refusals` knows it.
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

    /// Seconds to wait where nothing better is known (contract §1); `None`: no `Retry-After`.
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

/// Everything that an answer says.
#[derive(Debug, Clone)]
pub struct Rejection {
    /// Its id.
    pub id: RefusalId,
    /// What went wrong.
    pub code: RejectionCode,
    /// A sentence for people.
    pub message: String,
    /// Seconds until a try makes sense; the code's default if `None`.
    pub retry_after_secs: Option<u32>,
    /// The limit that refused, with holders and bound.
    pub limit: Option<(String, u32, u32)>,
    /// Calls on the whole platform, and how many it allows.
    pub global: Option<(u32, u32)>,
    /// Which limit of the provider was full.
    pub provider_class: Option<LimitClass>,
    /// Which rule of the operator's the destination does not pass.
    pub blocked_by: Option<&'static str>,
}

impl Rejection {
    /// An answer that names no limit.
    pub fn new(code: RejectionCode, message: impl Into<String>) -> Self {
        Self {
            id: RefusalId::new(),
            code,
            message: message.into(),
            retry_after_secs: None,
            limit: None,
            global: None,
            provider_class: None,
            blocked_by: None,
        }
    }

    /// The response, once `by` has noted it. There is no other way to have it: nothing can be answered and not noted.
    pub fn into_response(self, style: ResponseStyle<'_>, by: &impl NoteRejection) -> Response<Bytes> {
        by.note(&self);
        rejection_response(&self, style)
    }

    /// Seconds until a try makes sense; never 0, which invites an immediate one.
    pub fn wait_secs(&self) -> Option<u32> {
        self.retry_after_secs.or(self.code.default_wait_secs()).map(|secs| secs.max(1))
    }
}

/// How an answer is to be shaped.
#[derive(Debug, Clone, Copy)]
pub struct ResponseStyle<'a> {
    /// The provider's shape.
    pub shape: &'a RefusalShape,
    /// The client sleeps on `Retry-After` inside the app's request: at most so many seconds.
    pub retry_after_max_secs: Option<u32>,
}

/// Who logs, counts and records rejections.
pub trait NoteRejection {
    /// Does so with one that is about to be answered.
    fn note(&self, rejection: &Rejection);
}

fn rejection_response(rejection: &Rejection, style: ResponseStyle<'_>) -> Response<Bytes> {
    let shape = style.shape;
    let status = rejection.code.status(shape);
    let fields = contract_fields(rejection, shape);
    let kind = match rejection.provider_class {
        Some(LimitClass::Rate) => Kind::Rate,
        Some(LimitClass::Busy) => Kind::Unavailable,
        _ => rejection.code.kind(),
    };
    let words = shape.words.get(kind.key());
    let value = |name: &str| match name {
        "httpStatus" => status.as_u16().into(),
        "null" => Value::Null,
        name => words.and_then(|w| w.get(name)).or_else(|| fields.get(name)).cloned().unwrap_or(Value::Null),
    };
    let mut body = match fill_json(&shape.body, &value) {
        Value::Object(map) => map,
        other => Map::from_iter([("detail".to_owned(), other)]),
    };
    for (name, value) in &fields {
        body.entry(name.clone()).or_insert_with(|| value.clone());
    }
    let mut headers = HeaderMap::new();
    if let Some(secs) = rejection.wait_secs() {
        let shown = style.retry_after_max_secs.map_or(secs, |max| secs.min(max));
        headers.insert(RETRY_AFTER, shown.into());
    }
    let content_type = HeaderValue::try_from(&shape.content_type);
    headers.insert(CONTENT_TYPE, content_type.unwrap_or(HeaderValue::from_static("application/json")));
    if let Ok(id) = HeaderValue::try_from(rejection.id.as_str()) {
        headers.insert("x-ringfence-refusal", id);
    }
    if let Some(limit) = rejection.limit.as_ref().and_then(|(name, ..)| HeaderValue::try_from(name.as_str()).ok()) {
        headers.insert("x-ringfence-limit", limit);
    }
    respond(status, headers, Value::Object(body).to_string().into())
}

/// The fields that clients of the systems that ringfence replaces read (contract §1), and ours.
fn contract_fields(rejection: &Rejection, shape: &RefusalShape) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("error".to_owned(), rejection.code.as_str(shape).into());
    fields.insert("message".to_owned(), rejection.message.clone().into());
    if let Some(secs) = rejection.wait_secs() {
        fields.insert("retryAfter".to_owned(), secs.into());
    }
    if let Some((name, current, limit)) = &rejection.limit {
        fields.insert("currentActive".to_owned(), (*current).into());
        fields.insert("limit".to_owned(), (*limit).into());
        fields.insert("limitName".to_owned(), name.clone().into());
    }
    if let Some((current, limit)) = rejection.global {
        fields.insert("globalCurrent".to_owned(), current.into());
        fields.insert("globalLimit".to_owned(), limit.into());
    }
    if let Some(rule) = rejection.blocked_by {
        fields.insert("blockedBy".to_owned(), rule.into());
    }
    fields.insert("refusalId".to_owned(), rejection.id.as_str().into());
    let called = match rejection.code.disposition() {
        Disposition::Unknown => json!("unknown"),
        Disposition::Called => json!(true),
        Disposition::NotCalled => json!(false),
    };
    fields.insert("called".to_owned(), called);
    fields
}

/// An answer whose status, headers and body are all chosen by the caller.
pub fn respond(status: StatusCode, headers: HeaderMap, body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// A JSON answer.
pub fn json_answer(status: StatusCode, body: &Value) -> Response<Bytes> {
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    respond(status, headers, body.to_string().into())
}

/// What a browser must not do with an answer (seed 004): `policy` is its Content-Security-Policy. Over TLS it asks this host over TLS
/// alone from now on, for a year.
pub fn for_browsers<B>(response: &mut Response<B>, policy: &'static str, is_tls: bool) {
    let headers = response.headers_mut();
    for (name, value) in [
        ("content-security-policy", policy),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("x-xss-protection", "1; mode=block"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if is_tls {
        headers.insert(STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
    }
}

/// A plain error of ringfence's own endpoints: `{"error": …, "message": …}`.
pub fn problem(status: StatusCode, error: &str, message: &str) -> Response<Bytes> {
    json_answer(status, &json!({"error": error, "message": message}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::Registry;

    fn full_business() -> Rejection {
        Rejection {
            retry_after_secs: Some(7),
            limit: Some(("plan.PRO".to_owned(), 3, 3)),
            global: Some((22, 30)),
            ..Rejection::new(RejectionCode::BusinessLimitExceeded, "acme has 3 of 3 calls in use")
        }
    }

    fn answer(provider: &str, what: &Rejection, max: Option<u32>) -> (Response<Bytes>, Value) {
        let registry = Registry::new(&[]).unwrap();
        let shape = &registry.get(provider).unwrap().refusal;
        let response = rejection_response(what, ResponseStyle { shape, retry_after_max_secs: max });
        let body = serde_json::from_slice(response.body()).unwrap();
        (response, body)
    }

    /// experience.md §4: the ElevenLabs shape.
    #[test]
    fn elevenlabs_refusals_have_its_shape_and_the_contracts_fields() {
        let what = full_business();
        let (response, body) = answer("elevenlabs", &what, Some(1));
        let id = what.id.as_str();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(response.headers()["x-ringfence-limit"], "plan.PRO");
        assert_eq!(response.headers()["x-ringfence-refusal"], id);
        let message = "acme has 3 of 3 calls in use";
        assert_eq!(
            body,
            json!({
                "detail": {"type": "rate_limit_error", "code": "concurrent_limit_exceeded",
                    "status": "too_many_concurrent_requests", "message": message, "request_id": id, "param": null},
                "error": "BUSINESS_CONCURRENT_LIMIT_EXCEEDED", "message": message, "retryAfter": 7,
                "currentActive": 3, "limit": 3, "limitName": "plan.PRO", "globalCurrent": 22, "globalLimit": 30,
                "refusalId": id, "called": false,
            })
        );
    }

    /// experience.md §4: the Twilio shape; `details` reaches the app through both SDKs.
    #[test]
    fn twilio_refusals_have_its_shape() {
        let (response, body) = answer("twilio", &full_business(), None);
        assert_eq!(response.headers()["retry-after"], "7");
        assert_eq!((&body["code"], &body["status"]), (&json!(10004), &json!(503)));
        assert_eq!(body["more_info"], "https://www.twilio.com/docs/errors/10004");
        assert_eq!(body["details"]["error"], "BUSINESS_CONCURRENT_LIMIT_EXCEEDED");
        assert_eq!(body["details"]["retryAfter"], 7);
        assert_eq!(body["details"]["called"], false);
        assert_eq!(body["globalLimit"], 30);
        let rate = Rejection::new(RejectionCode::RateExceeded, "too fast");
        assert_eq!(answer("twilio", &rate, None).1["code"], 20429);
    }

    /// The reference page is made of this list.
    #[test]
    fn the_list_of_codes_is_complete() {
        let source = include_str!("reply.rs");
        let declared = source.split("pub enum RejectionCode {").nth(1).unwrap().split("\n}").next().unwrap();
        let declared: Vec<_> =
            declared.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('/')).collect();
        assert_eq!(
            declared,
            RejectionCode::ALL.map(|code| format!("{code:?},")),
            "RejectionCode::ALL has every code, in order"
        );
    }

    #[test]
    fn an_unknown_outcome_is_never_a_status_that_the_sdk_repeats() {
        let unknown = Rejection::new(RejectionCode::OutcomeUnknown, "it may have been dialled");
        let (response, body) = answer("elevenlabs", &unknown, Some(1));
        assert_eq!(response.status(), 424);
        assert_eq!(body["called"], "unknown");
        assert!(!response.headers().contains_key("retry-after"));
        assert_eq!(answer("twilio", &unknown, None).0.status(), 504);
    }

    #[test]
    fn waits_are_the_contracts_where_nothing_is_known_and_never_zero() {
        let wait = |code| Rejection::new(code, "").wait_secs();
        assert_eq!(wait(RejectionCode::GlobalCapacityExceeded), Some(60));
        assert_eq!(wait(RejectionCode::BusinessLimitExceeded), Some(30));
        assert_eq!(wait(RejectionCode::StoreUnavailable), Some(5));
        assert_eq!(wait(RejectionCode::UnknownBusiness), None);
        let zero = Rejection { retry_after_secs: Some(0), ..Rejection::new(RejectionCode::RateExceeded, "") };
        assert_eq!(zero.wait_secs(), Some(1));
    }
}
