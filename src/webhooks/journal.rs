//! Webhooks received while the database is unavailable. Providers send most webhooks once, and some disable a webhook that fails.
//! So a webhook whose response does not depend on its outcome is kept in the journal, answered, and moved to the database when
//! that is back. It is not applied before.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::MutexGuard;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::Response;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::answers::{fixed_answer, not_recorded};
use super::context::Webhooks;
use super::parsed::ParsedWebhook;
use crate::admission::AdmissionError;
use crate::failpoint;
use crate::ids::CallId;
use crate::metrics::NotApplied;
use crate::store::{NewEvent, ReceiveOutcome, Result, StoreError};
use crate::sync::lock;

/// The interval at which journaled webhooks are moved to the database.
const DRAIN_INTERVAL: Duration = Duration::from_secs(1);
/// Rounds after which a webhook that an available database keeps rejecting is retried only once every so many rounds.
const FAST_RETRIES: u32 = 60;
/// Stored webhooks that this process remembers to apply.
const UNAPPLIED_MAX: usize = 4096;

impl Webhooks {
    /// Whether it can be answered before its outcome is known.
    fn can_wait(parsed: &ParsedWebhook<'_>) -> bool {
        let webhook = parsed.from.webhook();
        // The response to an utterance has its position in the store.
        let says = parsed.utterance.is_some() && webhook.answer.as_ref().is_some_and(|answer| answer.body.is_some());
        webhook.reply.is_none() && !says
    }

    /// Puts a webhook that could not be stored into the journal, and answers it.
    ///
    /// # Errors
    /// The store's error, for a webhook whose response depends on its outcome.
    pub(super) async fn journal_fallback(
        &self,
        parsed: &ParsedWebhook<'_>,
        row: NewEvent,
        error: StoreError,
    ) -> Result<Response<Bytes>> {
        let id = row.id.clone();
        // The body is unowned if the webhook was not stored. If that is unknown, the next sweep of the spool decides.
        let is_body_unowned = row.spool.is_some() && !matches!(error, StoreError::Unknown(_));
        if !Self::can_wait(parsed) {
            if is_body_unowned {
                self.spool.delete(&id).await;
            }
            return Err(error);
        }
        let was_empty = self.journal.waiting() == 0;
        let webhook = parsed.from.webhook();
        if let Err(why) = self.journal.put(row, self.settings.spool_bytes_max).await {
            warn!(event = id, webhook = webhook.name, %error, %why, "failed to store a webhook in the database and in the journal; provider asked to resend");
            if is_body_unowned {
                self.spool.delete(&id).await;
            }
            self.count_journaled(parsed, NotApplied::Failed);
            return Ok(not_recorded());
        }
        failpoint::hit("journal.kept").await;
        if was_empty {
            warn!(%error, "database unavailable; webhooks kept in the journal");
        }
        self.count_journaled(parsed, NotApplied::Journaled);
        Ok(fixed_answer(webhook, None))
    }

    /// Answers a stored webhook that could not be applied: it is applied from the inbox later.
    ///
    /// # Errors
    /// The same error, for a webhook whose response depends on its outcome.
    pub(super) fn defer(
        &self,
        parsed: &ParsedWebhook<'_>,
        event_id: &str,
        error: AdmissionError,
    ) -> std::result::Result<Response<Bytes>, AdmissionError> {
        if !Self::can_wait(parsed) {
            return Err(error);
        }
        let webhook = parsed.from.webhook();
        warn!(event = event_id, webhook = webhook.name, %error, "webhook stored; applying it is retried");
        {
            let mut unapplied = self.unapplied();
            // Beyond that they are found with those that other processes left.
            if unapplied.len() < UNAPPLIED_MAX {
                unapplied.push(event_id.to_owned());
            }
        }
        self.count_journaled(parsed, NotApplied::Waiting);
        Ok(fixed_answer(webhook, None))
    }

    fn unapplied(&self) -> MutexGuard<'_, Vec<String>> {
        // No code panics while it is held.
        lock(&self.unapplied)
    }

    /// Applies webhooks that were stored while the database failed.
    async fn apply_unapplied(&self) {
        let unapplied = std::mem::take(&mut *self.unapplied());
        for (n, id) in unapplied.iter().enumerate() {
            let tried = match self.calls.lifecycle.store.stored_event(id).await {
                Ok(Some(event)) => self.try_one(event).boxed().await.map(drop),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            if tried.is_err() {
                self.unapplied().extend_from_slice(&unapplied[n..]);
                return;
            }
        }
    }

    fn count_journaled(&self, parsed: &ParsedWebhook<'_>, outcome: NotApplied) {
        self.count(parsed, outcome);
        self.calls.lifecycle.metrics.journaled(self.journal.waiting());
    }

    /// Moves journaled webhooks to the database, and applies them. `refused`: for each webhook the rounds in which an available
    /// database rejected it. The database may be out of space, or locked: nothing is given up, but such webhooks are retried less
    /// often.
    async fn drain_journal(&self, refused: &mut HashMap<String, u32>) {
        let ids = match self.journal.list().await {
            Ok(ids) => ids,
            Err(error) => return warn!(%error, "failed to read the webhook journal"),
        };
        refused.retain(|id, _| ids.binary_search(id).is_ok());
        let mut moved = 0;
        for id in ids {
            if let Some(rounds) = refused.get_mut(&id).filter(|rounds| **rounds >= FAST_RETRIES) {
                *rounds += 1;
                if !rounds.is_multiple_of(FAST_RETRIES) {
                    continue;
                }
            }
            let Err(why) = self.drain_one(&id).boxed().await else {
                moved += 1;
                continue;
            };
            debug!(event = id, why, "failed to move a webhook from the journal to the database");
            if self.calls.lifecycle.store.ping().await.is_err() {
                break;
            }
            let rounds = refused.entry(id.clone()).or_default();
            if *rounds < FAST_RETRIES {
                *rounds += 1;
                if *rounds == FAST_RETRIES {
                    error!(event = id, why, "database rejects a webhook of the journal; retried once a minute");
                }
            }
        }
        self.calls.lifecycle.metrics.journaled(self.journal.waiting());
        if moved > 0 {
            info!(moved, waiting = self.journal.waiting(), "journal emptied into the database");
        }
    }

    async fn drain_one(&self, id: &str) -> std::result::Result<(), String> {
        let event = match self.journal.read(id).await {
            Ok(event) => event,
            // Another process of this machine was faster.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => {
                error!(event = id, %error, "damaged journal file set aside");
                self.journal.set_aside(id).await;
                return Ok(());
            }
            Err(error) => return Err(error.to_string()),
        };
        let received = self.persist_event(event.clone()).await.map_err(|error| error.to_string())?;
        failpoint::hit("journal.received").await;
        self.journal.delete(id).await;
        if let ReceiveOutcome::Before { id: known, outcome: Some(_) } = &received {
            // The process that wrote it may have died before applying it.
            let event = self.calls.lifecycle.store.inbox_event(known).await.map_err(|error| error.to_string())?;
            if let Some(call) = event.and_then(|event| CallId::parse(&event.call?)) {
                self.calls.lifecycle.hub.changed(&call);
            }
        }
        // Its first write may have succeeded. One that another process left is found by the replay loop.
        let is_mine = match &received {
            ReceiveOutcome::New => true,
            ReceiveOutcome::Before { id: known, outcome } => known == id && outcome.is_none(),
        };
        if is_mine && let Err(error) = self.try_one(event).boxed().await {
            warn!(event = id, %error, "webhook stored; applying it is retried");
        }
        Ok(())
    }
}

/// Moves journaled webhooks to the database as soon as possible. `inbox` is the newest generation's.
pub async fn journal_loop(inbox: impl Fn() -> Webhooks, stop: CancellationToken) {
    let mut refused = HashMap::new();
    loop {
        let inbox = inbox();
        let round = async {
            if inbox.journal.waiting() > 0 {
                Box::pin(inbox.drain_journal(&mut refused)).await;
            }
            Box::pin(inbox.apply_unapplied()).await;
            tokio::time::sleep(DRAIN_INTERVAL).await;
        };
        // One that is interrupted is found in the store by the next process.
        tokio::select! {
            () = stop.cancelled() => return,
            () = round => {}
        }
    }
}
