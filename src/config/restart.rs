//! What a running program cannot take up: sockets that are bound, a store that is open, a log that is being written.

use toml::de::DeTable;

use super::Config;
use super::diagnostics::{Diagnostic, Report};

/// The keys that differ and would need a restart, each as a mistake at its place in the new text. Whoever finds one takes up nothing
/// of the new config: half of a config is one that nobody wrote.
pub fn needs_restart(old: &Config, new: &Config, text: &str) -> Vec<Diagnostic> {
    let (was, is) = (&old.listen, &new.listen);
    let files = |config: &Config| config.listen.tls.clone().unzip();
    let ((was_cert, was_key), (is_cert, is_key)) = (files(old), files(new));
    let changed = [
        ("listen.api", was.api != is.api),
        ("listen.webhooks", was.webhooks != is.webhooks),
        ("listen.admin", was.admin != is.admin),
        (
            "listen.admin_socket",
            was.admin_socket != is.admin_socket && (was.admin_socket.is_named || is.admin_socket.is_named),
        ),
        ("listen.client", was.client != is.client),
        ("listen.tls_cert", was_cert != is_cert),
        ("listen.tls_key", was_key != is_key),
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
    ];
    let (parsed, _) = DeTable::parse_recoverable(text);
    let report = Report::default();
    for (path, _) in changed.into_iter().filter(|(_, changed)| *changed) {
        let (section, key) = path.split_once('.').unwrap_or((path, ""));
        let section = parsed.get_ref().get(section);
        let value = section.and_then(|s| s.get_ref().as_table()).and_then(|table| table.get(key));
        let span = value.or(section).map(toml::Spanned::span);
        let title = format!("`{path}` cannot change while ringfence runs");
        report.error(
            "E060",
            span,
            title,
            "restart it with the new file, or take the change back; nothing was reloaded",
        );
    }
    report.finish()
}
