//! Webhooks that are applied again: those that a process left behind, and those that an operator replays. A webhook that cannot
//! be applied is retried a few times, and then parked, so that it does not block the others, or a start.

use std::time::Duration;

use futures_util::FutureExt as _;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::context::Webhooks;
use super::parsed::parse;
use super::raw::RawWebhook;
use super::route::{Candidate, candidates};
use super::spool::Share;
use crate::admission::{AdmissionError, Role};
use crate::calls::lifecycle::run_to_completion;
use crate::failpoint;
use crate::provider::sign::Keys;
use crate::store::{Cursor, EventOutcome, InboxEvent, NewEvent, Result};

/// An unsettled webhook of this age was left by its process, in milliseconds.
const STALE_MS: i64 = 30_000;
/// The interval at which such webhooks are looked for.
const REPLAY_EVERY: Duration = Duration::from_secs(10);
/// Webhooks that are read at once: each may have a body of the largest stored size, 1 MiB.
const PAGE: u32 = 32;
/// Pauses between attempts, in seconds. After the last the webhook is parked with its error.
pub const RETRY_DELAYS_SECS: [i64; 9] = [10, 20, 40, 80, 160, 320, 640, 1280, 2560];

/// The outcome of an operator's replay.
#[derive(Debug, Clone, Serialize)]
pub struct Replayed {
    /// The webhook after it; `None` for one of ringfence's own events.
    pub event: Option<InboxEvent>,
    /// Deliveries that are repeated.
    pub deliveries: u64,
}

impl Webhooks {
    /// Applies webhooks that the previous process left unsettled. Replies that no sender waits for are only recorded. Returns
    /// their number.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub async fn replay(&self) -> Result<usize> {
        // Webhooks that others store meanwhile are theirs.
        let began_ms = self.calls.lifecycle.clock.now_ms();
        let (mut count, mut after) = (0, Some(Cursor::default()));
        while let Some(from) = after.filter(|(received_at, _)| *received_at <= began_ms) {
            let waiting =
                self.calls.lifecycle.store.unsettled_events(i64::MAX, &self.reach(Share::All), &from, PAGE).await?;
            self.park(&waiting.damaged).await?;
            count += waiting.events.len();
            for event in waiting.events {
                self.try_one(event).boxed().await?;
            }
            after = waiting.last;
        }
        Ok(count)
    }

    /// Applies webhooks that their replica stored a while ago and did not settle: it died, or could not apply them. If it is
    /// still about to settle one, only the first of the two notifies the app.
    async fn replay_stale(&self, share: Share) {
        let before_ms = self.calls.lifecycle.clock.now_ms() - STALE_MS;
        let (store, reach) = (&self.calls.lifecycle.store, self.reach(share));
        let mut after = Some(Cursor::default());
        while let Some(from) = after {
            let waiting = match store.unsettled_events(before_ms, &reach, &from, PAGE).await {
                Ok(waiting) => waiting,
                Err(error) => return warn!(%error, "failed to read pending webhooks"),
            };
            if let Err(error) = self.park(&waiting.damaged).await {
                warn!(%error, "failed to park unreadable webhooks");
            }
            for event in waiting.events {
                let id = event.id.clone();
                match self.try_one(event).boxed().await {
                    Ok(true) => info!(event = id, "webhook of another process applied"),
                    Ok(false) => {}
                    Err(error) => return warn!(event = id, %error, "failed to retry a webhook: store unavailable"),
                }
            }
            after = waiting.last;
        }
    }

    /// Parks webhooks that cannot be read: reading them again would not help.
    async fn park(&self, damaged: &[(String, String)]) -> Result<()> {
        let now_ms = self.calls.lifecycle.clock.now_ms();
        for (id, why) in damaged {
            warn!(event = id, why, "failed to read a webhook; parked");
            self.calls.lifecycle.store.record_failed_try(id, why, None, now_ms).await?;
        }
        Ok(())
    }

    /// Applies a webhook again, and repeats its deliveries under their ids. `None`: there is none.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub async fn replay_asked(&self, id: &str) -> Result<Option<Replayed>> {
        let (store, now_ms) = (&self.calls.lifecycle.store, self.calls.lifecycle.clock.now_ms());
        let Some(event) = store.inbox_event(id).await? else {
            let deliveries = store.redeliver(id, now_ms).await?;
            self.deliver.notify_one();
            return Ok((deliveries > 0).then_some(Replayed { event: None, deliveries }));
        };
        // Before it is applied: a new delivery is due on its own, and may be sent already.
        let mut deliveries = store.redeliver(id, now_ms).await?;
        // A webhook that waited for a reply is not applied: its sender is gone.
        let applies = event.outcome.is_none() || !self.is_answered_by_reply(&event);
        if applies
            && store.reopen(id).await?
            && let Some(event) = store.stored_event(id).await?
            // A body in another process's spool can only be applied there; that process looks for it.
            && event.spool.as_deref().is_none_or(|spool| spool == self.spool.name())
        {
            self.try_one(event).boxed().await?;
            deliveries = store.deliveries_of(id).await?.len() as u64;
        }
        self.deliver.notify_one();
        Ok(Some(Replayed { event: store.inbox_event(id).await?, deliveries }))
    }

    fn is_answered_by_reply(&self, event: &InboxEvent) -> bool {
        let of_account = self.calls.accounts.values().find(|account| account.name.as_str() == event.account);
        let webhook = of_account.and_then(|account| account.provider.webhooks.iter().find(|w| w.name == event.webhook));
        webhook.is_none_or(|webhook| webhook.reply.is_some())
    }

    /// Applies a webhook. Records a failure, with the time of the next attempt, or that it is parked. `false`: it failed.
    pub(super) async fn try_one(&self, event: NewEvent) -> Result<bool> {
        let (id, store) = (event.id.clone(), &self.calls.lifecycle.store);
        // Counted before, so that an attempt that kills the process counts too.
        let tries = store.count_try(&id).await? as usize;
        let why = if tries > RETRY_DELAYS_SECS.len() + 1 {
            "the process crashed on every attempt to apply it".to_owned()
        } else {
            let this = self.clone();
            match run_to_completion(async move { this.replay_one(event).await }).await {
                Ok(Ok(())) => return Ok(true),
                Ok(Err(error)) => error.to_string(),
                Err(panicked) => panicked.to_string(),
            }
        };
        let now_ms = self.calls.lifecycle.clock.now_ms();
        let due_at = RETRY_DELAYS_SECS.get(tries.saturating_sub(1)).map(|secs| now_ms + secs * 1000);
        match due_at {
            Some(_) => warn!(event = id, tries, why, "failed to apply a webhook; retrying"),
            None => {
                warn!(event = id, tries, why, "failed to apply a webhook; parked: see `ringfence events replay`")
            }
        }
        store.record_failed_try(&id, &why, due_at, now_ms).await?;
        Ok(false)
    }

    /// The keys of a webhook that was authenticated before, as far as they are still known.
    async fn keys_again(&self, from: &Candidate, raw: &RawWebhook) -> Keys {
        if let Some(id) = raw.subaccount(from)
            && let Some(keys) = self.subaccounts.keys_of(&self.calls, &from.account, &id).await
        {
            return keys;
        }
        from.account.keys(&from.webhook().signature)
    }

    /// The account and webhook that a stored webhook came from, if the config still has them.
    pub(super) fn sender_of(&self, event: &NewEvent) -> Option<Candidate> {
        let path = event.path.split('?').next().unwrap_or_default();
        let found = candidates(&self.calls.accounts, &self.settings.extra_paths, path);
        found.into_iter().find(|one| one.account.name.as_str() == event.account)
    }

    async fn replay_one(&self, mut event: NewEvent) -> std::result::Result<(), AdmissionError> {
        let at_ms = self.calls.lifecycle.clock.now_ms();
        let Some(body) = self.body_of(&mut event).await? else {
            // The sweep finds its call's end; the app cannot be notified.
            warn!(event = event.id, "failed to read a webhook body: file missing");
            self.calls.lifecycle.store.settle(&event.id, None, EventOutcome::BodyLost, None, at_ms).await?;
            return Ok(());
        };
        let raw = RawWebhook::of_stored(&event, body);
        match self.sender_of(&event) {
            Some(from) if from.webhook().reply.is_none() => {
                let keys = self.keys_again(&from, &raw).boxed().await;
                let parsed = parse(&raw, &from, keys, self.voucher_again(&from, &raw), event.id.clone());
                let outcome = self.apply_all(&parsed, &event.id).boxed().await?;
                failpoint::hit("replay.applied").await;
                self.settle(&parsed, &event.id, &outcome).await?;
                failpoint::hit("replay.settled").await;
            }
            _ => {
                let store = &self.calls.lifecycle.store;
                // Nothing to do if another has settled it meanwhile.
                let _ = store.settle(&event.id, None, EventOutcome::ReplyExpired, None, at_ms).await?;
            }
        }
        Ok(())
    }
}

/// Applies, every `REPLAY_EVERY`, webhooks whose body is in this process's spool; on the leader also those that another process
/// stored and left. `inbox` is the newest generation's. Two leaders at a time do no harm.
pub async fn replay_loop(inbox: impl Fn() -> Webhooks, role: impl Fn() -> Role, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(REPLAY_EVERY) => {}
        }
        let (inbox, share) = (inbox(), Share::of(&role()));
        if share == Share::All || !inbox.spool.name().is_empty() {
            inbox.replay_stale(share).await;
        }
    }
}
