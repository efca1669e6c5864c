//! Whose a webhook is: the account, or the subaccount, whose signature holds.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use tracing::warn;

use super::arrive::{Candidate, Signed, verify};
use super::noise::{Noise, shortened};
use super::subaccounts::Signer;
use super::{Raw, Webhooks};
use crate::net::Exchange;
use crate::provider::account::Account;
use crate::provider::sign::{BadSignature, Keys};
use crate::reply::problem;

/// Anybody can send what is refused.
static REFUSED: Noise = Noise::new();
static UNCHECKED: Noise = Noise::new();

impl Webhooks {
    /// A request as its signature sees it.
    pub(super) fn signed<'r>(&'r self, raw: &'r Raw) -> Signed<'r> {
        Signed {
            method: &raw.method,
            path_and_query: &raw.path_and_query,
            headers: &raw.headers,
            body: &raw.body,
            form: raw.form(),
            public_url: self.settings.public_url.as_ref(),
            now_secs: self.calls.lifecycle.clock.now_ms() / 1000,
            strict: self.settings.strict,
        }
    }

    /// The answer to a webhook that cannot be genuine, whatever its body is: no signature, none that could be one, or one that is too
    /// old. Its body is not read.
    pub(super) fn refused_by_head(&self, exchange: &Exchange, found: &[Candidate]) -> Option<Response<Bytes>> {
        let now_secs = self.calls.lifecycle.clock.now_ms() / 1000;
        let mut first = None;
        for from in found {
            let signature = &from.webhook().signature;
            match signature.judge_head(&from.account.keys(signature), exchange.headers(), now_secs) {
                Ok(()) => return None,
                // A subaccount may have signed it, with a key of its own.
                Err(BadSignature::NoSecret) if !self.settings.strict || signature.is_shown(exchange.headers()) => {
                    return None;
                }
                Err(error) => first = first.or(Some((&from.account, error))),
            }
        }
        first.map(|(account, error)| self.unsigned(account, exchange.path(), &error))
    }

    fn unsigned(&self, account: &Account, path: &str, error: &BadSignature) -> Response<Bytes> {
        self.calls.lifecycle.metrics.webhook(account.name.as_str(), "unverified", "refused");
        if let Some(left_out) = REFUSED.admits() {
            let path = shortened(path);
            warn!(account = %account.name, path, %error, left_out, "a webhook was refused");
        }
        problem(StatusCode::UNAUTHORIZED, "INVALID_SIGNATURE", &error.to_string())
    }

    /// Whose a webhook is, and what it is signed with; or the answer to one whose signature does not hold, or cannot be checked just
    /// now.
    pub(super) async fn signer<'c>(
        &self,
        raw: &Raw,
        found: &'c [Candidate],
    ) -> std::result::Result<(&'c Candidate, Keys), Response<Bytes>> {
        let (account, error) = match self.verified(raw, found) {
            Ok(from) => return Ok((from, from.account.keys(&from.webhook().signature))),
            Err(refused) => refused,
        };
        let (path, metrics) = (raw.path(), &self.calls.lifecycle.metrics);
        match self.subaccounts.signer(&self.calls, found, raw, &self.signed(raw)).await {
            Signer::Subaccount(from, keys) => Ok((from, keys)),
            Signer::Unknown => {
                metrics.webhook(account.name.as_str(), "unverified", "failed");
                if let Some(left_out) = UNCHECKED.admits() {
                    let path = shortened(path);
                    warn!(account = %account.name, path, left_out, "a subaccount's webhook cannot be checked");
                }
                let message = "The provider could not be asked for the subaccount's token; send it again.";
                Err(problem(StatusCode::SERVICE_UNAVAILABLE, "SIGNATURE_UNCHECKED", message))
            }
            Signer::Nobody => Err(self.unsigned(&account, path, &error)),
        }
    }

    fn verified<'c>(
        &self,
        raw: &Raw,
        found: &'c [Candidate],
    ) -> std::result::Result<&'c Candidate, (Arc<Account>, BadSignature)> {
        let signed = self.signed(raw);
        let (mut unchecked, mut last) = (None, None);
        for candidate in found {
            match verify(candidate, &signed) {
                Ok(true) => return Ok(candidate),
                // Nothing to check with; an account whose secret fits goes before.
                Ok(false) => unchecked = unchecked.or(Some(candidate)),
                Err(error) => last = last.or(Some((candidate.account.clone(), error))),
            }
        }
        if let Some(candidate) = unchecked {
            return Ok(candidate);
        }
        Err(last.unwrap_or_else(|| (found[0].account.clone(), BadSignature::NoSecret)))
    }
}
