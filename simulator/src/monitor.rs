//! ElevenLabs' monitor socket: what is said in a running conversation, and `end_call`.

use crate::call::Phase;
use crate::elevenlabs;
use crate::engine::Engine;
use crate::wire::Reply;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::header::UPGRADE;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};

/// The interval at which a socket looks whether its call is over.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Whether a request wants to become a WebSocket.
pub(crate) fn is_socket<B>(request: &Request<B>) -> bool {
    request.headers().get(UPGRADE).is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Lets a socket in: the answer, and what serves the socket once the answer is sent. Or why not.
pub(crate) fn open(
    engine: &Arc<Engine>,
    request: &mut Request<Incoming>,
) -> Result<(Response<Full<Bytes>>, impl Future<Output = ()> + Send + use<>), Reply> {
    let key = engine.look(|world| world.settings.el_api_key.clone());
    if request.headers().get("xi-api-key").is_none_or(|given| given.as_bytes() != key.as_bytes()) {
        return Err(elevenlabs::bad_key());
    }
    let id = conversation_of(request.uri().path()).filter(|id| talking(engine, id)).map(str::to_owned);
    let id = id.ok_or_else(elevenlabs::not_found)?;
    let answer = create_response_with_body(request, Full::default).map_err(|_| Reply::empty(400))?;
    let (engine, upgrade) = (Arc::clone(engine), hyper::upgrade::on(request));
    let socket = async move {
        if let Err(error) = serve(upgrade, &engine, &id).await {
            tracing::debug!(%error, "monitor socket broke");
        }
    };
    Ok((answer, socket))
}

/// The conversation whose monitor socket a path is.
fn conversation_of(path: &str) -> Option<&str> {
    path.strip_prefix("/v1/convai/conversations/")?.strip_suffix("/monitor").filter(|id| !id.contains('/'))
}

async fn serve(upgrade: OnUpgrade, engine: &Arc<Engine>, id: &str) -> Result<(), Error> {
    let Ok(upgraded) = upgrade.await else {
        return Err(Error::ConnectionClosed);
    };
    let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
    let said = [
        json!({"type": "agent_response", "agent_response_event": {"agent_response": "Hello, how can I help you?"}}),
        json!({"type": "user_transcript",
            "user_transcription_event": {"user_transcript": "I have a question.", "event_id": 1}}),
    ];
    for event in said {
        socket.send(Message::text(event.to_string())).await?;
    }
    let mut looks = tokio::time::interval(POLL_INTERVAL);
    loop {
        tokio::select! {
            _ = looks.tick() => {
                if !talking(engine, id) {
                    return socket.close(None).await;
                }
            }
            message = socket.next() => match message.transpose()? {
                Some(Message::Text(text)) => obey(engine, id, text.as_str()),
                Some(Message::Close(_)) | None => return Ok(()),
                Some(_) => {}
            },
        }
    }
}

/// Whether a conversation can be monitored: only while somebody talks.
fn talking(engine: &Engine, id: &str) -> bool {
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
