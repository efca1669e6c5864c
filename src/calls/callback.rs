//! Callbacks: addresses that an app gives with a create, and that ringfence calls in the provider's place.

use http::Uri;

use super::place::CreateOrder;
use super::{Calls, ForwardPaths};
use crate::net::BadCallback;
use crate::provider::description::Callback;
use crate::provider::path::{climbs, normal};
use crate::provider::select::{Document, Message, Selector};

/// Where the app is, by the names that the world knows it by and by the operator's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AppAddress {
    /// What providers call: it leads to ringfence, and behind it to the app.
    pub public_url: Option<Uri>,
    /// The app's own.
    pub app_public_url: Option<Uri>,
    /// Where webhooks go on to.
    pub forward_url: Option<Uri>,
    /// The paths behind it that pass although they are no webhooks'.
    pub forward_paths: ForwardPaths,
    /// Paths of webhooks that the operator added.
    pub webhook_paths: Vec<String>,
}

impl AppAddress {
    /// The path and query behind `app.forward_url` of an address that is the app's or our own; `None` for any other.
    pub fn path_of<'u>(&self, url: &'u str) -> Option<&'u str> {
        let url = url.split('#').next().unwrap_or_default();
        let asked: Uri = url.parse().ok()?;
        let bases = [&self.public_url, &self.app_public_url].into_iter().flatten();
        let base = bases.filter(|base| is_one_host(base, &asked)).max_by_key(|base| shared(base, &asked))?;
        // From the path on, as it was written.
        let after_host = url.find("://").map_or(0, |at| at + 3);
        let begin = url[after_host..].find(['/', '?']).map_or(url.len(), |at| at + after_host);
        let path = &url[begin..];
        Some(path.get(shared(base, &asked)..).filter(|rest| rest.starts_with('/')).unwrap_or(path))
    }

    /// Whether an address leads to ringfence itself.
    fn is_own(&self, url: &str) -> bool {
        let asked = url.split('#').next().and_then(|url| url.parse::<Uri>().ok());
        asked.is_some_and(|asked| self.public_url.as_ref().is_some_and(|own| is_one_host(own, &asked)))
    }
}

/// How much of a path is the base's own.
fn shared(base: &Uri, asked: &Uri) -> usize {
    let prefix = base.path().trim_end_matches('/');
    let below = asked.path().strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
    if below { prefix.len() } else { 0 }
}

/// One host and port. `http` and `https` of a host are one place.
fn is_one_host(a: &Uri, b: &Uri) -> bool {
    let host = |uri: &Uri| uri.host().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
    let port = |uri: &Uri| uri.port_u16().filter(|port| !matches!(port, 80 | 443));
    !host(a).is_empty() && host(a) == host(b) && port(a) == port(b)
}

impl Calls {
    /// Judges the callback that a create asks ringfence to take over. An address of the app's goes to `app.forward_url`, which is
    /// the operator's word.
    ///
    /// # Errors
    /// Why it is not called.
    pub(super) fn check_callbacks(&self, order: &CreateOrder) -> Result<(), BadCallback> {
        let Some(rule) = self.callback_rule(order) else { return Ok(()) };
        for method in values(&order.body, &rule.method_field) {
            if !["GET", "POST"].iter().any(|one| method.eq_ignore_ascii_case(one)) {
                let shown: String = method.chars().filter(|c| c.is_ascii_alphanumeric()).take(16).collect();
                return Err(BadCallback::unusable(format!("{} {shown:?} is neither GET nor POST", rule.method_field)));
            }
        }
        let mut urls = values(&order.body, &rule.field);
        urls.retain(|url| !url.is_empty());
        urls.iter().try_for_each(|url| self.check_callback(url))
    }

    fn check_callback(&self, url: &str) -> Result<(), BadCallback> {
        let app = &self.settings.app;
        if let Some(path) = app.path_of(url) {
            if climbs(path.split('?').next().unwrap_or_default()) {
                return Err(BadCallback::unusable("its path leaves the place where it begins"));
            }
            if app.forward_url.is_some() {
                return match self.may_forward(path) {
                    true => Ok(()),
                    false => Err(BadCallback::unusable("app.forward_paths does not let its path pass to the app")),
                };
            }
            if app.is_own(url) {
                return Err(BadCallback::unusable("it leads back to ringfence, and app.forward_url is not set"));
            }
        }
        self.upstream.callback_rules().check_url(url)
    }

    /// Whether a tenant's address may lead to this path of the app: to where webhooks go, and what else the operator lets pass.
    pub fn may_forward(&self, path_and_query: &str) -> bool {
        let path = path_and_query.split('?').next().unwrap_or_default();
        let app = &self.settings.app;
        let read = normal(path);
        let is_webhook = || {
            let mut described = self.accounts.values().flat_map(|account| &account.provider.webhooks);
            described.any(|webhook| webhook.paths.iter().any(|one| one.fits_any_case(&read)))
                || app.webhook_paths.iter().any(|one| normal(one).eq_ignore_ascii_case(&read))
        };
        app.forward_paths.contain(if path.is_empty() { "/" } else { path }) || is_webhook()
    }

    /// The rule by which an order's callback is taken over, if it is.
    pub(super) fn callback_rule<'o>(&self, order: &'o CreateOrder) -> Option<&'o Callback> {
        let rule: &Callback = order.operation.callback.as_ref()?;
        self.settings.app.public_url.as_ref()?;
        let message =
            Message { body: &order.body, query: &[], path: &Default::default(), headers: order.request.headers() };
        (rule.unless.is_empty() || !rule.unless.holds(&message)).then_some(rule)
    }
}

/// Everything that a body gives as this field: in a form it may stand more than once, in JSON it may be a list.
fn values(body: &Document, field: &str) -> Vec<String> {
    match body {
        Document::Form(pairs) => pairs.iter().filter(|(name, _)| name == field).map(|(_, v)| v.clone()).collect(),
        Document::Json(_) => {
            let Ok(selector) = Selector::parse(&format!("body.{field}")) else { return vec![] };
            match selector.json(body) {
                Some(serde_json::Value::String(one)) => vec![one.clone()],
                Some(serde_json::Value::Array(list)) => {
                    list.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect()
                }
                _ => vec![],
            }
        }
        Document::Empty | Document::Xml(_) => vec![],
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
    fn a_field_is_read_wherever_it_stands() {
        let pairs = [("Url", "a"), ("x", "y"), ("Url", "b")].map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec();
        assert_eq!(values(&Document::Form(pairs), "Url"), ["a", "b"]);
        let json = |value| Document::Json(serde_json::json!({"Url": value}));
        assert_eq!(values(&json(serde_json::json!("a")), "Url"), ["a"]);
        assert_eq!(values(&json(serde_json::json!(["a", 7, "b"])), "Url"), ["a", "b"]);
        assert!(values(&json(serde_json::json!(7)), "Url").is_empty() && values(&Document::Empty, "Url").is_empty());
    }
}
