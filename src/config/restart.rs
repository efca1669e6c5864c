//! Finds changes that need a restart: bound sockets, the open database, the log.

use toml::de::DeTable;

use super::diagnostics::{Diagnostic, Report};
use super::{Config, Listen};

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
        ("store.url", old.store.postgres != new.store.postgres),
        ("inbox.spool_dir", old.spool_dir != new.spool_dir),
        ("gate.backend", old.gate.home != new.gate.home),
        ("gate.redis_url", old.redis != new.redis),
        ("gate.fallback_after_ms", old.gate.fallback_after != new.gate.fallback_after),
        ("gate.return_after_ms", old.gate.return_after != new.gate.return_after),
        ("gate.audit_interval_secs", old.gate.compare_every != new.gate.compare_every),
        ("transcripts.user_label", old.client.user_label != new.client.user_label),
        ("upstream.ca_file", old.extra_ca != new.extra_ca),
        ("log.format", old.log.json != new.log.json),
        ("telemetry.otlp", old.traces != new.traces),
        ("telemetry.sentry", old.reports != new.reports),
    ];
    let (parsed, _) = DeTable::parse_recoverable(text);
    let report = Report::default();
    for (path, _) in changed.into_iter().filter(|(_, changed)| *changed) {
        let (section, key) = path.split_once('.').unwrap_or((path, ""));
        let section = parsed.get_ref().get(section);
        let value = section.and_then(|s| s.get_ref().as_table()).and_then(|table| table.get(key));
        let span = value.or(section).map(toml::Spanned::span);
        let title = format!("`{path}` cannot change while ringfence runs");
        report.error("E060", span, title, "restart it with the new file, or revert the change; nothing was reloaded");
    }
    report.finish()
}
