//! Accounts and settings from environment variables, for starts without a config file.

use std::fmt::Write as _;

/// A provider's variables: the required ones, and the optional ones.
struct EnvProvider {
    provider: &'static str,
    needs: &'static [(&'static str, &'static str)],
    takes: &'static [(&'static str, &'static str)],
}

/// The names in the providers' own SDKs and documentation, with the key that each sets.
const KNOWN: &[EnvProvider] = &[
    EnvProvider {
        provider: "elevenlabs",
        needs: &[("api_key", "ELEVENLABS_API_KEY")],
        takes: &[("webhook_secrets", "ELEVENLABS_WEBHOOK_SECRET")],
    },
    EnvProvider {
        provider: "twilio",
        needs: &[("account_sid", "TWILIO_ACCOUNT_SID"), ("auth_token", "TWILIO_AUTH_TOKEN")],
        takes: &[],
    },
];

/// The comment at `concurrent` of an account, which has the Free plan's 4 by default.
const BOUGHT: &str = "bought: Free 4, Starter 6, Creator 10, Pro 20, Scale and Business 30";

/// Accounts as TOML, which refers to variables and never contains their values.
pub(super) struct Accounts {
    /// The `[accounts.…]` tables.
    pub toml: String,
    /// A line per provider: its variables, or the missing ones.
    pub lines: Vec<String>,
    /// The providers with an account.
    pub providers: Vec<&'static str>,
    /// The account that was written although its key is not set.
    pub unset: Option<&'static str>,
}

/// Whether accounts state a concurrency, to be corrected by a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PlanConcurrency {
    Stated,
    Left,
}

/// The accounts whose keys are set.
pub(super) fn accounts(concurrency: PlanConcurrency) -> Accounts {
    let mut made = Accounts { toml: String::new(), lines: vec![], providers: vec![], unset: None };
    for known in KNOWN {
        let missing: Vec<&str> = known.needs.iter().map(|(_, name)| *name).filter(|name| !is_set(name)).collect();
        if missing.is_empty() {
            made.add(known, concurrency);
        } else if missing.len() < known.needs.len() || known.takes.iter().any(|(_, name)| is_set(name)) {
            made.lines.push(format!("account {:<11} left out: {} is not set", known.provider, missing.join(", ")));
        }
    }
    made
}

/// The variables of hosting platforms, and the keys that they set.
const PLATFORM: [(&str, &str); 3] = [
    ("PORT", "[listen]\npublic = \"0.0.0.0:$PORT\""),
    ("DATABASE_URL", "[store]\nurl = { env = \"DATABASE_URL\" }"),
    ("REDIS_URL", "redis_url = { env = \"REDIS_URL\" }"),
];

impl Accounts {
    /// Adds the settings of a hosting platform. Platforms start a new process before they stop the old one, so a database or
    /// a Redis decides. `says_where`: the public address was given otherwise.
    pub(super) fn on_platform(&mut self, says_where: bool) {
        let [port, database, redis] = PLATFORM;
        if is_set(port.0) && !says_where {
            self.say(port.1, "listen", "PORT: webhooks and the paths of listen.client on one port, for all addresses");
        }
        let is_postgres = std::env::var(database.0).is_ok_and(|url| url.starts_with("postgres"));
        if is_postgres {
            self.say(database.1, "store", "DATABASE_URL");
            let gate = if is_set(redis.0) {
                format!("[gate]\nbackend = \"redis\"\n{}", redis.1)
            } else {
                "[gate]\nbackend = \"database\"".to_owned()
            };
            self.say(
                &gate,
                "gate",
                if is_set(redis.0) { "REDIS_URL" } else { "the database, as several processes may share it" },
            );
        } else if is_set(database.0) {
            self.lines.push("store   DATABASE_URL ignored: it is not a URL of Postgres".to_owned());
        } else if is_set(redis.0) {
            self.lines
                .push("gate    REDIS_URL ignored: replicas share a Postgres, and there is no DATABASE_URL".to_owned());
        }
    }

    fn say(&mut self, toml: &str, what: &str, from: &str) {
        let _ = writeln!(self.toml, "\n{toml}");
        self.lines.push(format!("{what:<7} {from}"));
    }

    /// Adds an account without a key, if there is none, to show where the key goes.
    pub(super) fn or_elevenlabs(mut self) -> Self {
        if let (true, Some(first)) = (self.providers.is_empty(), KNOWN.first()) {
            self.add(first, PlanConcurrency::Stated);
            self.unset = first.needs.first().map(|(_, name)| *name);
        }
        self
    }

    fn add(&mut self, known: &EnvProvider, concurrency: PlanConcurrency) {
        let set = known.needs.iter().chain(known.takes.iter().filter(|(_, name)| is_set(name)));
        let set: Vec<&(&str, &str)> = set.collect();
        let _ = writeln!(self.toml, "\n[accounts.{}]", known.provider);
        let width = set.iter().map(|(key, _)| key.len()).max().unwrap_or_default().max("concurrent".len());
        for (key, name) in &set {
            let one = format!("{{ env = \"{name}\" }}");
            let value = if key.ends_with('s') { format!("[{one}]") } else { one };
            let _ = writeln!(self.toml, "{key:<width$} = {value}");
        }
        if concurrency == PlanConcurrency::Stated && known.provider == "elevenlabs" {
            let _ = writeln!(self.toml, "{:<width$} = 4   # {BOUGHT}", "concurrent");
        }
        let names: Vec<&str> = set.iter().map(|(_, name)| *name).collect();
        self.lines.push(format!("account {:<11} {}", known.provider, names.join(", ")));
        self.providers.push(known.provider);
    }
}

/// The variables that make an account, for a message.
pub(super) fn variables() -> String {
    let all: Vec<String> =
        KNOWN.iter().map(|known| known.needs.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(" and ")).collect();
    all.join(", or ")
}

pub(super) fn is_set(name: &str) -> bool {
    std::env::var(name).is_ok_and(|value| !value.trim().is_empty())
}
