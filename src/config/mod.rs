//! Reads the config into each module's settings. Unknown keys are errors; all mistakes are reported at once.
//!
//! `load` reads it all: `table` walks the TOML, [`diagnostics`] renders mistakes, `policy` and `accounts` read the larger sections,
//! `sections` the small ones. Every key has an
//! environment name: `RINGFENCE_` and its path in capitals (`RINGFENCE_LISTEN_API`). [`ConfigPath`] detects changes, and
//! `restart` lists the keys that cannot change in a running process.

mod accounts;
mod client;
pub mod codes;
mod destinations;
pub mod diagnostics;
mod duplicate;
mod ephemeral;
mod file;
mod inputs;
mod lead_sources;
mod listen;
mod load;
mod loaded;
mod matches;
mod policy;
mod records;
mod restart;
mod sections;
mod store;
mod table;
mod telemetry;
mod values;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::admission::AdmissionSettings;
use crate::admission::limiter::redis::RedisSettings;
use crate::call::Deadlines;
use crate::calls::CallSettings;
use crate::ids::AccountName;
use crate::policy::PolicySettings;
use crate::provider::account::Account;
use crate::provider::secret::Secret;
use crate::runs::RunSettings;
use crate::telemetry::reports::ErrorReporting;
use crate::telemetry::traces::TraceExport;
use crate::transcripts::ClientSettings;
use crate::webhooks::WebhookSettings;
pub use file::{ConfigPath, FileRead};
pub use inputs::Inputs;
pub use listen::{AdminSocket, Listen, ListenerName, TlsSettings};
pub use load::{admin_address, load};
pub use loaded::Loaded;
pub use restart::{needs_restart, new_credentials};
pub use sections::extra_paths_key;
pub use store::StoreSettings;
pub use values::Strict;

/// The complete settings of the program.
#[derive(Debug, Clone)]
pub struct Config {
    /// Limits, plans, businesses.
    pub policy: PolicySettings,
    /// Accounts by name.
    pub accounts: BTreeMap<AccountName, Arc<Account>>,
    /// Listeners.
    pub listen: Listen,
    /// Requests to providers.
    pub calls: CallSettings,
    /// Webhooks of providers.
    pub webhooks: WebhookSettings,
    /// The time for which a call may stay in a phase without news.
    pub deadlines: Deadlines,
    /// The time for which a create's answer is awaited after the app was answered.
    pub create_read_timeout: Duration,
    /// The timeout of requests that pass through.
    pub pass_through: Duration,
    /// The maximum duration of a drain.
    pub drain: Duration,
    /// The database.
    pub store: StoreSettings,
    /// The folder for bodies that are too large for the database.
    pub spool_dir: PathBuf,
    /// The limiter.
    pub gate: AdmissionSettings,
    /// The Redis server of the limiter, if there is one.
    pub redis: Option<RedisSettings>,
    /// Live transcripts.
    pub client: ClientSettings,
    /// The secret of HS256 tokens on `listen.admin`.
    pub token_secrets: Vec<Secret>,
    /// Whether `/metrics` requires a token.
    pub metrics_token: bool,
    /// Maximum businesses with a label of their own in metrics.
    pub metrics_businesses: u32,
    /// The secret of clients of the replaced systems, for reading figures.
    pub cron_secret: Option<Secret>,
    /// Whether tokens and signatures are required.
    pub strict: Strict,
    /// Logging.
    pub log: LogSettings,
    /// The destination of traces, if any.
    pub traces: Option<TraceExport>,
    /// The destination of panics and logged errors, if any.
    pub reports: Option<ErrorReporting>,
    /// A PEM file with additional trusted roots.
    pub extra_ca: Option<PathBuf>,
    /// The rules for callback URLs that tenants choose.
    pub callbacks: crate::net::CallbackRules,
    /// Bulk runs.
    pub runs: RunSettings,
    /// Whether the config file is reloaded when it changes.
    pub watch: bool,
}

/// Logging.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// Whether lines are JSON.
    pub json: bool,
    /// The filter, in the syntax of `RUST_LOG`.
    pub filter: String,
}

/// The address of `listen.admin`, for commands that use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminAddress {
    /// The TCP address.
    pub tcp: SocketAddr,
    /// The Unix socket.
    pub socket: PathBuf,
    /// The listener's certificate, if it speaks TLS.
    pub tls_cert: Option<PathBuf>,
}

#[cfg(test)]
mod tests;
