//! TLS towards a listener of ringfence's own. Its certificate is known from the config, so self-signed certificates work. A client may
//! present one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// The TLS files of a listener of ringfence's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnListener {
    /// The listener's certificate, PEM: trusted as it is, regardless of its names and issuer.
    pub cert: Option<PathBuf>,
    /// A certificate to show, and its key, PEM.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// The TLS of connections to it. Certificates that `roots` vouches for are trusted too. The error is a text for people.
pub(super) fn client_config(roots: RootCertStore, own: &OwnListener) -> Result<ClientConfig, String> {
    let verifier = WebPkiServerVerifier::builder(Arc::new(roots)).build().map_err(|error| error.to_string())?;
    let known = own.cert.as_deref().map(|path| Ok::<_, String>(chain(path)?.swap_remove(0))).transpose()?;
    let builder = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(KnownListener { known, otherwise: verifier }));
    let Some((cert, key)) = &own.client else { return Ok(builder.with_no_client_auth()) };
    let unusable = |error: &dyn std::fmt::Display| format!("cannot use {}: {error}", key.display());
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(&error))?;
    builder.with_client_auth_cert(chain(cert)?, private).map_err(|error| unusable(&error))
}

/// The certificates of a file: one at least.
fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let unusable = |why: String| format!("cannot use {} as a certificate: {why}", path.display());
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = found.map_err(|error| unusable(error.to_string()))?;
    if found.is_empty() { Err(unusable("it has none in PEM".to_owned())) } else { Ok(found) }
}

/// Trusts one certificate as it is, and otherwise those that roots vouch for.
#[derive(Debug)]
struct KnownListener {
    known: Option<CertificateDer<'static>>,
    otherwise: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for KnownListener {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.known.as_ref().is_some_and(|known| known == end_entity) {
            // That it has the key too, the handshake's signature proves.
            return Ok(ServerCertVerified::assertion());
        }
        self.otherwise.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.otherwise.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.otherwise.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.otherwise.supported_verify_schemes()
    }
}
