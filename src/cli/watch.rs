//! A command that shows something again and again.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

/// The pause between two looks.
const PAUSE: Duration = Duration::from_secs(2);

/// Shows a text once, or again and again: on a terminal each in the place of the one before.
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
            // A sidecar that is restarted comes back.
            Err(error) if clears => println!("\x1b[H\x1b[2J{error:#}"),
            Err(_) => {}
        }
        std::io::stdout().flush()?;
        if !again || (text.is_err() && !clears) {
            return text.map(drop);
        }
        tokio::time::sleep(PAUSE).await;
    }
}
