//! The templates of requests. Pure.
//!
//! In their values `{{lead.name}}` stands for a field of the lead, `{{own_number}}` for the number that is chosen from the run's
//! pool, `{{public_url}}`, `{{business}}` and `{{run}}` for what they say. Values are filled before the body is written, so whatever
//! a lead holds stays one value, of JSON and of forms alike. A value that is one placeholder and nothing else keeps the type that
//! the lead gives it. `{{lead.name|url}}` is percent-encoded, for a part of a URL.

use std::borrow::Cow;
use std::collections::BTreeSet;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};

use crate::provider::select::Document;

/// A part of a text of a template.
enum Part<'t> {
    Text(&'t str),
    Value { name: &'t str, in_url: bool },
}

/// # Errors
/// A sentence: braces that do not match, or a name that nothing has.
fn parts(text: &str) -> Result<Vec<Part<'_>>, String> {
    let (mut parts, mut rest) = (Vec::new(), text);
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").ok_or_else(|| format!("{text:?} has {{{{ without }}}}"))?;
        let (name, in_url) = name.trim().strip_suffix("|url").map_or((name.trim(), false), |name| (name.trim(), true));
        let known = matches!(name, "own_number" | "public_url" | "business" | "run")
            || name.strip_prefix("lead.").is_some_and(|field| !field.is_empty());
        if !known {
            return Err(format!("{{{{{name}}}}} is none of lead.…, own_number, public_url, business, run"));
        }
        if !before.is_empty() {
            parts.push(Part::Text(before));
        }
        parts.push(Part::Value { name, in_url });
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest));
    }
    Ok(parts)
}

/// Every name in a template.
pub(super) fn names(value: &Value, found: &mut BTreeSet<String>) -> Result<(), String> {
    match value {
        Value::String(text) => {
            let names = parts(text)?.into_iter().filter_map(|part| match part {
                Part::Value { name, .. } => Some(name.to_owned()),
                Part::Text(_) => None,
            });
            found.extend(names);
            Ok(())
        }
        Value::Array(list) => list.iter().try_for_each(|one| names(one, found)),
        Value::Object(object) => object.values().try_for_each(|one| names(one, found)),
        _ => Ok(()),
    }
}

/// A template with its values.
pub(super) fn fill<'v>(template: &Value, value: &impl Fn(&str) -> Option<&'v Value>) -> Result<Value, String> {
    let missing = |name: &str| format!("{name} is missing");
    Ok(match template {
        Value::String(text) => match parts(text)?.as_slice() {
            [Part::Value { name, in_url: false }] => value(name).cloned().ok_or_else(|| missing(name))?,
            parts => {
                let mut filled = String::new();
                for part in parts {
                    match part {
                        Part::Text(text) => filled.push_str(text),
                        Part::Value { name, in_url } => {
                            let text = match value(name).ok_or_else(|| missing(name))? {
                                Value::String(text) => Cow::Borrowed(text.as_str()),
                                one @ (Value::Number(_) | Value::Bool(_)) => one.to_string().into(),
                                _ => return Err(format!("{name} is no text, number or truth value")),
                            };
                            match in_url {
                                true => filled.extend(utf8_percent_encode(&text, NON_ALPHANUMERIC)),
                                false => filled.push_str(&text),
                            }
                        }
                    }
                }
                Value::String(filled)
            }
        },
        Value::Array(list) => Value::Array(list.iter().map(|one| fill(one, value)).collect::<Result<_, _>>()?),
        Value::Object(object) => {
            let filled = object.iter().map(|(key, one)| Ok((key.clone(), fill(one, value)?)));
            Value::Object(filled.collect::<Result<_, String>>()?)
        }
        other => other.clone(),
    })
}

/// A field of a lead, by its path.
pub(super) fn field<'l>(lead: &'l Map<String, Value>, path: &str) -> Option<&'l Value> {
    // A column of a CSV may have a dot in its name.
    let found = lead.get(path).or_else(|| {
        let mut steps = path.split('.');
        let first = lead.get(steps.next()?)?;
        steps.try_fold(first, |value, step| value.get(step))
    });
    found.filter(|value| !value.is_null() && value.as_str() != Some(""))
}

/// A form's fields.
pub(super) fn form(fields: &Map<String, Value>) -> Result<Vec<(String, String)>, String> {
    let text = |name: &str, value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
        _ => Err(format!("{name} is no text, number or truth value, and the request is a form")),
    };
    let mut pairs = Vec::with_capacity(fields.len());
    for (name, value) in fields {
        match value {
            Value::Array(list) => {
                for one in list {
                    pairs.push((name.clone(), text(name, one)?));
                }
            }
            one => pairs.push((name.clone(), text(name, one)?)),
        }
    }
    Ok(pairs)
}

/// A template as a document, with its placeholders.
pub(super) fn document(template: &Map<String, Value>, is_form: bool) -> Document {
    match is_form {
        true => Document::Form(form(template).unwrap_or_default()),
        false => Document::Json(Value::Object(template.clone())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn filled(template: Value, lead: Value) -> Result<Value, String> {
        let Value::Object(lead) = lead else { panic!("no object") };
        fill(&template, &|name| field(&lead, name.strip_prefix("lead.")?))
    }

    #[test]
    fn what_a_lead_holds_stays_one_value() {
        let template = json!({"a": "{{lead.name}}", "b": ["Hello {{lead.name}}, {{ lead.age }}"], "c": 1, "d": {"e": "{{lead.more.x}}"}});
        let nasty = "\"}, {\"to_number\": \"+1\" & To=+2 {{lead.age}}";
        let lead = json!({"name": nasty, "age": 42, "more": {"x": [1, true]}});
        let wanted = json!({"a": nasty, "b": [format!("Hello {nasty}, 42")], "c": 1, "d": {"e": [1, true]}});
        assert_eq!(filled(template, lead), Ok(wanted));
        assert_eq!(filled(json!("{{lead.age}}"), json!({"age": 42})), Ok(json!(42)), "its type is kept");
        assert_eq!(filled(json!("{{lead.a.b}}"), json!({"a.b": "column"})), Ok(json!("column")));
        assert_eq!(filled(json!("/x?n={{lead.n|url}}"), json!({"n": "a&b=ü"})), Ok(json!("/x?n=a%26b%3D%C3%BC")));
        for (template, lead) in [
            (json!("{{lead.name}}"), json!({})),
            (json!("{{lead.name}}"), json!({"name": ""})),
            (json!("{{lead.name}}"), json!({"name": null})),
            (json!("x{{lead.name}}"), json!({"name": {}})),
        ] {
            assert!(filled(template.clone(), lead).is_err(), "{template}");
        }
    }

    #[test]
    fn placeholders_are_checked_when_the_run_is_made() {
        let found = |value: Value| {
            let mut found = BTreeSet::new();
            names(&value, &mut found).map(|()| found.into_iter().collect::<Vec<_>>())
        };
        assert_eq!(
            found(json!([{"a": "{{lead.b}} {{run}}"}, "{{own_number}}", "}} {"])),
            Ok(vec!["lead.b".to_owned(), "own_number".to_owned(), "run".to_owned()])
        );
        for bad in ["{{lead.b", "{{leads.b}}", "{{}}", "{{lead.}}", "{{account.api_key}}"] {
            assert!(found(json!(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_form_has_a_pair_for_each_value() {
        let fields = json!({"Twiml": "<Response/>", "StatusCallbackEvent": ["initiated", "completed"], "Timeout": 20});
        let Value::Object(fields) = fields else { panic!("no object") };
        let pairs = form(&fields).unwrap();
        assert_eq!(pairs.len(), 4);
        assert_eq!(pairs[3], ("Timeout".to_owned(), "20".to_owned()));
        let Value::Object(nested) = json!({"a": {"b": 1}}) else { panic!("no object") };
        assert!(form(&nested).is_err());
    }
}
