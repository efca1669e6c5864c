//! The schema of a provider description. `config/providers/*.toml` show it in use.

use std::collections::BTreeMap;

use http::Method;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::check::Check;
use super::path::PathPattern;
use super::select::{Message, Predicate, Selector};
use super::sign::Scheme;
use crate::call::{Direction, EndProof, Event, Outcome, Phase};
use crate::ids::Alias;

/// The alias kind that carries our own call id through a provider.
pub const OWN_ID_KIND: &str = "ringfence_call";

/// One provider.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// Its name in `[accounts.*].provider`.
    pub name: String,
    /// Where it is mounted on `listen.api`, as in `/twilio`.
    pub mount: String,
    /// Where requests go on to, unless the account says otherwise.
    pub upstream: String,
    /// Paths that another host serves, unless the account names an upstream of its own.
    #[serde(default)]
    pub upstreams: Vec<OtherHost>,
    /// `Host` headers that are routed to it.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// The keys of an account that hold what ringfence needs for its own requests.
    #[serde(default)]
    pub secrets: Vec<String>,
    /// Where the app shows its own key.
    pub api_key: Option<Selector>,
    /// How often live calls are asked for while calls are up, in seconds.
    #[serde(default = "sweep_default")]
    pub sweep_secs: u64,
    /// The longest that a call can take, in seconds, waiting and ringing included: where nobody can be asked, a call ends then.
    pub longest_call_secs: u64,
    /// What ringfence shows on its own requests.
    pub credentials: Credentials,
    /// Requests that create calls.
    #[serde(default, rename = "operation")]
    pub operations: Vec<Operation>,
    /// Answers that say that a limit of the provider is full.
    #[serde(default, rename = "limit")]
    pub limits: Vec<LimitAnswer>,
    /// The shape of our answers.
    pub refusal: RefusalShape,
    /// What it posts to us.
    #[serde(default, rename = "webhook")]
    pub webhooks: Vec<Webhook>,
    /// How one call is asked for.
    pub lookup: Option<Lookup>,
    /// How an order for many calls is asked for: batches, campaigns.
    #[serde(default, rename = "group")]
    pub groups: Vec<Group>,
    /// How its live calls are listed.
    pub list: Option<List>,
    /// How its live calls are counted.
    pub count: Option<Count>,
    /// How a create whose answer was lost is found.
    pub find: Option<List>,
    /// Means to end a call, by name.
    #[serde(default)]
    pub terminate: BTreeMap<String, Terminate>,
    /// How ringfence itself gets the TwiML that connects an inbound call.
    pub front: Option<Front>,
    /// What `check --live` asks.
    pub check: Option<Check>,
}

fn sweep_default() -> u64 {
    15
}

/// A part of a provider's API that has a host of its own.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OtherHost {
    /// The paths: this one and those below it.
    pub prefix: String,
    /// Where requests to them go on to.
    pub url: String,
}

/// What ringfence's own requests carry.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Credentials {
    /// One header.
    Header {
        /// Its name.
        header: String,
        /// Its value, a template over `account.*`.
        value: String,
    },
    /// HTTP Basic.
    Basic {
        /// A template over `account.*`.
        username: String,
        /// A template over `account.*`.
        password: String,
    },
}

/// Where the facts that policy selects by stand.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FactSelectors {
    /// The agent.
    pub agent: Option<Selector>,
    /// Our number or the provider's id of it.
    pub own_number: Option<Selector>,
    /// The number at the other end.
    pub other_number: Option<Selector>,
}

/// The facts of one message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallFacts {
    /// The agent.
    pub agent: Option<String>,
    /// Our number or the provider's id of it.
    pub own_number: Option<String>,
    /// The number at the other end.
    pub other_number: Option<String>,
}

impl FactSelectors {
    /// Reads them; overlong texts are not taken.
    pub fn read(&self, message: &Message<'_>) -> CallFacts {
        let get = |selector: &Option<Selector>| {
            let text = selector.as_ref()?.text(message)?;
            (!text.is_empty() && text.len() <= 256).then(|| text.into_owned())
        };
        CallFacts { agent: get(&self.agent), own_number: get(&self.own_number), other_number: get(&self.other_number) }
    }
}

/// Ids of a call, by kind.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct IdSelectors(BTreeMap<String, Selector>);

impl IdSelectors {
    /// Reads those that are there.
    pub fn read(&self, message: &Message<'_>) -> Vec<Alias> {
        let aliases = self.0.iter().filter_map(|(kind, selector)| Alias::new(kind, &selector.text(message)?));
        aliases.collect()
    }

    /// The kinds that may be among them.
    pub fn kinds(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// A word of ours, read off the message or constant.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Word {
    Constant(String),
    Mapped(Mapped),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mapped {
    from: Option<Selector>,
    #[serde(default)]
    map: BTreeMap<String, String>,
    default: Option<String>,
}

impl Word {
    fn read(&self, message: &Message<'_>) -> Option<&str> {
        match self {
            Word::Constant(word) => Some(word),
            Word::Mapped(mapped) => {
                let text = mapped.from.as_ref().and_then(|s| s.text(message));
                let word = text.and_then(|t| mapped.map.get(t.as_ref()));
                word.or(mapped.default.as_ref()).map(String::as_str)
            }
        }
    }

    fn words(&self) -> impl Iterator<Item = &String> {
        let (constant, mapped) = match self {
            Word::Constant(word) => (Some(word), None),
            Word::Mapped(mapped) => (None, Some(mapped)),
        };
        constant.into_iter().chain(mapped.into_iter().flat_map(|m| m.map.values().chain(&m.default)))
    }
}

/// Where a call stands, in our words: a phase (`queued`, `dialing`, `ringing`, `live`) or an outcome (`completed`, `busy`,
/// `no_answer`, `canceled`, `failed`).
#[derive(Debug, Clone)]
pub struct StateWord(Word);

impl StateWord {
    /// The event that the message tells of; an outcome is an end with this proof.
    pub fn read(&self, message: &Message<'_>, proof: EndProof) -> Option<Event> {
        let word = self.0.read(message)?;
        word.parse::<Phase>()
            .map(Event::Reached)
            .or_else(|_| word.parse::<Outcome>().map(|outcome| Event::Ended(outcome, proof)))
            .ok()
    }
}

impl<'de> Deserialize<'de> for StateWord {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let word = Word::deserialize(d)?;
        for one in word.words() {
            if one.parse::<Phase>().is_err() && one.parse::<Outcome>().is_err() {
                return Err(serde::de::Error::custom(format!("{one:?} is neither a phase nor an outcome")));
            }
        }
        Ok(Self(word))
    }
}

/// Which side placed the call.
#[derive(Debug, Clone)]
pub struct DirectionWord(Word);

impl DirectionWord {
    /// Reads it.
    pub fn read(&self, message: &Message<'_>) -> Option<Direction> {
        self.0.read(message)?.parse().ok()
    }
}

impl<'de> Deserialize<'de> for DirectionWord {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let word = Word::deserialize(d)?;
        for one in word.words() {
            one.parse::<Direction>()
                .map_err(|_| serde::de::Error::custom(format!("{one:?} is neither inbound nor outbound")))?;
        }
        Ok(Self(word))
    }
}

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
    pub places: Option<PlacesRule>,
    /// It makes the calls of an order for many that the path names, by an id of this kind: a batch's retry.
    pub again: Option<String>,
}

/// How many calls at once a request may make.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacesRule {
    /// The number that the app asks for.
    pub at_most: Option<Selector>,
    /// Those who will be called: more than one call each at once there is not.
    pub items: Selector,
    /// Where the number that is granted is written if it is less, a JSON pointer. None: all or nothing.
    pub cut: Option<String>,
}

impl PlacesRule {
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

/// Something the provider posts to us.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// Its name.
    pub name: String,
    /// Where it arrives.
    pub paths: Vec<PathPattern>,
    /// The URL that creates are given: path and fragment, a template over `call_id`.
    pub callback: Option<String>,
    /// How it is signed.
    pub signature: Scheme,
    /// The provider takes its answer from the reply.
    pub reply: Option<Reply>,
    /// The answer to a notification, and to a reply webhook where there is no app.
    pub answer: Option<FixedAnswer>,
    /// What makes two deliveries one event; all parts together. None: every delivery is an event.
    #[serde(default)]
    pub dedupe: Vec<Selector>,
    /// Ids of the call.
    #[serde(default)]
    pub ids: IdSelectors,
    /// What policy selects by.
    #[serde(default)]
    pub facts: FactSelectors,
    /// Which side placed the call.
    pub direction: Option<DirectionWord>,
    /// What it may tell of; the first that holds.
    #[serde(default, rename = "event")]
    pub events: Vec<WebhookEvent>,
}

/// What kind of reply the provider waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// TwiML: the call can be refused by it, before it is answered.
    Twiml,
    /// JSON that cannot refuse.
    Json,
}

/// An answer that is always the same.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FixedAnswer {
    /// The status.
    pub status: u16,
    /// The JSON body, if any.
    pub body: Option<Value>,
}

/// One thing a webhook may tell of.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookEvent {
    /// Its name.
    pub name: String,
    /// When it is this.
    #[serde(default)]
    pub when: Predicate,
    /// What it says of the call. None: nothing.
    pub state: Option<StateWord>,
    /// An inbound call that nobody knows yet is a new one, to be admitted.
    #[serde(default)]
    pub admits: bool,
}

/// How one call is asked for.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lookup {
    /// The alias kind it needs.
    pub needs: String,
    /// The path, a template over aliases and `account.*`.
    pub path: String,
    /// Where the call stands.
    pub state: StateWord,
    /// Ids that the record brings.
    #[serde(default)]
    pub ids: IdSelectors,
    /// What policy selects by.
    #[serde(default)]
    pub facts: FactSelectors,
    /// When the record is of a telephone call; the rest takes no slot.
    #[serde(default)]
    pub phone: Predicate,
    /// Statuses that mean "no such call".
    pub absent: Vec<u16>,
    /// The order for many calls that it is one of: ids of kinds that groups need.
    #[serde(default)]
    pub member_of: IdSelectors,
}

/// How an order for many calls is asked for.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// The alias kind it needs.
    pub needs: String,
    /// The path, a template over aliases and `account.*`.
    pub path: String,
    /// Where it stands: `live` while it may make calls, an outcome once it makes no more.
    pub state: StateWord,
    /// Numbers that its calls at once do not exceed; the smallest counts.
    #[serde(default)]
    pub places: Vec<Selector>,
    /// Statuses that mean "no such order".
    pub absent: Vec<u16>,
    /// How one whose answer was lost is found.
    pub find: Option<List>,
}

/// How calls are listed.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    /// The requests that together give the list: templates over `account.*`.
    #[serde(default)]
    pub paths: Vec<String>,
    /// The one request, where it depends on a call: a template over its facts and `call_id`.
    #[serde(default)]
    pub path: Option<String>,
    /// Where the items stand.
    pub items: Selector,
    /// The id of an item.
    pub id: ItemId,
    /// Items that are no calls of their own.
    #[serde(default)]
    pub skip: Predicate,
    /// Where an item stands.
    pub state: StateWord,
    /// What policy selects by.
    #[serde(default)]
    pub facts: FactSelectors,
    /// Which side placed it.
    pub direction: Option<DirectionWord>,
    /// When the item came to be: RFC 2822, or seconds since 1970.
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
    /// Means of the account that carries the call, instead of a request here.
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
    /// A body that means "it was over already".
    #[serde(default)]
    pub over: Predicate,
    /// The provider's record of the call goes with it, so a later "no such call" proves nothing.
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
    /// The ids that the answer brings.
    pub ids: IdSelectors,
}

impl Description {
    /// Whether a look-up needs an id of this kind: a call that has one can be asked for.
    pub fn looks_up(&self, kind: &str) -> bool {
        self.lookup.as_ref().is_some_and(|l| l.needs == kind) || self.groups.iter().any(|g| g.needs == kind)
    }

    /// The kind of order for many calls that an operation makes.
    pub fn group_of(&self, operation: &str) -> Option<&Group> {
        let operation = self.operations.iter().find(|o| o.name == operation)?;
        self.groups.iter().find(|g| operation.ids.kinds().any(|kind| kind == g.needs))
    }

    /// Reads a description. The error names line and column.
    pub fn parse(text: &str) -> Result<Self, String> {
        let description: Self = toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())?;
        if !description.mount.starts_with('/') || description.mount.ends_with('/') {
            return Err(format!("mount {:?} must start with a slash and not end with one", description.mount));
        }
        let urls = description.upstreams.iter().map(|other| &other.url);
        for url in urls.chain([&description.upstream]) {
            url.parse::<http::Uri>().map_err(|e| format!("upstream {url:?}: {e}"))?;
        }
        Ok(description)
    }
}

fn method<'de, D: Deserializer<'de>>(d: D) -> Result<Method, D::Error> {
    String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
}

fn method_option<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Method>, D::Error> {
    method(d).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::{Registry, select::Document};

    #[test]
    fn the_built_in_descriptions_are_sound() {
        let registry = Registry::new(&[]).unwrap();
        let names: Vec<_> = registry.all().map(|d| d.name.as_str()).collect();
        assert_eq!(names, ["elevenlabs", "twilio"]);
    }

    #[test]
    fn a_file_replaces_a_built_in_and_mistakes_name_their_line() {
        let twilio = crate::provider::BUILT_IN[1].1;
        let other = twilio.replace("https://api.twilio.com", "https://api.dublin.ie1.twilio.com");
        let registry = Registry::new(&[("twilio.toml".to_owned(), other)]).unwrap();
        assert_eq!(registry.get("twilio").unwrap().upstream, "https://api.dublin.ie1.twilio.com");

        let wrong = twilio.replace("sweep_secs = 15", "sweep_sec = 15");
        let bad = Registry::new(&[("mine.toml".to_owned(), wrong)]).unwrap_err();
        assert_eq!(bad.len(), 1);
        assert!(bad[0].to_string().starts_with("mine.toml: TOML parse error at line"), "{}", bad[0]);
        assert!(bad[0].message.contains("sweep_sec"));
    }

    #[test]
    fn a_request_for_many_calls_says_how_many() {
        let registry = Registry::new(&[]).unwrap();
        let operations = &registry.get("elevenlabs").unwrap().operations;
        let rule = operations.iter().find(|o| o.name == "batch_submit").unwrap().places.as_ref().unwrap();
        let wanted = |body: Value| {
            let (body, path, headers) = (Document::Json(body), BTreeMap::new(), http::HeaderMap::new());
            rule.wanted(&Message { body: &body, query: &[], path: &path, headers: &headers })
        };
        let three = serde_json::json!([{}, {}, {}]);
        let with = |limit: Value| serde_json::json!({"recipients": three, "target_concurrency_limit": limit});
        assert_eq!(wanted(serde_json::json!({"recipients": three})), Some(3));
        assert_eq!(wanted(with(Value::Null)), Some(3));
        assert_eq!(wanted(with(2.into())), Some(2), "its own limit");
        assert_eq!(wanted(with(9.into())), Some(3), "more than one call each there is not");
        assert_eq!(wanted(with(0.into())), Some(1), "the provider says what it thinks of that");
        assert_eq!(wanted(serde_json::json!({"target_concurrency_limit": 4})), Some(4));
        for nonsense in
            [serde_json::json!(-1), serde_json::json!(2.5), serde_json::json!("many"), serde_json::json!([])]
        {
            assert_eq!(wanted(with(nonsense.clone())), None, "{nonsense}");
        }
        assert_eq!(wanted(serde_json::json!({})), None);
    }

    #[test]
    fn words_of_providers_become_ours() {
        let registry = Registry::new(&[]).unwrap();
        let status = registry.get("twilio").unwrap().webhooks.iter().find(|w| w.name == "status").unwrap();
        let state = status.events[0].state.as_ref().unwrap();
        let read = |word: &str| {
            let body = Document::Form(vec![("CallStatus".to_owned(), word.to_owned())]);
            let (path, headers) = (BTreeMap::new(), http::HeaderMap::new());
            state.read(&Message { body: &body, query: &[], path: &path, headers: &headers }, EndProof::Webhook)
        };
        assert_eq!(read("initiated"), Some(Event::Reached(Phase::Dialing)));
        assert_eq!(read("in-progress"), Some(Event::Reached(Phase::Live)));
        assert_eq!(read("no-answer"), Some(Event::Ended(Outcome::NoAnswer, EndProof::Webhook)));
        assert_eq!(read("cancelled"), Some(Event::Ended(Outcome::Canceled, EndProof::Webhook)));
        assert_eq!(read("something new"), None);
        assert!(toml::from_str::<BTreeMap<String, StateWord>>("s = \"finished\"").is_err());
    }
}
