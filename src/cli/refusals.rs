//! `ringfence refusals`: lists rejected creates and inbound calls.

use std::process::ExitCode;

use clap::Subcommand;
use http::Method;
use serde_json::Value;

use super::admin_client::{AdminCommand, path_of, query};
use super::explain;
use super::outcome::Outcome;
use super::text::{field, list, read_span, span, table, time};
use super::watch::watch;

pub(super) type Refusals = AdminCommand<Act>;

#[derive(Debug, Subcommand)]
pub(super) enum Act {
    /// List the latest refusals
    List {
        /// Only refusals of this business
        #[arg(long)]
        business: Option<String>,
        /// Only refusals of this account
        #[arg(long)]
        account: Option<String>,
        /// Only refusals within this time, as in 90s, 15m, 2h
        #[arg(long, value_name = "AGE", value_parser = read_span)]
        since: Option<u32>,
        /// The maximum number
        #[arg(long, default_value_t = 50)]
        limit: u32,
        /// Repeat every two seconds
        #[arg(long)]
        watch: bool,
    },
    /// Show one refusal: which limit, who held its slots then, its present use, what to do
    Show {
        /// The refusal's id, as in rf_…
        id: String,
    },
}

impl Refusals {
    pub(super) async fn run(self) -> Outcome {
        match &self.act {
            Act::List { business, account, since, limit, watch: again } => {
                let (limit, since) = (limit.to_string(), since.map(|secs| secs.to_string()));
                let (business, account) = (business.as_deref(), account.as_deref());
                let pairs = [("limit", Some(&*limit)), ("business", business), ("account", account)];
                let path = query("/api/refusals", &[&pairs[..], &[("since_secs", since.as_deref())]].concat());
                watch(*again, self.json, async || {
                    let listed = self.admin.ask(Method::GET, &path, None).await?;
                    Ok(if self.json { format!("{listed}\n") } else { render(&listed) })
                })
                .await?;
            }
            Act::Show { id } if self.json => {
                let shown = self.admin.ask(Method::GET, &path_of("/api/refusals", id), None).await?;
                println!("{shown}");
            }
            Act::Show { id } => {
                let asked = query("/api/explain", &[("id", Some(id))]);
                let answer = self.admin.ask(Method::GET, &asked, None).await?;
                print!("{}", explain::render(&answer));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn render(listed: &Value) -> String {
    let refusals = list(listed, "refusals");
    if refusals.is_empty() {
        return "no refusals\n".to_owned();
    }
    let now = time(&listed["now"]);
    let rows: Vec<Vec<String>> = refusals
        .iter()
        .map(|one| {
            let text = |key: &str| field(one, key).to_owned();
            let age = time(&one["at"]).zip(now).map_or("-".to_owned(), |(at, now)| span(now - at));
            let used = match (one["current"].as_u64(), one["limit"].as_u64()) {
                (Some(current), Some(limit)) => format!("{current}/{limit}"),
                _ => "-".to_owned(),
            };
            let limit = match one["limit_name"].as_str() {
                Some(limit) => limit.to_owned(),
                None => text("code"),
            };
            let way = if one["direction"] == "inbound" { "in" } else { "out" };
            let became = if one["observed"] == true { "let through" } else { "refused" };
            vec![text("id"), age, text("business"), way.to_owned(), limit, used, became.to_owned()]
        })
        .collect();
    let columns =
        [("REFUSAL", 30), ("AGE", 6), ("BUSINESS", 13), ("DIR", 3), ("LIMIT OR CODE", 22), ("USED", 8), ("", 11)];
    let mut out = table(&columns, &rows);
    if listed["next"].is_string() {
        out.push_str("\nthere are more: --limit, --since, --business, --account\n");
    }
    out.push_str("\nringfence explain ID says why, and who holds the slots\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::text::WIDTH;
    use serde_json::json;

    #[test]
    fn refusals_fit_a_hundred_columns() {
        let one = json!({
            "id": "rf_01m8ja41r898gzy0p74wnf828t", "at": "2026-01-01T00:00:00Z", "business": "x".repeat(64), "direction": "outbound",
            "code": "BUSINESS_CONCURRENT_LIMIT_EXCEEDED", "limit_name": null, "current": 4_000_000, "limit": 4_000_000, "observed": true,
        });
        let text = render(&json!({"refusals": [one], "now": "2026-01-01T00:01:00Z"}));
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(text.contains("rf_01m8ja41r898gzy0p74wnf828t 1m00s") && text.contains("let through"), "{text}");
        assert!(!text.contains("there are more"), "{text}");
        assert!(render(&json!({"refusals": [one], "next": "1-rf_1"})).contains("there are more: --limit"));
        assert_eq!(render(&json!({"refusals": []})), "no refusals\n");
    }
}
