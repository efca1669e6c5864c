//! What operators and dashboards see and change on `listen.admin`: businesses, figures, tokens.

use std::sync::Arc;

use ringfence::admin::auth::{Claims, mint};
use ringfence::call::Phase;
use ringfence::provider::secret::Secret;
use serde_json::{Value, json};

use crate::outbound::{all_free, elevenlabs, id, once, order, talk};
use crate::outbound_limits::{BUSINESSES, EL, assert_full, stage};
use crate::support::stage::{Answer, Stage};

// === businesses ===

async fn put(stage: &Stage, path: &str, body: &str) -> Answer {
    stage.send("PUT", &stage.admin(path), &[("content-type", "application/json")], body.to_owned()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn businesses_are_put_changed_and_deleted_while_calls_are_up() {
    let strict = format!("[businesses]\nunknown = \"reject\"\n{BUSINESSES}");
    let mut stage = stage("concurrent = 50", &strict).await;
    let path = "/api/businesses/acme";
    assert_eq!(stage.dial(Some("acme"), "+15550002001").await.status, 403);
    let made = put(&stage, path, r#"{"plan":"PRO"}"#).await;
    assert_eq!((made.status, &made.json()["id"], &made.json()["plan"]), (201, &json!("acme"), &json!("PRO")));
    for n in 0..3 {
        assert_eq!(stage.dial(Some("acme"), &format!("+155500020{n:02}")).await.status, 200);
    }
    let full = stage.dial(Some("acme"), "+15550002009").await;
    assert_full(&full, "BUSINESS_CONCURRENT_LIMIT_EXCEEDED", "plan.PRO", 3, 3);
    // Lowered, the calls that are up drain; raised, they still count.
    assert_eq!(put(&stage, path, r#"{"plan":"PRO","max_calls":2}"#).await.status, 200);
    let full = stage.dial(Some("acme"), "+15550002009").await;
    assert_full(&full, "BUSINESS_CONCURRENT_LIMIT_EXCEEDED", "business.acme", 3, 2);
    assert_eq!(put(&stage, path, r#"{"plan":"PAYG","max_calls":4}"#).await.status, 200);
    assert_eq!(stage.dial(Some("acme"), "+15550002004").await.status, 200);
    assert_eq!(stage.dial(Some("acme"), "+15550002005").await.status, 503);

    stage.stop_app().await;
    stage.start_app().await;
    assert_eq!(stage.ask(path).await["max_calls"], 4);
    let full = stage.dial(Some("acme"), "+15550002009").await;
    assert_full(&full, "BUSINESS_CONCURRENT_LIMIT_EXCEEDED", "business.acme", 4, 4);
    let listed = stage.ask("/api/businesses").await;
    assert!(listed["businesses"].as_array().unwrap().iter().any(|b| b["id"] == "acme"), "{listed}");

    assert_eq!(stage.send("DELETE", &stage.admin(path), &[], "").await.status, 204);
    assert_eq!(stage.dial(Some("acme"), "+15550002009").await.status, 403, "from the next call on");
    for (method, wanted) in [("GET", 404), ("DELETE", 404), ("PATCH", 405)] {
        assert_eq!(stage.send(method, &stage.admin(path), &[], "").await.status, wanted, "{method}");
    }
    assert_eq!(stage.held().await, 4, "its calls go on");
    stage.finish().await;
}

/// Calls that were admitted under no limit count against the one that comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_business_that_gets_a_plan_counts_the_calls_that_it_has() {
    let stage = stage("concurrent = 50", "[businesses.acme]").await;
    for _ in 0..4 {
        assert_eq!(stage.dial(Some("acme"), "+15550002001").await.status, 200);
    }
    assert_eq!(put(&stage, "/api/businesses/acme", r#"{"plan":"PRO"}"#).await.status, 201);
    let full = stage.dial(Some("acme"), "+15550002009").await;
    assert_full(&full, "BUSINESS_CONCURRENT_LIMIT_EXCEEDED", "plan.PRO", 4, 3);
    stage.finish().await;
}

/// Orders under way while the policy changes: whichever policy decided, the call counts against the one that stays.
#[tokio::test(flavor = "multi_thread")]
async fn no_call_falls_between_two_policies() {
    let stage = Arc::new(stage("concurrent = 500", "[businesses.acme]").await);
    for round in 0..5 {
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..30 {
            let stage = stage.clone();
            tasks.spawn(async move { stage.dial(Some("acme"), &format!("+1555000{round}{n:03}")).await.status });
        }
        // Somewhere in the midst of them.
        stage.wait("some are up", async || stage.held().await > 5).await;
        assert!(put(&stage, "/api/businesses/acme", r#"{"max_calls":10}"#).await.status < 300);
        tasks.join_all().await;
        let counts = stage.app().calls().lifecycle.admission.counts().await.unwrap();
        assert_eq!(counts.by_key.get("business|acme"), Some(&counts.calls), "round {round}: every call of it counts");
        for call in stage.control.calls().into_iter().filter(|c| c.live) {
            stage.control.end_call(&call.call_sid.unwrap());
        }
        all_free(&stage).await;
        assert!(stage.send("DELETE", &stage.admin("/api/businesses/acme"), &[], "").await.status < 300);
    }
    Arc::into_inner(stage).unwrap().finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_business_is_told_by_its_agents_and_numbers() {
    let stage = stage("", BUSINESSES).await;
    let body = r#"{"plan":"PRO","agent_ids":["agent_acme"],"phone_numbers":["+15550001111"]}"#;
    assert_eq!(put(&stage, "/api/businesses/acme", body).await.status, 201);
    let by_agent = id(&stage.dial(None, "+15550002001").await, "conversation_id");
    let by_number = id(&talk(&stage, "+15550002001", &[]).await, "sid");
    for call in [by_agent, by_number] {
        assert_eq!(stage.record(&call).await.unwrap().attributes.business.as_str(), "acme");
    }
    let taken = put(&stage, "/api/businesses/birch", r#"{"plan":"PRO","agent_ids":["agent_acme"]}"#).await;
    assert_eq!((taken.status, &taken.json()["error"]), (422, &json!("INVALID_BUSINESS")));
    assert_eq!(put(&stage, "/api/businesses/acme", body).await.status, 200, "its own do not stand in its way");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_businesses_are_told_what_is_wrong() {
    let stage = stage("", BUSINESSES).await;
    let cases = [
        ("/api/businesses/acme", "", 400, "INVALID_REQUEST"),
        ("/api/businesses/acme", "[]", 400, "INVALID_REQUEST"),
        ("/api/businesses/acme", r#"{"plan":"PRO","maxCalls":2}"#, 400, "INVALID_REQUEST"),
        ("/api/businesses/acme", r#"{"plan":"PRO","max_calls":-1}"#, 400, "INVALID_REQUEST"),
        ("/api/businesses/acme", r#"{"id":"birch","plan":"PRO"}"#, 400, "INVALID_REQUEST"),
        ("/api/businesses/a%20b", r#"{"plan":"PRO"}"#, 400, "INVALID_REQUEST"),
        ("/api/businesses/acme", r#"{"plan":"GOLD"}"#, 422, "INVALID_BUSINESS"),
        ("/api/businesses/acme", r#"{"plan":"ENTERPRISE"}"#, 422, "INVALID_BUSINESS"),
    ];
    for (path, body, status, error) in cases {
        let answer = put(&stage, path, body).await;
        assert_eq!((answer.status, answer.json()["error"].as_str()), (status, Some(error)), "{path} {body}");
        assert!(answer.json()["message"].as_str().is_some_and(|m| m.len() > 5));
    }
    // Those of the config stand there, too; none of these was put.
    let listed = stage.ask("/api/businesses").await["businesses"].as_array().unwrap().clone();
    let ids: Vec<&str> = listed.iter().map(|one| one["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["enterprise", "payg", "pro", "special", "starter"]);
    assert!(listed.iter().all(|one| one["put"] == false), "{listed:?}");
    // An id is what its encoding says, in both paths.
    let made = put(&stage, "/api/businesses/org%3A4=2&x+y", r#"{"plan":"PRO"}"#).await;
    assert_eq!((made.status, &made.json()["id"]), (201, &json!("org:4=2&x+y")));
    assert_eq!(stage.dial(Some("org:4=2&x+y"), "+15550002001").await.status, 200);
    let below = elevenlabs(&stage, &format!("/b/org%3A4%3D2&x+y{EL}"), &[], &order("+15550002001")).await;
    assert_eq!(below.status, 200, "{below:?}");
    stage.finish().await;
}

// === figures, and who may see them ===

#[tokio::test(flavor = "multi_thread")]
async fn figures_have_the_shapes_of_the_contract() {
    let stage = stage("concurrent = 1", "").await;
    let plans = json!({"PAYG": 0, "STARTER": 0, "PRO": 0, "ENTERPRISE": 0});
    let idle = json!({"activeCalls": 0, "totalRejections": 0, "rejectionsByReason": {}, "rejectionsByPlan": {}, "elevenlabs429Count": 0,
        "globalStatus": {"active": 0, "limit": 1, "available": 1, "utilizationPercent": 0, "byPlan": plans}});
    let mut figures = stage.ask("/api/concurrent-metrics").await;
    let timestamp = figures.as_object_mut().unwrap().remove("timestamp");
    assert!(timestamp.is_some_and(|t| t.as_str().unwrap().ends_with('Z')));
    assert_eq!(figures, idle);
    let call = id(&stage.dial(None, "+15550002001").await, "conversation_id");
    assert_eq!(stage.dial(None, "+15550002002").await.status, 503);
    let status = stage.ask("/api/concurrent-metrics/status").await;
    assert_eq!((&status["active"], &status["utilizationPercent"]), (&json!(1), &json!(100)));
    let shown = &status["calls"][0];
    assert_eq!(
        (&shown["status"], &shown["direction"], &shown["businessId"]),
        (&json!("active"), &json!("outbound"), &json!("default"))
    );
    assert_eq!(shown["ids"]["conversation_id"], call.as_str());
    assert!(!status.to_string().contains("+15550002001"), "numbers are masked: {status}");
    // As clients of before ringfence read it.
    let active = &status["activeCalls"][0];
    assert_eq!((&status["activeCallCount"], &active["callId"]), (&json!(1), &shown["callId"]));
    assert_eq!((&active["plan"], &active["businessId"]), (&json!("default"), &json!("default")));
    assert!(active["age"].is_u64() && active["acquiredAt"] == shown["startedAt"], "{active}");
    for path in ["/metrics", "/api/concurrent-metrics/prometheus"] {
        let text = stage.ask(path).await;
        let text = text.as_str().unwrap();
        for line in [
            "platform_global_active_calls 1",
            "concurrent_rejected_total{plan=\"default\",reason=\"GLOBAL_CAPACITY_EXCEEDED\"} 1",
            "elevenlabs_429_total 0",
            "active_call_sessions_count 1",
            "subscription_active_calls_sum 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }
    stage.control.end_call(&call);
    once(&stage, &call, "it ends", |r| r.phase == Phase::Ended).await;
    let kinds = async || -> Vec<String> {
        let events = stage.ask("/api/concurrent-metrics/events").await;
        events["events"].as_array().unwrap().iter().map(|e| e["type"].as_str().unwrap().to_owned()).collect()
    };
    stage.wait("newest first", async || kinds().await == ["released", "refused", "admitted"]).await;
    let oldest_first = stage.ask("/api/concurrent-metrics/events?limit=2").await;
    let (first, last) = (&oldest_first["events"][0], &oldest_first["events"][1]);
    assert_eq!((&first["type"], &last["type"]), (&json!("refused"), &json!("released")));
    assert_eq!((&last["timestamp"], &last["data"]["callId"]), (&last["at"], &last["callId"]));
    assert_eq!(oldest_first["events"].as_array().map(Vec::len), Some(2));
    let system = stage.ask("/status").await;
    assert_eq!(
        (&system["mode"], &system["draining"], &system["store"]["ok"]),
        (&json!("enforce"), &json!(false), &json!(true))
    );
    let account =
        |name: &str| system["accounts"].as_array().unwrap().iter().find(|a| a["name"] == name).cloned().unwrap();
    assert_eq!((&account("elevenlabs")["inUse"], &account("twilio")["canBeAsked"]), (&json!(0), &json!(true)));
    for url in [stage.api("/health"), stage.webhooks("/health"), stage.admin("/health"), stage.admin("/ready")] {
        assert_eq!(stage.send("GET", &url, &[], "").await.status, 200, "{url}");
    }
    for path in ["/nothing", "/api/concurrent-metrics/nothing", "/api/calls/c_nobody"] {
        let answer = stage.send("GET", &stage.admin(path), &[], "").await;
        assert_eq!((answer.status, answer.json()["error"].as_str()), (404, Some("NOT_FOUND")), "{path}");
    }
    stage.finish().await;
}

/// Invariant 7: a token that names businesses shows nothing of another's.
#[tokio::test(flavor = "multi_thread")]
async fn a_business_token_shows_nothing_of_another_business() {
    let secret = "a secret of some length, for tests alone";
    let stage = stage("concurrent = 3", &format!("[admin]\ntoken_secret = \"{secret}\"\n{BUSINESSES}")).await;
    let own = id(&stage.dial(Some("pro"), "+15550002001").await, "conversation_id");
    let other = id(&stage.dial(Some("payg"), "+15550002002").await, "conversation_id");
    for business in ["payg", "starter", "starter"] {
        stage.dial(Some(business), "+15550002003").await;
    }
    stage
        .wait("both refusals are on record", async || {
            stage.ask("/api/refusals").await["refusals"].as_array().is_some_and(|r| r.len() == 2)
        })
        .await;
    let exp = stage.clock.now_ms() / 1000 + 60;
    let claims = Claims { sub: "pro".to_owned(), exp, businesses: vec!["pro".to_owned()], scope: "operate".to_owned() };
    let token = format!("Bearer {}", mint(&Secret::new(secret), &claims).unwrap());
    let ask = async |method: &str, path: &str| {
        let body = r#"{"force":true,"reason":"test","plan":"PRO"}"#;
        stage.send(method, &stage.admin(path), &[("authorization", &token)], body).await
    };
    for path in ["/api/calls?all=1", "/api/refusals", "/api/concurrent-metrics/events", "/api/businesses"] {
        let answer = ask("GET", path).await;
        assert_eq!(answer.status, 200, "{path}");
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(!text.contains("payg") && !text.contains(&other) && !text.contains("\"starter\""), "{path}: {text}");
    }
    for (method, path) in [
        ("GET", format!("/api/calls/{other}")),
        ("POST", format!("/api/calls/{other}/hangup")),
        ("POST", format!("/api/calls/{other}/release")),
        ("GET", "/api/businesses/payg".to_owned()),
    ] {
        assert_eq!(ask(method, &path).await.status, 404, "{method} {path}");
    }
    assert_eq!(ask("PUT", "/api/businesses/payg").await.status, 403);
    assert_eq!(ask("GET", &format!("/api/calls/{own}")).await.status, 200);
    assert_eq!(ask("GET", "/api/businesses/pro").await.status, 200);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_cut_says_so_and_goes_on_page_by_page() {
    let stage = stage("", BUSINESSES).await;
    for n in 0..3 {
        assert_eq!(stage.dial(Some("pro"), &format!("+155500020{n:02}")).await.status, 200);
    }
    assert_eq!(stage.dial(Some("pro"), "+15550002003").await.status, 503);
    assert_eq!(stage.dial(Some("pro"), "+15550002004").await.status, 503);
    stage.wait("both are on record", async || stage.ask("/api/refusals").await["refusals"][1].is_object()).await;
    for (path, list, total) in [
        ("/api/calls?limit=2", "calls", json!(3)),
        ("/api/calls?all=true&limit=2", "calls", Value::Null),
        ("/api/refusals?limit=1", "refusals", Value::Null),
        ("/api/refusals?limit=1&code=BUSINESS_CONCURRENT_LIMIT_EXCEEDED", "refusals", Value::Null),
    ] {
        let first = stage.ask(path).await;
        assert_eq!(first.get("total").cloned().unwrap_or_default(), total, "{path}");
        let next = first["next"].as_str().unwrap_or_else(|| panic!("{path}: {first}"));
        let second = stage.ask(&format!("{path}&after={next}")).await;
        assert!(second["next"].is_null(), "{path}: {second}");
        assert_eq!(second[list].as_array().map(Vec::len), Some(1), "{path}: {second}");
        assert_ne!(first[list][0], second[list][0], "{path}");
    }
    assert_eq!(stage.ask("/api/calls").await["next"], Value::Null);
    let none = stage.ask("/api/refusals?code=NO_SUCH_CODE").await;
    assert_eq!(none["refusals"], json!([]));
    // What each business holds is counted where all calls are.
    assert_eq!(stage.ask("/api/businesses").await["up"], json!({"pro": 3}));
    stage.finish().await;
}
