//! Reports all mistakes of a description at once, although the TOML deserialiser stops at the first.
//!
//! Each mistake is overwritten with blanks and the rest is parsed again. Offsets do not change, so each mistake keeps its line.

use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::de::DeTable;

/// The maximum mistakes reported; a file with more is probably the wrong file.
const MISTAKES_MAX: usize = 20;

/// Deserialises a text, or reports its mistakes.
pub(super) fn read<T: DeserializeOwned>(text: &str) -> Result<T, Vec<String>> {
    let (_, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let mut errors = errors;
        return Err(errors
            .iter_mut()
            .take(MISTAKES_MAX)
            .map(|error| {
                error.set_input(Some(text));
                error.to_string().trim_end().to_owned()
            })
            .collect());
    }
    let (mut rest, mut mistakes) = (text.to_owned(), Vec::new());
    loop {
        let error = match toml::from_str(&rest) {
            Ok(read) if mistakes.is_empty() => return Ok(read),
            Ok(_) => return Err(mistakes),
            Err(error) => error,
        };
        let unknown = error.message().starts_with("unknown field");
        let place = error.span();
        let section = place.as_ref().and_then(|place| section_of(&rest, place.start));
        // Overwriting the only table of a name makes it missing; that is no mistake of its own.
        let is_echo = !mistakes.is_empty() && section.is_none() && error.message().starts_with("missing field");
        let is_broken = !mistakes.is_empty() && !DeTable::parse_recoverable(&rest).1.is_empty();
        if !is_echo && !is_broken {
            mistakes.push(error.to_string().trim_end().to_owned());
        }
        let wrong = match (place, section) {
            (Some(place), _) if unknown => line_of(&rest, place.start),
            (Some(_), Some(section)) => section,
            _ => return Err(mistakes),
        };
        if is_echo
            || is_broken
            || mistakes.len() >= MISTAKES_MAX
            || rest.get(wrong.clone()).is_none_or(|s| s.trim().is_empty())
        {
            return Err(mistakes);
        }
        let painted: String = rest[wrong.clone()].bytes().map(|b| if b == b'\n' { '\n' } else { ' ' }).collect();
        rest.replace_range(wrong, &painted);
    }
}

fn line_of(text: &str, at: usize) -> Range<usize> {
    let start = text[..at].rfind('\n').map_or(0, |n| n + 1);
    start..text[at..].find('\n').map_or(text.len(), |n| at + n)
}

/// The element of an array of tables (`[[name]]`) around an offset, with its sub-tables.
fn section_of(text: &str, at: usize) -> Option<Range<usize>> {
    let (mut start, mut found, mut name) = (0, None::<usize>, String::new());
    for line in text.split_inclusive('\n') {
        let header = line.trim_end().trim_start_matches('[').split(']').next().unwrap_or_default();
        let is_header = line.starts_with('[');
        let is_below = !name.is_empty() && header.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('.'));
        if is_header && !is_below {
            if start > at {
                return found.map(|found| found..start);
            }
            found = line.starts_with("[[").then_some(start);
            name = if found.is_some() { header.to_owned() } else { String::new() };
        }
        start += line.len();
    }
    found.map(|found| found..text.len())
}
