//! Tokens: JWT by a shared secret (HS256) or by public keys (RS256, ES256), and what they allow.

use std::fmt;
use std::sync::Arc;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::provider::secret::Secret;

/// How far clocks may differ, in seconds.
const LEEWAY_SECS: i64 = 5;

/// What a token allows. Ordered: each allows what stands before it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Scrape.
    Metrics,
    /// Look.
    Read,
    /// Hang up, release, change businesses.
    Operate,
}

/// What a token of ringfence's own says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Claims {
    /// Who it was made for; stands in the audit log.
    pub sub: String,
    /// Until when, in seconds since 1970.
    pub exp: i64,
    /// Businesses that it may see; `["*"]` is all.
    pub businesses: Vec<String>,
    /// What it allows.
    pub scope: Scope,
}

/// A token cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("the token cannot be signed: {0}")]
pub struct NotSigned(#[from] jsonwebtoken::errors::Error);

/// A token does not count. The text holds nothing of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the token does not count: {0}")]
pub struct BadToken(String);

/// Makes a token.
pub fn mint(secret: &Secret, claims: &Claims) -> Result<String, NotSigned> {
    Ok(encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(secret.expose().as_bytes()))?)
}

/// Reads a token's claims; expired ones and those of another secret do not count.
pub fn read(secret: &Secret, token: &str) -> Result<Claims, BadToken> {
    let mut validation = Validation::new(Algorithm::HS256);
    validation.leeway = LEEWAY_SECS.unsigned_abs();
    validation.validate_aud = false;
    let key = DecodingKey::from_secret(secret.expose().as_bytes());
    decode::<Claims>(token, &key, &validation).map(|data| data.claims).map_err(|error| BadToken(error.to_string()))
}

/// What an app's own tokens are checked with. Cloning is cheap.
#[derive(Clone, Default)]
pub struct Keys {
    secrets: Vec<Secret>,
    public: Arc<[PublicKey]>,
}

struct PublicKey {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({} secrets, {} public)", self.secrets.len(), self.public.len())
    }
}

/// Who shows a token, and what may be seen with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visitor {
    /// For the log.
    pub name: String,
    /// Until when, in seconds since 1970.
    pub expires_at: i64,
    /// The businesses that may be seen; `None` is all.
    pub businesses: Option<Vec<String>>,
}

impl Visitor {
    /// Whether what belongs to this business may be seen.
    pub fn sees(&self, business: &str) -> bool {
        self.businesses.as_ref().is_none_or(|own| own.iter().any(|one| one == business))
    }
}

/// The claims of an app's token. Only its end is asked for.
#[derive(Deserialize)]
struct AppClaims {
    #[serde(default)]
    sub: Option<Value>,
    /// RFC 7519 §2: seconds, and fractions of them.
    exp: f64,
    #[serde(default)]
    nbf: Option<f64>,
    #[serde(default)]
    businesses: Option<OneOrMany>,
    #[serde(default)]
    scope: Option<Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    Many(Vec<Value>),
    One(Value),
}

/// Ids of businesses and people are numbers in some apps.
fn word(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

impl Keys {
    /// Keys that check tokens by any of these secrets.
    pub fn of_secrets(secrets: Vec<Secret>) -> Self {
        Self { secrets, public: Arc::default() }
    }

    /// The same keys, and the public ones of a JSON Web Key Set (RFC 7517). Keys for other algorithms are left out.
    ///
    /// # Errors
    /// A sentence: it cannot be read, or none of its keys can be used.
    pub fn with_jwks(self, text: &str) -> Result<Self, String> {
        let set: JwkSet = serde_json::from_str(text).map_err(|e| format!("is no JSON Web Key Set: {e}"))?;
        let usable = set.keys.iter().filter_map(|jwk| {
            let algorithm = match &jwk.algorithm {
                AlgorithmParameters::RSA(_) => Algorithm::RS256,
                AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => Algorithm::ES256,
                _ => return None,
            };
            let key = DecodingKey::from_jwk(jwk).ok()?;
            Some(PublicKey { id: jwk.common.key_id.clone(), algorithm, key })
        });
        let public: Arc<[PublicKey]> = usable.collect();
        if public.is_empty() {
            return Err("has no key for RS256 or ES256".to_owned());
        }
        Ok(Self { public, ..self })
    }

    /// Whether there is nothing to check tokens with.
    pub fn is_empty(&self) -> bool {
        self.secrets.is_empty() && self.public.is_empty()
    }

    /// Who shows a token. One that says nothing of businesses sees `unstated`.
    ///
    /// # Errors
    /// It is expired, not signed by one of these keys, or for less than looking.
    pub fn visitor(&self, token: &str, now_secs: i64, unstated: &[String]) -> Result<Visitor, BadToken> {
        let bad = |why: &str| BadToken(why.to_owned());
        let header = decode_header(token).map_err(|_| bad("it is no JWT"))?;
        let claims = match header.alg {
            Algorithm::HS256 => {
                let keys = self.secrets.iter().map(|s| DecodingKey::from_secret(s.expose().as_bytes()));
                first_good(keys.into_iter().map(|key| checked(token, &key, Algorithm::HS256)))
            }
            algorithm => {
                let fits = |key: &&PublicKey| {
                    key.algorithm == algorithm && (header.kid.is_none() || key.id.is_none() || key.id == header.kid)
                };
                first_good(self.public.iter().filter(fits).map(|key| checked(token, &key.key, algorithm)))
            }
        };
        let claims = claims.map_err(bad)?;
        // What does not fit is cut to what does.
        let expires_at = claims.exp as i64;
        if expires_at.saturating_add(LEEWAY_SECS) <= now_secs {
            return Err(bad("it has expired"));
        }
        if claims.nbf.is_some_and(|from| from as i64 > now_secs.saturating_add(LEEWAY_SECS)) {
            return Err(bad("it does not count yet"));
        }
        // Scopes are ringfence's own; one for scrapers is not for looking. An app's words mean nothing here.
        if claims.scope.as_ref().and_then(Value::as_str) == Some("metrics") {
            return Err(bad("it allows metrics alone"));
        }
        let businesses = match claims.businesses {
            None => unstated.to_vec(),
            Some(OneOrMany::One(one)) => word(&one).into_iter().collect(),
            Some(OneOrMany::Many(many)) => many.iter().filter_map(word).collect(),
        };
        Ok(Visitor {
            name: claims.sub.as_ref().and_then(word).unwrap_or_default(),
            expires_at,
            businesses: (!businesses.iter().any(|one| one == "*")).then_some(businesses),
        })
    }
}

/// The claims, if this key has signed them. Times are looked at by who knows the time.
fn checked(token: &str, key: &DecodingKey, algorithm: Algorithm) -> Result<AppClaims, &'static str> {
    let mut validation = Validation::new(algorithm);
    validation.validate_aud = false;
    validation.validate_exp = false;
    decode::<AppClaims>(token, key, &validation).map(|data| data.claims).map_err(|error| match error.kind() {
        ErrorKind::Json(_) | ErrorKind::MissingRequiredClaim(_) => UNREADABLE,
        _ => UNSIGNED,
    })
}

const UNSIGNED: &str = "none of the keys has signed it";
const UNREADABLE: &str = "its claims cannot be read: exp has to be a number, businesses a list";

/// The first that is good; else why not, of the one that comes nearest.
fn first_good(tries: impl Iterator<Item = Result<AppClaims, &'static str>>) -> Result<AppClaims, &'static str> {
    let mut why = UNSIGNED;
    for one in tries {
        match one {
            Ok(claims) => return Ok(claims),
            Err(UNREADABLE) => why = UNREADABLE,
            Err(_) => {}
        }
    }
    Err(why)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
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

    /// An RSA key beside the other, made by OpenSSL; and what its private half, which is gone, has signed there.
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
        encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
    }

    #[test]
    fn a_token_says_what_may_be_seen_until_it_expires() {
        let keys = Keys::of_secrets(vec![Secret::new("an older one"), Secret::new(SECRET)]);
        let of = |claims: Value| keys.visitor(&signed(&claims), 1000, &["default".to_owned()]);
        let seen = |claims: Value| of(claims).unwrap().businesses;
        assert_eq!(seen(json!({"exp": 2000})), Some(vec!["default".to_owned()]));
        assert_eq!(seen(json!({"exp": 2000, "businesses": ["a", "b"]})), Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(seen(json!({"exp": 2000, "businesses": "a"})), Some(vec!["a".to_owned()]));
        assert_eq!(seen(json!({"exp": 2000, "businesses": ["*"], "scope": "read"})), None);
        assert_eq!(seen(json!({"exp": 2000, "businesses": []})), Some(vec![]));
        let visitor = of(json!({"exp": 2000, "sub": "user 7", "businesses": "a"})).unwrap();
        assert_eq!((visitor.name.as_str(), visitor.expires_at), ("user 7", 2000));
        assert!(visitor.sees("a") && !visitor.sees("b"));
        for bad in [
            json!({"exp": 995}),
            json!({"sub": "without an end"}),
            json!({"exp": 2000, "nbf": 1006}),
            json!({"exp": 2000, "businesses": ["*"], "scope": "metrics"}),
        ] {
            assert!(of(bad.clone()).is_err(), "{bad}");
        }
        let good = signed(&json!({"exp": 2000}));
        assert!(Keys::of_secrets(vec![Secret::new("another")]).visitor(&good, 1000, &[]).is_err());
        let unsigned = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{}.", good.split('.').nth(1).unwrap());
        assert!(keys.visitor(&unsigned, 1000, &[]).is_err() && keys.visitor("nonsense", 1000, &[]).is_err());
    }

    #[test]
    fn public_keys_check_what_their_private_half_has_signed() {
        let keys = Keys::default().with_jwks(JWKS).unwrap();
        let private = base64::engine::general_purpose::STANDARD.decode(EC_KEY).unwrap();
        let with = |kid: Option<&str>| {
            let header = Header { kid: kid.map(str::to_owned), ..Header::new(Algorithm::ES256) };
            encode(&header, &json!({"exp": 2000}), &EncodingKey::from_ec_der(&private)).unwrap()
        };
        assert!(keys.visitor(&with(None), 1000, &[]).is_ok() && keys.visitor(&with(Some("one")), 1000, &[]).is_ok());
        assert!(keys.visitor(&with(Some("two")), 1000, &[]).is_err());
        // A public key is no secret: whoever signs with it as if it were one is not believed.
        let forged =
            encode(&Header::new(Algorithm::HS256), &json!({"exp": 2000}), &EncodingKey::from_secret(JWKS.as_bytes()));
        assert!(keys.visitor(&forged.unwrap(), 1000, &[]).is_err());
        assert!(Keys::default().with_jwks(r#"{"keys":[]}"#).is_err() && Keys::default().with_jwks("{").is_err());
    }

    #[test]
    fn claims_that_apps_write_otherwise_are_read_all_the_same() {
        let keys = Keys::of_secrets(vec![Secret::new(SECRET)]);
        let sign =
            |claims: Value| encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap();
        let odd = json!({"sub": 7, "exp": 1_760_000_000.5, "businesses": [999_999, "acme"], "scope": ["calls"]});
        let visitor = keys.visitor(&sign(odd), 1_759_999_999, &[]).unwrap();
        assert!(visitor.sees("999999") && visitor.sees("acme") && !visitor.sees("other"));
        assert_eq!((visitor.name.as_str(), visitor.expires_at), ("7", 1_760_000_000));
        let why = |claims: Value| keys.visitor(&sign(claims), 0, &[]).unwrap_err().to_string();
        assert!(why(json!({"exp": "soon"})).contains("exp has to be a number"));
        assert!(why(json!({"businesses": ["acme"]})).contains("exp has to be a number"), "it has to end");
        let far = keys.visitor(&sign(json!({"exp": 1e16, "businesses": "acme"})), 0, &[]).unwrap();
        assert_eq!(far.expires_at, 10_000_000_000_000_000);
        let other = encode(&Header::default(), &json!({"exp": 9e9}), &EncodingKey::from_secret(b"another")).unwrap();
        assert!(keys.visitor(&other, 0, &[]).unwrap_err().to_string().contains("none of the keys"));
    }

    #[test]
    fn what_openssl_has_signed_with_rs256_counts() {
        let keys = Keys::default().with_jwks(&RSA_JWKS.replace("MODULUS", MODULUS)).unwrap();
        let of = |header: &str, claims: &str| {
            keys.visitor(&format!("{header}.{claims}.{RSA_SIGNATURE}"), 1000, &["default".to_owned()])
        };
        let visitor = of(RSA_HEADER, RSA_CLAIMS).unwrap();
        let wanted = Visitor { name: "user 7".to_owned(), expires_at: 2000, businesses: Some(vec!["acme".to_owned()]) };
        assert_eq!(visitor, wanted);
        let encoded = |part: Value| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(part.to_string());
        // Other claims, another algorithm and another key under the same signature.
        assert!(of(RSA_HEADER, &encoded(json!({"sub": "user 7", "exp": 2000, "businesses": ["*"]}))).is_err());
        for header in [
            json!({"alg": "RS512", "kid": "two"}),
            json!({"alg": "ES256", "kid": "two"}),
            json!({"alg": "none"}),
            json!({"alg": "RS256", "kid": "one"}),
        ] {
            assert!(of(&encoded(header.clone()), RSA_CLAIMS).is_err(), "{header}");
        }
        let other = Keys::default().with_jwks(JWKS).unwrap();
        assert!(other.visitor(&format!("{RSA_HEADER}.{RSA_CLAIMS}.{RSA_SIGNATURE}"), 1000, &[]).is_err());
    }
}
