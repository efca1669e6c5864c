//! `ringfence check`.

use std::process::ExitCode;

use clap::Args;

use super::{ConfigFile, Failure, Outcome, file};

#[derive(Debug, Args)]
pub(super) struct Check {
    #[command(flatten)]
    file: ConfigFile,
    /// Print the mistakes as JSON
    #[arg(long)]
    json: bool,
}

impl Check {
    pub(super) fn run(self) -> Outcome {
        let read = file::read(&self.file.config, &[])?;
        if self.json {
            let mistakes: Vec<_> = read
                .loaded
                .diagnostics
                .iter()
                .map(|d| {
                    serde_json::json!({
                        "code": d.code, "severity": format!("{:?}", d.severity).to_lowercase(), "title": d.title,
                        "span": d.span.as_ref().map(|s| [s.start, s.end]), "help": d.help,
                    })
                })
                .collect();
            println!("{}", serde_json::json!({"ok": !read.loaded.has_errors(), "diagnostics": mistakes}));
        } else {
            read.print();
        }
        let Some(config) = read.loaded.config else { return Err(Failure::Config) };
        if !self.json {
            println!("{} can be used.", self.file.config.display());
            println!("  mode      {}", config.policy.mode.as_str());
            println!(
                "  listen    api {}, webhooks {}, admin {}",
                config.listen.api, config.listen.webhooks, config.listen.admin
            );
            for account in config.accounts.values() {
                let limit = config.policy.accounts.iter().find(|a| a.name == account.name).and_then(|a| a.concurrent);
                let limit = limit.map_or("no limit of its own".to_owned(), |n| format!("{n} calls at once"));
                println!("  account   {} ({}), {limit}, → {}", account.name, account.provider.name, account.upstream);
            }
            println!("  checks    {}", config.strict.because());
        }
        Ok(ExitCode::SUCCESS)
    }
}
