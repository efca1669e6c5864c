//! Lenient JSON: reads what providers and apps really send, and edits it without touching other bytes. Pure.
//!
//! RFC 8259 §9 lets a parser accept extensions and set limits on size, depth and numbers, and §8.2 warns of lone surrogates. Python's
//! `json` writes `NaN` and lone surrogates; JavaScript cuts strings within a surrogate pair. A call must not be lost because a strict
//! parser rejects such a body: this one replaces invalid characters by U+FFFD, keeps numbers that no type holds as text, and drops what
//! is too deep or too much. Of duplicate names the last value counts, as with the parsers of both providers. It never recurses.

use std::borrow::Cow;

use serde_json::{Map, Number, Value};

/// The maximum number of values that are built; further ones are skipped. Our choice, above a page of 1,000 calls: a value in memory
/// takes many times its shortest spelling.
const VALUES_MAX: usize = 100_000;

/// The maximum depth that is built; deeper values are null. Our choice, below the 128 at which serde_json stops, because serde_json
/// reads stored parts of the value again.
const DEPTH_MAX: usize = 100;

/// A parsed body.
#[derive(Debug, Clone, PartialEq)]
pub struct Read {
    /// An object or a list.
    pub value: Value,
    /// Whether it is not strict JSON.
    pub lenient: bool,
    /// Whether values were dropped, because they were too deep or too many.
    pub cut: bool,
}

/// Parses an object or a list. `None`: it is neither, or too broken to be understood, such as truncated.
pub fn read(bytes: &[u8]) -> Option<Read> {
    read_without(bytes, &[])
}

/// Reads JSON without the values of these names at any depth; they become null.
pub fn read_without(bytes: &[u8], skip: &[&str]) -> Option<Read> {
    let (text, mut lenient) = plain(bytes);
    let mut scan = Scanner { bytes: &text, at: 0 };
    let (mut stack, mut cut, mut values) = (Vec::<Frame>::new(), false, 0_usize);
    let (mut finished, mut too_many) = (None::<Value>, false);
    loop {
        if let Some(value) = finished.take() {
            match stack.last_mut() {
                None => {
                    lenient |= scan.next().is_some();
                    return Some(Read { value, lenient, cut });
                }
                Some(_) if too_many => cut = true,
                Some(Frame::List(list)) => list.push(value),
                Some(Frame::Object(map, key)) => drop(map.insert(std::mem::take(key), value)),
            }
            match scan.next()? {
                Token::Comma => {}
                Token::Close(kind) => {
                    (finished, too_many) = (Some(close(&mut stack, kind)?), false);
                    continue;
                }
                _ => return None,
            }
        }
        let mut token = scan.next()?;
        if let Token::Close(kind) = token {
            lenient |= scan.follows_a_comma();
            (finished, too_many) = (Some(close(&mut stack, kind)?), false);
            continue;
        }
        let mut skipped = false;
        if let Some(Frame::Object(_, key)) = stack.last_mut() {
            let Token::Text(from, to) = token else { return None };
            *key = string(&text[from..to], &mut lenient);
            skipped = skip.contains(&key.as_str());
            let Some(Token::Colon) = scan.next() else { return None };
            token = scan.next()?;
        }
        values += 1;
        too_many = values > VALUES_MAX;
        finished = match token {
            Token::Text(..) if skipped => Some(Value::Null),
            Token::Text(from, to) if !stack.is_empty() => Some(Value::String(string(&text[from..to], &mut lenient))),
            Token::Word(from, to) if !stack.is_empty() => Some(word(&text[from..to], &mut lenient)?),
            Token::Open(_) if skipped || too_many || stack.len() >= DEPTH_MAX => {
                scan.skip_open()?;
                cut |= !skipped;
                Some(Value::Null)
            }
            Token::Open(b'{') => {
                stack.push(Frame::Object(Map::new(), String::new()));
                None
            }
            Token::Open(_) => {
                stack.push(Frame::List(Vec::new()));
                None
            }
            _ => return None,
        };
    }
}

/// Sets the value at a JSON pointer, creating objects on the way; all other bytes stay unchanged. `None`: another value is in
/// the way, or the text is not an object.
pub fn put(bytes: &[u8], pointer: &str, value: &Value) -> Option<Vec<u8>> {
    let keys: Vec<&str> = pointer.split('/').skip(1).collect();
    let mut scan = Scanner { bytes, at: bom(bytes) };
    let Some(Token::Open(b'{')) = scan.next() else { return None };
    for (level, key) in keys.iter().enumerate() {
        let found = scan.member(key)?;
        let rest = |keys: &[&str]| {
            let nested = keys
                .iter()
                .rev()
                .fold(value.clone(), |inner, key| Value::Object(Map::from_iter([((*key).to_owned(), inner)])));
            nested.to_string()
        };
        let (from, to, new) = match found {
            None => {
                let end = bytes[..scan.at - 1].iter().rposition(|byte| !is_space(*byte)).map_or(0, |last| last + 1);
                let comma = if matches!(bytes[end - 1], b'{' | b',') { "" } else { "," };
                (end, end, format!("{comma}{}:{}", Value::from(*key), rest(&keys[level + 1..])))
            }
            Some((from, to)) if level + 1 == keys.len() || &bytes[from..to] == b"null" => {
                (from, to, rest(&keys[level + 1..]))
            }
            Some((from, _)) if bytes[from] == b'{' => {
                scan.at = from + 1;
                continue;
            }
            Some(_) => return None,
        };
        return Some([&bytes[..from], new.as_bytes(), &bytes[to..]].concat());
    }
    None
}

enum Frame {
    List(Vec<Value>),
    Object(Map<String, Value>, String),
}

fn close(stack: &mut Vec<Frame>, kind: u8) -> Option<Value> {
    match (stack.pop()?, kind) {
        (Frame::List(list), b']') => Some(Value::Array(list)),
        (Frame::Object(map, _), b'}') => Some(Value::Object(map)),
        _ => None,
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0B | 0x0C)
}

fn bom(bytes: &[u8]) -> usize {
    if bytes.starts_with(&[0xEF, 0xBB, 0xBF]) { 3 } else { 0 }
}

/// Removes a byte order mark, and converts UTF-16 with one to UTF-8.
fn plain(bytes: &[u8]) -> (Cow<'_, [u8]>, bool) {
    let wide = |of: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes[2..].chunks_exact(2).map(|pair| of([pair[0], pair[1]])).collect();
        (Cow::Owned(String::from_utf16_lossy(&units).into_bytes()), true)
    };
    match bytes {
        [0xFF, 0xFE, ..] => wide(u16::from_le_bytes),
        [0xFE, 0xFF, ..] => wide(u16::from_be_bytes),
        _ => (Cow::Borrowed(&bytes[bom(bytes)..]), bom(bytes) > 0),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Open(u8),
    Close(u8),
    Comma,
    Colon,
    /// A string: the bytes between the quotes.
    Text(usize, usize),
    /// A number, or an unquoted word.
    Word(usize, usize),
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    /// The next token. `None`: the end, or an invalid one.
    fn next(&mut self) -> Option<Token> {
        self.at += self.bytes[self.at..].iter().take_while(|byte| is_space(**byte)).count();
        let from = self.at;
        let first = *self.bytes.get(from)?;
        self.at += 1;
        Some(match first {
            b'{' | b'[' => Token::Open(first),
            b'}' | b']' => Token::Close(first),
            b',' => Token::Comma,
            b':' => Token::Colon,
            b'"' => loop {
                match *self.bytes.get(self.at)? {
                    b'"' => {
                        self.at += 1;
                        break Token::Text(from + 1, self.at - 1);
                    }
                    b'\\' => self.at += 2,
                    _ => self.at += 1,
                }
            },
            _ => {
                let ends =
                    |byte: &u8| is_space(*byte) || matches!(byte, b'{' | b'}' | b'[' | b']' | b',' | b':' | b'"');
                self.at += self.bytes[self.at..].iter().take_while(|byte| !ends(byte)).count();
                Token::Word(from, self.at)
            }
        })
    }

    /// Skips to the end of the object or list that was just opened.
    fn skip_open(&mut self) -> Option<()> {
        let mut depth = 1_usize;
        while depth > 0 {
            match self.next()? {
                Token::Open(_) => depth += 1,
                Token::Close(_) => depth -= 1,
                _ => {}
            }
        }
        Some(())
    }

    /// Whether the closing token that was just read follows a comma.
    fn follows_a_comma(&self) -> bool {
        self.bytes[..self.at - 1].iter().rev().find(|byte| !is_space(**byte)) == Some(&b',')
    }

    /// Finds a name in the object that was just opened and returns the place of its value, the last one of duplicates. `None`: the
    /// object is broken.
    fn member(&mut self, name: &str) -> Option<Option<(usize, usize)>> {
        let mut found = None;
        loop {
            match self.next()? {
                Token::Close(b'}') => return Some(found),
                Token::Comma => {}
                Token::Text(from, to) => {
                    let key = string(&self.bytes[from..to], &mut false);
                    let Some(Token::Colon) = self.next() else { return None };
                    let value = self.next()?;
                    let start = match value {
                        Token::Open(_) => {
                            let start = self.at - 1;
                            self.skip_open()?;
                            start
                        }
                        Token::Text(from, _) => from - 1,
                        Token::Word(from, _) => from,
                        _ => return None,
                    };
                    if key == name {
                        found = Some((start, self.at));
                    }
                }
                _ => return None,
            }
        }
    }
}

/// Decodes the escapes of a string.
fn string(raw: &[u8], lenient: &mut bool) -> String {
    let mut out = Vec::with_capacity(raw.len());
    let mut at = 0;
    while let Some(&byte) = raw.get(at) {
        at += 1;
        if byte != b'\\' {
            *lenient |= byte < 0x20;
            out.push(byte);
            continue;
        }
        let escape = raw.get(at).copied().unwrap_or(b'\\');
        at += 1;
        let plain = match escape {
            b'n' => b'\n',
            b't' => b'\t',
            b'r' => b'\r',
            b'b' => 0x08,
            b'f' => 0x0C,
            b'u' => {
                let (found, used) = unicode(&raw[at.min(raw.len())..]);
                at += used;
                *lenient |= found.is_none();
                out.extend_from_slice(found.unwrap_or('\u{FFFD}').encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
            other => {
                *lenient |= !matches!(other, b'"' | b'\\' | b'/');
                other
            }
        };
        out.push(plain);
    }
    String::from_utf8(out).unwrap_or_else(|error| {
        *lenient = true;
        String::from_utf8_lossy(error.as_bytes()).into_owned()
    })
}

/// Decodes the character of a `\u` escape or of a surrogate pair, and the bytes read. `None`: a lone surrogate, or no digits.
fn unicode(raw: &[u8]) -> (Option<char>, usize) {
    let unit = |raw: &[u8]| {
        let digits = raw.get(..4).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
        u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let Some(first) = unit(raw) else { return (None, 0) };
    if let 0xD800..=0xDBFF = first
        && raw.get(4..6) == Some(b"\\u")
        && let Some(second @ 0xDC00..=0xDFFF) = unit(&raw[6..])
    {
        return (char::from_u32(0x1_0000 + ((first - 0xD800) << 10) + (second - 0xDC00)), 10);
    }
    (char::from_u32(first), 4)
}

/// Parses an unquoted word. A number that no type holds exactly is kept as text.
fn word(raw: &[u8], lenient: &mut bool) -> Option<Value> {
    let text = std::str::from_utf8(raw).ok()?;
    match text {
        "true" => return Some(Value::Bool(true)),
        "false" => return Some(Value::Bool(false)),
        "null" => return Some(Value::Null),
        _ => {}
    }
    let digits = text.trim_start_matches(['+', '-', '.']);
    let is_named = matches!(digits.to_ascii_lowercase().as_str(), "nan" | "inf" | "infinity");
    if !is_named && !digits.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let whole = text.parse::<i64>().map(Number::from).or_else(|_| text.parse::<u64>().map(Number::from)).ok();
    let number = match whole {
        Some(number) => Some(number).filter(|number| number.to_string() == text),
        None if text.contains(['.', 'e', 'E']) => serde_json::from_str::<Number>(text).ok(),
        None => None,
    };
    *lenient |= number.is_none();
    Some(number.map_or_else(|| Value::from(text), Value::Number))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn value(text: &str) -> Option<Value> {
        read(text.as_bytes()).map(|read| read.value)
    }

    #[test]
    fn json_to_the_letter_is_read_as_serde_reads_it() {
        for text in [
            "{}",
            "[]",
            r#" { "a" : [ 1 , -2.5 , 1e3 , true , false , null , "x\n\t\"\\\/\u00e9\ud83d\ude00" , { } ] , "" : {"b":[[]]} } "#,
            "[18446744073709551615,-9223372036854775808,0.1,-0.0]",
            "{\"a\":1,\"a\":2}",
        ] {
            let read = read(text.as_bytes()).unwrap();
            assert_eq!(read.value, serde_json::from_str::<Value>(text).unwrap(), "{text}");
            assert!(!read.lenient && !read.cut, "{text}");
        }
    }

    #[test]
    fn what_one_parser_refuses_is_read_all_the_same() {
        for (text, wanted) in [
            (r#"{"a":"cut \ud83d"}"#, json!({"a": "cut \u{FFFD}"})),
            (r#"{"a":"\ude00\ud83dx\ud83d\ud83d\ude00"}"#, json!({"a": "\u{FFFD}\u{FFFD}x\u{FFFD}\u{1F600}"})),
            (r#"{"a":"\uZZ"}"#, json!({"a": "\u{FFFD}ZZ"})),
            (r#"{"a":NaN,"b":-Infinity,"c":1e400}"#, json!({"a": "NaN", "b": "-Infinity", "c": "1e400"})),
            ("[123456789012345678901234567890, 007, +5]", json!(["123456789012345678901234567890", "007", "+5"])),
            ("{\"a\":\"tab\there\"}", json!({"a": "tab\there"})),
            (r#"{"a":"\x"}"#, json!({"a": "x"})),
            ("{\"a\":[1,],}", json!({"a": [1]})),
            ("\u{FEFF}{\"a\":1}", json!({"a": 1})),
            ("{\"a\":1}\n{\"b\":2}", json!({"a": 1})),
        ] {
            let read = read(text.as_bytes()).unwrap_or_else(|| panic!("{text}"));
            assert_eq!((&read.value, read.lenient, read.cut), (&wanted, true, false), "{text}");
        }
        assert_eq!(read(b"{\"a\":\"\xFF\xED\xA0\xBD\"}").unwrap().value["a"], "\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}");
        let wide: Vec<u8> = "\u{FEFF}{\"a\":\"é\"}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(read(&wide).unwrap().value, json!({"a": "é"}));
    }

    #[test]
    fn what_is_broken_is_not_guessed_at() {
        for text in [
            "",
            " ",
            "x",
            "1",
            "\"a\"",
            "<html>",
            "{\"a\":1",
            "{\"a\":\"x",
            "[1,2",
            "{\"a\"}",
            "{a:1}",
            "[1 2]",
            "[}",
            "{]",
            "[,]",
            "]",
            "\"\\",
        ] {
            assert_eq!(value(text), None, "{text}");
        }
    }

    #[test]
    fn depth_and_number_are_bounded() {
        let deep = |levels: usize| format!("{{\"a\":{}1{},\"b\":2}}", "[".repeat(levels), "]".repeat(levels));
        for (levels, cut) in [(DEPTH_MAX - 1, false), (DEPTH_MAX, true), (200, true), (1_000_000, true)] {
            let read = read(deep(levels).as_bytes()).unwrap();
            assert_eq!((read.cut, &read.value["b"]), (cut, &json!(2)), "{levels}");
            assert!(serde_json::from_str::<Value>(&read.value.to_string()).is_ok(), "it is read again from the record");
        }
        let many = read(format!("{{\"a\":[{}0],\"b\":1}}", "0,".repeat(VALUES_MAX)).as_bytes()).unwrap();
        assert!(many.cut && many.value["a"].as_array().unwrap().len() < VALUES_MAX);
        assert!(read("[".repeat(1_000_000).as_bytes()).is_none());
        let large = format!("{{\"full_audio\":\"{}\",\"b\":{{\"full_audio\":[1]}},\"c\":3}}", "A".repeat(1 << 20));
        assert_eq!(
            read_without(large.as_bytes(), &["full_audio"]).unwrap().value,
            json!({"full_audio": null, "b": {"full_audio": null}, "c": 3})
        );
    }

    #[test]
    fn values_are_put_where_nothing_else_is_in_the_way_and_the_rest_stays() {
        let put = |text: &str, at: &str| put(text.as_bytes(), at, &json!("x")).map(|b| String::from_utf8(b).unwrap());
        let is = |text: &str| Some(text.to_owned());
        assert_eq!(put("{}", "/a"), is(r#"{"a":"x"}"#));
        assert_eq!(put(r#" { "b" : NaN } "#, "/a/c"), is(r#" { "b" : NaN,"a":{"c":"x"} } "#));
        assert_eq!(put(r#"{"a": {"b": 1}, "u": "\ud83d"}"#, "/a/c"), is(r#"{"a": {"b": 1,"c":"x"}, "u": "\ud83d"}"#));
        assert_eq!(put(r#"{"a":null}"#, "/a/c"), is(r#"{"a":{"c":"x"}}"#));
        assert_eq!(put(r#"{"a":[1,{"c":2}],"c":3}"#, "/c"), is(r#"{"a":[1,{"c":2}],"c":"x"}"#));
        assert_eq!(
            put(r#"{"a":{"c":1},"a":{"c":2}}"#, "/a/c"),
            is(r#"{"a":{"c":1},"a":{"c":"x"}}"#),
            "the last counts"
        );
        assert_eq!(put("{\"a\":1, } ", "/b"), is("{\"a\":1,\"b\":\"x\" } "));
        assert_eq!(put(r#"{"a":1}"#, "/a/c"), None);
        assert_eq!(put("[1]", "/a"), None);
        assert_eq!(put(r#"{"a":1"#, "/b"), None);
    }
}
