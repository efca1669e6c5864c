//! `ringfence completions` and `ringfence man`: shell completions and man pages.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use clap_complete::Shell;

use super::outcome::Outcome;

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    /// Prints the completions of `command`, the whole command line.
    pub(super) fn run(&self, mut command: clap::Command) -> Outcome {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut command, "ringfence", &mut text);
        std::io::stdout().write_all(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
pub(super) struct Man {
    /// The folder for a page per command [default: the page of `ringfence`, to standard output]
    #[arg(value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

impl Man {
    /// Prints or writes the pages of `command`, the whole command line.
    pub(super) fn run(&self, mut command: clap::Command) -> Outcome {
        command.build();
        match &self.folder {
            Some(folder) => {
                std::fs::create_dir_all(folder)?;
                pages(&command, folder)?;
            }
            None => std::io::stdout().write_all(&page(&command)?)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn page(command: &clap::Command) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let title = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    clap_mangen::Man::new(command.clone()).title(title).render(&mut text)?;
    Ok(text)
}

/// Writes a page per command, named as git does: `ringfence-calls-list.1`.
fn pages(command: &clap::Command, folder: &Path) -> std::io::Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    std::fs::write(folder.join(format!("{name}.1")), page(command)?)?;
    let mut all = command.get_subcommands().filter(|one| !one.is_hide_set() && one.get_name() != "help");
    all.try_for_each(|one| pages(one, folder))
}
