//! WebSocket tunnels. pingora's own pass-through loses some and a select loop dead-locks, so: many, and large.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use ringfence::net::{Drained, EdgeSettings, RelayError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;

use crate::support::net::{Wire, ask, bounded, pattern, relay_edge, server, until};

const HANDSHAKE: &str = "GET /ws?x=1 HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: p\r\n";

/// Switches at once and echoes bytes, in the same write as the 101 where it can: the upstream that pingora's issue 946 is about.
async fn raw_echo() -> SocketAddr {
    server(|mut wire| async move {
        let Some(head) = wire.head().await else { return };
        assert!(head.to_lowercase().contains("sec-websocket-key: dghlihnhbxbszsbub25jzq=="), "{head}");
        let early = std::mem::take(&mut wire.buffer);
        let mut first = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: p\r\n\r\nhello".to_vec();
        first.extend_from_slice(&early);
        if wire.tcp.write_all(&first).await.is_err() {
            return;
        }
        let (mut read, mut write) = wire.tcp.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await
}

async fn websocket_echo() -> SocketAddr {
    server(|wire| async move {
        let Ok(mut socket) = tokio_tungstenite::accept_async(wire.tcp).await else {
            return;
        };
        while let Some(Ok(message)) = socket.next().await {
            if message.is_close() || socket.send(message).await.is_err() {
                return;
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc6455_4_the_handshake_and_the_bytes_around_it_arrive() {
    bounded(async {
        let (edge, mut results) = relay_edge(EdgeSettings::default(), raw_echo().await).await;
        let mut wire = Wire::connect(edge.local_addr()).await;
        // The first frame travels with the handshake, in both directions.
        wire.send(format!("{HANDSHAKE}\r\nEARLY")).await;
        let head = wire.head().await.expect("a head").to_lowercase();
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        for field in ["upgrade: websocket", "connection: upgrade", "sec-websocket-protocol: p"] {
            assert_eq!(head.matches(field).count(), 1, "{field} in {head}");
        }
        assert_eq!(wire.exactly(10).await.as_deref(), Some(&b"helloEARLY"[..]));
        assert_eq!((edge.tunnels(), edge.in_flight()), (1, 0));
        wire.send("later").await;
        assert_eq!(wire.exactly(5).await.as_deref(), Some(&b"later"[..]));
        drop(wire);
        let relayed = results.recv().await.expect("a result").expect("relayed");
        assert_eq!((relayed.status.as_u16(), relayed.response_bytes, relayed.complete), (101, 15, true));
        until("the tunnel is gone", || edge.tunnels() == 0 && edge.connections() == 0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_upgrades_lose_none() {
    bounded(async {
        let (edge, _results) = relay_edge(EdgeSettings::default(), websocket_echo().await).await;
        let addr = edge.local_addr();
        let next = Arc::new(AtomicUsize::new(0));
        let begun = Instant::now();
        let clients: Vec<_> = (0..64)
            .map(|_| {
                let next = next.clone();
                tokio::spawn(async move {
                    let mut lost = 0;
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= 10_000 {
                            return lost;
                        }
                        let text = format!("message {n}");
                        let echoed = async {
                            let tcp = tokio::net::TcpStream::connect(addr).await.ok()?;
                            let (mut socket, _) = tokio_tungstenite::client_async("ws://a/ws", tcp).await.ok()?;
                            socket.send(Message::text(&text)).await.ok()?;
                            socket.next().await?.ok()?.into_text().ok().map(|echoed| echoed.as_str() == text)
                        };
                        lost += usize::from(echoed.await != Some(true));
                    }
                })
            })
            .collect();
        let mut lost = 0;
        for client in clients {
            lost += client.await.expect("a client");
        }
        println!("10000 upgrades with 64 at once in {:?}, {lost} lost", begun.elapsed());
        assert_eq!(lost, 0);
        until("all tunnels are gone", || edge.tunnels() == 0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_writes_26_mb_before_it_reads_is_not_deadlocked() {
    bounded(async {
        let (edge, mut results) = relay_edge(EdgeSettings::default(), raw_echo().await).await;
        let mut wire = Wire::connect(edge.local_addr()).await;
        wire.send(format!("{HANDSHAKE}\r\n")).await;
        wire.head().await.expect("a head");
        assert_eq!(wire.exactly(5).await.as_deref(), Some(&b"hello"[..]));
        assert!(wire.buffer.is_empty());
        let body = pattern(26 << 20);
        let begun = Instant::now();
        let (mut read, mut write) = wire.tcp.into_split();
        let sent = body.clone();
        let writing = tokio::spawn(async move {
            write.write_all(&sent).await.expect("send");
            write.shutdown().await.expect("shutdown");
            write
        });
        // Until every buffer on the way is full.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut received = Vec::with_capacity(body.len());
        read.read_to_end(&mut received).await.expect("read");
        writing.await.expect("writer");
        assert!(received == body, "{} of {} bytes", received.len(), body.len());
        println!("26 MB echoed through a tunnel in {:?}", begun.elapsed());
        let relayed = results.recv().await.expect("a result").expect("relayed");
        assert!(relayed.complete);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9110_7_8_a_refused_upgrade_is_passed_on_as_it_is() {
    bounded(async {
        let upstream = server(|mut wire| async move {
            while wire.head().await.is_some() {
                wire.send("HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic\r\nContent-Length: 2\r\n\r\nno").await;
            }
        })
        .await;
        let (edge, _results) = relay_edge(EdgeSettings::default(), upstream).await;
        let mut wire = Wire::connect(edge.local_addr()).await;
        for _ in 0..2 {
            let answer = wire.ask(format!("{HANDSHAKE}\r\n")).await;
            assert_eq!((answer.status(), answer.text().as_str()), (401, "no"));
            assert_eq!(
                (answer.field("www-authenticate"), answer.field("connection")),
                (Some("Basic"), Some("keep-alive"))
            );
        }
        assert_eq!(edge.tunnels(), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_real_upgrades_become_tunnels() {
    bounded(async {
        let upstream = server(|mut wire| async move {
            while let Some(message) = wire.message().await {
                let asked = message.field("upgrade").is_some();
                let answer = format!("asked={asked} {}", message.text());
                wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len())).await;
            }
        })
        .await;
        let (edge, _results) = relay_edge(EdgeSettings::default(), upstream).await;
        for (request, answer) in [
            ("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n", "asked=false "),
            ("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n", "asked=false "),
            ("POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nabc", "asked=false abc"),
            ("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", "asked=true "),
        ] {
            assert_eq!(ask(edge.local_addr(), request).await.text(), answer, "{request:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_are_bounded() {
    bounded(async {
        let limits = EdgeSettings { max_tunnels: 1, ..EdgeSettings::default() };
        let (edge, mut results) = relay_edge(limits, raw_echo().await).await;
        let mut first = Wire::connect(edge.local_addr()).await;
        first.send(format!("{HANDSHAKE}\r\n")).await;
        first.head().await.expect("a head");
        assert_eq!(ask(edge.local_addr(), format!("{HANDSHAKE}\r\n")).await.status(), 502);
        assert!(matches!(results.recv().await, Some(Err(RelayError::TooManyTunnels))));
        drop(first);
        until("room again", || edge.tunnels() == 0).await;
        let mut again = Wire::connect(edge.local_addr()).await;
        again.send(format!("{HANDSHAKE}\r\n")).await;
        assert!(again.head().await.expect("a head").contains(" 101 "));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_waits_for_tunnels_and_then_cuts_them() {
    bounded(async {
        // A drain that waited for the whole of the first grace would wait for longer than this test may take.
        for (ends_by_itself, grace_secs, expected) in [(true, 3600, 0), (false, 2, 1)] {
            let (edge, mut results) = relay_edge(EdgeSettings::default(), raw_echo().await).await;
            let mut wire = Wire::connect(edge.local_addr()).await;
            wire.send(format!("{HANDSHAKE}\r\n")).await;
            wire.head().await.expect("a head");
            until("a tunnel", || edge.tunnels() == 1).await;
            let client = tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(300)).await;
                // Alive while draining.
                wire.send("ping").await;
                assert_eq!(wire.exactly(9).await.as_deref(), Some(&b"helloping"[..]));
                if !ends_by_itself {
                    assert!(wire.is_closed().await);
                }
            });
            let drained = edge.drain(Duration::from_secs(grace_secs)).await;
            assert_eq!(drained, Drained { in_flight_cut: 0, tunnels_cut: expected });
            client.await.expect("client");
            assert_eq!((edge.connections(), edge.tunnels()), (0, 0));
            if ends_by_itself {
                assert!(results.recv().await.expect("a result").is_ok_and(|relayed| relayed.complete));
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_hangs_up_ends_the_tunnel() {
    bounded(async {
        let upstream = server(|mut wire| async move {
            wire.head().await;
            wire.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nbye").await;
        })
        .await;
        let (edge, _results) = relay_edge(EdgeSettings::default(), upstream).await;
        let mut wire = Wire::connect(edge.local_addr()).await;
        wire.send(format!("{HANDSHAKE}\r\n")).await;
        wire.head().await.expect("a head");
        assert_eq!(wire.exactly(3).await.as_deref(), Some(&b"bye"[..]));
        assert!(wire.is_closed().await);
        drop(wire);
        until("the tunnel is gone", || edge.tunnels() == 0).await;
    })
    .await;
}
