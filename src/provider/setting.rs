//! A setting at a provider that affects calls, and how an item of the provider's lists is read. Pure.

use http::HeaderMap;
use serde::Deserialize;
use serde_json::Value;

use super::select::{Document, Message, Predicate, Selector};
use crate::ids::mask_number;

/// A setting that affects calls.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Setting {
    /// The message.
    pub says: String,
    /// The reason why it matters.
    pub why: Option<String>,
    /// The advice to the operator.
    pub fix: Option<String>,
}

/// Reads from an item as from a message.
pub(super) fn read<T>(item: &Value, read: impl FnOnce(&Message<'_>) -> Option<T>) -> Option<T> {
    let (body, headers) = (Document::Json(item.clone()), HeaderMap::new());
    read(&Message::new(&body, &headers))
}

/// The webhook that the provider uses, of those that exist: one that is not chosen receives nothing.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InUse {
    /// The request for the setting: a template over `account.*`. Without it the item itself has the setting.
    pub path: Option<String>,
    /// The id of the chosen webhook.
    pub at: Selector,
    /// The message where none is chosen. Without it that is in order.
    pub unset: Option<String>,
    /// The message where the chosen one does not lead here, with its id after it.
    pub other: String,
    /// The events that it is sent.
    pub events: Option<Selector>,
    /// The events that it needs.
    #[serde(default)]
    pub needs: Vec<String>,
    /// The message where events are missing, with their names after it.
    #[serde(default)]
    pub lacks: String,
    /// The reason why it matters.
    pub why: String,
    /// The advice to the operator.
    pub fix: String,
}

impl InUse {
    /// Returns the fault of the setting in an answer; `ours`: the ids of the webhooks that lead here.
    pub fn fault(&self, answer: &Value, ours: &[String]) -> Option<Setting> {
        let says = read(answer, |message| match self.at.text(message).filter(|id| !id.is_empty()) {
            None => self.unset.clone(),
            Some(id) if !ours.iter().any(|one| *one == id) => Some(format!("{} {}", self.other, plain(&id))),
            Some(_) => {
                // Where the list is absent, the provider's default is not known here.
                let told = self.events.as_ref()?.list(message.body)?;
                let lacks = |event: &&String| !told.iter().any(|one| one.as_str() == Some(event));
                let missing: Vec<&str> = self.needs.iter().filter(lacks).map(String::as_str).collect();
                (!missing.is_empty()).then(|| format!("{} {}", self.lacks, missing.join(", ")))
            }
        })?;
        Some(Setting { says, why: Some(self.why.clone()), fix: Some(self.fix.clone()) })
    }
}

/// A state in which an item does not post, or not reliably.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// The condition under which it applies.
    pub when: Predicate,
    /// The message for the operator.
    pub says: String,
    /// A detail added to the message.
    pub detail: Option<Selector>,
    /// Since when, in Unix seconds.
    pub since: Option<Selector>,
    /// The reason why it matters.
    pub why: Option<String>,
    /// The advice to the operator.
    pub fix: Option<String>,
    /// Whether only `ringfence doctor` reports it.
    #[serde(default)]
    pub doctor: bool,
}

impl Fault {
    pub(super) fn setting(&self, message: &Message<'_>) -> Setting {
        Setting { says: self.says(message), why: self.why.clone(), fix: self.fix.clone() }
    }

    /// The message about an item.
    fn says(&self, message: &Message<'_>) -> String {
        let detail = self.detail.as_ref().and_then(|d| d.text(message));
        let since = self.since.as_ref().and_then(|s| s.text(message)?.parse().ok());
        let since = since.and_then(|secs| jiff::Timestamp::from_second(secs).ok());
        self.says.clone()
            + &detail.map(|d| format!(" {}", plain(&d))).unwrap_or_default()
            + &since.map(|s| format!(", at {}", s.strftime("%Y-%m-%dT%H:%M:%SZ"))).unwrap_or_default()
    }
}

/// Returns the text by which an operator tells an item from others: its name, or its number and its name.
pub(super) fn shown_name(name: &Selector, number: Option<&Selector>, message: &Message<'_>) -> String {
    let name = name.text(message).map(|n| plain(&n)).unwrap_or_default();
    match number.and_then(|n| n.text(message)) {
        Some(number) => format!("{} ({name})", mask_number(&number)),
        None => format!("\"{name}\""),
    }
}

/// A provider's text made safe for a terminal: one line, of bounded length.
pub fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}
