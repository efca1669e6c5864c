//! Logging: JSON, text, or, on a terminal, one aligned line per decision.

use std::fmt;
use std::io::IsTerminal as _;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, reload};

use crate::app::SetLogFilter;
use crate::config::LogSettings;
use crate::telemetry::reports::ErrorLayer;
use crate::telemetry::traces::{Layers, TARGET};

/// Starts logging to stderr and to a collector, traces and error reports; returns a function that changes the filter of the log. A
/// second call does nothing.
pub(super) fn start(settings: &LogSettings, to_collector: Layers, errors: Option<ErrorLayer>) -> SetLogFilter {
    // pingora's pool and h2 log client hang-ups at high levels, which do not concern operators.
    let quiet = "pingora_pool=error,h2=error,hyper=error,sqlx=error";
    let filter_of = move |words: &str| {
        let all = format!("{words},{quiet},{TARGET}=off");
        EnvFilter::try_new(all).unwrap_or_else(|_| EnvFilter::new(format!("info,{TARGET}=off")))
    };
    let (filter, handle) = reload::Layer::new(filter_of(&settings.filter));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    // A collector is sent the lines that are written here.
    let (sent, sent_handle) = to_collector
        .lines
        .map(|lines| {
            let (filter, handle) = reload::Layer::new(filter_of(&settings.filter));
            (lines.with_filter(filter).boxed(), handle)
        })
        .unzip();
    let telemetry = [to_collector.spans, sent, errors];
    let telemetry = telemetry.into_iter().flatten().reduce(|one, other| one.and_then(other).boxed());
    let registry = tracing_subscriber::registry().with(telemetry);
    // Fails if logging was started before (tests, the demo).
    let _ = if settings.json {
        registry.with(lines.json().flatten_event(true).with_filter(filter)).try_init()
    } else if std::io::stderr().is_terminal() {
        registry.with(lines.event_format(Aligned).with_filter(filter)).try_init()
    } else {
        registry.with(lines.with_ansi(false).with_filter(filter)).try_init()
    };
    Box::new(move |words| {
        // Fails only if logging was never started.
        let _ = handle.reload(filter_of(words));
        if let Some(sent) = &sent_handle {
            let _ = sent.reload(filter_of(words));
        }
    })
}

/// Starts logging to a file, for a command that uses the screen.
pub(super) fn start_file(path: &std::path::Path) -> std::io::Result<()> {
    let file = std::fs::File::create(path)?;
    let filter = EnvFilter::new("info,pingora_pool=error,h2=error,hyper=error,sqlx=error");
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::sync::Mutex::new(file));
    let _ = builder.try_init();
    Ok(())
}

/// The aligned format: `10:33:12  admitted   acme      PRO   elevenlabs  to=+155••••••01 call=c_…`.
struct Aligned;

#[derive(Default)]
struct Fields(Vec<(&'static str, String)>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push((field.name(), format!("{value:?}")));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), value.to_owned()));
    }
}

impl Fields {
    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(n, _)| *n == name)?;
        Some(self.0.remove(at).1)
    }
}

impl<S, N> FormatEvent<S, N> for Aligned
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let what = fields.take("message").unwrap_or_default();
        let level = *event.metadata().level();
        let colour = match (what.as_str(), level) {
            (_, Level::ERROR) => 31,
            ("request rejected" | "inbound call rejected", _) | (_, Level::WARN) => 33,
            ("admitted" | "inbound admitted", _) => 32,
            _ => 0,
        };
        let time = jiff::Zoned::now().strftime("%H:%M:%S").to_string();
        let (start, end) =
            if out.has_ansi_escapes() { (format!("\x1b[{colour}m"), "\x1b[0m") } else { (String::new(), "") };
        if let Some(business) = fields.take("business") {
            let plan = fields.take("plan").unwrap_or_default();
            write!(out, "{time}  {start}{what:<19}{end} {business:<16} {plan:<11}")?;
        } else {
            write!(out, "{time}  {start}{what}{end}")?;
        }
        for (name, value) in fields.0 {
            write!(out, " {name}={value}")?;
        }
        writeln!(out)
    }
}
