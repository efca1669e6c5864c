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
    /// Its name in records, limits and metrics.
    pub name: String,
    /// Its method.
    #[serde(deserialize_with = "method")]
    pub method: Method,
    /// Its path.
    pub path: PathPattern,
    /// What else must hold.
    #[serde(default)]
    pub when: Predicate,
    /// Which side places the call.
    pub direction: Direction,
    /// Where the call stands once the provider has answered.
    pub phase: StateWord,
    /// It may belong to a call that is open already: the one open call of the same business and numbers that has no id of
    /// the kinds that the answer brings.
    #[serde(default)]
    pub join: bool,
    /// The account's carrier carries the call.
    #[serde(default)]
    pub carried: bool,
    /// What policy selects by.
    #[serde(default)]
    pub facts: FactSelectors,
    /// When an answer means that there is a call.
    pub success: Success,
    /// Ids that the app gives the call itself, in its request.
    #[serde(default)]
    pub own_ids: IdSelectors,
    /// The ids that the answer brings.
    #[serde(default)]
    pub ids: IdSelectors,
    /// The provider's answer to a create as it can be made from the call's record, for an order that is sent again after its
    /// own answer is gone: a template over the call's ids and facts and `account.*`. A value that is not known is `null`.
    pub answer: Option<FixedAnswer>,
    /// Values put into a JSON body, so that the call can be found again.
    #[serde(default)]
    pub inject: Vec<Inject>,
    /// The callback that ringfence takes over.
    pub callback: Option<Callback>,
    /// It makes many calls, as many at once as the request says.
    pub slots: Option<SlotsRule>,
    /// It makes the calls of an order for many that the path names, by an id of this kind: a batch's retry.
    pub again: Option<String>,
}

/// How many calls at once a request may make.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotsRule {
    /// The number that the app asks for.
    pub at_most: Option<Selector>,
    /// Those who will be called: more than one call each at once there is not.
    pub items: Selector,
    /// Where the number that is granted is written if it is less, a JSON pointer. None: all or nothing.
    pub cut: Option<String>,
}

impl SlotsRule {
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

/// What in an answer shows that a request has made a call which no operation knows.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unfenced {
    /// Ids of the call, by kind.
    ids: IdSelectors,
    /// What an id of a kind begins with; any text, where nothing is said.
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

/// When an answer means that there is a call.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Success {
    /// Statuses.
    pub status: Vec<u16>,
    /// Unless this holds of the answer's body.
    #[serde(default)]
    pub unless: Predicate,
}

/// A value put into a JSON body.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inject {
    /// A JSON pointer; objects on the way are made.
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
    /// Where it would be ignored.
    #[serde(default)]
    pub unless: Predicate,
}

/// An answer that says that a limit of the provider is full.
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
    /// Seconds to wait where the provider names none.
    pub wait_secs: u32,
}

/// Which limit of a provider is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitClass {
    /// The account's calls at once.
    Concurrency,
    /// The account's requests in a time.
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

/// The shape of our answers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefusalShape {
    /// The code where the provider said 429.
    pub provider_429_code: String,
    /// The status for "may have been created": one that the provider's SDKs do not repeat.
    pub unknown_status: u16,
    /// A header that shows an SDK which sleeps on `Retry-After` inside the app's request.
    pub sdk_sleeps_header: Option<String>,
    /// The content type.
    pub content_type: String,
    /// The provider's own words by what happened.
    pub words: BTreeMap<String, BTreeMap<String, Value>>,
    /// The body; `{name}` stands for a value. The fields of the contract are merged into it.
    pub body: Value,
}

pub(super) fn method<'de, D: Deserializer<'de>>(d: D) -> Result<Method, D::Error> {
    String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
}
