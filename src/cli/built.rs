//! Builds what `serve` would build from a config, without serving, so that `check` finds what fails only at start.

use tracing_subscriber::EnvFilter;

use crate::clock::Clock;
use crate::config::Config;
use crate::config::diagnostics::{Diagnostic, Report};
use crate::net::tls::{ReloadingTls, TlsError, Validity, validity};
use crate::net::{Upstream, UpstreamSettings, install_crypto_provider};

/// Days before a certificate's expiry in which it is reported.
const EXPIRES_SOON_DAYS: i64 = 14;
const DAY_SECS: i64 = 86_400;

/// The diagnostics of everything that cannot be built.
pub(super) fn check_build(config: &Config) -> Vec<Diagnostic> {
    install_crypto_provider();
    let report = Report::default();
    if let Some(tls) = &config.listen.tls {
        match ReloadingTls::load(&tls.cert, &tls.key) {
            Err(error) => {
                let help =
                    "tls_cert is a PEM file with the chain, the leaf first; tls_key one with its key, not encrypted";
                report.error("E044", None, format!("`listen.tls_cert` and `listen.tls_key`: {error}"), help);
            }
            Ok(_) => certificate(&report, "tls_cert", &tls.cert),
        }
        if let Some((client_ca, _)) = &tls.clients {
            match ReloadingTls::load_mutual(&tls.cert, &tls.key, client_ca) {
                Err(error @ TlsError::Unreadable { .. }) => {
                    let help = "it must be a PEM file with the certificates of the authorities";
                    report.error("E044", None, format!("`listen.tls_client_ca`: {error}"), help);
                }
                // The problem with the certificate was reported above.
                Err(_) => {}
                Ok(_) => certificate(&report, "tls_client_ca", client_ca),
            }
        }
    }
    if let Some(file) = &config.extra_ca
        && std::fs::read_to_string(file).is_ok_and(|pem| !pem.contains("-----BEGIN CERTIFICATE-----"))
    {
        let title = format!("`upstream.ca_file`: {} has no certificate in PEM", file.display());
        report.error("E044", None, title, "it must be a PEM file with certificates");
    }
    let settings = UpstreamSettings { extra_ca: config.extra_ca.clone(), ..UpstreamSettings::default() };
    if let Err(error) = Upstream::new(settings) {
        report.error("E044", None, format!("`upstream.ca_file`: {error}"), "it must be a PEM file with certificates");
    }
    if let Some(Err(why)) = config.redis.as_ref().map(|settings| settings.check()) {
        report.error("E044", None, format!("[gate]: {why}"), "");
    }
    if let Err(error) = EnvFilter::try_new(&config.log.filter) {
        let help = "as in \"info\" or \"info,ringfence=debug\"";
        report.error("E003", None, format!("`log.filter` is {:?}: {error}", config.log.filter), help);
    }
    report.finish()
}

/// Whether a certificate that is valid until then is to be renewed.
pub(super) fn expires_soon(until_secs: i64) -> bool {
    until_secs - Clock::system().now_ms() / 1000 < EXPIRES_SOON_DAYS * DAY_SECS
}

/// The day of a time, in seconds since 1970.
pub(super) fn day(secs: i64) -> String {
    crate::clock::rfc3339(secs.saturating_mul(1000)).chars().take(10).collect()
}

fn certificate(report: &Report, key: &str, cert: &std::path::Path) {
    let now_secs = Clock::system().now_ms() / 1000;
    let Validity { from_secs, until_secs } = match validity(cert) {
        Ok(validity) => validity,
        Err(error) => return report.error("E044", None, format!("`listen.{key}`: {error}"), ""),
    };
    let shown = cert.display();
    if now_secs >= until_secs {
        let title = format!("`listen.{key}`: the certificate of {shown} expired on {}", day(until_secs));
        report.error("E045", None, title, "clients reject it: renew it; the file is reloaded when it changes");
    } else if now_secs < from_secs {
        let title = format!("`listen.{key}`: the certificate of {shown} is not valid before {}", day(from_secs));
        report.error("E045", None, title, "clients reject it: check the clock, or wait");
    } else if expires_soon(until_secs) {
        let title = format!("`listen.{key}`: the certificate of {shown} expires on {}", day(until_secs));
        report.warning("W023", None, title, "");
    }
}
