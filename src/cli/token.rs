//! `ringfence token`: makes a token.

use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::file;
use super::outcome::{ConfigFile, Failure, Outcome};
use crate::admin::auth::{Claims, Scope, mint};
use crate::clock::Clock;
use crate::token::WHOLE_NUMBERS;

#[derive(Debug, Args)]
pub(super) struct Token {
    #[command(flatten)]
    file: ConfigFile,
    /// The access; each scope includes those before it
    #[arg(long, value_enum, default_value = "read")]
    scope: ScopeArg,
    /// Grant unmasked telephone numbers
    #[arg(long)]
    whole_numbers: bool,
    /// The holder, for the audit log
    #[arg(long, default_value = "operator")]
    subject: String,
    /// The visible businesses, separated by commas
    #[arg(long, default_value = "*", value_delimiter = ',')]
    businesses: Vec<String>,
    /// The validity, in seconds
    #[arg(long, default_value_t = 30 * 24 * 3600, value_name = "SECS")]
    valid_secs: u32,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ScopeArg {
    Metrics,
    Read,
    Operate,
}

impl Token {
    pub(super) fn run(self) -> Outcome {
        let read = file::read(&self.file.config, &[])?;
        let Some(config) = read.loaded.config.as_ref() else {
            read.print("cannot be used, so no token was made");
            return Err(Failure::Config);
        };
        let secret = config
            .token_secrets
            .first()
            .ok_or_else(|| anyhow::anyhow!("there is no admin.token_secret in {}", self.file.config.display()))?;
        let scope = match self.scope {
            ScopeArg::Metrics => Scope::Metrics,
            ScopeArg::Read => Scope::Read,
            ScopeArg::Operate => Scope::Operate,
        };
        let numbers = if self.whole_numbers { format!(" {WHOLE_NUMBERS}") } else { String::new() };
        let scope = format!("{}{numbers}", scope.as_str());
        let exp = Clock::system().now_ms() / 1000 + i64::from(self.valid_secs);
        println!("{}", mint(secret, &Claims { sub: self.subject, exp, businesses: self.businesses, scope })?);
        Ok(ExitCode::SUCCESS)
    }
}
