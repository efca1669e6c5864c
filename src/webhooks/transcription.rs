//! Live transcripts: final utterances are stored under the next number of their call, interim ones are only shown.

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, Response, StatusCode};
use tracing::warn;

use super::context::Webhooks;
use super::outcome::WebhookOutcome;
use super::parsed::ParsedWebhook;
use crate::call::{Origin, Phase, Source};
use crate::calls::arrival::Arrival;
use crate::calls::notify::Partial;
use crate::clock::rfc3339;
use crate::ids::CallId;
use crate::metrics::NotApplied;
use crate::policy::Privacy;
use crate::provider::description::UtteranceDraft;
use crate::reply::{problem, respond};
use crate::store::{
    Change, Contradiction, EventOutcome, IngestOutcome, NewEvent, NewUtterance, Result, UtteranceIngest, tells_more,
};

impl Webhooks {
    /// The response to a webhook that is not stored: an unparsable one, or an interim utterance. `None`: it is stored.
    pub(super) async fn reject_or_partial(&self, parsed: &ParsedWebhook<'_>) -> Option<Response<Bytes>> {
        let invalid = |why: &str| {
            self.count(parsed, NotApplied::Invalid);
            Some(problem(StatusCode::UNPROCESSABLE_ENTITY, "INVALID_PAYLOAD", why))
        };
        match parsed.utterance.as_ref()? {
            // A provider would retry for ever; an app with a token gets an error.
            Err(_) if parsed.from.webhook().signature.is_over_message() => None,
            Err(why) => invalid(why),
            Ok(_) if parsed.aliases.is_empty() => {
                invalid("It does not say in which call: conversation_id or call_sid.")
            }
            Ok(draft) if draft.is_partial => {
                self.count(parsed, NotApplied::Partial);
                let partial =
                    Partial { speaker: draft.speaker, text: draft.text.as_str().into(), source_sequence: draft.order };
                if let Err(error) = self.show_partial(parsed, partial).await {
                    warn!(%error, "failed to show an interim utterance");
                }
                Some(respond(StatusCode::NO_CONTENT, HeaderMap::new(), Bytes::new()))
            }
            Ok(_) => None,
        }
    }

    /// Shows an interim utterance to the followers of its call. Of an unknown call it is dropped: the next one has more.
    async fn show_partial(&self, parsed: &ParsedWebhook<'_>, partial: Partial) -> Result<()> {
        if let Some(call) = self.calls.lifecycle.store.resolve(&parsed.aliases).await?
            && self.is_theirs(parsed, &call).await?
        {
            self.calls.lifecycle.hub.set_partial(&call, partial);
        }
        Ok(())
    }

    /// Returns the webhook's utterance, if it can be stored together with the webhook in one commit: it has no other news and no
    /// reply.
    pub(super) fn standalone_utterance<'t>(&self, parsed: &'t ParsedWebhook<'_>) -> Option<&'t UtteranceDraft> {
        let draft = parsed.utterance.as_ref()?.as_ref().ok()?;
        let webhook = parsed.from.webhook();
        let is_alone = webhook.reply.is_none()
            && webhook.callback.is_none()
            && parsed.event.is_some_and(|event| event.record.is_none())
            && !self.is_for_spool(parsed)
            && self.calls.policy.privacies().of_all() == Some(Privacy::Keep);
        is_alone.then_some(draft)
    }

    /// Stores such a webhook with its utterance in one commit; or only the webhook.
    pub(super) async fn ingest_with_webhook(
        &self,
        parsed: &ParsedWebhook<'_>,
        draft: &UtteranceDraft,
        event: NewEvent,
    ) -> Result<IngestOutcome> {
        let said = self.utterance(draft, &event.id);
        let delivery = self.delivery(parsed, None, &event.id).await?;
        let is_delivered = delivery.is_some();
        let (aliases, by) = (parsed.aliases.clone(), parsed.by.clone());
        let ingested = UtteranceIngest { event, aliases, by, said: said.clone(), delivery };
        let took = self.calls.lifecycle.store.ingest(ingested).await?;
        match &took {
            IngestOutcome::Whole(call, stands) => {
                if is_delivered {
                    self.deliver.notify_one();
                }
                self.calls.lifecycle.hub.publish(call, said.at(*stands));
            }
            // The process that stored it may have died before notifying.
            IngestOutcome::Before(call, _) => self.calls.lifecycle.hub.notify(call),
            IngestOutcome::Inbox(_) => {}
        }
        Ok(took)
    }

    fn utterance(&self, draft: &UtteranceDraft, event_id: &str) -> NewUtterance {
        let at_ms = self.calls.lifecycle.clock.now_ms();
        NewUtterance {
            event_id: event_id.to_owned(),
            speaker: draft.speaker,
            text: draft.text.clone(),
            said_at: draft.said_at.clone().unwrap_or_else(|| rfc3339(at_ms)),
            source_sequence: draft.order,
            source: draft.order_in.clone(),
            at_ms,
        }
    }

    /// Stores an utterance. An unknown call is recorded as unconfirmed, and counts once its provider confirms it.
    pub(super) async fn ingest(
        &self,
        parsed: &ParsedWebhook<'_>,
        draft: &std::result::Result<UtteranceDraft, String>,
        event_id: &str,
    ) -> Result<WebhookOutcome> {
        let Ok(draft) = draft else { return Ok(WebhookOutcome::new(EventOutcome::Unreadable)) };
        let lifecycle = &self.calls.lifecycle;
        let call = match lifecycle.store.resolve(&parsed.aliases).await? {
            Some(call) if !self.is_theirs(parsed, &call).await? => {
                self.report(parsed, Some(&call), Contradiction::OtherAccount);
                return Ok(WebhookOutcome::new(Contradiction::OtherAccount.outcome()));
            }
            Some(call) => call,
            None => self.calls.inbound.adopt_from_transcript(self.transcript_arrival(parsed)).boxed().await?,
        };
        let text = self.calls.post_call.text_kept_now(&call, &draft.text).await?;
        let said = NewUtterance { text, ..self.utterance(draft, event_id) };
        let Some(stands) = lifecycle.store.add_utterance(&call, said).await? else {
            return Ok(WebhookOutcome::new(EventOutcome::Forgotten));
        };
        lifecycle.hub.notify(&call);
        let record = lifecycle.store.call(&call).await?;
        if record.is_some_and(|record| tells_more(&record, &parsed.aliases)) {
            let bind = parsed.aliases.clone();
            let by = Some(parsed.by.clone());
            let seen_by = if parsed.is_from_app() { Source::Transcript } else { Source::Webhook };
            lifecycle.apply(Change { event: parsed.news, bind, by, ..lifecycle.change(&call, seen_by) }).await?;
        }
        Ok(WebhookOutcome { call: Some(call), said: Some(stands), ..WebhookOutcome::new(EventOutcome::Recorded) })
    }

    fn transcript_arrival(&self, parsed: &ParsedWebhook<'_>) -> Arrival {
        Arrival {
            account: parsed.from.account.clone(),
            operation: parsed.event.map_or_else(String::new, |e| e.name.clone()),
            direction: parsed.direction,
            attributes: parsed.from.webhook().attributes.read(&parsed.message, parsed.direction),
            aliases: parsed.aliases.clone(),
            phase: Phase::Live,
            rejectable: false,
            origin: if parsed.is_from_app() { Origin::Unconfirmed } else { Origin::Foreign },
            by: Some(parsed.by.clone()),
        }
    }

    /// Whether the signer of an utterance has a part in the call. Another conversation of the same call is part of it.
    async fn is_theirs(&self, parsed: &ParsedWebhook<'_>, call: &CallId) -> Result<bool> {
        let Some(record) = self.calls.lifecycle.store.call(call).await? else {
            // The write will find out.
            return Ok(true);
        };
        let what = parsed.by.contradicts(&record.attributes, &record.aliases, &parsed.aliases);
        Ok(what.is_none_or(|what| what == Contradiction::OtherCall))
    }
}
