//! Between others: clients that ask before they send (curl's `Expect`), an nginx in front, IPv6 on both sides.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use ringfence::config::{self, Strict};
use ringfence::net::{EdgeSettings, TrustedPeers};
use ringfence_simulator::sign;
use tokio_tungstenite::tungstenite::Message;

use crate::net_tls::{Dir, run};
use crate::outbound::account_at;
use crate::support::hooks::{FORM, STATUS, VOICE, call_form, encoded, pairs};
use crate::support::net::{bounded, edge, mirror, pattern, server, until};
use crate::support::stage::{Behind, Setup, Stage};

const CREATE: &str = "/elevenlabs/v1/convai/twilio/outbound-call";
const ORDER: &str = r#"{"agent_id":"agent_acme","agent_phone_number_id":"phnum_1","to_number":"+15550002222"}"#;
/// Longer than any test: whoever waits so long for `100 Continue` never got it.
const EXPECT: [&str; 4] = ["-sSv", "--expect100-timeout", "120", "-m60"];

/// What is not on this machine is a failure in CI, elsewhere a reason to leave a test out.
fn present(what: &str, found: bool) -> bool {
    assert!(found || std::env::var_os("CI").is_none(), "{what} is missing");
    if !found {
        eprintln!("left out: {what} is missing (bash tests/run.sh installs what tests need)");
    }
    found
}

fn ipv6() -> bool {
    present("IPv6 on loopback", std::net::TcpListener::bind("[::1]:0").is_ok())
}

/// An nginx of its own, configured as docs/configuration.md says.
struct Nginx {
    process: Child,
    at: SocketAddr,
    _folder: Dir,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Nginx {
    /// `replace`: what is written otherwise. None where there is no nginx; it is in `sbin` on Debian, which is not on
    /// everybody's path.
    async fn start(name: &str, upstream: SocketAddr, replace: &[(&str, &str)]) -> Option<Self> {
        let installed = ["nginx", "/usr/sbin/nginx"];
        let found =
            installed.into_iter().find(|nginx| Command::new(nginx).arg("-v").stderr(Stdio::null()).status().is_ok());
        if !present("nginx", found.is_some()) {
            return None;
        }
        for _ in 0..5 {
            let folder = Dir::new(name);
            let at = std::net::SocketAddr::from(([127, 0, 0, 1], ringfence::net::spare_port()));
            let path = folder.0.join("nginx.conf");
            let server = replace.iter().fold(shown(at, upstream), |shown, (old, new)| shown.replace(old, new));
            let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                .map(|kind| format!("{kind}_temp_path {}/{kind};\n", folder.0.display()))
                .concat();
            let pid = folder.0.join("pid");
            let conf = format!(
                "daemon off;\nmaster_process off;\npid {};\nevents {{}}\nhttp {{\naccess_log off;\n{temporary}{server}}}\n",
                pid.display()
            );
            std::fs::write(&path, conf).unwrap();
            let mut command = Command::new(found?);
            command.args(["-e", "stderr", "-c"]).arg(path);
            let mut nginx = Nginx { process: command.spawn().unwrap(), at, _folder: folder };
            // It ends by itself where somebody was faster at its port.
            while nginx.process.try_wait().unwrap().is_none() {
                if tokio::net::TcpStream::connect(at).await.is_ok() {
                    return Some(nginx);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        panic!("nginx does not start; what it said is above");
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.at)
    }
}

/// What docs/configuration.md shows, without TLS, between these two addresses.
fn shown(at: SocketAddr, upstream: SocketAddr) -> String {
    let (_, rest) = include_str!("../../docs/configuration.md").split_once("```nginx\n").expect("a configuration");
    let (shown, _) = rest.split_once("```").expect("its end");
    let replaced = [("443 ssl", at.to_string()), ("127.0.0.1:8081", upstream.to_string())];
    replaced.into_iter().fold(shown.to_owned(), |shown, (old, new)| {
        assert!(shown.contains(old), "{old} is not in the configuration of docs/configuration.md");
        shown.replace(old, &new)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_that_expects_100_continue_gets_it_for_creates_and_uploads() {
    let provider = Behind::start().await;
    let stage =
        Stage::start(Setup { tables: account_at("files", "elevenlabs", &provider.url()), ..Setup::default() }).await;
    let folder = Dir::new("expect");
    let file = folder.0.join("upload");
    std::fs::write(&file, pattern(3 << 20)).unwrap();
    let file = format!("@{}", file.display());
    let key = format!("xi-api-key: {}", stage.control.settings().el_api_key);
    let json = "Content-Type: application/json";

    let url = stage.api(CREATE);
    let asked = ["-H", "Expect: 100-continue", "-H", json, "-H", key.as_str(), "-d", ORDER, url.as_str()];
    let (ok, said) = run("curl", &[&EXPECT[..], &asked].concat()).await;
    assert!(ok && said.contains("< HTTP/1.1 100 Continue") && said.contains("< HTTP/1.1 200 OK"), "{said}");
    assert!(said.contains("\"success\":true"), "{said}");

    // curl asks by itself before it sends more than 1 MiB.
    let url = stage.api("/files/v1/convai/knowledge-base/file");
    let (ok, said) = run("curl", &[&EXPECT[..], &["--data-binary", file.as_str(), url.as_str()]].concat()).await;
    assert!(ok && said.contains("> Expect: 100-continue") && said.contains("< HTTP/1.1 100 Continue"), "{said}");
    assert!(said.contains("< HTTP/1.1 200 OK"), "{said}");
    let got = provider.at("/v1/convai/knowledge-base/file");
    assert!(got.len() == 1 && got[0].body == pattern(3 << 20));
    assert!(!got[0].headers.contains_key("expect"), "it was answered here");

    // A create of that size is refused before curl has sent any of it.
    let url = stage.api(CREATE);
    let (ok, said) =
        run("curl", &[&EXPECT[..], &["-H", json, "--data-binary", file.as_str(), url.as_str()]].concat()).await;
    assert!(ok && said.contains("413 Payload Too Large") && said.contains("BODY_TOO_LARGE"), "{said}");
    assert!(!said.contains("100 Continue"), "{said}");
    assert_eq!(stage.control.counts().creates_el, 1);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_keeps_its_connection_and_bodies_arrive_as_sent() {
    bounded(async {
        let edge = edge(EdgeSettings::default(), mirror).await;
        let both = "location /whole/ { proxy_pass http://ringfence; proxy_http_version 1.1; proxy_set_header Connection \"\"; }
            location /";
        let Some(nginx) = Nginx::start("nginx-edge", edge.local_addr(), &[("location /", both)]).await else { return };
        // More than nginx reads ahead, so that it cannot know the length either.
        let text = "0123456789abcdef".repeat(4096);
        let folder = Dir::new("chunks");
        let file = folder.0.join("body");
        std::fs::write(&file, &text).unwrap();
        let (file, end) = (format!("@{}", file.display()), format!("\n\n{text}"));
        let chunked = ["-sS", "-H", "Transfer-Encoding: chunked", "--data-binary", file.as_str()];
        for n in 0..10 {
            let whole = nginx.url(&format!("/whole/p?n={n}&d=%2B"));
            let (_, said) = run("curl", &[&chunked[..], &[whole.as_str()]].concat()).await;
            assert!(said.starts_with(&format!("POST /whole/p?n={n}&d=%2B\n")) && said.ends_with(&end), "{said}");
            assert!(said.contains("content-length: 65536\n"), "nginx read it whole: {said}");
            let streamed = nginx.url("/p");
            let (_, said) = run("curl", &[&chunked[..], &[streamed.as_str()]].concat()).await;
            assert!(said.contains("transfer-encoding: chunked\n") && said.ends_with(&end), "{said}");
        }
        assert_eq!(edge.connections(), 1, "twenty requests of twenty clients");
        drop(nginx);
        until("closed after nginx", || edge.connections() == 0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn creates_and_uploads_come_through_nginx() {
    let provider = Behind::start().await;
    let tables = account_at("files", "elevenlabs", &provider.url());
    let trusting = ("[listen]".to_owned(), "[listen]\ntrusted_peers = [\"127.0.0.1\"]".to_owned());
    let setup = Setup { tables, root: "concurrent = 2".to_owned(), replace: vec![trusting], ..Setup::default() };
    let stage = Stage::start(setup).await;
    if let Some(nginx) = Nginx::start("nginx-api", stage.app().api(), &[]).await {
        let key = stage.control.settings().el_api_key;
        let headers = [("content-type", "application/json"), ("xi-api-key", key.as_str())];
        let mut statuses = Vec::new();
        for _ in 0..3 {
            statuses.push(stage.send("POST", &nginx.url(CREATE), &headers, ORDER).await.status);
        }
        assert_eq!((statuses, stage.held().await), (vec![200, 200, 503], 2));

        let client = [("x-forwarded-for", "203.0.113.9"), ("transfer-encoding", "chunked")];
        let sent = stage.send("POST", &nginx.url("/files/v1/upload"), &client, pattern(3 << 20)).await;
        let got = provider.at("/v1/upload");
        assert!(sent.status == 200 && got.len() == 1 && got[0].body == pattern(3 << 20));
        let header = |name: &str| got[0].headers.get(name).map(|value| value.to_str().unwrap());
        // As nginx wrote them: ringfence adds nothing towards a provider.
        assert_eq!(header("x-forwarded-for"), Some("203.0.113.9, 127.0.0.1"));
        assert_eq!((header("x-forwarded-proto"), header("x-forwarded-host")), (Some("http"), Some("127.0.0.1")));
    }
    stage.finish().await;
}

/// Twilio signs the URL that it calls; here that has another scheme, host and path than what reaches ringfence.
#[tokio::test(flavor = "multi_thread")]
async fn webhooks_signed_for_the_public_url_hold_behind_nginx() {
    let app = Behind::start().await;
    let trusting = ("[listen]".to_owned(), "[listen]\ntrusted_peers = [\"127.0.0.0/8\"]".to_owned());
    let root = "public_url = \"https://hooks.example.com/calls\"\nconcurrent = 1".to_owned();
    let setup = Setup { public: false, root, app: Some(app.url()), replace: vec![trusting], ..Setup::default() };
    let stage = Stage::start(setup).await;
    // nginx speaks TLS in the docs, and takes a prefix away here.
    let https = [("$scheme", "https"), ("location /", "location /calls/"), ("http://ringfence", "http://ringfence/")];
    if let Some(nginx) = Nginx::start("nginx-webhooks", stage.app().webhooks(), &https).await {
        let token = stage.control.settings().auth_token;
        let send = async |signed_for: &str, path: &str, form: &[(&str, &str)]| {
            let signature = sign::twilio(&token, &format!("{signed_for}{path}"), &pairs(form));
            let headers = [FORM, ("host", "hooks.example.com"), ("x-twilio-signature", signature.as_str())];
            stage.send("POST", &nginx.url(&format!("/calls{path}")), &headers, encoded(form)).await
        };
        let (public, inside) = ("https://hooks.example.com/calls", "https://hooks.example.com");
        let ringing = call_form("CA1", "inbound", "ringing");
        // What nginx asks is not what Twilio asked.
        assert_eq!((send(inside, VOICE, &ringing).await.status, stage.held().await), (401, 0));
        assert_eq!((send(public, VOICE, &ringing).await.status, stage.held().await), (200, 1));
        let asked = app.at(VOICE);
        assert_eq!((asked.len(), asked[0].headers["x-forwarded-proto"].to_str().unwrap()), (1, "https"));
        assert_eq!(asked[0].headers["x-forwarded-host"], "hooks.example.com");
        // The prefix that nginx took away is none of the app's: it sees the path without it.
        assert_eq!(asked[0].headers["host"], "hooks.example.com");
        let for_app = sign::twilio(&token, &format!("{inside}{VOICE}"), &pairs(&ringing));
        assert_eq!(asked[0].headers["x-twilio-signature"], for_app.as_str());
        let second = send(public, VOICE, &call_form("CA2", "inbound", "ringing")).await;
        assert!(String::from_utf8_lossy(&second.body).contains("<Reject reason=\"busy\"/>"), "{second:?}");
        assert_eq!(send(public, STATUS, &call_form("CA1", "inbound", "completed")).await.status, 204);
        stage.wait("the end is heard", async || stage.held().await == 0).await;
    }
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_pass_nginx_and_ringfence() {
    let app = server(|wire| async move {
        let Ok(mut socket) = tokio_tungstenite::accept_async(wire.tcp).await else { return };
        while let Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) = socket.next().await {
            let _ = socket.send(message).await;
        }
    })
    .await;
    let stage = Stage::start(Setup { app: Some(format!("http://{app}")), ..Setup::default() }).await;
    if let Some(nginx) = Nginx::start("nginx-sockets", stage.app().webhooks(), &[]).await {
        let (mut socket, _) = tokio_tungstenite::connect_async(format!("ws://{}/media", nginx.at)).await.unwrap();
        for message in [Message::text("start"), Message::binary(pattern(300_000))] {
            socket.send(message.clone()).await.unwrap();
            assert_eq!(socket.next().await.unwrap().unwrap(), message);
        }
        let _ = socket.close(None).await;
    }
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ipv6_listeners_and_upstreams_work_like_others() {
    if !ipv6() {
        return;
    }
    let provider = Behind::at_address("[::1]:0".parse().unwrap()).await;
    let tables = account_at("six", "elevenlabs", &provider.url());
    let six = ("\"127.0.0.1:".to_owned(), "\"[::1]:".to_owned());
    let setup = Setup { tables, public: false, replace: vec![six], ..Setup::default() };
    let stage = Stage::start(setup).await;
    for listener in [stage.app().api(), stage.app().webhooks(), stage.app().admin()] {
        assert!(listener.is_ipv6(), "{listener}");
    }
    assert_eq!(stage.dial(None, "+15550002222").await.status, 200);
    assert_eq!(
        stage.ask("/api/concurrent-metrics/status").await["active"],
        1,
        "::1 is loopback: no token is asked for"
    );
    let passed = stage.send("GET", &stage.api("/six/v1/models"), &[], "").await;
    let got = provider.at("/v1/models");
    assert_eq!((passed.status, got.len()), (200, 1));
    assert_eq!(format!("http://{}", got[0].headers["host"].to_str().unwrap()), provider.url());
    assert!(!got[0].headers.contains_key("x-forwarded-for"), "a provider is told nothing of the app's network");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_listener_on_all_addresses_serves_both_families() {
    if !ipv6() {
        return;
    }
    bounded(async {
        let trusted = TrustedPeers::parse(&["127.0.0.0/8"]).unwrap();
        let settings = EdgeSettings { trusted_peers: trusted, ..EdgeSettings::default() };
        let all = ringfence::net::Edge::bind("[::]:0".parse().unwrap(), settings, None).await.unwrap();
        let edge = all.spawn(std::sync::Arc::new(crate::support::net::By(mirror)));
        let port = edge.local_addr().port();
        for host in ["127.0.0.1", "[::1]"] {
            let (ok, said) = run("curl", &["-sS", "--noproxy", "*", &format!("http://{host}:{port}/p")]).await;
            assert!(ok && said.starts_with(&format!("GET /p\nhost=Some(\"{host}:{port}\")")), "{said}");
        }
    })
    .await;
}

/// Whether strangers could reach a listener decides what has to be signed.
#[test]
fn loopback_is_known_in_both_families() {
    let strict = |address: &str| {
        let text = format!("[listen]\nwebhooks = \"{address}\"\n[accounts.elevenlabs]\nconcurrent = 4\n");
        config::load(&text, std::path::Path::new("."), &|_| None).config.expect("a config").strict
    };
    for loopback in ["127.0.0.1:0", "127.8.9.10:0", "[::1]:0"] {
        assert_eq!(strict(loopback), Strict::No, "{loopback}");
    }
    for open in ["0.0.0.0:0", "[::]:0", "[fd00::1]:0", "[fe80::1]:0", "192.0.2.1:0", "[::ffff:192.0.2.1]:0"] {
        assert_eq!(strict(open), Strict::NotLoopback, "{open}");
    }
    let admin = "[listen]\nadmin = \"[::]:0\"\n[accounts.elevenlabs]\nconcurrent = 4\n";
    let loaded = config::load(admin, std::path::Path::new("."), &|_| None);
    assert!(loaded.config.is_none() && loaded.diagnostics.iter().any(|d| d.code == "E041"), "a secret is asked for");
}
