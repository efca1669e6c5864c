//! What passes through `listen.api` and `listen.webhooks`: nothing is added, nothing is repeated by an SDK, and no answer leads a
//! client past ringfence.

#![allow(clippy::large_futures, reason = "each test is one future")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ringfence::call::{EndProof, Outcome};
use serde_json::json;

use crate::outbound::{account_at, elevenlabs, order};
use crate::support::net::{Message, Wire, bounded, server};
use crate::support::stage::{Answer, Setup, Stage};

const CREATE: &str = "/far/v1/convai/twilio/outbound-call";

/// A stage with an account `far` at this address.
async fn stage_at(upstream: SocketAddr, setup: Setup) -> Stage {
    let tables = format!("{}{}", account_at("far", "elevenlabs", &format!("http://{upstream}")), setup.tables);
    Stage::start(Setup { tables, ..setup }).await
}

/// A provider that answers everything with this.
async fn answering(answer: String) -> SocketAddr {
    let answer = Arc::new(answer);
    server(move |mut wire| {
        let answer = answer.clone();
        async move {
            while wire.message().await.is_some() {
                wire.send(answer.as_bytes()).await;
            }
        }
    })
    .await
}

async fn send(stage: &Stage, method: &str, path: &str) -> Answer {
    stage.send(method, &stage.api(path), &[("content-type", "application/json")], "{}").await
}

fn api(stage: &Stage) -> SocketAddr {
    stage.app().api()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirected_create_frees_its_slot_only_if_it_was_not_carried_out_and_never_leads_past() {
    for (status, not_created) in [(307, true), (308, true), (301, false), (302, false), (303, false), (300, false)] {
        let location = "https://api.elevenlabs.io/v1/convai/twilio/outbound-call";
        let upstream =
            answering(format!("HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n")).await;
        let stage = stage_at(upstream, Setup::default()).await;
        let answer = elevenlabs(&stage, CREATE, &[], &order("+15550002001")).await;
        let error = if not_created { "UPSTREAM_REDIRECTS" } else { "CALL_OUTCOME_UNKNOWN" };
        assert_eq!((answer.status, &answer.json()["error"]), (424, &json!(error)), "{status}");
        assert_eq!(answer.header("location"), None, "{status}");
        assert!(!String::from_utf8_lossy(&answer.body).contains("api.elevenlabs.io"), "{status}");
        assert_eq!(stage.held().await, u32::from(!not_created), "{status}");
        let records = stage.app().calls().lifecycle.store.latest_calls(10).await.unwrap();
        let ends = (records[0].outcome, records[0].proof);
        let expected = if not_created { (Some(Outcome::NotCreated), Some(EndProof::Provider)) } else { (None, None) };
        assert_eq!((records.len(), ends), (1, expected), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_redirects_lead_behind_the_mount_or_are_refused() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let upstream = server(move |mut wire| {
        let count = count.clone();
        async move {
            while let Some(message) = wire.message().await {
                count.fetch_add(1, Ordering::Relaxed);
                let own = wire.tcp.local_addr().unwrap();
                let to = match message.head.split(' ').nth(1).unwrap() {
                    "/v1/own" => format!("http://{own}/v1/models?x=%2F"),
                    "/v1/path" => "/v1/models".to_owned(),
                    "/v1/kin" => "http://127.0.0.1:1/v1/models".to_owned(),
                    "/v1/storage" => "https://storage.example.com/file?sig=a".to_owned(),
                    _ => "models".to_owned(),
                };
                let status = if message.head.starts_with("GET") { "302 Found" } else { "307 Temporary Redirect" };
                wire.send(format!("HTTP/1.1 {status}\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n")).await;
            }
        }
    })
    .await;
    let stage = stage_at(upstream, Setup::default()).await;
    for method in ["GET", "POST"] {
        for (path, to) in [("own", "/far/v1/models?x=%2F"), ("path", "/far/v1/models"), ("relative", "models")] {
            let answer = send(&stage, method, &format!("/far/v1/{path}")).await;
            let status = if method == "GET" { 302 } else { 307 };
            assert_eq!((answer.status, answer.header("location")), (status, Some(to)), "{method} {path}");
        }
        let kin = send(&stage, method, "/far/v1/kin").await;
        assert_eq!((kin.status, kin.header("location")), (424, None));
        assert_eq!(&kin.json()["error"], &json!("UPSTREAM_REDIRECTS"));
    }
    let fetched = send(&stage, "GET", "/far/v1/storage").await;
    assert_eq!((fetched.status, fetched.header("location")), (302, Some("https://storage.example.com/file?sig=a")));
    let sent = send(&stage, "POST", "/far/v1/storage").await;
    assert_eq!((sent.status, sent.header("location")), (424, None), "the body would go where nobody counts");
    // By host, there is no mount before the path.
    let mut wire = Wire::connect(api(&stage)).await;
    let answer = wire.ask(format!("GET /v1/own HTTP/1.1\r\nHost: {upstream}\r\n\r\n")).await;
    if answer.status() == 302 {
        assert_eq!(answer.field("location"), Some("/v1/models?x=%2F"));
    }
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn providers_are_told_nothing_of_the_apps_network() {
    bounded(async {
        let upstream = server(|mut wire| async move {
            while let Some(message) = wire.message().await {
                let seen = message.head.to_lowercase();
                wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{seen}", seen.len())).await;
            }
        })
        .await;
        let stage = stage_at(upstream, Setup::default()).await;
        let mut wire = Wire::connect(api(&stage)).await;
        let seen = wire.ask("GET /far/v1/models HTTP/1.1\r\nHost: inside\r\nX-A: 1\r\nX-B: 2\r\n\r\n").await.text();
        for word in ["forwarded", "via", "127.0.0.1\r\nx", "inside"] {
            assert!(!seen.contains(word), "{word} in {seen}");
        }
        let own = "X-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Host: app\r\nX-Forwarded-Proto: https\r\nForwarded: for=9.9.9.9\r\nVia: 1.1 a\r\n";
        let request = format!("GET /far/v1/models HTTP/1.1\r\nHost: inside\r\nConnection: keep-alive\r\n{own}X-Last: 1\r\n\r\n");
        let seen = wire.ask(request).await.text();
        assert!(seen.contains(&own.to_lowercase()), "the app's own are kept, in their order: {seen}");
        stage.finish().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn interim_answers_and_large_heads_pass() {
    bounded(async {
        let many: String = (0..400).map(|n| format!("X-Field-{n}: {n}\r\n")).collect();
        let upstream = server(move |mut wire| {
            let many = many.clone();
            async move {
                while wire.message().await.is_some() {
                    wire.send(
                        "HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n",
                    )
                    .await;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    wire.send(format!("HTTP/1.1 200 OK\r\n{many}Content-Length: 2\r\n\r\nok")).await;
                }
            }
        })
        .await;
        let stage = stage_at(upstream, Setup::default()).await;
        let mut wire = Wire::connect(api(&stage)).await;
        for _ in 0..2 {
            wire.send("POST /far/v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}").await;
            let interim = Message { head: wire.head().await.expect("an interim answer"), body: vec![] };
            assert_eq!((interim.status(), interim.field("link")), (103, Some("</a>; rel=preload")), "{}", interim.head);
            assert_eq!((interim.field("x-hop"), interim.field("content-length")), (None, None));
            let answer = wire.message().await.expect("an answer");
            assert_eq!(
                (answer.status(), answer.field("x-field-399"), answer.text().as_str()),
                (200, Some("399"), "ok")
            );
            assert_eq!(answer.field("connection"), Some("keep-alive"), "an interim answer ends nothing");
        }
        // A client of HTTP/1.0 does not know them (RFC 9110 §15.2).
        let mut old = Wire::connect(api(&stage)).await;
        old.send("GET /far/v1/x HTTP/1.0\r\nHost: a\r\n\r\n").await;
        assert!(old.head().await.expect("an answer").contains(" 200 "));
        stage.finish().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_provider_may_have_done_is_answered_as_no_sdk_repeats() {
    bounded(async {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let upstream = server(move |mut wire| {
            let count = count.clone();
            async move {
                let Some(message) = wire.message().await else { return };
                count.fetch_add(1, Ordering::Relaxed);
                if message.head.contains("/silent") {
                    wire.until_closed().await;
                }
            }
        })
        .await;
        let setup = Setup { timeouts: "pass_through_secs = 1".to_owned(), ..Setup::default() };
        let stage = stage_at(upstream, setup).await;
        for path in ["breaks", "silent"] {
            for method in ["POST", "PATCH", "PUT", "DELETE"] {
                let before = asked.load(Ordering::Relaxed);
                let answer = send(&stage, method, &format!("/far/v1/{path}")).await;
                assert_eq!(
                    (answer.status, &answer.json()["error"]),
                    (424, &json!("UPSTREAM_OUTCOME_UNKNOWN")),
                    "{method} {path}"
                );
                assert_eq!(asked.load(Ordering::Relaxed), before + 1, "sent once: {method} {path}");
            }
            // To read again changes nothing.
            let read = send(&stage, "GET", &format!("/far/v1/{path}")).await;
            assert_eq!((read.status, &read.json()["error"]), (502, &json!("UPSTREAM_UNREACHABLE")), "{path}");
        }
        stage.finish().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_moves_is_not_cut_however_long_it_takes() {
    bounded(async {
        let upstream = server(|mut wire| async move {
            while let Some(message) = wire.message().await {
                let body = format!("{} bytes", message.body.len());
                wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len())).await;
                for byte in body.bytes() {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    wire.send([byte]).await;
                }
            }
        })
        .await;
        let setup = Setup { timeouts: "pass_through_secs = 3".to_owned(), ..Setup::default() };
        let stage = stage_at(upstream, setup).await;
        let mut wire = Wire::connect(api(&stage)).await;
        wire.send("POST /far/v1/files HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n").await;
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(400)).await;
            wire.send("x").await;
        }
        let answer = wire.message().await.expect("an answer");
        assert_eq!((answer.status(), answer.text().as_str()), (200, "10 bytes"));
        stage.finish().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_broken_body_is_its_400_on_both_ways_through_and_whole_nowhere() {
    bounded(async {
        let whole = Arc::new(AtomicUsize::new(0));
        let count = whole.clone();
        let upstream = server(move |mut wire| {
            let count = count.clone();
            async move {
                while wire.message().await.is_some() {
                    count.fetch_add(1, Ordering::Relaxed);
                    wire.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
                }
            }
        })
        .await;
        let setup = Setup { app: Some(format!("http://{upstream}")), ..Setup::default() };
        let stage = stage_at(upstream, setup).await;
        for (address, path) in
            [(api(&stage), "/far/v1/files"), (api(&stage), CREATE), (stage.app().webhooks(), "/anything")]
        {
            for broken in ["2;\nxx\r\n28\r\n0\r\n\r\n", "zz\r\n", "\r\n", "5\r\nhelloX\r\n0\r\n\r\n"] {
                let mut wire = Wire::connect(address).await;
                wire.send(format!(
                    "POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{{ }}\r\n"
                ))
                .await;
                assert!(wire.stays_silent(Duration::from_millis(50)).await);
                let answer = wire.ask(format!("{broken}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")).await;
                assert_eq!(
                    (answer.status(), answer.field("connection")),
                    (400, Some("close")),
                    "{path} {broken:?}: {}",
                    answer.text()
                );
                assert!(wire.is_closed().await, "{path} {broken:?}");
            }
        }
        assert_eq!(whole.load(Ordering::Relaxed), 0, "a part of a body passed for the whole");
        assert_eq!(stage.held().await, 0);
        stage.finish().await;
    })
    .await;
}

/// What a provider frames in more than one way is framed anew, or torn; what it sends beyond its answer is nobody's.
#[tokio::test(flavor = "multi_thread")]
async fn lax_answers_leave_nothing_for_the_next_request() {
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n";
    let answers = [
        (format!("{CHUNKED}Content-Length: 3\r\n\r\n2\r\nok\r\n0\r\n\r\n"), Some("ok")),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok".to_owned(), Some("ok")),
        ("HTTP/1.1 200 OK\nContent-Length: 2\n\nok".to_owned(), Some("ok")),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok".to_owned(), None),
        ("HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok".to_owned(), None),
        (format!("{CHUNKED}\r\n2;\nxx\r\nok\r\n0\r\n\r\n"), None),
        (format!("{CHUNKED}\r\n\r\n0\r\n\r\n"), None),
        ("HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok".to_owned(), None),
        ("HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok".to_owned(), None),
    ];
    bounded(async {
        for (answer, body) in answers {
            let lax = Arc::new(format!("{answer}HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled"));
            let upstream = server(move |mut wire| {
                let lax = lax.clone();
                async move {
                    while let Some(head) = wire.head().await {
                        let next = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext";
                        wire.send(if head.contains("/lax") { lax.as_bytes() } else { next.as_bytes() }).await;
                    }
                }
            })
            .await;
            let stage = stage_at(upstream, Setup::default()).await;
            let mut wire = Wire::connect(api(&stage)).await;
            wire.send("GET /far/v1/lax HTTP/1.1\r\nHost: a\r\n\r\n").await;
            // Torn, or a 502, where it cannot be read.
            let got = wire.message().await.filter(|message| message.status() == 200).map(|message| message.text());
            assert_eq!(got.as_deref(), body, "{answer:?}");
            for _ in 0..3 {
                let next = send(&stage, "GET", "/far/v1/next").await;
                assert_eq!((next.status, &next.body[..]), (200, &b"next"[..]), "{answer:?}");
            }
            stage.finish().await;
        }
    })
    .await;
}
