//! An authenticated webhook, parsed by its description.

use super::raw::{RawWebhook, named_in};
use super::route::Candidate;
use crate::call::{Direction, EndProof, Event};
use crate::ids::Alias;
use crate::provider::account::Account;
use crate::provider::description::{
    Completeness, OWN_ID_KIND, PostCall, SUBACCOUNT_KIND, UtteranceDraft, WebhookEvent,
};
use crate::provider::select::Message;
use crate::provider::sign::Keys;
use crate::store::Voucher;

/// An authenticated webhook, parsed by its description.
pub(super) struct ParsedWebhook<'a> {
    pub(super) raw: &'a RawWebhook,
    pub(super) from: &'a Candidate,
    /// The keys of its signature.
    pub(super) keys: Keys,
    /// The accounts that vouch for it.
    pub(super) by: Voucher,
    pub(super) event: Option<&'a WebhookEvent>,
    pub(super) message: Message<'a>,
    pub(super) aliases: Vec<Alias>,
    pub(super) direction: Direction,
    /// The news of the call.
    pub(super) news: Option<Event>,
    /// The utterance in it; or why that cannot be parsed.
    pub(super) utterance: Option<std::result::Result<UtteranceDraft, String>>,
    /// The id of its row in the inbox.
    pub(super) event_id: String,
}

impl ParsedWebhook<'_> {
    /// The name of its event; `unknown` where its description has none.
    pub(super) fn event_name(&self) -> &str {
        self.event.map_or("unknown", |event| event.name.as_str())
    }

    /// Whether an app sent it, and not the provider: a token does not prove a call.
    pub(super) fn is_from_app(&self) -> bool {
        !self.from.webhook().signature.is_over_message()
    }

    /// Whether it announces an inbound call, to be admitted.
    pub(super) fn announces_inbound(&self) -> bool {
        self.event.is_some_and(|event| event.admits) && self.direction == Direction::Inbound
    }

    /// Whether its sender learns from the status what is wrong.
    pub(super) fn is_exact(&self) -> bool {
        self.from.is_exact_at(self.raw.path())
    }

    /// Whether it has neither a type nor a call id.
    pub(super) fn is_unusable(&self) -> bool {
        let kind = self.from.webhook().dedupe.first().and_then(|selector| selector.text(&self.message));
        let is_named = kind.is_some_and(|kind| !kind.is_empty());
        !is_named || (self.event.is_some_and(|event| event.state.is_some()) && self.aliases.is_empty())
    }

    /// Returns the webhook's post-call record, and whether that is complete.
    pub(super) fn record(&self) -> Option<(PostCall, Completeness)> {
        let rules = self.event?.record.as_ref().filter(|_| matches!(self.news, Some(Event::Ended(..))))?;
        let (found, complete) = rules.read(&self.message);
        (complete == Completeness::Complete || found != PostCall::default()).then_some((found, complete))
    }

    /// The most reliable external id: the one that the call is looked up by.
    pub(super) fn main_alias(&self) -> Option<&Alias> {
        let needs = self.from.account.provider.lookup.as_ref().map(|lookup| lookup.needs.as_str());
        let outside = || self.aliases.iter().filter(|alias| alias.kind != OWN_ID_KIND);
        outside().find(|alias| Some(alias.kind.as_str()) == needs).or_else(|| outside().next())
    }
}

/// Parses a webhook by its description.
pub(super) fn parse<'a>(
    raw: &'a RawWebhook,
    from: &'a Candidate,
    keys: Keys,
    by: Voucher,
    event_id: String,
) -> ParsedWebhook<'a> {
    let webhook = from.webhook();
    let message = Message { body: &raw.document, query: &raw.query, path: &from.captures, headers: &raw.headers };
    let event = webhook.events.iter().find(|e| e.when.is_empty() || e.when.holds(&message));
    let mut aliases = webhook.ids.read(&message);
    aliases.extend(subaccount_alias(&from.account, &message, &aliases));
    // The id that distinguishes calls precedes those that several calls may share.
    let needs = from.account.provider.lookup.as_ref().map(|lookup| lookup.needs.as_str());
    aliases.sort_by_key(|alias| Some(alias.kind.as_str()) != needs);
    ParsedWebhook {
        raw,
        from,
        keys,
        by,
        event,
        message,
        aliases,
        direction: webhook.direction.as_ref().and_then(|d| d.read(&message)).unwrap_or(Direction::Outbound),
        news: event.and_then(|e| e.state.as_ref()).and_then(|s| s.read(&message, EndProof::Webhook)),
        utterance: event.and_then(|e| e.utterance.as_ref()).map(|rules| rules.read(&message)),
        event_id,
    }
}

/// The alias of the call's subaccount, if it has one.
fn subaccount_alias(account: &Account, message: &Message<'_>, aliases: &[Alias]) -> Option<Alias> {
    let needs = &account.provider.lookup.as_ref()?.needs;
    let call = aliases.iter().find(|alias| alias.kind == *needs)?;
    Alias::new(SUBACCOUNT_KIND, &format!("{}/{}", named_in(account, message)?, call.id))
}
