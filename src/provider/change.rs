//! Safe changes at a provider for `ringfence doctor --fix`: webhooks with a path of ours at another host, empty status callbacks, and a
//! fallback if the operator names one. Pure.

use std::collections::BTreeMap;

use http::{HeaderMap, Uri};
use serde_json::Value;

use super::check::{Hooks, OwnWebhooks};
use super::select::{Document, Message};

/// The changes of one item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemChange {
    /// The item's id at the provider.
    pub id: String,
    /// The item's display name.
    pub name: String,
    /// The item's changed settings.
    pub settings: Vec<SettingChange>,
}

/// A changed setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingChange {
    /// The parameter of the request.
    pub param: String,
    /// The current value.
    pub from: String,
    /// The new value.
    pub to: String,
}

impl Hooks {
    /// The changes that direct its items to ringfence. `fallback` is the URL that the provider calls while ringfence is unreachable.
    pub fn changes(&self, items: &[Value], here: OwnWebhooks<'_>, fallback: Option<&str>) -> Vec<ItemChange> {
        let change = |item: &Value| {
            let settings = self.settings(item, here, fallback)?;
            let (id, name) = self.id_and_name(item)?;
            (!settings.is_empty()).then_some(ItemChange { id, name, settings })
        };
        items.iter().filter_map(change).collect()
    }

    /// The current values of the parameters of the item with this id.
    pub fn values_of(&self, items: &[Value], id: &str) -> Option<BTreeMap<String, String>> {
        let item = items.iter().find(|item| self.id_and_name(item).is_some_and(|(one, _)| one == id))?;
        let (body, headers) = (Document::Json(item.clone()), HeaderMap::new());
        let message = Message::new(&body, &headers);
        let urls = self.urls.iter().filter_map(|url| Some((url.param.clone()?, &url.at)));
        let all = urls.chain(self.fallback.iter().map(|fallback| (fallback.param.clone(), &fallback.at)));
        Some(all.map(|(param, at)| (param, at.text(&message).unwrap_or_default().into_owned())).collect())
    }

    /// `None`: the provider does not use its URLs.
    fn settings(&self, item: &Value, here: OwnWebhooks<'_>, fallback: Option<&str>) -> Option<Vec<SettingChange>> {
        let (body, headers) = (Document::Json(item.clone()), HeaderMap::new());
        let message = Message::new(&body, &headers);
        if self.instead.iter().any(|one| one.at.text(&message).is_some_and(|text| !text.is_empty())) {
            return None;
        }
        let mut all = vec![];
        let mut comes_here = false;
        for url in &self.urls {
            let from = url.at.text(&message).unwrap_or_default().into_owned();
            if here.wrong_url(&from, &url.webhook).is_none() {
                // A notification (a status callback) does not decide which program answers.
                comes_here |= !url.if_empty;
                continue;
            }
            let to = match from.trim().is_empty() {
                true => url.if_empty.then(|| here.url_of(url)),
                // Its path is one of ringfence: only the host changes.
                false => rehosted(&from, here.base).filter(|to| here.wrong_url(to, &url.webhook).is_none()),
            };
            if let Some((param, to)) = url.param.clone().zip(to) {
                comes_here |= !url.if_empty;
                all.push(SettingChange { param, from, to });
            }
        }
        if let Some((rule, to)) = self.fallback.as_ref().zip(fallback).filter(|_| comes_here)
            && rule.fault(&message, here).is_some()
        {
            let from = rule.at.text(&message).unwrap_or_default().into_owned();
            all.push(SettingChange { param: rule.param.clone(), from, to: to.to_owned() });
        }
        Some(all)
    }
}

/// The same path and query at another base.
fn rehosted(url: &str, base: &Uri) -> Option<String> {
    let uri: Uri = url.trim().parse().ok()?;
    let rest = uri.path_and_query()?;
    uri.host()?;
    Some(format!("{}{rest}", base.to_string().trim_end_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::Registry;
    use serde_json::json;

    fn changes(item: Value, fallback: Option<&str>) -> Vec<(String, String)> {
        let registry = Registry::new(&[]).unwrap();
        let twilio = registry.get("twilio").unwrap();
        let (base, extra_paths) = ("https://new.example.com".parse().unwrap(), BTreeMap::new());
        let here = OwnWebhooks {
            base: &base,
            webhooks: &twilio.webhooks,
            provider: "twilio",
            extra_paths: &extra_paths,
            doctor: true,
        };
        let found = twilio.check.as_ref().unwrap().hooks[0].changes(&[item], here, fallback);
        found.into_iter().flat_map(|item| item.settings).map(|one| (one.param, one.to)).collect()
    }

    fn number(voice: &str, status: &str, fallback: &str) -> Value {
        json!({"sid": "PN1", "phone_number": "+15550001111", "voice_url": voice, "status_callback": status,
               "voice_fallback_url": fallback, "voice_application_sid": "", "trunk_sid": null})
    }

    #[test]
    fn only_what_is_safe_is_changed() {
        let voice = "https://new.example.com/webhooks/twilio/voice";
        let status = "https://new.example.com/webhooks/twilio/status";
        let is = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(param, to)| ((*param).to_owned(), (*to).to_owned())).collect()
        };
        for (item, fallback, wanted) in [
            (number(voice, status, "https://app.example.com/busy"), Some("https://f.example.com"), is(&[])),
            (number(voice, "", "x"), None, is(&[("StatusCallback", status)])),
            // One at ringfence's own host is no help when that host is away.
            (
                number(voice, status, "https://NEW.example.com:443/busy"),
                Some("https://f.example.com"),
                is(&[("VoiceFallbackUrl", "https://f.example.com")]),
            ),
            (number(voice, &format!("{status}#rc=3&rp=ct,rt,5xx"), "https://app.example.com/busy"), None, is(&[])),
            (
                number("https://old.example.com/webhooks/twilio/voice?x=1", status, "x"),
                None,
                is(&[("VoiceUrl", &format!("{voice}?x=1"))]),
            ),
            (
                number(voice, "http://old.example.com:8081/webhooks/twilio/status", "x"),
                None,
                is(&[("StatusCallback", status)]),
            ),
            // Another program's: neither the answering URL nor the callback is changed.
            (
                number("https://demo.twilio.com/welcome", "https://crm.example.com/calls", ""),
                Some("https://f.example.com"),
                is(&[]),
            ),
            (
                number("https://demo.twilio.com/welcome", "", ""),
                Some("https://f.example.com"),
                is(&[("StatusCallback", status)]),
            ),
            (number("https://demo.twilio.com/welcome", status, ""), Some("https://f.example.com"), is(&[])),
            (number("", "", ""), None, is(&[("StatusCallback", status)])),
            (
                number(voice, status, ""),
                Some("https://f.example.com"),
                is(&[("VoiceFallbackUrl", "https://f.example.com")]),
            ),
            (number(voice, status, ""), None, is(&[])),
        ] {
            assert_eq!(changes(item.clone(), fallback), wanted, "{item}");
        }
        let mut other = number("", "", "");
        other["voice_application_sid"] = "AP1".into();
        assert_eq!(changes(other, None), []);
    }
}
