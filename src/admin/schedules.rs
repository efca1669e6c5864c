//! Recurring runs: create, list, pause, resume, fire, delete.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use ulid::Ulid;

use super::auth::Requester;
use super::listing::visible_businesses;
use super::operator::Act;
use super::runs::run_json;
use super::{Admin, Answer, BODY_BYTES_MAX, Problem, bad, limit_of, not_found, nothing_here, ok};
use crate::clock::{UnixMs, rfc3339};
use crate::net::Exchange;
use crate::reply::json_answer;
use crate::runs::recurring::decide::resumed;
use crate::runs::recurring::firing::FiringError;
use crate::runs::recurring::scheduler::fire_now;
use crate::runs::recurring::source::Author;
use crate::runs::recurring::spec::Recurring;
use crate::store::schedules::{CreateScheduleOutcome, Schedule, ScheduleState};

impl From<FiringError> for Problem {
    fn from(error: FiringError) -> Self {
        match error {
            FiringError::Store(error) => Self::Store(error),
            FiringError::Busy => Self::Is(StatusCode::CONFLICT, "SCHEDULE_BUSY", error.to_string()),
            FiringError::Failed(why) => Self::Is(StatusCode::BAD_GATEWAY, "LEADS_UNAVAILABLE", why),
        }
    }
}

fn unknown() -> Problem {
    not_found("no schedule of this id is on record")
}

impl Admin {
    pub(super) async fn route_schedules(
        &self,
        exchange: &mut Exchange,
        method: &Method,
        rest: &[&str],
        who: &Requester,
    ) -> Answer {
        match (method, rest) {
            (&Method::GET, []) => self.list_schedules(exchange.query().unwrap_or_default(), who).await,
            (&Method::POST, []) => {
                let body = exchange.read_body(BODY_BYTES_MAX).await.map_err(|e| bad(e.to_string()))?;
                self.create_schedule(&body, who).await
            }
            (&Method::GET, [id]) => ok(&schedule_json_with_run(&self.schedule_of(id, who).await?)),
            (&Method::DELETE, [id]) => {
                let schedule = self.schedule_of(id, who).await?;
                let before = json!({"business": schedule.business, "name": schedule.name});
                self.audit(who, Act::new("delete schedule", &schedule.id).changes(before, Value::Null)).await?;
                match self.calls.lifecycle.store.delete_schedule(&schedule.id).await? {
                    true => ok(&json!({"scheduleId": schedule.id, "deleted": true})),
                    false => Err(unknown()),
                }
            }
            (&Method::POST, [id, "fire"]) => {
                let schedule = self.schedule_of(id, who).await?;
                self.audit(who, Act::new("fire schedule", &schedule.id)).await?;
                let fired = fire_now(&self.calls, &self.runs, &schedule).await?;
                let run = fired.run.as_ref().map(|run| run_json(run, None));
                let status = if run.is_some() { StatusCode::CREATED } else { StatusCode::OK };
                Ok(json_answer(status, &json!({"scheduleId": schedule.id, "run": run, "note": fired.note})))
            }
            (&Method::POST, [id, act @ ("pause" | "resume")]) => {
                let schedule = self.schedule_of(id, who).await?;
                let to = if *act == "pause" { ScheduleState::Paused } else { ScheduleState::Active };
                self.change_schedule_state(schedule, to, who).await
            }
            _ => Err(nothing_here()),
        }
    }

    /// A schedule that this requester may see.
    async fn schedule_of(&self, id: &str, who: &Requester) -> Result<Schedule, Problem> {
        let schedule = self.calls.lifecycle.store.schedule(id).await?;
        schedule.filter(|schedule| who.sees(&schedule.business)).ok_or_else(unknown)
    }

    async fn list_schedules(&self, query: &str, who: &Requester) -> Answer {
        let businesses = visible_businesses(query, who);
        let found = self.calls.lifecycle.store.schedules(businesses, limit_of(query)).await?;
        ok(&json!({"schedules": found.iter().map(schedule_json).collect::<Vec<_>>()}))
    }

    async fn create_schedule(&self, body: &[u8], who: &Requester) -> Answer {
        let spec = serde_json::from_slice::<Recurring>(body).map_err(|e| bad(format!("the schedule: {e}")))?;
        if !who.sees(spec.run.business.as_str()) {
            return Err(not_found("no such business"));
        }
        let sources = &self.runs.settings.sources;
        let author = if who.businesses.is_some() { Author::Tenant } else { Author::Operator };
        let cron = spec.check(&self.calls, sources, author).map_err(bad)?;
        let now_ms = self.calls.lifecycle.clock.now_ms();
        let schedule = Schedule {
            id: format!("sched_{}", Ulid::new().to_string().to_lowercase()),
            business: spec.run.business.to_string(),
            name: spec.name.clone(),
            spec: serde_json::to_string(&spec).map_err(|e| bad(e.to_string()))?,
            state: ScheduleState::Active,
            done_at: now_ms,
            next_at: cron.next_firing(now_ms),
            failing_at: None,
            tries: 0,
            error: None,
            fired_at: None,
            run: None,
            note: None,
            created_at: now_ms,
            updated_at: now_ms,
            version: 0,
        };
        let after = json!({"business": schedule.business, "name": schedule.name, "schedule": spec.schedule,
            "timezone": spec.timezone, "source": spec.source});
        self.audit(who, Act::new("create schedule", &schedule.id).changes(Value::Null, after)).await?;
        match self.calls.lifecycle.store.create_schedule(&schedule).await? {
            CreateScheduleOutcome::New => Ok(json_answer(StatusCode::CREATED, &schedule_json_with_run(&schedule))),
            CreateScheduleOutcome::Known(known) if known.spec == schedule.spec => ok(&schedule_json_with_run(&known)),
            CreateScheduleOutcome::Known(known) => {
                let message = format!(
                    "{} has this name, and asks for something else; delete it first, or choose another name",
                    known.id
                );
                Err(Problem::Is(StatusCode::CONFLICT, "SCHEDULE_CONFLICT", message))
            }
        }
    }

    async fn change_schedule_state(&self, schedule: Schedule, to: ScheduleState, who: &Requester) -> Answer {
        let now_ms = self.calls.lifecycle.clock.now_ms();
        let what = match to {
            ScheduleState::Paused => "pause schedule",
            ScheduleState::Active => "resume schedule",
        };
        let changes = (json!({"state": schedule.state}), json!({"state": to}));
        self.audit(who, Act::new(what, &schedule.id).changes(changes.0, changes.1)).await?;
        let mut schedule = schedule;
        // The scheduler may change it concurrently: this change is applied after that one.
        for _ in 0..5 {
            if schedule.state == to {
                return ok(&schedule_json_with_run(&schedule));
            }
            let after = match to {
                ScheduleState::Paused => Schedule { state: to, next_at: None, updated_at: now_ms, ..schedule.clone() },
                ScheduleState::Active => {
                    let spec: Recurring = serde_json::from_str(&schedule.spec).map_err(|e| bad(e.to_string()))?;
                    resumed(&schedule, &spec.cron().map_err(bad)?, now_ms)
                }
            };
            if self.calls.lifecycle.store.change_schedule(&after).await? {
                return ok(&schedule_json_with_run(&after));
            }
            schedule = self.schedule_of(&schedule.id, who).await?;
        }
        Err(Problem::Is(
            StatusCode::CONFLICT,
            "SCHEDULE_BUSY",
            "the schedule changes all the time; try again".to_owned(),
        ))
    }
}

/// A schedule as JSON.
pub(super) fn schedule_json(one: &Schedule) -> Value {
    let spec: Value = serde_json::from_str(&one.spec).unwrap_or_default();
    let time = |at: Option<UnixMs>| at.map(rfc3339);
    json!({
        "scheduleId": one.id, "businessId": one.business, "name": one.name, "schedule": spec["schedule"],
        "timezone": spec["timezone"], "source": spec["source"], "missed": spec["missed"], "badLeads": spec["bad_leads"],
        "state": one.state, "nextAt": time(one.next_at), "lastFiringAt": time(one.fired_at), "lastRunId": one.run,
        "note": one.note, "failingFiringAt": time(one.failing_at), "tries": one.tries, "error": one.error,
        "createdAt": rfc3339(one.created_at), "updatedAt": rfc3339(one.updated_at),
    })
}

/// A schedule as JSON, with the definition of its runs.
fn schedule_json_with_run(one: &Schedule) -> Value {
    let spec: Value = serde_json::from_str(&one.spec).unwrap_or_default();
    let mut shown = schedule_json(one);
    shown["run"] = spec["run"].clone();
    shown
}
