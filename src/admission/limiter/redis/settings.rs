//! Settings: the server's address, and how it is found.

use std::path::PathBuf;
use std::time::Duration;

use redis::io::tcp::TcpSettings;
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, ProtocolVersion};

use crate::provider::secret::Secret;

/// The supported forms of a URL.
const FORMS: &str = "must be a URL as in redis://user:password@host:6379, rediss://… (TLS), unix:///path, \
                     redis+sentinel://host1:26379,host2:26379/master or redis+cluster://host1:6379,host2:6379 \
                     (rediss+… with TLS)";

/// The limiter's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisSettings {
    url: Secret,
    /// Trusted certificate authorities, as PEM; the system's if not set.
    pub ca_file: Option<PathBuf>,
    /// The pool of limits that are decided together: its keys are in one hash slot.
    pub pool: String,
    /// The identity of the database it counts for; part of its keys.
    pub database: String,
    /// The longest wait for a decision.
    pub timeout: Duration,
    /// Decisions use the request's time, not the server's. For tests that step the clock.
    pub callers_clock: bool,
}

/// The way in which the server with the pool's keys is found.
#[derive(Debug, Clone)]
pub(super) enum Finding {
    /// The server is the one in the URL.
    Named(ConnectionInfo),
    /// Sentinels know the master of this name.
    Sentinels {
        /// The sentinels' addresses, without credentials.
        sentinels: Vec<ConnectionInfo>,
        /// The name of the master's group.
        name: String,
        /// The master's connection settings, without its address.
        master: ConnectionInfo,
    },
    /// Any node of a cluster knows it.
    Cluster(Vec<ConnectionInfo>),
}

impl RedisSettings {
    /// Settings for a URL; the rest are defaults: the pool `default`, 50 ms, the system's authorities.
    ///
    /// # Errors
    /// The URL cannot be used. Never contains the URL: it has a password.
    pub fn new(url: Secret) -> Result<Self, String> {
        let timeout = Duration::from_millis(50);
        let settings = Self {
            url,
            ca_file: None,
            pool: "default".to_owned(),
            database: "none".to_owned(),
            timeout,
            callers_clock: false,
        };
        settings.finding()?;
        Ok(settings)
    }

    /// Checks the URL and the pool's name.
    ///
    /// # Errors
    /// Why not. Never contains the URL.
    pub(super) fn usable(&self) -> Result<(), String> {
        self.finding()?;
        if self.pool.is_empty() || self.pool.contains(['{', '}', '|']) {
            return Err(format!("{:?} cannot be a pool's name: it is put in keys between braces", self.pool));
        }
        Ok(())
    }

    /// Checks the URL, the pool's name and the file of authorities.
    ///
    /// # Errors
    /// Why not. Never contains the URL.
    pub fn check(&self) -> Result<(), String> {
        self.usable()?;
        let Some(file) = &self.ca_file else { return Ok(()) };
        let pem = std::fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        match pem.contains("-----BEGIN CERTIFICATE-----") {
            true => Ok(()),
            false => Err(format!("{} has no certificate in PEM", file.display())),
        }
    }

    pub(super) fn finding(&self) -> Result<Finding, String> {
        let url = self.url.expose();
        let (scheme, rest) = url.split_once("://").ok_or(FORMS)?;
        if rest.contains('#') {
            return Err(
                "must have no `#…`: certificates are always verified (escape a # of a password as %23)".to_owned()
            );
        }
        let (plain, how) = scheme.split_once('+').unwrap_or((scheme, ""));
        match (plain, how) {
            ("redis" | "rediss", "") | ("unix", "") | ("redis", "unix") => Ok(Finding::Named(info(url)?)),
            ("redis" | "rediss", "cluster") => {
                let (user, hosts, path) = parts(rest);
                if !matches!(path, "" | "0") {
                    return Err("must name no database: a cluster has one".to_owned());
                }
                let nodes = hosts.iter().map(|host| info(&format!("{plain}://{user}{host}")));
                Ok(Finding::Cluster(nodes.collect::<Result<_, _>>()?))
            }
            ("redis" | "rediss", "sentinel") => {
                let (user, hosts, path) = parts(rest);
                let (name, database) = path.split_once('/').unwrap_or((path, ""));
                if name.is_empty() {
                    return Err(
                        "must name the master, as in redis+sentinel://host1:26379,host2:26379/master".to_owned()
                    );
                }
                let sentinels = hosts.iter().map(|host| {
                    let port = if has_port(host) { "" } else { ":26379" };
                    info(&format!("{plain}://{host}{port}"))
                });
                let sentinels = sentinels.collect::<Result<_, _>>()?;
                let master = info(&format!("{plain}://{user}master/{database}"))?;
                Ok(Finding::Sentinels { sentinels, name: name.to_owned(), master })
            }
            _ => Err(FORMS.to_owned()),
        }
    }

    /// The URL, with its password.
    pub fn url(&self) -> &Secret {
        &self.url
    }

    /// The same settings with another URL.
    pub(super) fn at(&self, url: &Secret) -> Self {
        Self { url: url.clone(), ..self.clone() }
    }

    /// Whether it is the same server with the same settings, whatever the user and the password.
    pub fn is_same_server(&self, other: &Self) -> bool {
        self.at(&other.url) == *other && self.url.without_credential() == other.url.without_credential()
    }

    /// The URL to show, `redis://user@host:6379`: no password, no parameters.
    pub fn shown(&self) -> String {
        let Ok(finding) = self.finding() else { return "redis".to_owned() };
        let scheme = self.url.expose().split("://").next().unwrap_or("redis");
        let (infos, user_of, after) = match &finding {
            Finding::Named(info) => (std::slice::from_ref(info), Some(info), String::new()),
            Finding::Cluster(nodes) => (nodes.as_slice(), nodes.first(), String::new()),
            Finding::Sentinels { sentinels, name, master } => (sentinels.as_slice(), Some(master), format!("/{name}")),
        };
        let user = user_of.and_then(|info| info.redis_settings().username()).map(|user| format!("{user}@"));
        let addresses: Vec<_> = infos.iter().map(|info| info.addr().to_string()).collect();
        format!("{scheme}://{}{}{after}", user.unwrap_or_default(), addresses.join(","))
    }

    /// A warning if the connection is not encrypted and leaves this machine.
    pub fn exposed(&self) -> Option<String> {
        let finding = self.finding().ok()?;
        let infos = match &finding {
            Finding::Named(info) => std::slice::from_ref(info),
            Finding::Cluster(nodes) => nodes.as_slice(),
            Finding::Sentinels { sentinels, .. } => sentinels.as_slice(),
        };
        infos.iter().find_map(|info| match info.addr() {
            ConnectionAddr::Tcp(host, _) => {
                let near = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
                (!near).then(|| format!("it is spoken to without TLS, and {host} is not this machine"))
            }
            _ => None,
        })
    }
}

fn info(url: &str) -> Result<ConnectionInfo, String> {
    // The parser's error may contain a part of the URL.
    let info = url.into_connection_info().map_err(|_| FORMS)?;
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP2);
    Ok(info.set_redis_settings(settings).set_tcp_settings(TcpSettings::default().set_nodelay(true)))
}

/// `user:password@`, hosts, and the path behind them.
fn parts(rest: &str) -> (&str, Vec<&str>, &str) {
    let rest = rest.split('?').next().unwrap_or_default();
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let at = authority.rfind('@').map_or(0, |at| at + 1);
    (&authority[..at], authority[at..].split(',').collect(), path.trim_end_matches('/'))
}

fn has_port(host: &str) -> bool {
    host.rsplit(']').next().is_some_and(|end| end.contains(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> Result<RedisSettings, String> {
        RedisSettings::new(Secret::new(url))
    }

    #[test]
    fn a_password_is_shown_nowhere() {
        for (url, shown) in [
            ("redis://ring:hunter2@db.example.com/3", "redis://ring@db.example.com:6379"),
            ("rediss://:hunter2@db.example.com:7000", "rediss://db.example.com:7000"),
            ("unix:///run/redis.sock?pass=hunter2", "unix:///run/redis.sock"),
            ("redis+sentinel://ring:hunter2@a,[::1]:5/gate", "redis+sentinel://ring@a:26379,::1:5/gate"),
            ("rediss+cluster://ring:hunter2@a,b:7001", "rediss+cluster://ring@a:6379,b:7001"),
        ] {
            let good = settings(url).unwrap();
            assert_eq!(good.shown(), shown);
            assert!(!format!("{good:?}{:?}", good.finding().unwrap()).contains("hunter2"));
        }
        for url in [
            "postgres://ring:hunter2@db/x",
            "redis://ring:hunter2@db:port",
            "hunter2",
            "redis://:hunter2@[x/",
            "redis://ring:hunter2@db/x",
            "rediss://ring:hunter2@db/#insecure",
            "redis+sentinel://ring:hunter2@a,b",
            "redis+cluster://ring:hunter2@a/3",
            "redis+magic://ring:hunter2@a",
        ] {
            let why = settings(url).unwrap_err();
            assert!(why.starts_with("must ") && !why.contains("hunter2"), "{why}");
        }
    }

    #[test]
    fn only_tls_or_this_machine_is_safe() {
        for (url, safe) in [
            ("rediss://db.example.com", true),
            ("redis://db.example.com", false),
            ("redis://127.0.0.1", true),
            ("redis://[::1]:7", true),
            ("redis://localhost", true),
            ("unix:///run/redis.sock", true),
            ("redis+cluster://localhost,db.example.com", false),
            ("rediss+sentinel://a,b/gate", true),
        ] {
            assert_eq!(settings(url).unwrap().exposed().is_none(), safe, "{url}");
        }
    }
}
