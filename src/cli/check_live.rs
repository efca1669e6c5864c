//! `ringfence check --live`: what a config meets. Everything is read, nothing is changed; in Redis what the gate does is tried under
//! names of its own, and nothing of it stays.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, HeaderValue, USER_AGENT};
use http::{HeaderMap, Request, Response};
use serde_json::Value;

use crate::config::diagnostics::{Diagnostic, Report};
use crate::config::{Config, extra_paths_key};
use crate::gate::redis::{self, RedisGate};
use crate::net::{Upstream, UpstreamSettings, install_crypto_provider, port_owner};
use crate::provider::account::Account;
use crate::provider::check::{Check, Finding, Here, Hooks, plain};
use crate::provider::description::NextPage;
use crate::provider::render::{Target, render};
use crate::provider::select::{Document, Message};
use crate::store::postgres;
use crate::store::sqlite::inspect::{Inspected, holder, inspect};

/// Longest answer that is read: a page of a thousand numbers is about 2 MB.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Pages of a list that are read at most.
const PAGES_MAX: usize = 50;
/// Names of items that a diagnostic lists; more are counted.
const NAMES_MAX: usize = 10;

/// What was found.
pub(super) struct Found {
    pub diagnostics: Vec<Diagnostic>,
    /// What is as it should be.
    pub lines: Vec<String>,
}

/// Asks every account that has credentials, the store, the gate's Redis and the ports.
pub(super) async fn ask(config: &Config) -> anyhow::Result<Found> {
    install_crypto_provider();
    let settings = UpstreamSettings { extra_ca: config.extra_ca.clone(), ..UpstreamSettings::default() };
    let live = Live {
        config,
        upstream: Upstream::new(settings)?,
        timeout: config.calls.ask_timeout,
        report: Report::default(),
    };
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
    Ok(Found { diagnostics: live.report.finish(), lines })
}

struct Live<'a> {
    config: &'a Config,
    upstream: Upstream,
    timeout: Duration,
    report: Report,
}

impl Live<'_> {
    async fn account(&self, account: &Account, check: &Check) -> Vec<String> {
        let name = &account.name;
        let answer = match self.get(account, &check.path).await {
            Ok(answer) => answer,
            Err(why) => {
                let title = format!("account {name}: {} does not answer: {why}", account.upstream);
                let help = "look at the network, a proxy or firewall on the way, and the account's upstream";
                self.report.error("E050", None, title, help);
                return vec![];
            }
        };
        let (status, body) = (answer.status(), decode(&answer));
        let words = check.message.as_ref().and_then(|m| said(&body, |message| m.text(message).map(|t| plain(&t))));
        let words = words.map(|w| format!(": {w}")).unwrap_or_default();
        if check.denied.contains(&status.as_u16()) {
            let title =
                format!("account {name}: {} does not accept the credentials ({status}){words}", account.provider.name);
            let keys = account.provider.secrets.join(" and ");
            self.report.error(
                "E051",
                None,
                title,
                &format!("look at {keys} of [accounts.{name}], and at what the key may do"),
            );
            return vec![];
        }
        if !status.is_success() {
            let title = format!("account {name}: {} answers {status}{words}", account.upstream);
            let help =
                "if this stays so, ringfence cannot look calls up, and frees slots by webhooks and deadlines alone";
            self.report.warning("W010", None, title, help);
            return vec![];
        }
        if said(&body, |message| check.usable.holds(message).then_some(())).is_none() {
            let state = check.state.as_ref().and_then(|s| said(&body, |message| s.text(message).map(|t| plain(&t))));
            let (title, help) = match state {
                Some(state) => {
                    (format!("account {name} is {state} at {}", account.provider.name), "no call can be placed with it")
                }
                None => (
                    format!("account {name}: {} answers, but not as {} does", account.upstream, account.provider.name),
                    "look at the account's upstream, and at what stands before it",
                ),
            };
            self.report.error("E052", None, title, help);
            return vec![];
        }
        let mut lines = vec![format!("account {name}: {} accepts the credentials", account.provider.name)];
        if let Some(base) = &self.config.webhooks.public_url {
            let here = Here {
                base,
                webhooks: &account.provider.webhooks,
                provider: &account.provider.name,
                extra_paths: &self.config.webhooks.extra_paths,
            };
            for hooks in &check.hooks {
                lines.extend(self.hooks(account, hooks, here).await);
            }
        }
        lines
    }

    async fn hooks(&self, account: &Account, hooks: &Hooks, here: Here<'_>) -> Option<String> {
        let (name, what) = (&account.name, &hooks.what);
        let items = match self.list(account, hooks).await {
            Ok(items) => items,
            Err(why) => {
                let title = format!("account {name}: its {what}s cannot be looked at: {why}");
                self.report.warning(
                    "W013",
                    None,
                    title,
                    "the key may lack the right to list them: look at them by hand",
                );
                return None;
            }
        };
        let found = hooks.judge(&items, here);
        let good = found.is_empty();
        for (finding, names) in found {
            self.hook(account, hooks, finding, &names);
        }
        good.then(|| match (hooks.every, items.len()) {
            (_, 1) => format!("account {name}: its {what} comes here"),
            (true, n) => format!("account {name}: its {n} {what}s come here"),
            (false, n) => format!("account {name}: of its {n} {what}s at least one comes here"),
        })
    }

    fn hook(&self, account: &Account, hooks: &Hooks, finding: Finding, names: &[String]) {
        let (name, what) = (&account.name, &hooks.what);
        let more = names.len().saturating_sub(NAMES_MAX);
        let mut list = names.iter().take(NAMES_MAX).cloned().collect::<Vec<_>>().join(", ");
        if more > 0 {
            list.push_str(&format!(" and {more} more"));
        }
        let plural = if names.len() == 1 { "" } else { "s" };
        match finding {
            Finding::NoneHere { of, what, path, webhook, url, without } => {
                let host = self.config.webhooks.public_url.as_ref().and_then(|u| u.authority());
                let host = host.map_or("here", |a| a.as_str());
                let title = match of {
                    0 => format!("account {name} has no {what}: {without}"),
                    _ => format!("account {name}: none of its {of} {what}s comes to {host}: {without}"),
                };
                let help = match added(account, &webhook, path.as_deref()) {
                    Some(added) => format!("{added}; or make one with the URL {url}"),
                    None => format!("make one with the URL {url}"),
                };
                self.report.warning("W011", None, title, &help);
            }
            Finding::Elsewhere { called, is, path, webhook, url, without } => {
                let title = format!("account {name}: the {called} of {what}{plural} {list} {is}: {without}");
                let help = match added(account, &webhook, path.as_deref()) {
                    Some(added) => format!("{added}; or set it to {url}, if your app serves that path"),
                    None => format!("set it to {url}, or to a path of your app that inbound names"),
                };
                self.report.warning("W012", None, title, &help);
            }
            Finding::Fault { says } => {
                let title = match names.len() {
                    1 => format!("account {name}: {what} {list} {says}"),
                    _ => format!("account {name}: {what}s {list}: each {says}"),
                };
                self.report.warning(
                    "W011",
                    None,
                    title,
                    &format!("look at it in the console of {}", account.provider.name),
                );
            }
        }
    }

    async fn list(&self, account: &Account, hooks: &Hooks) -> Result<Vec<Value>, String> {
        let (mut all, mut path) = (Vec::new(), fill(account, &hooks.path)?);
        for _ in 0..PAGES_MAX {
            let answer = self.get(account, &path).await?;
            let body = decode(&answer);
            let items = hooks.items.list(&body).filter(|_| answer.status().is_success());
            all.extend(items.ok_or_else(|| format!("the provider answers {}", answer.status()))?.iter().cloned());
            let next = match &hooks.next {
                Some(NextPage::Uri { uri }) => said(&body, |message| uri.text(message).map(|t| t.into_owned())),
                Some(NextPage::Cursor { cursor, param }) => said(&body, |message| {
                    let escaped: String = form_urlencoded::byte_serialize(cursor.text(message)?.as_bytes()).collect();
                    Some(format!("{}&{param}={escaped}", hooks.path))
                }),
                None => None,
            };
            // Path and query alone: a link must not send our credentials to another host.
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
        let (name, value) = account.credentials().map_err(|e| e.to_string())?;
        let mut request = Request::new(Bytes::new());
        *request.uri_mut() = account.url(&path).map_err(|e| e.to_string())?;
        let headers = request.headers_mut();
        headers.insert(name, value);
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("ringfence/", env!("CARGO_PKG_VERSION"))));
        self.upstream.fetch(request, ANSWER_BYTES_MAX, self.timeout).await.map_err(|e| e.to_string())
    }

    /// A line of the store, and who has it.
    async fn store(&self) -> (Option<String>, Option<String>) {
        match &self.config.store.postgres {
            Some(settings) => self.postgres(settings).await,
            None => self.sqlite().await,
        }
    }

    async fn sqlite(&self) -> (Option<String>, Option<String>) {
        let path = &self.config.store.path;
        let running = holder(path).await;
        let line = match inspect(path).await {
            Ok(Inspected::Absent) => Some(format!("store {}: not there yet, the first start makes it", path.display())),
            Ok(Inspected::Ready) => self.schema(&[], "", running.as_deref()),
            Ok(Inspected::Behind(missing)) => self.schema(&missing, "", running.as_deref()),
            Err(error) => {
                self.report.error("E053", None, format!("the store cannot be used: {error}"), "");
                None
            }
        };
        (line, running)
    }

    async fn postgres(&self, settings: &postgres::Settings) -> (Option<String>, Option<String>) {
        match postgres::inspect::inspect(settings).await {
            Ok(found) => {
                let pooler = if found.server.pooled { " behind a pooler of transactions" } else { "" };
                let server = format!("PostgreSQL {}{pooler}, ", found.server.version);
                if found.server.fsync == "off" {
                    let title = format!("store {}: fsync is off: a crash of its machine loses calls", settings.shown());
                    self.report.warning("W014", None, title, "set fsync = on in postgresql.conf");
                }
                (self.schema(&found.missing, &server, found.holder.as_deref()), found.holder)
            }
            Err(why) => {
                self.report.error("E053", None, format!("the store cannot be used: {why}"), "");
                (None, None)
            }
        }
    }

    fn schema(&self, missing: &[i64], server: &str, running: Option<&str>) -> Option<String> {
        let shown = self.config.store.shown();
        let running = running.map(|who| format!(", and {who} has it")).unwrap_or_default();
        if missing.is_empty() {
            return Some(format!("store {shown}: {server}its schema is up to date{running}"));
        }
        if self.config.store.migrate_on_start {
            let versions = join(missing);
            return Some(format!(
                "store {shown}: {server}lacks migration {versions}, which the next start applies{running}"
            ));
        }
        let title = format!("store {shown} lacks migration {}, and store.migrate_on_start is false", join(missing));
        self.report.error("E053", None, title, "run `ringfence migrate up`");
        None
    }

    async fn redis(&self, settings: &redis::Settings) -> Option<String> {
        let shown = settings.shown();
        let inspected = match RedisGate::new(settings.clone()) {
            Ok(gate) => gate.inspect().await.map_err(|error| error.to_string()),
            Err(why) => Err(why),
        };
        match inspected {
            Ok(problems) if problems.is_empty() => {
                Some(format!("gate {shown}: pool {}, nothing there would lose a lease", settings.pool))
            }
            Ok(problems) => {
                for problem in problems {
                    let title = format!("gate {shown} cannot be relied on: {}", problem.what);
                    self.report.error("E055", None, title, &problem.hint);
                }
                None
            }
            Err(why) => {
                let help = "look at gate.redis_url, at the network and at the server; until it answers, gate.on_outage says who decides";
                self.report.error("E055", None, format!("gate {shown}: {why}"), help);
                None
            }
        }
    }

    fn ports(&self, running: Option<&str>) -> Vec<String> {
        let listen = &self.config.listen;
        let all =
            [("api", listen.api), ("webhooks", listen.webhooks), ("admin", listen.admin), ("client", listen.client)];
        // A sidecar that runs over this store has the ports too: that is as it should be.
        let mut lines = Vec::new();
        for (name, address) in all {
            match taken(address) {
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

/// Why an address cannot be listened on, and who has it.
fn taken(address: SocketAddr) -> Option<(String, Option<String>)> {
    let error = TcpListener::bind(address).err()?;
    let owner = match error.kind() {
        std::io::ErrorKind::AddrInUse => port_owner(address).map(|owner| owner.to_string()),
        _ => None,
    };
    Some((error.to_string(), owner))
}

/// Whether `ringfence, process 12, since …` (a lock) and `ringfence (process 12)` (a port) are one process.
fn is_the_same(lock: &str, port: &str) -> bool {
    let id = |text: &str| {
        let digits = text.split("process ").nth(1)?;
        Some(digits.chars().take_while(char::is_ascii_digit).collect::<String>())
    };
    id(lock).is_some_and(|one| Some(one) == id(port))
}

fn join(versions: &[i64]) -> String {
    versions.iter().map(i64::to_string).collect::<Vec<_>>().join(", ")
}

/// How a path that providers call already is made known; none where no key does.
fn added(account: &Account, webhook: &str, path: Option<&str>) -> Option<String> {
    let (key, path) = (extra_paths_key(&account.provider.name, webhook)?, path?);
    Some(format!("if that is where your app answers, add it: [inbound] {key} = [{path:?}]"))
}

fn fill(account: &Account, template: &str) -> Result<String, String> {
    render(template, Target::Url, |name| account.value(name)).map_err(|e| e.to_string())
}

fn decode(answer: &Response<Bytes>) -> Document {
    let content_type = answer.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
    Document::decode(content_type, answer.body())
}

/// What is read off an answer's body.
fn said<T>(body: &Document, read: impl FnOnce(&Message<'_>) -> Option<T>) -> Option<T> {
    let (path, headers) = (BTreeMap::new(), HeaderMap::new());
    read(&Message { body, query: &[], path: &path, headers: &headers })
}
