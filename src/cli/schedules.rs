//! `ringfence schedules`: manages recurring runs of a running sidecar.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use http::Method;
use serde_json::Value;

use super::admin_client::{AdminCommand, path_of, query};
use super::outcome::Outcome;

pub(super) type Schedules = AdminCommand<Act>;

#[derive(Debug, Subcommand)]
pub(super) enum Act {
    /// Create a schedule from a description (JSON); - is standard input
    Create {
        /// The description of the schedule: docs/runs.md
        description: PathBuf,
        /// A cron expression of five fields; overrides the description's
        #[arg(long, value_name = "CRON")]
        schedule: Option<String>,
        /// An IANA time zone; overrides the description's
        #[arg(long, value_name = "ZONE")]
        timezone: Option<String>,
    },
    /// List all schedules
    List {
        /// Only schedules of this business
        #[arg(long)]
        business: Option<String>,
    },
    /// Show one schedule, its next and its last firing
    Show {
        /// The schedule
        id: String,
    },
    /// Stop firing until the schedule is resumed. Its runs continue
    Pause {
        /// The schedule
        id: String,
    },
    /// Resume firing. Missed firings are skipped
    Resume {
        /// The schedule
        id: String,
    },
    /// Create a run now, regardless of its times
    Fire {
        /// The schedule
        id: String,
    },
    /// Delete the schedule. Its runs stay
    Delete {
        /// The schedule
        id: String,
    },
}

impl Schedules {
    pub(super) async fn run(self) -> Outcome {
        let of = |id: &str| path_of("/api/schedules", id);
        let (method, path, body) = match &self.act {
            Act::Create { description, schedule, timezone } => {
                let body = described_in(description, schedule.as_deref(), timezone.as_deref())?;
                (Method::POST, "/api/schedules".to_owned(), Some(body))
            }
            Act::List { business } => {
                let pairs = [("limit", Some("1000")), ("business", business.as_deref())];
                (Method::GET, query("/api/schedules", &pairs), None)
            }
            Act::Show { id } => (Method::GET, of(id), None),
            Act::Pause { id } => (Method::POST, format!("{}/pause", of(id)), None),
            Act::Resume { id } => (Method::POST, format!("{}/resume", of(id)), None),
            Act::Fire { id } => (Method::POST, format!("{}/fire", of(id)), None),
            Act::Delete { id } => (Method::DELETE, of(id), None),
        };
        let answer = self.admin.ask(method, &path, body).await?;
        let shown = match &self.act {
            _ if self.json => answer.to_string(),
            Act::List { .. } => table(&answer),
            Act::Fire { .. } => fired(&answer),
            Act::Delete { id } => format!("{id} is deleted; its runs stay"),
            _ => described(&answer),
        };
        println!("{}", shown.trim_end());
        Ok(ExitCode::SUCCESS)
    }
}

fn described_in(file: &Path, schedule: Option<&str>, timezone: Option<&str>) -> anyhow::Result<Value> {
    let text = if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        text
    } else {
        std::fs::read_to_string(file).map_err(|error| anyhow::anyhow!("failed to read {}: {error}", file.display()))?
    };
    let mut body: Value =
        serde_json::from_str(&text).map_err(|error| anyhow::anyhow!("{} is not JSON: {error}", file.display()))?;
    if let Some(fields) = body.as_object_mut() {
        for (name, value) in [("schedule", schedule), ("timezone", timezone)] {
            if let Some(value) = value {
                fields.insert(name.to_owned(), value.into());
            }
        }
    }
    Ok(body)
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or("-")
}

fn described(one: &Value) -> String {
    let mut out = format!(
        "{}  {}  {} of {}  \"{}\" {}  next {}\n",
        text(one, "scheduleId"),
        text(one, "state"),
        text(one, "name"),
        text(one, "businessId"),
        text(one, "schedule"),
        text(one, "timezone"),
        text(one, "nextAt"),
    );
    if !one["lastFiringAt"].is_null() {
        let run = one["lastRunId"].as_str().unwrap_or("no leads, no run");
        out += &format!("fired {}: {run}\n", text(one, "lastFiringAt"));
    }
    if let Some(note) = one["note"].as_str() {
        out += &format!("{note}\n");
    }
    if let Some(error) = one["error"].as_str() {
        let (firing, tries) = (text(one, "failingFiringAt"), one["tries"].as_u64().unwrap_or(0));
        out += &format!("the firing of {firing} failed {tries} times and is retried: {error}\n");
    }
    out
}

fn fired(answer: &Value) -> String {
    let run = &answer["run"];
    let mut out = match run["runId"].as_str() {
        Some(id) => {
            let why = run["reason"].as_str().map_or(String::new(), |why| format!(": {why}"));
            format!("{id}  {}{why}  {} leads\n", text(run, "state"), run["leads"].as_u64().unwrap_or(0))
        }
        None => "no leads, no run\n".to_owned(),
    };
    if let Some(note) = answer["note"].as_str() {
        out += note;
    }
    out
}

fn table(listed: &Value) -> String {
    let all = listed["schedules"].as_array().map(Vec::as_slice).unwrap_or_default();
    if all.is_empty() {
        return "no schedules\n".to_owned();
    }
    let row = |id: &str, business: &str, name: &str, state: &str, schedule: &str, next: &str, last: &str| {
        format!("{id:<32} {business:<14} {name:<20} {state:<8} {schedule:<36} {next:<21} {last}\n")
    };
    let mut out = row("SCHEDULE", "BUSINESS", "NAME", "STATE", "AT", "NEXT", "LAST RUN");
    for one in all {
        let at = format!("{} {}", text(one, "schedule"), text(one, "timezone"));
        let state = if one["error"].is_null() { text(one, "state") } else { "failing" };
        out += &row(
            text(one, "scheduleId"),
            text(one, "businessId"),
            text(one, "name"),
            state,
            &at,
            text(one, "nextAt"),
            text(one, "lastRunId"),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schedule_says_when_it_fires_and_why_it_does_not() {
        let one = json!({
            "scheduleId": "sched_1", "businessId": "acme", "name": "daily", "schedule": "0 9 * * *", "timezone": "UTC",
            "state": "active", "nextAt": "2026-11-30T09:00:00Z", "lastFiringAt": "2026-11-29T09:00:00Z", "lastRunId": null,
            "note": "1 leads left out: row 3: x", "failingFiringAt": "2026-11-30T09:00:00Z", "tries": 2, "error": "away",
        });
        let shown = described(&one);
        assert_eq!(
            shown,
            "sched_1  active  daily of acme  \"0 9 * * *\" UTC  next 2026-11-30T09:00:00Z\n\
             fired 2026-11-29T09:00:00Z: no leads, no run\n1 leads left out: row 3: x\n\
             the firing of 2026-11-30T09:00:00Z failed 2 times and is retried: away\n"
        );
        let listed = table(&json!({"schedules": [one]}));
        assert!(listed.lines().nth(1).unwrap().contains(" failing "), "{listed}");
        let run = json!({"run": {"runId": "run_1", "state": "running", "leads": 3}, "note": null});
        assert_eq!(fired(&run), "run_1  running  3 leads\n");
    }
}
