//! `ringfence migrate`: the only command that opens the database itself.

use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::file;
use super::outcome::{ConfigFile, Failure, Outcome};
use crate::store::migrations::Status;
use crate::store::postgres::PostgresSettings;
use crate::store::{postgres, sqlite};

#[derive(Debug, Args)]
pub(super) struct Migrate {
    #[command(flatten)]
    file: ConfigFile,
    #[command(subcommand)]
    way: Way,
}

#[derive(Debug, Subcommand)]
enum Way {
    /// Apply all missing migrations
    Up,
    /// Revert the latest migration, or all above a version. Drops tables with their data
    Down {
        /// The version to revert to; 0 reverts all
        #[arg(long)]
        to: Option<i64>,
    },
    /// Show which migrations are applied
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl Migrate {
    pub(super) async fn run(self) -> Outcome {
        let read = file::read(&self.file.config, &[])?;
        let Some(config) = read.loaded.config.as_ref() else {
            read.print("cannot be used, so nothing was migrated");
            return Err(Failure::Config);
        };
        let json = matches!(self.way, Way::Status { json: true });
        let all = match &config.store.postgres {
            Some(settings) => in_postgres(settings, &self.way).await,
            None => in_sqlite(&config.store.path, &self.way).await,
        };
        let all = all.map_err(|why| anyhow::anyhow!("{} {why}", config.store.shown()))?;
        if json {
            println!("{}", serde_json::to_string(&all)?);
        } else {
            for one in all {
                let state = match (one.applied, one.differs) {
                    (_, true) => "applied by another build: not the script of this version",
                    (true, false) => "applied",
                    (false, false) => "missing",
                };
                println!("{:04}  {:<24} {state}", one.version, one.name);
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn in_postgres(settings: &PostgresSettings, way: &Way) -> Result<Vec<Status>, String> {
    match way {
        Way::Up => postgres::migrate::up(settings).await?,
        Way::Down { to } => postgres::migrate::down(settings, *to).await?,
        Way::Status { .. } => {}
    }
    postgres::migrate::status(settings).await
}

async fn in_sqlite(path: &Path, way: &Way) -> Result<Vec<Status>, String> {
    match way {
        Way::Up => sqlite::migrate::up(path).await?,
        Way::Down { to } => sqlite::migrate::down(path, *to).await?,
        Way::Status { .. } => {}
    }
    sqlite::migrate::status(path).await
}
