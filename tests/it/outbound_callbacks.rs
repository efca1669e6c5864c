//! Twilio's status callbacks: ours stand in the app's place, and the app gets those that it asked for, as if they were sent to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use http::Response;
use ringfence::call::{EndProof, Outcome, Phase};
use ringfence_simulator::{Fault, FaultKind, Millis, Provider, SimSettings, sign};
use serde_json::json;

use crate::outbound::{account_at, all_free, basic, blind, id, once, talk, twilio};
use crate::support::stage::{Behind, Got, Setup, Stage};

fn answered() -> SimSettings {
    SimSettings { talk_ms: Millis::exactly(50), ..Setup::default().sim }
}

/// What came to the app's callback, by `CallStatus`, in Twilio's order.
fn statuses(got: &[Got]) -> Vec<String> {
    let mut all: Vec<(String, String)> =
        got.iter().map(|g| (g.field("SequenceNumber").unwrap(), g.field("CallStatus").unwrap())).collect();
    all.sort();
    all.into_iter().map(|(_, status)| status).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_provider_is_asked_for_every_event_with_retries_at_our_address() {
    let provider = Behind::replying(Box::new(|got| {
        let sid = if got.path_and_query.contains("Participants") { "call_sid" } else { "sid" };
        let n = got.field("To").unwrap_or_default();
        Response::builder()
            .status(201)
            .body(json!({sid: format!("CA{n}"), "status": "queued"}).to_string().into())
            .unwrap()
    }))
    .await;
    for public in [true, false] {
        let tables = account_at("mirror", "twilio", &provider.url());
        let stage = Stage::start(Setup { tables, public, ..Setup::default() }).await;
        let authorization = basic(&stage.control);
        let headers =
            [("content-type", "application/x-www-form-urlencoded"), ("authorization", authorization.as_str())];
        let app = "StatusCallback=http%3A%2F%2Fapp.example%2Fstatus%3Fa%3D1%23rc%3D5&StatusCallbackMethod=GET&StatusCallbackEvent=ringing&StatusCallbackEvent=answered";
        for (n, path) in ["Calls.json", "Conferences/room/Participants.json"].into_iter().enumerate() {
            let url = stage.api(&format!("/mirror/2010-04-01/Accounts/ACmirror/{path}"));
            let sent = format!("To=%2B1555000200{n}&Zeta=a+b&From=%2B15550001111&{app}&Twiml=%3CResponse%2F%3E&To2=");
            assert_eq!(stage.send("POST", &url, &headers, sent.clone()).await.status, 201);
            let got = provider.got().pop().unwrap();
            if !public {
                assert_eq!(got.body, sent, "nothing is touched where no callback can come");
                continue;
            }
            let record = stage.record(&format!("CA+1555000200{n}")).await.unwrap();
            let ours = stage.webhooks(&format!("/ringfence/twilio/status/{}#rc=3&rp=ct,rt,5xx", record.id));
            assert_eq!(got.field("StatusCallback"), Some(ours));
            assert_eq!(got.field("StatusCallbackMethod").as_deref(), Some("POST"));
            let form = got.form();
            let all = |name: &str| form.iter().filter(|(k, _)| k == name).map(|(_, v)| v.as_str()).collect::<Vec<_>>();
            assert_eq!(all("StatusCallbackEvent"), ["initiated", "ringing", "answered", "completed"]);
            assert_eq!(all("StatusCallback").len(), 1);
            let kept: Vec<&str> =
                form.iter().map(|(k, _)| k.as_str()).filter(|k| !k.starts_with("StatusCallback")).collect();
            assert_eq!(kept, ["To", "Zeta", "From", "Twiml", "To2"], "the app's fields, in its order");
            assert_eq!((all("Zeta"), all("Twiml")), (vec!["a b"], vec!["<Response/>"]));
            assert_eq!(got.headers["authorization"], authorization.as_str());
            let callback = record.callback.unwrap();
            assert_eq!(
                (callback.url.as_str(), callback.method.as_str()),
                ("http://app.example/status?a=1#rc=5", "GET")
            );
            assert_eq!(callback.events, ["ringing", "answered"]);
        }
        stage.finish().await;
    }
}

/// Which of the four the app gets is what it asked for; without a wish, the end alone.
#[tokio::test(flavor = "multi_thread")]
async fn the_app_gets_the_events_that_it_asked_for_signed_for_its_own_address() {
    let app = Behind::start().await;
    let stage = Stage::start(Setup { sim: answered(), ..Setup::default() }).await;
    let cases: [(&str, &[&str], &[&str]); 4] = [
        ("/default", &[], &["completed"]),
        ("/some", &["ringing", "answered"], &["ringing", "in-progress"]),
        ("/spaces", &["initiated ringing answered completed"], &["initiated", "ringing", "in-progress", "completed"]),
        (
            "/all",
            &["initiated", "ringing", "answered", "completed"],
            &["initiated", "ringing", "in-progress", "completed"],
        ),
    ];
    for (path, events, _) in cases {
        let url = format!("{}{path}?tenant=a%20b", app.url());
        let mut more = vec![("StatusCallback", url.as_str())];
        more.extend(events.iter().map(|e| ("StatusCallbackEvent", *e)));
        assert_eq!(talk(&stage, "+15550002001", &more).await.status, 201);
    }
    // The app that asked for none gets none.
    let silent = id(&talk(&stage, "+15550002001", &[]).await, "sid");
    let token = stage.control.settings().auth_token;
    for (path, _, wanted) in cases {
        stage.wait("the app has what it asked for", async || app.at(path).len() >= wanted.len()).await;
    }
    once(&stage, &silent, "the silent one is over", |r| r.phase == Phase::Ended).await;
    all_free(&stage).await;
    for (path, _, wanted) in cases {
        let got = app.at(path);
        assert_eq!(statuses(&got), wanted, "{path}");
        for one in &got {
            let url = format!("{}{}", app.url(), one.path_and_query);
            assert_eq!((one.method.as_str(), one.path_and_query.as_str()), ("POST", &*format!("{path}?tenant=a%20b")));
            assert_eq!(one.headers["x-twilio-signature"], sign::twilio(&token, &url, &one.form()), "{path}");
            assert!(one.headers.contains_key("i-twilio-idempotency-token") && one.field("From").is_some());
        }
    }
    assert!(app.got().iter().all(|g| g.field("CallSid").as_deref() != Some(&silent)));
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_callback_is_a_get_with_a_query_signed_as_such() {
    let app = Behind::start().await;
    let stage = Stage::start(Setup { sim: answered(), ..Setup::default() }).await;
    let url = format!("{}/status?tenant=acme", app.url());
    let answer = talk(&stage, "+15550002001", &[("StatusCallback", &url), ("StatusCallbackMethod", "GET")]).await;
    stage.wait("the app is told of the end", async || app.at("/status").len() == 1).await;
    let got = app.got().remove(0);
    assert_eq!((got.method.as_str(), got.body.len()), ("GET", 0));
    let query: Vec<(String, String)> =
        form_urlencoded::parse(got.path_and_query.split_once('?').unwrap().1.as_bytes()).into_owned().collect();
    let value = |name: &str| query.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str());
    assert_eq!(
        (value("tenant"), value("CallStatus"), value("CallSid")),
        (Some("acme"), Some("completed"), Some(&*id(&answer, "sid")))
    );
    let whole = format!("{}{}", app.url(), got.path_and_query);
    let token = stage.control.settings().auth_token;
    assert_eq!(got.headers["x-twilio-signature"], sign::twilio(&token, &whole, &[]));
    all_free(&stage).await;
    stage.finish().await;
}

/// The app fails at first and is told again, also by the process after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_is_down_is_told_again() {
    let (tries, down) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(1)));
    let (counted, failing) = (tries.clone(), down.clone());
    let app = Behind::replying(Box::new(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        let status = if failing.load(Ordering::SeqCst) == 1 { 503 } else { 200 };
        Response::builder().status(status).body(bytes::Bytes::new()).unwrap()
    }))
    .await;
    let mut stage = Stage::start(Setup { sim: answered(), ..Setup::default() }).await;
    let url = format!("{}/status", app.url());
    assert_eq!(talk(&stage, "+15550002001", &[("StatusCallback", &url)]).await.status, 201);
    stage.wait("it was tried", async || tries.load(Ordering::SeqCst) >= 1).await;
    stage.stop_app().await;
    down.store(0, Ordering::SeqCst);
    let before = tries.load(Ordering::SeqCst);
    stage.start_app().await;
    stage.wait("it is told again", async || tries.load(Ordering::SeqCst) > before).await;
    let got = app.at("/status");
    let ids: std::collections::BTreeSet<_> =
        got.iter().map(|g| g.headers["x-ringfence-delivery"].to_str().unwrap()).collect();
    assert_eq!((ids.len(), got[0].body == got[got.len() - 1].body), (1, true), "one delivery, the same bytes");
    assert_eq!(got.last().unwrap().field("CallStatus").as_deref(), Some("completed"));
    all_free(&stage).await;
    stage.finish().await;
}

/// Twilio ignores callbacks beside an application: the call is polled instead.
#[tokio::test(flavor = "multi_thread")]
async fn calls_of_an_application_are_left_alone_and_polled() {
    let stage = Stage::start(Setup::default()).await;
    let answer = twilio(
        &stage,
        "Calls.json",
        None,
        "+15550002001",
        &[("ApplicationSid", "AP1"), ("StatusCallback", "http://127.0.0.1:9/x")],
    )
    .await;
    assert_eq!(answer.status, 201);
    let sid = id(&answer, "sid");
    let record = stage.record(&sid).await.unwrap();
    assert!(
        record.polled && record.callback.is_none() && record.attributes.agent.as_deref() == Some("AP1"),
        "{record:#?}"
    );
    once(&stage, &sid, "the sweep sees it live", |r| r.phase == Phase::Live && r.seen_by.as_str() == "poll").await;
    stage.control.end_call(&sid);
    let ended = once(&stage, &sid, "it ends", |r| r.phase == Phase::Ended).await;
    assert_eq!((ended.outcome, ended.proof), (Some(Outcome::Completed), Some(EndProof::Provider)));
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_public_url_ends_come_by_polling() {
    let stage = Stage::start(Setup { public: false, ..Setup::default() }).await;
    let app = Behind::start().await;
    let url = format!("{}/status", app.url());
    let sid = id(&talk(&stage, "+15550002001", &[("StatusCallback", &url)]).await, "sid");
    let conversation = id(&stage.dial(None, "+15550002002").await, "conversation_id");
    for call in [&sid, &conversation] {
        once(&stage, call, "the sweep sees it live", |r| r.phase == Phase::Live && r.polled).await;
        stage.control.end_call(call);
        let ended = once(&stage, call, "it ends", |r| r.phase == Phase::Ended).await;
        assert_eq!(ended.proof, Some(EndProof::Provider));
    }
    stage.wait("the app's callback is still Twilio's business", async || app.at("/status").len() == 1).await;
    all_free(&stage).await;
    stage.finish().await;
}

/// A callback that nobody signed changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_forged_callback_is_refused_and_a_repeated_one_is_one() {
    let app = Behind::start().await;
    let stage = Stage::start(Setup::default()).await;
    blind(&stage.control);
    let url = format!("{}/status", app.url());
    let sid = id(&talk(&stage, "+15550002001", &[("StatusCallback", &url)]).await, "sid");
    let record = once(&stage, &sid, "it is live", |r| r.phase == Phase::Live).await;
    let path = format!("/ringfence/twilio/status/{}", record.id);
    let form: Vec<(String, String)> = [
        ("CallSid", sid.as_str()),
        ("CallStatus", "completed"),
        ("SequenceNumber", "9"),
        ("Direction", "outbound-api"),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .to_vec();
    let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(&form).finish();
    let token = stage.control.settings().auth_token;
    let post = async |token: &str| {
        let signature = sign::twilio(token, &stage.webhooks(&path), &form);
        let headers =
            [("content-type", "application/x-www-form-urlencoded"), ("x-twilio-signature", signature.as_str())];
        stage.send("POST", &stage.webhooks(&path), &headers, body.clone()).await.status
    };
    assert_eq!((post("not the token").await, stage.held().await), (401, 1));
    for _ in 0..3 {
        assert_eq!(post(&token).await, 204);
    }
    assert_eq!(stage.held().await, 0);
    stage.wait("the app is told", async || !app.at("/status").is_empty()).await;
    stage.control.clear_faults(None);
    // The call itself is still up at the provider, as far as the simulator knows.
    stage.control.end_call(&sid);
    assert_eq!(app.at("/status").iter().filter(|g| g.field("SequenceNumber").as_deref() == Some("9")).count(), 1);
    stage.finish().await;
}

/// The answer is lost, but a callback with our call's id comes: it proves the call, and brings its sid.
#[tokio::test(flavor = "multi_thread")]
async fn a_callback_settles_a_create_whose_answer_was_lost() {
    let stage = Stage::start(Setup::default()).await;
    blind(&stage.control);
    stage.control.fault(Fault::next(Provider::Twilio, FaultKind::AcceptThenDrop, 1));
    assert_eq!(talk(&stage, "+15550002001", &[]).await.status, 504);
    let sid = stage.control.calls().remove(0).call_sid.unwrap();
    let record = once(&stage, &sid, "it is bound", |r| r.phase == Phase::Live).await;
    assert!(!record.unsettled && record.seen_by.as_str() == "webhook");
    stage.control.end_call(&sid);
    all_free(&stage).await;
    stage.control.clear_faults(None);
    stage.finish().await;
}
