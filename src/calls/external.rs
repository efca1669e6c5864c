//! Calls made by requests that no operation of the provider's description matches. They are recognised by the response and
//! counted at once.

use std::sync::Arc;

use futures_util::FutureExt as _;
use tracing::{info, warn};

use super::arrival::Arrival;
use super::inbound::Inbound;
use super::provider_client::lookup::LookedUp;
use crate::call::{Direction, Event, Origin, Phase};
use crate::ids::{Alias, CallId};
use crate::net::{TAP_BYTES_MAX, Tapped};
use crate::provider::account::Account;
use crate::provider::description::{MessageAttributes, OWN_ID_KIND};
use crate::provider::path::percent_decode;
use crate::provider::select::{Document, Message};
use crate::store::{InsertOutcome, Result};
use http::HeaderMap;

/// Whether the response to a request that was passed on provably shows no call. Most show none. The response is not parsed.
pub fn shows_no_call(account: &Account, path: &str, answer: &Tapped) -> bool {
    let Some(rule) = &account.provider.unfenced else { return true };
    let is_whole = answer.coding.is_none() && answer.body.len() < TAP_BYTES_MAX;
    let may_have_none = answer.status == 201 && rule.makes_a_call(path);
    is_whole && !may_have_none && rule.shows_nothing(&answer.body)
}

impl Inbound {
    /// Inspects the beginning of the response to a request that was passed on. `path`: the requested path at the provider. The caller
    /// has asked [`shows_no_call`] before.
    pub async fn passed_by(&self, account: &Arc<Account>, path: &str, answer: &Tapped) {
        let Some(rule) = &account.provider.unfenced else { return };
        let read = answer.plain().map(|body| Document::read(answer.content_type.as_deref(), &body, &[]));
        let Some(read) = read.filter(|read| read.document != Document::Empty) else {
            if !answer.body.is_empty() {
                // Longer than the inspected part, or in an unknown encoding: the provider's list will show the call.
                self.context.sweep_requests.request(&account.name);
            }
            return;
        };
        let headers = HeaderMap::new();
        let message = Message::new(&read.document, &headers);
        let asked_for = percent_decode(path);
        // An id that the path names is not new.
        let ids: Vec<Alias> = rule.read(&message).into_iter().filter(|id| !asked_for.contains(&id.id)).collect();
        if ids.is_empty() {
            if answer.status == 201 && rule.makes_a_call(path) {
                self.note_unfenced(account, path, None);
            }
            return;
        }
        if !matches!(self.context.lifecycle.store.resolve(&ids).await, Ok(None)) {
            return;
        }
        if let Err(error) = self.count_unfenced(account, path, ids).boxed().await {
            warn!(account = %account.name, %error, "failed to count an unmatched create; the sweep counts it");
            self.context.sweep_requests.request(&account.name);
        }
    }

    async fn count_unfenced(&self, account: &Arc<Account>, path: &str, mut aliases: Vec<Alias>) -> Result<()> {
        let needs = account.provider.lookup.as_ref().map(|lookup| lookup.needs.as_str());
        let (mut attributes, mut phase) = (MessageAttributes::default(), Phase::Dialing);
        if let Some(main) = aliases.iter().find(|alias| Some(alias.kind.as_str()) == needs) {
            match self.provider.look_up_alias(account, main).await {
                Ok(LookedUp::Found(found)) => {
                    let (own, more): (Vec<Alias>, Vec<Alias>) =
                        found.aliases.into_iter().partition(|a| a.kind == OWN_ID_KIND);
                    if !found.phone || !own.is_empty() || matches!(found.event, Some(Event::Ended(..))) {
                        return Ok(());
                    }
                    aliases.extend(more);
                    attributes = found.attributes;
                    if let Some(Event::Reached(reached)) = found.event {
                        phase = reached;
                    }
                }
                // The provider's record may be late or unreadable: the response alone proves that there is a call.
                Ok(LookedUp::Absent) | Err(_) => {}
            }
        }
        let call = self.count_foreign(Arrival {
            account: account.clone(),
            operation: "unfenced".to_owned(),
            direction: Direction::Outbound,
            attributes,
            aliases,
            phase,
            rejectable: false,
            origin: Origin::Foreign,
            by: None,
        });
        if let Some(call) = call.boxed().await? {
            self.note_unfenced(account, path, Some(&call));
        }
        Ok(())
    }

    fn note_unfenced(&self, account: &Account, path: &str, call: Option<&CallId>) {
        self.context.lifecycle.metrics.unmatched_create(&account.name);
        let call = call.map(CallId::as_str);
        warn!(account = %account.name, path, call, "unmatched request made a call; counted after the fact");
        self.context.sweep_requests.request(&account.name);
    }

    /// Counts an external call at the account that it uses, even over a limit. `None`: it is counted already.
    ///
    /// # Errors
    /// The store failed.
    pub async fn count_foreign(&self, arrival: Arrival) -> Result<Option<CallId>> {
        let id = CallId::new();
        let mut call =
            self.context.lifecycle.new_call(&id, self.attributes_of(&arrival), arrival.origin, arrival.phase);
        call.aliases = arrival.aliases;
        call.polled = true;
        match self.context.lifecycle.adopt(call).boxed().await? {
            InsertOutcome::New(_) => {
                info!(call = %id, account = %arrival.account.name, "external call counted");
                Ok(Some(id))
            }
            InsertOutcome::Known(_) | InsertOutcome::Outdated(_) => Ok(None),
        }
    }
}
