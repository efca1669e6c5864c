//! `ringfence calls`: lists, shows, hangs up and releases calls of a running sidecar.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::admin_client::{AdminCommand, path_of};
use super::outcome::Outcome;
use super::text::{WIDTH, cut, field, list, read_span, span, table, time};
use super::watch::watch;

pub(super) type Calls = AdminCommand<Act>;

/// The filters and the format of the list.
#[derive(Debug, Args)]
pub(super) struct List {
    /// Include ended calls, the latest first
    #[arg(long)]
    all: bool,
    /// Only calls of this business
    #[arg(long)]
    business: Option<String>,
    /// Only calls of this account, including those that it carries for another
    #[arg(long)]
    account: Option<String>,
    /// Only calls in these phases, separated by commas
    #[arg(long, value_delimiter = ',')]
    phase: Vec<String>,
    /// Only calls at least this old, as in 90s, 15m, 2h
    #[arg(long, value_name = "AGE", value_parser = read_span)]
    older: Option<u32>,
    /// Only calls that began within this time
    #[arg(long, value_name = "AGE", value_parser = read_span)]
    since: Option<u32>,
    /// The maximum number of calls, with --all
    #[arg(long, default_value_t = 100)]
    limit: u32,
    /// Show plan, account and the providers' ids, whatever the terminal's width
    #[arg(long)]
    wide: bool,
    /// Repeat every two seconds
    #[arg(long)]
    watch: bool,
}

impl List {
    fn query(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("all", if self.all { "true" } else { "false" });
        if self.all {
            query.append_pair("limit", &self.limit.to_string());
        }
        for (name, value) in [("business", &self.business), ("account", &self.account)] {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        if !self.phase.is_empty() {
            query.append_pair("phase", &self.phase.join(","));
        }
        for (name, secs) in [("older_secs", self.older), ("since_secs", self.since)] {
            if let Some(secs) = secs {
                query.append_pair(name, &secs.to_string());
            }
        }
        query.finish()
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Act {
    /// List open calls
    List(List),
    /// Show one call, by its ringfence id, call SID or conversation id
    Show {
        /// The call
        id: String,
    },
    /// End a call at its provider; its slot is freed when the provider reports the end
    Hangup {
        /// The call
        id: String,
        /// The reason, for the audit log
        #[arg(long)]
        reason: Option<String>,
    },
    /// Free only the slot. The telephone call may continue uncounted
    Release {
        /// The call
        id: String,
        /// Confirm that the call may continue
        #[arg(long)]
        force: bool,
        /// The reason, for the audit log
        #[arg(long)]
        reason: String,
    },
}

impl Calls {
    pub(super) async fn run(self) -> Outcome {
        let of = |id: &str| path_of("/api/calls", id);
        match &self.act {
            Act::List(list) => {
                let query = list.query();
                watch(list.watch, self.json, async || {
                    let listed = self.admin.ask(Method::GET, &format!("/api/calls?{query}"), None).await?;
                    if self.json {
                        return Ok(format!("{listed}\n"));
                    }
                    // A token for some businesses may not see the status.
                    let (status, answer) = self.admin.send(Method::GET, "/status", None).await?;
                    let about = if status.is_success() { answer } else { Value::Null };
                    Ok(render(&listed, &about, list.wide))
                })
                .await?;
            }
            Act::Show { id } => {
                let call = self.admin.ask(Method::GET, &of(id), None).await?;
                println!("{}", if self.json { call.to_string() } else { serde_json::to_string_pretty(&call)? });
            }
            Act::Hangup { id, reason } => {
                let body = Some(json!({"reason": reason}));
                let done = self.admin.ask(Method::POST, &format!("{}/hangup", of(id)), body).await?;
                match (self.json, done["result"].as_str()) {
                    (true, _) => println!("{done}"),
                    (false, Some("over")) => println!("{id} has ended, according to its provider. The slot is free."),
                    (false, _) => println!(
                        "{id}: {} accepted the hang-up, but does not report the end yet. The slot stays held until it does.",
                        done["means"].as_str().unwrap_or("the provider")
                    ),
                }
            }
            Act::Release { id, force, reason } => {
                if !force {
                    let why = "release frees the slot although the call may continue; `calls hangup` ends it. If you are sure: --force";
                    return Err(anyhow::anyhow!(why).into());
                }
                let body = json!({"force": true, "reason": reason});
                let done = self.admin.ask(Method::POST, &format!("{}/release", of(id)), Some(body)).await?;
                if self.json {
                    println!("{done}");
                } else {
                    println!("The slot of {id} is free. If the telephone call continues, it is not counted.");
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The age from which a provider's number is shown with its age, in seconds.
const FRESH_SECS: i64 = 60;

/// An account's usage in one line.
pub(super) fn account_line(account: &Value, now: Option<i64>) -> String {
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
    let name = field(account, "name");
    let ours = in_use.saturating_sub(foreign);
    format!("account {name:<12} {in_use}{limit} in use: {ours} ours, {foreign} foreign{provider}")
}

/// The policy in one line.
pub(super) fn policy_line(status: &Value) -> String {
    let hash = status["policy"]["hash"].as_str().map_or(String::new(), |hash| format!("policy {hash} "));
    let bypass = if status["bypass"].is_object() { ", bypassed: limits refuse nothing" } else { "" };
    format!("{hash}{}{bypass}", status["mode"].as_str().unwrap_or_default())
}

/// The list for people.
fn render(listed: &Value, status: &Value, wide: bool) -> String {
    let mut out = String::new();
    let now = time(&listed["now"]);
    let mut say = |line: &str| {
        out.push_str(&if wide { line.to_owned() } else { cut(line, WIDTH) });
        out.push('\n');
    };
    if status.is_object() {
        say(&policy_line(status));
    }
    if status["policiesDiffer"] == true {
        say("replicas run different policies; the lower number of each limit applies: ringfence status");
    }
    for account in list(status, "accounts") {
        say(&account_line(account, now));
    }
    for limit in list(status, "limits") {
        let text = |key: &str| limit[key].as_str().unwrap_or_default();
        // Unexpected defaults are shown; built-in limits without a business are not.
        if text("from").starts_with("built in") {
            continue;
        }
        let per = if text("per") == "all" { String::new() } else { format!(" per {}", text("per")) };
        say(&format!("limit   {:<18} {}{per}   ({})", text("name"), text("allows"), text("from")));
    }
    let calls = list(listed, "calls");
    if calls.is_empty() {
        let open = listed["open"].as_u64().filter(|open| *open > 0);
        out.push_str(&open.map_or("\nno calls\n".to_owned(), |open| format!("\nno such calls; {open} are up\n")));
        return out;
    }
    let rows: Vec<Vec<String>> = calls.iter().map(|call| row(call, now, wide)).collect();
    let narrow = [
        ("CALL", 29),
        ("BUSINESS", 13),
        ("DIR", 3),
        ("PHASE", 10),
        ("AGE", 6),
        ("LAST SEEN", 10),
        ("DEADLINE", 9),
        ("OTHER END", 13),
    ];
    let more = [("PLAN", usize::MAX), ("ACCOUNT", usize::MAX), ("PROVIDER IDS", usize::MAX)];
    let columns: Vec<(&str, usize)> = match wide {
        true => narrow.map(|(title, _)| (title, usize::MAX)).into_iter().chain(more).collect(),
        false => narrow.to_vec(),
    };
    out.push('\n');
    out.push_str(&table(&columns, &rows));
    out.push_str(&cut_off(listed));
    out
}

/// Returns a note on the rest that the list left out.
fn cut_off(listed: &Value) -> String {
    let shown = list(listed, "calls").len() as u64;
    match listed["total"].as_u64().map(|total| total.saturating_sub(shown)) {
        Some(more) if more > 0 => {
            format!("\n{more} more: narrow the list with --business, --account, --phase, --older or --since\n")
        }
        None if listed["next"].is_string() => "\nthere are more: --limit, --since, --older\n".to_owned(),
        _ => String::new(),
    }
}

fn row(call: &Value, now: Option<i64>, wide: bool) -> Vec<String> {
    let since = |at: &Value| time(at).zip(now).map_or("-".to_owned(), |(at, now)| span(now - at));
    let text = |key: &str| field(call, key);
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
    let deadline = time(&call["deadlineAt"])
        .zip(now)
        .map_or("-".to_owned(), |(at, now)| if at > now { format!("in {}", span(at - now)) } else { "due".to_owned() });
    let business = match text("origin") {
        origin @ ("foreign" | "unconfirmed") => format!("({origin})"),
        _ => text("businessId").to_owned(),
    };
    let mut row = vec![
        text("callId").to_owned(),
        business,
        if text("direction") == "inbound" { "in" } else { "out" }.to_owned(),
        phase,
        since(&call["startedAt"]),
        format!("{} {}", since(&call["lastSeenAt"]), text("lastSeenBy")),
        deadline,
        text("otherNumber").to_owned(),
    ];
    if wide {
        let ids: Vec<&str> = call["ids"].as_object().into_iter().flatten().filter_map(|(_, id)| id.as_str()).collect();
        row.extend([text("plan").to_owned(), text("account").to_owned(), ids.join(" ")]);
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_fits_a_hundred_columns_whatever_stands_in_it() {
        let long = "a-business-with-a-name-that-is-much-too-long-for-any-column-of-a-table";
        let call = json!({
            "callId": "c_01m8ja41r898gzy0p74wnf828t", "businessId": long, "plan": "PRO", "direction": "outbound",
            "phase": "reserved", "unsettled": false, "overLimit": true, "slots": 120, "startedAt": "2026-01-01T00:00:00Z",
            "lastSeenAt": "2026-01-01T00:00:00Z", "lastSeenBy": "a source of some length", "deadlineAt": "2026-03-01T00:00:00Z",
            "otherNumber": "sip:somebody-with-a-long-name@a-host.example.com", "account": "elevenlabs",
            "ids": {"call_sid": "CA92811ee1a5d509abbd420e8c140403e6", "conversation_id": "conv_c0y2gyjbg1bahv9ckpnv7kcrfk"},
        });
        let cut = |more: Value| cut_off(&json!({"calls": [call], "total": more["total"], "next": more["next"]}));
        assert_eq!(cut(json!({"total": 1, "next": null})), "");
        assert!(cut(json!({"total": 201, "next": "1-c_1"})).starts_with("\n200 more: narrow the list with --business"));
        assert!(cut(json!({"total": null, "next": "1-c_1"})).starts_with("\nthere are more: --limit"));
        let listed = json!({"calls": [call], "open": 1, "now": "2026-02-01T00:00:00Z"});
        let error =
            "the provider answered 500 to a question that was asked as it always is, and so on, and so on, and so on";
        let status = json!({
            "mode": "enforce", "policy": {"hash": "7f3a91c04be2"}, "policiesDiffer": true, "bypass": {"until": "x"},
            "accounts": [{"name": "elevenlabs", "inUse": 3, "limit": 10, "foreign": 1, "sweepError": error}],
            "limits": [{"name": "x".repeat(200), "per": "business", "allows": "5 calls at once", "from": "[[limits]]"}],
        });
        let text = render(&listed, &status, false);
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH, "{} columns: {line}", line.chars().count());
        }
        assert!(text.contains("c_01m8ja41r898gzy0p74wnf828t a-business-w…"), "{text}");
        assert!(!text.contains("conv_"), "{text}");
        let wide = render(&listed, &status, true);
        assert!(wide.contains(long) && wide.contains("conv_c0y2gyjbg1bahv9ckpnv7kcrfk"), "{wide}");
    }
}
