//! The shared context of this layer.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::Response;
use tokio::sync::Notify;
use tracing::warn;

use super::address_rates::AddressRates;
use super::parsed::ParsedWebhook;
use super::raw::RawWebhook;
use super::route::Candidate;
use super::settings::WebhookSettings;
use super::subaccounts::Subaccounts;
use crate::calls::Calls;
use crate::failpoint;
use crate::ids::{CallId, number_key};
use crate::net::Exchange;
use crate::store::{Contradiction, Journal, Spool, Voucher};

/// The handler of `listen.webhooks`. Cloning is cheap.
#[derive(Clone)]
pub struct Webhooks {
    pub(super) calls: Calls,
    pub(super) settings: Arc<WebhookSettings>,
    /// Wakes the delivery loop.
    pub(super) deliver: Arc<Notify>,
    /// Stores large bodies.
    pub(super) spool: Spool,
    /// Tokens of subaccounts.
    pub(super) subaccounts: Subaccounts,
    /// Stores webhooks while the database is unavailable.
    pub(super) journal: Journal,
    /// Ids of stored webhooks that could not be applied.
    pub(super) unapplied: Arc<Mutex<Vec<String>>>,
    /// The request rates of addresses.
    pub(super) address_rates: Arc<AddressRates>,
}

impl Webhooks {
    /// Builds the handler.
    pub fn new(calls: Calls, settings: WebhookSettings, deliver: Arc<Notify>, spool: Spool, journal: Journal) -> Self {
        let subaccounts = Subaccounts::default();
        Self {
            calls,
            settings: Arc::new(settings),
            deliver,
            spool,
            subaccounts,
            journal,
            unapplied: Arc::default(),
            address_rates: Arc::default(),
        }
    }

    /// Returns this handler over the next generation of calls and settings.
    pub fn next(&self, calls: Calls, settings: WebhookSettings) -> Self {
        Self { calls, settings: Arc::new(settings), ..self.clone() }
    }

    pub(super) async fn answer(&self, exchange: &mut Exchange, response: Response<Bytes>) -> u16 {
        let status = response.status().as_u16();
        exchange.respond(response).await;
        failpoint::hit("webhook.answered").await;
        status
    }

    /// The agent that answers a number: as configured, else the first of the business that the number belongs to.
    pub(super) fn agent_of(&self, number: Option<&str>) -> Option<String> {
        let number = number?;
        self.settings.agents.get(number_key(number).as_ref()).cloned().or_else(|| {
            let policy = &self.calls.policy;
            policy.business(policy.owner_of_number(number)?)?.agent_ids.first().cloned()
        })
    }

    /// Logs that a webhook was not applied to the call that it points to.
    pub(super) fn report(&self, parsed: &ParsedWebhook<'_>, call: Option<&CallId>, what: Contradiction) {
        let (account, subaccount) = (&parsed.from.account.name, parsed.by.subaccount.as_deref());
        let call = call.map(CallId::as_str);
        warn!(%account, subaccount, event = parsed.event_id, call, why = what.why(), "webhook not applied to the call that it points to");
    }

    /// The voucher of a webhook that was authenticated before. If it names a subaccount, the subaccount vouches for it, though
    /// the parent account may have signed it.
    pub(super) fn voucher_again(&self, from: &Candidate, raw: &RawWebhook) -> Voucher {
        self.calls.voucher(std::slice::from_ref(&from.account.name), raw.subaccount(from))
    }
}
