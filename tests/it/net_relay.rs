//! Streaming through, what became of creates, and draining.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ringfence::net::{
    Drained, EdgeSettings, HostRule, RelayError, RelayTarget, SendResult, Upstream, UpstreamError, UpstreamSettings,
    relay, relay_with_body,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt};
use tokio::sync::Semaphore;

use crate::support::net::{Wire, ask, bounded, edge, mirror, pattern, relay_edge, server, soon, text, until};

const MB26: usize = 26 << 20;

fn settings() -> EdgeSettings {
    EdgeSettings::default()
}

/// An upstream that answers with what it gets, while it gets it.
async fn echo() -> SocketAddr {
    server(|mut wire| async move {
        while let Some(head) = wire.head().await {
            let head = head.to_lowercase();
            wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            if head.contains("transfer-encoding: chunked") {
                while let Some(chunk) = wire.chunk().await {
                    let piece = [format!("{:x}\r\n", chunk.len()).as_bytes(), &chunk, b"\r\n"].concat();
                    if wire.tcp.write_all(&piece).await.is_err() {
                        return;
                    }
                    if chunk.is_empty() {
                        break;
                    }
                }
                continue;
            }
            let length = head
                .split("content-length: ")
                .nth(1)
                .and_then(|rest| rest.lines().next()?.parse::<usize>().ok())
                .unwrap_or(0);
            let mut left = length;
            while left > 0 {
                let Some(piece) = wire.exactly(left.min(60_000)).await else {
                    return;
                };
                left -= piece.len();
                wire.send([format!("{:x}\r\n", piece.len()).as_bytes(), &piece, b"\r\n"].concat()).await;
            }
            wire.send("0\r\n\r\n").await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_26_mb_are_echoed_while_they_are_sent() {
    bounded(async {
        let (edge, mut results) = relay_edge(settings(), echo().await).await;
        let body = pattern(MB26);
        let begun = Instant::now();
        for chunked in [false, true] {
            let mut wire = Wire::connect(edge.local_addr()).await;
            let framing =
                if chunked { "Transfer-Encoding: chunked".to_owned() } else { format!("Content-Length: {MB26}") };
            wire.send(format!("POST /up HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n")).await;
            let (read, write) = wire.tcp.into_split();
            let sent = body.clone();
            let writing = tokio::spawn(async move {
                let mut write = write;
                for piece in sent.chunks(50_000) {
                    let piece = if chunked {
                        [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()
                    } else {
                        piece.to_vec()
                    };
                    write.write_all(&piece).await.expect("send");
                }
                if chunked {
                    write.write_all(b"0\r\n\r\n").await.expect("send");
                }
                write
            });
            // Everything is in the way: the client writes on and reads nothing.
            tokio::time::sleep(Duration::from_millis(300)).await;
            let mut received = Vec::new();
            let mut read = read;
            let mut raw = Vec::new();
            while !raw.ends_with(b"\r\n0\r\n\r\n") {
                tokio::io::AsyncReadExt::read_buf(&mut read, &mut raw).await.expect("read");
            }
            let start = raw.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
            let mut rest = &raw[start..];
            loop {
                let end = rest.windows(2).position(|two| two == b"\r\n").expect("a size");
                let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).expect("text"), 16).expect("hex");
                if size == 0 {
                    break;
                }
                received.extend_from_slice(&rest[end + 2..end + 2 + size]);
                rest = &rest[end + 4 + size..];
            }
            drop(writing.await.expect("writer"));
            assert!(received == body, "{} of {MB26} bytes", received.len());
            let relayed = results.recv().await.expect("a result").expect("relayed");
            assert_eq!((relayed.response_bytes, relayed.complete), (MB26 as u64, true));
        }
        println!("26 MB echoed through the relay twice in {:?}", begun.elapsed());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_sent_events_are_not_delayed() {
    bounded(async {
        // The next event is sent once the client has this one, so one that is kept back ends the test.
        let received = Arc::new(Semaphore::new(0));
        let events = received.clone();
        let upstream = server(move |mut wire| {
            let events = events.clone();
            async move {
                wire.head().await;
                wire.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
                    .await;
                for n in 0..5 {
                    let event = format!("data: {n}\n\n");
                    wire.send(format!("{:x}\r\n{event}\r\n", event.len())).await;
                    events.acquire().await.expect("a permit").forget();
                }
                wire.send("0\r\n\r\n").await;
            }
        })
        .await;
        let (edge, _results) = relay_edge(settings(), upstream).await;
        let mut wire = Wire::connect(edge.local_addr()).await;
        wire.send("GET /events HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let head = wire.head().await.expect("a head");
        assert!(head.to_lowercase().contains("content-type: text/event-stream"), "{head}");
        for n in 0..5u32 {
            let event = tokio::time::timeout(Duration::from_secs(20), wire.chunk()).await;
            assert_eq!(event.expect("it is kept back").expect("an event"), format!("data: {n}\n\n").as_bytes());
            received.add_permits(1);
        }
        assert_eq!(wire.chunk().await.as_deref(), Some(&b""[..]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_answers_early_and_closes_is_heard() {
    bounded(async {
        let upstream = server(|mut wire| async move {
            wire.head().await;
            wire.send("HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig").await;
            // Closed with bytes unread: a reset follows the answer.
        })
        .await;
        let (edge, _results) = relay_edge(settings(), upstream).await;
        for _ in 0..20 {
            let mut wire = Wire::connect(edge.local_addr()).await;
            wire.send(format!("POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: {MB26}\r\n\r\n")).await;
            // A client that writes all before it reads.
            wire.send(vec![b'x'; MB26]).await;
            let answer = wire.message().await.expect("an answer");
            assert_eq!((answer.status(), answer.text().as_str()), (413, "big"), "{}", answer.text());
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_takes_its_relay_with_it() {
    bounded(async {
        let gone = Arc::new(AtomicUsize::new(0));
        let seen = gone.clone();
        let upstream = server(move |mut wire| {
            let seen = seen.clone();
            async move {
                let head = wire.head().await.unwrap_or_default();
                if head.contains("/streaming") {
                    wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n").await;
                }
                // Says nothing (more), and notes when the connection ends.
                wire.until_closed().await;
                seen.fetch_add(1, Ordering::SeqCst);
            }
        })
        .await;
        let (edge, mut results) = relay_edge(settings(), upstream).await;
        let requests = [
            "GET /waiting HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /streaming HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST /uploading HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf",
        ];
        for (n, request) in requests.into_iter().enumerate() {
            let mut wire = Wire::connect(edge.local_addr()).await;
            wire.send(request).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            drop(wire);
            until("the upstream request is cancelled", || gone.load(Ordering::SeqCst) == n + 1).await;
            let result = results.recv().await.expect("a result");
            match n {
                0 => assert!(matches!(result, Err(RelayError::ClientGone)), "{result:?}"),
                1 => assert!(result.is_ok_and(|relayed| !relayed.complete)),
                _ => assert!(matches!(result, Err(RelayError::BodyBroken)), "{result:?}"),
            }
        }
        until("no connection is left", || edge.connections() == 0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_cut_look_cut() {
    bounded(async {
        let upstream = server(|mut wire| async move {
            let head = wire.head().await.unwrap_or_default();
            let framing = if head.contains("/chunked") {
                "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
            } else {
                "Content-Length: 10\r\n\r\nhello"
            };
            wire.send(format!("HTTP/1.1 200 OK\r\n{framing}")).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        })
        .await;
        let (edge, mut results) = relay_edge(settings(), upstream).await;
        for path in ["/chunked", "/length"] {
            let mut wire = Wire::connect(edge.local_addr()).await;
            wire.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            assert!(wire.message().await.is_none(), "{path} looks whole");
            assert!(results.recv().await.expect("a result").is_ok_and(|relayed| !relayed.complete));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_that_cannot_be_say_why() {
    bounded(async {
        let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], ringfence::net::spare_port()));
        let (edge, mut results) = relay_edge(settings(), nobody).await;
        let mut wire = Wire::connect(edge.local_addr()).await;
        let answer = wire.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc").await;
        assert_eq!(answer.status(), 502);
        assert!(matches!(results.recv().await, Some(Err(RelayError::NotSent(UpstreamError::Connect(_))))));

        let resets = server(|mut wire| async move { drop(wire.head().await) }).await;
        let (edge, mut results) = relay_edge(settings(), resets).await;
        assert_eq!(ask(edge.local_addr(), "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.status(), 502);
        assert!(matches!(results.recv().await, Some(Err(RelayError::Broken(UpstreamError::Broken(_))))));

        let limits = EdgeSettings { body_timeout: Duration::from_millis(300), ..settings() };
        let (edge, mut results) = relay_edge(limits, echo().await).await;
        let mut wire = Wire::connect(edge.local_addr()).await;
        wire.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        let relayed = results.recv().await.expect("a result");
        // The echo answers at once and then waits for a body that does not come: nobody waits for ever.
        assert!(matches!(relayed, Err(RelayError::BodyTooSlow)) || relayed.is_ok_and(|relayed| !relayed.complete));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_read_before_are_relayed_with_one_length() {
    bounded(async {
        let upstream = server(|mut wire| async move {
            while let Some(message) = wire.message().await {
                let lengths = message.all("content-length").join(",");
                let seen = format!("{lengths} {:?} {:?} {} {}", message.field("transfer-encoding"), message.field("expect"), message.head.lines().next().unwrap_or_default(), message.text());
                wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{seen}", seen.len())).await;
            }
        })
        .await;
        let client = Upstream::new(UpstreamSettings::default()).expect("upstream");
        let edge = edge(settings(), move |exchange| {
            let client = client.clone();
            Box::pin(async move {
                let body = exchange.read_body(1000).await.expect("a body");
                let path_and_query = exchange.path_and_query().to_owned();
                let target = RelayTarget {
                    base: format!("http://{upstream}/base/").parse().expect("uri"),
                    path_and_query: &path_and_query,
                    set_headers: Vec::new(),
                    remove_headers: [].as_slice().into(),
                    host: HostRule::Preserve,
                    mount: None,
                };
                let body = Bytes::from(String::from_utf8_lossy(&body).to_uppercase());
                let relayed = relay_with_body(exchange, &client, target, body).await.expect("relayed");
                assert!(relayed.complete);
            })
        })
        .await;
        let mut wire = Wire::connect(edge.local_addr()).await;
        let chunked = "POST /p?q HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        wire.send(chunked).await;
        assert!(wire.head().await.expect("interim").contains("100"));
        let answer = wire.message().await.expect("an answer");
        assert_eq!(answer.text(), "3 None None POST /base/p?q HTTP/1.1 ABC");
        // An empty POST has a length, too (RFC 9110 §8.6).
        let answer = wire.ask("POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(answer.text(), "0 None None POST /base/p HTTP/1.1 ");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_given_up_half_way_are_remembered() {
    bounded(async {
        let upstream = server(|mut wire| async move {
            wire.head().await;
            wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
            wire.until_closed().await;
        })
        .await;
        let client = Upstream::new(UpstreamSettings::default()).expect("upstream");
        let edge = edge(settings(), move |exchange| {
            let client = client.clone();
            Box::pin(async move {
                let target = RelayTarget {
                    base: format!("http://{upstream}").parse().expect("uri"),
                    path_and_query: "/",
                    set_headers: Vec::new(),
                    remove_headers: [].as_slice().into(),
                    host: HostRule::Upstream,
                    mount: None,
                };
                let brief = Duration::from_millis(200);
                if exchange.path() == "/answer" {
                    // A relay dropped in the middle of its answer must not be followed by another one.
                    let relayed = tokio::time::timeout(brief, relay(exchange, &client, target)).await;
                    assert!(relayed.is_err() && exchange.is_answered());
                    return exchange.respond(text(504, "too late")).await;
                }
                // A body read in part must not pass for the whole, neither here nor upstream.
                let read = tokio::time::timeout(brief, exchange.read_body(1000)).await;
                assert!(read.is_err());
                let again = exchange.read_body(1000).await;
                let relayed = relay(exchange, &client, target).await;
                exchange.respond(text(400, format!("{again:?} {relayed:?}"))).await;
            })
        })
        .await;
        let mut wire = Wire::connect(edge.local_addr()).await;
        wire.send("GET /answer HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(wire.head().await.expect("a head").contains(" 200 "));
        assert_eq!(wire.chunk().await.as_deref(), Some(&b"hello"[..]));
        assert!(wire.is_closed().await, "{:?}", wire.buffer);
        let mut wire = Wire::connect(edge.local_addr()).await;
        let answer = wire.ask("POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf").await;
        assert_eq!(
            (answer.text().as_str(), answer.field("connection")),
            ("Err(Broken) Err(BodyBroken)", Some("close"))
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9112_7_1_malformed_chunks_close_relays_too() {
    bounded(async {
        let upstream = server(|mut wire| async move { wire.until_closed().await }).await;
        let (edge, mut results) = relay_edge(settings(), upstream).await;
        let mut wire = Wire::connect(edge.local_addr()).await;
        // Alone the head is answered by nobody: the relay is under way when the chunk comes that is none.
        wire.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
        assert!(wire.stays_silent(Duration::from_millis(100)).await);
        let answer = wire.ask("zz\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!((answer.status(), answer.field("connection")), (400, Some("close")));
        assert!(matches!(results.recv().await, Some(Err(RelayError::BodyBroken))));
        assert!(wire.is_closed().await);
    })
    .await;
}

fn create(addr: SocketAddr) -> http::Request<Bytes> {
    http::Request::post(format!("http://{addr}/calls")).body(Bytes::from_static(b"To=1")).expect("request")
}

#[tokio::test(flavor = "multi_thread")]
async fn creates_are_sent_once_and_classified() {
    bounded(async {
        let client = Upstream::new(UpstreamSettings {
            create_timeout: Duration::from_millis(700),
            ..UpstreamSettings::default()
        })
        .expect("upstream");
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = requests.clone();
        let upstream = server(move |mut wire| {
            let counted = counted.clone();
            async move {
                let mut first = true;
                while let Some(message) = wire.message().await {
                    counted.fetch_add(1, Ordering::SeqCst);
                    match message.field("x-do") {
                        // Reset after the request came.
                        Some("reset") => return,
                        Some("cut") => {
                            return wire.send("HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\n{\"sid\"").await;
                        }
                        Some("garbage") => return wire.send("SMTP ready\r\n\r\n").await,
                        Some("silent") => wire.until_closed().await,
                        Some("large") => {
                            wire.send(format!(
                                "HTTP/1.1 201 Created\r\nContent-Length: 5000\r\n\r\n{}",
                                "x".repeat(5000)
                            ))
                            .await
                        }
                        _ => wire.send("HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok").await,
                    }
                    // A second request on this connection is never read: it closes under it.
                    if !std::mem::take(&mut first) || message.field("x-do") == Some("then-close") {
                        return;
                    }
                }
            }
        })
        .await;
        let with = |what: &'static str| {
            let mut request = create(upstream);
            request.headers_mut().insert("x-do", http::HeaderValue::from_static(what));
            request
        };
        for (what, sent) in [("reset", 1), ("cut", 2), ("garbage", 3), ("silent", 4), ("large", 5)] {
            let outcome = client.create(with(what), 1000, soon()).await;
            assert!(matches!(outcome, SendResult::Unknown(_)), "{what}: {outcome:?}");
            assert_eq!(requests.load(Ordering::SeqCst), sent, "{what} was sent again");
            match (what, outcome) {
                ("silent", SendResult::Unknown(UpstreamError::Timeout(_)))
                | ("large", SendResult::Unknown(UpstreamError::TooLarge { limit: 1000 })) => {}
                ("silent" | "large", other) => panic!("{other:?}"),
                _ => {}
            }
        }
        let SendResult::Answered(answer) = client.create(with("answer"), 1000, soon()).await else {
            panic!("no answer")
        };
        assert_eq!((answer.status().as_u16(), answer.body().as_ref()), (201, &b"ok"[..]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_whose_time_has_passed_is_not_sent() {
    bounded(async {
        let whole = Arc::new(AtomicUsize::new(0));
        let counted = whole.clone();
        let upstream = server(move |mut wire| {
            let counted = counted.clone();
            async move {
                while wire.message().await.is_some() {
                    counted.fetch_add(1, Ordering::SeqCst);
                    wire.send("HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok").await;
                }
            }
        })
        .await;
        let client = Upstream::new(UpstreamSettings::default()).expect("upstream");
        // On a new connection, and on one that is there already; with a body, and without.
        for warm in [false, true] {
            if warm {
                assert!(matches!(client.create(create(upstream), 1000, soon()).await, SendResult::Answered(_)));
            }
            let before = whole.load(Ordering::SeqCst);
            for request in [create(upstream), create(upstream).map(|_| Bytes::new())] {
                let outcome = client.create(request, 1000, Duration::ZERO).await;
                assert!(matches!(outcome, SendResult::NotSent(UpstreamError::Late)), "{outcome:?}");
            }
            assert_eq!(whole.load(Ordering::SeqCst), before);
        }
        assert!(matches!(client.create(create(upstream), 1000, soon()).await, SendResult::Answered(_)), "it goes on");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn creates_on_stale_connections_are_unknown_or_sent_on_a_fresh_one() {
    bounded(async {
        // Keeps connections open after its answer, and closes them the moment the next request arrives.
        let answered = Arc::new(AtomicUsize::new(0));
        let counted = answered.clone();
        let upstream = server(move |mut wire| {
            let counted = counted.clone();
            async move {
                if wire.message().await.is_some() {
                    counted.fetch_add(1, Ordering::SeqCst);
                    wire.send("HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok").await;
                    wire.stays_silent(Duration::from_secs(30)).await;
                }
            }
        })
        .await;
        let client = Upstream::new(UpstreamSettings::default()).expect("upstream");
        assert!(matches!(client.create(create(upstream), 1000, soon()).await, SendResult::Answered(_)));
        // A connection goes back to its pool a moment after its answer was read.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let outcome = client.create(create(upstream), 1000, soon()).await;
        assert!(matches!(outcome, SendResult::Unknown(_)), "{outcome:?}");
        assert_eq!(answered.load(Ordering::SeqCst), 1, "a create was sent twice");

        // A short pool idle time takes a connection out of use before its provider does.
        let brief =
            UpstreamSettings { create_pool_idle_timeout: Duration::from_millis(100), ..UpstreamSettings::default() };
        let client = Upstream::new(brief).expect("upstream");
        for _ in 0..2 {
            assert!(matches!(client.create(create(upstream), 1000, soon()).await, SendResult::Answered(_)));
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn creates_that_never_left_are_proven_so() {
    bounded(async {
        let client = Upstream::new(UpstreamSettings {
            connect_timeout: Duration::from_millis(500),
            ..UpstreamSettings::default()
        })
        .expect("upstream");
        let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], ringfence::net::spare_port()));
        let plain = server(|mut wire| async move { wire.send("this is not TLS\r\n\r\n").await }).await;
        let mute = server(|mut wire| async move { wire.until_closed().await }).await;
        let request = |uri: String| http::Request::post(uri).body(Bytes::new()).expect("request");
        for uri in [
            format!("http://{nobody}/"),
            "http://name.invalid/".to_owned(),
            format!("https://{plain}/"),
            format!("https://{mute}/"),
            "/relative".to_owned(),
            "ftp://host/".to_owned(),
        ] {
            let outcome = client.create(request(uri.clone()), 1000, soon()).await;
            assert!(matches!(outcome, SendResult::NotSent(_)), "{uri}: {outcome:?}");
        }
        let error =
            client.fetch(request(format!("http://{nobody}/")), 10, Duration::from_secs(1)).await.expect_err("nobody");
        assert!(error.not_sent(), "{error}");
        let error =
            client.fetch(request(format!("http://{mute}/")), 10, Duration::from_millis(200)).await.expect_err("mute");
        assert!(matches!(error, UpstreamError::Timeout(_)), "{error}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_finishes_what_is_in_flight_and_closes_what_is_idle() {
    bounded(async {
        let gate = Arc::new(Semaphore::new(0));
        let held = gate.clone();
        let edge = edge(settings(), move |exchange| {
            let held = held.clone();
            Box::pin(async move {
                if exchange.path() == "/slow" {
                    held.acquire().await.expect("a permit").forget();
                }
                exchange.respond(text(200, "done")).await;
            })
        })
        .await;
        let mut idle = Wire::connect(edge.local_addr()).await;
        assert_eq!(idle.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.status(), 200);
        let mut fresh = Wire::connect(edge.local_addr()).await;
        let mut slow = Vec::new();
        for _ in 0..5 {
            let mut wire = Wire::connect(edge.local_addr()).await;
            wire.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
            slow.push(wire);
        }
        until("five in flight", || edge.in_flight() == 5).await;
        until("all connected", || edge.connections() == 7).await;
        // Idle connections are closed while requests are in flight, which end only after that.
        let clients = tokio::spawn(async move {
            assert!(idle.is_closed().await && fresh.is_closed().await);
            gate.add_permits(slow.len());
            for mut wire in slow {
                let answer = wire.message().await.expect("an answer");
                assert_eq!((answer.status(), answer.field("connection")), (200, Some("close")));
            }
        });
        let drained = edge.drain(Duration::from_secs(60)).await;
        assert_eq!(drained, Drained { in_flight_cut: 0, tunnels_cut: 0 });
        clients.await.expect("clients");
        until("nobody accepts", || std::net::TcpStream::connect(edge.local_addr()).is_err()).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_cuts_what_outlives_its_grace_and_says_so() {
    bounded(async {
        let edge = edge(settings(), |_| Box::pin(std::future::pending())).await;
        let mut wire = Wire::connect(edge.local_addr()).await;
        wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        until("in flight", || edge.in_flight() == 1).await;
        let begun = Instant::now();
        let drained = edge.drain(Duration::from_millis(300)).await;
        assert_eq!(drained, Drained { in_flight_cut: 1, tunnels_cut: 0 });
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        assert!(wire.is_closed().await);
        assert_eq!(edge.connections(), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_keep_their_case_and_order_both_ways() {
    bounded(async {
        let (seen, mut seen_by_upstream) = tokio::sync::mpsc::unbounded_channel();
        let upstream = server(move |mut wire| {
            let seen = seen.clone();
            async move {
                while let Some(head) = wire.head().await {
                    let _ = seen.send(head);
                    wire.send(
                        "HTTP/1.1 200 Fine With Me\r\nX-ZeBra: 1\r\ndate: yesterday\r\nCONTENT-length: 2\r\nx-Apple: 2\r\n\r\nok",
                    )
                    .await;
                }
            }
        })
        .await;
        let (edge, _results) = relay_edge(settings(), upstream).await;
        let mut wire = Wire::connect(edge.local_addr()).await;
        for _ in 0..2 {
            wire.send("GET / HTTP/1.1\r\nX-Zulu: 1\r\nhOsT: a\r\nx-UPPER-lower: 2\r\nConnection: keep-alive\r\nACCEPT: 3\r\n\r\n")
                .await;
            let sent = seen_by_upstream.recv().await.expect("a request");
            let names: Vec<&str> = sent.lines().skip(1).filter_map(|line| Some(line.split_once(':')?.0)).collect();
            assert_eq!(names[..4], ["X-Zulu", "hOsT", "x-UPPER-lower", "ACCEPT"], "{sent}");
            let head = wire.head().await.expect("a head");
            let names: Vec<&str> = head.lines().skip(1).filter_map(|line| Some(line.split_once(':')?.0)).collect();
            assert!(head.starts_with("HTTP/1.1 200 Fine With Me\r\n"), "{head}");
            assert_eq!(names[..4], ["X-ZeBra", "date", "CONTENT-length", "x-Apple"], "{head}");
            assert!(head.contains("date: yesterday"), "{head}");
            assert_eq!(std::mem::take(&mut wire.buffer), b"ok");
        }
    })
    .await;
}

/// RFC 9110 §6.5: passed on where the other side takes them.
#[tokio::test(flavor = "multi_thread")]
async fn trailers_go_to_who_asks_for_them() {
    bounded(async {
        let upstream = server(|mut wire| async move {
            while let Some(head) = wire.head().await {
                // What the client sent after its body, as an answer's field.
                let mut trailer = String::new();
                if head.to_lowercase().contains("transfer-encoding: chunked") {
                    while !wire.buffer.ends_with(b"0\r\nX-Sum: 7\r\n\r\n") && !wire.buffer.ends_with(b"0\r\nx-sum: 7\r\n\r\n") {
                        let length = wire.buffer.len();
                        wire.readable().await;
                        let mut more = [0; 256];
                        if let Ok(read) = wire.tcp.try_read(&mut more) {
                            wire.buffer.extend_from_slice(&more[..read]);
                        }
                        assert!(wire.buffer.len() < 4096 && wire.buffer.len() >= length);
                    }
                    wire.buffer.clear();
                    trailer = "X-Heard: 7\r\n".to_owned();
                }
                let asks = head.to_lowercase().contains("\nte: trailers");
                wire.send(format!(
                    "HTTP/1.1 200 OK\r\nTrailer: X-End\r\nX-Asked: {asks}\r\n{trailer}Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-End: 1\r\n\r\n"
                ))
                .await;
            }
        })
        .await;
        let (edge, _results) = relay_edge(settings(), upstream).await;
        for (fields, asked) in [("TE: trailers\r\nConnection: TE\r\n", true), ("", false), ("TE: trailers\r\n", false)] {
            let mut wire = Wire::connect(edge.local_addr()).await;
            wire.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).await;
            let head = wire.head().await.expect("a head");
            assert!(head.contains(&format!("X-Asked: {asked}")), "{head}");
            let end = if fields.is_empty() { &b"0\r\n\r\n"[..] } else { b"0\r\nx-end: 1\r\n\r\n" };
            until("the answer is whole", || wire.buffer.ends_with(b"\r\n\r\n") || wire.tcp.try_read_buf(&mut wire.buffer).is_ok_and(|read| read == 0)).await;
            let whole = String::from_utf8_lossy(&wire.buffer).to_lowercase().into_bytes();
            assert!(whole.ends_with(end), "{fields:?}: {:?}", String::from_utf8_lossy(&whole));
        }
        let mut wire = Wire::connect(edge.local_addr()).await;
        wire.send(
            "POST / HTTP/1.1\r\nHost: a\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n",
        )
        .await;
        let head = wire.head().await.expect("a head");
        assert!(head.contains("X-Heard: 7"), "{head}");
    })
    .await;
}

/// A client that uploads while it is answered, and does not read for a while: the end of its body is not held back with its answer.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_an_upload_passes_while_the_answer_is_not_read() {
    bounded(async {
        let (ended, mut has_ended) = tokio::sync::mpsc::unbounded_channel();
        let upstream = server(move |mut wire| {
            let ended = ended.clone();
            async move {
                wire.head().await;
                let (mut reads, mut writes) = wire.tcp.into_split();
                tokio::spawn(async move {
                    let _ = writes.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
                    let piece = [b"100000\r\n".as_slice(), &pattern(1 << 20), b"\r\n"].concat();
                    for _ in 0..24 {
                        let _ = writes.write_all(&piece).await;
                    }
                    let _ = writes.write_all(b"0\r\n\r\n").await;
                    std::future::pending::<()>().await;
                });
                let mut seen = Vec::new();
                while !seen.ends_with(b"0\r\n\r\n") && reads.read_buf(&mut seen).await.is_ok_and(|read| read > 0) {}
                let _ = ended.send(());
            }
        })
        .await;
        let (edge, _results) = relay_edge(settings(), upstream).await;
        let mut wire = Wire::connect(edge.local_addr()).await;
        wire.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
        // Until what is written to the client fills every buffer on the way.
        tokio::time::sleep(Duration::from_millis(700)).await;
        wire.send("3\r\ndef\r\n0\r\n\r\n").await;
        let soon = tokio::time::timeout(Duration::from_secs(20), has_ended.recv()).await;
        assert!(soon.is_ok(), "the upstream waits for the body's end");
        let answer = wire.message().await.expect("an answer");
        assert_eq!(answer.body.len(), 24 << 20);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_unknown_length_pass_whatever_the_method() {
    bounded(async {
        let (edge, mut results) = relay_edge(settings(), edge(settings(), mirror).await.local_addr()).await;
        for method in ["GET", "DELETE", "OPTIONS", "POST"] {
            let request =
                format!("{method} / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
            let answer = ask(edge.local_addr(), request).await;
            assert!(answer.text().ends_with("\n\nabc"), "{method}: {}", answer.text());
            assert!(results.recv().await.expect("a result").is_ok());
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_cannot_be_handed_on_are_502() {
    bounded(async {
        for answer in [
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nxx",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nxx\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, identity\r\n\r\n2\r\nxx\r\n0\r\n\r\n",
        ] {
            let upstream = server(move |mut wire| async move {
                wire.head().await;
                wire.send(answer).await;
            })
            .await;
            let (edge, _results) = relay_edge(settings(), upstream).await;
            assert_eq!(ask(edge.local_addr(), "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.status(), 502, "{answer:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_before_its_tunnel_is_there_takes_the_handshake_with_it() {
    bounded(async {
        let (gone, mut is_gone) = tokio::sync::mpsc::unbounded_channel();
        let upstream = server(move |mut wire| {
            let gone = gone.clone();
            async move {
                wire.head().await;
                wire.until_closed().await;
                let _ = gone.send(());
            }
        })
        .await;
        let (edge, mut results) = relay_edge(settings(), upstream).await;
        let mut wire = Wire::connect(edge.local_addr()).await;
        wire.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly").await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(wire);
        assert!(tokio::time::timeout(Duration::from_secs(10), is_gone.recv()).await.is_ok());
        assert!(matches!(results.recv().await, Some(Err(RelayError::ClientGone))));
    })
    .await;
}
