//! A provider's webhooks.

use serde::Deserialize;
use serde_json::Value;

use super::super::path::PathPattern;
use super::super::select::{Message, Predicate, Selector};
use super::super::sign::Signature;
use super::{AttributeSelectors, CallbackEvent, DirectionWord, IdSelectors, PostCallRules, StateWord, UtteranceRules};

/// A webhook of the provider.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// The webhook's name.
    pub name: String,
    /// The paths on `listen.webhooks` where it arrives.
    pub paths: Vec<PathPattern>,
    /// The callback URL added to creates: path and fragment, a template over `call_id`.
    pub callback: Option<String>,
    /// The event that a call's own callback gets, by the name that apps ask for it by. Without it, or if it has none: `completed`,
    /// which is also what apps get that ask for none.
    pub callback_event: Option<CallbackEvent>,
    /// The signature.
    pub signature: Signature,
    /// The kind of reply that the provider acts on; the app's own is relayed.
    pub reply: Option<Reply>,
    /// The response to a notification, and to a webhook with `reply` if there is no app.
    pub answer: Option<FixedAnswer>,
    /// The parts that together identify an event, so that a repeated delivery is recognised. Without it, every delivery is an event.
    #[serde(default)]
    pub dedupe: Vec<Selector>,
    /// Ids of the call.
    #[serde(default)]
    pub ids: IdSelectors,
    /// The attributes that limits and rules match.
    #[serde(default)]
    pub attributes: AttributeSelectors,
    /// The side that placed the call.
    pub direction: Option<DirectionWord>,
    /// Paths that report by their status: 400 for an unusable payload, 404 for an unknown call.
    #[serde(default)]
    pub exact: Vec<PathPattern>,
    /// Fields that mark requests that are not about calls, such as text messages, but are signed in the same way.
    #[serde(default)]
    pub foreign: Vec<Selector>,
    /// The place at which an operator looks if this webhook stops coming. Set for webhooks that the provider switches off after failures, which
    /// ringfence watches.
    pub watched: Option<String>,
    /// The events it may carry. The first whose `when` holds applies.
    #[serde(default, rename = "event")]
    pub events: Vec<WebhookEvent>,
}

impl Webhook {
    /// Whether its provider acts on TwiML in the reply: a voice webhook.
    pub fn wants_twiml(&self) -> bool {
        self.reply == Some(Reply::Twiml)
    }

    /// Whether a message is not about a call.
    pub fn is_foreign(&self, message: &Message<'_>) -> bool {
        self.foreign.iter().any(|selector| selector.text(message).is_some_and(|text| !text.is_empty()))
    }

    /// Whether a message has one of its values more than once, so that it is ambiguous.
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

/// The kind of reply that the provider waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// TwiML: it can reject the call before it is answered.
    Twiml,
    /// JSON, which cannot reject the call.
    Json,
}

/// An answer from a template.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FixedAnswer {
    /// The status.
    pub status: u16,
    /// The JSON body, if any: a template; in the answer to an utterance over `transcription_id` and `sequence_number`.
    pub body: Option<Value>,
}

/// One event that a webhook may carry.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookEvent {
    /// The event's name.
    pub name: String,
    /// The condition under which the webhook carries this event.
    #[serde(default)]
    pub when: Predicate,
    /// The call's new state. Without it, none.
    pub state: Option<StateWord>,
    /// Whether an unknown inbound call is a new one, to be admitted.
    #[serde(default)]
    pub admits: bool,
    /// Whether the body holds a transcript, so that `privacy.transcripts` applies to it.
    #[serde(default)]
    pub said: bool,
    /// The post-call record in the body.
    pub record: Option<PostCallRules>,
    /// The body is an utterance of a live call.
    pub utterance: Option<UtteranceRules>,
}
