//! Requests that are retried at another replica than the first: its process died, or a load balancer sent the retry elsewhere.
//! Processes share what they know of a request's client through the store.
//!
//! A request without an equal one in this process is looked up in the store before it is admitted. An equal request of another
//! process is the earlier one if its outcome is unknown, if its client disconnected before the response, or if its process died
//! and may not have responded. The process that joins it owns it from then on; what the first process remembers of it is no
//! longer valid.
//!
//! A process that died a moment ago still counts as alive, and a live one may not have noticed yet that its client disconnected,
//! or may not have been able to record it. So a request that may have been in progress at its process's last heartbeat is waited
//! for until that process sends a later one or is dead: a heartbeat is sent only once everything before it is recorded
//! ([`crate::admission::Recording`]). Equal requests sent to several processes within the time of an answer incur that wait.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, warn};

use super::fingerprint::Fingerprint;
use super::in_flight::{Claim, ClientState, InFlightRef, Progress, UNCONFIRMED_WINDOW_MS};
use super::state::{IdempotencyState, state_of};
use crate::admission::Recording;
use crate::call::Phase;
use crate::calls::context::Context;
use crate::clock::{UnixMs, as_ms};
use crate::store::{InFlightRow, LIVE_MS, Owner, StoreError};

/// Requests older than this are not retried, in milliseconds.
const LOOKED_BACK_MS: i64 = 3_600_000;
/// The least time in which a process notices, and records in the store, that a client disconnected, in milliseconds.
const NOTICED_MS: i64 = 250;
/// The largest clock difference between two machines, in milliseconds.
const CLOCKS_MS: i64 = 1_000;
/// The interval at which the store is polled while another process is waited for.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The interval of attempts to record that a client disconnected.
const RECORD_RETRY_DELAY: Duration = Duration::from_secs(1);
/// The longest that it may take to settle a request whose provider has answered.
const SETTLED_WITHIN: Duration = Duration::from_secs(10);
/// The interval at which the store is polled for the record of a request whose client disconnected.
const CALL_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The relation of a request to the recorded ones.
#[derive(Debug, PartialEq, Eq)]
enum Choice<'a> {
    /// A new request.
    Own,
    /// A duplicate of this one, whose process is dead.
    OfDead(&'a InFlightRow),
    /// A duplicate of this one.
    Earlier(&'a InFlightRow),
    /// Undecided: another process may be dead, or may not have noticed that its client disconnected.
    Wait,
}

/// Decides how a new request relates to the equal ones on record: a duplicate of one of them, a call of its own, or not known yet.
/// `waited_ms`: milliseconds since the request arrived. `answered_ms`: milliseconds by which a client that waits is answered,
/// whatever happened.
fn choose<'a>(rows: &'a [InFlightRow], me: &str, now_ms: UnixMs, waited_ms: i64, answered_ms: i64) -> Choice<'a> {
    let mut choice = Choice::Own;
    for row in rows {
        let over = state_of(row.phase, row.outcome, row.ended_at, row.unsettled, now_ms) == IdempotencyState::Over;
        if over {
            continue;
        }
        if row.replica.as_deref() == Some(me) {
            // Requests that this process tracks were looked up before: it has forgotten this one.
            if row.undelivered {
                return Choice::Earlier(row);
            }
            continue;
        }
        let under_way = row.phase == Phase::Reserved;
        let Some(silent_ms) = row.silent_ms.filter(|ms| *ms <= LIVE_MS) else {
            // It was not heard since its answer: its client may not have received it, however long ago that is.
            let heard_at = now_ms - row.silent_ms.unwrap_or_default();
            let unsure = row.waited_for_since + answered_ms.max(UNCONFIRMED_WINDOW_MS) + CLOCKS_MS >= heard_at;
            if row.unsettled || row.undelivered || under_way || unsure {
                return Choice::OfDead(row);
            }
            continue;
        };
        if row.unsettled || row.undelivered {
            return Choice::Earlier(row);
        }
        let heard_since_it_came = silent_ms < waited_ms - NOTICED_MS;
        // When its phase changed says nothing: webhooks change it while the client still waits.
        let heard_since_its_answer = !under_way && now_ms - row.waited_for_since > silent_ms + answered_ms + CLOCKS_MS;
        if !heard_since_it_came && !heard_since_its_answer {
            choice = Choice::Wait;
        }
    }
    choice
}

/// The relation of a new request to those of other replicas.
pub(super) enum ClusterLookup {
    /// A new request.
    New(Claim),
    /// An earlier request, sent again. The recording ends once its new client is watched.
    Duplicate(InFlightRef, Recording),
}

/// Finds the earlier request of a retry among the requests of other replicas, in the store.
pub(super) struct Cluster {
    context: Arc<Context>,
}

impl Cluster {
    pub(super) fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    /// Looks for an equal request at other replicas. If there is one, the claim becomes that earlier request.
    ///
    /// # Errors
    /// The store cannot be read: the answer is unknown, so nothing is dialled.
    pub(super) async fn find(
        &self,
        fingerprint: &Fingerprint,
        client: &ClientState,
        claim: Claim,
    ) -> Result<ClusterLookup, StoreError> {
        let Some(me) = self.context.replica() else { return Ok(ClusterLookup::New(claim)) };
        let came = Instant::now();
        let mut of_others = HashSet::new();
        loop {
            let now_ms = self.context.lifecycle.clock.now_ms();
            let store = &self.context.lifecycle.store;
            // Before the store measures how long replicas have been silent: an answer that takes long proves nothing.
            let waited_ms = as_ms(came.elapsed());
            let rows = store.find_in_flight(fingerprint.as_str(), now_ms - LOOKED_BACK_MS).await?;
            let is_mine = |row: &&InFlightRow| row.replica.as_deref() == Some(&*me);
            if let Some(row) = rows.iter().filter(is_mine).find(|row| row.unsettled && of_others.contains(&row.id)) {
                // A faster duplicate has just taken it here; one with an unknown outcome answers all.
                let recording = self.context.lifecycle.admission.recording();
                return Ok(ClusterLookup::Duplicate(claim.merge_into(&row.id, Progress::Unknown), recording));
            }
            of_others.extend(rows.iter().filter(|row| !is_mine(row)).map(|row| row.id.clone()));
            let (row, owner) = match choose(&rows, &me, now_ms, waited_ms, self.answered_ms()) {
                Choice::Own => return Ok(ClusterLookup::New(claim)),
                Choice::Earlier(row) => (row, Owner::Live),
                Choice::OfDead(row) => (row, Owner::Dead),
                // The client is gone; the caller handles that.
                Choice::Wait if client.has_left() => return Ok(ClusterLookup::New(claim)),
                Choice::Wait => {
                    tokio::time::sleep(POLL_INTERVAL).await;
                    continue;
                }
            };
            let recording = self.context.lifecycle.admission.recording();
            let taken = match store.take_in_flight(row, &me, owner).await {
                // It may be this process's now: nobody else would remember it.
                Err(StoreError::Unknown(_)) => true,
                // Another duplicate may have been faster; then the store has changed.
                taken => taken?,
            };
            if taken {
                let is_unknown = row.unsettled || row.phase == Phase::Reserved;
                let progress = if is_unknown { Progress::Unknown } else { Progress::Created(None) };
                return Ok(ClusterLookup::Duplicate(claim.merge_into(&row.id, progress), recording));
            }
        }
    }

    fn answered_ms(&self) -> i64 {
        let settings = &self.context.settings;
        let answered = settings.send_within + settings.create_timeout + SETTLED_WITHIN;
        as_ms(answered)
    }

    /// Whether this process still owns an earlier request that it remembers: another process may have joined and answered it.
    pub(super) async fn still_owned(&self, fingerprint: &Fingerprint, earlier: &InFlightRef) -> bool {
        let Some(me) = self.context.replica() else { return true };
        let Some((Some(call), _)) = earlier.look() else { return true };
        let store = &self.context.lifecycle.store;
        let since_ms = self.context.lifecycle.clock.now_ms() - LOOKED_BACK_MS;
        loop {
            let Ok(rows) = store.find_in_flight(fingerprint.as_str(), since_ms).await else { return true };
            // A request that joined another request's call is not found under its own fingerprint.
            let Some(row) = rows.iter().find(|row| row.id == call) else { return true };
            if row.replica.as_deref() != Some(&*me) {
                return false;
            }
            if !row.undelivered || store.take_in_flight(row, &me, Owner::Live).await.unwrap_or(true) {
                return true;
            }
            // Another duplicate took it since it was read, here or elsewhere.
        }
    }

    /// Records that a request's client disconnected without its response, as soon as it does. `recording` bridges the time until
    /// it is watched.
    pub(super) fn record_if_undelivered(
        &self,
        client: &Arc<ClientState>,
        request: &InFlightRef,
        recording: Option<Recording>,
    ) {
        let Some(me) = self.context.replica() else { return };
        let (client, request) = (client.clone(), request.clone());
        let (store, admission) = (self.context.lifecycle.store.clone(), self.context.lifecycle.admission.clone());
        tokio::spawn(async move {
            let mut recording = recording.filter(|_| client.has_disconnected());
            if !client.disconnects().await {
                return;
            }
            // Another client may have taken its place, or the request may have made no call.
            while request.is_of(&client) {
                if let Some((Some(call), _)) = request.look() {
                    recording.get_or_insert_with(|| admission.recording());
                    match store.mark_undelivered(&call, &me).await {
                        Ok(()) => return,
                        Err(StoreError::Damaged(error)) => {
                            error!(%call, %error, "failed to record an undelivered response; gave up");
                            return;
                        }
                        Err(error) => warn!(%call, %error, "failed to record an undelivered response; trying again"),
                    }
                    tokio::time::sleep(RECORD_RETRY_DELAY).await;
                } else {
                    tokio::time::sleep(CALL_POLL_INTERVAL).await;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Outcome;
    use crate::ids::CallId;

    const NOW: UnixMs = 1_000_000;
    const ANSWERED_MS: i64 = 12_000;

    fn row(replica: &str, silent_ms: Option<i64>) -> InFlightRow {
        InFlightRow {
            id: CallId::new(),
            phase: Phase::Live,
            outcome: None,
            unsettled: false,
            undelivered: false,
            replica: Some(replica.to_owned()),
            waited_for_since: NOW - 20_000,
            ended_at: None,
            silent_ms,
        }
    }

    fn chosen(row: &InFlightRow, waited_ms: i64) -> Choice<'_> {
        choose(std::slice::from_ref(row), "me", NOW, waited_ms, ANSWERED_MS)
    }

    #[test]
    fn a_request_of_a_living_replica_is_the_earlier_one_only_if_it_says_so() {
        let told = row("a", Some(500));
        assert_eq!(chosen(&told, 0), Choice::Own);
        for one in [
            InFlightRow { unsettled: true, ..told.clone() },
            InFlightRow { undelivered: true, ..told.clone() },
            InFlightRow { undelivered: true, phase: Phase::Reserved, ..told.clone() },
        ] {
            assert_eq!(chosen(&one, 0), Choice::Earlier(&one));
        }
        let over = InFlightRow { phase: Phase::Ended, outcome: Some(Outcome::NotCreated), undelivered: true, ..told };
        assert_eq!(chosen(&over, 0), Choice::Own);
        let mine = InFlightRow { undelivered: true, ..row("me", Some(0)) };
        assert_eq!(chosen(&mine, 0), Choice::Earlier(&mine), "this process has forgotten it");
        assert_eq!(chosen(&row("me", Some(0)), 0), Choice::Own, "this process remembers its own");
    }

    #[test]
    fn a_dead_replicas_request_is_the_earlier_one_while_it_may_not_have_been_told() {
        for silent_ms in [None, Some(LIVE_MS + 1)] {
            let recent = row("a", silent_ms);
            assert_eq!(chosen(&recent, 0), Choice::OfDead(&recent));
            let heard_at = NOW - silent_ms.unwrap_or_default();
            let old = InFlightRow { waited_for_since: heard_at - UNCONFIRMED_WINDOW_MS - CLOCKS_MS - 1, ..recent };
            assert_eq!(chosen(&old, 0), Choice::Own);
            for one in [
                InFlightRow { phase: Phase::Reserved, ..old.clone() },
                InFlightRow { unsettled: true, ..old.clone() },
                InFlightRow { undelivered: true, ..old.clone() },
            ] {
                assert_eq!(chosen(&one, 0), Choice::OfDead(&one));
            }
        }
    }

    #[test]
    fn how_long_a_client_waits_is_what_counts_of_a_dead_replica_too() {
        // It was last heard 58 s after the admission; its client was answered after 60 s, as unknown, which it could not record.
        let silent_ms = 9_000;
        let row = InFlightRow { waited_for_since: NOW - 67_000, ..row("a", Some(silent_ms)) };
        let chosen = choose(std::slice::from_ref(&row), "me", NOW, 0, 80_000);
        assert_eq!(chosen, Choice::OfDead(&row));
    }

    #[test]
    fn a_replica_that_may_have_died_a_moment_ago_is_waited_for() {
        let under_way = |silent_ms| InFlightRow { phase: Phase::Reserved, ..row("a", Some(silent_ms)) };
        assert_eq!(chosen(&under_way(1_900), 0), Choice::Wait);
        assert_eq!(chosen(&under_way(100), 150), Choice::Wait, "it may not have noticed yet");
        assert_eq!(chosen(&under_way(100), 300), Choice::Wait, "its heartbeat came before it has noticed for certain");
        assert_eq!(chosen(&under_way(100), 400), Choice::Own, "it was heard since");
        assert_eq!(chosen(&under_way(5_000), 3_500), Choice::Wait);
        assert!(matches!(chosen(&under_way(6_100), 4_500), Choice::OfDead(_)));
        let admitted = |ago_ms, silent_ms| InFlightRow { waited_for_since: NOW - ago_ms, ..row("a", Some(silent_ms)) };
        assert_eq!(
            chosen(&admitted(14_000, 1_900), 0),
            Choice::Wait,
            "its client may still wait, whatever webhooks said"
        );
        assert_eq!(chosen(&admitted(15_000, 1_900), 0), Choice::Own, "it was heard since its answer");
        let (waits, joins) = (admitted(1_500, 1_900), InFlightRow { undelivered: true, ..admitted(1_000, 100) });
        let both = [waits, joins.clone()];
        assert_eq!(choose(&both, "me", NOW, 0, ANSWERED_MS), Choice::Earlier(&joins));
    }
}
