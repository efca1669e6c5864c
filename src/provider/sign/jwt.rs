//! JSON Web Tokens (HS256) that hold the hash of the body.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderName, HeaderValue};
use ring::hmac;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::secret::Secret;
use super::renew::{is_old, original};
use crate::jws::{Algorithm, JwsError, Token};

use super::common::{Encoding, Keys, Request, SignatureError, equal, sha256, without_prefix};

/// A token in a header.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Jwt {
    /// The header's name.
    header: String,
    /// Text before the token, such as `Bearer `.
    #[serde(default)]
    prefix: String,
    /// The claim that selects one of the named keys.
    key_claim: Option<String>,
    /// The required `iss`.
    issuer: Option<String>,
    /// The claim that covers the body.
    body_hash: BodyHash,
    /// The claim that limits the token's age.
    age: Age,
    /// With `iat`: how long the token is accepted after it. With `exp`: how far clocks may differ. Seconds; default 300.
    #[serde(default = "super::message::tolerance_default")]
    tolerance_secs: u32,
}

/// The claim with the SHA-256 of the body.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct BodyHash {
    /// The claim's name.
    claim: String,
    /// The encoding of the hash.
    encoding: Encoding,
    /// Whether a request without a body may omit the claim.
    #[serde(default)]
    optional: bool,
}

/// The claim that limits a token's lifetime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Age {
    /// The claim `exp`.
    Exp,
    /// The claim `iat`.
    Iat,
}

type Claims = Map<String, Value>;

impl Jwt {
    pub(super) fn header(&self) -> &str {
        &self.header
    }

    pub(super) fn verify(&self, keys: &Keys, request: &Request<'_>, now_secs: i64) -> Result<(), SignatureError> {
        if keys.secrets.is_empty() && (self.key_claim.is_none() || keys.named.is_empty()) {
            return Err(SignatureError::NoSecret);
        }
        let shown = request.header(&self.header).ok_or_else(|| SignatureError::Missing(self.header.clone()))?;
        let token =
            without_prefix(shown, &self.prefix).ok_or_else(|| SignatureError::Malformed(self.header.clone()))?;
        let (claims, _) = self.claims(keys, token.trim())?;
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        if self.issuer.as_deref().is_some_and(|issuer| text("iss") != Some(issuer)) {
            return Err(SignatureError::Claim("iss".to_owned()));
        }
        self.check_age(&claims, now_secs)?;
        let hash = text(&self.body_hash.claim).map(|hash| self.body_hash.encoding.decode(hash).unwrap_or_default());
        match hash {
            Some(hash) if equal(&hash, sha256(request.body).as_ref()) => Ok(()),
            None if self.body_hash.optional
                && request.body.is_empty()
                && !claims.contains_key(&self.body_hash.claim) =>
            {
                Ok(())
            }
            _ => Err(SignatureError::Claim(self.body_hash.claim.clone())),
        }
    }

    /// The first reason to reject a request that does not depend on its body.
    pub(super) fn validate_head(&self, keys: &Keys, headers: &HeaderMap, now_secs: i64) -> Result<(), SignatureError> {
        let request = Request { method: "", url: "", headers, body: &[], form: None };
        match self.verify(keys, &request, now_secs) {
            // The body was not read, so its hash does not matter.
            Err(SignatureError::Claim(claim)) if claim == self.body_hash.claim => Ok(()),
            other => other,
        }
    }

    /// The claims of a token signed by one of the keys, and that key; of named keys the one that the token selects.
    fn claims<'k>(&self, keys: &'k Keys, token: &str) -> Result<(Claims, &'k Secret), SignatureError> {
        let token = Token::parse(token).map_err(|why| match why {
            JwsError::Algorithm => SignatureError::Algorithm,
            JwsError::Malformed | JwsError::Critical => SignatureError::Malformed(self.header.clone()),
        })?;
        if token.algorithm != Algorithm::Hs256 {
            return Err(SignatureError::Algorithm);
        }
        let mut worst = SignatureError::Mismatch;
        let named = self
            .key_claim
            .iter()
            .flat_map(|claim| keys.named.iter().map(move |(name, key)| (Some((claim, name)), key)));
        for (names, key) in named.chain(keys.secrets.iter().map(|key| (None, key))) {
            if !token.is_signed_by_secret(key.expose().as_bytes()) {
                continue;
            }
            let claims = token.claims().map_err(|_| SignatureError::Malformed(self.header.clone()))?;
            match names {
                Some((claim, name)) if claims.get(claim).and_then(Value::as_str) != Some(name) => {
                    worst = SignatureError::Claim(claim.clone());
                }
                _ => return Ok((claims, key)),
            }
        }
        Err(worst)
    }

    /// The header with the token re-signed for now: its times are shifted to the present.
    pub(super) fn renewed(
        &self,
        keys: &Keys,
        headers: &HeaderMap,
        now_secs: i64,
    ) -> Option<Vec<(HeaderName, HeaderValue)>> {
        let shown = headers.get(&self.header)?;
        let token = without_prefix(shown.to_str().ok()?, &self.prefix)?.trim();
        let (mut claims, key) = self.claims(keys, token).ok()?;
        let secs = |claims: &Claims, claim: &str| claims.get(claim)?.as_f64().map(|secs| secs as i64);
        let passed = now_secs.saturating_sub(secs(&claims, "iat").or_else(|| secs(&claims, "nbf"))?);
        if !is_old(passed) {
            return None;
        }
        for claim in ["iat", "nbf", "exp"] {
            if let Some(at) = secs(&claims, claim).map(|at| at.saturating_add(passed)) {
                claims.insert(claim.to_owned(), at.into());
            }
        }
        let message =
            format!("{}.{}", token.split('.').next()?, URL_SAFE_NO_PAD.encode(Value::Object(claims).to_string()));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.expose().as_bytes()), message.as_bytes());
        let anew = format!("{}{message}.{}", self.prefix, URL_SAFE_NO_PAD.encode(tag));
        let name = HeaderName::try_from(&self.header).ok()?;
        Some(vec![original(&name, shown.clone())?, (name, HeaderValue::try_from(anew).ok()?)])
    }

    fn check_age(&self, claims: &Claims, now_secs: i64) -> Result<(), SignatureError> {
        let tolerance_secs = i64::from(self.tolerance_secs);
        let secs = |name: &str| match claims.get(name) {
            None => Ok(None),
            // RFC 7519 §2: a number, which may have a fraction.
            Some(value) => match value.as_f64() {
                Some(secs) => Ok(Some(secs as i64)),
                None => Err(SignatureError::Claim(name.to_owned())),
            },
        };
        let stale = |at_secs: i64| SignatureError::Stale {
            age_secs: now_secs.saturating_sub(at_secs),
            at_most_secs: tolerance_secs,
        };
        if let Some(from) = secs("nbf")?.filter(|from| from.saturating_sub(now_secs) > tolerance_secs) {
            return Err(stale(from));
        }
        match self.age {
            Age::Exp => {
                let until = secs("exp")?.ok_or_else(|| SignatureError::Claim("exp".to_owned()))?;
                if now_secs.saturating_sub(until) > tolerance_secs { Err(stale(until)) } else { Ok(()) }
            }
            Age::Iat => {
                let made = secs("iat")?.ok_or_else(|| SignatureError::Claim("iat".to_owned()))?;
                let expired = secs("exp")?.is_some_and(|until| now_secs.saturating_sub(until) > tolerance_secs);
                let age_secs = now_secs.saturating_sub(made);
                if expired || age_secs.saturating_abs() > tolerance_secs { Err(stale(made)) } else { Ok(()) }
            }
        }
    }
}
