//! `ringfence smoke --live`: one call through a running sidecar, followed to its end.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::cli::{Folder, Running, command, run, start};
use crate::cli_first::{configure, simulator};

/// The number that is called; whole nowhere but in the question.
const TO: &str = "+15551230022";
/// One that is busy, at the simulated providers.
const BUSY: &str = "+15551230001";
const ACME: &str =
    "[businesses.acme]\nmax_calls = 1\nagent_ids = [\"agent_acme\"]\nphone_numbers = [\"+15550001101\", \"phnum_1\"]\n";

/// A sidecar in front of both simulated providers, whose webhooks come to it.
struct Sidecar {
    _folder: Folder,
    file: String,
    url: String,
    api: String,
    _sim: Running,
    _serve: Running,
}

impl Sidecar {
    fn start(tables: &str) -> Self {
        let folder = Folder::new();
        let (sim, url) = simulator();
        let [api, webhooks] = [(), ()].map(|()| format!("127.0.0.1:{}", ringfence::net::spare_port()));
        let text = format!(
            "public_url = \"http://{webhooks}\"\n[listen]\napi = \"{api}\"\nwebhooks = \"{webhooks}\"\nadmin = \"127.0.0.1:0\"\n\
             client = \"127.0.0.1:0\"\n[timeouts]\ndrain_secs = 1\n[reconcile]\nsweep_ms = 200\nlist_lag_ms = 200\n\
             not_found_confirm_secs = 1\n\
             [accounts.elevenlabs]\nupstream = \"{url}\"\napi_key = \"sk_simulated\"\nwebhook_secrets = [\"wsec_simulated\"]\n\
             concurrent = 3\n[accounts.twilio]\nupstream = \"{url}\"\naccount_sid = \"AC00000000000000000000000000000001\"\n\
             auth_token = \"0123456789abcdef0123456789abcdef\"\n{tables}"
        );
        let file = folder.write("ringfence.toml", &text);
        let (serve, _) = start(&["serve", "--config", &file, "--ready-json"]);
        let events = format!("http://{webhooks}/webhooks/elevenlabs/post-call");
        configure(&url, &json!({"el_events_url": events, "ring_ms": [1200, 1200], "talk_ms": [1500, 1500]}));
        Self { _folder: folder, file, url, api, _sim: sim, _serve: serve }
    }

    fn args<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        [&["smoke", "-c", &self.file, "--live", "--to", TO], more].concat()
    }

    /// Exit code, stdout and stderr, in which nothing is whole that must not be.
    fn smoke(&self, more: &[&str]) -> (Option<i32>, String, String) {
        let (code, out, err) = run(&self.args(more));
        for secret in [TO, TO.trim_start_matches('+'), "sk_simulated", "0123456789abcdef"] {
            assert!(!out.contains(secret) && !err.contains(secret), "{secret} is in\n{out}{err}");
        }
        let is_narrow = |line: &str| line.chars().count() <= 100 || line.contains("POST http") || line.starts_with('{');
        assert!(out.lines().all(is_narrow), "{out}");
        (code, out, err)
    }

    fn json(&self, more: &[&str]) -> (Option<i32>, Value) {
        let (code, out, err) = self.smoke(&[&["--yes", "--json"], more].concat());
        (code, serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}")))
    }

    /// Calls that the providers were asked for.
    fn created(&self) -> u64 {
        let state = Command::new("curl").args(["-sf", &format!("{}/_sim/state", self.url)]).output().unwrap();
        let state: Value = serde_json::from_slice(&state.stdout).unwrap();
        ["creates_el", "creates_tw"].iter().map(|name| state["counts"][name].as_u64().unwrap()).sum()
    }

    fn fault(&self, kind: &str) {
        let fault = json!({"provider": "elevenlabs", "kind": kind, "n": 1}).to_string();
        let set = Command::new("curl").args(["-sf", "-d", &fault, &format!("{}/_sim/fault", self.url)]).output();
        assert!(set.unwrap().status.success(), "{kind}");
    }
}

fn steps(report: &Value) -> Vec<&str> {
    report["steps"].as_array().unwrap().iter().map(|one| one["step"].as_str().unwrap()).collect()
}

fn failures(report: &Value) -> Vec<&Value> {
    report["checks"].as_array().unwrap().iter().filter(|one| one["ok"] == false).collect()
}

#[test]
fn a_call_at_each_provider_is_followed_to_its_end() {
    let sidecar = Sidecar::start(ACME);
    let (code, out, err) = sidecar.smoke(&["--yes", "--within-secs", "60"]);
    assert_eq!(code, Some(0), "{out}{err}");
    for part in [
        "It costs money at elevenlabs and at its carrier, account twilio",
        "+155••••••22",
        "agent_id = agent_acme   (businesses.acme.agent_ids)",
        "agent_phone_number_id = phnum_1",
        "admitted",
        "placed",
        "call_sid CA",
        "conv_",
        "answered",
        "ended",
        "slot free",
        "post_call_transcription of elevenlabs: applied",
        "All 5 checks passed.",
    ] {
        assert!(out.contains(part), "{part} is not in\n{out}{err}");
    }

    // A second test in a row is a second call, and a script reads it.
    let (code, report) = sidecar.json(&["--account", "twilio", "--within-secs", "60"]);
    assert_eq!((code, &report["ok"], &report["operation"]), (Some(0), &true.into(), &"calls".into()), "{report:#}");
    assert_eq!(sidecar.created(), 2);
    for step in ["admitted", "placed", "ringing", "answered", "ended", "slot free", "record", "webhook"] {
        assert!(steps(&report).contains(&step), "{step} is not in {report:#}");
    }
    assert!(report["callId"].as_str().unwrap().starts_with("c_"), "{report:#}");
    let (code, report) = sidecar.json(&["--within-secs", "60"]);
    assert_eq!((code, sidecar.created()), (Some(0), 3), "{report:#}");
}

#[test]
fn a_lost_webhook_is_told_with_its_fix() {
    let sidecar = Sidecar::start(ACME);
    configure(&sidecar.url, &json!({"webhook_loss": 1.0}));
    let (code, report) = sidecar.json(&["--within-secs", "15"]);
    assert_eq!((code, &report["ok"]), (Some(1), &false.into()), "{report:#}");
    let told = failures(&report);
    let polled = told.iter().find(|one| one["what"].as_str().unwrap().contains("by polling only")).unwrap();
    assert!(polled["fix"].as_str().unwrap().contains("ringfence doctor"), "{report:#}");
    assert!(steps(&report).contains(&"slot free"), "polling frees the slot: {report:#}");
}

#[test]
fn a_call_that_is_refused_or_rejected_is_explained() {
    let sidecar = Sidecar::start(ACME);
    // The provider's own rejection.
    sidecar.fault("422");
    let (code, out, _) = sidecar.smoke(&["--yes"]);
    assert!(code == Some(1) && out.contains("elevenlabs rejects the call with 422"), "{out}");
    assert!(out.contains("--agent, --from, --field") && out.contains("another outbound call"), "{out}");
    // A list, and a limit.
    let (code, out, err) = run(&["do-not-call", "-c", &sidecar.file, "add", TO, "--reason", "test"]);
    assert_eq!(code, Some(0), "{out}{err}");
    let (code, out, _) = sidecar.smoke(&["--yes"]);
    assert!(code == Some(1) && out.contains("refused the call: DO_NOT_CALL_BLOCKED"), "{out}");
    assert_eq!(run(&["do-not-call", "-c", &sidecar.file, "remove", TO]).0, Some(0));
    configure(&sidecar.url, &json!({"talk_ms": [600_000, 600_000]}));
    let dialled = Command::new("curl")
        .args(["-sf", "-H", "xi-api-key: sk_simulated", "-H", "content-type: application/json", "-d"])
        .arg(r#"{"agent_id":"agent_acme","agent_phone_number_id":"phnum_1","to_number":"+15551230033"}"#)
        .arg(format!("http://{}/elevenlabs/v1/convai/twilio/outbound-call", sidecar.api))
        .output()
        .unwrap();
    assert!(dialled.status.success(), "{dialled:?}");
    let created = sidecar.created();
    let (code, out, _) = sidecar.smoke(&["--yes"]);
    assert_eq!(code, Some(1), "{out}");
    for part in [
        "BUSINESS_CONCURRENT_LIMIT_EXCEEDED",
        "nothing was dialled",
        "hold business.acme now:",
        "ringfence explain rf_",
    ] {
        assert!(out.contains(part), "{part} is not in\n{out}");
    }
    let (code, report) = sidecar.json(&[]);
    assert_eq!(code, Some(1));
    assert_eq!(report["explained"]["refusal"]["code"], "BUSINESS_CONCURRENT_LIMIT_EXCEEDED", "{report:#}");
    assert_eq!(sidecar.created(), created);
}

#[test]
fn a_call_that_nobody_answers_is_no_success() {
    let sidecar = Sidecar::start(ACME);
    let (code, out, err) = run(&["smoke", "-c", &sidecar.file, "--live", "--yes", "--to", BUSY]);
    // The webhook says that it was busy; a look-up, which may be first, only that it failed.
    let told = ["FAILED   not answered: busy", "FAILED   the call failed at the provider: failed"];
    let is_told = told.iter().any(|told| out.contains(told));
    assert!(code == Some(1) && is_told, "{out}{err}");
    assert!(out.contains("ok       its slot is free") && out.contains("1 of 4 checks failed."), "{out}");
}

#[test]
fn a_call_that_goes_on_is_named_with_the_way_to_end_it() {
    let sidecar = Sidecar::start(ACME);
    configure(&sidecar.url, &json!({"talk_ms": [600_000, 600_000]}));
    let (code, report) = sidecar.json(&["--within-secs", "3"]);
    let [over] = &failures(&report)[..] else { panic!("{report:#}") };
    let hangup = format!("ringfence calls hangup {}", report["callId"].as_str().unwrap());
    assert!(code == Some(1) && over["fix"].as_str().unwrap().contains(&hangup), "{report:#}");
    assert_eq!(run(&["calls", "-c", &sidecar.file, "hangup", report["callId"].as_str().unwrap()]).0, Some(0));
}

#[test]
fn nothing_is_dialled_unless_somebody_means_it() {
    let sidecar = Sidecar::start("");
    let (code, out, err) = run(&["smoke", "-c", &sidecar.file, "--to", TO]);
    assert!(code == Some(2) && err.contains("without --live no call is placed"), "{out}{err}");
    for (options, why) in [
        (&["--agent", "a", "--from", "phnum_1", "--admin", "127.0.0.1:9"][..], "say with --api"),
        (&["--from", "phnum_1", "--field", "agent_phone_number_id=phnum_2"], "name the same"),
        (&["--agent", "a", "--field", "agent_id=b"], "name the same"),
    ] {
        let (code, _, err) = sidecar.smoke(&[&["--yes"], options].concat());
        assert!(code == Some(2) && err.contains(why), "{err}");
    }
    let (code, _, err) = sidecar.smoke(&["--yes"]);
    assert_eq!(code, Some(2), "{err}");
    for part in ["needs agent_id and agent_phone_number_id", "--agent AGENT_ID --from NUMBER_ID", "For example: "] {
        assert!(err.contains(part), "{part} is not in\n{err}");
    }
    let (code, _, err) = sidecar.smoke(&["--yes", "--account", "nobody"]);
    assert!(code == Some(2) && err.contains("elevenlabs, twilio"), "{err}");

    // The question shows the number, and no is the answer of whoever is not there.
    let answers = |answer: &str| {
        let args = sidecar.args(&["--agent", "agent_1", "--from", "phnum_1"]);
        let mut child = command(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(answer.as_bytes()).unwrap();
        let done = child.wait_with_output().unwrap();
        (done.status.code(), String::from_utf8(done.stdout).unwrap())
    };
    for answer in ["n\n", "", "no\n"] {
        let (code, out) = answers(answer);
        assert!(code == Some(1) && out.contains("Nothing was dialled."), "{out}");
        assert!(out.contains(TO) && out.contains("Place this call? [y/N]"), "{out}");
    }
    assert_eq!(sidecar.created(), 0);
    let (code, out) = answers("y\n");
    assert_eq!((code, sidecar.created()), (Some(0), 1), "{out}");
    assert_eq!(out.matches(TO).count(), 1, "whole in the question alone: {out}");
}
