//! The questions that `ringfence check --live` and `ringfence doctor` ask a provider, as data, and the findings about webhooks and
//! settings in its answers. Pure; none of the requests changes anything.

mod hooks;
#[cfg(test)]
mod tests;

use serde::Deserialize;
use serde_json::Value;

use super::description::NextPage;
use super::item_bound::ItemBound;
use super::select::{Predicate, Selector};
pub use super::setting::{Fault, InUse, Setting, plain};
use super::setting::{read, shown_name};
pub use hooks::{Below, Fallback, Finding, HookUrl, Hooks, ItemUrl, ItemUrls, Override, OwnWebhooks};

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
    /// The condition under which the answer means that the account is usable.
    #[serde(default)]
    pub usable: Predicate,
    /// The provider's name of the account's state.
    pub state: Option<Selector>,
    /// Lists of items that post webhooks: the webhooks themselves, numbers.
    #[serde(default, rename = "hook")]
    pub hooks: Vec<Hooks>,
    /// Lists of items with settings that affect calls, such as agents. Only read by `ringfence doctor`.
    #[serde(default, rename = "list")]
    pub lists: Vec<ItemList>,
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
pub struct ItemList {
    /// The singular noun for an item.
    pub what: String,
    /// The request: a template over `account.*`.
    pub path: String,
    /// The list of items in the answer.
    pub items: Selector,
    /// The request for the next page.
    pub next: Option<NextPage>,
    /// The name that distinguishes an item.
    pub name: Selector,
    /// An item's id, for `each`.
    pub id: Option<Selector>,
    /// A request per item, whose answer is checked instead of the list's item: a template over `account.*` and `item`.
    pub each: Option<String>,
    /// The longest duration of its calls, in seconds: compared with `longest_call_secs`.
    pub longest: Option<Selector>,
    /// The item's telephone number, shown masked.
    pub number: Option<Selector>,
    /// The webhook that an item uses instead of the account's.
    pub in_use: Option<InUse>,
    /// Modes of an item's calls, told of each item: the first that holds.
    #[serde(default, rename = "mode")]
    pub modes: Vec<ItemMode>,
    /// Settings that affect calls.
    #[serde(default, rename = "fault")]
    pub faults: Vec<Fault>,
    /// Bounds that are compared with the limits of the config.
    #[serde(default, rename = "bound")]
    pub bounds: Vec<ItemBound>,
}

/// A mode of an item: what happens to its calls.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ItemMode {
    /// The condition under which it applies.
    #[serde(default)]
    pub when: Predicate,
    /// The message for the operator.
    pub says: String,
}

/// The findings about one item.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ItemFindings {
    /// The name that distinguishes the item.
    pub name: String,
    /// Settings that affect calls.
    pub found: Vec<Setting>,
    /// The longest duration of its calls, in seconds.
    pub longest_secs: Option<u64>,
    /// The mode of the item's calls.
    pub mode: Option<String>,
}

impl ItemList {
    /// An item's id.
    pub fn id_of(&self, item: &Value) -> Option<String> {
        read(item, |message| self.id.as_ref()?.text(message).map(|id| id.into_owned()))
    }

    /// The findings about one item. `ours`: the ids of the account's webhooks that lead here, where they are known.
    pub fn findings(&self, item: &Value, ours: Option<&[String]>) -> ItemFindings {
        let findings = read(item, |message| {
            let faults = self.faults.iter().filter(|fault| fault.when.holds(message));
            let in_use = self.in_use.as_ref().zip(ours).and_then(|(in_use, ours)| in_use.fault(item, ours));
            let mode = self.modes.iter().find(|mode| mode.when.holds(message));
            Some(ItemFindings {
                name: shown_name(&self.name, self.number.as_ref(), message),
                found: faults.map(|fault| fault.setting(message)).chain(in_use).collect(),
                longest_secs: self.longest.as_ref().and_then(|longest| longest.text(message)?.parse().ok()),
                mode: mode.map(|mode| mode.says.clone()),
            })
        });
        findings.unwrap_or_default()
    }

    /// The bounds of an item that are below what the config admits of it: at once, or within so many seconds.
    pub fn below(&self, item: &Value, admitted: impl Fn(&str, Option<u32>) -> Option<u64>) -> Vec<Setting> {
        let Some(id) = self.id_of(item) else { return vec![] };
        self.bounds.iter().filter_map(|bound| bound.fault(item, &id, |per_secs| admitted(&id, per_secs))).collect()
    }
}
