//! `ringfence status`: the state of a running sidecar on one screen.

use std::process::ExitCode;

use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::admin_client::AdminClient;
use super::alarms::alarms;
use super::calls::{account_line, policy_line};
use super::outcome::Outcome;
use super::text::{WIDTH, cut, field, list, span, table, time, wrap};
use super::watch::watch;

/// Maximum limits shown; further ones are counted.
const LIMITS_MAX: usize = 12;
/// Maximum refusals counted.
const REFUSALS_MAX: u32 = 1000;
/// The period of the counted refusals, in seconds.
const REFUSED_WITHIN_SECS: u32 = 300;

#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    admin: AdminClient,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Repeat every two seconds
    #[arg(long)]
    watch: bool,
}

impl Status {
    pub(super) async fn run(self) -> Outcome {
        watch(self.watch, self.json, async || {
            let mut status = self.admin.ask(Method::GET, "/status", None).await?;
            let path = format!("/api/refusals?limit={REFUSALS_MAX}&since_secs={REFUSED_WITHIN_SECS}");
            // Unknown without the database; the status shows that.
            let refused = self.admin.ask(Method::GET, &path, None).await.unwrap_or_default();
            if self.json {
                let found: Vec<Value> = alarms(&status)
                    .iter()
                    .map(|one| json!({"level": one.level.as_str(), "what": one.what, "fix": one.fix}))
                    .collect();
                status["alarms"] = found.into();
                return Ok(format!("{status}\n"));
            }
            Ok(render(&status, &refused))
        })
        .await?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Refusals by limit or code, the most frequent first.
pub(super) fn refused_by(refusals: &[Value]) -> Vec<(String, usize)> {
    let mut by = std::collections::BTreeMap::<String, usize>::new();
    for one in refusals {
        let name = one["limit_name"].as_str().or(one["code"].as_str()).unwrap_or("-");
        *by.entry(name.to_owned()).or_default() += 1;
    }
    let mut by: Vec<_> = by.into_iter().collect();
    by.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    by
}

fn render(status: &Value, refused: &Value) -> String {
    let mut out = String::new();
    let mut say = |line: String| {
        out.push_str(&cut(&line, WIDTH));
        out.push('\n');
    };
    let now = time(&refused["now"]).or_else(|| Some(jiff::Timestamp::now().as_second()));
    say(format!("ringfence {}   {}", field(status, "version"), policy_line(status)));
    let found = alarms(status);
    if found.is_empty() {
        say("Nothing needs attention.".to_owned());
    }
    for alarm in &found {
        let head = format!("{:<4} ", alarm.level.as_str());
        wrap(&head, &format!("{} ({})", alarm.what, alarm.fix), WIDTH).lines().for_each(|line| say(line.to_owned()));
    }
    say(String::new());
    for account in list(status, "accounts") {
        say(account_line(account, now));
    }
    let store = &status["store"];
    let state = if store["ok"] == true { "ok" } else { "rejects writes" };
    say(format!("store   {} {} {state}", field(store, "backend"), field(store, "path")));
    let (gate, standing) = (&status["gate"], &status["gate"]["standing"]);
    let decides = if standing["degraded"] == true { ", degraded" } else { ", ok" };
    say(format!(
        "gate    {}{decides}, epoch {}; {} slots held",
        field(standing, "mode"),
        standing["epoch"],
        gate["calls"].as_u64().filter(|_| gate["counted"] != false).map_or("unknown".to_owned(), |n| n.to_string())
    ));
    let refusals = list(refused, "refusals");
    if refusals.is_empty() {
        say("refused 0 in the last 5 min".to_owned());
    } else {
        let by: Vec<String> = refused_by(refusals).iter().take(4).map(|(name, n)| format!("{name} {n}")).collect();
        let more = if refusals.len() as u64 >= u64::from(REFUSALS_MAX) { "at least " } else { "" };
        say(format!("refused {more}{} in the last 5 min: {}", refusals.len(), by.join(", ")));
    }
    let limits = in_use(status);
    if !limits.is_empty() {
        say(String::new());
        let columns = [("LIMIT", 40), ("ALLOWS", 40), ("IN USE", 10)];
        table(&columns, &limits[..limits.len().min(LIMITS_MAX)]).lines().for_each(|line| say(line.to_owned()));
        if limits.len() > LIMITS_MAX {
            say(format!("… and {} more: --json", limits.len() - LIMITS_MAX));
        }
    }
    let replicas = list(status, "replicas");
    if !replicas.is_empty() {
        say(String::new());
        let rows: Vec<Vec<String>> = replicas.iter().map(|one| replica(one, now)).collect();
        let columns = [("REPLICA", 26), ("HOST", 20), ("VERSION", 10), ("POLICY", 14), ("HEARD", 8), ("", 16)];
        table(&columns, &rows).lines().for_each(|line| say(line.to_owned()));
    }
    out
}

fn replica(one: &Value, now: Option<i64>) -> Vec<String> {
    let heard = time(&one["heardAt"]).zip(now).map_or("-".to_owned(), |(at, now)| span(now - at));
    let mut marks = Vec::new();
    if one["self"] == true {
        marks.push("this one");
    }
    if one["leads"] == true {
        marks.push("leads");
    }
    let text = |key: &str| field(one, key).to_owned();
    vec![text("id"), text("host"), text("version"), text("policy"), heard, marks.join(", ")]
}

/// All counts in use, the fullest first: limit, bound, use.
fn in_use(status: &Value) -> Vec<Vec<String>> {
    let limits = list(status, "limits");
    let (held, businesses) = (status["gate"]["byLimit"].as_object(), list(&status["gate"], "businesses"));
    let mut rows: Vec<(u64, Vec<String>)> = Vec::new();
    for (key, n) in held.into_iter().flatten() {
        let n = n.as_u64().unwrap_or(0);
        let (name, per) = key.split_once('|').unwrap_or((key, ""));
        let shown = if per.is_empty() { name.to_owned() } else { format!("{name} {per}") };
        let is_it = |limit: &&Value| limit["name"].as_str() == Some(name) || limit["name"] == format!("business.{per}");
        let allows = limits.iter().find(is_it).map(|limit| field(limit, "allows").to_owned());
        let business = businesses.iter().find(|one| name == "business" && one["id"] == per);
        let allows = allows.or_else(|| of_plan(business?)).unwrap_or_else(|| "-".to_owned());
        rows.push((n, vec![shown, allows, n.to_string()]));
    }
    rows.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
    rows.into_iter().map(|(_, row)| row).collect()
}

/// Describes what the plan of a business allows it.
fn of_plan(business: &Value) -> Option<String> {
    let (limit, plan) = (business["limit"].as_u64()?, field(business, "plan"));
    Some(format!("{limit} {} at once, plan {plan}", if limit == 1 { "call" } else { "calls" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_screen_says_how_it_stands() {
        let status = json!({
            "version": "0.1.0", "mode": "enforce", "policy": {"hash": "7f3a91c04be2"}, "bypass": null,
            "accounts": [{"name": "elevenlabs", "inUse": 9, "limit": 10, "foreign": 1, "providerLive": 9}],
            "store": {"backend": "sqlite", "path": "/var/lib/ringfence/ringfence.db", "ok": true, "journaled": 0},
            "gate": {"standing": {"mode": "memory", "backend": "memory", "epoch": 2, "degraded": false}, "calls": 9,
                "byLimit": {"global|": 9, "business|acme": 3, "business|birch": 2, "business|cedar": 1},
                "businesses": [{"id": "acme", "plan": "PRO", "inUse": 3, "limit": 3}, {"id": "birch", "plan": "PRO", "inUse": 2, "limit": 5}]},
            "limits": [{"name": "global", "allows": "10 calls at once"}, {"name": "business.acme", "allows": "3 calls at once"}],
            "replicas": [{"id": "01m8", "host": "a", "version": "0.1.0", "policy": "7f3a", "self": true, "leads": true}],
        });
        let refused = json!({"refusals": [{"limit_name": "plan.PRO"}, {"limit_name": "plan.PRO"}, {"code": "X"}], "now": "2026-01-01T00:00:00Z"});
        let text = render(&status, &refused);
        for part in [
            "ringfence 0.1.0   policy 7f3a91c04be2 enforce",
            "warn account elevenlabs: 9 of 10 calls in use",
            "refused 3 in the last 5 min: plan.PRO 2, X 1",
            "global         10 calls at once",
            "business acme  3 calls at once ",
            "business birch 5 calls at once, plan PRO 2",
            "business cedar - ",
            "this one, leads",
            "gate    memory, ok, epoch 2; 9 slots held",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(text.lines().count() < 24, "{text}");
    }
}
