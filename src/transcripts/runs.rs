//! Followed bulk runs: each is read twice a second, once for all its followers, whichever replica dials it.
//!
//! The jobs with the latest changes are compared with those of the previous read. So a job is reported in its state at the read, and
//! late records of a replica are not missed. Memory is bounded: a follower that is behind, or a run that changes faster than it is
//! read, skips events and gets `run_jobs_skipped`. The counts are always those of the database.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::MissedTickBehavior;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tracing::debug;

use super::wake::Wake;
use crate::call::Outcome;
use crate::ids::CallId;
use crate::metrics::ClientMessage;
use crate::store::runs::{ChangedJob, JobState, Run, RunCounts};
use crate::store::{Result, Store};
use crate::sync::lock;

/// Maximum runs that a connection follows.
pub(super) const FOLLOWED_RUNS_MAX: usize = 50;
/// Maximum runs followed by all connections together.
const RUNS_MAX: usize = 1_000;
/// Jobs in a read.
const READ_MAX: u32 = 500;
/// Messages of a run kept for its followers.
const KEPT_MAX: usize = 1_000;
const READ_INTERVAL: Duration = Duration::from_millis(500);
/// An ended run is read once in this many reads.
const FINISHED_TURNS: u64 = 10;

/// The followed runs of this process. Cloning is cheap.
#[derive(Clone)]
pub(super) struct RunFeed(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    channels: Mutex<HashMap<String, Weak<RunChannel>>>,
}

/// A followed run.
struct RunChannel {
    run: String,
    followers: Mutex<HashMap<u64, Arc<Wake>>>,
    kept: Mutex<Kept>,
    /// Held during a read, so that reads are compared in order.
    last_read: tokio::sync::Mutex<Option<LastRead>>,
    /// Whether the run has ended, and changes only by an action of an operator.
    is_finished: AtomicBool,
}

/// Messages for followers, numbered from the first read.
#[derive(Default)]
struct Kept {
    next: u64,
    messages: VecDeque<RunMessage>,
    progress: Option<RunMessage>,
    is_deleted: bool,
}

struct LastRead {
    run: Run,
    counts: RunCounts,
    jobs: HashMap<i64, JobStatus>,
}

/// The reported state of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct JobStatus {
    /// `None`: it is queued and was not called yet.
    state: Option<JobState>,
    outcome: Option<Outcome>,
    attempts: u32,
    call: Option<CallId>,
}

/// A message of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RunMessage {
    pub(super) kind: ClientMessage,
    pub(super) text: Utf8Bytes,
}

/// Messages that a follower has not received yet.
pub(super) struct RunNews {
    pub(super) messages: Vec<RunMessage>,
    /// The number of the next message.
    pub(super) next: u64,
    pub(super) is_deleted: bool,
}

/// A subscription of a connection to a run.
pub(super) struct RunSubscription {
    channel: Arc<RunChannel>,
    feed: RunFeed,
    connection: u64,
    /// The business of the run.
    pub(super) business: String,
    /// The number of the next message to send.
    pub(super) next: u64,
}

impl Drop for RunSubscription {
    fn drop(&mut self) {
        // In the order of `follow`, so that no follower joins a channel that is being removed.
        let mut channels = lock(&self.feed.0.channels);
        let mut followers = lock(&self.channel.followers);
        followers.remove(&self.connection);
        if followers.is_empty() {
            channels.remove(&self.channel.run);
        }
    }
}

impl RunSubscription {
    /// The messages since the last one sent.
    pub(super) fn news(&self) -> RunNews {
        let kept = lock(&self.channel.kept);
        let first = kept.next - kept.messages.len() as u64;
        let skipped = (self.next < first).then(|| skipped(&self.channel.run));
        let from = usize::try_from(self.next.saturating_sub(first)).unwrap_or(usize::MAX);
        let messages = skipped.into_iter().chain(kept.messages.iter().skip(from).cloned()).collect();
        RunNews { messages, next: kept.next, is_deleted: kept.is_deleted }
    }

    /// Reads the run and continues from there. Returns its progress; `None`: it was deleted.
    ///
    /// # Errors
    /// The store failed.
    pub(super) async fn read(&mut self) -> Result<Option<RunMessage>> {
        self.feed.read(&self.channel).await?;
        self.next = lock(&self.channel.kept).next;
        Ok(self.progress())
    }

    /// The progress read last. `None`: the run was deleted.
    pub(super) fn progress(&self) -> Option<RunMessage> {
        let kept = lock(&self.channel.kept);
        kept.progress.clone().filter(|_| !kept.is_deleted)
    }
}

impl RunFeed {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self(Arc::new(Inner { store, channels: Mutex::default() }))
    }

    /// Follows a run. `None`: the maximum is reached.
    pub(super) fn follow(&self, run: &Run, connection: u64, wake: &Arc<Wake>) -> Option<RunSubscription> {
        let mut channels = lock(&self.0.channels);
        let channel = match channels.get(&run.id).and_then(Weak::upgrade) {
            Some(channel) => channel,
            None if channels.len() >= RUNS_MAX => return None,
            None => {
                let channel = Arc::new(RunChannel {
                    run: run.id.clone(),
                    followers: Mutex::default(),
                    kept: Mutex::default(),
                    last_read: tokio::sync::Mutex::default(),
                    is_finished: AtomicBool::new(false),
                });
                channels.insert(run.id.clone(), Arc::downgrade(&channel));
                channel
            }
        };
        lock(&channel.followers).insert(connection, wake.clone());
        drop(channels);
        Some(RunSubscription { channel, feed: self.clone(), connection, business: run.business.clone(), next: 0 })
    }

    /// Polls the followed runs. Never returns.
    pub(super) async fn run(self) {
        let mut turns = tokio::time::interval(READ_INTERVAL);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for turn in 0_u64.. {
            turns.tick().await;
            let followed: Vec<Arc<RunChannel>> = lock(&self.0.channels).values().filter_map(Weak::upgrade).collect();
            for channel in followed {
                if channel.is_finished.load(Ordering::Relaxed) && turn % FINISHED_TURNS != 0 {
                    continue;
                }
                if let Err(error) = self.read(&channel).await {
                    debug!(run = channel.run, %error, "failed to read followed run");
                }
            }
        }
    }

    async fn read(&self, channel: &RunChannel) -> Result<()> {
        let store = &self.0.store;
        let mut last_read = channel.last_read.lock().await;
        let Some(run) = store.run_of(&channel.run).await? else {
            lock(&channel.kept).is_deleted = true;
            channel.wake_followers();
            return Ok(());
        };
        let changed = store.changed_jobs(&run.id, READ_MAX).await?;
        let known = last_read.as_ref().map(|last| &last.jobs);
        let (jobs, mut messages) = compare(&run.id, known, &changed);
        // The jobs of a canceled run are canceled in batches, and none counts as changed.
        let counts = match last_read.as_ref() {
            Some(last) if last.run == run && messages.is_empty() && last.jobs == jobs && !last.is_canceling() => {
                last.counts
            }
            _ => store.run_counts(&run.id).await?,
        };
        let progress = progress(&run, &counts);
        channel.is_finished.store(run.state.is_finished() && counts.dialing + counts.calling == 0, Ordering::Relaxed);
        *last_read = Some(LastRead { run, counts, jobs });
        drop(last_read);
        {
            let mut kept = lock(&channel.kept);
            if kept.progress.as_ref() != Some(&progress) {
                kept.progress = Some(progress.clone());
                messages.push(progress);
            }
            if messages.is_empty() {
                return Ok(());
            }
            for message in messages {
                if kept.messages.len() >= KEPT_MAX {
                    kept.messages.pop_front();
                }
                kept.messages.push_back(message);
                kept.next += 1;
            }
        }
        channel.wake_followers();
        Ok(())
    }
}

impl RunChannel {
    fn wake_followers(&self) {
        lock(&self.followers).values().for_each(|wake| wake.notify());
    }
}

impl LastRead {
    fn is_canceling(&self) -> bool {
        self.run.state.is_finished() && self.counts.queued > 0
    }
}

/// Compares jobs, the latest change first, with those of the previous read (`None`: this is the first). Returns their states, and the
/// changes in order.
fn compare(
    run: &str,
    known: Option<&HashMap<i64, JobStatus>>,
    changed: &[ChangedJob],
) -> (HashMap<i64, JobStatus>, Vec<RunMessage>) {
    let (mut jobs, mut messages, mut is_joined) = (HashMap::with_capacity(changed.len()), vec![], false);
    for job in changed.iter().rev() {
        let before = known.and_then(|known| known.get(&job.seq));
        let now = match job.state {
            // A claim without a slot is undone; only its call is reported.
            JobState::Dialing => before.cloned().unwrap_or_default(),
            JobState::Queued if job.attempts == 0 => JobStatus::default(),
            state => {
                JobStatus { state: Some(state), outcome: job.outcome, attempts: job.attempts, call: job.call.clone() }
            }
        };
        is_joined |= before == Some(&now);
        if known.is_some() && now != before.cloned().unwrap_or_default() {
            messages.push(of_job(run, job));
        }
        jobs.insert(job.seq, now);
    }
    // Every job in the read changed: there were more changes than were read.
    if known.is_some() && !is_joined && changed.len() >= READ_MAX as usize {
        messages.insert(0, skipped(run));
    }
    (jobs, messages)
}

fn message(kind: ClientMessage, text: &Value) -> RunMessage {
    RunMessage { kind, text: text.to_string().into() }
}

/// `run_job`: the state of a job.
fn of_job(run: &str, job: &ChangedJob) -> RunMessage {
    let text = json!({
        "type": ClientMessage::RunJob,
        "run_id": run,
        "lead": job.seq,
        "state": job.state,
        "outcome": job.outcome,
        "attempts": job.attempts,
        "call_id": job.call,
        "error": job.error,
    });
    message(ClientMessage::RunJob, &text)
}

/// `run_progress`: the state of a run.
fn progress(run: &Run, counts: &RunCounts) -> RunMessage {
    let text = json!({
        "type": ClientMessage::RunProgress,
        "run_id": run.id,
        "business": run.business,
        "name": run.name,
        "state": run.state,
        "reason": run.reason,
        "leads": run.total,
        "done": counts.done(),
        "counts": {
            "queued": counts.queued,
            "dialing": counts.dialing,
            "calling": counts.calling,
            "completed": counts.completed,
            "voicemail": counts.voicemail,
            "busy": counts.busy,
            "no_answer": counts.no_answer,
            "failed": counts.failed,
            "canceled": counts.canceled,
        },
    });
    message(ClientMessage::RunProgress, &text)
}

/// `run_jobs_skipped`: some `run_job` messages were skipped.
fn skipped(run: &str) -> RunMessage {
    message(ClientMessage::RunJobsSkipped, &json!({"type": ClientMessage::RunJobsSkipped, "run_id": run}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(seq: i64, state: JobState, outcome: Option<Outcome>, attempts: u32) -> ChangedJob {
        ChangedJob { seq, state, outcome, attempts, call: None, error: None }
    }

    fn texts(messages: &[RunMessage]) -> Vec<(String, i64, String)> {
        let read = |one: &RunMessage| serde_json::from_str::<Value>(&one.text).unwrap();
        let shown = |one: Value| {
            let word = |name: &str| one[name].as_str().unwrap_or_default().to_owned();
            (word("type"), one["lead"].as_i64().unwrap_or(0), word("state"))
        };
        messages.iter().map(|one| shown(read(one))).collect()
    }

    fn told(kind: &str, lead: i64, state: &str) -> (String, i64, String) {
        (kind.to_owned(), lead, state.to_owned())
    }

    #[test]
    fn each_change_of_a_job_is_told_once_and_claims_are_not() {
        let first = [job(2, JobState::Calling, None, 0), job(1, JobState::Done, Some(Outcome::Busy), 1)];
        let (known, messages) = compare("r", None, &first);
        assert_eq!(messages, [], "who begins to follow is told the counts");
        assert_eq!(compare("r", Some(&known), &first).1, [], "nothing has changed");
        let next = [
            job(5, JobState::Queued, None, 0),
            job(4, JobState::Dialing, None, 0),
            job(2, JobState::Queued, Some(Outcome::NoAnswer), 1),
            job(3, JobState::Done, Some(Outcome::Failed), 0),
            job(1, JobState::Done, Some(Outcome::Busy), 1),
        ];
        let (known, messages) = compare("r", Some(&known), &next);
        assert_eq!(texts(&messages), [told("run_job", 3, "done"), told("run_job", 2, "queued")], "in order");
        // Claimed again, and queued again without a slot.
        let (known, messages) = compare("r", Some(&known), &[job(2, JobState::Dialing, Some(Outcome::NoAnswer), 1)]);
        assert_eq!(messages, []);
        let (known, messages) = compare("r", Some(&known), &[job(2, JobState::Queued, Some(Outcome::NoAnswer), 1)]);
        assert_eq!(messages, []);
        let (_, messages) = compare("r", Some(&known), &[job(2, JobState::Calling, Some(Outcome::NoAnswer), 1)]);
        assert_eq!(texts(&messages), [told("run_job", 2, "calling")]);
    }

    #[test]
    fn what_changes_faster_than_it_is_read_is_said_to_be_left_out() {
        let many = |from: i64| -> Vec<ChangedJob> {
            (from..from + i64::from(READ_MAX)).rev().map(|seq| job(seq, JobState::Calling, None, 0)).collect()
        };
        let (known, _) = compare("r", None, &many(1));
        let (known, messages) = compare("r", Some(&known), &many(500));
        assert_eq!((messages.len(), &texts(&messages)[0]), (499, &told("run_job", 501, "calling")), "they join");
        let (_, messages) = compare("r", Some(&known), &many(1_000));
        assert_eq!((messages.len(), &texts(&messages)[0]), (501, &told("run_jobs_skipped", 0, "")));
    }
}
