//! `ringfence check`.

use std::process::ExitCode;

use clap::Args;

use super::outcome::{ConfigFile, Failure, Outcome};
use super::{built, check_live, file, modes};
use crate::config::Config;
use crate::config::diagnostics::{self, Diagnostic, without_password};
use crate::policy::Policy;

/// The reference config: all keys with default and unit. A test compares it with the code.
const REFERENCE: &str = include_str!("../../config/reference.toml");

#[derive(Debug, Args)]
pub(super) struct Check {
    #[command(flatten)]
    file: ConfigFile,
    /// Also check the providers, the store and the ports, without changing anything
    #[arg(long)]
    live: bool,
    /// Print all keys with default and unit instead, as a config
    #[arg(long, conflicts_with_all = ["live", "json"])]
    defaults: bool,
    /// Print the diagnostics as JSON
    #[arg(long)]
    json: bool,
}

impl Check {
    pub(super) async fn run(self) -> Outcome {
        if self.defaults {
            print!("{REFERENCE}");
            return Ok(ExitCode::SUCCESS);
        }
        let mut read = file::read(&self.file.config, &[])?;
        let mut seen = Vec::new();
        let wide = read.loaded.config.as_ref().map(modes::check_modes).unwrap_or_default();
        read.loaded.diagnostics.extend(wide);
        if let Some(config) = &read.loaded.config {
            read.loaded.diagnostics.extend(built::check_build(config));
        }
        // Live checks need a config that can be built.
        if let Some(config) = read.loaded.config.as_ref().filter(|_| self.live && !read.loaded.has_errors()) {
            let found = check_live::ask(config, check_live::Depth::Check).await?;
            seen = found.lines;
            read.loaded.diagnostics.extend(found.diagnostics);
        }
        let broken = read.loaded.has_errors();
        let shown = self.file.config.display().to_string();
        let at = |d: &Diagnostic| d.span.as_ref().map(|span| diagnostics::line_and_column(read.text(), span.start));
        if self.json {
            let mistakes: Vec<_> = read
                .loaded
                .diagnostics
                .iter()
                .map(|d| {
                    serde_json::json!({
                        "code": d.code, "severity": format!("{:?}", d.severity).to_lowercase(), "title": d.title,
                        "file": d.span.is_some().then_some(&shown), "line": at(d).map(|at| at.0), "column": at(d).map(|at| at.1),
                        "span": d.span.as_ref().map(|s| [s.start, s.end]), "help": d.help,
                    })
                })
                .collect();
            println!("{}", serde_json::json!({"ok": !broken, "diagnostics": mistakes, "live": seen}));
        } else {
            read.print(match (&read.loaded.config, self.live) {
                (Some(_), _) => "is valid as written, but does not fit what it refers to",
                (None, true) => "would be rejected, so there were no live checks",
                (None, false) => "would be rejected",
            });
        }
        let Some(config) = read.loaded.config else { return Err(Failure::Config) };
        if !self.json {
            show(&config, &self.file.config.display().to_string(), broken);
            for line in seen {
                println!("  live      {line}");
            }
        }
        if broken { Err(Failure::Config) } else { Ok(ExitCode::SUCCESS) }
    }
}

fn show(config: &Config, path: &str, broken: bool) {
    if !broken {
        println!("{path} is valid.");
    }
    println!("  mode      {}", config.policy.mode.as_str());
    println!(
        "  listen    api {}, webhooks {}, admin {}, client {}",
        config.listen.api, config.listen.webhooks, config.listen.admin, config.listen.client
    );
    for account in config.accounts.values() {
        let limit = config.policy.accounts.iter().find(|a| a.name == account.name).and_then(|a| a.concurrent);
        let limit = limit.map_or("no limit of its own".to_owned(), |n| format!("{n} calls at once"));
        let upstream = without_password(&account.upstream.to_string());
        println!("  account   {} ({}), {limit}, → {upstream}", account.name, account.provider.name);
    }
    for limit in Policy::new(config.policy.clone(), &[]).in_force() {
        let per = if limit.per == "all" { String::new() } else { format!(" per {}", limit.per) };
        println!("  limit     {:<18} {}{per}   ({})", limit.name, limit.allows, limit.from);
    }
    println!("  strangers {}", config.policy.unknown.consequence());
    println!("  checks    {}", config.strict.because());
    if config.webhooks.forward_url.is_some() && config.webhooks.forward_paths.are_all() && config.strict.is_strict() {
        println!(
            "  paths     paths of listen.webhooks without a webhook are proxied to the app unchecked: app.forward_paths limits them"
        );
    }
}
