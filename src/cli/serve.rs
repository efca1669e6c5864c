//! `ringfence serve`: runs the sidecar.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::file::ConfigText;
use super::outcome::{CONFIG, ConfigFile, Failure, Outcome, stop_signal};
use super::{environment, file, logs};
use crate::admin::reload::ReloadTrigger;
use crate::app::service_manager::ServiceManager;
use crate::app::{App, ConfigSource, SetLogFilter};
use crate::clock::Clock;
use crate::config::{Config, ConfigPath};
use crate::net::{Upstream, UpstreamSettings, cores, install_crypto_provider};
use crate::telemetry::{reports, traces};

#[derive(Debug, Args)]
pub(super) struct Serve {
    #[command(flatten)]
    file: ConfigFile,
    /// Concurrent calls in total, overriding `concurrent`. With it no config file is needed: the accounts are those whose
    /// keys are in the environment
    #[arg(long, value_name = "CALLS")]
    concurrent: Option<u32>,
    /// The address for apps, overriding listen.api; ":0" is a free port
    #[arg(long, value_name = "ADDRESS")]
    listen_api: Option<String>,
    /// The address for providers, overriding listen.webhooks
    #[arg(long, value_name = "ADDRESS")]
    listen_webhooks: Option<String>,
    /// The address for providers and clients, on one port, overriding listen.public
    #[arg(long, value_name = "ADDRESS")]
    listen_public: Option<String>,
    /// The address for operators, overriding listen.admin
    #[arg(long, value_name = "ADDRESS")]
    listen_admin: Option<String>,
    /// The address for clients of live transcripts, overriding listen.client
    #[arg(long, value_name = "ADDRESS")]
    listen_client: Option<String>,
    /// The address for health checks alone, overriding listen.probes
    #[arg(long, value_name = "ADDRESS")]
    listen_probes: Option<String>,
    /// Print a line of JSON with the addresses to stdout when ready
    #[arg(long)]
    ready_json: bool,
}

impl Serve {
    pub(super) async fn run(self) -> Outcome {
        let flags: Vec<(&'static str, String)> = [
            ("RINGFENCE_CONCURRENT", self.concurrent.map(|calls| calls.to_string())),
            ("RINGFENCE_LISTEN_API", self.listen_api),
            ("RINGFENCE_LISTEN_WEBHOOKS", self.listen_webhooks),
            ("RINGFENCE_LISTEN_PUBLIC", self.listen_public),
            ("RINGFENCE_LISTEN_ADMIN", self.listen_admin),
            ("RINGFENCE_LISTEN_CLIENT", self.listen_client),
            ("RINGFENCE_LISTEN_PROBES", self.listen_probes),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect();
        let read = read(&self.file.config, &flags)?;
        read.print("cannot be used, so nothing is started");
        let config_file = ConfigPath::new(self.file.config.clone(), flags);
        let inputs = config_file.inputs(&read.loaded);
        let Some(config) = read.loaded.config else { return Err(Failure::Config) };
        let (telemetry, set_log_filter) = Telemetry::start(&config)?;
        // A config from the environment alone cannot be reloaded.
        let source = self.file.config.exists().then(|| ConfigSource { file: config_file, inputs, set_log_filter });
        let served = serve(config, source, self.ready_json).await;
        telemetry.stop().await;
        served
    }
}

/// Serves until the process gets a stop signal.
async fn serve(config: Config, source: Option<ConfigSource>, ready_json: bool) -> Outcome {
    cores::start()?;
    // Registered before anything is accepted: an early signal must drain, or reload, too.
    let mut stop = tokio::spawn(stop_signal());
    let mut hangups = signal(SignalKind::hangup())?;
    let app = tokio::select! {
        app = App::start_from(config, Clock::system(), source) => app?,
        // Nothing was served yet, so there is nothing to drain.
        stopped = &mut stop => {
            stopped??;
            return Ok(ExitCode::SUCCESS);
        }
    };
    let ready = serde_json::json!({
        "ready": true, "api": app.api().to_string(), "webhooks": app.webhooks().to_string(),
        "admin": app.admin().to_string(), "adminSocket": app.admin_socket(), "client": app.client().to_string(),
        "probes": app.probes().map(|address| address.to_string()), "rebuilt": app.rebuilt,
    });
    if ready_json {
        println!("{ready}");
    } else {
        tracing::info!(api = %app.api(), webhooks = %app.webhooks(), admin = %app.admin(), socket = ?app.admin_socket(), client = %app.client(), "ready");
    }
    let manager = ServiceManager::from_environment();
    if let Some(manager) = &manager {
        manager.ready();
    }
    let mut lives = std::pin::pin!(async {
        if let Some(manager) = &manager {
            manager.feed_watchdog().await;
        }
        std::future::pending::<()>().await;
    });
    loop {
        tokio::select! {
            () = &mut lives => {}
            stopped = &mut stop => {
                stopped??;
                break;
            }
            Some(()) = hangups.recv() => {
                app.reload(ReloadTrigger::this_process("SIGHUP")).await;
            }
        }
    }
    if let Some(manager) = &manager {
        manager.stopping();
    }
    app.drain().await;
    Ok(ExitCode::SUCCESS)
}

/// The senders of traces, log lines and error reports.
struct Telemetry {
    exporter: Option<traces::Exporter>,
    reporter: Option<reports::Reporter>,
}

impl Telemetry {
    /// Starts it, and the log, which it takes spans, lines and errors from.
    fn start(config: &Config) -> anyhow::Result<(Self, SetLogFilter)> {
        install_crypto_provider();
        let settings = UpstreamSettings { extra_ca: config.extra_ca.clone(), ..UpstreamSettings::default() };
        let upstream = Upstream::new(settings)?;
        let tracing = config.traces.as_ref().map(|to| traces::start(to, upstream.clone())).transpose();
        let (layers, exporter) = tracing.map_err(|why| anyhow::anyhow!("failed to start telemetry: {why}"))?.unzip();
        let reporting = config.reports.as_ref().map(|to| reports::start(to, upstream)).transpose();
        let (errors, reporter) = reporting.map_err(|why| anyhow::anyhow!("failed to start reports: {why}"))?.unzip();
        Ok((Self { exporter, reporter }, logs::start(&config.log, layers.unwrap_or_default(), errors)))
    }

    /// Sends what waits, for a while.
    async fn stop(self) {
        if let Some(exporter) = self.exporter {
            exporter.stop().await;
        }
        if let Some(reporter) = self.reporter {
            reporter.stop().await;
        }
    }
}

/// Reads the file; without one, if the concurrency is given, builds the config from the environment.
fn read(path: &Path, flags: &[(&str, String)]) -> Result<ConfigText, Failure> {
    // A named file must exist, whatever the environment has.
    if path != Path::new(CONFIG) || path.exists() {
        return file::read(path, flags);
    }
    let stated = flags.iter().any(|(name, _)| *name == "RINGFENCE_CONCURRENT")
        || std::env::var("RINGFENCE_CONCURRENT").is_ok_and(|value| !value.trim().is_empty());
    match file::from_environment(path, flags) {
        Some((read, lines)) if stated => {
            eprintln!("there is no {CONFIG}: the config is made from the environment");
            lines.iter().for_each(|line| eprintln!("  {line}"));
            if let Some(settings) = &read.loaded.config {
                let calls = settings.policy.concurrent.map_or("no".to_owned(), |n| n.to_string());
                eprintln!("  limit   {calls} concurrent calls in total; {}", settings.policy.mode.as_str());
            }
            Ok(read)
        }
        Some(_) => Err(Failure::from(anyhow::anyhow!(
            "there is no {CONFIG}: write one with `ringfence init`, or give the number of concurrent calls that you bought, \
             as in `ringfence serve --concurrent 4`, which needs none"
        ))),
        None => Err(Failure::from(anyhow::anyhow!(
            "there is no {CONFIG}, and no key in the environment to make an account of: export {}; then `ringfence init` \
             writes the file, or `ringfence serve --concurrent 4` does without. To see ringfence without a key: ringfence demo",
            environment::variables()
        ))),
    }
}
