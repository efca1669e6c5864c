//! `ringfence bypass`: temporarily switches all limits off, at every replica.

use std::process::ExitCode;

use clap::Subcommand;
use http::Method;
use serde_json::{Value, json};

use super::admin_client::AdminCommand;
use super::outcome::Outcome;
use super::text::{field, read_span, span};

pub(super) type Bypass = AdminCommand<Act>;

#[derive(Debug, Subcommand)]
pub(super) enum Act {
    /// Let all creates and inbound calls through, counted and recorded, for a limited time
    On {
        /// How long, as in 90s, 15m, 2h; at most a day
        #[arg(long = "for", value_name = "TIME", value_parser = read_span)]
        time: u32,
        /// The reason, for the audit log, the status and the page
        #[arg(long)]
        reason: String,
    },
    /// End the bypass now
    Off,
    /// Show the bypass: start, end, operator and reason
    Show,
}

impl Bypass {
    pub(super) async fn run(self) -> Outcome {
        let (method, body) = match &self.act {
            Act::On { time, reason } => (Method::PUT, Some(json!({"for_secs": time, "reason": reason}))),
            Act::Off => (Method::DELETE, None),
            Act::Show => (Method::GET, None),
        };
        let answer = self.admin.ask(method, "/api/bypass", body).await?;
        match self.json {
            true => println!("{answer}"),
            false => println!("{}", render(&answer)),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn render(answer: &Value) -> String {
    let bypass = &answer["bypass"];
    let state = match bypass["leftSecs"].as_i64() {
        Some(left) => format!(
            "The bypass is on for {} more, until {}, by {}: {}\nEvery call is let through, counted and recorded. To end it: ringfence bypass off",
            span(left),
            field(bypass, "until"),
            field(bypass, "by"),
            field(bypass, "reason")
        ),
        None => "The bypass is off: limits refuse as the policy says.".to_owned(),
    };
    match answer["note"].as_str() {
        Some(note) => format!("{state}\nNote: {note}"),
        None => state,
    }
}
