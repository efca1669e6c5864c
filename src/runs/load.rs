//! Loads the leads of a run: all of them, or none, with every mistake by its line.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::BuildHasher as _;
use std::time::Duration;

use http::HeaderMap;
use ring::digest::{Context, SHA256};
use serde_json::{Map, Value};
use tracing::{debug, error, info};
use ulid::Ulid;

use super::leads::{LeadsIn, Row};
use super::plan::Plan;
use super::spec::{Duplicates, Spec};
use super::{Runs, not_a_number, zone_of};
use crate::calls::Calls;
use crate::clock::UnixMs;
use crate::store::runs::{CreateRunOutcome, NewJob, Run, RunChange, RunState, TakeLoad};
use crate::store::{AppNotice, StoreError};

/// Mistakes reported one by one; more are only counted.
const MISTAKES_MAX: usize = 1_000;
/// Leads per write.
const LEADS_PER_WRITE: usize = 1_000;
/// The pause before an incomplete load is discarded again, after an error of the store.
const DISCARD_RETRY_DELAY: Duration = Duration::from_secs(1);

/// The reason of a run whose provider needs a callback URL that is not configured. Dashboards of earlier systems look for this text.
const NO_PUBLIC_HOST: &str = "No public host configured";

/// A lead that cannot be called.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Mistake {
    /// The lead's line in the list.
    pub line: u64,
    /// The mistake, in a sentence.
    pub error: String,
}

/// The reason why a run was not created.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The specification is invalid.
    #[error("{0}")]
    Invalid(String),
    /// Some leads are invalid; none was stored.
    #[error("{count} leads cannot be called; none was stored")]
    Leads {
        /// Their number.
        count: u64,
        /// The first thousand of them.
        mistakes: Vec<Mistake>,
    },
    /// The run conflicts with another run or load.
    #[error("{0}")]
    Conflict(String),
    /// There is no such run.
    #[error("no such run")]
    Unknown,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The kind of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    /// The load fills a run that it has created, and deletes it if its leads are invalid.
    New,
    /// The load fills a run that was created before, and that stays if its leads are invalid.
    Resumed,
    /// The load fills nothing: the leads of a run that has been loaded are compared with those that arrive.
    Known,
}

/// A load in progress. Dropped before its end (the client disconnected, the store failed), it is discarded.
pub struct Loading {
    runs: Runs,
    calls: Calls,
    run: Run,
    plan: Plan,
    load: Load,
    /// Whether the load is neither complete nor discarded.
    is_open: bool,
    digest: Context,
    /// The first line of each number, by a hash of the number, since lists are long.
    seen: HashMap<u64, u64>,
    hasher: RandomState,
    unwritten: Vec<NewJob>,
    total: i64,
    mistakes: Vec<Mistake>,
    mistake_count: u64,
    /// The number of invalid leads left out so far, where they are left out.
    left_out: Option<u64>,
}

/// A loaded run.
#[derive(Debug)]
pub struct Loaded {
    /// The run.
    pub run: Run,
    /// Whether the run existed before, with the same specification.
    pub known: bool,
}

impl Runs {
    /// Creates a run, and begins its load if its leads follow.
    ///
    /// # Errors
    /// [`LoadError`].
    pub async fn begin(&self, calls: &Calls, spec: Spec, leads_in: LeadsIn) -> Result<Loading, LoadError> {
        let follow = leads_in == LeadsIn::Create;
        let plan = Plan::new(spec, calls).map_err(LoadError::Invalid)?;
        plan.check_business(calls, &plan.attributes(calls)).map_err(LoadError::Invalid)?;
        if plan.spec.idempotency_key.as_ref().is_some_and(|key| key.is_empty() || key.len() > 255) {
            return Err(LoadError::Invalid("idempotency_key must have 1 to 255 bytes".to_owned()));
        }
        let now_ms = calls.lifecycle.clock.now_ms();
        let start_at = plan.spec.start_at.as_deref().map_or(Ok(now_ms), start_at)?;
        let text = serde_json::to_string(&plan.spec).map_err(|e| LoadError::Invalid(e.to_string()))?;
        let id = format!("run_{}", Ulid::new().to_string().to_lowercase());
        let mut run = Run {
            id,
            business: plan.spec.business.to_string(),
            account: plan.spec.account.to_string(),
            name: plan.spec.name.clone(),
            key: plan.spec.idempotency_key.clone(),
            digest: String::new(),
            state: if follow { RunState::Loading } else { RunState::Ready },
            spec: text,
            total: 0,
            start_at,
            created_at: now_ms,
            updated_at: now_ms,
            finished_at: None,
            resume_at: None,
            retries: 0,
            reason: None,
            replica: follow.then(|| calls.lifecycle.admission.replica().to_owned()),
            load: follow.then(load_token),
        };
        if let Some(why) = no_public_host(&plan, calls) {
            (run.state, run.reason, run.finished_at) = (RunState::Failed, Some(why.to_owned()), Some(now_ms));
        }
        // From here on it is discarded if this is dropped: whether it was created may stay unknown.
        let mut loading = self.loading(calls, run, plan, Load::New);
        loop {
            match calls.lifecycle.store.create_run(&loading.run, calls.lifecycle.notice).await? {
                CreateRunOutcome::New => break,
                CreateRunOutcome::Known(known) if is_abandoned(&known, calls) => {
                    // Its replica may come back: with another token it can no longer finish what is deleted here.
                    let (before, load) = (known.load.clone(), load_token());
                    let taken = Run { load: Some(load.clone()), ..*known };
                    let (id, taken) = (taken.id.clone(), self.loading(calls, taken, loading.plan.clone(), Load::New));
                    if take_load(calls, &id, before, load).await? {
                        taken.discard().await;
                    }
                }
                // Nobody was called, and its configuration has been fixed.
                CreateRunOutcome::Known(known)
                    if has_failed_at_once(&known) && loading.run.state != RunState::Failed =>
                {
                    calls.lifecycle.store.delete_run(&known.id).await?;
                }
                CreateRunOutcome::Known(known) => {
                    loading.is_open = false;
                    if known.spec != loading.run.spec {
                        return Err(LoadError::Conflict(format!(
                            "this idempotency key belongs to {}, which asks for something else",
                            known.id
                        )));
                    }
                    if follow && known.state == RunState::Ready {
                        return self.begin_leads(calls, *known).await;
                    }
                    (loading.run, loading.load) = (*known, Load::Known);
                    return Ok(loading);
                }
            }
        }
        let run = &loading.run;
        if run.state == RunState::Failed {
            error!(run = run.id, why = NO_PUBLIC_HOST, "run failed");
        } else {
            let public_host = calls.settings.app.public_url.as_ref().and_then(|url| url.host());
            info!(run = run.id, business = run.business, public_host, "run created");
        }
        Ok(loading)
    }

    /// Begins the load of a run without leads.
    ///
    /// # Errors
    /// [`LoadError`].
    pub async fn begin_leads(&self, calls: &Calls, run: Run) -> Result<Loading, LoadError> {
        let spec = serde_json::from_str(&run.spec).map_err(|e| LoadError::Invalid(e.to_string()))?;
        let plan = Plan::new(spec, calls).map_err(LoadError::Invalid)?;
        if run.state != RunState::Ready && !is_abandoned(&run, calls) {
            return Ok(self.loading(calls, run, plan, Load::Known));
        }
        let (before, load) = (run.load.clone(), load_token());
        let run = Run { state: RunState::Loading, load: Some(load.clone()), ..run };
        let loading = self.loading(calls, run, plan, Load::Resumed);
        if !take_load(calls, &loading.run.id, before, load).await? {
            return Err(LoadError::Conflict("another request is loading this run".to_owned()));
        }
        calls.lifecycle.store.delete_jobs(&loading.run.id).await?;
        Ok(loading)
    }

    fn loading(&self, calls: &Calls, run: Run, plan: Plan, load: Load) -> Loading {
        Loading {
            runs: self.clone(),
            calls: calls.clone(),
            is_open: load != Load::Known && run.state == RunState::Loading,
            run,
            plan,
            load,
            digest: Context::new(&SHA256),
            seen: HashMap::new(),
            hasher: RandomState::new(),
            unwritten: vec![],
            total: 0,
            mistakes: vec![],
            mistake_count: 0,
            left_out: None,
        }
    }
}

/// `NO_PUBLIC_HOST`, if the plan's provider needs a callback URL and there is none.
pub fn no_public_host(plan: &Plan, calls: &Calls) -> Option<&'static str> {
    (plan.needs_public_url && calls.settings.app.public_url.is_none()).then_some(NO_PUBLIC_HOST)
}

/// Whether the replica that loads it is dead.
fn is_abandoned(run: &Run, calls: &Calls) -> bool {
    let admission = &calls.lifecycle.admission;
    let me = admission.replica();
    let lives = |replica: &str| {
        replica == me || (admission.is_shared() && admission.role().live.iter().any(|one| one == replica))
    };
    run.state == RunState::Loading && !run.replica.as_deref().is_some_and(lives)
}

/// Whether it failed before its load.
fn has_failed_at_once(run: &Run) -> bool {
    run.state == RunState::Failed && run.total == 0
}

fn start_at(text: &str) -> Result<UnixMs, LoadError> {
    let at = text.parse::<jiff::Timestamp>().map_err(|_| format!("start_at: {text:?} is no time of RFC 3339"));
    at.map(jiff::Timestamp::as_millisecond).map_err(LoadError::Invalid)
}

impl Loading {
    /// The run.
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// The operation that places its calls.
    pub fn operation(&self) -> &str {
        &self.plan.operation.name
    }

    /// Whether the run existed.
    pub fn is_known(&self) -> bool {
        self.load == Load::Known
    }

    /// Whether there are no leads, and no mistakes.
    pub fn is_empty(&self) -> bool {
        self.total == 0 && self.mistake_count == 0
    }

    /// Leaves invalid leads out, instead of rejecting all.
    pub fn skip_invalid(&mut self) {
        self.left_out = Some(0);
    }

    /// The number of leads left out.
    pub fn left_out(&self) -> u64 {
        self.left_out.unwrap_or(0)
    }

    /// The first mistakes.
    pub fn mistakes(&self) -> &[Mistake] {
        &self.mistakes
    }

    /// Whether it takes leads: a failed run does not.
    pub fn wants_leads(&self) -> bool {
        self.run.state != RunState::Failed
    }

    /// Adds rows.
    ///
    /// # Errors
    /// [`LoadError::Store`].
    pub async fn take(&mut self, rows: Vec<Row>) -> Result<(), LoadError> {
        for row in rows {
            // An unreadable row, or one above the maximum, is not left out: it rejects the list.
            let is_full = self.total >= i64::from(self.runs.settings.leads_max);
            let is_readable = row.lead.is_ok();
            if let Err(why) = row.lead.and_then(|lead| self.add_lead(row.line, lead)) {
                match &mut self.left_out {
                    Some(left_out) if is_readable && !is_full => *left_out += 1,
                    _ => self.mistake_count += 1,
                }
                if self.mistakes.len() < MISTAKES_MAX {
                    self.mistakes.push(Mistake { line: row.line, error: why });
                }
            }
        }
        if self.unwritten.len() >= LEADS_PER_WRITE { self.write().await } else { Ok(()) }
    }

    fn add_lead(&mut self, line: u64, lead: Map<String, Value>) -> Result<(), String> {
        let max = i64::from(self.runs.settings.leads_max);
        if self.total >= max {
            return Err(format!("a run has at most {max} leads"));
        }
        let number = self.plan.number(&lead).ok_or_else(|| format!("{} is missing", self.plan.spec.number_field))?;
        let number = self.calls.destinations.normalise(&number).ok_or_else(not_a_number)?;
        zone_of(&lead)?;
        let missing = self.plan.missing(&lead);
        if !missing.is_empty() {
            return Err(format!("missing: {}", missing.join(", ")));
        }
        if self.plan.spec.duplicates == Duplicates::Reject {
            // All rows of a JSON array on one line have the same line.
            match self.seen.entry(self.hasher.hash_one(&number)) {
                Entry::Occupied(first) => return Err(format!("the same number as in line {}", first.get())),
                Entry::Vacant(place) => drop(place.insert(line)),
            }
        }
        // Reported now rather than at the time of the call.
        let (body, _) = self.plan.body(&self.run.id, 0, &number, &lead, self.calls.settings.app.public_url.as_ref())?;
        let attributes = self.plan.attributes_of(&self.calls, &body, &HeaderMap::new());
        self.plan.check_business(&self.calls, &attributes)?;
        self.total += 1;
        let lead = Value::Object(lead).to_string();
        for part in [number.as_bytes(), lead.as_bytes()] {
            self.digest.update(&(part.len() as u64).to_be_bytes());
            self.digest.update(part);
        }
        if !self.is_known() && self.mistake_count == 0 {
            self.unwritten.push(NewJob { seq: self.total, number, lead });
        }
        Ok(())
    }

    async fn write(&mut self) -> Result<(), LoadError> {
        let load = self.run.load.as_deref().unwrap_or_default();
        let jobs = std::mem::take(&mut self.unwritten);
        if self.calls.lifecycle.store.add_jobs(&self.run.id, load, jobs).await? {
            return Ok(());
        }
        Err(LoadError::Conflict("the run was taken over by another load".to_owned()))
    }

    /// Discards the load.
    pub async fn discard(mut self) {
        if self.is_open {
            // After an error, `drop` tries again.
            self.is_open = discard(&self.calls, &self.run, self.load).await.is_err();
        }
    }

    /// Ends the request without leads.
    pub fn without_leads(self) -> Loaded {
        Loaded { run: self.run.clone(), known: self.is_known() }
    }

    /// Starts the run, if all leads are valid.
    ///
    /// # Errors
    /// [`LoadError`].
    pub async fn finish(mut self) -> Result<Loaded, LoadError> {
        if self.total == 0 && self.mistake_count == 0 {
            self.mistakes.push(Mistake { line: 1, error: "there are no leads".to_owned() });
            self.mistake_count = 1;
        }
        if self.mistake_count > 0 {
            let (count, mistakes) = (self.mistake_count, std::mem::take(&mut self.mistakes));
            self.discard().await;
            return Err(LoadError::Leads { count, mistakes });
        }
        let digest = hex::encode(std::mem::replace(&mut self.digest, Context::new(&SHA256)).finish());
        if self.is_known() {
            if self.run.digest != digest {
                let why = format!("{} has other leads, and is {}", self.run.id, self.run.state.as_str());
                return Err(LoadError::Conflict(why));
            }
            return Ok(Loaded { run: self.run.clone(), known: true });
        }
        if !self.unwritten.is_empty() {
            self.write().await?;
        }
        let store = self.calls.lifecycle.store.clone();
        let now_ms = self.calls.lifecycle.clock.now_ms();
        let loaded = Some((self.total, digest));
        let change = RunChange {
            loaded,
            load: self.run.load.clone(),
            ..RunChange::of(&self.run.id, &[RunState::Loading], RunState::Running, now_ms)
        };
        if !store.move_run(change, self.calls.lifecycle.notice).await? {
            return Err(LoadError::Conflict("the run was taken over by another load".to_owned()));
        }
        self.is_open = false;
        self.runs.changed();
        info!(run = self.run.id, business = self.run.business, leads = self.total, "run started");
        let run = store.run_of(&self.run.id).await?.ok_or(LoadError::Unknown)?;
        Ok(Loaded { run, known: false })
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        if !std::mem::take(&mut self.is_open) {
            return;
        }
        let (calls, run, load) = (self.calls.clone(), self.run.clone(), self.load);
        // A drain does not wait for it: another replica takes the load of a dead one over.
        tokio::spawn(async move {
            while let Err(error) = discard(&calls, &run, load).await {
                debug!(run = run.id, %error, "failed to discard incomplete run; retrying");
                tokio::time::sleep(DISCARD_RETRY_DELAY).await;
            }
        });
    }
}

fn load_token() -> String {
    Ulid::new().to_string()
}

/// Begins a load of a run whose last load had the token `before`. `false`: another load was first, or the run is loaded.
async fn take_load(calls: &Calls, run: &str, before: Option<String>, load: String) -> Result<bool, StoreError> {
    let (run, replica) = (run.to_owned(), calls.lifecycle.admission.replica().to_owned());
    let now_ms = calls.lifecycle.clock.now_ms();
    calls.lifecycle.store.take_load(TakeLoad { run, before, load, replica, now_ms }).await
}

/// Deletes the jobs of an incomplete load, and a new run. A load whose last write succeeded without an answer is kept. The
/// load first gets a token of its own, so that no rows of another load are deleted. May be repeated.
async fn discard(calls: &Calls, run: &Run, which: Load) -> Result<(), StoreError> {
    let (store, id) = (&calls.lifecycle.store, &run.id);
    let load = Some(format!("{}-discarded", run.load.as_deref().unwrap_or_default()));
    if !take_load(calls, id, run.load.clone(), load.clone().unwrap_or_default()).await? {
        let now = store.run_of(id).await?;
        if !now.is_some_and(|now| now.state == RunState::Loading && now.load == load) {
            return Ok(());
        }
    }
    if which == Load::New {
        return store.delete_run(id).await.map(drop);
    }
    store.delete_jobs(id).await?;
    let now_ms = calls.lifecycle.clock.now_ms();
    let change = RunChange { load, ..RunChange::of(id, &[RunState::Loading], RunState::Ready, now_ms) };
    store.move_run(change, AppNotice::Omit).await.map(drop)
}
