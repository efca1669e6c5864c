//! Large bodies: spooled before their webhook is answered, delivered to the app from the spool, deleted when no longer needed.

use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::context::Webhooks;
use crate::admission::Role;
use crate::calls::Calls;
use crate::store::{NewEvent, ParkReason, Reach, Result, Spool, Spooled, StoreError};

/// The interval at which the spool is scanned.
const SWEEP_EVERY: Duration = Duration::from_secs(300);
/// Files that are younger may have no row yet, in milliseconds.
const YOUNG_MS: i64 = 10 * 60_000;
/// The time past its due time for which a body in another process's spool is waited for, in milliseconds.
const STRANDED_MS: i64 = 3_600_000;
/// The reason for which a body in another process's spool is given up.
const STRANDED_BY: Option<ParkReason> = Some(ParkReason::SpoolUnreachable);
/// The same as a sentence.
const STRANDED: &str =
    "spool_unreachable: the replica that owns its body is down for an hour; delivered when it returns";
/// The reason for a missing body.
pub(super) const BODY_GONE: &str = "its body is not in the spool any more";

/// The stored webhooks that a process works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Share {
    /// The webhooks whose body is in the process's spool.
    Spooled,
    /// The webhooks whose body is in the process's spool or in the database.
    All,
}

impl Share {
    /// The leader's is all.
    pub(super) fn of(role: &Role) -> Self {
        if role.leads { Share::All } else { Share::Spooled }
    }
}

/// Deletes a webhook's body if it is no longer needed. The next scan retries a failure.
pub(super) async fn release(spool: &Spool, calls: &Calls, event_id: &str) {
    match calls.lifecycle.store.clear_spool(event_id, spool.name()).await {
        Ok(true) => spool.delete(event_id).await,
        Ok(false) => {}
        Err(error) => {
            warn!(event = event_id, %error, "failed to read whether a spooled body is still needed; retrying")
        }
    }
}

impl Webhooks {
    /// The bodies that this process reads.
    pub(super) fn reach(&self, share: Share) -> Reach {
        Reach { spool: self.spool.name().to_owned(), database: share == Share::All }
    }

    /// The body of a stored webhook. `None`: it is lost.
    pub(super) async fn body_of(&self, event: &mut NewEvent) -> Result<Option<Bytes>> {
        if let Some(body) = event.body.take() {
            return Ok(Some(body.into()));
        }
        if event.spool.is_none() {
            return Ok(None);
        }
        match self.spool.read(&event.id).await {
            Ok(body) => Ok(Some(body)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::Failed(format!("the spool cannot be read: {error}"))),
        }
    }

    /// Deletes bodies that are unneeded or too old, and resumes what was given up while this spool was unavailable. The leader
    /// gives up webhooks whose spool is gone.
    async fn sweep_spool(&self, role: &Role) -> Result<()> {
        let (store, now_ms) = (&self.calls.lifecycle.store, self.calls.lifecycle.clock.now_ms());
        let files = self.spool.list().await;
        let files = files.map_err(|error| StoreError::Failed(format!("the spool cannot be read: {error}")))?;
        for file in files {
            self.sweep_file(&file, now_ms).await?;
        }
        if role.leads {
            let stranded = store.park_unreachable(now_ms - STRANDED_MS, self.spool.name(), STRANDED, now_ms).await?;
            if stranded > 0 {
                warn!(
                    stranded,
                    "webhooks and deliveries parked, whose bodies are in the spool of a dead replica: see `ringfence events list`"
                );
            }
        }
        Ok(())
    }

    async fn sweep_file(&self, file: &Spooled, now_ms: i64) -> Result<()> {
        let (store, id) = (&self.calls.lifecycle.store, file.event_id.as_str());
        let age_ms = now_ms - file.written_at;
        if age_ms > i64::from(self.settings.spool_days) * 24 * 3_600_000 {
            warn!(event = id, bytes = file.bytes, "spooled body expired; deleted");
            self.spool.delete(id).await;
            return Ok(());
        }
        if age_ms < YOUNG_MS || self.journal.has(id).await {
            return Ok(());
        }
        release(&self.spool, &self.calls, id).await;
        if store.inbox_event(id).await?.is_some_and(|event| event.park_reason == STRANDED_BY) {
            info!(event = id, "spool available again; the webhook is reopened, to be applied");
            store.reopen(id).await?;
        }
        let deliveries = store.deliveries_of(id).await?;
        if deliveries.iter().any(|one| one.done_at.is_none() && one.park_reason == STRANDED_BY) {
            info!(event = id, "spool available again; the delivery is due again");
            store.redeliver(id, now_ms).await?;
            self.deliver.notify_one();
        }
        Ok(())
    }
}

/// Scans the spool regularly.
pub async fn spool_loop(inbox: impl Fn() -> Webhooks, role: impl Fn() -> Role, stop: CancellationToken) {
    loop {
        let (inbox, role) = (inbox(), role());
        let swept = tokio::select! {
            () = stop.cancelled() => return,
            swept = Box::pin(inbox.sweep_spool(&role)) => swept,
        };
        if let Err(error) = swept {
            warn!(%error, "failed to clean the spool");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SWEEP_EVERY) => {}
        }
    }
}
