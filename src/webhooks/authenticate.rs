//! The signer of a webhook: the account, or the subaccount, whose signature is valid.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use tracing::warn;

use super::context::Webhooks;
use super::log_limit::{LogLimit, shortened};
use super::raw::RawWebhook;
use super::route::{Candidate, Signed, verify};
use super::settings::Unsigned;
use super::subaccounts::Signer;
use crate::ids::AccountName;
use crate::metrics::Unverified;
use crate::net::Exchange;
use crate::provider::account::Account;
use crate::provider::sign::{Keys, SignatureError, Verification};
use crate::reply::problem;
use crate::store::Voucher;

/// Anybody can send unsigned requests: bounds the log lines.
static REFUSED: LogLimit = LogLimit::new();
static UNCHECKED: LogLimit = LogLimit::new();

impl Webhooks {
    /// The parts of a request that signatures cover.
    pub(super) fn signed<'r>(&'r self, raw: &'r RawWebhook) -> Signed<'r> {
        Signed {
            method: &raw.method,
            path_and_query: &raw.path_and_query,
            headers: &raw.headers,
            body: &raw.body,
            form: raw.form(),
            public_url: self.settings.public_url.as_ref(),
            now_secs: self.calls.lifecycle.clock.now_ms() / 1000,
            unsigned: self.settings.unsigned,
        }
    }

    /// The response to a webhook that cannot be genuine, whatever its body is: no signature, a malformed one, or one that is too
    /// old. Its body is not read.
    pub(super) fn reject_by_head(&self, exchange: &Exchange, found: &[Candidate]) -> Option<Response<Bytes>> {
        let now_secs = self.calls.lifecycle.clock.now_ms() / 1000;
        let mut first = None;
        for from in found {
            let signature = &from.webhook().signature;
            match signature.validate_head(&from.account.keys(signature), exchange.headers(), now_secs) {
                Ok(()) => return None,
                // A subaccount may have signed it with its own key.
                Err(SignatureError::NoSecret)
                    if self.settings.unsigned == Unsigned::Accept || signature.is_shown(exchange.headers()) =>
                {
                    return None;
                }
                Err(error) => first = first.or(Some((&from.account, error))),
            }
        }
        first.map(|(account, error)| self.unsigned(account, exchange.path(), &error))
    }

    fn unsigned(&self, account: &Account, path: &str, error: &SignatureError) -> Response<Bytes> {
        self.calls.lifecycle.metrics.webhook_unverified(&account.name, Unverified::Refused);
        if let Some(suppressed) = REFUSED.take_line() {
            let path = shortened(path);
            warn!(account = %account.name, path, %error, suppressed, "webhook signature invalid");
        }
        problem(StatusCode::UNAUTHORIZED, "INVALID_SIGNATURE", &error.to_string())
    }

    /// The signer of a webhook, its keys and voucher; or the response when its signature is invalid, or cannot be checked at
    /// present.
    pub(super) async fn signer<'c>(
        &self,
        raw: &RawWebhook,
        found: &'c [Candidate],
    ) -> std::result::Result<(&'c Candidate, Keys, Voucher), Response<Bytes>> {
        let (account, error) = match self.verified(raw, found) {
            Ok(all) => {
                let names: Vec<AccountName> = all.iter().map(|from| from.account.name.clone()).collect();
                let from = all[0];
                let keys = from.account.keys(&from.webhook().signature);
                return Ok((from, keys, self.calls.voucher(&names, None)));
            }
            Err(refused) => refused,
        };
        let (path, metrics) = (raw.path(), &self.calls.lifecycle.metrics);
        match self.subaccounts.signer(&self.calls, found, raw, &self.signed(raw)).await {
            Signer::Subaccount(from, keys) => {
                let by = self.calls.voucher(std::slice::from_ref(&from.account.name), raw.subaccount(from));
                Ok((from, keys, by))
            }
            Signer::Unknown => {
                metrics.webhook_unverified(&account.name, Unverified::Failed);
                if let Some(suppressed) = UNCHECKED.take_line() {
                    let path = shortened(path);
                    warn!(account = %account.name, path, suppressed, "failed to verify a subaccount's webhook: its token cannot be fetched");
                }
                let message = "The subaccount's token could not be fetched from the provider; retry.";
                Err(problem(StatusCode::SERVICE_UNAVAILABLE, "SIGNATURE_UNCHECKED", message))
            }
            Signer::Nobody => Err(self.unsigned(&account, path, &error)),
        }
    }

    fn verified<'c>(
        &self,
        raw: &RawWebhook,
        found: &'c [Candidate],
    ) -> std::result::Result<Vec<&'c Candidate>, (Arc<Account>, SignatureError)> {
        let signed = self.signed(raw);
        // Accounts may share a secret: then all of them vouch for it.
        let (mut holds, mut unchecked, mut last) = (vec![], vec![], None);
        for candidate in found {
            match verify(candidate, &signed) {
                Ok(Verification::Valid) => holds.push(candidate),
                // No key to check with; an account whose secret matches takes precedence.
                Ok(Verification::Unsigned) => unchecked.push(candidate),
                Err(error) => last = last.or(Some((candidate.account.clone(), error))),
            }
        }
        if !holds.is_empty() || !unchecked.is_empty() {
            return Ok(if holds.is_empty() { unchecked } else { holds });
        }
        Err(last.unwrap_or_else(|| (found[0].account.clone(), SignatureError::NoSecret)))
    }
}
