//! The URL as the app sees it: `Host`, `X-Forwarded-*`, and the URL that signatures cover. The app sees what it would see behind
//! its own TLS proxy, so that apps that build URLs from `Host`, or check signatures with it, work unchanged. Pure.

use http::header::{FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue};
use http::uri::Authority;

use super::settings::{AppHost, WebhookSettings};
use crate::provider::account::join_url;

const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");

/// Headers from which an app may derive scheme, host or path of its own URL, and that could contradict ours. A sender's are never
/// passed on, not even a trusted proxy's: `public_url` has what they would say.
pub(super) static REPLACED: [HeaderName; 9] = [
    FORWARDED,
    FORWARDED_HOST,
    FORWARDED_PROTO,
    FORWARDED_PORT,
    HeaderName::from_static("x-forwarded-prefix"),
    HeaderName::from_static("x-forwarded-protocol"),
    HeaderName::from_static("x-forwarded-scheme"),
    HeaderName::from_static("x-forwarded-server"),
    HeaderName::from_static("x-forwarded-ssl"),
];

/// Scheme and host of a request as received. `headers` are those of [`crate::net::Exchange::arrived`].
pub(super) fn seen(headers: &HeaderMap) -> (&str, Option<&str>) {
    let first = |name: &HeaderName| headers.get(name)?.to_str().ok()?.split(',').next().map(str::trim);
    let scheme = if first(&FORWARDED_PROTO) == Some("https") { "https" } else { "http" };
    (scheme, first(&FORWARDED_HOST).or_else(|| first(&HOST)))
}

impl WebhookSettings {
    /// The URL by which the app knows a request that was received with these headers.
    pub(super) fn app_url(&self, headers: &HeaderMap, path_and_query: &str) -> String {
        let forward = self.forward_url.as_ref();
        let base_path =
            |own: Option<&http::Uri>| own.or(forward).map_or("", |uri| uri.path().trim_end_matches('/')).to_owned();
        let public = self.app_public_url.as_ref().or(self.public_url.as_ref());
        let (scheme, host) = match public {
            Some(uri) => (uri.scheme_str().unwrap_or("https"), uri.authority().map(Authority::as_str)),
            None => seen(headers),
        };
        let host = match (&self.app_host, host, self.app_public_url.as_ref().or(forward)) {
            (AppHost::Forward, _, Some(base)) => return join_url(base, path_and_query),
            (AppHost::Name(name), ..) => name.as_str(),
            (_, Some(host), _) => host,
            (_, None, Some(base)) => return join_url(base, path_and_query),
            (_, None, None) => "localhost",
        };
        format!("{scheme}://{host}{}{path_and_query}", base_path(self.app_public_url.as_ref()))
    }

    /// The headers that tell the app that it was called by this URL. Without `Host` where that is the forward URL's own.
    pub(super) fn front_headers(&self, url: &str) -> Vec<(HeaderName, HeaderValue)> {
        let Some((scheme, rest)) = url.split_once("://") else { return vec![] };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let Ok(parsed) = authority.parse::<Authority>() else { return vec![] };
        let (default_port, port) = (if scheme == "https" { 443 } else { 80 }, parsed.port_u16());
        // A default port is left out of Host, as clients do (RFC 9110 §7.2, RFC 3986 §6.2.3).
        let host = if port == Some(default_port) { parsed.host() } else { without_user(authority) };
        let forwarded = [(FORWARDED_HOST, host.to_owned()), (FORWARDED_PROTO, scheme.to_owned())];
        let port = (FORWARDED_PORT, port.unwrap_or(default_port).to_string());
        let own = (self.app_host != AppHost::Forward).then(|| (HOST, host.to_owned()));
        let all = forwarded.into_iter().chain([port]).chain(own);
        all.filter_map(|(name, value)| Some((name, HeaderValue::try_from(value).ok()?))).collect()
    }
}

fn without_user(authority: &str) -> &str {
    authority.rsplit_once('@').map_or(authority, |(_, host)| host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhooks::settings::tests::settings;

    fn received(fields: &[(&'static str, &str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn the_app_is_called_as_behind_a_front_of_its_own() {
        let (forward, based) = ("http://127.0.0.1:3000", "http://127.0.0.1:3000/base/");
        let local: &[_] = &[("x-forwarded-proto", "http"), ("x-forwarded-host", "127.0.0.1:8081")];
        let proxied: &[_] = &[("x-forwarded-proto", "https, http"), ("x-forwarded-host", "a.example, b")];
        let hooks = Some("https://hooks.example/calls");
        for (app_public, public, forward, host, headers, url) in [
            // The URL that providers call, without a path that only concerns a proxy before ringfence.
            (None, hooks, forward, "public", local, "https://hooks.example/v?x=1"),
            (None, hooks, based, "public", local, "https://hooks.example/base/v?x=1"),
            (None, Some("http://hooks.example:81"), forward, "public", proxied, "http://hooks.example:81/v?x=1"),
            (Some("https://app.example/base"), hooks, forward, "public", local, "https://app.example/base/v?x=1"),
            // Without either, the request as it came.
            (None, None, forward, "public", local, "http://127.0.0.1:8081/v?x=1"),
            (None, None, forward, "public", proxied, "https://a.example/v?x=1"),
            (None, None, forward, "public", &[("host", "b.example")], "http://b.example/v?x=1"),
            (None, None, forward, "public", &[], "http://127.0.0.1:3000/v?x=1"),
            (None, hooks, forward, "forward", local, "http://127.0.0.1:3000/v?x=1"),
            (Some("https://app.example"), hooks, forward, "forward", local, "https://app.example/v?x=1"),
            (None, hooks, based, "name.example:444", local, "https://name.example:444/base/v?x=1"),
            (Some("http://app.example/p"), None, forward, "name.example", local, "http://name.example/p/v?x=1"),
        ] {
            let uri = |text: &str| text.parse::<http::Uri>().unwrap();
            let settings = WebhookSettings {
                app_public_url: app_public.map(uri),
                public_url: public.map(uri),
                forward_url: Some(uri(forward)),
                app_host: AppHost::parse(host).unwrap(),
                ..settings()
            };
            assert_eq!(settings.app_url(&received(headers), "/v?x=1"), url, "{app_public:?} {public:?} {host}");
        }
    }

    #[test]
    fn headers_name_the_url() {
        for (url, host, scheme, port) in [
            ("https://app.example/x?y=http://z", "app.example", "https", "443"),
            ("https://app.example:443", "app.example", "https", "443"),
            ("http://app.example:443/", "app.example:443", "http", "443"),
            ("http://user:pass@[::1]:8080/", "[::1]:8080", "http", "8080"),
        ] {
            let (mut expected, mut seen) = (
                vec![
                    ("host", host),
                    ("x-forwarded-host", host),
                    ("x-forwarded-proto", scheme),
                    ("x-forwarded-port", port),
                ],
                vec![],
            );
            let headers = settings().front_headers(url);
            seen.extend(headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())));
            expected.sort_unstable();
            seen.sort_unstable();
            assert_eq!(seen, expected, "{url}");
            let forward = WebhookSettings { app_host: AppHost::Forward, ..settings() };
            assert!(forward.front_headers(url).iter().all(|(name, _)| *name != HOST), "the address's own");
        }
        assert!(settings().front_headers("no url").is_empty());
    }
}
