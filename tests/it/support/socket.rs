//! Live transcripts as their clients see them: a token, a socket, and what is said in calls.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use ringfence::jws;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::hooks::now_secs;
use super::stage::{Answer, PATIENCE, Setup, Stage};

pub const SECRET: &str = "the secret that the app signs its tokens with";
pub const SOCKET: &str = "/ws/calls/transcriptions";
pub const HEARD: &str = "/webhooks/elevenlabs/transcription";
pub const TOKEN: (&str, &str) = ("x-ringfence-token", "token-of-the-initiation-webhook");

/// Calls in these tests exist nowhere; the sweeps would find that out. `transcripts` are more keys of `[transcripts]`,
/// `tables` more tables.
pub fn setup(client: &str, transcripts: &str, tables: &str) -> Setup {
    let tables = format!("[client]\ntoken_secret = \"{SECRET}\"\n{client}\n[transcripts]\n{transcripts}\n{tables}");
    Setup { tables, replace: vec![("sweep_ms = 100".to_owned(), "sweep_ms = 60000".to_owned())], ..Setup::default() }
}

/// A token of the app's.
pub fn token_of(claims: &Value) -> String {
    jws::sign(SECRET.as_bytes(), claims).unwrap()
}

/// One that sees everything for an hour.
pub fn token() -> String {
    token_of(&json!({"sub": "user 7", "exp": now_secs() + 3600, "businesses": ["*"]}))
}

/// Posts what somebody says.
pub async fn said(stage: &Stage, body: &Value) -> Answer {
    let headers = [("content-type", "application/json"), TOKEN];
    stage.send("POST", &stage.webhooks(HEARD), &headers, body.to_string()).await
}

/// The same in a conversation.
pub async fn say(stage: &Stage, conversation: &str, speaker: &str, text: &str) -> Value {
    let body = json!({"conversation_id": conversation, "speaker": speaker, "message": text,
        "timestamp": "2026-01-02T03:04:05.678Z"});
    let answer = said(stage, &body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.json()
}

pub struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket {
    /// Connects as a browser does, the token in the query.
    pub async fn open(stage: &Stage, token: &str) -> Self {
        Self::connect(stage, &format!("{SOCKET}?token={token}"), &[]).await.unwrap()
    }

    /// The status of a refusal, if it is refused.
    pub async fn connect(stage: &Stage, path: &str, headers: &[(&'static str, &str)]) -> Result<Self, u16> {
        Self::connect_to(&stage.client(path), headers).await
    }

    /// The same at any address.
    pub async fn connect_to(url: &str, headers: &[(&'static str, &str)]) -> Result<Self, u16> {
        let mut request = url.replace("http://", "ws://").into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        match tokio_tungstenite::connect_async(request).await {
            Ok((socket, _)) => Ok(Self(socket)),
            Err(tungstenite::Error::Http(answer)) => Err(answer.status().as_u16()),
            Err(error) => panic!("{url}: {error}"),
        }
    }

    pub async fn say(&mut self, message: &Value) {
        self.say_text(&message.to_string()).await;
    }

    pub async fn say_text(&mut self, text: &str) {
        self.0.send(Message::text(text)).await.unwrap();
    }

    async fn next(&mut self) -> Option<Message> {
        loop {
            match tokio::time::timeout(PATIENCE, self.0.next()).await.expect("nothing comes") {
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(message)) => return Some(message),
                Some(Err(_)) | None => return None,
            }
        }
    }

    /// The next message, if another comes before the connection is over.
    pub async fn hear_on(&mut self) -> Option<Value> {
        match self.next().await {
            Some(Message::Text(text)) => Some(serde_json::from_str(&text).unwrap()),
            _ => None,
        }
    }

    /// The next message.
    pub async fn hear(&mut self) -> Value {
        match self.next().await {
            Some(Message::Text(text)) => serde_json::from_str(&text).unwrap(),
            other => panic!("no message, but {other:?}"),
        }
    }

    /// The next message, which is of this type.
    pub async fn hear_a(&mut self, kind: &str) -> Value {
        let message = self.hear().await;
        assert_eq!(message["type"], kind, "{message}");
        message
    }

    /// Subscribes and is told so.
    pub async fn follow(&mut self, id: &str) -> Value {
        self.say(&json!({"subscribe": id})).await;
        self.hear_a("subscription_confirmed").await
    }

    /// Nothing is on its way: what the server answers to this comes next.
    pub async fn hears_nothing(&mut self) {
        self.say_text("is there anything?").await;
        let message = self.hear().await;
        assert_eq!(message["code"], "INVALID_MESSAGE_FORMAT", "{message}");
    }

    /// The code that it is closed with; messages before it are passed over.
    pub async fn closed(&mut self) -> Option<u16> {
        loop {
            match self.next().await {
                Some(Message::Close(frame)) => return frame.map(|frame| frame.code.into()),
                Some(_) => {}
                None => return None,
            }
        }
    }

    pub async fn close(mut self) {
        self.0.close(None).await.unwrap();
        while self.next().await.is_some() {}
    }

    /// Reads nothing for ever; the connection stays open.
    pub fn ignore(self) -> impl Sized {
        self.0
    }
}

/// The number of open sockets, according to the sidecar.
pub async fn open_sockets(stage: &Stage) -> u64 {
    metric(stage, "ringfence_client_sockets").await
}

/// A metric without labels, or with these.
pub async fn metric(stage: &Stage, name: &str) -> u64 {
    let metrics = stage.ask("/metrics").await;
    let line = metrics.as_str().unwrap().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse().unwrap())
}

/// A pause in which something that must not happen would.
pub async fn a_while() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}
