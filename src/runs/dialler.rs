//! The dialler of a replica: it settles jobs whose calls are over, shares free slots among the runs that wait, claims jobs and places
//! their calls. It sleeps until a call ends, a job is due or somebody changes a run.
//!
//! A replica dials when the end of a call comes to it: the slot goes from hand to hand without a word to the others. Where several
//! share the limits each hands on as many slots as calls ended at it, so that they do not all ask for the same ones. Whoever misses an
//! end, does not dial, or has died, is made up for by a look at everything: `RECHECK`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use serde_json::{Map, Value};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};
use ulid::Ulid;

use super::bells::{Bells, Hears, Round};
use super::decide::{Recent, after, is_failure};
use super::fair::{Lane, share};
use super::load::no_public_host;
use super::sift::sift;
use super::spec::{Plan, Spec};
use super::{MayDial, Runs, may_dial};
use crate::admission::LimitExceeded;
use crate::call::Outcome;
use crate::calls::Calls;
use crate::calls::outbound::job::{JobPlaced, JobTerms, reserve};
use crate::clock::UnixMs;
use crate::failpoint;
use crate::ids::CallId;
use crate::policy::{Binding, Bound, Scope};
use crate::store::runs::{Claim, DueRun, Job, JobState, RunChange, RunState, Settle};
use crate::store::{Result, Store};

/// How long a run that waits for a slot is left alone, if no call ends here.
const RECHECK: Duration = Duration::from_millis(300);
/// How often runs are looked for that were made, or became due, elsewhere.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often claims of the dead are looked for.
const RECOVER_EVERY: Duration = Duration::from_secs(2);
/// A claim that is younger than this, in milliseconds, is not taken for one of the dead: its replica may not have been heard yet.
const CLAIM_YOUNG_MS: i64 = 5_000;
/// A call that was never made is settled by who placed it, who knows why; after this, in milliseconds, by anybody.
const WHY_WITHIN_MS: i64 = 10_000;
/// Jobs that are settled at once, and claimed in one round.
const SETTLED: u32 = 500;
const ROUND: u32 = 64;
/// The pause after the store, or whoever admits, was away; and of a job whose provider could not be reached, in milliseconds.
const AWAY: Duration = Duration::from_secs(1);
const UNREACHABLE_MS: i64 = 5_000;

/// A run's plan as it was last read.
type Plans = HashMap<String, Arc<Plan>>;

/// What the tasks that place calls tell the dialler.
#[derive(Default)]
struct Shared {
    /// The last calls of each run.
    recent: HashMap<String, Recent>,
    /// Runs whose provider takes no calls until then.
    held: HashMap<String, UnixMs>,
    /// Runs that a rate has held back: they try one job at a time.
    paced: HashSet<String>,
}

struct Dialler {
    runs: Runs,
    shared: Arc<Mutex<Shared>>,
    plans: Plans,
    /// When each run was served last.
    served: HashMap<String, u64>,
    turns: u64,
    /// Runs of which the log says that they wait.
    waiting: HashSet<String>,
    /// No run was running at the last look.
    is_idle: bool,
    recovered: Option<Instant>,
}

/// A run that has something to dial now.
struct Due {
    one: DueRun,
    plan: Arc<Plan>,
    reserve: u32,
    bindings: Vec<Binding>,
}

/// What came of the jobs of a run that were claimed together.
struct Dialled {
    run: String,
    admitted: u32,
    /// They wait for something else than a slot, or will never be dialled.
    passed_over: u32,
    /// One may not be called yet.
    is_postponed: bool,
    full: Option<LimitExceeded>,
}

/// What the placing of a job tells before its end.
enum Signal {
    Admitted,
    LimitExceeded(LimitExceeded),
    /// It may not be called yet.
    Postponed,
    Other,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Dials until stopped. `newest` is the running generation, with how its runs are dialled.
pub async fn run(newest: impl Fn() -> (Calls, Runs) + Send, stop: CancellationToken) {
    let (calls, runs) = newest();
    let mut bells = Bells::new(&calls.lifecycle.hub, runs.wake.clone());
    let mut dialler = Dialler {
        runs,
        shared: Arc::default(),
        plans: Plans::new(),
        served: HashMap::new(),
        turns: 0,
        waiting: HashSet::new(),
        is_idle: true,
        recovered: None,
    };
    let mut round = Round::Look;
    loop {
        let (calls, runs) = newest();
        dialler.runs = runs;
        let pause = match dialler.runs.settings.dials {
            false => LOOK_EVERY,
            true => dialler.round(&calls, &round).boxed().await.unwrap_or_else(|error| {
                debug!(%error, "failed to look after runs");
                AWAY
            }),
        };
        bells.rest(&round, pause);
        let hears = match dialler.runs.settings.dials && !dialler.is_idle {
            false => Hears::NoEnds,
            true if calls.lifecycle.capacity.is_shared() => Hears::AmongOthers,
            true => Hears::Alone,
        };
        round = tokio::select! {
            () = stop.cancelled() => return,
            round = bells.next(hears) => round,
        };
    }
}

impl Dialler {
    /// Does what there is to do; for how long there will be nothing.
    async fn round(&mut self, calls: &Calls, round: &Round) -> Result<Duration> {
        let (store, now_ms) = (&calls.lifecycle.store, calls.lifecycle.clock.now_ms());
        let (ended, slots) = match round {
            Round::Look => (None, ROUND),
            Round::HandOn(ended) => (Some(ended.clone()), u32::try_from(ended.len()).unwrap_or(ROUND).min(ROUND)),
        };
        let settled = self.settle(calls, ended, now_ms).await?;
        if let Round::Look = round {
            self.recover(calls, now_ms).await?;
        }
        let all = store.due_runs().await?;
        self.is_idle = all.is_empty();
        calls.lifecycle.metrics.runs_running(all.len());
        self.plans.retain(|run, _| all.iter().any(|one| one.run.id == *run));
        self.waiting.retain(|run| all.iter().any(|one| one.run.id == *run));
        self.served.retain(|run, _| all.iter().any(|one| one.run.id == *run));
        {
            let mut shared = lock(&self.shared);
            shared.held.retain(|_, until| *until > now_ms);
            shared.recent.retain(|run, _| all.iter().any(|one| one.run.id == *run));
            shared.paced.retain(|run| all.iter().any(|one| one.run.id == *run));
        }
        for run in if all.iter().any(|one| one.next_due.is_none() && one.open == 0) {
            store.finish_runs(now_ms, calls.lifecycle.tell).await?
        } else {
            vec![]
        } {
            info!(run, "a run is done");
        }
        let (mut dues, mut next_ms) = (vec![], i64::MAX);
        for one in all {
            let Some(at) = one.next_due.map(|at| at.max(one.run.start_at)) else { continue };
            let at = at.max(lock(&self.shared).held.get(&one.run.id).copied().unwrap_or(0));
            if at > now_ms {
                next_ms = next_ms.min(at);
            } else if let Some(due) = self.due(calls, one, now_ms).await? {
                dues.push(due);
            }
        }
        let until_next = Duration::from_millis(next_ms.saturating_sub(now_ms).unsigned_abs()).min(LOOK_EVERY);
        if dues.is_empty() {
            return Ok(until_next);
        }
        let Ok(counts) = calls.lifecycle.capacity.fresh_counts().await else { return Ok(AWAY) };
        let mut room = HashMap::new();
        for binding in dues.iter().flat_map(|due| &due.bindings) {
            if let Bound::Concurrent(bound) = binding.bound {
                let free = bound.saturating_sub(counts.by_key.get(&binding.key).copied().unwrap_or(0));
                room.entry(binding.key.clone()).and_modify(|least: &mut u32| *least = free.min(*least)).or_insert(free);
            }
        }
        let lanes: Vec<Lane> = dues.iter().map(|due| self.lane(due)).collect();
        let shares = share(&lanes, slots, &mut room);
        self.say_who_waits(&dues, &shares, &counts.by_key);
        let dials = dues.iter().zip(&shares).filter(|(_, share)| **share > 0);
        let dialled = join_all(dials.map(|(due, share)| self.dial(calls, due, *share, now_ms))).await;
        let mut goes_on = settled >= SETTLED || shares.iter().sum::<u32>() >= ROUND;
        let (mut full, mut closed) = (vec![], vec![]);
        for one in dialled {
            let Dialled { run, admitted, passed_over, is_postponed, full: of } = one?;
            if is_postponed {
                closed.push(run.clone());
            }
            if admitted > 0 {
                self.turns += 1;
                self.served.insert(run.clone(), self.turns);
                self.waiting.remove(&run);
            }
            // A job that could not be dialled leaves its slot to the next one; and who is paced takes one step after the other.
            let paces = || dues.iter().any(|due| due.one.run.id == run && due.plan.rate.is_some());
            goes_on |= of.is_none() && (passed_over > 0 || (admitted > 0 && paces()));
            full.extend(of.map(|full| (run, full)));
        }
        for (run, full) in full {
            if let Some(due) = dues.iter().find(|due| due.one.run.id == run) {
                self.say_waiting(due, &full.limit, full.scope, full.current, full.bound);
            }
        }
        for due in dues.iter().filter(|due| closed.contains(&due.one.run.id)) {
            sift(calls, &due.plan.spec, &due.one.run.id, now_ms).await?;
            goes_on = true;
        }
        Ok(if goes_on { Duration::ZERO } else { RECHECK.min(until_next.max(Duration::from_millis(1))) })
    }

    /// Settles jobs whose calls are over, of all or of these; how many.
    async fn settle(&mut self, calls: &Calls, of: Option<Vec<CallId>>, now_ms: UnixMs) -> Result<u32> {
        let store = &calls.lifecycle.store;
        let ended = store.ended_jobs(of, now_ms - WHY_WITHIN_MS, SETTLED).await?;
        if ended.is_empty() {
            return Ok(0);
        }
        let (mut specs, mut settles) = (BTreeMap::<String, Spec>::new(), vec![]);
        for one in &ended {
            let id = &one.job.run;
            if !specs.contains_key(id) {
                let Some(spec) = self.spec(store, id).await? else { continue };
                specs.insert(id.clone(), spec);
            }
            let Some(spec) = specs.get(id) else { continue };
            let settle = after(one, spec, one.run_state, now_ms);
            info!(run = id, outcome = %one.outcome, again = settle.state == JobState::Queued, "Call completed for lead={}", one.job.seq);
            calls.lifecycle.metrics.run_call(one.outcome.as_str());
            settles.push(settle);
        }
        let settled = store.settle_jobs(settles, now_ms).await?;
        for one in ended.iter().filter(|one| one.run_state == RunState::Running) {
            if let Some(spec) = specs.get(&one.job.run) {
                let why = || format!("the last call ended as {}", one.outcome);
                note(calls, &self.shared, &one.job.run, is_failure(one.outcome), why, &spec.breaker).await;
            }
        }
        Ok(u32::try_from(settled).unwrap_or(SETTLED))
    }

    /// What a run asks for.
    async fn spec(&self, store: &Arc<dyn Store>, run: &str) -> Result<Option<Spec>> {
        if let Some(plan) = self.plans.get(run) {
            return Ok(Some(plan.spec.clone()));
        }
        let run = store.run_of(run).await?;
        Ok(run.and_then(|run| serde_json::from_str(&run.spec).ok()))
    }

    async fn recover(&mut self, calls: &Calls, now_ms: UnixMs) -> Result<()> {
        if self.recovered.is_some_and(|at| at.elapsed() < RECOVER_EVERY) {
            return Ok(());
        }
        self.recovered = Some(Instant::now());
        let (store, capacity) = (&calls.lifecycle.store, &calls.lifecycle.capacity);
        let mut live = if capacity.is_shared() { capacity.role().live } else { vec![] };
        if capacity.is_shared() && live.is_empty() {
            // Nobody has been heard yet.
            return Ok(());
        }
        live.push(capacity.replica().to_owned());
        // A process that has the store alone knows that whoever claimed before it is gone.
        let before = if capacity.is_shared() { now_ms - CLAIM_YOUNG_MS } else { now_ms };
        let recovered = store.recover_jobs(live, before, now_ms).await?;
        if recovered > 0 {
            info!(jobs = recovered, "claims of replicas that are no more were settled");
        }
        for run in store.resume_runs(now_ms, calls.lifecycle.tell).await? {
            info!(run, "a run that was paused for its failures goes on");
        }
        Ok(())
    }

    /// A run that is due, ready to be dialled. `None`: it cannot be.
    async fn due(&mut self, calls: &Calls, one: DueRun, now_ms: UnixMs) -> Result<Option<Due>> {
        let plan = match self.plans.get(&one.run.id) {
            Some(plan) => plan.clone(),
            None => match read(&one.run.spec, calls) {
                Ok(plan) => Arc::new(plan),
                Err(why) => return fail(calls, &one.run.id, &why, now_ms).await.map(|()| None),
            },
        };
        // A reload may have changed its account, or taken the public URL away.
        let plan = match calls.account(&plan.spec.account) {
            Some(account) if Arc::ptr_eq(account, &plan.account) => plan,
            _ => match read(&one.run.spec, calls) {
                Ok(plan) => Arc::new(plan),
                Err(why) => return fail(calls, &one.run.id, &why, now_ms).await.map(|()| None),
            },
        };
        if let Some(why) = no_public_host(&plan, calls) {
            return fail(calls, &one.run.id, why, now_ms).await.map(|()| None);
        }
        self.plans.insert(one.run.id.clone(), plan.clone());
        let policy = calls.lifecycle.policy.load();
        let mut bindings = policy.bindings(&plan.facts(calls));
        let of_business = || policy.business(&plan.spec.business)?.reserve_for_direct;
        let slots =
            plan.spec.reserve_for_direct.or_else(of_business).unwrap_or(self.runs.settings.reserve_for_direct);
        reserve(&mut bindings, slots);
        Ok(Some(Due { one, plan, reserve: slots, bindings }))
    }

    fn lane(&self, due: &Due) -> Lane {
        let open_max = due.plan.spec.concurrency.unwrap_or(u32::MAX);
        let at_once = match due.plan.rate {
            _ if lock(&self.shared).paced.contains(&due.one.run.id) => 1,
            Some(rate) => rate.count.max(1),
            None => u32::MAX,
        };
        let concurrent = due.bindings.iter().filter(|b| matches!(b.bound, Bound::Concurrent(_)));
        Lane {
            business: due.one.run.business.clone(),
            weight: due.plan.spec.weight,
            open: due.one.open,
            served: self.served.get(&due.one.run.id).copied().unwrap_or(0),
            open_max: open_max.min(due.one.open.saturating_add(at_once)),
            keys: concurrent.map(|b| b.key.clone()).collect(),
        }
    }

    /// Says of runs that were given nothing which limit they wait for.
    fn say_who_waits(&mut self, dues: &[Due], shares: &[u32], held: &BTreeMap<String, u32>) {
        for (due, _) in dues.iter().zip(shares).filter(|(_, share)| **share == 0) {
            let full = due.bindings.iter().find_map(|b| match b.bound {
                Bound::Concurrent(n) => {
                    let current = held.get(&b.key).copied().unwrap_or(0);
                    (current >= n).then(|| (b.limit.clone(), b.scope, current))
                }
                Bound::Rate(_) => None,
            });
            let bound = |limit: &str| due.bindings.iter().find(|b| *b.limit == *limit).map(|b| b.bound);
            if let Some((limit, scope, current)) = full
                && let Some(bound) = bound(&limit)
            {
                self.say_waiting(due, &limit, scope, current, bound);
            }
        }
    }

    /// Once, and not at every look.
    fn say_waiting(&mut self, due: &Due, limit: &str, scope: Scope, current: u32, bound: Bound) {
        let Bound::Concurrent(n) = bound else { return };
        let run = &due.one.run;
        if !self.waiting.insert(run.id.clone()) {
            return;
        }
        match scope {
            Scope::Business => {
                info!(run = run.id, limit, "Business {} at max ({current}/{n}), waiting...", run.business)
            }
            _ => info!(run = run.id, limit, "Limit {limit} at max ({current}/{n}), waiting..."),
        }
    }

    /// Claims jobs of a run and places their calls.
    async fn dial(&self, calls: &Calls, due: &Due, share: u32, now_ms: UnixMs) -> Result<Dialled> {
        let run = &due.one.run.id;
        let claim = Claim {
            run: run.clone(),
            limit: share,
            open_max: due.plan.spec.concurrency.unwrap_or(u32::MAX),
            token: Ulid::new().to_string().to_lowercase(),
            replica: calls.lifecycle.capacity.replica().to_owned(),
            now_ms,
        };
        let jobs = calls.lifecycle.store.claim_jobs(claim).await?;
        failpoint::hit("run.claimed").await;
        let placing: Vec<oneshot::Receiver<Signal>> = jobs
            .into_iter()
            .map(|job| {
                let (signal, told) = oneshot::channel();
                let place = Place {
                    calls: calls.clone(),
                    runs: self.runs.clone(),
                    shared: self.shared.clone(),
                    plan: due.plan.clone(),
                    reserve: due.reserve,
                };
                calls.tasks.spawn(async move { place.job(job, signal).boxed().await });
                told
            })
            .collect();
        let mut dialled = Dialled { run: run.clone(), admitted: 0, passed_over: 0, is_postponed: false, full: None };
        for told in join_all(placing).await {
            match told {
                Ok(Signal::Admitted) => dialled.admitted += 1,
                Ok(Signal::LimitExceeded(of)) => dialled.full = dialled.full.or(Some(of)),
                Ok(Signal::Postponed) => dialled.is_postponed = true,
                Ok(Signal::Other) | Err(_) => dialled.passed_over += 1,
            }
        }
        Ok(dialled)
    }
}

fn read(spec: &str, calls: &Calls) -> std::result::Result<Plan, String> {
    Plan::new(serde_json::from_str(spec).map_err(|e| e.to_string())?, calls)
}

/// Ends a run that cannot be dialled.
async fn fail(calls: &Calls, run: &str, why: &str, now_ms: UnixMs) -> Result<()> {
    let change = RunChange {
        reason: Some(why.to_owned()),
        ..RunChange::of(run, &[RunState::Running, RunState::Paused], RunState::Failed, now_ms)
    };
    if calls.lifecycle.store.move_run(change, calls.lifecycle.tell).await? {
        error!(run, why, "[BulkCall] Run {run} FAILED: {why}");
    }
    Ok(())
}

/// Notes how a call of a run went, and pauses the run if too many failed.
async fn note(
    calls: &Calls,
    shared: &Mutex<Shared>,
    run: &str,
    failed: bool,
    why: impl FnOnce() -> String,
    breaker: &super::spec::Breaker,
) {
    let failures = lock(shared).recent.entry(run.to_owned()).or_default().note(failed, breaker);
    let Some(failures) = failures else { return };
    let now_ms = calls.lifecycle.clock.now_ms();
    let reason = format!("{failures} of the last {} calls failed; {}", breaker.window, why());
    let change = RunChange {
        reason: Some(reason.clone()),
        resume_at: breaker.resume_after_secs.map(|secs| now_ms + i64::from(secs) * 1000),
        ..RunChange::of(run, &[RunState::Running], RunState::Paused, now_ms)
    };
    match calls.lifecycle.store.move_run(change, calls.lifecycle.tell).await {
        Ok(true) => {
            calls.lifecycle.metrics.run_breaker();
            warn!(run, reason, "a run is paused: its calls fail");
        }
        Ok(false) => {}
        Err(error) => warn!(run, %error, "failed to pause a run whose calls fail"),
    }
}

/// Places one job.
struct Place {
    calls: Calls,
    runs: Runs,
    shared: Arc<Mutex<Shared>>,
    plan: Arc<Plan>,
    reserve: u32,
}

impl Place {
    async fn job(self, job: Job, signal: oneshot::Sender<Signal>) {
        let lead = serde_json::from_str::<Map<String, Value>>(&job.lead).unwrap_or_default();
        let now_ms = self.calls.lifecycle.clock.now_ms();
        match may_dial(&self.calls.destinations, &self.plan.spec, &job.number, &lead, now_ms) {
            MayDial::Now => {}
            MayDial::NotBefore(at) => {
                self.settle(Settle { due_at: at, ..queued(&job) }).await;
                let _ = signal.send(Signal::Postponed);
                return;
            }
            MayDial::Never { code, why } => {
                return self.settle(failed(&job, format!("{code}: {why}"))).await;
            }
        }
        let turn = u64::try_from(job.seq).unwrap_or(0) + u64::from(job.tries);
        let order = match self.plan.order(&self.calls, &job.run, turn, &job.number, &lead) {
            Ok(order) => Arc::new(order),
            Err(why) => return self.settle(failed(&job, why)).await,
        };
        let (admitted, is_admitted) = oneshot::channel();
        let bindings = self.plan.rate.map(|rate| Binding {
            limit: "run.rate".into(),
            scope: Scope::Named,
            key: format!("run.rate|{}", job.run),
            bound: Bound::Rate(rate),
        });
        let terms =
            JobTerms { alias: job.alias(), reserve: self.reserve, bindings: bindings.into_iter().collect(), admitted };
        let bind = async {
            let Ok(call) = is_admitted.await else { return Err(signal) };
            let _ = signal.send(Signal::Admitted);
            info!(run = job.run, %call, "Started call for lead={}", job.seq);
            self.settle(calling(&job, &call)).await;
            Ok(call)
        };
        let (placed, bound) = tokio::join!(self.calls.outbound.place_job(order, terms).boxed(), bind);
        let (bound, signal) = match bound {
            Ok(call) => (Job { call: Some(call), ..job }, None),
            Err(signal) => (job, Some(signal)),
        };
        let mut told = Signal::Other;
        let result = match &placed {
            JobPlaced::Called(_) => "called",
            JobPlaced::Known(call) => {
                self.settle(calling(&bound, call)).await;
                "known"
            }
            JobPlaced::LimitExceeded(full) => {
                // A rate says when it has a token; a slot is told of when it is free.
                if let Bound::Rate(_) = full.bound {
                    let mut shared = lock(&self.shared);
                    shared.held.insert(bound.run.clone(), now_ms + full.free_in_ms.unwrap_or(1).max(1));
                    shared.paced.insert(bound.run.clone());
                }
                told = Signal::LimitExceeded(full.clone());
                self.settle(queued(&bound)).await;
                "full"
            }
            JobPlaced::Away(why) => {
                debug!(run = bound.run, why, "nobody can admit just now");
                lock(&self.shared).held.insert(bound.run.clone(), now_ms + 1_000);
                self.settle(queued(&bound)).await;
                "away"
            }
            JobPlaced::ProviderLimit { wait_secs } => {
                let due_at = now_ms + i64::from(*wait_secs) * 1000;
                lock(&self.shared).held.insert(bound.run.clone(), due_at);
                // In its place: those behind it are not dialled before it.
                self.settle(Settle { tries: bound.tries + 1, ..queued(&bound) }).await;
                "provider_limit"
            }
            JobPlaced::NotSent(why) => {
                self.settle(Settle { tries: bound.tries + 1, due_at: now_ms + UNREACHABLE_MS, ..queued(&bound) }).await;
                self.failed(&bound.run, why).await;
                "not_sent"
            }
            JobPlaced::Rejected(why) => {
                let attempts = bound.attempts + 1;
                self.settle(Settle { attempts, tries: bound.tries + 1, ..failed(&bound, why.clone()) }).await;
                self.failed(&bound.run, why).await;
                "rejected"
            }
        };
        self.calls.lifecycle.metrics.run_dial(result);
        if let Some(signal) = signal {
            let _ = signal.send(told);
        }
        if !matches!(placed, JobPlaced::Called(_) | JobPlaced::LimitExceeded(_)) {
            self.runs.wake.notify_one();
        }
    }

    async fn failed(&self, run: &str, why: &str) {
        note(&self.calls, &self.shared, run, true, || why.to_owned(), &self.plan.spec.breaker).await;
    }

    /// Writes what became of a job, now or when the store is back: nobody else will, while this replica lives.
    async fn settle(&self, settle: Settle) {
        let store: &Arc<dyn Store> = &self.calls.lifecycle.store;
        loop {
            let now_ms = self.calls.lifecycle.clock.now_ms();
            match store.settle_jobs(vec![settle.clone()], now_ms).await {
                Ok(_) => return,
                Err(error) => {
                    warn!(run = settle.run, job = settle.seq, %error, "failed to record what became of a job; it is tried again");
                    tokio::time::sleep(AWAY).await;
                }
            }
        }
    }
}

fn queued(job: &Job) -> Settle {
    Settle { state: JobState::Queued, new_call: None, ..Settle::of(job) }
}

fn calling(job: &Job, call: &CallId) -> Settle {
    Settle { state: JobState::Calling, new_call: Some(call.clone()), ..Settle::of(job) }
}

fn failed(job: &Job, why: String) -> Settle {
    Settle { state: JobState::Done, outcome: Some(Outcome::Failed), error: Some(why), ..Settle::of(job) }
}
