//! A config that was read, with its diagnostics.

use std::collections::BTreeSet;

use super::diagnostics::{Diagnostic, Severity};
use super::inputs::Inputs;
use super::{Config, table};

/// A config and its diagnostics. `config` is present unless one of them is an error.
#[derive(Debug)]
pub struct Loaded {
    /// The config.
    pub config: Option<Config>,
    /// The mistakes.
    pub diagnostics: Vec<Diagnostic>,
    /// All keys that were read; `*` stands for names that the operator chose.
    pub keys: Vec<String>,
    /// Additional files that were read: secrets and provider descriptions.
    pub inputs: Inputs,
    /// The SHA-256 of the text, in hex.
    pub digest: String,
    /// All environment variables that were read.
    pub(super) variables: BTreeSet<String>,
}

impl Loaded {
    /// Whether the config is unusable.
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|d| d.severity == Severity::Error)
    }

    /// Warns of variables that look like ringfence's but that no key reads, mostly misspelt ones.
    pub fn warn_of_unknown_variables(&mut self, environment: impl Iterator<Item = (String, String)>) {
        let mut known: Vec<&str> = self.variables.iter().map(String::as_str).collect();
        known.extend(OTHER_VARIABLES);
        let mut strangers: Vec<Diagnostic> = environment
            .filter(|(name, value)| name.starts_with("RINGFENCE_") && !value.trim().is_empty())
            .filter(|(name, value)| !known.contains(&name.as_str()) && !is_of_others(name, value))
            .map(|(name, _)| Diagnostic {
                severity: Severity::Warning,
                code: "W007",
                help: Some(match table::closest(&name, &known) {
                    Some(near) => format!("did you mean {near}?"),
                    None => {
                        "a key's variable is RINGFENCE_ and its path in capitals: ringfence check --defaults".to_owned()
                    }
                }),
                title: format!("environment variable {name} is ignored: no key has this name"),
                span: None,
                label: String::new(),
                context: None,
            })
            .collect();
        strangers.sort_by(|a, b| a.title.cmp(&b.title));
        self.diagnostics.append(&mut strangers);
    }
}

/// Variables of the command line and of scripts.
const OTHER_VARIABLES: &[&str] = &[
    "RINGFENCE_CONFIG",
    "RINGFENCE_ADMIN_URL",
    "RINGFENCE_ADMIN_CERT",
    "RINGFENCE_ADMIN_KEY",
    "RINGFENCE_TOKEN",
    "RINGFENCE_BIN",
];

/// Whether a variable is a fault for tests (`RINGFENCE_FAIL…`), or set by Kubernetes for a Service named ringfence:
/// `RINGFENCE_SERVICE_HOST`, `RINGFENCE_PORT=tcp://…`, `RINGFENCE_PORT_8080_TCP_ADDR`.
fn is_of_others(name: &str, value: &str) -> bool {
    let numbered = name.split("_PORT_").nth(1).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    name.starts_with("RINGFENCE_FAIL")
        || name.contains("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || (numbered || value.starts_with("tcp://") || value.starts_with("udp://"))
}
