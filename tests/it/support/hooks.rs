//! Webhooks as the providers send them, by hand: signed, for calls that need not exist.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::Request;
use ringfence::net::{Edge, EdgeSettings, Exchange, Handler, RunningEdge, Upstream, UpstreamSettings};
use ringfence_simulator::sign;
use serde_json::{Value, json};

use super::stage::{Answer, PATIENCE, Stage};

pub const EVENTS: &str = "/api/webhooks/elevenlabs";
pub const VOICE: &str = "/webhooks/twilio/voice";
pub const STATUS: &str = "/webhooks/twilio/status";
pub const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

pub fn now_secs() -> i64 {
    jiff::Timestamp::now().as_second()
}

pub fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

pub fn encoded(list: &[(&str, &str)]) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(list).finish()
}

/// A form of a call, as Twilio sends it.
pub fn call_form<'a>(sid: &'a str, direction: &'a str, status: &'a str) -> Vec<(&'a str, &'a str)> {
    let (from, to) =
        if direction == "inbound" { ("+15550003301", "+15550001101") } else { ("+15550001111", "+15550002222") };
    vec![("CallSid", sid), ("From", from), ("To", to), ("Direction", direction), ("CallStatus", status)]
}

/// Posts a form, signed by Twilio for the public URL.
pub async fn twilio(stage: &Stage, path: &str, form: &[(&str, &str)]) -> Answer {
    let url = stage.webhooks(path);
    let signature = sign::twilio(&stage.control.settings().auth_token, &url, &pairs(form));
    stage.send("POST", &url, &[FORM, ("x-twilio-signature", &signature)], encoded(form)).await
}

/// Posts an event, signed by ElevenLabs.
pub async fn elevenlabs(stage: &Stage, body: &Value) -> Answer {
    let body = body.to_string();
    let signature = sign::elevenlabs(&stage.control.settings().el_webhook_secret, now_secs(), body.as_bytes());
    let headers = [("content-type", "application/json"), ("elevenlabs-signature", signature.as_str())];
    stage.send("POST", &stage.webhooks(EVENTS), &headers, body).await
}

/// An event of the systems before ringfence, about a telephone call.
pub fn seed_event(kind: &str, conversation: &str, direction: &str) -> Value {
    let phone = json!({"call_type": direction, "external_number": "+15550003301", "agent_number": "+15550001101"});
    json!({"type": kind, "conversation_id": conversation, "agent_id": "agent_acme", "metadata": {"phone_call": phone}})
}

/// The inbox: name of the event, what came of it, whether it belongs to a call.
pub async fn inbox(stage: &Stage) -> Vec<(String, Option<String>, bool)> {
    let sql = "SELECT event, outcome, call_id FROM webhook_events ORDER BY received_at, id";
    let rows: Vec<(String, Option<String>, Option<String>)> = match stage.postgres() {
        Some(url) => {
            let pool = sqlx::postgres::PgPool::connect(url).await.unwrap();
            let mut transaction = pool.begin_with("BEGIN; SET LOCAL search_path TO ringfence").await.unwrap();
            sqlx::query_as(sql).fetch_all(&mut *transaction).await.unwrap()
        }
        None => {
            let status = stage.ask("/status").await;
            let path = status["store"]["path"].as_str().unwrap();
            let record = rusqlite::Connection::open(path).unwrap();
            let mut rows = record.prepare(sql).unwrap();
            let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
            rows.map(Result::unwrap).collect()
        }
    };
    rows.into_iter().map(|(event, outcome, call)| (event, outcome, call.is_some())).collect()
}

/// An app that answers voice webhooks with the TwiML of register-call, which it asks for through `listen.api`.
pub struct VoiceApp {
    edge: RunningEdge,
    api: Arc<OnceLock<(String, String)>>,
}

struct Connect {
    api: Arc<OnceLock<(String, String)>>,
    http: Upstream,
}

#[async_trait::async_trait]
impl Handler for Connect {
    async fn handle(&self, exchange: &mut Exchange) {
        let form = exchange.read_body(1 << 20).await.unwrap_or_default();
        let field = |name: &str| {
            form_urlencoded::parse(&form).find(|(k, _)| k == name).map(|(_, v)| v.into_owned()).unwrap_or_default()
        };
        if !exchange.path().ends_with("/inbound-call") {
            return exchange.respond(http::Response::new(Bytes::new())).await;
        }
        let (url, key) = self.api.get().expect("the stage is up");
        let body = json!({"agent_id": "agent_acme", "from_number": field("From"), "to_number": field("To")});
        let mut request = Request::new(Bytes::from(body.to_string()));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = url.parse().unwrap();
        request.headers_mut().insert("content-type", "application/json".parse().unwrap());
        request.headers_mut().insert("xi-api-key", key.parse().unwrap());
        let response = self.http.fetch(request, 1 << 20, PATIENCE).await.unwrap();
        exchange.respond(response).await;
    }
}

impl VoiceApp {
    pub async fn start() -> Self {
        ringfence::net::install_crypto_provider();
        let api = Arc::new(OnceLock::new());
        let http = Upstream::new(UpstreamSettings::default()).unwrap();
        let edge = Edge::bind("127.0.0.1:0".parse().unwrap(), EdgeSettings::default(), None).await.unwrap();
        Self { edge: edge.spawn(Arc::new(Connect { api: api.clone(), http })), api }
    }
    pub fn url(&self) -> String {
        format!("http://{}", self.edge.local_addr())
    }
    pub fn connect(&self, stage: &Stage) {
        let url = stage.api("/elevenlabs/v1/convai/twilio/register-call");
        self.api.set((url, stage.control.settings().el_api_key)).unwrap();
    }
}
