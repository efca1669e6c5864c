//! Reads the stream `/api/stream` (WHATWG HTML, "Server-sent events") into the state that it describes.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::cli::text::time;
use crate::net::Following;

/// The maximum event, in bytes: 10,000 calls are about 6 MB.
const EVENT_BYTES_MAX: usize = 64 << 20;

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
}

impl Feed {
    pub(super) fn new(pieces: Following) -> Self {
        Self { pieces, text: Vec::new(), searched: 0 }
    }

    /// Applies the next event. `false`: the stream has ended. Cancel-safe.
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
            match self.pieces.piece().await.map_err(|why| anyhow::anyhow!(why))? {
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
    use serde_json::json;

    #[test]
    fn events_are_told_from_comments() {
        assert_eq!(parse(b": still here\n\n"), None);
        assert_eq!(parse(b"event: you\ndata: {\"a\":1}\n\n"), Some(("you".to_owned(), json!({"a": 1}))));
    }
}
