//! Identifiers, validated once at the boundary.

mod number;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use ulid::Ulid;

pub use number::{number_key, prefix_key};

/// The longest external identifier, in bytes.
pub const ID_BYTES_MAX: usize = 128;

/// Separators of ids in paths, limit keys and lists; and the wildcard.
const RESERVED: &[u8] = b"/\\|,*";

/// The reason why a text is not an identifier. The sentence is fit to be shown to a caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} must be 1 to {ID_BYTES_MAX} visible ASCII characters, none of them a slash, backslash, comma, asterisk or vertical bar"
)]
pub struct IdError {
    what: &'static str,
}

fn checked(what: &'static str, text: &str) -> Result<Arc<str>, IdError> {
    let fits = !text.is_empty()
        && text.len() <= ID_BYTES_MAX
        // A client that normalises paths would remove these.
        && !matches!(text, "." | "..")
        && text.bytes().all(|b| b.is_ascii_graphic() && !RESERVED.contains(&b));
    if fits { Ok(Arc::from(text)) } else { Err(IdError { what }) }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks the text: 1 to [`ID_BYTES_MAX`] visible ASCII characters, none of those that separate ids.
            pub fn parse(text: &str) -> Result<Self, IdError> {
                checked($what, text).map(Self)
            }
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = String::deserialize(d)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

text_id!(
    /// The tenant that a call belongs to.
    BusinessId,
    "a business id"
);
text_id!(
    /// The name of an account in the config: one set of credentials at one provider.
    AccountName,
    "an account name"
);

impl BusinessId {
    /// The business of every request when no rule is configured.
    pub fn default_business() -> Self {
        Self(Arc::from("default"))
    }
}

macro_rules! own_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// A fresh one; ids made later sort later.
            pub fn new() -> Self {
                Self(Arc::from(format!(concat!($prefix, "{}"), Ulid::new().to_string().to_lowercase())))
            }
            /// Parses an id that this program made; `None` for any other text.
            pub fn parse(text: &str) -> Option<Self> {
                let ulid = text.strip_prefix($prefix)?;
                Ulid::from_string(ulid).ok()?;
                Some(Self(Arc::from(text)))
            }
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

own_id!(
    /// A call's id. Also the id of its lease and the primary key of its record.
    CallId,
    "c_"
);
own_id!(
    /// A rejection's id; in the response, the log and the database.
    RejectionId,
    "rf_"
);

/// An external id of a call, with its kind. Kinds are global: ElevenLabs' `callSid` and Twilio's `CallSid` are the same kind,
/// which is how one call is recognised at both.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Alias {
    /// `call_sid`, `conversation_id`, `sip_call_id`, … as the provider descriptions name them.
    pub kind: String,
    /// The id itself.
    pub id: String,
}

impl Alias {
    /// An alias, if the id is valid: not empty, at most [`ID_BYTES_MAX`] bytes, no control characters.
    pub fn new(kind: &str, id: &str) -> Option<Self> {
        let fits = !id.is_empty() && id.len() <= ID_BYTES_MAX && !id.chars().any(char::is_control);
        fits.then(|| Self { kind: kind.to_owned(), id: id.to_owned() })
    }
}

/// A telephone number masked for logs and screens: the first four and the last two digits. Short numbers and SIP users are hidden
/// completely.
pub fn mask_number(number: &str) -> String {
    let chars: Vec<char> = number.chars().collect();
    if chars.len() < 9 {
        return "•".repeat(chars.len().min(8));
    }
    let (head, tail) = (&chars[..4], &chars[chars.len() - 2..]);
    let hidden = "•".repeat(chars.len() - 6);
    format!("{}{hidden}{}", head.iter().collect::<String>(), tail.iter().collect::<String>())
}

/// A text with every telephone number masked that is written with a plus: `+` (or `%2B`) and at least seven digits, with the
/// usual separators.
pub fn mask_numbers_in(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['+', '%']) {
        let plus = if rest[at..].starts_with('+') { 1 } else { 3 };
        let is_plus = plus == 1 || rest[at..].to_ascii_lowercase().starts_with("%2b");
        if !is_plus {
            shown.push_str(&rest[..at + 1]);
            rest = &rest[at + 1..];
            continue;
        }
        let after = &rest[at + plus..];
        let between = |c: char| c.is_ascii_digit() || matches!(c, ' ' | '(' | ')' | '-' | '.');
        let run =
            after[..after.find(|c| !between(c)).unwrap_or(after.len())].trim_end_matches(|c: char| !c.is_ascii_digit());
        shown.push_str(&rest[..at]);
        if run.bytes().filter(u8::is_ascii_digit).count() >= 7 {
            shown.push_str(&mask_number(&format!("+{run}")));
        } else {
            shown.push_str(&rest[at..at + plus + run.len()]);
        }
        rest = &after[run.len()..];
    }
    shown.push_str(rest);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_ids_are_checked_once() {
        assert_eq!(BusinessId::parse("acme").map(|b| b.to_string()), Ok("acme".to_owned()));
        for bad in [
            "",
            "a b",
            "a/b",
            "ü",
            "a\n",
            "*",
            "a*",
            "a|",
            "|",
            "a,b",
            "a\\b",
            "a\0",
            "a\x7f",
            "\u{200b}a",
            &"x".repeat(129),
        ] {
            assert!(BusinessId::parse(bad).is_err() && AccountName::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn own_ids_come_back_and_others_do_not() {
        let id = CallId::new();
        assert_eq!(CallId::parse(id.as_str()), Some(id));
        assert_eq!(CallId::parse("c_nonsense"), None);
        assert_eq!(CallId::parse(RejectionId::new().as_str()), None);
    }

    #[test]
    fn numbers_are_masked() {
        assert_eq!(mask_number("+15550001101"), "+155••••••01");
        assert_eq!(mask_number("1234"), "••••");
        assert_eq!(mask_number(""), "");
        for (text, shown) in [
            ("from +15550001111 to sip:+15550002222@x", "from +155••••••11 to sip:+155••••••22@x"),
            ("whatsapp:+15550001111", "whatsapp:+155••••••11"),
            ("a=%2B15550001111&b=100%25", "a=+155••••••11&b=100%25"),
            ("+1 (555) 000-1111, at 10", "+1 (•••••••••••11, at 10"),
            ("1 + 1 = 2, C++, +44", "1 + 1 = 2, C++, +44"),
            ("2026-01-02T03:04:05+00:00", "2026-01-02T03:04:05+00:00"),
            ("ü+", "ü+"),
            ("%", "%"),
            ("", ""),
        ] {
            assert_eq!(mask_numbers_in(text), shown);
        }
    }
}
