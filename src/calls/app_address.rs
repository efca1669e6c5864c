//! The app's addresses, and which of its paths webhooks and tenants' URLs may lead to.

use http::Uri;

use crate::provider::path::{normal, readings};

/// The app's addresses: its public ones and the operator's internal one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AppAddress {
    /// The URL that providers call. It leads to ringfence, and through it to the app.
    pub public_url: Option<Uri>,
    /// The app's own public URL.
    pub app_public_url: Option<Uri>,
    /// The URL that webhooks are forwarded to.
    pub forward_url: Option<Uri>,
    /// Paths behind `forward_url` that are forwarded although they are no webhook paths.
    pub forward_paths: ForwardPaths,
    /// Webhook paths that the operator configured.
    pub webhook_paths: Vec<String>,
}

impl AppAddress {
    /// The path and query behind `app.forward_url` for a URL of the app or of ringfence; `None` for any other URL.
    pub fn path_of<'u>(&self, url: &'u str) -> Option<&'u str> {
        let url = url.split('#').next().unwrap_or_default();
        let asked: Uri = url.parse().ok()?;
        let bases = [&self.public_url, &self.app_public_url].into_iter().flatten();
        let base = bases.filter(|base| is_one_host(base, &asked)).max_by_key(|base| shared(base, &asked))?;
        // The path as written: parsing would normalise it.
        let after_host = url.find("://").map_or(0, |at| at + 3);
        let begin = url[after_host..].find(['/', '?']).map_or(url.len(), |at| at + after_host);
        let path = &url[begin..];
        Some(path.get(shared(base, &asked)..).filter(|rest| rest.starts_with('/')).unwrap_or(path))
    }

    /// Whether an address leads to ringfence itself.
    pub(super) fn is_own(&self, url: &str) -> bool {
        let asked = url.split('#').next().and_then(|url| url.parse::<Uri>().ok());
        asked.is_some_and(|asked| self.public_url.as_ref().is_some_and(|own| is_one_host(own, &asked)))
    }
}

/// The length of the base path that both share.
fn shared(base: &Uri, asked: &Uri) -> usize {
    let prefix = base.path().trim_end_matches('/');
    let below = asked.path().strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
    if below { prefix.len() } else { 0 }
}

/// Whether both have the same host and port. The schemes `http` and `https` of one host count as equal.
fn is_one_host(a: &Uri, b: &Uri) -> bool {
    let host = |uri: &Uri| uri.host().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
    let port = |uri: &Uri| uri.port_u16().filter(|port| !matches!(port, 80 | 443));
    !host(a).is_empty() && host(a) == host(b) && port(a) == port(b)
}

/// Paths of the app: all, or those that the operator listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ForwardPaths(Option<Vec<Forward>>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Forward {
    path: String,
    /// All paths below it match too.
    below: bool,
}

impl ForwardPaths {
    /// Parses paths: `/media` matches that path, `/media/*` that path and all below it.
    ///
    /// # Errors
    /// The first entry that is not such a path.
    pub fn parse<S: AsRef<str>>(paths: &[S]) -> Result<Self, String> {
        let parse = |text: &str| {
            let (path, below) = text.strip_suffix("/*").map_or((text, false), |path| (path, true));
            let is_path =
                text.starts_with('/') && !path.contains(['*', '?', '#']) && readings(path).iter().count() == 1;
            is_path
                .then(|| Forward { path: normal(path), below })
                .ok_or_else(|| format!("{text:?} is not a path such as /media or /media/*"))
        };
        paths.iter().map(|text| parse(text.as_ref())).collect::<Result<_, _>>().map(Some).map(Self)
    }

    /// Whether every path without a description is forwarded.
    pub fn are_all(&self) -> bool {
        self.0.is_none()
    }

    /// Whether a path is forwarded. Every reading of an escaped path has to match.
    pub fn contain(&self, path: &str) -> bool {
        let Some(allowed) = &self.0 else { return true };
        readings(path).iter().all(|reading| {
            let reading = reading.as_str();
            allowed.iter().any(|one| {
                let prefix = one.path.trim_end_matches('/');
                reading == one.path
                    || (one.below && reading.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/')))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_an_address_that_is_the_apps_is_kept() {
        let uri = |text: &str| Some(text.parse::<Uri>().unwrap());
        let app = AppAddress {
            public_url: uri("https://hooks.example.com/rf"),
            app_public_url: uri("https://app.example.com"),
            forward_url: uri("http://127.0.0.1:3000"),
            ..AppAddress::default()
        };
        for (url, path) in [
            (
                "https://hooks.example.com/rf/webhooks/twilio/status?a=b%20c#rc=3",
                Some("/webhooks/twilio/status?a=b%20c"),
            ),
            ("http://HOOKS.example.com./x", Some("/x")),
            ("https://hooks.example.com:443/rfx", Some("/rfx")),
            ("https://app.example.com", Some("")),
            ("https://app.example.com?a=1", Some("?a=1")),
            ("https://user:pass@app.example.com/x", Some("/x")),
            ("https://app.example.com:8443/x", None),
            ("https://hooks.example.com@127.0.0.1/x", None),
            ("https://example.com/hooks.example.com", None),
            ("/relative", None),
        ] {
            assert_eq!(app.path_of(url), path, "{url}");
        }
        assert_eq!(AppAddress::default().path_of("https://hooks.example.com/x"), None);
    }

    #[test]
    fn only_named_paths_pass_however_they_are_written() {
        let paths = ForwardPaths::parse(&["/media", "/twiml/*"]).unwrap();
        for passes in ["/media", "/media/", "//media", "/twiml", "/twiml/a/b", "/twiml/%61", "/x/../media"] {
            assert!(paths.contain(passes), "{passes}");
        }
        for stays in [
            "/",
            "/Media",
            "/media/x",
            "/twimlx",
            "/twiml/../admin",
            "/twiml/%2e%2e/admin",
            "/twiml/..%2fadmin",
            "/twiml/%252e%252e/admin",
            "/twiml\\..\\..\\admin",
            "/admin",
        ] {
            assert!(!paths.contain(stays), "{stays}");
        }
        assert!(ForwardPaths::default().contain("/anything") && ForwardPaths::default().are_all());
        assert!(!ForwardPaths::parse::<&str>(&[]).unwrap().contain("/"), "none at all");
        assert!(ForwardPaths::parse(&["/*"]).unwrap().contain("/a/b"));
        for bad in ["media", "", "/a*", "/a?b", "/a%2fb"] {
            assert!(ForwardPaths::parse(&[bad]).is_err(), "{bad}");
        }
    }
}
