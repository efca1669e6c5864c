//! Translates webhooks into changes of calls, applies them, and records the outcome.

use std::time::Duration;

use futures_util::FutureExt as _;

use super::context::Webhooks;
use super::outcome::WebhookOutcome;
use super::parsed::ParsedWebhook;
use super::settings::InboundMode;
use super::spool;
use crate::admission::AdmissionError;
use crate::call::{Event, Origin, Phase, Source};
use crate::calls::arrival::{Arrival, ArrivalOutcome};
use crate::ids::{Alias, CallId};
use crate::provider::description::OWN_ID_KIND;
use crate::store::{ApplyOutcome, Change, Contradiction, EventOutcome, Result};

/// Pause and number of look-ups for a call that is about to be recorded.
const LATE_BIND_POLL: Duration = Duration::from_millis(250);
const LATE_BIND_POLLS: u32 = 4;

/// The outcome of applying a webhook. It fails where the store does, or where no limiter can decide about the inbound call that it
/// reports.
type Applied = std::result::Result<WebhookOutcome, AdmissionError>;

impl Webhooks {
    /// Applies a webhook to its call, and stores its post-call record, if it has one. If the call is unknown, a stored webhook
    /// waits for it.
    pub(super) async fn apply_all(&self, parsed: &ParsedWebhook<'_>, event_id: &str) -> Applied {
        let mut outcome = self.apply(parsed, event_id).await?;
        if parsed.is_exact() && outcome.is_deferred() {
            outcome = self.apply_after_late_bind(parsed, event_id, outcome).await?;
        }
        let Some((found, complete)) = parsed.record() else { return Ok(outcome) };
        match (&outcome.record, parsed.main_alias()) {
            (Some(record), _) => {
                self.calls.post_call.store_reported(record, &parsed.from.account, found, complete).await?;
            }
            (None, Some(alias)) if outcome.is_deferred() => {
                self.calls.lifecycle.store.defer_until_known(event_id, alias).await?;
            }
            _ => {}
        }
        Ok(outcome)
    }

    /// The call's id may be recorded a moment later.
    async fn apply_after_late_bind(
        &self,
        parsed: &ParsedWebhook<'_>,
        event_id: &str,
        mut outcome: WebhookOutcome,
    ) -> Applied {
        let store = &self.calls.lifecycle.store;
        for _ in 0..LATE_BIND_POLLS {
            tokio::time::sleep(LATE_BIND_POLL).await;
            if store.resolve(&parsed.aliases).await?.is_some() {
                outcome = self.apply(parsed, event_id).await?;
                break;
            }
        }
        Ok(outcome)
    }

    /// Translates the event into a transition of a call. An event of an unknown outbound call never admits or ends a call: it is
    /// stored under its ids.
    pub(super) async fn apply(&self, parsed: &ParsedWebhook<'_>, event_id: &str) -> Applied {
        if parsed.raw.is_unreadable() && parsed.aliases.is_empty() {
            // It may have reported an end: the provider's own list has that too.
            self.calls.sweep_requests.request(&parsed.from.account.name);
            return Ok(WebhookOutcome::new(EventOutcome::Unreadable));
        }
        if let Some(utterance) = &parsed.utterance {
            return Ok(self.ingest(parsed, utterance, event_id).boxed().await?);
        }
        let Some(news) = parsed.news else { return Ok(WebhookOutcome::new(EventOutcome::Ignored)) };
        let (own, outside): (Vec<Alias>, Vec<Alias>) =
            parsed.aliases.iter().cloned().partition(|a| a.kind == OWN_ID_KIND);
        // The provider returned our own id: it is exact, and proves that the call exists.
        if let Some(call) = own.first().and_then(|a| CallId::parse(&a.id)) {
            let change = Change {
                event: Some(news),
                bind: outside.clone(),
                by: Some(parsed.by.clone()),
                ..self.calls.lifecycle.change(&call, Source::Webhook)
            };
            if let Some(applied) = self.calls.lifecycle.apply(change).await? {
                return Ok(self.outcome_of(parsed, applied));
            }
        }
        let admits = parsed.announces_inbound();
        if let (true, Event::Reached(phase)) = (admits, news) {
            if outside.is_empty() {
                return Ok(WebhookOutcome::new(EventOutcome::MissingId));
            }
            return self.arrived(parsed, outside, phase).await;
        }
        Ok(match self.calls.lifecycle.news(outside, news, parsed.by.clone(), Source::Webhook).await? {
            Some(applied) => self.outcome_of(parsed, applied),
            None => WebhookOutcome::new(EventOutcome::Deferred),
        })
    }

    /// The outcome of applying it. A contradiction is reported; the end of a leg makes its carrier be queried.
    pub(super) fn outcome_of(&self, parsed: &ParsedWebhook<'_>, applied: ApplyOutcome) -> WebhookOutcome {
        if let Some(what) = applied.contradiction {
            self.report(parsed, Some(&applied.record.id), what);
            if what == Contradiction::OtherCall {
                self.calls.sweep_requests.request(&applied.record.attributes.account);
            }
        }
        if applied.ended_leg_only {
            let attributes = &applied.record.attributes;
            self.calls.sweep_requests.request(attributes.carrier.as_ref().unwrap_or(&attributes.account));
        }
        WebhookOutcome::applied(applied)
    }

    async fn arrived(&self, parsed: &ParsedWebhook<'_>, aliases: Vec<Alias>, phase: Phase) -> Applied {
        let webhook = parsed.from.webhook();
        let mut attributes = webhook.attributes.read(&parsed.message, parsed.direction);
        let front = self.settings.inbound_mode == InboundMode::Front && webhook.wants_twiml();
        if front && attributes.agent.is_none() {
            attributes.agent = self.agent_of(attributes.own_number.as_deref());
        }
        let arrival = Arrival {
            account: parsed.from.account.clone(),
            operation: parsed.event.map_or_else(String::new, |e| e.name.clone()),
            direction: parsed.direction,
            attributes,
            aliases,
            phase,
            rejectable: webhook.wants_twiml(),
            origin: Origin::Webhook,
            by: Some(parsed.by.clone()),
        };
        Ok(match self.calls.inbound.arrive(arrival).await? {
            ArrivalOutcome::Admitted(call) => {
                WebhookOutcome { call: Some(call), ..WebhookOutcome::new(EventOutcome::Admitted) }
            }
            ArrivalOutcome::Contradicted(what) => {
                self.report(parsed, None, what);
                WebhookOutcome::new(what.outcome())
            }
            ArrivalOutcome::Rejected(call, full) => WebhookOutcome {
                call: Some(call),
                rejected: Some(full),
                ..WebhookOutcome::new(EventOutcome::CapacityInbound)
            },
        })
    }

    /// Records the outcome of a notification and the delivery to the app, and deletes the transcript where it must not be kept.
    pub(super) async fn settle(
        &self,
        parsed: &ParsedWebhook<'_>,
        event_id: &str,
        outcome: &WebhookOutcome,
    ) -> Result<()> {
        self.note_settled(parsed, event_id, outcome).await?;
        let may_say = || parsed.raw.is_unreadable() && parsed.from.webhook().events.iter().any(|event| event.said);
        let said = parsed.event.is_some_and(|event| event.said) || may_say();
        let waits = outcome.is_deferred() && parsed.event.is_some_and(|event| event.record.is_some());
        if said && !waits && self.calls.post_call.forgets_bodies(outcome.call.as_ref()).await? {
            self.calls.lifecycle.store.delete_body(event_id).await?;
        }
        if self.is_for_spool(parsed) {
            spool::release(&self.spool, &self.calls, event_id).await;
        }
        Ok(())
    }

    async fn note_settled(&self, parsed: &ParsedWebhook<'_>, event_id: &str, outcome: &WebhookOutcome) -> Result<()> {
        let (store, at_ms) = (&self.calls.lifecycle.store, self.calls.lifecycle.clock.now_ms());
        // The app trusts what is delivered, so a contradicted webhook is not.
        let delivery = match outcome.is_contradicted() {
            true => None,
            false => self.delivery(parsed, outcome.call.as_ref(), event_id).await?,
        };
        let something = delivery.is_some();
        if store.settle(event_id, outcome.call.as_ref(), outcome.outcome, delivery, at_ms).await? && something {
            self.deliver.notify_one();
        }
        Ok(())
    }
}
