//! Recurring runs: create, list, pause, resume, fire, delete.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use ulid::Ulid;

use super::auth::Caller;
use super::listing::visible_businesses;
use super::operator::Act;
use super::runs::shown as shown_run;
use super::{Admin, Answer, BODY_BYTES_MAX, Problem, bad, limit_of, not_found, ok};
use crate::clock::{UnixMs, rfc3339};
use crate::net::Exchange;
use crate::reply::json_answer;
use crate::runs::recurring::decide::resumed;
use crate::runs::recurring::firing::FiringError;
use crate::runs::recurring::scheduler::fire_now;
use crate::runs::recurring::spec::Recurring;
use crate::store::schedules::{Schedule, ScheduleMade, ScheduleState};

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
        who: &Caller,
    ) -> Answer {
        match (method, rest) {
            (&Method::GET, []) => self.list_schedules(exchange.query().unwrap_or_default(), who).await,
            (&Method::POST, []) => {
                let body = exchange.read_body(BODY_BYTES_MAX).await.map_err(|e| bad(e.to_string()))?;
                self.create_schedule(&body, who).await
            }
            (&Method::GET, [id]) => ok(&shown(&self.schedule_of(id, who).await?, true)),
            (&Method::DELETE, [id]) => {
                let schedule = self.schedule_of(id, who).await?;
                let before = json!({"business": schedule.business, "name": schedule.name});
                self.note(who, Act::new("delete schedule", &schedule.id).changes(before, Value::Null)).await?;
                match self.calls.lifecycle.store.delete_schedule(&schedule.id).await? {
                    true => ok(&json!({"scheduleId": schedule.id, "deleted": true})),
                    false => Err(unknown()),
                }
            }
            (&Method::POST, [id, "fire"]) => {
                let schedule = self.schedule_of(id, who).await?;
                self.note(who, Act::new("fire schedule", &schedule.id)).await?;
                let fired = fire_now(&self.calls, &self.runs, &schedule).await?;
                let run = fired.run.as_ref().map(|run| shown_run(run, None));
                let status = if run.is_some() { StatusCode::CREATED } else { StatusCode::OK };
                Ok(json_answer(status, &json!({"scheduleId": schedule.id, "run": run, "note": fired.note})))
            }
            (&Method::POST, [id, act @ ("pause" | "resume")]) => {
                let schedule = self.schedule_of(id, who).await?;
                self.turn_schedule(schedule, *act == "pause", who).await
            }
            _ => Err(not_found("nothing is served at this path and method")),
        }
    }

    /// A schedule that this caller may see.
    async fn schedule_of(&self, id: &str, who: &Caller) -> Result<Schedule, Problem> {
        let schedule = self.calls.lifecycle.store.schedule(id).await?;
        schedule.filter(|schedule| who.sees(&schedule.business)).ok_or_else(unknown)
    }

    async fn list_schedules(&self, query: &str, who: &Caller) -> Answer {
        let businesses = visible_businesses(query, who);
        let found = self.calls.lifecycle.store.schedules(businesses, limit_of(query)).await?;
        ok(&json!({"schedules": found.iter().map(|one| shown(one, false)).collect::<Vec<_>>()}))
    }

    async fn create_schedule(&self, body: &[u8], who: &Caller) -> Answer {
        let spec = serde_json::from_slice::<Recurring>(body).map_err(|e| bad(format!("the schedule: {e}")))?;
        if !who.sees(spec.run.business.as_str()) {
            return Err(not_found("no such business"));
        }
        let sources = &self.runs.settings.sources;
        let cron = spec.check(&self.calls, sources, who.businesses.is_some()).map_err(bad)?;
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
        self.note(who, Act::new("create schedule", &schedule.id).changes(Value::Null, after)).await?;
        match self.calls.lifecycle.store.create_schedule(&schedule).await? {
            ScheduleMade::New => Ok(json_answer(StatusCode::CREATED, &shown(&schedule, true))),
            ScheduleMade::Known(known) if known.spec == schedule.spec => ok(&shown(&known, true)),
            ScheduleMade::Known(known) => {
                let message = format!(
                    "{} has this name, and asks for something else; delete it first, or choose another name",
                    known.id
                );
                Err(Problem::Is(StatusCode::CONFLICT, "SCHEDULE_CONFLICT", message))
            }
        }
    }

    async fn turn_schedule(&self, schedule: Schedule, pause: bool, who: &Caller) -> Answer {
        let now_ms = self.calls.lifecycle.clock.now_ms();
        let to = if pause { ScheduleState::Paused } else { ScheduleState::Active };
        let what = if pause { "pause schedule" } else { "resume schedule" };
        let changes = (json!({"state": schedule.state}), json!({"state": to}));
        self.note(who, Act::new(what, &schedule.id).changes(changes.0, changes.1)).await?;
        let mut schedule = schedule;
        // The scheduler may change it concurrently: this change is applied after that one.
        for _ in 0..5 {
            if schedule.state == to {
                return ok(&shown(&schedule, true));
            }
            let after = match pause {
                true => Schedule { state: to, next_at: None, updated_at: now_ms, ..schedule.clone() },
                false => {
                    let spec: Recurring = serde_json::from_str(&schedule.spec).map_err(|e| bad(e.to_string()))?;
                    resumed(&schedule, &spec.cron().map_err(bad)?, now_ms)
                }
            };
            if self.calls.lifecycle.store.change_schedule(&after).await? {
                return ok(&shown(&after, true));
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
pub(super) fn shown(one: &Schedule, whole: bool) -> Value {
    let spec: Value = serde_json::from_str(&one.spec).unwrap_or_default();
    let time = |at: Option<UnixMs>| at.map(rfc3339);
    let mut shown = json!({
        "scheduleId": one.id, "businessId": one.business, "name": one.name, "schedule": spec["schedule"],
        "timezone": spec["timezone"], "source": spec["source"], "missed": spec["missed"], "badLeads": spec["bad_leads"],
        "state": one.state, "nextAt": time(one.next_at), "lastFiringAt": time(one.fired_at), "lastRunId": one.run,
        "note": one.note, "failingFiringAt": time(one.failing_at), "tries": one.tries, "error": one.error,
        "createdAt": rfc3339(one.created_at), "updatedAt": rfc3339(one.updated_at),
    });
    if whole {
        shown["run"] = spec["run"].clone();
    }
    shown
}
