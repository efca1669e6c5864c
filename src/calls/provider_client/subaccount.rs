//! Subaccounts of an account.

use super::ask::{AskError, ProviderClient};
use super::lookup::message;
use crate::metrics::MessageKind;
use crate::provider::account::Account;
use crate::provider::render::{Target, render};
use crate::provider::secret::Secret;

impl ProviderClient {
    /// Fetches the token that a subaccount signs with; `None` if it is no subaccount of this account.
    ///
    /// # Errors
    /// The provider cannot be queried, or has no subaccounts.
    pub async fn subaccount_token(&self, account: &Account, id: &str) -> Result<Option<Secret>, AskError> {
        let cannot_query = || AskError::CannotQuery(account.name.clone(), "its provider has no subaccounts");
        let rule = account.provider.subaccounts.as_ref().ok_or_else(cannot_query)?;
        let own = account.secrets.get(&rule.own).ok_or_else(cannot_query)?;
        let value = |name: &str| account.value(name).or_else(|| (name == "subaccount").then(|| id.into()));
        let path = render(&rule.path, Target::Url, value)?;
        let Some(body) = self.fetch_document(account, &path, &rule.absent, MessageKind::Subaccount).await? else {
            return Ok(None);
        };
        let none = Default::default();
        let message = message(&body, &none);
        if rule.owner.text(&message).as_deref() != Some(own.expose()) {
            return Ok(None);
        }
        Ok(rule.token.text(&message).filter(|token| !token.is_empty()).map(|token| Secret::new(&token)))
    }
}
