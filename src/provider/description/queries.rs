//! What ringfence asks a provider by itself: where calls stand, which there are, that one ends.

use std::collections::BTreeMap;

use http::Method;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::super::select::{Predicate, Selector};
use super::operation::method;
use super::{DirectionWord, FactSelectors, IdSelectors, PostCallRules, StateWord};

/// How one call is looked up.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lookup {
    /// The alias kind it needs.
    pub needs: String,
    /// The path, a template over aliases and `account.*`.
    pub path: String,
    /// The call's state.
    pub state: StateWord,
    /// Further ids of the call in the answer.
    #[serde(default)]
    pub ids: IdSelectors,
    /// What limits and rules can match.
    #[serde(default)]
    pub facts: FactSelectors,
    /// Which side placed the call. Default: outbound.
    pub direction: Option<DirectionWord>,
    /// When the answer is about a telephone call. Anything else takes no slot.
    #[serde(default)]
    pub phone: Predicate,
    /// When the answer is about something that is not a call of its own, such as a leg of another call.
    #[serde(default)]
    pub skip: Predicate,
    /// Statuses that mean "no such call".
    pub absent: Vec<u16>,
    /// The batch or campaign that the call belongs to: ids of kinds that groups need.
    #[serde(default)]
    pub member_of: IdSelectors,
    /// The post-call record in the answer.
    pub record: Option<PostCallRules>,
}

/// How a batch or campaign is looked up.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// The alias kind it needs.
    pub needs: String,
    /// The path, a template over aliases and `account.*`.
    pub path: String,
    /// Its state: `live` while it may make calls, an outcome once it makes no more.
    pub state: StateWord,
    /// Numbers that its concurrent calls do not exceed. The smallest counts.
    #[serde(default)]
    pub slots: Vec<Selector>,
    /// Statuses that mean "no such batch".
    pub absent: Vec<u16>,
    /// How a batch is found whose submit lost its answer.
    pub find: Option<List>,
}

/// How calls are listed.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    /// The requests that together make the list: templates over `account.*`.
    #[serde(default)]
    pub paths: Vec<String>,
    /// Of a search, instead of `paths`: a template over the call's facts and `call_id`.
    #[serde(default)]
    pub path: Option<String>,
    /// Where the items stand.
    pub items: Selector,
    /// The id of an item.
    pub id: ItemId,
    /// Items that are not calls of their own.
    #[serde(default)]
    pub skip: Predicate,
    /// The item's state.
    pub state: StateWord,
    /// What limits and rules can match.
    #[serde(default)]
    pub facts: FactSelectors,
    /// Which side placed it.
    pub direction: Option<DirectionWord>,
    /// When the item was created: RFC 2822, or seconds since 1970.
    pub created_at: Option<Selector>,
    /// How the next page is asked for.
    pub next: Option<NextPage>,
}

/// The id of an item in a list.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ItemId {
    /// Its alias kind.
    pub kind: String,
    /// Where it stands.
    pub from: Selector,
}

/// How the next page is asked for.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum NextPage {
    /// A cursor, put into the query.
    Cursor {
        /// Where it stands.
        cursor: Selector,
        /// The query's parameter.
        param: String,
    },
    /// A path and query.
    Uri {
        /// Where it stands.
        uri: Selector,
    },
}

/// How live calls are counted.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Count {
    /// The path, a template over `account.*`.
    pub path: String,
    /// The number.
    pub value: Selector,
}

/// A means to end a call.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terminate {
    /// The alias kind it needs.
    pub needs: String,
    /// A means of the carrier's account, used instead of a request here.
    pub carrier: Option<String>,
    /// A socket to open: a path template.
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
    /// Statuses that mean "done".
    #[serde(default)]
    pub ok: Vec<u16>,
    /// An answer that means that the call was already over.
    #[serde(default)]
    pub over: Predicate,
    /// It also deletes the provider's record of the call, so a later "no such call" proves nothing.
    #[serde(default)]
    pub deletes_record: bool,
}

/// The request whose answer connects an inbound call.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Front {
    /// The path.
    pub path: String,
    /// The JSON body, a template over the call's facts and `call_id`.
    pub body: Value,
    /// The ids in the answer.
    pub ids: IdSelectors,
}

fn method_option<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Method>, D::Error> {
    method(d).map(Some)
}
