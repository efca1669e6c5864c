//! Supervises the limiter: sends pending operations, fails over when it is unavailable, rebuilds it, returns to it, and compares
//! leases with call records.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{AdmissionController, AdmissionSettings, Recording};
use crate::clock::as_ms;
use crate::policy::decision::{GateMode, GateState};
use crate::store::{HEARTBEAT_INTERVAL_MS, Result};
use crate::sync::lock;

/// The interval of heartbeats.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(HEARTBEAT_INTERVAL_MS);
/// The time for which a replica that stops waits for what it has not recorded yet.
const DEREGISTER_WAIT: Duration = Duration::from_secs(3);
/// The time for which a heartbeat waits for what it must not overtake.
const PENDING_RECORDS_WAIT: Duration = Duration::from_millis(200);
/// The interval of checks when nothing is urgent.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// The interval while the limiter is unavailable or operations are pending.
const URGENT_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The time that the replica which made a transition has to rebuild the limiter before another replica does.
const REBUILD_TIMEOUT: Duration = Duration::from_secs(2);
/// The time for which Redis has to answer before it is used for decisions again.
const MIN_UPTIME: Duration = Duration::from_secs(1);

/// A replica's role among those that share the store. It saves work (one sweeps instead of all), and says who shows the global gauges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Role {
    /// Ids of the live replicas, including this one.
    pub live: Vec<String>,
    /// Whether this replica is the leader: the leader sweeps, compares and replays.
    pub leads: bool,
    /// Changes with every change of a business, on any replica.
    pub businesses_version: String,
    /// The number of the last change of a do-not-call list, on any replica.
    pub do_not_call_change: i64,
}

/// The supervisor's view.
#[derive(Debug, Clone, Copy)]
struct View {
    mode: GateMode,
    /// The time for which the limiter has been unavailable.
    away_for: Option<Duration>,
    /// The time for which it has been available.
    up_for: Duration,
    since_move: Duration,
    needs_rebuild: bool,
    leads: bool,
}

/// The next transition, if any.
fn next(settings: &AdmissionSettings, view: &View) -> Option<GateMode> {
    use GateMode::{Database, Memory, Redis};
    match (settings.home, view.mode) {
        (Memory, _) => view.needs_rebuild.then_some(Memory),
        (Database, Database) => None,
        (Database, _) => (view.since_move >= REBUILD_TIMEOUT).then_some(Database),
        (Redis, Redis) if view.away_for.is_some_and(|away| away >= settings.fallback_after) => Some(Database),
        (Redis, Redis) => {
            (view.needs_rebuild && view.away_for.is_none() && view.since_move >= REBUILD_TIMEOUT).then_some(Redis)
        }
        (Redis, Database) => {
            let steady = view.away_for.is_none() && view.up_for >= MIN_UPTIME;
            (steady && view.since_move >= settings.return_after && view.leads).then_some(Redis)
        }
        // A process with the memory limiter owns the store. It says so in `/status`.
        (Redis, Memory) => None,
    }
}

impl AdmissionController {
    /// Sends a heartbeat, and reads the other live replicas. Called once before anything else, then by the supervisor.
    ///
    /// It speaks for the moment before which everything is recorded that the others must know ([`AdmissionController::recording`]). A replica
    /// that cannot record it for long counts as dead.
    pub async fn heartbeat(&self) -> Result<()> {
        if !self.is_shared() {
            // There are no other replicas.
            let stored_version = self.0.bypass.stored_version();
            self.apply_stored_bypass(self.0.store.bypass().await?, stored_version).boxed().await;
            let alone = Role { live: vec![self.replica().to_owned()], leads: true, ..Role::default() };
            self.0.role.send_replace(alone);
            return Ok(());
        }
        let stored_version = self.0.bypass.stored_version();
        let now_ms = self.0.store.now_ms().await?;
        self.0.recordings.done(PENDING_RECORDS_WAIT).await;
        // Asked after the store's time, so that it is never later than the beginning of that fact.
        let as_of = now_ms - as_ms(self.0.recordings.oldest());
        let membership = self.0.store.heartbeat(&self.myself(), Some(as_of)).await?;
        self.update_members(&membership.live);
        self.apply_stored_bypass(membership.bypass.clone(), stored_version).boxed().await;
        let role = Role {
            leads: membership.leads(),
            live: membership.live.into_iter().map(|one| one.replica.id).collect(),
            businesses_version: membership.businesses_version,
            do_not_call_change: membership.do_not_call_change,
        };
        self.0.role.send_if_modified(|now| {
            let changed = *now != role;
            if (&now.live, now.leads) != (&role.live, role.leads) && !now.live.is_empty() {
                info!(replicas = role.live.len(), leads = role.leads, "the live replicas or the leader changed");
            }
            *now = role;
            changed
        });
        let before = self.state();
        let stored = self.0.store.gate_state().await?;
        if stored.epoch < before.epoch {
            self.go_back(before, stored);
        } else {
            self.adopt_epoch(stored);
        }
        Ok(())
    }

    /// Begins to record a fact that other replicas must know before they hear from this one again.
    pub fn recording(&self) -> Recording {
        self.0.recordings.begin()
    }

    /// Adopts an earlier epoch than this process has known, which the store cannot have forgotten by itself: it was restored, or
    /// failed over to a standby that lagged. The next epoch is later than every known one.
    fn go_back(&self, before: GateState, stored: GateState) {
        self.0.min_epoch.fetch_max(before.epoch + 1, Ordering::Relaxed);
        let is_adopted = self.0.state.send_if_modified(|state| {
            let is_unchanged = *state == before;
            if is_unchanged {
                *state = stored;
            }
            is_unchanged
        });
        if is_adopted {
            warn!(
                epoch = stored.epoch,
                known = before.epoch,
                "database went back to an earlier epoch; limits are recounted"
            );
            self.0.needs_rebuild.store(true, Ordering::Relaxed);
        }
    }

    /// Deregisters this replica at its stop, so that another becomes the leader at once.
    pub async fn deregister(&self) {
        if !self.is_shared() {
            return;
        }
        // Its last heartbeat tells the truth as long as it stays registered.
        self.0.recordings.done(DEREGISTER_WAIT).await;
        if !self.0.recordings.oldest().is_zero() {
            return;
        }
        if let Err(error) = self.0.store.deregister(&self.0.replica.id).await {
            debug!(%error, "failed to deregister this replica; others count it as alive for some seconds");
        }
    }

    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let (mut up_since, mut compared_at, mut beaten_at) = (Instant::now(), Instant::now(), Instant::now());
        loop {
            if beaten_at.elapsed() >= HEARTBEAT_INTERVAL {
                beaten_at = Instant::now();
                if let Err(error) = self.heartbeat().boxed().await {
                    debug!(%error, "failed to write the heartbeat");
                }
            }
            self.note_bypass();
            let waits = self.flush_pending().boxed().await;
            let away = self.0.gate.as_ref().and_then(|gate| gate.away()).map(|(since, _)| since);
            if away.is_some() {
                up_since = Instant::now();
            }
            let needs_rebuild = self.still_needs_rebuild().boxed().await;
            let since_move = lock(&self.0.moved_at).elapsed();
            let view = View {
                mode: self.state().mode,
                away_for: away.map(|since| since.elapsed()),
                up_for: up_since.elapsed(),
                since_move,
                needs_rebuild,
                leads: self.role().leads,
            };
            if let Some(to) = next(&self.0.settings, &view)
                && let Err(error) = self.move_to(to).boxed().await
            {
                debug!(%error, to = to.as_str(), "failed to switch the limiter");
            }
            if view.leads && compared_at.elapsed() >= self.0.settings.audit_interval {
                compared_at = Instant::now();
                if let Err(error) = self.compare().boxed().await {
                    warn!(%error, "failed to compare leases with the database");
                }
            }
            let is_urgent = waits || away.is_some() || view.needs_rebuild;
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.0.wake.notified(), if !is_urgent => {}
                () = tokio::time::sleep(if is_urgent { URGENT_POLL_INTERVAL } else { POLL_INTERVAL }) => {}
            }
        }
    }

    /// Whether the limiter still has to be rebuilt: another replica may have done so.
    pub(super) async fn still_needs_rebuild(&self) -> bool {
        if !self.0.needs_rebuild.load(Ordering::Relaxed) {
            return false;
        }
        let state = self.state();
        let filled = match self.gate_of(state.mode) {
            Some(gate) => gate.counts(state.epoch).await.is_ok(),
            None => true,
        };
        if filled {
            self.0.needs_rebuild.store(false, Ordering::Relaxed);
        }
        !filled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn view(mode: GateMode) -> View {
        View { mode, away_for: None, up_for: SECOND * 60, since_move: SECOND * 60, needs_rebuild: false, leads: true }
    }

    #[test]
    fn the_gate_falls_back_late_and_returns_later() {
        let redis = AdmissionSettings { home: GateMode::Redis, ..AdmissionSettings::default() };
        let calm = view(GateMode::Redis);
        assert_eq!(next(&redis, &calm), None);
        assert_eq!(next(&redis, &View { away_for: Some(SECOND), ..calm }), None, "a short outage causes no transition");
        assert_eq!(next(&redis, &View { away_for: Some(SECOND * 2), ..calm }), Some(GateMode::Database));
        assert_eq!(next(&redis, &View { away_for: Some(SECOND * 2), leads: false, ..calm }), Some(GateMode::Database));

        let fallen = view(GateMode::Database);
        assert_eq!(next(&redis, &fallen), Some(GateMode::Redis));
        for not_yet in [
            View { since_move: SECOND * 29, ..fallen },
            View { away_for: Some(SECOND), ..fallen },
            View { up_for: SECOND / 2, ..fallen },
            View { leads: false, ..fallen },
        ] {
            assert_eq!(next(&redis, &not_yet), None, "{not_yet:?}");
        }
    }

    #[test]
    fn whoever_moved_the_gate_has_time_to_fill_it() {
        let redis = AdmissionSettings { home: GateMode::Redis, ..AdmissionSettings::default() };
        let wiped = View { needs_rebuild: true, ..view(GateMode::Redis) };
        assert_eq!(next(&redis, &wiped), Some(GateMode::Redis));
        assert_eq!(next(&redis, &View { since_move: SECOND, ..wiped }), None);
        assert_eq!(next(&redis, &View { away_for: Some(SECOND), ..wiped }), None, "there is nobody to be filled");
    }

    #[test]
    fn a_replica_without_redis_takes_the_gate_home() {
        let database = AdmissionSettings { home: GateMode::Database, ..AdmissionSettings::default() };
        assert_eq!(next(&database, &view(GateMode::Redis)), Some(GateMode::Database));
        assert_eq!(next(&database, &view(GateMode::Database)), None);
        let redis = AdmissionSettings { home: GateMode::Redis, ..AdmissionSettings::default() };
        assert_eq!(next(&redis, &view(GateMode::Memory)), None, "a process that is alone has the record");
    }
}
