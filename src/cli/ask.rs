//! Questions on the terminal.

use std::io::{BufRead as _, Write};

/// Whether a question is answered with yes; without input the answer is no. The question is written to `out`, the answer read from stdin.
pub(super) fn agreed(out: &mut dyn Write, question: &str) -> std::io::Result<bool> {
    write!(out, "{question} [y/N] ")?;
    out.flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    writeln!(out)?;
    Ok(matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
