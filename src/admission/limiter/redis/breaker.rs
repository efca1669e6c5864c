//! Circuit breaker of the server. While it is open, decisions fail at once, and one task reconnects.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use redis::Value;
use tokio::sync::Notify;
use tokio::time::timeout;
use tracing::{info, warn};

use super::RedisSettings;
use super::connection::{self, Fault, Link};
use super::inspect::{self, Problem};
use super::keys::Keys;
use super::scripts::Script;
use crate::admission::limiter::GateError;
use crate::provider::secret::Secret;
use crate::sync::lock;

/// Late answers in a row after which the server counts as unavailable.
const LATE_MAX: u32 = 3;
/// The shortest pause between connection attempts; it grows…
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// …to this.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// The interval of health checks.
const BEAT: Duration = Duration::from_secs(1);
/// A server that was lost sooner than this after it was connected is not retried at once.
const MIN_UPTIME: Duration = Duration::from_secs(10);
/// Health checks between two queries of the sentinels for the master.
const SENTINELS_EVERY: u32 = 5;
/// Health checks between two inspections.
const INSPECT_EVERY: u32 = 60;

/// Health of the server, for `/status`, metrics and fail-over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Whether the server is used for decisions.
    pub up: bool,
    /// The time for which `up` has had its value.
    pub lasting: Duration,
    /// The reason why it was last disconnected, if ever.
    pub last_error: Option<String>,
    /// Problems found by the last inspection.
    pub problems: Vec<Problem>,
    /// Requested decisions.
    pub decisions: u64,
    /// Round trips to the server, for all operations.
    pub round_trips: u64,
    /// Operations that failed without a round trip because the breaker was open.
    pub failed_fast: u64,
}

/// State shared by the limiter and its task.
pub(super) struct Shared {
    pub settings: RedisSettings,
    /// The settings with the newest credential: for new connections.
    newest: ArcSwap<RedisSettings>,
    pub keys: Keys,
    state: Mutex<State>,
    /// Wakes the task: the connection was dropped.
    lost: Notify,
    pub decisions: AtomicU64,
    pub round_trips: AtomicU64,
    failed_fast: AtomicU64,
}

struct State {
    link: Option<Arc<Link>>,
    since: Instant,
    error: Option<String>,
    problems: Vec<Problem>,
}

impl Shared {
    pub(super) fn new(settings: RedisSettings) -> Self {
        Self {
            keys: Keys::of(&settings.pool, &settings.database),
            newest: ArcSwap::from_pointee(settings.clone()),
            settings,
            state: Mutex::new(State { link: None, since: Instant::now(), error: None, problems: vec![] }),
            lost: Notify::new(),
            decisions: AtomicU64::new(0),
            round_trips: AtomicU64::new(0),
            failed_fast: AtomicU64::new(0),
        }
    }

    /// The settings for a new connection.
    pub(super) fn newest(&self) -> Arc<RedisSettings> {
        self.newest.load_full()
    }

    /// Uses the user and the password of a URL for new connections.
    pub(super) fn renew(&self, url: &Secret) {
        self.newest.store(Arc::new(self.settings.at(url)));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is atomic, so a panic elsewhere leaves no partial change.
        lock(&self.state)
    }

    /// The connection, if the breaker is closed.
    pub(super) fn link(&self) -> Result<Arc<Link>, GateError> {
        let state = self.state();
        state.link.clone().ok_or_else(|| {
            self.failed_fast.fetch_add(1, Ordering::Relaxed);
            GateError::Away(state.error.clone().unwrap_or_else(|| "not connected yet".to_owned()))
        })
    }

    /// Waits for a round trip, and updates the breaker by its result.
    pub(super) async fn round_trip(
        &self,
        link: &Arc<Link>,
        bound: Duration,
        answer: impl Future<Output = Result<Value, Fault>>,
    ) -> Result<Value, GateError> {
        self.round_trips.fetch_add(1, Ordering::Relaxed);
        let came = timeout(bound, answer).await.unwrap_or(Err(Fault::Late(bound)));
        came.map_err(|fault| {
            let why = fault.to_string();
            self.learn(link, Err(fault));
            GateError::Away(why)
        })
        .inspect(|_| self.learn(link, Ok(())))
    }

    fn learn(&self, link: &Arc<Link>, went: Result<(), Fault>) {
        let is_stalled = link.note_answer(&went) >= LATE_MAX;
        match went {
            Err(fault @ (Fault::Away(_) | Fault::Moved(_))) => self.open_breaker(link, fault.to_string()),
            Err(fault @ Fault::Late(_)) if is_stalled => {
                self.open_breaker(link, format!("{fault}, {LATE_MAX} times in a row"))
            }
            _ => {}
        }
    }

    /// Opens the breaker, until the task has reconnected.
    fn open_breaker(&self, link: &Arc<Link>, why: String) {
        let mut state = self.state();
        if state.link.as_ref().is_some_and(|current| Arc::ptr_eq(current, link)) {
            warn!(redis = %link.address, why, "stopped using Redis; reconnecting");
            *state = State { link: None, since: Instant::now(), error: Some(why), problems: state.problems.clone() };
            drop(state);
            self.lost.notify_one();
        }
    }

    pub(super) fn health(&self) -> Health {
        let state = self.state();
        Health {
            up: state.link.is_some(),
            lasting: state.since.elapsed(),
            last_error: state.error.clone(),
            problems: state.problems.clone(),
            decisions: self.decisions.load(Ordering::Relaxed),
            round_trips: self.round_trips.load(Ordering::Relaxed),
            failed_fast: self.failed_fast.load(Ordering::Relaxed),
        }
    }

    /// Connects, watches the connection, and reconnects, for ever.
    pub(super) async fn stay_connected(&self) {
        let mut pause = PAUSE_MIN;
        loop {
            match connection::find(&self.newest(), &self.keys, connection::Purpose::Decide).await {
                Ok(link) => {
                    let (link, since) = (Arc::new(link), Instant::now());
                    info!(redis = %link.address, "Redis connected");
                    {
                        let mut state = self.state();
                        state.link = Some(Arc::clone(&link));
                        state.since = since;
                    }
                    self.watch(&link).await;
                    if since.elapsed() >= MIN_UPTIME {
                        pause = PAUSE_MIN;
                        continue;
                    }
                }
                Err(fault) => self.note(fault.to_string()),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn note(&self, why: String) {
        let mut state = self.state();
        if state.error.as_ref() != Some(&why) {
            warn!(redis = %self.settings.shown(), why, "failed to connect to Redis; retrying");
            state.error = Some(why);
        }
    }

    /// Returns when the connection was dropped.
    async fn watch(&self, link: &Arc<Link>) {
        let is_ours = || self.state().link.as_ref().is_some_and(|current| Arc::ptr_eq(current, link));
        let mut beat = 0_u32;
        while is_ours() {
            if beat.is_multiple_of(INSPECT_EVERY)
                && let Ok(problems) = inspect::look(link, &self.keys).await
            {
                self.inspected(problems);
            }
            beat = beat.wrapping_add(1);
            tokio::select! {
                () = self.lost.notified() => continue,
                () = tokio::time::sleep(BEAT) => {}
            }
            let probed = link.probe(&self.keys, self.settings.timeout).await;
            self.learn(link, probed);
            if beat.is_multiple_of(SENTINELS_EVERY)
                && let Some(master) = connection::master(&self.newest()).await
                && master != link.address
            {
                self.open_breaker(link, format!("the sentinels' master is {master}"));
            }
        }
    }

    fn inspected(&self, problems: Vec<Problem>) {
        let mut state = self.state();
        for problem in problems.iter().filter(|problem| !state.problems.contains(problem)) {
            warn!(what = problem.what, hint = problem.hint, "Redis is misconfigured");
        }
        state.problems = problems;
    }

    /// Runs a script over the current connection.
    pub(super) async fn run(
        &self,
        script: Script,
        keys: &[String],
        args: &[String],
        bound: Duration,
    ) -> Result<Value, GateError> {
        let link = self.link()?;
        self.round_trip(&link, bound, link.run(script, keys, args)).await
    }
}
