//! `listen.webhooks`: verify → remember → translate → apply → reply or deliver. What no description knows passes to the app.
//!
//! A webhook is on record before it is answered; the answer tells its provider that it need not be sent again.

pub mod arrive;
pub mod deliver;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE, HeaderName, HeaderValue};
use http::{HeaderMap, Response, StatusCode, Uri};
use serde_json::json;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tracing::{debug, info, warn};
use ulid::Ulid;

use crate::call::{Direction, EndProof, Event, Origin, Outcome, Phase};
use crate::calls::Calls;
use crate::calls::inbound::{Arrival, Arrived};
use crate::ids::{Alias, BusinessId, CallId};
use crate::net::{BodyError, Exchange, Handler, HostRule, RelayTarget, relay, relay_with_body};
use crate::policy::WhenFull;
use crate::provider::account::{Account, join};
use crate::provider::description::{OWN_ID_KIND, Reply, Webhook, WebhookEvent};
use crate::provider::select::{Document, Message};
use crate::provider::sign::{BadSignature, Scheme, TwilioRequest, fitting_url, resign_twilio, sha256_hex};
use crate::reply::{json_answer, problem, respond, twiml, when_full_twiml};
use crate::store::{Change, Delivery, NewEvent, Received, Result};
use arrive::{Candidate, ExtraPaths, Signed, candidates, verify};

/// Bodies up to here are kept in the inbox.
pub const KEPT_BYTES_MAX: usize = 1024 * 1024;
/// The largest body that is taken: base64 audio of an hour-long call (facts A4.3: "many MB").
pub const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Room for one of the largest, in KiB.
const LARGEST_KIB: u32 = 64 * 1024 + 1;
/// Bodies in memory at once that are large, or whose length nobody said, in KiB: two of the largest.
const LARGE_KIB_MAX: u32 = 2 * LARGEST_KIB;
/// Bodies in memory at once that are known to be small, in KiB. Room of their own: a call that waits for its answer must not
/// wait behind audio.
const SMALL_KIB_MAX: u32 = 32 * 1024;

/// How an inbound call is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InboundMode {
    /// ringfence answers the voice webhook with the TwiML of the agent's provider.
    Front,
    /// The app answers it.
    App,
}

/// Times and addresses of this layer.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What providers call.
    pub public_url: Option<Uri>,
    /// Where webhooks go on to.
    pub forward_url: Option<Uri>,
    /// What the app's validator signs with; [`Settings::forward_url`] unless given.
    pub app_public_url: Option<Uri>,
    /// A webhook that nothing can be checked with is refused.
    pub strict: bool,
    /// How an inbound call is answered.
    pub inbound_mode: InboundMode,
    /// The agent that answers a number, in front mode.
    pub agents: BTreeMap<String, String>,
    /// Paths that the operator added.
    pub extra_paths: ExtraPaths,
}

/// The handler of `listen.webhooks`.
pub struct Webhooks {
    calls: Calls,
    settings: Arc<Settings>,
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    /// Woken when there is something to deliver.
    deliver: Arc<Notify>,
}

/// A webhook as it came; from the edge, or out of the inbox after a crash.
struct Raw {
    method: String,
    path_and_query: String,
    headers: HeaderMap,
    body: Bytes,
    document: Document,
    query: Vec<(String, String)>,
}

impl Raw {
    fn new(method: &str, path_and_query: &str, headers: HeaderMap, body: Bytes) -> Self {
        let content_type = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let query = path_and_query.split_once('?').map_or("", |(_, query)| query);
        Self {
            document: decode(content_type, &body),
            query: form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
            method: method.to_owned(),
            path_and_query: path_and_query.to_owned(),
            headers,
            body,
        }
    }

    fn form(&self) -> Option<&[(String, String)]> {
        match &self.document {
            Document::Form(pairs) => Some(pairs),
            _ => None,
        }
    }
}

/// A webhook that has been read and verified.
struct Taken<'a> {
    raw: &'a Raw,
    from: &'a Candidate,
    event: Option<&'a WebhookEvent>,
    message: Message<'a>,
    aliases: Vec<Alias>,
    direction: Direction,
    /// What it says of the call.
    news: Option<Event>,
    /// Which delivery of which event.
    event_id: String,
    /// What its body takes of the memory that bodies may take.
    room: Option<Arc<OwnedSemaphorePermit>>,
}

/// What applying a webhook came to.
struct Came {
    call: Option<CallId>,
    outcome: &'static str,
    refused: Option<WhenFull>,
}

#[async_trait]
impl Handler for Webhooks {
    async fn handle(&self, exchange: &mut Exchange) {
        if exchange.path() == "/health" {
            return exchange.respond(json_answer(StatusCode::OK, &json!({"status": "ok"}))).await;
        }
        let found = candidates(&self.calls.accounts, &self.settings.extra_paths, exchange.path());
        let (kind, status) = if found.is_empty() || exchange.is_upgrade() {
            ("passed", self.pass(exchange).await)
        } else {
            ("webhook", self.take(exchange, &found).await)
        };
        self.calls.lifecycle.metrics.request("webhooks", kind, status);
    }
}

impl Webhooks {
    /// Puts the handler together.
    pub fn new(calls: Calls, settings: Settings, deliver: Arc<Notify>) -> Self {
        let room = |kib: u32| Arc::new(Semaphore::new(kib as usize));
        let (small, large) = (room(SMALL_KIB_MAX), room(LARGE_KIB_MAX));
        Self { calls, settings: Arc::new(settings), small, large, deliver }
    }

    async fn take(&self, exchange: &mut Exchange, found: &[Candidate]) -> u16 {
        // Memory is promised before it is used: by length where it is known, else the largest.
        let length = exchange.header("content-length").and_then(|v| v.parse::<usize>().ok());
        let bytes_max = length.unwrap_or(BODY_BYTES_MAX).min(BODY_BYTES_MAX);
        let rooms = if bytes_max <= KEPT_BYTES_MAX { &self.small } else { &self.large };
        let Ok(mut promised) = rooms.clone().acquire_many_owned(kib(bytes_max)).await else { return 503 };
        let body = match exchange.read_body(BODY_BYTES_MAX).await {
            Ok(body) => body,
            Err(BodyError::TooLarge { limit }) => {
                let message = format!("A webhook has at most {limit} bytes.");
                return self.answer(exchange, problem(StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE", &message)).await;
            }
            Err(error) => {
                debug!(%error, "a webhook's body did not arrive");
                let answer = problem(StatusCode::BAD_REQUEST, "BODY_INCOMPLETE", &error.to_string());
                return self.answer(exchange, answer).await;
            }
        };
        // Of what was promised, what is needed.
        let Some(room) = promised.split(kib(body.len()) as usize).map(Arc::new) else { return 503 };
        drop(promised);
        let headers = exchange.headers().clone();
        let raw = Raw::new(exchange.method().as_str(), exchange.path_and_query(), headers, body);
        let from = match self.verified(&raw, found) {
            Ok(from) => from,
            Err((account, error)) => {
                self.calls.lifecycle.metrics.webhook(account.name.as_str(), "unverified", "refused");
                warn!(account = %account.name, path = exchange.path(), %error, "a webhook was refused");
                return self
                    .answer(exchange, problem(StatusCode::UNAUTHORIZED, "INVALID_SIGNATURE", &error.to_string()))
                    .await;
            }
        };
        if matches!(raw.document, Document::Empty) && raw.query.is_empty() {
            let message = "The body is neither JSON nor a form.";
            return self.answer(exchange, problem(StatusCode::BAD_REQUEST, "INVALID_PAYLOAD", message)).await;
        }
        let event_id = format!("ev_{}", Ulid::new().to_string().to_lowercase());
        let taken = Taken { room: Some(room), ..read(&raw, from, event_id) };
        let response = match self.run(exchange, &taken).await {
            Ok(Some(response)) => response,
            Ok(None) => return 200,
            Err(error) => {
                warn!(account = %from.account.name, webhook = from.webhook().name, %error, "a webhook could not be recorded");
                let name = taken.event.map_or("unknown", |e| e.name.as_str());
                self.calls.lifecycle.metrics.webhook(from.account.name.as_str(), name, "failed");
                problem(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "STORE_UNAVAILABLE",
                    "The event could not be recorded; send it again.",
                )
            }
        };
        self.answer(exchange, response).await
    }

    fn verified<'c>(
        &self,
        raw: &Raw,
        found: &'c [Candidate],
    ) -> std::result::Result<&'c Candidate, (Arc<Account>, BadSignature)> {
        let signed = Signed {
            path_and_query: &raw.path_and_query,
            headers: &raw.headers,
            body: &raw.body,
            form: raw.form(),
            public_url: self.settings.public_url.as_ref(),
            now_secs: self.calls.lifecycle.clock.now_ms() / 1000,
            strict: self.settings.strict,
        };
        let (mut unchecked, mut last) = (None, None);
        for candidate in found {
            match verify(candidate, &signed) {
                Ok(true) => return Ok(candidate),
                // Nothing to check with; an account whose secret fits goes before.
                Ok(false) => unchecked = unchecked.or(Some(candidate)),
                Err(error) => last = last.or(Some((candidate.account.clone(), error))),
            }
        }
        if let Some(candidate) = unchecked {
            return Ok(candidate);
        }
        Err(last.unwrap_or_else(|| (found[0].account.clone(), BadSignature::NoSecret)))
    }

    /// Remembers, applies, settles. `None`: the answer has been written already (the app's, relayed).
    async fn run(&self, exchange: &mut Exchange, taken: &Taken<'_>) -> Result<Option<Response<Bytes>>> {
        let (account, webhook) = (&taken.from.account, taken.from.webhook());
        let store = &self.calls.lifecycle.store;
        let name = taken.event.map_or("unknown", |e| e.name.as_str());
        let count = |outcome: &str| self.calls.lifecycle.metrics.webhook(account.name.as_str(), name, outcome);
        let received = store.receive(self.inbox_row(taken, name)).await?;
        let event_id = match &received {
            Received::New => taken.event_id.clone(),
            Received::Before { id, outcome } => {
                if outcome.is_some() && webhook.reply.is_none() {
                    count("duplicate");
                    return Ok(Some(fixed_answer(webhook)));
                }
                id.clone()
            }
        };
        let came = self.apply(taken).await?;
        count(came.outcome);
        if let Some(when_full) = &came.refused {
            store
                .settle(&event_id, came.call.as_ref(), came.outcome, None, self.calls.lifecycle.clock.now_ms())
                .await?;
            if webhook.reply == Some(Reply::Twiml) {
                return Ok(Some(twiml(when_full_twiml(when_full))));
            }
        }
        if webhook.reply.is_some() {
            let at_ms = self.calls.lifecycle.clock.now_ms();
            store.settle(&event_id, came.call.as_ref(), came.outcome, None, at_ms).await?;
            return self.reply(exchange, taken, came.call.as_ref()).await;
        }
        self.settle(taken, &event_id, &came).await?;
        Ok(Some(fixed_answer(webhook)))
    }

    /// Notes what came of a notification, and what the app has to be told of it.
    async fn settle(&self, taken: &Taken<'_>, event_id: &str, came: &Came) -> Result<()> {
        let (store, at_ms) = (&self.calls.lifecycle.store, self.calls.lifecycle.clock.now_ms());
        let delivery = self.delivery(taken, came.call.as_ref(), event_id).await?;
        match delivery {
            Some(large) if large.body.len() > KEPT_BYTES_MAX => {
                if store.settle(event_id, came.call.as_ref(), came.outcome, None, at_ms).await? {
                    self.deliver_large(large, taken.room.clone());
                }
            }
            small => {
                let something = small.is_some();
                if store.settle(event_id, came.call.as_ref(), came.outcome, small, at_ms).await? && something {
                    self.deliver.notify_one();
                }
            }
        }
        Ok(())
    }

    /// Applies webhooks that were on record when the last process died. Replies that nobody waits for any more are only
    /// noted. Returns how many there were.
    pub async fn replay(&self) -> Result<usize> {
        let events = self.calls.lifecycle.store.unsettled_events().await?;
        let count = events.len();
        for event in events {
            let mut headers = HeaderMap::new();
            for (name, value) in &event.headers {
                if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                    headers.append(name, value);
                }
            }
            let at_ms = self.calls.lifecycle.clock.now_ms();
            let Some(body) = event.body else {
                // Too large to be kept: its call's end is asked of the provider, the app cannot be told.
                warn!(event = event.id, "a large webhook was lost with the process that took it");
                self.calls.lifecycle.store.settle(&event.id, None, "body_lost", None, at_ms).await?;
                continue;
            };
            let raw = Raw::new(&event.method, &event.path, headers, body.into());
            let path = event.path.split('?').next().unwrap_or_default();
            let found = candidates(&self.calls.accounts, &self.settings.extra_paths, path);
            let from = found.iter().find(|c| c.account.name.as_str() == event.account);
            match from {
                Some(from) if from.webhook().reply.is_none() => {
                    let taken = read(&raw, from, event.id.clone());
                    let came = self.apply(&taken).await?;
                    self.settle(&taken, &event.id, &came).await?;
                }
                _ => {
                    self.calls.lifecycle.store.settle(&event.id, None, "too_late_to_reply", None, at_ms).await?;
                }
            }
        }
        Ok(count)
    }

    fn inbox_row(&self, taken: &Taken<'_>, name: &str) -> NewEvent {
        let raw = taken.raw;
        let account = &taken.from.account;
        let webhook = taken.from.webhook();
        let parts: Vec<Cow<'_, str>> = webhook.dedupe.iter().filter_map(|s| s.text(&taken.message)).collect();
        let complete = !parts.is_empty() && parts.len() == webhook.dedupe.len();
        let of = |key: String| format!("{}|{}|{key}", account.name, webhook.name);
        // A notification that lacks what would tell its deliveries apart: the same bytes are the same event.
        let same_bytes = || {
            let notifies = webhook.reply.is_none() && taken.news.is_some() && !raw.body.is_empty();
            notifies.then(|| of(format!("sha256|{}|{}", raw.path_and_query, sha256_hex(&raw.body))))
        };
        NewEvent {
            id: taken.event_id.clone(),
            account: account.name.to_string(),
            webhook: webhook.name.clone(),
            event: name.to_owned(),
            dedupe_key: if complete { Some(of(parts.join("|"))) } else { same_bytes() },
            received_at: self.calls.lifecycle.clock.now_ms(),
            method: raw.method.clone(),
            path: raw.path_and_query.clone(),
            headers: kept_headers(&raw.headers),
            body: (raw.body.len() <= KEPT_BYTES_MAX).then(|| raw.body.to_vec()),
        }
    }

    /// Translates the event into a transition of a call. An event of an unknown call whose direction is outbound never
    /// admits and never ends anything: it waits under its ids.
    async fn apply(&self, taken: &Taken<'_>) -> Result<Came> {
        let came = |call: Option<CallId>, outcome| Came { call, outcome, refused: None };
        let Some(news) = taken.news else { return Ok(came(None, "ignored")) };
        let (own, outside): (Vec<Alias>, Vec<Alias>) =
            taken.aliases.iter().cloned().partition(|a| a.kind == OWN_ID_KIND);
        // Our own id came back through the provider: exact, and a proof that the call exists.
        if let Some(call) = own.first().and_then(|a| CallId::parse(&a.id)) {
            let change =
                Change { event: Some(news), bind: outside.clone(), ..self.calls.lifecycle.change(&call, "webhook") };
            if let Some(applied) = self.calls.lifecycle.apply(change).await? {
                return Ok(came(Some(applied.record.id), "applied"));
            }
        }
        let admits = taken.event.is_some_and(|e| e.admits) && taken.direction == Direction::Inbound;
        if let (true, Event::Reached(phase)) = (admits, news) {
            if outside.is_empty() {
                return Ok(came(None, "without_id"));
            }
            return self.arrived(taken, outside, phase).await;
        }
        Ok(match self.calls.lifecycle.news(outside, news, "webhook").await? {
            Some(applied) => came(Some(applied.record.id), "applied"),
            None => came(None, "kept"),
        })
    }

    async fn arrived(&self, taken: &Taken<'_>, aliases: Vec<Alias>, phase: Phase) -> Result<Came> {
        let webhook = taken.from.webhook();
        let mut facts = webhook.facts.read(&taken.message);
        let front = self.settings.inbound_mode == InboundMode::Front && webhook.reply == Some(Reply::Twiml);
        if front && facts.agent.is_none() {
            facts.agent = self.agent_of(facts.own_number.as_deref());
        }
        let arrival = Arrival {
            account: taken.from.account.clone(),
            operation: taken.event.map_or_else(String::new, |e| e.name.clone()),
            direction: taken.direction,
            facts,
            aliases,
            phase,
            refusable: webhook.reply == Some(Reply::Twiml),
            origin: Origin::Webhook,
        };
        Ok(match self.calls.arrive(arrival).await? {
            Arrived::Admitted(call) => Came { call: Some(call), outcome: "admitted", refused: None },
            Arrived::Refused(call, full) => Came { call: Some(call), outcome: "capacity_inbound", refused: Some(full) },
        })
    }

    /// The agent that answers a number: as configured, else the first of the business that the number belongs to.
    fn agent_of(&self, number: Option<&str>) -> Option<String> {
        let number = number?;
        self.settings.agents.get(number).cloned().or_else(|| {
            let policy = self.calls.lifecycle.policy.load();
            let marks = crate::policy::Marks { number: Some(number), ..Default::default() };
            let id: BusinessId = policy.identify(&marks).ok()?;
            policy.business(&id)?.agent_ids.first().cloned()
        })
    }

    // === replies ===

    /// The answer that the provider acts on: front mode's TwiML, or the app's.
    async fn reply(
        &self,
        exchange: &mut Exchange,
        taken: &Taken<'_>,
        call: Option<&CallId>,
    ) -> Result<Option<Response<Bytes>>> {
        let webhook = taken.from.webhook();
        let incoming = taken.event.is_some_and(|e| e.admits) && taken.direction == Direction::Inbound;
        let front = incoming && webhook.reply == Some(Reply::Twiml) && self.settings.inbound_mode == InboundMode::Front;
        if let (true, Some(call)) = (front, call) {
            return Ok(Some(self.front(call, taken).await));
        }
        if self.settings.forward_url.is_none() {
            if webhook.answer.is_some() {
                return Ok(Some(fixed_answer(webhook)));
            }
            warn!(path = exchange.path(), "nobody answers this webhook: neither app.forward_url nor front mode is set");
            if let Some(call) = call.filter(|_| incoming) {
                self.calls.lifecycle.end(call, Outcome::Failed, EndProof::Webhook, "webhook").await?;
            }
            let message = "No app answers this webhook: set app.forward_url, or [inbound] mode = \"front\".";
            return Ok(Some(problem(StatusCode::BAD_GATEWAY, "NO_APP", message)));
        }
        let target = self.app_target(taken);
        match relay_with_body(exchange, &self.calls.upstream, target, taken.raw.body.clone()).await {
            Ok(relayed) => {
                // The provider's fallback takes a call that the app could not answer; the carrier tells of its end.
                if !relayed.status.is_success() {
                    info!(status = relayed.status.as_u16(), "the app refused or failed a webhook that it must answer");
                }
                Ok(None)
            }
            Err(error) => {
                warn!(%error, "the app could not be asked for its answer");
                if webhook.answer.is_some() {
                    return Ok(Some(fixed_answer(webhook)));
                }
                let message = "The app cannot be reached.";
                Ok(Some(problem(StatusCode::BAD_GATEWAY, "APP_UNREACHABLE", message)))
            }
        }
    }

    async fn front(&self, call: &CallId, taken: &Taken<'_>) -> Response<Bytes> {
        let number = taken.from.webhook().facts.read(&taken.message).own_number;
        let connected = match self.agent_of(number.as_deref()) {
            Some(agent) => self.calls.front(call, &agent).await,
            None => {
                let _ = self.calls.lifecycle.end(call, Outcome::Failed, EndProof::Webhook, "webhook").await;
                Err("no agent answers this number: set [inbound] agents, or the business's agent_ids".to_owned())
            }
        };
        match connected {
            Ok(xml) => twiml(xml),
            Err(why) => {
                warn!(%call, why, "an admitted inbound call could not be connected; its caller meets when_full");
                let policy = self.calls.lifecycle.policy.load();
                let business = match self.calls.lifecycle.store.call(call).await {
                    Ok(Some(record)) => record.facts.business,
                    _ => BusinessId::default_business(),
                };
                twiml(when_full_twiml(policy.when_full(&business)))
            }
        }
    }

    // === to the app ===

    /// The request to the app: same path, same bytes; a signature bound to the URL is made anew for the app's.
    fn app_target(&self, taken: &Taken<'_>) -> RelayTarget {
        let base = self.settings.forward_url.clone().unwrap_or_default();
        let path_and_query = taken.raw.path_and_query.clone();
        let app_url = self.settings.app_public_url.as_ref().unwrap_or(&base);
        let url = join(app_url, &path_and_query);
        let from = taken.from;
        let signature = resigned(&from.account, from.webhook().signature, &taken.raw.headers, &url, taken.raw.form());
        RelayTarget {
            base,
            path_and_query,
            remove_headers: vec![],
            set_headers: signature.into_iter().collect(),
            host: HostRule::Upstream,
        }
    }

    /// What the app has to be told of a notification, if anything.
    async fn delivery(&self, taken: &Taken<'_>, call: Option<&CallId>, event_id: &str) -> Result<Option<Delivery>> {
        let (from, raw) = (taken.from, taken.raw);
        let form = raw.form();
        let taken_over = from.webhook().callback.is_some() && from.captures.contains_key(OWN_ID_KIND);
        let (url, signed_url, method) = if taken_over {
            let record = match call {
                Some(call) => self.calls.lifecycle.store.call(call).await?,
                None => None,
            };
            let Some(callback) = record.and_then(|r| r.callback) else { return Ok(None) };
            if !asked_for(&callback.events, form) {
                return Ok(None);
            }
            (callback.url.clone(), callback.url, callback.method)
        } else {
            let Some(base) = &self.settings.forward_url else { return Ok(None) };
            let app_url = self.settings.app_public_url.as_ref().unwrap_or(base);
            let path = &raw.path_and_query;
            (join(base, path), join(app_url, path), raw.method.clone())
        };
        Ok(Some(deliver::compose(
            event_id,
            &url,
            &signed_url,
            &method,
            &from.account,
            from.webhook().signature,
            &raw.headers,
            form,
            &raw.body,
        )))
    }

    /// A body too large to keep goes to the app from memory, and holds its room until it is there.
    fn deliver_large(&self, delivery: Delivery, room: Option<Arc<OwnedSemaphorePermit>>) {
        let calls = self.calls.clone();
        self.calls.tasks.spawn(async move {
            let _room = room;
            for pause_secs in [0, 1, 5] {
                tokio::time::sleep(std::time::Duration::from_secs(pause_secs)).await;
                match deliver::send(&calls.upstream, &delivery).await {
                    Ok(()) => return calls.lifecycle.metrics.delivery("done"),
                    Err(error) => warn!(delivery = delivery.id, %error, "a large webhook did not reach the app"),
                }
            }
            calls.lifecycle.metrics.delivery("given_up");
        });
    }

    /// What no description knows: paths and sockets of the app.
    async fn pass(&self, exchange: &mut Exchange) -> u16 {
        let Some(base) = self.settings.forward_url.clone() else {
            let message = "Nothing is known at this path, and app.forward_url is not set.";
            return self.answer(exchange, problem(StatusCode::NOT_FOUND, "UNKNOWN_ROUTE", message)).await;
        };
        let path_and_query = exchange.path_and_query().to_owned();
        let mut target = RelayTarget {
            base: base.clone(),
            path_and_query: path_and_query.clone(),
            set_headers: vec![],
            remove_headers: vec![],
            host: HostRule::Upstream,
        };
        if !exchange.headers().contains_key("x-twilio-signature") {
            return self.relayed(relay(exchange, &self.calls.upstream, target).await, exchange).await;
        }
        // Signed for our URL: sign it for the app's, but only if it was genuine.
        let body = match exchange.is_upgrade() {
            true => Bytes::new(),
            false => match exchange.read_body(KEPT_BYTES_MAX).await {
                Ok(body) => body,
                Err(BodyError::TooLarge { limit }) => {
                    let message = format!("A signed request has at most {limit} bytes.");
                    let answer = problem(StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE", &message);
                    return self.answer(exchange, answer).await;
                }
                Err(error) => {
                    debug!(%error, "a passed request's body did not arrive");
                    let answer = problem(StatusCode::BAD_REQUEST, "BODY_INCOMPLETE", &error.to_string());
                    return self.answer(exchange, answer).await;
                }
            },
        };
        let document = decode(exchange.header("content-type"), &body);
        let form = match &document {
            Document::Form(pairs) => Some(pairs.as_slice()),
            _ => None,
        };
        let public = match (&self.settings.public_url, exchange.host()) {
            (Some(public), _) => join(public, &path_and_query),
            (None, Some(host)) => format!("http://{host}{path_and_query}"),
            (None, None) => path_and_query.clone(),
        };
        let request = TwilioRequest {
            url: &public,
            form,
            body: &body,
            signature: exchange.header("x-twilio-signature"),
            settings: exchange.header("x-twilio-webhooks-signature-settings"),
        };
        // Any account may be the signer.
        let signer =
            self.calls.accounts.values().find_map(|a| Some((a, fitting_url(&a.twilio_keys(), &request).ok()?)));
        if let Some((account, fitted)) = signer {
            let mut app_url = join(self.settings.app_public_url.as_ref().unwrap_or(&base), &path_and_query);
            // A handshake that was signed as wss:// is checked as wss:// by the app too.
            if fitted.starts_with("ws") {
                app_url = app_url.replacen("http", "ws", 1);
            }
            target.set_headers.extend(resigned(account, Scheme::Twilio, exchange.headers(), &app_url, form));
        }
        let relayed = match exchange.is_upgrade() {
            true => relay(exchange, &self.calls.upstream, target).await,
            false => relay_with_body(exchange, &self.calls.upstream, target, body).await,
        };
        self.relayed(relayed, exchange).await
    }

    async fn relayed(
        &self,
        relayed: std::result::Result<crate::net::Relayed, crate::net::RelayError>,
        exchange: &mut Exchange,
    ) -> u16 {
        match relayed {
            Ok(relayed) => relayed.status.as_u16(),
            Err(error) => {
                warn!(%error, "the app cannot be reached");
                self.answer(exchange, problem(StatusCode::BAD_GATEWAY, "APP_UNREACHABLE", "The app cannot be reached."))
                    .await
            }
        }
    }

    async fn answer(&self, exchange: &mut Exchange, response: Response<Bytes>) -> u16 {
        let status = response.status().as_u16();
        exchange.respond(response).await;
        status
    }
}

/// Reads a webhook as its description says.
fn read<'a>(raw: &'a Raw, from: &'a Candidate, event_id: String) -> Taken<'a> {
    let webhook = from.webhook();
    let message = Message { body: &raw.document, query: &raw.query, path: &from.captures, headers: &raw.headers };
    let event = webhook.events.iter().find(|e| e.when.is_empty() || e.when.holds(&message));
    Taken {
        raw,
        from,
        event,
        message,
        aliases: webhook.ids.read(&message),
        direction: webhook.direction.as_ref().and_then(|d| d.read(&message)).unwrap_or(Direction::Outbound),
        news: event.and_then(|e| e.state.as_ref()).and_then(|s| s.read(&message, EndProof::Webhook)),
        event_id,
        room: None,
    }
}

fn kib(bytes: usize) -> u32 {
    u32::try_from(bytes / 1024 + 1).unwrap_or(LARGEST_KIB).min(LARGEST_KIB)
}

/// A new signature for the app's URL, where the scheme binds the URL.
fn resigned(
    account: &Account,
    scheme: Scheme,
    headers: &HeaderMap,
    url: &str,
    form: Option<&[(String, String)]>,
) -> Option<(HeaderName, HeaderValue)> {
    if scheme != Scheme::Twilio {
        return None;
    }
    let settings = headers.get("x-twilio-webhooks-signature-settings").and_then(|v| v.to_str().ok());
    let signature = resign_twilio(&account.twilio_keys(), settings, url, form)?;
    Some((HeaderName::from_static("x-twilio-signature"), HeaderValue::try_from(signature).ok()?))
}

/// Whether the app asked for this event of a call. Twilio's default is the end alone (facts B2.1), and the event `answered`
/// arrives as `in-progress` (facts B3).
fn asked_for(events: &[String], form: Option<&[(String, String)]>) -> bool {
    let status = form.and_then(|f| f.iter().find(|(k, _)| k == "CallStatus")).map_or("", |(_, v)| v.as_str());
    let event = match status {
        "queued" | "initiated" => "initiated",
        "ringing" => "ringing",
        "in-progress" => "answered",
        _ => "completed",
    };
    // Some clients write one value with spaces (facts B10).
    let mut asked = events.iter().flat_map(|e| e.split_whitespace()).peekable();
    if asked.peek().is_none() { event == "completed" } else { asked.any(|e| e == event) }
}

fn fixed_answer(webhook: &Webhook) -> Response<Bytes> {
    let Some(answer) = &webhook.answer else { return respond(StatusCode::NO_CONTENT, HeaderMap::new(), Bytes::new()) };
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    match &answer.body {
        Some(body) => json_answer(status, body),
        None => respond(status, HeaderMap::new(), Bytes::new()),
    }
}

/// Headers worth keeping: no credentials, none of the connection.
fn kept_headers(headers: &HeaderMap) -> Vec<(String, String)> {
    let kept = headers.iter().filter(|(name, _)| {
        !matches!(**name, AUTHORIZATION | COOKIE)
            && name.as_str() != "x-ringfence-token"
            && name.as_str() != "connection"
    });
    kept.filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned()))).collect()
}

/// A body as a document. Of large JSON, texts that no selector reads (base64 audio) are left out.
fn decode(content_type: Option<&str>, body: &Bytes) -> Document {
    if body.len() <= KEPT_BYTES_MAX {
        return Document::decode(content_type, body);
    }
    serde_json::from_slice::<deliver::Skimmed>(body).map_or(Document::Empty, |skimmed| Document::Json(skimmed.0))
}
