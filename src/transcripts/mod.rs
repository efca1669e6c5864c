//! `listen.client`: live transcripts for clients with a token: `/ws/calls/transcriptions`, `/calls/{id}/transcript` and
//! `/conversations/{id}/fetch`; and calls in the format of the replaced systems (docs/compatibility.md).

mod calls;
mod client;
mod feed;
mod message;
mod runs;
mod socket;
mod wake;

use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::header::{HeaderValue, VARY};
use http::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tracing::warn;

use crate::calls::post_call::shown::Numbers;
use crate::clock::as_ms;
use crate::ids::{Alias, CallId};
use crate::metrics::{ClientRequest, Served};
use crate::net::{Exchange, Handler, SocketError};
use crate::provider::description::APP_ID_KIND;
use crate::provider::path::percent_decode;
use crate::reply::{for_browsers, health, json_answer, problem, respond};
use crate::store::{self, CallRecord, StoreError};
use crate::token::{Principal, TokenError, bearer};
pub use client::{Client, ClientSettings, Sockets};
pub use feed::{Feed, RemoteChanges};
use socket::Connection;

/// Maximum utterances per page of a transcript.
const PAGE_MAX: u32 = 1000;
/// The subprotocol for tokens: `Sec-WebSocket-Protocol: ringfence, bearer.<jwt>`.
const PROTOCOL: &str = "ringfence";
/// The listener serves no pages.
const CONTENT_POLICY: &str = "default-src 'none'; frame-ancestors 'none'";
/// Maximum open sockets.
pub const SOCKETS_MAX: usize = 20_000;

/// The reason why a client gets no calls and no transcript.
enum ClientError {
    Denied(String),
    NotFound,
    BadNumber(&'static str),
    Store(StoreError),
}

impl From<StoreError> for ClientError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl ClientError {
    fn answer(self) -> Response<Bytes> {
        match self {
            Self::Denied(why) => problem(StatusCode::FORBIDDEN, "AUTHENTICATION_FAILED", &why),
            Self::NotFound => problem(StatusCode::NOT_FOUND, "CALL_NOT_FOUND", "No call is known by this id."),
            Self::BadNumber(name) => {
                let why = format!("{name} must be a number, 0 or more");
                problem(StatusCode::BAD_REQUEST, "INVALID_REQUEST", &why)
            }
            Self::Store(error) => {
                warn!(%error, "failed to read calls or a transcript for a client");
                let why = "The database does not answer; try again.";
                problem(StatusCode::SERVICE_UNAVAILABLE, "STORE_UNAVAILABLE", why)
            }
        }
    }
}

#[async_trait]
impl Handler for Client {
    async fn handle(&self, exchange: &mut Exchange) {
        let path = exchange.path().to_owned();
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let (kind, answer) = match (exchange.method().clone(), segments.as_slice()) {
            (Method::GET, ["health"]) => (ClientRequest::Health, Some(health())),
            (Method::GET, ["ws", "calls", "transcriptions"]) => {
                (ClientRequest::Socket, self.socket(exchange).boxed().await)
            }
            (Method::GET, ["calls", id, "transcript"]) => {
                let answer = self.transcript(exchange, &percent_decode(id)).boxed().await;
                let answer = answer.map_or_else(ClientError::answer, |shown| json_answer(StatusCode::OK, &shown));
                (ClientRequest::Transcript, Some(answer))
            }
            (Method::POST, ["conversations", id, "fetch"] | ["driver_data", "conversations", id, "fetch"]) => {
                (ClientRequest::Fetch, Some(self.fetch(exchange, &percent_decode(id)).boxed().await))
            }
            (
                Method::OPTIONS,
                ["calls", ..] | ["conversations", _, "fetch"] | ["driver_data", "conversations", _, "fetch"],
            ) => (ClientRequest::Preflight, Some(respond(StatusCode::NO_CONTENT, Default::default(), Bytes::new()))),
            _ => match self.legacy_calls(exchange, &segments).boxed().await {
                Some((kind, answer)) => (kind, Some(answer)),
                None => {
                    let message = "nothing is served at this path and method";
                    (ClientRequest::Unknown, Some(problem(StatusCode::NOT_FOUND, "NOT_FOUND", message)))
                }
            },
        };
        let metrics = &self.lifecycle.metrics;
        match answer {
            Some(answer) => {
                metrics.request(Served::Client(kind), answer.status().as_u16());
                let mut answer = self.with_cors_headers(exchange.header("origin"), answer);
                for_browsers(&mut answer, CONTENT_POLICY, exchange.is_tls());
                exchange.respond(answer).await;
            }
            None => metrics.request(Served::Client(kind), 101),
        }
    }
}

impl Client {
    /// Whether the listener serves this path, `/health` excluded.
    pub fn serves(path: &str) -> bool {
        matches!(
            path.split('/').skip(1).collect::<Vec<_>>().as_slice(),
            ["ws", "calls", "transcriptions"]
                | ["calls", ..]
                | ["conversations", _, "fetch"]
                | ["driver_data", "conversations", _, "fetch"]
        )
    }

    /// Puts these settings in force for new tokens and for open sockets: those whose token is no longer valid
    /// are closed.
    pub fn publish_settings(&self) {
        self.sockets.newest.send_replace(Some(self.settings.clone()));
    }

    /// Authenticates a token.
    ///
    /// # Errors
    /// The token is invalid.
    fn authenticate(&self, token: &str) -> Result<Principal, TokenError> {
        let now_secs = self.lifecycle.clock.now_ms() / 1000;
        let newest = self.sockets.newest.borrow().clone().unwrap_or_else(|| self.settings.clone());
        newest.keys.authenticate(token, now_secs, &newest.default_businesses)
    }

    /// Finds a call by one of its ids, if the client may see it.
    async fn find(&self, identifier: &str, principal: &Principal) -> store::Result<Option<CallRecord>> {
        let call = match CallId::parse(identifier) {
            Some(call) => Some(call),
            None => {
                let kinds = [APP_ID_KIND, "call_sid", "conversation_id"];
                let aliases: Vec<Alias> = kinds.iter().filter_map(|kind| Alias::new(kind, identifier)).collect();
                self.lifecycle.store.resolve(&aliases).await?
            }
        };
        let Some(call) = call else { return Ok(None) };
        let record = self.lifecycle.newest_record(&call).await?;
        Ok(record.filter(|record| principal.sees(record.attributes.business.as_str())))
    }

    /// Upgrades to a socket. `None`: it became one, or the client is gone.
    async fn socket(&self, exchange: &mut Exchange) -> Option<Response<Bytes>> {
        let denied = |why: &str| Some(problem(StatusCode::FORBIDDEN, "AUTHENTICATION_FAILED", why));
        if !self.may_connect(exchange.header("origin")) {
            return denied("client.allowed_origins does not include the page's origin");
        }
        let PresentedToken { token, protocol } = match presented_token(exchange) {
            Ok(presented) => presented,
            Err(why) => return denied(&why),
        };
        // Subscribed before the token is checked, so that no change is missed.
        let newest = self.sockets.newest.subscribe();
        let principal = match self.authenticate(&token) {
            Ok(principal) => principal,
            Err(error) => return denied(&error.to_string()),
        };
        if self.draining.is_cancelled() {
            return Some(problem(StatusCode::SERVICE_UNAVAILABLE, "DRAINING", "this process is stopping"));
        }
        let Some(counted) = self.sockets.count(&token, self.settings.sockets_per_token) else {
            let why = "this token has the maximum number of open sockets (client.sockets_per_token)";
            return Some(problem(StatusCode::TOO_MANY_REQUESTS, "TOO_MANY_SOCKETS", why));
        };
        let socket = match exchange.accept_socket(protocol).await {
            Ok(socket) => socket,
            Err(error @ SocketError::NotAsked) => {
                let mut answer = problem(StatusCode::UPGRADE_REQUIRED, "UPGRADE_REQUIRED", &error.to_string());
                answer.headers_mut().insert("sec-websocket-version", HeaderValue::from_static("13"));
                return Some(answer);
            }
            Err(error @ SocketError::TooMany) => {
                return Some(problem(StatusCode::SERVICE_UNAVAILABLE, "TOO_MANY_SOCKETS", &error.to_string()));
            }
            Err(SocketError::Gone) => return None,
        };
        let number = self.sockets.number.fetch_add(1, Ordering::Relaxed);
        let mine = Connection::new(self.clone(), socket, (token, principal), newest, (number, counted));
        exchange.serve_socket(mine.run());
        None
    }

    /// The transcript of a call, for clients that poll.
    async fn transcript(&self, exchange: &Exchange, id: &str) -> Result<Value, ClientError> {
        let principal = self.authenticate_request(exchange)?;
        let call = self.find(id, &principal).await?.ok_or(ClientError::NotFound)?;
        let after = number_parameter(exchange, "after")?;
        let limit = number_parameter(exchange, "limit")?
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(PAGE_MAX)
            .clamp(1, PAGE_MAX);
        if after.is_none() && self.settings.transcript_list {
            return Ok(self.utterance_list(&call, limit).await?.into());
        }
        let after = after.unwrap_or(0);
        // Read before the utterances: a complete record comes after the last of them.
        let post_call = self.lifecycle.store.post_call(&call.id).await?;
        let last = self.lifecycle.store.last_sequence(&call.id).await?;
        let utterances = self.lifecycle.store.utterances(&call.id, after, limit).await?;
        let label = &self.settings.user_label;
        let spoken = message::in_spoken_order(&utterances).into_iter();
        let mut messages: Vec<Value> = spoken.map(|one| message::transcription(&call, one, label)).collect();
        let reached = utterances.last().map_or(after, |one| one.sequence);
        let wait_ms = as_ms(self.settings.completion_wait);
        let post_call = post_call.as_ref();
        if let Some(complete_at) = message::complete_at(&call, post_call, wait_ms).filter(|_| reached >= last) {
            messages.push(message::call_status(&call));
            if complete_at <= self.lifecycle.clock.now_ms() {
                messages.push(message::call_completed(&call, post_call));
            }
        }
        Ok(json!({
            "call_sid": message::call_sid(&call),
            "conversation_id": call.alias("conversation_id"),
            "status": message::status(&call),
            "epoch": call.id,
            "sequence_number": last,
            "next_after": reached,
            "messages": messages,
        }))
    }

    /// Fetches a conversation from its provider, in place of a lost webhook.
    async fn fetch(&self, exchange: &Exchange, id: &str) -> Response<Bytes> {
        let principal = match presented_token(exchange) {
            Ok(presented) => self.authenticate(&presented.token).map_err(|error| error.to_string()),
            Err(why) => Err(why),
        };
        match principal {
            Ok(principal) => {
                self.calls.post_call.fetch_conversation(id, |business| principal.sees(business), Numbers::Whole).await
            }
            Err(why) => ClientError::Denied(why).answer(),
        }
    }

    fn allows(&self, origin: &str) -> bool {
        self.settings.allowed_origins.iter().any(|one| one == "*" || one.eq_ignore_ascii_case(origin))
    }

    /// Whether an origin may connect. Browsers do not send tokens on their own, so without a list any may.
    fn may_connect(&self, origin: Option<&str>) -> bool {
        self.settings.allowed_origins.is_empty() || origin.is_none_or(|origin| self.allows(origin))
    }

    /// Adds the CORS headers for an allowed origin.
    fn with_cors_headers(&self, origin: Option<&str>, mut answer: Response<Bytes>) -> Response<Bytes> {
        let headers = answer.headers_mut();
        headers.insert(VARY, HeaderValue::from_static("origin"));
        let allowed = origin.filter(|origin| self.allows(origin)).and_then(|origin| HeaderValue::from_str(origin).ok());
        if let Some(origin) = allowed {
            headers.insert("access-control-allow-origin", origin);
            headers.insert("access-control-allow-headers", HeaderValue::from_static("authorization"));
            headers.insert("access-control-max-age", HeaderValue::from_static("600"));
        }
        answer
    }
}

fn query_pairs(exchange: &Exchange) -> form_urlencoded::Parse<'_> {
    form_urlencoded::parse(exchange.query().unwrap_or_default().as_bytes())
}

fn number_parameter(exchange: &Exchange, name: &'static str) -> Result<Option<i64>, ClientError> {
    let Some((_, given)) = query_pairs(exchange).find(|(key, _)| key == name) else { return Ok(None) };
    given.parse().ok().filter(|n| *n >= 0).map(Some).ok_or(ClientError::BadNumber(name))
}

/// A client's token, and the subprotocol to answer with.
struct PresentedToken {
    token: String,
    protocol: Option<&'static str>,
}

/// The token of a request, in one of three places.
fn presented_token(exchange: &Exchange) -> Result<PresentedToken, String> {
    let offered = exchange.header("sec-websocket-protocol").unwrap_or_default();
    let offered: Vec<&str> = offered.split(',').map(str::trim).collect();
    let protocol = offered.contains(&PROTOCOL).then_some(PROTOCOL);
    let bearer = bearer(exchange.headers()).map_err(|error| error.to_string())?;
    let in_protocol = || offered.iter().find_map(|one| one.strip_prefix("bearer."));
    if let Some(token) = bearer.or_else(in_protocol) {
        return Ok(PresentedToken { token: token.trim().to_owned(), protocol });
    }
    let in_query = query_pairs(exchange).find(|(key, _)| key == "token").map(|(_, value)| value.into_owned());
    in_query
        .filter(|token| !token.is_empty())
        .map(|token| PresentedToken { token, protocol })
        .ok_or_else(|| "a token is required: ?token=JWT".to_owned())
}
