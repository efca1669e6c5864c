//! Reads a config: each section by its own function, then what several of them decide together.

use std::path::Path;
use std::sync::Arc;

use http::Uri;
use toml::de::DeTable;

use super::diagnostics::{Diagnostic, Report, Severity};
use super::inputs::digest;
use super::listen::{Listen, ListenerName};
use super::loaded::Loaded;
use super::records::Records;
use super::sections::{self, Inbound, Reconcile, Timeouts};
use super::table::{Env, Table, TableContext};
use super::values::{POSTGRES_SOCKET, Strict, url};
use super::{
    AdminAddress, Config, accounts, client, destinations, duplicate, ephemeral, listen, policy, records, store,
    telemetry,
};
use crate::calls::{AppAddress, CallSettings};
use crate::net::TrustedPeers;
use crate::policy::Rate;
use crate::webhooks::{InboundMode, Unsigned, WebhookSettings};

/// The keys at the top level.
const ROOT_KEYS: &[&str] = &["mode", "concurrent", "rate", "burst", "per_business", "public_url", "providers_dir"];

/// Reads only the address of `listen.admin`: an operator's shell lacks the secrets that the rest of the config names.
pub fn admin_address(text: &str, folder: &Path, env: Env<'_>) -> Option<AdminAddress> {
    let report = Report::default();
    let (parsed, _) = DeTable::parse_recoverable(text);
    let context = TableContext::new(&report, env, folder, ROOT_KEYS);
    let root = Table::root(context, parsed.get_ref());
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
pub fn load(text: &str, folder: &Path, env: Env<'_>) -> Loaded {
    let (report, digest) = (Report::default(), digest(text.as_bytes()));
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
    let context = TableContext::new(&report, env, folder, ROOT_KEYS);
    let root = Table::root(context, parsed.get_ref());
    let config = read_all(&root, folder);
    root.finish();
    let (keys, variables, inputs) = (root.asked(), root.variables(), root.inputs());
    drop(root);
    let diagnostics = report.finish();
    let broken = diagnostics.iter().any(|d| d.severity == Severity::Error);
    Loaded { config: config.filter(|_| !broken), diagnostics, keys, variables, inputs, digest }
}

fn read_all(root: &Table<'_>, folder: &Path) -> Option<Config> {
    let registry = sections::registry(root, folder);
    let public_url = root.parsed("public_url", url);
    let (accounts, account_limits) = accounts::read(root, registry.as_ref());
    let policy = policy::read(root, account_limits, &accounts);
    let store = store::store(root, folder);
    ephemeral::warn(root, &store);
    let listen = listen::read(root, folder, &store);
    let (allow_from, rate_per_address) = listen::webhooks(root, registry.as_ref());
    let records = records::read(root);
    let destinations = destinations::read(root, folder);
    let inbound = sections::inbound(root, &accounts);
    let timeouts = sections::timeouts(root);
    let reconcile = sections::reconcile(root);
    let deadlines = sections::deadlines(root, timeouts.create);
    let sdk_retry_after_max_secs = sections::sdk_retry_after_max_secs(root);
    let log = sections::log(root);
    let (traces, reports) = telemetry::read(root);
    let spool_dir = records.spool_dir.as_ref().map_or_else(|| store.default_spool(), |dir| folder.join(dir));
    let (gate, redis, on_outage) = store::gate(root, folder);
    let admin = sections::admin(root);
    let client = client::client(root, folder, &admin.token_secrets);
    let extra_ca = sections::extra_ca(root, folder);
    let watch = sections::watch(root);
    let runs = sections::runs(root, records.forward_url.is_some());

    let listen = listen?;
    let strict = strictness(public_url.as_ref(), &listen);
    if strict.is_strict() && admin.token_secrets.is_empty() && !listen.admin.ip().is_loopback() {
        let title = "listen.admin is not on loopback, and there is no admin.token_secret";
        root.report().error("E041", None, title, "set [admin] token_secret, or listen on 127.0.0.1");
    }
    if inbound.mode == InboundMode::Front && !accounts.values().any(|a| a.provider.front.is_some()) {
        let title = "inbound.mode is \"front\", but no account's provider can connect calls";
        root.report().error("E042", None, title, "add an account of provider \"elevenlabs\"");
    }
    accounts::warn(root.report(), &accounts, root.has("accounts"), public_url.is_some(), strict);
    let mut policy = policy?;
    policy.on_outage = on_outage;
    policy.transcripts = records.transcripts;
    policy.destinations = Arc::new(destinations);
    if let Some(when_full) = inbound.when_full.clone() {
        policy.when_full = when_full;
    }
    let callbacks = records.callbacks.clone();
    let sections = Sections { public_url, records, inbound, timeouts, reconcile };
    Some(Config {
        policy,
        accounts,
        listen,
        calls: sections.calls(sdk_retry_after_max_secs),
        deadlines,
        create_read_timeout: sections.timeouts.create_read_timeout.max(sections.timeouts.create),
        pass_through: sections.timeouts.pass_through,
        drain: sections.timeouts.drain,
        webhooks: sections.webhooks(strict, allow_from, rate_per_address),
        store,
        spool_dir,
        gate,
        redis,
        client,
        token_secrets: admin.token_secrets,
        metrics_token: admin.metrics_token,
        metrics_businesses: admin.metrics_businesses,
        cron_secret: admin.cron_secret,
        strict,
        log,
        traces,
        reports,
        extra_ca,
        callbacks,
        runs,
        watch,
    })
}

/// Whether signatures and tokens are required: where anything is reachable from other machines.
fn strictness(public_url: Option<&Uri>, listen: &Listen) -> Strict {
    let outside = [listen.api, listen.webhooks, listen.admin, listen.client].iter().any(|a| !a.ip().is_loopback());
    match (public_url, outside) {
        (Some(_), _) => Strict::PublicUrl,
        (None, true) => Strict::NotLoopback,
        (None, false) => Strict::No,
    }
}

/// The sections of which both calls and webhooks have settings.
struct Sections {
    public_url: Option<Uri>,
    records: Records,
    inbound: Inbound,
    timeouts: Timeouts,
    reconcile: Reconcile,
}

impl Sections {
    fn calls(&self, sdk_retry_after_max_secs: u32) -> CallSettings {
        let Self { public_url, records, inbound, timeouts, reconcile } = self;
        CallSettings {
            create_timeout: timeouts.create,
            create_read_timeout: timeouts.create_read_timeout.max(timeouts.create),
            send_within: timeouts.send_within,
            provider_query_timeout: timeouts.ask,
            not_found_confirm: reconcile.not_found_confirm,
            unreadable_alarm: reconcile.unreadable_alarm,
            list_lag: reconcile.list_lag,
            app: Arc::new(AppAddress {
                public_url: public_url.clone(),
                app_public_url: records.app_public_url.clone(),
                forward_url: records.forward_url.clone(),
                forward_paths: records.forward_paths.clone(),
                webhook_paths: inbound.extra_paths.values().flatten().cloned().collect(),
            }),
            sdk_retry_after_max_secs,
            inbound_account: inbound.account.clone(),
            sweep: reconcile.sweep,
            record_fetch_after: records.record_fetch_after,
            delivery_order: records.delivery_order,
            events: records.events.clone(),
        }
    }

    fn webhooks(
        self,
        strict: Strict,
        allow_from: Option<TrustedPeers>,
        rate_per_address: Option<Rate>,
    ) -> WebhookSettings {
        let Self { public_url, records, inbound, timeouts, .. } = self;
        WebhookSettings {
            public_url,
            forward_url: records.forward_url,
            app_public_url: records.app_public_url,
            app_host: records.app_host,
            unknown_status: records.unknown_status,
            spool_bytes_max: records.spool_bytes_max,
            spool_days: records.spool_days,
            unsigned: if strict.is_strict() { Unsigned::Reject } else { Unsigned::Accept },
            inbound_mode: inbound.mode,
            app_timeout: timeouts.app,
            when_down: inbound.when_down,
            agents: inbound.agents,
            extra_paths: inbound.extra_paths,
            forward_paths: records.forward_paths,
            allow_from,
            rate_per_address,
        }
    }
}
