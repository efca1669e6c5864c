//! What is asked of providers: place a call, look calls up, end one; and what an inbound call meets.
//!
//! [`place`] sends an order and settles it, `refuse` tells why one was not placed, [`repost`] knows one that is sent again,
//! `elsewhere` one that first came to another process, and `again` answers it, [`many`] knows orders for many calls, [`inbound`] admits a call that a provider brings, [`lookup`] asks where
//! calls stand, [`records`] keeps what is told of them after their end, `fetch` asks for it on demand, [`hooks`]
//! sees whether it still comes of itself, `vouch` whose word counts for which call, `subaccount` knows whose a call is where an account has accounts below it,
//! `unfenced` counts calls of requests that no operation knows, [`callback`] judges the addresses that apps want
//! to be called at, [`terminate`] ends one and checks that it is over, `observe` sends what is only marked.

mod again;
pub mod callback;
mod elsewhere;
mod fetch;
mod forward;
pub mod hooks;
pub mod inbound;
mod looks;
pub mod lookup;
pub mod many;
mod observe;
pub mod place;
pub mod records;
mod refusals;
mod refuse;
pub mod repost;
mod soon;
mod subaccount;
pub mod terminate;
mod unfenced;
mod vouch;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, USER_AGENT};
use http::{HeaderValue, Method, Request, Response};
use tokio_util::task::TaskTracker;

use crate::call::Deadlines;
use crate::ids::{AccountName, CallId};
use crate::lifecycle::Lifecycle;
use crate::net::{Upstream, UpstreamError};
use crate::policy::Policy;
use crate::provider::account::Account;
use crate::provider::render::{MissingValue, Target, render};
use crate::store::CallRecord;
pub use forward::ForwardPaths;

/// The longest answer of a provider that is read, in bytes: a list of 1,000 calls is about 1 MiB.
pub const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How many locks the ids of arriving calls share. Two calls that meet at one wait a store write for one another.
const ARRIVALS: usize = 64;

/// Times and addresses of this layer.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long the app waits for a create. The exchange reads on.
    pub create_timeout: Duration,
    /// A create is not sent if admission was longer ago: the process may have been stopped in between.
    pub send_within: Duration,
    /// How long ringfence's own requests may take.
    pub ask_timeout: Duration,
    /// Two look-ups that find nothing prove an end only if they lie so far apart.
    pub absent_twice_within: Duration,
    /// A call whose state could not be read for so long is named in the log and in the status.
    pub unread_alarm: Duration,
    /// Calls younger than this are not looked up: providers' lists lag.
    pub grace: Duration,
    /// Where the app is, and what providers call, if they can call us.
    pub app: Arc<callback::AppAddress>,
    /// The largest `Retry-After` for SDKs that sleep on it.
    pub sdk_retry_after_max_secs: u32,
    /// The account whose capacity inbound calls of a carrier use, where one is configured.
    pub inbound_account: Option<AccountName>,
    /// How often every account is asked; the description's pace unless given.
    pub sweep: Option<Duration>,
    /// How long after a call's end its record may be missing before it is asked for.
    pub record_wait: Duration,
    /// A delivery that fails holds back the later ones of its call.
    pub strict_order: bool,
    /// Where events of our own go, if the app wants them.
    pub events: Option<Arc<records::OwnEvents>>,
}

/// See the module. Cloning is cheap.
///
/// One value is one generation of the config: who has it sees the same accounts and settings to the end of what it does. A reload
/// makes the [`next`](Calls::next), which shares everything that must outlive it.
#[derive(Clone)]
pub struct Calls {
    /// The only writer of a call's state.
    pub lifecycle: Lifecycle,
    /// Tells whose a request is. What binds a call is decided by the newest policy instead, [`Lifecycle::policy`].
    pub policy: Arc<Policy>,
    /// Every account by name.
    pub accounts: Arc<BTreeMap<AccountName, Arc<Account>>>,
    /// The way out.
    pub upstream: Upstream,
    /// Times and addresses.
    pub settings: Arc<Settings>,
    /// Exchanges under way: a drain waits for them.
    pub tasks: TaskTracker,
    /// Orders that may be sent again.
    pub reposts: repost::Reposts,
    /// Accounts that are to be looked at.
    pub looks: looks::Looks,
    /// Open calls that a request is joining just now.
    joining: Arc<Mutex<HashSet<CallId>>>,
    /// Live calls of orders for many, by account.
    members: Arc<Mutex<many::Members>>,
    /// Arrivals of one call go one after the other: by its ids, each of which falls to one of these.
    arriving: Arc<[tokio::sync::Mutex<()>; ARRIVALS]>,
    /// Refusals that wait to be recorded.
    refusals: refusals::Refusals,
    /// Calls over capacity that are being hung up, with when that began.
    hanging_up: Arc<Mutex<HashMap<CallId, Instant>>>,
    /// Records that are fetched on demand, or were a moment ago.
    fetches: fetch::Fetches,
    /// What front mode answered lately, by call: a voice webhook that is repeated gets the same conversation.
    fronted: Arc<Mutex<HashMap<CallId, inbound::Fronted>>>,
}

/// A provider could not be asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AskError {
    /// The account has no credentials for it, or the provider no way.
    #[error("{0} cannot be asked: {1}")]
    NoWay(AccountName, &'static str),
    /// A template names what is not there.
    #[error(transparent)]
    Missing(#[from] MissingValue),
    /// It did not answer.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// It was asked too often: 429.
    #[error("the provider answered 429: it was asked too often")]
    Limited {
        /// When it may be asked again, as it says.
        retry_after_secs: Option<u32>,
    },
    /// It answered with a status that says nothing of the call.
    #[error("the provider answered {0}")]
    Status(u16),
    /// It answered, and what it said cannot be understood.
    #[error("the provider's answer cannot be read: {0}")]
    Unreadable(Unreadable),
}

/// Why an answer cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is neither JSON nor XML: an HTML page of a proxy, or cut off in the middle.
    #[error("no {0} in it")]
    NoDocument(&'static str),
    /// It says where the call stands in a word that the provider's description does not know.
    #[error("its state is {0:?}, which the provider's description does not know")]
    UnknownState(String),
    /// It does not say where the call stands.
    #[error("it does not say where the call stands")]
    NoState,
}

impl Calls {
    /// Puts the layer together.
    pub fn new(
        lifecycle: Lifecycle,
        accounts: BTreeMap<AccountName, Arc<Account>>,
        upstream: Upstream,
        settings: Settings,
    ) -> Self {
        Self {
            policy: lifecycle.policy.load_full(),
            lifecycle,
            accounts: Arc::new(accounts),
            upstream,
            settings: Arc::new(settings),
            tasks: TaskTracker::new(),
            reposts: repost::Reposts::default(),
            looks: looks::Looks::default(),
            joining: Arc::default(),
            members: Arc::default(),
            arriving: Arc::new([const { tokio::sync::Mutex::const_new(()) }; ARRIVALS]),
            refusals: refusals::Refusals::default(),
            hanging_up: Arc::default(),
            fetches: fetch::Fetches::default(),
            fronted: Arc::default(),
        }
    }

    /// The next generation, after a reload. What is under way is shared with this one.
    pub fn next(
        &self,
        policy: Arc<Policy>,
        accounts: BTreeMap<AccountName, Arc<Account>>,
        upstream: Upstream,
        settings: Settings,
        deadlines: Deadlines,
    ) -> Self {
        Self {
            lifecycle: Lifecycle { deadlines, tell: settings.events.is_some(), ..self.lifecycle.clone() },
            policy,
            accounts: Arc::new(accounts),
            upstream,
            settings: Arc::new(settings),
            ..self.clone()
        }
    }

    /// The next generation, after a change of businesses alone.
    pub fn with_policy(&self, policy: Arc<Policy>) -> Self {
        Self { policy, ..self.clone() }
    }

    /// The account of this name.
    pub fn account(&self, name: &AccountName) -> Option<&Arc<Account>> {
        self.accounts.get(name)
    }

    /// The accounts that know a call: the one whose capacity it uses, then its carrier.
    pub fn accounts_of(&self, record: &CallRecord) -> Vec<&Arc<Account>> {
        let names = [Some(&record.facts.account), record.facts.carrier.as_ref()];
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

    /// Fills a path: `account.*` (of the subaccount that has the call, where one has), the call's aliases and facts, `call_id`.
    /// Values are percent-encoded.
    fn path(&self, account: &Account, record: Option<&CallRecord>, template: &str) -> Result<String, MissingValue> {
        render(template, Target::Url, |name| {
            let own = subaccount::id_of(account, record, name);
            own.or_else(|| account.value(name)).or_else(|| of_record(record?, name))
        })
    }

    /// One of ringfence's own requests, with the account's credentials.
    pub async fn ask(
        &self,
        account: &Account,
        method: Method,
        path_and_query: &str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<Response<Bytes>, AskError> {
        if !account.can_ask() {
            return Err(AskError::NoWay(account.name.clone(), "it has no credentials in the config"));
        }
        let (name, value) = account.credentials()?;
        let uri = account.url(path_and_query).map_err(|_| AskError::NoWay(account.name.clone(), "its URL is bad"))?;
        let mut request = Request::new(body.as_ref().map(|(_, bytes)| bytes.clone()).unwrap_or_default());
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(name, value);
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("ringfence/", env!("CARGO_PKG_VERSION"))));
        if let Some((content_type, _)) = body {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        Ok(self.upstream.fetch(request, ANSWER_BYTES_MAX, self.settings.ask_timeout).await?)
    }
}

/// A value of a call in a template.
fn of_record<'a>(record: &'a CallRecord, name: &str) -> Option<Cow<'a, str>> {
    let facts = &record.facts;
    let value = match name {
        "call_id" => Some(record.id.as_str()),
        "agent" => facts.agent.as_deref(),
        "own_number" => facts.own_number.as_deref(),
        "other_number" => facts.other_number.as_deref(),
        kind => record.alias(kind),
    };
    value.map(Cow::Borrowed)
}
