//! `ringfence purge`: deletes the data of a business.

use std::process::ExitCode;

use clap::Args;
use http::Method;
use serde_json::json;

use super::admin_client::{AdminClient, path_of};
use super::outcome::Outcome;

#[derive(Debug, Args)]
pub(super) struct Purge {
    #[command(flatten)]
    admin: AdminClient,
    /// The business id
    #[arg(long)]
    business: String,
    /// The reason, for the audit log
    #[arg(long)]
    reason: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Purge {
    pub(super) async fn run(self) -> Outcome {
        let path = format!("{}/purge", path_of("/api/businesses", &self.business));
        let gone = self.admin.ask(Method::POST, &path, Some(json!({"reason": self.reason}))).await?;
        if self.json {
            println!("{gone}");
            return Ok(ExitCode::SUCCESS);
        }
        let n = |key: &str| gone[key].as_u64().unwrap_or(0);
        println!(
            "{}: {} calls, {} webhooks, {} deliveries, {} refusals, {} runs and {} schedules are deleted.",
            self.business,
            n("calls"),
            n("events"),
            n("deliveries"),
            n("refusals"),
            n("runs"),
            n("schedules")
        );
        let open: Vec<&str> = gone["open"].as_array().into_iter().flatten().filter_map(|id| id.as_str()).collect();
        if !open.is_empty() {
            println!("These calls are open and stay: {}. Purge again when they have ended.", open.join(", "));
        }
        Ok(ExitCode::SUCCESS)
    }
}
