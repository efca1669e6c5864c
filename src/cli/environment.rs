//! What a config can be made of when nobody wrote one: the accounts whose keys are in the environment.

use std::fmt::Write as _;

/// A provider's variables: those that an account of it needs, and those that it takes if they are there.
struct Known {
    provider: &'static str,
    needs: &'static [(&'static str, &'static str)],
    takes: &'static [(&'static str, &'static str)],
}

/// The names that the providers' own SDKs and documentation use, with the key that each becomes.
const KNOWN: &[Known] = &[
    Known {
        provider: "elevenlabs",
        needs: &[("api_key", "ELEVENLABS_API_KEY")],
        takes: &[("webhook_secrets", "ELEVENLABS_WEBHOOK_SECRET")],
    },
    Known {
        provider: "twilio",
        needs: &[("account_sid", "TWILIO_ACCOUNT_SID"), ("auth_token", "TWILIO_AUTH_TOKEN")],
        takes: &[],
    },
];

/// Beside the Free plan's 4, which an account is given that nobody stated a number for.
const BOUGHT: &str = "bought: Free 4, Starter 6, Creator 10, Pro 20, Scale and Business 30";

/// Accounts, as TOML that names variables and never holds their values.
pub(super) struct Accounts {
    /// `[accounts.…]` tables.
    pub toml: String,
    /// A line for each provider: what it was made of, or what it lacks.
    pub lines: Vec<String>,
    /// Providers that have an account.
    pub providers: Vec<&'static str>,
    /// The account that was written although its key is not set.
    pub unset: Option<&'static str>,
}

/// The accounts whose keys are set. With `bought`, each says what its plan allows, for a person to correct.
pub(super) fn accounts(bought: bool) -> Accounts {
    let mut made = Accounts { toml: String::new(), lines: vec![], providers: vec![], unset: None };
    for known in KNOWN {
        let missing: Vec<&str> = known.needs.iter().map(|(_, name)| *name).filter(|name| !is_set(name)).collect();
        if missing.is_empty() {
            made.add(known, bought);
        } else if missing.len() < known.needs.len() || known.takes.iter().any(|(_, name)| is_set(name)) {
            made.lines.push(format!("account {:<11} left out: {} is not set", known.provider, missing.join(", ")));
        }
    }
    made
}

/// What platforms set, and what it becomes: where the public is, and the stores.
const PLATFORM: [(&str, &str); 3] = [
    ("PORT", "[listen]\npublic = \"0.0.0.0:$PORT\""),
    ("DATABASE_URL", "[store]\nurl = { env = \"DATABASE_URL\" }"),
    ("REDIS_URL", "redis_url = { env = \"REDIS_URL\" }"),
];

impl Accounts {
    /// Adds what a platform's variables say: they start a new process before they stop the old one, so a database decides, or
    /// the Redis beside it. `says_where`: somebody has said where the public is.
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
            self.lines.push("store   DATABASE_URL left out: it is no URL of Postgres".to_owned());
        } else if is_set(redis.0) {
            self.lines
                .push("gate    REDIS_URL left out: replicas share a Postgres, and there is no DATABASE_URL".to_owned());
        }
    }

    fn say(&mut self, toml: &str, what: &str, from: &str) {
        let _ = writeln!(self.toml, "\n{toml}");
        self.lines.push(format!("{what:<7} {from}"));
    }

    /// With no key set at all, a file still has to show where one goes.
    pub(super) fn or_elevenlabs(mut self) -> Self {
        if let (true, Some(first)) = (self.providers.is_empty(), KNOWN.first()) {
            self.add(first, true);
            self.unset = first.needs.first().map(|(_, name)| *name);
        }
        self
    }

    fn add(&mut self, known: &Known, bought: bool) {
        let set = known.needs.iter().chain(known.takes.iter().filter(|(_, name)| is_set(name)));
        let set: Vec<&(&str, &str)> = set.collect();
        let _ = writeln!(self.toml, "\n[accounts.{}]", known.provider);
        let width = set.iter().map(|(key, _)| key.len()).max().unwrap_or_default().max("concurrent".len());
        for (key, name) in &set {
            let one = format!("{{ env = \"{name}\" }}");
            let value = if key.ends_with('s') { format!("[{one}]") } else { one };
            let _ = writeln!(self.toml, "{key:<width$} = {value}");
        }
        if bought && known.provider == "elevenlabs" {
            let _ = writeln!(self.toml, "{:<width$} = 4   # {BOUGHT}", "concurrent");
        }
        let names: Vec<&str> = set.iter().map(|(_, name)| *name).collect();
        self.lines.push(format!("account {:<11} {}", known.provider, names.join(", ")));
        self.providers.push(known.provider);
    }
}

/// The variables that would make an account, for a message.
pub(super) fn variables() -> String {
    let all: Vec<String> =
        KNOWN.iter().map(|known| known.needs.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(" and ")).collect();
    all.join(", or ")
}

pub(super) fn is_set(name: &str) -> bool {
    std::env::var(name).is_ok_and(|value| !value.trim().is_empty())
}
