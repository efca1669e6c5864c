//! `ringfence events`: the inbox of webhooks and the outbox to the app.

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use http::Method;
use serde_json::Value;

use super::Outcome;
use super::admin_client::{Console, path_of};

#[derive(Debug, Args)]
pub(super) struct Events {
    #[command(flatten)]
    console: Console,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum State {
    All,
    Unsettled,
    Parked,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            State::All => "all",
            State::Unsettled => "unsettled",
            State::Parked => "parked",
        }
    }
}

#[derive(Debug, Subcommand)]
enum Act {
    /// Webhooks, the latest first, and deliveries that the app does not have yet
    List {
        /// Which webhooks
        #[arg(long, value_enum, default_value_t = State::All)]
        state: State,
        /// How many
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// One webhook or event of ringfence's own, with its deliveries
    Show {
        /// Its id
        id: String,
    },
    /// Apply a webhook again, and deliver it to the app again under the same id
    Replay {
        /// Its id
        id: String,
    },
}

impl Events {
    pub(super) async fn run(self) -> Outcome {
        let of = |id: &str| path_of("/api/events", id);
        match &self.act {
            Act::List { state, limit } => {
                let path = format!("/api/events?state={}&limit={limit}", state.as_str());
                let listed = self.console.ask(Method::GET, &path, None).await?;
                if self.json {
                    println!("{listed}");
                } else {
                    print!("{}", table(&listed));
                }
            }
            Act::Show { id } => {
                let event = self.console.ask(Method::GET, &of(id), None).await?;
                println!("{}", if self.json { event.to_string() } else { serde_json::to_string_pretty(&event)? });
            }
            Act::Replay { id } => {
                let done = self.console.ask(Method::POST, &format!("{}/replay", of(id)), None).await?;
                if self.json {
                    println!("{done}");
                } else {
                    println!("{}", replayed(id, &done));
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn replayed(id: &str, done: &Value) -> String {
    let event = &done["event"];
    let applied = match (event["outcome"].as_str(), event["error"].as_str()) {
        (Some(outcome), _) => format!("{id}: {outcome}"),
        (None, Some(error)) => format!("{id} cannot be applied: {error}"),
        (None, None) => format!("{id} is an event of ringfence's own"),
    };
    match done["deliveries"].as_u64() {
        Some(0) | None => format!("{applied}; the app is told nothing of it."),
        Some(1) => format!("{applied}; its delivery is made again."),
        Some(n) => format!("{applied}; its {n} deliveries are made again."),
    }
}

/// The inbox as an operator reads it.
fn table(listed: &Value) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    let list = |key: &str| listed[key].as_array().map(Vec::as_slice).unwrap_or_default();
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
    use serde_json::json;

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
            "ev_1: applied; its delivery is made again."
        );
    }
}
