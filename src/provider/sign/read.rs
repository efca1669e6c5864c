//! The TOML form of signatures: the name of a preset, a preset with changes, or a scheme written out.

use std::sync::LazyLock;

use http::HeaderName;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use toml::{Table, Value};

use super::super::nearest::closest;
use super::message::MessageSignature;
use super::{Scheme, Signature};

/// The presets, by name.
static PRESETS: LazyLock<Table> =
    LazyLock::new(|| include_str!("../../../config/signatures.toml").parse().unwrap_or_default());

/// The schemes, by name.
const SCHEMES: [&str; 5] = ["none", "shared_secret", "hmac", "ed25519", "jwt_hs256"];

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let read = match Value::deserialize(d)? {
            Value::String(name) => Signature::preset(&name),
            Value::Table(table) => with_preset(table).and_then(read_signature),
            other => Err(format!("must be the name of a preset or a table, not a {}", other.type_str())),
        };
        read.map_err(|why| D::Error::custom(format!("signature: {why}")))
    }
}

impl Signature {
    /// The preset of this name.
    ///
    /// # Errors
    /// The name is unknown; the message suggests similar ones.
    pub fn preset(name: &str) -> Result<Self, String> {
        preset(name).and_then(read_signature)
    }

    /// The names of the presets.
    pub fn presets() -> impl Iterator<Item = &'static str> {
        PRESETS.keys().map(String::as_str)
    }
}

fn preset(name: &str) -> Result<Table, String> {
    PRESETS.get(name).and_then(Value::as_table).cloned().ok_or_else(|| {
        let names: Vec<&str> = Signature::presets().collect();
        format!("unknown preset {name:?}; {}", suggestion(name, &names))
    })
}

fn suggestion(written: &str, known: &[&str]) -> String {
    let near = closest(written, known).map(|near| format!("did you mean {near:?}? "));
    format!("{}known: {}", near.unwrap_or_default(), known.join(", "))
}

/// Merges a table over that of its preset.
fn with_preset(mut table: Table) -> Result<Table, String> {
    match table.remove("preset") {
        None => Ok(table),
        Some(Value::String(name)) => {
            let mut whole = preset(&name)?;
            if table.contains_key("scheme") {
                return Err("preset and scheme exclude one another".to_owned());
            }
            whole.extend(table);
            Ok(whole)
        }
        Some(_) => Err("preset must be a string".to_owned()),
    }
}

fn read_signature(mut table: Table) -> Result<Signature, String> {
    let scheme = match table.remove("scheme") {
        Some(Value::String(scheme)) => scheme,
        _ => return Err(format!("scheme is missing: one of {}, or preset = \"…\"", SCHEMES.join(", "))),
    };
    let mode = match table.remove("mode") {
        None => super::Mode::default(),
        Some(mode) => mode.try_into().map_err(|e: toml::de::Error| format!("mode: {}", e.message()))?,
    };
    let key_from = match table.remove("key_from") {
        None => None,
        Some(Value::String(key)) => Some(key),
        Some(_) => return Err("key_from must be a string".to_owned()),
    };
    let scheme = match scheme.as_str() {
        "none" if table.is_empty() => Scheme::None,
        "none" => return Err("the scheme none has no keys".to_owned()),
        "shared_secret" => Scheme::Shared(typed(table)?),
        "hmac" | "ed25519" => Scheme::Message(Box::new(message(table, &scheme)?)),
        "jwt_hs256" => Scheme::Jwt(typed(table)?),
        other => return Err(format!("unknown scheme {other:?}; {}", suggestion(other, &SCHEMES))),
    };
    let signature = Signature { scheme, mode, key_from };
    let every: Box<dyn Iterator<Item = &str>> = match &signature.scheme {
        Scheme::Message(message) => Box::new(message.names().map(String::as_str)),
        _ => signature.headers(),
    };
    for name in every {
        HeaderName::try_from(name).map_err(|_| format!("{name:?} is not a header name"))?;
    }
    Ok(signature)
}

fn typed<T: for<'de> Deserialize<'de>>(table: Table) -> Result<T, String> {
    Value::Table(table).try_into().map_err(|e: toml::de::Error| e.message().trim().to_owned())
}

fn message(mut table: Table, scheme: &str) -> Result<MessageSignature, String> {
    // One place is a list of one.
    if let Some(one @ Value::Table(_)) = table.get("signature").cloned() {
        table.insert("signature".to_owned(), Value::Array(vec![one]));
    }
    if scheme == "ed25519" {
        for (key, value) in [("algorithm", "ed25519"), ("encoding", "base64")] {
            if table.insert(key.to_owned(), value.into()).is_some() {
                return Err(format!("{key} is not for the scheme ed25519: there is only one"));
            }
        }
    } else if table.get("algorithm").and_then(Value::as_str) == Some("ed25519") {
        return Err("algorithm: write scheme = \"ed25519\"".to_owned());
    }
    let message: MessageSignature = typed(table)?;
    message.check()?;
    Ok(message)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn written(toml: &str) -> Result<Signature, String> {
        #[derive(Debug, Deserialize)]
        struct Written {
            signature: Signature,
        }
        toml::from_str::<Written>(toml).map(|written| written.signature).map_err(|error| error.to_string())
    }

    #[test]
    fn every_preset_is_sound() {
        let names: Vec<_> = Signature::presets().collect();
        assert_eq!(names.len(), 19, "{names:?}");
        for name in names {
            Signature::preset(name).unwrap();
        }
    }

    #[test]
    fn mistakes_say_what_was_probably_meant_and_where() {
        let hmac = |more: &str| {
            format!(
                "signature = {{ scheme = \"hmac\", algorithm = \"sha256\", signature = {{ header = \"a\" }}, {more} }}"
            )
        };
        let table = [
            ("signature = \"telnix\"".to_owned(), "unknown preset \"telnix\"; did you mean \"telnyx\"? known: "),
            ("signature = 1".to_owned(), "must be the name of a preset or a table"),
            ("signature = {}".to_owned(), "scheme is missing"),
            ("signature = { scheme = \"hmack\" }".to_owned(), "unknown scheme \"hmack\"; did you mean \"hmac\"?"),
            (
                "signature = { preset = \"vapi\", mode = \"maybe\" }".to_owned(),
                "mode: unknown variant `maybe`, expected one of `require`, `if_present`, `off`",
            ),
            ("signature = { preset = \"vapi\", tolerance = 3 }".to_owned(), "unknown field `tolerance`"),
            (
                hmac("message = \"{timestmp}.{body}\""),
                "a part {timestmp} that does not exist; did you mean {timestamp}? known: {body}",
            ),
            (hmac("message = \"{body\""), "opens a brace and does not close it"),
            (hmac("message = \"{timestamp}.{body}\""), "timestamp does not say where it is"),
            (hmac("message = \"{body}\", timestamp = { header = \"b\" }"), "anyone can change it"),
            (hmac("message = \"{url}\""), "else anyone can change the body"),
            (hmac("message = \"{twilio_params}\""), "needs {url}"),
            (hmac("message = \"{body}\", id = \"b c\""), "message does not have {id}"),
            (hmac("message = \"{id}{body}\", id = \"b c\""), "\"b c\" is not a header name"),
            ("signature = { preset = \"telnyx\", algorithm = \"sha1\" }".to_owned(), "is not for the scheme ed25519"),
            (
                "signature = { preset = \"telnyx\", message = \"{url}{body}{timestamp}\" }".to_owned(),
                "cannot be made anew",
            ),
            (
                "signature = { preset = \"elevenlabs\", message = \"{url}{timestamp}{body}\" }".to_owned(),
                "must have a header of its own",
            ),
        ];
        for (text, expected) in table {
            let error = written(&format!("# a comment\n{text}")).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
            assert!(error.contains("line 2, column"), "{error}");
        }
    }
}
