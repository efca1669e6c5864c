//! Requests that create calls, the answers that refuse them, and the shape of ours.

use std::collections::BTreeMap;

use http::Method;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::super::path::PathPattern;
use super::super::select::{Message, Predicate, Selector};
use super::{FactSelectors, FixedAnswer, IdSelectors, StateWord};
use crate::call::Direction;
use crate::ids::Alias;

/// A request that creates a call.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operation {
    /// Its name in call records, limits and metrics.
    pub name: String,
    /// Its method.
    #[serde(deserialize_with = "method")]
    pub method: Method,
    /// Its path.
    pub path: PathPattern,
    /// What else must hold of the request.
    #[serde(default)]
    pub when: Predicate,
    /// Which side places the call.
    pub direction: Direction,
    /// The call's phase once the provider has answered.
    pub phase: StateWord,
    /// It may join a call that is already open: the one open call of the same business and numbers that has no id of
    /// the kinds in `ids` yet.
    #[serde(default)]
    pub join: bool,
    /// The account's carrier carries the call, so the carrier's limits bind it too.
    #[serde(default)]
    pub carried: bool,
    /// What limits and rules can match.
    #[serde(default)]
    pub facts: FactSelectors,
    /// When an answer means that there is a call.
    pub success: Success,
    /// Ids that the app itself gives the call, in its request.
    #[serde(default)]
    pub own_ids: IdSelectors,
    /// The ids that the answer brings.
    #[serde(default)]
    pub ids: IdSelectors,
    /// The answer to a duplicate create whose original answer is no longer kept: a template over the call's ids and facts and
    /// `account.*`. An unknown value is `null`.
    pub answer: Option<FixedAnswer>,
    /// Values put into a JSON body, so that the call can be found again.
    #[serde(default)]
    pub inject: Vec<Inject>,
    /// How a bulk run makes it.
    pub dial: Option<Dial>,
    /// The status callback that ringfence takes over.
    pub callback: Option<Callback>,
    /// The destination is written with its country code, but without a plus.
    #[serde(default)]
    pub international: bool,
    /// The request makes several calls: how many at once.
    pub slots: Option<SlotsRule>,
    /// The request continues the batch that its path names by an id of this kind, such as a retry.
    pub again: Option<String>,
}

/// How many concurrent calls a request may make.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotsRule {
    /// The concurrency that the app asks for.
    pub at_most: Option<Selector>,
    /// The list of recipients: each has one call at most.
    pub items: Selector,
    /// Where a smaller granted number is written: a JSON pointer. Without it, all slots are granted or none.
    pub cut: Option<String>,
    /// Names of fields of an item, the first of which that is there says whom it calls.
    #[serde(default)]
    pub destination: Vec<String>,
}

impl SlotsRule {
    /// Whom a request calls, item by item; `None` stands for an item that does not say it in a way that is known.
    pub fn destinations<'m>(&self, message: &Message<'m>) -> Vec<Option<&'m str>> {
        let items = self.items.list(message.body).map(Vec::as_slice).unwrap_or_default();
        let named = |item: &'m Value| self.destination.iter().find_map(|field| item.get(field)?.as_str());
        items.iter().map(named).collect()
    }

    /// How many; at least 1. `None`: the request does not say, or cannot be understood.
    pub fn wanted(&self, message: &Message<'_>) -> Option<u32> {
        let items = self.items.list(message.body).map(|list| u32::try_from(list.len()).unwrap_or(u32::MAX));
        let at_most = match &self.at_most {
            // A number that is none must not be read as "no limit".
            Some(number) if number.exists(message) => Some(number.text(message)?.parse().ok()?),
            _ => None,
        };
        items.into_iter().chain(at_most).min().map(|n| n.max(1))
    }
}

/// How a response shows that a request without an operation has placed a call.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unfenced {
    /// Ids of the call, by kind.
    ids: IdSelectors,
    /// What an id of a kind begins with. Default: anything.
    #[serde(default)]
    prefixes: BTreeMap<String, String>,
    /// Paths whose 201 means a call even where the answer names none.
    #[serde(default)]
    paths: Vec<PathPattern>,
}

impl Unfenced {
    /// The ids that an answer names.
    pub fn read(&self, message: &Message<'_>) -> Vec<Alias> {
        let mut ids = self.ids.read(message);
        ids.retain(|id| self.prefixes.get(&id.kind).is_none_or(|prefix| id.id.starts_with(prefix)));
        ids
    }

    /// Whether something that is made below this path is a call.
    pub fn makes_a_call(&self, path: &str) -> bool {
        self.paths.iter().any(|one| one.fits_any_case(path))
    }
}

/// How a bulk run makes a request of an operation.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dial {
    /// Its path, a template over `account.*`.
    pub path: String,
    /// The field of the body that has the number to be called.
    pub to: String,
    /// The field that has our number, or its id.
    pub from: String,
    /// The body is a form; else it is JSON.
    #[serde(default)]
    pub form: bool,
}

/// When an answer means that there is a call.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Success {
    /// Statuses.
    pub status: Vec<u16>,
    /// Except when this holds of the answer's body.
    #[serde(default)]
    pub unless: Predicate,
}

/// A value put into a JSON body.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inject {
    /// A JSON pointer. Missing objects on the way are created.
    pub at: String,
    /// A template over `call_id`.
    pub value: String,
}

/// A callback URL inside a form body.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Callback {
    /// The field with the URL.
    pub field: String,
    /// The field with the method.
    pub method_field: String,
    /// The field with the events, repeated.
    pub events_field: String,
    /// Every event.
    pub events: Vec<String>,
    /// When the provider would ignore it.
    #[serde(default)]
    pub unless: Predicate,
}

/// An answer that means that a limit of the provider is full. Creates with such an answer become 503.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitAnswer {
    /// The status.
    pub status: u16,
    /// What else must hold.
    #[serde(default)]
    pub when: Predicate,
    /// Which limit.
    pub class: LimitClass,
    /// `Retry-After` in seconds where the provider names none.
    pub wait_secs: u32,
}

/// Which limit of a provider is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitClass {
    /// Concurrent calls of the account.
    Concurrency,
    /// Requests per interval of the account.
    Rate,
    /// The provider's own load.
    Busy,
}

impl LimitClass {
    /// The label in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            LimitClass::Concurrency => "concurrency",
            LimitClass::Rate => "rate",
            LimitClass::Busy => "busy",
        }
    }
}

/// The shape of ringfence's own answers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefusalShape {
    /// The `error` code for a 429 of the provider.
    pub provider_429_code: String,
    /// The status for "the call may exist": one that the provider's SDKs do not retry.
    pub unknown_status: u16,
    /// A request header that marks an SDK which sleeps on `Retry-After` inside the app's request.
    pub sdk_sleeps_header: Option<String>,
    /// The content type.
    pub content_type: String,
    /// The provider's own words for `concurrency`, `rate`, `denied`, `invalid` and `unavailable`: values for `body`.
    pub words: BTreeMap<String, BTreeMap<String, Value>>,
    /// The body: a template over `words` and ringfence's own fields, which are added where it does not have them.
    pub body: Value,
}

pub(super) fn method<'de, D: Deserializer<'de>>(d: D) -> Result<Method, D::Error> {
    String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
}
