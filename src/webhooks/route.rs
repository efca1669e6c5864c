//! Routing of webhooks: the account and the webhook of a description, and whether the signature is valid. Pure but for the clock
//! that is passed in.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderMap;

use super::app_view::seen;
use super::settings::ExtraPaths;
use super::settings::Unsigned;
use crate::ids::AccountName;
use crate::provider::account::{Account, join_url};
use crate::provider::description::Webhook;
use crate::provider::path::{Reading, climbs, normal, readings, trimmed};
use crate::provider::sign::{Keys, Request, SignatureError, Verification};

/// A webhook that a path matches.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The account.
    pub account: Arc<Account>,
    /// The index among the provider's webhooks.
    pub index: usize,
    /// The values that the path captured.
    pub captures: BTreeMap<String, String>,
}

impl Candidate {
    /// The webhook.
    pub fn webhook(&self) -> &Webhook {
        &self.account.provider.webhooks[self.index]
    }

    /// Whether its sender learns by the status what is wrong.
    pub(super) fn is_exact_at(&self, path: &str) -> bool {
        let path = normal(path);
        self.webhook().exact.iter().any(|one| one.fits_any_case(path.as_str()))
    }
}

/// The result of routing a path.
#[derive(Debug, Clone)]
pub enum PathMatch {
    /// No webhook matches.
    Nothing,
    /// Only a lenient parser would match a webhook: ambiguous.
    Ambiguous,
    /// One of these matches. Accounts of one provider share its paths.
    Webhooks(Vec<Candidate>),
}

/// Routes a path, in all its escaped forms: see [`normal`].
pub fn find(accounts: &BTreeMap<AccountName, Arc<Account>>, extra: &ExtraPaths, path: &str) -> PathMatch {
    let found = candidates(accounts, extra, path);
    if !found.is_empty() {
        return PathMatch::Webhooks(found);
    }
    let is_webhook = |path: &str| !candidates(accounts, extra, path).is_empty();
    let readings = readings(path);
    let to_some = readings.iter().skip(1).any(|reading| is_webhook(reading.as_str()))
        || readings.iter().any(|reading| is_webhook(&trimmed(reading.as_str())));
    match climbs(path) || to_some {
        true => PathMatch::Ambiguous,
        false => PathMatch::Nothing,
    }
}

/// Every webhook that a path matches in its usual reading.
pub fn candidates(accounts: &BTreeMap<AccountName, Arc<Account>>, extra: &ExtraPaths, path: &str) -> Vec<Candidate> {
    let path = normal(path);
    let reading = Reading::from(path.as_str());
    let mut found = Vec::new();
    for account in accounts.values() {
        for (index, webhook) in account.provider.webhooks.iter().enumerate() {
            let captures = webhook.paths.iter().find_map(|p| p.captures_any_case(reading)).or_else(|| {
                let more = extra.get(&format!("{}.{}", account.provider.name, webhook.name))?;
                more.iter().any(|p| normal(p).eq_ignore_ascii_case(&path)).then(BTreeMap::new)
            });
            if let Some(captures) = captures {
                found.push(Candidate { account: account.clone(), index, captures });
                break;
            }
        }
    }
    found
}

/// The parts of a webhook that signatures cover.
#[derive(Debug, Clone, Copy)]
pub struct Signed<'a> {
    /// The method.
    pub method: &'a str,
    /// The requested path and query.
    pub path_and_query: &'a str,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The raw body.
    pub body: &'a [u8],
    /// The pairs of a form body.
    pub form: Option<&'a [(String, String)]>,
    /// The URL that providers call; without it, the request's host is used.
    pub public_url: Option<&'a http::Uri>,
    /// Now, in seconds.
    pub now_secs: i64,
    /// Treatment of the webhook if its account has no secret.
    pub unsigned: Unsigned,
}

impl Signed<'_> {
    /// The URL that the provider called, as far as it can be known.
    pub fn url(&self) -> String {
        match (self.public_url, seen(self.headers)) {
            (Some(public), _) => join_url(public, self.path_and_query),
            (None, (scheme, Some(host))) => format!("{scheme}://{host}{}", self.path_and_query),
            (None, (_, None)) => self.path_and_query.to_owned(),
        }
    }

    /// The request for the signature check, under the URL that was called.
    pub fn request<'s>(&'s self, url: &'s str) -> Request<'s> {
        Request { method: self.method, url, headers: self.headers, body: self.body, form: self.form }
    }
}

/// Checks the signature by the webhook's scheme, with the account's keys. [`Verification::Unsigned`]: it is not signed, or there was no key
/// to check with, and that is allowed.
pub fn verify(candidate: &Candidate, signed: &Signed<'_>) -> Result<Verification, SignatureError> {
    verify_with(candidate, &candidate.account.keys(&candidate.webhook().signature), signed)
}

/// Verifies a webhook with other keys than its account's.
pub fn verify_with(candidate: &Candidate, keys: &Keys, signed: &Signed<'_>) -> Result<Verification, SignatureError> {
    let url = signed.url();
    match candidate.webhook().signature.verify(keys, &signed.request(&url), signed.now_secs) {
        Err(SignatureError::NoSecret) if signed.unsigned == Unsigned::Accept => Ok(Verification::Unsigned),
        checked => checked,
    }
}
