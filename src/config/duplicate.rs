//! Finds the first of two duplicate keys. The parser reports the second only.

use std::ops::Range;

/// The place of the first of two equal keys or table headers, the second of which is at `second`.
pub(super) fn first_place(text: &str, second: &Range<usize>) -> Option<Range<usize>> {
    let before = text.get(..second.start)?;
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = text.get(start..)?.split('\n').next()?;
    let header = header(line);
    if header.is_none()
        && let Some(at) = same_line(text.get(start..second.start)?, text.get(second.clone())?)
    {
        return Some(start + at.start..start + at.end);
    }
    let wanted = match header {
        Some(header) => normalised(header),
        None => normalised(key(line)?),
    };
    let (mut at, mut found, mut in_table) = (0, None, 0);
    for one in before.get(..start)?.split_inclusive('\n') {
        let (its_header, its_key) = (self::header(one), key(one));
        match (header, its_header) {
            (Some(_), Some(name)) if found.is_none() && normalised(name) == wanted => {
                found = Some(place(one, name, at))
            }
            // A header starts another table.
            (None, Some(_)) => (found, in_table) = (None, at),
            (None, None) if found.is_none() => {
                found = its_key.filter(|name| normalised(name) == wanted).map(|name| place(one, name, at));
            }
            _ => {}
        }
        at += one.len();
    }
    found.filter(|place| place.start >= in_table)
}

fn place(line: &str, part: &str, line_at: usize) -> Range<usize> {
    let at = line_at + line.find(part).unwrap_or_default();
    at..at + part.len()
}

/// The name in a table header.
fn header(line: &str) -> Option<&str> {
    let line = line.trim_start().strip_prefix('[')?;
    // Arrays of tables may repeat.
    let name = line.split(']').next().filter(|name| !name.starts_with('['))?;
    Some(name.trim())
}

/// The key in a line that sets one.
fn key(line: &str) -> Option<&str> {
    let (key, _) = line.split_once('=')?;
    let key = key.trim();
    (!key.is_empty() && !key.starts_with('#')).then_some(key)
}

/// A key without spaces and quotes around its parts.
fn normalised(key: &str) -> String {
    key.split('.').map(|part| part.trim().trim_matches(['"', '\''])).collect::<Vec<_>>().join(".")
}

/// An equal key earlier in the same inline table.
fn same_line(before: &str, second: &str) -> Option<Range<usize>> {
    let table = before.rfind('{')? + 1;
    let mut at = table;
    for part in before.get(table..)?.split_inclusive(',') {
        if let Some(name) = key(part).filter(|name| normalised(name) == normalised(second)) {
            return Some(place(part, name, at));
        }
        at += part.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first place, of a text in which `«` and `»` stand around both.
    fn found(marked: &str) {
        let mut places = Vec::new();
        let mut text = String::new();
        for c in marked.chars() {
            match c {
                '«' => places.push(text.len()..0),
                '»' => places.iter_mut().last().unwrap().end = text.len(),
                c => text.push(c),
            }
        }
        let [first, second] = &places[..] else { panic!("{places:?}") };
        assert_eq!(first_place(&text, second).as_ref(), Some(first), "{text}");
    }

    #[test]
    fn the_first_of_two_equal_keys_is_found() {
        found("«concurrent» = 1\nrate = \"5/s\"\n«concurrent» = 2\n");
        found("concurrent = 0\n[accounts.a]\n«concurrent» = 1 # one\n\n  «concurrent»=2\n");
        found("[plans]\nPRO = 1\n[businesses.a]\nmax_calls = 1\n[businesses.b]\n«\"max_calls\"» = 1\n«max_calls» = 2");
        found("[«accounts.elevenlabs»]\napi_key = \"x\"\n[store]\n[«accounts.elevenlabs»]\n");
        found("[plans]\nPRO = { «concurrent» = 1, rate = \"1/s\", «concurrent» = 2 }\n");
    }

    #[test]
    fn what_cannot_be_found_is_none() {
        let text = "[a]\nb.c = 1\n[a.b]\n[a]\nx = 1\n";
        assert_eq!(first_place(text, &(15..18)), None);
        assert_eq!(first_place("", &(0..0)), None);
        assert_eq!(first_place("x", &(5..9)), None);
    }
}
