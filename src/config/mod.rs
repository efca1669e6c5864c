//! Reads the config into each module's settings. Unknown keys are errors; all mistakes are reported at once.
//!
//! `table` walks the TOML, [`diagnostics`] renders mistakes, `policy` and `accounts` read the larger sections. Every key has an
//! environment name: `RINGFENCE_` and its path in capitals (`RINGFENCE_LISTEN_API`). [`File`] detects changes, and
//! `restart` lists the keys that cannot change in a running process.

mod accounts;
mod client;
pub mod codes;
mod destinations;
pub mod diagnostics;
mod duplicate;
mod ephemeral;
mod file;
mod lead_sources;
mod listen;
mod loaded;
mod matches;
mod policy;
mod records;
mod restart;
mod store;
mod table;
mod telemetry;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use toml::de::DeTable;

use crate::admission;
use crate::admission::limiter::redis;
use crate::call::Deadlines;
use crate::calls::AppAddress;
use crate::calls::SEND_WITHIN;
use crate::calls::{self};
use crate::ids::{AccountName, number_key};
use crate::jws::SECRET_BYTES_MIN;
use crate::metrics::BUSINESS_LABELS;
use crate::policy::{RESERVE_MAX, Settings as PolicySettings};
use crate::provider::Registry;
use crate::provider::account::Account;
use crate::provider::secret::Secret;
use crate::reply::SDK_RETRY_AFTER_MAX_SECS;
use crate::runs;
use crate::telemetry::reports;
use crate::telemetry::traces;
use crate::transcripts;
use crate::webhooks::{self, InboundMode, Unsigned};
use diagnostics::{Diagnostic, Report, Severity};
pub use file::{File, FileRead, Inputs};
pub use listen::{AdminSocket, Listen, ListenerName, TlsSettings};
pub use loaded::Loaded;
pub use restart::{needs_restart, new_credentials};
pub use store::StoreSettings;
use table::{Env, Source, Table};

/// The keys at the top level.
const ROOT_KEYS: &[&str] = &["mode", "concurrent", "rate", "burst", "per_business", "public_url", "providers_dir"];

/// The name of the Unix socket of `listen.admin` where there is no database file to put it beside.
const POSTGRES_SOCKET: &str = "ringfence-admin.sock";

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
    pub calls: calls::Settings,
    /// Webhooks of providers.
    pub webhooks: webhooks::Settings,
    /// How long a call may stay in a phase without news.
    pub deadlines: Deadlines,
    /// How long a create's answer is awaited after the app was answered.
    pub late_answer: Duration,
    /// The timeout of requests that pass through.
    pub pass_through: Duration,
    /// The maximum duration of a drain.
    pub drain: Duration,
    /// The database.
    pub store: StoreSettings,
    /// The folder for bodies that are too large for the database.
    pub spool_dir: PathBuf,
    /// The limiter.
    pub gate: admission::Settings,
    /// The Redis server of the limiter, if there is one.
    pub redis: Option<redis::Settings>,
    /// Live transcripts.
    pub client: transcripts::Settings,
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
    /// Where traces go, if anywhere.
    pub traces: Option<traces::Settings>,
    /// Where panics and logged errors are reported, if anywhere.
    pub reports: Option<reports::Settings>,
    /// A PEM file with additional trusted roots.
    pub extra_ca: Option<PathBuf>,
    /// The rules for callback URLs that tenants choose.
    pub callbacks: crate::net::CallbackRules,
    /// Bulk runs.
    pub runs: runs::Settings,
    /// Whether the config file is reloaded when it changes.
    pub watch: bool,
}

/// Why signatures and tokens are required, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strict {
    /// `public_url` is set.
    PublicUrl,
    /// A listener is not on loopback.
    NotLoopback,
    /// Nothing is reachable from other machines.
    No,
}

impl Strict {
    /// Whether they are required.
    pub fn is_strict(self) -> bool {
        self != Strict::No
    }

    /// The reason, as shown by `check` and in the first log line.
    pub fn because(self) -> &'static str {
        match self {
            Strict::PublicUrl => "strict: public_url is set, so signatures and tokens are required",
            Strict::NotLoopback => "strict: a listener is not on loopback, so signatures and tokens are required",
            Strict::No => {
                "lenient: no public_url and every listener on loopback, so unsigned webhooks are accepted where no secret is configured"
            }
        }
    }
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
    /// Its certificate, if it speaks TLS.
    pub tls_cert: Option<PathBuf>,
}

/// Reads only the address of `listen.admin`: an operator's shell lacks the secrets that the rest of the config names.
pub fn admin_address(text: &str, folder: &std::path::Path, env: Env<'_>) -> Option<AdminAddress> {
    let report = Report::default();
    let (parsed, _) = DeTable::parse_recoverable(text);
    let source = Source {
        report: &report,
        env,
        folder,
        asked: RefCell::default(),
        variables: RefCell::default(),
        inputs: RefCell::default(),
        root_keys: ROOT_KEYS,
    };
    let root = Table::root(source, parsed.get_ref());
    let in_postgres = root.table("store").has("url");
    let store = store::store(&root, folder);
    let listen = listen::read(&root, folder, &store)?;
    let socket = match listen.admin_socket {
        socket if socket.is_named => socket.path,
        // The URL may be a secret that is missing here.
        _ if in_postgres => folder.join(POSTGRES_SOCKET),
        socket => socket.path,
    };
    let tls = listen.tls.filter(|tls| tls.listeners.contains(&ListenerName::Admin));
    Some(AdminAddress { tcp: listen.admin, socket, tls_cert: tls.map(|tls| tls.cert) })
}

/// Reads a config. Relative paths start at `folder`.
pub fn load(text: &str, folder: &std::path::Path, env: Env<'_>) -> Loaded {
    let (report, digest) = (Report::default(), file::digest(text.as_bytes()));
    let (parsed, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let title = error.message().lines().next().unwrap_or("not TOML").to_owned();
        let first = error.span().filter(|_| title.starts_with("duplicate"));
        match first.and_then(|second| duplicate::first_place(text, &second)) {
            Some(first) => report.add(Diagnostic {
                severity: Severity::Error,
                code: "E001",
                title,
                span: error.span(),
                label: "second definition".to_owned(),
                context: Some((first, "first definition".to_owned())),
                help: Some("remove one of the two".to_owned()),
            }),
            None => report.error("E001", error.span(), title, ""),
        }
    }
    let source = Source {
        report: &report,
        env,
        folder,
        asked: RefCell::default(),
        variables: RefCell::default(),
        inputs: RefCell::default(),
        root_keys: ROOT_KEYS,
    };
    let root = Table::root(source, parsed.get_ref());
    let config = read_all(&root, folder);
    root.finish();
    let (keys, variables, inputs) = (root.asked(), root.variables(), root.inputs());
    drop(root);
    let diagnostics = report.finish();
    let broken = diagnostics.iter().any(|d| d.severity == Severity::Error);
    Loaded { config: config.filter(|_| !broken), diagnostics, keys, variables, inputs, digest }
}

fn read_all(root: &Table<'_>, folder: &std::path::Path) -> Option<Config> {
    let registry = registry(root, folder);
    let public_url = root.parsed("public_url", url);
    let (accounts, account_limits) = accounts::read(root, registry.as_ref());
    let policy = policy::read(root, account_limits, &accounts);
    let store = store::store(root, folder);
    ephemeral::warn(root, &store);
    let listen = listen::read(root, folder, &store);
    let (allow_from, rate_per_address) = listen::webhooks(root, registry.as_ref());
    let records = records::read(root);
    let destinations = destinations::read(root, folder);

    let inbound = root.table("inbound");
    let modes = [("front", InboundMode::Front), ("app", InboundMode::App)];
    let inbound_mode = inbound.word("mode", &modes).unwrap_or(InboundMode::App);
    let inbound_account = inbound.parsed("account", |t| AccountName::parse(t).map_err(|e| e.to_string()));
    if let Some(name) = inbound_account.as_ref().filter(|n| !accounts.contains_key(*n)) {
        let title = format!("`inbound.account` is {name}, but there is no [accounts.{name}]");
        root.report().error("E022", inbound.span("account"), title, "");
    }
    let agents = inbound.table("agents").named_texts();
    let agents = agents.into_iter().map(|(number, agent)| (number_key(&number).into_owned(), agent)).collect();
    let extra_paths: webhooks::ExtraPaths =
        EXTRA_PATHS.into_iter().filter_map(|(webhook, key)| Some((webhook.to_owned(), inbound.texts(key)?))).collect();
    let when_full = policy::instead(&inbound, "when_full");
    let when_down = policy::instead(&inbound, "when_down");
    inbound.finish();

    let timeouts = root.table("timeouts");
    let secs = |table: &Table<'_>, key: &str, range, default: u64| {
        Duration::from_secs(table.number(key, range).unwrap_or(default))
    };
    let create_timeout = secs(&timeouts, "create_secs", 1..=300, 60);
    let late_answer = secs(&timeouts, "create_read_secs", 1..=3600, 300);
    let send_within = secs(&timeouts, "send_within_secs", 1..=60, SEND_WITHIN.as_secs());
    let app_timeout = secs(&timeouts, "app_secs", 1..=60, 12);
    let pass_through = secs(&timeouts, "pass_through_secs", 1..=86_400, 600);
    let ask_timeout = secs(&timeouts, "provider_query_secs", 1..=60, 10);
    let drain = secs(&timeouts, "drain_secs", 0..=3600, 30);
    timeouts.finish();

    let reconcile = root.table("reconcile");
    let sweep = reconcile.number("sweep_ms", 50..=600_000).map(Duration::from_millis);
    let not_found_confirm = secs(&reconcile, "not_found_confirm_secs", 1..=3600, 60);
    let unread_alarm = secs(&reconcile, "unreadable_alarm_secs", 1..=86_400, 300);
    let list_lag = Duration::from_millis(reconcile.number("list_lag_ms", 0..=60_000).unwrap_or(3_000));
    reconcile.finish();

    let deadlines = deadlines(root, create_timeout);
    let refusal = root.table("refusal");
    let sdk_retry_after_max_secs =
        refusal.count("sdk_retry_after_max_secs", 1..=60).unwrap_or(SDK_RETRY_AFTER_MAX_SECS);
    refusal.finish();

    let log = log(root);
    let (traces, reports) = telemetry::read(root);
    let spool_dir = records.spool_dir.map_or_else(|| store.default_spool(), |dir| folder.join(dir));
    let (gate, redis, on_outage) = store::gate(root, folder);
    let admin = root.table("admin");
    let token_secrets = admin.secrets("token_secret");
    long_enough(&admin, &token_secrets);
    let metrics_token = admin.flag("metrics_token").unwrap_or(false);
    let metrics_businesses = admin.count("metrics_businesses", 0..=1000).unwrap_or(BUSINESS_LABELS);
    let cron_secret = admin.secret("cron_secret");
    if let Some(short) = cron_secret.as_ref().map(|s| s.expose().len()).filter(|n| *n < CRON_SECRET_BYTES_MIN) {
        let title = format!("`admin.cron_secret` has {short} bytes; it needs at least {CRON_SECRET_BYTES_MIN}");
        admin.report().error("E003", admin.span("cron_secret"), title, "make one: openssl rand -base64 32");
    }
    admin.finish();
    let client = client::client(root, folder, &token_secrets);
    let upstream = root.table("upstream");
    let extra_ca = upstream.text("ca_file").map(|p| folder.join(p));
    upstream.finish();

    let reload = root.table("reload");
    let watch = reload.flag("watch").unwrap_or(true);
    reload.finish();

    let batch = root.table("batch");
    let elevenlabs_batches = batch.word("elevenlabs", &[("proxy", false), ("run", true)]).unwrap_or(false);
    batch.finish();

    let sources = lead_sources::read(root, records.forward_url.is_some());
    let table = root.table("runs");
    let runs = runs::Settings {
        sources,
        dials: table.flag("dials").unwrap_or(true),
        reserve_for_direct: table.count("reserve_for_direct", 0..=RESERVE_MAX),
        leads_max: table.count("leads_max", 1..=10_000_000).unwrap_or(runs::LEADS_MAX),
        elevenlabs_batches,
    };
    table.finish();

    let listen = listen?;
    let outside = [listen.api, listen.webhooks, listen.admin, listen.client].iter().any(|a| !a.ip().is_loopback());
    let strict = match (&public_url, outside) {
        (Some(_), _) => Strict::PublicUrl,
        (None, true) => Strict::NotLoopback,
        (None, false) => Strict::No,
    };
    if strict.is_strict() && token_secrets.is_empty() && !listen.admin.ip().is_loopback() {
        let title = "listen.admin is not on loopback, and there is no admin.token_secret";
        root.report().error("E041", None, title, "set [admin] token_secret, or listen on 127.0.0.1");
    }
    if inbound_mode == InboundMode::Front && !accounts.values().any(|a| a.provider.front.is_some()) {
        let title = "inbound.mode is \"front\", but no account's provider can connect calls";
        root.report().error("E042", None, title, "add an account of provider \"elevenlabs\"");
    }
    accounts::warn(root.report(), &accounts, root.has("accounts"), public_url.is_some(), strict);
    let mut policy = policy?;
    policy.on_outage = on_outage;
    policy.transcripts = records.transcripts;
    policy.destinations = Arc::new(destinations);
    if let Some(when_full) = when_full {
        policy.when_full = when_full;
    }
    Some(Config {
        policy,
        accounts,
        listen,
        calls: calls::Settings {
            create_timeout,
            send_within,
            ask_timeout,
            not_found_confirm,
            unread_alarm,
            list_lag,
            app: Arc::new(AppAddress {
                public_url: public_url.clone(),
                app_public_url: records.app_public_url.clone(),
                forward_url: records.forward_url.clone(),
                forward_paths: records.forward_paths.clone(),
                webhook_paths: extra_paths.values().flatten().cloned().collect(),
            }),
            sdk_retry_after_max_secs,
            inbound_account,
            sweep,
            record_wait: records.wait,
            strict_order: records.strict_order,
            events: records.events,
        },
        webhooks: webhooks::Settings {
            public_url,
            forward_url: records.forward_url,
            app_public_url: records.app_public_url,
            app_host: records.app_host,
            unknown_status: records.unknown_status,
            spool_bytes_max: records.spool_bytes_max,
            spool_days: records.spool_days,
            unsigned: if strict.is_strict() { Unsigned::Reject } else { Unsigned::Accept },
            inbound_mode,
            app_timeout,
            when_down,
            agents,
            extra_paths,
            forward_paths: records.forward_paths,
            allow_from,
            rate_per_address,
        },
        deadlines,
        late_answer: late_answer.max(create_timeout),
        pass_through,
        drain,
        store,
        spool_dir,
        gate,
        redis,
        client,
        token_secrets,
        metrics_token,
        metrics_businesses,
        cron_secret,
        strict,
        log,
        traces,
        reports,
        extra_ca,
        callbacks: records.callbacks,
        runs,
        watch,
    })
}

/// The keys of `[inbound]` that add paths to webhooks, by `provider.webhook`.
const EXTRA_PATHS: [(&str, &str); 3] =
    [("twilio.voice", "voice_paths"), ("twilio.status", "status_paths"), ("elevenlabs.events", "elevenlabs_paths")];

/// The key of `[inbound]` that adds paths to a webhook, if there is one.
pub fn extra_paths_key(provider: &str, webhook: &str) -> Option<&'static str> {
    let name = format!("{provider}.{webhook}");
    EXTRA_PATHS.iter().find(|(one, _)| *one == name).map(|(_, key)| *key)
}

fn url(text: &str) -> Result<Uri, String> {
    if splits_password(text) {
        return Err("has a `#`, `/` or `?` before its `@`: write it in a password as %23, %2F or %3F".to_owned());
    }
    let uri: Uri = text.parse().map_err(|e| format!("is not a URL: {e}"))?;
    match (uri.scheme_str(), uri.authority()) {
        (Some("http" | "https"), Some(_)) => Ok(uri),
        _ => Err("must start with http:// or https:// and a host".to_owned()),
    }
}

/// Whether user and password of a URL end before its `@`, so that the parser would take a part of the password for the host.
fn splits_password(text: &str) -> bool {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let Some((before, _)) = rest.rsplit_once('@') else { return false };
    // A path may contain `@`; text with a colon before it that is not a port is a password.
    let Some(at) = before.find(['/', '#', '?']) else { return false };
    let (head, tail) = before.split_at(at);
    let port = head.rsplit_once(':').map(|(_, port)| port);
    port.is_some_and(|port| tail.starts_with('#') || port.parse::<u16>().is_err())
}

fn registry(root: &Table<'_>, folder: &std::path::Path) -> Option<Registry> {
    let files = match root.text("providers_dir") {
        None => vec![],
        Some(dir) => match file::read_dir(&folder.join(&dir)) {
            Ok(files) => {
                root.note(folder.join(&dir), file::digest_of_files(&files));
                files
            }
            Err(error) => {
                root.note(folder.join(&dir), file::unreadable(&error));
                root.report().error("E011", root.span("providers_dir"), format!("cannot read {dir}: {error}"), "");
                vec![]
            }
        },
    };
    let (registry, bad) = Registry::lenient(&files);
    for one in bad {
        root.report().error("E020", root.span("providers_dir"), one.to_string(), "");
    }
    Some(registry)
}

fn deadlines(root: &Table<'_>, create_timeout: Duration) -> Deadlines {
    let table = root.table("deadlines");
    let default = Deadlines::default();
    let secs = |key: &str, default: u32| table.count(key, 1..=86_400).unwrap_or(default);
    let deadlines = Deadlines {
        reserved_secs: secs("reserved_secs", default.reserved_secs),
        queued_secs: secs("queued_secs", default.queued_secs),
        dialing_secs: secs("dialing_secs", default.dialing_secs),
        ringing_secs: secs("ringing_secs", default.ringing_secs),
        live_secs: secs("live_secs", default.live_secs),
    };
    if u64::from(deadlines.reserved_secs) <= create_timeout.as_secs() {
        let title = format!(
            "deadlines.reserved_secs ({}) must be longer than timeouts.create_secs ({})",
            deadlines.reserved_secs,
            create_timeout.as_secs()
        );
        let help = "a create in progress would be looked up as lost";
        root.report().error("E040", table.span("reserved_secs"), title, help);
    }
    table.finish();
    deadlines
}

/// The minimum `admin.cron_secret`, in bytes. Shorter than a signing secret's, because it can only be guessed over the network.
const CRON_SECRET_BYTES_MIN: usize = 16;

fn long_enough(table: &Table<'_>, secrets: &[Secret]) {
    if let Some(short) = secrets.iter().map(|secret| secret.expose().len()).find(|length| *length < SECRET_BYTES_MIN) {
        let path = table.path_of("token_secret");
        let title = format!("`{path}` has {short} bytes; a secret that signs tokens needs at least {SECRET_BYTES_MIN}");
        table.report().error("E003", table.span("token_secret"), title, "make one: openssl rand -base64 32");
    }
}

fn log(root: &Table<'_>) -> LogSettings {
    let table = root.table("log");
    let json = table.word("format", &[("text", false), ("json", true)]).unwrap_or(false);
    let filter = table.text("filter").unwrap_or_else(|| "info".to_owned());
    table.finish();
    LogSettings { json, filter }
}

#[cfg(test)]
mod tests;
