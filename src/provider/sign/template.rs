//! The signed message: parts of the request, and text between.

use serde::Deserialize;

use super::super::nearest::closest;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Part {
    Text(String),
    Body,
    Timestamp,
    Id,
    Nonce,
    Method,
    Url,
    TwilioParams,
    PlivoV3Base,
}

const PARTS: [(&str, Part); 8] = [
    ("body", Part::Body),
    ("timestamp", Part::Timestamp),
    ("id", Part::Id),
    ("nonce", Part::Nonce),
    ("method", Part::Method),
    ("url", Part::Url),
    ("twilio_params", Part::TwilioParams),
    ("plivo_v3_base", Part::PlivoV3Base),
];

/// The template of a signed message: parts of the request in braces, and text between.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Template(Vec<Part>);

impl TryFrom<String> for Template {
    type Error = String;

    fn try_from(written: String) -> Result<Self, String> {
        let (mut parts, mut rest) = (Vec::new(), written.as_str());
        while let Some((text, after)) = rest.split_once('{') {
            let (name, after) =
                after.split_once('}').ok_or(format!("message {written:?} opens a brace and does not close it"))?;
            if !text.is_empty() {
                parts.push(Part::Text(text.to_owned()));
            }
            let known = PARTS.iter().find(|(known, _)| *known == name).map(|(_, part)| part.clone());
            parts.push(known.ok_or_else(|| {
                let names = PARTS.map(|(name, _)| name);
                let near = closest(name, &names).map(|near| format!("did you mean {{{near}}}? "));
                let all = names.map(|name| format!("{{{name}}}")).join(" ");
                format!("message has a part {{{name}}} that does not exist; {}known: {all}", near.unwrap_or_default())
            })?);
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }
}

impl Template {
    pub(super) fn has(&self, part: &Part) -> bool {
        self.0.contains(part)
    }

    /// The message before and after the body; `None` unless it contains the body exactly once.
    pub(super) fn around_body<'v>(&'v self, values: &'v Values<'_>) -> Option<(Vec<u8>, Vec<u8>)> {
        let at = self.0.iter().position(|part| *part == Part::Body)?;
        let base = Base::default();
        let parts = self.fill(values, &base);
        let once = !self.0[at + 1..].contains(&Part::Body);
        once.then(|| (parts[..at].concat(), parts[at + 1..].concat()))
    }

    /// The message for one form of the URL.
    pub(super) fn fill<'v>(&'v self, values: &'v Values<'_>, base: &'v Base) -> Vec<&'v [u8]> {
        let part = |part: &'v Part| match part {
            Part::Text(text) => text.as_bytes(),
            Part::Body => values.body,
            Part::Timestamp => values.timestamp.as_bytes(),
            Part::Id => values.id.as_bytes(),
            Part::Nonce => values.nonce.as_bytes(),
            Part::Method => values.method.as_bytes(),
            Part::Url => base.url.as_bytes(),
            Part::TwilioParams => values.params.as_bytes(),
            Part::PlivoV3Base => base.plivo_v3.as_bytes(),
        };
        self.0.iter().map(part).collect()
    }
}

/// The values of the parts.
pub(super) struct Values<'a> {
    pub(super) body: &'a [u8],
    pub(super) timestamp: &'a str,
    pub(super) id: &'a str,
    pub(super) nonce: &'a str,
    pub(super) method: &'a str,
    pub(super) params: String,
}

/// A form of the URL that may have been signed.
#[derive(Default)]
pub(super) struct Base {
    pub(super) url: String,
    pub(super) plivo_v3: String,
    /// The index among Plivo's bases.
    pub(super) nth: usize,
}
