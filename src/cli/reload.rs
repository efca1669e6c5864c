//! `ringfence reload`: makes a running sidecar reload its config.

use std::process::ExitCode;

use clap::Args;
use http::{Method, StatusCode};

use super::admin_client::{AdminClient, refused};
use super::outcome::{Failure, Outcome};

#[derive(Debug, Args)]
pub(super) struct Reload {
    #[command(flatten)]
    admin: AdminClient,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Reload {
    pub(super) async fn run(self) -> Outcome {
        let (status, answer) = self.admin.send(Method::POST, "/api/reload", None).await?;
        let kept = status == StatusCode::UNPROCESSABLE_ENTITY;
        if !status.is_success() && !kept {
            return Err(refused(status, &answer).into());
        }
        let text = |key: &str| answer[key].as_str().unwrap_or_default();
        if self.json {
            println!("{answer}");
        } else {
            eprint!("{}", text("drawn"));
            match text("result") {
                "loaded" => println!("loaded: policy {} is in force", text("policy")),
                "unchanged" => println!("unchanged: policy {} is in force, as it is written", text("policy")),
                _ => eprintln!("nothing was reloaded: policy {} stays in force.   exit 2", text("policy")),
            }
        }
        if kept { Err(Failure::Config) } else { Ok(ExitCode::SUCCESS) }
    }
}
