//! `ringfence calls`: speaks to `listen.admin` of a running sidecar.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::Outcome;
use super::admin_client::{Console, path_of};

#[derive(Debug, Args)]
pub(super) struct Calls {
    #[command(flatten)]
    console: Console,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, Subcommand)]
enum Act {
    /// Calls that are up
    List {
        /// Ended ones too, the latest first
        #[arg(long)]
        all: bool,
        /// Of this business alone
        #[arg(long)]
        business: Option<String>,
    },
    /// One call; by our id, a call sid or a conversation id
    Show {
        /// The call
        id: String,
    },
    /// End the telephone call at its provider, and free its slot when the provider says that it is over
    Hangup {
        /// The call
        id: String,
        /// Why; stands in the audit
        #[arg(long)]
        reason: Option<String>,
    },
    /// Free the slot alone. The telephone call may go on, and the provider's limit be met unseen
    Release {
        /// The call
        id: String,
        /// You know that the call may go on
        #[arg(long)]
        force: bool,
        /// Why; stands in the log
        #[arg(long)]
        reason: String,
    },
}

impl Calls {
    pub(super) async fn run(self) -> Outcome {
        let of = |id: &str| path_of("/api/calls", id);
        match &self.act {
            Act::List { all, business } => {
                let mut query = form_urlencoded::Serializer::new(String::new());
                query.append_pair("all", if *all { "true" } else { "false" });
                if let Some(business) = business {
                    query.append_pair("business", business);
                }
                let listed = self.console.ask(Method::GET, &format!("/api/calls?{}", query.finish()), None).await?;
                if self.json {
                    println!("{listed}");
                } else {
                    let status = self.console.ask(Method::GET, "/status", None).await?;
                    print!("{}", table(&listed, &status));
                }
            }
            Act::Show { id } => {
                let call = self.console.ask(Method::GET, &of(id), None).await?;
                println!("{}", if self.json { call.to_string() } else { serde_json::to_string_pretty(&call)? });
            }
            Act::Hangup { id, reason } => {
                let body = Some(json!({"reason": reason}));
                let done = self.console.ask(Method::POST, &format!("{}/hangup", of(id)), body).await?;
                match (self.json, done["result"].as_str()) {
                    (true, _) => println!("{done}"),
                    (false, Some("over")) => println!("{id} is over: its provider's record says so. The slot is free."),
                    (false, _) => println!(
                        "{id}: {} took the hang-up, but its record does not say so yet. The slot stays held until it does.",
                        done["means"].as_str().unwrap_or("the provider")
                    ),
                }
            }
            Act::Release { id, force, reason } => {
                if !force {
                    let why = "releasing frees the slot while the call may go on; `calls hangup` ends it. If you are sure: --force";
                    return Err(anyhow::anyhow!(why).into());
                }
                let body = json!({"force": true, "reason": reason});
                let done = self.console.ask(Method::POST, &format!("{}/release", of(id)), Some(body)).await?;
                if self.json {
                    println!("{done}");
                } else {
                    println!("The slot of {id} is free. If the telephone call goes on, nobody counts it.");
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A figure of a provider's that is older is shown with its age, in seconds.
const FRESH_SECS: i64 = 60;

/// The calls as an operator reads them (experience.md §4).
fn table(listed: &Value, status: &Value) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    let now = time(&listed["now"]);
    if status["policiesDiffer"] == true {
        out.push_str("the replicas run on different policies; of each limit the lower one holds: see /status\n");
    }
    let policy = status["policy"]["hash"].as_str().map_or(String::new(), |hash| format!("policy {hash} "));
    for account in status["accounts"].as_array().into_iter().flatten() {
        let limit = account["limit"].as_u64().map_or(String::new(), |n| format!(" of {n}"));
        let foreign = account["foreign"].as_u64().unwrap_or(0);
        let in_use = account["inUse"].as_u64().unwrap_or(0);
        let ago = time(&account["sweptAt"]).zip(now).map(|(at, now)| now - at);
        let said = match (account["providerLive"].as_u64(), ago) {
            (Some(live), Some(secs)) if secs > FRESH_SECS => format!("   (provider said {live} {} ago)", span(secs)),
            (Some(live), _) => format!("   (provider says {live})"),
            (None, _) => String::new(),
        };
        let provider = match account["sweepError"].as_str() {
            Some(error) => format!("   provider cannot be asked: {error}{said}"),
            None => said,
        };
        let _ = writeln!(
            out,
            "account {:<12} {in_use}{limit} in use: {} ours, {foreign} foreign{provider}   {policy}{}",
            account["name"].as_str().unwrap_or_default(),
            in_use.saturating_sub(foreign),
            status["mode"].as_str().unwrap_or_default(),
        );
    }
    for limit in status["limits"].as_array().into_iter().flatten() {
        let text = |key: &str| limit[key].as_str().unwrap_or_default();
        // What nobody wrote surprises; what is built in and binds nobody does not.
        if matches!(text("from"), "built in") || text("from").starts_with("built in,") {
            continue;
        }
        let per = if text("per") == "all" { String::new() } else { format!(" per {}", text("per")) };
        let _ = writeln!(out, "limit   {:<18} {}{per}   ({})", text("name"), text("allows"), text("from"));
    }
    let calls = listed["calls"].as_array().map(Vec::as_slice).unwrap_or_default();
    if calls.is_empty() {
        out.push_str("\nno calls\n");
        return out;
    }
    let since = |at: &Value| time(at).zip(now).map_or("-".to_owned(), |(at, now)| span(now - at));
    let _ = writeln!(
        out,
        "\n{:<29} {:<14} {:<10} {:<4} {:<9} {:<7} {:<16} {:<9} {:<14} PROVIDER IDS",
        "CALL", "BUSINESS", "PLAN", "DIR", "PHASE", "AGE", "LAST SEEN", "DEADLINE", "OTHER END"
    );
    for call in calls {
        let text = |key: &str| call[key].as_str().unwrap_or("-");
        let phase = match (call["unsettled"].as_bool(), call["overLimit"].as_bool(), text("phase"), text("outcome")) {
            (_, _, "ended", outcome) => outcome,
            (Some(true), ..) => "unknown",
            (_, Some(true), ..) => "over limit",
            (_, _, phase, _) => phase,
        };
        let phase = match call["slots"].as_u64() {
            Some(slots) if slots > 1 => format!("{phase} ×{slots}"),
            _ => phase.to_owned(),
        };
        let ids: Vec<&str> = call["ids"].as_object().into_iter().flatten().filter_map(|(_, id)| id.as_str()).collect();
        let seen = format!("{} {}", since(&call["lastSeenAt"]), text("lastSeenBy"));
        let deadline = time(&call["deadlineAt"]).zip(now).map_or("-".to_owned(), |(at, now)| {
            if at > now { format!("in {}", span(at - now)) } else { "due".to_owned() }
        });
        let business = match text("origin") {
            origin @ ("foreign" | "unconfirmed") => format!("{} ({origin})", text("businessId")),
            _ => text("businessId").to_owned(),
        };
        let direction = if text("direction") == "inbound" { "in" } else { "out" };
        let _ = writeln!(
            out,
            "{:<29} {:<14} {:<10} {direction:<4} {phase:<9} {:<7} {seen:<16} {deadline:<9} {:<14} {}",
            text("callId"),
            business,
            text("plan"),
            since(&call["startedAt"]),
            text("otherNumber"),
            ids.join(" "),
        );
    }
    out
}

fn time(value: &Value) -> Option<i64> {
    value.as_str()?.parse::<jiff::Timestamp>().ok().map(|t| t.as_second())
}

fn span(secs: i64) -> String {
    let secs = secs.max(0);
    match secs {
        0..60 => format!("{secs}s"),
        60..3600 => format!("{}m{:02}s", secs / 60, secs % 60),
        _ => format!("{}h{:02}m", secs / 3600, secs % 3600 / 60),
    }
}
