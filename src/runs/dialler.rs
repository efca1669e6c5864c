//! The dialler of a replica: settles jobs whose calls have ended, shares free slots among waiting runs, claims jobs and places their
//! calls. It sleeps until a call ends, a job is due or a run changes.
//!
//! The replica at which a call ends dials the next job, without a message to the others. Where several share the limits, each hands over
//! as many slots as calls ended at it, so that they do not ask for the same ones. The slot of a replica that died, does not dial or
//! missed the end is found by the others once they are told of the end, or after `WAITING_POLL_INTERVAL`.

mod settle;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, error, info, warn};

use super::Runs;
use super::claims::Claims;
use super::fair::{Lane, share};
use super::feedback::Feedback;
use super::load::no_public_host;
use super::placement::{FullLimits, Placement, PlacementResult};
use super::plan::Plan;
use super::postpone::postpone_closed;
use super::wakeups::{OnEnd, Round, Wakeups, notify_others};
use crate::calls::Calls;
use crate::clock::UnixMs;
use crate::failpoint;
use crate::policy::decision::LimitExceeded;
use crate::policy::{Binding, Bound, Scope};
use crate::store::Result;
use crate::store::runs::{Claim, DueRun, Run, RunChange, RunState};

/// The interval between searches for free slots, if no call ends here.
const WAITING_POLL_INTERVAL: Duration = Duration::from_millis(300);
/// The interval between reads of the running runs.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum jobs settled at once, and claimed in one round.
const SETTLED_MAX: u32 = 500;
const CLAIMED_MAX: u32 = 64;
/// The pause of a run that this replica cannot dial, in milliseconds.
const HOLD_PAUSE_MS: i64 = 5_000;
/// The pause of a run whose number or agent is at a limit that the shares of runs do not know of, in milliseconds.
const UNSHARED_LIMIT_PAUSE_MS: i64 = 300;
/// The pause after an error of the store or the limiter.
const RETRY_DELAY: Duration = Duration::from_secs(1);

struct Dialler {
    runs: Runs,
    feedback: Arc<Feedback>,
    claims: Arc<Claims>,
    /// Plans by run.
    plans: HashMap<String, Arc<Plan>>,
    /// The turn in which each run was served last.
    served: HashMap<String, u64>,
    turns: u64,
    /// Runs whose wait for a slot has been logged.
    waiting: HashSet<String>,
    /// Runs that cannot be dialled here, and why, as has been logged.
    held: HashMap<String, String>,
    /// Runs whose spec this version cannot read: each is read and told once.
    unreadable: HashSet<String>,
    /// There was no running run in the last round.
    is_idle: bool,
    recovered: Option<Instant>,
}

/// A run with due jobs.
struct Due {
    one: DueRun,
    plan: Arc<Plan>,
    /// Slots that each concurrency limit keeps free of its calls.
    reserve: u32,
    bindings: Vec<Binding>,
}

/// The result of one claim.
struct Dialled<'d> {
    due: &'d Due,
    admitted: u32,
    /// Jobs that failed, or wait for something other than a slot.
    passed_over: u32,
    /// A job was postponed.
    is_postponed: bool,
    full: Option<LimitExceeded>,
    /// The reason why no job can be dialled at present, whatever its lead.
    held: Option<String>,
}

/// Dials until stopped. `newest` returns the current generation and its settings.
pub async fn run(newest: impl Fn() -> (Calls, Runs) + Send, stop: CancellationToken) {
    let (calls, runs) = newest();
    let mut wakeups = Wakeups::new(&calls.lifecycle.hub, runs.wake.clone());
    let mut dialler = Dialler {
        runs,
        feedback: Arc::default(),
        claims: Arc::default(),
        plans: HashMap::new(),
        served: HashMap::new(),
        turns: 0,
        waiting: HashSet::new(),
        held: HashMap::new(),
        unreadable: HashSet::new(),
        is_idle: true,
        recovered: None,
    };
    let mut round = Round::Full;
    let has_waiting_work = Arc::new(AtomicBool::new(false));
    let (hub, changed) = (calls.lifecycle.hub.clone(), dialler.runs.wake_others.clone());
    let notifying = notify_others(hub, changed, has_waiting_work.clone(), calls.lifecycle.store.clone(), stop.clone());
    // Not among the tasks that a drain waits for: it ends with this one.
    let _notifying = AbortOnDropHandle::new(tokio::spawn(notifying));
    loop {
        let (calls, runs) = newest();
        dialler.runs = runs;
        let pause = match dialler.runs.settings.dials {
            false => {
                // A reload may have taken the dialling away while claims had no answer yet.
                if let Err(error) = dialler.recover(&calls, calls.lifecycle.clock.now_ms()).boxed().await {
                    debug!(%error, "failed to recover lost claims; retrying");
                }
                POLL_INTERVAL
            }
            true => dialler.round(&calls, &round).boxed().await.unwrap_or_else(|error| {
                debug!(%error, "failed in a round of settling, claiming and dialling jobs; retrying");
                RETRY_DELAY
            }),
        };
        wakeups.set_pause(&round, pause);
        // A replica that does not dial does not know whether others have something to dial.
        has_waiting_work.store(!dialler.runs.settings.dials || !dialler.is_idle, Ordering::Relaxed);
        let on_end = match dialler.runs.settings.dials && !dialler.is_idle {
            false => OnEnd::Ignore,
            true if calls.lifecycle.admission.is_shared() => OnEnd::HandOver,
            true => OnEnd::FullRound,
        };
        round = tokio::select! {
            () = stop.cancelled() => return,
            round = wakeups.next(on_end) => round,
        };
    }
}

impl Dialler {
    /// One round: settle jobs, share the free slots among due runs, dial. Returns the pause until the next round.
    async fn round(&mut self, calls: &Calls, round: &Round) -> Result<Duration> {
        let now_ms = calls.lifecycle.clock.now_ms();
        let (ended, slots) = match round {
            Round::Full => (None, CLAIMED_MAX),
            Round::HandOver(ended) => {
                (Some(ended.clone()), u32::try_from(ended.len()).unwrap_or(u32::MAX).min(CLAIMED_MAX))
            }
        };
        let settled = self.settle(calls, ended, now_ms).await?;
        if *round == Round::Full {
            self.recover(calls, now_ms).await?;
        }
        let running = calls.lifecycle.store.due_runs().await?;
        self.is_idle = running.is_empty();
        calls.lifecycle.metrics.runs_running(running.len());
        self.forget_all_but(&running, now_ms);
        if running.iter().any(|one| one.next_due.is_none() && one.open == 0 && !one.has_waiting) {
            for run in calls.lifecycle.store.finish_runs(now_ms, calls.lifecycle.notice).await? {
                info!(run, "run completed");
            }
        }
        let (due, next_ms) = self.due(calls, running, now_ms).await?;
        let until_next = Duration::from_millis(next_ms.saturating_sub(now_ms).unsigned_abs()).min(POLL_INTERVAL);
        if due.is_empty() {
            return Ok(until_next);
        }
        let Ok(in_use) = calls.lifecycle.admission.fresh_counts().await else { return Ok(RETRY_DELAY) };
        let lanes: Vec<Lane> = due.iter().map(|due| self.lane(due)).collect();
        let shares = share(&lanes, slots, &mut free_slots(&due, &in_use.by_key));
        for (due, _) in due.iter().zip(&shares).filter(|(_, share)| **share == 0) {
            self.log_full_limit(due, &in_use.by_key);
        }
        let has_more = self.dial_all(calls, &due, &shares, now_ms).await?;
        Ok(match has_more || settled >= SETTLED_MAX || shares.iter().sum::<u32>() >= CLAIMED_MAX {
            true => Duration::ZERO,
            false => WAITING_POLL_INTERVAL.min(until_next.max(Duration::from_millis(1))),
        })
    }

    fn forget_all_but(&mut self, running: &[DueRun], now_ms: UnixMs) {
        let running: HashSet<&str> = running.iter().map(|one| one.run.id.as_str()).collect();
        self.plans.retain(|run, _| running.contains(run.as_str()));
        self.served.retain(|run, _| running.contains(run.as_str()));
        self.waiting.retain(|run| running.contains(run.as_str()));
        self.held.retain(|run, _| running.contains(run.as_str()));
        self.feedback.retain(|run| running.contains(run), now_ms);
    }

    /// The runs that are due, and when the first of the others is. A run whose provider cannot call back fails. One that this
    /// replica cannot dial under its settings waits: another may, or a reload may set it right.
    async fn due(&mut self, calls: &Calls, running: Vec<DueRun>, now_ms: UnixMs) -> Result<(Vec<Due>, UnixMs)> {
        let (mut due, mut next_ms) = (vec![], UnixMs::MAX);
        for one in running {
            let is_due = one.next_due.is_some_and(|at| at <= now_ms);
            // Else its next job shows whether the reason still holds.
            if one.run.reason.is_some() && !is_due && self.plan(calls, &one).is_ok() {
                self.release(calls, &one.run).await?;
            }
            let Some(next_due) = one.next_due else { continue };
            let at = next_due.max(one.run.start_at).max(self.feedback.held_until(&one.run.id)).max(one.held_until);
            if at > now_ms {
                next_ms = next_ms.min(at);
                continue;
            }
            match self.plan(calls, &one) {
                Ok(plan) => {
                    if let Some(why) = no_public_host(&plan, calls) {
                        fail(calls, &one.run.id, why, now_ms).await?;
                        continue;
                    }
                    due.push(self.with_limits(calls, one, plan));
                }
                Err(why) => {
                    self.hold_back(calls, &one.run, &why, now_ms).await?;
                    next_ms = next_ms.min(now_ms + HOLD_PAUSE_MS);
                }
            }
        }
        Ok((due, next_ms))
    }

    /// Dials no job of a run for a while, for a reason that is not a lead's: it is logged once, and shown as the run's.
    async fn hold_back(&mut self, calls: &Calls, run: &Run, why: &str, now_ms: UnixMs) -> Result<()> {
        self.feedback.hold(&run.id, now_ms + HOLD_PAUSE_MS);
        if self.held.insert(run.id.clone(), why.to_owned()).is_none_or(|known| known != why) {
            warn!(
                run = run.id,
                business = run.business,
                why,
                "run held back: none of its jobs can be dialled at present"
            );
        }
        if run.reason.as_deref() != Some(why) {
            calls.lifecycle.store.explain_run(&run.id, Some(why)).await?;
        }
        Ok(())
    }

    /// A run is dialled, or waits for a limit alone: no reason is shown any more.
    async fn release(&mut self, calls: &Calls, run: &Run) -> Result<()> {
        let was_held = self.held.remove(&run.id).is_some();
        if was_held || run.reason.is_some() {
            calls.lifecycle.store.explain_run(&run.id, None).await?;
        }
        if was_held {
            info!(run = run.id, "run can be dialled again");
        }
        Ok(())
    }

    /// A run's plan under the settings in force: a reload may have changed its account.
    fn plan(&mut self, calls: &Calls, one: &DueRun) -> std::result::Result<Arc<Plan>, String> {
        let known = self.plans.get(&one.run.id).filter(|plan| {
            calls.account(&plan.spec.account).is_some_and(|account| Arc::ptr_eq(account, &plan.account))
        });
        let plan = match known {
            Some(plan) => plan.clone(),
            None => {
                let spec = serde_json::from_str(&one.run.spec).map_err(|error| error.to_string())?;
                let plan = Plan::new(spec, calls)?;
                self.feedback.forget_faults(&one.run.id);
                Arc::new(plan)
            }
        };
        plan.check(calls)?;
        self.plans.insert(one.run.id.clone(), plan.clone());
        Ok(plan)
    }

    fn with_limits(&self, calls: &Calls, one: DueRun, plan: Arc<Plan>) -> Due {
        let policy = calls.lifecycle.policy.load();
        let bindings = policy.bindings(&plan.attributes(calls));
        let of_business = || policy.business(&plan.spec.business)?.reserve_for_direct;
        let of_all = || self.runs.settings.reserve_for_direct;
        let has_turned_away = || bindings.iter().any(|one| calls.lifecycle.admission.has_turned_away(&one.key));
        let configured = plan.spec.reserve_for_direct.or_else(of_business).or_else(of_all);
        let reserve = configured.unwrap_or_else(|| u32::from(has_turned_away()));
        Due { one, plan, reserve, bindings }
    }

    fn lane(&self, due: &Due) -> Lane {
        let open_max = due.plan.spec.concurrency.unwrap_or(u32::MAX);
        let at_once = match due.plan.rate {
            _ if self.feedback.is_paced(&due.one.run.id) => 1,
            Some(rate) => rate.count.max(1),
            None => u32::MAX,
        };
        Lane {
            business: due.one.run.business.clone(),
            weight: due.plan.spec.weight,
            open: due.one.open,
            served: self.served.get(&due.one.run.id).copied().unwrap_or(0),
            open_max: open_max.min(due.one.open.saturating_add(at_once)),
            reserve: due.reserve,
            keys: due.concurrent().map(|(binding, _)| binding.key.clone()).collect(),
        }
    }

    /// Dials as many jobs of each run as its share says. Whether there is more to dial at once.
    async fn dial_all(&mut self, calls: &Calls, due: &[Due], shares: &[u32], now_ms: UnixMs) -> Result<bool> {
        let dials = due.iter().zip(shares).filter(|(_, share)| **share > 0);
        let dialled = join_all(dials.map(|(due, share)| self.dial(calls, due, *share, now_ms))).await;
        let dialled = dialled.into_iter().collect::<Result<Vec<_>>>()?;
        let mut has_more = false;
        for Dialled { due, admitted, passed_over, full, .. } in &dialled {
            let run = &due.one.run.id;
            if *admitted > 0 {
                self.turns += 1;
                self.served.insert(run.clone(), self.turns);
                self.waiting.remove(run);
            }
            match full {
                Some(full) => {
                    self.log_waiting(due, &full.limit, full.scope, full.current, full.bound);
                    let is_in_shares = due.bindings.iter().any(|binding| binding.limit == full.limit);
                    if matches!(full.bound, Bound::Concurrent(_)) && !is_in_shares {
                        // A limit of its number or agent, which no share knows of: others get the slot meanwhile.
                        self.feedback.hold(run, calls.lifecycle.clock.now_ms() + UNSHARED_LIMIT_PAUSE_MS);
                        has_more = true;
                    }
                }
                // A job that could not be dialled leaves its slot to the next one; a run with a rate takes one step after the other.
                None => {
                    let has_rate = due.plan.rate.is_some() || self.feedback.is_paced(run);
                    self.feedback.count_admitted(run, *admitted);
                    has_more |= *passed_over > 0 || (*admitted > 0 && has_rate);
                }
            }
        }
        for Dialled { due, admitted, held, .. } in &dialled {
            match held {
                Some(why) if *admitted == 0 => self.hold_back(calls, &due.one.run, why, now_ms).await?,
                _ => self.release(calls, &due.one.run).await?,
            }
        }
        for Dialled { due, .. } in dialled.iter().filter(|one| one.is_postponed) {
            postpone_closed(calls, &due.plan.spec, &due.one.run.id, now_ms).await?;
            has_more = true;
        }
        Ok(has_more)
    }

    /// Claims jobs of a run and places their calls.
    async fn dial<'d>(&self, calls: &Calls, due: &'d Due, share: u32, now_ms: UnixMs) -> Result<Dialled<'d>> {
        let held = self.claims.begin();
        let claim = Claim {
            run: due.one.run.id.clone(),
            limit: share,
            open_max: due.plan.spec.concurrency.unwrap_or(u32::MAX),
            token: held.token().to_owned(),
            replica: calls.lifecycle.admission.replica().to_owned(),
            now_ms,
        };
        let jobs = calls.lifecycle.store.claim_jobs(claim).await?;
        failpoint::hit("run.claimed").await;
        let (full, is_pool) = (Arc::<FullLimits>::default(), due.plan.spec.own_numbers.len() > 1);
        let admissions: Vec<oneshot::Receiver<PlacementResult>> = jobs
            .into_iter()
            .map(|job| {
                let (admission, is_admitted) = oneshot::channel();
                let placement = Placement {
                    calls: calls.clone(),
                    runs: self.runs.clone(),
                    feedback: self.feedback.clone(),
                    plan: due.plan.clone(),
                    reserve: due.reserve,
                    // Without a pool there is one number to ask for, which may be free by then.
                    full: if is_pool { full.clone() } else { Arc::default() },
                };
                let held = held.clone();
                calls.tasks.spawn(async move {
                    placement.place(job, admission).boxed().await;
                    drop(held);
                });
                is_admitted
            })
            .collect();
        let mut dialled = Dialled { due, admitted: 0, passed_over: 0, is_postponed: false, full: None, held: None };
        for admission in join_all(admissions).await {
            match admission {
                Ok(PlacementResult::Admitted) => dialled.admitted += 1,
                Ok(PlacementResult::LimitExceeded(full)) => dialled.full = dialled.full.or(Some(full)),
                Ok(PlacementResult::Postponed) => dialled.is_postponed = true,
                Ok(PlacementResult::Held(why)) => dialled.held = Some(why),
                Ok(PlacementResult::PassedOver) | Err(_) => dialled.passed_over += 1,
            }
        }
        Ok(dialled)
    }

    /// Logs which limit a run waits for that was given no slot.
    fn log_full_limit(&mut self, due: &Due, in_use: &BTreeMap<String, u32>) {
        let full = due.concurrent().find_map(|(binding, bound)| {
            let current = in_use.get(&binding.key).copied().unwrap_or(0);
            let is_full = current >= bound.saturating_sub(due.reserve);
            is_full.then(|| (binding.limit.clone(), binding.scope, current, Bound::Concurrent(bound)))
        });
        if let Some((limit, scope, current, bound)) = full {
            self.log_waiting(due, &limit, scope, current, bound);
        }
    }

    /// Logs once for each wait, and not in each round, that a run waits for a limit.
    fn log_waiting(&mut self, due: &Due, limit: &str, scope: Scope, current: u32, bound: Bound) {
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
}

impl Due {
    /// The limits of concurrent calls that bind it, with their bounds.
    fn concurrent(&self) -> impl Iterator<Item = (&Binding, u32)> {
        self.bindings.iter().filter_map(|binding| match binding.bound {
            Bound::Concurrent(bound) => Some((binding, bound)),
            Bound::Rate(_) => None,
        })
    }
}

/// The free slots under each key that binds one of these runs.
fn free_slots(due: &[Due], in_use: &BTreeMap<String, u32>) -> HashMap<String, u32> {
    let concurrent = due.iter().flat_map(Due::concurrent);
    let free = |binding: &Binding, bound: u32| bound.saturating_sub(in_use.get(&binding.key).copied().unwrap_or(0));
    concurrent.map(|(binding, bound)| (binding.key.clone(), free(binding, bound))).collect()
}

/// Ends a run that cannot be dialled.
async fn fail(calls: &Calls, run: &str, why: &str, now_ms: UnixMs) -> Result<()> {
    let change = RunChange {
        reason: Some(why.to_owned()),
        ..RunChange::of(run, &[RunState::Running, RunState::Paused], RunState::Failed, now_ms)
    };
    if calls.lifecycle.store.move_run(change, calls.lifecycle.notice).await? {
        error!(run, why, "run failed");
    }
    Ok(())
}
