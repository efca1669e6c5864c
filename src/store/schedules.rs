//! Recurring runs: what fires, when, and how it went.

use async_trait::async_trait;

use super::Result;
use crate::call::words;
use crate::clock::UnixMs;

words!(
    /// Whether a schedule fires.
    ScheduleState {
        /// It fires at its times.
        Active = "active",
        /// It does not fire until it is resumed.
        Paused = "paused",
    }
);

/// A schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// Its id.
    pub id: String,
    /// Whose runs it makes.
    pub business: String,
    /// Its name, which no other of its business has.
    pub name: String,
    /// What it asks for, as JSON.
    pub spec: String,
    /// Whether it fires.
    pub state: ScheduleState,
    /// All firings up to this time were made, or left out.
    pub done_at: UnixMs,
    /// When there is something to do; none: nothing ever again.
    pub next_at: Option<UnixMs>,
    /// The firing that is tried again, as its leads could not be had.
    pub failing_at: Option<UnixMs>,
    /// How often that was tried.
    pub tries: u32,
    /// Why it failed last.
    pub error: Option<String>,
    /// The last firing that was made.
    pub fired_at: Option<UnixMs>,
    /// The run that it made; none: there were no leads.
    pub run: Option<String>,
    /// What is to be said of it: leads that were left out.
    pub note: Option<String>,
    /// When it was made.
    pub created_at: UnixMs,
    /// When anything of it changed last.
    pub updated_at: UnixMs,
    /// Goes up with every change: who has read an old one changes nothing.
    pub version: i64,
}

/// What became of a schedule that was to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScheduleMade {
    /// It is new.
    New,
    /// Its business has one of this name.
    Known(Box<Schedule>),
}

/// The part of a [`super::Store`] that keeps schedules.
#[async_trait]
pub trait Schedules: Send + Sync {
    /// Makes a schedule, unless its business has one of its name.
    async fn create_schedule(&self, schedule: &Schedule) -> Result<ScheduleMade>;

    /// A schedule.
    async fn schedule(&self, id: &str) -> Result<Option<Schedule>>;

    /// Schedules by business and name; of these businesses, if any are named.
    async fn schedules(&self, businesses: Option<Vec<String>>, limit: u32) -> Result<Vec<Schedule>>;

    /// Active schedules that have something to do by now, the first ones first.
    async fn due_schedules(&self, now_ms: UnixMs, limit: u32) -> Result<Vec<Schedule>>;

    /// How many active schedules have a firing that is tried again.
    async fn failing_schedules(&self) -> Result<u64>;

    /// Writes how a schedule stands, if it still is at the version that is given. `false`: it is not, or is gone.
    async fn change_schedule(&self, schedule: &Schedule) -> Result<bool>;

    /// Deletes a schedule. Its runs stay. `false`: there is none.
    async fn delete_schedule(&self, id: &str) -> Result<bool>;
}
