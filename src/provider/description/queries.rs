//! Requests that ringfence itself sends to a provider: look-ups, lists and hang-ups.

use std::collections::BTreeMap;

use http::Method;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::super::select::{Predicate, Selector};
use super::operation::method;
use super::{AttributeSelectors, DirectionWord, IdSelectors, PostCallRules, StateWord};

/// The look-up of one call.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lookup {
    /// The alias kind that it needs.
    pub needs: String,
    /// The path, a template over aliases and `account.*`.
    pub path: String,
    /// The call's state.
    pub state: StateWord,
    /// Further ids of the call in the answer.
    #[serde(default)]
    pub ids: IdSelectors,
    /// The attributes that limits and rules match.
    #[serde(default)]
    pub attributes: AttributeSelectors,
    /// The side that placed the call. Default: outbound.
    pub direction: Option<DirectionWord>,
    /// The condition under which the answer is about a telephone call. Other calls take no slot.
    #[serde(default)]
    pub phone: Predicate,
    /// The condition under which the answer is not about a call of its own, but for instance about a leg of another call.
    #[serde(default)]
    pub skip: Predicate,
    /// Statuses that mean "no such call".
    pub absent: Vec<u16>,
    /// The batch or campaign of the call: ids of the kinds that groups need.
    #[serde(default)]
    pub member_of: IdSelectors,
    /// The post-call record in the answer.
    pub record: Option<PostCallRules>,
}

/// The look-up of a batch or campaign.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// The alias kind that it needs.
    pub needs: String,
    /// The path, a template over aliases and `account.*`.
    pub path: String,
    /// The state: `live` while it may make calls, an outcome once it makes no more.
    pub state: StateWord,
    /// Bounds of its concurrent calls, of which the smallest applies.
    #[serde(default)]
    pub slots: Vec<Selector>,
    /// Statuses that mean "no such batch".
    pub absent: Vec<u16>,
    /// The search for a batch whose submit lost its answer.
    pub find: Option<List>,
}

/// A list of calls.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    /// The requests that together return the list: templates over `account.*`.
    #[serde(default)]
    pub paths: Vec<String>,
    /// For a search, instead of `paths`: a template over the call's attributes and `call_id`.
    #[serde(default)]
    pub path: Option<String>,
    /// The list of items in the answer.
    pub items: Selector,
    /// The id of an item.
    pub id: ItemId,
    /// Items that are not calls of their own.
    #[serde(default)]
    pub skip: Predicate,
    /// The item's state.
    pub state: StateWord,
    /// The attributes that limits and rules match.
    #[serde(default)]
    pub attributes: AttributeSelectors,
    /// The side that placed the call.
    pub direction: Option<DirectionWord>,
    /// The time at which the item was created: RFC 2822, or seconds since 1970.
    pub created_at: Option<Selector>,
    /// The next page.
    pub next: Option<NextPage>,
}

/// The id of an item in a list.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ItemId {
    /// The id's alias kind.
    pub kind: String,
    /// The id in the item.
    pub from: Selector,
}

/// The next page of a list.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum NextPage {
    /// A cursor, put into the query.
    Cursor {
        /// The cursor in the answer.
        cursor: Selector,
        /// The query parameter.
        param: String,
    },
    /// A path and query.
    Uri {
        /// The path and query in the answer.
        uri: Selector,
    },
}

/// The number of live calls.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Count {
    /// The path, a template over `account.*`.
    pub path: String,
    /// The number in the answer.
    pub value: Selector,
}

/// A hang-up method.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HangUpMethod {
    /// The alias kind that it needs.
    pub needs: String,
    /// A hang-up method of the carrier's account, used instead of a request here.
    pub carrier: Option<String>,
    /// A WebSocket to open: a path template.
    pub socket: Option<String>,
    /// The text frame to send on it.
    #[serde(default)]
    pub send: String,
    /// The request's method.
    #[serde(default, deserialize_with = "method_option")]
    pub method: Option<Method>,
    /// The request's path, a template.
    #[serde(default)]
    pub path: String,
    /// The request's form.
    #[serde(default)]
    pub form: BTreeMap<String, String>,
    /// Statuses that mean success.
    #[serde(default)]
    pub ok: Vec<u16>,
    /// The condition under which an answer means that the call had already ended.
    #[serde(default)]
    pub over: Predicate,
    /// Whether it also deletes the provider's record of the call, so that a later "no such call" proves nothing.
    #[serde(default)]
    pub deletes_record: bool,
}

/// The request whose answer connects an inbound call.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Front {
    /// The path.
    pub path: String,
    /// The JSON body, a template over the call's attributes and `call_id`.
    pub body: Value,
    /// The ids in the answer.
    pub ids: IdSelectors,
}

fn method_option<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Method>, D::Error> {
    method(d).map(Some)
}
