//! Who asks at `listen.admin`: a program of the same user over the Unix socket, or who shows a token of ringfence's own (HS256).
//! Without a secret programs on this machine may look, too.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::calls::post_call::shown::Numbers;
use crate::net::{Exchange, Peer};
use crate::provider::secret::Secret;
use crate::provider::sign::equal;
use crate::token::{BadToken, Keys, bearer};
pub use crate::token::{Claims, NotSigned, Scope, mint};

/// Where clients of before ringfence show their secret.
const CRON_SECRET: &str = "x-cron-secret";

/// What decides who may ask.
#[derive(Debug, Clone)]
pub struct Access {
    /// What tokens are checked with; empty without `admin.token_secret`.
    pub keys: Keys,
    /// `/metrics` needs a token, too.
    pub metrics_token: bool,
    /// What `X-Cron-Secret` must be, where figures are read as before ringfence.
    pub cron_secret: Option<Secret>,
    /// Where the Unix socket is, for who is sent there.
    pub socket: Option<PathBuf>,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// For the audit log.
    pub name: String,
    /// Where they came from, for the audit log: an address, or the socket's user.
    pub from: String,
    /// What is allowed.
    pub scope: Scope,
    /// Telephone numbers are shown whole.
    pub whole_numbers: bool,
    /// The businesses that may be seen; `None` is all.
    pub businesses: Option<Vec<String>>,
    /// When what they show expires, in seconds since 1970.
    pub expires_at: Option<i64>,
}

impl Caller {
    /// Whether what belongs to this business may be seen.
    pub fn sees(&self, business: &str) -> bool {
        self.businesses.as_ref().is_none_or(|own| own.iter().any(|one| one == business))
    }

    /// How telephone numbers are shown.
    pub fn numbers(&self) -> Numbers {
        if self.whole_numbers { Numbers::Whole } else { Numbers::Masked }
    }

    /// For what belongs to nobody alone: a token of some businesses is not enough.
    pub fn sees_all(self) -> Result<Self, Denied> {
        if self.businesses.is_some() { Err(Denied::SomeBusinesses) } else { Ok(self) }
    }
}

/// Why somebody may not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No credential, or none that counts.
    #[error("{0}")]
    NoToken(String),
    /// A token that allows less.
    #[error("scope must have {:?} for this, or a word that allows more", .0.as_str())]
    TooLittle(Scope),
    /// A token of some businesses, where all are concerned.
    #[error("the token is for some businesses; this concerns all of them")]
    SomeBusinesses,
    /// A request that ringfence itself has sent on for somebody else.
    #[error("requests of ringfence's own are not answered here")]
    OwnRequest,
}

impl From<BadToken> for Denied {
    fn from(bad: BadToken) -> Self {
        Self::NoToken(bad.to_string())
    }
}

impl Access {
    /// Who asks, if they may.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn caller(&self, exchange: &Exchange, needs: Scope, now_secs: i64) -> Result<Caller, Denied> {
        let from = exchange.peer().to_string();
        if let Some(token) = bearer(exchange.headers())? {
            if self.keys.is_empty() {
                return Err(Denied::NoToken("no admin.token_secret is set, so no token counts".to_owned()));
            }
            let who = self.keys.operator(token, now_secs)?;
            let scope = who.scope.filter(|scope| *scope >= needs).ok_or(Denied::TooLittle(needs))?;
            let (whole_numbers, businesses) = (who.whole_numbers, who.businesses);
            let expires_at = Some(who.expires_at);
            return Ok(Caller { name: who.name, from, scope, whole_numbers, businesses, expires_at });
        }
        let local = |scope| Caller {
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
                Err(Denied::NoToken("a bearer token is needed: ringfence token --scope read".to_owned()))
            }
            Peer::Net(_) if is_on_loopback(exchange) && needs < Scope::Operate => Ok(local(Scope::Read)),
            Peer::Net(_) if is_on_loopback(exchange) => Err(Denied::NoToken(self.how_to_change())),
            Peer::Net(_) => Err(Denied::NoToken("no admin.token_secret is set, so only loopback may ask".to_owned())),
        }
    }

    /// Who scrapes `/metrics`. Unless it needs a token, whoever calls this listener by an address may: a page in a browser that
    /// was led here calls it by the page's own name.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn scraper(&self, exchange: &Exchange, now_secs: i64) -> Result<(), Denied> {
        let is_shown = bearer(exchange.headers())?.is_some();
        if self.metrics_token || is_shown || exchange.host().is_some_and(|host| !names_address(host)) {
            self.caller(exchange, Scope::Metrics, now_secs)?.sees_all()?;
        }
        Ok(())
    }

    /// The same for `/api/concurrent-metrics/prometheus`, whose clients of before ringfence show `X-Cron-Secret` (contract §5). Where none
    /// is configured the header means nothing.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn scraper_of_before(&self, exchange: &Exchange, now_secs: i64) -> Result<(), Denied> {
        match (&self.cron_secret, exchange.header(CRON_SECRET)) {
            (Some(secret), Some(shown)) if bearer(exchange.headers())?.is_none() => {
                match equal(secret.expose().as_bytes(), shown.as_bytes()) {
                    true => Ok(()),
                    false => Err(Denied::NoToken("X-Cron-Secret is not admin.cron_secret".to_owned())),
                }
            }
            _ => self.caller(exchange, Scope::Metrics, now_secs)?.sees_all().map(drop),
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

/// A request that carries what ringfence writes into its own: it must not be led here by an address that somebody else chose.
///
/// # Errors
/// [`Denied::OwnRequest`].
pub fn refuse_own(exchange: &Exchange) -> Result<(), Denied> {
    match exchange.headers().keys().any(|name| name.as_str().replace(['_', '.'], "-").starts_with("x-ringfence")) {
        true => Err(Denied::OwnRequest),
        false => Ok(()),
    }
}

/// A program on this machine asks. Not a proxy; not a page in a browser here, which sends `Origin` with whatever changes
/// something, and another `Host` where its name was rebound to loopback.
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

/// The address that a host names.
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
