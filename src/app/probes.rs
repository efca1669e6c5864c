//! `listen.probes`: `/health` and `/ready`, and nothing else. Without TLS: an orchestrator's probes have no client certificate.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use http::{Method, StatusCode};

use super::reload::Generations;
use crate::admin::reload::Running as _;
use crate::admin::{RECORD_AWAY, secured};
use crate::net::{EdgeSettings, Exchange, Handler};
use crate::reply::{health, problem};

/// Connections at once, of all and of one peer: many times what health checks use.
const CONNECTIONS_MAX: usize = 100;
const CONNECTIONS_OF_PEER_MAX: usize = 25;

/// The limits of the listener.
pub(super) fn settings() -> EdgeSettings {
    EdgeSettings {
        max_connections: CONNECTIONS_MAX,
        max_connections_of_peer: CONNECTIONS_OF_PEER_MAX,
        max_body_bytes: 0,
        max_tunnels: 0,
        ..EdgeSettings::default()
    }
}

/// The handler of `listen.probes`. It answers as soon as it is bound, before the store is open.
#[derive(Default)]
pub(super) struct Probes {
    program: OnceLock<Arc<Generations>>,
}

impl Probes {
    /// Lets `/ready` tell of the program from now on.
    pub(super) fn started(&self, program: Arc<Generations>) {
        let _ = self.program.set(program);
    }
}

#[async_trait]
impl Handler for Probes {
    async fn handle(&self, exchange: &mut Exchange) {
        let response = match (exchange.path(), self.program.get()) {
            _ if !matches!(*exchange.method(), Method::GET | Method::HEAD) => {
                problem(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", "this listener answers GET and HEAD")
            }
            ("/health", _) => health(),
            ("/ready", Some(program)) => return program.admin().answer_ready(exchange).await,
            ("/ready", None) => problem(StatusCode::SERVICE_UNAVAILABLE, "STORE_UNAVAILABLE", RECORD_AWAY),
            _ => problem(StatusCode::NOT_FOUND, "NOT_FOUND", "this listener has /health and /ready"),
        };
        exchange.respond(secured(exchange, response)).await;
    }
}
