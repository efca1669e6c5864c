//! Who may call, how often, and what is said to those who may not: plans, limits, rates, observe mode, how long to wait.

use std::sync::Arc;

use serde_json::json;

use crate::outbound::{TALK, all_free, elevenlabs, id, order, talk, twilio};
use crate::support::stage::{Answer, Setup, Stage};

pub const EL: &str = "/elevenlabs/v1/convai/twilio/outbound-call";

pub const BUSINESSES: &str = r#"
[businesses.payg]
plan = "PAYG"
[businesses.starter]
plan = "STARTER"
[businesses.pro]
plan = "PRO"
[businesses.enterprise]
plan = "ENTERPRISE"
max_calls = 4
[businesses.special]
plan = "PAYG"
max_calls = 2
"#;

/// The whole program, with these keys of the root and these tables.
pub async fn stage(root: &str, tables: &str) -> Stage {
    Stage::start(Setup { root: root.to_owned(), tables: tables.to_owned(), ..Setup::default() }).await
}

/// A refusal by a full limit: status, code, limit, holders and bound.
pub fn assert_full(answer: &Answer, error: &str, limit: &str, current: u32, of: u32) {
    assert_eq!((answer.status, answer.header("x-ringfence-limit")), (503, Some(limit)), "{answer:?}");
    let body = answer.json();
    assert_eq!((&body["error"], &body["limitName"]), (&json!(error), &json!(limit)));
    assert_eq!((&body["currentActive"], &body["limit"], &body["called"]), (&json!(current), &json!(of), &json!(false)));
    assert_eq!(body["refusalId"].as_str(), answer.header("x-ringfence-refusal"));
    assert!(body["message"].as_str().is_some_and(|m| !m.is_empty()) && answer.header("retry-after").is_some());
}

// === plans and limits ===

#[tokio::test(flavor = "multi_thread")]
async fn plans_and_overrides_bound_each_business_by_itself() {
    let stage = stage("concurrent = 50", &format!("[businesses]\ndemo = true\n{BUSINESSES}")).await;
    let cases = [
        ("payg", 1, "plan.PAYG"),
        ("starter", 1, "plan.STARTER"),
        ("pro", 3, "plan.PRO"),
        ("enterprise", 4, "business.enterprise"),
        ("special", 2, "business.special"),
    ];
    let mut up = 0;
    for (business, allowed, limit) in cases {
        for n in 0..allowed {
            assert_eq!(stage.dial(Some(business), &format!("+155500020{n:02}")).await.status, 200, "{business}");
        }
        up += allowed;
        let refused = stage.dial(Some(business), "+15550002099").await;
        assert_full(&refused, "BUSINESS_CONCURRENT_LIMIT_EXCEEDED", limit, allowed, allowed);
        assert_eq!(refused.header("retry-after"), Some("30"), "nothing was learnt yet");
        assert_eq!((&refused.json()["globalCurrent"], &refused.json()["globalLimit"]), (&json!(up), &json!(50)));
    }
    // Without a plan, the whole platform alone bounds it; visitors have a limit of their own.
    for _ in 0..6 {
        assert_eq!(stage.dial(Some("999999"), "+15550002001").await.status, 200);
    }
    let metrics = stage.ask("/api/concurrent-metrics").await;
    assert_eq!(metrics["rejectionsByReason"], json!({"BUSINESS_LIMIT": 5}));
    assert_eq!(metrics["rejectionsByPlan"], json!({"PAYG": 2, "STARTER": 1, "PRO": 1, "ENTERPRISE": 1}));
    let global = &metrics["globalStatus"];
    assert_eq!((&global["active"], &global["limit"], &global["available"]), (&json!(17), &json!(50), &json!(33)));
    assert_eq!((&global["byPlan"]["PAYG"], &global["byPlan"]["PRO"]), (&json!(3), &json!(3)));
    assert_eq!(global["utilizationPercent"], 34);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_business_counts_globally() {
    let stage = stage("concurrent = 2", &format!("[businesses]\ndemo = true\n{BUSINESSES}")).await;
    for _ in 0..2 {
        assert_eq!(stage.dial(Some("999999"), "+15550002001").await.status, 200);
    }
    assert_full(&stage.dial(Some("pro"), "+15550002002").await, "GLOBAL_CAPACITY_EXCEEDED", "global", 2, 2);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused_or_put_on_a_plan() {
    let strict = stage("", &format!("[businesses]\nunknown = \"reject\"\n{BUSINESSES}")).await;
    for business in [None, Some("nobody"), Some("bad id \u{e9}")] {
        let answer = strict.dial(business, "+15550002001").await;
        assert_eq!((answer.status, &answer.json()["error"]), (403, &json!("UNKNOWN_BUSINESS")), "{business:?}");
        assert_eq!(
            (&answer.json()["detail"]["type"], answer.header("retry-after")),
            (&json!("authorization_error"), None)
        );
        let answer = twilio(&strict, "Calls.json", business, "+15550002001", &[("Twiml", TALK)]).await;
        assert_eq!((answer.status, &answer.json()["code"]), (403, &json!(20403)));
    }
    assert_eq!((strict.control.counts().dials, strict.held().await), (0, 0));
    let rows = async || strict.ask("/api/refusals").await["refusals"].as_array().unwrap().clone();
    strict.wait("every refusal has a row that its id leads to", async || rows().await.len() == 6).await;
    let of = async |business: &str| rows().await.iter().filter(|r| r["business"] == business).count();
    assert_eq!((of("nobody").await, of("unknown").await), (2, 4));
    let bad = strict.dial(Some("bad id"), "+15550002001").await;
    assert!(bad.json()["message"].as_str().unwrap().contains("X-Business-Id names no business"), "{bad:?}");
    strict.finish().await;

    let kind = stage("", &format!("[businesses]\nunknown = \"PAYG\"\n{BUSINESSES}")).await;
    assert_eq!(kind.dial(Some("nobody"), "+15550002001").await.status, 200);
    let full = kind.dial(Some("nobody"), "+15550002002").await;
    assert_full(&full, "BUSINESS_CONCURRENT_LIMIT_EXCEEDED", "plan.PAYG", 1, 1);
    assert_eq!(kind.dial(Some("another"), "+15550002003").await.status, 200, "each stranger has a count of its own");
    kind.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_zero_means_that_calls_are_not_available() {
    let tables = "[plans]\nFREE = { concurrent = 0 }\n[businesses.free]\nplan = \"FREE\"";
    let stage = stage("", tables).await;
    let answer = stage.dial(Some("free"), "+15550002001").await;
    assert_eq!((answer.status, &answer.json()["error"]), (403, &json!("PLAN_NOT_ALLOWED")));
    assert_eq!((answer.header("retry-after"), answer.header("x-ringfence-limit")), (None, Some("plan.FREE")));
    let answer = twilio(&stage, "Calls.json", Some("free"), "+15550002001", &[("Twiml", TALK)]).await;
    assert_eq!((answer.status, &answer.json()["details"]["error"]), (403, &json!("PLAN_NOT_ALLOWED")));
    assert_eq!(stage.ask("/api/concurrent-metrics").await["rejectionsByReason"]["PLAN_NOT_ALLOWED"], 2);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn named_limits_bind_what_they_match_per_what_they_say() {
    let tables = r#"
[[limits]]
name = "turkey"
match = { destination_prefix = ["+90"] }
concurrent = 1
[[limits]]
name = "each-agent"
match = { account = ["elevenlabs"] }
per = "agent"
concurrent = 2
[[limits]]
name = "redial"
per = "destination"
rate = "1/h"
"#;
    let stage = stage("concurrent = 50", tables).await;
    assert_eq!(stage.dial(None, "+905550002001").await.status, 200);
    assert_full(&talk(&stage, "+905550002002", &[]).await, "CONCURRENT_LIMIT_EXCEEDED", "turkey", 1, 1);
    assert_eq!(stage.dial(None, "+15550002003").await.status, 200);
    assert_full(&stage.dial(None, "+15550002006").await, "CONCURRENT_LIMIT_EXCEEDED", "each-agent", 2, 2);
    let mut other = order("+15550002004");
    other["agent_id"] = "agent_other".into();
    assert_eq!(elevenlabs(&stage, EL, &[], &other).await.status, 200, "another agent, another count");
    assert_eq!(talk(&stage, "+15550002005", &[]).await.status, 201, "not of that account");
    let again = talk(&stage, "+15550002005", &[]).await;
    assert_eq!((again.status, &again.json()["error"]), (503, &json!("REQUEST_RATE_EXCEEDED")));
    assert_eq!(again.header("x-ringfence-limit"), Some("redial"));
    assert!(matches!(again.header("retry-after"), Some("3600" | "3601")), "{again:?}");
    // A refusal takes no token of the limits that had room.
    assert_eq!(talk(&stage, "+15550002006", &[]).await.status, 201);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rates_refuse_until_their_token_is_there_also_after_a_restart() {
    let setup = Setup {
        root: "concurrent = 50\nrate = \"3/h\"".to_owned(),
        twilio: "rate = \"50/s\"".to_owned(),
        tables:
            "[plans]\nSLOW = { concurrent = 9, rate = \"2/h\" }\n[businesses.slow]\nplan = \"SLOW\"\n[businesses.free]"
                .to_owned(),
        ..Setup::default()
    };
    let mut stage = Stage::start(setup).await;
    for n in 0..2 {
        assert_eq!(stage.dial(Some("slow"), &format!("+155500020{n:02}")).await.status, 200);
    }
    // A minute later, in a process that has to know from the record what was sent.
    stage.clock.advance_ms(120_000);
    for restarted in [false, true] {
        if restarted {
            stage.stop_app().await;
            stage.start_app().await;
        }
        let slow = stage.dial(Some("slow"), "+15550002009").await;
        assert_eq!((slow.status, slow.header("x-ringfence-limit")), (503, Some("plan.SLOW")), "restarted: {restarted}");
        let wait: u32 = slow.header("retry-after").unwrap().parse().unwrap();
        assert!((3_460..=3_481).contains(&wait), "{wait}");
    }
    assert_eq!(twilio(&stage, "Calls.json", Some("free"), "+15550002003", &[("Twiml", TALK)]).await.status, 201);
    let global = twilio(&stage, "Calls.json", Some("free"), "+15550002004", &[("Twiml", TALK)]).await;
    assert_eq!((global.status, global.header("x-ringfence-limit")), (503, Some("global")));
    assert_eq!((&global.json()["code"], &global.json()["error"]), (&json!(20429), &json!("REQUEST_RATE_EXCEEDED")));
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accounts_rate_binds_all_businesses_together() {
    let setup = Setup { twilio: "rate = \"2/h\"".to_owned(), ..Setup::default() };
    let stage = Stage::start(setup).await;
    for n in 0..2 {
        assert_eq!(talk(&stage, &format!("+155500020{n:02}"), &[]).await.status, 201);
    }
    let refused = talk(&stage, "+15550002009", &[]).await;
    assert_eq!((refused.status, refused.header("x-ringfence-limit")), (503, Some("account.twilio")));
    assert!(matches!(refused.header("retry-after"), Some("3600" | "3601")), "{refused:?}");
    // What Twilio carries for ElevenLabs is a call of its account, too.
    assert_eq!(stage.dial(None, "+15550002010").await.header("x-ringfence-limit"), Some("account.twilio"));
    let path = "/elevenlabs/v1/convai/sip-trunk/outbound-call";
    assert_eq!(elevenlabs(&stage, path, &[], &order("+15550002011")).await.status, 200);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_leaves_no_trace_but_its_row() {
    let stage = Arc::new(stage("concurrent = 2", "").await);
    let up = [
        id(&stage.dial(None, "+15550002001").await, "conversation_id"),
        id(&talk(&stage, "+15550002002", &[]).await, "sid"),
    ];
    let before = (stage.control.counts().creates_el, stage.control.counts().creates_tw);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..20 {
        let stage = stage.clone();
        tasks.spawn(async move {
            if n % 2 == 0 { stage.dial(None, "+15550002003").await } else { talk(&stage, "+15550002004", &[]).await }
        });
    }
    let mut refusals: Vec<String> = tasks
        .join_all()
        .await
        .iter()
        .map(|answer| {
            assert_full(answer, "GLOBAL_CAPACITY_EXCEEDED", "global", 2, 2);
            answer.header("x-ringfence-refusal").unwrap().to_owned()
        })
        .collect();
    let counts = stage.control.counts();
    assert_eq!(((counts.creates_el, counts.creates_tw), counts.both_live_now), (before, 2));
    assert_eq!(stage.held().await, 2);
    assert_eq!(stage.ask("/api/calls?all=1").await["calls"].as_array().map(Vec::len), Some(2), "no record");
    let rows = async || stage.ask("/api/refusals?limit=50").await["refusals"].as_array().unwrap().clone();
    stage.wait("every refusal has its row", async || rows().await.len() == 20).await;
    let mut noted: Vec<String> = rows().await.iter().map(|r| r["id"].as_str().unwrap().to_owned()).collect();
    noted.sort();
    refusals.sort();
    assert_eq!(noted, refusals);
    let row = &rows().await[0];
    assert_eq!((&row["code"], &row["limit_name"]), (&json!("GLOBAL_CAPACITY_EXCEEDED"), &json!("global")));
    assert_eq!((&row["current"], &row["limit"], &row["observed"]), (&json!(2), &json!(2), &json!(false)));
    for call in &up {
        stage.control.end_call(call);
    }
    all_free(&stage).await;
    assert_eq!(stage.dial(None, "+15550002003").await.status, 200, "nothing is left of them");
    Arc::into_inner(stage).unwrap().finish().await;
}

// === observe ===

#[tokio::test(flavor = "multi_thread")]
async fn observe_mode_counts_and_says_but_refuses_nothing() {
    let stage = stage("mode = \"observe\"\nconcurrent = 1", "").await;
    let first = stage.dial(None, "+15550002001").await;
    assert_eq!((first.status, first.header("x-ringfence-would-refuse")), (200, None));
    for n in 0..2 {
        let over = stage.dial(None, &format!("+155500020{n:02}")).await;
        assert_eq!((over.status, over.header("x-ringfence-would-refuse")), (200, Some("global")));
    }
    let metrics = stage.ask("/api/concurrent-metrics").await;
    assert_eq!((&metrics["activeCalls"], &metrics["totalRejections"]), (&json!(3), &json!(0)));
    assert_eq!(metrics["globalStatus"]["available"], 0);
    let text = stage.ask("/metrics").await;
    assert!(text.as_str().unwrap().contains("\nringfence_shadow_refusals_total{limit=\"global\"} 2\n"));
    let rows = async || stage.ask("/api/refusals").await["refusals"].as_array().unwrap().clone();
    stage.wait("both have their rows", async || rows().await.len() == 2).await;
    assert!(rows().await.iter().all(|r| r["observed"] == true && r["code"] == "GLOBAL_CAPACITY_EXCEEDED"));
    let events = stage.ask("/api/concurrent-metrics/events").await;
    let of = |kind: &str| events["events"].as_array().unwrap().iter().filter(|e| e["type"] == kind).count();
    assert_eq!((of("admitted"), of("would_refuse"), of("refused")), (3, 2, 0));
    assert_eq!(stage.ask("/status").await["mode"], "observe");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn observe_mode_passes_a_compressed_create_through_and_says_so_in_counter_and_record() {
    let stage = stage("mode = \"observe\"", "").await;
    let headers = [("content-type", "application/json"), ("content-encoding", "gzip"), ("x-business-id", "acme")];
    let send = async || stage.send("POST", &stage.api(EL), &headers, "\u{1f}").await;
    let passed = send().await;
    assert_ne!(passed.status, 415, "the provider answers");
    assert_eq!(passed.header("x-ringfence-would-refuse"), None, "it passes through");
    let rows = async || stage.ask("/api/refusals").await["refusals"].as_array().unwrap().clone();
    stage.wait("it is on record", async || rows().await.len() == 1).await;
    let row = &rows().await[0];
    assert_eq!((&row["observed"], &row["business"]), (&json!(true), &json!("acme")));
    assert_eq!(row["code"], "UNSUPPORTED_CONTENT_ENCODING");
    let count = async |name: &str| {
        let sample = format!("\n{name}{{limit=\"UNSUPPORTED_CONTENT_ENCODING\"}} ");
        let text = stage.ask("/metrics").await.as_str().unwrap().to_owned();
        text.split_once(&sample).map(|(_, rest)| rest.lines().next().unwrap().to_owned())
    };
    assert_eq!(count("ringfence_shadow_refusals_total").await.as_deref(), Some("1"));
    assert_eq!(count("ringfence_bypassed_total").await, None);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_create_counts_as_bypassed_while_a_bypass_is_on() {
    let stage = stage("mode = \"enforce\"", "").await;
    let bypass = json!({"for_secs": 600, "reason": "test"}).to_string();
    let on = stage.send("PUT", &stage.admin("/api/bypass"), &[("content-type", "application/json")], bypass).await;
    assert_eq!(on.status, 200, "{on:?}");
    let headers = [("content-type", "application/json"), ("content-encoding", "gzip")];
    assert_ne!(stage.send("POST", &stage.api(EL), &headers, "\u{1f}").await.status, 415);
    let text = stage.ask("/metrics").await;
    let counted = "\nringfence_bypassed_total{limit=\"UNSUPPORTED_CONTENT_ENCODING\"} 1\n";
    assert!(text.as_str().unwrap().contains(counted));
    stage.finish().await;
}

// === how long to wait ===

#[tokio::test(flavor = "multi_thread")]
async fn waits_are_the_contracts_then_learnt_from_calls_and_capped_for_sdks_that_sleep() {
    let stage = stage("concurrent = 1", "").await;
    let sdk = [("x-fern-sdk-name", "elevenlabs"), ("x-fern-language", "Python")];
    let mut call = id(&stage.dial(None, "+15550002001").await, "conversation_id");
    let refused = elevenlabs(&stage, EL, &sdk, &order("+15550002002")).await;
    assert_eq!((refused.header("retry-after"), &refused.json()["retryAfter"]), (Some("1"), &json!(60)));
    for _ in 0..3 {
        stage.clock.advance_ms(45_000);
        stage.control.end_call(&call);
        all_free(&stage).await;
        call = id(&stage.dial(None, "+15550002001").await, "conversation_id");
    }
    stage.clock.advance_ms(20_000);
    let refused = stage.dial(None, "+15550002002").await;
    let wait: u32 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((20..=26).contains(&wait), "{wait} s of 45");
    assert_eq!(refused.json()["retryAfter"], wait);
    assert!(refused.json()["message"].as_str().unwrap().contains("expected to end"), "{}", refused.json()["message"]);
    let refused = elevenlabs(&stage, EL, &sdk, &order("+15550002002")).await;
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert!(refused.json()["retryAfter"].as_u64().unwrap() >= 20, "the body says what is so");
    stage.finish().await;
}
