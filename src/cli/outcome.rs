//! Parts that the commands have in common: the option for the config file, and the end of a command.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

/// The default path of the config.
pub(super) const CONFIG: &str = "ringfence.toml";

/// The option for the config file.
#[derive(Debug, Clone, Args)]
pub(super) struct ConfigFile {
    /// The config file
    #[arg(short, long, env = "RINGFENCE_CONFIG", default_value = CONFIG, value_name = "FILE", global = true)]
    pub(super) config: PathBuf,
}

/// The failure of a command.
pub(super) enum Failure {
    /// Exit code 1.
    Failed(anyhow::Error),
    /// Exit code 2; the diagnostics have been printed.
    Config,
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// The end of a command.
pub(super) type Outcome = Result<ExitCode, Failure>;

/// Waits for SIGTERM or SIGINT.
pub(super) async fn stop_signal() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}
