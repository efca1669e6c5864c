//! The request of a test call: account, operation and fields, from the options and the config. Pure.

use serde_json::{Map, Value};

use crate::config::Config;
use crate::ids::{mask_number, number_key};
use crate::policy::Business;
use crate::provider::account::Account;
use crate::provider::description::{Dial, Operation};
use crate::provider::render::{Target, render};

/// The options.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wanted<'a> {
    pub to: &'a str,
    pub account: Option<&'a str>,
    pub operation: Option<&'a str>,
    pub business: Option<&'a str>,
    pub agent: Option<&'a str>,
    pub from: Option<&'a str>,
    pub fields: &'a [(String, String)],
}

/// A field of the request, and the source of its value.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Field {
    name: String,
    value: String,
    source: String,
}

/// A test call that can be placed.
#[derive(Debug)]
pub(super) struct Plan<'c> {
    pub account: &'c Account,
    pub operation: &'c Operation,
    dial: &'c Dial,
    /// Sent as `X-Business-Id`.
    pub business: Option<String>,
    to: String,
    fields: Vec<Field>,
    /// The path prefix of the account on `listen.api`.
    mount: String,
}

/// The form of numbers in a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reveal {
    /// For a person who is asked whether to place the call.
    Whole,
    Masked,
}

impl<'c> Plan<'c> {
    /// Completes the options from the config.
    ///
    /// # Errors
    /// Messages: what is missing, and the option that gives it.
    pub(super) fn new(config: &'c Config, wanted: &Wanted<'_>) -> Result<Self, String> {
        let account = account_of(config, wanted.account)?;
        let (operation, dial) = operation_of(account, wanted.operation)?;
        let is_given = |name: &str| wanted.fields.iter().any(|(one, _)| one == name);
        if is_given(&dial.to) {
            return Err(format!("{} is the number to call: name it with --to", dial.to));
        }
        let agent = dial.agent.as_deref();
        for (option, is_set, name) in
            [("--from", wanted.from.is_some(), Some(dial.from.as_str())), ("--agent", wanted.agent.is_some(), agent)]
        {
            if let Some(name) = name.filter(|name| is_set && is_given(name)) {
                return Err(format!("{option} and --field {name} name the same: give one of them"));
            }
        }
        if let Some((name, _)) = wanted.fields.iter().enumerate().find_map(|(n, (name, value))| {
            let is_repeated = !dial.form && wanted.fields[..n].iter().any(|(one, _)| one == name);
            is_repeated.then_some((name, value))
        }) {
            return Err(format!("--field {name} is given twice"));
        }
        let business = business_of(config, wanted);
        let mut fields = vec![Field { name: dial.to.clone(), value: wanted.to.to_owned(), source: "--to".to_owned() }];
        let mut add = |name: &str, value: &str, source: String| {
            fields.push(Field { name: name.to_owned(), value: value.to_owned(), source });
        };
        let mut missing = Missing::default();
        if let Some(number) = wanted.from {
            add(&dial.from, number, "--from".to_owned());
        } else if !is_given(&dial.from) {
            let fits = |number: &&String| number.starts_with('+') != dial.from_id;
            let own = business.and_then(|one| Some((one, one.phone_numbers.iter().find(fits)?)));
            match own {
                Some((one, number)) => add(&dial.from, number, format!("businesses.{}.phone_numbers", one.id)),
                None => missing.from = Some(dial),
            }
        }
        let stands_in = dial.instead.iter().any(|name| is_given(name));
        if let Some(name) = &dial.agent
            && !is_given(name)
            && !(stands_in && wanted.agent.is_none())
        {
            // An agent of the config may be another provider's: it is used only without an option.
            let own = business.filter(|_| dial.test.is_empty());
            let own = own.and_then(|one| Some((one, one.agent_ids.first()?)));
            match (wanted.agent, own) {
                (Some(agent), _) => add(name, agent, "--agent".to_owned()),
                (None, Some((one, agent))) => add(name, agent, format!("businesses.{}.agent_ids", one.id)),
                (None, None) if dial.test.is_empty() => missing.agent = Some(dial),
                (None, None) => dial.test.iter().for_each(|(name, text)| add(name, text, "a test's own".to_owned())),
            }
        }
        wanted.fields.iter().for_each(|(name, value)| add(name, value, "--field".to_owned()));
        if !missing.is_empty() {
            return Err(missing.sentence(account, operation, wanted));
        }
        let to = number_key(wanted.to).into_owned();
        let business = wanted.business.map(str::to_owned);
        Ok(Self { account, operation, dial, business, to, fields, mount: mount(config, account) })
    }

    /// The called number, masked.
    pub(super) fn masked_to(&self) -> String {
        mask_number(&self.to)
    }

    /// A text without the number.
    pub(super) fn masked(&self, text: &str) -> String {
        let masked = crate::ids::mask_numbers_in(text);
        let digits = self.to.trim_start_matches('+');
        if digits.is_empty() { masked } else { masked.replace(digits, mask_number(&self.to).trim_start_matches('+')) }
    }

    /// The request's path on `listen.api`.
    ///
    /// # Errors
    /// A message: the account has no value for a part of it.
    pub(super) fn path(&self) -> Result<String, String> {
        let path = render(&self.dial.path, Target::Url, |name| self.account.value(name)).map_err(|e| e.to_string())?;
        Ok(format!("{}{path}", self.mount))
    }

    /// The request's body, and its media type.
    pub(super) fn body(&self) -> (String, &'static str) {
        if self.dial.form {
            let pairs = self.fields.iter().map(|field| (&field.name, &field.value));
            let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
            return (body, "application/x-www-form-urlencoded");
        }
        let typed = |field: &Field| {
            let nested = field.value.starts_with(['{', '[']).then(|| serde_json::from_str(&field.value).ok());
            (field.name.clone(), nested.flatten().unwrap_or_else(|| Value::from(field.value.as_str())))
        };
        (Value::Object(self.fields.iter().map(typed).collect::<Map<_, _>>()).to_string(), "application/json")
    }

    /// Renders the plan.
    pub(super) fn render(&self, base: &str, within_secs: u32, reveal: Reveal) -> String {
        use std::fmt::Write as _;
        let account = self.account;
        let carried = self.operation.carried.then_some(account.carrier.as_ref()).flatten();
        let carrier = carried.map(|name| format!(" and at its carrier, account {name}")).unwrap_or_default();
        let mut out = format!("This places one real call. It costs money at {}{carrier}.\n\n", account.provider.name);
        let mut say = |name: &str, value: &str| {
            let _ = writeln!(out, "  {name:<10} {value}");
        };
        say("to", &if reveal == Reveal::Whole { self.to.clone() } else { self.masked_to() });
        say("account", account.name.as_str());
        let others: Vec<&str> = dialable(account).map(|(one, _)| one.name.as_str()).collect();
        let others: Vec<&str> = others.into_iter().filter(|name| *name != self.operation.name).collect();
        let or = if others.is_empty() { String::new() } else { format!("   (not {})", others.join(", ")) };
        say("operation", &format!("{}{or}", self.operation.name));
        let whose = self.business.as_ref().map(|id| format!("{id}, named by X-Business-Id"));
        say("business", &whose.unwrap_or_else(|| "the one that the sidecar finds for this request".to_owned()));
        // The path has an id of the account in it, so its template is shown.
        say("through", &format!("POST {base}{}{}", self.mount, self.dial.path));
        for field in self.fields.iter().filter(|field| field.name != self.dial.to) {
            let value = if reveal == Reveal::Whole { field.value.clone() } else { self.masked(&field.value) };
            say("", &format!("{} = {value}   ({})", field.name, field.source));
        }
        let _ = write!(out, "\nWhoever answers ends it by hanging up. It is followed for {within_secs} s at most.");
        out
    }
}

/// The error for values that neither an option nor the config gives.
#[derive(Debug, Default)]
struct Missing<'c> {
    agent: Option<&'c Dial>,
    from: Option<&'c Dial>,
}

impl Missing<'_> {
    fn is_empty(&self) -> bool {
        self.agent.is_none() && self.from.is_none()
    }

    fn sentence(&self, account: &Account, operation: &Operation, wanted: &Wanted<'_>) -> String {
        let provider = &account.provider.name;
        let (mut lines, mut names) = (vec![], vec![]);
        let mut example = format!("ringfence smoke --live --to NUMBER --account {}", account.name);
        let mut given = |option: &str, value: Option<&str>| {
            if let Some(value) = value {
                example.push_str(&format!(" {option} {value}"));
            }
        };
        given("--operation", wanted.operation);
        given("--business", wanted.business);
        given("--agent", wanted.agent.or(self.agent.map(|_| "AGENT_ID")));
        let of_from = self.from.map(|dial| if dial.from_id { "NUMBER_ID" } else { "+15550001101" });
        given("--from", wanted.from.or(of_from));
        if let Some(name) = self.agent.and_then(|dial| dial.agent.as_deref()) {
            names.push(name);
            lines.push(format!("  --agent  {name}: the agent id at {provider}"));
        }
        if let Some(dial) = self.from {
            names.push(&dial.from);
            let what =
                if dial.from_id { format!("by its id at {provider}") } else { "with its country code".to_owned() };
            lines.push(format!("  --from   {}: your number that calls, {what}", dial.from));
        }
        format!(
            "failed to build the request: {} of {provider} needs {}, which neither an option nor a business of the config gives\n{}\nFor example: {example}",
            operation.name,
            names.join(" and "),
            lines.join("\n")
        )
    }
}

/// The operations of an account that call one number.
fn dialable(account: &Account) -> impl Iterator<Item = (&Operation, &Dial)> {
    account.provider.operations.iter().filter_map(|one| Some((&**one, one.dial.as_ref()?)))
}

fn account_of<'c>(config: &'c Config, name: Option<&str>) -> Result<&'c Account, String> {
    let all = || config.accounts.values().map(|one| &**one);
    let can = |one: &&Account| one.can_ask() && dialable(one).next().is_some();
    if let Some(name) = name {
        let known: Vec<&str> = all().map(|one| one.name.as_str()).collect();
        let found = all().find(|one| one.name.as_str() == name);
        let account = found.ok_or_else(|| format!("unknown account {name}: {}", known.join(", ")))?;
        if !account.can_ask() {
            let keys = account.provider.secrets.join(" and ");
            return Err(format!("account {name} has no key to call with: set {keys} of [accounts.{name}]"));
        }
        return Ok(account);
    }
    let able: Vec<&Account> = all().filter(can).collect();
    // An account that carries another's calls is tested with that one.
    let carries = |one: &&&Account| able.iter().any(|other| other.carrier.as_ref() == Some(&one.name));
    let first: Vec<&Account> = able.iter().filter(|one| !carries(one)).copied().collect();
    match (able.as_slice(), first.as_slice()) {
        ([one], _) | (_, [one]) => Ok(one),
        ([], _) => Err("no account of the config has a key and an operation to call with: ringfence check".to_owned()),
        (many, _) => {
            let names: Vec<&str> = many.iter().map(|one| one.name.as_str()).collect();
            Err(format!("say which account: --account {}", names.join(" or ")))
        }
    }
}

fn operation_of<'c>(account: &'c Account, name: Option<&str>) -> Result<(&'c Operation, &'c Dial), String> {
    let found = dialable(account).find(|(one, _)| name.is_none_or(|name| one.name == name));
    found.ok_or_else(|| {
        let known: Vec<&str> = dialable(account).map(|(one, _)| one.name.as_str()).collect();
        let provider = &account.provider.name;
        match (name, known.is_empty()) {
            (Some(name), false) => {
                format!("{provider} has no operation {name} that calls one number: {}", known.join(", "))
            }
            _ => format!("the description of {provider} has no operation with `dial`, so no call can be built"),
        }
    })
}

/// The business of the options: the named one, the owner of agent or number, or the only one.
fn business_of<'c>(config: &'c Config, wanted: &Wanted<'_>) -> Option<&'c Business> {
    let all = &config.policy.businesses;
    if let Some(id) = wanted.business {
        return all.iter().find(|one| one.id.as_str() == id);
    }
    let has = |list: &[String], value: Option<&str>| value.is_some_and(|value| list.iter().any(|one| one == value));
    let owner = all.iter().find(|one| has(&one.agent_ids, wanted.agent) || has(&one.phone_numbers, wanted.from));
    owner.or(match all.as_slice() {
        [one] => Some(one),
        _ => None,
    })
}

/// The mount of an account on `listen.api`: its own name, unless that is a provider's mount.
fn mount(config: &Config, account: &Account) -> String {
    let name = account.name.as_str();
    let is_mount = config.accounts.values().any(|one| one.provider.mount.strip_prefix('/') == Some(name));
    if is_mount { account.provider.mount.clone() } else { format!("/{name}") }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const ELEVENLABS: &str = "[accounts.elevenlabs]\napi_key = \"k\"\n";
    const TWILIO: &str = "[accounts.twilio]\naccount_sid = \"AC1\"\nauth_token = \"t\"\n";
    const ACME: &str =
        "[businesses.acme]\nagent_ids = [\"agent_1\"]\nphone_numbers = [\"+15550001101\", \"phnum_1\"]\n";
    const TO: &str = "+15551230001";

    fn config(parts: &[&str]) -> Config {
        let loaded = crate::config::load(&parts.concat(), Path::new("."), &|_| None);
        loaded.config.unwrap_or_else(|| panic!("{:?}", loaded.diagnostics))
    }

    #[test]
    fn the_config_says_what_the_options_leave_open() {
        let config = config(&[ELEVENLABS, TWILIO, ACME]);
        let plan = Plan::new(&config, &Wanted { to: TO, ..Wanted::default() }).unwrap();
        assert_eq!(plan.path().as_deref(), Ok("/elevenlabs/v1/convai/twilio/outbound-call"));
        let body: Value = serde_json::from_str(&plan.body().0).unwrap();
        let wanted = serde_json::json!({"to_number": TO, "agent_phone_number_id": "phnum_1", "agent_id": "agent_1"});
        assert_eq!(body, wanted, "the carrier's account is not asked by itself");

        let of_twilio = Wanted { to: TO, account: Some("twilio"), ..Wanted::default() };
        let plan = Plan::new(&config, &of_twilio).unwrap();
        assert_eq!(plan.path().as_deref(), Ok("/twilio/2010-04-01/Accounts/AC1/Calls.json"));
        let (body, _) = plan.body();
        assert!(body.starts_with("To=%2B15551230001&From=%2B15550001101&Twiml=%3CResponse%3E"), "{body}");
        let fields = [("Url".to_owned(), "https://app.example.com/twiml".to_owned())];
        let (body, _) = Plan::new(&config, &Wanted { fields: &fields, ..of_twilio }).unwrap().body();
        assert!(body.contains("&Url=https") && !body.contains("Twiml="), "{body}");
    }

    #[test]
    fn what_is_missing_is_named_with_an_example() {
        let config = config(&[ELEVENLABS, TWILIO]);
        let refused = |wanted: Wanted<'_>| Plan::new(&config, &wanted).unwrap_err();
        let why = refused(Wanted { to: TO, ..Wanted::default() });
        for part in ["needs agent_id and agent_phone_number_id", "--agent AGENT_ID --from NUMBER_ID", "--to NUMBER "] {
            assert!(why.contains(part), "{part} is not in {why}");
        }
        assert!(!why.contains(TO), "{why}");
        let why = refused(Wanted { to: TO, agent: Some("agent_1"), ..Wanted::default() });
        assert!(why.contains("needs agent_phone_number_id,") && why.contains("--agent agent_1 --from"), "{why}");
        let why = refused(Wanted { to: TO, account: Some("twilio"), ..Wanted::default() });
        assert!(why.contains("needs From,") && why.contains("--from +15550001101"), "{why}");
        for (wanted, part) in [
            (Wanted { account: Some("acme"), ..Wanted::default() }, "unknown account acme: elevenlabs, twilio"),
            (Wanted { operation: Some("calls"), ..Wanted::default() }, "sip_trunk_outbound_call"),
        ] {
            let why = refused(Wanted { to: TO, ..wanted });
            assert!(why.contains(part), "{why}");
        }
    }

    #[test]
    fn the_number_is_whole_in_the_question_alone() {
        let config = config(&[ELEVENLABS, ACME]);
        let plan = Plan::new(&config, &Wanted { to: TO, ..Wanted::default() }).unwrap();
        let question = plan.render("http://127.0.0.1:8080", 300, Reveal::Whole);
        assert!(question.contains(TO) && question.contains("costs money at elevenlabs"), "{question}");
        let shown = plan.render("http://127.0.0.1:8080", 300, Reveal::Masked);
        assert!(!shown.contains(TO) && shown.contains("+155••••••01"), "{shown}");
        assert_eq!(plan.masked("15551230001 and +15551230001"), "155••••••01 and +155••••••01");
    }
}
