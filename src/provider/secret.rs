//! A secret that cannot be printed by accident.

use std::fmt;
use std::sync::Arc;

/// Parameters of a URL that are a part of its credential.
const CREDENTIAL: [&str; 4] = ["user", "username", "password", "pass"];

/// A credential. `Debug` hides its value; it has no `Display` and no `Serialize`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Wraps a credential.
    pub fn new(text: &str) -> Self {
        Self(Arc::from(text))
    }

    /// A URL without its user and password.
    pub fn without_credential(&self) -> String {
        let (scheme, rest) = self.0.split_once("://").unwrap_or(("", &self.0));
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = place.split_at(place.find('/').unwrap_or(place.len()));
        let host = authority.rsplit('@').next().unwrap_or_default();
        let is_kept = |pair: &&str| !CREDENTIAL.contains(&pair.split('=').next().unwrap_or_default());
        let query: Vec<&str> = query.split('&').filter(is_kept).collect();
        format!("{scheme}://{host}{path}?{}", query.join("&"))
    }

    /// The credential itself, for a header, a key or a comparison.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_without_its_credential_is_the_same_place() {
        let of = |url: &str| Secret::new(url).without_credential();
        for (url, place) in [
            ("postgres://u:p@db:5432/x?sslmode=require", "postgres://db:5432/x?sslmode=require"),
            ("postgres:///x?host=/run&user=u&password=p", "postgres:///x?host=/run"),
            ("redis://:p%40@db/3", "redis://db/3?"),
            ("redis+sentinel://u:p@a,b:7/gate", "redis+sentinel://a,b:7/gate?"),
            ("unix:///run/redis.sock?pass=p&db=2", "unix:///run/redis.sock?db=2"),
        ] {
            assert_eq!(of(url), place);
        }
        assert_ne!(of("redis://db/1"), of("redis://db/2"));
    }
}
