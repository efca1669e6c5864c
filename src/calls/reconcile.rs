//! The reconciler: compares leases and calls with the providers' records.
//!
//! One loop per account polls the account's live calls: often where the provider sends no timely end, where no event was promised
//! or where a limit is full; seldom otherwise. It settles ends that no webhook reported, creates with an unknown outcome and
//! calls past their deadline, and counts external calls.
//!
//! No slot is released by a timer alone: a call that is due is looked up. "No such call" proves an end only if the provider says
//! so twice, [`CallSettings::not_found_confirm`](crate::calls::CallSettings) apart. Only an account that cannot be queried ends its
//! calls at their deadline.

mod batches;
mod not_found;
mod untracked;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::admission::LiveCountReport;
use crate::call::{Direction, Event, Origin, Phase, Source};
use crate::calls::provider_client::lookup::ListedCall;
use crate::calls::{AskError, Calls};
use crate::clock::{as_ms, rfc3339};
use crate::failpoint;
use crate::ids::{AccountName, CallId};
use crate::metrics::SweepResult;
use crate::net::UpstreamError;
use crate::policy::Bound;
use crate::provider::account::Account;
use crate::provider::description::OWN_ID_KIND;
use crate::store::{CallRecord, Change, Result};
use crate::sync::lock;

/// The longest interval of sweeps while something is urgent; the provider's description may have a shorter one.
const URGENT_INTERVAL: Duration = Duration::from_secs(2);
/// The interval of sweeps when nothing is urgent.
const IDLE_INTERVAL: Duration = Duration::from_secs(15);
/// The interval at which a follower checks whether it is the leader.
const FOLLOWER_POLL: Duration = Duration::from_secs(1);
/// The pause between the two sweeps of a comparison on demand.
const CONFIRMATION_PAUSE: Duration = Duration::from_millis(1_200);
/// The longest pause of an account whose provider answers sweeps with 429.
const LIMITED_MAX: Duration = Duration::from_secs(60);
/// Every nth sweep reads the list even if the count is unchanged: one call may have ended as another began.
const FULL_LIST_EVERY: u32 = 5;
/// The least time between two writes of a live call's record that only update when it was seen, in milliseconds.
const SEEN_EVERY_MS: i64 = 30_000;
/// The number of latest calls whose response may be undelivered after a crash.
const LATEST: u32 = 1_000;
/// The time for which an inbound call may lack its account's id before a foreign call can be distinguished from it, in milliseconds.
const UNBOUND_MS: i64 = 30_000;
/// The time for which a carrier waits for the reply that decides about a ringing call, in milliseconds (Twilio: 15 s).
const VOICE_WEBHOOK_MS: i64 = 15_000;

/// The status of an account's sweeps.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct SweepStatus {
    /// The result and time of the last one. Other replicas are notified of it.
    pub last: LiveCountReport,
    /// Calls whose state has been unreadable for long enough to raise an alarm.
    pub unread: BTreeMap<CallId, Unread>,
}

/// A call whose state cannot be read.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Unread {
    /// Since when, in milliseconds since 1970.
    #[serde(serialize_with = "as_rfc3339", rename = "since")]
    pub since_ms: i64,
    /// Why, as of the last try.
    pub why: String,
    /// Whether the call has been unreadable for long enough to raise an alarm.
    #[serde(skip)]
    is_alarming: bool,
}

impl Unread {
    fn new(since_ms: i64) -> Self {
        Self { since_ms, why: String::new(), is_alarming: false }
    }
}

fn as_rfc3339<S: serde::Serializer>(at: &i64, s: S) -> std::result::Result<S::Ok, S::Error> {
    s.serialize_str(&rfc3339(*at))
}

/// Sweep status by account.
pub type SweepStatuses = Arc<std::sync::Mutex<BTreeMap<String, SweepStatus>>>;

/// The sweeper of one account.
pub struct Sweeper {
    calls: Calls,
    account: Arc<Account>,
    /// Receives new generations of the configuration.
    newest: watch::Receiver<Calls>,
    sweep_statuses: SweepStatuses,
    sweeps: u32,
    /// Nothing has been admitted yet in this process: see [`Sweeper::initial_sweep`].
    first: bool,
    /// Untracked live calls of the last sweep, with when they were first seen.
    untracked: HashMap<String, i64>,
    /// Ids that take no slot (web sessions).
    not_phone_calls: HashSet<String>,
    /// The time at which the last list was requested.
    listed_at: i64,
    /// Batches that make no more calls, with when their provider first said so.
    over_since: HashMap<CallId, i64>,
    /// Batches that had a live call a moment ago, with the number of look-ups left for them.
    look_ups_left: HashMap<CallId, u32>,
    /// Calls that were not found, with when: the system's clock may be set between two look-ups.
    not_found_since: HashMap<CallId, Instant>,
    /// Calls whose state cannot be read.
    unread: HashMap<CallId, Unread>,
    failing: bool,
    /// The number of sweeps in a row that the provider answered with 429.
    limited: u32,
    /// Counts of its actions.
    did: SweepCounts,
}

/// Counts of sweeps' actions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct SweepCounts {
    /// Calls whose end the provider's record showed.
    pub ended: usize,
    /// External calls that are counted now.
    pub adopted: usize,
    /// Calls of lost responses that were found.
    pub found: usize,
}

/// The result of a comparison on demand at one account.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SweepReport {
    /// The account.
    pub account: AccountName,
    /// Whether the account has credentials.
    pub can_be_asked: bool,
    /// The account's open calls in the store, before the comparison.
    pub open: usize,
    /// The provider's number of live calls, if it answered.
    pub provider_live: Option<u32>,
    /// The reason why the provider did not answer.
    pub error: Option<String>,
    /// The actions taken.
    #[serde(flatten)]
    pub did: SweepCounts,
}

impl Sweeper {
    /// A new sweeper.
    pub fn new(mut newest: watch::Receiver<Calls>, account: Arc<Account>, sweep_statuses: SweepStatuses) -> Self {
        let calls = newest.borrow_and_update().clone();
        Self {
            calls,
            account,
            newest,
            sweep_statuses,
            // The first sweep reads the list, whatever the count is.
            sweeps: FULL_LIST_EVERY - 1,
            first: false,
            untracked: HashMap::new(),
            not_phone_calls: HashSet::new(),
            listed_at: 0,
            over_since: HashMap::new(),
            look_ups_left: HashMap::new(),
            not_found_since: HashMap::new(),
            unread: HashMap::new(),
            failing: false,
            limited: 0,
            did: SweepCounts::default(),
        }
    }

    /// The sweep before this process admits calls. Creates that the previous process left without a response are searched for at
    /// once, and untracked calls are counted when first seen: the first create must find the limits as full as they are. Takes at
    /// most `within`. A provider that does not answer does not delay the start; later sweeps query it again.
    pub async fn initial_sweep(&mut self, within: Duration) {
        if !self.account.can_ask() {
            return;
        }
        self.first = true;
        let result = tokio::time::timeout(within, self.initial_scan()).await;
        self.first = false;
        self.record_result(result.unwrap_or(Err(AskError::Upstream(UpstreamError::Timeout(within)))));
    }

    async fn initial_scan(&mut self) -> std::result::Result<usize, AskError> {
        let name = self.account.name.clone();
        let unread = |_| AskError::CannotQuery(name.clone(), "failed to read open calls");
        for call in self.read_open_calls().await.map_err(unread)?.iter().filter(|call| call.attributes.account == name)
        {
            if call.unsettled && call.origin == Origin::Create && self.askable(call).is_empty() {
                self.search(call).boxed().await;
            }
        }
        let mine = self.read_open_calls().await.map_err(unread)?;
        self.sweep(&mine).boxed().await
    }

    /// The account that it sweeps.
    pub fn account(&self) -> &AccountName {
        &self.account.name
    }

    /// Sweeps until `stop`. After a reload that changed the account it sweeps at once.
    pub async fn run(mut self, stop: CancellationToken) {
        self.sweep_until(&stop).await;
        let name = self.account.name.as_str();
        if self.newest.borrow().account(&self.account.name).is_none() {
            // A reload removed the account; its metrics are stale.
            self.calls.lifecycle.metrics.account_gone(&self.account.name);
            lock(&self.sweep_statuses).remove(name);
        }
    }

    async fn sweep_until(&mut self, stop: &CancellationToken) {
        let opened = self.calls.lifecycle.opened.clone();
        loop {
            // Registered before the sweep reads the open calls: a call recorded meanwhile must not wait for the next sweep.
            let mut opening = std::pin::pin!(opened.notified());
            opening.as_mut().enable();
            let requests = self.calls.sweep_requests.clone();
            let mut asked = std::pin::pin!(requests.requested());
            asked.as_mut().enable();
            let wanted = requests.take(&self.account.name);
            if wanted {
                self.sweeps = FULL_LIST_EVERY - 1;
            }
            let leads = self.calls.lifecycle.admission.role().leads;
            // Followers sweep only on request.
            let pause = if leads || wanted {
                self.sweep_once().boxed().await
            } else {
                self.hang_up_for_others().boxed().await;
                FOLLOWER_POLL
            };
            if stop.is_cancelled() {
                return;
            }
            let described = Duration::from_secs(self.account.provider.sweep_secs.max(1));
            let own = self.calls.settings.sweep.unwrap_or(described);
            let pace = if self.limited == 0 { own.min(pause) } else { pause };
            let until = tokio::time::Instant::now() + pause;
            let slept = async {
                tokio::select! {
                    () = tokio::time::sleep_until(until) => {}
                    // The first call after an idle time: the account's own interval applies from now on.
                    () = opening, if leads => {
                        tokio::time::sleep_until(until.min(tokio::time::Instant::now() + pace)).await;
                    }
                    // Bounds the rate of requested sweeps.
                    () = asked => {
                        tokio::time::sleep_until(until.min(tokio::time::Instant::now() + pace)).await;
                    }
                }
            };
            let mut slept = std::pin::pin!(slept);
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = &mut slept => break,
                    () = tokio::time::sleep(FOLLOWER_POLL) => self.hang_up_for_others().boxed().await,
                    changed = self.newest.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        if self.take_newest() {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Switches to the newest generation. Returns whether it changed this account.
    fn take_newest(&mut self) -> bool {
        self.calls = self.newest.borrow_and_update().clone();
        let Some(account) = self.calls.account(&self.account.name).cloned() else { return false };
        !Arc::ptr_eq(&std::mem::replace(&mut self.account, account.clone()), &account)
    }

    /// Compares the account's calls with ours at once, on any replica. An untracked call is counted when it is seen twice.
    pub fn look(mut self) -> BoxFuture<'static, SweepReport> {
        async move { self.look_now().await }.boxed()
    }

    async fn look_now(&mut self) -> SweepReport {
        let open = self.read_open_calls().await.map_or(0, |mine| mine.len());
        for _ in 0..2 {
            self.sweeps = FULL_LIST_EVERY - 1;
            let _ = self.sweep_once().boxed().await;
            if self.untracked.is_empty() {
                break;
            }
            tokio::time::sleep(CONFIRMATION_PAUSE).await;
        }
        let seen = lock(&self.sweep_statuses);
        let seen = seen.get(self.account.name.as_str()).cloned().unwrap_or_default();
        SweepReport {
            account: self.account.name.clone(),
            can_be_asked: self.account.can_ask(),
            open,
            provider_live: seen.last.provider_live,
            error: seen.last.error,
            did: self.did,
        }
    }

    /// Sweeps once. Returns the pause until the next sweep.
    async fn sweep_once(&mut self) -> Duration {
        let mine = match self.read_open_calls().await {
            Ok(mine) => mine,
            Err(error) => {
                warn!(%error, "failed to read open calls");
                return IDLE_INTERVAL;
            }
        };
        let name = self.account.name.clone();
        let open = |call: &CallId| mine.iter().any(|one| one.id == *call);
        self.over_since.retain(|call, _| open(call));
        self.look_ups_left.retain(|call, _| open(call));
        self.not_found_since.retain(|call, _| open(call));
        self.unread.retain(|call, _| open(call));
        if self.account.can_ask() {
            let result = self.sweep(&mine).boxed().await;
            self.record_result(result);
        }
        let calls = self.calls.clone();
        let orphan = |call: &CallRecord| calls.account(&call.attributes.account).is_none();
        for call in mine.iter().filter(|call| call.attributes.account == name || orphan(call)) {
            match calls.group_of(call).cloned() {
                Some(group) => self.settle_batch(call, &group).boxed().await,
                None => self.reconcile_if_due(call).boxed().await,
            }
            // A hang-up that failed, or that the previous process did not do, is retried.
            if self.is_to_be_hung_up(call) {
                self.calls.provider.hang_up_later(&call.id);
            }
        }
        self.note_unread();
        self.pause(&mine).await
    }

    /// Reports calls whose state cannot be read: in the sweep's error at once, by name once it has lasted.
    fn note_unread(&self) {
        let alarming: BTreeMap<CallId, Unread> =
            self.unread.iter().filter(|(_, one)| one.is_alarming).map(|(id, one)| (id.clone(), one.clone())).collect();
        self.calls.lifecycle.metrics.unread_calls(&self.account.name, alarming.len());
        let mut seen = lock(&self.sweep_statuses);
        let Some(seen) = seen.get_mut(self.account.name.as_str()) else { return };
        seen.unread = alarming;
        if let (None, Some((call, one))) = (&seen.last.error, self.unread.iter().min_by_key(|(_, one)| one.since_ms)) {
            let all = self.unread.len();
            seen.last.error = Some(format!("the state of {all} open calls cannot be read; of {call}: {}", one.why));
            self.calls.lifecycle.admission.record_sweep(self.account.name.as_str(), seen.last.clone());
        }
    }

    /// Whether the call was rejected and is up nevertheless. The second record of a call that was given up is an over-limit call
    /// too, but was not rejected. A replica that is rejecting a call just now may still end it by its reply.
    fn is_to_be_hung_up(&self, call: &CallRecord) -> bool {
        let is_new = call.admitted_at + as_ms(self.calls.settings.list_lag) > self.calls.lifecycle.clock.now_ms();
        let refused = call.over_limit && call.alias(OWN_ID_KIND).is_none() && !is_new;
        refused && call.attributes.direction == Direction::Inbound
    }

    /// Ends calls that another replica rejected and did not hang up: the leader handles all of them, a follower those of dead
    /// replicas. Runs between sweeps, which may be far apart.
    async fn hang_up_for_others(&self) {
        let admission = &self.calls.lifecycle.admission;
        if !admission.is_shared() {
            return;
        }
        let leads = admission.role().leads;
        let Ok(mine) = self.read_open_calls().await else { return };
        for call in
            mine.iter().filter(|call| call.attributes.account == self.account.name && self.is_to_be_hung_up(call))
        {
            if leads || admission.is_orphaned(call) {
                self.calls.provider.hang_up_later(&call.id);
            }
        }
    }

    /// The open calls of this account, and those without an account.
    async fn read_open_calls(&self) -> Result<Vec<CallRecord>> {
        let (open, name) = (self.calls.lifecycle.store.open_calls().await?, &self.account.name);
        // Every account's sweeper handles calls of accounts removed from the config: nothing else would end them.
        let orphan = |call: &CallRecord| self.calls.account(&call.attributes.account).is_none();
        let of = |call: &CallRecord| call.attributes.account == *name || call.attributes.carrier.as_ref() == Some(name);
        Ok(open.into_iter().filter(|call| of(call) || orphan(call)).collect())
    }

    /// The pause until the next sweep. It grows with each 429, because the app shares the provider's rate limit.
    async fn pause(&self, mine: &[CallRecord]) -> Duration {
        let pace = self.pace(mine).await;
        if self.limited == 0 { pace } else { (pace * 2_u32.pow(self.limited.min(10))).min(LIMITED_MAX) }
    }

    /// The description's interval while something is urgent.
    async fn pace(&self, mine: &[CallRecord]) -> Duration {
        if let Some(fixed) = self.calls.settings.sweep {
            return fixed;
        }
        let own = Duration::from_secs(self.account.provider.sweep_secs.max(1));
        if mine.is_empty() {
            return IDLE_INTERVAL;
        }
        let is_urgent =
            mine.iter().any(|c| c.polled || c.unsettled || c.over_limit) || self.some_limit_is_full(mine).await;
        if is_urgent { own.min(URGENT_INTERVAL) } else { own }
    }

    async fn some_limit_is_full(&self, mine: &[CallRecord]) -> bool {
        let Ok(counts) = self.calls.lifecycle.admission.counts().await else { return false };
        let policy = self.calls.lifecycle.policy.load();
        mine.iter().flat_map(|call| policy.bindings(&call.attributes)).any(|binding| match binding.bound {
            Bound::Concurrent(n) => counts.by_key.get(&binding.key).is_some_and(|held| *held >= n),
            Bound::Rate(_) => false,
        })
    }

    fn record_result(&mut self, result: std::result::Result<usize, AskError>) {
        let account = self.account.name.clone();
        let at_ms = self.calls.lifecycle.clock.now_ms();
        let swept = if result.is_ok() { SweepResult::Ok } else { SweepResult::Failed };
        self.calls.lifecycle.metrics.sweep(&account, swept);
        let last = match result {
            Ok(live) => {
                self.limited = 0;
                if std::mem::take(&mut self.failing) {
                    info!(%account, "provider answers live-call queries again");
                }
                let provider_live = Some(u32::try_from(live).unwrap_or(u32::MAX));
                LiveCountReport { provider_live, as_of_ms: Some(at_ms), tried_at_ms: at_ms, error: None }
            }
            Err(error) => {
                self.limited = if matches!(error, AskError::Status(429)) { self.limited.saturating_add(1) } else { 0 };
                // Logged on a change of state, not at every sweep.
                if !std::mem::replace(&mut self.failing, true) {
                    warn!(%account, %error, "failed to query the provider's live calls; ends of calls come by webhook only");
                }
                // The last answer keeps its time.
                let before = self.calls.lifecycle.admission.last_sweep(account.as_str()).unwrap_or_default();
                LiveCountReport { tried_at_ms: at_ms, error: Some(error.to_string()), ..before }
            }
        };
        self.calls.lifecycle.admission.record_sweep(account.as_str(), last.clone());
        let seen = SweepStatus { last, ..SweepStatus::default() };
        lock(&self.sweep_statuses).insert(account.to_string(), seen);
    }

    /// Compares the account's live calls with ours. Returns the provider's number.
    async fn sweep(&mut self, mine: &[CallRecord]) -> std::result::Result<usize, AskError> {
        let Some(list) = &self.account.provider.list else { return Ok(0) };
        let kind = list.id.kind.clone();
        let visible: HashMap<&str, &CallRecord> =
            mine.iter().flat_map(|call| call.ids_of(&kind).map(move |id| (id, call))).collect();
        self.sweeps = self.sweeps.wrapping_add(1);
        let name = self.account.name.clone();
        let open: HashSet<&CallId> = mine.iter().map(|call| &call.id).collect();
        self.calls.batch_members.retain_of(&name, |batch| open.contains(batch));
        let members = self.calls.batch_members.count(&name, None);
        if !self.sweeps.is_multiple_of(FULL_LIST_EVERY)
            && self.over_since.is_empty()
            && !self.calls.batch_members.is_any_missing(&name)
            && let Some(live) = self.count().await?
            && live == visible.len() + members
        {
            return Ok(live);
        }
        let asked_at = self.calls.lifecycle.clock.now_ms();
        let listed = match self.calls.provider.list_live(&self.account).await {
            Ok(listed) => listed,
            Err(error) => {
                if matches!(error, AskError::Unreadable(_) | AskError::Status(..=428 | 430..)) {
                    self.ask_without_list(visible.into_values().collect()).boxed().await;
                }
                return Err(error);
            }
        };
        failpoint::hit("sweep.listed").await;
        self.listed_at = asked_at;
        let live: HashMap<&str, &ListedCall> = listed.iter().map(|one| (one.alias.id.as_str(), one)).collect();
        for (id, call) in &visible {
            match live.get(id) {
                Some(one) => self.handle_listed(call, one.event).boxed().await,
                None => self.handle_unlisted(call, listed.len()).boxed().await,
            }
        }
        self.calls.batch_members.retain_listed(&name, |id| live.contains_key(id));
        let lacks_a_record = |one: &&ListedCall| {
            !visible.contains_key(one.alias.id.as_str())
                && !self.calls.batch_members.contains(&self.account.name, &one.alias)
        };
        let unknown: Vec<&ListedCall> = listed.iter().filter(lacks_a_record).collect();
        self.handle_untracked_calls(mine, &kind, &unknown).boxed().await;
        Ok(listed.len())
    }

    /// The provider's count of live calls. If it cannot be read, the list is read instead.
    async fn count(&self) -> std::result::Result<Option<usize>, AskError> {
        match self.calls.provider.count_live(&self.account).await {
            Err(error @ AskError::Unreadable(_)) => {
                debug!(account = %self.account.name, %error, "failed to read the provider's live-call count");
                Ok(None)
            }
            counted => counted,
        }
    }

    /// Handles a call of ours that the provider lists as live.
    async fn handle_listed(&mut self, call: &CallRecord, event: Option<Event>) {
        let now_ms = self.calls.lifecycle.clock.now_ms();
        let is_unconfirmed = !call.counts() && call.seen_by != Source::Poll;
        if self.lacks_the_carriers_id(call) || is_unconfirmed {
            // The carrier lists it too: without its id there, it would be taken for untracked and counted twice.
            self.ask_about(call).boxed().await;
            return;
        }
        let Some(Event::Reached(phase)) = event else {
            // An unknown state may mean an end.
            self.ask_about(call).boxed().await;
            return;
        };
        let fresh = call.seen_at + SEEN_EVERY_MS > now_ms && call.absent_at.is_none() && !call.unsettled;
        if fresh && phase <= call.phase {
            return;
        }
        // A list may lag behind a webhook: it can renew a phase, but never revert one.
        let change = Change {
            event: Some(Event::Reached(phase.max(call.phase))),
            absent: Some(false),
            unsettled: Some(false),
            ..self.calls.lifecycle.change(&call.id, Source::Poll)
        };
        log(self.calls.lifecycle.apply(change).await);
    }

    fn lacks_the_carriers_id(&self, call: &CallRecord) -> bool {
        let carrier = call.attributes.carrier.as_ref().filter(|name| **name != self.account.name);
        let lookup = carrier.and_then(|name| self.calls.account(name)).and_then(|a| a.provider.lookup.as_ref());
        lookup.is_some_and(|lookup| call.alias(&lookup.needs).is_none())
    }
}

/// Runs [`Sweeper::initial_sweep`] of all accounts in parallel, but carriers after the accounts whose calls they carry: the
/// record of such a call names its leg at the carrier, not vice versa.
pub async fn initial_sweep(sweepers: &mut [Sweeper], within: Duration) {
    let carries = |s: &Sweeper| s.calls.accounts.values().any(|a| a.carrier.as_ref() == Some(&s.account.name));
    for round in [false, true] {
        let these = sweepers.iter_mut().filter(|sweeper| carries(sweeper) == round);
        futures_util::future::join_all(these.map(|sweeper| sweeper.initial_sweep(within))).await;
    }
    failpoint::hit("start.sighted").await;
}

fn log<T>(result: std::result::Result<T, impl std::fmt::Display>) {
    if let Err(error) = result {
        warn!(%error, "failed to record results of the sweep; retrying");
    }
}

/// Rebuilds the gate from the store: every open call holds its slots again, every recent create its token. Returns the number of
/// open calls.
pub async fn rebuild(calls: &Calls) -> Result<usize> {
    let lifecycle = &calls.lifecycle;
    let mut open = lifecycle.store.open_calls().await?;
    failpoint::hit("start.read").await;
    let admission = &lifecycle.admission;
    let lost = |c: &&mut CallRecord| c.origin == Origin::Create && c.phase == Phase::Reserved && !c.unsettled;
    for call in open.iter_mut().filter(lost).filter(|call| admission.is_orphaned(call)) {
        // The process died between the record and the response: it is unknown whether the request was sent.
        let change = Change { unsettled: Some(true), ..lifecycle.change(&call.id, Source::Create) };
        lifecycle.apply(change).await?;
        // Retries must see that too.
        call.unsettled = true;
        failpoint::hit("start.marked").await;
    }
    if !admission.is_shared() {
        // Where replicas share the store, deduplication looks there: a response that another replica delivered is final.
        let latest = lifecycle.store.latest_calls(LATEST).await?;
        calls.outbound.restore(open.iter().chain(&latest), lifecycle.clock.now_ms());
    }
    let count = lifecycle.admission.start().await?;
    failpoint::hit("start.rebuilt").await;
    Ok(count)
}
