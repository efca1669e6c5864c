//! Webhook signatures: verifies those of providers, and re-signs what is relayed under another URL. Pure; comparisons take constant time.
//!
//! A provider's description names a [`Signature`]: one of five schemes with its parameters, by the name of a preset
//! (`config/signatures.toml`) or written out. `read` parses it from TOML, `message` checks signatures over a message that a
//! `template` describes (HMAC, Ed25519), `renew` re-signs such a message for the present time, `url` has the message parts that derive from the URL, `jwt` tokens with the body's hash,
//! `shared` static secrets.

mod common;
mod jwt;
mod message;
mod read;
mod renew;
mod shared;
mod template;
#[cfg(test)]
mod tests;
mod url;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use super::secret::Secret;
pub use common::{Keys, Request, SignatureError, equal, sha256_hex, sign_standard, standard_key};
use jwt::Jwt;
use message::MessageSignature;
pub use renew::Renewal;
use shared::SharedSecret;
pub use url::without_fragment;

/// The signature scheme of a webhook, and whether a signature is required. Read from TOML.
#[derive(Debug, Clone, PartialEq)]
pub struct Signature {
    scheme: Scheme,
    mode: Mode,
    key_from: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
enum Scheme {
    None,
    Shared(SharedSecret),
    Message(Box<MessageSignature>),
    Jwt(Jwt),
}

/// Whether a webhook must be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Mode {
    /// A webhook without a valid signature is rejected, once signatures are required.
    #[default]
    Require,
    /// A signature that is there must be valid; one that is missing is accepted.
    IfPresent,
    /// No signature is checked.
    Off,
}

/// The result of a verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verification {
    /// The signature is valid.
    Valid,
    /// No signature is required, and there is none.
    Unsigned,
}

impl Signature {
    /// Verifies a request.
    ///
    /// # Errors
    /// The signature is invalid.
    pub fn verify(&self, keys: &Keys, request: &Request<'_>, now_secs: i64) -> Result<Verification, SignatureError> {
        if self.mode == Mode::Off || (self.mode == Mode::IfPresent && !self.is_shown(request.headers)) {
            return Ok(Verification::Unsigned);
        }
        match &self.scheme {
            Scheme::None => return Ok(Verification::Unsigned),
            Scheme::Shared(shared) => shared.verify(&keys.tokens, request.headers),
            Scheme::Message(message) => message.verify(keys, request, now_secs),
            Scheme::Jwt(jwt) => jwt.verify(keys, request, now_secs),
        }
        .map(|()| Verification::Valid)
    }

    /// Verifies a request before its body is read. An error cannot be cured by any body.
    ///
    /// # Errors
    /// The signature cannot be valid.
    pub fn validate_head(&self, keys: &Keys, headers: &HeaderMap, now_secs: i64) -> Result<(), SignatureError> {
        if self.mode == Mode::Off || (self.mode == Mode::IfPresent && !self.is_shown(headers)) {
            return Ok(());
        }
        match &self.scheme {
            Scheme::None => Ok(()),
            Scheme::Shared(shared) => shared.verify(&keys.tokens, headers),
            Scheme::Message(message) if !message.has_key(keys) => Err(SignatureError::NoSecret),
            Scheme::Message(message) => message.validate_head(headers, now_secs),
            Scheme::Jwt(jwt) => jwt.validate_head(keys, headers, now_secs),
        }
    }

    /// The headers of a request that is passed on under another URL, if its signature covers the URL: re-signed as by the provider, with the
    /// key that matches the original, else with the current one. Only headers that the request has.
    pub fn resign(
        &self,
        keys: &Keys,
        received: &Request<'_>,
        forwarded: &Request<'_>,
    ) -> Vec<(HeaderName, HeaderValue)> {
        match &self.scheme {
            Scheme::Message(message) if self.is_over_url() => message.resign(keys, received, forwarded),
            _ => vec![],
        }
    }

    /// Re-signs a timestamped signature for the present time, if it is older than an immediate delivery, with the key that matches the
    /// original. `None` without a timestamp, and for private keys, which only the provider has.
    pub fn renewal<'s>(&'s self, keys: &Keys, headers: &'s HeaderMap, now_secs: i64) -> Option<Renewal<'s>> {
        if self.mode == Mode::Off || !self.is_shown(headers) {
            return None;
        }
        match &self.scheme {
            Scheme::Message(message) => message.renewal(keys, headers, now_secs),
            Scheme::Jwt(jwt) => jwt.renewed(keys, headers, now_secs).map(Renewal::ready),
            Scheme::None | Scheme::Shared(_) => None,
        }
    }

    /// Whether the URL is signed, so that passing the request on under another one requires a new signature.
    pub fn is_over_url(&self) -> bool {
        matches!(&self.scheme, Scheme::Message(message) if message.is_over_url()) && self.mode != Mode::Off
    }

    /// Whether a request has one of its headers.
    pub fn is_shown(&self, headers: &HeaderMap) -> bool {
        self.headers().any(|name| headers.contains_key(name))
    }

    /// Whether a header alone is a credential: anyone who reads it can replay it.
    pub fn is_credential(&self, header: &HeaderName) -> bool {
        matches!(&self.scheme, Scheme::Shared(shared) if shared.headers().any(|name| header.as_str().eq_ignore_ascii_case(name)))
    }

    /// Whether the header is a signature over one request, and so not a credential, whatever its name.
    pub fn is_signature(&self, header: &HeaderName) -> bool {
        !matches!(self.scheme, Scheme::Shared(_))
            && self.headers().any(|name| header.as_str().eq_ignore_ascii_case(name))
    }

    fn headers(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        match &self.scheme {
            Scheme::None => Box::new(std::iter::empty()),
            Scheme::Shared(shared) => Box::new(shared.headers()),
            Scheme::Message(message) => Box::new(message.headers()),
            Scheme::Jwt(jwt) => Box::new(std::iter::once(jwt.header())),
        }
    }

    /// Whether it is checked with signature keys.
    pub fn needs_key(&self) -> bool {
        self.mode != Mode::Off && self.is_over_message()
    }

    /// Whether it covers the message, which proves the provider as the sender; a token proves only that the sender knows it.
    pub fn is_over_message(&self) -> bool {
        matches!(self.scheme, Scheme::Message(_) | Scheme::Jwt(_))
    }

    /// Whether it is required, and checked with signature keys.
    pub fn needs_secret(&self) -> bool {
        self.mode == Mode::Require && self.needs_key()
    }

    /// The account's key that checks signatures if there are no webhook secrets.
    pub fn key_from(&self) -> Option<&str> {
        self.key_from.as_deref()
    }

    /// Checks that a secret can be its key.
    ///
    /// # Errors
    /// The mistake in the secret. The message contains nothing of the secret.
    pub fn check_secret(&self, secret: &Secret) -> Result<(), &'static str> {
        match &self.scheme {
            Scheme::Message(message) => message.key(secret).map(drop),
            _ => Ok(()),
        }
    }
}
