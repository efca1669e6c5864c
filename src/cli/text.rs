//! Output for people: tables that fit a terminal, times and ages.

use serde_json::Value;

/// The maximum width of a table, in columns.
pub(super) const WIDTH: usize = 100;

/// A time in an answer, in seconds since 1970.
pub(super) fn time(value: &Value) -> Option<i64> {
    value.as_str()?.parse::<jiff::Timestamp>().ok().map(|t| t.as_second())
}

/// A duration in its largest units.
pub(super) fn span(secs: i64) -> String {
    let secs = secs.max(0);
    match secs {
        0..60 => format!("{secs}s"),
        60..3600 => format!("{}m{:02}s", secs / 60, secs % 60),
        3600..86_400 => format!("{}h{:02}m", secs / 3600, secs % 3600 / 60),
        _ => format!("{}d{:02}h", secs / 86_400, secs % 86_400 / 3600),
    }
}

/// Parses `90s`, `15m`, `2h`, `3d`, `90` into seconds.
///
/// # Errors
/// A sentence about the mistake.
pub(super) fn read_span(text: &str) -> Result<u32, String> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit {
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err("write it as 90s, 15m, 2h or 3d".to_owned()),
    };
    let count: u32 = digits.parse().map_err(|_| "write it as 90s, 15m, 2h or 3d".to_owned())?;
    count.checked_mul(factor).ok_or_else(|| "it is too large".to_owned())
}

/// The text of a field; `-` if it is missing.
pub(super) fn field<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or("-")
}

/// The list of a field.
pub(super) fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Shortens a text to one line of at most `width` columns.
pub(super) fn cut(text: &str, width: usize) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    if text.chars().count() <= width {
        return text.chars().map(plain).collect();
    }
    let kept = text.chars().take(width.saturating_sub(1)).map(plain);
    kept.chain(std::iter::once('…')).collect()
}

/// A table; `columns` are names and maximum widths. Wider cells are shortened.
pub(super) fn table(columns: &[(&str, usize)], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = columns.iter().map(|(title, _)| (*title).to_owned()).collect();
    let all = || std::iter::once(&head).chain(rows);
    let width_of = |n: usize, most: usize| {
        let widest = all().filter_map(|row| row.get(n)).map(|cell| cell.chars().count()).max();
        widest.unwrap_or(0).min(most)
    };
    let widths: Vec<usize> = columns.iter().enumerate().map(|(n, (_, most))| width_of(n, *most)).collect();
    let mut out = String::new();
    for row in all() {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{:<width$}", cut(cell, *width)));
        out.push_str(cells.collect::<Vec<_>>().join(" ").trim_end());
        out.push('\n');
    }
    out
}

/// Wraps a text behind a head, between words, at `width` columns; further lines are indented to the text.
pub(super) fn wrap(head: &str, text: &str, width: usize) -> String {
    let indent = " ".repeat(head.chars().count());
    let mut lines = vec![head.to_owned()];
    let mut is_begun = false;
    for word in text.split_whitespace() {
        let now = lines.last().map_or(0, |line| line.chars().count());
        if is_begun && now + 1 + word.chars().count() > width {
            lines.push(indent.clone());
            is_begun = false;
        }
        if let Some(line) = lines.last_mut() {
            if is_begun {
                line.push(' ');
            }
            line.push_str(word);
            is_begun = true;
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_written() {
        for (text, secs) in [("90", 90), ("90s", 90), ("15m", 900), ("2h", 7200), ("3d", 259_200)] {
            assert_eq!(read_span(text), Ok(secs), "{text}");
        }
        for text in ["", "m", "1w", "-5s", "1h30m", "99999999999d", "4294967295d"] {
            assert!(read_span(text).is_err(), "{text}");
        }
        assert_eq!([span(5), span(65), span(3660), span(90_000)], ["5s", "1m05s", "1h01m", "1d01h"]);
    }

    #[test]
    fn a_table_is_as_wide_as_it_must_be_and_no_wider_than_it_may() {
        let rows =
            [vec!["a".to_owned(), "an error\nof two lines".to_owned()], vec!["ünïcode".to_owned(), String::new()]];
        let text = table(&[("ID", 5), ("WHY", 12)], &rows);
        assert_eq!(text, "ID    WHY\na     an error of…\nünïc…\n");
        assert_eq!(wrap("a  ", "one two three", 10), "a  one two\n   three");
    }
}
