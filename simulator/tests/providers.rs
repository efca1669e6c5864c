//! The simulated providers on real sockets, met by a plain HTTP client and server.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests say what they expect by unwrapping it"
)]

use base64::Engine as _;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use ringfence_simulator::{
    CallView, Control, Counts, Fault, FaultKind, Inbound, Millis, Operation, Outcome, Provider, SimSettings, Simulator,
    Via, sign,
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io::Write as _;
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const LONG: Duration = Duration::from_secs(10);

type Pairs = Vec<(String, String)>;

/// A panic in a task of the simulator ends the run: the runtime would swallow it.
fn panics_end_the_run() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            before(panic);
            if tokio::task::try_id().is_some() {
                // Past the capture of the test's output, which would be lost with the process.
                _ = writeln!(std::io::stderr(), "a task panicked: {panic}");
                std::process::abort();
            }
        }));
    });
}

// === a receiver of webhooks ===

#[derive(Clone, Debug)]
struct Got {
    method: String,
    path: String,
    query: String,
    headers: BTreeMap<String, String>,
    body: Bytes,
}

impl Got {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }

    fn form(&self) -> Pairs {
        form_urlencoded::parse(&self.body).into_owned().collect()
    }

    fn field(&self, name: &str) -> String {
        self.form().into_iter().find(|(key, _)| key == name).map(|(_, value)| value).unwrap_or_default()
    }
}

type Answerer = dyn Fn(&Got, usize) -> (u16, String) + Send + Sync;

struct Receiver {
    got: Mutex<Vec<Got>>,
    answer: Box<Answerer>,
}

impl Receiver {
    async fn handle(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let text = |value: &http::HeaderValue| value.to_str().unwrap_or_default().to_owned();
        let got = Got {
            method: head.method.to_string(),
            path: head.uri.path().to_owned(),
            query: head.uri.query().unwrap_or_default().to_owned(),
            headers: head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
            body: body.collect().await.expect("a whole body").to_bytes(),
        };
        let turn = {
            let mut all = self.got.lock().expect("lock");
            all.push(got.clone());
            all.iter().filter(|one| one.path == got.path).count()
        };
        let (status, body) = (self.answer)(&got, turn);
        Response::builder().status(status).body(Full::from(body)).expect("an answer")
    }

    async fn run(self: Arc<Self>, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            let receiver = Arc::clone(&self);
            let service = service_fn(move |request| {
                let receiver = Arc::clone(&receiver);
                async move { Ok::<_, Infallible>(receiver.handle(request).await) }
            });
            let server = hyper::server::conn::http1::Builder::new();
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    }
}

struct Hooks {
    receiver: Arc<Receiver>,
    base: String,
}

impl Hooks {
    async fn answering(answer: impl Fn(&Got, usize) -> (u16, String) + Send + Sync + 'static) -> Hooks {
        let receiver = Arc::new(Receiver { got: Mutex::default(), answer: Box::new(answer) });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(Arc::clone(&receiver).run(listener));
        Hooks { receiver, base }
    }

    async fn start() -> Hooks {
        Hooks::answering(|_, _| (200, String::new())).await
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn all(&self, path: &str) -> Vec<Got> {
        self.receiver.got.lock().expect("lock").iter().filter(|got| got.path == path).cloned().collect()
    }
}

// === a client of the providers ===

struct World {
    sim: Simulator,
    client: Client<HttpConnector, Full<Bytes>>,
    settings: SimSettings,
}

struct Answer {
    status: u16,
    headers: http::HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    fn text(&self, name: &str) -> String {
        self.json()[name].as_str().unwrap_or_default().to_owned()
    }
}

/// Short calls: a whole life takes a fifth of a second.
fn quick() -> SimSettings {
    SimSettings {
        dial_ms: Millis::exactly(10),
        ring_ms: Millis::exactly(30),
        talk_ms: Millis::exactly(80),
        analysis_ms: Millis::exactly(60),
        ..SimSettings::default()
    }
}

/// Calls that last longer than the test.
fn endless() -> SimSettings {
    SimSettings { talk_ms: Millis::exactly(600_000), ..quick() }
}

impl World {
    async fn start(settings: SimSettings) -> World {
        panics_end_the_run();
        let sim = Simulator::start(settings.clone()).await.expect("start");
        let client = Client::builder(TokioExecutor::new()).build_http();
        World { sim, client, settings }
    }

    fn control(&self) -> Control {
        self.sim.control()
    }

    fn counts(&self) -> Counts {
        self.control().counts()
    }

    /// The answer, unless the connection broke.
    async fn send(&self, request: Request<Bytes>) -> Option<Answer> {
        let exchange = async {
            let (head, body) = self.client.request(request.map(Full::new)).await.ok()?.into_parts();
            let body = body.collect().await.ok()?.to_bytes();
            Some(Answer { status: head.status.as_u16(), headers: head.headers, body })
        };
        tokio::time::timeout(LONG, exchange).await.expect("an answer in time")
    }

    async fn el_try(&self, method: &str, path: &str, body: Value) -> Option<Answer> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.sim.base_url()))
            .header("xi-api-key", &self.settings.el_api_key)
            .header("content-type", "application/json");
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        self.send(request.body(body).expect("request")).await
    }

    async fn el(&self, method: &str, path: &str, body: Value) -> Answer {
        self.el_try(method, path, body).await.expect("an answer")
    }

    async fn tw(&self, method: &str, path: &str, form: &[(&str, &str)]) -> Answer {
        let account = &self.settings.account_sid;
        let pair = format!("{account}:{}", self.settings.auth_token);
        let uri = match path.strip_prefix("/2010-04-01/") {
            Some(_) => format!("{}{path}", self.sim.base_url()),
            None => format!("{}/2010-04-01/Accounts/{account}/{path}", self.sim.base_url()),
        };
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header("authorization", format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)))
            .header("content-type", "application/x-www-form-urlencoded");
        self.send(request.body(Bytes::from(body)).expect("request")).await.expect("an answer")
    }

    async fn sim_post(&self, path: &str, body: Value) -> Answer {
        let uri = format!("{}/_sim/{path}", self.sim.base_url());
        let request = Request::builder().method("POST").uri(uri).body(Bytes::from(body.to_string()));
        self.send(request.expect("request")).await.expect("an answer")
    }

    async fn dial_el(&self, to: &str) -> Answer {
        self.el("POST", "/v1/convai/twilio/outbound-call", order(to)).await
    }

    async fn dial_tw(&self, to: &str, more: &[(&str, &str)]) -> Answer {
        let mut form = vec![("To", to), ("From", "+15550001000"), ("Twiml", "<Response><Say>hi</Say></Response>")];
        form.extend_from_slice(more);
        self.tw("POST", "Calls.json", &form).await
    }

    /// The call with this id, when it is as wanted.
    async fn until(&self, id: &str, wanted: impl Fn(&CallView) -> bool) {
        assert!(self.control().wait_call(LONG, id, wanted).await, "{:?}", self.control().call(id));
    }

    async fn idle(&self) {
        assert!(self.control().wait_idle(LONG).await, "{:?}", self.control().calls());
    }
}

fn order(to: &str) -> Value {
    json!({"agent_id": "agent_a", "agent_phone_number_id": "phnum_a", "to_number": to,
        "conversation_initiation_client_data": {"user_id": "biz-7", "dynamic_variables": {"ringfence_call": to}}})
}

// === tests ===

#[tokio::test]
async fn an_elevenlabs_call_lives_and_reports() {
    let hooks = Hooks::start().await;
    let slower = SimSettings { talk_ms: Millis::exactly(200), analysis_ms: Millis::exactly(200), ..quick() };
    let world = World::start(SimSettings { el_events_url: Some(hooks.url("/el")), ..slower }).await;
    let made = world.dial_el("+15550002222").await;
    assert_eq!((made.status, made.json()["success"].clone()), (200, json!(true)));
    let (conversation, sid) = (made.text("conversation_id"), made.text("callSid"));
    let path = format!("/v1/convai/conversations/{conversation}");

    let mut seen = Vec::new();
    for _ in 0..2000 {
        let status = world.el("GET", &path, Value::Null).await.text("status");
        if seen.last() != Some(&status) {
            seen.push(status.clone());
        }
        if status == "done" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    assert_eq!(seen, ["initiated", "in-progress", "processing", "done"]);

    let whole = world.el("GET", &path, Value::Null).await.json();
    assert_eq!(whole["metadata"]["phone_call"]["call_sid"], json!(sid));
    assert_eq!(whole["metadata"]["phone_call"]["external_number"], "+15550002222");
    let variables = &whole["conversation_initiation_client_data"]["dynamic_variables"];
    assert_eq!(variables["ringfence_call"], "+15550002222");
    assert_eq!(whole["analysis"]["call_successful"], "success");
    let leg = world.tw("GET", &format!("Calls/{sid}.json"), &[]).await;
    assert_eq!((leg.status, leg.text("status")), (200, "completed".to_owned()));

    world.idle().await;
    let got = hooks.all("/el");
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].json()["type"], "post_call_transcription");
    assert_eq!(got[0].json()["data"], whole);
    let signature = &got[0].headers["elevenlabs-signature"];
    let unix = signature.trim_start_matches("t=").split(',').next().expect("t").parse().expect("seconds");
    assert_eq!(*signature, sign::elevenlabs(&world.settings.el_webhook_secret, unix, &got[0].body));
    let counts = world.counts();
    assert_eq!((counts.el_live_max, counts.tw_live_max, counts.both_live_max), (1, 1, 1));
    assert_eq!((counts.el_live_now, counts.tw_live_now, counts.both_live_now), (0, 0, 0));
    assert_eq!((counts.creates_el, counts.creates_tw, counts.dials), (1, 0, 1));
    assert_eq!(counts.webhooks_answered_by_status, BTreeMap::from([(200, 1)]));
    world.sim.stop().await;
}

#[tokio::test]
async fn other_carriers_answer_with_their_own_ids() {
    let world = World::start(endless()).await;
    let sip = world.el("POST", "/v1/convai/sip-trunk/outbound-call", order("+15550002222")).await;
    assert!(!sip.text("sip_call_id").is_empty() && sip.json().get("callSid").is_none());
    let exotel = world.el("POST", "/v1/convai/exotel/outbound-call", order("+15550002222")).await;
    assert!(!exotel.text("callSid").is_empty());
    let whatsapp = json!({"agent_id": "a", "whatsapp_phone_number_id": "w", "whatsapp_user_id": "u",
        "whatsapp_call_permission_request_template_name": "n",
        "whatsapp_call_permission_request_template_language_code": "en"});
    let whatsapp = world.el("POST", "/v1/convai/whatsapp/outbound-call", whatsapp).await;
    assert!(whatsapp.text("conversation_id").starts_with("conv_"));
    let counts = world.counts();
    assert_eq!((counts.el_live_now, counts.tw_live_now, counts.both_live_now), (3, 0, 3));
}

#[tokio::test]
async fn keys_and_missing_fields_are_refused_in_the_providers_shapes() {
    let world = World::start(quick()).await;
    let missing = world.el("POST", "/v1/convai/twilio/outbound-call", json!({"agent_id": "a"})).await;
    assert_eq!(missing.status, 422);
    assert_eq!(missing.json()["detail"][0]["loc"], json!(["body", "agent_phone_number_id"]));
    assert_eq!(world.el("GET", "/v1/convai/conversations/conv_none", Value::Null).await.status, 404);
    assert_eq!(world.el("GET", "/v1/whatever", Value::Null).await.json(), json!({"detail": "Not Found"}));
    let keyless = Request::builder().uri(format!("{}/v1/user", world.sim.base_url())).body(Bytes::new());
    let keyless = world.send(keyless.expect("request")).await.expect("answer");
    assert_eq!((keyless.status, keyless.json()["detail"]["status"].clone()), (401, json!("invalid_api_key")));

    let code = |answer: &Answer| (answer.status, answer.json()["code"].clone());
    assert_eq!(code(&world.tw("POST", "Calls.json", &[("From", "+1")]).await), (400, json!(21201)));
    assert_eq!(code(&world.tw("POST", "Calls.json", &[("To", "+1")]).await), (400, json!(21213)));
    assert_eq!(code(&world.tw("POST", "Calls.json", &[("To", "+1"), ("From", "+1")]).await), (400, json!(21205)));
    assert_eq!(code(&world.tw("GET", "Calls/CAnone.json", &[]).await), (404, json!(20404)));
    let path = format!("{}/2010-04-01/Accounts/{}/Calls.json", world.sim.base_url(), world.settings.account_sid);
    let bare = world.send(Request::get(path).body(Bytes::new()).expect("request")).await.expect("answer");
    assert_eq!(code(&bare), (401, json!(20003)));
    assert_eq!(world.counts().creates_el + world.counts().creates_tw, 0);
}

#[tokio::test]
async fn twilio_reports_what_was_asked_for_in_order() {
    let hooks = Hooks::start().await;
    let world = World::start(quick()).await;
    let url = hooks.url("/all?biz=acme#rc=3&rp=ct,rt,5xx");
    let all: Vec<(&str, &str)> =
        ["initiated", "ringing", "answered", "completed"].map(|event| ("StatusCallbackEvent", event)).to_vec();
    let made = world.dial_tw("+15550002222", &[&[("StatusCallback", url.as_str())], all.as_slice()].concat()).await;
    assert_eq!((made.status, made.text("status")), (201, "queued".to_owned()));
    let (end, none) = (hooks.url("/end"), hooks.url("/none"));
    world.dial_tw("+15550002223", &[("StatusCallback", &end)]).await;
    world.dial_tw("+15550002224", &[("StatusCallback", &none), ("ApplicationSid", "AP1")]).await;
    world.idle().await;

    let got = hooks.all("/all");
    let statuses: Vec<String> = got.iter().map(|got| got.field("CallStatus")).collect();
    assert_eq!(statuses, ["initiated", "ringing", "in-progress", "completed"]);
    let numbers: Vec<String> = got.iter().map(|got| got.field("SequenceNumber")).collect();
    assert_eq!(numbers, ["0", "1", "2", "3"]);
    let mut tokens = BTreeSet::new();
    for got in &got {
        let signature = sign::twilio(&world.settings.auth_token, &hooks.url("/all?biz=acme"), &got.form());
        assert_eq!(got.headers["x-twilio-signature"], signature);
        assert_eq!((got.method.as_str(), got.query.as_str()), ("POST", "biz=acme"));
        assert_eq!(got.field("CallSid"), made.text("sid"));
        tokens.insert(got.headers["i-twilio-idempotency-token"].clone());
        assert!(got.field("Timestamp").ends_with("+0000"), "{}", got.field("Timestamp"));
    }
    assert_eq!(tokens.len(), 4);
    assert_eq!(got[3].field("CallDuration"), "1");
    let end: Vec<String> = hooks.all("/end").iter().map(|got| got.field("CallStatus")).collect();
    assert_eq!(end, ["completed"]);
    assert!(hooks.all("/none").is_empty());
}

#[tokio::test]
async fn callbacks_are_repeated_only_as_the_fragment_says() {
    let hooks = Hooks::answering(|_, turn| (if turn < 3 { 503 } else { 204 }, String::new())).await;
    let world = World::start(quick()).await;
    world.dial_tw("+15550002222", &[("StatusCallback", &hooks.url("/plain"))]).await;
    world.dial_tw("+15550002222", &[("StatusCallback", &hooks.url("/again#rc=3&rp=ct,5xx"))]).await;
    world.idle().await;
    assert_eq!(hooks.all("/plain").len(), 1);
    let again = hooks.all("/again");
    assert_eq!(again.len(), 3);
    let tokens: BTreeSet<&String> = again.iter().map(|got| &got.headers["i-twilio-idempotency-token"]).collect();
    assert_eq!(tokens.len(), 1);
    assert_eq!(world.counts().webhooks_answered_by_status, BTreeMap::from([(204, 1), (503, 3)]));
}

#[tokio::test]
async fn numbers_decide_how_calls_fail() {
    let hooks = Hooks::start().await;
    let world = World::start(SimSettings { el_events_url: Some(hooks.url("/el")), ..quick() }).await;
    let (end, mut expected) = (hooks.url("/tw"), BTreeMap::new());
    for (to, status, reason) in [
        ("+15550000001", "busy", "busy"),
        ("+15550000002", "no-answer", "no-answer"),
        ("+15550000003", "failed", "unknown"),
    ] {
        expected.insert(world.dial_el(to).await.text("conversation_id"), reason);
        let sid = world.dial_tw(to, &[("StatusCallback", &end)]).await.text("sid");
        expected.insert(sid, status);
    }
    world.idle().await;
    let mut seen = BTreeMap::new();
    let (tw, el) = (hooks.all("/tw"), hooks.all("/el"));
    for got in &tw {
        seen.insert(got.field("CallSid"), got.field("CallStatus"));
    }
    for got in el.iter().map(Got::json) {
        assert_eq!(got["type"], "call_initiation_failure");
        assert_eq!(got["data"]["metadata"]["type"], "twilio");
        let text = |name: &str| got["data"][name].as_str().unwrap_or_default().to_owned();
        seen.insert(text("conversation_id"), text("failure_reason"));
    }
    assert_eq!(seen, expected.into_iter().map(|(id, word)| (id, word.to_owned())).collect());
    assert!(world.control().calls().iter().all(|call| !call.billed));
}

#[tokio::test]
async fn twilio_hangs_up_an_elevenlabs_call() {
    let world = World::start(endless()).await;
    let made = world.dial_el("+15550002222").await;
    let (conversation, sid) = (made.text("conversation_id"), made.text("callSid"));
    world.until(&sid, |call| call.answered).await;
    let path = format!("Calls/{sid}.json");
    assert_eq!(world.tw("POST", &path, &[("Status", "canceled")]).await.text("status"), "in-progress");
    assert_eq!(world.tw("POST", &path, &[("Status", "completed")]).await.text("status"), "completed");
    assert_eq!(world.counts().el_live_now, 0);
    let again = world.tw("POST", &path, &[("Status", "completed")]).await;
    assert_eq!((again.status, again.json()["code"].clone()), (400, json!(21220)));
    world.until(&conversation, |call| call.conversation_status == Some("done")).await;
    assert_eq!(world.counts().hangups, 1);

    let ringing = world.dial_tw("+15550002222", &[]).await.text("sid");
    let ended = world.tw("POST", &format!("Calls/{ringing}.json"), &[("Status", "canceled")]).await;
    assert_eq!(ended.text("status"), "canceled");
    let talking = world.dial_tw("+15550002222", &[]).await.text("sid");
    world.until(&talking, |call| call.answered).await;
    let bye = [("Twiml", "<Response><Say>bye</Say><Hangup/></Response>")];
    assert_eq!(world.tw("POST", &format!("Calls/{talking}.json"), &bye).await.text("status"), "in-progress");
    world.until(&talking, |call| call.outcome == Some(Outcome::Completed)).await;
}

#[tokio::test]
async fn deleting_a_conversation_deletes_its_record() {
    let world = World::start(endless()).await;
    let id = world.dial_el("+15550002222").await.text("conversation_id");
    world.until(&id, |call| call.answered).await;
    let path = format!("/v1/convai/conversations/{id}");
    assert_eq!(world.el("DELETE", &path, Value::Null).await.status, 200);
    assert_eq!(world.el("GET", &path, Value::Null).await.status, 404);
    assert_eq!(world.el("GET", "/v1/convai/conversations", Value::Null).await.json()["conversations"], json!([]));
    let count = world.el("GET", "/v1/convai/analytics/live-count", Value::Null).await;
    assert_eq!(count.json(), json!({"count": 1}));

    world.sim_post("config", json!({"delete_hangs_up": true})).await;
    let id = world.dial_el("+15550002222").await.text("conversation_id");
    world.el("DELETE", &format!("/v1/convai/conversations/{id}"), Value::Null).await;
    assert_eq!(world.control().call(&id).expect("a call").ended_by, Some("delete"));
    assert_eq!((world.counts().deletes, world.counts().el_live_now), (2, 1));
}

#[tokio::test]
async fn elevenlabs_lists_by_pages_and_filters() {
    let world = World::start(endless()).await;
    let mut ids = Vec::new();
    for turn in 0..7 {
        ids.push(world.dial_el(&format!("+1555000222{turn}")).await.text("conversation_id"));
    }
    world.control().end_call(&ids[0]);
    world.until(&ids[6], |call| call.answered).await;
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let path =
            format!("/v1/convai/conversations?page_size=3&exclude_statuses=done&exclude_statuses=failed{cursor}");
        let page = world.el("GET", &path, Value::Null).await.json();
        for row in page["conversations"].as_array().expect("rows") {
            assert!(!row.to_string().contains("\"CA"), "no call SID in rows");
            found.push(row["conversation_id"].as_str().expect("id").to_owned());
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break assert_eq!(page["has_more"], false),
        }
    }
    found.reverse();
    assert_eq!(found, ids[1..]);
    let path = "/v1/convai/conversations?dynamic_variable_params=ringfence_call:eq:%2B15550002223&agent_id=agent_a";
    let rows = world.el("GET", path, Value::Null).await.json();
    assert_eq!(rows["conversations"].as_array().map(Vec::len), Some(1));
    assert_eq!(rows["conversations"][0]["conversation_id"], json!(ids[3]));
    let later = world.el("GET", "/v1/convai/conversations?call_start_after_unix=4000000000", Value::Null).await;
    assert_eq!(later.json()["conversations"], json!([]));
    assert_eq!(world.counts().list_requests, 4);
}

#[tokio::test]
async fn twilio_lists_by_pages_and_filters() {
    let world = World::start(endless()).await;
    let mut sids = Vec::new();
    for turn in 0..5 {
        sids.push(world.dial_tw(&format!("+1555000222{turn}"), &[]).await.text("sid"));
    }
    world.until(&sids[4], |call| call.answered).await;
    let (mut found, mut next) = (Vec::new(), "Calls.json?Status=in-progress&PageSize=2".to_owned());
    loop {
        let page = world.tw("GET", &next, &[]).await.json();
        found.extend(
            page["calls"].as_array().expect("calls").iter().map(|call| call["sid"].as_str().unwrap_or("").to_owned()),
        );
        match page["next_page_uri"].as_str() {
            Some(uri) => next = uri.to_owned(),
            None => break,
        }
    }
    found.reverse();
    assert_eq!(found, sids);
    let count = async |query: &str| {
        world.tw("GET", &format!("Calls.json?{query}"), &[]).await.json()["calls"].as_array().map(Vec::len)
    };
    assert_eq!(count("To=%2B15550002221").await, Some(1));
    assert_eq!(count("StartTime%3E=2020-01-01").await, Some(5));
    assert_eq!(count("StartTime%3C=2020-01-01").await, Some(0));
    assert_eq!(count("StartTime%3E=2999-01-01T00:00:00Z").await, Some(0));
    assert_eq!(count("ParentCallSid=CA1").await, Some(0));
    assert_eq!(count("Status=queued").await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_creates_at_once_are_counted_exactly() {
    let world = Arc::new(World::start(SimSettings { el_concurrent: Some(5), ..endless() }).await);
    let mut tasks = tokio::task::JoinSet::new();
    for turn in 0..100 {
        let world = Arc::clone(&world);
        tasks.spawn(async move {
            if turn % 4 == 3 {
                let form = json!({"agent_id": "a", "from_number": "+1", "to_number": "+2"});
                return world.el("POST", "/v1/convai/twilio/register-call", form).await;
            }
            world.dial_el("+15550002222").await
        });
    }
    let mut statuses = BTreeMap::<u16, u32>::new();
    for answer in tasks.join_all().await {
        *statuses.entry(answer.status).or_default() += 1;
        if answer.status == 429 {
            assert_eq!(answer.json()["detail"]["status"], "too_many_concurrent_requests");
        }
    }
    assert_eq!(statuses, BTreeMap::from([(200, 5), (429, 95)]));
    let counts = world.counts();
    assert_eq!((counts.el_live_now, counts.el_live_max, counts.refused_429), (5, 5, 95));
    assert_eq!(counts.creates_el + counts.registers, 5);
    for call in world.control().calls().iter().filter(|call| call.live) {
        world.control().end_call(call.conversation_id.as_deref().unwrap_or_default());
    }
    assert_eq!(world.counts().el_live_now, 0);
    assert_eq!(world.dial_el("+15550002222").await.status, 200);
}

#[tokio::test]
async fn faults_come_as_often_as_asked() {
    let world = World::start(endless()).await;
    let control = world.control();
    for (kind, status) in [
        (FaultKind::TooManyConcurrent, "too_many_concurrent_requests"),
        (FaultKind::SystemBusy, "system_busy"),
        (FaultKind::RateLimited, "rate_limit_exceeded"),
        (FaultKind::PaymentRequired, "insufficient_credits"),
        (FaultKind::QuotaExceeded, "quota_exceeded"),
        (FaultKind::ServerError, "internal_server_error"),
    ] {
        control.fault(Fault { retry_after: Some(7), ..Fault::next(Provider::ElevenLabs, kind, 1) });
        let refused = world.dial_el("+15550002222").await;
        assert_eq!(refused.json()["detail"]["status"], status);
        assert_eq!(refused.headers.contains_key("retry-after"), refused.status == 429);
    }
    control.fault(Fault::next(Provider::ElevenLabs, FaultKind::SuccessFalse, 1));
    let failed = world.dial_el("+15550002222").await;
    assert_eq!((failed.status, failed.json()["success"].clone()), (200, json!(false)));
    assert_eq!((world.counts().creates_el, world.counts().refused_429), (0, 3));

    control.fault(Fault::next(Provider::ElevenLabs, FaultKind::NullIds, 1));
    let blind = world.dial_el("+15550002222").await.json();
    assert_eq!((&blind["success"], &blind["callSid"]), (&json!(true), &Value::Null));
    control.fault(Fault::next(Provider::ElevenLabs, FaultKind::ServerErrorAfterCreate, 1));
    assert_eq!(world.dial_el("+15550002222").await.status, 500);
    assert_eq!(world.counts().creates_el, 2);

    world.sim_post("fault", json!({"provider": "twilio", "kind": "429_rate", "n": 2})).await;
    for _ in 0..2 {
        let refused = world.dial_tw("+15550002222", &[]).await;
        assert_eq!((refused.status, refused.json()["code"].clone()), (429, json!(20429)));
    }
    assert_eq!(world.dial_tw("+15550002222", &[]).await.status, 201);
    control.fault(Fault { on: Operation::List, n: None, ..Fault::next(Provider::Twilio, FaultKind::ServerError, 0) });
    assert_eq!(world.tw("GET", "Calls.json", &[]).await.status, 500);
    world.sim_post("fault", json!({"kind": "none"})).await;
    assert_eq!(world.tw("GET", "Calls.json", &[]).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_can_be_accepted_without_an_answer() {
    let world = World::start(endless()).await;
    world.control().fault(Fault::next(Provider::ElevenLabs, FaultKind::AcceptThenDrop, 1));
    let lost = world.el_try("POST", "/v1/convai/twilio/outbound-call", order("+15550002222")).await;
    assert!(lost.is_none(), "{:?}", lost.map(|answer| answer.status));
    assert_eq!(world.counts().creates_el, 1);
    let slow = Fault { ms: 200, ..Fault::next(Provider::Twilio, FaultKind::Slow, 1) };
    world.control().fault(slow);
    let start = std::time::Instant::now();
    let late = world.dial_tw("+15550002222", &[]);
    let control = world.control();
    let (late, early) = tokio::join!(late, control.wait_counts(LONG, |counts| counts.creates_tw == 1));
    assert!(early && late.status == 201 && start.elapsed() >= Duration::from_millis(200));
}

#[tokio::test]
async fn a_rejected_caller_is_not_billed() {
    let hooks = Hooks::answering(|got, _| match got.field("To").as_str() {
        "+15550100001" => (200, "<Response><Reject reason=\"busy\"/></Response>".to_owned()),
        "+15550100002" => (200, "<Response><Reject/></Response>".to_owned()),
        "+15550100003" => (200, "<Response><Say>All lines are busy.</Say></Response>".to_owned()),
        _ => (500, String::new()),
    })
    .await;
    let settings = SimSettings {
        number_voice_url: Some(hooks.url("/voice?x=1")),
        number_status_url: Some(hooks.url("/status")),
        ..quick()
    };
    let world = World::start(settings).await;
    for last in 1..=4 {
        let inbound = json!({"to": format!("+1555010000{last}"), "from": "+15550003333"});
        assert_eq!(world.sim_post("inbound", inbound).await.status, 200);
    }
    world.idle().await;
    let outcome = |call: &CallView| (call.outcome, call.billed);
    let mut calls = world.control().calls();
    calls.sort_by(|one, two| one.to.cmp(&two.to));
    let outcomes: Vec<_> = calls.iter().map(outcome).collect();
    let (busy, none) = ((Some(Outcome::Busy), false), (Some(Outcome::NoAnswer), false));
    assert_eq!(outcomes, [busy, none, (Some(Outcome::Completed), true), (Some(Outcome::Failed), false)]);
    assert_eq!(world.counts().tw_live_max, 1);
    for voice in hooks.all("/voice") {
        assert_eq!((voice.field("CallStatus"), voice.field("Direction")), ("ringing".to_owned(), "inbound".to_owned()));
        let signature = sign::twilio(&world.settings.auth_token, &hooks.url("/voice?x=1"), &voice.form());
        assert_eq!(voice.headers["x-twilio-signature"], signature);
    }
    let mut ends: Vec<String> = hooks.all("/status").iter().map(|got| got.field("CallStatus")).collect();
    ends.sort();
    assert_eq!(ends, ["busy", "completed", "failed", "no-answer"]);
}

#[tokio::test]
async fn a_registered_conversation_is_joined_by_its_call() {
    let twiml = Arc::new(Mutex::new(String::new()));
    let given = Arc::clone(&twiml);
    let hooks = Hooks::answering(move |_, _| (200, given.lock().expect("lock").clone())).await;
    let world = World::start(SimSettings { number_voice_url: Some(hooks.url("/voice")), ..endless() }).await;
    let form = json!({"agent_id": "agent_a", "from_number": "+15550003333", "to_number": "+15550100001"});
    let registered = world.el("POST", "/v1/convai/twilio/register-call", form).await;
    let text = String::from_utf8_lossy(&registered.body).into_owned();
    assert_eq!(registered.status, 200);
    *twiml.lock().expect("lock") = text.clone();
    let id = text.split("value=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("an id").to_owned();
    assert_eq!((world.counts().el_live_now, world.counts().both_live_now), (1, 0));

    let inbound =
        Inbound { to: "+15550100001".to_owned(), from: "+15550003333".to_owned(), via: Via::Twilio, agent_id: None };
    let sid = world.control().inbound(&inbound).and_then(|call| call.call_sid).expect("a sid");
    world.until(&sid, |call| call.answered).await;
    let call = world.control().call(&id).expect("a call");
    assert_eq!((call.call_sid.as_deref(), call.billed), (Some(sid.as_str()), true));
    let counts = world.counts();
    assert_eq!((counts.el_live_max, counts.tw_live_max, counts.both_live_max), (1, 1, 1));
    let record = world.el("GET", &format!("/v1/convai/conversations/{id}"), Value::Null).await.json();
    assert_eq!(record["metadata"]["phone_call"]["call_sid"], json!(sid));
    assert_eq!(record["metadata"]["phone_call"]["direction"], "inbound");
    world.tw("POST", &format!("Calls/{sid}.json"), &[("Status", "completed")]).await;
    assert_eq!((world.counts().el_live_now, world.counts().both_live_now), (0, 0));
}

#[tokio::test]
async fn an_outbound_twilio_call_can_fetch_its_agent() {
    let twiml = Arc::new(Mutex::new(String::new()));
    let given = Arc::clone(&twiml);
    let hooks = Hooks::answering(move |_, _| (200, given.lock().expect("lock").clone())).await;
    let world = World::start(endless()).await;
    let form = json!({"agent_id": "a", "from_number": "+1", "to_number": "+2", "direction": "outbound"});
    let registered = world.el("POST", "/v1/convai/twilio/register-call", form).await;
    *twiml.lock().expect("lock") = String::from_utf8_lossy(&registered.body).into_owned();
    let url = hooks.url("/twiml");
    let form = [("To", "+15550002222"), ("From", "+15550001000"), ("Url", url.as_str()), ("Method", "GET")];
    let sid = world.tw("POST", "Calls.json", &form).await.text("sid");
    world.until(&sid, |call| call.conversation_id.is_some()).await;
    let fetched = &hooks.all("/twiml")[0];
    assert_eq!(fetched.method, "GET");
    assert!(fetched.query.contains("CallStatus=in-progress"), "{}", fetched.query);
    let whole = format!("{url}?{}", fetched.query);
    assert_eq!(fetched.headers["x-twilio-signature"], sign::twilio(&world.settings.auth_token, &whole, &[]));
    let counts = world.counts();
    assert_eq!((counts.el_live_now, counts.tw_live_now, counts.both_live_now, counts.both_live_max), (1, 1, 1, 1));
}

#[tokio::test]
async fn conference_participants_are_calls() {
    let world = World::start(endless()).await;
    let form = [("To", "+15550002222"), ("From", "+15550001000")];
    let one = world.tw("POST", "Conferences/my%20room/Participants.json", &form).await;
    assert_eq!((one.status, one.text("status")), (201, "queued".to_owned()));
    let two = world.tw("POST", "Conferences/my%20room/Participants.json", &form).await;
    assert_eq!(one.text("conference_sid"), two.text("conference_sid"));
    let leave = format!("Conferences/{}/Participants/{}.json", one.text("conference_sid"), one.text("call_sid"));
    assert_eq!(world.tw("DELETE", &leave, &[]).await.status, 204);
    assert_eq!(world.counts().tw_live_now, 1);
    let all = format!("Conferences/{}.json", one.text("conference_sid"));
    world.tw("POST", &all, &[("Status", "completed")]).await;
    assert_eq!(world.counts().tw_live_now, 0);
    let gone = format!("Calls/{}.json", two.text("call_sid"));
    assert_eq!(world.tw("DELETE", &gone, &[]).await.status, 204);
    assert_eq!(world.tw("GET", &gone, &[]).await.status, 404);
}

#[tokio::test]
async fn sessions_without_a_telephone_get_their_addresses() {
    let world = World::start(quick()).await;
    for path in ["get-signed-url", "get_signed_url"] {
        let path = format!("/v1/convai/conversation/{path}?agent_id=a&include_conversation_id=true");
        let url = world.el("GET", &path, Value::Null).await.text("signed_url");
        assert!(url.starts_with(&format!("wss://{}/v1/convai/conversation?agent_id=a", world.sim.addr())), "{url}");
        assert!(url.contains("conversation_id=conv_"), "{url}");
    }
    assert!(!world.el("GET", "/v1/convai/conversation/token?agent_id=a", Value::Null).await.text("token").is_empty());
    assert_eq!(world.el("GET", "/v1/convai/conversation/token", Value::Null).await.status, 422);
    assert_eq!(world.counts().el_live_max, 0);
}

#[tokio::test]
async fn a_native_call_asks_and_tells_as_the_seeds_had_it() {
    let hooks = Hooks::answering(|got, _| match got.path.as_str() {
        "/init" => (
            200,
            json!({"type": "conversation_initiation_client_data", "dynamic_variables": {"name": "Ada"}}).to_string(),
        ),
        _ => (200, String::new()),
    })
    .await;
    let settings = SimSettings {
        el_initiation_url: Some(hooks.url("/init")),
        el_events_url: Some(hooks.url("/el")),
        el_seed_events: true,
        el_concurrent: Some(1),
        talk_ms: Millis::exactly(400),
        ..quick()
    };
    let world = World::start(settings).await;
    let call = json!({"to": "+15550100001", "from": "+15550003333", "via": "native", "agent_id": "agent_n"});
    let first = world.sim_post("inbound", call.clone()).await.json();
    let second = world.sim_post("inbound", call).await.json();
    assert_eq!((&second["outcome"], &second["billed"]), (&json!("busy"), &json!(false)));
    world.idle().await;
    let asked = hooks.all("/init");
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].json()["call_sid"], first["call_sid"]);
    assert!(!asked[0].headers.contains_key("elevenlabs-signature"));
    let told: Vec<Value> = hooks.all("/el").iter().map(Got::json).collect();
    let kinds: Vec<&str> = told.iter().filter_map(|body| body["type"].as_str()).collect();
    assert_eq!(kinds, ["conversation.started", "conversation.ended", "post_call_transcription"]);
    assert_eq!(told[0]["metadata"]["phone_call"]["call_type"], "inbound");
    assert_eq!(told[0]["metadata"]["phone_call"]["external_number"], "+15550003333");
    let variables = &told[2]["data"]["conversation_initiation_client_data"]["dynamic_variables"];
    assert_eq!(variables["name"], "Ada");
}

#[tokio::test]
async fn webhooks_get_lost_doubled_and_overtaken() {
    let hooks = Hooks::start().await;
    let world = World::start(SimSettings { el_events_url: Some(hooks.url("/el")), ..quick() }).await;
    world.control().set_webhook_loss(1.0);
    world.dial_el("+15550002222").await;
    world.idle().await;
    assert_eq!((world.counts().webhooks_sent, world.counts().webhooks_lost), (0, 1));
    world.sim_post("config", json!({"webhook_loss": 0.0, "webhook_double": 1.0})).await;
    world.dial_el("+15550002222").await;
    world.idle().await;
    let twice = hooks.all("/el");
    assert_eq!((twice.len(), &twice[0].body), (2, &twice[1].body));
    world.control().configure(|settings| (settings.webhook_double, settings.webhook_reorder) = (0.0, 0.5));
    let url = hooks.url("/tw");
    let events =
        [("StatusCallback", url.as_str()), ("StatusCallbackEvent", "initiated"), ("StatusCallbackEvent", "completed")];
    for _ in 0..60 {
        world.dial_tw("+15550002222", &events).await;
    }
    world.idle().await;
    let got = hooks.all("/tw");
    assert_eq!(got.len(), 120);
    let late = got.iter().enumerate().filter(|(place, one)| {
        let same = |other: &&Got| other.field("CallSid") == one.field("CallSid");
        one.field("SequenceNumber") == "0" && got[..*place].iter().any(|other| same(&other))
    });
    assert!(late.count() > 0, "some starts arrive after their ends");
}

#[tokio::test]
async fn the_monitor_socket_ends_a_call() {
    use futures_util::{SinkExt, StreamExt};
    use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};
    let connect = async |request: http::Request<()>, world: &World| {
        let stream = TcpStream::connect(world.sim.addr()).await.expect("a connection");
        tokio_tungstenite::client_async(request, stream).await
    };
    let world = World::start(endless()).await;
    let id = world.dial_el("+15550002222").await.text("conversation_id");
    world.until(&id, |call| call.answered).await;
    let url = format!("ws://{}/v1/convai/conversations/{id}/monitor", world.sim.addr());
    let mut request = url.into_client_request().expect("request");
    assert!(connect(request.clone(), &world).await.is_err(), "without a key");
    request.headers_mut().insert("xi-api-key", world.settings.el_api_key.parse().expect("key"));
    let (mut socket, _) = connect(request.clone(), &world).await.expect("socket");
    let first = socket.next().await.expect("an event").expect("an event").into_text().expect("text");
    assert!(first.contains("agent_response"));
    socket.send(Message::text(r#"{"command_type":"end_call"}"#)).await.expect("sent");
    world.until(&id, |call| call.ended_by == Some("monitor")).await;
    while let Some(Ok(_)) = socket.next().await {}
    assert!(connect(request, &world).await.is_err(), "the call is over");
}

#[tokio::test]
async fn twilio_transcribes_a_running_call() {
    let hooks = Hooks::start().await;
    let world = World::start(SimSettings { utterance_ms: Millis::exactly(20), ..endless() }).await;
    let sid = world.dial_el("+15550002222").await.text("callSid");
    let path = format!("Calls/{sid}/Transcriptions.json");
    let url = hooks.url("/words");
    let form = [("StatusCallbackUrl", url.as_str())];
    assert_eq!(world.tw("POST", &path, &form).await.json()["code"], 21220);
    world.until(&sid, |call| call.answered).await;
    let started = world.tw("POST", &path, &form).await;
    assert!(started.status == 200 && started.text("sid").starts_with("GT"));
    assert!(world.control().wait_counts(LONG, |counts| counts.webhooks_sent >= 5).await);
    world.control().end_call(&sid);
    world.idle().await;
    let got = hooks.all("/words");
    let numbers: Vec<usize> = got.iter().map(|got| got.field("SequenceId").parse().expect("a number")).collect();
    assert_eq!(numbers, (1..=got.len()).collect::<Vec<_>>());
    assert_eq!(got[0].field("TranscriptionEvent"), "transcription-started");
    assert_eq!(got[1].field("TranscriptionEvent"), "transcription-content");
    let data: Value = serde_json::from_str(&got[1].field("TranscriptionData")).expect("JSON");
    assert!(data["transcript"].is_string());
    assert_eq!(got[got.len() - 1].field("TranscriptionEvent"), "transcription-stopped");
    let signature = sign::twilio(&world.settings.auth_token, &url, &got[1].form());
    assert_eq!(got[1].headers["x-twilio-signature"], signature);
}

/// Hang-ups, deletions, faults, lost webhooks and limits all at once: afterwards every count is back at
/// zero (the world checks itself against its calls while it is waited for), and no limit was passed.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_miscounted_in_a_crowd() {
    let twiml = "<Response><Say>hello</Say></Response>";
    let hooks =
        Hooks::answering(move |got, _| (200, if got.path == "/voice" { twiml.to_owned() } else { String::new() }))
            .await;
    let settings = SimSettings {
        el_concurrent: Some(20),
        tw_concurrent: Some(30),
        dial_ms: Millis::between(0, 20),
        ring_ms: Millis::between(0, 40),
        talk_ms: Millis::between(0, 60),
        analysis_ms: Millis::between(0, 20),
        register_ms: 50,
        webhook_loss: 0.3,
        webhook_double: 0.2,
        webhook_reorder: 0.2,
        delete_hangs_up: true,
        el_events_url: Some(hooks.url("/el")),
        number_voice_url: Some(hooks.url("/voice")),
        number_status_url: Some(hooks.url("/status")),
        ..SimSettings::default()
    };
    let world = Arc::new(World::start(settings).await);
    let status = hooks.url("/status");
    let mut tasks = tokio::task::JoinSet::new();
    for turn in 0..300u32 {
        let (world, status) = (Arc::clone(&world), status.clone());
        tasks.spawn(async move {
            let to = format!("+1555000{:04}", turn % 7);
            match turn % 6 {
                0 => {
                    let id = world.dial_el(&to).await.text("conversation_id");
                    world.el("DELETE", &format!("/v1/convai/conversations/{id}"), Value::Null).await;
                }
                1 => {
                    let sid = world.dial_el(&to).await.text("callSid");
                    world.tw("POST", &format!("Calls/{sid}.json"), &[("Status", "completed")]).await;
                }
                2 => drop(world.dial_tw(&to, &[("StatusCallback", &status)]).await),
                3 => {
                    let form = json!({"agent_id": "a", "from_number": "+1", "to_number": "+2"});
                    world.el("POST", "/v1/convai/twilio/register-call", form).await;
                }
                4 => drop(world.sim_post("inbound", json!({"to": "+15550100001", "from": "+1"})).await),
                _ => {
                    drop(world.sim_post("inbound", json!({"to": "+15550100001", "from": "+1", "via": "native"})).await)
                }
            }
        });
    }
    tasks.join_all().await;
    world.idle().await;
    let counts = world.counts();
    assert_eq!((counts.el_live_now, counts.tw_live_now, counts.both_live_now), (0, 0, 0));
    assert!(counts.el_live_max <= 20, "{counts:?}");
    assert_eq!(counts.inbound, 100);
}

#[tokio::test]
async fn a_batch_keeps_to_its_own_limit() {
    let world = World::start(quick()).await;
    let recipients: Vec<Value> = (0..6).map(|turn| json!({"phone_number": format!("+1555000222{turn}")})).collect();
    let body = json!({"call_name": "b", "agent_id": "a", "agent_phone_number_id": "p",
        "recipients": recipients, "target_concurrency_limit": 2});
    let made = world.el("POST", "/v1/convai/batch-calling/submit", body).await;
    assert_eq!((made.status, made.text("status")), (200, "in_progress".to_owned()));
    let path = format!("/v1/convai/batch-calling/{}", made.text("id"));
    world.idle().await;
    assert_eq!((world.counts().creates_el, world.counts().el_live_max), (6, 2));
    let done = world.el("GET", &path, Value::Null).await.json();
    assert_eq!((&done["status"], &done["recipients"][5]["status"]), (&json!("completed"), &json!("completed")));
}

#[tokio::test]
async fn twilio_limits_are_its_own() {
    let hooks = Hooks::start().await;
    let settings = SimSettings { tw_concurrent: Some(2), tw_api_concurrency: Some(1), ..endless() };
    let world = World::start(settings).await;
    let end = hooks.url("/end");
    for _ in 0..3 {
        assert_eq!(world.dial_tw("+15550002222", &[("StatusCallback", &end)]).await.status, 201);
    }
    let over = |calls: &[CallView]| calls.iter().filter(|call| call.ended_by == Some("limit")).count();
    assert!(world.control().wait_counts(LONG, |counts| counts.webhooks_sent == 1).await);
    assert_eq!((over(&world.control().calls()), world.counts().tw_live_max), (1, 2));

    world.control().configure(|settings| settings.api_ms = Millis::exactly(600));
    let (one, two) = tokio::join!(world.tw("GET", "Calls.json", &[]), world.tw("GET", "Calls.json", &[]));
    let mut statuses = [one.status, two.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 429]);

    world.control().configure(|settings| {
        (settings.api_ms, settings.tw_concurrent, settings.tw_cps) = (Millis::exactly(0), None, Some(0.5));
    });
    world.control().reset();
    let first = world.dial_tw("+15550002222", &[]).await;
    let second = world.dial_tw("+15550002222", &[]).await;
    assert_eq!(first.text("queue_time"), "0");
    let queued: u64 = second.text("queue_time").parse().expect("milliseconds");
    assert!((1000..=2000).contains(&queued), "{queued}");
}

#[tokio::test]
async fn the_state_can_be_read_and_forgotten() {
    let world = World::start(endless()).await;
    let id = world.dial_el("+15550002222").await.text("conversation_id");
    let state = async || {
        let uri = format!("{}/_sim/state", world.sim.base_url());
        world.send(Request::get(uri).body(Bytes::new()).expect("request")).await.expect("answer").json()
    };
    let seen = state().await;
    assert_eq!((&seen["counts"]["el_live_now"], &seen["calls"][0]["conversation_id"]), (&json!(1), &json!(id)));
    assert_eq!(world.sim_post("end", json!({"id": id})).await.json(), json!({"ended": true}));
    assert_eq!(world.sim_post("end", json!({"id": "nobody"})).await.status, 404);
    assert_eq!(world.sim_post("config", json!({"no_such": 1})).await.status, 400);
    assert_eq!(world.sim_post("reset", json!({})).await.status, 200);
    let seen = state().await;
    assert_eq!((&seen["counts"], &seen["calls"]), (&json!(Counts::default()), &json!([])));
}

// === connections ===

/// A connection of a client that writes HTTP by hand.
struct Line(TcpStream);

impl Line {
    async fn to(world: &World) -> Line {
        Line(TcpStream::connect(world.sim.addr()).await.expect("a connection"))
    }

    async fn write(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.expect("written");
    }

    /// All that comes until there is `end`, or no more.
    async fn read(&mut self, end: &str) -> std::io::Result<String> {
        let reading = async {
            let (mut read, mut piece) = (Vec::new(), [0; 4096]);
            while !String::from_utf8_lossy(&read).contains(end) {
                match self.0.read(&mut piece).await? {
                    0 => break,
                    n => read.extend_from_slice(&piece[..n]),
                }
            }
            Ok(String::from_utf8_lossy(&read).into_owned())
        };
        tokio::time::timeout(LONG, reading).await.expect("something in time")
    }
}

fn written(world: &World, method: &str, path: &str, body: &str) -> String {
    let (key, length) = (&world.settings.el_api_key, body.len());
    format!("{method} {path} HTTP/1.1\r\nhost: el\r\nxi-api-key: {key}\r\ncontent-length: {length}\r\n\r\n{body}")
}

fn is_reset(read: &std::io::Result<String>) -> bool {
    read.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
}

#[tokio::test]
async fn a_connection_serves_one_request_after_another_also_in_pieces() {
    let world = World::start(endless()).await;
    let mut line = Line::to(&world).await;
    let create = written(&world, "POST", "/v1/convai/twilio/outbound-call", &order("+15550002222").to_string());
    for (made, at) in [(1, 9), (2, create.len() - 5)] {
        line.write(&create[..at]).await;
        tokio::time::sleep(Duration::from_millis(30)).await;
        assert_eq!(world.counts().creates_el, made - 1, "half a request makes no call");
        line.write(&create[at..]).await;
        let answer = line.read("}").await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("conversation_id"), "{answer}");
        assert_eq!(world.counts().creates_el, made);
    }
    // Two at once are answered in turn.
    let known = written(&world, "GET", "/v1/convai/conversations/conv_none", "");
    line.write(&format!("{create}{known}")).await;
    let both = line.read("404").await.expect("two answers");
    assert!(both.find("200 OK").expect("the first") < both.find("404").expect("the second"), "{both}");
}

/// A fault that drops the connection resets it without a byte, and that one alone.
#[tokio::test]
async fn a_dropped_connection_is_reset_without_a_byte() {
    let world = World::start(endless()).await;
    let create = written(&world, "POST", "/v1/convai/twilio/outbound-call", &order("+15550002222").to_string());
    let (mut one, mut other) = (Line::to(&world).await, Line::to(&world).await);
    other.write(&create).await;
    assert!(other.read("}").await.expect("an answer").contains("200 OK"));
    for (kind, creates) in [(FaultKind::Drop, 1), (FaultKind::AcceptThenDrop, 2)] {
        world.control().fault(Fault::next(Provider::ElevenLabs, kind, 1));
        one.write(&create).await;
        let read = one.read("}").await;
        assert!(is_reset(&read), "{read:?}");
        assert_eq!(world.counts().creates_el, creates);
        one = Line::to(&world).await;
    }
    other.write(&create).await;
    assert!(other.read("}").await.expect("an answer").contains("200 OK"));
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused() {
    let world = World::start(endless()).await;
    let mut line = Line::to(&world).await;
    line.write("POST /v1/convai/batch-calling/submit HTTP/1.1\r\nhost: el\r\ncontent-length: 16777217\r\n\r\n").await;
    let answer = line.read("\r\n\r\n").await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

/// What is no WebSocket's beginning does not become one.
#[tokio::test]
async fn a_monitor_socket_needs_a_whole_handshake() {
    let world = World::start(endless()).await;
    let id = world.dial_el("+15550002222").await.text("conversation_id");
    world.until(&id, |call| call.answered).await;
    for (path, status) in
        [(format!("conversations/{id}/monitor"), "400"), ("conversations/conv_none".to_owned(), "404")]
    {
        let mut line = Line::to(&world).await;
        let key = &world.settings.el_api_key;
        line.write(&format!("GET /v1/convai/{path} HTTP/1.1\r\nhost: el\r\nupgrade: websocket\r\nconnection: upgrade\r\nxi-api-key: {key}\r\n\r\n"))
            .await;
        let answer = line.read("\r\n\r\n").await.expect("an answer");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
}

/// Stopping resets who is connected, also one whose answer is due, and gives the port back.
#[tokio::test]
async fn a_stopped_simulator_lets_go_of_everything() {
    let hooks = Hooks::start().await;
    let world = World::start(SimSettings { el_events_url: Some(hooks.url("/el")), ..endless() }).await;
    let (mut idle, mut waiting) = (Line::to(&world).await, Line::to(&world).await);
    idle.write(&written(&world, "GET", "/_sim/state", "")).await;
    idle.read("\"idle\":true}").await.expect("an answer");
    world.control().fault(Fault { ms: 60_000, ..Fault::next(Provider::ElevenLabs, FaultKind::Slow, 1) });
    let create = written(&world, "POST", "/v1/convai/twilio/outbound-call", &order("+15550002222").to_string());
    waiting.write(&create).await;
    assert!(world.control().wait_counts(LONG, |counts| counts.creates_el == 1).await);
    let listen = world.sim.addr();
    tokio::time::timeout(LONG, world.sim.stop()).await.expect("stopped");
    for line in [&mut idle, &mut waiting] {
        let read = line.read("}").await;
        assert!(is_reset(&read), "{read:?}");
    }
    let again = World::start(SimSettings { listen, ..quick() }).await;
    assert_eq!(again.sim.addr(), listen);
}

/// A test's runtime is all that there is of its simulator.
#[test]
fn the_end_of_the_runtime_is_the_end_of_the_simulator() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let (listen, mut line) = runtime.block_on(async {
        let world = World::start(endless()).await;
        let mut line = Line::to(&world).await;
        line.write(&written(&world, "GET", "/_sim/state", "")).await;
        line.read("\"idle\":true}").await.expect("an answer");
        (world.sim.addr(), line.0.into_std().expect("a socket"))
    });
    drop(runtime);
    line.set_nonblocking(false).expect("blocking");
    line.set_read_timeout(Some(LONG)).expect("a limit");
    let mut rest = Vec::new();
    let read = std::io::Read::read_to_end(&mut line, &mut rest);
    let kind = read.as_ref().map_err(std::io::Error::kind);
    assert!(matches!(kind, Ok(_) | Err(std::io::ErrorKind::ConnectionReset)), "{read:?}");
    assert!(std::net::TcpStream::connect(listen).is_err(), "nobody listens");
}
