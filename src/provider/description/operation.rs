//! Requests that create calls, the answers that reject them, and the format of ours.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use http::Method;
use memchr::memchr3;
use memchr::memmem::Finder;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::super::path::PathPattern;
use super::super::select::{Message, Predicate, Selector};
use super::{AttributeSelectors, FixedAnswer, IdSelectors, StateWord};
use crate::call::Direction;
use crate::ids::Alias;
use crate::words::words;

/// A request that creates a call.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operation {
    /// The name in call records, limits and metrics.
    pub name: String,
    /// The request's method.
    #[serde(deserialize_with = "method")]
    pub method: Method,
    /// The request's path.
    pub path: PathPattern,
    /// Further conditions on the request.
    #[serde(default)]
    pub when: Predicate,
    /// The side that places the call.
    pub direction: Direction,
    /// The call's phase once the provider has answered.
    pub phase: StateWord,
    /// Whether it may join an open call: the only one of the same business and numbers that has no id of
    /// the kinds in `ids` yet.
    #[serde(default)]
    pub join: bool,
    /// Whether the account's carrier carries the call, so that the carrier's limits bind it too.
    #[serde(default)]
    pub carried: bool,
    /// The attributes that limits and rules match.
    #[serde(default)]
    pub attributes: AttributeSelectors,
    /// The condition under which an answer means that the call was created.
    pub success: Success,
    /// Ids that the app assigns in its request.
    #[serde(default)]
    pub own_ids: IdSelectors,
    /// The ids in the answer.
    #[serde(default)]
    pub ids: IdSelectors,
    /// The answer to a duplicate create whose original answer is no longer kept: a template over the call's ids and attributes and
    /// `account.*`. An unknown value is `null`.
    pub answer: Option<FixedAnswer>,
    /// Values added to a JSON body, so that the call can be found again.
    #[serde(default)]
    pub inject: Vec<Inject>,
    /// The rules by which a bulk run, or a test call, builds the request.
    pub dial: Option<Dial>,
    /// The status callback that ringfence replaces.
    pub callback: Option<Callback>,
    /// The condition under which the provider reports who answered the call (`answered_by` of a record). Without it, never.
    pub reports_who_answered: Option<Predicate>,
    /// Whether destinations are written with a country code, but without a plus.
    #[serde(default)]
    pub international: bool,
    /// The number of concurrent calls, if the request makes several.
    pub slots: Option<SlotsRule>,
    /// The alias kind of the batch that the request continues, such as a retry; its path names the id.
    pub again: Option<String>,
}

/// The number of concurrent calls that a request may make.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotsRule {
    /// The concurrency that the app requests.
    pub at_most: Option<Selector>,
    /// The list of recipients: each has at most one call.
    pub items: Selector,
    /// A JSON pointer to the field that a smaller granted number is written to. Without it, all slots are granted or none.
    pub cut: Option<String>,
    /// Fields of a recipient with its destination, in order of preference.
    #[serde(default)]
    pub destination: Vec<String>,
}

impl SlotsRule {
    /// The destination of each recipient; `None` for one without a readable destination.
    pub fn destinations<'m>(&self, message: &Message<'m>) -> Vec<Option<&'m str>> {
        let items = self.items.list(message.body).map(Vec::as_slice).unwrap_or_default();
        let named = |item: &'m Value| self.destination.iter().find_map(|field| item.get(field)?.as_str());
        items.iter().map(named).collect()
    }

    /// The number of calls, at least 1; `None` if the request does not tell, or is malformed.
    pub fn wanted(&self, message: &Message<'_>) -> Option<u32> {
        let items = self.items.list(message.body).map(|list| u32::try_from(list.len()).unwrap_or(u32::MAX));
        let at_most = match &self.at_most {
            // A malformed number must not be read as "no limit".
            Some(number) if number.exists(message) => Some(number.text(message)?.parse().ok()?),
            _ => None,
        };
        items.into_iter().chain(at_most).min().map(|n| n.max(1))
    }
}

/// The sign in a response that a request without an operation has placed a call.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unfenced {
    /// The ids of the call, by kind.
    ids: IdSelectors,
    /// Prefixes of ids, by kind. Default: any.
    #[serde(default)]
    prefixes: BTreeMap<String, String>,
    /// Paths whose 201 means a call even if the answer has no id.
    #[serde(default)]
    paths: Vec<PathPattern>,
    #[serde(skip)]
    needles: OnceLock<Vec<Needle>>,
}

/// The bytes in every answer that has an id of a kind: one of these names, and the prefix.
#[derive(Debug, Clone)]
struct Needle {
    names: Vec<Finder<'static>>,
    prefix: Finder<'static>,
}

impl Needle {
    fn is_in(&self, body: &[u8]) -> bool {
        self.prefix.find(body).is_some() && self.names.iter().any(|name| name.find(body).is_some())
    }
}

impl Unfenced {
    /// Whether a body provably has no id, without reading it: most answers have none.
    pub fn shows_nothing(&self, body: &[u8]) -> bool {
        let needles = self.needles.get_or_init(|| self.ids.each().map(|(kind, ids)| self.needle(kind, ids)).collect());
        // Escapes of JSON and XML, and other encodings, may hide what is looked for.
        let is_document = body.first().is_some_and(|first| b"{[<".contains(first));
        let is_plain = is_document && body.is_ascii() && memchr3(b'\\', b'&', 0, body).is_none();
        is_plain && !needles.iter().any(|needle| needle.is_in(body))
    }

    fn needle(&self, kind: &str, ids: &Selector) -> Needle {
        let finder = |text: &str| Finder::new(text).into_owned();
        let prefix = self.prefixes.get(kind).map_or("", String::as_str);
        Needle { names: ids.body_names().map(finder).collect(), prefix: finder(prefix) }
    }

    /// The ids in an answer.
    pub fn read(&self, message: &Message<'_>) -> Vec<Alias> {
        let mut ids = self.ids.read(message);
        ids.retain(|id| self.prefixes.get(&id.kind).is_none_or(|prefix| id.id.starts_with(prefix)));
        ids
    }

    /// Whether a resource created below this path is a call.
    pub fn makes_a_call(&self, path: &str) -> bool {
        self.paths.iter().any(|one| one.fits_any_case(path))
    }
}

/// The rules by which a bulk run, or a test call (`ringfence smoke`), builds the request of an operation.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dial {
    /// The path, a template over `account.*`.
    pub path: String,
    /// The body's field for the destination.
    pub to: String,
    /// The body's field for our number, or its id.
    pub from: String,
    /// Whether `from` takes the provider's id of our number; else it takes the number.
    #[serde(default)]
    pub from_id: bool,
    /// Whether the body is a form; else it is JSON.
    #[serde(default)]
    pub form: bool,
    /// The body's field for the agent. A request needs it, or one of `instead`.
    pub agent: Option<String>,
    /// The body's fields that replace the agent.
    #[serde(default)]
    pub instead: Vec<String>,
    /// The fields of a test call that names neither an agent nor a replacement.
    #[serde(default)]
    pub test: BTreeMap<String, String>,
}

/// The condition under which an answer means that the call was created.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Success {
    /// Statuses.
    pub status: Vec<u16>,
    /// Except when this holds of the answer's body.
    #[serde(default)]
    pub unless: Predicate,
}

/// A value added to a JSON body.
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
    /// The condition under which the provider would ignore it.
    #[serde(default)]
    pub unless: Predicate,
}

/// An answer that means that a limit of the provider is full. ringfence answers such creates with 503.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitAnswer {
    /// The status.
    pub status: u16,
    /// Further conditions.
    #[serde(default)]
    pub when: Predicate,
    /// The limit that is full.
    pub class: LimitClass,
    /// The `Retry-After` in seconds if the provider sends none.
    pub wait_secs: u32,
}

words!(
    /// The kind of a provider's limit.
    LimitClass {
        /// Concurrent calls of the account.
        Concurrency = "concurrency",
        /// Requests per interval of the account.
        Rate = "rate",
        /// The provider is overloaded.
        Busy = "busy",
    }
);

/// The format of ringfence's own answers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RejectionShape {
    /// The `error` code for a 429 of the provider.
    pub provider_429_code: String,
    /// The status for "the call may exist": one that the provider's SDKs do not retry.
    pub unknown_status: u16,
    /// A request header that marks an SDK which sleeps on `Retry-After` inside the app's request.
    pub sdk_sleeps_header: Option<String>,
    /// The content type.
    pub content_type: String,
    /// The provider's error values for `concurrency`, `rate`, `denied`, `invalid` and `unavailable`, used by `body`.
    pub words: BTreeMap<String, BTreeMap<String, Value>>,
    /// The body: a template over `words` and ringfence's own fields; fields that it lacks are appended.
    pub body: Value,
}

pub(super) fn method<'de, D: Deserializer<'de>>(d: D) -> Result<Method, D::Error> {
    String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;
    use crate::provider::Registry;
    use crate::provider::select::Document;

    #[test]
    fn an_answer_that_has_an_id_is_never_left_unread() {
        let registry = Registry::new(&[]).unwrap();
        let answers = [
            ("application/json", r#"{"conversation_id":"conv_1"}"#),
            ("application/json", r#"[{"conversation_id":"conv_1"}]"#),
            ("application/json", r#"{"callSid":"CA1"}"#),
            ("application/json", r#"{"c\u0061llSid":"CA1"}"#),
            ("application/json", r#"{"sid":"CA1"}"#),
            ("application/json", r#"{"sid":"\u0043A1"}"#),
            ("application/json", r#"{"sid":"SM1","body":"CA"}"#),
            ("application/json", r#"{"sid":"SM1"}"#),
            ("application/json", r#"{"status":"ok"}"#),
            ("application/json", "{}"),
            ("application/xml", "<Call><Sid>CA1</Sid></Call>"),
            ("application/xml", "<Call><Sid>&#67;A1</Sid></Call>"),
            ("text/xml", r#"<R><Parameter name="conversation_id" value="conv_1"/></R>"#),
            ("text/xml", "<R/>"),
        ];
        let (mut left_unread, path, headers) = (0, BTreeMap::new(), HeaderMap::new());
        for provider in ["elevenlabs", "twilio"] {
            let rule = registry.get(provider).unwrap().unfenced.as_ref().unwrap();
            for (kind, answer) in answers {
                let body = Document::decode(Some(kind), answer.as_bytes());
                let message = Message { body: &body, query: &[], path: &path, headers: &headers };
                let shows_nothing = rule.shows_nothing(answer.as_bytes());
                assert!(!shows_nothing || rule.read(&message).is_empty(), "{provider} {answer}");
                left_unread += u32::from(shows_nothing);
            }
        }
        assert!(left_unread >= 8, "{left_unread}");
    }
}
