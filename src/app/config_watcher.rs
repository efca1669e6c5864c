//! Follows the config file: it is looked at, and what it holds is compared. No notifications of the file system are asked for: they
//! break at editors' renames, at links that are swapped and on network file systems.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::reload::Live;
use crate::admin::reload::{ReloadTrigger, Running as _};
use crate::config::Inputs;

/// How often the files are looked at.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Reloads when the files have changed, until it is told to stop. What changed must be seen twice: a file that is being written is
/// left alone until it rests. A config that cannot be used is tried once, and again when it changes.
pub(super) async fn run(live: Arc<Live>, stop: CancellationToken) {
    let mut resting: Option<Inputs> = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
        let Some((file, last)) = live.watched() else { continue };
        let before = last.clone();
        let now = match tokio::task::spawn_blocking(move || file.inputs_now(&before)).await {
            Ok(now) => now,
            Err(error) => {
                warn!(%error, "failed to read the config file");
                continue;
            }
        };
        if now == last {
            resting = None;
        } else if resting.as_ref() == Some(&now) {
            live.clone().reload(ReloadTrigger::this_process("file")).await;
            resting = None;
        } else {
            resting = Some(now);
        }
    }
}
