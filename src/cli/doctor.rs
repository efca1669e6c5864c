//! `ringfence doctor`: checks a config live: keys, webhooks, numbers, agents, Redis, Postgres, clock, disk, and the running sidecar.
//! Reads only, but for `--fix` (`mend`). `ringfence check --live` is its short form.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{Method, Request, Uri};
use nix::sys::statvfs::statvfs;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::admin_client::AdminClient;
use super::alarms::{Level, alarms};
use super::check_live::{self, Depth};
use super::mend::Mend;
use super::outcome::{Failure, Outcome};
use super::text::{WIDTH, field, list, wrap};
use super::{built, file, modes};
use crate::config::Config;
use crate::config::codes::CODES;
use crate::config::diagnostics::{Diagnostic, Severity};
use crate::net::{Upstream, UpstreamSettings, install_crypto_provider, served_certificate_expiry};
use crate::provider::account::Account;
use crate::reply::is_health;

/// The tolerated clock skew, in seconds.
const CLOCK_SECS: i64 = 5;
/// A disk with less free bytes, or a smaller free part, is nearly full.
const ROOM_BYTES_MIN: u64 = 1 << 30;
const ROOM_PERCENT_MIN: u64 = 5;
/// The maximum answer of `public_url`, in bytes, and its timeout.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(super) struct Doctor {
    #[command(flatten)]
    admin: AdminClient,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    mend: Mend,
}

/// A problem, why it matters, and how to fix it.
struct Finding {
    level: Severity,
    code: &'static str,
    what: String,
    why: String,
    fix: String,
}

impl Finding {
    fn warning(code: &'static str, what: String, fix: &str) -> Self {
        Self { level: Severity::Warning, code, what, why: why_of(code).to_owned(), fix: fix.to_owned() }
    }

    fn of(one: &Diagnostic, why: Option<&String>) -> Self {
        let why = why.map_or_else(|| why_of(one.code).to_owned(), String::clone);
        let fix = one.help.clone().unwrap_or_default();
        Self { level: one.severity, code: one.code, what: one.title.clone(), why, fix }
    }
}

/// The reason why the problem behind a code matters.
fn why_of(code: &str) -> &'static str {
    match code {
        "E050" | "W010" => "creates fail, and calls cannot be looked up or ended",
        "E051" => {
            "ringfence can neither look calls up nor end them, and slots of lost calls stay held until their deadline"
        }
        "E052" => "the provider places no calls for it",
        "E053" => "no call is admitted without its record",
        "E054" => "the sidecar does not start",
        "E055" => {
            "a gate that loses leases lets more calls through than were bought; one that is away hands over to the database"
        }
        "W011" => "ends of calls are found by asking alone, seconds later, and records come late",
        "W012" => "calls of that number are not refused before they are answered, or end unheard",
        "W013" => "nobody can say whether they lead here",
        "W014" => "a crash of its machine forgets calls that were admitted",
        "W016" => "keys, numbers and transcripts are in there",
        "W023" | "E045" => "providers and clients refuse to connect with a certificate that has expired",
        "W030" => "a full disk takes no records: no call is admitted",
        "W031" => {
            "signatures with a time stamp are refused as too old, and ages, rates and quiet hours are off by as much"
        }
        "W033" => "webhooks do not arrive",
        "W001" | "W017" => "whoever may read the file, or a copy of it, may use the secret",
        "W002" => "a slot stays held for some seconds after its call is over",
        "W003" => "a call over a limit, or one that nobody wants any more, goes on until somebody hangs up",
        "W034" => "it says so itself",
        code => CODES.iter().find(|(one, _)| *one == code).map_or("", |(_, means)| means),
    }
}

impl Doctor {
    pub(super) async fn run(self) -> Outcome {
        let mut read = file::read(self.admin.config(), &[])?;
        let wide = read.loaded.config.as_ref().map(modes::check_modes).unwrap_or_default();
        read.loaded.diagnostics.extend(wide);
        let Some(config) = read.loaded.config.as_ref().filter(|_| !read.loaded.has_errors()) else {
            read.print("would be rejected, so there were no live checks");
            return Err(Failure::Config);
        };
        if self.mend.is_wanted() {
            return self.mend.run(config).await;
        }
        let mut findings: Vec<Finding> = read
            .loaded
            .diagnostics
            .iter()
            .chain(&built::check_build(config))
            .map(|one| Finding::of(one, None))
            .collect();
        let found = check_live::ask(config, Depth::Doctor).await?;
        let mut good = found.lines;
        findings.extend(found.diagnostics.iter().map(|one| Finding::of(one, found.whys.get(&one.title))));
        clocks(&found.ahead_secs, &mut findings, &mut good);
        disks(config, &mut findings, &mut good);
        self.public(config, &mut findings, &mut good).await;
        self.running(config, &mut findings, &mut good).await;
        findings.sort_by_key(|one| one.level != Severity::Error);
        let errors = findings.iter().filter(|one| one.level == Severity::Error).count();
        let consoles: Vec<(&Account, Vec<String>)> =
            config.accounts.values().map(|one| (&**one, steps(config, one))).collect();
        if self.json {
            println!("{}", as_json(&findings, &good, &consoles));
        } else {
            print!("{}", render(&findings, &good, &consoles));
        }
        if errors > 0 { Err(Failure::Config) } else { Ok(ExitCode::SUCCESS) }
    }

    /// Checks whether `public_url` leads to a ringfence.
    async fn public(&self, config: &Config, findings: &mut Vec<Finding>, good: &mut Vec<String>) {
        let Some(base) = &config.webhooks.public_url else {
            good.push("no public_url: the ends of calls are found by asking".to_owned());
            return;
        };
        let url = format!("{}/health", base.to_string().trim_end_matches('/'));
        match reach(config, &url).await {
            Ok(()) => {
                good.push(format!("{url} leads to a ringfence"));
                certificate(config, base, findings, good).await;
            }
            Err(why) => {
                let fix = "if providers reach it and only this machine does not, there is nothing to mend; else look at DNS, the proxy in front and listen.webhooks";
                findings.push(Finding::warning("W033", format!("{url}: {why}"), fix));
            }
        }
    }

    /// Checks the running sidecar of this config.
    async fn running(&self, config: &Config, findings: &mut Vec<Finding>, good: &mut Vec<String>) {
        let status = match self.admin.ask(Method::GET, "/status", None).await {
            Ok(status) => status,
            Err(error) => {
                let why = error.to_string().lines().next().unwrap_or_default().to_owned();
                good.push(format!(
                    "no running sidecar was asked ({why}), so calls placed outside ringfence were not looked for"
                ));
                return;
            }
        };
        for alarm in alarms(&status) {
            let mut finding = Finding::warning("W034", alarm.what, alarm.fix);
            if alarm.level == Level::Bad {
                finding.why = "calls are refused, or may be lost, now".to_owned();
            }
            findings.push(finding);
        }
        for account in list(&status, "accounts") {
            let name = field(account, "name");
            match account["foreign"].as_u64() {
                Some(0) | None => {
                    good.push(format!("account {name}: no calls are up that were placed outside ringfence"))
                }
                Some(n) => {
                    let fix = "place them through ringfence too, or leave room for them in `concurrent`";
                    let mut finding = Finding::warning(
                        "W034",
                        format!("account {name}: {n} calls are up that were not placed through ringfence"),
                        fix,
                    );
                    finding.why = "they use what was bought, and nobody refuses them".to_owned();
                    findings.push(finding);
                }
            }
        }
        if status["version"] != env!("CARGO_PKG_VERSION") {
            good.push(format!("the running sidecar is ringfence {}", field(&status, "version")));
        }
        let (runs, file) = (field(&status, "mode"), config.policy.mode.as_str());
        if runs != file {
            let fix = "ringfence reload";
            let what = format!("the running sidecar is in mode {runs}, the config says {file}");
            findings.push(Finding::warning("W034", what, fix));
        }
    }
}

async fn reach(config: &Config, url: &str) -> Result<(), String> {
    install_crypto_provider();
    let settings = UpstreamSettings { extra_ca: config.extra_ca.clone(), ..UpstreamSettings::default() };
    let upstream = Upstream::new(settings).map_err(|error| error.to_string())?;
    let mut request = Request::new(Bytes::new());
    *request.uri_mut() = url.parse().map_err(|_| "it is no URL".to_owned())?;
    let answer = upstream.fetch(request, ANSWER_BYTES_MAX, ANSWER_WITHIN).await.map_err(|error| error.to_string())?;
    match answer.status() {
        status if !status.is_success() => Err(format!("it answers {status}")),
        _ if is_health(answer.body()) => Ok(()),
        _ => Err("it answers, but not as ringfence does".to_owned()),
    }
}

/// Checks until when the certificate of `public_url` is valid.
async fn certificate(config: &Config, base: &Uri, findings: &mut Vec<Finding>, good: &mut Vec<String>) {
    if base.scheme_str() != Some("https") {
        return;
    }
    let host = base.host().unwrap_or_default();
    let asked = timeout(ANSWER_WITHIN, served_certificate_expiry(base, config.extra_ca.as_deref()));
    match asked.await.unwrap_or_else(|_| Err("it does not answer".to_owned())) {
        Ok(until_secs) => {
            let day = built::day(until_secs);
            if built::expires_soon(until_secs) {
                let what = format!("the certificate that {host} serves expires on {day}");
                let fix = "renew it where TLS ends: at the proxy in front, or listen.tls_cert";
                findings.push(Finding::warning("W023", what, fix));
            } else {
                good.push(format!("the certificate that {host} serves is valid until {day}"));
            }
        }
        // It was reached just now, perhaps through a proxy.
        Err(why) => good.push(format!("the certificate that {host} serves could not be looked at: {why}")),
    }
}

fn clocks(ahead_secs: &std::collections::BTreeMap<String, i64>, findings: &mut Vec<Finding>, good: &mut Vec<String>) {
    for (host, ahead) in ahead_secs {
        if ahead.abs() <= CLOCK_SECS {
            good.push(format!("the clock is that of {host}, to {CLOCK_SECS} s"));
            continue;
        }
        let way = if *ahead > 0 { "behind" } else { "ahead of" };
        let what = format!("the clock of this machine is {} s {way} that of {host}", ahead.abs());
        findings.push(Finding::warning("W031", what, "run an NTP client: timedatectl set-ntp true"));
    }
}

/// The folders that ringfence writes to.
fn folders(config: &Config) -> Vec<PathBuf> {
    let mut all = vec![config.spool_dir.clone()];
    if config.store.postgres.is_none() {
        all.extend(config.store.path.parent().map(Path::to_path_buf));
    }
    // A folder that does not exist yet will be on the disk of its parent.
    let there = |path: PathBuf| {
        let whole = if path.as_os_str().is_empty() { PathBuf::from(".") } else { path };
        whole.ancestors().find(|one| one.exists()).map_or_else(|| PathBuf::from("."), Path::to_path_buf)
    };
    let mut all: Vec<PathBuf> = all.into_iter().map(there).collect();
    all.sort();
    all.dedup();
    all
}

fn disks(config: &Config, findings: &mut Vec<Finding>, good: &mut Vec<String>) {
    for folder in folders(config) {
        let shown = if folder.as_os_str().is_empty() { ".".to_owned() } else { folder.display().to_string() };
        match statvfs(&folder) {
            Ok(found) => {
                let size = found.fragment_size();
                let (room, whole) = (found.blocks_available() * size, found.blocks() * size);
                let percent = room.saturating_mul(100).checked_div(whole).unwrap_or(0);
                let room_shown = format!("{} MiB free ({percent} %)", room >> 20);
                if is_nearly_full(room, percent) {
                    let what = format!("the disk of {shown} has {room_shown}");
                    let fix = "make room, or lower store.retention_days";
                    findings.push(Finding::warning("W030", what, fix));
                } else {
                    good.push(format!("disk of {shown}: {room_shown}"));
                }
            }
            Err(error) => {
                let what = format!("the disk of {shown} cannot be looked at: {error}");
                findings.push(Finding::warning("W030", what, "look at the folder and its rights"));
            }
        }
    }
}

fn is_nearly_full(room_bytes: u64, percent: u64) -> bool {
    room_bytes < ROOM_BYTES_MIN && percent < 2 * ROOM_PERCENT_MIN || percent < ROOM_PERCENT_MIN
}

/// The steps for a person in a provider's console.
fn steps(config: &Config, account: &Account) -> Vec<String> {
    let Some(check) = &account.provider.check else { return vec![] };
    let base = config.webhooks.public_url.as_ref().map(|url| url.to_string().trim_end_matches('/').to_owned());
    let base = base.unwrap_or_else(|| "https://YOUR-PUBLIC-URL".to_owned());
    let steps = check.console.iter().map(|step| step.replace("{public_url}", &base));
    steps.chain(check.untold.iter().map(|what| format!("it does not tell {what}"))).collect()
}

fn as_json(findings: &[Finding], good: &[String], consoles: &[(&Account, Vec<String>)]) -> Value {
    let shown = |one: &Finding| {
        let level = if one.level == Severity::Error { "error" } else { "warning" };
        json!({"level": level, "code": one.code, "what": one.what, "why": one.why, "fix": one.fix})
    };
    let consoles: Vec<Value> = consoles
        .iter()
        .map(|(account, steps)| json!({"account": account.name, "provider": account.provider.name, "steps": steps}))
        .collect();
    let is_sound = findings.iter().all(|one| one.level != Severity::Error);
    json!({
        "ok": is_sound, "findings": findings.iter().map(shown).collect::<Vec<_>>(), "good": good, "console": consoles,
    })
}

fn render(findings: &[Finding], good: &[String], consoles: &[(&Account, Vec<String>)]) -> String {
    let mut out = String::new();
    let mut say = |head: &str, text: &str| {
        out.push_str(&wrap(head, text, WIDTH));
        out.push('\n');
    };
    for one in good {
        say("ok       ", one);
    }
    for one in findings {
        say("", "");
        let head = if one.level == Severity::Error { "ERROR    " } else { "warning  " };
        say(head, &format!("{} [{}]", one.what, one.code));
        if !one.why.is_empty() {
            say("  why    ", &one.why);
        }
        if !one.fix.is_empty() {
            say("  fix    ", &one.fix);
        }
    }
    for (account, steps) in consoles.iter().filter(|(_, steps)| !steps.is_empty()) {
        say("", "");
        say("", &format!("At the console of {}, for account {}:", account.provider.name, account.name));
        for step in steps {
            say("  [ ]    ", step);
        }
    }
    let errors = findings.iter().filter(|one| one.level == Severity::Error).count();
    say("", "");
    say("", &format!("{errors} errors, {} warnings.", findings.len() - errors));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_says_what_why_and_how() {
        let finding = Finding::warning("W031", "the clock is 90 s ahead".to_owned(), "run an NTP client");
        let text = render(&[finding], &["the store is up to date".to_owned()], &[]);
        for part in [
            "ok       the store",
            "warning  the clock is 90 s ahead [W031]",
            "  why    signatures",
            "  fix    run",
            "0 errors, 1 warnings.",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
    }

    #[test]
    fn every_code_that_is_found_live_has_its_reason() {
        for (code, _) in CODES {
            assert!(!why_of(code).is_empty(), "{code}");
        }
    }

    #[test]
    fn clocks_and_disks_have_room() {
        let (mut findings, mut good) = (vec![], vec![]);
        clocks(&[("a".to_owned(), 5), ("b".to_owned(), -90)].into(), &mut findings, &mut good);
        assert!(good.len() == 1 && findings.len() == 1 && findings[0].what.contains("90 s ahead of that of b"));
        for (room, percent, full) in
            [(10 << 30, 50, false), (500 << 20, 50, false), (500 << 20, 7, true), (50 << 30, 4, true)]
        {
            assert_eq!(is_nearly_full(room, percent), full, "{room} {percent}");
        }
    }
}
