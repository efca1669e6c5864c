//! Static secrets: in a header, or as the credentials of HTTP Basic.

use http::HeaderMap;
use serde::Deserialize;

use super::super::secret::Secret;
use super::common::{Encoding, SignatureError, ValueSource, equal};

/// The place of a static secret.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SharedSecret {
    /// The headers that may contain it.
    headers: Vec<ValueSource>,
    /// The header has `user:password` in base64, as HTTP Basic does.
    #[serde(default)]
    basic: bool,
}

impl SharedSecret {
    pub(super) fn headers(&self) -> impl Iterator<Item = &str> {
        self.headers.iter().map(|place| place.header.as_str())
    }

    pub(super) fn verify(&self, tokens: &[Secret], headers: &HeaderMap) -> Result<(), SignatureError> {
        if tokens.is_empty() {
            return Err(SignatureError::NoSecret);
        }
        let mut shown = self.headers.iter().flat_map(|place| place.texts(headers)).peekable();
        if shown.peek().is_none() {
            return Err(SignatureError::Missing(self.headers().next().unwrap_or_default().to_owned()));
        }
        let fits = |bytes: &[u8]| tokens.iter().any(|token| equal(token.expose().as_bytes(), bytes));
        let any = shown.any(|text| match self.basic {
            true => Encoding::Base64.decode(text.trim()).is_some_and(|pair| fits(&pair)),
            false => fits(text.as_bytes()),
        });
        if any { Ok(()) } else { Err(SignatureError::Mismatch) }
    }
}
