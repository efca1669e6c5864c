//! `ringfence serve`.

use std::process::ExitCode;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{ConfigFile, Failure, Outcome, file, logs, stop_signal};
use crate::app::{App, Written};
use crate::clock::Clock;
use crate::config::File;

#[derive(Debug, Args)]
pub(super) struct Serve {
    #[command(flatten)]
    file: ConfigFile,
    /// Where apps connect, instead of listen.api; ":0" takes a free port
    #[arg(long, value_name = "ADDRESS")]
    listen_api: Option<String>,
    /// Where providers connect, instead of listen.webhooks
    #[arg(long, value_name = "ADDRESS")]
    listen_webhooks: Option<String>,
    /// Where operators connect, instead of listen.admin
    #[arg(long, value_name = "ADDRESS")]
    listen_admin: Option<String>,
    /// Print one line of JSON with the addresses to stdout when ready
    #[arg(long)]
    ready_json: bool,
}

impl Serve {
    pub(super) async fn run(self) -> Outcome {
        let flags: Vec<(&'static str, String)> = [
            ("RINGFENCE_LISTEN_API", self.listen_api),
            ("RINGFENCE_LISTEN_WEBHOOKS", self.listen_webhooks),
            ("RINGFENCE_LISTEN_ADMIN", self.listen_admin),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect();
        let read = file::read(&self.file.config, &flags)?;
        read.print();
        let config_file = File::new(self.file.config.clone(), flags);
        let inputs = config_file.inputs(&read.loaded);
        let Some(config) = read.loaded.config else { return Err(Failure::Config) };
        let set_log_filter = logs::start(&config.log);
        // Listened for before anything is accepted: a signal that comes early must drain, or reload, too.
        let mut stop = tokio::spawn(stop_signal());
        let mut hangups = signal(SignalKind::hangup())?;
        // What was made of the environment alone has no file to come from again.
        let written = self.file.config.exists().then(|| Written { file: config_file, inputs, set_log_filter });
        let app = App::start_from(config, Clock::system(), written).await?;
        let ready = serde_json::json!({
            "ready": true, "api": app.api().to_string(), "webhooks": app.webhooks().to_string(),
            "admin": app.admin().to_string(), "rebuilt": app.rebuilt,
        });
        if self.ready_json {
            println!("{ready}");
        } else {
            tracing::info!(api = %app.api(), webhooks = %app.webhooks(), admin = %app.admin(), "ready");
        }
        loop {
            tokio::select! {
                stopped = &mut stop => {
                    stopped??;
                    break;
                }
                Some(()) = hangups.recv() => {
                    app.reload("SIGHUP").await;
                }
            }
        }
        app.drain().await;
        Ok(ExitCode::SUCCESS)
    }
}
