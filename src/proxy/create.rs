//! Parses a possible create: read the body → match the operation → identify the business → a [`CreateRequest`].

use std::time::Instant;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, HOST};
use http::{HeaderMap, Method, Request, Uri};
use tracing::{debug, info, warn};

use super::route::{BUSINESS_HEADER, OwnedRoute, captures, may_create_many, operation, sdk_sleeps};
use crate::call::Direction;
use crate::calls::Calls;
use crate::calls::outbound::CreateRequest;
use crate::calls::rejection::{RejectedRequest, RequestKind};
use crate::ids::{Alias, BusinessId};
use crate::metrics::{MessageKind, PLAN_UNKNOWN};
use crate::net::headers::strip_hop_by_hop;
use crate::net::{BodyError, Exchange};
use crate::policy::{CallAttributes, Contradictions, Ignored, RequestAttributes, UnknownBusiness};
use crate::provider::account::{Account, join_url};
use crate::provider::description::Operation;
use crate::provider::select::{Document, Flaw, Message};
use crate::provider::sign::sha256_hex;
use crate::reply::{Rejection, RejectionCode};

/// The maximum body of a create, in bytes. ElevenLabs' bodies carry overrides and dynamic variables, Twilio's at most 4,000
/// characters of TwiML; a megabyte is generous.
pub const CREATE_BYTES_MAX: usize = 1024 * 1024;

/// The maximum body of a batch create, in bytes: 10,000 recipients with 1.6 KiB of variables each.
pub const CREATE_MANY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The number of calls that a request at a path may create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CreateSize {
    One,
    Many,
}

/// A parsed request at the path of a create.
pub(super) enum Parsed {
    /// The request creates calls.
    Create(Box<CreateRequest>),
    /// The request creates no calls and is passed through unchanged.
    Other,
}

/// A create rejected before its attributes are known.
pub(super) struct Unparsed {
    pub(super) rejection: Rejection,
    direction: Direction,
    /// The business that it names, known or not.
    business: String,
    sdk_sleeps: bool,
}

impl Unparsed {
    /// The attributes that are logged, counted and recorded.
    pub(super) fn of<'a>(&'a self, account: &'a Account) -> RejectedRequest<'a> {
        RejectedRequest {
            kind: RequestKind::Create,
            account,
            business: &self.business,
            plan: PLAN_UNKNOWN,
            direction: self.direction,
            to: None,
            sdk_sleeps: self.sdk_sleeps,
            retry_key: None,
        }
    }
}

/// Parses a possible create.
///
/// # Errors
/// The request must be rejected.
pub(super) async fn parse(calls: &Calls, exchange: &mut Exchange, to: &OwnedRoute) -> Result<Parsed, Box<Unparsed>> {
    let (account, path) = (&to.account, to.path());
    let sdk_sleeps = sdk_sleeps(exchange.headers(), account);
    let headers = exchange.headers().clone();
    let reject = |rejection: Rejection, direction: Direction| {
        let business = shown_business(to.business.as_deref(), &headers);
        Box::new(Unparsed { rejection, direction, business, sdk_sleeps })
    };
    let size = match may_create_many(&account.provider, exchange.method(), path) {
        true => CreateSize::Many,
        false => CreateSize::One,
    };
    let bytes = read_bytes(calls, exchange, size).await.map_err(|why| reject(why, Direction::Outbound))?;
    let read_at = Instant::now();
    if is_encoded(&headers) {
        let message = "Not dialled: a create's body must not be compressed.";
        let rejected = reject(Rejection::new(RejectionCode::EncodedBody, message), Direction::Outbound);
        if !calls.rejections.only_marks(&rejected.rejection) {
            return Err(rejected);
        }
        // Passed through, so its response is the provider's as it comes: it has no header that marks it.
        calls.rejections.observed(&rejected.rejection, &rejected.of(account));
        return Ok(Parsed::Other);
    }
    let body = decode(calls, account, exchange.header("content-type"), &bytes, size);
    let query: Vec<(String, String)> =
        form_urlencoded::parse(exchange.query().unwrap_or_default().as_bytes()).into_owned().collect();
    let message = Message { query: &query, ..Message::new(&body, &headers) };
    let Some(operation) = operation(&account.provider, exchange.method(), path, &message).cloned() else {
        return Ok(Parsed::Other);
    };
    let captured = captures(&operation, path).unwrap_or_default();
    let message = Message { path: &captured, ..message };
    let Identified { attributes, unknown, ignored } =
        identify(calls, account, &operation, to.business.as_deref(), &message);
    let would_reject = objection(&operation, &message, unknown);
    if !calls.observes()
        && let Some(rejection) = would_reject
    {
        return Err(reject(rejection, operation.direction));
    }
    if let Some(ignored) = ignored {
        info!(business = %attributes.business, account = %account.name, %ignored, "business id in the request ignored");
    }
    let uri = join_url(account.upstream_of(path), to.path_and_query()).parse().map_err(|_| {
        let message = "The request's path cannot be sent on.";
        reject(Rejection::new(RejectionCode::InvalidRequest, message), operation.direction)
    })?;
    let upstream = upstream_request(exchange.method().clone(), uri, headers, bytes);
    let named = account.provider.subaccounts.as_ref().and_then(|rule| captured.get(&rule.own));
    let subaccount = named.filter(|named| account.own_id().is_some_and(|own| *named != own.expose())).cloned();
    let batch = operation.again.as_ref().and_then(|kind| Alias::new(kind, captured.get(kind)?));
    let mut request = CreateRequest::new(account.clone(), operation, attributes, upstream, body);
    (request.batch, request.subaccount, request.sdk_sleeps, request.ignored) = (batch, subaccount, sdk_sleeps, ignored);
    request.read_at = read_at;
    if let Some(rejection) = would_reject {
        let _ = request.would_reject.set(rejection);
    }
    Ok(Parsed::Create(Box::new(request)))
}

/// Reads the body of a possible create. In observe mode every body may be as large as one for many calls.
async fn read_bytes(calls: &Calls, exchange: &mut Exchange, size: CreateSize) -> Result<Bytes, Rejection> {
    let bytes_max = match size {
        CreateSize::One if !calls.observes() => CREATE_BYTES_MAX,
        CreateSize::One | CreateSize::Many => CREATE_MANY_BYTES_MAX,
    };
    exchange.read_body(bytes_max).await.map_err(|error| match error {
        BodyError::TooLarge { limit } => {
            Rejection::new(RejectionCode::BodyTooLarge, format!("A create has at most {limit} bytes."))
        }
        BodyError::NoRoom => Rejection::new(RejectionCode::Overloaded, format!("Not dialled: {error}.")),
        error => {
            debug!(%error, "failed to read the body of a create");
            Rejection::new(RejectionCode::InvalidRequest, format!("Not dialled: {error}."))
        }
    })
}

fn is_encoded(headers: &HeaderMap) -> bool {
    let codings = headers.get_all(CONTENT_ENCODING);
    codings.iter().any(|coding| !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity"))
}

/// The reason why a create must be rejected whatever the limits are, if so.
fn objection(operation: &Operation, message: &Message<'_>, unknown: Option<UnknownBusiness>) -> Option<Rejection> {
    if operation.attributes.selectors().any(|selector| selector.is_doubled(message)) {
        // We and the provider may each read another of the two values, and then the limits would be those of another call.
        let message = "Not dialled: the request gives its caller or its destination more than once.";
        return Some(Rejection::new(RejectionCode::InvalidRequest, message));
    }
    let message = format!("Not dialled: {}.", unknown?);
    Some(Rejection::new(RejectionCode::UnknownBusiness, message))
}

/// The request that will be sent.
fn upstream_request(method: Method, uri: Uri, mut headers: HeaderMap, body: Bytes) -> Request<Bytes> {
    strip_hop_by_hop(&mut headers);
    for removed in [HOST, BUSINESS_HEADER] {
        headers.remove(removed);
    }
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    request
}

/// Parses a create's body. A batch is read completely or not at all: the calls of a part would be a wrong count.
fn decode(calls: &Calls, account: &Account, content_type: Option<&str>, bytes: &[u8], size: CreateSize) -> Document {
    let read = Document::read(content_type, bytes, &[]);
    let Some(flaw) = read.flaw else { return read.document };
    calls.lifecycle.metrics.unreadable(&account.name, MessageKind::Create, flaw);
    info!(account = %account.name, flaw = flaw.as_str(), bytes = bytes.len(), "create body is malformed, or was not read completely");
    if size == CreateSize::Many && flaw == Flaw::Cut { Document::Empty } else { read.document }
}

/// The attributes that a create shows of itself.
struct Identified {
    attributes: CallAttributes,
    /// The unknown business, if the create names one that is not known, or contradicts itself.
    unknown: Option<UnknownBusiness>,
    /// The part of it that named a business and was not read.
    ignored: Option<Ignored>,
}

/// Identifies the business of a create, and collects the attributes that policy selects by.
fn identify(
    calls: &Calls,
    account: &Account,
    operation: &Operation,
    business: Option<&str>,
    message: &Message<'_>,
) -> Identified {
    let policy = &calls.policy;
    let read = operation.attributes.read(message, operation.direction);
    let api_key = account.provider.api_key.as_ref().and_then(|s| s.text(message));
    let (header, contradictory_header) = match one_header(message.headers) {
        Ok(header) => (header, None),
        Err(why) => (None, Some(why.to_owned())),
    };
    let named = RequestAttributes {
        header,
        path: business,
        agent: read.agent.as_deref(),
        number: read.own_number.as_deref(),
        account: Some(account.name.as_str()),
        api_key_sha256: api_key.map(|key| sha256_hex(key.as_bytes())),
    };
    let mut contradiction = contradictory_header;
    if let Some(why) = policy.contradiction(&named) {
        match policy.settings().contradictions {
            Contradictions::Refuse => contradiction = contradiction.or(Some(why)),
            Contradictions::Log => {
                warn!(account = %account.name, why, "request contradicts itself about its business; rules applied in order");
            }
        }
    }
    let found = policy.identify(&named);
    let unknown = contradiction.map(UnknownBusiness).or(found.unknown_business);
    let attributes = CallAttributes {
        plan: policy.plan_of(&found.business),
        business: found.business,
        account: account.name.clone(),
        provider: account.provider.name.clone(),
        carrier: account.carrier.clone().filter(|_| operation.carried),
        direction: operation.direction,
        operation: operation.name.clone(),
        agent: read.agent,
        own_number: read.own_number,
        other_number: read.other_number,
    };
    Identified { attributes, unknown, ignored: found.ignored }
}

/// The value of the header. A malformed one, or two different ones, are errors.
fn one_header(headers: &HeaderMap) -> Result<Option<&str>, &'static str> {
    let mut shown = headers.get_all(BUSINESS_HEADER).iter();
    let Some(first) = shown.next() else { return Ok(None) };
    if shown.any(|other| other != first) {
        return Err("X-Business-Id is given twice, with two different businesses");
    }
    first.to_str().map(Some).map_err(|_| "X-Business-Id must be visible ASCII characters")
}

/// The business that a request names, known or not; `unknown` if it names none with a valid id.
fn shown_business(path: Option<&str>, headers: &HeaderMap) -> String {
    let header = headers.get(BUSINESS_HEADER).and_then(|v| v.to_str().ok());
    let shown = header.into_iter().chain(path).find_map(|id| BusinessId::parse(id).ok());
    shown.map_or_else(|| "unknown".to_owned(), |id| id.to_string())
}
