//! Attacks on `listen.admin`: who gets in over TCP, by the Unix socket, with which token.

use std::os::unix::fs::PermissionsExt as _;

use bytes::Bytes;
use http::Request;
use ringfence::admin::api::{self, ApiRoute};
use ringfence::jws;
use serde_json::{Value, json};

use crate::cli::{self, Folder};
use crate::outbound::id;
use crate::outbound_limits::{BUSINESSES, stage};
use crate::support::stage::{Answer, Stage};

const SECRET: &str = "a secret of some length, for tests alone";

fn token(secret: &str, claims: Value) -> String {
    format!("Bearer {}", jws::sign(secret.as_bytes(), &claims).unwrap())
}

async fn tcp(stage: &Stage, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut request = Request::builder().method(method).uri(stage.admin(path));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    stage.over_tcp(request.body(Bytes::from(body.to_owned())).unwrap()).await
}

/// Every route with what each credential is answered. `ID` is a call of business `pro`, which the token of some businesses names.
const ROUTES: [(&str, &str, [u16; 7]); 57] = [
    //                                              none metrics read operate one  expired forged
    ("GET", "/health", [200, 200, 200, 200, 200, 200, 200]),
    ("GET", "/ready", [200, 200, 200, 200, 200, 200, 200]),
    ("GET", "/openapi.json", [200, 200, 200, 200, 200, 200, 200]),
    ("GET", "/metrics", [200, 200, 200, 200, 403, 401, 401]),
    ("GET", "/status", [401, 403, 200, 200, 403, 401, 401]),
    ("GET", "/api/concurrent-metrics", [401, 200, 200, 200, 403, 401, 401]),
    ("GET", "/api/concurrent-metrics/status", [401, 200, 200, 200, 403, 401, 401]),
    ("GET", "/api/concurrent-metrics/prometheus", [401, 200, 200, 200, 403, 401, 401]),
    ("GET", "/api/concurrent-metrics/events", [401, 403, 200, 200, 200, 401, 401]),
    ("GET", "/api/calls", [401, 403, 200, 200, 200, 401, 401]),
    ("GET", "/api/calls/ID", [401, 403, 200, 200, 200, 401, 401]),
    ("GET", "/api/refusals", [401, 403, 200, 200, 200, 401, 401]),
    ("GET", "/api/refusals/nobody", [401, 403, 404, 404, 404, 401, 401]),
    ("GET", "/api/explain", [401, 403, 400, 400, 400, 401, 401]),
    ("GET", "/api/bypass", [401, 403, 200, 200, 403, 401, 401]),
    ("PUT", "/api/bypass", [401, 403, 403, 400, 403, 401, 401]),
    ("DELETE", "/api/bypass", [401, 403, 403, 200, 403, 401, 401]),
    ("GET", "/api/businesses", [401, 403, 200, 200, 200, 401, 401]),
    ("GET", "/api/businesses/pro", [401, 403, 200, 200, 200, 401, 401]),
    ("GET", "/api/events", [401, 403, 200, 200, 403, 401, 401]),
    ("GET", "/api/events/nobody", [401, 403, 404, 404, 403, 401, 401]),
    ("GET", "/api/events/replay", [401, 403, 200, 200, 403, 401, 401]),
    ("GET", "/api/audit", [401, 403, 200, 200, 403, 401, 401]),
    // The body is a business, and no list.
    ("PUT", "/api/businesses", [401, 403, 403, 400, 403, 401, 401]),
    ("PUT", "/api/businesses/pro", [401, 403, 403, 200, 403, 401, 401]),
    ("DELETE", "/api/businesses/pro", [401, 403, 403, 204, 403, 401, 401]),
    // The body is no list of numbers.
    ("PUT", "/api/do-not-call", [401, 403, 403, 400, 403, 401, 401]),
    ("PUT", "/api/do-not-call/+905321234567", [401, 403, 403, 200, 403, 401, 401]),
    ("PUT", "/api/do-not-call/+905321234567?business=pro", [401, 403, 403, 200, 200, 401, 401]),
    ("GET", "/api/do-not-call", [401, 403, 200, 200, 403, 401, 401]),
    ("GET", "/api/do-not-call/+905321234567?business=pro", [401, 403, 200, 200, 200, 401, 401]),
    ("DELETE", "/api/do-not-call/+905321234567", [401, 403, 403, 204, 403, 401, 401]),
    ("POST", "/api/businesses/pro/purge", [401, 403, 403, 200, 403, 401, 401]),
    ("POST", "/api/events/nobody/replay", [401, 403, 403, 404, 403, 401, 401]),
    ("POST", "/api/events/replay", [401, 403, 403, 200, 403, 401, 401]),
    ("POST", "/api/reload", [401, 403, 403, 200, 403, 401, 401]),
    ("POST", "/api/reconcile", [401, 403, 403, 200, 403, 401, 401]),
    ("POST", "/conversations/nobody/fetch", [401, 403, 403, 404, 404, 401, 401]),
    ("POST", "/api/calls/ID/release", [401, 403, 403, 200, 200, 401, 401]),
    ("POST", "/api/calls/ID/hangup", [401, 403, 403, 200, 200, 401, 401]),
    // The body is no run, and no list of numbers.
    ("DELETE", "/api/do-not-call", [401, 403, 403, 400, 403, 401, 401]),
    ("GET", "/api/runs", [401, 403, 200, 200, 200, 401, 401]),
    ("POST", "/api/runs", [401, 403, 403, 400, 400, 401, 401]),
    ("GET", "/api/runs/nobody", [401, 403, 404, 404, 404, 401, 401]),
    ("POST", "/api/runs/nobody/leads", [401, 403, 403, 404, 404, 401, 401]),
    ("GET", "/api/runs/nobody/results", [401, 403, 404, 404, 404, 401, 401]),
    ("POST", "/api/runs/nobody/pause", [401, 403, 403, 404, 404, 401, 401]),
    ("POST", "/api/runs/nobody/resume", [401, 403, 403, 404, 404, 401, 401]),
    ("POST", "/api/runs/nobody/cancel", [401, 403, 403, 404, 404, 401, 401]),
    // The body is no schedule.
    ("GET", "/api/schedules", [401, 403, 200, 200, 200, 401, 401]),
    ("POST", "/api/schedules", [401, 403, 403, 400, 400, 401, 401]),
    ("GET", "/api/schedules/nobody", [401, 403, 404, 404, 404, 401, 401]),
    ("DELETE", "/api/schedules/nobody", [401, 403, 403, 404, 404, 401, 401]),
    ("POST", "/api/schedules/nobody/fire", [401, 403, 403, 404, 404, 401, 401]),
    ("POST", "/api/schedules/nobody/pause", [401, 403, 403, 404, 404, 401, 401]),
    ("POST", "/api/schedules/nobody/resume", [401, 403, 403, 404, 404, 401, 401]),
    ("POST", "/api/runs/nobody/retry", [401, 403, 403, 404, 404, 401, 401]),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_route_asks_for_its_scope() {
    let stage = stage("", &format!("[admin]\ntoken_secret = \"{SECRET}\"\n{BUSINESSES}")).await;
    let now = stage.clock.now_ms() / 1000;
    let of = |secret: &str, scope: &str, businesses: Value, exp: i64| {
        token(secret, json!({"sub": "ops", "scope": scope, "businesses": businesses, "exp": exp}))
    };
    let tokens = [
        None,
        Some(of(SECRET, "openid metrics", json!("*"), now + 600)),
        Some(of(SECRET, "profile read", json!(["*"]), now + 600)),
        Some(of(SECRET, "operate", json!("*"), now + 600)),
        Some(of(SECRET, "operate", json!(["pro"]), now + 600)),
        Some(of(SECRET, "operate", json!("*"), now - 60)),
        Some(of("another secret of some length, of somebody else", "operate", json!("*"), now + 600)),
    ];
    let call = id(&stage.dial(Some("pro"), "+15550002001").await, "conversation_id");
    let own = r#"{"plan":"PRO","force":true,"reason":"test"}"#;
    for (method, path, wanted) in ROUTES {
        for (token, wanted) in tokens.iter().zip(wanted) {
            let path = path.replace("ID", &call);
            let mut headers = vec![("content-type", "application/json")];
            headers.extend(token.as_deref().map(|token| ("authorization", token)));
            let body = if method == "PUT" { r#"{"plan":"PRO"}"# } else { own };
            if method == "DELETE" {
                stage.send("PUT", &stage.admin("/api/businesses/pro"), &[], r#"{"plan":"PRO"}"#).await;
            }
            let answer = tcp(&stage, method, &path, &headers, body).await;
            let put = method == "PUT" && wanted == 200 && answer.status == 201;
            assert!(answer.status == wanted || put, "{method} {path} {token:?}: {wanted}, not {answer:?}");
            if wanted == 401 {
                assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{method} {path}");
            }
        }
    }
    // Who scrapes reads no ids of calls.
    let figures = ["/metrics", "/api/concurrent-metrics", "/api/concurrent-metrics/status"];
    id(&stage.dial(Some("pro"), "+15550002001").await, "conversation_id");
    for path in figures {
        let metrics = tcp(&stage, "GET", path, &[("authorization", tokens[1].as_deref().unwrap())], "").await;
        let text = String::from_utf8_lossy(&metrics.body).into_owned();
        assert!(metrics.status == 200 && !text.contains("conv_") && !text.contains("c_0"), "{path}: {text}");
    }
    stage.finish().await;
}

/// With a secret nobody gets in by where they come from: a local proxy, a mesh's peer, a rebound name.
/// A route that is described and stands not in the matrix was never tried with any credential.
#[test]
fn the_matrix_has_every_route() {
    let tried = |route: &ApiRoute| {
        let own: Vec<&str> = route.path.split('/').collect();
        ROUTES.iter().any(|(method, path, _)| {
            let path: Vec<&str> = path.split('?').next().unwrap_or_default().split('/').collect();
            let same = |(own, part): (&&str, &&str)| own.starts_with('{') || own == part;
            *method == route.method && own.len() == path.len() && own.iter().zip(&path).all(same)
        })
    };
    // Streams, which have no end, are tried in `page`.
    let streams = |route: &&ApiRoute| route.path.ends_with("/stream");
    let missing: Vec<_> =
        api::ROUTES.iter().filter(|route| !streams(route) && !tried(route)).map(|r| (r.method, r.path)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_secret_loopback_is_nobody() {
    let stage = stage("", &format!("[admin]\ntoken_secret = \"{SECRET}\"\n{BUSINESSES}")).await;
    let now = stage.clock.now_ms() / 1000;
    let good = token(SECRET, json!({"sub": "ops", "scope": "operate", "businesses": "*", "exp": now + 600}));
    let early =
        token(SECRET, json!({"sub": "ops", "scope": "operate", "businesses": "*", "exp": now + 600, "nbf": now + 300}));
    let basic = "Basic b3BzOm9wcw==";
    let put = |headers: Vec<(&'static str, String)>| {
        let stage = &stage;
        async move {
            let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            tcp(stage, "PUT", "/api/businesses/victim", &headers, r#"{"plan":"PRO"}"#).await.status
        }
    };
    let host = |name: &str| ("host", name.to_owned());
    let authorization = |value: &str| ("authorization", value.to_owned());
    for headers in [
        vec![],
        vec![host("localhost")],
        vec![host("127.0.0.1:9900")],
        vec![host("ringfence.internal"), ("x-forwarded-for", "203.0.113.9".to_owned())],
        vec![authorization(basic)],
        vec![authorization("Bearer")],
        vec![authorization("Bearer x.y.z")],
        vec![authorization(&good[7..])],
        vec![authorization(&early)],
        vec![authorization(&good), authorization(&good)],
        vec![authorization(&good), authorization(basic)],
    ] {
        assert_eq!(put(headers.clone()).await, 401, "{headers:?}");
    }
    for (n, scheme) in ["Bearer", "bearer", "BEARER"].iter().enumerate() {
        let shown = good.replace("Bearer", scheme);
        assert_eq!(put(vec![authorization(&shown)]).await, if n == 0 { 201 } else { 200 }, "{scheme}");
    }
    // Istio's sidecar calls from an address of its own in 127.0.0.0/8.
    let from = tokio::net::TcpSocket::new_v4().unwrap();
    from.bind("127.0.0.6:0".parse().unwrap()).unwrap();
    let mut wire = crate::support::net::Wire::new(from.connect(stage.app().admin()).await.unwrap());
    wire.send("POST /api/businesses/victim/purge HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n").await;
    assert!(wire.head().await.unwrap().contains(" 401 "));
    // A credential that means nothing is no "no credential", over the socket neither.
    let over_socket = stage.send("GET", &stage.admin("/status"), &[("authorization", basic)], "").await;
    assert_eq!(over_socket.status, 401);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_secret_loopback_looks_and_the_socket_changes() {
    let stage = stage("", BUSINESSES).await;
    let path = "/api/businesses/acme";
    let body = r#"{"plan":"PRO"}"#;
    assert_eq!(tcp(&stage, "GET", "/status", &[], "").await.status, 200);
    let denied = tcp(&stage, "PUT", path, &[], body).await;
    assert_eq!(denied.status, 401);
    let why = denied.json()["message"].as_str().unwrap().to_owned();
    assert!(
        why.contains("--unix-socket") && why.contains(stage.app().admin_socket().unwrap().to_str().unwrap()),
        "{why}"
    );
    for (method, path) in [
        ("PUT", path),
        ("DELETE", path),
        ("POST", "/api/businesses/acme/purge"),
        ("POST", "/api/reload"),
        ("POST", "/api/reconcile"),
        ("POST", "/api/calls/c_x/hangup"),
        ("POST", "/api/calls/c_x/release"),
        ("POST", "/api/events/x/replay"),
        ("POST", "/conversations/x/fetch"),
    ] {
        assert_eq!(tcp(&stage, method, path, &[], body).await.status, 401, "{method} {path}");
    }
    for headers in
        [[("host", "evil.test")], [("x-forwarded-for", "203.0.113.9")], [("origin", "null")], [("via", "1.1 x")]]
    {
        assert_eq!(tcp(&stage, "GET", "/status", &headers, "").await.status, 401, "{headers:?}");
    }
    for host in ["evil.test", "evil.test:9900", "localhost.evil.test"] {
        assert_eq!(tcp(&stage, "GET", "/metrics", &[("host", host)], "").await.status, 401, "{host}");
    }
    assert_eq!(tcp(&stage, "GET", "/metrics", &[("host", "10.0.0.5:9900")], "").await.status, 200);
    assert_eq!(tcp(&stage, "GET", "/status", &[("authorization", "Bearer x.y.z")], "").await.status, 401);
    assert_eq!(stage.send("PUT", &stage.admin(path), &[], body).await.status, 201, "over the socket");
    stage.finish().await;
}

/// What ringfence sends for others is not answered where operators ask.
#[tokio::test(flavor = "multi_thread")]
async fn requests_of_ringfences_own_are_refused() {
    let stage = stage("", &format!("[admin]\ntoken_secret = \"{SECRET}\"\n{BUSINESSES}")).await;
    let now = stage.clock.now_ms() / 1000;
    let good = token(SECRET, json!({"sub": "ops", "scope": "operate", "businesses": "*", "exp": now + 600}));
    for mark in ["x-ringfence-delivery", "X-Ringfence-Outgoing", "x-ringfence-token"] {
        let headers = [(mark, "1"), ("authorization", good.as_str())];
        assert_eq!(tcp(&stage, "PUT", "/api/businesses/victim", &headers, "{}").await.status, 403, "{mark}");
        assert_eq!(stage.send("GET", &stage.admin("/health"), &[(mark, "1")], "").await.status, 403, "{mark}");
    }
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_can_need_a_token() {
    let stage = stage("", &format!("[admin]\ntoken_secret = \"{SECRET}\"\nmetrics_token = true\n{BUSINESSES}")).await;
    let now = stage.clock.now_ms() / 1000;
    let scraper = token(SECRET, json!({"sub": "prometheus", "scope": "metrics", "businesses": "*", "exp": now + 600}));
    assert_eq!(tcp(&stage, "GET", "/metrics", &[], "").await.status, 401);
    assert_eq!(tcp(&stage, "GET", "/metrics", &[("authorization", &scraper)], "").await.status, 200);
    stage.finish().await;
}

/// Every change is in the audit: who, from where, before and after.
#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_in_the_audit() {
    let stage = stage("", &format!("[admin]\ntoken_secret = \"{SECRET}\"\n{BUSINESSES}")).await;
    let now = stage.clock.now_ms() / 1000;
    let good = token(SECRET, json!({"sub": "olga", "scope": "operate", "businesses": "*", "exp": now + 600}));
    let call = id(&stage.dial(Some("pro"), "+15550002001").await, "conversation_id");
    let own = r#"{"force":true,"reason":"it hung"}"#;
    let by_token = [("authorization", good.as_str())];
    for (method, path, body) in [
        ("PUT", "/api/businesses/acme", r#"{"plan":"PRO"}"#),
        ("PUT", "/api/businesses/acme", r#"{"plan":"PRO","max_calls":7}"#),
        ("DELETE", "/api/businesses/acme", ""),
        ("POST", "/api/businesses/acme/purge", r#"{"reason":"they left"}"#),
        ("POST", "/api/reconcile", ""),
        ("POST", "/api/events/nobody/replay", ""),
        ("POST", "/conversations/nobody/fetch", ""),
    ] {
        let status = tcp(&stage, method, path, &by_token, body).await.status;
        assert!(status < 300 || path.contains("nobody"), "{method} {path}: {status}");
    }
    let first = id(&stage.dial(Some("pro"), "+15550002002").await, "conversation_id");
    let hangup = stage.admin(&format!("/api/calls/{first}/hangup"));
    let hung = stage.send("POST", &hangup, &[], r#"{"reason":"they asked for it"}"#).await;
    assert_eq!(hung.status, 200, "{hung:?}");
    let release = stage.send("POST", &stage.admin(&format!("/api/calls/{call}/release")), &[], own).await;
    assert_eq!(release.status, 200);
    stage.rewrite("[businesses.payg]", "[reload]\nwatch = false\n[businesses.payg]");
    assert_eq!(stage.reload().await.json()["result"], "loaded");

    let audit = stage.ask("/api/audit?limit=50").await["audit"].clone();
    let audit: Vec<&Value> = audit.as_array().unwrap().iter().rev().collect();
    let whats: Vec<&str> = audit.iter().map(|one| one["what"].as_str().unwrap()).collect();
    // A purge is noted before it is made, and what it came to after it.
    let changes =
        ["put business", "put business", "delete business", "purge", "purged", "reconcile", "replay", "fetch"];
    assert_eq!(whats, [changes.as_slice(), &["hangup", "hung up", "release", "reload"]].concat());
    for one in &audit[..8] {
        assert!(one["who"] == "olga" && one["from"].as_str().unwrap().starts_with("127.0.0.1:"), "{one}");
    }
    for one in &audit[8..] {
        assert!(one["who"] == "local" && one["from"].as_str().unwrap().starts_with("unix socket, uid "), "{one}");
    }
    let max = |n: usize, part: &str| audit[n][part]["max_calls"].clone();
    assert_eq!((&audit[0]["before"], &audit[0]["after"]["plan"]), (&Value::Null, &json!("PRO")));
    assert_eq!((max(1, "before"), max(1, "after")), (Value::Null, json!(7)));
    assert_eq!((max(2, "before"), &audit[2]["after"]), (json!(7), &Value::Null));
    assert_eq!((&audit[3]["reason"], &audit[10]["reason"]), (&json!("they left"), &json!("it hung")));
    assert_eq!((&audit[4]["reason"], &audit[4]["after"]["calls"]), (&json!("they left"), &json!(0)));
    assert!(audit[4]["before"]["refusals"].is_u64(), "{}", audit[4]);
    // A hang-up has a reason, what the call was, and what became of it.
    let hung = |n: usize| (&audit[n]["reason"], &audit[n]["before"]["phase"], &audit[n]["after"]["phase"]);
    let reason = json!("they asked for it");
    assert_eq!((hung(8).0, hung(8).2), (&reason, &Value::Null));
    assert_eq!(hung(9), (&reason, hung(8).1, &json!("ended")));
    assert!(audit[11]["before"]["policy"].is_string() && audit[11]["before"] != audit[11]["after"], "{}", audit[11]);
    stage.finish().await;
}

/// As clients of before ringfence read figures; nothing else is open to that.
#[tokio::test(flavor = "multi_thread")]
async fn a_cron_secret_reads_figures_and_nothing_else() {
    const FIGURES: &str = "/api/concurrent-metrics/prometheus";
    let own = "a cron secret, 16+";
    let with = stage("", &format!("[admin]\ntoken_secret = \"{SECRET}\"\ncron_secret = \"{own}\"")).await;
    let cron = |secret| vec![("x-cron-secret", secret)];
    let read = token(SECRET, json!({"sub": "ann", "scope": "metrics", "businesses": "*", "exp": 4_000_000_000_i64}));
    let forged = token(
        "another secret of some length, too",
        json!({"sub": "ann", "scope": "metrics", "businesses": "*", "exp": 4_000_000_000_i64}),
    );
    for (path, headers, status) in [
        (FIGURES, cron(own), 200),
        (FIGURES, cron("a cron secret, 16-"), 401),
        (FIGURES, cron(""), 401),
        (FIGURES, vec![], 401),
        (FIGURES, vec![("authorization", read.as_str())], 200),
        (FIGURES, vec![("authorization", read.as_str()), ("x-cron-secret", "wrong")], 200),
        (FIGURES, vec![("authorization", forged.as_str()), ("x-cron-secret", own)], 401),
        ("/api/concurrent-metrics", cron(own), 401),
        ("/api/concurrent-metrics/status", cron(own), 401),
        ("/status", cron(own), 401),
        ("/api/calls", cron(own), 401),
    ] {
        assert_eq!(tcp(&with, "GET", path, &headers, "").await.status, status, "{path} {headers:?}");
    }
    assert_eq!(tcp(&with, "PUT", FIGURES, &cron(own), "").await.status, 405, "it is not written to");
    with.finish().await;
    // Where none is set the header means nothing: a program on this machine may look.
    let without = stage("", "").await;
    assert_eq!(tcp(&without, "GET", FIGURES, &cron("anything"), "").await.status, 200);
    without.finish().await;
}

// === the socket, with the real program ===

fn config(folder: &Folder, more: &str) -> String {
    folder.write("ok.toml", &format!("{}{more}", cli::sound("http://127.0.0.1:1")))
}

#[test]
fn commands_find_the_sidecar_by_its_config() {
    let folder = Folder::new();
    let file = config(&folder, "");
    let (mut serve, ready) = cli::start(&["serve", "--config", &file, "--ready-json"]);
    let socket = std::path::PathBuf::from(ready["adminSocket"].as_str().unwrap());
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let (code, out, err) = cli::run(&["calls", "--config", &file, "list"]);
    assert!(code == Some(0) && out.contains("account elevenlabs"), "{out}{err}");
    let (code, out, err) = cli::run(&["reload", "--config", &file]);
    assert!(code == Some(0) && out.starts_with("unchanged"), "{out}{err}");
    // An address without a scheme; looking is enough for it.
    let address = ready["admin"].as_str().unwrap();
    let (code, out, err) = cli::run(&["calls", "--admin", address, "list"]);
    assert!(code == Some(0) && out.contains("account elevenlabs"), "{out}{err}");
    let (code, _, err) = cli::run(&["reload", "--admin", address]);
    assert!(code == Some(1) && err.contains("--unix-socket"), "{err}");
    assert_eq!(cli::term(&mut serve), Some(0));
    assert!(!socket.exists(), "it goes with the process");
}

#[test]
fn a_sockets_owner_keeps_it_and_a_dead_ones_is_taken_over() {
    let folder = Folder::new();
    let store = |name: &str| format!("[store]\npath = \"{}\"\n", folder.0.join(name).display());
    let socket = folder.0.join("shared.sock");
    let named = |file: &str, name: &str| {
        let text = cli::sound("http://127.0.0.1:1");
        let listen = format!("[listen]\nadmin_socket = \"{}\"\n", socket.display());
        let text = if text.contains("[listen]\n") { text.replacen("[listen]\n", &listen, 1) } else { text + &listen };
        folder.write(file, &(text + &store(name)))
    };
    let (one, two) = (named("one.toml", "one.db"), named("two.toml", "two.db"));
    let (mut first, _) = cli::start(&["serve", "--config", &one, "--ready-json"]);
    let (code, _, err) = cli::run(&["serve", "--config", &two]);
    assert!(code == Some(1) && err.contains("listen.admin_socket") && err.contains("another process"), "{err}");
    let (code, _, err) = cli::run(&["calls", "--config", &one, "list"]);
    assert_eq!(code, Some(0), "the first is still there: {err}");
    first.0.kill().unwrap();
    first.0.wait().unwrap();
    assert!(socket.exists(), "kill -9 leaves it behind");
    let (mut second, _) = cli::start(&["serve", "--config", &two, "--ready-json"]);
    assert_eq!(cli::run(&["calls", "--config", &two, "list"]).0, Some(0));
    assert_eq!(cli::term(&mut second), Some(0));
}

/// What holds calls and numbers is its user's alone, whatever umask the program is started with.
#[test]
fn files_are_their_users_alone_and_check_says_where_they_are_not() {
    let folder = Folder::new();
    let store = folder.0.join("ringfence.db");
    let file = config(&folder, &format!("[store]\npath = \"{}\"\n", store.display()));
    let script = format!("umask 000; exec {} serve --config {file} --ready-json", env!("CARGO_BIN_EXE_ringfence"));
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &script]);
    let (mut serve, _) = cli::start_command(command, &["serve"]);
    let mut seen = vec![];
    for entry in std::fs::read_dir(&folder.0).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        let (meta, mode) = (entry.metadata().unwrap(), entry.metadata().unwrap().permissions().mode() & 0o777);
        if name.starts_with("ringfence.db") {
            assert_eq!(mode, if meta.is_dir() { 0o700 } else { 0o600 }, "{name}: {mode:o}");
            seen.push(name);
        }
    }
    for part in ["ringfence.db", "ringfence.db-wal", "ringfence.db-shm", "ringfence.db.lock", "ringfence.db-admin.sock"]
    {
        assert!(seen.iter().any(|name| name == part), "{part} is not among {seen:?}");
    }
    assert_eq!(cli::term(&mut serve), Some(0));
    let (code, _, err) = cli::run(&["check", "--config", &file]);
    assert!(code == Some(0) && !err.contains("W016"), "{err}");
    std::fs::set_permissions(&store, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (code, _, err) = cli::run(&["check", "--config", &file]);
    assert!(code == Some(0) && err.contains("W016") && err.contains("chmod 0600"), "{err}");
}

#[test]
fn a_path_that_no_socket_may_have_is_a_mistake_of_the_config() {
    let folder = Folder::new();
    let long = "x".repeat(120);
    let text = format!("[listen]\nadmin_socket = \"/tmp/{long}.sock\"\n[accounts.elevenlabs]\nconcurrent = 1\n");
    let (code, _, err) = cli::run(&["check", "--config", &folder.write("long.toml", &text)]);
    assert!(code == Some(2) && err.contains("listen.admin_socket") && err.contains("107"), "{err}");
}

#[test]
fn a_short_secret_is_a_mistake_of_the_config() {
    let folder = Folder::new();
    for (table, short) in [("admin", "abc"), ("admin", "thirty-one characters, one less"), ("client", "abc")] {
        let text = format!("[accounts.elevenlabs]\nconcurrent = 1\n[{table}]\ntoken_secret = \"{short}\"\n");
        let (code, _, err) = cli::run(&["check", "--config", &folder.write("short.toml", &text)]);
        let wanted = format!("`{table}.token_secret` has {} bytes", short.len());
        assert!(code == Some(2) && err.contains(&wanted) && !err.contains(short), "{err}");
    }
}
