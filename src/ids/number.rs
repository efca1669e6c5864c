//! One spelling for a telephone number, wherever two are compared.

use std::borrow::Cow;

/// The fewest digits of a number with its country code; shorter ones are extensions and short codes.
const DIGITS_MIN: usize = 7;
/// The most digits of a number (ITU-T E.164 §6).
const DIGITS_MAX: usize = 15;
/// Separators between digits.
const SEPARATORS: &[char] =
    &[' ', '\u{a0}', '\u{2009}', '\u{202f}', '\t', '-', '\u{2010}', '\u{2011}', '.', '(', ')', '/'];
/// Country codes of one and two digits; all others have three (ITU-T E.164, list of assigned codes).
const SHORT_CODES: &[&str] = &[
    "1", "7", "20", "27", "30", "31", "32", "33", "34", "36", "39", "40", "41", "43", "44", "45", "46", "47", "48",
    "49", "51", "52", "53", "54", "55", "56", "57", "58", "60", "61", "62", "63", "64", "65", "66", "81", "82", "84",
    "86", "90", "91", "92", "93", "94", "95", "98",
];

/// The E.164 form of a number (`+15550001111`), from any spelling: `15550001111`, `+1 (555) 000-1111`, `001…`, `tel:…`, or with
/// the space that form decoding makes of a raw plus. A number needs its country code: otherwise its country is unknown. Other
/// texts, such as a provider's id of a number or a SIP address, are returned unchanged.
pub fn number_key(text: &str) -> Cow<'_, str> {
    if is_plain(text) { Cow::Borrowed(text) } else { Cow::Owned(read(text).unwrap_or_else(|| text.to_owned())) }
}

/// A prefix of numbers (`+90`), from any spelling. `None`: it is not a prefix of numbers.
pub fn prefix_key(text: &str) -> Option<String> {
    let bare: String = text.trim().chars().filter(|c| !SEPARATORS.contains(c)).collect();
    let digits = bare.strip_prefix('+').or_else(|| bare.strip_prefix("00")).unwrap_or(&bare);
    let fits = digits.len() <= DIGITS_MAX && !digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit());
    (fits && !bare.is_empty()).then(|| format!("+{digits}"))
}

/// Whether it is E.164 already: nearly all are.
fn is_plain(text: &str) -> bool {
    text.strip_prefix('+').is_some_and(|digits| {
        (DIGITS_MIN..=DIGITS_MAX).contains(&digits.len())
            && digits.bytes().all(|b| b.is_ascii_digit())
            && !may_have_trunk_zero(digits)
    })
}

/// Whether a zero follows the country code: a trunk prefix, or a part of the number, as in Italy.
fn may_have_trunk_zero(digits: &str) -> bool {
    let code = SHORT_CODES.iter().find(|code| digits.starts_with(**code)).map_or(3, |code| code.len());
    digits.get(code..).is_some_and(|rest| rest.starts_with('0'))
}

fn read(text: &str) -> Option<String> {
    let text = text.trim();
    let text = match text.get(..4) {
        Some(scheme) if scheme.eq_ignore_ascii_case("tel:") => text[4..].split(';').next().unwrap_or_default(),
        _ => text,
    };
    let bare: String = text.chars().filter(|c| !SEPARATORS.contains(c)).collect();
    let (digits, is_international) = match bare.strip_prefix('+') {
        Some(digits) => (digits, true),
        None => match bare.strip_prefix("00").or_else(|| bare.strip_prefix("011").filter(|rest| rest.len() >= 10)) {
            Some(digits) => (digits, true),
            None => (bare.as_str(), false),
        },
    };
    if digits.bytes().all(|b| b.is_ascii_digit()) {
        let is_number = (DIGITS_MIN..=DIGITS_MAX).contains(&digits.len());
        if !is_number || (!is_international && digits.starts_with('0')) {
            return None;
        }
        let spelt = format!("+{digits}");
        // The library knows each country's rules, but is slow: it is used only where they matter.
        return Some(if may_have_trunk_zero(digits) { by_rules(&spelt).unwrap_or(spelt) } else { spelt });
    }
    // An extension, digits of another script.
    if bare.starts_with(['+', '\u{ff0b}']) { by_rules(text) } else { None }
}

fn by_rules(text: &str) -> Option<String> {
    let number = phonenumber::parse(None, text).ok()?;
    Some(number.format().mode(phonenumber::Mode::E164).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_number_has_one_key_however_it_is_spelt() {
        for (number, spellings) in [
            (
                "+15550001111",
                &[
                    "+15550001111",
                    "15550001111",
                    " 15550001111",
                    "+1 (555) 000-1111",
                    "1-555-000-1111",
                    "+1.555.000.1111",
                    "0015550001111",
                    "01115550001111",
                    "tel:+1-555-000-1111;ext=5",
                    "+1 555 000 1111 ext. 5",
                    "\u{ff0b}1 555 000 1111",
                    "+1\u{a0}555\u{a0}000\u{a0}1111\n",
                ][..],
            ),
            ("+442079460018", &["+44 (0)20 7946 0018", "+4402079460018", "44 20 7946 0018", "0044 20 7946 0018"]),
            ("+39066981234", &["+39 06 698 1234", "39066981234"]),
            ("+905321234567", &["+90 0532 123 45 67", "90 532 123 4567"]),
            ("+4930123456", &["+49 (0) 30 / 123456"]),
            ("+6591234567", &["6591234567"]),
        ] {
            for spelling in spellings {
                assert_eq!(number_key(spelling), number, "{spelling:?}");
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_as_it_is() {
        for text in [
            "",
            "+",
            "100",
            "phnum_01jx",
            "PN0123456789abcdef0123456789abcdef",
            "client:alice",
            "sip:+15550001111@example.com",
            "1494404757140276705",
            "020 7946 0018",
            "whatsapp:+15550001111",
            "anonymous",
        ] {
            assert_eq!(number_key(text), text);
        }
    }

    #[test]
    fn beginnings_are_read_likewise() {
        for (text, key) in [("+90", "+90"), ("90", "+90"), ("0090", "+90"), ("+1 (809)", "+1809"), ("+", "+")] {
            assert_eq!(prefix_key(text).as_deref(), Some(key), "{text:?}");
        }
        for bad in ["", " ", "+0", "abc", "+90x", "+1234567890123456"] {
            assert_eq!(prefix_key(bad), None, "{bad:?}");
        }
    }
}
