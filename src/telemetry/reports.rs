//! Panics and logged errors, reported to Sentry, GlitchTip or a compatible server
//! (<https://develop.sentry.dev/sdk/foundations/transport/envelopes/>).
//!
//! A report has the fields of the log line except paths, peers and quoted text of a panic, with masked numbers. Reports are dropped if
//! their bounded queue is full, or beyond a rate per minute: a repeated error does not need a thousand reports.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::PanicHookInfo;
use std::str::FromStr as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, USER_AGENT};
use http::{Method, Request, Uri};
use sentry_types::Dsn;
use sentry_types::protocol::v7::{Envelope, Event, Exception, Level, Values};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::field::{Field, Visit};
use tracing::{Subscriber, warn};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::Context;
use tracing_subscriber::{Layer, Registry};

use crate::ids::mask_numbers_in;
use crate::net::Upstream;
use crate::provider::secret::Secret;
use crate::sync::lock;

/// The maximum number of queued reports.
const QUEUE_MAX: usize = 32;
/// Maximum reports a minute.
const REPORTS_PER_MINUTE_MAX: u32 = 20;
/// The timeout of a report.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The time that an exit waits for the last reports.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);
/// The maximum answer, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// The longest text of a report, in characters.
const TEXT_CHARS_MAX: usize = 400;
/// The name of this client.
const AGENT: &str = concat!("ringfence/", env!("CARGO_PKG_VERSION"));
/// Fields of log lines that reports omit: they may contain client input, or name a server.
const LEFT_OUT: [&str; 4] = ["path", "peer", "body", "store"];

/// The destination of reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorReporting {
    dsn: Secret,
    environment: Option<String>,
}

impl ErrorReporting {
    /// # Errors
    /// The DSN is invalid.
    pub fn new(dsn: Secret, environment: Option<String>) -> Result<Self, String> {
        // The error may show the DSN.
        Dsn::from_str(dsn.expose()).map_err(|_| "is not a DSN: https://KEY@HOST/PROJECT".to_owned())?;
        Ok(Self { dsn, environment })
    }
}

/// Layer for the logged errors of a process.
pub type ErrorLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Sender of reports.
pub struct Reporter(JoinHandle<()>, mpsc::Sender<Item>);

/// An item of the queue.
enum Item {
    Report(Box<Event<'static>>),
    /// Everything before it has been sent.
    Flush(oneshot::Sender<()>),
}

/// Starts reporting panics of the process, and errors that reach the layer. `upstream` sends the reports.
///
/// # Errors
/// The DSN is invalid.
pub fn start(settings: &ErrorReporting, upstream: Upstream) -> Result<(ErrorLayer, Reporter), String> {
    let dsn = Dsn::from_str(settings.dsn.expose()).map_err(|_| "invalid DSN".to_owned())?;
    let url: Uri = dsn.envelope_api_url().as_str().parse().map_err(|_| "invalid address in the DSN".to_owned())?;
    let mut auth = HeaderValue::try_from(dsn.to_auth(Some(AGENT)).to_string()).map_err(|_| "invalid DSN")?;
    auth.set_sensitive(true);
    let (to, mut queue) = mpsc::channel(QUEUE_MAX);
    let environment = settings.environment.clone();
    let sending = tokio::spawn(async move {
        let mut is_away = false;
        while let Some(item) = queue.recv().await {
            let mut event = match item {
                Item::Report(event) => event,
                Item::Flush(done) => {
                    let _ = done.send(());
                    continue;
                }
            };
            event.environment = environment.clone().map(Into::into);
            let why = send(&upstream, &url, &auth, *event).await.err();
            if let Some(error) = why.as_ref().filter(|_| !is_away) {
                warn!(error, "failed to send an error report; further failures are not logged until one is sent");
            }
            is_away = why.is_some();
        }
    });
    let before = std::panic::take_hook();
    let for_panics = Limited::new(to.clone());
    std::panic::set_hook(Box::new(move |info| {
        for_panics.report(of_panic(info));
        before(info);
    }));
    let errors = Limited::new(to.clone()).with_filter(LevelFilter::ERROR);
    Ok((Box::new(errors), Reporter(sending, to)))
}

async fn send(upstream: &Upstream, url: &Uri, auth: &HeaderValue, event: Event<'static>) -> Result<(), String> {
    let mut body = Vec::new();
    Envelope::from(event).to_writer(&mut body).map_err(|error| error.to_string())?;
    let mut request = Request::new(Bytes::from(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = url.clone();
    request.headers_mut().insert("x-sentry-auth", auth.clone());
    request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-sentry-envelope"));
    let answer = upstream.fetch(request, ANSWER_BYTES_MAX, TIMEOUT).await.map_err(|error| error.to_string())?;
    if answer.status().is_success() { Ok(()) } else { Err(format!("it answered {}", answer.status().as_u16())) }
}

impl Reporter {
    /// Flushes the queue, with a timeout.
    pub async fn stop(self) {
        let Self(sending, to) = self;
        let (done, sent) = oneshot::channel();
        let whole = async {
            // The layer and the hook keep their senders, so the queue does not end.
            if to.send(Item::Flush(done)).await.is_ok() {
                let _ = sent.await;
            }
        };
        let _ = tokio::time::timeout(FLUSH_WITHIN, whole).await;
        sending.abort();
    }
}

/// A rate-limited sender to the queue.
struct Limited {
    to: mpsc::Sender<Item>,
    /// The start of the current minute, and its number of reports.
    minute: Mutex<(Instant, u32)>,
}

impl Limited {
    fn new(to: mpsc::Sender<Item>) -> Self {
        Self { to, minute: Mutex::new((Instant::now(), 0)) }
    }

    fn report(&self, event: Event<'static>) {
        let is_too_many = {
            let mut minute = lock(&self.minute);
            if minute.0.elapsed() >= Duration::from_secs(60) {
                *minute = (Instant::now(), 0);
            }
            minute.1 = minute.1.saturating_add(1);
            minute.1 > REPORTS_PER_MINUTE_MAX
        };
        if !is_too_many {
            // The queue is full, or its receiver is gone.
            let _ = self.to.try_send(Item::Report(Box::new(event)));
        }
    }
}

/// A report without content.
fn event(level: Level) -> Event<'static> {
    Event { level, platform: "native".into(), release: Some(AGENT.replace('/', "@").into()), ..Event::default() }
}

fn of_panic(info: &PanicHookInfo<'_>) -> Event<'static> {
    let said = info.payload();
    let said = said.downcast_ref::<&str>().copied().or(said.downcast_ref::<String>().map(String::as_str));
    let exception = Exception {
        ty: "panic".to_owned(),
        value: Some(of_program(said.unwrap_or("(no message)"))),
        ..Exception::default()
    };
    Event {
        exception: Values { values: vec![exception] },
        culprit: info.location().map(|place| format!("{}:{}", place.file(), place.line())),
        ..event(Level::Fatal)
    }
}

/// The program's part of a panic message: quoted text may be client input.
fn of_program(message: &str) -> String {
    let own = message.split(['\'', '"', '`']).next().unwrap_or_default();
    short(&mask_numbers_in(own))
}

fn short(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}

/// A text without the addresses in it: of each its scheme stays.
fn without_urls(text: &str) -> String {
    let of_word =
        |word: &str| word.split_once("://").map_or_else(|| word.to_owned(), |(scheme, _)| format!("{scheme}://…"));
    text.split(' ').map(of_word).collect::<Vec<_>>().join(" ")
}

#[derive(Default)]
struct Line {
    message: String,
    fields: BTreeMap<String, String>,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = short(&mask_numbers_in(&without_urls(&format!("{value:?}"))));
        match field.name() {
            "message" => self.message = text,
            name if LEFT_OUT.contains(&name) => {}
            name => drop(self.fields.insert(name.to_owned(), text)),
        }
    }
}

impl<S: Subscriber> Layer<S> for Limited {
    fn on_event(&self, line: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut said = Line::default();
        line.record(&mut said);
        self.report(Event {
            message: Some(said.message),
            logger: Some(line.metadata().target().to_owned()),
            extra: said.fields.into_iter().map(|(name, value)| (name, value.into())).collect(),
            ..event(Level::Error)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panics_message_has_nothing_that_it_quotes() {
        for (message, wanted) in [
            (
                "index out of bounds: the len is 3 but the index is 7",
                "index out of bounds: the len is 3 but the index is 7",
            ),
            (
                "byte index 1 is not a char boundary; it is inside 'é' of `+15551230001`",
                "byte index 1 is not a char boundary; it is inside ",
            ),
            ("no such number: +15551230001", "no such number: +155••••••01"),
            ("called `Result::unwrap()` on an `Err` value: \"secret\"", "called "),
        ] {
            assert_eq!(of_program(message), wanted);
        }
        assert_eq!(of_program(&"x".repeat(5000)).chars().count(), TEXT_CHARS_MAX);
    }

    #[test]
    fn a_report_names_no_server() {
        for (text, wanted) in [
            (
                "postgres://user@db.internal:5432/ringfence cannot be reached: refused",
                "postgres://… cannot be reached: refused",
            ),
            ("failed to ask https://u:p@h/x?y, and redis://r", "failed to ask https://… and redis://…"),
            ("no address", "no address"),
        ] {
            assert_eq!(without_urls(text), wanted);
        }
    }

    #[tokio::test]
    async fn many_reports_a_minute_are_dropped() {
        let (to, mut queue) = mpsc::channel(2 * REPORTS_PER_MINUTE_MAX as usize);
        let limited = Limited::new(to);
        for _ in 0..=REPORTS_PER_MINUTE_MAX {
            limited.report(event(Level::Error));
        }
        drop(limited);
        let mut sent = 0;
        while queue.recv().await.is_some() {
            sent += 1;
        }
        assert_eq!(sent, REPORTS_PER_MINUTE_MAX);
    }

    #[test]
    fn a_dsn_is_judged_and_not_shown() {
        let of = |dsn: &str| ErrorReporting::new(Secret::new(dsn), None);
        assert!(of("https://key@glitchtip.example.com/7").is_ok());
        let bad = of("https://planted@/").unwrap_err();
        assert!(!bad.contains("planted"), "{bad}");
    }
}
