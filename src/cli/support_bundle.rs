//! `ringfence support-bundle`: writes the data that a supporter needs into one readable file, without secrets, full telephone
//! numbers and transcripts.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use http::{HeaderMap, Method};
use serde_json::{Map, Value, json};

use super::admin_client::AdminClient;
use super::file;
use super::outcome::Outcome;
use crate::clock::{Clock, rfc3339};
use crate::ids::{mask_number, mask_numbers_in};

/// The requests to a running sidecar.
const PATHS: [&str; 9] = [
    "/ready",
    "/status",
    "/metrics",
    "/api/calls?all=true&limit=200",
    "/api/refusals?limit=200",
    "/api/events?limit=100",
    "/api/events?state=parked&limit=100",
    "/api/runs?limit=50",
    "/api/audit?limit=200",
];
/// System files with the limits of a process.
const SYSTEM: [&str; 5] =
    ["/proc/version", "/proc/meminfo", "/proc/loadavg", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cpu.max"];
/// Maximum log lines.
const LOG_LINES_MAX: usize = 1000;
/// The replacement of redacted values.
const REDACTED: &str = "[redacted]";
/// Parts of the names of secrets.
const SECRET_WORDS: [&str; 7] = ["secret", "token", "password", "passwd", "key", "auth", "credential"];
/// The minimum secret that is searched in all texts; a shorter one would be found inside words.
const SECRET_CHARS_MIN: usize = 6;
/// Digits of telephone numbers without a plus: fewer are dates, ports and counts.
const RUN_DIGITS: std::ops::RangeInclusive<usize> = 9..=15;
/// The minimum digits of a telephone number.
const NUMBER_DIGITS_MIN: usize = 7;

#[derive(Debug, Args)]
pub(super) struct SupportBundle {
    #[command(flatten)]
    admin: AdminClient,
    /// The file to write; "-" is stdout [default: ringfence-support-TIME.json]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// A file with log lines, of which the last are added; "-" is stdin, as in journalctl -u ringfence | ringfence support-bundle --log -
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
}

impl SupportBundle {
    pub(super) async fn run(self) -> Outcome {
        let made_at = rfc3339(Clock::system().now_ms());
        let mut sidecar = Map::new();
        for path in PATHS {
            let asked = self.admin.exchange(Method::GET, path, "application/json", bytes::Bytes::new()).await;
            sidecar.insert(path.to_owned(), answered(asked));
        }
        let config = self.admin.config();
        let text = std::fs::read_to_string(config).unwrap_or_default();
        let written = toml::from_str::<toml::Table>(&text).ok();
        let mistakes = match file::read(config, &[]) {
            Ok(read) => read.loaded.diagnostics.iter().map(|d| json!({"code": d.code, "title": d.title})).collect(),
            Err(_) => vec![json!({"title": format!("there is no config at {}", config.display())})],
        };
        let variables: Map<String, Value> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name.starts_with("RINGFENCE_") || text.contains(name.as_str()))
            .map(|(name, value)| (name, format!("set, {} characters", value.chars().count()).into()))
            .collect();
        let system = SYSTEM.iter().map(|path| {
            let read = std::fs::read_to_string(path).map_or(Value::Null, |text| text.lines().take(8).collect());
            ((*path).to_owned(), read)
        });
        let mut bundle = json!({
            "madeAt": made_at,
            "version": env!("CARGO_PKG_VERSION"),
            "processors": std::thread::available_parallelism().map_or(0, usize::from),
            "system": system.collect::<Map<String, Value>>(),
            "config": written.as_ref().and_then(|table| serde_json::to_value(table).ok()),
            "mistakes": mistakes,
            "variables": variables,
            "sidecar": sidecar,
            "log": self.log.as_deref().map(log_lines).transpose()?,
        });
        let folder = config.parent().unwrap_or_else(|| Path::new(""));
        let secrets = written.as_ref().map(|written| secrets_of(written, folder)).unwrap_or_default();
        redact(&mut bundle, &secrets, false);
        let shown = serde_json::to_string_pretty(&bundle)?;
        match self.output {
            Some(path) if path.as_os_str() == "-" => println!("{shown}"),
            path => {
                let path =
                    path.unwrap_or_else(|| format!("ringfence-support-{}.json", made_at.replace(':', "")).into());
                let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
                out.write_all(shown.as_bytes())?;
                println!(
                    "{}: {} KiB. Read it before you send it: secrets and numbers are removed, names of businesses are not.",
                    path.display(),
                    shown.len() / 1024 + 1
                );
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The last lines of a log.
fn log_lines(path: &Path) -> anyhow::Result<Vec<String>> {
    let source: Box<dyn Read> = match path.as_os_str() == "-" {
        true => Box::new(std::io::stdin()),
        false => Box::new(File::open(path).with_context(|| format!("failed to read log {}", path.display()))?),
    };
    let mut last = VecDeque::new();
    for line in BufReader::new(source).split(b'\n') {
        if last.len() == LOG_LINES_MAX {
            last.pop_front();
        }
        last.push_back(String::from_utf8_lossy(&line?).into_owned());
    }
    Ok(last.into())
}

/// An answer, or the error if there is none.
fn answered(asked: anyhow::Result<(http::StatusCode, HeaderMap, bytes::Bytes)>) -> Value {
    match asked {
        Ok((status, _, body)) => {
            let text = String::from_utf8_lossy(&body);
            let lines = || text.lines().filter(|line| !line.starts_with('#')).collect();
            let body: Value = serde_json::from_str(&text).unwrap_or_else(|_| lines());
            json!({"status": status.as_u16(), "body": body})
        }
        Err(error) => json!({"error": format!("{error:#}")}),
    }
}

/// All secrets that a config refers to: in the file, in variables and in other files. Relative paths start at `folder`, the config's.
fn secrets_of(config: &toml::Table, folder: &Path) -> Vec<String> {
    fn look(value: &toml::Value, is_secret: bool, folder: &Path, found: &mut Vec<String>) {
        match value {
            toml::Value::String(text) if is_secret => found.push(text.clone()),
            toml::Value::Array(list) => list.iter().for_each(|one| look(one, is_secret, folder, found)),
            toml::Value::Table(table) => {
                let named = |key: &str| table.get(key).and_then(toml::Value::as_str);
                found.extend(named("env").and_then(|name| std::env::var(name).ok()));
                found.extend(named("file").and_then(|path| std::fs::read_to_string(folder.join(path)).ok()));
                table.iter().for_each(|(key, value)| look(value, names_a_secret(key), folder, found));
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    config.iter().for_each(|(key, value)| look(value, names_a_secret(key), folder, &mut found));
    let variables =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    found.extend(variables.filter(|(name, _)| names_a_secret(name)).map(|(_, value)| value));
    // A URL with a password is a secret, and so is the password alone.
    let passwords: Vec<String> =
        found.iter().filter_map(|text| url::Url::parse(text).ok()?.password().map(str::to_owned)).collect();
    found.extend(passwords);
    // One variable may hold several, while a secret is rotated.
    let parts: Vec<String> = found.iter().flat_map(|text| text.split(',')).map(str::to_owned).collect();
    found.extend(parts);
    let mut found: Vec<String> = found
        .iter()
        .map(|secret| secret.trim().to_owned())
        .filter(|secret| secret.chars().count() >= SECRET_CHARS_MIN)
        .collect();
    // The longest first, because one may contain another.
    found.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    found.dedup();
    found
}

fn names_a_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    SECRET_WORDS.iter().any(|word| key.contains(word))
        && !key.ends_with("_sha256")
        && key != "metrics_token"
        && key != "sockets_per_token"
}

/// Redacts secrets and telephone numbers everywhere. `is_secret`: the value belongs to a secret's name; references to the
/// secret's source stay.
fn redact(value: &mut Value, secrets: &[String], is_secret: bool) {
    match value {
        Value::String(text) if is_secret => REDACTED.clone_into(text),
        Value::String(text) => *text = redacted(text, secrets),
        Value::Array(list) => list.iter_mut().for_each(|one| redact(one, secrets, is_secret)),
        Value::Object(fields) => {
            let source = |key: &str| is_secret && (key == "env" || key == "file");
            *fields = std::mem::take(fields)
                .into_iter()
                .map(|(key, mut value)| {
                    let is_secret = !source(&key) && (is_secret || names_a_secret(&key)) && !value.is_object();
                    let below = names_a_secret(&key) && value.is_object();
                    redact(&mut value, secrets, is_secret || below);
                    (redacted(&key, secrets), value)
                })
                .collect();
        }
        _ => {}
    }
}

fn redacted(text: &str, secrets: &[String]) -> String {
    let mut shown = text.to_owned();
    for secret in secrets.iter().filter(|secret| text.contains(secret.as_str())) {
        shown = shown.replace(secret.as_str(), REDACTED);
    }
    let shown = crate::config::diagnostics::without_password(&mask_numbers_in(&shown));
    // Timestamps in metrics look like telephone numbers.
    if shown.contains("_timestamp_seconds") {
        shown
    } else if is_number(&shown) {
        mask_number(&shown)
    } else {
        masked_runs(&shown)
    }
}

/// Masks standalone runs of digits that are as long as telephone numbers with their country code.
fn masked_runs(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, from) = rest.split_at(at);
        let (run, after) = from.split_at(from.find(|c: char| !c.is_ascii_digit()).unwrap_or(from.len()));
        let is_part = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '•'));
        let is_alone = !is_part(before.chars().last().or(shown.chars().last())) && !is_part(after.chars().next());
        shown.push_str(before);
        shown.push_str(&if is_alone && RUN_DIGITS.contains(&run.len()) { mask_number(run) } else { run.to_owned() });
        rest = after;
    }
    shown + rest
}

/// Whether a text is only a telephone number, with or without a plus.
fn is_number(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_digit() || matches!(c, '+' | '-' | '(' | ')' | ' ' | '.'))
        && text.bytes().filter(u8::is_ascii_digit).count() >= NUMBER_DIGITS_MIN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_numbers_go_wherever_they_stand() {
        let config: toml::Table = toml::from_str(
            "[accounts.eleven]\napi_key = \"sk_planted_1\"\nwebhook_secrets = [\"wsec_planted_2\", { file = \"/nowhere\" }]\n\
             [accounts.eleven.shared_keys]\none = \"shared_planted_3\"\n[store]\nurl = { env = \"NO_SUCH_VARIABLE\" }\n\
             [gate]\nredis_url = \"redis://u:planted_4@host\"\n[inbound.agents]\n\"+15550001111\" = \"agent_1\"\n\
             [businesses.acme]\nphone_numbers = [\"15550002222\", \"+1 (555) 000-3333\"]\nmax_calls = 3\n",
        )
        .unwrap();
        let secrets = secrets_of(&config, Path::new(""));
        let mut bundle = json!({
            "config": serde_json::to_value(&config).unwrap(),
            "sidecar": {"/status": {"body": {"store": {"error": "cannot reach postgres://me:hunter2@db with sk_planted_1"}}},
                        "/api/calls": {"body": {"calls": [{"otherNumber": "+15550004444", "startedAt": "2026-01-01T00:00:00Z"}]}},
                        "/api/businesses": {"body": {"from": "businesses.15550006666.max_calls", "agent": "agent_1234567890"}},
                        "/metrics": {"body": "x{business=\"+15550005555\"} 1 wsec_planted_2"}},
        });
        redact(&mut bundle, &secrets, false);
        let shown = bundle.to_string();
        for planted in ["planted", "hunter2", "0001111", "0002222", "000-3333", "0004444", "0005555", "0006666"] {
            assert!(!shown.contains(planted), "{planted} is in {shown}");
        }
        for kept in [
            "agent_1",
            "/nowhere",
            "NO_SUCH_VARIABLE",
            "2026-01-01T00:00:00Z",
            "max_calls",
            "redis://",
            "agent_1234567890",
        ] {
            assert!(shown.contains(kept), "{kept} is not in {shown}");
        }
    }
}
