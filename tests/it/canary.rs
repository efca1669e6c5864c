//! Nothing that is secret, and no whole telephone number, is in anything that ringfence writes for people: its log, its errors, its
//! metrics, what an operator reads, its pages, its description, and what it hands to whoever is to help.

use http::StatusCode;
use ringfence::admin::api::ROUTES;
use serde_json::json;

use crate::cli::run;
use crate::support::child::{OWN_NUMBER, Scene};
use crate::support::stage::Setup;

const OPERATORS: &str = "planted-operators-secret-of-32-bytes-and-more";
const CLIENTS: &str = "planted-clients-secret-of-32-bytes-and-more-x";
const CRON: &str = "planted-cron-secret";

/// What shows businesses to operators.
const SHOWN: [&str; 9] = ["log", "calls", "check", "status", "refusals", "explain", "doctor", "top", "businesses"];

/// A telephone number as it may be written: only its masked form may be seen.
fn spellings(number: &str) -> Vec<String> {
    let digits = number.trim_start_matches('+');
    vec![digits.to_owned(), digits[1..].to_owned()]
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_and_no_whole_number_gets_out() {
    let tables = format!(
        "[admin]\ncron_secret = \"{CRON}\"\n[client]\ntoken_secret = \"{CLIENTS}\"\n[log]\nfilter = \"info,ringfence=trace\"\n\
         [businesses.\"15557770001\"]\nmax_calls = 1\nphone_numbers = [\"+15557770002\"]\n\
         [destinations]\ndenied_prefixes = [\"+15559\"]\n"
    );
    let mut scene = Scene::set(Setup::default().sim, "front", "", &tables).await;
    scene.start_well().await;
    let settings = scene.control.settings();
    let secrets = [
        settings.el_api_key.clone(),
        settings.el_webhook_secret.clone(),
        settings.auth_token.clone(),
        CLIENTS.to_owned(),
        CRON.to_owned(),
    ];
    let mut numbers = vec![OWN_NUMBER.to_owned(), "+15557770001".to_owned(), "+15557770002".to_owned()];

    // Calls of every kind: admitted, refused by a limit and by its destination, at both providers, inbound.
    for _ in 0..2 {
        let (answer, to) = scene.talk().await;
        assert!(answer.is_some());
        numbers.push(to);
    }
    let el = settings.el_api_key.as_str();
    for (business, to) in [("15557770001", "+15551230001"), ("15557770001", "+15551230002"), ("acme", "+15559230003")] {
        let body = json!({"agent_id": "agent_1", "agent_phone_number_id": "phnum_1", "to_number": to}).to_string();
        let headers = [("content-type", "application/json"), ("xi-api-key", el), ("x-business-id", business)];
        let path = "/elevenlabs/v1/convai/twilio/outbound-call";
        let answer = scene.ask("api", "POST", path, &headers, body).await.unwrap();
        let told = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(answer.status == 200 || spellings(to).iter().all(|number| !told.contains(number.as_str())), "{told}");
        numbers.push(to.to_owned());
    }
    numbers.extend(scene.call_in().map(|call| call.from));
    // What nobody should send, with what should not be seen: an unsigned webhook, a wrong token, a body that is none.
    let said = format!("From=%2B15551239999&Token={OPERATORS}&CallSid=CA1");
    numbers.push("+15551239999".to_owned());
    let forged = format!("v0=1,{OPERATORS}");
    for (listener, path, header) in [
        ("webhooks", "/webhooks/elevenlabs", ("elevenlabs-signature", forged.as_str())),
        ("webhooks", "/webhooks/twilio/status", ("x-twilio-signature", OPERATORS)),
        ("admin", "/api/businesses", ("authorization", OPERATORS)),
        ("api", "/nowhere", ("authorization", OPERATORS)),
    ] {
        let answer = scene.ask(listener, "POST", path, &[header], said.clone()).await.unwrap();
        assert!(answer.status >= StatusCode::BAD_REQUEST.as_u16(), "{path}: {answer:?}");
        assert!(!String::from_utf8_lossy(&answer.body).contains(OPERATORS), "{path}: {answer:?}");
    }
    let body = json!({"numbers": ["+15551238888"], "reason": "asked"}).to_string();
    numbers.push("+15551238888".to_owned());
    assert_eq!(scene.ask("admin", "PUT", "/api/do-not-call", &[], body).await.unwrap().status, 200);

    // All that can be read.
    let mut seen = vec![];
    for route in ROUTES.iter().filter(|route| route.method == "GET" && !route.path.ends_with("/stream")) {
        let path = route.path.replace("{id+}", "nobody").replace("{id}", "nobody").replace("{number}", "+15551238888");
        let answer = scene.ask("admin", "GET", &path, &[], "").await.unwrap();
        seen.push((path, String::from_utf8_lossy(&answer.body).into_owned()));
    }
    for path in ["/", "/page/app.js", "/page/api.html", "/api/calls?all=true", "/api/events?state=parked"] {
        let answer = scene.ask("admin", "GET", path, &[], "").await.unwrap();
        assert_eq!(answer.status, 200, "{path}");
        seen.push((path.to_owned(), String::from_utf8_lossy(&answer.body).into_owned()));
    }
    let config = scene.folder().join("ringfence.toml").display().to_string();
    let refusals = scene.ask("admin", "GET", "/api/refusals", &[], "").await.unwrap().json();
    let refusal = refusals["refusals"][0]["id"].as_str().unwrap().to_owned();
    for command in [
        &["support-bundle", "--output", "-"][..],
        &["check"],
        &["calls", "list"],
        &["events", "list"],
        &["status"],
        &["refusals", "list"],
        &["explain", &refusal],
        &["doctor"],
        &["top", "--once"],
        &["businesses", "list"],
        &["runs", "list"],
    ] {
        for json in [&[][..], &["--json"]] {
            // What is drawn, or is JSON as it is.
            if !json.is_empty() && ["top", "support-bundle"].contains(&command[0]) {
                continue;
            }
            let words = [command, json, &["--config", &config]].concat();
            let (code, out, err) = tokio::task::block_in_place(|| run(&words));
            // What doctor finds wrong here is no secret.
            assert!(code == Some(0) || command[0] == "doctor" && code == Some(2), "{words:?}: {out}{err}");
            assert!(!out.is_empty(), "{words:?} says nothing");
            seen.push((command[0].to_owned(), format!("{out}{err}")));
        }
    }
    seen.push(("log".to_owned(), scene.log()));

    let bundle = &seen.iter().find(|(name, _)| name == "support-bundle").unwrap().1;
    for there in ["\"/status\"", "\"/metrics\"", "[redacted]", "\"mistakes\"", "ringfence_limit_max"] {
        assert!(bundle.contains(there), "{there} is not in the bundle: {bundle}");
    }
    assert!(scene.log().contains("admitted") && scene.log().contains("request rejected"), "the log has what happened");
    for (name, text) in &seen {
        for secret in secrets.iter().map(String::as_str).chain([OPERATORS]) {
            assert!(!text.contains(secret), "{name} has a secret ({secret}): {text}");
        }
        for number in numbers.iter().flat_map(|number| spellings(number)) {
            // What the operator wrote as a business's id or its number is shown to operators as it is: it is how they find it.
            let is_shown = number.contains("555777000") && SHOWN.contains(&name.as_str())
                || number.contains("555777000") && name.starts_with("/api/")
                || number.contains("555777000") && name == "/status";
            assert!(is_shown || !text.contains(&number), "{name} has a whole number ({number}): {text}");
        }
    }
    scene.finish().await;
}
