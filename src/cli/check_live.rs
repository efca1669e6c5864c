//! `ringfence check --live`: checks a config against providers, database, Redis and ports. Reads only; in Redis the limiter's commands
//! are tried on keys of their own, which are deleted.

mod hooks;
mod numbers;
mod servers;

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, DATE, HeaderValue, USER_AGENT};
use http::{HeaderMap, Method, Request, Response};
use serde_json::Value;

use crate::clock::Clock;
use crate::config::Config;
use crate::config::diagnostics::{Diagnostic, Report};
use crate::net::{Upstream, UpstreamSettings, install_crypto_provider, port_owner};
use crate::policy::Policy;
use crate::provider::account::Account;
use crate::provider::check::{Check, Hooks, ItemList, OwnWebhooks, Setting, plain};
use crate::provider::description::NextPage;
use crate::provider::render::{Target, render};
use crate::provider::select::{Document, Message, Selector};

/// The maximum answer: a page of a thousand numbers is about 2 MB.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Maximum pages read of a list.
const PAGES_MAX: usize = 50;
/// Maximum items that are read one by one, and concurrently.
const EACH_MAX: usize = 2_000;
const REQUESTS_AT_ONCE: usize = 8;
/// Maximum names in a diagnostic; further ones are counted.
const NAMES_MAX: usize = 10;

/// The extent of the checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// Checks that the start needs.
    Check,
    /// Also what calls depend on: each number and agent.
    Doctor,
}

/// The result of the checks.
pub(super) struct CheckReport {
    pub diagnostics: Vec<Diagnostic>,
    /// The reason why a diagnostic matters, by its title.
    pub whys: BTreeMap<String, String>,
    /// Lines about what is in order.
    pub lines: Vec<String>,
    /// The seconds by which the clock of each host is ahead of ours, according to its answers.
    pub ahead_secs: BTreeMap<String, i64>,
}

/// Checks all accounts with credentials, the database, the limiter's Redis and the ports.
pub(super) async fn ask(config: &Config, depth: Depth) -> anyhow::Result<CheckReport> {
    let live = LiveCheck::new(config, depth)?;
    let mut lines = Vec::new();
    for account in config.accounts.values() {
        if let Some(check) = account.provider.check.as_ref().filter(|_| account.can_ask()) {
            lines.extend(live.account(account, check).await);
        }
    }
    let (store, running) = live.store().await;
    lines.extend(store);
    if let Some(settings) = &config.redis {
        lines.extend(live.redis(settings).await);
    }
    lines.extend(live.ports(running.as_deref()));
    let (whys, ahead_secs) = (live.whys.into_inner(), live.ahead_secs.into_inner());
    Ok(CheckReport { diagnostics: live.report.finish(), whys, lines, ahead_secs })
}

struct LiveCheck<'a> {
    config: &'a Config,
    depth: Depth,
    upstream: Upstream,
    timeout: Duration,
    report: Report,
    whys: RefCell<BTreeMap<String, String>>,
    ahead_secs: RefCell<BTreeMap<String, i64>>,
}

/// A provider's settings, for changes.
pub(super) struct Provider<'a>(LiveCheck<'a>);

impl<'a> Provider<'a> {
    pub(super) fn new(config: &'a Config) -> anyhow::Result<Self> {
        Ok(Self(LiveCheck::new(config, Depth::Doctor)?))
    }

    /// The expected URL of an account's webhooks; `None`: there is none.
    pub(super) fn here<'h>(&'h self, account: &'h Account) -> Option<OwnWebhooks<'h>> {
        self.0.here(account)
    }

    pub(super) async fn items(&self, account: &Account, hooks: &Hooks) -> Result<Vec<Value>, String> {
        self.0.list(account, &hooks.path, &hooks.items, hooks.next.as_ref()).await
    }

    /// Sets parameters of an item.
    pub(super) async fn change(
        &self,
        account: &Account,
        hooks: &Hooks,
        id: &str,
        params: impl Iterator<Item = (&str, &str)>,
    ) -> Result<(), String> {
        let template = hooks.change.as_deref().ok_or("its provider file has no such operation")?;
        let path = self.0.path_of_item(account, template, id)?;
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(params).finish();
        let mut request = self.0.request(account, &path, Bytes::from(body))?;
        *request.method_mut() = Method::POST;
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        request.headers_mut().insert(CONTENT_TYPE, form);
        let answer = self.0.upstream.fetch(request, ANSWER_BYTES_MAX, self.0.timeout).await;
        let status = answer.map_err(|error| error.to_string())?.status();
        if status.is_success() { Ok(()) } else { Err(format!("the provider answers {status}")) }
    }
}

impl<'a> LiveCheck<'a> {
    fn new(config: &'a Config, depth: Depth) -> anyhow::Result<Self> {
        install_crypto_provider();
        let settings = UpstreamSettings { extra_ca: config.extra_ca.clone(), ..UpstreamSettings::default() };
        Ok(LiveCheck {
            config,
            depth,
            upstream: Upstream::new(settings)?,
            timeout: config.calls.provider_query_timeout,
            report: Report::default(),
            whys: RefCell::default(),
            ahead_secs: RefCell::default(),
        })
    }

    fn here<'h>(&'h self, account: &'h Account) -> Option<OwnWebhooks<'h>> {
        Some(OwnWebhooks {
            base: self.config.webhooks.public_url.as_ref()?,
            webhooks: &account.provider.webhooks,
            provider: &account.provider.name,
            extra_paths: &self.config.webhooks.extra_paths,
            doctor: self.depth == Depth::Doctor,
        })
    }
}

impl LiveCheck<'_> {
    async fn account(&self, account: &Account, check: &Check) -> Vec<String> {
        let name = &account.name;
        let answer = match self.get(account, &check.path).await {
            Ok(answer) => answer,
            Err(why) => {
                let title = format!("account {name}: {} does not answer: {why}", account.upstream);
                let help = "check the network, proxies and firewalls, and the account's upstream";
                self.report.error("E050", None, title, help);
                return vec![];
            }
        };
        let (status, body) = (answer.status(), decode(&answer));
        let words = check.message.as_ref().and_then(|m| read_body(&body, |message| m.text(message).map(|t| plain(&t))));
        let words = words.map(|w| format!(": {w}")).unwrap_or_default();
        if check.denied.contains(&status.as_u16()) {
            let title = format!("account {name}: {} rejects the credentials ({status}){words}", account.provider.name);
            let keys = account.provider.secrets.join(" and ");
            self.report.error(
                "E051",
                None,
                title,
                &format!("check {keys} of [accounts.{name}], and the rights of the key"),
            );
            return vec![];
        }
        if !status.is_success() {
            let title = format!("account {name}: {} answers {status}{words}", account.upstream);
            let help =
                "if this persists, ringfence cannot look calls up, and frees slots only by webhooks and deadlines";
            self.report.warning("W010", None, title, help);
            return vec![];
        }
        if read_body(&body, |message| check.usable.holds(message).then_some(())).is_none() {
            let state =
                check.state.as_ref().and_then(|s| read_body(&body, |message| s.text(message).map(|t| plain(&t))));
            let (title, help) = match state {
                Some(state) => {
                    (format!("account {name} is {state} at {}", account.provider.name), "no call can be placed with it")
                }
                None => (
                    format!("account {name}: {} answers, but not as {} does", account.upstream, account.provider.name),
                    "check the account's upstream, and proxies before it",
                ),
            };
            self.report.error("E052", None, title, help);
            return vec![];
        }
        let mut lines = vec![format!("account {name}: {} accepts the credentials", account.provider.name)];
        let mut ours = None;
        if let Some(here) = self.here(account) {
            for hooks in &check.hooks {
                let (told, posting) = self.hooks(account, hooks, here).await;
                lines.extend(told);
                ours = ours.or(posting);
            }
        }
        if self.depth == Depth::Doctor {
            for listed in &check.lists {
                lines.extend(self.listed(account, listed, ours.as_deref()).await);
            }
        }
        lines
    }

    /// Warns that a list, in the plural, cannot be looked at.
    fn unlisted(&self, account: &Account, what: &str, why: &str) {
        let title = format!("account {}: its {what} cannot be looked at: {why}", account.name);
        let help = "the key may lack the right to list them: check them by hand";
        self.report.warning("W013", None, title, help);
    }

    /// Checks the settings of items at the provider one by one.
    async fn listed(&self, account: &Account, listed: &ItemList, ours: Option<&[String]>) -> Vec<String> {
        let (name, what) = (&account.name, &listed.what);
        let items = match self.list(account, &listed.path, &listed.items, listed.next.as_ref()).await {
            Ok(items) => items,
            Err(why) => {
                self.unlisted(account, &format!("{what}s"), &why);
                return vec![];
            }
        };
        let looked = items.iter().take(EACH_MAX).map(|item| self.each(account, listed, item));
        let looked: Vec<Result<Value, String>> = stream::iter(looked).buffered(REQUESTS_AT_ONCE).collect().await;
        let policy = Policy::new(self.config.policy.clone(), &[]);
        let (mut found, mut longest_secs, mut lines) = (BTreeMap::<_, Vec<String>>::new(), 0, vec![]);
        for item in &looked {
            match item {
                Ok(item) => {
                    let findings = listed.findings(item, ours);
                    if let Some(mode) = &findings.mode {
                        lines.push(format!("account {name}: {what} {}: {mode}", findings.name));
                    }
                    let admitted = |agent: &str, within: Option<u32>| policy.agent_bound(name, agent, within);
                    for setting in findings.found.into_iter().chain(listed.below(item, admitted)) {
                        found.entry(setting).or_default().push(findings.name.clone());
                    }
                    longest_secs = longest_secs.max(findings.longest_secs.unwrap_or(0));
                }
                Err(why) => self.unlisted(account, &format!("{what}s"), why),
            }
        }
        for (fault, names) in found {
            self.fault(account, what, "W032", &names, fault);
        }
        let counted_secs = account.provider.longest_call_secs;
        if longest_secs > counted_secs {
            let title = format!(
                "account {name}: an {what} lets a call last {longest_secs} s, and ringfence counts on {counted_secs} s at most"
            );
            self.record_why(
                &title,
                "a call that cannot be looked up is given up after that time, though it may still be up",
            );
            let help = "lower it there, or raise longest_call_secs in a provider file of your own";
            self.report.warning("W032", None, title, help);
        }
        let more = items.len().saturating_sub(EACH_MAX);
        let more = if more > 0 { format!("; {more} more were not looked at") } else { String::new() };
        let most = if longest_secs > 0 { format!("; a call lasts {longest_secs} s at most") } else { String::new() };
        lines.push(format!("account {name}: {} {what}s looked at{most}{more}", items.len().min(EACH_MAX)));
        lines
    }

    /// Reads one item.
    async fn each(&self, account: &Account, listed: &ItemList, item: &Value) -> Result<Value, String> {
        let Some((each, id)) = listed.each.as_ref().zip(listed.id_of(item)) else { return Ok(item.clone()) };
        let answer = self.get_path(account, &self.path_of_item(account, each, &id)?).await?;
        if !answer.status().is_success() {
            return Err(format!("the provider answers {} for {id}", answer.status()));
        }
        serde_json::from_slice(answer.body()).map_err(|_| format!("the provider's answer for {id} is not JSON"))
    }

    fn path_of_item(&self, account: &Account, template: &str, id: &str) -> Result<String, String> {
        let path = render(template, Target::Url, |name| match name {
            "item" => Some(Cow::Borrowed(id)),
            name => account.value(name),
        });
        path.map_err(|error| error.to_string())
    }

    fn record_why(&self, title: &str, why: &str) {
        self.whys.borrow_mut().insert(title.to_owned(), why.to_owned());
    }

    fn fault(
        &self,
        account: &Account,
        what: &str,
        code: &'static str,
        names: &[String],
        Setting { says, why, fix }: Setting,
    ) {
        let list = short(names);
        let title = match names.len() {
            1 => format!("account {}: {what} {list} {says}", account.name),
            _ => format!("account {}: {what}s {list}: each {says}", account.name),
        };
        if let Some(why) = &why {
            self.record_why(&title, why);
        }
        let fix = fix.unwrap_or_else(|| format!("check it in the console of {}", account.provider.name));
        self.report.warning(code, None, title, &fix);
    }

    async fn list(
        &self,
        account: &Account,
        first: &str,
        items_at: &Selector,
        next_page: Option<&NextPage>,
    ) -> Result<Vec<Value>, String> {
        self.pages(account, fill(account, first)?, items_at, next_page).await
    }

    /// The items of all pages, from the first page's path and query.
    async fn pages(
        &self,
        account: &Account,
        first: String,
        items_at: &Selector,
        next_page: Option<&NextPage>,
    ) -> Result<Vec<Value>, String> {
        let (mut all, mut path) = (Vec::new(), first.clone());
        for _ in 0..PAGES_MAX {
            let answer = self.get_path(account, &path).await?;
            let body = decode(&answer);
            let items = items_at.list(&body).filter(|_| answer.status().is_success());
            all.extend(items.ok_or_else(|| format!("the provider answers {}", answer.status()))?.iter().cloned());
            let next = match next_page {
                Some(NextPage::Uri { uri }) => read_body(&body, |message| uri.text(message).map(|t| t.into_owned())),
                Some(NextPage::Cursor { cursor, param }) => read_body(&body, |message| {
                    let escaped: String = form_urlencoded::byte_serialize(cursor.text(message)?.as_bytes()).collect();
                    Some(format!("{first}&{param}={escaped}"))
                }),
                None => None,
            };
            // Only path and query: a link must not send our credentials to another host.
            let next = next.and_then(|n| n.parse::<http::Uri>().ok()?.path_and_query().map(|p| p.as_str().to_owned()));
            match next {
                Some(next) if next != path => path = next,
                _ => break,
            }
        }
        Ok(all)
    }

    async fn get(&self, account: &Account, template: &str) -> Result<Response<Bytes>, String> {
        let path = fill(account, template)?;
        self.get_path(account, &path).await
    }

    fn request(&self, account: &Account, path: &str, body: Bytes) -> Result<Request<Bytes>, String> {
        let (name, value) = account.credentials().map_err(|e| e.to_string())?;
        let mut request = Request::new(body);
        *request.uri_mut() = account.url(path).map_err(|e| e.to_string())?;
        let headers = request.headers_mut();
        headers.insert(name, value);
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("ringfence/", env!("CARGO_PKG_VERSION"))));
        Ok(request)
    }

    async fn get_path(&self, account: &Account, path: &str) -> Result<Response<Bytes>, String> {
        let request = self.request(account, path, Bytes::new())?;
        let host = request.uri().host().unwrap_or_default().to_owned();
        let answer = self.upstream.fetch(request, ANSWER_BYTES_MAX, self.timeout).await.map_err(|e| e.to_string())?;
        let date = answer.headers().get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        if let Some(theirs) = date.and_then(|date| date.duration_since(UNIX_EPOCH).ok()) {
            let ours_secs = Clock::system().now_ms() / 1000;
            let ahead_secs = i64::try_from(theirs.as_secs()).unwrap_or(i64::MAX).saturating_sub(ours_secs);
            self.ahead_secs.borrow_mut().insert(host, ahead_secs);
        }
        Ok(answer)
    }

    fn ports(&self, running: Option<&str>) -> Vec<String> {
        let listen = &self.config.listen;
        let always =
            [("api", listen.api), ("webhooks", listen.webhooks), ("admin", listen.admin), ("client", listen.client)];
        let all = always.into_iter().chain(listen.probes.map(|address| ("probes", address)));
        // A running sidecar over this database also owns the ports, which is fine.
        let mut lines = Vec::new();
        for (name, address) in all {
            match occupied(address) {
                None if address.port() == 0 => {}
                None => lines.push(format!("listen.{name} {address}: free")),
                Some((_, Some(owner))) if running.is_some_and(|who| is_the_same(who, &owner)) => {
                    lines.push(format!("listen.{name} {address}: the running {owner}"));
                }
                Some((error, owner)) => {
                    let who = owner.map_or(error, |owner| format!("{owner} listens there"));
                    let title = format!("listen.{name} cannot be {address}: {who}");
                    let help = format!("choose another with --listen-{name} or [listen] {name}, or stop the other");
                    self.report.error("E054", None, title, &help);
                }
            }
        }
        lines
    }
}

/// The reason why an address cannot be bound, and its owner.
fn occupied(address: SocketAddr) -> Option<(String, Option<String>)> {
    let error = TcpListener::bind(address).err()?;
    let owner = match error.kind() {
        std::io::ErrorKind::AddrInUse => port_owner(address).map(|owner| owner.to_string()),
        _ => None,
    };
    Some((error.to_string(), owner))
}

/// Whether `ringfence, process 12, since …` (a lock) and `ringfence (process 12)` (a port) name the same process.
fn is_the_same(lock: &str, port: &str) -> bool {
    let id = |text: &str| {
        let digits = text.split("process ").nth(1)?;
        Some(digits.chars().take_while(char::is_ascii_digit).collect::<String>())
    };
    id(lock).is_some_and(|one| Some(one) == id(port))
}

/// Names for a sentence.
fn short(names: &[String]) -> String {
    let more = names.len().saturating_sub(NAMES_MAX);
    let list = names.iter().take(NAMES_MAX).cloned().collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{list} and {more} more") } else { list }
}

fn join(versions: &[i64]) -> String {
    versions.iter().map(i64::to_string).collect::<Vec<_>>().join(", ")
}

fn fill(account: &Account, template: &str) -> Result<String, String> {
    render(template, Target::Url, |name| account.value(name)).map_err(|e| e.to_string())
}

fn decode(answer: &Response<Bytes>) -> Document {
    let content_type = answer.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
    Document::decode(content_type, answer.body())
}

/// Reads a value of an answer's body.
fn read_body<T>(body: &Document, read: impl FnOnce(&Message<'_>) -> Option<T>) -> Option<T> {
    read(&Message::new(body, &HeaderMap::new()))
}
