//! `ringfence migrate`: the only command that opens the database by itself.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{ConfigFile, Failure, Outcome, file};
use crate::store::sqlite::{SqliteStore, migrate};

#[derive(Debug, Args)]
pub(super) struct Migrate {
    #[command(flatten)]
    file: ConfigFile,
    #[command(subcommand)]
    way: Way,
}

#[derive(Debug, Subcommand)]
enum Way {
    /// Apply every migration that is missing
    Up,
    /// Take the latest migration back, or all above a version. Drops tables with what is in them
    Down {
        /// The version to go back to; 0 is nothing at all
        #[arg(long)]
        to: Option<i64>,
    },
    /// Show which migrations are applied
    Status {
        /// As JSON
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
        let pool = SqliteStore::connect(&config.store.path).await?;
        let failed = |why: String| anyhow::anyhow!("{} {why}", config.store.path.display());
        let json = match self.way {
            Way::Up => {
                migrate::up(&pool).await.map_err(failed)?;
                false
            }
            Way::Down { to } => {
                let _alone = SqliteStore::lock(&config.store.path)?;
                migrate::down(&pool, to).await.map_err(failed)?;
                false
            }
            Way::Status { json } => json,
        };
        let all = migrate::status(&pool).await.map_err(failed)?;
        if json {
            println!("{}", serde_json::to_string(&all)?);
        } else {
            for one in all {
                println!("{:04}  {:<24} {}", one.version, one.name, if one.applied { "applied" } else { "missing" });
            }
        }
        pool.close().await;
        Ok(ExitCode::SUCCESS)
    }
}
