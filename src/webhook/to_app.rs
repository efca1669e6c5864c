//! What goes on to the app: the replies that a provider waits for, notifications, and whatever no description knows. Signatures
//! that are bound to a URL are made anew for the app's.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use tracing::{debug, warn};

use super::arrive::Candidate;
use super::front::REPLACED;
use super::noise::Noise;
use super::subaccounts::Signer;
use super::{InboundMode, KEPT_BYTES_MAX, Raw, Taken, Webhooks, body_missing, deliver, fixed_answer};
use crate::call::{Direction, EndProof, Outcome};
use crate::ids::{BusinessId, CallId};
use crate::net::{
    BodyError, Exchange, HostRule, RelayError, RelayTarget, UpstreamError, ask_with_body, relay, relay_with_body,
};
use crate::provider::account::join;
use crate::provider::description::{OWN_ID_KIND, Reply};
use crate::provider::sign::{Checked, Keys, Request, Signature};
use crate::reply::{problem, twiml, when_full_twiml};
use crate::store::{Delivery, Result, Route};

/// The largest answer of the app to a webhook, in bytes.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// That the app is away, said of requests that anybody can send.
static AWAY: Noise = Noise::new();

impl Webhooks {
    // === replies ===

    /// The answer that the provider acts on: front mode's TwiML, or the app's.
    pub(super) async fn reply(
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
                return Ok(Some(fixed_answer(webhook, None)));
            }
            warn!(path = exchange.path(), "no app answers this webhook: neither app.forward_url nor front mode is set");
            if let Some(call) = call.filter(|_| incoming) {
                self.calls.lifecycle.end(call, Outcome::Failed, EndProof::Webhook, "webhook").await?;
            }
            let message = "No app answers this webhook: set app.forward_url, or [inbound] mode = \"front\".";
            return Ok(Some(problem(StatusCode::BAD_GATEWAY, "NO_APP", message)));
        }
        let (target, body) = (self.app_target(taken), taken.raw.body.clone());
        let within = self.settings.app_timeout;
        let asked = ask_with_body(exchange, &self.calls.upstream, target, body, ANSWER_BYTES_MAX, within).await;
        let failed = match &asked {
            Ok(answer) if answer.status().is_server_error() => {
                Some(format!("it answered {}", answer.status().as_u16()))
            }
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        };
        if let Some(why) = failed {
            warn!(webhook = webhook.name, why, "app did not answer a voice webhook");
            if incoming
                && webhook.reply == Some(Reply::Twiml)
                && let Some(instead) = &self.settings.when_down
            {
                return Ok(Some(twiml(when_full_twiml(instead))));
            }
        }
        if let Ok(answer) = &asked
            && answer.status().is_client_error()
            && webhook.reply == Some(Reply::Twiml)
        {
            self.app_refused(taken, call.filter(|_| incoming), answer.status());
        }
        // Without another way out the provider is told: its fallback takes a call, and the carrier tells of its end.
        Ok(Some(match asked {
            Ok(answer) => answer,
            Err(_) if webhook.answer.is_some() => fixed_answer(webhook, None),
            Err(RelayError::Broken(UpstreamError::Timeout(_))) => {
                let message = format!("The app did not answer within {} s.", within.as_secs());
                problem(StatusCode::GATEWAY_TIMEOUT, "APP_TIMEOUT", &message)
            }
            Err(_) => problem(StatusCode::BAD_GATEWAY, "APP_UNREACHABLE", "The app cannot be reached."),
        }))
    }

    async fn front(&self, call: &CallId, taken: &Taken<'_>) -> Response<Bytes> {
        let number = taken.from.webhook().facts.read(&taken.message, taken.direction).own_number;
        let connected = match self.agent_of(number.as_deref()) {
            Some(agent) => self.calls.inbound.front(call, &agent).await,
            None => {
                let _ = self.calls.lifecycle.end(call, Outcome::Failed, EndProof::Webhook, "webhook").await;
                Err("no agent answers this number: set [inbound] agents, or the business's agent_ids".to_owned())
            }
        };
        match connected {
            Ok(xml) => twiml(xml),
            Err(why) => {
                warn!(%call, why, "failed to connect an admitted inbound call; when_full applies");
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
        let raw = taken.raw;
        let url = self.settings.app_url(&raw.headers, &path_and_query);
        let came_to = self.signed(raw).url();
        let mut set_headers = self.settings.front_headers(&url);
        set_headers.extend(taken.resign(&came_to).headers(&raw.method, &url, &raw.body, raw.form()));
        RelayTarget {
            base,
            path_and_query,
            remove_headers: REPLACED.to_vec(),
            set_headers,
            host: HostRule::Upstream,
            mount: None,
        }
    }

    /// What the app has to be told of a notification, if anything.
    pub(super) async fn delivery(
        &self,
        taken: &Taken<'_>,
        call: Option<&CallId>,
        event_id: &str,
    ) -> Result<Option<Delivery>> {
        let (from, raw) = (taken.from, taken.raw);
        let form = raw.form();
        let taken_over = from.webhook().callback.is_some() && from.captures.contains_key(OWN_ID_KIND);
        let (url, signed_url, method, route) = if taken_over {
            let record = match call {
                Some(call) => self.calls.lifecycle.store.call(call).await?,
                None => None,
            };
            let Some(callback) = record.and_then(|r| r.callback) else { return Ok(None) };
            if !asked_for(&callback.events, form) {
                return Ok(None);
            }
            // An address of the app's, or our own, is where the operator says that the app is; any other is the tenant's word.
            match self.calls.settings.app.path_of(&callback.url).and_then(|path| self.app_urls(raw, path)) {
                Some((_, signed_url)) => (callback.url, signed_url, callback.method, Route::Forwarded),
                None => (callback.url.clone(), callback.url, callback.method, Route::Callback),
            }
        } else {
            let Some((url, signed_url)) = self.app_urls(raw, &raw.path_and_query) else { return Ok(None) };
            (url, signed_url, raw.method.clone(), Route::App)
        };
        let came_to = self.signed(raw).url();
        let spool = self.is_for_spool(taken).then(|| self.spool.name());
        let to = deliver::To {
            route,
            url: &url,
            signed_url: &signed_url,
            method: &method,
            front: self.settings.front_headers(&signed_url),
        };
        Ok(Some(deliver::compose(event_id, to, &taken.resign(&came_to), spool)))
    }

    /// Where a path is at the app, and what the app takes its address for; `None` where there is no app.
    fn app_urls(&self, raw: &Raw, path_and_query: &str) -> Option<(String, String)> {
        let base = self.settings.forward_url.as_ref()?;
        Some((join(base, path_and_query), self.settings.app_url(&raw.headers, path_and_query)))
    }

    /// What no description knows: paths and sockets of the app.
    pub(super) async fn pass(&self, exchange: &mut Exchange) -> u16 {
        let Some(base) = self.settings.forward_url.clone() else {
            let message = "Nothing is known at this path, and app.forward_url is not set.";
            return self.answer(exchange, problem(StatusCode::NOT_FOUND, "UNKNOWN_ROUTE", message)).await;
        };
        if !self.settings.forward_paths.contain(exchange.path()) {
            let message = "Nothing is known at this path, and app.forward_paths does not let it pass to the app.";
            return self.answer(exchange, problem(StatusCode::NOT_FOUND, "UNKNOWN_ROUTE", message)).await;
        }
        let (path_and_query, headers) = (exchange.path_and_query().to_owned(), exchange.arrived());
        let app_url = self.settings.app_url(&headers, &path_and_query);
        let mut target = RelayTarget {
            base,
            path_and_query: path_and_query.clone(),
            set_headers: self.settings.front_headers(&app_url),
            remove_headers: REPLACED.to_vec(),
            host: HostRule::Upstream,
            mount: None,
        };
        let length = exchange.header("content-length").and_then(|length| length.parse::<usize>().ok());
        let signatures = self.shown(exchange.headers(), length.is_some_and(|length| length <= KEPT_BYTES_MAX));
        if signatures.is_empty() {
            return self.relayed(relay(exchange, &self.calls.upstream, target).await, exchange).await;
        }
        // Signed for our URL: sign it for the app's, but only if it was genuine. And whatever it tells of calls is seen.
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
                    debug!(%error, "failed to read the body of a forwarded request");
                    let answer = body_missing(error);
                    return self.answer(exchange, answer).await;
                }
            },
        };
        let raw = Raw::new(exchange.method().as_str(), &path_and_query, headers, body.clone());
        if let Some((from, keys)) = self.passing_signer(&raw, &signatures).boxed().await {
            let signature = &from.webhook().signature;
            let signed = self.signed(&raw);
            let came_to = signed.url();
            let resign = Resign { signature, keys: &keys, came: signed.request(&came_to) };
            target.set_headers.extend(resign.headers(&raw.method, &app_url, &raw.body, raw.form()));
            self.unlisted(from, raw).boxed().await;
        }
        let relayed = match exchange.is_upgrade() {
            true => relay(exchange, &self.calls.upstream, target).await,
            false => relay_with_body(exchange, &self.calls.upstream, target, body).await,
        };
        self.relayed(relayed, exchange).await
    }

    /// The signatures that these headers may be: any account may be the signer. Those that are not over the URL only if the body is `small`
    /// enough to be read.
    fn shown(&self, headers: &HeaderMap, small: bool) -> Vec<Candidate> {
        let mut found: Vec<Candidate> = Vec::new();
        for account in self.calls.accounts.values() {
            for (index, webhook) in account.provider.webhooks.iter().enumerate() {
                let signature = &webhook.signature;
                let known = |c: &Candidate| c.account.name == account.name && c.webhook().signature == *signature;
                let is_read = signature.is_over_url() || (small && signature.needs_key());
                if is_read && signature.is_shown(headers) && !found.iter().any(known) {
                    found.push(Candidate { account: account.clone(), index, captures: BTreeMap::new() });
                }
            }
        }
        found
    }

    /// Whose signature a request has that passes through, and its keys.
    async fn passing_signer<'c>(&self, raw: &Raw, found: &'c [Candidate]) -> Option<(&'c Candidate, Keys)> {
        let signed = self.signed(raw);
        let url = signed.url();
        let holds = |from: &Candidate, keys: &Keys| {
            let checked = from.webhook().signature.verify(keys, &signed.request(&url), signed.now_secs);
            checked == Ok(Checked::Holds)
        };
        for from in found {
            let mut all = vec![from.account.keys(&from.webhook().signature)];
            // Media Streams name no account. Their handshakes have no body, which would be hashed once a key.
            if raw.body.is_empty() && raw.subaccount(from).is_none() {
                all.extend(self.subaccounts.known_keys(&from.account));
            }
            if let Some(keys) = all.into_iter().find(|keys| holds(from, keys)) {
                return Some((from, keys));
            }
        }
        match self.subaccounts.signer(&self.calls, found, raw, &signed).await {
            Signer::Subaccount(from, keys) => Some((from, keys)),
            Signer::Unknown | Signer::Nobody => None,
        }
    }

    async fn relayed(
        &self,
        relayed: std::result::Result<crate::net::Relayed, crate::net::RelayError>,
        exchange: &mut Exchange,
    ) -> u16 {
        match relayed {
            Ok(relayed) => relayed.status.as_u16(),
            Err(error) if error.is_clients() => {
                debug!(%error, "forwarded request incomplete");
                self.answer(exchange, problem(StatusCode::BAD_REQUEST, "BODY_INCOMPLETE", &error.to_string())).await
            }
            Err(error) => {
                if let Some(left_out) = AWAY.admits() {
                    warn!(%error, left_out, "failed to reach the app");
                }
                self.answer(exchange, problem(StatusCode::BAD_GATEWAY, "APP_UNREACHABLE", "The app cannot be reached."))
                    .await
            }
        }
    }
}

/// What a signature over the URL is made anew with, for the app's.
pub(super) struct Resign<'a> {
    pub(super) signature: &'a Signature,
    pub(super) keys: &'a Keys,
    /// The request as it came.
    pub(super) came: Request<'a>,
}

impl Resign<'_> {
    /// The headers of the request as it goes on; none where the URL is not signed.
    pub(super) fn headers(
        &self,
        method: &str,
        url: &str,
        body: &[u8],
        form: Option<&[(String, String)]>,
    ) -> Vec<(HeaderName, HeaderValue)> {
        let goes = Request { method, url, headers: self.came.headers, body, form };
        self.signature.resign(self.keys, &self.came, &goes)
    }
}

impl Taken<'_> {
    /// `came_to` is the URL that the provider called.
    fn resign<'s>(&'s self, came_to: &'s str) -> Resign<'s> {
        let raw = self.raw;
        Resign {
            signature: &self.from.webhook().signature,
            keys: &self.keys,
            came: Request {
                method: &raw.method,
                url: came_to,
                headers: &raw.headers,
                body: &raw.body,
                form: raw.form(),
            },
        }
    }
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
