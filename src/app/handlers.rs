//! The handlers of the listeners: each request is answered by the generation that is current when it begins.

use std::borrow::Cow;
use std::sync::Arc;

use async_trait::async_trait;
use http::{Method, StatusCode};
use tracing::warn;

use super::reload::Generations;
use crate::admin::reload::Running as _;
use crate::net::{CALLBACK_MARK, Exchange, Handler};
use crate::reply::problem;
use crate::transcripts::Client;

/// The prefix of ringfence's own headers.
const OWN_HEADERS: &str = "x-ringfence";

/// The only such header that is received from outside: the token of unsigned webhooks.
const WEBHOOK_TOKEN: &str = "x-ringfence-token";

/// A listener's handler: every request goes to the generation that is current when it arrives.
pub(super) enum Listener {
    Api(Arc<Generations>),
    Webhooks(Arc<Generations>),
    Admin(Arc<Generations>),
    Client(Arc<Generations>),
}

impl Listener {
    fn generations(&self) -> &Arc<Generations> {
        match self {
            Self::Api(generations)
            | Self::Webhooks(generations)
            | Self::Admin(generations)
            | Self::Client(generations) => generations,
        }
    }
}

#[async_trait]
impl Handler for Listener {
    async fn handle(&self, exchange: &mut Exchange) {
        if exchange.path() == "/ready" && matches!(*exchange.method(), Method::GET | Method::HEAD) {
            let admin = self.generations().admin();
            return match self {
                Self::Admin(_) => admin.answer_ready_to_operator(exchange).await,
                Self::Api(_) | Self::Webhooks(_) | Self::Client(_) => admin.answer_ready(exchange).await,
            };
        }
        if let Listener::Webhooks(generations) = self
            && generations.config().listen.is_public
            && Client::serves(exchange.path())
        {
            return Box::pin(Listener::Client(generations.clone()).handle(exchange)).await;
        }
        let is_webhooks = matches!(self, Listener::Webhooks(_));
        // ringfence sent it to a tenant's URL: whatever way it came back, it has no rights.
        if !is_webhooks && exchange.headers().contains_key(CALLBACK_MARK) {
            warn!(path = exchange.path(), "request rejected: a callback sent by ringfence reached its own listener");
            let message = "Callbacks sent by ringfence are rejected here.";
            return exchange.respond(problem(StatusCode::FORBIDDEN, "CALLBACK_REFUSED", message)).await;
        }
        // Headers of this prefix are ringfence's own. `listen.admin` rejects requests with one.
        if !matches!(self, Listener::Admin(_)) {
            exchange.drop_headers(|name| {
                // CGI-style servers read an underscore as a dash, and some a dot.
                let name = name.as_str();
                let is_odd = name.contains(['_', '.']);
                let read = if is_odd { Cow::Owned(name.replace(['_', '.'], "-")) } else { Cow::Borrowed(name) };
                let is_disguised = is_odd && (read.starts_with("x-forwarded") || read == "forwarded");
                (read.starts_with(OWN_HEADERS) && !(is_webhooks && name == WEBHOOK_TOKEN))
                    || (is_webhooks && is_disguised)
            });
        }
        match self {
            // Boxed: sockets and streams need not hold its memory.
            Listener::Api(generations) => Box::pin(generations.generation().proxy.handle(exchange)).await,
            Listener::Webhooks(generations) => generations.generation().webhooks.handle(exchange).await,
            // Streams and sockets live long: they must not keep the rest of their generation.
            Listener::Admin(generations) => {
                let admin = generations.admin();
                admin.handle(exchange).await;
            }
            Listener::Client(generations) => {
                let client = generations.client();
                client.handle(exchange).await;
            }
        }
    }
}
