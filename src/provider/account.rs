//! An account: a provider description joined with one set of credentials.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{HeaderName, HeaderValue, Uri};

use super::description::{Credentials, Description};
use super::render::{MissingValue, Target, render};
use super::secret::Secret;
use super::sign::{Keys, Signature};
use crate::ids::AccountName;

/// One set of credentials at one provider.
#[derive(Debug, Clone)]
pub struct Account {
    /// The account's name in the config.
    pub name: AccountName,
    /// The provider.
    pub provider: Arc<Description>,
    /// The base URL that requests are sent to.
    pub upstream: Uri,
    /// Base URLs that replace `upstream` for a path prefix.
    pub upstreams: Vec<(String, Uri)>,
    /// The credentials of ringfence's own requests; see [`Description::secrets`].
    pub secrets: BTreeMap<String, Secret>,
    /// Secrets of webhook signatures, the current one first.
    pub webhook_secrets: Vec<Secret>,
    /// Keys that webhooks select by name: for Twilio's newer signatures, for token issuers.
    pub shared_keys: BTreeMap<String, Secret>,
    /// Tokens of webhooks that are not signed.
    pub webhook_tokens: Vec<Secret>,
    /// Hang-up methods, in order of preference.
    pub hang_up_methods: Vec<String>,
    /// The account that carries the calls of this one, for hang-up methods that need it.
    pub carrier: Option<AccountName>,
}

impl Account {
    /// Whether ringfence has credentials for requests of its own.
    pub fn can_ask(&self) -> bool {
        self.provider.secrets.iter().all(|name| self.secrets.contains_key(name))
    }

    /// Returns the account's own id at the provider, where paths contain it.
    pub fn own_id(&self) -> Option<&Secret> {
        self.secrets.get(&self.provider.subaccounts.as_ref()?.own)
    }

    /// The authentication header of ringfence's own requests.
    pub fn credentials(&self) -> Result<(HeaderName, HeaderValue), MissingValue> {
        let fill = |template: &str| render(template, Target::Plain, |name| self.value(name));
        let (name, value) = match &self.provider.credentials {
            Credentials::Header { header, value } => (header.clone(), fill(value)?),
            Credentials::Basic { username, password } => {
                let pair = format!("{}:{}", fill(username)?, fill(password)?);
                ("authorization".to_owned(), format!("Basic {}", BASE64.encode(pair)))
            }
        };
        let name = HeaderName::try_from(name).map_err(|_| MissingValue("credentials.header".to_owned()))?;
        let mut value = HeaderValue::try_from(value).map_err(|_| MissingValue("credentials.value".to_owned()))?;
        value.set_sensitive(true);
        Ok((name, value))
    }

    /// The value of `account.…` in a template.
    pub fn value<'a>(&'a self, name: &str) -> Option<Cow<'a, str>> {
        let key = name.strip_prefix("account.")?;
        self.secrets.get(key).map(|secret| Cow::Borrowed(secret.expose()))
    }

    /// The keys that verify signatures: the webhook secrets, or else the account's key that the signature names.
    pub fn keys(&self, signature: &Signature) -> Keys {
        let secrets = if self.webhook_secrets.is_empty() {
            signature.key_from().and_then(|key| self.secrets.get(key)).cloned().into_iter().collect()
        } else {
            self.webhook_secrets.clone()
        };
        Keys { secrets, named: self.shared_keys.clone(), tokens: self.webhook_tokens.clone() }
    }

    /// The base URL for a path.
    pub fn upstream_of(&self, path: &str) -> &Uri {
        let below =
            |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        self.upstreams.iter().find(|(prefix, _)| below(prefix)).map_or(&self.upstream, |(_, url)| url)
    }

    /// A URL of the provider: the upstream's scheme, authority and base path, then `path_and_query`.
    pub fn url(&self, path_and_query: &str) -> Result<Uri, http::uri::InvalidUri> {
        let path = path_and_query.split('?').next().unwrap_or_default();
        join_url(self.upstream_of(path), path_and_query).parse()
    }
}

/// Joins a base URL and a path below it.
pub fn join_url(base: &Uri, path_and_query: &str) -> String {
    let scheme = base.scheme_str().unwrap_or("https");
    let authority = base.authority().map_or("", |a| a.as_str());
    format!("{scheme}://{authority}{}{path_and_query}", base.path().trim_end_matches('/'))
}
