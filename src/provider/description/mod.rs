//! The schema of provider descriptions. `config/providers/*.toml` show it in use.

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

/// The alias kind of an id that the app assigns in its create.
pub const APP_ID_KIND: &str = "app_call_id";
/// The alias kind of our own call id, as carried through a provider.
pub const OWN_ID_KIND: &str = "ringfence_call";

/// The alias kind that assigns a call to a subaccount: the subaccount's id, a slash, and the id for look-ups.
pub const SUBACCOUNT_KIND: &str = "subaccount_call";

/// One provider.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// The provider's name in `[accounts.*].provider`.
    pub name: String,
    /// The path prefix on `listen.api`, as in `/twilio`.
    pub mount: String,
    /// The base URL that requests are sent to, unless the account has its own `upstream`.
    pub upstream: String,
    /// Paths with another base URL, unless the account has its own `upstream`.
    #[serde(default)]
    pub upstreams: Vec<OtherHost>,
    /// `Host` headers that are routed to the provider.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// The account keys that hold the credentials of ringfence's own requests.
    #[serde(default)]
    pub secrets: Vec<String>,
    /// The app's API key in a request.
    pub api_key: Option<Selector>,
    /// The interval in seconds at which live calls are polled while calls are open; default 15.
    #[serde(default = "sweep_default")]
    pub sweep_secs: u64,
    /// The longest duration of a call in seconds, including queueing and ringing. A call that cannot be looked up ends after it.
    pub longest_call_secs: u64,
    /// The credentials of ringfence's own requests.
    pub credentials: Credentials,
    /// Requests that create calls.
    #[serde(default, rename = "operation")]
    pub operations: Vec<Arc<Operation>>,
    /// Answers that mean that a limit of the provider is full.
    #[serde(default, rename = "limit")]
    pub limits: Vec<LimitAnswer>,
    /// The format of ringfence's own answers.
    pub refusal: RejectionShape,
    /// The provider's webhooks.
    #[serde(default, rename = "webhook")]
    pub webhooks: Vec<Webhook>,
    /// The published source addresses and blocks of its webhooks: the meaning of the provider's name in `webhooks.allow_from`.
    #[serde(default)]
    pub webhook_addresses: Vec<String>,
    /// The look-up of one call.
    pub lookup: Option<Lookup>,
    /// The look-up of a batch or campaign.
    #[serde(default, rename = "group")]
    pub groups: Vec<Group>,
    /// The list of its live calls.
    pub list: Option<List>,
    /// The number of its live calls.
    pub count: Option<Count>,
    /// The search for a create whose answer was lost.
    pub find: Option<List>,
    /// The fields of a transcript's turn in a post-call record.
    pub turns: Option<TurnRules>,
    /// Hang-up methods, by name.
    #[serde(default, rename = "terminate")]
    pub hang_up_methods: BTreeMap<String, HangUpMethod>,
    /// The marks of a response whose request, without an operation, has placed a call.
    pub unfenced: Option<Unfenced>,
    /// The request for the TwiML that connects an inbound call.
    pub front: Option<Front>,
    /// Subaccounts, which sign webhooks with tokens of their own.
    pub subaccounts: Option<Subaccounts>,
    /// The questions of `check --live`.
    pub check: Option<Check>,
}

fn sweep_default() -> u64 {
    15
}

/// A part of a provider's API with a base URL of its own.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OtherHost {
    /// The path prefix.
    pub prefix: String,
    /// The base URL.
    pub url: String,
}

/// Subaccounts. The account's credentials also open their paths.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subaccounts {
    /// The subaccount's id in a webhook.
    pub id: Selector,
    /// The account's key that holds its own id. In paths about a call of a subaccount, the subaccount's id replaces it.
    pub own: String,
    /// The look-up's path: a template over `account.*` and `subaccount`.
    pub path: String,
    /// The parent account's id in the answer.
    pub owner: Selector,
    /// The token in the answer that signs the subaccount's webhooks.
    pub token: Selector,
    /// Statuses that mean that the subaccount does not belong to the account.
    pub absent: Vec<u16>,
}

/// The authentication of ringfence's own requests.
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
        /// The user name: a template over `account.*`.
        username: String,
        /// The password: a template over `account.*`.
        password: String,
    },
}

impl Description {
    /// Whether look-ups need an id of this kind.
    pub fn looks_up(&self, kind: &str) -> bool {
        self.lookup.as_ref().is_some_and(|l| l.needs == kind) || self.groups.iter().any(|g| g.needs == kind)
    }

    /// All kinds of ids by which a call may be known outside.
    pub fn id_kinds(&self) -> impl Iterator<Item = &str> {
        let of_operations = self.operations.iter().flat_map(|o| o.ids.kinds());
        let of_webhooks = self.webhooks.iter().flat_map(|w| w.ids.kinds());
        let asked = self.lookup.iter().flat_map(|l| l.ids.kinds().chain([l.needs.as_str()]));
        let of_groups = self.groups.iter().map(|g| g.needs.as_str());
        let all = of_operations.chain(of_webhooks).chain(asked).chain(of_groups);
        all.chain(self.list.iter().map(|l| l.id.kind.as_str())).filter(|kind| *kind != OWN_ID_KIND)
    }

    /// The operation of this name.
    pub fn operation(&self, name: &str) -> Option<&Operation> {
        self.operations.iter().find(|operation| operation.name == name).map(Arc::as_ref)
    }

    /// The group rules of the batches that an operation creates.
    pub fn group_of(&self, operation: &str) -> Option<&Group> {
        let operation = self.operation(operation)?;
        self.groups.iter().find(|g| operation.ids.kinds().any(|kind| kind == g.needs))
    }

    /// Parses a description.
    ///
    /// # Errors
    /// All mistakes, with line and column.
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
            .replacen("= \"outbound\"", "= \"sideways\"", 1);
        let wrong = format!("{wrong}\n[[limit]]\nstatus = 429\n");
        let bad = Registry::new(&[("mine.toml".to_owned(), wrong)]).unwrap_err();
        let told: Vec<String> = bad.iter().map(ToString::to_string).collect();
        for one in ["sweep_sec", "colour", "sideways", "missing field"] {
            assert_eq!(told.iter().filter(|t| t.contains(one)).count(), 1, "{one}: {told:#?}");
        }
        assert_eq!(told.len(), 4, "{told:#?}");
        // A syntax error is reported in full too.
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
