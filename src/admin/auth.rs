//! Tokens of `listen.admin`: JWT, HS256.

use std::net::IpAddr;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};

use crate::clock::UnixMs;
use crate::net::Exchange;
use crate::provider::secret::Secret;

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

/// What a token says.
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

/// Makes a token.
pub fn mint(secret: &Secret, claims: &Claims) -> Result<String, NotSigned> {
    Ok(encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(secret.expose().as_bytes()))?)
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// For the audit log.
    pub name: String,
    /// What is allowed.
    pub scope: Scope,
}

/// Why somebody may not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No token, or none that counts.
    #[error("{0}")]
    NoToken(String),
    /// A token that allows less.
    #[error("the token allows {0:?}; this needs {1:?}")]
    TooLittle(Scope, Scope),
}

/// Reads a token's claims; expired ones and those of another secret do not count.
pub fn read(secret: &Secret, token: &str) -> Result<Claims, Denied> {
    let mut validation = Validation::new(Algorithm::HS256);
    validation.leeway = 5;
    validation.validate_aud = false;
    let key = DecodingKey::from_secret(secret.expose().as_bytes());
    decode::<Claims>(token, &key, &validation)
        .map(|data| data.claims)
        .map_err(|error| Denied::NoToken(format!("the token does not count: {error}")))
}

/// Who asks, if they may. On loopback nobody needs a token, unless the request came through a proxy.
pub fn caller(secret: Option<&Secret>, exchange: &Exchange, needs: Scope, _now: UnixMs) -> Result<Caller, Denied> {
    let bearer = exchange.header("authorization").and_then(|v| v.strip_prefix("Bearer "));
    let local = exchange.peer().is_some_and(|p| is_loopback(p.ip())) && exchange.header("x-forwarded-for").is_none();
    match (bearer, secret) {
        (Some(token), Some(secret)) => {
            let claims = read(secret, token)?;
            if claims.scope < needs {
                return Err(Denied::TooLittle(claims.scope, needs));
            }
            Ok(Caller { name: claims.sub, scope: claims.scope })
        }
        _ if local => Ok(Caller { name: "local".to_owned(), scope: Scope::Operate }),
        (None, Some(_)) => Err(Denied::NoToken("a bearer token is needed: ringfence token --scope read".to_owned())),
        (_, None) => Err(Denied::NoToken("no admin.token_secret is set, so only loopback may ask".to_owned())),
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_loopback(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.to_ipv4_mapped().is_some_and(|v4| v4.is_loopback()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_until_it_expires_and_only_under_its_secret() {
        let secret = Secret::new("a secret of some length, for tests alone");
        let now = crate::clock::Clock::system().now_ms() / 1000;
        let claims = |exp| Claims { sub: "ops".to_owned(), exp, businesses: vec!["*".to_owned()], scope: Scope::Read };
        let token = mint(&secret, &claims(now + 60)).unwrap();
        assert_eq!(read(&secret, &token).unwrap().sub, "ops");
        assert!(read(&Secret::new("another"), &token).is_err());
        assert!(read(&secret, &mint(&secret, &claims(now - 60)).unwrap()).is_err());
        assert!(read(&secret, "nonsense").is_err());
        // An unsigned token (alg none) must not count.
        let unsigned = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{}.", token.split('.').nth(1).unwrap());
        assert!(read(&secret, &unsigned).is_err());
    }

    #[test]
    fn scopes_are_ordered() {
        assert!(Scope::Metrics < Scope::Read && Scope::Read < Scope::Operate);
    }
}
