//! Delivery to the app: durable, retried, with the provider's own bytes.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span, warn};
use ulid::Ulid;

use super::app_view::REPLACED;
use super::raw::kept_headers;
use super::renew::renewed;
use super::resign::Resign;
use super::spool::{BODY_GONE, release};
use crate::calls::Calls;
use crate::clock::UnixMs;
use crate::failpoint;
use crate::ids::CallId;
use crate::metrics::{CallbackUse, Delivered};
use crate::net::headers::strip_hop_by_hop;
use crate::net::{CallbackError, UpstreamError};
use crate::provider::account::join_url;
use crate::provider::path::percent_decode;
use crate::provider::sign::{Request as Signed, sign_standard, standard_key, without_fragment};
use crate::store::{Delivery, DeliveryResult, DeliveryRoute, Spool, StoreError};
use crate::telemetry::traces;

/// Pauses between attempts, in seconds. After the last attempt the delivery is given up and stays in the store with its error.
pub const BACKOFF_SECS: [i64; 8] = [1, 5, 15, 60, 300, 900, 3600, 3 * 3600];
/// The number of these pauses that apply where the app has rejected a delivery.
const REJECTED_TRIES: usize = 3;
/// Header with the app's own callback URL, for a callback that is delivered through `app.forward_url`.
const ASKED_URL: HeaderName = HeaderName::from_static("x-ringfence-callback-url");
/// The time-out of the app's response.
const TIMEOUT: Duration = Duration::from_secs(15);
/// The timeout of a delivery with a large body: less than a delivery is reserved for this process ([`crate::store::TAKEN_MS`]).
const LARGE_TIMEOUT: Duration = Duration::from_secs(25);
/// The part of the app's response that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Concurrent deliveries.
const DELIVERIES_AT_ONCE: u32 = 32;
/// The time for which a stop waits for deliveries in progress.
const STOP_WITHIN: Duration = Duration::from_secs(2);
/// The interval at which the outbox is polled without a notification: retries become due by time.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The destination of a notification.
pub(super) struct To<'a> {
    pub(super) route: DeliveryRoute,
    pub(super) url: &'a str,
    /// The URL by which the app knows itself.
    pub(super) signed_url: &'a str,
    pub(super) method: &'a str,
    /// The headers that show the app that URL.
    pub(super) front: Vec<(HeaderName, HeaderValue)>,
}

/// Composes a notification for the app: the body and the provider's headers unchanged, a URL-bound signature made anew.
pub(super) fn compose(event_id: &str, to: To<'_>, signed: &Resign<'_>, spool: Option<&str>) -> Delivery {
    let Signed { headers, body, form, .. } = signed.received;
    let To { route, url, signed_url, method, front } = to;
    let id = format!("dl_{}", Ulid::new().to_string().to_lowercase());
    let mut url = without_fragment(url).to_owned();
    let mut signed_url = without_fragment(signed_url).to_owned();
    let (mut form, mut body) = (form, if spool.is_some() { vec![] } else { body.to_vec() });
    if method.eq_ignore_ascii_case("GET")
        && let Some(pairs) = form
    {
        // The app asked for GET: the form becomes the query.
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
        for one in [&mut url, &mut signed_url] {
            one.push(if one.contains('?') { '&' } else { '?' });
            one.push_str(&query);
        }
        (form, body) = (None, Vec::new());
    }
    let mut kept: HeaderMap = headers.clone();
    strip_hop_by_hop(&mut kept);
    for gone in REPLACED.iter().chain(&[HOST, CONTENT_LENGTH]) {
        kept.remove(gone);
    }
    // It is delivered later; its span tree continues this trace.
    traces::set_trace_headers(&Span::current(), &mut kept);
    if body.is_empty() && spool.is_none() {
        kept.remove(CONTENT_TYPE);
    }
    // A spooled body is signed as it is stored.
    let whole = if spool.is_some() { signed.received.body } else { &body };
    for (name, value) in front.into_iter().chain(signed.headers(method, &signed_url, whole, form)) {
        kept.insert(name, value);
    }
    if let Ok(value) = HeaderValue::try_from(&id) {
        kept.insert("x-ringfence-delivery", value);
    }
    Delivery {
        id,
        event_id: event_id.to_owned(),
        call: None,
        route,
        url,
        method: method.to_ascii_uppercase(),
        headers: kept_headers(&kept, signed.signature),
        body,
        spool: spool.map(str::to_owned),
        attempts: 0,
    }
}

/// One of ringfence's own events, signed by Standard Webhooks with its id, which stays the same at every attempt.
fn signed(calls: &Calls, delivery: &Delivery) -> Result<Delivery, String> {
    let events = calls.settings.events.as_ref().ok_or("app.events_url is not set any more")?;
    let (key, at_secs) = (standard_key(&events.secret)?, calls.lifecycle.clock.now_ms() / 1000);
    let headers = [
        ("content-type", "application/json".to_owned()),
        ("webhook-id", delivery.id.clone()),
        ("webhook-timestamp", at_secs.to_string()),
        ("webhook-signature", sign_standard(&key, &delivery.id, at_secs, &delivery.body)),
    ];
    let headers = headers.map(|(name, value)| (name.to_owned(), value)).to_vec();
    Ok(Delivery { url: events.url.to_string(), headers, ..delivery.clone() })
}

/// The reason why a delivery failed.
struct DeliveryError {
    why: String,
    /// The number of times that it is retried.
    retry: RetrySchedule,
}

/// The number of times that a delivery is retried.
#[derive(Clone, Copy)]
enum RetrySchedule {
    /// For hours: the app may be down.
    Hours,
    /// For seconds: the app has rejected it.
    Seconds,
    /// Not at all.
    Never,
}

impl RetrySchedule {
    /// The pauses between attempts, in seconds.
    fn pauses_secs(self) -> &'static [i64] {
        match self {
            Self::Hours => &BACKOFF_SECS,
            Self::Seconds => &BACKOFF_SECS[..REJECTED_TRIES],
            Self::Never => &[],
        }
    }
}

impl DeliveryError {
    fn never(why: impl ToString) -> Self {
        Self { why: why.to_string(), retry: RetrySchedule::Never }
    }
}

impl From<String> for DeliveryError {
    fn from(why: String) -> Self {
        Self { why, retry: RetrySchedule::Hours }
    }
}

/// Whether a response rejects the delivery for good: the same request would hardly get another response. Redirects are not
/// followed.
fn is_final(status: StatusCode) -> bool {
    let of_the_moment =
        [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS].contains(&status);
    (status.is_client_error() || status.is_redirection()) && !of_the_moment
}

/// Sends a delivery once. A 2xx response means that the app has it.
async fn send(calls: &Calls, delivery: &Delivery, spool: &Spool) -> Result<(), DeliveryError> {
    let (upstream, app) = (&calls.upstream, &calls.settings.app);
    // Resolved anew: the operator may have changed the app's address.
    let path = if delivery.route.is_chosen_by_app() { app.path_of(&delivery.url) } else { None };
    if let Some(path) = path
        && !calls.may_forward(path)
    {
        return Err(forbidden(
            calls,
            &CallbackError::unusable("app.forward_paths does not let its path pass to the app"),
        ));
    }
    let forwarded = path.map(|path| match &app.forward_url {
        Some(base) => Ok(join_url(base, path)),
        None => Err(DeliveryError::from("app.forward_url is not set, and the address is the app's own".to_owned())),
    });
    let is_forwarded = forwarded.is_some();
    let url = forwarded.transpose()?.unwrap_or_else(|| delivery.url.clone());
    let mut request = Request::new(());
    *request.method_mut() = delivery.method.parse::<Method>().map_err(DeliveryError::never)?;
    *request.uri_mut() = url.parse::<Uri>().map_err(DeliveryError::never)?;
    for (name, value) in &delivery.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            request.headers_mut().append(name, value);
        }
    }
    if is_forwarded && let Ok(asked) = HeaderValue::try_from(delivery.url.as_str()) {
        request.headers_mut().insert(ASKED_URL, asked);
    }
    let span = traces::delivery(&delivery.event_id, delivery.attempts + 1, request.headers());
    traces::set_trace_headers(&span, request.headers_mut());
    let not_sent = |error: DeliveryError| {
        traces::record_failure(&span, "not_sent");
        error
    };
    let answer = match &delivery.spool {
        None if delivery.route.is_chosen_by_app() && !is_forwarded => {
            let rules = upstream.callback_rules();
            rules.check_url(&delivery.url).map_err(|bad| not_sent(forbidden(calls, &bad)))?;
            if let Some(authorization) = credentials(request.uri()) {
                request.headers_mut().entry(AUTHORIZATION).or_insert(authorization);
            }
            let request = request.map(|()| Bytes::from(delivery.body.clone()));
            upstream.fetch_callback(request, ANSWER_BYTES_MAX, TIMEOUT).instrument(span.clone()).await
        }
        Some(_) if delivery.route == DeliveryRoute::Callback => {
            return Err(not_sent(DeliveryError::never("its body is too large for a callback")));
        }
        None => {
            let request = request.map(|()| Bytes::from(delivery.body.clone()));
            upstream.fetch(request, ANSWER_BYTES_MAX, TIMEOUT).instrument(span.clone()).await
        }
        Some(_) => match spool.open(&delivery.event_id).await {
            Ok(file) => {
                let sending = upstream.fetch_file(request, file, ANSWER_BYTES_MAX, LARGE_TIMEOUT);
                sending.instrument(span.clone()).await
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(not_sent(DeliveryError::never(BODY_GONE)));
            }
            Err(error) => return Err(not_sent(format!("its body cannot be read: {error}").into())),
        },
    };
    match &answer {
        Ok(response) => traces::record_status(&span, response.status().as_u16()),
        Err(UpstreamError::Forbidden(_)) => traces::record_failure(&span, "not_sent"),
        Err(_) => traces::record_failure(&span, "no_answer"),
    }
    match answer {
        Ok(response) if response.status().is_success() => Ok(()),
        Ok(response) => {
            let retry = if is_final(response.status()) { RetrySchedule::Seconds } else { RetrySchedule::Hours };
            Err(DeliveryError { why: format!("the app answered {}", response.status().as_u16()), retry })
        }
        Err(UpstreamError::Forbidden(bad)) => Err(forbidden(calls, &bad)),
        Err(error) => Err(error.to_string().into()),
    }
}

/// A tenant's URL that must not be called. It will not be called later either.
fn forbidden(calls: &Calls, bad: &CallbackError) -> DeliveryError {
    calls.lifecycle.metrics.callback_rejected(CallbackUse::Delivery, bad.reason);
    DeliveryError::never(format!("not called: {bad}"))
}

/// The credentials in a URL, as an `Authorization` header.
fn credentials(url: &Uri) -> Option<HeaderValue> {
    let (pair, _) = url.authority()?.as_str().rsplit_once('@')?;
    let pair = percent_decode(if pair.contains(':') { pair.into() } else { format!("{pair}:") }.as_str()).into_owned();
    let mut value = HeaderValue::try_from(format!("Basic {}", BASE64.encode(pair))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Delivers what is due until `stop`. Deliveries of one call are sent one after the other, by whichever process, as long as none
/// fails; a failed one is retried separately. A slow one delays no other call's. Unfinished ones are due again after a restart.
///
/// `newest` gives the newest generation of calls; `spool` has large bodies.
pub async fn delivery_loop(newest: impl Fn() -> Calls, spool: Spool, wake: Arc<Notify>, stop: CancellationToken) {
    let mut under_way = tokio::task::JoinSet::new();
    loop {
        let calls = newest();
        let now_ms = calls.lifecycle.clock.now_ms();
        let room = DELIVERIES_AT_ONCE.saturating_sub(u32::try_from(under_way.len()).unwrap_or(DELIVERIES_AT_ONCE));
        if room > 0 {
            let claimed = calls
                .lifecycle
                .store
                .take_deliveries(now_ms, room, spool.name(), calls.settings.delivery_order)
                .await
                .unwrap_or_else(|error| {
                    warn!(%error, "failed to read the outbox");
                    vec![]
                });
            for delivery in claimed {
                let (calls, spool) = (calls.clone(), spool.clone());
                under_way.spawn(async move { deliver_one(&calls, &spool, &delivery).await });
            }
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = wake.notified() => {}
            () = tokio::time::sleep(POLL_INTERVAL) => {}
            // The next delivery of its call may be sent. One that panicked is due again when its reservation ends.
            Some(_) = under_way.join_next() => {}
        }
    }
    // Unfinished deliveries are sent again: by another process after a while, or by the next one at its start.
    let done = async { while under_way.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(STOP_WITHIN, done).await;
}

async fn deliver_one(calls: &Calls, spool: &Spool, delivery: &Delivery) {
    let sent = match delivery.route {
        DeliveryRoute::OwnEvent => match signed(calls, delivery) {
            Ok(signed) => send(calls, &signed, spool).await,
            Err(why) => Err(why.into()),
        },
        _ => send(calls, renewed(calls, spool, delivery).await.as_ref(), spool).await,
    };
    failpoint::hit("delivery.sent").await;
    let now_ms = calls.lifecycle.clock.now_ms();
    let result = result_of(sent, delivery.attempts, now_ms);
    calls.lifecycle.metrics.delivery(match &result {
        DeliveryResult::Done => Delivered::Done,
        DeliveryResult::Retry { .. } => Delivered::Retry,
        DeliveryResult::GivenUp { .. } => Delivered::GivenUp,
    });
    if let DeliveryResult::Retry { why, .. } | DeliveryResult::GivenUp { why } = &result {
        let attempt = delivery.attempts + 1;
        let (delivery, event) = (&delivery.id, &delivery.event_id);
        warn!(delivery, event, attempt, error = why, "failed to deliver a webhook to the app");
    }
    let is_done = result == DeliveryResult::Done;
    if let Err(error) = record(calls, delivery, now_ms, result).await {
        warn!(%error, "failed to record a delivery's result; it is sent again");
        tokio::time::sleep(Duration::from_secs(1)).await;
    } else if is_done && delivery.spool.is_some() {
        release(spool, calls, &delivery.event_id).await;
    }
    failpoint::hit("delivery.noted").await;
}

/// Returns the result of an attempt for the delivery; `attempts` were made before it.
fn result_of(sent: Result<(), DeliveryError>, attempts: u32, now_ms: UnixMs) -> DeliveryResult {
    let Err(DeliveryError { why, retry }) = sent else { return DeliveryResult::Done };
    match retry.pauses_secs().get(attempts as usize) {
        Some(secs) => DeliveryResult::Retry { why, at: now_ms + secs * 1000 },
        None => DeliveryResult::GivenUp { why },
    }
}

/// Records a result. Transcripts are not kept longer than needed.
async fn record(calls: &Calls, delivery: &Delivery, now_ms: UnixMs, result: DeliveryResult) -> Result<(), StoreError> {
    let is_done = result == DeliveryResult::Done;
    calls.lifecycle.store.record_delivery_result(&delivery.id, now_ms, result).await?;
    if is_done { delete_body(calls, delivery).await } else { Ok(()) }
}

async fn delete_body(calls: &Calls, delivery: &Delivery) -> Result<(), StoreError> {
    let call = delivery.call.as_deref().and_then(CallId::parse);
    match calls.post_call.forgets_bodies(call.as_ref()).await? {
        true => calls.lifecycle.store.delete_body(&delivery.event_id).await,
        false => Ok(()),
    }
}
