//! `ringfence health`: a health check for container images without curl.

use std::process::ExitCode;

use clap::Args;
use http::Method;

use super::admin_client::{AdminClient, refused};
use super::outcome::Outcome;

/// Check whether a running sidecar is up: exit code 0, else 1
#[derive(Debug, Args)]
pub(super) struct Health {
    #[command(flatten)]
    admin: AdminClient,
    /// Check whether it is ready to serve, not only running
    #[arg(long)]
    ready: bool,
}

impl Health {
    pub(super) async fn run(self) -> Outcome {
        let path = if self.ready { "/ready" } else { "/health" };
        let (status, answer) = self.admin.send(Method::GET, path, None).await?;
        if !status.is_success() {
            return Err(refused(status, &answer).into());
        }
        println!("{}", answer["status"].as_str().unwrap_or("ok"));
        Ok(ExitCode::SUCCESS)
    }
}
