//! `ringfence doctor --fix` and `--undo`: safe changes at providers are shown, confirmed, written to an undo file, and only then
//! applied.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use http::Uri;
use serde::{Deserialize, Serialize};

use super::ask::agreed;
use super::check_live::Provider;
use super::outcome::Outcome;
use crate::config::Config;
use crate::provider::account::Account;
use crate::provider::change::ItemChange;
use crate::provider::check::Hooks;

#[derive(Debug, Args)]
pub(super) struct Mend {
    /// Apply safe changes at providers: shows them, asks, and writes a file for --undo
    #[arg(long, conflicts_with = "undo")]
    fix: bool,
    /// Revert the changes of --fix, by its file
    #[arg(long, value_name = "FILE")]
    undo: Option<PathBuf>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// The VoiceFallbackUrl for numbers that use ringfence and have none, or one at ringfence's own host: a TwiML that answers without ringfence
    #[arg(long, value_name = "URL", requires = "fix", value_parser = url)]
    fallback_url: Option<String>,
    /// The file for the previous values; default: ringfence-undo-TIME.json
    #[arg(long, value_name = "FILE", requires = "fix")]
    undo_file: Option<PathBuf>,
}

fn url(text: &str) -> Result<String, String> {
    let uri: Uri = text.parse().map_err(|_| "it is not a URL".to_owned())?;
    let is_web = matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some();
    if is_web { Ok(text.to_owned()) } else { Err("it must start with http:// or https:// and a host".to_owned()) }
}

/// The changes of one item at a provider, as in an undo file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    account: String,
    /// The kind of item.
    what: String,
    id: String,
    name: String,
    settings: Vec<Set>,
}

/// A parameter with its old and new value.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Set {
    param: String,
    from: String,
    to: String,
}

impl Step {
    fn of(account: &Account, hooks: &Hooks, change: ItemChange) -> Self {
        let settings = change.settings.into_iter();
        let settings = settings.map(|one| Set { param: one.param, from: one.from, to: one.to }).collect();
        Self { account: account.name.to_string(), what: hooks.what.clone(), id: change.id, name: change.name, settings }
    }

    /// The reverse changes of values that are still as set.
    fn back(mut self, now: &BTreeMap<String, String>) -> Self {
        self.settings.retain(|one| {
            let is_ours = now.get(&one.param) == Some(&one.to);
            if !is_ours {
                println!("{} {}: {} changed since; kept", self.what, self.name, one.param);
            }
            is_ours
        });
        for one in &mut self.settings {
            std::mem::swap(&mut one.from, &mut one.to);
        }
        self
    }

    fn show(&self) {
        println!("{} {} of account {}", self.what, self.name, self.account);
        for one in &self.settings {
            println!("  - {:<18} {}", one.param, shown(&one.from));
            println!("  + {:<18} {}", one.param, shown(&one.to));
        }
    }
}

/// A URL as a terminal may show it: credentials and query may be secrets.
fn shown(url: &str) -> String {
    let text: String = url.chars().filter(|c| !c.is_control()).take(200).collect();
    let (scheme, rest) = text.split_once("://").map_or(("", text.as_str()), |(scheme, rest)| (scheme, rest));
    let address = rest.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) = address.split_at(address.find('/').unwrap_or(address.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    match (text.is_empty(), scheme) {
        (true, _) => "(none)".to_owned(),
        (false, "") => format!("{host}{path}"),
        (false, scheme) => format!("{scheme}://{host}{path}"),
    }
}

impl Mend {
    /// Whether there are changes.
    pub(super) fn is_wanted(&self) -> bool {
        self.fix || self.undo.is_some()
    }

    pub(super) async fn run(&self, config: &Config) -> Outcome {
        let provider = Provider::new(config)?;
        let steps = match &self.undo {
            Some(file) => self.steps_back(&provider, config, file).await?,
            None => self.steps(&provider, config).await?,
        };
        if steps.is_empty() {
            println!("There is nothing to set.");
            return Ok(ExitCode::SUCCESS);
        }
        steps.iter().for_each(Step::show);
        if !self.yes && !agreed(&mut std::io::stdout(), "Set this?")? {
            println!("Nothing was set.");
            return Ok(ExitCode::FAILURE);
        }
        if self.undo.is_none() {
            let file = self.undo_file.clone().unwrap_or_else(|| {
                let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
                PathBuf::from(format!("ringfence-undo-{now}.json"))
            });
            keep(&file, &steps)?;
            println!("What was there is in {}: ringfence doctor --undo {}", file.display(), file.display());
        }
        let mut failed = 0;
        for step in &steps {
            match self.set(&provider, config, step).await {
                Ok(()) => println!("set: {} {}", step.what, step.name),
                Err(error) => {
                    failed += 1;
                    eprintln!("failed to set {} {}: {error:#}", step.what, step.name);
                }
            }
        }
        Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    async fn steps(&self, provider: &Provider<'_>, config: &Config) -> anyhow::Result<Vec<Step>> {
        let mut steps = vec![];
        for (account, hooks) in changeable(config) {
            let here = provider.here(account).ok_or_else(|| anyhow::anyhow!("set public_url first"))?;
            if self.fallback_url.as_deref().is_some_and(|url| here.is_own(url)) {
                anyhow::bail!(
                    "--fallback-url is at ringfence's own host, which is down when the fallback is needed: use another host"
                );
            }
            let items = provider.items(account, hooks).await.map_err(|why| unlisted(account, hooks, &why))?;
            let changes = hooks.changes(&items, here, self.fallback_url.as_deref());
            steps.extend(changes.into_iter().map(|change| Step::of(account, hooks, change)));
        }
        Ok(steps)
    }

    async fn steps_back(&self, provider: &Provider<'_>, config: &Config, file: &Path) -> anyhow::Result<Vec<Step>> {
        let read =
            std::fs::read(file).map_err(|error| anyhow::anyhow!("failed to read {}: {error}", file.display()))?;
        let steps: Vec<Step> = serde_json::from_slice(&read)
            .map_err(|error| anyhow::anyhow!("{} is not a file of doctor --fix: {error}", file.display()))?;
        let mut back = vec![];
        for step in steps {
            let (account, hooks) = found(config, &step)?;
            let items = provider.items(account, hooks).await.map_err(|why| unlisted(account, hooks, &why))?;
            let Some(now) = hooks.values_of(&items, &step.id) else {
                println!("{} {} is not there any more", step.what, step.name);
                continue;
            };
            let step = step.back(&now);
            back.extend((!step.settings.is_empty()).then_some(step));
        }
        Ok(back)
    }

    async fn set(&self, provider: &Provider<'_>, config: &Config, step: &Step) -> anyhow::Result<()> {
        let (account, hooks) = found(config, step)?;
        let known = hooks.params();
        if let Some(other) = step.settings.iter().find(|one| !known.contains(&one.param.as_str())) {
            anyhow::bail!("{} is not set by this command", other.param);
        }
        let pairs = step.settings.iter().map(|one| (one.param.as_str(), one.to.as_str()));
        provider.change(account, hooks, &step.id, pairs).await.map_err(|why| anyhow::anyhow!(why))
    }
}

/// Accounts with the items that can be changed.
fn changeable(config: &Config) -> impl Iterator<Item = (&Account, &Hooks)> {
    config.accounts.values().filter(|account| account.can_ask()).flat_map(|account| {
        let hooks = account.provider.check.iter().flat_map(|check| &check.hooks);
        hooks.filter(|hooks| hooks.change.is_some()).map(move |hooks| (&**account, hooks))
    })
}

fn found<'c>(config: &'c Config, step: &Step) -> anyhow::Result<(&'c Account, &'c Hooks)> {
    let is_it =
        |(account, hooks): &(&Account, &Hooks)| account.name.as_str() == step.account && hooks.what == step.what;
    changeable(config)
        .find(is_it)
        .ok_or_else(|| anyhow::anyhow!("the config has no account {} of that kind", step.account))
}

fn unlisted(account: &Account, hooks: &Hooks, why: &str) -> anyhow::Error {
    anyhow::anyhow!("account {}: its {}s cannot be looked at: {why}", account.name, hooks.what)
}

/// Creates a file that only its user can read.
fn keep(file: &Path, steps: &[Step]) -> anyhow::Result<()> {
    let write = || {
        let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
        out.write_all(&serde_json::to_vec_pretty(steps)?)?;
        out.sync_all()
    };
    write().map_err(|error: std::io::Error| {
        anyhow::anyhow!("failed to write {}, so nothing was set: {error}; --undo-file names another", file.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_what_may_be_secret() {
        for (url, wanted) in [
            ("", "(none)"),
            ("https://user:planted@h.example.com/voice?token=planted", "https://h.example.com/voice"),
            ("h.example.com/voice#planted", "h.example.com/voice"),
            ("https://h.example.com/voice?email=a@b.example&token=planted", "https://h.example.com/voice"),
            ("https://h.example.com/@acme/voice", "https://h.example.com/@acme/voice"),
            ("https://user:plan@ted@h.example.com/", "https://h.example.com/"),
        ] {
            assert_eq!(shown(url), wanted);
        }
    }
}
