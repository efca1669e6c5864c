//! Races between two replicas, a Redis and a store, each provoked at the critical moment. The numbers are those of the list in
//! `tests/it/holes.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::failover::GRACE_MS;
use super::model::World;
use super::*;
use crate::admission::limiter::redis::tests::server::until;
use crate::admission::limiter::{GateError, Result as GateResult};
use crate::call::{Deadlines, EndProof, Origin, Source};
use crate::policy::decision::{AdmissionRequest, Decision, LeaseRow, RateLog, keys};
use crate::policy::{Bound, Mode, OnOutage, Rate};
use crate::store::{Change, InsertOutcome, NewCall};

const END: Event = Event::Ended(Outcome::Completed, EndProof::Webhook);

/// A point at which a task waits until the test releases it.
struct Stop {
    is_closed: AtomicBool,
    came: Semaphore,
    go: Semaphore,
}

impl Stop {
    fn new() -> Self {
        Self { is_closed: AtomicBool::new(false), came: Semaphore::new(0), go: Semaphore::new(0) }
    }

    /// Makes the next task wait.
    fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
    }

    async fn pass(&self) {
        if self.is_closed.swap(false, Ordering::Relaxed) {
            self.came.add_permits(1);
            self.go.acquire().await.unwrap().forget();
        }
    }

    async fn somebody_stands(&self) {
        self.came.acquire().await.unwrap().forget();
    }

    fn open(&self) {
        self.go.add_permits(1);
    }
}

/// Redis, through a replica that is suspended at critical moments.
struct Between {
    redis: Arc<dyn Gate>,
    before_filling: Stop,
    after_admission: Stop,
    /// The next answer is lost.
    loses_answer: AtomicBool,
}

#[async_trait]
impl Gate for Between {
    async fn admit(&self, epoch: i64, request: &AdmissionRequest) -> GateResult<Decision> {
        let decided = self.redis.admit(epoch, request).await;
        self.after_admission.pass().await;
        if self.loses_answer.swap(false, Ordering::Relaxed) {
            return Err(GateError::Away("the answer was lost".to_owned()));
        }
        decided
    }
    async fn adopt(&self, epoch: i64, held: &LeaseRow) -> GateResult<()> {
        self.redis.adopt(epoch, held).await
    }
    async fn release(&self, epoch: i64, call: &CallId) -> GateResult<bool> {
        self.redis.release(epoch, call).await
    }
    async fn forbid(&self, epoch: i64, call: &CallId) -> GateResult<()> {
        self.redis.forbid(epoch, call).await
    }
    async fn rebuild(&self, epoch: i64, held: &[LeaseRow], rates: &[(String, RateLog)]) -> GateResult<()> {
        self.before_filling.pass().await;
        self.redis.rebuild(epoch, held, rates).await
    }
    async fn counts(&self, epoch: i64) -> GateResult<Counts> {
        self.redis.counts(epoch).await
    }
    async fn held(&self, epoch: i64) -> GateResult<Vec<LeaseRow>> {
        self.redis.held(epoch).await
    }
    fn away(&self) -> Option<(Instant, String)> {
        self.redis.away()
    }
}

/// Replica A is suspended where the test wants, replica B never is.
struct Two {
    world: World,
    between: Arc<Between>,
    a: AdmissionController,
    b: AdmissionController,
    clock: Clock,
}

impl Two {
    /// With a concurrency limit, and perhaps a rate.
    async fn with(concurrent: u32, rate: Option<Rate>) -> Self {
        Self::under(model::limits(concurrent, rate, OnOutage::Database)).await
    }

    async fn under(policy: Arc<Policy>) -> Self {
        let world = World::of_redis().await;
        let clock = Clock::stopped_at(world.begin().0);
        let between = Arc::new(Between {
            redis: world.gate().await.unwrap(),
            before_filling: Stop::new(),
            after_admission: Stop::new(),
            loses_answer: AtomicBool::new(false),
        });
        let replica = async |at: usize, gate: Arc<dyn Gate>| {
            let capacity = AdmissionController::new(
                world.stores[at].clone(),
                Some(gate),
                AdmissionSettings { home: GateMode::Redis, ..AdmissionSettings::default() },
                Arc::new(ArcSwap::new(policy.clone())),
                clock.clone(),
                Metrics::new().unwrap(),
                Replica::new(),
            );
            assert_eq!(capacity.start().await.unwrap(), 0);
            capacity
        };
        let a = replica(0, between.clone()).await;
        let b = replica(1, world.gate().await.unwrap()).await;
        let two = Self { between, a, b, clock, world };
        two.hear(&two.a).await;
        two
    }

    /// A replica learns the current epoch.
    async fn hear(&self, replica: &AdmissionController) {
        replica.adopt_epoch(self.world.stores[0].gate_state().await.unwrap());
    }

    fn new_call(&self) -> NewCall {
        model::new_call(&CallId::new(), self.clock.now_ms())
    }

    async fn admit(&self, replica: &AdmissionController) -> std::result::Result<Admission, AdmissionError> {
        let call = self.new_call();
        let request = AdmissionRequest {
            call: call.id.clone(),
            bindings: replica.0.policy.load().bindings(&call.attributes),
            slots: crate::policy::decision::Slots::ONE,
            mode: Mode::Enforce,
            at_ms: call.at_ms,
        };
        let policy_guard = replica.hold_policy().await;
        replica.admit(&policy_guard, request, call).await
    }

    async fn is_admitted(&self, replica: &AdmissionController) -> bool {
        match self.admit(replica).await.unwrap() {
            Admission::Admitted { .. } => true,
            Admission::Rejected(_) => false,
            Admission::Known(call) => panic!("{call}"),
        }
    }

    async fn admitted(&self, replica: &AdmissionController) -> CallId {
        match self.admit(replica).await.unwrap() {
            Admission::Admitted { lease, .. } => lease.call().clone(),
            other => panic!("{other:?}"),
        }
    }

    async fn apply(&self, replica: &AdmissionController, call: &CallId, event: Event) {
        let change = Change {
            event: Some(event),
            ..Change::of(call, Source::Webhook, self.clock.now_ms(), &Deadlines::default())
        };
        let applied = self.world.stores[1].apply(change).await.unwrap().unwrap();
        if applied.record.phase == Phase::Ended {
            replica.release(&applied.record).await;
        }
    }

    /// Both learn the current epoch, and send their pending operations. Then leases and records agree.
    async fn agree_on(&self, calls: u32) {
        for replica in [&self.a, &self.b] {
            self.hear(replica).await;
            assert!(!replica.flush_pending().await);
        }
        for replica in [&self.a, &self.b] {
            assert_eq!(replica.counts().await.unwrap().calls, calls);
        }
        assert_eq!(self.world.stores[0].leases().await.unwrap().len(), calls as usize);
    }
}

/// A is suspended between its transition and the rebuild, and B makes another: what A fills in is discarded.
#[tokio::test]
async fn hole_3_02_a_stale_rebuilder_wakes() {
    let two = Two::with(2, None).await;
    two.between.before_filling.close();
    let (moved, ()) = tokio::join!(two.a.move_to(GateMode::Redis), async {
        two.between.before_filling.somebody_stands().await;
        // Nothing is admitted under an epoch that was never filled.
        two.hear(&two.b).await;
        assert!(matches!(two.b.counts().await, Err(AdmissionError::Gate(_))));
        two.b.move_to(GateMode::Redis).await.unwrap().unwrap();
        assert!(two.is_admitted(&two.b).await);
        two.between.before_filling.open();
    });
    assert_eq!(moved.unwrap(), Some(0));
    assert_eq!(two.b.counts().await.unwrap().calls, 1, "what it filled in is not published");
    assert!(two.is_admitted(&two.a).await);
    assert!(!two.is_admitted(&two.a).await && !two.is_admitted(&two.b).await);
    assert!(!two.a.still_needs_rebuild().await);
    two.agree_on(2).await;
}

/// A has failed over to the database, B still sees Redis, which has fewer calls.
#[tokio::test]
async fn hole_3_05_one_falls_back_and_another_still_sees_redis() {
    let two = Two::with(5, None).await;
    for replica in [&two.a, &two.b] {
        assert!(two.is_admitted(replica).await);
    }
    two.a.move_to(GateMode::Database).await.unwrap().unwrap();
    for _ in 0..2 {
        assert!(two.is_admitted(&two.a).await);
    }
    assert_eq!(two.b.status().mode, GateMode::Redis, "it has not heard");
    assert!(two.is_admitted(&two.b).await, "the fifth");
    assert_eq!(two.b.status().mode, GateMode::Database, "its record told it");
    assert!(!two.is_admitted(&two.b).await && !two.is_admitted(&two.a).await);
    // And vice versa: A returns, B still uses the database.
    two.a.move_to(GateMode::Redis).await.unwrap().unwrap();
    assert!(!two.is_admitted(&two.b).await);
    assert_eq!(two.b.status().mode, GateMode::Redis);
    two.agree_on(5).await;
}

/// A is suspended between the admission and the record, for so long that its lease is taken for an orphan and its slot is given
/// to another call. When it resumes, its admission is over.
#[tokio::test]
async fn hole_3_06_an_admission_wakes_after_its_place_was_freed() {
    let two = Two::with(1, None).await;
    two.between.after_admission.close();
    let (late, ()) = tokio::join!(two.admit(&two.a), async {
        two.between.after_admission.somebody_stands().await;
        assert!(!two.is_admitted(&two.b).await, "it has a place");
        assert!(two.b.compare().await.unwrap().is_clean(), "it may yet come to its record");
        two.clock.advance_ms(GRACE_MS + 1);
        assert_eq!(two.b.compare().await.unwrap().orphans, 1);
        assert!(two.is_admitted(&two.b).await);
        two.between.after_admission.open();
    });
    assert!(matches!(late, Ok(Admission::Rejected(_))), "{late:?}");
    two.agree_on(1).await;
}

/// Redis admitted, and its answer was lost: nothing is dialled, and the slot is free again.
#[tokio::test]
async fn hole_3_09_an_admission_whose_answer_is_lost() {
    let two = Two::with(1, None).await;
    two.between.loses_answer.store(true, Ordering::Relaxed);
    let lost = two.admit(&two.a).await;
    assert!(matches!(lost, Err(AdmissionError::Gate(_))), "{lost:?}");
    assert_eq!(two.b.counts().await.unwrap().calls, 1, "it was made");
    two.agree_on(0).await;
    assert!(two.is_admitted(&two.b).await);
}

/// The same where calls are allowed in an outage: this one is dialled, so it counts.
#[tokio::test]
async fn hole_3_09_a_call_that_was_let_through_is_counted() {
    let two = Two::under(model::limits(1, None, OnOutage::Open)).await;
    two.between.loses_answer.store(true, Ordering::Relaxed);
    assert!(two.is_admitted(&two.a).await);
    two.agree_on(1).await;
    assert!(!two.is_admitted(&two.b).await);
}

/// A transition happens before A revokes its lost admission, and A's next one is made: only the lost one is revoked.
#[tokio::test]
async fn hole_3_09_what_is_taken_back_late_is_the_lost_admission_alone() {
    let two = Two::under(model::limits(1, None, OnOutage::Open)).await;
    two.between.loses_answer.store(true, Ordering::Relaxed);
    two.between.after_admission.close();
    let (is_admitted, ()) = tokio::join!(two.is_admitted(&two.a), async {
        two.between.after_admission.somebody_stands().await;
        two.b.move_to(GateMode::Redis).await.unwrap().unwrap();
        two.between.after_admission.open();
    });
    assert!(is_admitted);
    two.agree_on(1).await;
    assert!(!two.is_admitted(&two.b).await);
}

/// A call ends while A, which read it as open, fills the limiter: the release went to the previous key space, which nobody reads
/// any more.
#[tokio::test]
async fn hole_3_10_a_call_ends_during_the_rebuild() {
    let two = Two::with(2, None).await;
    let [first, second] = [two.admitted(&two.a).await, two.admitted(&two.b).await];
    two.between.before_filling.close();
    let (moved, ()) = tokio::join!(two.a.move_to(GateMode::Redis), async {
        two.between.before_filling.somebody_stands().await;
        two.apply(&two.b, &first, END).await;
        two.between.before_filling.open();
    });
    assert_eq!(moved.unwrap(), Some(2), "it was read as open");
    assert_eq!(two.a.counts().await.unwrap().calls, 1);
    // And one that ends after the rebuild, at a replica that does not know of it.
    two.apply(&two.b, &second, END).await;
    two.agree_on(0).await;
}

/// A call's state is in the store, not in Redis.
#[tokio::test]
async fn hole_3_11_a_live_call_outlives_a_wipe_as_a_live_call() {
    let two = Two::with(2, None).await;
    let call = two.admitted(&two.a).await;
    two.apply(&two.a, &call, Event::Reached(Phase::Live)).await;
    let before = two.world.stores[0].call(&call).await.unwrap().unwrap();
    two.world.wipe().await;
    two.b.move_to(GateMode::Redis).await.unwrap().unwrap();
    let after = two.world.stores[0].call(&call).await.unwrap().unwrap();
    assert_eq!((after.phase, after.deadline_at), (Phase::Live, before.deadline_at));
    two.agree_on(1).await;
}

/// A wipe refills no rate, and requests wait until the limiter is rebuilt.
#[tokio::test]
async fn hole_3_13_a_wipe_gives_no_tokens_back() {
    let rate = Rate { count: 3, window_ms: 60_000 };
    let two = Two::with(100, Some(rate)).await;
    for replica in [&two.a, &two.b, &two.a] {
        let call = two.admitted(replica).await;
        two.apply(replica, &call, END).await;
    }
    two.world.wipe().await;
    let (answer, ()) = tokio::join!(two.admit(&two.a), async {
        until("it is missed", async || two.a.0.needs_rebuild.load(Ordering::Relaxed)).await;
        two.b.move_to(GateMode::Redis).await.unwrap().unwrap();
    });
    let Ok(Admission::Rejected(full)) = answer else { panic!("{answer:?}") };
    assert_eq!((full.bound, full.free_in_ms), (Bound::Rate(rate), Some(60_101)));
    two.clock.advance_ms(60_101);
    assert!(two.is_admitted(&two.b).await);
    two.agree_on(1).await;
}

/// Redis loses its data while nothing is decided: the comparison notices.
#[tokio::test]
async fn a_wipe_between_decisions_is_noticed_by_the_comparison() {
    let two = Two::with(2, None).await;
    two.admitted(&two.a).await;
    two.world.wipe().await;
    two.a.compare().await.unwrap_err();
    assert!(two.a.still_needs_rebuild().await);
    two.a.move_to(GateMode::Redis).await.unwrap().unwrap();
    assert!(!two.a.still_needs_rebuild().await);
    two.agree_on(1).await;
}

/// A database that was restored from a backup is behind what Redis has published.
#[tokio::test]
async fn a_database_behind_redis_passes_it_in_two_moves() {
    let two = Two::with(2, None).await;
    two.between.redis.rebuild(1_000, &[], &[]).await.unwrap();
    two.b.move_to(GateMode::Redis).await.unwrap().unwrap();
    assert!(two.b.still_needs_rebuild().await, "Redis has a later epoch");
    two.b.move_to(GateMode::Redis).await.unwrap().unwrap();
    assert!(!two.b.still_needs_rebuild().await);
    assert_eq!(two.world.stores[0].gate_state().await.unwrap().epoch, 1_001);
    assert!(two.is_admitted(&two.b).await);
    two.hear(&two.a).await;
    two.agree_on(1).await;
}

/// The database failed over to a standby that lacked the latest epoch, which this process and Redis know: nothing is decided under
/// an epoch that the database does not hold, no admission waits for ever, and the next epoch is later than all.
#[tokio::test]
async fn a_database_that_went_back_an_epoch_is_passed() {
    let two = Two::with(2, None).await;
    let stored = two.world.stores[0].gate_state().await.unwrap();
    let lost = GateState { epoch: stored.epoch + 1, ..stored };
    two.between.redis.rebuild(lost.epoch, &[], &[]).await.unwrap();
    two.a.adopt_epoch(lost);
    let refused = two.admit(&two.a).await;
    assert!(matches!(refused, Err(AdmissionError::Gate(_))), "{refused:?}");
    two.a.heartbeat().await.unwrap();
    assert_eq!(two.a.state().epoch, stored.epoch);
    assert!(two.a.still_needs_rebuild().await);
    two.a.move_to(GateMode::Redis).await.unwrap().unwrap();
    assert!(two.a.state().epoch > lost.epoch && two.is_admitted(&two.a).await);
    two.hear(&two.b).await;
    two.agree_on(1).await;
}

/// A call is recorded, but Redis was not told before another replica rebuilt it under other limits: those apply.
#[tokio::test]
async fn hole_3_14_what_redis_has_yet_to_be_told_counts_by_the_limits_of_today() {
    let two = Two::with(3, None).await;
    two.world.wipe().await;
    let exists = NewCall { origin: Origin::Foreign, ..two.new_call() };
    let policy_guard = two.a.hold_policy().await;
    assert_eq!(two.a.adopt(&policy_guard, exists.clone()).await.unwrap(), InsertOutcome::New(None));
    drop(policy_guard);
    assert_eq!(two.a.status().waiting, 1);
    let tomorrow = model::policy(1);
    two.b.swap(tomorrow.clone(), || {}).await.unwrap();
    two.agree_on(1).await;
    let held = two.between.held(two.b.state().epoch).await.unwrap();
    assert_eq!(held[0].keys, keys(&tomorrow.bindings(&exists.attributes)));
}
