//! Reads the small sections, one function each.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::LogSettings;
use super::inputs::{digest_of_files, digest_of_unreadable, read_dir};
use super::matches::Accounts;
use super::table::Table;
use super::values::long_enough;
use super::{lead_sources, policy};
use crate::call::Deadlines;
use crate::calls::SEND_WITHIN;
use crate::ids::{AccountName, number_key};
use crate::metrics::BUSINESS_LABELS;
use crate::policy::{RESERVE_MAX, WhenFull};
use crate::provider::Registry;
use crate::provider::secret::Secret;
use crate::reply::SDK_RETRY_AFTER_MAX_SECS;
use crate::runs::{self, RunSettings};
use crate::webhooks::{ExtraPaths, InboundMode};

/// The keys of `[inbound]` that add paths to webhooks, by `provider.webhook`.
const EXTRA_PATHS: [(&str, &str); 3] =
    [("twilio.voice", "voice_paths"), ("twilio.status", "status_paths"), ("elevenlabs.events", "elevenlabs_paths")];

/// The key of `[inbound]` that adds paths to a webhook, if there is one.
pub fn extra_paths_key(provider: &str, webhook: &str) -> Option<&'static str> {
    let name = format!("{provider}.{webhook}");
    EXTRA_PATHS.iter().find(|(one, _)| *one == name).map(|(_, key)| *key)
}

/// The providers, those of `providers_dir` included.
pub(super) fn registry(root: &Table<'_>, folder: &Path) -> Option<Registry> {
    let files = match root.text("providers_dir") {
        None => vec![],
        Some(dir) => match read_dir(&folder.join(&dir)) {
            Ok(files) => {
                root.note(folder.join(&dir), digest_of_files(&files));
                files
            }
            Err(error) => {
                root.note(folder.join(&dir), digest_of_unreadable(&error));
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

/// `[deadlines]`.
pub(super) fn deadlines(root: &Table<'_>, create_timeout: Duration) -> Deadlines {
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

/// `[log]`.
pub(super) fn log(root: &Table<'_>) -> LogSettings {
    let table = root.table("log");
    let json = table.word("format", &[("text", false), ("json", true)]).unwrap_or(false);
    let filter = table.text("filter").unwrap_or_else(|| "info".to_owned());
    table.finish();
    LogSettings { json, filter }
}

/// The settings of `[inbound]`.
pub(super) struct Inbound {
    pub(super) mode: InboundMode,
    pub(super) account: Option<AccountName>,
    pub(super) agents: BTreeMap<String, String>,
    pub(super) extra_paths: ExtraPaths,
    pub(super) when_full: Option<WhenFull>,
    pub(super) when_down: Option<WhenFull>,
}

/// `[inbound]`.
pub(super) fn inbound(root: &Table<'_>, accounts: &Accounts) -> Inbound {
    let table = root.table("inbound");
    let modes = [("front", InboundMode::Front), ("app", InboundMode::App)];
    let mode = table.word("mode", &modes).unwrap_or(InboundMode::App);
    let account = table.parsed("account", |t| AccountName::parse(t).map_err(|e| e.to_string()));
    if let Some(name) = account.as_ref().filter(|n| !accounts.contains_key(*n)) {
        let title = format!("`inbound.account` is {name}, but there is no [accounts.{name}]");
        root.report().error("E022", table.span("account"), title, "");
    }
    let agents = table.table("agents").named_texts();
    let agents = agents.into_iter().map(|(number, agent)| (number_key(&number).into_owned(), agent)).collect();
    let extra_paths =
        EXTRA_PATHS.into_iter().filter_map(|(webhook, key)| Some((webhook.to_owned(), table.texts(key)?))).collect();
    let (when_full, when_down) =
        (policy::read_when_full(&table, "when_full"), policy::read_when_full(&table, "when_down"));
    table.finish();
    Inbound { mode, account, agents, extra_paths, when_full, when_down }
}

/// The settings of `[timeouts]`.
pub(super) struct Timeouts {
    pub(super) create: Duration,
    /// The time for which a create's answer is awaited after the app was answered.
    pub(super) create_read_timeout: Duration,
    pub(super) send_within: Duration,
    pub(super) app: Duration,
    pub(super) pass_through: Duration,
    pub(super) ask: Duration,
    pub(super) drain: Duration,
}

/// `[timeouts]`.
pub(super) fn timeouts(root: &Table<'_>) -> Timeouts {
    let table = root.table("timeouts");
    let timeouts = Timeouts {
        create: secs(&table, "create_secs", 1..=300, 60),
        create_read_timeout: secs(&table, "create_read_secs", 1..=3600, 300),
        send_within: secs(&table, "send_within_secs", 1..=60, SEND_WITHIN.as_secs()),
        app: secs(&table, "app_secs", 1..=60, 12),
        pass_through: secs(&table, "pass_through_secs", 1..=86_400, 600),
        ask: secs(&table, "provider_query_secs", 1..=60, 10),
        drain: secs(&table, "drain_secs", 0..=3600, 30),
    };
    table.finish();
    timeouts
}

fn secs(table: &Table<'_>, key: &str, range: RangeInclusive<u64>, default: u64) -> Duration {
    Duration::from_secs(table.number(key, range).unwrap_or(default))
}

/// The settings of `[reconcile]`.
pub(super) struct Reconcile {
    pub(super) sweep: Option<Duration>,
    pub(super) not_found_confirm: Duration,
    pub(super) unreadable_alarm: Duration,
    pub(super) list_lag: Duration,
}

/// `[reconcile]`.
pub(super) fn reconcile(root: &Table<'_>) -> Reconcile {
    let table = root.table("reconcile");
    let reconcile = Reconcile {
        sweep: table.number("sweep_ms", 50..=600_000).map(Duration::from_millis),
        not_found_confirm: secs(&table, "not_found_confirm_secs", 1..=3600, 60),
        unreadable_alarm: secs(&table, "unreadable_alarm_secs", 1..=86_400, 300),
        list_lag: Duration::from_millis(table.number("list_lag_ms", 0..=60_000).unwrap_or(3_000)),
    };
    table.finish();
    reconcile
}

/// `refusal.sdk_retry_after_max_secs`.
pub(super) fn sdk_retry_after_max_secs(root: &Table<'_>) -> u32 {
    let table = root.table("refusal");
    let secs = table.count("sdk_retry_after_max_secs", 1..=60).unwrap_or(SDK_RETRY_AFTER_MAX_SECS);
    table.finish();
    secs
}

/// The settings of `[admin]`.
pub(super) struct Admin {
    pub(super) token_secrets: Vec<Secret>,
    pub(super) metrics_token: bool,
    pub(super) metrics_businesses: u32,
    pub(super) cron_secret: Option<Secret>,
}

/// `[admin]`.
pub(super) fn admin(root: &Table<'_>) -> Admin {
    let table = root.table("admin");
    let token_secrets = table.secrets("token_secret");
    long_enough(&table, &token_secrets);
    let metrics_token = table.flag("metrics_token").unwrap_or(false);
    let metrics_businesses = table.count("metrics_businesses", 0..=1000).unwrap_or(BUSINESS_LABELS);
    let cron_secret = table.secret("cron_secret");
    if let Some(short) = cron_secret.as_ref().map(|s| s.expose().len()).filter(|n| *n < CRON_SECRET_BYTES_MIN) {
        let title = format!("`admin.cron_secret` has {short} bytes; it needs at least {CRON_SECRET_BYTES_MIN}");
        table.report().error("E003", table.span("cron_secret"), title, "make one: openssl rand -base64 32");
    }
    table.finish();
    Admin { token_secrets, metrics_token, metrics_businesses, cron_secret }
}

/// `upstream.ca_file`.
pub(super) fn extra_ca(root: &Table<'_>, folder: &Path) -> Option<PathBuf> {
    let table = root.table("upstream");
    let extra_ca = table.text("ca_file").map(|path| folder.join(path));
    table.finish();
    extra_ca
}

/// `reload.watch`.
pub(super) fn watch(root: &Table<'_>) -> bool {
    let table = root.table("reload");
    let watch = table.flag("watch").unwrap_or(true);
    table.finish();
    watch
}

/// `[batch]`, `[runs]` and its lead sources. `has_app`: the app has an address.
pub(super) fn runs(root: &Table<'_>, has_app: bool) -> RunSettings {
    let batch = root.table("batch");
    let elevenlabs_batches = batch.word("elevenlabs", &[("proxy", false), ("run", true)]).unwrap_or(false);
    batch.finish();

    let sources = lead_sources::read(root, has_app);
    let table = root.table("runs");
    let runs = RunSettings {
        sources,
        dials: table.flag("dials").unwrap_or(true),
        reserve_for_direct: table.count("reserve_for_direct", 0..=RESERVE_MAX),
        leads_max: table.count("leads_max", 1..=10_000_000).unwrap_or(runs::LEADS_MAX),
        elevenlabs_batches,
    };
    table.finish();
    runs
}
