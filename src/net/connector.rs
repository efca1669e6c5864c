//! Connections to upstreams: TCP and TLS within one time limit, and writes that do not hide an early answer.

use std::error::Error as StdError;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tower_service::Service;

use super::callback::Guarded;
use super::own::{OwnListener, client_config};
use super::tls::install_crypto_provider;

/// A connector whose time limit covers TLS too: that of [`HttpConnector`] ends with the TCP handshake.
#[derive(Clone, Debug)]
pub(super) struct Connector<T = HttpConnector> {
    inner: HttpsConnector<T>,
    limit: Duration,
}

/// The TLS client configuration: the public roots, those of `extra_ca`, and one of our own listeners. The error is a sentence for
/// operators.
pub(super) fn trust(extra_ca: Option<&Path>, own: Option<&OwnListener>) -> Result<ClientConfig, String> {
    install_crypto_provider();
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(path) = extra_ca {
        let unusable = |error: &dyn StdError| format!("cannot use {} as a CA file: {error}", path.display());
        let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let found = found.map_err(|error| unusable(&error))?;
        if found.is_empty() {
            return Err(format!("cannot use {} as a CA file: it has no certificate in PEM", path.display()));
        }
        for one in found {
            roots.add(one).map_err(|error| unusable(&error))?;
        }
    }
    match own {
        Some(own) => client_config(roots, own),
        None => Ok(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()),
    }
}

impl Connector {
    /// A connector to the operator's and the providers' addresses.
    pub(super) fn new(limit: Duration, trust: ClientConfig) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        // Otherwise a peer that vanished would hold a tunnel or an event stream for ever.
        tcp.set_keepalive(Some(Duration::from_secs(60)));
        tcp.set_keepalive_interval(Some(Duration::from_secs(15)));
        tcp.set_keepalive_retries(Some(4));
        Self::over(tcp, limit, trust)
    }
}

impl Connector<Guarded> {
    /// A connector to addresses that tenants choose.
    pub(super) fn guarded(guarded: Guarded, limit: Duration, trust: ClientConfig) -> Self {
        Self::over(guarded, limit, trust)
    }
}

impl<T> Connector<T> {
    fn over(tcp: T, limit: Duration, trust: ClientConfig) -> Self {
        let builder = HttpsConnectorBuilder::new().with_tls_config(trust).https_or_http().enable_http1();
        Connector { inner: builder.wrap_connector(tcp), limit }
    }
}

type BoxError = Box<dyn StdError + Send + Sync>;

impl<T> Service<Uri> for Connector<T>
where
    HttpsConnector<T>: Service<Uri, Error = BoxError>,
    <HttpsConnector<T> as Service<Uri>>::Future: Send + 'static,
    <HttpsConnector<T> as Service<Uri>>::Response: 'static,
{
    type Response = WriteErrorHider<<HttpsConnector<T> as Service<Uri>>::Response>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, limit) = (self.inner.call(uri), self.limit);
        Box::pin(async move {
            match tokio::time::timeout(limit, connecting).await {
                Ok(connected) => connected.map(|inner| WriteErrorHider { inner, write_failed: false }),
                Err(_) => Err(format!("no connection within {limit:?}").into()),
            }
        })
    }
}

/// A stream whose failed writes do not hide the peer's answer.
///
/// An upstream may answer (413, 401) and close before it has read the whole body. hyper would notice the failed write before
/// the answer that has already arrived, and drop the answer unread (RFC 9110 §7.5 wants it read). So a write
/// that the peer rejects is reported as done; the read then returns the answer, or the end
/// of the connection, which follows such a failure at once and keeps the connection out of the pool.
pub(super) struct WriteErrorHider<T> {
    inner: T,
    write_failed: bool,
}

impl<T> WriteErrorHider<T> {
    fn hide_error<V>(&mut self, write: Poll<io::Result<V>>, instead: V) -> Poll<io::Result<V>> {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        match write {
            Poll::Ready(Err(error)) if matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset) => {
                self.write_failed = true;
                Poll::Ready(Ok(instead))
            }
            other => other,
        }
    }
}

impl<T: Read + Unpin> Read for WriteErrorHider<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(cx, buf)
    }
}

impl<T: Write + Unpin> Write for WriteErrorHider<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.write_failed {
            return Poll::Ready(Ok(buf.len()));
        }
        let write = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.hide_error(write, buf.len())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.write_failed {
            return Poll::Ready(Ok(()));
        }
        let flush = Pin::new(&mut this.inner).poll_flush(cx);
        this.hide_error(flush, ())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let all = bufs.iter().map(|buf| buf.len()).sum();
        if this.write_failed {
            return Poll::Ready(Ok(all));
        }
        let write = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.hide_error(write, all)
    }
}

impl<T: Connection> Connection for WriteErrorHider<T> {
    fn connected(&self) -> Connected {
        self.inner.connected()
    }
}
