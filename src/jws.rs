//! JSON Web Signatures in compact form (RFC 7515), as tokens have them (RFC 7519): HS256, RS256 and ES256 (RFC 7518 §3). The
//! cryptography is ring's. Nothing here looks at a clock or at what the claims say.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64_URL;
use ring::hmac;
use ring::signature::{ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The shortest secret, in bytes: RFC 7518 §3.2 requires the length of the hash.
pub const SECRET_BYTES_MIN: usize = 32;
/// The shortest RSA modulus, in bytes (RFC 7518 §3.3).
const MODULUS_BYTES_MIN: usize = 256;

/// A signature algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// HMAC with SHA-256, by a shared secret.
    Hs256,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// ECDSA over P-256 with SHA-256.
    Es256,
}

/// The reason why a token cannot be parsed. It contains nothing of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JwsError {
    /// Not three parts in base64url, or no JSON object where one has to be.
    #[error("not a JWT")]
    Malformed,
    /// `alg` is none of [`Algorithm`].
    #[error("alg must be HS256, RS256 or ES256")]
    Algorithm,
    /// The token requires an unsupported extension (RFC 7515 §4.1.11, RFC 7797).
    #[error("crit and b64 must not be in its header")]
    Critical,
}

/// A parsed token, with an unverified signature.
pub struct Token<'a> {
    /// The token's algorithm.
    pub algorithm: Algorithm,
    /// The token's key id.
    pub key_id: Option<String>,
    signed: &'a str,
    payload: Vec<u8>,
    signature: Vec<u8>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
}

impl<'a> Token<'a> {
    /// Parses a token.
    ///
    /// # Errors
    /// It is no token, or an unsupported one.
    pub fn parse(text: &'a str) -> Result<Self, JwsError> {
        let decoded = |part: &str| BASE64_URL.decode(part).map_err(|_| JwsError::Malformed);
        let (signed, signature) = text.rsplit_once('.').ok_or(JwsError::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(JwsError::Malformed)?;
        // Via a map: serde also accepts a struct as an array.
        let header: Map<String, Value> = serde_json::from_slice(&decoded(header)?).map_err(|_| JwsError::Malformed)?;
        if header.contains_key("crit") || header.contains_key("b64") {
            return Err(JwsError::Critical);
        }
        let header: Header = serde_json::from_value(header.into()).map_err(|_| JwsError::Malformed)?;
        let algorithm = match header.alg.as_str() {
            "HS256" => Algorithm::Hs256,
            "RS256" => Algorithm::Rs256,
            "ES256" => Algorithm::Es256,
            _ => return Err(JwsError::Algorithm),
        };
        let (payload, signature) = (decoded(payload)?, decoded(signature)?);
        Ok(Self { algorithm, key_id: header.kid, signed, payload, signature })
    }

    /// Whether this secret signed it; compared in constant time.
    pub fn is_signed_by_secret(&self, secret: &[u8]) -> bool {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        self.algorithm == Algorithm::Hs256 && hmac::verify(&key, self.signed.as_bytes(), &self.signature).is_ok()
    }

    /// Whether this key's private half signed it. `false` for a token with another key id.
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        let is_named = self.key_id.is_none() || key.id.is_none() || self.key_id == key.id;
        let message = self.signed.as_bytes();
        is_named
            && match (&key.half, self.algorithm) {
                (PublicHalf::Rsa { n, e }, Algorithm::Rs256) => {
                    let key = RsaPublicKeyComponents { n, e };
                    key.verify(&RSA_PKCS1_2048_8192_SHA256, message, &self.signature).is_ok()
                }
                (PublicHalf::P256(point), Algorithm::Es256) => {
                    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, &self.signature).is_ok()
                }
                _ => false,
            }
    }

    /// Returns the token's claims. Trust them only after verifying the signature.
    ///
    /// # Errors
    /// The payload is no JSON object.
    pub fn claims(&self) -> Result<Map<String, Value>, JwsError> {
        serde_json::from_slice(&self.payload).map_err(|_| JwsError::Malformed)
    }
}

/// A token by HS256 with these claims.
///
/// # Errors
/// The claims cannot be written as JSON.
pub fn sign(secret: &[u8], claims: &impl Serialize) -> serde_json::Result<String> {
    let header = BASE64_URL.encode(r#"{"typ":"JWT","alg":"HS256"}"#);
    let signed = format!("{header}.{}", BASE64_URL.encode(serde_json::to_vec(claims)?));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
    Ok(format!("{signed}.{}", BASE64_URL.encode(tag)))
}

/// A public key of a JSON Web Key Set.
pub struct PublicKey {
    id: Option<String>,
    half: PublicHalf,
}

enum PublicHalf {
    /// Modulus and exponent, big-endian, without leading zeros.
    Rsa { n: Vec<u8>, e: Vec<u8> },
    /// An uncompressed point.
    P256(Vec<u8>),
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({:?})", self.id)
    }
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Map<String, Value>>,
}

/// The keys of a JSON Web Key Set (RFC 7517) that check RS256 and ES256. Others are left out, as §5 has it.
///
/// # Errors
/// A sentence: it is no such set, or has no such key.
pub fn key_set(text: &str) -> Result<Vec<PublicKey>, String> {
    let set: KeySet = serde_json::from_str(text).map_err(|e| format!("is not a JSON Web Key Set: {e}"))?;
    let keys: Vec<PublicKey> = set.keys.iter().filter_map(public_key).collect();
    if keys.is_empty() {
        return Err("has no key for RS256 (2048 bits at least) or ES256".to_owned());
    }
    Ok(keys)
}

fn public_key(jwk: &Map<String, Value>) -> Option<PublicKey> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    let bytes = |name: &str| BASE64_URL.decode(text(name)?).ok();
    let number = |name: &str| Some(bytes(name)?.into_iter().skip_while(|byte| *byte == 0).collect::<Vec<u8>>());
    let is = |name: &str, wanted: &str| jwk.get(name).is_none_or(|said| said.as_str() == Some(wanted));
    let verifies = |ops: &Value| ops.as_array().is_some_and(|ops| ops.iter().any(|op| op == "verify"));
    let is_for = |algorithm: &str| jwk.get("key_ops").is_none_or(verifies) && is("use", "sig") && is("alg", algorithm);
    let half = match (text("kty")?, text("crv")) {
        ("RSA", _) if is_for("RS256") => {
            let (n, e) = (number("n")?, number("e")?);
            (n.len() >= MODULUS_BYTES_MIN).then_some(PublicHalf::Rsa { n, e })?
        }
        ("EC", Some("P-256")) if is_for("ES256") => {
            let (x, y) = (bytes("x")?, bytes("y")?);
            let point = [&[4], x.as_slice(), y.as_slice()].concat();
            (x.len() == 32 && y.len() == 32).then_some(PublicHalf::P256(point))?
        }
        _ => return None,
    };
    Some(PublicKey { id: text("kid").map(str::to_owned), half })
}
