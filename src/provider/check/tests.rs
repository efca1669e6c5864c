//! Findings about the built-in providers' webhooks, numbers and agents.

use std::collections::BTreeMap;

use http::Uri;
use serde_json::{Value, json};

use super::*;
use crate::provider::Registry;

fn findings(provider: &str, base: &str, items: &[Value]) -> Vec<(Finding, Vec<String>)> {
    let registry = Registry::new(&[]).unwrap();
    let description = registry.get(provider).unwrap();
    let base: Uri = base.parse().unwrap();
    let extra = BTreeMap::from([("twilio.voice".to_owned(), vec!["/ours/voice".to_owned()])]);
    let here =
        OwnWebhooks { base: &base, webhooks: &description.webhooks, provider, extra_paths: &extra, doctor: true };
    description.check.as_ref().unwrap().hooks[0].findings(items, here).into_iter().collect()
}

fn number(voice: &str, status: &str) -> Value {
    json!({"sid": "PN1", "phone_number": "+15550001111", "voice_url": voice, "status_callback": status,
           "voice_application_sid": "", "trunk_sid": null, "voice_fallback_url": "https://app.example.com/busy"})
}

#[test]
fn a_number_is_right_on_any_path_of_ours_and_wrong_elsewhere() {
    let status = "https://h.example.com/webhooks/twilio/status";
    let table = [
        ("https://h.example.com/webhooks/twilio/voice", status, vec![]),
        ("https://H.example.com:443/twilio/voice#rc=3", status, vec![]),
        ("https://h.example.com/ours/voice?x=1", status, vec![]),
        ("https://demo.twilio.com/welcome", status, vec!["goes to demo.twilio.com"]),
        ("https://h.example.com:8443/twilio/voice", status, vec!["goes to h.example.com:8443"]),
        ("", "", vec!["is empty", "is empty"]),
        ("https://h.example.com/mine", status, vec!["goes to /mine, a path that is passed on to the app unread"]),
    ];
    for (voice, status, expected) in table {
        let found = findings("twilio", "https://h.example.com", &[number(voice, status)]);
        let what: Vec<&str> = found
            .iter()
            .map(|(finding, names)| match finding {
                Finding::Elsewhere { is, path, .. } => {
                    assert_eq!(path.is_some(), is.contains("unread"), "what is offered to be added");
                    assert_eq!(names, &["+155••••••11 (PN1)"]);
                    is.as_str()
                }
                other => panic!("{voice}: {other:?}"),
            })
            .collect();
        assert_eq!(what, expected, "{voice}, {status}");
    }
    let below = number("https://h.example.com/rf/twilio/voice", "https://h.example.com/rf/twilio/status");
    assert_eq!(findings("twilio", "https://h.example.com/rf/", &[below]), vec![]);
}

#[test]
fn a_number_without_a_fallback_is_told_of_by_doctor() {
    let mut without = number("https://h.example.com/twilio/voice", "https://h.example.com/twilio/status");
    for empty in [json!(""), Value::Null, json!("https://h.example.com/busy.xml")] {
        without["voice_fallback_url"] = empty;
        let found = findings("twilio", "https://h.example.com", std::slice::from_ref(&without));
        let [(Finding::Fault(Setting { says, why: Some(_), fix: Some(_) }), _)] = &found[..] else {
            panic!("{found:?}")
        };
        assert!(says.contains("VoiceFallbackUrl"), "{says}");
    }
}

#[test]
fn an_agent_that_may_burst_is_found() {
    let registry = Registry::new(&[]).unwrap();
    let agents = &registry.get("elevenlabs").unwrap().check.as_ref().unwrap().lists[0];
    let agent = |bursting: Value, queueing: Value| {
        json!({"agent_id": "agent_1", "name": "Front desk",
            "conversation_config": {"conversation": {"max_duration_seconds": 600}},
            "platform_settings": {"call_limits": {"bursting_enabled": bursting}, "queueing_config": {"enabled": queueing}}})
    };
    assert_eq!(agents.id_of(&agent(json!(true), json!(false))).as_deref(), Some("agent_1"));
    let ItemFindings { name, found, longest_secs, .. } = agents.findings(&agent(json!(true), json!(true)), None);
    assert_eq!((name.as_str(), found.len(), longest_secs), ("\"Front desk\"", 2, Some(600)), "{found:?}");
    assert!(found[0].says.contains("burst") && found[1].says.contains("queue"), "{found:?}");
    assert_eq!(agents.findings(&agent(json!(false), json!(false)), None).found, []);
}

/// A webhook with our URL that nobody uses is no webhook.
#[test]
fn the_webhook_that_agents_use_has_to_be_ours_and_to_have_transcripts() {
    let registry = Registry::new(&[]).unwrap();
    let check = registry.get("elevenlabs").unwrap().check.as_ref().unwrap();
    let (hooks, agents) = (&check.hooks[0], &check.lists[0]);
    let base: Uri = "https://h.example.com".parse().unwrap();
    let description = registry.get("elevenlabs").unwrap();
    let extra = BTreeMap::new();
    let here = OwnWebhooks {
        base: &base,
        webhooks: &description.webhooks,
        provider: "elevenlabs",
        extra_paths: &extra,
        doctor: true,
    };
    let hook = |id: &str, url: &str| json!({"webhook_id": id, "webhook_url": url, "is_disabled": false});
    let items =
        [hook("wh_crm", "https://crm.example.com/x"), hook("wh_1", "https://h.example.com/webhooks/elevenlabs")];
    let ours = hooks.ids_posting_here(&items, here);
    assert_eq!(ours, ["wh_1"]);
    let in_use = hooks.in_use.as_ref().unwrap();
    let workspace = |id: Value, events: Value| json!({"webhooks": {"post_call_webhook_id": id, "events": events}});
    let both = json!(["transcript", "call_initiation_failure"]);
    let table = [
        (workspace(json!("wh_1"), both.clone()), None),
        (workspace(json!("wh_1"), Value::Null), None),
        (workspace(json!("wh_crm"), both.clone()), Some("wh_crm")),
        (workspace(Value::Null, both.clone()), Some("no post-call webhook")),
        (json!({}), Some("no post-call webhook")),
        (workspace(json!("wh_1"), json!(["audio", "call_initiation_failure"])), Some("lack transcript")),
        (workspace(json!("wh_1"), json!([])), Some("lack transcript, call_initiation_failure")),
    ];
    for (settings, expected) in table {
        let found = in_use.fault(&settings, &ours);
        assert_eq!(found.is_some(), expected.is_some(), "{settings}: {found:?}");
        assert!(found.is_none_or(|one| one.says.contains(expected.unwrap()) && one.fix.is_some()), "{settings}");
    }
    // An agent may have another one.
    let agent =
        |overrides: Value| json!({"name": "Front desk", "platform_settings": {"workspace_overrides": overrides}});
    let found = |overrides: Value| agents.findings(&agent(overrides), Some(&ours)).found;
    assert_eq!(found(Value::Null), []);
    assert_eq!(found(workspace(Value::Null, Value::Null)), []);
    assert_eq!(found(workspace(json!("wh_1"), both)), []);
    assert!(found(workspace(json!("wh_crm"), Value::Null))[0].says.contains("wh_crm"));
    assert!(found(workspace(json!("wh_1"), json!(["audio"])))[0].says.contains("transcript"));
    assert_eq!(agents.findings(&agent(workspace(json!("wh_crm"), Value::Null)), None).found, [], "nothing is known");
}

#[test]
fn each_number_of_elevenlabs_has_its_mode() {
    let registry = Registry::new(&[]).unwrap();
    let numbers = &registry.get("elevenlabs").unwrap().check.as_ref().unwrap().lists[1];
    let number =
        |agent: Value| json!({"phone_number": "+15550001111", "phone_number_id": "phnum_1", "assigned_agent": agent});
    let native = numbers.findings(&number(json!({"agent_id": "agent_1", "agent_name": "Front desk"})), None);
    assert_eq!(native.name, "+155••••••11 (phnum_1)");
    assert!(native.mode.unwrap().starts_with("native: "));
    assert!(numbers.findings(&number(Value::Null), None).mode.unwrap().contains("no agent"));
}

#[test]
fn a_number_with_an_application_is_told_apart() {
    let mut with = number("https://h.example.com/twilio/voice", "");
    with["voice_application_sid"] = json!("AP1");
    let found = findings("twilio", "https://h.example.com", &[with]);
    assert!(
        matches!(&found[..], [(Finding::Fault(Setting { says, .. }), _)] if says.contains("TwiML application")),
        "{found:?}"
    );
}

#[test]
fn one_webhook_of_a_workspace_has_to_come_here_and_work() {
    let hook = |url: &str, disabled: bool, failed: Value| {
        json!({"name": "calls", "webhook_url": url, "is_disabled": false, "is_auto_disabled": disabled,
               "most_recent_failure_error_code": failed, "most_recent_failure_timestamp": 1_760_000_000})
    };
    let findings = |items: &[Value]| findings("elevenlabs", "https://h.example.com", items);
    let (ours, other) = ("https://h.example.com/webhooks/elevenlabs", "https://crm.example.com/x");
    assert_eq!(findings(&[hook(ours, false, Value::Null), hook(other, true, json!(500))]), vec![]);
    assert!(matches!(&findings(&[])[..], [(Finding::NoneHere { of: 0, .. }, _)]));
    assert!(matches!(&findings(&[hook(other, false, Value::Null)])[..], [(Finding::NoneHere { of: 1, .. }, _)]));
    for (disabled, failed, expected) in
        [(true, json!(500), "switched off"), (false, json!(401), "401, at 2025-10-09T08:53:20Z")]
    {
        let found = findings(&[hook(ours, disabled, failed)]);
        assert!(
            matches!(&found[..], [(Finding::Fault(Setting { says, .. }), _)] if says.contains(expected)),
            "{found:?}"
        );
    }
}
