//! The whole program, as a process of its own, against clients that mean harm: refused with the right status, and memory stays
//! flat. What the edge refuses one request at a time is in `net_hygiene`.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ringfence::ids::CallId;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

use crate::support::net::{Wire, ask, bounded, server};
use crate::support::panics::tells_of_a_panic;

const CREATE: &str = "/elevenlabs/v1/convai/twilio/outbound-call";
const WEBHOOK: &str = "/webhooks/elevenlabs";
const MIB: usize = 1024 * 1024;

/// `ringfence serve` in front of a provider that only counts who connects.
struct Sidecar {
    child: Child,
    folder: PathBuf,
    reached: Arc<AtomicUsize>,
    api: SocketAddr,
    webhooks: SocketAddr,
    admin: SocketAddr,
    client: SocketAddr,
}

impl Sidecar {
    async fn start(listen: &str) -> Self {
        Self::start_with(listen, "").await
    }

    /// `limits` are the shell's commands before the program.
    async fn start_with(listen: &str, limits: &str) -> Self {
        let reached = Arc::new(AtomicUsize::new(0));
        let count = reached.clone();
        let provider = server(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            std::future::ready(())
        })
        .await;
        let folder = std::env::temp_dir().join(format!("ringfence-hostile-{}", CallId::new()));
        std::fs::create_dir_all(&folder).unwrap();
        certificate(&folder);
        // No api_key: then nothing but an app's create has a reason to connect to the provider.
        let config = format!(
            "public_url = \"https://calls.example.test\"\n[listen]\napi = \"127.0.0.1:0\"\nwebhooks = \"127.0.0.1:0\"\n\
             admin = \"127.0.0.1:0\"\nclient = \"127.0.0.1:0\"\n{listen}\n[admin]\ntoken_secret = \"a secret of some length, for these tests\"\n[timeouts]\ndrain_secs = 0\n\
             [accounts.elevenlabs]\nupstream = \"http://{provider}\"\nwebhook_secrets = [\"not known outside\"]\n\
             [accounts.twilio]\nupstream = \"http://{provider}\"\nwebhook_secrets = [\"not known outside\"]\n"
        );
        std::fs::write(folder.join("ringfence.toml"), config).unwrap();
        let mut child = Command::new("sh")
            .args(["-c", &format!("{limits}\nexec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_ringfence")])
            .args(["serve", "--ready-json", "--config"])
            .arg(folder.join("ringfence.toml"))
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(folder.join("stderr")).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let said = || std::fs::read_to_string(folder.join("stderr")).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not ready: {}", said()));
        let at = |name: &str| ready[name].as_str().unwrap().parse().unwrap();
        let (api, webhooks, admin, client) = (at("api"), at("webhooks"), at("admin"), at("client"));
        Self { child, folder, reached, api, webhooks, admin, client }
    }

    fn listeners(&self) -> [SocketAddr; 3] {
        [self.api, self.webhooks, self.admin]
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("stderr")).unwrap()
    }

    async fn is_well(&self) {
        for listener in self.listeners() {
            assert_eq!(ask(listener, "GET /health HTTP/1.1\r\nHost: a\r\n\r\n").await.status(), 200);
        }
    }

    /// A field of `/proc/PID/status`, in bytes.
    fn memory(&self, field: &str) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix(field)).unwrap();
        line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
    }

    /// What the process holds now; the peak is counted from here on.
    fn memory_before(&self) -> usize {
        std::fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5").unwrap();
        self.memory("VmRSS")
    }

    /// The most that was held since `before` was taken may be this much more.
    fn grew_less_than(&self, before: usize, bytes: usize) {
        let grown = self.memory("VmHWM").saturating_sub(before);
        println!(
            "{} MiB before, at most {} MiB more, now {} MiB",
            before / MIB,
            grown / MIB,
            self.memory("VmRSS") / MIB
        );
        assert!(grown < bytes, "{} MiB more", grown / MIB);
    }

    /// Ends it; it must not have panicked, and nobody must have been connected to the provider.
    fn finish(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let said = std::fs::read_to_string(self.folder.join("stderr")).unwrap();
        assert!(!tells_of_a_panic(&said), "{said}");
        assert_eq!(self.reached.load(Ordering::Relaxed), 0, "something reached the provider");
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn certificate(folder: &std::path::Path) {
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
}

/// Writes until the other side has enough; then its answer.
async fn flood(address: SocketAddr, head: String, piece: Vec<u8>, times: usize) -> Option<u16> {
    let mut wire = Wire::connect(address).await;
    let (mut reading, mut writing) = wire.tcp.split();
    let write = async {
        if writing.write_all(head.as_bytes()).await.is_ok() {
            for _ in 0..times {
                if writing.write_all(&piece).await.is_err() {
                    return;
                }
            }
        }
        std::future::pending::<()>().await;
    };
    let read = async {
        let mut answer = [0; 12];
        let read = tokio::io::AsyncReadExt::read_exact(&mut reading, &mut answer).await;
        read.ok().and_then(|_| std::str::from_utf8(&answer[9..]).ok()?.parse().ok())
    };
    tokio::select! {
        status = read => status,
        () = write => None,
    }
}

async fn floods(n: usize, address: SocketAddr, head: &str, piece: &[u8], times: usize) -> Vec<Option<u16>> {
    let all: Vec<_> = (0..n).map(|_| tokio::spawn(flood(address, head.to_owned(), piece.to_vec(), times))).collect();
    let mut statuses = Vec::new();
    for one in all {
        statuses.push(one.await.unwrap());
    }
    statuses
}

#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_and_foreign_requests_are_refused_on_every_listener() {
    bounded(async {
        let sidecar = Sidecar::start("").await;
        let smuggled = format!("POST {CREATE} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{{}}");
        for listener in sidecar.listeners() {
            for (status, request) in [
                (400, format!("POST {CREATE} HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}")),
                (400, format!("POST {CREATE} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n{smuggled}")),
                (400, format!("POST {WEBHOOK} HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{smuggled}")),
                (501, format!("POST {CREATE} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked, chunked\r\n\r\n0\r\n\r\n{smuggled}")),
                (400, format!("POST {CREATE} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}")),
                (501, "CONNECT api.elevenlabs.io:443 HTTP/1.1\r\nHost: api.elevenlabs.io:443\r\n\r\n".to_owned()),
                (501, format!("TRACE {CREATE} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x\r\n\r\n")),
                (400, format!("POST http://other{CREATE} HTTP/1.1\r\nHost: a\r\n\r\n")),
            ] {
                let mut wire = Wire::connect(listener).await;
                let answer = wire.ask(&request).await;
                assert_eq!(answer.status(), status, "{request:?}: {}", answer.text());
                // What was smuggled behind it is no request: nothing more is answered.
                assert!(wire.is_closed().await, "{request:?}");
            }
        }
        sidecar.is_well().await;
        sidecar.finish();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_chunked_body_is_refused_on_every_listener_and_hides_nothing() {
    bounded(async {
        let sidecar = Sidecar::start("").await;
        for listener in sidecar.listeners().into_iter().chain([sidecar.client]) {
            for body in ["2;\nxx\r\n28\r\n0\r\n\r\n", "\r\n0\r\n\r\n", "1;\0\r\nx\r\n0\r\n\r\n", "1\r\nx\n0\r\n\r\n"] {
                for path in [CREATE, WEBHOOK, "/anything", "/api/businesses/a", "/health"] {
                    let mut wire = Wire::connect(listener).await;
                    let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
                    let answer = wire.ask(format!("{head}{body}GET /health HTTP/1.1\r\nHost: a\r\n\r\n")).await;
                    assert_eq!(answer.status(), 400, "{path} {body:?}: {}", answer.text());
                    assert!(wire.is_closed().await, "{path} {body:?}");
                }
            }
        }
        sidecar.is_well().await;
        sidecar.finish();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn header_bombs_are_431_and_take_no_memory() {
    bounded(async {
        let sidecar = Sidecar::start("").await;
        sidecar.is_well().await;
        let before = sidecar.memory_before();
        for listener in sidecar.listeners() {
            for piece in ["X: y\r\n".repeat(10_000), format!("X: {}\r\n", "a".repeat(3 * MIB))] {
                let statuses = floods(30, listener, "GET / HTTP/1.1\r\nHost: a\r\n", piece.as_bytes(), 1).await;
                assert!(statuses.iter().all(|s| *s == Some(431)), "{statuses:?}");
            }
        }
        sidecar.is_well().await;
        sidecar.grew_less_than(before, 64 * MIB);
        sidecar.finish();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_slow_clients_take_bounded_memory_and_nobody_elses_turn() {
    bounded(async {
        let sidecar = Sidecar::start("").await;
        sidecar.is_well().await;
        let before = sidecar.memory_before();
        // The second thousands find the room of the first.
        for _ in 0..2 {
            let mut slow = Vec::new();
            for nth in 0..2_000 {
                let listener = sidecar.listeners()[nth % 3];
                let begun = match nth % 4 {
                    0 => format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "a".repeat(100)),
                    1 => "G".to_owned(),
                    2 => format!("POST {WEBHOOK} HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n{{"),
                    _ => format!("POST {CREATE} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n{{"),
                };
                let mut wire = Wire::connect(listener).await;
                wire.send(begun).await;
                slow.push(wire);
            }
            sidecar.is_well().await;
            let unsigned = format!("POST {WEBHOOK} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{{}}");
            let answer = ask(sidecar.webhooks, unsigned).await;
            assert_eq!(answer.status(), 401, "unsigned; and answered while hundreds talk of room that they do not use");
        }
        // What a head may have, 64 KiB, for each.
        sidecar.grew_less_than(before, 2_000 * 64 * 1024);
        sidecar.is_well().await;
        sidecar.finish();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_never_end_are_413_and_together_bounded() {
    bounded(async {
        let sidecar = Sidecar::start("").await;
        sidecar.is_well().await;
        let before = sidecar.memory_before();
        let chunk = format!("{:x}\r\n{}\r\n", 64 * 1024, " ".repeat(64 * 1024));
        let head = format!("POST {CREATE} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        let statuses = floods(200, sidecar.api, &head, chunk.as_bytes(), 1_000).await;
        // Those that find no room are told to come again.
        assert!(statuses.iter().all(|s| matches!(s, Some(413 | 503))), "{statuses:?}");
        assert!(statuses.contains(&Some(413)), "{statuses:?}");
        let declared = format!("POST {CREATE} HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999\r\n\r\n");
        let statuses = floods(50, sidecar.api, &declared, chunk.as_bytes(), 1_000).await;
        assert!(statuses.iter().all(|s| *s == Some(413)), "{statuses:?}");
        // One byte a chunk: the frame is six times its content.
        let statuses = floods(10, sidecar.api, &head, "1\r\n \r\n".repeat(10_000).as_bytes(), 200).await;
        assert!(statuses.iter().all(|s| *s == Some(413)), "{statuses:?}");
        sidecar.is_well().await;
        sidecar.grew_less_than(before, 192 * MIB);
        sidecar.finish();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_of_64_mib_are_bounded_together_and_not_taken_apart_unsigned() {
    bounded(async {
        let sidecar = Sidecar::start("").await;
        sidecar.is_well().await;
        let before = sidecar.memory_before();
        // Parsed, it would be thirty-two million values: gigabytes.
        let length = 48 * MIB;
        let head = forged(&format!("Content-Type: application/json\r\nContent-Length: {}", length + 1)) + "[";
        let statuses = floods(6, sidecar.webhooks, &head, "0,".repeat(MIB / 2).as_bytes(), length / MIB).await;
        // One peer has room for one at a time; the others are asked to come again.
        assert!(statuses.iter().all(|s| matches!(s, Some(401 | 503))), "{statuses:?}");
        assert!(statuses.contains(&Some(401)), "{statuses:?}");
        let declared = forged("Content-Length: 99999999999");
        let statuses = floods(50, sidecar.webhooks, &declared, &[b' '; 65536], 100).await;
        assert!(statuses.iter().all(|s| *s == Some(413)), "{statuses:?}");
        sidecar.is_well().await;
        // What one peer may have, and once more what is being put together; taken apart it would be gigabytes.
        sidecar.grew_less_than(before, 192 * MIB);
        sidecar.finish();
    })
    .await;
}

/// The head of a webhook whose signature has the right form.
fn forged(more: &str) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let tag = "0".repeat(64);
    format!("POST {WEBHOOK} HTTP/1.1\r\nHost: a\r\nElevenLabs-Signature: t={now},v0={tag}\r\n{more}\r\n\r\n")
}

/// A genuine one.
fn genuine(body: &str) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"not known outside");
    let tag = hex::encode(ring::hmac::sign(&key, format!("{now}.{body}").as_bytes()));
    format!(
        "POST {WEBHOOK} HTTP/1.1\r\nHost: a\r\nElevenLabs-Signature: t={now},v0={tag}\r\nTransfer-Encoding: chunked\r\n\r\n\
         {:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_uploads_hold_what_they_sent_and_stop_nobody() {
    bounded(async {
        let sidecar = Sidecar::start("").await;
        sidecar.is_well().await;
        let audio = "A".repeat(3 * MIB);
        let large = genuine(&format!(
            "{{\"type\":\"post_call_audio\",\"event_timestamp\":1,\"data\":{{\"conversation_id\":\"conv_1\",\"agent_id\":\"a\",\"full_audio\":\"{audio}\"}}}}"
        ));
        for unsigned in [true, false] {
            let mut slow = Vec::new();
            for nth in 0..300 {
                let length = if nth % 2 == 0 { "Content-Length: 67108864" } else { "Transfer-Encoding: chunked" };
                let head = match unsigned {
                    true => format!("POST {WEBHOOK} HTTP/1.1\r\nHost: a\r\n{length}\r\n\r\n"),
                    false => forged(length),
                };
                let mut wire = Wire::connect(sidecar.webhooks).await;
                wire.send(head).await;
                wire.send("1000\r\n").await;
                slow.push(wire);
            }
            for _ in 0..3 {
                let begun = std::time::Instant::now();
                let answer = ask(sidecar.webhooks, &large).await;
                println!("unsigned {unsigned}: {} after {:?}", answer.status(), begun.elapsed());
                // Those that stall have 30 s.
                assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
                assert!(matches!(answer.status(), 200 | 204 | 404), "{} {}", answer.status(), answer.text());
            }
            if unsigned {
                // Nobody waits for what they promised.
                for wire in &mut slow {
                    assert_eq!(wire.message().await.expect("an answer").status(), 401);
                }
            }
        }
        sidecar.is_well().await;
        sidecar.finish();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_stall_take_bounded_memory_and_the_rest_is_told_to_come_again() {
    bounded(async {
        let sidecar = Sidecar::start("").await;
        sidecar.is_well().await;
        let _before = sidecar.memory_before();
        let head = forged("Content-Length: 67108864");
        // Each sends 40 MiB of what it promised, and then nothing: one peer has room for 64.
        let stalled = tokio::spawn({
            let (address, piece) = (sidecar.webhooks, vec![b'x'; MIB]);
            async move { floods(24, address, &head, &piece, 40).await }
        });
        let api = {
            let (address, piece) = (sidecar.api, vec![b' '; MIB / 2]);
            let head = format!("POST {CREATE} HTTP/1.1\r\nHost: a\r\nContent-Length: 1048576\r\n\r\n");
            tokio::spawn(async move { floods(200, address, &head, &piece, 1).await })
        };
        tokio::time::sleep(Duration::from_secs(2)).await;
        sidecar.is_well().await;
        let unsigned = format!("POST {WEBHOOK} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{{}}");
        assert_eq!(ask(sidecar.webhooks, unsigned).await.status(), 401);
        let begun = std::time::Instant::now();
        let small = ask(sidecar.webhooks, genuine("{\"type\":\"nobody_knows\"}")).await;
        // It does not wait for those that stall, which have 30 s. How long it takes is the machine's business.
        assert!(
            small.status() < 500 && begun.elapsed() < Duration::from_secs(10),
            "{} {:?}",
            small.status(),
            begun.elapsed()
        );
        let statuses = stalled.await.unwrap();
        assert!(statuses.iter().all(|s| matches!(s, Some(400 | 503))), "{statuses:?}");
        assert!(statuses.contains(&Some(503)), "{statuses:?}");
        let _ = api.await;
        let peak = sidecar.memory("VmHWM");
        println!("at most {} MiB altogether", peak / MIB);
        assert!(peak < 256 * MIB, "{} MiB", peak / MIB);
        sidecar.is_well().await;
        sidecar.finish();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_soft_limit_of_open_files_is_raised() {
    bounded(async {
        let sidecar = Sidecar::start_with("", "ulimit -Sn 1024; ulimit -Hn 4096").await;
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", sidecar.child.id())).unwrap();
        let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        assert_eq!(files.split_whitespace().filter(|word| *word == "4096").count(), 2, "{files}");
        sidecar.is_well().await;
        sidecar.finish();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_idle_connections_stop_nothing_where_1024_files_may_be_open() {
    bounded(async {
        let sidecar = Sidecar::start_with("", "ulimit -n 1024").await;
        sidecar.is_well().await;
        let mut idle = Vec::new();
        for listener in [sidecar.webhooks, sidecar.api, sidecar.client, sidecar.admin] {
            for _ in 0..2_000 {
                idle.push(Wire::connect(listener).await);
            }
            let begun = std::time::Instant::now();
            for _ in 0..10 {
                sidecar.is_well().await;
            }
            println!("answered within {:?}", begun.elapsed() / 30);
            assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
        }
        // The newest are kept, the oldest make room.
        assert!(idle.last_mut().unwrap().stays_silent(Duration::from_millis(50)).await);
        assert!(idle[0].is_closed().await);
        let log = sidecar.log();
        let lines = log.lines().filter(|line| line.contains("connections")).count();
        assert!(lines <= 12, "{lines} lines of 8,000 connections:\n{log}");
        sidecar.finish();
    })
    .await;
}

// === HTTP/2, frame by frame ===

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM_AND_HEADERS: u8 = 0x5;

/// RFC 9113 §4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `GET /` of `https://a`, by RFC 7541's static table.
const GET: &[u8] = &[0x82, 0x84, 0x87, 0x41, 1, b'a'];

/// Speaks TLS by the `openssl` command, sends all frames as fast as they are taken, and reads nothing until then. Returns what
/// came back.
fn http2(address: SocketAddr, frames: Vec<u8>) -> Vec<u8> {
    let mut client = Command::new("openssl")
        .args(["s_client", "-quiet", "-alpn", "h2", "-connect", &address.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = client.stdin.take().unwrap();
    let mut out = client.stdout.take().unwrap();
    let _ = stdin.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    let _ = stdin.write_all(&frame(SETTINGS, 0, 0, &[]));
    // The server's own settings come first. They are read before anything hostile: a connection that is reset for it takes
    // with it what was not read.
    let mut all = vec![0; 65536];
    let begun = out.read(&mut all).unwrap_or_default();
    all.truncate(begun);
    let writing = std::thread::spawn(move || {
        let _ = stdin.write_all(&frames);
        stdin
    });
    std::thread::park_timeout(Duration::from_secs(3));
    let mut last = all.clone();
    let (sender, answers) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut piece = [0; 65536];
        while let Ok(read @ 1..) = out.read(&mut piece) {
            all.extend_from_slice(&piece[..read]);
            let _ = sender.send(all.clone());
        }
    });
    while let Ok(all) = answers.recv_timeout(Duration::from_secs(2)) {
        last = all;
    }
    let _ = client.kill();
    let _ = client.wait();
    drop(writing.join());
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_floods_take_no_memory_and_nobody_elses_turn() {
    bounded(async {
        let sidecar = Sidecar::start("tls_cert = \"cert.pem\"\ntls_key = \"key.pem\"").await;
        let api = sidecar.api;
        let well = move || {
            let asked = Command::new("curl")
                .args(["-sk", "--http2", "-o", "/dev/null", "-w", "%{http_version} %{http_code}"])
                .arg(format!("https://{api}/health"))
                .output()
                .unwrap();
            String::from_utf8(asked.stdout).unwrap()
        };
        assert_eq!(well(), "2 200");
        let before = sidecar.memory_before();
        let reset = |nth: u32| {
            let stream = 2 * nth + 1;
            [frame(HEADERS, END_STREAM_AND_HEADERS, stream, GET), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
        };
        // A literal field that no table keeps, of a name and a value of a hundred bytes each.
        let field = [&[0x00, 100][..], &[b'x'; 100], &[100], &[b'y'; 100]].concat();
        let continued = (0..20_000).flat_map(|_| frame(CONTINUATION, 0, 1, &field.repeat(10)));
        let attacks: Vec<(&str, Vec<u8>)> = vec![
            ("rapid reset", (0..50_000).flat_map(reset).collect()),
            ("continuation", frame(HEADERS, 0, 1, GET).into_iter().chain(continued).collect()),
            ("settings", (0..300_000).flat_map(|_| frame(SETTINGS, 0, 0, &[])).collect()),
            ("ping", (0..300_000).flat_map(|_| frame(PING, 0, 0, &[0; 8])).collect()),
            ("streams", (0..5_000).flat_map(|n| frame(HEADERS, 0x4, 2 * n + 1, GET)).collect()),
        ];
        for (name, frames) in attacks {
            let frames_sent = frames.len();
            let answer = tokio::task::spawn_blocking(move || http2(api, frames)).await.unwrap();
            println!("{name}: {frames_sent} bytes sent, {} came back", answer.len());
            // It spoke HTTP/2 at all: the server's own settings came first.
            assert_eq!(answer.get(3), Some(&SETTINGS), "{name}");
            assert_eq!(well(), "2 200", "after {name}");
        }
        sidecar.grew_less_than(before, 64 * MIB);
        sidecar.finish();
    })
    .await;
}
