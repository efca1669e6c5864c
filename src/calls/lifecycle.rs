//! The only writer of a call's phase, ids and end: persist, then release the lease if the call ended, then notify.
//!
//! The caller of a change may be dropped (a client hangs up, a listener drains); the change is completed nevertheless
//! ([`run_to_completion`]).

mod finish;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::Notify;
use tracing::{error, info, warn};

pub use crate::admission::LivePolicy;
use crate::admission::{Admission, AdmissionController, AdmissionError, PolicyGuard, Recording};
use crate::call::{Deadlines, EndProof, Event, Origin, Outcome, Phase, Source, Step};
use crate::calls::notify::Hub;
use crate::clock::{Clock, UnixMs};
use crate::failpoint;
use crate::ids::{Alias, CallId, mask_number};
use crate::metrics::Metrics;
use crate::policy::CallAttributes;
use crate::policy::decision::AdmissionRequest;
use crate::provider::description::OWN_ID_KIND;
use crate::store::{
    AppNotice, ApplyOutcome, CallRecord, Change, InsertOutcome, NewCall, Result, Store, StoreError, Voucher,
};
pub use finish::{Finish, Panicked, run_to_completion};

/// Writes what happens to a call, frees its lease after its end, and notifies. Cloning is cheap.
#[derive(Clone)]
pub struct Lifecycle {
    /// The durable state.
    pub store: Arc<dyn Store>,
    /// Admission of calls.
    pub admission: AdmissionController,
    /// The newest policy, whatever generation a request belongs to: no call is admitted under outdated limits.
    pub policy: LivePolicy,
    /// Counters.
    pub metrics: Metrics,
    /// The time.
    pub clock: Clock,
    /// The time for which a call may stay in a phase without news, in seconds.
    pub deadlines: Deadlines,
    /// Notified of every recorded call: wakes sweepers that sleep while there are no calls.
    pub opened: Arc<Notify>,
    /// Notified of every call that ends.
    pub hub: Hub,
    /// Whether ringfence sends the app its own events about calls.
    pub notice: AppNotice,
}

/// The pause before a change that failed is applied again.
const APPLY_RETRY_DELAY: Duration = Duration::from_secs(1);
/// Failed tries for each line in the log: about one a minute.
const LOG_EVERY: u32 = 60;

/// The first or a later try to apply a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Try {
    First,
    /// The store may have written an earlier one.
    Again,
}

/// Runs a change to its end, even if its caller is dropped. Boxed: otherwise the compiler proves `Send` of this future anew for each
/// caller, which takes minutes.
fn finished<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> BoxFuture<'static, Result<T>> {
    let work = run_to_completion(work);
    Box::pin(async move {
        match work.await {
            Ok(result) => result,
            Err(error) => Err(StoreError::Unknown(format!("a change did not finish: {error}"))),
        }
    })
}

impl Lifecycle {
    /// An empty change of a call.
    pub fn change(&self, call: &CallId, seen_by: Source) -> Change {
        Change { notice: self.notice, ..Change::of(call, seen_by, self.clock.now_ms(), &self.deadlines) }
    }

    /// A new call record; its deadline is that of its phase.
    pub fn new_call(&self, id: &CallId, attributes: CallAttributes, origin: Origin, phase: Phase) -> NewCall {
        let at_ms = self.clock.now_ms();
        NewCall {
            id: id.clone(),
            attributes,
            origin,
            phase,
            over_limit: false,
            polled: false,
            slots: 1,
            at_ms,
            deadline_at: at_ms + self.deadlines.of_ms(phase).unwrap_or_default(),
            callback: None,
            fingerprint: None,
            keys: vec![],
            replica: Some(self.admission.replica().to_owned()),
            notice: self.notice,
            aliases: vec![],
        }
    }

    /// Decides about a request and writes its call record. A call without a record was never admitted. News that arrived before
    /// the call is applied at once. The policy may change once the call is recorded, or rejected.
    pub async fn admit(
        &self,
        policy_guard: PolicyGuard,
        request: AdmissionRequest,
        call: NewCall,
    ) -> std::result::Result<Admission, AdmissionError> {
        let (this, id) = (self.clone(), request.call.clone());
        let admitted = run_to_completion(async move {
            let admitted = this.admission.admit(&policy_guard, request, call).await;
            // News that is applied below may need it again.
            drop(policy_guard);
            failpoint::hit("call.opened").await;
            match &admitted {
                Ok(Admission::Admitted { early, .. }) => this.after_opening(&id, *early).await,
                Ok(Admission::Known(_) | Admission::Rejected(_)) => {}
                Err(AdmissionError::Store(error)) => this.end_if_written(&id, error),
                Err(AdmissionError::Gate(_)) => {}
            }
            admitted
        });
        admitted
            .await
            .unwrap_or_else(|error| Err(StoreError::Unknown(format!("an admission did not finish: {error}")).into()))
    }

    /// Announces a recorded call, and applies news that arrived before it. The call is on record whether they can be applied now
    /// or not.
    async fn after_opening(&self, call: &CallId, news: Option<Event>) {
        self.opened.notify_waiters();
        if let Some(news) = news {
            self.apply_or_retry_later(Change { event: Some(news), ..self.change(call, Source::Webhook) }, None).await;
        }
    }

    /// Ends a record that may or may not have been written, of a call that will not be placed.
    fn end_if_written(&self, call: &CallId, error: &StoreError) {
        if let StoreError::Unknown(_) = error {
            // If it was recorded after all, nothing holds its slot. News of the call would count it again.
            let never = Some(Event::Ended(Outcome::NotCreated, EndProof::Deadline));
            self.apply_later(Change { event: never, ..self.change(call, Source::Create) }, None);
        }
    }

    /// Applies a change. `None`: no such call.
    pub async fn apply(&self, change: Change) -> Result<Option<ApplyOutcome>> {
        let this = self.clone();
        finished(async move { this.apply_now(change).await }).await
    }

    /// Applies news of the call with these ids, if the signer may report on it. News of an unknown call is stored under its ids.
    pub async fn news(
        &self,
        aliases: Vec<Alias>,
        event: Event,
        by: Voucher,
        seen_by: Source,
    ) -> Result<Option<ApplyOutcome>> {
        if aliases.is_empty() {
            return Ok(None);
        }
        let this = self.clone();
        finished(async move {
            let known = match this.store.resolve(&aliases).await? {
                Some(call) => Some(call),
                None => this.store.keep_early(aliases.clone(), event, Some(by.clone()), this.clock.now_ms()).await?,
            };
            failpoint::hit("call.kept_early").await;
            let Some(call) = known else { return Ok(None) };
            let by = Some(by);
            this.apply_now(Change { event: Some(event), bind: aliases, by, ..this.change(&call, seen_by) }).await
        })
        .await
    }

    /// Ends a call.
    pub async fn end(
        &self,
        call: &CallId,
        outcome: Outcome,
        proof: EndProof,
        seen_by: Source,
    ) -> Result<Option<ApplyOutcome>> {
        let event = Some(Event::Ended(outcome, proof));
        self.apply(Change { event, ..self.change(call, seen_by) }).await
    }

    /// Applies a change that will not be reported again: now, or when the store is back. Until then the call's slot is held.
    pub async fn apply_with_retry(&self, change: Change) {
        // Another replica must not dial again because it has heard from this one since.
        let recording = change.reported_unknown_by.is_some().then(|| Arc::new(self.admission.recording()));
        let (this, lost) = (self.clone(), (change.clone(), recording.clone()));
        if run_to_completion(async move { this.apply_or_retry_later(change, recording).await }).await.is_err() {
            self.apply_later(lost.0, lost.1);
        }
    }

    async fn apply_or_retry_later(&self, change: Change, recording: Option<Arc<Recording>>) {
        if let Err(error) = self.apply_once(change.clone(), Try::First).await {
            warn!(call = %change.call, by = %change.seen_by, %error, "failed to record a change of a call; slot held until it is recorded");
            self.apply_later(change, recording);
        }
    }

    /// Ends a call, now or when the store is back. Until then the slot is held.
    pub async fn end_with_retry(&self, call: &CallId, outcome: Outcome, proof: EndProof, seen_by: Source) {
        let event = Some(Event::Ended(outcome, proof));
        self.apply_with_retry(Change { event, ..self.change(call, seen_by) }).await;
    }

    /// Counts a call that exists although its limit was full, or although it had been given up.
    pub async fn adopt(&self, call: NewCall) -> Result<InsertOutcome> {
        let this = self.clone();
        finished(async move {
            let id = call.id.clone();
            let adopted = this.adopt_now(call).await;
            if let Err(error) = &adopted {
                this.end_if_written(&id, error);
            }
            adopted
        })
        .await
    }

    async fn adopt_now(&self, call: NewCall) -> Result<InsertOutcome> {
        let id = call.id.clone();
        let policy_guard = self.admission.hold_policy().await;
        let adopted = self.admission.adopt(&policy_guard, call).await;
        drop(policy_guard);
        failpoint::hit("call.opened").await;
        if let Ok(InsertOutcome::New(news)) = &adopted {
            self.after_opening(&id, *news).await;
        }
        adopted
    }

    /// Records a call that counts only once it is confirmed ([`Origin::Unconfirmed`]).
    pub async fn note_unconfirmed(&self, call: NewCall) -> Result<InsertOutcome> {
        let this = self.clone();
        finished(async move {
            let id = call.id.clone();
            let opened = this.store.insert_call(call, None).await?;
            if let InsertOutcome::New(news) = &opened {
                this.after_opening(&id, *news).await;
            }
            Ok(opened)
        })
        .await
    }

    async fn apply_now(&self, change: Change) -> Result<Option<ApplyOutcome>> {
        let applied = self.apply_once(change.clone(), Try::First).await;
        if let Err(StoreError::Unknown(_)) = &applied {
            self.apply_later(change, None);
        }
        applied
    }

    async fn apply_once(&self, change: Change, which: Try) -> Result<Option<ApplyOutcome>> {
        let Some(mut applied) = self.store.apply(change.clone()).await? else { return Ok(None) };
        if which == Try::Again {
            applied = applied.if_written_before(&change);
        }
        Box::pin(self.act_on(applied, change, which)).await.map(Some)
    }

    /// Applies a failed change again until the store is back: the slot of a call that it ends is held until then. Applying a change
    /// twice has no effect. `recording` ends with it.
    fn apply_later(&self, change: Change, recording: Option<Arc<Recording>>) {
        let this = self.clone();
        // A drain does not wait for this task: the next process reads the record.
        tokio::spawn(async move {
            let _recording = recording;
            let mut tries = 0_u32;
            loop {
                tokio::time::sleep(APPLY_RETRY_DELAY).await;
                let Err(error) = this.apply_once(change.clone(), Try::Again).await else { return };
                let call = &change.call;
                if let StoreError::Damaged(_) = error {
                    error!(%call, %error, "failed to record a change of a call, whose record cannot be read; gave up");
                    return;
                }
                tries += 1;
                if tries.is_multiple_of(LOG_EVERY) {
                    warn!(%call, %error, tries, "failed to record a change of a call again; slot held until it is recorded");
                }
            }
        });
    }

    /// Acts on a recorded change.
    async fn act_on(&self, applied: ApplyOutcome, change: Change, which: Try) -> Result<ApplyOutcome> {
        let call = change.call.clone();
        failpoint::hit("call.applied").await;
        if applied.contradiction.is_some() {
            return Ok(applied);
        }
        // A call known from an app's transcript may be counted already, as the call that its carrier brought.
        // The ids of a call that was given up are its second record's, which gets the news below.
        let is_given_up = applied.step == Step::Ignore && applied.record.proof == Some(EndProof::Deadline);
        let conflicts = applied.conflicts.iter().filter(|_| applied.record.counts() && !is_given_up);
        for (alias, other) in conflicts {
            self.metrics.alias_conflict();
            warn!(call = %call, other = %other, kind = %alias.kind, "id claimed by two calls");
        }
        if applied.step == Step::Ignore && applied.record.phase == Phase::Ended {
            // Nearly always no slot is held. But its end may be recorded without a notification.
            self.admission.release_by_id(&call).await;
        }
        if !applied.record.counts()
            && applied.record.phase != Phase::Ended
            && change.seen_by != Source::Transcript
            && change.absent != Some(true)
            && change.if_seen_at.is_none()
            && applied.conflicts.is_empty()
        {
            let policy_guard = self.admission.hold_policy().await;
            let is_confirmed = self.admission.confirm(&policy_guard, &applied.record).await?;
            drop(policy_guard);
            if is_confirmed {
                info!(%call, by = %change.seen_by, "unconfirmed call found at its provider; counted");
            }
        }
        let is_unconfirmed = change.seen_by == Source::Transcript && !applied.record.counts();
        if is_given_up && !is_unconfirmed {
            let again = self.readopt(&applied.record, change, which).await?;
            return Ok(again.unwrap_or(applied));
        }
        if !change.bind.is_empty() {
            self.hub.changed(&call);
        }
        if let Step::End(outcome, proof) = applied.step {
            failpoint::hit("call.ended").await;
            self.admission.release(&applied.record).await;
            failpoint::hit("call.released").await;
            self.metrics.ended(outcome, proof);
            self.hub.ended(&call);
            let record = &applied.record;
            info!(
                call = %call,
                business = %record.attributes.business,
                %outcome,
                %proof,
                secs = seconds(record.admitted_at, record.ended_at),
                to = record.attributes.other_number.as_deref().map(mask_number),
                "call ended"
            );
        }
        Ok(applied)
    }

    /// News of a call that was given up after look-ups found nothing goes to its second record: an over-limit call with its ids,
    /// which counts until it ends. The first news that the call is up makes that record. `None`: there is none, and this is no
    /// such news.
    fn readopt<'a>(
        &'a self,
        given_up: &'a CallRecord,
        change: Change,
        which: Try,
    ) -> BoxFuture<'a, Result<Option<ApplyOutcome>>> {
        Box::pin(async move {
            let own = own_id(&given_up.id);
            let known = self.store.resolve(std::slice::from_ref(&own)).await?;
            let call = match (known, change.event) {
                (Some(call), _) if call == given_up.id => return Ok(None),
                (Some(call), _) => call,
                (None, Some(Event::Reached(phase))) => {
                    let id = CallId::new();
                    let origin = match given_up.origin {
                        Origin::Unconfirmed => Origin::Foreign,
                        known => known,
                    };
                    let mut again = self.new_call(&id, given_up.attributes.clone(), origin, phase);
                    (again.over_limit, again.polled, again.slots) = (true, given_up.polled, given_up.slots);
                    // Its idempotency key moves with its ids, and identifies the same request.
                    (again.callback, again.fingerprint) = (given_up.callback.clone(), given_up.fingerprint.clone());
                    again.aliases = vec![own];
                    // If it is not known whether that was written, the change is tried again, and finds it by its own id.
                    match self.adopt_now(again).await? {
                        InsertOutcome::New(_) => {
                            warn!(call = %given_up.id, again = %id, "ended call is still up at its provider; counted as over-limit");
                            id
                        }
                        InsertOutcome::Known(call) => call,
                        InsertOutcome::Outdated(_) => return Ok(None),
                    }
                }
                (None, _) => return Ok(None),
            };
            self.apply_once(Change { call, ..change }, which).await
        })
    }

    /// The record of a call; for one that was given up and counted again, its second record. `None`: no such call.
    pub async fn newest_record(&self, call: &CallId) -> Result<Option<CallRecord>> {
        let first = self.store.call(call).await?;
        if !matches!(&first, Some(first) if first.proof == Some(EndProof::Deadline)) {
            return Ok(first);
        }
        match self.store.resolve(&[own_id(call)]).await? {
            Some(again) => Ok(self.store.call(&again).await?.or(first)),
            None => Ok(first),
        }
    }
}

/// The alias that links the second record of a call to the first.
pub(in crate::calls) fn own_id(first: &CallId) -> Alias {
    Alias { kind: OWN_ID_KIND.to_owned(), id: first.to_string() }
}

fn seconds(from_ms: UnixMs, to_ms: Option<UnixMs>) -> i64 {
    to_ms.map_or(0, |to| (to - from_ms) / 1000)
}
