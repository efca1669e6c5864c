//! Reads the config file for a command, and prints its mistakes.

use std::io::IsTerminal as _;
use std::path::Path;

use super::Failure;
use crate::config::{self, Loaded, report};

/// The file with its mistakes.
pub(super) struct ConfigText {
    pub loaded: Loaded,
    text: String,
    shown: String,
}

impl ConfigText {
    /// Prints the mistakes, if there are any, to stderr.
    pub(super) fn print(&self) {
        if self.loaded.diagnostics.is_empty() {
            return;
        }
        let colour = std::io::stderr().is_terminal();
        eprint!("{}", report::render(&self.loaded.diagnostics, &self.shown, &self.text, colour));
        eprintln!("{}.", report::summary(&self.loaded.diagnostics));
    }
}

/// Reads a file; `flags` stand over the environment, which stands over the file.
pub(super) fn read(path: &Path, flags: &[(&str, String)]) -> Result<ConfigText, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => {
                "\nWrite one (config/ringfence.toml is an example), or name another with --config FILE. \
                 To see ringfence work without one: ringfence demo"
            }
            _ => "",
        };
        anyhow::anyhow!("cannot read the config {}: {error}{hint}", path.display())
    })?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let env = |name: &str| {
        let flag = flags.iter().find(|(n, _)| *n == name).map(|(_, value)| value.clone());
        flag.or_else(|| std::env::var(name).ok())
    };
    let loaded = config::load(&text, folder, &env);
    Ok(ConfigText { loaded, text, shown: path.display().to_string() })
}
