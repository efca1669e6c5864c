//! `listen.webhooks`: authenticate → persist → translate → apply → reply or deliver (`receive`). Requests that no description
//! matches are forwarded to the app (`pass`).
//!
//! A webhook is stored before it is answered: after the response its provider does not send it again.

mod address_rates;
mod answers;
mod app_error;
mod app_view;
mod apply;
mod authenticate;
mod context;
mod deferred;
pub mod deliver;
mod forward;
mod guard;
mod journal;
mod log_limit;
mod outcome;
mod parsed;
mod pass;
mod persist;
mod raw;
mod receive;
mod renew;
mod replay;
mod resign;
pub mod route;
mod settings;
mod spool;
mod strict_replies;
mod subaccounts;
mod transcription;
mod unconfigured_path;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use http::StatusCode;
use tracing::{Instrument as _, warn};

use crate::metrics::{Served, WebhookRequest};
use crate::net::{Exchange, Handler};
use crate::reply::{health, problem};
use crate::telemetry::traces;
pub use context::Webhooks;
pub use deferred::deferred_loop;
pub use journal::journal_loop;
use log_limit::shortened;
pub use replay::{RETRY_DELAYS_SECS as REPLAY_AGAIN_SECS, Replayed, replay_loop};
use route::{Candidate, PathMatch, find};
pub use settings::{
    AppHost, BODIES_BYTES_MAX, BODY_BYTES_MAX, ExtraPaths, InboundMode, KEPT_BYTES_MAX, LARGE_BODIES_BYTES_MAX,
    Unsigned, WebhookSettings,
};
pub use spool::spool_loop;

#[async_trait]
impl Handler for Webhooks {
    async fn handle(&self, exchange: &mut Exchange) {
        if exchange.path() == "/health" {
            return exchange.respond(health()).await;
        }
        if let Some(answer) = self.reject_by_address(exchange) {
            let status = self.answer(exchange, answer).await;
            return self.calls.lifecycle.metrics.request(Served::Webhooks(WebhookRequest::Refused), status);
        }
        let (kind, status) = match find(&self.calls.accounts, &self.settings.extra_paths, exchange.path()) {
            PathMatch::Nothing => (WebhookRequest::Passed, self.pass(exchange).await),
            PathMatch::Ambiguous => {
                let message = "This path is ambiguous: write it without escapes.";
                (WebhookRequest::Refused, self.reject_path(exchange, "AMBIGUOUS_PATH", message).await)
            }
            // Providers POST webhooks. A socket at a webhook path would reach the app unchecked.
            PathMatch::Webhooks(_) if exchange.is_upgrade() => {
                let message = "Upgrades are not allowed at the path of a webhook.";
                (WebhookRequest::Refused, self.reject_path(exchange, "UPGRADE_NOT_EXPECTED", message).await)
            }
            PathMatch::Webhooks(found) => (WebhookRequest::Webhook, self.take(exchange, &found).await),
        };
        self.calls.lifecycle.metrics.request(Served::Webhooks(kind), status);
    }
}

impl Webhooks {
    /// Rejects a request at a webhook path that is not a webhook.
    async fn reject_path(&self, exchange: &mut Exchange, code: &'static str, message: &str) -> u16 {
        let path = shortened(exchange.path());
        warn!(path, code, "webhook rejected");
        self.answer(exchange, problem(StatusCode::BAD_REQUEST, code, message)).await
    }

    async fn take(&self, exchange: &mut Exchange, found: &[Candidate]) -> u16 {
        let is_exact = found.iter().any(|one| one.is_exact_at(exchange.path()));
        let (account, webhook) =
            found.first().map_or(("", ""), |one| (one.account.name.as_str(), one.webhook().name.as_str()));
        let tree = traces::webhook(account, webhook, exchange.headers());
        let answer = self.receive(exchange, found).boxed().instrument(tree.clone()).await;
        let status = self.answer(exchange, if is_exact { strict_replies::shaped(answer) } else { answer }).await;
        traces::record_status(&tree, status);
        status
    }
}
