//! The certificate that a server shows.

use std::path::Path;
use std::sync::Arc;

use http::Uri;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::connector::trust;

/// The time until which the certificate that a server shows is valid, in seconds since 1970. `extra_ca`: authorities beside the public ones, PEM.
///
/// # Errors
/// A sentence: it does not answer, or its certificate is not accepted.
pub async fn served_certificate_expiry(url: &Uri, extra_ca: Option<&Path>) -> Result<i64, String> {
    let host = url.host().ok_or("the URL has no host")?.trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(host.clone()).map_err(|error| error.to_string())?;
    let config = trust(extra_ca, None)?;
    let socket = TcpStream::connect((host.as_str(), url.port_u16().unwrap_or(443))).await;
    let socket = socket.map_err(|error| error.to_string())?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await.map_err(|error| error.to_string())?;
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).ok_or("it shows no certificate")?;
    let (_, certificate) = x509_parser::parse_x509_certificate(shown).map_err(|error| error.to_string())?;
    Ok(certificate.validity().not_after.timestamp())
}
