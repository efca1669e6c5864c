//! What a request costs that only passes through, in what can be counted on any machine: allocations, and how often its thread goes to
//! sleep. A change that adds ten, or a step that waits, is seen here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ringfence::net::EdgeSettings;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::net::{relay_edge, server};

const REQUEST: &[u8] =
    b"GET /v1/voices HTTP/1.1\r\nHost: api.example.test\r\nUser-Agent: a\r\nAccept: */*\r\nXi-Api-Key: k\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nDate: now\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";

/// Measured: 44, with the fields above.
const ALLOCATIONS_MAX: u64 = 48;

/// Measured: 2, once for each side to answer.
const PARKS_MAX: f64 = 2.5;

/// Asks `times` on a connection. Allocates nothing itself.
async fn ask(client: &mut TcpStream, times: usize) {
    let mut buffer = [0; 1024];
    for _ in 0..times {
        client.write_all(REQUEST).await.unwrap();
        let mut read = 0;
        while !buffer[..read].ends_with(b"{}") {
            read += client.read(&mut buffer[read..]).await.unwrap();
        }
    }
}

#[test]
fn a_request_that_passes_through_allocates_no_more_than_it_did() {
    const TIMES: usize = 200;
    let parks = Arc::new(AtomicU64::new(0));
    let counted = parks.clone();
    let park = move || {
        counted.fetch_add(1, Ordering::Relaxed);
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().on_thread_park(park).build().unwrap();
    let (mut direct, mut through, _edge, _results) = runtime.block_on(async {
        let upstream = server(|mut wire| async move {
            let mut buffer = [0; 1024];
            let mut read = 0;
            while let Ok(more @ 1..) = wire.tcp.read(&mut buffer[read..]).await {
                read += more;
                if buffer[..read].ends_with(b"\r\n\r\n") {
                    read = 0;
                    wire.tcp.write_all(ANSWER).await.unwrap();
                }
            }
        })
        .await;
        let (edge, results) = relay_edge(EdgeSettings::default(), upstream).await;
        let direct = TcpStream::connect(upstream).await.unwrap();
        let through = TcpStream::connect(edge.local_addr()).await.unwrap();
        (direct, through, edge, results)
    });
    let count = |client: &mut TcpStream| {
        // Connections, buffers and pools are there before it counts.
        runtime.block_on(ask(client, 20));
        let before = parks.load(Ordering::Relaxed);
        let allocations = allocation_counter::measure(|| runtime.block_on(ask(client, TIMES))).count_total;
        (allocations, parks.load(Ordering::Relaxed) - before)
    };
    let ((own, own_parks), (all, all_parks)) = (count(&mut direct), count(&mut through));
    let parks_each = (all_parks - own_parks) as f64 / TIMES as f64;
    assert!(parks_each < PARKS_MAX, "its thread sleeps {parks_each} times a request");
    let each = (all - own) / TIMES as u64;
    assert!(each <= ALLOCATIONS_MAX, "{each} allocations a request ({own} of {TIMES} requests are the test's own)");
    assert!(each + 25 >= ALLOCATIONS_MAX, "{each} allocations a request: the bound can come down");
}
