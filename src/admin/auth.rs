//! Authentication at `listen.admin`: a program of the same user over the Unix socket, or a client with one of ringfence's own
//! tokens (HS256). Without a configured secret, programs on this machine may read.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::calls::post_call::shown::Numbers;
use crate::net::{Exchange, Peer};
use crate::provider::secret::Secret;
use crate::provider::sign::equal;
pub use crate::token::{Claims, Scope, SigningError, mint};
use crate::token::{Keys, TokenError, bearer};

/// The header in which older clients send their secret.
const CRON_SECRET: &str = "x-cron-secret";

/// Access rules.
#[derive(Debug, Clone)]
pub struct Access {
    /// Keys that verify tokens; empty without `admin.token_secret`.
    pub keys: Keys,
    /// `/metrics` needs a token, too.
    pub metrics_token: bool,
    /// The required `X-Cron-Secret` of older clients of the metrics.
    pub cron_secret: Option<Secret>,
    /// The path of the Unix socket, for error messages.
    pub socket: Option<PathBuf>,
}

/// An authenticated client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requester {
    /// For the audit log.
    pub name: String,
    /// The client's origin, for the audit log: an address, or the socket's user.
    pub from: String,
    /// The client's scope.
    pub scope: Scope,
    /// Whether the client may see whole telephone numbers.
    pub whole_numbers: bool,
    /// The businesses that it may see; `None`: all.
    pub businesses: Option<Vec<String>>,
    /// The time at which its token expires, in seconds since 1970.
    pub expires_at: Option<i64>,
}

impl Requester {
    /// Whether it may see this business.
    pub fn sees(&self, business: &str) -> bool {
        self.businesses.as_ref().is_none_or(|own| own.iter().any(|one| one == business))
    }

    /// The form in which it sees telephone numbers.
    pub fn numbers(&self) -> Numbers {
        if self.whole_numbers { Numbers::Whole } else { Numbers::Masked }
    }

    /// Requires access to all businesses.
    pub fn require_all_businesses(self) -> Result<Self, AccessError> {
        if self.businesses.is_some() { Err(AccessError::SomeBusinesses) } else { Ok(self) }
    }
}

/// The reason why a request is denied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// No valid credential.
    #[error("{0}")]
    NoToken(String),
    /// The token's scope is too small.
    #[error("scope {:?} or higher is needed", .0.as_str())]
    TooLittle(Scope),
    /// The token is for some businesses, and all are needed.
    #[error("this needs a token for all businesses")]
    SomeBusinesses,
    /// A request that ringfence itself sent on behalf of a tenant.
    #[error("requests sent by ringfence are rejected here")]
    OwnRequest,
}

impl From<TokenError> for AccessError {
    fn from(bad: TokenError) -> Self {
        Self::NoToken(bad.to_string())
    }
}

impl Access {
    /// Authenticates and authorises a request.
    ///
    /// # Errors
    /// [`AccessError`].
    pub fn authorize(&self, exchange: &Exchange, needs: Scope, now_secs: i64) -> Result<Requester, AccessError> {
        let from = exchange.peer().to_string();
        if let Some(token) = bearer(exchange.headers())? {
            if self.keys.is_empty() {
                return Err(AccessError::NoToken("admin.token_secret is not set: tokens are disabled".to_owned()));
            }
            let who = self.keys.operator(token, now_secs)?;
            let scope = who.scope.filter(|scope| *scope >= needs).ok_or(AccessError::TooLittle(needs))?;
            let (whole_numbers, businesses) = (who.whole_numbers, who.businesses);
            let expires_at = Some(who.expires_at);
            return Ok(Requester { name: who.name, from, scope, whole_numbers, businesses, expires_at });
        }
        let local = |scope| Requester {
            name: "local".to_owned(),
            from,
            scope,
            whole_numbers: false,
            businesses: None,
            expires_at: None,
        };
        match exchange.peer() {
            Peer::Local { .. } => Ok(local(Scope::Operate)),
            Peer::Net(_) if !self.keys.is_empty() => {
                Err(AccessError::NoToken("bearer token missing: ringfence token --scope read".to_owned()))
            }
            Peer::Net(_) if is_on_loopback(exchange) && needs < Scope::Operate => Ok(local(Scope::Read)),
            Peer::Net(_) if is_on_loopback(exchange) => Err(AccessError::NoToken(self.how_to_change())),
            Peer::Net(_) => {
                Err(AccessError::NoToken("admin.token_secret is not set: only loopback is allowed".to_owned()))
            }
        }
    }

    /// Whether a requester who was let in under earlier rules may still read: with its token, or without one where none was shown.
    pub(super) fn still_reads(&self, token: Option<&str>, is_local: bool, now_secs: i64) -> bool {
        match token {
            Some(token) => self.keys.operator(token, now_secs).is_ok_and(|who| who.scope >= Some(Scope::Read)),
            None => is_local || self.keys.is_empty(),
        }
    }

    /// Authorises a scrape of `/metrics`. Unless a token is required, requests must name this listener by address: a page in a
    /// browser that was led here uses its own host name.
    ///
    /// # Errors
    /// [`AccessError`].
    pub fn authorize_scrape(&self, exchange: &Exchange, now_secs: i64) -> Result<(), AccessError> {
        let is_shown = bearer(exchange.headers())?.is_some();
        if self.metrics_token || is_shown || exchange.host().is_some_and(|host| !names_address(host)) {
            self.authorize(exchange, Scope::Metrics, now_secs)?.require_all_businesses()?;
        }
        Ok(())
    }

    /// The token check of `/api/concurrent-metrics/prometheus`, whose older clients send `X-Cron-Secret`. If no secret
    /// is configured the header is ignored.
    ///
    /// # Errors
    /// [`AccessError`].
    pub fn authorize_legacy_scrape(&self, exchange: &Exchange, now_secs: i64) -> Result<(), AccessError> {
        match (&self.cron_secret, exchange.header(CRON_SECRET)) {
            (Some(secret), Some(shown)) if bearer(exchange.headers())?.is_none() => {
                match equal(secret.expose().as_bytes(), shown.as_bytes()) {
                    true => Ok(()),
                    false => Err(AccessError::NoToken("X-Cron-Secret is not admin.cron_secret".to_owned())),
                }
            }
            _ => self.authorize(exchange, Scope::Metrics, now_secs)?.require_all_businesses().map(drop),
        }
    }

    fn how_to_change(&self) -> String {
        match &self.socket {
            Some(socket) => format!(
                "a change needs the Unix socket {} (ringfence's commands use it; curl --unix-socket) or a token (admin.token_secret)",
                socket.display()
            ),
            None => "a change needs a token (admin.token_secret)".to_owned(),
        }
    }
}

/// Denies a request with ringfence's own callback mark: a tenant's URL must not lead here.
///
/// # Errors
/// [`AccessError::OwnRequest`].
pub fn refuse_own(exchange: &Exchange) -> Result<(), AccessError> {
    match exchange.headers().keys().any(|name| name.as_str().replace(['_', '.'], "-").starts_with("x-ringfence")) {
        true => Err(AccessError::OwnRequest),
        false => Ok(()),
    }
}

/// Whether a program on this machine sent it: not a proxy, and not a page in a browser, which sends `Origin` with changing
/// requests, and another `Host` after DNS rebinding.
fn is_on_loopback(exchange: &Exchange) -> bool {
    let is_of_others = |name: &str| {
        let name = name.replace('_', "-");
        name.starts_with("x-forwarded")
            || name.starts_with("x-envoy-")
            || name.ends_with("-client-ip")
            || ["forwarded", "via", "origin", "x-real-ip", "x-original-forwarded-for", "cf-connecting-ip"]
                .contains(&name.as_str())
    };
    let is_cross = exchange.header("sec-fetch-site").is_some_and(|site| !matches!(site, "none" | "same-origin"));
    exchange.peer().addr().is_some_and(|addr| is_loopback(addr.ip()))
        && !is_cross
        && !exchange.headers().keys().any(|name| is_of_others(name.as_str()))
        && exchange.host().is_none_or(names_loopback)
}

/// A host without its port.
fn bare(host: &str) -> &str {
    let digits = |(_, port): &(&str, &str)| port.bytes().all(|b| b.is_ascii_digit());
    host.rsplit_once(':').filter(digits).map_or(host, |(host, _)| host)
}

/// The IP address in a host.
fn address(host: &str) -> Option<IpAddr> {
    let bare = bare(host);
    bare.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(bare).parse().ok()
}

fn names_loopback(host: &str) -> bool {
    bare(host).eq_ignore_ascii_case("localhost") || address(host).is_some_and(is_loopback)
}

fn names_address(host: &str) -> bool {
    bare(host).eq_ignore_ascii_case("localhost") || address(host).is_some()
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_local() {
        for host in ["localhost", "LOCALHOST:9900", "127.0.0.1:9900", "127.0.0.1", "[::1]:9900", "[::1]"] {
            assert!(names_loopback(host) && names_address(host), "{host}");
        }
        for host in ["evil.test:9900", "127.0.0.1.evil.test", "", "localhost.evil", "[::1].evil:80", "2130706433"] {
            assert!(!names_loopback(host) && !names_address(host), "{host}");
        }
        for host in ["10.0.0.1:9900", "[fd00::5]"] {
            assert!(!names_loopback(host) && names_address(host), "{host}");
        }
    }
}
