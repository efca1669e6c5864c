//! The schema of a provider description. `config/providers/*.toml` show it in use.

mod mistakes;
mod operation;
mod queries;
mod record;
mod utterance;
mod vocabulary;
mod webhook;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::check::Check;
use super::select::Selector;
pub use operation::*;
pub use queries::*;
pub use record::*;
pub use utterance::*;
pub use vocabulary::*;
pub use webhook::*;

/// The kind of id that an app gives a call itself, in its create.
pub const APP_ID_KIND: &str = "app_call_id";
/// The alias kind that carries our own call id through a provider.
pub const OWN_ID_KIND: &str = "ringfence_call";

/// The alias kind that says which subaccount has a call: its id, a slash, and the id that the call is looked up by.
pub const SUBACCOUNT_KIND: &str = "subaccount_call";

/// One provider.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// Its name in `[accounts.*].provider`.
    pub name: String,
    /// Where it is mounted on `listen.api`, as in `/twilio`.
    pub mount: String,
    /// The URL that requests are sent to, unless the account has an `upstream` of its own.
    pub upstream: String,
    /// Paths that another host serves, unless the account has an `upstream` of its own.
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
    /// How often live calls are polled while calls are open. Seconds; default 15.
    #[serde(default = "sweep_default")]
    pub sweep_secs: u64,
    /// The longest a call can last, queueing and ringing included, in seconds. A call that nobody can look up ends after it.
    pub longest_call_secs: u64,
    /// The credentials of ringfence's own requests.
    pub credentials: Credentials,
    /// Requests that create calls.
    #[serde(default, rename = "operation")]
    pub operations: Vec<Arc<Operation>>,
    /// Answers that mean that a limit of the provider is full.
    #[serde(default, rename = "limit")]
    pub limits: Vec<LimitAnswer>,
    /// The shape of ringfence's own answers.
    pub refusal: RefusalShape,
    /// What the provider posts.
    #[serde(default, rename = "webhook")]
    pub webhooks: Vec<Webhook>,
    /// Addresses and blocks that its webhooks come from, where it publishes them: what its name means in `webhooks.allow_from`.
    #[serde(default)]
    pub webhook_addresses: Vec<String>,
    /// How one call is looked up.
    pub lookup: Option<Lookup>,
    /// How a batch or campaign is looked up.
    #[serde(default, rename = "group")]
    pub groups: Vec<Group>,
    /// How its live calls are listed.
    pub list: Option<List>,
    /// How its live calls are counted.
    pub count: Option<Count>,
    /// How a create whose answer was lost is found.
    pub find: Option<List>,
    /// How one turn of the transcript in a post-call record is read.
    pub turns: Option<TurnRules>,
    /// Means to end a call, by name.
    #[serde(default)]
    pub terminate: BTreeMap<String, Terminate>,
    /// How a response shows that a request without an operation has placed a call.
    pub unfenced: Option<Unfenced>,
    /// The request that gets the TwiML which connects an inbound call.
    pub front: Option<Front>,
    /// Subaccounts, which sign webhooks with tokens of their own.
    pub subaccounts: Option<Subaccounts>,
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

/// Subaccounts. The account's credentials open their paths too.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subaccounts {
    /// Where a webhook says whose it is.
    pub id: Selector,
    /// The account's key that holds its own id. In paths about a call of a subaccount, the subaccount's id takes its place.
    pub own: String,
    /// The look-up's path: a template over `account.*` and `subaccount`.
    pub path: String,
    /// Where the answer names the parent account.
    pub owner: Selector,
    /// Where the answer has the token that signs its webhooks.
    pub token: Selector,
    /// Statuses that mean that it does not belong to the account.
    pub absent: Vec<u16>,
}

/// How ringfence authenticates its own requests.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Credentials {
    /// One header.
    Header {
        /// The header's name.
        header: String,
        /// The header's value: a template over `account.*`.
        value: String,
    },
    /// HTTP Basic.
    Basic {
        /// Of HTTP Basic: a template over `account.*`.
        username: String,
        /// Of HTTP Basic: a template over `account.*`.
        password: String,
    },
}

impl Description {
    /// Whether a look-up needs an id of this kind: a call that has one can be asked for.
    pub fn looks_up(&self, kind: &str) -> bool {
        self.lookup.as_ref().is_some_and(|l| l.needs == kind) || self.groups.iter().any(|g| g.needs == kind)
    }

    /// Every kind of id by which a call may be known outside.
    pub fn id_kinds(&self) -> impl Iterator<Item = &str> {
        let of_operations = self.operations.iter().flat_map(|o| o.ids.kinds());
        let of_webhooks = self.webhooks.iter().flat_map(|w| w.ids.kinds());
        let asked = self.lookup.iter().flat_map(|l| l.ids.kinds().chain([l.needs.as_str()]));
        let of_groups = self.groups.iter().map(|g| g.needs.as_str());
        let all = of_operations.chain(of_webhooks).chain(asked).chain(of_groups);
        all.chain(self.list.iter().map(|l| l.id.kind.as_str())).filter(|kind| *kind != OWN_ID_KIND)
    }

    /// The kind of order for many calls that an operation makes.
    pub fn group_of(&self, operation: &str) -> Option<&Group> {
        let operation = self.operations.iter().find(|o| o.name == operation)?;
        self.groups.iter().find(|g| operation.ids.kinds().any(|kind| kind == g.needs))
    }

    /// Reads a description.
    ///
    /// # Errors
    /// Its mistakes, each with line and column.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let description: Self = mistakes::read(text)?;
        let mut wrong = Vec::new();
        if !description.mount.starts_with('/') || description.mount.ends_with('/') {
            wrong.push(format!("mount {:?} must start with a slash and not end with one", description.mount));
        }
        let urls = description.upstreams.iter().map(|other| &other.url);
        for url in urls.chain([&description.upstream]) {
            if let Err(error) = url.parse::<http::Uri>() {
                wrong.push(format!("upstream {url:?}: {error}"));
            }
        }
        if wrong.is_empty() { Ok(description) } else { Err(wrong) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::call::{EndProof, Event, Outcome, Phase};
    use crate::provider::Registry;
    use crate::provider::select::{Document, Message};

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
    fn all_mistakes_of_a_file_are_told_at_once() {
        let twilio = crate::provider::BUILT_IN[1].1;
        let sections = twilio.matches("[[operation]]").count();
        assert!(sections >= 2, "the test needs two operations");
        let wrong = twilio
            .replace("sweep_secs = 15", "sweep_sec = 15")
            .replacen("[[operation]]\n", "[[operation]]\ncolour = \"red\"\n", 1)
            .replacen("direction = \"outbound\"", "direction = \"sideways\"", 1);
        let wrong = format!("{wrong}\n[[limit]]\nstatus = 429\n");
        let bad = Registry::new(&[("mine.toml".to_owned(), wrong)]).unwrap_err();
        let told: Vec<String> = bad.iter().map(ToString::to_string).collect();
        for one in ["sweep_sec", "colour", "sideways", "missing field"] {
            assert_eq!(told.iter().filter(|t| t.contains(one)).count(), 1, "{one}: {told:#?}");
        }
        assert_eq!(told.len(), 4, "{told:#?}");
        // What is no TOML is told whole, too.
        let bad = Registry::new(&[("mine.toml".to_owned(), "name = \nmount = 'x\n".to_owned())]).unwrap_err();
        assert!(bad.len() >= 2, "{bad:?}");
    }

    #[test]
    fn a_request_for_many_calls_says_how_many() {
        let registry = Registry::new(&[]).unwrap();
        let operations = &registry.get("elevenlabs").unwrap().operations;
        let rule = operations.iter().find(|o| o.name == "batch_submit").unwrap().slots.as_ref().unwrap();
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
