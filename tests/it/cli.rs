//! The program as a person or a script runs it.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use ringfence::ids::CallId;
use serde_json::Value;

use crate::support::panics::tells_of_a_panic;

/// A folder of this test's own, gone when it is over.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("ringfence-cli-{}", CallId::new()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
    command.args(args).env_clear().stdin(Stdio::null());
    command
}

pub fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command(args).output().unwrap();
    let (out, err) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert!(!tells_of_a_panic(&err), "{args:?}: {err}");
    (status.code(), out, err)
}

/// A child that is killed, whatever the test comes to.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn start(args: &[&str]) -> (Running, Value) {
    start_command(command(args), args)
}

pub fn start_command(mut command: Command, args: &[&str]) -> (Running, Value) {
    let mut child = Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(child.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    if line.is_empty() {
        let mut why = String::new();
        let _ = child.0.stderr.take().unwrap().read_to_string(&mut why);
        panic!("{args:?} did not become ready: {why}");
    }
    (child, serde_json::from_str(&line).unwrap())
}

pub fn term(child: &mut Running) -> Option<i32> {
    let id = child.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    let started = Instant::now();
    loop {
        if let Some(status) = child.0.try_wait().unwrap() {
            return status.code();
        }
        assert!(started.elapsed() < Duration::from_secs(20), "it does not stop");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

pub const LISTEN: &str =
    "[listen]\napi = \"127.0.0.1:0\"\nwebhooks = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\nclient = \"127.0.0.1:0\"\n";

pub fn sound(upstream: &str) -> String {
    format!(
        "{LISTEN}[accounts.elevenlabs]\nupstream = \"{upstream}\"\napi_key = \"sk_simulated\"\nconcurrent = 1\n[timeouts]\ndrain_secs = 1\n"
    )
}

#[test]
fn check_lists_every_mistake_and_exits_2() {
    let folder = Folder::new();
    let file = folder.write("bad.toml", "mode = \"observ\"\n[accounts.twillio]\n[store]\npth = \"x\"\n");
    let (code, out, err) = run(&["check", "--config", &file]);
    assert_eq!((code, out.as_str()), (Some(2), ""));
    for part in ["error[E005]", "error[E014]", "error[E020]", "bad.toml:1:8", "did you mean \"observe\"?", "3 errors"] {
        assert!(err.contains(part), "{part} is not in\n{err}");
    }
    let (code, out, _) = run(&["check", "--json", "--config", &file]);
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &json["ok"]), (Some(2), &Value::Bool(false)));
}

#[test]
fn a_config_that_is_not_there_is_named_with_a_way_out() {
    let (code, _, err) = run(&["serve", "--config", "/nowhere/ringfence.toml"]);
    assert_eq!(code, Some(1));
    assert!(err.contains("/nowhere/ringfence.toml") && err.contains("ringfence demo"), "{err}");
}

#[test]
fn migrate_goes_up_down_and_shows_where_it_is() {
    let folder = Folder::new();
    let file = folder.write("ok.toml", &sound("http://127.0.0.1:1"));
    let status = |way: &str| run(&["migrate", "--config", &file, way]).1;
    assert!(status("status").contains("missing"));
    assert!(status("up").contains("applied"));
    assert!(status("down").contains("missing"));
    // serve refuses a schema that it may not migrate, and names the command.
    let strict =
        folder.write("strict.toml", &format!("{}[store]\nmigrate_on_start = false\n", sound("http://127.0.0.1:1")));
    let (code, _, err) = run(&["serve", "--config", &strict]);
    assert_eq!(code, Some(1));
    assert!(err.contains("ringfence migrate up"), "{err}");
}

#[test]
fn a_sidecar_serves_is_asked_and_drains() {
    let folder = Folder::new();
    let (_sim, ready) = start(&["simulate", "--listen", "127.0.0.1:0", "--ready-json"]);
    let file = folder.write("ok.toml", &sound(ready["url"].as_str().unwrap()));
    let (mut serve, ready) = start(&["serve", "--config", &file, "--ready-json"]);
    let admin = ready["adminSocket"].as_str().unwrap().to_owned();
    let api = ready["api"].as_str().unwrap();

    // A second process over the same record is refused, and told who has it.
    let (code, _, err) = run(&["serve", "--config", &file]);
    assert_eq!(code, Some(1));
    assert!(err.contains(&format!("process {}", serve.0.id())), "{err}");

    let (code, _, err) = run(&["migrate", "--config", &file, "down"]);
    assert!(code == Some(1) && err.contains("in use by"), "tables of a running server: {err}");

    let dialled = Command::new("curl")
        .args(["-s", "-H", "xi-api-key: sk_simulated", "-H", "content-type: application/json", "-d"])
        .arg(r#"{"agent_id":"a","agent_phone_number_id":"p","to_number":"+15550002222"}"#)
        .arg(format!("http://{api}/elevenlabs/v1/convai/twilio/outbound-call"))
        .output()
        .unwrap();
    let created: Value = serde_json::from_slice(&dialled.stdout).unwrap();
    let sid = created["callSid"].as_str().unwrap();

    // The providers' ids have no room in 100 columns.
    let (code, out, _) = run(&["calls", "--admin", &admin, "list"]);
    assert!(code == Some(0) && !out.contains(sid), "{out}");
    assert!(out.lines().all(|line| line.chars().count() <= 100), "{out}");
    let (code, out, _) = run(&["calls", "--admin", &admin, "list", "--wide"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("account elevenlabs") && out.contains("of 1 in use") && out.contains(sid), "{out}");
    assert!(!out.contains("+15550002222"), "numbers are masked: {out}");
    let (_, out, _) = run(&["calls", "--admin", &admin, "show", sid]);
    assert!(out.contains("\"businessId\": \"default\""), "{out}");
    let (code, _, err) = run(&["calls", "--admin", &admin, "release", sid, "--reason", "test"]);
    assert_eq!(code, Some(1));
    assert!(err.contains("--force"), "{err}");
    let (code, _, err) = run(&["calls", "--admin", &admin, "show", "CA_nobody"]);
    assert!(code == Some(1) && err.contains("no call of this id"), "{err}");
    let (code, out, _) = run(&["calls", "--admin", &admin, "release", sid, "--force", "--reason", "test"]);
    assert!(code == Some(0) && out.contains("is free"), "{out}");

    assert_eq!(term(&mut serve), Some(0));
    let mut log = String::new();
    serve.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(!tells_of_a_panic(&log), "{log}");
    assert!(log.contains("admitted") && log.contains("call ended") && log.contains("stopped"), "{log}");
    assert!(!log.contains("+15550002222") && !log.contains("sk_simulated"), "secrets and numbers are masked: {log}");
    let (code, _, err) = run(&["calls", "--admin", &admin, "list"]);
    assert!(code == Some(1) && err.contains("no sidecar answers"), "{err}");
}

#[test]
fn a_taken_port_is_named_with_the_flag() {
    let folder = Folder::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let file = folder.write("ok.toml", &sound("http://127.0.0.1:1"));
    let address = taken.local_addr().unwrap().to_string();
    let (code, _, err) = run(&["serve", "--config", &file, "--listen-api", &address]);
    assert_eq!(code, Some(1));
    assert!(err.contains(&address) && err.contains("--listen-api"), "{err}");
}

#[test]
fn tokens_are_made_with_the_configured_secret() {
    let folder = Folder::new();
    let file = folder.write("ok.toml", &sound("http://127.0.0.1:1"));
    let (code, _, err) = run(&["token", "--config", &file]);
    assert!(code == Some(1) && err.contains("admin.token_secret"), "{err}");
    let with = folder.write(
        "with.toml",
        &format!("{}[admin]\ntoken_secret = \"a secret of some length, for this test\"\n", sound("http://127.0.0.1:1")),
    );
    let (code, out, _) = run(&["token", "--config", &with, "--scope", "operate"]);
    assert_eq!((code, out.trim().split('.').count()), (Some(0), 3));
}

#[test]
fn logs_can_be_json() {
    let folder = Folder::new();
    let file = folder.write("ok.toml", &format!("{}[log]\nformat = \"json\"\n", sound("http://127.0.0.1:1")));
    let (mut serve, _) = start(&["serve", "--config", &file, "--ready-json"]);
    assert_eq!(term(&mut serve), Some(0));
    let mut log = String::new();
    serve.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    // The config's warnings come first, for people; then every line is an event.
    let events: Vec<Value> = log.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    assert!(events.iter().any(|e| e["message"] == "stopped"), "{log}");
}

#[test]
fn the_demo_shows_what_it_promises() {
    let (code, out, err) = run(&["demo"]);
    assert_eq!(code, Some(0), "{out}\n{err}");
    for part in [
        "Burst",
        " of 6 placed",
        " of 4 placed",
        "<Reject reason=\"busy\"/>",
        "terminated_capacity",
        "Retry-After 60 s",
        "proof \"provider\"",
        "4 leases rebuilt from SQLite",
        "1 had ended meanwhile (asked the provider)",
        "0 leaked, 0 over cap",
        "20 of 20 reached",
        "0 leads called twice, at most 3 at once",
        "7 of 7 ok",
    ] {
        assert!(out.contains(part), "{part} is not in\n{out}");
    }
}
