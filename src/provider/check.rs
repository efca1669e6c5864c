//! The questions that `ringfence check --live` and `ringfence doctor` ask a provider, as data, and the findings about webhooks and
//! settings in its answers. Pure; none of the requests changes anything.

use std::collections::BTreeMap;

use http::{HeaderMap, Uri};
use serde::Deserialize;
use serde_json::Value;

use super::description::{NextPage, Webhook};
use super::item_bound::ItemBound;
use super::select::{Document, Message, Predicate, Selector};
pub use super::setting::Setting;
use super::setting::read;
use crate::ids::mask_number;

/// The questions about an account.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// A cheap request that needs the account's credentials: a template over `account.*`.
    pub path: String,
    /// Statuses that mean that the credentials are rejected.
    pub denied: Vec<u16>,
    /// The provider's text in an error.
    pub message: Option<Selector>,
    /// When the answer means that the account is usable.
    #[serde(default)]
    pub usable: Predicate,
    /// The provider's name of the account's state.
    pub state: Option<Selector>,
    /// Lists of items that post webhooks: the webhooks themselves, numbers.
    #[serde(default, rename = "hook")]
    pub hooks: Vec<Hooks>,
    /// Lists of items with settings that affect calls, such as agents. Only read by `ringfence doctor`.
    #[serde(default, rename = "list")]
    pub lists: Vec<Listed>,
    /// The steps of a person in the provider's console; `{public_url}` is filled in.
    #[serde(default)]
    pub console: Vec<String>,
    /// Settings that the provider's API does not return, so that a person must compare them.
    #[serde(default)]
    pub untold: Vec<String>,
}

/// A list of items at the provider whose settings affect calls.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    /// The singular noun for an item.
    pub what: String,
    /// The request: a template over `account.*`.
    pub path: String,
    /// The list of items in the answer.
    pub items: Selector,
    /// How the next page is asked for.
    pub next: Option<NextPage>,
    /// The name that distinguishes an item.
    pub name: Selector,
    /// An item's id, for `each`.
    pub id: Option<Selector>,
    /// A request per item, whose answer is judged instead of the list's item: a template over `account.*` and `item`.
    pub each: Option<String>,
    /// The longest duration of its calls, in seconds: compared with `longest_call_secs`.
    pub longest: Option<Selector>,
    /// Its telephone number, shown masked.
    pub number: Option<Selector>,
    /// The webhook that an item uses instead of the account's.
    pub in_use: Option<InUse>,
    /// What happens to calls of an item, told of each: the first that holds.
    #[serde(default, rename = "mode")]
    pub modes: Vec<ItemMode>,
    /// Settings that affect calls.
    #[serde(default, rename = "fault")]
    pub faults: Vec<Fault>,
    /// Bounds that are compared with the limits of the config.
    #[serde(default, rename = "bound")]
    pub bounds: Vec<ItemBound>,
}

/// A list of items at the provider that post to a URL: its webhooks, its numbers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hooks {
    /// The singular noun for an item.
    pub what: String,
    /// The request: a template over `account.*`.
    pub path: String,
    /// The list of items in the answer.
    pub items: Selector,
    /// How the next page is asked for.
    pub next: Option<NextPage>,
    /// The same list of accounts below this one. Only read by `ringfence doctor`.
    pub below: Option<Below>,
    /// The name that distinguishes an item.
    pub name: Selector,
    /// An item's id, for `in_use`.
    pub id: Option<Selector>,
    /// Which of the items the provider uses, where a setting of the account says so.
    pub in_use: Option<InUse>,
    /// Its telephone number, shown masked.
    pub number: Option<Selector>,
    /// Whether every item should post to ringfence. By default one is enough.
    #[serde(default)]
    pub every: bool,
    /// The request that sets parameters of an item, as a form, for `ringfence doctor --fix`: a template over `account.*` and `item`.
    pub change: Option<String>,
    /// The URL that the provider uses when an item's URLs are unreachable.
    pub fallback: Option<Fallback>,
    /// Settings that make the provider ignore an item's URLs.
    #[serde(default)]
    pub instead: Vec<Instead>,
    /// The URLs that an item posts to.
    #[serde(rename = "url")]
    pub urls: Vec<HookUrl>,
    /// States in which an item does not post.
    #[serde(default, rename = "fault")]
    pub faults: Vec<Fault>,
}

/// Accounts below an account, whose items are looked at as if they were its own.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Below {
    /// The request that lists the accounts: a template over `account.*`.
    pub path: String,
    /// The list of accounts in the answer.
    pub accounts: Selector,
    /// How the next page is asked for.
    pub next: Option<NextPage>,
    /// An account's id. The account itself may be in the list.
    pub id: Selector,
    /// The account's own id: a template over `account.*`.
    pub own: String,
    /// The request for the items of one account: a template over `account.*` and `item`, the account's id.
    pub each: String,
}

impl Below {
    /// An account's id.
    pub fn id_of(&self, account: &Value) -> Option<String> {
        read(account, |message| self.id.text(message).map(|id| id.into_owned()))
    }
}

/// The webhook that the provider uses, of those that exist: one that is not chosen receives nothing.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InUse {
    /// The request for the setting: a template over `account.*`. Without it the item itself has the setting.
    pub path: Option<String>,
    /// The id of the chosen webhook.
    pub at: Selector,
    /// The message where none is chosen. Without it that is in order.
    pub unset: Option<String>,
    /// The message where the chosen one does not lead here, with its id after it.
    pub other: String,
    /// The events that it is sent.
    pub events: Option<Selector>,
    /// The events that it needs.
    #[serde(default)]
    pub needs: Vec<String>,
    /// The message where events are missing, with their names after it.
    #[serde(default)]
    pub lacks: String,
    /// Why it matters.
    pub why: String,
    /// What to do about it.
    pub fix: String,
}

impl InUse {
    /// What is wrong in an answer with the setting; `ours`: the ids of the webhooks that lead here.
    pub fn judge(&self, answer: &Value, ours: &[String]) -> Option<Setting> {
        let says = read(answer, |message| match self.at.text(message).filter(|id| !id.is_empty()) {
            None => self.unset.clone(),
            Some(id) if !ours.iter().any(|one| *one == id) => Some(format!("{} {}", self.other, plain(&id))),
            Some(_) => {
                // Where the list is absent, the provider's default is not known here.
                let told = self.events.as_ref()?.list(message.body)?;
                let lacks = |event: &&String| !told.iter().any(|one| one.as_str() == Some(event));
                let missing: Vec<&str> = self.needs.iter().filter(lacks).map(String::as_str).collect();
                (!missing.is_empty()).then(|| format!("{} {}", self.lacks, missing.join(", ")))
            }
        })?;
        Some(Setting { says, why: Some(self.why.clone()), fix: Some(self.fix.clone()) })
    }
}

/// What happens to calls of an item.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ItemMode {
    /// When it applies.
    #[serde(default)]
    pub when: Predicate,
    /// The message for the operator.
    pub says: String,
}

/// A URL that the provider uses when an item's URLs are unreachable.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fallback {
    /// The URL in the item.
    pub at: Selector,
    /// The provider's name for the URL.
    pub called: String,
    /// The parameter that sets it.
    pub param: String,
    /// Why an item needs it.
    pub why: String,
    /// What to do where it is missing.
    pub fix: String,
}

impl Fallback {
    /// What is wrong with it, of an item: it is not set, or leads to ringfence itself, so that it is no help.
    pub(super) fn fault(&self, message: &Message<'_>, here: Here<'_>) -> Option<Setting> {
        let url = self.at.text(message).unwrap_or_default();
        let says = match url.trim() {
            "" => format!("has no {}", self.called),
            url if here.is_own(url) => format!("has a {} at ringfence's own host", self.called),
            _ => return None,
        };
        Some(Setting { says, why: Some(self.why.clone()), fix: Some(self.fix.clone()) })
    }
}

/// A setting that the provider uses instead of an item's URLs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instead {
    /// It applies if this value is present and not empty.
    pub at: Selector,
    /// The message for the operator.
    pub says: String,
}

/// A URL of an item.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookUrl {
    /// The URL in the item.
    pub at: Selector,
    /// The provider's name for the URL.
    pub called: String,
    /// The webhook of this description that it should point to.
    pub webhook: String,
    /// The path of that webhook that is shown to people.
    pub path: String,
    /// The consequence if the URL points elsewhere.
    pub without: String,
    /// The parameter that sets it, for `change`.
    pub param: Option<String>,
    /// It may be set where it is empty. Default: only its host is changed.
    #[serde(default)]
    pub if_empty: bool,
}

/// A state in which an item does not post, or not reliably.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// When it applies.
    pub when: Predicate,
    /// The message for the operator.
    pub says: String,
    /// A detail added to the message.
    pub detail: Option<Selector>,
    /// Since when, in Unix seconds.
    pub since: Option<Selector>,
    /// Why it matters.
    pub why: Option<String>,
    /// What to do about it.
    pub fix: Option<String>,
    /// Whether only `ringfence doctor` reports it.
    #[serde(default)]
    pub doctor: bool,
}

impl Fault {
    fn setting(&self, message: &Message<'_>) -> Setting {
        Setting { says: self.says(message), why: self.why.clone(), fix: self.fix.clone() }
    }

    /// The message about an item.
    fn says(&self, message: &Message<'_>) -> String {
        let detail = self.detail.as_ref().and_then(|d| d.text(message));
        let since = self.since.as_ref().and_then(|s| s.text(message)?.parse().ok());
        let since = since.and_then(|secs| jiff::Timestamp::from_second(secs).ok());
        self.says.clone()
            + &detail.map(|d| format!(" {}", plain(&d))).unwrap_or_default()
            + &since.map(|s| format!(", at {}", s.strftime("%Y-%m-%dT%H:%M:%SZ"))).unwrap_or_default()
    }
}

/// A problem with webhooks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// No item in the list posts to ringfence.
    NoneHere {
        /// The number of items.
        of: usize,
        /// The singular noun for an item.
        what: String,
        /// The path of ours that one posts to, which no webhook has, so that it is passed on unread.
        path: Option<String>,
        /// The webhook that it should be.
        webhook: String,
        /// The URL that one should post to.
        url: String,
        /// The consequence.
        without: String,
    },
    /// An item posts elsewhere.
    Elsewhere {
        /// The provider's name for the URL.
        called: String,
        /// The URL's state: `is empty`, `goes to example.com`.
        is: String,
        /// The path of ours that it points to, which no webhook has, so that it is passed on unread.
        path: Option<String>,
        /// The webhook that it should be.
        webhook: String,
        /// The URL that it should be.
        url: String,
        /// The consequence.
        without: String,
    },
    /// The provider ignores its URLs, or it does not post, or one of its settings affects calls.
    Fault(Setting),
}

/// The public URL of our webhooks, and their paths.
#[derive(Debug, Clone, Copy)]
pub struct Here<'a> {
    /// `public_url`.
    pub base: &'a Uri,
    /// The provider's webhooks.
    pub webhooks: &'a [Webhook],
    /// The provider's name.
    pub provider: &'a str,
    /// Additional paths by `provider.webhook`.
    pub extra_paths: &'a BTreeMap<String, Vec<String>>,
    /// Whether to report findings that only `ringfence doctor` reports.
    pub doctor: bool,
}

impl Here<'_> {
    /// The URL that an item should have.
    pub(super) fn url_of(&self, url: &HookUrl) -> String {
        format!("{}{}", self.base.to_string().trim_end_matches('/'), url.path)
    }

    /// Whether a URL leads to the host of `public_url`.
    pub fn is_own(&self, url: &str) -> bool {
        url.trim().parse::<Uri>().is_ok_and(|uri| self.has_host(&uri))
    }

    fn has_host(&self, uri: &Uri) -> bool {
        let host = uri.host().unwrap_or_default();
        host.eq_ignore_ascii_case(self.base.host().unwrap_or_default()) && port(uri) == port(self.base)
    }

    /// The state of a URL that is not the webhook's, and the path of ours that it points to; `None` if it is the webhook's.
    pub(super) fn misses(&self, url: &str, webhook: &str) -> Option<(String, Option<String>)> {
        if url.trim().is_empty() {
            return Some(("is empty".to_owned(), None));
        }
        let Ok(uri) = url.trim().parse::<Uri>() else { return Some(("is not a URL".to_owned(), None)) };
        let host = uri.host().unwrap_or_default();
        if !self.has_host(&uri) {
            return Some((format!("goes to {}", uri.authority().map_or(host, |a| a.as_str())), None));
        }
        let below = uri.path().strip_prefix(self.base.path().trim_end_matches('/')).unwrap_or(uri.path());
        let key = format!("{}.{webhook}", self.provider);
        let known =
            self.webhooks.iter().any(|w| w.name == webhook && w.paths.iter().any(|p| p.captures(below).is_some()))
                || self.extra_paths.get(&key).is_some_and(|paths| paths.iter().any(|p| p == below));
        let is = || format!("goes to {}, a path that is passed on to the app unread", uri.path());
        (!known).then(|| (is(), Some(plain(below))))
    }
}

fn port(uri: &Uri) -> u16 {
    uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 })
}

/// The URLs of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The name that distinguishes the item.
    pub name: String,
    /// Its URLs, in the order of the description.
    pub urls: Vec<Leads>,
}

/// One URL of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leads {
    /// The provider's name for the URL.
    pub called: String,
    /// Whether it points to ringfence.
    pub here: bool,
    /// Its state: `comes here`, `is empty`, `goes to example.com`.
    pub is: String,
}

/// The findings about one item.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judged {
    /// The name that distinguishes the item.
    pub name: String,
    /// Settings that affect calls.
    pub found: Vec<Setting>,
    /// The longest duration of its calls, in seconds.
    pub longest_secs: Option<u64>,
    /// What happens to its calls.
    pub mode: Option<String>,
}

impl Hooks {
    /// The ids of the items that post here.
    pub fn here(&self, items: &[Value], here: Here<'_>) -> Vec<String> {
        let id = |item: &Value| read(item, |message| self.id.as_ref()?.text(message).map(|id| id.into_owned()));
        let places = self.places(items, here);
        let posts = |(_, place): &(&Value, Place)| place.urls.iter().any(|url| url.here);
        items.iter().zip(places).filter(posts).filter_map(|(item, _)| id(item)).collect()
    }

    /// The problems of a list, each with the names of the items that have it.
    pub fn judge(&self, items: &[Value], here: Here<'_>) -> BTreeMap<Finding, Vec<String>> {
        let (mut found, mut any_here, mut unread) = (BTreeMap::<Finding, Vec<String>>::new(), false, None);
        for item in items {
            let (body, path, headers) = (Document::Json(item.clone()), BTreeMap::new(), HeaderMap::new());
            let message = Message { body: &body, query: &[], path: &path, headers: &headers };
            let mut add = |finding| found.entry(finding).or_default().push(self.name_of(&message));
            let used = |one: &&Instead| one.at.text(&message).is_some_and(|text| !text.is_empty());
            if let Some(instead) = self.instead.iter().find(used) {
                add(Finding::Fault(Setting { says: instead.says.clone(), why: None, fix: None }));
                continue;
            }
            let mut posts_here = false;
            for url in &self.urls {
                match here.misses(&url.at.text(&message).unwrap_or_default(), &url.webhook) {
                    None => posts_here = true,
                    Some((is, path)) if self.every => add(Finding::Elsewhere {
                        called: url.called.clone(),
                        is,
                        path,
                        webhook: url.webhook.clone(),
                        url: here.url_of(url),
                        without: url.without.clone(),
                    }),
                    Some((_, path)) => unread = unread.or(path),
                }
            }
            any_here |= posts_here;
            let told = |fault: &&Fault| (here.doctor || !fault.doctor) && fault.when.holds(&message);
            let fault = self.faults.iter().find(told).map(|fault| fault.setting(&message));
            let fallback = || self.fallback.as_ref().filter(|_| here.doctor)?.fault(&message, here);
            if let Some(setting) = posts_here.then(|| fault.or_else(fallback)).flatten() {
                add(Finding::Fault(setting));
            }
        }
        if let (false, false, Some(url)) = (self.every, any_here, self.urls.first()) {
            let finding = Finding::NoneHere {
                of: items.len(),
                what: self.what.clone(),
                path: unread,
                webhook: url.webhook.clone(),
                url: here.url_of(url),
                without: url.without.clone(),
            };
            found.insert(finding, vec![]);
        }
        found
    }

    /// The URLs of each item.
    pub fn places(&self, items: &[Value], here: Here<'_>) -> Vec<Place> {
        let place = |item: &Value| {
            let (body, path, headers) = (Document::Json(item.clone()), BTreeMap::new(), HeaderMap::new());
            let message = Message { body: &body, query: &[], path: &path, headers: &headers };
            let urls = self.urls.iter().map(|url| {
                let misses = here.misses(&url.at.text(&message).unwrap_or_default(), &url.webhook);
                let is = misses.as_ref().map_or("comes here".to_owned(), |(is, _)| is.clone());
                Leads { called: url.called.clone(), here: misses.is_none(), is }
            });
            Place { name: self.name_of(&message), urls: urls.collect() }
        };
        items.iter().map(place).collect()
    }

    /// An item's id, and what a person tells it from others by.
    pub(super) fn told_by(&self, item: &Value) -> Option<(String, String)> {
        read(item, |message| Some((self.name.text(message)?.into_owned(), self.name_of(message))))
    }

    /// The parameters that `change` sets.
    pub fn params(&self) -> Vec<&str> {
        let urls = self.urls.iter().filter_map(|url| url.param.as_deref());
        urls.chain(self.fallback.iter().map(|fallback| fallback.param.as_str())).collect()
    }

    fn name_of(&self, message: &Message<'_>) -> String {
        shown_name(&self.name, self.number.as_ref(), message)
    }
}

/// What a person tells an item from others by: its name, or its number and its name.
fn shown_name(name: &Selector, number: Option<&Selector>, message: &Message<'_>) -> String {
    let name = name.text(message).map(|n| plain(&n)).unwrap_or_default();
    match number.and_then(|n| n.text(message)) {
        Some(number) => format!("{} ({name})", mask_number(&number)),
        None => format!("\"{name}\""),
    }
}

impl Listed {
    /// An item's id.
    pub fn id_of(&self, item: &Value) -> Option<String> {
        read(item, |message| self.id.as_ref()?.text(message).map(|id| id.into_owned()))
    }

    /// The findings about one item. `ours`: the ids of the account's webhooks that lead here, where they are known.
    pub fn judge(&self, item: &Value, ours: Option<&[String]>) -> Judged {
        let judged = read(item, |message| {
            let faults = self.faults.iter().filter(|fault| fault.when.holds(message));
            let in_use = self.in_use.as_ref().zip(ours).and_then(|(in_use, ours)| in_use.judge(item, ours));
            let mode = self.modes.iter().find(|mode| mode.when.holds(message));
            Some(Judged {
                name: shown_name(&self.name, self.number.as_ref(), message),
                found: faults.map(|fault| fault.setting(message)).chain(in_use).collect(),
                longest_secs: self.longest.as_ref().and_then(|longest| longest.text(message)?.parse().ok()),
                mode: mode.map(|mode| mode.says.clone()),
            })
        });
        judged.unwrap_or_default()
    }

    /// The bounds of an item that are below what the config admits of it: at once, or within so many seconds.
    pub fn below(&self, item: &Value, admitted: impl Fn(&str, Option<u32>) -> Option<u64>) -> Vec<Setting> {
        let Some(id) = self.id_of(item) else { return vec![] };
        self.bounds.iter().filter_map(|bound| bound.judge(item, &id, |per_secs| admitted(&id, per_secs))).collect()
    }
}

/// A provider's text made safe for a terminal: one line, of bounded length.
pub fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::Registry;
    use serde_json::json;

    fn judged(provider: &str, base: &str, items: &[Value]) -> Vec<(Finding, Vec<String>)> {
        let registry = Registry::new(&[]).unwrap();
        let description = registry.get(provider).unwrap();
        let base: Uri = base.parse().unwrap();
        let extra = BTreeMap::from([("twilio.voice".to_owned(), vec!["/ours/voice".to_owned()])]);
        let here = Here { base: &base, webhooks: &description.webhooks, provider, extra_paths: &extra, doctor: true };
        description.check.as_ref().unwrap().hooks[0].judge(items, here).into_iter().collect()
    }

    fn number(voice: &str, status: &str) -> Value {
        json!({"sid": "PN1", "phone_number": "+15550001111", "voice_url": voice, "status_callback": status,
               "voice_application_sid": "", "trunk_sid": null, "voice_fallback_url": "https://app.example.com/busy"})
    }

    #[test]
    fn a_number_is_right_on_any_path_of_ours_and_wrong_elsewhere() {
        let status = "https://h.example.com/webhooks/twilio/status";
        let table = [
            ("https://h.example.com/webhooks/twilio/voice", status, vec![]),
            ("https://H.example.com:443/twilio/voice#rc=3", status, vec![]),
            ("https://h.example.com/ours/voice?x=1", status, vec![]),
            ("https://demo.twilio.com/welcome", status, vec!["goes to demo.twilio.com"]),
            ("https://h.example.com:8443/twilio/voice", status, vec!["goes to h.example.com:8443"]),
            ("", "", vec!["is empty", "is empty"]),
            ("https://h.example.com/mine", status, vec!["goes to /mine, a path that is passed on to the app unread"]),
        ];
        for (voice, status, expected) in table {
            let found = judged("twilio", "https://h.example.com", &[number(voice, status)]);
            let what: Vec<&str> = found
                .iter()
                .map(|(finding, names)| match finding {
                    Finding::Elsewhere { is, path, .. } => {
                        assert_eq!(path.is_some(), is.contains("unread"), "what is offered to be added");
                        assert_eq!(names, &["+155••••••11 (PN1)"]);
                        is.as_str()
                    }
                    other => panic!("{voice}: {other:?}"),
                })
                .collect();
            assert_eq!(what, expected, "{voice}, {status}");
        }
        let below = number("https://h.example.com/rf/twilio/voice", "https://h.example.com/rf/twilio/status");
        assert_eq!(judged("twilio", "https://h.example.com/rf/", &[below]), vec![]);
    }

    #[test]
    fn a_number_without_a_fallback_is_told_of_by_doctor() {
        let mut without = number("https://h.example.com/twilio/voice", "https://h.example.com/twilio/status");
        for empty in [json!(""), Value::Null, json!("https://h.example.com/busy.xml")] {
            without["voice_fallback_url"] = empty;
            let found = judged("twilio", "https://h.example.com", std::slice::from_ref(&without));
            let [(Finding::Fault(Setting { says, why: Some(_), fix: Some(_) }), _)] = &found[..] else {
                panic!("{found:?}")
            };
            assert!(says.contains("VoiceFallbackUrl"), "{says}");
        }
    }

    #[test]
    fn an_agent_that_may_burst_is_found() {
        let registry = Registry::new(&[]).unwrap();
        let agents = &registry.get("elevenlabs").unwrap().check.as_ref().unwrap().lists[0];
        let agent = |bursting: Value, queueing: Value| {
            json!({"agent_id": "agent_1", "name": "Front desk",
                "conversation_config": {"conversation": {"max_duration_seconds": 600}},
                "platform_settings": {"call_limits": {"bursting_enabled": bursting}, "queueing_config": {"enabled": queueing}}})
        };
        assert_eq!(agents.id_of(&agent(json!(true), json!(false))).as_deref(), Some("agent_1"));
        let Judged { name, found, longest_secs, .. } = agents.judge(&agent(json!(true), json!(true)), None);
        assert_eq!((name.as_str(), found.len(), longest_secs), ("\"Front desk\"", 2, Some(600)), "{found:?}");
        assert!(found[0].says.contains("burst") && found[1].says.contains("queue"), "{found:?}");
        assert_eq!(agents.judge(&agent(json!(false), json!(false)), None).found, []);
    }

    /// A webhook with our URL that nobody uses is no webhook.
    #[test]
    fn the_webhook_that_agents_use_has_to_be_ours_and_to_have_transcripts() {
        let registry = Registry::new(&[]).unwrap();
        let check = registry.get("elevenlabs").unwrap().check.as_ref().unwrap();
        let (hooks, agents) = (&check.hooks[0], &check.lists[0]);
        let base: Uri = "https://h.example.com".parse().unwrap();
        let description = registry.get("elevenlabs").unwrap();
        let extra = BTreeMap::new();
        let here = Here {
            base: &base,
            webhooks: &description.webhooks,
            provider: "elevenlabs",
            extra_paths: &extra,
            doctor: true,
        };
        let hook = |id: &str, url: &str| json!({"webhook_id": id, "webhook_url": url, "is_disabled": false});
        let items =
            [hook("wh_crm", "https://crm.example.com/x"), hook("wh_1", "https://h.example.com/webhooks/elevenlabs")];
        let ours = hooks.here(&items, here);
        assert_eq!(ours, ["wh_1"]);
        let in_use = hooks.in_use.as_ref().unwrap();
        let workspace = |id: Value, events: Value| json!({"webhooks": {"post_call_webhook_id": id, "events": events}});
        let both = json!(["transcript", "call_initiation_failure"]);
        let table = [
            (workspace(json!("wh_1"), both.clone()), None),
            (workspace(json!("wh_1"), Value::Null), None),
            (workspace(json!("wh_crm"), both.clone()), Some("wh_crm")),
            (workspace(Value::Null, both.clone()), Some("no post-call webhook")),
            (json!({}), Some("no post-call webhook")),
            (workspace(json!("wh_1"), json!(["audio", "call_initiation_failure"])), Some("lack transcript")),
            (workspace(json!("wh_1"), json!([])), Some("lack transcript, call_initiation_failure")),
        ];
        for (settings, expected) in table {
            let found = in_use.judge(&settings, &ours);
            assert_eq!(found.is_some(), expected.is_some(), "{settings}: {found:?}");
            assert!(found.is_none_or(|one| one.says.contains(expected.unwrap()) && one.fix.is_some()), "{settings}");
        }
        // An agent may have another one.
        let agent =
            |overrides: Value| json!({"name": "Front desk", "platform_settings": {"workspace_overrides": overrides}});
        let found = |overrides: Value| agents.judge(&agent(overrides), Some(&ours)).found;
        assert_eq!(found(Value::Null), []);
        assert_eq!(found(workspace(Value::Null, Value::Null)), []);
        assert_eq!(found(workspace(json!("wh_1"), both)), []);
        assert!(found(workspace(json!("wh_crm"), Value::Null))[0].says.contains("wh_crm"));
        assert!(found(workspace(json!("wh_1"), json!(["audio"])))[0].says.contains("transcript"));
        assert_eq!(agents.judge(&agent(workspace(json!("wh_crm"), Value::Null)), None).found, [], "nothing is known");
    }

    #[test]
    fn each_number_of_elevenlabs_has_its_mode() {
        let registry = Registry::new(&[]).unwrap();
        let numbers = &registry.get("elevenlabs").unwrap().check.as_ref().unwrap().lists[1];
        let number = |agent: Value| json!({"phone_number": "+15550001111", "phone_number_id": "phnum_1", "assigned_agent": agent});
        let native = numbers.judge(&number(json!({"agent_id": "agent_1", "agent_name": "Front desk"})), None);
        assert_eq!(native.name, "+155••••••11 (phnum_1)");
        assert!(native.mode.unwrap().starts_with("native: "));
        assert!(numbers.judge(&number(Value::Null), None).mode.unwrap().contains("no agent"));
    }

    #[test]
    fn a_number_with_an_application_is_told_apart() {
        let mut with = number("https://h.example.com/twilio/voice", "");
        with["voice_application_sid"] = json!("AP1");
        let found = judged("twilio", "https://h.example.com", &[with]);
        assert!(
            matches!(&found[..], [(Finding::Fault(Setting { says, .. }), _)] if says.contains("TwiML application")),
            "{found:?}"
        );
    }

    #[test]
    fn one_webhook_of_a_workspace_has_to_come_here_and_work() {
        let hook = |url: &str, disabled: bool, failed: Value| {
            json!({"name": "calls", "webhook_url": url, "is_disabled": false, "is_auto_disabled": disabled,
                   "most_recent_failure_error_code": failed, "most_recent_failure_timestamp": 1_760_000_000})
        };
        let judged = |items: &[Value]| judged("elevenlabs", "https://h.example.com", items);
        let (ours, other) = ("https://h.example.com/webhooks/elevenlabs", "https://crm.example.com/x");
        assert_eq!(judged(&[hook(ours, false, Value::Null), hook(other, true, json!(500))]), vec![]);
        assert!(matches!(&judged(&[])[..], [(Finding::NoneHere { of: 0, .. }, _)]));
        assert!(matches!(&judged(&[hook(other, false, Value::Null)])[..], [(Finding::NoneHere { of: 1, .. }, _)]));
        for (disabled, failed, expected) in
            [(true, json!(500), "switched off"), (false, json!(401), "401, at 2025-10-09T08:53:20Z")]
        {
            let found = judged(&[hook(ours, disabled, failed)]);
            assert!(
                matches!(&found[..], [(Finding::Fault(Setting { says, .. }), _)] if says.contains(expected)),
                "{found:?}"
            );
        }
    }
}
