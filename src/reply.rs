//! Rejections and failures as response bytes: status, headers, and a body in the provider's own error format, so that its SDK
//! raises its normal exception. The only place where an error of a call becomes a response. Pure.

mod code;
mod twiml;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, STRICT_TRANSPORT_SECURITY};
use http::{HeaderMap, Response, StatusCode};
use serde_json::{Map, Value, json};

use crate::destinations::BlockRule;
use crate::ids::RejectionId;
use crate::provider::description::{LimitClass, RejectionShape};
use crate::provider::render::fill_json;
use code::Kind;
pub use code::{Disposition, ObserveAction, RejectionCode};
pub use twiml::{twiml, when_full_twiml};

/// The maximum `Retry-After` for SDKs that sleep for it inside the app's request, unless configured, in seconds.
pub const SDK_RETRY_AFTER_MAX_SECS: u32 = 1;

/// The name of this program in answers of `/health`.
const SERVICE: &str = "ringfence";

/// A limit that was full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FullLimit {
    /// The limit's name.
    pub name: String,
    /// Slots in use.
    pub in_use: u32,
    /// The bound.
    pub bound: u32,
}

/// The content of a rejection.
#[derive(Debug, Clone)]
pub struct Rejection {
    /// The rejection's id.
    pub id: RejectionId,
    /// The error code of the rejection.
    pub code: RejectionCode,
    /// A sentence for people.
    pub message: String,
    /// Seconds until a retry makes sense; the code's default if `None`.
    pub retry_after_secs: Option<u32>,
    /// The full limit.
    pub limit: Option<FullLimit>,
    /// Concurrent calls of the whole platform, and the bound.
    pub global: Option<(u32, u32)>,
    /// The limit of the provider that was full.
    pub provider_class: Option<LimitClass>,
    /// The operator's rule that blocks the destination.
    pub blocked_by: Option<BlockRule>,
}

impl Rejection {
    /// A rejection that names no limit.
    pub fn new(code: RejectionCode, message: impl Into<String>) -> Self {
        Self {
            id: RejectionId::new(),
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
    pub shape: &'a RejectionShape,
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
    if let Some(limit) = rejection.limit.as_ref().and_then(|limit| HeaderValue::try_from(limit.name.as_str()).ok()) {
        headers.insert("x-ringfence-limit", limit);
    }
    respond(status, headers, Value::Object(body).to_string().into())
}

/// The fields that clients of the replaced systems read, and ringfence's own.
fn contract_fields(rejection: &Rejection, shape: &RejectionShape) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("error".to_owned(), rejection.code.as_str(shape).into());
    fields.insert("message".to_owned(), rejection.message.clone().into());
    if let Some(secs) = rejection.wait_secs() {
        fields.insert("retryAfter".to_owned(), secs.into());
    }
    if let Some(limit) = &rejection.limit {
        fields.insert("currentActive".to_owned(), limit.in_use.into());
        fields.insert("limit".to_owned(), limit.bound.into());
        fields.insert("limitName".to_owned(), limit.name.clone().into());
    }
    if let Some((current, limit)) = rejection.global {
        fields.insert("globalCurrent".to_owned(), current.into());
        fields.insert("globalLimit".to_owned(), limit.into());
    }
    if let Some(rule) = rejection.blocked_by {
        fields.insert("blockedBy".to_owned(), rule.as_str().into());
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

/// The answer of `/health` at every listener. It names ringfence: other programs answer `/health` too.
pub fn health() -> Response<Bytes> {
    json_answer(StatusCode::OK, &json!({"status": "ok", "service": SERVICE}))
}

/// Whether an answer of `/health` is a ringfence's.
pub fn is_health(body: &[u8]) -> bool {
    serde_json::from_slice::<Value>(body).is_ok_and(|body| body["status"] == "ok" && body["service"] == SERVICE)
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
            limit: Some(FullLimit { name: "plan.PRO".to_owned(), in_use: 3, bound: 3 }),
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

    /// The ElevenLabs shape.
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

    /// The Twilio shape; `details` reaches the app through both SDKs.
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
        let source = include_str!("reply/code.rs");
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
