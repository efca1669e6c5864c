//! Matches a request on `listen.api` to its account and operation. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::AUTHORIZATION;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, Method};

use crate::ids::AccountName;
use crate::provider::account::Account;
use crate::provider::description::{Description, Operation};
use crate::provider::path::{Readings, percent_decode, readings};
use crate::provider::secret::Secret;
use crate::provider::select::Message;
use crate::provider::sign::equal;

/// The header in which an app names the business; never forwarded.
pub const BUSINESS_HEADER: HeaderName = HeaderName::from_static("x-business-id");

/// The owned form of [`Route`].
#[derive(Debug, Clone)]
pub(super) struct OwnedRoute {
    pub(super) account: Arc<Account>,
    /// The business in `/b/{business}/…`, decoded.
    pub(super) business: Option<String>,
    /// The request's target. Its first `mount_bytes` bytes are mount and business; the path at the provider follows.
    target: PathAndQuery,
    mount_bytes: usize,
}

impl OwnedRoute {
    /// Makes the owned form. `target`: the target whose path was routed.
    pub(super) fn new(route: &Route<'_>, target: PathAndQuery) -> Self {
        let mount_bytes = target.path().len().saturating_sub(route.path.len());
        let business = route.business.map(|business| percent_decode(business).into_owned());
        Self { account: route.account.clone(), business, target, mount_bytes }
    }

    /// Mount and business: the part of the path that the provider does not see.
    pub(super) fn mount(&self) -> &str {
        self.target.path().get(..self.mount_bytes).unwrap_or_default()
    }

    /// The path at the provider.
    pub(super) fn path(&self) -> &str {
        self.target.path().get(self.mount_bytes..).unwrap_or_default()
    }

    /// The path at the provider, and the query.
    pub(super) fn path_and_query(&self) -> &str {
        self.target.as_str().get(self.mount_bytes..).unwrap_or_default()
    }
}

/// The account and path that a request is for.
#[derive(Debug)]
pub(super) struct Route<'a> {
    /// The account.
    pub(super) account: &'a Arc<Account>,
    /// The business in `/b/{business}/…`.
    pub(super) business: Option<&'a str>,
    /// The path at the provider, without mount and business.
    pub(super) path: &'a str,
}

/// The reason why a request matches no account.
#[derive(Debug, Clone)]
pub(super) enum RouteError {
    /// Nothing is mounted at its path, and its host belongs to no provider.
    Unknown,
    /// The URL names one account, and the request's id or key belongs to another.
    Contradiction {
        /// The account that the URL names.
        account: Arc<Account>,
        /// The account that each attribute belongs to, in a sentence.
        why: String,
    },
}

/// The accounts of a configuration, prepared for routing. A request allocates memory only if several accounts are possible.
#[derive(Debug)]
pub(super) struct Router {
    /// In the order of their names.
    accounts: Vec<RoutedAccount>,
}

#[derive(Debug)]
struct RoutedAccount {
    account: Arc<Account>,
    /// The beginning of paths that name the account. `None`: it is named like a provider's mount.
    named_at: Option<String>,
}

impl Router {
    /// Prepares the accounts.
    pub(super) fn new(accounts: &BTreeMap<AccountName, Arc<Account>>) -> Self {
        let is_mount =
            |name: &AccountName| accounts.values().any(|a| a.provider.mount.strip_prefix('/') == Some(name.as_str()));
        let routed = accounts.values().map(|account| RoutedAccount {
            account: account.clone(),
            named_at: (!is_mount(&account.name)).then(|| format!("/{}", account.name)),
        });
        Self { accounts: routed.collect() }
    }

    /// Finds the account by name (`/account-name/…`), by mount (`/twilio/…`), each also below `/b/{business}`, or by the Host header. Of
    /// several accounts of one provider the request's own attributes decide: the account id in the path (Twilio's account SID), else the
    /// key. Without either, it is the account named like its provider's mount, else the first one. A parent account's key may be used on
    /// the path of a subaccount, so an id in the path outranks the key.
    pub(super) fn route<'a>(
        &'a self,
        host: Option<&str>,
        path: &'a str,
        headers: &HeaderMap,
    ) -> Result<Route<'a>, RouteError> {
        let (business, path) = match path.strip_prefix("/b/").and_then(|rest| rest.split_once('/')) {
            Some((business, _)) => (Some(business), &path[3 + business.len()..]),
            None => (None, path),
        };
        for RoutedAccount { account, named_at } in &self.accounts {
            if let Some(path) = named_at.as_deref().and_then(|at| below(path, at)) {
                return self.check_shown(account, path, headers).map(|()| Route { account, business, path });
            }
        }
        let mut mounts = self.accounts.iter().map(|a| &a.account.provider.mount);
        let (account, path) = match mounts.find_map(|mount| Some((mount, below(path, mount)?))) {
            Some((mount, path)) => (self.by_provider(|p| p.mount == *mount, path, headers), path),
            None => {
                let host = host.ok_or(RouteError::Unknown)?;
                let bare = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
                let host = bare.map_or(host, |(name, _)| name);
                (self.by_provider(|p| p.hosts.iter().any(|known| is_host(known, host)), path, headers), path)
            }
        };
        account.map(|account| Route { account, business, path }).ok_or(RouteError::Unknown)
    }

    /// Checks that a request to an account by its name shows no id or key of another one.
    fn check_shown(&self, account: &Arc<Account>, path: &str, headers: &HeaderMap) -> Result<(), RouteError> {
        let is_same = |a: &&RoutedAccount| a.account.provider.name == account.provider.name;
        if self.accounts.iter().filter(is_same).nth(1).is_none() {
            // The only account of a provider needs no proof.
            return Ok(());
        }
        let same: Vec<_> = self.accounts.iter().filter(is_same).map(|a| &a.account).collect();
        match find_shown(&same, Some(account), path, headers) {
            // If the account's key is not configured, another key proves nothing.
            Some((other, proof))
                if other.name != account.name
                    && (proof == Proof::IdInPath || account.can_ask() || account.own_id().is_some()) =>
            {
                let why = format!(
                    "the URL names account {}, but {} is of account {}",
                    account.name,
                    proof.as_str(),
                    other.name
                );
                Err(RouteError::Contradiction { account: account.clone(), why })
            }
            _ => Ok(()),
        }
    }

    /// The account of a provider that a request is for.
    fn by_provider(
        &self,
        is_provider: impl Fn(&Description) -> bool,
        path: &str,
        headers: &HeaderMap,
    ) -> Option<&Arc<Account>> {
        let fitting = || self.accounts.iter().filter(|a| is_provider(&a.account.provider));
        let first = fitting().next()?;
        if fitting().nth(1).is_none() {
            return Some(&first.account);
        }
        let default = &fitting().find(|a| a.named_at.is_none()).unwrap_or(first).account;
        let fitting: Vec<_> = fitting().map(|a| &a.account).collect();
        let shown = find_shown(&fitting, Some(default), path, headers);
        Some(shown.map_or(default, |(account, _)| account))
    }
}

/// Whether a host matches. `*` stands for any labels: `api.*.twilio.com` matches every region and edge.
fn is_host(known: &str, host: &str) -> bool {
    let Some((head, tail)) = known.split_once('*') else { return known.eq_ignore_ascii_case(host) };
    let middle = host.len().checked_sub(head.len() + tail.len()).filter(|length| *length > 0);
    middle.is_some_and(|length| {
        let (start, rest) = host.split_at_checked(head.len()).unwrap_or_default();
        let (labels, end) = rest.split_at_checked(length).unwrap_or_default();
        start.eq_ignore_ascii_case(head)
            && end.eq_ignore_ascii_case(tail)
            && labels.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
    })
}

/// The part of a request that shows which account it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proof {
    IdInPath,
    ApiKey,
}

impl Proof {
    /// The name in an error.
    fn as_str(self) -> &'static str {
        match self {
            Proof::IdInPath => "the account id in its path",
            Proof::ApiKey => "its API key",
        }
    }
}

/// Finds the account that a request's id or key belongs to, with the part that shows it. Of several with one key the called one wins.
fn find_shown<'a>(
    accounts: &[&'a Arc<Account>],
    called: Option<&'a Arc<Account>>,
    path: &str,
    headers: &HeaderMap,
) -> Option<(&'a Arc<Account>, Proof)> {
    let segments: Vec<_> = path.split('/').map(percent_decode).collect();
    let in_path = |a: &Account| a.own_id().is_some_and(|id| segments.iter().any(|one| **one == *id.expose()));
    let candidates = || called.into_iter().chain(accounts.iter().copied());
    if let Some(account) = candidates().find(|a| in_path(a)) {
        return Some((account, Proof::IdInPath));
    }
    // The key may have been rotated; the user name identifies the account too.
    let basic = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok()?.trim().strip_prefix("Basic "));
    let pair = basic.and_then(|basic| String::from_utf8(BASE64.decode(basic).ok()?).ok());
    let user = pair.as_deref().and_then(|pair| pair.split_once(':')).map(|(user, _)| user.to_owned());
    let shows_key = |a: &Account| {
        let is_key = a.credentials().is_ok_and(|(name, value)| {
            headers.get(&name).is_some_and(|shown| equal(shown.as_bytes(), value.as_bytes()))
        });
        is_key || (user.is_some() && a.own_id().map(Secret::expose) == user.as_deref())
    };
    candidates().find(|a| shows_key(a)).map(|account| (account, Proof::ApiKey))
}

fn below<'a>(path: &'a str, mount: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(mount)?;
    (rest.starts_with('/')).then_some(rest)
}

fn fits(operation: &Operation, method: &Method, paths: &Readings<'_>) -> bool {
    operation.method.as_str().eq_ignore_ascii_case(method.as_str())
        && paths.iter().any(|path| operation.path.fits_any_case(path))
}

/// Whether path and method match an operation, whatever the body says. Only then is the body read.
pub fn may_create(provider: &Description, method: &Method, path: &str) -> bool {
    by_path(provider, method, path).next().is_some()
}

/// Whether path and method match an operation that creates many calls, whose body may be long.
pub fn may_create_many(provider: &Description, method: &Method, path: &str) -> bool {
    by_path(provider, method, path).any(|o| o.slots.is_some())
}

fn by_path<'a, 'r>(
    provider: &'a Description,
    method: &'r Method,
    path: &'r str,
) -> impl Iterator<Item = &'a Arc<Operation>> + use<'a, 'r> {
    let paths = readings(path);
    provider.operations.iter().filter(move |o| fits(o, method, &paths))
}

/// The captures of the operation's path, if the request's path matches.
pub fn captures(operation: &Operation, path: &str) -> Option<BTreeMap<String, String>> {
    readings(path).iter().find_map(|p| operation.path.captures_any_case(p))
}

/// The operation that a request matches.
pub fn operation<'a>(
    provider: &'a Description,
    method: &Method,
    path: &str,
    message: &Message<'_>,
) -> Option<&'a Arc<Operation>> {
    by_path(provider, method, path).find(|o| o.when.is_empty() || o.when.holds(message))
}

/// Whether the client is an SDK that sleeps for `Retry-After` inside the app's request.
pub(super) fn sdk_sleeps(headers: &HeaderMap, account: &Account) -> bool {
    let shown = account.provider.refusal.sdk_sleeps_header.as_deref();
    shown.is_some_and(|name| headers.contains_key(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::Registry;
    use crate::provider::select::Document;

    fn accounts(list: &[(&str, &str, &str)]) -> BTreeMap<AccountName, Arc<Account>> {
        let registry = Registry::new(&[]).unwrap();
        let account = |(name, provider, sid): &(&str, &str, &str)| {
            let provider = registry.get(provider).unwrap().clone();
            let name = AccountName::parse(name).unwrap();
            let account = Account {
                name: name.clone(),
                upstream: provider.upstream.parse().unwrap(),
                upstreams: vec![],
                provider,
                secrets: BTreeMap::from([("account_sid".to_owned(), Secret::new(sid))]),
                webhook_secrets: vec![],
                shared_keys: BTreeMap::new(),
                webhook_tokens: vec![],
                hang_up_methods: vec![],
                carrier: None,
            };
            (name, Arc::new(account))
        };
        list.iter().map(account).collect()
    }

    fn found(host: &str, path: &str) -> Option<(String, Option<String>, String)> {
        let all = accounts(&[("el", "elevenlabs", "-"), ("tw-a", "twilio", "AC1"), ("tw-b", "twilio", "AC2")]);
        let router = Router::new(&all);
        let r = router.route(Some(host), path, &HeaderMap::new()).ok()?;
        Some((r.account.name.to_string(), r.business.map(str::to_owned), r.path.to_owned()))
    }

    #[test]
    fn mounts_hosts_businesses_and_account_names_route() {
        let to = |account: &str, business: Option<&str>, path: &str| {
            Some((account.to_owned(), business.map(str::to_owned), path.to_owned()))
        };
        assert_eq!(found("localhost:8080", "/elevenlabs/v1/x"), to("el", None, "/v1/x"));
        assert_eq!(found("localhost", "/b/acme/elevenlabs/v1/x"), to("el", Some("acme"), "/v1/x"));
        assert_eq!(found("localhost", "/tw-b/2010/x"), to("tw-b", None, "/2010/x"));
        assert_eq!(found("localhost", "/twilio/Accounts/AC2/Calls.json"), to("tw-b", None, "/Accounts/AC2/Calls.json"));
        assert_eq!(found("localhost", "/twilio/Accounts/AC9/Calls.json").unwrap().0, "tw-a");
        assert_eq!(found("API.elevenlabs.io:443", "/v1/x"), to("el", None, "/v1/x"));
        assert_eq!(found("localhost", "/elevenlabsx/v1"), None);
        assert_eq!(found("localhost", "/"), None);
    }

    #[test]
    fn what_the_request_shows_decides_between_accounts() {
        let all = accounts(&[("twilio", "twilio", "AC1"), ("twilio_de", "twilio", "AC2"), ("other", "twilio", "AC3")]);
        let to = |path: &str, user: &str| {
            let mut headers = HeaderMap::new();
            let basic = format!("Basic {}", BASE64.encode(format!("{user}:any")));
            headers.insert("authorization", basic.parse().unwrap());
            Router::new(&all)
                .route(Some("localhost"), path, &headers)
                .map(|r| r.account.name.to_string())
                .map_err(|e| format!("{e:?}"))
        };
        let is = |name: &str| Ok(name.to_owned());
        assert_eq!(
            to("/twilio/2010-04-01/Accounts/AC2/Calls.json", "AC2"),
            is("twilio_de"),
            "not the one of this name"
        );
        assert_eq!(to("/twilio/2010-04-01/Accounts/AC2/Calls.json", "AC1"), is("twilio_de"), "a parent's key");
        assert_eq!(to("/twilio/2010-04-01/Accounts/AC%32/Calls.json", "SK1"), is("twilio_de"));
        assert_eq!(to("/twilio/2010-04-01/Accounts/AC21/Calls.json", "SK1"), is("twilio"), "no part of an id is one");
        assert_eq!(to("/twilio/v2/Flows/FW1/Executions", "AC3"), is("other"));
        assert_eq!(to("/twilio/v2/Flows/FW1/Executions", "SK1"), is("twilio"));
        assert_eq!(to("/twilio_de/2010-04-01/Accounts/AC2/Calls.json", "AC1"), is("twilio_de"));
        assert_eq!(to("/twilio_de/2010-04-01/Accounts/AC9/Calls.json", "SK1"), is("twilio_de"), "a subaccount");
        let twins = accounts(&[("a", "twilio", "AC1"), ("twilio", "twilio", "AC1")]);
        let path = "/twilio/2010-04-01/Accounts/AC1/Calls.json";
        let twins = Router::new(&twins);
        let called = twins.route(None, path, &HeaderMap::new()).unwrap();
        assert_eq!(called.account.name.as_str(), "twilio", "of two with one key, the one that is called");
        for (path, user) in
            [("/twilio_de/2010-04-01/Accounts/AC1/Calls.json", "AC1"), ("/other/v2/Flows/FW1/Executions", "AC1")]
        {
            let error = to(path, user).unwrap_err();
            assert!(error.contains("names account") && error.contains("of account twilio"), "{error}");
        }
    }

    #[test]
    fn an_owned_route_has_the_mount_the_path_and_the_query_of_its_target() {
        let router = Router::new(&accounts(&[("el", "elevenlabs", "-")]));
        for (target, business, mount, path, path_and_query) in [
            ("/el/v1/x?y=1", None, "/el", "/v1/x", "/v1/x?y=1"),
            ("/b/acme%20co/elevenlabs/v1/%78", Some("acme co"), "/b/acme%20co/elevenlabs", "/v1/%78", "/v1/%78"),
            ("/v1/x?y", None, "", "/v1/x", "/v1/x?y"),
            ("/?y=/el/v1", None, "", "/", "/?y=/el/v1"),
        ] {
            let target = PathAndQuery::from_static(target);
            let route = router.route(Some("api.elevenlabs.io"), target.path(), &HeaderMap::new()).unwrap();
            let owned = OwnedRoute::new(&route, target.clone());
            assert_eq!(owned.business.as_deref(), business, "{target}");
            assert_eq!(
                (owned.mount(), owned.path(), owned.path_and_query()),
                (mount, path, path_and_query),
                "{target}"
            );
        }
    }

    #[test]
    fn routing_allocates_nothing() {
        let router = Router::new(&accounts(&[("el", "elevenlabs", "-"), ("twilio", "twilio", "AC1")]));
        let headers = HeaderMap::new();
        for (host, path) in [
            ("localhost:8080", "/el/v1/voices"),
            ("localhost", "/twilio/2010-04-01/Accounts/AC1/Messages.json"),
            ("localhost", "/b/acme/elevenlabs/v1/convai/agents/a/simulate"),
            ("api.elevenlabs.io", "/v1/history"),
        ] {
            let counted = allocation_counter::measure(|| {
                let route = router.route(Some(host), path, &headers).unwrap();
                assert!(!may_create(&route.account.provider, &Method::POST, route.path));
            });
            assert_eq!(counted.count_total, 0, "{host} {path}");
        }
    }

    #[test]
    fn hosts_of_regions_and_edges_are_known() {
        for host in
            ["api.twilio.com", "api.ie1.twilio.com", "API.dublin.ie1.twilio.com:443", "studio.sydney.au1.twilio.com"]
        {
            assert_eq!(found(host, "/2010-04-01/Accounts/AC1/Calls.json").unwrap().0, "tw-a", "{host}");
        }
        for host in [
            "api..twilio.com.evil.example",
            "api.evil.example/.twilio.com",
            "apitwilio.com",
            "x.twilio.com",
            "api.twilio.com.x",
        ] {
            assert_eq!(found(host, "/2010-04-01/Accounts/AC1/Calls.json"), None, "{host}");
        }
    }

    #[test]
    fn only_creates_are_operations() {
        let registry = Registry::new(&[]).unwrap();
        let (el, none) = (registry.get("elevenlabs").unwrap(), BTreeMap::new());
        let body = Document::Json(serde_json::json!({"direction": "outbound"}));
        let headers = http::HeaderMap::new();
        let message = Message { body: &body, query: &[], path: &none, headers: &headers };
        let path = "/v1/convai/twilio/register-call";
        assert!(may_create(el, &Method::POST, path));
        assert_eq!(operation(el, &Method::POST, path, &message).unwrap().name, "register_call_outbound");
        let inbound = Message { body: &Document::Empty, ..message };
        assert_eq!(operation(el, &Method::POST, path, &inbound).unwrap().name, "register_call");
        assert!(!may_create(el, &Method::GET, path));
        for odd in [
            "//v1/convai/twilio/register-call",
            "/v1//convai/./twilio/register%2Dcall/",
            "/v1/x/../convai/twilio/register-call",
            "/V1/convai/Twilio/register-call",
            "/v1/convai;a=b/twilio/register-call;c",
        ] {
            assert!(may_create(el, &Method::POST, odd), "{odd}");
        }
        assert!(may_create(el, &"post".parse().unwrap(), path), "a method in lower case");
        for family in [
            "/v1/convai/twilio/outbound_call",
            "/v1/convai/conversation/outbound-call",
            "/v2/convai/sip_trunk/outbound_call/",
            "/v1/convai/something-new/outbound-call",
            "/v1/convai/batch_calling/submit",
        ] {
            assert!(may_create(el, &Method::POST, family), "{family}");
        }
        assert!(!may_create(el, &Method::POST, "/v1/convai/whatsapp/outbound-message"));
        let twilio = registry.get("twilio").unwrap();
        for family in [
            "/2010-04-01/Accounts/AC1/Calls.xml",
            "/2010-04-01/Accounts/AC1/Calls.csv",
            "/2008-08-01/Accounts/AC1/Calls",
            "/2010-04-01/Accounts/AC1/Conferences/room/Participants.xml",
            "/2010-04-01/Accounts/AC1/OutgoingCallerIds.json",
            "/v2/Flows/FW1/Executions.json",
        ] {
            assert!(may_create(twilio, &Method::POST, family), "{family}");
        }
        assert!(!may_create(twilio, &Method::POST, "/2010-04-01/Accounts/AC1/Conferences/room/Participants/CA1.json"));
        assert!(may_create(twilio, &Method::POST, "/2010-04-01/Accounts/AC1/Calls"), "without .json it answers in XML");
        assert!(may_create(twilio, &Method::POST, "/2010-04-01/Accounts/AC1/Calls.json"));
        assert!(!may_create(twilio, &Method::POST, "/2010-04-01/Accounts/AC1/Calls/CA1.json"));
    }
}
