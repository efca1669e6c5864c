//! TLS at the edge: HTTP/2 by ALPN, and certificates replaced while connections run.
//! Certificates are made by the `openssl` command, HTTP/2 is spoken by `curl`: both are on any Debian, and no crate of ours does either.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ringfence::net::{
    Drained, EdgeSettings, Exchange, ReloadingTls, RunningEdge, SendResult, TlsError, Upstream, UpstreamSettings,
};
use tokio::process::Command;
use tokio_tungstenite::tungstenite::{self, client::IntoClientRequest as _};

use crate::support::net::{By, Handling, RelayTo, bounded, edge_with, mirror, server, soon, text, until};

/// A directory that goes with the test.
pub struct Dir(pub PathBuf);

impl Dir {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ringfence-tls-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory");
        Dir(path)
    }

    fn cert(&self) -> PathBuf {
        self.0.join("cert.pem")
    }

    fn key(&self) -> PathBuf {
        self.0.join("key.pem")
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub async fn run(program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program)
        .args(arguments)
        .kill_on_drop(true)
        .output()
        .await
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    (
        output.status.success(),
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
    )
}

/// A self-signed certificate for `localhost` with this common name.
async fn certificate(dir: &Dir, name: &str) {
    let subject = format!("/CN={name}");
    let (cert, key) = (dir.cert(), dir.key());
    let arguments = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        &subject,
        "-addext",
        "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
        "-keyout",
        key.to_str().expect("path"),
        "-out",
        cert.to_str().expect("path"),
    ];
    let (made, said) = run("openssl", &arguments).await;
    assert!(made, "{said}");
}

/// The common name of the certificate that a new connection gets.
async fn served_name(edge: &RunningEdge) -> String {
    let script = format!(
        "openssl s_client -connect {} -servername localhost </dev/null 2>/dev/null | openssl x509 -noout -subject",
        edge.local_addr()
    );
    run("sh", &["-c", &script]).await.1.trim().rsplit("CN = ").next().unwrap_or_default().to_owned()
}

async fn mirror_edge(dir: &Dir, settings: EdgeSettings) -> (RunningEdge, ReloadingTls) {
    let tls = ReloadingTls::load(dir.cert(), dir.key()).expect("a certificate");
    let edge = edge_with(settings, Some(tls.clone()), By(mirror)).await;
    (edge, tls)
}

fn large_file(dir: &Dir) -> PathBuf {
    let path = dir.0.join("large");
    std::fs::write(&path, crate::support::net::pattern(26 << 20)).expect("a file");
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9113_3_3_http2_and_http1_are_spoken_by_alpn() {
    bounded(async {
        let dir = Dir::new("alpn");
        certificate(&dir, "localhost").await;
        let (edge, _tls) = mirror_edge(&dir, EdgeSettings::default()).await;
        let url = format!("https://{}/p?q=1", edge.local_addr());
        for (version, flag) in [("2", "--http2"), ("1.1", "--http1.1")] {
            let (ok, said) = run("curl", &["-sk", flag, "-d", "hello", "-w", "\nversion=%{http_version} status=%{http_code}", &url]).await;
            assert!(ok && said.ends_with(&format!("version={version} status=200")), "{said}");
            assert!(said.starts_with(&format!("POST /p?q=1\nhost=Some(\"{}\")", edge.local_addr())) && said.contains("\n\nhello"), "{said}");
        }
        // Several requests on one HTTP/2 connection; a HEAD among them.
        let many = format!("for n in 1 2 3 4 5; do set -- \"$@\" -o /dev/null {url}$n; done; curl -sk --http2 -w '%{{http_code}} %{{num_connects}}|' \"$@\"");
        assert_eq!(run("sh", &["-c", &many]).await.1, "200 1|200 0|200 0|200 0|200 0|");
        let (_, head) = run("curl", &["-skI", "--http2", &url]).await;
        assert!(head.starts_with("HTTP/2 200"), "{head}");
        until("closed after the client", || edge.connections() == 0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_refusals_have_the_statuses_of_http1() {
    bounded(async {
        let dir = Dir::new("h2limits");
        certificate(&dir, "localhost").await;
        let large = large_file(&dir);
        let (edge, _tls) = mirror_edge(&dir, EdgeSettings::default()).await;
        let url = format!("https://{}/", edge.local_addr());
        let status = async |arguments: &[&str]| {
            let mut all = vec!["-sk", "--http2", "-o", "/dev/null", "-w", "%{http_code}", "-m", "20"];
            all.extend_from_slice(arguments);
            all.push(&url);
            run("curl", &all).await.1
        };
        assert_eq!(status(&["--data-binary", &format!("@{}", large.display())]).await, "413");
        let many: Vec<String> = (0..150).map(|n| format!("X-{n}: y")).collect();
        let many: Vec<&str> = many.iter().flat_map(|field| ["-H", field]).collect();
        assert_eq!(status(&many).await, "431");
        assert_eq!(status(&["-X", "TRACE"]).await, "501");
        assert_eq!(status(&["-d", "x", "-H", "Expect: magic"]).await, "417");
        assert_eq!(status(&[]).await, "200");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_clients_that_stop_sending_a_body_are_given_up() {
    bounded(async {
        let dir = Dir::new("h2slow");
        certificate(&dir, "localhost").await;
        let (edge, _tls) =
            mirror_edge(&dir, EdgeSettings { body_timeout: Duration::from_millis(500), ..EdgeSettings::default() })
                .await;
        let begun = Instant::now();
        let script =
            format!("sleep 20 | curl -sk --http2 -m 10 -T - -w ' %{{http_code}}' https://{}/", edge.local_addr());
        let curl = tokio::spawn(async move { run("timeout", &["10", "sh", "-c", &script]).await.1 });
        until("a request", || edge.in_flight() == 1).await;
        until("given up", || edge.in_flight() == 0).await;
        assert!(begun.elapsed() < Duration::from_secs(9), "curl gave up before");
        curl.abort();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_26_mb_are_relayed_over_tls_in_both_versions() {
    bounded(async {
        let dir = Dir::new("h2relay");
        certificate(&dir, "localhost").await;
        let large = large_file(&dir);
        // Reads the whole body, then sends it back.
        let upstream = server(|mut wire| async move {
            while let Some(message) = wire.message().await {
                wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", message.body.len())).await;
                wire.send(&message.body).await;
            }
        })
        .await;
        let (done, mut results) = tokio::sync::mpsc::unbounded_channel();
        let relay = RelayTo {
            base: format!("http://{upstream}").parse().expect("uri"),
            upstream: Upstream::new(UpstreamSettings::default()).expect("upstream"),
            host: ringfence::net::HostRule::Preserve,
            done,
        };
        let tls = ReloadingTls::load(dir.cert(), dir.key()).expect("a certificate");
        let edge = edge_with(EdgeSettings::default(), Some(tls), relay).await;
        let expected = std::fs::read(&large).expect("the file");
        for flag in ["--http2", "--http1.1"] {
            let back = dir.0.join("back");
            let (file, back_path, url) = (
                large.to_str().expect("path"),
                back.to_str().expect("path"),
                format!("https://{}/up", edge.local_addr()),
            );
            let begun = Instant::now();
            let (ok, said) =
                run("curl", &["-sk", flag, "-m", "50", "-T", file, "-o", back_path, "-w", "%{http_code}", &url]).await;
            assert!(ok && said == "200", "{flag}: {said}");
            assert!(std::fs::read(&back).expect("the answer") == expected, "{flag}: not the same bytes");
            println!("26 MB there and back over {flag}: {:?}", begun.elapsed());
            assert!(results.recv().await.expect("a result").is_ok_and(|relayed| relayed.complete));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http2_client_that_goes_takes_its_relay_with_it() {
    bounded(async {
        let dir = Dir::new("h2gone");
        certificate(&dir, "localhost").await;
        let upstream = server(|mut wire| async move { wire.until_closed().await }).await;
        let (done, mut results) = tokio::sync::mpsc::unbounded_channel();
        let relay = RelayTo {
            base: format!("http://{upstream}").parse().expect("uri"),
            upstream: Upstream::new(UpstreamSettings::default()).expect("upstream"),
            host: ringfence::net::HostRule::Upstream,
            done,
        };
        let tls = ReloadingTls::load(dir.cert(), dir.key()).expect("a certificate");
        let edge = edge_with(EdgeSettings::default(), Some(tls), relay).await;
        for arguments in [&["-m", "0.5"][..], &["-m", "0.5", "-d", "body"]] {
            let url = format!("https://{}/", edge.local_addr());
            let mut all = vec!["-sk", "--http2"];
            all.extend_from_slice(arguments);
            all.push(&url);
            run("curl", &all).await;
            let result = results.recv().await.expect("a result");
            assert!(matches!(result, Err(ringfence::net::RelayError::ClientGone)), "{result:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_connections_get_the_new_certificate_and_a_bad_one_changes_nothing() {
    bounded(async {
        let dir = Dir::new("reload");
        certificate(&dir, "first").await;
        let (edge, tls) = mirror_edge(&dir, EdgeSettings::default()).await;
        assert_eq!(served_name(&edge).await, "first");
        assert!(!tls.reload_if_changed().expect("unchanged"));

        certificate(&dir, "second").await;
        assert!(tls.reload_if_changed().expect("changed"));
        assert_eq!(served_name(&edge).await, "second");

        // A key that belongs to another certificate, rubbish, and nothing at all.
        let good_key = std::fs::read(dir.key()).expect("key");
        let other = Dir::new("reload-other");
        certificate(&other, "third").await;
        std::fs::copy(other.key(), dir.key()).expect("copy");
        let error = tls.reload_if_changed().expect_err("a key of another certificate");
        assert!(matches!(error, TlsError::Unusable { .. }), "{error}");
        assert!(!tls.reload_if_changed().expect("told once"));
        for rubbish in ["", "-----BEGIN PRIVATE KEY-----\nrubbish\n-----END PRIVATE KEY-----\n"] {
            std::fs::write(dir.key(), rubbish).expect("write");
            assert!(tls.reload().is_err());
        }
        std::fs::remove_file(dir.key()).expect("remove");
        let error = tls.reload().expect_err("no key");
        assert!(matches!(&error, TlsError::Unreadable { path, .. } if path == &dir.key()), "{error}");
        assert_eq!(served_name(&edge).await, "second");

        std::fs::write(dir.key(), good_key).expect("write");
        assert!(tls.reload_if_changed().expect("good again"));
        assert_eq!(served_name(&edge).await, "second");
        assert!(ReloadingTls::load(Path::new("/nowhere/cert.pem"), dir.key()).is_err());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_do_not_speak_tls_or_stall_in_it_are_closed() {
    bounded(async {
        let dir = Dir::new("stall");
        certificate(&dir, "localhost").await;
        let (edge, _tls) =
            mirror_edge(&dir, EdgeSettings { header_timeout: Duration::from_millis(400), ..EdgeSettings::default() })
                .await;
        let mut plain = crate::support::net::Wire::connect(edge.local_addr()).await;
        plain.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        plain.until_closed().await;
        crate::support::net::Wire::connect(edge.local_addr()).await.until_closed().await;
        // TLS done and HTTP/2 agreed upon, but not a byte of it.
        let script = format!("sleep 20 | openssl s_client -quiet -alpn h2 -connect {}", edge.local_addr());
        let client = tokio::spawn(async move { run("timeout", &["10", "sh", "-c", &script]).await });
        until("connected", || edge.connections() == 1).await;
        until("closed", || edge.connections() == 0).await;
        client.abort();
    })
    .await;
}

fn slow(exchange: &mut Exchange) -> Handling<'_> {
    Box::pin(async move {
        let time = if exchange.path() == "/ever" { 60_000 } else { 700 };
        tokio::time::sleep(Duration::from_millis(time)).await;
        exchange.respond(text(200, "done")).await;
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_finishes_http2_requests() {
    bounded(async {
        let dir = Dir::new("h2drain");
        certificate(&dir, "localhost").await;
        let tls = ReloadingTls::load(dir.cert(), dir.key()).expect("a certificate");
        for (path, cut) in [("/slow", 0), ("/ever", 1)] {
            let edge = edge_with(EdgeSettings::default(), Some(tls.clone()), By(slow)).await;
            let url = format!("https://{}{path}", edge.local_addr());
            let curl = tokio::spawn(async move {
                run("curl", &["-sk", "--http2", "-m", "10", "-w", " %{http_version}", &url]).await
            });
            until("in flight", || edge.in_flight() == 1).await;
            let begun = Instant::now();
            let drained = edge.drain(Duration::from_secs(4)).await;
            assert_eq!(drained, Drained { in_flight_cut: cut, tunnels_cut: 0 });
            assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
            let (ok, said) = curl.await.expect("curl");
            assert_eq!((ok, said.starts_with("done")), (cut == 0, cut == 0), "{said}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn upstreams_are_verified_against_the_public_roots_and_the_extra_ones() {
    bounded(async {
        let dir = Dir::new("ca");
        certificate(&dir, "localhost").await;
        let (edge, _tls) = mirror_edge(&dir, EdgeSettings::default()).await;
        let request = || {
            let uri = format!("https://localhost:{}/x", edge.local_addr().port());
            http::Request::post(uri).body(Bytes::from_static(b"hi")).expect("request")
        };
        let strict = Upstream::new(UpstreamSettings::default()).expect("upstream");
        let outcome = strict.create(request(), 1000, soon()).await;
        assert!(matches!(outcome, SendResult::NotSent(_)), "{outcome:?}");
        let trusting = Upstream::new(UpstreamSettings { extra_ca: Some(dir.cert()), ..UpstreamSettings::default() })
            .expect("upstream");
        let SendResult::Answered(answer) = trusting.create(request(), 1000, soon()).await else {
            panic!("not answered")
        };
        assert!(answer.body().ends_with(b"\n\nhi"), "{answer:?}");
        // A WebSocket trusts the same roots: the mirror is reached, and answers the handshake as any request.
        let handshake = || format!("wss://localhost:{}/x", edge.local_addr().port()).into_client_request().unwrap();
        let strict = strict.web_socket(handshake()).await;
        assert!(matches!(strict, Err(tungstenite::Error::Tls(_) | tungstenite::Error::Io(_))), "{strict:?}");
        let answered = trusting.web_socket(handshake()).await;
        assert!(matches!(answered, Err(tungstenite::Error::Http(_))), "{answered:?}");
        for wrong in [dir.0.join("missing.pem"), dir.key()] {
            assert!(Upstream::new(UpstreamSettings { extra_ca: Some(wrong), ..UpstreamSettings::default() }).is_err());
        }
    })
    .await;
}
