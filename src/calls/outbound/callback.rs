//! Callbacks: URLs in a create that ringfence registers its own for, and calls in the provider's place.

use super::request::CreateRequest;
use crate::calls::context::Context;
use crate::net::CallbackError;
use crate::provider::description::Callback;
use crate::provider::path::climbs;
use crate::provider::select::{Document, Selector};

/// Checks the callback URL of a create. A URL of the app itself is delivered to `app.forward_url`, which the operator configured.
///
/// # Errors
/// Why the URL will not be called.
pub(super) fn check_callbacks(context: &Context, request: &CreateRequest) -> Result<(), CallbackError> {
    let Some(rule) = callback_rule(context, request) else { return Ok(()) };
    for method in values(&request.body, &rule.method_field) {
        if !["GET", "POST"].iter().any(|one| method.eq_ignore_ascii_case(one)) {
            let shown: String = method.chars().filter(|c| c.is_ascii_alphanumeric()).take(16).collect();
            return Err(CallbackError::unusable(format!("{} {shown:?} is neither GET nor POST", rule.method_field)));
        }
    }
    let mut urls = values(&request.body, &rule.field);
    urls.retain(|url| !url.is_empty());
    urls.iter().try_for_each(|url| check_callback(context, url))
}

fn check_callback(context: &Context, url: &str) -> Result<(), CallbackError> {
    let app = &context.settings.app;
    if let Some(path) = app.path_of(url) {
        if climbs(path.split('?').next().unwrap_or_default()) {
            return Err(CallbackError::unusable("its path escapes its root"));
        }
        if app.forward_url.is_some() {
            return match context.may_forward(path) {
                true => Ok(()),
                false => Err(CallbackError::unusable("app.forward_paths does not let its path pass to the app")),
            };
        }
        if app.is_own(url) {
            return Err(CallbackError::unusable("it leads back to ringfence, and app.forward_url is not set"));
        }
    }
    context.upstream.callback_rules().check_url(url)
}

/// The rule that replaces a create's callback, if one applies.
pub(super) fn callback_rule<'r>(context: &Context, request: &'r CreateRequest) -> Option<&'r Callback> {
    let rule: &Callback = request.operation.callback.as_ref()?;
    context.settings.app.public_url.as_ref()?;
    (rule.unless.is_empty() || !rule.unless.holds(&request.message())).then_some(rule)
}

/// All values of a field: a form may repeat it, JSON may have a list.
fn values(body: &Document, field: &str) -> Vec<String> {
    match body {
        Document::Form(pairs) => pairs.iter().filter(|(name, _)| name == field).map(|(_, v)| v.clone()).collect(),
        Document::Json(_) => {
            let Ok(selector) = Selector::parse(&format!("body.{field}")) else { return vec![] };
            match selector.json(body) {
                Some(serde_json::Value::String(one)) => vec![one.clone()],
                Some(serde_json::Value::Array(list)) => {
                    list.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect()
                }
                _ => vec![],
            }
        }
        Document::Empty | Document::Xml(_) => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_read_wherever_it_stands() {
        let pairs = [("Url", "a"), ("x", "y"), ("Url", "b")].map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec();
        assert_eq!(values(&Document::Form(pairs), "Url"), ["a", "b"]);
        let json = |value| Document::Json(serde_json::json!({"Url": value}));
        assert_eq!(values(&json(serde_json::json!("a")), "Url"), ["a"]);
        assert_eq!(values(&json(serde_json::json!(["a", 7, "b"])), "Url"), ["a", "b"]);
        assert!(values(&json(serde_json::json!(7)), "Url").is_empty() && values(&Document::Empty, "Url").is_empty());
    }
}
