//! What a provider posts to us.

use serde::Deserialize;
use serde_json::Value;

use super::super::path::PathPattern;
use super::super::select::{Message, Predicate, Selector};
use super::super::sign::Signature;
use super::{DirectionWord, FactSelectors, IdSelectors, PostCallRules, StateWord, UtteranceRules};

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
    pub signature: Signature,
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
    /// Paths whose caller is told by the status that a payload cannot be used, or speaks of a call that nobody knows.
    #[serde(default)]
    pub exact: Vec<PathPattern>,
    /// What stands in requests about something else than calls, such as text messages, that come signed in the same way.
    #[serde(default)]
    pub foreign: Vec<Selector>,
    /// Its provider switches it off by itself once it failed for long: it is watched whether its records still come. Where an
    /// operator looks if they do not.
    pub watched: Option<String>,
    /// What it may tell of; the first that holds.
    #[serde(default, rename = "event")]
    pub events: Vec<WebhookEvent>,
}

impl Webhook {
    /// Whether a message is about something else than a call.
    pub fn is_foreign(&self, message: &Message<'_>) -> bool {
        self.foreign.iter().any(|selector| selector.text(message).is_some_and(|text| !text.is_empty()))
    }

    /// Whether a message says more than once what it is of, or what it tells.
    pub fn is_doubled(&self, message: &Message<'_>) -> bool {
        let events = self
            .events
            .iter()
            .flat_map(|event| event.when.selectors().chain(event.state.as_ref().and_then(StateWord::selector)));
        let direction = self.direction.as_ref().and_then(DirectionWord::selector);
        let mut all = self.ids.selectors().chain(&self.dedupe).chain(direction).chain(events);
        all.any(|selector| selector.is_doubled(message))
    }
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
    /// The JSON body, if any. Where something is said, a template over `transcription_id` and `sequence_number`.
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
    /// It holds what was said.
    #[serde(default)]
    pub said: bool,
    /// What it tells of the call after its end.
    pub record: Option<PostCallRules>,
    /// Something is said in the call. One that nobody knows yet exists, and is counted.
    pub utterance: Option<UtteranceRules>,
}
