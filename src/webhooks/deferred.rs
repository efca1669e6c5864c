//! Deferred webhooks, whose call is still unknown; and, on the leader, missing post-call records.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::context::Webhooks;
use super::parsed::parse;
use super::raw::RawWebhook;
use super::spool::{self, Share};
use crate::admission::{AdmissionError, Role};
use crate::calls::post_call::records::{Redacted, Searched};
use crate::provider::sign::Keys;
use crate::store::{EventOutcome, ExpiredBody, NewEvent, Result, StoreError};

/// The interval at which missing records, and calls of deferred webhooks, are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// The time for which a deferred webhook can be applied, in milliseconds.
const WAITS_MS: i64 = 24 * 3_600_000;
/// The interval at which expired deferred webhooks are closed.
const EXPIRE_EVERY: Duration = Duration::from_secs(3600);
/// The number of times that a deferred webhook that cannot be written is tried.
const TRIES_MAX: u32 = 10;
/// Webhooks that are processed in one step.
const STEP: u32 = 100;

impl Webhooks {
    /// Closes deferred webhooks that expired.
    async fn expire_deferred(&self) -> Result<()> {
        let before_ms = self.calls.lifecycle.clock.now_ms() - WAITS_MS;
        let body = match self.calls.post_call.forgets_bodies(None).await? {
            true => ExpiredBody::Delete,
            false => ExpiredBody::Keep,
        };
        self.calls.lifecycle.store.expire_deferred(before_ms, body).await
    }

    /// Applies deferred webhooks whose call is known by now.
    async fn apply_found(&self, share: Share) -> Result<()> {
        let since_ms = self.calls.lifecycle.clock.now_ms() - WAITS_MS;
        let found = self.calls.lifecycle.store.found_events(since_ms, STEP, &self.reach(share)).await?;
        for (id, why) in found.damaged {
            warn!(event = id, why, "failed to read a deferred webhook");
            self.calls.lifecycle.store.mark_matched(&id, None, EventOutcome::Unusable).await?;
        }
        for event in found.events {
            let (id, spooled) = (event.id.clone(), event.spool.is_some());
            match Box::pin(self.apply_one_found(event)).await {
                Ok(()) => {
                    if spooled {
                        spool::release(&self.spool, &self.calls, &id).await;
                    }
                    info!(event = id, "deferred webhook applied");
                }
                // Its time has not come: it is tried again.
                Err(error @ AdmissionError::Gate(_)) => {
                    warn!(event = id, %error, "failed to apply a deferred webhook; retrying");
                }
                // A webhook that cannot be written must not block the others.
                Err(AdmissionError::Store(error))
                    if matches!(error, StoreError::Damaged(_)) || self.calls.lifecycle.store.ping().await.is_ok() =>
                {
                    let tries = self.calls.lifecycle.store.count_try(&id).await?;
                    warn!(event = id, %error, tries, "failed to apply a deferred webhook");
                    if matches!(error, StoreError::Damaged(_)) || tries >= TRIES_MAX {
                        self.calls.lifecycle.store.mark_matched(&id, None, EventOutcome::Unusable).await?;
                    }
                }
                Err(AdmissionError::Store(error)) => return Err(error),
            }
        }
        Ok(())
    }

    async fn apply_one_found(&self, mut event: NewEvent) -> std::result::Result<(), AdmissionError> {
        let store = &self.calls.lifecycle.store;
        let Some(body) = self.body_of(&mut event).await? else {
            return Ok(store.mark_matched(&event.id, None, EventOutcome::BodyLost).await?);
        };
        let raw = RawWebhook::of_stored(&event, body);
        let Some(from) = self.sender_of(&event) else {
            return Ok(store.mark_matched(&event.id, None, EventOutcome::Unusable).await?);
        };
        let parsed = parse(&raw, &from, Keys::default(), self.voucher_again(&from, &raw), event.id.clone());
        let outcome = self.apply(&parsed, &event.id).await?;
        let Some(record) = outcome.record else {
            return Ok(store.mark_matched(&event.id, None, EventOutcome::Unusable).await?);
        };
        if let Some((found, complete)) = parsed.record() {
            self.calls.post_call.store_reported(&record, &parsed.from.account, found, complete).await?;
        }
        store.mark_matched(&event.id, Some(&record.id), EventOutcome::Applied).await?;
        if self.calls.post_call.forgets_bodies(Some(&record.id)).await? {
            store.delete_body(&event.id).await?;
        }
        Ok(())
    }
}

/// Applies deferred webhooks whose call is known by now and whose body is in this process's spool; on the leader, all others too,
/// and missing records. `inbox` is the newest generation's.
pub async fn deferred_loop(inbox: impl Fn() -> Webhooks, role: impl Fn() -> Role, stop: CancellationToken) {
    let (mut searched, mut redacted, mut expired_at) = (Searched::default(), Redacted::default(), None::<Instant>);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let (inbox, share) = (inbox(), Share::of(&role()));
        if share == Share::Spooled {
            (searched, redacted) = Default::default();
            if inbox.spool.name().is_empty() {
                continue;
            }
        }
        let steps = async {
            if share == Share::Spooled {
                return inbox.apply_found(share).await.err();
            }
            let mut failed = None;
            if expired_at.is_none_or(|at| at.elapsed() >= EXPIRE_EVERY) {
                match inbox.expire_deferred().await {
                    // An end may be recorded long after its time.
                    Ok(()) => (expired_at, searched) = (Some(Instant::now()), Searched::default()),
                    Err(error) => failed = Some(error),
                }
            }
            // A failure must not block the others.
            failed = inbox.apply_found(share).await.err().or(failed);
            failed = inbox.calls.post_call.redact(&mut redacted).await.err().or(failed);
            Box::pin(inbox.calls.post_call.seek_records(&mut searched)).await.err().or(failed)
        };
        // Interrupted work is due again.
        let failed = tokio::select! {
            () = stop.cancelled() => return,
            failed = Box::pin(steps) => failed,
        };
        if let Some(error) = failed {
            warn!(%error, "failed in a round of deferred webhooks, redaction and missing post-call records; retrying");
        }
    }
}
