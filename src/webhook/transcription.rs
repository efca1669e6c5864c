//! Live transcripts: final utterances are stored under the next number of their call, interim ones are only shown.

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, Response, StatusCode};
use tracing::warn;

use super::context::Webhooks;
use super::outcome::{Disposition, WebhookOutcome};
use super::parsed::ParsedWebhook;
use crate::call::{Origin, Phase, Source};
use crate::calls::arrival::Arrival;
use crate::clock::rfc3339;
use crate::ids::CallId;
use crate::notify::Partial;
use crate::policy::Privacy;
use crate::provider::description::UtteranceDraft;
use crate::reply::{problem, respond};
use crate::store::{Change, Contradiction, IngestOutcome, NewEvent, NewUtterance, Result, UtteranceIngest, tells_more};

impl Webhooks {
    /// The response to a webhook that is not stored: an unparsable one, or an interim utterance. `None`: it is stored.
    pub(super) async fn unheard(&self, taken: &ParsedWebhook<'_>) -> Option<Response<Bytes>> {
        let name = taken.event_name();
        let count =
            |outcome: &str| self.calls.lifecycle.metrics.webhook(taken.from.account.name.as_str(), name, outcome);
        let invalid = |why: &str| {
            count("invalid");
            Some(problem(StatusCode::UNPROCESSABLE_ENTITY, "INVALID_PAYLOAD", why))
        };
        match taken.heard.as_ref()? {
            // A provider would retry for ever; an app with a token is told.
            Err(_) if taken.from.webhook().signature.is_over_message() => None,
            Err(why) => invalid(why),
            Ok(_) if taken.aliases.is_empty() => invalid("It does not say in which call: conversation_id or call_sid."),
            Ok(heard) if heard.is_partial => {
                count("partial");
                let partial =
                    Partial { speaker: heard.speaker, text: heard.text.as_str().into(), source_sequence: heard.order };
                match self.calls.lifecycle.store.resolve(&taken.aliases).await {
                    Ok(Some(call)) if self.is_theirs(taken, &call).await => {
                        self.calls.lifecycle.hub.set_partial(&call, partial);
                    }
                    Ok(Some(_)) => {}
                    // The next one has more.
                    Ok(None) => {}
                    Err(error) => warn!(%error, "failed to show an interim utterance"),
                }
                Some(respond(StatusCode::NO_CONTENT, HeaderMap::new(), Bytes::new()))
            }
            Ok(_) => None,
        }
    }

    /// Its utterance, if it can be stored together with the webhook in one commit: it has no other news and no reply.
    pub(super) fn said_alone<'t>(&self, taken: &'t ParsedWebhook<'_>) -> Option<&'t UtteranceDraft> {
        let heard = taken.heard.as_ref()?.as_ref().ok()?;
        let webhook = taken.from.webhook();
        let is_alone = webhook.reply.is_none()
            && webhook.callback.is_none()
            && taken.event.is_some_and(|event| event.record.is_none())
            && !self.is_for_spool(taken)
            && self.calls.policy.privacies().of_all() == Some(Privacy::Keep);
        is_alone.then_some(heard)
    }

    /// Stores such a webhook with its utterance in one commit; or only the webhook.
    pub(super) async fn take_said(
        &self,
        taken: &ParsedWebhook<'_>,
        heard: &UtteranceDraft,
        event: NewEvent,
    ) -> Result<IngestOutcome> {
        let said = self.utterance(heard, &event.id);
        let delivery = self.delivery(taken, None, &event.id).await?;
        let is_delivered = delivery.is_some();
        let (aliases, by) = (taken.aliases.clone(), taken.by.clone());
        let speech = UtteranceIngest { event, aliases, by, said: said.clone(), delivery };
        let took = self.calls.lifecycle.store.ingest(speech).await?;
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

    fn utterance(&self, heard: &UtteranceDraft, event_id: &str) -> NewUtterance {
        let at_ms = self.calls.lifecycle.clock.now_ms();
        NewUtterance {
            event_id: event_id.to_owned(),
            speaker: heard.speaker,
            text: heard.text.clone(),
            said_at: heard.said_at.clone().unwrap_or_else(|| rfc3339(at_ms)),
            source_sequence: heard.order,
            source: heard.order_in.clone(),
            at_ms,
        }
    }

    /// Stores an utterance. An unknown call is recorded as unconfirmed, and counts once its provider confirms it.
    pub(super) async fn ingest(
        &self,
        taken: &ParsedWebhook<'_>,
        heard: &std::result::Result<UtteranceDraft, String>,
        event_id: &str,
    ) -> Result<WebhookOutcome> {
        let Ok(heard) = heard else { return Ok(WebhookOutcome::new(Disposition::Unreadable)) };
        let lifecycle = &self.calls.lifecycle;
        let call = match lifecycle.store.resolve(&taken.aliases).await? {
            Some(call) if !self.is_theirs(taken, &call).await => {
                self.report(taken, Some(&call), Contradiction::OtherAccount);
                return Ok(WebhookOutcome::new(Disposition::Contradicted(Contradiction::OtherAccount)));
            }
            Some(call) => call,
            None => self.calls.inbound.adopt_from_transcript(self.overheard(taken)).boxed().await?,
        };
        let text = self.calls.post_call.text_kept_now(&call, &heard.text).await?;
        let said = NewUtterance { text, ..self.utterance(heard, event_id) };
        let Some(stands) = lifecycle.store.say(&call, said).await? else {
            return Ok(WebhookOutcome::new(Disposition::Forgotten));
        };
        lifecycle.hub.notify(&call);
        let record = lifecycle.store.call(&call).await?;
        if record.is_some_and(|record| tells_more(&record, &taken.aliases)) {
            let bind = taken.aliases.clone();
            let by = Some(taken.by.clone());
            let seen_by = if taken.is_hearsay() { Source::Transcript } else { Source::Webhook };
            lifecycle.apply(Change { event: taken.news, bind, by, ..lifecycle.change(&call, seen_by) }).await?;
        }
        Ok(WebhookOutcome { call: Some(call), said: Some(stands), ..WebhookOutcome::new(Disposition::Recorded) })
    }

    fn overheard(&self, taken: &ParsedWebhook<'_>) -> Arrival {
        Arrival {
            account: taken.from.account.clone(),
            operation: taken.event.map_or_else(String::new, |e| e.name.clone()),
            direction: taken.direction,
            facts: taken.from.webhook().facts.read(&taken.message, taken.direction),
            aliases: taken.aliases.clone(),
            phase: Phase::Live,
            refusable: false,
            origin: if taken.is_hearsay() { Origin::Unconfirmed } else { Origin::Foreign },
            by: Some(taken.by.clone()),
        }
    }

    /// Whether the signer of an utterance has a part in the call. Another conversation of the same call is part of it.
    async fn is_theirs(&self, taken: &ParsedWebhook<'_>, call: &CallId) -> bool {
        match self.calls.lifecycle.store.call(call).await {
            Ok(Some(record)) => {
                let what = taken.by.contradicts(&record.facts, &record.aliases, &taken.aliases);
                what.is_none_or(|what| what == Contradiction::OtherCall)
            }
            // The write will find out.
            Ok(None) | Err(_) => true,
        }
    }
}
