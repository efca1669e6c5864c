//! `listen.admin`: health, status, metrics, calls, businesses, bulk runs and their schedules, do-not-call lists. The paths under
//! `/api/concurrent-metrics` are those of the systems that ringfence replaces (docs/compatibility.md).

pub mod api;
pub mod auth;
mod board;
mod bulk;
mod businesses;
mod bypass;
mod do_not_call;
mod explain;
mod figures;
mod history;
mod listing;
pub mod openapi;
mod operator;
mod page;
pub mod reload;
mod replay;
mod run_board;
mod runs;
mod schedules;
mod schemas;
mod status;
mod stream;

pub use board::Board;
pub use bulk::LIST_BYTES_MAX as BUSINESSES_BYTES_MAX;
pub use history::history_loop;

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{ALLOW, HeaderValue, WWW_AUTHENTICATE};
use http::{Method, Response, StatusCode};
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::call::{EndProof, Outcome, Phase, Source, session_status};
use crate::calls::Calls;
use crate::calls::provider_client::hang_up::HangUpResult;
use crate::calls::reconcile::SweepStatuses;
use crate::clock::rfc3339;
use crate::ids::{BusinessId, CallId, mask_number};
use crate::metrics::Served;
use crate::net::{Exchange, Handler};
use crate::policy::{Bound, Policy};
use crate::provider::path::percent_decode;
use crate::reply::{for_browsers, health, json_answer, problem};
use crate::runs::Runs;
use crate::store::{CallRecord, Journal, KEY_KIND, StoreError};
use auth::{Access, AccessError, Requester, Scope, refuse_own};
use operator::Act;
use reload::{ReloadTrigger, Running};

/// The largest body of a single business, in bytes.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Calls and rejections per list.
const LIST_MAX: u32 = 1000;
/// The handler of `listen.admin`.
#[derive(Clone)]
pub struct Admin {
    /// The calls layer.
    pub calls: Calls,
    /// Bulk runs.
    pub runs: Runs,
    /// Status of the sweeps.
    pub sweep_statuses: SweepStatuses,
    /// Access rules.
    pub access: Access,
    /// Access rules of the newest config, so that open streams end when their token is no longer valid.
    pub newest_access: watch::Sender<Access>,
    /// Cancelled when the process drains.
    pub draining: CancellationToken,
    /// The store's path or URL, for `/status`.
    pub store_path: String,
    /// `sqlite` or `postgres`.
    pub store_backend: &'static str,
    /// Webhooks that wait until the database can be written.
    pub journal: Journal,
    /// The running program. Weak: the program owns this handler.
    pub program: Weak<dyn Running>,
    /// The data of the operator's page.
    pub board: Board,
}

type Answer = Result<Response<Bytes>, Problem>;

/// An error response.
enum Problem {
    Denied(AccessError),
    Store(StoreError),
    Is(StatusCode, &'static str, String),
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<AccessError> for Problem {
    fn from(denied: AccessError) -> Self {
        Self::Denied(denied)
    }
}

impl Problem {
    fn message(&self) -> String {
        match self {
            Self::Denied(denied) => denied.to_string(),
            Self::Store(error) => error.to_string(),
            Self::Is(_, _, message) => message.clone(),
        }
    }

    fn into_response(self) -> Response<Bytes> {
        match self {
            Self::Denied(denied @ AccessError::NoToken(_)) => {
                let mut answer = problem(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", &denied.to_string());
                answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                answer
            }
            Self::Denied(denied) => problem(StatusCode::FORBIDDEN, "FORBIDDEN", &denied.to_string()),
            Self::Store(error) => {
                warn!(%error, "failed to answer an admin request");
                problem(StatusCode::SERVICE_UNAVAILABLE, "STORE_UNAVAILABLE", &error.to_string())
            }
            Self::Is(status, code, message) => problem(status, code, &message),
        }
    }
}

fn not_allowed(methods: &str) -> Response<Bytes> {
    let message = format!("allowed methods: {methods}");
    let mut answer = problem(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", &message);
    if let Ok(methods) = HeaderValue::from_str(methods) {
        answer.headers_mut().insert(ALLOW, methods);
    }
    answer
}

fn not_found(what: &str) -> Problem {
    Problem::Is(StatusCode::NOT_FOUND, "NOT_FOUND", what.to_owned())
}

fn draining() -> Problem {
    Problem::Is(StatusCode::SERVICE_UNAVAILABLE, "DRAINING", "this process is stopping".to_owned())
}

fn nothing_here() -> Problem {
    not_found("nothing is served at this path and method")
}

fn bad(message: impl Into<String>) -> Problem {
    Problem::Is(StatusCode::BAD_REQUEST, "INVALID_REQUEST", message.into())
}

/// The JSON of a body, which may be empty.
fn body_of(body: &[u8]) -> Result<Value, Problem> {
    match body.trim_ascii() {
        b"" => Ok(Value::Null),
        text => serde_json::from_slice(text).map_err(|e| bad(format!("the body must be JSON: {e}"))),
    }
}

fn ok(body: &Value) -> Answer {
    Ok(json_answer(StatusCode::OK, body))
}

#[async_trait]
impl Handler for Admin {
    async fn handle(&self, exchange: &mut Exchange) {
        let routed = match self.stream(exchange).await {
            Ok(true) => return,
            Ok(false) => self.route(exchange).await,
            Err(problem) => Err(problem),
        };
        let response = routed.unwrap_or_else(Problem::into_response);
        self.calls.lifecycle.metrics.request(Served::Admin, response.status().as_u16());
        exchange.respond(secured(exchange, response)).await;
    }
}

/// Scripts and styles only from the program's own files; no framing.
const CONTENT_POLICY: &str =
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'";

/// An answer of this listener, as a browser may have it.
pub fn secured<B>(exchange: &Exchange, mut response: Response<B>) -> Response<B> {
    for_browsers(&mut response, CONTENT_POLICY, exchange.is_tls());
    for name in ["cross-origin-resource-policy", "cross-origin-opener-policy"] {
        response.headers_mut().insert(name, HeaderValue::from_static("same-origin"));
    }
    response
}

/// The message for clients without read access while the database is unavailable.
pub const RECORD_AWAY: &str = "The database is unavailable; /status says why.";

impl Admin {
    async fn route(&self, exchange: &mut Exchange) -> Answer {
        let path = exchange.path().to_owned();
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let method = exchange.method().clone();
        refuse_own(exchange)?;
        let now_secs = self.calls.lifecycle.clock.now_ms() / 1000;
        if matches!(method, Method::GET | Method::HEAD)
            && let Some(file) = page::file(&path)
        {
            return Ok(file);
        }
        if let Some(methods) = api::other_methods(&method, &segments) {
            return Ok(not_allowed(&methods));
        }
        match (&method, segments.as_slice()) {
            (&Method::GET, ["health"]) => Ok(health()),
            (&Method::GET, ["openapi.json"]) => ok(&openapi::document()),
            (&Method::GET, ["metrics"]) => {
                self.access.authorize_scrape(exchange, now_secs)?;
                self.prometheus(exchange.header("accept").unwrap_or_default()).await
            }
            (&Method::GET, ["status"]) => {
                self.authorize(exchange, Scope::Read)?.require_all_businesses()?;
                let open = self.calls.lifecycle.store.open_calls().await.ok();
                ok(&self.status_of(open.as_deref()).await?)
            }
            (&Method::GET, ["api", "concurrent-metrics", "prometheus"]) => {
                self.access.authorize_legacy_scrape(exchange, now_secs)?;
                self.legacy_prometheus(exchange.header("accept").unwrap_or_default()).await
            }
            (&Method::GET, ["api", "concurrent-metrics", rest @ ..]) => {
                self.concurrent_metrics(rest, exchange.query(), |needs| self.authorize(exchange, needs)).await
            }
            (_, ["api", "businesses", ..]) => self.route_businesses(exchange, &method, &segments).await,
            (_, ["api", "do-not-call", number @ ..]) if number.len() <= 1 => {
                let who = self.authorize(exchange, if method == Method::GET { Scope::Read } else { Scope::Operate })?;
                let number = number.first().map(|number| percent_decode(number));
                self.do_not_call(exchange, &method, number.as_deref(), &who).await
            }
            (_, ["api", "calls", ..]) => self.route_calls(exchange, &method, &segments).await,
            (&Method::POST, ["conversations", id, "fetch"]) => {
                let (who, id) = (self.authorize(exchange, Scope::Operate)?, percent_decode(id));
                self.audit(&who, Act::new("fetch", &id)).await?;
                Ok(self.calls.post_call.fetch_conversation(&id, |business| who.sees(business), who.numbers()).await)
            }
            (_, ["api", "events", ..]) => self.route_events(exchange, &method, &segments).await,
            (_, ["api", "runs", rest @ ..]) => {
                let needs = if method == Method::GET { Scope::Read } else { Scope::Operate };
                let who = self.authorize(exchange, needs)?;
                self.route_runs(exchange, &method, rest, &who).await
            }
            (_, ["api", "schedules", rest @ ..]) => {
                let needs = if method == Method::GET { Scope::Read } else { Scope::Operate };
                let who = self.authorize(exchange, needs)?;
                self.route_schedules(exchange, &method, rest, &who).await
            }
            (&Method::GET, ["api", "refusals"]) => {
                let who = self.authorize(exchange, Scope::Read)?;
                self.list_rejections(exchange.query().unwrap_or_default(), &who).await
            }
            (&Method::GET, ["api", "refusals", id]) => {
                let who = self.authorize(exchange, Scope::Read)?;
                let refusal = self.find_refusal(&percent_decode(id), &who).await?;
                ok(&listing::refusal(&refusal))
            }
            (&Method::GET, ["api", "explain"]) => {
                let who = self.authorize(exchange, Scope::Read)?;
                self.explain(exchange.query().unwrap_or_default(), &who).await
            }
            _ => self.route_operator(exchange, &method, &segments).await,
        }
    }

    /// Actions on the whole process, and their record.
    async fn route_operator(&self, exchange: &mut Exchange, method: &Method, segments: &[&str]) -> Answer {
        match (method, segments) {
            (&Method::GET, ["api", "audit"]) => {
                self.authorize(exchange, Scope::Read)?.require_all_businesses()?;
                self.audit_list(exchange.query().unwrap_or_default()).await
            }
            (&Method::POST, ["api", "reload"]) => {
                let who = self.authorize(exchange, Scope::Operate)?.require_all_businesses()?;
                let program = self.program()?;
                let by = ReloadTrigger { who: who.name, from: who.from };
                Ok(reload::answer(&program.clone().reload(by).await, &program.config_status()))
            }
            (&Method::POST, ["api", "reconcile"]) => {
                let who = self.authorize(exchange, Scope::Operate)?.require_all_businesses()?;
                self.audit(&who, Act::new("reconcile", "all")).await?;
                let done = self.program()?.reconcile().await;
                ok(&serde_json::to_value(done).unwrap_or_default())
            }
            (_, ["api", "bypass"]) => {
                let who = self
                    .authorize(exchange, if *method == Method::GET { Scope::Read } else { Scope::Operate })?
                    .require_all_businesses()?;
                self.bypass(exchange, method, &who).await
            }
            _ => Err(nothing_here()),
        }
    }

    /// Returns the client of a request, if that client may do what the scope allows.
    fn authorize(&self, exchange: &Exchange, needs: Scope) -> Result<Requester, AccessError> {
        self.access.authorize(exchange, needs, self.calls.lifecycle.clock.now_ms() / 1000)
    }

    async fn route_businesses(&self, exchange: &mut Exchange, method: &Method, segments: &[&str]) -> Answer {
        match (method, segments) {
            (&Method::GET, ["api", "businesses"]) => self.businesses(&self.authorize(exchange, Scope::Read)?).await,
            (&Method::PUT, ["api", "businesses"]) => {
                let who = self.authorize(exchange, Scope::Operate)?.require_all_businesses()?;
                self.put_businesses(exchange, &who).await
            }
            (_, ["api", "businesses", id]) => {
                let needs = if *method == Method::GET { Scope::Read } else { Scope::Operate };
                // A business's own token must not change the business.
                let who = self
                    .authorize(exchange, needs)
                    .and_then(|who| if needs == Scope::Read { Ok(who) } else { who.require_all_businesses() })?;
                let id = BusinessId::parse(&percent_decode(id)).map_err(|e| bad(e.to_string()))?;
                self.business(exchange, method, id, &who).await
            }
            (&Method::POST, ["api", "businesses", id, "purge"]) => {
                let who = self.authorize(exchange, Scope::Operate)?.require_all_businesses()?;
                let id = BusinessId::parse(&percent_decode(id)).map_err(|e| bad(e.to_string()))?;
                let body = exchange.read_body(BODY_BYTES_MAX).await.map_err(|e| bad(e.to_string()))?;
                let body: Value = serde_json::from_slice(&body).unwrap_or_default();
                self.purge(&id, body["reason"].as_str(), &who).await
            }
            _ => Err(nothing_here()),
        }
    }

    async fn route_calls(&self, exchange: &mut Exchange, method: &Method, segments: &[&str]) -> Answer {
        match (method, segments) {
            (&Method::GET, ["api", "calls"]) => {
                let who = self.authorize(exchange, Scope::Read)?;
                self.list(exchange.query().unwrap_or_default(), &who).await
            }
            (&Method::GET, ["api", "calls", id @ ..]) => {
                let who = self.authorize(exchange, Scope::Read)?;
                let record = self.find(&percent_decode(&id.join("/")), &who).await?;
                let kept = self.calls.lifecycle.store.post_call(&record.id).await?;
                let mut shown = call_json_for(&record, &who);
                shown["record"] =
                    json!(kept.as_ref().map(|kept| crate::calls::post_call::shown::shown(kept, who.numbers())));
                ok(&shown)
            }
            (&Method::POST, ["api", "calls", id @ .., act @ ("hangup" | "release")]) => {
                let who = self.authorize(exchange, Scope::Operate)?;
                let record = self.find_to_act(&percent_decode(&id.join("/")), &who).await?;
                if *act == "hangup" {
                    self.hang_up(exchange, &record, &who).await
                } else {
                    self.release(exchange, &record, &who).await
                }
            }
            _ => Err(nothing_here()),
        }
    }

    async fn route_events(&self, exchange: &mut Exchange, method: &Method, segments: &[&str]) -> Answer {
        match (method, segments) {
            (&Method::GET, ["api", "events"]) => {
                self.authorize(exchange, Scope::Read)?.require_all_businesses()?;
                self.inbox_list(exchange.query().unwrap_or_default()).await
            }
            (&Method::GET, ["api", "events", "replay"]) => {
                self.authorize(exchange, Scope::Read)?.require_all_businesses()?;
                self.list_replayable(exchange.query().unwrap_or_default()).await
            }
            (&Method::GET, ["api", "events", id]) => {
                self.authorize(exchange, Scope::Read)?.require_all_businesses()?;
                self.inbox_one(&percent_decode(id)).await
            }
            (&Method::POST, ["api", "events", "replay"]) => {
                let who = self.authorize(exchange, Scope::Operate)?.require_all_businesses()?;
                let body = exchange.read_body(BODY_BYTES_MAX).await.map_err(|e| bad(e.to_string()))?;
                let body = body_of(&body)?;
                self.replay_matching(exchange.query().unwrap_or_default(), body["reason"].as_str(), &who).await
            }
            (&Method::POST, ["api", "events", id, "replay"]) => {
                let who = self.authorize(exchange, Scope::Operate)?.require_all_businesses()?;
                let body = exchange.read_body(BODY_BYTES_MAX).await.map_err(|e| bad(e.to_string()))?;
                let body = body_of(&body)?;
                self.inbox_replay(&percent_decode(id), body["reason"].as_str(), &who).await
            }
            _ => Err(nothing_here()),
        }
    }

    fn program(&self) -> Result<Arc<dyn Running>, Problem> {
        self.program.upgrade().ok_or_else(draining)
    }

    // === calls ===

    /// A call by our id, or by one of a provider's. What its requester may not see is not there.
    async fn find(&self, id: &str, who: &Requester) -> Result<CallRecord, Problem> {
        let store = &self.calls.lifecycle.store;
        let call = match CallId::parse(id) {
            Some(call) => Some(call),
            None => {
                let kinds: BTreeSet<&str> = self.calls.accounts.values().flat_map(|a| a.provider.id_kinds()).collect();
                let aliases: Vec<_> = kinds.into_iter().filter_map(|kind| crate::ids::Alias::new(kind, id)).collect();
                store.resolve(&aliases).await?
            }
        };
        let record = match call {
            Some(call) => store.call(&call).await?,
            None => None,
        };
        let record = record.filter(|call| who.sees(call.attributes.business.as_str()));
        record.ok_or_else(|| not_found("no call of this id is on record"))
    }

    /// The record to act on: of a call that was given up, and counted again when it turned out to be up, the second one.
    async fn find_to_act(&self, id: &str, who: &Requester) -> Result<CallRecord, Problem> {
        let record = self.find(id, who).await?;
        Ok(self.calls.lifecycle.newest_record(&record.id).await?.unwrap_or(record))
    }

    /// Ends a call; the optional reason is `{"reason": "…"}`.
    async fn hang_up(&self, exchange: &mut Exchange, record: &CallRecord, who: &Requester) -> Answer {
        let body = exchange.read_body(BODY_BYTES_MAX).await.map_err(|e| bad(e.to_string()))?;
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let reason = body["reason"].as_str().map(str::trim).filter(|reason| !reason.is_empty());
        let id = record.id.clone();
        let (act, before) = (Act::new("hangup", id.as_str()).because(reason), json!({"phase": record.phase}));
        self.audit_or_log(who, act.changes(before.clone(), Value::Null)).await;
        if record.phase == Phase::Ended {
            return ok(&json!({"result": "over", "call": call_json(record)}));
        }
        let (calls, record) = (self.calls.clone(), record.clone());
        // A client that disconnects must not interrupt the check.
        let hung =
            self.calls.tasks.spawn(async move { calls.provider.hang_up(&record, Outcome::Canceled).await }).await;
        let now = self.calls.lifecycle.store.call(&id).await.ok().flatten();
        let after = json!({"phase": now.map(|call| call.phase), "result": hung.as_ref().ok()});
        self.audit_or_log(who, Act::new("hung up", id.as_str()).because(reason).changes(before, after)).await;
        match hung {
            Ok(HangUpResult::Failed { tried }) => Err(Problem::Is(
                StatusCode::BAD_GATEWAY,
                "NOT_HUNG_UP",
                format!("no hang-up method worked: {}", tried.join("; ")),
            )),
            Ok(done) => ok(&serde_json::to_value(done).unwrap_or_default()),
            Err(error) => Err(Problem::Is(StatusCode::INTERNAL_SERVER_ERROR, "FAILED", error.to_string())),
        }
    }

    /// Releases the slot only. The call may continue; that is why it needs `force` and a reason.
    async fn release(&self, exchange: &mut Exchange, record: &CallRecord, who: &Requester) -> Answer {
        let body = exchange.read_body(BODY_BYTES_MAX).await.map_err(|e| bad(e.to_string()))?;
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let reason = body["reason"].as_str().unwrap_or_default().trim();
        if body["force"] != true || reason.is_empty() {
            return Err(bad(
                "release frees the slot while the call may continue: send {\"force\":true,\"reason\":\"…\"}",
            ));
        }
        let (before, after) = (json!({"phase": record.phase}), json!({"phase": Phase::Ended}));
        self.audit(who, Act::new("release", record.id.as_str()).because(Some(reason)).changes(before, after)).await?;
        let ended = self.calls.lifecycle.end(&record.id, Outcome::Failed, EndProof::Operator, Source::Operator).await?;
        warn!(call = %record.id, by = who.name, reason, "slot released by an operator; the call may still be up");
        ok(&json!({"result": "released", "call": ended.map(|a| call_json(&a.record))}))
    }
}

fn limit_of(query: &str) -> u32 {
    let given = form_urlencoded::parse(query.as_bytes()).find(|(k, _)| k == "limit").and_then(|(_, v)| v.parse().ok());
    given.unwrap_or(100).clamp(1, LIST_MAX)
}

/// A call for operators: numbers masked.
fn call_json(call: &CallRecord) -> Value {
    call_json_with(call, mask_number)
}

/// A call as JSON, with whole numbers for requesters with that right.
fn call_json_for(call: &CallRecord, who: &Requester) -> Value {
    if who.whole_numbers { call_json_with(call, str::to_owned) } else { call_json(call) }
}

fn call_json_with(call: &CallRecord, number: fn(&str) -> String) -> Value {
    let masked = |n: &Option<String>| n.as_deref().map(number);
    // A key's hash is no lookup key.
    let ids = call.aliases.iter().filter(|alias| alias.kind != KEY_KIND);
    let aliases: Map<String, Value> = ids.map(|a| (a.kind.clone(), a.id.clone().into())).collect();
    json!({
        "callId": call.id, "businessId": call.attributes.business, "plan": call.attributes.plan,
        "direction": call.attributes.direction, "status": session_status(call.phase, call.outcome),
        "provider": call.attributes.provider, "account": call.attributes.account, "carrier": call.attributes.carrier,
        "operation": call.attributes.operation, "origin": call.origin, "slots": call.slots,
        "phase": call.phase, "outcome": call.outcome, "proof": call.proof,
        "overLimit": call.over_limit, "unsettled": call.unsettled,
        "agent": call.attributes.agent, "ownNumber": masked(&call.attributes.own_number), "otherNumber": masked(&call.attributes.other_number),
        "startedAt": rfc3339(call.admitted_at), "answeredAt": call.answered_at.map(rfc3339), "endedAt": call.ended_at.map(rfc3339),
        "lastSeenAt": rfc3339(call.seen_at), "lastSeenBy": call.seen_by, "deadlineAt": call.deadline_at.map(rfc3339),
        "ids": aliases,
    })
}

/// A summary of the concurrency limits, for the log at start.
pub fn bounds(policy: &Policy) -> String {
    let named = policy.settings().limits.iter().filter(|l| matches!(l.bound, Bound::Concurrent(_))).count();
    format!("{} in all, {named} named limits", policy.global_limit())
}
