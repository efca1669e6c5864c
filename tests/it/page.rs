//! The operator's page: who may watch what over the wire, and what it does in a real browser with hostile data.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use ringfence::jws;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::outbound::id;
use crate::outbound_limits::{BUSINESSES, stage};
use crate::support::browser::{Browser, enter};
use crate::support::stage::{Answer, PATIENCE, Stage};

pub const SECRET: &str = "a secret of some length, for tests alone";

pub fn token(stage: &Stage, scope: &str, businesses: Value, secs: i64) -> String {
    let exp = stage.clock.now_ms() / 1000 + secs;
    let claims = json!({"sub": "ops", "scope": scope, "businesses": businesses, "exp": exp});
    jws::sign(SECRET.as_bytes(), &claims).unwrap()
}

pub async fn with_secret(tables: &str) -> Stage {
    stage("", &format!("[admin]\ntoken_secret = \"{SECRET}\"\n{BUSINESSES}{tables}")).await
}

pub async fn get(stage: &Stage, path: &str, token: Option<&str>) -> Answer {
    let mut request = Request::builder().uri(stage.admin(path));
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    stage.over_tcp(request.body(Bytes::new()).unwrap()).await
}

/// A stream as its bytes come: HTTP/1.0 has no chunks between them.
struct Watching {
    from: TcpStream,
    head: String,
    bytes: Vec<u8>,
}

impl Watching {
    async fn at(stage: &Stage, path: &str, token: Option<&str>, host: &str) -> Self {
        let mut from = TcpStream::connect(stage.app().admin()).await.unwrap();
        let credential = token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
        let asked = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n{credential}\r\n");
        from.write_all(asked.as_bytes()).await.unwrap();
        let mut this = Self { from, head: String::new(), bytes: vec![] };
        this.until("a head", |text| text.contains("\r\n\r\n")).await;
        let text = this.text();
        let (head, rest) = text.split_once("\r\n\r\n").unwrap();
        (this.head, this.bytes) = (head.to_ascii_lowercase(), rest.as_bytes().to_vec());
        this
    }

    async fn open(stage: &Stage, path: &str, token: &str) -> Self {
        let this = Self::at(stage, path, Some(token), "localhost").await;
        assert!(this.head.contains(" 200 ") && this.head.contains("text/event-stream"), "{}", this.head);
        this
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// Reads on; `false` at the end.
    async fn more(&mut self) -> bool {
        let mut piece = vec![0; 64 * 1024];
        let read = self.from.read(&mut piece).await.unwrap();
        self.bytes.extend_from_slice(&piece[..read]);
        read > 0
    }

    async fn until(&mut self, what: &str, is_there: impl Fn(&str) -> bool) {
        let there = async {
            while !is_there(&self.text()) {
                assert!(self.more().await, "no {what}: {}", self.text());
            }
        };
        assert!(tokio::time::timeout(PATIENCE, there).await.is_ok(), "no {what}: {}", self.text());
    }

    /// Reads until the stream ends.
    async fn end(&mut self) {
        let ended = async { while self.more().await {} };
        assert!(tokio::time::timeout(PATIENCE, ended).await.is_ok(), "it goes on: {}", self.text());
    }

    /// Every whole event so far.
    fn events(&self) -> Vec<(String, Value)> {
        let text = self.text();
        let whole = text.rsplit_once("\n\n").map_or("", |(whole, _)| whole);
        let events = whole.split("\n\n").filter_map(|event| event.strip_prefix("event: ")?.split_once("\ndata: "));
        events.map(|(name, data)| (name.to_owned(), serde_json::from_str(data).unwrap())).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn its_files_are_served_to_anybody_and_hold_browsers_to_them_alone() {
    let stage = with_secret("").await;
    let page = get(&stage, "/", None).await;
    let text = String::from_utf8(page.body.to_vec()).unwrap();
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let named = text.split(['"', '\'']).filter(|word| word.starts_with("/page/"));
    let mut paths: Vec<&str> = named
        .chain([
            "/page/dom.js",
            "/page/views.js",
            "/page/records.js",
            "/page/runs.js",
            "/page/search.js",
            "/page/words.js",
            "/",
        ])
        .collect();
    paths.sort_unstable();
    paths.dedup();
    assert!(paths.len() >= 6, "{paths:?}");
    for inline in ["<style", " style=", "javascript:", "onclick", "onload", "onerror", "<script>"] {
        assert!(!text.contains(inline), "{inline} in {text}");
    }
    for path in paths.into_iter().chain(["/status", "/health"]) {
        let answer = get(&stage, path, None).await;
        assert_eq!(answer.status, if path == "/status" { 401 } else { 200 }, "{path}");
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.contains("default-src 'self'") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        let fixed = [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-store"),
        ];
        for (name, value) in fixed {
            assert_eq!(answer.header(name), Some(value), "{path}");
        }
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        let outside = body.replace("http://www.w3.org/2000/svg", "");
        assert!(!outside.contains("http://") && !outside.contains("https://"), "{path} names another host");
        assert!(!body.contains("innerHTML") && !body.contains("insertAdjacentHTML"), "{path}");
    }
    assert_eq!(get(&stage, "/page/nothing.js", None).await.status, 404);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_asks_for_the_scope_to_look() {
    let stage = with_secret("").await;
    let call = id(&stage.dial(Some("pro"), "+15550002001").await, "conversation_id");
    let tokens = [
        (None, 401),
        (Some(token(&stage, "metrics", json!("*"), 600)), 403),
        (Some(token(&stage, "read", json!("*"), -60)), 401),
        (Some(token(&stage, "read", json!("*"), 600)), 200),
        (Some(token(&stage, "operate", json!(["pro"]), 600)), 200),
    ];
    for path in ["/api/stream".to_owned(), format!("/api/calls/{call}/stream")] {
        for (token, wanted) in &tokens {
            let seen = Watching::at(&stage, &path, token.as_deref(), "localhost").await;
            assert!(seen.head.contains(&format!(" {wanted} ")), "{path}: {wanted}, not {}", seen.head);
            assert!(seen.head.contains("content-security-policy") && seen.head.contains("no-store"), "{}", seen.head);
        }
    }
    let other = Some(token(&stage, "operate", json!(["starter"]), 600));
    let seen = Watching::at(&stage, &format!("/api/calls/{call}/stream"), other.as_deref(), "localhost").await;
    assert!(seen.head.contains(" 404 "), "{}", seen.head);
    // A token that expires takes its stream with it.
    let short = token(&stage, "read", json!("*"), 2);
    let mut seen = Watching::open(&stage, "/api/stream", &short).await;
    let ended = tokio::time::timeout(PATIENCE, async { while seen.more().await {} }).await;
    assert!(ended.is_ok(), "the stream goes on after its token's end");
    stage.finish().await;
    // Without a secret programs of this machine may look; a page by another name may not.
    let stage = crate::outbound_limits::stage("", BUSINESSES).await;
    for (host, wanted) in [("localhost", 200), ("evil.test", 401)] {
        let seen = Watching::at(&stage, "/api/stream", None, host).await;
        assert!(seen.head.contains(&format!(" {wanted} ")), "{host}: {}", seen.head);
    }
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_one_business_sees_nothing_of_another() {
    let stage = with_secret("").await;
    assert_eq!(stage.dial(Some("starter"), "+15550002001").await.status, 200);
    assert_eq!(stage.dial(Some("starter"), "+15550002002").await.status, 503);
    assert_eq!(stage.dial(Some("pro"), "+15550002003").await.status, 200);
    let run = json!({"business": "starter", "account": "twilio", "operation": "calls", "request": {"Twiml": "<Response/>"},
        "own_numbers": ["+15550001111"], "start_at": "2999-01-01T00:00:00Z", "leads": [{"number": "+15551000010"}]});
    let bearer = format!("Bearer {}", token(&stage, "operate", json!("*"), 600));
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    assert_eq!(stage.send("POST", &stage.admin("/api/runs"), &headers, run.to_string()).await.status, 201);
    let mut own = Watching::open(&stage, "/api/stream", &token(&stage, "operate", json!(["pro"]), 600)).await;
    own.until("the state", |text| text.contains("event: whole") && text.ends_with("\n\n")).await;
    let events = own.events();
    assert_eq!((events[0].0.as_str(), &events[0].1["businesses"]), ("you", &json!(["pro"])));
    let (name, whole) = &events[1];
    assert_eq!(name, "whole");
    assert_eq!((whole["put"].as_array().map(Vec::len), &whole["put"][0]["businessId"]), (Some(1), &json!("pro")));
    assert_eq!(whole["parts"]["calls"]["open"], 1);
    assert_eq!((&whole["parts"]["refusals"], &whole["parts"]["history"]["accounts"]), (&json!([]), &json!({})));
    assert_eq!((&whole["parts"]["runs"], &whole["parts"]["schedules"]), (&json!([]), &json!([])));
    for of_all in ["status", "webhooks"] {
        assert!(whole["parts"].get(of_all).is_none(), "{of_all}");
    }
    // What comes while it looks.
    assert_eq!(stage.dial(Some("starter"), "+15550002004").await.status, 503);
    assert_eq!(stage.dial(Some("special"), "+15550002005").await.status, 200);
    let second = stage.dial(Some("pro"), "+15550002006").await;
    let second = id(&second, "conversation_id");
    own.until("the second call", |text| text.contains(&second)).await;
    let text = own.text();
    assert!(!text.contains("starter") && !text.contains("special"), "{text}");
    // Who sees all sees these, too.
    let mut all = Watching::open(&stage, "/api/stream", &token(&stage, "read", json!("*"), 600)).await;
    all.until("all", |text| text.contains("event: whole") && text.ends_with("\n\n")).await;
    let (_, whole) = all.events().remove(1);
    assert_eq!(whole["put"].as_array().map(Vec::len), Some(4));
    let refused: Vec<&Value> =
        whole["parts"]["refusals"].as_array().unwrap().iter().map(|one| &one["business"]).collect();
    assert_eq!(refused, [&json!("starter"), &json!("starter")]);
    let run = &whole["parts"]["runs"][0];
    assert_eq!(
        (&run["businessId"], &run["leads"], &run["counts"]["queued"]),
        (&json!("starter"), &json!(1), &json!(1))
    );
    assert!(run["nextDialAt"].as_str().is_some_and(|at| at.starts_with("2999")), "{run}");
    let lines = &whole["parts"]["history"]["limits"];
    assert!(lines["plan.STARTER"].is_array() && lines["global"].is_array(), "{lines}");
    assert!(whole["parts"]["status"]["accounts"].is_array() && whole["parts"]["webhooks"]["parked"].is_array());
    assert!(!all.text().contains("+15550002001"), "numbers are masked");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_new_comes_and_what_has_ended_goes() {
    let stage = with_secret("").await;
    let operate = token(&stage, "operate", json!("*"), 600);
    let mut seen = Watching::open(&stage, "/api/stream", &operate).await;
    seen.until("the state", |text| text.contains("event: whole") && text.ends_with("\n\n")).await;
    let first = id(&stage.dial(Some("pro"), "+15550002001").await, "conversation_id");
    seen.until("the call", |text| text.contains(&first)).await;
    let shown = get(&stage, &format!("/api/calls/{first}"), Some(&operate)).await.json();
    let call = shown["callId"].as_str().unwrap().to_owned();
    let mut one = Watching::open(&stage, &format!("/api/calls/{call}/stream"), &operate).await;
    one.until("the call", |text| text.contains("event: call")).await;
    let said = json!({"conversation_id": first, "speaker": "user", "message": "Good <b>morning</b>.",
        "timestamp": "2026-01-02T03:04:05Z"});
    let headers = [("content-type", "application/json"), crate::support::socket::TOKEN];
    let url = stage.webhooks(crate::support::socket::HEARD);
    assert_eq!(stage.send("POST", &url, &headers, said.to_string()).await.status, 201);
    one.until("what was said", |text| text.contains("event: said") && text.ends_with("\n\n")).await;
    let heard = one.events().into_iter().find(|(name, _)| name == "said").unwrap().1;
    assert_eq!((&heard[0]["speaker"], &heard[0]["text"]), (&json!("user"), &json!("Good <b>morning</b>.")));
    let bearer = format!("Bearer {operate}");
    let body = r#"{"force":true,"reason":"test"}"#;
    let release = stage.admin(&format!("/api/calls/{call}/release"));
    assert_eq!(stage.send("POST", &release, &[("authorization", &bearer)], body).await.status, 200);
    let gone = format!("\"gone\":[\"{call}\"]");
    seen.until("its end", |text| text.contains(&gone)).await;
    one.until("its end", |text| text.contains("\"phase\":\"ended\"")).await;
    assert_eq!(seen.events().iter().filter(|(name, _)| name == "whole").count(), 1);
    // At most one a second.
    let before = seen.events().len();
    let started = std::time::Instant::now();
    for n in 0..3 {
        stage.dial(Some("pro"), &format!("+155500030{n:02}")).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    seen.until("the third", |text| text.matches("conv_").count() >= 4 && text.ends_with("\n\n")).await;
    let (news, secs) = (seen.events().len() - before, started.elapsed().as_secs_f64());
    assert!(news as f64 <= secs + 2.0, "{news} in {secs} s");
    // Who stops lets viewers go at once.
    let stopped = std::time::Instant::now();
    stage.finish().await;
    assert!(tokio::time::timeout(PATIENCE, async { while seen.more().await {} }).await.is_ok());
    assert!(stopped.elapsed() < Duration::from_secs(10), "{:?}", stopped.elapsed());
}

// === in a browser ===

/// Names that would be code or markup, were they not shown as text.
const HOSTILE_AGENT: &str = "<img src=x onerror=\"window.hacked=1\"></td><script>window.hacked=2</script>";
const HOSTILE_BUSINESS: &str = "<img\"onerror=alert(1)><svg'onload=window.hacked=3>";
const HOSTILE_SPEECH: &str = "<iframe srcdoc=\"<script>parent.hacked=4</script>\"></iframe> {{7*7}} \u{202e}";

#[tokio::test(flavor = "multi_thread")]
async fn hostile_data_is_text_in_a_real_browser_and_a_release_is_asked_about_and_audited() {
    let stage = with_secret("").await;
    let Some(mut browser) = Browser::open(&stage.admin("/")).await else { return stage.finish().await };
    // It asks who is there, and keeps the token in this tab alone.
    browser.until("document.querySelector('#token').open && document.activeElement.id === 'token-text'").await;
    browser.until("document.querySelector('#token-error').textContent.includes('token')").await;
    assert_eq!(browser.is("document.querySelectorAll('tbody tr').length").await, 0);
    let operate = token(&stage, "operate", json!("*"), 600);
    browser.is(&enter(&operate)).await;
    browser.until("document.querySelector('#link').textContent === 'Live'").await;
    assert_eq!(browser.is("localStorage.length + document.cookie.length").await, 0);
    assert_eq!(browser.is("sessionStorage.length").await, 1);

    let key = stage.control.settings().el_api_key;
    let headers =
        [("content-type", "application/json"), ("xi-api-key", key.as_str()), ("x-business-id", HOSTILE_BUSINESS)];
    let body = json!({"agent_id": HOSTILE_AGENT, "agent_phone_number_id": "phnum_1", "to_number": "+15550002222"});
    let url = stage.api("/elevenlabs/v1/convai/twilio/outbound-call");
    let placed = stage.send("POST", &url, &headers, body.to_string()).await;
    assert_eq!(placed.status, 200, "{placed:?}");
    let conversation = id(&placed, "conversation_id");
    browser.is("(() => { location.hash = '#calls'; return true })()").await;
    browser.until("document.querySelectorAll('#calls-list tbody tr').length === 1").await;
    let shown = browser.is("document.querySelector('#calls-list tbody tr').children[1].textContent").await;
    assert_eq!(shown, HOSTILE_BUSINESS);
    // Its transcript, opened by the keyboard.
    let said = json!({"conversation_id": conversation, "speaker": "user", "message": HOSTILE_SPEECH,
        "timestamp": "2026-01-02T03:04:05Z"});
    let mark = [("content-type", "application/json"), crate::support::socket::TOKEN];
    let heard = stage.webhooks(crate::support::socket::HEARD);
    assert_eq!(stage.send("POST", &heard, &mark, said.to_string()).await.status, 201);
    browser.is("(() => { document.querySelector('#calls-list tbody button').focus(); return true })()").await;
    browser.press("Enter", 13).await;
    browser.until("document.querySelector('#call-dialog').open").await;
    browser.until("document.querySelectorAll('#said li').length === 1").await;
    assert_eq!(browser.is("document.querySelector('#said li span').textContent").await, HOSTILE_SPEECH);
    browser
        .until(&format!("document.querySelector('#call-attributes').textContent.includes({})", json!(HOSTILE_AGENT)))
        .await;
    // Nothing ran, and nothing but the page's own elements is there.
    assert_eq!(browser.is("window.hacked === undefined").await, true);
    let own = "document.querySelectorAll('iframe, script:not([src=\"/page/app.js\"]), img:not(.brand img), svg[onload]').length";
    assert_eq!(browser.is(own).await, 0);
    // Not wider than a telephone.
    browser.width(375).await;
    assert_eq!(browser.is("document.documentElement.scrollWidth <= innerWidth").await, true);
    // A release needs its reason, and stands in the audit.
    browser.is("(() => { document.querySelector('#call-release').click(); return true })()").await;
    browser.until("document.querySelector('#confirm').open && document.activeElement.id === 'confirm-reason'").await;
    browser.is("(() => { document.querySelector('#confirm-form').requestSubmit(); return true })()").await;
    assert_eq!(browser.is("document.querySelector('#confirm').open").await, true, "without a reason");
    assert_eq!(stage.held().await, 1);
    browser
        .is("(() => { document.querySelector('#confirm-reason').value = 'stuck <b>call</b>'; \
             document.querySelector('#confirm-form').requestSubmit(); return true })()")
        .await;
    browser.until("document.querySelector('#done').textContent.includes('released')").await;
    browser.until("document.querySelectorAll('#calls-list tbody tr').length === 0").await;
    assert_eq!(stage.held().await, 0);
    let audit = get(&stage, "/api/audit", Some(&operate)).await.json();
    let release = audit["audit"].as_array().unwrap().iter().find(|one| one["what"] == "release").unwrap().clone();
    assert_eq!((&release["who"], &release["reason"]), (&json!("ops"), &json!("stuck <b>call</b>")));
    // A token that may only look, of one business: no acts, nothing of all.
    browser.is("(() => { document.querySelector('#call-dialog').close(); return true })()").await;
    browser.is(&enter(&token(&stage, "read", json!(["pro"]), 600))).await;
    browser.until("document.querySelector('#note').textContent.includes('pro')").await;
    browser.until("document.querySelector('#link').textContent === 'Live'").await;
    let text = browser.is("document.body.textContent").await;
    assert!(!text.as_str().unwrap().contains("onload=window"), "what the other token showed is still there");
    assert_eq!(browser.is("document.querySelector('#webhooks-part').hidden").await, true);
    browser.close().await;
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_survive_a_rotation_and_streams_end_with_their_secret() {
    const NEWER: &str = "another secret of some length, for the next year";
    let stage = with_secret("").await;
    let call = id(&stage.dial(Some("pro"), "+15550002001").await, "conversation_id");
    let read = token(&stage, "read", json!("*"), 600);
    let mut streams = vec![
        Watching::open(&stage, "/api/stream", &read).await,
        Watching::open(&stage, &format!("/api/calls/{call}/stream"), &read).await,
    ];
    for seen in &mut streams {
        seen.until("its first event", |text| text.contains("event:")).await;
    }
    // The newer one is put first: the older still counts.
    let (one, both) = (format!("token_secret = \"{SECRET}\""), format!("token_secret = [\"{NEWER}\", \"{SECRET}\"]"));
    stage.rewrite(&one, &both);
    assert_eq!(stage.reload().await.status, 200);
    assert_eq!(get(&stage, "/status", Some(&read)).await.status, 200);
    let newer = jws::sign(
        NEWER.as_bytes(),
        &json!({"sub": "ops", "exp": stage.clock.now_ms() / 1000 + 600, "businesses": "*", "scope": "read"}),
    )
    .unwrap();
    assert_eq!(get(&stage, "/status", Some(&newer)).await.status, 200);
    let mut stays = Watching::open(&stage, "/api/stream", &newer).await;

    stage.rewrite(&both, &format!("token_secret = \"{NEWER}\""));
    assert_eq!(stage.reload().await.status, 200);
    assert_eq!(get(&stage, "/status", Some(&read)).await.status, 401);
    for seen in &mut streams {
        seen.end().await;
    }
    let seen = stays.text().len();
    stage.dial(Some("pro"), "+15550002002").await;
    stays.until("news after the reload", |text| text.len() > seen && text.contains("+155")).await;
    stage.finish().await;
}
