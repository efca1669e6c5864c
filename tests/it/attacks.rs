//! Attacks on `listen.webhooks` and `listen.api` by what a request says beside what it is: at the wire, one for each kind.

use bytes::Bytes;
use ringfence_simulator::sign;
use serde_json::json;

use crate::outbound::{basic, elevenlabs, id, order, talk};
use crate::support::hooks::{EVENTS, FORM, STATUS, VOICE, call_form, encoded, now_secs, pairs, seed_event, twilio};
use crate::support::net::ask;
use crate::support::stage::{Answer, Behind, Setup, Stage, grown};

/// One place, an app, and sweeps that come late: what is counted was counted by what came.
async fn full(app: &Behind) -> Stage {
    let replace = vec![("sweep_ms = 100".to_owned(), "sweep_ms = 60000".to_owned())];
    Stage::start(Setup { root: "concurrent = 1".to_owned(), app: Some(app.url()), replace, ..Setup::default() }).await
}

/// As Twilio signs what has no form: the address alone.
async fn signed(stage: &Stage, method: &str, path_and_query: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let url = stage.webhooks(path_and_query);
    let signature = sign::twilio(&stage.control.settings().auth_token, &url, &[]);
    let headers = [headers, &[("x-twilio-signature", signature.as_str())]].concat();
    stage.send(method, &url, &headers, body.to_owned()).await
}

/// A text message is signed with the same token. What its sender wrote into the address is no news of a call.
#[tokio::test(flavor = "multi_thread")]
async fn a_text_message_says_nothing_of_a_call() {
    let app = Behind::start().await;
    let stage = full(&app).await;
    assert_eq!(twilio(&stage, VOICE, &call_form("CA1", "inbound", "ringing")).await.status, 200);
    let (end, rings) =
        ("CallSid=CA1&CallStatus=completed&Direction=inbound", "CallSid=CA2&CallStatus=ringing&Direction=inbound");
    for message in ["MessageSid=SM1", "SmsSid=SM1", "MessageSid=SM1&SmsSid=SM1&From=%2B15550003301&Body=hi"] {
        for (path, call) in [(STATUS, end), (VOICE, rings), (VOICE, end)] {
            for query in [format!("{call}&{message}"), format!("{message}&{call}")] {
                let answer = signed(&stage, "GET", &format!("{path}?{query}"), &[], "").await;
                assert_eq!(
                    (answer.status, &answer.json()["error"]),
                    (400, &json!("INVALID_PAYLOAD")),
                    "{path} {query}"
                );
                assert_eq!(stage.held().await, 1, "{path} {query}");
            }
        }
        // At a path of the app's it passes, and ends nothing.
        assert_eq!(signed(&stage, "GET", &format!("/my/sms?{end}&{message}"), &[], "").await.status, 200);
        assert_eq!(stage.held().await, 1, "{message}");
    }
    let posted = [call_form("CA1", "inbound", "completed"), vec![("SmsSid", "SM1")]].concat();
    assert_eq!(twilio(&stage, STATUS, &posted).await.status, 400);
    // One that names no call is the app's, as it came.
    let message = [("MessageSid", "SM2"), ("MessageStatus", "delivered"), ("SmsSid", "SM2")];
    assert_eq!(twilio(&stage, STATUS, &message).await.status, 204);
    stage.wait("the app has it", async || app.at(STATUS).len() == 1).await;
    assert_eq!((stage.held().await, app.at(VOICE).len()), (1, 1));
    let metrics = stage.ask("/metrics").await;
    assert!(metrics.as_str().unwrap().contains("outcome=\"foreign\""));
    assert_eq!(twilio(&stage, STATUS, &call_form("CA1", "inbound", "completed")).await.status, 204);
    assert_eq!(stage.held().await, 0);
    stage.finish().await;
}

/// A body that says nothing is a body: the query beside it is part of the address, and whoever wrote that.
#[tokio::test(flavor = "multi_thread")]
async fn a_query_beside_a_body_that_says_nothing_is_no_news() {
    let app = Behind::start().await;
    let stage = full(&app).await;
    assert_eq!(twilio(&stage, VOICE, &call_form("CA1", "inbound", "ringing")).await.status, 200);
    let evil = format!("{STATUS}?CallSid=CA1&CallStatus=completed&Direction=inbound");
    for (kind, body) in [
        (Some("text/plain"), "x"),
        (None, "x"),
        (Some("application/octet-stream"), "\0"),
        (Some("application/json"), "{}"),
        (Some("application/json"), "null"),
        (Some("application/json"), "[]"),
        (Some("application/x-www-form-urlencoded"), ""),
        (None, ""),
    ] {
        let headers: Vec<_> = kind.map(|kind| ("content-type", kind)).into_iter().collect();
        for method in ["POST", "PUT", "PATCH", "DELETE"] {
            let answer = signed(&stage, method, &evil, &headers, body).await;
            assert_eq!(stage.held().await, 1, "{method} {kind:?} {body:?}: {answer:?}");
        }
    }
    let rings = format!("{VOICE}?CallSid=CA2&CallStatus=ringing&Direction=inbound");
    signed(&stage, "POST", &rings, &[("content-type", "text/plain")], "x").await;
    assert_eq!(stage.held().await, 1);
    stage.finish().await;
}

/// A caller who rings in under no id could neither be counted nor refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_voice_webhook_without_an_id_reaches_no_app() {
    let app = Behind::start().await;
    let stage = full(&app).await;
    for sid in [None, Some("")] {
        let form = call_form(sid.unwrap_or_default(), "inbound", "ringing");
        let form: Vec<_> = form.into_iter().filter(|(name, _)| *name != "CallSid" || sid.is_some()).collect();
        let answer = twilio(&stage, VOICE, &form).await;
        assert_eq!((answer.status, &answer.json()["error"]), (400, &json!("INVALID_PAYLOAD")), "{answer:?}");
    }
    let started = seed_event("conversation.started", "", "inbound").to_string();
    let signature = sign::elevenlabs(&stage.control.settings().el_webhook_secret, now_secs(), started.as_bytes());
    let headers = [("content-type", "application/json"), ("elevenlabs-signature", signature.as_str())];
    stage.send("POST", &stage.webhooks(EVENTS), &headers, started).await;
    assert_eq!((app.at(VOICE).len(), stage.held().await), (0, 0));
    stage.finish().await;
}

/// Servers of CGI's family read `X_Forwarded_For` as `X-Forwarded-For`.
#[tokio::test(flavor = "multi_thread")]
async fn disguised_headers_do_not_reach_the_app() {
    let app = Behind::start().await;
    let stage = full(&app).await;
    let disguised = [
        ("x_forwarded_for", "203.0.113.9"),
        ("x_forwarded_host", "evil.example"),
        ("x_forwarded-proto", "http"),
        ("x.forwarded.for", "203.0.113.9"),
        ("x_ringfence_callback_url", "https://evil.example"),
        ("x-ringfence_delivery", "dl_forged"),
        ("x.ringfence.delivery", "dl_forged"),
    ];
    assert_eq!(stage.send("POST", &stage.webhooks("/own/path"), &disguised, "x").await.status, 200);
    let form = call_form("CA1", "inbound", "ringing");
    let url = stage.webhooks(VOICE);
    let signature = sign::twilio(&stage.control.settings().auth_token, &url, &pairs(&form));
    let headers = [&[FORM, ("x-twilio-signature", signature.as_str())], &disguised[..]].concat();
    assert_eq!(stage.send("POST", &url, &headers, encoded(&form)).await.status, 200);
    assert_eq!(app.got().len(), 2);
    for got in app.got() {
        let odd = |name: &&http::HeaderName| {
            let read = name.as_str().replace(['_', '.'], "-");
            read != name.as_str() && (read.starts_with("x-forwarded") || read.starts_with("x-ringfence"))
        };
        assert_eq!(got.headers.keys().filter(odd).collect::<Vec<_>>(), Vec::<&http::HeaderName>::new());
        assert!(!format!("{:?}", got.headers).contains("evil.example"), "{:?}", got.headers);
    }
    stage.finish().await;
}

/// What a client wrote in front of a trusted proxy's word must not hide that word, whatever bytes it is of.
#[tokio::test(flavor = "multi_thread")]
async fn odd_bytes_in_forwarded_for_hide_nobody() {
    let app = Behind::start().await;
    let setup = Setup { app: Some(app.url()), ..Setup::default() };
    let replace = vec![("[listen]".to_owned(), "[listen]\ntrusted_peers = [\"127.0.0.1\"]".to_owned())];
    let stage = Stage::start(Setup { replace, ..setup }).await;
    let to = stage.app().webhooks();
    for odd in [&b"\xff\xfe"[..], b"1.2.3.4\xff", b"\xe4, 9.9.9.9", b"\x80"] {
        let mut request =
            b"POST /own/path HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nConnection: close\r\nX-Forwarded-For: "
                .to_vec();
        request.extend_from_slice(odd);
        request.extend_from_slice(b"\r\nX-Forwarded-For: 203.0.113.9\r\n\r\nx");
        let before = app.got().len();
        let answer = ask(to, request).await;
        assert_eq!(answer.status(), 200, "{odd:?}");
        let got = app.got().pop().unwrap();
        assert_eq!(app.got().len(), before + 1);
        let chain = got.headers["x-forwarded-for"].to_str().expect("what goes on can be read").to_owned();
        assert!(chain.ends_with("203.0.113.9, 127.0.0.1"), "{odd:?}: {chain}");
    }
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coding_that_stands_behind_another_is_seen() {
    let stage = Stage::start(Setup::default()).await;
    let path = "/elevenlabs/v1/convai/twilio/outbound-call";
    let codings: [&[&str]; 6] = [
        &["identity", "gzip"],
        &["gzip", "identity"],
        &["identity, gzip"],
        &["", "br"],
        &["identity", "identity, br"],
        &["IDENTITY", "Deflate"],
    ];
    for coding in codings {
        let headers: Vec<_> = coding.iter().map(|one| ("content-encoding", *one)).collect();
        let answer = elevenlabs(&stage, path, &headers, &order("+15550002001")).await;
        assert_eq!((answer.status, &answer.json()["called"]), (415, &json!(false)), "{coding:?}");
    }
    assert_eq!((stage.control.calls().len(), stage.held().await), (0, 0));
    assert_eq!(elevenlabs(&stage, path, &[("content-encoding", "identity")], &order("+15550002001")).await.status, 200);
    stage.finish().await;
}

/// A path segment of dots is another place for whoever normalises the path: it is no id.
#[tokio::test(flavor = "multi_thread")]
async fn dots_are_no_ids() {
    let stage =
        Stage::start(Setup { tables: "[businesses.acme]\nplan = \"PRO\"".to_owned(), ..Setup::default() }).await;
    for dots in [".", ".."] {
        assert_eq!(stage.dial(Some(dots), "+15550002001").await.status, 403, "{dots}");
        let path = format!("/api/businesses/{}", dots.replace('.', "%2e"));
        let put = stage.send("PUT", &stage.admin(&path), &[], r#"{"plan":"PRO"}"#).await;
        assert!((400..500).contains(&put.status), "{dots}: {put:?}");
        let body = json!([{"id": dots, "plan": "PRO"}]).to_string();
        let bulk = stage.send("PUT", &stage.admin("/api/businesses"), &[], body).await;
        assert_eq!(bulk.status, 422, "{dots}: {bulk:?}");
    }
    assert_eq!(stage.control.calls().len(), 0);
    let known = stage.ask("/api/businesses").await;
    assert!(!known.to_string().contains("\"..\"") && !known.to_string().contains("\".\""), "{known}");
    stage.finish().await;
}

/// Two readers of a form may take the one or the other: its limits would be those of another call.
#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_says_twice_who_is_called_is_refused() {
    let app = Behind::start().await;
    let stage = full(&app).await;
    let sid = stage.control.settings().account_sid;
    let url = stage.api(&format!("/twilio/2010-04-01/Accounts/{sid}/Calls.json"));
    let authorization = basic(&stage.control);
    let create = async |form: &str| {
        stage.send("POST", &url, &[FORM, ("authorization", authorization.as_str())], form.to_owned()).await
    };
    let plain = "To=%2B15550002001&From=%2B15550001111&Twiml=%3CResponse%2F%3E";
    for more in ["From=%2B15550001112", "From=%2B15550001111", "To=%2B15550002002", "From=", "%46rom=%2B15550001112"] {
        for form in [format!("{plain}&{more}"), format!("{more}&{plain}")] {
            let answer = create(&form).await;
            assert_eq!((answer.status, stage.held().await), (400, 0), "{form}: {answer:?}");
            assert_eq!(answer.json()["details"]["called"], false);
        }
    }
    assert_eq!(stage.control.calls().len(), 0);
    // What may stand more than once may.
    let events = "StatusCallbackEvent=answered&StatusCallbackEvent=completed";
    assert_eq!(create(&format!("{plain}&{events}")).await.status, 201);
    stage.finish().await;
}

/// A tenant's callback to the app's own host takes the paths that the operator lets pass, and those of webhooks.
#[tokio::test(flavor = "multi_thread")]
async fn a_callback_to_the_app_is_no_way_around_the_paths_that_pass() {
    let app = Behind::start().await;
    let public = "https://hooks.example.test";
    let setup = Setup {
        public: false,
        root: format!("public_url = \"{public}\""),
        app: Some(app.url()),
        tables: "[app]\nforward_paths = [\"/twiml/*\"]\npublic_url = \"https://app.example.test\"\n[inbound]\nstatus_paths = [\"/hooks/status\"]".to_owned(),
        ..Setup::default()
    };
    let stage = Stage::start(setup).await;
    let with = async |host: &str, path: &str| {
        talk(&stage, "+15550002001", &[("StatusCallback", &format!("{host}{path}"))]).await
    };
    for host in [public, "https://app.example.test", "http://APP.example.test."] {
        for path in ["/admin", "/", "", "?a=1", "/twimlx", "/twiml/%2e%2e/admin", "/twiml/..%2fadmin", "/TWIML/x"] {
            let answer = with(host, path).await;
            assert_eq!(answer.status, 400, "{host}{path}: {answer:?}");
        }
    }
    assert_eq!(stage.control.calls().len(), 0);
    for path in ["/twiml/status", "/twiml?a=1", STATUS, "/hooks/status"] {
        let made = with(public, path).await;
        assert_eq!(made.status, 201, "{path}: {made:?}");
        stage.control.end_call(&id(&made, "sid"));
    }
    let metrics = stage.ask("/metrics").await;
    let refused = "ringfence_callbacks_refused_total{at=\"create\",reason=\"unusable\"}";
    assert!(grown(&metrics, refused).is_some(), "it is counted");
    stage.finish().await;
}

/// Whoever asks whether it is ready may be a stranger.
#[tokio::test(flavor = "multi_thread")]
async fn ready_tells_strangers_nothing_of_the_record() {
    let secret = "a secret of some length, for tests alone";
    let tables = format!("[admin]\ntoken_secret = \"{secret}\"");
    let stage = Stage::start(Setup { tables, ..Setup::default() }).await;
    let claims = json!({"sub": "ann", "scope": "read", "businesses": "*", "exp": 4_000_000_000_i64});
    let token = format!("Bearer {}", ringfence::jws::sign(secret.as_bytes(), &claims).unwrap());
    stage.app().calls().lifecycle.store.close().await;
    let ready = async |headers: &[(&str, &str)]| {
        let mut request = http::Request::builder().uri(stage.admin("/ready"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = stage.over_tcp(request.body(Bytes::new()).unwrap()).await;
        (answer.status, answer.json()["message"].as_str().unwrap().to_owned())
    };
    let told = "The database is unavailable; /status says why.";
    assert_eq!(ready(&[]).await, (503, told.to_owned()));
    assert_eq!(ready(&[("authorization", "Bearer forged")]).await, (503, told.to_owned()));
    let (status, why) = ready(&[("authorization", &token)]).await;
    assert!(status == 503 && why.contains("store"), "{why}");
}
