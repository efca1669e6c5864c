//! The accounts whose signatures are valid for news of a call.

use super::context::Context;
use crate::ids::AccountName;
use crate::provider::account::Account;
use crate::provider::description::SUBACCOUNT_KIND;
use crate::store::{CallRecord, Voucher};

impl Context {
    /// The voucher for news signed by these accounts, or by a subaccount of theirs.
    pub fn voucher(&self, accounts: &[AccountName], subaccount: Option<String>) -> Voucher {
        let of: Vec<&Account> = accounts.iter().filter_map(|name| self.account(name)).map(|a| &**a).collect();
        let carriers: Vec<AccountName> = of.iter().filter_map(|account| account.carrier.clone()).collect();
        let brought_by = carriers.iter().flat_map(|name| self.brings(name).map(str::to_owned)).collect();
        Voucher {
            accounts: accounts.to_vec(),
            providers: of.iter().map(|account| account.provider.name.clone()).collect(),
            subaccount,
            kinds: of.iter().filter_map(|a| a.provider.lookup.as_ref()).map(|lookup| lookup.needs.clone()).collect(),
            brought_by,
            carriers,
        }
    }

    /// The operations by which a carrier announces inbound calls before they are answered, and whose calls it can be queried for.
    fn brings(&self, carrier: &AccountName) -> impl Iterator<Item = &str> {
        let account = self.account(carrier).filter(|account| account.can_ask() && account.provider.lookup.is_some());
        let webhooks = account.into_iter().flat_map(|account| &account.provider.webhooks);
        let events = webhooks.filter(|webhook| webhook.wants_twiml()).flat_map(|webhook| &webhook.events);
        events.filter(|event| event.admits).map(|event| event.name.as_str())
    }

    /// The carrier that brought a call, and decides how long it lasts: agents connected to it may come and go.
    pub fn holder_of(&self, record: &CallRecord) -> Option<&Account> {
        let carrier = record.attributes.carrier.as_ref()?;
        let account =
            self.account(carrier).filter(|_| self.brings(carrier).any(|name| name == record.attributes.operation))?;
        let lookup = account.provider.lookup.as_ref()?;
        record.alias(&lookup.needs).map(|_| &**account)
    }
}

/// The alias that marks a call as a subaccount's, before the provider's own id is known.
pub(super) fn subaccount_alias(subaccount: &str, id: &str) -> Option<crate::ids::Alias> {
    crate::ids::Alias::new(SUBACCOUNT_KIND, &format!("{subaccount}/{id}"))
}
