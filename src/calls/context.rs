//! The shared context of this layer: one generation of the configuration, and handles to what outlives it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::TaskTracker;

use super::app_address::AppAddress;
use super::sweep_requests::SweepRequests;
use crate::calls::lifecycle::Lifecycle;
use crate::clock::as_ms;
use crate::ids::AccountName;
use crate::net::Upstream;
use crate::policy::{Mode, Policy};
use crate::provider::account::Account;
use crate::provider::description::Group;
use crate::provider::path::normal;
use crate::provider::secret::Secret;
use crate::store::{AppNotice, CallRecord, DeliveryOrder};

/// The longest answer of a provider that is read, in bytes: a list of 1,000 calls is about 1 MiB.
pub const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The time after its admission within which a create may still be sent.
pub const SEND_WITHIN: Duration = Duration::from_secs(10);

/// Times and addresses of this layer.
#[derive(Debug, Clone)]
pub struct CallSettings {
    /// The app's time-out for a create. The exchange with the provider is read to its end.
    pub create_timeout: Duration,
    /// The time for which the response to a create is read.
    pub create_read_timeout: Duration,
    /// A create is not sent if its admission is older: the process may have been suspended in between.
    pub send_within: Duration,
    /// The time that ringfence's own requests may take.
    pub provider_query_timeout: Duration,
    /// The least time between two not-founds that together prove an end.
    pub not_found_confirm: Duration,
    /// The time for which a call's state may be unreadable before the log and the status name it.
    pub unreadable_alarm: Duration,
    /// Calls younger than this are not looked up: providers' lists lag.
    pub list_lag: Duration,
    /// The app's addresses, and the URL that providers call, if they can call us.
    pub app: Arc<AppAddress>,
    /// The largest `Retry-After` for SDKs that sleep on it.
    pub sdk_retry_after_max_secs: u32,
    /// The account whose capacity inbound calls of a carrier use, where one is configured.
    pub inbound_account: Option<AccountName>,
    /// The interval of sweeps; `None`: the interval of the provider's description.
    pub sweep: Option<Duration>,
    /// The time after a call's end before its missing post-call record is fetched.
    pub record_fetch_after: Duration,
    /// Whether a failing delivery holds back later ones of the same call.
    pub delivery_order: DeliveryOrder,
    /// The address to which ringfence's own events are delivered, if the app wants them.
    pub events: Option<Arc<OwnEvents>>,
}

impl CallSettings {
    /// The time after its admission within which the exchange of a create may be open, in milliseconds.
    pub fn exchange_ms(&self) -> i64 {
        as_ms(self.send_within) + as_ms(self.create_read_timeout)
    }

    /// Whether the app gets ringfence's own events about calls.
    pub fn notice(&self) -> AppNotice {
        match self.events {
            Some(_) => AppNotice::Send,
            None => AppNotice::Omit,
        }
    }
}

/// The address to which ringfence's own events are delivered.
#[derive(Debug, Clone)]
pub struct OwnEvents {
    /// The app's URL.
    pub url: http::Uri,
    /// The events' signing secret (see [`crate::provider::sign::sign_standard`]).
    pub secret: Secret,
}

/// The shared context: one generation of the configuration, and handles to what outlives it. A holder sees the same accounts and
/// settings until it is done; a reload makes another context, with the same `tasks` and `sweep_requests`.
#[derive(Clone)]
pub struct Context {
    /// The only writer of a call's phase, ids and end.
    pub lifecycle: Lifecycle,
    /// Identifies the business of a request. Which limits bind a call is decided by the newest policy instead,
    /// [`Lifecycle::policy`].
    pub policy: Arc<Policy>,
    /// Every account by name.
    pub accounts: Arc<BTreeMap<AccountName, Arc<Account>>>,
    /// The client for all upstream requests.
    pub upstream: Upstream,
    /// Times and addresses.
    pub settings: Arc<CallSettings>,
    /// Exchanges in progress; a drain waits for them.
    pub tasks: TaskTracker,
    /// Accounts that are to be swept without delay.
    pub sweep_requests: SweepRequests,
}

impl Context {
    /// The account of this name.
    pub fn account(&self, name: &AccountName) -> Option<&Arc<Account>> {
        self.accounts.get(name)
    }

    /// The accounts that know a call: the one whose capacity it uses first, then its carrier.
    pub fn accounts_of(&self, record: &CallRecord) -> Vec<&Arc<Account>> {
        let names = [Some(&record.attributes.account), record.attributes.carrier.as_ref()];
        names.into_iter().flatten().filter_map(|name| self.account(name)).collect()
    }

    /// The account that uses a carrier's calls: the configured one, else the only one that names it as its carrier.
    pub fn agent_account(&self, carrier: &AccountName) -> Option<&Arc<Account>> {
        if let Some(name) = &self.settings.inbound_account {
            return self.account(name).filter(|a| a.name != *carrier);
        }
        let mut users = self.accounts.values().filter(|a| a.carrier.as_ref() == Some(carrier));
        users.next().filter(|_| users.next().is_none())
    }

    /// The kind of batch that a record describes; `None` for a single call.
    pub fn group_of(&self, record: &CallRecord) -> Option<&Group> {
        let provider = &self.accounts.get(&record.attributes.account)?.provider;
        let by_id = provider.groups.iter().find(|g| record.alias(&g.needs).is_some());
        by_id.or_else(|| provider.group_of(&record.attributes.operation))
    }

    /// Whether observe mode is on: nothing is rejected that can be sent.
    pub fn observes(&self) -> bool {
        self.lifecycle.admission.mode() == Mode::Observe
    }

    /// This replica's id, where several replicas share the store.
    pub(super) fn replica(&self) -> Option<String> {
        let admission = &self.lifecycle.admission;
        admission.is_shared().then(|| admission.replica().to_owned())
    }

    /// Whether a tenant's URL may lead to this path of the app: webhook paths, and others that the operator allowed.
    pub fn may_forward(&self, path_and_query: &str) -> bool {
        let path = path_and_query.split('?').next().unwrap_or_default();
        let app = &self.settings.app;
        let read = normal(path);
        let is_webhook = || {
            let mut described = self.accounts.values().flat_map(|account| &account.provider.webhooks);
            described.any(|webhook| webhook.paths.iter().any(|one| one.fits_any_case(read.as_str())))
                || app.webhook_paths.iter().any(|one| normal(one).eq_ignore_ascii_case(&read))
        };
        app.forward_paths.contain(if path.is_empty() { "/" } else { path }) || is_webhook()
    }
}
