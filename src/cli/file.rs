//! Reads the config file for a command, and prints its diagnostics.

use std::io::IsTerminal as _;
use std::path::Path;

use super::environment;
use super::outcome::Failure;
use crate::config::{self, Loaded, diagnostics};

/// A config file and its diagnostics.
pub(super) struct ConfigText {
    pub loaded: Loaded,
    text: String,
    shown: String,
}

impl ConfigText {
    /// The text of the file.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Prints the diagnostics, if any, to stderr, and `if_broken` if one of them is an error.
    pub(super) fn print(&self, if_broken: &str) {
        if self.loaded.diagnostics.is_empty() {
            return;
        }
        let render = if std::io::stderr().is_terminal() { diagnostics::render_coloured } else { diagnostics::render };
        eprint!("{}", render(&self.loaded.diagnostics, &self.shown, &self.text));
        let summary = diagnostics::summary(&self.loaded.diagnostics);
        if self.loaded.has_errors() {
            eprintln!("{summary}. {} {if_broken}.   exit 2", self.shown);
        } else {
            eprintln!("{summary}.");
        }
    }
}

/// Reads a file; `flags` override the environment, which overrides the file.
pub(super) fn read(path: &Path, flags: &[(&str, String)]) -> Result<ConfigText, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => {
                "\n`ringfence init` writes one from the keys in the environment, --config FILE names another, \
                 and `ringfence demo` shows ringfence without one"
            }
            _ => "",
        };
        anyhow::anyhow!("cannot read the config {}: {error}{hint}", path.display())
    })?;
    Ok(parse(text, path, &path.display().to_string(), flags))
}

/// The config without a file: the accounts whose keys are in the environment. `None` if there are none.
pub(super) fn from_environment(path: &Path, flags: &[(&str, String)]) -> Option<(ConfigText, Vec<String>)> {
    let mut made = environment::accounts(environment::PlanConcurrency::Left);
    let any = !made.providers.is_empty();
    // An explicit address for webhooks overrides a PORT that the shell may have.
    let says = |name: &str| flags.iter().any(|(flag, _)| *flag == name) || environment::is_set(name);
    made.on_platform(["RINGFENCE_LISTEN_WEBHOOKS", "RINGFENCE_LISTEN_PUBLIC"].iter().any(|name| says(name)));
    any.then(|| (parse(made.toml, path, "the environment", flags), made.lines))
}

fn parse(text: String, path: &Path, shown: &str, flags: &[(&str, String)]) -> ConfigText {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let env = |name: &str| {
        let flag = flags.iter().find(|(n, _)| *n == name).map(|(_, value)| value.clone());
        flag.or_else(|| std::env::var(name).ok())
    };
    let mut loaded = config::load(&text, folder, &env);
    // Names and values that are not UTF-8 cannot be keys.
    let all =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    loaded.warn_of_unknown_variables(all);
    ConfigText { loaded, text, shown: shown.to_owned() }
}
