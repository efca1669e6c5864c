//! Selectors: how a provider description refers to a value inside a message. Pure.
//!
//! `body.data.conversation_id` reads JSON, forms and XML alike; `query.agent_id`, `path.account_sid`, `header.x-api-key` read
//! the rest of the message; `a | b` is the first of them that is present.

use std::borrow::Cow;
use std::collections::BTreeMap;

use http::HeaderMap;
use serde::Deserialize;
use serde_json::Value;

use super::json;
use crate::words::words;

/// The maximum number of form pairs. Our choice, far above what providers send; a pair in memory takes many times its spelling.
pub const FORM_PAIRS_MAX: usize = 1_000;

/// The maximum XML in bytes. Our choice, far above what providers answer: checking for duplicate attributes and nested
/// namespaces takes quadratic time.
const XML_BYTES_MAX: usize = 32 * 1024;

/// A body, decoded according to its content type.
#[derive(Debug, Clone, PartialEq)]
pub enum Document {
    /// Empty or unreadable.
    Empty,
    /// JSON.
    Json(Value),
    /// A form: pairs in the order sent.
    Form(Vec<(String, String)>),
    /// XML, as text; parsed on demand.
    Xml(String),
}

/// A decoded body, and its flaw, if any.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The readable part.
    pub document: Document,
    /// The flaw, if it matters.
    pub flaw: Option<Flaw>,
}

words!(
    /// The reason why a body may not be read as its sender meant it.
    Flaw {
        /// The body is not strict JSON; all of it was read.
        Lenient = "lenient",
        /// Values were dropped, because they are too many or too deep.
        Cut = "cut",
        /// The body could not be read.
        Unreadable = "unreadable",
    }
);

impl Document {
    /// Decodes a body. One that does not match its content type is tried as JSON, and is [`Document::Empty`] otherwise; so is a form or
    /// XML beyond [`FORM_PAIRS_MAX`] or `XML_BYTES_MAX`.
    pub fn decode(content_type: Option<&str>, body: &[u8]) -> Self {
        Self::read(content_type, body, &[]).document
    }

    /// A body as a document, with its flaw if it has one. JSON values of the names in `skip` are dropped.
    pub fn read(content_type: Option<&str>, body: &[u8], skip: &[&str]) -> Decoded {
        let whole = |document| Decoded { document, flaw: None };
        if body.is_empty() {
            return whole(Self::Empty);
        }
        if is_form(content_type) {
            return match Self::form(body) {
                Self::Empty => Decoded { document: Self::Empty, flaw: Some(Flaw::Unreadable) },
                form => whole(form),
            };
        }
        if is_kind(content_type, "text/csv")
            && let Some(form) = csv(body)
        {
            return whole(form);
        }
        if let Some(json::Read { value, lenient, cut }) = json::read_without(body, skip) {
            let flaw = if cut { Some(Flaw::Cut) } else { lenient.then_some(Flaw::Lenient) };
            return Decoded { document: Self::Json(value), flaw };
        }
        match std::str::from_utf8(body) {
            Ok(text) if body.len() <= XML_BYTES_MAX && text.trim_start().starts_with('<') => {
                whole(Self::Xml(text.to_owned()))
            }
            _ => Decoded { document: Self::Empty, flaw: Some(Flaw::Unreadable) },
        }
    }
}

impl Document {
    fn form(body: &[u8]) -> Self {
        match form_urlencoded::parse(body).take(FORM_PAIRS_MAX + 1).count() {
            ..=FORM_PAIRS_MAX => Self::Form(form_urlencoded::parse(body).into_owned().collect()),
            _ => Self::Empty,
        }
    }
}

/// The first row of CSV (RFC 4180) under the names of the header row, as pairs.
fn csv(body: &[u8]) -> Option<Document> {
    let mut chars = std::str::from_utf8(body).ok()?.chars().peekable();
    let (mut names, mut row, mut quoted) = (None, vec![String::new()], false);
    while let Some(one) = chars.next() {
        match one {
            '"' if quoted && chars.next_if_eq(&'"').is_some() => row.last_mut()?.push('"'),
            '"' => quoted = !quoted,
            ',' if !quoted && row.len() == FORM_PAIRS_MAX => return None,
            ',' if !quoted => row.push(String::new()),
            '\r' if !quoted => {}
            '\n' if !quoted && names.is_some() => break,
            '\n' if !quoted => names = Some(std::mem::replace(&mut row, vec![String::new()])),
            other => row.last_mut()?.push(other),
        }
    }
    Some(Document::Form(names?.into_iter().zip(row).collect()))
}

/// Whether the content type is a form's.
pub fn is_form(content_type: Option<&str>) -> bool {
    is_kind(content_type, "application/x-www-form-urlencoded")
}

fn is_kind(content_type: Option<&str>, wanted: &str) -> bool {
    let kind = content_type.and_then(|t| t.split(';').next()).unwrap_or_default();
    kind.trim().eq_ignore_ascii_case(wanted)
}

/// A message as selectors see it.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// The decoded body.
    pub body: &'a Document,
    /// The query, decoded.
    pub query: &'a [(String, String)],
    /// The captures of the path pattern.
    pub path: &'a BTreeMap<String, String>,
    /// The headers.
    pub headers: &'a HeaderMap,
}

/// The captures of a path without any.
static NO_CAPTURES: BTreeMap<String, String> = BTreeMap::new();

impl<'a> Message<'a> {
    /// A message of a body and headers.
    pub fn new(body: &'a Document, headers: &'a HeaderMap) -> Self {
        Self { body, query: &[], path: &NO_CAPTURES, headers }
    }
}

/// Alternative places of a value; the first that has one is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector(Vec<Place>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Body(Vec<Step>),
    Query(String),
    Path(String),
    Header(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    name: String,
    pick: Option<Pick>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pick {
    Index(usize),
    Where(String, String),
}

impl Selector {
    /// Parses a selector; the error is a sentence for the author of a provider description.
    pub fn parse(text: &str) -> Result<Self, String> {
        text.split('|').map(|place| parse_place(place.trim())).collect::<Result<_, _>>().map(Self)
    }

    /// Names, one of which is in every body that has a value, unless it is escaped or encoded.
    pub fn body_names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|place| match place {
            Place::Body(steps) => steps.last().map(|step| step.name.as_str()),
            _ => None,
        })
    }

    /// The value as text: strings as they are, numbers and booleans as JSON writes them. Null, objects and lists are not
    /// values.
    pub fn text<'a>(&self, message: &Message<'a>) -> Option<Cow<'a, str>> {
        self.0.iter().filter(|place| self.counts(place, message)).find_map(|place| match place {
            Place::Body(steps) => body_text(message.body, steps),
            Place::Query(name) => pair(message.query, name),
            Place::Path(name) => message.path.get(name).map(|v| Cow::Borrowed(v.as_str())),
            Place::Header(name) => message.headers.get(name).and_then(|v| v.to_str().ok()).map(Cow::Borrowed),
        })
    }

    /// Whether a place counts. A value that may be in body or query is only read from the body, if there is one: the query is then part
    /// of the URL, which may be chosen by someone other than the sender.
    fn counts(&self, place: &Place, message: &Message<'_>) -> bool {
        !matches!(place, Place::Query(_))
            || *message.body == Document::Empty
            || !self.0.iter().any(|other| matches!(other, Place::Body(_)))
    }

    /// Whether a message has the value more than once, so that it is ambiguous.
    pub fn is_doubled(&self, message: &Message<'_>) -> bool {
        let times = |pairs: &[(String, String)], name: &str| pairs.iter().filter(|(k, _)| k == name).count();
        self.0.iter().filter(|place| self.counts(place, message)).any(|place| match (place, message.body) {
            (Place::Body(steps), Document::Form(pairs)) => matches!(&steps[..], [only] if times(pairs, &only.name) > 1),
            (Place::Query(name), _) => times(message.query, name) > 1,
            _ => false,
        })
    }

    /// Whether there is a value other than null.
    pub fn exists(&self, message: &Message<'_>) -> bool {
        self.text(message).is_some()
            || self.0.iter().any(|place| match (place, message.body) {
                (Place::Body(steps), Document::Json(value)) => walk(value, steps).is_some_and(|v| !v.is_null()),
                _ => false,
            })
    }

    /// The value in a JSON body, unless it is null.
    pub fn json<'a>(&self, body: &'a Document) -> Option<&'a Value> {
        self.0.iter().find_map(|place| match (place, body) {
            (Place::Body(steps), Document::Json(value)) => walk(value, steps).filter(|found| !found.is_null()),
            _ => None,
        })
    }

    /// The JSON list, if there is one.
    pub fn list<'a>(&self, body: &'a Document) -> Option<&'a Vec<Value>> {
        self.0.iter().find_map(|place| match (place, body) {
            (Place::Body(steps), Document::Json(value)) => walk(value, steps)?.as_array(),
            _ => None,
        })
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

fn parse_place(text: &str) -> Result<Place, String> {
    let (source, rest) = text.split_once('.').ok_or_else(|| {
        format!("selector {text:?} needs a source: body., query., path. or header., as in \"body.agent_id\"")
    })?;
    match source {
        "body" => parse_steps(rest).map(Place::Body),
        "query" => Ok(Place::Query(rest.to_owned())),
        "path" => Ok(Place::Path(rest.to_owned())),
        "header" => Ok(Place::Header(rest.to_ascii_lowercase())),
        other => Err(format!("selector source {other:?} is not one of body, query, path, header")),
    }
}

fn parse_steps(text: &str) -> Result<Vec<Step>, String> {
    text.split('.')
        .map(|part| {
            let bad = || format!("selector step {part:?} is not a name, name[3] or name[key=value]");
            let Some((name, pick)) = part.split_once('[') else {
                return if part.is_empty() { Err(bad()) } else { Ok(Step { name: part.to_owned(), pick: None }) };
            };
            let inside = pick.strip_suffix(']').ok_or_else(bad)?;
            let pick = match inside.split_once('=') {
                Some((key, value)) => Pick::Where(key.to_owned(), value.to_owned()),
                None => Pick::Index(inside.parse().map_err(|_| bad())?),
            };
            Ok(Step { name: name.to_owned(), pick: Some(pick) })
        })
        .collect()
}

fn pair<'a>(pairs: &'a [(String, String)], name: &str) -> Option<Cow<'a, str>> {
    pairs.iter().find(|(k, _)| k == name).map(|(_, v)| Cow::Borrowed(v.as_str()))
}

fn body_text<'a>(body: &'a Document, steps: &[Step]) -> Option<Cow<'a, str>> {
    match body {
        Document::Empty => None,
        Document::Json(value) => match walk(value, steps)? {
            Value::String(text) => Some(Cow::Borrowed(text)),
            Value::Number(number) => Some(Cow::Owned(number.to_string())),
            Value::Bool(yes) => Some(Cow::Borrowed(if *yes { "true" } else { "false" })),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        },
        Document::Form(pairs) => match steps {
            [only] => pair(pairs, &only.name),
            _ => None,
        },
        Document::Xml(text) => xml_text(text, steps).map(Cow::Owned),
    }
}

fn walk<'a>(value: &'a Value, steps: &[Step]) -> Option<&'a Value> {
    steps.iter().try_fold(value, |at, step| {
        let named = if step.name.is_empty() { at } else { at.get(&step.name)? };
        match &step.pick {
            None => Some(named),
            Some(Pick::Index(i)) => named.get(i),
            Some(Pick::Where(key, wanted)) => {
                named.as_array()?.iter().find(|one| one.get(key).and_then(Value::as_str) == Some(wanted))
            }
        }
    })
}

/// `Parameter[name=conversation_id].value`: an element anywhere, chosen by an attribute, then one of its attributes; or
/// `Element` for its text.
fn xml_text(text: &str, steps: &[Step]) -> Option<String> {
    if text.len() > XML_BYTES_MAX {
        return None;
    }
    let document = roxmltree::Document::parse(text).ok()?;
    let (element, rest) = steps.split_first()?;
    let node = document.descendants().find(|node| {
        node.has_tag_name(element.name.as_str())
            && match &element.pick {
                Some(Pick::Where(key, wanted)) => node.attribute(key.as_str()) == Some(wanted),
                _ => true,
            }
    })?;
    match rest.first() {
        Some(attribute) => node.attribute(attribute.name.as_str()).map(str::to_owned),
        None => node.text().map(str::to_owned),
    }
}

/// Conditions that must all hold. Each is a selector and the allowed texts; `"*"` is any value, `"!"` is none.
#[derive(Debug, Clone, Default)]
pub struct Predicate(Vec<(Selector, Vec<String>)>);

impl Predicate {
    /// Whether all conditions hold; true without conditions.
    pub fn holds(&self, message: &Message<'_>) -> bool {
        self.0.iter().all(|(selector, accepted)| {
            accepted.iter().any(|one| match one.as_str() {
                "*" => selector.exists(message),
                "!" => !selector.exists(message),
                wanted => selector.text(message).is_some_and(|text| text == wanted),
            })
        })
    }

    /// The selectors of all conditions.
    pub fn selectors(&self) -> impl Iterator<Item = &Selector> {
        self.0.iter().map(|(selector, _)| selector)
    }

    /// Whether there are no conditions.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'de> Deserialize<'de> for Predicate {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum OneOrMany {
            One(String),
            Many(Vec<String>),
        }
        let written = BTreeMap::<String, OneOrMany>::deserialize(d)?;
        let pairs = written.into_iter().map(|(selector, accepted)| {
            let accepted = match accepted {
                OneOrMany::One(one) => vec![one],
                OneOrMany::Many(many) => many,
            };
            Selector::parse(&selector).map(|s| (s, accepted)).map_err(serde::de::Error::custom)
        });
        pairs.collect::<Result<_, D::Error>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(selector: &str, body: &Document) -> Option<String> {
        let query = [("agent_id".to_owned(), "a1".to_owned())];
        let path = BTreeMap::from([("account_sid".to_owned(), "AC1".to_owned())]);
        let mut headers = HeaderMap::new();
        headers.insert("x-business-id", http::HeaderValue::from_static("acme"));
        let message = Message { body, query: &query, path: &path, headers: &headers };
        Selector::parse(selector).unwrap().text(&message).map(Cow::into_owned)
    }

    #[test]
    fn json_forms_and_xml_are_read_alike() {
        let json = Document::decode(
            Some("application/json; charset=utf-8"),
            br#"{"a":{"b":"x"},"n":3,"ok":true,"no":null,"list":[{"k":"p","v":"1"},{"k":"q","v":"2"}]}"#,
        );
        assert_eq!(text("body.a.b", &json).as_deref(), Some("x"));
        assert_eq!(text("body.n", &json).as_deref(), Some("3"));
        assert_eq!(text("body.ok", &json).as_deref(), Some("true"));
        assert_eq!(text("body.no", &json), None);
        assert_eq!(text("body.a", &json), None);
        assert_eq!(text("body.list[1].v", &json).as_deref(), Some("2"));
        assert_eq!(text("body.list[k=q].v", &json).as_deref(), Some("2"));
        assert_eq!(text("body.missing | body.a.b", &json).as_deref(), Some("x"));

        let form = Document::decode(Some("application/x-www-form-urlencoded"), b"To=%2B1555&A=1&A=2");
        assert_eq!(text("body.To", &form).as_deref(), Some("+1555"));
        assert_eq!(text("body.A", &form).as_deref(), Some("1"));

        let twiml = br#"<Response><Connect><Stream url="wss://x"><Parameter name="conversation_id" value="conv_1"/></Stream></Connect></Response>"#;
        let xml = Document::decode(Some("text/html"), twiml);
        assert_eq!(text("body.Parameter[name=conversation_id].value", &xml).as_deref(), Some("conv_1"));
        assert_eq!(text("body.Stream.url", &xml).as_deref(), Some("wss://x"));
    }

    #[test]
    fn the_rest_of_the_message_is_read_too() {
        assert_eq!(text("query.agent_id", &Document::Empty).as_deref(), Some("a1"));
        assert_eq!(text("path.account_sid", &Document::Empty).as_deref(), Some("AC1"));
        assert_eq!(text("header.X-Business-Id", &Document::Empty).as_deref(), Some("acme"));
    }

    #[test]
    fn bodies_of_very_many_parts_are_not_taken_apart() {
        let decode = |kind: &str, body: String| Document::decode(Some(kind), body.as_bytes());
        let form = "application/x-www-form-urlencoded";
        assert!(matches!(decode(form, "a&".repeat(FORM_PAIRS_MAX)), Document::Form(_)));
        assert_eq!(decode(form, "a&".repeat(FORM_PAIRS_MAX + 1)), Document::Empty);
        assert_eq!(decode("text/xml", format!("<a>{}</a>", " ".repeat(XML_BYTES_MAX))), Document::Empty);
    }

    #[test]
    fn a_query_beside_a_body_is_part_of_the_address() {
        let pairs =
            |list: &[(&str, &str)]| list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Vec<_>>();
        let query = pairs(&[("CallSid", "victim"), ("x", "1"), ("x", "2")]);
        let (path, headers) = (BTreeMap::new(), HeaderMap::new());
        let read = |selector: &str, body: &Document| {
            let message = Message { body, query: &query, path: &path, headers: &headers };
            let selector = Selector::parse(selector).unwrap();
            (selector.text(&message).map(Cow::into_owned), selector.is_doubled(&message))
        };
        let (both, form) = ("body.CallSid | query.CallSid", Document::Form(pairs(&[("CallSid", "CA1"), ("x", "1")])));
        assert_eq!(read(both, &form), (Some("CA1".to_owned()), false));
        assert_eq!(read(both, &Document::Form(vec![])), (None, false), "a form without it does not say it");
        assert_eq!(read(both, &Document::Empty), (Some("victim".to_owned()), false), "a GET");
        assert_eq!(read("query.CallSid", &form).0.as_deref(), Some("victim"), "that is where its provider puts it");
        assert!(read("query.x", &form).1 && read("body.x | query.x", &Document::Empty).1);
        assert!(!read("body.x | query.x", &form).1);
        assert!(read(both, &Document::Form(pairs(&[("CallSid", "CA1"), ("CallSid", "CA2")]))).1);
    }

    #[test]
    fn a_body_says_what_of_it_could_not_be_read() {
        let flaw = |kind: &str, body: &str| Document::read(Some(kind), body.as_bytes(), &[]).flaw;
        assert_eq!(flaw("application/json", "{}"), None);
        assert_eq!(flaw("application/json", r#"{"a":"\ud83d"}"#), Some(Flaw::Lenient));
        assert_eq!(
            flaw("application/json", &format!("{{\"a\":{}{}}}", "[".repeat(200), "]".repeat(200))),
            Some(Flaw::Cut)
        );
        assert_eq!(flaw("application/json", "{\"a\":"), Some(Flaw::Unreadable));
        assert_eq!(flaw("text/plain", "Not Found"), Some(Flaw::Unreadable));
        assert_eq!(flaw("text/plain", ""), None);
    }

    #[test]
    fn csv_is_read_as_its_first_row() {
        let body = "Sid,To,\"Friendly \"\"name\"\"\"\r\nCA1,+1555,\"a, b\nc\"\r\nCA2,x,y\r\n";
        let csv = Document::decode(Some("text/csv;charset=UTF-8"), body.as_bytes());
        assert_eq!(text("body.Sid", &csv).as_deref(), Some("CA1"));
        assert_eq!(text("body.Friendly \"name\"", &csv).as_deref(), Some("a, b\nc"));
    }

    #[test]
    fn bad_selectors_are_explained() {
        for bad in ["agent_id", "cookie.x", "body.", "body.a[", "body.a[x]"] {
            assert!(Selector::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn predicates_know_anything_and_nothing() {
        let body = Document::Json(serde_json::json!({"type": "started", "metadata": {"phone_call": {}}}));
        let (path, headers) = (BTreeMap::new(), HeaderMap::new());
        let message = Message { body: &body, query: &[], path: &path, headers: &headers };
        let holds = |toml: &str| toml::from_str::<Predicate>(toml).unwrap().holds(&message);
        assert!(holds(r#""body.type" = ["ended", "started"]"#));
        assert!(holds(r#""body.metadata.phone_call" = "*""#));
        assert!(!holds(r#""body.metadata.phone_call" = "!""#));
        assert!(holds(r#""body.other" = "!""#));
        assert!(!holds("\"body.type\" = \"started\"\n\"body.other\" = \"*\""));
    }
}
