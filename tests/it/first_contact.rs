//! What somebody meets who tries ringfence on an app of theirs: observe mode, customers that nobody wrote down, limits that nobody
//! wrote, numbers in any spelling.

use std::time::{Duration, Instant};

use ringfence_simulator::{Fault, FaultKind, Provider, SimSettings};
use serde_json::{Value, json};

use crate::outbound::{TALK, all_free, basic, elevenlabs, order, twilio};
use crate::outbound_limits::{EL, stage};
use crate::support::stage::{Answer, PATIENCE, Setup, Stage};

fn would(answer: &Answer) -> Option<&str> {
    answer.header("x-ringfence-would-refuse")
}

async fn metric(stage: &Stage, line: &str) -> bool {
    stage.ask("/metrics").await.as_str().unwrap().contains(&format!("\n{line}\n"))
}

// === observe ===

#[tokio::test(flavor = "multi_thread")]
async fn observe_mode_sends_what_strangers_order_and_counts_it_under_their_id() {
    let tables = "[businesses]\nunknown = \"reject\"\n[businesses.acme]\nmax_calls = 1";
    let stage = stage("mode = \"observe\"\nconcurrent = 50", tables).await;
    let known = stage.dial(Some("acme"), "+15550002001").await;
    assert_eq!((known.status, would(&known)), (200, None));
    for (business, counted) in [(Some("birch"), "birch"), (None, "default"), (Some("two words"), "default")] {
        let answer = stage.dial(business, "+15550002002").await;
        assert_eq!((answer.status, would(&answer)), (200, Some("UNKNOWN_BUSINESS")), "{business:?}");
        let id = answer.json()["conversation_id"].as_str().unwrap().to_owned();
        assert_eq!(stage.record(&id).await.unwrap().attributes.business.as_str(), counted);
        stage.control.end_call(&id);
    }
    let answer = twilio(&stage, "Calls.json", Some("cedar"), "+15550002003", &[("Twiml", TALK)]).await;
    assert_eq!((answer.status, would(&answer)), (201, Some("UNKNOWN_BUSINESS")));
    assert!(metric(&stage, "ringfence_shadow_refusals_total{limit=\"UNKNOWN_BUSINESS\"} 4").await);
    let rows = async || stage.ask("/api/refusals").await["refusals"].as_array().unwrap().clone();
    stage.wait("each has a row", async || rows().await.len() == 4).await;
    assert!(rows().await.iter().all(|row| row["observed"] == true && row["code"] == "UNKNOWN_BUSINESS"));
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn observe_mode_refuses_no_key_no_zero_and_no_batch_without_a_number() {
    let stage =
        stage("mode = \"observe\"", "[plans]\nFREE = { concurrent = 0 }\n[businesses.free]\nplan = \"FREE\"").await;
    let free = stage.dial(Some("free"), "+15550002001").await;
    assert_eq!((free.status, would(&free)), (200, Some("plan.FREE")));
    let long = "k".repeat(300);
    let keyed = |key: &str, to: &str| {
        let (key, body) = (key.to_owned(), order(to));
        let stage = &stage;
        async move { elevenlabs(stage, EL, &[("idempotency-key", &key)], &body).await }
    };
    let bad = keyed(&long, "+15550002002").await;
    assert_eq!((bad.status, would(&bad)), (200, Some("INVALID_REQUEST")), "{bad:?}");
    assert_eq!(would(&keyed("one", "+15550002003").await), None);
    let other = keyed("one", "+15550002004").await;
    assert_eq!((other.status, would(&other)), (200, Some("IDEMPOTENCY_KEY_REUSED")), "{other:?}");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn observe_mode_passes_the_providers_own_refusal_on() {
    let stage = stage("mode = \"observe\"", "").await;
    let fault = Fault { retry_after: Some(7), ..Fault::next(Provider::ElevenLabs, FaultKind::TooManyConcurrent, 1) };
    stage.control.fault(fault);
    let answer = stage.dial(None, "+15550002001").await;
    assert_eq!((answer.status, answer.header("retry-after")), (429, Some("7")), "{answer:?}");
    assert_eq!(would(&answer), Some("ELEVENLABS_429_RATE_LIMIT"));
    assert_eq!(answer.json()["error"], Value::Null, "nothing is added to it");
    assert_eq!(stage.held().await, 0);
    stage.finish().await;
}

// === customers that nobody wrote down ===

#[tokio::test(flavor = "multi_thread")]
async fn a_header_names_a_business_although_nobody_is_known() {
    let stage = stage("per_business = 1\nconcurrent = 50", "").await;
    for business in ["acme", "birch", "cedar"] {
        let to = "+15550002001";
        assert_eq!(stage.dial(Some(business), to).await.status, 200, "each has a place of its own");
        let full = stage.dial(Some(business), "+15550002002").await;
        assert_eq!((full.status, full.header("x-ringfence-limit")), (503, Some("plan.default")));
    }
    // The first business that is put changes nothing for the others, and says so.
    let put = |id: &str, body: Value| {
        let url = stage.admin(&format!("/api/businesses/{id}"));
        let stage = &stage;
        async move { stage.send("PUT", &url, &[], body.to_string()).await }
    };
    let first = put("dogwood", json!({"max_calls": 2})).await;
    assert_eq!(first.status, 201, "{first:?}");
    let note = first.json()["note"].as_str().unwrap().to_owned();
    assert!(note.contains("are accepted on plan \"default\"") && note.contains("\"reject\""), "{note}");
    assert_eq!(stage.dial(Some("elm"), "+15550002003").await.status, 200);
    assert_eq!(put("fir", json!({})).await.json()["note"], Value::Null, "it was said");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_ignored_is_said() {
    let stage = stage("", "[businesses]\nidentify_by = [\"agent\"]").await;
    let answer = stage.dial(Some("acme"), "+15550002001").await;
    let said = answer.header("x-ringfence-ignored").unwrap();
    assert!(answer.status == 200 && said.contains("X-Business-Id") && said.contains("identify_by"), "{said}");
    assert_eq!(stage.dial(None, "+15550002002").await.header("x-ringfence-ignored"), None);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_businesses_are_put_at_once_or_none_of_them() {
    let stage = stage("concurrent = 50", "").await;
    let put = |body: Value| {
        let url = stage.admin("/api/businesses");
        let stage = &stage;
        async move { stage.send("PUT", &url, &[], body.to_string()).await }
    };
    let rows = |n: usize| {
        (0..n)
            .map(|i| json!({"id": format!("b{i}"), "plan": "PRO", "agent_ids": [format!("agent_{i}")]}))
            .collect::<Vec<_>>()
    };
    let mut bad = rows(300);
    bad[3] = json!({"id": "b3", "plan": "PROO"});
    bad[10] = json!({"plan": "PRO"});
    bad[20]["max_call"] = 3.into();
    bad[30]["id"] = "two words".into();
    bad[40]["id"] = "b41".into();
    bad[50]["agent_ids"] = json!(["agent_51"]);
    bad[60] = json!("b60");
    let answer = put(json!({"businesses": bad})).await;
    assert_eq!((answer.status, &answer.json()["error"]), (422, &json!("INVALID_BUSINESSES")), "{answer:?}");
    let told: Vec<u64> = answer.json()["rows"].as_array().unwrap().iter().map(|r| r["row"].as_u64().unwrap()).collect();
    assert_eq!(told, [4, 11, 21, 31, 42, 52, 61], "{answer:?}");
    assert_eq!(stage.ask("/api/businesses").await["businesses"].as_array().unwrap().len(), 0, "none was put");
    let answer = put(json!(rows(300))).await;
    assert_eq!((answer.status, &answer.json()["put"], &answer.json()["new"]), (200, &json!(300), &json!(300)));
    assert!(answer.json()["note"].as_str().unwrap().contains("plan \"default\""));
    assert_eq!(put(json!({"businesses": rows(301)})).await.json()["new"], 1);
    for n in 0..3 {
        assert_eq!(stage.dial(Some("b7"), &format!("+155500020{n:02}")).await.status, 200);
    }
    assert_eq!(stage.dial(Some("b7"), "+15550002009").await.header("x-ringfence-limit"), Some("plan.PRO"));
    stage.finish().await;
}

// === limits that nobody wrote ===

#[tokio::test(flavor = "multi_thread")]
async fn every_limit_in_force_is_shown_with_where_it_came_from() {
    let stage = Stage::start(Setup { twilio: "rate = \"50/s\"\nburst = 100".to_owned(), ..Setup::default() }).await;
    let status = stage.ask("/status").await;
    let limit = |name: &str, per: &str| {
        let all = status["limits"].as_array().unwrap();
        all.iter().find(|l| l["name"] == name && l["per"] == per).unwrap_or_else(|| panic!("{name} in {all:?}")).clone()
    };
    assert_eq!(limit("global", "all")["allows"], "5 calls at once");
    assert!(limit("global", "all")["from"].as_str().unwrap().contains("is not set"));
    assert_eq!(limit("account.twilio", "all")["allows"], "100/2s");
    assert_eq!(limit("account.twilio", "all")["from"], "accounts.twilio.rate");
    assert_eq!(limit("plan.PRO", "business")["from"], "built in");
    stage.finish().await;
}

// === rates ===

/// Shared case F6: what an account bought is not overdrawn in any window.
#[tokio::test(flavor = "multi_thread")]
async fn no_window_of_a_rate_holds_more_than_it() {
    let setup = Setup {
        sim: SimSettings::default(),
        root: "concurrent = 500".to_owned(),
        elevenlabs: "rate = \"5/s\"".to_owned(),
        ..Setup::default()
    };
    let stage = Stage::start(setup).await;
    // When each was asked for, and answered: it was sent at a moment between the two.
    let (started, mut sent) = (Instant::now(), Vec::<(Duration, Duration)>::new());
    for n in 0.. {
        if sent.len() == 15 {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "it is used to the full: {sent:?}");
        let asked = started.elapsed();
        if stage.dial(None, &format!("+1555{n:07}")).await.status == 200 {
            sent.push((asked, started.elapsed()));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for six in sent.windows(6) {
        assert!(six[5].1 - six[0].0 >= Duration::from_secs(1), "{six:?}");
    }
    stage.finish().await;
}

// === numbers ===

#[tokio::test(flavor = "multi_thread")]
async fn numbers_are_the_same_in_every_spelling() {
    let tables = r#"
[businesses]
identify_by = ["number"]
[businesses.acme]
plan = "PRO"
phone_numbers = ["+1 (555) 000-1111"]
[[limits]]
name = "turkey"
match = { destination_prefix = ["0090"] }
concurrent = 1
[[limits]]
name = "ours"
match = { own_number = ["15550003333"] }
concurrent = 1
"#;
    let stage = stage("concurrent = 50", tables).await;
    let sid = stage.control.settings().account_sid;
    for from in ["%2B15550001111", "15550001111", "+15550001111", "%2B1+(555)+000-1111"] {
        let form = format!(
            "To=%2B15550002001&From={from}&Twiml={}",
            form_urlencoded::byte_serialize(TALK.as_bytes()).collect::<String>()
        );
        let credentials = basic(&stage.control);
        let headers = [("content-type", "application/x-www-form-urlencoded"), ("authorization", credentials.as_str())];
        let url = stage.api(&format!("/twilio/2010-04-01/Accounts/{sid}/Calls.json"));
        let answer = stage.send("POST", &url, &headers, form).await;
        assert!(answer.status < 500, "{from}: {answer:?}");
        let latest = stage.app().calls().lifecycle.store.latest_calls(1).await.unwrap();
        let attributes = &latest[0].attributes;
        assert_eq!(
            (attributes.business.as_str(), attributes.own_number.as_deref()),
            ("acme", Some("+15550001111")),
            "{from}"
        );
        for call in stage.app().calls().lifecycle.store.open_calls().await.unwrap() {
            if let Some(id) = call.alias("call_sid") {
                stage.control.end_call(id);
            }
        }
        all_free(&stage).await;
    }
    assert_eq!(twilio(&stage, "Calls.json", None, "905550002001", &[("Twiml", TALK)]).await.status, 201);
    let full = twilio(&stage, "Calls.json", None, "+90 555 000 2002", &[("Twiml", TALK)]).await;
    assert_eq!(full.header("x-ringfence-limit"), Some("turkey"), "{full:?}");
    stage.finish().await;
}
