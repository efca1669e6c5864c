//! Rejections and failures as response bytes: status, headers, and a body in the provider's own error format, so that its SDK
//! raises its normal exception. The only place where an error of a call becomes a response. Pure.

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

/// The maximum `Retry-After` for SDKs that sleep for it inside the app's request, unless configured, in seconds.
pub const SDK_RETRY_AFTER_MAX_SECS: u32 = 1;

/// The code of a rejection or failure: those of the contract (§1), and those that ringfence adds.
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
    ClientHungUp,
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
    /// Nothing is mounted at the path.
    UnknownRoute,
}

/// What observe mode does where enforce mode answers with a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observed {
    /// The create is sent and marked: header, counter, log, record.
    Sent,
    /// The provider's own answer is passed on unchanged, and marked.
    PassedOn,
    /// The answer is the same in both modes: nothing can be sent, or something was.
    Answered,
}

impl Observed {
    /// The text in the docs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Observed::Sent => "sent and marked",
            Observed::PassedOn => "the provider's own answer, marked",
            Observed::Answered => "the same answer",
        }
    }
}

/// Whether a request answered with a code has made a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// It has not.
    NotCalled,
    /// It may have.
    Unknown,
    /// It has, when it was sent the first time.
    Called,
}

/// Which of the provider's error formats fits.
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
    /// All codes.
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

    /// What observe mode does instead: it rejects only what cannot be sent at all.
    pub const fn observed(self) -> Observed {
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
            | RejectionCode::KeyReused => Observed::Sent,
            // The batch counts as one call until its calls are seen.
            RejectionCode::BatchSizeUnknown => Observed::Sent,
            // We cannot count it, or not parse it; the provider accepts it all the same.
            RejectionCode::StoreUnavailable | RejectionCode::GateUnavailable | RejectionCode::EncodedBody => {
                Observed::Sent
            }
            // The provider's rejection, not ours.
            RejectionCode::ProviderLimit => Observed::PassedOn,
            // The provider cannot be reached, or not unambiguously, or the request is incomplete.
            RejectionCode::InitiationFailed
            | RejectionCode::AccountRemoved
            | RejectionCode::BatchEnded
            | RejectionCode::Overloaded
            | RejectionCode::UpstreamUnreachable
            | RejectionCode::UnknownRoute
            | RejectionCode::AccountMismatch
            | RejectionCode::BodyTooLarge
            | RejectionCode::InvalidRequest => Observed::Answered,
            // Nobody waits for the call any more, or it may have been retried elsewhere.
            RejectionCode::ClientHungUp | RejectionCode::ProcessPaused => Observed::Answered,
            // The create was sent; the code says what came of it.
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

    /// The code in the body's `error` field.
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

    /// The status of the response.
    pub fn status(self, shape: &RefusalShape) -> StatusCode {
        match self {
            RejectionCode::PlanNotAllowed | RejectionCode::UnknownBusiness => StatusCode::FORBIDDEN,
            // Statuses that no SDK of the provider retries by itself.
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

    /// The default `Retry-After` in seconds where nothing better is known (contract §1); `None`: no such header.
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

/// The content of a rejection.
#[derive(Debug, Clone)]
pub struct Rejection {
    /// The rejection's id.
    pub id: RefusalId,
    /// What went wrong.
    pub code: RejectionCode,
    /// A sentence for people.
    pub message: String,
    /// Seconds until a retry makes sense; the code's default if `None`.
    pub retry_after_secs: Option<u32>,
    /// The full limit: name, slots in use, bound.
    pub limit: Option<(String, u32, u32)>,
    /// Concurrent calls of the whole platform, and the bound.
    pub global: Option<(u32, u32)>,
    /// The limit of the provider that was full.
    pub provider_class: Option<LimitClass>,
    /// The operator's rule that blocks the destination.
    pub blocked_by: Option<&'static str>,
}

impl Rejection {
    /// A rejection that names no limit.
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

    /// The response, after `by` has noted the rejection. There is no other way to build one, so none goes unnoted.
    pub fn into_response(self, style: ResponseStyle<'_>, by: &impl NoteRejection) -> Response<Bytes> {
        by.note(&self);
        rejection_response(&self, style)
    }

    /// Seconds until a retry makes sense; never 0, which invites an immediate one.
    pub fn wait_secs(&self) -> Option<u32> {
        self.retry_after_secs.or(self.code.default_wait_secs()).map(|secs| secs.max(1))
    }
}

/// The format of a response.
#[derive(Debug, Clone, Copy)]
pub struct ResponseStyle<'a> {
    /// The provider's error format.
    pub shape: &'a RefusalShape,
    /// The maximum `Retry-After` in seconds, for clients that sleep for it inside the app's request.
    pub retry_after_max_secs: Option<u32>,
}

/// The component that logs, counts and records rejections.
pub trait NoteRejection {
    /// Notes a rejection that is about to be answered.
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

/// The fields that clients of the replaced systems read (contract §1), and ringfence's own.
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

/// A response with the given status, headers and body.
pub fn respond(status: StatusCode, headers: HeaderMap, body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// A JSON response.
pub fn json_answer(status: StatusCode, body: &Value) -> Response<Bytes> {
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    respond(status, headers, body.to_string().into())
}

/// Adds the security headers for browsers; `policy` is the Content-Security-Policy. Over TLS, adds HSTS for a
/// year.
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
