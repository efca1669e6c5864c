//! `ringfence doctor --fix`: shown, asked about, set at the provider, and taken back.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::cli::{Folder, LISTEN};
use crate::cli_first::{KEYS, configure, live_config, run_within, simulator, within};

/// The number at the provider.
fn number(url: &str) -> Value {
    let (sid, token) = (KEYS[2].1, KEYS[3].1);
    let list = format!("{url}/2010-04-01/Accounts/{sid}/IncomingPhoneNumbers.json");
    let told = Command::new("curl").args(["-sf", "-u", &format!("{sid}:{token}"), &list]).output().unwrap();
    serde_json::from_slice::<Value>(&told.stdout).unwrap()["incoming_phone_numbers"][0].clone()
}

fn urls(url: &str) -> [String; 3] {
    let number = number(url);
    ["voice_url", "status_callback", "voice_fallback_url"].map(|key| number[key].as_str().unwrap().to_owned())
}

const OLD: &str = "https://old.example.com/webhooks/twilio/voice";
const OLD_STATUS: &str = "http://old.example.com:8081/webhooks/twilio/status";
const VOICE: &str = "https://hooks.example.com/webhooks/twilio/voice";
const STATUS: &str = "https://hooks.example.com/webhooks/twilio/status";
const BUSY: &str = "https://static.example.com/busy.xml";

#[test]
fn what_is_safe_is_shown_asked_about_set_and_taken_back() {
    let folder = Folder::new();
    let (_sim, url) = simulator();
    configure(&url, &json!({"number_voice_url": OLD, "number_status_url": OLD_STATUS}));
    let config = live_config(&folder, &url, LISTEN);
    let doctor = |more: &[&str]| run_within(&folder, &[&["doctor", "--config", &config], more].concat(), &KEYS);
    let before = urls(&url);
    assert_eq!(before, [OLD, OLD_STATUS, ""]);

    // Nobody agrees, so nothing is set and no file is made.
    let (code, out, err) = doctor(&["--fix"]);
    assert!(code == Some(1) && out.contains("Nothing was set"), "{out}{err}");
    for part in ["- VoiceUrl", OLD, "+ VoiceUrl", VOICE, OLD_STATUS, "+ StatusCallback", STATUS, "account twilio"] {
        assert!(out.contains(part), "{part} is not in {out}");
    }
    assert!(!out.contains(number(&url)["phone_number"].as_str().unwrap()), "numbers are masked: {out}");
    assert_eq!(urls(&url), before);
    let files = || {
        std::fs::read_dir(&folder.0)
            .unwrap()
            .filter(|f| f.as_ref().unwrap().path().extension().unwrap() == "json")
            .count()
    };
    assert_eq!(files(), 0);

    // Somebody agrees.
    let args = ["doctor", "--config", &config, "--fix", "--fallback-url", BUSY, "--undo-file", "undo.json"];
    let mut child = within(&folder, &args, &KEYS);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"y\n").unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success(), "{done:?}");
    assert_eq!(urls(&url), [VOICE, STATUS, BUSY]);
    let undo = folder.0.join("undo.json");
    assert_eq!(undo.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    // Once more there is nothing to do; and a file that is there is not written over.
    let (code, out, _) = doctor(&["--fix", "--yes"]);
    assert!(code == Some(0) && out.contains("nothing to set"), "{out}");
    configure(&url, &json!({"number_status_url": null}));
    let (code, out, err) = doctor(&["--fix", "--yes", "--undo-file", "undo.json"]);
    assert!(code == Some(1) && err.contains("nothing was set"), "{out}{err}");

    // Taken back, but for what somebody has changed since.
    configure(&url, &json!({"number_fallback_url": "https://mine.example.com/busy.xml"}));
    configure(&url, &json!({"number_status_url": STATUS}));
    let (code, out, err) = doctor(&["--undo", "undo.json", "--yes"]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("VoiceFallbackUrl has been changed since"), "{out}");
    assert_eq!(urls(&url), [OLD, OLD_STATUS, "https://mine.example.com/busy.xml"]);
}

#[test]
fn what_somebody_else_answers_stays_and_a_made_up_file_sets_nothing() {
    let folder = Folder::new();
    let (_sim, url) = simulator();
    let theirs = ["https://demo.twilio.com/welcome", "https://crm.example.com/calls"];
    configure(&url, &json!({"number_voice_url": theirs[0], "number_status_url": theirs[1]}));
    let config = live_config(&folder, &url, LISTEN);
    let doctor = |more: &[&str]| run_within(&folder, &[&["doctor", "--config", &config], more].concat(), &KEYS);
    let (code, out, err) = doctor(&["--fix", "--yes", "--fallback-url", BUSY]);
    assert!(code == Some(0) && out.contains("nothing to set"), "{out}{err}");
    let set = |param: &str, to: &str| json!({"param": param, "from": "x", "to": to});
    let step = |settings: Value| json!([{"account": "twilio", "what": "number", "id": "PN00000000000000000000000000000001", "name": "n", "settings": settings}]);
    for text in [
        "not JSON".to_owned(),
        step(json!([set("SmsUrl", "")])).to_string(),
        step(json!([set("VoiceUrl", "https://not.what.is.there")])).to_string(),
    ] {
        folder.write("made-up.json", &text);
        doctor(&["--undo", "made-up.json", "--yes"]);
        assert_eq!(urls(&url), [theirs[0], theirs[1], ""], "{text}");
    }
    let (code, _, err) = doctor(&["--fix", "--fallback-url", "https://hooks.example.com/busy.xml"]);
    assert!(code == Some(1) && err.contains("ringfence's own host"), "{err}");
    let (code, _, err) = doctor(&["--fix", "--fallback-url", "busy.xml"]);
    assert!(code == Some(2) && err.contains("http"), "{err}");
}
