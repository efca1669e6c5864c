//! Lists of items at a provider that post to URLs, its webhooks and numbers: what is wrong with them. Pure.

use std::collections::BTreeMap;

use http::{HeaderMap, Uri};
use serde::Deserialize;
use serde_json::Value;

use crate::provider::description::{NextPage, Webhook};
use crate::provider::select::{Document, Message, Selector};
use crate::provider::setting::{Fault, InUse, Setting, plain, read, shown_name};

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
    /// The request for the next page.
    pub next: Option<NextPage>,
    /// The same list of accounts below this one. Only read by `ringfence doctor`.
    pub below: Option<Below>,
    /// The name that distinguishes an item.
    pub name: Selector,
    /// An item's id, for `in_use`.
    pub id: Option<Selector>,
    /// The setting of the account that says which of the items the provider uses, where there is one.
    pub in_use: Option<InUse>,
    /// The item's telephone number, shown masked.
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
    pub instead: Vec<Override>,
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
    /// The request for the next page.
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
    /// The reason why an item needs it.
    pub why: String,
    /// The advice to the operator where the fallback is missing.
    pub fix: String,
}

impl Fallback {
    /// Returns the fault of an item's fallback: it is not set, or leads to ringfence itself, so that it is no help.
    pub(in crate::provider) fn fault(&self, message: &Message<'_>, here: OwnWebhooks<'_>) -> Option<Setting> {
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
pub struct Override {
    /// The setting's value: the setting applies if the value is present and not empty.
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
    /// Whether the URL may be set where it is empty. Default: only its host is changed.
    #[serde(default)]
    pub if_empty: bool,
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
pub struct OwnWebhooks<'a> {
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

/// A URL that is not that of the webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::provider) struct WrongUrl {
    /// The state of the URL: `is empty`, `goes to example.com`.
    pub(in crate::provider) is: String,
    /// The path at our host that it points to.
    pub(in crate::provider) path: Option<String>,
}

impl OwnWebhooks<'_> {
    /// The URL that an item should have.
    pub(in crate::provider) fn url_of(&self, url: &HookUrl) -> String {
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

    /// The fault of a URL; `None` if it leads to this webhook.
    pub(in crate::provider) fn wrong_url(&self, url: &str, webhook: &str) -> Option<WrongUrl> {
        if url.trim().is_empty() {
            return Some(WrongUrl { is: "is empty".to_owned(), path: None });
        }
        let Ok(uri) = url.trim().parse::<Uri>() else {
            return Some(WrongUrl { is: "is not a URL".to_owned(), path: None });
        };
        let host = uri.host().unwrap_or_default();
        if !self.has_host(&uri) {
            return Some(WrongUrl {
                is: format!("goes to {}", uri.authority().map_or(host, |a| a.as_str())),
                path: None,
            });
        }
        let below = uri.path().strip_prefix(self.base.path().trim_end_matches('/')).unwrap_or(uri.path());
        let key = format!("{}.{webhook}", self.provider);
        let known =
            self.webhooks.iter().any(|w| w.name == webhook && w.paths.iter().any(|p| p.captures(below).is_some()))
                || self.extra_paths.get(&key).is_some_and(|paths| paths.iter().any(|p| p == below));
        let is = || format!("goes to {}, a path that is passed on to the app unread", uri.path());
        (!known).then(|| WrongUrl { is: is(), path: Some(plain(below)) })
    }
}

fn port(uri: &Uri) -> u16 {
    uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 })
}

/// The URLs of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemUrls {
    /// The name that distinguishes the item.
    pub name: String,
    /// The item's URLs, in the order of the description.
    pub urls: Vec<ItemUrl>,
}

/// One URL of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemUrl {
    /// The provider's name for the URL.
    pub called: String,
    /// Whether it points to ringfence.
    pub here: bool,
    /// The URL's state: `comes here`, `is empty`, `goes to example.com`.
    pub is: String,
}

impl Hooks {
    /// The ids of the items that post here.
    pub fn ids_posting_here(&self, items: &[Value], here: OwnWebhooks<'_>) -> Vec<String> {
        let id = |item: &Value| read(item, |message| self.id.as_ref()?.text(message).map(|id| id.into_owned()));
        let places = self.places(items, here);
        let posts = |(_, place): &(&Value, ItemUrls)| place.urls.iter().any(|url| url.here);
        items.iter().zip(places).filter(posts).filter_map(|(item, _)| id(item)).collect()
    }

    /// The problems of a list, each with the names of the items that have it.
    pub fn findings(&self, items: &[Value], here: OwnWebhooks<'_>) -> BTreeMap<Finding, Vec<String>> {
        let (mut found, mut any_here, mut unread) = (BTreeMap::<Finding, Vec<String>>::new(), false, None);
        for item in items {
            let (body, headers) = (Document::Json(item.clone()), HeaderMap::new());
            let message = Message::new(&body, &headers);
            let mut add = |finding| found.entry(finding).or_default().push(self.name_of(&message));
            let used = |one: &&Override| one.at.text(&message).is_some_and(|text| !text.is_empty());
            if let Some(instead) = self.instead.iter().find(used) {
                add(Finding::Fault(Setting { says: instead.says.clone(), why: None, fix: None }));
                continue;
            }
            let mut posts_here = false;
            for url in &self.urls {
                match here.wrong_url(&url.at.text(&message).unwrap_or_default(), &url.webhook) {
                    None => posts_here = true,
                    Some(WrongUrl { is, path }) if self.every => add(Finding::Elsewhere {
                        called: url.called.clone(),
                        is,
                        path,
                        webhook: url.webhook.clone(),
                        url: here.url_of(url),
                        without: url.without.clone(),
                    }),
                    Some(WrongUrl { path, .. }) => unread = unread.or(path),
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
    pub fn places(&self, items: &[Value], here: OwnWebhooks<'_>) -> Vec<ItemUrls> {
        let place = |message: &Message<'_>| {
            let urls = self.urls.iter().map(|url| {
                let wrong_url = here.wrong_url(&url.at.text(message).unwrap_or_default(), &url.webhook);
                let is = wrong_url.as_ref().map_or("comes here".to_owned(), |wrong| wrong.is.clone());
                ItemUrl { called: url.called.clone(), here: wrong_url.is_none(), is }
            });
            ItemUrls { name: self.name_of(message), urls: urls.collect() }
        };
        items.iter().filter_map(|item| read(item, |message| Some(place(message)))).collect()
    }

    /// An item's id, and what a person tells it from others by.
    pub(in crate::provider) fn id_and_name(&self, item: &Value) -> Option<(String, String)> {
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
