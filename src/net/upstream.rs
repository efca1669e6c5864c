//! The only HTTP client for upstreams, and what it guarantees about a failed request.
//!
//! Idle connections stay on the core that opened them, so that a request and its answer stay on one thread. A request on a pooled
//! connection that hyper returns, because the upstream had closed it before a byte was written, is sent on another one; a request
//! of which a byte may have been written is never sent again (that race cannot be won: <https://github.com/hyperium/hyper/issues/2136>).

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::uri::Scheme;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper::rt::{Read, Write};
use rustls::ClientConfig;
use tokio_tungstenite::tungstenite;
use tower_service::Service;

use super::body::{Deadline, Outgoing, Unread, collect};
use super::callback::{CALLBACK_MARK, CallbackError, CallbackRules, Guarded};
use super::connector::{Connector, WriteErrorHider, trust};
use super::headers::says_length;
use super::own::OwnListener;
use super::pool::{Lane, Pool, PoolKey, PooledConnection};
use crate::failpoint;

/// Maximum fields of an answer's head. hyper's default is 100.
const ANSWER_HEADERS_MAX: usize = 512;

/// Limits and deadlines towards upstreams.
#[derive(Debug, Clone)]
pub struct UpstreamSettings {
    /// The timeout of name resolution, TCP and TLS together. Default 5 s.
    pub connect_timeout: Duration,
    /// The time for which an idle connection is kept. Default 30 s, below the 60 s and more at which load balancers close.
    pub pool_idle_timeout: Duration,
    /// The time for which an idle connection that carries creates is kept. Default 3 s: bursts share connections, and the window in which a
    /// provider's close can meet our create stays small.
    pub create_pool_idle_timeout: Duration,
    /// Maximum idle connections per core. Default 256.
    pub pool_max_idle: usize,
    /// The maximum duration of a create, from its first byte to its answer's last; then it is `Unknown`. Default 60 s.
    pub create_timeout: Duration,
    /// The time for which a relayed request may wait for the head of its answer, or for the upstream to take a piece of its body; progress of either
    /// extends it. Default 600 s, longer than any SDK waits. The body of an answer may pause for ever (server-sent
    /// events do).
    pub answer_timeout: Duration,
    /// Whether header names are sent as `Title-Case`, for upstreams that require it. Default false.
    pub title_case_headers: bool,
    /// A PEM file with additional trusted roots.
    pub extra_ca: Option<PathBuf>,
    /// One of our own listeners, for commands that ask it. Default: none.
    pub own: Option<OwnListener>,
    /// The rules for addresses that tenants choose. Default: public ones only.
    pub callbacks: CallbackRules,
}

impl Default for UpstreamSettings {
    fn default() -> Self {
        UpstreamSettings {
            connect_timeout: Duration::from_secs(5),
            pool_idle_timeout: Duration::from_secs(30),
            create_pool_idle_timeout: Duration::from_secs(3),
            pool_max_idle: 256,
            create_timeout: Duration::from_secs(60),
            answer_timeout: Duration::from_secs(600),
            title_case_headers: false,
            extra_ca: None,
            own: None,
            callbacks: CallbackRules::default(),
        }
    }
}

/// The reason why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UpstreamError {
    /// The connection failed: name resolution, TCP, TLS or the timeout. Nothing of the request was sent.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// A callback URL that may not be called. Nothing was sent.
    #[error("not called: {0}")]
    Forbidden(CallbackError),
    /// The request was not sent before its deadline.
    #[error("process paused past the send deadline; request not sent")]
    Late,
    /// The request is invalid, such as without an absolute http(s) URL. Nothing was sent.
    #[error("cannot be sent: {0}")]
    Invalid(String),
    /// The connection broke, or the answer is not HTTP.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// No complete answer within the timeout.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The answer exceeds the limit in memory.
    #[error("the answer is longer than {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The settings are invalid.
    #[error("{0}")]
    Settings(String),
}

impl UpstreamError {
    /// Whether the upstream has certainly not received a byte of the request.
    pub fn not_sent(&self) -> bool {
        use UpstreamError::{Connect, Forbidden, Invalid, Late};
        matches!(self, Connect(_) | Forbidden(_) | Invalid(_) | Late)
    }
}

/// The outcome of a request that creates a call.
#[derive(Debug)]
pub enum SendResult {
    /// The upstream answered, with any status; the body is complete.
    Answered(Response<Bytes>),
    /// Certainly not sent: nothing listens, the name does not resolve, or TLS failed. No call exists.
    NotSent(UpstreamError),
    /// A failure after the first byte may have been sent: reset, timeout, an answer cut off or too large. A call may exist.
    Unknown(UpstreamError),
}

/// A WebSocket to an upstream.
pub type UpstreamSocket = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

/// The upstream client. Clones share connections.
#[derive(Clone, Debug)]
pub struct Upstream(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pool: Arc<Pool>,
    connector: Connector,
    /// The connector for addresses that tenants choose.
    guarded: Connector<Guarded>,
    callback_rules: Arc<CallbackRules>,
    http1: http1::Builder,
    /// The TLS of WebSockets; the connectors have their own copy.
    trust: Arc<ClientConfig>,
    create_timeout: Duration,
    answer_timeout: Duration,
}

impl Upstream {
    /// Builds the client. Reads the extra CA file; opens no connection.
    ///
    /// # Errors
    /// [`UpstreamError::Settings`]: the CA file is unusable.
    pub fn new(settings: UpstreamSettings) -> Result<Self, UpstreamError> {
        let trust = trust(settings.extra_ca.as_deref(), settings.own.as_ref()).map_err(UpstreamError::Settings)?;
        let callback_rules = Arc::new(settings.callbacks);
        let guarded = Connector::guarded(Guarded::new(callback_rules.clone()), settings.connect_timeout, trust.clone());
        let mut http1 = http1::Builder::new();
        http1
            .preserve_header_case(true)
            .title_case_headers(settings.title_case_headers)
            .max_headers(ANSWER_HEADERS_MAX);
        Ok(Upstream(Arc::new(Inner {
            pool: Pool::new(settings.pool_max_idle, settings.pool_idle_timeout, settings.create_pool_idle_timeout),
            connector: Connector::new(settings.connect_timeout, trust.clone()),
            trust: Arc::new(trust),
            guarded,
            callback_rules,
            http1,
            create_timeout: settings.create_timeout,
            answer_timeout: settings.answer_timeout,
        })))
    }

    /// Opens a WebSocket to an upstream (`ws://` or `wss://`). It trusts whom all other requests trust. The caller bounds its time.
    ///
    /// # Errors
    /// The connection, TLS or the handshake failed.
    pub async fn web_socket(&self, request: Request<()>) -> Result<UpstreamSocket, tungstenite::Error> {
        let tls = tokio_tungstenite::Connector::Rustls(self.0.trust.clone());
        let connecting = tokio_tungstenite::connect_async_tls_with_config(request, None, true, Some(tls));
        Box::pin(connecting).await.map(|(socket, _)| socket)
    }

    /// Sends a request that creates a call, exactly once, and reads the answer, at most `answer_limit` bytes of body. After
    /// `send_by` (see [`since_boot`](crate::clock::since_boot)) it is not sent: this is checked when a connection takes its body.
    ///
    /// It does not watch the client: run it in a task of its own, which the client's hang-up cannot cancel, because
    /// dropping this future leaves the outcome unknown.
    pub async fn create(&self, request: Request<Bytes>, answer_limit: usize, send_by: Duration) -> SendResult {
        let by = Deadline::new(send_by);
        // An empty body is never taken.
        if request.body().is_empty() && by.check() {
            return SendResult::NotSent(UpstreamError::Late);
        }
        let request = request.map(|body| Outgoing::due(body, by.clone()));
        match self.send_and_collect(Lane::Creates, request, answer_limit, self.0.create_timeout, "create.head").await {
            Ok(answer) => SendResult::Answered(answer),
            // Whatever else failed: without its body the request was incomplete.
            Err(_) if by.is_missed() => SendResult::NotSent(UpstreamError::Late),
            Err(error) if error.not_sent() => SendResult::NotSent(error),
            Err(error) => SendResult::Unknown(error),
        }
    }

    /// Sends one of ringfence's own requests (look-ups, hang-ups, deliveries) and reads the answer within `timeout`.
    /// It is sent again only if a pooled connection turned out closed before the first byte was written.
    ///
    /// # Errors
    /// [`UpstreamError`]; any status is an answer.
    pub async fn fetch(
        &self,
        request: Request<Bytes>,
        answer_limit: usize,
        timeout: Duration,
    ) -> Result<Response<Bytes>, UpstreamError> {
        self.send_and_collect(Lane::General, request.map(Outgoing::complete), answer_limit, timeout, "fetch.head").await
    }

    /// The rules for addresses that tenants choose.
    pub fn callback_rules(&self) -> &CallbackRules {
        &self.0.callback_rules
    }

    /// As [`Upstream::fetch`], to an address that a tenant chose: only with GET or POST, marked, and if the rules allow it. Redirects
    /// are answers, and are not followed.
    ///
    /// # Errors
    /// [`UpstreamError`]; any status is an answer.
    pub async fn fetch_callback(
        &self,
        mut request: Request<Bytes>,
        answer_limit: usize,
        timeout: Duration,
    ) -> Result<Response<Bytes>, UpstreamError> {
        if !matches!(*request.method(), Method::GET | Method::POST) {
            let why = format!("{} is not a method for callbacks", request.method());
            return Err(UpstreamError::Forbidden(CallbackError::unusable(why)));
        }
        request.headers_mut().insert(CALLBACK_MARK, HeaderValue::from_static("1"));
        self.send_and_collect(Lane::Callbacks, request.map(Outgoing::complete), answer_limit, timeout, "fetch.head")
            .await
    }

    /// As [`Upstream::fetch`], with a body of `length` bytes that is streamed from a file. A shorter file is an
    /// error.
    ///
    /// # Errors
    /// [`UpstreamError`]; any status is an answer.
    pub async fn fetch_file(
        &self,
        request: Request<()>,
        (file, length): (tokio::fs::File, u64),
        answer_limit: usize,
        timeout: Duration,
    ) -> Result<Response<Bytes>, UpstreamError> {
        let request = request.map(|()| Outgoing::file(file, length));
        self.send_and_collect(Lane::General, request, answer_limit, timeout, "fetch.head").await
    }

    /// Sends a relayed request and returns the head of its answer. Without a timeout: the relay has its own.
    /// The request is taken once a connection accepts it.
    pub(super) fn relay(
        &self,
        request: &mut Option<Request<Outgoing>>,
    ) -> impl Future<Output = Result<Response<UpstreamBody>, UpstreamError>> {
        self.send(Lane::General, request)
    }

    pub(super) fn answer_timeout(&self) -> Duration {
        self.0.answer_timeout
    }

    async fn send_and_collect(
        &self,
        lane: Lane,
        request: Request<Outgoing>,
        limit: usize,
        timeout: Duration,
        point: &'static str,
    ) -> Result<Response<Bytes>, UpstreamError> {
        let mut request = Some(request);
        let exchange = async {
            let (head, body) = self.send(lane, &mut request).await?.into_parts();
            failpoint::hit(point).await;
            match collect(body, limit).await {
                Ok(body) => Ok(Response::from_parts(head, body)),
                Err(Unread::TooLarge) => Err(UpstreamError::TooLarge { limit }),
                Err(Unread::Broken(why)) => Err(UpstreamError::Broken(why)),
            }
        };
        tokio::time::timeout(timeout, exchange).await.unwrap_or(Err(UpstreamError::Timeout(timeout)))
    }

    /// By reference, because a request is large and would be moved at each step.
    async fn send(
        &self,
        lane: Lane,
        unsent: &mut Option<Request<Outgoing>>,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        let missing = || UpstreamError::Invalid("missing request".to_owned());
        let request = unsent.as_mut().ok_or_else(missing)?;
        if request.method() == Method::CONNECT {
            return Err(UpstreamError::Invalid("CONNECT is not for upstreams".to_owned()));
        }
        let uri = std::mem::take(request.uri_mut());
        let to = PoolKey::of(lane, &uri)
            .ok_or_else(|| UpstreamError::Invalid(format!("{uri} is not an absolute http or https address")))?;
        frame(request, &uri);
        let asked = match request.headers().contains_key(header::UPGRADE) {
            true => ExpectedAnswer::Upgrade,
            false => ExpectedAnswer::Answer,
        };
        loop {
            let waiting = self.0.pool.take(&to);
            let is_new = waiting.is_none();
            let mut connection = match waiting {
                Some(connection) => connection,
                None => Box::pin(self.connect(&to, lane, uri.clone())).await?,
            };
            let sent = connection.sender.try_send_request(unsent.take().ok_or_else(missing)?);
            let mut error = match sent.await {
                Ok(response) => {
                    if let Some(why) = unfit(&response, asked) {
                        return Err(UpstreamError::Broken(why.to_owned()));
                    }
                    let is_tunnel = response.status() == StatusCode::SWITCHING_PROTOCOLS;
                    let back = (!is_tunnel).then(|| (connection, self.0.pool.clone()));
                    return Ok(response.map(|incoming| UpstreamBody { incoming, has_ended: false, back }));
                }
                Err(error) => error,
            };
            match error.take_message() {
                // Not a byte was written.
                Some(again) if !is_new => *unsent = Some(again),
                Some(_) => return Err(UpstreamError::Connect(chain(error.error()))),
                None => return Err(UpstreamError::Broken(chain(error.error()))),
            }
        }
    }

    async fn connect(&self, to: &PoolKey, lane: Lane, uri: Uri) -> Result<PooledConnection, UpstreamError> {
        match lane {
            Lane::General | Lane::Creates => self.open(to, self.0.connector.clone().call(uri)).await,
            Lane::Callbacks => self.open(to, self.0.guarded.clone().call(uri)).await,
        }
    }

    async fn open<T, E>(
        &self,
        to: &PoolKey,
        connecting: impl Future<Output = Result<WriteErrorHider<T>, E>>,
    ) -> Result<PooledConnection, UpstreamError>
    where
        T: Read + Write + Unpin + Send + 'static,
        E: Into<Box<dyn StdError + Send + Sync>>,
    {
        let failed = |error: &(dyn StdError + 'static)| match forbidden(error) {
            Some(bad) => UpstreamError::Forbidden(bad.clone()),
            None => UpstreamError::Connect(chain(error)),
        };
        let io = connecting.await.map_err(|error| failed(error.into().as_ref()))?;
        let (sender, driven) = self.0.http1.handshake(io).await.map_err(|error| failed(&error))?;
        Ok(self.0.pool.connection(to, sender, driven.with_upgrades()))
    }
}

/// Prepares a request for hyper: origin form, with a `Host`, and framed by its body alone.
fn frame(request: &mut Request<Outgoing>, uri: &Uri) {
    *request.version_mut() = http::Version::HTTP_11;
    if !request.headers().contains_key(header::HOST)
        && let Some(Ok(host)) = uri.host().map(|host| {
            let default = if uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 };
            match uri.port_u16().filter(|port| *port != default) {
                Some(port) => HeaderValue::try_from(format!("{host}:{port}")),
                None => HeaderValue::from_str(host),
            }
        })
    {
        request.headers_mut().insert(header::HOST, host);
    }
    if let Some(target) = uri.path_and_query() {
        *request.uri_mut() = Uri::from(target.clone());
    }
    // Only the body sets the framing.
    request.headers_mut().remove(header::TRANSFER_ENCODING);
    if !request.body().size_hint().exact().is_some_and(|length| says_length(request.headers(), length)) {
        request.headers_mut().remove(header::CONTENT_LENGTH);
    }
    if request.body().is_end_stream() && matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH) {
        // RFC 9110 §8.6: an empty body has a length where one is expected; hyper would omit it, and some servers answer 411.
        request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    if matches!(*request.method(), Method::GET | Method::HEAD)
        && !request.body().is_end_stream()
        && request.body().size_hint().exact().is_none()
    {
        // hyper drops a body of unknown length of these methods without this header.
        request.headers_mut().insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// The kind of response that a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ExpectedAnswer {
    /// Another protocol on its connection.
    Upgrade,
    /// An answer.
    Answer,
}

/// The reason why an answer cannot be passed on: an upgrade that was not requested, or a transfer coding other than chunked.
fn unfit(response: &Response<Incoming>, asked: ExpectedAnswer) -> Option<&'static str> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS && asked == ExpectedAnswer::Answer {
        return Some("a 101 that was not requested");
    }
    let mut codings = response.headers().get_all(header::TRANSFER_ENCODING).iter();
    let is_known = |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    codings.any(|value| !is_known(value)).then_some("an unknown transfer coding")
}

/// The body of an upstream's answer. Read completely, its connection returns to the pool; dropped before, it is
/// closed.
#[derive(Debug)]
pub(super) struct UpstreamBody {
    incoming: Incoming,
    has_ended: bool,
    back: Option<(PooledConnection, Arc<Pool>)>,
}

impl UpstreamBody {
    fn return_to_pool(&mut self) {
        if let Some((connection, pool)) = self.back.take() {
            pool.return_to_pool(connection);
        }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        match &frame {
            None => self.has_ended = true,
            Some(Ok(frame)) if frame.is_trailers() => self.has_ended = true,
            Some(_) => {}
        }
        if self.is_end_stream() {
            self.return_to_pool();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended || self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for UpstreamBody {
    fn drop(&mut self) {
        if self.is_end_stream() {
            self.return_to_pool();
        }
    }
}

/// The callback rule that prevented a connection, if one did.
fn forbidden<'e>(error: &'e (dyn StdError + 'static)) -> Option<&'e CallbackError> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(bad) = error.downcast_ref::<CallbackError>() {
            return Some(bad);
        }
        cause = error.source();
    }
    None
}

/// An error with its causes: hyper's own text is only "client error (SendRequest)".
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}
