//! Webhooks that the record cannot take just now. Providers send most of them once, and some switch a hook off that fails; so one
//! whose answer says nothing of what came of it is kept in the journal, answered, and put on record when that is back. Nothing of
//! it is applied before.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::Response;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::answers::{fixed_answer, not_recorded};
use super::context::Webhooks;
use super::parsed::ParsedWebhook;
use crate::failpoint;
use crate::ids::CallId;
use crate::store::{NewEvent, ReceiveOutcome, Result, StoreError};

/// How often it is tried to put on record what waits.
const TAKE_UP_EVERY: Duration = Duration::from_secs(1);
/// Rounds after which one that a record which is there does not take is tried in every so many only.
const FAST_RETRIES: u32 = 60;
/// Webhooks of the inbox that this process remembers to apply.
const LEFT_MAX: usize = 4096;

impl Webhooks {
    /// Whether it can be answered before it is known what comes of it.
    fn can_wait(taken: &ParsedWebhook<'_>) -> bool {
        let webhook = taken.from.webhook();
        // What was said is answered with where it stands on record.
        let says = taken.heard.is_some() && webhook.answer.as_ref().is_some_and(|answer| answer.body.is_some());
        webhook.reply.is_none() && !says
    }

    /// Keeps a webhook that the record did not take, and answers it.
    ///
    /// # Errors
    /// That of the record, for a webhook whose answer cannot be given without it.
    pub(super) async fn journal_fallback(
        &self,
        taken: &ParsedWebhook<'_>,
        row: NewEvent,
        error: StoreError,
    ) -> Result<Response<Bytes>> {
        let id = row.id.clone();
        // Nobody's, if it is not answered for; whether there is a row may not be known, then the next look will be.
        let body_is_nobodys = row.spool.is_some() && !matches!(error, StoreError::Unknown(_));
        if !Self::can_wait(taken) {
            if body_is_nobodys {
                self.spool.forget(&id).await;
            }
            return Err(error);
        }
        let was_empty = self.journal.waiting() == 0;
        let webhook = taken.from.webhook();
        if let Err(why) = self.journal.put(row, self.settings.spool_bytes_max).await {
            warn!(event = id, webhook = webhook.name, %error, %why, "failed to store a webhook in the database and in the journal; provider asked to resend");
            if body_is_nobodys {
                self.spool.forget(&id).await;
            }
            self.note(taken, "failed");
            return Ok(not_recorded());
        }
        failpoint::hit("journal.kept").await;
        if was_empty {
            warn!(%error, "database unavailable; webhooks kept in the journal");
        }
        self.note(taken, "journaled");
        Ok(fixed_answer(webhook, None))
    }

    /// Answers a webhook that is in the inbox and could not be applied: it will be from there, as soon as that can be.
    ///
    /// # Errors
    /// That of the record, for a webhook whose answer cannot be given without it.
    pub(super) fn defer(
        &self,
        taken: &ParsedWebhook<'_>,
        event_id: &str,
        error: StoreError,
    ) -> Result<Response<Bytes>> {
        if !Self::can_wait(taken) {
            return Err(error);
        }
        let webhook = taken.from.webhook();
        warn!(event = event_id, webhook = webhook.name, %error, "webhook stored; applying it is retried");
        {
            let mut left = self.left();
            // Beyond it they are found with those that other processes have left.
            if left.len() < LEFT_MAX {
                left.push(event_id.to_owned());
            }
        }
        self.note(taken, "waiting");
        Ok(fixed_answer(webhook, None))
    }

    fn left(&self) -> MutexGuard<'_, Vec<String>> {
        // Nothing panics while it is held.
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies what is in the inbox since the record was away.
    async fn apply_left(&self) {
        let left = std::mem::take(&mut *self.left());
        for (n, id) in left.iter().enumerate() {
            let tried = match self.calls.lifecycle.store.stored_event(id).await {
                Ok(Some(event)) => self.try_one(event).boxed().await.map(drop),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            if tried.is_err() {
                self.left().extend_from_slice(&left[n..]);
                return;
            }
        }
    }

    fn note(&self, taken: &ParsedWebhook<'_>, outcome: &str) {
        let event = taken.event_name();
        let metrics = &self.calls.lifecycle.metrics;
        metrics.webhook(taken.from.account.name.as_str(), event, outcome);
        metrics.journaled(self.journal.waiting());
    }

    /// Puts on record, and applies, what waits in the journal. `refused`: in how many rounds the record did not take which, though it
    /// was there otherwise. It may be out of room, or locked: nothing is given up, but such are tried less often.
    async fn take_up(&self, refused: &mut HashMap<String, u32>) {
        let ids = match self.journal.list().await {
            Ok(ids) => ids,
            Err(error) => return warn!(%error, "failed to read the webhook journal"),
        };
        refused.retain(|id, _| ids.binary_search(id).is_ok());
        let mut taken = 0;
        for id in ids {
            if let Some(rounds) = refused.get_mut(&id).filter(|rounds| **rounds >= FAST_RETRIES) {
                *rounds += 1;
                if !rounds.is_multiple_of(FAST_RETRIES) {
                    continue;
                }
            }
            let Err(why) = self.take_up_one(&id).boxed().await else {
                taken += 1;
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
        if taken > 0 {
            info!(taken, waiting = self.journal.waiting(), "journal emptied into the database");
        }
    }

    async fn take_up_one(&self, id: &str) -> std::result::Result<(), String> {
        let event = match self.journal.read(id).await {
            Ok(event) => event,
            // Another process of this machine was quicker.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => {
                error!(event = id, %error, "damaged journal file set aside");
                self.journal.set_aside(id).await;
                return Ok(());
            }
            Err(error) => return Err(error.to_string()),
        };
        let received = self.take_in(event.clone()).await.map_err(|error| error.to_string())?;
        failpoint::hit("journal.received").await;
        self.journal.forget(id).await;
        if let ReceiveOutcome::Before { id: known, outcome: Some(_) } = &received {
            // Whoever wrote it may not have come to tell.
            let event = self.calls.lifecycle.store.inbox_event(known).await.map_err(|error| error.to_string())?;
            if let Some(call) = event.and_then(|event| CallId::parse(&event.call?)) {
                self.calls.lifecycle.hub.changed(&call);
            }
        }
        // Its first write may have come through. What another has left on record is found by who looks for such.
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

/// Puts on record what waits in the journal, as soon as that can be. `inbox` is the newest generation's.
pub async fn journal_loop(inbox: impl Fn() -> Webhooks, stop: CancellationToken) {
    let mut refused = HashMap::new();
    loop {
        let inbox = inbox();
        let round = async {
            if inbox.journal.waiting() > 0 {
                Box::pin(inbox.take_up(&mut refused)).await;
            }
            Box::pin(inbox.apply_left()).await;
            tokio::time::sleep(TAKE_UP_EVERY).await;
        };
        // One that is cut off half-way is found on record by the next process.
        tokio::select! {
            () = stop.cancelled() => return,
            () = round => {}
        }
    }
}
