//! Rewrites `Location` of answers, so that clients that use a mount stay behind it. Pure.

use http::header::LOCATION;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};

/// An upstream as its clients see it: what is at `base` there is requested below `at` here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mount<'a> {
    /// The upstream.
    pub base: &'a Uri,
    /// The prefix of paths here; empty where clients name the upstream by `Host`.
    pub at: &'a str,
}

/// An answer would redirect its client past this proxy to the upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RedirectPast(pub(super) String);

impl Mount<'_> {
    /// Rewrites `Location` so that a client that follows it stays behind the mount. A redirect to another host is kept if the client
    /// would only fetch something there.
    ///
    /// # Errors
    /// The host, if it belongs to the upstream and cannot be reached by this mount, or if a client would send its request there.
    pub(super) fn rewrite_location(
        &self,
        method: &Method,
        status: StatusCode,
        headers: &mut HeaderMap,
    ) -> Result<(), RedirectPast> {
        let Some(location) = headers.get(LOCATION) else { return Ok(()) };
        let past = |host: &str| RedirectPast(host.to_owned());
        let text = location.to_str().map_err(|_| past("an unreadable address"))?.trim();
        // Relative references end their first segment with one of these; a client resolves them against the request (RFC 3986 §5.2).
        let is_relative =
            !text.starts_with(['/', '\\']) && !text.split(['/', '?', '#']).next().is_some_and(|s| s.contains(':'));
        if is_relative {
            return Ok(());
        }
        let (target, fragment) =
            text.split_once('#').map_or((text, None), |(target, fragment)| (target, Some(fragment)));
        let absolute = match target.strip_prefix("//") {
            Some(rest) => format!("{}://{rest}", self.base.scheme_str().unwrap_or("https")),
            None => target.to_owned(),
        };
        let uri = absolute.parse::<Uri>().map_err(|_| past("an unreadable address"))?;
        if let Some(authority) = uri.authority()
            && !self.is_own(authority, uri.scheme_str())
        {
            let sends = matches!(status.as_u16(), 307 | 308) && !method.is_safe();
            return if sends || self.is_kin(authority.host()) { Err(past(authority.host())) } else { Ok(()) };
        }
        let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let prefix = self.base.path().trim_end_matches('/');
        let below = path.strip_prefix(prefix).filter(|rest| rest.starts_with('/'));
        let below = below.ok_or_else(|| past(self.base.host().unwrap_or_default()))?;
        let fragment = fragment.map(|fragment| format!("#{fragment}")).unwrap_or_default();
        let kept = HeaderValue::try_from(format!("{}{below}{fragment}", self.at));
        headers.insert(LOCATION, kept.map_err(|_| past("an unreadable address"))?);
        Ok(())
    }

    fn is_own(&self, authority: &Authority, scheme: Option<&str>) -> bool {
        let port =
            |port: Option<u16>, scheme: Option<&str>| port.unwrap_or(if scheme == Some("http") { 80 } else { 443 });
        // http and https of one host, at their default ports, are the same upstream.
        let plain = authority.port().is_none() && self.base.port().is_none();
        self.base.host().is_some_and(|host| host.eq_ignore_ascii_case(authority.host()))
            && (plain || port(authority.port_u16(), scheme) == port(self.base.port_u16(), self.base.scheme_str()))
    }

    /// Whether a host belongs to the upstream too: it has the same last two labels, or is the same address.
    fn is_kin(&self, host: &str) -> bool {
        let domain = |host: &str| {
            let labels: Vec<&str> = host.trim_end_matches('.').rsplitn(3, '.').take(2).collect();
            labels.join(".").to_ascii_lowercase()
        };
        let own = self.base.host().unwrap_or_default();
        match host.parse::<std::net::IpAddr>().is_ok() || own.parse::<std::net::IpAddr>().is_ok() {
            true => host == own,
            false => domain(host) == domain(own),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(base: &str, at: &str, method: Method, status: u16, location: &str) -> Result<String, RedirectPast> {
        let base = base.parse().unwrap();
        let mount = Mount { base: &base, at };
        let mut headers = HeaderMap::new();
        headers.insert(LOCATION, HeaderValue::from_str(location).unwrap());
        mount.rewrite_location(&method, StatusCode::from_u16(status).unwrap(), &mut headers)?;
        Ok(headers[LOCATION].to_str().unwrap().to_owned())
    }

    #[test]
    fn what_leads_to_the_upstream_leads_behind_the_mount() {
        for (location, client_sees) in [
            ("https://api.example.io/v1/x?y=%20#z", "/eleven/v1/x?y=%20#z"),
            ("HTTPS://API.example.io:443/v1/x", "/eleven/v1/x"),
            ("http://api.example.io/v1", "/eleven/v1"),
            ("https://api.example.io", "/eleven/"),
            ("//api.example.io/v1", "/eleven/v1"),
            ("https://user:word@api.example.io/v1", "/eleven/v1"),
            ("/v1/x", "/eleven/v1/x"),
            ("x/y", "x/y"),
            ("../x?to=https://api.example.io", "../x?to=https://api.example.io"),
            ("?page=2", "?page=2"),
            ("https://storage.elsewhere.com/a?sig=b", "https://storage.elsewhere.com/a?sig=b"),
        ] {
            for status in [301, 302, 303, 307, 308, 201] {
                let got = kept("https://api.example.io", "/eleven", Method::GET, status, location);
                assert_eq!(got.as_deref(), Ok(client_sees), "{location} {status}");
            }
        }
        assert_eq!(kept("https://a.io/base/", "", Method::POST, 307, "/base/v1").as_deref(), Ok("/v1"));
        assert_eq!(
            kept("http://127.0.0.1:81", "/m", Method::POST, 308, "http://127.0.0.1:81/v1").as_deref(),
            Ok("/m/v1")
        );
    }

    #[test]
    fn what_leads_past_the_mount_is_not_handed_on() {
        let base = "https://api.example.io";
        for location in [
            "https://api.us.example.io/v1",
            "https://example.io/",
            "//eu.example.io./v1",
            "https://api.example.io:8443/v1",
        ] {
            for (method, status) in [(Method::GET, 302), (Method::POST, 307), (Method::POST, 201)] {
                assert!(kept(base, "/eleven", method, status, location).is_err(), "{location} {status}");
            }
        }
        let foreign = "https://elsewhere.com/v1";
        assert!(kept(base, "/eleven", Method::POST, 307, foreign).is_err(), "the order would be sent there");
        assert!(kept(base, "/eleven", Method::POST, 303, foreign).is_ok(), "it is only fetched there");
        assert!(kept("https://a.io/base", "", Method::GET, 302, "/other").is_err(), "not below the base");
        assert!(kept("http://127.0.0.1:81", "", Method::GET, 302, "http://127.0.0.1:82/").is_err());
        assert!(kept(base, "", Method::GET, 302, "\\\\api.example.io\\v1").is_err());
        assert!(kept(base, "", Method::GET, 302, "https:/\\api.example.io").is_err());
    }
}
