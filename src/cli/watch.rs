//! Repeats the output of a command.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

/// The pause between two updates.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// Prints a text once, or repeatedly: on a terminal in place.
pub(super) async fn watch(
    again: bool,
    json: bool,
    mut look: impl AsyncFnMut() -> anyhow::Result<String>,
) -> anyhow::Result<()> {
    let clears = again && !json && std::io::stdout().is_terminal();
    loop {
        let text = look().await;
        match &text {
            Ok(text) if clears => print!("\x1b[H\x1b[2J{text}"),
            Ok(text) => print!("{text}"),
            // A restarting sidecar will answer again.
            Err(error) if clears => println!("\x1b[H\x1b[2J{error:#}"),
            Err(_) => {}
        }
        std::io::stdout().flush()?;
        if !again || (text.is_err() && !clears) {
            return text.map(drop);
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}
