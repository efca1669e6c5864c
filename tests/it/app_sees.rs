//! What the app sees of where it was called: as behind a TLS front of its own, on every way that a request takes to it.

use bytes::Bytes;
use http::HeaderMap;
use ringfence_simulator::sign;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

use crate::support::hooks::{EVENTS, FORM, STATUS, VOICE, call_form, encoded, now_secs, pairs, seed_event};
use crate::support::net::{Wire, server};
use crate::support::stage::{Behind, Setup, Stage};

const PUBLIC: &str = "https://hooks.example.test";
const SMS: &str = "/my/own/sms?a=b";

/// What a sender may say of itself, and what would be believed by an app that trusts its front.
const FORGED: [(&str, &str); 9] = [
    ("x-forwarded-for", "203.0.113.9"),
    ("x-forwarded-host", "evil.test"),
    ("x-forwarded-proto", "gopher"),
    ("x-forwarded-port", "1"),
    ("x-forwarded-prefix", "/evil"),
    ("x-forwarded-ssl", "off"),
    ("x-forwarded-scheme", "gopher"),
    ("x-forwarded-protocol", "gopher"),
    ("forwarded", "for=203.0.113.9;host=evil.test;proto=gopher"),
];

/// The address that the app is called by.
struct Seen<'a> {
    host: &'a str,
    forwarded_host: &'a str,
    scheme: &'a str,
    port: &'a str,
    /// What signatures are over, before the path.
    signed: &'a str,
}

fn check(headers: &HeaderMap, seen: &Seen<'_>, what: &str) {
    let of = |name: &str| headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>().join("|");
    assert_eq!(of("host"), seen.host, "{what}");
    assert_eq!(of("x-forwarded-host"), seen.forwarded_host, "{what}");
    assert_eq!(of("x-forwarded-proto"), seen.scheme, "{what}");
    assert_eq!(of("x-forwarded-port"), seen.port, "{what}");
    assert_eq!(of("x-forwarded-for"), "127.0.0.1", "{what}");
    for name in ["x-forwarded-prefix", "x-forwarded-ssl", "x-forwarded-scheme", "x-forwarded-protocol", "forwarded"] {
        assert_eq!(of(name), "", "{what}: {name}");
    }
}

/// Voice, status, passed requests, queued events: one address, whatever the sender says.
#[tokio::test(flavor = "multi_thread")]
async fn the_app_sees_its_public_address_on_every_way() {
    let public = Seen {
        host: "hooks.example.test",
        forwarded_host: "hooks.example.test",
        scheme: "https",
        port: "443",
        signed: PUBLIC,
    };
    let named = Seen {
        host: "name.example.test:8443",
        forwarded_host: "name.example.test:8443",
        port: "8443",
        signed: "https://name.example.test:8443",
        ..public
    };
    let own = Seen {
        host: "app.example.test",
        forwarded_host: "app.example.test",
        scheme: "http",
        port: "80",
        signed: "http://app.example.test",
    };
    for (more, seen) in [
        ("", Some(&public)),
        ("host = \"public\"", Some(&public)),
        ("host = \"name.example.test:8443\"", Some(&named)),
        ("public_url = \"http://app.example.test\"", Some(&own)),
        ("host = \"forward\"", None),
    ] {
        let app = Behind::start().await;
        let forward = format!("forward_url = \"{}\"", app.url());
        let replace = vec![(forward.clone(), format!("{forward}\n{more}"))];
        let root = format!("public_url = \"{PUBLIC}\"");
        let setup = Setup { public: false, root, app: Some(app.url()), replace, ..Setup::default() };
        let stage = Stage::start(setup).await;
        let own_address = app.url();
        let at = own_address.strip_prefix("http://").unwrap();
        let port = at.rsplit(':').next().unwrap();
        let forward = Seen { host: at, forwarded_host: at, scheme: "http", port, signed: &own_address };
        let seen = seen.unwrap_or(&forward);

        let token = stage.control.settings().auth_token;
        for (path, form) in [
            (VOICE, call_form("CA1", "inbound", "ringing")),
            (STATUS, call_form("CA1", "inbound", "completed")),
            (SMS, vec![("MessageSid", "SM1"), ("Body", "hi & bye")]),
        ] {
            let signature = sign::twilio(&token, &format!("{PUBLIC}{path}"), &pairs(&form));
            let headers = [&FORGED[..], &[FORM, ("x-twilio-signature", &signature)]].concat();
            let answer = stage.send("POST", &stage.webhooks(path), &headers, encoded(&form)).await;
            assert!(answer.status < 300, "{more} {path}: {answer:?}");
            let bare = path.split('?').next().unwrap();
            stage.wait("the app has it", async || !app.at(bare).is_empty()).await;
            let got = app.at(bare).pop().unwrap();
            check(&got.headers, seen, &format!("{more} {path}"));
            let expected = sign::twilio(&token, &format!("{}{path}", seen.signed), &pairs(&form));
            assert_eq!(got.headers["x-twilio-signature"], expected.as_str(), "{more} {path}");
            assert_eq!(got.body, encoded(&form));
        }
        let event = seed_event("conversation.ended", "conv_1", "inbound").to_string();
        let secret = stage.control.settings().el_webhook_secret;
        let signature = sign::elevenlabs(&secret, now_secs(), event.as_bytes());
        let headers = [&FORGED[..], &[("elevenlabs-signature", signature.as_str())]].concat();
        assert_eq!(stage.send("POST", &stage.webhooks(EVENTS), &headers, event.clone()).await.status, 200);
        stage.wait("the app has it", async || !app.at(EVENTS).is_empty()).await;
        let got = app.at(EVENTS).pop().unwrap();
        check(&got.headers, seen, &format!("{more} {EVENTS}"));
        assert_eq!(got.headers["elevenlabs-signature"], signature.as_str());
        stage.send("GET", &stage.webhooks("/unsigned"), &FORGED, Bytes::new()).await;
        check(&app.at("/unsigned")[0].headers, seen, &format!("{more} unsigned"));
        stage.finish().await;
    }
}

/// Without a public URL the address is that of the request as it came, which is what Twilio signs.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_public_url_the_app_sees_the_request_as_it_came() {
    let app = Behind::start().await;
    let trusting = ("[listen]".to_owned(), "[listen]\ntrusted_peers = [\"127.0.0.1\"]".to_owned());
    let setup = Setup { public: false, app: Some(app.url()), replace: vec![trusting], ..Setup::default() };
    let stage = Stage::start(setup).await;
    let token = stage.control.settings().auth_token;
    let form = call_form("CA1", "inbound", "ringing");
    let tunnel = [("x-forwarded-proto", "https"), ("x-forwarded-host", "abc.tunnel.test")];
    for (headers, base) in [
        (&[("host", "abc.tunnel.test")][..], "http://abc.tunnel.test"),
        (&tunnel[..], "https://abc.tunnel.test"),
        (&[("host", "abc.tunnel.test"), ("x-forwarded-proto", "https")][..], "https://abc.tunnel.test"),
    ] {
        let signature = sign::twilio(&token, &format!("{base}{VOICE}"), &pairs(&form));
        let headers = [headers, &[FORM, ("x-twilio-signature", &signature)]].concat();
        assert_eq!(stage.send("POST", &stage.webhooks(VOICE), &headers, encoded(&form)).await.status, 200, "{base}");
        let got = app.at(VOICE).pop().unwrap();
        let seen = |name: &str| got.headers[name].to_str().unwrap().to_owned();
        assert_eq!(format!("{}://{}", seen("x-forwarded-proto"), seen("host")), base);
        assert_eq!((seen("x-forwarded-host"), seen("x-twilio-signature")), ("abc.tunnel.test".to_owned(), signature));
    }
    stage.finish().await;
}

/// An app that builds its Media Streams URL from `Host`: the handshake has the same host, and its signature holds.
#[tokio::test(flavor = "multi_thread")]
async fn media_streams_come_to_the_host_that_the_app_names() {
    let (seen, mut handshakes) = tokio::sync::mpsc::unbounded_channel();
    let app = server(move |wire: Wire| {
        let seen = seen.clone();
        async move {
            #[expect(clippy::result_large_err, reason = "the type is tungstenite's")]
            let note = |request: &Request, response: Response| {
                let _ = seen.send(request.headers().clone());
                Ok(response)
            };
            let _ = tokio_tungstenite::accept_hdr_async(wire.tcp, note).await;
        }
    })
    .await;
    let root = format!("public_url = \"{PUBLIC}\"");
    let setup = Setup { public: false, root, app: Some(format!("http://{app}")), ..Setup::default() };
    let stage = Stage::start(setup).await;
    let token = stage.control.settings().auth_token;
    let mut request = format!("ws://{}/media", stage.app().webhooks()).into_client_request().unwrap();
    let signature = sign::twilio(&token, "wss://hooks.example.test/media", &[]);
    for (name, value) in [("host", "hooks.example.test"), ("x-twilio-signature", &signature)] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let (mut socket, _) = tokio_tungstenite::connect_async(request).await.unwrap();
    let headers = handshakes.recv().await.unwrap();
    let of = |name: &str| headers[name].to_str().unwrap();
    assert_eq!((of("host"), of("x-forwarded-proto")), ("hooks.example.test", "https"));
    assert_eq!(of("x-twilio-signature"), signature);
    let _ = socket.close(None).await;
    stage.finish().await;
}

/// What is delivered late, or again, passes the app's own check of its age; what came stands beside it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_delivered_late_or_again_is_signed_for_the_present_time() {
    let failures = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(1));
    let left = failures.clone();
    let app = Behind::replying(Box::new(move |_| {
        use std::sync::atomic::Ordering::SeqCst;
        let fails = left.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok();
        http::Response::builder().status(if fails { 503 } else { 200 }).body(Bytes::new()).unwrap()
    }))
    .await;
    let stage = Stage::start(Setup { app: Some(app.url()), ..Setup::default() }).await;
    let secret = stage.control.settings().el_webhook_secret;
    let post = async |body: &str, age_secs: i64| {
        let signature = sign::elevenlabs(&secret, now_secs() - age_secs, body.as_bytes());
        let headers = [("elevenlabs-signature", signature.as_str())];
        assert_eq!(stage.send("POST", &stage.webhooks(EVENTS), &headers, body.to_owned()).await.status, 200);
        signature
    };
    let check = |original: &str| {
        let got = app.at(EVENTS).pop().unwrap();
        let shown = got.headers["elevenlabs-signature"].to_str().unwrap().to_owned();
        let stamp: i64 = shown[2..shown.find(',').unwrap()].parse().unwrap();
        assert!((now_secs() - stamp).abs() <= 10, "{shown}");
        assert_eq!(shown, sign::elevenlabs(&secret, stamp, &got.body));
        assert_eq!(got.headers["x-ringfence-original-elevenlabs-signature"], original);
        assert_eq!(got.headers.get_all("elevenlabs-signature").iter().count(), 1);
    };
    // Taken in the last second of ElevenLabs' half hour, and refused by the app at first.
    let event = seed_event("conversation.ended", "conv_1", "inbound").to_string();
    let original = post(&event, 1795).await;
    stage.wait("the app took it", async || app.at(EVENTS).len() == 2).await;
    check(&original);
    let id = stage.ask("/api/events").await["events"][0]["id"].as_str().unwrap().to_owned();
    let again = stage.send("POST", &stage.admin(&format!("/api/events/{id}/replay")), &[], Bytes::new()).await;
    assert_eq!(again.status, 200, "{again:?}");
    stage.wait("it came again", async || app.at(EVENTS).len() == 3).await;
    check(&original);
    // A large one is in the spool.
    let mut large = seed_event("post_call_audio", "conv_1", "inbound");
    large["data"] = serde_json::json!({"conversation_id": "conv_1", "full_audio": "QUJD".repeat(1 << 19)});
    let original = post(&large.to_string(), 1000).await;
    stage.wait("the large one came", async || app.at(EVENTS).len() == 4).await;
    check(&original);
    stage.finish().await;
}
