//! Reads the stream `/api/stream` (WHATWG HTML, "Server-sent events") into the state that it describes.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::cli::text::time;
use crate::net::Following;

/// The maximum event, in bytes: 10,000 calls are about 6 MB.
const EVENT_BYTES_MAX: usize = 64 << 20;
/// A stream that says nothing for so long is dead: the sidecar sends something every 15 s. A connection may be gone without a word of it,
/// as when a laptop slept or a router forgot it.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(40);

/// The state of the sidecar.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The sidecar's time, in seconds since 1970.
    pub(super) at: Option<i64>,
    /// Parts by name.
    pub(super) parts: Map<String, Value>,
    /// Calls by id.
    pub(super) calls: BTreeMap<String, Value>,
}

impl State {
    pub(super) fn is_whole(&self) -> bool {
        !self.parts.is_empty()
    }

    /// Applies an event.
    pub(super) fn apply(&mut self, name: &str, data: &Value) {
        match name {
            "whole" => {
                self.calls.clear();
                self.parts.clear();
            }
            "change" => {}
            _ => return,
        }
        self.at = time(&data["at"]);
        for (part, value) in data["parts"].as_object().into_iter().flatten() {
            self.parts.insert(part.clone(), value.clone());
        }
        for call in data["put"].as_array().into_iter().flatten() {
            if let Some(id) = call["callId"].as_str() {
                self.calls.insert(id.to_owned(), call.clone());
            }
        }
        for id in data["gone"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            self.calls.remove(id);
        }
    }
}

/// The stream of events.
pub(super) struct Feed {
    pieces: Following,
    text: Vec<u8>,
    /// The length of the buffer that was searched for the end of an event.
    searched: usize,
    silence_max: Duration,
    heard_at: Instant,
}

impl Feed {
    /// Fails once nothing came for `silence_max`.
    pub(super) fn new(pieces: Following, silence_max: Duration) -> Self {
        Self { pieces, text: Vec::new(), searched: 0, silence_max, heard_at: Instant::now() }
    }

    /// Applies the next event. `false`: the stream has ended. Cancel-safe.
    ///
    /// # Errors
    /// The connection broke, an event is too long, or nothing came for `silence_max`.
    pub(super) async fn next(&mut self, state: &mut State) -> anyhow::Result<bool> {
        loop {
            let begin = self.searched.saturating_sub(1);
            if let Some(end) = self.text[begin..].windows(2).position(|two| two == b"\n\n") {
                let event: Vec<u8> = self.text.drain(..begin + end + 2).collect();
                self.searched = 0;
                if let Some((name, data)) = parse(&event) {
                    state.apply(&name, &data);
                    return Ok(true);
                }
                continue;
            }
            self.searched = self.text.len();
            if self.text.len() > EVENT_BYTES_MAX {
                anyhow::bail!("an event is longer than {EVENT_BYTES_MAX} bytes");
            }
            // Of a call that was cancelled the time counts, too.
            let piece = tokio::time::timeout_at(self.heard_at + self.silence_max, self.pieces.piece()).await;
            let piece = piece.with_context(|| format!("nothing came for {} s", self.silence_max.as_secs()))?;
            self.heard_at = Instant::now();
            match piece.map_err(|why| anyhow::anyhow!(why))? {
                Some(piece) => self.text.extend_from_slice(&piece),
                None => return Ok(false),
            }
        }
    }
}

/// Parses an event's name and data; `None`: a comment.
fn parse(event: &[u8]) -> Option<(String, Value)> {
    let text = std::str::from_utf8(event).ok()?;
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    Some((field("event:")?.to_owned(), serde_json::from_str(field("data:")?).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::Request;
    use serde_json::json;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::UnixListener;

    use crate::net::follow_local;

    #[test]
    fn events_are_told_from_comments() {
        assert_eq!(parse(b": still here\n\n"), None);
        assert_eq!(parse(b"event: you\ndata: {\"a\":1}\n\n"), Some(("you".to_owned(), json!({"a": 1}))));
    }

    /// As of a machine that slept: the connection stands, and nothing comes.
    #[tokio::test]
    async fn a_stream_that_falls_silent_is_given_up() {
        let socket = std::env::temp_dir().join(format!("ringfence-silent-{}.sock", crate::ids::CallId::new()));
        let listener = UnixListener::bind(&socket).unwrap();
        let sidecar = tokio::spawn(async move {
            let (mut to, _) = listener.accept().await.unwrap();
            let said =
                "HTTP/1.1 200 OK\r\n\r\n: still here\n\nevent: whole\ndata: {\"parts\":{\"calls\":{}}}\n\nevent: cha";
            to.write_all(said.as_bytes()).await.unwrap();
            std::future::pending::<()>().await;
        });
        let asked = Request::get("/api/stream").body(Bytes::new()).unwrap();
        let pieces = follow_local(&socket, asked).await.unwrap().into_body();
        let (mut feed, mut state) = (Feed::new(pieces, Duration::from_secs(2)), State::default());
        assert!(feed.next(&mut state).await.unwrap() && state.is_whole());
        // Asked for again and again, as the screen does that is redrawn meanwhile.
        let silent = async {
            loop {
                if let Ok(next) = tokio::time::timeout(Duration::from_millis(100), feed.next(&mut state)).await {
                    return next;
                }
            }
        };
        let silent = tokio::time::timeout(Duration::from_secs(60), silent).await.expect("it waits for ever");
        assert!(silent.unwrap_err().to_string().contains("nothing came for 2 s"));
        sidecar.abort();
        std::fs::remove_file(socket).unwrap();
    }
}
