//! A setting at a provider that affects calls, and how an item of the provider's lists is read. Pure.

use std::collections::BTreeMap;

use http::HeaderMap;
use serde_json::Value;

use super::select::{Document, Message};

/// A setting that affects calls.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Setting {
    /// The message.
    pub says: String,
    /// Why it matters.
    pub why: Option<String>,
    /// What to do about it.
    pub fix: Option<String>,
}

/// Reads from an item as from a message.
pub(super) fn read<T>(item: &Value, read: impl FnOnce(&Message<'_>) -> Option<T>) -> Option<T> {
    let (body, path, headers) = (Document::Json(item.clone()), BTreeMap::new(), HeaderMap::new());
    read(&Message { body: &body, query: &[], path: &path, headers: &headers })
}
