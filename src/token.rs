//! JSON Web Tokens, signed with a shared secret (HS256) or a private key (RS256, ES256), and the access they grant.

use std::fmt;
use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::jws::{self, Algorithm, PublicKey, Token};
use crate::provider::secret::Secret;

/// The allowed clock skew, in seconds.
const LEEWAY_SECS: i64 = 5;

/// The access that a token grants. Ordered: each scope includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Scrape metrics.
    Metrics,
    /// Read calls, status and events.
    Read,
    /// Hang up, release, change businesses.
    Operate,
}

impl Scope {
    /// All scopes with their names.
    pub const WORDS: [(&str, Scope); 3] =
        [("metrics", Scope::Metrics), ("read", Scope::Read), ("operate", Scope::Operate)];

    /// The scope's name.
    pub fn as_str(self) -> &'static str {
        Self::WORDS.iter().find(|(_, scope)| *scope == self).map_or("", |(word, _)| word)
    }
}

/// The word in `scope` that grants unmasked telephone numbers, in addition to a [`Scope`].
pub const WHOLE_NUMBERS: &str = "numbers";

/// The claims of an operator token.
#[derive(Debug, Clone, Serialize)]
pub struct Claims {
    /// The holder; written to the audit log.
    pub sub: String,
    /// The expiry, in seconds since 1970.
    pub exp: i64,
    /// The businesses it grants access to; `["*"]` is all.
    pub businesses: Vec<String>,
    /// Names of [`Scope`] and [`WHOLE_NUMBERS`], separated by spaces (RFC 8693 §4.2).
    pub scope: String,
}

/// Signing a token failed.
#[derive(Debug, thiserror::Error)]
#[error("failed to sign token: {0}")]
pub struct SigningError(#[from] serde_json::Error);

/// A token was rejected. The text contains nothing of the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid token: {0}")]
pub struct TokenError(String);

fn bad(why: impl Into<String>) -> TokenError {
    TokenError(why.into())
}

/// Signs a token.
///
/// # Errors
/// [`SigningError`].
pub fn mint(secret: &Secret, claims: &Claims) -> Result<String, SigningError> {
    Ok(jws::sign(secret.expose().as_bytes(), claims)?)
}

/// The bearer token of a request (RFC 6750 §2.1); `None` if it has no credentials at all.
///
/// # Errors
/// The request has several credentials, or one that is no bearer token. It is not treated as anonymous.
pub fn bearer(headers: &HeaderMap) -> Result<Option<&str>, TokenError> {
    let mut shown = headers.get_all(AUTHORIZATION).iter();
    let Some(first) = shown.next() else { return Ok(None) };
    let text = first.to_str().ok().filter(|_| shown.next().is_none());
    let token =
        text.and_then(|text| text.trim().split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let token = token.map(|(_, token)| token.trim()).filter(|token| !token.is_empty());
    token.map(Some).ok_or_else(|| bad("Authorization must be one header with a bearer token"))
}

/// The keys that verify tokens. Cheap to clone.
#[derive(Clone, Default)]
pub struct Keys {
    secrets: Vec<Secret>,
    public: Arc<[PublicKey]>,
    issuer: Option<Arc<str>>,
    audience: Option<Arc<str>>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({} secrets, {} public)", self.secrets.len(), self.public.len())
    }
}

/// The holder of an app's token, and what it may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The name in the log.
    pub name: String,
    /// The expiry, in seconds since 1970.
    pub expires_at: i64,
    /// The visible businesses; `None` is all.
    pub businesses: Option<Vec<String>>,
}

impl Principal {
    /// Whether the holder may see this business.
    pub fn sees(&self, business: &str) -> bool {
        self.businesses.as_ref().is_none_or(|own| own.iter().any(|one| one == business))
    }
}

/// The holder of an operator token, and its access.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    /// The name in the audit log.
    pub name: String,
    /// The expiry, in seconds since 1970.
    pub expires_at: i64,
    /// The access; `None` if its scope has no known word.
    pub scope: Option<Scope>,
    /// Whether telephone numbers are shown unmasked.
    pub whole_numbers: bool,
    /// The visible businesses; `None` is all.
    pub businesses: Option<Vec<String>>,
}

/// A text, or a number as some apps write ids of businesses and people.
fn word(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A time claim in seconds since 1970, possibly with a fraction (RFC 7519 §2). Values out of range are clamped.
fn secs(claims: &Map<String, Value>, name: &str) -> Result<Option<i64>, TokenError> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let secs = value.as_f64().ok_or_else(|| bad(format!("{name} must be a number, the seconds since 1970")))?;
    Ok(Some(secs as i64))
}

/// The words of `scope`: a string separated by spaces (RFC 8693 §4.2), or a list, which some issuers use.
fn scopes(claims: &Map<String, Value>) -> Result<Vec<&str>, TokenError> {
    let wrong = || bad("scope must be a string: words separated by spaces");
    match claims.get("scope") {
        None | Some(Value::Null) => Ok(vec![]),
        Some(Value::String(text)) => Ok(text.split_ascii_whitespace().collect()),
        Some(Value::Array(list)) => list.iter().map(|one| one.as_str().ok_or_else(wrong)).collect(),
        Some(_) => Err(wrong()),
    }
}

/// The businesses of a token; `None` if the claim is missing.
fn businesses(claims: &Map<String, Value>) -> Result<Option<Vec<String>>, TokenError> {
    let wrong = || bad("businesses must be a business id or a list of them; \"*\" is all");
    match claims.get("businesses") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(list)) => {
            list.iter().map(|one| word(one).ok_or_else(wrong)).collect::<Result<_, _>>().map(Some)
        }
        Some(one) => Ok(Some(vec![word(one).ok_or_else(wrong)?])),
    }
}

/// Maps `*` to `None`, which is all.
fn unless_all(businesses: Vec<String>) -> Option<Vec<String>> {
    (!businesses.iter().any(|one| one == "*")).then_some(businesses)
}

impl Keys {
    /// Keys that verify tokens signed with any of these secrets.
    pub fn of_secrets(secrets: Vec<Secret>) -> Self {
        Self { secrets, ..Self::default() }
    }

    /// Adds the public keys of a JSON Web Key Set (RFC 7517). Keys for other algorithms are ignored.
    ///
    /// # Errors
    /// The set is malformed, or none of its keys can be used.
    pub fn with_jwks(self, text: &str) -> Result<Self, String> {
        Ok(Self { public: jws::key_set(text)?.into(), ..self })
    }

    /// Requires the given `iss` and `aud` (or one of a list) of each token.
    pub fn only_for(self, issuer: Option<String>, audience: Option<String>) -> Self {
        Self { issuer: issuer.map(Into::into), audience: audience.map(Into::into), ..self }
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.secrets.is_empty() && self.public.is_empty()
    }

    /// The claims and the expiry of a token that one of these keys has signed, that is valid now, and that is meant for us.
    fn claims(&self, token: &str, now_secs: i64) -> Result<(Map<String, Value>, i64), TokenError> {
        let token = Token::parse(token).map_err(|why| bad(why.to_string()))?;
        let is_signed = match token.algorithm {
            Algorithm::Hs256 => self.secrets.iter().any(|secret| token.is_signed_by_secret(secret.expose().as_bytes())),
            Algorithm::Rs256 | Algorithm::Es256 => self.public.iter().any(|key| token.is_signed_by(key)),
        };
        if !is_signed {
            return Err(bad("no configured key has signed it"));
        }
        let claims = token.claims().map_err(|_| bad("its claims must be a JSON object"))?;
        let expires_at = secs(&claims, "exp")?.ok_or_else(|| bad("exp must be present, in seconds since 1970"))?;
        if expires_at.saturating_add(LEEWAY_SECS) <= now_secs {
            return Err(bad("expired (exp)"));
        }
        if secs(&claims, "nbf")?.is_some_and(|from| from > now_secs.saturating_add(LEEWAY_SECS)) {
            return Err(bad("not valid yet (nbf)"));
        }
        if let Some(issuer) = &self.issuer
            && claims.get("iss").and_then(Value::as_str) != Some(issuer)
        {
            return Err(bad(format!("iss must be {issuer:?}")));
        }
        if let Some(audience) = &self.audience {
            let is_it = |value: &Value| value.as_str() == Some(audience);
            let fits = claims
                .get("aud")
                .is_some_and(|aud| aud.as_array().map_or_else(|| is_it(aud), |all| all.iter().any(is_it)));
            if !fits {
                return Err(bad(format!("aud must be {audience:?}, or a list that contains it")));
            }
        }
        Ok((claims, expires_at))
    }

    /// Authenticates an app's token. One without `businesses` grants access to `unstated`.
    ///
    /// # Errors
    /// The token is expired or not valid yet, not signed by one of these keys, or grants less than reading.
    pub fn authenticate(&self, token: &str, now_secs: i64, unstated: &[String]) -> Result<Principal, TokenError> {
        let (claims, expires_at) = self.claims(token, now_secs)?;
        // Unknown scopes are the app's own and are ignored; a token that is for metrics only may not read.
        let scopes = scopes(&claims)?;
        let ours = |scope: Scope| scopes.contains(&scope.as_str());
        if ours(Scope::Metrics) && !ours(Scope::Read) && !ours(Scope::Operate) {
            return Err(bad("scope must have \"read\", where it has \"metrics\""));
        }
        Ok(Principal {
            name: claims.get("sub").and_then(word).unwrap_or_default(),
            expires_at,
            businesses: unless_all(businesses(&claims)?.unwrap_or_else(|| unstated.to_vec())),
        })
    }

    /// Authenticates an operator token.
    ///
    /// # Errors
    /// The token is expired or not valid yet, not signed by one of these keys, or lacks its holder or businesses.
    pub fn operator(&self, token: &str, now_secs: i64) -> Result<Operator, TokenError> {
        let (claims, expires_at) = self.claims(token, now_secs)?;
        let scopes = scopes(&claims)?;
        let known = Scope::WORDS.iter().filter(|(word, _)| scopes.contains(word)).map(|(_, scope)| *scope);
        let name = claims.get("sub").and_then(word).filter(|name| !name.trim().is_empty());
        let businesses = businesses(&claims)?;
        Ok(Operator {
            name: name.ok_or_else(|| bad("sub must be a string: the holder's name"))?,
            expires_at,
            scope: known.max(),
            whole_numbers: scopes.contains(&WHOLE_NUMBERS),
            businesses: unless_all(
                businesses.ok_or_else(|| bad("businesses must be a business id or a list of them; \"*\" is all"))?,
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
    use serde_json::json;

    use super::*;

    const SECRET: &str = "a secret of some length, for tests alone";
    /// The public half of `EC_KEY`.
    const JWKS: &str = r#"{"keys":[
        {"kty":"oct","k":"AAAA"},
        {"kty":"EC","crv":"P-256","kid":"one","alg":"ES256","use":"sig",
         "x":"3PqB1UAX-sZ5voQ7vLWQgOiD6PCAl-DioPAqj2lY5AU","y":"_gNKvuYp23DF5LUob5iHjv-MDFYnWcBsgjJrkdTeVDQ"}]}"#;
    /// PKCS #8 in base64, made for this test.
    const EC_KEY: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgQTw+ZkeH6QSTAQpmC2r2Gatvn8kIfkgDEEa4yZ0pSD6h\
        RANCAATc+oHVQBf6xnm+hDu8tZCA6IPo8ICX4OKg8CqPaVjkBf4DSr7mKdtwxeS1KG+Yh47/jAxWJ1nAbIIya5HU3lQ0";

    /// An RSA key beside the other, made by OpenSSL; and a signature by its private half, which was deleted.
    const RSA_JWKS: &str = r#"{"keys":[
        {"kty":"EC","crv":"P-256","kid":"one","alg":"ES256","use":"sig",
         "x":"3PqB1UAX-sZ5voQ7vLWQgOiD6PCAl-DioPAqj2lY5AU","y":"_gNKvuYp23DF5LUob5iHjv-MDFYnWcBsgjJrkdTeVDQ"},
        {"kty":"RSA","kid":"two","alg":"RS256","use":"sig","e":"AQAB","n":"MODULUS"}]}"#;
    const MODULUS: &str = "rx3VgXqTH_PHu14EtCrp1MybROlalfBkJUTlCKzXjL-OdjlfmM240JyAeMSZeErtL2S4xrzUi6UnN6IIxWLnku5sx6MHDZBOaIZsMKrM-jLB\
        jtyXiKpHZaDQIx4YgN5LV4HS_Ijgm5a86h4QdKlAYsOTJOlZb3Bv-OTTBfRacbXooRKBOLnGQ6JjqSQvfUN5tFX1_fuTS0UmcMkOH34izR8R\
        O-3NXoQfPGShrOjtmq_dxaHbZPQAL7bqHvi015g7iyrsEHRCfNArZBGapfWuShABWpsnL6LUh3oWHSZT-Imys37iwhmKCkRRBC7l7DY1P0av\
        yZGiMWEcx5wK6EwP_Q";
    const RSA_HEADER: &str = "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCIsImtpZCI6InR3byJ9";
    const RSA_CLAIMS: &str = "eyJzdWIiOiJ1c2VyIDciLCJleHAiOjIwMDAsImJ1c2luZXNzZXMiOlsiYWNtZSJdfQ";
    const RSA_SIGNATURE: &str = "bjCAJve3-OvN3-S7pFsld6wAw8TR9L-KS1WoLdUgLbtlwscPghveub-Hi0P5WU37RubHIRxLXQC99VjQbsb96W26SehEIfV4QjVADSx1QpIn\
        GOjswCFK9m7Qey3CBaNFgnagxxthG1YRx3VjuCPhAUV-fsJ3WlMwwWrq1MTyvOW-vvH4JHgCnyjuar_OaIDS4X5f2JQMqp0B77OUBWd71Aux\
        uqMqY79DQGHr9pzkkxj6i-PwI6yaDYP_MnJBuPHjcpp0GF6dhV6tOoV1SlYrO4Y7eHtTbehxHQwfRM7VdreoHEDIU-SNLUbJhBejo5K6sByJ\
        iXV9AlY2z2WYIn6c8w";

    fn signed(claims: &Value) -> String {
        jws::sign(SECRET.as_bytes(), claims).unwrap()
    }

    fn encoded(part: &Value) -> String {
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(part.to_string())
    }

    #[test]
    fn a_token_says_what_may_be_seen_until_it_expires() {
        let keys = Keys::of_secrets(vec![Secret::new("an older one"), Secret::new(SECRET)]);
        let of = |claims: Value| keys.authenticate(&signed(&claims), 1000, &["default".to_owned()]);
        let seen = |claims: Value| of(claims).unwrap().businesses;
        assert_eq!(seen(json!({"exp": 2000})), Some(vec!["default".to_owned()]));
        assert_eq!(seen(json!({"exp": 2000, "businesses": ["a", "b"]})), Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(seen(json!({"exp": 2000, "businesses": "a"})), Some(vec!["a".to_owned()]));
        assert_eq!(seen(json!({"exp": 2000, "businesses": ["*"], "scope": "read"})), None);
        assert_eq!(seen(json!({"exp": 2000, "businesses": []})), Some(vec![]));
        let principal = of(json!({"exp": 2000, "sub": "user 7", "businesses": "a"})).unwrap();
        assert_eq!((principal.name.as_str(), principal.expires_at), ("user 7", 2000));
        assert!(principal.sees("a") && !principal.sees("b"));
        for bad in [
            json!({"exp": 995}),
            json!({"sub": "without an end"}),
            json!({"exp": 2000, "nbf": 1006}),
            json!({"exp": 2000, "businesses": ["*"], "scope": "metrics"}),
        ] {
            assert!(of(bad.clone()).is_err(), "{bad}");
        }
        let good = signed(&json!({"exp": 2000}));
        assert!(Keys::of_secrets(vec![Secret::new("another")]).authenticate(&good, 1000, &[]).is_err());
        let unsigned = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{}.", good.split('.').nth(1).unwrap());
        assert!(keys.authenticate(&unsigned, 1000, &[]).is_err() && keys.authenticate("nonsense", 1000, &[]).is_err());
    }

    #[test]
    fn public_keys_check_what_their_private_half_has_signed() {
        let keys = Keys::default().with_jwks(JWKS).unwrap();
        let private = base64::engine::general_purpose::STANDARD.decode(EC_KEY).unwrap();
        let random = ring::rand::SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &private, &random).unwrap();
        let with = |kid: Option<&str>| {
            let mut header = json!({"alg": "ES256"});
            if let Some(kid) = kid {
                header["kid"] = kid.into();
            }
            let message = format!("{}.{}", encoded(&header), encoded(&json!({"exp": 2000})));
            let signature = pair.sign(&random, message.as_bytes()).unwrap();
            format!("{message}.{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(signature))
        };
        assert!(
            keys.authenticate(&with(None), 1000, &[]).is_ok()
                && keys.authenticate(&with(Some("one")), 1000, &[]).is_ok()
        );
        assert!(keys.authenticate(&with(Some("two")), 1000, &[]).is_err());
        // A public key is not a secret: signatures made with it as one are rejected.
        let forged = jws::sign(JWKS.as_bytes(), &json!({"exp": 2000})).unwrap();
        assert!(keys.authenticate(&forged, 1000, &[]).is_err());
        assert!(Keys::default().with_jwks(r#"{"keys":[]}"#).is_err() && Keys::default().with_jwks("{").is_err());
    }

    #[test]
    fn claims_that_apps_write_otherwise_are_read_all_the_same() {
        let keys = Keys::of_secrets(vec![Secret::new(SECRET)]);
        let sign = |claims: Value| signed(&claims);
        let odd = json!({"sub": 7, "exp": 1_760_000_000.5, "businesses": [999_999, "acme"], "scope": ["calls"]});
        let principal = keys.authenticate(&sign(odd), 1_759_999_999, &[]).unwrap();
        assert!(principal.sees("999999") && principal.sees("acme") && !principal.sees("other"));
        assert_eq!((principal.name.as_str(), principal.expires_at), ("7", 1_760_000_000));
        let why = |claims: Value| keys.authenticate(&sign(claims), 0, &[]).unwrap_err().to_string();
        assert!(why(json!({"exp": "soon"})).contains("exp must be a number"));
        assert!(why(json!({"businesses": ["acme"]})).contains("exp must be present"));
        assert!(why(json!({"exp": 2, "nbf": "now"})).contains("nbf must be a number"));
        assert!(why(json!({"exp": 2, "businesses": {"acme": true}})).contains("businesses must be"));
        assert!(why(json!({"exp": 2, "businesses": [["acme"]]})).contains("businesses must be"));
        assert!(why(json!({"exp": 2, "scope": 7})).contains("scope must be a string"));
        let far = keys.authenticate(&sign(json!({"exp": 1e16, "businesses": "acme"})), 0, &[]).unwrap();
        assert_eq!(far.expires_at, 10_000_000_000_000_000);
        let other = jws::sign(b"another", &json!({"exp": 9e9})).unwrap();
        assert!(keys.authenticate(&other, 0, &[]).unwrap_err().to_string().contains("no configured key"));
    }

    #[test]
    fn what_openssl_has_signed_with_rs256_counts() {
        let keys = Keys::default().with_jwks(&RSA_JWKS.replace("MODULUS", MODULUS)).unwrap();
        let of = |header: &str, claims: &str| {
            keys.authenticate(&format!("{header}.{claims}.{RSA_SIGNATURE}"), 1000, &["default".to_owned()])
        };
        let principal = of(RSA_HEADER, RSA_CLAIMS).unwrap();
        let wanted =
            Principal { name: "user 7".to_owned(), expires_at: 2000, businesses: Some(vec!["acme".to_owned()]) };
        assert_eq!(principal, wanted);
        // Other claims, another algorithm and another key under the same signature.
        assert!(of(RSA_HEADER, &encoded(&json!({"sub": "user 7", "exp": 2000, "businesses": ["*"]}))).is_err());
        for header in [
            json!({"alg": "RS512", "kid": "two"}),
            json!({"alg": "ES256", "kid": "two"}),
            json!({"alg": "none"}),
            json!({"alg": "RS256", "kid": "one"}),
        ] {
            assert!(of(&encoded(&header), RSA_CLAIMS).is_err(), "{header}");
        }
        let other = Keys::default().with_jwks(JWKS).unwrap();
        assert!(other.authenticate(&format!("{RSA_HEADER}.{RSA_CLAIMS}.{RSA_SIGNATURE}"), 1000, &[]).is_err());
    }

    #[test]
    fn a_token_that_asks_to_be_understood_is_refused() {
        let keys = Keys::of_secrets(vec![Secret::new(SECRET)]);
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET.as_bytes());
        let of = |header: Value| {
            let message = format!("{}.{}", encoded(&header), encoded(&json!({"exp": 2000})));
            let tag = ring::hmac::sign(&key, message.as_bytes());
            let token = format!("{message}.{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(tag));
            keys.authenticate(&token, 1000, &[]).map_err(|error| error.to_string())
        };
        assert!(of(json!({"alg": "HS256", "typ": "at+jwt", "kid": "any"})).is_ok());
        for header in [
            json!({"alg": "HS256", "crit": ["exp"], "exp": 1}),
            json!({"alg": "HS256", "crit": []}),
            json!({"alg": "HS256", "crit": "b64"}),
            json!({"alg": "HS256", "b64": false, "crit": ["b64"]}),
            json!({"alg": "HS256", "b64": false}),
        ] {
            assert!(of(header.clone()).unwrap_err().contains("crit and b64"), "{header}");
        }
        for alg in ["none", "None", "hs256", "HS384", "HS512", "RS256", "PS256", "ES256", "EdDSA", ""] {
            assert!(of(json!({"alg": alg})).is_err(), "{alg}");
        }
        assert!(of(json!({"typ": "JWT"})).is_err() && of(json!(["HS256"])).is_err());
    }

    #[test]
    fn issuer_and_audience_are_asked_for_where_they_are_given() {
        let any = Keys::of_secrets(vec![Secret::new(SECRET)]);
        let (issuer, audience) = ("https://login.example.com/", "ringfence");
        let keys = any.clone().only_for(Some(issuer.to_owned()), Some(audience.to_owned()));
        let why = |keys: &Keys, more: Value| {
            let mut claims = json!({"exp": 2000, "sub": "a", "businesses": "*", "scope": "read"});
            claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let token = signed(&claims);
            let as_operator = keys.operator(&token, 1000).err().map(|error| error.to_string());
            assert_eq!(as_operator.is_some(), keys.authenticate(&token, 1000, &[]).is_err(), "{claims}");
            as_operator
        };
        for good in [json!({"iss": issuer, "aud": audience}), json!({"iss": issuer, "aud": ["other", audience]})] {
            assert_eq!(why(&keys, good), None);
        }
        for (bad, claim) in [
            (json!({}), "iss must be"),
            (json!({"aud": audience}), "iss must be"),
            (json!({"iss": "https://login.example.com", "aud": audience}), "iss must be"),
            (json!({"iss": [issuer], "aud": audience}), "iss must be"),
            (json!({"iss": issuer}), "aud must be"),
            (json!({"iss": issuer, "aud": "ringfence-2"}), "aud must be"),
            (json!({"iss": issuer, "aud": ["other"]}), "aud must be"),
            (json!({"iss": issuer, "aud": {"ringfence": true}}), "aud must be"),
        ] {
            assert!(why(&keys, bad.clone()).unwrap().contains(claim), "{bad}");
            assert_eq!(why(&any, bad), None, "where they are not given, any will do");
        }
    }

    #[test]
    fn scopes_are_words_of_which_unknown_ones_mean_nothing() {
        assert!(Scope::Metrics < Scope::Read && Scope::Read < Scope::Operate);
        let keys = Keys::of_secrets(vec![Secret::new(SECRET)]);
        let of = |scope: Value| {
            let claims = json!({"exp": 2000, "sub": "ops", "businesses": "*", "scope": scope});
            keys.operator(&signed(&claims), 1000).map(|who| (who.scope, who.whole_numbers))
        };
        for (scope, wanted) in [
            (json!("read"), (Some(Scope::Read), false)),
            (json!("openid read profile"), (Some(Scope::Read), false)),
            (json!("metrics operate"), (Some(Scope::Operate), false)),
            (json!(" read  numbers "), (Some(Scope::Read), true)),
            (json!(["metrics", "calls"]), (Some(Scope::Metrics), false)),
            (json!("Operate operate2 operate,read"), (None, false)),
            (json!(""), (None, false)),
            (json!(null), (None, false)),
        ] {
            assert_eq!(of(scope.clone()), Ok(wanted), "{scope}");
        }
        assert!(of(json!(true)).unwrap_err().to_string().contains("scope must be a string"));
        let why = |claims: Value| keys.operator(&signed(&claims), 1000).unwrap_err().to_string();
        assert!(why(json!({"exp": 2000, "businesses": "*", "scope": "read"})).contains("sub must be"));
        assert!(why(json!({"exp": 2000, "sub": "ops", "scope": "read"})).contains("businesses must be"));
        assert!(why(json!({"exp": 2000, "nbf": 1100, "sub": "ops", "businesses": "*"})).contains("nbf"));
        let of_some =
            keys.operator(&signed(&json!({"exp": 2000, "sub": "ops", "businesses": ["a", 7]})), 1000).unwrap();
        assert_eq!(of_some.businesses, Some(vec!["a".to_owned(), "7".to_owned()]));
    }

    #[test]
    fn one_bearer_token_is_read_however_it_is_spelt() {
        let of = |values: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, http::HeaderValue::from_bytes(value).unwrap());
            }
            bearer(&headers).map(|token| token.map(str::to_owned)).map_err(|_| ())
        };
        assert_eq!(of(&[]), Ok(None));
        for one in ["Bearer abc", "bearer abc", "BEARER   abc ", "bEaReR abc"] {
            assert_eq!(of(&[one.as_bytes()]), Ok(Some("abc".to_owned())), "{one}");
        }
        for bad in ["Basic YTpi", "Bearer", "Bearer ", "abc", "", "Bearerabc", "Token abc"] {
            assert_eq!(of(&[bad.as_bytes()]), Err(()), "{bad}");
        }
        assert_eq!(of(&[b"Bearer \xff"]), Err(()));
        assert_eq!(of(&[b"Bearer a", b"Bearer b"]), Err(()));
    }
}
