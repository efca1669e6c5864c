//! A webhook as received: from the listener, or from the inbox.

use bytes::Bytes;
use http::HeaderMap;
use http::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE, HeaderName, HeaderValue};

use super::route::Candidate;
use super::settings::KEPT_BYTES_MAX;
use crate::provider::account::Account;
use crate::provider::select::{Decoded, Document, Flaw, Message, is_form};
use crate::provider::sign::Signature;
use crate::store::NewEvent;

/// A webhook as received: from the listener, or from the inbox.
pub(super) struct RawWebhook {
    pub(super) method: String,
    pub(super) path_and_query: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) document: Document,
    /// The part of the body that could not be parsed.
    pub(super) flaw: Option<Flaw>,
    pub(super) query: Vec<(String, String)>,
}

impl RawWebhook {
    /// Parses only a form yet, since a signature may cover its pairs: an unauthenticated body is not worth more work.
    pub(super) fn new(method: &str, path_and_query: &str, headers: HeaderMap, body: Bytes) -> Self {
        let query = path_and_query.split_once('?').map_or("", |(_, query)| query);
        // A POST without a body has no fields: its query is part of the address.
        let no_body = body.is_empty() && method != "GET";
        Self {
            document: if no_body { Document::Form(vec![]) } else { form(&headers, &body) },
            flaw: None,
            query: form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
            method: method.to_owned(),
            path_and_query: path_and_query.to_owned(),
            headers,
            body,
        }
    }

    /// A stored one, with its body, parsed.
    pub(super) fn of_stored(event: &NewEvent, body: Bytes) -> Self {
        Self::new(&event.method, &event.path, headers_of(&event.headers), body).decoded()
    }

    /// Parses the body, of whatever type.
    pub(super) fn decoded(mut self) -> Self {
        if self.form().is_none() {
            let content_type = self.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
            Decoded { document: self.document, flaw: self.flaw } = decode(content_type, &self.body);
        }
        // An empty document is a body too: the query beside it is part of the address.
        if !self.body.is_empty() && matches!(self.document, Document::Empty) {
            self.query.clear();
        }
        self
    }

    /// Whether nothing of the body can be parsed.
    pub(super) fn is_unreadable(&self) -> bool {
        self.flaw == Some(Flaw::Unreadable)
    }

    /// Whether something of the body was not read: it is neither JSON nor a form, or a part of it was left out.
    pub(super) fn has_unread_part(&self) -> bool {
        let is_odd = !matches!(self.document, Document::Json(_) | Document::Form(_));
        is_odd || self.flaw.is_some_and(|flaw| flaw != Flaw::Lenient)
    }

    pub(super) fn form(&self) -> Option<&[(String, String)]> {
        pairs(&self.document)
    }

    pub(super) fn path(&self) -> &str {
        self.path_and_query.split('?').next().unwrap_or_default()
    }
}

/// The subaccount that a message names.
pub(super) fn named_in(account: &Account, message: &Message<'_>) -> Option<String> {
    let rule = account.provider.subaccounts.as_ref()?;
    let own = account.own_id()?;
    let id = rule.id.text(message)?;
    let plausible = (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric());
    (plausible && id != own.expose()).then(|| id.into_owned())
}

impl RawWebhook {
    /// The subaccount that it names.
    pub(super) fn subaccount(&self, from: &Candidate) -> Option<String> {
        named_in(
            &from.account,
            &Message { body: &self.document, query: &self.query, path: &from.captures, headers: &self.headers },
        )
    }
}

/// Restores stored headers.
pub(super) fn headers_of(kept: &[(String, String)]) -> HeaderMap {
    let headers = kept
        .iter()
        .filter_map(|(name, value)| Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?)));
    headers.fold(HeaderMap::new(), |mut all, (name, value)| {
        all.append(name, value);
        all
    })
}

/// The headers to store: no credentials, no connection headers. A token that signs the body is not a credential.
pub(super) fn kept_headers(headers: &HeaderMap, signature: &Signature) -> Vec<(String, String)> {
    let kept = headers.iter().filter(|(name, _)| {
        (**name != AUTHORIZATION || signature.is_signature(name))
            && **name != COOKIE
            && name.as_str() != "x-ringfence-token"
            && name.as_str() != "connection"
            && !signature.is_credential(name)
    });
    kept.filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned()))).collect()
}

/// Parses a body. Texts that no selector reads (base64 audio) are left out.
fn decode(content_type: Option<&str>, body: &Bytes) -> Decoded {
    match is_form(content_type) && body.len() > KEPT_BYTES_MAX {
        true => Decoded { document: Document::Empty, flaw: Some(Flaw::Unreadable) },
        false => Document::read(content_type, body, &["full_audio"]),
    }
}

/// Parses a body as a form, if it is one.
fn form(headers: &HeaderMap, body: &Bytes) -> Document {
    let content_type = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
    match is_form(content_type) && body.len() <= KEPT_BYTES_MAX {
        true => Document::decode(content_type, body),
        false => Document::Empty,
    }
}

fn pairs(document: &Document) -> Option<&[(String, String)]> {
    match document {
        Document::Form(pairs) => Some(pairs),
        _ => None,
    }
}
