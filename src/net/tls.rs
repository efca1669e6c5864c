//! Certificates of the listeners: loaded, and reloaded while connections run.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::sync::lock;
use crate::words::words;
use arc_swap::ArcSwap;
use ring::digest;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

words!(
    /// A certificate whose expiry is shown.
    CertificateUse {
        /// The listener's own.
        Server = "server",
        /// The first of the client authorities.
        ClientCa = "client_ca",
    }
);

/// Installs `ring` as the process's TLS cryptography; later calls do nothing. Must run before any TLS, so `main` calls it first;
/// everything in this module that needs it calls it too.
pub fn install_crypto_provider() {
    // An error means that it is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The reason why a certificate was rejected.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TlsError {
    /// A file is missing, unreadable, or not PEM.
    #[error("cannot read {path}: {why}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's or the parser's message.
        why: String,
    },
    /// The files are readable, but hold no certificate or no private key, or do not belong together.
    #[error("{cert} and {key} are not a certificate and its key: {why}", cert = .cert.display(), key = .key.display())]
    Unusable {
        /// The certificate chain's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// The mistake in the files.
        why: String,
    },
}

/// The certificate chain and key of a listener, from two PEM files (leaf first; PKCS#8, PKCS#1 or SEC1 key).
///
/// New connections get the certificate loaded last; running ones keep theirs. TLS 1.2 and 1.3, ALPN `h2` and `http/1.1`.
/// Clones share one certificate.
#[derive(Clone)]
pub struct ReloadingTls(Arc<Inner>);

struct Inner {
    cert: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
    acceptor: ArcSwap<TlsAcceptor>,
    /// SHA-256 of the files as last tried, so that a file changed twice within one mtime tick is noticed, and a bad
    /// file is reported once and not at every check.
    tried: Mutex<Option<FilesDigest>>,
}

type FilesDigest = [u8; digest::SHA256_OUTPUT_LEN];

impl Inner {
    fn fingerprint(&self) -> Result<FilesDigest, TlsError> {
        fingerprint(&self.cert, &self.key, self.client_ca.as_deref())
    }
}

impl std::fmt::Debug for ReloadingTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReloadingTls").field("cert", &self.0.cert).field("key", &self.0.key).finish_non_exhaustive()
    }
}

impl ReloadingTls {
    /// Loads certificate chain and key. Blocks for a few hundred microseconds.
    ///
    /// # Errors
    /// [`TlsError`], naming the file.
    pub fn load(cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Result<Self, TlsError> {
        Self::load_for(cert.into(), key.into(), None)
    }

    /// Mutual TLS: clients must have a certificate of one of the authorities in `client_ca` (PEM).
    ///
    /// # Errors
    /// [`TlsError`], naming the file.
    pub fn load_mutual(cert: &Path, key: &Path, client_ca: &Path) -> Result<Self, TlsError> {
        Self::load_for(cert.to_owned(), key.to_owned(), Some(client_ca.to_owned()))
    }

    fn load_for(cert: PathBuf, key: PathBuf, client_ca: Option<PathBuf>) -> Result<Self, TlsError> {
        let seen = fingerprint(&cert, &key, client_ca.as_deref())?;
        let acceptor = ArcSwap::from_pointee(acceptor(&cert, &key, client_ca.as_deref())?);
        Ok(ReloadingTls(Arc::new(Inner { cert, key, client_ca, acceptor, tried: Mutex::new(Some(seen)) })))
    }

    /// The times at which the certificates in use expire, in seconds since 1970: the listener's, and the first of the client authorities.
    pub fn expiries(&self) -> Vec<(CertificateUse, i64)> {
        let of = |name, path: Option<&PathBuf>| Some((name, validity(path?).ok()?.until_secs));
        [of(CertificateUse::Server, Some(&self.0.cert)), of(CertificateUse::ClientCa, self.0.client_ca.as_ref())]
            .into_iter()
            .flatten()
            .collect()
    }

    /// Reads both files again and uses them for new connections from now on.
    ///
    /// # Errors
    /// [`TlsError`]; the certificate in use stays in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        // Computed before the files are loaded, so that a change in between is noticed at the next check.
        let seen = self.0.fingerprint();
        *lock(&self.0.tried) = seen.as_ref().ok().copied();
        seen?;
        self.0.acceptor.store(Arc::new(acceptor(&self.0.cert, &self.0.key, self.0.client_ca.as_deref())?));
        Ok(())
    }

    /// As [`reload`](Self::reload), but only if the files' contents changed since they were last tried. Returns whether a new
    /// certificate is in use. Cheap enough to be called every few seconds.
    ///
    /// # Errors
    /// [`TlsError`], once for each change; the certificate in use stays in use.
    pub fn reload_if_changed(&self) -> Result<bool, TlsError> {
        let seen = self.0.fingerprint()?;
        if *lock(&self.0.tried) == Some(seen) {
            return Ok(false);
        }
        self.reload().map(|()| true)
    }

    pub(super) fn acceptor(&self) -> Arc<TlsAcceptor> {
        self.0.acceptor.load_full()
    }
}

/// The validity of a certificate, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Its start.
    pub from_secs: i64,
    /// Its end.
    pub until_secs: i64,
}

/// Reads the validity of the first certificate of a PEM file.
///
/// # Errors
/// [`TlsError::Unreadable`]: the file has no certificate.
pub fn validity(cert: &Path) -> Result<Validity, TlsError> {
    let unreadable = |why: String| TlsError::Unreadable { path: cert.to_owned(), why };
    let bytes = std::fs::read(cert).map_err(|error| unreadable(error.to_string()))?;
    let first = x509_parser::pem::Pem::iter_from_buffer(&bytes).flatten().find(|pem| pem.label == "CERTIFICATE");
    let pem = first.ok_or_else(|| unreadable("it has no certificate".to_owned()))?;
    let certificate = pem.parse_x509().map_err(|error| unreadable(error.to_string()))?;
    let validity = certificate.validity();
    Ok(Validity { from_secs: validity.not_before.timestamp(), until_secs: validity.not_after.timestamp() })
}

/// Returns the part that is misplaced, or in an unsupported form, if it can be recognised.
fn misplaced(cert: &Path, key: &Path) -> Option<&'static str> {
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let (cert, key) = (read(cert), read(key));
    let has_key = |text: &str| text.contains(" PRIVATE KEY-----");
    let has_cert = |text: &str| text.contains("-----BEGIN CERTIFICATE-----");
    if key.contains("BEGIN ENCRYPTED PRIVATE KEY") || key.contains("Proc-Type: 4,ENCRYPTED") {
        Some("the key is encrypted, and its password is unknown: write the key without one")
    } else if has_key(&cert) && !has_cert(&cert) && has_cert(&key) {
        Some("they are swapped: the key is where the certificate should be")
    } else if !has_cert(&cert) {
        Some("the first has no certificate in PEM")
    } else if !has_key(&key) {
        Some("the second has no private key in PEM")
    } else {
        None
    }
}

fn fingerprint(cert: &Path, key: &Path, client_ca: Option<&Path>) -> Result<FilesDigest, TlsError> {
    let mut hash = digest::Context::new(&digest::SHA256);
    for path in [cert, key].into_iter().chain(client_ca) {
        let bytes = std::fs::read(path)
            .map_err(|error| TlsError::Unreadable { path: path.to_owned(), why: error.to_string() })?;
        hash.update(&(bytes.len() as u64).to_be_bytes());
        hash.update(&bytes);
    }
    let mut print = FilesDigest::default();
    print.copy_from_slice(hash.finish().as_ref());
    Ok(print)
}

/// The verifier of client certificates: one of the authorities in a PEM file must have signed them.
fn verifier(client_ca: &Path) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let unreadable = |why: String| TlsError::Unreadable { path: client_ca.to_owned(), why };
    let read = CertificateDer::pem_file_iter(client_ca).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let authorities = read.map_err(|error| unreadable(error.to_string()))?;
    if authorities.is_empty() {
        return Err(unreadable("it has no certificate in PEM".to_owned()));
    }
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority).map_err(|error| unreadable(error.to_string()))?;
    }
    WebPkiClientVerifier::builder(roots.into()).build().map_err(|error| unreadable(error.to_string()))
}

fn acceptor(cert: &Path, key: &Path, client_ca: Option<&Path>) -> Result<TlsAcceptor, TlsError> {
    install_crypto_provider();
    let unusable = |why: String| TlsError::Unusable { cert: cert.to_owned(), key: key.to_owned(), why };
    if let Some(why) = misplaced(cert, key) {
        return Err(unusable(why.to_owned()));
    }
    let pem = |error: rustls::pki_types::pem::Error| unusable(error.to_string());
    let chain = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(pem)?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(pem)?;
    let config = match client_ca {
        None => ServerConfig::builder().with_no_client_auth(),
        Some(client_ca) => ServerConfig::builder().with_client_cert_verifier(verifier(client_ca)?),
    };
    let mut config = config.with_single_cert(chain, private).map_err(|error| unusable(error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
