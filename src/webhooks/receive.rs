//! The life of a webhook, from top to bottom:
//!
//! | phase | what it makes | where |
//! |---|---|---|
//! | authenticate | its signer and voucher | `authenticate` |
//! | parse | its event and call | `parsed` |
//! | persist | its inbox row, before it is answered; in the journal while the store is unavailable | `persist`, `journal` |
//! | translate, apply | a change of a call, in one transaction | `apply`, `transcription` |
//! | reply or deliver | the reply that the provider acts on, or an outbox entry | `forward`, `deliver` |

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Response, StatusCode};
use tracing::{Instrument as _, debug, warn};
use ulid::Ulid;

use super::answers::{body_missing, fixed_answer, not_recorded, not_yours};
use super::context::Webhooks;
use super::outcome::WebhookOutcome;
use super::parsed::{ParsedWebhook, parse};
use super::raw::RawWebhook;
use super::route::Candidate;
use super::settings::BODY_BYTES_MAX;
use crate::admission::AdmissionError;
use crate::failpoint;
use crate::metrics::{MessageKind, NotApplied};
use crate::net::{BodyError, Exchange};
use crate::provider::description::Reply;
use crate::provider::select::Flaw;
use crate::provider::sign::Keys;
use crate::reply::{problem, twiml, when_full_twiml};
use crate::store::{EventOutcome, IngestOutcome, NewEvent, ReceiveOutcome, Result, SpoolError, Voucher};
use crate::telemetry::traces;
use crate::words::NamedEnum;

/// The signer of a webhook, its keys and voucher.
type Authenticated<'c> = (&'c Candidate, Keys, Voucher);

/// Whether an earlier delivery of the same webhook was settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Earlier {
    /// The webhook's outcome was recorded.
    Settled,
    /// The webhook is new, or its outcome is open.
    Unsettled,
}

/// The outcome of persisting a webhook.
enum Persisted {
    /// In the inbox, to be applied.
    Inbox { event_id: String, before: Earlier },
    /// Nothing more is to be done with it now; with its response.
    Done(Response<Bytes>),
}

impl Webhooks {
    /// Handles a webhook and returns the response.
    pub(super) async fn receive(&self, exchange: &mut Exchange, found: &[Candidate]) -> Response<Bytes> {
        let (raw, (from, keys, by)) =
            match self.authenticate(exchange, found).boxed().instrument(traces::step("authenticate")).await {
                Ok(authenticated) => authenticated,
                Err(answer) => return answer,
            };
        // An authenticated webhook is acknowledged even if it cannot be parsed: it is stored, and delivered to the app.
        let raw = raw.decoded();
        self.note_flaw(&raw, from);
        let event_id = format!("ev_{}", Ulid::new().to_string().to_lowercase());
        let parsed = traces::step("parse").in_scope(|| parse(&raw, from, keys, by, event_id));
        traces::record_field("ringfence.event", parsed.event_name());
        if let Some(answer) = self.contradictory(&parsed) {
            return answer;
        }
        if parsed.is_exact() && parsed.is_unusable() {
            return self.keep_unusable(exchange, &parsed).await;
        }
        if let Some(answer) = self.reject_or_partial(&parsed).await {
            return answer;
        }
        let response = match self.process(exchange, &parsed).await {
            Ok(response) => response,
            Err(error) => {
                let (account, webhook) = (&from.account.name, &from.webhook().name);
                match &error {
                    AdmissionError::Store(error) => {
                        warn!(%account, webhook, %error, "failed to record a webhook");
                        self.count(&parsed, NotApplied::Failed);
                    }
                    AdmissionError::Gate(why) => {
                        warn!(%account, webhook, why, "failed to admit an inbound call: the limiter cannot decide");
                        self.count(&parsed, NotApplied::Undecided);
                    }
                }
                // In observe mode the app is reached in any case.
                let asks = self.calls.observes() && from.webhook().reply.is_some();
                match asks {
                    true => self.reply(exchange, &parsed, None).await.unwrap_or_else(|_| not_recorded()),
                    false => not_recorded(),
                }
            }
        };
        match parsed.is_exact() && response.status().is_success() {
            true => self.with_call(response, &parsed.aliases).await,
            false => response,
        }
    }

    /// Persist → apply → reply or deliver.
    async fn process(
        &self,
        exchange: &mut Exchange,
        parsed: &ParsedWebhook<'_>,
    ) -> std::result::Result<Response<Bytes>, AdmissionError> {
        failpoint::hit("webhook.read").await;
        let (event_id, before) = match self.persist(parsed).boxed().instrument(traces::step("persist")).await? {
            Persisted::Inbox { event_id, before } => (event_id, before),
            Persisted::Done(answer) => return Ok(answer),
        };
        traces::record_field("ringfence.event_id", &event_id);
        let applied = self.apply_all(parsed, &event_id).boxed().instrument(traces::step("apply")).await;
        failpoint::hit("webhook.applied").await;
        let applied = match applied {
            Ok(applied) => applied,
            Err(error) => return self.defer(parsed, &event_id, error),
        };
        self.count(parsed, applied.outcome);
        traces::record_field("ringfence.outcome", applied.outcome.as_str());
        if let Some(call) = &applied.call {
            traces::record_field("ringfence.call", call.as_str());
        }
        match parsed.from.webhook().reply {
            None => {
                let delivering = self.deliver_and_answer(parsed, &event_id, before, applied);
                delivering.instrument(traces::step("settle")).await
            }
            Some(reply) => {
                let replying = self.answer_with_reply(exchange, parsed, &event_id, reply, applied);
                Ok(replying.instrument(traces::step("reply")).await?)
            }
        }
    }

    // === authenticate ===

    async fn authenticate<'c>(
        &self,
        exchange: &mut Exchange,
        found: &'c [Candidate],
    ) -> std::result::Result<(RawWebhook, Authenticated<'c>), Response<Bytes>> {
        if let Some(answer) = self.reject_by_head(exchange, found) {
            return Err(answer);
        }
        let body = exchange.read_body(BODY_BYTES_MAX).await.map_err(|error| match error {
            BodyError::TooLarge { limit } => {
                let message = format!("A webhook has at most {limit} bytes.");
                problem(StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE", &message)
            }
            error => {
                debug!(%error, "failed to read the body of a webhook");
                body_missing(error)
            }
        })?;
        let raw =
            RawWebhook::new(exchange.method().as_str(), exchange.path_and_query(), exchange.forwarded_headers(), body);
        let signer = self.signer(&raw, found).boxed().await?;
        Ok((raw, signer))
    }

    // === parse ===

    /// Logs the part of a webhook that could not be parsed.
    fn note_flaw(&self, raw: &RawWebhook, from: &Candidate) {
        let Some(flaw) = raw.flaw else { return };
        let (account, webhook) = (from.account.name.as_str(), from.webhook().name.as_str());
        self.calls.lifecycle.metrics.unreadable(&from.account.name, MessageKind::Webhook, flaw);
        let (bytes, is_lenient) = (raw.body.len(), flaw == Flaw::Lenient);
        let flaw = flaw.as_str();
        if is_lenient {
            debug!(account, webhook, bytes, "webhook body is not strict JSON");
        } else {
            warn!(account, webhook, flaw, bytes, "failed to parse a webhook; stored and delivered as received");
        }
    }

    /// The response to a webhook that another parser may read differently.
    fn contradictory(&self, parsed: &ParsedWebhook<'_>) -> Option<Response<Bytes>> {
        let (from, webhook) = (parsed.from, parsed.from.webhook());
        let subaccounts = from.account.provider.subaccounts.as_ref();
        let is_doubled =
            webhook.is_doubled(&parsed.message) || subaccounts.is_some_and(|rule| rule.id.is_doubled(&parsed.message));
        let (outcome, message) = if is_doubled {
            (NotApplied::Doubled, "A call id or status appears twice in the request.")
        } else if webhook.is_foreign(&parsed.message) && !parsed.aliases.is_empty() {
            (NotApplied::Foreign, "The request is not a webhook of a call, but contains a call id.")
        } else {
            return None;
        };
        warn!(account = %from.account.name, webhook = webhook.name, %outcome, "webhook rejected: ambiguous");
        self.count(parsed, outcome);
        Some(problem(StatusCode::BAD_REQUEST, "INVALID_PAYLOAD", message))
    }

    /// Tells the sender that the webhook cannot be used, but stores its bytes: its news is not lost.
    async fn keep_unusable(&self, exchange: &mut Exchange, parsed: &ParsedWebhook<'_>) -> Response<Bytes> {
        if parsed.raw.has_unread_part()
            && let Err(error) = self.process(exchange, parsed).boxed().await
        {
            warn!(account = %parsed.from.account.name, %error, "failed to store an unreadable webhook");
            return not_recorded();
        }
        let message = "The payload has no type, or no conversation id.";
        problem(StatusCode::BAD_REQUEST, "INVALID_PAYLOAD", message)
    }

    /// Counts a webhook by what became of it.
    pub(super) fn count(&self, parsed: &ParsedWebhook<'_>, outcome: impl NamedEnum) {
        self.calls.lifecycle.metrics.webhook(&parsed.from.account.name, parsed.event_name(), outcome);
    }

    // === persist ===

    async fn persist(&self, parsed: &ParsedWebhook<'_>) -> Result<Persisted> {
        let webhook = parsed.from.webhook();
        let mut row = self.inbox_row(parsed);
        if self.is_for_spool(parsed) {
            let bytes = parsed.raw.body.len();
            match self.spool.put(&row.id, parsed.raw.body.clone(), self.settings.spool_bytes_max).await {
                Ok(spool) => row.spool = Some(spool),
                Err(error) => {
                    let is_full = matches!(error, SpoolError::Full(_));
                    self.count(parsed, if is_full { NotApplied::SpoolFull } else { NotApplied::SpoolFailed });
                    warn!(account = %parsed.from.account.name, webhook = webhook.name, bytes, %error, "failed to spool a webhook body");
                    let message = "No space for a body of this size; retry later.";
                    let answer = problem(StatusCode::SERVICE_UNAVAILABLE, "SPOOL_UNAVAILABLE", message);
                    return Ok(Persisted::Done(answer));
                }
            }
        }
        let (spool, received_at) = (row.spool.clone(), row.received_at);
        let received = match self.standalone_utterance(parsed) {
            Some(utterance) => match self.ingest_with_webhook(parsed, utterance, row).boxed().await {
                Ok(IngestOutcome::Whole(_, said) | IngestOutcome::Before(_, said)) => {
                    self.count(parsed, EventOutcome::Recorded);
                    failpoint::hit("webhook.settled").await;
                    return Ok(Persisted::Done(fixed_answer(webhook, Some(said))));
                }
                Ok(IngestOutcome::Inbox(received)) => Ok(received),
                Err(error) => Err(error),
            },
            None => self.persist_event(row).await,
        };
        let received = match received {
            Ok(received) => received,
            Err(error) => {
                // Built again: otherwise every body would be copied for the few that need it.
                let row = NewEvent { spool, received_at, ..self.inbox_row(parsed) };
                return self.journal_fallback(parsed, row, error).boxed().await.map(Persisted::Done);
            }
        };
        failpoint::hit("webhook.received").await;
        Ok(match received {
            ReceiveOutcome::New => Persisted::Inbox { event_id: parsed.event_id.clone(), before: Earlier::Unsettled },
            ReceiveOutcome::Before { id, outcome } => {
                // Its unknown call may be known by now; the position of its utterance is looked up by storing it again.
                let is_deferred = outcome == Some(EventOutcome::Deferred);
                let may_be_known = (parsed.is_exact() && is_deferred) || parsed.utterance.is_some();
                if outcome.is_some() && webhook.reply.is_none() && !may_be_known {
                    self.count(parsed, NotApplied::Duplicate);
                    return Ok(Persisted::Done(fixed_answer(webhook, None)));
                }
                let before = if outcome.is_some() { Earlier::Settled } else { Earlier::Unsettled };
                Persisted::Inbox { event_id: id, before }
            }
        })
    }

    // === reply or deliver ===

    /// Puts a delivery to the app into the outbox, and answers a notification.
    async fn deliver_and_answer(
        &self,
        parsed: &ParsedWebhook<'_>,
        event_id: &str,
        before: Earlier,
        applied: WebhookOutcome,
    ) -> std::result::Result<Response<Bytes>, AdmissionError> {
        if let Err(error) = self.settle(parsed, event_id, &applied).await {
            return self.defer(parsed, event_id, error.into());
        }
        if let Some(call) = applied.call.as_ref().filter(|_| before == Earlier::Settled) {
            let store = &self.calls.lifecycle.store;
            store.mark_matched(event_id, Some(call), applied.outcome).await?;
        }
        failpoint::hit("webhook.settled").await;
        if applied.is_contradicted() && parsed.utterance.is_some() {
            return Ok(not_yours());
        }
        Ok(match parsed.is_exact() && applied.is_deferred() {
            true => self.unknown_call(parsed),
            false => fixed_answer(parsed.from.webhook(), applied.said),
        })
    }

    /// Answers a webhook whose provider acts on the answer.
    async fn answer_with_reply(
        &self,
        exchange: &mut Exchange,
        parsed: &ParsedWebhook<'_>,
        event_id: &str,
        reply: Reply,
        applied: WebhookOutcome,
    ) -> Result<Response<Bytes>> {
        let (store, at_ms) = (&self.calls.lifecycle.store, self.calls.lifecycle.clock.now_ms());
        store.settle(event_id, applied.call.as_ref(), applied.outcome, None, at_ms).await?;
        if applied.is_contradicted() {
            return Ok(not_yours());
        }
        if applied.outcome == EventOutcome::MissingId {
            let message = "The request has no call id.";
            return Ok(problem(StatusCode::BAD_REQUEST, "INVALID_PAYLOAD", message));
        }
        match &applied.rejected {
            Some(when_full) if reply == Reply::Twiml => Ok(twiml(when_full_twiml(when_full))),
            _ => self.reply(exchange, parsed, applied.call.as_ref()).await,
        }
    }

    /// The response for an unknown call.
    fn unknown_call(&self, parsed: &ParsedWebhook<'_>) -> Response<Bytes> {
        let status = StatusCode::from_u16(self.settings.unknown_status).unwrap_or(StatusCode::NOT_FOUND);
        if status.is_success() {
            return fixed_answer(parsed.from.webhook(), None);
        }
        let message =
            "No call of this conversation is on record. The event is kept: it is applied when one comes, within a day.";
        problem(status, "CALL_NOT_FOUND", message)
    }
}
