//! The gate's Redis as the command line meets it.

use std::path::PathBuf;

use crate::cli;
use crate::support::redis::{Redis, Setup, USER, is_missing};

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// `ringfence WORDS` over a Redis, and what it said.
fn run(words: &[&str], url: &str) -> (Option<i32>, String) {
    let folder = Folder(std::env::temp_dir().join(format!("ringfence-check-{}", ringfence::ids::CallId::new())));
    std::fs::create_dir_all(&folder.0).unwrap();
    let text = "[listen]\napi = \":0\"\nwebhooks = \":0\"\nadmin = \":0\"\n[accounts.elevenlabs]\nconcurrent = 1\n\
                [gate]\nbackend = \"redis\"\nredis_url = { env = \"REDIS_URL\" }\n";
    std::fs::write(folder.0.join("ringfence.toml"), text).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ringfence"));
    let out = command.args(words).current_dir(&folder.0).env("REDIS_URL", url).output().unwrap();
    let said = [out.stdout, out.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
    (out.status.code(), said)
}

#[test]
fn check_live_tells_of_a_redis_that_is_no_gate() {
    if is_missing() {
        return;
    }
    let redis = Redis::plain();
    let (code, said) = run(&["check", "--live"], &redis.url());
    assert!(
        code == Some(0) && said.contains(&format!("gate redis://127.0.0.1:{}: pool default", redis.port)),
        "{said}"
    );
    assert_eq!(redis.cli(&["DBSIZE"]), "0", "nothing is left there");

    redis.set("maxmemory-policy", "allkeys-lru");
    let (code, said) = run(&["check", "--live"], &redis.url());
    assert!(code == Some(2) && said.contains("E055") && said.contains("maxmemory-policy is allkeys-lru"), "{said}");
    let (code, said) = run(&["serve"], &redis.url());
    assert!(code == Some(1) && said.contains("maxmemory-policy is allkeys-lru"), "it does not start either: {said}");

    let url = redis.url();
    drop(redis);
    let (code, said) = run(&["check", "--live"], &url);
    assert!(code == Some(2) && said.contains("E055") && said.contains("gate.on_outage"), "{said}");
}

#[test]
fn check_live_names_the_rights_that_are_missing() {
    if is_missing() {
        return;
    }
    let rules = "~* +@all -zlexcount";
    let redis = Redis::start(Setup { user: Some(rules.to_owned()), ..Setup::default() });
    let (code, said) = run(&["check", "--live"], &redis.url());
    assert!(code == Some(2) && said.contains("E055") && said.contains("may not run ZLEXCOUNT"), "{said}");
    assert!(said.contains("ACL SETUSER ringfence"), "{said}");
    assert!(!said.contains(USER.1), "{said}");
}

/// A secret manager rewrites the file, and the old password counts no more.
#[test]
fn a_reload_takes_up_a_new_password_with_everything_else() {
    if is_missing() {
        return;
    }
    let redis = Redis::start(Setup { user: Some("~* &* +@all".to_owned()), ..Setup::default() });
    let folder = cli::Folder::new();
    let url_file = folder.write("redis-url", &redis.url());
    let config = |concurrent: u32| {
        let text = format!(
            "{}[accounts.elevenlabs]\nconcurrent = {concurrent}\napi_key = \"sk_simulated\"\nupstream = \"http://127.0.0.1:1\"\n\
             [gate]\nbackend = \"redis\"\nredis_url = {{ file = \"{url_file}\" }}\n[reload]\nwatch = false\n[timeouts]\ndrain_secs = 1\n",
            cli::LISTEN
        );
        folder.write("ringfence.toml", &text)
    };
    let file = config(1);
    let (_serve, _) = cli::start(&["serve", "--config", &file, "--ready-json"]);
    let is_connected = || redis.cli(&["CLIENT", "LIST"]).contains(&format!("user={}", USER.0));
    assert!(is_connected());

    redis.cli(&["ACL", "SETUSER", USER.0, ">planted_second", &format!("<{}", USER.1)]);
    folder.write("redis-url", &redis.url().replace(USER.1, "planted_second"));
    config(7);
    let (code, out, err) = cli::run(&["reload", "-c", &file]);
    assert!(code == Some(0) && format!("{out}{err}").contains("W036"), "{out}{err}");
    assert!(!format!("{out}{err}").contains("planted"), "{out}{err}");
    let (_, status, _) = cli::run(&["status", "--json", "-c", &file]);
    assert!(status.contains("7 calls at once"), "the rest is in force: {status}");
    redis.cli(&["CLIENT", "KILL", "USER", USER.0]);
    let started = std::time::Instant::now();
    while !is_connected() {
        assert!(started.elapsed().as_secs() < 60, "it does not connect with the new password");
        std::thread::park_timeout(std::time::Duration::from_millis(50));
    }
}
