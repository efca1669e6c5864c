//! TLS of the listeners: which ones use it, which require client certificates, and the reload of changed files.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::{ListenerName, TlsSettings};
use crate::metrics::{CertificateReload, Metrics};
use crate::net::{ReloadingTls, TlsError};

/// The interval at which certificate files are checked.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(10);

/// The certificates in use.
#[derive(Default)]
pub(super) struct ListenerTls {
    listeners: BTreeSet<ListenerName>,
    /// TLS without client certificates.
    server_only: Option<ReloadingTls>,
    /// TLS with client certificates, and the listeners that ask for them.
    mutual: Option<(ReloadingTls, BTreeSet<ListenerName>)>,
}

impl ListenerTls {
    /// Reads the files.
    pub(super) fn load(settings: Option<&TlsSettings>) -> Result<Self, TlsError> {
        let Some(settings) = settings else { return Ok(Self::default()) };
        let mutual = match &settings.clients {
            Some((ca, of)) => Some((ReloadingTls::load_mutual(&settings.cert, &settings.key, ca)?, of.clone())),
            None => None,
        };
        let server_only = ReloadingTls::load(&settings.cert, &settings.key)?;
        Ok(Self { listeners: settings.listeners.clone(), server_only: Some(server_only), mutual })
    }

    /// The certificates of a listener. `None`: it speaks plain HTTP.
    pub(super) fn tls_of(&self, listener: ListenerName) -> Option<ReloadingTls> {
        let mutual = self.mutual.as_ref().filter(|(_, of)| of.contains(&listener)).map(|(tls, _)| tls);
        mutual.or(self.server_only.as_ref()).filter(|_| self.listeners.contains(&listener)).cloned()
    }

    fn all(&self) -> impl Iterator<Item = &ReloadingTls> {
        self.server_only.iter().chain(self.mutual.iter().map(|(tls, _)| tls))
    }

    /// Sets the metrics of expiry of the certificates in use.
    pub(super) fn show_expiries(&self, metrics: &Metrics) {
        for (certificate, at_secs) in self.all().flat_map(ReloadingTls::expiries) {
            metrics.certificate_expires(certificate, at_secs);
        }
    }

    /// Reloads changed files until stopped.
    pub(super) async fn follow(self, metrics: Metrics, stop: CancellationToken) {
        while self.server_only.is_some() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(CERTIFICATE_CHECK) => {}
            }
            for tls in self.all() {
                match tls.reload_if_changed() {
                    Ok(true) => {
                        metrics.certificate_reload(CertificateReload::Ok);
                        self.show_expiries(&metrics);
                        info!("certificate reloaded; used for new connections");
                    }
                    Ok(false) => {}
                    Err(error) => {
                        metrics.certificate_reload(CertificateReload::Failed);
                        warn!(%error, "failed to load the changed certificate; the old one stays in use");
                    }
                }
            }
        }
    }
}
