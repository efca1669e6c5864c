//! ElevenLabs' monitor socket: what is said in a running conversation, and `end_call`.
//!
//! The edge splices WebSockets but does not end them, so they end at a listener of their own, inside.

use super::call::Phase;
use super::engine::Engine;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How often a socket looks whether its call is over.
const LOOK: Duration = Duration::from_millis(10);

/// The conversation whose monitor socket a path is.
pub(super) fn conversation_of(path: &str) -> Option<&str> {
    path.strip_prefix("/v1/convai/conversations/")?.strip_suffix("/monitor").filter(|id| !id.contains('/'))
}

/// Serves monitor sockets until stopped.
pub(super) async fn run(listener: TcpListener, engine: Arc<Engine>, tasks: TaskTracker, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (engine, stop) = (Arc::clone(&engine), stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                served = serve(stream, &engine) => {
                    if let Err(error) = served {
                        tracing::debug!(%error, "simulated monitor socket broke");
                    }
                }
            }
        });
    }
}

async fn serve(stream: TcpStream, engine: &Arc<Engine>) -> Result<(), Error> {
    let mut id = String::new();
    // The size of the error is tungstenite's.
    #[allow(clippy::result_large_err)]
    let note = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
        conversation_of(request.uri().path()).unwrap_or_default().clone_into(&mut id);
        Ok(response)
    };
    let mut socket = tokio_tungstenite::accept_hdr_async(stream, note).await?;
    let said = [
        json!({"type": "agent_response", "agent_response_event": {"agent_response": "Hello, how can I help you?"}}),
        json!({"type": "user_transcript",
            "user_transcription_event": {"user_transcript": "I have a question.", "event_id": 1}}),
    ];
    for event in said {
        socket.send(Message::text(event.to_string())).await?;
    }
    let mut looks = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            _ = looks.tick() => {
                if !talking(engine, &id) {
                    return socket.close(None).await;
                }
            }
            message = socket.next() => match message.transpose()? {
                Some(Message::Text(text)) => obey(engine, &id, text.as_str()),
                Some(Message::Close(_)) | None => return Ok(()),
                Some(_) => {}
            },
        }
    }
}

/// Whether a conversation can be monitored: only while somebody talks.
pub(super) fn talking(engine: &Engine, id: &str) -> bool {
    engine.look(|world| {
        let call = world.by_talk(id).and_then(|n| world.calls.get(&n));
        call.is_some_and(|call| call.phase == Phase::Live)
    })
}

fn obey(engine: &Arc<Engine>, id: &str, command: &str) {
    let command: Value = serde_json::from_str(command).unwrap_or_default();
    if command.get("command_type").and_then(Value::as_str) != Some("end_call") {
        return;
    }
    engine.with(|world, now| {
        if let Some(n) = world.by_talk(id) {
            world.counts.hangups += u64::from(world.hang_up(n, "monitor", now));
        }
    });
}
