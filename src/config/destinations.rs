//! The destination rules: `[destinations]`, and the tables `destinations` of plans and businesses.

use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use super::inputs::{digest_of_path, digest_of_unreadable};
use super::table::Table;
use crate::destinations::{Country, DestinationSettings, Kind, NumberSet, Prefix, Rules, TrialDestinations, Validate};
use crate::destinations::{Hours, Zone};

pub(super) fn read(root: &Table<'_>, folder: &Path) -> DestinationSettings {
    let table = root.table("destinations");
    let rules = rules(&table);
    let validate = table.word("validate", &Validate::WORDS);
    let country = table.parsed("default_country", Country::parse);
    let zone = table.parsed("default_timezone", Zone::parse);
    let only = table.texts("only_numbers").map(|list| only(&table, &list, country));
    let file = table.text("do_not_call_file").map(|path| file(&table, &folder.join(path)));
    if only.is_some() && root.has("public_url") {
        let title = "`destinations.only_numbers` is set together with `public_url`: only these numbers are called";
        let help = "it is meant for trials; remove it where the app serves customers";
        table.report().warning("W024", table.span("only_numbers"), title, help);
    }
    table.finish();
    let says_something = country.is_some() || zone.is_some() || only.is_some() || file.is_some() || !rules.is_empty();
    let usual = if says_something || !table.is_absent() { Validate::Possible } else { Validate::Off };
    DestinationSettings {
        validate: validate.unwrap_or(usual),
        country,
        rules,
        only,
        zone,
        file: Arc::new(file.unwrap_or_default()),
    }
}

/// The rules in a table `destinations`.
pub(super) fn rules(table: &Table<'_>) -> Rules {
    let prefixes = |key: &str| each(table, key, "E003", Prefix::parse);
    let kinds = |key: &str| each(table, key, "E005", kind);
    let quiet_hours = table.texts("quiet_hours").map(|lines| {
        Hours::try_from(lines).unwrap_or_else(|error| {
            let title = format!("`{}`: {error}", table.path_of("quiet_hours"));
            table.report().error("E003", table.span("quiet_hours"), title, "");
            Hours::default()
        })
    });
    Rules {
        allowed_prefixes: allowed(table, "allowed_prefixes", prefixes("allowed_prefixes")),
        denied_prefixes: prefixes("denied_prefixes").unwrap_or_default(),
        allowed_types: allowed(table, "allowed_types", kinds("allowed_types")),
        denied_types: kinds("denied_types").unwrap_or_default(),
        quiet_hours: quiet_hours.unwrap_or_default(),
    }
}

/// A list of allowed values. An empty one is an error: it would allow everything.
fn allowed<T>(table: &Table<'_>, key: &str, list: Option<Vec<T>>) -> Vec<T> {
    let list = list.unwrap_or_default();
    if list.is_empty() && table.has(key) {
        let title = format!("`{}` is an empty list, so nothing would be allowed", table.path_of(key));
        table.report().error("E004", table.span(key), title, "name some, or remove it: then all are allowed");
    }
    list
}

fn each<T>(
    table: &Table<'_>,
    key: &str,
    code: &'static str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<Vec<T>> {
    let read = |text: &String| {
        let error = |why| table.report().error(code, table.span(key), format!("`{}`: {why}", table.path_of(key)), "");
        parse(text).map_err(error).ok()
    };
    Some(table.texts(key)?.iter().filter_map(read).collect())
}

fn kind(text: &str) -> Result<Kind, String> {
    let known = || Kind::WORDS.map(|(word, _)| word).join(", ");
    let found = Kind::WORDS.iter().find(|(word, _)| *word == text).map(|(_, kind)| *kind);
    found.ok_or_else(|| format!("{text:?} is not a type of number; known: {}", known()))
}

fn only(table: &Table<'_>, list: &[String], country: Option<Country>) -> TrialDestinations {
    let mut only = TrialDestinations::default();
    for text in list {
        if let Err(why) = only.add(text, country) {
            let title = format!("`{}`: {why}", table.path_of("only_numbers"));
            table.report().error("E003", table.span("only_numbers"), title, "");
        }
    }
    only
}

/// Reads the do-not-call file. One bad line is an error: with a part of the list, people would be called who asked not to be.
fn file(table: &Table<'_>, path: &Path) -> NumberSet {
    // Digest before reading, so that a change in between is noticed.
    table.note(path.to_owned(), digest_of_path(path).unwrap_or_else(|error| digest_of_unreadable(&error)));
    let read = std::fs::File::open(path).map_err(|error| error.to_string());
    match read.and_then(|file| NumberSet::read(BufReader::new(file))) {
        Ok(numbers) => numbers,
        Err(why) => {
            let title = format!("cannot read {} (`{}`): {why}", path.display(), table.path_of("do_not_call_file"));
            table.report().error(
                "E011",
                table.span("do_not_call_file"),
                title,
                "write one number with its country code per line, as in +905321234567",
            );
            NumberSet::default()
        }
    }
}
