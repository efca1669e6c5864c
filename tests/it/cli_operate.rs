//! Commands about a running sidecar: what an operator asks at night, and what is changed on the spot.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cli::{Folder, LISTEN, Running, command, run, start, term};

/// Long enough for a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

/// A sidecar in front of the simulator: `acme` may have one call, the account three.
struct Sidecar {
    folder: Folder,
    file: String,
    ready: Value,
    _sim: Running,
    serve: Running,
}

impl Sidecar {
    /// `{upstream}` in what is added to the config is the simulator's URL.
    fn start(more: &str) -> Self {
        let folder = Folder::new();
        let (sim, ready) = start(&["simulate", "--listen", "127.0.0.1:0", "--ready-json"]);
        let (url, secret) = (ready["url"].as_str().unwrap(), ready["el_webhook_secret"].as_str().unwrap());
        let more = more.replace("{upstream}", url);
        let text = format!(
            "{LISTEN}[accounts.elevenlabs]\nupstream = \"{url}\"\napi_key = \"sk_simulated\"\nconcurrent = 3\nwebhook_secrets = [\"{secret}\"]\n\
             [businesses.acme]\nmax_calls = 1\n[timeouts]\ndrain_secs = 1\n{more}"
        );
        let file = folder.write("ringfence.toml", &text);
        let (serve, ready) = start(&["serve", "--config", &file, "--ready-json"]);
        Self { folder, file, ready, _sim: sim, serve }
    }

    /// Runs a command, with the config after everything else: it is found by that alone.
    fn run(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let mut all = args.to_vec();
        all.extend(["-c", &self.file]);
        run(&all)
    }

    fn ok(&self, args: &[&str]) -> String {
        let (code, out, err) = self.run(args);
        assert_eq!(code, Some(0), "{args:?}: {out}{err}");
        assert!(!out.contains("sk_simulated") && !err.contains("sk_simulated"), "{args:?}: {out}{err}");
        out
    }

    fn json(&self, args: &[&str]) -> Value {
        let out = self.ok(args);
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{args:?}: {error}: {out}"))
    }

    /// Places a call; its answer.
    fn dial(&self, business: &str, to: &str) -> Value {
        let api = self.ready["api"].as_str().unwrap();
        let body = format!(r#"{{"agent_id":"a","agent_phone_number_id":"p","to_number":"{to}"}}"#);
        let dialled = Command::new("curl")
            .args(["-s", "-H", "xi-api-key: sk_simulated", "-H", "content-type: application/json"])
            .args(["-H", &format!("idempotency-key: {to}"), "-H", &format!("x-business-id: {business}"), "-d", &body])
            .arg(format!("http://{api}/elevenlabs/v1/convai/twilio/outbound-call"))
            .output()
            .unwrap();
        serde_json::from_slice(&dialled.stdout).unwrap()
    }
}

fn fits(text: &str) {
    assert!(text.lines().all(|line| line.chars().count() <= 100), "wider than 100 columns:\n{text}");
}

/// Asks until it is so: what is written beside a request's way comes a moment later.
fn until<T>(what: &str, mut so: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = so() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "it does not happen: {what}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

#[test]
fn a_refusal_is_found_explained_and_answered() {
    let sidecar = Sidecar::start("[businesses.birch]\nplan = \"PRO\"\n");
    let made = sidecar.dial("acme", "+15550002222");
    assert_eq!(made["success"], true, "{made}");
    let refused = sidecar.dial("acme", "+15550002223");
    let id = refused["refusalId"].as_str().unwrap_or_else(|| panic!("{refused}")).to_owned();

    // A hundred refusals of another do not hide it.
    let listed = until("its refusal is on record", || {
        let listed = sidecar.json(&["refusals", "list", "--business", "acme", "--json"]);
        (listed["refusals"].as_array().unwrap().len() == 1).then_some(listed)
    });
    assert_eq!(listed["refusals"][0]["id"], id.as_str());
    assert_eq!(sidecar.json(&["refusals", "list", "--business", "birch", "--json"])["refusals"], serde_json::json!([]));
    let text = sidecar.ok(&["refusals", "list", "--since", "1h"]);
    assert!(text.contains(&id) && text.contains("business.acme") && text.contains("1/1"), "{text}");
    fits(&text);

    for args in [vec!["refusals", "show", &id], vec!["explain", &id]] {
        let text = sidecar.ok(&args);
        for part in
            ["BUSINESS_CONCURRENT_LIMIT_EXCEEDED", "business.acme", "held it then:", "hold business.acme now:", "FULL"]
        {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(!text.contains("+15550002222"), "numbers are masked: {text}");
        fits(&text);
    }
    // A call, by whichever id of it.
    let sid = made["callSid"].as_str().unwrap();
    let text = sidecar.ok(&["explain", sid]);
    assert!(text.contains("a call of acme with account elevenlabs") && text.contains("state"), "{text}");
    // What would become of others.
    let would = |args: &[&str]| {
        let mut all = vec!["explain", "--json"];
        all.extend(args);
        sidecar.json(&all)["decision"].clone()
    };
    let full = would(&["--business", "acme", "--to", "+15550002224"]);
    assert_eq!((full["outcome"].as_str(), full["limit"].as_str()), (Some("refused"), Some("business.acme")), "{full}");
    assert_eq!(would(&["--business", "birch"])["outcome"], "admitted");
    let (code, _, err) = sidecar.run(&["explain", "rf_00000000000000000000000000"]);
    assert!(code == Some(1) && err.contains("no refusal of this id"), "{err}");
    let (code, ..) = sidecar.run(&["explain"]);
    assert_eq!(code, Some(2), "something must be asked");

    let status = sidecar.ok(&["status"]);
    for part in [
        "ringfence 0.",
        "policy ",
        "account elevenlabs",
        "store   sqlite",
        "gate    memory, ok",
        "refused 1 in the last 5 min: business.acme 1",
    ] {
        assert!(status.contains(part), "{part} is not in\n{status}");
    }
    fits(&status);
    // What binds a business may be its plan.
    assert_eq!(sidecar.dial("birch", "+15550002225")["success"], true);
    let status = sidecar.ok(&["status"]);
    let birch = status.lines().find(|line| line.starts_with("business birch")).unwrap_or_else(|| panic!("{status}"));
    assert!(birch.contains(" at once, plan PRO "), "{birch}");
    let status = sidecar.json(&["status", "--json"]);
    assert!(status["alarms"].is_array() && status["bypass"].is_null(), "{status}");
}

#[test]
fn open_calls_are_filtered_and_followed() {
    let sidecar = Sidecar::start("");
    sidecar.dial("acme", "+15550002222");
    sidecar.dial("birch", "+15550002223");
    let businesses = |args: &[&str]| -> Vec<String> {
        let mut all = vec!["calls", "list", "--json"];
        all.extend(args);
        let listed = sidecar.json(&all);
        listed["calls"].as_array().unwrap().iter().map(|call| call["businessId"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(businesses(&[]).len(), 2);
    assert_eq!(businesses(&["--business", "birch"]), ["birch"]);
    assert_eq!(businesses(&["--account", "elevenlabs"]).len(), 2);
    assert!(businesses(&["--account", "nobody"]).is_empty());
    assert!(businesses(&["--phase", "ended"]).is_empty());
    assert_eq!(businesses(&["--since", "1h"]).len(), 2);
    assert!(businesses(&["--older", "1h"]).is_empty());
    assert_eq!(businesses(&["--all", "--limit", "1", "--business", "acme"]), ["acme"], "filtered before it is cut");
    let (code, _, err) = sidecar.run(&["calls", "list", "--phase", "talking"]);
    assert!(code == Some(1) && err.contains("live"), "{err}");
    // The hash of an idempotency key is no id of anything.
    let shown = sidecar.ok(&["calls", "list", "--json"]);
    assert!(!shown.contains("idempotency_key"), "{shown}");
    fits(&sidecar.ok(&["calls", "list"]));

    let watching = command(&["calls", "list", "--watch", "--json", "-c", &sidecar.file])
        .stdout(Stdio::piped())
        .spawn()
        .map(Running)
        .unwrap();
    let mut watching = watching;
    let mut out = watching.0.stdout.take().unwrap();
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    while seen.iter().filter(|byte| **byte == b'\n').count() < 2 {
        let n = out.read(&mut buffer).unwrap();
        assert!(n > 0, "it ends by itself: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..n]);
    }
    let first = String::from_utf8(seen).unwrap().lines().next().unwrap().to_owned();
    assert_eq!(serde_json::from_str::<Value>(&first).unwrap()["open"], 2);

    let frame = sidecar.ok(&["top", "--once"]);
    assert_eq!(frame.lines().count(), 24, "{frame}");
    assert!(frame.lines().all(|line| line.chars().count() <= 80), "{frame}");
    assert!(frame.contains("2 calls") && frame.contains("acme") && frame.contains("birch"), "{frame}");
    let (code, _, err) = sidecar.run(&["top"]);
    assert!(code == Some(1) && err.contains("--once"), "{err}");
}

#[test]
fn a_bypass_lets_everything_through_is_seen_and_ends() {
    let mut sidecar = Sidecar::start("");
    assert!(sidecar.ok(&["bypass", "show"]).contains("is off"));
    assert_eq!(sidecar.dial("acme", "+15550002222")["success"], true);
    assert!(sidecar.dial("acme", "+15550002223")["refusalId"].is_string());
    let (code, _, err) = sidecar.run(&["bypass", "on", "--for", "2d", "--reason", "too long"]);
    assert!(code == Some(1) && err.contains("for_secs"), "{err}");
    let (code, ..) = sidecar.run(&["bypass", "on", "--for", "15m"]);
    assert_eq!(code, Some(2), "it needs a reason");

    let text = sidecar.ok(&["bypass", "on", "--for", "15m", "--reason", "the gate is ill"]);
    assert!(text.contains("is on for") && text.contains("the gate is ill"), "{text}");
    assert_eq!(sidecar.dial("acme", "+15550002224")["success"], true, "over its limit of one");
    let status = sidecar.ok(&["status"]);
    assert!(status.contains("bypassed: limits refuse nothing") && status.contains("the gate is ill"), "{status}");
    let shown = sidecar.json(&["bypass", "show", "--json"]);
    assert_eq!((&shown["bypass"]["by"], &shown["bypass"]["everywhere"]), (&"local".into(), &true.into()), "{shown}");
    // It is counted, recorded, and a restart does not forget it.
    let refusals = until("what it let through is on record", || {
        let listed = sidecar.json(&["refusals", "list", "--json"]);
        (listed["refusals"].as_array().unwrap().len() == 2).then_some(listed)
    });
    assert!(refusals["refusals"].as_array().unwrap().iter().any(|one| one["observed"] == true), "{refusals}");
    assert!(sidecar.ok(&["refusals", "list"]).contains("let through"));
    let admin = sidecar.ready["admin"].as_str().unwrap().to_owned();
    let metrics = String::from_utf8(
        Command::new("curl").args(["-s", &format!("http://{admin}/metrics")]).output().unwrap().stdout,
    )
    .unwrap();
    assert!(metrics.contains("ringfence_bypass_active 1"), "{metrics}");
    assert!(metrics.contains("ringfence_bypassed_total{limit=\"business.acme\"} 1"), "{metrics}");
    assert_eq!(term(&mut sidecar.serve), Some(0));
    let (serve, ready) = start(&["serve", "--config", &sidecar.file, "--ready-json"]);
    (sidecar.serve, sidecar.ready) = (serve, ready);
    assert!(sidecar.ok(&["bypass", "show"]).contains("the gate is ill"));

    assert!(sidecar.ok(&["bypass", "off"]).contains("is off"));
    assert!(sidecar.dial("acme", "+15550002225")["refusalId"].is_string());
    // And by itself.
    sidecar.ok(&["bypass", "on", "--for", "1s", "--reason", "a moment"]);
    until("it ends by itself", || sidecar.ok(&["bypass", "show"]).contains("is off").then_some(()));
    assert!(sidecar.dial("acme", "+15550002226")["refusalId"].is_string());
    let socket = sidecar.ready["adminSocket"].as_str().unwrap();
    let audit =
        Command::new("curl").args(["-s", "--unix-socket", socket, "http://localhost/api/audit"]).output().unwrap();
    let audit: Value = serde_json::from_slice(&audit.stdout).unwrap();
    let acts: Vec<&str> = audit["audit"].as_array().unwrap().iter().filter_map(|one| one["what"].as_str()).collect();
    assert_eq!(acts, ["bypass on", "bypass off", "bypass on"]);
}

#[test]
fn businesses_go_in_and_out_as_csv_and_json() {
    let sidecar = Sidecar::start("");
    let csv =
        sidecar.folder.write("businesses.csv", "id,plan,max_calls,agent_ids\nbirch,PRO,,agent_1;agent_2\ncedar,,4,\n");
    let text = sidecar.ok(&["businesses", "import", &csv]);
    assert!(text.contains("2 businesses imported, 2 of them new"), "{text}");
    let listed = sidecar.ok(&["businesses", "list"]);
    assert!(
        listed.contains("acme") && listed.contains("birch") && listed.contains("config") && listed.contains("put"),
        "{listed}"
    );
    fits(&listed);
    let found = sidecar.ok(&["businesses", "list", "--search", "agent_2"]);
    assert!(found.contains("birch") && !found.contains("cedar"), "{found}");
    assert_eq!(sidecar.json(&["businesses", "show", "cedar", "--json"])["max_calls"], 4);
    // What goes out comes in again, in either form.
    for format in ["csv", "json"] {
        let file = sidecar.folder.0.join(format!("out.{format}")).display().to_string();
        sidecar.ok(&["businesses", "export", "--format", format, "--output", &file]);
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains("birch") && !text.contains("acme"), "{text}");
        assert!(sidecar.ok(&["businesses", "import", &file]).contains("2 businesses imported, 0 of them new"));
    }
    let bad = sidecar.folder.write("bad.csv", "id,plan\ndate,PRO\nelder,PROO\n");
    let (code, _, err) = sidecar.run(&["businesses", "import", &bad]);
    assert!(code == Some(1) && err.contains("line 3 (elder)") && err.contains("nothing stored"), "{err}");
    let (code, ..) = sidecar.run(&["businesses", "show", "date"]);
    assert_eq!(code, Some(1));
}

#[test]
fn a_test_webhook_is_signed_and_failed_events_are_replayed() {
    let sidecar = Sidecar::start("");
    let made = sidecar.dial("acme", "+15550002222");
    let to = format!("http://{}", sidecar.ready["webhooks"].as_str().unwrap());
    let event = "elevenlabs.post_call_transcription";
    // Of a call that nobody knows: genuine all the same.
    let sent = sidecar.json(&["webhooks", "trigger", event, "--to", &to, "--json"]);
    assert!(matches!(sent["status"].as_u64(), Some(200 | 404)), "{sent}");
    // Of a call that is up: it ends.
    let call = made["callSid"].as_str().unwrap();
    let text = sidecar.ok(&["webhooks", "trigger", event, "--to", &to, "--call", call]);
    assert!(text.contains("200 OK"), "{text}");
    until("its word counts", || (sidecar.json(&["calls", "show", call, "--json"])["phase"] == "ended").then_some(()));
    let (code, _, err) = sidecar.run(&["webhooks", "trigger", "twilio.call_status", "--to", &to]);
    assert!(code == Some(1) && err.contains("no account of twilio"), "{err}");
    let (code, _, err) = sidecar.run(&["webhooks", "trigger", event]);
    assert!(code == Some(1) && err.contains("--to"), "{err}");
    // A 404 of something else says nothing of the signature.
    let elsewhere = answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nnot found".to_vec());
    let (code, out, _) = sidecar.run(&["webhooks", "trigger", event, "--to", &elsewhere]);
    assert!(code == Some(1) && out.contains("not an answer of ringfence"), "{out}");

    let text = sidecar.ok(&["events", "replay", "--status", "failed", "--since", "2h"]);
    assert!(text.contains("0 replayed, 0 failed."), "{text}");
    let (code, ..) = sidecar.run(&["events", "replay"]);
    assert_eq!(code, Some(2));
}

#[test]
fn failed_webhooks_of_a_time_are_replayed_with_a_reason_and_audited() {
    let sidecar = Sidecar::start("");
    let now_ms = i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap();
    let record = rusqlite::Connection::open(sidecar.folder.0.join("ringfence.db")).unwrap();
    record.busy_timeout(Duration::from_secs(30)).unwrap();
    // Three that failed within the hour, one of long ago, and one that was applied.
    for (id, ago_secs, outcome, parked) in [
        ("ev_old", 3 * 86_400, None, true),
        ("ev_2", 1200, None, true),
        ("ev_1", 1800, None, true),
        ("ev_3", 600, None, true),
        ("ev_applied", 300, Some("applied"), false),
    ] {
        let received_at = now_ms - ago_secs * 1000;
        let row = "INSERT INTO webhook_events (id, account, webhook, event, received_at, method, path, headers, body, tries, \
                   outcome, parked_at, due_at, error) \
                   VALUES (?1, 'elevenlabs', 'status', 'call_status', ?2, 'POST', '/status', '[]', x'783d31', 3, ?3, ?4, NULL, 'nobody knows how')";
        record.execute(row, (id, received_at, outcome, parked.then_some(received_at))).unwrap();
    }
    let all = ["events", "replay", "--status", "failed", "--since", "2h"];
    let text = sidecar.ok(&[&all[..], &["--dry-run"]].concat());
    assert_eq!(text.lines().collect::<Vec<_>>(), ["ev_1", "ev_2", "ev_3"], "the oldest first");
    let audited = || -> Vec<Value> {
        let answer = Command::new("curl")
            .args(["-sf", &format!("http://{}/api/audit?limit=100", sidecar.ready["admin"].as_str().unwrap())])
            .output()
            .unwrap();
        let audit: Value = serde_json::from_slice(&answer.stdout).unwrap();
        audit["audit"].as_array().unwrap().iter().filter(|one| one["what"] == "replay").cloned().collect()
    };
    assert_eq!(audited(), [] as [Value; 0], "a dry run does nothing");
    let text = sidecar.ok(&[&all[..], &["--reason", "the bug is mended"]].concat());
    assert!(text.contains("3 replayed, 0 failed."), "{text}");
    let done = audited();
    let mut targets: Vec<&str> = done.iter().map(|one| one["target"].as_str().unwrap()).collect();
    targets.sort_unstable();
    assert_eq!(targets, ["ev_1", "ev_2", "ev_3"]);
    assert!(done.iter().all(|one| one["reason"] == "the bug is mended"), "{done:?}");
    // What was applied is not replayed again; the old one is, by its id.
    assert!(sidecar.ok(&all).contains("0 replayed, 0 failed."));
    sidecar.ok(&["events", "replay", "ev_old", "--reason", "by hand"]);
    assert!(audited().iter().any(|one| one["target"] == "ev_old" && one["reason"] == "by hand"), "{:?}", audited());
}

#[test]
fn a_test_webhook_of_twilio_ends_a_call_that_is_up() {
    let twilio = "[accounts.twilio]\nupstream = \"{upstream}\"\naccount_sid = \"AC00000000000000000000000000000001\"\n\
                  auth_token = \"0123456789abcdef0123456789abcdef\"\n";
    let sidecar = Sidecar::start(twilio);
    let (sid, token) = ("AC00000000000000000000000000000001", "0123456789abcdef0123456789abcdef");
    let dialled = Command::new("curl")
        .args(["-s", "-u", &format!("{sid}:{token}"), "-H", "x-business-id: birch"])
        .args(["-d", "To=%2B15550002222&From=%2B15550001101&Twiml=<Response/>"])
        .arg(format!("http://{}/twilio/2010-04-01/Accounts/{sid}/Calls.json", sidecar.ready["api"].as_str().unwrap()))
        .output()
        .unwrap();
    let made: Value = serde_json::from_slice(&dialled.stdout).unwrap();
    let call = made["sid"].as_str().unwrap_or_else(|| panic!("{made}"));
    let to = format!("http://{}", sidecar.ready["webhooks"].as_str().unwrap());
    let trigger = ["webhooks", "trigger", "twilio.call_status", "--to", &to];
    let text = sidecar.ok(&[&trigger[..], &["--call", call, "--status", "completed"]].concat());
    assert!(text.contains("It was accepted") && text.contains("/webhooks/twilio/status"), "{text}");
    until("its word counts", || (sidecar.json(&["calls", "show", call, "--json"])["phase"] == "ended").then_some(()));
    let listed = sidecar.json(&["events", "list", "--account", "twilio", "--json"]);
    assert_eq!(listed["events"][0]["event"], "call_status", "{listed}");
    // Of a call that nobody knows: genuine all the same.
    let text = sidecar.ok(&trigger);
    assert!(text.contains("It was accepted") || text.contains("It is genuine"), "{text}");
}

/// A server that answers each connection with these bytes, and holds it open; its URL.
fn answering(answer: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 16_384]).unwrap();
            stream.write_all(&answer).unwrap();
            held.push(stream);
        }
    });
    url
}

#[test]
fn the_test_webhook_speaks_tls_where_the_listener_does() {
    let folder = Folder::new();
    let at = |name: &str| folder.0.join(name).display().to_string();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=nobody.example", "-keyout", &at("key.pem"), "-out", &at("cert.pem")])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let event = "elevenlabs.post_call_transcription";
    // The certificate is nobody's but the config's; and where the listener has no TLS, none is spoken.
    for (listeners, scheme) in [("webhooks", "https"), ("api", "http")] {
        let webhooks = format!("127.0.0.1:{}", ringfence::net::spare_port());
        let text = format!(
            "[listen]\napi = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\nclient = \"127.0.0.1:0\"\nwebhooks = \"{webhooks}\"\n\
             tls_cert = \"cert.pem\"\ntls_key = \"key.pem\"\ntls_listeners = [\"{listeners}\"]\n[timeouts]\ndrain_secs = 1\n\
             [accounts.elevenlabs]\nupstream = \"http://127.0.0.1:1\"\napi_key = \"sk_simulated\"\nconcurrent = 3\n\
             webhook_secrets = [\"wsec_simulated\"]\n"
        );
        let file = folder.write("ringfence.toml", &text);
        let (_serve, _) = start(&["serve", "--config", &file, "--ready-json"]);
        let (code, out, err) = run(&["webhooks", "trigger", event, "-c", &file]);
        assert!(code == Some(0) && out.contains("It is genuine"), "{out}{err}");
        assert!(out.contains(&format!("POST {scheme}://{webhooks}/")), "{out}");
    }
}

#[test]
fn health_is_told_by_the_exit_code_and_shells_know_the_commands() {
    let mut sidecar = Sidecar::start("");
    assert_eq!(sidecar.ok(&["health"]), "ok\n");
    assert_eq!(sidecar.ok(&["health", "--ready"]), "ready\n");
    assert_eq!(term(&mut sidecar.serve), Some(0));
    let (code, _, err) = sidecar.run(&["health"]);
    assert!(code == Some(1) && err.contains("no sidecar answers"), "{err}");

    let (code, out, _) = run(&["completions", "bash"]);
    assert!(code == Some(0) && out.contains("_ringfence()") && out.contains("refusals"), "{out}");
    let (code, out, _) = run(&["man"]);
    assert!(code == Some(0) && out.contains(".TH") && out.contains("ringfence"), "{out}");
    let pages = sidecar.folder.0.join("man").display().to_string();
    assert_eq!(run(&["man", &pages]).0, Some(0));
    for page in ["ringfence.1", "ringfence-calls-list.1", "ringfence-doctor.1"] {
        assert!(sidecar.folder.0.join("man").join(page).exists(), "{page}");
    }
}

#[test]
fn doctor_says_what_why_and_how() {
    let sidecar = Sidecar::start("");
    let text = sidecar.ok(&["doctor"]);
    for part in [
        "account elevenlabs: elevenlabs accepts the credentials",
        "agent \"Simulated agent\" may burst beyond the conversations that were bought [W032]",
        "cost double",
        "bursting_enabled = false",
        "account elevenlabs: 1 agents looked at; a call lasts 600 s at most",
        "the clock is that of 127.0.0.1",
        "disk of ",
        "no calls are up that were placed outside ringfence",
        "At the console of elevenlabs, for account elevenlabs:",
        "[ ]    ElevenLabs Agents > Settings > Post-call webhook",
        "0 errors, ",
    ] {
        let plain = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let part = part.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(plain.contains(&part), "{part} is not in\n{text}");
    }
    fits(&text);
    let found = sidecar.json(&["doctor", "--json"]);
    assert_eq!(found["ok"], true, "{found}");
    let bursts = found["findings"].as_array().unwrap().iter().find(|one| one["code"] == "W032").unwrap();
    assert!(bursts["why"].as_str().unwrap().contains("double") && bursts["fix"].as_str().unwrap().contains("false"));
    // The short form asks no agent.
    let (_, out, err) = sidecar.run(&["check", "--live"]);
    assert!(!out.contains("agent") && !err.contains("W032"), "{out}{err}");

    // A key that is not accepted is an error, and its text is not shown.
    let text = std::fs::read_to_string(&sidecar.file).unwrap().replace("sk_simulated", "sk_of_somebody_else");
    let wrong = sidecar.folder.write("wrong.toml", &text);
    let (code, out, err) = run(&["doctor", "-c", &wrong]);
    assert!(code == Some(2) && out.contains("ERROR") && out.contains("[E051]"), "{out}{err}");
    assert!(!out.contains("sk_of_somebody_else") && !err.contains("sk_of_somebody_else"), "{out}{err}");
}

#[test]
fn doctor_knows_a_ringfence_from_another_program() {
    let sidecar = Sidecar::start("");
    let ours = format!("http://{}", sidecar.ready["webhooks"].as_str().unwrap());
    let other = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"status\":\"ok\"}".to_vec());
    for (public, is_ours) in [(&ours, true), (&other, false)] {
        let text = std::fs::read_to_string(&sidecar.file).unwrap();
        let file = sidecar.folder.write("public.toml", &format!("public_url = \"{public}\"\n{text}"));
        let (_, out, err) = run(&["doctor", "-c", &file]);
        let plain = out.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(plain.contains("/health leads to a ringfence"), is_ours, "{out}{err}");
        assert_eq!(plain.contains("it answers, but not as ringfence does [W033]"), !is_ours, "{out}{err}");
    }
}

#[test]
fn a_key_ends_top_while_the_sidecar_is_silent() {
    // The stream ends after its first event; whoever asks again gets no answer.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = listener.local_addr().unwrap();
    let (again, asked_again) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for (n, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 16_384]).unwrap();
            if n > 0 {
                held.push(stream);
                let _ = again.send(());
                continue;
            }
            let whole = r#"{"at":"2026-01-01T00:00:00Z","parts":{"calls":{"open":0}},"put":[]}"#;
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
            stream.write_all(format!("{head}event: whole\ndata: {whole}\n\n").as_bytes()).unwrap();
        }
    });
    let top = format!("{} top --admin http://{admin}", env!("CARGO_BIN_EXE_ringfence"));
    // `script` gives it a terminal.
    let mut top = Command::new("script")
        .args(["-qec", &top, "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .map(Running)
        .unwrap();
    asked_again.recv_timeout(PATIENCE).unwrap();
    let asked = Instant::now();
    top.0.stdin.as_mut().unwrap().write_all(b"q").unwrap();
    assert!(top.0.wait().unwrap().success());
    assert!(asked.elapsed() < Duration::from_secs(15), "it waits for the answer: {:?}", asked.elapsed());
}

#[test]
fn a_support_bundle_reads_secrets_where_the_config_stands_and_takes_log_lines() {
    let folder = Folder::new();
    folder.write("key.txt", "sk_planted_in_a_file\n");
    let text = format!("{LISTEN}[accounts.elevenlabs]\napi_key = {{ file = \"key.txt\" }}\nconcurrent = 3\n");
    let file = folder.write("ringfence.toml", &text);
    let lines: String = (0..1200).map(|n| format!("line {n} of +15550001111 with sk_planted_in_a_file\n")).collect();
    let log = folder.write("serve.log", &lines);
    let (code, out, err) = run(&["support-bundle", "-c", &file, "--output", "-", "--log", &log]);
    assert_eq!(code, Some(0), "{err}");
    assert!(!out.contains("planted") && !out.contains("5550001111"), "secrets and numbers are taken out");
    let bundle: Value = serde_json::from_str(&out).unwrap();
    let kept = bundle["log"].as_array().unwrap();
    assert!(kept.len() == 1000 && kept[999].as_str().unwrap().starts_with("line 1199 of "), "{:?}", kept.last());
    let (code, _, err) = run(&["support-bundle", "-c", &file, "--output", "-", "--log", "/nowhere/serve.log"]);
    assert!(code == Some(1) && err.contains("failed to read log"), "{err}");
}
