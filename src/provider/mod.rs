//! Providers as data: the meaning of their requests, answers, webhooks and records. Pure.
//!
//! The descriptions in `config/providers/` are built in and replaceable from outside. Code knows codecs and signature schemes,
//! not providers; a new provider of a usual kind needs no Rust. [`description`] is the schema, [`json`] parses bodies leniently,
//! [`select`] refers to values, [`render`] fills templates, [`sign`] verifies and re-signs, [`account`] joins a description with credentials,
//! [`check`](mod@check) is for `check --live` and `doctor`, [`change`] for `doctor --fix`, [`nearest`] suggests corrections of misspelt words.

pub mod account;
pub mod change;
pub mod check;
pub mod description;
pub mod item_bound;
pub mod json;
pub mod nearest;
pub mod path;
pub mod render;
pub mod secret;
pub mod select;
mod setting;
pub mod sign;

use std::collections::BTreeMap;
use std::sync::Arc;

use description::Description;

/// The built-in descriptions: file name and text.
pub const BUILT_IN: &[(&str, &str)] = &[
    ("elevenlabs.toml", include_str!("../../config/providers/elevenlabs.toml")),
    ("twilio.toml", include_str!("../../config/providers/twilio.toml")),
];

/// A description is invalid.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{file}: {message}")]
pub struct DescriptionError {
    /// The file.
    pub file: String,
    /// The mistake, with line and column if known.
    pub message: String,
}

/// All known providers, by name.
#[derive(Debug, Clone)]
pub struct Registry {
    by_name: BTreeMap<String, Arc<Description>>,
}

impl Registry {
    /// The built-in descriptions, with `files` (name and text) over them: a file whose description has the name of a
    /// built-in one replaces it.
    ///
    /// # Errors
    /// The mistakes of all descriptions.
    pub fn new(files: &[(String, String)]) -> Result<Self, Vec<DescriptionError>> {
        let (registry, bad) = Self::lenient(files);
        if bad.is_empty() { Ok(registry) } else { Err(bad) }
    }

    /// Reads descriptions, and returns the usable ones together with the mistakes of the others.
    pub fn lenient(files: &[(String, String)]) -> (Self, Vec<DescriptionError>) {
        let built_in = BUILT_IN.iter().map(|(file, text)| (*file, *text));
        let outside = files.iter().map(|(file, text)| (file.as_str(), text.as_str()));
        let (mut by_name, mut bad) = (BTreeMap::new(), Vec::new());
        for (file, text) in built_in.chain(outside) {
            match Description::parse(text) {
                Ok(description) => {
                    by_name.insert(description.name.clone(), Arc::new(description));
                }
                Err(messages) => {
                    bad.extend(messages.into_iter().map(|message| DescriptionError { file: file.to_owned(), message }));
                }
            }
        }
        (Self { by_name }, bad)
    }

    /// The provider of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Description>> {
        self.by_name.get(name)
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Description>> {
        self.by_name.values()
    }
}
