//! What webhooks tell of calls after their end; and those that come before anybody knows their call.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Response, StatusCode};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::arrive::candidates;
use super::{Came, Raw, Taken, Webhooks, headers_of, read};
use crate::call::Event;
use crate::calls::post_call::records::{Redacted, Searched};
use crate::ids::Alias;
use crate::provider::description::{OWN_ID_KIND, PostCall};
use crate::provider::sign::Keys;
use crate::reply::problem;
use crate::store::{NewEvent, Result, StoreError};

/// How often it is looked for records that are missing, and for calls that webhooks wait for.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// How long a webhook of a call that nobody knows stays applicable.
const WAITS_MS: i64 = 24 * 3_600_000;
/// How often it is looked for those that have waited too long.
const STOP_EVERY: Duration = Duration::from_secs(3600);
/// Webhooks that are looked at in one step.
const STEP: u32 = 100;
/// How long a caller waits whose call is about to be known, and how often it is looked for.
const LATE_BIND_WAIT: (Duration, u32) = (Duration::from_millis(250), 4);

impl Taken<'_> {
    /// Its caller is told by the status what is wrong.
    pub(super) fn is_exact(&self) -> bool {
        self.from.is_exact_at(self.raw.path())
    }

    /// Nothing in it says what it is, or which call it is of.
    pub(super) fn is_unusable(&self) -> bool {
        let kind = self.from.webhook().dedupe.first().and_then(|selector| selector.text(&self.message));
        let is_named = kind.is_some_and(|kind| !kind.is_empty());
        !is_named || (self.event.is_some_and(|event| event.state.is_some()) && self.aliases.is_empty())
    }

    /// What it tells of a call after its end, and whether that is all.
    fn record(&self) -> Option<(PostCall, bool)> {
        let rules = self.event?.record.as_ref().filter(|_| matches!(self.news, Some(Event::Ended(..))))?;
        let (found, complete) = rules.read(&self.message);
        (complete || found != PostCall::default()).then_some((found, complete))
    }

    /// The outside id that a call is known by most surely: the one that its record is asked with.
    fn main_alias(&self) -> Option<&Alias> {
        let needs = self.from.account.provider.lookup.as_ref().map(|lookup| lookup.needs.as_str());
        let outside = || self.aliases.iter().filter(|alias| alias.kind != OWN_ID_KIND);
        outside().find(|alias| Some(alias.kind.as_str()) == needs).or_else(|| outside().next())
    }
}

impl Webhooks {
    /// Applies a webhook to its call, and takes up what it tells of it after its end. Where nobody knows the call it waits for
    /// one, if it was kept.
    pub(super) async fn apply_all(&self, taken: &Taken<'_>, event_id: &str) -> Result<Came> {
        let mut came = self.apply(taken, event_id).await?;
        if taken.is_exact() && came.outcome == "kept" {
            came = self.apply_in_a_moment(taken, event_id, came).await?;
        }
        let Some((found, complete)) = taken.record() else { return Ok(came) };
        match (&came.record, taken.main_alias()) {
            (Some(record), _) => {
                self.calls.post_call.told(record, &taken.from.account, found, complete).await?;
            }
            (None, Some(alias)) if came.outcome == "kept" => {
                self.calls.lifecycle.store.defer_until_known(event_id, alias).await?;
            }
            _ => {}
        }
        Ok(came)
    }

    /// The answer to the call's order may be a moment late.
    async fn apply_in_a_moment(&self, taken: &Taken<'_>, event_id: &str, mut came: Came) -> Result<Came> {
        let store = &self.calls.lifecycle.store;
        for _ in 0..LATE_BIND_WAIT.1 {
            tokio::time::sleep(LATE_BIND_WAIT.0).await;
            if store.resolve(&taken.aliases).await?.is_some() {
                came = self.apply(taken, event_id).await?;
                break;
            }
        }
        Ok(came)
    }

    /// The answer about a call that nobody knows.
    pub(super) fn unknown_call(&self, taken: &Taken<'_>) -> Response<Bytes> {
        let status = StatusCode::from_u16(self.settings.unknown_status).unwrap_or(StatusCode::NOT_FOUND);
        if status.is_success() {
            return super::fixed_answer(taken.from.webhook(), None);
        }
        let message =
            "No call of this conversation is on record. The event is kept: it is applied when one comes, within a day.";
        problem(status, "CALL_NOT_FOUND", message)
    }

    /// Webhooks wait no longer whose call nobody came to know.
    async fn expire_deferred(&self) -> Result<()> {
        let before_ms = self.calls.lifecycle.clock.now_ms() - WAITS_MS;
        let forget = self.calls.post_call.forgets_bodies(None).await?;
        self.calls.lifecycle.store.expire_deferred(before_ms, forget).await
    }

    /// Applies webhooks that waited, and whose call is known by now.
    async fn apply_found(&self, leads: bool) -> Result<()> {
        let since_ms = self.calls.lifecycle.clock.now_ms() - WAITS_MS;
        let found = self.calls.lifecycle.store.found_events(since_ms, STEP, &self.reach(leads)).await?;
        for (id, why) in found.damaged {
            warn!(event = id, why, "failed to read a deferred webhook");
            self.calls.lifecycle.store.mark_matched(&id, None, "unusable").await?;
        }
        for event in found.events {
            let (id, spooled) = (event.id.clone(), event.spool.is_some());
            match Box::pin(self.apply_one_found(event)).await {
                Ok(()) => {
                    if spooled {
                        super::spool::release(&self.spool, &self.calls, &id).await;
                    }
                    info!(event = id, "deferred webhook applied");
                }
                // One that cannot be written must not keep the others from their turn.
                Err(error)
                    if matches!(error, StoreError::Damaged(_)) || self.calls.lifecycle.store.ping().await.is_ok() =>
                {
                    warn!(event = id, %error, "failed to apply a deferred webhook");
                    self.calls.lifecycle.store.mark_matched(&id, None, "unusable").await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn apply_one_found(&self, mut event: NewEvent) -> Result<()> {
        let store = &self.calls.lifecycle.store;
        let Some(body) = self.body_of(&mut event).await? else {
            return store.mark_matched(&event.id, None, "body_lost").await;
        };
        let raw = Raw::new(&event.method, &event.path, headers_of(&event.headers), body).decoded();
        let path = event.path.split('?').next().unwrap_or_default();
        let found = candidates(&self.calls.accounts, &self.settings.extra_paths, path);
        let Some(from) = found.iter().find(|c| c.account.name.as_str() == event.account) else {
            return store.mark_matched(&event.id, None, "unusable").await;
        };
        let taken = read(&raw, from, Keys::default(), self.voucher_again(from, &raw), event.id.clone());
        let came = self.apply(&taken, &event.id).await?;
        let Some(record) = came.record else { return store.mark_matched(&event.id, None, "unusable").await };
        if let Some((found, complete)) = taken.record() {
            self.calls.post_call.told(&record, &taken.from.account, found, complete).await?;
        }
        store.mark_matched(&event.id, Some(&record.id), "applied").await?;
        if self.calls.post_call.forgets_bodies(Some(&record.id)).await? {
            store.forget_body(&event.id).await?;
        }
        Ok(())
    }
}

/// Sees to webhooks whose call has come to be known and whose body is in the spool of this process; while it leads to all others,
/// and to records that are missing. `inbox` is the newest generation's.
pub async fn records_loop(inbox: impl Fn() -> Webhooks, leads: impl Fn() -> bool, stop: CancellationToken) {
    let (mut searched, mut redacted, mut stopped) = (Searched::default(), Redacted::default(), None::<Instant>);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
        let (inbox, leads) = (inbox(), leads());
        if !leads {
            (searched, redacted) = Default::default();
            if inbox.spool.name().is_empty() {
                continue;
            }
        }
        let steps = async {
            if !leads {
                return inbox.apply_found(false).await.err();
            }
            let mut failed = None;
            if stopped.is_none_or(|at| at.elapsed() >= STOP_EVERY) {
                match inbox.expire_deferred().await {
                    Ok(()) => stopped = Some(Instant::now()),
                    Err(error) => failed = Some(error),
                }
            }
            // None keeps the others from their turn.
            failed = inbox.apply_found(true).await.err().or(failed);
            failed = inbox.calls.post_call.redact(&mut redacted).await.err().or(failed);
            Box::pin(inbox.calls.post_call.seek_records(&mut searched)).await.err().or(failed)
        };
        // What is cut off here is due again.
        let failed = tokio::select! {
            () = stop.cancelled() => return,
            failed = Box::pin(steps) => failed,
        };
        if let Some(error) = failed {
            warn!(%error, "failed to process missing post-call records");
        }
    }
}
