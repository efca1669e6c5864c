//! `listen.api`: handles one request. Route → is it a create? → parse and place (`create`), or pass through (`relay`).

mod create;
mod relay;
pub mod route;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Response, StatusCode};
use tracing::{Instrument as _, Span};

use crate::calls::Calls;
use crate::calls::batches::{BatchCalling, OtherRequest};
use crate::calls::rejection::client_disconnected;
use crate::metrics::{ApiRequest, Served};
use crate::net::Exchange;
use crate::provider::account::Account;
use crate::reply::{Rejection, RejectionCode, health, problem};
use crate::telemetry::traces;
pub use create::{CREATE_BYTES_MAX, CREATE_MANY_BYTES_MAX};
use create::{Parsed, parse};
use relay::{relay, relay_rejected};
pub use route::BUSINESS_HEADER;
use route::{OwnedRoute, RouteError, Router, may_create};

/// The handler of `listen.api`.
pub struct Proxy {
    calls: Arc<Calls>,
    /// The handler of batch calling in place of the provider, if any.
    batches: Option<Arc<dyn BatchCalling>>,
    router: Router,
}

impl Proxy {
    /// Makes the handler of one generation.
    pub fn new(calls: Arc<Calls>, batches: Option<Arc<dyn BatchCalling>>) -> Self {
        let router = Router::new(&calls.accounts);
        Self { calls, batches, router }
    }

    /// Handles one request.
    pub async fn handle(&self, exchange: &mut Exchange) {
        if exchange.path() == "/health" {
            return exchange.respond(health()).await;
        }
        let (kind, status) = self.answer(exchange).await;
        self.calls.lifecycle.metrics.request(Served::Api(kind), status);
    }

    /// Answers the request; returns its kind and the status of the answer.
    async fn answer(&self, exchange: &mut Exchange) -> (ApiRequest, u16) {
        let calls = &self.calls;
        let to = match self.router.route(exchange.host(), exchange.path(), exchange.headers()) {
            Ok(route) => OwnedRoute::new(&route, exchange.target()),
            Err(RouteError::Unknown) => {
                let mounts: Vec<String> = calls.accounts.keys().map(|name| format!("/{name}/…")).collect();
                let message = format!("Unknown path. Mounts: {}", mounts.join(", "));
                exchange.respond(problem(StatusCode::NOT_FOUND, "UNKNOWN_ROUTE", &message)).await;
                return (ApiRequest::Unknown, 404);
            }
            Err(RouteError::Contradiction { account, why }) => {
                let rejection = Rejection::new(RejectionCode::AccountMismatch, format!("Not sent on: {why}."));
                return (ApiRequest::Unknown, relay_rejected(calls, exchange, &account, rejection).await);
            }
        };
        if exchange.is_upgrade() || !may_create(&to.account.provider, exchange.method(), to.path()) {
            if self.batches.is_some()
                && let Some(response) = self.batch_answer(exchange, &to).boxed().await
            {
                return (ApiRequest::Relay, respond(exchange, response, &to.account).await);
            }
            return (ApiRequest::Relay, relay(calls, exchange, &to).await);
        }
        let tree = traces::create(to.account.name.as_str(), exchange.headers());
        // Boxed, so that requests that pass through do not need the memory of a create.
        Box::pin(self.create(exchange, to)).instrument(tree).await
    }

    /// The answer to a request about a batch that ringfence dials itself.
    async fn batch_answer(&self, exchange: &Exchange, to: &OwnedRoute) -> Option<Response<Bytes>> {
        let batches = self.batches.as_ref()?;
        let request = OtherRequest {
            method: exchange.method(),
            path: to.path(),
            query: exchange.query().unwrap_or_default(),
            headers: exchange.headers(),
        };
        batches.other(&self.calls, &to.account, request).await
    }

    /// Parses a possible create, and places it.
    async fn create(&self, exchange: &mut Exchange, to: OwnedRoute) -> (ApiRequest, u16) {
        let calls = &self.calls;
        let request = match parse(calls, exchange, &to).instrument(traces::step("parse")).await {
            Ok(Parsed::Create(request)) => *request,
            Ok(Parsed::Other) => {
                traces::record_field("otel.name", "relay");
                let status = relay(calls, exchange, &to).await;
                traces::record_status(&Span::current(), status);
                return (ApiRequest::Relay, status);
            }
            Err(rejected) => {
                let response = calls.rejections.respond(rejected.rejection.clone(), &rejected.of(&to.account));
                return (ApiRequest::Create, respond(exchange, response, &to.account).await);
            }
        };
        traces::record_attributes(&request.attributes);
        if exchange.detect_client_gone().await {
            // The client may already have retried on another connection and been told that nothing was dialled.
            let response = calls.rejections.respond(client_disconnected(), &request.rejected());
            return (ApiRequest::Create, respond(exchange, response, &to.account).await);
        }
        if let Some(batches) = &self.batches
            && let Some(response) = batches.create(calls, &request).await
        {
            return (ApiRequest::Create, respond(exchange, response, &to.account).await);
        }
        let (client, answer) = calls.outbound.place(request);
        let mut answer = std::pin::pin!(answer);
        // `biased`: the connection is checked first, because an answer written to a closed one is not delivered.
        let (response, gone) = tokio::select! {
            biased;
            () = exchange.client_gone() => {
                // The request continues without its client, which may retry it.
                client.gone();
                (answer.await, true)
            }
            response = &mut answer => (response, false),
        };
        let status = respond(exchange, response, &to.account).await;
        if exchange.is_delivered() && !gone {
            let delivery = client.delivered();
            exchange.if_reset(move || delivery.lost());
        }
        (ApiRequest::Create, status)
    }
}

async fn respond(exchange: &mut Exchange, response: Response<Bytes>, account: &Account) -> u16 {
    let status = response.status().as_u16();
    traces::record_status(&Span::current(), status);
    if let Some(code) = response.extensions().get::<RejectionCode>() {
        traces::record_field("ringfence.code", code.as_str(&account.provider.refusal));
    }
    exchange.respond(response).await;
    status
}
