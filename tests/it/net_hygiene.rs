//! What the edge lets in, what it refuses, and what it says then. Names carry the section that asks for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ringfence::net::{EdgeSettings, TrustedPeers};
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;

use crate::support::net::{Wire, ask, bounded, edge, mirror, pattern, relay_edge, server, text};
use crate::support::panics::ON_PURPOSE;

fn settings() -> EdgeSettings {
    EdgeSettings::default()
}

/// Sends each request on its own connection to the mirror; all must get this status, and the connection must end.
async fn all_refused(status: u16, requests: &[&str]) {
    bounded(async {
        let edge = edge(settings(), mirror).await;
        for request in requests {
            let mut wire = Wire::connect(edge.local_addr()).await;
            let answer = wire.ask(request).await;
            let request = request.chars().take(200).collect::<String>();
            assert_eq!(answer.status(), status, "{request:?}: {}", answer.text());
            assert_eq!(answer.field("connection"), Some("close"), "{request:?}");
            assert!(wire.is_closed().await, "{request:?} left the connection open");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9110_7_6_1_hop_by_hop_headers_are_stripped_both_ways() {
    bounded(async {
        let (seen, mut seen_by_upstream) = tokio::sync::mpsc::unbounded_channel();
        let upstream = server(move |mut wire| {
            let seen = seen.clone();
            async move {
                while let Some(head) = wire.head().await {
                    let _ = seen.send(head);
                    wire.send(
                        "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Internal\r\nKeep-Alive: timeout=1\r\nX-Internal: secret\r\n\
                         Proxy-Authenticate: Basic\r\nUpgrade: h2c\r\nX-Kept: 1\r\nContent-Length: 2\r\n\r\nok",
                    )
                    .await;
                }
            }
        })
        .await;
        let (edge, _results) = relay_edge(settings(), upstream).await;
        let answer = ask(
            edge.local_addr(),
            "GET /x HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Mine, Authorization\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\n\
             Proxy-Authorization: Basic x\r\nProxy-Connection: keep-alive\r\nUpgrade: foo\r\nAuthorization: Bearer t\r\nX-Other: 2\r\n\r\n",
        )
        .await;
        let sent = seen_by_upstream.recv().await.expect("a request").to_lowercase();
        for gone in ["connection:", "x-mine", "keep-alive", "te:", "proxy-", "upgrade"] {
            assert!(!sent.contains(&format!("\n{gone}")), "{gone} in {sent}");
        }
        assert!(sent.contains("\nx-other: 2") && sent.contains("\nauthorization: bearer t"), "{sent}");
        for gone in ["x-internal", "keep-alive", "proxy-authenticate", "upgrade"] {
            assert_eq!(answer.field(gone), None, "{}", answer.head);
        }
        assert_eq!(answer.all("connection"), ["keep-alive"]);
        assert_eq!((answer.field("x-kept"), answer.text().as_str()), (Some("1"), "ok"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9112_3_2_missing_host_is_400() {
    all_refused(
        400,
        &["GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost:\r\n\r\n", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9112_3_2_several_hosts_are_400() {
    all_refused(400, &["GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9112_3_2_2_absolute_form_must_agree_with_host() {
    all_refused(400, &["GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n"]).await;
    bounded(async {
        let edge = edge(settings(), mirror).await;
        let answer = ask(edge.local_addr(), "GET http://a:1/x?y HTTP/1.1\r\nHost: a:1\r\n\r\n").await;
        assert!(answer.text().starts_with("GET /x?y\nhost=Some(\"a:1\")"), "{}", answer.text());
        // An empty path is `/` (RFC 9110 §4.2.3).
        let answer = ask(edge.local_addr(), "GET http://a?y HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(answer.text().starts_with("GET /?y\n"), "{}", answer.text());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9112_6_1_te_and_cl_is_refused_and_closed() {
    all_refused(
        400,
        &[
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-length: 3\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9112_6_1_unknown_transfer_codings_are_501() {
    all_refused(
        501,
        &[
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9112_6_3_bad_or_differing_lengths_are_400() {
    let request = |length: &str| format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\nabc");
    let bad: Vec<String> = [
        "-1",
        "+3",
        "3x",
        "",
        "0x3",
        "3 3",
        "3,3",
        "3, 4",
        "3\r\nContent-Length: 4",
        "3\r\nContent-Length: 3",
        "99999999999999999999999",
    ]
    .into_iter()
    .map(request)
    .collect();
    all_refused(400, &bad.iter().map(String::as_str).collect::<Vec<_>>()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9112_7_1_malformed_chunks_are_400_and_closed() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let bodies = [
        "zz\r\nabc\r\n0\r\n\r\n",
        "2;\nxx\r\n28\r\n0\r\n\r\n",
        "\r\n\r\n",
        "3;a=\0\r\nabc\r\n0\r\n\r\n",
        "3\nabc\n0\n\n",
        "3\r\nabc\n0\r\n\r\n",
        "3 \r\nabc\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "0\r\n\n",
        "0\r\nX\r\n\r\n",
        "0\r\nX: a\rb\r\n\r\n",
        "fffffffffffffffff\r\nabc",
    ];
    let requests: Vec<_> = bodies.iter().map(|body| format!("{head}{body}{smuggled}")).collect();
    all_refused(400, &requests.iter().map(String::as_str).collect::<Vec<_>>()).await;
    bounded(async {
        // The same when the body comes behind its head, and a byte at a time.
        let edge = edge(settings(), mirror).await;
        for body in bodies {
            let mut wire = Wire::connect(edge.local_addr()).await;
            wire.send(head).await;
            for byte in body.bytes().chain(smuggled.bytes()) {
                // Once it is refused it may be closed.
                let _ = wire.tcp.write_all(&[byte]).await;
            }
            let answer = wire.message().await.expect("an answer");
            assert_eq!((answer.status(), answer.field("connection")), (400, Some("close")), "{body:?}");
            assert!(wire.is_closed().await, "{body:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9112_7_1_extensions_and_trailers_are_read_over_and_the_next_request_is_found() {
    bounded(async {
        let (mirroring, echo) = (edge(settings(), mirror).await, edge(settings(), mirror).await);
        let (relaying, _results) = relay_edge(settings(), echo.local_addr()).await;
        let request = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
                       3 ; a = b;c=\"d;\\\"e\"\r\nabc\r\n00000B\r\n\r\n\r\n\r\n0\r\n\r\n\r\n000;x\r\nDigest: y\r\n\r\n";
        for edge in [&mirroring, &relaying] {
            let mut whole = Wire::connect(edge.local_addr()).await;
            for _ in 0..2 {
                whole.send(format!("{request}{request}")).await;
                for _ in 0..2 {
                    let answer = whole.message().await.expect("an answer");
                    assert!(answer.text().ends_with("abc\r\n\r\n\r\n0\r\n\r\n"), "{:?}", answer.text());
                }
            }
            let mut single = Wire::connect(edge.local_addr()).await;
            for byte in request.repeat(2).bytes() {
                single.send([byte]).await;
            }
            for _ in 0..2 {
                let answer = single.message().await.expect("an answer");
                assert!(answer.text().ends_with("abc\r\n\r\n\r\n0\r\n\r\n"), "{:?}", answer.text());
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9112_2_2_lines_of_a_head_end_in_crlf() {
    all_refused(
        400,
        &[
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: a\rY: b\r\n\r\n",
            "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9112_5_malformed_fields_are_400() {
    all_refused(
        400,
        &[
            "GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 3\r\n\r\nabc",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n\tfolded\r\n\r\n",
            "GET / HTTP/1.1\r\n Host: a\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX\0: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9110_9_3_6_connect_and_trace_are_501() {
    all_refused(501, &["CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n"]).await;
}

/// RFC 9113 §3.1 withdrew the upgrade; RFC 9110 §7.8 lets a server ignore it. Java's `java.net.http` offers it on every plain
/// request, so a refusal would shut out its users.
#[tokio::test(flavor = "multi_thread")]
async fn rfc9113_3_1_h2c_is_never_switched_to_and_does_not_cross() {
    bounded(async {
        let upstream = edge(settings(), mirror).await;
        let (relay, _results) = relay_edge(settings(), upstream.local_addr()).await;
        let mut wire = Wire::connect(relay.local_addr()).await;
        for _ in 0..2 {
            let request = "POST /echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
                           HTTP2-Settings: AAMAAABk\r\nContent-Length: 3\r\n\r\nabc";
            let answer = wire.ask(request).await;
            assert_eq!(answer.status(), 200, "{}", answer.text());
            assert!(!answer.text().to_ascii_lowercase().contains("h2c"), "{}", answer.text());
            assert!(!answer.text().to_ascii_lowercase().contains("http2-settings"), "{}", answer.text());
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9112_3_illegal_request_lines_are_400() {
    all_refused(
        400,
        &[
            "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a<c> HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a\"c HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a#c HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /ü HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /\u{1} HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nBad Name: 1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signed_targets_and_bodies_arrive_as_sent() {
    bounded(async {
        let edge = edge(settings(), mirror).await;
        for target in ["/a%20b/%C3%BC?x=%2F&y=a+b&z", "/?q={a|b}^", "//a/../b/./c?", "/?a?b"] {
            let answer = ask(edge.local_addr(), format!("GET {target} HTTP/1.1\r\nHost: A.example:81\r\n\r\n")).await;
            assert!(answer.text().starts_with(&format!("GET {target}\nhost=Some(\"A.example:81\")")), "{}", answer.text());
        }
        let chunked = "POST /p HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nTrailer: 1\r\n\r\n";
        assert!(ask(edge.local_addr(), chunked).await.text().ends_with("\n\nabcdefg"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc6585_5_heads_too_large_are_431() {
    let many = "X: y\r\n".repeat(150);
    let far_too_many = "X: y\r\n".repeat(400);
    let large = "a".repeat(70_000);
    let huge = "a".repeat(3_000_000);
    all_refused(
        431,
        &[
            &format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n"),
            &format!("GET / HTTP/1.1\r\nHost: a\r\n{far_too_many}\r\n"),
            &format!("GET / HTTP/1.1\r\nHost: a\r\nX: {large}\r\n\r\n"),
            &format!("GET /{large} HTTP/1.1\r\nHost: a\r\n\r\n"),
            &format!("GET / HTTP/1.1\r\nHost: a\r\nX: {huge}\r\n\r\n"),
        ],
    )
    .await;
    bounded(async {
        // A large body behind a small head is not a large head.
        let edge = edge(settings(), mirror).await;
        let body = "b".repeat(90_000);
        let answer =
            ask(edge.local_addr(), format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 90000\r\n\r\n{body}")).await;
        assert_eq!(answer.status(), 200);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9110_15_5_9_slow_heads_are_ended_in_total_time() {
    bounded(async {
        let limits =
            EdgeSettings { header_timeout: Duration::from_secs(1), keepalive: Duration::from_secs(30), ..settings() };
        let edge = edge(limits, mirror).await;
        for answered_before in [false, true] {
            let mut wire = Wire::connect(edge.local_addr()).await;
            if answered_before {
                assert_eq!(wire.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.status(), 200);
            }
            let begun = Instant::now();
            wire.send("GET / HTTP/1.1\r\nHost: a\r\nX: ").await;
            // A byte each 100 ms: no single read is ever late.
            while wire.stays_silent(Duration::from_millis(100)).await {
                let _ = wire.tcp.write_all(b"a").await;
                assert!(begun.elapsed() < Duration::from_secs(20), "still open");
            }
            assert!(begun.elapsed() >= Duration::from_millis(900), "ended after {:?}", begun.elapsed());
            assert_eq!(wire.message().await.expect("an answer").status(), 408);
            assert!(wire.is_closed().await);
        }
        // One that says nothing at all is closed without a word.
        let mut silent = Wire::connect(edge.local_addr()).await;
        assert!(silent.is_closed().await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_are_closed_after_keepalive() {
    bounded(async {
        let limits = EdgeSettings {
            keepalive: Duration::from_secs(3),
            header_timeout: Duration::from_millis(300),
            ..settings()
        };
        let edge = edge(limits, mirror).await;
        let mut wire = Wire::connect(edge.local_addr()).await;
        assert_eq!(wire.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.status(), 200);
        // Longer than a head may take, shorter than keep-alive: the two are told apart.
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(wire.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.status(), 200);
        let idle = Instant::now();
        assert!(wire.is_closed().await);
        assert!(idle.elapsed() >= Duration::from_millis(2_900), "{:?}", idle.elapsed());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9112_9_3_a_body_not_read_closes_and_the_answer_arrives() {
    bounded(async {
        let edge =
            edge(settings(), |exchange| Box::pin(async move { exchange.respond(text(429, "later")).await })).await;
        // Small and already there, and large from a client that does not read before it has written all.
        for length in [3, 26 << 20] {
            let mut wire = Wire::connect(edge.local_addr()).await;
            wire.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n")).await;
            wire.send(vec![b'x'; length]).await;
            let answer = wire.message().await.expect("an answer");
            assert_eq!(
                (answer.status(), answer.field("connection"), answer.text().as_str()),
                (429, Some("close"), "later")
            );
            assert!(wire.is_closed().await);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9110_15_5_14_bodies_above_the_limit_are_413() {
    bounded(async {
        let edge = edge(settings(), mirror).await;
        let mut declared = Wire::connect(edge.local_addr()).await;
        let answer = declared.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999999\r\n\r\n").await;
        assert_eq!((answer.status(), answer.field("connection")), (413, Some("close")));
        let mut chunked = Wire::connect(edge.local_addr()).await;
        chunked.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        let chunk = format!("{:x}\r\n{}\r\n", 60_000, "c".repeat(60_000));
        for _ in 0..200 {
            chunked.send(&chunk).await;
        }
        assert_eq!(chunked.message().await.expect("an answer").status(), 413);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_bodies_end_in_total_time() {
    bounded(async {
        let limits = EdgeSettings { body_timeout: Duration::from_secs(1), ..settings() };
        let edge = edge(limits, mirror).await;
        let mut wire = Wire::connect(edge.local_addr()).await;
        let begun = Instant::now();
        wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n").await;
        while wire.stays_silent(Duration::from_millis(100)).await {
            let _ = wire.tcp.write_all(b"a").await;
            assert!(begun.elapsed() < Duration::from_secs(20), "still open");
        }
        let answer = wire.message().await.expect("an answer");
        assert_eq!((answer.status(), answer.text().as_str()), (400, "the body took too long"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9110_10_1_1_continue_is_sent_only_if_the_body_is_read() {
    bounded(async {
        let edge = edge(settings(), |exchange| {
            Box::pin(async move {
                if exchange.path() == "/refused" {
                    return exchange.respond(text(401, "no")).await;
                }
                mirror(exchange).await;
            })
        })
        .await;
        let request = |path: &str| {
            format!("POST {path} HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        };
        let mut wire = Wire::connect(edge.local_addr()).await;
        wire.send(request("/read")).await;
        assert_eq!(wire.head().await.expect("an interim answer"), "HTTP/1.1 100 Continue");
        assert!(wire.ask("abc").await.text().ends_with("\n\nabc"));
        let refused = wire.ask(request("/refused")).await;
        assert_eq!((refused.status(), refused.field("connection")), (401, Some("close")));
    })
    .await;
    all_refused(417, &["POST / HTTP/1.1\r\nHost: a\r\nExpect: magic\r\nContent-Length: 0\r\n\r\n"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9112_9_3_connections_go_on_or_end_as_asked() {
    bounded(async {
        let edge = edge(settings(), mirror).await;
        let mut wire = Wire::connect(edge.local_addr()).await;
        for _ in 0..3 {
            let answer = wire.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc").await;
            assert_eq!((answer.status(), answer.field("connection")), (200, Some("keep-alive")));
        }
        let answer = wire.ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert_eq!(answer.field("connection"), Some("close"));
        assert!(wire.is_closed().await);
        let mut old = Wire::connect(edge.local_addr()).await;
        assert_eq!(old.ask("GET / HTTP/1.0\r\n\r\n").await.field("connection"), Some("close"));
        assert!(old.is_closed().await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9112_9_3_2_pipelined_requests_are_answered_in_order() {
    bounded(async {
        let echo = server(|mut wire| async move {
            while let Some(head) = wire.head().await {
                let body = head.lines().next().unwrap_or_default().to_owned();
                tokio::time::sleep(Duration::from_millis(20)).await;
                wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
            }
        })
        .await;
        let (relaying, _results) = relay_edge(settings(), echo).await;
        let mirroring = edge(settings(), mirror).await;
        for addr in [mirroring.local_addr(), relaying.local_addr()] {
            let mut wire = Wire::connect(addr).await;
            let requests: String = (0..20).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
            wire.send(requests).await;
            for n in 0..20 {
                let answer = wire.message().await.expect("an answer");
                assert!(answer.text().starts_with(&format!("GET /{n}")), "{n}: {}", answer.text());
            }
        }
        // An illegal line is seen behind a legal request, too.
        let mut wire = Wire::connect(mirroring.local_addr()).await;
        wire.send("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /a b HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(wire.message().await.expect("an answer").status(), 200);
        assert_eq!(wire.message().await.expect("an answer").status(), 400);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9110_6_4_1_head_204_and_304_have_no_body() {
    bounded(async {
        let upstream = server(|mut wire| async move {
            while let Some(head) = wire.head().await {
                let answer = if head.starts_with("HEAD") {
                    "HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n"
                } else if head.contains(" /204") {
                    "HTTP/1.1 204 No Content\r\n\r\n"
                } else {
                    "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\nETag: \"x\"\r\n\r\n"
                };
                wire.send(answer).await;
            }
        })
        .await;
        let own = edge(settings(), |exchange| {
            Box::pin(async move {
                let status =
                    if exchange.method() == "HEAD" { 200 } else { exchange.path()[1..].parse().unwrap_or(200) };
                exchange.respond(text(status, if status == 200 { "x".repeat(77) } else { String::new() })).await;
            })
        })
        .await;
        let (relaying, _results) = relay_edge(settings(), upstream).await;
        for addr in [own.local_addr(), relaying.local_addr()] {
            let mut wire = Wire::connect(addr).await;
            for (request, length) in [
                ("HEAD /", Some("77")),
                ("GET /204", None),
                ("GET /304", if addr == own.local_addr() { None } else { Some("9") }),
            ] {
                wire.send(format!("{request} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
                let head = crate::support::net::Message { head: wire.head().await.expect("a head"), body: Vec::new() };
                assert_eq!(head.field("content-length"), length, "{request}: {}", head.head);
                assert_eq!(head.field("transfer-encoding"), None, "{request}");
                // The next answer begins where this head ended, so nothing may follow it.
                assert!(wire.stays_silent(Duration::from_millis(50)).await, "{request} has a body: {:?}", wire.buffer);
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9110_5_3_values_and_order_of_repeated_fields_survive() {
    bounded(async {
        let upstream = server(|mut wire| async move {
            while let Some(head) = wire.head().await {
                let tags: Vec<_> = head.lines().filter(|line| line.to_lowercase().starts_with("x-tag")).map(str::to_owned).collect();
                let body = tags.join("|").to_lowercase();
                let head = "HTTP/1.1 200 OK\r\nSet-Cookie: b=2; Path=/\r\nX-Between: 1\r\nSet-Cookie: a=1, c\r\nX-Raw: \u{e9}\r\n";
                wire.send(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len())).await;
            }
        })
        .await;
        let (edge, _results) = relay_edge(settings(), upstream).await;
        let answer = ask(edge.local_addr(), "GET / HTTP/1.1\r\nHost: a\r\nX-Tag: 2\r\nx-tag: 1,  3\r\n\r\n").await;
        assert_eq!(answer.text(), "x-tag: 2|x-tag: 1,  3");
        assert_eq!(answer.all("set-cookie"), ["b=2; Path=/", "a=1, c"]);
        assert_eq!(answer.field("x-raw"), Some("\u{e9}"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forwarded_headers_are_believed_from_trusted_peers_only() {
    bounded(async {
        let upstream = server(|mut wire| async move {
            while let Some(head) = wire.head().await {
                wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len())).await;
            }
        })
        .await;
        let request = "GET / HTTP/1.1\r\nHost: sidecar:1\r\nX-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Proto: https\r\nForwarded: for=9.9.9.9\r\n\r\n";
        let (stranger, _results) = relay_edge(settings(), upstream).await;
        let seen = ask(stranger.local_addr(), request).await.text().to_lowercase();
        assert!(seen.contains("x-forwarded-for: 127.0.0.1\r\n") && seen.contains("x-forwarded-proto: http\r\n"), "{seen}");
        assert!(seen.contains("x-forwarded-host: sidecar:1") && !seen.contains("9.9.9.9"), "{seen}");
        assert!(seen.contains(&format!("host: {upstream}")), "{seen}");
        let trusting = EdgeSettings { trusted_peers: TrustedPeers::parse(&["127.0.0.0/8"]).expect("peers"), ..settings() };
        let (trusted, _results) = relay_edge(trusting, upstream).await;
        let seen = ask(trusted.local_addr(), request).await.text().to_lowercase();
        assert!(seen.contains("x-forwarded-for: 9.9.9.9, 127.0.0.1\r\n") && seen.contains("x-forwarded-proto: https\r\n"), "{seen}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_that_panic_or_say_nothing_become_500() {
    bounded(async {
        let edge = edge(settings(), |exchange| {
            Box::pin(async move {
                match exchange.path() {
                    "/panic" => panic!("{ON_PURPOSE}"),
                    "/late-panic" => {
                        exchange.respond(text(200, "answered")).await;
                        panic!("{ON_PURPOSE}, after the answer");
                    }
                    _ => {}
                }
            })
        })
        .await;
        let mut wire = Wire::connect(edge.local_addr()).await;
        assert_eq!(wire.ask("GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n").await.status(), 500);
        let answer = wire.ask("GET /panic HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!((answer.status(), answer.field("connection")), (500, Some("close")));
        assert!(wire.is_closed().await);
        let mut wire = Wire::connect(edge.local_addr()).await;
        assert_eq!(wire.ask("GET /late-panic HTTP/1.1\r\nHost: a\r\n\r\n").await.status(), 200);
        assert!(wire.is_closed().await);
        assert_eq!(ask(edge.local_addr(), "GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n").await.status(), 500);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_and_requests_at_once_are_bounded() {
    bounded(async {
        let limits = EdgeSettings { max_connections: 3, max_in_flight: 1, ..settings() };
        let gate = Arc::new(Semaphore::new(0));
        let held = gate.clone();
        let edge = edge(limits, move |exchange| {
            let held = held.clone();
            Box::pin(async move {
                if exchange.path() == "/slow" {
                    held.acquire().await.expect("a permit").forget();
                }
                let peer = exchange.peer().to_string();
                exchange.respond(text(200, peer)).await;
            })
        })
        .await;
        let (mut a, mut b) = (Wire::connect(edge.local_addr()).await, Wire::connect(edge.local_addr()).await);
        a.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
        crate::support::net::until("one in flight", || edge.in_flight() == 1).await;
        let shed = b.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!((shed.status(), shed.field("retry-after")), (503, Some("1")));
        gate.add_permits(1);
        let answer = a.message().await.expect("an answer");
        assert_eq!(answer.text(), a.tcp.local_addr().expect("addr").to_string());
        crate::support::net::until("none in flight", || edge.in_flight() == 0).await;
        // A fourth one takes the place of that which is idle for longest.
        a.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
        crate::support::net::until("one in flight", || edge.in_flight() == 1).await;
        let (mut c, mut d) = (Wire::connect(edge.local_addr()).await, Wire::connect(edge.local_addr()).await);
        let mut e = Wire::connect(edge.local_addr()).await;
        assert!(c.is_closed().await, "the one that waits for longest is kept");
        gate.add_permits(1);
        assert_eq!(a.message().await.expect("an answer").status(), 200, "a request was cut for a new connection");
        crate::support::net::until("three connections", || edge.connections() == 3).await;
        assert_eq!(e.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.status(), 200);
        assert_eq!(d.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.status(), 200);
        drop((a, b, d, e));
        crate::support::net::until("all gone", || edge.connections() == 0).await;
        assert_eq!(ask(edge.local_addr(), "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.status(), 200);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_have_waited_go_on_and_a_drain_ends_them_at_once() {
    bounded(async {
        let edge = edge(settings(), mirror).await;
        let (mut wire, mut other) = (Wire::connect(edge.local_addr()).await, Wire::connect(edge.local_addr()).await);
        let post = "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
        for cut in [0, 1, 20, post.len() - 1] {
            // By then it has given back what only requests need.
            tokio::time::sleep(Duration::from_millis(600)).await;
            let (first, second) = post.split_at(cut);
            wire.send(first).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(wire.ask(second).await.status(), 200, "cut at {cut}");
            assert_eq!(wire.ask(post).await.status(), 200, "and again at once");
        }
        tokio::time::sleep(Duration::from_millis(600)).await;
        wire.send([post, post].concat()).await;
        assert_eq!(wire.message().await.expect("the first of two").status(), 200);
        assert_eq!(wire.message().await.expect("the second of two").status(), 200);
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(wire.ask("GET / HTTP/1.1\r\n\r\n").await.status(), 400, "what is judged is judged as ever");
        assert_eq!(other.ask(post).await.status(), 200);
        tokio::time::sleep(Duration::from_millis(600)).await;
        let drained = edge.drain(Duration::from_secs(60)).await;
        assert_eq!((drained.in_flight_cut, drained.tunnels_cut), (0, 0));
        assert!(other.is_closed().await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_not_read_are_given_up() {
    bounded(async {
        let limits = EdgeSettings { write_timeout: Duration::from_millis(500), ..settings() };
        let edge =
            edge(limits, |exchange| Box::pin(async move { exchange.respond(text(200, pattern(40 << 20))).await }))
                .await;
        let mut wire = Wire::connect(edge.local_addr()).await;
        wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        crate::support::net::until("in flight", || edge.in_flight() == 1).await;
        crate::support::net::until("given up", || edge.connections() == 0).await;
    })
    .await;
}
