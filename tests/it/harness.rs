//! What the chaos tests stand on does what it says: the relay in which the network goes wrong, and the Redis servers.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::support::faults::{Relay, Weather};
use crate::support::net::{bounded, server};
use crate::support::redis::{self, Cluster, Group, Redis, Setup, USER};
use crate::support::stage::PATIENCE;

/// A server that says what it hears back, and tells the test; a connection's end is `None`.
async fn echo() -> (Relay, mpsc::UnboundedReceiver<Option<Vec<u8>>>) {
    let (heard, hears) = mpsc::unbounded_channel();
    let addr = server(move |mut wire| {
        let heard = heard.clone();
        async move {
            let mut buffer = [0; 1024];
            while let Ok(n @ 1..) = wire.tcp.read(&mut buffer).await {
                let _ = heard.send(Some(buffer[..n].to_vec()));
                let _ = wire.tcp.write_all(&buffer[..n]).await;
            }
            let _ = heard.send(None);
        }
    })
    .await;
    (Relay::to(addr).await, hears)
}

async fn connected(relay: &Relay) -> TcpStream {
    TcpStream::connect(relay.addr()).await.unwrap()
}

/// Reads this, and no more.
async fn reads(client: &mut TcpStream, what: &[u8]) {
    let mut got = vec![0; what.len()];
    client.read_exact(&mut got).await.unwrap();
    assert_eq!(got, what);
}

async fn is_reset(client: &mut TcpStream) {
    let mut buffer = [0; 16];
    let error = client.read(&mut buffer).await.expect_err("no answer and no orderly end");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// Nothing comes for a while.
async fn hears_nothing(client: &mut TcpStream) {
    let mut buffer = [0; 16];
    let read = tokio::time::timeout(Duration::from_millis(200), client.read(&mut buffer)).await;
    assert!(read.is_err(), "{read:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_passes_cuts_and_delays() {
    bounded(async {
        let (relay, mut hears) = echo().await;
        let mut client = connected(&relay).await;
        client.write_all(b"one").await.unwrap();
        reads(&mut client, b"one").await;
        assert_eq!(hears.recv().await.unwrap().as_deref(), Some(&b"one"[..]));
        relay.set(Weather::Delay(Duration::from_millis(150)));
        let started = Instant::now();
        client.write_all(b"two").await.unwrap();
        reads(&mut client, b"two").await;
        assert!(started.elapsed() >= Duration::from_millis(300), "later each way");
        relay.set(Weather::Cut);
        is_reset(&mut client).await;
        // A new one may be reset before it is seen to be there.
        match TcpStream::connect(relay.addr()).await {
            Ok(mut client) => is_reset(&mut client).await,
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
        relay.set(Weather::Pass);
        let mut client = connected(&relay).await;
        client.write_all(b"three").await.unwrap();
        reads(&mut client, b"three").await;
        // An orderly end stays one, both ways.
        client.shutdown().await.unwrap();
        assert_eq!(client.read(&mut [0; 16]).await.unwrap(), 0);
        assert_eq!(relay.accepted(), 3);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_swallows_everything_or_answers_alone() {
    bounded(async {
        let (relay, mut hears) = echo().await;
        let mut client = connected(&relay).await;
        client.write_all(b"one").await.unwrap();
        reads(&mut client, b"one").await;
        hears.recv().await.unwrap();

        relay.set(Weather::NoAnswers);
        client.write_all(b"two").await.unwrap();
        assert_eq!(hears.recv().await.unwrap().as_deref(), Some(&b"two"[..]), "what is asked goes through");
        hears_nothing(&mut client).await;
        relay.set(Weather::Pass);
        is_reset(&mut client).await;
        assert_eq!(hears.recv().await.unwrap(), None);

        let mut client = connected(&relay).await;
        client.write_all(b"three").await.unwrap();
        reads(&mut client, b"three").await;
        hears.recv().await.unwrap();
        relay.set(Weather::BlackHole);
        client.write_all(b"four").await.unwrap();
        let mut another = connected(&relay).await;
        another.write_all(b"five").await.unwrap();
        hears_nothing(&mut client).await;
        hears_nothing(&mut another).await;
        assert!(hears.try_recv().is_err(), "the server hears nothing, not even an end");
        relay.set(Weather::Pass);
        is_reset(&mut client).await;
        is_reset(&mut another).await;
        assert_eq!(hears.recv().await.unwrap(), None);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_leaves_a_connection_half_open() {
    bounded(async {
        let (relay, mut hears) = echo().await;
        let mut client = connected(&relay).await;
        client.write_all(b"one").await.unwrap();
        reads(&mut client, b"one").await;
        hears.recv().await.unwrap();
        relay.set(Weather::HalfOpen);
        assert_eq!(hears.recv().await.unwrap(), None, "the server sees the end");
        client.write_all(b"two").await.unwrap();
        hears_nothing(&mut client).await;
        relay.set(Weather::Pass);
        is_reset(&mut client).await;
        // Bytes of answers that are to be written otherwise.
        relay.rewrite(vec![(b"cat".to_vec(), b"dog".to_vec())]);
        let mut client = connected(&relay).await;
        client.write_all(b"cat and cat").await.unwrap();
        reads(&mut client, b"dog and dog").await;
        assert_eq!(hears.recv().await.unwrap().as_deref(), Some(&b"cat and cat"[..]));
    })
    .await;
}

#[test]
fn a_redis_is_frozen_killed_wiped_and_set_back() {
    if redis::is_missing() {
        return;
    }
    let mut server = Redis::with_aof();
    let value = |server: &Redis| server.cli(&["GET", "k"]);
    server.cli(&["SET", "k", "1"]);
    server.keep_a_copy();
    server.cli(&["SET", "k", "2"]);
    let before = server.info("server", "run_id").unwrap();
    server.kill();
    assert!(!server.is_running());
    server.start_again();
    assert_eq!(value(&server), "2", "its file has it");
    assert_ne!(server.info("server", "run_id").unwrap(), before);
    server.stop();
    server.start_over_the_copy();
    assert_eq!(value(&server), "1", "an older file");
    server.freeze();
    assert_eq!(server.info("server", "run_id"), None, "it says nothing");
    server.thaw();
    assert_eq!(value(&server), "1");
    server.wipe();
    assert_eq!(value(&server), "");
    server.cli(&["SET", "k", "3"]);
    server.evict();
    server.cli(&["GET", "k"]);
    assert_eq!(value(&server), "", "thrown out");
    server.has_room();
    assert_eq!(server.info("memory", "maxmemory_policy").as_deref(), Some("noeviction"));
}

#[test]
fn a_redis_has_users_and_tls() {
    if redis::is_missing() {
        return;
    }
    let rules = "~gate:* +@read +@write +ping";
    let server = Redis::start(Setup { user: Some(rules.to_owned()), tls: true, ..Setup::default() });
    assert_eq!(server.url(), format!("rediss://{}:{}@localhost:{}", USER.0, USER.1, server.port));
    assert!(server.certificate_file().exists());
    assert_eq!(server.cli(&["ACL", "DRYRUN", USER.0, "SET", "gate:1", "x"]), "OK");
    assert!(server.cli(&["ACL", "DRYRUN", USER.0, "INFO"]).contains("no permissions"));
    let plain = std::process::Command::new("timeout")
        .args(["2", "redis-cli", "-p", &server.port.to_string(), "PING"])
        .output()
        .unwrap();
    assert!(!String::from_utf8_lossy(&plain.stdout).contains("PONG"), "TLS alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_hand_over_and_promote_a_replica_that_lags() {
    if redis::is_missing() {
        return;
    }
    bounded(async {
        let mut group = Group::start();
        let first = group.master_port().unwrap();
        assert!(group.url().ends_with("/gate") && group.url().matches("127.0.0.1").count() == 3);
        group.hand_over();
        assert_ne!(group.master_port().unwrap(), first);
        let wait = async |group: &Group, so: &dyn Fn(&Group) -> bool| {
            let started = Instant::now();
            while !tokio::task::block_in_place(|| so(group)) {
                // A Sentinel that was not scheduled for two seconds trusts nothing that it sees for the next thirty (its TILT mode).
                assert!(started.elapsed() < 4 * PATIENCE, "{}", group.sentinels[0].log());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        wait(&group, &Group::whole).await;
        let master = group.master();
        group.servers[master].cli(&["SET", "early", "1"]);
        group.servers[master].cli(&["WAIT", "2", "2000"]);
        group.freeze_replicas();
        group.servers[master].cli(&["SET", "late", "1"]);
        let dead = group.promote_frozen();
        assert_eq!(dead, master);
        wait(&group, &|g: &Group| g.settled(dead)).await;
        let promoted = &group.servers[group.master()];
        assert_eq!((promoted.cli(&["GET", "early"]), promoted.cli(&["GET", "late"])), ("1".to_owned(), String::new()));
        group.servers[dead].start_again();
        wait(&group, &Group::whole).await;
    })
    .await;
}

#[test]
fn a_cluster_has_three_nodes_that_know_each_other() {
    if redis::is_missing() {
        return;
    }
    let cluster = Cluster::start();
    assert_eq!(cluster.url().matches(',').count(), 2);
    for key in ["a", "b", "c", "{default}:1:x"] {
        assert_eq!(cluster.node_of(key).cli(&["SET", key, "1"]), "OK", "it is the one that has the key");
    }
}
