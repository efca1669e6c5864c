//! The reference pages in `docs/reference/`: their tables are made of what the program knows, and a page that is stale fails here.
//!
//! `RINGFENCE_UPDATE_DOCS=1 cargo test --test it reference::` writes them anew. What stands outside of the marks
//! `<!-- generated -->` and `<!-- end -->` is written by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use ringfence::reply::RejectionCode as Code;
use ringfence::words::NamedEnum;

use crate::support::source::{files, is_test};

const BEGIN: &str = "<!-- generated: RINGFENCE_UPDATE_DOCS=1 cargo test --test it reference:: -->\n";
const END: &str = "<!-- end -->";

pub(crate) fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

pub(crate) fn read(path: &str) -> String {
    std::fs::read_to_string(root(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Compares the generated part of a page with what it should be, or writes it.
fn page(name: &str, generated: &str) -> String {
    let path = format!("docs/reference/{name}.md");
    let text = read(&path);
    let (before, rest) = text.split_once(BEGIN).unwrap_or_else(|| panic!("{path} has no line {BEGIN}"));
    let (stands, after) = rest.split_once(END).unwrap_or_else(|| panic!("{path} has no line {END}"));
    let generated = format!("\n{}\n\n", generated.trim());
    if std::env::var_os("RINGFENCE_UPDATE_DOCS").is_some() {
        std::fs::write(root(&path), format!("{before}{BEGIN}{generated}{END}{after}")).unwrap();
    } else if stands != generated {
        let (mut old, mut new) = (stands.lines(), generated.lines());
        let differ = loop {
            match (old.next(), new.next()) {
                (None, None) => break (None, None),
                (a, b) if a == b => {}
                other => break other,
            }
        };
        panic!("{path} is stale; run: RINGFENCE_UPDATE_DOCS=1 cargo test --test it reference::\n{differ:#?}");
    }
    format!("{before}{after}")
}

/// Text for one cell of a table.
fn cell(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    text.replace("[`", "`").replace("`]", "`").replace('|', "\\|")
}

/// A file without the tests at its end.
fn without_tests(text: &str) -> &str {
    let mark = "#[cfg(test)]\n";
    let tests = text
        .match_indices(mark)
        .find(|(at, _)| text[at + mark.len()..].lines().next().is_some_and(|l| l.ends_with('{')));
    tests.map_or(text, |(at, _)| &text[..at])
}

/// The code of a file, without comments and tests.
fn code_of(text: &str) -> String {
    let code = without_tests(text).lines().filter(|line| !line.trim_start().starts_with("//"));
    code.collect::<Vec<_>>().join("\n")
}

/// A table of `config/reference.toml`: its header, what is said of it, and its keys with value and meaning.
#[derive(Default)]
struct ConfigTable {
    header: String,
    note: String,
    rows: Vec<(String, String, String)>,
}

fn config_tables() -> Vec<ConfigTable> {
    let mut tables = vec![ConfigTable::default()];
    for line in read("config/reference.toml").lines() {
        let table = tables.last_mut().unwrap();
        // A key that excludes the one above it stands behind a hash: `# rate = …`.
        let option = line
            .strip_prefix("# ")
            .filter(|code| code.split_once('=').is_some_and(|(key, _)| !key.trim().contains(' ')));
        if line.starts_with('[') {
            let (header, note) = line.split_once('#').unwrap_or((line, ""));
            tables.push(ConfigTable { header: header.trim().to_owned(), note: note.trim().to_owned(), rows: vec![] });
        } else if let Some((key, rest)) =
            option.or(Some(line)).filter(|l| !l.trim().starts_with('#')).and_then(|l| l.split_once('='))
        {
            let (value, meaning) = value_and_comment(rest);
            table.rows.push((key.trim().trim_matches('"').to_owned(), value, meaning));
        } else if let (true, Some(last)) = (line.starts_with(' '), table.rows.last_mut()) {
            last.2 = format!("{} {}", last.2, line.trim().trim_start_matches('#').trim());
        }
    }
    tables
}

#[test]
fn config_keys_are_those_of_the_reference_file() {
    let mut out = String::new();
    let tables = config_tables();
    assert!(tables.len() > 15);
    for ConfigTable { header, note, rows } in tables.iter().filter(|table| !table.rows.is_empty()) {
        let heading = if header.is_empty() { "Top level".to_owned() } else { format!("`{header}`") };
        let mut about = String::new();
        if let Some(first) = note.chars().next() {
            let _ = write!(about, "{}{}. ", first.to_uppercase(), &note[first.len_utf8()..]);
        }
        let variable = header.trim_matches(['[', ']']).replace(['.', '-'], "_").to_uppercase();
        match header.starts_with("[[") || header.contains("limits") {
            true => about.push_str("Only in the file: a list of tables has no environment names."),
            false => {
                let between = if variable.is_empty() { "" } else { "_" };
                let _ = write!(about, "Environment: `RINGFENCE_{variable}{between}` and the key in capitals.");
            }
        }
        let about = about.replace('*', "\\*");
        let _ = write!(out, "## {heading}\n\n{about}\n\n| key | value | meaning |\n|---|---|---|\n");
        for (key, value, meaning) in rows {
            let _ = writeln!(out, "| `{key}` | `{}` | {} |", cell(value), cell(meaning).replace('*', "\\*"));
        }
        out.push('\n');
    }
    page("config", &out);
}

/// The value of a TOML line, and its comment.
fn value_and_comment(rest: &str) -> (String, String) {
    let mut quoted = false;
    for (at, c) in rest.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '#' if !quoted => return (rest[..at].trim().to_owned(), rest[at + 1..].trim().to_owned()),
            _ => {}
        }
    }
    (rest.trim().to_owned(), String::new())
}

#[test]
fn error_codes_are_those_of_the_program() {
    let registry = ringfence::provider::Registry::new(&[]).unwrap();
    let providers: Vec<_> = registry.all().collect();
    let mut table = "| `error` | status | default `Retry-After` | in observe mode |\n|---|---|---|---|\n".to_owned();
    let mut words = Vec::new();
    for code in Code::ALL {
        let statuses: BTreeMap<u16, Vec<&str>> = providers.iter().fold(BTreeMap::new(), |mut all, provider| {
            all.entry(code.status(&provider.refusal).as_u16()).or_insert_with(Vec::new).push(provider.name.as_str());
            all
        });
        let status = match statuses.len() {
            1 => statuses.keys().next().unwrap().to_string(),
            _ => statuses.iter().map(|(s, of)| format!("{s} ({})", of.join(", "))).collect::<Vec<_>>().join(", "),
        };
        let wait = code.default_wait_secs().map_or(String::new(), |secs| format!("{secs} s"));
        let names: BTreeSet<&str> = providers.iter().map(|provider| code.as_str(&provider.refusal)).collect();
        for word in names {
            let _ = writeln!(
                table,
                "| [`{word}`](#{}) | {status} | {wait} | {} |",
                word.to_lowercase(),
                code.observed().as_str()
            );
            words.push(word.to_owned());
        }
    }
    let by_hand = page("errors", &table);
    let headings: BTreeSet<&str> =
        by_hand.lines().filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`')).collect();
    for word in &words {
        assert!(headings.contains(word.as_str()), "docs/reference/errors.md has no section ### `{word}`");
    }
    for heading in headings {
        assert!(
            words.iter().any(|word| word == heading),
            "docs/reference/errors.md explains {heading}, which is no code"
        );
    }
    // Errors of the other listeners are words beside a status in the code.
    for (path, text) in files("src") {
        let code = code_of(&text);
        for (at, _) in code.match_indices("StatusCode::") {
            let after = code[at..].split_once(',').map_or("", |(_, after)| after.trim_start());
            let word = after.strip_prefix('"').and_then(|after| after.split('"').next()).unwrap_or_default();
            let is_word = word.len() > 3 && word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
            assert!(
                !is_word || by_hand.contains(&format!("`{word}`")),
                "{}: errors.md does not name {word}",
                path.display()
            );
        }
    }
}

#[test]
fn metrics_are_those_of_the_program() {
    let metrics = ringfence::metrics::Metrics::new().unwrap();
    let mut all = metrics.descriptions().to_vec();
    all.sort_by(|a, b| (a.name.starts_with("ringfence_"), &a.name).cmp(&(b.name.starts_with("ringfence_"), &b.name)));
    let mut table = "| name | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
    for one in &all {
        let labels: Vec<_> = one.labels.iter().map(|label| format!("`{label}`")).collect();
        let _ = writeln!(table, "| `{}` | {} | {} | {} |", one.name, one.kind, labels.join(", "), cell(&one.help));
    }
    assert!(all.len() > 40);
    let _ = write!(table, "\n## Label values\n\n| metric | label | values |\n|---|---|---|\n");
    let values = label_values();
    for one in &values {
        let metric = all.iter().find(|known| known.name == one.metric);
        let labels = metric.map(|metric| metric.labels.iter().any(|label| *label == one.label));
        assert_eq!(labels, Some(true), "{} has no label {}", one.metric, one.label);
        let words: Vec<_> = one.values.iter().map(|word| format!("`{word}`")).collect();
        let _ = writeln!(table, "| `{}` | `{}` | {} |", one.metric, one.label, words.join(", "));
    }
    let shown: BTreeSet<&str> = values.iter().flat_map(|one| one.types.iter().copied()).collect();
    let declared = read("src/metrics/labels.rs");
    for words in declared.split("words!(").skip(1) {
        let name = words.lines().find_map(|line| line.trim().strip_suffix(" {")).unwrap();
        assert!(shown.contains(name), "the label values lack {name}");
    }
    page("metrics", &table);
}

/// A label with few values.
struct LabelValues {
    metric: &'static str,
    label: &'static str,
    /// The enums that declare them.
    types: Vec<&'static str>,
    values: Vec<&'static str>,
}

impl LabelValues {
    fn of<E: NamedEnum>(metric: &'static str, label: &'static str) -> Self {
        Self { metric, label, types: vec![], values: vec![] }.and::<E>()
    }

    fn and<E: NamedEnum>(mut self) -> Self {
        self.types.extend(std::any::type_name::<E>().rsplit("::").next());
        // Two enums of one label may share a word.
        let new = E::ALL.iter().map(|value| value.name()).filter(|word| !self.values.contains(word));
        self.values.extend(new.collect::<Vec<_>>());
        self
    }

    fn and_word(mut self, word: &'static str) -> Self {
        self.values.push(word);
        self
    }
}

fn label_values() -> Vec<LabelValues> {
    use ringfence::metrics as m;
    use ringfence::{call, destinations, net, policy, provider, store};
    vec![
        LabelValues::of::<call::Direction>("ringfence_calls_admitted_total", "direction"),
        LabelValues::of::<call::Outcome>("ringfence_calls_ended_total", "outcome"),
        LabelValues::of::<call::EndProof>("ringfence_calls_ended_total", "proof"),
        LabelValues::of::<m::CreateOutcome>("ringfence_create_added_duration_seconds", "outcome"),
        LabelValues::of::<m::CallbackUse>("ringfence_callbacks_refused_total", "at"),
        LabelValues::of::<net::CallbackErrorReason>("ringfence_callbacks_refused_total", "reason"),
        LabelValues::of::<m::CertificateReload>("ringfence_certificate_reloads_total", "result"),
        LabelValues::of::<net::CertificateUse>("ringfence_certificate_expiry_timestamp_seconds", "certificate"),
        LabelValues::of::<m::ClientMessage>("ringfence_client_messages_total", "type"),
        LabelValues::of::<m::ReloadOutcome>("ringfence_config_reloads_total", "result"),
        LabelValues::of::<m::Delivered>("ringfence_deliveries_total", "result"),
        LabelValues::of::<destinations::BlockRule>("ringfence_destinations_refused_total", "rule"),
        LabelValues::of::<m::Degraded>("ringfence_gate_degraded_total", "decided"),
        LabelValues::of::<policy::decision::GateMode>("ringfence_gate_transitions_total", "mode"),
        LabelValues::of::<m::Repair>("ringfence_gate_repairs_total", "what"),
        LabelValues::of::<m::RecordSource>("ringfence_post_call_records_total", "source"),
        LabelValues::of::<provider::description::LimitClass>("ringfence_provider_limit_total", "class"),
        LabelValues::of::<m::ApiRequest>("ringfence_requests_total", "kind")
            .and::<m::WebhookRequest>()
            .and::<m::ClientRequest>()
            .and_word("admin"),
        LabelValues::of::<m::RunDial>("ringfence_run_dials_total", "result"),
        LabelValues::of::<m::Firing>("ringfence_schedule_firings_total", "result"),
        LabelValues::of::<m::SweepResult>("ringfence_sweeps_total", "result"),
        LabelValues::of::<m::MessageKind>("ringfence_unreadable_total", "source"),
        LabelValues::of::<provider::select::Flaw>("ringfence_unreadable_total", "flaw").and_word("unknown_state"),
        LabelValues::of::<store::EventOutcome>("ringfence_webhooks_total", "outcome")
            .and::<m::NotApplied>()
            .and::<m::Unverified>(),
    ]
}

#[test]
fn the_admin_api_is_that_of_the_program() {
    use ringfence::admin::api::{Needs, ROUTES};
    let mut table = "| route | scope | what it does |\n|---|---|---|\n".to_owned();
    for route in ROUTES {
        let scope = match route.needs {
            Needs::Nothing => String::new(),
            Needs::Scrape => "`metrics`, where it is asked for".to_owned(),
            Needs::Scope(scope) => format!("`{}`", scope.as_str()),
            Needs::AllBusinesses(scope) => format!("`{}`, of all", scope.as_str()),
        };
        let query: Vec<String> = route.query.iter().map(|(name, ..)| format!("`{name}`")).collect();
        let query = if query.is_empty() { String::new() } else { format!(" Query: {}.", query.join(", ")) };
        let path = route.path.replace("+}", "}");
        let _ = writeln!(table, "| `{} {path}` | {scope} | {}{query} |", route.method, cell(route.about));
    }
    page("admin-api", &table);
}

#[test]
fn check_codes_are_those_of_the_program() {
    let mut table = "| code | meaning |\n|---|---|\n".to_owned();
    let mut known = BTreeSet::new();
    for (code, meaning) in ringfence::config::codes::CODES {
        let _ = writeln!(table, "| `{code}` | {} |", cell(meaning));
        assert!(known.insert(*code), "{code} is listed twice");
    }
    page("check-codes", &table);
    let mut used = BTreeSet::new();
    for (path, text) in files("src") {
        if path.ends_with("codes.rs") || is_test(&path) {
            continue;
        }
        let code = code_of(&text);
        for (at, _) in code.match_indices('"') {
            let Some(word) = code.get(at + 1..at + 5).filter(|_| code[at + 1..].chars().nth(4) == Some('"')) else {
                continue;
            };
            if word.starts_with(['E', 'W']) && word[1..].bytes().all(|b| b.is_ascii_digit()) {
                assert!(known.contains(word), "{}: config/codes.rs does not list {word}", path.display());
                used.insert(word.to_owned());
            }
        }
    }
    for code in known {
        assert!(used.contains(code), "config/codes.rs lists {code}, which nothing reports");
    }
}

#[test]
fn commands_are_those_of_the_program() {
    let mut out = String::new();
    let mut command = ringfence::cli::command();
    command.build();
    let all: Vec<_> = command.get_subcommands().cloned().collect();
    for one in all {
        describe(&mut out, "ringfence", &one);
    }
    page("cli", &out);
}

fn describe(out: &mut String, parent: &str, command: &clap::Command) {
    let name = format!("{parent} {}", command.get_name());
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim().replace(command.get_bin_name().unwrap_or(&name), &name);
    let _ = write!(out, "## `{name}`\n\n{about}.\n\n```text\n{usage}\n```\n\n");
    let mut rows = String::new();
    for arg in
        command.get_arguments().filter(|arg| !arg.is_hide_set() && arg.get_id() != "help" && arg.get_id() != "version")
    {
        // Options of the whole command stand once, at its head.
        if parent != "ringfence" && arg.is_global_set() {
            continue;
        }
        let value = arg.get_action().takes_values().then(|| {
            let names = arg.get_value_names().unwrap_or_default();
            names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        });
        let shown = match (arg.get_long(), arg.get_short(), value) {
            (Some(long), short, value) => {
                let short = short.map(|short| format!("-{short}, ")).unwrap_or_default();
                format!("{short}--{long}{}", value.map(|value| format!(" {value}")).unwrap_or_default())
            }
            (None, _, _) => arg.get_id().to_string().to_uppercase(),
        };
        let mut help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let choices: Vec<_> = match arg.get_action().takes_values() {
            true => arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect(),
            false => vec![],
        };
        if !choices.is_empty() {
            let _ = write!(help, "; one of {}", choices.join(", "));
        }
        let default: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        if !default.is_empty() && arg.get_action().takes_values() {
            let _ = write!(help, "; default `{}`", default.join(" "));
        }
        if let Some(variable) = arg.get_env() {
            let _ = write!(help, "; environment `{}`", variable.to_string_lossy());
        }
        let _ = writeln!(rows, "| `{}` | {} |", cell(&shown), cell(&help));
    }
    if !rows.is_empty() {
        let _ = write!(out, "| option | |\n|---|---|\n{rows}\n");
    }
    for one in command.get_subcommands().filter(|one| one.get_name() != "help") {
        describe(out, &name, one);
    }
}

/// Types of a provider file by their name in the code, in the order of the page: heading, and where they stand.
const TABLES: &[(&str, &str, &str)] = &[
    ("Description", "The file", "the top level"),
    ("OtherHost", "Other hosts", "`upstreams = [{ … }]`"),
    ("Credentials", "Credentials", "`[credentials]`: `header` and `value`, or `username` and `password`"),
    ("Operation", "Operations", "`[[operation]]`"),
    ("Success", "Success", "`success` of an operation"),
    ("FixedAnswer", "Fixed answer", "`answer` of an operation or a webhook"),
    ("Inject", "Inject", "`inject` of an operation"),
    ("Callback", "Callback", "`callback` of an operation"),
    ("Dial", "Dial", "`dial` of an operation"),
    ("SlotsRule", "Slots of a batch", "`slots` of an operation"),
    ("Unfenced", "Unfenced calls", "`[unfenced]`"),
    ("LimitAnswer", "Limits of the provider", "`[[limit]]`"),
    ("LimitClass", "Limit class", "`class` of a limit"),
    ("RejectionShape", "Error shape", "`[refusal]`"),
    ("Webhook", "Webhooks", "`[[webhook]]`"),
    ("Reply", "Reply", "`reply` of a webhook"),
    ("WebhookEvent", "Events of a webhook", "`[[webhook.event]]`"),
    ("UtteranceRules", "Utterance", "`utterance` of an event"),
    ("Written", "Speaker", "`speaker` of an utterance or a turn"),
    ("PostCallRules", "Post-call record", "`[webhook.event.record]` and `[lookup.record]`"),
    ("Judgement", "Judgement", "`call_successful` of a record"),
    ("TimeRule", "End time", "`call_end_time` of a record: a selector, or `after` and `secs`"),
    ("TurnRules", "Turns of a transcript", "`[turns]`"),
    ("AttributeSelectors", "Attributes", "`attributes`"),
    ("IdSelectors", "Ids", "`ids`, `own_ids`, `member_of`: kinds of id, each with a selector or a table as below"),
    ("Beginning", "Id with a prefix", "an entry of `ids`"),
    (
        "Mapped",
        "State, direction and who answered",
        "`state`, `phase`, `direction`, `answered_by`, where they are not one constant word",
    ),
    ("Lookup", "Look-up of a call", "`[lookup]`"),
    ("Group", "Batches", "`[[group]]`"),
    ("List", "List of live calls, and search", "`[list]`, `[find]`, `[group.find]`"),
    ("ItemId", "Id of an item", "`id` of a list"),
    ("NextPage", "Next page", "`next` of a list: `cursor` and `param`, or `uri`"),
    ("Count", "Count of live calls", "`[count]`"),
    ("HangUpMethod", "Means to end a call", "`[terminate.NAME]`"),
    ("Front", "Front mode", "`[front]`"),
    ("Subaccounts", "Subaccounts", "`[subaccounts]`"),
    ("Check", "Live check", "`[check]`: what `ringfence check --live` and `ringfence doctor` ask"),
    ("Hooks", "Webhooks at the provider", "`[[check.hook]]`"),
    ("Override", "Used instead", "`[[check.hook.instead]]`"),
    ("HookUrl", "URL", "`[[check.hook.url]]`"),
    ("Fallback", "Fallback", "`[check.hook.fallback]`"),
    ("Below", "Accounts below", "`below` of a `[[check.hook]]`"),
    ("InUse", "Webhook in use", "`[check.hook.in_use]`, `[check.list.in_use]`"),
    ("Fault", "Fault", "`[[check.hook.fault]]`, `[[check.list.fault]]`"),
    ("ItemList", "Settings at the provider", "`[[check.list]]`"),
    ("ItemMode", "Mode of an item", "`[[check.list.mode]]`"),
    ("ItemBound", "Bounds of an item", "`[[check.list.bound]]`"),
    ("SharedSecret", "Signature: shared secret", "`signature` with `scheme = \"shared_secret\"`"),
    ("ValueSource", "Header", "an entry of `headers`"),
    ("MessageSignature", "Signature: HMAC or Ed25519", "`signature` with `scheme = \"hmac\"` or `\"ed25519\"`"),
    ("SignaturePlace", "Signature header", "`signature` of such a scheme, one or a list"),
    ("TimestampPlace", "Timestamp header", "`timestamp` of such a scheme"),
    ("Jwt", "Signature: JWT", "`signature` with `scheme = \"jwt_hs256\"`"),
];

/// Simple words and nested tables that stand in a cell of others.
const WORDS: &[(&str, &str)] = &[
    ("Mode", "`mode` of any signature"),
    ("Algorithm", "`algorithm`"),
    ("KeyForm", "`key`: what the text of a secret means"),
    ("Encoding", "`encoding`"),
    ("Unit", "`unit` of a timestamp"),
    ("BodyHash", "`body_hash` of a JWT"),
    ("Age", "`age` of a JWT"),
];

#[derive(Debug, Default)]
struct Item {
    name: String,
    docs: Vec<String>,
    /// Key, type, whether it is needed, meaning.
    rows: Vec<(String, String, bool, String)>,
}

/// What serde reads in a file: its structs and enums, with the docs of their members.
fn items(text: &str) -> Vec<Item> {
    let (mut found, mut docs, mut reads) = (Vec::<Item>::new(), Vec::<String>::new(), false);
    let (mut open, mut close, mut default, mut rename) = (false, String::new(), false, None::<String>);
    let mut skip = false;
    for line in without_tests(text).lines() {
        let (code, indent) = (line.trim(), line.len() - line.trim_start().len());
        if open && line == close {
            (open, reads) = (false, false);
            docs.clear();
        } else if let Some(doc) = code.strip_prefix("/// ") {
            docs.push(doc.to_owned());
        } else if code.starts_with("#[derive(") {
            reads = code.contains("Deserialize");
        } else if code.starts_with("#[serde(") {
            default |= code.contains("default");
            skip = code == "#[serde(skip)]";
            rename = code.split_once("rename = \"").and_then(|(_, rest)| rest.split('"').next()).map(str::to_owned);
        } else if code.starts_with("#[") {
            // Attributes of other crates say nothing of the key.
        } else if let Some(name) =
            ["struct ", "enum "].iter().find_map(|word| code.split_once(word)).map(|(_, name)| name)
            && !open
            && code.ends_with(['{', ';'])
        {
            if reads {
                let name = name.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default().to_owned();
                found.push(Item { name, docs: std::mem::take(&mut docs), rows: vec![] });
                open = code.ends_with('{');
                close = format!("{}}}", " ".repeat(indent));
            }
            (docs, default, rename) = (vec![], false, None);
        } else if let Some(name) = code.strip_suffix(" {").filter(|name| !open && is_word_table(name)) {
            // Declared by `words!`, which also reads it.
            found.push(Item { name: name.to_owned(), docs: std::mem::take(&mut docs), rows: vec![] });
            (open, close) = (true, format!("{}}}", " ".repeat(indent)));
        } else if open && std::mem::take(&mut skip) {
            (docs, default, rename) = (vec![], false, None);
        } else if open {
            let item = found.last_mut().unwrap();
            if let Some(word) = code.split_once(" = ").and_then(|(_, word)| word.strip_suffix(',')) {
                item.rows.push((word.to_owned(), String::new(), false, std::mem::take(&mut docs).join(" ")));
                continue;
            }
            let field = code.trim_start_matches("pub(super) ").trim_start_matches("pub ");
            let one_line =
                code.contains(" { ").then(|| code.split_once('{').unwrap().1.trim_end_matches([' ', '}', ',']));
            if let Some(fields) = one_line {
                for field in fields.split(", ") {
                    let (name, kind) = field.split_once(": ").unwrap_or_default();
                    item.rows.push((name.trim().to_owned(), kind.to_owned(), true, docs.join(" ")));
                }
            } else if let Some((name, kind)) = field.split_once(": ").filter(|_| field.ends_with(',')) {
                let kind = kind.trim_end_matches(',');
                let needed = !default && !kind.starts_with("Option<");
                let name = rename.take().unwrap_or_else(|| name.to_owned());
                item.rows.push((name, kind.to_owned(), needed, docs.join(" ")));
            } else if code.ends_with(',') && code.chars().next().is_some_and(char::is_uppercase) {
                let name = code.trim_end_matches(',').split('(').next().unwrap_or_default();
                let word = name.chars().enumerate().fold(String::new(), |mut word, (n, c)| {
                    if n > 0 && c.is_uppercase() {
                        word.push('_');
                    }
                    word.extend(c.to_lowercase());
                    word
                });
                if !code.contains('(') {
                    item.rows.push((format!("\"{word}\""), String::new(), false, docs.join(" ")));
                }
            }
            docs.clear();
            (default, rename) = (false, None);
        } else {
            docs.clear();
            (default, rename) = (false, None);
        }
    }
    found
}

fn is_word_table(name: &str) -> bool {
    TABLES.iter().any(|(table, ..)| *table == name)
}

fn type_of(kind: &str) -> String {
    let inner = |prefix: &str| kind.strip_prefix(prefix).and_then(|rest| rest.strip_suffix('>'));
    if let Some(of) = inner("Option<").or_else(|| inner("Arc<")) {
        return type_of(of);
    }
    if let Some(of) = inner("Vec<") {
        return format!("list of {}", type_of(of));
    }
    if let Some(of) = inner("BTreeMap<String, ") {
        return format!("table of {}", type_of(of));
    }
    match kind {
        "String" | "Template" => "text".to_owned(),
        "u16" | "u32" | "u64" => "number".to_owned(),
        "bool" => "`true` or `false`".to_owned(),
        "Value" => "any value".to_owned(),
        "Method" => "HTTP method".to_owned(),
        "PathPattern" => "[path pattern](../adding-a-provider.md#paths)".to_owned(),
        "Selector" => "[selector](../adding-a-provider.md#selectors)".to_owned(),
        "Predicate" => "[condition](../adding-a-provider.md#conditions)".to_owned(),
        "StateWord" => "[state](#state-direction-and-who-answered)".to_owned(),
        "Direction" => "`\"inbound\"` or `\"outbound\"`".to_owned(),
        "Speaker" => "`\"agent\"` or `\"user\"`".to_owned(),
        "DirectionWord" => "[direction](#state-direction-and-who-answered)".to_owned(),
        "CallbackEvent" => "text, or a table as of a [direction](#state-direction-and-who-answered)".to_owned(),
        "AnsweredByWord" => "[who answered](#state-direction-and-who-answered)".to_owned(),
        "SpeakerWord" => "[speaker](#speaker)".to_owned(),
        "Signature" => "[signature](../adding-a-provider.md#signatures)".to_owned(),
        other => match TABLES.iter().find(|(name, ..)| *name == other) {
            Some((_, heading, _)) => {
                format!(
                    "[{}](#{})",
                    heading.to_lowercase(),
                    heading.to_lowercase().replace(' ', "-").replace([',', ':'], "")
                )
            }
            None => match WORDS.iter().any(|(name, _)| *name == other) {
                true => "[word](#words)".to_owned(),
                false => panic!("the type {other} has no name in the docs"),
            },
        },
    }
}

#[test]
fn keys_of_a_provider_file_are_those_of_the_program() {
    let mut all: BTreeMap<String, Item> = BTreeMap::new();
    for (_, text) in files("src/provider") {
        for item in items(&text) {
            all.insert(item.name.clone(), item);
        }
    }
    let unknown: Vec<_> = all
        .keys()
        .filter(|name| !TABLES.iter().any(|(n, ..)| n == name) && !WORDS.iter().any(|(n, _)| n == name))
        .filter(|name| !["IdSelector", "Word", "Template", "OneOrMany", "Values"].contains(&name.as_str()))
        .collect();
    assert!(unknown.is_empty(), "types that a provider file has, and that the page does not know: {unknown:?}");
    let mut out = String::new();
    for &(name, heading, at) in TABLES {
        let item = &all.get(name).unwrap_or_else(|| panic!("{name} is no type of a provider file any more"));
        let about = item.docs.join(" ");
        let _ = write!(out, "## {heading}\n\nAt {at}. {about}\n\n");
        if item.rows.is_empty() {
            continue;
        }
        let is_word = item.rows.iter().all(|(key, ..)| key.starts_with('"'));
        out.push_str(if is_word {
            "| word | meaning |\n|---|---|\n"
        } else {
            "| key | value | needed | meaning |\n|---|---|---|---|\n"
        });
        for (key, kind, needed, meaning) in &item.rows {
            let _ = match is_word {
                true => writeln!(out, "| `{key}` | {} |", cell(meaning)),
                false => {
                    let is_choice = ["Credentials", "NextPage", "TimeRule"].contains(&name);
                    let needed = if *needed && !is_choice { "yes" } else { "" };
                    assert!(!meaning.is_empty(), "{name}.{key} has no docs");
                    writeln!(out, "| `{key}` | {} | {needed} | {} |", cell(&type_of(kind)), cell(meaning))
                }
            };
        }
        out.push('\n');
    }
    out.push_str("## Words\n\n| key | word | meaning |\n|---|---|---|\n");
    for &(name, at) in WORDS {
        for (key, kind, _, meaning) in &all[name].rows {
            let value = if kind.is_empty() { String::new() } else { format!(": {}", type_of(kind)) };
            let _ = writeln!(out, "| {at} | `{key}`{value} | {} |", cell(meaning));
        }
    }
    page("provider-file", &out);
}
