//! `ringfence reconcile`: compares leases, call records and providers now, and repairs differences.

use std::process::ExitCode;

use clap::Args;
use http::Method;
use serde_json::Value;

use super::admin_client::AdminClient;
use super::outcome::Outcome;

#[derive(Debug, Args)]
pub(super) struct Reconcile {
    #[command(flatten)]
    admin: AdminClient,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Reconcile {
    pub(super) async fn run(self) -> Outcome {
        let done = self.admin.ask(Method::POST, "/api/reconcile", None).await?;
        if self.json {
            println!("{done}");
        } else {
            print!("{}", shown(&done));
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn shown(done: &Value) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    for account in done["accounts"].as_array().into_iter().flatten() {
        let (name, n) =
            (account["account"].as_str().unwrap_or_default(), |key: &str| account[key].as_u64().unwrap_or(0));
        let said = match (account["error"].as_str(), account["canBeAsked"].as_bool()) {
            (Some(error), _) => format!("cannot be asked: {error}"),
            (None, Some(false)) => "no credentials for look-ups; only webhooks and deadlines".to_owned(),
            _ => format!(
                "provider says {}, {} were on record: {} had ended, {} found again, {} foreign ones counted",
                n("providerLive"),
                n("open"),
                n("ended"),
                n("found"),
                n("adopted")
            ),
        };
        let _ = writeln!(out, "account {name:<12} {said}");
    }
    let gate = |key: &str| done["gate"][key].as_u64().unwrap_or(0);
    let _ = match done["gateError"].as_str() {
        Some(error) => writeln!(out, "gate                 cannot be compared: {error}"),
        None => writeln!(
            out,
            "gate                 {} leases match the call records; {} of ended calls released, {} without a record removed, {} calls counted again",
            gate("agree"),
            gate("ended"),
            gate("orphans"),
            gate("uncounted")
        ),
    };
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_person_reads_what_was_done() {
        let done = json!({
            "accounts": [
                {"account": "main", "canBeAsked": true, "open": 3, "providerLive": 2, "ended": 1, "found": 0, "adopted": 0},
                {"account": "dumb", "canBeAsked": false, "open": 0, "providerLive": 0, "ended": 0, "found": 0, "adopted": 0},
                {"account": "away", "canBeAsked": true, "error": "the provider answered 500"},
            ],
            "gate": {"agree": 2, "ended": 0, "orphans": 1, "uncounted": 0},
        });
        let text = shown(&done);
        for line in [
            "account main         provider says 2, 3 were on record: 1 had ended, 0 found again, 0 foreign ones counted",
            "account dumb         no credentials for look-ups; only webhooks and deadlines",
            "account away         cannot be asked: the provider answered 500",
            "gate                 2 leases match the call records; 0 of ended calls released, 1 without a record removed, 0 calls counted again",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\nnot in\n{text}");
        }
    }
}
