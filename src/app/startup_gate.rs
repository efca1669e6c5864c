//! The listeners before the store is open. Meanwhile they answer with an error instead of letting connections hang.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use async_trait::async_trait;
use http::{HeaderValue, StatusCode, header::RETRY_AFTER};
use serde_json::json;

use super::error::StartError;
use super::handlers::Listener;
use crate::admin::auth::{Access, Scope};
use crate::admin::{RECORD_AWAY, secured};
use crate::clock::Clock;
use crate::net::{Edge, Exchange, Handler, RunningEdge};
use crate::reply::{RejectionCode, health, json_answer, problem};
use crate::sync::lock;

/// The admin listener, in the order of [`StartupListeners::new`].
const ADMIN: usize = 2;

/// `Retry-After`, in seconds.
const RETRY_AFTER_SECS: &str = "5";

/// A listener's handler until the program is ready.
struct StartupHandler {
    program: OnceLock<Listener>,
    /// The reason. Only operators see it.
    why: Arc<Mutex<String>>,
    /// The access rules of `listen.admin`, for who may see the reason.
    admin: Option<(Access, Clock)>,
}

#[async_trait]
impl Handler for StartupHandler {
    async fn handle(&self, exchange: &mut Exchange) {
        if let Some(listener) = self.program.get() {
            return listener.handle(exchange).await;
        }
        if exchange.path() == "/health" {
            return exchange.respond(health()).await;
        }
        let mut response = if let Some((access, clock)) = &self.admin {
            let may_read = access.authorize(exchange, Scope::Read, clock.now_ms() / 1000).is_ok();
            let why = match may_read {
                true => lock(&self.why).clone(),
                false => RECORD_AWAY.to_owned(),
            };
            problem(StatusCode::SERVICE_UNAVAILABLE, "STORE_UNAVAILABLE", &why)
        } else {
            let message = "Nothing was sent: ringfence waits for its database.";
            let body =
                json!({"error": RejectionCode::StoreUnavailable.fixed_str(), "message": message, "called": false});
            json_answer(StatusCode::SERVICE_UNAVAILABLE, &body)
        };
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECS));
        exchange.respond(secured(exchange, response)).await;
    }
}

/// All listeners: api, webhooks, admin, client. Connections wait unanswered until the program is ready, or waits with a reason.
pub(super) struct StartupListeners {
    why: Arc<Mutex<String>>,
    admin: (Access, Clock),
    state: Mutex<State>,
}

enum State {
    Bound(Vec<Edge>),
    Answering(Vec<(RunningEdge, Arc<StartupHandler>)>),
}

impl StartupListeners {
    /// `admin`: who may see the reason.
    pub(super) fn new(edges: [Edge; 4], admin: (Access, Clock)) -> Self {
        Self { why: Arc::default(), admin, state: Mutex::new(State::Bound(edges.into())) }
    }

    /// Answers all requests with an error from now on.
    pub(super) fn answer_unavailable(&self, why: &str) {
        why.clone_into(&mut lock(&self.why));
        self.start_answering();
    }

    fn start_answering(&self) {
        let mut state = lock(&self.state);
        *state = match std::mem::replace(&mut *state, State::Bound(vec![])) {
            State::Bound(edges) => State::Answering(
                edges
                    .into_iter()
                    .enumerate()
                    .map(|(n, edge)| {
                        let admin = (n == ADMIN).then(|| self.admin.clone());
                        let handler = StartupHandler { program: OnceLock::new(), why: self.why.clone(), admin };
                        let handler = Arc::new(handler);
                        (edge.spawn(handler.clone()), handler)
                    })
                    .collect(),
            ),
            other => other,
        };
    }

    /// Hands the listeners to the program.
    pub(super) fn open(self, program: [Listener; 4]) -> Result<[RunningEdge; 4], StartError> {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let running: Vec<RunningEdge> = match state {
            State::Bound(edges) => {
                edges.into_iter().zip(program).map(|(edge, listener)| edge.spawn(Arc::new(listener))).collect()
            }
            State::Answering(listeners) => listeners
                .into_iter()
                .zip(program)
                .map(|((running, handler), listener)| {
                    let _ = handler.program.set(listener);
                    running
                })
                .collect(),
        };
        running.try_into().map_err(|_| StartError("the listeners are gone".to_owned()))
    }
}
