//! Finds changes that need a restart: bound sockets, the open database, the log.

use std::ops::Range;

use toml::de::DeTable;

use super::diagnostics::{Diagnostic, Report};
use super::{Config, Listen};
use crate::admission::limiter::redis::RedisSettings;
use crate::store::postgres::PostgresSettings;

/// The changed keys that need a restart, as errors at their place in the new text. With any of them, no part of the new config
/// is put in force: a half-applied config was never written.
pub fn needs_restart(old: &Config, new: &Config, text: &str) -> Vec<Diagnostic> {
    let (was, is) = (&old.listen, &new.listen);
    let tls = |listen: &Listen| {
        let tls = listen.tls.clone();
        let clients = tls.as_ref().and_then(|tls| tls.clients.clone()).unzip();
        (
            tls.as_ref().map(|tls| tls.cert.clone()),
            tls.as_ref().map(|tls| tls.key.clone()),
            tls.map(|tls| tls.listeners),
            clients,
        )
    };
    let ((was_cert, was_key, was_tls, was_clients), (is_cert, is_key, is_tls, is_clients)) = (tls(was), tls(is));
    let changed = [
        ("listen.api", was.api != is.api),
        ("listen.webhooks", was.webhooks != is.webhooks && !was.is_public && !is.is_public),
        ("listen.public", was.is_public != is.is_public || (is.is_public && was.webhooks != is.webhooks)),
        ("listen.admin", was.admin != is.admin),
        (
            "listen.admin_socket",
            was.admin_socket != is.admin_socket && (was.admin_socket.is_named || is.admin_socket.is_named),
        ),
        ("listen.client", was.client != is.client),
        ("listen.probes", was.probes != is.probes),
        ("listen.tls_cert", was_cert != is_cert),
        ("listen.tls_key", was_key != is_key),
        ("listen.tls_listeners", was_tls != is_tls && was_cert.is_some() && is_cert.is_some()),
        ("listen.tls_client_ca", was_clients.0 != is_clients.0),
        (
            "listen.tls_client_listeners",
            was_clients.1 != is_clients.1 && was_clients.0.is_some() && is_clients.0.is_some(),
        ),
        ("listen.trusted_peers", was.trusted_peers != is.trusted_peers),
        ("listen.connections_per_peer", was.connections_per_peer != is.connections_per_peer),
        ("store.path", old.store.path != new.store.path),
        (
            "store.url",
            !is_same(old.store.postgres.as_ref(), new.store.postgres.as_ref(), PostgresSettings::is_same_server),
        ),
        ("inbox.spool_dir", old.spool_dir != new.spool_dir),
        ("gate.backend", old.gate.home != new.gate.home),
        ("gate.redis_url", !is_same(old.redis.as_ref(), new.redis.as_ref(), RedisSettings::is_same_server)),
        ("gate.fallback_after_ms", old.gate.fallback_after != new.gate.fallback_after),
        ("gate.return_after_ms", old.gate.return_after != new.gate.return_after),
        ("gate.audit_interval_secs", old.gate.audit_interval != new.gate.audit_interval),
        ("transcripts.user_label", old.client.user_label != new.client.user_label),
        ("upstream.ca_file", old.extra_ca != new.extra_ca),
        ("log.format", old.log.json != new.log.json),
        ("telemetry.otlp", old.traces != new.traces),
        ("telemetry.sentry", old.reports != new.reports),
    ];
    let report = Report::default();
    for (path, _) in changed.into_iter().filter(|(_, changed)| *changed) {
        let title = format!("`{path}` cannot change while ringfence runs");
        let help = "restart it with the new file, or revert the change; nothing was reloaded";
        report.error("E060", place(text, path), title, help);
    }
    report.finish()
}

/// The keys of servers whose user or password has changed and nothing else, as warnings at their place in the new text.
pub fn new_credentials(old: &Config, new: &Config, text: &str) -> Vec<Diagnostic> {
    let report = Report::default();
    for (path, changed) in
        [("store.url", old.store.postgres != new.store.postgres), ("gate.redis_url", old.redis != new.redis)]
    {
        if changed {
            let title = format!("`{path}` has another user or password: only new connections use it");
            let help = "let the old one count until its connections have ended, or restart ringfence";
            report.warning("W036", place(text, path), title, help);
        }
    }
    report.finish()
}

fn is_same<S>(old: Option<&S>, new: Option<&S>, is_same_server: fn(&S, &S) -> bool) -> bool {
    match (old, new) {
        (Some(old), Some(new)) => is_same_server(old, new),
        (old, new) => old.is_none() && new.is_none(),
    }
}

/// The place of a key, or else of its section.
fn place(text: &str, path: &str) -> Option<Range<usize>> {
    let (parsed, _) = DeTable::parse_recoverable(text);
    let (section, key) = path.split_once('.').unwrap_or((path, ""));
    let section = parsed.get_ref().get(section);
    let value = section.and_then(|s| s.get_ref().as_table()).and_then(|table| table.get(key));
    value.or(section).map(toml::Spanned::span)
}
