mod destinations;
mod listen;

use std::path::Path;

use super::diagnostics::{Diagnostic, Severity};
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
        "APP_SECRET_KEY",
        "CRON_SECRET",
        "LEADS_TOKEN",
    ];
    if name == "RINGFENCE_EVENTS_SECRET" || name == "LEADS_SECRET" {
        return Some("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned());
    }
    if name == "SENTRY_DSN" {
        return Some("https://key@sentry.example.com/7".to_owned());
    }
    if name == "REDIS_URL" {
        return Some("rediss://ring:fence@redis.example.com:6379".to_owned());
    }
    if name == "DATABASE_URL" || name == "APP_DATABASE_URL" {
        return Some("postgres://ring:fence@db.example.com/ring?sslmode=verify-full".to_owned());
    }
    SET.contains(&name).then(|| format!("the value of {name}, long enough"))
}

fn read(text: &str) -> Loaded {
    load(text, Path::new("/nowhere"), &env)
}

fn codes(loaded: &Loaded) -> Vec<&'static str> {
    loaded.diagnostics.iter().filter(|d| d.severity == Severity::Error).map(|d| d.code).collect()
}

fn drawn(text: &str) -> String {
    diagnostics::render(&read(text).diagnostics, "ringfence.toml", text)
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

#[test]
fn a_part_of_a_provider_has_a_host_of_its_own_unless_the_account_names_one() {
    let upstream = |more: &str, path: &str| {
        let config = read(&format!("{ACCOUNT}{more}")).config.unwrap();
        config.accounts.values().next().unwrap().url(path).unwrap().to_string()
    };
    let studio = "/v2/Flows/FW1/Executions";
    assert_eq!(upstream("", studio), "https://studio.twilio.com/v2/Flows/FW1/Executions");
    assert_eq!(upstream("", "/v1/Flows?PageSize=5"), "https://studio.twilio.com/v1/Flows?PageSize=5");
    for elsewhere in ["/v2/FlowsX", "/2010-04-01/Accounts.json", "/x/v2/Flows"] {
        assert_eq!(upstream("", elsewhere), format!("https://api.twilio.com{elsewhere}"));
    }
    let own = "upstream = \"http://127.0.0.1:7777\"\n";
    assert_eq!(upstream(own, studio), format!("http://127.0.0.1:7777{studio}"), "a stand-in is all of the provider");
}

/// The reference says nothing that is not so, and leaves nothing out.
#[test]
fn the_reference_names_every_key_and_no_other() {
    let text = include_str!("../../config/reference.toml").replace("providers_dir = \"providers\"", "");
    let text = text.replace("jwks_file          = \"jwks.json\"", "#       jwks_file  =");
    let text = text.replace("do_not_call_file = \"do-not-call.txt\"", "#        do_not_call_file =");
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
client = "127.0.0.1:8082"
[store]
path = "ringfence.db"
pool_max = 16
statement_timeout_ms = 5000
pooler = "detect"
migrate_on_start = true
retention_days = 30
[inbox]
spool_dir = "ringfence.db-spool"
spool_max_mb = 1024
spool_days = 3
[gate]
backend = "memory"
pool = "default"
timeout_ms = 50
fallback_after_ms = 2000
return_after_ms = 30000
audit_interval_secs = 60
on_outage = "database"
[timeouts]
create_secs = 60
create_read_secs = 300
app_secs = 12
send_within_secs = 10
provider_query_secs = 10
drain_secs = 30
[deadlines]
reserved_secs = 90
queued_secs = 1800
dialing_secs = 120
ringing_secs = 120
live_secs = 600
[reconcile]
not_found_confirm_secs = 60
unreadable_alarm_secs = 300
list_lag_ms = 3000
[refusal]
sdk_retry_after_max_secs = 1
[log]
format = "text"
filter = "info"
[inbound]
mode = "app"
when_full = "busy"
[client]
default_businesses = []
allowed_origins = []
sockets_per_token = 20
idle_secs = 60
slow_secs = 10
[transcripts]
user_label = "user"
bare_list = false
completion_wait_secs = 60
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

#[test]
fn a_former_name_of_a_key_counts_and_is_told() {
    let text = format!("{ACCOUNT}[reconcile]\nabsent_twice_secs = 7\n");
    let loaded = read(&text);
    assert_eq!(loaded.config.as_ref().unwrap().calls.not_found_confirm.as_secs(), 7);
    let shown = drawn(&text);
    assert!(shown.contains("W035") && shown.contains("is now called `not_found_confirm_secs`"), "{shown}");
    let both = read(&format!("{text}not_found_confirm_secs = 8\n"));
    assert!(codes(&both).contains(&"E014"), "two values for one thing");
    for (key, former) in table::FORMER_NAMES {
        let (table, now) = key.rsplit_once('.').unwrap();
        let shown = drawn(&format!("{ACCOUNT}[{table}]\n{former} = 60000\n"));
        assert!(shown.contains(&format!("is now called `{now}`")) && !shown.contains("E014"), "{key}: {shown}");
    }
}

/// A key at the end of the file, filed under the last table by TOML.
#[test]
fn a_root_key_below_a_table_is_recognised() {
    let text = format!("{ACCOUNT}per_business = 1\n");
    let shown = drawn(&text);
    let picture = r#"error[E014]: unknown key `per_business` in [accounts.twilio]
 --> ringfence.toml:4:1
  |
1 | [accounts.twilio]
  | ----------------- everything below belongs to [accounts.twilio]…
...
4 | per_business = 1
  | ^^^^^^^^^^^^ …so this is read as accounts.twilio.per_business
  |
  = help: move `per_business` above the first [table], or write [plans] default = { concurrent = … }
"#;
    assert!(shown.starts_with(picture), "{shown}");
}

#[test]
fn a_password_that_ends_a_url_early_is_told() {
    let upstream = |url: &str| drawn(&format!("[accounts.elevenlabs]\nupstream = \"{url}\"\n"));
    for bad in [
        "https://user:p#ss@proxy.example",
        "https://user:p/ss@proxy.example/x",
        "http://u:a?b@proxy.example",
        "https://u:1#2x/y@h",
    ] {
        let shown = upstream(bad);
        assert!(shown.contains("%23, %2F or %3F") && shown.contains("error[E003]"), "{bad}: {shown}");
        assert!(!shown.contains("p#ss") && !shown.contains("p/ss"), "{shown}");
    }
    for good in [
        "https://user:p%23ss@proxy.example",
        "https://proxy.example:8443/a@b",
        "https://proxy.example/a:b@c",
        "https://proxy.example/@",
    ] {
        assert!(!upstream(good).contains("error"), "{good}: {}", upstream(good));
    }
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
    // For a duplicate key both places are shown.
    for text in ["concurrent = 5\nmode = \"observe\"\nconcurrent = 6\n", "[store]\n[plans]\n[store]\npath = \"x\"\n"] {
        let loaded = load(text, Path::new("/"), &|_| None);
        let [duplicate] = &loaded.diagnostics.iter().filter(|d| d.code == "E001").collect::<Vec<_>>()[..] else {
            panic!("{:?}", loaded.diagnostics)
        };
        let shown = diagnostics::render(&loaded.diagnostics, "ringfence.toml", text);
        assert!(shown.contains("first definition") && shown.contains("second definition"), "{shown}");
        let (first, second) = (duplicate.context.as_ref().unwrap().0.clone(), duplicate.span.clone().unwrap());
        assert_eq!((text.get(first.clone()), first.start < second.start), (text.get(second), true), "{shown}");
    }
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

/// `load` with these variables and no other.
fn with_variables(text: &str, set: &[(&str, &str)]) -> Loaded {
    let all: BTreeMap<&str, &str> = set.iter().copied().chain([("TWILIO_AUTH_TOKEN", "t")]).collect();
    load(text, Path::new("/nowhere"), &|name| all.get(name).map(|value| (*value).to_owned()))
}

#[test]
fn the_environment_can_say_what_a_caller_over_capacity_meets() {
    use crate::policy::WhenFull;
    let say = |text: &str, language: &str| WhenFull::Say { text: text.to_owned(), language: language.to_owned() };
    let forward = "[inbound]\nwhen_full = { forward = \"+15550001111\" }\n";
    let said = "[inbound]\nwhen_full = { say = \"All busy.\" }\n";
    type Variables = &'static [(&'static str, &'static str)];
    let table: [(&str, Variables, WhenFull); 6] = [
        ("", &[("RINGFENCE_INBOUND_WHEN_FULL", "busy")], WhenFull::Busy),
        ("", &[("RINGFENCE_INBOUND_WHEN_FULL_SAY", "Later.")], say("Later.", "en-US")),
        (
            "",
            &[("RINGFENCE_INBOUND_WHEN_FULL_SAY", "Später."), ("RINGFENCE_INBOUND_WHEN_FULL_LANGUAGE", "de-DE")],
            say("Später.", "de-DE"),
        ),
        (said, &[("RINGFENCE_INBOUND_WHEN_FULL_SAY", "Later.")], say("Later.", "en-US")),
        (forward, &[("RINGFENCE_INBOUND_WHEN_FULL", "busy")], WhenFull::Busy),
        ("[inbound]\nwhen_full = \"busy\"\n", &[("RINGFENCE_INBOUND_WHEN_FULL_SAY", "Later.")], say("Later.", "en-US")),
    ];
    for (text, variables, expected) in table {
        let loaded = with_variables(&format!("{text}{ACCOUNT}"), variables);
        let found = loaded.config.unwrap_or_else(|| panic!("{:?}", loaded.diagnostics)).policy.when_full;
        assert_eq!(found, expected, "{text} {variables:?}");
    }
    for (text, name, value, code) in [
        ("", "RINGFENCE_INBOUND_WHEN_FULL", "bussy", "E005"),
        ("", "RINGFENCE_INBOUND_WHEN_FULL_LANGUAGE", "de-DE", "E004"),
        (forward, "RINGFENCE_INBOUND_WHEN_FULL_SAY", "Later.", "E004"),
    ] {
        let loaded = with_variables(&format!("{text}{ACCOUNT}"), &[(name, value)]);
        assert_eq!(codes(&loaded), [code], "{text} {name}");
    }
}

#[test]
fn variables_that_no_key_reads_are_told_of() {
    let strangers = |names: &[(&str, &str)]| -> Vec<(String, Option<String>)> {
        let mut loaded = read(ACCOUNT);
        let before = loaded.diagnostics.len();
        loaded.warn_of_unknown_variables(names.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let added = loaded.diagnostics.split_off(before);
        assert!(added.iter().all(|d| d.code == "W007" && d.severity == Severity::Warning), "{added:?}");
        added.into_iter().map(|d| (d.title, d.help)).collect()
    };
    let found = strangers(&[("RINGFENCE_LISTN_API", ":0"), ("RINGFENCE_ACCOUNTS_TWILIO_CONCURENT", "3")]);
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(found[0].1.as_deref(), Some("did you mean RINGFENCE_ACCOUNTS_TWILIO_CONCURRENT?"));
    assert_eq!(found[1].1.as_deref(), Some("did you mean RINGFENCE_LISTEN_API?"));
    // A secret is looked for under the name that the file gives, or under its key's.
    let found = strangers(&[("RINGFENCE_TOKEN_SECRET", "x")]);
    assert!(found[0].0.contains("RINGFENCE_TOKEN_SECRET"), "{found:?}");
    let quiet = strangers(&[
        ("RINGFENCE_LISTEN_API", ":0"),
        ("RINGFENCE_CONFIG", "x"),
        ("RINGFENCE_BIN", "x"),
        ("RINGFENCE_FAILPOINTS", "x"),
        ("RINGFENCE_LISTN_API", ""),
        ("ELEVENLABS_API_KEY", "x"),
        // Kubernetes, beside a Service called ringfence or ringfence-admin.
        ("RINGFENCE_SERVICE_HOST", "10.0.0.1"),
        ("RINGFENCE_SERVICE_PORT_API", "8080"),
        ("RINGFENCE_PORT", "tcp://10.0.0.1:8080"),
        ("RINGFENCE_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("RINGFENCE_ADMIN_PORT_9900_TCP_ADDR", "10.0.0.1"),
    ]);
    assert_eq!(quiet, vec![]);
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
fn one_mistake_is_one_error() {
    let businesses = "[businesses.a]\nplan = \"PRO\"\n[businesses.b]\nplan = \"PRO\"\n";
    let of = |more: &str| codes(&read(&format!("{ACCOUNT}{businesses}{more}")));
    assert_eq!(of("[plans.PRO]\nconcurent = 3\n"), ["E014"]);
    assert_eq!(of("[plans.PRO]\nconcurrent = \"many\"\n"), ["E002"]);
    assert_eq!(of("[plans.PRO]\nrate = \"3/s\"\n"), ["E004", "E004"], "each of them must say its number");
    assert_eq!(of("[businesses.c]\nplan = \"ENTERPRISE\"\nmax_cals = 3\n"), ["E014"]);
}

#[test]
fn no_config_at_all_says_what_is_missing() {
    let loaded = read("");
    assert_eq!(codes(&loaded), ["E004"]);
    assert!(loaded.diagnostics[0].help.as_deref().is_some_and(|h| h.contains("[accounts.elevenlabs]")));
}

#[test]
fn a_plan_that_is_a_number_is_told_to_be_a_table() {
    let loaded = read(&format!("{ACCOUNT}[plans]\nPRO = 3\n"));
    assert_eq!(codes(&loaded), ["E002"]);
    assert!(loaded.diagnostics.iter().any(|d| d.title.contains("`plans.PRO`") && d.title.contains("table")));
    assert_eq!(codes(&read(&format!("{ACCOUNT}[plans]\nconcurrent = 3\n"))), ["E014"], "a key that slid under it");
}

#[test]
fn a_variable_in_quotes_is_warned_of() {
    let warned = |secret: &str| {
        let loaded = read(&format!("[accounts.elevenlabs]\napi_key = \"{secret}\"\n"));
        loaded.diagnostics.iter().any(|d| d.code == "W017")
    };
    assert!(warned("$ELEVENLABS_API_KEY") && warned("${ELEVENLABS_API_KEY}"));
    assert!(!warned("$2b$10$abcdef") && !warned("sk_simulated"), "nor is what may be a secret drawn as a name");
}

#[test]
fn the_admins_place_is_read_without_the_rest() {
    let of = |text: &str| admin_address(text, Path::new("/etc/rf"), &|_| None).unwrap();
    let missing = "[accounts.elevenlabs]\napi_key = { env = \"NOT_HERE\" }\n[listen]\nadmin = \"0.0.0.0:9901\"\n";
    let found = of(missing);
    assert_eq!((found.tcp.port(), found.socket.to_str()), (9901, Some("/etc/rf/ringfence.db-admin.sock")));
    let postgres = "[store]\nurl = { env = \"NOT_HERE\" }\n";
    assert_eq!(of(postgres).socket.to_str(), Some("/etc/rf/ringfence-admin.sock"));
    assert_eq!(of("[listen]\nadmin_socket = \"/run/rf.sock\"\n").socket.to_str(), Some("/run/rf.sock"));
    assert_eq!(of("").tcp.to_string(), "127.0.0.1:9900");
    let tls =
        |listeners: &str| of(&format!("[listen]\ntls_cert = \"c.pem\"\ntls_key = \"k.pem\"\n{listeners}")).tls_cert;
    assert_eq!(tls(""), None, "listen.admin speaks TLS only where it is named");
    assert_eq!(tls("tls_listeners = [\"admin\"]\n"), Some("/etc/rf/c.pem".into()));
}

#[test]
fn an_empty_variable_is_no_secret() {
    let env = |name: &str| if name.starts_with("RINGFENCE_") { Some(String::new()) } else { env(name) };
    let loaded = load(&format!("{ACCOUNT}[listen]\nadmin = \"127.0.0.1:0\"\n"), Path::new("."), &env);
    let config = loaded.config.expect("empty variables count as not set");
    assert!(config.token_secrets.is_empty());
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

#[test]
fn a_store_is_a_server_where_there_is_a_url() {
    let with = |store: &str| read(&format!("{ACCOUNT}[store]\n{store}\n"));
    let loaded = with("url = { env = \"DATABASE_URL\" }\npool_max = 4");
    assert_eq!(codes(&loaded), [] as [&str; 0]);
    let store = loaded.config.unwrap().store;
    assert_eq!((store.backend(), store.shown().as_str()), ("postgres", "postgres://ring@db.example.com:5432/ring"));
    assert_eq!(read(ACCOUNT).config.unwrap().store.backend(), "sqlite");
    // Not a word of what was written: it has a password.
    let loaded = with("url = \"mysql://ring:hunter2@db/ring\"");
    assert_eq!(codes(&loaded), ["E003"]);
    assert!(!format!("{:?}", loaded.diagnostics).contains("hunter2"));
    let loaded = with("url = \"postgres://ring@db.example.com/ring\"");
    assert!(loaded.diagnostics.iter().any(|d| d.code == "W008"), "{:?}", loaded.diagnostics);
}

#[test]
fn places_for_callbacks_and_paths_for_the_app_are_read_or_explained() {
    let with = |keys: &str| read(&format!("{ACCOUNT}[app]\n{keys}\n"));
    let good = with(
        "allowed_callbacks = [\"127.0.0.1:3000\", \"10.0.0.0/8\", \"app.internal\"]\nforward_paths = [\"/media/*\"]",
    );
    let config = good.config.unwrap();
    assert!(
        config.callbacks.check_url("http://10.1.2.3/x").is_ok()
            && config.callbacks.check_url("http://192.168.0.1/").is_err()
    );
    assert!(config.webhooks.forward_paths.contain("/media/x") && !config.webhooks.forward_paths.contain("/admin"));
    for bad in [
        "allowed_callbacks = [\"http://app/\"]",
        "allowed_callbacks = [\"10.0.0.0/99\"]",
        "forward_paths = [\"media\"]",
    ] {
        assert_eq!(codes(&with(bad)), ["E003"], "{bad}");
    }
    let open = with("allowed_callbacks = [\"0.0.0.0/0\"]");
    assert!(open.diagnostics.iter().any(|d| d.code == "W015"), "{:#?}", open.diagnostics);
}

/// Reading once took the square of the number of businesses: 21 s for 100,000.
#[test]
fn reading_many_businesses_takes_no_more_for_each() {
    /// The CPU time of this thread, in clock ticks: what else the machine does is not in it (proc_pid_stat(5), `utime` and `stime`).
    fn cpu_ticks() -> u64 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    }
    let took_ticks = |count: usize| {
        let mut text = ACCOUNT.to_owned();
        for n in 0..count {
            text.push_str(&format!("[businesses.b{n}]\nplan = \"PRO\"\nagent_ids = [\"agent_{n}\"]\n"));
        }
        let began = cpu_ticks();
        let loaded = read(&text);
        let took = cpu_ticks() - began;
        assert_eq!(loaded.config.unwrap().policy.businesses.len(), count);
        took
    };
    let (few, many) = (took_ticks(4_000), took_ticks(16_000));
    // Four times with linear steps alone, 16 times with a quadratic one.
    assert!(many < 8 * few.max(1), "4,000 take {few} ticks, 16,000 take {many}");
}

#[test]
fn unknown_businesses_are_accepted_by_default() {
    use crate::policy::OnUnknownBusiness;
    let unknown = |text: &str| read(&format!("{ACCOUNT}{text}")).config.unwrap().policy.unknown;
    assert_eq!(unknown(""), OnUnknownBusiness::Plan("default".to_owned()));
    assert_eq!(unknown("[businesses.acme]\n"), OnUnknownBusiness::Plan("default".to_owned()));
    assert_eq!(unknown("[businesses]\nunknown = \"default\"\n"), OnUnknownBusiness::Plan("default".to_owned()));
    assert_eq!(unknown("[businesses]\nunknown = \"reject\"\n"), OnUnknownBusiness::Reject);
    let text = format!(
        "{ACCOUNT}[businesses.a]\nphone_numbers = [\"+1 555 000 1111\"]\n[businesses.b]\nphone_numbers = [\"15550001111\"]\n"
    );
    assert_eq!(codes(&read(&text)), ["E023"], "one number of two businesses");
}

#[test]
fn another_password_of_a_server_is_no_reason_to_restart() {
    let of = |url: &str, redis: &str, more: &str| {
        let text =
            format!("{ACCOUNT}{more}[store]\nurl = \"{url}\"\n[gate]\nbackend = \"redis\"\nredis_url = \"{redis}\"\n");
        (read(&text).config.unwrap(), text)
    };
    let (old, _) = of("postgres://u:one@localhost/x", "redis://:one@localhost", "");
    let found = |url: &str, redis: &str| {
        let (new, text) = of(url, redis, "");
        let codes = |list: Vec<Diagnostic>| list.iter().map(|one| one.code).collect::<Vec<_>>();
        (codes(needs_restart(&old, &new, &text)), codes(new_credentials(&old, &new, &text)))
    };
    assert_eq!(found("postgres://u:one@localhost/x", "redis://:one@localhost"), (vec![], vec![]));
    assert_eq!(found("postgres://u:two@localhost/x", "redis://:one@localhost"), (vec![], vec!["W036"]));
    assert_eq!(found("postgres://u:two@localhost/x", "redis://:two@localhost"), (vec![], vec!["W036", "W036"]));
    assert_eq!(found("postgres://u:two@localhost/y", "redis://:one@localhost").0, ["E060"]);
    assert_eq!(found("postgres://u:one@localhost/x", "redis://:one@localhost/3").0, ["E060"]);
}

#[test]
fn operators_tokens_may_have_several_secrets() {
    let [one, two] = ["a secret of some length, the newer one", "a secret of some length, the older one"];
    let config = read(&format!("{ACCOUNT}[admin]\ntoken_secret = [\"{one}\", \"{two}\"]\n")).config.unwrap();
    assert_eq!(config.token_secrets.iter().map(|secret| secret.expose()).collect::<Vec<_>>(), [one, two]);
    assert_eq!(codes(&read(&format!("{ACCOUNT}[admin]\ntoken_secret = [\"{one}\", \"short\"]\n"))), ["E003"]);
}

/// As all other paths: a service's working directory is not where its config is.
#[test]
fn a_relative_secret_file_is_beside_the_config() {
    let folder = std::env::temp_dir().join(format!("ringfence-secret-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("token"), "0123456789abcdef0123456789abcdef\n").unwrap();
    let text = format!("{ACCOUNT}[listen]\nadmin = \"127.0.0.1:0\"\n[admin]\ntoken_secret = {{ file = \"token\" }}\n");
    let found = load(&text, &folder, &|_| None);
    let missing = load(&text, Path::new("/nowhere"), &|_| None);
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(found.inputs.contains_key(&folder.join("token")));
    assert!(!codes(&found).contains(&"E011") && codes(&missing).contains(&"E011"));
}
