//! Watches the config file by polling and comparing its contents. File-system notifications are not used: they break with
//! editors' renames, swapped symlinks and network file systems.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::reload::Generations;
use crate::admin::reload::{ReloadTrigger, Running as _};
use crate::config::Inputs;

/// The interval at which the files are checked.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Reloads when the files have changed, until `stop`. A change must be seen twice, so that a file that is being written is left
/// alone. An invalid config is tried once, and again when it changes.
pub(super) async fn run(generations: Arc<Generations>, stop: CancellationToken) {
    let mut seen_once: Option<Inputs> = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
        let Some((file, last)) = generations.watched() else { continue };
        let before = last.clone();
        let now = match tokio::task::spawn_blocking(move || file.inputs_now(&before)).await {
            Ok(now) => now,
            Err(error) => {
                warn!(%error, "failed to look for changes of the config");
                continue;
            }
        };
        if now == last {
            seen_once = None;
        } else if seen_once.as_ref() == Some(&now) {
            generations.clone().reload(ReloadTrigger::this_process("file")).await;
            seen_once = None;
        } else {
            seen_once = Some(now);
        }
    }
}
