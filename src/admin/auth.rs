//! Who asks at `listen.admin`: by a token of ringfence's own, HS256.

use std::net::IpAddr;

use crate::net::Exchange;
use crate::provider::secret::Secret;
use crate::token::BadToken;
pub use crate::token::{Claims, NotSigned, Scope, mint, read};

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// For the audit log.
    pub name: String,
    /// What is allowed.
    pub scope: Scope,
    /// The businesses that may be seen; `None` is all.
    pub businesses: Option<Vec<String>>,
}

impl Caller {
    /// Whether what belongs to this business may be seen.
    pub fn sees(&self, business: &str) -> bool {
        self.businesses.as_ref().is_none_or(|own| own.iter().any(|one| one == business))
    }

    /// For what belongs to nobody alone: a token of some businesses is not enough.
    pub fn sees_all(self) -> Result<Self, Denied> {
        if self.businesses.is_some() { Err(Denied::SomeBusinesses) } else { Ok(self) }
    }
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
    /// A token of some businesses, where all are concerned.
    #[error("the token is for some businesses; this concerns all of them")]
    SomeBusinesses,
}

impl From<BadToken> for Denied {
    fn from(bad: BadToken) -> Self {
        Self::NoToken(bad.to_string())
    }
}

/// Who asks, if they may. On loopback nobody needs a token, unless the request came through a proxy or from a web page.
pub fn caller(secret: Option<&Secret>, exchange: &Exchange, needs: Scope) -> Result<Caller, Denied> {
    let bearer = exchange.header("authorization").and_then(|v| v.strip_prefix("Bearer "));
    let local = is_local(exchange);
    match (bearer, secret) {
        (Some(token), Some(secret)) => {
            let claims = read(secret, token)?;
            if claims.scope < needs {
                return Err(Denied::TooLittle(claims.scope, needs));
            }
            let all = claims.businesses.iter().any(|one| one == "*");
            Ok(Caller { name: claims.sub, scope: claims.scope, businesses: (!all).then_some(claims.businesses) })
        }
        _ if local => Ok(Caller { name: "local".to_owned(), scope: Scope::Operate, businesses: None }),
        (None, Some(_)) => Err(Denied::NoToken("a bearer token is needed: ringfence token --scope read".to_owned())),
        (_, None) => Err(Denied::NoToken("no admin.token_secret is set, so only loopback may ask".to_owned())),
    }
}

/// A program on this machine asks. Not a proxy; not a page in a browser here, which sends `Origin` with whatever changes
/// something, and another `Host` where its name was rebound to loopback.
fn is_local(exchange: &Exchange) -> bool {
    let through_others = ["x-forwarded-for", "forwarded", "via", "origin"];
    exchange.peer().is_some_and(|p| is_loopback(p.ip()))
        && through_others.iter().all(|name| exchange.header(name).is_none())
        && exchange.host().is_none_or(names_loopback)
}

fn names_loopback(host: &str) -> bool {
    let bare =
        host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(host, |(h, _)| h);
    let address = bare.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(bare);
    bare.eq_ignore_ascii_case("localhost") || address.parse().is_ok_and(is_loopback)
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
    fn only_names_of_this_machine_are_local() {
        for host in ["localhost", "LOCALHOST:9900", "127.0.0.1:9900", "127.0.0.1", "[::1]:9900", "[::1]"] {
            assert!(names_loopback(host), "{host}");
        }
        for host in ["evil.test:9900", "127.0.0.1.evil.test", "10.0.0.1:9900", "", "localhost.evil"] {
            assert!(!names_loopback(host), "{host}");
        }
    }

    #[test]
    fn scopes_are_ordered() {
        assert!(Scope::Metrics < Scope::Read && Scope::Read < Scope::Operate);
    }
}
