//! What a webhook is: which account and webhook of a description, and whether its signature holds. Pure but for the clock
//! that is passed in.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderMap;

use crate::ids::AccountName;
use crate::provider::account::{Account, join};
use crate::provider::description::Webhook;
use crate::provider::sign::{BadSignature, Scheme, TwilioRequest, verify_elevenlabs, verify_token, verify_twilio};

/// A webhook of an account that a path may be.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The account.
    pub account: Arc<Account>,
    /// Which of the provider's webhooks, by position.
    pub index: usize,
    /// What the path captured.
    pub captures: BTreeMap<String, String>,
}

impl Candidate {
    /// The webhook.
    pub fn webhook(&self) -> &Webhook {
        &self.account.provider.webhooks[self.index]
    }
}

/// Paths that the operator added, by `provider.webhook`.
pub type ExtraPaths = BTreeMap<String, Vec<String>>;

/// Every webhook that a path may be: several accounts of one provider share its paths.
pub fn candidates(accounts: &BTreeMap<AccountName, Arc<Account>>, extra: &ExtraPaths, path: &str) -> Vec<Candidate> {
    let mut found = Vec::new();
    for account in accounts.values() {
        for (index, webhook) in account.provider.webhooks.iter().enumerate() {
            let captures = webhook.paths.iter().find_map(|p| p.captures(path)).or_else(|| {
                let more = extra.get(&format!("{}.{}", account.provider.name, webhook.name))?;
                more.iter().any(|p| p == path).then(BTreeMap::new)
            });
            if let Some(captures) = captures {
                found.push(Candidate { account: account.clone(), index, captures });
                break;
            }
        }
    }
    found
}

/// A webhook as its signature sees it.
#[derive(Debug, Clone, Copy)]
pub struct Signed<'a> {
    /// The path and query that were asked for.
    pub path_and_query: &'a str,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The raw body.
    pub body: &'a [u8],
    /// The pairs of a form body.
    pub form: Option<&'a [(String, String)]>,
    /// What providers call us by; without it, the `Host` header has to do.
    pub public_url: Option<&'a http::Uri>,
    /// Now, in seconds.
    pub now_secs: i64,
    /// Without a secret: `true` refuses, `false` takes it.
    pub strict: bool,
}

/// Checks the signature as the webhook's scheme asks. `Ok(false)`: nothing was there to check with, and that is allowed.
pub fn verify(candidate: &Candidate, signed: &Signed<'_>) -> Result<bool, BadSignature> {
    let header = |name: &str| signed.headers.get(name).and_then(|v| v.to_str().ok());
    let account = &candidate.account;
    let checked = match candidate.webhook().signature {
        Scheme::None => return Ok(false),
        Scheme::Token => {
            let bearer = header("authorization").and_then(|v| v.strip_prefix("Bearer "));
            verify_token(&account.webhook_tokens, header("x-ringfence-token").or(bearer))
        }
        Scheme::Elevenlabs => {
            verify_elevenlabs(&account.webhook_secrets, header("elevenlabs-signature"), signed.body, signed.now_secs)
        }
        Scheme::Twilio => {
            let url = match (signed.public_url, header("host")) {
                (Some(public), _) => join(public, signed.path_and_query),
                (None, Some(host)) => format!("http://{host}{}", signed.path_and_query),
                (None, None) => signed.path_and_query.to_owned(),
            };
            let request = TwilioRequest {
                url: &url,
                form: signed.form,
                body: signed.body,
                signature: header("x-twilio-signature"),
                settings: header("x-twilio-webhooks-signature-settings"),
            };
            verify_twilio(&account.twilio_keys(), &request)
        }
    };
    match checked {
        Ok(()) => Ok(true),
        Err(BadSignature::NoSecret) if !signed.strict => Ok(false),
        Err(error) => Err(error),
    }
}
