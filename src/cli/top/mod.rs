//! `ringfence top`: a live view of a running sidecar, fed by the same stream as the operator's page (docs/page.md).

mod draw;
mod feed;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;

use super::admin_client::AdminClient;
use super::outcome::Outcome;
use draw::View;
use feed::{Feed, SILENCE_MAX, State};

/// The interval at which ages are redrawn.
const REDRAW: Duration = Duration::from_secs(1);
/// The interval at which keys are polled.
const KEYS: Duration = Duration::from_millis(200);
/// The timeout of the first state.
const FIRST_WITHIN: Duration = Duration::from_secs(15);
/// The pause before a reconnection.
const RECONNECT_DELAY: Duration = Duration::from_secs(2);
/// The size of the frame that is printed without a terminal.
const SIZE: (u16, u16) = (80, 24);

#[derive(Debug, Args)]
pub(super) struct Top {
    #[command(flatten)]
    admin: AdminClient,
    /// Print one frame and exit
    #[arg(long)]
    once: bool,
    /// Only calls of this business
    #[arg(long)]
    business: Option<String>,
}

impl Top {
    pub(super) async fn run(self) -> Outcome {
        let view = View { business: self.business.clone(), ..View::default() };
        if self.once {
            let mut feed = Feed::new(self.admin.follow("/api/stream").await?, SILENCE_MAX);
            let mut state = State::default();
            let first = async {
                while !state.is_whole() {
                    if !feed.next(&mut state).await? {
                        bail!("the stream ended before its first event");
                    }
                }
                anyhow::Ok(())
            };
            tokio::time::timeout(FIRST_WITHIN, first).await.context("the sidecar sends nothing")??;
            let (width, height) =
                ratatui::crossterm::terminal::size().ok().filter(|_| std::io::stdout().is_terminal()).unwrap_or(SIZE);
            print!("{}", frame(&state, &view, width, height)?);
            return Ok(ExitCode::SUCCESS);
        }
        if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
            return Err(anyhow::anyhow!("top needs a terminal; --once prints one frame").into());
        }
        // Connected before the screen is taken, so that an error stays readable.
        let first = self.admin.follow("/api/stream").await?;
        let mut terminal = ratatui::try_init()?;
        let shown = self.show(&mut terminal, first, view).await;
        ratatui::restore();
        shown?;
        Ok(ExitCode::SUCCESS)
    }

    async fn show(
        &self,
        terminal: &mut ratatui::DefaultTerminal,
        first: crate::net::Following,
        mut view: View,
    ) -> anyhow::Result<()> {
        let (mut state, mut link) = (State::default(), Link::Up(Feed::new(first, SILENCE_MAX)));
        let (pressed, mut keys) = mpsc::channel(16);
        // Ends with the receiver, or with the process.
        std::thread::spawn(move || {
            while !pressed.is_closed() {
                match event::poll(KEYS) {
                    Ok(false) => {}
                    Ok(true) => match event::read() {
                        Ok(event) => {
                            if pressed.blocking_send(event).is_err() {
                                return;
                            }
                        }
                        Err(_) => return,
                    },
                    Err(_) => return,
                }
            }
        });
        loop {
            let mut shown_from = 0;
            terminal.draw(|frame| shown_from = draw::draw(frame, &state, &view))?;
            // Keys past the end do not add up.
            view.from = shown_from;
            tokio::select! {
                () = link.news(&self.admin, &mut state) => view.is_lost = link.is_lost(),
                key = keys.recv() => match key {
                    Some(Event::Key(key)) if key.kind == KeyEventKind::Press => {
                        let is_interrupt = key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
                        match key.code {
                            KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                            _ if is_interrupt => return Ok(()),
                            KeyCode::Down | KeyCode::Char('j') => view.from = view.from.saturating_add(1),
                            KeyCode::Up | KeyCode::Char('k') => view.from = view.from.saturating_sub(1),
                            KeyCode::PageDown => view.from = view.from.saturating_add(10),
                            KeyCode::PageUp => view.from = view.from.saturating_sub(10),
                            KeyCode::Char('s') => view.sort = view.sort.next(),
                            _ => {}
                        }
                    }
                    Some(_) => {}
                    None => return Ok(()),
                },
                () = tokio::time::sleep(REDRAW) => {}
            }
        }
    }
}

/// The stream, or the attempt to have it again.
enum Link<'c> {
    Up(Feed),
    /// `is_first`: the stream has just ended, so nobody knows yet whether the sidecar is unreachable.
    Down {
        attempt: LocalBoxFuture<'c, Option<Feed>>,
        is_first: bool,
    },
}

impl<'c> Link<'c> {
    fn down(admin: &'c AdminClient, is_first: bool) -> Self {
        let attempt = async move {
            if !is_first {
                tokio::time::sleep(RECONNECT_DELAY).await;
            }
            admin.follow("/api/stream").await.ok().map(|pieces| Feed::new(pieces, SILENCE_MAX))
        };
        Self::Down { attempt: attempt.boxed_local(), is_first }
    }

    fn is_lost(&self) -> bool {
        matches!(self, Self::Down { is_first: false, .. })
    }

    /// Completes with the next event, or when the connection is lost or back. Cancel-safe: an attempt goes on with the next call.
    async fn news(&mut self, admin: &'c AdminClient, state: &mut State) {
        match self {
            Self::Up(feed) => {
                if !matches!(feed.next(state).await, Ok(true)) {
                    *self = Self::down(admin, true);
                }
            }
            Self::Down { attempt, .. } => {
                *self = attempt.await.map_or_else(|| Self::down(admin, false), Self::Up);
            }
        }
    }
}

/// Renders a frame as text.
fn frame(state: &State, view: &View, width: u16, height: u16) -> anyhow::Result<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height))?;
    terminal.draw(|frame| {
        draw::draw(frame, state, view);
    })?;
    Ok(text(terminal.backend().buffer()))
}

fn text(buffer: &Buffer) -> String {
    let area = buffer.area;
    let mut out = String::new();
    for y in area.top()..area.bottom() {
        let line: String =
            (area.left()..area.right()).filter_map(|x| buffer.cell((x, y))).map(|c| c.symbol()).collect();
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn state() -> State {
        let call = |id: &str, business: &str, phase: &str, at: &str| {
            json!({"callId": id, "businessId": business, "phase": phase, "direction": "outbound", "account": "elevenlabs",
                "startedAt": at, "lastSeenAt": at, "lastSeenBy": "poll", "otherNumber": "+155••••••01", "slots": 1})
        };
        let mut state = State::default();
        state.apply("whole", &json!({
            "at": "2026-01-01T00:10:00Z",
            "parts": {
                "calls": {"open": 2, "mode": "enforce"},
                "businesses": [{"id": "acme", "plan": "PRO", "inUse": 2, "limit": 3}],
                "refusals": [{"id": "rf_1", "at": "2026-01-01T00:09:00Z", "business": "acme", "limit_name": "plan.PRO", "current": 3, "limit": 3}],
                "status": {"version": "0.1.0", "mode": "enforce", "policy": {"hash": "7f3a"}, "store": {"ok": true, "backend": "sqlite"},
                    "gate": {"calls": 9, "standing": {"mode": "memory"}},
                    "accounts": [{"name": "elevenlabs", "inUse": 9, "limit": 10, "foreign": 0, "providerLive": 9}]},
            },
            "put": [call("c_old", "acme", "live", "2026-01-01T00:00:00Z"), call("c_new", "birch", "ringing", "2026-01-01T00:09:50Z")],
        }));
        state
    }

    #[test]
    fn a_frame_of_80_by_24_says_what_matters() {
        let text = frame(&state(), &View::default(), 80, 24).unwrap();
        assert_eq!(text.lines().count(), 24, "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        for part in [
            "ringfence 0.1.0",
            "policy 7f3a enforce",
            "elevenlabs",
            "9 of 10",
            "acme",
            "c_old",
            "10m00s",
            "c_new",
            "plan.PRO",
            "q quit",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        let (old, new) = (text.find("c_old").unwrap(), text.find("c_new").unwrap());
        assert!(old < new, "the oldest first: {text}");
    }

    #[test]
    fn frames_of_any_size_are_drawn() {
        for (width, height) in [(1, 1), (20, 5), (40, 10), (200, 60)] {
            let text = frame(&state(), &View { from: 1000, ..View::default() }, width, height).unwrap();
            assert_eq!(text.lines().count(), usize::from(height));
        }
        let empty = frame(&State::default(), &View::default(), 80, 24).unwrap();
        assert!(empty.contains("no calls"), "{empty}");
    }

    /// Zero calls and unknown calls are two things.
    #[test]
    fn what_cannot_be_read_is_not_shown_as_none() {
        let mut state = State::default();
        state.apply("whole", &json!({"at": "2026-01-01T00:10:00Z", "parts": {
            "calls": {"open": 0, "known": false},
            "status": {"version": "0.1.0", "mode": "enforce", "accounts": [{"name": "elevenlabs", "inUse": null, "limit": 10}]},
        }}));
        let text = frame(&state, &View::default(), 80, 24).unwrap();
        assert!(text.contains("calls not known just now") && text.contains("the database cannot be read"), "{text}");
        assert!(text.lines().any(|line| line.contains("elevenlabs") && line.contains("not known just now")), "{text}");
        assert!(!text.contains("0 of 10") && !text.contains("no calls") && !text.contains("0 calls"), "{text}");
    }

    #[test]
    fn scrolling_stops_at_the_last_call() {
        let shown_from = |from: usize| {
            let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
            let mut shown = usize::MAX;
            let view = View { from, ..View::default() };
            terminal.draw(|frame| shown = draw::draw(frame, &many(100), &view)).unwrap();
            shown
        };
        assert_eq!(shown_from(3), 3);
        let last = shown_from(1000);
        assert!((70..100).contains(&last), "{last}");
        assert_eq!(shown_from(last), last);
    }

    fn many(n: usize) -> State {
        let mut state = State::default();
        let put: Vec<_> = (0..n).map(|n| json!({"callId": format!("c_{n:03}"), "businessId": "acme"})).collect();
        state.apply("whole", &json!({"at": "2026-01-01T00:10:00Z", "parts": {"calls": {"open": n}}, "put": put}));
        state
    }

    #[test]
    fn changes_are_taken_up() {
        let mut state = state();
        state.apply(
            "change",
            &json!({"at": "2026-01-01T00:11:00Z", "parts": {"refusals": []}, "put": [], "gone": ["c_old"]}),
        );
        let text = frame(&state, &View { business: Some("birch".to_owned()), ..View::default() }, 80, 24).unwrap();
        assert!(!text.contains("c_old") && text.contains("c_new") && !text.contains("plan.PRO"), "{text}");
    }
}
