//! Rate limit of log lines about unauthenticated requests. The next line has the number of suppressed ones.

use std::sync::Mutex;
use std::time::Duration;

use crate::sync::lock;
use tokio::time::Instant;

/// Lines of one kind per minute.
const LINES_A_MINUTE: u32 = 30;
const MINUTE: Duration = Duration::from_secs(60);
/// The longest path that is logged, in characters.
const PATH_CHARS_MAX: usize = 200;

/// The rate limit of one kind of line.
pub(super) struct LogLimit(Mutex<Option<Window>>);

struct Window {
    begun: Instant,
    lines: u32,
    suppressed: u64,
}

impl LogLimit {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Takes one of the lines of this minute, if any is left. Returns the number of lines suppressed before it.
    pub(super) fn take_line(&self) -> Option<u64> {
        let now = Instant::now();
        let mut window = lock(&self.0);
        let window = window.get_or_insert(Window { begun: now, lines: 0, suppressed: 0 });
        if now.duration_since(window.begun) >= MINUTE {
            (window.begun, window.lines) = (now, 0);
        }
        if window.lines >= LINES_A_MINUTE {
            window.suppressed += 1;
            return None;
        }
        window.lines += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

/// The beginning of a path, safe to log.
pub(super) fn shortened(path: &str) -> String {
    match path.char_indices().nth(PATH_CHARS_MAX) {
        Some((end, _)) => format!("{}… ({} bytes)", &path[..end], path.len()),
        None => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lines_are_short_and_few_and_say_what_was_left_out() {
        let noise = LogLimit::new();
        let admitted = (0..1000).filter(|_| noise.take_line().is_some()).count();
        assert_eq!(admitted, 30);
        tokio::time::advance(MINUTE).await;
        assert_eq!((noise.take_line(), noise.take_line()), (Some(970), Some(0)));
        let long = shortened(&"/ü".repeat(30_000));
        assert!(long.len() < 1024 && long.ends_with("(90000 bytes)"), "{long}");
        assert_eq!(shortened("/webhooks"), "/webhooks");
    }
}
