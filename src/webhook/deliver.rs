//! Telling the app: durable, retried, in the provider's own bytes.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use ulid::Ulid;

use super::spool::BODY_GONE;
use super::to_app::Resign;
use crate::calls::Calls;
use crate::failpoint;
use crate::ids::CallId;
use crate::net::Upstream;
use crate::net::headers::strip_hop_by_hop;
use crate::provider::sign::{Request as Signed, sign_standard, standard_key, without_fragment};
use crate::store::{Delivery, Spool, StoreError};

/// Pauses between tries, in seconds. After the last the delivery is given up and stays on record with its error.
pub const BACKOFF_SECS: [i64; 8] = [1, 5, 15, 60, 300, 900, 3600, 3 * 3600];
/// How long the app may take.
const TIMEOUT: Duration = Duration::from_secs(15);
/// The same for large bodies: less than a delivery is this process's ([`crate::store::TAKEN_MS`]).
const LARGE_TIMEOUT: Duration = Duration::from_secs(25);
/// What is read of the app's answer.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Deliveries under way at once.
const AT_ONCE: u32 = 32;
/// How long a stop waits for deliveries under way.
const STOP_WITHIN: Duration = Duration::from_secs(2);
/// How often the outbox is looked at without being woken: retries come due by themselves.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A notification as the app gets it: bytes and provider headers untouched, a URL-bound signature made anew.
pub(super) fn compose(
    event_id: &str,
    url: &str,
    signed_url: &str,
    method: &str,
    signed: &Resign<'_>,
    spool: Option<&str>,
) -> Delivery {
    let Signed { headers, body, form, .. } = signed.came;
    let id = format!("dl_{}", Ulid::new().to_string().to_lowercase());
    let mut url = without_fragment(url).to_owned();
    let mut signed_url = without_fragment(signed_url).to_owned();
    let (mut form, mut body) = (form, if spool.is_some() { vec![] } else { body.to_vec() });
    if method.eq_ignore_ascii_case("GET")
        && let Some(pairs) = form
    {
        // The app asked for GET: what came as a form goes as a query.
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
        for one in [&mut url, &mut signed_url] {
            one.push(if one.contains('?') { '&' } else { '?' });
            one.push_str(&query);
        }
        (form, body) = (None, Vec::new());
    }
    let mut kept: HeaderMap = headers.clone();
    strip_hop_by_hop(&mut kept);
    for gone in [HOST, CONTENT_LENGTH] {
        kept.remove(gone);
    }
    if body.is_empty() && spool.is_none() {
        kept.remove(CONTENT_TYPE);
    }
    // What is in the spool is signed as it is there.
    let whole = if spool.is_some() { signed.came.body } else { &body };
    for (name, value) in signed.headers(method, &signed_url, whole, form) {
        kept.insert(name, value);
    }
    if let Ok(value) = HeaderValue::try_from(&id) {
        kept.insert("x-ringfence-delivery", value);
    }
    Delivery {
        id,
        event_id: event_id.to_owned(),
        call: None,
        url,
        method: method.to_ascii_uppercase(),
        headers: super::kept_headers(&kept, signed.signature),
        body,
        spool: spool.map(str::to_owned),
        attempts: 0,
    }
}

/// An event of our own as it is sent now: signed as Standard Webhooks has it, with its id, which stays the same at every try.
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

/// Why the app does not have a delivery.
struct Missed {
    why: String,
    /// Trying again would not help.
    for_good: bool,
}

impl From<String> for Missed {
    fn from(why: String) -> Self {
        Self { why, for_good: false }
    }
}

/// Sends a delivery once. The app has it when it answers with 2xx.
async fn send(upstream: &Upstream, delivery: &Delivery, spool: &Spool) -> Result<(), Missed> {
    let mut request = Request::new(());
    *request.method_mut() = delivery.method.parse::<Method>().map_err(|e| e.to_string())?;
    *request.uri_mut() = delivery.url.parse().map_err(|e: http::uri::InvalidUri| e.to_string())?;
    for (name, value) in &delivery.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            request.headers_mut().append(name, value);
        }
    }
    let answer = match &delivery.spool {
        None => {
            let request = request.map(|()| Bytes::from(delivery.body.clone()));
            upstream.fetch(request, ANSWER_BYTES_MAX, TIMEOUT).await
        }
        Some(_) => match spool.open(&delivery.event_id).await {
            Ok(file) => upstream.fetch_file(request, file, ANSWER_BYTES_MAX, LARGE_TIMEOUT).await,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Missed { why: BODY_GONE.to_owned(), for_good: true });
            }
            Err(error) => return Err(format!("its body cannot be read: {error}").into()),
        },
    };
    match answer {
        Ok(response) if response.status().is_success() => Ok(()),
        Ok(response) => Err(format!("the app answered {}", response.status().as_u16()).into()),
        Err(error) => Err(error.to_string().into()),
    }
}

/// Delivers what is due until it is told to stop. Those of one call go one after the other, whichever process sends them; one
/// that is slow holds up no other call's. What is left is due again after a restart.
///
/// `newest` gives the newest generation of calls; `spool` has large bodies.
pub async fn run(newest: impl Fn() -> Calls, spool: Spool, wake: Arc<Notify>, stop: CancellationToken) {
    let mut under_way = tokio::task::JoinSet::new();
    loop {
        let calls = newest();
        let now_ms = calls.lifecycle.clock.now_ms();
        let room = AT_ONCE.saturating_sub(u32::try_from(under_way.len()).unwrap_or(AT_ONCE));
        if room > 0 {
            let taken =
                calls.lifecycle.store.take_deliveries(now_ms, room, spool.name()).await.unwrap_or_else(|error| {
                    warn!(%error, "the outbox cannot be read");
                    vec![]
                });
            for delivery in taken {
                let (calls, spool) = (calls.clone(), spool.clone());
                under_way.spawn(async move { one(&calls, &spool, &delivery).await });
            }
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = wake.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
            // The next of its call may go. One that panicked is due again when nobody has it any more.
            Some(_) = under_way.join_next() => {}
        }
    }
    // What is not done in time is sent again: by another process after a while, by the next one at its start.
    let done = async { while under_way.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(STOP_WITHIN, done).await;
}

async fn one(calls: &Calls, spool: &Spool, delivery: &Delivery) {
    let result = match delivery.is_own() {
        true => match signed(calls, delivery) {
            Ok(signed) => send(&calls.upstream, &signed, spool).await,
            Err(why) => Err(why.into()),
        },
        false => send(&calls.upstream, delivery, spool).await,
    };
    failpoint::hit("delivery.sent").await;
    let now_ms = calls.lifecycle.clock.now_ms();
    let noted = match result {
        Ok(()) => {
            calls.lifecycle.metrics.delivery("done");
            Ok(())
        }
        Err(Missed { why: error, for_good }) => {
            let pause_secs = BACKOFF_SECS.get(delivery.attempts as usize).filter(|_| !for_good);
            calls.lifecycle.metrics.delivery(if pause_secs.is_some() { "retry" } else { "given_up" });
            warn!(
                delivery = delivery.id,
                event = delivery.event_id,
                attempt = delivery.attempts + 1,
                error,
                "a webhook did not reach the app"
            );
            Err((error, pause_secs.map(|secs| now_ms + secs * 1000)))
        }
    };
    let store = &calls.lifecycle.store;
    let delivered = noted.is_ok();
    let noted = match store.delivered(&delivery.id, now_ms, noted).await {
        // What was said is not kept longer than it is needed.
        Ok(()) if delivered => forget_body(calls, delivery).await,
        done => done,
    };
    if let Err(error) = noted {
        warn!(%error, "a delivery's result could not be recorded; it is sent again");
        tokio::time::sleep(Duration::from_secs(1)).await;
    } else if delivered && delivery.spool.is_some() {
        super::spool::release(spool, calls, &delivery.event_id).await;
    }
    failpoint::hit("delivery.noted").await;
}

async fn forget_body(calls: &Calls, delivery: &Delivery) -> Result<(), StoreError> {
    let call = delivery.call.as_deref().and_then(CallId::parse);
    match calls.forgets_bodies(call.as_ref()).await? {
        true => calls.lifecycle.store.forget_body(&delivery.event_id).await,
        false => Ok(()),
    }
}

/// JSON without the texts that make it large: `full_audio` is never built.
pub struct Skimmed(pub Value);

impl<'de> Deserialize<'de> for Skimmed {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(Skim).map(Skimmed)
    }
}

struct Skim;

impl<'de> Visitor<'de> for Skim {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Skimmed(one)) = seq.next_element()? {
            list.push(one);
        }
        Ok(Value::Array(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if key == "full_audio" {
                map.next_value::<IgnoredAny>()?;
            } else {
                let Skimmed(value) = map.next_value()?;
                object.insert(key, value);
            }
        }
        Ok(Value::Object(object))
    }
}
