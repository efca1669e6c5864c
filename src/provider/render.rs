//! Templates of provider descriptions: `{name}` is replaced by a value, escaped for its context. Pure.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

/// All but RFC 3986's unreserved characters.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The context of a value; decides the escaping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A URL's path or query: everything but RFC 3986's unreserved characters is percent-encoded.
    Url,
    /// A form body or a header: unescaped; encoding is up to the caller.
    Plain,
    /// XML text or attribute.
    Xml,
}

/// A template names a missing value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no value for {{{0}}}")]
pub struct MissingValue(pub String);

/// Fills a template. Braces without a name (`{}`) and unclosed ones stay as they are.
pub fn render<'v>(
    template: &str,
    target: Target,
    value: impl Fn(&str) -> Option<std::borrow::Cow<'v, str>>,
) -> Result<String, MissingValue> {
    let mut out = String::with_capacity(template.len() + 32);
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        out.push_str(before);
        match after.split_once('}') {
            Some((name, tail)) if is_name(name) => {
                let text = value(name).ok_or_else(|| MissingValue(name.to_owned()))?;
                escape(&mut out, &text, target);
                rest = tail;
            }
            _ => {
                out.push('{');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.')
}

fn escape(out: &mut String, text: &str, target: Target) {
    match target {
        Target::Plain => out.push_str(text),
        Target::Url => out.extend(utf8_percent_encode(text, RESERVED)),
        Target::Xml => {
            for c in text.chars() {
                match c {
                    '&' => out.push_str("&amp;"),
                    '<' => out.push_str("&lt;"),
                    '>' => out.push_str("&gt;"),
                    '"' => out.push_str("&quot;"),
                    '\'' => out.push_str("&apos;"),
                    // XML 1.0 cannot represent control characters.
                    c if c.is_control() && !matches!(c, '\n' | '\r' | '\t') => {}
                    '\u{fffe}' | '\u{ffff}' => {}
                    c => out.push(c),
                }
            }
        }
    }
}

/// Fills a JSON template: a string that is just `{name}` becomes the value itself with its type, `{name}` inside a longer
/// string becomes text. Names without a value become null.
pub fn fill_json(template: &Value, value: &impl Fn(&str) -> Value) -> Value {
    match template {
        Value::String(text) => {
            if let Some(name) = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).filter(|n| is_name(n)) {
                return value(name);
            }
            let as_text = |name: &str| match value(name) {
                Value::String(text) => Some(text.into()),
                other => Some(other.to_string().into()),
            };
            Value::String(render(text, Target::Plain, as_text).unwrap_or_else(|_| text.clone()))
        }
        Value::Array(list) => Value::Array(list.iter().map(|one| fill_json(one, value)).collect()),
        Value::Object(map) => Value::Object(map.iter().map(|(k, v)| (k.clone(), fill_json(v, value))).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(template: &str, target: Target) -> Result<String, MissingValue> {
        render(template, target, |name| (name == "id").then(|| "a/b?<&\"+1".into()))
    }

    #[test]
    fn values_are_escaped_for_their_place() {
        assert_eq!(put("/calls/{id}.json", Target::Url).unwrap(), "/calls/a%2Fb%3F%3C%26%22%2B1.json");
        assert_eq!(put("<Say>{id}</Say>", Target::Xml).unwrap(), "<Say>a/b?&lt;&amp;&quot;+1</Say>");
        assert_eq!(put("{} { {\"x\":1}", Target::Plain).unwrap(), "{} { {\"x\":1}");
        assert_eq!(put("/{other}", Target::Url), Err(MissingValue("other".to_owned())));
    }

    #[test]
    fn json_keeps_types() {
        let template = serde_json::json!({"n": "{n}", "text": "{n} calls", "nested": [{"none": "{x}"}], "fixed": 1});
        let filled = fill_json(&template, &|name| if name == "n" { 3.into() } else { Value::Null });
        assert_eq!(filled, serde_json::json!({"n": 3, "text": "3 calls", "nested": [{"none": null}], "fixed": 1}));
    }
}
