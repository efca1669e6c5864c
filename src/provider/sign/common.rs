//! Parts that the schemes have in common: the request and the keys of a check, why it fails, digests and encodings.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::HeaderMap;
use ring::{digest, hmac};
use serde::Deserialize;

use super::super::secret::Secret;

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
    /// The text of a header.
    pub(super) fn header(&self, name: &str) -> Option<&'a str> {
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

/// The reason why a signature is invalid. The messages tell an operator what to check and contain no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
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

/// The place of a text in the headers.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ValueSource {
    /// The header's name.
    pub(super) header: String,
    /// The text before it, such as `Bearer `; case-insensitive.
    #[serde(default)]
    pub(super) prefix: String,
}

impl ValueSource {
    /// The texts, without the prefix.
    pub(super) fn texts<'h>(&'h self, headers: &'h HeaderMap) -> impl Iterator<Item = &'h str> {
        headers.get_all(&self.header).into_iter().filter_map(|value| without_prefix(value.to_str().ok()?, &self.prefix))
    }
}

/// Removes a prefix, ignoring its case.
pub(super) fn without_prefix<'t>(text: &'t str, prefix: &str) -> Option<&'t str> {
    let (head, rest) = text.trim().split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// The encoding of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Encoding {
    /// Hexadecimal; the default.
    #[default]
    Hex,
    /// Base64.
    Base64,
}

impl Encoding {
    pub(super) fn encode(self, bytes: &[u8]) -> String {
        match self {
            Encoding::Hex => hex::encode(bytes),
            Encoding::Base64 => BASE64.encode(bytes),
        }
    }

    pub(super) fn decode(self, text: &str) -> Option<Vec<u8>> {
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

/// SHA-256.
pub(super) fn sha256(bytes: &[u8]) -> digest::Digest {
    digest::digest(&digest::SHA256, bytes)
}

/// SHA-256 in lower-case hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(sha256(bytes))
}

/// The key of a Standard Webhooks secret: `whsec_`, then 24 to 64 bytes in base64.
///
/// # Errors
/// The mistake in the secret. The message contains nothing of the secret.
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
