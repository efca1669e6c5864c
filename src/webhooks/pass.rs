//! Forwards requests that no description matches to the app: its own paths and sockets.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, StatusCode};
use tracing::{debug, warn};

use super::answers::body_missing;
use super::app_view::REPLACED;
use super::context::Webhooks;
use super::log_limit::LogLimit;
use super::raw::RawWebhook;
use super::resign::Resign;
use super::route::Candidate;
use super::settings::KEPT_BYTES_MAX;
use super::subaccounts::Signer;
use crate::net::{BodyError, Exchange, HostRule, RelayTarget, relay, relay_with_body};
use crate::provider::sign::{Keys, Verification};
use crate::reply::problem;

/// Bounds the log lines about an unreachable app: anyone can send such requests.
static AWAY: LogLimit = LogLimit::new();

impl Webhooks {
    /// Forwards a request that no description matches.
    pub(super) async fn pass(&self, exchange: &mut Exchange) -> u16 {
        let Some(base) = self.settings.forward_url.clone() else {
            let message = "Unknown path, and app.forward_url is not set.";
            return self.answer(exchange, problem(StatusCode::NOT_FOUND, "UNKNOWN_ROUTE", message)).await;
        };
        if !self.settings.forward_paths.contain(exchange.path()) {
            let message = "Unknown path, and app.forward_paths does not allow it.";
            return self.answer(exchange, problem(StatusCode::NOT_FOUND, "UNKNOWN_ROUTE", message)).await;
        }
        let (path_and_query, headers) = (exchange.path_and_query().to_owned(), exchange.forwarded_headers());
        let app_url = self.settings.app_url(&headers, &path_and_query);
        let mut target = RelayTarget {
            base,
            path_and_query: &path_and_query,
            set_headers: self.settings.front_headers(&app_url),
            remove_headers: Cow::Borrowed(&REPLACED),
            host: HostRule::Upstream,
            mount: None,
        };
        let length = exchange.header("content-length").and_then(|length| length.parse::<usize>().ok());
        let signatures = self.possible_signers(exchange.headers(), length);
        if signatures.is_empty() {
            return self.relayed(relay(exchange, &self.calls.upstream, target).await, exchange).await;
        }
        // A request signed for our URL is signed anew for the app's, but only if it was genuine. News of calls in it is applied.
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
        let raw = RawWebhook::new(exchange.method().as_str(), &path_and_query, headers, body.clone());
        if let Some((from, keys)) = self.passing_signer(&raw, &signatures).boxed().await {
            let signature = &from.webhook().signature;
            let signed = self.signed(&raw);
            let received_url = signed.url();
            let resign = Resign { signature, keys: &keys, received: signed.request(&received_url) };
            target.set_headers.extend(resign.headers(&raw.method, &app_url, &raw.body, raw.form()));
            self.unlisted(from, raw).boxed().await;
        }
        let relayed = match exchange.is_upgrade() {
            true => relay(exchange, &self.calls.upstream, target).await,
            false => relay_with_body(exchange, &self.calls.upstream, target, body).await,
        };
        self.relayed(relayed, exchange).await
    }

    /// The candidates whose signature these headers may have: any account may be the signer. Signatures that do not cover the URL
    /// only if the body is small enough to be read.
    fn possible_signers(&self, headers: &HeaderMap, length: Option<usize>) -> Vec<Candidate> {
        let is_small = length.is_some_and(|length| length <= KEPT_BYTES_MAX);
        let mut found: Vec<Candidate> = Vec::new();
        for account in self.calls.accounts.values() {
            for (index, webhook) in account.provider.webhooks.iter().enumerate() {
                let signature = &webhook.signature;
                let known = |c: &Candidate| c.account.name == account.name && c.webhook().signature == *signature;
                let is_read = signature.is_over_url() || (is_small && signature.needs_key());
                if is_read && signature.is_shown(headers) && !found.iter().any(known) {
                    found.push(Candidate { account: account.clone(), index, captures: BTreeMap::new() });
                }
            }
        }
        found
    }

    /// The signer of a forwarded request, and its keys.
    async fn passing_signer<'c>(&self, raw: &RawWebhook, found: &'c [Candidate]) -> Option<(&'c Candidate, Keys)> {
        let signed = self.signed(raw);
        let url = signed.url();
        let holds = |from: &Candidate, keys: &Keys| {
            let checked = from.webhook().signature.verify(keys, &signed.request(&url), signed.now_secs);
            checked == Ok(Verification::Valid)
        };
        for from in found {
            let mut all = vec![from.account.keys(&from.webhook().signature)];
            // Media Streams name no account. Their handshakes have no body, which would have to be hashed for each key.
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
                if let Some(suppressed) = AWAY.take_line() {
                    warn!(%error, suppressed, "failed to reach the app");
                }
                self.answer(exchange, problem(StatusCode::BAD_GATEWAY, "APP_UNREACHABLE", "The app cannot be reached."))
                    .await
            }
        }
    }
}
