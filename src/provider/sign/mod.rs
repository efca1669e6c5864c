//! Webhook signatures: verifies those of providers, and re-signs what is relayed under another URL. Pure; comparisons take constant time.
//!
//! A provider's description names a [`Signature`]: one of five schemes with its parameters, by the name of a preset
//! (`config/signatures.toml`) or written out. `read` parses it from TOML, `message` checks signatures over a message that a
//! `template` describes (HMAC, Ed25519), `renew` re-signs such a message for the present time, `url` has the message parts that derive from the URL, `jwt` tokens with the body's hash,
//! `shared` static secrets.

mod jwt;
mod message;
mod read;
mod renew;
mod shared;
mod template;
#[cfg(test)]
mod tests;
mod url;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{HeaderMap, HeaderName, HeaderValue};
use ring::{digest, hmac};
use serde::Deserialize;

use super::secret::Secret;
use jwt::Jwt;
use message::MessageSignature;
pub use renew::Renewal;
use shared::SharedSecret;
pub use url::without_fragment;

/// How a webhook is signed, and whether it must be. Read from TOML.
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

/// The signed parts of a request.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The method.
    pub method: &'a str,
    /// The URL that was called: public scheme, host, path and query.
    pub url: &'a str,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The raw body.
    pub body: &'a [u8],
    /// The pairs of a form body; none for other bodies and for GET.
    pub form: Option<&'a [(String, String)]>,
}

impl<'a> Request<'a> {
    fn header(&self, name: &str) -> Option<&'a str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// The keys that signatures are checked with. Several while one is rotated; any may match.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    /// Keys of signatures; for Ed25519 the public one.
    pub secrets: Vec<Secret>,
    /// Keys selected by name in a request: Twilio's newer signatures, token issuers.
    pub named: BTreeMap<String, Secret>,
    /// Static secrets.
    pub tokens: Vec<Secret>,
}

/// Why a signature is invalid. The messages tell an operator what to check and contain no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSignature {
    /// The header is missing.
    #[error("the request carries no {0} header")]
    Missing(String),
    /// The header is malformed.
    #[error("the {0} header is malformed")]
    Malformed(String),
    /// Too old, or too far in the future.
    #[error("the signature is {}; at most {at_most_secs} s are allowed: check this machine's clock", age(*age_secs))]
    Stale {
        /// The age in seconds; negative if it is in the future.
        age_secs: i64,
        /// The maximum, in seconds.
        at_most_secs: i64,
    },
    /// The token is signed by another algorithm than its scheme's.
    #[error("the token is not signed by HS256")]
    Algorithm,
    /// The token is genuine, but not for this request.
    #[error("the token's claim {0} is missing or does not match")]
    Claim(String),
    /// No configured secret matches the signature.
    #[error(
        "no configured secret gives this signature; check the secret and that public_url is the URL the provider calls"
    )]
    Mismatch,
    /// No secret is configured.
    #[error("no secret is configured for this webhook")]
    NoSecret,
}

fn age(secs: i64) -> String {
    if secs < 0 { format!("{} s in the future", secs.unsigned_abs()) } else { format!("{secs} s old") }
}

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// The signature is valid.
    Holds,
    /// No signature is required, and there is none.
    Nothing,
}

impl Signature {
    /// Verifies a request.
    ///
    /// # Errors
    /// The signature is invalid.
    pub fn verify(&self, keys: &Keys, request: &Request<'_>, now_secs: i64) -> Result<Checked, BadSignature> {
        if self.mode == Mode::Off || (self.mode == Mode::IfPresent && !self.is_shown(request.headers)) {
            return Ok(Checked::Nothing);
        }
        match &self.scheme {
            Scheme::None => return Ok(Checked::Nothing),
            Scheme::Shared(shared) => shared.verify(&keys.tokens, request.headers),
            Scheme::Message(message) => message.verify(keys, request, now_secs),
            Scheme::Jwt(jwt) => jwt.verify(keys, request, now_secs),
        }
        .map(|()| Checked::Holds)
    }

    /// Verifies a request before its body is read. An error cannot be cured by any body.
    ///
    /// # Errors
    /// The signature cannot be valid.
    pub fn judge_head(&self, keys: &Keys, headers: &HeaderMap, now_secs: i64) -> Result<(), BadSignature> {
        if self.mode == Mode::Off || (self.mode == Mode::IfPresent && !self.is_shown(headers)) {
            return Ok(());
        }
        match &self.scheme {
            Scheme::None => Ok(()),
            Scheme::Shared(shared) => shared.verify(&keys.tokens, headers),
            Scheme::Message(message) if !message.has_key(keys) => Err(BadSignature::NoSecret),
            Scheme::Message(message) => message.judge_head(headers, now_secs),
            Scheme::Jwt(jwt) => jwt.judge_head(keys, headers, now_secs),
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
    /// What is wrong with it. The message contains nothing of the secret.
    pub fn check_secret(&self, secret: &Secret) -> Result<(), &'static str> {
        match &self.scheme {
            Scheme::Message(message) => message.key(secret).map(drop),
            _ => Ok(()),
        }
    }
}

/// The place of a text in the headers.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    /// The header's name.
    header: String,
    /// The text before it, such as `Bearer `; case-insensitive.
    #[serde(default)]
    prefix: String,
}

impl Place {
    /// The texts, without the prefix.
    fn texts<'h>(&'h self, headers: &'h HeaderMap) -> impl Iterator<Item = &'h str> {
        headers.get_all(&self.header).into_iter().filter_map(|value| without_prefix(value.to_str().ok()?, &self.prefix))
    }
}

/// Removes a prefix, ignoring its case.
fn without_prefix<'t>(text: &'t str, prefix: &str) -> Option<&'t str> {
    let (head, rest) = text.trim().split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// The encoding of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Encoding {
    /// Hexadecimal; the default.
    #[default]
    Hex,
    /// Base64.
    Base64,
}

impl Encoding {
    fn encode(self, bytes: &[u8]) -> String {
        match self {
            Encoding::Hex => hex::encode(bytes),
            Encoding::Base64 => BASE64.encode(bytes),
        }
    }

    fn decode(self, text: &str) -> Option<Vec<u8>> {
        match self {
            Encoding::Hex => hex::decode(text).ok(),
            Encoding::Base64 => BASE64.decode(text).ok(),
        }
    }
}

/// Compares in constant time.
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    // Comparing MACs under a fixed key hides lengths and contents alike.
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"ringfence constant-time comparison");
    hmac::verify(&key, a, hmac::sign(&key, b).as_ref()).is_ok()
}

fn sha256(bytes: &[u8]) -> digest::Digest {
    digest::digest(&digest::SHA256, bytes)
}

/// SHA-256 in lower-case hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(sha256(bytes))
}

/// The key of a Standard Webhooks secret: `whsec_`, then 24 to 64 bytes in base64.
///
/// # Errors
/// What is wrong with it. The message contains nothing of the secret.
pub fn standard_key(secret: &Secret) -> Result<Vec<u8>, &'static str> {
    let text = secret.expose().strip_prefix("whsec_").ok_or("does not start with whsec_")?;
    let key = BASE64.decode(text).map_err(|_| "is not base64 after whsec_")?;
    if (24..=64).contains(&key.len()) { Ok(key) } else { Err("must have 24 to 64 bytes after whsec_") }
}

/// The `webhook-signature` of Standard Webhooks: HMAC-SHA256 over `id.timestamp.body`.
pub fn sign_standard(key: &[u8], id: &str, at_secs: i64, body: &[u8]) -> String {
    let message = [format!("{id}.{at_secs}.").as_bytes(), body].concat();
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    format!("v1,{}", BASE64.encode(hmac::sign(&key, &message)))
}
