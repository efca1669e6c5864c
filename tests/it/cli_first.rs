//! The first hour: a config from the environment, a start without one, and what a start or `check --live` meets.

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ringfence::net::spare_port;
use ringfence_simulator::SimSettings;
use serde_json::{Value, json};

use crate::cli::{Folder, LISTEN, Running, command, run, start, start_command, term};
use crate::support::postgres;

pub const KEYS: [(&str, &str); 4] = [
    ("ELEVENLABS_API_KEY", "sk_simulated"),
    ("ELEVENLABS_WEBHOOK_SECRET", "wsec_simulated"),
    ("TWILIO_ACCOUNT_SID", "AC00000000000000000000000000000001"),
    ("TWILIO_AUTH_TOKEN", "0123456789abcdef0123456789abcdef"),
];

/// A command in a folder of its own, with these variables and no other.
pub fn within(folder: &Folder, args: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = command(args);
    command.current_dir(&folder.0).envs(variables.iter().copied());
    command
}

pub fn run_within(folder: &Folder, args: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let output = within(folder, args, variables).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn init_writes_what_the_environment_has_and_no_secret() {
    let folder = Folder::new();
    let (code, out, err) = run_within(&folder, &["init"], &KEYS);
    assert_eq!(code, Some(0), "{err}");
    let file = folder.0.join("ringfence.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    for part in
        ["\"observe\"", "[accounts.elevenlabs]", "[accounts.twilio]", "[{ env = \"ELEVENLABS_WEBHOOK_SECRET\" }]"]
    {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    for (name, secret) in KEYS {
        assert!(!text.contains(secret) && !out.contains(secret), "{name}");
    }
    for part in ["observe mode", "check --live", "serve", "/elevenlabs or /twilio", "calls list"] {
        assert!(out.contains(part), "{part} is not in\n{out}");
    }
    let (code, out, err) = run_within(&folder, &["check"], &KEYS);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("mode      observe"), "{out}");
    assert!(text.contains("unknown = \"default\""), "what becomes of strangers is a choice that one can see: {text}");
    // Nothing in it makes the whole platform one customer of one call.
    assert!(!out.contains("plan.default"), "{out}");

    // What somebody wrote stays, unless they say otherwise.
    std::fs::write(&file, "mode = \"enforce\"").unwrap();
    let (code, _, err) = run_within(&folder, &["init"], &KEYS);
    assert!(code == Some(1) && err.contains("--force"), "{err}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mode = \"enforce\"");
    let (code, _, _) = run_within(&folder, &["init", "--force"], &KEYS);
    assert_eq!((code, std::fs::read_to_string(&file).unwrap()), (Some(0), text));
}

/// The file that `init` writes, with the one word changed that it says to change.
#[test]
fn what_init_writes_can_be_enforced_at_once() {
    let folder = Folder::new();
    let (_sim, sim) = start(&["simulate", "--listen", "127.0.0.1:0", "--ready-json"]);
    let url = sim["url"].as_str().unwrap();
    let upstreams = [("RINGFENCE_ACCOUNTS_ELEVENLABS_UPSTREAM", url), ("RINGFENCE_ACCOUNTS_TWILIO_UPSTREAM", url)];
    let variables = [&KEYS[..], &upstreams].concat();
    assert_eq!(run_within(&folder, &["init"], &variables).0, Some(0));
    let file = folder.0.join("ringfence.toml");
    let text = std::fs::read_to_string(&file).unwrap().replace("mode = \"observe\"", "mode = \"enforce\"");
    std::fs::write(&file, text).unwrap();
    let args = [&["serve", "--ready-json"][..], &FREE_PORTS].concat();
    let (mut serve, ready) = start_command(within(&folder, &args, &variables), &args);
    for n in 0..4 {
        let answer = Command::new("curl")
            .args([
                "-s",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                "-H",
                "xi-api-key: sk_simulated",
                "-H",
                "content-type: application/json",
                "-d",
            ])
            .arg(format!(r#"{{"agent_id":"a","agent_phone_number_id":"p","to_number":"+1555000222{n}"}}"#))
            .arg(format!("http://{}/elevenlabs/v1/convai/twilio/outbound-call", ready["api"].as_str().unwrap()))
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&answer.stdout), "200", "call {n} of the 4 that were bought");
    }
    assert_eq!(term(&mut serve), Some(0));
}

#[test]
fn init_without_keys_says_which_to_set() {
    let folder = Folder::new();
    let (code, out, _) = run_within(&folder, &["init"], &[]);
    assert!(code == Some(0) && out.contains("export ELEVENLABS_API_KEY=…"), "{out}");
    let (code, _, err) = run_within(&folder, &["check"], &[]);
    assert!(code == Some(2) && err.contains("E010") && !err.contains("W004"), "{err}");
    assert_eq!(run_within(&folder, &["check"], &KEYS[..1]).0, Some(0));

    // Half of a provider's keys make no account, and that is said.
    let other = folder.0.join("other.toml").display().to_string();
    let (code, out, _) = run_within(&folder, &["init", "--config", &other], &[KEYS[0], KEYS[2]]);
    assert!(code == Some(0) && out.contains("TWILIO_AUTH_TOKEN is not set"), "{out}");
    assert!(out.contains(&format!("serve --config {other}")), "{out}");
    assert!(!std::fs::read_to_string(&other).unwrap().contains("[accounts.twilio]"));
}

const FREE_PORTS: [&str; 8] =
    ["--listen-api", ":0", "--listen-webhooks", ":0", "--listen-admin", ":0", "--listen-client", ":0"];

#[test]
fn a_sidecar_starts_without_a_file_once_the_calls_at_once_are_stated() {
    let folder = Folder::new();
    let (_sim, sim) = start(&["simulate", "--listen", "127.0.0.1:0", "--ready-json"]);
    let upstream = ("RINGFENCE_ACCOUNTS_ELEVENLABS_UPSTREAM", sim["url"].as_str().unwrap());
    let args = [&["serve", "--concurrent", "1", "--ready-json"][..], &FREE_PORTS].concat();
    let (mut serve, ready) = start_command(within(&folder, &args, &[KEYS[0], KEYS[1], upstream]), &args);
    let dial = || {
        let answer = Command::new("curl")
            .args(["-s", "-H", "xi-api-key: sk_simulated", "-H", "content-type: application/json", "-d"])
            .arg(r#"{"agent_id":"a","agent_phone_number_id":"p","to_number":"+15550002222"}"#)
            .arg(format!("http://{}/elevenlabs/v1/convai/twilio/outbound-call", ready["api"].as_str().unwrap()))
            .output()
            .unwrap();
        serde_json::from_slice::<Value>(&answer.stdout).unwrap()
    };
    assert!(dial()["callSid"].is_string());
    assert_eq!(dial()["error"], "GLOBAL_CAPACITY_EXCEEDED");
    assert_eq!(term(&mut serve), Some(0));
    let mut log = String::new();
    serve.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(log.contains("made from the environment") && log.contains("ELEVENLABS_API_KEY"), "{log}");
    assert!(log.contains("1 concurrent calls in total") && !log.contains("sk_simulated"), "{log}");
    assert!(folder.0.join("ringfence.db").exists(), "the record is where a config without [store] has it");

    // A file that is there wins, and the flag stands over its `concurrent`.
    std::fs::write(folder.0.join("ringfence.toml"), "concurrent = 9\n[accounts.twilio]\n").unwrap();
    let (mut serve, ready) = start_command(within(&folder, &args, &[]), &args);
    let status =
        Command::new("curl").args(["-s", &format!("http://{}/status", ready["admin"].as_str().unwrap())]).output();
    let status = String::from_utf8(status.unwrap().stdout).unwrap();
    assert!(status.contains("twilio") && !status.contains("elevenlabs"), "{status}");
    assert_eq!(term(&mut serve), Some(0));
    let mut log = String::new();
    serve.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(log.contains("1 in all"), "{log}");
}

/// As platforms start a program: with a port, and the address of a database.
#[test]
fn a_platforms_variables_say_where_the_public_is_and_where_the_record() {
    if postgres::is_missing() {
        return;
    }
    let (folder, server) = (Folder::new(), postgres::Server::start());
    let (port, database) = (spare_port().to_string(), server.database_over_tcp());
    let args = [
        "serve",
        "--concurrent",
        "1",
        "--ready-json",
        "--listen-api",
        ":0",
        "--listen-admin",
        ":0",
        "--listen-client",
        ":0",
    ];
    let variables = [KEYS[0], ("PORT", port.as_str()), ("DATABASE_URL", database.as_str())];
    let (mut serve, ready) = start_command(within(&folder, &args, &variables), &args);
    assert_eq!(ready["webhooks"], format!("0.0.0.0:{port}"));
    let get = |at: String| Command::new("curl").args(["-s", "-w", " %{http_code}", &at]).output().unwrap().stdout;
    let get = |at: String| String::from_utf8(get(at)).unwrap();
    assert!(get(format!("http://127.0.0.1:{port}/ready")).ends_with(" 200"));
    assert!(get(format!("http://127.0.0.1:{port}/calls/x/transcript")).ends_with(" 403"), "clients are served there");
    let status = get(format!("http://{}/status", ready["admin"].as_str().unwrap()));
    assert!(status.contains(r#""backend":"postgres""#) && status.contains(r#""backend":"database""#), "{status}");
    assert_eq!(term(&mut serve), Some(0));
    let mut log = String::new();
    serve.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(log.contains("DATABASE_URL") && log.contains("PORT") && !log.contains("sk_simulated"), "{log}");

    // What is no Postgres is left out, and whoever says where webhooks come to means that.
    let args = [&args[..], &["--listen-webhooks", ":0"]].concat();
    let variables = [KEYS[0], ("PORT", port.as_str()), ("DATABASE_URL", "mysql://db/app"), ("REDIS_URL", "redis://r")];
    let (mut serve, ready) = start_command(within(&folder, &args, &variables), &args);
    assert!(ready["webhooks"].as_str().unwrap().starts_with("127.0.0.1:"), "{ready}");
    assert_eq!(term(&mut serve), Some(0));
    let mut log = String::new();
    serve.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(log.contains("it is not a URL of Postgres"), "{log}");
}

#[test]
fn a_start_with_nothing_says_what_is_missing() {
    let folder = Folder::new();
    let (code, _, err) = run_within(&folder, &["serve"], &[]);
    assert_eq!(code, Some(1));
    assert!(err.contains("ELEVENLABS_API_KEY") && err.contains("ringfence init"), "{err}");
    let (code, _, err) = run_within(&folder, &["serve"], &KEYS[..1]);
    assert!(code == Some(1) && err.contains("serve --concurrent 4"), "nobody guesses what was bought: {err}");
    let (code, _, err) = run_within(&folder, &["serve", "--concurrent", "4", "--config", "mine.toml"], &KEYS);
    assert!(code == Some(1) && err.contains("mine.toml"), "a file that was named has to be there: {err}");
}

#[test]
fn the_defaults_are_a_config_that_can_be_read() {
    let folder = Folder::new();
    let (code, out, _) = run(&["check", "--defaults"]);
    assert!(code == Some(0) && out.contains("create_secs      = 60"), "{out}");
    // It names a folder and files that are not there; that is all.
    std::fs::write(folder.0.join("ringfence.toml"), &out).unwrap();
    let keys = [
        &KEYS[..],
        &[
            ("TWILIO_SHARED_KEY", "x"),
            ("ACME_API_KEY", "x"),
            ("RINGFENCE_TOKEN_SECRET", "a secret of some length, for tests"),
            ("RINGFENCE_EVENTS_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
            ("APP_SECRET_KEY", "a secret of some length, for tests"),
            ("CRON_SECRET", "a secret of some length, for tests"),
            ("DATABASE_URL", "postgres://localhost/x"),
            ("REDIS_URL", "redis://localhost"),
            ("APP_DATABASE_URL", "postgres://localhost/x"),
            ("LEADS_TOKEN", "x"),
            ("SENTRY_DSN", "https://key@glitchtip.example/1"),
        ],
    ]
    .concat();
    let (_, out, _) = run_within(&folder, &["check", "--json"], &keys);
    let found: Value = serde_json::from_str(&out).unwrap();
    let errors = found["diagnostics"].as_array().unwrap().iter().filter(|d| d["severity"] == "error");
    let errors: Vec<_> = errors.map(|d| d["code"].as_str().unwrap()).collect();
    // `providers_dir`, `do_not_call_file`, `jwks_file`.
    assert_eq!(errors, ["E011", "E011", "E011"], "{out}");
}

// === what a start meets

fn sound(folder: &Folder) -> String {
    folder.write("ok.toml", &format!("{LISTEN}[accounts.elevenlabs]\nupstream = \"http://127.0.0.1:1\"\n"))
}

#[test]
fn a_port_that_is_taken_names_who_has_it() {
    let folder = Folder::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, _, err) = run(&["serve", "--config", &sound(&folder), "--listen-webhooks", &address]);
    assert_eq!(code, Some(1));
    assert!(err.contains(&address) && err.contains("--listen-webhooks :0 or [listen] webhooks"), "{err}");
    if cfg!(target_os = "linux") {
        assert!(err.contains(&format!("(process {}) listens there", std::process::id())), "{err}");
    }
}

/// `serve` over a store at this path; what it says at its end.
fn refused_store(folder: &Folder, path: &Path) -> String {
    let config = sound(folder);
    let path = path.display().to_string();
    let mut command = command(&["serve", "--config", &config]);
    let child = command.env("RINGFENCE_STORE_PATH", &path).stderr(Stdio::piped()).spawn();
    // One that is not refused would serve until somebody stops it.
    let mut child = Running(child.unwrap());
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.0.try_wait().unwrap() {
            break status;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "a sidecar serves over {path}");
        std::thread::park_timeout(Duration::from_millis(20));
    };
    let mut err = String::new();
    child.0.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!(status.code(), Some(1), "{path}: {err}");
    let last = err.lines().last().unwrap_or_default().to_owned();
    assert!(last.contains(&path), "the path stands in it: {last}");
    last
}

#[test]
fn a_store_that_cannot_be_used_is_named_with_cause_and_way_out() {
    let folder = Folder::new();
    let garbage = folder.0.join("garbage.db");
    std::fs::write(&garbage, "no database, ".repeat(1000)).unwrap();
    let said = refused_store(&folder, &garbage);
    assert!(said.contains("no SQLite file") && said.contains("move it away"), "{said}");
    assert_eq!(std::fs::read_to_string(&garbage).unwrap(), "no database, ".repeat(1000), "it is left as it is");

    let said = refused_store(&folder, &garbage.join("below.db"));
    assert!(said.contains("a part of the path is a file"), "{said}");
    if Path::new("/sys/kernel").exists() {
        // Nobody, root included, makes files there.
        let said = refused_store(&folder, Path::new("/sys/ringfence.db"));
        assert!(said.contains("another [store] path"), "{said}");
    }
}

#[test]
fn a_store_whose_pages_are_damaged_is_refused() {
    let folder = Folder::new();
    let file = folder.0.join("damaged.db");
    let config = sound(&folder);
    let up = |way: &str| command(&["migrate", "--config", &config, way]).env("RINGFENCE_STORE_PATH", &file).output();
    assert!(up("up").unwrap().status.success());
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[4096..].fill(0xa5);
    std::fs::write(&file, bytes).unwrap();
    let said = refused_store(&folder, &file);
    assert!(said.contains("damaged") && said.contains("backup"), "{said}");
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_refused() {
    let folder = Folder::new();
    let file = newer(&folder).await;
    let said = refused_store(&folder, &file);
    assert!(said.contains("of a newer ringfence") && said.contains("migrate down --to"), "{said}");
}

/// Its tables may be others, so nothing is read from them.
#[test]
fn a_store_that_another_build_made_is_refused() {
    let folder = Folder::new();
    let file = folder.0.join("other.db");
    let config = sound(&folder);
    let migrate = |way: &str| {
        let done = command(&["migrate", "--config", &config, way]).env("RINGFENCE_STORE_PATH", &file).output().unwrap();
        (done.status.code(), String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned())
    };
    assert_eq!(migrate("up").0, Some(0));
    rusqlite::Connection::open(&file).unwrap().execute("UPDATE _sqlx_migrations SET checksum = x'00'", []).unwrap();
    let said = refused_store(&folder, &file);
    assert!(said.contains("was made by another build of ringfence") && said.contains("new, empty store"), "{said}");
    for way in ["up", "down"] {
        let (code, said) = migrate(way);
        assert!(code == Some(1) && said.contains("was made by another build of ringfence"), "{way}: {said}");
    }
    let (code, said) = migrate("status");
    assert!(code == Some(0) && said.contains("0001") && said.contains("applied by another build"), "{said}");
    let variables = [("RINGFENCE_STORE_PATH", file.to_str().unwrap())];
    let (code, found, _) = live(&folder, &config, &variables);
    assert!(
        code == Some(2) && found.iter().any(|(code, title)| code == "E053" && title.contains("another build")),
        "{found:?}"
    );
}

/// A store as a later version would leave it.
async fn newer(folder: &Folder) -> std::path::PathBuf {
    let file = folder.0.join("newer.db");
    let config = sound(folder);
    let up = command(&["migrate", "--config", &config, "up"]).env("RINGFENCE_STORE_PATH", &file).output().unwrap();
    assert!(up.status.success());
    let later = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (9999, 'later', 1, x'00', 0)";
    rusqlite::Connection::open(&file).unwrap().execute(later, []).unwrap();
    file
}

#[test]
fn a_disk_that_takes_no_more_is_told_of() {
    let folder = Folder::new();
    // A limit on file sizes stands for the full disk: it meets the program at the same calls, and needs no mount.
    let script = "trap '' XFSZ; ulimit -f 8; exec \"$0\" serve --config \"$1\"";
    let file = folder.0.join("full.db");
    let output = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_ringfence"), &sound(&folder)])
        .env("RINGFENCE_STORE_PATH", &file)
        .output()
        .unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("full.db") && err.contains("look at the disk"), "{err}");
}

#[test]
fn a_store_that_may_only_be_read_is_refused_at_the_start() {
    let folder = Folder::new();
    let file = folder.0.join("read.db");
    let config = sound(&folder);
    assert!(
        command(&["migrate", "--config", &config, "up"]).env("RINGFENCE_STORE_PATH", &file).status().unwrap().success()
    );
    let mut mode = std::fs::metadata(&file).unwrap().permissions();
    mode.set_readonly(true);
    std::fs::set_permissions(&file, mode).unwrap();
    let writable = || std::fs::OpenOptions::new().append(true).open(&file).is_ok();
    // Root writes such a file too, unless it is immutable.
    let attribute = |way: &str| Command::new("chattr").arg(way).arg(&file).status().is_ok_and(|s| s.success());
    let immutable = writable() && attribute("+i");
    let said = if writable() { Ok(None) } else { std::panic::catch_unwind(|| Some(refused_store(&folder, &file))) };
    if immutable {
        assert!(attribute("-i"), "the file could not be made mutable again");
    }
    let expected = said.unwrap();
    match expected {
        Some(said) => assert!(said.contains("read-only") && said.contains("[store] path"), "{said}"),
        // Neither works here: at least what can be written is not refused.
        None => assert!(run(&["check", "--live", "--config", &config]).1.contains("store")),
    }
}

// === check --live

pub fn live_config(folder: &Folder, upstream: &str, more: &str) -> String {
    let text = format!(
        "public_url = \"https://hooks.example.com\"\n{more}\n[accounts.elevenlabs]\nupstream = \"{upstream}\"\n\
         api_key = {{ env = \"ELEVENLABS_API_KEY\" }}\nwebhook_secrets = [{{ env = \"ELEVENLABS_WEBHOOK_SECRET\" }}]\n\
         [accounts.twilio]\nupstream = \"{upstream}\"\naccount_sid = {{ env = \"TWILIO_ACCOUNT_SID\" }}\n\
         auth_token = {{ env = \"TWILIO_AUTH_TOKEN\" }}\n"
    );
    folder.write("live.toml", &text)
}

/// Exit code, and every finding of `check --live` but those of the config itself.
fn live(
    folder: &Folder,
    config: &str,
    variables: &[(&str, &str)],
) -> (Option<i32>, Vec<(String, String)>, Vec<String>) {
    let (code, out, err) = run_within(folder, &["check", "--live", "--json", "--config", config], variables);
    let found: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out} {err}"));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let diagnostics = found["diagnostics"].as_array().unwrap().iter().map(|d| (text(&d["code"]), text(&d["title"])));
    let lines = found["live"].as_array().unwrap().iter().map(text).collect();
    (code, diagnostics.collect(), lines)
}

pub fn simulator() -> (Running, String) {
    let (running, ready) = start(&["simulate", "--listen", "127.0.0.1:0", "--ready-json"]);
    let url = ready["url"].as_str().unwrap().to_owned();
    (running, url)
}

pub fn configure(url: &str, settings: &Value) {
    let sent = Command::new("curl").args(["-sf", "-d", &settings.to_string(), &format!("{url}/_sim/config")]).output();
    assert!(sent.unwrap().status.success(), "{settings}");
}

fn coded(found: &[(String, String)]) -> Vec<&str> {
    found.iter().map(|(code, _)| code.as_str()).collect()
}

#[test]
fn check_live_finds_nothing_where_nothing_is_wrong() {
    let folder = Folder::new();
    let (_sim, url) = simulator();
    configure(
        &url,
        &json!({
            "el_events_url": "https://hooks.example.com/webhooks/elevenlabs/post-call",
            "number_voice_url": "https://hooks.example.com/webhooks/twilio/voice",
            "number_status_url": "https://hooks.example.com/webhooks/twilio/status",
        }),
    );
    let config = live_config(&folder, &url, LISTEN);
    let (code, found, lines) = live(&folder, &config, &KEYS);
    assert_eq!((code, coded(&found)), (Some(0), vec![]), "{found:?}");
    let lines = lines.join("\n");
    for part in
        ["elevenlabs accepts", "twilio accepts", "its webhook comes here", "its number comes here", "does not exist"]
    {
        assert!(lines.contains(part), "{part} is not in\n{lines}");
    }
    assert!(!folder.0.join("ringfence.db").exists(), "it only looks");
}

#[test]
fn check_live_tells_of_webhooks_and_numbers_that_go_elsewhere() {
    let folder = Folder::new();
    let (_sim, url) = simulator();
    let config = live_config(&folder, &url, LISTEN);
    configure(&url, &json!({"number_voice_url": "https://demo.twilio.com/welcome"}));
    let (code, found, _) = live(&folder, &config, &KEYS);
    assert_eq!(code, Some(0), "warnings do not stop a start: {found:?}");
    assert_eq!(coded(&found), ["W011", "W012", "W012"], "{found:?}");
    assert!(found[0].1.contains("has no webhook"), "{found:?}");
    let number = SimSettings::default().number;
    for (_, title) in &found {
        assert!(!title.contains(&number), "numbers are masked: {title}");
    }
    assert!(found[1].1.contains("demo.twilio.com") && found[1].1.contains("cannot be refused"), "{found:?}");
    assert!(found[2].1.contains("status callback") && found[2].1.contains("is empty"), "{found:?}");

    configure(
        &url,
        &json!({
            "el_events_url": "https://hooks.example.com/webhooks/elevenlabs", "el_hook_disabled": true,
            "number_voice_url": "https://hooks.example.com/twilio/voice",
            "number_status_url": "https://hooks.example.com/twilio/status",
        }),
    );
    let (_, found, _) = live(&folder, &config, &KEYS);
    assert!(coded(&found) == ["W011"] && found[0].1.contains("switched off"), "{found:?}");
    configure(&url, &json!({"el_hook_disabled": false, "el_hook_failure": 500}));
    let (_, found, _) = live(&folder, &config, &KEYS);
    assert!(coded(&found) == ["W011"] && found[0].1.contains("answered with 500, at 2025-10-09"), "{found:?}");

    // What is called already may be where the app answers: the path is offered to be added, before another is named.
    configure(
        &url,
        &json!({
            "el_events_url": "https://hooks.example.com/webhooks/elevenlabs", "el_hook_failure": null,
            "number_voice_url": "https://hooks.example.com/mine/voice?x=1",
            "number_status_url": "https://hooks.example.com/twilio/status",
        }),
    );
    let (_, out, _) = run_within(&folder, &["check", "--live", "--json", "--config", &config], &KEYS);
    assert!(out.contains(r#"[inbound] voice_paths = [\"/mine/voice\"]"#), "{out}");
    assert!(out.contains("https://hooks.example.com/webhooks/twilio/voice, if your app serves that path"), "{out}");
}

#[test]
fn check_live_tells_of_keys_that_are_not_accepted_and_of_accounts_that_are_closed() {
    let folder = Folder::new();
    let (_sim, url) = simulator();
    let config = live_config(&folder, &url, LISTEN);
    configure(&url, &json!({"tw_state": "suspended"}));
    let wrong = [&[("ELEVENLABS_API_KEY", "sk_wrong")], &KEYS[1..]].concat();
    let (code, found, _) = live(&folder, &config, &wrong);
    assert_eq!((code, coded(&found)), (Some(2), vec!["E051", "E052"]), "{found:?}");
    assert!(
        found[0].1.contains("401") && found[0].1.contains("Invalid API key"),
        "the provider's own words: {found:?}"
    );
    assert!(found[1].1.contains("suspended"), "{found:?}");
    assert!(found.iter().all(|(_, title)| !title.contains("sk_wrong")), "{found:?}");

    let nobody = live_config(&folder, "http://127.0.0.1:1", LISTEN);
    let (code, found, _) = live(&folder, &nobody, &KEYS);
    assert_eq!((code, coded(&found)), (Some(2), vec!["E050", "E050"]), "{found:?}");
}

#[tokio::test]
async fn check_live_looks_at_the_store_and_the_ports() {
    let folder = Folder::new();
    let (_sim, url) = simulator();
    let settings = json!({
        "el_events_url": "https://hooks.example.com/webhooks/elevenlabs",
        "number_voice_url": "https://hooks.example.com/twilio/voice",
        "number_status_url": "https://hooks.example.com/twilio/status",
    });
    configure(&url, &settings);
    let taken = std::net::SocketAddr::from(([127, 0, 0, 1], ringfence::net::spare_port()));
    let listen = LISTEN.replacen("127.0.0.1:0", &taken.to_string(), 1);
    let config = live_config(&folder, &url, &listen);

    // A sidecar that runs over this store may have the ports; somebody else may not.
    let args = ["serve", "--config", &config, "--ready-json"];
    let (mut serve, _) = start_command(within(&folder, &args, &KEYS), &args);
    let (code, found, lines) = live(&folder, &config, &KEYS);
    assert_eq!((code, coded(&found)), (Some(0), vec![]), "{found:?}");
    assert!(
        lines.iter().any(|l| l.contains("up to date") && l.contains(&format!("process {}", serve.0.id()))),
        "{lines:?}"
    );
    assert_eq!(term(&mut serve), Some(0));

    let held = std::net::TcpListener::bind(taken).unwrap();
    let file = newer(&folder).await;
    let variables = [&KEYS[..], &[("RINGFENCE_STORE_PATH", file.to_str().unwrap())]].concat();
    let (code, found, _) = live(&folder, &config, &variables);
    assert_eq!((code, coded(&found)), (Some(2), vec!["E053", "E054"]), "{found:?}");
    assert!(found[0].1.contains("of a newer ringfence"), "{found:?}");
    if cfg!(target_os = "linux") {
        assert!(found[1].1.contains(&format!("process {}", std::process::id())), "{found:?}");
    }
    drop(held);
}
