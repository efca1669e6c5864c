use std::path::Path;

use super::*;

fn env(name: &str) -> Option<String> {
    // Every secret that the files in config/ name is set; nothing else is.
    const SET: &[&str] = &[
        "ELEVENLABS_API_KEY",
        "ELEVENLABS_WEBHOOK_SECRET",
        "TWILIO_ACCOUNT_SID",
        "TWILIO_AUTH_TOKEN",
        "TWILIO_SHARED_KEY",
        "ACME_API_KEY",
        "RINGFENCE_TOKEN_SECRET",
    ];
    SET.contains(&name).then(|| format!("value of {name}"))
}

fn read(text: &str) -> Loaded {
    load(text, Path::new("/nowhere"), &env)
}

fn codes(loaded: &Loaded) -> Vec<&'static str> {
    loaded.diagnostics.iter().filter(|d| d.severity == Severity::Error).map(|d| d.code).collect()
}

fn drawn(text: &str) -> String {
    report::render(&read(text).diagnostics, "ringfence.toml", text, false)
}

const ACCOUNT: &str = "[accounts.twilio]\naccount_sid = \"AC1\"\nauth_token = { env = \"TWILIO_AUTH_TOKEN\" }\n";

#[test]
fn the_files_in_config_are_sound() {
    for (name, text) in [
        ("ringfence.toml", include_str!("../../config/ringfence.toml")),
        ("production.toml", include_str!("../../config/production.toml")),
    ] {
        let loaded = read(text);
        assert!(loaded.config.is_some(), "{name}: {:#?}", loaded.diagnostics);
    }
    let demo = crate::cli::demo::sample_config(Path::new("/nowhere"));
    assert!(demo.config.is_some(), "{:#?}", demo.diagnostics);
}

/// The reference says nothing that is not so, and leaves nothing out.
#[test]
fn the_reference_names_every_key_and_no_other() {
    let text = include_str!("../../config/reference.toml").replace("providers_dir = \"providers\"", "");
    let loaded = read(&text);
    let errors: Vec<_> = loaded.diagnostics.iter().filter(|d| d.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    for key in &loaded.keys {
        let last = key.rsplit('.').next().unwrap_or(key);
        // As a key (`key =`), or as a table (`[key]`, `[table.key]`).
        let stands = text.match_indices(last).any(|(at, _)| {
            let before = text[..at].chars().next_back().is_none_or(|c| !c.is_alphanumeric() && c != '_');
            let after = text[at + last.len()..].trim_start_matches([' ', ']']);
            before && (after.starts_with('=') || after.starts_with(['\n', '.', '#']))
        });
        assert!(stands || key == "providers_dir", "reference.toml does not show {key}");
    }
}

/// Defaults in the reference are those of the code: leaving a key out is the same as writing it.
#[test]
fn the_references_defaults_are_the_codes() {
    let bare = read(ACCOUNT).config.expect("sound");
    let written = format!(
        "{ACCOUNT}{}",
        r#"
[listen]
api = "127.0.0.1:8080"
webhooks = "127.0.0.1:8081"
admin = "127.0.0.1:9900"
[store]
path = "ringfence.db"
migrate_on_start = true
retention_days = 30
[timeouts]
create_secs = 60
late_answer_secs = 300
send_within_secs = 10
ask_secs = 10
drain_secs = 30
[deadlines]
reserved_secs = 90
queued_secs = 1800
dialing_secs = 120
ringing_secs = 120
live_secs = 600
[reconcile]
absent_twice_secs = 60
grace_ms = 3000
[refusal]
sdk_retry_after_max_secs = 1
[log]
format = "text"
filter = "info"
[inbound]
mode = "app"
when_full = "busy"
[reload]
watch = true
"#
    );
    let reference = include_str!("../../config/reference.toml");
    for line in written.lines().filter(|l| l.contains(" = ") && !ACCOUNT.contains(l)) {
        let (key, value) = line.split_once(" = ").unwrap();
        let stands = reference.lines().any(|r| {
            let mut parts = r.splitn(2, '=');
            parts.next().is_some_and(|k| k.trim() == key) && parts.next().is_some_and(|v| v.trim().starts_with(value))
        });
        assert!(stands, "reference.toml does not say {line}");
    }
    let same = read(&written).config.expect("sound");
    assert_eq!(format!("{bare:?}"), format!("{same:?}"));
}

#[test]
fn every_mistake_is_listed_at_once() {
    let loaded = read(
        r#"
mode = "enforcing"
concurrent = "30"
[accounts.twilio]
acount_sid = "AC1"
auth_token = { env = "NOT_SET" }
rate = "fast"
[businesses.acme]
plan = "PREMIUM"
[[limits]]
concurrent = 1
rate = "1/s"
"#,
    );
    let mut found = codes(&loaded);
    found.sort_unstable();
    assert_eq!(found, ["E002", "E003", "E004", "E004", "E005", "E010", "E014", "E021"]);
    assert!(loaded.config.is_none());
}

/// experience.md §4: a key at the end of the file, filed under the last table by TOML.
#[test]
fn a_root_key_below_a_table_is_recognised() {
    let text = format!("{ACCOUNT}per_business = 1\n");
    let shown = drawn(&text);
    assert!(shown.contains("error[E014]: unknown key `per_business` in [accounts.twilio]"), "{shown}");
    assert!(shown.contains("ringfence.toml:4:1"), "{shown}");
    assert!(shown.contains("…so this is read as accounts.twilio.per_business"), "{shown}");
    assert!(shown.contains("everything below belongs to [accounts.twilio]…"), "{shown}");
    assert!(shown.contains("move `per_business` above the first [table]"), "{shown}");
}

#[test]
fn near_misses_are_guessed() {
    assert!(drawn(&format!("mod = \"observe\"\n{ACCOUNT}")).contains("did you mean `mode`?"));
    assert!(drawn(&format!("mode = \"observ\"\n{ACCOUNT}")).contains("did you mean \"observe\"?"));
    assert!(drawn("[accounts.twillio]\n").contains("did you mean \"twilio\"?"));
}

#[test]
fn broken_toml_names_its_place() {
    let shown = drawn("mode = \"observe\nconcurrent = 3\n");
    assert!(shown.contains("error[E001]") && shown.contains("ringfence.toml:1:"), "{shown}");
}

#[test]
fn the_environment_wins_and_its_mistakes_name_the_variable() {
    let with = |name: &'static str, value: &'static str| {
        load(ACCOUNT, Path::new("/nowhere"), &move |asked| {
            if asked == name { Some(value.to_owned()) } else { env(asked) }
        })
    };
    let config = with("RINGFENCE_LISTEN_API", "[::1]:7000").config.unwrap();
    assert_eq!(config.listen.api, "[::1]:7000".parse().unwrap());
    let config = with("RINGFENCE_ACCOUNTS_TWILIO_CONCURRENT", "9").config.unwrap();
    assert_eq!(config.policy.accounts[0].concurrent, Some(9));
    let wrong = with("RINGFENCE_CONCURRENT", "many");
    assert!(wrong.diagnostics.iter().any(|d| d.title.contains("RINGFENCE_CONCURRENT is \"many\"")), "{wrong:?}");
}

#[test]
fn secrets_are_never_printed() {
    let loaded =
        read("[accounts.elevenlabs]\napi_key = \"sk_very_secret\"\nwebhook_secrets = [\"wsec_very_secret\"]\n");
    let printed = format!("{:?}", loaded.config.unwrap());
    assert!(!printed.contains("very_secret"), "{printed}");
    assert_eq!(loaded.diagnostics.iter().filter(|d| d.code == "W001").count(), 2);
}

#[test]
fn strictness_follows_from_what_is_reachable() {
    let strict = |text: &str| read(&format!("{text}\n{ACCOUNT}")).config.unwrap().strict;
    assert_eq!(strict(""), Strict::No);
    assert_eq!(strict("public_url = \"https://hooks.example.com\""), Strict::PublicUrl);
    assert_eq!(strict("[listen]\nwebhooks = \"0.0.0.0:8081\""), Strict::NotLoopback);
    let open = read(&format!("[listen]\nadmin = \"0.0.0.0:9900\"\n{ACCOUNT}"));
    assert_eq!(codes(&open), ["E041"]);
}

#[test]
fn times_that_contradict_each_other_are_refused() {
    assert_eq!(codes(&read(&format!("{ACCOUNT}[deadlines]\nreserved_secs = 30\n"))), ["E040"]);
}

#[test]
fn businesses_may_not_share_an_agent_and_enterprise_states_its_number() {
    let loaded = read(&format!(
        "{ACCOUNT}[businesses.a]\nagent_ids = [\"x\"]\n[businesses.b]\nagent_ids = [\"x\"]\n[businesses.c]\nplan = \"ENTERPRISE\"\n"
    ));
    assert_eq!(codes(&loaded), ["E023", "E004"]);
}

#[test]
fn no_config_at_all_says_what_is_missing() {
    let loaded = read("");
    assert_eq!(codes(&loaded), ["E004"]);
    assert!(loaded.diagnostics[0].help.as_deref().is_some_and(|h| h.contains("[accounts.elevenlabs]")));
}

#[test]
fn an_empty_variable_is_no_secret() {
    let env = |name: &str| if name.starts_with("RINGFENCE_") { Some(String::new()) } else { env(name) };
    let loaded = load(&format!("{ACCOUNT}[listen]\nadmin = \"127.0.0.1:0\"\n"), Path::new("."), &env);
    let config = loaded.config.expect("empty variables count as not set");
    assert!(config.token_secret.is_none());
    assert!(config.accounts.values().all(|a| a.webhook_secrets.is_empty() && a.webhook_tokens.is_empty()));
    assert_eq!(codes(&read(&format!("{ACCOUNT}[admin]\ntoken_secret = \" \"\n"))), ["E003"]);
}

#[test]
fn limits_that_would_share_a_count_or_bind_nothing_are_refused() {
    let limits = |text: &str| codes(&read(&format!("{ACCOUNT}{text}")));
    let one = "[[limits]]\nname = \"night\"\nconcurrent = 1\n";
    assert_eq!(limits(&format!("{one}[[limits]]\nname = \"night\"\nrate = \"1/s\"\n")), Vec::<&str>::new());
    assert_eq!(limits(&format!("{one}{one}")), ["E030"]);
    assert_eq!(limits(&one.replace("night", "global")), ["E030"]);
    assert_eq!(limits(&format!("{one}match = {{ account = \"twili\" }}\n")), ["E022"]);
    assert_eq!(limits(&format!("{one}match = {{ plan = \"PROO\" }}\n")), ["E021"]);
}
