//! `ringfence events`: shows and replays the inbox of webhooks and the outbox to the app.

use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use http::Method;
use serde_json::{Value, json};

use super::admin_client::{AdminCommand, path_of, query};
use super::outcome::Outcome;
use super::text::{list, read_span};

pub(super) type Events = AdminCommand<Act>;

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum State {
    All,
    Unsettled,
    Settled,
    Parked,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            State::All => "all",
            State::Unsettled => "unsettled",
            State::Settled => "settled",
            State::Parked => "parked",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Failed {
    #[value(name = "failed")]
    Any,
    Parked,
    GivenUp,
}

#[derive(Debug, Subcommand)]
pub(super) enum Act {
    /// List webhooks, the latest first, and deliveries that are outstanding
    List {
        /// Only webhooks in this state
        #[arg(long, value_enum, default_value_t = State::All)]
        state: State,
        /// Only those of this account
        #[arg(long)]
        account: Option<String>,
        /// The maximum number
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// Show one webhook, or one of ringfence's own events, with its deliveries
    Show {
        /// The event id
        id: String,
    },
    /// Apply a webhook again and repeat its deliveries under the same ids; or all that failed
    Replay {
        /// The event id
        #[arg(required_unless_present = "status", conflicts_with = "status")]
        id: Option<String>,
        /// All that failed: webhooks that could not be applied (parked), deliveries that were given up, or both (failed)
        #[arg(long, value_enum)]
        status: Option<Failed>,
        /// Only those received within this time, as in 90s, 15m, 2h, 3d
        #[arg(long, requires = "status", value_name = "AGE", value_parser = read_span)]
        since: Option<u32>,
        /// Only those of this account
        #[arg(long, requires = "status")]
        account: Option<String>,
        /// Only list them
        #[arg(long, requires = "status")]
        dry_run: bool,
        /// Why, for the audit log
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
}

impl Events {
    pub(super) async fn run(self) -> Outcome {
        let of = |id: &str| path_of("/api/events", id);
        match &self.act {
            Act::List { state, account, limit } => {
                let listed = self.listed(*state, account.as_deref(), *limit).await?;
                if self.json {
                    println!("{listed}");
                } else {
                    print!("{}", table(&listed));
                }
            }
            Act::Show { id } => {
                let event = self.admin.ask(Method::GET, &of(id), None).await?;
                println!("{}", if self.json { event.to_string() } else { serde_json::to_string_pretty(&event)? });
            }
            Act::Replay { id: Some(id), reason, .. } => {
                let done = self.replay(id, reason.as_deref()).await?;
                println!("{}", if self.json { done.to_string() } else { replayed(id, &done) });
            }
            Act::Replay { id: None, status, since, account, dry_run, reason } => {
                let wanted =
                    Wanted { status: status.unwrap_or(Failed::Any), since: *since, account: account.as_deref() };
                return match dry_run {
                    true => self.list_all(&wanted).await,
                    false => self.replay_all(&wanted, reason.as_deref()).await,
                };
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The webhooks to replay.
struct Wanted<'a> {
    status: Failed,
    since: Option<u32>,
    account: Option<&'a str>,
}

impl Wanted<'_> {
    /// The path of a page of them, which goes on after another one.
    fn path(&self, after: Option<&str>) -> String {
        let state = match self.status {
            Failed::Any => "failed",
            Failed::Parked => "parked",
            Failed::GivenUp => "given_up",
        };
        let since = self.since.map(|secs| secs.to_string());
        let pairs =
            [("state", Some(state)), ("since_secs", since.as_deref()), ("account", self.account), ("after", after)];
        query("/api/events/replay", &pairs)
    }
}

impl Events {
    async fn listed(&self, state: State, account: Option<&str>, limit: u32) -> anyhow::Result<Value> {
        let limit = limit.to_string();
        let pairs = [("state", Some(state.as_str())), ("account", account), ("limit", Some(limit.as_str()))];
        self.admin.ask(Method::GET, &query("/api/events", &pairs), None).await
    }

    async fn replay(&self, id: &str, reason: Option<&str>) -> anyhow::Result<Value> {
        let body = reason.map(|reason| json!({"reason": reason}));
        self.admin.ask(Method::POST, &format!("{}/replay", path_of("/api/events", id)), body).await
    }

    /// Prints the ids of all matching webhooks, the oldest first.
    async fn list_all(&self, wanted: &Wanted<'_>) -> Outcome {
        let mut after = None::<String>;
        loop {
            let found = self.admin.ask(Method::GET, &wanted.path(after.as_deref()), None).await?;
            for id in list(&found, "ids").iter().filter_map(Value::as_str) {
                println!("{id}");
            }
            after = found["next"].as_str().map(str::to_owned);
            if after.is_none() {
                return Ok(ExitCode::SUCCESS);
            }
        }
    }

    /// Replays all matching webhooks, the oldest first; those that fail again are not retried.
    async fn replay_all(&self, wanted: &Wanted<'_>, reason: Option<&str>) -> Outcome {
        let (mut done, mut failed, mut after) = (0_u32, 0_u32, None::<String>);
        loop {
            let found = self.admin.ask(Method::GET, &wanted.path(after.as_deref()), None).await?;
            for id in list(&found, "ids").iter().filter_map(Value::as_str) {
                match self.replay(id, reason).await {
                    Ok(answer) => {
                        match is_applied(&answer) {
                            true => done += 1,
                            false => failed += 1,
                        }
                        println!("{}", if self.json { answer.to_string() } else { replayed(id, &answer) });
                    }
                    Err(error) => {
                        failed += 1;
                        eprintln!("{id}: {error:#}");
                    }
                }
            }
            after = found["next"].as_str().map(str::to_owned);
            if after.is_none() {
                break;
            }
        }
        if !self.json {
            println!("{done} replayed, {failed} failed.");
        }
        Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Whether a replayed webhook was applied, or is one of ringfence's own events.
fn is_applied(done: &Value) -> bool {
    let event = &done["event"];
    !event["outcome"].is_null() || (event["error"].is_null() && event["parkedAt"].is_null())
}

fn replayed(id: &str, done: &Value) -> String {
    let event = &done["event"];
    let applied = match (event["outcome"].as_str(), event["error"].as_str()) {
        (Some(outcome), _) => format!("{id}: {outcome}"),
        (None, Some(error)) => format!("failed to apply {id}: {error}"),
        (None, None) => format!("{id} is one of ringfence's own events"),
    };
    match done["deliveries"].as_u64() {
        Some(0) | None => format!("{applied}; it has no delivery to the app."),
        Some(1) => format!("{applied}; its delivery is repeated."),
        Some(n) => format!("{applied}; its {n} deliveries are repeated."),
    }
}

/// The inbox for people.
fn table(listed: &Value) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    let list = |key: &str| list(listed, key);
    let _ = writeln!(out, "{:<30} {:<24} {:<12} {:<24} {:<18} CALL", "EVENT", "RECEIVED", "ACCOUNT", "WHAT", "OUTCOME");
    for event in list("events") {
        let text = |key: &str| event[key].as_str().unwrap_or("-");
        let outcome = match (event["outcome"].as_str(), event["parkedAt"].as_str()) {
            (Some(outcome), _) => outcome.to_owned(),
            (None, Some(_)) => "parked".to_owned(),
            (None, None) => format!("tried {} times", event["tries"].as_u64().unwrap_or(0)),
        };
        let _ = writeln!(
            out,
            "{:<30} {:<24} {:<12} {:<24} {outcome:<18} {}{}",
            text("id"),
            text("receivedAt"),
            text("account"),
            text("event"),
            text("callId"),
            event["error"].as_str().map_or(String::new(), |error| format!("   {error}")),
        );
    }
    for (key, title) in [("pending", "still to be delivered"), ("givenUp", "given up: `ringfence events replay EVENT`")]
    {
        if list(key).is_empty() {
            continue;
        }
        let _ = writeln!(out, "\n{title}");
        for delivery in list(key) {
            let text = |key: &str| delivery[key].as_str().unwrap_or("-");
            let url = if delivery["own"] == true { "app.events_url" } else { text("url") };
            let _ = writeln!(
                out,
                "{:<30} of {:<30} {} tries, next {}   {url}   {}",
                text("id"),
                text("eventId"),
                delivery["attempts"].as_u64().unwrap_or(0),
                text("nextTryAt"),
                text("lastError"),
            );
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_reads_what_is_parked_and_what_was_given_up() {
        let listed = json!({
            "events": [
                {"id": "ev_1", "receivedAt": "2026-01-01T00:00:00Z", "account": "twilio", "event": "call_status", "callId": "c_1", "outcome": "applied", "tries": 0},
                {"id": "ev_2", "receivedAt": "2026-01-01T00:00:00Z", "account": "twilio", "event": "call_status", "parkedAt": "2026-01-01T02:00:00Z", "tries": 10, "error": "a record cannot be read"},
            ],
            "pending": [],
            "givenUp": [{"id": "dl_1", "eventId": "ev_1", "attempts": 9, "url": "http://app/x", "lastError": "the app answered 500"}],
        });
        let text = table(&listed);
        assert!(text.contains("applied            c_1\n"), "{text}");
        assert!(text.contains("parked             -   a record cannot be read"), "{text}");
        assert!(!text.contains("still to be delivered") && text.contains("given up"), "{text}");
        assert!(text.contains("9 tries, next -   http://app/x   the app answered 500"), "{text}");
        assert_eq!(
            replayed("ev_1", &json!({"event": {"outcome": "applied"}, "deliveries": 1})),
            "ev_1: applied; its delivery is repeated."
        );
    }
}
