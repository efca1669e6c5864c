//! Paths of requests: patterns that capture, and escapes. Pure.

use std::borrow::Cow;
use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Deserializer};

/// The maximum number of paths that one pattern expands to.
const SPELLINGS_MAX: usize = 64;

/// A path with captures: `/Accounts/{account_sid}/Calls/{call_sid}.json`. `(a|b)` is an alternative, which may be empty, as in `(|.json)`, and
/// `/**` at the beginning matches any number of segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPattern {
    written: String,
    spellings: Vec<Spelling>,
}

/// One path that a pattern expands to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Spelling {
    segments: Vec<Segment>,
    /// Whether the pattern begins with `/**`, which is not among the segments: any may precede them.
    is_end: bool,
}

/// A path, with properties that rule out most patterns quickly.
#[derive(Debug, Clone, Copy)]
pub struct Reading<'p> {
    text: &'p str,
    slashes: usize,
    /// The length of the last segment; none if it has an escape.
    last_bytes: Option<usize>,
}

impl<'p> Reading<'p> {
    /// The path.
    pub fn as_str(self) -> &'p str {
        self.text
    }
}

impl<'p> From<&'p str> for Reading<'p> {
    fn from(text: &'p str) -> Self {
        let slashes = text.bytes().filter(|byte| *byte == b'/').count();
        let last = text.bytes().rev().take_while(|byte| *byte != b'/');
        let (bytes, is_escaped) = last.fold((0, false), |(n, escaped), byte| (n + 1, escaped || byte == b'%'));
        Self { text, slashes, last_bytes: (!is_escaped).then_some(bytes) }
    }
}

/// A segment between two slashes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Segment {
    before: String,
    /// The name of the capture, and the text after it.
    capture: Option<(String, String)>,
}

impl Spelling {
    fn new(written: &str) -> Self {
        let (text, is_end) = written.strip_prefix("/**").map_or((written, false), |end| (end, true));
        let segments = text.split('/').skip(1).map(|segment| match segment.split_once('{') {
            Some((before, rest)) => {
                let (name, after) = rest.split_once('}').unwrap_or((rest, ""));
                Segment { before: before.to_owned(), capture: Some((name.to_owned(), after.to_owned())) }
            }
            None => Segment { before: segment.to_owned(), capture: None },
        });
        Self { segments: segments.collect(), is_end }
    }

    /// Compares from the path's end, where most paths differ. Each capture is passed to `found`.
    fn fits(&self, path: Reading<'_>, same: fn(&str, &str) -> bool, mut found: impl FnMut(&str, &str)) -> bool {
        let length = self.segments.len();
        if path.slashes < length || (path.slashes > length && !self.is_end) {
            return false;
        }
        let fixed = self.segments.last().filter(|last| last.capture.is_none());
        if fixed.zip(path.last_bytes).is_some_and(|(last, bytes)| last.before.len() != bytes) {
            return false;
        }
        let mut left = path.text;
        for segment in self.segments.iter().rev() {
            // A plain loop: segments are short, and substring searchers are made for long texts.
            let Some(slash) = left.bytes().rposition(|byte| byte == b'/') else { return false };
            let written = &left[slash + 1..];
            left = &left[..slash];
            let got = percent_decode(written);
            let Some((name, after)) = &segment.capture else {
                if !same(&segment.before, &got) {
                    return false;
                }
                continue;
            };
            let parts = got.split_at_checked(segment.before.len()).and_then(|(head, tail)| {
                let (value, tail) = tail.split_at_checked(tail.len().checked_sub(after.len())?)?;
                Some((head, value, tail))
            });
            match parts {
                // `Calls/CA1.json` must not match as a conference named `CA1.json`, nor an empty capture.
                Some((head, value, tail)) if !value.is_empty() && same(&segment.before, head) && same(after, tail) => {
                    found(name, value);
                }
                _ => return false,
            }
        }
        self.is_end || left.is_empty()
    }
}

impl PathPattern {
    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.written
    }

    /// Parses a pattern; the error is a sentence for the author of a provider description.
    pub fn parse(written: &str) -> Result<Self, String> {
        if !written.starts_with('/') {
            return Err(format!("path {written:?} must start with a slash"));
        }
        let mut spellings = vec![written.to_owned()];
        while let Some(at) = spellings.iter().position(|one| one.contains('(')) {
            let one = spellings.swap_remove(at);
            let whole = one.split_once('(').and_then(|(before, rest)| Some((before, rest.split_once(')')?)));
            let (before, (words, after)) =
                whole.ok_or_else(|| format!("path {written:?} opens a parenthesis and does not close it"))?;
            spellings.extend(words.split('|').map(|word| format!("{before}{word}{after}")));
            if spellings.len() > SPELLINGS_MAX {
                return Err(format!("path {written:?} matches more than {SPELLINGS_MAX} paths"));
            }
        }
        let spellings = spellings.iter().map(|one| Spelling::new(one)).collect();
        Ok(Self { written: written.to_owned(), spellings })
    }

    /// The captures (percent-decoded) if a path matches.
    pub fn captures<'p>(&self, path: impl Into<Reading<'p>>) -> Option<BTreeMap<String, String>> {
        self.captures_where(path.into(), |wanted, got| wanted == got)
    }

    /// The captures of a path that matches in any case of its letters; captures keep theirs.
    pub fn captures_any_case<'p>(&self, path: impl Into<Reading<'p>>) -> Option<BTreeMap<String, String>> {
        self.captures_where(path.into(), str::eq_ignore_ascii_case)
    }

    /// Whether a path matches, ignoring the case of its letters.
    pub fn fits_any_case<'p>(&self, path: impl Into<Reading<'p>>) -> bool {
        let path = path.into();
        self.spellings.iter().any(|one| one.fits(path, str::eq_ignore_ascii_case, |_, _| {}))
    }

    fn captures_where(&self, path: Reading<'_>, same: fn(&str, &str) -> bool) -> Option<BTreeMap<String, String>> {
        self.spellings.iter().find_map(|one| {
            let mut found = BTreeMap::new();
            one.fits(path, same, |name, value| drop(found.insert(name.to_owned(), value.to_owned()))).then_some(found)
        })
    }
}

impl<'de> Deserialize<'de> for PathPattern {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

/// The maximum rounds of unescaping: a server behind a server behind a server.
const UNESCAPED_MAX: usize = 4;

/// Normalises a path as servers do: without empty and dot segments and parameters (`;…`), and with letters unescaped. An escaped slash
/// stays part of its segment. Compare the result ignoring case, because some servers do. All decisions about a path use it; the path
/// is forwarded unchanged.
pub fn normal(path: &str) -> String {
    let mut segments = Vec::new();
    for segment in path.split('/') {
        let decoded = percent_decode(segment);
        match decoded.split(';').next().unwrap_or_default() {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            // What was unescaped once is not unescaped again.
            bare => segments.push(bare.replace('%', "%25").replace('/', "%2f")),
        }
    }
    format!("/{}", segments.join("/"))
}

/// The normal form, and then the readings of more lenient servers: an escaped slash or a backslash as a separator, double escapes
/// undone, and the path ended by an escaped `?`, `#` or NUL. The first one is the usual reading.
pub fn readings(path: &str) -> Readings<'_> {
    if is_plain(path) {
        return Readings::Plain(path.into());
    }
    let mut readings = vec![normal(path)];
    let mut add = |path: &str| {
        let reading = normal(path);
        if !readings.contains(&reading) {
            readings.push(reading);
        }
    };
    let mut written = path.to_owned();
    for _ in 0..UNESCAPED_MAX {
        if written.contains('\\') {
            add(&written.replace('\\', "/"));
        }
        let Cow::Owned(decoded) = percent_decode(&written) else { break };
        if decoded == written {
            break;
        }
        add(&decoded);
        if let Some(end) = decoded.find(['?', '#', '\0']) {
            add(&decoded[..end]);
        }
        written = decoded;
    }
    if written.contains('\\') {
        add(&written.replace('\\', "/"));
    }
    Readings::Odd(readings)
}

/// The readings of a path. A plain one is not copied.
#[derive(Debug)]
pub enum Readings<'p> {
    /// The path has one reading, as it is written.
    Plain(Reading<'p>),
    /// The usual reading, and then those of more lenient servers.
    Odd(Vec<String>),
}

impl Readings<'_> {
    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = Reading<'_>> {
        let (plain, odd) = match self {
            Self::Plain(path) => (Some(*path), &[][..]),
            Self::Odd(all) => (None, &all[..]),
        };
        plain.into_iter().chain(odd.iter().map(|one| one.as_str().into()))
    }
}

/// Whether it has one reading only: no escapes, parameters, backslashes, and no empty or dot segment.
fn is_plain(path: &str) -> bool {
    let mut before = b'/';
    path.starts_with('/')
        && path.bytes().chain([b'/']).skip(1).all(|byte| {
            // Segments that begin with a dot are treated as odd without a closer look.
            let is_odd = matches!(byte, b'%' | b'\\' | b';') || (before == b'/' && matches!(byte, b'/' | b'.'));
            before = byte;
            !is_odd
        })
}

/// Whether a path leaves its prefix in any reading, or is escaped more often than we unescape.
pub fn climbs(path: &str) -> bool {
    let mut written = path.to_owned();
    for _ in 0..=UNESCAPED_MAX {
        let mut depth = 0_usize;
        for segment in written.split(['/', '\\']) {
            match segment.split(';').next().unwrap_or_default() {
                "" | "." => {}
                ".." if depth == 0 => return true,
                ".." => depth -= 1,
                _ => depth += 1,
            }
        }
        let decoded = percent_decode(&written).into_owned();
        if decoded == written {
            return false;
        }
        written = decoded;
    }
    true
}

/// Removes what some servers drop at the end of a segment: dots, blanks and control characters.
pub fn trimmed(path: &str) -> String {
    let is_dropped = |c: char| c == '.' || c.is_whitespace() || c.is_control();
    path.split('/').map(|segment| segment.trim_end_matches(is_dropped)).collect::<Vec<_>>().join("/")
}

/// Decodes the escapes of a path or a part of one.
pub fn percent_decode(text: &str) -> Cow<'_, str> {
    if text.contains('%') { percent_decode_str(text).decode_utf8_lossy() } else { Cow::Borrowed(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_however_it_is_written() {
        for odd in [
            "/webhooks/twilio/voice",
            "/webhooks/twilio/voice/",
            "//webhooks//twilio/voice",
            "/webhooks/./twilio/voice",
            "/x/../webhooks/twilio/voice",
            "/../webhooks/twilio/voice",
            "/webhooks/twilio/voice;a=1",
            "/webhooks;x/twilio/v%6fice",
            "/webhooks/%2e/twilio/voice",
            "/x/%2E%2e/webhooks/twilio/voice",
        ] {
            assert_eq!(normal(odd), "/webhooks/twilio/voice", "{odd}");
        }
        for ambiguous in [
            "/webhooks%2ftwilio%2Fvoice",
            "/webhooks/twilio/voice%2f",
            "/webhooks%5ctwilio/voice",
            "/webhooks\\twilio\\voice",
            "/webhooks%252ftwilio/voice",
            "/webhooks/twilio/v%256fice",
            "/webhooks/twilio/voice%3fx",
            "/webhooks/twilio/voice%23",
            "/webhooks/twilio/voice%00",
            "/x%2f..%2fwebhooks/twilio/voice",
            "/webhooks/x%2f%2e%2e/twilio/voice",
        ] {
            assert_ne!(normal(ambiguous), "/webhooks/twilio/voice", "{ambiguous}");
            assert!(
                readings(ambiguous).iter().any(|one| one.as_str() == "/webhooks/twilio/voice"),
                "{ambiguous}: {:?}",
                readings(ambiguous)
            );
        }
        assert!(matches!(readings("/plain/path"), Readings::Plain(path) if path.as_str() == "/plain/path"));
        assert_eq!(readings("/50%/x").iter().count(), 1, "no escape at all");
    }

    #[test]
    fn a_path_that_is_taken_for_plain_reads_as_it_is_written() {
        let parts = ["a", "b.c", ".", "..", ".a", "", "%41", "a%2fb", "a;b", "a\\b", "a%"];
        let mut plain = 0;
        for (first, second, third) in parts
            .iter()
            .flat_map(|a| parts.iter().map(move |b| (a, b)))
            .flat_map(|(a, b)| parts.iter().map(move |c| (a, b, c)))
        {
            let path = format!("/{first}/{second}/{third}");
            if is_plain(&path) {
                plain += 1;
                assert_eq!(normal(&path), path);
            }
        }
        assert_eq!(plain, 2 * 2 * 2);
        assert!(!is_plain("/a/") && !is_plain("//a") && !is_plain("a") && !is_plain(""));
    }

    #[test]
    fn a_path_fits_where_it_captures() {
        let patterns = ["/{version}/a(-|_)b/{id}.json", "/**/x{id}", "/a", "/**/a/b", "/{a}", "/"];
        let paths =
            ["/v1/a-b/1.json", "/v1/A_B/.json", "/q/x1", "/x", "/X2/", "/a", "/A", "/a/b", "/z/%61/b", "/", "", "a"];
        for pattern in patterns {
            let pattern = PathPattern::parse(pattern).unwrap();
            for path in paths {
                assert_eq!(
                    pattern.fits_any_case(path),
                    pattern.captures_any_case(path).is_some(),
                    "{pattern:?} {path}"
                );
            }
        }
    }

    #[test]
    fn a_path_that_leaves_its_place_is_seen_however_it_is_written() {
        for path in ["/../a", "/x/../../a", "/%2e%2e/a", "/..%2fa", "/..%5ca", "/%252e%252e/a", "/x/..;a=1/../b"] {
            assert!(climbs(path), "{path}");
        }
        for path in ["/a", "/a/../b", "/a/b/../../c", "/...", "/a%20b", "/50%", "/a/..b"] {
            assert!(!climbs(path), "{path}");
        }
        assert!(climbs("/a%252525252fb"), "nobody knows what that is");
        assert_eq!(trimmed("/webhooks\t/twilio. /voice..\n"), "/webhooks/twilio/voice");
    }

    #[test]
    fn paths_capture() {
        let pattern = |p: &str| PathPattern::parse(p).unwrap();
        let calls = pattern("/2010-04-01/Accounts/{account_sid}/Calls/{call_sid}.json");
        let found = calls.captures("/2010-04-01/Accounts/AC1/Calls/CA%201+.json").unwrap();
        assert_eq!((found["account_sid"].as_str(), found["call_sid"].as_str()), ("AC1", "CA 1+"));
        assert_eq!(calls.captures("/2010-04-01/Accounts/AC1/Calls/a=b&c%.json").unwrap()["call_sid"], "a=b&c%");
        assert_eq!(calls.captures("/2010-04-01/Accounts/AC1/Calls/CA1"), None);
        assert_eq!(calls.captures("/2010-04-01/Accounts/AC1/Calls/CA1.json/Streams.json"), None);
        assert_eq!(calls.captures("/2010-04-01/Accounts//Calls/CA1.json"), None);
        assert!(pattern("/a").captures("/a").unwrap().is_empty());
        assert_eq!(pattern("/a").captures("/a/"), None);
    }

    #[test]
    fn a_family_of_paths_is_said_once() {
        let calls = PathPattern::parse("/**/Accounts/{account_sid}/Calls(|.{format})").unwrap();
        for (path, sid) in [
            ("/2010-04-01/Accounts/AC1/Calls", "AC1"),
            ("/2008-08-01/Accounts/AC2/Calls.csv", "AC2"),
            ("/Accounts/AC3/Calls.json", "AC3"),
            ("/a/b/Accounts/AC4/Calls.x", "AC4"),
        ] {
            assert_eq!(calls.captures(path).unwrap()["account_sid"], sid, "{path}");
        }
        for path in
            ["/Accounts/AC1/Calls/CA1.json", "/Calls", "/Accounts/AC1/Calls.", "/xAccounts/AC1/Calls", "Calls", ""]
        {
            assert_eq!(calls.captures(path), None, "{path}");
        }
        let either = PathPattern::parse("/(a|b)/outbound(-|_)call").unwrap();
        for path in ["/a/outbound-call", "/b/outbound_call"] {
            assert!(either.captures(path).is_some(), "{path}");
        }
        assert_eq!(either.captures("/c/outbound-call"), None);
        assert!(PathPattern::parse("/a(b").is_err() && PathPattern::parse("a").is_err());
        assert!(PathPattern::parse(&format!("/{}", "(a|b)".repeat(7))).is_err(), "bounded");
    }
}
