//! `ringfence doctor`: which webhook the agents use, every agent, and what happens to calls of every number.

use serde_json::{Value, json};

use crate::cli::{Folder, LISTEN};
use crate::cli_first::{KEYS, configure, live_config, run_within, simulator};

const EVENTS: &str = "https://hooks.example.com/webhooks/elevenlabs/post-call";
const VOICE: &str = "https://hooks.example.com/webhooks/twilio/voice";
const STATUS: &str = "https://hooks.example.com/webhooks/twilio/status";

/// What a command finds, as its JSON.
fn found(folder: &Folder, args: &[&str], config: &str) -> Value {
    let (_, out, err) = run_within(folder, &[args, &["--json", "--config", config]].concat(), &KEYS);
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{args:?}: {error}: {out}{err}"))
}

/// The findings of a code.
fn coded<'f>(found: &'f Value, code: &str) -> Vec<&'f Value> {
    let findings = found["findings"].as_array().or(found["diagnostics"].as_array()).unwrap();
    findings.iter().filter(|one| one["code"] == code).collect()
}

/// Everything that is in order, as text.
fn good(found: &Value) -> String {
    let lines = found["good"].as_array().unwrap_or_else(|| panic!("{found:#}"));
    lines.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\n")
}

/// A webhook with the right URL receives nothing unless the agents use it, and no transcript unless it is sent that event.
#[test]
fn a_webhook_that_no_agent_uses_is_no_all_clear() {
    let folder = Folder::new();
    let (_sim, url) = simulator();
    configure(&url, &json!({"el_events_url": EVENTS, "number_voice_url": VOICE, "number_status_url": STATUS}));
    let config = live_config(&folder, &url, LISTEN);
    for (setting, said) in [
        (json!({"el_webhook_in_use": null}), "its agents use no post-call webhook"),
        (json!({"el_webhook_in_use": "webhook_of_the_crm"}), "use another post-call webhook: webhook_of_the_crm"),
        (
            json!({"el_webhook_in_use": "webhook_simulated", "el_webhook_events": ["audio"]}),
            "post-call webhook lack transcript, call_initiation_failure",
        ),
        (json!({"el_webhook_events": ["call_initiation_failure", "audio"]}), "post-call webhook lack transcript"),
    ] {
        configure(&url, &setting);
        for args in [&["doctor"][..], &["check", "--live"]] {
            let found = found(&folder, args, &config);
            let [one] = coded(&found, "W011")[..] else { panic!("{setting}, {args:?}: {found:#}") };
            assert!(one.to_string().contains(said), "{setting}, {args:?}: {one:#}");
            assert!(one.to_string().contains("PATCH /v1/convai/settings"), "what to do: {one:#}");
            assert!(!found.to_string().contains("its webhook comes here"), "{found:#}");
        }
    }
    configure(&url, &json!({"el_webhook_events": ["transcript", "audio", "call_initiation_failure"]}));
    let now = found(&folder, &["doctor"], &config);
    assert_eq!(coded(&now, "W011"), [] as [&Value; 0], "{now:#}");
    assert!(good(&now).contains("its webhook comes here"), "{now:#}");

    // An agent may use another one than its workspace. The short form asks no agent.
    configure(&url, &json!({"el_agent_webhook": "webhook_of_the_crm"}));
    let now = found(&folder, &["doctor"], &config);
    let said =
        "agent \"Simulated agent\" has a post-call webhook of its own that does not lead here: webhook_of_the_crm";
    assert!(coded(&now, "W032").iter().any(|one| one["what"].as_str().unwrap().contains(said)), "{now:#}");
    assert_eq!(coded(&found(&folder, &["check", "--live"], &config), "W032"), [] as [&Value; 0]);
}

#[test]
fn every_one_of_250_agents_is_looked_at() {
    let folder = Folder::new();
    let (_sim, url) = simulator();
    configure(&url, &json!({"el_agents": 250}));
    let config = live_config(&folder, &url, LISTEN);
    let found = found(&folder, &["doctor"], &config);
    let good = good(&found);
    assert!(good.contains("account elevenlabs: 250 agents looked at; a call lasts 600 s at most"), "{good}");
    assert!(!good.contains("not looked at"), "{good}");
    let bursts =
        found["findings"].as_array().unwrap().iter().find(|one| one["what"].as_str().unwrap().contains("burst"));
    assert!(bursts.unwrap()["what"].as_str().unwrap().contains("and 240 more"), "{found:#}");
}

#[test]
fn every_number_has_its_inbound_mode() {
    let folder = Folder::new();
    let (_sim, url) = simulator();
    let (below, strange) = ("AC00000000000000000000000000000002", "AC00000000000000000000000000000003");
    configure(
        &url,
        &json!({
            "number_voice_url": VOICE, "number_status_url": STATUS,
            "subaccounts": {
                below: {"auth_token": "below", "numbers": {"+15550007701": VOICE, "+15550007702": "https://demo.twilio.com/welcome"}},
                strange: {"auth_token": "x", "owner": "AC000000000000000000000000000000ff", "numbers": {"+15550007703": VOICE}},
            },
        }),
    );
    let (front, app) = ("front: ringfence answers with the agent's TwiML", "app: your app answers through ringfence");
    for (inbound, mode) in [("[inbound]\nmode = \"front\"\n", front), ("", app)] {
        let config = live_config(&folder, &url, &format!("{LISTEN}{inbound}"));
        let found = found(&folder, &["doctor"], &config);
        let good = good(&found);
        let line = |part: &str| {
            let line = good.lines().find(|line| line.contains(part)).unwrap_or_else(|| panic!("no {part} in\n{good}"));
            line.to_owned()
        };
        // The account's own number, and those of an account below it.
        for number in [
            "number +155••••••01 (PN00000000000000000000000000000001)",
            "number +155••••••01 (PN000000000000000000000000000000b0)",
        ] {
            let line = line(number);
            assert!(line.contains("account twilio: ") && line.contains("Voice URL comes here"), "{line}");
            assert!(line.contains(mode), "{inbound}: {line}");
        }
        let native = line("number +155••••••02 (PN000000000000000000000000000000b1)");
        assert!(native.contains("Voice URL goes to demo.twilio.com"), "{native}");
        assert!(native.contains("(native: whoever has it answers; ringfence counts its calls by asking"), "{native}");
        assert!(!good.contains("••03 ("), "an account of somebody else: {good}");
        // Those that ElevenLabs knows.
        assert!(line("phone number +155••••••11 (phnum_1)").contains("native: its agent answers"), "{good}");
        assert!(line("phone number +155••••••12 (phnum_2)").contains("no agent answers it"), "{good}");
        for whole in ["+15550007701", "+15550001111", "15550001101"] {
            assert!(!found.to_string().contains(whole), "numbers are masked: {found:#}");
        }
        let elsewhere = coded(&found, "W012");
        assert!(elsewhere.iter().any(|one| one["what"].as_str().unwrap().contains("demo.twilio.com")), "{found:#}");
    }
}
