//! Every refusal and failure as bytes: status, headers, and a body in the provider's own error shape, so that its SDK raises
//! its normal exception. The only place where an error of a call becomes an answer. Pure.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Response, StatusCode};
use serde_json::{Map, Value, json};

use crate::admission::LimitExceeded;
use crate::ids::RefusalId;
use crate::policy::{Bound, Scope, WhenFull};
use crate::provider::description::{LimitClass, RefusalShape};
use crate::provider::render::{Target, fill_json, render};

/// The largest `Retry-After` that an SDK which sleeps on it inside the app's request is told, unless configured.
pub const SDK_RETRY_AFTER_MAX_SECS: u32 = 1;

/// What went wrong. The words are the contract's (§1), and those that ringfence adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
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
    /// The create may have made a call.
    OutcomeUnknown,
    /// The order was sent before, and has made a call.
    AlreadyPlaced,
    /// The idempotency key belongs to another order.
    KeyReused,
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

impl Code {
    /// Every code.
    pub const ALL: [Self; 22] = [
        Code::GlobalCapacityExceeded,
        Code::BusinessLimitExceeded,
        Code::LimitExceeded,
        Code::RateExceeded,
        Code::PlanNotAllowed,
        Code::UnknownBusiness,
        Code::ProviderLimit,
        Code::InitiationFailed,
        Code::OutcomeUnknown,
        Code::AlreadyPlaced,
        Code::KeyReused,
        Code::ClientHungUp,
        Code::StoreUnavailable,
        Code::GateUnavailable,
        Code::BodyTooLarge,
        Code::InvalidRequest,
        Code::EncodedBody,
        Code::AccountMismatch,
        Code::UpstreamUnreachable,
        Code::UpstreamSilent,
        Code::UpstreamRedirects,
        Code::UnknownRoute,
    ];

    /// What observe mode does instead: only what cannot be sent at all is refused.
    pub const fn observed(self) -> Observed {
        match self {
            // Limits, and what is known of who asks.
            Code::GlobalCapacityExceeded
            | Code::BusinessLimitExceeded
            | Code::LimitExceeded
            | Code::RateExceeded
            | Code::PlanNotAllowed
            | Code::UnknownBusiness
            | Code::KeyReused => Observed::Sent,
            // Nobody can count it, or read it; the provider takes it all the same.
            Code::StoreUnavailable | Code::GateUnavailable | Code::EncodedBody => Observed::Sent,
            // The provider's refusal, not ours.
            Code::ProviderLimit => Observed::PassedOn,
            // There is no way to the provider, none that is the only one, or no whole request.
            Code::InitiationFailed
            | Code::UpstreamUnreachable
            | Code::UnknownRoute
            | Code::AccountMismatch
            | Code::BodyTooLarge
            | Code::InvalidRequest => Observed::Answered,
            // Nobody waits for the call any more.
            Code::ClientHungUp => Observed::Answered,
            // It was sent: these say what came of it.
            Code::OutcomeUnknown | Code::AlreadyPlaced | Code::UpstreamSilent | Code::UpstreamRedirects => {
                Observed::Answered
            }
        }
    }

    /// The code for a full limit.
    pub fn of_full(full: &LimitExceeded) -> Self {
        match (full.bound, full.scope) {
            (Bound::Rate(_), _) => Code::RateExceeded,
            (Bound::Concurrent(0), Scope::Business) => Code::PlanNotAllowed,
            (_, Scope::Business) => Code::BusinessLimitExceeded,
            (_, Scope::Named) => Code::LimitExceeded,
            (_, Scope::Account | Scope::Global) => Code::GlobalCapacityExceeded,
        }
    }

    /// The word in the body's `error`.
    pub fn as_str(self, shape: &RefusalShape) -> &str {
        match self {
            Code::GlobalCapacityExceeded => "GLOBAL_CAPACITY_EXCEEDED",
            Code::BusinessLimitExceeded => "BUSINESS_CONCURRENT_LIMIT_EXCEEDED",
            Code::LimitExceeded => "CONCURRENT_LIMIT_EXCEEDED",
            Code::RateExceeded => "REQUEST_RATE_EXCEEDED",
            Code::PlanNotAllowed => "PLAN_NOT_ALLOWED",
            Code::UnknownBusiness => "UNKNOWN_BUSINESS",
            Code::ProviderLimit => &shape.provider_429_code,
            Code::InitiationFailed => "CALL_INITIATION_FAILED",
            Code::OutcomeUnknown => "CALL_OUTCOME_UNKNOWN",
            Code::AlreadyPlaced => "CALL_ALREADY_PLACED",
            Code::KeyReused => "IDEMPOTENCY_KEY_REUSED",
            Code::ClientHungUp => "CLIENT_HUNG_UP",
            Code::StoreUnavailable => "CALL_STORE_UNAVAILABLE",
            Code::GateUnavailable => "GATE_REBUILDING",
            Code::BodyTooLarge => "BODY_TOO_LARGE",
            Code::InvalidRequest => "INVALID_REQUEST",
            Code::EncodedBody => "UNSUPPORTED_CONTENT_ENCODING",
            Code::AccountMismatch => "ACCOUNT_MISMATCH",
            Code::UpstreamUnreachable => "UPSTREAM_UNREACHABLE",
            Code::UpstreamSilent => "UPSTREAM_OUTCOME_UNKNOWN",
            Code::UpstreamRedirects => "UPSTREAM_REDIRECTS",
            Code::UnknownRoute => "UNKNOWN_ROUTE",
        }
    }

    /// The label `reason` of `concurrent_rejected_total` (contract §1).
    pub fn metric_reason(self, shape: &RefusalShape) -> &str {
        match self {
            Code::BusinessLimitExceeded => "BUSINESS_LIMIT",
            other => other.as_str(shape),
        }
    }

    /// The status of the answer.
    pub fn status(self, shape: &RefusalShape) -> StatusCode {
        match self {
            Code::PlanNotAllowed | Code::UnknownBusiness => StatusCode::FORBIDDEN,
            // Statuses that no SDK of the provider's repeats by itself.
            Code::OutcomeUnknown | Code::AlreadyPlaced | Code::UpstreamSilent | Code::UpstreamRedirects => {
                StatusCode::from_u16(shape.unknown_status).unwrap_or(StatusCode::GATEWAY_TIMEOUT)
            }
            Code::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Code::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Code::InvalidRequest | Code::ClientHungUp | Code::AccountMismatch => StatusCode::BAD_REQUEST,
            Code::EncodedBody => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Code::UnknownRoute => StatusCode::NOT_FOUND,
            Code::UpstreamUnreachable => StatusCode::BAD_GATEWAY,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn kind(self) -> Kind {
        match self {
            Code::GlobalCapacityExceeded | Code::BusinessLimitExceeded | Code::LimitExceeded | Code::ProviderLimit => {
                Kind::Concurrency
            }
            Code::RateExceeded => Kind::Rate,
            Code::PlanNotAllowed | Code::UnknownBusiness => Kind::Denied,
            Code::BodyTooLarge
            | Code::InvalidRequest
            | Code::EncodedBody
            | Code::AccountMismatch
            | Code::KeyReused
            | Code::ClientHungUp
            | Code::UnknownRoute => Kind::Invalid,
            Code::InitiationFailed
            | Code::OutcomeUnknown
            | Code::AlreadyPlaced
            | Code::StoreUnavailable
            | Code::GateUnavailable
            | Code::UpstreamUnreachable
            | Code::UpstreamSilent
            | Code::UpstreamRedirects => Kind::Unavailable,
        }
    }

    /// Seconds to wait where nothing better is known (contract §1); `None`: no `Retry-After`.
    pub const fn default_wait_secs(self) -> Option<u32> {
        match self {
            Code::GlobalCapacityExceeded | Code::ProviderLimit => Some(60),
            Code::BusinessLimitExceeded | Code::LimitExceeded => Some(30),
            Code::RateExceeded | Code::GateUnavailable => Some(1),
            Code::StoreUnavailable | Code::InitiationFailed => Some(5),
            _ => None,
        }
    }
}

/// Everything that an answer says.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// Its id.
    pub id: RefusalId,
    /// What went wrong.
    pub code: Code,
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
}

impl Refusal {
    /// An answer that names no limit.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            id: RefusalId::new(),
            code,
            message: message.into(),
            retry_after_secs: None,
            limit: None,
            global: None,
            provider_class: None,
        }
    }

    /// Seconds until a try makes sense; never 0, which invites an immediate one.
    pub fn wait_secs(&self) -> Option<u32> {
        self.retry_after_secs.or(self.code.default_wait_secs()).map(|secs| secs.max(1))
    }
}

/// How an answer is to be shaped.
#[derive(Debug, Clone, Copy)]
pub struct Manner<'a> {
    /// The provider's shape.
    pub shape: &'a RefusalShape,
    /// The client sleeps on `Retry-After` inside the app's request: at most so many seconds.
    pub retry_after_max_secs: Option<u32>,
}

/// The answer.
pub fn refusal(refusal: &Refusal, manner: Manner<'_>) -> Response<Bytes> {
    let shape = manner.shape;
    let status = refusal.code.status(shape);
    let fields = contract_fields(refusal, shape);
    let kind = match refusal.provider_class {
        Some(LimitClass::Rate) => Kind::Rate,
        Some(LimitClass::Busy) => Kind::Unavailable,
        _ => refusal.code.kind(),
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
    if let Some(secs) = refusal.wait_secs() {
        let shown = manner.retry_after_max_secs.map_or(secs, |max| secs.min(max));
        headers.insert(RETRY_AFTER, shown.into());
    }
    let content_type = HeaderValue::try_from(&shape.content_type);
    headers.insert(CONTENT_TYPE, content_type.unwrap_or(HeaderValue::from_static("application/json")));
    if let Ok(id) = HeaderValue::try_from(refusal.id.as_str()) {
        headers.insert("x-ringfence-refusal", id);
    }
    if let Some(limit) = refusal.limit.as_ref().and_then(|(name, ..)| HeaderValue::try_from(name.as_str()).ok()) {
        headers.insert("x-ringfence-limit", limit);
    }
    respond(status, headers, Value::Object(body).to_string().into())
}

/// The fields that clients of the systems that ringfence replaces read (contract §1), and ours.
fn contract_fields(refusal: &Refusal, shape: &RefusalShape) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("error".to_owned(), refusal.code.as_str(shape).into());
    fields.insert("message".to_owned(), refusal.message.clone().into());
    if let Some(secs) = refusal.wait_secs() {
        fields.insert("retryAfter".to_owned(), secs.into());
    }
    if let Some((name, current, limit)) = &refusal.limit {
        fields.insert("currentActive".to_owned(), (*current).into());
        fields.insert("limit".to_owned(), (*limit).into());
        fields.insert("limitName".to_owned(), name.clone().into());
    }
    if let Some((current, limit)) = refusal.global {
        fields.insert("globalCurrent".to_owned(), current.into());
        fields.insert("globalLimit".to_owned(), limit.into());
    }
    fields.insert("refusalId".to_owned(), refusal.id.as_str().into());
    let called = match refusal.code {
        Code::OutcomeUnknown => json!("unknown"),
        Code::AlreadyPlaced => json!(true),
        _ => json!(false),
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

/// A plain error of ringfence's own endpoints: `{"error": …, "message": …}`.
pub fn problem(status: StatusCode, error: &str, message: &str) -> Response<Bytes> {
    json_answer(status, &json!({"error": error, "message": message}))
}

/// A TwiML answer.
pub fn twiml(body: String) -> Response<Bytes> {
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("text/xml; charset=utf-8"))]);
    respond(StatusCode::OK, headers, body.into())
}

/// What an inbound caller meets when a limit is full. `<Reject>` must be the first verb: any verb before it answers the call
/// and is billed (facts B6).
pub fn when_full_twiml(when_full: &WhenFull) -> String {
    const HEAD: &str = r#"<?xml version="1.0" encoding="UTF-8"?>"#;
    let put = |template: &str, values: &[(&str, &str)]| {
        let value = |name: &str| values.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).into());
        render(template, Target::Xml, value).unwrap_or_default()
    };
    let verbs = match when_full {
        WhenFull::Busy => r#"<Reject reason="busy"/>"#.to_owned(),
        WhenFull::Say { text, language } => {
            put(r#"<Say language="{language}">{text}</Say><Hangup/>"#, &[("text", text), ("language", language)])
        }
        WhenFull::Forward { number } => put("<Dial>{number}</Dial>", &[("number", number)]),
    };
    format!("{HEAD}<Response>{verbs}</Response>")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::Registry;

    fn full_business() -> Refusal {
        Refusal {
            retry_after_secs: Some(7),
            limit: Some(("plan.PRO".to_owned(), 3, 3)),
            global: Some((22, 30)),
            ..Refusal::new(Code::BusinessLimitExceeded, "acme has 3 of 3 calls in use")
        }
    }

    fn answer(provider: &str, what: &Refusal, max: Option<u32>) -> (Response<Bytes>, Value) {
        let registry = Registry::new(&[]).unwrap();
        let shape = &registry.get(provider).unwrap().refusal;
        let response = refusal(what, Manner { shape, retry_after_max_secs: max });
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
        let rate = Refusal::new(Code::RateExceeded, "too fast");
        assert_eq!(answer("twilio", &rate, None).1["code"], 20429);
    }

    /// The reference page is made of this list.
    #[test]
    fn the_list_of_codes_is_complete() {
        let source = include_str!("reply.rs");
        let declared = source.split("pub enum Code {").nth(1).unwrap().split("\n}").next().unwrap();
        let declared: Vec<_> =
            declared.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('/')).collect();
        assert_eq!(declared, Code::ALL.map(|code| format!("{code:?},")), "Code::ALL has every code, in order");
    }

    #[test]
    fn an_unknown_outcome_is_never_a_status_that_the_sdk_repeats() {
        let unknown = Refusal::new(Code::OutcomeUnknown, "it may have been dialled");
        let (response, body) = answer("elevenlabs", &unknown, Some(1));
        assert_eq!(response.status(), 424);
        assert_eq!(body["called"], "unknown");
        assert!(!response.headers().contains_key("retry-after"));
        assert_eq!(answer("twilio", &unknown, None).0.status(), 504);
    }

    #[test]
    fn waits_are_the_contracts_where_nothing_is_known_and_never_zero() {
        let wait = |code| Refusal::new(code, "").wait_secs();
        assert_eq!(wait(Code::GlobalCapacityExceeded), Some(60));
        assert_eq!(wait(Code::BusinessLimitExceeded), Some(30));
        assert_eq!(wait(Code::StoreUnavailable), Some(5));
        assert_eq!(wait(Code::UnknownBusiness), None);
        let zero = Refusal { retry_after_secs: Some(0), ..Refusal::new(Code::RateExceeded, "") };
        assert_eq!(zero.wait_secs(), Some(1));
    }

    #[test]
    fn callers_meet_what_was_configured_and_nothing_is_injected() {
        let busy = when_full_twiml(&WhenFull::Busy);
        assert!(busy.contains(r#"<Response><Reject reason="busy"/></Response>"#), "{busy}");
        let say = WhenFull::Say { text: "</Say><Dial>+1900</Dial>".to_owned(), language: "en-US".to_owned() };
        let said = when_full_twiml(&say);
        assert!(!said.contains("<Dial>"), "{said}");
        let forward = when_full_twiml(&WhenFull::Forward { number: "+15550009999".to_owned() });
        assert!(forward.contains("<Dial>+15550009999</Dial>"), "{forward}");
    }
}
