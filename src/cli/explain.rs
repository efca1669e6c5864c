//! `ringfence explain`: why a create was or would be rejected, and what to do about it.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use http::Method;
use serde_json::Value;

use super::admin_client::{AdminClient, query};
use super::outcome::Outcome;
use super::text::{WIDTH, cut, field, list, span, table, wrap};

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Way {
    Outbound,
    Inbound,
}

#[derive(Debug, Args)]
pub(super) struct Explain {
    #[command(flatten)]
    admin: AdminClient,
    /// A refusal (rf_…), a call (c_…), or a provider's id of a call
    #[arg(required_unless_present = "business", conflicts_with = "business")]
    id: Option<String>,
    /// The business of a hypothetical call: would it be admitted now?
    #[arg(long)]
    business: Option<String>,
    /// Account of the call [default: the only one]
    #[arg(long, requires = "business")]
    account: Option<String>,
    /// Destination of the call: may it be called?
    #[arg(long, requires = "business", value_name = "NUMBER")]
    to: Option<String>,
    /// Direction of the call
    #[arg(long, requires = "business", value_enum, default_value_t = Way::Outbound)]
    direction: Way,
    /// Agent of the call
    #[arg(long, requires = "business")]
    agent: Option<String>,
    /// Your number that it would use
    #[arg(long, requires = "business")]
    number: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Explain {
    pub(super) async fn run(self) -> Outcome {
        let direction = match self.direction {
            Way::Outbound => None,
            Way::Inbound => Some("inbound"),
        };
        let asked = query(
            "/api/explain",
            &[
                ("id", self.id.as_deref()),
                ("business", self.business.as_deref()),
                ("account", self.account.as_deref()),
                ("to", self.to.as_deref()),
                ("direction", direction),
                ("agent", self.agent.as_deref()),
                ("number", self.number.as_deref()),
            ],
        );
        let answer = self.admin.ask(Method::GET, &asked, None).await?;
        match self.json {
            true => println!("{answer}"),
            false => print!("{}", render(&answer)),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The answer for people.
pub(super) fn render(answer: &Value) -> String {
    let mut out = String::new();
    let mut say = |line: &str| {
        out.push_str(&cut(line, WIDTH));
        out.push('\n');
    };
    let said = |say: &mut dyn FnMut(&str), head: &str, text: &str| {
        wrap(head, text, WIDTH).lines().for_each(say);
    };
    let refusal = &answer["refusal"];
    if refusal.is_object() {
        let text = |key: &str| field(refusal, key);
        let became = if refusal["observed"] == true { "would have been refused, and was sent" } else { "was refused" };
        say(&format!("{}: a call of {} {became} at {}", text("id"), text("business"), text("at")));
        let limit = match (refusal["limit_name"].as_str(), refusal["current"].as_u64(), refusal["limit"].as_u64()) {
            (Some(name), Some(current), Some(limit)) => format!(", limit {name}, {current} of {limit}"),
            (Some(name), ..) => format!(", limit {name}"),
            _ => String::new(),
        };
        said(&mut say, "code      ", &format!("{}{limit}; sent {} times", text("code"), refusal["attempts"]));
        said(&mut say, "means     ", text("means"));
        said(&mut say, "fix       ", text("fix"));
        holders(&mut say, "held it then", list(answer, "heldThen"), answer["moreHeldThen"].as_u64());
    }
    let call = &answer["call"];
    if call.is_object() {
        let text = |key: &str| field(call, key);
        say(&format!("{}: a call of {} with account {}", text("callId"), text("businessId"), text("account")));
        said(&mut say, "state     ", text("explained"));
    }
    let create = &answer["create"];
    if !create.is_object() {
        say("Its business or account is no longer in the config, so its present state is unknown.");
        return out;
    }
    if refusal.is_object() || call.is_object() {
        say("");
    }
    let text = |key: &str| field(create, key);
    let to = create["to"].as_str().map(|to| format!(" to {to}")).unwrap_or_default();
    said(
        &mut say,
        "now       ",
        &format!(
            "another {} call{to} of {} (plan {}) with account {}: {}",
            text("direction"),
            text("businessId"),
            text("plan"),
            text("account"),
            field(&answer["decision"], "outcome")
        ),
    );
    let decision = &answer["decision"];
    let code = decision["code"].as_str().map(|code| format!("{code}: ")).unwrap_or_default();
    said(&mut say, "because   ", &format!("{code}{}", field(decision, "because")));
    for advice in list(decision, "advice") {
        said(&mut say, "do        ", advice.as_str().unwrap_or_default());
    }
    say("");
    let rows: Vec<Vec<String>> = list(answer, "limits")
        .iter()
        .map(|limit| {
            let full = if limit["full"] == true { "FULL" } else { "" };
            let text = |key: &str| field(limit, key).to_owned();
            vec![text("name"), format!("{} of {}", limit["used"], limit["limit"]), full.to_owned(), text("from")]
        })
        .collect();
    match rows.is_empty() {
        true => say("no limit applies"),
        false => {
            let columns = [("LIMIT", 30), ("IN USE", 16), ("", 4), ("FROM", 44)];
            table(&columns, &rows).lines().for_each(&mut say);
        }
    }
    let full: Vec<&Value> = list(answer, "limits").iter().filter(|limit| limit["full"] == true).collect();
    for limit in full {
        let title = format!("hold {} now", field(limit, "name"));
        holders(&mut say, &title, list(limit, "holders"), limit["moreHolders"].as_u64());
    }
    out
}

fn holders(say: &mut dyn FnMut(&str), title: &str, holders: &[Value], more: Option<u64>) {
    let more = more.unwrap_or(0);
    if holders.is_empty() && more == 0 {
        return;
    }
    say("");
    say(&format!("{title}:"));
    let rows: Vec<Vec<String>> = holders
        .iter()
        .map(|one| {
            let secs = |key: &str| span(one[key].as_i64().unwrap_or(0));
            let text = |key: &str| field(one, key).to_owned();
            let phase = if one["unsettled"] == true { "unknown".to_owned() } else { text("phase") };
            let age = secs("ageSecs");
            vec![text("callId"), text("businessId"), phase, age, secs("silentSecs"), text("otherNumber")]
        })
        .collect();
    if !rows.is_empty() {
        let columns = [("CALL", 29), ("BUSINESS", 16), ("PHASE", 10), ("AGE", 7), ("SILENT", 7), ("OTHER END", 20)];
        table(&columns, &rows).lines().for_each(&mut *say);
    }
    if more > 0 {
        say(&format!("… and {more} more"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_answer_says_why_who_and_what_to_do() {
        let holder = json!({"callId": "c_1", "businessId": "acme", "phase": "live", "ageSecs": 65, "silentSecs": 3, "otherNumber": "+155••••••01"});
        let answer = json!({
            "refusal": {"id": "rf_1", "business": "acme", "at": "2026-01-01T00:00:00Z", "observed": false, "attempts": 3,
                "code": "BUSINESS_CONCURRENT_LIMIT_EXCEEDED", "limit_name": "plan.PRO", "current": 1, "limit": 1,
                "means": "the business had all its calls in use", "fix": "wait"},
            "heldThen": [holder], "moreHeldThen": 0,
            "create": {"businessId": "acme", "plan": "PRO", "account": "elevenlabs", "direction": "outbound"},
            "limits": [{"name": "plan.PRO", "used": 1, "limit": 1, "full": true, "from": "plans.PRO", "holders": [holder], "moreHolders": 2}],
            "decision": {"outcome": "refused", "code": "BUSINESS_CONCURRENT_LIMIT_EXCEEDED", "because": "limit plan.PRO is full", "advice": ["wait for it"]},
        });
        let text = render(&answer);
        for part in [
            "rf_1: a call of acme was refused at 2026-01-01T00:00:00Z",
            "limit plan.PRO, 1 of 1; sent 3 times",
            "held it then:",
            "do        wait for it",
            "plan.PRO 1 of 1 FULL plans.PRO",
            "hold plan.PRO now:",
            "c_1  acme     live  1m05s 3s     +155••••••01",
            "… and 2 more",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
    }
}
