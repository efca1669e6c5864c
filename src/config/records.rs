//! `[app]`, `[inbox]`, `[records]` and `[privacy]`: the app's address, large bodies, and what is kept of calls and transcripts
//! after the end.

use std::sync::Arc;
use std::time::Duration;

use http::Uri;

use super::table::Table;
use super::values::url;
use crate::calls::ForwardPaths;
use crate::calls::OwnEvents;
use crate::net::CallbackRules;
use crate::policy::Privacy;
use crate::provider::sign::standard_key;
use crate::store::DeliveryOrder;
use crate::webhooks::AppHost;

/// The settings of these tables.
pub(super) struct Records {
    pub(super) forward_url: Option<Uri>,
    pub(super) app_public_url: Option<Uri>,
    pub(super) callbacks: CallbackRules,
    pub(super) forward_paths: ForwardPaths,
    pub(super) delivery_order: DeliveryOrder,
    pub(super) app_host: AppHost,
    pub(super) events: Option<Arc<OwnEvents>>,
    pub(super) record_fetch_after: Duration,
    pub(super) unknown_status: u16,
    pub(super) transcripts: Privacy,
    pub(super) spool_dir: Option<String>,
    pub(super) spool_bytes_max: u64,
    pub(super) spool_days: u32,
}

pub(super) fn read(root: &Table<'_>) -> Records {
    let app = root.table("app");
    let (forward_url, app_public_url) = (app.parsed("forward_url", url), app.parsed("public_url", url));
    let callbacks = callbacks(&app);
    let forward_paths = app.texts("forward_paths").map_or_else(ForwardPaths::default, |paths| {
        ForwardPaths::parse(&paths).unwrap_or_else(|why| {
            app.report().error("E003", app.span("forward_paths"), format!("`app.forward_paths`: {why}"), "");
            ForwardPaths::default()
        })
    });
    let delivery_order = match app.flag("strict_order") {
        Some(true) => DeliveryOrder::Strict,
        Some(false) | None => DeliveryOrder::FailedStepAside,
    };
    let app_host = app.parsed("host", AppHost::parse).unwrap_or_default();
    let events = events(&app);
    app.finish();

    let inbox = root.table("inbox");
    let spool_dir = inbox.text("spool_dir");
    let spool_bytes_max = inbox.number("spool_max_mb", 1..=16_777_216).unwrap_or(1024) * 1024 * 1024;
    let spool_days = inbox.count("spool_days", 1..=3650).unwrap_or(3);
    inbox.finish();

    let records = root.table("records");
    let record_fetch_after = Duration::from_secs(records.number("wait_secs", 1..=86_400).unwrap_or(120));
    let unknown_status = records.number("unknown_status", 200..=599).and_then(|n| u16::try_from(n).ok()).unwrap_or(404);
    records.finish();

    let privacy = root.table("privacy");
    let transcripts = privacy.word("transcripts", &Privacy::WORDS).unwrap_or_default();
    privacy.finish();
    Records {
        forward_url,
        app_public_url,
        callbacks,
        forward_paths,
        delivery_order,
        app_host,
        events,
        record_fetch_after,
        unknown_status,
        transcripts,
        spool_dir,
        spool_bytes_max,
        spool_days,
    }
}

fn callbacks(app: &Table<'_>) -> CallbackRules {
    let places = app.texts("allowed_callbacks").unwrap_or_default();
    let rules = CallbackRules::parse(&places).unwrap_or_else(|why| {
        app.report().error("E003", app.span("allowed_callbacks"), format!("`app.allowed_callbacks`: {why}"), "");
        CallbackRules::default()
    });
    if rules.allow_everything() {
        let title = "`app.allowed_callbacks` lets anyone who chooses a callback URL call every service of this network";
        let help = "name the hosts of your apps, with their ports";
        app.report().warning("W015", app.span("allowed_callbacks"), title, help);
    }
    rules
}

fn events(app: &Table<'_>) -> Option<Arc<OwnEvents>> {
    let (url, secret) = (app.parsed("events_url", url), app.secret("events_secret"));
    match (url, secret) {
        (Some(url), Some(secret)) => match standard_key(&secret) {
            Ok(_) => Some(Arc::new(OwnEvents { url, secret })),
            Err(why) => {
                let help = "make one with: echo whsec_$(openssl rand -base64 32)";
                app.report().error("E003", app.span("events_secret"), format!("`app.events_secret` {why}"), help);
                None
            }
        },
        (None, None) => None,
        (url, _) => {
            let (key, other) =
                if url.is_some() { ("events_url", "events_secret") } else { ("events_secret", "events_url") };
            if app.has(key) && !app.has(other) {
                let title = format!("app.{key} needs app.{other}: events of our own are always signed");
                app.report().error("E004", app.span(key), title, "");
            }
            None
        }
    }
}
