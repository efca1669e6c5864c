//! Addresses allowed at `listen.webhooks`, checked before a request is read. Signatures decide later which calls a request may
//! report on.

use std::time::Instant;

use bytes::Bytes;
use http::header::{HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use tracing::warn;

use super::context::Webhooks;
use super::log_limit::LogLimit;
use crate::net::{Exchange, PeerKey};
use crate::reply::problem;

/// Limits of the log lines about rejected webhooks.
static NOT_ALLOWED: LogLimit = LogLimit::new();
static TOO_MANY: LogLimit = LogLimit::new();

impl Webhooks {
    /// The answer to a webhook that is rejected.
    pub(super) fn reject_by_address(&self, exchange: &Exchange) -> Option<Response<Bytes>> {
        let settings = &self.settings;
        if settings.allow_from.is_none() && settings.rate_per_address.is_none() {
            return None;
        }
        // `None`: a trusted proxy's own request.
        let from = exchange.client_address()?;
        if settings.allow_from.as_ref().is_some_and(|allowed| !allowed.contain(from)) {
            if let Some(suppressed) = NOT_ALLOWED.take_line() {
                warn!(%from, suppressed, "webhook rejected: address not in webhooks.allow_from");
            }
            let message = "Webhooks from this address are not allowed.";
            return Some(problem(StatusCode::FORBIDDEN, "ADDRESS_NOT_ALLOWED", message));
        }
        let rate = settings.rate_per_address?;
        let wait = self.address_rates.take(PeerKey::of(from), rate, Instant::now()).err()?;
        if let Some(suppressed) = TOO_MANY.take_line() {
            warn!(%from, %rate, suppressed, "webhook rejected: its address exceeds webhooks.rate_per_address");
        }
        let mut answer =
            problem(StatusCode::TOO_MANY_REQUESTS, "TOO_MANY_REQUESTS", "This address sends too many requests.");
        let secs = wait.as_millis().div_ceil(1000).max(1).to_string();
        if let Ok(secs) = HeaderValue::from_str(&secs) {
            answer.headers_mut().insert(RETRY_AFTER, secs);
        }
        Some(answer)
    }
}
