//! Recurring runs: schedules, their times, and the results of their firings.

use async_trait::async_trait;

use super::Result;
use crate::clock::UnixMs;
use crate::words::words;

words!(
    /// Whether a schedule fires.
    ScheduleState {
        /// The schedule fires at its times.
        Active = "active",
        /// The schedule does not fire until it is resumed.
        Paused = "paused",
    }
);

/// A schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// The schedule's id.
    pub id: String,
    /// The schedule's business.
    pub business: String,
    /// The schedule's name, unique within the business.
    pub name: String,
    /// The definition of its runs, as JSON.
    pub spec: String,
    /// Whether it fires.
    pub state: ScheduleState,
    /// All firings up to this time were made or skipped.
    pub done_at: UnixMs,
    /// Next due time; `None`: no more firings.
    pub next_at: Option<UnixMs>,
    /// The firing that is retried, because its leads could not be fetched.
    pub failing_at: Option<UnixMs>,
    /// The number of its attempts.
    pub tries: u32,
    /// The last error.
    pub error: Option<String>,
    /// The last firing that was made.
    pub fired_at: Option<UnixMs>,
    /// The run of that firing; `None`: it had no leads.
    pub run: Option<String>,
    /// Note on the last firing: skipped leads.
    pub note: Option<String>,
    /// Creation time.
    pub created_at: UnixMs,
    /// Time of the last change.
    pub updated_at: UnixMs,
    /// Version, incremented by every change: a write with an older one is rejected.
    pub version: i64,
}

/// Outcome of the creation of a schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CreateScheduleOutcome {
    /// Created.
    New,
    /// The business already has one of this name.
    Known(Box<Schedule>),
}

/// The schedules of a [`super::Store`].
#[async_trait]
pub trait Schedules: Send + Sync {
    /// Creates a schedule, unless its business has one of the same name.
    async fn create_schedule(&self, schedule: &Schedule) -> Result<CreateScheduleOutcome>;

    /// A schedule.
    async fn schedule(&self, id: &str) -> Result<Option<Schedule>>;

    /// Schedules by business and name; of these businesses, if any are named.
    async fn schedules(&self, businesses: Option<Vec<String>>, limit: u32) -> Result<Vec<Schedule>>;

    /// Active schedules that are due, the earliest first.
    async fn due_schedules(&self, now_ms: UnixMs, limit: u32) -> Result<Vec<Schedule>>;

    /// The number of active schedules with a failing firing.
    async fn failing_schedules(&self) -> Result<u64>;

    /// Writes a schedule if the stored version is the given one. `false`: it is not, or the schedule is deleted.
    async fn change_schedule(&self, schedule: &Schedule) -> Result<bool>;

    /// Deletes a schedule. Its runs are kept. `false`: it does not exist.
    async fn delete_schedule(&self, id: &str) -> Result<bool>;
}
