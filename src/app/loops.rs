//! The loops beside the listeners. They outlive generations of the config: each uses the newest one.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::watch::Receiver;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::config_watcher;
use super::reload::Generations;
use super::tasks::Tasks;
use crate::admin;
use crate::admin::reload::Running as _;
use crate::admission::{AdmissionController, Role};
use crate::calls::post_call::webhook_health::watch_hooks;
use crate::runs::dialler;
use crate::runs::recurring::scheduler;
use crate::store::{RetentionCutoffs, Spool};
use crate::webhooks::{self, Webhooks, deliver};

/// The pause before a failed read of the do-not-call lists is retried.
const LIST_RETRY_DELAY: Duration = Duration::from_millis(500);
/// The interval at which expired data is deleted.
const PURGE_EVERY: Duration = Duration::from_secs(3600);
/// The time for which news of unknown calls is kept, in milliseconds: many times the longest create.
const EARLY_KEPT_MS: i64 = 24 * 3_600_000;
/// The time for which a provider's response to a create is kept for retries, in milliseconds: as long as Stripe keeps responses to
/// idempotency keys (<https://docs.stripe.com/api/idempotent_requests>).
const ANSWER_KEPT_MS: i64 = 24 * 3_600_000;

/// State that the loops have in common.
pub(super) struct Loops {
    pub(super) generations: Arc<Generations>,
    pub(super) admission: AdmissionController,
    pub(super) tasks: Tasks,
}

impl Loops {
    /// Starts all of them. `wake` wakes the deliveries.
    pub(super) fn spawn(&self, spool: Spool, wake: Arc<Notify>) {
        let (generations, tasks) = (&self.generations, &self.tasks.all);
        let (stop, draining) = (|| self.tasks.stop.clone(), || self.tasks.draining.clone());
        let newest = || generations.clone();

        // Limits, and what replicas share.
        tasks.spawn(self.admission.clone().run(stop()));
        tasks.spawn(follow_businesses(self.admission.roles(), newest(), stop()));
        tasks.spawn(follow_do_not_call(self.admission.roles(), newest(), stop()));

        // Webhooks.
        tasks.spawn(webhooks::replay_loop(self.inbox(), self.role(), stop()));
        tasks.spawn(webhooks::journal_loop(self.inbox(), stop()));
        tasks.spawn(webhooks::spool_loop(self.inbox(), self.role(), stop()));
        tasks.spawn(webhooks::deferred_loop(self.inbox(), self.role(), stop()));
        let generations = newest();
        tasks.spawn(deliver::delivery_loop(move || generations.calls(), spool, wake, stop()));
        let generations = newest();
        tasks.spawn(watch_hooks(move || generations.calls().post_call, self.role(), stop()));

        // Bulk runs: a drain ends them first.
        let generations = newest();
        tasks.spawn(dialler::run(move || (generations.calls(), generations.runs()), draining()));
        let generations = newest();
        tasks.spawn(scheduler::run(move || (generations.calls(), generations.runs()), self.leads(), draining()));

        // The operator.
        let generations = newest();
        tasks.spawn(admin::history_loop(move || generations.admin(), draining()));
        tasks.spawn(purge(newest(), stop()));
        tasks.spawn(config_watcher::run(newest(), stop()));
    }

    /// The newest handler of webhooks.
    fn inbox(&self) -> impl Fn() -> Webhooks + Send + use<> {
        let generations = self.generations.clone();
        move || generations.webhooks()
    }

    /// This replica's role.
    fn role(&self) -> impl Fn() -> Role + Send + use<> {
        let admission = self.admission.clone();
        move || admission.role()
    }

    /// Whether this replica leads.
    fn leads(&self) -> impl Fn() -> bool + Send + use<> {
        let admission = self.admission.clone();
        move || admission.role().leads
    }
}

/// Applies businesses that were changed at another replica.
async fn follow_businesses(mut roles: Receiver<Role>, generations: Arc<Generations>, stop: CancellationToken) {
    let mut applied_version = roles.borrow_and_update().businesses_version.clone();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = roles.changed() => if changed.is_err() { return },
        }
        let version = roles.borrow_and_update().businesses_version.clone();
        if version == applied_version {
            continue;
        }
        match generations.clone().refresh_businesses().await {
            Ok(()) => applied_version = version,
            Err(error) => warn!(%error, "failed to apply changed businesses; retried with the next change"),
        }
    }
}

/// Refreshes do-not-call lists that were changed at another replica, and retries failed reads.
async fn follow_do_not_call(mut roles: Receiver<Role>, generations: Arc<Generations>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = roles.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LIST_RETRY_DELAY) => {}
        }
        let calls = generations.calls();
        let change = roles.borrow_and_update().do_not_call_change;
        if !calls.destinations.knows_do_not_call(change)
            && let Err(error) = calls.destinations.refresh_do_not_call().await
        {
            warn!(%error, "failed to read the do-not-call lists; numbers that may be listed are rejected until they load");
        }
    }
}

/// Deletes expired data.
async fn purge(generations: Arc<Generations>, stop: CancellationToken) {
    let calls = generations.calls();
    loop {
        let now_ms = calls.lifecycle.clock.now_ms();
        let before = |days: u32| now_ms - i64::from(days) * 24 * 3_600_000;
        let policy = calls.lifecycle.policy.load_full();
        let ages = RetentionCutoffs {
            before_ms: before(generations.config().store.retention_days),
            of_business: policy.own_retention_days().map(|(id, days)| (id.clone(), before(days))).collect(),
            early_before_ms: now_ms - EARLY_KEPT_MS,
            answers_before_ms: now_ms - ANSWER_KEPT_MS,
        };
        match calls.lifecycle.store.purge(&ages).await {
            Ok(0) => {}
            Ok(rows) => info!(rows, "expired data deleted"),
            Err(error) => warn!(%error, "failed to delete expired data"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PURGE_EVERY) => {}
        }
    }
}
