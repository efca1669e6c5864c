//! Addresses that tenants choose: which of them are called, how, and what becomes of those that are not. And deliveries that fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::Response;
use ringfence_simulator::{Millis, SimSettings, sign};
use serde_json::Value;

use crate::outbound::{all_free, id, talk};
use crate::support::hooks::{STATUS, call_form, elevenlabs, seed_event, twilio};
use crate::support::stage::{Answer, Behind, Setup, Stage};

/// Calls that are over at once.
fn short() -> Setup {
    Setup { sim: SimSettings { talk_ms: Millis::exactly(50), ..Setup::default().sim }, ..Setup::default() }
}

async fn with_callback(stage: &Stage, url: &str, method: Option<&str>) -> Answer {
    let mut more = vec![("StatusCallback", url)];
    more.extend(method.map(|method| ("StatusCallbackMethod", method)));
    talk(stage, "+15550002001", &more).await
}

async fn metric(stage: &Stage, line: &str) -> bool {
    stage.ask("/metrics").await.as_str().unwrap().lines().any(|one| one.starts_with(line))
}

/// The deliveries that are on record, those that were given up first.
async fn outbox(stage: &Stage) -> Vec<Value> {
    let all = stage.ask("/api/events").await;
    let of = |key: &str| all[key].as_array().cloned().unwrap_or_default();
    [of("givenUp"), of("pending")].concat()
}

/// An app's callback leads wherever its author likes: to this machine's admin listener, or to a neighbour's metadata. It is refused before
/// anything is sent or admitted, in Twilio's shape.
#[tokio::test(flavor = "multi_thread")]
async fn callbacks_into_the_private_network_are_refused_at_the_create() {
    let neighbour = Behind::start().await;
    let stage = Stage::start(Setup { callbacks: String::new(), ..short() }).await;
    let admin = stage.admin("/api/businesses/victim/purge");
    let port = stage.app().admin().port();
    let forms = [
        admin.clone(),
        format!("http://localhost:{port}/api/businesses/victim/purge"),
        format!("http://127.1:{port}/x"),
        format!("http://2130706433:{port}/x"),
        format!("http://0x7f.1:{port}/x"),
        format!("http://0.0.0.0:{port}/x"),
        format!("http://[::1]:{port}/x"),
        format!("http://[::ffff:127.0.0.1]:{port}/x"),
        format!("http://[64:ff9b::7f00:1]:{port}/x"),
        format!("http://app.example.com@127.0.0.1:{port}/x"),
        format!("{}/x", neighbour.url()),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "http://10.0.0.1/".to_owned(),
        "http://100.64.0.1/".to_owned(),
        "ftp://app.example.com/x".to_owned(),
        "/relative".to_owned(),
    ];
    for url in &forms {
        let answer = with_callback(&stage, url, None).await;
        let body = answer.json();
        assert_eq!((answer.status, &body["code"]), (400, &20001.into()), "{url}: {body}");
        assert_eq!(body["details"]["called"], false, "{url}: {body}");
    }
    let told = with_callback(&stage, &forms[10], None).await.json();
    assert!(told["message"].as_str().unwrap().contains("app.allowed_callbacks"), "{told}");
    // The first of two is no better than the last.
    let two = [("StatusCallback", admin.as_str()), ("StatusCallback", "https://app.example.com/x")];
    assert_eq!(talk(&stage, "+15550002001", &two).await.status, 400);
    for method in ["DELETE", "PUT", "CONNECT", "G ET", "POST\r\nX: y"] {
        let answer = with_callback(&stage, "https://app.example.com/x", Some(method)).await;
        assert_eq!((answer.status, answer.json()["details"]["called"].clone()), (400, false.into()), "{method}");
    }
    assert!(stage.control.calls().is_empty() && neighbour.got().is_empty() && stage.held().await == 0);
    assert!(metric(&stage, "ringfence_callbacks_refused_total{at=\"create\",reason=\"own\"}").await);
    assert!(metric(&stage, "ringfence_callbacks_refused_total{at=\"create\",reason=\"private\"}").await);
    assert!(metric(&stage, "ringfence_callbacks_refused_total{at=\"create\",reason=\"unusable\"}").await);
    // What the Internet knows is taken, and what the application of the call has instead is Twilio's business.
    assert_eq!(with_callback(&stage, "https://app.example.com/x", Some("get")).await.status, 201);
    assert_eq!(
        talk(&stage, "+15550002001", &[("ApplicationSid", "AP1"), ("StatusCallback", &admin)]).await.status,
        201
    );
    stage.finish().await;
}

/// Where callbacks may go to loopback, they still never go to ringfence itself.
#[tokio::test(flavor = "multi_thread")]
async fn an_allowed_network_does_not_open_our_own_listeners() {
    let app = Behind::start().await;
    let callbacks = "\"127.0.0.0/8\", \"::1\", \"localhost\", \"0.0.0.0/0\"".to_owned();
    let stage = Stage::start(Setup { callbacks, ..short() }).await;
    let own = [
        stage.admin("/x"),
        stage.api("/x"),
        stage.client("/x"),
        format!("http://0.0.0.0:{}/x", stage.app().admin().port()),
    ];
    for url in own {
        assert_eq!(with_callback(&stage, &url, None).await.status, 400, "{url}");
    }
    // A name is judged where it leads: at the delivery, which is then given up at once.
    let name = format!("http://localhost:{}/api/businesses/victim/purge", stage.app().admin().port());
    assert_eq!(with_callback(&stage, &name, None).await.status, 201);
    assert_eq!(with_callback(&stage, &format!("{}/status", app.url()), None).await.status, 201);
    stage.wait("the app is told", async || app.at("/status").len() == 1).await;
    assert_eq!(app.at("/status")[0].headers["x-ringfence-callback"], "1");
    stage.wait("the other is given up", async || outbox(&stage).await.iter().any(|d| d["state"] == "given_up")).await;
    let given_up = outbox(&stage).await.remove(0);
    assert_eq!((&given_up["attempts"], &given_up["route"]), (&1.into(), &"callback".into()), "{given_up}");
    assert!(given_up["lastError"].as_str().unwrap().contains("ringfence listens"), "{given_up}");
    assert!(metric(&stage, "ringfence_callbacks_refused_total{at=\"delivery\",reason=\"own\"} 1").await);
    all_free(&stage).await;
    stage.finish().await;
}

/// A name that was harmless when it was given leads into the private network later.
#[tokio::test(flavor = "multi_thread")]
async fn where_a_name_leads_is_judged_at_the_connection() {
    let secret = Behind::start().await;
    let port = secret.url().rsplit_once(':').unwrap().1.to_owned();
    let mut stage = Stage::start(Setup { callbacks: "\"localhost\"".to_owned(), ..short() }).await;
    stage.control.set_webhook_loss(1.0);
    let sid = id(&with_callback(&stage, &format!("http://localhost:{port}/x"), None).await, "sid");
    // The operator takes the name back before the call ends.
    stage.stop_app().await;
    stage.edit("allowed_callbacks = [\"localhost\"]", "allowed_callbacks = []");
    stage.start_app().await;
    let call = stage.record(&sid).await.unwrap().id;
    let form = call_form(&sid, "outbound-api", "completed");
    assert_eq!(twilio(&stage, &format!("/ringfence/twilio/status/{call}"), &form).await.status, 204);
    stage.wait("it is given up", async || outbox(&stage).await.iter().any(|d| d["state"] == "given_up")).await;
    assert!(secret.got().is_empty());
    stage.finish().await;
}

/// A redirect is an answer, not an order.
#[tokio::test(flavor = "multi_thread")]
async fn redirects_of_callbacks_are_not_followed() {
    let target = Behind::start().await;
    let to = format!("{}/secret", target.url());
    let app = Behind::replying(Box::new(move |_| {
        Response::builder().status(307).header("location", &to).body(Bytes::new()).unwrap()
    }))
    .await;
    let stage = Stage::start(short()).await;
    assert_eq!(with_callback(&stage, &format!("{}/status", app.url()), None).await.status, 201);
    stage.wait("it was tried twice", async || app.at("/status").len() >= 2).await;
    assert!(target.got().is_empty());
    stage.finish().await;
}

/// What was marked as a callback does not come in at our own doors, whatever way it took.
#[tokio::test(flavor = "multi_thread")]
async fn marked_requests_are_refused_by_our_listeners() {
    let stage = Stage::start(Setup::default()).await;
    for url in [stage.admin("/api/calls"), stage.api("/elevenlabs/v1/voices"), stage.client("/health")] {
        assert_eq!(stage.send("GET", &url, &[("x-ringfence-callback", "1")], "").await.status, 403, "{url}");
    }
    assert_eq!(stage.send("GET", &stage.admin("/api/calls"), &[], "").await.status, 200);
    stage.finish().await;
}

/// An app whose callback lies on the webhook host gets it exactly once, by the operator's way, on any path: one that ringfence knows too.
#[tokio::test(flavor = "multi_thread")]
async fn callbacks_to_our_own_host_go_to_the_app() {
    let app = Behind::start().await;
    let public = "https://hooks.example.test";
    let setup = Setup {
        public: false,
        root: format!("public_url = \"{public}\""),
        app: Some(app.url()),
        callbacks: String::new(),
        ..Setup::default()
    };
    let stage = Stage::start(setup).await;
    for (n, path) in [STATUS, "/twilio/status", "/own/path?tenant=a%20b"].into_iter().enumerate() {
        let url = format!("{public}{path}");
        let sid = id(&with_callback(&stage, &url, (n == 2).then_some("GET")).await, "sid");
        let call = stage.record(&sid).await.unwrap().id;
        let ours = format!("/ringfence/twilio/status/{call}");
        let form = call_form(&sid, "outbound-api", "completed");
        let pairs: Vec<(String, String)> = form.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(&form).finish();
        let signature = sign::twilio(&stage.control.settings().auth_token, &format!("{public}{ours}"), &pairs);
        let headers =
            [("content-type", "application/x-www-form-urlencoded"), ("x-twilio-signature", signature.as_str())];
        assert_eq!(stage.send("POST", &stage.webhooks(&ours), &headers, body).await.status, 204);
        let bare = path.split('?').next().unwrap();
        stage.wait("the app is told", async || app.at(bare).len() == 1).await;
        let got = app.at(bare).remove(0);
        assert!(got.headers["x-ringfence-callback-url"].to_str().unwrap().starts_with(&url));
        assert!(got.path_and_query.starts_with(path), "{}", got.path_and_query);
        // The app is told before that is on record.
        let is_done =
            |shown: &Value| ["pending", "givenUp"].iter().all(|list| shown[list].as_array().unwrap().is_empty());
        stage.wait("nothing is left to deliver", async || is_done(&stage.ask("/api/events").await)).await;
        stage.control.end_call(&sid);
    }
    assert_eq!(app.got().len(), 3);
    all_free(&stage).await;
    stage.finish().await;
}

/// Without an app to go to, an address of our own is refused at the create.
#[tokio::test(flavor = "multi_thread")]
async fn callbacks_to_our_own_host_need_an_app() {
    let root = "public_url = \"https://hooks.example.test\"".to_owned();
    let stage = Stage::start(Setup { public: false, root, ..Setup::default() }).await;
    let answer = with_callback(&stage, "https://hooks.example.test/own", None).await;
    assert_eq!(answer.status, 400);
    assert!(answer.json()["message"].as_str().unwrap().contains("app.forward_url"), "{answer:?}");
    stage.finish().await;
}

// === deliveries that fail ===

/// An app that refuses the first webhook of every call.
async fn refusing(status: u16, seen: &Arc<AtomicUsize>) -> Behind {
    let seen = seen.clone();
    Behind::replying(Box::new(move |got| {
        let is_first = got.body.windows(7).any(|word| word == b"started");
        let status = if is_first { status } else { 200 };
        if is_first {
            seen.fetch_add(1, Ordering::SeqCst);
        }
        Response::builder().status(status).body(Bytes::new()).unwrap()
    }))
    .await
}

fn bodies(app: &Behind) -> Vec<String> {
    let kind = |body: &[u8]| serde_json::from_slice::<Value>(body).unwrap()["type"].as_str().unwrap().to_owned();
    app.got().iter().map(|got| kind(&got.body)).collect()
}

async fn started_and_ended(stage: &Stage) {
    for kind in ["conversation.started", "conversation.ended"] {
        assert_eq!(elevenlabs(stage, &seed_event(kind, "conv_1", "inbound")).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_that_fails_does_not_hold_back_the_next_of_its_call() {
    for strict in [false, true] {
        let seen = Arc::new(AtomicUsize::new(0));
        let app = refusing(503, &seen).await;
        let tables = format!("[app]\nstrict_order = {strict}");
        let stage = Stage::start(Setup { app: Some(app.url()), tables, ..Setup::default() }).await;
        started_and_ended(&stage).await;
        stage.wait("the first was tried twice", async || seen.load(Ordering::SeqCst) >= 2).await;
        // The second try of the first comes after a second.
        let order = bodies(&app);
        let expected =
            if strict { ["conversation.started"; 2] } else { ["conversation.started", "conversation.ended"] };
        assert_eq!(order[..2], expected, "strict {strict}: {order:?}");
        stage.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_does_not_want_a_delivery_is_not_asked_for_hours() {
    for (status, long) in [(400, false), (404, false), (403, false), (408, true), (425, true), (429, true), (503, true)]
    {
        let seen = Arc::new(AtomicUsize::new(0));
        let app = refusing(status, &seen).await;
        let stage = Stage::start(Setup { app: Some(app.url()), ..Setup::default() }).await;
        started_and_ended(&stage).await;
        // The pauses pass on the clock of the record.
        for n in 1..=4 {
            stage.wait("it was tried", async || seen.load(Ordering::SeqCst) >= n).await;
            stage
                .wait("that is noted", async || {
                    outbox(&stage).await.iter().any(|d| d["attempts"].as_u64() == Some(n as u64))
                })
                .await;
            stage.clock.advance_ms(16_000);
        }
        let first = outbox(&stage).await.remove(0);
        assert_eq!(first["state"], if long { "pending" } else { "given_up" }, "{status}: {first}");
        assert!(metric(&stage, "ringfence_deliveries_total{result=\"retry\"}").await);
        stage.finish().await;
    }
}
