//! Which account and operation a request on `listen.api` is for. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::Method;

use crate::ids::AccountName;
use crate::provider::account::Account;
use crate::provider::description::{Description, Operation};
use crate::provider::path::readings;
use crate::provider::select::Message;

/// Where a request goes.
#[derive(Debug)]
pub struct Route<'a> {
    /// The account.
    pub account: &'a Arc<Account>,
    /// From `/b/{business}/…`.
    pub business: Option<&'a str>,
    /// The path at the provider, mount and business taken off.
    pub path: &'a str,
}

/// Finds the account by mount (`/twilio/…`, `/b/{business}/twilio/…`, `/account-name/…`) or by the Host header. Of several
/// accounts of one provider, the mount means the one whose own id stands in the path (Twilio's account sid), else the first.
pub fn route<'a>(
    accounts: &'a BTreeMap<AccountName, Arc<Account>>,
    host: Option<&str>,
    path: &'a str,
) -> Option<Route<'a>> {
    let (business, path) = match path.strip_prefix("/b/").and_then(|rest| rest.split_once('/')) {
        Some((business, _)) => (Some(business), &path[3 + business.len()..]),
        None => (None, path),
    };
    for account in accounts.values() {
        if let Some(rest) = below(path, &format!("/{}", account.name)) {
            return Some(Route { account, business, path: rest });
        }
    }
    let of_provider = |fits: &dyn Fn(&Description) -> bool, path: &'a str| {
        let mut fitting = accounts.values().filter(|a| fits(&a.provider)).peekable();
        let first = *fitting.peek()?;
        let named = fitting.find(|a| a.secrets.get("account_sid").is_some_and(|sid| path.contains(sid.expose())));
        Some(Route { account: named.unwrap_or(first), business, path })
    };
    let mounted = accounts.values().find_map(|a| below(path, &a.provider.mount).map(|rest| (&a.provider.mount, rest)));
    if let Some((mount, rest)) = mounted {
        return of_provider(&|p| p.mount == *mount, rest);
    }
    let host = host?.rsplit_once(':').map_or(host?, |(name, port)| {
        if port.bytes().all(|b| b.is_ascii_digit()) { name } else { host.unwrap_or_default() }
    });
    of_provider(&|p| p.hosts.iter().any(|h| h.eq_ignore_ascii_case(host)), path)
}

fn below<'a>(path: &'a str, mount: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(mount)?;
    (rest.starts_with('/')).then_some(rest)
}

fn fits(operation: &Operation, method: &Method, paths: &[String]) -> bool {
    operation.method.as_str().eq_ignore_ascii_case(method.as_str())
        && paths.iter().any(|path| operation.path.captures_any_case(path).is_some())
}

/// Whether a path and method are those of an operation, whatever its body says: only then is the body read.
pub fn may_create(provider: &Description, method: &Method, path: &str) -> bool {
    may_be(provider, method, path).next().is_some()
}

/// Whether they are those of an operation that makes many calls, whose body may be long.
pub fn may_create_many(provider: &Description, method: &Method, path: &str) -> bool {
    may_be(provider, method, path).any(|o| o.places.is_some())
}

fn may_be<'a>(provider: &'a Description, method: &Method, path: &str) -> impl Iterator<Item = &'a Operation> + use<'a> {
    let (method, paths) = (method.clone(), readings(path));
    provider.operations.iter().filter(move |o| fits(o, &method, &paths))
}

/// What the path of a request captures, if it is this operation's.
pub fn captures(operation: &Operation, path: &str) -> Option<BTreeMap<String, String>> {
    readings(path).iter().find_map(|p| operation.path.captures_any_case(p))
}

/// The operation of a request.
pub fn operation<'a>(
    provider: &'a Description,
    method: &Method,
    path: &str,
    message: &Message<'_>,
) -> Option<&'a Operation> {
    may_be(provider, method, path).find(|o| o.when.is_empty() || o.when.holds(message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::Registry;
    use crate::provider::secret::Secret;
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
                terminate: vec![],
                carrier: None,
            };
            (name, Arc::new(account))
        };
        list.iter().map(account).collect()
    }

    fn found(host: &str, path: &str) -> Option<(String, Option<String>, String)> {
        let all = accounts(&[("el", "elevenlabs", "-"), ("tw-a", "twilio", "AC1"), ("tw-b", "twilio", "AC2")]);
        let r = route(&all, Some(host), path)?;
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
        let twilio = registry.get("twilio").unwrap();
        assert!(may_create(twilio, &Method::POST, "/2010-04-01/Accounts/AC1/Calls"), "without .json it answers in XML");
        assert!(may_create(twilio, &Method::POST, "/2010-04-01/Accounts/AC1/Calls.json"));
        assert!(!may_create(twilio, &Method::POST, "/2010-04-01/Accounts/AC1/Calls/CA1.json"));
    }
}
