//! Values read from a message: attributes, ids, states and directions.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use super::super::select::{Message, Selector};
use crate::call::{AnsweredBy, Direction, EndProof, Event, Outcome, Phase};
use crate::ids::{Alias, number_key};

/// The places in a message of the attributes that policy selects by.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttributeSelectors {
    /// The agent.
    pub agent: Option<Selector>,
    /// Our number, or the provider's id for it.
    pub own_number: Option<Selector>,
    /// The other party's number.
    pub other_number: Option<Selector>,
    /// The caller's number, ours in an outbound call: for messages that name numbers by who calls.
    pub from: Option<Selector>,
    /// The called number, ours in an inbound call.
    pub to: Option<Selector>,
}

/// The attributes of a call in a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MessageAttributes {
    /// The agent.
    pub agent: Option<String>,
    /// Our number, or the provider's id for it.
    pub own_number: Option<String>,
    /// The other party's number.
    pub other_number: Option<String>,
}

impl AttributeSelectors {
    /// All selectors.
    pub fn selectors(&self) -> impl Iterator<Item = &Selector> {
        [&self.agent, &self.own_number, &self.other_number, &self.from, &self.to].into_iter().flatten()
    }

    /// Reads the attributes of a call in this direction; overlong texts are ignored.
    pub fn read(&self, message: &Message<'_>, direction: Direction) -> MessageAttributes {
        let get = |selector: &Option<Selector>| {
            let text = selector.as_ref()?.text(message)?;
            // Postgres cannot store NUL; all stores keep the same.
            let text = text.replace('\0', "\u{FFFD}");
            (!text.is_empty() && text.len() <= 256).then_some(text)
        };
        let (ours, theirs) = match direction {
            Direction::Outbound => (&self.from, &self.to),
            Direction::Inbound => (&self.to, &self.from),
        };
        // Numbers have one spelling from here on.
        let number = |text: String| number_key(&text).into_owned();
        MessageAttributes {
            agent: get(&self.agent),
            own_number: get(&self.own_number).or_else(|| get(ours)).map(number),
            other_number: get(&self.other_number).or_else(|| get(theirs)).map(number),
        }
    }
}

impl AttributeSelectors {
    /// The destination of an outbound call, as written in the message.
    pub fn destination<'m>(&'m self, message: &'m Message<'_>) -> Option<Cow<'m, str>> {
        [&self.other_number, &self.to].into_iter().flatten().find_map(|selector| selector.text(message))
    }
}

/// The place of an id: a selector, or one with a condition on the id's prefix.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum IdSelector {
    Anything(Selector),
    Beginning(Beginning),
}

/// An id recognised by its prefix.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Beginning {
    /// The text.
    from: Selector,
    /// The prefix that an id of this kind must have.
    prefix: Option<String>,
    /// A prefix that no id of this kind has.
    not_prefix: Option<String>,
}

impl IdSelector {
    fn selector(&self) -> &Selector {
        match self {
            Self::Anything(selector) | Self::Beginning(Beginning { from: selector, .. }) => selector,
        }
    }

    fn text<'m>(&'m self, message: &'m Message<'_>) -> Option<Cow<'m, str>> {
        match self {
            Self::Anything(selector) => selector.text(message),
            Self::Beginning(Beginning { from, prefix, not_prefix }) => from.text(message).filter(|text| {
                prefix.as_ref().is_none_or(|prefix| text.starts_with(prefix))
                    && not_prefix.as_ref().is_none_or(|prefix| !text.starts_with(prefix))
            }),
        }
    }
}

/// The places of the ids of a call, by kind.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct IdSelectors(BTreeMap<String, IdSelector>);

impl IdSelectors {
    /// Reads the ids that are present.
    pub fn read(&self, message: &Message<'_>) -> Vec<Alias> {
        let aliases = self.0.iter().filter_map(|(kind, selector)| Alias::new(kind, &selector.text(message)?));
        aliases.collect()
    }

    /// Each kind with its selector.
    pub fn each(&self) -> impl Iterator<Item = (&str, &Selector)> {
        self.0.iter().map(|(kind, selector)| (kind.as_str(), selector.selector()))
    }

    /// All selectors.
    pub fn selectors(&self) -> impl Iterator<Item = &Selector> {
        self.0.values().map(IdSelector::selector)
    }

    /// All kinds.
    pub fn kinds(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// One of our words, read from a message or constant.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Word {
    Constant(String),
    Mapped(Mapped),
}

/// A word of the provider's and its meaning. A constant word may replace the table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mapped {
    /// The provider's word.
    from: Option<Selector>,
    /// The provider's words, each with its meaning: a phase (`queued`, `dialing`, `ringing`, `live`) or an outcome (`completed`, `busy`,
    /// `no_answer`, `canceled`, `failed`); `inbound` or `outbound` for a direction; `human`, `machine` or `unknown` for who answered.
    #[serde(default)]
    map: BTreeMap<String, String>,
    /// The meaning if the message has no word, or one that is not in `map`.
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

    fn selector(&self) -> Option<&Selector> {
        match self {
            Word::Constant(_) => None,
            Word::Mapped(mapped) => mapped.from.as_ref(),
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

/// A call's state: a phase (`queued`, `dialing`, `ringing`, `live`) or an outcome (`completed`, `busy`, `no_answer`,
/// `canceled`, `failed`).
#[derive(Debug, Clone)]
pub struct StateWord(Word);

impl StateWord {
    /// The selector, unless the word is constant.
    pub fn selector(&self) -> Option<&Selector> {
        self.0.selector()
    }

    /// The event that the message reports; an outcome is an end with this proof.
    pub fn read(&self, message: &Message<'_>, proof: EndProof) -> Option<Event> {
        let word = self.0.read(message)?;
        word.parse::<Phase>()
            .map(Event::Reached)
            .or_else(|_| word.parse::<Outcome>().map(|outcome| Event::Ended(outcome, proof)))
            .ok()
    }
}

impl StateWord {
    /// The provider's word, known or not, shortened and safe to show.
    pub fn word(&self, message: &Message<'_>) -> Option<String> {
        let Word::Mapped(Mapped { from: Some(from), .. }) = &self.0 else { return None };
        Some(from.text(message)?.chars().take(64).collect())
    }
}

impl<'de> Deserialize<'de> for StateWord {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let word = Word::deserialize(d)?;
        for one in word.words() {
            // A call that a machine answered is completed: who answered is told apart.
            let is_outcome = one.parse::<Outcome>().is_ok_and(|outcome| outcome != Outcome::Voicemail);
            if one.parse::<Phase>().is_err() && !is_outcome {
                return Err(serde::de::Error::custom(format!("{one:?} is neither a phase nor an outcome")));
            }
        }
        Ok(Self(word))
    }
}

/// The side that placed the call.
#[derive(Debug, Clone)]
pub struct DirectionWord(Word);

impl DirectionWord {
    /// The selector, unless the word is constant.
    pub fn selector(&self) -> Option<&Selector> {
        self.0.selector()
    }

    /// Reads the direction.
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

/// The event of a status callback, by the name that apps ask for it by.
#[derive(Debug, Clone)]
pub struct CallbackEvent(Word);

impl CallbackEvent {
    /// Reads the name.
    pub fn read(&self, message: &Message<'_>) -> Option<&str> {
        self.0.read(message)
    }
}

impl<'de> Deserialize<'de> for CallbackEvent {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Word::deserialize(d).map(Self)
    }
}

/// The party that answered the call.
#[derive(Debug, Clone)]
pub struct AnsweredByWord(Word);

impl AnsweredByWord {
    /// Reads who answered. `None`: the message does not say.
    pub fn read(&self, message: &Message<'_>) -> Option<AnsweredBy> {
        self.0.read(message)?.parse().ok()
    }
}

impl<'de> Deserialize<'de> for AnsweredByWord {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let word = Word::deserialize(d)?;
        for one in word.words() {
            one.parse::<AnsweredBy>()
                .map_err(|_| serde::de::Error::custom(format!("{one:?} is none of human, machine, unknown")))?;
        }
        Ok(Self(word))
    }
}
