//! The only client for everything that goes upstream, and what it claims about a request that failed.
//!
//! hyper-util's legacy client is used in two copies, because a request that creates a call must not be parked on a pooled
//! connection that the provider has just closed: that race cannot be won (<https://github.com/hyperium/hyper/issues/2136>),
//! only made rare by a short pool idle time, and then be reported as [`Outcome::Unknown`].

use std::convert::Infallible;
use std::error::Error as StdError;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::uri::Scheme;
use http::{HeaderValue, Method, Request, Response, header};
use hyper::body::{Body, Incoming};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::Connect;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::io::AsyncReadExt as _;

use super::body::{Outgoing, SendBy, Unread, collect};
use super::callback::{BadCallback, CALLBACK_MARK, CallbackRules, Guarded};
use super::connector::{Connector, trust};
use crate::failpoint;

/// Fields of an answer's head. hyper takes 100 unless told.
const ANSWER_HEADERS_MAX: usize = 512;
/// What is read of a file at once.
const FILE_PIECE: usize = 64 * 1024;

/// Limits and deadlines towards upstreams.
#[derive(Debug, Clone)]
pub struct UpstreamSettings {
    /// Name look-up, TCP and TLS together. Default 5 s.
    pub connect_timeout: Duration,
    /// How long an unused connection is kept. Default 30 s, below the 60 s and more at which load balancers close.
    pub pool_idle_timeout: Duration,
    /// The same for connections that carry creates. Default 3 s: bursts share connections, and the window in which a
    /// provider's close can meet our create stays small.
    pub create_pool_idle_timeout: Duration,
    /// Unused connections kept per host. Default 64.
    pub pool_max_idle: usize,
    /// How long a create may take from its first byte to its answer's last, before it is `Unknown`. Default 60 s.
    pub create_timeout: Duration,
    /// How long a relayed request may wait for the head of its answer, or for the upstream to take a piece of its body; while either
    /// moves it may go on. Default 600 s, which is longer than any SDK waits. The body of an answer may pause for ever (server-sent
    /// events do).
    pub answer_timeout: Duration,
    /// Header names as `Title-Case` on the wire, for an upstream that wants them so. Default false.
    pub title_case_headers: bool,
    /// A PEM file with roots that are trusted beside the public ones.
    pub extra_ca: Option<PathBuf>,
    /// Which addresses that tenants choose may be called. Default: those that the Internet knows.
    pub callbacks: CallbackRules,
}

impl Default for UpstreamSettings {
    fn default() -> Self {
        UpstreamSettings {
            connect_timeout: Duration::from_secs(5),
            pool_idle_timeout: Duration::from_secs(30),
            create_pool_idle_timeout: Duration::from_secs(3),
            pool_max_idle: 64,
            create_timeout: Duration::from_secs(60),
            answer_timeout: Duration::from_secs(600),
            title_case_headers: false,
            extra_ca: None,
            callbacks: CallbackRules::default(),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UpstreamError {
    /// No connection: name look-up, TCP or TLS failed, or took longer than the limit. Nothing of the request was sent.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// An address that a tenant chose, and that is not to be called. Nothing was sent.
    #[error("not called: {0}")]
    Forbidden(BadCallback),
    /// It was not sent in time.
    #[error("this process stood still between admission and dialling")]
    Late,
    /// The request cannot be sent to anybody: no absolute http(s) address. Nothing was sent.
    #[error("cannot be sent: {0}")]
    Invalid(String),
    /// The connection broke, or what came back is not HTTP.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// No complete answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The answer is longer than may be held in memory.
    #[error("the answer is longer than {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The settings cannot be used.
    #[error("{0}")]
    Settings(String),
}

impl UpstreamError {
    /// Proven: the upstream has not seen a byte of the request.
    pub fn not_sent(&self) -> bool {
        use UpstreamError::{Connect, Forbidden, Invalid, Late};
        matches!(self, Connect(_) | Forbidden(_) | Invalid(_) | Late)
    }
}

/// What became of a request that creates a call.
#[derive(Debug)]
pub enum Outcome {
    /// The upstream answered, whatever its status; the body is whole.
    Answered(Response<Bytes>),
    /// Proven not sent: nothing listens, the name does not resolve, or TLS failed. No call exists.
    NotSent(UpstreamError),
    /// Anything after the first byte could have left: reset, time-out, an answer cut or too large. A call may exist.
    Unknown(UpstreamError),
}

/// The upstream client. Clones share connections.
#[derive(Clone, Debug)]
pub struct Upstream {
    general: Client<Connector, Outgoing>,
    creates: Client<Connector, Outgoing>,
    /// The only way to addresses that tenants choose.
    callbacks: Client<Connector<Guarded>, Outgoing>,
    callback_rules: Arc<CallbackRules>,
    create_timeout: Duration,
    answer_timeout: Duration,
}

impl Upstream {
    /// Builds the clients. Reads the extra CA file, connects to nobody.
    ///
    /// # Errors
    /// [`UpstreamError::Settings`] when the CA file cannot be used.
    pub fn new(settings: UpstreamSettings) -> Result<Self, UpstreamError> {
        let trust = trust(settings.extra_ca.as_deref()).map_err(UpstreamError::Settings)?;
        let connector = Connector::new(settings.connect_timeout, trust.clone());
        let callback_rules = Arc::new(settings.callbacks);
        let guarded = Connector::guarded(Guarded::new(callback_rules.clone()), settings.connect_timeout, trust);
        let builder = |idle: Duration| {
            let mut builder = Client::builder(TokioExecutor::new());
            builder
                .pool_idle_timeout(idle)
                // Without a timer the idle timeout does nothing.
                .pool_timer(TokioTimer::new())
                .timer(TokioTimer::new())
                .pool_max_idle_per_host(settings.pool_max_idle)
                .http1_title_case_headers(settings.title_case_headers)
                .http1_max_headers(ANSWER_HEADERS_MAX);
            builder
        };
        Ok(Upstream {
            general: builder(settings.pool_idle_timeout).build(connector.clone()),
            callbacks: builder(settings.pool_idle_timeout).build(guarded),
            callback_rules,
            creates: builder(settings.create_pool_idle_timeout).retry_canceled_requests(false).build(connector),
            create_timeout: settings.create_timeout,
            answer_timeout: settings.answer_timeout,
        })
    }

    /// Sends a request that creates a call, exactly once, and reads the whole answer, at most `answer_limit` bytes of body. After
    /// `send_by` (see [`since_boot`](crate::clock::since_boot)) it is not sent: that is looked at when a connection takes its body.
    ///
    /// Knows nothing of the client that asked: run it where the client's hang-up does not reach (a task of its own), since
    /// dropping this future leaves the outcome unknown to everybody.
    pub async fn create(&self, request: Request<Bytes>, answer_limit: usize, send_by: Duration) -> Outcome {
        let by = SendBy::new(send_by);
        // A body of no bytes is never taken.
        if request.body().is_empty() && by.has_passed() {
            return Outcome::NotSent(UpstreamError::Late);
        }
        let request = request.map(|body| Outgoing::due(body, by.clone()));
        match whole(&self.creates, request, answer_limit, self.create_timeout, "create.head").await {
            Ok(answer) => Outcome::Answered(answer),
            // Whatever else went wrong: without its body the request was none.
            Err(_) if by.is_missed() => Outcome::NotSent(UpstreamError::Late),
            Err(error) if error.not_sent() => Outcome::NotSent(error),
            Err(error) => Outcome::Unknown(error),
        }
    }

    /// Sends one of ringfence's own requests (look-ups, hang-ups, deliveries) and reads the whole answer within `timeout`.
    /// It is sent again only when a pooled connection turned out closed before the first byte was written.
    ///
    /// # Errors
    /// [`UpstreamError`]; any status is an answer.
    pub async fn fetch(
        &self,
        request: Request<Bytes>,
        answer_limit: usize,
        timeout: Duration,
    ) -> Result<Response<Bytes>, UpstreamError> {
        whole(&self.general, request.map(Outgoing::whole), answer_limit, timeout, "fetch.head").await
    }

    /// Which addresses that tenants choose may be called.
    pub fn callback_rules(&self) -> &CallbackRules {
        &self.callback_rules
    }

    /// As [`Upstream::fetch`], to an address that a tenant chose: with GET or POST alone, marked, and only where the rules let it. A
    /// redirect is an answer, and is not followed.
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
            return Err(UpstreamError::Forbidden(BadCallback::unusable(why)));
        }
        request.headers_mut().insert(CALLBACK_MARK, HeaderValue::from_static("1"));
        whole(&self.callbacks, request.map(Outgoing::whole), answer_limit, timeout, "fetch.head").await
    }

    /// As [`Upstream::fetch`], with a body of `length` bytes that is read from a file while it is sent. What comes of a file that is
    /// shorter is an error.
    ///
    /// # Errors
    /// [`UpstreamError`]; any status is an answer.
    pub async fn fetch_file(
        &self,
        request: Request<()>,
        (mut file, length): (tokio::fs::File, u64),
        answer_limit: usize,
        timeout: Duration,
    ) -> Result<Response<Bytes>, UpstreamError> {
        let (feed, body) = Outgoing::stream(Some(length));
        let feeding = async {
            let mut left = length;
            while left > 0 {
                let mut piece = BytesMut::with_capacity(FILE_PIECE);
                match file.read_buf(&mut piece).await {
                    Ok(read) if read > 0 => left = left.saturating_sub(read as u64),
                    // The request breaks with its feed.
                    _ => break,
                }
                if !feed.chunk(piece.freeze()).await {
                    break;
                }
            }
            if left == 0 {
                feed.end().await;
            } else {
                drop(feed);
            }
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            answer = whole(&self.general, request.map(|()| body), answer_limit, timeout, "fetch.head") => answer,
            never = feeding => match never {},
        }
    }

    /// Sends a relayed request and returns with the head of the answer. No deadline: the relay has its own.
    pub(super) async fn relay(&self, request: Request<Outgoing>) -> Result<Response<Incoming>, UpstreamError> {
        send(&self.general, request).await
    }

    pub(super) fn answer_timeout(&self) -> Duration {
        self.answer_timeout
    }
}

async fn whole<C: Connect + Clone + Send + Sync + 'static>(
    client: &Client<C, Outgoing>,
    request: Request<Outgoing>,
    limit: usize,
    timeout: Duration,
    point: &'static str,
) -> Result<Response<Bytes>, UpstreamError> {
    let exchange = async {
        let (head, body) = send(client, request).await?.into_parts();
        failpoint::hit(point).await;
        match collect(body, limit).await {
            Ok(body) => Ok(Response::from_parts(head, body)),
            Err(Unread::TooLarge) => Err(UpstreamError::TooLarge { limit }),
            Err(Unread::Broken(why)) => Err(UpstreamError::Broken(why)),
        }
    };
    tokio::time::timeout(timeout, exchange).await.unwrap_or(Err(UpstreamError::Timeout(timeout)))
}

async fn send<C: Connect + Clone + Send + Sync + 'static>(
    client: &Client<C, Outgoing>,
    mut request: Request<Outgoing>,
) -> Result<Response<Incoming>, UpstreamError> {
    let uri = request.uri();
    if uri.authority().is_none() || !(uri.scheme() == Some(&Scheme::HTTP) || uri.scheme() == Some(&Scheme::HTTPS)) {
        return Err(UpstreamError::Invalid(format!("{uri} is not an absolute http or https address")));
    }
    if request.method() == Method::CONNECT {
        return Err(UpstreamError::Invalid("CONNECT is not for upstreams".to_owned()));
    }
    *request.version_mut() = http::Version::HTTP_11;
    // The body says how long it is, and nobody else.
    request.headers_mut().remove(header::TRANSFER_ENCODING);
    request.headers_mut().remove(header::CONTENT_LENGTH);
    if request.body().is_end_stream() && matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH) {
        // RFC 9110 §8.6: no content is said, too, where content is expected; hyper would say nothing, and some answer 411.
        request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    client.request(request).await.map_err(|error| {
        if let Some(bad) = forbidden(&error) {
            return UpstreamError::Forbidden(bad.clone());
        }
        let why = chain(&error);
        // The only classification hyper-util makes public, and the only one that proves anything.
        if error.is_connect() { UpstreamError::Connect(why) } else { UpstreamError::Broken(why) }
    })
}

/// The rule that stood in the way of a connection, if one did.
fn forbidden<'e>(error: &'e (dyn StdError + 'static)) -> Option<&'e BadCallback> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(bad) = error.downcast_ref::<BadCallback>() {
            return Some(bad);
        }
        cause = error.source();
    }
    None
}

/// An error with its causes: hyper's own text alone says "client error (SendRequest)".
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}
