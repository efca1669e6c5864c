//! `listen.api`: one request from head to tail on one screen. Route → is it a create? → read → identify → place, or relay.

pub mod route;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use futures_util::FutureExt as _;
use http::header::HOST;
use http::{HeaderName, Request, StatusCode};
use tracing::{debug, info, warn};

use crate::calls::Calls;
use crate::calls::place::CreateOrder;
use crate::ids::{Alias, BusinessId};
use crate::net::headers::strip_hop_by_hop;
use crate::net::{BodyError, Exchange, Handler, HostRule, Mount, RelayError, RelayTarget, Tap, relay_tapped};
use crate::policy::{Contradictions, Facts, Ignored, RequestAttributes, UnknownBusiness};
use crate::provider::account::Account;
use crate::provider::path::percent_decode;
use crate::provider::select::{Document, Flaw, Message};
use crate::provider::sign::sha256_hex;
use crate::reply::{Code, Manner, Refusal, json_answer, problem, refusal};
use route::{NoAccount, captures, may_create, may_create_many, operation, route};

/// The largest body of a create, in bytes. ElevenLabs' carry overrides and dynamic variables, Twilio's at most 4,000
/// characters of TwiML: a megabyte is generous.
pub const CREATE_BYTES_MAX: usize = 1024 * 1024;

/// The largest body of a create that makes many calls, in bytes: 10,000 recipients with 1.6 KiB of variables each.
pub const CREATE_MANY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The header by which an app names the business; never sent on.
pub const BUSINESS_HEADER: HeaderName = HeaderName::from_static("x-business-id");

/// The handler of `listen.api`.
pub struct Proxy {
    /// What places calls.
    pub calls: Arc<Calls>,
}

#[async_trait]
impl Handler for Proxy {
    async fn handle(&self, exchange: &mut Exchange) {
        if exchange.path() == "/health" {
            return exchange.respond(json_answer(StatusCode::OK, &serde_json::json!({"status": "ok"}))).await;
        }
        let (kind, status) = self.answer(exchange).await;
        self.calls.lifecycle.metrics.request("api", kind, status);
    }
}

impl Proxy {
    /// Answers, and says what it was and with which status.
    async fn answer(&self, exchange: &mut Exchange) -> (&'static str, u16) {
        let path = exchange.path().to_owned();
        let to = match route(&self.calls.accounts, exchange.host(), &path, exchange.headers()) {
            Ok(to) => to,
            Err(NoAccount::Unknown) => {
                let mounts: Vec<String> = self.calls.accounts.keys().map(|name| format!("/{name}/…")).collect();
                let message = format!("Nothing is mounted at this path. Known: {}", mounts.join(", "));
                exchange.respond(problem(StatusCode::NOT_FOUND, "UNKNOWN_ROUTE", &message)).await;
                return ("unknown", 404);
            }
            Err(NoAccount::Contradiction { account, why }) => {
                let what = Refusal::new(Code::AccountMismatch, format!("Not sent on: {why}."));
                return ("unknown", self.refuse(exchange, &account, &what).await);
            }
        };
        let business = to.business.map(|business| percent_decode(business).into_owned());
        let (account, path) = (to.account.clone(), to.path.to_owned());
        let at = exchange.path().strip_suffix(&path).map_or_else(|| format!("/{}", account.name), str::to_owned);
        let target = self.target(exchange, &account, &path, at);
        if exchange.is_upgrade() || !may_create(&account.provider, exchange.method(), &path) {
            return ("relay", self.relay(exchange, &account, target).await);
        }
        // Boxed: what only passes through is not to be as large as a create.
        Box::pin(self.create(exchange, account, business, path, target)).await
    }

    /// Reads what may be a create, and places it.
    async fn create(
        &self,
        exchange: &mut Exchange,
        account: Arc<Account>,
        business: Option<String>,
        path: String,
        target: RelayTarget,
    ) -> (&'static str, u16) {
        let many = may_create_many(&account.provider, exchange.method(), &path);
        // In observe mode only memory bounds it.
        let bytes_max = if many || self.calls.observes() { CREATE_MANY_BYTES_MAX } else { CREATE_BYTES_MAX };
        let bytes = match exchange.read_body(bytes_max).await {
            Ok(bytes) => bytes,
            Err(BodyError::TooLarge { limit }) => {
                let what = Refusal::new(Code::BodyTooLarge, format!("A create has at most {limit} bytes."));
                return ("create", self.refuse(exchange, &account, &what).await);
            }
            Err(error @ BodyError::NoRoom) => {
                let what = Refusal::new(Code::InitiationFailed, format!("Not dialled: {error}."));
                return ("create", self.refuse(exchange, &account, &what).await);
            }
            Err(error) => {
                debug!(%error, "failed to read a create's body");
                let what = Refusal::new(Code::InvalidRequest, format!("Not dialled: {error}."));
                return ("create", self.refuse(exchange, &account, &what).await);
            }
        };
        let codings = exchange.headers().get_all(http::header::CONTENT_ENCODING);
        if codings.iter().any(|coding| !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity")) {
            if self.calls.observes() {
                let code = Code::EncodedBody.as_str(&account.provider.refusal);
                self.calls.lifecycle.metrics.would_refuse(code);
                info!(account = %account.name, path, code, "would refuse");
                return ("relay", self.relay(exchange, &account, target).await);
            }
            let what = Refusal::new(Code::EncodedBody, "Not dialled: a create's body must not be compressed.");
            return ("create", self.refuse(exchange, &account, &what).await);
        }
        let body = self.read(&account, exchange.header("content-type"), &bytes, many);
        let query: Vec<(String, String)> =
            form_urlencoded::parse(exchange.query().unwrap_or_default().as_bytes()).into_owned().collect();
        let headers = exchange.headers().clone();
        let message = Message { body: &body, query: &query, path: &BTreeMap::new(), headers: &headers };
        let Some(operation) = operation(&account.provider, exchange.method(), &path, &message).cloned() else {
            return ("relay", self.relay(exchange, &account, target).await);
        };
        let captured = captures(&operation, &path).unwrap_or_default();
        let message = Message { path: &captured, ..message };
        let (facts, stranger, ignored) = self.facts(&account, &operation, business.as_deref(), &message);
        let would = OnceLock::new();
        if operation.facts.selectors().any(|selector| selector.is_doubled(&message)) {
            // Its provider may read the one, and we the other: its limits would be those of another call.
            let message = "Not dialled: the request says more than once who calls, or who is called.";
            let what = Refusal::new(Code::InvalidRequest, message);
            if !self.calls.observes() {
                return ("create", self.refuse(exchange, &account, &what).await);
            }
            let _ = would.set(what);
        }
        if let Some(stranger) = stranger {
            let what = Refusal::new(Code::UnknownBusiness, format!("Not dialled: {stranger}."));
            if self.calls.observes() {
                let _ = would.set(what);
            } else {
                let shape = &account.provider.refusal;
                self.calls.lifecycle.metrics.refused(what.code.metric_reason(shape), "unknown");
                let (shown, code) = (shown_business(business.as_deref(), &headers), what.code.as_str(shape));
                info!(refusal = %what.id, business = %shown, account = %account.name, code, "refused");
                self.calls.keep_refusal_of(&shown, &account.name, operation.direction, &what, code, false);
                return ("create", self.refuse(exchange, &account, &what).await);
            }
        }
        if let Some(ignored) = ignored {
            info!(business = %facts.business, account = %account.name, %ignored, "business id in the request ignored");
        }
        let mut request = Request::new(bytes);
        *request.method_mut() = exchange.method().clone();
        match crate::provider::account::join(&target.base, &target.path_and_query).parse() {
            Ok(uri) => *request.uri_mut() = uri,
            Err(_) => {
                let what = Refusal::new(Code::InvalidRequest, "The request's path cannot be sent on.");
                return ("create", self.refuse(exchange, &account, &what).await);
            }
        }
        *request.headers_mut() = headers;
        strip_hop_by_hop(request.headers_mut());
        for gone in [HOST, BUSINESS_HEADER] {
            request.headers_mut().remove(gone);
        }
        let sdk_sleeps = sdk_sleeps(exchange, &account);
        let again = operation.again.as_ref().and_then(|kind| Alias::new(kind, captured.get(kind)?));
        let own = account.provider.subaccounts.as_ref().map(|rule| rule.own.as_str());
        let subaccount = own.and_then(|own| {
            let (named, main) = (captured.get(own)?, account.secrets.get(own)?);
            (named != main.expose()).then(|| named.clone())
        });
        let order =
            CreateOrder { account, operation, facts, request, body, again, subaccount, sdk_sleeps, ignored, would };
        if exchange.is_client_gone().await {
            // It may be waiting on another connection by now, and have been told that nothing was dialled.
            let what = Refusal::new(
                Code::ClientHungUp,
                "Not dialled: the client disconnected before the request was admitted.",
            );
            return ("create", self.refuse(exchange, &order.account, &what).await);
        }
        let (asker, answer) = self.calls.place(order);
        let mut answer = std::pin::pin!(answer);
        // Whether it is still there is asked first: an answer written to a client that has gone is not delivered.
        let (response, gone) = tokio::select! {
            biased;
            () = exchange.client_gone() => {
                // The order goes on without its client, who may send it again.
                asker.gone();
                (answer.await, true)
            }
            response = &mut answer => (response, false),
        };
        let status = response.status().as_u16();
        exchange.respond(response).await;
        if exchange.is_delivered() && !gone {
            let unheard = asker.delivered();
            exchange.if_reset(move || unheard.lost());
        }
        ("create", status)
    }

    /// A create's body. Of one that makes many calls, nothing is better than a part: how many there are would be counted wrong.
    fn read(&self, account: &Account, content_type: Option<&str>, bytes: &[u8], many: bool) -> Document {
        let read = Document::read(content_type, bytes, &[]);
        let Some(flaw) = read.flaw else { return read.document };
        self.calls.lifecycle.metrics.unreadable(account.name.as_str(), "create", flaw.as_str());
        info!(account = %account.name, flaw = flaw.as_str(), bytes = bytes.len(), "create body is not strict JSON");
        if many && flaw == Flaw::Cut { Document::Empty } else { read.document }
    }

    fn target(&self, exchange: &Exchange, account: &Account, path: &str, at: String) -> RelayTarget {
        let path_and_query = match exchange.query() {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        };
        let base = account.upstream_of(path).clone();
        RelayTarget {
            mount: Some(Mount { base: base.clone(), at }),
            base,
            path_and_query,
            set_headers: vec![],
            remove_headers: vec![BUSINESS_HEADER],
            host: HostRule::Upstream,
        }
    }

    fn facts(
        &self,
        account: &Account,
        operation: &crate::provider::description::Operation,
        business: Option<&str>,
        message: &Message<'_>,
    ) -> (Facts, Option<UnknownBusiness>, Option<Ignored>) {
        let policy = &self.calls.policy;
        let read = operation.facts.read(message, operation.direction);
        let api_key = account.provider.api_key.as_ref().and_then(|s| s.text(message));
        let marks = RequestAttributes {
            header: None,
            path: business,
            agent: read.agent.as_deref(),
            number: read.own_number.as_deref(),
            account: Some(account.name.as_str()),
            api_key_sha256: api_key.map(|key| sha256_hex(key.as_bytes())),
        };
        let (header, twofold) = match one_header(message.headers) {
            Ok(header) => (header, None),
            Err(why) => (None, Some(why.to_owned())),
        };
        let marks = RequestAttributes { header, ..marks };
        let mut contradiction = twofold;
        if let Some(why) = policy.contradiction(&marks) {
            match policy.settings().contradictions {
                Contradictions::Refuse => contradiction = contradiction.or(Some(why)),
                Contradictions::Log => {
                    warn!(account = %account.name, why, "request names two businesses; rules applied in order");
                }
            }
        }
        let found = policy.identify(&marks);
        let stranger = contradiction.map(UnknownBusiness).or(found.stranger);
        let facts = Facts {
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
        (facts, stranger, found.ignored)
    }

    async fn relay(&self, exchange: &mut Exchange, account: &Arc<Account>, target: RelayTarget) -> u16 {
        let tap = self.tap(exchange, account, &target);
        match relay_tapped(exchange, &self.calls.upstream, target, tap).await {
            Ok(relayed) => relayed.status.as_u16(),
            Err(error) => self.unreachable(exchange, account, &error).await,
        }
    }

    /// A look at the answer, where the request may make something: calls that no operation knows are counted.
    fn tap(&self, exchange: &Exchange, account: &Arc<Account>, target: &RelayTarget) -> Option<Tap> {
        let method = exchange.method().as_str();
        let may_make = ["POST", "PUT", "PATCH"].iter().any(|one| method.eq_ignore_ascii_case(one));
        if !may_make || account.provider.unfenced.is_none() {
            return None;
        }
        let (calls, account) = (self.calls.clone(), account.clone());
        let path = target.path_and_query.split('?').next().unwrap_or_default().to_owned();
        Some(Tap::new(move |answer| {
            let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
            let tasks = calls.tasks.clone();
            let mut look = Box::pin(tasks.track_future(async move { calls.passed_by(&account, &path, &answer).await }));
            // Mostly there is nothing to be waited for.
            if look.as_mut().now_or_never().is_none() {
                runtime.spawn(look);
            }
        }))
    }

    async fn unreachable(&self, exchange: &mut Exchange, account: &Account, error: &RelayError) -> u16 {
        let name = &account.provider.name;
        let (code, message) = match error {
            error if error.is_clients() => (Code::InvalidRequest, format!("Not forwarded completely: {error}.")),
            RelayError::LeadsPast(host) => (
                Code::UpstreamRedirects,
                format!(
                    "{name} redirects to {host}, where no call would be counted; set the account's `upstream` to it."
                ),
            ),
            // To ask again changes nothing there.
            RelayError::Broken(_) if !exchange.method().is_safe() => (
                Code::UpstreamSilent,
                format!("{name} got the request and did not answer it: {error}. It may have been carried out."),
            ),
            _ => (Code::UpstreamUnreachable, format!("{name} cannot be reached: {error}")),
        };
        debug!(account = %account.name, %error, "failed to forward a request");
        self.refuse(exchange, account, &Refusal::new(code, message)).await
    }

    async fn refuse(&self, exchange: &mut Exchange, account: &Account, what: &Refusal) -> u16 {
        let cap = self.calls.settings.sdk_retry_after_max_secs;
        let retry_after_max_secs = sdk_sleeps(exchange, account).then_some(cap);
        let response = refusal(what, Manner { shape: &account.provider.refusal, retry_after_max_secs });
        let status = response.status().as_u16();
        exchange.respond(response).await;
        status
    }
}

/// What the header names. One that cannot be read names nobody, and two name two.
fn one_header(headers: &http::HeaderMap) -> Result<Option<&str>, &'static str> {
    let mut shown = headers.get_all(BUSINESS_HEADER).iter();
    let Some(first) = shown.next() else { return Ok(None) };
    if shown.any(|other| other != first) {
        return Err("X-Business-Id stands there twice and names two businesses");
    }
    first.to_str().map(Some).map_err(|_| "X-Business-Id must be visible ASCII characters")
}

/// The business that a request shows, known or not; `unknown` where it shows none that could be one.
fn shown_business(path: Option<&str>, headers: &http::HeaderMap) -> String {
    let header = headers.get(BUSINESS_HEADER).and_then(|v| v.to_str().ok());
    let shown = header.into_iter().chain(path).find_map(|id| BusinessId::parse(id).ok());
    shown.map_or_else(|| "unknown".to_owned(), |id| id.to_string())
}

/// Whether the client is an SDK that sleeps on `Retry-After` inside the app's request.
fn sdk_sleeps(exchange: &Exchange, account: &Account) -> bool {
    let shown = account.provider.refusal.sdk_sleeps_header.as_deref();
    shown.is_some_and(|name| exchange.headers().contains_key(name))
}
