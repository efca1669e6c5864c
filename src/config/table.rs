//! Reads a TOML table key by key. Unknown keys are errors, every key has an environment name, and all mistakes are collected.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostics::{Diagnostic, INLINE_SECRET, Report, Severity, UNKNOWN_KEY};
use super::inputs::{Inputs, digest, digest_of_unreadable};
use crate::policy::Rate;
pub use crate::provider::nearest::closest;
use crate::provider::secret::Secret;

/// Keys that had another name once, which still counts: the key and that name.
pub(super) const FORMER_NAMES: [(&str, &str); 7] = [
    ("transcripts.completion_wait_secs", "record_wait_secs"),
    ("gate.audit_interval_secs", "compare_secs"),
    ("reconcile.list_lag_ms", "grace_ms"),
    ("reconcile.not_found_confirm_secs", "absent_twice_secs"),
    ("reconcile.unreadable_alarm_secs", "unread_alarm_secs"),
    ("timeouts.create_read_secs", "late_answer_secs"),
    ("timeouts.provider_query_secs", "ask_secs"),
];

/// The source of environment variables; replaceable in tests.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The state shared by all tables of one config.
pub struct TableContext<'a> {
    /// Collects diagnostics.
    pub report: &'a Report,
    /// The environment.
    pub env: Env<'a>,
    /// The folder in which relative paths start.
    pub folder: &'a Path,
    /// All keys read, as paths with `*` for names that the operator chose.
    pub asked: RefCell<BTreeMap<String, ()>>,
    /// All environment variables read.
    pub variables: RefCell<BTreeSet<String>>,
    /// All files read, with their digests.
    pub inputs: RefCell<Inputs>,
    /// The keys at the top level: one of these in a table was probably meant for it.
    pub root_keys: &'static [&'static str],
}

impl<'a> TableContext<'a> {
    /// The context of a config of which nothing was read yet.
    pub fn new(report: &'a Report, env: Env<'a>, folder: &'a Path, root_keys: &'static [&'static str]) -> Self {
        TableContext {
            report,
            env,
            folder,
            asked: RefCell::default(),
            variables: RefCell::default(),
            inputs: RefCell::default(),
            root_keys,
        }
    }
}

/// A table being read.
pub struct Table<'a> {
    context: Rc<TableContext<'a>>,
    table: Option<&'a DeTable<'a>>,
    header: Option<Range<usize>>,
    path: String,
    pattern: String,
    used: RefCell<BTreeSet<String>>,
}

/// A value from the environment or from the file.
enum RawValue<'a> {
    /// The variable and its value.
    Env(String, String),
    /// The value and its place.
    File(&'a Spanned<DeValue<'a>>),
}

/// A word and its place in the file.
pub struct Word {
    /// The word.
    pub text: String,
    /// The place, in bytes of the file; `None` if it is from the environment.
    pub place: Option<Range<usize>>,
}

impl<'a> Table<'a> {
    /// The top-level table of a config.
    pub fn root(context: TableContext<'a>, table: &'a DeTable<'a>) -> Self {
        Self {
            context: Rc::new(context),
            table: Some(table),
            header: None,
            path: String::new(),
            pattern: String::new(),
            used: RefCell::default(),
        }
    }

    /// The collected diagnostics.
    pub fn report(&self) -> &'a Report {
        self.context.report
    }

    /// All keys read so far.
    pub fn asked(&self) -> Vec<String> {
        self.context.asked.borrow().keys().cloned().collect()
    }

    /// All environment variables read so far.
    pub fn variables(&self) -> BTreeSet<String> {
        self.context.variables.borrow().clone()
    }

    /// All files read so far.
    pub fn inputs(&self) -> Inputs {
        self.context.inputs.borrow().clone()
    }

    /// Records a file that was read, with its digest.
    pub fn note(&self, path: std::path::PathBuf, held: String) {
        self.context.inputs.borrow_mut().insert(path, held);
    }

    /// The path of a key, as in `accounts.twilio.concurrent`.
    pub fn path_of(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// The place of the table, if the file has it.
    pub fn place(&self) -> Option<Range<usize>> {
        self.header.clone()
    }

    /// Whether the file has no such table.
    pub fn is_absent(&self) -> bool {
        self.table.is_none()
    }

    /// The place of a key, or else of its table.
    pub fn span(&self, key: &str) -> Option<Range<usize>> {
        let in_file = self.table.and_then(|t| t.get(key)).map(Spanned::span);
        in_file.or_else(|| self.header.clone())
    }

    /// Whether the file or the environment has the key. Its variable counts as read.
    pub fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|t| t.contains_key(key)) || self.read_variable(&self.env_name(key)).is_some()
    }

    /// The variable of a key, as in `RINGFENCE_ACCOUNTS_TWILIO_CONCURRENT`.
    pub fn env_name(&self, key: &str) -> String {
        let name: String = self
            .path_of(key)
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
            .collect();
        format!("RINGFENCE_{name}")
    }

    fn ask(&self, key: &str) {
        self.used.borrow_mut().insert(key.to_owned());
        self.context.asked.borrow_mut().insert(join(&self.pattern, key), ());
    }

    /// Reads a variable, and records its name. An empty one counts as unset, which is what `NAME=${OTHER}` without OTHER means. An empty secret would be
    /// worse than none, because anyone can sign with it.
    pub fn read_variable(&self, name: &str) -> Option<String> {
        self.context.variables.borrow_mut().insert(name.to_owned());
        (self.context.env)(name).filter(|value| !value.trim().is_empty())
    }

    fn find(&self, key: &str) -> Option<RawValue<'a>> {
        self.ask(key);
        let name = self.env_name(key);
        if let Some(value) = self.read_variable(&name) {
            return Some(RawValue::Env(name, value));
        }
        self.table?.get(key).or_else(|| self.find_under_former_name(key)).map(RawValue::File)
    }

    /// Finds the value of a key under its former name, and warns of that name.
    fn find_under_former_name(&self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        let path = join(&self.pattern, key);
        let (_, name) = FORMER_NAMES.iter().find(|(now, _)| *now == path)?;
        let value = self.table?.get(*name)?;
        if self.used.borrow_mut().insert((*name).to_owned()) {
            let title = format!("`{}` is now called `{key}`", self.path_of(name));
            self.report().warning(
                "W035",
                Some(value.span()),
                title,
                "rename it: this name may go with the next version",
            );
        }
        Some(value)
    }

    fn wrong(&self, key: &str, found: &RawValue<'_>, wanted: &str) {
        let (span, what) = match found {
            RawValue::Env(name, value) => (None, format!("environment variable {name} is {value:?}")),
            RawValue::File(value) => {
                (Some(value.span()), format!("`{}` is a {}", self.path_of(key), value.get_ref().type_str()))
            }
        };
        self.report().error("E002", span, format!("{what}, but must be {wanted}"), "");
    }

    /// Reads a string.
    pub fn text(&self, key: &str) -> Option<String> {
        let found = self.find(key)?;
        let text = match &found {
            RawValue::Env(_, value) => Some(value.clone()),
            RawValue::File(value) => value.get_ref().as_str().map(str::to_owned),
        };
        if text.is_none() {
            self.wrong(key, &found, "a string in quotes");
        }
        text
    }

    /// Reads a string and parses it; an error of `parse` is reported.
    pub fn parsed<T>(&self, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let text = self.text(key)?;
        parse(&text)
            .map_err(|error| {
                self.report().error("E003", self.span(key), format!("`{}`: {error}", self.path_of(key)), "")
            })
            .ok()
    }

    /// Reads `rate` and `burst`.
    pub fn rate(&self) -> Option<Rate> {
        let (rate, burst) = (self.parsed("rate", Rate::parse), self.count("burst", 1..=1_000_000));
        if burst.is_some() && !self.has("rate") {
            let title = format!("`{}` without `rate`", self.path_of("burst"));
            self.report().error("E004", self.span("burst"), title, "also write rate = \"60/min\", or remove it");
        }
        Some(burst.into_iter().fold(rate?, Rate::with_burst))
    }

    /// Reads one of a few words.
    pub fn word<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Option<T> {
        let text = self.text(key)?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let title = format!("`{}` is {text:?}, but must be one of {}", self.path_of(key), known.join(", "));
            let help = closest(&text, &known).map(|word| format!("did you mean \"{word}\"?")).unwrap_or_default();
            self.report().error("E005", self.span(key), title, &help);
        }
        found
    }

    /// Reads an integer within bounds.
    pub fn number(&self, key: &str, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let found = self.find(key)?;
        let number = match &found {
            RawValue::Env(_, value) => value.trim().parse::<i128>().ok(),
            RawValue::File(value) => value
                .get_ref()
                .as_integer()
                .and_then(|i| i128::from_str_radix(&i.as_str().replace('_', ""), i.radix()).ok()),
        };
        let Some(number) = number else {
            self.wrong(key, &found, "an integer");
            return None;
        };
        match u64::try_from(number).ok().filter(|n| range.contains(n)) {
            Some(number) => Some(number),
            None => {
                let title =
                    format!("`{}` is {number}, but must be {} to {}", self.path_of(key), range.start(), range.end());
                self.report().error("E003", self.span(key), title, "");
                None
            }
        }
    }

    /// Reads a small integer within bounds.
    pub fn count(&self, key: &str, range: std::ops::RangeInclusive<u32>) -> Option<u32> {
        let wide = u64::from(*range.start())..=u64::from(*range.end());
        self.number(key, wide).and_then(|n| u32::try_from(n).ok())
    }

    /// Reads `true` or `false`.
    pub fn flag(&self, key: &str) -> Option<bool> {
        let found = self.find(key)?;
        let flag = match &found {
            RawValue::Env(_, value) => value.trim().parse().ok(),
            RawValue::File(value) => value.get_ref().as_bool(),
        };
        if flag.is_none() {
            self.wrong(key, &found, "true or false");
        }
        flag
    }

    /// Reads a list of strings; from the environment, separated by commas.
    pub fn texts(&self, key: &str) -> Option<Vec<String>> {
        let found = self.find(key)?;
        match &found {
            RawValue::Env(_, value) => {
                Some(value.split(',').map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()).collect())
            }
            RawValue::File(value) => {
                if let Some(one) = value.get_ref().as_str() {
                    return Some(vec![one.to_owned()]);
                }
                let list = value.get_ref().as_array().map(|list| {
                    list.iter().map(|v| v.get_ref().as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
                });
                let list = list.flatten();
                if list.is_none() {
                    self.wrong(key, &found, "a list of strings");
                }
                list
            }
        }
    }

    /// Reads a secret: `{ env = "NAME" }`, `{ file = "path" }`, or, with a warning, the text itself.
    pub fn secret(&self, key: &str) -> Option<Secret> {
        match self.find(key)? {
            RawValue::Env(_, value) => Some(Secret::new(value.trim())),
            RawValue::File(value) => self.read_secret(key, value),
        }
    }

    /// Reads secrets, the current one first.
    pub fn secrets(&self, key: &str) -> Vec<Secret> {
        match self.find(key) {
            None => vec![],
            Some(RawValue::Env(_, value)) => {
                value.split(',').map(str::trim).filter(|one| !one.is_empty()).map(Secret::new).collect()
            }
            Some(RawValue::File(value)) => match value.get_ref().as_array() {
                Some(list) => list.iter().filter_map(|one| self.read_secret(key, one)).collect(),
                None => self.read_secret(key, value).into_iter().collect(),
            },
        }
    }

    fn read_secret(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Option<Secret> {
        let (path, span) = (self.path_of(key), Some(value.span()));
        if let Some(text) = value.get_ref().as_str() {
            if text.trim().is_empty() {
                let help = "anyone can sign with an empty secret: write one, or remove the key";
                self.report().error("E003", span, format!("`{path}` is empty"), help);
                return None;
            }
            // A Twilio account SID is an id, not a secret.
            if !key.ends_with("_sid") {
                let help = format!("write {key} = {{ env = \"NAME\" }} or {{ file = \"/path\" }}");
                self.report().warning(
                    INLINE_SECRET,
                    span.clone(),
                    format!("the secret `{path}` is written in the file"),
                    &help,
                );
            }
            // Only the name of a variable, so it cannot be a secret that starts with a dollar sign.
            let named = text.strip_prefix('$').map(|name| name.trim_start_matches('{').trim_end_matches('}'));
            let is_name = |name: &&str| name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
            if let Some(name) = named.filter(is_name).filter(|name| !name.is_empty()) {
                let title = format!("`{path}` begins with a dollar sign: a config's variables are not filled in");
                self.report().warning("W017", span, title, &format!("write {key} = {{ env = \"{name}\" }}"));
            }
            return Some(Secret::new(text));
        }
        let source = |name: &str| {
            value.get_ref().as_table().and_then(|t| t.get(name)).and_then(|v| v.get_ref().as_str().map(str::to_owned))
        };
        match (source("env"), source("file")) {
            (Some(name), None) => match self.read_variable(&name) {
                Some(text) => Some(Secret::new(text.trim())),
                None => {
                    let title = format!("environment variable {name} is not set (`{path}`)");
                    self.report().error("E010", span, title, &format!("export {name}=…, or remove the key"));
                    None
                }
            },
            (None, Some(file)) => {
                let at = self.context.folder.join(&file);
                let text = std::fs::read_to_string(&at);
                let held = text.as_ref().map_or_else(digest_of_unreadable, |text| digest(text.as_bytes()));
                let file = at.display().to_string();
                self.note(at, held);
                match text {
                    Ok(text) if !text.trim().is_empty() => Some(Secret::new(text.trim())),
                    Ok(_) => {
                        self.report().error("E011", span, format!("{file} is empty (`{path}`)"), "");
                        None
                    }
                    Err(error) => {
                        self.report().error("E011", span, format!("cannot read {file} (`{path}`): {error}"), "");
                        None
                    }
                }
            }
            _ => {
                let title = format!("`{path}` must be {{ env = \"NAME\" }} or {{ file = \"/path\" }}");
                self.report().error("E002", span, title, "");
                None
            }
        }
    }

    /// Reads a raw value, for keys of more than one form.
    pub fn value(&self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.ask(key);
        self.table?.get(key)
    }

    /// Reads a table; a missing one is empty.
    pub fn table(&self, key: &str) -> Table<'a> {
        self.below(key, key, self.value(key))
    }

    /// Reads a key that is a word or a table: returns the word with its place, and the table, which is empty if there is a word. The
    /// environment can set either, the table by its keys.
    pub fn word_or_table(&self, key: &str) -> (Option<Word>, Table<'a>) {
        let (word, table) = match self.find(key) {
            Some(RawValue::Env(_, text)) => (Some(Word { text, place: None }), None),
            Some(RawValue::File(value)) => match value.get_ref().as_str() {
                Some(text) => (Some(Word { text: text.to_owned(), place: Some(value.span()) }), None),
                None => (None, Some(value)),
            },
            None => (None, None),
        };
        (word, self.below(key, key, table))
    }

    /// Reads all tables whose name the operator chose.
    pub fn named_tables(&self, but: &[&str]) -> Vec<(String, Table<'a>)> {
        let Some(table) = self.table else { return vec![] };
        // A bare number under an unknown name: a table with it was meant.
        for (name, value) in table.iter().filter(|(_, value)| value.get_ref().as_integer().is_some()) {
            let name = name.get_ref().as_ref();
            if !but.contains(&name) && !self.context.root_keys.contains(&name) {
                self.used.borrow_mut().insert(name.to_owned());
                self.wrong(name, &RawValue::File(value), "a table, as in { concurrent = 3 } of a plan");
            }
        }
        let names = table.iter().filter(|(k, v)| !but.contains(&k.get_ref().as_ref()) && v.get_ref().is_table());
        names
            .map(|(name, value)| {
                let name = name.get_ref().to_string();
                self.used.borrow_mut().insert(name.clone());
                let below = self.below(&name, "*", Some(value));
                (name, below)
            })
            .collect()
    }

    /// Reads names and strings that the operator chose.
    pub fn named_texts(&self) -> BTreeMap<String, String> {
        let Some(table) = self.table else { return BTreeMap::new() };
        let all = table.iter().filter_map(|(name, value)| {
            let name = name.get_ref().to_string();
            self.used.borrow_mut().insert(name.clone());
            match value.get_ref().as_str() {
                Some(text) => Some((name, text.to_owned())),
                None => {
                    self.wrong(&name, &RawValue::File(value), "a string in quotes");
                    None
                }
            }
        });
        all.collect()
    }

    /// Reads names and secrets that the operator chose.
    pub fn named_secrets(&self) -> BTreeMap<String, Secret> {
        let Some(table) = self.table else { return BTreeMap::new() };
        let all = table.iter().filter_map(|(name, value)| {
            let name = name.get_ref().to_string();
            self.used.borrow_mut().insert(name.clone());
            Some((name.clone(), self.read_secret(&name, value)?))
        });
        all.collect()
    }

    /// Reads an array of tables.
    pub fn tables(&self, key: &str) -> Vec<Table<'a>> {
        let Some(value) = self.value(key) else { return vec![] };
        match value.get_ref().as_array() {
            Some(list) => list.iter().map(|one| self.below(key, key, Some(one))).collect(),
            None => {
                self.wrong(key, &RawValue::File(value), &format!("a list: write [[{key}]]"));
                vec![]
            }
        }
    }

    fn below(&self, key: &str, pattern: &str, value: Option<&'a Spanned<DeValue<'a>>>) -> Table<'a> {
        let table = value.and_then(|v| v.get_ref().as_table());
        if let (Some(value), None) = (value, table) {
            self.wrong(key, &RawValue::File(value), &format!("a table: write [{}]", self.path_of(key)));
        }
        Table {
            context: self.context.clone(),
            table,
            header: value.map(Spanned::span),
            path: self.path_of(key),
            pattern: join(&self.pattern, pattern),
            used: RefCell::default(),
        }
    }

    /// Reports all keys that were not read as unknown.
    pub fn finish(&self) {
        let Some(table) = self.table else { return };
        let used = self.used.borrow();
        for (key, _) in table.iter().filter(|(key, _)| !used.contains(key.get_ref().as_ref())) {
            let name = key.get_ref();
            let place = if self.path.is_empty() { "at the top".to_owned() } else { format!("in [{}]", self.path) };
            let known: Vec<&str> = used.iter().map(String::as_str).collect();
            let mut found = Diagnostic {
                severity: Severity::Error,
                code: UNKNOWN_KEY,
                title: format!("unknown key `{name}` {place}"),
                span: Some(key.span()),
                label: String::new(),
                context: None,
                help: closest(name, &known).map(|known| format!("did you mean `{known}`?")),
            };
            // TOML puts a key under the last [table] above it, which is not what people mean who append a top-level key.
            if !self.path.is_empty() && self.context.root_keys.contains(&name.as_ref()) {
                found.label = format!("…so this is read as {}", self.path_of(name));
                found.context =
                    self.header.clone().map(|span| (span, format!("everything below belongs to [{}]…", self.path)));
                let otherwise =
                    if name == "per_business" { ", or write [plans] default = { concurrent = … }" } else { "" };
                found.help = Some(format!("move `{name}` above the first [table]{otherwise}"));
            }
            self.report().add(found);
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
