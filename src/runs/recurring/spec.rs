//! The specification of a schedule.

use serde::{Deserialize, Serialize};

use super::super::load::no_public_host;
use super::super::plan::Plan;
use super::super::spec::Spec;
use super::cron::{Cron, Missed};
use super::source::{Author, Sources};
use crate::calls::Calls;
use crate::clock::UnixMs;
use crate::destinations::Zone;

/// The longest name, in characters.
const NAME_CHARS_MAX: usize = 100;

/// The specification of a schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recurring {
    /// The schedule's name, which no other of its business has.
    pub name: String,
    /// A cron expression of five fields: minute, hour, day of the month, month, day of the week.
    pub schedule: String,
    /// The time zone of that, a name of the IANA database.
    pub timezone: String,
    /// The source of leads, by its name in the config.
    pub source: String,
    /// Treatment of firings that were missed while no process ran.
    #[serde(default)]
    pub missed: Missed,
    /// Treatment of leads that cannot be called.
    #[serde(default)]
    pub bad_leads: BadLeads,
    /// The run that each firing makes.
    pub run: Spec,
}

/// Treatment of leads that cannot be called.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BadLeads {
    /// The leads are left out, and counted: no operator is at hand to mend them.
    #[default]
    Skip,
    /// The firing fails, and nobody is called.
    Reject,
}

impl Recurring {
    /// The times at which it fires.
    ///
    /// # Errors
    /// A sentence about the expression or the zone.
    pub fn cron(&self) -> Result<Cron, String> {
        let zone = Zone::parse(&self.timezone).map_err(|why| format!("timezone: {why}"))?;
        Cron::parse(&self.schedule, zone).map_err(|why| format!("schedule: {why}"))
    }

    /// Checks it, as a specification by this author.
    ///
    /// # Errors
    /// A sentence about the first mistake.
    pub fn check(&self, calls: &Calls, sources: &Sources, author: Author) -> Result<Cron, String> {
        if self.name.trim().is_empty() || self.name.chars().count() > NAME_CHARS_MAX {
            return Err(format!("name must have 1 to {NAME_CHARS_MAX} characters"));
        }
        let cron = self.cron()?;
        if self.run.start_at.is_some() || self.run.idempotency_key.is_some() {
            return Err("run must not have start_at or idempotency_key: each firing has its own".to_owned());
        }
        if self.run.batch.is_some() {
            return Err("run: unknown field `batch`".to_owned());
        }
        let source = sources.get(&self.source).filter(|source| source.is_for(&self.run.business, author));
        if source.is_none() {
            return Err(format!(
                "there is no source {} for business {} in [[lead_sources]]",
                self.source, self.run.business
            ));
        }
        let plan = Plan::new(self.run.clone(), calls).map_err(|why| format!("run: {why}"))?;
        match no_public_host(&plan, calls) {
            Some(why) => Err(format!("run: {why}: set public_url in the config")),
            None => Ok(cron),
        }
    }

    /// The run of a firing.
    pub fn run_of(&self, key: String) -> Spec {
        let name = self.run.name.clone().or_else(|| Some(self.name.clone()));
        Spec { idempotency_key: Some(key), name, ..self.run.clone() }
    }

    /// The date of a firing on the schedule's own clock, as in `2026-11-30`.
    pub fn date_of(&self, at_ms: UnixMs) -> String {
        Zone::parse(&self.timezone).map(|zone| zone.date_of(at_ms)).unwrap_or_default()
    }
}
