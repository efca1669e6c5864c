//! Listeners: who speaks TLS, who asks for a client's certificate, one port for all that is public, who is let in, what a browser and a
//! service manager are told.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::net_tls::{Dir, run};
use crate::outbound::id;
use crate::outbound_limits::stage;
use crate::support::child::{Serve, signal};
use crate::support::net::bounded;
use crate::support::stage::{PATIENCE, Setup, Stage};

/// An extension of certificates that sign no others.
const LEAF: &str = "basicConstraints=critical,CA:FALSE";

/// A certificate for this machine that signs itself, and one of an authority for a client.
async fn certificates(dir: &Dir) {
    let at = |name: &str| dir.0.join(name).to_str().unwrap().to_owned();
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
    for (name, more) in [
        ("server", vec!["-x509", "-addext", LEAF, "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]),
        ("ca", vec!["-x509"]),
        ("client", vec!["-x509", "-addext", LEAF, "-CA", "CA", "-CAkey", "CAKEY"]),
    ] {
        let (pem, private, subject) = (at(&format!("{name}.pem")), at(&format!("{name}.key")), format!("/CN={name}"));
        let more: Vec<String> = more
            .into_iter()
            .map(|word| match word {
                "CA" => at("ca.pem"),
                "CAKEY" => at("ca.key"),
                other => other.to_owned(),
            })
            .collect();
        let mut words = vec!["req"];
        words.extend(key);
        words.extend(more.iter().map(String::as_str));
        words.extend(["-subj", &subject, "-keyout", &private, "-out", &pem]);
        let (made, said) = run("openssl", &words).await;
        assert!(made, "{said}");
    }
}

async fn curl(words: &[&str]) -> String {
    let mut all = vec!["-s", "-o", "/dev/null", "-D", "-", "--max-time", "20"];
    all.extend(words);
    run("curl", &all).await.1
}

#[tokio::test(flavor = "multi_thread")]
async fn every_listener_may_speak_tls_and_ask_for_a_certificate() {
    bounded(async {
        let dir = Dir::new("listeners");
        certificates(&dir).await;
        let at = |name: &str| dir.0.join(name).to_str().unwrap().to_owned();
        let tls = format!(
            "tls_cert = \"{}\"\ntls_key = \"{}\"\ntls_listeners = [\"api\", \"webhooks\", \"admin\", \"client\"]\ntls_client_ca = \"{}\"\nprobes = \"127.0.0.1:0\"\n[timeouts]",
            at("server.pem"),
            at("server.key"),
            at("ca.pem")
        );
        let replace = vec![("[timeouts]".to_owned(), tls)];
        let stage = Stage::start(Setup { replace, ..Setup::default() }).await;
        let (ca, cert, key) = (at("server.pem"), at("client.pem"), at("client.key"));
        let shown = ["--cert", &cert, "--key", &key];
        let app = stage.app();
        for (name, address, asks) in [
            ("api", app.api(), true),
            ("webhooks", app.webhooks(), false),
            ("admin", app.admin(), true),
            ("client", app.client(), false),
        ] {
            for path in ["/health", "/ready"] {
                let url = format!("https://{address}{path}");
                let without = curl(&["--cacert", &ca, &url]).await;
                let with = curl(&["--cacert", &ca, shown[0], shown[1], shown[2], shown[3], &url]).await;
                assert!(with.contains(" 200"), "{name} {path}: {with}");
                assert_eq!(without.contains(" 200"), !asks, "{name} {path}: {without}");
            }
            let plain = curl(&[&format!("http://{address}/health")]).await;
            assert!(!plain.contains(" 200"), "{name} speaks TLS alone: {plain}");
        }
        // Health checks have a listener without either, and nothing else is on it.
        let probes = app.probes().expect("listen.probes is set");
        for (words, path, status) in [
            (vec![], "/health", " 200"),
            (vec![], "/ready", " 200"),
            (vec!["--head"], "/ready", " 200"),
            (vec![], "/metrics", " 404"),
            (vec![], "/status", " 404"),
            (vec!["--data", "{}"], "/health", " 405"),
            (vec!["--data", "{}"], "/api/calls/x/hangup", " 405"),
        ] {
            let url = format!("http://{probes}{path}");
            let answer = curl(&[words.as_slice(), &[url.as_str()]].concat()).await;
            assert!(answer.lines().next().is_some_and(|line| line.contains(status)), "{words:?} {path}: {answer}");
        }
        // A browser is told to stay with TLS.
        let page = curl(&["--cacert", &ca, shown[0], shown[1], shown[2], shown[3], &format!("https://{}/", app.admin())]).await;
        let transcript = curl(&["--cacert", &ca, &format!("https://{}/calls/x/transcript", app.client())]).await;
        for answer in [&page, &transcript] {
            for header in ["strict-transport-security: max-age=31536000", "x-frame-options: DENY", "x-content-type-options: nosniff", "content-security-policy:"] {
                assert!(answer.to_lowercase().contains(&header.to_lowercase()), "{header} is not in {answer}");
            }
        }
        // Until when both hold is a metric.
        let metrics = String::from_utf8(stage.send("GET", &stage.admin("/metrics"), &[], "").await.body.to_vec()).unwrap();
        for certificate in ["server", "client_ca"] {
            let line = format!("ringfence_certificate_expiry_timestamp_seconds{{certificate=\"{certificate}\"}} ");
            let at: i64 = metrics.lines().find_map(|l| l.strip_prefix(&line)?.parse().ok()).expect("a time");
            let now = ringfence::clock::Clock::system().now_ms() / 1000;
            assert!((now..now + 3 * 86_400).contains(&at), "{certificate}: {at}");
        }
        stage.finish().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tls_nothing_is_said_of_it_and_every_listener_is_ready() {
    let stage = stage("", "").await;
    let listeners = [stage.api("/ready"), stage.webhooks("/ready"), stage.admin("/ready"), stage.client("/ready")];
    for url in listeners {
        let answer = stage.send("GET", &url, &[], "").await;
        assert_eq!((answer.status, answer.json()), (200, json!({"status": "ready"})), "{url}");
        assert_eq!(answer.header("strict-transport-security"), None, "{url}");
    }
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_port_has_webhooks_and_clients_and_nothing_else() {
    let secret = "a secret of some length, for tests alone";
    let replace = vec![("webhooks = ".to_owned(), "public = ".to_owned())];
    let tables = format!("[client]\ntoken_secret = \"{secret}\"");
    let stage = Stage::start(Setup { replace, tables, ..Setup::default() }).await;
    let call = id(&stage.dial(None, "+15550002001").await, "conversation_id");
    let now = stage.clock.now_ms() / 1000;
    let claims = json!({"sub": "ops", "businesses": "*", "exp": now + 600});
    let token = format!("Bearer {}", ringfence::jws::sign(secret.as_bytes(), &claims).unwrap());
    let shown = [("authorization", token.as_str())];
    let transcript = stage.send("GET", &stage.webhooks(&format!("/calls/{call}/transcript")), &shown, "").await;
    assert_eq!(transcript.status, 200, "{transcript:?}");
    assert_eq!(stage.send("GET", &stage.webhooks("/calls/x/transcript"), &[], "").await.status, 403, "without a token");
    // A webhook: the end of the call.
    stage.control.end_call(&call);
    stage.wait("the webhook came to the public port", async || stage.held().await == 0).await;
    let metrics = stage.ask("/metrics").await;
    let metrics = metrics.as_str().unwrap();
    assert!(
        metrics.contains("ringfence_requests_total{kind=\"transcript\",listener=\"client\",status=\"2xx\"} 1"),
        "{metrics}"
    );
    // Neither the app's API nor the operators'.
    for (method, path) in [
        ("GET", "/status"),
        ("GET", "/metrics"),
        ("GET", "/api/calls"),
        ("POST", "/elevenlabs/v1/convai/twilio/outbound-call"),
        ("GET", "/openapi.json"),
        ("GET", "/"),
    ] {
        let answer = stage.send(method, &stage.webhooks(path), &[], "{}").await;
        assert!(answer.status >= 400, "{method} {path}: {answer:?}");
    }
    assert_eq!(stage.control.calls().len(), 1, "nothing was dialled");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_come_from_allowed_addresses_alone() {
    // Here everybody is on loopback: it is the front, and says for whom.
    let tables = "[webhooks]\nallow_from = [\"elevenlabs\", \"203.0.113.0/24\"]".to_owned();
    let replace = vec![("[timeouts]".to_owned(), "trusted_peers = [\"127.0.0.0/8\"]\n[timeouts]".to_owned())];
    let stage = Stage::start(Setup { tables, replace, public: false, ..Setup::default() }).await;
    let url = stage.webhooks("/webhooks/elevenlabs");
    for (from, denied) in [
        ("203.0.113.9", false),
        ("34.67.146.145", false),
        ("198.51.100.1", true),
        ("34.67.146.146", true),
        ("34.67.146.145, 198.51.100.1", true),
        ("198.51.100.1, 203.0.113.9", false),
    ] {
        let answer = stage.send("POST", &url, &[("x-forwarded-for", from)], "{}").await;
        assert_eq!(answer.status == 403, denied, "{from}: {answer:?}");
        assert!(!denied || answer.json()["error"] == "ADDRESS_NOT_ALLOWED", "{from}: {answer:?}");
    }
    for path in ["/health", "/ready"] {
        let probe = stage.send("GET", &stage.webhooks(path), &[("x-forwarded-for", "198.51.100.1")], "").await;
        assert_eq!(probe.status, 200, "{path} is for everybody");
    }
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_sends_no_more_webhooks_than_its_rate() {
    let tables = "[webhooks]\nrate_per_address = \"3/h\"".to_owned();
    let replace = vec![("[timeouts]".to_owned(), "trusted_peers = [\"127.0.0.0/8\"]\n[timeouts]".to_owned())];
    let stage = Stage::start(Setup { tables, replace, public: false, ..Setup::default() }).await;
    let post = async |from: &str| {
        stage.send("POST", &stage.webhooks("/webhooks/elevenlabs"), &[("x-forwarded-for", from)], "{}").await
    };
    for _ in 0..3 {
        assert_ne!(post("203.0.113.9").await.status, 429);
    }
    let refused = post("203.0.113.9").await;
    assert_eq!((refused.status, refused.json()["error"].as_str()), (429, Some("TOO_MANY_REQUESTS")), "{refused:?}");
    let wait: u32 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=1200).contains(&wait), "{wait}");
    assert_ne!(post("203.0.113.10").await.status, 429, "another address");
    // Two of one IPv6 network are one.
    for n in 1..=3 {
        assert_ne!(post(&format!("2001:db8::{n}")).await.status, 429);
    }
    assert_eq!(post("2001:db8::4").await.status, 429);
    stage.finish().await;
}

// === the service manager ===

/// What the program tells the service manager until this comes.
fn told(socket: &UnixDatagram, until: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut buffer = [0; 256];
    while all.last().is_none_or(|last| last != until) {
        let read = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{until} does not come: {error}; {all:?}"));
        all.push(String::from_utf8(buffer[..read].to_vec()).unwrap());
    }
    all
}

fn config(folder: &Path) {
    let text = "[listen]\napi = \"127.0.0.1:0\"\nwebhooks = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\nclient = \"127.0.0.1:0\"\n\
                [accounts.elevenlabs]\nupstream = \"http://127.0.0.1:9\"\n";
    std::fs::write(folder.join("ringfence.toml"), text).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_manager_hears_that_it_serves_lives_and_stops() {
    let dir = Dir::new("notify");
    config(&dir.0);
    let path = dir.0.join("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let wrapper =
        vec!["env".to_owned(), format!("NOTIFY_SOCKET={}", path.display()), "WATCHDOG_USEC=300000".to_owned()];
    let mut serve = Serve::start(&dir.0, &wrapper, "").await;
    assert!(serve.is_ready());
    assert_eq!(told(&socket, "READY=1"), ["READY=1"], "nothing before it serves");
    told(&socket, "WATCHDOG=1");
    told(&socket, "WATCHDOG=1");
    signal(serve.pid(), "TERM");
    told(&socket, "STOPPING=1");
    let stopped = tokio::time::timeout(PATIENCE, async {
        while serve.dead().is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    stopped.await.expect("it stops");
    assert!(serve.dead().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_service_manager_nobody_is_told() {
    let dir = Dir::new("unnotified");
    config(&dir.0);
    // One that is not there is no reason not to serve.
    let serve = Serve::start(&dir.0, &["env".to_owned(), "NOTIFY_SOCKET=/nowhere/notify".to_owned()], "").await;
    assert!(serve.is_ready());
}

/// A certificate that nobody signed, for another name: what `openssl req -x509` makes unless told more.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_trusts_the_certificate_of_its_config_and_shows_its_own() {
    bounded(async {
        let dir = Dir::new("commands");
        certificates(&dir).await;
        let at = |name: &str| dir.0.join(name).to_str().unwrap().to_owned();
        let (pem, key) = (at("own.pem"), at("own.key"));
        let words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=ops.example.com"];
        let (made, said) = run("openssl", &[&words[..], &["-keyout", &key, "-out", &pem]].concat()).await;
        assert!(made, "{said}");
        for clients in [String::new(), format!("tls_client_ca = \"{}\"\n", at("ca.pem"))] {
            let tls = format!("tls_cert = \"{pem}\"\ntls_key = \"{key}\"\ntls_listeners = [\"admin\"]\n{clients}");
            let replace = vec![("[timeouts]".to_owned(), format!("{tls}[timeouts]"))];
            let stage = Stage::start(Setup { replace, ..Setup::default() }).await;
            let admin = stage.app().admin().to_string();
            // The operator's own copy of the config; the sidecar's socket is another machine's.
            let config = |name: &str, cert: &str| {
                let file = at(name);
                let head = format!("[listen]\nadmin = \"{admin}\"\nadmin_socket = \"{}\"\n", at("none.sock"));
                std::fs::write(&file, head + &tls.replace(&pem, cert)).unwrap();
                file
            };
            let (right, wrong) = (config("right.toml", &pem), config("wrong.toml", &at("server.pem")));
            let ask = |words: &[&str]| {
                let words = [&["health"], words].concat();
                tokio::task::block_in_place(|| crate::cli::run(&words))
            };
            let (cert, key) = (at("client.pem"), at("client.key"));
            let shown = ["--admin-cert", &cert, "--admin-key", &key];
            let url = format!("https://{admin}");
            for named in [&["--config", &right][..], &["--config", &right, "--admin", &url]] {
                let (code, out, err) = ask(&[named, &shown[..]].concat());
                assert_eq!(code, Some(0), "{out}{err}");
                let (code, out, err) = ask(named);
                assert_eq!(code == Some(0), clients.is_empty(), "{out}{err}");
            }
            let (code, _, err) = ask(&[&["--config", &wrong][..], &shown].concat());
            assert!(code == Some(1) && err.contains("certificate"), "{err}");
            stage.finish().await;
        }
    })
    .await;
}
