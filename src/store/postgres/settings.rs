//! Settings: the server's address and connections.

use std::str::FromStr as _;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::provider::secret::Secret;

/// The kind of pooler before the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooler {
    /// Detected at the start.
    Detect,
    /// Every transaction may run in another session, as behind PgBouncer's `pool_mode = transaction`.
    Transaction,
    /// None, or one that keeps sessions.
    None,
}

/// The clock whose time decisions use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeOf {
    /// The server's: the clocks of replicas may differ.
    Server,
    /// The request's, for tests that step the clock.
    Caller,
}

/// The store's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresSettings {
    url: Secret,
    /// Connections at most.
    pub pool_max: u32,
    /// The longest statement; then its transaction is rolled back.
    pub statement_timeout: Duration,
    /// The longest wait for a connection of the pool.
    pub acquire_timeout: Duration,
    /// The kind of pooler before the server.
    pub pooler: Pooler,
    /// The clock whose time decisions use.
    pub time_of: TimeOf,
}

impl PostgresSettings {
    /// Settings for a URL; the rest are defaults: 16 connections, 5 s per statement, 2 s for a connection, pooler detected.
    ///
    /// # Errors
    /// The URL cannot be used. Never contains the URL: it has a password.
    pub fn new(url: Secret) -> Result<Self, String> {
        let settings = Self {
            url,
            pool_max: 16,
            statement_timeout: Duration::from_secs(5),
            acquire_timeout: Duration::from_secs(2),
            pooler: Pooler::Detect,
            time_of: TimeOf::Server,
        };
        settings.options().map_err(|error| match error {
            // Parse errors may contain a part of the URL.
            sqlx::Error::Configuration(_) => {
                "must be a URL as in postgres://user:password@host:5432/database?sslmode=verify-full".to_owned()
            }
            other => other.to_string(),
        })?;
        Ok(settings)
    }

    pub(super) fn options(&self) -> Result<PgConnectOptions, sqlx::Error> {
        let url = self.url.expose();
        if !(url.starts_with("postgres://") || url.starts_with("postgresql://")) {
            return Err(sqlx::Error::Configuration("no URL of Postgres".into()));
        }
        let mut options = PgConnectOptions::from_str(url)?;
        if options.get_application_name().is_none() {
            options = options.application_name("ringfence");
        }
        // Poolers reject unknown parameters; this one is not needed.
        Ok(options.extra_float_digits(None))
    }

    /// The URL, with its password.
    pub fn url(&self) -> &Secret {
        &self.url
    }

    /// Whether it is the same server and database with the same settings, whatever the user and the password.
    pub fn is_same_server(&self, other: &Self) -> bool {
        let database = |of: &Self| of.options().ok().map(|options| database_of(&options).to_owned());
        Self { url: other.url.clone(), ..self.clone() } == *other
            && self.url.without_credential() == other.url.without_credential()
            && database(self) == database(other)
    }

    /// The URL to show, `postgres://user@host:5432/database`: no password, no parameters.
    pub fn shown(&self) -> String {
        let Ok(options) = self.options() else { return "postgres".to_owned() };
        let host = match options.get_socket() {
            Some(folder) => folder.display().to_string(),
            None => format!("{}:{}", options.get_host(), options.get_port()),
        };
        format!("postgres://{}@{host}/{}", options.get_username(), database_of(&options))
    }

    /// A warning if the connection is not verified TLS and leaves this machine.
    pub fn exposed(&self) -> Option<String> {
        let options = self.options().ok()?;
        let host = options.get_host();
        let near = options.get_socket().is_some()
            || host.starts_with('/')
            || host == "localhost"
            || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        let mode = match options.get_ssl_mode() {
            PgSslMode::VerifyFull => return None,
            PgSslMode::VerifyCa => "verify-ca",
            PgSslMode::Require => "require",
            PgSslMode::Prefer => "prefer",
            PgSslMode::Allow => "allow",
            PgSslMode::Disable => "disable",
        };
        (!near).then(|| format!("sslmode is {mode}, and {host} is not this machine"))
    }
}

/// The database, which has the user's name where none is given.
fn database_of(options: &PgConnectOptions) -> &str {
    options.get_database().unwrap_or_else(|| options.get_username())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> Result<PostgresSettings, String> {
        PostgresSettings::new(Secret::new(url))
    }

    #[test]
    fn a_password_is_shown_nowhere() {
        let good = settings("postgres://ring:hunter2@db.example.com/fence?sslmode=require").unwrap();
        assert_eq!(good.shown(), "postgres://ring@db.example.com:5432/fence");
        assert!(!format!("{good:?}").contains("hunter2"));
        for url in
            ["mysql://ring:hunter2@db/x", "postgres://ring:hunter2@db:port/x", "hunter2", "postgres://:hunter2@[x/"]
        {
            let why = settings(url).unwrap_err();
            assert!(why.contains("postgres://user:password@host") && !why.contains("hunter2"), "{why}");
        }
    }

    #[test]
    fn another_password_is_the_same_server() {
        let one = settings("postgres://ring:one@db/fence").unwrap();
        for (url, same) in [
            ("postgres://ring:two@db/fence", true),
            ("postgres://other:two@db/fence", true),
            ("postgres://ring:one@db2/fence", false),
            ("postgres://ring:one@db/other", false),
            ("postgres://ring:one@db/fence?sslmode=require", false),
        ] {
            assert_eq!(one.is_same_server(&settings(url).unwrap()), same, "{url}");
        }
        let more = PostgresSettings { pool_max: 3, ..settings("postgres://ring:two@db/fence").unwrap() };
        assert!(!one.is_same_server(&more));
        // Without a name the database is the user's.
        assert!(!settings("postgres://a:x@db").unwrap().is_same_server(&settings("postgres://b:x@db").unwrap()));
    }

    #[test]
    fn only_a_verified_server_or_this_machine_is_safe() {
        for (url, safe) in [
            ("postgres://u@db.example.com/x?sslmode=verify-full", true),
            ("postgres://u@db.example.com/x?sslmode=require", false),
            ("postgres://u@db.example.com/x", false),
            ("postgres://u@127.0.0.1/x", true),
            ("postgres://u@[::1]/x", true),
            ("postgres://u@localhost/x", true),
            ("postgres:///x?host=/run/postgresql", true),
        ] {
            assert_eq!(settings(url).unwrap().exposed().is_none(), safe, "{url}");
        }
    }
}
